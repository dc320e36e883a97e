"""The program ``rnncore``: it parses the command line and runs one of the commands beside this file.

typer and rich are imported when the program runs, never by ``import rnncore``. If they are missing, one line says how to
install them.
"""

from __future__ import annotations

import io
import os
import sys
from typing import TYPE_CHECKING

from rnncore.commands.terminal import FAILED, INTERRUPTED, USAGE, fail, needs
from rnncore.errors import RnncoreError

if TYPE_CHECKING:
    import typer


PIPE_CLOSED = 141  # a shell's status for SIGPIPE


def main() -> None:
    """Run the program. A failure is one line on stderr and status 1, or 2 for wrong usage."""
    try:
        _main()
    except KeyboardInterrupt:
        raise SystemExit(INTERRUPTED) from None
    except BrokenPipeError:
        # The reader closed the pipe: exit as if killed by SIGPIPE, without Python's complaint at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(PIPE_CLOSED) from None
    except OSError as error:  # a full disk, a closed output
        fail(f"the output cannot be written: {error}", FAILED)
    except RnncoreError as error:
        fail(str(error), USAGE)


def _main() -> None:
    if sys.stdout is None:  # closed by the shell
        raise OSError("standard output is closed")
    for stream in (sys.stdout, sys.stderr):
        # Escape characters that the terminal's encoding lacks.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    with needs("the command", "cli"):
        app = _app()
    try:
        status = app(prog_name="rnncore", standalone_mode=False)
        sys.stdout.flush()
    except Exception as error:
        # typer's own errors, by name: the package that defines them differs between releases.
        kind, words = type(error).__name__, getattr(error, "format_message", None)
        if kind == "Abort":
            raise SystemExit(INTERRUPTED) from None
        if kind == "NoArgsIsHelpError":  # the help has been printed
            raise SystemExit(USAGE) from None
        if words is None:
            raise
        fail(words(), USAGE)
    sys.exit(status if isinstance(status, int) else 0)


def _app() -> typer.Typer:
    import typer

    from rnncore import __version__
    from rnncore.commands.backends import backends
    from rnncore.commands.conform import conform
    from rnncore.commands.convert import convert
    from rnncore.commands.demo.command import demo
    from rnncore.commands.diagnose import diagnose

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

    option = typer.Option(False, "--version", callback=version, is_eager=True, help="Print the version.")

    def show_version(wanted: bool = option) -> None:
        pass

    app.callback()(show_version)
    for command in (backends, demo, conform, diagnose, convert):
        app.command()(command)
    return app
