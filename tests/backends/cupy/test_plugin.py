"""The plugin: devices, streams, transfers, and what is said where CuPy or a GPU is missing."""

import contextlib
import json
import threading

import numpy as np
import pytest

import rnncore
from rnncore.errors import ArgumentTypeError, BackendUnavailableError, DeviceError
from tests.tools.fake_cupy import Elsewhere, needs_real_cupy, on_fake_cupy, python
from tests.tools.rounding import agree


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
                agree(plugin.to_numpy(output), want)
        except BaseException as error:
            faults.append(error)

    threads = [threading.Thread(target=work, args=(k % 2,)) for k in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert faults == []


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
    """An array of some library on a device that records DLPack's requests."""

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
        with pytest.raises(ArgumentTypeError, match=f"that supports DLPack, got {got}"):
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
