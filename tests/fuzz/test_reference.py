"""The reference of the fuzzer, against central differences in its own numbers, and in mpmath's numbers as in longdouble's."""

import numpy as np
import pytest

from tests.fuzz import calls, drawing, reference
from tests.fuzz.reference import LONG, MP, WIDE

# Central differences of a smooth function are best at h ~ eps**(1/3), and then right to about h^2.
STEP = WIDE.eps ** (1 / 3)
# h^2 times a third derivative: of functions with slopes up to 3, through up to 3 layers and 20 steps.
DIFFERENCES = 2.0**14 * STEP**2
FUNCTIONS = tuple(n for n in ("tanh", "relu", *drawing.OTHERS) if n not in ("identity", "thresholded_relu"))


def smooth(seed):
    """A small case in float64 of which no pre-activation is so near to a kink that a step of the differences crosses it."""
    number = seed
    while True:
        number += 1000
        right, _ = calls.settled(number, 1, ("float64",))
        case = right.case
        small = 0 < case.batch <= 6 and max(case.widths) <= 8
        if case.mode == "vjp" and small and case.poison is None and case.truncate is None:
            g, net = right.given, moved(case, right.given, 0)[1]
            run = reference.forward(net, g.x, g.h0, case.lengths, g.masks)
            z = np.concatenate([a.reshape(-1) for row in run.z for a in row])
            if all(abs(z - place).min() > 2**10 * STEP for place in drawing.kinks(case)):
                return right


def scalar(case, given, net):
    """The sum of all outputs and ends, each times its cotangent."""
    run = reference.forward(net, given.x, given.h0, case.lengths, given.masks)
    ends = sum(
        (run.last[k][d] * given.d_h_n[k][d]).sum() for k in range(len(case.widths)) for d in range(case.directions)
    )
    return (run.output * given.d_output).sum() + ends


def moved(case, given, by):
    """The network and arrays moved by a multiple of the tangents."""
    params = {n: WIDE.give(v) + by * WIDE.give(given.params_dot[n]) for n, v in given.params.items()}
    h0 = [WIDE.give(a) + by * WIDE.give(b) for a, b in zip(given.h0, given.h0_dot, strict=True)]
    clip = np.inf if case.clip is None else case.clip
    net = reference.network(params, len(case.widths), case.directions, case.function, clip)
    kept = {n: getattr(given, n) for n in given.__dataclass_fields__}
    return drawing.Given(
        **{**kept, "params": params, "x": WIDE.give(given.x) + by * WIDE.give(given.x_dot), "h0": h0}
    ), net


@pytest.mark.parametrize("seed", range(12))
def test_gradients_and_tangents_are_what_central_differences_are(seed):
    right = smooth(seed)
    case, given = right.case, right.given
    ahead, behind = (scalar(case, *moved(case, given, by)) for by in (STEP, -STEP))
    net = moved(case, given, 0)[1]
    run = reference.forward(net, given.x, given.h0, case.lengths, given.masks)
    params, x, h0 = reference.backward(net, run, given.d_output, given.d_h_n)
    parts = [(params[n] * given.params_dot[n]).sum() for n in given.params]
    parts += [(x * given.x_dot).sum(), *((a * b).sum() for a, b in zip(h0, given.h0_dot, strict=True))]
    dots = reference.network(given.params_dot, len(case.widths), case.directions, None).weights
    output_dot, last_dot = reference.tangent(net, run, dots, given.x_dot, given.h0_dot)
    ends = sum((np.stack(row) * d).sum() for row, d in zip(last_dot, given.d_h_n, strict=True))
    size = max(1.0, float(sum(abs(p) for p in parts)))
    assert abs(sum(parts) - (ahead - behind) / (2 * STEP)) <= DIFFERENCES * size
    # The adjoint identity needs no differences: a few roundings for each of the sums.
    assert abs(sum(parts) - (output_dot * given.d_output).sum() - ends) <= 2**12 * WIDE.eps * size


@pytest.mark.parametrize("name", FUNCTIONS)
def test_each_function_and_its_derivative(name):
    f = reference.function(name, 0.7, 0.3)
    z = WIDE.give(np.linspace(-3.03, 3.05, 40))
    differences = (f.f(WIDE, z + STEP) - f.f(WIDE, z - STEP)) / (2 * STEP)
    slope = f.df(WIDE, z)
    assert abs(differences - slope).max() <= 2**4 * STEP**2  # a third derivative of at most 24 or so over 6
    assert abs(slope).max() <= f.bound * (1 + 4 * WIDE.eps)


@pytest.mark.skipif(WIDE is MP, reason="longdouble is no wider than float64 here, so the reference is mpmath's already")
@pytest.mark.parametrize("seed", range(8))
def test_in_mpmath_the_reference_is_the_same(seed):
    right = smooth(seed)
    case, given = right.case, right.given
    found = []
    for n in (LONG, MP):
        clip = np.inf if case.clip is None else case.clip
        net = reference.network(given.params, len(case.widths), case.directions, case.function, clip, n)
        run = reference.forward(net, given.x, given.h0, case.lengths, given.masks)
        params, x, h0 = reference.backward(net, run, given.d_output, given.d_h_n)
        dots = reference.network(given.params_dot, len(case.widths), case.directions, None, numbers=n).weights
        output_dot, _ = reference.tangent(net, run, dots, given.x_dot, given.h0_dot)
        found.append([run.output, *params.values(), x, *h0, output_dot])
    for a, b in zip(*found, strict=True):
        assert a.shape == b.shape
        b = b.astype(np.longdouble)
        size = float(abs(b).max(initial=0))
        # Sums over steps, rows and layers that cancel: a thousand roundings of an 80-bit number are one of float64's.
        assert abs(a - b).max(initial=0) <= 2**10 * LONG.eps * max(size, 1.0)


def test_a_row_ends_where_its_length_says():
    """By hand: two rows, the second of one step, in both directions."""
    w = np.asarray([[0.5]])
    params = {f"{kind}_{s}": w for kind in ("weight_ih", "weight_hh") for s in ("l0", "l0_reverse")}
    net = reference.network(params, 1, 2, reference.function("identity"))
    x = np.asarray([[[2.0], [4.0]], [[8.0], [np.nan]]])
    run = reference.forward(net, x, np.ones((1, 2, 2, 1)), (2, 1))
    np.testing.assert_array_equal(run.output[:, :, 0].astype(float), [[1.5, 2.5], [4.75, 0.0]])
    np.testing.assert_array_equal(run.output[:, :, 1].astype(float), [[3.25, 2.5], [4.5, 0.0]])
    np.testing.assert_array_equal(np.stack(run.last[0])[:, :, 0].astype(float), [[4.75, 2.5], [3.25, 2.5]])


def test_truncation_cuts_where_times_are_multiples():
    """By hand, W_hh = 2: the gradient of the last state of three steps reaches back to step 2 alone."""
    params = {"weight_ih_l0": np.ones((1, 1)), "weight_hh_l0": np.full((1, 1), 2.0)}
    net = reference.network(params, 1, 1, reference.function("identity"))
    run = reference.forward(net, np.ones((3, 1, 1)), np.zeros((1, 1, 1, 1)))
    for truncate, want in ((None, [4, 2, 1]), (1, [0, 0, 1]), (2, [0, 0, 1]), (3, [4, 2, 1])):
        _, x, h0 = reference.backward(net, run, np.zeros((3, 1, 1)), np.ones((1, 1, 1, 1)), truncate)
        np.testing.assert_array_equal(x.reshape(-1).astype(float), want)
        assert float(h0[0][0, 0, 0]) == 2 * want[0]
