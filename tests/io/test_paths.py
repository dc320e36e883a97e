"""Paths that cannot be encoded, opened or written: each error is rnncore's, has the path and the reason, and can be printed."""

import errno
import os
import pickle
from pathlib import Path

import pytest

import rnncore
from rnncore import errors
from rnncore.diagnostics.monitor.log import LogFile, read_log
from rnncore.errors import (
    ArgumentTypeError,
    ArgumentValueError,
    FileAccessError,
    FileFormatError,
    FileIsDirectoryError,
    FileMissingError,
    FileNotInDirectoryError,
    RnncoreError,
)
from rnncore.io.npy import read_npy
from rnncore.io.paths import as_path, named, shown
from tests.tools.weights_files import small

posix = pytest.mark.skipif(os.name != "posix", reason="POSIX file names, pipes and devices")

READERS = {
    "load": rnncore.load,
    "npy": lambda path: read_npy("--input", path),
    "log": read_log,
}
WRITERS = {"save": lambda path: small().save(path), "monitor": LogFile}
CALLS = READERS | WRITERS
call = pytest.mark.parametrize("call", CALLS.values(), ids=CALLS.keys())
reader = pytest.mark.parametrize("call", READERS.values(), ids=READERS.keys())
save_and_load = pytest.mark.parametrize("call", [CALLS["save"], CALLS["load"]], ids=["save", "load"])


def printed(error):
    """The message, which every terminal can show."""
    text = str(error)
    assert text.encode("utf-8")
    assert text.isprintable()
    return text


@call
@pytest.mark.parametrize("name", ["a\0b.npz", "\0.npz", "a.npz\0"])
def test_a_null_character(tmp_path, call, name):
    for path in (str(tmp_path / name), tmp_path / name):
        with pytest.raises(ArgumentValueError, match="null character") as caught:
            call(path)
        assert "\\x00" in printed(caught.value)


@call
@posix
def test_a_surrogate_that_stands_for_no_byte(tmp_path, call):
    with pytest.raises(ArgumentValueError, match="encoded in utf-8") as caught:
        call(tmp_path / "a\ud800b.npz")
    assert "\\ud800" in printed(caught.value)


@posix
def test_a_name_that_is_not_utf8_is_a_name(tmp_path):
    """Python writes its bytes as lone surrogates, which cannot be printed."""
    path = os.fsdecode(os.fsencode(tmp_path) + b"/a\xffb.npz")
    small().save(path)
    assert rnncore.load(path).spec == small().spec
    Path(path).write_bytes(b"damaged")
    for call in READERS.values():
        with pytest.raises(FileFormatError) as caught:
            call(path)
        assert "a\\udcffb.npz" in printed(caught.value)
    for missing in (rnncore.load, read_log):
        with pytest.raises(FileMissingError) as caught:
            missing(os.fsdecode(b"/none/\xff.npz"))
        assert "\\udcff" in printed(caught.value)


@pytest.mark.parametrize("path", [3, None, b"rnn.npz"])
@call
def test_not_a_path(call, path):
    with pytest.raises(ArgumentTypeError, match="path: expected"):
        call(path)


@call
def test_no_such_directory(tmp_path, call):
    path = tmp_path / "none" / "rnn.npz"
    with pytest.raises(FileMissingError) as caught:
        call(path)
    assert isinstance(caught.value, FileNotFoundError)
    assert caught.value.filename == str(path)
    assert str(path) in printed(caught.value)
    assert "No such file" in str(caught.value)


@call
def test_a_file_for_a_directory(tmp_path, call):
    (tmp_path / "file").touch()
    with pytest.raises((FileNotInDirectoryError, FileMissingError), match=r"rnn\.npz"):
        call(tmp_path / "file" / "rnn.npz")


@reader
def test_reading_a_directory(tmp_path, call):
    path = tmp_path / "folder.npz"
    path.mkdir()
    with pytest.raises(FileIsDirectoryError, match=r"folder\.npz") as caught:
        call(path)
    assert isinstance(caught.value, IsADirectoryError)


@posix
@call
def test_a_name_too_long(tmp_path, call):
    with pytest.raises(FileAccessError, match="too long") as caught:
        call(tmp_path / ("x" * 300 + ".npz"))
    assert caught.value.errno == errno.ENAMETOOLONG


@posix
@call
def test_a_link_to_itself(tmp_path, call):
    path = tmp_path / "loop.npz"
    path.symlink_to(path)
    with pytest.raises(FileAccessError, match="symbolic links"):
        call(path)


@posix
@reader
def test_reading_a_pipe_or_device(tmp_path, call):
    pipe, device = tmp_path / "pipe.npz", tmp_path / "device.npz"
    os.mkfifo(pipe)
    device.symlink_to("/dev/full")
    for path in (pipe, device):
        with pytest.raises(FileFormatError, match="regular file") as caught:
            call(path)
        assert str(path) in printed(caught.value)


@posix
def test_saving_to_a_device(tmp_path):
    path = tmp_path / "rnn.npz"
    path.symlink_to("/dev/full")
    with pytest.raises(ArgumentValueError, match=r"regular file.*dev/full"):
        small().save(path)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="the device that is always full is Linux's")
def test_a_full_disk_names_the_path(tmp_path, suffix, monkeypatch):
    path, opened = tmp_path / f"rnn.{suffix}", os.open

    def full(name, flags, *args, **kwargs):
        return opened("/dev/full" if flags & os.O_CREAT else name, flags & ~(os.O_CREAT | os.O_EXCL), *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(os, "open", full)
        patch.setattr("rnncore.io.temporary.fcntl", None)
        with pytest.raises(FileAccessError, match="No space left") as caught:
            small().save(path)
    assert caught.value.errno == errno.ENOSPC
    assert caught.value.filename == str(path)
    log = LogFile("/dev/full")
    with pytest.raises(FileAccessError, match=r"No space left.*dev/full"):
        log.append("a line")
    log.close()


@posix
def test_a_read_only_file_system_says_so(tmp_path, suffix, monkeypatch):
    """A new file there: the system refuses the temporary one, and the message has the path that was given."""
    path, opened = tmp_path / f"rnn.{suffix}", os.open

    def refuse(name, flags, *args, **kwargs):
        if flags & os.O_CREAT:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), name)
        return opened(name, flags, *args, **kwargs)

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(FileAccessError, match=rf"Read-only file system: .*rnn\.{suffix}"):
        small().save(path)


def test_errors_of_files_are_the_systems_own_too_and_pickle():
    for name in errors.__all__:
        kind = getattr(errors, name)
        if not issubclass(kind, FileAccessError):
            continue
        error = kind(errno.ENOENT, "reason", "a\udcffb")
        again = pickle.loads(pickle.dumps(error))
        assert type(again) is kind
        assert isinstance(again, (RnncoreError, OSError))
        assert (again.errno, again.strerror, again.filename) == (errno.ENOENT, "reason", "a\udcffb")
        printed(again)


def test_an_error_without_a_number_keeps_its_text():
    assert "odd" in str(FileAccessError.of(OSError("odd"), "x.npz"))


def test_paths_in_messages():
    assert shown("/a b/é.npz") == "/a b/é.npz"
    assert shown("a\nb") == "'a\\nb'"
    assert as_path(Path("a") / "b") == str(Path("a") / "b")


def test_an_error_of_another_file_keeps_its_path():
    with pytest.raises(FileAccessError) as caught, named("outer.onnx"), named("inner.bin"):
        raise FileNotFoundError(2, "No such file or directory")
    assert caught.value.filename == "inner.bin"
