"""torch.nn.RNN and rnncore_torch.nn.RNN by the same code: inference in eval mode, and both passes of a training step."""

from __future__ import annotations

import importlib
from typing import Any

from benchmarks.case import Numbers, Problem
from benchmarks.peers import Prepared, cuda


def theirs(problem: Problem) -> Prepared:
    """PyTorch's own module."""
    torch: Any = importlib.import_module("torch")
    return _prepared(problem, torch.nn.RNN)


def ours(problem: Problem) -> Prepared:
    """The drop-in."""
    nn: Any = importlib.import_module("rnncore_torch.nn")
    return _prepared(problem, nn.RNN)


def _prepared(problem: Problem, module: Any) -> Prepared:
    torch: Any = importlib.import_module("torch")
    case = problem.case
    torch.set_num_threads(case.threads)
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    rnn = module(case.width, case.width, case.layers, nonlinearity=case.nonlinearity, dtype=getattr(torch, case.dtype))
    rnn.load_state_dict({n: torch.from_numpy(v.copy()) for n, v in problem.params.items()})
    rnn.to(case.device)
    x, h0, d_output, d_h_n = (
        torch.tensor(v, device=case.device) for v in (problem.x, problem.h0, problem.d_output, problem.d_h_n)
    )
    x_leaf, h0_leaf = x.clone().requires_grad_(), h0.clone().requires_grad_()
    names = [n for n, _ in rnn.named_parameters()]
    leaves = [x_leaf, h0_leaf, *rnn.parameters()]

    def forward() -> Any:
        rnn.eval()
        with torch.inference_mode():
            output, h_n = rnn(x, h0)
        return {"output": output, "h_n": h_n}

    def both() -> Any:
        rnn.train()
        output, h_n = rnn(x_leaf, h0_leaf)
        grads = torch.autograd.grad((output, h_n), leaves, (d_output, d_h_n))
        return {"output": output, "h_n": h_n, **dict(zip(["x", "h0", *names], grads, strict=True))}

    def read(found: Any) -> Numbers:
        return {n: v.detach().cpu().numpy() for n, v in found.items()}

    about = str(rnn.explain(steps=case.steps, batch=case.batch)) if hasattr(rnn, "explain") else ""
    made = Prepared(forward, both, read, about)
    return made if case.device == "cpu" else cuda.prepared(made, "torch")
