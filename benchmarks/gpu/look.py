"""What one library sees: ``python -m benchmarks.gpu.look LIBRARY`` prints version, CUDA and devices, or why it sees no GPU."""

from __future__ import annotations

import importlib
import json
import sys
from typing import Any


def seen(name: str) -> dict[str, Any] | str:
    """Return what the library sees in this process."""
    try:
        library: Any = importlib.import_module(name)
        cuda, devices = {"cupy": _cupy, "torch": _torch, "jax": _jax}[name](library)
        return {"version": library.__version__, "cuda": cuda, "devices": devices} if devices else "it lists no device"
    except Exception as error:  # the library's own words on a machine without a GPU
        return " ".join(f"{type(error).__name__}: {error}".split())


def _cupy(cupy: Any) -> tuple[str, list[str]]:
    import rnncore

    devices = rnncore.get_backend("cupy").devices()
    cuda = cupy.cuda.runtime
    names = [cuda.getDeviceProperties(int(d))["name"].decode() for d in devices]
    return f"{cuda.runtimeGetVersion()}, driver {cuda.driverGetVersion()}", names


def _torch(torch: Any) -> tuple[str, list[str]]:
    torch.cuda.init()
    names = [torch.cuda.get_device_name(k) for k in range(torch.cuda.device_count())]
    return f"{torch.version.cuda}, cuDNN {torch.backends.cudnn.version()}", names


def _jax(jax: Any) -> tuple[str, list[str]]:
    devices = jax.devices("gpu")
    return devices[0].client.platform_version.splitlines()[-1], [d.device_kind for d in devices]


if __name__ == "__main__":
    print(json.dumps(seen(sys.argv[1])))
