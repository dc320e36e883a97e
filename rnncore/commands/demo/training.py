"""Handwritten digits read pixel by pixel: five small networks that vanish, explode, overflow, or learn.

Each of scikit-learn's 1,797 digits is a sequence of 64 pixels, one a step; a softmax of the last state says which digit it
was. What happens to the gradient on its way back to the first pixel decides whether that can be learnt, so it is measured
before and after training. Written once against the namespace of whichever backend is chosen, with :meth:`rnncore.RNN.vjp`
and :mod:`rnncore.optim` and no framework. report.py and plot.py beside this file show the results.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from rnncore import init
from rnncore.backend.contract import Backend
from rnncore.backend.registry import get_backend
from rnncore.diagnostics.gradient.flow import flow
from rnncore.diagnostics.recording import record
from rnncore.model.rnn import RNN
from rnncore.optim.optimisers import SGD, Adam, clip_grad_norm
from rnncore.typing import Array, Namespace

__all__ = ["RECIPES", "Demo", "Recipe", "Run", "gradient_norms", "run_demo"]

STEPS = 64
CLASSES = 10
HIDDEN_SIZE = 64
BATCH_SIZE = 32
EPOCHS = 40
TEST_SHARE = 0.25
SPLIT_SEED = 0  # the split does not follow --seed: accuracies of different seeds are about the same digits
MEASURED = 128  # held-out digits whose gradients are measured

Params: TypeAlias = dict[str, Array]
Batch: TypeAlias = tuple[Array, Array]
OnBatch: TypeAlias = Callable[[str, int, float], None]


@dataclass(frozen=True)
class Recipe:
    """How one network is made and trained.

    Attributes
    ----------
    name, network, training, lesson : str
        For the reader: in a word, what it is, how it is trained, and what it shows.
    nonlinearity : str
    init : mapping
        As for :class:`rnncore.RNN`; what is not in it is drawn as by torch.
    optimiser : callable
        Makes a new one. Its learning rate goes down to 0 in equal parts, one each epoch.
    max_norm : float
        Gradients are clipped to this norm; inf for not at all.
    """

    name: str
    network: str
    training: str
    lesson: str
    nonlinearity: str
    init: Mapping[str, Any]
    optimiser: Callable[[], SGD | Adam]
    max_norm: float


def _scaled_identity(gain: float) -> dict[str, init.Initialiser]:
    # Le et al. draw weight_ih with deviation 0.001 for inputs of many features; there is a single pixel here. The small
    # bias keeps the units alive through the dark pixels with which every digit begins.
    return {
        "weight_ih": init.gaussian(1.0),
        "weight_hh": init.identity(gain),
        "bias_ih": init.constant(0.01),
        "bias_hh": init.constant(0.0),
    }


# Two controlled comparisons. vanishing and orthogonal differ in weight_hh alone; exploding and identity in the gain of
# weight_hh and the clipping; overflow is exploding under the optimiser of the first pair.
RECIPES = (
    Recipe(
        "vanishing",
        "tanh, W_hh as torch draws it",
        "SGD 0.04, clipped at 1",
        "W_hh from U(-1/sqrt(H), 1/sqrt(H)) shrinks a vector by 1/sqrt(3), and 3^(-63/2) is 1e-15: at first only the "
        "last few pixels are learnt from, and training is spent on getting out of that.",
        "tanh",
        {"weight_hh": "uniform"},
        lambda: SGD(0.04),
        1.0,
    ),
    Recipe(
        "orthogonal",
        "tanh, W_hh orthogonal",
        "SGD 0.04, clipped at 1",
        "Cured: the same but for W_hh, which now keeps the length of a vector (Saxe et al. 2014).",
        "tanh",
        {"weight_hh": "orthogonal"},
        lambda: SGD(0.04),
        1.0,
    ),
    Recipe(
        "exploding",
        "relu, W_hh = 1.5 I",
        "Adam 0.001, not clipped",
        "1.5^63 is 1e11: the slightest change of an early state turns the output over, and updates are noise.",
        "relu",
        _scaled_identity(1.5),
        lambda: Adam(1e-3),
        math.inf,
    ),
    Recipe(
        "overflow",
        "relu, W_hh = 1.5 I",
        "SGD 0.04, not clipped",
        "The same network; SGD steps as far as the gradient is long, and the numbers overflow.",
        "relu",
        _scaled_identity(1.5),
        lambda: SGD(0.04),
        math.inf,
    ),
    Recipe(
        "identity",
        "relu, W_hh = I (IRNN)",
        "Adam 0.001, clipped at 1",
        "Cured: gain 1 (Le et al. 2015) and clipped gradients (Pascanu et al. 2013).",
        "relu",
        _scaled_identity(1.0),
        lambda: Adam(1e-3),
        1.0,
    ),
)


@dataclass(frozen=True)
class Run:
    """What one recipe led to.

    Attributes
    ----------
    recipe : Recipe
    accuracy : float or None
        Share of held-out digits named right; None where the loss stopped being a number.
    losses : tuple of float
        The mean training loss of each epoch that was finished.
    stopped : str
        Where the loss stopped being a number, in words; empty if it did not.
    start, end : tuple of float
        The 2-norm of dL/dh_t for each step t from 0, L the loss of one digit: the median over held-out digits, before
        and after training.
    seconds : float
    """

    recipe: Recipe
    accuracy: float | None
    losses: tuple[float, ...]
    stopped: str
    start: tuple[float, ...]
    end: tuple[float, ...]
    seconds: float


@dataclass(frozen=True)
class Demo:
    """All runs, and where and on what they ran: ``output`` and ``h_n`` are those of the held-out digits."""

    backend: str
    device: str
    dtype: str
    seed: int
    epochs: int
    train_size: int
    test_size: int
    output_shape: tuple[int, ...]
    h_n_shape: tuple[int, ...]
    runs: tuple[Run, ...]
    seconds: float


def run_demo(
    backend: str | None = None,
    *,
    seed: int = 0,
    epochs: int = EPOCHS,
    samples: int | None = None,
    recipes: Sequence[Recipe] = RECIPES,
    on_batch: OnBatch | None = None,
) -> Demo:
    """Train every recipe on the digits, in float32, and measure its gradients before and after.

    Parameters
    ----------
    backend : str, optional
        By default the selected one.
    seed : int
        Draws the weights and the order of the batches.
    epochs : int
    samples : int, optional
        Only so many digits, for a quick look.
    recipes : sequence of Recipe
    on_batch : callable, optional
        Told the recipe's name, the epoch from 1 and the loss after every batch.

    Raises
    ------
    UnknownNameError, BackendUnavailableError
    ModuleNotFoundError
        If scikit-learn, which brings the digits, is not installed.
    """
    began = time.perf_counter()
    plugin = get_backend(backend)
    probe = RNN(1, HIDDEN_SIZE, backend=plugin.name, dtype="float32", rng=seed)
    (train_x, train_y), (test_x, test_y) = _digits(samples)

    def batch(x: np.ndarray[Any, Any], y: np.ndarray[Any, Any]) -> Batch:
        host = np.eye(CLASSES)[y], x.T[:, :, np.newaxis]
        targets, inputs = (plugin.asarray(a, dtype=probe.dtype, device=probe.device) for a in host)
        return inputs, targets

    parts = np.array_split(np.random.default_rng(seed).permutation(len(train_y)), -(-len(train_y) // BATCH_SIZE))
    batches = [batch(train_x[rows], train_y[rows]) for rows in parts]
    held_out = batch(test_x, test_y)
    measured = batch(test_x[:MEASURED], test_y[:MEASURED])
    from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

    output, h_n = probe(held_out[0])
    # The products are too small to share: threads that wait for each other make a busy machine ten times slower. Two of
    # the networks overflow on purpose, which NumPy would warn of.
    with threadpool_limits(1), np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        runs = tuple(_run(r, plugin, batches, held_out, measured, seed, epochs, on_batch) for r in recipes)
    return Demo(
        plugin.name,
        str(probe.device),
        "float32",
        seed,
        epochs,
        len(train_y),
        len(test_y),
        tuple(output.shape),
        tuple(getattr(h_n, "shape", ())),
        runs,
        time.perf_counter() - began,
    )


def _run(
    recipe: Recipe,
    plugin: Backend,
    batches: Sequence[Batch],
    held_out: Batch,
    measured: Batch,
    seed: int,
    epochs: int,
    on_batch: OnBatch | None,
) -> Run:
    began = time.perf_counter()
    xp, rng = plugin.namespace(), np.random.default_rng(seed)
    rnn = RNN(
        1,
        HIDDEN_SIZE,
        nonlinearity=recipe.nonlinearity,
        init=recipe.init,
        rng=rng,
        backend=plugin.name,
        dtype="float32",
    )
    drawn = {
        "readout_weight": rng.standard_normal((CLASSES, HIDDEN_SIZE)) / math.sqrt(HIDDEN_SIZE),
        "readout_bias": np.zeros(CLASSES),
    }
    readout = {k: plugin.asarray(v, dtype=rnn.dtype, device=rnn.device) for k, v in drawn.items()}
    start = gradient_norms(rnn, readout, measured, xp)
    losses: list[float] = []
    optimiser, stopped = recipe.optimiser(), ""
    first_lr = optimiser.lr
    for epoch in range(1, epochs + 1):
        optimiser.lr = first_lr * (1 - (epoch - 1) / epochs)
        seen: list[float] = []
        for k in rng.permutation(len(batches)):
            loss, grads = _loss_and_gradients(rnn, readout, batches[k], xp)
            if not math.isfinite(loss):
                stopped = f"loss {loss} in epoch {epoch}, batch {len(seen) + 1}"
                break
            clipped, _ = clip_grad_norm(grads, recipe.max_norm)
            stepped = optimiser.step({**rnn.params, **readout}, clipped)
            readout = {name: stepped.pop(name) for name in readout}
            rnn.set_params(stepped)
            seen.append(loss)
            if on_batch is not None:
                on_batch(recipe.name, epoch, loss)
        if stopped:
            break
        losses.append(math.fsum(seen) / len(seen))
    end = gradient_norms(rnn, readout, measured, xp)
    right = None if stopped else _accuracy(rnn, readout, held_out, xp, plugin)
    return Run(recipe, right, tuple(losses), stopped, start, end, time.perf_counter() - began)


def _loss_and_gradients(rnn: RNN, readout: Params, batch: Batch, xp: Namespace) -> tuple[float, Params]:
    """The mean cross-entropy over a batch and its gradients. The loss is all that leaves the device."""
    x, targets = batch
    output, _, pullback = rnn.vjp(x)
    h = output[-1, ...]
    log_p = _log_probabilities(h, readout, xp)
    d_logits = (xp.exp(log_p) - targets) / targets.shape[0]
    grads = pullback(d_h_n=xp.expand_dims(xp.matmul(d_logits, readout["readout_weight"]), axis=0))
    of_readout = {
        "readout_weight": xp.matmul(xp.matrix_transpose(d_logits), h),
        "readout_bias": xp.sum(d_logits, axis=0),
    }
    return -float(xp.sum(log_p * targets)) / targets.shape[0], {**grads.params, **of_readout}


def gradient_norms(rnn: RNN, readout: Params, batch: Batch, xp: Namespace) -> tuple[float, ...]:
    """The 2-norm over units of dL/dh_t for each step t, L the loss of one digit; the median over the batch."""
    x, targets = batch
    log_p = _log_probabilities(rnn(x)[0][-1, ...], readout, xp)
    found, _ = flow(record(rnn, x), None, [[xp.matmul(xp.exp(log_p) - targets, readout["readout_weight"])]])
    with np.errstate(over="ignore"):
        norms = np.exp(found.total[0][0])
    return tuple(float(n) for n in np.median(norms, axis=1))


def _log_probabilities(h: Array, readout: Params, xp: Namespace) -> Array:
    logits = xp.matmul(h, xp.matrix_transpose(readout["readout_weight"])) + readout["readout_bias"]
    shifted = logits - xp.max(logits, axis=-1, keepdims=True)
    return shifted - xp.log(xp.sum(xp.exp(shifted), axis=-1, keepdims=True))


def _accuracy(rnn: RNN, readout: Params, batch: Batch, xp: Namespace, plugin: Backend) -> float:
    x, targets = batch
    log_p = _log_probabilities(rnn(x)[0][-1, ...], readout, xp)
    right = xp.argmax(log_p, axis=-1) == xp.argmax(targets, axis=-1)
    return float(np.mean(plugin.to_numpy(right)))


def _digits(samples: int | None) -> tuple[tuple[Any, Any], tuple[Any, Any]]:
    """Training and held-out digits: (N, 64) pixels in [0, 1] and (N,) labels, every digit in the same share of both."""
    from sklearn.datasets import load_digits  # type: ignore[import-untyped]
    from sklearn.model_selection import train_test_split  # type: ignore[import-untyped]

    pixels, labels = load_digits(return_X_y=True)
    pixels, labels = pixels[:samples] / 16.0, labels[:samples]
    train_x, test_x, train_y, test_y = train_test_split(
        pixels, labels, test_size=TEST_SHARE, stratify=labels, random_state=SPLIT_SEED
    )
    return (train_x, train_y), (test_x, test_y)
