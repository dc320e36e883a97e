"""NUM: the ends of the range, infinities, NaN; PURE: nothing changed or shared; DET: the same bits again; SYNC: no waiting."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, TypeAlias

import numpy as np

from rnncore.model import RNN
from rnncore.nonlinearity import as_nonlinearity
from rnncore.testing.case import BATCH, LENGTHS, STEPS, WIDTH, Case
from rnncore.testing.check import check
from rnncore.testing.subject import Subject
from rnncore.testing.watch import Watched, overlaps, patched

SATURATED = (50.0, 1e4, 1e30)
THREADS = 8
Scan: TypeAlias = Callable[[Mapping[str, Any]], Any]
PAUSE = 1e-5  # seconds: long enough for another thread to be woken


@check(
    "RC-NUM-001",
    "|z| of 50, 1e4, 1e30 and infinity: tanh is exactly 1, the logistic 0 or 1, and no NaN",
    tolerance="states",
)
def saturation(s: Subject) -> None:
    for name in ("tanh", "sigmoid", "softsign", "hard_sigmoid"):
        f = as_nonlinearity(name)
        for size in (*SATURATED, np.inf):
            p = np.full((2, 1, 2), size) * np.asarray([1.0, -1.0])
            if name == "softsign" and np.isinf(size):
                continue  # inf / (1 + inf) is NaN by the formula itself
            with s.scope():
                h = s.engine().nonlinear(
                    s.give(p), s.give(np.zeros((1, 2))), s.give(np.zeros((2, 2))), nonlinearity=f, reverse=False
                )
            low = 0.0 if "sigmoid" in name else -1.0
            want = np.broadcast_to([1.0, low], (2, 1, 2)) if name != "softsign" else p / (1 + np.abs(p))
            s.compare(f"{name} at {size:g}", h, np.asarray(want), tolerance="states")


@check("RC-NUM-002", "gradients through saturated units are exactly 0 or tiny, never NaN")
def saturated_gradients(s: Subject) -> None:
    for name in ("tanh", "sigmoid"):
        for size in SATURATED:
            case = Case.make(s, name=name)
            case.params["bias_ih_l0"] = np.full(WIDTH, size)
            for what, value in case.results().items():
                got = s.host(value)
                s.expect(
                    np.isfinite(got).all(),
                    f"{what} of {name} at {size:g}: expected finite numbers, got {got.ravel()[:4]}",
                )
                if what == "dL/dx":
                    s.compare(f"{what} of {name} at {size:g}", got, np.zeros(got.shape), tolerance="states", floor=1.0)


@check("RC-NUM-003", "relu grows to infinity and then to NaN exactly where the reference does")
def overflow(s: Subject) -> None:
    top = float(s.xp.finfo(s.dtype).max)
    w = np.asarray([[8.0, 0.0, 0.0], [1.0, -1.0, 0.0], [0.0, 0.0, 0.5]])
    h0 = np.asarray([[top / 100, top / 200, 1.0]])
    p = np.zeros((STEPS, 1, 3))
    p[3, 0, 1] = 0.25
    f = as_nonlinearity("relu")
    with s.scope():
        got = s.engine().nonlinear(s.give(p), s.give(h0), s.give(w), nonlinearity=f, reverse=False)
    want, h = np.empty(p.shape), h0[0]
    kind = np.float32 if s.dtype_name == "float32" else np.float64
    for t in range(STEPS):  # every product by itself: 0 * inf is NaN as it is in any product of matrices
        h = np.maximum((p[t, 0] + (w.astype(kind) * h.astype(kind)).sum(axis=1)).astype(kind), 0)
        want[t, 0] = h
    s.compare("h", got, want, tolerance="gradients")


@check("RC-NUM-004", "NaN in one row of the batch stays in its row, from its step on", tolerance="exact")
def nan_stays_in_its_row(s: Subject) -> None:
    for name in ("tanh", "relu", "sigmoid"):
        case = Case.make(s, layers=2, name=name)
        clean = {k: s.host(v) for k, v in case.results().items()}
        case.x[3, 1, 0] = np.nan
        found = {k: s.host(v) for k, v in case.results().items()}
        for what in ("output", "dL/dx", "h_n"):
            for row in (0, 2):
                s.compare(f"{what} of row {row} ({name})", found[what][:, row], clean[what][:, row])
        s.compare(f"output before the NaN ({name})", found["output"][:3, 1], clean["output"][:3, 1])
        s.expect(np.isnan(found["output"][3:, 1]).all(), f"output after the NaN ({name}): expected NaN in every unit")


@check("RC-NUM-005", "NaN is never turned into a number: not by a function, not by a limit, not by a derivative")
def nan_stays_nan(s: Subject) -> None:
    for name, clip in (("relu", None), ("tanh", 0.5), ("relu", 0.5), ("sigmoid", None), ("hard_sigmoid", None)):
        case = Case.make(s, name=name, clip=clip)
        case.h0[0][0, 0] = np.nan
        found = case.results()
        got = s.host(found["output"])[:, 0]
        s.expect(
            np.isnan(got).all(), f"output ({name}, clip {clip}): expected NaN in every unit, got {got.ravel()[:4]}"
        )
        weight = s.host(found["dL/dweight_hh_l0"])
        s.expect(np.isnan(weight).any(), f"dL/dweight_hh ({name}, clip {clip}): expected NaN, got numbers")


@check("RC-NUM-006", "an infinite input saturates its own row and no other", tolerance="states")
def infinite_input(s: Subject) -> None:
    case = Case.make(s, bias=False)
    clean = s.host(case.model()(case.give(case.x))[0])
    case.x[2, 0, 1] = np.inf
    found = s.host(case.model()(case.give(case.x))[0])
    s.compare("the other rows", found[:, 1:], clean[:, 1:], tolerance="exact")
    s.compare("the steps before", found[:2, 0], clean[:2, 0], tolerance="exact")
    s.compare("the step itself", found[2, 0], np.sign(case.params["weight_ih_l0"][:, 1]))


@check("RC-NUM-007", "numbers of 1e-30 come through a linear network with their digits", tolerance="gradients")
def small_numbers(s: Subject) -> None:
    case = Case.make(s, name="identity", bias=False)
    case.h0 = [np.zeros(h.shape) for h in case.h0]
    case.x *= 2.0**-100
    s.compare("output", case.model()(case.give(case.x))[0], case.truth().output)


@check("RC-NUM-008", "float64 keeps all of its digits through the whole call", dtypes=("float64",), tolerance="states")
def no_detour_through_float32(s: Subject) -> None:
    case = Case.make(s, layers=2, bidirectional=True)
    case.x = case.x + 1e-12 * s.rng.standard_normal(case.x.shape)  # digits that float32 does not have
    case.params = {k: v + 1e-12 * s.rng.standard_normal(v.shape) for k, v in case.params.items()}
    case.check_gradients()


# --- purity -----------------------------------------------------------------------------------------------------------


@check("RC-PURE-001", "no call changes its inputs or the weights", tolerance="exact", once=True)
def nothing_is_changed(s: Subject) -> None:
    for lengths in (None, LENGTHS):
        case = Case.make(s, layers=2, bidirectional=True, lengths=lengths)
        model = case.model()
        given = {"x": case.give(case.x), "h0": case.give_state(case.h0)}
        given |= {"d_output": case.give(case.d_output), "d_h_n": case.give_state(case.d_h_n), **model.params}
        before = {k: s.host(v) for k, v in given.items()}
        model(given["x"], given["h0"], lengths)
        for options in ({}, {"checkpoint": True}, {"truncate": 2}):
            pullback = model.vjp(given["x"], given["h0"], lengths, **options)[2]
            pullback(given["d_output"], given["d_h_n"])
            pullback(given["d_output"], given["d_h_n"])
        model.jvp(given["x"], given["h0"], lengths, x_dot=given["x"], h0_dot=given["h0"], params_dot=dict(model.params))
        model.trace(given["x"], given["h0"], lengths)
        for name, value in given.items():
            s.compare(name, value, before[name])


@check("RC-PURE-002", "no result shares memory with an input, a weight or another result", needs=("addressable",))
def nothing_is_shared(s: Subject) -> None:
    for options in ({}, {"layers": 2, "bidirectional": True}, {"lengths": LENGTHS}, {"name": "identity"}):
        case = Case.make(s, **options)
        model = case.model()
        x, h0 = case.give(case.x), case.give_state(case.h0)
        d_output, d_h_n = case.give(case.d_output), case.give_state(case.d_h_n)
        output, h_n, pullback = model.vjp(x, h0, case.lengths)
        grads = pullback(d_output, d_h_n)
        made = {"output": output, "h_n": h_n, "dL/dx": grads.x, "dL/dh0": grads.h0}
        made |= {f"dL/d{k}": v for k, v in grads.params.items()} | {
            f"state {k}": v for k, v in model.state_dict().items()
        }
        given = {"x": x, "h0": h0, "d_output": d_output, "d_h_n": d_h_n, **model.params}
        names, arrays = list(made) + list(given), [*made.values(), *given.values()]
        for i in range(len(made)):
            for k in range(i + 1, len(arrays)):
                s.expect(not overlaps(s.backend, arrays[i], arrays[k]), f"{names[i]} and {names[k]} share memory")


@check("RC-PURE-003", "inputs that are views, transposed or strided, are read as they are", once=True)
def views_are_read(s: Subject) -> None:
    case = Case.make(s, layers=2, bidirectional=True)
    want = {k: s.host(v) for k, v in case.results().items()}
    xp, model = s.xp, case.model()
    with s.scope():
        x = xp.permute_dims(s.give(np.ascontiguousarray(case.x.transpose(2, 0, 1))), (1, 2, 0))
        h0 = s.give(np.repeat(np.concatenate(case.h0), 2, axis=0))[::2, ...]
        d_output = xp.permute_dims(s.give(np.ascontiguousarray(case.d_output.transpose(1, 0, 2))), (1, 0, 2))
    output, _, pullback = model.vjp(x, h0)
    grads = pullback(d_output, case.give_state(case.d_h_n))
    s.compare("output", output, want["output"], tolerance="states")
    s.compare("dL/dx", grads.x, want["dL/dx"], tolerance="gradients")
    for key in case.params:
        s.compare(f"dL/d{key}", grads.params[key], want[f"dL/d{key}"], tolerance="gradients")


@check("RC-PURE-004", "read-only inputs are enough", needs=("read_only",))
def read_only_inputs(s: Subject) -> None:
    case = Case.make(s, layers=2, bidirectional=True)
    want = {k: s.host(v) for k, v in case.results().items()}
    case.view = s.backend.read_only  # type: ignore[attr-defined]
    model = case.model()
    model.set_params({k: case.view(v) for k, v in model.params.items()})
    for name, value in case.results(model).items():
        s.compare(name, value, want[name], tolerance="exact")


# --- determinism ------------------------------------------------------------------------------------------------------


@check(
    "RC-DET-001",
    "the same call gives the same bits, and so does a new model with the same weights",
    tolerance="exact",
    once=True,
)
def same_bits_again(s: Subject) -> None:
    case = Case.make(s, layers=2, bidirectional=True, lengths=LENGTHS)
    model = case.model()
    want = {k: s.host(v) for k, v in case.results(model).items()}
    for again in (model, case.model()):
        for name, value in case.results(again).items():
            s.compare(name, value, want[name])


@check(
    "RC-DET-002", "eight threads that share one model get the numbers of one", tolerance="exact", dtypes=("float32",)
)
def threads_agree(s: Subject) -> None:
    case = Case.make(s, layers=2)
    model = case.model()
    want = {k: s.host(v) for k, v in case.results(model).items()}
    found: list[Any] = [None] * THREADS

    def work(k: int) -> None:
        try:
            found[k] = {name: s.host(v) for name, v in case.results(model).items()}
        except Exception as error:
            found[k] = error

    threads = [threading.Thread(target=work, args=(k,)) for k in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for k, results in enumerate(found):
        s.expect(isinstance(results, dict), f"thread {k}: {results!r}")
        for name, value in results.items():
            s.compare(f"{name} of thread {k}", value, want[name])


@check("RC-DET-003", "the same seed draws the same weights as on NumPy", tolerance="exact")
def same_weights(s: Subject) -> None:
    here = RNN(3, 4, 2, bidirectional=True, rng=5, backend=s.backend, device=s.device, dtype=s.dtype)
    there = RNN(3, 4, 2, bidirectional=True, rng=5, backend="numpy", dtype=s.dtype_name)
    for name, value in there.state_dict().items():
        s.compare(name, here.params[name], value.astype("f8"))


# --- no transfers, no waiting -----------------------------------------------------------------------------------------


@check("RC-SYNC-001", "a forward pass brings nothing to the host and waits for nothing", once=True)
def forward_stays_on_the_device(s: Subject) -> None:
    _count(s, lambda model, x, h0: model(x, h0))


@check("RC-SYNC-002", "neither do vjp and its pullback, jvp and trace", once=True)
def derivatives_stay_on_the_device(s: Subject) -> None:
    _count(s, lambda model, x, h0: model.vjp(x, h0)[2](model(x, h0)[0]))
    _count(s, lambda model, x, h0: model.jvp(x, h0, x_dot=x))
    _count(s, lambda model, x, h0: model.trace(x, h0))


@check("RC-SYNC-003", "with lengths, what crosses to the device does not grow with the number of steps", once=True)
def lengths_cross_once(s: Subject) -> None:
    crossed = []
    for steps in (STEPS, 2 * STEPS):
        case = Case.make(s, layers=2, bidirectional=True, steps=steps)
        with Watched(s.backend) as watched:
            model = _on(watched, s, case)
            model.vjp(case.give(case.x), case.give_state(case.h0), LENGTHS)[2](case.give(case.d_output))
            crossed.append(watched.given)
            s.expect(not watched.taken, f"brought to the host: {', '.join(watched.taken)}")
            s.expect(not watched.waits, f"waited for the device {watched.waits} times")
    s.expect(
        crossed[0] == crossed[1], f"arrays sent to the device: {crossed[0]} for {STEPS} steps, {crossed[1]} for twice"
    )


def _count(s: Subject, run: Callable[[RNN, Any, Any], Any]) -> None:
    case = Case.make(s, layers=2, bidirectional=True)
    x, h0 = case.give(case.x), case.give_state(case.h0)
    for kernel in ("auto", "reference"):
        with Watched(s.backend) as watched:
            model = _on(watched, s, case, kernel)
            watched.clear()
            run(model, x, h0)
        s.expect(not watched.taken, f"kernel={kernel!r}: brought to the host: {', '.join(watched.taken)}")
        s.expect(not watched.waits, f"kernel={kernel!r}: waited for the device {watched.waits} times")
        s.expect(not watched.given, f"kernel={kernel!r}: sent {watched.given} arrays to the device")


def _on(watched: Watched, s: Subject, case: Case, kernel: Any = "auto") -> RNN:
    model = s.rnn(case.spec, case.params, backend=watched, kernel=kernel)
    return model


# --- what got past the checks above ------------------------------------------------------------------------------------


@check(
    "RC-NUM-009",
    "products keep every digit of their inputs, or TF32's ten bits where `precision` says so",
    tolerance="gradients",
)
def products_keep_digits(s: Subject) -> None:
    def full(*shape: int) -> Any:  # unlike what `draw` gives, numbers with all the digits of the dtype
        return s.rng.standard_normal(shape).astype(s.dtype_name).astype("f8")

    first, w = full(BATCH, WIDTH), full(WIDTH, WIDTH)
    none, one = np.zeros((1, BATCH, WIDTH)), np.ones((1, BATCH, WIDTH))
    engine, f = s.engine(), as_nonlinearity("identity")
    with s.scope():
        product = s.xp.matmul(s.give(first), s.give(w))
        h = engine.nonlinear(s.give(none), s.give(first), s.give(w), nonlinearity=f, reverse=False)
        r = engine.linear(s.give(none), s.give(one), s.give(first), s.give(w), reverse=False)
    s.compare("matmul", product, first @ w)
    s.compare("h", h, (first @ w.T)[None])
    s.compare("s", r, (first @ w)[None])


@check(
    "RC-PURE-005",
    "a network that does nothing to its input still returns an array of its own",
    needs=("addressable",),
    tolerance="exact",
    dtypes=("float32",),
)
def nothing_is_handed_back(s: Subject) -> None:
    for steps in (1, STEPS):
        case = Case.make(s, name="identity", bias=False, inputs=WIDTH, steps=steps)
        case.params = {"weight_ih_l0": np.eye(WIDTH), "weight_hh_l0": np.zeros((WIDTH, WIDTH))}
        x, d_output = case.give(case.x), case.give(case.d_output)
        output, h_n, pullback = case.model().vjp(x)
        s.compare("output", output, case.x)
        made = {"output": output, "h_n": h_n, "dL/dx": pullback(d_output).x}
        for name, value in made.items():
            for other, given in (("x", x), ("d_output", d_output)):
                s.expect(not overlaps(s.backend, value, given), f"{name} and {other} share memory")


@check(
    "RC-PURE-006",
    "what a call returned, and what its pullback needs, is left alone by the next",
    tolerance="exact",
    dtypes=("float32",),
)
def the_next_call_leaves_results_alone(s: Subject) -> None:
    case = Case.make(s)
    model, x, other = case.model(), case.give(case.x), case.give(s.draw(*case.x.shape))
    d_output = case.give(case.d_output)
    want = s.host(model.vjp(x)[2](d_output).x)
    output, h_n, pullback = model.vjp(x)
    kept = {"output": output, "h_n": h_n, "dL/dx": pullback(d_output).x}
    before = {k: s.host(v) for k, v in kept.items()}
    model.vjp(other)[2](case.give(-case.d_output))
    for name, value in kept.items():
        s.compare(f"{name} after another call", value, before[name])
    s.compare("dL/dx of a pullback after another call", pullback(d_output).x, want)


@check("RC-NUM-010", "the linear scan overflows to infinity, and keeps NaN in its row from its step on")
def linear_overflow(s: Subject) -> None:
    top, engine = float(s.xp.finfo(s.dtype).max), s.engine()
    one, m = np.ones((STEPS, BATCH, 2)), np.asarray([[8.0, 0.0], [0.0, 0.5]])
    u, s0 = np.zeros(one.shape), np.full((BATCH, 2), top / 100)
    u[2, 1, 1] = np.nan
    with s.scope():
        got = engine.linear(s.give(u), s.give(one), s.give(s0), s.give(m), reverse=False)
    want, kind, state = np.empty(u.shape), np.dtype(s.dtype_name), s0
    for t in range(STEPS):  # every product by itself: 0 * inf is NaN as it is in any product of matrices
        state = (u[t] + (state.astype(kind)[:, :, None] * m.astype(kind)).sum(axis=1)).astype(kind)
        want[t] = state
    s.expect(
        np.isinf(want).any() and np.isfinite(want[:2]).all(), "the truth does not overflow: the check would see nothing"
    )
    s.compare("s", got, want, tolerance="gradients")


@check(
    "RC-DET-004", "a scan keeps nothing from call to call: again, and after another, the same bits", tolerance="exact"
)
def scans_keep_nothing(s: Subject) -> None:
    one, two = _arguments(s), _arguments(s)
    for name, scan in _scans(s).items():
        want = _run(s, scan, one)
        for turn, given in enumerate((two, one, one), start=2):  # an even and an odd number of calls later
            found = _run(s, scan, given)
            if given is one:
                s.compare(f"{name}, call {turn}", found, want)


@check(
    "RC-DET-005",
    "threads that run the backend's scans at once, each on numbers of its own, get their own results",
    needs=("scans",),
    tolerance="exact",
    dtypes=("float32",),
)
def scans_share_nothing(s: Subject) -> None:
    given = [_arguments(s) for _ in range(THREADS)]
    scans = _scans(s)
    want = [{name: _run(s, scan, g) for name, scan in scans.items()} for g in given]
    found: list[Any] = [None] * THREADS
    together = threading.Barrier(THREADS)

    def pause(frame: Any, event: str, argument: Any) -> Any:
        time.sleep(PAUSE)  # another thread runs: an exchange between any two lines, which else is a matter of luck
        return pause

    def work(k: int) -> None:
        together.wait()
        sys.settrace(pause)
        try:
            found[k] = {name: _run(s, scan, given[k]) for name, scan in scans.items()}
        except Exception as error:
            found[k] = error
        finally:
            sys.settrace(None)

    threads = [threading.Thread(target=work, args=(k,)) for k in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for k, results in enumerate(found):
        s.expect(isinstance(results, dict), f"thread {k}: {results!r}")
        for name, value in results.items():
            s.compare(f"{name} of thread {k}", value, want[k][name])


@check(
    "RC-SYNC-004",
    "the backend's scans do not wait, and neither fetch nor send, by the backend's own functions",
    needs=("scans", "open"),
)
def scans_stay_on_the_device(s: Subject) -> None:
    calls: list[str] = []
    with s.scope():
        arrays = {k: s.give(v) for k, v in _arguments(s).items()}
    with patched(s.backend, ("synchronize", "to_numpy", "asarray"), _noted(calls)), s.scope():
        for scan in _scans(s).values():
            scan(arrays)
    s.expect(not calls, f"scans of {STEPS} steps called {', '.join(calls)}")


def _noted(calls: list[str]) -> Callable[[str, Callable[..., Any]], Callable[..., Any]]:
    def wrap(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            calls.append(name)
            return function(*args, **kwargs)

        return call

    return wrap


def _arguments(s: Subject) -> dict[str, Any]:
    names = {n: s.draw(STEPS, BATCH, WIDTH) for n in ("p", "u", "d")}
    return names | {"h0": s.draw(BATCH, WIDTH), "w": s.weights(WIDTH)}


def _scans(s: Subject) -> dict[str, Scan]:
    """Both scans in both directions, by the name of what they give."""
    engine, f = s.engine(), as_nonlinearity("tanh")

    def nonlinear(a: Mapping[str, Any], reverse: bool) -> Any:
        return engine.nonlinear(a["p"], a["h0"], a["w"], nonlinearity=f, reverse=reverse)

    def linear(a: Mapping[str, Any], reverse: bool) -> Any:
        return engine.linear(a["u"], a["d"], a["h0"], a["w"], reverse=reverse)

    forwards = {"h": partial(nonlinear, reverse=False), "s": partial(linear, reverse=False)}
    return forwards | {"h in reverse": partial(nonlinear, reverse=True), "s in reverse": partial(linear, reverse=True)}


def _run(s: Subject, scan: Scan, given: Mapping[str, Any]) -> Any:
    """Host numbers from host numbers."""
    with s.scope():
        return s.host(scan({k: s.give(v) for k, v in given.items()}))


@check("RC-SYNC-005", "a call moves no array to another device and back", needs=("watchable",), dtypes=("float32",))
def nothing_is_moved(s: Subject) -> None:
    found = _asked(s, "to_device", "cpu", "cuda", "get")
    s.expect(not found, f"asked of an array: {', '.join(found)}")


@check(
    "RC-NUM-011",
    "products are asked of the namespace, which knows their precision, never of the arrays by an operator",
    needs=("watchable",),
    dtypes=("float32",),
)
def products_have_a_precision(s: Subject) -> None:
    found = _asked(s, "__matmul__", "__rmatmul__", "__imatmul__")
    s.expect(not found, f"a product by an operator: {', '.join(found)}")


def _asked(s: Subject, *methods: str) -> list[str]:
    """Which of these methods of the arrays' class all kinds of calls use, on the reference and on the backend's scans."""
    case, asked = Case.make(s, layers=2, bidirectional=True, lengths=LENGTHS), list[str]()
    x, h0 = case.give(case.x), case.give_state(case.h0)
    d_output, d_h_n = case.give(case.d_output), case.give_state(case.d_h_n)
    models = [case.model(kernel="reference"), case.model(kernel="auto")]
    with patched(type(x), methods, _noted(asked)):
        for model in models:
            model.vjp(x, h0, LENGTHS)[2](d_output, d_h_n)
            model.jvp(x, h0, LENGTHS, x_dot=x, h0_dot=h0, params_dot=dict(model.params))
            model.trace(x, h0, LENGTHS)
            model(x, h0)
    return asked
