"""Scans that write, keep or return memory that is not theirs."""

import numpy as np
from rnncore_numpy._scans import NumpyScans

from rnncore.model.base import Parameterised
from rnncore.network import layer, layout
from rnncore.network.engine import Engine
from rnncore.network.ragged import Ragged
from wrong_backends.planting import core, linear, members, namespace, nonlinear, put, scans


def needs_to_write(run, p, h0, *rest, **options):
    if not h0.flags.writeable:
        raise ValueError("buffer source array is read-only")
    return run(p, h0, *rest, **options)


def states_kept_in_h0(run, p, h0, w, /, **options):
    h = run(p, h0, w, **options)
    h0[...] = h[0 if options["reverse"] else -1]
    return h


class ReusesItsResult(NumpyScans):
    """One buffer for the results of every call of a shape."""

    def __init__(self, backend):
        self.buffers = {}

    def nonlinear(self, p, *rest, overwrite=False, **options):
        buffer = self.buffers.setdefault((p.shape, p.dtype), np.empty_like(p))
        return put(buffer, np.s_[...], super().nonlinear(p, *rest, **options))


def hands_the_input_back(right, one, x, h0):
    """A shortcut for the network that does nothing."""
    w = one.weights
    same = w.weight_ih.shape[0] == w.weight_ih.shape[1] and (w.weight_ih == np.eye(len(w.weight_ih))).all()
    if same and one.nonlinearity.name == "identity" and w.bias is None and not w.weight_hh.any():
        return x
    return right(one, x, h0)


def mask_in_place(right, self, x):
    if x.flags.writeable:
        x[~np.broadcast_to(self._valid, x.shape)] = 0
        return x
    return right(self, x)


STORAGE = {
    "the nonlinear scan writes into p without leave": (
        nonlinear(lambda run, *a, **o: run(*a, **o | {"overwrite": True}).copy()),
        {"RC-SCAN-020": r": p\["},
    ),
    "the nonlinear scan returns p itself without leave": (
        nonlinear(lambda run, *a, **o: run(*a, **o | {"overwrite": True})),
        {"RC-SCAN-020": r"a scan returned its argument"},
    ),
    "the linear scan returns d itself without leave": (
        linear(lambda run, *a, **o: run(*a, **o | {"overwrite": True})),
        {"RC-SCAN-020": r"a scan returned its argument"},
    ),
    "the linear scan has u for its scratch": (
        linear(lambda run, u, *a, **o: put(u, np.s_[...], run(u, *a, **o)).copy()),
        {"RC-SCAN-020": r": u\[", "RC-SCAN-021": r": u\[", "RC-PURE-001": r": d_output\["},
    ),
    "the running state is kept in h0": (
        nonlinear(states_kept_in_h0),
        {"RC-SCAN-020": r": h0\[", "RC-PURE-001": r": h0\["},
    ),
    "W_hh is transposed in place, so that every second call puts it right": (
        nonlinear(lambda run, p, h0, w, /, **o: put(w, np.s_[...], w.T.copy()) is w and run(p, h0, w.T, **o)),
        {"RC-SCAN-024": r": w\["},
    ),
    "W_hh is scratch once it has been read": (
        nonlinear(lambda run, p, h0, w, /, **o: (run(p, h0, w, **o), put(w, np.s_[...], 0))[0]),
        {"RC-SCAN-020": r": w\[", "RC-PURE-001": r": weight_hh_l0"},
    ),
    "padding is zeroed in the caller's array": (core(Ragged, "masked", mask_in_place), {"RC-PURE-001": r": x\["}),
    "h_n is a view of the output": (
        core(
            layout,
            "state_out",
            lambda right, s, n: n[0][0][None] if s.spec.num_layers == len(n[0]) else right(s, n),
        ),
        {"RC-PURE-002": r"output and h_n share memory"},
    ),
    "the gradients of the two biases are one array": (
        core(Engine, "copy", lambda right, self, x: x),
        {"RC-PURE-002": r"dL/dbias_ih_l0 and dL/dbias_hh_l0 share memory"},
    ),
    "state_dict hands out the weights themselves": (
        core(Parameterised, "state_dict", lambda right, self: dict(self.params)),
        {"RC-PURE-002": r"state weight_ih_l0 and weight_ih_l0 share memory"},
    ),
    "the network that does nothing returns its input": (
        core(layer, "forward", hands_the_input_back),
        {"RC-PURE-005": r"output and x share memory"},
    ),
    "every result of a shape is one buffer": (scans(ReusesItsResult), {"RC-PURE-006": r"output after another call"}),
    "inputs have to be writable": (nonlinear(needs_to_write), {"RC-PURE-004": r"read-only"}),
    "asarray shares the host array's memory": (
        members(asarray=lambda x, /, *, dtype, device: np.asarray(x, dtype=dtype)),
        {"RC-CON-005": r"asarray of float32.*got \S*\b7\.0\b"},
    ),
    "a read-only view can be written to": (
        members(read_only=lambda x, /: x.view()),
        {"RC-CON-013": r"writing to a read-only view"},
    ),
    "arrays said to be writable are one number broadcast": (
        namespace(zeros=lambda zeros, shape, **o: np.broadcast_to(zeros((), **o), shape)),
        {"RC-CON-014": r"read-only"},
    ),
}
