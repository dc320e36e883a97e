"""The process of one suite: ``python -m benchmarks.gpu.suite NAME FILE`` writes a line of JSON for each outcome at once.

A suite that is stopped keeps the outcomes so far. The exit status is 0 if nothing failed.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass, field
from typing import Any

# These checks contain functions without a kernel, which kernel="require" has to refuse.
WITHOUT_KERNEL = ("RC-SCAN-005", "RC-FWD-010", "RC-FWD-011", "RC-GRAD-008", "RC-DIFF-001", "RC-NUM-001", "RC-NUM-005")
RULE = "RNNCORE_TORCH_CUDA"
REQUIRED = {"kernel": "require", "expected_failures": dict.fromkeys(WITHOUT_KERNEL, "a function without a kernel")}


@dataclass(frozen=True)
class Suite:
    """A suite: the libraries that have to see a GPU, the arguments of check_backend, and the environment."""

    needs: tuple[str, ...]
    arguments: dict[str, Any] = field(default_factory=dict)
    environment: dict[str, str] = field(default_factory=dict)


SUITES = {
    "cupy": Suite(("cupy",)),
    "cupy, kernels required": Suite(("cupy",), REQUIRED),
    # The networks of the suite are so small that they reach one kernel only.
    "cupy, every kernel": Suite(("cupy",)),
    # The rule leaves scans as short as the suite's to PyTorch, so the kernels get a suite of their own.
    "torch": Suite(("torch",), {"device": "cuda"}, {RULE: "rule"}),
    "torch, on the kernels": Suite(("torch", "cupy"), {"device": "cuda"}, {RULE: "kernels"}),
    # The tightest checks are in float64.
    "jax": Suite(("jax",), {"device": "cuda"}, {"JAX_ENABLE_X64": "1", "XLA_PYTHON_CLIENT_PREALLOCATE": "false"}),
}


def main(name: str, file: str) -> int:
    """Run one suite."""
    from benchmarks.gpu import kernels
    from rnncore.testing import check_backend

    failed = False
    with open(file, "w", buffering=1, encoding="utf-8") as out:

        def note(outcome: dict[str, Any]) -> None:
            nonlocal failed
            failed |= outcome.get("status") == "failed"
            out.write(json.dumps(outcome) + "\n")

        if name == "cupy, every kernel":
            note(kernels.run(note))
        else:
            suite, keys = SUITES[name], ("id", "rule", "status", "reason")
            report = check_backend(
                suite.needs[0],
                on_outcome=lambda outcome, *at: note({key: getattr(outcome, key) for key in keys}),
                **suite.arguments,
            )
            note({"precision": report.precision, "device": report.device})
            failed |= not report.ok
    return int(failed)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
