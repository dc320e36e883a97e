"""Entry points in the metadata of packages: names, contests, and metadata that cannot be read."""

import itertools
import json
import os
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import pytest

import rnncore
from rnncore.arguments import one_line
from rnncore.backend import discovery, registry
from rnncore.errors import UnknownNameError
from tests.tools.places import ROOT
from tests.tools.plugins import cases, sound


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


NAMES = tuple(tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["entry-points"]["rnncore.backends"])


def check_ours(others, *impostors):
    """All backends are rnncore's own, and each impostor's row of each name says why it is not used."""
    others(*(f"{name} ({spelling})" for name in NAMES for spelling in impostors))
    import rnncore_numpy

    assert rnncore.get_backend("numpy") is rnncore_numpy
    rows = {b.name: b for b in rnncore.backends()}
    for name in NAMES:
        assert (rows[name].distribution, rows[name].version) == ("rnncore", rnncore.__version__)
        for spelling in impostors:
            row = rows[f"{name} ({spelling})"]
            assert (row.usable, row.distribution, row.version) == (False, spelling, "9.9")
            assert f"this entry point (rnncore_{spelling}) is ignored" in row.reason
            assert "rnncore's own name" in row.reason or "does not contain the rnncore that is imported" in row.reason


@pytest.mark.parametrize("spelling", ["rnncore", "RNNcore", "RnnCore", "rnn.core", "rnn_core"])
@pytest.mark.parametrize("before", [True, False])
def test_a_package_that_calls_itself_rnncore_takes_no_backend_over(
    plugin_files, others, spelling, before, tmp_path, monkeypatch
):
    """The first three spellings are one name by the packaging standard, and the others are other names."""
    text = "".join(f"{name} = rnncore_{spelling}\n" for name in NAMES)
    registry.refresh()
    others()
    plain = list(sys.path)
    plugin_files("", "raise SystemExit", spelling, "9.9", tmp_path / "it", text=f"[rnncore.backends]\n{text}")
    monkeypatch.setattr(sys, "path", [str(tmp_path / "it"), *plain] if before else [*plain, str(tmp_path / "it")])
    registry.refresh()
    check_ours(others, spelling)


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


def installed(folder, *, record=None, origin=None, value="rnncore_numpy", version="1.0"):
    """Write the metadata of a package named rnncore."""
    info = folder / f"rnncore-{version}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: rnncore\nVersion: {version}\n")
    (info / "entry_points.txt").write_text(f"[rnncore.backends]\nnumpy = {value}\n")
    for name, text in (("RECORD", record), ("direct_url.json", origin)):
        if text is not None:
            (info / name).write_text(text)


# How the imported rnncore in tmp/code may have come there: what is written where, and the version that its backends have.
LAYOUTS = {
    "a wheel": (
        lambda tmp: installed(tmp / "code", record="rnncore/__init__.py,,\nrnncore_numpy/__init__.py,,\n"),
        "1.0",
    ),
    "a wheel whose RECORD was removed": (lambda tmp: installed(tmp / "code"), "1.0"),
    "an editable install": (
        lambda tmp: installed(
            tmp / "site",
            record="_rnncore.pth,,\n",
            origin=json.dumps({"url": (tmp / "code").as_uri(), "dir_info": {"editable": True}}),
        ),
        "1.0",
    ),
    "a source tree": (
        lambda tmp: (tmp / "code" / "pyproject.toml").write_text(
            '[project]\nname = "rnncore"\nversion = "2.0"\n'
            '[project.entry-points."rnncore.backends"]\nnumpy = "rnncore_numpy"\n'
        ),
        "2.0",
    ),
}


@cases(LAYOUTS)
@pytest.mark.parametrize("before", [True, False])
@pytest.mark.parametrize("claim", [{"record": "evil.py,,\n"}, {"origin": '{"url": 3}'}, {"origin": "no JSON"}])
def test_our_backends_are_those_of_the_package_that_contains_us(case, before, claim, tmp_path, monkeypatch):
    place, version = case
    (tmp_path / "code" / "rnncore").mkdir(parents=True)
    place(tmp_path)
    installed(tmp_path / "evil", value="rnncore_evil", version="9.9", **claim)
    if version == "1.0":  # left by an upgrade that went wrong, in the same folder as the right one
        installed(tmp_path / "code", record="evil.py,,\n", value="rnncore_left", version="0.9")
    folders = ["code", "site"]
    folders = [str(tmp_path / name) for name in (["evil", *folders] if before else [*folders, "evil"])]
    monkeypatch.setattr(metadata, "distributions", lambda: metadata.Distribution.discover(path=folders))
    monkeypatch.setattr(discovery, "HERE", tmp_path / "code" / "rnncore")
    scan = discovery.read_metadata()
    ours = scan.claims["numpy"]
    assert (ours.entry.value, ours.version, ours.ours) == ("rnncore_numpy", version, True)
    assert set(scan.claims) == {"numpy"} and not scan.contests
    assert {row.version for row in scan.refused} == ({"9.9", "0.9"} if version == "1.0" else {"9.9"})
    for row in scan.refused:
        assert row.name.startswith("numpy (rnncore)") and "does not contain the rnncore that is imported" in row.reason


def test_where_no_package_is_known_to_contain_us_none_has_precedence(tmp_path, monkeypatch):
    """As in a bundle that keeps the metadata elsewhere: one package is believed, and of two none."""
    installed(tmp_path / "one")
    found = lambda: metadata.Distribution.discover(path=[str(tmp_path / "one"), str(tmp_path / "two")])  # noqa: E731
    monkeypatch.setattr(metadata, "distributions", found)
    monkeypatch.setattr(discovery, "HERE", tmp_path / "bundle" / "rnncore")
    scan = discovery.read_metadata()
    assert not scan.claims["numpy"].ours and not scan.refused
    installed(tmp_path / "two", value="rnncore_evil")
    scan = discovery.read_metadata()
    assert not scan.claims and "uninstall all but one" in scan.contests["numpy"] and len(scan.refused) == 2
