"""The task of the demonstration: handwritten digits as sequences of pixels, classified by a softmax of the last state."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, TypeAlias

import numpy as np

from rnncore.backend.contract import Backend
from rnncore.model.rnn import RNN
from rnncore.optim.clipping import clip_grad_norm
from rnncore.optim.optimisers import SGD, Adam
from rnncore.typing import Array, Host, Namespace

CLASSES = 10
TEST_SHARE = 0.25
SPLIT_SEED = 0  # not --seed, so that all seeds are tested on the same digits

Params: TypeAlias = dict[str, Array]
Batch: TypeAlias = tuple[Array, Array]


def split_digits(samples: int | None) -> tuple[tuple[Any, Any], tuple[Any, Any]]:
    """Return training and held-out digits, stratified: pixels (N, 64) in [0, 1] and labels (N,)."""
    from sklearn.datasets import load_digits  # type: ignore[import-untyped]
    from sklearn.model_selection import train_test_split  # type: ignore[import-untyped]

    pixels, labels = load_digits(return_X_y=True)
    pixels, labels = pixels[:samples] / 16.0, labels[:samples]
    train_x, test_x, train_y, test_y = train_test_split(
        pixels, labels, test_size=TEST_SHARE, stratify=labels, random_state=SPLIT_SEED
    )
    return (train_x, train_y), (test_x, test_y)


def batch_of(pixels: Host, labels: Host, rnn: RNN, plugin: Backend) -> Batch:
    """Convert digits (N, 64) and labels to the inputs (64, N, 1) of the network, and targets (N, 10)."""
    host = pixels.T[:, :, np.newaxis], np.eye(CLASSES)[labels]
    inputs, targets = (plugin.asarray(a, dtype=rnn.dtype, device=rnn.device) for a in host)
    return inputs, targets


def new_readout(rnn: RNN, hidden_size: int, rng: np.random.Generator, plugin: Backend) -> Params:
    """Draw the weights of the softmax."""
    drawn = {
        "readout_weight": rng.standard_normal((CLASSES, hidden_size)) / math.sqrt(hidden_size),
        "readout_bias": np.zeros(CLASSES),
    }
    return {k: plugin.asarray(v, dtype=rnn.dtype, device=rnn.device) for k, v in drawn.items()}


def log_probabilities(h: Array, readout: Params, xp: Namespace) -> Array:
    """Return ln p of each class (B, 10) from the last state (B, H)."""
    logits = xp.matmul(h, xp.matrix_transpose(readout["readout_weight"])) + readout["readout_bias"]
    shifted = logits - xp.max(logits, axis=-1, keepdims=True)
    return shifted - xp.log(xp.sum(xp.exp(shifted), axis=-1, keepdims=True))


def loss_and_d_logits(h: Array, readout: Params, targets: Array, xp: Namespace) -> tuple[float, Array]:
    """Return the mean cross-entropy of the last states (B, H), and its gradient by the logits (B, 10)."""
    log_p = log_probabilities(h, readout, xp)
    return -float(xp.sum(log_p * targets)) / targets.shape[0], (xp.exp(log_p) - targets) / targets.shape[0]


def loss_and_gradients(rnn: RNN, readout: Params, batch: Batch, xp: Namespace) -> tuple[float, Params]:
    """Return the mean cross-entropy of a batch and its gradients. Only the loss leaves the device."""
    x, targets = batch
    output, _, pullback = rnn.vjp(x)
    h = output[-1, ...]
    loss, d_logits = loss_and_d_logits(h, readout, targets, xp)
    grads = pullback(d_h_n=xp.expand_dims(xp.matmul(d_logits, readout["readout_weight"]), axis=0))
    of_readout = {
        "readout_weight": xp.matmul(xp.matrix_transpose(d_logits), h),
        "readout_bias": xp.sum(d_logits, axis=0),
    }
    return loss, {**grads.params, **of_readout}


def fit(
    rnn: RNN,
    readout: Params,
    batches: Sequence[Batch],
    optimiser: SGD | Adam,
    max_norm: float,
    epochs: int,
    rng: np.random.Generator,
    xp: Namespace,
) -> Iterator[tuple[int, float]]:
    """Train ``rnn`` and ``readout`` in place; yield the epoch, from 1, and the loss of each batch.

    The learning rate decays linearly to 0, and gradients are clipped at ``max_norm``. A loss that is NaN or infinite is
    the last one.
    """
    first_lr = optimiser.lr
    for epoch in range(1, epochs + 1):
        optimiser.lr = first_lr * (1 - (epoch - 1) / epochs)
        for k in rng.permutation(len(batches)):
            loss, grads = loss_and_gradients(rnn, readout, batches[k], xp)
            if math.isfinite(loss):
                clipped, _ = clip_grad_norm(grads, max_norm)
                stepped = optimiser.step({**rnn.params, **readout}, clipped)
                readout.update({name: stepped.pop(name) for name in readout})
                rnn.set_params(stepped)
            yield epoch, loss
            if not math.isfinite(loss):
                return


def accuracy(rnn: RNN, readout: Params, batch: Batch, xp: Namespace, plugin: Backend) -> float:
    """Return the share of digits classified correctly."""
    x, targets = batch
    log_p = log_probabilities(rnn(x)[0][-1, ...], readout, xp)
    right = xp.argmax(log_p, axis=-1) == xp.argmax(targets, axis=-1)
    return float(np.mean(plugin.to_numpy(right)))
