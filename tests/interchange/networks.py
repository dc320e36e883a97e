"""Networks that tell every mistake of a conversion: I != H, weights that are not symmetric, biases that differ."""

import numpy as np

import rnncore
from rnncore.interchange.portable import Portable


def network(input_size=3, hidden_size=5, dtype="float32", seed=0, **options):
    """A Portable with random numbers; the spectral radius of each weight_hh is below 1."""
    spec = rnncore.RNNSpec.make(input_size, hidden_size, **options)
    rng = np.random.default_rng(seed)
    params = {
        name: (rng.standard_normal(shape) / (2 * np.sqrt(shape[-1]))).astype(dtype)
        for name, shape in spec.parameter_shapes().items()
    }
    return Portable(spec, params, dtype)


def reference(portable, x, h0=None, lengths=None):
    """Output and h_n in float64, on NumPy's reference scans."""
    params = {n: np.asarray(a, "f8") for n, a in portable.params.items()}
    rnn = rnncore.RNN.from_spec(portable.spec, params, backend="numpy", dtype="float64", kernel="reference")
    return rnn(np.asarray(x, "f8"), None if h0 is None else np.asarray(h0, "f8"), lengths=lengths)
