"""SGD and Adam against torch.optim; clip_grad_norm against mpmath, at scales where a plain sum of squares fails too."""

from __future__ import annotations

import json
import math

import mpmath
import numpy as np
import pytest
import torch

import rnncore
from rnncore import errors
from rnncore.optim import SGD, Adam, clip_grad_norm

EPS = 2.0**-52
SHAPES = {"weight": (4, 3), "bias": (4,), "scalar": ()}
OPTIMISERS = {
    "sgd": (SGD, torch.optim.SGD, {"lr": 0.1}),
    "sgd-decay": (SGD, torch.optim.SGD, {"lr": 0.1, "weight_decay": 0.3}),
    "sgd-momentum": (SGD, torch.optim.SGD, {"lr": 0.05, "momentum": 0.9, "weight_decay": 0.01}),
    "sgd-bare-momentum": (SGD, torch.optim.SGD, {"lr": 0.05, "momentum": 0.9}),
    "sgd-nesterov": (SGD, torch.optim.SGD, {"lr": 0.05, "momentum": 0.8, "nesterov": True, "weight_decay": 0.02}),
    "adam": (Adam, torch.optim.Adam, {"lr": 0.02}),
    "adam-options": (Adam, torch.optim.Adam, {"lr": 0.1, "betas": (0.5, 0.8), "eps": 1e-2, "weight_decay": 0.2}),
}


def drawn(seed, library="numpy", dtype="float64"):
    rng = np.random.default_rng(seed)
    backend = rnncore.get_backend(library)
    kind = getattr(backend.namespace(), dtype)
    return {
        k: backend.asarray(np.asarray(rng.standard_normal(s)), dtype=kind, device=backend.devices()[0])
        for k, s in SHAPES.items()
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
        assert not np.allclose(got, to_numpy(drawn(0, library)[k]), atol=1e-3)


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


# --- clip_grad_norm ---------------------------------------------------------------------------------------------------


def exact_norm(grads):
    with mpmath.workdps(60):
        return mpmath.sqrt(mpmath.fsum(mpmath.mpf(float(x)) ** 2 for g in grads for x in np.asarray(g).ravel()))


SCALES = {
    "float16": [2.0**-24, 1e-4, 1.0, 1e4],
    "bfloat16": [1e-30, 1.0, 1e30],
    "float32": [1e-44, 1e-30, 1e-19, 1.0, 1e19, 1e30, 5e37],
    "float64": [1e-310, 1e-200, 1.0, 1e200, 1e306],
}
TORCH_ONLY = {"bfloat16"}
CASES = [
    (library, dtype, scale)
    for dtype, scales in SCALES.items()
    for scale in scales
    for library in (["torch"] if dtype in TORCH_ONLY else ["numpy", "torch"])
]
PRECISION = {"float16": 2.0**-10, "bfloat16": 2.0**-7, "float32": 2.0**-23, "float64": 2.0**-52}
SMALLEST = {"float16": 2.0**-24, "bfloat16": 2.0**-133, "float32": 2.0**-149, "float64": 2.0**-1074}


@pytest.mark.parametrize(("library", "dtype", "scale"), CASES)
@pytest.mark.parametrize("share", [1e-6, 0.3, 0.999])
def test_clipping_at_every_scale(library, dtype, scale, share):
    backend = rnncore.get_backend(library)
    kind, device = getattr(backend.namespace(), dtype), backend.devices()[0]
    rng = np.random.default_rng(3)
    grads = {
        k: backend.asarray(scale * rng.uniform(-4, 4, s), dtype=kind, device=device)
        for k, s in {"weight_hh": (9, 9), "weight_ih": (9, 2), "bias": (9,), "none": (0, 3)}.items()
    }
    host = {k: backend.to_numpy(g).astype(np.float64) for k, g in grads.items()}
    norm = exact_norm(host.values())
    limit = float(share * norm)
    clipped, got = clip_grad_norm(grads, limit)
    assert type(got) is float
    sums = min(PRECISION[dtype], PRECISION["float32"])  # halves are summed in float32
    assert abs(got - norm) <= 8 * sums * norm
    for k, g in clipped.items():
        assert g.dtype == grads[k].dtype
        assert g.shape == grads[k].shape
        with mpmath.workdps(60):
            want = np.array([float(mpmath.mpf(float(x)) * limit / norm) for x in host[k].ravel()])
        err = np.abs(backend.to_numpy(g).astype(np.float64).ravel() - want)
        assert np.all(err <= 8 * PRECISION[dtype] * np.abs(want) + 2 * SMALLEST[dtype])


def test_a_norm_beyond_float64_is_still_clipped_right():
    clipped, norm = clip_grad_norm({"w": np.full(4, 1.5e308)}, 1.0)
    assert norm == math.inf
    np.testing.assert_allclose(clipped["w"], 0.5, rtol=4 * EPS)


@pytest.mark.parametrize("library", ["numpy", "torch"])
@pytest.mark.parametrize(("dtype", "size", "limit"), [("float32", 1e38, 1e-10), ("float64", 1e308, 1e-20)])
def test_a_factor_too_small_for_the_dtype(library, dtype, size, limit):
    """1e-48 is 0 in float32 and 1e-328 in float64, but what they scale here is not."""
    backend = rnncore.get_backend(library)
    xp, device = backend.namespace(), backend.devices()[0]
    g = backend.asarray(np.asarray([0.6 * size, -0.8 * size]), dtype=getattr(xp, dtype), device=device)
    clipped, _ = clip_grad_norm({"w": g}, limit)
    np.testing.assert_allclose(backend.to_numpy(clipped["w"]), [0.6 * limit, -0.8 * limit], rtol=8 * PRECISION[dtype])


def test_arrays_of_very_different_size_and_dtype():
    grads = {"big": np.asarray([3e300]), "small": np.asarray([1e-30], dtype=np.float32)}
    clipped, norm = clip_grad_norm(grads, 3e290)
    assert norm == pytest.approx(3e300, rel=4 * EPS)
    np.testing.assert_allclose(clipped["big"], 3e290, rtol=4 * EPS)
    np.testing.assert_allclose(clipped["small"], 1e-40, rtol=1e-4)


def test_against_torch_at_ordinary_scale():
    leaves = [torch.nn.Parameter(v) for v in drawn(0, "torch").values()]
    for leaf, g in zip(leaves, drawn(1, "torch").values(), strict=True):
        leaf.grad = g.clone()
    want = torch.nn.utils.clip_grad_norm_(leaves, 0.5)
    clipped, norm = clip_grad_norm(drawn(1, "torch"), 0.5)
    assert norm == pytest.approx(float(want), rel=8 * EPS)
    for got, leaf in zip(clipped.values(), leaves, strict=True):
        torch.testing.assert_close(got, leaf.grad, rtol=1e-5, atol=0)  # torch adds 1e-6 to the norm


@pytest.mark.parametrize("library", ["numpy", "torch"])
def test_where_nothing_is_clipped_the_arrays_come_back(library):
    grads = drawn(1, library)
    norm = float(exact_norm(grads.values()))
    for limit in (math.inf, 1.01 * norm):
        clipped, got = clip_grad_norm(grads, limit)
        assert got == pytest.approx(norm)
        assert all(clipped[k] is g for k, g in grads.items())
    zero, got = clip_grad_norm(grads, 0)
    assert got == pytest.approx(norm)
    assert all(not bool((g != 0).any()) and g.shape == grads[k].shape for k, g in zero.items())
    assert clip_grad_norm(zero, 1.0)[1] == 0.0
    assert clip_grad_norm(zero, 0.0)[1] == 0.0
    assert clip_grad_norm({}, 1.0) == ({}, 0.0)
    assert clip_grad_norm({"none": zero["weight"][:0, ...]}, 1.0)[1] == 0.0
    for k, g in drawn(1, library).items():
        assert bool((g == grads[k]).all())


@pytest.mark.parametrize("library", ["numpy", "torch"])
@pytest.mark.parametrize(("values", "want"), [([math.inf], "inf"), ([math.nan], "nan"), ([math.nan, -math.inf], "nan")])
@pytest.mark.parametrize("limit", [0.0, 1.0, math.inf])
def test_gradients_that_are_not_finite(library, values, want, limit):
    grads = drawn(1, library)
    for value, k in zip(values, ("weight", "bias"), strict=False):
        grads[k][0] = value
    clipped, norm = clip_grad_norm(grads, limit)
    assert str(norm) == want
    assert all(clipped[k] is g for k, g in grads.items())
    bad = "weight, bias" if len(values) == 2 else "weight"
    with pytest.raises(errors.NonFiniteError, match=f"^grads: expected finite numbers, got NaN or infinity in {bad}$"):
        clip_grad_norm(grads, limit, error_if_nonfinite=True)


@pytest.mark.parametrize(
    ("grads", "limit", "kind", "message"),
    [
        ({}, -1.0, errors.ArgumentValueError, "max_norm"),
        ({}, math.nan, errors.ArgumentValueError, "max_norm"),
        ({}, True, errors.ArgumentTypeError, "max_norm"),
        ({}, "1", errors.ArgumentTypeError, "max_norm"),
        ({}, None, errors.ArgumentTypeError, "max_norm"),
        ([], 1.0, errors.ArgumentTypeError, "grads: expected a mapping"),
        ({"w": [1.0]}, 1.0, errors.ArgumentTypeError, r"grads\['w'\].*list"),
        ({"v": np.ones(2), "w": torch.ones(2)}, 1.0, errors.ArgumentTypeError, r"grads\['w'\].*numpy.*torch"),
        ({"w": np.ones(2, dtype=np.int32)}, 1.0, errors.DTypeError, r"grads\['w'\].*int32"),
    ],
)
def test_bad_arguments_of_clipping(grads, limit, kind, message):
    with pytest.raises(kind, match=message):
        clip_grad_norm(grads, limit)


def test_bad_flag_of_clipping():
    with pytest.raises(errors.ArgumentTypeError, match="error_if_nonfinite"):
        clip_grad_norm({}, 1.0, error_if_nonfinite=1)
