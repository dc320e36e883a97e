"""CELL: cells and pieces of a sequence. OPT: optimisers. IO: weights moved, saved and pickled."""

from __future__ import annotations

import os
import pickle
import tempfile

import numpy as np

from rnncore import optim
from rnncore.arguments import describe
from rnncore.backend.abilities import ability
from rnncore.model.loading import load
from rnncore.model.rnn import RNN
from rnncore.testing.check import check
from rnncore.testing.tools.case import STEPS, Case
from rnncore.testing.tools.subject import Subject


@check("RC-CELL-001", "stepping a network's cell gives the network's numbers", tolerance="states")
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
    "a sequence in pieces, with the state carried over, gives the same numbers",
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


@check("RC-OPT-001", "clipping by norm is right where squares overflow and where they underflow", needs=("registered",))
def clips_norms(s: Subject) -> None:
    for scale in (1.0, 1e30, 1e-30):
        grads = {"a": s.give(np.asarray([3.0, 0.0]) * scale), "b": s.give(np.asarray([[4.0]]) * scale)}
        clipped, norm = optim.clip_grad_norm(grads, scale)
        s.compare(f"norm at {scale:g}", np.asarray(norm / scale), np.asarray(5.0), tolerance="gradients")
        s.compare(f"clipped at {scale:g}", s.host(clipped["a"]) / scale, np.asarray([0.6, 0.0]), tolerance="gradients")


@check("RC-OPT-002", "three steps of Adam and of SGD with momentum", needs=("registered",), once=True)
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
        loaded = load(path, backend="numpy")
    moved = model.to("numpy")
    for name, value in case.params.items():
        s.compare(f"state_dict {name}", model.state_dict()[name], value)
        s.compare(f"to('numpy') {name}", moved.params[name], value)
        s.compare(f"file {name}", loaded.params[name], value)


@check("RC-IO-002", "a pickled model holds its weights and returns to its backend and device", needs=("registered",))
def models_pickle(s: Subject) -> None:
    case = Case.make(s, layers=2)
    model = case.model()
    back = pickle.loads(pickle.dumps(model))
    s.expect(back.backend == s.backend.name, f"backend: expected {s.backend.name!r}, got {back.backend!r}")
    s.expect(back.device == s.device, f"device: expected {s.device}, got {back.device}")
    s.same("output", back(case.give(case.x))[0], model(case.give(case.x))[0])


@check("RC-IO-003", "numbers with all digits of the dtype are moved and saved exactly", tolerance="exact")
def digits_travel(s: Subject) -> None:
    case = Case.make(s)
    # Unlike the numbers of `draw`, these do not survive rounding to half precision.
    full = {k: np.asarray(s.rng.standard_normal(v.shape), dtype=s.dtype_name) for k, v in case.params.items()}
    model = s.rnn(case.spec, full)
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "rnn.safetensors")
        model.save(path)
        loaded = load(path, backend="numpy")
    elsewhere, here = model.to("numpy"), model.to(s.backend, device=s.device)
    for name, value in full.items():
        want = value.astype("f8")
        s.compare(f"to('numpy') {name}", elsewhere.params[name], want)
        s.compare(f"to() {name}", here.params[name], want)
        s.compare(f"file {name}", loaded.params[name], want)


@check(
    "RC-IO-004",
    "a network goes to a module of the library and back with every weight bit for bit",
    needs=("modules",),
    tolerance="exact",
)
def modules_travel(s: Subject) -> None:
    case = Case.make(s)
    # Libraries with one bias have the sum of both, which is exact if one of them is zero.
    full = {k: np.asarray(s.rng.standard_normal(v.shape), dtype=s.dtype_name) for k, v in case.params.items()}
    full |= {k: np.zeros_like(v) for k, v in full.items() if k.startswith("bias_hh")}
    module = ability(s.backend, "to_module")(s.rnn(case.spec, full))
    back = ability(s.backend, "from_module")(module)
    s.expect(isinstance(back, RNN), f"from_module: expected an rnncore.RNN, got {describe(back)}")
    s.expect(back.dtype == s.dtype, f"dtype: expected {s.dtype_name}, got {back.dtype}")
    s.expect(back.spec.nonlinearity == case.spec.nonlinearity, f"nonlinearity: got {back.spec.nonlinearity.name}")
    for name, value in full.items():
        s.compare(name, back.params[name], value.astype("f8"))
