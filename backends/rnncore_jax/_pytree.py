"""Models as pytrees, for ``jax.jit``, ``jax.grad(loss)(rnn)``, ``jax.tree.map``, ``jax.vmap`` and ``jax.device_put``.

The leaves are the model's parameters, under torch's names; everything else is static. A model that JAX reassembles holds
whatever leaves JAX passes, which need not be arrays.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
from jax.tree_util import DictKey

import rnncore
import rnncore_jax
from rnncore.backend.arrays import FLOATS, dtype_name
from rnncore.network.engine import Engine
from rnncore.network.network import Network
from rnncore.spec import RNNSpec

Static = tuple[RNNSpec, Engine, bool, tuple[tuple[str, Hashable], ...]]


def register(kind: type[Any], /) -> type[Any]:
    """Make a subclass of RNN or RNNCell a pytree."""

    def unflatten(static: Static, leaves: Iterable[Any]) -> Any:
        spec, engine, check_finite, rest = static
        params = dict(zip(spec.parameter_shapes(), leaves, strict=True))
        model = kind.from_network(Network(spec, params, _engine_of(engine, tuple(params.values())), check_finite))
        vars(model).update(rest)
        return model

    jax.tree_util.register_pytree_with_keys(kind, _flatten_with_keys, unflatten, _flatten)
    return kind


def _flatten(model: Any) -> tuple[tuple[Any, ...], Static]:
    network = model.network
    rest = tuple(sorted((k, v) for k, v in vars(model).items() if k != "_network"))
    return tuple(network.params.values()), (network.spec, network.engine, network.check_finite, rest)


def _flatten_with_keys(model: Any) -> tuple[tuple[tuple[DictKey, Any], ...], Static]:
    leaves, static = _flatten(model)
    return tuple((DictKey(n), x) for n, x in zip(model.network.params, leaves, strict=True)), static


def _engine_of(engine: Engine, leaves: tuple[Any, ...]) -> Engine:
    """The engine for leaves whose dtype or device ``tree.map(lambda p: p.astype(...))`` or ``device_put`` has changed."""
    if engine.backend.name != rnncore_jax.name or not all(isinstance(x, jax.Array) for x in leaves):
        return engine
    dtypes = {dtype_name(x.dtype) for x in leaves}
    dtype = dtypes.pop() if len(dtypes) == 1 else engine.dtype_name
    if dtype != engine.dtype_name and dtype in FLOATS:
        engine = replace(engine, dtype=getattr(jnp, dtype), dtype_name=dtype)
    if any(isinstance(x, jax.core.Tracer) for x in leaves):  # tracers have no device
        return engine
    places = {x.device for x in leaves}
    place = places.pop() if len(places) == 1 else None
    # None if the parameters are on several devices: then JAX decides where to compute.
    device = place if isinstance(place, jax.Device) else None
    return engine if device == engine.device else replace(engine, device=device)


# At import, so that it happens once per process.
for _kind in (rnncore.RNN, rnncore.RNNCell, rnncore_jax.RNN, rnncore_jax.RNNCell):
    register(_kind)
