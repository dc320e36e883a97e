"""clip_grad_norm against mpmath, at scales where a plain sum of squares fails too."""

import math

import mpmath
import numpy as np
import pytest
import torch

import rnncore
from rnncore import errors
from rnncore.optim import clip_grad_norm
from tests.tools.drawn import EPS, drawn
from tests.tools.rounding import agree


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
    # A subnormal number of float32: a multiple of 2^-149, rounded after each of two factors at the most.
    np.testing.assert_allclose(clipped["small"], 1e-40, rtol=0, atol=2 * SMALLEST["float32"])


def test_against_torch_at_ordinary_scale():
    leaves = [torch.nn.Parameter(v) for v in drawn(0, "torch").values()]
    for leaf, g in zip(leaves, drawn(1, "torch").values(), strict=True):
        leaf.grad = g.clone()
    want = torch.nn.utils.clip_grad_norm_(leaves, 0.5)
    clipped, norm = clip_grad_norm(drawn(1, "torch"), 0.5)
    assert norm == pytest.approx(float(want), rel=8 * EPS)
    for got, leaf in zip(clipped.values(), leaves, strict=True):
        # PyTorch adds 1e-6 to the norm, ours does not.
        agree(got, leaf.grad * (float(want) + 1e-6) / float(want), 8)


@pytest.mark.parametrize("library", ["numpy", "torch"])
def test_where_nothing_is_clipped_the_arrays_come_back(library):
    grads = drawn(1, library)
    norm = float(exact_norm(grads.values()))
    for limit in (math.inf, 1.01 * norm):
        clipped, got = clip_grad_norm(grads, limit)
        assert got == pytest.approx(norm, rel=8 * EPS)
        assert all(clipped[k] is g for k, g in grads.items())
    zero, got = clip_grad_norm(grads, 0)
    assert got == pytest.approx(norm, rel=8 * EPS)
    assert all(not bool((g != 0).any()) and g.shape == grads[k].shape for k, g in zero.items())
    assert clip_grad_norm(zero, 1.0)[1] == 0.0
    assert clip_grad_norm(zero, 0.0)[1] == 0.0
    assert clip_grad_norm({}, 1.0) == ({}, 0.0)
    assert clip_grad_norm({"none": zero["weight"][:0, ...]}, 1.0)[1] == 0.0
    for k, g in drawn(1, library).items():
        assert bool((g == grads[k]).all())


@pytest.mark.parametrize("library", ["numpy", "torch"])
def test_an_array_of_zeros_beside_others_adds_nothing(library):
    grads = drawn(1, library)
    grads["bias"] = grads["bias"] * 0
    rest = {k: g for k, g in grads.items() if k != "bias"}
    clipped, norm = clip_grad_norm(grads, 0.1)
    assert norm == clip_grad_norm(rest, 0.1)[1] and bool((clipped["bias"] == 0).all())


def test_at_exactly_the_limit_nothing_is_clipped():
    grads = {"w": np.asarray([3.0, 4.0])}
    clipped, norm = clip_grad_norm(grads, 5.0)
    assert norm == 5.0 and clipped["w"] is grads["w"]


def test_the_norm_of_no_numbers_is_zero_without_a_sign():
    assert str(clip_grad_norm({"none": np.ones((0, 3))}, 1.0)[1]) == "0.0"


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
