"""What a review found, kept from coming back: long sums, moved cells, arrays changed behind a pullback, odd contexts."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest
import torch

import rnncore
from rnncore import scan
from rnncore.errors import ArgumentTypeError, ArgumentValueError, RnncoreError, StateDictError
from rnncore.network.step import sum_rows

# DESIGN's tolerance for gradients; a row-by-row sum of so many terms of one sign is off by hundreds.
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


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("layer", [0, 1])
@pytest.mark.parametrize(
    "clone",
    [lambda c: c.to("torch"), lambda c: c.to(dtype="float64"), copy.deepcopy, lambda c: pickle.loads(pickle.dumps(c))],
    ids=["backend", "dtype", "deepcopy", "pickle"],
)
def test_a_cell_stays_the_cell_that_it_is(clone, layer, reverse):
    cell = rnncore.RNN(3, [4, 6], bidirectional=True, rng=0).cell(layer, reverse=reverse)
    twin = clone(cell)
    x = np.random.default_rng(0).standard_normal((2, (3, 8)[layer]))
    plugin = rnncore.get_backend(twin.backend)
    got = plugin.to_numpy(twin(plugin.asarray(x, dtype=twin.dtype, device=twin.device)))
    np.testing.assert_allclose(got, cell(x), rtol=1e-14, atol=1e-15)
    assert list(twin.state_dict()) == list(cell.state_dict())
    assert f"RNNCell({(3, 8)[layer]}, {(4, 6)[layer]}," in repr(twin)
    assert repr(twin).endswith(f"of l{layer}{'_reverse' if reverse else ''}")


def test_numpys_output_cannot_be_changed_behind_the_pullback():
    rnn = rnncore.RNN(3, 4)
    output, _, _ = rnn.vjp(np.ones((5, 2, 3)))
    with pytest.raises(ValueError, match="read-only"):
        output -= 1
    called, _ = rnn(np.ones((5, 2, 3)))
    called -= 1  # a plain call's output is the caller's own


@pytest.mark.parametrize("which", ["x", "output", "weight_hh_l0"])
def test_a_tensor_changed_in_place_is_noticed_by_the_pullback(which):
    rnn = rnncore.RNN(3, 4, backend="torch")
    x = torch.ones(5, 2, 3)
    output, _, pullback = rnn.vjp(x)
    {"x": x, "output": output, **rnn.params}[which].mul_(2)
    with pytest.raises(ArgumentValueError, match=f"{which}: expected the array as it was in vjp"):
        pullback(torch.ones_like(output))


def test_loading_keeps_what_requires_grad():
    rnn = rnncore.RNN(3, 4, backend="torch")
    rnn.params["weight_hh_l0"].requires_grad_()
    rnn.load_state_dict(rnn.state_dict())
    assert rnn.params["weight_hh_l0"].requires_grad and not rnn.params["weight_ih_l0"].requires_grad


def test_a_context_can_be_used_again_nested_and_not_out_of_order():
    from rnncore.backend.registry import selected_backend

    context = rnncore.use_backend("torch")
    with context:
        pass
    assert selected_backend() == "numpy"
    with context:
        assert selected_backend() == "torch"
        with context:
            pass
        assert selected_backend() == "torch"
    assert selected_backend() == "numpy"
    outer = rnncore.use_backend("torch")
    with outer:
        inner = rnncore.use_backend("numpy")
        inner.__enter__()
        with pytest.raises(ArgumentValueError, match="opposite order"):
            outer.__exit__(None, None, None)
        inner.__exit__(None, None, None)
    assert selected_backend() == "numpy"
    with pytest.raises(ArgumentValueError, match="without having been entered"):
        inner.__exit__(None, None, None)


def test_nan_in_the_state_of_a_sequence_without_steps_reaches_no_weight():
    rnn = rnncore.RNN(3, 4, bidirectional=True, rng=0)
    x, h0 = np.ones((5, 3, 3)), np.zeros((2, 3, 4))
    h0[:, 2] = np.nan
    output, h_n, pullback = rnn.vjp(x, h0, lengths=[5, 2, 0])
    grads = pullback(np.ones_like(output))
    assert all(np.isfinite(g).all() for g in grads.params.values())
    assert np.isnan(h_n[:, 2]).all() and np.isfinite(h_n[:, :2]).all()


def test_under_autocast_gradients_have_the_models_dtype():
    rnn = rnncore.RNN(3, 4, backend="torch")
    with torch.autocast("cpu", torch.bfloat16):
        output, _, pullback = rnn.vjp(torch.ones(5, 2, 3))
        grads = pullback(torch.ones_like(output))
    assert {g.dtype for g in (*grads.params.values(), grads.x, grads.h0)} == {torch.float32}


def test_no_warning_where_the_input_requires_grad():
    rnn = rnncore.RNN(3, 4, backend="torch")
    x = torch.ones(5, 2, 3, requires_grad=True)
    for checkpoint in (False, 2):
        output, _, pullback = rnn.vjp(x, checkpoint=checkpoint)
        assert pullback(torch.ones_like(output)).params["bias_hh_l0"].requires_grad


@pytest.mark.parametrize(
    "act",
    [
        lambda: rnncore.functional.spec_of({**rnncore.RNN(3, 4).state_dict(), "bias_ih_l0": [0] * 4}),
        lambda: rnncore.functional.spec_of({**rnncore.RNN(3, 4).state_dict(), "bias_ih_l0": None}),
        lambda: rnncore.RNN.from_spec(rnncore.RNNSpec.make(3, 4), {"weight_ih_l0": [1]}),
        lambda: rnncore.RNN.from_spec(
            rnncore.RNNSpec.make(3, 4), {k: v + 0j for k, v in rnncore.RNN(3, 4).state_dict().items()}
        ),
    ],
)
def test_parameters_that_are_no_arrays_are_listed(act):
    with pytest.raises(StateDictError, match="expected"):
        act()


@pytest.mark.parametrize(
    "act",
    [
        lambda: rnncore.RNN.from_spec(None, {}),
        lambda: rnncore.RNN(3, 4, clip=10**400),
        lambda: rnncore.RNN(3, 4, dtype=("f4", -2)),
        lambda: rnncore.RNN(3, 4, backend="torch")(torch.ones(2, 3, 3).to_sparse()),
        lambda: rnncore.RNN(3, 4, backend=0),
        lambda: rnncore.RNN(3, 4, backend=""),
        lambda: rnncore.RNN(3, 4)(np.ones((2, 3, 3)), rng="a"),
        lambda: rnncore.RNN(3, 4)(np.ones((2, 3, 3)), rng=-3),
        lambda: rnncore.RNN(3, 4).explain(steps=-5),
        lambda: rnncore.bound_to(3),
    ],
)
def test_what_used_to_slip_through_is_named(act):
    with pytest.raises(RnncoreError, match="expected"):
        act()


def test_a_users_own_function_is_asked_for_and_nothing_else_is_taken(tmp_path):
    path = tmp_path / "rnn.npz"
    pair = (lambda z: z * z, lambda z: 2 * z)
    rnncore.RNN(3, 4, nonlinearity=pair, clip=0.5).save(path)
    assert rnncore.load(path, nonlinearity=pair).spec.nonlinearity.clip == 0.5
    with pytest.raises(ArgumentValueError, match="give it as nonlinearity="):
        rnncore.load(path)
    rnncore.RNN(3, 4).save(path)
    with pytest.raises(ArgumentValueError, match="this network has 'tanh'"):
        rnncore.load(path, nonlinearity="relu")


def test_a_slope_that_needs_p_says_so():
    import array_api_compat.numpy as xp

    clipped = rnncore.get_nonlinearity("tanh", clip=1.0)
    h0, w, h = np.ones((1, 2)), np.eye(2), np.ones((3, 1, 2))
    with pytest.raises(ArgumentValueError, match="p: expected an array"):
        scan.slope(None, h0, w, h, nonlinearity=clipped, reverse=False, xp=xp)


def test_numbers_too_long_to_print_are_still_named():
    for act in (
        lambda: rnncore.RNN(10**4000, 10**4000),
        lambda: rnncore.RNN(-(10**4000), 4),
        lambda: rnncore.get_nonlinearity("elu", alpha=10**4000),
    ):
        with pytest.raises(ArgumentValueError, match=r"expected|bytes"):
            act()


def test_a_numpy_number_is_a_clip_and_sizes_can_be_read_back():
    rnn = rnncore.RNN(3, [4, 5], bidirectional=True, clip=np.float32(0.5))
    assert rnn.spec.nonlinearity.clip == 0.5
    assert (rnn.input_size, rnn.hidden_size, rnn.num_layers, rnn.bidirectional) == (3, (4, 5), 2, True)
    with pytest.raises(ArgumentTypeError):
        rnncore.RNN(3, 4, clip="1")
