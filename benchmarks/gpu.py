"""Time and memory of a vanilla RNN on a GPU: rnncore's kernels against cuDNN, JAX's lax.scan and a plain loop of CuPy calls.

``python -m benchmarks.gpu LIBRARY`` measures one library in this process and prints one JSON line for each shape and pass;
scripts/gpu-check runs all of them, in rounds. The same numbers go in everywhere: x and the weights from one seed, a matrix of
spectral radius about 1; and the same come out: every state, and the gradients of x, the first state and all weights. Before
anything is timed, both are held against float64. Products are full float32 everywhere (TF32 off). Times are CUDA's events
where the library has them, else the clock of the host; the median of the repeats, after warming up. Where a shape fails, its
line has the fault, and the next has its turn.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
from collections.abc import Iterator
from typing import Any

import numpy as np

from benchmarks.gpu_libraries import MAKE
from benchmarks.gpu_library import Library, Numbers, times_of

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
REPEATS = 10
# What is compared with the float64 reference: so many steps, and fewer of wide networks, as far as so many multiplications go,
# beyond which the host would take longer than the GPU. Which kernel runs is a matter of batch and width alone.
CHECKED_STEPS, FEWEST_CHECKED, CHECKED_PRODUCTS = 16, 2, 2**29
# Of float32's own, and by whatever variable a user has: none of NVIDIA's libraries rounds the inputs of a product.
FULL_FLOAT32 = {"NVIDIA_TF32_OVERRIDE": "0", "CUPY_TF32": "0"}


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
    """A record for each shape and pass; or one for a shape that failed, with its fault."""
    for steps, batch, width in shapes:
        try:
            yield from _of_shape(library, steps, batch, width, repeats)
        except Exception as error:  # a shape that has no room, say, is no reason to leave the others out
            yield {"shape": [steps, batch, width], "fault": " ".join(f"{type(error).__name__}: {error}".split())}


def _of_shape(library: Library, steps: int, batch: int, width: int, repeats: int) -> Iterator[dict[str, Any]]:
    affordable = max(FEWEST_CHECKED, CHECKED_PRODUCTS // (batch * width * width))
    short = numbers(min(steps, CHECKED_STEPS, affordable), batch, width)
    library.place(short)
    output, gradients = library.both()
    right, right_gradients = truth(short)
    states = [_apart(library.host(out), right) for out in (output, library.forward())]
    relative = [_apart(library.host(gradients[k]), g) / float(np.abs(g).max()) for k, g in right_gradients.items()]
    errors = {"error": _worst(states), "gradient_error": _worst(relative)}
    del output, gradients
    library.place(numbers(steps, batch, width))
    for name, call in (("forward", library.forward), ("forward and backward", library.both)):
        times = times_of(library, call, repeats)
        yield {
            "shape": [steps, batch, width],
            "pass": name,
            "ms": statistics.median(times),
            "least_ms": min(times),
            "most_ms": max(times),
            "repeats": len(times),
            "peak_bytes": library.peak(call),
            **errors,
            "clock": library.clock,
            **library.besides(call, repeats),
        }


def truth(given: Numbers) -> tuple[np.ndarray[Any, Any], Numbers]:
    """All states and all gradients in float64 on the host."""
    import rnncore

    width = given["x"].shape[-1]
    rnn = rnncore.RNN(width, width, backend="numpy", dtype="float64")
    rnn.load_state_dict({k: v.astype("float64") for k, v in given.items() if k.startswith(("weight", "bias"))})
    output, _, pullback = rnn.vjp(given["x"].astype("float64"), given["h0"].astype("float64")[None])
    found = pullback(np.ones_like(output))
    return output, {**found.params, "x": found.x, "h0": found.h0}


def _apart(found: np.ndarray[Any, Any], right: np.ndarray[Any, Any]) -> float:
    """The largest difference; NaN where there is one."""
    return float(np.abs(found.reshape(right.shape) - right).max())


def _worst(errors: list[float]) -> float | None:
    """The largest; None if one is NaN or infinite, which JSON has not."""
    return max(errors) if all(map(math.isfinite, errors)) else None


def main(arguments: list[str] | None = None) -> None:
    """Measure one library."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("library", choices=tuple(MAKE))
    parser.add_argument("--device", default="cuda", help="for PyTorch; the others take their own default")
    parser.add_argument("--quick", action="store_true", help="two tiny shapes, to see that it runs")
    options = parser.parse_args(arguments)
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    os.environ.update(FULL_FLOAT32)
    shapes, repeats = (QUICK, 3) if options.quick else (SHAPES, REPEATS)
    for record in measured(MAKE[options.library](options.device), shapes, repeats):
        print(json.dumps({"library": options.library, **record}), flush=True)


if __name__ == "__main__":
    main()
