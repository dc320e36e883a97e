"""What the design promises of the source itself: no array library in the core, one order of files, a light import."""

from __future__ import annotations

import ast
import re
import statistics
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import rnncore

ROOT = Path(__file__).parent.parent
CORE = ROOT / "rnncore"

# Each file imports only from files that stand before it. `rnncore` itself, the public names, may be used by none.
ORDER = (
    "errors",
    "backend",
    "activations",
    "nonlinearity",
    "spec",
    "discovery",
    "registry",
    "arrays",
    "scan",
    "dispatch",
    "joining",
    "cell",
    "ragged",
    "layer",
    "network",
    "layout",
    "calls",
    "init",
    "io",
    "parameterised",
    "rnn_cell",
    "model",
    "functional",
    "clipping",
    "optim",
    "testing",
    "diagnostics",
    "demo",
    "demo_report",
    "demo_plot",
    "conform",
    "diagnose_command",
    "cli",
)
# These stand above the public names: they are users of the library.
USERS = ("conform", "diagnose_command", "demo", "demo_report", "demo_plot", "cli")
ARRAY_LIBRARIES = {
    "torch",
    "cupy",
    "jax",
    "jaxlib",
    "numba",
    "mlx",
    "tensorflow",
    "dask",
    "array_api_strict",
    "array_api_compat",
}
# For files, random numbers on the host, messages and types: never for computing.
NUMPY_ALLOWED = {
    "arrays",
    "backend",
    "calls",
    "init",
    "io",
    "model",
    "parameterised",
    "ragged",
    "rnn_cell",
    "clipping",
    "optim",
    "testing",
    "diagnostics",
    "diagnose_command",
    "demo",
    "demo_report",
}


def modules():
    for path in sorted(CORE.rglob("*.py")):
        name = path.relative_to(CORE).with_suffix("").parts
        yield path, name[0]


def imported(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield node.module, node
            if node.module == "rnncore":
                yield from ((f"rnncore.{alias.name}", node) for alias in node.names)


def only_for_types(path, node):
    for block in ast.walk(ast.parse(path.read_text())):
        if isinstance(block, ast.If) and isinstance(block.test, ast.Name) and block.test.id == "TYPE_CHECKING":
            return any(getattr(n, "lineno", 0) == node.lineno for n in ast.walk(block))
    return False


def test_the_core_imports_no_array_library():
    for path, _ in modules():
        for name, _ in imported(path):
            assert name.split(".")[0] not in ARRAY_LIBRARIES, f"{path} imports {name}"


def test_the_core_names_no_array_library_in_its_code():
    """Not as a name, nor as a string that could pick one; docstrings may speak of them."""
    for path, _ in modules():
        tree = ast.parse(path.read_text())
        docstrings = {
            id(node.body[0].value)
            for node in ast.walk(tree)
            if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef))
            and node.body
            and isinstance(node.body[0], ast.Expr)
        }
        for node in ast.walk(tree):
            if isinstance(node, ast.Name):
                assert node.id not in ARRAY_LIBRARIES, f"{path}:{node.lineno}"
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docstrings:
                assert node.value not in ARRAY_LIBRARIES, f"{path}:{node.lineno}"


def test_numpy_is_imported_only_where_the_host_is_meant():
    for path, name in modules():
        if name not in NUMPY_ALLOWED:
            assert all(n.split(".")[0] != "numpy" for n, _ in imported(path)), path


def test_every_file_imports_only_from_files_before_it():
    for path, name in modules():
        if name == "__init__":
            continue
        assert name in ORDER, f"{path}: say in ORDER where it stands"
        for target, node in imported(path):
            parts = target.split(".")
            if parts[0] != "rnncore" or only_for_types(path, node):
                assert not parts[0].startswith("rnncore_"), f"{path} imports a plugin"
                continue
            if len(parts) == 1 or (
                not (CORE / parts[1]).with_suffix(".py").exists() and not (CORE / parts[1]).is_dir()
            ):
                # from rnncore import a submodule is seen as rnncore.<submodule> too; the public names are for users.
                names = [a.name for a in node.names] if isinstance(node, ast.ImportFrom) else []
                submodules = all((CORE / f"{n}.py").exists() or (CORE / n).is_dir() for n in names)
                assert name in USERS or (names and submodules), f"{path}:{node.lineno} imports {target}"
                continue
            assert parts[1] == name or ORDER.index(parts[1]) < ORDER.index(name), f"{path}:{node.lineno} {target}"


def test_plugins_import_rnncore_and_not_each_other():
    for path in sorted((ROOT / "backends").rglob("*.py")):
        own = path.relative_to(ROOT / "backends").parts[0]
        for name, _ in imported(path):
            assert not name.startswith("rnncore_") or name.split(".")[0] == own, f"{path} imports {name}"


def test_import_brings_no_backend_and_no_tool():
    code = "import sys, rnncore; print(sorted(m for m in sys.modules if '.' not in m))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    unwanted = ARRAY_LIBRARIES | {
        "safetensors",
        "rich",
        "typer",
        "matplotlib",
        "sklearn",
        "pytest",
        "rnncore_numpy",
        "rnncore_numba",
        "rnncore_torch",
        "rnncore_jax",
        "rnncore_mlx",
        "rnncore_cupy",
        "rnncore_strict",
    }
    assert not unwanted & set(ast.literal_eval(out))


def test_import_takes_under_150_ms_beyond_numpys_own():
    """The best of several: whatever else the machine does can only add to it."""
    code = "import time, numpy; t = time.perf_counter(); import rnncore; print(time.perf_counter() - t)"
    seconds = []
    for _ in range(7):
        out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
        seconds.append(float(out))
    assert min(seconds) < 0.150, statistics.median(seconds)


def test_the_public_names_are_these():
    assert len(set(rnncore.__all__)) == len(rnncore.__all__)
    for name in rnncore.__all__:
        assert hasattr(rnncore, name)
    for name in (
        "RNN",
        "RNNCell",
        "functional",
        "use_backend",
        "backends",
        "get_backend",
        "load",
        "bound_to",
        "errors",
    ):
        assert name in rnncore.__all__


def test_public_names_are_documented():
    for name in rnncore.__all__:
        thing = getattr(rnncore, name)
        if name != "__version__":
            assert (thing.__doc__ or "").strip(), name


def test_one_version():
    with (ROOT / "pyproject.toml").open("rb") as file:
        project = tomllib.load(file)["project"]
    assert project["version"] == rnncore.__version__
    assert f"## {rnncore.__version__}" in (ROOT / "CHANGELOG.md").read_text()


@pytest.fixture
def commands():
    """The README's commands: the lines of its `sh` blocks."""
    text = (ROOT / "README.md").read_text()
    return [line for block in re.findall(r"```sh\n(.*?)```", text, re.S) for line in block.strip().splitlines()]


def test_the_readme_has_exactly_two_commands_and_ci_runs_them_as_they_stand(commands):
    assert len(commands) == 2
    ci = (ROOT / ".ci" / "run").read_text().splitlines()
    for command in commands:
        assert command in ci
    assert "rnncore demo" in commands[0]
    assert "pytest" in commands[1]


def test_the_readme_opens_with_one_picture_that_is_there():
    pictures = re.findall(r"!\[.*?\]\((.*?)\)", (ROOT / "README.md").read_text())
    assert len(pictures) == 1
    assert (ROOT / pictures[0]).is_file()
