"""Keras's layers and models as networks, and networks as Keras's models, which have copies of the weights."""

from __future__ import annotations

import json
import warnings
from collections.abc import Sequence
from typing import Any

from rnncore.arguments import brief, flag, options_of
from rnncore.arguments import describe as kind_shown
from rnncore.backend.arrays import dtype_name, host_numbers
from rnncore.backend.registry import backends
from rnncore.errors import InterchangeError
from rnncore.interchange.keras.cells import Cell, Weights, cells_of, portable
from rnncore.interchange.keras.config import Step, find
from rnncore.interchange.keras.describe import arrays_of, describe
from rnncore.interchange.libraries import needed
from rnncore.interchange.portable import Asked, Portable
from rnncore.typing import Host

__all__ = ["make", "owns", "read"]

OPTIONS = ("return_sequences", "return_state")


def owns(module: object) -> bool:
    """Whether it is a layer or a model of Keras's, without importing it."""
    return any(
        kind.__name__ == "Layer" and kind.__module__.partition(".")[0] == "keras" for kind in type(module).__mro__
    )


def read(module: Any, asked: Asked) -> Portable:
    """Convert a layer or model: SimpleRNN, Bidirectional, RNN with SimpleRNNCells, a Sequential or functional model.

    Of a model, the RNN layers that follow each other directly are the network, and the others are left out;
    ``asked.name`` is the name of one of its layers where there are several such networks.

    Raises
    ------
    InterchangeError, ArgumentValueError
    """
    keras = needed("keras", "keras", "a Keras layer")
    described = _described(keras, module)
    own = keras.backend.backend()
    usable = any(b.name == own and b.usable for b in backends())

    def load(cell: Cell) -> Weights:
        found = _resolve(module, cell.where)
        if getattr(found, "kernel", None) is None:
            raise InterchangeError(
                f"{cell.name}: expected a layer with weights; build it, as by layer.build((None, None, input_size))"
            )
        _check_function(found.activation, cell.name)
        bias = None if found.bias is None else _numbers(found.bias)
        kernel, recurrent = _numbers(found.kernel), _numbers(found.recurrent_kernel)
        return Weights(kernel, recurrent, bias, dtype_name(found.kernel.value.dtype))

    return portable(find(described), asked, load, backend=own if usable else None)


def make(network: Portable, **options: Any) -> Any:
    """Make a ``keras.Sequential`` of SimpleRNN layers, in Bidirectional ones if need be, for inputs (B, T, I).

    Parameters
    ----------
    network : Portable
        Both biases are added, as Keras has one; ``batch_first`` is not kept, as it has no other order.
    return_sequences : bool, optional
        Whether the output has every step, True by default, or only the last.
    return_state : bool, optional
        Make a functional model that returns the output and, in the order of h_n, the last state of each layer and
        direction; False by default.

    Raises
    ------
    InterchangeError
        If Keras has no such activation, or its backend no such dtype.
    """
    options_of("to_module", options, OPTIONS)
    keras = needed("keras", "keras", "a Keras model")
    sequences, state = (flag(name, options.get(name, name == OPTIONS[0])) for name in OPTIONS)
    described = describe(network, return_sequences=sequences, return_state=state)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the dtype, which is refused here
        held = dtype_name(keras.ops.zeros((), dtype=network.dtype).dtype)
    if held != network.dtype:
        raise InterchangeError(
            f"dtype: Keras's backend {keras.backend.backend()} holds {network.dtype} as {held}; convert the network first, "
            f"with rnn.to(dtype={held!r})"
        )
    if state:
        model = _functional(keras, network, described["config"]["layers"])
        described = _described(keras, model)
    else:
        model = keras.Sequential.from_config(described["config"])
    cells = [cell for row in cells_of(find(described).chains[0]) for cell in row]
    for cell, arrays in zip(cells, arrays_of(network), strict=True):
        own = _resolve(model, cell.where)
        for variable, array in zip((own.kernel, own.recurrent_kernel, own.bias), arrays, strict=False):
            variable.assign(array)
    return model


def _described(keras: Any, module: Any) -> Any:
    """The configuration, as a file would hold it."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of activations that are refused by name
            return json.loads(json.dumps(keras.saving.serialize_keras_object(module)))
    except Exception as error:  # get_config may be the user's own, and Keras raises whatever it meets
        raise InterchangeError(f"{kind_shown(module)}: it has no configuration: {brief(error)}") from error


def _functional(keras: Any, network: Portable, described: Sequence[Any]) -> Any:
    """A model that returns the states too, which no Sequential does."""
    inputs = keras.Input((None, network.spec.input_size), dtype=network.dtype)
    output, states = inputs, []
    for entry in described[1:]:
        found = keras.saving.deserialize_keras_object(entry)(output)
        output, *more = found if isinstance(found, (list, tuple)) else (found,)
        states += more
    return keras.Model(inputs, [output, *states])


def _numbers(variable: Any) -> Host:
    """The numbers of a variable on the host, bfloat16 as float32."""
    host = host_numbers(variable.value)
    return host.astype("f4") if host.dtype.name == "bfloat16" else host


def _resolve(module: Any, where: Sequence[Step]) -> Any:
    for step in where:
        module = getattr(module, step.attribute)
        if isinstance(step.key, str):
            module = next(layer for layer in module if layer.name == step.key)
        elif step.key is not None:
            module = module[step.key]
    return module


def _check_function(activation: Any, name: str) -> None:
    """A configuration has only the name of a function, which a user's own may share with Keras's."""
    home = getattr(activation, "__module__", None) if hasattr(activation, "__name__") else type(activation).__module__
    if str(home).partition(".")[0] != "keras":
        raise InterchangeError(
            f"activation of {name}: expected one of Keras's own, got {kind_shown(activation)} from {home}"
        )
