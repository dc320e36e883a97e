"""MLX: the whole suite, and what this backend does about the places where MLX is not the standard's."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

import rnncore
from rnncore.testing import BackendConformance

mx = pytest.importorskip(
    "mlx.core", reason='MLX is not installed, or has no library here: pip install "rnncore[mlx]"', exc_type=ImportError
)
import rnncore_mlx  # noqa: E402

EPS = {"float32": 2.0**-23, "float64": 2.0**-52}


class TestMlx(BackendConformance):
    backend = rnncore_mlx


def give(numbers, dtype):
    return rnncore_mlx.asarray(np.asarray(numbers), dtype=getattr(mx, dtype), device=rnncore_mlx.devices()[0])


def test_gradients_are_a_tuple_of_one_too():
    found = rnncore_mlx.grad(lambda x: mx.sum(x * x))(give([3.0], "float32"))
    assert isinstance(found, tuple)
    assert len(found) == 1


def test_exp_in_float64_is_right_to_the_last_place_and_as_far_as_float64_goes():
    """MLX's own is right to 24 bits, and infinite from 88.0 on."""
    exp, x = rnncore_mlx.namespace().exp, np.random.default_rng(0).uniform(-708.0, 709.0, 20_000)
    want = np.exp(x.astype(np.longdouble))
    found = rnncore_mlx.to_numpy(exp(give(x, "float64")))
    assert found.dtype == np.float64
    assert float((abs(found - want) / want).max()) < 2 * EPS["float64"]
    special = rnncore_mlx.to_numpy(exp(give([np.inf, -np.inf, np.nan, 0.0, -0.0, 1e4, -1e4], "float64")))
    np.testing.assert_array_equal(special, [np.inf, 0.0, np.nan, 1.0, 1.0, np.inf, 0.0])


@pytest.mark.parametrize("dtype", EPS)
def test_exp_has_its_derivative_at_zero_too(dtype):
    x = np.asarray([0.0, 1.0, -1.0, 30.0, -30.0])
    (found,) = rnncore_mlx.grad(lambda v: mx.sum(rnncore_mlx.namespace().exp(v)))(give(x, dtype))
    np.testing.assert_allclose(rnncore_mlx.to_numpy(found), np.exp(x), rtol=16 * EPS[dtype])


def test_a_result_goes_to_another_thread_once_it_is_computed():
    rnn = rnncore.RNN(3, 4, backend=rnncore_mlx, rng=0)
    x = give(np.ones((5, 2, 3)), "float32")
    want = rnncore_mlx.to_numpy(rnn(x)[0])

    def computed(_):
        output, _ = rnn(x)
        mx.eval(output)
        return output

    with ThreadPoolExecutor(4) as pool:
        for output in pool.map(computed, range(16)):
            np.testing.assert_array_equal(rnncore_mlx.to_numpy(output), want)


def test_a_new_model_may_be_used_in_any_thread():
    """Weights are numbers from the start, not work that one thread would have to do."""
    for dtype in ("float16", "bfloat16", "float32", "float64"):
        rnn = rnncore.RNN(3, 4, backend=rnncore_mlx, dtype=dtype, rng=0)
        x = give(np.ones((5, 2, 3)), dtype)
        with ThreadPoolExecutor(1) as pool:
            assert pool.submit(lambda rnn=rnn, x=x: rnncore_mlx.to_numpy(rnn(x)[0])).result().shape == (5, 2, 4)


def test_a_trained_model_may_once_its_parameters_are_computed():
    rnn = rnncore.RNN(3, 4, backend=rnncore_mlx, rng=0)
    x = give(np.ones((5, 2, 3)), "float32")
    output, _, pullback = rnn.vjp(x)
    rnn.set_params(rnncore.optim.SGD(lr=0.1).step(rnn.params, pullback(output).params))
    mx.eval(*rnn.params.values())
    with ThreadPoolExecutor(1) as pool:
        found = pool.submit(lambda: rnncore_mlx.to_numpy(rnn(x)[0])).result()
    np.testing.assert_array_equal(found, rnncore_mlx.to_numpy(rnn(x)[0]))


def test_an_old_mlx_is_refused(monkeypatch):
    for version, refused in (
        ("0.31.9", True),
        ("0.32.3", True),
        ("0.32.4", False),
        ("0.33.0.dev1", False),
        ("1.0", False),
    ):
        monkeypatch.setattr(rnncore_mlx, "version", lambda _, v=version: v)
        reason = rnncore_mlx.unusable()
        assert (reason == f"mlx {version} is older than 0.32.4") if refused else reason is None


def test_tf32_is_reported_on_a_gpu_unless_it_is_switched_off(monkeypatch):
    for kind, setting, want in (
        ("gpu", None, "tf32"),
        ("gpu", "1", "tf32"),
        ("gpu", "0", "full"),
        ("cpu", None, "full"),
    ):
        monkeypatch.delenv("MLX_ENABLE_TF32", raising=False)
        if setting is not None:
            monkeypatch.setenv("MLX_ENABLE_TF32", setting)
        assert rnncore_mlx.precision(mx.Device(getattr(mx, kind), 0)) == want
