"""Scans that take forms pass the suite, and each planted fault of ``form_scans`` is failed by the checks named for it."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pytest
from form_scans import FAULTS, FormBackend

from rnncore.backend.contract import ScanRequest
from rnncore.network.engine import make_engine
from rnncore.testing import CHECKS, check_backend

GROUPS = ["RC-CARRY", "RC-RAGGED", "RC-NETS", "RC-KER"]
CARRY = ScanRequest("linear", 6, 3, 5, "float64", "cpu", carry=(("a", "unit"),))


def test_sound_scans_of_every_form_pass():
    report = check_backend(FormBackend(), only=[*GROUPS, "RC-CON", "RC-SCAN"])
    assert report.ok, str(report)
    assert "RC-KER-011" in {o.id for o in report.outcomes if o.status == "passed"}
    assert check_backend(FormBackend(), only=GROUPS, kernel="require").ok


@pytest.mark.parametrize("form", ["carry", "ragged", "networks"])
def test_scans_may_name_one_form_alone(form):
    backend = FormBackend()
    backend.scan_forms = frozenset({form})
    report = check_backend(backend, only=GROUPS)
    assert report.ok, str(report)


def test_scans_of_contract_version_1_are_given_no_form():
    """Whatever their other members are called: the plain scans run, and the reference runs the forms."""
    backend = FormBackend()
    backend.contract_version = 1
    engine = make_engine(backend, device="cpu", dtype=np.float64, kernel="auto")
    carry, rows = engine.choose(CARRY), engine.choose(replace(CARRY, carry=None, ragged=True))
    assert (carry.path, rows.path) == ("reference", "reference")
    assert carry.reason == "the scans of backend 'numpy' do not name the form carry"
    assert engine.choose(replace(CARRY, carry=None)).path == "kernel"
    assert check_backend(backend, only=GROUPS).ok


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_a_fault_is_failed_by_every_check_named_for_it(fault):
    with fault.plant() as backend:
        report = check_backend(backend, only=fault.caught)
    for outcome in report.outcomes:
        print(f"{fault.name} | {outcome.id} | {outcome.reason}")
        assert outcome.status == "failed", f"{outcome.id} {outcome.status}: {outcome.rule}"
        assert re.search(fault.caught[outcome.id], outcome.reason), outcome.reason


def test_every_check_of_forms_fails_for_some_fault():
    caught = {id for fault in FAULTS for id in fault.caught}
    of_forms = {id for id in CHECKS if id.startswith(("RC-CARRY", "RC-RAGGED", "RC-NETS"))}
    of_forms |= {"RC-KER-009", "RC-KER-010", "RC-KER-011"}
    assert of_forms <= caught
