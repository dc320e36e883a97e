"""Random arrays by name, of any backend and dtype."""

import numpy as np

import rnncore

EPS = 2.0**-52
SHAPES = {"weight": (4, 3), "bias": (4,), "scalar": ()}


def normal(seed, *shapes):
    """NumPy arrays of these shapes."""
    rng = np.random.default_rng(seed)
    return [rng.standard_normal(s) for s in shapes]


def drawn(seed, library="numpy", dtype="float64"):
    rng = np.random.default_rng(seed)
    backend = rnncore.get_backend(library)
    kind = getattr(backend.namespace(), dtype)
    return {
        k: backend.asarray(np.asarray(rng.standard_normal(s)), dtype=kind, device=backend.devices()[0])
        for k, s in SHAPES.items()
    }
