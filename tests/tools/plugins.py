"""The text of plugins for tests: one that keeps the contract, and lines that break it."""

import textwrap

import numpy as np
import pytest

SOUND = """
    name = {name!r}
    native_package = "numpy"
    def namespace():
        import array_api_compat.numpy as xp
        return xp
    def is_native(x, /): return False
    def devices(): return {devices}
    def unusable(): return {reason!r}
    def asarray(x, /, *, dtype, device): return x
    def to_numpy(x, /): return x
    def synchronize(device, /): pass
    def scans(): return None
"""


def sound(name="broken", more="", devices="('cpu',)", reason=None):
    """A plugin that keeps the contract, and lines that make it break it."""
    return textwrap.dedent(SOUND).format(name=name, devices=devices, reason=reason) + textwrap.dedent(more)


def as_object(more="", name="broken"):
    """The same as an object, whose members can be properties."""
    body = textwrap.indent(sound(name).replace("(x,", "(self, x,").replace("():", "(self):"), "    ")
    body = body.replace("(device,", "(self, device,")
    return f"class Broken:\n{body}\n{textwrap.indent(textwrap.dedent(more), '    ')}\nbackend = Broken()\n"


def cases(table):
    return pytest.mark.parametrize("case", table.values(), ids=table.keys())


class Sub(np.ndarray):
    """A user's own class of arrays."""


class Nobodys:
    """What no backend owns."""
