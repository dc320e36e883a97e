"""Python code run in a process of its own."""

import os
import subprocess
import sys
import textwrap

# Seconds: no loaded machine takes so long, and what waits for ever ends all the same.
PATIENCE = 1800


def python(code, *, flags=("-W", "error"), cwd=None, status=0, **environment):
    """Standard output, without white space around it, of a new process that must end with this status.

    Warnings are errors there, too.
    """
    done = subprocess.run(
        [sys.executable, *flags, "-c", textwrap.dedent(code)],
        capture_output=True,
        text=True,
        cwd=cwd,
        env={**os.environ, **environment},
        check=False,
    )
    assert done.returncode == status, done.stdout[-3000:] + done.stderr[-6000:]
    return done.stdout.strip()
