"""Entry points in the metadata of packages: names, contests, and metadata that cannot be read."""

import itertools
import os
import sys
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

import rnncore
from rnncore.arguments import one_line
from rnncore.backend import registry
from rnncore.backend.discovery import Claim
from rnncore.errors import UnknownNameError
from tests.tools.plugins import sound


def test_plugins_can_be_switched_off(acme, monkeypatch):
    for allowed, there in (("none", False), ("other", False), ("acme", True), ("x, acme", True)):
        monkeypatch.setenv("RNNCORE_PLUGINS", allowed)
        registry.refresh()
        assert ("acme" in [b.name for b in rnncore.backends()]) == there
        assert rnncore.RNN(2, 3).backend == "numpy"


def test_a_name_that_two_packages_claim_is_refused_and_both_are_listed(plugin_files, others):
    for distribution in ("second", "first"):
        plugin_files("twice", sound("twice"), distribution)
    others("twice (first)", "twice (second)")
    for ask in (rnncore.get_backend, rnncore.use_backend, lambda name: rnncore.RNN(2, 3, backend=name)):
        with pytest.raises(UnknownNameError, match=r"first \(rnncore_first\), second \(rnncore_second\); uninstall"):
            ask("twice")
    rows = {b.name: b for b in rnncore.backends()}
    for distribution in ("first", "second"):
        row = rows[f"twice ({distribution})"]
        assert (row.usable, row.distribution, row.version) == (False, distribution, "1.2")
        assert "'twice' is registered more than once, by first (rnncore_first), second" in row.reason
    assert "rnncore_first" not in sys.modules  # which of them is meant cannot be told, so none is loaded
    with pytest.raises(UnknownNameError, match=r"twice \(first\): not usable"):
        rnncore.get_backend("twic")


def test_our_names_cannot_be_taken_and_an_attempt_is_listed(plugin_files, others):
    plugin_files("numpy", sound("numpy", "def is_native(x, /): return True"), "impostor")
    plugin_files("torch", "raise SystemExit", "another")
    others("numpy (impostor)", "torch (another)")
    import rnncore_numpy

    assert rnncore.get_backend("numpy") is rnncore_numpy
    rows = {b.name: b for b in rnncore.backends()}
    assert rows["numpy"].distribution == "rnncore" and rows["numpy"].usable
    row = rows["numpy (impostor)"]
    assert (row.usable, row.distribution, row.version) == (False, "impostor", "1.2")
    assert "'numpy' is rnncore's own name" in row.reason and "rnncore_impostor" in row.reason
    assert "rnncore_impostor" not in sys.modules


@pytest.mark.parametrize(
    "text", ["twice = rnncore_one\ntwice = rnncore_two", "twice = rnncore_one\n twice=rnncore_one"]
)
def test_one_package_that_claims_a_name_twice(plugin_files, others, text):
    plugin_files("twice", sound("twice"), "one", text=f"[rnncore.backends]\n{text}\n")
    if "two" in text:
        others("twice (one)", "twice (one) 2")
        with pytest.raises(UnknownNameError, match=r"one \(rnncore_one\), one \(rnncore_two\)"):
            rnncore.get_backend("twice")
    else:  # the same twice is no contradiction
        others("twice")
        assert rnncore.get_backend("twice").name == "twice"


def test_names_and_winners_do_not_depend_on_the_order_of_the_path(plugin_files, tmp_path, monkeypatch):
    folders = [tmp_path / part for part in ("a", "b", "c")]
    for folder, distribution in zip(folders, ("zebra", "aardvark", "impostor"), strict=True):
        plugin_files("twice", sound("twice"), distribution, folder=folder)
        text = f"[rnncore.backends]\nnumpy = rnncore_{distribution}\nonly-{distribution} = rnncore_{distribution}\n"
        (folder / f"{distribution}-1.2.dist-info" / "entry_points.txt").write_text(
            text if distribution == "impostor" else f"{text}twice = rnncore_{distribution}\n"
        )
        plugin_files("", "", f"not-{distribution}", folder=folder, text="[rnncore.backends]\nno equals sign\n")
    plain, seen = list(sys.path), []
    for before, order in itertools.product((True, False), itertools.permutations(map(str, folders))):
        monkeypatch.setattr(sys, "path", [*order, *plain] if before else [*plain, *order])
        registry.refresh()
        with pytest.raises(UnknownNameError) as error:
            rnncore.get_backend("twice")
        seen.append((rnncore.backends(), str(error.value), type(rnncore.get_backend("numpy"))))
    assert all(one == seen[0] for one in seen)
    names = [b.name for b in seen[0][0]]
    assert names == sorted(names) and len(set(names)) == len(names)
    assert {"numpy (aardvark)", "numpy (impostor)", "numpy (zebra)", "twice (aardvark)", "twice (zebra)"} <= set(names)


@pytest.mark.parametrize(
    "text", ["[rnncore.backends]\nno equals sign\n", "[rnncore.backends]\na = b\n[other]\nbroken\n"]
)
def test_unreadable_metadata_leave_other_packages_alone(plugin_files, others, text, monkeypatch):
    """importlib.metadata.entry_points() raises for all packages if one has a malformed file."""
    plugin_files("broken", sound(), text=text)
    others("? (broken)")
    row = next(b for b in rnncore.backends() if b.name == "? (broken)")
    assert not row.usable and "entry_points.txt cannot be read" in row.reason and row.version == "1.2"
    monkeypatch.setenv("RNNCORE_PLUGINS", "none")
    registry.refresh()
    assert "? (broken)" not in [b.name for b in rnncore.backends()]


def test_metadata_of_packages_that_are_no_plugins_may_be_anything(plugin_files, others):
    plugin_files("broken", "", "one", text="[console_scripts]\nno equals sign\n")
    plugin_files("broken", "", "two")
    Path(sys.path[0], "two-1.2.dist-info", "entry_points.txt").write_bytes(b"\xff\xfe[rnncore.backends]")
    registry.refresh()
    others()


@pytest.mark.parametrize("damage", [Path.unlink, lambda path: path.write_bytes(b"\xff\xfeName: one")])
def test_a_package_with_damaged_metadata_has_no_name(plugin_files, others, damage):
    for distribution in ("one", "two"):
        plugin_files(distribution, sound(distribution), distribution)
        damage(Path(sys.path[0], f"{distribution}-1.2.dist-info", "METADATA"))
    registry.refresh()
    others("one", "two")
    assert {(b.usable, b.distribution, b.version) for b in rnncore.backends() if b.name in ("one", "two")} == {
        (True, "", "")
    }


def test_of_one_package_installed_twice_the_one_that_python_imports_counts(plugin_files, others, tmp_path, monkeypatch):
    for version in ("1.2", "1.10"):
        plugin_files("acme", sound("acme"), "Acme.Arrays", version, value="rnncore_acme", folder=tmp_path / version)
        monkeypatch.syspath_prepend(str(tmp_path / version))
    registry.refresh()
    assert [b.version for b in rnncore.backends() if b.name.startswith("acme")] == ["1.10"]


def test_names_that_no_table_could_tell_apart_are_refused(plugin_files, others):
    plugin_files("numpy (impostor)", sound("numpy (impostor)"), "odd")
    plugin_files("", sound(""), "empty", text="[rnncore.backends]\n= rnncore_empty\n")
    plugin_files("numpy", sound("numpy"), "impostor")
    others("'numpy (impostor)' (odd)", "'' (empty)", "numpy (impostor)")
    for name in ("numpy (impostor)", ""):
        with pytest.raises(UnknownNameError):
            rnncore.get_backend(name)


def test_our_own_package_is_ours_however_it_is_spelt(plugin_files):
    entry = EntryPoint("numpy", "rnncore_numpy", "rnncore.backends")
    assert Claim(entry, "RnnCore", "1").ours
    assert not Claim(entry, "rnn-core", "1").ours and not Claim(entry, "", "").ours


def test_a_librarys_words_on_one_line():
    assert one_line("a\n\n  b\t\x1b[1;31mred\x1b[0m\r\n\x07\ud800c é ") == "a b red c é"


def test_a_refresh_finds_what_was_installed_in_the_same_tick_of_the_clock(plugin_files, tmp_path):
    """Python takes a folder whose time has not changed to be the folder it knows."""
    plugin_files("one", sound("one"), "one")
    assert "one" in [b.name for b in rnncore.backends()]
    then = tmp_path.stat().st_mtime_ns
    plugin_files("two", sound("two"), "two")
    os.utime(tmp_path, ns=(then, then))
    registry.refresh()
    assert rnncore.get_backend("two").name == "two"
