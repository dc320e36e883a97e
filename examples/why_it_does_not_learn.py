"""Diagnose three networks that do not learn handwritten digits, apply the report's remedies, and train them again.

Each of scikit-learn's 1,797 digits is a sequence of 64 pixels, one per step; a softmax of the last state predicts the digit.
`diagnose` gets the first batch before training. All numbers of the remedies come from its report.
Run it with ``python examples/why_it_does_not_learn.py``; it needs ``rnncore[demo]`` and a few seconds for each seed.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from rnncore import RNN, get_backend, init
from rnncore.commands.demo.digits import (
    accuracy,
    batch_of,
    fit,
    loss_and_d_logits,
    loss_and_gradients,
    new_readout,
    split_digits,
)
from rnncore.diagnostics import GradientNorms, Report, diagnose
from rnncore.diagnostics.verdict.verdict import Remedy
from rnncore.optim import SGD, Adam
from rnncore.typing import Host

HIDDEN, BATCH, EPOCHS = 64, 32, 15
NUMPY = get_backend("numpy")

# Training and held-out digits: pixels (N, 64) in [0, 1], and labels (N,).
Data: TypeAlias = tuple[tuple[Host, Host], tuple[Host, Host]]


@dataclass(frozen=True)
class Setup:
    """A network and its training, with all settings that remedies can change."""

    name: str
    what: str
    nonlinearity: str
    optimiser: Callable[[], SGD | Adam]
    init: Mapping[str, Any] = field(default_factory=dict)
    max_norm: float = math.inf
    clip_at_quantile: bool = False
    input_scale: float = 1.0


SETUPS = (
    Setup("vanishing", "tanh, weights as torch draws them", "tanh", lambda: SGD(0.04), max_norm=1.0),
    Setup(
        "exploding",
        "relu, W_hh = 1.5 I",
        "relu",
        lambda: Adam(1e-3),
        {
            "weight_ih": init.gaussian(1.0),
            "weight_hh": init.identity(1.5),
            "bias_ih": init.constant(0.01),
            "bias_hh": init.constant(0.0),
        },
    ),
    Setup(
        "saturated",
        "tanh, W_hh orthogonal, grey levels from 0 to 255",
        "tanh",
        lambda: Adam(1e-3),
        {"weight_hh": init.orthogonal(1.0)},
        max_norm=1.0,
        input_scale=255.0,
    ),
)


@dataclass(frozen=True)
class Story:
    """One network before and after its remedies. The reports are on the first batch, before any training.

    `accuracies` and `repaired_accuracies` have one number per seed; the reports are those of the first seed.
    """

    setup: Setup
    repaired: Setup
    before: Report
    after: Report
    accuracies: tuple[float, ...]
    repaired_accuracies: tuple[float, ...]

    @property
    def accuracy(self) -> float:
        """Accuracy of the first seed."""
        return self.accuracies[0]

    @property
    def repaired_accuracy(self) -> float:
        """Accuracy of the first seed, with the remedies."""
        return self.repaired_accuracies[0]


def apply(setup: Setup, remedy: Remedy) -> Setup:
    """Apply a remedy with its number to the setup. Only these remedies can occur here."""
    if remedy.parameter == "weight_hh gain" and remedy.value is not None:
        return replace(setup, init={**setup.init, "weight_hh": init.orthogonal(remedy.value)})
    if remedy.parameter == "input scale" and remedy.value is not None:
        return replace(setup, input_scale=setup.input_scale * remedy.value)
    if remedy.parameter == "clip_grad_norm":
        return replace(setup, clip_at_quantile=True)
    raise ValueError(f"no way to apply {remedy}")


def train(setup: Setup, data: Data, epochs: int, seed: int = 0) -> tuple[float, Report]:
    """Train, and return the held-out accuracy, and the report on the first batch before training."""
    rng, xp = np.random.default_rng(seed), NUMPY.namespace()
    rnn = RNN(1, HIDDEN, nonlinearity=setup.nonlinearity, init=setup.init, rng=rng, backend="numpy", dtype="float32")
    readout = new_readout(rnn, HIDDEN, rng, NUMPY)
    (x, y), held_out = data
    parts = np.array_split(rng.permutation(len(y)), -(-len(y) // BATCH))
    batches = [batch_of(x[rows] * setup.input_scale, y[rows], rnn, NUMPY) for rows in parts]

    def cotangent(output: Host, h_n: Host) -> tuple[None, Host]:
        d_logits = loss_and_d_logits(h_n[0], readout, batches[0][1], xp)[1]
        return None, (d_logits @ readout["readout_weight"])[None]

    report = diagnose(rnn, batches[0][0], cotangent)
    max_norm = setup.max_norm
    if setup.clip_at_quantile:  # one pass without updates, to measure the norms
        norms = GradientNorms()
        for batch in batches:
            norms.add(loss_and_gradients(rnn, readout, batch, xp)[1])
        max_norm = norms.summary().recommended[1]
    for _, loss in fit(rnn, readout, batches, setup.optimiser(), max_norm, epochs, rng, xp):
        if not math.isfinite(loss):
            return math.nan, report
    test = batch_of(held_out[0] * setup.input_scale, held_out[1], rnn, NUMPY)
    return accuracy(rnn, readout, test, xp, NUMPY), report


def tell(setup: Setup, data: Data, epochs: int, seeds: int = 1) -> Story:
    """Train the setup unchanged, then with every remedy of its report, from the same seed."""
    told = []
    for seed in range(seeds):
        right, before = train(setup, data, epochs, seed)
        repaired = setup
        for remedy in before.verdict.remedies:
            repaired = apply(repaired, remedy)
        repaired_right, after = train(repaired, data, epochs, seed)
        told.append((repaired, before, after, right, repaired_right))
    first = told[0]
    return Story(setup, *first[:3], tuple(t[3] for t in told), tuple(t[4] for t in told))


def draw(story: Story, path: Path) -> None:
    """Draw ln ||dL/dh_t|| before training, without and with remedies: the median and middle half of the rows at each step."""
    from matplotlib.figure import Figure  # without pyplot: no window, no global state

    figure = Figure(figsize=(6.4, 3.6), layout="constrained")
    axes = figure.subplots()
    both = (
        (story.before, "C3", f"{story.setup.what}: {story.accuracy:.0%} right"),
        (story.after, "C0", f"with the remedies: {story.repaired_accuracy:.0%} right"),
    )
    for report, colour, label in both:
        assert report.flow is not None
        low, middle, high = report.flow[0][0].quantiles((0.25, 0.5, 0.75))
        steps = np.arange(len(middle))
        axes.fill_between(steps, low, high, color=colour, alpha=0.2, linewidth=0)
        axes.plot(steps, middle, color=colour, label=label)
    axes.set_xlabel("step t (one pixel each; the loss is at the last)")
    axes.set_ylabel(r"$\ln\ \|\partial L / \partial h_t\|$, before training")
    axes.set_title(f"verdict: {story.before.verdict.label}, then {story.after.verdict.label}")
    axes.set_xlim(0, len(middle) - 1)
    axes.legend()
    figure.savefig(path, dpi=110)


def main(arguments: list[str] | None = None) -> list[Story]:
    """Run all setups, print the results, and write the pictures."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--epochs", type=int, default=EPOCHS)
    parser.add_argument("--seeds", type=int, default=1, help="number of seeds; the report is that of the first")
    parser.add_argument("--digits", type=int, help="use only this many of the 1,797")
    parser.add_argument("--images", type=Path, help="a folder for the pictures")
    options = parser.parse_args(arguments)
    from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

    data, stories = split_digits(options.digits), []
    # One thread: the products are small, and the numbers are then the same in every run.
    with threadpool_limits(1), np.errstate(over="ignore", invalid="ignore"):
        for setup in SETUPS:
            story = tell(setup, data, options.epochs, options.seeds)
            stories.append(story)
            print(f"--- {setup.what}\n{story.before}")
            print(f"held-out accuracy after {options.epochs} epochs: {_listed(story.accuracies)}")
            print(f"with the remedies, {story.after.verdict.label}: {_listed(story.repaired_accuracies)}\n")
            if options.images is not None:
                options.images.mkdir(parents=True, exist_ok=True)
                draw(story, options.images / f"why-{setup.name}.png")
    return stories


def _listed(accuracies: tuple[float, ...]) -> str:
    return ", ".join(f"{a:.2f}" for a in accuracies)


if __name__ == "__main__":
    main()
