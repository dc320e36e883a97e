"""Tests of the diagnostics on JAX compile each shape anew, and are slow."""

from __future__ import annotations

import pytest


def pytest_collection_modifyitems(items):
    for item in items:
        params = getattr(getattr(item, "callspec", None), "params", {})
        if "tests/diagnostics" in item.path.as_posix() and (
            "jax" in repr(list(params.values())) or "_jax" in item.name
        ):
            item.add_marker(pytest.mark.slow)
