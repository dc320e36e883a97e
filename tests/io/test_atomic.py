"""Atomic writing: the old file or the new one, its permissions, and nothing but regular files."""

import errno
import os
import stat
import tempfile
import threading
from pathlib import Path

import pytest

import rnncore
from rnncore import io
from rnncore.errors import ArgumentValueError, FileAccessError, FileFormatError
from tests.tools.process import python
from tests.tools.weights_files import assert_same, host, listing, small

posix = pytest.mark.skipif(os.name != "posix", reason="POSIX permissions, links and limits")


def no_space(*args, **kwargs):
    raise OSError(errno.ENOSPC, "No space left on device")


def interrupt(*args, **kwargs):
    raise KeyboardInterrupt


@pytest.mark.parametrize("existing", [True, False])
@pytest.mark.parametrize("failure", [no_space, interrupt])
@pytest.mark.parametrize("where", ["os.replace", "os.fsync", "os.chmod", "os.open", "encode"])
def test_failure_leaves_the_old_file(tmp_path, path, suffix, monkeypatch, where, failure, existing):
    before = before_state = None
    if existing:
        small().save(path)
        before = path.read_bytes()
    elif where == "os.chmod":
        return  # a new file keeps the permissions it is made with: nothing to fail
    model = small(rng=1)
    before_state = host(model)
    if where == "encode":
        where = f"rnncore.io.{suffix}.as_bytes"  # the description is written, and no array
    with monkeypatch.context() as patch:
        patch.setattr(where, failure)
        with pytest.raises((OSError, KeyboardInterrupt)):
            model.save(path)
    assert listing(tmp_path) == ([path.name] if existing else [])
    if existing:
        assert path.read_bytes() == before
    assert_same(host(model), before_state)
    model.save(path)
    assert_same(host(rnncore.load(path)), before_state)


@posix
def test_disk_full_while_writing(tmp_path, path):
    import resource

    small().save(path)
    before = path.read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))  # a real short write: Python ignores the signal
    try:
        with pytest.raises(OSError):  # noqa: PT011
            small(hidden_size=200).save(path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert listing(tmp_path) == [path.name]
    assert path.read_bytes() == before


def test_order_of_a_write(path, monkeypatch):
    """The bytes are on the disk before the name is, and the directory after it."""
    events = []

    def spy(name):
        function = getattr(os, name)

        def call(*args, **kwargs):
            kind = "directory" if name == "fsync" and stat.S_ISDIR(os.fstat(args[0]).st_mode) else ""
            events.append(name + kind)
            return function(*args, **kwargs)

        monkeypatch.setattr(os, name, call)

    spy("fsync")
    spy("replace")
    small().save(path)
    assert events[:2] == ["fsync", "replace"]
    assert os.name != "posix" or events[2:] == ["fsyncdirectory"]


@posix
def test_a_directory_that_cannot_be_synced_is_no_error(path, monkeypatch):
    fsync = os.fsync

    def only_files(descriptor):
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, "Invalid argument")
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", only_files)
    small().save(path)
    rnncore.load(path)


@posix
@pytest.mark.parametrize("umask", [0o022, 0o027, 0o077, 0o002])
def test_a_new_file_has_the_permissions_of_open(path, umask):
    old = os.umask(umask)
    try:
        small().save(path)
    finally:
        os.umask(old)
    assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~umask


@posix
@pytest.mark.parametrize("mode", [0o600, 0o640, 0o664, 0o666])
def test_an_existing_file_keeps_its_permissions(path, mode):
    small().save(path)
    path.chmod(mode)
    small(rng=1).save(path)
    assert stat.S_IMODE(path.stat().st_mode) == mode


@posix
def test_a_private_file_is_never_readable_by_others(path, monkeypatch):
    small().save(path)
    path.chmod(0o600)
    seen = []
    fsync = os.fsync
    monkeypatch.setattr(os, "fsync", lambda d: (seen.append(stat.S_IMODE(os.fstat(d).st_mode)), fsync(d))[1])
    small(rng=1).save(path)
    assert seen[0] == 0o600


@pytest.mark.parametrize(
    ("number", "reason", "kind"),
    [
        (errno.EACCES, "Permission denied", PermissionError),
        (errno.EROFS, "Read-only file system", OSError),
    ],
)
def test_write_protection_is_respected(path, monkeypatch, number, reason, kind):
    small().save(path)
    before = path.read_bytes()
    opened = os.open

    def refuse(name, flags, *args, **kwargs):  # root may write to anything
        if os.fspath(name) == str(path):
            raise OSError(number, os.strerror(number), name)
        return opened(name, flags, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(os, "open", refuse)
        with pytest.raises(FileAccessError, match=reason) as caught:
            small(rng=1).save(path)
    assert isinstance(caught.value, kind)
    assert caught.value.filename == str(path)
    assert path.read_bytes() == before


@posix
def test_write_protection_is_asked_of_the_system(suffix):
    with tempfile.TemporaryDirectory() as folder:  # not tmp_path, which other users cannot reach
        path = Path(folder) / f"rnn.{suffix}"
        small().save(path)
        before = path.read_bytes()
        path.chmod(0o444)
        path.parent.chmod(0o777)
        code = f"""
            import os, rnncore
            rnn = rnncore.RNN(3, 4, rng=0)
            if os.geteuid() == 0:  # root may write to anything
                os.setuid(65534)
            try:
                rnn.save({str(path)!r})
            except rnncore.errors.FilePermissionError as error:
                print(error)"""
        assert python(code).endswith(f"Permission denied: {str(path)!r}")
        assert path.read_bytes() == before
        assert listing(folder) == [path.name]


@posix
def test_a_link_is_followed(tmp_path, suffix):
    real, link = tmp_path / f"real.{suffix}", tmp_path / f"link.{suffix}"
    small().save(real)
    link.symlink_to(real)
    small(rng=1).save(link)
    assert link.is_symlink()
    assert_same(host(rnncore.load(real)), host(small(rng=1)))


def test_missing_directory_names_the_path(tmp_path, suffix):
    with pytest.raises(FileNotFoundError, match=f"rnn.{suffix}"):
        small().save(tmp_path / "none" / f"rnn.{suffix}")
    with pytest.raises(FileNotFoundError, match=f"rnn.{suffix}"):
        rnncore.load(tmp_path / f"rnn.{suffix}")


def test_a_directory_in_the_way(tmp_path, path):
    path.mkdir()
    with pytest.raises(ArgumentValueError, match="regular file"):
        small().save(path)
    with pytest.raises(OSError):  # noqa: PT011
        rnncore.load(path)
    assert listing(tmp_path) == [path.name]


@posix
def test_a_pipe_or_device_is_refused(tmp_path, path, suffix):
    os.mkfifo(path)
    device = tmp_path / f"zero.{suffix}"
    device.symlink_to("/dev/zero")
    for odd in (path, device):
        with pytest.raises(FileFormatError, match="regular file"):
            rnncore.load(odd)
        with pytest.raises(ArgumentValueError, match="regular file"):
            small().save(odd)


def test_a_reader_sees_the_old_or_the_new(path):
    models = [small(hidden_size=30, rng=k) for k in range(2)]
    valid = {host(m)["weight_hh_l0"].tobytes() for m in models}
    models[0].save(path)
    stop, seen, errors = threading.Event(), set(), []

    def reading():
        while not stop.is_set():
            try:
                seen.add(io.read(path).params["weight_hh_l0"].tobytes())
            except Exception as error:
                errors.append(error)

    thread = threading.Thread(target=reading)
    thread.start()
    for k in range(60):
        models[k % 2].save(path)
    stop.set()
    thread.join()
    assert errors == []
    assert seen <= valid
