"""What the demonstration prints: accuracies, shapes, and the gradient at every step as a table; the same as JSON."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from rnncore.commands.demo.training import STEPS, Demo, Run

__all__ = ["as_json", "print_report"]

# The steps whose gradient is shown, from the last back to the first pixel.
SHOWN = (63, 60, 56, 48, 32, 16, 0)


def print_report(demo: Demo, console: Console) -> None:
    """Print a finished demonstration for a reader who has never seen a gradient vanish."""
    console.print(
        f"Handwritten digits, {demo.train_size} to learn from and {demo.test_size} held out; each is a sequence of "
        f"{STEPS} pixels, one a step.\n"
        f"Backend {demo.backend}, device {demo.device}, {demo.dtype}; the held-out digits at once give\n"
        f"  output {demo.output_shape}   (steps, batch, hidden_size)\n"
        f"  h_n    {demo.h_n_shape}    (layers, batch, hidden_size)\n",
        highlight=False,
    )
    console.print(_accuracies(demo))
    console.print(_gradients(demo))
    console.print(
        "\nHow to read it: ||dL/dh_t|| says how much the loss would change if the state at step t did. Where it is 1e-10,\n"
        "nothing that the network saw by then is learnt from; where it is 1e+10, the smallest change upsets everything.\n",
        highlight=False,
    )
    for run in demo.runs:
        console.print(f"{run.recipe.name}: {run.recipe.lesson}", highlight=False)
    console.print(f"\n{demo.seconds:.0f} s in all.", highlight=False)


def as_json(demo: Demo) -> dict[str, Any]:
    """The same as plain data: every step's norm, and null for what is not a number."""
    return {
        "backend": demo.backend,
        "device": demo.device,
        "dtype": demo.dtype,
        "seed": demo.seed,
        "epochs": demo.epochs,
        "train_size": demo.train_size,
        "test_size": demo.test_size,
        "output_shape": list(demo.output_shape),
        "h_n_shape": list(demo.h_n_shape),
        "seconds": demo.seconds,
        "runs": [
            {
                "name": run.recipe.name,
                "network": run.recipe.network,
                "training": run.recipe.training,
                "lesson": run.recipe.lesson,
                "accuracy": run.accuracy,
                "stopped": run.stopped or None,
                "losses": _numbers(run.losses),
                "gradient_norm_start": _numbers(run.start),
                "gradient_norm_end": _numbers(run.end),
                "seconds": run.seconds,
            }
            for run in demo.runs
        ],
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
