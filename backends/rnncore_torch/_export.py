"""A layer with all its directions as one operator: what ``torch.export`` records, and in ONNX one RNN node.

The operator is made of others (PyTorch calls it CompositeImplicitAutograd), so it has their derivatives and transformations.
A compiler sees the products and the scans of :mod:`rnncore_torch._ops`; ``torch.onnx.export`` decomposes it into
``torch.onnx.ops.symbolic_multi_out``, which PyTorch translates by itself, so no table of translations has to be given.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from rnncore import get_nonlinearity, scan
from rnncore_torch import _namespace as xp
from rnncore_torch import _ops, _private
from rnncore_torch._layer import layer

__all__ = ["layer_operator"]

# Kept as long as the process: the operator ends with it.
_library: Any = torch.library.Library("rnncore", "FRAGMENT")  # type: ignore[no-untyped-call]  # PyTorch gives it no types
_library.define("layer(Tensor x, Tensor h0, Tensor[] weights, str nonlinearity) -> (Tensor, Tensor)")


def layer_operator(x: Tensor, h0: Tensor, rows: list[list[Any]], nonlinearity: str) -> tuple[Tensor, Tensor]:
    """The states (T, B, D*H) and the last ones (D, B, H) of x (T, B, I) from h0 (D, B, H), as one operator.

    `rows` has the weights of each of the D directions: w_ih, w_hh and, if there are biases, b_ih and b_hh.
    """
    output, h_n = torch.ops.rnncore.layer(x, h0, [w for row in rows for w in row], nonlinearity)
    return output, h_n


def _layer(x: Tensor, h0: Tensor, weights: list[Tensor], nonlinearity: str) -> tuple[Tensor, Tensor]:
    each = len(weights) // h0.size(0)
    rows = [weights[k : k + each] for k in range(0, len(weights), each)]
    # Whatever watches PyTorch's operations, as compilers do, is to see each scan whole. But the operator of a scan has no
    # forward mode, and `torch.func` differentiates no custom function inside of an operator: then plain operations run.
    followed = _private.is_differentiated()
    plain = not _private.is_transformed() and _private.is_concrete(x, h0, *weights)
    if not plain and torch.onnx.is_in_onnx_export():
        return _onnx_node(x, h0, rows, nonlinearity)
    f = get_nonlinearity(nonlinearity)
    states, last = [], []
    for d, (w_ih, w_hh, *biases) in enumerate(rows):
        bias = biases[0] + biases[1] if biases else None
        reverse = d == 1
        if plain:
            h = layer(x, h0[d], w_ih, w_hh, bias, f, reverse)
        else:
            p = functional.linear(x, w_ih, bias)
            if followed:
                h = scan.nonlinear(p, h0[d], w_hh, nonlinearity=f, reverse=reverse, xp=xp)
            else:
                h = _ops.nonlinear_scan(p, h0[d], w_hh, nonlinearity, reverse)
        states.append(h)
        last.append(h[0] if reverse else h[-1])
    return states[0] if len(rows) == 1 else torch.cat(states, -1), torch.stack(last)


def _onnx_node(x: Tensor, h0: Tensor, rows: list[list[Tensor]], nonlinearity: str) -> tuple[Tensor, Tensor]:
    """https://onnx.ai/onnx/operators/onnx__RNN.html, with ``layout=0``, the only one that runtimes support.

    Every version of the node from 14 on means the same, so none is asked for.
    """
    directions, batch, width = h0.shape
    w, r = (torch.stack([row[k] for row in rows]) for k in (0, 1))
    b = torch.stack([torch.cat(row[2:]) for row in rows]) if len(rows[0]) > 2 else None
    y, y_h = torch.onnx.ops.symbolic_multi_out(
        "RNN",
        (x, w, r, b, None, h0),
        {
            "hidden_size": int(width),
            "direction": "forward" if directions == 1 else "bidirectional",
            "activations": [nonlinearity.capitalize()] * directions,
        },
        dtypes=(x.dtype, x.dtype),
        shapes=((x.size(0), directions, batch, width), (directions, batch, width)),
    )
    return y.transpose(1, 2).flatten(2), y_h


_library.impl("layer", _layer, "CompositeImplicitAutograd")
# Transformations take the same parts.
_library.impl("layer", _layer, "FuncTorchBatchedDecomposition")
