"""SYNC: a running network transfers nothing and does not wait for the device."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from rnncore.model.rnn import RNN
from rnncore.testing.check import FLOAT32, check
from rnncore.testing.tools.case import LENGTHS, STEPS, Case, methods_asked
from rnncore.testing.tools.scan_case import both_scans, scan_arguments
from rnncore.testing.tools.subject import Subject
from rnncore.testing.tools.watch import Watched, noted, patched


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
            model.vjp(case.give(case.x), case.give_state(case.h0), LENGTHS)[2](case.give(case.d_output))
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
