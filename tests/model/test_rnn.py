"""The model: arguments and shapes as torch.nn.RNN, weights in and out, copies by value, cells, explanations."""

from __future__ import annotations

import copy
import pickle
import subprocess
import sys

import numpy as np
import pytest
import rnncore_numpy
import rnncore_torch
import torch

import rnncore
from rnncore.errors import (
    ArgumentTypeError,
    BackendUnavailableError,
    KernelUnsupportedError,
    RnncoreError,
    StateDictError,
)

backends = pytest.mark.parametrize("backend", ["numpy", "torch"])


def give(rnn, a):
    return rnncore.get_backend(rnn.backend).asarray(np.asarray(a), dtype=rnn.dtype, device=rnn.device)


def host(rnn, a):
    return rnncore.get_backend(rnn.backend).to_numpy(a)


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("batch_first", [False, True])
@backends
def test_shapes_are_torchs(backend, batch_first, layers, bidirectional):
    peer = torch.nn.RNN(5, 6, layers, batch_first=batch_first, bidirectional=bidirectional)
    ours = rnncore.RNN(
        5, 6, layers, batch_first=batch_first, bidirectional=bidirectional, backend=backend, dtype="float32"
    )
    for shape in ((2, 3, 5), (4, 5)):
        want, got = peer(torch.zeros(shape)), ours(give(ours, np.zeros(shape)))
        assert [tuple(a.shape) for a in got] == [tuple(a.shape) for a in want]


def test_the_arguments_have_torchs_names_order_and_defaults():
    import inspect

    ours = list(inspect.signature(rnncore.RNN.__init__).parameters.values())[1:]
    names = [
        "input_size",
        "hidden_size",
        "num_layers",
        "nonlinearity",
        "bias",
        "batch_first",
        "dropout",
        "bidirectional",
    ]
    assert [p.name for p in ours if p.kind is p.POSITIONAL_OR_KEYWORD] == names
    defaults = {p.name: p.default for p in ours}
    assert (defaults["num_layers"], defaults["nonlinearity"], defaults["bias"]) == (1, "tanh", True)
    assert {"device", "dtype", "backend", "rng", "kernel"} <= set(defaults)
    positional = rnncore.RNN(5, 6, 2, "relu", False, True, 0.5, True)
    assert (
        positional.spec
        == rnncore.RNN(
            5, 6, num_layers=2, nonlinearity="relu", bias=False, batch_first=True, dropout=0.5, bidirectional=True
        ).spec
    )


def test_default_dtypes_are_the_librarys_own():
    assert rnncore.RNN(2, 3).dtype == np.float64
    assert rnncore.RNN(2, 3, backend="torch").dtype == torch.float32


def test_one_seed_gives_bit_identical_float64_weights_everywhere():
    for init in ("uniform", "orthogonal", "identity", "xavier", "gaussian", "spectral_radius"):
        a = rnncore.RNN(3, 4, 2, bidirectional=True, init=init, backend="numpy", dtype="float64", rng=5)
        b = rnncore.RNN(3, 4, 2, bidirectional=True, init=init, backend="torch", dtype="float64", rng=5)
        for k, v in a.params.items():
            np.testing.assert_array_equal(v, host(b, b.params[k]))


@backends
def test_weights_pass_to_torch_and_back(backend):
    ours = rnncore.RNN(5, 6, 2, bidirectional=True, backend=backend, dtype="float32", rng=0)
    peer = torch.nn.RNN(5, 6, 2, bidirectional=True)
    theirs = ours.to("torch").state_dict()
    peer.load_state_dict(theirs)
    x = np.random.default_rng(0).standard_normal((4, 3, 5)).astype("f4")
    got, want = host(ours, ours(give(ours, x))[0]), peer(torch.tensor(x))[0].detach().numpy()
    np.testing.assert_allclose(got, want, rtol=0, atol=64 * np.finfo("f4").eps)

    fresh = rnncore.RNN(5, 6, 2, bidirectional=True, backend=backend, dtype="float32", rng=1)
    fresh.load_state_dict(peer.state_dict())
    for k, v in ours.params.items():
        np.testing.assert_array_equal(host(fresh, fresh.params[k]), host(ours, v))


def test_a_state_dict_is_a_copy_and_params_are_live():
    rnn = rnncore.RNN(2, 3)
    state = rnn.state_dict()
    state["weight_hh_l0"][:] = 0
    assert rnn.params["weight_hh_l0"].any()
    given = {k: v + 1 for k, v in rnn.params.items()}
    rnn.load_state_dict(given)
    given["weight_hh_l0"][:] = 0
    assert rnn.params["weight_hh_l0"].any()
    with pytest.raises(TypeError):
        rnn.params["weight_hh_l0"] = 0  # type: ignore[index]
    tensors = rnncore.RNN(2, 3, backend="torch")
    tensors.params["weight_hh_l0"].requires_grad_()
    assert not tensors.state_dict()["weight_hh_l0"].requires_grad


@backends
def test_moving_keeps_every_bit_and_the_source(backend):
    rnn = rnncore.RNN(3, [4, 5], nonlinearity="relu", backend=backend, dtype="float32", rng=0, kernel="reference")
    other = {"numpy": "torch", "torch": "numpy"}[backend]
    back = rnn.to(other).to(backend)
    assert back is not rnn and back.spec == rnn.spec and back.kernel == "reference" and back.dtype == rnn.dtype
    for k, v in rnn.params.items():
        assert host(rnn, v).tobytes() == host(back, back.params[k]).tobytes()
    wide = rnn.to(dtype="float64")
    assert wide.backend == backend and wide.params["weight_hh_l0"].dtype == wide.dtype != rnn.dtype


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_runs_on_torch_and_survives_a_pickle(dtype):
    rnn = rnncore.RNN(3, 4, backend="torch", dtype=dtype, rng=0)
    output, _, pullback = rnn.vjp(give(rnn, np.ones((5, 2, 3))))
    assert str(pullback(output).x.dtype) == f"torch.{dtype}"
    back = pickle.loads(pickle.dumps(rnn))
    for k, v in rnn.params.items():
        assert torch.equal(v, back.params[k])


def test_half_precision_runs_on_numpy_by_the_reference():
    rnn = rnncore.RNN(3, 4, dtype="float16", rng=0)
    assert rnn(np.ones((5, 2, 3), dtype="f2"))[0].dtype == np.float16
    assert "no BLAS" in str(rnn.explain())


@backends
@pytest.mark.parametrize("clone", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))], ids=["deepcopy", "pickle"])
def test_copies_are_by_value(clone, backend):
    rnn = rnncore.RNN(3, 4, 2, "elu", clip=2.0, bidirectional=True, backend=backend, rng=0, kernel="reference")
    twin = clone(rnn)
    assert type(twin) is type(rnn) and repr(twin) == repr(rnn) and twin.spec == rnn.spec
    for k, v in rnn.params.items():
        np.testing.assert_array_equal(host(twin, twin.params[k]), host(rnn, v))
    twin.set_params({k: v * 0 for k, v in twin.params.items()})
    assert host(rnn, rnn.params["weight_hh_l0"]).any()
    cell = clone(rnn.cell(1, reverse=True))
    for k, v in cell.params.items():
        np.testing.assert_array_equal(host(cell, v), host(rnn, rnn.params[k.replace("_l0", "_l1_reverse")]))


def test_a_pickle_holds_no_library_but_numpy():
    data = pickle.dumps(rnncore.RNN(3, 4, backend="torch"))
    assert b"torch._" not in data and b"torch\n" not in data and b"_rebuild_tensor" not in data


def test_a_pickle_without_its_backend_says_which(tmp_path):
    path = tmp_path / "m.pickle"
    path.write_bytes(pickle.dumps(rnncore.RNN(3, 4, backend="torch")))
    code = (
        "import sys, pickle; sys.modules['torch'] = None\n"  # an import of it now fails
        f"data = open({str(path)!r}, 'rb').read()\n"
        "try: pickle.loads(data)\n"
        "except Exception as e: print(type(e).__name__, e)"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.startswith("BackendUnavailableError") and "'torch'" in out and "pip install" in out


def test_a_pickle_of_an_unknown_backend_says_which(monkeypatch):
    data = pickle.dumps(rnncore.RNN(3, 4, backend="torch"))
    from rnncore.backend import registry

    only_numpy = {"numpy": registry._entries()["numpy"]}
    monkeypatch.setattr(registry, "_entries", lambda: only_numpy)
    monkeypatch.setattr(registry, "_ready", {})
    registry._plugin.cache_clear()
    with pytest.raises(BackendUnavailableError, match="saved on backend 'torch'"):
        pickle.loads(data)
    registry._plugin.cache_clear()


def test_choosing_a_backend_in_the_line_that_imports_it():
    for module, name in ((rnncore_numpy, "numpy"), (rnncore_torch, "torch")):
        with rnncore.use_backend("numpy" if name == "torch" else "torch"):
            rnn, cell = module.RNN(2, 3), module.RNNCell(2, 3)
        assert rnn.backend == cell.backend == name
        assert isinstance(rnn, rnncore.RNN) and isinstance(cell, rnncore.RNNCell)
        assert type(pickle.loads(pickle.dumps(rnn))) is module.RNN
        assert type(pickle.loads(pickle.dumps(cell))) is module.RNNCell
        assert repr(rnn).startswith("RNN(2, 3, backend=")
        assert module.RNN(2, 3, backend="numpy").backend == "numpy"


# --- cells ------------------------------------------------------------------------------------------------------------


@backends
def test_a_cell_is_torchs_cell(backend):
    peer = torch.nn.RNNCell(5, 6, nonlinearity="relu", dtype=torch.float64)
    cell = rnncore.RNNCell(5, 6, nonlinearity="relu", backend=backend, dtype="float64")
    cell.load_state_dict(peer.state_dict())
    rng = np.random.default_rng(0)
    for shape, state in (((3, 5), (3, 6)), ((5,), (6,))):
        x, h = rng.standard_normal(shape), rng.standard_normal(state)
        want = peer(torch.tensor(x), torch.tensor(h)).detach().numpy()
        np.testing.assert_allclose(host(cell, cell(give(cell, x), give(cell, h))), want, rtol=1e-13, atol=1e-14)
        want = peer(torch.tensor(x)).detach().numpy()
        np.testing.assert_allclose(host(cell, cell(give(cell, x))), want, rtol=1e-13, atol=1e-14)


@backends
def test_a_networks_cells_stream_it(backend):
    rnn = rnncore.RNN(5, [6, 4], backend=backend, dtype="float64", rng=0)
    x = np.random.default_rng(0).standard_normal((4, 3, 5))
    cells, h = [rnn.cell(k) for k in range(2)], [None, None]
    for x_t in x:
        below = give(rnn, x_t)
        for k, cell in enumerate(cells):
            below = h[k] = cell(below, h[k])
    _, h_n = rnn(give(rnn, x))
    for k in range(2):
        np.testing.assert_allclose(host(rnn, h[k]), host(rnn, h_n[k][0]), rtol=1e-13, atol=1e-14)


@backends
def test_a_networks_cell_has_the_arrays_of_its_layer_under_its_own_names(backend):
    rnn = rnncore.RNN(5, [6, 4], bidirectional=True, backend=backend, rng=0)
    cell = rnn.cell(1, reverse=True)
    assert (cell.input_size, cell.hidden_size) == (12, 4) and repr(cell).startswith("RNNCell(12, 4, backend=")
    assert list(cell.params) == list(cell.state_dict()) == list(rnncore.RNN(12, 4).params)
    for name in ("num_layers", "bidirectional", "explain"):  # those are a network's
        assert not hasattr(cell, name)
    before = dict(cell.params)
    assert all(before[k] is rnn.params[k.replace("_l0", "_l1_reverse")] for k in before)
    rnn.set_params({k: v * 0.5 for k, v in rnn.params.items()})
    assert all(cell.params[k] is v for k, v in before.items())
    cell.set_params({"bias_ih_l0": before["bias_ih_l0"] * 3})
    assert rnn.params["bias_ih_l1_reverse"] is not cell.params["bias_ih_l0"]


def test_a_cell_that_requires_a_kernel_runs_it_or_says_why_not():
    x = np.ones((3, 2))
    cell = rnncore.RNNCell(2, 3, kernel="require", backend="strict")
    with pytest.raises(KernelUnsupportedError, match="backend 'strict' has no scans"):
        cell(give(cell, x))
    with pytest.raises(KernelUnsupportedError, match="softplus"):
        rnncore.RNN(2, 3, nonlinearity="softplus", kernel="require").cell()(x)
    asked, plain = rnncore.RNNCell(2, 3, kernel="require", rng=0), rnncore.RNNCell(2, 3, rng=0)
    h_next, pullback = asked.vjp(x)
    want, pull = plain.vjp(x)
    np.testing.assert_allclose(h_next, want, rtol=1e-13)
    np.testing.assert_allclose(pullback(want).x, pull(want).x, rtol=1e-13)
    np.testing.assert_allclose(asked.jvp(x, x_dot=x)[1], plain.jvp(x, x_dot=x)[1], rtol=1e-13)


def test_a_call_goes_on_with_the_parameters_it_began_with():
    rnn = rnncore.RNN(2, 3, rng=0)
    x, network = np.ones((4, 1, 2)), rnn.network
    output, _, pullback = rnn.vjp(x)
    before = pullback(output).x
    rnn.set_params({k: 0 * v for k, v in rnn.params.items()})
    np.testing.assert_array_equal(pullback(output).x, before)
    np.testing.assert_array_equal(rnncore.RNN.from_network(network)(x)[0], output)
    assert not rnn(x)[0].any()


def test_a_remembered_call_hides_no_wrong_argument():
    rnn, x, h0 = rnncore.RNN(2, 3, rng=0), np.ones((4, 1, 2)), np.zeros((1, 1, 3))
    rnn(x), rnn(x, h0), rnn.vjp(x, h0)
    wrong = {
        "masked": (np.ma.ones((4, 1, 2)),),
        "dtype": (x.astype("f4"),),
        "a list": (x.tolist(),),
        "width": (np.ones((4, 1, 3)),),
        "no step": (x[:0],),
        "h0's dtype": (x, h0.astype("f4")),
        "h0's shape": (x, np.zeros((1, 2, 3))),
        "h0's kind": (x, [h0]),
        "training": (x, h0, None, 1),
        "rng": (x, h0, None, False, "seed"),
        "lengths": (x, h0, [5]),
    }
    for what, given in wrong.items():
        for _ in range(2):
            with pytest.raises(RnncoreError):
                pytest.fail(f"{what}: {rnn(*given)}")
    torch_input = torch.ones(4, 1, 2, dtype=torch.float64)
    with pytest.raises(ArgumentTypeError, match=r"torch\.Tensor"):
        rnn(torch_input)
    for steps in range(1, 200):  # more shapes than are remembered
        assert rnn(np.ones((steps, 1, 2)))[0].shape == (steps, 1, 3)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("batched", [True, False])
@backends
def test_a_cells_derivatives_are_those_of_one_step(backend, batched, bias):
    rnn = rnncore.RNN(5, 6, bias=bias, backend=backend, dtype="float64", rng=0)
    cell, rng = rnn.cell(), np.random.default_rng(1)
    lead = (3,) if batched else ()
    x, h, d = (give(rnn, rng.standard_normal((*lead, n))) for n in (5, 6, 6))
    h_next, pullback = cell.vjp(x, h)
    found = pullback(d)
    output, _, whole = rnn.vjp(x[None], h[None])
    want = whole(d[None])
    np.testing.assert_allclose(host(rnn, h_next), host(rnn, output[0]), rtol=1e-14)
    np.testing.assert_allclose(host(rnn, found.x), host(rnn, want.x[0]), rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(host(rnn, found.h), host(rnn, want.h0[0]), rtol=1e-12, atol=1e-14)
    assert found.params.keys() == want.params.keys()
    for k in want.params:
        np.testing.assert_allclose(host(rnn, found.params[k]), host(rnn, want.params[k]), rtol=1e-12, atol=1e-14)
    t = {k: give(rnn, rng.standard_normal(v.shape)) for k, v in cell.params.items()}
    got = cell.jvp(x, h, x_dot=x, h_dot=h, params_dot=t)[1]
    wanted = rnn.jvp(x[None], h[None], x_dot=x[None], h0_dot=h[None], params_dot=t)[2].output[0]
    np.testing.assert_allclose(host(rnn, got), host(rnn, wanted), rtol=1e-12, atol=1e-14)


def test_a_cell_of_a_bidirectional_network():
    rnn = rnncore.RNN(5, 6, 2, bidirectional=True, rng=0)
    x = np.ones((3, 12))
    forward, backward = rnn.cell(1), rnn.cell(1, reverse=True)
    assert not np.array_equal(forward(x), backward(x))
    one = rnncore.RNN(12, 6, rng=1)
    one.load_state_dict({k.replace("_l1_reverse", "_l0"): v for k, v in backward.state_dict().items()})
    np.testing.assert_array_equal(one(x[None])[1][0], backward(x))


# --- kernels and explanations -----------------------------------------------------------------------------------------


def test_explain_says_which_path_runs_and_why():
    assert [c.path for c in rnncore.RNN(2, 3).explain().choices] == ["kernel", "kernel"]
    reference = rnncore.RNN(2, 3, kernel="reference").explain()
    assert [c.path for c in reference.choices] == ["reference", "reference"]
    odd = rnncore.RNN(2, 3, nonlinearity="softplus")
    assert [c.path for c in odd.explain().choices] == ["reference", "kernel"]
    assert "softplus" in str(odd.explain()) and "backend numpy, device cpu, float64" in str(odd.explain())


def test_require_is_never_answered_by_the_reference():
    rnn = rnncore.RNN(2, 3, nonlinearity="softplus", kernel="require")
    with pytest.raises(KernelUnsupportedError, match="softplus"):
        rnn(np.ones((2, 3, 2)))
    with pytest.raises(KernelUnsupportedError, match="softplus"):
        rnn.explain()


def test_an_error_inside_a_kernel_is_seen(monkeypatch):
    def broken(*args, **kwargs):
        raise ZeroDivisionError("inside")

    monkeypatch.setattr(type(rnncore.get_backend("numpy").scans()), "nonlinear", broken)
    with pytest.raises(ZeroDivisionError, match="inside"):
        rnncore.RNN(2, 3)(np.ones((2, 3, 2)))


def test_the_kernel_really_runs(monkeypatch):
    seen = []
    scans = type(rnncore.get_backend("numpy").scans())
    for name in ("nonlinear", "linear"):
        real = getattr(scans, name)
        monkeypatch.setattr(
            scans, name, lambda self, *a, _r=real, _n=name, **k: (seen.append(_n), _r(self, *a, **k))[1]
        )
    rnncore.RNN(2, 3)(np.ones((2, 3, 2)))
    rnncore.RNN(2, 3).vjp(np.ones((2, 3, 2)))[2](np.ones((2, 3, 3)))
    assert seen == ["nonlinear", "nonlinear", "linear"]


# --- functional -------------------------------------------------------------------------------------------------------


@backends
def test_the_functions_and_the_model_give_the_same(backend):
    rnn = rnncore.RNN(5, [6, 4], nonlinearity="relu", bidirectional=True, batch_first=True, backend=backend, rng=0)
    x = give(rnn, np.random.default_rng(0).standard_normal((3, 4, 5)))
    options = {"nonlinearity": "relu", "batch_first": True, "lengths": [2, 4, 0]}
    params = dict(rnn.params)
    f = rnncore.functional
    assert f.spec_of(params, nonlinearity="relu", batch_first=True) == rnn.spec
    output, h_n = f.rnn(x, params, **options)
    want, want_h = rnn(x, lengths=[2, 4, 0])
    np.testing.assert_array_equal(host(rnn, output), host(rnn, want))
    np.testing.assert_array_equal(host(rnn, h_n[1]), host(rnn, want_h[1]))
    a, b = f.vjp(x, params, **options)[2](output), rnn.vjp(x, lengths=[2, 4, 0])[2](output)
    np.testing.assert_array_equal(host(rnn, a.x), host(rnn, b.x))
    a, b = f.jvp(x, params, x_dot=x, **options)[2], rnn.jvp(x, lengths=[2, 4, 0], x_dot=x)[2]
    np.testing.assert_array_equal(host(rnn, a.output), host(rnn, b.output))
    a, b = f.trace(x, params, **options), rnn.trace(x, lengths=[2, 4, 0])
    np.testing.assert_array_equal(host(rnn, a.z[1]), host(rnn, b.z[1]))


def test_the_functional_cell_is_torchs():
    torch.manual_seed(0)
    peer = torch.nn.RNNCell(5, 6)
    x, h = torch.randn(3, 5), torch.randn(3, 6)
    got = rnncore.functional.rnn_cell(x, h, peer.weight_ih, peer.weight_hh, peer.bias_ih, peer.bias_hh)
    torch.testing.assert_close(got, peer(x, h))


def test_parameters_that_make_up_no_network_are_all_listed():
    params = rnncore.RNN(5, 6, 2, bidirectional=True).state_dict()
    del params["weight_ih_l1"], params["bias_hh_l0_reverse"]
    params["weight_hh_l0_reverse"] = np.ones((2, 2))
    with pytest.raises(StateDictError) as error:
        rnncore.functional.rnn(np.ones((2, 3, 5)), params)
    assert all(n in str(error.value) for n in ("weight_ih_l1", "bias_hh_l0_reverse", "weight_hh_l0_reverse"))


# --- initialisers -----------------------------------------------------------------------------------------------------


def test_the_default_is_torchs_uniform():
    w = np.concatenate([v.ravel() for v in rnncore.RNN(50, 100, 2, rng=0).state_dict().values()])
    assert np.abs(w).max() <= 0.1 and np.abs(w).max() > 0.0999
    assert w.std() == pytest.approx(0.1 / np.sqrt(3), rel=0.02) and abs(w.mean()) < 1e-3


def test_initialisers_have_the_properties_they_are_named_for():
    make = lambda init, n=64: rnncore.RNN(3, n, init=init, rng=0).state_dict()  # noqa: E731
    for init, gain in (("orthogonal", 1.0), (rnncore.init.orthogonal(1.5), 1.5)):
        w = make(init)["weight_hh_l0"]
        np.testing.assert_allclose(w @ w.T, gain**2 * np.eye(64), atol=1e-13)
    np.testing.assert_array_equal(make("identity")["weight_hh_l0"], np.eye(64))
    w = make(rnncore.init.spectral_radius(0.9))["weight_hh_l0"]
    assert np.abs(np.linalg.eigvals(w)).max() == pytest.approx(0.9, rel=1e-12)
    w = make(rnncore.init.gaussian(2.0), 300)["weight_hh_l0"]
    assert w.std() == pytest.approx(2 / np.sqrt(300), rel=0.02)
    assert np.abs(np.linalg.eigvals(w)).max() == pytest.approx(2.0, rel=0.1)
    for init in ("xavier", "xavier_normal"):
        w = make(init, 300)["weight_hh_l0"]
        assert w.std() == pytest.approx(np.sqrt(2 / 600), rel=0.02)
    state = make({"weight_hh": "orthogonal", "bias_ih": rnncore.init.constant(0.25)})
    assert (state["bias_ih_l0"] == 0.25).all() and state["bias_hh_l0"].any()
    assert not make("orthogonal")["bias_ih_l0"].any()


def test_orthogonal_matrices_are_uniformly_distributed():
    """The trace of a Haar orthogonal matrix has mean 0 and variance 1; QR without the sign fix is biased."""
    make, rng = rnncore.init.orthogonal(), np.random.default_rng(0)
    traces = np.asarray([np.trace(make((4, 4), rng)) for _ in range(4000)])
    assert abs(traces.mean()) < 4 / np.sqrt(4000)
    assert traces.var() == pytest.approx(1, abs=0.1)
