"""rnncore_torch.nn trained by several processes: DistributedDataParallel and sharded weights, with the losses of torch.nn."""

from datetime import timedelta

import pytest
import torch
from rnncore_torch import nn

from tests.tools.process import PATIENCE
from tests.tools.rounding import PROMISED, agree

INPUT, HIDDEN, STEPS, BATCH = 3, 4, 5, 4
RANKS, UPDATES = 2, 3
WAYS = ("data parallel", "each module sharded", "the root sharded")


class Classifier(torch.nn.Module):
    def __init__(self, kind):
        super().__init__()
        self.rnn = kind(INPUT, HIDDEN, 2, bidirectional=True, dtype=torch.float64)
        self.head = torch.nn.Linear(2 * HIDDEN, 2, dtype=torch.float64)

    def forward(self, x):
        return self.head(self.rnn(x)[0][-1])


def made(kind):
    torch.manual_seed(0)
    return Classifier(kind), torch.randn(STEPS, BATCH, INPUT, dtype=torch.float64)


def distributed(model, way):
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    if way == "data parallel":
        return torch.nn.parallel.DistributedDataParallel(model)
    mesh = init_device_mesh("cpu", (RANKS,))
    if way == "each module sharded":
        fully_shard(model.rnn, mesh=mesh)
        fully_shard(model.head, mesh=mesh)
    fully_shard(model, mesh=mesh)
    return model


def losses(model, x):
    optimiser = torch.optim.SGD(model.parameters(), lr=0.1)
    found = []
    for _ in range(UPDATES):
        optimiser.zero_grad()
        loss = model(x).square().mean()
        loss.backward()
        optimiser.step()
        found.append(float(loss.detach()))
    return found


def _worker(rank, path, results):
    import torch.distributed as dist

    torch.set_num_threads(1)
    store = dist.FileStore(path, RANKS)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=RANKS, timeout=timedelta(seconds=PATIENCE))
    try:
        for way in WAYS:
            model, x = made(nn.RNN)
            results[way, rank] = losses(distributed(model, way), x[:, rank::RANKS])
    finally:
        dist.destroy_process_group()


@pytest.mark.slow
def test_two_processes_train_as_one_does_with_torchs_module(tmp_path):
    """The mean loss of both halves of a batch is the loss of the whole, so the updates are those of one process."""
    with torch.multiprocessing.get_context("spawn").Manager() as manager:
        results = manager.dict()
        torch.multiprocessing.spawn(_worker, args=(str(tmp_path / "store"), results), nprocs=RANKS)
        found = dict(results)
    want = losses(*made(torch.nn.RNN))
    for way in WAYS:
        got = [sum(each) / RANKS for each in zip(*(found[way, rank] for rank in range(RANKS)), strict=True)]
        agree(got, want, UPDATES * PROMISED, way)  # each update rounds as a gradient does


@pytest.mark.parametrize("bidirectional", [False, True])
def test_the_memory_of_weights_and_of_the_output_can_be_given_back(bidirectional):
    """Sharding empties the memory of weights between uses, and fills it again; some trainers do so with outputs."""
    rnn = nn.RNN(INPUT, HIDDEN, 2, bidirectional=bidirectional)
    x = torch.randn(STEPS, BATCH, INPUT)
    with torch.no_grad():
        rnn(x)
    output, _ = rnn(x.requires_grad_())
    output.sum().backward()
    for held in (x, output, *rnn.parameters()):
        held.untyped_storage().resize_(0)
