"""A network between two libraries: its description and its arrays on the host, without a backend.

Every reader of this room makes a :class:`Portable`, by :func:`assemble`, and every writer takes one, by :func:`layers_of`. So a
library is converted to and from one form, not to and from every other library.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from rnncore.arguments import brief, closest, shown
from rnncore.backend.arrays import FLOATS
from rnncore.errors import ArgumentValueError, InterchangeError, UnknownNameError
from rnncore.nonlinearity.nonlinearity import Nonlinearity, as_nonlinearity
from rnncore.spec import RNNSpec
from rnncore.typing import Host

__all__ = ["Asked", "Direction", "Portable", "assemble", "layers_of"]


@dataclass(frozen=True)
class Portable:
    """A network as it was read, or as it is to be written.

    Attributes
    ----------
    spec : RNNSpec
    params : dict of str to numpy.ndarray
        By torch's names in torch's order.
    dtype : str
        Dtype of the model: "float16", "float32", "float64" or "bfloat16". The arrays are float32 if it is "bfloat16".
    backend : str or None
        The backend whose arrays the source holds; None where it says nothing, as in a file.
    left_out : tuple of str
        What the source has beside the network, in words: other layers, an initial state.
    """

    spec: RNNSpec
    params: dict[str, Host]
    dtype: str
    backend: str | None = None
    left_out: tuple[str, ...] = ()


@dataclass(frozen=True)
class Direction:
    """One layer in one direction.

    Attributes
    ----------
    weight_ih : numpy.ndarray (H, I)
    weight_hh : numpy.ndarray (H, H)
    bias_ih, bias_hh : numpy.ndarray (H,) or None
    """

    weight_ih: Host
    weight_hh: Host
    bias_ih: Host | None = None
    bias_hh: Host | None = None

    @property
    def bias(self) -> Host | None:
        """The sum of both biases, for libraries that have one. Where one of them is zero, the sum is the other exactly."""
        if self.bias_ih is None or self.bias_hh is None:
            return self.bias_hh if self.bias_ih is None else self.bias_ih
        summed: Host = self.bias_ih + self.bias_hh
        return summed


@dataclass(frozen=True)
class Asked:
    """What the caller says of a source that does not say it itself.

    Attributes
    ----------
    name : str or None
        The network to take, where the source holds several.
    nonlinearity : optional
        As for :class:`rnncore.RNN`.
    batch_first : bool or None
    """

    name: str | None = None
    nonlinearity: Any = None
    batch_first: bool | None = None

    def need(self, argument: str, why: str) -> Any:
        """Return what was given for an argument that the source leaves open.

        Raises
        ------
        ArgumentValueError
            If nothing was given.
        """
        value = getattr(self, argument)
        if value is None:
            raise ArgumentValueError(f"{argument}: expected a value, as {why}; got None")
        return value

    def choose(self, networks: Collection[str], names: Collection[str], source: str) -> str:
        """Return the name that was given, or that of the only network.

        Parameters
        ----------
        networks : collection of str
            The names of the networks in the source.
        names : collection of str
            These and others that may be given, such as a part of a network.
        source : str
            What holds them, for messages.

        Raises
        ------
        ArgumentValueError
            If there are several, and no name was given.
        UnknownNameError
            If there is none of that name.
        """
        if self.name is None and len(networks) == 1:
            return next(iter(networks))
        known = f"a network that {source} holds, {brief(', '.join(map(repr, sorted(names))))}"
        if self.name is None:
            raise ArgumentValueError(f"name: expected {known}, got None")
        if not isinstance(self.name, str) or self.name not in names:
            hint = closest(self.name, names) if isinstance(self.name, str) else ""
            raise UnknownNameError(f"name: expected {known}, got {shown(self.name)}{hint}")
        return self.name

    def settle(self, argument: str, found: Any) -> Any:
        """Return what the source says for an argument, which may be given again but not differently.

        A nonlinearity is a :class:`~rnncore.nonlinearity.Nonlinearity` here; given again, it may be a name and lack the clip.

        Raises
        ------
        ArgumentValueError
        """
        value = getattr(self, argument)
        if isinstance(found, Nonlinearity) and value is not None:
            value = as_nonlinearity(value, clip=found.clip)
        if value is not None and value != found:
            raise ArgumentValueError(f"{argument}: expected {found!r}, as the source says, got {shown(value)}")
        return found


def assemble(
    layers: Sequence[Sequence[Direction]],
    *,
    nonlinearity: Any,
    clip: float | None = None,
    batch_first: bool,
    dropout: float = 0.0,
    dtype: str | None = None,
    backend: str | None = None,
    left_out: Sequence[str] = (),
) -> Portable:
    """Make a network of its layers, from the bottom up, each with one direction or two.

    Where a part of the network has no bias and another has one, the missing one is zero. One bias where the network has two
    is bias_ih, and bias_hh is zero.

    Parameters
    ----------
    layers : sequence of sequence of Direction
    nonlinearity, clip, batch_first, dropout
        As for :class:`rnncore.RNN`.
    dtype : str, optional
        By default that of the arrays.
    backend, left_out
        See :class:`Portable`.

    Raises
    ------
    InterchangeError
        If the shapes or dtypes do not make one network.
    """
    directions = {len(row) for row in layers}
    if not layers or len(directions) != 1 or directions - {1, 2}:
        raise InterchangeError(f"expected layers of one or two directions each, got {sorted(directions)}")
    parts = [part for row in layers for part in row]
    kinds = {_checked(part) for part in parts}
    if len(kinds) != 1:
        raise InterchangeError(f"expected arrays of one dtype, got {', '.join(sorted(kinds))}")
    has_bias = any(part.bias is not None for part in parts)
    spec = RNNSpec.make(
        layers[0][0].weight_ih.shape[1],
        [row[0].weight_hh.shape[0] for row in layers],
        len(layers),
        nonlinearity,
        has_bias,
        batch_first,
        dropout,
        directions == {2},
        clip=clip,
    )
    params: dict[str, Host] = {}
    for names, part in zip((names for row in spec.names for names in row), parts, strict=True):
        zero = np.zeros(part.weight_hh.shape[0], part.weight_hh.dtype)
        biases = (zero if b is None else b for b in (part.bias_ih, part.bias_hh))
        params |= zip(names, (part.weight_ih, part.weight_hh, *biases), strict=False)
    for name, shape in spec.parameter_shapes().items():
        if params[name].shape != shape:
            raise InterchangeError(f"{name}: expected shape {shape}, got {params[name].shape}")
    return Portable(spec, params, kinds.pop() if dtype is None else dtype, backend, tuple(left_out))


def layers_of(network: Portable) -> list[list[Direction]]:
    """Return the layers, from the bottom up, each with its one direction or two."""
    return [[Direction(*(network.params[n] for n in names)) for names in row] for row in network.spec.names]


def _checked(part: Direction) -> str:
    """Return the dtype of a direction whose shapes fit each other."""
    w_ih, w_hh = part.weight_ih, part.weight_hh
    if w_ih.ndim != 2 or w_hh.shape != 2 * w_ih.shape[:1] or 0 in w_ih.shape:
        raise InterchangeError(
            f"expected weights (H, I) and (H, H), got {w_ih.shape} for the input and {w_hh.shape} for the state"
        )
    arrays = [a for a in (w_ih, w_hh, part.bias_ih, part.bias_hh) if a is not None]
    if wrong := [a.shape for a in arrays[2:] if a.shape != w_hh.shape[:1]]:
        raise InterchangeError(f"expected a bias of shape {w_hh.shape[:1]}, got {wrong[0]}")
    kinds = {a.dtype.name for a in arrays}
    if len(kinds) != 1 or kinds - set(FLOATS):
        raise InterchangeError(f"expected arrays of one floating dtype, got {', '.join(sorted(kinds))}")
    return str(kinds.pop())
