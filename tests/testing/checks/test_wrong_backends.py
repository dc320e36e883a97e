"""Every wrong backend is failed by the checks named for its fault."""

import re
from collections import Counter

import numpy as np
import pytest
import rnncore_numpy
from wrong_backends import ZOO, Altered, honest_tf32

import rnncore
from rnncore.scan import nonlinear as reference
from rnncore.testing import CHECKS, check_backend
from tests.tools.sample import sample

FEWEST = 24


@pytest.mark.parametrize("wrong", sample(ZOO, 6), ids=lambda wrong: wrong.name)
def test_a_wrong_backend_is_failed_by_every_check_named_for_its_fault(wrong):
    with wrong.plant() as backend:
        report = check_backend(backend, only=wrong.caught)
    assert not report.ok
    for outcome in report.outcomes:
        print(f"{wrong.name} | {outcome.id} | {outcome.reason}")
        assert outcome.status == "failed", f"{outcome.id} {outcome.status}: {outcome.rule}"
        assert re.search(wrong.caught[outcome.id], outcome.reason), outcome.reason


@pytest.mark.parametrize("sound", sorted({wrong.of for wrong in ZOO}))
def test_the_same_checks_pass_on_the_sound_backend(sound):
    ids = sorted({id for wrong in ZOO if wrong.of == sound for id in wrong.caught})
    report = check_backend(sound, only=ids)
    assert [o.id for o in report.outcomes if o.status != "passed"] == [], str(report)
    assert len(report.outcomes) == len(ids)


def test_planting_a_fault_leaves_nothing_behind():
    """After all of the zoo the sound backends still are."""
    for wrong in ZOO:
        with wrong.plant():
            pass
    assert check_backend("numpy", only=["RC-FWD", "RC-GRAD", "RC-KER", "RC-LEN", "RC-PURE"]).ok


def test_the_zoo_is_large_and_every_fault_has_a_name_and_a_check():
    assert len(ZOO) >= FEWEST
    repeated = [name for name, count in Counter(wrong.name for wrong in ZOO).items() if count > 1]
    assert not repeated
    for wrong in ZOO:
        assert wrong.caught, wrong.name
        assert set(wrong.caught) <= set(CHECKS), wrong.name


@pytest.mark.slow
def test_tf32_passes_the_whole_suite_where_precision_says_so():
    with honest_tf32() as backend:
        report = check_backend(backend)
    assert report.ok, str(report)
    assert report.precision == "tf32" and "precision tf32" in str(report)
    assert report.ran > 100


def partial(takes):
    """NumPy's backend with scans that are honest about what they take."""
    scans = rnncore_numpy.scans()
    declines = lambda r, /: scans.unsupported(r) or (None if takes(r) else "not taken here")  # noqa: E731
    return Altered(rnncore_numpy, scans=lambda: Altered(scans, unsupported=declines))


@pytest.mark.slow
@pytest.mark.parametrize(
    "takes",
    [lambda r: r.dtype == "float32", lambda r: r.scan == "nonlinear", lambda r: r.scan == "linear"],
    ids=["float32 only", "nonlinear only", "linear only"],
)
def test_scans_that_decline_honestly_pass(takes):
    report = check_backend(partial(takes))
    assert report.ok, str(report)


def test_scans_that_take_nothing_are_no_scans():
    report = check_backend(partial(lambda r: False), only=["RC-KER-001"])
    assert report.count("failed") == 1 and "refuse a tanh network" in report.outcomes[0].reason


@pytest.mark.parametrize(
    ("wrong", "ids"),
    [
        (lambda f, reverse, dtype: reverse and f.name == "sigmoid", {"RC-KER-005", "RC-FWD-010", "RC-GRAD-008"}),
        (lambda f, reverse, dtype: reverse and f.clip is not None, {"RC-KER-005", "RC-FWD-011", "RC-GRAD-009"}),
        (lambda f, reverse, dtype: dtype == "float16" and f.name != "tanh", {"RC-KER-005"}),
    ],
    ids=["sigmoid in reverse", "a clip in reverse", "float16 but for tanh"],
)
def test_a_scan_that_is_wrong_in_one_corner_is_caught(wrong, ids):
    scans, xp = rnncore_numpy.scans(), rnncore_numpy.namespace()

    def unsupported(request, /):
        return None if request.dtype == "float16" else scans.unsupported(request)

    def nonlinear(p, h0, w_hh, /, *, nonlinearity, reverse, overwrite=False):
        h = reference(p, h0, w_hh, nonlinearity=nonlinearity, reverse=reverse, xp=xp)
        return h * 0 + 0.25 if wrong(nonlinearity, reverse, p.dtype.name) else h

    made = Altered(scans, unsupported=unsupported, nonlinear=nonlinear)
    report = check_backend(Altered(rnncore_numpy, scans=lambda: made), only=sorted(ids))
    assert {o.id for o in report.outcomes if o.status == "failed"} == ids, str(report)


def test_arrays_of_numpy_are_not_another_backends():
    strict = rnncore.get_backend("strict")

    greedy = Altered(strict, is_native=lambda x, /: isinstance(x, np.ndarray) or strict.is_native(x))
    report = check_backend(greedy, only=["RC-CON-007"])
    assert report.count("failed") == 1
