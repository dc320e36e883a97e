"""What the host asks of the CUDA kernels: the rule that picks a regime, and every launch, on the stand-in for CuPy.

The stand-in refuses what a GPU would refuse: more shared memory than was allowed, more waiting blocks than are resident, an
argument of another type than the kernel reads, an array with gaps. In the last test it runs the kernels' own source.
"""

import math
import random
from dataclasses import replace

import cuda_on_cpu
import ml_dtypes
import numpy as np
import pytest
from rnncore_cupy._plan import Limits, choose

import rnncore
from rnncore import get_nonlinearity, scan
from rnncore.backend.contract import ScanRequest
from rnncore.errors import KernelUnsupportedError
from tests.tools.fake_cupy import on_fake_cupy
from tests.tools.places import ROOT
from tests.tools.rounding import PROMISED, agree

H100 = Limits(132, 232448, 65536, True)
A100 = Limits(108, 166912, 65536, True)
SMALL = Limits(14, 101376, 65536, True)
WIDTHS = (
    1,
    2,
    5,
    31,
    32,
    33,
    64,
    100,
    128,
    200,
    256,
    257,
    300,
    384,
    511,
    1000,
    1024,
    1531,
    2048,
    2690,
    2700,
    5000,
    20000,
)
BATCHES = (1, 2, 3, 7, 64, 133, 1000, 100_000)


def everything(plan):
    return 10**9


def one_on_each(limits):
    return lambda plan: limits.multiprocessors


# --- the rule ----------------------------------------------------------------------------------------------------------


def check(plan, width, batch, itemsize, limits, resident):
    """What a launch of the plan must not do, counted anew from what the kernels use."""
    if plan.regime == "product":
        return
    quads = max(plan.kept, -(-width // (4 * plan.lanes)))
    copies = 2 * plan.states * quads * plan.lanes * 4
    assert plan.shared == (copies + (quads - plan.kept) * 16 * plan.threads) * itemsize <= limits.shared_bytes
    registers = (16 * plan.kept + 4 * plan.states) * itemsize // 4
    assert plan.threads <= 1024 and plan.threads % 32 == 0 and registers * plan.threads < limits.registers
    assert 32 % plan.lanes == 0 and plan.states in (1, 2, 4, 8) and plan.kept >= 1
    rows_of_a_block = plan.threads // plan.lanes * 4
    if plan.regime == "block":
        assert rows_of_a_block >= width and plan.grid == (-(-batch // plan.states), 1) and plan.grid[0] < 2**31
    else:
        along, across = plan.grid
        assert (along - 1) * rows_of_a_block < width <= along * rows_of_a_block
        assert (across - 1) * plan.tile < batch <= across * plan.tile and across < 65536
        assert along * across <= resident(plan)


@pytest.mark.parametrize(
    "limits", [H100, A100, SMALL, replace(H100, shared_bytes=48 * 1024), replace(A100, registers=32768)]
)
def test_no_plan_asks_for_more_than_there_is(limits):
    for width in WIDTHS:
        for batch in BATCHES:
            for itemsize in (4, 8):
                resident = one_on_each(limits)
                check(choose(width, batch, itemsize, limits, resident), width, batch, itemsize, limits, resident)


def test_the_devices_own_count_of_resident_blocks_decides():
    draw = random.Random(0)
    for _ in range(300):
        width, batch, itemsize = draw.choice(WIDTHS), draw.choice(BATCHES), draw.choice((4, 8))
        limits, room = draw.choice((H100, A100, SMALL)), draw.choice((0, 1, 3, 20, 100, 500))
        resident = lambda plan, room=room: room  # noqa: E731
        plan = choose(width, batch, itemsize, limits, resident)
        check(plan, width, batch, itemsize, limits, resident)
        if room == 0:
            assert plan.regime == "product"


def test_the_regimes_are_where_they_were_meant_to_be():
    regime = lambda width, batch, size=4, of=H100: choose(width, batch, size, of, one_on_each(of)).regime  # noqa: E731
    assert all(regime(width, batch) == "block" for width in (1, 64, 128, 256) for batch in (1, 64, 10_000))
    assert all(regime(width, batch) == "grid" for width in (320, 512, 1024) for batch in (1, 16, 64))
    assert regime(2700, 1) == "grid" and regime(2700, 1, of=SMALL) == "product"
    assert regime(1024, 4096) == "product" and regime(8192, 1) == "product"
    assert regime(128, 64, size=8) == "block" and regime(1024, 1, size=8) == "grid"
    assert regime(512, 64, of=replace(H100, cooperative=False)) == "product"


def test_every_plan_has_its_reason():
    words = {
        (256, 64, H100): "a block with the whole matrix for each row of 64",
        (64, 500, H100): "a block with the whole matrix for every 4 rows of 500",
        (
            512,
            64,
            H100,
        ): "8 x 16 blocks on 132 multiprocessors, each with 64 rows of the matrix and 4 of 64 rows of the batch",
        (8192, 1, H100): "a matrix of width 8192 is more than its 132 multiprocessors hold",
        (1024, 4096, H100): "the products of 4096 rows dominate",
        (512, 1, replace(H100, cooperative=False)): "the device has no cooperative launch",
    }
    for (width, batch, limits), reason in words.items():
        assert reason in choose(width, batch, 4, limits, one_on_each(limits)).reason


# --- launches on the stand-in --------------------------------------------------------------------------------------------

# What the device is made out to be, so that small arrays meet each regime.
DEVICES = {
    "block": {},
    "block, spilling into shared memory": {"MaxRegistersPerBlock": 256 * 104},
    "grid": {"MaxRegistersPerBlock": 64 * 160, "MaxSharedMemoryPerBlockOptin": 9000, "MultiProcessorCount": 24},
    "product": {"MaxRegistersPerBlock": 32 * 64, "MultiProcessorCount": 3},
}


def device(kind):
    """Make the device one of these, and forget what the plugin knows about it."""
    from cupy.cuda import runtime
    from rnncore_cupy import _kernels

    runtime.attributes.update(
        {
            "MultiProcessorCount": 132,
            "MaxSharedMemoryPerBlockOptin": 232448,
            "MaxRegistersPerBlock": 65536,
            **DEVICES[kind],
        }
    )
    for cached in (_kernels.limits, _kernels.plan, _kernels.kernel):
        cached.cache_clear()


def arrays(steps, batch, width, dtype="f8"):
    """The arguments of both scans on device 1, and on the host."""
    import cupy

    rng = np.random.default_rng(0)
    shape = (steps, batch, width)
    host = [rng.standard_normal(shape), rng.uniform(-1, 1, shape), rng.standard_normal(shape[1:])]
    host.append(rng.standard_normal((width, width)) / math.sqrt(max(width, 1)))
    host = [x.astype(dtype) for x in host]
    with cupy.cuda.Device(1):
        return [cupy.asarray(x) for x in host], host


def expected(kind):
    return (
        kind.partition(",")[0]
        .replace("product", "step_alone")
        .replace("block", "block_scan")
        .replace("grid", "grid_scan")
    )


@on_fake_cupy()
def test_both_scans_in_every_regime():
    import cupy
    from cupy import _raw

    scans, tanh = rnncore.get_backend("cupy").scans(), get_nonlinearity("tanh", clip=0.9)
    for kind in DEVICES:
        device(kind)
        # The halves are summed in float32: each state is rounded once, and passes that on to a few more.
        for dtype, multiple in (("f8", PROMISED), ("f4", PROMISED), ("f2", 16), (ml_dtypes.bfloat16, 16)):
            for steps, batch, width in ((1, 1, 1), (5, 3, 70), (3, 7, 101)):
                if kind != "block" and width == 1:
                    continue
                (u, d, h0, w), host = arrays(steps, batch, width, dtype)
                exact = [x.astype("f8") for x in host]
                for reverse in (False, True):
                    _raw.launches.clear()
                    got = scans.nonlinear(u, h0, w, nonlinearity=tanh, reverse=reverse)
                    want = scan.nonlinear(exact[0], exact[2], exact[3], nonlinearity=tanh, reverse=reverse, xp=np)
                    agree(got._host, want, multiple)
                    got = scans.linear(u, d, h0, w.T, reverse=reverse)
                    want = scan.linear(exact[0], exact[1], exact[2], exact[3].T, reverse=reverse, xp=np)
                    agree(got._host, want, multiple)
                    assert got.device.id == 1 and got.dtype == u.dtype and cupy.cuda.runtime.getDevice() == 0
                    regimes = {launch["name"].partition("<")[0] for launch in _raw.launches}
                    assert regimes == {expected(kind)}, (kind, dtype, width, regimes)
                    assert len(_raw.launches) == (2 * steps if kind == "product" else 2)
                    cooperative = {launch["cooperative"] for launch in _raw.launches}
                    assert cooperative == {kind == "grid"}
                for x, before in zip((u, d, h0, w), host, strict=True):
                    assert x._host.tobytes() == before.tobytes()  # no argument is changed


@on_fake_cupy()
def test_views_are_copied_where_they_have_gaps_and_overwritten_where_that_is_allowed():
    import cupy

    device("block")
    scans, relu = rnncore.get_backend("cupy").scans(), get_nonlinearity("relu")
    (u, d, h0, w), host = arrays(4, 3, 10)
    want = scan.nonlinear(host[0], host[2], host[3], nonlinearity=relu, reverse=False, xp=np)
    with cupy.cuda.Device(1):
        gaps = cupy.asarray(np.repeat(host[0], 2, axis=2))[:, :, ::2]
        state = cupy.broadcast_to(h0[:1], h0.shape)
        matrix = cupy.asarray(np.repeat(np.repeat(host[3], 2, 0), 2, 1))[::2, ::2]
    before = gaps._host.copy()
    for overwrite in (False, True):
        got = scans.nonlinear(gaps, h0, matrix, nonlinearity=relu, reverse=False, overwrite=overwrite)
        agree(got._host, want)
        assert not np.shares_memory(got._host, gaps._host) and (gaps._host == before).all()
    got = scans.nonlinear(u, state, w, nonlinearity=relu, reverse=False)
    want_state = np.broadcast_to(host[2][:1], host[2].shape)
    agree(got._host, scan.nonlinear(host[0], want_state, host[3], nonlinearity=relu, reverse=False, xp=np))
    want_s = scan.linear(host[0], host[1], host[2], host[3], reverse=True, xp=np)
    assert np.shares_memory(scans.linear(u, d, h0, w, reverse=True, overwrite=True)._host, d._host)
    agree(d._host, want_s)
    assert np.shares_memory(scans.nonlinear(u, h0, w, nonlinearity=relu, reverse=False, overwrite=True)._host, u._host)
    agree(u._host, want)


@on_fake_cupy()
def test_a_matrix_with_gaps_is_copied_once_and_not_at_each_step():
    import cupy

    device("product")
    scans, seen, dot = rnncore.get_backend("cupy").scans(), [], cupy.dot
    cupy.dot = lambda a, b, out: seen.append(b.flags.c_contiguous or b.flags.f_contiguous) or dot(a, b, out=out)
    (u, d, h0, _), host = arrays(4, 3, 70)
    with cupy.cuda.Device(1):
        matrix = cupy.asarray(np.repeat(np.repeat(host[3], 2, 0), 2, 1))[::2, ::2]
    want = scan.linear(host[0], host[1], host[2], host[3], reverse=False, xp=np)
    got = scans.linear(u, d, h0, matrix, reverse=False)
    agree(got._host, want)
    assert seen == [True] * 4


@on_fake_cupy()
def test_nothing_is_launched_for_nothing():
    from cupy import _raw

    scans = rnncore.get_backend("cupy").scans()
    for steps, batch in ((0, 3), (4, 0), (0, 0)):
        (u, d, h0, w), _ = arrays(steps, batch, 5)
        assert scans.linear(u, d, h0, w, reverse=True).shape == u.shape
        assert scans.nonlinear(u, h0, w, nonlinearity=get_nonlinearity("tanh"), reverse=False).shape == u.shape
        request = ScanRequest("linear", steps, batch, 5, "float64", u.device)
        assert "nothing is launched" in scans.explain(request)
    assert _raw.launches == []


@on_fake_cupy()
def test_what_has_no_kernel_is_reported_and_never_run():
    import cupy

    scans = rnncore.get_backend("cupy").scans()
    request = ScanRequest("nonlinear", 3, 2, 4, "float32", cupy.cuda.Device(1), False, get_nonlinearity("tanh"))
    assert scans.unsupported(request) is None and scans.unsupported(replace(request, dtype="bfloat16")) is None
    assert "complex64 has no kernel; float32, " in scans.unsupported(replace(request, dtype="complex64"))
    softplus = replace(request, nonlinearity=get_nonlinearity("softplus"))
    assert "nonlinearity 'softplus' has no kernel; tanh, relu, sigmoid, identity have" in scans.unsupported(softplus)
    own = rnncore.custom_nonlinearity(lambda z: z, lambda z: 1 + 0 * z, name="tanh")
    assert "'tanh' has no kernel" in scans.unsupported(replace(request, nonlinearity=own))
    # CuPy has products of bfloat16 since 14.0.0 (cupy/_core/_routines_linalg.pyx).
    assert scans.unsupported(replace(request, dtype="bfloat16", width=8192)) is None
    rnn = rnncore.RNN(3, 4, backend="cupy", nonlinearity="softplus", kernel="require", rng=0)
    with pytest.raises(KernelUnsupportedError, match="'softplus' has no kernel"):
        rnn(rnncore.get_backend("cupy").asarray(np.zeros((2, 1, 3)), dtype=rnn.dtype, device=rnn.device))


@on_fake_cupy()
def test_explain_tells_what_is_then_launched():
    from cupy import _raw

    scans = rnncore.get_backend("cupy").scans()
    for kind in DEVICES:
        device(kind)
        (u, d, h0, w), _ = arrays(2, 3, 70)
        told = scans.explain(ScanRequest("linear", 2, 3, 70, "float64", u.device))
        _raw.launches.clear()
        scans.linear(u, d, h0, w, reverse=False)
        assert told.startswith(_raw.launches[0]["name"] + ": "), told
        assert expected(kind) in told


@on_fake_cupy()
def test_the_users_stream_is_used_and_nothing_waits_or_passes_to_the_host():
    import cupy
    from cupy import _raw, _traffic

    scans = rnncore.get_backend("cupy").scans()
    for kind in DEVICES:
        device(kind)
        (u, d, h0, w), _ = arrays(3, 2, 70)
        with cupy.cuda.Device(1):
            stream = cupy.cuda.Stream()
        _raw.launches.clear()
        _traffic.log.clear()
        cupy.cuda.runtime.synchronized.clear()
        with cupy.cuda.Device(1), stream, cupy.cuda.Device(0):
            scans.linear(u, d, h0, w, reverse=False)
            scans.nonlinear(u, h0, w, nonlinearity=get_nonlinearity("tanh"), reverse=True)
        assert all(launch["stream"] is stream for launch in _raw.launches) and _raw.launches
        assert _traffic.log == [] and cupy.cuda.runtime.synchronized == []


@on_fake_cupy()
def test_a_failing_launch_is_the_callers_to_see():
    from cupy import _raw

    u = arrays(2, 3, 7)[0][0]

    def fail(*args):
        raise RuntimeError("CUDA_ERROR_ILLEGAL_ADDRESS")

    _raw.runner = fail
    rnn = rnncore.RNN(7, 7, backend="cupy", device="cuda:1", rng=0)
    with pytest.raises(RuntimeError, match="CUDA_ERROR_ILLEGAL_ADDRESS"):
        rnn(u)


@on_fake_cupy()
def test_only_constants_reach_the_compiler():
    import cupy

    seen = []
    make = cupy.RawModule
    cupy.RawModule = lambda **options: seen.append(options) or make(**options)
    for name in ("tanh", "relu", "sigmoid", "identity"):
        rnn = rnncore.RNN(3, 4, backend="cupy", nonlinearity=name, clip=0.123, rng=0)
        rnn.vjp(rnncore.get_backend("cupy").asarray(np.zeros((2, 1, 3)), dtype=rnn.dtype, device=rnn.device))[2](None)
    assert {options["code"] for options in seen} == {rnncore_source()} and len(seen) == 5
    assert {options["options"] for options in seen} == {("-std=c++17",)}
    words = {"block_scan", "double", "TANH", "RELU", "SIGMOID", "IDENTITY", "LINEAR"}
    for options in seen:
        (name,) = options["name_expressions"]
        assert all(w in words or w.isdigit() for w in name.replace("<", " ").replace(",", " ").rstrip(">").split())


def rnncore_source():
    from rnncore_cupy import _kernels

    text = _kernels.source()
    assert text == "\n".join((ROOT / "backends/rnncore_cupy/cuda" / file).read_text() for file in _kernels.FILES)
    return text


@pytest.mark.skipif(cuda_on_cpu.COMPILER is None, reason="needs g++")
@on_fake_cupy()
def test_a_network_runs_on_the_kernels_own_source():
    """From the layers down to the compiled .cu: both directions, lengths and gradients, in the two persistent regimes."""
    import tempfile

    from cupy import _raw

    folder, libraries = tempfile.mkdtemp(), {}

    def run(kernel, grid, args, shared):
        if kernel.name not in libraries:
            libraries[kernel.name] = cuda_on_cpu.build([kernel.name], folder)
        libraries[kernel.name].launch(kernel.name, grid, (kernel.numbers[-1],), args, shared)

    _raw.runner = run
    for kind, width in (("block", 21), ("grid", 69)):
        device(kind)
        numpy = rnncore.RNN(3, width, bidirectional=True, rng=0)
        rnn = numpy.to("cupy", device="cuda:1")
        (x, _, _, _), (host, _, _, _) = arrays(5, 2, 3)
        output, h_n, pullback = rnn.vjp(x, lengths=[5, 3])
        want_output, want_h_n, want_pullback = numpy.vjp(host, lengths=[5, 3])
        got, want = pullback(output, h_n), want_pullback(want_output, want_h_n)
        agree(output._host, want_output)
        for name, value in want.params.items():
            agree(got.params[name]._host, value)
        assert {name.partition("<")[0] for name in libraries} >= {expected(kind)}
