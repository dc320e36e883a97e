"""Zips: what is written is read; test_npz.py has the hostile ones."""

import zipfile

import pytest

from rnncore.errors import FileFormatError, InterchangeError
from rnncore.io import zips

CONTENTS = {"a.json": b"{}", "b/c": b"\x00" * 1000, "d": b""}


@pytest.fixture
def path(tmp_path):
    made = tmp_path / "x.zip"
    with zipfile.ZipFile(made, "w") as archive:
        for name, content in CONTENTS.items():
            with zips.create(archive, name) as entry:
                entry.write(content)
    return made


def test_entries_go_out_and_in(path):
    with path.open("rb") as file, zips.opened(file, "a test") as (archive, entries):
        assert {name: archive.read(info) for name, info in entries.items()} == CONTENTS
    assert all(info.date_time == (1980, 1, 1, 0, 0, 0) for info in entries.values())


def test_a_name_that_is_there_twice_is_refused(path):
    with pytest.warns(UserWarning, match="Duplicate name"), zipfile.ZipFile(path, "a") as archive:
        archive.writestr("d", b"other")
    with (
        path.open("rb") as file,
        pytest.raises(FileFormatError, match="entry 'd': expected names of which none is there twice"),
        zips.opened(file, "a test"),
    ):
        pass


def test_what_the_body_finds_damaged_is_the_files_fault_and_its_own_errors_are_kept(path):
    raw = path.read_bytes()
    path.write_bytes(raw.replace(b"{}", b"[]"))
    with path.open("rb") as file:
        with pytest.raises(FileFormatError, match="damaged or not a test: Bad CRC-32"):
            _read(file)
        with pytest.raises(InterchangeError, match="mine"), zips.opened(file, "a test"):
            raise InterchangeError("mine")


def _read(file):
    with zips.opened(file, "a test") as (archive, entries):
        archive.read(entries["a.json"])
