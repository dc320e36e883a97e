"""The Elman network in more digits than any backend has, from its formulas: it shares no code with rnncore.

For each layer and direction, with C the limit of the pre-activation (none: C = inf),

    z_t = W_ih x_t + b_ih + b_hh + W_hh h_{t-1},          h_t = f(max(-C, min(z_t, C))).

Backpropagation, with g_t the gradient of h_t from above and f' = 0 where |z_t| > C,

    delta_t = f'(z_t) (g_t + W_hh^T delta_{t+1}),         dx_t = W_ih^T delta_t,         dh_0 = W_hh^T delta_1,
    dW_ih = sum delta_t x_t^T,    dW_hh = sum delta_t h_{t-1}^T,    db_ih = db_hh = sum delta_t,

and forward mode, with a dot for a tangent,

    z'_t = W_ih x'_t + W'_ih x_t + b'_ih + b'_hh + W_hh h'_{t-1} + W'_hh h_{t-1},         h'_t = f'(z_t) z'_t.

A reverse direction runs from each row's own end to its beginning. A row steps only at t < length; elsewhere its state waits
and its output is 0. Elman (1990), "Finding structure in time"; Werbos (1990), "Backpropagation through time".

The numbers are NumPy's ``longdouble`` where that is wider than float64, as on x86 (64 bits of mantissa), else mpmath's.

Every result can be computed again with a :class:`Noise`, which moves each pre-activation, state, gradient and sum by about
one rounding of a coarser dtype: how far the result then moves says what that dtype can be asked for.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import mpmath
import numpy as np

# Twice the 64 bits of x86's longdouble, which costs mpmath nothing.
MP_BITS = 128
# A longdouble is used if it has at least ten bits more than float64's 53.
WIDER_BITS = 63


@dataclass(frozen=True)
class Numbers:
    """A kind of number: how arrays of it are made, its eps, and its elementary functions."""

    dtype: type
    eps: float
    tanh: Callable
    exp: Callable
    expm1: Callable
    log1p: Callable
    sqrt: Callable

    def give(self, host):
        """An array of these numbers; floats are taken exactly."""
        host = np.asarray(host)
        if self.dtype is not object or host.dtype == object:
            return np.asarray(host, dtype=self.dtype)
        return np.asarray(np.frompyfunc(MPMATH.mpf, 1, 1)(host.astype(object)), dtype=object)


LONG = Numbers(np.longdouble, float(np.finfo(np.longdouble).eps), np.tanh, np.exp, np.expm1, np.log1p, np.sqrt)
MPMATH = mpmath.MPContext()  # one of our own: the digits of its numbers depend on nobody else's setting
MPMATH.prec = MP_BITS


def _mp(name):
    elementwise = np.frompyfunc(getattr(MPMATH, name), 1, 1)
    return lambda z: np.asarray(elementwise(z), dtype=object)


MP = Numbers(object, 2.0 ** (1 - MP_BITS), *map(_mp, ("tanh", "exp", "expm1", "log1p", "sqrt")))
WIDE = LONG if np.finfo(np.longdouble).nmant >= WIDER_BITS else MP


# --- the functions ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Function:
    """f and f' of (numbers, z), the places where either jumps, and a bound of |f'|."""

    f: Callable
    df: Callable
    kinks: tuple[float, ...] = ()
    bound: float = 1.0


def function(name, alpha=None, beta=None):
    """A function by rnncore's name, from its formula in ONNX's RNN operator; "rational" is z / (1 + z^2)."""
    steep = abs(alpha or 0.0)
    made = {
        "tanh": lambda: Function(lambda n, z: n.tanh(z), lambda n, z: 1 - n.tanh(z) ** 2),
        "relu": lambda: Function(lambda n, z: np.where(z > 0, z, 0 * z), _above(0.0), (0.0,)),
        "sigmoid": lambda: Function(_sigmoid, lambda n, z: _sigmoid(n, z) * _sigmoid(n, -z), bound=0.25),
        "identity": lambda: Function(lambda n, z: z, lambda n, z: 0 * z + 1),
        "leaky_relu": lambda: Function(
            lambda n, z: np.where(z > 0, z, alpha * z),
            lambda n, z: np.where(z > 0, 0 * z + 1, 0 * z + alpha),
            (0.0,),
            max(1.0, steep),
        ),
        "thresholded_relu": lambda: Function(lambda n, z: np.where(z > alpha, z, 0 * z), _above(alpha), (alpha,)),
        "hard_sigmoid": lambda: Function(
            lambda n, z: _middle(alpha * z + beta),
            lambda n, z: np.where((alpha * z + beta > 0) & (alpha * z + beta < 1), 0 * z + alpha, 0 * z),
            (-beta / alpha, (1 - beta) / alpha),
            steep,
        ),
        "elu": lambda: Function(
            lambda n, z: np.where(z > 0, z, alpha * n.expm1(_negative(z))),
            lambda n, z: np.where(z > 0, 0 * z + 1, alpha * n.exp(_negative(z))),
            () if alpha == 1 else (0.0,),
            max(1.0, steep),
        ),
        "softsign": lambda: Function(lambda n, z: z / (1 + abs(z)), lambda n, z: 1 / (1 + abs(z)) ** 2),
        "softplus": lambda: Function(
            lambda n, z: np.where(z > 0, z, 0 * z) + n.log1p(n.exp(-abs(z))), lambda n, z: _sigmoid(n, z)
        ),
        "scaled_tanh": lambda: Function(
            lambda n, z: alpha * n.tanh(beta * z),
            lambda n, z: alpha * beta * (1 - n.tanh(beta * z) ** 2),
            bound=abs(alpha * beta),
        ),
        "affine": lambda: Function(lambda n, z: alpha * z + beta, lambda n, z: 0 * z + alpha, bound=steep),
        "rational": lambda: Function(lambda n, z: z / (1 + z * z), lambda n, z: (1 - z * z) / (1 + z * z) ** 2),
    }
    return made[name]()


def _above(threshold):
    return lambda n, z: np.where(z > threshold, 0 * z + 1, 0 * z)


def _sigmoid(n, z):
    return (1 + n.tanh(z / 2)) / 2


def _middle(y):
    return np.where(y < 0, 0 * y, np.where(y > 1, 0 * y + 1, y))


def _negative(z):
    return np.where(z > 0, 0 * z, z)


# --- noise ------------------------------------------------------------------------------------------------------------


class Noise:
    """Roundings of a dtype: a number moves by up to eps times its size, and where it underflows by eps times `tiny`.

    A sum of n numbers moves by sqrt(n) / 6 times that, if it is more. Added one after the other, n numbers of one sign make
    partial sums k / n of the whole, each rounded by up to eps / 2 either way: by the rules of variances, these errors add up
    to sqrt(n / 3) times eps / (2 sqrt(3)) of the whole.
    """

    def __init__(self, rng, eps, tiny):
        self.rng, self.eps, self.tiny = rng, eps, tiny

    def __call__(self, x, size, terms=1):
        """x moved, `size` being the sum of the magnitudes that make it up; a sum of zeros stays 0."""
        amount = np.where(size > 0, np.maximum(size, self.tiny), 0) * max(1.0, math.sqrt(terms) / 6)
        return x + self.eps * self.rng.uniform(-1, 1, x.shape) * amount


def exact(x, size, terms=1):
    """No noise."""
    return x


# --- the network ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Net:
    """Weights by [layer][direction], each (W_ih, W_hh, b_ih, b_hh) or the same of tangents, and the function."""

    weights: list
    function: Function
    clip: float
    numbers: Numbers


@dataclass
class Run:
    """What a forward pass leaves: inputs (T, B, .), and by [layer][direction] z, h, h_{t-1} (T, B, H) and the ends (B, H)."""

    valid: np.ndarray
    masks: list
    inputs: list = field(default_factory=list)
    z: list = field(default_factory=list)
    h: list = field(default_factory=list)
    before: list = field(default_factory=list)
    last: list = field(default_factory=list)

    @property
    def output(self):
        return np.concatenate(self.h[-1], axis=2)


def network(params, layers, directions, function, clip=math.inf, numbers=None):
    """A network of host arrays by torch's names; biases that are missing are 0. `numbers`: WIDE by default."""
    numbers = WIDE if numbers is None else numbers
    weights = []
    for k in range(layers):
        row = []
        for suffix in (f"l{k}", f"l{k}_reverse")[:directions]:
            w_ih, w_hh = (numbers.give(params[f"{kind}_{suffix}"]) for kind in ("weight_ih", "weight_hh"))
            zero = np.zeros(len(w_hh))
            row.append((w_ih, w_hh, *(numbers.give(params.get(f"{b}_{suffix}", zero)) for b in ("bias_ih", "bias_hh"))))
        weights.append(row)
    return Net(weights, function, clip, numbers)


def forward(net, x, h0, lengths=None, masks=(), noise=exact):
    """Run x (T, B, I) from h0[layer][direction] (B, H); masks (T, B, D*H) multiply what the next layer reads."""
    steps, batch, _ = x.shape
    n = net.numbers
    ends = np.full(batch, steps) if lengths is None else np.asarray(lengths, dtype=int)
    valid = np.arange(steps)[:, None] < ends
    run = Run(valid[:, :, None], [n.give(m) for m in masks])
    below = np.where(run.valid, n.give(x), n.give(0.0))
    for k, row in enumerate(net.weights):
        run.inputs.append(below)
        found = [_run_one(net, w, below, n.give(h0[k][d]), run.valid, d, noise) for d, w in enumerate(row)]
        for kept, part in zip((run.z, run.h, run.before, run.last), zip(*found, strict=True), strict=True):
            kept.append(list(part))
        below = np.concatenate(run.h[k], axis=2)
        below = below * run.masks[k] if k < len(run.masks) else below
    return run


def _run_one(net, weights, x, h0, valid, direction, noise):
    n, f = net.numbers, net.function.f
    w_ih, w_hh, b_ih, b_hh = weights
    z, h, before = (np.full((*x.shape[:2], len(w_hh)), n.give(0.0)[()], dtype=n.dtype) for _ in range(3))
    state = h0
    for t in _times(len(x), direction):
        here = valid[t]
        start = np.where(here, state, n.give(0.0))  # a row that waits may wait in NaN
        now = x[t] @ w_ih.T + b_ih + b_hh + start @ w_hh.T
        size = abs(x[t]) @ abs(w_ih).T + abs(b_ih) + abs(b_hh) + abs(start) @ abs(w_hh).T
        now = noise(now, size, x.shape[2] + len(w_hh))
        new = f(n, _limited(now, net.clip))
        new = noise(new, abs(new))
        z[t], h[t], before[t] = (np.where(here, a, n.give(0.0)) for a in (now, new, start))
        state = np.where(here, new, state)
    return z, h, before, state


def slopes(net, z, noise=exact):
    """f'(z), 0 outside the clip."""
    d = net.function.df(net.numbers, _limited(z, net.clip))
    d = np.where(abs(z) > net.clip, 0 * z, d)
    # From h = f(z) a derivative is a difference of numbers as large as its bound.
    return noise(d, 0 * abs(d) + net.function.bound)


def backward(net, run, d_output, d_last, truncate=None, noise=exact):
    """Gradients by name of the parameters, of x (T, B, I), and h0[layer] (D, B, H); d_last[layer][direction] (B, H)."""
    n = net.numbers
    params, d_h0 = {}, [None] * len(net.weights)
    above = np.where(run.valid, n.give(d_output), n.give(0.0))
    for k in reversed(range(len(net.weights))):
        row, firsts, d_x = net.weights[k], [], 0
        width = len(row[0][1])
        for d, weights in enumerate(row):
            w_ih, x, before = weights[0], run.inputs[k], run.before[k][d]
            g = above[:, :, d * width : (d + 1) * width]
            slope = slopes(net, run.z[k][d], noise)
            delta, first = _back_one(n, weights[1], g, n.give(d_last[k][d]), slope, run.valid, d, truncate, noise)
            suffix = f"l{k}" + ("_reverse" if d else "")
            size, terms = abs(delta), delta.shape[0] * delta.shape[1]
            params[f"weight_ih_{suffix}"] = noise(_outer(delta, x), _outer(size, abs(x)), terms)
            params[f"weight_hh_{suffix}"] = noise(_outer(delta, before), _outer(size, abs(before)), terms)
            bias = noise(delta.sum((0, 1)), size.sum((0, 1)), terms)
            params[f"bias_ih_{suffix}"] = params[f"bias_hh_{suffix}"] = bias
            firsts.append(first)
            d_x = d_x + noise(delta @ w_ih, size @ abs(w_ih), width)
        d_h0[k] = np.stack(firsts)
        above = d_x * run.masks[k - 1] if 0 < k <= len(run.masks) else d_x
    return params, above, d_h0


def _back_one(n, w_hh, g, d_last, slope, valid, direction, truncate, noise):
    delta = np.full(g.shape, n.give(0.0)[()], dtype=n.dtype)
    carried = d_last
    steps = len(g)
    for t in reversed(_times(steps, direction)):
        here = valid[t]
        u = np.where(here, g[t] + carried, n.give(0.0))
        delta[t] = noise(slope[t] * u, abs(slope[t] * u))
        through = noise(delta[t] @ w_hh, abs(delta[t]) @ abs(w_hh), len(w_hh))
        boundary = t + 1 if direction else t
        if truncate is not None and boundary % truncate == 0:
            # The first step of a row has none before it from which it could be cut off.
            follows = valid[t + 1] if direction and t + 1 < steps else np.full(here.shape, not direction and t > 0)
            through = np.where(follows, n.give(0.0), through)
        carried = np.where(here, through, carried)
    return delta, carried


def tangent(net, run, dots, x_dot, h0_dot, noise=exact):
    """The tangents of output (T, B, D*H) and of the ends [layer][direction] (B, H); dots: as the weights of a network."""
    n = net.numbers
    below_dot = np.where(run.valid, n.give(x_dot), n.give(0.0))
    last = []
    for k, row in enumerate(net.weights):
        sides, ends = [], []
        for d, (w_ih, w_hh, _, _) in enumerate(row):
            v_ih, v_hh, *v_b = dots[k][d]
            x, before = run.inputs[k], run.before[k][d]
            slope = slopes(net, run.z[k][d], noise)
            h_dot = np.full(before.shape, n.give(0.0)[()], dtype=n.dtype)
            state = n.give(h0_dot[k][d])
            for t in _times(len(x), d):
                here = run.valid[t]
                start = np.where(here, state, n.give(0.0))
                terms = ((below_dot[t], w_ih), (x[t], v_ih), (start, w_hh), (before[t], v_hh))
                moved = sum(a @ w.T for a, w in terms) + v_b[0] + v_b[1]
                size = sum(abs(a) @ abs(w).T for a, w in terms) + abs(v_b[0]) + abs(v_b[1])
                moved = slope[t] * noise(moved, size, 2 * (x.shape[2] + len(w_hh)))
                h_dot[t] = np.where(here, noise(moved, abs(moved)), n.give(0.0))
                state = np.where(here, h_dot[t], state)
            sides.append(h_dot)
            ends.append(state)
        last.append(ends)
        below_dot = np.concatenate(sides, axis=2)
        below_dot = below_dot * run.masks[k] if k < len(run.masks) else below_dot
    return np.concatenate(sides, axis=2), last


def _times(steps, direction):
    return range(steps - 1, -1, -1) if direction else range(steps)


def _limited(z, clip):
    return z if clip == math.inf else np.where(z > clip, 0 * z + clip, np.where(z < -clip, 0 * z - clip, z))


def _outer(a, b):
    """The sum over time and rows of a_t b_t^T."""
    flat = a.reshape(-1, a.shape[-1])
    return flat.T @ b.reshape(-1, b.shape[-1])
