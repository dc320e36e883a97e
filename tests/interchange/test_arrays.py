"""Networks in plain mappings: every layout of names, paths, several networks in one, and what is no network."""

import numpy as np
import pytest
import torch

import rnncore
from rnncore.errors import (
    ArgumentTypeError,
    ArgumentValueError,
    InterchangeError,
    RnncoreError,
    UnknownNameError,
)
from rnncore.interchange.arrays import read_arrays
from rnncore.interchange.portable import Asked
from tests.interchange.networks import network, reference
from tests.tools.rounding import agree

SAID = {"nonlinearity": "tanh", "batch_first": False}
X = np.random.default_rng(1).standard_normal((4, 2, 3)).astype("f4")


def renamed(portable, names):
    """The arrays of a network of one layer by other names; None leaves one out."""
    return {new: portable.params[old] for old, new in names.items() if new is not None}


def in_flax(portable, layers, cell):
    """The arrays as Flax has them: kernels transposed, and one bias. `cell` has the paths of its two parts below a layer's."""
    found = {}
    for path, row in zip(layers, portable.spec.names, strict=True):
        sides = ("forward_rnn.", "backward_rnn.") if len(row) == 2 else ("",)
        for side, (w_ih, w_hh, *biases) in zip(sides, row, strict=True):
            found[f"{path}{side}{cell[0]}.kernel"] = portable.params[w_ih].T.copy()
            found[f"{path}{side}{cell[1]}.kernel"] = portable.params[w_hh].T.copy()
            found |= {f"{path}{side}{cell[0]}.bias": portable.params[b] for b in biases[:1]}
    return found


NNX, LINEN = ("cell.dense_i", "cell.dense_h"), ("cell.i", "cell.h")


def one_bias(portable):
    """The same network with its sums of biases in bias_ih."""
    for name in [n for n in portable.params if n.startswith("bias_hh")]:
        portable.params[name.replace("hh", "ih")] += portable.params[name]
        portable.params[name] = np.zeros_like(portable.params[name])
    return portable


def test_torchs_names_are_the_networks_own():
    for options in ({"num_layers": 3}, {"bidirectional": True}, {"bias": False}, {"hidden_size": [5, 4]}):
        given = network(**options)
        found = read_arrays(given.params, Asked(**SAID), source="a file")
        assert found.spec == given.spec and found.left_out == () and found.dtype == "float32"
        assert all(np.array_equal(found.params[n], a) for n, a in given.params.items())


@pytest.mark.parametrize(
    "names",
    [
        {"weight_ih_l0": "weight_ih", "weight_hh_l0": "weight_hh", "bias_ih_l0": "bias"},
        {"weight_ih_l0": "weight_ih_l0", "weight_hh_l0": "weight_hh_l0", "bias_ih_l0": "bias_l0"},
        {"weight_ih_l0": "Wxh", "weight_hh_l0": "Whh", "bias_ih_l0": "bias"},
        {"weight_ih_l0": "net.rnn.Wxh", "weight_hh_l0": "net.rnn.Whh", "bias_ih_l0": "net.rnn.bias"},
    ],
    ids=str,
)
def test_other_names_of_one_layer(names):
    given = one_bias(network())
    found = read_arrays(renamed(given, names), Asked(**SAID), source="a file")
    assert found.spec == given.spec
    assert all(np.array_equal(found.params[n], a) for n, a in given.params.items())


@pytest.mark.parametrize("cell", [NNX, LINEN], ids=["nnx", "linen"])
@pytest.mark.parametrize(
    ("options", "paths"),
    [
        ({}, [""]),
        ({"bidirectional": True}, [""]),
        ({"num_layers": 3}, ["layers.0.", "layers.1.", "layers.2."]),
        ({"num_layers": 2, "bidirectional": True}, ["net.layers_1.", "net.layers_2."]),
    ],
    ids=str,
)
def test_flaxs_names(cell, options, paths):
    given = one_bias(network(**options))
    found = read_arrays(in_flax(given, paths, cell), Asked(**SAID), source="a file")
    assert found.spec == given.spec
    assert all(np.array_equal(found.params[n], a) for n, a in given.params.items())
    agree(reference(found, X)[0], reference(given, X)[0])


def test_what_is_beside_the_network_is_named():
    given = network()
    arrays = {f"encoder.{n}": a for n, a in given.params.items()} | {"head.weight": np.ones(3), "head.bias": np.ones(3)}
    found = read_arrays(arrays, Asked(**SAID), source="a file")
    assert found.left_out == ("2 arrays beside the network 'encoder': head.bias, head.weight",)
    with pytest.warns(UserWarning, match="left out: 2 arrays beside the network 'encoder'"):
        rnncore.from_module(arrays, **SAID)


def test_of_several_networks_one_is_named():
    one, two = network(), network(input_size=4, seed=1)
    arrays = {f"a.{n}": v for n, v in one.params.items()} | {f"b.{n}": v for n, v in two.params.items()}
    with pytest.raises(ArgumentValueError, match="name: expected a network that a file holds, 'a', 'b', got None"):
        read_arrays(arrays, Asked(**SAID), source="a file")
    with pytest.raises(UnknownNameError, match="'a', 'b', got 'c'"):
        read_arrays(arrays, Asked(**SAID, name="c"), source="a file")
    found = read_arrays(arrays, Asked(**SAID, name="b"), source="a file")
    assert found.spec == two.spec and "a.weight_ih_l0" in found.left_out[0]


def test_lists_that_need_not_run_one_after_another_are_named_by_who_knows():
    """A list of another name than a Sequential's, or one with a gap where something without arrays may be."""
    given = one_bias(network(num_layers=2, input_size=5))
    for paths in (["cells.0.", "cells.1."], ["layers.0.", "layers.2."]):
        arrays, head = in_flax(given, paths, LINEN), paths[0].partition(".")[0]
        with pytest.raises(ArgumentValueError, match=rf"'{head}', '{head}.0', '{head}.[12]', got None"):
            read_arrays(arrays, Asked(**SAID), source="a file")
        assert read_arrays(arrays, Asked(**SAID, name=head), source="a file").spec == given.spec
        assert read_arrays(arrays, Asked(**SAID, name=f"{head}.0"), source="a file").spec.num_layers == 1


def test_one_layer_of_a_stack_can_be_named():
    given = one_bias(network(num_layers=2))
    arrays = in_flax(given, ["layers.0.", "layers.1."], NNX)
    assert read_arrays(arrays, Asked(**SAID), source="a file").spec.num_layers == 2
    found = read_arrays(arrays, Asked(**SAID, name="layers.1"), source="a file")
    assert np.array_equal(found.params["weight_hh_l0"], given.params["weight_hh_l1"])


def test_the_nonlinearity_and_the_axes_are_demanded():
    arrays = network().params
    with pytest.raises(ArgumentValueError, match="nonlinearity: expected a value, as a file does not say it"):
        read_arrays(arrays, Asked(batch_first=True), source="a file")
    with pytest.raises(ArgumentValueError, match="batch_first: expected a value, as a file does not say it"):
        read_arrays(arrays, Asked(nonlinearity="relu"), source="a file")


def test_numbers_that_stand_for_bfloat16():
    arrays = network().params
    assert read_arrays(arrays, Asked(**SAID), source="a file", bfloat16=set(arrays)).dtype == "bfloat16"
    with pytest.raises(InterchangeError, match="bfloat16 and others"):
        read_arrays(arrays, Asked(**SAID), source="a file", bfloat16={"weight_ih_l0"})


ONE = network().params


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({}, "no network of this kind: .* got none"),
        ({"kernel": np.ones((3, 3))}, "no network of this kind: .* got kernel"),
        ({"weight_ih": np.ones((5, 3))}, "no network of this kind"),
        ({"weight_ih_l0": np.ones((5, 3))}, r"weight_hh is missing beside \['weight_ih_l0'\]"),
        (
            {n: a for n, a in network(num_layers=3).params.items() if "l1" not in n},
            "expected 3 layers of 1 dir.* got 2 of 3",
        ),
        ({**ONE, "weight_ih_l0_reverse": ONE["weight_ih_l0"]}, "weight_hh is missing"),
        (dict.fromkeys(("Wxh", "Whh", "weight_ih", "weight_hh"), np.ones((5, 5))), "one network at each path"),
        ({**ONE, "weight_ih": np.ones((5, 3)), "weight_hh": np.ones((5, 5))}, "one network at each path"),
        ({**ONE, "bias_l0": np.ones(5)}, "expected one of bias_ih_l0 and bias_l0, got both"),
        ({"weight_ih": np.ones((15, 3)), "weight_hh": np.ones((15, 5)), "bias": np.ones(15)}, "those of a GRU"),
        ({"dense_i.kernel": np.ones((3, 20)), "dense_h.kernel": np.ones((5, 20))}, "those of an LSTM"),
        ({"weight_ih": np.ones(3), "weight_hh": np.ones(())}, "expected weights"),
        ({"weight_ih": np.ones((5, 3), "i4"), "weight_hh": np.ones((5, 5), "i4")}, "one floating dtype, got int32"),
        ({"weight_ih_l" + "9" * 5000: np.ones((5, 3))}, "no network of this kind"),
    ],
)
def test_what_is_no_network_is_refused(arrays, words):
    with pytest.raises(InterchangeError, match=words):
        read_arrays(arrays, Asked(**SAID), source="a file")


def test_a_mapping_of_any_library_is_a_module():
    theirs = torch.nn.RNN(3, 5, 2, bidirectional=True)
    ours = rnncore.from_module(theirs.state_dict(), **SAID)
    assert ours.backend == "torch"
    x = torch.from_numpy(X)
    agree(ours(x)[0], theirs(x)[0])
    with torch.no_grad():
        theirs.weight_hh_l0.zero_()
    assert ours.params["weight_hh_l0"].any()


def test_a_mapping_may_hold_others_and_lists():
    one, two = one_bias(network(num_layers=2)), network()
    tree = {"layers": [{kind: one.params[f"{kind}_l{k}"] for kind in ("weight_ih", "weight_hh")} for k in (0, 1)]}
    tree |= {"step": 3, "head": (two.params["weight_ih_l0"],)}
    with pytest.warns(UserWarning, match=r"2 arrays beside the network 'layers': head\.0, step"):
        found = rnncore.from_module(tree, **SAID)
    assert found.spec.num_layers == 2 and not found.spec.bias and found.backend == "numpy"


def test_numpys_bfloat16_of_torch_is_kept():
    theirs = torch.nn.RNN(3, 5, dtype=torch.bfloat16)
    ours = rnncore.from_module(theirs.state_dict(), **SAID)
    assert ours.dtype == torch.bfloat16 and torch.equal(ours.params["weight_hh_l0"], theirs.weight_hh_l0)


def test_what_a_mapping_may_not_hold():
    with pytest.raises(ArgumentTypeError, match="weight_hh: expected an array of a registered backend, got int"):
        rnncore.from_module({"weight_ih": np.ones((1, 1)), "weight_hh": 1}, **SAID)
    endless = {}
    endless["more"] = endless
    with pytest.raises(RnncoreError, match="at most 64 others"):
        rnncore.from_module(endless, **SAID)


def test_a_dict_goes_out_and_in():
    given = network(num_layers=2, bidirectional=True)
    ours = rnncore.RNN.from_spec(given.spec, given.params, dtype="float32")
    for name, a in rnncore.to_module(ours, "arrays").items():
        assert np.array_equal(a, given.params[name]) and not np.shares_memory(a, ours.params[name])
    found = rnncore.from_module(rnncore.to_module(ours, "arrays", one_bias=True), **SAID)
    assert np.array_equal(found.params["bias_ih_l1"], given.params["bias_ih_l1"] + given.params["bias_hh_l1"])
    agree(found(X)[0], reference(given, X)[0])


def test_the_fields_of_a_module_are_a_mapping():
    """As Equinox's users write cells. What a module computes with them is theirs to say, so it is not asked itself."""
    equinox = pytest.importorskip("equinox", reason="Equinox is not installed")
    jax = pytest.importorskip("jax", reason="JAX is not installed")

    class Cell(equinox.Module):
        weight_ih: jax.Array
        weight_hh: jax.Array
        bias: jax.Array
        name: str = "cell"

        def __call__(self, x, h):
            return jax.numpy.tanh(self.weight_ih @ x + self.weight_hh @ h + self.bias)

    given = one_bias(network()).params
    cell = Cell(*(jax.numpy.asarray(given[f"{n}_l0"]) for n in ("weight_ih", "weight_hh", "bias_ih")))
    with pytest.warns(UserWarning, match="1 array beside the network '': name"):
        ours = rnncore.from_module(vars(cell), **SAID)
    assert ours.backend == "jax"
    h, x = jax.numpy.ones(5), jax.numpy.asarray(X[0, 0])
    agree(ours(x[None], h[None])[0][0], cell(x, h))
    with pytest.raises(
        ArgumentTypeError, match=r"a library's own recurrent module, such as torch\.nn\.RNN, got .*Cell"
    ):
        rnncore.from_module(cell, **SAID)
    for kind, words in ((equinox.nn.GRUCell, "those of a GRU"), (equinox.nn.LSTMCell, "those of an LSTM")):
        theirs = kind(3, 5, key=jax.random.key(0))
        with pytest.raises(InterchangeError, match=words):
            rnncore.from_module(vars(theirs), **SAID)
        with pytest.raises(ArgumentTypeError, match=f"got equinox.*{kind.__name__}"):
            rnncore.from_module(theirs, **SAID)
