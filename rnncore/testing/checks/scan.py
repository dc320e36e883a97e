"""SCAN: the backend's scans against the same recurrences in float64, one row and one step at a time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from rnncore.nonlinearity import NONLINEARITIES, Nonlinearity, as_nonlinearity, custom_nonlinearity, get_nonlinearity
from rnncore.testing.check import FLOAT32, check
from rnncore.testing.tools.oracle import linear_scan, nonlinear_scan
from rnncore.testing.tools.requests import serpentine
from rnncore.testing.tools.subject import Subject
from rnncore.typing import Array, Host

STEPS, BATCH, WIDTH = 6, 3, 5
LONG = 300
WIDE = 70  # more than one tile of any kernel, and a multiple of no tile size
STABLE = 0.9


class Scan:
    """Arguments of both scans on the host, and comparisons of both scans with the oracle."""

    def __init__(self, s: Subject, steps: int = STEPS, batch: int = BATCH, width: int = WIDTH, radius: float = 1.0):
        self.s = s
        self.p, self.h0, self.w = s.draw(steps, batch, width), s.draw(batch, width), s.weights(width, radius)
        self.u, self.d = s.draw(steps, batch, width), s.draw(steps, batch, width, scale=0.5)

    def run_nonlinear(self, f: Nonlinearity, *, reverse: bool = False, kernel: Any = None) -> Array:
        """Run the nonlinear scan on the backend."""
        s = self.s
        with s.scope():
            p, h0, w = s.give(self.p), s.give(self.h0), s.give(self.w)
            return s.engine(kernel).nonlinear(p, h0, w, nonlinearity=f, reverse=reverse)

    def run_linear(self, *, reverse: bool = False) -> Array:
        """Run the linear scan on the backend."""
        s = self.s
        with s.scope():
            return s.engine().linear(s.give(self.u), s.give(self.d), s.give(self.h0), s.give(self.w), reverse=reverse)

    def nonlinear(self, name: str = "tanh", *, reverse: bool = False, clip: float | None = None) -> None:
        """Compare the nonlinear scan with the oracle."""
        got = self.run_nonlinear(as_nonlinearity(name, clip=clip), reverse=reverse)
        limit = np.inf if clip is None else clip
        want = nonlinear_scan(self.p, self.h0, self.w, name, reverse=reverse, clip=limit)
        self.s.compare(f"h ({name}{', reverse' if reverse else ''})", got, want, tolerance="states")

    def linear(self, *, reverse: bool = False) -> None:
        """Compare the linear scan with the oracle."""
        want = linear_scan(self.u, self.d, self.h0, self.w, reverse=reverse)
        got = self.run_linear(reverse=reverse)
        self.s.compare(f"s{' (reverse)' if reverse else ''}", got, want, tolerance="gradients")


@check("RC-SCAN-001", "the nonlinear scan with tanh is h_t = tanh(p_t + h_{t-1} W^T)")
def nonlinear_tanh(s: Subject) -> None:
    Scan(s).nonlinear("tanh")


@check("RC-SCAN-002", "the nonlinear scan with relu")
def nonlinear_relu(s: Subject) -> None:
    Scan(s).nonlinear("relu")


@check("RC-SCAN-003", "the nonlinear scan with the logistic function")
def nonlinear_sigmoid(s: Subject) -> None:
    Scan(s).nonlinear("sigmoid")


@check("RC-SCAN-004", "the nonlinear scan with the identity")
def nonlinear_identity(s: Subject) -> None:
    Scan(s).nonlinear("identity")


@check("RC-SCAN-005", "the nonlinear scan with the other named functions")
def nonlinear_others(s: Subject) -> None:
    for name in NONLINEARITIES:
        if name not in ("tanh", "relu", "sigmoid", "identity"):
            Scan(s).nonlinear(name)


@check("RC-SCAN-006", "the nonlinear scan clips the pre-activation before it applies the function")
def nonlinear_clip(s: Subject) -> None:
    for name in ("tanh", "relu", "sigmoid", "identity"):
        Scan(s).nonlinear(name, clip=0.5)


@check("RC-SCAN-007", "the reverse nonlinear scan runs from the last step to the first and keeps the order of results")
def nonlinear_reverse(s: Subject) -> None:
    for name in ("tanh", "relu"):
        Scan(s).nonlinear(name, reverse=True)


@check("RC-SCAN-008", "the nonlinear scan uses its initial state", tolerance="states")
def nonlinear_first_state(s: Subject) -> None:
    for reverse in (False, True):
        scan = Scan(s)
        scan.p *= 0.0
        scan.nonlinear("tanh", reverse=reverse)


@check("RC-SCAN-009", "the nonlinear scan of one step, one row or one unit, and of all three")
def nonlinear_ones(s: Subject) -> None:
    for shape in ((1, BATCH, WIDTH), (STEPS, 1, WIDTH), (STEPS, BATCH, 1), (1, 1, 1)):
        for reverse in (False, True):
            Scan(s, *shape).nonlinear("tanh", reverse=reverse)


@check("RC-SCAN-010", "the nonlinear scan over 300 steps keeps its accuracy")
def nonlinear_long(s: Subject) -> None:
    Scan(s, LONG, 2, WIDTH, STABLE).nonlinear("tanh")


@check("RC-SCAN-011", "the nonlinear scan of 70 units: every unit reads every unit")
def nonlinear_wide(s: Subject) -> None:
    Scan(s, 4, 2, WIDE, STABLE).nonlinear("tanh")
    Scan(s, 4, 2, WIDE, STABLE).nonlinear("relu", reverse=True)


@check("RC-SCAN-012", "the nonlinear scan with a custom function", tolerance="states")
def nonlinear_custom(s: Subject) -> None:
    scan = Scan(s)
    s.compare("h", scan.run_nonlinear(serpentine(), kernel="auto"), _stepped(scan, lambda z: z / (1 + z * z)))


@check("RC-SCAN-013", "the nonlinear scan without rows or without steps is empty, with the right shape")
def nonlinear_empty(s: Subject) -> None:
    for shape in ((STEPS, 0, WIDTH), (0, BATCH, WIDTH)):
        Scan(s, *shape).nonlinear("tanh")


@check("RC-SCAN-014", "the linear scan is s_t = d_t * (u_t + s_{t-1} M)")
def linear_forwards(s: Subject) -> None:
    Scan(s).linear()


@check("RC-SCAN-015", "the reverse linear scan carries s_{t+1}")
def linear_reverse(s: Subject) -> None:
    Scan(s).linear(reverse=True)


@check("RC-SCAN-016", "the linear scan uses its initial state")
def linear_first_state(s: Subject) -> None:
    for reverse in (False, True):
        scan = Scan(s)
        scan.u *= 0.0
        scan.linear(reverse=reverse)


@check("RC-SCAN-017", "where d is exactly 0 the linear scan is exactly 0 and carries nothing over", tolerance="exact")
def linear_zero_factor(s: Subject) -> None:
    scan = Scan(s)
    scan.d[2] = 0.0
    for reverse in (False, True):
        scan.linear(reverse=reverse)
        got = s.host(scan.run_linear(reverse=reverse))
        s.compare("s where d is 0", got[2], np.zeros((BATCH, WIDTH)))


@check("RC-SCAN-018", "the linear scan of one step, one row or one unit, without rows and without steps")
def linear_edges(s: Subject) -> None:
    shapes = ((1, BATCH, WIDTH), (STEPS, 1, WIDTH), (STEPS, BATCH, 1), (STEPS, 0, WIDTH), (0, BATCH, WIDTH))
    for shape in shapes:
        for reverse in (False, True):
            Scan(s, *shape).linear(reverse=reverse)


@check("RC-SCAN-019", "the linear scan keeps its accuracy over 300 steps and with 70 units")
def linear_long_and_wide(s: Subject) -> None:
    long, wide = Scan(s, LONG, 2, WIDTH, STABLE), Scan(s, 4, 2, WIDE, STABLE)
    long.d = np.ones(long.d.shape)
    for scan in (long, wide):
        for reverse in (False, True):
            scan.linear(reverse=reverse)


@check("RC-SCAN-020", "without overwrite, a scan changes no argument and returns a new array")
def scans_leave_their_arguments(s: Subject) -> None:
    scan, f = Scan(s), as_nonlinearity("tanh")
    given = {n: s.give(getattr(scan, n)) for n in ("p", "u", "d", "h0", "w")}
    with s.scope():
        for reverse in (False, True):
            h = s.engine().nonlinear(given["p"], given["h0"], given["w"], nonlinearity=f, reverse=reverse)
            r = s.engine().linear(given["u"], given["d"], given["h0"], given["w"], reverse=reverse)
            s.expect(h is not given["p"] and r is not given["d"], "a scan returned its argument")
    for name, x in given.items():
        s.compare(name, x, getattr(scan, name), tolerance="exact")


@check("RC-SCAN-021", "with overwrite, a scan returns the same numbers and changes no other argument")
def scans_may_overwrite(s: Subject) -> None:
    scan, f = Scan(s), as_nonlinearity("relu")
    for reverse in (False, True):
        given = {n: s.give(getattr(scan, n)) for n in ("p", "u", "d", "h0", "w")}
        with s.scope():
            options: dict[str, Any] = {"reverse": reverse, "overwrite": True}
            h = s.engine().nonlinear(given["p"], given["h0"], given["w"], nonlinearity=f, **options)
            r = s.engine().linear(given["u"], given["d"], given["h0"], given["w"], **options)
        want: Host = nonlinear_scan(scan.p, scan.h0, scan.w, "relu", reverse=reverse)
        s.compare("h", h, want, tolerance="states")
        s.compare("s", r, linear_scan(scan.u, scan.d, scan.h0, scan.w, reverse=reverse), tolerance="gradients")
        for name in ("u", "h0", "w"):
            s.compare(name, given[name], getattr(scan, name), tolerance="exact")


@check("RC-SCAN-022", "scans accept views: transposed matrices, slices of time and of the batch")
def scans_take_views(s: Subject) -> None:
    scan, f = Scan(s), as_nonlinearity("tanh")
    xp = s.xp
    with s.scope():
        w = xp.matrix_transpose(s.give(np.ascontiguousarray(scan.w.T)))
        p = s.give(np.repeat(scan.p, 2, axis=0))[1::2, ...]
        p = xp.permute_dims(xp.asarray(xp.permute_dims(p, (1, 2, 0)), copy=True), (2, 0, 1))
        h0 = s.give(np.concatenate([scan.h0, scan.h0], axis=1))[:, :WIDTH]
        h = s.engine().nonlinear(p, h0, w, nonlinearity=f, reverse=False)
        d = xp.permute_dims(s.give(np.ascontiguousarray(scan.d.transpose(2, 0, 1))), (1, 2, 0))
        r = s.engine().linear(p, d, h0, w, reverse=True)
    s.compare("h", h, nonlinear_scan(scan.p, scan.h0, scan.w, "tanh"), tolerance="states")
    s.compare("s", r, linear_scan(scan.p, scan.d, scan.h0, scan.w, reverse=True), tolerance="gradients")


@check("RC-SCAN-023", "the linear scan is causal: a source affects only its own and later steps", tolerance="exact")
def linear_is_causal(s: Subject) -> None:
    for reverse in (False, True):
        scan = Scan(s)
        scan.h0 *= 0.0
        scan.u *= 0.0
        scan.u[3] = 1.0
        got = s.host(scan.run_linear(reverse=reverse))
        before = got[4:] if reverse else got[:3]
        after = got[:4] if reverse else got[3:]
        s.compare("s before the source", before, np.zeros(before.shape))
        s.expect((np.abs(after).max(axis=(1, 2)) > 0).all(), "s after the source: expected numbers, got 0")
        scan.linear(reverse=reverse)


@check("RC-SCAN-024", "a single call leaves its arguments unchanged", tolerance="exact")
def every_call_leaves_its_arguments(s: Subject) -> None:
    scan, f = Scan(s), as_nonlinearity("tanh")
    for reverse in (False, True):
        for names in (("p", "h0", "w"), ("u", "d", "h0", "w")):
            given = {n: s.give(getattr(scan, n)) for n in names}
            with s.scope():
                if "p" in given:
                    s.engine().nonlinear(*given.values(), nonlinearity=f, reverse=reverse)
                else:
                    s.engine().linear(*given.values(), reverse=reverse)
            for name, x in given.items():
                s.compare(name, x, getattr(scan, name))


@check("RC-SCAN-025", "sizes beyond one block of a kernel: 70 rows, a ring of 1100 units, 300 steps", dtypes=FLOAT32)
def sizes_past_a_block(s: Subject) -> None:
    rows, ring, long = Scan(s, STEPS, WIDE), Scan(s, 2, 1, 1), Scan(s, LONG, 2, WIDTH, STABLE)
    ring.p, ring.u, ring.d = (s.draw(2, 1, RING) for _ in range(3))
    ring.h0, ring.w = s.draw(1, RING), np.roll(np.eye(RING), 1, axis=0)  # each unit reads its neighbour, the last too
    for scan in (rows, ring):
        scan.nonlinear("tanh")
        scan.linear(reverse=True)
    long.nonlinear("tanh", reverse=True)


@check("RC-SCAN-026", "functions use their alpha and beta", tolerance="gradients", dtypes=FLOAT32)
def nonlinear_parameters(s: Subject) -> None:
    for name, parameters, function in FAMILIES:
        scan = Scan(s)
        got = scan.run_nonlinear(get_nonlinearity(name, **parameters), kernel="auto")
        s.compare(f"h ({name} of {parameters})", got, _stepped(scan, function), floor=1.0)


@check("RC-SCAN-027", "a custom function named tanh is not treated as tanh", tolerance="states", dtypes=FLOAT32)
def nonlinear_namesake(s: Subject) -> None:
    known, scan = serpentine(), Scan(s)
    f = custom_nonlinearity(*known.user, name="tanh") if known.user else known
    s.compare("h", scan.run_nonlinear(f, kernel="auto"), _stepped(scan, lambda z: z / (1 + z * z)))


RING = 1100  # more than the threads of a block on any GPU
FAMILIES: tuple[tuple[str, dict[str, float], Callable[[Host], Host]], ...] = (
    ("leaky_relu", {"alpha": 0.25}, lambda z: np.where(z > 0, z, 0.25 * z)),
    ("thresholded_relu", {"alpha": 0.5}, lambda z: np.where(z > 0.5, z, 0.0)),
    ("hard_sigmoid", {"alpha": 0.5, "beta": 0.25}, lambda z: np.minimum(1, np.maximum(0, 0.5 * z + 0.25))),
    ("elu", {"alpha": 0.5}, lambda z: np.where(z > 0, z, 0.5 * (np.exp(np.minimum(z, 0)) - 1))),
    ("scaled_tanh", {"alpha": 0.5, "beta": 2.0}, lambda z: 0.5 * np.tanh(2.0 * z)),
    ("affine", {"alpha": 0.5, "beta": 0.25}, lambda z: 0.5 * z + 0.25),
)


def _stepped(scan: Scan, function: Callable[[Host], Host]) -> Host:
    """Compute the scan for a function that the oracle lacks."""
    h, want = scan.h0, np.empty(scan.p.shape)
    for t in range(len(scan.p)):
        h = want[t] = function(scan.p[t] + h @ scan.w.T)
    return want
