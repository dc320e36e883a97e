"""One step, and sums over many rows."""

import numpy as np
import pytest

import rnncore
from rnncore.network.step import sum_rows

# DESIGN's tolerance for gradients; a row-by-row sum of as many terms of one sign is off by hundreds.
EPS_ALLOWED = 64


@pytest.mark.parametrize("reverse", [False, True], ids=["", "bidirectional"])
@pytest.mark.parametrize(
    ("backend", "dtype"),
    [("numpy", "float16"), ("numpy", "float32"), ("torch", "float16"), ("torch", "bfloat16"), ("torch", "float32")],
)
def test_a_bias_gradient_of_many_terms_of_one_sign_is_as_good_as_the_others(backend, dtype, reverse):
    steps, batch, width = 4096, 4, 8
    rnn = rnncore.RNN(3, width, nonlinearity="identity", bidirectional=reverse, backend="numpy", dtype="float64", rng=0)
    rnn.set_params({k: np.round(v * 0.1 * 256) / 256 for k, v in rnn.state_dict().items()})  # exact in every dtype
    x = np.zeros((steps, batch, 3))
    d_output = np.full((steps, batch, width * (2 if reverse else 1)), 2.0**-9)
    want = rnn.vjp(x)[2](d_output).params
    low, plugin = rnn.to(backend, dtype=dtype), rnncore.get_backend(backend)
    give = lambda a: plugin.asarray(a, dtype=low.dtype, device=low.device)  # noqa: E731
    got = low.vjp(give(x))[2](give(d_output)).params
    eps = float(plugin.namespace().finfo(low.dtype).eps)
    for name in want:
        if name.startswith("bias"):
            error = np.abs(plugin.to_numpy(got[name]).astype("f8") - want[name]).max() / np.abs(want[name]).max()
            assert error <= EPS_ALLOWED * eps, f"{name}: {error / eps:.0f} eps"


@pytest.mark.parametrize("rows", [0, 1, 31, 32, 33, 1024, 1025, 100_003])
def test_rows_are_summed_as_well_as_by_a_product(rows):
    import array_api_compat.numpy as xp

    x = np.random.default_rng(0).random((rows, 3), dtype="f4")
    want = x.sum(axis=0, dtype="f8")
    np.testing.assert_allclose(sum_rows(x, xp=xp), want, rtol=16 * np.finfo("f4").eps)
