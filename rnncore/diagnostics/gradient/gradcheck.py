"""Check that a network's own pullback gives the derivatives of its own forward pass.

Two tests that share no code. One: the network is written once more, in a few lines of NumPy on the host, and
differentiated along a random direction of each parameter, by the complex step ``Im L(p + i h v) / h`` where the nonlinearity
is analytic (Squire and Trapp 1998, "Using complex variables to estimate derivatives of real functions": no difference is
taken, so nothing cancels), else by central differences with h = eps^(1/3) max(1, |p|), where truncation and rounding are
alike. Two, on the backend itself: ``<u, J v> = <J^T u, v>``, by :meth:`rnncore.RNN.jvp` and :meth:`rnncore.RNN.vjp`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from rnncore.arguments import Rng, as_generator, describe
from rnncore.backend.arrays import floating_dtypes
from rnncore.diagnostics.numerics.device import on_device, on_host
from rnncore.diagnostics.recording import record
from rnncore.diagnostics.units.mean_field import kinks
from rnncore.errors import ArgumentTypeError
from rnncore.model.base import with_network
from rnncore.model.rnn import RNN
from rnncore.network.engine import Engine
from rnncore.network.layout import Layout
from rnncore.network.results import Gradients
from rnncore.nonlinearity.nonlinearity import Nonlinearity
from rnncore.spec import RNNSpec
from rnncore.typing import Host

__all__ = ["Check", "Gradcheck", "gradcheck"]

# The imaginary part is exact to h^2, so any small step will do.
COMPLEX_STEP = 1e-30
# The project's promise for gradients: 64 roundings of the largest.
ROUNDINGS = 64
# A central difference has an error of h^2 f'''/6 + eps |f| / h, both about eps^(2/3) for numbers of magnitude 1. The
# factor allows for f''' of a composition over time.
TRUNCATIONS = 256


@dataclass(frozen=True)
class Check:
    """One number computed in two ways.

    Attributes
    ----------
    analytic, numeric : float
        From the pullback, and from the host (for the adjoint test: <J^T u, v>, and <u, J v>).
    error : float
        |analytic - numeric| over the size of the numbers that were added up: ||gradient|| ||direction||, not their
        product, which may be 0 by chance. inf where one of them is not finite.
    tolerance : float
        In the same unit.
    kink : bool
        A kink of the nonlinearity lies within the difference taken, or nearer to a pre-activation than its rounding: the
        derivative there is a matter of convention, and a difference between the two means nothing.
    """

    analytic: float
    numeric: float
    error: float
    tolerance: float
    kink: bool

    @property
    def passed(self) -> bool:
        """Whether the error is within the tolerance, or there is a kink and the numbers are finite."""
        return self.error <= self.tolerance or (self.kink and math.isfinite(self.error))


@dataclass(frozen=True)
class Gradcheck:
    """The result of :func:`gradcheck`.

    Attributes
    ----------
    checks : mapping of str to Check
        By parameter, and "x" and "h0".
    adjoint : Check
        The dot test.
    method : "complex step" or "central difference"
    """

    checks: Mapping[str, Check]
    adjoint: Check
    method: str

    @property
    def passed(self) -> bool:
        """Whether all checks passed."""
        return self.adjoint.passed and all(c.passed for c in self.checks.values())

    @property
    def worst(self) -> str:
        """The name of the largest error in units of its tolerance; those that a kink excuses come last."""
        return max(
            self.checks, key=lambda n: (not self.checks[n].kink, self.checks[n].error / self.checks[n].tolerance)
        )

    @property
    def failed(self) -> tuple[str, ...]:
        """The names that did not pass; "adjoint" for the dot test."""
        names = tuple(n for n, c in self.checks.items() if not c.passed)
        return names if self.adjoint.passed else (*names, "adjoint")

    @property
    def kinks(self) -> tuple[str, ...]:
        """The names of checks at a kink, which show nothing."""
        return tuple(n for n, c in self.checks.items() if c.kink)


def gradcheck(rnn: RNN, x: Any, h0: Any = None, lengths: Any = None, rng: Rng = 0) -> Gradcheck:
    """Check the network's pullback at a point, in a few forward passes on the host.

    A random direction is orthogonal to no error but by a chance of 0, so one for each parameter finds a wrong element.
    Where the network is chaotic (spectral radius well above 1 over many steps) float32 and the host part ways, and so do
    their gradients: check few steps.

    Parameters
    ----------
    rnn : RNN
        Of any backend; a float32 network has the tolerance of float32.
    x, h0, lengths
        As for a call.
    rng : numpy.random.Generator or int
        Draws the directions.

    Returns
    -------
    Gradcheck
        One :class:`Check` for each parameter, "x" and "h0", and the dot test.

    Raises
    ------
    ArgumentTypeError
        If rnn is no RNN.
    RnncoreError
        Whatever a call of the network raises.

    Notes
    -----
    Complex step: Squire and Trapp (1998), "Using complex variables to estimate derivatives of real functions"; it has no
    difference of near numbers, and is right to rounding. Elsewhere a central difference.

    Examples
    --------
    >>> import numpy as np, rnncore
    >>> from rnncore.diagnostics.gradient.gradcheck import gradcheck
    >>> found = gradcheck(rnncore.RNN(3, 4, rng=0), np.ones((5, 2, 3)))
    >>> found.passed, found.method, max(c.error for c in found.checks.values()) < 1e-14
    (True, 'complex step', True)
    """
    if not isinstance(rnn, RNN):
        raise ArgumentTypeError(f"rnn: expected an rnncore.RNN, got {describe(rnn)}")
    rnn = with_network(rnn, rnn.network)  # with the parameters of now, whatever another thread sets meanwhile
    seen, generator = record(rnn, x, h0, lengths), as_generator(rng)
    engine, spec, counts = seen.engine, seen.spec, np.asarray(seen.lengths, dtype=np.int64)
    drawn = _Drawn(engine, generator, seen.layout)

    output, h_n, pullback = rnn.vjp(x, h0, lengths)
    u, u_n = drawn.like(output), drawn.like(h_n)
    grads = pullback(u, u_n)

    point = drawn.parameters(seen.params) | {"x": seen.host(seen.x)}
    point["h0"] = np.concatenate([seen.host(lane.h0).ravel() for lane in seen.lanes])
    found = drawn.parameters(grads.params) | {"x": drawn.series(grads.x), "h0": drawn.state(grads.h0)}

    evaluate = _Loss(spec, counts, drawn.series(u), drawn.state(u_n), _function(spec.nonlinearity, engine))
    analytic_function = _complex(spec.nonlinearity) is not None
    jumps, bends = _bends(spec.nonlinearity)
    eps = float(engine.xp.finfo(engine.dtype).eps)
    near = bool(len(jumps)) and evaluate.nearest(point, jumps) <= ROUNDINGS * eps
    checks = {}
    for name, value in point.items():
        v: Host = np.asarray(generator.standard_normal(value.shape))
        if name == "x":  # the padding is no variable
            v = v * seen.valid[..., None]
        analytic = float(np.sum(found[name] * v))
        norms = float(np.linalg.norm(found[name]) * np.linalg.norm(v))
        tolerance: float = ROUNDINGS * eps
        crossed = False
        if analytic_function:
            numeric = evaluate({**point, name: value + 1j * COMPLEX_STEP * v}).imag / COMPLEX_STEP
        else:
            fine = evaluate.eps
            p_max, v_max = (max(1.0, float(np.abs(a).max(initial=0.0))) for a in (value, v))
            h = fine ** (1 / 3) * p_max / v_max
            ends = [{**point, name: value + s * h * v} for s in (1, -1)]
            values = [evaluate(p) for p in ends]
            numeric = (values[0].real - values[1].real) / (2 * h)
            crossed = bool(len(bends)) and evaluate.crosses(point, ends, bends)
            # The rounding of a large L shows in the difference however small its derivative is.
            rounding = fine * evaluate.size / h / max(norms, abs(numeric), float(np.finfo(np.float64).tiny))
            tolerance += TRUNCATIONS * fine ** (2 / 3) + rounding
        checks[name] = _check(analytic, float(numeric), norms, tolerance, near or crossed)
    adjoint = _adjoint(rnn, (x, h0, lengths), drawn, (u, u_n), grads, eps)
    return Gradcheck(checks, adjoint, "complex step" if analytic_function else "central difference")


def _check(analytic: float, numeric: float, size: float, tolerance: float, kink: bool) -> Check:
    size = max(size, abs(numeric))
    gap = abs(analytic - numeric)
    error = 0.0 if gap == 0 else (gap / size if math.isfinite(gap) and size > 0 else math.inf)
    return Check(analytic, numeric, error, tolerance, kink)


def _adjoint(
    rnn: RNN, call: tuple[Any, Any, Any], drawn: _Drawn, u: tuple[Any, Any], grads: Gradients, eps: float
) -> Check:
    """<u, J v> and <J^T u, v> for v over x, h0 and all parameters at once."""
    x, h0, lengths = call
    v_x, v_h = drawn.like(grads.x), drawn.like(grads.h0)
    v_p = {n: drawn.like(p) for n, p in rnn.params.items()}
    if h0 is None:
        zeros = drawn.engine.xp.zeros_like
        h0 = tuple(map(zeros, grads.h0)) if isinstance(grads.h0, tuple) else zeros(grads.h0)
    _, _, moved = rnn.jvp(x, h0, lengths, x_dot=v_x, h0_dot=v_h, params_dot=v_p)
    forward = [(drawn.series(u[0]), drawn.series(moved.output)), (drawn.state(u[1]), drawn.state(moved.h_n))]
    backward = [(drawn.series(v_x), drawn.series(grads.x)), (drawn.state(v_h), drawn.state(grads.h0))]
    host_v, host_g = drawn.parameters(v_p), drawn.parameters(grads.params)
    backward += [(host_v[n], g) for n, g in host_g.items()]
    left, right = (sum(float(np.sum(a * b)) for a, b in pairs) for pairs in (forward, backward))
    size = max(sum(float(np.linalg.norm(a) * np.linalg.norm(b)) for a, b in pairs) for pairs in (forward, backward))
    return _check(right, left, size, ROUNDINGS * eps, False)


# --- the network once more --------------------------------------------------------------------------------------------


class _Loss:
    """L = <u, output> + <u_n, h_n> of a point, time-first, in complex128 or float64."""

    def __init__(self, spec: RNNSpec, lengths: Host, u: Host, u_n: Host, f: tuple[Callable[[Host], Host], float]):
        self.spec, self.lengths, self.u, self.u_n = spec, lengths, u, u_n
        self.f, self.eps = f
        self.size = 0.0
        self.z: list[Host] = []

    def __call__(self, point: Mapping[str, Host]) -> complex:
        spec, steps = self.spec, point["x"].shape[0]
        valid = np.arange(steps)[:, None, None] < self.lengths[None, :, None]
        below, self.z, total, self.size, at = point["x"], [], 0j, 0.0, 0
        for k in range(spec.num_layers):
            outputs = []
            for d in range(spec.num_directions):
                end, width = spec.suffix(k, d), spec.hidden_sizes[k]
                b = point[f"bias_ih_{end}"] + point[f"bias_hh_{end}"] if spec.bias else 0.0
                rows = slice(at, at + len(self.lengths) * width)
                h = point["h0"][rows].reshape(len(self.lengths), width)
                states: list[Host] = [h] * steps
                for t in range(steps - 1, -1, -1) if d else range(steps):
                    z = below[t] @ point[f"weight_ih_{end}"].T + h @ point[f"weight_hh_{end}"].T + b
                    self.z.append(np.where(valid[t], z, np.nan).real)
                    h = np.where(valid[t], self.f(z), h)
                    states[t] = np.where(valid[t], h, 0.0)
                outputs.append(np.stack(states))
                total += complex(self._times(self.u_n[rows], h.ravel()))
                at = rows.stop
            below = np.concatenate(outputs, axis=-1)
        return total + complex(self._times(self.u, below))

    def nearest(self, point: Mapping[str, Host], kinks: Host) -> float:
        """The least distance of a pre-activation from a kink, in units of max(1, |z|)."""
        self(point)
        z = np.concatenate([z.ravel() for z in self.z])
        z = z[~np.isnan(z)]
        gap = np.abs(z[:, None] - kinks[None, :]) / np.maximum(1.0, np.abs(z))[:, None]
        return float(gap.min(initial=np.inf))

    def crosses(self, point: Mapping[str, Host], ends: list[dict[str, Host]], kinks: Host) -> bool:
        """Whether some pre-activation is on another side of a kink at one of the ends."""
        sides = []
        for p in (point, *ends):
            self(p)
            sides.append(np.concatenate([np.searchsorted(kinks, z.ravel()) for z in self.z]))
        return any(bool((s != sides[0]).any()) for s in sides[1:])

    def _times(self, u: Host, x: Host) -> Any:
        self.size += float(np.sum(np.abs(u * x)))
        return np.sum(u * x)


def _complex(f: Nonlinearity) -> Callable[[Host], Host] | None:
    """f on complex numbers, where it is analytic along the real line."""
    if f.clip is not None or f.is_custom:
        return None
    alpha, beta = f.alpha or 0.0, f.beta or 0.0
    known: dict[str, Callable[[Host], Host]] = {
        "tanh": np.tanh,
        "sigmoid": lambda z: 0.5 * (1 + np.tanh(z / 2)),
        "identity": lambda z: z,
        "affine": lambda z: alpha * z + beta,
        "scaled_tanh": lambda z: alpha * np.tanh(beta * z),
        # ln(1 + e^z) by the half that does not overflow.
        "softplus": lambda z: np.where(z.real > 0, z, 0) + np.log1p(np.exp(np.where(z.real > 0, -z, z))),
    }
    return known.get(f.name)


def _function(f: Nonlinearity, engine: Engine) -> tuple[Callable[[Host], Host], float]:
    """f on host arrays, and the eps of the arithmetic it is computed in."""
    made = _complex(f)
    fine = float(np.finfo(np.float64).eps)
    if made is not None:
        return made, fine
    if not f.is_custom:
        return (lambda z: np.asarray(f(z, xp=np))), fine
    # A user's function may know the arrays of one library only.
    dtype = floating_dtypes(xp=engine.xp, device=engine.device).get("float64", engine.dtype)

    def on_the_backend(z: Host) -> Host:
        with engine.scope():
            return on_host(f(on_device(z, engine, dtype), xp=engine.xp), engine)

    return on_the_backend, float(engine.xp.finfo(dtype).eps)


def _bends(f: Nonlinearity) -> tuple[Host, Host]:
    """Where f' jumps, and where f' or f'' does, in order, as far as it is known."""
    at = kinks(f)
    more = [0.0] if f.name in ("elu", "softsign") and not f.is_custom else []
    return np.unique(np.asarray(at)), np.unique(np.asarray([*at, *more]))


# --- random directions ------------------------------------------------------------------------------------------------


class _Drawn:
    """Random arrays shaped like a network's results: on the device, and the same numbers on the host, time-first."""

    def __init__(self, engine: Engine, generator: np.random.Generator, layout: Layout):
        self.engine, self.generator, self.layout = engine, generator, layout

    def like(self, x: Any) -> Any:
        """An array, or a state of one array for each layer."""
        if isinstance(x, tuple):
            return tuple(map(self.like, x))
        with self.engine.scope():
            return on_device(self.generator.standard_normal(tuple(x.shape)), self.engine)

    def series(self, x: Any) -> Host:
        """(T, B, features) on the host."""
        return on_host(self.layout.inward(x), self.engine)

    def state(self, x: Any) -> Host:
        """A state as one vector by layer, direction and row, the order that every layout of it has."""
        return np.concatenate([on_host(part, self.engine).ravel() for part in (x if isinstance(x, tuple) else (x,))])

    def parameters(self, named: Mapping[str, Any]) -> dict[str, Host]:
        """By name, on the host."""
        return {n: on_host(p, self.engine) for n, p in named.items()}
