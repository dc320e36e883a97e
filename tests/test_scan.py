"""The reference scans: closed forms, and the closure under differentiation against central differences."""

import itertools
from functools import partial

import array_api_strict
import mpmath
import numpy as np
import pytest
from array_api_compat import numpy as xp
from rnncore_numpy._scans import NumpyScans

import rnncore
from rnncore import get_nonlinearity, scan
from rnncore.backend.contract import ScanRequest
from rnncore.errors import ArgumentValueError
from tests.tools.differences import assert_close, directional, gradients
from tests.tools.drawn import normal
from tests.tools.rounding import EPS, agree

STEPS, BATCH, WIDTH = 4, 2, 3
SMOOTH = ("tanh", "sigmoid", "identity", "softplus", "softsign", "elu", "scaled_tanh", "affine")
KINKED = ("relu", "leaky_relu", "thresholded_relu", "hard_sigmoid")
both_ways = pytest.mark.parametrize("reverse", [False, True], ids=["forwards", "reverse"])


def nonlinear_arguments(seed=0):
    return normal(seed, (STEPS, BATCH, WIDTH), (BATCH, WIDTH), (WIDTH, WIDTH))


def linear_arguments(seed=0):
    u, d, s0, m = normal(seed, (STEPS, BATCH, WIDTH), (STEPS, BATCH, WIDTH), (BATCH, WIDTH), (WIDTH, WIDTH))
    d[1, 0, 1] = 0.0  # an exactly dead unit: its cotangent is not what s / d would say
    return u, d, s0, m


@both_ways
def test_the_linear_scan_of_a_scalar_is_a_product_of_factors(reverse):
    """The chain D_n = prod of sigma'(z_i) w: with u = 0 and s0 = 1 it is a power."""
    d, w = np.full((50, 1, 1), 0.25), np.full((1, 1), 1.5)
    s = scan.linear(np.zeros_like(d), d, np.ones((1, 1)), w, reverse=reverse, xp=xp)
    powers = 0.375 ** np.arange(1, 51)
    # Each step rounds one product, and 50 halves of an eps and the power's own are less.
    np.testing.assert_allclose(s[:, 0, 0], powers[::-1] if reverse else powers, rtol=50 * EPS)


@both_ways
def test_the_identity_network_sums_its_input(reverse):
    p = np.arange(12.0).reshape(4, 1, 3)
    h = scan.nonlinear(p, np.ones((1, 3)), np.eye(3), nonlinearity=get_nonlinearity("identity"), reverse=reverse, xp=xp)
    want = 1 + (p[::-1].cumsum(0)[::-1] if reverse else p.cumsum(0))
    np.testing.assert_array_equal(h, want)


def test_against_fifty_digits():
    p, h0, w = nonlinear_arguments(3)
    h = scan.nonlinear(p, h0, w, nonlinearity=get_nonlinearity("tanh"), reverse=False, xp=xp)
    with mpmath.workdps(50):
        for b in range(BATCH):
            state = [mpmath.mpf(float(v)) for v in h0[b]]
            for t in range(STEPS):
                state = [
                    mpmath.tanh(float(p[t, b, i]) + mpmath.fsum(float(w[i, j]) * state[j] for j in range(WIDTH)))
                    for i in range(WIDTH)
                ]
                # Errors of earlier steps come through the recurrence, so a few eps and not one.
                assert max(abs(float(s - v)) for s, v in zip(state, h[t, b], strict=True)) < 8 * np.finfo("f8").eps


@both_ways
@pytest.mark.parametrize("name", SMOOTH + KINKED)
@pytest.mark.parametrize("clip", [None, 0.7], ids=["", "clip"])
def test_vjp_of_the_nonlinear_scan(name, clip, reverse):
    f = get_nonlinearity(name, clip=clip)
    arguments = nonlinear_arguments(1)
    h = scan.nonlinear(*arguments, nonlinearity=f, reverse=reverse, xp=xp)
    (c,) = normal(2, h.shape)
    got = scan.nonlinear_vjp(c, *arguments, h, nonlinearity=f, reverse=reverse, xp=xp)
    run = lambda *a: float((c * scan.nonlinear(*a, nonlinearity=f, reverse=reverse, xp=xp)).sum())  # noqa: E731
    assert got.carry is None
    for g, w in zip(got[:3], gradients(run, arguments), strict=True):
        assert_close(g, w)


@both_ways
@pytest.mark.parametrize("name", SMOOTH + KINKED)
def test_jvp_of_the_nonlinear_scan(name, reverse):
    f = get_nonlinearity(name)
    arguments, tangents = nonlinear_arguments(1), nonlinear_arguments(5)
    h = scan.nonlinear(*arguments, nonlinearity=f, reverse=reverse, xp=xp)
    got = scan.nonlinear_jvp(*tangents, *arguments, h, nonlinearity=f, reverse=reverse, xp=xp)
    run = lambda *a: scan.nonlinear(*a, nonlinearity=f, reverse=reverse, xp=xp)  # noqa: E731
    assert_close(got, directional(run, arguments, tangents))


@both_ways
def test_vjp_of_the_linear_scan(reverse):
    """A factor d of exactly 0 among them: the cotangents of the others are not what a division by it would say."""
    arguments = linear_arguments(1)
    s = scan.linear(*arguments, reverse=reverse, xp=xp)
    (c,) = normal(2, s.shape)
    got = scan.linear_vjp(c, *arguments, s, reverse=reverse, xp=xp)
    run = lambda *a: float((c * scan.linear(*a, reverse=reverse, xp=xp)).sum())  # noqa: E731
    for g, w in zip(got, gradients(run, arguments), strict=True):
        assert_close(g, w)


@both_ways
def test_jvp_of_the_linear_scan(reverse):
    arguments, tangents = linear_arguments(1), linear_arguments(5)
    s = scan.linear(*arguments, reverse=reverse, xp=xp)
    got = scan.linear_jvp(*tangents, *arguments, s, reverse=reverse, xp=xp)
    assert_close(got, directional(lambda *a: scan.linear(*a, reverse=reverse, xp=xp), arguments, tangents))


@both_ways
def test_cotangents_that_are_not_needed_and_tangents_of_zero_are_skipped(reverse):
    f, options = get_nonlinearity("tanh"), {"reverse": reverse, "xp": xp}
    one, other = nonlinear_arguments(1), linear_arguments()
    h, s = scan.nonlinear(*one, nonlinearity=f, **options), scan.linear(*other, **options)
    pulls = (
        (partial(scan.nonlinear_vjp, h, *one, h, nonlinearity=f, **options), 3),
        (partial(scan.linear_vjp, s, *other, s, **options), 4),
    )
    for pull, count in pulls:
        for needs in itertools.product((False, True), repeat=count):
            for k, (got, want) in enumerate(zip(pull(needs=needs)[:count], pull()[:count], strict=True)):
                if k == 0 or needs[k]:
                    np.testing.assert_array_equal(got, want)
                else:
                    assert got is None
    pushes = (
        (partial(scan.nonlinear_jvp, nonlinearity=f, **options), nonlinear_arguments(5), (*one, h)),
        (partial(scan.linear_jvp, **options), linear_arguments(7), (*other, s)),
    )
    for push, tangents, arguments in pushes:
        for given in itertools.product((False, True), repeat=len(tangents)):
            with_none = [t if g else None for t, g in zip(tangents, given, strict=True)]
            zeros = [t if g else np.zeros_like(t) for t, g in zip(tangents, given, strict=True)]
            assert_close(push(*with_none, *arguments), push(*zeros, *arguments))


@both_ways
def test_time_can_be_cut_anywhere(reverse):
    p, h0, w = nonlinear_arguments()
    f = get_nonlinearity("tanh")
    whole = scan.nonlinear(p, h0, w, nonlinearity=f, reverse=reverse, xp=xp)
    first, second = (p[2:], p[:2]) if reverse else (p[:2], p[2:])
    a = scan.nonlinear(first, h0, w, nonlinearity=f, reverse=reverse, xp=xp)
    b = scan.nonlinear(second, a[0] if reverse else a[-1], w, nonlinearity=f, reverse=reverse, xp=xp)
    np.testing.assert_array_equal(whole, np.concatenate([b, a] if reverse else [a, b]))


@both_ways
def test_a_matrix_for_each_further_axis(reverse):
    p, h0, w = normal(0, (STEPS, 5, BATCH, WIDTH), (5, BATCH, WIDTH), (5, WIDTH, WIDTH))
    f = get_nonlinearity("tanh")
    h = scan.nonlinear(p, h0, w, nonlinearity=f, reverse=reverse, xp=xp)
    (c,) = normal(1, p.shape)
    grads = scan.nonlinear_vjp(c, p, h0, w, h, nonlinearity=f, reverse=reverse, xp=xp)
    for k in range(5):
        one = scan.nonlinear(p[:, k], h0[k], w[k], nonlinearity=f, reverse=reverse, xp=xp)
        agree(h[:, k], one)
        want = scan.nonlinear_vjp(c[:, k], p[:, k], h0[k], w[k], one, nonlinearity=f, reverse=reverse, xp=xp)
        agree(grads.w_hh[k], want.w_hh)


@both_ways
@pytest.mark.parametrize("name", SMOOTH + KINKED)
def test_the_reference_runs_on_the_strictest_array_api(name, reverse):
    """array-api-strict has nothing but the standard, on a device that is not the default."""
    strict, device = array_api_strict, array_api_strict.Device("device1")
    give = lambda a: strict.asarray(a, device=device)  # noqa: E731
    arguments = [give(a) for a in nonlinear_arguments()]
    f = get_nonlinearity(name)
    h = scan.nonlinear(*arguments, nonlinearity=f, reverse=reverse, xp=strict)
    grads = scan.nonlinear_vjp(h, *arguments, h, nonlinearity=f, reverse=reverse, xp=strict)
    scan.linear_vjp(h, h, h, arguments[1], arguments[2], h, reverse=reverse, xp=strict)
    scan.linear_jvp(h, h, arguments[1], arguments[2], h, h, arguments[1], arguments[2], h, reverse=reverse, xp=strict)
    assert h.device == device and all(g.device == device for g in grads[:3])
    want = scan.nonlinear(*nonlinear_arguments(), nonlinearity=f, reverse=reverse, xp=xp)
    back = h.to_device(strict.Device("CPU_DEVICE"))
    agree(np.from_dlpack(back), want)


@both_ways
@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("clip", [None, 0.5])
@pytest.mark.parametrize("name", ["tanh", "relu", "sigmoid", "identity"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_numpy_scans_equal_the_reference(dtype, name, clip, overwrite, reverse):
    f = get_nonlinearity(name, clip=clip)
    p, h0, w = (a.astype(dtype) for a in nonlinear_arguments())
    want = scan.nonlinear(p, h0, w, nonlinearity=f, reverse=reverse, xp=xp)
    kept = [a.copy() for a in (p, h0, w)]
    got = NumpyScans().nonlinear(p, h0, w, nonlinearity=f, reverse=reverse, overwrite=overwrite)
    assert (got is p) == overwrite
    np.testing.assert_allclose(got, want, rtol=0, atol=8 * np.finfo(dtype).eps)
    for a, b in list(zip((p, h0, w), kept, strict=True))[1 if overwrite else 0 :]:
        np.testing.assert_array_equal(a, b)

    u, d, s0, m = (a.astype(dtype) for a in linear_arguments())
    want = scan.linear(u, d, s0, m, reverse=reverse, xp=xp)
    kept = [a.copy() for a in (u, s0, m)]
    got = NumpyScans().linear(u, d, s0, m, reverse=reverse, overwrite=overwrite)
    assert (got is d) == overwrite
    scale = np.abs(want).max()
    np.testing.assert_allclose(got, want, rtol=0, atol=8 * np.finfo(dtype).eps * scale)
    for a, b in zip((u, s0, m), kept, strict=True):
        np.testing.assert_array_equal(a, b)


def test_numpy_scans_do_not_write_into_read_only_arrays():
    p, h0, w = nonlinear_arguments()
    p.flags.writeable = False
    got = NumpyScans().nonlinear(p, h0, w, nonlinearity=get_nonlinearity("tanh"), reverse=False, overwrite=True)
    assert got is not p


def test_numpy_scans_say_what_they_do_not_take():
    request = ScanRequest("nonlinear", 2, 2, 2, "float64", "cpu", False, get_nonlinearity("softplus"))
    reason = NumpyScans().unsupported(request)
    assert reason is not None and "softplus" in reason
    assert NumpyScans().unsupported(ScanRequest("linear", 2, 2, 2, "float16", "cpu")) is not None
    assert NumpyScans().unsupported(ScanRequest("linear", 2, 2, 2, "float32", "cpu")) is None


def test_a_slope_that_needs_p_says_so():
    import array_api_compat.numpy as xp

    clipped = rnncore.get_nonlinearity("tanh", clip=1.0)
    h0, w, h = np.ones((1, 2)), np.eye(2), np.ones((3, 1, 2))
    with pytest.raises(ArgumentValueError, match="p: expected an array"):
        scan.slope(None, h0, w, h, nonlinearity=clipped, reverse=False, xp=xp)


def test_the_slopes_of_a_scan_with_carry_need_p():
    h0, w, h = np.ones((1, 2)), np.eye(2), np.ones((3, 1, 2))
    f, carry = rnncore.get_nonlinearity("tanh"), scan.Carry(g=np.full(2, 0.5))
    with pytest.raises(ArgumentValueError, match="p: expected an array, as with carry f' is computed from z, got None"):
        scan.nonlinear_vjp(np.ones((3, 1, 2)), None, h0, w, h, nonlinearity=f, reverse=False, xp=xp, carry=carry)
