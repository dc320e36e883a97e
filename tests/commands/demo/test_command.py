"""``rnncore demo``: in a pipe, on a terminal, as JSON and as a picture."""

import json

import pytest

from rnncore.commands.demo.training import RECIPES
from tests.tools.command import QUICK, on_a_terminal, rnn

NAMES = [recipe.name for recipe in RECIPES]


def test_demo_in_a_pipe_is_plain_text():
    done = rnn("demo", *QUICK)
    assert done.returncode == 0, done.stderr
    assert "\x1b" not in done.stdout
    assert done.stderr == ""
    for words in ("output (64, 50, 64)", "h_n    (1, 50, 64)", "t=0", "1e-14", "loss nan in epoch 1", *NAMES):
        assert words in done.stdout


def refuse(constant):
    raise AssertionError(f"{constant} is not JSON")


@pytest.mark.parametrize("library", ["numpy", pytest.param("torch", marks=pytest.mark.slow)])
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
    shown, written = on_a_terminal("demo", *QUICK, stream="stderr")
    assert "orthogonal" in shown
    assert "\x1b" not in written


def test_demo_draws(tmp_path):
    path = tmp_path / "flow.svg"
    done = rnn("demo", *QUICK, "--json", "--plot", str(path))
    assert done.returncode == 0, done.stderr
    json.loads(done.stdout)
    assert path.read_text().lstrip().startswith("<?xml")
