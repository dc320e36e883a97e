"""Members that break the contract."""

import array_api_compat.numpy as xp
from rnncore_numpy._scans import NumpyScans

from rnncore import get_backend
from rnncore.backend import arrays
from rnncore.network import calls
from rnncore.network.engine import Engine
from wrong_backends.planting import core, members, namespace, scans


class LacksExpm1:
    """A namespace."""

    def __getattr__(self, name):
        if name == "expm1":
            raise AttributeError(name)
        return getattr(xp, name)


class LacksLinear:
    unsupported, nonlinear = NumpyScans.unsupported, NumpyScans.nonlinear


def on_another(right, network, shape, output, h_n):
    output, h_n = right(network, shape, output, h_n)
    return output.to_device(get_backend("strict").devices()[1]), h_n


CONTRACT = {
    "a function is missing from the namespace": (members(namespace=LacksExpm1), {"RC-CON-010": r"lacks expm1"}),
    "the library's name is misspelt": (members(native_package="nunpy"), {"RC-CON-017": r"imported now, got 'nunpy'"}),
    "to_numpy reads an array's memory without its strides": (
        members(to_numpy=lambda x, /: x.ravel("K").reshape(x.shape)),
        {"RC-CON-016": r"to_numpy of a transposed array"},
    ),
    "is_native is true of everything": (
        members(is_native=lambda x, /: True),
        {"RC-CON-007": r"expected False for None, got True"},
    ),
    "two devices have one name": (
        members(devices=lambda: ("cpu", "cpu")),
        {"RC-CON-003": r"names that differ, got cpu, cpu"},
    ),
    "a precision without a name": (members(precision=lambda device: "bf16"), {"RC-CON-012": r"got 'bf16'"}),
    "synchronize has an answer": (
        members(synchronize=lambda device, /: True),
        {"RC-CON-011": r"expected None, got True"},
    ),
    "the scans lack one of the two": (scans(LacksLinear), {"RC-CON-001": r"expected unsupported, nonlinear, linear"}),
    "creation ignores the device": (
        namespace("strict", zeros=lambda zeros, shape, *, dtype=None, device=None: zeros(shape, dtype=dtype)),
        {"RC-CON-008": r"zeros: expected device .*device1.*, got .*CPU_DEVICE"},
        "strict",
    ),
    "asarray ignores the device": (
        members(
            "strict",
            asarray=lambda x, /, *, dtype, device: get_backend("strict").asarray(
                x, dtype=dtype, device=get_backend("strict").devices()[1]
            ),
        ),
        {
            "RC-CON-008": r"asarray: expected device .*device1.*, got .*device2",
            "RC-TYPE-005": r"weight_ih_l0: expected device",
        },
        "strict",
    ),
    "results land on another device": (
        core(calls, "_finish", on_another, of="strict"),
        {"RC-TYPE-001": r"output: expected device .*device1.*, got .*device2"},
        "strict",
    ),
    "devices are not checked": (
        core(arrays, "device_of", lambda right, x: None, of="strict"),
        {"RC-TYPE-004": r"expected DeviceError"},
        "strict",
    ),
    "arguments are not checked": (
        core(Engine, "check", lambda right, *a: None),
        {
            "RC-TYPE-002": r"expected DTypeError, got an answer",
            "RC-TYPE-006": r"expected ArgumentTypeError",
            "RC-FWD-015": r"expected ShapeError",
        },
    ),
}
