"""What an error advises works: the code in each message is run as it stands, and then what failed succeeds.

A row is: the lines that fail, with what they need; the message, in which the group is code; and the lines that follow it, where
{code} stands for that code.
"""

import re
import textwrap
import tomllib

import jax
import numpy as np
import pytest
import torch

import rnncore
from rnncore.backend.state import State
from tests.tools.places import ROOT

BACKENDS = ("numpy", "numba", "torch", "jax", "strict", "mlx")
# The arrays that a user of one library may have at hand, as expressions of their numbers.
ARRAYS = {
    "a list": "numbers.tolist()",
    "a tuple": "tuple(map(tuple, numbers.tolist()))",
    "numpy": "numbers",
    "another dtype of numpy's": "numbers.astype('i2')",
    "a big-endian array": "numbers.astype('>f4')",
    "a matrix": "numbers[:, 0].view(np.matrix)",
    "torch": "torch.tensor(numbers)",
    "torch with a gradient": "torch.tensor(numbers, requires_grad=True)",
    "torch in half precision": "torch.tensor(numbers).bfloat16()",
    "jax": "jax.numpy.asarray(numbers)",
    "jax in half precision": "jax.numpy.asarray(numbers, dtype='bfloat16')",
    "strict": "rnncore.get_backend('strict').asarray(numbers)",
    "mlx": "rnncore.get_backend('mlx').asarray(numbers)",
}
CONVERT = r"convert with (rnncore\.get_backend\('\w+'\)\.asarray\(x, dtype='float32', device='[\w:]+'\))"
MODEL = "x, rnn = np.ones((4, 2, 3), 'f4'), rnncore.RNN(3, 3, backend='numpy', dtype='float64', rng=0)"

ADVICE = {
    "the model, of the array's dtype": (f"{MODEL}\nrnn(x)", r"or the model with (.*)$", "rnn = {code}; rnn(x)"),
    "the array, of the model's dtype": (f"{MODEL}\nrnn(x)", r"convert with (.*\)), or", "rnn({code})"),
    "arrays of two libraries": (
        "params = rnncore.RNN(3, 3, backend='torch').state_dict()\nx = np.ones((3, 3), 'f4')\n"
        "rnncore.optim.clip_grad_norm({'a': params['weight_hh_l0'], 'b': x}, 1.0)",
        r"convert with (.*)$",
        "rnncore.optim.clip_grad_norm({{'a': params['weight_hh_l0'], 'b': {code}}}, 1.0)",
    ),
    "masked numbers": (
        "x = np.ma.masked_array(np.ones((4, 2, 3)), np.ones((4, 2, 3)) > 0)\n"
        "rnn = rnncore.RNN(3, 3, backend='numpy')\nrnn(x)",
        r"with (x\.filled\(0\.0\)), and end rows early with (lengths=)",
        "rnn({code}, lengths=[4, 2])",
    ),
    **{
        f"a packed sequence, {batch_first=}": (
            "from torch.nn.utils.rnn import pack_padded_sequence\n"
            f"rnn = rnncore.RNN(3, 3, backend='torch', batch_first={batch_first})\n"
            f"x = pack_padded_sequence(torch.ones(4, 4, 3), [4, 4, 2, 1], batch_first={batch_first})\nrnn(x)",
            r"unpack it with (.*\)), and call (.*)$",
            "{code}",
        )
        for batch_first in (True, False)
    },
    "a state dict of another dtype": (
        "rnn = rnncore.RNN(3, 3, backend='numpy', dtype='float32')\n"
        "state = torch.nn.RNN(3, 3, dtype=torch.float64).state_dict()\nrnn.load_state_dict(state)",
        r"move the model first: (rnn = rnn\.to\(dtype='float64'\))$",
        "{code}; rnn.load_state_dict(state)",
    ),
    "a state dict among others": (
        "rnn = rnncore.RNN(3, 3, backend='torch')\n"
        "state_dict = torch.nn.ModuleDict({'a': torch.nn.RNN(3, 3), 'b': torch.nn.Linear(3, 1)}).state_dict()\n"
        "rnn.load_state_dict(state_dict)",
        r"those under 'a\.' may be meant: (.*)$",
        "rnn.load_state_dict({code})",
    ),
    "a float64 model on JAX: another dtype": (
        "rnn = rnncore.RNN(3, 3, backend='numpy')\nrnn.to('jax')",
        r"say (dtype='float32'), which rounds",
        "rnn.to('jax', {code})",
    ),
    "a float64 model on JAX: 64 bits": (
        "rnn = rnncore.RNN(3, 3, backend='numpy')\nrnn.to('jax')",
        r", or call (.*) first$",
        "made = jax.config.jax_enable_x64\ntry:\n    {code}\n    rnn.to('jax')\n"
        "finally: jax.config.update('jax_enable_x64', made)",
    ),
    "float64 on JAX": (
        "x = np.ones(3)\nrnncore.get_backend('jax').asarray(x, dtype='float64')",
        r"for 64 bits call (.*) first",
        "made = jax.config.jax_enable_x64\ntry:\n    {code}\n    rnncore.get_backend('jax').asarray(x, dtype='float64')\n"
        "finally: jax.config.update('jax_enable_x64', made)",
    ),
    "a network as a cell": (
        "network = rnncore.RNN(3, 3, 2, backend='numpy').network\nrnncore.RNNCell.from_network(network)",
        r"use (.*)$",
        "{code}(np.ones((1, 3)))",
    ),
    "a context that is left": (
        "rnncore.use_backend('numpy').__exit__(None, None, None)",
        r"^(use_backend\('numpy'\)): .* use it in a with statement",
        "with rnncore.{code}: pass",
    ),
    "a derivative from h": (
        "xp, z, f = rnncore.get_backend('numpy').namespace(), np.ones(3), rnncore.get_nonlinearity('tanh', clip=1.0)\n"
        "f.derivative_from_h(z, xp=xp)",
        r"use z: (.*)$",
        "{code}",
    ),
    "a check's id": (
        "from rnncore.testing import check_backend\ncheck_backend('numpy', only='RC-SCAN-001')",
        r"got ('RC-SCAN-001'); put it in a list",
        "check_backend('numpy', only=[{code}])",
    ),
    "a function that a file does not hold": (
        "spec = rnncore.RNNSpec.make(3, 3, 1, rnncore.custom_nonlinearity(lambda z: z, lambda z: z * 0 + 1))\n"
        "rnncore.RNNSpec.from_config(spec.to_config())",
        r"pass it as (nonlinearity=)",
        "rnncore.RNNSpec.from_config(spec.to_config(), {code}spec.nonlinearity)",
    ),
    "bare parameters in npz": (
        "path = folder / 'w.npz'\nnp.savez(path, **rnncore.RNN(3, 3, backend='numpy').state_dict())\nrnncore.load(path)",
        r"(rnncore\.load\(path, nonlinearity=)\.\.\.(, batch_first=)\.\.\.\)$",
        "{code[0]}'tanh'{code[1]}False)",
    ),
    "bare parameters in safetensors": (
        "import safetensors.numpy\npath = folder / 'w.safetensors'\n"
        "safetensors.numpy.save_file(rnncore.RNN(3, 3, backend='numpy').state_dict(), path)\nrnncore.load(path)",
        r"(rnncore\.load\(path, nonlinearity=)\.\.\.(, batch_first=)\.\.\.\)$",
        "{code[0]}'tanh'{code[1]}False)",
    ),
    "a module that holds an RNN": (
        "from collections import OrderedDict\n"
        "net = torch.nn.Sequential(OrderedDict(encoder=torch.nn.RNN(3, 3), head=torch.nn.Tanh()))\n"
        "x = torch.ones(4, 2, 3)\nrnncore.diagnose(net, x)",
        r"it holds one at '(\w+)': give that",
        "rnncore.diagnose(net.{code}, x)",
    ),
    "a record in place of a lane": (
        "from rnncore.diagnostics import record, saturation\n"
        "rnn, x = rnncore.RNN(3, 3, backend='numpy'), np.ones((4, 2, 3))\nsaturation(rnn)",
        r"lane of what rnncore\.diagnostics\.(record\(rnn, x\)) returns, such as (record\.lane\(\))",
        "record = {code[0]}\nsaturation({code[1]})",
    ),
    "what is no record": (
        "from rnncore.diagnostics import flow\nrnn, x = rnncore.RNN(3, 3, backend='numpy'), np.ones((4, 2, 3))\nflow(rnn, x)",
        r"what (rnncore\.diagnostics\.record\(rnn, x\)) returns",
        "flow({code}, x)",
    ),
    "losses that were not followed so far": (
        "rnn = rnncore.RNN(3, 3, backend='numpy', nonlinearity='identity', init=rnncore.init.orthogonal(1.0), rng=0)\n"
        "x = np.ones((400, 1, 3))\nd = np.ones((400, 1, 3))\n"
        "rnncore.diagnose(rnn, x, (d, None)).assert_healthy(min_horizon=300)",
        r"give diagnose (dependency_length=300)",
        "rnncore.diagnose(rnn, x, (d, None), {code}).assert_healthy(min_horizon=300)",
    ),
    "a probe of all lanes": (
        "from rnncore.diagnostics import record, weight_gradient\nfrom rnncore.diagnostics import flow\n"
        "rnn, x = rnncore.RNN(3, 3, backend='numpy', rng=0), np.ones((4, 2, 3))\n"
        "found = flow(record(rnn, x), np.ones((4, 2, 3)))[0]\nmissing = [n for n in dir(found[0][0]) if n[0] != '_' and "
        "callable(getattr(found[0][0], n))][0]\ngetattr(found, missing)",
        r"call it for one lane: (\[layer\]\[direction\]\.\w+)\(",
        "layer = direction = 0\nfound{code}",
    ),
}
# What was meant, the lines with a misspelling of it.
MEANT = {
    "torch": "rnncore.RNN(3, 3, backend='troch')",
    "tanh": "rnncore.RNN(3, 3, nonlinearity='tahn')",
    "orthogonal": "rnncore.RNN(3, 3, init='orthogonl')",
    "require": "rnncore.RNN(3, 3, kernel='requires')",
    "standard": "rnncore.diagnose(rnncore.RNN(3, 3), np.ones((4, 2, 3)), level='standart')",
    "float32": "rnncore.get_backend('numpy').asarray([1.0], dtype='flaot32')",
    "cpu": "rnncore.RNN(3, 3, backend='numpy', device='cpo')",
}


def run(code, names):
    exec(textwrap.dedent(code), names)


def follow(names, wrong, message, right):
    """Run what fails, take the code out of the message, and run what follows it."""
    with pytest.raises((rnncore.RnncoreError, AssertionError, AttributeError)) as error:
        run(wrong, names)
    found = re.search(message, str(error.value), re.M)
    assert found, str(error.value)
    code = found.groups() if "{code[" in right else "; ".join(found.groups()) if right == "{code}" else found[1]
    run(right.format(code=code), names)


@pytest.fixture
def names(tmp_path):
    numbers = np.arange(24, dtype="f4").reshape(4, 2, 3)
    return {"np": np, "torch": torch, "jax": jax, "rnncore": rnncore, "numbers": numbers, "folder": tmp_path}


@pytest.mark.parametrize("case", ADVICE.values(), ids=ADVICE)
def test_what_a_message_advises_works(names, case):
    follow(names, *case)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("array", ARRAYS.values(), ids=ARRAYS)
def test_every_librarys_array_is_converted_to_every_backends(names, backend, array):
    device = "device='device2'" if backend == "strict" else ""
    make = f"rnn = rnncore.RNN(3, 3, backend={backend!r}, dtype='float32', {device})"
    run(f"{make}\nx = {array}", names)
    own = type(names["x"]) is type(rnncore.get_backend(backend).asarray([1.0]))
    if own and getattr(names["x"], "dtype", None) == names["rnn"].dtype and not device:
        pytest.skip("it is an array of this backend and dtype: there is nothing to convert")
    follow(names, "rnn(x)", CONVERT, "rnn({code})")


@pytest.mark.parametrize("meant", MEANT)
def test_the_name_that_is_suggested_is_the_one_that_was_meant(names, meant):
    with pytest.raises(rnncore.RnncoreError, match=f"[dD]id you mean '{meant}'\\?"):
        run(MEANT[meant], names)


def test_the_extras_of_the_commands_that_install_a_library_exist():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for name, claim in State().scan.claims.items():
        command = claim.install_command("a_package")
        if name != "numpy" and claim.ours:  # NumPy is always there
            assert re.fullmatch(r'pip install "rnncore\[(\w+)\]"', command)[1] in extras
    named = {
        extra
        for folder in ("rnncore", "backends")
        for path in (ROOT / folder).rglob("*.py")
        for extra in re.findall(r'pip install \\?"rnncore\[(\w+)\]', path.read_text())
    }
    assert named and named <= set(extras)
