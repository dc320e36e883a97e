"""The matrix of processors, threads and orders: which cells there are, what can be run, and how a report is read."""

import pytest

from tests import matrix
from tests.matrix import CELLS, Cell, Outcome, outcome
from tests.tools.places import ROOT

CELL = Cell("a-cell")
REPORT = """<testsuites><testsuite>
<testcase classname="tests.test_a" name="test_one" file="tests/test_a.py"/>
<testcase classname="tests.test_a" name="test_two[x]" file="tests/test_a.py"><failure message="no"/></testcase>
<testcase classname="tests.test_a" name="test_two[x]" file="tests/test_a.py"><error message="teardown"/></testcase>
<testcase classname="tests.test_a" name="test_three" file="tests/test_a.py"><skipped message="no GPU"/></testcase>
</testsuite></testsuites>"""


def test_cells_have_names_of_their_own_and_what_is_left_out_is_there():
    assert len({c.name for c in CELLS}) == len(CELLS)
    for path in (*matrix.PATHS, *matrix.LEFT_OUT):
        assert (ROOT / path).exists(), path


def test_a_variable_that_is_set_is_left_alone_and_its_cells_are_one():
    assert matrix.left_alone(CELLS, {}) == CELLS
    cells = matrix.left_alone(CELLS, {"OPENBLAS_CORETYPE": "Zen"})
    assert cells[0].name == "openblas-as-it-is" and len(cells) == len(CELLS) - 3
    assert not any("OPENBLAS_CORETYPE" in c.variables for c in cells)


def test_what_the_processor_lacks_is_not_run():
    here = matrix.flags("processor : 0\nflags\t\t: fpu pni avx2 fma\nflags : avx512f\n")
    assert here == {"fpu", "pni", "avx2", "fma"}
    by = {c.name: c for c in CELLS}
    assert matrix.impossible(by["openblas-skylakex"], here, {}).startswith("the processor has no avx512f")
    assert matrix.impossible(Cell("x", needs="no_such_module"), here, {}) == "no-such-module is not installed"
    assert matrix.impossible(by["threads-2"], here, {}) == ""


def test_the_kernels_that_run_are_those_that_were_asked_for():
    by = {c.name: c for c in CELLS}
    assert matrix.unlike(by["openblas-zen"], ["Zen", "Zen"], None) == ""
    assert matrix.unlike(by["openblas-zen"], ["Zen", "Haswell"], None) == "OpenBLAS's kernels here are Zen, Haswell"
    assert matrix.unlike(by["openblas-prescott"], ["Katmai"], None) == ""
    assert matrix.unlike(by["openblas-zen"], [], None) == "OpenBLAS's kernels here are none"
    assert matrix.unlike(by["numba-generic"], [], [""]) == ""
    assert matrix.unlike(by["numba-generic"], [], ["+avx2"]) == "Numba compiles for other features"
    assert matrix.unlike(by["numba-generic"], [], None) == "Numba is not installed"


def test_a_report_is_counted_and_a_test_that_fails_twice_is_one():
    found = outcome(CELL, REPORT, 1, "", 2.0)
    assert found == Outcome(CELL, 1, ("tests/test_a.py::test_two[x]",), 1, 2.0)
    assert not found.good and outcome(CELL, "<a/>", 0, "", 2.0).good


@pytest.mark.parametrize(
    ("report", "status", "reason"),
    [
        (None, -11, "pytest crashed, status -11: Segmentation fault"),
        ("<testsuites><testc", -9, "pytest crashed, status -9: Segmentation fault"),
        ("<testsuites/>", 5, "pytest ended with status 5: Segmentation fault"),
        (REPORT, 3, "pytest ended with status 3: Segmentation fault"),
    ],
)
def test_a_crash_is_no_success(report, status, reason):
    found = outcome(CELL, report, status, "Segmentation fault", 1.0)
    assert found.reason == reason and not found.good


def test_a_crash_is_told_in_pythons_words():
    assert matrix.last("....\nFatal Python error: Aborted\n\nThread 0x1:\n  File x\n") == "Fatal Python error: Aborted"
    assert matrix.last("one\nno tests ran in 0.1s\n") == "no tests ran in 0.1s" and matrix.last("") == "no output"


def test_the_table_says_what_was_not_possible_and_lists_what_failed():
    made = [Outcome(CELL, 7, ("a::b",), 1, 61.4), Outcome(Cell("c"), reason="no avx2", ran=False)]
    lines = matrix.table(made).splitlines()
    assert lines[2:4] == ["| a-cell | 7 | 1 | 1 | 61 |  |", "| c | - | - | - | - | not possible here: no avx2 |"]
    assert lines[5:] == ["Failed in a-cell:", "", "- `a::b`"]


@pytest.mark.parametrize(
    ("made", "status"),
    [
        ([Outcome(CELL, 7)], 0),
        ([Outcome(CELL, 7), Outcome(CELL, reason="no avx2", ran=False)], 0),
        ([Outcome(CELL, reason="no avx2", ran=False)], 1),
        ([Outcome(CELL, 7), Outcome(CELL, 6, ("a::b",))], 1),
        ([Outcome(CELL, reason="pytest crashed")], 1),
    ],
)
def test_the_status_is_0_only_if_something_ran_and_nothing_failed(made, status, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(matrix, "left_alone", lambda *_: tuple(o.cell for o in made))
    results = iter(made)
    monkeypatch.setattr(matrix, "run", lambda *_: next(results))
    assert matrix.main(["--markdown", str(tmp_path / "m.md")]) == status
    assert (tmp_path / "m.md").read_text() == matrix.table(made) and matrix.table(made) in capsys.readouterr().out


def test_cells_are_listed_and_a_name_that_is_none_is_an_error(capsys):
    assert matrix.main(["--list"]) == 0
    assert len(capsys.readouterr().out.splitlines()) >= 6
    with pytest.raises(SystemExit):
        matrix.main(["no-such-cell"])
    assert "no such cell: no-such-cell" in capsys.readouterr().err
