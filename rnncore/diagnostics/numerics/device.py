"""Transfers between the host and the network's device, and the machine epsilon of each dtype."""

from __future__ import annotations

from typing import Any

import numpy as np

from rnncore.backend.arrays import index_dtype
from rnncore.network.engine import Engine
from rnncore.typing import Array, Host

EPS = {"float64": 2.0**-52, "float32": 2.0**-23, "float16": 2.0**-10, "bfloat16": 2.0**-7}


def on_device(x: Host, engine: Engine, dtype: Any = None) -> Array:
    """Copy host numbers to the network's device, by default in its dtype."""
    dtype = engine.dtype if dtype is None else dtype
    return engine.backend.asarray(np.ascontiguousarray(x), dtype=dtype, device=engine.device)


def indices(at: Host, engine: Engine) -> Array:
    """Copy host integers to the network's device, in a dtype that `take` accepts."""
    return on_device(at, engine, index_dtype(xp=engine.xp, device=engine.device))


def on_host(x: Array, engine: Engine) -> Host:
    """Copy numbers to the host, in float64."""
    return np.asarray(engine.backend.to_numpy(x), dtype=np.float64)


def take_rows(x: Array, at: Host, engine: Engine) -> Array:
    """Take the rows of x (T, B, H) at the positions `at` (n,) of its flattened (T, B): (1, n, H)."""
    rows = engine.xp.reshape(x, (-1, int(x.shape[2])))
    return engine.xp.expand_dims(engine.xp.take(rows, indices(at, engine), axis=0), axis=0)
