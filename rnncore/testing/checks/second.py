"""SECOND: derivatives of the scans' own derivatives, and derivatives by the array library's own tools."""

from __future__ import annotations

from typing import Any

import numpy as np

from rnncore import scan
from rnncore.backend.abilities import abilities_of
from rnncore.network import calls
from rnncore.network.network import Network
from rnncore.nonlinearity.nonlinearity import as_nonlinearity
from rnncore.testing.check import FLOAT64, check
from rnncore.testing.tools.case import BATCH, LENGTHS, STEPS, WIDTH, Case
from rnncore.testing.tools.oracle import linear_scan, nonlinear_scan, solve
from rnncore.testing.tools.subject import Subject
from rnncore.typing import Host

# Central differences are most accurate for h ~ eps**(1/3), where truncation h^2 balances rounding eps / h.
STEP = 6e-6


@check("RC-SECOND-001", "the VJP of a linear scan, with respect to its four arguments, is made of a linear scan")
def vjp_of_the_linear_scan(s: Subject) -> None:
    for reverse in (False, True):
        u, d, s0, m, c = _linear_arguments(s)
        engine = s.engine()
        with s.scope():
            gu, gd, g0, gm = (s.give(a) for a in (u, d, s0, m))
            states = engine.linear(gu, gd, g0, gm, reverse=reverse)
            found = scan.linear_vjp(
                s.give(c), gu, gd, g0, gm, states, reverse=reverse, xp=s.xp, linear_scan=engine.linear
            )
        want = _linear_vjp(u, d, s0, m, c, reverse)
        for name, got, value in zip(("u", "d", "s0", "m"), found, want, strict=True):
            s.compare(f"cotangent of {name}", got, value, tolerance="gradients")


@check("RC-SECOND-002", "the JVP of a linear scan is made of a linear scan")
def jvp_of_the_linear_scan(s: Subject) -> None:
    for reverse in (False, True):
        u, d, s0, m, _ = _linear_arguments(s)
        dots = [s.draw(*a.shape, scale=0.5) for a in (u, d, s0, m)]
        engine = s.engine()
        with s.scope():
            gu, gd, g0, gm = (s.give(a) for a in (u, d, s0, m))
            tu, td, t0, tm = (s.give(a) for a in dots)
            states = engine.linear(gu, gd, g0, gm, reverse=reverse)
            options = {"reverse": reverse, "xp": s.xp, "linear_scan": engine.linear}
            got = scan.linear_jvp(tu, td, t0, tm, gu, gd, g0, gm, states, **options)
        s.compare("tangent of s", got, _linear_jvp((u, d, s0, m), dots, reverse), tolerance="gradients")


@check("RC-SECOND-003", "a Hessian-vector product of the nonlinear scan, made of linear scans only")
def hessian_vector_product(s: Subject) -> None:
    """Forward over reverse: the tangent of delta, which is the cotangent of p, along a direction of p, h0 and W."""
    for reverse in (False, True):
        p, h0, w, c = s.draw(STEPS, BATCH, WIDTH), s.draw(BATCH, WIDTH), s.weights(WIDTH), s.draw(STEPS, BATCH, WIDTH)
        dots = [s.draw(*a.shape, scale=0.5) for a in (p, h0, w)]
        f, engine, xp = as_nonlinearity("tanh"), s.engine(), s.xp
        with s.scope():
            gp, g0, gw = (s.give(a) for a in (p, h0, w))
            tp, t0, tw = (s.give(a) for a in dots)
            options = {"xp": xp, "linear_scan": engine.linear}
            h = engine.nonlinear(gp, g0, gw, nonlinearity=f, reverse=reverse)
            h_dot = scan.nonlinear_jvp(tp, t0, tw, gp, g0, gw, h, nonlinearity=f, reverse=reverse, **options)
            d, d_dot, zero, u = 1 - h * h, -2 * h * h_dot, xp.zeros_like(g0), s.give(c)
            delta = engine.linear(u, d, zero, gw, reverse=not reverse)
            none = xp.zeros_like(u)
            got = scan.linear_jvp(none, d_dot, zero, tw, u, d, zero, gw, delta, reverse=not reverse, **options)
        s.compare("tangent of delta", got, _delta_dot(p, h0, w, c, dots, reverse), tolerance="gradients")


@check(
    "RC-SECOND-004", "the library's reverse mode through the network gives the pullback's gradients", needs=("grad",)
)
def library_gradients(s: Subject) -> None:
    case = Case.make(s, layers=2, bidirectional=True, lengths=LENGTHS)
    names = list(case.params)
    with s.scope():
        gradients = _compiled(s, s.backend.grad(_loss(case)))  # type: ignore[attr-defined]
        found = gradients(*case.inputs(), *(s.give(case.params[n]) for n in names))
    want = case.truth()
    s.compare("dL/dx", found[0], want.x, tolerance="gradients")
    s.compare("dL/dh0", found[1], np.concatenate(want.h0), tolerance="gradients")
    for name, got in zip(names, found[2:], strict=True):
        s.compare(f"dL/d{name}", got, want.params[name], tolerance="gradients")


@check(
    "RC-SECOND-005",
    "the library's reverse mode twice gives Hessian-vector products",
    needs=("grad",),
    tolerance="difference",
    dtypes=FLOAT64,
)
def library_double_backward(s: Subject) -> None:
    for name in ("tanh", "sigmoid"):
        _double_backward(s, Case.make(s, layers=2, bidirectional=True, name=name))


def _double_backward(s: Subject, case: Case) -> None:
    names, grad, loss = list(case.params), s.backend.grad, _loss(case)  # type: ignore[attr-defined]
    dots = {n: s.draw(*v.shape) for n, v in case.params.items()}

    def slope(x: Any, h0: Any, *values: Any) -> Any:
        first = grad(loss)(x, h0, *values)[2:]
        return sum((g * s.give(dots[n])).sum() for n, g in zip(names, first, strict=True))

    with s.scope():
        products = _compiled(s, grad(slope))
        found = products(*case.inputs(), *(s.give(case.params[n]) for n in names))

    def gradients(e: float) -> dict[str, Host]:
        moved = {n: v + e * dots[n] for n, v in case.params.items()}
        kind = case.spec.nonlinearity.name
        return solve(moved, case.x, case.h0, name=kind, cotangents=(case.d_output, case.d_h_n)).params

    ahead, behind = gradients(STEP), gradients(-STEP)
    for n, got in zip(names, found[2:], strict=True):
        s.compare(f"Hessian-vector product, {n}", got, (ahead[n] - behind[n]) / (2 * STEP), floor=1.0)


@check(
    "RC-SECOND-006",
    "the network compiled by the library gives the same numbers",
    needs=("jit",),
    tolerance="states",
    once=True,
)
def compiled(s: Subject) -> None:
    for lengths in (None, LENGTHS):
        for kernel in ("reference", "auto"):
            case = Case.make(s, layers=2, bidirectional=True, lengths=lengths)
            model = case.model(kernel=kernel)
            run = s.backend.jit(lambda x, h0, m=model, n=lengths: m(x, h0, n))  # type: ignore[attr-defined]
            output, h_n = run(*case.inputs())
            want = case.truth()
            s.compare("output", output, want.output)
            s.compare("h_n", h_n, np.concatenate(want.h_n))


@check(
    "RC-SECOND-007",
    "a pullback compiled by the library gives the same gradients",
    needs=("jit",),
    tolerance="gradients",
    once=True,
)
def compiled_pullback(s: Subject) -> None:
    for kernel in ("reference", "auto"):
        case = Case.make(s, layers=2, bidirectional=True, lengths=LENGTHS)
        model = case.model(kernel=kernel)

        def run(x: object, h0: object, d_output: object, d_h_n: object, m: object = model) -> object:
            grads = m.vjp(x, h0, LENGTHS)[2](d_output, d_h_n)  # type: ignore[attr-defined]
            return grads.x, grads.params

        dx, params = s.backend.jit(run)(  # type: ignore[attr-defined]
            *case.inputs(), *case.cotangents()
        )
        want = case.truth()
        s.compare("dL/dx", dx, want.x)
        for key, value in want.params.items():
            s.compare(f"dL/d{key}", params[key], value)


def _compiled(s: Subject, function: Any) -> Any:
    """Compile if the library can: compiling each operation by itself would take a minute."""
    compiler = abilities_of(s.backend).jit
    return function if compiler is None else compiler(function)


def _loss(case: Case) -> Any:
    """Return <output, d_output> + <h_n, d_h_n> as a function of x, h0 and the parameters."""
    s, names = case.s, list(case.params)
    d_output, d_h_n = case.cotangents()

    def loss(x: Any, h0: Any, *values: Any) -> Any:
        call = Network(case.spec, dict(zip(names, values, strict=True)), s.engine())
        output, h_n = calls.forward(call, x, h0, case.lengths)
        return (output * d_output).sum() + (h_n * d_h_n).sum()

    return loss


# --- reference derivatives of the scans, step by step in float64 -----------------------------------------------------


def _linear_arguments(s: Subject) -> tuple[Host, Host, Host, Host, Host]:
    u, d = s.draw(STEPS, BATCH, WIDTH), s.draw(STEPS, BATCH, WIDTH, scale=0.5)
    d[2, 0, 1] = 0.0  # a dead unit, whose cotangent cannot be computed from s / d
    return u, d, s.draw(BATCH, WIDTH), s.weights(WIDTH), s.draw(STEPS, BATCH, WIDTH)


def _linear_vjp(u: Host, d: Host, s0: Host, m: Host, c: Host, reverse: bool) -> tuple[Host, Host, Host, Host]:
    states = linear_scan(u, d, s0, m, reverse=reverse)
    order = list(range(STEPS))[:: -1 if reverse else 1]
    d_u, d_d, d_m, carried = np.zeros(u.shape), np.zeros(d.shape), np.zeros(m.shape), np.zeros(s0.shape)
    for k in reversed(range(STEPS)):
        t = order[k]
        before = s0 if k == 0 else states[order[k - 1]]
        g = c[t] + carried
        d_d[t] = g * (u[t] + before @ m)
        d_u[t] = g * d[t]
        d_m += before.T @ d_u[t]
        carried = d_u[t] @ m.T
    return d_u, d_d, carried, d_m


def _linear_jvp(arguments: tuple[Host, ...], dots: list[Host], reverse: bool) -> Host:
    (u, d, s0, m), (u_dot, d_dot, s0_dot, m_dot) = arguments, dots
    out, state, moved = np.zeros(u.shape), s0, s0_dot
    for t in list(range(STEPS))[:: -1 if reverse else 1]:
        bracket = u[t] + state @ m
        moved = d_dot[t] * bracket + d[t] * (u_dot[t] + moved @ m + state @ m_dot)
        state = d[t] * bracket
        out[t] = moved
    return out


def _delta_dot(p: Host, h0: Host, w: Host, c: Host, dots: list[Host], reverse: bool) -> Host:
    p_dot, h_dot, w_dot = dots
    order = list(range(STEPS))[:: -1 if reverse else 1]
    h = nonlinear_scan(p, h0, w, "tanh", reverse=reverse)
    moved, state, tangent = np.zeros(p.shape), h0, h_dot
    for t in order:
        tangent = (1 - h[t] ** 2) * (p_dot[t] + tangent @ w.T + state @ w_dot.T)
        state, moved[t] = h[t], tangent
    out, delta, delta_dot = np.zeros(p.shape), np.zeros(h0.shape), np.zeros(h0.shape)
    for t in reversed(order):
        g, g_dot = c[t] + delta @ w, delta_dot @ w + delta @ w_dot
        slope, slope_dot = 1 - h[t] ** 2, -2 * h[t] * moved[t]
        delta, delta_dot = slope * g, slope_dot * g + slope * g_dot
        out[t] = delta_dot
    return out
