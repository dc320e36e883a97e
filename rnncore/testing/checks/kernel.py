"""KER: which code runs, and whether `unsupported` and explain() tell the truth."""

from __future__ import annotations

from typing import Any

import numpy as np

from rnncore.backend.arrays import FLOATS, floating_dtypes
from rnncore.backend.contract import Backend, ScanRequest, Scans
from rnncore.errors import KernelUnsupportedError
from rnncore.nonlinearity.nonlinearity import as_nonlinearity
from rnncore.scan import linear as reference_linear
from rnncore.scan import nonlinear as reference_nonlinear
from rnncore.testing.check import FLOAT32, check
from rnncore.testing.tools.case import Case
from rnncore.testing.tools.oracle import linear_scan, nonlinear_scan
from rnncore.testing.tools.requests import requests
from rnncore.testing.tools.subject import Subject
from rnncore.typing import Array

REASON = "refused by a check"


class _Spy:
    """Scans that record calls, and may refuse or fail."""

    def __init__(self, scans: Scans, reason: str | None = None, error: Exception | None = None) -> None:
        self._scans, self._reason, self._error = scans, reason, error
        self.runs: list[str] = []

    def unsupported(self, request: ScanRequest, /) -> str | None:
        return self._scans.unsupported(request) if self._reason is None else self._reason

    def nonlinear(self, *args: Any, **kwargs: Any) -> Array:
        return self._run("nonlinear", *args, **kwargs)

    def linear(self, *args: Any, **kwargs: Any) -> Array:
        return self._run("linear", *args, **kwargs)

    def _run(self, kind: str, *args: Any, **kwargs: Any) -> Array:
        self.runs.append(kind)
        if self._error is not None:
            raise self._error
        return getattr(self._scans, kind)(*args, **kwargs)


class _With:
    """A backend with its scans replaced."""

    def __init__(self, backend: Backend, scans: Any) -> None:
        self._backend, self._own = backend, scans

    def __getattr__(self, name: str) -> Any:
        return getattr(self._backend, name)

    def scans(self) -> Any:
        return self._own


def _spied(s: Subject, **options: Any) -> tuple[_Spy, Any]:
    scans = s.backend.scans()
    if scans is None:
        raise AssertionError("this check needs a backend with scans")
    spy = _Spy(scans, **options)
    return spy, _With(s.backend, spy)


def _takes(s: Subject, dtype: str | None = None) -> list[str]:
    """Names of the scans that the backend supports for a tanh network of 6 steps, 3 rows and 5 units."""
    scans = s.backend.scans()
    if scans is None:
        return []
    shape = (6, 3, 5, s.dtype_name if dtype is None else dtype, s.device)
    asked = (ScanRequest("nonlinear", *shape, False, as_nonlinearity("tanh")), ScanRequest("linear", *shape, True))
    return [r.scan for r in asked if scans.unsupported(r) is None]


@check(
    "RC-KER-001",
    "'require' runs the backend's scans or raises; 'auto' runs them where they are supported",
    needs=("scans",),
)
def require_runs_the_kernel(s: Subject) -> None:
    takes, dtypes = _takes(s), floating_dtypes(xp=s.xp, device=s.device)
    anything = any(_takes(s, name) for name in dtypes)
    s.expect(anything, f"the scans refuse a tanh network of 6 steps, 3 rows and 5 units in {', '.join(dtypes)}")
    case = Case.make(s)
    for kernel in ("require", "auto"):
        spy, backend = _spied(s)
        model, x = case.model(backend=backend, kernel=kernel), case.give(case.x)
        if kernel == "require" and len(takes) < 2:
            what = "kernel='require' of a call that needs both scans"
            s.raises(KernelUnsupportedError, what, lambda m=model, x=x: m.vjp(x)[2](case.give(case.d_output)))  # type: ignore[misc]
            continue
        model(x)
        _expect_runs(s, spy, ["nonlinear"], takes, f"forward, kernel={kernel!r}")
        model.vjp(x)[2](case.give(case.d_output))
        _expect_runs(s, spy, ["nonlinear", "linear"], takes, f"vjp, kernel={kernel!r}")
        model.jvp(x, x_dot=x)
        _expect_runs(s, spy, ["nonlinear", "linear"], takes, f"jvp, kernel={kernel!r}")


def _expect_runs(s: Subject, spy: _Spy, needed: list[str], takes: list[str], what: str) -> None:
    want, got = [n for n in needed if n in takes], list(dict.fromkeys(spy.runs))
    s.expect(got == want, f"{what}: expected the scans {', '.join(want) or 'none'}, got {', '.join(got) or 'none'}")
    spy.runs.clear()


@check("RC-KER-002", "kernel='reference' never runs the backend's own scans", needs=("scans",))
def reference_runs_no_kernel(s: Subject) -> None:
    spy, backend = _spied(s)
    case = Case.make(s)
    model = case.model(backend=backend, kernel="reference")
    output, _, pullback = model.vjp(case.give(case.x), case.give_state(case.h0))
    pullback(case.give(case.d_output))
    s.expect(not spy.runs, f"kernel='reference': ran {spy.runs}")
    s.compare("output", output, case.truth().output, tolerance="states")


@check("RC-KER-003", "for a refused request 'auto' runs the reference and 'require' raises", needs=("scans",))
def refusals_are_honoured(s: Subject) -> None:
    spy, backend = _spied(s, reason=REASON)
    case = Case.make(s)
    output, _ = case.model(backend=backend, kernel="auto")(case.give(case.x), case.give_state(case.h0))
    s.expect(not spy.runs, f"refused, but run: {spy.runs}")
    s.compare("output", output, case.truth().output, tolerance="states")
    model = case.model(backend=backend, kernel="require")
    error = s.raises(KernelUnsupportedError, "kernel='require' of a refused request", lambda: model(case.give(case.x)))
    s.expect(REASON in str(error), f"the error does not give the reason: {error}")


@check("RC-KER-004", "an error inside a scan reaches the caller", needs=("scans",), dtypes=FLOAT32)
def errors_are_not_swallowed(s: Subject) -> None:
    spy, backend = _spied(s, error=ZeroDivisionError("inside a scan"))
    case = Case.make(s)
    model = case.model(backend=backend, kernel="auto")
    s.raises(
        ZeroDivisionError, "an error inside a scan", lambda: model.vjp(case.give(case.x))[2](case.give(case.d_output))
    )
    s.expect(len(spy.runs) == 1, f"expected one attempt, got {spy.runs}")


@check("RC-KER-005", "scans run every request that `unsupported` accepts", needs=("scans",), dtypes=FLOATS)
def unsupported_does_not_lie(s: Subject) -> None:
    scans = s.backend.scans()
    if scans is None:
        raise AssertionError("this check needs a backend with scans")
    for request in requests(s.dtype_name, s.device, as_nonlinearity):
        reason = scans.unsupported(request)
        s.expect(
            reason is None or (isinstance(reason, str) and reason),
            f"unsupported: expected a reason or None, got {reason!r}",
        )
        if reason is None:
            _run_request(s, scans, request)


@check("RC-KER-006", "explain() names the path that a call takes", needs=("scans",), dtypes=FLOAT32)
def explanations_are_true(s: Subject) -> None:
    takes = _takes(s)
    for kernel, refuse in (("auto", None), ("auto", REASON), ("reference", None)):
        spy, backend = _spied(s, reason=refuse)
        case = Case.make(s)
        model = case.model(backend=backend, kernel=kernel)
        told = {c.scan: c.path for c in model.explain(steps=6, batch=3).choices}
        model.vjp(case.give(case.x))[2](case.give(case.d_output))
        runs = takes if kernel == "auto" and refuse is None else []
        want = {n: "kernel" if n in runs else "reference" for n in ("nonlinear", "linear")}
        s.expect(told == want, f"explain(), kernel={kernel!r}: expected {want}, got {told}")
        s.expect(
            set(spy.runs) == set(runs), f"kernel={kernel!r}: explain() says {told}, ran {spy.runs or 'the reference'}"
        )


@check("RC-KER-007", "the backend's scans and the reference agree on this backend", needs=("scans",))
def kernel_agrees_with_the_reference(s: Subject) -> None:
    case = Case.make(s, layers=2, bidirectional=True, lengths=(4, 0, 6))
    want = {k: s.host(v) for k, v in case.results(case.model(kernel="reference")).items()}
    for name, value in case.results(case.model(kernel="auto")).items():
        s.compare(name, value, want[name], tolerance="gradients" if name.startswith("dL/") else "states")


@check("RC-KER-008", "the reference is correct on this backend's namespace")
def reference_is_right(s: Subject) -> None:
    p, h0, w = s.draw(6, 3, 5), s.draw(3, 5), s.weights(5)
    u, d = s.draw(6, 3, 5), s.draw(6, 3, 5, scale=0.5)
    give, f = s.give, as_nonlinearity("tanh")
    with s.scope():
        for reverse in (False, True):
            h = reference_nonlinear(give(p), give(h0), give(w), nonlinearity=f, reverse=reverse, xp=s.xp)
            r = reference_linear(give(u), give(d), give(h0), give(w), reverse=reverse, xp=s.xp)
            s.compare("h", h, nonlinear_scan(p, h0, w, "tanh", reverse=reverse), tolerance="states")
            s.compare("s", r, linear_scan(u, d, h0, w, reverse=reverse), tolerance="gradients")


def _run_request(s: Subject, scans: Scans, r: ScanRequest) -> None:
    shape = (r.steps, r.batch, r.width)
    a, b, first, m = s.draw(*shape), s.draw(*shape, scale=0.5), s.draw(r.batch, r.width), s.weights(r.width)
    give, f = s.give, r.nonlinearity
    what = f"{r.scan} scan of {shape}{', reverse' if r.reverse else ''}{'' if f is None else f', {f.name}'}"
    with s.scope():
        if f is None:
            got = scans.linear(give(a), give(b), give(first), give(m), reverse=r.reverse)
            want = linear_scan(a, b, first, m, reverse=r.reverse)
        else:
            got = scans.nonlinear(give(a), give(first), give(m), nonlinearity=f, reverse=r.reverse)
            if f.is_custom:  # unknown to the oracle, so compare with the reference on the host in float64
                want = reference_nonlinear(a, first, m, nonlinearity=f, reverse=r.reverse, xp=np)
            else:
                limit = np.inf if f.clip is None else f.clip
                want = nonlinear_scan(a, first, m, f.name, reverse=r.reverse, clip=limit)
    half = s.dtype_name in ("float16", "bfloat16")
    s.compare(what, got, np.asarray(want), tolerance="half" if half else "gradients", floor=1.0)
