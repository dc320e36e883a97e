"""The libraries that benchmarks/gpu.py measures: the same network in each, with the same numbers."""

from __future__ import annotations

import importlib
import os
import statistics
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from benchmarks.gpu_library import Call, Library, Numbers, clocked, times_of

__all__ = ["MAKE"]


class _Cupy(Library):
    def __init__(self, device: str) -> None:
        self.cupy: Any = importlib.import_module("cupy")

    def host(self, x: Any) -> np.ndarray[Any, Any]:
        host: np.ndarray[Any, Any] = x.get()
        return host

    def milliseconds(self, call: Call) -> float:
        start, end = self.cupy.cuda.Event(), self.cupy.cuda.Event()
        self.cupy.cuda.Device().synchronize()
        start.record()
        call()
        end.record()
        end.synchronize()
        return float(self.cupy.cuda.get_elapsed_time(start, end))

    def peak(self, call: Call) -> int:
        cupy = self.cupy

        class Held(cupy.cuda.MemoryHook):  # type: ignore[misc, name-defined]
            name = "Held"
            now = most = 0

            def malloc_postprocess(self, **told: Any) -> None:
                self.now += told["mem_size"]
                self.most = max(self.most, self.now)

            def free_postprocess(self, **told: Any) -> None:
                self.now -= told["mem_size"]

        with Held() as held:
            call()
        return int(held.most)


class _RnncoreCupy(_Cupy):
    """This library's kernels, and nothing else: the reference would be an error."""

    def place(self, numbers: Numbers) -> None:
        import rnncore

        width = numbers["x"].shape[-1]
        self.rnn = rnncore.RNN(width, width, backend="cupy", dtype="float32", kernel="require")
        self.rnn.load_state_dict({k: v for k, v in numbers.items() if k.startswith(("weight", "bias"))})
        self.x, self.h0 = self.cupy.asarray(numbers["x"]), self.cupy.asarray(numbers["h0"][None])
        self.ones = self.cupy.ones(numbers["x"].shape, dtype="float32")

    def forward(self) -> Any:
        return self.rnn(self.x, self.h0)[0]

    def both(self) -> Any:
        output, _, pullback = self.rnn.vjp(self.x, self.h0)
        gradients = pullback(self.ones)
        return output, {**gradients.params, "x": gradients.x, "h0": gradients.h0}

    def besides(self, call: Call, repeats: int) -> dict[str, Any]:
        steps, batch, _ = self.x.shape
        return {"runs": str(self.rnn.explain(steps=steps, batch=batch))}


class _CupyLoop(_Cupy):
    """What one writes first: CuPy calls, step by step."""

    def place(self, numbers: Numbers) -> None:
        self.n = {k: self.cupy.asarray(v) for k, v in numbers.items()}

    def forward(self) -> Any:
        n, tanh = self.n, self.cupy.tanh
        h, states = n["h0"], []
        for x_t in n["x"]:
            h = tanh(x_t @ n["weight_ih_l0"].T + n["bias_ih_l0"] + h @ n["weight_hh_l0"].T + n["bias_hh_l0"])
            states.append(h)
        return self.cupy.stack(states)

    def both(self) -> Any:
        n, cupy = self.n, self.cupy
        states = self.forward()
        d_ih, d_hh = cupy.zeros_like(n["weight_ih_l0"]), cupy.zeros_like(n["weight_hh_l0"])
        d_b, d_h = cupy.zeros_like(n["bias_ih_l0"]), cupy.zeros_like(n["h0"])
        d_x = []
        for t in range(len(states) - 1, -1, -1):
            delta = (1 + d_h) * (1 - states[t] ** 2)
            d_ih += delta.T @ n["x"][t]
            d_hh += delta.T @ (states[t - 1] if t else n["h0"])
            d_b += delta.sum(axis=0)
            d_x.append(delta @ n["weight_ih_l0"])
            d_h = delta @ n["weight_hh_l0"]
        weights = {"weight_ih_l0": d_ih, "weight_hh_l0": d_hh, "bias_ih_l0": d_b, "bias_hh_l0": d_b}
        return states, {**weights, "h0": d_h, "x": cupy.stack(d_x[::-1])}


class _Torch(Library):
    def __init__(self, device: str) -> None:
        self.torch: Any = importlib.import_module("torch")
        self.device = device
        self.torch.backends.cudnn.allow_tf32 = False
        self.torch.backends.cuda.matmul.allow_tf32 = False
        self.on_gpu = device.startswith("cuda")
        self.clock = Library.clock if self.on_gpu else "the host's clock"

    def place(self, numbers: Numbers) -> None:
        torch, width = self.torch, numbers["x"].shape[-1]
        self.rnn = self.network(width)
        weights = {k: torch.from_numpy(v) for k, v in numbers.items() if k.startswith(("weight", "bias"))}
        self.rnn.load_state_dict(weights)
        self.x = torch.from_numpy(numbers["x"]).to(self.device).requires_grad_()
        self.h0 = torch.from_numpy(numbers["h0"][None]).to(self.device).requires_grad_()
        self.ones = torch.ones_like(self.x)

    def network(self, width: int) -> Any:
        raise NotImplementedError

    def forward(self) -> Any:
        with self.torch.inference_mode():
            return self.rnn(self.x, self.h0)[0]

    def both(self) -> Any:
        output = self.rnn(self.x, self.h0)[0]
        given = {**dict(self.rnn.named_parameters()), "x": self.x, "h0": self.h0}
        gradients = self.torch.autograd.grad(output, tuple(given.values()), self.ones)
        return output, dict(zip(given, gradients, strict=True))

    def host(self, x: Any) -> np.ndarray[Any, Any]:
        host: np.ndarray[Any, Any] = x.detach().cpu().numpy()
        return host

    def milliseconds(self, call: Call) -> float:
        if not self.on_gpu:
            return clocked(call, lambda made: None)
        cuda = self.torch.cuda
        start, end = (cuda.Event(enable_timing=True) for _ in range(2))
        cuda.synchronize()
        start.record()
        call()
        end.record()
        end.synchronize()
        return float(start.elapsed_time(end))

    def peak(self, call: Call) -> int | None:
        if not self.on_gpu:
            return None
        cuda = self.torch.cuda
        cuda.synchronize()
        before = cuda.memory_allocated()
        cuda.reset_peak_memory_stats()
        call()
        cuda.synchronize()
        return int(cuda.max_memory_allocated() - before)


class _TorchCudnn(_Torch):
    """torch.nn.RNN, which is cuDNN's."""

    def network(self, width: int) -> Any:
        return self.torch.nn.RNN(width, width).to(self.device)


class _RnncoreTorch(_Torch):
    """This library's drop-in for it, as its rule has it; and on a GPU both ways that the rule chooses between."""

    def network(self, width: int) -> Any:
        return importlib.import_module("rnncore_torch.nn").RNN(width, width).to(self.device)

    def besides(self, call: Call, repeats: int) -> dict[str, Any]:
        if not self.on_gpu:
            return {}
        cuda = importlib.import_module("rnncore_torch._cuda")
        steps, batch, _ = self.x.shape
        told = str(self.rnn.explain(steps=steps, batch=batch))
        found: dict[str, Any] = {"runs": told}
        for way, name in ((cuda.PYTORCH, "pytorch_ms"), (cuda.KERNELS, "kernels_ms")):
            with _environment(cuda.SETTING, way):
                if way == cuda.KERNELS and "the kernel of" not in str(self.rnn.explain(steps=steps, batch=batch)):
                    continue  # no CuPy: the times would be PyTorch's operations' again
                found[name] = statistics.median(times_of(self, call, repeats))
        return found


class _JaxScan(Library):
    """lax.scan with the input's product taken out of the loop, compiled; jax.grad for the gradients."""

    clock = "the host's clock"

    def __init__(self, device: str) -> None:
        self.jax: Any = importlib.import_module("jax")
        self.jax.config.update("jax_default_matmul_precision", "highest")
        jax, jnp = self.jax, self.jax.numpy

        def states(n: Any) -> Any:
            p = n["x"] @ n["weight_ih_l0"].T + n["bias_ih_l0"] + n["bias_hh_l0"]

            def step(h: Any, p_t: Any) -> Any:
                h = jnp.tanh(p_t + h @ n["weight_hh_l0"].T)
                return h, h

            return jax.lax.scan(step, n["h0"], p)[1]

        def summed(n: Any) -> Any:
            output = states(n)
            return output.sum(), output

        self.states, self.gradients = jax.jit(states), jax.jit(jax.grad(summed, has_aux=True))

    def place(self, numbers: Numbers) -> None:
        self.n = self.jax.device_put(numbers)

    def forward(self) -> Any:
        return self.states(self.n)

    def both(self) -> Any:
        gradients, output = self.gradients(self.n)
        return output, gradients

    def host(self, x: Any) -> np.ndarray[Any, Any]:
        return np.asarray(x)

    def milliseconds(self, call: Call) -> float:
        return clocked(call, self.jax.block_until_ready)

    def peak(self, call: Call) -> None:
        """None: JAX's peak is one of the whole process and cannot be reset."""


@contextmanager
def _environment(name: str, value: str) -> Iterator[None]:
    before = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


MAKE: dict[str, Callable[[str], Library]] = {
    "rnncore_cupy": _RnncoreCupy,
    "rnncore_torch": _RnncoreTorch,
    "torch_cudnn": _TorchCudnn,
    "jax_scan": _JaxScan,
    "cupy_loop": _CupyLoop,
}
