"""Faults planted in the core itself: gradients, layers, lengths, optimisers."""

import numpy as np

from rnncore import optim, scan
from rnncore.network import calls, layer, layout
from rnncore.network import stack as network
from rnncore.network import step as cell
from rnncore.network.network import Network
from rnncore.network.ragged import Ragged
from rnncore.network.stack import Plan
from rnncore.nonlinearity.nonlinearity import Nonlinearity
from rnncore.optim import clipping
from wrong_backends.planting import core, put


def slope_in_place(right, self, h, *, xp):
    return put(h, np.s_[...], right(self, h, xp=xp))


def divides_by_d(right, d_s, u, d, s0, m, s, /, **options):
    """g = e / d and the bracket is s / d, unless d is 0."""
    found = right(d_s, u, d, s0, m, s, **options)
    return found._replace(d=found.u / d * (s / d))


def forgets_the_upper_reverse(right, one, d_h, d_last, x, *rest):
    """Only the forward direction of an upper layer tells the layer below."""
    found, width = right(one, d_h, d_last, x, *rest), one.weights.weight_hh.shape[0]
    return found._replace(x=found.x * 0) if one.reverse and x.shape[2] == 2 * width else found


def forgets_the_layer_above(right, one, d_h, d_last, x, *rest):
    found = right(one, d_h, d_last, x, *rest)
    return found._replace(x=found.x * 0) if x.shape[2] == one.weights.weight_hh.shape[0] else found


def without_bias_hh(right, self, params=None):
    given = self.params if params is None else params
    return right(self, {k: v * 0 if k.startswith("bias_hh") else v for k, v in given.items()})


def bias_hh_gradient(change):
    def named(right, call, nested):
        found = right(call, nested)
        return change(found, [k for k in found if k.startswith("bias_hh")])

    return named


CORE = {
    "the bias is missing": (
        core(layer, "_project", lambda right, w, x, engine: right(w._replace(bias=None), x, engine)),
        {"RC-CON-015": r"output.*got \S*\b0\.0\b"},
    ),
    "one of the two biases is missing": (core(Network, "weights", without_bias_hh), {"RC-FWD-007": r"output"}),
    "the two halves of the output change places": (
        core(network, "_side_by_side", lambda right, h, plan: right(h[::-1], plan)),
        {"RC-FWD-003": r"output"},
    ),
    "h_n has the top layer first": (
        core(layout, "state_out", lambda right, shape, nested: right(shape, nested[::-1])),
        {"RC-FWD-004": r"h_n of layer 0"},
    ),
    "of two directions above only one tells the layer below": (
        core(layer, "vjp", forgets_the_upper_reverse),
        {"RC-GRAD-004": r"dL/d"},
    ),
    "nothing comes down from the layer above": (core(layer, "vjp", forgets_the_layer_above), {"RC-GRAD-002": r"dL/d"}),
    "the gradient of h0 is missing": (
        core(layer, "vjp", lambda right, *a, **o: (lambda found: found._replace(h0=found.h0 * 0))(right(*a, **o))),
        {"RC-GRAD-011": r"dL/dh0\[.*got \S*\b0\.0\b"},
    ),
    "the gradient of bias_hh is missing": (
        core(
            Network, "named", bias_hh_gradient(lambda found, names: {k: v for k, v in found.items() if k not in names})
        ),
        {"RC-GRAD-001": r"grads.params: expected"},
    ),
    "the gradient of bias_hh is 0": (
        core(Network, "named", bias_hh_gradient(lambda found, names: found | {k: found[k] * 0 for k in names})),
        {"RC-GRAD-001": r"dL/dbias_hh_l0"},
    ),
    "the slopes are computed where the states were": (
        core(Nonlinearity, "derivative_from_h", slope_in_place),
        {"RC-GRAD-017": r"dL/dx, the second time"},
    ),
    "the cotangent of d is divided by d": (
        core(scan, "linear_vjp", divides_by_d),
        {"RC-SECOND-001": r"cotangent of d.*got nan"},
    ),
    "truncation is dropped": (core(Plan, "boundaries", lambda right, self, steps: ()), {"RC-GRAD-013": r"dL/d"}),
    "of a checkpointed pullback only the first window counts": (
        core(network, "_added", lambda right, a, b: b),
        {"RC-GRAD-014": r"dL/dweight"},
    ),
    "the tangent of h0 is dropped": (
        core(layer, "jvp", lambda right, one, w_dot, x_dot, h0_dot, *a: right(one, w_dot, x_dot, None, *a)),
        {"RC-JVP-001": r"tangent of output"},
    ),
    "dropout does not scale what it keeps": (
        core(calls, "_dropout_masks", lambda right, *a: tuple(m * (1 - a[0].spec.dropout) for m in right(*a))),
        {"RC-FWD-016": r"output in training", "RC-GRAD-015": r"output"},
    ),
    "dropout of everything divides by 0": (
        core(
            calls, "_dropout_masks", lambda right, *a: tuple(m / m.dtype.type(1 - a[0].spec.dropout) for m in right(*a))
        ),
        {"RC-FWD-017": r"output.*got nan"},
    ),
    "h_n is the first state": (
        core(layer, "last_state", lambda right, one, h, h0: h[0]),
        {"RC-CELL-003": r"output from step 3", "RC-META-003": r"h_n cut at 1"},
    ),
    "in reverse, padding is the beginning": (
        core(
            layer,
            "forward",
            lambda right, one, *a: right(one._replace(ragged=None) if one.reverse else one, *a),
        ),
        {"RC-LEN-002": r"output"},
    ),
    "a row without steps loses its state": (
        core(Ragged, "last_or", lambda right, self, h, h0: self.at_ends(h)),
        {"RC-LEN-006": r"h_n of the empty row.*got \S*\b0\.0\b"},
    ),
    "h_n of a shorter sequence is one step early": (
        core(Ragged, "last_or", lambda right, self, h, h0: right(self, np.concatenate([h[:1], h[:-1]]), h0)),
        {"RC-LEN-001": r"h_n of layer 0"},
    ),
    "padding is read": (
        core(Ragged, "masked", lambda right, self, x: x),
        {"RC-LEN-003": r"with nan in the padding", "RC-LEN-004": r"dL/dx in the padding"},
    ),
    "a length that is too long is cut": (
        core(calls, "host_lengths", lambda right, n, *, batch, steps: n and tuple(min(k, steps) for k in n)),
        {"RC-LEN-009": r"expected ArgumentValueError, got an answer"},
    ),
    "a cell forgets its state": (
        core(cell, "step", lambda right, w, x, h, **o: right(w, x, 0 * h, **o)),
        {"RC-CELL-001": r"h at step 0"},
    ),
    "the norm of gradients squares before it scales": (
        core(clipping, "_scaled_squares", lambda right, g, largest, xp: xp.sum(g * g) / largest**2),
        {"RC-OPT-001": r"norm at"},
    ),
    "Adam does not correct its averages": (
        core(optim.Adam, "_update", lambda right, self, p, g, kept, count, xp: right(self, p, g, kept, 10**6, xp)),
        {"RC-OPT-002": r"Adam"},
    ),
}
