"""META: relations between two runs of any correct network. ANA: networks with a closed form."""

from __future__ import annotations

import numpy as np

from rnncore.testing.check import check
from rnncore.testing.tools.case import BATCH, INPUT, LENGTHS, LONG, STEPS, WIDTH, Case
from rnncore.testing.tools.subject import Subject
from rnncore.typing import Host


@check("RC-META-001", "permuting the rows of a batch permutes the results and keeps the weight gradients", once=True)
def batch_permutation(s: Subject) -> None:
    case = Case.make(s, layers=2, bidirectional=True)
    want, order = case.numbers(), [2, 0, 1]
    case.x, case.d_output = case.x[:, order], case.d_output[:, order]
    case.h0, case.d_h_n = [h[:, order] for h in case.h0], [d[:, order] for d in case.d_h_n]
    weights = ("dL/dweight", "dL/dbias")
    s.compare_all(case.numbers(), {k: v if k.startswith(weights) else v[:, order] for k, v in want.items()})


@check("RC-META-002", "splitting a batch splits the results, and the weight gradients add up", once=True)
def batch_split(s: Subject) -> None:
    case = Case.make(s, layers=2, bidirectional=True)
    want, parts = case.numbers(), []
    x, h0, d_output, d_h_n = case.x, case.h0, case.d_output, case.d_h_n
    for rows in (slice(0, 1), slice(1, BATCH)):
        case.x, case.d_output = x[:, rows], d_output[:, rows]
        case.h0, case.d_h_n = [h[:, rows] for h in h0], [d[:, rows] for d in d_h_n]
        parts.append(case.numbers())
    weights = ("dL/dweight", "dL/dbias")
    joined = {
        k: parts[0][k] + parts[1][k] if k.startswith(weights) else np.concatenate([p[k] for p in parts], axis=1)
        for k in want
    }
    s.compare_all(joined, want)


@check("RC-META-003", "splitting time, with the state carried over, changes no result", tolerance="states", once=True)
def time_split(s: Subject) -> None:
    case = Case.make(s, layers=2)
    model, h0 = case.model(), case.give_state(case.h0)
    whole, last = model(case.give(case.x), h0)
    for cut in (1, STEPS // 2):
        first, state = model(case.give(case.x[:cut]), h0)
        second, state = model(case.give(case.x[cut:]), state)
        s.compare(f"output cut at {cut}", np.concatenate([s.host(first), s.host(second)]), s.host(whole))
        s.compare(f"h_n cut at {cut}", state, s.host(last))


@check("RC-META-004", "permuting the hidden units (P W_hh P^T) permutes states and gradients", once=True)
def hidden_permutation(s: Subject) -> None:
    case = Case.make(s)
    want, order = case.numbers(), [3, 0, 4, 1, 2]
    p = case.params
    case.params = {
        "weight_ih_l0": p["weight_ih_l0"][order],
        "weight_hh_l0": p["weight_hh_l0"][order][:, order],
        "bias_ih_l0": p["bias_ih_l0"][order],
        "bias_hh_l0": p["bias_hh_l0"][order],
    }
    case.d_output, case.d_h_n = case.d_output[..., order], [d[..., order] for d in case.d_h_n]
    case.h0 = [h[..., order] for h in case.h0]
    moved = {k: v[..., order] for k, v in want.items() if k not in ("dL/dx", "dL/dweight_ih_l0", "dL/dweight_hh_l0")}
    moved |= {"dL/dx": want["dL/dx"], "dL/dweight_ih_l0": want["dL/dweight_ih_l0"][order]}
    moved["dL/dweight_hh_l0"] = want["dL/dweight_hh_l0"][order][:, order]
    s.compare_all(case.numbers(), moved)


@check("RC-META-005", "two layers are two networks, one fed with the other's output", tolerance="states", once=True)
def layer_split(s: Subject) -> None:
    case = Case.make(s, layers=2)
    whole, h_n = case.model()(*case.inputs())
    below = Case.make(s)
    below.params = {k: v for k, v in case.params.items() if k.endswith("l0")}
    above = Case.make(s, inputs=WIDTH)
    above.params = {k.replace("l1", "l0"): v for k, v in case.params.items() if k.endswith("l1")}
    middle, first = below.model()(case.give(case.x), s.give(case.h0[0]))
    top, second = above.model()(middle, s.give(case.h0[1]))
    s.compare("output", top, s.host(whole))
    s.compare("h_n", np.concatenate([s.host(first), s.host(second)]), s.host(h_n))


@check("RC-META-006", "more padding changes neither results nor gradients", once=True)
def padding_invariance(s: Subject) -> None:
    case = Case.make(s, layers=2, bidirectional=True, lengths=LENGTHS)
    want = case.numbers()
    extra = np.full((STEPS, BATCH, 1), np.nan)
    case.x = np.concatenate([case.x, np.broadcast_to(extra, case.x.shape)])
    case.d_output = np.concatenate([case.d_output, np.broadcast_to(extra, case.d_output.shape)])
    got = case.numbers()
    for name in ("output", "dL/dx"):
        s.compare(f"{name} in the new padding", got[name][STEPS:], np.zeros(got[name][STEPS:].shape), tolerance="exact")
        got[name] = got[name][:STEPS]
    s.compare_all(got, want)


@check("RC-META-007", "reversing time and exchanging the directions gives the same network in reverse", once=True)
def time_reversal(s: Subject) -> None:
    case = Case.make(s, bidirectional=True)
    want = case.numbers()
    case.params = {_other_direction(k): v for k, v in case.params.items()}
    case.params = {k: case.params[k] for k in case.spec.parameter_shapes()}
    case.x, case.d_output = case.x[::-1], _halves_exchanged(case.d_output)[::-1]
    case.h0, case.d_h_n = [h[::-1] for h in case.h0], [d[::-1] for d in case.d_h_n]
    got = case.numbers()
    back = {_other_direction(k) if k.startswith(("dL/dweight", "dL/dbias")) else k: v for k, v in got.items()}
    back["output"], back["dL/dx"] = _halves_exchanged(got["output"])[::-1], got["dL/dx"][::-1]
    back["h_n"], back["dL/dh0"] = got["h_n"][::-1], got["dL/dh0"][::-1]
    s.compare_all(back, want)


def _other_direction(key: str) -> str:
    return key[: -len("_reverse")] if key.endswith("_reverse") else key + "_reverse"


def _halves_exchanged(a: Host) -> Host:
    return np.concatenate([a[..., WIDTH:], a[..., :WIDTH]], axis=-1)


@check("RC-META-008", "without recurrent weights the steps are independent", tolerance="states", once=True)
def no_recurrence(s: Subject) -> None:
    case = Case.make(s)
    case.params["weight_hh_l0"] = np.zeros((WIDTH, WIDTH))
    model, order = case.model(), [4, 2, 0, 5, 1, 3]
    want = s.host(model(*case.inputs())[0])
    got = model(case.give(case.x[order]), case.give_state([-h for h in case.h0]))[0]
    s.compare("output of the steps in another order", got, want[order])


@check("RC-META-009", "one step is one call of the cell, forwards and in reverse", tolerance="states", once=True)
def one_step(s: Subject) -> None:
    case = Case.make(s, steps=1, bidirectional=True)
    output, h_n = case.model()(*case.inputs())
    for d in (0, 1):
        h = case.model().cell(0, reverse=bool(d))(s.give(case.x[0]), s.give(case.h0[0][d]))
        s.compare(f"direction {d}", s.host(output)[0][:, d * WIDTH : (d + 1) * WIDTH], s.host(h))
    s.compare("h_n", s.host(h_n)[0], s.host(output)[0][:, :WIDTH])


@check("RC-META-010", "tanh is odd: negating input, states and biases negates output", tolerance="states", once=True)
def odd_symmetry(s: Subject) -> None:
    case = Case.make(s, layers=2, bidirectional=True)
    want = s.host(case.model()(*case.inputs())[0])
    case.params = {k: -v if k.startswith("bias") else v for k, v in case.params.items()}
    got = case.model()(case.give(-case.x), case.give_state([-h for h in case.h0]))[0]
    s.compare("output", got, -want)


@check("RC-META-011", "relu scales: input, states and biases times 4 give output times 4", tolerance="exact", once=True)
def homogeneity(s: Subject) -> None:
    case = Case.make(s, layers=2, name="relu")
    want = s.host(case.model()(*case.inputs())[0])
    case.params = {k: 4 * v if k.startswith("bias") else v for k, v in case.params.items()}
    got = case.model()(case.give(4 * case.x), case.give_state([4 * h for h in case.h0]))[0]
    s.compare("output", got, 4 * want)


@check("RC-META-012", "permuting input features and the columns of W_ih permutes only their gradients", once=True)
def input_permutation(s: Subject) -> None:
    case = Case.make(s, bidirectional=True)
    want, order = case.numbers(), [2, 0, 3, 1]
    case.x = case.x[..., order]
    case.params = {k: v[:, order] if k.startswith("weight_ih") else v for k, v in case.params.items()}
    moved = {k: v[..., order] if k == "dL/dx" or "weight_ih" in k else v for k, v in want.items()}
    s.compare_all(case.numbers(), moved)


@check("RC-META-013", "moving a bias from bias_ih to bias_hh changes nothing", tolerance="states", once=True)
def bias_split(s: Subject) -> None:
    case = Case.make(s, layers=2)
    want = s.host(case.model()(case.give(case.x))[0])
    for k in range(2):
        case.params[f"bias_hh_l{k}"] = case.params[f"bias_hh_l{k}"] + case.params[f"bias_ih_l{k}"]
        case.params[f"bias_ih_l{k}"] = np.zeros(WIDTH)
    s.compare("output", case.model()(case.give(case.x))[0], want)


@check("RC-META-014", "the identity network is linear in its input", tolerance="gradients", once=True)
def superposition(s: Subject) -> None:
    case = Case.make(s, layers=2, name="identity", bias=False)
    model, other = case.model(), s.draw(*case.x.shape)
    one, two = s.host(model(case.give(case.x))[0]), s.host(model(case.give(other))[0])
    s.compare("output", model(case.give(2 * case.x + other))[0], 2 * one + two)


@check(
    "RC-META-015", "two networks with block-diagonal weights do not affect each other", tolerance="states", once=True
)
def block_diagonal(s: Subject) -> None:
    a, b = Case.make(s), Case.make(s)
    both = Case.make(s, hidden=2 * WIDTH)
    zero = np.zeros((WIDTH, WIDTH))
    for key in ("weight_ih_l0", "bias_ih_l0", "bias_hh_l0"):
        both.params[key] = np.concatenate([a.params[key], b.params[key]])
    both.params["weight_hh_l0"] = np.block([[a.params["weight_hh_l0"], zero], [zero, b.params["weight_hh_l0"]]])
    output = s.host(both.model()(both.give(both.x))[0])
    s.compare("the first network", output[..., :WIDTH], s.host(a.model()(both.give(both.x))[0]))
    s.compare("the second network", output[..., WIDTH:], s.host(b.model()(both.give(both.x))[0]))


@check("RC-META-016", "the pullback is linear in its cotangents", tolerance="gradients", once=True)
def linear_pullback(s: Subject) -> None:
    case = Case.make(s, layers=2, bidirectional=True)
    pullback, other = case.model().vjp(*case.inputs())[2], s.draw(*case.d_output.shape)
    one, two = pullback(case.give(case.d_output)), pullback(case.give(other))
    both = pullback(case.give(2 * case.d_output - other))
    s.compare("dL/dx", both.x, 2 * s.host(one.x) - s.host(two.x))
    for key in case.params:
        s.compare(f"dL/d{key}", both.params[key], 2 * s.host(one.params[key]) - s.host(two.params[key]))


@check("RC-META-017", "a cotangent at one step reaches no later step", tolerance="exact", once=True)
def gradients_are_causal(s: Subject) -> None:
    case = Case.make(s, layers=2)
    case.d_output[:] = 0.0
    case.d_output[3] = 1.0
    grads = case.model().vjp(*case.inputs())[2](case.give(case.d_output))
    dx = s.host(grads.x)
    s.compare("dL/dx after the step", dx[4:], np.zeros(dx[4:].shape))
    s.expect((np.abs(dx[:4]).max(axis=(1, 2)) > 0).all(), "dL/dx up to the step: expected numbers, got 0")


# --- closed forms -----------------------------------------------------------------------------------------------------


@check("RC-ANA-001", "the identity network with W_hh = I sums its input", tolerance="exact")
def running_sum(s: Subject) -> None:
    case = Case.make(s, name="identity", bias=False, inputs=WIDTH)
    case.params = {"weight_ih_l0": np.eye(WIDTH), "weight_hh_l0": np.eye(WIDTH)}
    case.x = np.round(4 * case.x)  # small integers, whose sums are exact in any order
    s.compare("output", case.model()(case.give(case.x))[0], np.cumsum(case.x, axis=0))


@check("RC-ANA-002", "the linear network's response is a power of W_hh", tolerance="gradients")
def powers(s: Subject) -> None:
    case = Case.make(s, name="identity", bias=False)
    w, h0 = case.params["weight_hh_l0"], case.h0[0][0]
    output = s.host(case.model()(case.give(0 * case.x), case.give_state(case.h0))[0])
    for t in range(STEPS):
        s.compare(f"h_{t + 1}", output[t], h0 @ np.linalg.matrix_power(w, t + 1).T)


@check("RC-ANA-003", "an orthogonal linear network keeps the norm of states and of gradients", tolerance="gradients")
def orthogonal(s: Subject) -> None:
    case = Case.make(s, name="identity", bias=False, steps=LONG)
    angles = np.asarray([0.3, 1.1])
    w = np.eye(WIDTH)
    for k, a in enumerate(angles):
        w[2 * k : 2 * k + 2, 2 * k : 2 * k + 2] = [[np.cos(a), -np.sin(a)], [np.sin(a), np.cos(a)]]
    case.params["weight_hh_l0"] = w
    output, _, pullback = case.model().vjp(case.give(0 * case.x), case.give_state(case.h0))
    size = np.linalg.norm(case.h0[0][0], axis=1)
    s.compare("the norm of h_T", np.linalg.norm(s.host(output)[-1], axis=1), size)
    grads = pullback(None, case.give_state(case.d_h_n))
    s.compare(
        "the norm of dL/dh0", np.linalg.norm(s.host(grads.h0)[0], axis=1), np.linalg.norm(case.d_h_n[0][0], axis=1)
    )


@check("RC-ANA-004", "half of the identity: the gradient of h0 is exactly 2^-T", tolerance="exact")
def vanishing(s: Subject) -> None:
    case = Case.make(s, name="identity", bias=False, steps=LONG)
    case.params["weight_hh_l0"] = 0.5 * np.eye(WIDTH)
    grads = case.model().vjp(case.give(0 * case.x))[2](None, s.give(np.ones((1, BATCH, WIDTH))))
    s.compare("dL/dh0", grads.h0, np.full((1, BATCH, WIDTH), 0.5**LONG))


@check("RC-ANA-005", "a nilpotent recurrence: the gradient is exactly 0 after H steps", tolerance="exact")
def nilpotent(s: Subject) -> None:
    case = Case.make(s, name="identity", bias=False)
    case.params["weight_hh_l0"] = np.eye(WIDTH, k=-1)
    case.params["weight_ih_l0"] = np.eye(WIDTH, INPUT)
    grads = case.model().vjp(case.give(0 * case.x))[2](None, s.give(np.ones((1, BATCH, WIDTH))))
    want = np.zeros((STEPS, BATCH, INPUT))
    for t in range(STEPS):
        reach = np.ones(WIDTH) @ np.linalg.matrix_power(np.eye(WIDTH, k=-1), STEPS - 1 - t)
        want[t] = reach[:INPUT]
    s.compare("dL/dx", grads.x, want)
    s.compare("dL/dh0", grads.h0, np.zeros((1, BATCH, WIDTH)))


@check("RC-ANA-006", "one unit: the gradient of h0 is the product of f'(z_t) w over all steps", tolerance="gradients")
def scalar_chain(s: Subject) -> None:
    case = Case.make(s, hidden=1, inputs=1, batch=1, name="sigmoid", steps=30)
    case.params |= {"weight_hh_l0": np.asarray([[2.0]]), "weight_ih_l0": np.asarray([[1.0]])}
    pullback = case.model().vjp(*case.inputs())[2]
    grads = pullback(None, s.give(np.ones((1, 1, 1))))
    z = case.truth().z[0][0][:, 0, 0]
    slopes = 1 / (2 * np.cosh(z / 2)) ** 2
    s.compare("dL/dh0", grads.h0, np.asarray([[[np.prod(2.0 * slopes)]]]))
