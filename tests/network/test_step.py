"""One step, and sums over many rows."""

import numpy as np
import pytest
from array_api_compat import numpy as xp

import rnncore
from rnncore import get_nonlinearity, scan
from rnncore.network.step import StepTangents, Weights, project, step, step_jvp, step_vjp, sum_rows
from tests.tools.differences import assert_close, directional, gradients
from tests.tools.drawn import normal

# DESIGN's tolerance for gradients; a row-by-row sum of as many terms of one sign is off by hundreds.
EPS_ALLOWED = 64
BATCH, INPUT, WIDTH = 4, 3, 2
EPS = np.finfo("f8").eps
biased = pytest.mark.parametrize("bias", [True, False], ids=["bias", ""])
# f' is found from h, and from z.
from_h_and_from_z = pytest.mark.parametrize("clip", [None, 0.7], ids=["", "clip"])


def arguments(seed, bias=True):
    w_ih, w_hh, b, x, h = normal(seed, (WIDTH, INPUT), (WIDTH, WIDTH), WIDTH, (BATCH, INPUT), (BATCH, WIDTH))
    return Weights(w_ih, w_hh, b if bias else None), x, h


@biased
@from_h_and_from_z
def test_a_step_is_the_formula(clip, bias):
    w, x, h = arguments(0, bias)
    f = get_nonlinearity("tanh", clip=clip)
    p = np.asarray([w.weight_ih @ row + (w.bias if bias else 0) for row in x])
    z = p + np.asarray([w.weight_hh @ row for row in h])
    # A dozen products and sums, in an order that a library chooses.
    np.testing.assert_allclose(project(w, x, xp=xp), p[None], rtol=0, atol=16 * EPS)
    np.testing.assert_allclose(step(w, x, h, nonlinearity=f, xp=xp), f(z, xp=xp), rtol=0, atol=16 * EPS)


@biased
@from_h_and_from_z
def test_cotangents_of_a_step_against_central_differences(clip, bias):
    w, x, h = arguments(1, bias)
    f = get_nonlinearity("tanh", clip=clip)
    (c,) = normal(2, (BATCH, WIDTH))

    def loss(x, h, *weights):
        return float((c * step(Weights(*weights, *([] if bias else [None])), x, h, nonlinearity=f, xp=xp)).sum())

    got = step_vjp(c, w, x, h, step(w, x, h, nonlinearity=f, xp=xp), nonlinearity=f, xp=xp)
    assert (got.weights.bias is None) == (not bias)
    weights = [a for a in w if a is not None]
    found = (got.x, got.h, *(g for g in got.weights if g is not None))
    for g, want in zip(found, gradients(loss, [x, h, *weights]), strict=True):
        assert_close(g, want)


@from_h_and_from_z
@pytest.mark.parametrize("missing", ["nothing", "weights", "x", "h"])
def test_the_tangent_of_a_step_against_a_central_difference(clip, missing):
    (w, x, h), (w_dot, x_dot, h_dot) = arguments(1), arguments(3)
    f = get_nonlinearity("tanh", clip=clip)
    dots = StepTangents(w_dot, x_dot, h_dot)._replace(**({} if missing == "nothing" else {missing: None}))
    got = step_jvp(dots, w, x, h, step(w, x, h, nonlinearity=f, xp=xp), nonlinearity=f, xp=xp)
    whole = [
        np.zeros_like(a) if dot is None else dot
        for dot, a in zip((*(dots.weights or (None,) * 3), dots.x, dots.h), (*w, x, h), strict=True)
    ]
    run = lambda *a: step(Weights(*a[:3]), a[3], a[4], nonlinearity=f, xp=xp)  # noqa: E731
    assert got.shape == (BATCH, WIDTH)
    assert_close(got, directional(run, [*w, x, h], whole))


def test_derivatives_of_a_step_run_the_given_scan():
    seen = []

    def linear(*arguments, reverse):
        seen.append((arguments[0].shape, reverse))
        return scan.linear(*arguments, reverse=reverse, xp=xp)

    w, x, h = arguments(0)
    f = get_nonlinearity("tanh")
    options = {"nonlinearity": f, "xp": xp, "linear_scan": linear}
    h_next = step(w, x, h, nonlinearity=f, xp=xp)
    step_vjp(h, w, x, h, h_next, **options)
    step_jvp(StepTangents(None, x, None), w, x, h, h_next, **options)
    assert seen == [((1, BATCH, WIDTH), True), ((1, BATCH, WIDTH), False)]


@pytest.mark.parametrize("reverse", [False, True], ids=["", "bidirectional"])
@pytest.mark.parametrize(
    ("backend", "dtype"),
    [("numpy", "float16"), ("numpy", "float32"), ("torch", "float16"), ("torch", "bfloat16"), ("torch", "float32")],
)
def test_a_bias_gradient_of_many_terms_of_one_sign_is_as_good_as_the_others(backend, dtype, reverse):
    steps, batch, width = 4096, 4, 8
    rnn = rnncore.RNN(3, width, nonlinearity="identity", bidirectional=reverse, backend="numpy", dtype="float64", rng=0)
    rnn.set_params({k: np.round(v * 0.1 * 256) / 256 for k, v in rnn.state_dict().items()})  # exact in every dtype
    x = np.zeros((steps, batch, 3))
    d_output = np.full((steps, batch, width * (2 if reverse else 1)), 2.0**-9)
    want = rnn.vjp(x)[2](d_output).params
    low, plugin = rnn.to(backend, dtype=dtype), rnncore.get_backend(backend)
    give = lambda a: plugin.asarray(a, dtype=low.dtype, device=low.device)  # noqa: E731
    got = low.vjp(give(x))[2](give(d_output)).params
    eps = float(plugin.namespace().finfo(low.dtype).eps)
    for name in want:
        if name.startswith("bias"):
            error = np.abs(plugin.to_numpy(got[name]).astype("f8") - want[name]).max() / np.abs(want[name]).max()
            assert error <= EPS_ALLOWED * eps, f"{name}: {error / eps:.0f} eps"


@pytest.mark.parametrize("rows", [0, 1, 31, 32, 33, 1024, 1025, 100_003])
def test_rows_are_summed_as_well_as_by_a_product(rows):
    x = np.random.default_rng(0).random((rows, 3), dtype="f4")
    want = x.sum(axis=0, dtype="f8")
    np.testing.assert_allclose(sum_rows(x, xp=xp), want, rtol=16 * np.finfo("f4").eps)


@pytest.mark.parametrize("shape", [(), (1,), (5,), (1, 1), (1, 5), (5, 1), (2, 5), (2, 3, 5)])
@pytest.mark.parametrize("width", [3, 1])
def test_rows_are_summed_over_every_axis_but_the_last(shape, width):
    shape = (*shape, width)
    x = np.arange(np.prod(shape), dtype="f8").reshape(shape)  # whole numbers, summed exactly in any order
    np.testing.assert_array_equal(sum_rows(x, xp=xp), x.reshape(-1, width).sum(axis=0))


def test_half_precision_is_summed_in_single_and_comes_back_as_half():
    """In float16 1 + 2^-11 is 1, so that a sum in float16 would never leave its first term."""
    x = np.full((2049, 1), 2.0**-11, dtype="f2")
    x[0] = 1.0
    got = sum_rows(x, xp=xp)
    assert got.dtype == np.float16 and got == 2.0
