"""Mutants that survive: those that survivors.toml explains, and those that it does not."""

import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from tests.mutants.modules import Module
from tests.mutants.operators import Mutant
from tests.mutants.run import Result

LISTED = Path(__file__).with_name("survivors.toml")
LEAST_SCORE = 0.95


class Entry(NamedTuple):
    """A mutant of survivors.toml. An equivalent one computes the same; no test can notice it, so it does not count."""

    key: tuple[str, str, str, int]
    equivalent: bool
    reason: str


class Row(NamedTuple):
    """The score of a module, and what is wrong, one line each."""

    text: str
    faults: list[str]


def listed(name: str, path: Path = LISTED) -> list[Entry]:
    """The entries of a module."""
    rows = tomllib.loads(path.read_text()).get(name, [])
    return [
        Entry((row["function"], row["was"], row["now"], row.get("nth", 1)), row["equivalent"], row["reason"])
        for row in rows
    ]


def described(module: Module, mutant: Mutant) -> str:
    """A mutant in the words of an entry."""
    nth = f"\nnth = {mutant.nth}" if mutant.nth > 1 else ""
    return (
        f"# {mutant.number}, {module.path}:{mutant.line}\nfunction = {mutant.function!r}\n"
        f"was = {_quoted(mutant.was)}\nnow = {_quoted(mutant.now)}{nth}\n"
    )


def judged(
    name: str, module: Module, found: Sequence[Mutant], results: Sequence[Result], entries: Sequence[Entry]
) -> Row:
    """The score of a module: the share of the mutants noticed, among those that are not equivalent."""
    reasons = {entry.key: entry for entry in entries}
    count = {outcome: sum(r.outcome == outcome for r in results) for outcome in ("killed", "timeout", "survived")}
    survived = {r.mutant.key for r in results if r.outcome == "survived"}
    equivalent = sum(reasons[key].equivalent for key in survived & reasons.keys())
    counted = len(results) - equivalent
    score = (counted - count["survived"] + equivalent) / counted if counted else 1.0
    text = (
        f"{name}: {len(results)} of {len(found)} mutants, {count['killed']} killed, {count['timeout']} out of time, "
        f"{equivalent} equivalent, {count['survived'] - equivalent} survived: {100 * score:.1f} %"
    )
    faults = [f"survives and is not listed:\n{described(module, r.mutant)}" for r in results if _unlisted(r, reasons)]
    ran, there = {r.mutant.key for r in results}, {mutant.key for mutant in found}
    faults += [f"listed, and noticed by a test: {key}" for key in reasons.keys() & (ran - survived)]
    faults += [f"listed, and no mutant of the module: {key}" for key in reasons.keys() - there]
    if score < LEAST_SCORE:
        faults.append(f"the score is below {100 * LEAST_SCORE:.0f} %")
    return Row(text, faults)


def _unlisted(result: Result, reasons: dict[tuple[str, str, str, int], Entry]) -> bool:
    return result.outcome == "survived" and result.mutant.key not in reasons


def _quoted(text: str) -> str:
    return f"'{text}'" if "'" not in text else f"'''{text}'''"
