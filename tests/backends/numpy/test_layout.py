"""NumPy's scans copy a transposed W only where the steps gain more by it than the copy costs."""

import tracemalloc

import numpy as np
import pytest
from rnncore_numpy import scans

from rnncore.nonlinearity.nonlinearity import get_nonlinearity
from rnncore.testing.tools.oracle import linear_scan, nonlinear_scan

# Another order of the sums of a product: DESIGN's 64 eps.
EPS_ALLOWED = 64


def arguments(steps, batch, width):
    rng = np.random.default_rng(0)
    p, d, h0 = (rng.uniform(-1, 1, shape) for shape in ((steps, batch, width),) * 2 + ((batch, width),))
    return p, d, h0, rng.standard_normal((width, width)) * 0.9 / np.sqrt(width)


@pytest.mark.parametrize("kind", ["nonlinear", "linear"])
@pytest.mark.parametrize(
    ("steps", "batch", "width", "copied"),
    [(1, 1, 512, False), (100, 1, 512, False), (3, 4, 200, False), (64, 1, 200, True)],
)
def test_w_is_copied_only_where_it_pays(kind, steps, batch, width, copied):
    p, d, h0, w = arguments(steps, batch, width)

    def run():
        if kind == "linear":
            return scans().linear(p, d, h0, w.T, reverse=False)
        return scans().nonlinear(p, h0, w, nonlinearity=get_nonlinearity("tanh"), reverse=False)

    result = run()
    tracemalloc.start()
    try:
        run()
        peak = tracemalloc.get_traced_memory()[1] - result.nbytes
    finally:
        tracemalloc.stop()
    assert (peak >= w.nbytes) == copied, peak


@pytest.mark.parametrize("strides", ["rows", "columns", "every second", "backwards", "one number"])
@pytest.mark.parametrize(("steps", "batch"), [(1, 1), (3, 2), (70, 1), (9, 20)])
@pytest.mark.parametrize("width", [1, 5, 260])
def test_w_of_any_strides_gives_the_same_numbers(strides, steps, batch, width):
    p, d, h0, w = arguments(steps, batch, width)
    w = {
        "rows": w,
        "columns": np.asfortranarray(w),
        "every second": np.repeat(w, 2, axis=1)[:, ::2],
        "backwards": w[::-1, ::-1],
        "one number": np.broadcast_to(w[:1, :1] / width, w.shape),
    }[strides]
    got = scans().nonlinear(p, h0, w, nonlinearity=get_nonlinearity("tanh"), reverse=True)
    pairs = [(got, nonlinear_scan(p, h0, w, "tanh", reverse=True, clip=np.inf))]
    for m in (w, w.T):
        pairs.append((scans().linear(p, d, h0, m, reverse=False), linear_scan(p, d, h0, m, reverse=False)))
    for found, want in pairs:
        assert np.abs(found - want).max() <= EPS_ALLOWED * np.finfo("f8").eps * max(1.0, np.abs(want).max())
