"""The demonstration as tables on the terminal, and as plain data."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from rnncore.commands.demo.training import STEPS, Demo, Run

# Steps whose gradient is shown, from the last to the first pixel.
SHOWN = (63, 60, 56, 48, 32, 16, 0)


def print_report(demo: Demo, console: Console) -> None:
    """Print a finished demonstration, with a short explanation."""
    console.print(
        f"Handwritten digits, {demo.train_size} for training and {demo.test_size} held out; each is a sequence of "
        f"{STEPS} pixels, one per step.\n"
        f"Backend {demo.backend}, device {demo.device}, {demo.dtype}; a call on all held-out digits returns\n"
        f"  output {demo.output_shape}   (steps, batch, hidden_size)\n"
        f"  h_n    {demo.h_n_shape}    (layers, batch, hidden_size)\n",
        highlight=False,
    )
    console.print(_accuracies(demo))
    console.print(_gradients(demo))
    console.print(
        "\n||dL/dh_t|| is how much the loss changes with the state at step t. Where it is 1e-10, the network cannot learn\n"
        "from anything it has seen up to step t; where it is 1e+10, a tiny change of the state changes everything.\n",
        highlight=False,
    )
    for run in demo.runs:
        console.print(f"{run.recipe.name}: {run.recipe.lesson}", highlight=False)
    console.print(f"\nTotal time: {demo.seconds:.0f} s.", highlight=False)


def to_dict(demo: Demo) -> dict[str, Any]:
    """Convert to plain data, with the norm at every step; None for NaN and infinity."""
    return {**vars(demo), "runs": [_run(run) for run in demo.runs]}


def _run(run: Run) -> dict[str, Any]:
    recipe = {name: getattr(run.recipe, name) for name in ("name", "network", "training", "lesson")}
    return {
        **recipe,
        "accuracy": run.accuracy,
        "stopped": run.stopped or None,
        "losses": _numbers(run.losses),
        "gradient_norm_start": _numbers(run.start),
        "gradient_norm_end": _numbers(run.end),
        "seconds": run.seconds,
    }


def _accuracies(demo: Demo) -> Table:
    table = Table(title="Held-out accuracy", title_justify="left")
    for column in ("network", "recurrence", "training"):
        table.add_column(column)
    table.add_column("accuracy", justify="right")
    for run in demo.runs:
        table.add_row(run.recipe.name, run.recipe.network, run.recipe.training, _accuracy(run))
    return table


def _gradients(demo: Demo) -> Table:
    table = Table(
        title="Gradient ||dL/dh_t|| at step t, median over held-out digits, at the start and at the end of training",
        title_justify="left",
    )
    table.add_column("network")
    table.add_column("")
    for t in SHOWN:
        table.add_column(f"t={t}", justify="right", no_wrap=True)
    for run in demo.runs:
        for label, norms in (("start", run.start), ("end", run.end)):
            cells = (_norm(norms[t]) for t in SHOWN)
            table.add_row(run.recipe.name if label == "start" else "", label, *cells, end_section=label == "end")
    return table


def _accuracy(run: Run) -> str:
    return run.stopped if run.accuracy is None else f"{100 * run.accuracy:.1f} %"


def _norm(value: float) -> str:
    return f"{value:.0e}" if math.isfinite(value) else str(value)


def _numbers(values: Sequence[float]) -> list[float | None]:
    return [v if math.isfinite(v) else None for v in values]
