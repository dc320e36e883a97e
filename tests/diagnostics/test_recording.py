"""Records and lanes, results by lane, and the calls of version 0.1 on whole records."""

from __future__ import annotations

import json
import pickle
import warnings

import numpy as np
import pytest

import rnncore
from rnncore import diagnostics
from rnncore.diagnostics import MOVED
from rnncore.diagnostics.results import leaves, plain
from rnncore.errors import ArgumentValueError
from tests.tools.rounding import agree

T, B, INPUT, H = 7, 2, 3, 4


@pytest.fixture(scope="module")
def seen():
    rnn = rnncore.RNN(INPUT, H, num_layers=2, bidirectional=True, rng=0)
    return diagnostics.record(rnn, np.random.default_rng(0).standard_normal((T, B, INPUT)), lengths=[7, 4])


def test_lanes_are_by_layer_and_then_by_direction(seen):
    assert [(lane.layer, lane.direction) for lane in seen.lanes] == [(0, 0), (0, 1), (1, 0), (1, 1)]
    assert [lane.x.shape[-1] for lane in seen.lanes] == [INPUT, INPUT, 2 * H, 2 * H]
    assert [lane.suffix for lane in seen.lanes][:2] == ["l0", "l0_reverse"]
    assert seen.lane(0, 1) is seen.lanes[1] and seen.lane() is seen.lanes[2]
    for wrong in ({"layer": 2}, {"layer": -3}, {"layer": True}, {"layer": 1.0}, {"direction": 2}, {"direction": -1}):
        with pytest.raises(ArgumentValueError, match=f"^{next(iter(wrong))}: expected an int in"):
            seen.lane(**wrong)


@pytest.mark.parametrize("k", [0, 1])
@pytest.mark.parametrize("d", [0, 1])
def test_a_step_of_a_lane_is_a_step_of_the_network(seen, k, d):
    lane = seen.lane(k, d)
    z = lane.x @ lane.weights.weight_ih.T + lane.weights.bias + lane.previous() @ lane.matrix.T
    agree(lane.masked(z), lane.z, 16)  # sums of at most 16 numbers
    agree(lane.slope(), lane.masked(1 - np.tanh(z) ** 2), 16)
    row, end = 1, 3 if d else 0  # the row's first step in the direction's time
    np.testing.assert_array_equal(lane.first(lane.h)[row], lane.h[end, row])


def test_attributes_of_results_are_attributes_of_the_whole(seen):
    found = seen.map(diagnostics.saturation)
    assert found.threshold == 0.99 and found.dead[1].tolist() == [found[1][0].dead, found[1][1].dead]
    assert found.quantiles[0].shape == (2, len(found.q)) and found.dead_units == (((), ()), ((), ()))
    steps = seen.map(diagnostics.jacobian, sigma_max=True)
    assert steps.sigma_max.upper[1].shape == (2, T, B) and 0 < steps.sigma_max.failure < 0.01
    assert seen.map(diagnostics.jacobian).sigma_max is None
    assert plain(pickle.loads(pickle.dumps(found))) == plain(found)
    with pytest.raises(AttributeError, match="nothing"):
        _ = found.nothing
    with pytest.raises(AttributeError, match=r"\[layer\]\[direction\].quantiles"):
        _ = diagnostics.flow(seen, None)[0].quantiles


def test_results_are_plain_data_by_field_or_by_lane(seen):
    certain, rates = seen.map(diagnostics.bounds), seen.map(diagnostics.lyapunov)
    assert plain(certain)["gamma"] == 1.0 and np.shape(plain(certain)["vanishes"]) == (2, 2)
    assert plain(rates)[1][0]["layer"] == 1
    paths = dict(leaves({"bounds": certain, "lyapunov": rates}))
    assert "['bounds'].log_det[0]" in paths and "['lyapunov'][0][1].entropy_rate" in paths
    assert json.loads(json.dumps(plain([np.float32("nan"), -np.inf, np.bool_(True), None]))) == [
        "nan",
        "-inf",
        True,
        None,
    ]


def test_a_probe_of_a_whole_record_still_works_and_says_what_to_write(seen):
    flows, deltas = diagnostics.flow(seen, None, [[np.ones((B, H))] * 2] * 2)
    nested = {"decompose": (flows,), "weight_gradient": (deltas,)}
    for name in ("saturation", "bounds", "initial", "jacobian", "decompose", "weight_gradient"):
        probe, more = getattr(diagnostics, name), nested.get(name, ())
        with pytest.warns(DeprecationWarning, match=rf"write {name}\(record.lane\(\)") as caught:
            old = probe(seen, *more)
        assert caught[0].filename == __file__ and plain(old) == plain(seen.map(probe, *more))
    with pytest.warns(DeprecationWarning, match="is deprecated"):
        assert plain(diagnostics.decompose(seen, flow=flows)) == plain(seen.map(diagnostics.decompose, flows))
    with pytest.warns(DeprecationWarning, match="is deprecated"):
        assert plain(diagnostics.decompose(record=seen, flow=flows)) == plain(seen.map(diagnostics.decompose, flows))
    with pytest.warns(DeprecationWarning, match="is deprecated"):
        old = diagnostics.horizon(seen, flows, deltas, layer=0, direction=1, max_lag=3)
    lane = seen.lane(0, 1)
    assert plain(old) == plain(diagnostics.horizon(lane, flows[0][1], deltas[0][1], max_lag=3))
    for name in ("product", "lyapunov"):
        probe = getattr(diagnostics, name)
        with pytest.warns(DeprecationWarning, match="is deprecated"):
            assert plain(probe(seen, 2, layer=0, direction=1)) == plain(probe(lane, 2))


def test_classes_of_results_can_still_be_imported_from_the_package():
    for module, names in MOVED.items():
        for name in names.split():
            with pytest.warns(DeprecationWarning, match=f"import it from rnncore.diagnostics.{module}"):
                assert isinstance(getattr(diagnostics, name), type)
    with pytest.raises(AttributeError, match="nothing"):
        _ = diagnostics.nothing
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert all(hasattr(diagnostics, name) for name in diagnostics.__all__)


@pytest.mark.parametrize("backend", ["numpy", "numba", "torch"])
@pytest.mark.parametrize("lengths", [None, [7, 4]])
@pytest.mark.parametrize("batch_first", [False, True])
def test_a_record_is_not_changed_by_what_is_done_to_its_inputs_and_weights(backend, lengths, batch_first):
    """As a step of training does that works in place, or a buffer for x that is filled again."""
    give = rnncore.get_backend(backend).asarray
    rnn = rnncore.RNN(INPUT, H, 2, bidirectional=True, batch_first=batch_first, rng=0, backend=backend, dtype="float64")
    x = np.random.default_rng(0).standard_normal((T, B, INPUT))
    x, h0 = give(np.swapaxes(x, 0, 1) if batch_first else x), give(np.full((4, B, H), 0.5))
    output = give(np.ones((T, B, 2 * H)))

    def found(of):
        flows, deltas = diagnostics.flow(of, output)
        probes = [of.map(probe) for probe in (diagnostics.saturation, diagnostics.bounds, diagnostics.initial)]
        probes += [of.map(diagnostics.weight_gradient, deltas), of.map(diagnostics.jacobian), flows]
        arrays = [of.x, *of.params.values(), *of.inputs, *(h for row in of.h0 for h in row)]
        return [np.array(of.host(a)) for a in arrays], json.dumps(plain(probes))

    kept = diagnostics.record(rnn, x, h0, lengths)
    arrays, probes = found(diagnostics.record(rnn, x, h0, lengths))
    for changed in (x, h0, *rnn.params.values()):
        changed[...] = 7.0
    again, probes_again = found(kept)
    for a, b in zip(arrays, again, strict=True):
        np.testing.assert_array_equal(a, b)
    assert probes == probes_again
