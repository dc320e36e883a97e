"""The command: help, versions, bad calls and missing packages."""

import pytest

import rnncore
from tests.tools.command import QUICK, rnn


def one_line(done, status, *words):
    assert done.returncode == status, done.stderr
    assert done.stdout == ""
    assert done.stderr.startswith("rnncore: ")
    assert done.stderr.count("\n") == 1
    for word in words:
        assert word in done.stderr


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
def test_a_bad_call_is_one_line_and_status_2(call, arguments, words):
    one_line(call(*arguments), 2, *words)


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
