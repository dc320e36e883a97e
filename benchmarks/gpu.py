"""Time and memory of a vanilla RNN on a GPU: rnncore's kernels against cuDNN, JAX's lax.scan and a plain loop of CuPy calls.

``python benchmarks/gpu.py LIBRARY`` measures one library in this process and prints one JSON line for each shape and pass;
scripts/gpu-check runs all of them, in rounds. The same numbers go in everywhere: x and the weights from one seed, a matrix of
spectral radius about 1; and the same come out: every state, and the gradients of x, the first state and all weights. Products
are full float32 everywhere (TF32 off). Times are CUDA's events where the library has them, else the clock of the host; the
median of the repeats, after warming up.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

# T, B, H; the input is as wide as the state.
SHAPES = (
    (256, 1, 64),
    (1024, 1, 16),
    (128, 32, 128),
    (100, 16, 256),
    (4096, 16, 256),
    (512, 64, 320),
    (512, 64, 384),
    (512, 16, 512),
    (512, 64, 512),
    (50, 1024, 512),
    (512, 64, 768),
    (512, 64, 1024),
    (256, 64, 2048),
    (256, 1, 2048),
)
QUICK = ((7, 3, 5), (4, 2, 9))
LIBRARIES = ("rnncore_cupy", "rnncore_torch", "torch_cudnn", "jax_scan", "cupy_loop")
WARM_UP, REPEATS = 3, 10
CHECKED_STEPS = 16  # what is compared with the float64 reference: beyond that the host would take longer than the GPU

Numbers = dict[str, np.ndarray[Any, Any]]
Call = Callable[[], Any]


class Library:
    """What is measured: calls that queue the work, and the clock and the memory of their library."""

    clock = "CUDA events"

    def place(self, numbers: Numbers) -> None:
        """Take the numbers to the device, and be ready."""
        raise NotImplementedError

    def forward(self) -> Any:
        """All states, (T, B, H)."""
        raise NotImplementedError

    def both(self) -> Any:
        """All states, and gradients of everything for a cotangent of ones."""
        raise NotImplementedError

    def host(self, x: Any) -> np.ndarray[Any, Any]:
        """An array's numbers."""
        raise NotImplementedError

    def milliseconds(self, call: Call) -> float:
        """How long one call takes from its first to its last kernel."""
        raise NotImplementedError

    def peak(self, call: Call) -> int | None:
        """The most bytes that a call has at once beyond what was there before it; None where the library cannot tell."""
        raise NotImplementedError

    def besides(self, call: Call, repeats: int) -> dict[str, Any]:
        """What a record of a call has besides: nothing, but where a library has another way to the same."""
        return {}


def numbers(steps: int, batch: int, width: int, seed: int = 0) -> Numbers:
    """Inputs and weights in float32."""
    rng = np.random.default_rng(seed)

    def draw(*shape: int, scale: float = 1.0) -> np.ndarray[Any, Any]:
        return (scale * rng.standard_normal(shape)).astype("float32")

    return {
        "x": draw(steps, batch, width),
        "h0": draw(batch, width),
        "weight_ih_l0": draw(width, width, scale=width**-0.5),
        "weight_hh_l0": draw(width, width, scale=width**-0.5),
        "bias_ih_l0": draw(width),
        "bias_hh_l0": draw(width),
    }


def measured(library: Library, shapes: Any, repeats: int = REPEATS) -> Iterator[dict[str, Any]]:
    """A record for each shape and pass."""
    for steps, batch, width in shapes:
        short = numbers(min(steps, CHECKED_STEPS), batch, width)
        library.place(short)
        error = float(np.abs(library.host(library.forward()) - truth(short)).max())
        library.place(numbers(steps, batch, width))
        for name, call in (("forward", library.forward), ("forward and backward", library.both)):
            for _ in range(WARM_UP):
                library.milliseconds(call)
            times = [library.milliseconds(call) for _ in range(repeats)]
            yield {
                "shape": [steps, batch, width],
                "pass": name,
                "ms": statistics.median(times),
                "least_ms": min(times),
                "peak_bytes": library.peak(call),
                "error": error,
                "clock": library.clock,
                **library.besides(call, repeats),
            }


def truth(given: Numbers) -> np.ndarray[Any, Any]:
    """All states in float64 on the host."""
    import rnncore

    steps, _, width = given["x"].shape
    rnn = rnncore.RNN(width, width, backend="numpy", dtype="float64")
    rnn.load_state_dict({k: v.astype("float64") for k, v in given.items() if k.startswith(("weight", "bias"))})
    output: np.ndarray[Any, Any] = rnn(given["x"].astype("float64"), given["h0"].astype("float64")[None])[0]
    return output.reshape(steps, -1, width)


# --- the libraries -------------------------------------------------------------------------------------------------------


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
        return output, pullback(self.ones)


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
        return states, d_ih, d_hh, d_b, d_h, cupy.stack(d_x[::-1])


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
        return output, self.torch.autograd.grad(output, (self.x, self.h0, *self.rnn.parameters()), self.ones)

    def host(self, x: Any) -> np.ndarray[Any, Any]:
        host: np.ndarray[Any, Any] = x.detach().cpu().numpy()
        return host

    def milliseconds(self, call: Call) -> float:
        if not self.on_gpu:
            return _clocked(call, lambda made: None)
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
    """This library's drop-in for it, as its rule has it; and on a GPU by PyTorch's operations, by which the rule is set."""

    def network(self, width: int) -> Any:
        return importlib.import_module("rnncore_torch.nn").RNN(width, width).to(self.device)

    def besides(self, call: Call, repeats: int) -> dict[str, Any]:
        if not self.on_gpu:
            return {}
        cuda = importlib.import_module("rnncore_torch._cuda")
        steps, batch, _ = self.x.shape
        told = str(self.rnn.explain(steps=steps, batch=batch))
        before = os.environ.get(cuda.SETTING)
        os.environ[cuda.SETTING] = cuda.PYTORCH
        try:
            self.milliseconds(call)
            times = [self.milliseconds(call) for _ in range(repeats)]
        finally:
            if before is None:
                del os.environ[cuda.SETTING]
            else:
                os.environ[cuda.SETTING] = before
        return {"runs": told, "pytorch_ms": statistics.median(times)}


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
        return self.gradients(self.n)

    def host(self, x: Any) -> np.ndarray[Any, Any]:
        return np.asarray(x)

    def milliseconds(self, call: Call) -> float:
        return _clocked(call, self.jax.block_until_ready)

    def peak(self, call: Call) -> None:
        """None: JAX's peak is one of the whole process and cannot be reset."""


def _clocked(call: Call, wait: Callable[[Any], Any]) -> float:
    start = time.perf_counter()
    wait(call())
    return 1000 * (time.perf_counter() - start)


MAKE: dict[str, Callable[[str], Library]] = {
    "rnncore_cupy": _RnncoreCupy,
    "rnncore_torch": _RnncoreTorch,
    "torch_cudnn": _TorchCudnn,
    "jax_scan": _JaxScan,
    "cupy_loop": _CupyLoop,
}


def main(arguments: list[str] | None = None) -> None:
    """Measure one library."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("library", choices=LIBRARIES)
    parser.add_argument("--device", default="cuda", help="for PyTorch; the others take their own default")
    parser.add_argument("--quick", action="store_true", help="two tiny shapes, to see that it runs")
    options = parser.parse_args(arguments)
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    os.environ["CUPY_TF32"] = "0"
    shapes, repeats = (QUICK, 3) if options.quick else (SHAPES, REPEATS)
    for record in measured(MAKE[options.library](options.device), shapes, repeats):
        print(json.dumps({"library": options.library, **record}), flush=True)


if __name__ == "__main__":
    main()
