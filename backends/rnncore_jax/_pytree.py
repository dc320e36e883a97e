"""Models as pytrees, for ``jax.jit``, ``jax.grad(loss)(rnn)``, ``jax.tree.map``, ``jax.vmap`` and ``jax.device_put``.

The leaves are the model's parameters, under torch's names; everything else is static. A model that JAX reassembles holds
whatever leaves JAX passes, which need not be arrays. A model's ``params`` and the results of its calls are pytrees too.

All of them can be arguments and results of functions that ``jax.export`` writes. What is static about a model is then written
as JSON, so reading an exported function runs no code of its own.
"""

from __future__ import annotations

import json
from collections.abc import Hashable, Iterable
from contextlib import suppress
from dataclasses import fields, replace
from typing import Any

import jax
import jax.numpy as jnp
from jax import export
from jax.tree_util import DictKey

import rnncore
import rnncore_jax
from rnncore.arguments import shown
from rnncore.backend.arrays import FLOATS, device_name, dtype_name, find_device, find_dtype
from rnncore.errors import ArgumentTypeError, ArgumentValueError
from rnncore.model.rnn_cell import CellGradients
from rnncore.network.engine import Engine, make_engine
from rnncore.network.network import Network, Params
from rnncore.network.results import Gradients, Tangents, Trace
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
    with suppress(ValueError):  # a class that was defined again, as in a notebook: the name stays the first one's
        export.register_pytree_node_serialization(
            kind,
            serialized_name=f"{kind.__module__}.{kind.__qualname__}",
            serialize_auxdata=_written,
            deserialize_auxdata=_read,
        )
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


def _written(static: Static) -> bytes:
    """What is static about a model, for ``jax.export``."""
    spec, engine, check_finite, rest = static
    if spec.nonlinearity.is_custom:
        raise ArgumentValueError(
            f"nonlinearity: expected one of rnncore's to write into an exported function, got {shown(spec.nonlinearity.name)}; "
            "pass model.params instead of the model, and call rnncore.functional"
        )
    for name, value in rest:
        if not (value is None or isinstance(value, (str, int, float))):
            raise ArgumentTypeError(
                f"{name}: expected text, a number, a flag or None to write into an exported function, got {shown(value)}"
            )
    kept = {
        "spec": spec.to_config(),
        "backend": engine.backend.name,
        "device": None if engine.device is None else device_name(engine.backend, engine.device),
        "dtype": engine.dtype_name,
        "kernel": engine.kernel,
        "check_finite": check_finite,
        "attributes": dict(rest),
    }
    return json.dumps(kept).encode()


def _read(data: bytes) -> Static:
    """Undo :func:`_written`."""
    kept = json.loads(bytes(data))
    backend = rnncore.get_backend(kept["backend"])
    device = None if kept["device"] is None else find_device(kept["device"], backend=backend)
    dtype = find_dtype(kept["dtype"], xp=backend.namespace(), device=device)
    engine = make_engine(backend, device=device, dtype=dtype, kernel=kept["kernel"])
    return RNNSpec.from_config(kept["spec"]), engine, kept["check_finite"], tuple(kept["attributes"].items())


def _register_results() -> None:
    def keyed(params: Params) -> tuple[list[tuple[DictKey, Any]], tuple[str, ...]]:
        return [(DictKey(n), x) for n, x in params.items()], tuple(params)

    jax.tree_util.register_pytree_with_keys(
        Params,
        keyed,
        lambda names, leaves: Params(dict(zip(names, leaves, strict=True))),
        lambda params: (tuple(params.values()), tuple(params)),
    )
    export.register_pytree_node_serialization(
        Params,
        serialized_name="rnncore.Params",
        serialize_auxdata=lambda names: json.dumps(names).encode(),
        deserialize_auxdata=lambda data: tuple(json.loads(bytes(data))),
    )
    for kind in (Gradients, Tangents, Trace):
        jax.tree_util.register_dataclass(kind, [f.name for f in fields(kind)], [])
        export.register_pytree_node_serialization(
            kind,
            serialized_name=f"rnncore.{kind.__name__}",
            serialize_auxdata=lambda nothing: b"",
            deserialize_auxdata=lambda data: (),
        )
    export.register_namedtuple_serialization(CellGradients, serialized_name="rnncore.CellGradients")


_register_results()
# At import, so that it happens once per process.
for _kind in (rnncore.RNN, rnncore.RNNCell, rnncore_jax.RNN, rnncore_jax.RNNCell):
    register(_kind)
