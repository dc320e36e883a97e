"""Train five small networks on handwritten digits: their gradients vanish, explode or overflow, or they learn.

Each of scikit-learn's 1,797 digits is a sequence of 64 pixels, one per step; a softmax of the last state classifies it.
Whether that can be learnt depends on how the gradient changes on its way back to the first pixel, so its norm is measured
before and after training. The code uses the namespace of the chosen backend, :meth:`rnncore.RNN.vjp` and
:mod:`rnncore.optim`, and no framework.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from rnncore.backend.contract import Backend
from rnncore.backend.registry import get_backend
from rnncore.commands.demo.digits import (
    Batch,
    Params,
    accuracy,
    batch_of,
    fit,
    log_probabilities,
    new_readout,
    split_digits,
)
from rnncore.commands.demo.recipes import RECIPES, Recipe
from rnncore.diagnostics.gradient.flow import flow
from rnncore.diagnostics.recording import record
from rnncore.model.rnn import RNN
from rnncore.typing import Namespace

STEPS = 64
HIDDEN_SIZE = 64
BATCH_SIZE = 32
EPOCHS = 40
MEASURED = 128  # held-out digits whose gradients are measured

OnBatch: TypeAlias = Callable[[str, int, float], None]


@dataclass(frozen=True)
class Run:
    """Result of one recipe.

    Attributes
    ----------
    recipe : Recipe
    accuracy : float or None
        Share of held-out digits classified correctly; None if the loss became NaN or infinite.
    losses : tuple of float
        Mean training loss of each finished epoch.
    stopped : str
        Where the loss became NaN or infinite; empty if it did not.
    start, end : tuple of float
        Median over held-out digits of the 2-norm of dL/dh_t, for each step t, before and after training. L is the loss
        of one digit.
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
    """All runs, with the setting they share; ``output`` and ``h_n`` are those of the held-out digits."""

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
    """Train each recipe on the digits, in float32, and measure its gradients before and after.

    Parameters
    ----------
    backend : str, optional
        By default the selected one.
    seed : int
        Seed of the weights and of the order of the batches.
    epochs : int
    samples : int, optional
        Use only this many digits.
    recipes : sequence of Recipe
    on_batch : callable, optional
        Called after every batch with the recipe's name, the epoch, from 1, and the loss.

    Raises
    ------
    UnknownNameError, BackendUnavailableError
    ModuleNotFoundError
        If scikit-learn, which provides the digits, is not installed.
    """
    began = time.perf_counter()
    plugin = get_backend(backend)
    probe = RNN(1, HIDDEN_SIZE, backend=plugin.name, dtype="float32", rng=seed)
    (train_x, train_y), (test_x, test_y) = split_digits(samples)

    parts = np.array_split(np.random.default_rng(seed).permutation(len(train_y)), -(-len(train_y) // BATCH_SIZE))
    batches = [batch_of(train_x[rows], train_y[rows], probe, plugin) for rows in parts]
    held_out = batch_of(test_x, test_y, probe, plugin)
    measured = batch_of(test_x[:MEASURED], test_y[:MEASURED], probe, plugin)
    from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

    output, h_n = probe(held_out[0])
    # The products are too small to share among threads, which slow a busy machine down tenfold. Two of the networks
    # overflow on purpose, and NumPy would warn.
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
    options: dict[str, Any] = {"backend": plugin.name, "dtype": "float32", "rng": rng}
    rnn = RNN(1, HIDDEN_SIZE, nonlinearity=recipe.nonlinearity, init=recipe.init, **options)
    readout = new_readout(rnn, HIDDEN_SIZE, rng, plugin)
    start = gradient_norms(rnn, readout, measured, xp)
    seen: list[list[float]] = [[] for _ in range(epochs)]
    stopped = ""
    for epoch, loss in fit(rnn, readout, batches, recipe.optimiser(), recipe.max_norm, epochs, rng, xp):
        if not math.isfinite(loss):
            stopped = f"loss {loss} in epoch {epoch}, batch {len(seen[epoch - 1]) + 1}"
            break
        seen[epoch - 1].append(loss)
        if on_batch is not None:
            on_batch(recipe.name, epoch, loss)
    losses = tuple(math.fsum(of_epoch) / len(of_epoch) for of_epoch in seen if len(of_epoch) == len(batches))
    end = gradient_norms(rnn, readout, measured, xp)
    right = None if stopped else accuracy(rnn, readout, held_out, xp, plugin)
    return Run(recipe, right, losses, stopped, start, end, time.perf_counter() - began)


def gradient_norms(rnn: RNN, readout: Params, batch: Batch, xp: Namespace) -> tuple[float, ...]:
    """Return the 2-norm of dL/dh_t for each step t, L the loss of one digit: the median over the batch."""
    x, targets = batch
    log_p = log_probabilities(rnn(x)[0][-1, ...], readout, xp)
    found, _ = flow(record(rnn, x), None, [[xp.matmul(xp.exp(log_p) - targets, readout["readout_weight"])]])
    with np.errstate(over="ignore"):
        norms = np.exp(found.total[0][0])
    return tuple(float(n) for n in np.median(norms, axis=1))
