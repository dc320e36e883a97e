"""KER: the choice of the code that runs a scan, and the backend's declarations about its scans."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from rnncore.backend.abilities import SCAN_FORMS, abilities_of
from rnncore.backend.arrays import FLOATS, floating_dtypes
from rnncore.backend.contract import Backend, FormScans, ScanRequest, Scans
from rnncore.carry import Carry
from rnncore.errors import KernelUnsupportedError
from rnncore.network.engine import Engine, make_engine
from rnncore.nonlinearity.nonlinearity import as_nonlinearity
from rnncore.scan import linear as reference_linear
from rnncore.scan import linear_carry as reference_linear_carry
from rnncore.scan import nonlinear as reference_nonlinear
from rnncore.testing.check import FLOAT32, check
from rnncore.testing.tools.carry_case import FACTOR_SHAPES, CarryCase, carry_of
from rnncore.testing.tools.case import Case
from rnncore.testing.tools.oracle import linear_scan, nonlinear_scan
from rnncore.testing.tools.requests import form_requests, requests
from rnncore.testing.tools.subject import Subject
from rnncore.typing import Array, KernelMode

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


class _Recorder:
    """Scans that accept every request, record it with its options, and run the reference."""

    def __init__(self, xp: Any) -> None:
        self._xp = xp
        self.asked: list[ScanRequest] = []
        self.options: list[dict[str, Any]] = []

    def unsupported(self, request: ScanRequest, /) -> str | None:
        self.asked.append(request)
        return None

    def nonlinear(self, *args: Any, **options: Any) -> Array:
        return self._run(reference_nonlinear, args, options)

    def linear(self, *args: Any, **options: Any) -> Array:
        return self._run(reference_linear, args, options)

    def linear_carry(self, *args: Any, **options: Any) -> Array:
        return self._run(reference_linear_carry, args, options)

    def _run(self, scan: Any, args: Any, options: dict[str, Any]) -> Array:
        options.pop("overwrite", None)
        self.options.append(options | {"factors": args[1:4] if scan is reference_linear_carry else ()})
        return scan(*args, xp=self._xp, **options)


class _With:
    """A backend with its scans replaced, and optionally the forms that it names."""

    def __init__(self, backend: Backend, scans: Any, forms: frozenset[str] | None = None) -> None:
        self._backend, self._own = backend, scans
        if forms is not None:
            self.contract_version, self.scan_forms = 2, forms

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
    output, _, pullback = model.vjp(*case.inputs())
    pullback(case.give(case.d_output))
    s.expect(not spy.runs, f"kernel='reference': ran {spy.runs}")
    s.compare("output", output, case.truth().output, tolerance="states")


@check("RC-KER-003", "for a refused request 'auto' runs the reference and 'require' raises", needs=("scans",))
def refusals_are_honoured(s: Subject) -> None:
    spy, backend = _spied(s, reason=REASON)
    case = Case.make(s)
    output, _ = case.model(backend=backend, kernel="auto")(*case.inputs())
    s.expect(not spy.runs, f"the scans ran a refused request: {spy.runs}")
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
    want = case.numbers(case.model(kernel="reference"))
    s.compare_all(case.results(case.model(kernel="auto")), want)


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


@check(
    "RC-KER-009",
    "scans receive only forms that their backend names: otherwise the reference runs, and 'require' is an error",
    once=True,
)
def forms_that_are_not_named(s: Subject) -> None:
    for form in SCAN_FORMS:
        recorder = _Recorder(s.xp)
        backend = _With(s.backend, recorder, frozenset(SCAN_FORMS) - {form})
        for k in range(2):
            _in_form(s, _engine(s, backend, "auto"), form)[k]()
            s.expect(not recorder.options, f"{form} is not named, but was given: {recorder.options}")
            required = _in_form(s, _engine(s, backend, "require"), form)[k]
            error = s.raises(KernelUnsupportedError, f"kernel='require' of the form {form}", required)
            s.expect(form in str(error), f"the error does not name the form {form}: {error}")


@check("RC-KER-010", "scans receive the forms that their backend names, with a request that describes them", once=True)
def forms_that_are_named(s: Subject) -> None:
    for form in SCAN_FORMS:
        for factors, kind in ((FACTOR_SHAPES[1], "unit"), (FACTOR_SHAPES[3], "step")):
            recorder = _Recorder(s.xp)
            engine = _engine(s, _With(s.backend, recorder, frozenset({form})), "require")
            for run in _in_form(s, engine, form, factors):
                run()
            s.expect(len(recorder.options) == 2, f"{form} is named: expected two scans, got {len(recorder.options)}")
            wanted = {
                "carry": ((("a", kind), ("g", kind)), False, None),
                "ragged": (None, True, None),
                "networks": (None, False, 2),
            }[form]
            first, second = recorder.asked[0], recorder.asked[-1]
            got = first.carry, first.ragged, first.networks
            s.expect(got == wanted, f"the request of the form {form}: expected {wanted}, got {got}")
            s.expect(second.forms == (form,), f"the request of the linear scan: expected {form}, got {second.forms}")
            given = recorder.options[0].get("carry")
            shapes = [None if k is None else tuple(k.shape) for k in (*(given or ()), *recorder.options[1]["factors"])]
            whole = (second.width,) if kind == "unit" else (second.steps, second.batch, second.width)
            s.expect(set(shapes) <= {None, whole}, f"factors: expected shapes {whole}, got {shapes}")
            rows = [o.get("rows") for o in recorder.options]
            s.expect(rows == [ROWS if form == "ragged" else None] * 2, f"rows of {form}: got {rows}")


@check(
    "RC-KER-011",
    "scans run every request in a named form that `unsupported` accepts, for each form and for all together",
    needs=("forms",),
    dtypes=FLOATS,
)
def named_forms_work(s: Subject) -> None:
    scans: Any = s.backend.scans()
    for request in form_requests(abilities_of(s.backend).scans, s.dtype_name, s.device, as_nonlinearity):
        if scans.unsupported(request) is None:
            _run_form(s, scans, request)


ROWS = (2, 2, 2, 2, 1, 1)


def _engine(s: Subject, backend: Any, kernel: KernelMode) -> Engine:
    return make_engine(backend, device=s.device, dtype=s.dtype, kernel=kernel)


def _in_form(s: Subject, engine: Engine, form: str, factors: Any = FACTOR_SHAPES[1]) -> list[Callable[[], Array]]:
    """Both scans in one form."""
    case, f = CarryCase(s, factors), as_nonlinearity("tanh")
    numbers = dict(case.numbers)
    if form == "networks":
        numbers = {"p": np.stack([case.numbers["p"]] * 2, axis=1)}
        numbers |= {n: np.stack([case.numbers[n]] * 2) for n in ("h0", "w")}
    x = case.given(numbers)
    p, h0, w = x["p"], x["h0"], x["w"]
    options: dict[str, Any] = {"reverse": False} | ({"rows": ROWS} if form == "ragged" else {})
    carry: dict[str, Any] = {"carry": carry_of(x)} if form == "carry" else {}

    def nonlinear() -> Array:
        with s.scope():
            return engine.nonlinear(p, h0, w, nonlinearity=f, **options, **carry)

    def linear() -> Array:
        with s.scope():
            if form == "carry":
                return engine.linear_carry(p, x["g"], None, x["a"], h0, w, **options)
            return engine.linear(p, p, h0, w, **options)

    return [nonlinear, linear]


def _run_form(s: Subject, scans: FormScans, r: ScanRequest) -> None:
    """Run a request and compare it with the reference on the host, in float64."""
    many = () if r.networks is None else (r.networks,)
    shape = (r.steps, *many, r.batch, r.width)
    kinds = dict(r.carry or ())
    given = {n: s.draw(*((r.width,) if kind == "unit" else shape), scale=0.5) for n, kind in kinds.items()}
    a, b, first = s.draw(*shape), s.draw(*shape, scale=0.5), s.draw(*shape[1:])
    w = s.weights(r.width) if not many else np.stack([s.weights(r.width) for _ in range(many[0])])
    rows = {"rows": tuple(max(r.batch - t // 2, 0) for t in range(r.steps))} if r.ragged else {}

    def run(give: Any, nonlinear: Any, linear: Any, linear_carry: Any, **options: Any) -> Any:
        k = {n: give(v) for n, v in given.items()}
        options |= {"reverse": r.reverse, **rows}
        if r.nonlinearity is not None:
            carry = {} if r.carry is None else {"carry": Carry(k.get("a"), k.get("g"), k.get("i"))}
            return nonlinear(give(a), give(first), give(w), nonlinearity=r.nonlinearity, **options, **carry)
        if r.carry is None:
            return linear(give(a), give(b), give(first), give(w), **options)
        return linear_carry(give(a), k.get("o"), k.get("i"), k.get("a"), give(first), give(w), **options)

    linear_carry = getattr(scans, "linear_carry", None)
    with s.scope():
        got = run(s.give, scans.nonlinear, scans.linear, linear_carry)
    want = run(np.asarray, reference_nonlinear, reference_linear, reference_linear_carry, xp=np)
    half = s.dtype_name in ("float16", "bfloat16")
    what = f"{r.scan} scan of {shape}, forms {r.forms}, factors {r.carry}{', reverse' if r.reverse else ''}"
    s.compare(what, got, np.asarray(want), tolerance="half" if half else "gradients", floor=1.0)


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
