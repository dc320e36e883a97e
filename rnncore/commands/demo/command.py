"""The command ``rnncore demo``."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING

import typer

from rnncore.commands.terminal import FAILED, check_writable, fail, needs, output, progress
from rnncore.errors import ArgumentValueError

if TYPE_CHECKING:
    from rnncore.commands.demo.training import Demo


def demo(
    backend: str = typer.Option(None, help="The backend to train on; by default the selected one."),
    as_json: bool = typer.Option(False, "--json", help="One JSON document on standard output, nothing else."),
    seed: int = typer.Option(0, min=0, help="Seed of the weights and of the order of the batches."),
    epochs: int = typer.Option(40, min=1, help="Passes over the training digits."),
    plot: str = typer.Option(None, metavar="FILE", help="Also plot the gradients to this file."),
    samples: int = typer.Option(None, min=100, hidden=True),
) -> None:
    """Train on scikit-learn's handwritten digits and watch gradients vanish, explode and be cured."""
    if plot is not None:
        _check_plot(plot)
    with needs("the demonstration", "demo"):
        done = _train(backend, seed, epochs, samples, show=not as_json)
    if plot is not None:
        from rnncore.commands.demo.plot import plot as draw

        try:
            draw(done, plot)
        except (OSError, ValueError) as error:
            fail(f"--plot: {error}", FAILED)
    from rnncore.commands.demo.report import print_report, to_dict

    if as_json:
        print(json.dumps(to_dict(done), allow_nan=False))
    else:
        print_report(done, output())


def _train(backend: str | None, seed: int, epochs: int, samples: int | None, *, show: bool) -> Demo:
    """Run the demonstration, with a progress bar on a terminal."""
    from rich.progress import BarColumn, TextColumn, TimeElapsedColumn

    from rnncore.commands.demo.recipes import RECIPES
    from rnncore.commands.demo.training import run_demo

    state = TextColumn("{task.fields[state]:<24}")
    bars = progress(TextColumn("{task.description:<11}"), BarColumn(), state, TimeElapsedColumn())
    bars.disable = bars.disable or not show
    tasks = {r.name: bars.add_task(r.name, total=epochs, start=False, state="waiting") for r in RECIPES}

    def on_batch(name: str, epoch: int, loss: float) -> None:
        bars.start_task(tasks[name])
        bars.update(tasks[name], completed=epoch, state=f"epoch {epoch}, loss {loss:.3f}")

    with bars:
        return run_demo(backend, seed=seed, epochs=epochs, samples=samples, on_batch=on_batch)


def _check_plot(path: str) -> None:
    """Check before training that the plot can be written, in a format that matplotlib knows."""
    check_writable("--plot", path)
    with needs("--plot", "demo"):
        from matplotlib.figure import Figure
    kinds = Figure().canvas.get_supported_filetypes()
    if os.path.splitext(path)[1].lower().lstrip(".") not in kinds:
        raise ArgumentValueError(
            f"--plot: expected a file that ends in one of {', '.join(sorted(kinds))}, got {path!r}"
        )
