"""Long lists of cases: some run always, all of them with the slow tests."""

import pytest


def sample(cases, step):
    """The cases, for ``pytest.mark.parametrize``; all but one in `step` are marked slow."""
    rows = [case if isinstance(case, tuple) else (case,) for case in cases]
    return [pytest.param(*row, marks=[pytest.mark.slow] if k % step else []) for k, row in enumerate(rows)]
