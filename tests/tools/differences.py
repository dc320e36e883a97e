"""Central differences in float64, the oracle of every derivative here."""

import numpy as np

from tests.tools.rounding import EPS

# Central differences of a smooth function are best at h = eps^(1/3), where truncation, h^2, meets rounding, eps / h.
STEP = EPS ** (1 / 3)
# What they can see: both, times third derivatives and sums over a few hundred numbers.
RTOL, ATOL = 2**11 * STEP**2, 2**9 * STEP**2


def directional(function, arguments, tangents):
    """d/de function(arguments + e * tangents) at 0."""
    ahead = function(*(a + STEP * t for a, t in zip(arguments, tangents, strict=True)))
    behind = function(*(a - STEP * t for a, t in zip(arguments, tangents, strict=True)))
    return (ahead - behind) / (2 * STEP)


def gradients(scalar, arguments):
    """d scalar / d every number of every argument, one number at a time."""
    found = []
    for k, argument in enumerate(arguments):
        g = np.zeros_like(argument)
        for index in np.ndindex(argument.shape):
            moved = [a.copy() for a in arguments]
            moved[k][index] += STEP
            ahead = scalar(*moved)
            moved[k][index] -= 2 * STEP
            g[index] = (ahead - scalar(*moved)) / (2 * STEP)
        found.append(g)
    return found


def assert_close(got, want):
    np.testing.assert_allclose(got, want, rtol=RTOL, atol=ATOL)
