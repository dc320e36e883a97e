"""From measured rounds to the page: comparisons, losses, slopes, and the page in docs."""

from __future__ import annotations

import json

import pytest

from benchmarks import case as cases
from benchmarks import report, tables
from benchmarks.case import Case
from benchmarks.markdown import DASH
from benchmarks.pool import PINNED
from tests.tools.places import ROOT
from tests.tools.rounding import EPS

OURS = ["numpy", "numba", "drop-in"]


def measured(case, **seconds):
    """What rounds.measure returns of these seconds."""
    peers = {
        n.replace("_", " "): {"errors": {"both": 2.0}, "first": dict.fromkeys(s, 1.0), "about": "", "seconds": s}
        for n, s in seconds.items()
    }
    return {"case": case.to_json(), "rounds": 3, "peers": peers}


def entry(case, **seconds):
    return tables.summary(measured(case, **seconds), OURS)


def synthetic():
    """Two shapes: at the first, ours is twice as fast as torch and the best peer 1.6 times as fast as ours."""
    first, second = Case(10, 1, 8), Case(20, 2, 8)
    names = {"numpy": "rnncore, NumPy", "numba": "rnncore, Numba", "drop-in": "drop-in", "torch.nn.RNN": "torch.nn.RNN"}

    def times(**by_name):
        return {n: {of: [f * t for f in (1.0, 3.0, 1.1)] for of in cases.PASSES} for n, t in by_name.items()}

    def of(case, numpy, numba, drop_in, torch, peer):
        by_name = {"numpy": numpy, "numba": numba, "drop-in": drop_in, "torch.nn.RNN": torch, "peer": peer}
        return entry(case, **times(**by_name))

    return {
        "environment": {"date": "2026-01-01", "processor": "P", "processors": 2, "system": "S", "python": "3",
                        "versions": {"numpy": "2"}, "removed": [PINNED[0]], "load_before": [0.1, 0, 0], "minutes": 3},
        "options": {"rounds": 3, "quick": False},
        "labels": names | {"peer": "The Peer", "gone": "Gone"},
        "ours": OURS,
        "missing": {"gone": "gone is not installed"},
        "peaks": [{"threads": 1, "dtype": "float32", "gflops": {"NumPy": 1e-3, "PyTorch": 5e-4}}],
        "cases": [of(first, 0.02, 0.016, 0.01, 0.032, 0.01), of(second, 0.016, 0.02, 0.01, 0.008, 0.04)],
        "not_measured": [],
        "blas": ["openblas 1 Zen"],
    }  # fmt: skip


def test_comparisons_take_the_best_of_ours_and_the_best_of_the_others():
    data = synthetic()
    torch, best, plain, drop_in = range(4)
    value = lambda k, case, of="both": tables.mean([data["cases"][case]], of, k).value  # noqa: E731
    assert value(torch, 0) == pytest.approx(2.0, rel=8 * EPS)  # numba's
    assert value(best, 0) == pytest.approx(1 / 1.6, rel=8 * EPS)  # the peer's
    assert value(plain, 1) == pytest.approx(0.5, rel=8 * EPS)
    assert value(best, 1) == pytest.approx(0.5, rel=8 * EPS)  # torch.nn.RNN and numpy
    assert value(drop_in, 0, "forward") == pytest.approx(3.2, rel=8 * EPS)
    assert tables.mean(data["cases"], "both", torch).value == pytest.approx(1.0, rel=8 * EPS)  # 2 and 1/2


def test_the_share_of_the_peak_is_of_the_faster_product():
    data = synthetic()
    first = data["cases"][0]  # 400 x 64 / 10 = 2560 operations forward
    assert tables.share(data, first, "forward", 0.01) == pytest.approx(2560 / 0.01 / 1e6, rel=8 * EPS)
    assert tables.share(data, {"case": first["case"] | {"threads": 2}}, "forward", 0.01) is None


def test_the_page_shows_losses_like_wins():
    page = report.page(synthetic())
    row = next(line for line in page.splitlines() if line.startswith("| 20, 2, 8 |"))
    assert f"| 0.50 (0.50{DASH}0.50) |" in row
    assert "17.6 (numpy)" in row
    assert "vs torch.nn.RNN: slower at 1 of 2 shapes: (20, 2, 8) 0.50." in page
    assert "vs the best peer: slower at 2 of 2 shapes: (10, 1, 8) 0.62; (20, 2, 8) 0.50." in page
    assert "drop-in vs torch.nn.RNN: slower at 1 of 2 shapes" in page
    assert "Gone: gone is not installed." in page
    assert "openblas 1 Zen" in page
    assert f"{PINNED[0]} was set" in page


def test_a_ratio_that_may_be_one_is_reported():
    rounds = {"torch.nn.RNN": {"both": [1.0, 2.0, 3.0]}, "numpy": {"both": [1.5, 1.6, 1.7]}}
    data = synthetic() | {"cases": [entry(Case(10, 1, 8), **rounds)]}
    page = report.page(data)
    assert "- NumPy alone vs torch.nn.RNN: slower at none of 1 shapes." in page
    assert "- NumPy alone vs torch.nn.RNN: undecided, because the interval contains 1, at (10, 1, 8)." in page
    assert "undecided" not in report.page(synthetic())


def test_a_denormal_run_is_published_as_medians_and_an_interval():
    slow, fast = (measured(Case(9, 1, 8), numpy={"both": times}) for times in ([4.0, 8.0, 6.0], [2.0, 2.0, 2.0]))
    fast["peers"]["other"] = slow["peers"]["other"] = {"left_out": "why", "kind": "failed"}
    found = tables.slower(slow, fast)
    assert (
        found["peers"]["numpy"][:3] == [2.0, 6.0, pytest.approx(3.0, rel=8 * EPS)] and found["peers"]["other"] == "why"
    )
    page = report.page(
        synthetic() | {"denormal": [found], "labels": {"numpy": "N", "other": "O"} | synthetic()["labels"]}
    )
    assert "times as long" in page and "O, float32, 1 cases, the first is (9, 1, 8), 1 thread: why." in page


def test_a_sweep_becomes_a_slope_and_a_picture(tmp_path):
    from benchmarks import plots

    data = synthetic()
    data["sweeps"] = [
        {"axis": axis, **entry(Case(*shape), numpy={"both": [1e-6 * n**power] * 3})}
        for axis, power, shapes in (
            ("T", 1, [(n, 2, 8) for n in (64, 128, 256)]),
            ("B", 2, [(9, n, 8) for n in (2, 4, 8)]),
        )
        for shape in shapes
        for n in [shape[0] if axis == "T" else shape[1]]
    ]
    assert "| rnncore, NumPy | 1.00 | 2.00 |" in report.page(data)
    (path,) = plots.draw(data, tmp_path)
    assert path.read_bytes().startswith(b"\x89PNG")


def test_the_page_in_the_documentation_is_that_of_the_numbers():
    numbers = ROOT / "docs" / "performance.json"
    assert numbers.with_suffix(".md").read_text() == report.page(json.loads(numbers.read_text()))
