"""The carry form of both scans: closed forms, resets and padding, and derivatives against central differences."""

from __future__ import annotations

import array_api_strict
import numpy as np
import pytest
from array_api_compat import numpy as xp

from rnncore import get_nonlinearity, scan
from rnncore.carry import spread
from rnncore.errors import ArgumentValueError
from rnncore.scan import Carry
from tests.tools.differences import assert_close, directional, gradients
from tests.tools.drawn import normal
from tests.tools.rounding import EPS, PROMISED, agree

STEPS, BATCH, WIDTH = 4, 2, 3
FULL = (STEPS, BATCH, WIDTH)
both_ways = pytest.mark.parametrize("reverse", [False, True], ids=["forwards", "reverse"])
# Shapes of a, g, i: each way in which a factor may be smaller than (T, B, H), and factors left at their defaults.
SHAPES = {
    "full": (FULL, FULL, FULL),
    "a number per unit": ((WIDTH,), (WIDTH,), (WIDTH,)),
    "per step, row and unit": ((STEPS, 1, 1), (BATCH, 1), (1, 1, WIDTH)),
    "scalars": ((), (1,), (1, 1, 1)),
    "one axis missing": ((STEPS, BATCH, 1), (STEPS, 1, WIDTH), (BATCH, WIDTH)),
    "a leak": ((WIDTH,), (WIDTH,), None),
    "only g": (None, FULL, None),
    "only i": (None, None, FULL),
    "only a": ((STEPS, 1, 1), None, None),
}
every_shape = pytest.mark.parametrize("shapes", SHAPES.values(), ids=SHAPES)


def factors(shapes, seed=3):
    rng = np.random.default_rng(seed)
    made = [None if s is None else rng.uniform(0.2, 1.0, s) for s in shapes]
    for factor in made:
        if factor is not None and factor.shape == FULL:
            factor[2] = 0.0  # a cut is a value like any other: its derivatives are not 0
    return made


def nonlinear(p, h0, w, a=None, g=None, i=None, *, f="tanh", reverse=False, **options):
    f = get_nonlinearity(f)
    return scan.nonlinear(p, h0, w, nonlinearity=f, reverse=reverse, xp=xp, carry=Carry(a, g, i), **options)


def network(seed=0):
    return normal(seed, FULL, (BATCH, WIDTH), (WIDTH, WIDTH))


def given(values):
    """The positions of the arguments that are not None."""
    return [k for k, v in enumerate(values) if v is not None]


def filled(arguments, values):
    """`arguments` with these values where they are not None."""
    values = iter(values)
    return [a if a is None else next(values) for a in arguments]


def assert_gradients(got, loss, arguments):
    """Against central differences, each in the shape of its argument, and None where that is None."""
    there = given(arguments)
    assert given(got) == there
    wanted = gradients(lambda *a: loss(*filled(arguments, a)), [arguments[k] for k in there])
    for k, want in zip(there, wanted, strict=True):
        assert got[k].shape == arguments[k].shape
        assert_close(got[k], want)


def assert_tangent(got, run, arguments, dots):
    """Against a central difference along the tangents."""
    pairs = [(a, dot) for a, dot in zip(arguments, dots, strict=True) if a is not None]
    assert_close(got, directional(lambda *a: run(*filled(arguments, a)), *zip(*pairs, strict=True)))


# --- what it computes -------------------------------------------------------------------------------------------------


@both_ways
@every_shape
def test_each_step_is_the_formula(shapes, reverse):
    p, h0, w = network()
    a, g, i = factors(shapes)
    got = nonlinear(p, h0, w, a, g, i, reverse=reverse)
    fa, fg, fi = (
        np.broadcast_to(default if k is None else k, FULL) for k, default in ((a, 0.0), (g, 1.0), (i, 1.0))
    )  # fmt: skip
    h = h0
    for t in reversed(range(STEPS)) if reverse else range(STEPS):
        h = fa[t] * h + fg[t] * np.tanh(p[t] + (fi[t] * h) @ w.T)
        agree(got[t], h)


@both_ways
def test_a_leak_of_a_linear_unit_decays_exponentially(reverse):
    """h_t = (1 - alpha) h_{t-1} + alpha p: the distance from p shrinks by 1 - alpha in each step."""
    alpha, steps = 0.125, 60
    p, h0, w = np.full((steps, 1, 1), 3.0), np.full((1, 1), -1.0), np.zeros((1, 1))
    h = nonlinear(p, h0, w, np.asarray(1 - alpha), np.asarray(alpha), f="identity", reverse=reverse)
    want = 3.0 - 4.0 * (1 - alpha) ** np.arange(1, steps + 1)
    # A rounding decays as the state does: those of about 1 / alpha steps are left, of a product and of a sum.
    agree(h[:, 0, 0], want[::-1] if reverse else want, 2 / alpha)


@both_ways
def test_the_gradient_of_a_leak_decays_exponentially(reverse):
    alpha, steps = 0.125, 60
    p, h0, w = np.zeros((steps, 1, 1)), np.zeros((1, 1)), np.zeros((1, 1))
    f, leak = get_nonlinearity("identity"), Carry(np.asarray([1 - alpha]), np.asarray([alpha]))
    h = scan.nonlinear(p, h0, w, nonlinearity=f, reverse=reverse, xp=xp, carry=leak)
    d_h = np.zeros_like(p)
    d_h[0 if reverse else -1] = 1.0
    found = scan.nonlinear_vjp(d_h, p, h0, w, h, nonlinearity=f, reverse=reverse, xp=xp, carry=leak)
    want = alpha * (1 - alpha) ** np.arange(steps)
    # Each step rounds one product.
    np.testing.assert_allclose(found.p[:, 0, 0], want if reverse else want[::-1], rtol=steps * EPS)
    np.testing.assert_allclose(found.h0, [[(1 - alpha) ** steps]], rtol=steps * EPS)


@both_ways
@pytest.mark.parametrize("name", ["tanh", "relu", "softplus"])
def test_factors_at_their_defaults_change_no_bit(name, reverse):
    p, h0, w = network()
    plain = scan.nonlinear(p, h0, w, nonlinearity=get_nonlinearity(name), reverse=reverse, xp=xp)
    ones = np.ones(FULL)
    for carry in ((None, None, None), (0 * ones, ones, ones), (np.zeros(()), np.ones(WIDTH), None)):
        np.testing.assert_array_equal(nonlinear(p, h0, w, *carry, f=name, reverse=reverse), plain)


@both_ways
def test_the_linear_scan_is_a_case_of_the_one_with_carry(reverse):
    u, d, s0, m = normal(0, FULL, FULL, (BATCH, WIDTH), (WIDTH, WIDTH))
    got = scan.linear_carry(d * u, d, None, None, s0, m, reverse=reverse, xp=xp)
    agree(got, scan.linear(u, d, s0, m, reverse=reverse, xp=xp))


# --- cuts -------------------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
@both_ways
@pytest.mark.parametrize("before", [1.0, np.nan, np.inf], ids=["numbers", "NaN", "infinity"])
def test_a_reset_makes_two_sequences_of_one(before, reverse):
    """Bit for bit, in states and gradients, and whatever became of the first sequence."""
    p, h0, w = network()
    f = get_nonlinearity("relu")
    first, second = (slice(2, None), slice(0, 2)) if reverse else (slice(0, 2), slice(2, None))
    p[first] *= before
    runs = np.ones((STEPS, 1, 1))
    runs[1 if reverse else 2] = 0.0
    carry, zero = Carry(runs * 0.5, None, runs), np.zeros_like(h0)
    options = {"nonlinearity": f, "reverse": reverse, "xp": xp}
    h = scan.nonlinear(p, h0, w, carry=carry, **options)
    alone = Carry(runs[second] * 0.5, None, runs[second])
    want = scan.nonlinear(p[second], zero, w, carry=alone, **options)
    np.testing.assert_array_equal(h[second], want)
    c = normal(5, FULL)[0]
    got = scan.nonlinear_vjp(c, p, h0, w, h, carry=carry, **options)
    apart = scan.nonlinear_vjp(c[second], p[second], zero, w, want, carry=alone, **options)
    np.testing.assert_array_equal(got.p[second], apart.p)


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
@both_ways
def test_no_gradient_comes_back_through_a_reset(reverse):
    p, h0, w = network()
    runs = np.ones((STEPS, 1, 1))
    runs[1 if reverse else 2] = 0.0
    carry, f = Carry(0.5 * runs, None, runs), get_nonlinearity("tanh")
    options = {"nonlinearity": f, "reverse": reverse, "xp": xp, "carry": carry}
    h = scan.nonlinear(p, h0, w, **options)
    d_h = np.zeros(FULL)
    d_h[0 if reverse else -1] = np.inf
    found = scan.nonlinear_vjp(d_h, p, h0, w, h, **options)
    np.testing.assert_array_equal(found.p[2:] if reverse else found.p[:2], 0.0)
    np.testing.assert_array_equal(found.h0, 0.0)


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
@both_ways
@pytest.mark.parametrize("padding", [0.0, np.nan, np.inf], ids=["0", "NaN", "infinity"])
def test_padding_keeps_the_state_and_is_not_read(padding, reverse):
    """a = 1, g = 0 past a row's end: the state stays, and the gradient there is exactly 0."""
    p, h0, w = network()
    end = (3, 2)
    valid = np.arange(STEPS)[:, None, None] < np.asarray(end)[None, :, None]
    p = np.where(valid, p, padding)
    carry = Carry(np.where(valid, 0.0, 1.0), np.where(valid, 1.0, 0.0))
    f = get_nonlinearity("tanh")
    options = {"nonlinearity": f, "reverse": reverse, "xp": xp}
    h = scan.nonlinear(p, h0, w, carry=carry, **options)
    (c,) = normal(5, FULL)
    c = np.where(valid, c, 0.0)
    found = scan.nonlinear_vjp(c, p, h0, w, h, carry=carry, **options)
    dots = network(7)
    dots[0] = np.where(valid, dots[0], padding)
    moved = scan.nonlinear_jvp(*dots, p, h0, w, h, carry=carry, **options)
    d_w = np.zeros_like(w)
    for b, n in enumerate(end):
        row = slice(b, b + 1)
        one = p[:n, row], h0[row], w
        want = scan.nonlinear(*one, **options)
        agree(h[:n, row], want)
        np.testing.assert_array_equal(h[n:, b], np.broadcast_to(h0[b] if reverse else h[n - 1, b], (STEPS - n, WIDTH)))
        apart = scan.nonlinear_vjp(c[:n, row], *one, want, **options)
        agree(found.p[:n, row], apart.p)
        np.testing.assert_array_equal(found.p[n:, b], 0.0)
        agree(found.h0[row], apart.h0)
        tangent = scan.nonlinear_jvp(dots[0][:n, row], dots[1][row], dots[2], *one, want, **options)
        agree(moved[:n, row], tangent)
        d_w += apart.w_hh
    agree(found.w_hh, d_w)
    assert all(np.isfinite(k).all() for k in found.carry if k is not None)


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
def test_an_infinite_cotangent_in_the_padding_goes_to_the_state_that_is_kept():
    p, h0, w = network()
    runs = np.ones((STEPS, 1, 1))
    runs[2:] = 0.0
    options = {"nonlinearity": get_nonlinearity("tanh"), "reverse": False, "xp": xp, "carry": Carry(1 - runs, runs)}
    h = scan.nonlinear(p, h0, w, **options)
    d_h = np.zeros(FULL)
    d_h[3] = np.inf
    found = scan.nonlinear_vjp(d_h, p, h0, w, h, **options)
    np.testing.assert_array_equal(found.p[2:], 0.0)
    np.testing.assert_array_equal(found.p[1], np.inf)


def test_a_factor_at_one_step_of_one_row_is_no_constant():
    """It has no step after it: NaN in it does not reach the cotangent of the step's own source."""
    x0, m, o = np.ones((1, 2)), np.eye(2), np.full((1, 1, 2), np.nan)
    c = np.ones_like(o)
    x = scan.linear_carry(c, o, None, None, x0, m, reverse=False, xp=xp)
    found = scan.linear_carry_vjp(c, (o, None, None, x0, m), x, reverse=False, xp=xp)
    np.testing.assert_array_equal(found.c, c)


def test_zoneout_and_dropout_of_the_state():
    """A unit that zones out at a step keeps its state exactly; a dropped one reaches no unit through W."""
    p, h0, w = network()
    keeps = np.random.default_rng(0).uniform(size=FULL) < 0.5
    h = nonlinear(p, h0, w, np.where(keeps, 1.0, 0.0), np.where(keeps, 0.0, 1.0))
    before = np.concatenate([h0[None], h[:-1]])
    np.testing.assert_array_equal(h[keeps], before[keeps])
    dropped = np.ones((BATCH, WIDTH))
    dropped[:, 0] = 0.0
    without = w.copy()
    without[:, 0] = 0.0
    got = nonlinear(p, h0, w, None, None, dropped)
    agree(got, nonlinear(p, h0, without))


@pytest.mark.parametrize(
    ("shape", "want"),
    [
        *((s, (WIDTH,)) for s in ((), (1,), (WIDTH,), (1, WIDTH), (1, 1, WIDTH), (1, 1, 1))),
        *((s, FULL) for s in ((BATCH, 1), (BATCH, WIDTH), (1, BATCH, WIDTH), (1, BATCH, 1), (STEPS, 1, 1), FULL)),
    ],
)
def test_a_factor_is_one_number_per_unit_where_it_can_be(shape, want):
    (factor,) = normal(0, shape)
    factor = np.asarray(factor)
    got = spread(factor, FULL, xp=xp)
    assert got.shape == want
    np.testing.assert_array_equal(np.broadcast_to(got, FULL), np.broadcast_to(factor, FULL))


# --- derivatives ------------------------------------------------------------------------------------------------------


@both_ways
@every_shape
@pytest.mark.parametrize("name", ["tanh", "softplus"])
def test_vjp_with_carry(name, shapes, reverse):
    arguments = [*network(1), *factors(shapes)]
    f = get_nonlinearity(name)
    h = nonlinear(*arguments, f=name, reverse=reverse)
    (c,) = normal(2, FULL)
    found = scan.nonlinear_vjp(
        c, *arguments[:3], h, nonlinearity=f, reverse=reverse, xp=xp, carry=Carry(*arguments[3:])
    )  # fmt: skip
    loss = lambda *a: float((c * nonlinear(*a, f=name, reverse=reverse)).sum())  # noqa: E731
    assert_gradients([*found[:3], *found.carry], loss, arguments)


@both_ways
@every_shape
def test_jvp_with_carry(shapes, reverse):
    arguments = [*network(1), *factors(shapes)]
    dots = [*network(8), *(None if s is None else normal(9, s)[0] for s in shapes)]
    f = get_nonlinearity("tanh")
    h = nonlinear(*arguments, reverse=reverse)
    got = scan.nonlinear_jvp(
        *dots[:3], *arguments[:3], h, nonlinearity=f, reverse=reverse, xp=xp,
        carry=Carry(*arguments[3:]), carry_dot=Carry(*dots[3:]),
    )  # fmt: skip
    assert_tangent(got, lambda *a: nonlinear(*a, reverse=reverse), arguments, dots)


@both_ways
def test_a_tangent_left_out_is_zero_and_a_factor_left_out_has_none(reverse):
    p, h0, w = network(1)
    a, g, i = factors(SHAPES["full"])
    dots, (a_dot, g_dot, i_dot) = network(8), normal(9, FULL, FULL, FULL)

    def moved(carry, carry_dot):
        h = nonlinear(p, h0, w, *carry, reverse=reverse)
        options = {"nonlinearity": get_nonlinearity("tanh"), "reverse": reverse, "xp": xp}
        return scan.nonlinear_jvp(*dots, p, h0, w, h, carry=carry, carry_dot=carry_dot, **options)

    zero = np.zeros(FULL)
    np.testing.assert_array_equal(moved(Carry(a, g, i), None), moved(Carry(a, g, i), Carry(zero, zero, zero)))
    np.testing.assert_array_equal(
        moved(Carry(a, g, i), Carry(i=i_dot)), moved(Carry(a, g, i), Carry(zero, zero, i_dot))
    )
    # Not even an exact 0 is added for a factor at its default.
    np.testing.assert_array_equal(moved(Carry(), Carry(a_dot, g_dot, i_dot)), moved(Carry(), None))


def linear_arguments(shapes, seed=0):
    c, x0, m = normal(seed, FULL, (BATCH, WIDTH), (WIDTH, WIDTH))
    a, o, i = factors(shapes, seed + 3)
    return [c, o, i, a, x0, m]


@both_ways
@every_shape
def test_vjp_of_the_linear_scan_with_carry(shapes, reverse):
    arguments = linear_arguments(shapes)
    x = scan.linear_carry(*arguments, reverse=reverse, xp=xp)
    (e,) = normal(2, FULL)
    got = scan.linear_carry_vjp(e, arguments[1:], x, reverse=reverse, xp=xp)
    loss = lambda *a: float((e * scan.linear_carry(*a, reverse=reverse, xp=xp)).sum())  # noqa: E731
    assert_gradients(got, loss, arguments)


@both_ways
@every_shape
def test_the_derivatives_of_the_linear_scan_with_carry_are_adjoint(shapes, reverse):
    """<e, J t> = <J^T e, t>, and J t is the derivative along t."""
    arguments = linear_arguments(shapes)
    dots = [None if a is None else normal(4 + k, a.shape)[0] for k, a in enumerate(arguments)]
    x = scan.linear_carry(*arguments, reverse=reverse, xp=xp)
    (e,) = normal(2, FULL)
    moved = scan.linear_carry_jvp(dots, arguments[1:], x, reverse=reverse, xp=xp)
    back = scan.linear_carry_vjp(e, arguments[1:], x, reverse=reverse, xp=xp)
    terms = [(back[k] * dots[k]).sum() for k in given(arguments)]
    # Both are sums of the same numbers, and their rounding is that of the largest terms.
    assert abs((e * moved).sum() - sum(terms)) <= PROMISED * EPS * max(np.abs(e * moved).max(), *np.abs(terms))
    assert_tangent(moved, lambda *a: scan.linear_carry(*a, reverse=reverse, xp=xp), arguments, dots)


@both_ways
def test_second_derivatives_are_made_of_the_same_scans(reverse):
    """The VJP of the VJP: the gradient of <v, dp> with respect to p, h0 and W, by linear scans with carry alone."""
    p, h0, w = network(1)
    a, g, i = factors(SHAPES["full"])
    (c, v), f = normal(2, FULL, FULL), get_nonlinearity("tanh")
    options = {"nonlinearity": f, "reverse": reverse, "xp": xp, "carry": Carry(a, g, i)}

    def first_order(p, h0, w):
        h = scan.nonlinear(p, h0, w, **options)
        return float((v * scan.nonlinear_vjp(c, p, h0, w, h, **options).p).sum())

    h = scan.nonlinear(p, h0, w, **options)
    before = scan.previous(h, h0, reverse=reverse, xp=xp)
    value = np.tanh(p + (i * before) @ w.T)
    d = g * (1 - value**2)
    late = lambda k: scan.previous(k, np.zeros((BATCH, WIDTH)), reverse=not reverse, xp=xp)  # noqa: E731
    back = {"reverse": not reverse, "xp": xp}
    inner = (late(i), late(d), late(a), np.zeros((BATCH, WIDTH)), w)
    whole = scan.linear_carry(c, *inner, **back)
    # dp = d * whole: the cotangent of whole goes back through the scan that made it, that of d to z and to the states.
    outer = scan.linear_carry_vjp(d * v, inner, whole, **back)
    d_d = v * whole + scan.previous(outer.i, np.zeros((BATCH, WIDTH)), reverse=reverse, xp=xp)
    d_z = d_d * g * (-2 * value * (1 - value**2))
    to_h = scan.previous((d_z @ w) * i, np.zeros((BATCH, WIDTH)), reverse=not reverse, xp=xp)
    through = scan.nonlinear_vjp(to_h, p, h0, w, h, **options)
    first = -1 if reverse else 0
    got = (
        d_z + through.p,
        ((d_z @ w) * i)[first] + through.h0,
        outer.m + np.einsum("tbi,tbj->ij", d_z, i * before) + through.w_hh,
    )
    for found, want in zip(got, gradients(first_order, [p, h0, w]), strict=True):
        assert_close(found, want)


def test_with_carry_p_is_needed_for_the_slope():
    p, h0, w = network()
    with pytest.raises(ArgumentValueError, match=r"p: expected an array, as with carry"):
        scan.nonlinear_vjp(
            p, None, h0, w, p, nonlinearity=get_nonlinearity("tanh"), reverse=False, xp=xp, carry=Carry()
        )  # fmt: skip


# --- together with the other forms ------------------------------------------------------------------------------------


@both_ways
def test_networks_with_carry_are_each_as_if_alone(reverse):
    p, h0, w = normal(0, (STEPS, 5, BATCH, WIDTH), (5, BATCH, WIDTH), (5, WIDTH, WIDTH))
    rng = np.random.default_rng(1)
    a, g, i = rng.uniform(size=(5, 1, 1)), rng.uniform(size=WIDTH), rng.uniform(size=(STEPS, 1, 1, 1))
    f = get_nonlinearity("tanh")
    options = {"nonlinearity": f, "reverse": reverse, "xp": xp}
    h = scan.nonlinear(p, h0, w, carry=Carry(a, g, i), **options)
    (c,) = normal(2, p.shape)
    found = scan.nonlinear_vjp(c, p, h0, w, h, carry=Carry(a, g, i), **options)
    for k in range(5):
        one = Carry(a[k], g, i[:, 0])
        want = scan.nonlinear(p[:, k], h0[k], w[k], carry=one, **options)
        agree(h[:, k], want)
        grads = scan.nonlinear_vjp(c[:, k], p[:, k], h0[k], w[k], want, carry=one, **options)
        agree(found.w_hh[k], grads.w_hh)
        agree(found.carry.a[k], grads.carry.a)
    assert found.carry.g.shape == g.shape and found.carry.i.shape == i.shape


@both_ways
@pytest.mark.parametrize("carried", [False, True], ids=["plain", "carry"])
def test_with_rows_each_row_is_as_if_alone(carried, reverse):
    """Longest first; one sequence without steps; the padding is NaN, and 0 in the result."""
    lengths = (4, 2, 2, 0)
    rows = [sum(n > t for n in lengths) for t in range(STEPS)]
    shape = (STEPS, len(lengths), WIDTH)
    p, d, h0, w = normal(0, shape, shape, shape[1:], (WIDTH, WIDTH))
    valid = np.arange(STEPS)[:, None, None] < np.asarray(lengths)[None, :, None]
    p, d = np.where(valid, p, np.nan), np.where(valid, d, np.nan)
    carry = Carry(np.asarray(0.5), np.ones((WIDTH,)), np.full(shape, 0.7)) if carried else None
    f = get_nonlinearity("relu")
    options = {"reverse": reverse, "xp": xp}
    found = {
        "h": scan.nonlinear(p, h0, w, nonlinearity=f, carry=carry, rows=rows, **options),
        "s": scan.linear(p, d, h0, w, rows=rows, **options),
        "x": scan.linear_carry(p, d, None, np.asarray(0.5), h0, w, rows=rows, **options),
    }
    for b, n in enumerate(lengths):
        row = slice(b, b + 1)
        one = carry and Carry(carry.a, carry.g, carry.i[:n, row])
        alone = {
            "h": scan.nonlinear(p[:n, row], h0[row], w, nonlinearity=f, carry=one, **options),
            "s": scan.linear(p[:n, row], d[:n, row], h0[row], w, **options),
            "x": scan.linear_carry(p[:n, row], d[:n, row], None, np.asarray(0.5), h0[row], w, **options),
        }
        for name, x in found.items():
            agree(x[:n, row], alone[name])
            np.testing.assert_array_equal(x[n:, b], 0.0)


@pytest.mark.parametrize("rows", [[2, 2], [3, 2, 2, 1], [1, 2, 1, 1], [2, 1, 0, -1]])
def test_rows_that_do_not_fit_are_an_error(rows):
    p, h0, w = network()
    with pytest.raises(ArgumentValueError, match=r"rows: expected 4 numbers from 2 down to 0"):
        nonlinear(p, h0, w, rows=rows)


@both_ways
def test_the_strictest_array_api_is_enough(reverse):
    strict, device = array_api_strict, array_api_strict.Device("device1")
    give = lambda a: None if a is None else strict.asarray(a, device=device)  # noqa: E731
    f = get_nonlinearity("softplus")
    for shapes in SHAPES.values():
        p, h0, w = (give(a) for a in network())
        carry = Carry(*map(give, factors(shapes)))
        dots = Carry(*map(give, factors(shapes, 5)))
        options = {"nonlinearity": f, "reverse": reverse, "xp": strict, "carry": carry}
        h = scan.nonlinear(p, h0, w, **options)
        grads = scan.nonlinear_vjp(h, p, h0, w, h, **options)
        moved = scan.nonlinear_jvp(p, h0, w, p, h0, w, h, carry_dot=dots, **options)
        options = {"reverse": reverse, "xp": strict}
        linear = scan.linear_carry_vjp(h, (*carry, h0, w), h, **options)
        scan.linear_carry_jvp((h, *dots, h0, w), (*carry, h0, w), h, **options)
        ragged = scan.nonlinear(p, h0, w, rows=[2, 1, 1, 0], **options, nonlinearity=f, carry=carry)
        for x in (h, moved, ragged, *grads[:3], *grads.carry, *linear):
            assert x is None or x.device == device
