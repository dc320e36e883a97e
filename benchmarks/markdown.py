"""Numbers as text: tables, milliseconds, ratios with their intervals, percentages."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.ratios import Estimate

# Between the ends of an interval, and in the place of a missing number.
DASH = ABSENT = "\N{EN DASH}"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Format a Markdown table; the first column is text, the others are numbers.

    >>> print(table(["a", "b"], [["x", "1"]]))
    | a | b |
    |---|--:|
    | x | 1 |
    """
    lines = [f"| {' | '.join(head)} |", "|---" + "|--:" * (len(head) - 1) + "|"]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)])


def milliseconds(seconds: float | None) -> str:
    """Format seconds as milliseconds with three digits.

    >>> milliseconds(0.0012345), milliseconds(1.5), milliseconds(None)
    ('1.23', '1500', '–')
    """
    if seconds is None:
        return ABSENT
    value = 1e3 * seconds
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def seconds(value: float | None) -> str:
    """Format with three digits.

    >>> seconds(1234.5), seconds(0.012345), seconds(None)
    ('1.23e+03', '0.0123', '–')
    """
    return ABSENT if value is None else f"{value:.3g}"


def times(estimate: Estimate | None) -> str:
    """Format a ratio and its interval.

    >>> times(Estimate(1.234, 1.1, 1.3))
    '1.23 (1.10–1.30)'
    """
    if estimate is None:
        return ABSENT
    digits = [f"{v:.2f}" if v < 10 else f"{v:.1f}" for v in (estimate.value, estimate.low, estimate.high)]
    return f"{digits[0]} ({digits[1]}{DASH}{digits[2]})"


def percent(value: float | None) -> str:
    """Format a part as a percentage without decimals."""
    return ABSENT if value is None else f"{100 * value:.0f} %"


def sizes(shape: Sequence[int]) -> str:
    """Format a shape as T, B, H."""
    return ", ".join(map(str, shape))


def threads(count: int) -> str:
    """Format a number of threads: 1 thread, 2 threads."""
    return f"{count} thread{'s' if count > 1 else ''}"


def mebibytes(size: float) -> str:
    """Format bytes as MiB with at least two digits.

    >>> mebibytes(3 * 2**19), mebibytes(20 * 2**20)
    ('1.5', '20')
    """
    return f"{size / 2**20:.0f}" if size >= 10 * 2**20 else f"{size / 2**20:.1f}"
