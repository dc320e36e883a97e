"""The log of a monitor: an entry for each diagnosis, as one line of JSON, appended so that a crash tears at most the last.

{"rnncore_monitor": 1, "step": 100, "loss": 0.5, "verdict": "vanishing", "summary": ..., "evidence": [...], "norms": ...}
"""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO, NoReturn

from rnncore.diagnostics.monitor.norms import NormSummary
from rnncore.diagnostics.results import plain
from rnncore.diagnostics.verdict.verdict import Evidence
from rnncore.errors import FileFormatError
from rnncore.io.atomic import open_regular
from rnncore.io.paths import as_path, named, shown

__all__ = ["Entry", "LogFile", "read_log"]

VERSION = 1
BEGIN = f'{{"rnncore_monitor": {VERSION}, '
MAX_LINE = 2**20  # an entry has a few hundred bytes
NOT_FINITE = ("nan", "inf", "-inf")


@dataclass(frozen=True)
class Entry:
    """One diagnosis.

    Attributes
    ----------
    step : int
        Counted from 1.
    loss : float or None
    verdict, summary : str
    evidence : tuple of Evidence
    norms : NormSummary or None
        None before the first step with a norm.
    """

    step: int
    loss: float | None
    verdict: str
    summary: str
    evidence: tuple[Evidence, ...]
    norms: NormSummary | None

    def to_json(self) -> str:
        """One line of ASCII, without its end; numbers that JSON lacks as "nan", "inf" and "-inf"."""
        return json.dumps({"rnncore_monitor": VERSION, **plain(self)}, allow_nan=False)


class LogFile:
    """A file to which lines are appended, each with one system call, after a line that a crash has torn."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._path = as_path(path)
        with named(self._path):
            self._file = open(self._path, "ab", buffering=0)  # noqa: SIM115
            try:
                if self._is_torn():
                    self._file.write(b"\n")
            except BaseException:
                self._file.close()
                raise

    def append(self, line: str) -> None:
        """Append the line and its end."""
        left = memoryview(line.encode() + b"\n")
        with named(self._path):
            while left:
                left = left[self._file.write(left) or 0 :]

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _is_torn(self) -> bool:
        if not stat.S_ISREG(os.fstat(self._file.fileno()).st_mode) or self._file.tell() == 0:
            return False
        with open(self._path, "rb") as old:
            old.seek(-1, os.SEEK_END)
            return old.read(1) != b"\n"


def read_log(path: str | os.PathLike[str]) -> list[Entry]:
    """The entries of a log, in order. A line that was torn by a crash is left out.

    Parameters
    ----------
    path : str or path-like
        Of a file that a :class:`Monitor` wrote.

    Returns
    -------
    list of Entry
        Empty for an empty file.

    Raises
    ------
    FileAccessError
        Among them FileMissingError, which is a FileNotFoundError.
    FileFormatError
        For a line that is no entry, with its number.

    Examples
    --------
    >>> import os, tempfile, numpy as np, rnncore
    >>> from rnncore.diagnostics.monitor.monitor import Monitor
    >>> from rnncore.diagnostics.monitor.log import read_log
    >>> path = os.path.join(tempfile.mkdtemp(), "log.jsonl")
    >>> with Monitor(every=1, sink=path) as monitor:
    ...     _ = monitor.step(rnncore.RNN(3, 4, rng=0), np.ones((50, 2, 3)), loss=float("nan"))
    >>> [(e.step, e.loss, e.verdict) for e in read_log(path)]
    [(1, nan, 'vanishing')]
    """
    try:
        with open_regular(path) as file:
            return list(_entries(file))
    except FileFormatError as error:
        raise FileFormatError(f"{shown(path)}: {error}") from error


def _entries(file: BinaryIO) -> Iterator[Entry]:
    number = 0
    while line := file.readline(MAX_LINE + 1):
        number += 1
        if len(line) > MAX_LINE:
            raise FileFormatError(f"line {number}: expected at most {MAX_LINE} bytes")
        text = line.decode("ascii", "replace").removesuffix("\n")
        try:
            content = json.loads(text, parse_constant=_refuse)
        except (ValueError, RecursionError):
            if text.startswith(BEGIN) or BEGIN.startswith(text):
                continue
            raise FileFormatError(f"line {number}: expected an entry of a monitor's log") from None
        try:
            yield _entry(content)
        except (KeyError, TypeError, ValueError, AttributeError):
            raise FileFormatError(f"line {number}: expected an entry of a monitor's log, version {VERSION}") from None


def _entry(content: Any) -> Entry:
    """Read an entry; raises KeyError, TypeError, ValueError or AttributeError for anything else."""
    if content["rnncore_monitor"] != VERSION:
        raise ValueError
    norms = content["norms"]
    return Entry(
        _int(content["step"]),
        None if content["loss"] is None else _in(content["loss"]),
        _str(content["verdict"]),
        _str(content["summary"]),
        tuple(
            Evidence(_str(e["metric"]), _in(e["value"]), _in(e["threshold"]), _str(e["where"]))
            for e in content["evidence"]
        ),
        None
        if norms is None
        else NormSummary(
            _int(norms["steps"]),
            _int(norms["nonfinite"]),
            None if norms["first_nonfinite"] is None else _int(norms["first_nonfinite"]),
            _in(norms["mean"]),
            {float(q): _in(v) for q, v in norms["quantiles"].items()},
        ),
    )


def _in(value: Any) -> float:
    if isinstance(value, bool) or not (isinstance(value, (int, float)) or value in NOT_FINITE):
        raise TypeError
    return float(value)


def _int(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError
    return value


def _str(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError
    return value


def _refuse(constant: str) -> NoReturn:
    raise ValueError(constant)
