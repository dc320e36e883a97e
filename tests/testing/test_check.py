"""The table of checks: ids, groups and rules."""

import re

import pytest

from rnncore.testing import CAPABILITIES, CHECKS, TOLERANCES, check_backend
from tests.tools.places import ROOT


def test_there_are_at_least_80_checks_and_12_relations():
    assert len(CHECKS) >= 80
    assert len([c for c in CHECKS.values() if c.group == "META"]) >= 12


def test_ids_are_stable_and_rules_are_one_line():
    for id, check in CHECKS.items():
        assert re.fullmatch(r"RC-[A-Z]+-\d{3}", id) and check.id == id
        assert 10 < len(check.rule) < 125 and "\n" not in check.rule
        assert not check.rule[0].isupper() or check.rule.split()[0].isupper() or "NaN" in check.rule
        assert set(check.needs) <= set(CAPABILITIES) and check.tolerance in TOLERANCES
    rules = [c.rule for c in CHECKS.values()]
    assert len(set(rules)) > 0.9 * len(rules)


def test_numbers_of_a_group_are_consecutive():
    for group in {c.group for c in CHECKS.values()}:
        numbers = [int(i[-3:]) for i, c in CHECKS.items() if c.group == group]
        assert numbers == list(range(1, len(numbers) + 1)), group


@pytest.mark.slow
def test_largest_errors_are_well_within_what_is_allowed():
    """A correct backend has a few eps of the allowed 64; more would mean that a check measures its own error."""
    for backend in ("numpy", "torch", "strict"):
        worst = check_backend(backend).worst
        assert worst is not None and 0 < worst.error_eps < 40, worst


def test_the_page_has_a_row_for_every_check_and_no_failure():
    """docs/conformance.py writes it; a check added since is missing there."""
    page = (ROOT / "docs" / "conformance.md").read_text()
    rows = re.findall(r"^\| (RC-[A-Z]+-\d{3}) \| (.*?) \|", page, re.M)
    assert [id for id, _ in rows] == list(CHECKS)
    assert "✗" not in page and page.count("0 failed") >= 4
