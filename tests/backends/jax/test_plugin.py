"""The plugin: arrays in and out, devices, 64 bits, and what is said where JAX is missing."""

import copy
import functools
import pickle
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import rnncore_jax
from jax import grad, vmap

import rnncore
from rnncore.errors import ArgumentTypeError, DTypeError
from tests.tools.jax_problem import HIDDEN, INPUT, Gpu, assert_trees_close, draw, model_and_input
from tests.tools.process import python

in_process = functools.partial(python, JAX_PLATFORMS="cpu")


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_weights_come_and_go_bit_for_bit(dtype):
    model = rnncore.RNN(INPUT, HIDDEN, 2, backend="numpy", dtype=dtype, rng=0)
    there = model.to("jax")
    back = there.to("numpy")
    for copied in (back, pickle.loads(pickle.dumps(there)).to("numpy"), copy.deepcopy(there).to("numpy")):
        for name, value in model.params.items():
            assert copied.params[name].dtype == value.dtype
            assert copied.params[name].tobytes() == value.tobytes()
    assert back.params["weight_hh_l0"].flags.writeable


def test_pickles_and_copies_keep_class_and_place():
    model, x = model_and_input()
    for copied in (pickle.loads(pickle.dumps(model)), copy.deepcopy(model), copy.deepcopy(jax.jit(lambda m: m)(model))):
        assert type(copied) is rnncore_jax.RNN and repr(copied) == repr(model)
        assert copied.params["weight_hh_l0"] is not model.params["weight_hh_l0"]
        assert_trees_close(copied(x), model(x), 0)


def test_asarray_shares_no_memory_and_keeps_the_dtype_or_refuses():
    room = np.zeros(64)
    host = room[-room.ctypes.data % 64 // room.itemsize :][:32]  # at a multiple of 64 bytes: JAX would go on using it
    made = rnncore_jax.asarray(host, dtype=jnp.float64, device=None)
    host[:] = 1
    assert not bool(made.any())
    assert rnncore_jax.asarray(host, dtype=jnp.bfloat16, device=None).dtype == jnp.bfloat16
    with jax.enable_x64(False), pytest.raises(DTypeError, match="got float64, which would become float32"):
        rnncore_jax.asarray(host, dtype=np.dtype("float64"), device=None)


def test_to_numpy_gives_numbers_that_cannot_be_overwritten():
    x = jnp.arange(3.0)
    host = rnncore_jax.to_numpy(x)
    assert host.dtype == np.float64
    with pytest.raises(ValueError, match="read-only"):
        host[0] = 1
    assert rnncore_jax.to_numpy(x.astype(jnp.bfloat16)).dtype == np.float32


def test_the_contracts_own_grad_and_jit():
    a, b = draw(0, (3,), (3,))
    d_a, d_b = rnncore_jax.grad(lambda a, b: jnp.sum(a * b**2))(a, b)
    assert_trees_close((d_a, d_b), (b**2, 2 * a * b))
    assert_trees_close(rnncore_jax.jit(jnp.sin)(a), jnp.sin(a))


def test_every_array_and_tracer_of_jax_is_native_and_nothing_else_is():
    seen = []
    see = lambda x: (seen.append(rnncore_jax.is_native(x)), jnp.sum(x))[1]  # noqa: E731
    x = jnp.ones(3)
    see(x), jax.jit(see)(x), grad(see)(x), vmap(see)(x), jax.jvp(see, (x,), (x,))
    assert seen == [True] * 5
    assert not any(map(rnncore_jax.is_native, (np.ones(3), 1.0, [1.0], jax.ShapeDtypeStruct((3,), jnp.float32))))


class OldHost:
    platform, id = "cpu", 3

    def __str__(self):
        return "TFRT_CPU_3"


def test_devices_have_the_names_that_users_call_them():
    assert rnncore_jax.device_name(Gpu()) == "cuda:1"
    assert rnncore_jax.device_name(OldHost()) == "cpu:3"
    assert rnncore_jax.device_name(rnncore_jax.devices()[0]) == "cpu:0"
    assert rnncore_jax.device_name(None) == "cpu:0"


def test_synchronize_waits_for_what_any_thread_started():
    @jax.jit
    def long(x):
        return jax.lax.fori_loop(0, 40, lambda i, y: y @ x, x)

    x = jnp.eye(500, dtype=jnp.float32)  # the test's 64 bits are this thread's alone
    started = [long(x)]
    thread = threading.Thread(target=lambda: started.append(long(x)))
    thread.start()
    thread.join()
    rnncore_jax.synchronize(rnncore_jax.devices()[0])
    assert [y.is_ready() for y in started] == [True, True]


FOUR_HOSTS = {"XLA_FLAGS": "--xla_force_host_platform_device_count=4"}


@pytest.mark.slow
def test_several_devices():
    in_process(
        """
import jax, jax.numpy as jnp, rnncore, rnncore_jax
from rnncore.errors import DeviceError
d = jax.devices()
x = jnp.ones((5, 8, 2))
for where in ("cpu:2", d[2]):
    rnn = rnncore_jax.RNN(2, 3, device=where, rng=0)
    assert rnn.device == d[2] and "device='cpu:2'" in repr(rnn)
    y, _, pullback = rnn.vjp(jax.device_put(x, d[2]), lengths=[1, 2, 3, 4, 5, 0, 1, 2])
    assert {a.device for a in (y, pullback(y).x, *rnn.params.values(), *rnn.state_dict().values())} == {d[2]}
    rnncore_jax.synchronize(d[2])
try:
    rnn(x)
except DeviceError as error:
    assert "'cpu:2', the model's, got 'cpu:0'" in str(error), error
else:
    raise AssertionError("an array of another device was taken")
moved = jax.device_put(rnn, d[1])
assert moved.device == d[1] and moved(jax.device_put(x, d[1]))[0].device == d[1]
assert rnn.to(device="cpu:3").device == d[3]
with jax.default_device(d[3]):
    assert rnncore_jax.devices() == (d[3], d[0], d[1], d[2])
    assert rnncore_jax.RNN(2, 3)(jnp.ones((5, 8, 2)))[0].device == d[3]
with jax.default_device("cpu"):
    assert rnncore_jax.devices() == tuple(d)
""",
        **FOUR_HOSTS,
    )


@pytest.mark.slow
@pytest.mark.parametrize("axes", ["Auto", "Explicit"])
def test_a_batch_spread_over_devices(axes):
    in_process(
        f"""
import jax, jax.numpy as jnp, numpy as np, pickle, rnncore_jax
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
mesh = jax.make_mesh((4,), ("b",), axis_types=(AxisType.{axes},))
rnn = rnncore_jax.RNN(2, 3, 2, bidirectional=True, rng=0)
x = jax.random.normal(jax.random.key(0), (5, 8, 2))
spread, everywhere = jax.device_put(x, NamedSharding(mesh, P(None, "b"))), jax.device_put(rnn, NamedSharding(mesh, P()))
loss = lambda m, x: (m(x)[0] ** 2).mean()
want = jax.grad(loss)(rnn, x)
eps = 64 * np.finfo("f4").eps  # of the largest, as the library promises
close = lambda got: [np.testing.assert_allclose(a, b, rtol=0, atol=eps * np.abs(b).max()) for a, b in zip(
    jax.tree.leaves(got), jax.tree.leaves(want), strict=True)]
assert everywhere.device is None and everywhere(spread)[0].sharding.spec[1] == "b"
close(jax.jit(jax.grad(loss))(everywhere, spread))
pickle.loads(pickle.dumps(everywhere))(x)
if "{axes}" == "Auto":  # the other kind of mesh asks every eager gradient for jax.set_mesh, its own included
    close(jax.grad(loss)(everywhere, spread))
    close(jax.jit(jax.grad(loss))(rnn, spread))
    each = jax.shard_map(lambda m, x: jax.lax.pmean(loss(m, x), "b"), mesh=mesh, in_specs=(P(), P(None, "b")), out_specs=P())
    close(jax.jit(jax.grad(each))(rnn, x))
""",
        **FOUR_HOSTS,
    )


def test_without_64_bits_float64_is_refused_and_nothing_is_truncated():
    in_process(
        """
import jax, jax.numpy as jnp, numpy as np, rnncore
from rnncore.errors import DTypeError
assert not jax.config.jax_enable_x64
for make in (lambda: rnncore.RNN(2, 3, backend="jax", dtype="float64"),
             lambda: rnncore.RNN(2, 3, backend="numpy").to("jax"),
             lambda: rnncore.RNN(2, 3, backend="jax").to(dtype=np.float64)):
    try:
        make()
    except DTypeError as error:
        assert "float64" in str(error), error
    else:
        raise AssertionError("float64 was taken")
rnn = rnncore.RNN(2, 3, 2, dropout=0.5, bidirectional=True, backend="jax", rng=0)
assert rnn.dtype == jnp.float32 and rnn.state_dict()["weight_hh_l0"].dtype == "float32"
x = jnp.ones((5, 4, 2))
for lengths in ([5, 3, 0, 1], np.asarray([5, 3, 0, 1]), jnp.asarray([5, 3, 0, 1])):
    y, h, pullback = rnn.vjp(x, lengths=lengths, training=True, rng=1)
    found = pullback(y, h)
    rnn.jvp(x, lengths=lengths, x_dot=x)
    rnn.trace(x, lengths=lengths)
    assert {str(a.dtype) for a in (y, h, found.x, *found.params.values())} == {"float32"}
rnn.load_state_dict(rnn.to("numpy").state_dict())
rnncore.optim.Adam(0.1).step(rnn.params, rnncore.optim.clip_grad_norm(found.params, 1.0)[0])
"""
    )


def test_the_setting_is_never_changed():
    code = "import jax, rnncore_jax; old = jax.config.values.copy(); rnncore_jax.RNN(2, 3); print(old == jax.config.values)"
    assert in_process(code) == "True"


def test_a_missing_or_old_jax_is_a_reason(monkeypatch):
    assert rnncore_jax.unusable() is None
    monkeypatch.setattr(rnncore_jax, "version", lambda name: "0.9.2")
    assert rnncore_jax.unusable() == "jax 0.9.2 is older than 0.10"
    monkeypatch.setattr(rnncore_jax, "find_spec", lambda name: None)
    assert "jaxlib is not installed" in rnncore_jax.unusable()


def test_an_array_of_another_library_is_refused():
    model, x = model_and_input()
    with pytest.raises(ArgumentTypeError, match=r"backend 'jax' \(jax\), got numpy.ndarray"):
        model(np.ones(x.shape))
