"""rnncore's own network as a ``torch.nn.Module``: what ``torch.nn.RNN`` lacks, under the same names of parameters."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

import rnncore
from rnncore.network import calls
from rnncore.network.engine import Explanation, check_kernel_mode, make_engine
from rnncore.network.network import Network
from rnncore.network.results import State, Trace
from rnncore.typing import KernelMode

__all__ = ["ElmanRNN"]


class ElmanRNN(torch.nn.Module):
    """A vanilla (Elman) network with a width for each layer, any nonlinearity, a clip, lengths and a trace.

    The arguments are those of :class:`rnncore.RNN`, and so are the numbers; the parameters are ``torch.nn.Parameter`` with the
    names, order and initial values of ``torch.nn.RNN``'s. For what ``torch.nn.RNN`` can do, :class:`rnncore_torch.nn.RNN` does
    it in less time per call.

    Parameters
    ----------
    input_size : int
    hidden_size : int or sequence of int
        Width of every layer, or one width for each.
    num_layers : int
    nonlinearity : str, Nonlinearity or pair of callables
        A name, ``rnncore.get_nonlinearity("leaky_relu", alpha=0.1)``, or a function of z and its derivative.
    bias, batch_first : bool
    dropout : float
        Probability of zeroing an output between layers, when training. The mask is drawn on the host, from a seed that is drawn
        from PyTorch's generator.
    bidirectional : bool
    clip : float, optional
        Limit of the pre-activation.
    kernel : {"auto", "reference", "require"}
    check_finite : bool
        Refuse NaN and infinity in inputs, states, parameters and outputs.
    device, dtype : optional

    Raises
    ------
    RnncoreError
        Naming the argument, what was expected and what was got.

    Examples
    --------
    >>> import torch
    >>> from rnncore_torch import nn
    >>> rnn = nn.ElmanRNN(5, [6, 4], nonlinearity="softplus", clip=3.0)
    >>> output, h_n = rnn(torch.ones(7, 3, 5), lengths=[7, 2, 0])
    >>> output.shape, [h.shape for h in h_n]
    (torch.Size([7, 3, 4]), [torch.Size([1, 3, 6]), torch.Size([1, 3, 4])])
    >>> output.sum().backward()
    >>> rnn.weight_hh_l1.grad.shape
    torch.Size([4, 4])
    """

    def __init__(
        self,
        input_size: int,
        *args: Any,
        clip: float | None = None,
        kernel: KernelMode = "auto",
        check_finite: bool = False,
        device: Any = None,
        dtype: torch.dtype | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__()
        self.spec = rnncore.RNNSpec.make(input_size, *args, clip=clip, **kwargs)
        self.kernel, self.check_finite = check_kernel_mode(kernel), check_finite
        calls.warn_if_dropout_is_idle(self.spec)
        for name, shape in self.spec.parameter_shapes().items():
            self.register_parameter(name, torch.nn.Parameter(torch.empty(shape, device=device, dtype=dtype)))
        self._network = self._made()
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw all parameters as ``torch.nn.RNN`` does: from U(-b, b) with b = 1 / sqrt(H), for each layer's own H."""
        for width, row in zip(self.spec.hidden_sizes, self.spec.names, strict=True):
            bound = 1.0 / math.sqrt(width)
            for name in (n for names in row for n in names):
                torch.nn.init.uniform_(getattr(self, name), -bound, bound)

    def forward(self, input: Tensor, hx: Any = None, lengths: Any = None) -> tuple[Tensor, State]:
        """Run the network.

        Parameters
        ----------
        input : Tensor (T, B, I), (B, T, I) with batch_first, or unbatched (T, I)
        hx : Tensor (D*L, B, H), unbatched (D*L, H), optional
            Zero if not given. Where the layers differ in width, a sequence of (D, B, H_k), one for each layer.
        lengths : sequence of int or integer Tensor, optional
            The valid steps of each sequence, in [0, T]. The rest is padding: never read, and 0 in the output.

        Returns
        -------
        output : Tensor (T, B, D*H), (B, T, D*H) or (T, D*H)
        h_n : Tensor or tuple of Tensor, shape of hx
            The last valid state; hx where the length is 0.

        Raises
        ------
        RnncoreError
            Naming the argument, what was expected and what was got.
        """
        # Lengths and masks are made on the host, where no compiler can follow.
        if torch.compiler.is_compiling() and (lengths is not None or self._drops()):
            from rnncore_torch import _compiled

            found: tuple[Tensor, State] = _compiled.uncompiled(type(self)._forward, self, input, hx, lengths)
            return found
        return self._forward(input, hx, lengths)

    def trace(self, input: Tensor, hx: Any = None, lengths: Any = None) -> Trace:
        """Run the network and return every state and every pre-activation, which autograd follows.

        >>> import torch
        >>> from rnncore_torch import nn
        >>> trace = nn.ElmanRNN(5, [6, 4]).trace(torch.ones(7, 3, 5))
        >>> [h.shape for h in trace.h]
        [torch.Size([1, 7, 3, 6]), torch.Size([1, 7, 3, 4])]
        """
        return calls.trace(self.network, input, hx, lengths, self.training, self._seed())

    def explain(self, *, steps: int = 100, batch: int = 1) -> Explanation:
        """Report which code runs the scans of a call with this many steps and rows, and why."""
        return rnncore.RNN.from_network(self.network).explain(steps=steps, batch=batch)

    @property
    def network(self) -> Network:
        """The network on the current parameters, not copies; ``rnncore.RNN.from_network(module.network)`` is a model of it."""
        params = self._by_name()
        first, engine = next(iter(params.values())), self._network.engine
        if engine.dtype != first.dtype or engine.device != first.device:
            self._network = self._made()
        return self._network.with_params(params)

    @property
    def input_size(self) -> int:
        """Features of the input, I."""
        return self.spec.input_size

    @property
    def hidden_size(self) -> int | tuple[int, ...]:
        """Width of every layer; one for each where they differ."""
        return self.spec.hidden_sizes[0] if self.spec.uniform else self.spec.hidden_sizes

    def extra_repr(self) -> str:
        """The arguments, as ``torch.nn`` shows them."""
        return ", ".join(rnncore.RNN.from_network(self.network)._repr_parts()[:-1])

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "_network"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]  # PyTorch gives it no types
        self._network = self._made()

    def _by_name(self) -> dict[str, Tensor]:
        # By getattr, for weights that are parametrised, or replaced for one call.
        return {name: getattr(self, name) for name in self.spec.parameter_shapes()}

    def _made(self) -> Network:
        params = self._by_name()
        first = next(iter(params.values()))
        engine = make_engine(rnncore.get_backend("torch"), device=first.device, dtype=first.dtype, kernel=self.kernel)
        return Network(self.spec, params, engine, self.check_finite)

    def _forward(self, x: Tensor, h0: Any, lengths: Any) -> tuple[Tensor, State]:
        output, h_n = calls.forward(self.network, x, h0, lengths, self.training, self._seed())
        if torch.is_grad_enabled() and not self.spec.bidirectional and lengths is None:
            output = output.clone()  # for the caller to change in place: the backward pass reads these states
        return output, h_n

    def _drops(self) -> bool:
        return self.training and self.spec.dropout > 0

    def _seed(self) -> int | None:
        return int(torch.randint(2**62, ())) if self._drops() else None
