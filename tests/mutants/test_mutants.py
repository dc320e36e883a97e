"""Mutants of a tiny module with known survivors, run as those of the core are."""

import json
import tomllib

import pytest

from tests.mutants.modules import MODULES
from tests.mutants.operators import mutants, mutated, sample
from tests.mutants.run import Result
from tests.mutants.survivors import Entry, described, judged, listed
from tests.tools.places import ROOT
from tests.tools.process import python

TINY = '''"""A module."""

def clamp(x, low=0, *, strict=False):
    if strict and x < low:
        raise ValueError("x")
    return max(x, low)

def forever(n):
    while n > 0:
        n -= 1
    return n
'''
TESTS = """
import subprocess, sys
from rnncore.tiny import clamp, forever

def test_clamp():
    assert clamp(3) == 3 and clamp(-2) == 0
    assert clamp(1, 2) == 2

def test_a_child_sees_the_mutant():
    code = "from rnncore.tiny import clamp; assert clamp(7) == 7"
    subprocess.run([sys.executable, "-c", code], check=True)

def test_forever():
    assert forever(3) == 0
"""
# No test passes `strict`, so nothing that comes after it is seen.
SURVIVORS = {
    ("if strict and x < low:", "if strict and x <= low:"),
    ("if strict and x < low:", "if strict and x >= low:"),
    ("raise ValueError('x')", "pass"),
}


def changes(source):
    return [(m.was, m.now) for m in mutants(source)]


@pytest.mark.parametrize(
    ("source", "want"),
    [
        ("a < b", ["a <= b", "a >= b"]),
        ("a + b * c", ["a - b * c", "a + b / c"]),
        ("a and not b", ["a or not b", "a and b"]),
        ("x = -y", ["pass", "x = y"]),
        ("x = 2", ["pass", "x = 3", "x = 1"]),
        ("x += y", ["pass", "x -= y"]),
        ("x = True", ["pass", "x = False"]),
        ("x[k]", ["x[k + 1]"]),
        ("x[a:]", ["x[a + 1:]"]),
        ("f(x, k=y)", ["f(x)"]),
        ("zip(x, y, strict=True)", []),
        ("x if y else z", ["x if not y else z"]),
        ("[x for x in y if x]", ["[x for x in y if not x]"]),
    ],
)
def test_an_expression_is_changed_at_one_place(source, want):
    statement = source if "=" in source and "(" not in source else f"v = {source}"
    drop = 0 if statement == source else 1  # the statement deleted
    found = changes(statement)[drop:]
    assert [now.removeprefix("v = ") for _, now in found] == want


@pytest.mark.parametrize(
    ("source", "want"),
    [
        ("def f(x, n=1, *, k=True): ...", ["k=False", "n=2", "n=0"]),
        ("def f(n=(True, 2)): ...", ["n=(False, 2)", "n=(True, 3)", "n=(True, 1)"]),
        ("def f():\n    return x", ["return None"]),
        ("def f():\n    return None", []),
        ("while x:\n    break", ["while not x:", "continue"]),
        ("try:\n    f()\nexcept E:\n    raise", ["pass", "pass"]),
        ("if x:\n    del y", ["if not x:", "pass"]),
    ],
)
def test_a_statement_is_changed_at_one_place(source, want):
    assert [now for _, now in changes(source)] == want


def test_of_a_long_statement_only_the_surroundings_of_the_change_are_shown():
    found = mutants(f"v = {'a ** ' * 30}b(c, key=1){' ** d' * 30}")
    was, now = next((m.was, m.now) for m in found if "key=2" in m.now)
    assert was == now.replace("key=2", "key=1") and len(was) < 100 and was.startswith("...") and was.endswith("...")
    assert len({m.key for m in found}) == len(found)


def test_what_computes_nothing_is_left_alone():
    lines = (
        '"""1."""',
        "import x",
        "__all__ = ['a']",
        "T: TypeAlias = f(k=1)",
        "x: f(1)",
        "@f(k=1)",
        "class A(b(1)):",
        '    """2."""',
    )
    source = "\n".join(lines)
    assert changes(source) == []


def test_every_mutant_compiles_and_differs_from_the_module():
    found = mutants(TINY)
    sources = [mutated(TINY, m.number) for m in found]
    assert len({compile(s, "tiny", "exec").co_consts and s for s in sources}) == len(found)
    assert len({m.key for m in found}) == len(found)


def test_a_sample_is_fixed_by_its_seed_and_kept_when_other_lines_change():
    found = mutants(TINY)
    chosen = sample(found, 8, 0)
    assert chosen == sample(found, 8, 0) and len(chosen) == 8
    assert chosen != sample(found, 8, 1)
    moved = mutants("import os\n" + TINY)
    assert [m.key for m in sample(moved, 8, 0)] == [m.key for m in chosen]
    assert sample(found, 1000, 0) == found


def test_survivors_are_found_and_the_project_is_not_changed(tmp_path):
    for path, text in {"rnncore/__init__.py": "", "rnncore/tiny.py": TINY, "tests/test_tiny.py": TESTS}.items():
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).write_text(text)
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    code = f"""
        import json, pathlib
        from tests.mutants import modules, operators, run
        run.PRELOADED = ("pytest",)
        module = modules.Module("rnncore/tiny.py", ("tests/test_tiny.py",))
        chosen = [m for m in operators.mutants({TINY!r}) if m.function == "clamp" or m.now == "n += 1"]
        results = run.run(pathlib.Path({str(tmp_path)!r}), module, chosen, seconds=1, told=len)
        print(json.dumps([[r.mutant.was, r.mutant.now, r.outcome] for r in results]))
    """
    outcomes = json.loads(python(code, flags=(), cwd=ROOT))
    assert {(was, now) for was, now, outcome in outcomes if outcome == "survived"} == SURVIVORS
    assert [now for _, now, outcome in outcomes if outcome == "timeout"] == ["n += 1"]
    assert ["low=0", "low=1", "killed"] in outcomes
    assert {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()} == before


def results(outcomes):
    found = mutants(TINY + TINY)[: len(outcomes)]
    return found, [Result(m, o, 0.1, "") for m, o in zip(found, outcomes, strict=False)]


def test_a_score_counts_what_tests_could_notice():
    found, some = results(["survived", "timeout"] + ["killed"] * 18)
    equivalent, left = Entry(found[0].key, True, "why"), Entry(found[0].key, False, "why")
    module = MODULES["scan"]
    row = judged("scan", module, found, some, [equivalent])
    assert row.faults == [] and row.text.endswith("1 equivalent, 0 survived: 100.0 %")
    row = judged("scan", module, found, some, [left])
    assert row.faults == [] and row.text.endswith("0 equivalent, 1 survived: 95.0 %")


def test_what_is_wrong_with_a_score_is_said():
    found, some = results(["survived"] + ["killed"] * 9)
    module = MODULES["scan"]
    unlisted, low = judged("scan", module, found, some, []).faults
    assert unlisted == f"survives and is not listed:\n{described(module, found[0])}" and "below 95 %" in low
    noticed, gone = Entry(found[1].key, True, "why"), Entry(("f", "x", "y", 1), True, "why")
    faults = judged("scan", module, found, some[1:], [noticed, gone]).faults
    assert [f.partition(":")[0] for f in faults] == [
        "listed, and noticed by a test",
        "listed, and no mutant of the module",
    ]


def test_a_mutant_is_described_as_it_is_listed(tmp_path):
    mutant = next(m for m in mutants(TINY) if m.now == "pass")
    text = f"[[scan]]\n{described(MODULES['scan'], mutant)}equivalent = true\nreason = 'why'\n"
    (tmp_path / "listed.toml").write_text(text)
    assert listed("scan", tmp_path / "listed.toml") == [Entry(mutant.key, True, "why")]
    assert tomllib.loads(text)["scan"][0]["function"] == mutant.function


def test_the_table_names_files_that_are_there():
    for module in MODULES.values():
        for path in (module.path, *module.tests):
            assert (ROOT / path).is_file(), path
    assert all(listed(name) is not None for name in MODULES)
