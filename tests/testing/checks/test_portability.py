"""Portability faults are caught by the setups named for them.

``python -m tests.testing.checks.test_portability`` prints the whole table: each fault in each setup.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest

from rnncore.nonlinearity.activations import FAMILIES, Family
from rnncore.testing import check_backend
from tests.doubles.portability_faults import FAULTS
from tests.tools.sample import sample

# Forward, VJP, lengths, JVP, what is changed, sent, fetched and waited for: the fewest checks that still call all of the core.
EAGER = (
    "RC-FWD-004",
    "RC-FWD-010",
    "RC-GRAD-004",
    "RC-GRAD-008",
    "RC-GRAD-012",
    "RC-JVP-003",
    "RC-KER-008",
    "RC-TYPE-001",
    "RC-PURE-001",
    "RC-SYNC-001",
    "RC-SYNC-002",
    "RC-SYNC-003",
    "RC-SYNC-005",
    "RC-NUM-011",
    "RC-LEN-010",
)
COMPILED = ("RC-SECOND-006", "RC-SECOND-007")


@dataclass(frozen=True)
class Setup:
    """A backend on a device, and the checks that are run there."""

    title: str
    backend: str
    device: str | None
    checks: tuple[str, ...]


SETUPS = {
    # Its array class is written in C and cannot be watched.
    "numpy": Setup("numpy", "numpy", None, tuple(n for n in EAGER if n not in ("RC-SYNC-005", "RC-NUM-011"))),
    "device1": Setup("strict device1", "strict", "device1", EAGER),
    "no_float64": Setup("strict no_float64", "strict", "no_float64", EAGER),
    "no_x64": Setup("strict no_x64", "strict", "no_x64", EAGER),
    "jit": Setup("jax.jit", "jax", None, COMPILED),
}
# How many faults name the setup. For NumPy these are all that it sees; the others see more than they are named for.
CAUGHT = {"numpy": 7, "device1": 48, "no_float64": 1, "no_x64": 2, "jit": 25}


def first_failure(setup: Setup) -> str:
    """The first of the setup's checks that fails, and why; nothing if all pass."""
    for check in setup.checks:
        report = check_backend(setup.backend, device=setup.device, kernel="reference", only=[check])
        assert report.ran, f"{check} says nothing of {setup.title}"
        if not report.ok:
            return f"{check}: {report.outcomes[0].reason}"
    return ""


def forget_compiled_scans() -> None:
    """JAX finds a compiled scan again by the value of its nonlinearity, which a patched function leaves as it is."""
    from rnncore_jax import _scans

    _scans._compiled_nonlinear.clear_cache()
    _scans._compiled_linear.clear_cache()


@pytest.fixture(autouse=True)
def compiled_anew():
    """Nothing compiled before is found again here, nor later what was compiled here; and compiling is quick."""
    import jax

    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", True)
    forget_compiled_scans()
    yield
    forget_compiled_scans()
    jax.config.update("jax_disable_most_optimizations", before)


@pytest.mark.parametrize("setup", SETUPS.values(), ids=[s.title for s in SETUPS.values()])
def test_the_core_as_it_is_passes(setup):
    assert first_failure(setup) == ""


@pytest.mark.parametrize("name", sample(FAULTS, 10))
def test_a_fault_is_caught(name, monkeypatch):
    planted = FAULTS[name]
    planted.plant(monkeypatch)
    for key, reason in planted.caught.items():
        assert reason in first_failure(SETUPS[key]), SETUPS[key].title
    if "numpy" not in planted.caught:  # else NumPy would have shown it, and nothing would be proved
        assert first_failure(SETUPS["numpy"]) == ""


def test_numpy_sees_few_and_the_setups_together_all():
    assert len(FAULTS) >= 25
    assert all(f.caught and f.caught.keys() <= SETUPS.keys() for f in FAULTS.values())
    assert {key: sum(key in f.caught for f in FAULTS.values()) for key in SETUPS} == CAUGHT


def test_a_compiled_scan_hides_no_patch(monkeypatch):
    def passes():
        return check_backend("jax", kernel="require", only=["RC-SCAN-001"]).ok

    assert passes()
    functions = FAMILIES["tanh"].build()
    doubled = replace(functions, f=lambda z, xp: xp.tanh(2 * z))
    monkeypatch.setitem(FAMILIES, "tanh", Family(lambda: doubled))
    forget_compiled_scans()
    assert not passes()


def main() -> None:
    """Print each fault and the setups that catch it, as a Markdown table."""
    import jax

    jax.config.update("jax_disable_most_optimizations", True)
    caught = {}
    for name, planted in FAULTS.items():
        with pytest.MonkeyPatch.context() as patch:
            planted.plant(patch)
            forget_compiled_scans()
            caught[name] = [key for key, setup in SETUPS.items() if first_failure(setup)]
    rows = [["fault", "class", *(s.title for s in SETUPS.values())]]
    rows += [[n, FAULTS[n].kind, *("x" if key in keys else "" for key in SETUPS)] for n, keys in caught.items()]
    rows.append(["all", "", *(str(sum(key in keys for keys in caught.values())) for key in SETUPS)])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    rows.insert(1, ["-" * width for width in widths])
    for row in rows:
        print("| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |")
    print(f"\n{sum(map(bool, caught.values()))} of {len(FAULTS)} are caught.")


if __name__ == "__main__":
    main()
