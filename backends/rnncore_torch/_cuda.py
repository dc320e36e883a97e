"""Run scans of CUDA tensors on the kernels of the CuPy backend, in one memory and on one stream, by the rule below.

A CUDA tensor is handed over by DLPack without a copy, the kernels are queued on PyTorch's current stream of its device, and
the result is a tensor in memory of PyTorch's own allocator. Nothing waits, and nothing passes to the host. The backend is
looked up by name at the first CUDA tensor; where it cannot be used, PyTorch's operations run.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.utils import dlpack

from rnncore import backends, get_backend
from rnncore.backend.abilities import abilities_of
from rnncore.backend.contract import ScanRequest, Scans
from rnncore.errors import ArgumentValueError, BackendUnavailableError
from rnncore.nonlinearity.nonlinearity import Nonlinearity

__all__ = ["SETTING", "index_of", "ruled", "run", "scans_for", "setting"]

# --- the rule: not measured on a GPU yet; `python -m benchmarks.gpu` prints times to set it by ---------------------------
# The kernels that run all steps in one launch. The backend's third way, a product and a kernel for each step, is the same work
# as PyTorch's operations, which follow PyTorch's setting of TF32.
PERSISTENT = ("block_scan<", "grid_scan<")
# Estimates: handing four arrays over and launching takes the host some 50 us, and a step of PyTorch's operations about 10.
FEWEST_STEPS = 8
# The kernels know bfloat16 too, but it was not seen to pass from PyTorch to CuPy.
DTYPES = {torch.float32: "float32", torch.float64: "float64", torch.float16: "float16"}
UNMEASURED = "the rule is not measured on a GPU yet"
# -------------------------------------------------------------------------------------------------------------------------

BACKEND = "cupy"
DLPACK_CUDA = 2  # the DLPack protocol's number for memory of a CUDA device
_capsule: Any = dlpack.to_dlpack  # type: ignore[attr-defined]  # public, and not in the module's __all__
# The environment variable, read at each call: "rule", or kernels wherever they can run, or never.
SETTING, RULE, KERNELS, PYTORCH = "RNNCORE_TORCH_CUDA", "rule", "kernels", "pytorch"


def index_of(x: Tensor) -> int | None:
    """The number of the tensor's CUDA device, or None on any other device."""
    return x.device.index if x.is_cuda else None


def scans_for(kind: Any, tensors: tuple[Tensor, ...], reverse: bool, nonlinearity: Nonlinearity | None) -> Scans | None:
    """The scans that take these tensors, in the order of the scan's arguments; None for PyTorch's operations.

    The tensors are plain ones, as checked by ``_private.is_concrete``.
    """
    first = tensors[0]
    index = index_of(first)
    if index is None or first.dim() != 3 or tensors[-1].dim() != 2 or first.dtype not in DTYPES:
        return None
    if any(x.dtype != first.dtype or x.device != first.device for x in tensors) or not _fit(tensors):
        return None  # PyTorch's operations raise for that; a kernel would read past the end
    if setting() == PYTORCH or _plugin()[0] is None:
        return None
    with torch.cuda.device(index):
        # A graph would keep addresses that CuPy's pool takes back. Checked first, as nothing may be compiled meanwhile.
        if torch.cuda.is_current_stream_capturing():
            return None
    steps, batch, width = first.shape
    return ruled(ScanRequest(kind, steps, batch, width, DTYPES[first.dtype], index, reverse, nonlinearity))[0]


def ruled(request: ScanRequest) -> tuple[Scans | None, str]:
    """The scans that run a request on a CUDA device, or None for PyTorch's own operations; and why.

    Parameters
    ----------
    request : ScanRequest
        Its `device` is the number of a CUDA device.

    Raises
    ------
    ArgumentValueError
        If the environment variable RNNCORE_TORCH_CUDA is set to anything but "rule", "kernels" or "pytorch".
    """
    chosen = setting()
    if chosen == PYTORCH:
        return None, f"PyTorch's operations, as {SETTING}={PYTORCH} says"
    if request.nonlinearity is not None and request.nonlinearity.is_custom:
        return None, "PyTorch's operations, for a user's own nonlinearity"
    return _ruled(request, chosen == KERNELS)


def setting() -> str:
    """The environment variable's value; "rule" where it is not set."""
    found = os.environ.get(SETTING) or RULE
    if found not in (RULE, KERNELS, PYTORCH):
        raise ArgumentValueError(f"{SETTING}: expected {RULE!r}, {KERNELS!r} or {PYTORCH!r}, got {found!r}")
    return found


def run(scans: Scans, kind: str, tensors: tuple[Tensor, ...], *, overwrite: bool, **options: Any) -> Tensor:
    """Run a scan by the kernels; with `overwrite`, the result takes the place of p or d."""
    *sources, replaced, first, matrix = map(_plain, tensors)
    out = replaced if overwrite and replaced.is_contiguous() else replaced.clone(memory_format=torch.contiguous_format)
    given = (*(x.contiguous() for x in sources), out, first.contiguous(), matrix)
    with _on_stream_of(out) as give:
        getattr(scans, kind)(*map(give, given), overwrite=True, **options)
    return out


@lru_cache(maxsize=1024)
def _ruled(request: ScanRequest, wherever_possible: bool) -> tuple[Scans | None, str]:
    plugin, fault = _plugin()
    if plugin is None:
        return None, f"PyTorch's operations ({fault})"
    if request.steps < FEWEST_STEPS and not wherever_possible:
        return None, f"PyTorch's operations, for fewer than {FEWEST_STEPS} steps; {UNMEASURED}"
    scans = plugin.scans()
    words, why = scans.unsupported(request), f"{SETTING}={KERNELS}" if wherever_possible else UNMEASURED
    if words is None:
        words = _explained(scans, request)
        # An empty scan launches nothing.
        if words.startswith(PERSISTENT) or (wherever_possible and request.steps and request.batch):
            return scans, f"the kernel of backend {BACKEND!r}, on the tensor's own memory and stream: {words}; {why}"
    return None, f"PyTorch's operations ({BACKEND}: {words}); {why}"


def _explained(scans: Any, request: ScanRequest) -> str:
    """The kernel's name, after compiling it; an error gets a note on how to do without."""
    try:
        words: str = scans.explain(request)
    except Exception as error:
        error.add_note(f"{SETTING}={PYTORCH} in the environment leaves CUDA tensors to PyTorch's operations")
        raise
    return words


def _fit(tensors: tuple[Tensor, ...]) -> bool:
    """Whether the shapes are those of a scan: any number of (T, B, H), then (B, H) and (H, H)."""
    *sources, first, matrix = (x.shape for x in tensors)
    steps, batch, width = sources[0]
    return {*sources, (steps, *first), (steps, batch, width)} == {sources[0]} and tuple(matrix) == (width, width)


@lru_cache(maxsize=1)
def _plugin() -> tuple[Any, str]:
    """The CuPy backend, or None and why not."""
    if torch.version.hip is not None:
        return None, "PyTorch is built for ROCm, and the kernels are CUDA's"
    known = [status.name for status in backends()]
    if BACKEND not in known:
        return None, f"there is no backend {BACKEND!r} with CUDA kernels"
    try:
        plugin: Any = get_backend(BACKEND)
    except BackendUnavailableError:
        why = next(status.reason for status in backends() if status.name == BACKEND)
        return None, f"backend {BACKEND!r} cannot be used: {why}"
    cupy = importlib.import_module(plugin.native_package)
    if not hasattr(cupy.cuda.Stream, "from_external"):
        return None, f"CuPy {cupy.__version__} takes no stream of PyTorch's; CuPy 14 and later do"
    return plugin, ""


@contextmanager
def _on_stream_of(x: Tensor) -> Iterator[Any]:
    """Make PyTorch's current stream on x's device CuPy's as well; yield the function that hands tensors over."""
    plugin, index = _plugin()[0], index_of(x)
    stream = _External(torch.cuda.current_stream(index).cuda_stream)
    cuda = importlib.import_module(plugin.native_package).cuda
    # PyTorch's own context too, as PyTorch may have a current device that it has not set in CUDA yet.
    cupys: Any = abilities_of(plugin)
    with torch.cuda.device(index), cupys.scope(index), cuda.Stream.from_external(stream):
        yield lambda tensor: cupys.from_dlpack(_Handed(tensor, index))


class _External:
    """A stream of PyTorch in the protocol by which CUDA libraries exchange streams, version 0."""

    def __init__(self, pointer: int) -> None:
        self.pointer = pointer

    def __cuda_stream__(self) -> tuple[int, int]:
        return 0, self.pointer


class _Handed:
    """A tensor in the DLPack protocol, for a library that works on the stream that made the tensor.

    The tensor's own ``__dlpack__`` takes the pointer for another stream, and lets the two wait for each other by a new event
    for each array.
    """

    def __init__(self, tensor: Tensor, index: int | None) -> None:
        self._tensor, self._index = tensor, index

    def __dlpack_device__(self) -> tuple[int, int | None]:
        return DLPACK_CUDA, self._index

    def __dlpack__(self, **options: Any) -> Any:
        return _capsule(self._tensor)


def _plain(x: Tensor) -> Tensor:
    """The tensor as DLPack accepts it: outside autograd, with every sign in memory."""
    return x.detach().resolve_neg()
