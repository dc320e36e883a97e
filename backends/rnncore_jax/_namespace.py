"""``jax.numpy`` as a namespace for the core, with float32 products computed in float32.

By default JAX rounds the inputs of such products to 10 or 7 bits on a GPU or a TPU. Here they keep full precision, unless the
user sets ``jax_default_matmul_precision`` or enters ``jax.default_matmul_precision``.
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
