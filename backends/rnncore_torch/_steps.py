"""The two scans without derivatives: step by step and in place by PyTorch's operations, or on shared memory.

A CPU tensor and a NumPy array can be one memory, so the scans of a host backend can run on tensors without a copy.
:func:`host_scans` is the rule for it. CUDA tensors may run on the CuPy backend's kernels in the same way, by
:mod:`rnncore_torch._cuda`. Everything else runs on PyTorch's own operations, which write each state to its final place.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from rnncore import backends, get_backend
from rnncore.backend.abilities import abilities_of
from rnncore.backend.contract import ScanRequest, Scans
from rnncore.nonlinearity.nonlinearity import Nonlinearity
from rnncore_torch import _cuda, _private
from rnncore_torch import _namespace as xp

# Backends of NumPy arrays whose scans may run on a tensor's memory, the preferred one first.
HOSTS = ("numba", "numpy")

# Numbers of multiplications. Beyond NUMPY_STEP in one step NumPy's scan is no faster than PyTorch's operations: OpenBLAS's
# threads and PyTorch's then wait for the same cores. Training step of a (T, B, H) network, PyTorch's operations over NumPy's
# scan, float32, two cores of a Zen 5, NumPy 2.4, PyTorch 2.13: (256, 1, 64) 1.4, (1024, 1, 16) 1.4, (5000, 1, 128) 1.6,
# (128, 32, 128) 1.3, (100, 16, 256) 1.0, (512, 64, 512) 1.0.
NUMPY_STEP = 2**19
# Products up to these sizes, of matrices and of a vector, run on one thread of OpenBLAS. Beyond, NumPy's scan is not used where
# PyTorch was given one thread.
BLAS_ALONE, BLAS_VECTOR_ALONE = 2**18, 2**13

# A single step up to this size is two or three operations, faster than handing memory over. CPU time of a nonlinear and a
# linear scan in microseconds, PyTorch's operations over Numba's scan, the same machine: (1, 1, 16) 10 and 15 over 18 and 20,
# (1, 1, 256) 13 and 21 over 23 and 25, (1, 16, 64) 12 and 16 over 23 and 23. Beyond, PyTorch's product may start threads.
SMALL_STEP = 2**16


def nonlinear(
    p: Tensor, h0: Tensor, w_hh: Tensor, /, *, nonlinearity: Nonlinearity, reverse: bool, overwrite: bool = False
) -> Tensor:
    """``h_t = f(p_t + h_{t-1} W_hh^T)``, not recorded by autograd; with `overwrite`, h may take the place of p."""
    if p.dim() > 3 and w_hh.dim() == 2:  # one matrix for all: the axes before the batch are more rows of it
        rows, first = p.flatten(1, -2), h0.flatten(0, -2)
        folded = nonlinear(rows, first, w_hh, nonlinearity=nonlinearity, reverse=reverse, overwrite=overwrite)
        return folded.view(p.shape)
    done = _on_shared_memory("nonlinear", (p, h0, w_hh), reverse, nonlinearity, overwrite)
    if done is not None:
        return done
    out = p if overwrite else torch.empty(p.shape, dtype=p.dtype, device=p.device)
    sources = p.unbind(0)
    states = sources if overwrite else out.unbind(0)
    w_t = w_hh.mT if len(sources) == 1 else w_hh.mT.contiguous()  # a single step would not pay for the copy
    step = torch.addmm if h0.dim() == w_t.dim() == 2 else _add_broadcast_product
    in_place = _IN_PLACE.get(nonlinearity.name) if nonlinearity.user is None else None
    clip = nonlinearity.clip
    h = h0
    for p_t, h_t in _in_time(reverse, sources, states):
        step(p_t, h, w_t, out=h_t)
        if clip is not None:
            h_t.clamp_(-clip, clip)
        if in_place is not None:
            in_place(h_t)
        else:
            h_t.copy_(nonlinearity(h_t.clone(), xp=xp))
        h = h_t
    return out


def linear(u: Tensor, d: Tensor, s0: Tensor, m: Tensor, /, *, reverse: bool, overwrite: bool = False) -> Tensor:
    """``s_t = d_t * (u_t + s_{t-1} M)``, not recorded by autograd; with `overwrite`, s may take the place of d."""
    if u.dim() > 3 and m.dim() == 2:
        rows = linear(u.flatten(1, -2), d.flatten(1, -2), s0.flatten(0, -2), m, reverse=reverse, overwrite=overwrite)
        return rows.view(u.shape)
    done = _on_shared_memory("linear", (u, d, s0, m), reverse, None, overwrite)
    if done is not None:
        return done
    out = d if overwrite else torch.empty(u.shape, dtype=u.dtype, device=u.device)
    sources, factors = u.unbind(0), d.unbind(0)
    states = factors if overwrite else out.unbind(0)
    m = m if len(sources) == 1 else m.contiguous()
    step = torch.addmm if s0.dim() == m.dim() == 2 else _add_broadcast_product
    bracket = None
    s = s0
    for u_t, d_t, s_t in _in_time(reverse, sources, factors, states):
        bracket = step(u_t, s, m, out=bracket)
        s = torch.mul(d_t, bracket, out=s_t)
    return out


def shared(x: Tensor) -> np.ndarray[Any, Any]:
    """The memory of a tensor on the host, with every sign in it, as an array."""
    return np.asarray(_Memory(x))


def host_scans(request: ScanRequest, threads: int) -> tuple[Host | None, str]:
    """The host backend whose scans run a request on CPU tensors, or None for PyTorch's own operations; and why.

    Parameters
    ----------
    request : ScanRequest
    threads : int
        ``torch.get_num_threads()``.
    """
    if request.nonlinearity is not None and request.nonlinearity.is_custom:
        return None, "PyTorch's operations, for a user's own nonlinearity"
    if _is_small(request.steps, request.batch, request.width):
        return None, "PyTorch's operations, for a single small step"
    refusals = []
    for name, host in _hosts():
        refusal = host.scans.unsupported(request) or (_too_much(request, threads) if name == "numpy" else None)
        if refusal is None:
            return host, f"the scan of backend {name!r}, on the tensor's own memory"
        refusals.append(f"{name}: {refusal}")
    return None, f"PyTorch's operations ({'; '.join(refusals)})"


def reason(request: ScanRequest) -> str:
    """The code that runs a request, and why. Its `device` is a ``torch.device``, or names one."""
    device = torch.device(request.device)
    if device.type == "cuda" and request.dtype in _cuda.DTYPES.values():
        index = torch.cuda.current_device() if device.index is None else device.index
        return _cuda.ruled(replace(request, device=index))[1]
    if device.type == "cuda":
        return f"PyTorch's operations, as {request.dtype} is not handed over to CuPy"
    if device.type != "cpu":
        return f"PyTorch's operations, on {device}"
    if request.dtype not in _DTYPES.values():
        return f"PyTorch's operations, as {request.dtype} is not a dtype of the host's scans"
    return host_scans(request, torch.get_num_threads())[1]


def _is_small(steps: int, batch: int, width: int) -> bool:
    return steps == 1 and batch * width * width <= SMALL_STEP


def _too_much(request: ScanRequest, threads: int) -> str | None:
    """Why PyTorch's own operations are the better choice than NumPy's scan at this size, or None."""
    product = request.batch * request.width**2
    if threads == 1:
        alone = product <= (BLAS_VECTOR_ALONE if request.batch == 1 else BLAS_ALONE)
        return None if alone else "PyTorch was given one thread, and this would take more"
    return "no faster where each step is work for several threads" if product > NUMPY_STEP else None


class Host(NamedTuple):
    """A host backend's scans, and its ``limit_threads``."""

    scans: Scans
    limit_threads: Callable[[int], AbstractContextManager[Any]]

    def run(self, kind: str, tensors: tuple[Tensor, ...], **options: Any) -> Tensor:
        """Run a scan on the tensors' memory, in no more threads than PyTorch was given."""
        given = [x.resolve_neg() if x.is_neg() else x for x in tensors]
        arrays = list(map(shared, given))
        # PyTorch is silent about infinity and NaN.
        with np.errstate(all="ignore"), self.limit_threads(torch.get_num_threads()):
            out = getattr(self.scans, kind)(*arrays, **options)
        for tensor, array in zip(given, arrays, strict=True):
            if out is array:  # in place: the tensor is the result
                return tensor.detach() if tensor.requires_grad else tensor
        return torch.from_numpy(out)


class _Memory:
    """A tensor's memory in NumPy's array interface.

    ``Tensor.numpy`` would mark the memory as never to be resized again, and sharded training (FSDP) resizes that of weights.
    """

    __slots__ = ("tensor",)

    def __init__(self, x: Tensor) -> None:
        self.tensor = x  # the array keeps this object, and so the memory

    @property
    def __array_interface__(self) -> dict[str, Any]:
        x = self.tensor
        strides = None if x.is_contiguous() else tuple([x.element_size() * n for n in x.stride()])
        return {
            "version": 3,
            "typestr": _TYPES[x.dtype],
            "shape": x.shape,
            "strides": strides,
            "data": (x.data_ptr(), False),
        }


@lru_cache(maxsize=1)
def _hosts() -> tuple[tuple[str, Host], ...]:
    usable = {status.name for status in backends() if status.usable}
    found: list[tuple[str, Host]] = []
    for name in HOSTS:
        if name in usable and (scans := (plugin := get_backend(name)).scans()) is not None:
            found.append((name, Host(scans, abilities_of(plugin).limit_threads or nullcontext)))
    return tuple(found)


@lru_cache(maxsize=1024)
def _host(
    kind: Any, shape: tuple[int, ...], dtype: str, reverse: bool, nonlinearity: Nonlinearity | None, threads: int
) -> Host | None:
    """The first half of :func:`host_scans`, remembered without a request."""
    steps, batch, width = shape
    return host_scans(ScanRequest(kind, steps, batch, width, dtype, "cpu", reverse, nonlinearity), threads)[0]


def _on_shared_memory(
    kind: Any, tensors: tuple[Tensor, ...], reverse: bool, nonlinearity: Nonlinearity | None, overwrite: bool
) -> Tensor | None:
    """Run a scan on a host backend or on CuPy's kernels, where the rules say so; None for PyTorch's operations."""
    first = tensors[0]
    on_cuda = _cuda.index_of(first) is not None
    dtype = None if on_cuda or not first.is_cpu else _DTYPES.get(first.dtype)
    if first.dim() != 3 or tensors[-1].dim() != 2 or not (on_cuda or dtype):
        return None
    if (dtype and _is_small(*first.shape)) or not _private.is_concrete(*tensors):
        return None
    options: dict[str, Any] = {"reverse": reverse, "overwrite": overwrite}
    if nonlinearity is not None:
        options["nonlinearity"] = nonlinearity
    if dtype:
        host = _host(kind, first.shape, dtype, reverse, nonlinearity, torch.get_num_threads())
        return None if host is None else host.run(kind, tensors, **options)
    scans = _cuda.scans_for(kind, tensors, reverse, nonlinearity)
    return None if scans is None else _cuda.run(scans, kind, tensors, **options)


def _add_broadcast_product(a: Tensor, s: Tensor, m: Tensor, *, out: Tensor | None) -> Tensor:
    return torch.add(a, torch.matmul(s, m), out=out)


def _in_time(reverse: bool, *sequences: tuple[Tensor, ...]) -> Iterable[tuple[Tensor, ...]]:
    return zip(*([x[::-1] for x in sequences] if reverse else sequences), strict=True)


_DTYPES = {torch.float32: "float32", torch.float64: "float64"}
_TYPES = {dtype: np.dtype(name).str for dtype, name in _DTYPES.items()}
_IN_PLACE: dict[str, Callable[[Tensor], Tensor]] = {
    "tanh": Tensor.tanh_,
    "relu": Tensor.relu_,
    "sigmoid": Tensor.sigmoid_,
    "identity": lambda h: h,
}
