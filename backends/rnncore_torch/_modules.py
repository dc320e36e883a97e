"""Recurrent modules of ``torch.nn`` and :mod:`rnncore_torch.nn` as networks, and networks as these modules."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import rnncore
from rnncore.arguments import brief, closest, describe, flag, one_of, shown
from rnncore.backend.arrays import find_device, find_dtype
from rnncore.errors import ArgumentTypeError, ArgumentValueError, InterchangeError, UnknownNameError
from rnncore.interchange.torch_files import misfits

if TYPE_CHECKING:
    import torch

__all__ = ["find_module", "from_module", "to_module"]

WEIGHT = re.compile(r"(weight|bias)_[ih]h(_l\d+(_reverse)?)?")


def from_module(module: Any, /) -> rnncore.RNN:
    """Convert a ``torch.nn.RNN``, or a ``torch.nn.RNNCell`` as a network of one layer; :mod:`rnncore_torch.nn`'s too,
    ElmanRNN among them.

    The weights are copied, with the values that they have now.

    Raises
    ------
    ArgumentTypeError
        For any other module, and for a subclass with a forward of its own; if it holds an RNN, with that one's name.
    """
    import torch

    import rnncore_torch
    from rnncore_torch import nn

    if not isinstance(module, _kinds()):
        held = next(iter(_held(module)), None) if isinstance(module, torch.nn.Module) else None
        hint = "" if held is None else f"; it holds one at {held!r}: give that"
        raise ArgumentTypeError(
            f"module: expected a torch.nn.RNN or torch.nn.RNNCell, got {describe(module)}{hint}{_gated(module)}"
        )
    is_cell, of = isinstance(module, torch.nn.RNNCell), vars(module)
    forward: Any = getattr(module, "forward", None)
    own: tuple[Any, ...] = (torch.nn.RNN.forward, nn.RNN.forward)
    if is_cell:
        own = (torch.nn.RNNCell.forward, nn.RNNCell.forward)
    elif isinstance(module, nn.ElmanRNN):
        own = (nn.ElmanRNN.forward,)
    if getattr(forward, "__func__", None) not in own:
        raise ArgumentTypeError(
            f"module: expected a torch.nn.{'RNNCell' if is_cell else 'RNN'} with its own forward, "
            f"got {describe(module)} with another"
        )
    spec = module.network.spec if isinstance(module, nn.ElmanRNN) else _spec(of, is_cell)
    # By getattr, as a parametrised weight is no entry of state_dict.
    weights: dict[str, Any] = {
        n: getattr(module, n.removesuffix("_l0") if is_cell else n, None) for n in spec.parameter_shapes()
    }
    if absent := [n for n, w in weights.items() if not isinstance(w, torch.Tensor)]:
        raise InterchangeError(f"module: expected a tensor for each weight, got none for {brief(', '.join(absent))}")
    first = next(iter(weights.values()))
    if any(w.dtype != first.dtype for w in weights.values()):
        kinds = ", ".join(sorted({str(w.dtype) for w in weights.values()}))
        raise InterchangeError(
            f"module: expected weights of one dtype, got {kinds}; convert it first, as by module.float()"
        )
    device = find_device(first.device, backend=rnncore_torch)
    host = {n: rnncore_torch.to_numpy(w) for n, w in weights.items()}
    return rnncore_torch.RNN.from_spec(spec, host, device=device, dtype=first.dtype)


def find_module(module: Any, name: str | None, /) -> tuple[Any, tuple[str, ...]]:
    """Return the one RNN or RNNCell in a module, or the one of that name, and what else the module holds, in words.

    Names are those of ``module.named_modules()``; "" is the module itself. With a name, nothing is said of the others.

    Raises
    ------
    ArgumentValueError, UnknownNameError
        If there are several and no name, or none of that name.
    InterchangeError
        If a weight is computed from others, as by ``torch.nn.utils.parametrizations``: a copy would lose that.
    """
    import torch

    if not isinstance(module, torch.nn.Module):
        return module, ()
    held = _held(module)
    if name is None and len(held) > 1:
        raise ArgumentValueError(f"name: expected one of {_listed(held)}, the RNNs in {describe(module)}, got None")
    if name is not None and name not in held:
        raise UnknownNameError(
            f"name: expected one of {_listed(held) or 'none'}, the RNNs in {describe(module)}, got {shown(name)}"
            f"{closest(str(name), held)}{_gated(module)}"
        )
    if not held:
        return module, ()  # which from_module refuses
    place = next(iter(held)) if name is None else name
    found = held[place]
    _check_plain(found, place)
    # A hook may change what the module gives; a choice of the module by name does not choose its hooks.
    hooks = (f"forward hooks of the RNN {place!r}",) if found._forward_hooks or found._forward_pre_hooks else ()
    if name is not None:
        return found, hooks
    inside = set(map(id, found.modules()))
    others = [
        f"{type(m).__name__} {n!r}"
        for n, m in module.named_modules()
        if id(m) not in inside and (n or list(m.parameters(recurse=False))) and not list(m.children())
    ]
    return found, (*hooks, *([f"{brief(', '.join(others))} beside the RNN {place!r}"] if others else []))


def to_module(
    rnn: rnncore.RNN,
    /,
    *,
    module: str = "torch",
    device: Any = None,
    dtype: Any = None,
    requires_grad: bool = True,
) -> torch.nn.Module:
    """Convert a network to a ``torch.nn.RNN`` with copies of its weights, in training mode as a new one is.

    Parameters
    ----------
    rnn : RNN
        Of any backend.
    module : {"torch", "rnncore"}
        Whether to make a ``torch.nn.RNN`` or a :class:`rnncore_torch.nn.RNN`.
    device : optional
        By default the network's where it is one of PyTorch's, else PyTorch's default.
    dtype : optional
        By default the one of the network's dtype's name.
    requires_grad : bool
        Whether the module's parameters require gradients.

    Raises
    ------
    InterchangeError
        If the layers differ in width, the pre-activation is limited, or the nonlinearity is neither tanh nor relu.
    """
    import torch

    import rnncore_torch
    from rnncore_torch import nn

    kind = {"torch": torch.nn.RNN, "rnncore": nn.RNN}[one_of("module", module, ("torch", "rnncore"))]
    flag("requires_grad", requires_grad)
    spec = rnn.spec
    if faults := misfits(spec):
        raise InterchangeError(f"torch.nn.RNN has no place for {faults}")
    portable = rnn.portable()
    if device is None and rnn.backend == rnncore_torch.name:
        device = rnn.device
    where = find_device(device, backend=rnncore_torch)
    number = find_dtype(portable.dtype if dtype is None else dtype, xp=rnncore_torch.namespace(), device=where)
    # On no device, so that no random numbers are drawn for weights that are replaced.
    made: torch.nn.RNNBase = kind(
        spec.input_size,
        spec.hidden_sizes[0],
        spec.num_layers,
        spec.nonlinearity.name,
        spec.bias,
        spec.batch_first,
        0.0,
        spec.bidirectional,
        device="meta",
        dtype=number,
    ).to_empty(device=where)
    made.dropout = spec.dropout  # afterwards, as torch warns of the dropout of one layer
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            parameter.copy_(rnncore_torch.asarray(portable.params[name], dtype=number, device=where))
    made.requires_grad_(requires_grad)
    return made


def _spec(of: dict[str, Any], is_cell: bool) -> rnncore.RNNSpec:
    return rnncore.RNNSpec.make(
        of["input_size"],
        of["hidden_size"],
        1 if is_cell else of["num_layers"],
        of["nonlinearity"],
        bool(of["bias"]),
        not is_cell and bool(of["batch_first"]),
        0.0 if is_cell else float(of["dropout"]),
        not is_cell and bool(of["bidirectional"]),
    )


def _kinds() -> tuple[type, ...]:
    import torch

    from rnncore_torch import nn

    return torch.nn.RNN, nn.RNN, torch.nn.RNNCell, nn.ElmanRNN


def _held(module: torch.nn.Module) -> dict[str, Any]:
    return {n: m for n, m in module.named_modules() if isinstance(m, _kinds())}


def _gated(module: Any) -> str:
    """Name the gated modules in a module, which no network of rnncore's is."""
    import torch

    kinds = (torch.nn.LSTM, torch.nn.GRU, torch.nn.LSTMCell, torch.nn.GRUCell)
    if not isinstance(module, torch.nn.Module) or isinstance(module, kinds):
        return ""
    found = [f"{type(m).__name__} {n!r}" for n, m in module.named_modules() if isinstance(m, kinds)]
    return f"; it holds {brief(', '.join(found))}, which is no vanilla RNN" if found else ""


def _check_plain(module: torch.nn.Module, place: str) -> None:
    """Require that each weight is a parameter of its own."""
    from torch.nn.utils import parametrize

    where = f"module {place!r}" if place else "module"
    if parametrize.is_parametrized(module):
        tensors = ", ".join(map(repr, vars(module)["_modules"]["parametrizations"]))
        raise InterchangeError(
            f"{where}: {tensors} has a parametrization, which a copy would lose; remove it first with "
            "torch.nn.utils.parametrize.remove_parametrizations(module, name)"
        )
    computed = [n for n, _ in module.named_parameters(recurse=False) if WEIGHT.fullmatch(n) is None]
    if computed:
        raise InterchangeError(
            f"{where}: expected its weights as parameters, got {brief(', '.join(computed))}, from which a hook may compute "
            "them; remove it first, as with torch.nn.utils.remove_weight_norm(module, name)"
        )


def _listed(names: Any) -> str:
    return brief(", ".join(map(repr, names)))
