"""Saturated states, dead units and slopes that round to 0, counted by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

import rnncore
from rnncore import diagnostics
from rnncore.diagnostics.units import saturation as saturation_file
from rnncore.diagnostics.units.saturation import saturation
from rnncore.errors import ArgumentValueError
from tests.diagnostics.closed_forms import EPS, PLACES, WITH_JAX, seen


@pytest.mark.parametrize(("backend", "dtype"), WITH_JAX)
def test_saturation_counts(backend, dtype):
    far = 12.0 if dtype == "float32" else 20.0  # from 9.1 and 19.1 on, but NumPy's float32 tanh is 1 ulp short there
    z = np.asarray([[[0.0, 3.0], [1.0, 50.0]], [[-far, -2.0], [7.0, 50.0]], [[2.7, 2.6], [7.0, 50.0]]])
    found = seen(backend, dtype, np.eye(2), "tanh", z=z, lengths=[3, 1]).map(saturation, q=(0.0, 0.5, 1.0))
    # Valid: 0, 3, 1, 50, -far, -2, 2.7, 2.6; artanh(0.99) = 2.6467.
    assert found.saturated[0].item() == 4 / 8
    assert found.arithmetically_dead[0].item() == 2 / 8
    assert found.dead[0].item() == 0 and found.dead_units == (((),),)
    assert np.allclose(found.quantiles[0], [[0, 2.6, 50]], rtol=EPS[dtype], atol=0)


@pytest.mark.parametrize(("backend", "dtype"), PLACES)
def test_saturation_of_a_rectifier(backend, dtype):
    z = np.asarray([[[-1.0, 2.0, 0.0], [-1.0, -1.0, 5.0]], [[-3.0, -4.0, -1.0], [1.0, -1.0, 5.0]]])
    found = seen(backend, dtype, np.eye(3), "relu", z=z, lengths=[2, 1], bidirectional=True, num_layers=1).map(
        saturation
    )
    assert found.dead_units == (((0,), (0,)),) and np.allclose(found.dead[0], 1 / 3, rtol=EPS[dtype], atol=0)
    assert np.isnan(found.saturated[0]).all() and (found.arithmetically_dead[0] == 0).all()
    # The padding would have woken unit 0, and nothing else is read there.
    z[1, 1] = np.nan
    again = seen(backend, dtype, np.eye(3), "relu", z=z, lengths=[2, 1]).map(saturation)
    assert again.dead_units == (((0,),),) and np.array_equal(again.quantiles[0][0], found.quantiles[0][0])


def test_saturation_of_other_ranges():
    # The logistic function is tanh in other units: sigma(z) = (1 + tanh(z / 2)) / 2.
    z = np.linspace(-12, 12, 101)[:, None, None]
    half = seen("numpy", "float64", np.eye(1), "tanh", z=z / 2).map(saturation).saturated[0]
    assert np.array_equal(seen("numpy", "float64", np.eye(1), "sigmoid", z=z).map(saturation).saturated[0], half)
    f = rnncore.get_nonlinearity("scaled_tanh", alpha=-3.0, beta=0.5)
    assert np.array_equal(seen("numpy", "float64", np.eye(1), f, z=z).map(saturation).saturated[0], half)
    clipped = rnncore.get_nonlinearity("tanh", clip=1.0)
    assert seen("numpy", "float64", np.eye(1), clipped, z=2 + abs(z)).map(saturation).dead_units == (((0,),),)
    nobody = seen("numpy", "float64", np.eye(1), "tanh", z=np.zeros((2, 1, 1)), lengths=[0]).map(saturation)
    assert np.isnan(nobody.saturated[0]).all() and np.isnan(nobody.quantiles[0]).all()
    with pytest.raises(ArgumentValueError, match="threshold"):
        seen("numpy", "float64", np.eye(1)).map(saturation, threshold=1.0)


@pytest.mark.parametrize("lengths", [None, (2000, 700, 1)])
def test_quantiles_of_drawn_values_are_near_those_of_all(lengths):
    rnn = rnncore.RNN(3, 16, rng=0, dtype="float32", backend="numpy")
    record = diagnostics.record(
        rnn, np.random.default_rng(0).standard_normal((2000, 3, 3)).astype("f4"), lengths=lengths
    )
    found = record.map(diagnostics.saturation)
    z = np.sort(np.abs(record.host(record.z[0][0])[record.valid]).ravel())
    assert len(z) > saturation_file.EXACT
    for p, value in zip(found.q, found.quantiles[0][0], strict=True):
        rank = np.searchsorted(z, value) / len(z)
        # Five standard errors of a rank.
        assert abs(rank - p) < 5 * math.sqrt(p * (1 - p) / saturation_file.EXACT) + 2 / len(z)
        assert value in z
    assert found.quantiles[0][0][-1] == z[-1]
    assert np.array_equal(found.quantiles[0][0], record.map(diagnostics.saturation).quantiles[0][0])
