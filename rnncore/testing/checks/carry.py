"""CARRY: both scans with factors for leaks, resets, padding and dropout; NETS: scans of several networks at once.

Each rule is checked on the reference in the backend's namespace, and on the backend's own scans if they name the form.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from rnncore import scan
from rnncore.carry import Carry
from rnncore.network.engine import Engine
from rnncore.nonlinearity.nonlinearity import as_nonlinearity
from rnncore.testing.check import check
from rnncore.testing.tools import oracle
from rnncore.testing.tools.carry_case import FACTOR_SHAPES, FULL, CarryCase, carry_of, engines, summed, what
from rnncore.testing.tools.case import BATCH, STEPS, WIDTH
from rnncore.testing.tools.subject import Subject
from rnncore.typing import Array, Host

BOTH_WAYS = (False, True)
LENGTHS = (6, 4, 0)
NETWORKS = 4


@check("RC-CARRY-001", "the nonlinear scan with carry is h_t = a_t h_{t-1} + g_t f(p_t + (i_t h_{t-1}) W^T)")
def nonlinear_with_carry(s: Subject) -> None:
    for factors in FACTOR_SHAPES:
        case = CarryCase(s, factors)
        for name in ("tanh", "relu", "softplus"):
            for reverse in BOTH_WAYS:
                want = oracle.carry_scan(case.full(), name, reverse=reverse)
                for path, engine in engines(s, "carry"):
                    s.compare(what(f"h ({name})", path, reverse, factors), _states(case, engine, name, reverse), want,
                              tolerance="states")  # fmt: skip


@check("RC-CARRY-002", "the linear scan with carry is x_t = c_t + a_t x_{t-1} + o_t ((i_t x_{t-1}) M)")
def linear_with_carry(s: Subject) -> None:
    for factors in FACTOR_SHAPES:
        case = CarryCase(s, factors)
        for reverse in BOTH_WAYS:
            want = oracle.linear_carry_scan(case.full_linear(), reverse=reverse)
            for path, engine in engines(s, "carry"):
                got = _linear(case, engine, reverse)
                s.compare(what("x", path, reverse, factors), got, want, tolerance="gradients")


@check("RC-CARRY-003", "the gradients of the nonlinear scan with carry: p, h0, W and each factor, in its own shape")
def gradient_with_carry(s: Subject) -> None:
    for factors in FACTOR_SHAPES:
        case = CarryCase(s, factors)
        d_h = s.draw(*FULL)
        for name in ("tanh", "softplus"):
            for reverse in BOTH_WAYS:
                want = oracle.carry_pullback(d_h, case.full(), name, reverse=reverse)
                for path, engine in engines(s, "carry"):
                    found = _gradient(case, engine, d_h, name, reverse, _states(case, engine, name, reverse))
                    cotangents = {"p": found.p, "h0": found.h0, "w": found.w_hh, **(found.carry or Carry())._asdict()}
                    for own, like in case.numbers.items():
                        where = what(f"d{own} ({name})", path, reverse, factors)
                        s.compare(where, cotangents[own], summed(want[own], like), tolerance="gradients")


@check("RC-CARRY-004", "the tangent of the nonlinear scan with carry, for tangents of all its arguments")
def tangent_with_carry(s: Subject) -> None:
    for factors in FACTOR_SHAPES:
        case = CarryCase(s, factors)
        dots = case.dots()
        for reverse in BOTH_WAYS:
            want = oracle.carry_tangent(case.full(), case.full_dots(dots), "tanh", reverse=reverse)
            for path, engine in engines(s, "carry"):
                h, x, t = _states(case, engine, "tanh", reverse), case.given(), case.given(dots)
                with s.scope():
                    got = scan.nonlinear_jvp(
                        t["p"], t["h0"], t["w"], x["p"], x["h0"], x["w"], h, nonlinearity=as_nonlinearity("tanh"),
                        reverse=reverse, xp=s.xp, carry=carry_of(x), carry_dot=carry_of(t), linear_scan=engine.linear_carry,
                    )  # fmt: skip
                s.compare(what("tangent of h", path, reverse, factors), got, want, tolerance="gradients")


@check(
    "RC-CARRY-005", "the VJP of the linear scan with carry is a linear scan with carry: with respect to all arguments"
)
def vjp_of_the_linear_scan_with_carry(s: Subject) -> None:
    for factors in FACTOR_SHAPES:
        case = CarryCase(s, factors)
        d_x = s.draw(*FULL)
        for reverse in BOTH_WAYS:
            want = oracle.linear_carry_pullback(d_x, case.full_linear(), reverse=reverse)
            for path, engine in engines(s, "carry"):
                x, g = _linear(case, engine, reverse), case.given()
                with s.scope():
                    found = scan.linear_carry_vjp(
                        s.give(d_x), [g.get(n) for n in ("g", "i", "a", "h0", "w")], x,
                        reverse=reverse, xp=s.xp, linear_scan=engine.linear_carry,
                    )  # fmt: skip
                for name, own in zip(("c", "o", "i", "a", "x0", "m"), ("p", "g", "i", "a", "h0", "w"), strict=True):
                    if own in case.numbers:
                        where = what(f"cotangent of {name}", path, reverse, factors)
                        like = case.numbers[own]
                        s.compare(where, getattr(found, name), summed(want[name], like), tolerance="gradients")


@check("RC-CARRY-006", "the JVP of the linear scan with carry is a linear scan with carry", once=True)
def jvp_of_the_linear_scan_with_carry(s: Subject) -> None:
    for factors in FACTOR_SHAPES:
        case = CarryCase(s, factors)
        dots = case.dots()
        full = case.full_dots(dots)
        moved = {"c": full["p"], "o": full["g"], "i": full["i"], "a": full["a"], "x0": full["h0"], "m": full["w"]}
        for reverse in BOTH_WAYS:
            want = oracle.linear_carry_tangent(case.full_linear(), moved, reverse=reverse)
            for path, engine in engines(s, "carry"):
                x, g, t = _linear(case, engine, reverse), case.given(), case.given(dots)
                with s.scope():
                    got = scan.linear_carry_jvp(
                        [t.get(n) for n in ("p", "g", "i", "a", "h0", "w")],
                        [g.get(n) for n in ("g", "i", "a", "h0", "w")], x,
                        reverse=reverse, xp=s.xp, linear_scan=engine.linear_carry,
                    )  # fmt: skip
                s.compare(what("tangent of x", path, reverse, factors), got, want, tolerance="gradients")


@check("RC-CARRY-007", "a leak of a linear unit: the distance from its input shrinks by 1 - alpha in each step")
def a_leak_decays(s: Subject) -> None:
    alpha, steps = 0.125, 40
    case = CarryCase(s, ((1,), (1,), None), (steps, 1, 1))
    case.numbers |= {"p": np.full((steps, 1, 1), 3.0), "h0": np.full((1, 1), -1.0), "w": np.zeros((1, 1))}
    case.numbers |= {"a": np.full(1, 1 - alpha), "g": np.full(1, alpha)}
    want = (3.0 - 4.0 * (1 - alpha) ** np.arange(1, steps + 1))[:, None, None]
    for path, engine in engines(s, "carry"):
        s.compare(what("h", path, False), _states(case, engine, "identity", False), want, tolerance="states")
        s.compare(what("h", path, True), _states(case, engine, "identity", True), want[::-1], tolerance="states")


@check("RC-CARRY-008", "after a reset (a = i = 0) earlier steps have no effect, even if they are NaN or infinite")
def a_reset_forgets(s: Subject) -> None:
    for bad in (0.0, np.nan, np.inf):
        for reverse in BOTH_WAYS:
            case = CarryCase(s, ((STEPS, 1, 1), None, (STEPS, 1, 1)))
            at, old = (2, slice(3, None)) if reverse else (3, slice(0, 3))
            new = slice(0, 3) if reverse else slice(3, None)
            case.numbers["a"][at] = case.numbers["i"][at] = 0.0
            clean = {k: v.copy() for k, v in case.full().items()}
            case.numbers["p"][old] += bad
            d_h = s.draw(*FULL)
            d_h[old] = 0.0
            want = oracle.carry_pullback(d_h, clean, "relu", reverse=reverse)
            states = oracle.carry_scan(clean, "relu", reverse=reverse)
            for path, engine in engines(s, "carry"):
                h = _states(case, engine, "relu", reverse)
                where = what(f"after a reset behind {bad}", path, reverse)
                s.compare(f"h {where}", s.host(h)[new], states[new], tolerance="states")
                found = _gradient(case, engine, d_h, "relu", reverse, h)
                s.compare(f"dp {where}", s.host(found.p)[new], want["p"][new], tolerance="gradients")
                if bad == 0.0:
                    s.compare(f"dp before it {where}", s.host(found.p)[old], np.zeros(FULL)[old], tolerance="exact")
                    s.compare(f"dh0 {where}", found.h0, np.zeros(FULL[1:]), tolerance="exact")


@check("RC-CARRY-009", "in padding (a = 1, g = 0) the state does not change by a bit, p is not read, its gradient is 0")
def padding_keeps_the_state(s: Subject) -> None:
    valid = np.arange(STEPS)[:, None, None] < np.asarray(LENGTHS)[None, :, None]
    for bad in (0.0, np.nan, np.inf):
        for reverse in BOTH_WAYS:
            case = CarryCase(s, ((STEPS, BATCH, 1), (STEPS, BATCH, 1), None))
            case.numbers |= {"a": np.where(valid, 0.0, 1.0), "g": np.where(valid, 1.0, 0.0)}
            case.numbers["p"] = np.where(valid, case.numbers["p"], 0.0)
            clean = {k: v.copy() for k, v in case.full().items()}
            case.numbers["p"] = np.where(valid, case.numbers["p"], bad)
            d_h = np.where(valid, s.draw(*FULL), 0.0)
            want = oracle.carry_pullback(d_h, clean, "tanh", reverse=reverse)
            for path, engine in engines(s, "carry"):
                h = _states(case, engine, "tanh", reverse)
                where = what(f"with {bad} in the padding", path, reverse)
                states = s.host(h)
                s.compare(f"h {where}", h, oracle.carry_scan(clean, "tanh", reverse=reverse),
                          tolerance="states")  # fmt: skip
                for b, end in enumerate(LENGTHS):
                    last = case.numbers["h0"][b] if reverse or end == 0 else states[end - 1, b]
                    s.compare(f"h past the end {where}", states[end:, b], np.tile(last, (STEPS - end, 1)),
                              tolerance="exact")  # fmt: skip
                found = _gradient(case, engine, d_h, "tanh", reverse, h)
                s.compare(f"dp {where}", found.p, want["p"], tolerance="gradients")
                s.compare(f"dp past the end {where}", np.where(valid, 0.0, s.host(found.p)), np.zeros(FULL),
                          tolerance="exact")  # fmt: skip
                s.compare(f"dW {where}", found.w_hh, want["w"], tolerance="gradients")
                # f of a step that is not read is undefined, so only finiteness is required of dg in the padding.
                d_g = s.host(found.carry and found.carry.g)
                s.expect(np.isfinite(d_g).all(), f"dg {where}: expected numbers, got {d_g[~np.isfinite(d_g)][:1]}")
                inside = np.where(valid, summed(want["g"], d_g), 0.0)
                s.compare(f"dg {where}", np.where(valid, d_g, 0.0), inside, tolerance="gradients")


@check("RC-CARRY-010", "the scans with carry of one step, one row, one unit; of no rows and of no steps", once=True)
def carry_edges(s: Subject) -> None:
    for shape in (
        (1, BATCH, WIDTH),
        (STEPS, 1, WIDTH),
        (STEPS, BATCH, 1),
        (1, 1, 1),
        (STEPS, 0, WIDTH),
        (0, BATCH, WIDTH),
    ):
        for factors in ((shape, shape, shape), ((shape[2],), (shape[2],), None)):
            case = CarryCase(s, factors, shape)
            for path, engine in engines(s, "carry"):
                for reverse in BOTH_WAYS:
                    want = oracle.carry_scan(case.full(), "tanh", reverse=reverse)
                    got = _states(case, engine, "tanh", reverse)
                    s.compare(what(f"h of {shape}", path, reverse), got, want, tolerance="states")
                    want = oracle.linear_carry_scan(case.full_linear(), reverse=reverse)
                    got = _linear(case, engine, reverse)
                    s.compare(what(f"x of {shape}", path, reverse), got, want, tolerance="gradients")


@check("RC-CARRY-011", "the scans with carry change no argument; with overwrite they may change only p or c")
def carry_leaves_its_arguments(s: Subject) -> None:
    for factors in FACTOR_SHAPES[:2]:
        for path, engine in engines(s, "carry"):
            for overwrite in (False, True):
                case = CarryCase(s, factors)
                x = case.given()
                with s.scope():
                    options: dict[str, Any] = {"reverse": False, "overwrite": overwrite}
                    f = as_nonlinearity("tanh")
                    h = engine.nonlinear(x["p"], x["h0"], x["w"], nonlinearity=f, carry=carry_of(x), **options)
                    s.compare(what("h", path, False), h, oracle.carry_scan(case.full(), "tanh"),
                              tolerance="states")  # fmt: skip
                    if overwrite:
                        x["p"] = s.give(case.numbers["p"])
                    got = engine.linear_carry(
                        x["p"], x.get("g"), x.get("i"), x.get("a"), x["h0"], x["w"], **options
                    )  # fmt: skip
                want = oracle.linear_carry_scan(case.full_linear())
                s.compare(what("x", path, False), got, want, tolerance="gradients")
                for name, array in x.items():
                    if not (overwrite and name == "p"):
                        s.compare(what(name, path, False), array, case.numbers[name], tolerance="exact")


@check("RC-NETS-001", "the scans of four networks at once, each with its own matrix, equal those of each network alone")
def networks_alone(s: Subject) -> None:
    p, d, h0, w = _networks(s)
    for reverse in BOTH_WAYS:
        for path, engine in engines(s, "networks"):
            with s.scope():
                gp, g0, gw = s.give(p), s.give(h0), s.give(w)
                h = engine.nonlinear(gp, g0, gw, nonlinearity=as_nonlinearity("tanh"), reverse=reverse)
                x = engine.linear(gp, s.give(d), g0, gw, reverse=reverse)
            for k in range(NETWORKS):
                want = oracle.nonlinear_scan(p[:, k], h0[k], w[k], "tanh", reverse=reverse)
                s.compare(what(f"h of network {k}", path, reverse), s.host(h)[:, k], want, tolerance="states")
                want = oracle.linear_scan(p[:, k], d[:, k], h0[k], w[k], reverse=reverse)
                s.compare(what(f"s of network {k}", path, reverse), s.host(x)[:, k], want, tolerance="gradients")


@check("RC-NETS-002", "gradients and tangents of four networks at once, with factors of each network")
def derivatives_of_networks(s: Subject) -> None:
    p, d, h0, w = _networks(s)
    p_dot, _, h0_dot, w_dot = _networks(s)
    leak, f = np.clip(np.abs(s.draw(NETWORKS, 1, 1)), 0.25, 0.75), as_nonlinearity("tanh")
    for reverse in BOTH_WAYS:
        for path, engine in engines(s, "networks", "carry"):
            with s.scope():
                gp, g0, gw = (s.give(x) for x in (p, h0, w))
                options: dict[str, Any] = {
                    "nonlinearity": f,
                    "reverse": reverse,
                    "carry": Carry(s.give(leak), s.give(1 - leak)),
                }
                rules = options | {"xp": s.xp, "linear_scan": engine.linear_carry}
                h = engine.nonlinear(gp, g0, gw, **options)
                found = scan.nonlinear_vjp(s.give(d), gp, g0, gw, h, **rules)
                moved = scan.nonlinear_jvp(s.give(p_dot), s.give(h0_dot), s.give(w_dot), gp, g0, gw, h, **rules)
            for k in range(NETWORKS):
                zero, one = np.zeros(FULL), np.ones(FULL)
                given = {"p": p[:, k], "h0": h0[k], "w": w[k], "a": leak[k] * one, "g": (1 - leak[k]) * one, "i": one}
                dots = {"p": p_dot[:, k], "h0": h0_dot[k], "w": w_dot[k], "a": zero, "g": zero, "i": zero}
                want = oracle.carry_pullback(d[:, k], given, "tanh", reverse=reverse)
                where = what(f"of network {k}", path, reverse)
                s.compare(f"dp {where}", s.host(found.p)[:, k], want["p"], tolerance="gradients")
                s.compare(f"dW {where}", s.host(found.w_hh)[k], want["w"], tolerance="gradients")
                s.compare(f"dh0 {where}", s.host(found.h0)[k], want["h0"], tolerance="gradients")
                s.compare(
                    f"da {where}",
                    s.host(found.carry and found.carry.a)[k],
                    summed(want["a"], leak[k]),
                    tolerance="gradients",
                )
                tangent = oracle.carry_tangent(given, dots, "tanh", reverse=reverse)
                s.compare(f"tangent of h {where}", s.host(moved)[:, k], tangent, tolerance="gradients")


def _states(case: CarryCase, engine: Engine, name: str, reverse: bool) -> Array:
    x = case.given()
    with case.s.scope():
        f = as_nonlinearity(name)
        return engine.nonlinear(x["p"], x["h0"], x["w"], nonlinearity=f, reverse=reverse, carry=carry_of(x))


def _linear(case: CarryCase, engine: Engine, reverse: bool) -> Array:
    x = case.given()
    with case.s.scope():
        return engine.linear_carry(x["p"], x.get("g"), x.get("i"), x.get("a"), x["h0"], x["w"], reverse=reverse)


def _gradient(
    case: CarryCase, engine: Engine, d_h: Host, name: str, reverse: bool, h: Array
) -> scan.NonlinearCotangents:
    x, s = case.given(), case.s
    with s.scope():
        return scan.nonlinear_vjp(
            s.give(d_h), x["p"], x["h0"], x["w"], h, nonlinearity=as_nonlinearity(name), reverse=reverse, xp=s.xp,
            carry=carry_of(x), linear_scan=engine.linear_carry,
        )  # fmt: skip


def _networks(s: Subject) -> tuple[Host, Host, Host, Host]:
    shape = (STEPS, NETWORKS, BATCH, WIDTH)
    w = np.stack([s.weights(WIDTH) for _ in range(NETWORKS)])
    return s.draw(*shape), s.draw(*shape, scale=0.5), s.draw(*shape[1:]), w
