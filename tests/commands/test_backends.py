"""``rnncore backends``: a row for each, and a line for each reason."""

import json
import re

import pytest

from tests.tools.command import on_a_terminal, rnn


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
    shown, _ = on_a_terminal("backends", stream="stdout", env=odd_plugins)
    lines = re.sub(r"\x1b\[[0-9;]*m", "", shown).splitlines()
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
