"""Compiled functions on disk: damaged, foreign and unreadable files, and folders that cannot be written to."""

import shutil
from pathlib import Path

import numba
import numpy as np
import pytest
from numba.core import types
from rnncore_numba import _cache, _kernels

SIGNATURE = types.int64(types.int64)


@pytest.fixture(autouse=True)
def folder(monkeypatch, tmp_path):
    """An empty folder for Numba's files, and no warning given yet."""
    monkeypatch.setattr("numba.config.CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(_cache, "_warned", set())
    return tmp_path


def function(added=1, name="f"):
    """Compile or read ``n + added``."""
    return _kernels._jit(SIGNATURE, lambda n: n + added, name)


def was_read(f):
    return sum(f.stats.cache_hits.values()) == 1


def file_of(f):
    (path,) = Path(f.stats.cache_path).glob("*.nbc")
    return path


def test_a_function_is_read_from_disk_and_is_the_only_file():
    first = function()
    again = function()
    assert not was_read(first) and was_read(again) and first(2) == again(2) == 3
    assert [p.name for p in file_of(first).parent.iterdir()] == [file_of(first).name]


DAMAGE = {
    "empty": lambda raw: b"",
    "one byte": lambda raw: raw[:1],
    "within the digest": lambda raw: raw[:20],
    "the digest alone": lambda raw: raw[:32],
    "half": lambda raw: raw[: len(raw) // 2],
    "all but a byte": lambda raw: raw[:-1],
    "a byte more": lambda raw: raw + b"\0",
    "garbage": lambda raw: np.random.default_rng(0).bytes(len(raw)),
    "zeros": lambda raw: bytes(len(raw)),
    "an index of Numba's": lambda raw: b"\x80\x05\x95",
} | {
    f"a byte at {n}/16": lambda raw, n=n: (k := n * (len(raw) - 1) // 16, raw[:k] + bytes([raw[k] ^ 1]) + raw[k + 1 :])[
        1
    ]
    for n in range(17)
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_file_is_compiled_again_and_replaced(damage):
    path = file_of(function())
    path.write_bytes(damage(path.read_bytes()))
    with pytest.warns(RuntimeWarning, match="damaged") as warned:
        mended = function()
    assert len(warned) == 1 and str(path) in str(warned[0].message)
    assert not was_read(mended) and mended(2) == 3
    assert was_read(function())


def test_damage_is_said_once_for_all_files():
    paths = [file_of(function())]
    function(name="g")
    paths = list(paths[0].parent.glob("*.nbc"))
    assert len(paths) == 2
    for path in paths:
        path.write_bytes(b"")
    with pytest.warns(RuntimeWarning, match="damaged") as warned:
        assert function()(2) == function(name="g")(2) == 3
    assert len(warned) == 1


def test_the_file_of_another_function_is_not_taken():
    """Its digest is right."""
    path = file_of(function(1, "f"))
    function(2, "g")
    (other,) = set(path.parent.glob("*.nbc")) - {path}
    shutil.copy(other, path)
    f = function(1, "f")
    assert not was_read(f) and f(2) == 3


@pytest.mark.parametrize("changed", ["version", "numba", "processor"])
def test_what_was_made_from_other_sources_or_by_another_numba_or_processor_is_not_taken(changed, monkeypatch):
    path = file_of(function())
    if changed == "version":
        monkeypatch.setattr(_kernels, "version", lambda: 7)
    elif changed == "numba":
        monkeypatch.setattr(numba, "__version__", "0.0")
    else:
        monkeypatch.setattr(type(_context().codegen()), "magic_tuple", lambda self: ("another", "", ""))
    assert not was_read(function())
    assert was_read(function())
    # Its place is taken, except that processes on two processors may share a folder.
    assert len(list(path.parent.glob("*.nbc"))) == (2 if changed == "processor" else 1)


def _context():
    from numba.core.registry import cpu_target

    return cpu_target.target_context


def test_a_file_that_cannot_be_read_is_compiled_again(monkeypatch):
    path = file_of(function())

    def refuse(self):
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "read_bytes", refuse)
    # The sources are read as well.
    monkeypatch.setattr(_kernels, "version", lambda: 0)
    with pytest.warns(RuntimeWarning, match="cannot be read.*Permission denied") as warned:
        assert function()(2) == 3
    assert len(warned) == 1 and path.exists()


def test_code_that_llvm_refuses_is_compiled_again(monkeypatch):
    function()

    def refuse(*arguments):
        raise RuntimeError("LLVM ERROR")

    with monkeypatch.context() as m:
        m.setattr("numba.core.compiler.CompileResult._rebuild", refuse)
        with pytest.warns(RuntimeWarning, match="RuntimeError: LLVM ERROR"):
            assert function()(2) == 3


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), PermissionError(13, "Permission denied")])
def test_a_folder_that_cannot_be_written_to_stops_nothing(error, monkeypatch):
    def refuse(path, write):
        raise error

    monkeypatch.setattr(_cache, "replace", refuse)
    with pytest.warns(RuntimeWarning, match=f"cannot be written.*{error.strerror}") as warned:
        assert function()(2) == function(name="g")(2) == 3
    assert len(warned) == 1


def test_a_file_whose_place_a_folder_takes_stops_nothing():
    path = file_of(function())
    path.unlink()
    path.mkdir()
    with pytest.warns(RuntimeWarning) as warned:
        assert function()(2) == 3
    assert ["cannot be read" in str(w.message) for w in warned] == [True, False]


def test_it_compiles_without_any_folder(monkeypatch):
    """As on a system where no place can be written to: nothing is wrong, and nothing is said."""
    from numba.core.dispatcher import Dispatcher

    def refuse(self):
        raise RuntimeError("cannot cache function 'f': no locator available for file 'x'")

    monkeypatch.setattr(Dispatcher, "enable_caching", refuse)
    assert function()(2) == function()(2) == 3


def test_another_error_of_numbas_is_passed_on(monkeypatch):
    from numba.core.dispatcher import Dispatcher

    def refuse(self):
        raise RuntimeError("something else")

    monkeypatch.setattr(Dispatcher, "enable_caching", refuse)
    with pytest.raises(RuntimeError, match="something else"):
        function()


@pytest.mark.parametrize(
    "gone",
    [
        "numba.core.compiler.CompileResult._reduce",
        "numba.core.compiler.CompileResult._rebuild",
        "numba.core.serialize.dumps",
        "numba.core.dispatcher.Dispatcher.enable_caching",
    ],
)
def test_a_numba_without_the_private_names_compiles_in_every_process(gone, monkeypatch):
    monkeypatch.delattr(gone)
    with pytest.warns(RuntimeWarning, match="has changed.*not kept on disk") as warned:
        f, again = function(), function()
    assert len(warned) == 1
    assert f(2) == again(2) == 3 and not was_read(again)
