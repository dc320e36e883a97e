"""LEN: sequences of different lengths in a network; RAGGED: scans with a number of rows for each step.

Padding is never read, and is 0 in every result. RAGGED is checked on the reference in the backend's namespace, and on the
backend's own scans if they name the form.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from rnncore.backend.contract import Backend
from rnncore.errors import ArgumentValueError
from rnncore.nonlinearity.nonlinearity import as_nonlinearity
from rnncore.testing.check import FLOAT32, check
from rnncore.testing.tools import oracle
from rnncore.testing.tools.carry_case import FACTOR_SHAPES, FULL, CarryCase, carry_of, engines, what
from rnncore.testing.tools.case import BATCH, LENGTHS, STEPS, WIDTH, Case
from rnncore.testing.tools.subject import Subject
from rnncore.typing import Host

BOTH_WAYS = (False, True)
# Rows of 6, 4 and 0 steps, the longest first, and the number of rows that run at each step.
ENDS = (6, 4, 0)
ROWS = (2, 2, 2, 2, 1, 1)


@check("RC-LEN-001", "sequences of different lengths, one of them 0: outputs past the end, and h_n")
def several_lengths(s: Subject) -> None:
    Case.make(s, layers=2, lengths=LENGTHS).check_forward()


@check("RC-LEN-002", "the reverse direction starts at each sequence's own end", once=True)
def reverse_starts_at_the_end(s: Subject) -> None:
    Case.make(s, bidirectional=True, lengths=LENGTHS).check_forward()
    Case.make(s, layers=2, bidirectional=True, lengths=(1, 6, 3)).check_forward()


@check(
    "RC-LEN-003", "padding is never read: NaN, infinity and huge numbers change no bit", tolerance="exact", once=True
)
def padding_is_never_read(s: Subject) -> None:
    case = Case.make(s, layers=2, bidirectional=True, name="relu", lengths=LENGTHS)
    clean = case.numbers()
    padding = np.arange(STEPS)[:, None] >= np.asarray(LENGTHS)
    for garbage in (np.nan, np.inf, -np.inf, 1e30):
        case.x[padding] = garbage
        case.d_output[padding] = garbage
        s.compare_all(case.results(), clean, tolerance="exact", where=f" with {garbage} in the padding")


@check("RC-LEN-004", "outputs and gradients in the padding are exactly 0", tolerance="exact", once=True)
def padding_gets_nothing(s: Subject) -> None:
    case = Case.make(s, layers=2, bidirectional=True, lengths=LENGTHS)
    found = case.results()
    padding = np.arange(STEPS)[:, None] >= np.asarray(LENGTHS)
    for name in ("output", "dL/dx"):
        rows = s.host(found[name])[padding]
        s.compare(f"{name} in the padding", rows, np.zeros(rows.shape))


@check("RC-LEN-005", "a relu network does not overflow in the padding", tolerance="exact", once=True)
def nothing_explodes_in_the_padding(s: Subject) -> None:
    huge = 1e10 if s.dtype_name == "float32" else 1e40  # its square is finite in the dtype, its tenth power is not
    short, steps = (2, 0, 1), 2 * STEPS
    case = Case.make(s, name="relu", bidirectional=True, steps=steps, lengths=short)
    for key in ("weight_hh_l0", "weight_hh_l0_reverse"):
        case.params[key] = huge * np.eye(WIDTH)
    whole = case.numbers()
    case.x, case.d_output = case.x[:STEPS], case.d_output[:STEPS]
    for name, value in case.results().items():
        got = whole[name][:STEPS] if name in ("output", "dL/dx") else whole[name]
        s.compare(name, got, s.host(value), tolerance="gradients")
        s.expect(np.isfinite(got).all(), f"{name}: expected finite numbers, got {got.ravel()[:4]}")


@check("RC-LEN-006", "a row without steps passes h0 to h_n, and d_h_n to dL/dh0", tolerance="exact", once=True)
def rows_without_steps(s: Subject) -> None:
    case = Case.make(s, layers=2, bidirectional=True, lengths=LENGTHS)
    found = case.results()
    h0, d_h_n = np.concatenate(case.h0), np.concatenate(case.d_h_n)
    s.compare("h_n of the empty row", s.host(found["h_n"])[:, 1], h0[:, 1])
    s.compare("dL/dh0 of the empty row", s.host(found["dL/dh0"])[:, 1], d_h_n[:, 1])


@check("RC-LEN-007", "each sequence of a batch gives the same numbers as alone", once=True)
def each_sequence_alone(s: Subject) -> None:
    case = Case.make(s, layers=2, bidirectional=True, lengths=LENGTHS)
    model = case.model()
    output = s.host(model(*case.inputs(), LENGTHS)[0])
    for b, end in enumerate(LENGTHS):
        if end:
            x, h0 = s.give(case.x[:end, b : b + 1]), s.give(np.concatenate(case.h0)[:, b : b + 1])
            s.compare(f"row {b}", output[:end, b : b + 1], s.host(model(x, h0)[0]), tolerance="states")


@check("RC-LEN-008", "full lengths give the same numbers as no lengths", tolerance="exact", once=True)
def full_lengths(s: Subject) -> None:
    case = Case.make(s, layers=2, bidirectional=True)
    want = case.numbers()
    case.lengths = [STEPS] * BATCH
    s.compare_all(case.results(), want, tolerance="exact")


@check("RC-LEN-009", "a length outside [0, T] is an error with its index and value", dtypes=FLOAT32)
def bad_lengths(s: Subject) -> None:
    case = Case.make(s)
    model, x = case.model(), case.give(case.x)
    for bad in (STEPS + 1, -1):
        error = s.raises(ArgumentValueError, f"a length of {bad}", lambda n=bad: model(x, None, [STEPS, n, 2]))  # type: ignore[misc]
        s.expect("lengths[1]" in str(error) and str(bad) in str(error), f"the error does not name both: {error}")


class _Listening:
    """A backend that records the smallest index sent to the device."""

    def __init__(self, backend: Backend) -> None:
        self._backend, self.least = backend, 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._backend, name)

    def asarray(self, x: Any, /, **where: Any) -> Any:
        if x.dtype.kind in "iu":
            self.least = min(self.least, int(x.min(initial=0)))
        return self._backend.asarray(x, **where)


@check("RC-LEN-010", "indices computed from lengths are never negative", dtypes=FLOAT32)
def indices_count_from_the_front(s: Subject) -> None:
    case, backend = Case.make(s, layers=2, bidirectional=True, lengths=LENGTHS), _Listening(s.backend)
    model = case.model(backend=backend)
    case.results(model)
    model.jvp(*case.inputs(), LENGTHS, x_dot=case.give(case.x))
    s.expect(backend.least >= 0, f"an index of {backend.least} was sent to the device")


@check("RC-RAGGED-001", "with rows, each sequence stops at its end: padding is not read, and is 0 in the result")
def ragged_nonlinear(s: Subject) -> None:
    zero, one = np.zeros(FULL), np.ones(FULL)
    for bad in (0.0, np.nan):
        for reverse in BOTH_WAYS:
            p, h0, w = _padded(s, bad), s.draw(*FULL[1:]), s.weights(WIDTH)
            want = oracle.carry_scan(
                {"p": p, "h0": h0, "w": w, "a": zero, "g": one, "i": one}, "relu", reverse=reverse, ends=ENDS
            )
            for path, engine in engines(s, "ragged"):
                with s.scope():
                    f = as_nonlinearity("relu")
                    got = engine.nonlinear(s.give(p), s.give(h0), s.give(w), nonlinearity=f, reverse=reverse, rows=ROWS)
                s.compare(what(f"h with {bad} in the padding", path, reverse), got, want, tolerance="states")


@check("RC-RAGGED-002", "the linear scan with rows, which gives the gradient of p and the tangent of the states")
def ragged_linear(s: Subject) -> None:
    zero, one = np.zeros(FULL), np.ones(FULL)
    for bad in (0.0, np.nan):
        for reverse in BOTH_WAYS:
            u, d, h0, w = _padded(s, bad), _padded(s, bad), s.draw(*FULL[1:]), s.weights(WIDTH)
            want = oracle.linear_carry_scan(
                {"c": d * u, "o": d, "i": one, "a": zero, "x0": h0, "m": w}, reverse=reverse, ends=ENDS
            )
            for path, engine in engines(s, "ragged"):
                with s.scope():
                    got = engine.linear(s.give(u), s.give(d), s.give(h0), s.give(w), reverse=reverse, rows=ROWS)
                s.compare(what(f"s with {bad} in the padding", path, reverse), got, want, tolerance="gradients")


@check("RC-RAGGED-003", "with rows, the gradient of p and the tangent of h equal those of each sequence alone")
def ragged_derivatives(s: Subject) -> None:
    f = as_nonlinearity("tanh")
    for reverse in BOTH_WAYS:
        p, h0, w = _padded(s, 0.0), s.draw(*FULL[1:]), s.weights(WIDTH)
        d_h, p_dot, h0_dot = s.draw(*FULL), s.draw(*FULL), s.draw(*FULL[1:])
        d_p, h_dot = np.zeros(FULL), np.zeros(FULL)
        for b, end in enumerate(ENDS):
            row = (slice(0, end), slice(b, b + 1))
            zero, one = np.zeros((end, 1, WIDTH)), np.ones((end, 1, WIDTH))
            x = {"p": p[row], "h0": h0[b : b + 1], "w": w, "a": zero, "g": one, "i": one}
            t = {"p": p_dot[row], "h0": h0_dot[b : b + 1], "w": 0 * w, "a": zero, "g": zero, "i": zero}
            d_p[row] = oracle.carry_pullback(d_h[row], x, "tanh", reverse=reverse)["p"]
            h_dot[row] = oracle.carry_tangent(x, t, "tanh", reverse=reverse)
        for path, engine in engines(s, "ragged"):
            with s.scope():
                g0, gw = s.give(h0), s.give(w)
                h = engine.nonlinear(s.give(p), g0, gw, nonlinearity=f, reverse=reverse, rows=ROWS)
                d, none = f.derivative_from_h(h, xp=s.xp), s.xp.zeros_like(g0)
                back = engine.linear(s.give(d_h), d, none, gw, reverse=not reverse, rows=ROWS)
                ahead = engine.linear(
                    s.give(p_dot), d, s.give(h0_dot), s.xp.matrix_transpose(gw), reverse=reverse, rows=ROWS
                )  # fmt: skip
            s.compare(what("dp", path, reverse), back, d_p, tolerance="gradients")
            s.compare(what("tangent of h", path, reverse), ahead, h_dot, tolerance="gradients")


@check("RC-RAGGED-004", "rows and carry together, in both scans")
def ragged_with_carry(s: Subject) -> None:
    for factors in FACTOR_SHAPES:
        case = CarryCase(s, factors)
        f = as_nonlinearity("tanh")
        for reverse in BOTH_WAYS:
            states = oracle.carry_scan(case.full(), "tanh", reverse=reverse, ends=ENDS)
            want = oracle.linear_carry_scan(case.full_linear(), reverse=reverse, ends=ENDS)
            for path, engine in engines(s, "ragged", "carry"):
                x = case.given()
                with s.scope():
                    options: dict[str, Any] = {"reverse": reverse, "rows": ROWS}
                    h = engine.nonlinear(x["p"], x["h0"], x["w"], nonlinearity=f, carry=carry_of(x), **options)
                    got = engine.linear_carry(
                        x["p"], x.get("g"), x.get("i"), x.get("a"), x["h0"], x["w"], **options
                    )  # fmt: skip
                s.compare(what("h", path, reverse, factors), h, states, tolerance="states")
                s.compare(what("x", path, reverse, factors), got, want, tolerance="gradients")


def _padded(s: Subject, bad: float) -> Host:
    """Numbers for rows that end at ENDS, with `bad` in the padding."""
    return np.where(np.arange(STEPS)[:, None, None] < np.asarray(ENDS)[None, :, None], s.draw(*FULL), bad)
