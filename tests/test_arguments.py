"""Bad arguments: each is an RnncoreError that names the argument, what was expected and what was got."""

import subprocess
import sys

import numpy as np
import pytest
import torch

import rnncore
from rnncore import arguments
from rnncore.errors import ArgumentValueError, RnncoreError
from tests.tools.places import ROOT
from tests.tools.process import python


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


def test_numbers_too_long_to_print_are_still_named():
    for act in (
        lambda: rnncore.RNN(10**4000, 10**4000),
        lambda: rnncore.RNN(-(10**4000), 4),
        lambda: rnncore.get_nonlinearity("elu", alpha=10**4000),
    ):
        with pytest.raises(ArgumentValueError, match=r"expected|bytes"):
            act()


T, B, I, H = 4, 3, 5, 6  # noqa: E741
SEED = 0
x = np.ones((T, B, I))
params = rnncore.RNN(I, H, rng=SEED).state_dict()


def rnn(**options):
    return rnncore.RNN(I, H, rng=SEED, **options)


def torch_rnn(**options):
    return rnncore.RNN(I, H, rng=SEED, backend="torch", dtype="float64", **options)


def meta(*shape):
    return torch.ones(shape, dtype=torch.float64, device="meta")


def nan_at(shape, *index):
    a = np.ones(shape)
    a[index] = np.nan
    return a


# name: (what is done, the built-in it must also be, words the message must have)
CASES = {
    # --- the input's size, rank and layout
    "feature size": (lambda: rnn()(np.ones((T, B, 7))), ValueError, ["x", "input_size 5", "(4, 3, 7)"]),
    "1-D": (lambda: rnn()(np.ones(I)), ValueError, ["x", "(T, B, input_size)", "(5,)"]),
    "0-D": (lambda: rnn()(np.ones(())), ValueError, ["x", "()"]),
    "4-D": (lambda: rnn()(np.ones((1, T, B, I))), ValueError, ["x", "(1, 4, 3, 5)"]),
    "features first": (lambda: rnn()(np.ones((I, T, B))), ValueError, ["x", "last axis", "(5, 4, 3)"]),
    "batch_first 4-D": (lambda: rnn(batch_first=True)(np.ones((1, T, B, I))), ValueError, ["(B, T, input_size)"]),
    "batch_first h0": (
        lambda: rnn(batch_first=True)(np.ones((B, T, I)), np.ones((B, 1, H))),
        ValueError,
        ["h0", "(1, 3, 6)", "(3, 1, 6)", "never batch-first"],
    ),
    "batch confusion": (
        lambda: rnn()(np.ones((B, T, I)), np.ones((1, B, H))),
        ValueError,
        ["h0", "(1, 4, 6)", "(1, 3, 6)"],
    ),
    "T = 0": (lambda: rnn()(np.ones((0, B, I))), ValueError, ["x", "at least one time step", "(0, 3, 5)"]),
    "T = 0 batch_first": (lambda: rnn(batch_first=True)(np.ones((B, 0, I))), ValueError, ["axis 1"]),
    "T = 0 unbatched": (lambda: rnn()(np.ones((0, I))), ValueError, ["at least one time step"]),
    # --- the input's kind
    "int": (lambda: rnn()(np.ones((T, B, I), dtype=int)), TypeError, ["x", "float64", "int64"]),
    "bool": (lambda: rnn()(np.ones((T, B, I), dtype=bool)), TypeError, ["x", "float64", "bool"]),
    "complex": (lambda: rnn()(np.ones((T, B, I), dtype=complex)), TypeError, ["x", "float64", "complex128"]),
    "object": (lambda: rnn()(np.ones((T, B, I), dtype=object)), TypeError, ["x", "float64", "object"]),
    "string": (lambda: rnn()(np.full((T, B, I), "1")), TypeError, ["x", "float64", "str"]),
    "big-endian": (lambda: rnn()(np.ones((T, B, I), dtype=">f8")), TypeError, ["x", "float64", ">f8"]),
    "list": (lambda: rnn()([[1.0] * I]), TypeError, ["x", "numpy", "list", "asarray"]),
    "None": (lambda: rnn()(None), TypeError, ["x", "numpy", "NoneType"]),
    "float": (lambda: rnn()(1.0), TypeError, ["x", "numpy", "float"]),
    "NumPy scalar": (lambda: rnn()(np.float64(1)), TypeError, ["x", "numpy", "float64"]),
    "masked array": (lambda: rnn()(np.ma.ones((T, B, I))), TypeError, ["x", "MaskedArray"]),
    "matrix": (lambda: rnn()(np.ones((T, I)).view(np.matrix)), TypeError, ["x", "matrix"]),
    "float64 into float32": (lambda: rnn(dtype="float32")(x), TypeError, ["x", "float32", "float64", ".to(dtype"]),
    "float32 into float64": (lambda: rnn()(x.astype("f4")), TypeError, ["x", "float64", "float32"]),
    "torch into numpy": (
        lambda: rnn()(torch.ones(T, B, I, dtype=torch.float64)),
        TypeError,
        ["x", "'numpy'", "torch.Tensor", "'torch'", "rnncore.get_backend('numpy').asarray"],
    ),
    "numpy into torch": (lambda: torch_rnn()(x), TypeError, ["x", "'torch'", "numpy.ndarray", "'numpy'"]),
    "two devices": (lambda: torch_rnn()(meta(T, B, I)), ValueError, ["x", "'cpu'", "'meta'"]),
    "two devices in h0": (
        lambda: torch_rnn()(torch.ones(T, B, I, dtype=torch.float64), meta(1, B, H)),
        ValueError,
        ["h0", "'cpu'", "'meta'"],
    ),
    # --- sizes
    **{
        f"{name}={value!r}": (
            lambda n=name, v=value: rnncore.RNN(**{"input_size": I, "hidden_size": H, n: v}),
            kind,
            [name, "int >= 1", repr(value)],
        )
        for name in ("input_size", "hidden_size", "num_layers")
        for value, kind in (
            (0, ValueError),
            (-3, ValueError),
            (True, TypeError),
            (2.0, TypeError),
            (None, TypeError),
            ("4", TypeError),
        )
    },
    "hidden_size=[]": (lambda: rnncore.RNN(I, []), ValueError, ["hidden_size", "empty"]),
    "hidden_size=[4, 0]": (lambda: rnncore.RNN(I, [4, 0]), ValueError, ["hidden_size[1]", "0"]),
    "hidden_size=[4, 2.0]": (lambda: rnncore.RNN(I, [4, 2.0]), TypeError, ["hidden_size[1]", "2.0"]),
    "layers against widths": (lambda: rnncore.RNN(I, [4, 5], 3), ValueError, ["num_layers", "2", "3"]),
    "overflowing hidden_size": (lambda: rnncore.RNN(I, 10**10), ValueError, ["hidden_size=10000000000", "bytes"]),
    "overflowing input_size": (lambda: rnncore.RNN(10**19, H), ValueError, ["input_size", "bytes"]),
    "overflowing num_layers": (lambda: rnncore.RNN(I, H, 10**12), ValueError, ["num_layers", "bytes"]),
    "overflowing cell": (lambda: rnncore.RNNCell(10**19, H), ValueError, ["input_size", "bytes"]),
    "cell with widths": (lambda: rnncore.RNNCell(I, [4, 5]), TypeError, ["hidden_size", "[4, 5]"]),
    "dropout=1.5": (lambda: rnn(dropout=1.5), ValueError, ["dropout", "[0, 1]", "1.5"]),
    "dropout=nan": (lambda: rnn(dropout=float("nan")), ValueError, ["dropout", "nan"]),
    "dropout=True": (lambda: rnn(dropout=True), TypeError, ["dropout", "True"]),
    "dropout='0.5'": (lambda: rnn(dropout="0.5"), TypeError, ["dropout", "'0.5'"]),
    "bias=1": (lambda: rnn(bias=1), TypeError, ["bias", "True or False", "1"]),
    "batch_first=None": (lambda: rnn(batch_first=None), TypeError, ["batch_first", "None"]),
    "bidirectional='no'": (lambda: rnn(bidirectional="no"), TypeError, ["bidirectional", "'no'"]),
    "check_finite=1": (lambda: rnn(check_finite=1), TypeError, ["check_finite", "1"]),
    "rng='seed'": (lambda: rnncore.RNN(I, H, rng="seed"), TypeError, ["rng", "Generator", "str"]),
    "rng=-1": (lambda: rnncore.RNN(I, H, rng=-1), ValueError, ["rng", ">= 0", "-1"]),
    "training=1": (lambda: rnn()(x, training=1), TypeError, ["training", "1"]),
    # --- names
    "nonlinearity": (lambda: rnn(nonlinearity="tahn"), ValueError, ["nonlinearity", "'tahn'", "did you mean 'tanh'"]),
    "nonlinearity=None": (lambda: rnn(nonlinearity=None), TypeError, ["nonlinearity", "NoneType"]),
    "backend": (lambda: rnn(backend="nunpy"), ValueError, ["backend", "'nunpy'", "Did you mean 'numpy'"]),
    "backend=3": (lambda: rnn(backend=3), TypeError, ["backend", "3"]),
    "kernel": (lambda: rnn(kernel="requires"), ValueError, ["kernel", "'requires'", "did you mean 'require'"]),
    "kernel=None": (lambda: rnn(kernel=None), TypeError, ["kernel", "None"]),
    "device": (lambda: rnn(device="cuda:7"), ValueError, ["device", "cpu", "'cuda:7'"]),
    "dtype='int32'": (lambda: rnn(dtype="int32"), TypeError, ["dtype", "float32", "'int32'"]),
    "dtype=complex": (lambda: rnn(dtype=complex), TypeError, ["dtype", "complex"]),
    "dtype=bfloat16 on NumPy": (lambda: rnn(dtype="bfloat16"), TypeError, ["dtype", "bfloat16"]),
    "init": (lambda: rnn(init="orthogonl"), ValueError, ["init", "'orthogonl'", "did you mean 'orthogonal'"]),
    "init=3": (lambda: rnn(init=3), TypeError, ["init", "3"]),
    "init key": (lambda: rnn(init={"weight": "orthogonal"}), ValueError, ["init", "'weight'"]),
    "init shape": (lambda: rnn(init=lambda s, g: np.ones(3)), TypeError, ["init['weight_hh']", "(6, 6)", "(3,)"]),
    "init gain": (lambda: rnncore.init.gaussian(float("nan")), ValueError, ["gain", "nan"]),
    "clip=-1": (lambda: rnn(clip=-1.0), ValueError, ["clip", "-1.0"]),
    # --- h0
    "h0 shape": (lambda: rnn()(x, np.ones((2, B, H))), ValueError, ["h0", "(1, 3, 6)", "(2, 3, 6)"]),
    "h0 batched for unbatched": (
        lambda: rnn()(np.ones((T, I)), np.ones((1, 1, H))),
        ValueError,
        ["h0", "(1, 6)", "(1, 1, 6)", "unbatched"],
    ),
    "h0 dtype": (lambda: rnn()(x, np.ones((1, B, H), dtype="f4")), TypeError, ["h0", "float64", "float32"]),
    "h0 list": (lambda: rnn()(x, [[0.0]]), TypeError, ["h0", "numpy", "list"]),
    "h0 of another library": (lambda: rnn()(x, torch.ones(1, B, H)), TypeError, ["h0", "torch.Tensor"]),
    "h0 not per layer": (
        lambda: rnncore.RNN(I, [4, 6])(x, np.ones((2, B, 4))),
        ValueError,
        ["h0", "sequence of 2 arrays", "numpy.ndarray"],
    ),
    "h0 of one layer wrong": (
        lambda: rnncore.RNN(I, [4, 6])(x, [np.ones((1, B, 4)), np.ones((1, B, 4))]),
        ValueError,
        ["h0[1]", "(1, 3, 6)", "(1, 3, 4)"],
    ),
    # --- lengths
    "length > T": (lambda: rnn()(x, lengths=[4, 5, 1]), ValueError, ["lengths[1]", "[0, 4]", "5"]),
    "length < 0": (lambda: rnn()(x, lengths=[4, -1, 1]), ValueError, ["lengths[1]", "-1"]),
    "fractional length": (lambda: rnn()(x, lengths=[4, 2.5, 1]), TypeError, ["lengths[1]", "2.5"]),
    "whole float length": (lambda: rnn()(x, lengths=[4, 2.0, 1]), TypeError, ["lengths[1]", "2.0"]),
    "float lengths": (lambda: rnn()(x, lengths=np.ones(B)), TypeError, ["lengths", "integers", "float64"]),
    "NaN length": (lambda: rnn()(x, lengths=[4, float("nan"), 1]), TypeError, ["lengths[1]", "nan"]),
    "bool length": (lambda: rnn()(x, lengths=[4, True, 1]), TypeError, ["lengths[1]", "True"]),
    "bool lengths": (lambda: rnn()(x, lengths=np.ones(B, dtype=bool)), TypeError, ["lengths", "bool"]),
    "None length": (lambda: rnn()(x, lengths=[4, None, 1]), TypeError, ["lengths[1]", "None"]),
    "too few lengths": (lambda: rnn()(x, lengths=[4, 1]), ValueError, ["lengths", "3 entries", "2"]),
    "too many lengths": (lambda: rnn()(x, lengths=[4, 1, 1, 1]), ValueError, ["lengths", "3 entries", "4"]),
    "lengths of 2 axes": (lambda: rnn()(x, lengths=np.ones((B, 1), dtype=int)), ValueError, ["lengths", "(3, 1)"]),
    "lengths='abc'": (lambda: rnn()(x, lengths="abc"), TypeError, ["lengths", "str"]),
    "lengths=3.5": (lambda: rnn()(x, lengths=3.5), TypeError, ["lengths", "float"]),
    "lengths of an object array": (
        lambda: rnn()(x, lengths=np.asarray([1, 2, None])),
        TypeError,
        ["lengths", "object"],
    ),
    # --- vjp and jvp
    "d_output shape": (lambda: rnn().vjp(x)[2](np.ones((T, B, I))), ValueError, ["d_output", "(4, 3, 6)", "(4, 3, 5)"]),
    "d_output dtype": (lambda: rnn().vjp(x)[2](np.ones((T, B, H), "f4")), TypeError, ["d_output", "float64"]),
    "d_h_n shape": (lambda: rnn().vjp(x)[2](None, np.ones((B, H))), ValueError, ["d_h_n", "(1, 3, 6)", "(3, 6)"]),
    "checkpoint=0": (lambda: rnn().vjp(x, checkpoint=0), ValueError, ["checkpoint", "0"]),
    "checkpoint=1.5": (lambda: rnn().vjp(x, checkpoint=1.5), TypeError, ["checkpoint", "1.5"]),
    "truncate=0": (lambda: rnn().vjp(x, truncate=0), ValueError, ["truncate", "0"]),
    "truncate=True": (lambda: rnn().vjp(x, truncate=True), TypeError, ["truncate", "True"]),
    "x_dot shape": (lambda: rnn().jvp(x, x_dot=np.ones((T, B, 2))), ValueError, ["x_dot", "(4, 3, 5)", "(4, 3, 2)"]),
    "h0_dot shape": (lambda: rnn().jvp(x, h0_dot=np.ones((B, H))), ValueError, ["h0_dot", "(1, 3, 6)"]),
    "params_dot name": (lambda: rnn().jvp(x, params_dot={"w": x}), ValueError, ["params_dot", "w"]),
    "params_dot shape": (
        lambda: rnn().jvp(x, params_dot={"weight_hh_l0": x}),
        ValueError,
        ["params_dot['weight_hh_l0']", "(6, 6)", "(4, 3, 5)"],
    ),
    # --- parameters
    "set_params name": (lambda: rnn().set_params({"w": x}), ValueError, ["params", "unexpected w"]),
    "set_params shape": (lambda: rnn().set_params({"weight_hh_l0": x}), ValueError, ["weight_hh_l0", "(6, 6)"]),
    "set_params library": (lambda: rnn().set_params({"weight_hh_l0": torch.ones(6, 6)}), TypeError, ["weight_hh_l0"]),
    "state dict: a list": (lambda: rnn().load_state_dict([1]), TypeError, ["state_dict", "mapping", "list"]),
    "state dict: dtype": (lambda: rnn(dtype="float32").load_state_dict(params), ValueError, ["float32", "float64"]),
    "state dict: not arrays": (
        lambda: rnn().load_state_dict({**params, "weight_hh_l0": [[1.0]]}),
        ValueError,
        ["weight_hh_l0", "list"],
    ),
    "functional: no weights": (lambda: rnncore.functional.rnn(x, {}), ValueError, ["weight_hh_l0", "nothing"]),
    "functional: a list": (lambda: rnncore.functional.rnn(x, [1]), TypeError, ["params", "list"]),
    "functional: odd name": (lambda: rnncore.functional.rnn(x, {**params, "w": x}), ValueError, ["unexpected 'w'"]),
    "functional: huge layer": (
        lambda: rnncore.functional.rnn(x, {**params, "weight_hh_l999999": x}),
        ValueError,
        ["weight_hh_l1"],
    ),
    "functional: another library": (
        lambda: rnncore.functional.rnn(torch.ones(T, B, I), params),
        TypeError,
        ["x", "torch.Tensor"],
    ),
    "functional: mixed parameters": (
        lambda: rnncore.functional.rnn(x, {**params, "weight_hh_l0": torch.ones(6, 6, dtype=torch.float64)}),
        TypeError,
        ["weight_hh_l0", "torch.Tensor"],
    ),
    "functional cell: list": (lambda: rnncore.functional.rnn_cell([1.0], x, x, x), TypeError, ["list"]),
    "functional cell: shape": (
        lambda: rnncore.functional.rnn_cell(np.ones((2, 3)), np.ones((2, 4)), np.ones((4, 2)), np.ones((4, 4))),
        ValueError,
        ["weight_ih", "(4, 3)", "(4, 2)"],
    ),
    "params_dot: a list": (lambda: rnn().jvp(x, params_dot=[1]), TypeError, ["params_dot", "mapping", "list"]),
    "set_params: a list": (lambda: rnn().set_params([1]), TypeError, ["params", "mapping", "list"]),
    "functional: integers": (
        lambda: rnncore.functional.rnn(x, {k: v.astype(int) for k, v in params.items()}),
        TypeError,
        ["weight_ih_l0", "float64", "int64"],
    ),
    "functional cell: integers": (
        lambda: rnncore.functional.rnn_cell(*(np.ones((1, 1), dtype=int),) * 4),
        TypeError,
        ["x", "float64", "int64"],
    ),
    "lengths: a set": (lambda: rnn()(x, lengths={1, 2, 3}), TypeError, ["lengths", "set"]),
    "lengths: a dict": (lambda: rnn()(x, lengths={1: 1, 2: 2, 3: 3}), TypeError, ["lengths", "dict"]),
    # --- cells
    "cell input": (lambda: rnncore.RNNCell(I, H)(np.ones((B, 7))), ValueError, ["x", "(B, 5)", "(3, 7)"]),
    "cell rank": (lambda: rnncore.RNNCell(I, H)(x), ValueError, ["x", "(4, 3, 5)"]),
    "cell state": (lambda: rnncore.RNNCell(I, H)(np.ones((B, I)), np.ones((2, H))), ValueError, ["h", "(3, 6)"]),
    "cell layer": (lambda: rnn().cell(1), ValueError, ["layer", "[0, 0]", "1"]),
    "cell layer=True": (lambda: rnn().cell(True), TypeError, ["layer", "True"]),
    "cell direction": (lambda: rnn().cell(0, reverse=True), ValueError, ["reverse"]),
    # --- non-finite values
    "NaN in x": (
        lambda: rnn(check_finite=True)(nan_at((T, B, I), 2, 1, 3)),
        ValueError,
        ["x[2, 1, 3]", "finite", "nan"],
    ),
    "inf in h0": (
        lambda: rnn(check_finite=True)(x, np.where(np.arange(H) == 4, np.inf, 0.0) * np.ones((1, B, 1))),
        ValueError,
        ["h0[0, 0, 4]", "inf"],
    ),
    "NaN in x, batch first": (
        lambda: rnn(check_finite=True, batch_first=True)(nan_at((B, T, I), 1, 2, 3)),
        ValueError,
        ["x[1, 2, 3]"],
    ),
    "NaN in a cell": (lambda: rnncore.RNNCell(I, H, check_finite=True)(nan_at((B, I), 1, 2)), ValueError, ["x[1, 2]"]),
    # --- moving
    ".to(unknown)": (lambda: rnn().to("npy"), ValueError, ["'npy'"]),
    ".to(device)": (lambda: rnn().to("torch", device="cuda:99"), ValueError, ["device", "'cuda:99'", "cpu"]),
    ".to(dtype)": (lambda: rnn().to(dtype="float8"), TypeError, ["dtype", "float8"]),
}


@pytest.mark.parametrize("name", CASES)
def test_bad_input_is_named(name):
    act, kind, words = CASES[name]
    with pytest.raises(RnncoreError) as caught:
        act()
    assert isinstance(caught.value, kind)
    missing = [w for w in words if w not in str(caught.value)]
    assert not missing, f"{missing} not in: {caught.value}"


def test_a_state_dict_lists_everything_that_is_wrong_at_once_and_changes_nothing():
    model = rnncore.RNN(I, H, 2, rng=SEED)
    before = model.state_dict()
    bad = {**before, "weight_hh_l0": np.ones((2, 2)), "extra": np.ones(1), "bias_ih_l1": np.ones(H, dtype="i4")}
    del bad["weight_ih_l1"], bad["bias_hh_l0"]
    with pytest.raises(RnncoreError) as caught:
        model.load_state_dict(bad)
    for words in (
        "missing weight_ih_l1",
        "missing bias_hh_l0",
        "unexpected 'extra'",
        "weight_hh_l0: expected shape (6, 6)",
    ):
        assert words in str(caught.value)
    assert "bias_ih_l1: expected dtype float64, got int32" in str(caught.value)
    for k, v in model.state_dict().items():
        np.testing.assert_array_equal(v, before[k])


def test_one_bad_parameter_changes_none():
    model = rnn()
    before = model.state_dict()
    with pytest.raises(RnncoreError):
        model.set_params({"weight_ih_l0": np.zeros((H, I)), "weight_hh_l0": np.zeros((2, 2))})
    for k, v in model.state_dict().items():
        np.testing.assert_array_equal(v, before[k])


def test_check_finite_looks_at_parameters_and_outputs_and_not_at_padding():
    model = rnn(check_finite=True, nonlinearity="relu")
    padded = x.copy()
    padded[2:, 1] = np.nan
    model(padded, lengths=[4, 2, 4])
    w = model.state_dict()["weight_hh_l0"]
    w[2, 3] = np.inf
    model.set_params({"weight_hh_l0": w})
    with pytest.raises(RnncoreError, match=r"weight_hh_l0\[2, 3\]: expected a finite number, got inf"):
        model(x)
    model.set_params({"weight_hh_l0": np.full((H, H), 1e200)})
    with np.errstate(over="ignore", invalid="ignore"), pytest.raises(RnncoreError, match=r"output\[\d, \d, \d\]"):
        model(x)


def test_an_output_that_no_memory_could_hold_is_refused_before_it_is_made():
    huge = np.broadcast_to(np.ones((1, 1, I)), (10**9, 10**4, I))
    with pytest.raises(RnncoreError, match=r"bytes"):
        rnn()(huge)


def many(*shape):
    """An array of any size, in the memory of one number."""
    return np.broadcast_to(np.ones(()), shape)


@pytest.mark.parametrize(
    "act",
    [
        lambda: rnncore.RNN(10**9, 10**9),
        lambda: rnncore.RNN(1, 1, 10**9),  # whose numbers have room, and whose arrays have none
        lambda: rnncore.RNN(1, [10**6] * 10**5),
        lambda: rnncore.RNNCell(10**9, 10**9),
        lambda: rnncore.RNNSpec.from_config({**rnn().spec.to_config(), "hidden_sizes": [10**9] * 3}),
        *(
            lambda shape=shape, name=name: getattr(rnn(), name)(many(*shape, I))
            for shape in ((10**13, 1), (10**7, 10**7), (2, 10**13), (10**13,))
            for name in ("__call__", "vjp", "jvp", "trace")
        ),
        lambda: rnncore.diagnostics.record(rnn(), many(10**13, 1, I)),
        lambda: rnncore.diagnose(rnn(), many(10**13, 1, I)),
        lambda: rnncore.RNNCell(I, H)(many(10**13, I)),
        lambda: rnncore.functional.rnn_cell(many(10**13, I), many(10**13, H), np.ones((H, I)), np.ones((H, H))),
        lambda: rnncore.functional.rnn(
            many(2, 2, 10**8), {"weight_ih_l0": many(10**8, 10**8), "weight_hh_l0": many(10**8, 10**8)}
        ),
        lambda: rnncore.get_backend("numpy").asarray(many(10**13)),
        lambda: rnncore.init.orthogonal()((10**9, 10**9), np.random.default_rng(0)),
    ],
)
def test_what_no_memory_could_hold_is_refused_before_anything_is_made(act):
    with pytest.raises(ArgumentValueError, match=r"numbers need .* bytes, and this process has \d+ at most") as error:
        act()
    assert len(str(error.value)) < 1000


@pytest.mark.parametrize("lengths", [range(10**13), np.broadcast_to(np.ones((), int), 10**13), iter(lambda: 1, 0)])
def test_more_lengths_than_sequences_are_not_read(lengths):
    with pytest.raises(RnncoreError, match=r"lengths: expected 3 entries, one per sequence, got \d+"):
        rnn()(x, lengths=lengths)


@pytest.mark.parametrize(("text", "limit"), [("8000000\n", 8000000), ("max\n", None), ("", None)])
def test_the_memory_of_a_container_is_a_limit(tmp_path, monkeypatch, text, limit):
    (tmp_path / "memory.max").write_text(text)
    monkeypatch.setattr(arguments, "CONTAINER_LIMITS", ())
    without = arguments._memory()
    monkeypatch.setattr(arguments, "CONTAINER_LIMITS", (str(tmp_path / "absent"), str(tmp_path / "memory.max")))
    assert arguments._memory() == min(without, limit or without)


def test_the_memory_that_the_shell_allows_is_a_limit():
    resource = pytest.importorskip("resource", reason="a system without limits of this kind")
    code = (
        "import resource; resource.setrlimit(resource.RLIMIT_DATA, (2**30, resource.RLIM_INFINITY))\n"
        "from rnncore import arguments; print(arguments.MEMORY)"
    )
    assert resource and int(python(code)) <= 2**30


def test_dropout_in_one_layer_warns_as_torch_does():
    with pytest.warns(UserWarning, match="between layers"):
        rnn(dropout=0.5)


def test_validation_survives_optimised_python():
    """python -O removes assert statements: the cases above must not depend on one."""
    code = (
        "import sys, warnings; assert False, 'not optimised'\n"
        "import tests.test_arguments as t\n"
        "bad = []\n"
        "for name, (act, kind, words) in t.CASES.items():\n"
        "    try: act()\n"
        "    except t.RnncoreError as e:\n"
        "        if not (isinstance(e, kind) and all(w in str(e) for w in words)): bad.append(name)\n"
        "    else: bad.append(name)\n"
        "print(len(t.CASES), bad)"
    )
    done = subprocess.run([sys.executable, "-O", "-c", code], capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.stdout.strip() == f"{len(CASES)} []", done.stdout + done.stderr


class Symbol:
    """A size of a function that is compiled for any size."""

    def __mul__(self, other):
        return self

    __rmul__ = __mul__

    def __str__(self):
        return "T"


def test_a_size_that_is_no_number_is_not_known_and_not_counted():
    assert arguments.are_known(1, np.int64(2)) and arguments.are_known()
    assert not arguments.are_known(1, Symbol())
    arguments.check_bytes("x", Symbol() * 2**70, 8)
    with pytest.raises(
        ArgumentValueError, match="truncate: expected known sizes, as steps are divided on the host, got T, 2"
    ):
        arguments.check_known("truncate", "steps are divided", Symbol(), 2)
    arguments.check_known("truncate", "steps are divided", 3, 2)
