"""Models from other libraries' modules, and back."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from rnncore import interchange
from rnncore.arguments import closest, describe, options_of, shown
from rnncore.backend.abilities import ability
from rnncore.backend.contract import Backend
from rnncore.backend.registry import backends, get_backend, owner_name
from rnncore.errors import ArgumentTypeError, UnknownNameError
from rnncore.interchange.arrays import flat
from rnncore.interchange.portable import Asked, Portable
from rnncore.model.rnn import RNN
from rnncore.typing import KernelMode

__all__ = ["from_module", "model_of", "module_itself", "to_module"]


def from_module(
    module: Any,
    *,
    name: str | None = None,
    nonlinearity: Any = None,
    batch_first: bool | None = None,
    backend: str | Backend | None = None,
    device: Any = None,
    dtype: Any = None,
    kernel: KernelMode = "auto",
    check_finite: bool = False,
) -> RNN:
    """Convert another library's recurrent module to a model, with copies of its weights.

    Parameters
    ----------
    module
        Of a registered backend's library, as its plugin documents it: ``torch.nn.RNN``, ``torch.nn.RNNCell``, a module that
        holds one of them, ``mlx.nn.RNN``; or of a framework in :data:`rnncore.interchange.FRAMEWORKS`. A module that does not
        hold its parameters is given with them, as a pair. Or a mapping of names to arrays, which may hold further ones.
    name : str, optional
        The network to take, of a module or mapping that holds several; of a module, "" is the module itself. By default the
        only one.
    nonlinearity : optional
        As for :class:`RNN`, of a module or mapping that does not say it; there is no default.
    batch_first : bool, optional
        Of a module or mapping that does not say it.
    backend, device, dtype, kernel, check_finite : optional
        As for :class:`RNN`; by default the module's own library, device and dtype, where a backend of that name can be used.

    Raises
    ------
    ArgumentTypeError
        If no library knows the module as a vanilla RNN.
    ArgumentValueError, UnknownNameError
        If it does not say the nonlinearity or the order of the axes, and they are not given; or if it says otherwise. If it
        holds several networks and `name` is not given, or none of that name.
    InterchangeError
        If it has what no network of rnncore's has.

    Warns
    -----
    UserWarning
        Of what `module` holds beside the network, where `name` is not given.

    Examples
    --------
    >>> import torch, rnncore
    >>> rnncore.from_module(torch.nn.RNN(3, 4, batch_first=True))
    RNN(3, 4, batch_first=True, backend='torch', device='cpu', dtype='float32')
    >>> rnncore.from_module(torch.nn.RNN(3, 4), backend="numpy")
    RNN(3, 4, backend='numpy', device='cpu', dtype='float32')
    """
    asked = Asked(name, nonlinearity, batch_first)
    own = interchange.owner(module)
    if own is not None:
        return model_of(
            own.read(module, asked),
            backend=backend,
            device=device,
            dtype=dtype,
            kernel=kernel,
            check_finite=check_finite,
        )
    plugin = _plugin_of(module)
    find = ability(get_backend(plugin), "find_module")
    if find is not None:
        module, left_out = find(module, name)
        _warn_of(left_out, 3)
    elif name is not None:
        raise ArgumentTypeError(
            f"name: expected None, as backend {plugin!r} converts a module itself, got {shown(name)}"
        )
    found = _converted(plugin, module)
    asked.settle("nonlinearity", found.spec.nonlinearity)
    asked.settle("batch_first", found.spec.batch_first)
    if backend is None and device is None and dtype is None and kernel == "auto" and check_finite is False:
        return found
    chosen = plugin if backend is None else backend
    portable = found.portable()
    return RNN.from_spec(
        portable.spec,
        portable.params,
        backend=chosen,
        device=found.device if device is None and chosen == plugin else device,
        dtype=portable.dtype if dtype is None else dtype,
        kernel=kernel,
        check_finite=check_finite,
    )


def to_module(rnn: RNN, framework: str, **options: Any) -> Any:
    """Convert a model to another library's module, with copies of its weights.

    Parameters
    ----------
    rnn : RNN
        Of any backend.
    framework : str
        A framework of :data:`rnncore.interchange.FRAMEWORKS`, or a backend whose plugin has ``to_module``: "torch", "mlx".
    **options
        Of the framework, which its module documents.

    Raises
    ------
    ArgumentTypeError, UnknownNameError
    InterchangeError
        If the library's module cannot express the network. The message names what it cannot.

    Examples
    --------
    >>> import rnncore
    >>> rnncore.to_module(rnncore.RNN(3, 4, bidirectional=True), "torch")
    RNN(3, 4, bidirectional=True)
    """
    if not isinstance(rnn, RNN):
        raise ArgumentTypeError(f"rnn: expected an rnncore.RNN, got {describe(rnn)}")
    if not isinstance(framework, str):
        raise ArgumentTypeError(f"framework: expected a name, got {shown(framework)}")
    if framework in interchange.FRAMEWORKS:
        make = interchange.framework(framework).make
        _check_options(make, options)
        return make(rnn.portable(), **options)
    registered = [b.name for b in backends()]
    convert = ability(get_backend(framework), "to_module") if framework in registered else None
    if convert is None:
        known = () if framework in registered else (*interchange.FRAMEWORKS, *registered)
        raise UnknownNameError(
            f"framework: expected {', '.join(interchange.FRAMEWORKS)}, or a backend that makes modules, such as "
            f"torch or mlx, got {framework!r}{closest(framework, known)}"
        )
    _check_options(convert, options)
    return convert(rnn, **options)


def model_of(
    network: Portable,
    *,
    backend: str | Backend | None = None,
    device: Any = None,
    dtype: Any = None,
    kernel: KernelMode = "auto",
    check_finite: bool = False,
) -> RNN:
    """Make a model of what was read, and warn of what was left out."""
    _warn_of(network.left_out, 4)
    return RNN.from_spec(
        network.spec,
        network.params,
        backend=network.backend if backend is None else backend,
        device=device,
        dtype=network.dtype if dtype is None else dtype,
        kernel=kernel,
        check_finite=check_finite,
    )


def module_itself(module: Any) -> RNN:
    """Convert a recurrent module, and none that only holds one, with the weights that it computes with now.

    So a diagnosis reads a module: nothing is lost that it would look at.

    Raises
    ------
    ArgumentTypeError, InterchangeError
    """
    return from_module(module) if interchange.owner(module) is not None else _converted(_plugin_of(module), module)


def _plugin_of(module: Any) -> str:
    """Return the name of the backend that converts modules of this kind."""
    plugin = None if isinstance(module, type) else owner_name(_first_parameter(module))
    if plugin is None or ability(get_backend(plugin), "from_module") is None:
        raise ArgumentTypeError(
            f"module: expected a library's own recurrent module, such as torch.nn.RNN, got {describe(module)}"
        )
    return plugin


def _converted(plugin: str, module: Any) -> RNN:
    found = ability(get_backend(plugin), "from_module")(module)
    if not isinstance(found, RNN):
        raise ArgumentTypeError(
            f"module: expected backend {plugin!r} to make an rnncore.RNN of it, got {describe(found)} from its from_module"
        )
    return found


def _check_options(make: Callable[..., Any], options: Mapping[str, Any]) -> None:
    """Refuse options that a maker of modules has not by name."""
    parameters = inspect.signature(make).parameters.values()
    if all(p.kind is not p.VAR_KEYWORD for p in parameters):
        options_of("to_module", options, [p.name for p in parameters if p.kind is p.KEYWORD_ONLY])


def _warn_of(left_out: Sequence[str], stacklevel: int) -> None:
    if left_out:
        warnings.warn(f"left out: {'; '.join(left_out)}", UserWarning, stacklevel=stacklevel)


def _first_parameter(module: Any) -> Any:
    parameters = getattr(module, "parameters", None)
    if not callable(parameters):
        return None
    try:
        found = parameters()
    except TypeError:  # it needs arguments, so it is another kind of method
        return None
    if isinstance(found, Mapping):
        return next((leaf for _, leaf in flat(found)), None)  # MLX has dicts and lists within each other
    return next(iter(found), None) if isinstance(found, Iterable) else None
