"""Which backends there are, by the metadata of the installed packages alone: nothing is imported to find out.

A package is a stranger's: a malformed file of one makes a row with the reason, and harms no other.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from importlib.metadata import Distribution, EntryPoint

__all__ = ["BackendStatus", "Claim", "Scan", "read_metadata", "words"]

GROUP = "rnncore.backends"
DISTRIBUTION = "rnncore"
ALLOWED_VARIABLE = "RNNCORE_PLUGINS"
UNKNOWN_PACKAGE = "unknown package"


@dataclass(frozen=True)
class BackendStatus:
    """One backend as :func:`backends` lists it.

    Attributes
    ----------
    name : str
        What :func:`get_backend` takes; with a package in brackets, as in "numpy (impostor)", an entry point that is not used
        because its name is another's, or cannot be read.
    usable : bool
        Whether nothing is known to stand in its way. The array library is not imported to find out; once it has been
        tried in this process, what happened then is what counts.
    reason : str
        Why it is not usable; empty if it is.
    distribution, version : str
        The package that brings it; empty where the entry point has none.
    """

    name: str
    usable: bool
    reason: str
    distribution: str
    version: str


@dataclass(frozen=True)
class Claim:
    """One entry point, and the package that brings it; empty strings where it has none."""

    entry: EntryPoint
    distribution: str
    version: str

    @property
    def ours(self) -> bool:
        """Whether it is of rnncore's own distribution."""
        return _normalized(self.distribution) == DISTRIBUTION

    @property
    def source(self) -> str:
        """For messages: the entry point and its package."""
        package = f"{self.distribution or f'an {UNKNOWN_PACKAGE}'} {self.version}".strip()
        return f"entry point {self.entry.name} = {self.entry.value} of {package}"

    def refused(self, name: str, reason: str) -> BackendStatus:
        """A row of its own, under a name that no backend can have."""
        label = f"{name} ({self.distribution or UNKNOWN_PACKAGE})"
        return BackendStatus(label, False, reason, self.distribution, self.version)


@dataclass(frozen=True)
class Scan:
    """What the metadata say: by name who claims it, the one that counts first; and what no name can be given to."""

    claims: dict[str, tuple[Claim, ...]]
    misfits: tuple[BackendStatus, ...]


def read_metadata() -> Scan:
    """Read the entry points of every installed package."""
    from importlib.metadata import distributions  # a fifth of the time that importing rnncore would take

    allowed = os.environ.get(ALLOWED_VARIABLE)
    names = None if allowed is None else {part.strip() for part in allowed.split(",")}
    claims: set[Claim] = set()
    misfits: list[BackendStatus] = []
    seen: set[str] = set()
    # Not entry_points(): one package with a malformed file makes it raise, and every backend would be gone.
    for dist in distributions():
        try:
            if GROUP not in (dist.read_text("entry_points.txt") or ""):
                continue
        except Exception:  # unreadable, so it cannot be known to be meant for us
            continue
        name, version = _said(dist, "name"), _said(dist, "version")
        if name and _normalized(name) in seen:
            continue  # a copy further down sys.path, whose modules an import would not find either
        seen.add(_normalized(name))
        try:
            found = [Claim(entry, name, version) for entry in dist.entry_points if entry.group == GROUP]
        except Exception as error:
            if names is None:
                reason = f"its entry_points.txt cannot be read: {words(error)}"
                misfits.append(BackendStatus(f"? ({name or UNKNOWN_PACKAGE})", False, reason, name, version))
            continue
        for claim in found:
            if names is not None and not claim.ours and claim.entry.name not in names:
                continue
            if re.fullmatch(r"[\w.-]+", claim.entry.name):
                claims.add(claim)
            else:
                why = "expected a name of letters, digits, dots, dashes and underscores"
                misfits.append(claim.refused(repr(claim.entry.name), why))
    by_name: dict[str, tuple[Claim, ...]] = {}
    # rnncore's own names cannot be taken: its entry comes first and is the one that counts. No order of sys.path is left.
    for claim in sorted(claims, key=lambda c: (c.entry.name, not c.ours, c.distribution, c.version, c.entry.value)):
        by_name[claim.entry.name] = (*by_name.get(claim.entry.name, ()), claim)
    return Scan(by_name, tuple(misfits))


def _said(dist: Distribution, what: str) -> str:
    """The name or the version, which a package with a damaged METADATA file lacks."""
    try:
        return str(getattr(dist, what) or "")
    except Exception:
        return ""


def _normalized(distribution: str) -> str:
    return re.sub(r"[-_.]+", "-", distribution).lower()  # packaging's rule for when two names are one


def words(error: BaseException) -> str:
    """The kind of an error and what it says."""
    kind = type(error).__name__
    try:
        return f"{kind}: {error}" if str(error) else kind
    except Exception:  # its __str__ is a stranger's too
        return kind
