"""Optimisers and clipping by their formulas, in 80 bits, beside rnncore's."""

import math

import numpy as np

from rnncore import optim
from tests.fuzz.drawing import EPS, TINY
from tests.fuzz.reference import WIDE

# Each new number is made by about ten operations, each off by half an eps of its own size.
ROUNDINGS = 16


def clipped(grads, max_norm, live):
    """Gradients clipped by rnncore, checked against the formula ``g min(1, max_norm / norm)``."""
    given = {n: WIDE.give(live.host(g)) for n, g in grads.items()}
    found, norm = optim.clip_grad_norm(grads, max_norm)
    squares = sum((g * g).sum() for g in given.values())
    want = math.sqrt(squares)
    eps = max(EPS[live.dtype] if live.dtype not in ("float16", "bfloat16") else EPS["float32"], EPS["float64"])
    count = sum(g.size for g in given.values())
    assert abs(norm - want) <= ROUNDINGS * eps * max(1.0, math.sqrt(count)) * want, f"norm {norm}, not {want}"
    factor = 1.0 if norm <= max_norm else max_norm / norm
    for name, g in given.items():
        error = abs(WIDE.give(live.host(found[name])) - factor * g)
        assert (error <= ROUNDINGS * EPS[live.dtype] * (abs(factor * g) + TINY[live.dtype])).all(), name
    return found, norm


class OptimiserShadow:
    """An optimiser of rnncore, and its state by name, which is read after each step that it was checked in."""

    def __init__(self, dtype, seed):
        rng = np.random.default_rng(seed)
        self.dtype = dtype
        decay = float(rng.choice([0.0, 0.01]))
        # In float16 the squares of small gradients are 0, and Adam is not what its formula says.
        self.adam = dtype != "float16" and rng.random() < 0.5
        if self.adam:
            self.options = {"lr": 0.01, "betas": (0.9, 0.99), "eps": 1e-3, "weight_decay": decay}
            self.theirs = optim.Adam(**self.options)
        else:
            momentum = float(rng.choice([0.0, 0.9]))
            nesterov = bool(momentum and rng.random() < 0.5)
            self.options = {"lr": 0.05, "momentum": momentum, "nesterov": nesterov, "weight_decay": decay}
            self.theirs = optim.SGD(**self.options)
        self.steps, self.state = {}, {}

    def step(self, params, grads, host):
        """A step of rnncore's optimiser, checked; the new parameters."""
        new = self.theirs.step(params, grads)
        state = self.theirs.state_dict()
        assert list(new) == list(params)
        for name in params:
            p, g = WIDE.give(host(params[name])), WIDE.give(host(grads[name]))
            self.steps[name] = self.steps.get(name, 0) + 1
            want, slots = (self._adam if self.adam else self._sgd)(name, p, g)
            found = {slot: host(state[slot][name]) for slot in slots}
            for slot, (value, size) in slots.items():
                self._check(f"{slot} of {name}", found[slot], value, size)
            self._check(name, host(new[name]), *want)
            self.state[name] = {slot: WIDE.give(a) for slot, a in found.items()}
        assert state["steps"] == self.steps
        return new

    def _check(self, what, got, want, size):
        allowed = ROUNDINGS * EPS[self.dtype] * (size + TINY[self.dtype])
        assert (abs(got - want) <= allowed).all(), f"{what}: off by more than is allowed"

    def _sgd(self, name, p, g):
        o = self.options
        size = abs(g) + o["weight_decay"] * abs(p)
        g = g + o["weight_decay"] * p
        if not o["momentum"]:
            return (p - o["lr"] * g, abs(p) + o["lr"] * size), {}
        kept = self.state.get(name, {}).get("momentum_buffer", 0 * g)
        b, b_size = o["momentum"] * kept + g, o["momentum"] * abs(kept) + size
        way, way_size = (g + o["momentum"] * b, size + o["momentum"] * b_size) if o["nesterov"] else (b, b_size)
        return (p - o["lr"] * way, abs(p) + o["lr"] * way_size), {"momentum_buffer": (b, b_size)}

    def _adam(self, name, p, g):
        o, t = self.options, self.steps[name]
        b1, b2 = o["betas"]
        size = abs(g) + o["weight_decay"] * abs(p)
        g = g + o["weight_decay"] * p
        kept = self.state.get(name, {})
        m0, v0 = kept.get("exp_avg", 0 * g), kept.get("exp_avg_sq", 0 * g)
        m, m_size = b1 * m0 + (1 - b1) * g, b1 * abs(m0) + (1 - b1) * size
        v, v_size = b2 * v0 + (1 - b2) * g * g, b2 * v0 + (1 - b2) * size * size
        scale = WIDE.sqrt(v) / math.sqrt(1 - b2**t) + o["eps"]
        way = o["lr"] / (1 - b1**t)
        # A v that is off by some roundings of v_size moves 1 / scale by as many of v_size / v, at most of v_size / eps^2.
        worse = 1 + v_size / np.maximum(v, o["eps"] ** 2 * (1 - b2**t))
        return (p - way * m / scale, abs(p) + way * m_size / scale * worse), {
            "exp_avg": (m, m_size),
            "exp_avg_sq": (v, v_size),
        }
