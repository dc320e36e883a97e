"""RNN: a network with torch.nn.RNN's arguments and shapes, on any backend, with the gradient calls that torch lacks."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rnncore.arguments import Rng, as_generator, check_mapping, describe, flag, integer, positive_int, shown
from rnncore.backend.contract import Backend, ScanRequest
from rnncore.errors import ArgumentTypeError, ArgumentValueError, StateDictError
from rnncore.init import draw
from rnncore.model.base import Parameterised
from rnncore.model.rnn_cell import RNNCell
from rnncore.model.saving import save
from rnncore.network import calls
from rnncore.network.engine import Explanation
from rnncore.network.network import Network
from rnncore.network.results import Pullback, State, Tangents, Trace
from rnncore.spec import RNNSpec
from rnncore.typing import Array, KernelMode

__all__ = ["RNN", "bound_to"]


class RNN(Parameterised):
    """A vanilla (Elman) recurrent network: ``h_t = f(x_t W_ih^T + b_ih + h_{t-1} W_hh^T + b_hh)``.

    Parameters
    ----------
    input_size : int
        Features of the input, I.
    hidden_size : int or sequence of int
        Width H of every layer, or one width for each.
    num_layers : int
        L. Layer k > 0 reads the output of layer k - 1, both directions of it.
    nonlinearity : str, Nonlinearity or pair of callables
        See :func:`rnncore.get_nonlinearity`; a pair is a function of z and its derivative.
    bias : bool
        Whether there are bias_ih and bias_hh.
    batch_first : bool
        Input and output as (B, T, .). h0 and h_n never are.
    dropout : float
        Probability of zeroing an output between layers, when `training`.
    bidirectional : bool
    clip : float, optional
        Limit of the pre-activation, as ONNX has it.
    init : str, callable or mapping
        See :func:`rnncore.init.draw`; torch's uniform by default.
    backend : str, optional
        By default the selected one (:func:`rnncore.use_backend`, RNNCORE_BACKEND, "numpy").
    device, dtype : optional
        As the backend names them; by default its own defaults, so float64 on NumPy and float32 on PyTorch.
    rng : numpy.random.Generator or int, optional
        Draws the weights, on the host in float64: the same seed gives the same weights on every backend.
    kernel : {"auto", "reference", "require"}
        Whether the backend's own scans run: where they can, never, or always, with an error where they cannot.
    check_finite : bool
        Refuse NaN and infinity in inputs, states, parameters and outputs, naming the first one.

    Raises
    ------
    RnncoreError
        One of :mod:`rnncore.errors`, naming the argument, what was expected and what was got.

    Notes
    -----
    A tutorial's single matrix W acting on [x, h] is ``[weight_ih | weight_hh]`` side by side.

    Examples
    --------
    >>> import numpy as np, rnncore
    >>> rnn = rnncore.RNN(5, 6, 1, rng=0)
    >>> output, h_n = rnn(np.zeros((1, 3, 5)), np.zeros((1, 3, 6)))
    >>> output.shape, h_n.shape
    ((1, 3, 6), (1, 3, 6))
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int | Sequence[int],
        num_layers: int = 1,
        nonlinearity: Any = "tanh",
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        *,
        clip: float | None = None,
        init: Any = "uniform",
        backend: str | Backend | None = None,
        device: Any = None,
        dtype: Any = None,
        rng: Rng = None,
        kernel: KernelMode = "auto",
        check_finite: bool = False,
    ) -> None:
        spec = RNNSpec.make(
            input_size,
            hidden_size,
            num_layers,
            nonlinearity,
            bias,
            batch_first,
            dropout,
            bidirectional,
            clip=clip,
        )
        engine = self._make_engine(backend, device, dtype, kernel)
        calls.warn_if_dropout_is_idle(spec)
        self._bind(spec, draw(spec, as_generator(rng), init), engine, check_finite)

    @classmethod
    def from_spec(
        cls,
        spec: RNNSpec,
        params: Mapping[str, np.ndarray[Any, Any]],
        *,
        backend: str | Backend | None = None,
        device: Any = None,
        dtype: Any = None,
        kernel: KernelMode = "auto",
        check_finite: bool = False,
    ) -> RNN:
        """Make a model from a description and host arrays under torch's names.

        Raises
        ------
        StateDictError
            If names or shapes do not fit the description.
        """
        if not isinstance(spec, RNNSpec):
            raise ArgumentTypeError(f"spec: expected an RNNSpec, got {describe(spec)}")
        check_mapping("params", params)
        faults = [f"missing {n}" for n in spec.parameter_shapes() if n not in params]
        faults += [f"unexpected {n!r}" for n in params if n not in spec.parameter_shapes()]
        for name, shape in spec.parameter_shapes().items():
            value = params.get(name)
            if name not in params:
                continue
            if not isinstance(value, np.ndarray) or value.dtype.kind != "f" or value.shape != shape:
                got = f"{value.dtype} {value.shape}" if isinstance(value, np.ndarray) else describe(value)
                faults.append(f"{name}: expected a floating NumPy array of shape {shape}, got {got}")
        if faults:
            raise StateDictError("params do not fit the description: " + "; ".join(faults))
        model = cls.__new__(cls)
        ordered = {n: params[n] for n in spec.parameter_shapes()}
        model._bind(spec, ordered, cls._make_engine(backend, device, dtype, kernel), check_finite)
        return model

    def __call__(
        self,
        x: Array,
        h0: Any = None,
        lengths: Any = None,
        training: bool = False,
        rng: Rng = None,
    ) -> tuple[Array, State]:
        """Run the network. Shapes and order are ``torch.nn.RNN``'s.

        Parameters
        ----------
        x : array (T, B, I), or (B, T, I) with batch_first, or unbatched (T, I)
            An array of the model's backend, dtype and device. T >= 1; B may be 0.
        h0 : array (D*L, B, H), unbatched (D*L, H), optional
            Zero if not given. Layer 0 forward, layer 0 reverse, layer 1 forward, ... Where the layers differ in width, a
            sequence of (D, B, H_k), one for each layer.
        lengths : sequence of int, optional
            The valid steps of each sequence, in [0, T]. The rest is padding: never read, 0 in the output. h_n is then
            the last valid state, h0 where the length is 0; the reverse direction starts at each sequence's own end.
            An array that a compiler traces, where the backend supports it, cannot be checked: it is clamped to [0, T].
        training : bool
            Whether dropout is applied.
        rng : numpy.random.Generator or int, optional
            Draws the dropout masks, on the host.

        Returns
        -------
        output : array (T, B, D*H), or (B, T, D*H) with batch_first, or unbatched (T, D*H)
            The top layer's states.
        h_n : array, shape of h0
            Feed it back as h0 to go on with the next piece of the same sequence.

        Raises
        ------
        ShapeError, DTypeError, DeviceError, ArgumentTypeError, ArgumentValueError, NonFiniteError
        """
        return calls.forward(self._network, x, h0, lengths, training, rng)

    def vjp(
        self,
        x: Array,
        h0: Any = None,
        lengths: Any = None,
        training: bool = False,
        rng: Rng = None,
        *,
        checkpoint: bool | int = False,
        truncate: int | None = None,
    ) -> tuple[Array, State, Pullback]:
        """Run the network and return a function that backpropagates through it.

        Parameters
        ----------
        x, h0, lengths, training, rng
            As for a call.
        checkpoint : bool or int
            Hold only every k-th state and recompute the others in the pullback; True for k = ceil(sqrt(T)), or more
            where k steps would have fewer than 2**19 states in all. A bidirectional network holds none and recomputes
            layer by layer.
        truncate : int, optional
            Truncated backpropagation: the gradient is not carried across the times that are multiples of `truncate`, as if
            the sequence were fed in pieces of `truncate` steps with detached states.

        Returns
        -------
        output, h_n
            As from a call. The pullback holds on to x, h0, output and the parameters: change none of them in place before
            it has run. Where the backend can tell, the pullback refuses; NumPy's output cannot be written to at all where
            it is what the pullback goes on from: copy it first.
        pullback : callable
            ``pullback(d_output=None, d_h_n=None)`` gives :class:`rnncore.network.results.Gradients`: ``.params[name]``, ``.x``,
            ``.h0``, for the cotangents of output and h_n; None is zero.

        Examples
        --------
        >>> import numpy as np, rnncore
        >>> rnn = rnncore.RNN(5, 6, rng=0)
        >>> output, h_n, pullback = rnn.vjp(np.ones((4, 3, 5)))
        >>> grads = pullback(np.ones_like(output))
        >>> grads.params["weight_hh_l0"].shape, grads.x.shape, grads.h0.shape
        ((6, 6), (4, 3, 5), (1, 3, 6))
        """
        return calls.vjp(self._network, x, h0, lengths, training, rng, checkpoint=checkpoint, truncate=truncate)

    def jvp(
        self,
        x: Array,
        h0: Any = None,
        lengths: Any = None,
        training: bool = False,
        rng: Rng = None,
        *,
        x_dot: Array | None = None,
        h0_dot: Any = None,
        params_dot: Mapping[str, Array] | None = None,
    ) -> tuple[Array, State, Tangents]:
        """Run the network and push tangents forward through it.

        Parameters
        ----------
        x, h0, lengths, training, rng
            As for a call.
        x_dot, h0_dot, params_dot : optional
            Tangents of the input, of h0 and of some or all parameters, in their shapes; zero where not given.

        Returns
        -------
        output, h_n, tangents : Tangents
            ``tangents.output`` and ``tangents.h_n``.

        Examples
        --------
        >>> import numpy as np, rnncore
        >>> rnn = rnncore.RNN(5, 6, rng=0)
        >>> x = np.ones((4, 3, 5))
        >>> rnn.jvp(x, x_dot=x)[2].output.shape
        (4, 3, 6)
        """
        return calls.jvp(
            self._network,
            x,
            h0,
            lengths,
            training,
            rng,
            x_dot=x_dot,
            h0_dot=h0_dot,
            params_dot=params_dot,
        )

    def trace(
        self,
        x: Array,
        h0: Any = None,
        lengths: Any = None,
        training: bool = False,
        rng: Rng = None,
    ) -> Trace:
        """Run the network and return every state and every pre-activation.

        Returns
        -------
        Trace
            ``trace.h[layer]`` and ``trace.z[layer]``: (D, T, B, H).

        Examples
        --------
        >>> import numpy as np, rnncore
        >>> trace = rnncore.RNN(5, 6, num_layers=2, bidirectional=True, rng=0).trace(np.ones((4, 3, 5)))
        >>> [h.shape for h in trace.h]
        [(2, 4, 3, 6), (2, 4, 3, 6)]
        """
        return calls.trace(self._network, x, h0, lengths, training, rng)

    def save(self, path: str | Path, **options: Any) -> None:
        """Write the network to a file, in the format that the end of its name says; :func:`rnncore.load` reads it.

        See :func:`rnncore.model.saving.save` for the formats, their options and the errors.
        """
        save(self.portable(), path, options)

    def cell(self, layer: int = 0, *, reverse: bool = False) -> RNNCell:
        """Return one layer in one direction as a cell, for streaming step by step.

        The cell takes the layer's current arrays without copying them, under one-layer names (``weight_ih_l0``, ...).
        Writing into an array changes both; :meth:`set_params` of one does not affect the other.

        Raises
        ------
        ArgumentTypeError, ArgumentValueError
            If there is no such layer or direction.

        Examples
        --------
        >>> import numpy as np, rnncore
        >>> rnn = rnncore.RNN(5, 6, rng=0)
        >>> x = np.ones((4, 3, 5))
        >>> h, cell = None, rnn.cell()
        >>> for x_t in x:
        ...     h = cell(x_t, h)
        >>> bool(np.allclose(h, rnn(x)[1][0]))
        True
        """
        network, spec = self._network, self.spec
        last = spec.num_layers - 1
        layer = integer("layer", layer, f"an int in [0, {last}]", lambda n: 0 <= n <= last)
        flag("reverse", reverse)
        if reverse and not spec.bidirectional:
            raise ArgumentValueError("reverse: expected False, as the network has one direction, got True")
        own = RNNSpec(spec.layer_input_size(layer), (spec.hidden_sizes[layer],), spec.nonlinearity, spec.bias)
        arrays = (network.params[n] for n in spec.names[layer][reverse])
        params = dict(zip(own.names[0][0], arrays, strict=True))
        return RNNCell.from_network(Network(own, params, network.engine, network.check_finite))

    @property
    def hidden_size(self) -> int | tuple[int, ...]:
        """Width of every layer; one for each where they differ."""
        return self.spec.hidden_sizes[0] if self.spec.uniform else self.spec.hidden_sizes

    @property
    def num_layers(self) -> int:
        """Number of layers, L."""
        return self.spec.num_layers

    @property
    def bidirectional(self) -> bool:
        """Whether there are two directions."""
        return self.spec.bidirectional

    def explain(self, *, steps: int = 100, batch: int = 1) -> Explanation:
        """Report which path each scan takes for a call with this many steps and rows, and why.

        >>> import rnncore
        >>> print(rnncore.RNN(5, 6, kernel="reference").explain())
        backend numpy, device cpu, float64, kernel='reference'
          nonlinear scan: reference (kernel="reference" was asked for)
          linear scan: reference (kernel="reference" was asked for)
        """
        engine, spec = self._network.engine, self.spec
        steps, batch = positive_int("steps", steps), positive_int("batch", batch)
        choices = []
        for width in dict.fromkeys(spec.hidden_sizes):
            shape = (steps, batch, width, engine.dtype_name, engine.device)
            choices.append(engine.explain(ScanRequest("nonlinear", *shape, False, spec.nonlinearity)))
            choices.append(engine.explain(ScanRequest("linear", *shape, True, None)))
        return Explanation(
            self.backend, self._device_name, engine.dtype_name, engine.kernel, tuple(dict.fromkeys(choices))
        )


def bound_to(name: str) -> tuple[type[RNN], type[RNNCell]]:
    """Return subclasses of RNN and RNNCell with this default backend, for a plugin to export.

    ``RNN, RNNCell = rnncore.bound_to("acme")`` in a plugin's module lets ``from rnncore_acme import RNN`` choose the
    backend in the line that imports it. They are real subclasses: isinstance holds, and they pickle, as long as they are
    assigned to the names RNN and RNNCell of the module that calls this.
    """
    if not isinstance(name, str):
        raise ArgumentTypeError(f"name: expected a backend's name, got {shown(name)}")
    module = str(sys._getframe(1).f_globals.get("__name__", __name__))
    made = []
    for base in (RNN, RNNCell):
        names = {"_default_backend": name, "__module__": module, "__doc__": base.__doc__, "__qualname__": base.__name__}
        made.append(type(base.__name__, (base,), names))
    return made[0], made[1]
