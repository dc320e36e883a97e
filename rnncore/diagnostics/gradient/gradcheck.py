"""gradcheck: whether a network's own pullback gives the derivatives of its own forward pass.

Two questions that do not share code. One: the network is written once more, in a few lines of NumPy on the host, and
differentiated along a random direction of each parameter, by the complex step ``Im L(p + i h v) / h`` where the nonlinearity
is analytic (Squire and Trapp 1998, "Using complex variables to estimate derivatives of real functions": no difference is
taken, so nothing cancels), else by central differences with h = eps^(1/3) max(1, |p|), where truncation and rounding are
alike. Two, on the backend itself: ``<u, J v> = <J^T u, v>``, by :meth:`rnncore.RNN.jvp` and :meth:`rnncore.RNN.vjp`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from rnncore.arguments import Rng, as_generator, describe
from rnncore.backend.arrays import floating_dtypes
from rnncore.errors import ArgumentTypeError
from rnncore.model.rnn import RNN
from rnncore.network import calls
from rnncore.network.engine import Engine
from rnncore.network.results import Gradients
from rnncore.nonlinearity.nonlinearity import Nonlinearity
from rnncore.spec import RNNSpec
from rnncore.typing import Host

__all__ = ["Check", "Gradcheck", "gradcheck"]

# Any is small enough: the imaginary part is exact to h^2.
COMPLEX_STEP = 1e-30
# The project's promise for gradients: 64 roundings of the largest.
ROUNDINGS = 64
# A central difference has an error of h^2 f'''/6 + eps |f| / h, both about eps^(2/3) for numbers of magnitude 1: so many
# of them, as f''' of a composition over time exceeds 1.
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
        derivative there is a matter of convention, and a difference between the two says nothing.
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
    """What :func:`gradcheck` found.

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
        """Whether all did."""
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
        """The names whose numbers say nothing."""
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
    call, generator = rnn.network, as_generator(rng)
    engine, spec = call.engine, call.spec
    with engine.scope():
        shape, xt, h0s, plan = calls.prepare(call, x, h0, lengths, False, None)
    batched, steps, batch = shape.batched, shape.steps, shape.batch
    counts = np.asarray((steps,) * batch if plan.ragged is None else plan.ragged.lengths, dtype=np.int64)
    drawn = _Drawn(engine, generator)

    output, h_n, pullback = rnn.vjp(x, h0, lengths)
    u, u_n = drawn.like(output), drawn.state(h_n)
    grads = pullback(u.array, u_n.array)

    point = {n: _host(engine, p) for n, p in call.params.items()}
    point |= {"x": _host(engine, xt), "h0": _flat(_host(engine, h) for row in h0s for h in row)}
    found = {n: _host(engine, g) for n, g in grads.params.items()}
    found["x"] = _inward(_host(engine, grads.x), spec, batched)
    found["h0"] = _flat(_hosts(engine, grads.h0))

    evaluate = _Loss(
        spec, counts, _inward(u.host, spec, batched), _flat(u_n.hosts), _function(spec.nonlinearity, engine)
    )
    analytic_function = _complex(spec.nonlinearity) is not None
    kinks, bends = _kinks(spec.nonlinearity)
    eps = float(engine.xp.finfo(engine.dtype).eps)
    near = bool(len(kinks)) and evaluate.nearest(point, kinks) <= ROUNDINGS * eps
    checks = {}
    for name, value in point.items():
        v: Host = np.asarray(generator.standard_normal(value.shape))
        if name == "x":  # the padding is no variable
            v = v * (np.arange(steps)[:, None, None] < counts[None, :, None])
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
    adjoint = _adjoint(rnn, x, h0, lengths, drawn, u, u_n, grads, eps)
    return Gradcheck(checks, adjoint, "complex step" if analytic_function else "central difference")


def _check(analytic: float, numeric: float, size: float, tolerance: float, kink: bool) -> Check:
    size = max(size, abs(numeric))
    gap = abs(analytic - numeric)
    error = 0.0 if gap == 0 else (gap / size if math.isfinite(gap) and size > 0 else math.inf)
    return Check(analytic, numeric, error, tolerance, kink)


def _adjoint(
    rnn: RNN, x: Any, h0: Any, lengths: Any, drawn: _Drawn, u: _Pair, u_n: _Pairs, grads: Gradients, eps: float
) -> Check:
    """<u, J v> and <J^T u, v> for v over x, h0 and all parameters at once."""
    engine = rnn.network.engine
    v_x, v_h = drawn.like(grads.x), drawn.state(grads.h0)
    v_p = {n: drawn.like(p) for n, p in rnn.network.params.items()}
    tangents = {"x_dot": v_x.array, "h0_dot": v_h.array, "params_dot": {n: v.array for n, v in v_p.items()}}
    if h0 is None:
        h0 = _map(grads.h0, engine.xp.zeros_like)
    _, _, moved = rnn.jvp(x, h0, lengths, **tangents)
    forward = [(u.host, _host(engine, moved.output)), *zip(u_n.hosts, _hosts(engine, moved.h_n), strict=True)]
    backward = [(v_x.host, _host(engine, grads.x)), *zip(v_h.hosts, _hosts(engine, grads.h0), strict=True)]
    backward += [(v_p[n].host, _host(engine, g)) for n, g in grads.params.items()]
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
            return _host(engine, f(engine.backend.asarray(z, dtype=dtype, device=engine.device), xp=engine.xp))

    return on_the_backend, float(engine.xp.finfo(dtype).eps)


def _kinks(f: Nonlinearity) -> tuple[Host, Host]:
    """Where f' jumps, and where f' or f'' does, in order, as far as it is known."""
    alpha, beta = f.alpha or 0.0, f.beta or 0.0
    at: list[float] = []
    if not f.is_custom:
        if f.name in ("relu", "leaky_relu") or (f.name == "elu" and alpha != 1):
            at = [0.0]
        elif f.name == "thresholded_relu":
            at = [alpha]
        elif f.name == "hard_sigmoid" and alpha != 0:
            at = [-beta / alpha, (1 - beta) / alpha]
    if f.clip is not None:
        at += [-f.clip, f.clip]
    bends = [*at, 0.0] if f.name in ("elu", "softsign") and not f.is_custom else at
    return np.unique(np.asarray(at)), np.unique(np.asarray(bends))


# --- layouts ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Pair:
    """A random array of the backend, and the same numbers on the host."""

    array: Any
    host: Host


@dataclass(frozen=True)
class _Pairs:
    """The same for a state, which is one array or one for each layer."""

    array: Any
    hosts: list[Host]


class _Drawn:
    def __init__(self, engine: Engine, generator: np.random.Generator):
        self.engine, self.generator = engine, generator

    def like(self, x: Any) -> _Pair:
        engine = self.engine
        with engine.scope():
            drawn = self.generator.standard_normal(tuple(x.shape))
            array = engine.backend.asarray(drawn, dtype=engine.dtype, device=engine.device)
            return _Pair(array, _host(engine, array))

    def state(self, state: Any) -> _Pairs:
        if isinstance(state, tuple):
            pairs = [self.like(x) for x in state]
            return _Pairs(tuple(p.array for p in pairs), [p.host for p in pairs])
        pair = self.like(state)
        return _Pairs(pair.array, [pair.host])


def _host(engine: Engine, x: Any) -> Host:
    return np.asarray(engine.backend.to_numpy(x), dtype=np.float64)


def _hosts(engine: Engine, state: Any) -> list[Host]:
    return [_host(engine, x) for x in (state if isinstance(state, tuple) else (state,))]


def _map(state: Any, f: Callable[[Any], Any]) -> Any:
    return tuple(f(x) for x in state) if isinstance(state, tuple) else f(state)


def _inward(x: Host, spec: RNNSpec, batched: bool) -> Host:
    """Time-first and batched."""
    if not batched:
        return x[:, None, :]
    return x.transpose(1, 0, 2) if spec.batch_first else x


def _flat(hosts: Iterable[Host]) -> Host:
    """States as one vector by layer, direction and row, the order that every layout of them has."""
    return np.concatenate([h.ravel() for h in hosts])
