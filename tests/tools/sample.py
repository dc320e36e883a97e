"""Long lists of cases: some run always, all of them with the slow tests."""

import pytest


def sample(cases, step):
    """The cases, for ``pytest.mark.parametrize``; all but one in `step` are marked slow."""
    return [pytest.param(case, marks=[pytest.mark.slow] if k % step else []) for k, case in enumerate(cases)]
