"""Arguments of both scans and ways to run them, for checks of how a backend's scans behave rather than of their results."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, TypeAlias

from rnncore.nonlinearity.nonlinearity import as_nonlinearity
from rnncore.testing.tools.case import BATCH, STEPS, WIDTH
from rnncore.testing.tools.subject import Subject

__all__ = ["Scan", "both_scans", "run_scan", "scan_arguments"]

Scan: TypeAlias = Callable[[Mapping[str, Any]], Any]


def scan_arguments(s: Subject) -> dict[str, Any]:
    """Draw host numbers for both scans: p, u, d (T, B, H), h0 (B, H), w (H, H)."""
    names = {n: s.draw(STEPS, BATCH, WIDTH) for n in ("p", "u", "d")}
    return names | {"h0": s.draw(BATCH, WIDTH), "w": s.weights(WIDTH)}


def both_scans(s: Subject) -> dict[str, Scan]:
    """Both scans in both directions, by the names of their results."""
    engine, f = s.engine(), as_nonlinearity("tanh")

    def nonlinear(a: Mapping[str, Any], reverse: bool) -> Any:
        return engine.nonlinear(a["p"], a["h0"], a["w"], nonlinearity=f, reverse=reverse)

    def linear(a: Mapping[str, Any], reverse: bool) -> Any:
        return engine.linear(a["u"], a["d"], a["h0"], a["w"], reverse=reverse)

    forwards = {"h": partial(nonlinear, reverse=False), "s": partial(linear, reverse=False)}
    return forwards | {"h in reverse": partial(nonlinear, reverse=True), "s in reverse": partial(linear, reverse=True)}


def run_scan(s: Subject, scan: Scan, given: Mapping[str, Any]) -> Any:
    """Run a scan from host numbers to host numbers."""
    with s.scope():
        return s.host(scan({k: s.give(v) for k, v in given.items()}))
