"""The CuPy backend: on a stand-in for CuPy in processes of their own, on the real one where it is installed, and its probe.

The stand-in (tests/fake_cupy) is made of NumPy and runs no GPU code. It shows on which device and stream things happen and
what passes to the host; the numbers of CuPy's kernels are the business of the conformance suite on a GPU.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import pickle
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

import rnncore
from rnncore.errors import ArgumentTypeError, BackendUnavailableError, DeviceError
from tests.tools.fake_cupy import needs_real_cupy, on_fake_cupy, python
from tests.tools.places import FAKE

TIGHT = {"rtol": 1e-12, "atol": 1e-13}

# --- on the stand-in: devices -----------------------------------------------------------------------------------------


@on_fake_cupy(devices=3)
def test_the_current_device_is_the_default_and_all_have_names():
    import cupy
    import rnncore_cupy as plugin

    names = lambda: [plugin.device_name(d) for d in plugin.devices()]  # noqa: E731
    assert names() == ["cuda:0", "cuda:1", "cuda:2"]
    with cupy.cuda.Device(2):
        assert names() == ["cuda:2", "cuda:0", "cuda:1"]
        rnn = rnncore.RNN(2, 3, backend="cupy")
    assert rnn.device == cupy.cuda.Device(2) and "device='cuda:2'" in repr(rnn)
    assert rnn.params["weight_hh_l0"].device == rnn.device
    for asked in ("cuda:1", cupy.cuda.Device(1)):
        assert rnncore.RNN(2, 3, backend="cupy", device=asked).device == cupy.cuda.Device(1)
    assert rnncore.RNN(2, 3, backend="cupy", device="cuda").device == cupy.cuda.Device(0)
    with pytest.raises(DeviceError, match="expected one of cuda:0, cuda:1, cuda:2 of backend 'cupy', got 'cuda:3'"):
        rnncore.RNN(2, 3, backend="cupy", device="cuda:3")


@on_fake_cupy(devices=0)
def test_where_cuda_has_no_device_its_own_words_are_quoted():
    with pytest.raises(BackendUnavailableError, match="cudaErrorNoDevice: no CUDA-capable device is detected"):
        rnncore.RNN(2, 3, backend="cupy")
    assert "cudaErrorNoDevice" in next(b.reason for b in rnncore.backends() if b.name == "cupy")


@on_fake_cupy()
def test_every_creation_function_obeys_device():
    import cupy

    xp = rnncore.get_backend("cupy").namespace()
    there = cupy.cuda.Device(1)
    here = xp.ones((2, 3))
    made = {
        "arange": xp.arange(3, device=there),
        "asarray": xp.asarray([1.0, 2.0], device=there),
        "asarray of an array": xp.asarray(here, device=there),
        "asarray with copy": xp.asarray(here, device=there, copy=True),
        "empty": xp.empty((2, 3), device=there),
        "empty_like": xp.empty_like(here, device=there),
        "eye": xp.eye(3, device=there),
        "from_dlpack": xp.from_dlpack(here, device=there),
        "full": xp.full((2, 3), 7.0, device=there),
        "full_like": xp.full_like(here, 7.0, device=there),
        "linspace": xp.linspace(0.0, 1.0, 5, device=there),
        "ones": xp.ones((2, 3), device=there),
        "ones_like": xp.ones_like(here, device=there),
        "zeros": xp.zeros((2, 3), dtype=xp.float32, device=there),
        "zeros_like": xp.zeros_like(here, device=there),
    }
    standard = "arange asarray empty empty_like eye from_dlpack full full_like linspace ones ones_like zeros zeros_like"
    assert {name.split()[0] for name in made} == set(standard.split())
    assert {name: x.device.id for name, x in made.items() if x.device != there} == {}
    assert cupy.cuda.runtime.getDevice() == 0
    # What is made like an array, or of one, stays with it.
    x = made["ones"]
    for y in (xp.zeros_like(x), xp.full_like(x, 2.0), xp.asarray(x), xp.asarray(x, copy=True), xp.from_dlpack(x)):
        assert y.device == there
    assert xp.asarray(x) is x and xp.asarray(x, copy=True) is not x
    assert xp.zeros((2,)).device.id == 0
    np.testing.assert_array_equal(made["linspace"].get(), np.linspace(0, 1, 5))
    assert made["zeros"].dtype == np.float32
    with pytest.raises(ValueError, match="Unable to avoid copy"):
        xp.asarray(here, device=there, copy=False)


@on_fake_cupy()
def test_clip_compares_on_the_device():
    from cupy import _traffic

    xp = rnncore.get_backend("cupy").namespace()
    host = np.asarray([-3.0, -0.5, np.nan, 0.5, np.inf], dtype="f4")
    x, low = xp.asarray(host), xp.asarray([-1.0, 0.0, 0.0, 1.0, 0.0])
    _traffic.log.clear()
    got = [xp.clip(x, -1.0, 1.0), xp.clip(x, min=0.0), xp.clip(x, max=0.25), xp.clip(x), xp.clip(x, low, None)]
    assert _traffic.log == []
    want = [host.clip(-1, 1), host.clip(0, None), host.clip(None, 0.25), host, np.maximum(host, low.get())]
    for g, w in zip(got, want, strict=True):
        assert g.dtype == np.float32 and g is not x
        np.testing.assert_array_equal(g.get(), w.astype("f4"))
    np.testing.assert_array_equal(xp.clip(xp.asarray([1, 2, 3], dtype=xp.int8), 2, 400).get(), [2, 2, 3])


@on_fake_cupy()
def test_scope_nests_and_is_each_threads_own():
    import cupy
    import rnncore_cupy as plugin

    device = cupy.cuda.runtime.getDevice
    assert plugin.scope(1) is not plugin.scope(1)
    again = plugin.scope(cupy.cuda.Device(1))
    with plugin.scope(1):
        with again, again, plugin.scope(0):
            assert device() == 0
            with again:
                assert device() == 1
            assert device() == 0
        assert device() == 1
        seen = []
        thread = threading.Thread(target=lambda: seen.append(device()))
        thread.start()
        thread.join()
    with contextlib.suppress(KeyError), plugin.scope(1):
        raise KeyError
    assert device() == 0 and seen == [0]


@on_fake_cupy()
def test_threads_work_on_devices_of_their_own():
    import cupy

    numpy = rnncore.RNN(3, 4, 2, bidirectional=True, rng=0)
    plugin = rnncore.get_backend("cupy")
    x = np.random.default_rng(0).standard_normal((7, 2, 3))
    want = numpy(x)[0]
    faults = []

    def work(k):
        try:
            cupy.cuda.Device(1 - k).use()
            rnn = numpy.to("cupy", device=f"cuda:{k}")
            for _ in range(20):
                output, _, pullback = rnn.vjp(plugin.asarray(x, dtype=rnn.dtype, device=rnn.device))
                pullback(output)
                assert output.device.id == k and cupy.cuda.runtime.getDevice() == 1 - k
                np.testing.assert_allclose(plugin.to_numpy(output), want, **TIGHT)
        except BaseException as error:
            faults.append(error)

    threads = [threading.Thread(target=work, args=(k % 2,)) for k in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert faults == []


# --- on the stand-in: models on a device that is not the current one ----------------------------------------------------


class Elsewhere:
    """Models and arrays on device 1 while device 0 is current, beside the same on NumPy."""

    def __init__(self):
        import cupy

        self.cupy, self.plugin = cupy, rnncore.get_backend("cupy")
        self.rng = np.random.default_rng(0)

    def give(self, numbers, dtype=None):
        host = np.asarray(numbers)
        return self.plugin.asarray(host, dtype=host.dtype if dtype is None else dtype, device=self.cupy.cuda.Device(1))

    def same(self, got, want, **tolerance):
        """The same numbers, on device 1; and device 0 is current as before."""
        assert self.cupy.cuda.runtime.getDevice() == 0
        if isinstance(want, dict):
            assert got.keys() == want.keys()
            got, want = list(got.values()), list(want.values())
        if isinstance(want, (list, tuple)):
            assert len(got) == len(want)
            for g, w in zip(got, want, strict=True):
                self.same(g, w, **tolerance)
            return
        assert isinstance(got, self.cupy.ndarray) and got.device.id == 1, type(got)
        assert got.dtype == want.dtype and got.shape == want.shape
        np.testing.assert_allclose(self.plugin.to_numpy(got), want, **(tolerance or TIGHT))


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
    e.same(rnn(e.give(x), e.give(h0)), numpy(x, h0), rtol=1e-5, atol=1e-6)


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
            assert norm == pytest.approx(want_norm, rel=1e-12)
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


@on_fake_cupy()
def test_wrong_arrays_are_named_with_their_library_and_device():
    e = Elsewhere()
    rnn = rnncore.RNN(3, 4, backend="cupy", device="cuda:1")
    x = np.zeros((2, 1, 3))
    with pytest.raises(ArgumentTypeError, match=r"x: expected an array of backend 'cupy' \(cupy\), got numpy.ndarray"):
        rnn(x)
    here = e.plugin.asarray(x, dtype=rnn.dtype, device=e.cupy.cuda.Device(0))
    with pytest.raises(DeviceError, match="x: expected an array on device 'cuda:1', the model's, got 'cuda:0'"):
        rnn(here)
    with pytest.raises(ArgumentTypeError, match=r"expected an array of backend 'numpy'.*got .*\(backend 'cupy'\)"):
        rnncore.RNN(3, 4)(here)
    # Lengths out of bounds, which CuPy's indices would wrap around in silence.
    with pytest.raises(rnncore.errors.ArgumentValueError, match=r"lengths\[0\]: expected an int in \[0, 2\], got 3"):
        rnn(e.give(x), lengths=e.give([3], dtype="i8"))


# --- on the stand-in: the host, streams and other libraries ------------------------------------------------------------


@on_fake_cupy(CUPY_ENABLE_UMP="1")
def test_an_array_is_its_own_even_where_cupy_would_share_the_hosts_memory():
    e = Elsewhere()
    host = np.asarray([1.0, 2.0])
    assert np.shares_memory(e.cupy.array(host)._host, host)  # the stand-in does as CuPy does
    x = e.plugin.asarray(host, dtype=host.dtype, device=e.cupy.cuda.Device(1))
    host[:] = 7
    np.testing.assert_array_equal(e.plugin.to_numpy(x), [1, 2])


@on_fake_cupy()
def test_to_numpy_uses_the_stream_of_the_arrays_own_device():
    e = Elsewhere()
    x = e.give([1.0, 2.0])
    with e.cupy.cuda.Stream():
        with pytest.raises(RuntimeError, match="stream of device 0"):
            x.get()
        np.testing.assert_array_equal(e.plugin.to_numpy(x), [1, 2])
    rnn = rnncore.RNN(2, 3, backend="cupy", device="cuda:1", rng=0)
    with e.cupy.cuda.Stream():
        output, _, pullback = rnn.vjp(e.give([[1.0, 2.0]]))
        pullback(output)
        rnn.to(device="cuda:0")
    halves = e.plugin.to_numpy(e.give([1.5], dtype="f2"))
    assert halves.dtype == np.float16 and halves[0] == 1.5


@on_fake_cupy()
def test_the_users_stream_stays_the_current_one():
    e = Elsewhere()
    stream = e.cupy.cuda.get_current_stream
    used = []
    with e.cupy.cuda.Device(1):
        on_one = e.cupy.cuda.Stream()
        with on_one:
            with e.cupy.cuda.Device(0), e.cupy.cuda.Stream() as on_zero:
                rnn = rnncore.RNN(2, 3, backend="cupy", device="cuda:1", kernel="reference")
                seen = e.cupy.tanh

                def spy(*args, **kwargs):
                    used.append(stream())
                    return seen(*args, **kwargs)

                e.plugin.namespace().tanh = spy
                rnn(e.give([[1.0, 2.0]]))
                assert stream() is on_zero
            assert stream() is on_one
    assert used == [on_one]


@on_fake_cupy()
def test_synchronize_waits_for_the_device_asked_for():
    e = Elsewhere()
    e.plugin.synchronize(e.cupy.cuda.Device(1))
    assert e.cupy.cuda.runtime.synchronized == [1] and e.cupy.cuda.runtime.getDevice() == 0


class Exporter:
    """An array of some library on a device, which writes down what DLPack asks of it."""

    def __init__(self, array, kind=2):
        self.array, self.kind, self.asked = array, kind, None

    def __dlpack_device__(self):
        return self.kind, self.array.device.id

    def __dlpack__(self, **kwargs):
        import cupy

        self.asked = (kwargs["stream"], cupy.cuda.runtime.getDevice())
        return self.array.__dlpack__(**kwargs)


@on_fake_cupy()
def test_an_array_handed_to_another_library_on_its_device_is_no_transfer_to_the_host():
    from rnncore.testing.tools.watch import Watched

    e = Elsewhere()
    x = e.give([1.0, 2.0])
    with Watched(e.plugin) as watched:
        x.__dlpack__(stream=1)
        x.__dlpack__(stream=1, dl_device=x.__dlpack_device__())
        assert watched.taken == []
        with contextlib.suppress(BufferError):
            x.__dlpack__(dl_device=(1, 0))
        assert watched.taken == ["__dlpack__"]


@on_fake_cupy()
def test_from_dlpack_shares_memory_and_names_the_consumers_stream():
    import rnncore_cupy as plugin

    e = Elsewhere()
    theirs = Exporter(e.give([1.0, 2.0]))
    ours = plugin.from_dlpack(theirs)
    assert theirs.asked == (e.cupy.cuda.runtime.streamLegacy, 1)
    with e.cupy.cuda.Device(1):
        theirs.array[0] = 7.0
        stream = e.cupy.cuda.Stream()
        with stream, e.cupy.cuda.Device(0):
            plugin.from_dlpack(theirs)
    assert theirs.asked == (stream.ptr, 1)
    e.same(ours, np.asarray([7.0, 2.0]))
    assert plugin.is_native(plugin.from_dlpack(Exporter(e.give([1.0]), kind=13)))


@on_fake_cupy()
def test_from_dlpack_refuses_what_is_on_the_host():
    import rnncore_cupy as plugin

    with pytest.raises(
        DeviceError, match=r"expected an array on a CUDA device, got numpy.ndarray on DLPack device \(1, 0\)"
    ):
        plugin.from_dlpack(np.ones(3))
    for x, got in (([1.0], "list"), (None, "NoneType"), (1.0, "float")):
        with pytest.raises(ArgumentTypeError, match=f"that speaks DLPack, got {got}"):
            plugin.from_dlpack(x)


@on_fake_cupy()
def test_to_torch_has_pytorch_wait_for_the_stream_of_the_arrays_device():
    import rnncore_cupy as plugin
    import torch

    e = Elsewhere()
    x, asked = e.give([1.0, 2.0]), []

    def consume(array):  # as torch.from_dlpack of a build with CUDA does, with its stream's address
        capsule = array.__dlpack__(stream=99, max_version=(1, 0))
        asked.append((array, capsule.waits_for))
        return torch.zeros(2)

    torch.utils.dlpack.from_dlpack = consume
    with e.cupy.cuda.Device(1), e.cupy.cuda.Stream() as on_one, e.cupy.cuda.Device(0), e.cupy.cuda.Stream():
        assert isinstance(plugin.to_torch(x), torch.Tensor)
    assert len(asked) == 1 and asked[0][0] is x and asked[0][1] is on_one
    for other in (np.ones(2), torch.ones(2), None):
        with pytest.raises(ArgumentTypeError, match=r"expected cupy\.ndarray, got"):
            plugin.to_torch(other)


@on_fake_cupy()
def test_products_are_full_by_default():
    import rnncore_cupy as plugin

    assert plugin.precision(plugin.devices()[1]) == "full"


@on_fake_cupy(CUPY_TF32="1")
def test_tf32_is_told_where_the_user_has_asked_for_it():
    import rnncore_cupy as plugin

    assert plugin.precision(plugin.devices()[1]) == "tf32"


# --- the stand-in itself ------------------------------------------------------------------------------------------------


def test_the_stand_in_refuses_to_be_taken_for_cupy():
    code = "import cupy"
    for environment in ({"RNNCORE_FAKE_CUPY": ""},):
        done = subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True,
            text=True,
            env={**os.environ, "PYTHONPATH": str(FAKE), **environment},
            check=False,
        )
        assert done.returncode == 1 and "stand-in for CuPy" in done.stderr
    assert "NO GPU CODE IS RUN" in (FAKE / "cupy" / "__init__.py").read_text()


@on_fake_cupy()
def test_the_stand_in_is_as_strict_as_cupy():
    import cupy

    x, host = cupy.asarray([1.0, 2.0, 3.0]), np.ones(3)
    assert not isinstance(x, np.ndarray)
    for convert in (np.asarray, np.array, lambda a: np.asarray([a])):
        with pytest.raises(
            TypeError, match=r"Implicit conversion to a NumPy array is not allowed. Please use `.get\(\)`"
        ):
            convert(x)
    mixed = (
        lambda: x + host,
        lambda: host + x,
        lambda: x == host,
        lambda: x @ host,
        lambda: cupy.add(x, host),
        lambda: cupy.where(x > 0, x, host),
        lambda: np.tanh(x, out=host),
        lambda: cupy.concatenate([x, host]),
    )
    for mix in mixed:
        with pytest.raises(TypeError, match=r"Unsupported type <class 'numpy\.ndarray'>"):
            mix()
    with pytest.raises(ValueError, match=r"non-scalar numpy\.ndarray cannot be used for fill"):
        x[...] = host
    for reduced in (x.sum(), cupy.max(x), x[0], cupy.matmul(x, x), x.sum() + 1):
        assert isinstance(reduced, cupy.ndarray) and reduced.shape == ()
    for name in ("zeros", "ones", "empty"):
        with pytest.raises(TypeError, match="device"):
            getattr(cupy, name)((2,), device=cupy.cuda.Device(1))
    with cupy.cuda.Device(1):
        y = cupy.zeros(3)
    assert y.device.id == 1 and y[1:].device.id == 1 and y.reshape(3, 1).device.id == 1
    for use in (
        lambda: y + 1,
        lambda: x + y,
        lambda: y.sum(),
        lambda: cupy.matmul(y, y),
        lambda: y.fill(1),
        lambda: y[[0, 1]],
    ):
        with pytest.raises(ValueError, match=r"resides \(1\) is different from the current device \(0\)"):
            use()
    assert y.copy().device.id == 0 and cupy.asarray(y).device.id == 0
    # Indices out of bounds wrap, where they are arrays.
    np.testing.assert_array_equal(x[cupy.asarray([1, 3])].get(), [2, 1])
    np.testing.assert_array_equal(cupy.take(x, cupy.asarray([-1, 4])).get(), [3, 2])
    x[cupy.asarray([4])] = 9.0
    np.testing.assert_array_equal(x.get(), [1, 9, 3])
    with pytest.raises(IndexError):
        x[3]
    with pytest.raises(TypeError):
        hash(cupy.cuda.Device(0))
    with pytest.raises(TypeError):
        hash(x)
    assert cupy.cuda.Device(0) == cupy.cuda.Device(0) != cupy.cuda.Device(1)
    from rnncore.testing.tools.watch import overlaps

    plugin = rnncore.get_backend("cupy")
    assert overlaps(plugin, x, x[1:]) and not overlaps(plugin, x, x.copy()) and not overlaps(plugin, x[:1], x[1:])
    assert not hasattr(x, "__index__") and not hasattr(x, "__array_namespace__") and not hasattr(x, "to_device")


@needs_real_cupy
def test_the_stand_in_has_nothing_that_cupy_has_not():
    code = """
import json
import cupy, cupy.cuda.device, cupy.cuda.stream
from cupy._core import _routines_linalg

public = lambda module: [n for n in dir(module) if not n.startswith("_")]
every = lambda kind: [n for n in dir(kind) if not n.startswith("_") or n.endswith("__")]
modules = (cupy, cupy.linalg, cupy.fft, cupy.cuda, cupy.cuda.runtime, cupy.cuda.driver, _routines_linalg)
kinds = (cupy.ndarray, cupy.cuda.Device, cupy.cuda.Stream, cupy.cuda.Event, cupy.RawModule, cupy.RawKernel)
print(json.dumps([*map(public, modules), *map(every, kinds)]))
"""
    real = json.loads(python(code))
    fake = json.loads(python(code, PYTHONPATH=str(FAKE), RNNCORE_FAKE_CUPY="2"))
    known = {
        "os",
        "sys",
        "threading",
        "numpy",
        "__module__",
        "__dict__",
        "__weakref__",
    }  # what a module of Python's imports, a class has
    for_tests = {"synchronized", "waited_for", "recorded_on", "attributes", "runtime"}
    for of_fake, of_real in zip(fake, real, strict=True):
        assert set(of_fake) - set(of_real) - known - for_tests == set()


# --- the real CuPy where there is no GPU ---------------------------------------------------------------------------------


@needs_real_cupy
def test_the_real_cupy_without_a_usable_gpu_is_listed_and_refused_in_its_own_words():
    code = """
import json, rnncore
from rnncore.errors import BackendUnavailableError

reason = lambda: next(b.reason for b in rnncore.backends() if b.name == "cupy")
import sys
first, imported = reason(), "cupy" in sys.modules
import cupy
if cupy.cuda.is_available():
    print(json.dumps(None))
    raise SystemExit
try:
    cupy.zeros(3)
except Exception as error:
    words = f"{type(error).__name__}: {error}"
raised = []
with rnncore.use_backend("cupy"):
    for make in (lambda: rnncore.RNN(2, 3), lambda: rnncore.RNN(2, 3, device="cuda:0"), lambda: rnncore.get_backend()):
        try:
            raised.append(repr(make()))
        except BackendUnavailableError as error:
            raised.append(str(error))
print(json.dumps({"first": first, "imported": imported, "words": words, "raised": raised, "last": reason()}))
"""
    told = json.loads(python(code))
    if told is None:
        pytest.skip("CUDA can be used here: the conformance suite is what checks CuPy then")
    assert told["first"].startswith("CUDA cannot be used: ") and not told["imported"]
    assert told["words"].startswith("CUDARuntimeError: cudaError")
    assert all("backend 'cupy'" in text and told["words"] in text for text in told["raised"])
    assert told["words"] in told["last"]


@needs_real_cupy
def test_the_namespace_fits_the_real_cupy():
    code = """
import inspect, rnncore_cupy
xp = rnncore_cupy.namespace()
assert xp.__array_api_version__ >= "2024.12", xp.__array_api_version__
import cupy
assert xp.float32 is cupy.float32 and "linspace" in dir(xp.__dict__ and xp)
for name in "arange empty eye full linspace ones zeros empty_like full_like ones_like zeros_like asarray from_dlpack".split():
    assert "device" in inspect.signature(getattr(xp, name)).parameters, name
assert set(xp.__array_namespace_info__().dtypes(kind="real floating")) == {"float32", "float64"}
linalg = __import__("cupy._core._routines_linalg", fromlist=["_"])
assert linalg.COMPUTE_TYPE_TF32 != 0 and callable(linalg.get_compute_type)
assert cupy.cuda.Device(0) == cupy.cuda.Device(0) and int(cupy.cuda.Device(3)) == 3
assert rnncore_cupy.device_name(cupy.cuda.Device(3)) == "cuda:3" and not rnncore_cupy.is_native(1.0)
"""
    python(code)


# --- the driver, asked by ctypes -----------------------------------------------------------------------------------------


class Driver:
    """libcuda as ctypes shows it: what its functions return, and the devices it counts."""

    def __init__(self, init=0, count=0, devices=1, words=None):
        self.statuses, self.devices, self.words = (init, count), devices, words or {}

    def cuInit(self, flags):
        assert flags == 0
        return self.statuses[0]

    def cuDeviceGetCount(self, pointer):
        ctypes.cast(pointer, ctypes.POINTER(ctypes.c_int))[0] = self.devices
        return self.statuses[1]

    def cuGetErrorName(self, status, pointer):
        return self._say(status, 0, pointer)

    def cuGetErrorString(self, status, pointer):
        return self._say(status, 1, pointer)

    def _say(self, status, which, pointer):
        if status not in self.words:
            return 1
        ctypes.cast(pointer, ctypes.POINTER(ctypes.c_char_p))[0] = self.words[status][which]
        return 0


NO_DEVICE = {100: (b"CUDA_ERROR_NO_DEVICE", b"no CUDA-capable device is detected")}


@pytest.mark.parametrize(
    ("driver", "words"),
    [
        (Driver(), None),
        (
            Driver(init=100, words=NO_DEVICE),
            "CUDA cannot be used: cuInit: CUDA_ERROR_NO_DEVICE: no CUDA-capable device is detected",
        ),
        (
            Driver(count=100, words=NO_DEVICE),
            "CUDA cannot be used: cuDeviceGetCount: CUDA_ERROR_NO_DEVICE: no CUDA-capable device is detected",
        ),
        (Driver(init=34), "CUDA cannot be used: cuInit: CUDA error 34"),
        (Driver(devices=0), "CUDA cannot be used: its driver counts no device"),
        (object(), "CUDA cannot be used: its driver is not one: 'object' object has no attribute 'cuInit'"),
    ],
)
def test_the_driver_is_quoted(monkeypatch, driver, words):
    import rnncore_cupy
    from rnncore_cupy import _driver

    monkeypatch.setattr(_driver, "_load", lambda library: driver)
    assert rnncore_cupy.unusable() == words


def test_the_loader_is_quoted_where_there_is_no_driver(monkeypatch):
    import rnncore_cupy
    from rnncore_cupy import _driver

    monkeypatch.setattr(_driver, "LIBRARY", "libno-such-driver.so.1")
    assert rnncore_cupy.unusable().startswith("CUDA cannot be used: its driver cannot be loaded: ")
    assert "no-such-driver" in rnncore_cupy.unusable()


def test_neither_importing_the_plugin_nor_listing_it_imports_cupy():
    code = (
        "import sys, rnncore_cupy, rnncore; rnncore_cupy.unusable(); rnncore.backends(); print('cupy' in sys.modules)"
    )
    assert python(code).strip() == "False"
    import rnncore_cupy

    from rnncore.backend.contract import CONTRACT_VERSION, Backend, Scans

    assert isinstance(rnncore_cupy, Backend) and rnncore_cupy.contract_version == CONTRACT_VERSION
    assert isinstance(rnncore_cupy.scans(), Scans) and not rnncore_cupy.is_native(np.ones(2))
