"""What is measured on a GPU runs and computes the same: on the CPU, and on the stand-in for CuPy."""

from __future__ import annotations

import os

import pytest

from benchmarks.gpu import measure
from benchmarks.peers import Peer
from benchmarks.pool import Pool
from benchmarks.rounds import Numbers
from tests.tools.fake_cupy import python
from tests.tools.places import DOUBLES, FAKE, ROOT


def on_cpu(tmp_path, names):
    path = {"PYTHONPATH": os.pathsep.join([str(FAKE), str(DOUBLES), os.environ.get("PYTHONPATH", "")])}
    extra = {"JAX_PLATFORMS": "cpu", "RNNCORE_FAKE_CUPY": "1", **path}
    timed = {"rnncore_cupy": "stub_peers:rnncore_cupy", "cupy_loop": "stub_peers:cupy_loop"}
    known = {
        n: Peer(n, timed.get(n, p.factory), p.ours, env={**dict(p.env), **extra}) for n, p in measure.PEERS.items()
    }
    with Pool(known) as pool:
        return measure.of_shape(pool, names, (20, 3, 5), Numbers(tmp_path), rounds=2, device="cpu")


@pytest.mark.slow
def test_every_library_is_checked_on_its_first_steps_and_timed(tmp_path):
    names = ["rnncore_cupy", "rnncore_torch", "torch_cudnn", "jax_scan", "operations", "cupy_loop"]
    entry = on_cpu(tmp_path, names)
    assert entry["kind"] == {} and entry["case"]["steps"] == 20
    assert all(row[0] > 0 and row[1] > 0 and row[-1] < measure.ERROR for row in entry["peers"].values())
    assert "block_scan<float" in entry["about"]["rnncore_cupy"]
    assert all(len(rounds) == 2 for of in ("forward", "both") for rounds in entry["ratios"][of])


def test_what_runs_is_what_the_libraries_that_see_a_gpu_can():
    assert measure.able(["torch"]) == ["rnncore_torch", "torch_cudnn", "operations"]
    assert set(measure.able(["cupy", "torch", "jax"])) == set(measure.PEERS)
    assert {dict(p.env)["RNNCORE_TORCH_CUDA"] for p in measure.PEERS.values()} == {"rule", "kernels", "pytorch"}


@pytest.mark.parametrize(
    ("shape", "of", "goal"), [((1, 1, 64), "both", 1), ((1, 64, 512), "both", 2), ((1, 99, 512), "both", 0.95)]
)
def test_the_goal_against_cudnn_depends_on_the_shape(shape, of, goal):
    assert measure.goal(shape, of, measure.CUDNN) == goal and measure.goal(shape, of, "cupy_loop") == 5


def test_no_product_is_rounded():
    code = """
import torch
from benchmarks.case import Case, make
from benchmarks.peers import torch_rnn
torch_rnn.theirs(make(Case(2, 1, 3)))
b = torch.backends
assert not b.cudnn.allow_tf32 and not b.cuda.matmul.allow_tf32
for part in (b.cudnn.rnn, b.cudnn.conv, b.cuda.matmul):
    assert getattr(part, "fp32_precision", "ieee") in ("ieee", "none"), part
"""
    python(code, PYTHONPATH=os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]))
    assert all(
        (dict(p.env)["NVIDIA_TF32_OVERRIDE"], dict(p.env)["CUPY_TF32"]) == ("0", "0") for p in measure.PEERS.values()
    )
