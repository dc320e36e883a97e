"""Parameters bound to a backend: state dicts, moves, copies by value and pickles."""

import copy
import pickle
import subprocess
import sys

import numpy as np
import pytest
import torch

import rnncore
from rnncore.diagnostics import gradcheck
from rnncore.errors import BackendUnavailableError, DTypeError, StateDictError
from tests.tools.models import backends, give, host


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
    from rnncore.backend.state import State

    without_torch = State()
    del without_torch.scan.claims["torch"]
    monkeypatch.setattr(registry, "_state", without_torch)
    with pytest.raises(BackendUnavailableError, match="saved on backend 'torch'"):
        pickle.loads(data)


def test_loading_keeps_what_requires_grad():
    rnn = rnncore.RNN(3, 4, backend="torch")
    rnn.params["weight_hh_l0"].requires_grad_()
    rnn.load_state_dict(rnn.state_dict())
    assert rnn.params["weight_hh_l0"].requires_grad and not rnn.params["weight_ih_l0"].requires_grad


EXACT = {("float16", "float32"), ("bfloat16", "float32"), *((n, "float64") for n in ("float16", "bfloat16", "float32"))}
DTYPES = ("float16", "bfloat16", "float32", "float64")


@pytest.mark.parametrize("into", DTYPES)
@pytest.mark.parametrize("given", DTYPES)
def test_another_dtype_is_loaded_where_that_is_exact_and_named_once_where_it_is_not(given, into):
    peer = torch.nn.RNN(3, 4, 2, dtype=getattr(torch, given))
    rnn = rnncore.RNN(3, 4, 2, backend="torch", dtype=into, rng=0)
    before = rnn.state_dict()
    if given == into or (given, into) in EXACT:
        rnn.load_state_dict(peer.state_dict())
        for n, p in rnn.params.items():
            assert str(p.dtype) == f"torch.{into}" and torch.equal(p.double(), peer.state_dict()[n].double())
        return
    with pytest.raises(StateDictError) as caught:
        rnn.load_state_dict(peer.state_dict())
    assert f"expected dtype {into}, the model's, got {given}, which it would round" in str(caught.value)
    assert str(caught.value).count("rnn = rnn.to(dtype=") == 1
    assert all(torch.equal(p, before[n]) for n, p in rnn.params.items())


def test_dtypes_that_are_rounded_are_named_together_with_one_that_holds_them_all():
    rnn = rnncore.RNN(3, 4, backend="torch", dtype="float16")
    state = {n: p.to(torch.bfloat16 if "bias" in n else torch.float32) for n, p in rnn.state_dict().items()}
    with pytest.raises(StateDictError, match=r"got bfloat16, float32, which.*rnn.to\(dtype='float32'\)$"):
        rnn.load_state_dict(state)


@pytest.mark.parametrize("path", ["rnn.", "module.encoder.", "_orig_mod."])
def test_a_path_before_every_name_is_taken_off_and_named(path):
    peer = torch.nn.RNN(3, 4, 2, bidirectional=True)
    rnn = rnncore.RNN(3, 4, 2, bidirectional=True, backend="torch")
    with pytest.warns(UserWarning, match=f"state_dict: '{path}' is taken off"):
        rnn.load_state_dict({path + n: p for n, p in peer.state_dict().items()})
    assert all(torch.equal(p, peer.state_dict()[n]) for n, p in rnn.params.items())
    one = torch.nn.RNNCell(3, 4)
    cell = rnncore.RNNCell(3, 4, backend="torch")
    with pytest.warns(UserWarning, match=f"state_dict: '{path}' is taken off"):
        cell.load_state_dict({path + n: p for n, p in one.state_dict().items()})
    assert torch.equal(cell.params["weight_hh_l0"], one.weight_hh)


def test_no_path_is_taken_off_where_names_are_left():
    rnn = rnncore.RNN(3, 4, backend="torch")
    state = torch.nn.RNN(3, 4).state_dict()
    under = {f"rnn.{n}": p for n, p in state.items()}
    with pytest.raises(
        StateDictError, match=r"missing weight_ih_l0.*unexpected 'head'.*those under 'rnn\.' may be meant"
    ):
        rnn.load_state_dict({**under, "head": torch.ones(1)})
    for bad in (
        {**under, **{f"b.{n}": p for n, p in state.items()}},  # two networks
        {**under, "weight_ih_l0": state["weight_ih_l0"]},  # one name without it
        {**under, 3: torch.ones(1)},
        {n: p for n, p in under.items() if "bias" not in n},
    ):
        with pytest.raises(StateDictError, match="missing"):
            rnn.load_state_dict(bad)


@pytest.mark.parametrize("make", [lambda rnn: rnn.to("numpy"), lambda rnn: pickle.dumps(rnn.to("numpy"))])
def test_a_dtype_that_the_device_lacks_says_which_it_has(make):
    with pytest.raises(DTypeError, match=r"got 'bfloat16'; say dtype='float32'$"):
        make(rnncore.RNN(3, 4, backend="torch", dtype="bfloat16"))


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


def test_a_call_goes_on_with_the_parameters_it_began_with():
    rnn = rnncore.RNN(2, 3, rng=0)
    x, network = np.ones((4, 1, 2)), rnn.network
    output, _, pullback = rnn.vjp(x)
    before = pullback(output).x
    rnn.set_params({k: 0 * v for k, v in rnn.params.items()})
    np.testing.assert_array_equal(pullback(output).x, before)
    np.testing.assert_array_equal(rnncore.RNN.from_network(network)(x)[0], output)
    assert not rnn(x)[0].any()


class Annotated(rnncore.RNN):
    """A subclass with state of its own."""

    def __init__(self, *args, scale, **options):
        super().__init__(*args, **options)
        self.scale = scale

    def scaled(self, x):
        return self.scale * self(x)[0]


@pytest.mark.parametrize(
    "clone",
    [copy.deepcopy, copy.copy, lambda m: pickle.loads(pickle.dumps(m)), lambda m: m.to(dtype="float64")],
    ids=["deepcopy", "copy", "pickle", "to"],
)
def test_attributes_go_along(clone):
    """As those of a torch.nn.Module or a dataclass do."""
    rnn = Annotated(2, 3, scale=2.0, rng=0)
    rnn.notes = ["good"]
    twin, x = clone(rnn), np.ones((4, 1, 2))
    assert type(twin) is Annotated and twin.notes == ["good"]
    np.testing.assert_array_equal(twin.scaled(x), rnn.scaled(x))
    cell = rnncore.RNNCell(2, 3)
    cell.notes = "good"
    assert clone(cell).notes == "good"


class Counting(Annotated):
    """One whose methods use that state."""

    def __call__(self, *args, **options):
        self.scale["calls"] += 1
        return super().__call__(*args, **options)

    def vjp(self, *args, **options):
        self.scale["calls"] += 1
        return super().vjp(*args, **options)

    def __repr__(self):
        return f"Counting({self.scale['name']})"


@pytest.mark.parametrize("level", ["cheap", "deep"])
def test_a_diagnosis_and_a_gradient_check_are_of_the_model_with_its_attributes(level):
    rnn, x = Counting(2, 3, scale={"calls": 0, "name": "mine"}, rng=0), np.ones((4, 1, 2))
    assert rnncore.diagnose(rnn, x, level=level).subject.network == "Counting(mine)"
    before = rnn.scale["calls"]
    assert gradcheck(rnn, x).passed
    assert rnn.scale["calls"] > before


def test_a_deep_copy_has_attributes_of_its_own():
    rnn = rnncore.RNN(2, 3)
    rnn.notes, rnn.itself = ["good"], rnn
    twin = copy.deepcopy(rnn)
    twin.notes.append("better")
    assert rnn.notes == ["good"] and twin.itself is twin
