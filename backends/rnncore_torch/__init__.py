"""The PyTorch backend: tensors on any device; gradients of every order through the scans.

``from rnncore_torch import RNN`` chooses it by import. PyTorch itself is imported at first use. :mod:`rnncore_torch.nn` has
modules in the place of ``torch.nn``'s.

The operators in programs of ``torch.export`` are there for ``torch.export.load`` after ``import rnncore_torch.nn``, and after
``import rnncore_torch`` alone where PyTorch was imported before.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

import rnncore
from rnncore.backend.arrays import from_user
from rnncore.errors import DeviceError
from rnncore_torch._modules import find_module as find_module
from rnncore_torch._modules import from_module as from_module
from rnncore_torch._modules import to_module as to_module

if TYPE_CHECKING:
    import torch

    from rnncore_torch._scans import TorchScans

name = "torch"
native_package = "torch"
contract_version = 2

RNN, RNNCell = rnncore.bound_to(name)


def __getattr__(name: str) -> Any:
    if name == "nn":
        return importlib.import_module("rnncore_torch.nn")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def namespace() -> Any:
    """PyTorch by way of array-api-compat."""
    from rnncore_torch import _namespace, _scans  # noqa: F401  # _scans here, in the first use, which a fork waits for

    return _namespace


def is_native(x: object, /) -> bool:
    """Whether x is a dense tensor; sparse, nested and opaque ones have none of the operations that are needed."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(x, torch.Tensor) and not x.is_nested and x.layout == torch.strided


def devices() -> Sequence[torch.device]:
    """PyTorch's own default device first, then the CPU and every CUDA and MPS device that is there."""
    import torch

    found = [torch.get_default_device(), torch.device("cpu")]
    if torch.cuda.is_available():
        found += [torch.device("cuda", k) for k in range(torch.cuda.device_count())]
    if torch.backends.mps.is_available():
        found.append(torch.device("mps", 0))
    return tuple(dict.fromkeys(found))


def asarray(x: Any, /, *, dtype: Any = None, device: Any = None) -> torch.Tensor:
    """A tensor of its own, never one that shares memory with x.

    All arguments are as in :func:`rnncore.backend.arrays.from_user`.
    """
    import torch

    host, dtype, device = from_user(x, dtype, device, backend=sys.modules[__name__], kind=torch.device)
    # A copy, as PyTorch knows no negative strides: even a contiguous array has one along an axis of one element.
    return torch.tensor(np.array(host, order="C"), dtype=dtype, device=device)


def to_numpy(x: torch.Tensor, /) -> np.ndarray[Any, Any]:
    """The numbers on the host, outside autograd; bfloat16, which NumPy lacks, as float32."""
    import torch

    if x.is_meta:
        raise DeviceError("expected a tensor with numbers, got one on device 'meta', which has only a shape")
    host = x.detach().resolve_neg().cpu()
    if host.dtype == torch.bfloat16:
        host = host.float()
    result: np.ndarray[Any, Any] = host.numpy()
    return result


def detach(x: torch.Tensor, /) -> torch.Tensor:
    """The same memory outside autograd's graph."""
    return x.detach()


def changes(x: torch.Tensor, /) -> int | None:
    """PyTorch's own counter of changes in place; inference tensors have none."""
    return None if x.is_inference() else x._version


def tracing() -> bool:
    """Whether ``torch.compile`` or ``torch.export`` records this call."""
    import torch

    return torch.compiler.is_compiling()


def mark_like(new: torch.Tensor, old: torch.Tensor, /) -> torch.Tensor:
    """`new`, which requires a gradient if `old` does."""
    return new.requires_grad_(old.requires_grad)


def synchronize(device: torch.device, /) -> None:
    """Wait until the device has done all queued work."""
    import torch

    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def grad(function: Callable[..., Any], /) -> Callable[..., tuple[torch.Tensor, ...]]:
    """The gradients of a scalar function with respect to each of its arguments, by ``torch.func``; it nests."""
    import torch

    def gradients(*arrays: torch.Tensor) -> tuple[torch.Tensor, ...]:
        found: tuple[torch.Tensor, ...] = torch.func.grad(function, argnums=tuple(range(len(arrays))))(*arrays)
        return found

    return gradients


def precision(device: torch.device, /) -> str:
    """ "tf32" where PyTorch's own settings let CUDA round the inputs of products: off, unless the user turned it on."""
    import torch

    if device.type != "cuda":
        return "full"
    # PyTorch 2.9 renamed the setting, and raises for the old name once the new one was used.
    setting = getattr(torch.backends.cuda.matmul, "fp32_precision", None)
    if setting is None:
        allowed = torch.get_float32_matmul_precision() != "highest"
    else:
        allowed = setting == "tf32" or (setting == "none" and getattr(torch.backends, "fp32_precision", "") == "tf32")
    return "tf32" if allowed else "full"


def scans() -> TorchScans:
    """Both scans as autograd Functions whose derivatives are again scans."""
    from rnncore_torch._scans import SCANS

    return SCANS


if sys.modules.get("torch") is not None:
    importlib.import_module("rnncore_torch._export")
