"""Products of small triangular factors of any grading, and their singular values to nearly full relative accuracy.

Host numbers in float64. Every row of the product is a logarithm and a unit vector. So neither a thousand small factors nor a
row that is 1e-1000 times another underflows. One-sided Jacobi computes each singular value accurately for any grading of the
rows (Demmel and Veselic 1992, "Jacobi's method is more accurate than QR").
"""

from __future__ import annotations

import numpy as np

from rnncore.typing import Host

__all__ = ["Triangle"]

EPS = 2.0**-52
JACOBI_SWEEPS = 40


class Triangle:
    """The product of triangular factors as ``diag(exp(log)) unit``, each row with its own scale: (B, k) and (B, k, k)."""

    def __init__(self, rows: int, k: int) -> None:
        self.log = np.zeros((rows, k))
        self.unit = np.broadcast_to(np.eye(k), (rows, k, k))

    def take(self, r: Host) -> None:
        """Multiply by r (B, k, k) from the left."""
        with np.errstate(divide="ignore", invalid="ignore"):
            terms = np.log(np.abs(r)) + self.log[:, None, :]
            scale = terms.max(axis=2)
            terms = np.exp(terms - np.where(scale == -np.inf, 0.0, scale)[..., None])
        self.log, self.unit = _normal(scale, (np.sign(r) * terms) @ self.unit)

    def singular(self) -> tuple[Host, Host, Host]:
        """Return ln of the singular values (B, k), descending, and the left and right vectors as rows (B, k, k).

        Uses one-sided Jacobi on the rows. In units of the longer row, with r <= 1 the ratio of the lengths and g the cosine,
        ``tan = 2 r g / (1 - r^2 + sqrt((1 - r^2)^2 + 4 r^2 g^2))``. tan / r, the multiple of the longer row that is subtracted
        from the shorter one, stays in range where r underflows.
        """
        log, unit = self.log.copy(), self.unit.copy()
        rows, k = log.shape
        turned = np.broadcast_to(np.eye(k), (rows, k, k)).copy()
        for _ in range(JACOBI_SWEEPS if k > 1 else 0):
            off = 0.0
            for pair in _rounds(k):
                off = max(off, _rotate(log, unit, turned, pair))
            if not off > k * EPS:
                break
        order = np.argsort(-log, axis=1, kind="stable")
        take = order[..., None]
        return (
            np.take_along_axis(log, order, axis=1),
            np.take_along_axis(turned, take, axis=1),
            np.take_along_axis(unit, take, axis=1),
        )


def _rotate(log: Host, unit: Host, turned: Host, pair: Host) -> float:
    """Make the rows of disjoint pairs (2, n) orthogonal, in place; return the largest cosine before."""
    swap = log[:, pair[1]] > log[:, pair[0]]
    p, q = np.where(swap, pair[1], pair[0]), np.where(swap, pair[0], pair[1])
    b = np.arange(len(log))[:, None]
    n_p, n_q = unit[b, p], unit[b, q]
    g = (n_p * n_q).sum(axis=2)
    with np.errstate(invalid="ignore"):
        r = np.exp(np.where(log[b, p] == -np.inf, 0.0, log[b, q] - log[b, p]))
    rest = 1 - r * r
    below = rest + np.sqrt(rest * rest + 4 * (r * g) ** 2)
    share = 2 * g / np.where(below == 0, 1.0, below)
    c = 1 / np.sqrt(1 + (r * share) ** 2)
    s = c * r * share
    c1, s1 = c[..., None], s[..., None]
    log[b, p], unit[b, p] = _normal(log[b, p], c1 * n_p + (s * r)[..., None] * n_q)
    log[b, q], unit[b, q] = _normal(log[b, q], c1 * n_q - (c * share)[..., None] * n_p)
    t_p, t_q = turned[b, p], turned[b, q]
    turned[b, p], turned[b, q] = c1 * t_p + s1 * t_q, c1 * t_q - s1 * t_p
    return float(np.fmax.reduce(np.abs(g), axis=None, initial=0.0))  # a row of NaN is ignored


def _normal(log: Host, rows: Host) -> tuple[Host, Host]:
    """Normalise the rows and move their lengths into the logarithms; set the rounding error left of equal rows to 0."""
    size = np.sqrt((rows * rows).sum(axis=-1))
    none = ~(size > 4 * rows.shape[-1] * EPS) & ~np.isnan(size)
    safe = np.where(none, 1.0, size)
    with np.errstate(divide="ignore"):
        return np.where(none, -np.inf, log + np.log(safe)), np.where(none[..., None], 0.0, rows / safe[..., None])


def _rounds(k: int) -> list[Host]:
    """All pairs of k, each once, in rounds of disjoint pairs (a round-robin tournament)."""
    seats = list(range(k + k % 2))
    out = []
    for _ in range(len(seats) - 1):
        half = len(seats) // 2
        pairs = [(a, b) for a, b in zip(seats[:half], seats[: half - 1 : -1], strict=True) if max(a, b) < k]
        out.append(np.array(pairs).T)
        seats = [seats[0], seats[-1], *seats[1:-1]]
    return out
