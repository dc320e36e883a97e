"""Parts of an array, joined along time."""

from types import SimpleNamespace

import array_api_compat.numpy as xp
import numpy as np
import pytest

from rnncore.network.joining import TimeJoin


@pytest.mark.parametrize("writable", [True, False])
@pytest.mark.parametrize("cuts", [[(0, 5)], [(0, 2), (2, 5)], [(4, 5), (0, 1), (1, 4)]])
def test_parts_are_joined_whatever_their_order(cuts, writable):
    whole = np.arange(10.0).reshape(5, 2)
    join = TimeJoin(5, SimpleNamespace(writable=writable, xp=xp, device="cpu"))
    for start, stop in cuts:
        join.put(start, stop, whole[start:stop])
    np.testing.assert_array_equal(join.joined(), whole)
