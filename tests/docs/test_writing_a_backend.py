"""docs/writing-a-backend.md, executed: its files are written to a folder, installed, run, and its reports compared."""

import ast
import os
import re
import subprocess
import sys
import tomllib
from dataclasses import fields

import pytest

from rnncore.backend.abilities import Abilities, member_of
from rnncore.backend.contract import Backend
from rnncore.testing import CAPABILITIES, CHECKS, BackendConformance
from rnncore.testing.checks.contract import FUNCTIONS_USED
from tests.tools.places import ACME, ROOT

TEXT = (ROOT / "docs" / "writing-a-backend.md").read_text()
# A block with a name: a line of nothing but the name in backticks and a colon, an empty line, the fence.
BLOCKS = dict(re.findall(r"^`([^`\n]+)`:\n\n```\w+\n(.*?)^```$", TEXT, re.M | re.S))
FILES = ("acme_arrays.py", "pyproject.toml", "rnncore_acme.py", "test_acme.py")
PLUGIN, SCANS = BLOCKS["rnncore_acme.py"], BLOCKS["rnncore_acme_scans.py"]
INFO = "rnncore_acme-0.1.dist-info"
COMMAND = "from rnncore.commands.cli import main; main()"


def installed():
    """The metadata that an installer makes of the document's pyproject.toml."""
    project = tomllib.loads(BLOCKS["pyproject.toml"])["project"]
    entries = "".join(
        f"[{group}]\n" + "".join(f"{k} = {v}\n" for k, v in named.items())
        for group, named in project["entry-points"].items()
    )
    metadata = f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n"
    return {"METADATA": metadata, "entry_points.txt": entries}


@pytest.fixture
def package(tmp_path):
    """Write the document's package, with other text for some of its files."""

    def write(**others):
        files = {name: BLOCKS[name] for name in FILES} | {f"{name}.py": text for name, text in others.items()}
        files |= {f"{INFO}/{name}": text for name, text in installed().items()}
        (tmp_path / INFO).mkdir()
        for name, text in files.items():
            (tmp_path / name).write_text(text)
        return tmp_path

    return write


def python(folder, *arguments, status=0):
    """Run Python where the package is installed."""
    path = os.pathsep.join(filter(None, [str(folder), os.environ.get("PYTHONPATH")]))
    others = {k: v for k, v in os.environ.items() if not k.startswith(("RNNCORE_", "PYTEST_"))}
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        env=others | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == status, done.stdout[-4000:] + done.stderr[-4000:]
    return done.stdout


def pytest_run(folder, *arguments, status=0):
    """As the author of a plugin would: without our configuration and conftest."""
    ours = ("-c", os.devnull, f"--rootdir={folder}", "--noconftest", "-p", "no:cacheprovider", "-q")
    return python(folder, "-m", "pytest", *ours, "test_acme.py", *arguments, status=status)


def counted(out):
    return {
        word: int(n)
        for n, word in re.findall(r"(\d+) (passed|failed|xfailed|skipped|deselected)", out.splitlines()[-1])
    }


def swapped(module, function):
    """The module's text with its function of that name replaced."""
    (new,) = ast.parse(function).body
    (old,) = (n for n in ast.parse(module).body if isinstance(n, ast.FunctionDef) and n.name == new.name)
    lines = module.splitlines(keepends=True)
    return "".join([*lines[: old.lineno - 1], function, *lines[old.end_lineno :]])


def table(first):
    """The rows of the table whose header begins with this cell."""
    rows = re.search(rf"^\| {first} \|.*\n\|[-|]+\|\n((?:\|.*\n)+)", TEXT, re.M).group(1)
    return [[cell.strip() for cell in row.strip().strip("|").split("|")] for row in rows.splitlines()]


# --- the package ------------------------------------------------------------------------------------------------------


def test_the_plugin_has_at_most_60_lines_and_the_test_three():
    assert len(PLUGIN.splitlines()) <= 60
    assert len(BLOCKS["test_acme.py"].split("\n\n\n")) == 2
    assert sum(bool(line.strip()) for line in BLOCKS["test_acme.py"].splitlines()) == 3


def test_the_three_lines_pass(package):
    found = counted(pytest_run(package()))
    assert found["passed"] > 100
    assert found.keys() <= {"passed", "skipped"}
    assert sum(found.values()) == len(CHECKS) + 1  # and that the backend can be used at all


def test_the_script_passes_and_importing_the_plugin_imports_no_library(package):
    folder = package(check=BLOCKS["check.py"])
    first = python(folder, "check.py").splitlines()[0]
    assert re.fullmatch(r"(\d+) ran: \1 passed, 0 failed, 0 expected to fail; \d+ skipped", first)
    out = python(folder, "-c", "import sys, rnncore_acme; print('acme_arrays' in sys.modules, rnncore_acme.RNN(2, 3))")
    assert out == "False RNN(2, 3, backend='acme', device='device1', dtype='float64')\n"


def test_the_miniature_in_the_tests_is_the_documents():
    ours = {str(p.relative_to(ACME)): p.read_text() for p in sorted(ACME.rglob("*")) if p.is_file()}
    ours = {name: text for name, text in ours.items() if not name.endswith(".pyc")}
    theirs = {name: BLOCKS[name] for name in FILES if name != "pyproject.toml"}
    assert ours == theirs | {f"{INFO}/{name}": text for name, text in installed().items()}


def test_the_miniature_in_the_tests_passes():
    """Of the same text as the document's, so not all of the suite again."""
    found = counted(pytest_run(ACME, "-k", "used or RC-CON or RC-FWD or RC-GRAD"))
    assert found["passed"] > 40
    assert found.keys() <= {"passed", "skipped", "deselected"}


# --- failures ---------------------------------------------------------------------------------------------------------


def report(caption):
    """The document's report under a command, and the command's arguments."""
    return BLOCKS[caption], caption.split()[1:]


def leveled(text, *, numbers=False):
    """A report without seconds and versions, which differ from run to run, nor numbers that products round."""
    text = re.sub(r"\d+\.\d s;", "s;", text)
    text = re.sub(r"^suite .*$", "suite", text, flags=re.M)
    return re.sub(r"-?\d+\.\d+(e[+-]\d+)?", "#", text) if numbers else text


@pytest.mark.slow
def test_the_mistake_gives_the_report_that_is_shown(package):
    shown, arguments = report("rnncore conform acme --only RC-CON-006 --only RC-CON-007 --only RC-CON-013")
    folder = package(rnncore_acme=swapped(PLUGIN, BLOCKS["rnncore_acme.py, a mistake"]))
    assert leveled(python(folder, "-c", COMMAND, *arguments, status=1)) == leveled(shown)


@pytest.mark.slow
def test_the_other_failures_of_the_mistake_are_of_batches_without_rows(package):
    folder = package(rnncore_acme=swapped(PLUGIN, BLOCKS["rnncore_acme.py, a mistake"]))
    out = python(
        folder, "-c", COMMAND, "conform", "acme", "--only", "RC-CON", "--only", "RC-SCAN", "--only", "RC-FWD", status=1
    )
    failed = re.findall(r"^(RC-\S+) +FAILED.*\n +(.*)$", out, re.M)
    assert failed[0][0] == "RC-CON-006"
    assert 2 <= len(failed) <= 8
    for _, reason in failed[1:]:
        assert "expected 3, got 2" in reason or "0)" in reason


@pytest.mark.slow
def test_a_forgotten_device_fails_most_and_the_first_line_says_why(package):
    folder = package(rnncore_acme=PLUGIN.replace(".asarray(x, dtype=dtype, device=device,", ".asarray(x, dtype=dtype,"))
    out = python(folder, "-c", "from rnncore.testing import check_backend; print(check_backend('acme'))")
    failed = re.findall(r"^(RC-\S+) +FAILED.*\n +(.*)$", out, re.M)
    assert len(failed) > len(CHECKS) / 2
    assert failed[0][0] == "RC-CON-008"
    assert "device1" in failed[0][1]
    assert "CPU_DEVICE" in failed[0][1]


@pytest.mark.slow
def test_a_known_failure_is_expected_and_a_stale_one_is_a_failure(package):
    known = BLOCKS["test_acme.py, with a known failure"]
    folder = package(rnncore_acme=swapped(PLUGIN, BLOCKS["rnncore_acme.py, a mistake"]), test_acme=known)
    assert counted(pytest_run(folder, "-k", "RC-CON")).keys() == {"passed", "xfailed", "skipped", "deselected"}
    (name, reason), *_ = re.findall(r'--expect-failure "(.*?)=(.*?)"', TEXT)
    options = ("--only", name, "--expect-failure", f"{name}={reason}")
    assert "1 expected to fail" in python(folder, "-c", COMMAND, "conform", "acme", *options)
    (folder / "rnncore_acme.py").write_text(PLUGIN)
    assert "take it off the list" in pytest_run(folder, "-k", "RC-CON", status=1)


# --- scans ------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_scans_pass_and_take_everything(package):
    plugin = swapped(PLUGIN, BLOCKS["rnncore_acme.py, scans"])
    folder = package(rnncore_acme=plugin, rnncore_acme_scans=SCANS)
    out = python(folder, "-c", COMMAND, "conform", "acme", "--kernel", "require", "--json", "report.json")
    assert " 0 failed" in out.splitlines()[0]
    for name in (n for n, c in CHECKS.items() if "scans" in c.needs):
        assert re.search(rf"^{name} +passed", out, re.M), name
    assert (folder / "report.json").stat().st_size > 1000


@pytest.mark.slow
def test_the_mistake_in_a_scan_gives_the_report_that_is_shown(package):
    shown, arguments = report("rnncore conform acme --only RC-SCAN-014")
    right, wrong = "xp.matmul(s, m)", "xp.matmul(s, xp.matrix_transpose(m))"
    assert f"`{wrong}`" in TEXT
    assert SCANS.count(right) == 1
    plugin = swapped(PLUGIN, BLOCKS["rnncore_acme.py, scans"])
    folder = package(rnncore_acme=plugin, rnncore_acme_scans=SCANS.replace(right, wrong))
    out = python(folder, "-c", COMMAND, *arguments, status=1)
    assert leveled(out, numbers=True) == leveled(shown, numbers=True)


# --- what the page says of the contract -------------------------------------------------------------------------------


def names(rows):
    return [re.match(r"`(\w+)", row[0]).group(1) for row in rows]


def test_every_name_of_the_contract_is_explained():
    members = {n for n in dir(Backend) if not n.startswith("_")}
    required, optional = re.findall(r"^\| name \|.*\n\|[-|]+\|\n((?:\|.*\n)+)", TEXT, re.M)
    assert sorted(re.findall(r"^\| `(\w+)", required, re.M)) == sorted(members)
    promised = ["contract_version", *(member_of(f.name) for f in fields(Abilities))]
    assert sorted(re.findall(r"^\| `(\w+)", optional, re.M)) == sorted(promised)


def test_the_table_of_capabilities_is_the_suites():
    rows = {}
    for cells in table("capability"):
        ids = set(re.findall(r"RC-[A-Z]+-\d+", cells[2]))
        for first, last in re.findall(r"(RC-[A-Z]+-\d+) to (RC-[A-Z]+-\d+)", cells[2]):
            group = first.rsplit("-", 1)[0]
            ids |= {f"{group}-{k:03}" for k in range(int(first[-3:]), int(last[-3:]) + 1)}
        rows |= dict.fromkeys(re.findall(r"`(\w+)`", cells[0]), ids)
    assert rows == {name: {n for n, c in CHECKS.items() if name in c.needs} for name in CAPABILITIES}


def test_numbers_and_options_on_the_page():
    from rnncore.commands.conform import conform

    assert f"the {len(FUNCTIONS_USED)} functions that the core calls" in TEXT
    lines = len((ROOT / "backends" / "rnncore_mlx" / "_namespace.py").read_text().splitlines())
    assert f"`backends/rnncore_mlx/_namespace.py` does so in {lines} lines" in TEXT
    assert {"device", "kernel", "only", "expect_failure", "limit", "json_lines"} <= set(conform.__annotations__)
    assert {"backend", "device", "kernel", "limit", "expected_failures"} <= set(BackendConformance.__annotations__)


@pytest.mark.parametrize("page", ["README.md", *sorted(str(p.relative_to(ROOT)) for p in ROOT.glob("docs/*.md"))])
def test_links_between_the_pages_lead_somewhere(page):
    text = (ROOT / page).read_text()
    for target, heading in re.findall(r"\]\((?!https?:)([^)#]*)(?:#([^)]*))?\)", text):
        path = (ROOT / page).parent / target if target else ROOT / page
        assert path.exists(), target
        if heading:
            titles = re.findall(r"^#+ (.*)$", path.read_text(), re.M)
            assert heading in {re.sub(r"[^\w -]", "", t.lower()).replace(" ", "-") for t in titles}, heading
