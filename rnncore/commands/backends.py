"""The command ``rnncore backends``: which backends are installed, and which can be used."""

from __future__ import annotations

import json
import sys
from contextlib import redirect_stdout
from dataclasses import asdict

import typer
from rich.table import Table
from rich.text import Text

from rnncore.arguments import one_line
from rnncore.backend import registry
from rnncore.commands.terminal import output


def backends(as_json: bool = typer.Option(False, "--json", help="One JSON document.")) -> None:
    """List every registered backend, whether it can be used, and why not."""
    with redirect_stdout(sys.stderr):  # a plugin may print while it is loaded
        listed = registry.backends()
    if as_json:
        print(json.dumps([asdict(b) for b in listed], indent=2))
        return
    console, table = output(), Table("backend", "usable", "distribution", "version")
    # Text, not str: rich would take the brackets of `pip install "rnncore[torch]"` for a style.
    for b in listed:
        cells = (b.name, "yes" if b.usable else "no", b.distribution, b.version)
        table.add_row(*(Text(one_line(cell)) for cell in cells))
    console.print(table)
    # Reasons come below the table, each on one unfolded line, so that they can be searched and copied.
    for b in listed:
        if b.reason:
            console.print(Text(one_line(f"{b.name}: {b.reason}")), soft_wrap=True)
