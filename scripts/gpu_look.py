"""What one library sees: ``gpu_look.py LIBRARY`` prints version, CUDA and devices as JSON, or why it sees no GPU."""

from __future__ import annotations

import json
import sys
from typing import Any

Seen = dict[str, Any]


def told(name: str) -> Seen | str:
    """The same in this process."""
    try:
        return {"cupy": _cupy, "torch": _torch, "jax": _jax}[name]()
    except Exception as error:  # whatever a library says of a machine without a GPU is what is to be told
        return " ".join(f"{type(error).__name__}: {error}".split())


def _cupy() -> Seen:
    import rnncore

    devices = rnncore.get_backend("cupy").devices()
    import cupy

    cuda = cupy.cuda.runtime
    return {
        "version": cupy.__version__,
        "cuda": f"{cuda.runtimeGetVersion()}, driver {cuda.driverGetVersion()}",
        "devices": [cuda.getDeviceProperties(int(d))["name"].decode() for d in devices],
    }


def _torch() -> Seen:
    import torch

    torch.cuda.init()
    names = [torch.cuda.get_device_name(k) for k in range(torch.cuda.device_count())]
    cuda = f"{torch.version.cuda}, cuDNN {torch.backends.cudnn.version()}"
    return {"version": torch.__version__, "cuda": cuda, "devices": names}


def _jax() -> Seen:
    import jax

    devices = jax.devices("gpu")
    cuda = devices[0].client.platform_version.splitlines()[-1]
    return {"version": jax.__version__, "cuda": cuda, "devices": [d.device_kind for d in devices]}


if __name__ == "__main__":
    print(json.dumps(told(sys.argv[1])))
