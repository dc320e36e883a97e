"""Both scans against the reference, for every width, batch, function and layout."""

import numpy as np
import pytest
from rnncore_numba import _rule, _scans

import rnncore
from rnncore.backend.contract import ScanRequest
from rnncore.errors import KernelUnsupportedError
from rnncore.nonlinearity.nonlinearity import get_nonlinearity
from rnncore.testing.tools.oracle import linear_scan, nonlinear_scan
from tests.tools.numba_scans import DTYPES, FUNCTIONS, SCANS, arguments, assert_close, needs_x86, request
from tests.tools.sample import sample


def check_both(scans, dtype, steps, batch, width, names=FUNCTIONS, clips=(None, 0.5)):
    p, d, h0, w = arguments(dtype, steps, batch, width)
    wide = [x.astype("f8") for x in (p, d, h0, w)]
    for reverse in (False, True):
        assert_close(scans.linear(p, d, h0, w, reverse=reverse), linear_scan(*wide, reverse=reverse))
        for name in names:
            for clip in clips:
                f = get_nonlinearity(name, clip=clip)
                want = nonlinear_scan(
                    wide[0], wide[2], wide[3], name, reverse=reverse, clip=np.inf if clip is None else clip
                )
                assert_close(scans.nonlinear(p, h0, w, nonlinearity=f, reverse=reverse), want)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("width", [1, 3, 8, 15, 16, 17, 33, 48, 63, 70, 129])
def test_every_width_of_tile(dtype, width):
    """One row and several, strips of each number, with and without a part of a vector left over."""
    for batch in (1, 3):
        check_both(SCANS, dtype, 3, batch, width, names=("tanh", "relu"), clips=(None,))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("batch", [*range(1, 18), 23, 31])
def test_every_number_of_rows(dtype, batch):
    check_both(SCANS, dtype, 4, batch, 21, names=("tanh", "identity"), clips=(None,))


@pytest.mark.parametrize("dtype", sample(DTYPES, 2))
def test_every_function_with_and_without_a_limit(dtype):
    check_both(SCANS, dtype, 5, 11, 19)


@pytest.mark.parametrize("dtype", sample(DTYPES, 2))
@pytest.mark.parametrize("batch", [1, 5, 9])
def test_with_blas(dtype, batch, monkeypatch):
    monkeypatch.setattr(_scans, "plan", lambda *shape: (True, 1))
    check_both(SCANS, dtype, 4, batch, 37)


@pytest.mark.parametrize("threads", [2, 3, 40])
def test_threads_change_no_bit_of_a_row(threads, monkeypatch):
    p, d, h0, w = arguments("float32", 5, 48, 24)
    f = get_nonlinearity("tanh")
    one = SCANS.nonlinear(p, h0, w, nonlinearity=f, reverse=False), SCANS.linear(p, d, h0, w, reverse=True)
    monkeypatch.setattr(_scans, "plan", lambda *shape: (False, threads))
    monkeypatch.setattr(_scans, "allowed", lambda: threads)
    many = SCANS.nonlinear(p, h0, w, nonlinearity=f, reverse=False), SCANS.linear(p, d, h0, w, reverse=True)
    if threads <= 6:  # the parts are then of whole tiles of eight rows
        for a, b in zip(one, many, strict=True):
            np.testing.assert_array_equal(a, b)
    check_both(SCANS, "float32", 5, 43, 24, names=("tanh",), clips=(None,))


@pytest.mark.parametrize("shape", [(0, 3, 5), (4, 0, 5), (0, 0, 1), (1, 1, 1)])
def test_empty_and_single_axes(shape):
    check_both(SCANS, "float64", *shape, clips=(None,))


@pytest.mark.parametrize("blas", [False, True])
def test_views_read_only_arrays_and_subclasses(blas, monkeypatch):
    monkeypatch.setattr(_scans, "plan", lambda *shape: (blas, 1))

    class Mine(np.ndarray):
        pass

    plain = arguments("float32", 6, 5, 18)
    f = get_nonlinearity("tanh")
    want = SCANS.nonlinear(plain[0], plain[2], plain[3], nonlinearity=f, reverse=False)
    want_linear = SCANS.linear(*plain, reverse=True)

    def strided(x):
        return np.repeat(x, 2, axis=0)[::2]

    def reversed_view(x):
        return np.ascontiguousarray(x[..., ::-1])[..., ::-1]

    def locked(x):
        y = x.copy()
        y.flags.writeable = False
        return y

    def unaligned(x):
        return np.frombuffer(b"x" + x.tobytes(), x.dtype, offset=1).reshape(x.shape)

    ways = [strided, reversed_view, locked, unaligned, np.asfortranarray, lambda x: x.copy().view(Mine)]
    for way in ways:
        for overwrite in (False, True):
            given = [way(x) for x in plain]
            got = SCANS.nonlinear(given[0], given[2], given[3], nonlinearity=f, reverse=False, overwrite=overwrite)
            np.testing.assert_array_equal(got, want)
            given = [way(x) for x in plain]
            np.testing.assert_array_equal(SCANS.linear(*given, reverse=True, overwrite=overwrite), want_linear)
            for n in (0, 2, 3):
                np.testing.assert_array_equal(given[n], plain[n])
            assert type(got) is np.ndarray


def test_overwriting_is_in_place_and_only_where_allowed():
    p, d, h0, w = arguments("float64", 6, 5, 18)
    f = get_nonlinearity("relu")
    before = [x.copy() for x in (p, d, h0, w)]
    assert SCANS.nonlinear(p, h0, w, nonlinearity=f, reverse=False) is not p
    assert SCANS.linear(p, d, h0, w, reverse=False) is not d
    for x, y in zip((p, d, h0, w), before, strict=True):
        np.testing.assert_array_equal(x, y)
    assert SCANS.linear(p, d, h0, w, reverse=False, overwrite=True) is d
    assert SCANS.nonlinear(p, h0, w, nonlinearity=f, reverse=False, overwrite=True) is p


def test_nothing_is_written_beside_the_result():
    """A mask that is one lane too wide would write into the rows next to it, or past the end."""
    for width in (1, 15, 17, 31, 70):
        for batch in (1, 3, 9):
            p, d, h0, w = arguments("float32", 4, batch, width)
            room = np.full(p.size + 64, 7.0, "f4")
            inside = room[32 : 32 + p.size].reshape(p.shape)
            for run in ("nonlinear", "linear"):
                inside[...] = p if run == "nonlinear" else d
                if run == "nonlinear":
                    SCANS.nonlinear(inside, h0, w, nonlinearity=get_nonlinearity("tanh"), reverse=False, overwrite=True)
                else:
                    SCANS.linear(p, inside, h0, w, reverse=False, overwrite=True)
                assert (room[:32] == 7).all()
                assert (room[32 + p.size :] == 7).all()


@needs_x86
@pytest.mark.parametrize("blas", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_linear_scan_takes_subnormal_numbers_for_0_and_puts_the_flag_back(dtype, blas, monkeypatch):
    monkeypatch.setattr(_scans, "plan", lambda *shape: (blas, 1))
    smallest = np.finfo(dtype).smallest_normal
    u, d = np.zeros((200, 3, 5), dtype), np.full((200, 3, 5), 0.5, dtype)
    s = SCANS.linear(u, d, np.full((3, 5), smallest * 2**40, dtype), np.eye(5, dtype=dtype), reverse=False)
    assert s[30].min() > 0
    assert (s[60:] == 0).all()
    assert ((s == 0) | (s >= smallest)).all()
    assert (np.full(3, smallest) * np.asarray(0.5, dtype) > 0).all()  # everywhere else they count


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_nonlinear_scan_keeps_subnormal_numbers(dtype):
    small = np.finfo(dtype).smallest_subnormal * 6
    p = np.full((1, 3, 5), small, dtype)
    for name in ("identity", "relu", "tanh"):
        h = SCANS.nonlinear(
            p, np.zeros((3, 5), dtype), np.eye(5, dtype=dtype), nonlinearity=get_nonlinearity(name), reverse=False
        )
        assert (h == small).all()


def test_what_is_not_compiled_is_declined_with_a_reason():
    assert "softplus" in SCANS.unsupported(request(1, 1, 1, name="softplus"))
    assert "float16" in SCANS.unsupported(request(1, 1, 1, dtype="float16"))
    assert SCANS.unsupported(request(1, 1, 1)) is None
    square = rnncore.custom_nonlinearity(lambda z: z * z, lambda z: 2 * z, name="tanh")
    assert "no compiled form" in SCANS.unsupported(ScanRequest("nonlinear", 1, 1, 1, "float32", "cpu", False, square))
    with pytest.raises(KernelUnsupportedError, match="softplus"):
        rnncore.RNN(2, 3, nonlinearity="softplus", backend="numba", kernel="require")(np.zeros((4, 2, 2)))


def test_gradients_and_tangents_are_numpys():
    for options in ({}, {"bidirectional": True, "num_layers": 2, "nonlinearity": "sigmoid"}):
        model = rnncore.RNN(5, 23, backend="numba", kernel="require", rng=1, **options)
        other = model.to("numpy")
        x = np.random.default_rng(2).standard_normal((12, 9, 5))
        for lengths in (None, [12, 0, 3, 5, 12, 1, 7, 8, 9]):
            output, _, pullback = model.vjp(x, lengths=lengths)
            want, _, other_pullback = other.vjp(x, lengths=lengths)
            assert_close(output, want)
            got, expected = pullback(np.ones_like(output)), other_pullback(np.ones_like(want))
            assert_close(got.x, expected.x)
            for name, value in expected.params.items():
                assert_close(got.params[name], value)
            assert_close(
                model.jvp(x, lengths=lengths, x_dot=x)[2].output, other.jvp(x, lengths=lengths, x_dot=x)[2].output
            )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("batch", "width"), [(8, 17), (9, 257), (13, 40), (27, 21), (44, 49)])
def test_the_number_of_threads_that_may_be_used_changes_no_bit(dtype, batch, width, monkeypatch):
    """Strips left over, tiles of 8, 4, 2 and 1 row, and parts that end between two tiles of 8."""
    p, d, h0, w = arguments(dtype, 5, batch, width)
    f = get_nonlinearity("tanh")
    worth = batch // _rule.ROWS_PER_THREAD  # the most that the rule takes
    monkeypatch.setattr(_scans, "plan", lambda *shape: (False, worth))
    found = []
    for threads in range(1, worth + 1):
        monkeypatch.setattr(_scans, "allowed", lambda threads=threads: threads)
        found.append(
            (SCANS.nonlinear(p, h0, w, nonlinearity=f, reverse=False), SCANS.linear(p, d, h0, w, reverse=True))
        )
    for scans in found[1:]:
        for one, many in zip(found[0], scans, strict=True):
            np.testing.assert_array_equal(one, many)
