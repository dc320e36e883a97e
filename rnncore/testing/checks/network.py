"""FWD: the forward pass of a whole network, one option at a time."""

from __future__ import annotations

import numpy as np

from rnncore import functional
from rnncore.backend.registry import use_backend
from rnncore.errors import ShapeError
from rnncore.testing.check import FLOAT32, check
from rnncore.testing.tools.case import BATCH, INPUT, LENGTHS, STEPS, WIDTH, Case
from rnncore.testing.tools.oracle import FUNCTIONS
from rnncore.testing.tools.subject import Subject


@check("RC-FWD-001", "one layer: output and h_n")
def one_layer(s: Subject) -> None:
    Case.make(s).check_forward()


@check("RC-FWD-002", "three layers: each reads the layer below")
def three_layers(s: Subject) -> None:
    Case.make(s, layers=3).check_forward()


@check("RC-FWD-003", "two directions: the output holds the forward half, then the reverse half")
def two_directions(s: Subject) -> None:
    Case.make(s, bidirectional=True).check_forward()


@check("RC-FWD-004", "three layers of two directions: the order of h_n, and each layer reads both halves")
def a_bidirectional_stack(s: Subject) -> None:
    Case.make(s, layers=3, bidirectional=True).check_forward()


@check("RC-FWD-005", "layers of different widths", once=True)
def several_widths(s: Subject) -> None:
    Case.make(s, hidden=(5, 3, 4)).check_forward()
    Case.make(s, hidden=(5, 3), bidirectional=True).check_forward()


@check("RC-FWD-006", "without biases", once=True)
def without_bias(s: Subject) -> None:
    Case.make(s, layers=2, bias=False).check_forward()


@check("RC-FWD-007", "each of the two biases changes the result")
def both_biases(s: Subject) -> None:
    for gone in ("bias_ih_l0", "bias_hh_l0"):
        case = Case.make(s)
        case.params[gone] = np.zeros(WIDTH)
        case.check_forward()


@check("RC-FWD-008", "batch-first input and output, while h0 and h_n never are", once=True)
def batch_first(s: Subject) -> None:
    Case.make(s, layers=2, bidirectional=True, batch_first=True).check_forward()


@check("RC-FWD-009", "unbatched input", once=True)
def unbatched(s: Subject) -> None:
    Case.make(s, layers=2, bidirectional=True, batched=False).check_forward()


@check("RC-FWD-010", "each named function in a network")
def named_functions(s: Subject) -> None:
    for name in FUNCTIONS:
        Case.make(s, name=name, bidirectional=True).check_forward()


@check("RC-FWD-011", "the pre-activation is clipped to [-clip, clip]", once=True)
def clipped(s: Subject) -> None:
    for name in ("tanh", "relu", "softplus"):
        Case.make(s, layers=2, name=name, clip=0.5, bidirectional=True).check_forward()


@check("RC-FWD-012", "without h0 the network starts from zero")
def zero_state(s: Subject) -> None:
    case = Case.make(s, layers=2)
    case.h0 = [np.zeros(h.shape) for h in case.h0]
    s.compare("output", case.model()(case.give(case.x))[0], case.truth().output, tolerance="states")


@check("RC-FWD-013", "a trace holds every state and pre-activation, and what the call returns")
def traces(s: Subject) -> None:
    for lengths in (None, LENGTHS):
        case = Case.make(s, layers=2, bidirectional=True, lengths=lengths)
        trace = case.model().trace(*case.inputs(), lengths)
        want = case.truth()
        for k in range(2):
            s.compare(f"h of layer {k}", trace.h[k], np.stack(want.h[k]), tolerance="states")
            s.compare(f"z of layer {k}", trace.z[k], np.stack(want.z[k]), tolerance="gradients")
        s.compare("output", trace.output, want.output, tolerance="states")


@check("RC-FWD-014", "an empty batch gives empty results and gradients of 0", tolerance="exact", once=True)
def an_empty_batch(s: Subject) -> None:
    for lengths in (None, ()):
        case = Case.make(s, layers=2, bidirectional=True, batch=0, lengths=lengths)
        case.check_forward()
        for name, value in case.results().items():
            if name.startswith(("dL/dweight", "dL/dbias")):
                s.compare(name, value, np.zeros(tuple(value.shape)))


@check("RC-FWD-015", "zero steps and wrong shapes are errors", dtypes=FLOAT32)
def bad_shapes(s: Subject) -> None:
    case = Case.make(s)
    model = case.model()
    for shape in ((0, BATCH, INPUT), (STEPS, BATCH, INPUT + 1), (STEPS,), (1, STEPS, BATCH, INPUT)):
        s.raises(ShapeError, f"an input of shape {shape}", lambda n=shape: model(s.give(np.zeros(n))))  # type: ignore[misc]
    s.raises(
        ShapeError, "h0 of another batch", lambda: model(case.give(case.x), s.give(np.zeros((1, BATCH + 1, WIDTH))))
    )


@check("RC-FWD-016", "dropout acts between layers, only in training, with the same masks on every backend", once=True)
def dropout(s: Subject) -> None:
    case = Case.make(s, layers=2, dropout=0.5)
    model, (x, h0) = case.model(), case.inputs()
    s.compare("output in evaluation", model(x, h0)[0], case.truth().output, tolerance="states")
    mask = (np.random.default_rng(11).random((STEPS, BATCH, WIDTH)) < 0.5) / 0.5
    got = model(x, h0, training=True, rng=11)[0]
    s.compare("output in training", got, case.truth(masks=[mask]).output, tolerance="states")


@check("RC-FWD-017", "dropout=1.0 passes zeros to the next layer, never NaN", once=True)
def dropout_of_everything(s: Subject) -> None:
    case = Case.make(s, layers=2, dropout=1.0)
    mask = np.zeros((STEPS, BATCH, WIDTH))
    got = case.model()(*case.inputs(), training=True, rng=0)[0]
    s.compare("output", got, case.truth(masks=[mask]).output, tolerance="states")


@check("RC-FWD-018", "rnncore.functional gives the same numbers as the model", needs=("registered",))
def functional_agrees(s: Subject) -> None:
    case = Case.make(s, layers=2, bidirectional=True, lengths=LENGTHS)
    model = case.model(kernel="auto")
    x, h0 = case.inputs()
    with use_backend(s.backend.name):
        output, h_n = functional.rnn(x, model.state_dict(), h0, lengths=LENGTHS)
    want = model(x, h0, LENGTHS)
    s.same("output", output, want[0])
    s.same("h_n", h_n, want[1])
