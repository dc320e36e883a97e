"""Clip gradients by their norm, without overflow or underflow for any finite gradients.

In float32 the square of 1e30 overflows and the square of 1e-30 is 0. So each array is divided by its largest magnitude
before it is squared, and the results, one pair per array, are combined in Python floats.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from rnncore.arguments import check_mapping, flag, non_negative
from rnncore.backend.abilities import ability
from rnncore.backend.arrays import check_floating, device_of, device_scope, dtype_name, plain
from rnncore.backend.contract import Backend
from rnncore.backend.registry import backend_of
from rnncore.errors import ArgumentTypeError, NonFiniteError
from rnncore.typing import Array, Namespace

HALVES = ("float16", "bfloat16")  # too coarse for sums of squares and for the factor: both use float32


def clip_grad_norm(
    grads: Mapping[str, Array], max_norm: float, *, error_if_nonfinite: bool = False
) -> tuple[dict[str, Array], float]:
    """Scale all gradients by one factor so that their joint 2-norm is at most `max_norm`.

    With n the norm, gradients become ``g max_norm / n`` where n > max_norm: Pascanu, Mikolov and Bengio (2013), "On the
    difficulty of training recurrent neural networks", algorithm 1. ``torch.nn.utils.clip_grad_norm_`` divides by
    n + 1e-6 instead.

    Parameters
    ----------
    grads : mapping of str to array
        Of any shapes and floating dtypes, all of one library, such as :attr:`rnncore.network.results.Gradients.params`.
    max_norm : float
        Largest norm, >= 0. With 0 every finite gradient becomes 0; with inf nothing is clipped.
    error_if_nonfinite : bool
        Raise an error if a gradient holds NaN or infinity. Otherwise such gradients are returned unchanged, since no
        factor corrects them, and the norm is not finite: skip the step unless ``math.isfinite(norm)``.

    Returns
    -------
    clipped : dict of str to array
        New arrays with the shapes and dtypes of `grads`; the arrays of `grads` themselves if nothing is clipped.
    norm : float
        Norm before clipping: 0.0 without gradients, NaN if one holds NaN, inf if one holds infinity. It may exceed the
        range of float32. Beyond 1.8e308 it is inf, and the clipped gradients are still correct.

    Raises
    ------
    ArgumentTypeError, ArgumentValueError, DTypeError
    NonFiniteError
        With `error_if_nonfinite`; the message names the parameters.

    Examples
    --------
    >>> import numpy as np
    >>> from rnncore.optim import clip_grad_norm
    >>> clipped, norm = clip_grad_norm({"w": np.asarray([3e30, 4e30], dtype=np.float32)}, 1.0)
    >>> clipped["w"].round(4), round(norm / 1e30, 4)
    (array([0.6, 0.8], dtype=float32), 5.0)
    """
    limit = non_negative("max_norm", max_norm, finite=False)
    flag("error_if_nonfinite", error_if_nonfinite)
    check_mapping("grads", grads)
    same = dict(grads)
    if not same:
        return same, 0.0
    backend = one_backend("grads", same)
    detach = ability(backend, "detach")
    for name, g in same.items():
        check_floating(f"grads[{name!r}]", g)
    with device_scope(backend, device_of(next(iter(same.values())))):
        ours = {name: plain(detach(g), backend) for name, g in same.items()}
        clipped, norm = _clipped(ours, limit, error_if_nonfinite, backend)
    return same if clipped is ours else clipped, norm


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
    ratio = math.sqrt(math.fsum(q * (largest[k] / top) ** 2 for k, q in squares.items()))  # norm / top, >= 1
    if top * ratio <= limit:
        return same, top * ratio
    return {k: xp.astype(_times(_wide(g, xp), limit, top, ratio, xp), g.dtype) for k, g in same.items()}, top * ratio


def one_backend(argument: str, arrays: Mapping[str, Array]) -> Backend:
    """Return the backend of all these arrays; an error names the first array of another library."""
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
    """Transfer all scalars at once, so that the device is waited for once."""
    if not scalars:
        return {}
    host = backend.to_numpy(xp.stack([xp.asarray(s) for s in scalars.values()]))
    return dict(zip(scalars, map(float, host), strict=True))


def _times(g: Array, limit: float, top: float, ratio: float, xp: Namespace) -> Array:
    """Compute ``g limit / (top ratio)``, even where the factor or ``top ratio`` is outside the range of g's dtype."""
    if limit == 0:
        return xp.zeros_like(g)
    (a, i), (b, j) = math.frexp(limit), math.frexp(top)
    c, k = math.frexp(a / b / ratio)
    k += i - j
    # The factor is c 2^k. Two powers of two, each within float32, multiply without rounding.
    g = g * c
    for power in (k // 2, k - k // 2):
        g = g * 2.0**power
    return g
