"""rnncore's own models on each backend, called as a user of that library would."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from typing import Any

import rnncore
from benchmarks.case import Numbers, Problem
from benchmarks.peers import Prepared, cuda

Run = Callable[..., Any]


def numpy(problem: Problem, checkpoint: bool = False) -> Prepared:
    """NumPy's scans."""
    return _prepared(problem, "numpy", checkpoint=checkpoint)


def numba(problem: Problem, checkpoint: bool = False) -> Prepared:
    """Compiled scans."""
    return _prepared(problem, "numba", checkpoint=checkpoint)


def torch(problem: Problem, checkpoint: bool = False) -> Prepared:
    """``rnn.vjp`` and its pullback without autograd; the drop-in module is measured with it, beside torch.nn.RNN."""
    library: Any = importlib.import_module("torch")
    library.set_num_threads(problem.case.threads)
    return _prepared(problem, "torch", scope=library.inference_mode, checkpoint=checkpoint)


numpy_checkpoint = partial(numpy, checkpoint=True)
numba_checkpoint = partial(numba, checkpoint=True)
torch_checkpoint = partial(torch, checkpoint=True)


def mlx(problem: Problem) -> Prepared:
    """Without compilation, which would unroll the loop over all steps."""
    library: Any = importlib.import_module("mlx.core")

    def finish(found: Any) -> Any:
        library.eval(found)
        return found

    return _prepared(problem, "mlx", finish=finish)


def cupy(problem: Problem) -> Prepared:
    """CuPy's kernels on a GPU; running the reference instead would be an error."""
    return cuda.prepared(_prepared(problem, "cupy", kernel="require"), "cupy")


def jax(problem: Problem) -> Prepared:
    """The whole call under one jit, with the model as an argument."""
    library: Any = importlib.import_module("jax")
    library.config.update("jax_enable_x64", problem.case.dtype == "float64")
    return _prepared(problem, "jax", compiled=library.jit, finish=library.block_until_ready)


def _prepared(
    problem: Problem,
    backend: str,
    *,
    checkpoint: bool = False,
    compiled: Callable[[Run], Run] = lambda run: run,
    finish: Callable[[Any], Any] = lambda found: found,
    scope: Callable[[], Any] = nullcontext,
    kernel: Any = "auto",
) -> Prepared:
    case = problem.case
    plugin = rnncore.get_backend(backend)
    spec = rnncore.RNNSpec.make(case.width, case.width, case.layers, case.nonlinearity, True, False, 0.0, False)
    model = rnncore.RNN.from_spec(spec, problem.params, backend=backend, dtype=case.dtype, kernel=kernel)
    x, h0, d_output, d_h_n = (
        plugin.asarray(v, dtype=model.dtype, device=model.device)
        for v in (problem.x, problem.h0, problem.d_output, problem.d_h_n)
    )

    def run(rnn: Any, x: Any, h0: Any) -> Any:
        output, h_n = rnn(x, h0)
        return {"output": output, "h_n": h_n}

    def run_back(rnn: Any, x: Any, h0: Any, d_output: Any, d_h_n: Any) -> Any:
        output, h_n, pullback = rnn.vjp(x, h0, checkpoint=checkpoint)
        found = pullback(d_output, d_h_n)
        return {"output": output, "h_n": h_n, "x": found.x, "h0": found.h0, **found.params}

    once, back = compiled(run), compiled(run_back)

    def forward() -> Any:
        with scope():
            return finish(once(model, x, h0))

    def read(found: Any) -> Numbers:
        return {n: plugin.to_numpy(v) for n, v in found.items()}

    about = str(model.explain(steps=case.steps, batch=case.batch))
    return Prepared(forward, lambda: finish(back(model, x, h0, d_output, d_h_n)), read, about)
