"""The source itself: no array library in the core, one order of folders, short files, a light import."""

import ast
import re
import sys
import tomllib
from importlib import import_module
from types import ModuleType

import pytest

import rnncore
from tests.tools.places import CORE, ROOT
from tests.tools.process import python

# The folders of the core, from the bottom up: each imports only from those before it, lazily and for types too.
ROOMS = {
    "": "errors typing arguments nonlinearity carry backend scan spec init optim network io interchange functional model "
    "diagnostics testing commands",
    "diagnostics": "numerics results lane recording foreign units jacobians gradient faults verdict findings figures "
    "report run monitor",
    "testing": "tools check checks report session worker lines run conformance",
    "commands": "terminal backends conform diagnose convert demo cli",
}
# The only room above the public names: it uses the library as anyone does.
USERS = "commands"
MODULES_IN_A_FOLDER = 12
LINES_OF_A_FILE = 400
LINES_OF_A_TEST = 600
# A float below this is a bound on rounding, unless a comment of this kind says what it is.
SMALL, REASON = 1e-6, "Not rounding:"
TOLERANCES = {"rtol", "atol", "rel", "abs", "tolerance"}
# Those that numpy.random brings among them.
MODULES_IMPORTED = 120
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
# Each of these speaks of libraries by their names, and imports one only in a function, where its module or file is asked for.
FOREIGN = "interchange"
# For files, random numbers on the host, messages and types: never for computing.
NUMPY_ALLOWED = {
    "typing",
    "arguments",
    "backend",
    "init",
    "io",
    "interchange",
    "network",
    "model",
    "optim",
    "testing",
    "diagnostics",
    "commands",
}
# In the room `network`, only these.
NUMPY_ALLOWED_IN_NETWORK = {"calls", "ragged"}


def modules():
    """Each file of the core, and the room it is in."""
    for path in sorted(CORE.rglob("*.py")):
        yield path, path.relative_to(CORE).with_suffix("").parts[0]


def dotted(path):
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {dotted(path): path for path, _ in modules()}


def imported(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield node.module, node
            if node.module == "rnncore":
                yield from ((f"rnncore.{alias.name}", node) for alias in node.names)


def edges():
    """By module, the modules of the core that it imports anywhere: in functions and under TYPE_CHECKING too."""
    found = {}
    for name, path in MODULES.items():
        targets = {target for target, _ in imported(path)}
        found[name] = {t for t in targets if t in MODULES} - {name}
        # Of `from package import module` the module is meant, and not what else the package hands on.
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and all(f"{node.module}.{a.name}" in MODULES for a in node.names):
                found[name] -= {node.module}
    return found


def test_the_core_imports_no_array_library():
    for path, room in modules():
        if room == FOREIGN:
            continue
        for name, _ in imported(path):
            assert name.split(".")[0] not in ARRAY_LIBRARIES, f"{path} imports {name}"


def test_the_core_names_no_array_library_in_its_code():
    """Not as a name, nor as a string that could pick one; docstrings may speak of them."""
    for path, room in modules():
        if room == FOREIGN:
            continue
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
        if name not in NUMPY_ALLOWED or (name == "network" and path.stem not in NUMPY_ALLOWED_IN_NETWORK):
            assert all(n.split(".")[0] != "numpy" for n, _ in imported(path)), path


def test_no_import_goes_in_a_circle():
    """None of all imports, those inside functions and for types among them."""
    left = {name: set(targets) for name, targets in edges().items()}
    while free := [name for name, targets in left.items() if not targets & left.keys()]:
        for name in free:
            del left[name]
    assert not left, f"circles among {sorted(left)}"


@pytest.mark.parametrize("room", ROOMS)
def test_every_room_imports_only_from_rooms_below_it(room):
    order = ROOMS[room].split()
    prefix = ".".join(filter(None, ["rnncore", room])) + "."
    for name, targets in edges().items():
        if not name.startswith(prefix):
            continue
        inner = name.removeprefix(prefix).split(".")[0]
        assert inner in order, f"{name}: give it a place in ROOMS"
        for target in targets:
            if target == "rnncore" and not room:
                assert inner == USERS, f"{name} imports the public names"
            if target.startswith(prefix):
                other = target.removeprefix(prefix).split(".")[0]
                assert order.index(other) <= order.index(inner), f"{name} imports {target}"


def test_no_folder_has_too_many_modules():
    for folder in {path.parent for path, _ in modules()}:
        files = [p for p in folder.glob("*.py") if p.stem != "__init__"]
        most = 9 if folder == CORE else MODULES_IN_A_FOLDER
        assert len(files) <= most, f"{folder}: {len(files)} modules, and at most {most} can be seen at once"


def test_no_module_is_hidden_by_a_name_of_its_package():
    for name in MODULES:
        package, _, own = name.rpartition(".")
        if package:
            found = getattr(import_module(package), own, None)
            assert found is None or isinstance(found, ModuleType), f"{name} is hidden by {found!r}"


def test_no_file_is_too_long():
    limits = {"rnncore": LINES_OF_A_FILE, "backends": LINES_OF_A_FILE, "tests": LINES_OF_A_TEST}
    lines = {
        str(path.relative_to(ROOT)): (len(path.read_text().splitlines()), most)
        for folder, most in limits.items()
        for path in sorted((ROOT / folder).rglob("*.py"))
    }
    too_long = {path: count for path, (count, most) in lines.items() if count > most}
    assert not too_long


def small(node):
    return isinstance(node, ast.Constant) and isinstance(node.value, float) and 0 < abs(node.value) < SMALL


def bounds(tree):
    """What numbers are compared with: sides of comparisons, tolerances by name or by default, and constants in capitals."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Compare):
            yield from (part for side in (node.left, *node.comparators) for part in ast.walk(side))
        elif isinstance(node, ast.keyword) and node.arg in TOLERANCES:
            yield from ast.walk(node.value)
        elif isinstance(node, ast.arguments):
            yield from filter(None, (*node.defaults, *node.kw_defaults))
        elif isinstance(node, ast.Assign) and ast.unparse(node.targets[0]).isupper():
            several = isinstance(node.targets[0], ast.Tuple)
            yield from (node.value, *getattr(node.value, "elts" if several else "values", ()))


def bare_bounds(text):
    """The lines with a bound below SMALL that is a number, and with no reason there or in the two lines above."""
    lines = text.splitlines()
    found = {node.lineno for node in bounds(ast.parse(text)) if small(node)}
    return sorted(n for n in found if not any(REASON in line for line in lines[max(n - 3, 0) : n]))


def test_bounds_on_rounding_are_multiples_of_eps():
    """Another processor rounds otherwise, and no number fits all of them; what is no rounding has a reason in words."""
    found = [
        f"{path.relative_to(ROOT)}:{line}"
        for path in sorted((ROOT / "tests").rglob("*.py"))
        if "doubles" not in path.parts
        for line in bare_bounds(path.read_text())
    ]
    assert not found, f"write them as multiples of eps, or say why not in a comment with {REASON!r}"


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("assert abs(a - b) < 1e-9", 1),
        ("assert a == approx(b, rel=2 * 1e-12)", 1),
        ("CLOSE = 1e-9", 1),
        ("RTOL, ATOL = 1e-7, 1e-9", 1),
        ("NATS = {'float64': 1e-12}", 1),
        ("CHANCES = (1e-9, 0.5)", 0),
        ("def close(a, b, tolerance=1e-9): pass", 1),
        ("# Not rounding: the series ends.\nassert abs(a - b) < 1e-9", 0),
        ("assert abs(a - b) < 64 * EPS and f(1e-9) is None or abs(c) < 1e-3", 1),
        ("x = make(1e-30)\nassert x < 64 * EPS\nassert abs(c) < 1e-3", 0),
    ],
)
def test_a_bare_bound_is_seen(text, count):
    assert len(bare_bounds(text)) == count


def test_plugins_import_rnncore_and_not_each_other():
    for path in sorted((ROOT / "backends").rglob("*.py")):
        own = path.relative_to(ROOT / "backends").parts[0]
        for name, _ in imported(path):
            assert not name.startswith("rnncore_") or name.split(".")[0] == own, f"{path} imports {name}"


def test_import_brings_no_backend_and_no_tool():
    """NumPy, the core and parts of the standard library: few enough modules that importing them takes no time to speak of."""
    code = "import sys, numpy; numpys = set(sys.modules); import rnncore; print(sorted(set(sys.modules) - numpys))"
    brought = ast.literal_eval(python(code))
    packages = {name.partition(".")[0] for name in brought}
    unknown = packages - sys.stdlib_module_names - {"rnncore", "numpy"}
    assert not {name for name in unknown if not name.startswith(("_", "cython"))}
    assert len(brought) < MODULES_IMPORTED


def test_the_public_names_are_these():
    assert len(set(rnncore.__all__)) == len(rnncore.__all__)
    for name in rnncore.__all__:
        assert hasattr(rnncore, name)
    expected = ["RNN", "RNNCell", "functional", "use_backend", "backends", "get_backend", "load", "bound_to", "errors"]
    assert set(expected) <= set(rnncore.__all__)


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
