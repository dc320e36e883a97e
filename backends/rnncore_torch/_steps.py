"""The two scans on tensors that nothing follows: in place and step by step, by PyTorch's operations or on shared memory.

A CPU tensor and a NumPy array can be one memory, so the scans of a host backend run on tensors as they stand: no copy,
nothing moved. :func:`host_scans` is the rule that says where they do. CUDA tensors may run on the CuPy backend's kernels in
the same way, by :mod:`rnncore_torch._cuda`. Everything else runs on PyTorch's own operations, which write each state where
it will stay.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from functools import lru_cache
from typing import Any

import array_api_compat.torch as xp
import numpy as np
import torch
from torch import Tensor

from rnncore import backends, get_backend
from rnncore.backend.contract import ScanRequest, Scans, abilities_of
from rnncore.nonlinearity.nonlinearity import Nonlinearity
from rnncore_torch import _cuda

# Backends of NumPy arrays whose scans may run on a tensor's memory, the preferred one first.
HOSTS = ("numba", "numpy")

# Numbers of multiplications. Beyond NUMPY_STEP in one step NumPy's scan is no faster than PyTorch's operations: OpenBLAS's
# threads and PyTorch's then wait for the same cores. Training step of a (T, B, H) network, PyTorch's operations over NumPy's
# scan, float32, two cores of a Zen 5, NumPy 2.4, PyTorch 2.13: (256, 1, 64) 1.4, (1024, 1, 16) 1.4, (5000, 1, 128) 1.6,
# (128, 32, 128) 1.3, (100, 16, 256) 1.0, (512, 64, 512) 1.0.
NUMPY_STEP = 2**19
# OpenBLAS runs a product of so few on one thread, and of so few where one operand is a vector. That decides where PyTorch was
# given one thread, which Numba's scans are held to.
BLAS_ALONE, BLAS_VECTOR_ALONE = 2**18, 2**13

# A tensor's memory as an array. Only for tensors that are on the host already, where it is no transfer.
_as_array: Callable[[Tensor], np.ndarray[Any, Any]] = Tensor.numpy


def nonlinear(
    p: Tensor, h0: Tensor, w_hh: Tensor, /, *, nonlinearity: Nonlinearity, reverse: bool, overwrite: bool = False
) -> Tensor:
    """``h_t = f(p_t + h_{t-1} W_hh^T)``, unseen by autograd; with `overwrite`, h may take the place of p."""
    if p.dim() > 3 and w_hh.dim() == 2:  # one matrix for all: the axes before the batch are more rows of it
        rows, first = p.flatten(1, -2), h0.flatten(0, -2)
        states = nonlinear(rows, first, w_hh, nonlinearity=nonlinearity, reverse=reverse, overwrite=overwrite)
        return states.view(p.shape)
    host = _host_for("nonlinear", (p, h0, w_hh), reverse, nonlinearity)
    if host is not None:
        arrays = [shared(x) for x in (p, h0, w_hh)]
        with np.errstate(all="ignore"):  # PyTorch is silent about infinity and NaN
            states = host.nonlinear(*arrays, nonlinearity=nonlinearity, reverse=reverse, overwrite=overwrite)
        return torch.from_numpy(states)
    kernels = _kernels_for("nonlinear", (p, h0, w_hh), reverse, nonlinearity)
    if kernels is not None:
        return _cuda.nonlinear(kernels, p, h0, w_hh, nonlinearity=nonlinearity, reverse=reverse, overwrite=overwrite)
    out = p if overwrite else torch.empty(p.shape, dtype=p.dtype, device=p.device)
    w_t = w_hh.mT.contiguous()
    step = _step(h0, w_t)
    in_place = None if nonlinearity.is_custom else _IN_PLACE.get(nonlinearity.name)
    clip = nonlinearity.clip
    h = h0
    for p_t, h_t in zip(_in_time(p, reverse), _in_time(out, reverse), strict=True):
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
    """``s_t = d_t * (u_t + s_{t-1} M)``, unseen by autograd; with `overwrite`, s may take the place of d."""
    if u.dim() > 3 and m.dim() == 2:
        rows = linear(u.flatten(1, -2), d.flatten(1, -2), s0.flatten(0, -2), m, reverse=reverse, overwrite=overwrite)
        return rows.view(u.shape)
    host = _host_for("linear", (u, d, s0, m), reverse, None)
    if host is not None:
        arrays = [shared(x) for x in (u, d, s0, m)]
        with np.errstate(all="ignore"):
            states = host.linear(*arrays, reverse=reverse, overwrite=overwrite)
        return torch.from_numpy(states)
    kernels = _kernels_for("linear", (u, d, s0, m), reverse, None)
    if kernels is not None:
        return _cuda.linear(kernels, u, d, s0, m, reverse=reverse, overwrite=overwrite)
    out = d if overwrite else torch.empty(u.shape, dtype=u.dtype, device=u.device)
    m = m.contiguous()
    step = _step(s0, m)
    bracket = torch.empty(u.shape[1:], dtype=u.dtype, device=u.device)
    s = s0
    times = zip(_in_time(u, reverse), _in_time(d, reverse), _in_time(out, reverse), strict=True)
    for u_t, d_t, s_t in times:
        step(u_t, s, m, out=bracket)
        torch.mul(d_t, bracket, out=s_t)
        s = s_t
    return out


def shared(x: Tensor) -> np.ndarray[Any, Any]:
    """The tensor's memory as an array: writing to one is writing to the other, unless its sign is not in memory yet."""
    return _as_array(x.detach().resolve_neg())


def host_scans(request: ScanRequest, threads: int) -> tuple[Scans | None, str]:
    """The host backend whose scans run a request on CPU tensors, or None for PyTorch's own operations; and why.

    Parameters
    ----------
    request : ScanRequest
    threads : int
        ``torch.get_num_threads()``.
    """
    if request.nonlinearity is not None and request.nonlinearity.is_custom:
        return None, "PyTorch's operations, for a user's own nonlinearity"
    return _ruled(request, threads)


def reason(
    kind: Any, steps: int, batch: int, width: int, dtype: torch.dtype, device: torch.device, f: Nonlinearity | None
) -> str:
    """What runs a scan of so many steps, rows and units, and why."""
    if device.type == "cuda" and dtype in _cuda.DTYPES:
        index = torch.cuda.current_device() if device.index is None else device.index
        request = ScanRequest(kind, steps, batch, width, _cuda.DTYPES[dtype], index, kind == "linear", f)
        return _cuda.ruled(request)[1]
    if device.type == "cuda":
        return f"PyTorch's operations, as {str(dtype).removeprefix('torch.')} is not handed over to CuPy"
    if device.type != "cpu":
        return f"PyTorch's operations, on {device}"
    if dtype not in _DTYPES:
        return f"PyTorch's operations, as {str(dtype).removeprefix('torch.')} is not a dtype of the host's scans"
    request = ScanRequest(kind, steps, batch, width, _DTYPES[dtype], "cpu", kind == "linear", f)
    return host_scans(request, torch.get_num_threads())[1]


@lru_cache(maxsize=1024)
def _ruled(request: ScanRequest, threads: int) -> tuple[Scans | None, str]:
    refusals = []
    for name, scans in _hosts():
        refusal = scans.unsupported(request) or (_too_much(request, threads) if name == "numpy" else None)
        if refusal is None:
            return scans, f"the scan of backend {name!r}, on the tensor's own memory"
        refusals.append(f"{name}: {refusal}")
    return None, f"PyTorch's operations ({'; '.join(refusals)})"


def _too_much(request: ScanRequest, threads: int) -> str | None:
    """Why PyTorch's own operations are the better choice than NumPy's scan at this size, or None."""
    product = request.batch * request.width**2
    if threads == 1:
        alone = product <= (BLAS_VECTOR_ALONE if request.batch == 1 else BLAS_ALONE)
        return None if alone else "PyTorch was given one thread, and this would take more"
    return "no faster where each step is work for several threads" if product > NUMPY_STEP else None


class _Limited:
    """A host backend's scans in no more threads than PyTorch was given."""

    def __init__(self, scans: Scans, limited: Callable[[int], AbstractContextManager[Any]]) -> None:
        self._scans, self._limited = scans, limited

    def unsupported(self, request: ScanRequest, /) -> str | None:
        return self._scans.unsupported(request)

    def nonlinear(self, *arrays: Any, **options: Any) -> Any:
        with self._limited(torch.get_num_threads()):
            return self._scans.nonlinear(*arrays, **options)

    def linear(self, *arrays: Any, **options: Any) -> Any:
        with self._limited(torch.get_num_threads()):
            return self._scans.linear(*arrays, **options)


@lru_cache(maxsize=1)
def _hosts() -> tuple[tuple[str, Scans], ...]:
    usable = {status.name for status in backends() if status.usable}
    found: list[tuple[str, Scans]] = []
    for name in HOSTS:
        if name in usable and (scans := (plugin := get_backend(name)).scans()) is not None:
            limit = abilities_of(plugin).limit_threads
            found.append((name, _Limited(scans, limit) if name == "numba" and limit is not None else scans))
    return tuple(found)


def _host_for(kind: Any, tensors: tuple[Tensor, ...], reverse: bool, nonlinearity: Nonlinearity | None) -> Scans | None:
    first = tensors[0]
    if first.dim() != 3 or tensors[-1].dim() != 2 or not first.is_cpu or not is_concrete(*tensors):
        return None
    steps, batch, width = first.shape
    dtype = _DTYPES.get(first.dtype)
    if dtype is None:
        return None
    request = ScanRequest(kind, steps, batch, width, dtype, "cpu", reverse, nonlinearity)
    return host_scans(request, torch.get_num_threads())[0]


def _kernels_for(
    kind: Any, tensors: tuple[Tensor, ...], reverse: bool, nonlinearity: Nonlinearity | None
) -> Scans | None:
    """The CuPy backend's scans where they take these tensors; None for PyTorch's operations."""
    if _cuda.index_of(tensors[0]) is None or not is_concrete(*tensors):
        return None
    return _cuda.scans_for(kind, tensors, reverse, nonlinearity)


def is_concrete(*tensors: Tensor) -> bool:
    """Whether these are numbers in memory and nothing but: no subclass, no stand-in, and nobody watches operations."""
    if torch._C._len_torch_dispatch_stack() > 0 or is_traced():
        return False
    return all(type(x) in _PLAIN_TYPES and not x._is_zerotensor() and not is_legacy_batched(x) for x in tensors)


def is_traced() -> bool:
    """Whether ``torch.jit.trace`` writes down what is done."""
    return torch._C._get_tracing_state() is not None


# ``torch.autograd.grad(is_grads_batched=True)`` maps with PyTorch's first vmap, which knows no rule of a custom function
# and no writing in place: what it maps gets plain operations.
is_legacy_batched: Callable[[Tensor], bool] = torch._C._functorch.is_legacy_batchedtensor


def _step(state: Tensor, matrix: Tensor) -> Callable[..., Tensor]:
    """``step(a, s, m, out=)``: a + s m."""
    if state.dim() == 2 and matrix.dim() == 2:
        add_product: Callable[..., Tensor] = torch.addmm
        return add_product
    return _add_broadcast_product


def _add_broadcast_product(a: Tensor, s: Tensor, m: Tensor, *, out: Tensor) -> Tensor:
    return torch.add(a, torch.matmul(s, m), out=out)


def _in_time(x: Tensor, reverse: bool) -> Iterable[Tensor]:
    steps = x.unbind(0)
    return reversed(steps) if reverse else steps


_DTYPES = {torch.float32: "float32", torch.float64: "float64"}
_PLAIN_TYPES = (Tensor, torch.nn.Parameter)
_IN_PLACE: dict[str, Callable[[Tensor], Tensor]] = {
    "tanh": Tensor.tanh_,
    "relu": Tensor.relu_,
    "sigmoid": Tensor.sigmoid_,
    "identity": lambda h: h,
}
