"""The contract, kept by the plugins of this repository."""

from __future__ import annotations

import numpy as np


def test_our_plugins_satisfy_the_contract():
    import rnncore_numpy
    import rnncore_torch

    from rnncore.backend.contract import Backend, Scans

    for plugin in (rnncore_numpy, rnncore_torch):
        assert isinstance(plugin, Backend) and isinstance(plugin.scans(), Scans)
        assert list(plugin.devices())
        x = plugin.asarray(np.asarray([1.5, 2.5]), dtype=plugin.namespace().float32, device=plugin.devices()[0])
        assert plugin.is_native(x) and not plugin.is_native([1.5])
        np.testing.assert_array_equal(plugin.to_numpy(x), np.asarray([1.5, 2.5], dtype="f4"))
        plugin.synchronize(plugin.devices()[0])
