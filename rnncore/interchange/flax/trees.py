"""The nested names under which Flax keeps the arrays of the modules that are made here."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from rnncore.interchange.portable import Portable, layers_of
from rnncore.typing import Host

__all__ = ["KERNELS", "tree"]

# By an interface, the parts of a cell that have the weights of the input and of the state.
KERNELS = {"nnx": ("dense_i", "dense_h"), "linen": ("i", "h")}


def tree(network: Portable, api: str, leaf: Callable[[Host], Any]) -> dict[str, Any]:
    """Return the arrays of a network as Flax nests them: variables of linen, or a pure dict of the parameters of nnx."""
    found: dict[str, Any] = {}
    layers, step = layers_of(network), 2 if network.spec.dropout else 1
    into, state = KERNELS[api]
    for k, row in enumerate(layers):
        sides: dict[str, Any] = {}
        for side, part in zip(("forward_rnn", "backward_rnn"), row, strict=False):
            dense = {"kernel": leaf(np.ascontiguousarray(part.weight_ih.T))}
            if part.bias is not None or api == "linen":
                dense["bias"] = leaf(
                    np.zeros(len(part.weight_hh), part.weight_hh.dtype) if part.bias is None else part.bias
                )
            sides[side] = {"cell": {into: dense, state: {"kernel": leaf(np.ascontiguousarray(part.weight_hh.T))}}}
        layer = sides if len(row) == 2 else sides["forward_rnn"]
        if len(layers) == 1:
            found = layer
        elif api == "nnx":
            found.setdefault("layers", {})[str(step * k)] = layer
        else:
            found[f"layers_{step * k}"] = layer
    return {"params": found} if api == "linen" else found
