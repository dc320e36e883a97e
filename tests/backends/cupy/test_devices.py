"""Networks on a device that is not the current one."""

import pickle
from pathlib import Path

import numpy as np
import pytest

import rnncore
from tests.tools.fake_cupy import Elsewhere, on_fake_cupy
from tests.tools.rounding import EPS, PROMISED

NETWORKS = {
    "plain": ({}, {}),
    "no bias, relu": ({"bias": False, "nonlinearity": "relu"}, {}),
    "hard sigmoid, clip": ({"nonlinearity": "hardsigmoid", "clip": 0.3}, {}),
    "bidirectional, lengths": ({"num_layers": 2, "bidirectional": True}, {"lengths": [4, 0, 6]}),
    "widths, batch first": (
        {"hidden_size": [4, 5], "batch_first": True, "bidirectional": True},
        {"lengths": [1, 2, 3]},
    ),
    "dropout": ({"num_layers": 3, "dropout": 0.5}, {"training": True, "rng": 7}),
    "checkpoint": ({"num_layers": 2, "bidirectional": True}, {"checkpoint": 2, "lengths": [4, 0, 6]}),
    "truncate": ({"num_layers": 2}, {"truncate": 2}),
    "check_finite": ({"check_finite": True}, {"lengths": [6, 1, 2]}),
}


@on_fake_cupy()
def test_forward_and_vjp_on_another_device():
    e = Elsewhere()
    for name, (options, call) in NETWORKS.items():
        numpy = rnncore.RNN(**{"input_size": 3, "hidden_size": 4, "rng": 0, **options})
        rnn = numpy.to("cupy", device="cuda:1")
        x = e.rng.standard_normal((3, 6, 3) if options.get("batch_first") else (6, 3, 3))
        forward = {k: v for k, v in call.items() if k not in ("checkpoint", "truncate")}
        e.same(rnn(e.give(x), **forward), numpy(x, **forward))
        output, h_n, pullback = rnn.vjp(e.give(x), **call)
        want_output, want_h_n, want_pullback = numpy.vjp(x, **call)
        e.same((output, h_n), (want_output, want_h_n))
        d = e.rng.standard_normal(want_output.shape)
        got, want = pullback(e.give(d), h_n), want_pullback(d, want_h_n)
        e.same((got.params, got.x, got.h0), (want.params, want.x, want.h0))
        e.same(pullback(None, h_n).params, want_pullback(None, want_h_n).params)
        assert str(rnn.explain()), name


@on_fake_cupy()
def test_float32_and_an_unbatched_input_with_a_state():
    e = Elsewhere()
    numpy = rnncore.RNN(3, 4, 2, dtype="float32", rng=0)
    rnn = numpy.to("cupy", device="cuda:1")
    x, h0 = e.rng.standard_normal((5, 3)).astype("f4"), e.rng.standard_normal((2, 4)).astype("f4")
    e.same(rnn(e.give(x), e.give(h0)), numpy(x, h0))


@on_fake_cupy()
def test_jvp_and_trace_on_another_device():
    e = Elsewhere()
    numpy = rnncore.RNN(3, 4, 2, bidirectional=True, rng=0)
    rnn = numpy.to("cupy", device="cuda:1")
    x, h0 = e.rng.standard_normal((6, 3, 3)), e.rng.standard_normal((4, 3, 4))
    x_dot, h0_dot, w_dot = (e.rng.standard_normal(s) for s in ((6, 3, 3), (4, 3, 4), (4, 4)))
    tangents = {"x_dot": x_dot, "h0_dot": h0_dot}
    for lengths in (None, [4, 0, 6]):
        got = rnn.jvp(
            e.give(x),
            e.give(h0),
            lengths,
            params_dot={"weight_hh_l0": e.give(w_dot)},
            **{k: e.give(v) for k, v in tangents.items()},
        )
        want = numpy.jvp(x, h0, lengths, params_dot={"weight_hh_l0": w_dot}, **tangents)
        e.same((*got[:2], got[2].output, got[2].h_n), (*want[:2], want[2].output, want[2].h_n))
        seen, wanted = rnn.trace(e.give(x), e.give(h0), lengths), numpy.trace(x, h0, lengths)
        e.same((seen.h, seen.z, seen.output, seen.h_n), (wanted.h, wanted.z, wanted.output, wanted.h_n))


@on_fake_cupy()
def test_cells_and_functions_on_another_device():
    e = Elsewhere()
    numpy = rnncore.RNN(3, 4, 2, bidirectional=True, rng=0)
    rnn = numpy.to("cupy", device="cuda:1")
    x, h, d = (e.rng.standard_normal((2, n)) for n in (3, 4, 4))
    pairs = [(rnn.cell(), numpy.cell()), (rnncore.RNNCell(3, 4, backend="cupy", device="cuda:1", rng=1), None)]
    for cell, want_cell in pairs:
        want_cell = want_cell or rnncore.RNNCell(3, 4, rng=1)
        e.same(cell(e.give(x), e.give(h)), want_cell(x, h))
        e.same(cell(e.give(x)), want_cell(x))
        e.same(cell(e.give(x[0]), e.give(h[0])), want_cell(x[0], h[0]))
        got, pull = cell.vjp(e.give(x), e.give(h))
        want, want_pull = want_cell.vjp(x, h)
        e.same(got, want)
        e.same(tuple(pull(e.give(d))), tuple(want_pull(d)))
        e.same(cell.jvp(e.give(x), e.give(h), x_dot=e.give(x)), want_cell.jvp(x, h, x_dot=x))
    params, f = rnn.state_dict(), rnncore.functional
    sequence = e.rng.standard_normal((5, 2, 3))
    e.same(f.rnn(e.give(sequence), params, lengths=[2, 5]), f.rnn(sequence, numpy.state_dict(), lengths=[2, 5]))
    w, want_w = ([m.params[k] for k in ("weight_ih_l0", "weight_hh_l0")] for m in (rnn, numpy))
    e.same(f.rnn_cell(e.give(x), e.give(h), *w), f.rnn_cell(x, h, *want_w))


@on_fake_cupy()
def test_training_on_another_device():
    from rnncore.optim import SGD, Adam, clip_grad_norm

    e = Elsewhere()
    x = e.rng.standard_normal((5, 2, 3))
    for make in (
        lambda: SGD(0.1),
        lambda: SGD(0.1, momentum=0.9, nesterov=True, weight_decay=0.01),
        lambda: Adam(0.1, weight_decay=0.01),
    ):
        numpy = rnncore.RNN(3, 4, rng=0)
        rnn = numpy.to("cupy", device="cuda:1")
        optimisers = make(), make()
        for _ in range(3):
            output, _, pullback = rnn.vjp(e.give(x))
            want_output, _, want_pullback = numpy.vjp(x)
            clipped, norm = clip_grad_norm(pullback(output).params, 0.5)
            want_clipped, want_norm = clip_grad_norm(want_pullback(want_output).params, 0.5)
            assert norm == pytest.approx(want_norm, rel=PROMISED * EPS)
            e.same(clipped, want_clipped)
            rnn.set_params(optimisers[0].step(rnn.params, clipped))
            numpy.set_params(optimisers[1].step(numpy.params, want_clipped))
            e.same(dict(rnn.params), dict(numpy.params))
        again = make()
        again.load_state_dict(optimisers[0].state_dict())
        e.same(again.step(rnn.params, clipped), optimisers[1].step(numpy.params, want_clipped))


@on_fake_cupy()
def test_models_are_copied_moved_saved_and_pickled_from_and_to_any_device():
    import tempfile

    e = Elsewhere()
    numpy = rnncore.RNN(3, 4, 2, rng=0)
    rnn = numpy.to("cupy", device="cuda:1")
    e.same(rnn.state_dict(), numpy.state_dict())
    x = e.rng.standard_normal((5, 2, 3))
    loaded = rnncore.RNN(3, 4, 2, backend="cupy", device="cuda:1", rng=1)
    loaded.load_state_dict(rnn.to(device="cuda:0").state_dict())
    loaded_from_host = rnncore.RNN(3, 4, 2, backend="cupy", device="cuda:1", rng=1)
    loaded_from_host.load_state_dict(numpy.state_dict())
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rnn.safetensors"
        rnn.save(path)
        from_file = rnncore.load(path, backend="cupy", device="cuda:1")
        np.testing.assert_array_equal(rnncore.load(path)(x)[0], numpy(x)[0])
    import copy

    for model in (loaded, loaded_from_host, from_file, pickle.loads(pickle.dumps(rnn)), copy.deepcopy(rnn)):
        assert model.device.id == 1
        e.same(model(e.give(x)), numpy(x))
    there = rnn.to(device="cuda:0")
    assert {p.device.id for p in there.params.values()} == {0} and {p.device.id for p in rnn.params.values()} == {1}
    np.testing.assert_array_equal(rnn.to("numpy")(x)[0], numpy(x)[0])
    import rnncore_cupy

    bound = rnncore_cupy.RNN(3, 4, device="cuda:1", rng=0)
    assert bound.backend == "cupy" and isinstance(pickle.loads(pickle.dumps(bound)), rnncore_cupy.RNN)


@pytest.mark.slow
@on_fake_cupy()
def test_the_conformance_suite_passes_on_every_device():
    from rnncore.testing import check_backend

    for device in ("cuda:0", "cuda:1"):
        report = check_backend("cupy", device=device)
        assert report.ok and report.device == device, report
        assert report.ran > 100


@on_fake_cupy()
def test_nothing_passes_between_host_and_device_but_what_must():
    from cupy import _traffic

    e = Elsewhere()

    def traffic(options, steps, **call):
        rnn = rnncore.RNN(3, 4, 2, bidirectional=True, backend="cupy", device="cuda:1", rng=0, **options)
        x = e.give(e.rng.standard_normal((steps, 3, 3)))
        _traffic.log.clear()
        output, h_n, pullback = rnn.vjp(x, **call)
        pullback(output, h_n)
        if "checkpoint" not in call and "truncate" not in call:
            rnn(x, **call)
            rnn.trace(x, **call)
            rnn.jvp(x, x_dot=x, **call)
        return [direction for direction, _ in _traffic.log]

    for options in (
        {},
        {"nonlinearity": "relu", "clip": 0.4},
        {"nonlinearity": "hardsigmoid"},
        {"nonlinearity": "elu"},
    ):
        assert traffic(options, 6) == [], options
        assert traffic(options, 6, checkpoint=2) == traffic(options, 6, truncate=2) == [], options
    # Lengths are the host's: they are carried over, as often for many steps as for few, and nothing comes back.
    few, many = traffic({}, 6, lengths=[4, 0, 6]), traffic({}, 60, lengths=[4, 0, 60])
    assert few == many and set(few) == {"to device"}
