"""Scans that give wrong numbers."""

import array_api_compat.numpy as xp
import numpy as np
from rnncore_numpy._scans import NumpyScans

from rnncore import get_nonlinearity, scan
from wrong_backends.planting import _times, linear, nonlinear, put, scans


def in_pieces(run, p, h0, w, /, **options):
    """Launched for 256 steps at a time, each time from the first state."""
    return np.concatenate([run(p[a : a + 256], h0, w, **options) for a in range(0, max(len(p), 1), 256)])


def in_pieces_in_reverse(run, p, h0, w, /, *, reverse, **options):
    return in_pieces(run, p, h0, w, reverse=True, **options) if reverse else run(p, h0, w, reverse=False, **options)


def needs_a_block(run, p, *rest, **options):
    if p.size == 0:
        raise RuntimeError("invalid launch: a grid of 0 blocks")
    return run(p, *rest, **options)


def reads_d_after_writing(run, u, d, s0, m, /, *, reverse, overwrite=False):
    if not overwrite:
        return run(u, d, s0, m, reverse=reverse)
    s = s0
    for t in _times(len(u), reverse):
        d[t] = u[t] + s @ m
        s = d[t] = d[t] * d[t]
    return d


class ForgetsAlpha(NumpyScans):
    """leaky_relu has the slope that it has by default."""

    def unsupported(self, request, /):
        f = request.nonlinearity
        return None if f is not None and f.name == "leaky_relu" else super().unsupported(request)

    def nonlinear(self, p, h0, w_hh, /, *, nonlinearity, **options):
        if nonlinearity.name != "leaky_relu":
            return super().nonlinear(p, h0, w_hh, nonlinearity=nonlinearity, **options)
        options.pop("overwrite", None)
        return scan.nonlinear(p, h0, w_hh, nonlinearity=get_nonlinearity("leaky_relu"), xp=xp, **options)


class GoesByTheName(NumpyScans):
    def unsupported(self, request, /):
        f = request.nonlinearity
        return None if f is not None and f.name == "tanh" else super().unsupported(request)


class ClaimsCustom(NumpyScans):
    def unsupported(self, request, /):
        f = request.nonlinearity
        return None if f is not None and f.is_custom else super().unsupported(request)

    def nonlinear(self, *given, nonlinearity, **options):
        known = nonlinearity if not nonlinearity.is_custom else get_nonlinearity("tanh")
        return super().nonlinear(*given, nonlinearity=known, **options)


SCANS = {
    "W_hh is transposed": (
        nonlinear(lambda run, p, h0, w, /, **o: run(p, h0, w.T, **o)),
        {"RC-SCAN-001": r"h \(tanh\)\[\d.*eps", "RC-ANA-002": r"h_1\["},
    ),
    "sigmoid runs in place of tanh": (
        nonlinear(lambda run, *a, **o: run(*a, **o | {"nonlinearity": get_nonlinearity("sigmoid")})),
        {"RC-SCAN-001": r"h \(tanh\)\[\d.*eps"},
    ),
    "the state is not carried: h_{t-1} is always h0": (
        nonlinear(lambda run, p, h0, w, /, *, nonlinearity, **o: nonlinearity(p + h0 @ w.T, xp=xp)),
        {"RC-SCAN-001": r"h \(tanh\)\[\d", "RC-SCAN-008": r"h \(tanh", "RC-ANA-001": r"output\["},
    ),
    "the last step is 0": (
        nonlinear(lambda run, *a, **o: put(run(*a, **o), np.s_[-1:], 0)),
        {"RC-SCAN-001": r"h \(tanh\)\[5, .*got \S*\b0\.0\b", "RC-SCAN-009": r"h \(tanh\)\[0, .*got \S*\b0\.0\b"},
    ),
    "the last step repeats the one before": (
        nonlinear(lambda run, *a, **o: put(h := run(*a, **o), np.s_[-1:], h[-2:-1])),
        {"RC-SCAN-001": r"h \(tanh\)\[5, "},
    ),
    "the nonlinear scan ignores reverse": (
        nonlinear(lambda run, *a, **o: run(*a, **o | {"reverse": False})),
        {"RC-SCAN-007": r"h \(tanh, reverse\)"},
    ),
    "the nonlinear scan in reverse returns its states in the order in which they were made": (
        nonlinear(lambda run, *a, reverse, **o: run(*a, reverse=reverse, **o)[:: -1 if reverse else 1]),
        {"RC-SCAN-007": r"h \(tanh, reverse\)"},
    ),
    "the nonlinear scan ignores its first state": (
        nonlinear(lambda run, p, h0, w, /, **o: run(p, 0 * h0, w, **o)),
        {"RC-SCAN-008": r"h \(tanh\).*got \S*\b0\.0\b"},
    ),
    "the clip is ignored": (
        nonlinear(lambda run, *a, nonlinearity, **o: run(*a, nonlinearity=nonlinearity.with_clip(None), **o)),
        {"RC-SCAN-006": r"h \(tanh\)", "RC-FWD-011": r"output"},
    ),
    "rows of the batch come back in another order": (
        nonlinear(lambda run, *a, **o: run(*a, **o)[:, ::-1]),
        {"RC-SCAN-001": r"h \(tanh\)", "RC-META-001": r"output"},
    ),
    "units past a tile of 64 are not read": (
        nonlinear(
            lambda run, p, h0, w, /, **o: run(p, h0, np.where(np.arange(len(w)) < 64, w, 0).astype(w.dtype), **o)
        ),
        {"RC-SCAN-011": r"h \(tanh\)"},
    ),
    "rows past a tile of 32 are not computed": (
        nonlinear(lambda run, *a, **o: put(run(*a, **o), np.s_[:, 32:], 0)),
        {"RC-SCAN-025": r"h \(tanh\)"},
    ),
    "units past a block of 1024 are not read": (
        linear(lambda run, u, d, s0, m, /, **o: run(u, d, s0, put(m.copy(), np.s_[1024:], 0), **o)),
        {"RC-SCAN-025": r"s \(reverse\)"},
    ),
    "in reverse, 256 steps for each launch": (nonlinear(in_pieces_in_reverse), {"RC-SCAN-025": r"h \(tanh, reverse\)"}),
    "alpha is the default one": (scans(ForgetsAlpha), {"RC-SCAN-026": r"leaky_relu of {'alpha': 0.25}"}),
    "a user's function is run by its name": (scans(GoesByTheName), {"RC-SCAN-027": r"h\["}),
    "256 steps for each launch, and no state in between": (nonlinear(in_pieces), {"RC-SCAN-010": r"h \(tanh\)\["}),
    "an empty batch cannot be launched": (nonlinear(needs_a_block), {"RC-SCAN-013": r"invalid launch"}),
    "a matrix's memory is read without its strides": (
        nonlinear(lambda run, p, h0, w, /, **o: run(p, h0, w.ravel("K").reshape(w.shape), **o)),
        {"RC-SCAN-022": r"h\["},
    ),
    "a user's own function is run as tanh": (scans(ClaimsCustom), {"RC-SCAN-012": r"h\[", "RC-KER-005": r"serpentine"}),
    "the linear scan has M transposed": (
        linear(lambda run, u, d, s0, m, /, **o: run(u, d, s0, m.T, **o)),
        {"RC-SCAN-014": r"s\["},
    ),
    "the linear scan lacks its factor d": (
        linear(lambda run, u, d, s0, m, /, **o: run(u, np.ones_like(d), s0, m, **o)),
        {"RC-SCAN-014": r"s\[", "RC-SCAN-017": r"s\["},
    ),
    "the linear scan does not read units past a tile of 64": (
        linear(lambda run, u, d, s0, m, /, **o: run(u, d, s0, put(m.copy(), np.s_[64:], 0), **o)),
        {"RC-SCAN-019": r"s\["},
    ),
    "the linear scan has its factor at the source only": (
        linear(lambda run, u, d, s0, m, /, **o: run(d * u, np.ones_like(d), s0, m, **o)),
        {"RC-SCAN-017": r"s\["},
    ),
    "the linear scan does not carry its state": (
        linear(lambda run, u, d, s0, m, /, **o: d * (u + s0 @ m)),
        {"RC-SCAN-014": r"s\[", "RC-SCAN-023": r"after the source: expected numbers, got 0"},
    ),
    "the linear scan ignores reverse": (
        linear(lambda run, *a, **o: run(*a, **o | {"reverse": False})),
        {"RC-SCAN-015": r"s \(reverse\)", "RC-SCAN-023": r"before the source"},
    ),
    "the linear scan ignores its first state": (
        linear(lambda run, u, d, s0, m, /, **o: run(u, d, 0 * s0, m, **o)),
        {"RC-SCAN-016": r"s\[.*got \S*\b0\.0\b"},
    ),
    "the linear scan takes its steps in the wrong order and returns them in the right one": (
        linear(lambda run, u, d, s0, m, /, **o: run(u[::-1], d[::-1], s0, m, **o)[::-1]),
        {"RC-SCAN-014": r"s\[", "RC-SCAN-023": r"s before the source"},
    ),
    "with leave to overwrite, d is read after it was written": (linear(reads_d_after_writing), {"RC-SCAN-021": r"s\["}),
}
