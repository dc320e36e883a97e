"""The command, run as a user runs it, and the demonstration: its measurement against backpropagation, and its claim."""

from __future__ import annotations

import fcntl
import functools
import json
import os
import pty
import re
import struct
import subprocess
import sys
import termios

import numpy as np
import pytest

import rnncore
from rnncore.commands.demo import training as demo
from rnncore.commands.demo.plot import plot

NAMES = ["vanishing", "orthogonal", "exploding", "overflow", "identity"]
# Sums of 5 and 6 terms over 7 steps, and a logarithm taken and undone: some tens of roundings of 1e-16.
ROUNDING = 1e-14
QUICK = ("--epochs", "1", "--samples", "200")
PLAIN = {k: v for k, v in os.environ.items() if k not in {"FORCE_COLOR", "TTY_COMPATIBLE", "RNNCORE_BACKEND"}}


def rnn(*arguments, code="", env=()):
    """The command in a process of its own; `code` runs before it."""
    run = f"from rnncore.commands.cli import main\nsys.argv = ['rnncore', *{arguments!r}]\nsys.exit(main())"
    script = f"import sys\n{code}\n{run}"
    return subprocess.run(
        [sys.executable, "-c", script], capture_output=True, encoding="utf-8", env={**PLAIN, **dict(env)}, check=False
    )


def one_line(done, status, *words):
    assert done.returncode == status, done.stderr
    assert done.stdout == ""
    assert done.stderr.startswith("rnncore: ")
    assert done.stderr.count("\n") == 1
    for word in words:
        assert word in done.stderr


# --- the measurement --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("nonlinearity", ["tanh", "relu", "softplus"])
@pytest.mark.parametrize("library", ["numpy", "torch"])
def test_gradient_norms_are_those_of_a_run_that_begins_there(nonlinearity, library):
    """dL/dh_t is the gradient with respect to h0 of the network run on what comes after t."""
    backend = rnncore.get_backend(library)
    xp, device = backend.namespace(), backend.devices()[0]
    model = rnncore.RNN(3, 5, nonlinearity=nonlinearity, rng=0, backend=library, dtype="float64")
    rng = np.random.default_rng(1)
    numbers = (
        rng.standard_normal((7, 4, 3)),
        np.eye(6)[[5, 0, 2, 2]],
        rng.standard_normal((6, 5)),
        rng.standard_normal(6),
    )
    x, targets, weight, bias = (backend.asarray(n, dtype=xp.float64, device=device) for n in numbers)
    readout = {"readout_weight": weight, "readout_bias": bias}
    got = demo.gradient_norms(model, readout, (x, targets), xp)
    output, _ = model(x)
    logits = backend.to_numpy(output[-1, ...]) @ numbers[2].T + numbers[3]
    chances = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    d_last = (chances - numbers[1]) @ numbers[2]
    want = [np.median(np.linalg.norm(d_last, axis=1))]
    for t in reversed(range(6)):
        _, _, pullback = model.vjp(x[t + 1 :, ...], xp.expand_dims(output[t, ...], axis=0))
        d_h_n = backend.asarray(d_last[None], dtype=xp.float64, device=device)
        want.insert(0, np.median(np.linalg.norm(backend.to_numpy(pullback(d_h_n=d_h_n).h0)[0], axis=1)))
    np.testing.assert_allclose(got, want, rtol=ROUNDING)


# --- the claim --------------------------------------------------------------------------------------------------------


@functools.cache
def ten_epochs():
    return demo.run_demo("numpy", epochs=10)


def runs_of(result):
    return {run.recipe.name: run for run in result.runs}


def test_the_cures_beat_what_they_cure():
    runs = runs_of(ten_epochs())
    assert list(runs) == NAMES
    assert runs["orthogonal"].accuracy > 0.75
    assert runs["orthogonal"].accuracy > runs["vanishing"].accuracy + 0.3
    assert runs["identity"].accuracy > runs["exploding"].accuracy + 0.15
    assert runs["orthogonal"].losses[-1] < 0.6 * runs["orthogonal"].losses[0]


def test_gradients_vanish_explode_and_are_kept():
    runs = runs_of(ten_epochs())
    assert 1e-16 < runs["vanishing"].start[0] < 1e-12
    assert 1e-3 < runs["orthogonal"].start[0] < 10
    assert 1e9 < runs["exploding"].start[0] < 1e13
    assert 0.1 < runs["identity"].start[0] < 10
    for run in runs.values():
        assert len(run.start) == len(run.end) == 64
        assert 0.1 < run.start[63] < 10


def test_what_overflows_is_stopped_and_said():
    run = runs_of(ten_epochs())["overflow"]
    assert run.accuracy is None
    assert run.losses == ()
    assert run.stopped.startswith("loss nan in epoch 1, batch ")
    assert not np.any(np.isfinite(run.end))


def test_every_backend_tells_the_same_story():
    ours, theirs = (runs_of(demo.run_demo(b, epochs=1, samples=300)) for b in ("numpy", "torch"))
    for name in NAMES:
        np.testing.assert_allclose(ours[name].start, theirs[name].start, rtol=1e-3)
    # Ten steps of a network that does not amplify: the same digits, but for rounding.
    np.testing.assert_allclose(ours["orthogonal"].losses, theirs["orthogonal"].losses, rtol=1e-4)
    np.testing.assert_allclose(ours["vanishing"].end, theirs["vanishing"].end, rtol=1e-3)


def test_a_seed_decides_everything():
    first, again, other = (runs_of(demo.run_demo(epochs=1, samples=200, seed=s)) for s in (3, 3, 4))
    assert first["orthogonal"].losses == again["orthogonal"].losses
    assert first["orthogonal"].end == again["orthogonal"].end
    assert first["orthogonal"].losses != other["orthogonal"].losses


def test_every_batch_is_told():
    told = []
    recipes = [r for r in demo.RECIPES if r.name == "orthogonal"]
    demo.run_demo(epochs=2, samples=200, recipes=recipes, on_batch=lambda *news: told.append(news))
    assert {name for name, _, _ in told} == {"orthogonal"}
    assert [epoch for _, epoch, _ in told] == [1] * 5 + [2] * 5  # 150 digits in batches of at most 32
    assert all(np.isfinite(loss) for _, _, loss in told)


def test_the_picture(tmp_path):
    path = tmp_path / "flow.png"
    plot(ten_epochs(), path)
    assert path.read_bytes().startswith(b"\x89PNG")
    assert 10_000 < path.stat().st_size < 150_000


# --- the command ------------------------------------------------------------------------------------------------------


def test_demo_in_a_pipe_is_plain_text():
    done = rnn("demo", *QUICK)
    assert done.returncode == 0, done.stderr
    assert "\x1b" not in done.stdout
    assert done.stderr == ""
    for words in ("output (64, 50, 64)", "h_n    (1, 50, 64)", "t=0", "1e-14", "loss nan in epoch 1", *NAMES):
        assert words in done.stdout


def refuse(constant):
    raise AssertionError(f"{constant} is not JSON")


@pytest.mark.parametrize("library", ["numpy", "torch"])
def test_demo_as_json_is_one_document(library):
    done = rnn("demo", *QUICK, "--json", "--seed", "2", "--backend", library)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    document = json.loads(done.stdout, parse_constant=refuse)
    assert [document[k] for k in ("backend", "seed", "epochs", "train_size", "test_size")] == [library, 2, 1, 150, 50]
    assert [document["output_shape"], document["h_n_shape"]] == [[64, 50, 64], [1, 50, 64]]
    runs = {run["name"]: run for run in document["runs"]}
    assert list(runs) == NAMES
    for run in runs.values():
        assert len(run["gradient_norm_start"]) == len(run["gradient_norm_end"]) == 64
    assert runs["overflow"]["accuracy"] is None
    assert runs["overflow"]["gradient_norm_end"] == [None] * 64
    assert 0 <= runs["orthogonal"]["accuracy"] <= 1


def test_demo_on_a_terminal_shows_a_bar_on_stderr_only():
    parent, child = pty.openpty()
    command = [
        sys.executable,
        "-c",
        "import sys; from rnncore.commands.cli import main; sys.exit(main())",
        "demo",
        *QUICK,
    ]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=child, env={**PLAIN, "TERM": "xterm"}) as process:
        os.close(child)
        shown = b""
        try:
            while piece := os.read(parent, 65536):
                shown += piece
        except OSError:  # Linux's way of saying that the other end has closed
            pass
        written = process.stdout.read()
    os.close(parent)
    assert process.returncode == 0
    assert b"orthogonal" in shown
    assert b"\x1b" not in written


def test_demo_draws(tmp_path):
    path = tmp_path / "flow.svg"
    done = rnn("demo", *QUICK, "--json", "--plot", str(path))
    assert done.returncode == 0, done.stderr
    json.loads(done.stdout)
    assert path.read_text().lstrip().startswith("<?xml")


def test_backends():
    listed = json.loads(rnn("backends", "--json").stdout)
    assert {b["name"]: b["usable"] for b in listed}["numpy"] is True
    assert set(listed[0]) == {"name", "usable", "reason", "distribution", "version"}
    table = rnn("backends")
    assert table.returncode == 0
    assert "\x1b" not in table.stdout
    assert "numpy" in table.stdout


@pytest.fixture
def odd_plugins(tmp_path):
    """One with a reason of several lines and colours, one that takes a name of ours; both print."""
    reason = r"the driver is too old:\n\n  \x1b[31mfound 11020\x1b[0m\n  expected 12000 or newer"
    modules = {"broken": f"raise RuntimeError('{reason}')", "impostor": ""}
    for (distribution, body), name in zip(modules.items(), ("broken", "numpy"), strict=True):
        (tmp_path / f"rnncore_{distribution}.py").write_text(f"print('hello')\n{body}\n")
        info = tmp_path / f"{distribution}-1.2.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 1.2\n")
        (info / "entry_points.txt").write_text(f"[rnncore.backends]\n{name} = rnncore_{distribution}\n")
    return {"PYTHONPATH": str(tmp_path)}


BROKEN = (
    "broken: entry point broken = rnncore_broken of broken 1.2 failed to load: RuntimeError: the driver is too old: "
    "found 11020 expected 12000 or newer"
)
IMPOSTOR = "numpy (impostor): 'numpy' is rnncore's own name: this entry point (rnncore_impostor) is ignored"


def test_backends_gives_each_its_row_and_each_reason_its_line(odd_plugins):
    done = rnn("backends", env=odd_plugins)
    assert done.returncode == 0, done.stderr
    assert "hello" not in done.stdout
    lines = done.stdout.splitlines()
    assert BROKEN in lines and IMPOSTOR in lines
    document = json.loads(rnn("backends", "--json", env=odd_plugins).stdout)
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in lines if line.startswith("│")]
    assert rows == [[b["name"], "yes" if b["usable"] else "no", b["distribution"], b["version"]] for b in document]
    assert sum(line.startswith(f"{b['name']}: ") for line in lines for b in document) == sum(
        bool(b["reason"]) for b in document
    )
    assert "\n" in next(b["reason"] for b in document if b["name"] == "broken")  # the library's own words, whole


def test_backends_on_a_terminal_of_80_columns(odd_plugins):
    """The table fits; a reason is left to the terminal to fold, so that a command in it can be copied."""
    parent, child = pty.openpty()
    fcntl.ioctl(child, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    command = [sys.executable, "-c", "import sys; from rnncore.commands.cli import main; sys.exit(main())", "backends"]
    environment = {k: v for k, v in PLAIN.items() if k != "COLUMNS"} | {"TERM": "xterm", **odd_plugins}
    with subprocess.Popen(command, stdin=child, stdout=child, stderr=subprocess.PIPE, env=environment) as process:
        os.close(child)
        shown = b""
        try:
            while piece := os.read(parent, 65536):
                shown += piece
        except OSError:  # Linux's way of saying that the other end has closed
            pass
    os.close(parent)
    assert process.returncode == 0
    lines = re.sub(r"\x1b\[[0-9;]*m", "", shown.decode()).splitlines()
    table = [line for line in lines if line[:1] in "┏┃┡│└"]
    assert len(table) > 8 and max(map(len, table)) <= 80
    assert sum("numpy (impostor)" in line for line in table) == 1
    assert BROKEN in lines and IMPOSTOR in lines


def test_backends_says_how_to_install_with_the_brackets():
    """In rich's markup, [torch] would be a style and vanish."""
    hide = "import importlib.util as u; find = u.find_spec\nu.find_spec = lambda n, *a: None if n == 'torch' else find(n, *a)"
    done = rnn("backends", code=hide)
    assert done.returncode == 0, done.stderr
    assert "[torch]" in done.stdout


def test_version_and_help():
    done = rnn("--version")
    assert (done.returncode, done.stderr) == (0, "")
    assert rnncore.__version__ in done.stdout
    for arguments, status in ((("--help",), 0), (("demo", "--help"), 0), ((), 2)):
        done = rnn(*arguments)
        assert (done.returncode, done.stderr) == (status, "")
        assert "Usage: rnncore" in done.stdout
        assert "--samples" not in done.stdout


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("demo", "--backend", "nump"), ["'nump'", "numpy", "torch", "Did you mean 'numpy'"]),
        (("demo", "--epochs", "0"), ["--epochs"]),
        (("demo", "--epochs", "-3"), ["--epochs"]),
        (("demo", "--epochs", "many"), ["--epochs"]),
        (("demo", "--seed", "-1"), ["--seed"]),
        (("demo", "--plot", "/no/such/folder/flow.png"), ["--plot", "/no/such/folder/flow.png"]),
        (("demo", "--plot", "/"), ["--plot"]),
        (("demo", "--plot", "flow.xyz"), ["--plot", "png", "flow.xyz"]),
        (("demo", "--nonsense"), ["--nonsense"]),
        (("nonsense",), ["nonsense"]),
    ],
)
def test_a_bad_call_is_one_line_and_status_2(arguments, words):
    one_line(rnn(*arguments), 2, *words)


def test_a_bad_variable_is_one_line():
    one_line(rnn("demo", env={"RNNCORE_BACKEND": "nump"}), 2, "'nump'", "numpy")


@pytest.mark.parametrize(
    ("module", "arguments", "package", "extra"),
    [
        ("typer", ("--version",), "typer", "cli"),
        ("rich", ("backends",), "rich", "cli"),
        ("sklearn", ("demo", *QUICK), "scikit-learn", "demo"),
        ("matplotlib", ("demo", *QUICK, "--plot", "flow.png"), "matplotlib", "demo"),
    ],
)
def test_a_missing_package_is_one_line_with_the_command_that_brings_it(module, arguments, package, extra):
    hidden = f"""
class Missing:
    def find_spec(self, name, *rest):
        if name.partition(".")[0] == {module!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Missing())"""
    one_line(rnn(*arguments, code=hidden), 1, f"needs {package}: ", f'pip install "rnncore[{extra}]"')


def test_a_mistake_in_the_program_is_not_hidden():
    done = rnn("backends", code="import rnncore.backend.registry as r\nr.backends = lambda: 1 / 0")
    assert done.returncode == 1
    assert "ZeroDivisionError" in done.stderr
