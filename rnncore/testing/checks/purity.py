"""PURE: calls change and share nothing. DET: repeated calls give the same bits, from any thread. SYNC: a running network
transfers nothing and does not wait for the device.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from rnncore.model.rnn import RNN
from rnncore.testing.check import FLOAT32, check
from rnncore.testing.tools.case import LENGTHS, STEPS, WIDTH, Case, methods_asked
from rnncore.testing.tools.scan_case import both_scans, run_scan, scan_arguments
from rnncore.testing.tools.subject import Subject
from rnncore.testing.tools.watch import Watched, noted, overlaps, patched

THREADS = 8
PAUSE = 1e-5  # seconds, enough for another thread to wake up


@check("RC-PURE-001", "no call changes its inputs or the weights", tolerance="exact", once=True)
def nothing_is_changed(s: Subject) -> None:
    for lengths in (None, LENGTHS):
        case = Case.make(s, layers=2, bidirectional=True, lengths=lengths)
        model = case.model()
        given = {"x": case.give(case.x), "h0": case.give_state(case.h0)}
        given |= {"d_output": case.give(case.d_output), "d_h_n": case.give_state(case.d_h_n), **model.params}
        before = {k: s.host(v) for k, v in given.items()}
        model(given["x"], given["h0"], lengths)
        for checkpoint, truncate in ((False, None), (2, None), (False, 2)):
            pullback = model.vjp(given["x"], given["h0"], lengths, checkpoint=checkpoint, truncate=truncate)[2]
            pullback(given["d_output"], given["d_h_n"])
            pullback(given["d_output"], given["d_h_n"])
        model.jvp(given["x"], given["h0"], lengths, x_dot=given["x"], h0_dot=given["h0"], params_dot=dict(model.params))
        model.trace(given["x"], given["h0"], lengths)
        s.compare_all(given, before, tolerance="exact")


@check("RC-PURE-002", "no result shares memory with an input, a weight or another result", needs=("addressable",))
def nothing_is_shared(s: Subject) -> None:
    for options in ({}, {"layers": 2, "bidirectional": True}, {"lengths": LENGTHS}, {"name": "identity"}):
        case = Case.make(s, **options)
        model = case.model()
        (x, h0), (d_output, d_h_n) = case.inputs(), case.cotangents()
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


@check("RC-PURE-003", "transposed and strided inputs are read correctly", once=True)
def views_are_read(s: Subject) -> None:
    case = Case.make(s, layers=2, bidirectional=True)
    want = case.numbers()
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


@check("RC-PURE-004", "read-only inputs are accepted", needs=("read_only",))
def read_only_inputs(s: Subject) -> None:
    case = Case.make(s, layers=2, bidirectional=True)
    want = case.numbers()
    case.view = s.backend.read_only  # type: ignore[attr-defined]
    model = case.model()
    model.set_params({k: case.view(v) for k, v in model.params.items()})
    s.compare_all(case.results(model), want, tolerance="exact")


@check(
    "RC-PURE-005",
    "a network that passes its input through returns a new array",
    needs=("addressable",),
    tolerance="exact",
    dtypes=FLOAT32,
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


@check("RC-PURE-006", "a call does not change the results of earlier calls", tolerance="exact", dtypes=FLOAT32)
def the_next_call_leaves_results_alone(s: Subject) -> None:
    case = Case.make(s)
    model, x, other = case.model(), case.give(case.x), case.give(s.draw(*case.x.shape))
    d_output = case.give(case.d_output)
    want = s.host(model.vjp(x)[2](d_output).x)
    output, h_n, pullback = model.vjp(x)
    kept = {"output": output, "h_n": h_n, "dL/dx": pullback(d_output).x}
    before = {k: s.host(v) for k, v in kept.items()}
    model.vjp(other)[2](case.give(-case.d_output))
    s.compare_all(kept, before, tolerance="exact", where=" after another call")
    s.compare("dL/dx of a pullback after another call", pullback(d_output).x, want)


@check(
    "RC-DET-001",
    "the same call, or a new model with the same weights, gives the same bits",
    tolerance="exact",
    once=True,
)
def same_bits_again(s: Subject) -> None:
    case = Case.make(s, layers=2, bidirectional=True, lengths=LENGTHS)
    model = case.model()
    want = case.numbers(model)
    for again in (model, case.model()):
        s.compare_all(case.results(again), want, tolerance="exact")


@check("RC-DET-002", "eight threads that share a model get the same numbers as one", tolerance="exact", dtypes=FLOAT32)
def threads_agree(s: Subject) -> None:
    case = Case.make(s, layers=2)
    model = case.model()
    want = case.numbers(model)
    _in_threads(s, lambda k: case.numbers(model), lambda k: want)


@check("RC-DET-003", "a seed draws the same weights as on NumPy", tolerance="exact")
def same_weights(s: Subject) -> None:
    here = RNN(3, 4, 2, bidirectional=True, rng=5, backend=s.backend, device=s.device, dtype=s.dtype)
    there = RNN(3, 4, 2, bidirectional=True, rng=5, backend="numpy", dtype=s.dtype_name)
    for name, value in there.state_dict().items():
        s.compare(name, here.params[name], value.astype("f8"))


@check("RC-DET-004", "a scan keeps nothing between calls: repeated calls give the same bits", tolerance="exact")
def scans_keep_nothing(s: Subject) -> None:
    one, two = scan_arguments(s), scan_arguments(s)
    for name, scan in both_scans(s).items():
        want = run_scan(s, scan, one)
        for turn, given in enumerate((two, one, one), start=2):  # after an even and an odd number of calls
            found = run_scan(s, scan, given)
            if given is one:
                s.compare(f"{name}, call {turn}", found, want)


@check(
    "RC-DET-005",
    "threads that run scans at the same time get their own results",
    needs=("scans",),
    tolerance="exact",
    dtypes=FLOAT32,
)
def scans_share_nothing(s: Subject) -> None:
    given = [scan_arguments(s) for _ in range(THREADS)]
    scans = both_scans(s)
    want = [{name: run_scan(s, scan, g) for name, scan in scans.items()} for g in given]
    together = threading.Barrier(THREADS)

    def pause(frame: Any, event: str, argument: Any) -> Any:
        time.sleep(PAUSE)  # lets another thread run between any two lines
        return pause

    def work(k: int) -> Mapping[str, Any]:
        together.wait()
        sys.settrace(pause)
        try:
            return {name: run_scan(s, scan, given[k]) for name, scan in scans.items()}
        finally:
            sys.settrace(None)

    _in_threads(s, work, lambda k: want[k])


def _in_threads(s: Subject, work: Callable[[int], Mapping[str, Any]], want: Callable[[int], Mapping[str, Any]]) -> None:
    """Run work(0), work(1), ... at the same time, each in its own thread, and compare each result with want(k)."""
    found: list[Any] = [None] * THREADS

    def keep(k: int) -> None:
        try:
            found[k] = work(k)
        except Exception as error:
            found[k] = error

    threads = [threading.Thread(target=keep, args=(k,)) for k in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for k, results in enumerate(found):
        s.expect(isinstance(results, dict), f"thread {k}: {results!r}")
        s.compare_all(results, want(k), tolerance="exact", where=f" of thread {k}")


@check("RC-SYNC-001", "a forward pass transfers nothing to the host and does not wait for the device", once=True)
def forward_stays_on_the_device(s: Subject) -> None:
    _count(s, lambda model, x, h0: model(x, h0))


@check("RC-SYNC-002", "vjp and its pullback, jvp and trace transfer nothing to the host and do not wait", once=True)
def derivatives_stay_on_the_device(s: Subject) -> None:
    _count(s, lambda model, x, h0: model.vjp(x, h0)[2](model(x, h0)[0]))
    _count(s, lambda model, x, h0: model.jvp(x, h0, x_dot=x))
    _count(s, lambda model, x, h0: model.trace(x, h0))


@check("RC-SYNC-003", "with lengths, transfers to the device do not grow with the number of steps", once=True)
def lengths_cross_once(s: Subject) -> None:
    crossed = []
    for steps in (STEPS, 2 * STEPS):
        case = Case.make(s, layers=2, bidirectional=True, steps=steps)
        with Watched(s.backend) as watched:
            model = _on(watched, s, case)
            model.vjp(*case.inputs(), LENGTHS)[2](case.give(case.d_output))
            crossed.append(watched.given)
            s.expect(not watched.taken, f"brought to the host: {', '.join(watched.taken)}")
            s.expect(not watched.waits, f"waited for the device {watched.waits} times")
    s.expect(
        crossed[0] == crossed[1], f"arrays sent to the device: {crossed[0]} for {STEPS} steps, {crossed[1]} for twice"
    )


@check("RC-SYNC-004", "the backend's scans do not call its functions that wait or transfer", needs=("scans", "open"))
def scans_stay_on_the_device(s: Subject) -> None:
    calls: list[str] = []
    with s.scope():
        arrays = {k: s.give(v) for k, v in scan_arguments(s).items()}
    with patched(s.backend, ("synchronize", "to_numpy", "asarray"), noted(calls)), s.scope():
        for scan in both_scans(s).values():
            scan(arrays)
    s.expect(not calls, f"scans of {STEPS} steps called {', '.join(calls)}")


@check("RC-SYNC-005", "a call moves no array to another device and back", needs=("watchable",), dtypes=FLOAT32)
def nothing_is_moved(s: Subject) -> None:
    found = methods_asked(s, "to_device", "cpu", "cuda", "get")
    s.expect(not found, f"methods called on an array: {', '.join(found)}")


def _count(s: Subject, run: Callable[[RNN, Any, Any], Any]) -> None:
    case = Case.make(s, layers=2, bidirectional=True)
    x, h0 = case.inputs()
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
