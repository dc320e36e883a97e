"""Peak memory of forward and backward, each in a process of its own: at most half of torch.nn.RNN's on NumPy."""

import subprocess
import sys
import textwrap

import pytest

pytestmark = pytest.mark.slow

SHAPE = "T, B, I, H = 2048, 32, 256, 256"
PEAK = """
for line in open("/proc/self/status"):
    if line.startswith("VmHWM"):
        print(int(line.split()[1]) * 1024)
"""
OURS = """
import numpy as np, rnncore
rnn = rnncore.RNN(I, H, {layers}, dtype="float32", rng=0)
x = np.random.default_rng(0).standard_normal((T, B, I), dtype="float32")
d_output = np.random.default_rng(1).standard_normal((T, B, H), dtype="float32")
output, h_n, pullback = rnn.vjp(x{options})
grads = pullback(d_output)
assert grads.x.shape == x.shape
"""
PEER = """
import torch
torch.manual_seed(0)
rnn = torch.nn.RNN(I, H)
x = torch.randn(T, B, I, requires_grad=True)
d_output = torch.randn(T, B, H)
output, h_n = rnn(x)
output.backward(d_output)
assert x.grad.shape == x.shape
"""


def peak(code):
    code = "\n".join([SHAPE, textwrap.dedent(code), PEAK])
    return int(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)


linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the peak is read from /proc")


@linux
def test_forward_and_vjp_on_numpy_take_at_most_half_of_torchs_memory(record_property):
    ours, peer = peak(OURS.format(layers=1, options="")), peak(PEER)
    record_property("ours", ours)
    record_property("torch", peer)
    assert ours <= peer / 2, f"{ours / 2**20:.0f} MiB against torch's {peer / 2**20:.0f} MiB"


@linux
def test_checkpointing_holds_the_states_of_no_layer(record_property):
    """x, output and their gradients are there in any case; of three layers' states the plain pullback holds all."""
    state = 2048 * 32 * 256 * 4
    plain = peak(OURS.format(layers=3, options=""))
    checkpointed = peak(OURS.format(layers=3, options=", checkpoint=True"))
    record_property("plain", plain)
    record_property("checkpointed", checkpointed)
    assert plain - checkpointed > 1.5 * state
