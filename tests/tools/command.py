"""The command in a process of its own."""

import fcntl
import os
import pty
import struct
import subprocess
import sys
import termios

QUICK = ("--epochs", "1", "--samples", "200")
PLAIN = {k: v for k, v in os.environ.items() if k not in {"FORCE_COLOR", "TTY_COMPATIBLE", "RNNCORE_BACKEND"}}


def rnn(*arguments, code="", env=()):
    """The command in a process of its own; `code` runs before it."""
    run = f"from rnncore.commands.cli import main\nsys.argv = ['rnncore', *{arguments!r}]\nsys.exit(main())"
    script = f"import sys\n{code}\n{run}"
    return subprocess.run(
        [sys.executable, "-c", script], capture_output=True, encoding="utf-8", env={**PLAIN, **dict(env)}, check=False
    )


def on_a_terminal(*arguments, stream, env=()):
    """Run the command with one stream on a terminal of 80 columns; return what that shows and what the other stream has."""
    parent, child = pty.openpty()
    fcntl.ioctl(child, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    command = [sys.executable, "-c", "import sys; from rnncore.commands.cli import main; sys.exit(main())", *arguments]
    environment = {k: v for k, v in PLAIN.items() if k != "COLUMNS"} | {"TERM": "xterm", **dict(env)}
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, stream: child}
    with subprocess.Popen(command, stdin=child, env=environment, **streams) as process:
        os.close(child)
        shown = read_all(parent)
        other = process.stdout or process.stderr
        written = other.read()
    os.close(parent)
    assert process.returncode == 0
    return shown.decode(), written.decode()


def read_all(parent):
    """What a terminal shows until its other end closes."""
    shown = b""
    try:
        while piece := os.read(parent, 65536):
            shown += piece
    except OSError:  # Linux's way of saying that the other end has closed
        pass
    return shown
