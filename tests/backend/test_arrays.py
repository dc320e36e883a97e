"""Dtypes, devices and lengths by name, and checks of arrays."""

import tempfile
from collections.abc import Mapping

import numpy as np
import pytest
import torch

import rnncore
from rnncore.backend import arrays
from rnncore.errors import ArgumentTypeError, ArgumentValueError, DeviceError, DTypeError, NonFiniteError, ShapeError


@pytest.mark.parametrize("name", ["float16", "float32", "float64"])
def test_a_dtype_has_one_name_in_every_library(name):
    for dtype in (name, np.dtype(name), getattr(np, name), getattr(torch, name)):
        assert arrays.dtype_name(dtype) == name


@pytest.mark.parametrize("backend", ["numpy", "torch", "strict"])
def test_a_dtype_is_found_by_name_and_the_default_is_the_librarys(backend):
    plugin = rnncore.get_backend(backend)
    place = {"xp": plugin.namespace(), "device": plugin.devices()[0]}
    assert arrays.find_dtype("float32", **place) == place["xp"].float32
    assert arrays.find_dtype(None, **place) in (place["xp"].float32, place["xp"].float64)
    with pytest.raises(DTypeError, match=r"dtype: expected one of .*float32, float64.*got 'int8'"):
        arrays.find_dtype("int8", **place)


def test_a_device_is_found_by_itself_or_by_its_name():
    plugin = rnncore.get_backend("strict")
    for device in plugin.devices():
        assert arrays.find_device(device, backend=plugin) == device
        assert arrays.find_device(arrays.device_name(plugin, device), backend=plugin) == device
    assert arrays.find_device(None, backend=plugin) == plugin.devices()[0]
    with pytest.raises(DeviceError, match=r"device: expected one of .* of backend 'strict', got 'cuda'"):
        arrays.find_device("cuda", backend=plugin)


@pytest.mark.parametrize("lengths", [[2, 0], (2, 0), np.asarray([2, 0], "u1"), torch.tensor([2, 0])])
def test_lengths_are_ints_on_the_host(lengths):
    found = arrays.host_lengths(lengths, batch=2, steps=2)
    assert found == (2, 0) and all(type(n) is int for n in found)


@pytest.mark.parametrize(
    ("lengths", "error", "words"),
    [
        ([3, 0], ArgumentValueError, r"lengths\[0\]: expected an int in \[0, 2\], got 3"),
        ([0, -1], ArgumentValueError, r"lengths\[1\]: expected an int in \[0, 2\], got -1"),
        ([0, True], ArgumentTypeError, r"lengths\[1\]: expected an int"),
        ([1], ShapeError, "expected 2 entries, one per sequence, got 1"),
        (np.ones((2, 1), int), ShapeError, "expected one axis"),
        (np.ones(2), ArgumentTypeError, "expected integers, got dtype float64"),
        ({0: 1}, ArgumentTypeError, "expected a sequence of int"),
    ],
)
def test_bad_lengths_are_named(lengths, error, words):
    with pytest.raises(error, match=words):
        arrays.host_lengths(lengths, batch=2, steps=2)


def test_the_first_number_that_is_not_finite_is_named():
    plugin = rnncore.get_backend("numpy")
    x = np.ones((2, 3))
    arrays.check_finite("x", x, xp=plugin.namespace(), backend=plugin)
    x[1, 2] = np.inf
    with pytest.raises(NonFiniteError, match=r"x\[1, 2\]: expected a finite number, got inf"):
        arrays.check_finite("x", x, xp=plugin.namespace(), backend=plugin)


# --- what a user gives asarray ----------------------------------------------------------------------------------------

BACKENDS = ("numpy", "numba", "torch", "jax", "strict", "mlx")


@pytest.mark.parametrize("backend", BACKENDS)
def test_asarray_takes_every_name_that_is_printed(backend):
    plugin = rnncore.get_backend(backend)
    xp = plugin.namespace()
    for device in plugin.devices():
        printed = {arrays.device_name(plugin, device), str(device), repr(device), device}
        for name in arrays.floating_dtypes(xp=xp, device=device):
            dtype = getattr(xp, name)
            for given in {name, str(dtype), repr(dtype), str(plugin.asarray([1.0], dtype=dtype, device=device).dtype)}:
                for place in printed:
                    made = plugin.asarray([1.0, 2.0], dtype=given, device=place)
                    assert plugin.is_native(made) and arrays.dtype_name(made.dtype) == name
                    where = arrays.device_of(made)
                    assert where is None or str(where) in (str(device), repr(device), "cpu")
    for given in (np.float32, np.dtype("float32"), torch.float32, "f4"):
        assert arrays.dtype_name(plugin.asarray([1.0], dtype=given, device=None).dtype) == "float32"
    assert arrays.dtype_name(plugin.asarray([1, 0], dtype="int32").dtype) == "int32"
    rnncore.RNN(2, 3, backend=backend, dtype=str(xp.float32), device=repr(plugin.devices()[0]))


@pytest.mark.parametrize("backend", BACKENDS)
def test_asarray_takes_the_arrays_of_every_library(backend):
    plugin = rnncore.get_backend(backend)
    numbers = np.asarray([[1.5, -2.0], [0.0, 3.0]], "f4")
    learnt = torch.tensor(numbers, requires_grad=True)
    held = np.lib.stride_tricks.as_strided(numbers, strides=numbers.strides)
    given = [rnncore.get_backend(other).asarray(numbers) for other in BACKENDS]
    given += [numbers.tolist(), learnt, learnt * 1, numbers.view(np.recarray), numbers.view(np.matrix), held]
    for x in given:
        made = plugin.asarray(x, dtype="float32")
        np.testing.assert_array_equal(plugin.to_numpy(made), numbers)
        assert plugin.is_native(made) and not getattr(made, "requires_grad", False)
    made = plugin.to_numpy(plugin.asarray(numbers))
    numbers[...] = 7.0
    assert made[0, 0] == 1.5


class Untellable:
    """What numbers cannot be made of."""

    def __array__(self, dtype=None, copy=None):
        raise RuntimeError("it has none")


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("x", "options", "error", "words"),
    [
        (
            [1.0],
            {"dtype": "flaot32"},
            DTypeError,
            r"dtype: expected one of .*float32.*'flaot32'; did you mean 'float32'",
        ),
        ([1.0], {"dtype": "matmul"}, DTypeError, "dtype: expected one of"),
        ([1.0], {"dtype": complex}, DTypeError, "dtype: expected one of"),
        ([1.0], {"dtype": 3}, DTypeError, "dtype: expected one of"),
        ([1.0], {"device": "tpu:7"}, DeviceError, "device: expected one of"),
        ([1.0], {"device": 7}, DeviceError, "device: expected one of"),
        (["a"], {}, DTypeError, "x: expected real numbers, got dtype <U1"),
        ([1j], {}, DTypeError, "x: expected real numbers, got dtype complex128"),
        ([None], {}, DTypeError, "x: expected real numbers, got dtype object"),
        (None, {}, DTypeError, "x: expected real numbers, got dtype object"),
        ([[1.0], [1.0, 2.0]], {}, ArgumentTypeError, "x: expected numbers, got list: .*inhomogeneous"),
        (Untellable(), {}, ArgumentTypeError, "x: expected numbers, got .*Untellable: it has none"),
        (np.ma.ones(2), {}, ArgumentTypeError, r"x: expected numbers, got .*MaskedArray; .*x\.filled"),
        (torch.ones(2).to_sparse(), {}, ArgumentTypeError, "x: expected numbers, got torch.Tensor: "),
    ],
)
def test_asarray_names_what_it_cannot_take(backend, x, options, error, words):
    with pytest.raises(error, match=words):
        rnncore.get_backend(backend).asarray(x, **options)


# --- NumPy's other classes --------------------------------------------------------------------------------------------


class Sub(np.ndarray):
    """A user's own class of arrays."""


def mapped(a):
    """The same as a memory-mapped array that cannot be written to."""
    with tempfile.TemporaryFile() as file:
        file.write(np.ascontiguousarray(a).tobytes())
        file.flush()
        return np.memmap(file, dtype=a.dtype, mode="r", shape=a.shape)


KINDS = {"recarray": lambda a: a.view(np.recarray), "user's": lambda a: a.view(Sub), "memmap": mapped}


@pytest.mark.parametrize("backend", ["numpy", "numba"])
@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_numpys_other_classes_are_taken_as_the_plain_arrays_that_they_are(backend, kind):
    """The numbers of every call are those for plain arrays, to the bit, and of the plain class; also when called again."""
    rng = np.random.default_rng(0)
    draw = lambda *shape: rng.standard_normal(shape)  # noqa: E731
    x, h0, d, w = draw(5, 2, 3), draw(2, 2, 4), draw(5, 2, 4), draw(4, 4)
    lengths = np.asarray([5, 2])

    def calls(k):
        rnn = rnncore.RNN(3, 4, 2, rng=0, backend=backend)
        cell = rnncore.RNNCell(3, 4, rng=0, backend=backend)
        params = {n: k(p) for n, p in rnn.state_dict().items()}
        yield rnn(k(x))
        yield rnn(x, k(h0))
        yield rnn(k(x), k(h0), lengths=k(lengths))
        output, h_n, pullback = rnn.vjp(k(x), k(h0))
        grads = pullback(k(d), k(h0))
        yield output, h_n, grads.x, grads.h0, grads.params
        output, h_n, dots = rnn.jvp(k(x), k(h0), x_dot=k(x), h0_dot=k(h0), params_dot={"weight_hh_l0": k(w)})
        yield output, h_n, dots.output, dots.h_n
        trace = rnn.trace(k(x), k(h0))
        yield *trace.h, *trace.z, trace.output, trace.h_n
        rnn.set_params(params)
        yield rnn.params, rnn.state_dict(), rnn(x)
        yield rnncore.functional.rnn(k(x), params)
        yield rnncore.functional.rnn_cell(*map(k, (x[0], h0[0], params["weight_ih_l0"], params["weight_hh_l0"])))
        state, pullback = cell.vjp(k(x[0]), k(h0[0]))
        yield cell(k(x[0])), cell(x[0], k(h0[0])), state, pullback(k(h0[0]))
        yield cell.jvp(k(x[0]), k(h0[0]), x_dot=k(x[0]), h_dot=k(h0[0]))
        stepped = rnncore.optim.Adam(0.1).step(params, params)
        yield stepped, rnncore.optim.SGD(0.1, momentum=0.5).step(params, stepped)
        yield rnncore.optim.clip_grad_norm(params, 0.5)[0]
        seen = rnncore.diagnostics.record(rnn, k(x), k(h0))
        yield seen.x, *(h for row in seen.h0 for h in row), *(lane.h for lane in seen.lanes)

    def flat(found):
        if isinstance(found, Mapping):
            found = list(found.values())
        return [a for one in found for a in flat(one)] if isinstance(found, (tuple, list)) else [found]

    for _ in range(2):  # the second time by what was remembered
        for got, want in zip(calls(kind), calls(np.array), strict=True):
            for a, b in zip(flat(got), flat(want), strict=True):
                assert type(a) is np.ndarray
                np.testing.assert_array_equal(a, b)


def test_a_call_that_takes_the_short_way_after_a_subclass_takes_it_for_plain_arrays_only():
    rnn, x = rnncore.RNN(3, 4, rng=0), np.ones((5, 2, 3))
    for given in (x.view(Sub), x, x.view(Sub), x):
        assert type(rnn(given)[0]) is np.ndarray
    cell = rnncore.RNNCell(3, 4, rng=0)
    for given in (x[0].view(Sub), x[0], x[0].view(Sub)):
        assert type(cell(given)) is np.ndarray


@pytest.mark.parametrize("backend", ["numpy", "numba"])
@pytest.mark.parametrize("argument", ["x", "h0", "lengths", "set_params", "d_output", "x_dot", "params_dot"])
def test_masked_numbers_are_never_read(backend, argument):
    rnn, x, h0 = rnncore.RNN(3, 3, rng=0, backend=backend), np.ones((3, 1, 3)), np.ones((1, 1, 3))
    masked = {
        n: np.ma.masked_array(a, a > 0) for n, a in {"x": x, "h0": h0, "w": x[:, 0], "n": np.asarray([2])}.items()
    }
    act = {
        "x": lambda: rnn(masked["x"]),
        "h0": lambda: rnn(x, masked["h0"]),
        "lengths": lambda: rnn(x, lengths=masked["n"]),
        "set_params": lambda: rnn.set_params({"weight_hh_l0": masked["w"]}),
        "d_output": lambda: rnn.vjp(x)[2](masked["x"]),
        "x_dot": lambda: rnn.jvp(x, x_dot=masked["x"]),
        "params_dot": lambda: rnn.jvp(x, params_dot={"weight_hh_l0": masked["w"]}),
    }[argument]
    advice = r"lengths\.filled\(0\)$" if argument == "lengths" else r"x\.filled\(0\.0\), and end rows early"
    with pytest.raises(ArgumentTypeError, match=f"MaskedArray; its masked entries have no numbers: .*{advice}"):
        act()
