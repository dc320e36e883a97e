"""The command ``rnncore``: ``demo`` trains on real digits and shows what gradients do, ``backends`` lists what can run,
``conform`` runs the conformance suite, ``diagnose`` says why a saved network does not learn.

typer and rich are imported when the command runs, never by ``import rnncore``; where they are missing one line says how to
get them.
"""

from __future__ import annotations

import io
import json
import os
import sys
from typing import TYPE_CHECKING, Any, NoReturn

if TYPE_CHECKING:
    import typer

    from rnncore.commands.demo.training import Demo

__all__ = ["main"]

INSTALL = 'pip install "rnncore[cli]"'
INSTALL_DEMO = 'pip install "rnncore[demo]"'
FAILED, USAGE = 1, 2
PIPE_WIDTH = 120  # in a pipe there is no width to fit: a table is then as wide as it needs to be
INTERRUPTED = 130  # what a shell reports for Ctrl-C
PIPE_CLOSED = 141  # and for SIGPIPE


def main() -> None:
    """Entry point of the command. Whatever is wrong ends it with one line on stderr and status 1, or 2 for a bad call."""
    try:
        _main()
    except KeyboardInterrupt:
        raise SystemExit(INTERRUPTED) from None
    except BrokenPipeError:
        # Who read has gone: as a program that dies of the signal, and without Python's own complaint at its exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(PIPE_CLOSED) from None
    except OSError as error:  # a full disk, a closed output
        _fail(f"the output cannot be written: {error}", FAILED)


def _main() -> None:
    if sys.stdout is None:  # closed by the shell
        raise OSError("standard output is closed")
    for stream in (sys.stdout, sys.stderr):
        # A report may hold what the terminal's encoding lacks: escaped is better than nothing at all.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        app = _app()
    except ModuleNotFoundError as error:
        _fail(f"the command needs {_package(error)}: {INSTALL}", FAILED)
    try:
        status = app(prog_name="rnncore", standalone_mode=False)
        sys.stdout.flush()
    except Exception as error:
        # typer's own errors: the package that defines them has changed with its releases, their shape has not.
        kind, words = type(error).__name__, getattr(error, "format_message", None)
        if kind == "Abort":
            raise SystemExit(INTERRUPTED) from None
        if kind == "NoArgsIsHelpError":  # the help has been printed
            raise SystemExit(USAGE) from None
        if words is None:
            raise
        _fail(words(), USAGE)
    sys.exit(status if isinstance(status, int) else 0)


def _app() -> typer.Typer:
    import typer
    from rich.console import Console

    from rnncore import __version__
    from rnncore.errors import RnncoreError

    # Annotations are looked up here, in this function's own names.
    app = typer.Typer(
        help="One vanilla recurrent network for every array library, and the reasons why it does not learn.",
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
    )

    def version(wanted: bool) -> None:
        if wanted:
            typer.echo(__version__)
            raise typer.Exit

    def show_version(
        wanted: bool = typer.Option(False, "--version", callback=version, is_eager=True, help="Print the version."),
    ) -> None:
        pass

    app.callback()(show_version)

    def backends(as_json: bool = typer.Option(False, "--json", help="One JSON document.")) -> None:
        """List every registered backend, whether it can be used, and why not."""
        _list_backends(Console() if sys.stdout.isatty() else Console(width=PIPE_WIDTH), as_json)

    app.command()(backends)

    def demo(
        backend: str = typer.Option(None, help="Which backend to train on; by default the selected one."),
        as_json: bool = typer.Option(False, "--json", help="One JSON document on standard output, nothing else."),
        seed: int = typer.Option(0, min=0, help="Draws the weights and the order of the batches."),
        epochs: int = typer.Option(40, min=1, help="Passes over the training digits."),
        plot: str = typer.Option(None, metavar="FILE", help="Also write the gradients as a picture."),
        samples: int = typer.Option(None, min=100, hidden=True),
    ) -> None:
        """Train on scikit-learn's handwritten digits and watch gradients vanish, explode and be cured."""
        if plot is not None:
            _check_writable(plot)
        try:
            done = _train(backend, seed, epochs, samples, show=not as_json)
        except RnncoreError as error:
            _fail(str(error), USAGE)
        except ModuleNotFoundError as error:
            _fail(f"the demonstration needs {_package(error)}: {INSTALL_DEMO}", FAILED)
        _report(done, as_json, plot)

    app.command()(demo)

    def conform(
        backend: str = typer.Argument(help="A registered backend, as `rnncore backends` lists it."),
        device: str = typer.Option(None, help="By default the backend's own default one."),
        kernel: str = typer.Option("auto", help="How scans run: auto, reference or require."),
        only: list[str] = typer.Option(None, metavar="ID", help="A check, or a group such as RC-SCAN; repeatable."),
        expect_failure: list[str] = typer.Option(
            None, metavar="ID=REASON", help="A check that is known to fail, and must; repeatable."
        ),
        as_json: str = typer.Option(
            None, "--json", metavar="FILE", help="Also write the report as JSON; - for stdout."
        ),
        as_html: str = typer.Option(None, "--html", metavar="FILE", help="Also write the report as one HTML page."),
    ) -> int:
        """Run the conformance suite on a backend: is it right? Status 0 if it is, 1 if a check failed or none ran."""
        from rnncore.commands import conform as command
        from rnncore.commands.terminal import STANDARD_OUTPUT, check_writable

        try:
            check_writable("--json", as_json)
            check_writable("--html", as_html)
            report = command.run(
                backend,
                device=device,
                kernel=kernel,  # type: ignore[arg-type]  # check_backend names what it expected
                only=only or None,
                expected_failures=command.expectations(expect_failure or []),
            )
            command.write(report, json=as_json, html=as_html)
        except RnncoreError as error:
            _fail(str(error), USAGE)
        if as_json != STANDARD_OUTPUT:
            command.print_report(report, Console() if sys.stdout.isatty() else Console(width=PIPE_WIDTH))
        return 0 if report.ok else FAILED

    app.command()(conform)

    def diagnose(
        weights: str = typer.Argument(help="What RNN.save wrote: .safetensors or .npz."),
        x: str = typer.Option(..., "--input", metavar="FILE.npy", help="The input, in the network's own layout."),
        backend: str = typer.Option(None, help="Which backend to run on; by default the selected one."),
        device: str = typer.Option(None, help="By default the backend's own default one."),
        level: str = typer.Option("cheap", help="What to pay for: cheap, standard or deep."),
        lengths: str = typer.Option(None, metavar="N,N,...", help="The valid steps of each row."),
        dependency_length: int = typer.Option(
            None, min=1, help="Steps that the task has to reach over; by default all."
        ),
        cotangent: str = typer.Option(None, metavar="FILE.npy", help="dL/d output; by default one on the last output."),
        as_json: str = typer.Option(
            None, "--json", metavar="FILE", help="Also write the report as JSON; - for stdout."
        ),
        as_html: str = typer.Option(
            None, "--html", metavar="FILE", help="Also write the report as one HTML page; - for stdout."
        ),
    ) -> int:
        """Say why a saved network does not learn. Status 0 if it is healthy, 1 if not, 2 for an error."""
        from rnncore.commands import diagnose as command
        from rnncore.commands.terminal import STANDARD_OUTPUT

        try:
            report = command.run(
                weights,
                x,
                backend=backend,
                device=device,
                level=level,
                lengths=lengths,
                dependency_length=dependency_length,
                cotangent=cotangent,
                outputs={"--json": as_json, "--html": as_html},
            )
            command.write(report, json=as_json, html=as_html)
        except (RnncoreError, OSError) as error:
            _fail(str(error), USAGE)
        except MemoryError as error:
            _fail(f"there is not enough memory: {error}", USAGE)
        except Exception:  # a mistake in the program: shown whole, and with another status than a verdict's
            import traceback

            traceback.print_exc()
            return USAGE
        if STANDARD_OUTPUT not in (as_json, as_html):
            report.show(Console() if sys.stdout.isatty() else Console(width=PIPE_WIDTH))
        return 0 if report.verdict.label == "healthy" else FAILED

    app.command()(diagnose)
    return app


def _list_backends(console: Any, as_json: bool) -> None:
    from contextlib import redirect_stdout
    from dataclasses import asdict

    from rich.table import Table
    from rich.text import Text

    from rnncore.arguments import one_line
    from rnncore.backend.registry import backends

    with redirect_stdout(sys.stderr):  # a plugin may print while it is loaded, and the document must stay one
        listed = backends()
    if as_json:
        print(json.dumps([asdict(b) for b in listed], indent=2))
        return
    table = Table()
    for column in ("backend", "usable", "distribution", "version"):
        table.add_column(column)
    # Text, not str: in rich's markup the brackets of `pip install "rnncore[torch]"` would be a style, and vanish.
    for b in listed:
        cells = (b.name, "yes" if b.usable else "no", b.distribution, b.version)
        table.add_row(*(Text(one_line(cell)) for cell in cells))
    console.print(table)
    # Under the table and never folded: a reason has one line, to be searched for, and a command in it can be copied.
    for b in listed:
        if b.reason:
            console.print(Text(one_line(f"{b.name}: {b.reason}")), soft_wrap=True)


def _train(backend: str | None, seed: int, epochs: int, samples: int | None, *, show: bool) -> Demo:
    """Run the demonstration, with a progress bar where there is a terminal to draw it on."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    from rnncore.commands.demo.training import RECIPES, run_demo

    errors = Console(stderr=True)
    bars = show and errors.is_terminal
    columns = (
        TextColumn("{task.description:<11}"),
        BarColumn(),
        TextColumn("{task.fields[state]:<24}"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=errors, disable=not bars, transient=True) as progress:
        tasks = {r.name: progress.add_task(r.name, total=epochs, start=False, state="waiting") for r in RECIPES}

        def on_batch(name: str, epoch: int, loss: float) -> None:
            progress.start_task(tasks[name])
            progress.update(tasks[name], completed=epoch, state=f"epoch {epoch}, loss {loss:.3f}")

        return run_demo(backend, seed=seed, epochs=epochs, samples=samples, on_batch=on_batch)


def _report(demo: Demo, as_json: bool, plot: str | None) -> None:
    from rich.console import Console

    from rnncore.commands.demo.report import as_json as to_json
    from rnncore.commands.demo.report import print_report

    if plot is not None:
        try:
            from rnncore.commands.demo.plot import plot as draw

            draw(demo, plot)
        except (OSError, ValueError) as error:
            _fail(f"--plot: {error}", FAILED)
    if as_json:
        print(json.dumps(to_json(demo), allow_nan=False))
        return
    print_report(demo, Console() if sys.stdout.isatty() else Console(width=PIPE_WIDTH))


def _check_writable(path: str) -> None:
    """Before the training, not after it."""
    from rnncore.commands.terminal import check_writable
    from rnncore.errors import RnncoreError

    try:
        check_writable("--plot", path)
    except RnncoreError as error:
        _fail(str(error), USAGE)
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        _fail(f"--plot needs {_package(error)}: {INSTALL_DEMO}", FAILED)
    kinds = Figure().canvas.get_supported_filetypes()
    if os.path.splitext(path)[1].lower().lstrip(".") not in kinds:
        _fail(f"--plot: expected a file that ends in one of {', '.join(sorted(kinds))}, got {path!r}", USAGE)


def _package(error: ModuleNotFoundError) -> str:
    """The name to install a missing module by."""
    top = (error.name or "a package").partition(".")[0]
    return "scikit-learn" if top == "sklearn" else top


def _fail(message: str, code: int) -> NoReturn:
    one_line = "; ".join(line.strip() for line in message.splitlines()).replace(":;", ":")
    print(f"rnncore: {one_line}", file=sys.stderr)
    raise SystemExit(code)
