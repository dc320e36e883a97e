"""Compiled functions on disk: one file for each, with a digest, so that a damaged file is compiled again and never run.

Numba's own cache keeps all functions that come from one place in the source in numbered files, with an index. It hands what
it finds to pickle and LLVM: a truncated file is an error, a changed byte may be wrong code, and two processes that store
different functions at once may leave an index that names the other's file. Reading takes 0.1 ms more with the digest.

Private names of Numba's, seen in 0.68. If a version lacks one, the functions are compiled in every process, with a warning.

==================================================  =================================================================
name                                                use
==================================================  =================================================================
``Dispatcher._cache``                               what is asked before compiling and told after
``CompileResult._reduce``, ``_rebuild``             compiled code as an object to pickle, and back
``numba.core.serialize.dumps``                      pickles functions as well
==================================================  =================================================================
"""

from __future__ import annotations

import hashlib
import pickle
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import llvmlite  # type: ignore[import-untyped]
import numba

from rnncore.errors import ArgumentValueError
from rnncore.io.atomic import replace

DIGEST_BYTES = hashlib.sha256().digest_size
_warned: set[str] = set()


def keep(dispatcher: Any, name: str, version: int) -> None:
    """Let a function that is not compiled yet be read from disk and stored there.

    Parameters
    ----------
    dispatcher : numba.core.dispatcher.Dispatcher
    name : str
        The name of the function, part of the name of its file.
    version : int
        What it was made from. A file of another version is replaced.
    """
    try:
        cache = _Cache(name, version)
        _ = dispatcher._cache  # a missing name is noticed before anything is changed
        dispatcher.enable_caching()  # which looks for a folder that can be written to
        cache.cache_path = dispatcher.stats.cache_path
        dispatcher._cache = cache
    except RuntimeError as error:
        if "cannot cache" not in str(error):
            raise
    except (AttributeError, ImportError) as error:
        _warn("names", f"Numba {numba.__version__} has changed: compiled functions are not kept on disk: {error}")


class _Cache:
    """What Numba asks of a cache."""

    cache_path: str

    def __init__(self, name: str, version: int) -> None:
        from numba.core.compiler import CompileResult
        from numba.core.serialize import dumps

        self._name = name
        self._key = str(version), numba.__version__, llvmlite.__version__
        self._reduce: Callable[..., Any] = CompileResult._reduce
        self._rebuild: Callable[..., Any] = CompileResult._rebuild
        self._dumps: Callable[[Any], bytes] = dumps

    def load_overload(self, signature: Any, context: Any) -> Any:
        """Return the compiled function, or None if there is no sound file of it."""
        context.refresh()
        path, key = self._place(signature, context)
        try:
            raw = path.read_bytes()
            digest, body = raw[:DIGEST_BYTES], raw[DIGEST_BYTES:]
            if hashlib.sha256(body).digest() != digest:
                _warn("read", f"{path} is damaged; its function is compiled again, as are those of other damaged files")
                return None
            found, code = pickle.loads(body)
            return self._rebuild(context, *pickle.loads(code)) if found == key else None
        except FileNotFoundError:
            return None
        except Exception as error:  # pickle and LLVM raise anything; compiling again is always right
            _warn("read", f"{path} cannot be read, so its function is compiled again: {type(error).__name__}: {error}")
            return None

    def save_overload(self, signature: Any, result: Any) -> None:
        """Store a compiled function; warn if that fails."""
        path, key = self._place(signature, result.target_context)
        body = pickle.dumps((key, self._dumps(self._reduce(result))))
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            replace(path, lambda file: file.write(hashlib.sha256(body).digest() + body))
        except (OSError, ArgumentValueError) as error:
            _warn("write", f"{path} cannot be written, so its function is compiled in every process: {error}")

    def _place(self, signature: Any, context: Any) -> tuple[Path, tuple[str, ...]]:
        processor = repr(context.codegen().magic_tuple())
        # Processes on different processors and Pythons may share a folder.
        short = hashlib.sha256(processor.encode()).hexdigest()[:8]
        file = f"rnncore-{self._name}.{sys.implementation.cache_tag}-{short}.nbc"
        return Path(self.cache_path, file), (self._name, repr(signature), processor, *self._key)


def _warn(kind: str, text: str) -> None:
    """Warn once of each kind: there may be dozens of files."""
    if kind not in _warned:
        _warned.add(kind)
        warnings.warn(f"rnncore's kernels for Numba: {text}", RuntimeWarning, stacklevel=3)
