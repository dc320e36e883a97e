"""FWD: the whole network forward, one configuration axis at a time; LEN: sequences of several lengths; CELL, OPT, IO."""

from __future__ import annotations

import os
import pickle
import tempfile
from typing import Any

import numpy as np

from rnncore import functional, optim
from rnncore import model as models
from rnncore.backend import Backend
from rnncore.errors import ArgumentValueError, ShapeError
from rnncore.registry import use_backend
from rnncore.testing.case import BATCH, INPUT, LENGTHS, STEPS, WIDTH, Case
from rnncore.testing.check import check
from rnncore.testing.oracle import FUNCTIONS
from rnncore.testing.subject import Subject


@check("RC-FWD-001", "one layer: output and h_n")
def one_layer(s: Subject) -> None:
    Case.make(s).check_forward()


@check("RC-FWD-002", "three layers: each reads the one below")
def three_layers(s: Subject) -> None:
    Case.make(s, layers=3).check_forward()


@check("RC-FWD-003", "two directions: the reverse half of the output stands beside the forward one")
def two_directions(s: Subject) -> None:
    Case.make(s, bidirectional=True).check_forward()


@check("RC-FWD-004", "three layers of two directions: the order of h_n, and both halves are read")
def a_bidirectional_stack(s: Subject) -> None:
    Case.make(s, layers=3, bidirectional=True).check_forward()


@check("RC-FWD-005", "layers of several widths", once=True)
def several_widths(s: Subject) -> None:
    Case.make(s, hidden=(5, 3, 4)).check_forward()
    Case.make(s, hidden=(5, 3), bidirectional=True).check_forward()


@check("RC-FWD-006", "without biases", once=True)
def without_bias(s: Subject) -> None:
    Case.make(s, layers=2, bias=False).check_forward()


@check("RC-FWD-007", "both biases count: each of them moves the result")
def both_biases(s: Subject) -> None:
    for gone in ("bias_ih_l0", "bias_hh_l0"):
        case = Case.make(s)
        case.params[gone] = np.zeros(WIDTH)
        case.check_forward()


@check("RC-FWD-008", "batch-first input and output; h0 and h_n never are", once=True)
def batch_first(s: Subject) -> None:
    Case.make(s, layers=2, bidirectional=True, batch_first=True).check_forward()


@check("RC-FWD-009", "unbatched input", once=True)
def unbatched(s: Subject) -> None:
    Case.make(s, layers=2, bidirectional=True, batched=False).check_forward()


@check("RC-FWD-010", "each of the named functions in a network")
def named_functions(s: Subject) -> None:
    for name in FUNCTIONS:
        Case.make(s, name=name, bidirectional=True).check_forward()


@check("RC-FWD-011", "the pre-activation is limited to [-clip, clip]", once=True)
def clipped(s: Subject) -> None:
    for name in ("tanh", "relu", "softplus"):
        Case.make(s, layers=2, name=name, clip=0.5, bidirectional=True).check_forward()


@check("RC-FWD-012", "without h0 the network begins from zero")
def zero_state(s: Subject) -> None:
    case = Case.make(s, layers=2)
    case.h0 = [np.zeros(h.shape) for h in case.h0]
    s.compare("output", case.model()(case.give(case.x))[0], case.truth().output, tolerance="states")


@check("RC-FWD-013", "a trace has every state and every pre-activation, and what the call returns")
def traces(s: Subject) -> None:
    for lengths in (None, LENGTHS):
        case = Case.make(s, layers=2, bidirectional=True, lengths=lengths)
        trace = case.model().trace(case.give(case.x), case.give_state(case.h0), lengths)
        want = case.truth()
        for k in range(2):
            s.compare(f"h of layer {k}", trace.h[k], np.stack(want.h[k]), tolerance="states")
            s.compare(f"z of layer {k}", trace.z[k], np.stack(want.z[k]), tolerance="gradients")
        s.compare("output", trace.output, want.output, tolerance="states")


@check(
    "RC-FWD-014",
    "an empty batch gives empty results in the right shape, and gradients that are 0",
    tolerance="exact",
    once=True,
)
def an_empty_batch(s: Subject) -> None:
    for lengths in (None, ()):
        case = Case.make(s, layers=2, bidirectional=True, batch=0, lengths=lengths)
        case.check_forward()
        for name, value in case.results().items():
            if name.startswith(("dL/dweight", "dL/dbias")):
                s.compare(name, value, np.zeros(tuple(value.shape)))


@check("RC-FWD-015", "no steps are an error, and so are shapes that do not fit", dtypes=("float32",))
def bad_shapes(s: Subject) -> None:
    case = Case.make(s)
    model = case.model()
    for shape in ((0, BATCH, INPUT), (STEPS, BATCH, INPUT + 1), (STEPS,), (1, STEPS, BATCH, INPUT)):
        s.raises(ShapeError, f"an input of shape {shape}", lambda n=shape: model(s.give(np.zeros(n))))  # type: ignore[misc]
    s.raises(
        ShapeError, "h0 of another batch", lambda: model(case.give(case.x), s.give(np.zeros((1, BATCH + 1, WIDTH))))
    )


@check("RC-FWD-016", "dropout: between layers, in training only, by masks that every backend draws alike", once=True)
def dropout(s: Subject) -> None:
    case = Case.make(s, layers=2, dropout=0.5)
    model, x, h0 = case.model(), case.give(case.x), case.give_state(case.h0)
    s.compare("output in evaluation", model(x, h0)[0], case.truth().output, tolerance="states")
    mask = (np.random.default_rng(11).random((STEPS, BATCH, WIDTH)) < 0.5) / 0.5
    got = model(x, h0, training=True, rng=11)[0]
    s.compare("output in training", got, case.truth(masks=[mask]).output, tolerance="states")


@check("RC-FWD-017", "dropout of everything leaves zeros to the next layer, never NaN", once=True)
def dropout_of_everything(s: Subject) -> None:
    case = Case.make(s, layers=2, dropout=1.0)
    mask = np.zeros((STEPS, BATCH, WIDTH))
    got = case.model()(case.give(case.x), case.give_state(case.h0), training=True, rng=0)[0]
    s.compare("output", got, case.truth(masks=[mask]).output, tolerance="states")


@check("RC-FWD-018", "the functions in rnncore.functional give the model's numbers", needs=("registered",))
def functional_agrees(s: Subject) -> None:
    case = Case.make(s, layers=2, bidirectional=True, lengths=LENGTHS)
    model = case.model(kernel="auto")
    x, h0 = case.give(case.x), case.give_state(case.h0)
    with use_backend(s.backend.name):
        output, h_n = functional.rnn(x, model.state_dict(), h0, lengths=LENGTHS)
    want = model(x, h0, LENGTHS)
    s.same("output", output, want[0])
    s.same("h_n", h_n, want[1])


# --- lengths ----------------------------------------------------------------------------------------------------------


@check(
    "RC-LEN-001", "sequences of several lengths, one of them 0: outputs past the end are 0, h_n is the last valid state"
)
def several_lengths(s: Subject) -> None:
    Case.make(s, layers=2, lengths=LENGTHS).check_forward()


@check("RC-LEN-002", "the reverse direction starts at each sequence's own end", once=True)
def reverse_starts_at_the_end(s: Subject) -> None:
    Case.make(s, bidirectional=True, lengths=LENGTHS).check_forward()
    Case.make(s, layers=2, bidirectional=True, lengths=(1, 6, 3)).check_forward()


@check(
    "RC-LEN-003",
    "padding is never read: NaN, infinity and huge numbers in it change no bit",
    tolerance="exact",
    once=True,
)
def padding_is_never_read(s: Subject) -> None:
    case = Case.make(s, layers=2, bidirectional=True, name="relu", lengths=LENGTHS)
    clean = {k: s.host(v) for k, v in case.results().items()}
    padding = np.arange(STEPS)[:, None] >= np.asarray(LENGTHS)
    for garbage in (np.nan, np.inf, -np.inf, 1e30):
        case.x[padding] = garbage
        case.d_output[padding] = garbage
        for name, value in case.results().items():
            s.compare(f"{name} with {garbage} in the padding", value, clean[name])


@check("RC-LEN-004", "outputs and gradients in the padding are exactly 0", tolerance="exact", once=True)
def padding_gets_nothing(s: Subject) -> None:
    case = Case.make(s, layers=2, bidirectional=True, lengths=LENGTHS)
    found = case.results()
    padding = np.arange(STEPS)[:, None] >= np.asarray(LENGTHS)
    for name in ("output", "dL/dx"):
        rows = s.host(found[name])[padding]
        s.compare(f"{name} in the padding", rows, np.zeros(rows.shape))


@check("RC-LEN-005", "a relu network that would overflow in the padding does not", tolerance="exact", once=True)
def nothing_explodes_in_the_padding(s: Subject) -> None:
    huge = 1e10 if s.dtype_name == "float32" else 1e40  # its square is a number of the dtype, its tenth power is not
    short, steps = (2, 0, 1), 2 * STEPS
    case = Case.make(s, name="relu", bidirectional=True, steps=steps, lengths=short)
    for key in ("weight_hh_l0", "weight_hh_l0_reverse"):
        case.params[key] = huge * np.eye(WIDTH)
    whole = {k: s.host(v) for k, v in case.results().items()}
    case.x, case.d_output = case.x[:STEPS], case.d_output[:STEPS]
    for name, value in case.results().items():
        got = whole[name][:STEPS] if name in ("output", "dL/dx") else whole[name]
        s.compare(name, got, s.host(value), tolerance="gradients")
        s.expect(np.isfinite(got).all(), f"{name}: expected finite numbers, got {got.ravel()[:4]}")


@check(
    "RC-LEN-006", "a row without steps hands h0 to h_n and the cotangent of h_n to h0's", tolerance="exact", once=True
)
def rows_without_steps(s: Subject) -> None:
    case = Case.make(s, layers=2, bidirectional=True, lengths=LENGTHS)
    found = case.results()
    h0, d_h_n = np.concatenate(case.h0), np.concatenate(case.d_h_n)
    s.compare("h_n of the empty row", s.host(found["h_n"])[:, 1], h0[:, 1])
    s.compare("dL/dh0 of the empty row", s.host(found["dL/dh0"])[:, 1], d_h_n[:, 1])


@check("RC-LEN-007", "each sequence is as if it were alone", once=True)
def each_sequence_alone(s: Subject) -> None:
    case = Case.make(s, layers=2, bidirectional=True, lengths=LENGTHS)
    model = case.model()
    output = s.host(model(case.give(case.x), case.give_state(case.h0), LENGTHS)[0])
    for b, end in enumerate(LENGTHS):
        if end:
            x, h0 = s.give(case.x[:end, b : b + 1]), s.give(np.concatenate(case.h0)[:, b : b + 1])
            s.compare(f"row {b}", output[:end, b : b + 1], s.host(model(x, h0)[0]), tolerance="states")


@check("RC-LEN-008", "full lengths are the same as none", tolerance="exact", once=True)
def full_lengths(s: Subject) -> None:
    case = Case.make(s, layers=2, bidirectional=True)
    want = {k: s.host(v) for k, v in case.results().items()}
    case.lengths = [STEPS] * BATCH
    for name, value in case.results().items():
        s.compare(name, value, want[name])


@check("RC-LEN-009", "a length outside [0, T] is an error that names its index and value", dtypes=("float32",))
def bad_lengths(s: Subject) -> None:
    case = Case.make(s)
    model, x = case.model(), case.give(case.x)
    for bad in (STEPS + 1, -1):
        error = s.raises(ArgumentValueError, f"a length of {bad}", lambda n=bad: model(x, None, [STEPS, n, 2]))  # type: ignore[misc]
        s.expect("lengths[1]" in str(error) and str(bad) in str(error), f"the error names neither: {error}")


# --- cells, optimisers, files -----------------------------------------------------------------------------------------


@check("RC-CELL-001", "a network stepped by its cell gives the network's numbers", tolerance="states")
def cells_step(s: Subject) -> None:
    case = Case.make(s)
    model = case.model()
    want = case.truth().output
    cell, h = model.cell(), s.give(case.h0[0][0])
    for t in range(STEPS):
        h = cell(s.give(case.x[t]), h)
        s.compare(f"h at step {t}", h, want[t])


@check("RC-CELL-002", "a cell's pullback is the network's over one step", once=True)
def cells_pull_back(s: Subject) -> None:
    case = Case.make(s, steps=1)
    want = case.truth(d_h_n=None)
    _, pullback = case.model().cell().vjp(s.give(case.x[0]), s.give(case.h0[0][0]))
    grads = pullback(s.give(case.d_output[0]))
    s.compare("dL/dx", grads.x, want.x[0], tolerance="gradients")
    s.compare("dL/dh", grads.h, want.h0[0][0], tolerance="gradients")
    for key, value in want.params.items():
        s.compare(f"dL/d{key}", grads.params[key], value, tolerance="gradients")


@check(
    "RC-CELL-003",
    "a sequence fed in pieces with the carried state gives the numbers of the whole",
    tolerance="states",
    once=True,
)
def pieces_of_a_sequence(s: Subject) -> None:
    case = Case.make(s, layers=2)
    model, state, start = case.model(), case.give_state(case.h0), 0
    want = case.truth()
    for n in (3, 1, 2):
        output, state = model(case.give(case.x[start : start + n]), state)
        s.compare(f"output from step {start}", output, want.output[start : start + n])
        start += n
    s.compare("h_n", state, np.concatenate(want.h_n))


@check(
    "RC-OPT-001", "clipping by the norm is right where squares overflow and where they vanish", needs=("registered",)
)
def clips_norms(s: Subject) -> None:
    for scale in (1.0, 1e30, 1e-30):
        grads = {"a": s.give(np.asarray([3.0, 0.0]) * scale), "b": s.give(np.asarray([[4.0]]) * scale)}
        clipped, norm = optim.clip_grad_norm(grads, scale)
        s.compare(f"norm at {scale:g}", np.asarray(norm / scale), np.asarray(5.0), tolerance="gradients")
        s.compare(f"clipped at {scale:g}", s.host(clipped["a"]) / scale, np.asarray([0.6, 0.0]), tolerance="gradients")


@check(
    "RC-OPT-002", "three steps of Adam and of SGD with momentum follow their formulas", needs=("registered",), once=True
)
def optimisers_step(s: Subject) -> None:
    start, g = s.draw(3, 4), s.draw(3, 4)
    adam, sgd = optim.Adam(0.25), optim.SGD(0.25, momentum=0.5)
    p, q = {"w": s.give(start)}, {"w": s.give(start)}
    want_p, want_q, buffer = start.copy(), start.copy(), np.zeros(start.shape)
    m, v = np.zeros(start.shape), np.zeros(start.shape)
    for t in range(1, 4):
        p, q = adam.step(p, {"w": s.give(g)}), sgd.step(q, {"w": s.give(g)})
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
        want_p -= 0.25 * (m / (1 - 0.9**t)) / (np.sqrt(v / (1 - 0.999**t)) + 1e-8)
        buffer = 0.5 * buffer + g
        want_q -= 0.25 * buffer
    s.compare("Adam", p["w"], want_p, tolerance="gradients")
    s.compare("SGD", q["w"], want_q, tolerance="gradients")


@check("RC-IO-001", "state_dict, to('numpy') and a file keep every weight bit for bit", tolerance="exact")
def weights_travel(s: Subject) -> None:
    case = Case.make(s, layers=2, bidirectional=True)
    model = case.model()
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "rnn.safetensors")
        model.save(path)
        loaded = models.load(path, backend="numpy")
    moved = model.to("numpy")
    for name, value in case.params.items():
        s.compare(f"state_dict {name}", model.state_dict()[name], value)
        s.compare(f"to('numpy') {name}", moved.params[name], value)
        s.compare(f"file {name}", loaded.params[name], value)


@check("RC-IO-002", "a model pickles by value and comes back on its backend and device", needs=("registered",))
def models_pickle(s: Subject) -> None:
    case = Case.make(s, layers=2)
    model = case.model()
    back = pickle.loads(pickle.dumps(model))
    s.expect(back.backend == s.backend.name, f"backend: expected {s.backend.name!r}, got {back.backend!r}")
    s.expect(back.device == s.device, f"device: expected {s.device}, got {back.device}")
    s.same("output", back(case.give(case.x))[0], model(case.give(case.x))[0])


@check("RC-IO-003", "numbers that fill the dtype move and are saved with every digit", tolerance="exact")
def digits_travel(s: Subject) -> None:
    case = Case.make(s)
    # What `draw` gives would survive a rounding to half precision on the way.
    full = {k: np.asarray(s.rng.standard_normal(v.shape), dtype=s.dtype_name) for k, v in case.params.items()}
    model = s.rnn(case.spec, full)
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "rnn.safetensors")
        model.save(path)
        loaded = models.load(path, backend="numpy")
    elsewhere, here = model.to("numpy"), model.to(s.backend, device=s.device)
    for name, value in full.items():
        want = value.astype("f8")
        s.compare(f"to('numpy') {name}", elsewhere.params[name], want)
        s.compare(f"to() {name}", here.params[name], want)
        s.compare(f"file {name}", loaded.params[name], want)


class _Listening:
    """A backend that remembers the least index that was sent to the device."""

    def __init__(self, backend: Backend) -> None:
        self._backend, self.least = backend, 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._backend, name)

    def asarray(self, x: Any, /, **where: Any) -> Any:
        if x.dtype.kind in "iu":
            self.least = min(self.least, int(x.min(initial=0)))
        return self._backend.asarray(x, **where)


@check(
    "RC-LEN-010",
    "indices made of lengths count from the front: for a negative one each library does something else",
    dtypes=("float32",),
)
def indices_count_from_the_front(s: Subject) -> None:
    case, backend = Case.make(s, layers=2, bidirectional=True, lengths=LENGTHS), _Listening(s.backend)
    model = case.model(backend=backend)
    case.results(model)
    model.jvp(case.give(case.x), case.give_state(case.h0), LENGTHS, x_dot=case.give(case.x))
    s.expect(backend.least >= 0, f"an index of {backend.least} was sent to the device")
