"""array-api-strict as a backend: its guard, way by way and device by device, and the whole suite on every fake device."""

import io
import math
import operator
import subprocess
import sys
from contextlib import contextmanager

import array_api_strict as xp
import numpy as np
import pytest
import rnncore_strict
from rnncore_strict import _guard
from rnncore_strict._guard import ImplicitTransferError

import rnncore
from rnncore.errors import DeviceError, DTypeError
from rnncore.testing import CHECKS, check_backend

HOST = "CPU_DEVICE"
FAR = tuple(n for n in rnncore_strict.DEVICES if n != HOST)


def array(numbers, device, dtype=None):
    return rnncore_strict.asarray(np.asarray(numbers), dtype=dtype or xp.float32, device=xp.Device(device))


def number(device):
    return array(1.0, device)


def index(device):
    return array(1, device, xp.int32)


def row(device):
    return array([1.0, 2.0, 3.0], device)


def ask_while(x):
    while x > 1.0:
        x = x - 1.0
    return True


# How an array is asked, and what the answer is where that is allowed.
WAYS = {
    "bool": (number, bool, True),
    "if": (number, lambda x: "yes" if x > 0.0 else "no", "yes"),
    "and": (number, lambda x: (x > 0.0) and True, True),
    "not": (number, lambda x: not x, False),
    "while": (number, ask_while, True),
    "any": (number, lambda x: any([x > 0.0]), True),
    "int": (index, int, 1),
    "float": (number, float, 1.0),
    "complex": (number, complex, 1 + 0j),
    "math.sqrt": (number, math.sqrt, 1.0),
    "operator.index": (index, operator.index, 1),
    "range": (index, lambda x: list(range(x)), [0]),
    "the bound of a slice": (index, lambda x: "abc"[:x], "a"),
    "the index of a list": (index, lambda x: "abc"[x], "b"),
    "str": (number, lambda x: str(x)[:8], "Array(1."),
    "print": (number, lambda x: print(x, file=io.StringIO()), None),
    "an f-string": (number, lambda x: f"{x}"[:8], "Array(1."),
    "a per cent sign": (number, lambda x: ("%s" % x)[:8], "Array(1."),  # noqa: UP031
    "np.asarray": (row, lambda x: np.asarray(x).tolist(), [1.0, 2.0, 3.0]),
    "np.array": (row, lambda x: np.array(x).tolist(), [1.0, 2.0, 3.0]),
    "a NumPy function": (row, lambda x: np.sum(x).item(), 6.0),
    "a NumPy ufunc": (row, lambda x: np.negative(x).tolist(), [-1.0, -2.0, -3.0]),
    "a NumPy operand": (row, lambda x: np.multiply(np.ones(3, "f4"), x).tolist(), [1.0, 2.0, 3.0]),
    "np.from_dlpack": (row, lambda x: np.from_dlpack(x).tolist(), [1.0, 2.0, 3.0]),
    "the namespace's from_dlpack": (row, lambda x: xp.from_dlpack(x).shape, (3,)),
}
# These the library itself refuses, in words of its own.
CONVERSIONS = ("np.asarray", "np.array", "a NumPy function", "a NumPy ufunc", "a NumPy operand")


@pytest.fixture(autouse=True)
def guarded():
    """The guard is on, as it is after any use of the backend, and is again whatever a test does."""
    rnncore_strict.namespace()
    yield
    rnncore_strict.namespace()


@contextmanager
def off():
    back_on = rnncore_strict.unguarded()
    try:
        yield
    finally:
        back_on()


# --- the guard --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("make", "ask", "answer"), WAYS.values(), ids=WAYS)
def test_a_way_to_the_host_is_blocked_on_a_device_and_open_on_the_host(make, ask, answer):
    with pytest.raises(ImplicitTransferError, match=r"device1.*it would wait for the device.*to_device"):
        ask(make("device1"))
    assert ask(make(HOST)) == answer


@pytest.mark.parametrize("device", FAR)
def test_every_device_but_the_host_is_guarded(device):
    for ask in (bool, float, int, str, np.asarray):
        with pytest.raises(ImplicitTransferError, match=device):
            ask(number(device))


def test_the_message_names_the_method():
    for ask, method in ((bool, "__bool__"), (float, "__float__"), (np.from_dlpack, "__dlpack__")):
        with pytest.raises(ImplicitTransferError, match=f"^{method} of an array on "):
            ask(number("device1"))


def test_every_watched_method_is_one_of_the_class():
    kind = type(number("device1"))
    for method in _guard.WATCHED:
        with pytest.raises(ImplicitTransferError, match=method):
            getattr(kind, method)(number("device1"))


def test_arrays_of_the_librarys_own_making_are_guarded_too():
    with pytest.raises(ImplicitTransferError):
        bool(xp.ones((), device=xp.Device("device1")))
    with pytest.raises(ImplicitTransferError):
        float(xp.sum(row("device1")))


def test_debuggers_still_see_the_numbers():
    assert repr(number("device1")).startswith("Array(1., dtype=array_api_strict.float32, device=")


def test_said_out_loud_the_numbers_come():
    assert float(number("device1").to_device(xp.Device(HOST))) == 1.0


@pytest.mark.parametrize("way", WAYS)
def test_without_the_guard_all_but_numpys_conversions_go_through(way):
    make, ask, answer = WAYS[way]
    x = make("device1")
    with off():
        if way in CONVERSIONS:
            with pytest.raises(RuntimeError, match="Can't convert array on the"):
                ask(x)
        else:
            assert ask(x) == answer
    with pytest.raises(ImplicitTransferError):
        ask(x)


def test_the_guard_goes_on_again_with_what_unguarded_returns():
    x = number("device1")
    back_on = rnncore_strict.unguarded()
    assert float(x) == 1.0 and bool(x)
    back_on()
    with pytest.raises(ImplicitTransferError):
        float(x)
    back_on()  # once more changes nothing
    with off():
        assert float(x) == 1.0


def test_the_guard_goes_on_again_with_the_next_use_of_the_backend():
    x = number("device1")
    with off():
        assert float(x) == 1.0
        rnncore.RNN(2, 3, backend="strict")
        with pytest.raises(ImplicitTransferError):
            float(x)


def test_the_guard_leaves_the_class_as_it_was():
    """In a process of its own: here the guard is on already."""
    code = """
import array_api_strict as xp
kind = xp._array_object.Array
from rnncore_strict._guard import WATCHED
before = {n: getattr(kind, n, None) for n in WATCHED}
import rnncore_strict
assert all(getattr(kind, n, None) is before[n] for n in WATCHED), "the import alone changes nothing"
rnncore_strict.namespace(), rnncore_strict.namespace()
assert all(getattr(kind, n) is not before[n] for n in WATCHED if before[n])
rnncore_strict.unguarded()
assert all(getattr(kind, n, None) is before[n] for n in WATCHED)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


# --- the contract, under the guard ------------------------------------------------------------------------------------


@pytest.mark.parametrize("device", rnncore_strict.DEVICES)
def test_numbers_go_there_and_back_under_the_guard(device):
    for numbers, dtype in (
        ([[1.5, -2.0]], xp.float32),
        ([3, -4], xp.int32),
        ([True, False], xp.bool),
        (2.5, xp.float32),
    ):
        host = np.asarray(numbers)
        x = array(host, device, dtype)
        back = rnncore_strict.to_numpy(x)
        assert rnncore_strict.is_native(x) and rnncore_strict.device_name(x.device) == device
        np.testing.assert_array_equal(back, host)
        assert isinstance(back, np.ndarray) and back.dtype == str(dtype).rpartition(".")[2]
        back[...] = 0  # a copy: what was read may be written
        np.testing.assert_array_equal(rnncore_strict.to_numpy(x), host)


def test_the_first_device_is_not_the_host():
    names = [rnncore_strict.device_name(d) for d in rnncore_strict.devices()]
    assert names == list(rnncore_strict.DEVICES) and names[0] != HOST
    assert rnncore.RNN(2, 3, backend="strict").device == xp.Device("device1")


@pytest.mark.parametrize("device", ["no_float64", "no_x64"])
def test_float64_is_refused_where_there_is_none(device):
    with pytest.raises(DTypeError, match=f"float32 on device .*{device}.*, got 'float64'"):
        rnncore.RNN(2, 3, backend="strict", device=device, dtype="float64")
    rnn = rnncore.RNN(2, 3, backend="strict", device=device)
    assert rnn.dtype == xp.float32
    with pytest.raises(DTypeError):
        rnn.to(dtype="float64")


def test_an_unknown_device_is_refused():
    with pytest.raises(DeviceError, match="device1, device2, CPU_DEVICE, no_float64, no_x64"):
        rnncore.RNN(2, 3, backend="strict", device="device7")


@pytest.mark.parametrize(
    "device", [d if d == "device1" else pytest.param(d, marks=pytest.mark.slow) for d in rnncore_strict.DEVICES]
)
def test_the_whole_suite_passes_on_every_device(device):
    report = check_backend("strict", device=device)
    assert report.ok, str(report)
    assert report.device == device and len(report.outcomes) == len(CHECKS)
    assert report.ran > 0.8 * len(CHECKS)
    float64 = any(o.dtype == "float64" for o in report.outcomes)
    assert float64 == (device not in ("no_float64", "no_x64"))
