"""Reports of networks that fail in every way."""

from __future__ import annotations

import numpy as np

import rnncore
from rnncore.diagnostics import diagnose


def _x(steps, batch=3, size=3, dtype="float64"):
    return np.random.default_rng(0).standard_normal((steps, batch, size)).astype(dtype)


def _vanishing():
    return diagnose(rnncore.RNN(3, 16, rng=0), _x(120), level="deep")


def _exploding():
    init = {"weight_hh": rnncore.init.orthogonal(1.8)}
    return diagnose(rnncore.RNN(3, 16, nonlinearity="relu", init=init, rng=0), _x(60), level="standard")


def _ragged():
    rnn = rnncore.RNN(3, 6, num_layers=3, bidirectional=True, rng=0)
    return diagnose(rnn, _x(30), lambda o, h: (np.ones_like(o), None), lengths=[25, 9, 0], level="deep")


def _stack():
    init = {"weight_hh": rnncore.init.orthogonal(1.8)}
    rnn = rnncore.RNN(3, 8, num_layers=4, bidirectional=True, nonlinearity="relu", init=init, rng=0)
    return diagnose(rnn, _x(60), level="standard")


def _dead():
    init = {"weight_ih": rnncore.init.constant(1.0), "weight_hh": rnncore.init.identity()}
    return diagnose(rnncore.RNN(1, 4, nonlinearity="relu", bias=False, init=init), -np.ones((9, 2, 1)), level="deep")


def _nonfinite():
    init = {"weight_hh": rnncore.init.orthogonal(3.0)}
    rnn = rnncore.RNN(3, 8, nonlinearity="relu", init=init, rng=0, dtype="float32")
    return diagnose(rnn, _x(300, dtype="float32"))


def _one_step():
    return diagnose(rnncore.RNN(3, 1, rng=0), _x(1, 1), level="standard")


NETWORKS = {
    "vanishing": _vanishing,
    "exploding": _exploding,
    "ragged": _ragged,
    "stack": _stack,
    "dead": _dead,
    "nonfinite": _nonfinite,
    "one step": _one_step,
}


def texts_of(figure):
    """All that are drawn: matplotlib keeps ticks outside the limits, and their labels."""
    yield from figure.texts
    for legend in figure.legends:
        yield from legend.get_texts()
    for axes in figure.axes:
        if axes.get_visible():
            yield from (axes.title, axes.xaxis.label, axes.yaxis.label, *axes.texts)
            for axis in (axes.xaxis, axes.yaxis):
                low, high = sorted(axis.get_view_interval())
                ticks = [t for t in axis.get_major_ticks() if low <= t.get_loc() <= high]
                yield from (t.label1 for t in ticks)
                yield from (t.label2 for t in ticks)
