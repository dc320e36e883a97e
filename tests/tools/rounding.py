"""Bounds on rounding: multiples of eps, relative to the largest number compared."""

import numpy as np

EPS = 2.0**-52
EPS_OF = {"float16": 2.0**-10, "bfloat16": 2.0**-7, "float32": 2.0**-23, "float64": EPS}
# What the library promises: states within 64 eps, and gradients within 64 eps of the largest, where the spectral radius
# is at most 1.2. In the few dozen steps of these networks that is about one rounding of each number that a result reads.
PROMISED = 64
# A derivative of a derivative is one pass more over the same steps, which rounds as often.
SECOND, THIRD = 2 * PROMISED, 3 * PROMISED


def agree(got, want, multiple=PROMISED, what=""):
    """Assert that each number is within `multiple` eps of the largest of `want`, in the coarser dtype of the two.

    A sum keeps the rounding errors of its terms however small it is: a bound that is relative to each number would
    depend on the order in which a processor adds them. What is NaN or infinite must be so in both.
    """
    if hasattr(got, "detach") and hasattr(want, "detach"):
        assert got.dtype == want.dtype, what
    eps = max(EPS_OF.get(str(getattr(a, "dtype", "float64")).removeprefix("torch."), 0) for a in (got, want))
    got, want = host(got), host(want)
    largest = np.abs(want[np.isfinite(want)]).max(initial=0)
    np.testing.assert_allclose(got, want, rtol=0, atol=multiple * eps * float(largest), err_msg=what)


def host(a):
    return np.asarray(a.detach().cpu().double() if hasattr(a, "detach") else a).astype("f8")
