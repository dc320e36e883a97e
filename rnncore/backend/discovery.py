"""Find the installed backends from package metadata alone, without importing anything.

rnncore's own backends are those of the package that contains the imported rnncore: a name in metadata proves nothing. Any
installed package may be damaged: a malformed file in one makes a row with the reason and affects no other package.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rnncore.arguments import brief, lines

if TYPE_CHECKING:
    from importlib.metadata import Distribution, EntryPoint


GROUP = "rnncore.backends"
DISTRIBUTION = "rnncore"
ALLOWED_VARIABLE = "RNNCORE_PLUGINS"
UNKNOWN_PACKAGE = "unknown package"
HERE = Path(__file__).parents[1]  # the imported rnncore


@dataclass(frozen=True)
class BackendStatus:
    """State of one backend, as listed by :func:`backends`.

    Attributes
    ----------
    name : str
        Name for :func:`get_backend`. With a package in brackets, as in "numpy (impostor)", it is an entry point that is
        not used: another has the name, or the entry point cannot be read.
    usable : bool
        Whether nothing is known to prevent its use. The array library is not imported to find out; once it has been
        tried in this process, the outcome counts.
    reason : str
        Why it is not usable; empty if it is.
    distribution, version : str
        Package that registers it; empty if the entry point has none.
    """

    name: str
    usable: bool
    reason: str
    distribution: str
    version: str


@dataclass(frozen=True)
class Claim:
    """An entry point, with its package; empty strings if it has none. `ours`: the package contains the imported rnncore."""

    entry: EntryPoint
    distribution: str
    version: str
    ours: bool = False

    @property
    def source(self) -> str:
        """Entry point and package, for messages."""
        package = f"{self.distribution or f'an {UNKNOWN_PACKAGE}'} {self.version}".strip()
        return f"entry point {self.entry.name} = {brief(self.entry.value)} of {package}"

    def install_command(self, package: str) -> str:
        """Command that installs the plugin's library."""
        return (
            f'pip install "{DISTRIBUTION}[{self.entry.name}]"' if self.ours else f"pip install {top_package(package)}"
        )

    def refused(self, name: str, reason: str) -> BackendStatus:
        """Row for an entry point that is not used, under a name that no backend can have."""
        label = f"{brief(name)} ({self.distribution or UNKNOWN_PACKAGE})"
        return BackendStatus(label, False, reason, self.distribution, self.version)


@dataclass(frozen=True)
class Scan:
    """Result of reading the metadata.

    Attributes
    ----------
    claims : dict of str to Claim
        Entry point of each name that can be used.
    contests : dict of str to str
        Names that several packages register, with the reason why none is used.
    refused : tuple of BackendStatus
        A row for each entry point that is not used.
    """

    claims: dict[str, Claim]
    contests: dict[str, str]
    refused: tuple[BackendStatus, ...]


def read_metadata() -> Scan:
    """Read the entry points of every installed package.

    rnncore's own names cannot be taken by another package. Any other name that two packages register is used for none.
    The result does not depend on the order of ``sys.path``.
    """
    found, rows = _read_entry_points()
    by_name: dict[str, list[Claim]] = {}
    for claim in sorted(found, key=lambda c: (c.entry.name, not c.ours, c.distribution, c.version, c.entry.value)):
        by_name.setdefault(claim.entry.name, []).append(claim)
    claims, contests = {}, {}
    for name, (first, *others) in by_name.items():
        if first.ours or not others:
            claims[name] = first
            why = f"{name!r} is {DISTRIBUTION}'s own name: this entry point ({{}}) is ignored"
            rows += [claim.refused(name, why.format(brief(claim.entry.value))) for claim in others]
            continue
        both = [first, *others]
        sources = ", ".join(f"{c.distribution or UNKNOWN_PACKAGE} ({brief(c.entry.value)})" for c in both)
        contests[name] = f"{name!r} is registered more than once, by {sources}; uninstall all but one"
        rows += [claim.refused(name, contests[name]) for claim in both]
    return Scan(claims, contests, tuple(_numbered(rows)))


def top_package(package: str) -> str:
    """First part of a dotted name."""
    return package.partition(".")[0]


def words(error: BaseException) -> str:
    """Type and message of an error, which may be a plugin's."""
    kind = brief(type(error).__name__)
    try:
        return f"{kind}: {text}" if (text := lines(error)) else kind
    except KeyboardInterrupt:
        raise
    except BaseException:  # its __str__ is a plugin's code too
        return kind


def _read_entry_points() -> tuple[set[Claim], list[BackendStatus]]:
    """Entry points that are allowed and have a valid name, and rows for what cannot be read."""
    setting = os.environ.get(ALLOWED_VARIABLE)
    allowed = None if setting is None else {part.strip() for part in setting.split(",")}
    claims: set[Claim] = set()
    rows = []
    packages = list(_packages())
    own = _own([package for package, name, _ in packages if _normalized(name) == DISTRIBUTION])
    for package, name, version in packages:
        try:
            entries = [
                Claim(entry, name, version, package is own) for entry in package.entry_points if entry.group == GROUP
            ]
        except Exception as error:
            if allowed is None:
                reason = f"its entry_points.txt cannot be read: {words(error)}"
                rows.append(BackendStatus(f"? ({name or UNKNOWN_PACKAGE})", False, reason, name, version))
            continue
        for claim in entries:
            if allowed is not None and not claim.ours and claim.entry.name not in allowed:
                continue
            if re.fullmatch(r"[\w.-]+", claim.entry.name):
                claims.add(claim)
            else:
                why = "expected a name of letters, digits, dots, dashes and underscores"
                rows.append(claim.refused(repr(claim.entry.name), why))
    if own is None:
        claims |= _source_tree()
    return _without_namesakes(claims, rows), rows


def _own(packages: list[Distribution]) -> Distribution | None:
    """The package, of those named rnncore, that contains the imported rnncore, if that can be told."""
    best = max(packages, key=_proof, default=None)  # of equal ones the first on sys.path
    return best if best is not None and _proof(best) else None


def _proof(package: Distribution) -> int:
    """2 if the package says that it contains the imported rnncore, 1 if it lies beside it and says nothing, 0 otherwise."""
    import json
    from urllib.parse import urlsplit
    from urllib.request import url2pathname

    try:
        origin = json.loads(package.read_text("direct_url.json") or "{}")
        if origin.get("dir_info", {}).get("editable") and _is_here(url2pathname(urlsplit(origin["url"]).path)):
            return 2
        if not _is_here(str(package.locate_file(""))):
            return 0
        files = package.files
        return 1 if files is None else 2 * (Path(DISTRIBUTION, "__init__.py") in map(Path, files))
    except Exception:  # unreadable, so no proof; its entry points make rows of their own
        return 0


def _is_here(folder: str) -> bool:
    def place(path: str) -> str:
        return os.path.normcase(os.path.realpath(path))

    return place(folder) == place(str(HERE.parent))


def _source_tree() -> set[Claim]:
    """The backends of a source tree that is not installed, from its pyproject.toml; empty if there is none."""
    import tomllib
    from importlib.metadata import EntryPoint

    try:
        project: dict[str, Any] = tomllib.loads((HERE.parent / "pyproject.toml").read_text(encoding="utf-8"))["project"]
        entries = project["entry-points"][GROUP].items() if project["name"] == DISTRIBUTION else ()
        return {Claim(EntryPoint(n, value, GROUP), DISTRIBUTION, project["version"], True) for n, value in entries}
    except (OSError, ValueError, LookupError, AttributeError, TypeError):  # no source tree of this project
        return set()


def _without_namesakes(claims: set[Claim], rows: list[BackendStatus]) -> set[Claim]:
    """The claims without those of other packages named rnncore, which get rows; all claims if none is known to be ours."""
    known = {(claim.entry.name, claim.entry.value) for claim in claims if claim.ours}
    namesakes = {c for c in claims if known and not c.ours and _normalized(c.distribution) == DISTRIBUTION}
    for claim in namesakes:
        if (claim.entry.name, claim.entry.value) not in known:  # the same one is another copy of ours
            why = f"its package does not contain the {DISTRIBUTION} that is imported from {str(HERE)!r}"
            rows.append(
                claim.refused(claim.entry.name, f"{why}: this entry point ({brief(claim.entry.value)}) is ignored")
            )
    return claims - namesakes


def _packages() -> Iterator[tuple[Distribution, str, str]]:
    """Installed packages with an entry point for rnncore: the package, its name and its version."""
    from importlib.metadata import distributions  # slow to import: a fifth of importing rnncore

    seen: set[str] = set()
    # Not importlib.metadata.entry_points(), which raises if any package has a malformed file.
    for package in distributions():
        try:
            if GROUP not in (package.read_text("entry_points.txt") or ""):
                continue
        except Exception:  # unreadable, so not known to concern rnncore
            continue
        name, version = _field(package, "name"), _field(package, "version")
        if name and _normalized(name) in seen and _normalized(name) != DISTRIBUTION:
            continue  # a copy later on sys.path, which imports would not find either
        seen.add(_normalized(name))
        yield package, name, version


def _field(package: Distribution, field: str) -> str:
    """Name or version, or "" if the package's METADATA file is damaged."""
    try:
        return brief(getattr(package, field) or "")
    except Exception:  # the parser of a damaged file may raise anything; its row shows that the package is unknown
        return ""


def _normalized(distribution: str) -> str:
    return re.sub(r"[-_.]+", "-", distribution).lower()  # the rule of the packaging standard


def _numbered(rows: list[BackendStatus]) -> Iterator[BackendStatus]:
    """Number the rows that have the same name."""
    seen: Counter[str] = Counter()
    for row in sorted(rows, key=lambda row: (row.name, row.reason)):
        seen[row.name] += 1
        yield row if seen[row.name] == 1 else replace(row, name=f"{row.name} {seen[row.name]}")
