"""One call for everything: run the probes of a level, and return a report with a verdict."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal, TypeAlias, get_args

import numpy as np

from rnncore.arguments import closest, integer, non_negative_int, positive_int, shown
from rnncore.diagnostics.faults.first import nonfinite
from rnncore.diagnostics.findings.findings import Subject
from rnncore.diagnostics.foreign import as_rnn, detached
from rnncore.diagnostics.gradient.decomposition import decompose
from rnncore.diagnostics.gradient.flow import flow
from rnncore.diagnostics.gradient.gradcheck import gradcheck
from rnncore.diagnostics.gradient.horizon import MAX_LAG, horizon
from rnncore.diagnostics.gradient.weight_gradient import weight_gradient
from rnncore.diagnostics.jacobians.bounds import bounds
from rnncore.diagnostics.jacobians.jacobian import jacobian
from rnncore.diagnostics.jacobians.lyapunov import lyapunov
from rnncore.diagnostics.jacobians.product import frame_width, product
from rnncore.diagnostics.numerics.device import on_device
from rnncore.diagnostics.recording import Record, run
from rnncore.diagnostics.report.report import Report
from rnncore.diagnostics.units.initial import initial
from rnncore.diagnostics.units.saturation import saturation
from rnncore.diagnostics.verdict.verdict import decide
from rnncore.errors import ArgumentTypeError, ArgumentValueError, UnknownNameError
from rnncore.model.base import with_network
from rnncore.model.rnn import RNN
from rnncore.network.layout import state_in
from rnncore.typing import Array, Host

__all__ = ["Level", "check_dependency", "check_level", "diagnose"]

Level: TypeAlias = Literal["cheap", "standard", "deep"]
Cotangents: TypeAlias = "tuple[Array | None, Any] | Callable[[Array, Any], tuple[Array | None, Any]] | None"

# Number of directions that the products and spectra of each level follow; "cheap" follows none.
DIRECTIONS = {"standard": 1, "deep": 8}
# The memory budget: arrays of the states' shape and dtype, float64 numbers on the host for each step and row; for "deep" also
# the triangles of the sweeps and the host's own states of gradcheck.
STATES, LOGARITHMS, FRAMES, HOST_STATES, ITEM = 11, 48, 8, 3, 8
# For any run: the pairs of lags whose slopes the median is taken of, and tables.
FIXED = 2**21
PROBES = (
    *("flow", "horizon", "saturation", "bounds", "decomposition", "jacobian", "initial", "weight_gradient", "product"),
    *("lyapunov", "gradcheck"),
)


def diagnose(
    rnn: RNN | Any,
    x: Array,
    cotangent: Cotangents = None,
    *,
    h0: Any = None,
    lengths: Any = None,
    dependency_length: int | None = None,
    level: Level = "cheap",
    rng: int = 0,
    max_bytes: int | None = None,
) -> Report:
    """Say why a network does not learn, with evidence and what to change.

    Parameters
    ----------
    rnn : RNN, torch.nn.RNN or torch.nn.RNNCell
        Of any backend. :func:`rnncore.diagnostics.as_rnn` says how PyTorch's own modules are converted.
    x, h0, lengths
        As for a call of the network.
    cotangent : (d_output, d_h_n), or a function of (output, h_n) that returns them, optional
        The gradient of the loss, in the shapes that a pullback takes; None in the pair is zero. By default a vector of
        norm 1 on each row's last valid output.
    dependency_length : int, optional
        The number of steps over which the task has to carry information; by default the whole run. Losses at many steps
        are followed that far if it is given, else over 256 steps: the summary says over how many.
    level : {"cheap", "standard", "deep"}
        "cheap" runs the probes that cost a few products each, some ten backward passes in all: flow, horizon,
        saturation, bounds, decomposition, initial, weight_gradient, nonfinite. "standard" adds the Jacobian of every
        step and the largest singular value of their product; "deep" more singular values, the Lyapunov spectrum and a
        check of the gradients.
    rng : int
        Seed of every random start, 0 or more.
    max_bytes : int, optional
        Refuse, before anything is allocated, a run that would need more: its states and gradients, and the arrays of the
        level's probes. Counted for NumPy; x itself is not counted.

    Returns
    -------
    Report
        ``print(report)``; ``report.verdict``; one attribute for each probe.

    Raises
    ------
    RnncoreError
        For invalid arguments. Numbers that are not finite are no error: the verdict is "nonfinite".

    Examples
    --------
    >>> import numpy as np, rnncore
    >>> from rnncore.diagnostics import diagnose
    >>> x = np.random.default_rng(0).standard_normal((200, 4, 3))
    >>> diagnose(rnncore.RNN(3, 32, rng=0), x).verdict.label
    'vanishing'
    >>> repaired = rnncore.RNN(3, 32, nonlinearity="identity", init=rnncore.init.orthogonal(1.0), rng=0)
    >>> diagnose(repaired, x).assert_healthy(min_horizon=200)
    """
    check_level(level)
    if dependency_length is not None:
        dependency_length = check_dependency(dependency_length)
    rng = non_negative_int("rng", rng)
    rnn, x, h0 = as_rnn(rnn), detached(x), detached(h0)
    rnn = with_network(rnn, rnn.network)  # with the parameters of now, whatever another thread sets meanwhile
    cotangent = cotangent if callable(cotangent) else detached(cotangent)
    _check_budget(rnn, x, level, max_bytes)
    with np.errstate(all="ignore"):  # numbers that are not finite are a finding, not a warning
        seen = run(rnn, x, h0, lengths, own=False)
        d_output, d_last = _cotangents(rnn, seen, cotangent, x, h0, lengths)
        fault = nonfinite(seen, d_output, d_last)
        if fault is not None:
            found, reason = dict.fromkeys(PROBES), "the run is not finite: see nonfinite"
            left_out = dict.fromkeys(PROBES, reason)
        elif max(seen.lengths, default=0) < 1:
            found, left_out = dict.fromkeys(PROBES), dict.fromkeys(PROBES, "no row has a step")
        else:
            found, left_out = _probe(seen, d_output, d_last, level, rng, dependency_length)
            if level == "deep":
                found["gradcheck"] = gradcheck(rnn, x, h0, lengths, rng)
    asked = dependency_length is not None
    wanted = dependency_length if dependency_length is not None else max(seen.lengths, default=0)
    dtype = seen.engine.dtype_name
    return Report(
        subject=Subject(repr(rnn), rnn.backend, dtype, seen.steps, seen.batch, seen.lengths, level, wanted),
        verdict=decide(seen, found, fault, wanted, asked),
        nonfinite=fault,
        left_out=left_out,
        eigenvalues=tuple(np.stack([_eigenvalues(lane.matrix) for lane in seen.layer(k)]) for k in range(len(seen.h))),
        **found,
    )


def check_dependency(length: Any) -> int:
    """Return the length of a dependency as an int in [1, 2**53], as far as floats count."""
    return integer("dependency_length", length, "an int in [1, 2**53]", lambda n: 1 <= n <= 2**53)


def check_level(level: Any) -> None:
    """Raise UnknownNameError, with the closest name, unless it is one of the three."""
    known = get_args(Level)
    if not isinstance(level, str) or level not in known:
        hint = closest(level, known) if isinstance(level, str) else ""
        raise UnknownNameError(f"level: expected one of {', '.join(known)}, got {shown(level)}{hint}")


def _probe(
    seen: Record, d_output: Array | None, d_last: Any, level: Level, rng: int, dependency_length: int | None
) -> tuple[dict[str, Any], dict[str, str]]:
    """The results of the level's probes by name, None for those it leaves out, and why."""
    flows, deltas = flow(seen, d_output, d_last)
    # As far as the given dependency; without one, as far as is usual, since the whole run may be long.
    lags = MAX_LAG if dependency_length is None else max(MAX_LAG, min(dependency_length, seen.steps) + 1)
    found: dict[str, Any] = dict.fromkeys(PROBES) | {
        "flow": flows,
        "horizon": seen.map(horizon, flows, deltas, max_lag=lags, every_loss=level == "deep"),
        "saturation": seen.map(saturation),
        "bounds": seen.map(bounds),
        "initial": seen.map(initial),
        "decomposition": seen.map(decompose, flows),
        "weight_gradient": seen.map(weight_gradient, deltas),
    }
    left_out = {} if level == "deep" else dict.fromkeys(("lyapunov", "gradcheck"), 'level="deep" runs it')
    if level == "cheap":
        return found, dict.fromkeys(("jacobian", "product"), 'level="standard" runs it') | left_out
    # One generator for all lanes, so that each has a start of its own.
    found["jacobian"] = seen.map(jacobian, sigma_max=level == "deep", rng=np.random.default_rng(rng))
    found["product"] = seen.map(lambda lane: product(lane, min(DIRECTIONS[level], lane.width), seed=rng))
    if level == "deep":
        found["lyapunov"] = seen.map(lambda lane: lyapunov(lane, min(DIRECTIONS[level], lane.width), seed=rng))
    return found, left_out


def _eigenvalues(w: Host) -> Host:
    """Real and imaginary parts, (H, 2), the largest in magnitude first."""
    if not np.isfinite(w).all():
        return np.full((len(w), 2), np.nan)
    found = np.linalg.eigvals(w)
    found = found[np.lexsort((found.imag, -np.abs(found).round(12)))]
    return np.stack([found.real, found.imag], axis=1)


def _cotangents(
    rnn: RNN, seen: Record, cotangent: Cotangents, x: Array, h0: Any, lengths: Any
) -> tuple[Array | None, Sequence[Sequence[Array | None]] | None]:
    """In time-first shapes: d_output (T, B, D*H) and d_last[layer][direction] (B, H)."""
    if cotangent is None:
        return _unit_on_the_last_output(seen), None
    pair = cotangent(*rnn(x, h0, lengths)) if callable(cotangent) else cotangent
    if not isinstance(pair, (tuple, list)) or len(pair) != 2:
        raise ArgumentTypeError(
            f"cotangent: expected a pair (d_output, d_h_n), a function of (output, h_n) that returns one, or None, "
            f"got {type(pair).__name__}"
        )
    d_output, d_h_n = pair
    layout = seen.layout
    if d_output is not None:
        top = seen.spec.hidden_sizes[-1] * seen.directions
        shape: tuple[int, ...] = (seen.steps, seen.batch, top) if layout.batched else (seen.steps, top)
        if layout.batched and seen.spec.batch_first:
            shape = (seen.batch, seen.steps, top)
        d_output = seen.masked(layout.inward(seen.engine.check("cotangent[0]", d_output, shape)))
    d_last = None if d_h_n is None else state_in(layout, "cotangent[1]", d_h_n)
    return d_output, d_last


def _unit_on_the_last_output(seen: Record) -> Array:
    width = seen.spec.hidden_sizes[-1] * seen.directions
    host = np.zeros((seen.steps, seen.batch, width))
    for row, end in enumerate(seen.lengths):
        if end:
            host[end - 1, row] = 1 / math.sqrt(width)
    return on_device(host, seen.engine)


def _check_budget(rnn: RNN, x: Any, level: Level, max_bytes: int | None) -> None:
    if max_bytes is None:
        return
    limit = positive_int("max_bytes", max_bytes)
    shape = tuple(x.shape) if isinstance(rnn, RNN) and rnn.network.engine.backend.is_native(x) else ()
    if len(shape) < 2:
        return  # the call itself reports the error
    count = math.prod(shape[:-1])
    needed = FIXED + count * rnn.spec.num_directions * sum(_bytes(rnn, h, level) for h in rnn.spec.hidden_sizes)
    if needed > limit:
        raise ArgumentValueError(
            f"max_bytes: expected at least {needed} for {count} steps of rows of {rnn!r} at level {level!r}, got {limit}"
        )


def _bytes(rnn: RNN, width: int, level: Level) -> int:
    """Bytes that one step of one row of a lane needs at most, as measured on NumPy."""
    item = int(rnn.network.engine.xp.finfo(rnn.dtype).bits) // 8
    held = STATES * width * item + LOGARITHMS * ITEM
    if level != "deep":
        return held
    frame = min(width, 3 * frame_width(min(DIRECTIONS["deep"], width), width))
    return held + (FRAMES * frame * frame + HOST_STATES * width + LOGARITHMS) * ITEM
