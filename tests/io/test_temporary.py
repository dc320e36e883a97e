"""Temporary files of killed processes are removed by the next save, and those of living ones never."""

import errno
import os
import signal
import subprocess
import sys
import threading

import pytest

import rnncore
from rnncore.io import temporary
from tests.tools.weights_files import assert_same, host, listing, small

fcntl = pytest.importorskip("fcntl", reason="without it no temporary file is locked, and none removed")

# Writes to the path, says so when the bytes are in the temporary file, and goes on when it is told to.
SAVING = """
import os, sys, rnncore
fsync = os.fsync
def wait(descriptor):
    print("written", flush=True)
    sys.stdin.readline()
    fsync(descriptor)
os.fsync = wait
rnncore.RNN(3, 2, rng=1).save(sys.argv[1])
"""


def start_saving(path):
    process = subprocess.Popen(
        [sys.executable, "-c", SAVING, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "written\n"
    return process


def end(process):
    with process:
        process.kill()
    assert process.returncode == -signal.SIGKILL


def stale(folder, name="0123456789abcdef", mark=None):
    mark = temporary.kernel_mark() if mark is None else mark
    path = folder / f".rnncore-{mark}-{name}.tmp"
    path.write_bytes(b"half")
    return path


def test_the_files_of_killed_saves_are_removed_by_the_next(tmp_path, path):
    small().save(path)
    for _ in range(3):
        end(start_saving(path))
    left = set(listing(tmp_path)) - {path.name}
    # Each save removes those that it finds, so that one alone is left of all kills.
    assert len(left) == 1
    assert_same(host(rnncore.load(path)), host(small()))
    small(rng=2).save(path)
    assert listing(tmp_path) == [path.name]
    assert_same(host(rnncore.load(path)), host(small(rng=2)))


def test_many_are_removed_at_once(tmp_path, path):
    for k in range(305):
        stale(tmp_path, f"{k:016x}")
    small().save(path)
    assert listing(tmp_path) == [path.name]


def test_the_file_of_a_living_save_stays(tmp_path, path):
    process = start_saving(path)
    try:
        (own,) = listing(tmp_path)
        small().save(path)
        assert set(listing(tmp_path)) == {own, path.name}
        process.communicate("go on\n")
    except BaseException:
        end(process)
        raise
    assert process.returncode == 0
    assert listing(tmp_path) == [path.name]
    assert_same(host(rnncore.load(path)), host(small(rng=1)))


def test_the_file_of_another_thread_stays(tmp_path, path, monkeypatch):
    """Locks belong to open files: one process has as many as it has saves."""
    fsync, other = os.fsync, threading.Thread(target=lambda: small(rng=1).save(path))
    inside, go_on = threading.Event(), threading.Event()

    def wait(descriptor):
        if threading.current_thread() is other:
            inside.set()
            go_on.wait()
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", wait)
    other.start()
    try:
        inside.wait()
        small().save(path)
        assert len(listing(tmp_path)) == 2
    finally:
        go_on.set()
        other.join()
    assert listing(tmp_path) == [path.name]
    assert_same(host(rnncore.load(path)), host(small(rng=1)))


def test_many_saves_at_once_disturb_none_other(tmp_path, path):
    """Each removes what it believes stale between the others' creating, locking and renaming."""
    errors = []

    def saving(k):
        try:
            for _ in range(40):
                small(rng=k).save(path.with_stem(f"rnn{k % 2}"))
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=saving, args=(k,)) for k in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert len(listing(tmp_path)) == 2


def test_a_file_that_is_removed_before_it_is_locked_is_made_anew(tmp_path, path, monkeypatch):
    flock, removed = fcntl.flock, []

    def late(file, operation):
        if not removed:
            removed.append(listing(tmp_path))
            temporary.remove_stale(str(tmp_path))  # another save, at the worst moment
            assert listing(tmp_path) == []
        flock(file, operation)

    monkeypatch.setattr(temporary.fcntl, "flock", late)

    # remove_stale locks, too: let it through.
    def within(folder, real=temporary.remove_stale):
        with monkeypatch.context() as patch:
            patch.setattr(temporary.fcntl, "flock", flock)
            real(folder)

    monkeypatch.setattr(temporary, "remove_stale", within)
    small().save(path)
    assert len(removed) == 1
    assert listing(tmp_path) == [path.name]


def test_a_file_that_another_save_has_locked_is_left_to_it(tmp_path, path, monkeypatch):
    flock, taken = fcntl.flock, []

    def late(file, operation):
        if not taken:
            (name,) = listing(tmp_path)
            taken.append(open(tmp_path / name, "rb"))  # noqa: SIM115
            flock(taken[0], fcntl.LOCK_EX)
        flock(file, operation)

    monkeypatch.setattr(temporary.fcntl, "flock", late)
    small().save(path)
    assert len(listing(tmp_path)) == 2
    taken[0].close()
    small().save(path)
    assert listing(tmp_path) == [path.name]


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOTSUP, errno.EINVAL])
def test_a_file_system_without_locks(tmp_path, path, monkeypatch, number):
    """What cannot be locked has a name that no save removes, and nothing is removed there."""
    old, seen, fsync = stale(tmp_path), [], os.fsync

    def no_locks(*args):
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patch:
        patch.setattr(temporary.fcntl, "flock", no_locks)
        patch.setattr(os, "fsync", lambda descriptor: (seen.append(listing(tmp_path)), fsync(descriptor)))
        small().save(path)
    (own,) = set(seen[0]) - {old.name}
    assert temporary.kernel_mark() not in own
    assert listing(tmp_path) == sorted([old.name, path.name])
    (tmp_path / own).write_bytes(b"half")
    small().save(path)
    assert listing(tmp_path) == sorted([own, path.name])


def test_a_system_without_locks(tmp_path, path, monkeypatch):
    old = stale(tmp_path)
    monkeypatch.setattr(temporary, "fcntl", None)
    small().save(path)
    assert listing(tmp_path) == sorted([old.name, path.name])


def test_what_may_be_others_is_left_alone(tmp_path, path, monkeypatch):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    victim = elsewhere / "victim"
    victim.write_bytes(b"precious")
    kept = [
        stale(tmp_path, mark="0" * 12),  # of another machine, whose locks cannot be seen
        tmp_path / ".rnncore-0123456789abcdef.tmp",  # of version 0.1, which does not lock
        tmp_path / f".rnncore-{temporary.kernel_mark()}-x.txt",
        tmp_path / f"rnncore-{temporary.kernel_mark()}-x.tmp",
    ]
    for file in kept[1:]:
        file.write_bytes(b"half")
    link, folder, pipe = (
        tmp_path / f".rnncore-{temporary.kernel_mark()}-{name}.tmp" for name in ("link", "folder", "pipe")
    )
    link.symlink_to(victim)
    folder.mkdir()
    os.mkfifo(pipe)
    small().save(path)
    names = [file.name for file in (*kept, link, folder, pipe, path, elsewhere)]
    assert listing(tmp_path) == sorted(names)
    assert victim.read_bytes() == b"precious"
    mine = stale(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(os, "geteuid", lambda: os.getuid() + 1)
        small().save(path)
    assert mine.exists()
    small().save(path)
    assert not mine.exists()


def test_a_link_put_in_the_place_of_a_file_is_not_followed(tmp_path, monkeypatch):
    """Between looking at the file and opening it."""
    victim, file = tmp_path / "victim", stale(tmp_path)
    victim.write_bytes(b"precious")
    lstat = os.lstat

    def swap(name):
        found = lstat(name)
        file.unlink()
        file.symlink_to(victim)
        return found

    monkeypatch.setattr(os, "lstat", swap)
    temporary.remove_stale(str(tmp_path))
    assert victim.read_bytes() == b"precious"
    assert file.is_symlink()


def test_a_directory_that_cannot_be_listed_is_no_error(path, monkeypatch):
    def refuse(*args):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(os, "scandir", refuse)
    small().save(path)
    rnncore.load(path)


def test_the_mark_is_that_of_the_running_kernel(tmp_path, monkeypatch):
    mark = temporary.kernel_mark()
    assert mark == temporary.kernel_mark.__wrapped__()
    assert len(mark) == 12 and mark.isalnum()
    boot = tmp_path / "boot_id"
    monkeypatch.setattr(temporary, "BOOT", str(boot))
    of_the_host = temporary.kernel_mark.__wrapped__()  # where there is no such file
    boot.write_text("of another boot\n")
    assert len({mark, of_the_host, temporary.kernel_mark.__wrapped__()}) == 3
