"""``jax.numpy`` as a namespace for the core: all of it, but float32 products are float32 products.

On a GPU or a TPU, JAX rounds their inputs to 10 or 7 bits unless it is told otherwise. Here it is told, unless the user's own
setting, ``jax_default_matmul_precision`` or the context manager ``jax.default_matmul_precision``, says something.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

_config: Any = jax.config


def __getattr__(name: str) -> Any:
    return getattr(jnp, name)


def __dir__() -> list[str]:
    return sorted({*globals(), *dir(jnp)})


def matmul(x1: Any, x2: Any, /) -> jax.Array:
    """``jnp.matmul``."""
    return jnp.matmul(x1, x2, precision=_precision())


def tensordot(x1: Any, x2: Any, /, *, axes: int | Sequence[Sequence[int]] = 2) -> jax.Array:
    """``jnp.tensordot``."""
    return jnp.tensordot(x1, x2, axes, precision=_precision())


def vecdot(x1: Any, x2: Any, /, *, axis: int = -1) -> jax.Array:
    """``jnp.vecdot``."""
    return jnp.vecdot(x1, x2, axis=axis, precision=_precision())


def _precision() -> jax.lax.Precision | None:
    return jax.lax.Precision.HIGHEST if _config.jax_default_matmul_precision is None else None
