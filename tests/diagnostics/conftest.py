"""Reports that several files read; and tests on JAX, which compile each shape anew, are slow."""

from __future__ import annotations

import pytest

from tests.diagnostics.report.networks import NETWORKS


def pytest_collection_modifyitems(items):
    for item in items:
        params = getattr(getattr(item, "callspec", None), "params", {})
        if "tests/diagnostics" in item.path.as_posix() and (
            "jax" in repr(list(params.values())) or "_jax" in item.name
        ):
            item.add_marker(pytest.mark.slow)


@pytest.fixture(scope="session")
def reports():
    return {name: make() for name, make in NETWORKS.items()}
