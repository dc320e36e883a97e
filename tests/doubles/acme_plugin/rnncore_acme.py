"""The acme backend: arrays of acme_arrays. ``from rnncore_acme import RNN`` chooses it by import."""

import sys

import numpy as np

import rnncore
from rnncore.backend.arrays import from_user

name = "acme"  # as in the entry point
native_package = "acme_arrays"
contract_version = 2

RNN, RNNCell = rnncore.bound_to(name)


def namespace():
    import acme_arrays  # here, and not at the top of the file

    return acme_arrays


def is_native(x, /):
    library = sys.modules.get("acme_arrays")
    return library is not None and isinstance(x, library.Array)


def devices():
    return tuple(namespace().Device(n) for n in ("device1", "CPU_DEVICE"))


def device_name(device, /):
    return str(device).split("'")[1]


def asarray(x, /, *, dtype=None, device=None):
    x, dtype, device = from_user(x, dtype, device, backend=sys.modules[__name__])
    return namespace().asarray(x, dtype=dtype, device=device, copy=True)


def to_numpy(x, /):
    return np.from_dlpack(x.to_device(namespace().Device("CPU_DEVICE")))


def synchronize(device, /):
    pass


def scans():
    return None
