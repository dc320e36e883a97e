"""diagnose: run the probes that a level pays for, and put what they found into one report with a verdict."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from difflib import get_close_matches
from typing import Any, Literal, TypeAlias, get_args

import numpy as np

from rnncore.arguments import positive_int
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
from rnncore.diagnostics.jacobians.product import EXTRA, product
from rnncore.diagnostics.recording import Record, record
from rnncore.diagnostics.report.report import Report
from rnncore.diagnostics.units.initial import initial
from rnncore.diagnostics.units.saturation import saturation
from rnncore.diagnostics.verdict.verdict import decide
from rnncore.errors import ArgumentTypeError, ArgumentValueError, UnknownNameError
from rnncore.model.rnn import RNN
from rnncore.network.layout import state_in
from rnncore.typing import Array

__all__ = ["Level", "check_level", "diagnose"]

Level: TypeAlias = Literal["cheap", "standard", "deep"]
Cotangents: TypeAlias = "tuple[Array | None, Any] | Callable[[Array, Any], tuple[Array | None, Any]] | None"

# How many directions the products and spectra of each level follow; "cheap" follows none.
DIRECTIONS = {"standard": 1, "deep": 8}
# Of the budget: arrays of the states' shape and dtype, numbers of float64 on the host for each step and row; and of "deep" the
# triangles of the sweeps and the host's own states of gradcheck.
STATES, LOGARITHMS, FRAMES, HOST_STATES, ITEM = 11, 48, 8, 3, 8
# Whatever the run: the pairs of lags that a slope is the median of, and tables.
FIXED = 2**21
PROBES = (
    "flow",
    "horizon",
    "saturation",
    "bounds",
    "decomposition",
    "jacobian",
    "initial",
    "weight_gradient",
    "product",
    "lyapunov",
    "gradcheck",
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
        Of any backend. See :func:`rnncore.diagnostics.as_rnn` for what becomes of PyTorch's own modules.
    x, h0, lengths
        As for a call of the network.
    cotangent : (d_output, d_h_n), or a function of (output, h_n) that returns them, optional
        Where the loss pulls, in the shapes that a pullback takes; None in the pair is zero. By default a vector of norm 1 on
        each row's last valid output.
    dependency_length : int, optional
        Over how many steps the task has to carry something; by default the whole run. Losses at many steps are followed
        as far as that, if it is given, and else over 256 steps: the summary says over how many.
    level : {"cheap", "standard", "deep"}
        "cheap" runs what costs a few products of the run's own arrays, some ten backward passes in all: flow, horizon,
        saturation, bounds, decomposition, initial, weight_gradient, nonfinite. "standard" adds the Jacobian of every
        step and the largest singular value of their product; "deep" more singular values, the Lyapunov spectrum and a
        check of the gradients.
    rng : int
        Seed of every random start, 0 or more.
    max_bytes : int, optional
        Refuse, before anything is allocated, a run that would need more: its states and gradients, and what the probes of
        the level make of them. Counted for NumPy; x itself is not counted.

    Returns
    -------
    Report
        ``print(report)``; ``report.verdict``; one attribute for each probe.

    Raises
    ------
    RnncoreError
        For arguments that make no sense. Numbers that are not finite are no error: the verdict is "nonfinite".

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
        dependency_length = positive_int("dependency_length", dependency_length)
    if isinstance(rng, bool) or not isinstance(rng, (int, np.integer)):
        raise ArgumentTypeError(f"rng: expected an int >= 0, got {rng!r}")
    if rng < 0:
        raise ArgumentValueError(f"rng: expected an int >= 0, got {rng}")
    rnn, x, h0 = as_rnn(rnn), detached(x), detached(h0)
    cotangent = cotangent if callable(cotangent) else detached(cotangent)
    _check_budget(rnn, x, level, max_bytes)
    with np.errstate(all="ignore"):  # what is not finite is what this is about
        seen = record(rnn, x, h0, lengths)
        d_output, d_last = _cotangents(rnn, seen, cotangent, x, h0, lengths)
        return _report(rnn, seen, d_output, d_last, dependency_length, level, rng, (x, h0, lengths))


def check_level(level: Any) -> None:
    """One of the three, or an error with the closest."""
    if level not in get_args(Level):
        close = get_close_matches(str(level), get_args(Level), n=1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        raise UnknownNameError(f"level: expected one of {', '.join(get_args(Level))}, got {level!r}{hint}")


def _report(
    rnn: RNN,
    seen: Record,
    d_output: Array | None,
    d_last: Any,
    dependency_length: int | None,
    level: Level,
    rng: int,
    call: tuple[Any, Any, Any],
) -> Report:
    found: dict[str, Any] = dict.fromkeys(PROBES)
    left_out: dict[str, str] = {}
    wanted = max(seen.lengths, default=0) if dependency_length is None else dependency_length
    fault = nonfinite(seen, d_output, d_last)
    if fault is not None:
        left_out |= dict.fromkeys(found, "the run is not finite: see nonfinite")
    elif seen.batch == 0 or max(seen.lengths, default=0) < 1:
        left_out |= dict.fromkeys(found, "no row has a step")
    else:
        found["flow"], deltas = flow(seen, d_output, d_last)
        # As far as a dependency that was asked for reaches; of a whole run, which may be long, as far as is usual.
        lags = MAX_LAG if dependency_length is None else max(MAX_LAG, min(dependency_length, seen.steps) + 1)
        found["horizon"] = _each(
            seen,
            lambda k, d: horizon(
                seen, found["flow"], deltas, layer=k, direction=d, max_lag=lags, every_loss=level == "deep"
            ),
        )
        found["saturation"], found["bounds"], found["initial"] = saturation(seen), bounds(seen), initial(seen)
        found["decomposition"] = decompose(seen, found["flow"])
        found["weight_gradient"] = weight_gradient(seen, deltas)
        if level == "cheap":
            left_out |= dict.fromkeys(("jacobian", "product"), 'level="standard" runs it')
            left_out |= dict.fromkeys(("lyapunov", "gradcheck"), 'level="deep" runs it')
        else:
            _costly(rnn, seen, found, left_out, level, rng, call)
    verdict = decide(
        seen,
        dependency_length=wanted,
        asked=dependency_length is not None,
        nonfinite=fault,
        **{n: found[n] for n in ("flow", "horizon", "saturation", "decomposition", "jacobian", "initial", "product")},
    )
    subject = Subject(
        repr(rnn), rnn.backend, seen.engine.dtype_name, seen.steps, seen.batch, seen.lengths, level, wanted
    )
    return Report(
        subject=subject,
        verdict=verdict,
        nonfinite=fault,
        left_out=left_out,
        eigenvalues=tuple(np.stack([_eigenvalues(seen.host(w.weight_hh)) for w in row]) for row in seen.weights),
        **found,
    )


def _eigenvalues(w: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Real and imaginary parts, (H, 2), the largest in magnitude first."""
    if not np.isfinite(w).all():
        return np.full((len(w), 2), np.nan)
    found = np.linalg.eigvals(w)
    found = found[np.lexsort((found.imag, -np.abs(found).round(12)))]
    return np.stack([found.real, found.imag], axis=1)


def _costly(
    rnn: RNN, seen: Record, found: dict[str, Any], left_out: dict[str, str], level: Level, rng: int, call: Any
) -> None:
    found["jacobian"] = jacobian(seen, sigma_max=level == "deep", rng=rng)
    widths = seen.spec.hidden_sizes

    def directions(k: int) -> int:
        return min(DIRECTIONS[level], widths[k])

    found["product"] = _each(seen, lambda k, d: product(seen, directions(k), layer=k, direction=d, seed=rng))
    if level == "standard":
        left_out |= dict.fromkeys(("lyapunov", "gradcheck"), 'level="deep" runs it')
        return
    found["lyapunov"] = _each(seen, lambda k, d: lyapunov(seen, directions(k), layer=k, direction=d, seed=rng))
    x, h0, lengths = call
    found["gradcheck"] = gradcheck(rnn, x, h0, lengths, rng)


def _each(seen: Record, probe: Callable[[int, int], Any]) -> tuple[tuple[Any, ...], ...]:
    return tuple(tuple(probe(k, d) for d in range(seen.directions)) for k in range(seen.spec.num_layers))


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
    layout, engine = seen.layout, seen.engine
    if d_output is not None:
        top = seen.spec.hidden_sizes[-1] * seen.directions
        shape: tuple[int, ...] = (seen.steps, seen.batch, top) if layout.batched else (seen.steps, top)
        if layout.batched and seen.spec.batch_first:
            shape = (seen.batch, seen.steps, top)
        engine.check("cotangent[0]", d_output, shape)
        d_output = layout.inward(d_output)
        d_output = d_output if seen.ragged is None else seen.ragged.masked(d_output)
    d_last = None if d_h_n is None else state_in(layout, "cotangent[1]", d_h_n)
    return d_output, d_last


def _unit_on_the_last_output(seen: Record) -> Array:
    width = seen.spec.hidden_sizes[-1] * seen.directions
    host = np.zeros((seen.steps, seen.batch, width))
    for row, end in enumerate(seen.lengths):
        if end:
            host[end - 1, row] = 1 / math.sqrt(width)
    engine = seen.engine
    return engine.backend.asarray(host, dtype=engine.dtype, device=engine.device)


def _check_budget(rnn: RNN, x: Any, level: Level, max_bytes: int | None) -> None:
    if max_bytes is None:
        return
    limit = positive_int("max_bytes", max_bytes)
    shape = tuple(getattr(x, "shape", ()))
    if not isinstance(rnn, RNN) or len(shape) < 2:
        return  # the call itself says what is wrong with it
    count = math.prod(shape[:-1])
    needed = FIXED + count * rnn.spec.num_directions * sum(_bytes(rnn, h, level) for h in rnn.spec.hidden_sizes)
    if needed > limit:
        raise ArgumentValueError(
            f"max_bytes: expected at least {needed} for {count} steps of rows of {rnn!r} at level {level!r}, got {limit}"
        )


def _bytes(rnn: RNN, width: int, level: Level) -> int:
    """What one step of one row of a layer and direction needs at most, as measured on NumPy."""
    item = int(rnn.network.engine.xp.finfo(rnn.dtype).bits) // 8
    held = STATES * width * item + LOGARITHMS * ITEM
    if level != "deep":
        return held
    frame = min(width, DIRECTIONS["deep"] + EXTRA)
    return held + (FRAMES * frame * frame + HOST_STATES * width + LOGARITHMS) * ITEM
