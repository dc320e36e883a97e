"""CON: the names of the contract. TYPE: dtypes and devices."""

from __future__ import annotations

import sys

import numpy as np

from rnncore.backend.abilities import SCAN_FORMS, abilities_of
from rnncore.backend.arrays import FLOATS, device_name, device_of, find_device, floating_dtypes, index_dtype
from rnncore.backend.contract import READABLE_VERSIONS, Backend
from rnncore.errors import ArgumentTypeError, DeviceError, DTypeError, KernelUnsupportedError
from rnncore.model.rnn import RNN
from rnncore.testing.check import FLOAT32, check
from rnncore.testing.tools.case import INPUT, WIDTH, Case
from rnncore.testing.tools.rules import BOTH
from rnncore.testing.tools.subject import Subject, precision_of

ALL = FLOATS
# Functions that the core, the optimisers and the nonlinearities call; a test compares this list with the source.
_USED = (
    "abs all arange asarray astype broadcast_to clip concat empty exp expand_dims expm1 finfo full_like isdtype "
    "isfinite log log1p logical_not logical_or matmul matrix_transpose max moveaxis ones_like permute_dims reshape sqrt "
    "stack sum take tanh where zeros zeros_like"
)
FUNCTIONS_USED = tuple(_USED.split())


@check("RC-CON-001", "the backend has every name of the contract, and its scans object has both scans", dtypes=FLOAT32)
def has_the_names(s: Subject) -> None:
    wanted = sorted(n for n in dir(Backend) if not n.startswith("_"))
    missing = [n for n in wanted if not hasattr(s.backend, n)]
    s.expect(not missing, f"the backend lacks {', '.join(missing)}")
    scans = s.backend.scans()
    # Not isinstance: from Python 3.12 on, a Protocol ignores what an object provides by __getattr__.
    complete = scans is None or all(callable(getattr(scans, n, None)) for n in ("unsupported", "nonlinear", "linear"))
    s.expect(complete, f"scans(): expected unsupported, nonlinear, linear, got {scans!r}")
    for name in ("name", "native_package"):
        value = getattr(s.backend, name)
        s.expect(isinstance(value, str) and value, f"{name}: expected a string, got {value!r}")


@check("RC-CON-002", "the contract version and the forms of scans are known to this library", dtypes=FLOAT32)
def speaks_this_contract(s: Subject) -> None:
    version = getattr(s.backend, "contract_version", 1)
    s.expect(version in READABLE_VERSIONS, f"contract_version: expected one of {READABLE_VERSIONS}, got {version!r}")
    unknown = set(abilities_of(s.backend).scans) - set(SCAN_FORMS)
    s.expect(not unknown, f"scan_forms: expected names among {SCAN_FORMS}, got {sorted(unknown)}")


@check("RC-CON-003", "device names are distinct, and each device is found by its name", dtypes=FLOAT32)
def devices_are_found_by_name(s: Subject) -> None:
    devices = list(s.backend.devices())
    names = [device_name(s.backend, d) for d in devices]
    s.expect(len(set(names)) == len(names), f"devices(): expected names that differ, got {', '.join(names)}")
    for device, name in zip(devices, names, strict=True):
        found = find_device(name, backend=s.backend)
        s.expect(found == device, f"device {name!r}: found {device_name(s.backend, found)!r}")
    s.raises(DeviceError, "an unknown device", lambda: find_device("no such device", backend=s.backend))


@check("RC-CON-004", "numbers return from the device bit for bit, including signed zero, infinity and NaN", dtypes=ALL)
def numbers_come_back(s: Subject) -> None:
    kind = s.xp.finfo(s.dtype)
    numbers = np.asarray([0.0, -0.0, 1.5, -2.25, np.inf, -np.inf, np.nan, float(kind.max), float(kind.smallest_normal)])
    back = s.host(s.give(numbers))
    s.compare("to_numpy(asarray(x))", back, numbers, tolerance="exact")
    s.expect((np.signbit(back) == np.signbit(numbers))[:-3].all(), "to_numpy(asarray(x)): the sign of a zero is lost")


@check("RC-CON-005", "asarray copies: the host array may change afterwards")
def asarray_copies(s: Subject) -> None:
    numbers = s.draw(3, 4)
    for dtype in ("f4", "f8"):
        host = numbers.astype(dtype)
        given = s.backend.asarray(host, dtype=s.dtype, device=s.device)
        host[...] = 7.0
        s.compare(f"asarray of {host.dtype}", given, numbers, tolerance="exact")


@check("RC-CON-006", "asarray accepts strided, reversed, read-only, empty and 0-d host arrays")
def asarray_takes_any_layout(s: Subject) -> None:
    numbers = s.draw(4, 6)
    read_only = numbers.copy()
    read_only.flags.writeable = False
    layouts = {
        "transposed": numbers.T,
        "strided": numbers[::2, 1::2],
        "reversed": numbers[::-1, ::-1],
        "reversed one-column": s.draw(4, 1)[:, ::-1],  # contiguous to NumPy, and yet with a negative stride
        "Fortran-ordered": np.asfortranarray(numbers),
        "broadcast": np.broadcast_to(numbers[:1], (3, 6)),
        "read-only": read_only,
        "empty": numbers[:0],
        "0-d": np.asarray(1.5),
    }
    for name, host in layouts.items():
        s.compare(f"asarray of a {name} array", s.give(host), host, tolerance="exact")


@check("RC-CON-007", "is_native is true for the backend's arrays and false for everything else", dtypes=FLOAT32)
def knows_its_own_arrays(s: Subject) -> None:
    s.expect(s.backend.is_native(s.give([1.0])), "is_native: expected True for an array of asarray's, got False")
    others: list[object] = [None, 1.0, [1.0], (1.0,), "x", object(), np.float32(1.0)]
    if not isinstance(s.give([1.0]), np.ndarray):  # else NumPy's arrays are its own
        others.append(np.ones(1))
    for other in others:
        s.expect(not s.backend.is_native(other), f"is_native: expected False for {other!r}, got True")


@check("RC-CON-008", "asarray and the namespace's creation functions obey device and dtype", dtypes=ALL)
def creation_obeys(s: Subject) -> None:
    made = {"asarray": s.give([1.0, 2.0])}
    with s.scope():
        for name in ("zeros", "empty"):
            made[name] = getattr(s.xp, name)((2,), dtype=s.dtype, device=s.device)
        for name in ("zeros_like", "ones_like"):
            made[name] = getattr(s.xp, name)(made["asarray"])
        made["full_like"] = s.xp.full_like(made["asarray"], 2.0)
    for name, x in made.items():
        _is_like(s, name, x)


@check("RC-CON-009", "index and boolean arrays are transferred too", dtypes=FLOAT32)
def other_kinds_cross(s: Subject) -> None:
    indices = s.give([2, 0, 1], dtype=index_dtype(xp=s.xp, device=s.device))
    truth = s.give([True, False, True], dtype=s.xp.bool)
    with s.scope():
        taken = s.xp.take(s.give([1.0, 2.0, 3.0]), indices, axis=0)
        chosen = s.xp.where(truth, taken, s.xp.zeros_like(taken))
    s.compare("take", taken, np.asarray([3.0, 1.0, 2.0]), tolerance="exact")
    s.compare("where", chosen, np.asarray([3.0, 0.0, 2.0]), tolerance="exact")


@check("RC-CON-010", "the namespace has every function that the core calls", dtypes=FLOAT32)
def namespace_is_complete(s: Subject) -> None:
    missing = [n for n in (*FUNCTIONS_USED, "bool", "float32", "__array_namespace_info__") if not hasattr(s.xp, n)]
    s.expect(not missing, f"the namespace lacks {', '.join(missing)}")


@check("RC-CON-011", "synchronize waits for the device and returns None", dtypes=FLOAT32)
def synchronizes(s: Subject) -> None:
    with s.scope():
        s.xp.matmul(s.give(np.ones((3, 3))), s.give(np.ones((3, 3))))
    answer: object = s.backend.synchronize(s.device)  # type: ignore[func-returns-value]
    s.expect(answer is None, f"synchronize: expected None, got {answer!r}")


@check("RC-CON-012", "precision, if given, is 'full' or 'tf32'", dtypes=FLOAT32)
def precision_is_a_name(s: Subject) -> None:
    found = precision_of(s.backend, s.device)
    s.expect(found in ("full", "tf32"), f"precision: expected 'full' or 'tf32', got {found!r}")


@check("RC-CON-013", "read_only returns a view with the same numbers that cannot be written to", needs=("read_only",))
def read_only_refuses(s: Subject) -> None:
    x = s.give([1.0, 2.0])
    view = s.backend.read_only(x)  # type: ignore[attr-defined]
    s.compare("read_only(x)", view, np.asarray([1.0, 2.0]), tolerance="exact")

    def write() -> None:
        view[0] = 5.0

    s.raises(Exception, "writing to a read-only view", write)
    s.compare("x after the attempt", x, np.asarray([1.0, 2.0]), tolerance="exact")


@check("RC-CON-014", "writable arrays support assignment and in-place addition", needs=("writable",))
def writable_is_true(s: Subject) -> None:
    with s.scope():
        x = s.xp.zeros((3, 2), dtype=s.dtype, device=s.device)
        x[1:, ...] = s.give([[1.0, 2.0], [3.0, 4.0]])
        x += s.give([0.5, 0.25])
    s.compare("x", x, np.asarray([[0.5, 0.25], [1.5, 2.25], [3.5, 4.25]]), tolerance="exact")


@check("RC-CON-015", "adding a bias reaches every step and every row", tolerance="states")
def bias_is_added(s: Subject) -> None:
    case = Case.make(s, name="identity")
    case.params |= {k: np.zeros_like(v) for k, v in case.params.items() if k.startswith("weight")}
    output, _ = case.model()(case.give(case.x))
    bias = case.params["bias_ih_l0"] + case.params["bias_hh_l0"]
    s.compare("output", output, np.broadcast_to(bias, case.d_output.shape))


# --- dtypes and devices -----------------------------------------------------------------------------------------------


@check("RC-TYPE-001", "results of calls, pullbacks, tangents and traces have the model's dtype and device", dtypes=BOTH)
def results_keep_dtype_and_device(s: Subject) -> None:
    for lengths in (None, (4, 0, 6)):
        case = Case.make(s, layers=2, bidirectional=True, lengths=lengths)
        model, (x, h0) = case.model(), case.inputs()
        found = case.results(model)
        found["output of a call"], found["h_n of a call"] = model(x, h0, lengths)
        *_, tangents = model.jvp(x, h0, lengths, x_dot=x)
        found |= {"tangent of output": tangents.output, "tangent of h_n": tangents.h_n}
        trace = model.trace(x, h0, lengths)
        found |= {"trace.h": trace.h[1], "trace.z": trace.z[1], "output of zero": model(x)[0]}
        found |= {f"state_dict {k}": v for k, v in model.state_dict().items()}
        for name, value in found.items():
            _is_like(s, name, value)


@check("RC-TYPE-002", "an input of another dtype is an error with both dtypes", dtypes=FLOAT32)
def other_dtypes_are_refused(s: Subject) -> None:
    case = Case.make(s)
    model = case.model()
    others = {n: d for n, d in floating_dtypes(xp=s.xp, device=s.device).items() if n != s.dtype_name}
    others["an integer"] = index_dtype(xp=s.xp, device=s.device)
    for name, dtype in others.items():
        x = s.give(np.ones(case.x.shape), dtype=dtype)
        error = s.raises(DTypeError, f"an input of {name}", lambda x=x: model(x))  # type: ignore[misc]
        s.expect(s.dtype_name in str(error), f"the error names no {s.dtype_name}: {error}")


@check("RC-TYPE-003", "a dtype that the device lacks is an error", needs=("lacks_a_dtype",), dtypes=FLOAT32)
def missing_dtypes_are_refused(s: Subject) -> None:
    have = floating_dtypes(xp=s.xp, device=s.device)
    for name in [n for n in FLOATS if n not in have]:
        s.raises(
            DTypeError,
            f"dtype={name!r}",
            lambda n=name: RNN(INPUT, WIDTH, backend=s.backend, device=s.device, dtype=n),  # type: ignore[misc]
        )


@check(
    "RC-TYPE-004", "an input on another device is an error with both devices", needs=("two_devices",), dtypes=FLOAT32
)
def other_devices_are_refused(s: Subject) -> None:
    case = Case.make(s)
    other = next(d for d in s.backend.devices() if d != s.device)
    x = s.backend.asarray(case.x, dtype=s.dtype, device=other)
    error = s.raises(DeviceError, "an input on another device", lambda: case.model()(x))
    for device in (s.device, other):
        s.expect(device_name(s.backend, device) in str(error), f"the error does not name {device}: {error}")


@check("RC-TYPE-005", "a model moves between devices with its weights bit for bit", needs=("two_devices",))
def models_move(s: Subject) -> None:
    case = Case.make(s)
    model = case.model()
    for device in s.backend.devices():
        if s.dtype_name not in floating_dtypes(xp=s.xp, device=device):
            continue
        moved = model.to(device=device)
        s.expect(moved.device == device, f"to(device={device}): the model is on {moved.device}")
        for name, value in moved.state_dict().items():
            s.expect(device_of(value) == device, f"{name}: expected device {device}, got {device_of(value)}")
            s.compare(name, value, case.params[name], tolerance="exact")


@check("RC-TYPE-006", "an array of another library is an error and is not converted")
def foreign_arrays_are_refused(s: Subject) -> None:
    case = Case.make(s)

    class Foreign:
        shape, ndim, dtype, device = case.x.shape, 3, s.dtype, s.device

    others = [Foreign(), case.x.tolist(), None]
    if not isinstance(case.give(case.x), np.ndarray):
        others.append(case.x.astype(s.dtype_name))
    for other in others:
        s.raises(ArgumentTypeError, f"an input of type {type(other).__name__}", lambda x=other: case.model()(x))  # type: ignore[misc]


# The lower decorator registers first.
@check("RC-TYPE-008", "bfloat16: results within a few roundings", needs=("bfloat16",), dtypes=("bfloat16",))
@check("RC-TYPE-007", "float16: results within a few roundings", needs=("float16",), dtypes=("float16",))
def half_precision_works(s: Subject) -> None:
    case = Case.make(s, bidirectional=True)
    want = case.truth()
    output, _, pullback = case.model().vjp(*case.inputs())
    s.compare("output", output, want.output, tolerance="half")
    _is_like(s, "output", output)
    grads = pullback(*case.cotangents())
    s.compare("dL/dx", grads.x, want.x, tolerance="half", floor=0.0)
    _is_like(s, "dL/dx", grads.x)
    for key, value in want.params.items():
        s.compare(f"dL/d{key}", grads.params[key], value, tolerance="half", floor=0.0)


@check("RC-TYPE-009", "without scans of the backend's own, kernel='require' is an error", needs=("no_scans",))
def undeclared_scans_are_refused(s: Subject) -> None:
    case = Case.make(s)
    model = case.model(kernel="require")
    s.raises(KernelUnsupportedError, "kernel='require' without scans", lambda: model(case.give(case.x)))


def _is_like(s: Subject, name: str, x: object) -> None:
    s.expect(s.backend.is_native(x), f"{name}: expected an array of the backend, got {type(x).__name__}")
    found = getattr(x, "dtype", None)
    s.expect(found == s.dtype, f"{name}: expected dtype {s.dtype_name}, got {found}")
    where = device_of(x)
    s.expect(where is None or where == s.device, f"{name}: expected device {s.device}, got {where}")


# --- more of the contract ---------------------------------------------------------------------------------------------


@check("RC-CON-016", "to_numpy reads transposed, strided, empty and 0-d views, and boolean and index arrays")
def to_numpy_reads_views(s: Subject) -> None:
    numbers = s.draw(4, 6)
    given, index = s.give(numbers), index_dtype(xp=s.xp, device=s.device)
    with s.scope():
        views = {
            "transposed": (s.xp.permute_dims(given, (1, 0)), numbers.T),
            "strided": (given[::2, 1::2], numbers[::2, 1::2]),
            "sliced": (given[1:, 2:4], numbers[1:, 2:4]),
            "empty": (given[:0, ...], numbers[:0]),
            "0-d": (given[1, 2], numbers[1, 2]),
            "truth": (given > 0, numbers > 0),
            "index": (s.give([2, 0, 1], dtype=index), np.asarray([2, 0, 1])),
        }
    for name, (view, want) in views.items():
        s.compare(f"to_numpy of a {name} array", s.host(view), np.asarray(want), tolerance="exact")


@check("RC-CON-017", "native_package is a module that namespace() has imported", dtypes=FLOAT32)
def native_package_is_imported(s: Subject) -> None:
    s.backend.namespace()
    name = s.backend.native_package
    s.expect(name in sys.modules, f"native_package: expected a module that is imported now, got {name!r}")
