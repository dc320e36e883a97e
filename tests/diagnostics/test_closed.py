"""The probes with a closed form, against what is known exactly: fifty digits, dense linear algebra, published constants."""

from __future__ import annotations

import dataclasses
import math

import mpmath
import numpy as np
import pytest

import rnncore
from rnncore.diagnostics.gradient.decomposition import decompose
from rnncore.diagnostics.gradient.flow import flow
from rnncore.diagnostics.jacobians.bounds import bounds, log_spectral_radius, span_bounds
from rnncore.diagnostics.jacobians.jacobian import jacobian
from rnncore.diagnostics.jacobians.scalar_chain import chain, chain_of_record
from rnncore.diagnostics.recording import record
from rnncore.diagnostics.units.initial import initial
from rnncore.diagnostics.units.mean_field import critical_gain, mean_field
from rnncore.diagnostics.units.saturation import saturation
from rnncore.errors import ArgumentValueError, DTypeError, ShapeError

# JAX compiles every operation: it runs the tests that go once through each probe, and its float64 is the user's setting.
PLACES = [("numpy", "float64"), ("numpy", "float32"), ("torch", "float64"), ("torch", "float32"), ("strict", "float64")]
PLACES += [("strict", "float32")]
WITH_JAX = [*PLACES, ("jax", "float32")]
EPS = {"float32": 2.0**-23, "float64": 2.0**-52}

xp = rnncore.get_backend("numpy").namespace()


def device_array(backend, dtype, x):
    plugin = rnncore.get_backend(backend)
    return plugin.asarray(
        np.asarray(x, dtype=dtype), dtype=getattr(plugin.namespace(), dtype), device=plugin.devices()[0]
    )


def fixed(array):
    return lambda shape, rng: np.broadcast_to(np.asarray(array, dtype=np.float64), shape).copy()


def network(backend, dtype, w, nonlinearity="identity", inputs=1, w_ih=0.0, bias=0.0, **more):
    """One whose W_hh is w in every layer and direction."""
    init = {"weight_hh": fixed(w), "weight_ih": fixed(w_ih), "bias_ih": fixed(bias), "bias_hh": fixed(0.0)}
    return rnncore.RNN(inputs, len(w), nonlinearity=nonlinearity, init=init, backend=backend, dtype=dtype, **more)


def seen(backend, dtype, w, nonlinearity="identity", steps=3, batch=1, z=None, lengths=None, **more):
    """A run; with z (T, B, H), one in which every layer and direction had these pre-activations."""
    if z is not None:
        z = np.asarray(z, dtype=dtype)
        steps, batch = z.shape[:2]
    rnn = network(backend, dtype, w, nonlinearity, **more)
    found = record(rnn, device_array(backend, dtype, np.zeros((steps, batch, 1))), lengths=lengths)
    if z is None:
        return found
    zs = device_array(backend, dtype, z)
    h = found.nonlinearity(zs, xp=found.xp)
    many = [[zs] * found.directions for _ in range(found.spec.num_layers)]
    return dataclasses.replace(found, z=many, h=[[h] * found.directions for _ in many])


def gaussian(width, g, seed=0):
    return np.random.default_rng(seed).standard_normal((width, width)) * g / math.sqrt(width)


def orthogonal(width, seed=0):
    return np.linalg.qr(np.random.default_rng(seed).standard_normal((width, width)))[0]


def rounded(x, dtype):
    return np.asarray(x, dtype=dtype).astype(np.float64)


def backward(rec, seed=7, only_last=True):
    """flow of a loss of the last states, or of all outputs."""
    backend, dtype = rec.engine.backend.name, rec.engine.dtype_name
    rng = np.random.default_rng(seed)
    if only_last:
        last = [
            [device_array(backend, dtype, rng.standard_normal((rec.batch, n))) for _ in range(rec.directions)]
            for n in rec.spec.hidden_sizes
        ]
        return flow(rec, None, last)
    shape = (rec.steps, rec.batch, rec.directions * rec.spec.hidden_sizes[-1])
    return flow(rec, device_array(backend, dtype, rng.standard_normal(shape)))


# --- chain ------------------------------------------------------------------------------------------------------------


def exact_log_slope(name, z):
    """ln |f'(z)| to fifty digits."""
    z = mpmath.mpf(float(z))
    return {
        "tanh": lambda: 2 * mpmath.log(mpmath.sech(z)),
        "sigmoid": lambda: -abs(z) - 2 * mpmath.log1p(mpmath.exp(-abs(z))),
        "identity": lambda: mpmath.mpf(0),
        "softsign": lambda: -2 * mpmath.log1p(abs(z)),
    }[name]()


@pytest.mark.parametrize(("backend", "dtype"), WITH_JAX)
@pytest.mark.parametrize("name", ["tanh", "sigmoid"])
def test_chain_is_the_product_to_fifty_digits(backend, dtype, name):
    rng = np.random.default_rng(3)
    z, w = rounded(4 * rng.standard_normal(200), dtype), rng.standard_normal(200)
    found = chain(device_array(backend, dtype, z), w, rnncore.get_nonlinearity(name))
    with mpmath.workdps(50):
        terms = [exact_log_slope(name, a) + mpmath.log(abs(mpmath.mpf(float(b)))) for a, b in zip(z, w, strict=True)]
        size = np.cumsum([abs(float(t)) for t in terms])
        total = mpmath.mpf(0)
        for n, term in enumerate(terms):
            total += term
            # Each ln f' is right to a few eps of its own size, and the sizes add up.
            assert abs(float(found.log[n] - total)) <= 8 * EPS[dtype] * (1 + size[n])
    assert (found.sign == np.cumprod(np.sign(w))).all()
    assert found.gamma == {"tanh": 1.0, "sigmoid": 0.25}[name]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_chain_of_ten_thousand_steps(dtype):
    found = chain(device_array("numpy", dtype, np.zeros(10_000)), 1.0, "sigmoid")
    assert abs(found.log[-1] / (10_000 * -math.log(4)) - 1) < (1e-6 if dtype == "float32" else 1e-14)
    n = np.arange(1, 10_001)
    found = chain(device_array("numpy", dtype, np.zeros(10_000)), 0.9, "identity")
    # A product in float64 sticks at 2.5e-323: ln = -742.
    assert np.abs(found.log - n * math.log(0.9)).max() < 1e-10
    product = 1.0
    for _ in range(10_000):
        product *= 0.9
    assert product > 0 and found.log[-1] < -1053


def test_chain_crosses_the_ranges_where_it_should():
    found = chain(np.zeros(10_000), 0.9, "identity").crossings
    for name in ("float32", "float64"):
        info = np.finfo(name)
        for got, bound in ((found[name].below_eps, info.eps), (found[name].below_normal, info.smallest_normal)):
            assert math.log(0.9) * got < math.log(bound) <= math.log(0.9) * (got - 1)
        assert found[name].above_max is None
    up = chain(np.zeros(10_000), -1.1, "identity")
    assert up.crossings["float32"].above_max == 931  # 1.1^931 = 3.42e38 is the first above 3.4028e38
    assert up.crossings["float64"].above_max == 7448
    assert up.crossings["float64"].below_eps is None
    assert list(up.sign[:3]) == [-1, 1, -1]


@pytest.mark.parametrize(("backend", "dtype"), PLACES)
def test_chain_in_saturation_has_a_size_and_a_sign(backend, dtype):
    # tanh'(9.5) = 2.2e-8 is computed as 0 in float32, tanh'(25) = 7.7e-22 in float64.
    for name, sign in (("tanh", 1.0), (rnncore.get_nonlinearity("scaled_tanh", alpha=-1.0, beta=1.0), -1.0)):
        found = chain(device_array(backend, dtype, [9.5, -9.5, 25.0, -40.0]), 1.0, name)
        truth = np.cumsum([float(exact_log_slope("tanh", a)) for a in (9.5, 9.5, 25, 40)])
        assert np.abs(found.log - truth).max() <= 4 * EPS[dtype] * abs(truth[-1])
        assert list(found.sign) == [sign, 1.0, sign, 1.0]


@pytest.mark.parametrize(("backend", "dtype"), PLACES)
def test_chain_of_an_exact_zero_is_zero_and_never_nan(backend, dtype):
    found = chain(device_array(backend, dtype, [1.0, -1.0, 2.0, -1.0]), 3.0, "relu")
    assert np.array_equal(found.log[1:], [-np.inf] * 3) and np.array_equal(found.sign, [1, 0, 0, 0])
    found = chain(device_array(backend, dtype, [0.1, 0.2, 0.3]), [1.0, 0.0, 1e30], "tanh")
    assert np.array_equal(found.log[1:], [-np.inf] * 2) and np.array_equal(found.sign, [1, 0, 0])
    assert found.crossings["float32"].below_eps == 2
    found = chain(device_array(backend, dtype, [0.1, math.nan, 0.3]), 1.0, "tanh")
    assert np.array_equal(np.isnan(found.log), [False, True, True])
    assert np.array_equal(np.isnan(found.sign), [False, True, True])


@pytest.mark.parametrize("backend", ["numpy", "torch", "strict"])
def test_chain_of_a_network_of_one_unit_is_its_derivative(backend):
    rnn = network(backend, "float64", [[-1.7]], "tanh", w_ih=0.8, bias=0.1, bidirectional=True)
    x = np.random.default_rng(0).standard_normal((6, 3, 1))
    rec = record(rnn, device_array(backend, "float64", x), lengths=[6, 4, 0])
    for d in (0, 1):
        rows = chain_of_record(rec, 0, d)
        assert [len(r.log) for r in rows] == [6, 4, 0]
        for b, length in enumerate([6, 4, 0]):
            h, slope, order = 0.0, 1.0, range(length)
            for n, t in enumerate(reversed(order) if d else order):
                h = math.tanh(0.8 * x[t, b, 0] + 0.1 - 1.7 * h)
                slope *= -1.7 * (1 - h * h)
                assert rows[b].log[n] == pytest.approx(math.log(abs(slope)), abs=1e-12)
                assert rows[b].sign[n] == np.sign(slope)


def test_chain_says_what_is_wrong():
    with pytest.raises(ShapeError, match=r"z: expected shape \(N,\), got \(1, 2\)"):
        chain(np.zeros((1, 2)), 1.0)
    with pytest.raises(ShapeError, match=r"w: expected a number or shape \(2,\), got \(3,\)"):
        chain(np.zeros(2), [1.0, 2.0, 3.0])
    with pytest.raises(DTypeError, match="z: expected one of"):
        chain(np.zeros(2, dtype=np.int64), 1.0)
    with pytest.raises(ArgumentValueError, match="a chain has one unit, this layer has 2"):
        chain_of_record(seen("numpy", "float64", np.eye(2)))
    with pytest.raises(ArgumentValueError, match="layer: expected an int"):
        chain_of_record(seen("numpy", "float64", np.eye(1)), 1)


# --- decomposition ----------------------------------------------------------------------------------------------------


def dense_split(rec, parts, totals, k, d, dtype, vectors):
    """The definition, row by row, from the gradient vectors themselves."""
    w, z = rec.host(rec.weights[k][d].weight_hh), rec.host(rec.z[k][d])
    slope = rec.nonlinearity.derivative(z, xp=xp)
    r = (w * w).sum(axis=1)
    weights = 0.5 * math.log(r.sum() / len(w))
    for t in range(rec.steps):
        for b in range(rec.batch):
            if t >= rec.lengths[b]:
                assert all(np.isnan(getattr(parts, n)[k][d, t, b]) for n in ("gain", "saturation", "alignment"))
                continue
            g = vectors[t, b]
            gain = math.log(np.linalg.norm((slope[t, b] * g) @ w) / np.linalg.norm(g))
            saturation = 0.5 * math.log((r * slope[t, b] ** 2).sum() / r.sum())
            want = (gain, saturation, gain - weights - saturation)
            got = [getattr(parts, n)[k][d, t, b] for n in ("gain", "saturation", "alignment")]
            assert np.allclose(got, want, rtol=0, atol=2000 * EPS[dtype]), (t, b)
    assert parts.weights[k][d] == pytest.approx(weights, abs=8 * EPS[dtype])


@pytest.mark.parametrize(("backend", "dtype"), PLACES)
def test_decomposition_is_its_definition(backend, dtype):
    rnn = rnncore.RNN(3, 5, 2, bidirectional=True, backend=backend, dtype=dtype, rng=1)
    x = np.random.default_rng(2).standard_normal((7, 3, 3))
    rec = record(rnn, device_array(backend, dtype, x), lengths=[7, 4, 0])
    found, deltas = backward(rec, only_last=False)
    parts = rec.map(decompose, found)
    for k in range(2):
        for d in range(2):
            # delta = f' * g, and tanh' is nowhere 0 here.
            delta = rec.host(deltas[k][d].values) * np.exp(deltas[k][d].log)[..., None]
            slope = rec.nonlinearity.derivative(rec.host(rec.z[k][d]), xp=xp)
            dense_split(rec, parts, found, k, d, dtype, delta / slope)


@pytest.mark.parametrize(("backend", "dtype"), WITH_JAX)
def test_decomposition_adds_up_and_telescopes(backend, dtype):
    rnn = rnncore.RNN(2, 16, backend=backend, dtype=dtype, rng=1)
    x = np.random.default_rng(2).standard_normal((40, 2, 2))
    rec = record(rnn, device_array(backend, dtype, x))
    found, _ = backward(rec)
    parts = rec.map(decompose, found)
    whole = parts.weights[0][:, None, None] + parts.saturation[0] + parts.alignment[0]
    assert np.abs(whole - parts.gain[0]).max() < 1e-14
    ends = found.initial[0] - found.total[0][:, -1]
    assert np.abs(parts.gain[0].sum(axis=1) - ends).max() < 40 * 8 * EPS[dtype]


@pytest.mark.parametrize(("backend", "dtype"), [("numpy", "float64"), ("numpy", "float32"), ("torch", "float32")])
def test_decomposition_of_an_orthogonal_recurrence_over_ten_thousand_steps(backend, dtype):
    w = rounded(0.9 * orthogonal(8), dtype)
    rec = seen(backend, dtype, w, steps=10_000)
    found, _ = backward(rec)
    parts = rec.map(decompose, found)
    assert parts.weights[0][0] == pytest.approx(math.log(0.9), abs=4 * EPS[dtype])
    assert np.abs(parts.saturation[0]).max() <= 4 * EPS[dtype]
    # The rounded matrix is orthogonal to a few eps; and a logarithm of -1053 is itself rounded.
    assert np.abs(parts.alignment[0]).max() < 32 * EPS[dtype] + 2 * np.spacing(1053.0)
    assert abs(parts.gain[0].sum() - (found.initial[0] - found.total[0][:, -1]).item()) < 10_000 * 4 * EPS[dtype]
    assert parts.gain[0].sum() < -1053


@pytest.mark.parametrize(("backend", "dtype"), PLACES)
def test_decomposition_tells_dead_from_lost_in_the_arithmetic(backend, dtype):
    # All relu units are off at the middle step: nothing passes, in mathematics.
    z = np.ones((3, 1, 4))
    z[1] = -1
    rec = seen(backend, dtype, np.eye(4), "relu", z=z)
    parts = rec.map(decompose, backward(rec)[0])
    assert np.allclose(parts.saturation[0][0, :, 0], [0, -np.inf, 0], rtol=0, atol=4 * EPS[dtype])
    assert parts.gain[0][0, 1, 0] == -np.inf and parts.alignment[0][0, 1, 0] == 0
    assert np.isnan(parts.gain[0][0, 0, 0])  # before it there is no gradient to stretch
    # tanh at 30: the slope is 4e-26, the arithmetic says 0.
    rec = seen(backend, dtype, np.eye(4), "tanh", z=np.full((2, 1, 4), 30.0))
    parts = rec.map(decompose, backward(rec)[0])
    assert parts.saturation[0][0, 1, 0] == pytest.approx(2 * math.log(2) - 60, rel=4 * EPS[dtype])
    assert parts.gain[0][0, 1, 0] == -np.inf and parts.alignment[0][0, 1, 0] == -np.inf
    # And a recurrence that is not there.
    parts = (rec := seen(backend, dtype, np.zeros((3, 3)), "tanh", steps=2)).map(decompose, backward(rec)[0])
    assert parts.weights[0][0] == -np.inf and parts.gain[0][0, 1, 0] == -np.inf and parts.alignment[0][0, 1, 0] == 0


# --- jacobian ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("backend", "dtype"), WITH_JAX)
@pytest.mark.parametrize(("name", "width"), [("tanh", 12), ("relu", 6), ("sigmoid", 1)])
def test_step_jacobians_against_dense_singular_values(backend, dtype, name, width):
    if backend == "jax" and name != "tanh":
        pytest.skip("each shape is compiled again")
    w = rounded(gaussian(width, 1.4), dtype)
    z = rounded(np.random.default_rng(5).standard_normal((9, 3, width)), dtype)
    rec = seen(backend, dtype, w, name, z=z, lengths=[9, 5, 0])
    found = rec.map(jacobian, sigma_max=True)
    slope = np.exp(rec.nonlinearity.log_derivative(z, xp=xp))
    values = np.linalg.svd(slope[..., None] * w, compute_uv=False)
    with np.errstate(divide="ignore"):
        top, frobenius = np.log(values[..., 0]), 0.5 * np.log((values**2).sum(axis=-1))
    tolerance = 64 * EPS[dtype]
    inside = rec.valid
    for array in (found.log_frobenius, found.log_lower, found.log_upper, found.log_det, found.isometry_gap):
        assert array[0].shape == (1, 9, 3) and np.array_equal(np.isnan(array[0][0]), ~inside)
    some = inside & (slope.max(axis=-1) > 0)
    assert np.abs(found.log_frobenius[0][0] - frobenius)[some].max() < tolerance
    assert np.abs(found.log_chi[0][0] - 2 * frobenius + math.log(width))[some].max() < 2 * tolerance
    assert np.abs(found.log_max_slope[0][0] - np.log(slope.max(axis=-1), where=some, out=np.zeros((9, 3))))[
        some
    ].max() < (tolerance)
    assert (found.log_lower[0][0] <= top + tolerance)[some].all()
    assert (found.log_upper[0][0] >= top - tolerance)[some].all()
    assert (found.isometry_gap[0][0] >= -tolerance)[some].all()
    largest = found.sigma_max
    assert np.abs(largest.value[0][0] - top)[some].max() < tolerance
    assert (largest.lower[0][0] <= top + tolerance)[some].all() and (largest.upper[0][0] >= top - tolerance)[some].all()
    assert (largest.lower[0][0] >= found.log_lower[0][0])[some].all()
    if name == "relu":
        dead = (z <= 0).any(axis=-1)
        assert (found.log_det[0][0][dead & inside] == -np.inf).all()
        assert (found.isometry_gap[0][0][dead & inside] == np.inf).all()
    else:
        log_det = np.log(values).sum(axis=-1)
        # ln |det| has a small singular value in it, on which the dense truth itself loses digits.
        assert np.abs(found.log_det[0][0] - log_det)[inside].max() < 1e4 * EPS[dtype]


@pytest.mark.parametrize(("backend", "dtype"), PLACES)
def test_step_jacobians_in_saturation_to_fifty_digits(backend, dtype):
    z = np.asarray([9.5, -12.0, 0.3, 25.0])
    w = rounded(gaussian(4, 1.0, seed=2), dtype)
    rec = seen(backend, dtype, w, "tanh", z=np.stack([z, -z + 0.25])[:, None, :])
    found = rec.map(jacobian)
    with mpmath.workdps(50):
        for t, values in enumerate((z, -z + 0.25)):
            logs = [exact_log_slope("tanh", rounded(a, dtype)) for a in values]
            det = sum(logs) + mpmath.log(abs(mpmath.det(mpmath.matrix(w.tolist()))))
            square = mpmath.fsum(
                mpmath.exp(2 * a) * mpmath.mpf(x) ** 2 for a, row in zip(logs, w.tolist(), strict=True) for x in row
            )
            size = float(sum(abs(a) for a in logs))
            assert abs(float(found.log_det[0][0, t, 0] - det)) < 8 * EPS[dtype] * size
            assert abs(float(found.log_frobenius[0][0, t, 0] - mpmath.log(square) / 2)) < 8 * EPS[dtype]
            assert np.isfinite(found.isometry_gap[0]).all()


@pytest.mark.parametrize(("backend", "dtype"), PLACES)
def test_isometry_gap(backend, dtype):
    flat = seen(backend, dtype, rounded(0.7 * orthogonal(10), dtype), steps=4)
    assert np.abs(flat.map(jacobian).isometry_gap[0]).max() < 32 * EPS[dtype]
    # (ln chi) / 2 -> 0 and ln |det| / H -> -1/2 for a Gaussian matrix, with corrections of order ln(H) / H.
    wide = seen(backend, dtype, gaussian(300, 1.0), steps=1)
    assert wide.map(jacobian).isometry_gap[0].item() == pytest.approx(0.5, abs=0.02)
    dead = seen(backend, dtype, np.eye(3), "relu", z=[[[1.0, 1.0, -1.0]], [[-1.0, -1.0, -1.0]]])
    found = dead.map(jacobian, sigma_max=True)
    assert (found.isometry_gap[0] == np.inf).all()
    assert found.log_chi[0][0, 0, 0] == pytest.approx(math.log(2 / 3), abs=4 * EPS[dtype])
    for part in (found.log_frobenius, found.log_lower, found.log_upper, found.sigma_max.value, found.sigma_max.upper):
        assert part[0][0, 1, 0] == -np.inf


@pytest.mark.parametrize(("backend", "dtype"), PLACES)
def test_step_jacobians_far_from_one(backend, dtype):
    big = 1e30 if dtype == "float32" else 1e250
    rows = np.asarray([[1.0, 2.0, 0.0], [0.0, 3.0, -1.0], [0.0, 0.0, 0.0]])
    for scale in (big, 1 / big):
        w = rounded(rows * scale, dtype)
        found = seen(backend, dtype, w, steps=1).map(jacobian, sigma_max=True)
        top = math.log(np.linalg.norm(w / scale, 2)) + math.log(scale)
        assert found.log_frobenius[0].item() == pytest.approx(0.5 * math.log(15) + math.log(scale), rel=4 * EPS[dtype])
        assert found.sigma_max.value[0].item() == pytest.approx(top, rel=8 * EPS[dtype])
        assert found.log_lower[0].item() <= top * (1 + 8 * EPS[dtype]) + 1e-5 and found.log_det[0].item() == -np.inf
    # One row as small as the dtype allows beside one that is large: neither hides the other.
    w = rounded([[big, 0.0], [0.0, 1 / big]], dtype)
    assert seen(backend, dtype, w, steps=1).map(jacobian).log_det[0].item() == pytest.approx(0, abs=300 * 8 * EPS[dtype])


def with_jacobian(target, seed=3):
    """A run whose J is `target`, by slopes of very different size that its W_hh undoes: no bound by ||W_hh|| is any good."""
    z = np.random.default_rng(seed).uniform(-1.5, 1.5, len(target))
    return seen("numpy", "float64", target / (1 - np.tanh(z) ** 2)[:, None], "tanh", z=z[None, None])


SPECTRA = [
    pytest.param(np.r_[1.0, np.full(39, 1 - 1e-9)], id="close"),
    pytest.param(np.linspace(0.99, 1, 40), id="clustered"),
    pytest.param(np.r_[1.0, 0.5, np.zeros(38)], id="rank 2"),
    pytest.param(2.0 ** -np.arange(40.0), id="graded"),
    pytest.param(np.ones(40), id="isometry"),
]


@pytest.mark.parametrize("values", SPECTRA)
@pytest.mark.parametrize("steps", [1, 2, 8, 24, 40])
def test_sigma_max_brackets_hold_where_they_are_hard(values, steps):
    rec = with_jacobian((orthogonal(40, 1) * values) @ orthogonal(40, 2).T)
    for seed in range(20):
        found = rec.map(jacobian, sigma_max=True, rng=seed, steps=steps).sigma_max
        # The matrix itself is known to a few eps.
        assert found.lower[0].item() <= 1e-13 and found.upper[0].item() >= -1e-13
        assert found.lower[0].item() <= found.value[0].item() <= found.upper[0].item()


def test_sigma_max_brackets_close_with_more_steps():
    rec = with_jacobian(gaussian(64, 1.0))
    closed = rec.map(jacobian)
    gaps = [(closed.log_upper[0] - closed.log_lower[0]).item()]
    for steps in (8, 16, 24, 32):
        found = rec.map(jacobian, sigma_max=True, steps=steps).sigma_max
        gaps.append((found.upper[0] - found.lower[0]).item())
    assert gaps == sorted(gaps, reverse=True) and gaps[0] > 0.4 and gaps[3] < 0.05 and gaps[4] < 0.01


def test_a_network_that_is_not_finite_is_no_error():
    for bad in (np.nan, np.inf):
        w = np.eye(3)
        w[1, 1] = bad
        with np.errstate(all="ignore"):  # NumPy's own warnings of the run itself
            rec = seen("numpy", "float64", w, "tanh", steps=2)
            rec = dataclasses.replace(rec, z=[[np.full((2, 1, 3), np.nan)]])
        assert np.isnan(rec.map(jacobian, sigma_max=True).log_frobenius[0]).all()
        assert np.isnan(rec.map(bounds).log_sigma_max[0]).all() and not rec.map(bounds).vanishes[0].any()
        assert rec.map(saturation).quantiles[0][0, -1] == np.inf
        rec.map(initial)
        with np.errstate(all="ignore"):
            arrived = backward(rec)
        assert np.isnan(rec.map(decompose, arrived[0]).saturation[0]).all()


# --- saturation -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("backend", "dtype"), WITH_JAX)
def test_saturation_counts(backend, dtype):
    far = 12.0 if dtype == "float32" else 20.0  # from 9.1 and 19.1 on, but NumPy's float32 tanh is 1 ulp short there
    z = np.asarray([[[0.0, 3.0], [1.0, 50.0]], [[-far, -2.0], [7.0, 50.0]], [[2.7, 2.6], [7.0, 50.0]]])
    found = seen(backend, dtype, np.eye(2), "tanh", z=z, lengths=[3, 1]).map(saturation, q=(0.0, 0.5, 1.0))
    # Valid: 0, 3, 1, 50, -far, -2, 2.7, 2.6; artanh(0.99) = 2.6467.
    assert found.saturated[0].item() == 4 / 8
    assert found.arithmetically_dead[0].item() == 2 / 8
    assert found.dead[0].item() == 0 and found.dead_units == (((),),)
    assert np.allclose(found.quantiles[0], [[0, 2.6, 50]], rtol=1e-6)


@pytest.mark.parametrize(("backend", "dtype"), PLACES)
def test_saturation_of_a_rectifier(backend, dtype):
    z = np.asarray([[[-1.0, 2.0, 0.0], [-1.0, -1.0, 5.0]], [[-3.0, -4.0, -1.0], [1.0, -1.0, 5.0]]])
    found = seen(backend, dtype, np.eye(3), "relu", z=z, lengths=[2, 1], bidirectional=True, num_layers=1).map(saturation)
    assert found.dead_units == (((0,), (0,)),) and np.allclose(found.dead[0], 1 / 3)
    assert np.isnan(found.saturated[0]).all() and (found.arithmetically_dead[0] == 0).all()
    # The padding would have woken unit 0, and nothing else is read there.
    z[1, 1] = np.nan
    again = seen(backend, dtype, np.eye(3), "relu", z=z, lengths=[2, 1]).map(saturation)
    assert again.dead_units == (((0,),),) and np.array_equal(again.quantiles[0][0], found.quantiles[0][0])


def test_saturation_of_other_ranges():
    # The logistic function is tanh in other units: sigma(z) = (1 + tanh(z / 2)) / 2.
    z = np.linspace(-12, 12, 101)[:, None, None]
    half = seen("numpy", "float64", np.eye(1), "tanh", z=z / 2).map(saturation).saturated[0]
    assert np.array_equal(seen("numpy", "float64", np.eye(1), "sigmoid", z=z).map(saturation).saturated[0], half)
    f = rnncore.get_nonlinearity("scaled_tanh", alpha=-3.0, beta=0.5)
    assert np.array_equal(seen("numpy", "float64", np.eye(1), f, z=z).map(saturation).saturated[0], half)
    clipped = rnncore.get_nonlinearity("tanh", clip=1.0)
    assert seen("numpy", "float64", np.eye(1), clipped, z=2 + abs(z)).map(saturation).dead_units == (((0,),),)
    nobody = seen("numpy", "float64", np.eye(1), "tanh", z=np.zeros((2, 1, 1)), lengths=[0]).map(saturation)
    assert np.isnan(nobody.saturated[0]).all() and np.isnan(nobody.quantiles[0]).all()
    with pytest.raises(ArgumentValueError, match="threshold"):
        seen("numpy", "float64", np.eye(1)).map(saturation, threshold=1.0)


# --- bounds -----------------------------------------------------------------------------------------------------------


def jordan(value, width):
    return value * np.eye(width) + np.eye(width, k=1)


RADII = [
    pytest.param(np.diag([0.5, -0.9, 0.1]), 0.9, id="real"),
    pytest.param(1.3 * np.asarray([[0.0, -1.0], [1.0, 0.0]]), 1.3, id="complex pair"),
    pytest.param(np.asarray([[0.6, -0.8, 1e6], [0.8, 0.6, -1e6], [0.0, 0.0, 0.2]]), 1.0, id="complex pair, not normal"),
    pytest.param(np.diag([0.7, -0.7, 0.7]), 0.7, id="equal moduli"),
    pytest.param(jordan(0.9, 6), 0.9, id="Jordan block"),
    pytest.param(jordan(1e-3, 4), 1e-3, id="Jordan block, small"),
    pytest.param(np.diag([1e200, 1e-200]), 1e200, id="large"),
    pytest.param(np.diag([1e-200, 1e-220]), 1e-200, id="small"),
    pytest.param(np.roll(np.eye(7), 1, axis=0), 1.0, id="a cycle"),
]


@pytest.mark.parametrize(("w", "radius"), RADII)
def test_spectral_radius(w, radius):
    assert log_spectral_radius(np.asarray(w)) == pytest.approx(math.log(radius), abs=1e-9)


@pytest.mark.parametrize("width", [1, 2, 5, 100])
def test_spectral_radius_of_nilpotent_matrices(width):
    assert log_spectral_radius(np.eye(width, k=1) * 3) == -math.inf
    # Plateaus of the norm must not be taken for convergence: ||W^n|| is 1 up to n = width - 1.
    assert log_spectral_radius(2 * np.asarray([[1.0, -1.0], [1.0, -1.0]])) == -math.inf


def test_spectral_radius_of_random_matrices():
    for seed in range(20):
        w = gaussian(12, 1.0, seed)
        assert log_spectral_radius(w) == pytest.approx(math.log(np.abs(np.linalg.eigvals(w)).max()), abs=1e-9)


@pytest.mark.parametrize(("backend", "dtype"), WITH_JAX)
def test_conditions_of_pascanu(backend, dtype):
    for name, edge in (("sigmoid", 4.0), ("tanh", 1.0)):
        for factor, vanishes, may in ((0.99, True, False), (1.0, False, False), (1.01, False, True)):
            found = seen(backend, dtype, edge * factor * np.eye(4), name).map(bounds)
            if factor == 1.0 or dtype == "float64":
                assert found.log_sigma_max[0].item() == pytest.approx(math.log(edge * factor), abs=1e-15)
            assert (found.vanishes[0].item(), found.may_explode[0].item()) == (vanishes, may)
            assert found.gamma == 1 / edge
    w = rounded(gaussian(5, 1.0), dtype)
    with mpmath.workdps(50):
        det = float(mpmath.log(abs(mpmath.det(mpmath.matrix(w.tolist())))))
    assert seen(backend, dtype, w).map(bounds).log_det[0].item() == pytest.approx(det, abs=1e-13)


def test_no_bound_is_known_for_a_function_without_gamma():
    square = rnncore.custom_nonlinearity(lambda z: z * z, lambda z: 2 * z)
    found = seen("numpy", "float64", 0.1 * np.eye(2), square).map(bounds)
    assert found.gamma is None and not found.vanishes[0].any() and found.may_explode[0].all()


def test_a_spectral_radius_of_zero_and_a_gradient_that_doubles():
    w = 2 * np.asarray([[1.0, -1.0], [1.0, -1.0]])
    rec = seen("numpy", "float64", w, "relu", z=np.tile([1.0, -1.0], (50, 1, 1)))
    assert rec.map(bounds).log_spectral_radius[0].item() == -math.inf and rec.map(bounds).may_explode[0].item()
    parts = rec.map(decompose, flow(rec, None, [[np.asarray([[1.0, 1.0]])]])[0])
    assert np.allclose(parts.gain[0][0, :-1, 0], math.log(2), atol=1e-12)


@pytest.mark.parametrize("asked", [False, True])
@pytest.mark.parametrize(("steps", "width"), [(10_000, 4), (60, 12)])
def test_the_certificate_encloses_the_product(steps, width, asked):
    w = gaussian(width, 1.2)
    z = np.random.default_rng(1).standard_normal((steps, 2, width))
    lengths = [steps, steps // 2]
    rec = seen("numpy", "float64", w, "tanh", z=z, lengths=lengths)
    start, stop = 3, steps - 2
    found = span_bounds(rec.map(jacobian, sigma_max=asked), start, stop)
    for b in (0, 1):
        product, log = np.eye(width), 0.0
        for t in range(start, min(stop, lengths[b])):
            product = ((1 - np.tanh(z[t, b]) ** 2)[:, None] * w) @ product
            norm = np.linalg.norm(product)
            product, log = product / norm, log + math.log(norm)
        top = log + math.log(np.linalg.norm(product, 2))
        assert found.lower[0][0, b] <= top <= found.upper[0][0, b]


def test_the_certificate_is_tight_for_an_isometry_and_zero_for_no_step():
    rec = seen("numpy", "float64", 0.9 * orthogonal(6), steps=10_000)
    found = span_bounds(rec.map(jacobian))
    assert found.lower[0].item() == pytest.approx(10_000 * math.log(0.9), abs=1e-9)
    assert found.upper[0].item() == pytest.approx(10_000 * math.log(0.9), abs=1e-9)
    nothing = span_bounds(rec.map(jacobian), 5, 5)
    assert nothing.lower[0].item() == nothing.upper[0].item() == 0
    with pytest.raises(ArgumentValueError, match="start, stop"):
        span_bounds(rec.map(jacobian), 5, 10_001)


# --- initial ----------------------------------------------------------------------------------------------------------


def expectation(function, kinks=()):
    def density(x):
        return mpmath.exp(-x * x / 2) / mpmath.sqrt(2 * mpmath.pi)

    points = sorted({-12, -6, -3, -1, 0, 1, 3, 6, 12, *kinks})
    return mpmath.quad(lambda x: function(x) * density(x), points)


KNOWN = [
    ("relu", 0.0, math.sqrt(2)),
    ("relu", 0.5, math.sqrt(2)),
    ("tanh", 0.0, 1.0),
    ("identity", 0.0, 1.0),
    ("identity", 2.0, 1.0),
    ("softplus", 0.0, math.sqrt(2)),
    ("leaky_relu", 0.0, math.sqrt(2 / (1 + 0.01**2))),
]


@pytest.mark.parametrize(("name", "v", "g"), KNOWN)
def test_known_critical_gains(name, v, g):
    assert critical_gain(rnncore.get_nonlinearity(name), v).g == pytest.approx(g, abs=1e-11)


@pytest.mark.parametrize(("name", "v"), [("tanh", 0.1), ("tanh", 4.0), ("sigmoid", 0.0), ("sigmoid", 1.0)])
def test_critical_gains_to_twenty_digits(name, v):
    found = critical_gain(rnncore.get_nonlinearity(name), v)
    with mpmath.workdps(25):
        f = mpmath.tanh if name == "tanh" else lambda z: 1 / (1 + mpmath.exp(-z))
        root = mpmath.sqrt(mpmath.mpf(found.q))
        square = expectation(lambda x: f(root * x) ** 2)
        slope = expectation(lambda x: mpmath.exp(2 * exact_log_slope_of(name, root * x)))
        assert abs(float(found.g**2 * square + v - found.q)) < 1e-11 * found.q
        assert abs(float(found.g**2 * slope - 1)) < 1e-11


def exact_log_slope_of(name, z):
    if name == "tanh":
        return 2 * mpmath.log(mpmath.sech(z))
    return -abs(z) - 2 * mpmath.log1p(mpmath.exp(-abs(z)))


def test_kinks_and_narrow_slopes_are_integrated():
    # P(-2.5 < sqrt(q) x < 2.5) = erf(2.5 / sqrt(2 q)), with the slope 1/5 inside.
    for q in (0.3, 4.0, 1e4):
        state = mean_field(rnncore.get_nonlinearity("hard_sigmoid"), 0.0, q)
        assert (state.q, state.chi, state.rate) == (pytest.approx(q, rel=1e-12), 0.0, -math.inf)
        g = 1e-6  # so small that q is v
        state = mean_field(rnncore.get_nonlinearity("hard_sigmoid"), g, q)
        assert state.chi / g**2 == pytest.approx(0.04 * math.erf(2.5 / math.sqrt(2 * q)), rel=1e-9)
    # tanh at q -> oo: E sech^4(sqrt(q) x) -> 4 / (3 sqrt(2 pi q)).
    q = 1e12
    state = mean_field(rnncore.get_nonlinearity("tanh"), 1.0, q)
    assert state.chi == pytest.approx(4 / (3 * math.sqrt(2 * math.pi * q)), rel=1e-9)


def test_mean_field_of_chaos_and_of_silence():
    tanh = rnncore.get_nonlinearity("tanh")
    assert mean_field(tanh, 0.5).q == 0 and mean_field(tanh, 0.5).rate == pytest.approx(math.log(0.5), abs=1e-12)
    assert mean_field(tanh, 1 / math.sqrt(3)).rate == pytest.approx(-0.5493061443340549, abs=1e-12)  # torch's default
    # From either side the same stable q, far from the unstable one at 0.
    low, high = mean_field(tanh, 2.0, start=1e-9), mean_field(tanh, 2.0, start=1e9)
    assert low.q == pytest.approx(high.q, rel=1e-12) and low.q > 1 and low.rate > 0
    assert mean_field(rnncore.get_nonlinearity("relu"), 2.0).q == math.inf
    assert mean_field(rnncore.get_nonlinearity("relu"), 1.0, 3.0).q == pytest.approx(6.0, rel=1e-12)  # q = q / 2 + 3
    none = critical_gain(rnncore.get_nonlinearity("affine", alpha=0.0, beta=1.0), 1.0)
    assert none.g is None and none.q is None
    with pytest.raises(ArgumentValueError, match="input_variance"):
        critical_gain(tanh, -1.0)


@pytest.mark.parametrize(("backend", "dtype"), WITH_JAX)
def test_initial_measures_its_input(backend, dtype):
    rnn = rnncore.RNN(4, 6, 2, bidirectional=True, backend=backend, dtype=dtype, rng=3)
    x = np.random.default_rng(4).standard_normal((8, 3, 4))
    rec = record(rnn, device_array(backend, dtype, x), lengths=[8, 5, 0])
    found = rec.map(initial)
    for k in range(2):
        for d in range(2):
            w = rec.weights[k][d]
            share = rec.host(rec.inputs[k]) @ rec.host(w.weight_ih).T + rec.host(w.bias)
            v = (share[rec.valid] ** 2).mean()
            assert found.input_variance[k][d] == pytest.approx(v, rel=64 * EPS[dtype])
            want = critical_gain(rec.nonlinearity, found.input_variance[k][d])
            assert found.critical[k][d] == want and want.g > 1
            g = np.linalg.norm(rec.host(w.weight_hh)) / math.sqrt(6)
            assert found.gain[k][d] == pytest.approx(g, rel=1e-14)
            assert found.now[k][d].rate < 0


def test_initial_predicts_what_the_jacobians_show():
    """A wide network with the critical gain for its own input: (ln chi) / 2 is what is measured, and near 0."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((60, 4, 20))
    rates = []
    for g in (0.7, 1.4, 2.5):
        rnn = rnncore.RNN(
            20,
            300,
            init={
                "weight_hh": rnncore.init.gaussian(g),
                "weight_ih": rnncore.init.gaussian(0.5),
                "bias_ih": fixed(0.0),
                "bias_hh": fixed(0.0),
            },
            dtype="float64",
            rng=1,
        )
        rec = record(rnn, x)
        found, measured = rec.map(initial), rec.map(jacobian).log_chi[0][0, 20:]
        # Fluctuations of order 1 / sqrt(H).
        assert found.now[0][0].rate == pytest.approx(0.5 * math.log(np.exp(measured).mean()), abs=0.05)
        rates.append(found.now[0][0].rate)
    assert rates[0] < 0 < rates[2]


def test_a_function_of_the_users_own_is_evaluated_where_it_lives():
    import torch

    f = rnncore.custom_nonlinearity(torch.tanh, lambda z: 1 - torch.tanh(z) ** 2, gamma=1.0)
    named, own = (seen("torch", "float64", 1.5 * orthogonal(4), g, steps=3, bias=0.5).map(initial) for g in ("tanh", f))
    assert own.now[0][0].q == pytest.approx(named.now[0][0].q, rel=1e-12)
    assert own.critical[0][0].g == pytest.approx(named.critical[0][0].g, rel=1e-11)


# --- every probe on every backend -------------------------------------------------------------------------------------


def numbers(x):
    """Everything numeric in nested results, in order."""
    if dataclasses.is_dataclass(x):
        return [n for f in dataclasses.fields(x) for n in numbers(getattr(x, f.name))]
    if isinstance(x, dict):
        return [n for v in x.values() for n in numbers(v)]
    if isinstance(x, (tuple, list)):
        return [n for v in x for n in numbers(v)]
    return [math.nan] if x is None else list(np.asarray(x, dtype=np.float64).ravel())


PROBES = {
    "chain": lambda rec: chain_of_record(rec, 0, 1),
    "decomposition": lambda rec: rec.map(decompose, backward(rec, only_last=False)[0]),
    "jacobian": lambda rec: rec.map(jacobian),
    "sigma_max": lambda rec: [getattr(rec.map(jacobian, sigma_max=True).sigma_max, n) for n in ("value", "lower")],
    "saturation": lambda rec: rec.map(saturation),
    "bounds": lambda rec: rec.map(bounds),
    "span_bounds": lambda rec: span_bounds(rec.map(jacobian)),
    "initial": lambda rec: rec.map(initial),
}


@pytest.mark.parametrize("name", PROBES)
@pytest.mark.parametrize("nonlinearity", ["tanh", "relu"])
def test_the_same_trace_gives_the_same_result_on_every_backend(name, nonlinearity):
    def run(backend, dtype):
        hidden = [1, 5]
        rnn = rnncore.RNN(3, hidden, 2, nonlinearity, bidirectional=True, backend=backend, dtype=dtype, rng=11)
        x = device_array(backend, dtype, 2 * np.random.default_rng(12).standard_normal((12, 3, 3)))
        return np.asarray(numbers(PROBES[name](record(rnn, x, lengths=[12, 7, 0]))))

    want = run("numpy", "float64")
    assert np.isfinite(want).any()
    for backend in ("torch", "strict"):
        assert np.allclose(run(backend, "float64"), want, rtol=0, atol=1e-9, equal_nan=True)
    if nonlinearity == "tanh" and name in ("decomposition", "jacobian", "saturation"):
        # In float32 the two traces themselves part by some eps, on numbers of up to 100 nats.
        assert np.allclose(run("jax", "float32"), run("numpy", "float32"), rtol=1e-5, atol=1e-4, equal_nan=True)


@pytest.mark.parametrize("backend", ["torch", "strict"])
def test_upper_ends_of_the_brackets_agree(backend):
    """To 1e-6, not 1e-9: once the space is exhausted, what they add to the value is a rounding error times 1e9."""
    found = []
    for place in ("numpy", backend):
        rnn = rnncore.RNN(3, 9, backend=place, dtype="float64", rng=11)
        x = device_array(place, "float64", 2 * np.random.default_rng(12).standard_normal((12, 3, 3)))
        found.append(record(rnn, x).map(jacobian, sigma_max=True).sigma_max.upper[0])
    assert np.abs(found[0] - found[1]).max() < 1e-6


@pytest.mark.parametrize("name", [n for n in PROBES if n != "chain"])
@pytest.mark.parametrize("backend", ["numpy", "torch", "strict"])
def test_an_empty_batch_has_empty_results(name, backend):
    rec = seen(backend, "float64", np.eye(3), "tanh", steps=2, batch=0)
    PROBES[name](rec)
    assert rec.map(jacobian).log_chi[0].shape == (1, 2, 0)
