"""SGD and Adam against torch.optim."""

import json
import math

import numpy as np
import pytest
import torch

import rnncore
from rnncore import errors
from rnncore.optim import SGD, Adam, clip_grad_norm
from tests.tools.drawn import EPS, SHAPES, drawn

OPTIMISERS = {
    "sgd": (SGD, torch.optim.SGD, {"lr": 0.1}),
    "sgd-decay": (SGD, torch.optim.SGD, {"lr": 0.1, "weight_decay": 0.3}),
    "sgd-momentum": (SGD, torch.optim.SGD, {"lr": 0.05, "momentum": 0.9, "weight_decay": 0.01}),
    "sgd-bare-momentum": (SGD, torch.optim.SGD, {"lr": 0.05, "momentum": 0.9}),
    "sgd-nesterov": (SGD, torch.optim.SGD, {"lr": 0.05, "momentum": 0.8, "nesterov": True, "weight_decay": 0.02}),
    "adam": (Adam, torch.optim.Adam, {"lr": 0.02}),
    "adam-options": (Adam, torch.optim.Adam, {"lr": 0.1, "betas": (0.5, 0.8), "eps": 1e-2, "weight_decay": 0.2}),
}


@pytest.mark.parametrize("library", ["numpy", "torch"])
@pytest.mark.parametrize("case", OPTIMISERS)
def test_twenty_steps_are_torchs(case, library):
    ours, theirs, options = OPTIMISERS[case]
    params = drawn(0, library)
    leaves = {k: torch.nn.Parameter(v.clone()) for k, v in drawn(0, "torch").items()}
    optimiser, reference = ours(**options), theirs(leaves.values(), **options)
    for step in range(20):
        params = optimiser.step(params, drawn(100 + step, library))
        for k, g in drawn(100 + step, "torch").items():
            leaves[k].grad = g
        reference.step()
    to_numpy = rnncore.get_backend(library).to_numpy
    for k, leaf in leaves.items():
        got, want = to_numpy(params[k]), leaf.detach().numpy()
        # Twenty steps of a handful of roundings each, at the size of the numbers added up.
        np.testing.assert_allclose(got, want, rtol=0, atol=64 * EPS * max(1.0, float(np.max(np.abs(want)))))
        assert np.abs(got - to_numpy(drawn(0, library)[k])).max() > 0.1  # it moves at all


@pytest.mark.parametrize("case", OPTIMISERS)
@pytest.mark.parametrize("library", ["numpy", "torch"])
def test_nothing_given_is_changed_and_nothing_kept_is_shared(case, library):
    make, _, options = OPTIMISERS[case]
    to_numpy = rnncore.get_backend(library).to_numpy
    params, grads, optimiser = drawn(0, library), drawn(1, library), make(**options)
    once = optimiser.step(params, grads)
    for k in SHAPES:
        np.testing.assert_array_equal(to_numpy(params[k]), to_numpy(drawn(0, library)[k]))
        np.testing.assert_array_equal(to_numpy(grads[k]), to_numpy(drawn(1, library)[k]))
        assert once[k].shape == params[k].shape
    for g in grads.values():  # the caller reuses the storage, as torch's zero_grad(set_to_none=False) does
        g[...] = 1e9
    again = optimiser.step(once, drawn(2, library))
    untouched = make(**options)
    want = untouched.step(untouched.step(drawn(0, library), drawn(1, library)), drawn(2, library))
    for k in SHAPES:
        np.testing.assert_array_equal(to_numpy(again[k]), to_numpy(want[k]))


def test_each_name_counts_its_own_steps():
    grads = drawn(1)
    optimiser = Adam(0.1)
    optimiser.step({"bias": drawn(0)["bias"]}, {"bias": grads["bias"]})
    both = optimiser.step(drawn(0), grads)
    alone = Adam(0.1).step(drawn(0), grads)
    np.testing.assert_array_equal(both["weight"], alone["weight"])
    assert optimiser.state_dict()["steps"] == {"bias": 2, "weight": 1, "scalar": 1}


def test_autograd_stays_out():
    params = {"w": torch.ones(3, requires_grad=True)}
    stepped = SGD(0.1, momentum=0.9).step(params, {"w": torch.ones(3, requires_grad=True)})
    assert not stepped["w"].requires_grad
    clipped, _ = clip_grad_norm({"w": torch.ones(3, requires_grad=True)}, 0.5)
    assert not clipped["w"].requires_grad


@pytest.mark.parametrize("library", ["numpy", "torch"])
def test_it_trains_an_rnn_with_a_learnable_first_state(library):
    backend = rnncore.get_backend(library)
    xp, device = backend.namespace(), backend.devices()[0]
    rnn = rnncore.RNN(2, 4, rng=0, backend=library, dtype="float64")
    rng = np.random.default_rng(0)
    x, target = (
        backend.asarray(rng.uniform(-0.5, 0.5, s), dtype=xp.float64, device=device) for s in [(5, 3, 2), (1, 3, 4)]
    )
    h0, optimiser, losses = xp.zeros((1, 3, 4), dtype=xp.float64, device=device), Adam(0.02), []
    for _ in range(150):
        _, h_n, pullback = rnn.vjp(x, h0)
        losses.append(float(xp.sum((h_n - target) ** 2)) / 2)
        grads = pullback(d_h_n=h_n - target)
        clipped, _ = clip_grad_norm({**grads.params, "h0": grads.h0}, 1.0)
        stepped = optimiser.step({**rnn.params, "h0": h0}, clipped)
        h0 = stepped.pop("h0")
        rnn.set_params(stepped)
    assert losses[-1] < 0.01 * losses[0]
    assert float(xp.max(xp.abs(h0))) > 0.01


@pytest.mark.parametrize("case", OPTIMISERS)
def test_state_dict_goes_on_where_it_was_taken(case):
    make, _, options = OPTIMISERS[case]
    first = make(**options)
    params = first.step(first.step(drawn(0), drawn(1)), drawn(2))
    saved = first.state_dict()
    second = make(lr=0.7)
    second.load_state_dict(saved)
    assert second.lr == first.lr
    for kept in (v for k, v in saved.items() if k not in ("type", "options", "steps")):
        for array in kept.values():
            array[...] = 1e9  # both hold copies
    want, got = first.step(params, drawn(3)), second.step(params, drawn(3))
    for k in SHAPES:
        np.testing.assert_array_equal(got[k], want[k])
    json.dumps([saved["type"], saved["options"], saved["steps"]])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"type": "SGD"}, "of type 'SGD'"),
        ({"steps": None}, "expected the number of steps"),
        ({"steps": {"bias": 0}}, "expected the number of steps"),
        ({"exp_avg": {}}, r"state_dict\['exp_avg'\]"),
        ({"options": {"lr": 0.1}}, r"state_dict\['options'\]"),
        ({"more": 1}, "expected exp_avg"),
    ],
)
def test_bad_state_dict_changes_nothing(change, message):
    optimiser = Adam(0.1)
    optimiser.step(drawn(0), drawn(1))
    before = optimiser.state_dict()
    with pytest.raises(errors.StateDictError, match=message):
        optimiser.load_state_dict({**before, **change})
    with pytest.raises(errors.ArgumentValueError, match="lr"):
        optimiser.load_state_dict({**before, "options": {**before["options"], "lr": -1.0}})
    with pytest.raises(errors.ArgumentTypeError, match="state_dict"):
        optimiser.load_state_dict([])
    assert optimiser.state_dict()["steps"] == before["steps"]
    np.testing.assert_array_equal(optimiser.state_dict()["exp_avg"]["weight"], before["exp_avg"]["weight"])


def test_learning_rate_follows_a_schedule():
    optimiser = SGD(1.0)
    optimiser.lr = 0.25
    assert optimiser.step({"w": np.zeros(1)}, {"w": np.ones(1)})["w"][0] == -0.25
    with pytest.raises(errors.ArgumentValueError, match="lr"):
        optimiser.lr = -1.0
    assert optimiser.lr == 0.25
    assert repr(optimiser) == "SGD(lr=0.25, momentum=0.0, nesterov=False, weight_decay=0.0)"


BAD_OPTIONS = [
    (SGD, {"lr": -0.1}, "lr", errors.ArgumentValueError),
    (SGD, {"lr": math.nan}, "lr", errors.ArgumentValueError),
    (SGD, {"lr": math.inf}, "lr", errors.ArgumentValueError),
    (SGD, {"lr": 10**400}, "lr", errors.ArgumentValueError),
    (SGD, {"lr": True}, "lr", errors.ArgumentTypeError),
    (Adam, {"lr": "0.1"}, "lr", errors.ArgumentTypeError),
    (SGD, {"lr": 0.1, "momentum": 1.0}, "momentum", errors.ArgumentValueError),
    (SGD, {"lr": 0.1, "momentum": -0.1}, "momentum", errors.ArgumentValueError),
    (SGD, {"lr": 0.1, "momentum": math.nan}, "momentum", errors.ArgumentValueError),
    (SGD, {"lr": 0.1, "momentum": True}, "momentum", errors.ArgumentTypeError),
    (SGD, {"lr": 0.1, "nesterov": True}, "nesterov", errors.ArgumentValueError),
    (SGD, {"lr": 0.1, "nesterov": 1}, "nesterov", errors.ArgumentTypeError),
    (SGD, {"lr": 0.1, "weight_decay": -1.0}, "weight_decay", errors.ArgumentValueError),
    (Adam, {"betas": (0.9, 1.0)}, r"betas\[1\]", errors.ArgumentValueError),
    (Adam, {"betas": (-0.1, 0.9)}, r"betas\[0\]", errors.ArgumentValueError),
    (Adam, {"betas": (0.9,)}, "betas", errors.ArgumentTypeError),
    (Adam, {"betas": 0.9}, "betas", errors.ArgumentTypeError),
    (Adam, {"eps": -1e-8}, "eps", errors.ArgumentValueError),
]


@pytest.mark.parametrize(("make", "options", "name", "kind"), BAD_OPTIONS)
def test_bad_options(make, options, name, kind):
    with pytest.raises(kind, match=f"^{name}: expected .*, got"):
        make(**options)


BAD_GRADS = [
    ({"bias": None}, errors.ArgumentTypeError, r"grads\['bias'\]: expected an array of backend 'numpy'"),
    ({"bias": np.zeros(5)}, errors.ShapeError, r"grads\['bias'\]: expected shape \(4,\), got \(5,\)"),
    ({"bias": np.zeros((4, 1))}, errors.ShapeError, r"grads\['bias'\]: expected shape"),
    ({"bias": np.zeros(4, dtype=np.float32)}, errors.DTypeError, r"grads\['bias'\]: expected dtype float64"),
    ({"bias": torch.zeros(4)}, errors.ArgumentTypeError, r"grads\['bias'\].*backend 'torch'"),
    ({"more": np.zeros(4)}, errors.StateDictError, "unexpected 'more'"),
]


@pytest.mark.parametrize("make", [SGD(0.1, momentum=0.5), Adam(0.1)])
@pytest.mark.parametrize(("change", "kind", "message"), BAD_GRADS)
def test_bad_gradients_change_nothing(make, change, kind, message):
    optimiser = type(make)(**make._options())
    params = optimiser.step(drawn(0), drawn(1))
    before = optimiser.state_dict()
    with pytest.raises(kind, match=message):
        optimiser.step(params, {**drawn(2), **change})
    after = optimiser.state_dict()
    assert after["steps"] == before["steps"]
    for slot in optimiser._slots:
        for k in SHAPES:
            np.testing.assert_array_equal(after[slot][k], before[slot][k])


def test_other_bad_steps():
    optimiser = Adam(0.1)
    with pytest.raises(errors.StateDictError, match="missing 'scalar'"):
        optimiser.step(drawn(0), {k: v for k, v in drawn(1).items() if k != "scalar"})
    with pytest.raises(errors.ArgumentTypeError, match="params: expected a mapping"):
        optimiser.step([np.zeros(3)], drawn(1))
    with pytest.raises(errors.ArgumentTypeError, match="grads: expected a mapping"):
        optimiser.step(drawn(0), None)
    with pytest.raises(errors.DTypeError, match=r"params\['w'\].*int64"):
        optimiser.step({"w": np.zeros(3, dtype=np.int64)}, {"w": np.zeros(3, dtype=np.int64)})
    with pytest.raises(errors.ArgumentTypeError, match=r"params\['b'\].*numpy.*torch"):
        optimiser.step({"a": np.zeros(1), "b": torch.zeros(1)}, {"a": np.zeros(1), "b": torch.zeros(1)})
    assert optimiser.step({}, {}) == {}
    optimiser.step({"w": np.zeros(3)}, {"w": np.ones(3)})
    with pytest.raises(errors.ShapeError, match="optimiser's state"):
        optimiser.step({"w": np.zeros(2)}, {"w": np.ones(2)})
