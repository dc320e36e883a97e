"""How ``python -m benchmarks.gpu`` times PyTorch's tensors, run on the stand-in for CuPy."""

from __future__ import annotations

from tests.tools.cuda_stand_in import stand_in
from tests.tools.fake_cupy import on_fake_cupy


@on_fake_cupy()
def test_the_benchmark_times_every_way_to_run_pytorchs_tensors():
    import os

    from rnncore_torch import _cuda, nn

    from benchmarks.case import Case, make
    from benchmarks.gpu import measure
    from benchmarks.peers import torch_rnn

    told = stand_in()
    nn.RNN.explain = lambda self, **shape: ""  # which asks the weights for their device
    prepared = torch_rnn.ours(make(Case(9, 2, 5)))
    launched = {}
    for name in (measure.DROP_IN, measure.KERNELS, measure.OPERATIONS):
        os.environ[_cuda.SETTING] = dict(measure.PEERS[name].env)[_cuda.SETTING]
        told.clear()
        prepared.both()
        launched[name] = len(told.launches)
    assert launched == {measure.DROP_IN: 2, measure.KERNELS: 2, measure.OPERATIONS: 0}
