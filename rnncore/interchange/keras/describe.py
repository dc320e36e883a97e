"""A network as the configuration of a Keras model: a Sequential of SimpleRNN layers, in Bidirectional ones if need be."""

from __future__ import annotations

from typing import Any

import numpy as np

from rnncore.interchange.keras.activations import activation_of
from rnncore.interchange.portable import Portable, layers_of
from rnncore.typing import Host

__all__ = ["arrays_of", "describe"]


# In these dtypes Keras's own initialiser of recurrent kernels, a QR decomposition, cannot run, and no layer be built.
HALVES = ("float16", "bfloat16")


def describe(
    network: Portable, *, return_sequences: bool = True, return_state: bool = False, activation: Any = None
) -> dict[str, Any]:
    """Return the configuration, which Keras reads.

    Parameters
    ----------
    network : Portable
        Its ``batch_first`` is not said: Keras's axes are always (B, T, I).
    return_sequences : bool
        Of the last layer; the others always return sequences.
    return_state : bool
        Of every layer.
    activation : optional
        Instead of the network's.

    Raises
    ------
    InterchangeError
        If Keras has no such activation.
    """
    spec, dtype = network.spec, network.dtype
    if activation is None:
        activation = activation_of(spec.nonlinearity, dtype)
    layers = [_object("InputLayer", name="input_layer", batch_shape=[None, None, spec.input_size], dtype=dtype)]
    for k, units in enumerate(spec.hidden_sizes):
        last = k == spec.num_layers - 1
        options = {
            "dtype": dtype,
            "units": units,
            "activation": activation,
            "use_bias": spec.bias,
            "return_sequences": return_sequences or not last,
            "return_state": return_state,
        }
        if dtype in HALVES:
            options["recurrent_initializer"] = "glorot_uniform"
        suffix = f"_{k}" if k else ""
        name = f"simple_rnn{suffix}"
        if spec.bidirectional:
            forward, backward = (
                _object("SimpleRNN", name=f"{way}_{name}", go_backwards=way == "backward", **options)
                for way in ("forward", "backward")
            )
            layer = _object(
                "Bidirectional",
                name=f"bidirectional{suffix}",
                dtype=dtype,
                merge_mode="concat",
                layer=forward,
                backward_layer=backward,
            )
        else:
            layer = _object("SimpleRNN", name=name, go_backwards=False, **options)
        layer["build_config"] = {"input_shape": [None, None, spec.layer_input_size(k)]}
        layers.append(layer)
        if spec.dropout and not last:
            layers.append(_object("Dropout", name=f"dropout{suffix}", dtype=dtype, rate=spec.dropout))
    return {**_object("Sequential", name="sequential", dtype=dtype, layers=layers), "module": "keras"}


def arrays_of(network: Portable) -> list[tuple[Host, ...]]:
    """Return kernel, recurrent kernel and, where there are biases, their sum, of each layer and direction in order."""
    return [
        tuple(np.ascontiguousarray(a.T) for a in (part.weight_ih, part.weight_hh, part.bias) if a is not None)
        for row in layers_of(network)
        for part in row
    ]


def _object(kind: str, **config: Any) -> dict[str, Any]:
    return {"module": "keras.layers", "class_name": kind, "config": config, "registered_name": None}
