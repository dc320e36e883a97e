"""``RNN`` and ``RNNCell`` with the arguments, parameters, shapes and errors of ``torch.nn``'s, on rnncore's scans.

>>> import torch
>>> from rnncore_torch import nn
>>> rnn = nn.RNN(5, 6, num_layers=2)
>>> output, h_n = rnn(torch.ones(4, 3, 5))
>>> output.shape, h_n.shape
(torch.Size([4, 3, 6]), torch.Size([2, 3, 6]))
>>> torch.nn.RNN(5, 6, num_layers=2).load_state_dict(rnn.state_dict())
<All keys matched successfully>
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.utils.rnn import PackedSequence

from rnncore import get_nonlinearity
from rnncore.backend.contract import ScanRequest
from rnncore.network.engine import Choice, Explanation
from rnncore_torch import _cuda, _cudnn, _private, _steps
from rnncore_torch._elman import ElmanRNN
from rnncore_torch._export import layer_operator
from rnncore_torch._layer import layer
from rnncore_torch._packed import packed_layer
from rnncore_torch._tools import with_types

__all__ = ["RNN", "ElmanRNN", "RNNCell", "as_torch"]

_NONLINEARITIES = {name: get_nonlinearity(name) for name in ("tanh", "relu")}


class RNN(torch.nn.RNNBase):
    """A vanilla (Elman) network with the arguments, parameters, shapes, random draws and errors of ``torch.nn.RNN``.

    It is a ``torch.nn.RNNBase``, and not a ``torch.nn.RNN``, which ``torch.compile`` refuses to look into: :func:`as_torch`
    is for tools that look for that type. State dicts go both ways, and the same seed gives the same initial values and the
    same dropout.

    Parameters
    ----------
    input_size, hidden_size, num_layers : int
    nonlinearity : {"tanh", "relu"}
    bias, batch_first : bool
    dropout : float
        Probability of zeroing an output between layers, when training.
    bidirectional : bool
    device, dtype : optional

    Notes
    -----
    Beyond ``torch.nn.RNN``: ``torch.compile`` without a graph break, ``torch.export``, ``torch.func.vmap`` with all that is
    built on it, and derivatives of every order, forward mode included. A PackedSequence breaks the graph, as its lengths
    are numbers that Python reads. ``torch.onnx.export`` makes an RNN node of each layer. ``torch.jit.trace`` and
    ``torch.jit.script`` record ``torch.nn.RNN``'s own operation, and ``torch.fx`` the call of the module.

    On CUDA a call runs on the CuPy backend's kernels where :meth:`explain` says so, else on cuDNN as ``torch.nn.RNN`` does:
    then with first derivatives only, in backward passes, and with TF32 as ``torch.backends.cudnn`` has it. Forward mode,
    ``torch.func`` and compiled calls never do, and nothing does where ``torch.backends.cudnn.enabled`` is off or
    RNNCORE_TORCH_CUDA is "pytorch" or "kernels".

    The output may be changed in place before the backward pass, which then computes the states again. A change that autograd
    is not told of, through ``.data`` or a NumPy array, is not noticed, and the gradients are wrong.

    ``h_t = f(W_ih x_t + b_ih + W_hh h_{t-1} + b_hh)``, Elman (1990), "Finding structure in time".

    Examples
    --------
    >>> import torch
    >>> from rnncore_torch import nn
    >>> rnn = nn.RNN(5, 6, batch_first=True, bidirectional=True)
    >>> rnn
    RNN(5, 6, batch_first=True, bidirectional=True)
    >>> output, h_n = rnn(torch.ones(3, 4, 5))
    >>> output.sum().backward()
    >>> rnn.weight_hh_l0.grad.shape
    torch.Size([6, 6])
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        if "proj_size" in kwargs:
            raise ValueError("proj_size argument is only supported for LSTM, not RNN or GRU")
        if len(args) > 3:
            nonlinearity, args = args[3], args[:3] + args[4:]
        else:
            nonlinearity = kwargs.pop("nonlinearity", "tanh")
        if nonlinearity not in _NONLINEARITIES:
            raise ValueError(f"Unknown nonlinearity '{nonlinearity}'. Select from 'tanh' or 'relu'.")
        self.nonlinearity = nonlinearity
        # By name, as a class may have torch.nn.RNN for another base.
        torch.nn.RNNBase.__init__(self, f"RNN_{nonlinearity.upper()}", *args, **kwargs)

    def forward(self, input: Tensor | PackedSequence, hx: Tensor | None = None) -> tuple[Any, Tensor]:
        """Run the network.

        Parameters
        ----------
        input : Tensor (T, B, I), (B, T, I) with batch_first, unbatched (T, I), or PackedSequence
        hx : Tensor (D*L, B, H), unbatched (D*L, H), optional
            Zero if not given.

        Returns
        -------
        output : Tensor (T, B, D*H), (B, T, D*H), (T, D*H), or PackedSequence
        h_n : Tensor, shape of hx

        Raises
        ------
        ValueError, RuntimeError
            With ``torch.nn.RNN``'s own kinds and words.
        """
        output, h_n = _whole(self, input, hx)
        return output, h_n

    def __prepare_scriptable__(self) -> torch.nn.Module:
        """What ``torch.jit.script`` compiles."""
        return as_torch(self)

    def _forward(self, input: Tensor | PackedSequence, hx: Tensor | None) -> tuple[Any, Tensor]:
        # TorchScript's tracer would record the steps of its example.
        if not torch.compiler.is_compiling() and _is_traced():
            # Of its `self` it needs no more than an RNNBase, which the types do not say.
            found: tuple[Any, Tensor] = torch.nn.RNN.forward(self, input, hx)  # type: ignore[call-overload]
            return found
        weights = self.all_weights
        if isinstance(input, PackedSequence):
            return self._forward_packed(input, hx)
        if input.dim() not in (2, 3):
            raise ValueError(f"RNN: Expected input to be 2D or 3D, got {input.dim()}D tensor instead")
        batched = input.dim() == 3
        if hx is not None and hx.dim() != input.dim():
            kind = "batched 3-D" if batched else "unbatched 2-D"
            raise RuntimeError(f"For {kind} input, hx should also be {input.dim()}-D but got {hx.dim()}-D tensor")
        if batched and self.batch_first:
            x = input.transpose(0, 1)
        else:
            x = input if batched else input.unsqueeze(1)
        if hx is None:
            shape = (len(weights), x.size(1), self.hidden_size)
            h0 = torch.zeros(shape, dtype=x.dtype, device=x.device)
        else:
            h0 = hx if batched else hx.unsqueeze(1)
        self._check(x, h0, weights, x.size(1))
        if x.size(0) == 0:
            raise RuntimeError("Expected sequence length to be larger than 0 in RNN")
        output, last = self._run(x, h0, weights, None, x.size(0), x.size(1))
        if not batched:
            return output.squeeze(1), last.squeeze(1)
        # h_n is made of the states; a view keeps its part of the gradient out of hooks on the output and of output.grad.
        return output.transpose(0, 1) if self.batch_first else output.view_as(output), last

    def explain(self, *, steps: int = 100, batch: int = 1) -> Explanation:
        """Which code runs the scans of a call with these numbers of steps and rows, outside a compiler, and why.

        >>> from rnncore_torch import nn
        >>> print(nn.RNN(5, 6, dtype=torch.bfloat16).explain())
        backend torch, device cpu, bfloat16, kernel='auto'
          nonlinear scan: kernel (PyTorch's operations, as bfloat16 is not a dtype of the host's scans)
          linear scan: kernel (PyTorch's operations, as bfloat16 is not a dtype of the host's scans)
        """
        weight = self.all_weights[0][1]
        activation, dtype = _NONLINEARITIES[self.nonlinearity], str(weight.dtype).removeprefix("torch.")
        request = ScanRequest("nonlinear", steps, batch, self.hidden_size, dtype, weight.device, False, activation)
        against_time = replace(request, scan="linear", reverse=True, nonlinearity=None)
        reasons = [_steps.reason(r) for r in (request, against_time)]
        if (
            weight.is_cuda
            and _cudnn.acceptable(weight)
            and _cudnn.picked(_cuda.index_of(weight), steps, batch, self.hidden_size, weight.dtype, activation)
        ):
            reasons = [f"{_cudnn.WORDS}; not {r}" for r in reasons]
        choices = tuple(Choice(k, "kernel", r) for k, r in zip(("nonlinear", "linear"), reasons, strict=True))
        return Explanation("torch", str(weight.device), dtype, "auto", choices)

    def _forward_packed(self, packed: PackedSequence, hx: Tensor | None) -> tuple[PackedSequence, Tensor]:
        data, batch_sizes, sorted_indices, unsorted_indices = packed
        sizes: list[int] = batch_sizes.tolist()
        weights = self.all_weights
        if hx is None:
            shape = (len(weights), sizes[0], self.hidden_size)
            h0 = torch.zeros(shape, dtype=data.dtype, device=data.device)
        else:
            h0 = hx if sorted_indices is None else hx.index_select(1, sorted_indices)
        if data.dim() != 2:
            raise RuntimeError(f"input must have 2 dimensions, got {data.dim()}")
        self._check(data, h0, weights, sizes[0])
        output, last = self._run(data, h0, weights, batch_sizes, len(sizes), sizes[0])
        if unsorted_indices is not None:
            last = last.index_select(1, unsorted_indices)
        return PackedSequence(output, batch_sizes, sorted_indices, unsorted_indices), last

    def _run(
        self, x: Tensor, h0: Tensor, weights: list[list[Any]], batch_sizes: Tensor | None, steps: int, batch: int
    ) -> tuple[Tensor, Tensor]:
        f = _NONLINEARITIES[self.nonlinearity]
        if _private.is_subclassed(x, h0, weights) or _cudnn.takes(x, h0, weights, steps, batch, _computed_in(x), f):
            return _cudnn.run(self, x, h0, weights, batch_sizes)
        x, h0, weights = _autocast(x, h0, weights)
        sizes = None if batch_sizes is None else batch_sizes.tolist()
        directions = 2 if self.bidirectional else 1
        exported = sizes is None and torch.compiler.is_exporting()
        below, last = x, []
        for k in range(self.num_layers):
            if k > 0 and self.dropout > 0 and self.training:
                below = functional.dropout(below, self.dropout, True)
            if exported:
                rows = slice(k * directions, (k + 1) * directions)
                below, h_n = layer_operator(below, h0[rows], weights[rows], self.nonlinearity)
                last.append(h_n)
                continue
            states = []
            for d in range(directions):
                row = k * directions + d
                w_ih, w_hh, *biases = weights[row]
                bias = biases[0] + biases[1] if biases else None
                if sizes is None:
                    h = layer(below, h0[row], w_ih, w_hh, bias, f, d == 1)
                    last.append(h[0] if d == 1 else h[-1])
                else:
                    h, h_last = packed_layer(below, sizes, h0[row], w_ih, w_hh, bias, f, d == 1)
                    last.append(h_last)
                states.append(h)
            below = states[0] if directions == 1 else torch.cat(states, -1)
        return below, torch.cat(last) if exported else torch.stack(last)

    def _check(self, x: Tensor, h0: Tensor, weights: list[list[Any]], batch: int) -> None:
        """``torch.nn.RNN``'s own complaints."""
        weight, autocast = weights[0][0], _is_autocast(x.device.type)
        if x.dtype != weight.dtype and not autocast:
            raise ValueError(
                f"RNN input dtype ({x.dtype}) does not match weight dtype ({weight.dtype}). "
                f"Convert input: input.to({weight.dtype}), or convert model: model.to({x.dtype})"
            )
        if x.size(-1) != self.input_size:
            raise RuntimeError(
                f"input.size(-1) must be equal to input_size. Expected {self.input_size}, got {x.size(-1)}"
            )
        expected = (len(weights), batch, self.hidden_size)
        if tuple(h0.shape) != expected:
            raise RuntimeError(f"Expected hidden size {expected}, got {list(h0.shape)}")
        for what, other in (("parameter", weight), ("hidden", h0)):
            if other.device != x.device:
                raise RuntimeError(
                    f"Input and {what} tensors are not at the same device, found input tensor at {x.device} "
                    f"and {what} tensor at {other.device}"
                )
        if h0.dtype != weight.dtype and not autocast:
            raise RuntimeError(
                f"mat1 and mat2 must have the same dtype, but got {_TYPE_NAMES.get(h0.dtype, h0.dtype)} "
                f"and {_TYPE_NAMES.get(weight.dtype, weight.dtype)}"
            )


class RNNCell(torch.nn.RNNCell):
    """One step with the arguments, parameters, shapes and errors of ``torch.nn.RNNCell``, which it is an instance of.

    Fewer operations than torch's: the second product is added to the first in one.

    Examples
    --------
    >>> import torch
    >>> from rnncore_torch import nn
    >>> nn.RNNCell(5, 6, nonlinearity="relu")(torch.ones(3, 5)).shape
    torch.Size([3, 6])
    """

    def forward(self, input: Tensor, hx: Tensor | None = None) -> Tensor:
        """The next state (B, H) or (H,) of input (B, I) or (I,) and state hx (B, H) or (H,), zero if not given."""
        state: Tensor = _whole(self, input, hx)
        return state

    def __prepare_scriptable__(self) -> torch.nn.Module:
        """What ``torch.jit.script`` compiles."""
        return as_torch(self)

    def _forward(self, input: Tensor, hx: Tensor | None) -> Tensor:
        for what, x in (("input", input), ("hidden", hx)):
            if x is not None and x.dim() not in (1, 2):
                raise ValueError(f"RNNCell: Expected {what} to be 1D or 2D, got {x.dim()}D instead")
        activate = _CELL.get(self.nonlinearity)
        if activate is None:
            raise RuntimeError(f"Unknown nonlinearity: {self.nonlinearity}")
        batched = input.dim() == 2
        x = input if batched else input.unsqueeze(0)
        if hx is None:
            h = torch.zeros((x.size(0), self.hidden_size), dtype=x.dtype, device=x.device)
        else:
            h = hx if batched else hx.unsqueeze(0)
        if x.size(1) != self.input_size:
            raise RuntimeError(f"input has inconsistent input_size: got {x.size(1)} expected {self.input_size}")
        if h.size(0) != x.size(0):
            raise RuntimeError(f"Input batch size {x.size(0)} doesn't match hidden0 batch size {h.size(0)}")
        if h.size(1) != self.hidden_size:
            raise RuntimeError(f"hidden0 has inconsistent hidden_size: got {h.size(1)}, expected {self.hidden_size}")
        p = functional.linear(x, self.weight_ih, self.bias_ih)
        if self.bias_hh is not None:
            p = p + self.bias_hh
        state = activate(torch.addmm(p, h, self.weight_hh.t()))
        return state if batched else state.squeeze(0)


def as_torch(module: torch.nn.Module) -> torch.nn.Module:
    """The same model with ``torch.nn.RNN`` and ``RNNCell`` in the place of this module's, on the same parameters.

    For tools that look for exactly those types. Subclasses, and modules with a parametrised weight, stay.

    Parameters
    ----------
    module : torch.nn.Module
        Not changed.

    Returns
    -------
    torch.nn.Module
        A shallow copy of each module that is or holds one of these; any other is the same object.

    Examples
    --------
    >>> import torch
    >>> from rnncore_torch import nn
    >>> net = torch.nn.ModuleList([nn.RNN(5, 6), torch.nn.Linear(6, 1)])
    >>> found = nn.as_torch(net)
    >>> type(found[0]) is torch.nn.RNN, found[0].weight_hh_l0 is net[0].weight_hh_l0, found[1] is net[1]
    (True, True, True)
    """
    return with_types(module, {RNN: torch.nn.RNN, RNNCell: torch.nn.RNNCell})


# Documented, but not among the exported names.
_is_traced: Callable[[], bool] = torch.jit.is_tracing  # type: ignore[attr-defined]


def _whole(module: Any, input: Any, hx: Any) -> Any:
    """A call of a module as one function: ``torch.fx`` records it and looks no further."""
    return module._forward(input, hx)


torch.fx.wrap("_whole")


def _autocast(x: Tensor, h0: Tensor, weights: list[list[Any]]) -> tuple[Tensor, Tensor, list[list[Any]]]:
    """The arguments in autocast's dtype, as ``torch.nn.RNN`` casts them; float64 stays."""
    kind = x.device.type
    if not _is_autocast(kind):
        return x, h0, weights

    def cast(a: Tensor) -> Tensor:
        return a.to(_computed_in(a))

    return cast(x), cast(h0), [[cast(w) for w in row] for row in weights]


def _computed_in(x: Tensor) -> torch.dtype:
    kind = x.device.type
    return torch.get_autocast_dtype(kind) if _is_autocast(kind) and x.dtype != torch.float64 else x.dtype


def _is_autocast(kind: str) -> bool:
    return kind not in _WITHOUT_AUTOCAST and torch.is_autocast_enabled(kind)


# Kinds of devices for which `torch.is_autocast_enabled` raises. Found at import: torch.compile of PyTorch 2.11 and before
# cannot trace the question, and the graph would break.
_WITHOUT_AUTOCAST = frozenset(
    kind
    for kind in ("fpga", "hip", "ideep", "lazy", "meta", "opencl", "opengl", "ve", "vulkan")
    if not torch.amp.is_autocast_available(kind)
)


# How PyTorch's own messages about products call the dtypes.
_TYPE_NAMES = {
    torch.float64: "Double",
    torch.float32: "Float",
    torch.float16: "Half",
    torch.bfloat16: "BFloat16",
}
_CELL = {"tanh": torch.tanh, "relu": torch.relu}
