"""NUM: numbers at the ends of the range, infinity and NaN, and the precision of products."""

from __future__ import annotations

from typing import Any

import numpy as np

from rnncore.nonlinearity.nonlinearity import as_nonlinearity
from rnncore.testing.check import FLOAT32, FLOAT64, check
from rnncore.testing.tools.case import BATCH, STEPS, WIDTH, Case, methods_asked
from rnncore.testing.tools.subject import Subject

SATURATED = (50.0, 1e4, 1e30)


@check(
    "RC-NUM-001", "saturation at |z| of 50, 1e4, 1e30 and infinity: tanh is 1, the logistic 0 or 1", tolerance="states"
)
def saturation(s: Subject) -> None:
    for name in ("tanh", "sigmoid", "softsign", "hard_sigmoid"):
        f = as_nonlinearity(name)
        for size in (*SATURATED, np.inf):
            p = np.full((2, 1, 2), size) * np.asarray([1.0, -1.0])
            if name == "softsign" and np.isinf(size):
                continue  # inf / (1 + inf) is NaN
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


@check("RC-NUM-003", "relu overflows to infinity and then to NaN exactly where the reference does")
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
    for t in range(STEPS):  # elementwise, so that 0 * inf is NaN as in a matrix product
        h = np.maximum((p[t, 0] + (w.astype(kind) * h.astype(kind)).sum(axis=1)).astype(kind), 0)
        want[t, 0] = h
    s.compare("h", got, want, tolerance="gradients")


@check("RC-NUM-004", "NaN in one row of the batch stays in that row, from its step on", tolerance="exact")
def nan_stays_in_its_row(s: Subject) -> None:
    for name in ("tanh", "relu", "sigmoid"):
        case = Case.make(s, layers=2, name=name)
        clean = case.numbers()
        case.x[3, 1, 0] = np.nan
        found = case.numbers()
        for what in ("output", "dL/dx", "h_n"):
            for row in (0, 2):
                s.compare(f"{what} of row {row} ({name})", found[what][:, row], clean[what][:, row])
        s.compare(f"output before the NaN ({name})", found["output"][:3, 1], clean["output"][:3, 1])
        s.expect(np.isnan(found["output"][3:, 1]).all(), f"output after the NaN ({name}): expected NaN in every unit")


@check("RC-NUM-005", "no function, clip or derivative turns NaN into a number")
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


@check("RC-NUM-007", "numbers of 1e-30 pass through a linear network without losing digits", tolerance="gradients")
def small_numbers(s: Subject) -> None:
    case = Case.make(s, name="identity", bias=False)
    case.h0 = [np.zeros(h.shape) for h in case.h0]
    case.x *= 2.0**-100
    s.compare("output", case.model()(case.give(case.x))[0], case.truth().output)


@check("RC-NUM-008", "float64 keeps all its digits through the whole call", dtypes=FLOAT64, tolerance="states")
def no_detour_through_float32(s: Subject) -> None:
    case = Case.make(s, layers=2, bidirectional=True)
    case.x = case.x + 1e-12 * s.rng.standard_normal(case.x.shape)  # digits that float32 lacks
    case.params = {k: v + 1e-12 * s.rng.standard_normal(v.shape) for k, v in case.params.items()}
    case.check_gradients()


@check(
    "RC-NUM-009", "products keep all digits of their inputs, or TF32's if `precision` says so", tolerance="gradients"
)
def products_keep_digits(s: Subject) -> None:
    def full(*shape: int) -> Any:  # with all digits of the dtype, unlike `draw`
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


@check("RC-NUM-010", "the linear scan overflows to infinity, and keeps NaN in its row from its step on")
def linear_overflow(s: Subject) -> None:
    top, engine = float(s.xp.finfo(s.dtype).max), s.engine()
    one, m = np.ones((STEPS, BATCH, 2)), np.asarray([[8.0, 0.0], [0.0, 0.5]])
    u, s0 = np.zeros(one.shape), np.full((BATCH, 2), top / 100)
    u[2, 1, 1] = np.nan
    with s.scope():
        got = engine.linear(s.give(u), s.give(one), s.give(s0), s.give(m), reverse=False)
    want, kind, state = np.empty(u.shape), np.dtype(s.dtype_name), s0
    for t in range(STEPS):  # elementwise, so that 0 * inf is NaN as in a matrix product
        state = (u[t] + (state.astype(kind)[:, :, None] * m.astype(kind)).sum(axis=1)).astype(kind)
        want[t] = state
    s.expect(
        np.isinf(want).any() and np.isfinite(want[:2]).all(),
        "the expected values do not overflow, so the check is void",
    )
    s.compare("s", got, want, tolerance="gradients")


@check("RC-NUM-011", "products use the namespace, not operators", needs=("watchable",), dtypes=FLOAT32)
def products_have_a_precision(s: Subject) -> None:
    found = methods_asked(s, "__matmul__", "__rmatmul__", "__imatmul__")
    s.expect(not found, f"products by operators: {', '.join(found)}")
