"""The norm of a set of gradients, and its limit: right wherever the gradients themselves are finite.

The square of 1e30 does not exist in float32 and the square of 1e-30 is 0 there, so every array is divided by its largest
magnitude before it is squared, and the numbers that remain, one pair for each array, are put together in Python floats.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from rnncore.arguments import describe, non_negative
from rnncore.backend.arrays import check_floating, device_of, device_scope, dtype_name
from rnncore.backend.contract import Backend, abilities_of
from rnncore.backend.registry import backend_of
from rnncore.errors import ArgumentTypeError, NonFiniteError
from rnncore.typing import Array, Namespace

__all__ = ["clip_grad_norm", "one_backend"]

HALVES = ("float16", "bfloat16")  # too coarse to sum squares or to hold the factor: both are done in float32


def clip_grad_norm(
    grads: Mapping[str, Array], max_norm: float, *, error_if_nonfinite: bool = False
) -> tuple[dict[str, Array], float]:
    """Scale gradients down together so that the 2-norm of them all is at most `max_norm`.

    Pascanu, Mikolov and Bengio (2013), "On the difficulty of training recurrent neural networks", algorithm 1: with n
    the norm, ``g max_norm / n`` where n > max_norm. ``torch.nn.utils.clip_grad_norm_`` divides by n + 1e-6 instead.

    Parameters
    ----------
    grads : mapping of str to array
        Of any shapes and floating dtypes, all of one library, such as :attr:`rnncore.network.results.Gradients.params`.
    max_norm : float
        At least 0. 0 makes every finite gradient 0, inf leaves all as they are.
    error_if_nonfinite : bool
        Raise where a gradient holds NaN or infinity. Without it all gradients are then returned as they are, since no
        factor would make them right, and the norm says so: skip the step unless ``math.isfinite(norm)``.

    Returns
    -------
    clipped : dict of str to array
        New arrays in the shapes and dtypes of `grads`; the very arrays of `grads` where there is nothing to clip.
    norm : float
        The norm before clipping: 0.0 if there are no gradients, NaN if one holds NaN, inf if one holds infinity. It may
        be finite where float32 has no such number; beyond 1.8e308 it is inf, and the clipped gradients are still right.

    Raises
    ------
    ArgumentTypeError, ArgumentValueError, DTypeError
    NonFiniteError
        With `error_if_nonfinite`, naming the parameters.

    Examples
    --------
    >>> import numpy as np
    >>> from rnncore.optim import clip_grad_norm
    >>> clipped, norm = clip_grad_norm({"w": np.asarray([3e30, 4e30], dtype=np.float32)}, 1.0)
    >>> clipped["w"].round(4), round(norm / 1e30, 4)
    (array([0.6, 0.8], dtype=float32), 5.0)
    """
    limit = non_negative("max_norm", max_norm, finite=False)
    if not isinstance(error_if_nonfinite, bool):
        raise ArgumentTypeError(f"error_if_nonfinite: expected True or False, got {error_if_nonfinite!r}")
    if not isinstance(grads, Mapping):
        raise ArgumentTypeError(f"grads: expected a mapping of names to arrays, got {describe(grads)}")
    same = dict(grads)
    if not same:
        return same, 0.0
    backend = one_backend("grads", same)
    detach = abilities_of(backend).detach
    for name, g in same.items():
        check_floating(f"grads[{name!r}]", g)
    with device_scope(backend, device_of(next(iter(same.values())))):
        plain = {name: detach(g) for name, g in same.items()}
        clipped, norm = _clipped(plain, limit, error_if_nonfinite, backend)
    return same if clipped is plain else clipped, norm


def _clipped(
    same: dict[str, Array], limit: float, error_if_nonfinite: bool, backend: Backend
) -> tuple[dict[str, Array], float]:
    xp = backend.namespace()
    wide = {k: _wide(g, xp) for k, g in same.items() if math.prod(g.shape) > 0}
    largest = _to_host({k: xp.max(xp.abs(g)) for k, g in wide.items()}, backend, xp)
    bad = [k for k, m in largest.items() if not math.isfinite(m)]
    if bad:
        if error_if_nonfinite:
            raise NonFiniteError(f"grads: expected finite numbers, got NaN or infinity in {', '.join(map(str, bad))}")
        return same, math.nan if any(math.isnan(largest[k]) for k in bad) else math.inf
    top = max(largest.values(), default=0.0)
    if top == 0:
        return same, 0.0
    squares = _to_host({k: _scaled_squares(g, largest[k], xp) for k, g in wide.items()}, backend, xp)
    ratio = math.sqrt(math.fsum(q * (largest[k] / top) ** 2 for k, q in squares.items()))  # norm / top, from 1 up
    if top * ratio <= limit:
        return same, top * ratio
    return {k: xp.astype(_times(_wide(g, xp), limit, top, ratio, xp), g.dtype) for k, g in same.items()}, top * ratio


def one_backend(argument: str, arrays: Mapping[str, Array]) -> Backend:
    """The backend that all these arrays are of, or an error that names the first one of another library."""
    first = next(iter(arrays.values()))
    for name, x in arrays.items():
        try:
            backend = backend_of(first, x)
        except ArgumentTypeError as error:
            raise ArgumentTypeError(f"{argument}[{name!r}]: {error}") from None
    return backend


def _wide(g: Array, xp: Namespace) -> Array:
    return xp.astype(g, xp.float32) if dtype_name(g.dtype) in HALVES else g


def _scaled_squares(g: Array, largest: float, xp: Namespace) -> Array:
    scaled = g / (largest or 1.0)
    return xp.sum(scaled * scaled)


def _to_host(scalars: dict[str, Array], backend: Backend, xp: Namespace) -> dict[str, float]:
    """One transfer for all of them, so that a device is waited for once."""
    if not scalars:
        return {}
    host = backend.to_numpy(xp.stack([xp.asarray(s) for s in scalars.values()]))
    return dict(zip(scalars, map(float, host), strict=True))


def _times(g: Array, limit: float, top: float, ratio: float, xp: Namespace) -> Array:
    """``g limit / (top ratio)``, where neither that factor nor top ratio need be numbers of g's dtype."""
    if limit == 0:
        return xp.zeros_like(g)
    (a, i), (b, j) = math.frexp(limit), math.frexp(top)
    c, k = math.frexp(a / b / ratio)
    k += i - j
    # The factor c 2^k, in steps that float32 holds exactly: a power of two loses nothing.
    g = g * c
    for power in (k // 2, k - k // 2):
        g = g * 2.0**power
    return g
