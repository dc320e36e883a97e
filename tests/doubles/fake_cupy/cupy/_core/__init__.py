"""What a plugin may ask CuPy about itself."""

from cupy._core import _routines_linalg  # noqa: F401
from cupy._core._routines_linalg import get_compute_type  # noqa: F401
