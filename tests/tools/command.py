"""The command in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys

QUICK = ("--epochs", "1", "--samples", "200")
PLAIN = {k: v for k, v in os.environ.items() if k not in {"FORCE_COLOR", "TTY_COMPATIBLE", "RNNCORE_BACKEND"}}


def rnn(*arguments, code="", env=()):
    """The command in a process of its own; `code` runs before it."""
    run = f"from rnncore.commands.cli import main\nsys.argv = ['rnncore', *{arguments!r}]\nsys.exit(main())"
    script = f"import sys\n{code}\n{run}"
    return subprocess.run(
        [sys.executable, "-c", script], capture_output=True, encoding="utf-8", env={**PLAIN, **dict(env)}, check=False
    )
