"""The demonstration: its measurement against backpropagation, and its claim."""

import functools

import numpy as np
import pytest

import rnncore
from rnncore.commands.demo import training as demo
from rnncore.commands.demo.plot import plot
from tests.tools.rounding import EPS, EPS_OF

NAMES = ["vanishing", "orthogonal", "exploding", "overflow", "identity"]
# Sums of 5 and 6 terms over 7 steps, and a logarithm taken and undone.
ROUNDING = 64 * EPS


@pytest.mark.parametrize("nonlinearity", ["tanh", "relu", "softplus"])
@pytest.mark.parametrize("library", ["numpy", "torch"])
def test_gradient_norms_are_those_of_a_run_that_begins_there(nonlinearity, library):
    """dL/dh_t is the gradient with respect to h0 of the network run on what comes after t."""
    backend = rnncore.get_backend(library)
    xp, device = backend.namespace(), backend.devices()[0]
    model = rnncore.RNN(3, 5, nonlinearity=nonlinearity, rng=0, backend=library, dtype="float64")
    rng = np.random.default_rng(1)
    numbers = (
        rng.standard_normal((7, 4, 3)),
        np.eye(6)[[5, 0, 2, 2]],
        rng.standard_normal((6, 5)),
        rng.standard_normal(6),
    )
    x, targets, weight, bias = (backend.asarray(n, dtype=xp.float64, device=device) for n in numbers)
    readout = {"readout_weight": weight, "readout_bias": bias}
    got = demo.gradient_norms(model, readout, (x, targets), xp)
    output, _ = model(x)
    logits = backend.to_numpy(output[-1, ...]) @ numbers[2].T + numbers[3]
    chances = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    d_last = (chances - numbers[1]) @ numbers[2]
    want = [np.median(np.linalg.norm(d_last, axis=1))]
    for t in reversed(range(6)):
        _, _, pullback = model.vjp(x[t + 1 :, ...], xp.expand_dims(output[t, ...], axis=0))
        d_h_n = backend.asarray(d_last[None], dtype=xp.float64, device=device)
        want.insert(0, np.median(np.linalg.norm(backend.to_numpy(pullback(d_h_n=d_h_n).h0)[0], axis=1)))
    np.testing.assert_allclose(got, want, rtol=ROUNDING)


@functools.cache
def ten_epochs():
    return demo.run_demo("numpy", epochs=10)


def runs_of(result):
    return {run.recipe.name: run for run in result.runs}


@pytest.mark.slow
def test_the_cures_beat_what_they_cure():
    runs = runs_of(ten_epochs())
    assert list(runs) == NAMES
    assert runs["orthogonal"].accuracy > 0.75
    assert runs["orthogonal"].accuracy > runs["vanishing"].accuracy + 0.3
    assert runs["identity"].accuracy > runs["exploding"].accuracy + 0.15
    assert runs["orthogonal"].losses[-1] < 0.6 * runs["orthogonal"].losses[0]


@pytest.mark.slow
def test_gradients_vanish_explode_and_are_kept():
    runs = runs_of(ten_epochs())
    # Not rounding: 64 steps of about 0.6, one half less than in the picture and one half more.
    assert 1e-16 < runs["vanishing"].start[0] < 1e-12
    assert 1e-3 < runs["orthogonal"].start[0] < 10
    assert 1e9 < runs["exploding"].start[0] < 1e13
    assert 0.1 < runs["identity"].start[0] < 10
    for run in runs.values():
        assert len(run.start) == len(run.end) == 64
        assert 0.1 < run.start[63] < 10


@pytest.mark.slow
def test_what_overflows_is_stopped_and_said():
    run = runs_of(ten_epochs())["overflow"]
    assert run.accuracy is None
    assert run.losses == ()
    assert run.stopped.startswith("loss nan in epoch 1, batch ")
    assert not np.any(np.isfinite(run.end))


def test_every_backend_tells_the_same_story():
    ours, theirs = (runs_of(demo.run_demo(b, epochs=1, samples=300)) for b in ("numpy", "torch"))
    # Norms after up to 64 steps of sums of 64 products in float32, twice: forward and backward.
    steps = 2 * 64 * 64 * EPS_OF["float32"]
    for name in NAMES:
        np.testing.assert_allclose(ours[name].start, theirs[name].start, rtol=steps)
    # Ten updates of a network that does not amplify: means over its rows, so a tenth of that.
    np.testing.assert_allclose(ours["orthogonal"].losses, theirs["orthogonal"].losses, rtol=steps / 10)
    np.testing.assert_allclose(ours["vanishing"].end, theirs["vanishing"].end, rtol=steps)


def test_a_seed_decides_everything():
    first, again, other = (runs_of(demo.run_demo(epochs=1, samples=200, seed=s)) for s in (3, 3, 4))
    assert first["orthogonal"].losses == again["orthogonal"].losses
    assert first["orthogonal"].end == again["orthogonal"].end
    assert first["orthogonal"].losses != other["orthogonal"].losses


def test_every_batch_is_reported():
    told = []
    recipes = [r for r in demo.RECIPES if r.name == "orthogonal"]
    demo.run_demo(epochs=2, samples=200, recipes=recipes, on_batch=lambda *news: told.append(news))
    assert {name for name, _, _ in told} == {"orthogonal"}
    assert [epoch for _, epoch, _ in told] == [1] * 5 + [2] * 5  # 150 digits in batches of at most 32
    assert all(np.isfinite(loss) for _, _, loss in told)


@pytest.mark.slow
def test_the_picture(tmp_path):
    path = tmp_path / "flow.png"
    plot(ten_epochs(), path)
    assert path.read_bytes().startswith(b"\x89PNG")
    assert 10_000 < path.stat().st_size < 150_000
