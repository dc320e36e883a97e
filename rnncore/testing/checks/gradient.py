"""GRAD: reverse mode. JVP: forward mode. DIFF: both against central differences of the backend's own forward pass."""

from __future__ import annotations

import numpy as np

from rnncore.network.results import Gradients
from rnncore.testing.check import FLOAT64, check
from rnncore.testing.tools.case import LENGTHS, LONG, STEPS, WIDTH, Case
from rnncore.testing.tools.oracle import FUNCTIONS
from rnncore.testing.tools.subject import Subject
from rnncore.typing import Host

# Central differences are most accurate for h ~ eps**(1/3), where truncation h^2 balances rounding eps / h.
STEP = 6e-6


@check("RC-GRAD-001", "one layer: the gradient of every parameter, of x and of h0")
def one_layer(s: Subject) -> None:
    Case.make(s).check_gradients()


@check("RC-GRAD-002", "three layers: the gradient from the layer above reaches every layer below")
def three_layers(s: Subject) -> None:
    Case.make(s, layers=3).check_gradients()


@check("RC-GRAD-003", "two directions")
def two_directions(s: Subject) -> None:
    Case.make(s, bidirectional=True).check_gradients()


@check("RC-GRAD-004", "two layers of two directions: the lower one receives gradients from both directions")
def a_bidirectional_stack(s: Subject) -> None:
    Case.make(s, layers=2, bidirectional=True).check_gradients()


@check("RC-GRAD-005", "layers of different widths", once=True)
def several_widths(s: Subject) -> None:
    Case.make(s, hidden=(5, 3), bidirectional=True).check_gradients()


@check("RC-GRAD-006", "without biases", once=True)
def without_bias(s: Subject) -> None:
    Case.make(s, layers=2, bias=False).check_gradients()


@check("RC-GRAD-007", "batch-first and unbatched", once=True)
def layouts(s: Subject) -> None:
    Case.make(s, layers=2, batch_first=True).check_gradients()
    Case.make(s, layers=2, bidirectional=True, batched=False).check_gradients()


@check("RC-GRAD-008", "each named function, by its derivative from h or from z")
def named_functions(s: Subject) -> None:
    for name in FUNCTIONS:
        Case.make(s, name=name, bidirectional=True).check_gradients()


@check("RC-GRAD-009", "the derivative is 0 where the pre-activation is clipped", once=True)
def clipped(s: Subject) -> None:
    for name in ("tanh", "relu"):
        Case.make(s, layers=2, name=name, clip=0.5, bidirectional=True).check_gradients()


@check("RC-GRAD-010", "the cotangent of output alone, and of h_n alone")
def one_cotangent(s: Subject) -> None:
    Case.make(s, layers=2, bidirectional=True).check_gradients(h_n=False)
    Case.make(s, layers=2, bidirectional=True).check_gradients(output=False)


@check("RC-GRAD-011", "the gradient of h0 is returned, whether or not h0 was given", tolerance="gradients")
def initial_state(s: Subject) -> None:
    case = Case.make(s, layers=2, bidirectional=True)
    case.h0 = [np.zeros(h.shape) for h in case.h0]
    pullback = case.model().vjp(case.give(case.x))[2]
    grads = pullback(*case.cotangents())
    want = np.concatenate(case.truth().h0)
    s.expect(np.abs(want).min() > 0, "the expected gradient has a zero, so the check is void")
    s.compare("dL/dh0", grads.h0, want)


@check("RC-GRAD-012", "sequences of different lengths, one of them 0")
def several_lengths(s: Subject) -> None:
    Case.make(s, layers=2, lengths=LENGTHS).check_gradients()
    Case.make(s, layers=2, bidirectional=True, lengths=LENGTHS).check_gradients()


@check("RC-GRAD-013", "with truncation no gradient crosses a multiple of K, forwards or in reverse")
def truncated(s: Subject) -> None:
    Case.make(s, layers=2).check_gradients(truncate=3)
    Case.make(s, bidirectional=True).check_gradients(truncate=3)


@check("RC-GRAD-014", "checkpointing does not change gradients", once=True)
def checkpointed(s: Subject) -> None:
    Case.make(s, layers=2).check_gradients(checkpoint=3)
    Case.make(s, layers=2, lengths=LENGTHS).check_gradients(checkpoint=3, truncate=2)
    Case.make(s, layers=2, bidirectional=True).check_gradients(checkpoint=True)


@check("RC-GRAD-015", "dropout uses the masks of the forward pass", once=True)
def through_dropout(s: Subject) -> None:
    case = Case.make(s, layers=2, dropout=0.5)
    mask = (np.random.default_rng(7).random((STEPS, 3, WIDTH)) < 0.5) / 0.5
    case.check_gradients(masks=[mask], rng=7)


@check("RC-GRAD-016", "over 100 steps", tolerance="gradients")
def long_sequences(s: Subject) -> None:
    Case.make(s, steps=LONG).check_gradients()


@check("RC-GRAD-017", "a pullback can be called again, with other cotangents or none", tolerance="exact", once=True)
def pullbacks_are_pure(s: Subject) -> None:
    case = Case.make(s, layers=2)
    pullback = case.model().vjp(*case.inputs())[2]
    first = pullback(*case.cotangents())
    nothing = pullback()
    again = pullback(*case.cotangents())
    s.same("dL/dx, the second time", again.x, first.x)
    s.compare("dL/dx without a cotangent", nothing.x, np.zeros(case.x.shape))


# --- forward mode -----------------------------------------------------------------------------------------------------


@check("RC-JVP-001", "one layer: the tangents of output and h_n")
def tangents_of_one_layer(s: Subject) -> None:
    Case.make(s).check_tangents()


@check("RC-JVP-002", "a stack of two directions")
def tangents_of_a_stack(s: Subject) -> None:
    Case.make(s, layers=2, bidirectional=True).check_tangents()


@check("RC-JVP-003", "sequences of different lengths")
def tangents_of_several_lengths(s: Subject) -> None:
    Case.make(s, layers=2, bidirectional=True, lengths=LENGTHS).check_tangents()


@check("RC-JVP-004", "functions whose derivative needs z, clipping, different widths, no bias", once=True)
def tangents_of_the_rest(s: Subject) -> None:
    Case.make(s, name="relu").check_tangents()
    Case.make(s, clip=0.5).check_tangents()
    Case.make(s, hidden=(5, 3), bias=False).check_tangents()


@check("RC-JVP-005", "forward and reverse mode are adjoint: <d, J t> = <J^T d, t>")
def modes_are_adjoint(s: Subject) -> None:
    case = Case.make(s, layers=2, bidirectional=True, lengths=LENGTHS)
    model, (x, h0) = case.model(), case.inputs()
    dots = {k: s.draw(*v.shape) for k, v in case.params.items()}
    x_dot = s.draw(*case.x.shape)
    *_, tangents = model.jvp(x, h0, LENGTHS, x_dot=s.give(x_dot), params_dot={k: s.give(v) for k, v in dots.items()})
    grads = model.vjp(x, h0, LENGTHS)[2](*case.cotangents())
    left = [s.host(tangents.output) * case.d_output, s.host(tangents.h_n) * np.concatenate(case.d_h_n)]
    right = [s.host(grads.x) * x_dot, *(s.host(grads.params[k]) * v for k, v in dots.items())]
    # Relative to the sum of magnitudes, which bounds the rounding of both sums.
    size = sum(float(np.abs(a).sum()) for a in right)
    difference = sum(float(a.sum()) for a in left) - sum(float(a.sum()) for a in right)
    s.compare("<d, J t> - <J^T d, t>", np.asarray(difference), np.asarray(0.0), tolerance="gradients", floor=size)


# --- central differences ----------------------------------------------------------------------------------------------


@check(
    "RC-DIFF-001",
    "reverse mode is the derivative of the backend's forward pass",
    tolerance="difference",
    dtypes=FLOAT64,
)
def reverse_mode_is_the_derivative(s: Subject) -> None:
    for name, lengths in (("tanh", None), ("softplus", LENGTHS)):
        case = Case.make(s, layers=2, bidirectional=True, name=name, lengths=lengths)
        _against_differences(s, case, case.model().vjp(*case.inputs(), lengths)[2](*case.cotangents()))


@check(
    "RC-DIFF-002",
    "forward mode is the derivative of the backend's forward pass",
    tolerance="difference",
    dtypes=FLOAT64,
)
def forward_mode_is_the_derivative(s: Subject) -> None:
    case = Case.make(s, layers=2, bidirectional=True)
    x_dot = s.draw(*case.x.shape)
    got = case.model().jvp(*case.inputs(), x_dot=case.give(x_dot))[2].output

    def output(e: float) -> Host:
        return s.host(case.model()(case.give(case.x + e * x_dot), case.give_state(case.h0))[0])

    s.compare("tangent of output", got, (output(STEP) - output(-STEP)) / (2 * STEP))


def _against_differences(s: Subject, case: Case, grads: Gradients) -> None:
    directions = [{k: s.draw(*v.shape) for k, v in case.params.items()} for _ in range(3)]
    for k, dots in enumerate(directions):
        x_dot = s.draw(*case.x.shape)

        def loss(e: float, dots: dict[str, Host] = dots, x_dot: Host = x_dot) -> float:
            model = s.rnn(case.spec, {n: v + e * dots[n] for n, v in case.params.items()})
            output, h_n = model(case.give(case.x + e * x_dot), case.give_state(case.h0), case.lengths)
            total = (s.host(output) * case.d_output).sum() + (s.host(h_n) * np.concatenate(case.d_h_n)).sum()
            return float(total)

        want = (loss(STEP) - loss(-STEP)) / (2 * STEP)
        got = float((s.host(grads.x) * x_dot).sum() + sum((s.host(grads.params[n]) * v).sum() for n, v in dots.items()))
        s.compare(f"directional derivative {k}", np.asarray(got), np.asarray(want), floor=1.0)
