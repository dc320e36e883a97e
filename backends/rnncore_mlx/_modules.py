"""``mlx.nn.RNN`` as a network, and networks as modules of ``mlx.nn``.

MLX's module is one layer of one direction with one bias, and reads a batch as (B, T, I), so its network is batch-first. A
stack is an ``nn.Sequential`` of them. It returns every state of the last layer, and takes no state but the first layer's.
"""

from __future__ import annotations

from functools import partial
from importlib import import_module
from typing import Any

import rnncore
from rnncore import get_nonlinearity
from rnncore.arguments import brief, closest, describe, shown
from rnncore.backend.arrays import dtype_name, find_dtype
from rnncore.errors import ArgumentTypeError, ArgumentValueError, InterchangeError, UnknownNameError
from rnncore.interchange.portable import Direction, assemble, layers_of
from rnncore.nonlinearity.nonlinearity import Nonlinearity

__all__ = ["find_module", "from_module", "to_module"]


def from_module(module: Any, /) -> rnncore.RNN:
    """Convert an ``mlx.nn.RNN``, or an ``mlx.nn.Sequential`` of them as a network of layers. The weights are copied.

    Its one bias is bias_ih of the network, whose bias_hh is zero.

    Raises
    ------
    ArgumentTypeError
        For any other module, and for a subclass with a call of its own.
    InterchangeError
        If the layers differ in dtype or nonlinearity, or the nonlinearity is not one of MLX's that rnncore has.
    """
    import rnncore_mlx

    layers = _layers(module)
    if not layers:
        raise ArgumentTypeError(
            f"module: expected an mlx.nn.RNN, or an mlx.nn.Sequential of them, got {describe(module)}{_others(module)}"
        )
    functions = dict.fromkeys(_nonlinearity(layer.nonlinearity) for layer in layers)
    if len(functions) != 1:
        raise InterchangeError(f"expected one nonlinearity, got {', '.join(f.name for f in functions)}")
    if absent := [name for layer in layers for name in ("Wxh", "Whh") if getattr(layer, name, None) is None]:
        raise InterchangeError(f"expected an mlx.nn.RNN with its weights, got none for {', '.join(absent)}")
    arrays = [[layer.Wxh, layer.Whh, *([] if _bias(layer) is None else [_bias(layer)])] for layer in layers]
    kinds = {dtype_name(a.dtype) for row in arrays for a in row}
    if len(kinds) != 1:
        raise InterchangeError(f"expected arrays of one dtype, got {', '.join(sorted(kinds))}")
    network = assemble(
        [[Direction(*map(rnncore_mlx.to_numpy, row))] for row in arrays],
        nonlinearity=next(iter(functions)),
        batch_first=True,
        dtype=kinds.pop(),
    )
    return rnncore_mlx.RNN.from_spec(network.spec, network.params, dtype=network.dtype)


def find_module(module: Any, name: str | None, /) -> tuple[Any, tuple[str, ...]]:
    """Return the one RNN, or Sequential of RNNs, in a module, or the one of that name, and what else the module holds.

    Names are those of ``module.named_modules()``; "" is the module itself. With a name, nothing is said of the others.

    Raises
    ------
    ArgumentValueError, UnknownNameError
        If there are several and no name, or none of that name.
    """
    nn = _nn()

    if not isinstance(module, nn.Module):
        return module, ()
    modules = dict(sorted(module.named_modules()))
    every = {n: m for n, m in modules.items() if _layers(m)}
    within = {id(layer) for m in every.values() if not isinstance(m, nn.RNN) for layer in _layers(m)}
    held = {n: m for n, m in every.items() if id(m) not in within}
    names = brief(", ".join(map(repr, every))) or "none"
    if name is not None:
        if name not in every:
            raise UnknownNameError(
                f"name: expected one of {names}, the RNNs in {describe(module)}, got {shown(name)}"
                f"{closest(str(name), every)}{_others(module)}"
            )
        return every[name], ()
    if len(held) > 1:
        raise ArgumentValueError(f"name: expected one of {names}, the RNNs in {describe(module)}, got None")
    if not held:
        return module, ()  # which from_module refuses
    ((place, found),) = held.items()
    inside = set(map(id, found.modules()))
    others = [f"{type(m).__name__} {n!r}" for n, m in modules.items() if id(m) not in inside and not m.children()]
    # A function in a Sequential is no module, and runs all the same.
    others += [
        f"{getattr(part, '__name__', type(part).__name__)} {f'{n}.layers.{k}'.removeprefix('.')!r}"
        for n, m in modules.items()
        if isinstance(m, nn.Sequential)
        for k, part in enumerate(m.layers)
        if not isinstance(part, nn.Module)
    ]
    return found, (f"{brief(', '.join(others))} beside the RNN {place!r}",) if others else ()


def to_module(rnn: rnncore.RNN, /, *, dtype: Any = None) -> Any:
    """Convert a network to an ``mlx.nn.RNN``, or to an ``mlx.nn.Sequential`` of one for each layer. The weights are copied.

    The module reads a batch as (B, T, I), whatever the order of the network's. Its bias is the sum of the network's two.

    Parameters
    ----------
    rnn : RNN
        Of any backend.
    dtype : optional
        By default the one of the network's dtype's name.

    Raises
    ------
    InterchangeError
        If the network has two directions, a limit of the pre-activation, dropout between its layers, or a nonlinearity that
        MLX has not.
    """
    import mlx.core as mx

    import rnncore_mlx

    nn = _nn()

    network = rnn.portable()
    spec, f = network.spec, network.spec.nonlinearity
    makers = _makers()
    faults = ["bidirectional=True"] if spec.bidirectional else []
    faults += [] if f.clip is None else [f"clip={f.clip!r}"]
    faults += [f"dropout={spec.dropout!r}"] if spec.dropout and spec.num_layers > 1 else []
    faults += [f"alpha={f.alpha!r}"] if f.name == "leaky_relu" and not _is_leak(f.alpha) else []
    faults += [f"nonlinearity={f.name!r} (it has {', '.join(makers)})"] if f.is_custom or f.name not in makers else []
    if faults:
        raise InterchangeError(f"mlx.nn.RNN has no place for {', '.join(faults)}")
    number = find_dtype(
        network.dtype if dtype is None else dtype, xp=rnncore_mlx.namespace(), device=rnncore_mlx.devices()[0]
    )
    give = partial(rnncore_mlx.asarray, dtype=number)
    made = []
    for (part,) in layers_of(network):
        layer = nn.RNN.__new__(nn.RNN)  # without random numbers for weights that are replaced
        nn.Module.__init__(layer)
        layer.nonlinearity = makers[f.name](f.alpha)
        layer.hidden_size = part.weight_hh.shape[0]
        layer.Wxh, layer.Whh = give(part.weight_ih), give(part.weight_hh)
        layer.bias = None if part.bias is None else give(part.bias)
        made.append(layer)
    mx.eval([layer.parameters() for layer in made])
    return made[0] if len(made) == 1 else nn.Sequential(*made)


def _nn() -> Any:
    return import_module("mlx.nn")  # whose stubs do not have all that it has


def _layers(module: Any) -> list[Any]:
    """The layers of a module that is a network by itself, else none."""
    nn = _nn()

    if isinstance(module, nn.Sequential):
        rows = list(module.layers) if type(module).__call__ is nn.Sequential.__call__ else []
        return rows if all(isinstance(m, nn.RNN) and _layers(m) for m in rows) else []
    own = isinstance(module, nn.RNN) and type(module).__call__ is nn.RNN.__call__
    return [module] if own else []


def _bias(layer: Any) -> Any:
    return getattr(layer, "bias", None)


def _others(module: Any) -> str:
    """Name the gated modules in a module, and the RNNs with a call of their own."""
    nn = _nn()

    if not isinstance(module, nn.Module):
        return ""
    found = [
        f"{type(m).__name__} {n!r}"
        for n, m in module.named_modules()
        if n and isinstance(m, (nn.LSTM, nn.GRU, nn.RNN)) and not _layers(m)
    ]
    return f"; it holds {brief(', '.join(found))}, which is no such RNN" if found else ""


def _is_leak(slope: Any) -> bool:
    """Whether MLX's maximum of slope * z and z has this slope below zero, and 1 above."""
    return bool(slope <= 1)


def _makers() -> dict[str, Any]:
    """MLX's function for each of rnncore's nonlinearities that it has, by its alpha."""
    nn = _nn()
    plain = ("tanh", "relu", "sigmoid", "softsign", "softplus")
    return {
        **{name: lambda alpha, name=name: getattr(nn, name) for name in plain},
        "identity": lambda alpha: identity,
        "leaky_relu": lambda alpha: partial(nn.leaky_relu, negative_slope=alpha),
        "elu": lambda alpha: partial(nn.elu, alpha=alpha),
    }


def identity(x: Any) -> Any:
    """Return x. A function, as MLX takes a module without parameters for none, and tanh in its place."""
    return x


def _nonlinearity(function: Any) -> Nonlinearity:
    """Return rnncore's nonlinearity that is this function of MLX's."""
    import mlx.core as mx

    nn = _nn()
    known = {
        "tanh": (nn.tanh, mx.tanh, nn.Tanh),
        "relu": (nn.relu, nn.ReLU),
        "sigmoid": (nn.sigmoid, mx.sigmoid, nn.Sigmoid),
        "identity": (identity, nn.Identity),
        "softsign": (nn.softsign, nn.Softsign),
        "softplus": (nn.softplus, nn.Softplus),
        "leaky_relu": (nn.leaky_relu,),
        "elu": (nn.elu,),
    }
    for name, kinds in known.items():
        if any(function is kind or type(function) is kind for kind in kinds):
            return get_nonlinearity(name)
    given = function.keywords if isinstance(function, partial) and not function.args else {}
    if type(function) is nn.LeakyReLU:
        slope = function._negative_slope
    else:
        slope = given.get("negative_slope") if getattr(function, "func", None) is nn.leaky_relu else None
    if slope is not None and _is_leak(slope):
        return get_nonlinearity("leaky_relu", alpha=slope)
    if type(function) is nn.ELU:
        return get_nonlinearity("elu", alpha=function._alpha)
    if getattr(function, "func", None) is nn.elu and set(given) == {"alpha"}:
        return get_nonlinearity("elu", alpha=given["alpha"])
    raise InterchangeError(
        f"nonlinearity: expected one of mlx.nn's {', '.join(known)}, got {shown(function)}; read the weights alone with "
        "rnncore.from_module(dict(module.parameters()), nonlinearity=..., batch_first=True)"
    )
