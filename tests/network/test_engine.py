"""Which code runs a scan, and why."""

from contextlib import nullcontext
from dataclasses import replace

import numpy as np
import pytest
from array_api_compat import numpy as xp
from form_scans import FormBackend, FormScans
from rnncore_numpy._scans import NumpyScans

import rnncore
from rnncore import scan
from rnncore.backend.abilities import SCAN_FORMS
from rnncore.backend.contract import ScanRequest
from rnncore.carry import Carry
from rnncore.errors import DTypeError, KernelUnsupportedError, ShapeError, UnknownNameError
from rnncore.network.engine import (
    KEPT_ZEROS,
    REMEMBERED,
    Choice,
    Explanation,
    check_kernel_mode,
    make_engine,
)
from tests.tools.drawn import normal

EPS = np.finfo("f8").eps
# A kernel adds the products of a step in an order of its own: an eps or two in each of a few steps, of states in [-1, 1]
# and of linear ones of several units.
CLOSE, CLOSE_LINEAR = 8 * EPS, 32 * EPS


def test_explain_says_which_path_runs_and_why():
    assert [c.path for c in rnncore.RNN(2, 3).explain().choices] == ["kernel", "kernel"]
    reference = rnncore.RNN(2, 3, kernel="reference").explain()
    assert [c.path for c in reference.choices] == ["reference", "reference"]
    odd = rnncore.RNN(2, 3, nonlinearity="softplus")
    assert [c.path for c in odd.explain().choices] == ["reference", "kernel"]
    assert "softplus" in str(odd.explain()) and "backend numpy, device cpu, float64" in str(odd.explain())


def test_require_is_never_answered_by_the_reference():
    rnn = rnncore.RNN(2, 3, nonlinearity="softplus", kernel="require")
    with pytest.raises(KernelUnsupportedError, match="softplus"):
        rnn(np.ones((2, 3, 2)))
    with pytest.raises(KernelUnsupportedError, match="softplus"):
        rnn.explain()


def test_an_error_inside_a_kernel_is_seen(monkeypatch):
    def broken(*args, **kwargs):
        raise ZeroDivisionError("inside")

    monkeypatch.setattr(type(rnncore.get_backend("numpy").scans()), "nonlinear", broken)
    with pytest.raises(ZeroDivisionError, match="inside"):
        rnncore.RNN(2, 3)(np.ones((2, 3, 2)))


def test_the_kernel_really_runs(monkeypatch):
    seen = []
    scans = type(rnncore.get_backend("numpy").scans())
    for name in ("nonlinear", "linear"):
        real = getattr(scans, name)
        monkeypatch.setattr(
            scans, name, lambda self, *a, _r=real, _n=name, **k: (seen.append(_n), _r(self, *a, **k))[1]
        )
    rnncore.RNN(2, 3)(np.ones((2, 3, 2)))
    rnncore.RNN(2, 3).vjp(np.ones((2, 3, 2)))[2](np.ones((2, 3, 3)))
    assert seen == ["nonlinear", "nonlinear", "linear"]


# --- the engine itself ------------------------------------------------------------------------------------------------


class Noting(FormScans):
    """Scans that note each request and each run, with the options that it got."""

    def __init__(self, reason=None):
        self.reason, self.requests, self.runs = reason, [], []

    def unsupported(self, request):
        self.requests.append(request)
        return self.reason

    def explain(self, request):
        return f"in one piece of {request.steps} steps"

    def _noted(self, name, run, *arguments, **options):
        self.runs.append((name, options["overwrite"], options.get("rows"), options.get("carry") is not None))
        return run(*arguments, **options)

    def nonlinear(self, *arguments, **options):
        return self._noted("nonlinear", super().nonlinear, *arguments, **options)

    def linear(self, *arguments, **options):
        return self._noted("linear", super().linear, *arguments, **options)

    def linear_carry(self, *arguments, **options):
        return self._noted("linear_carry", super().linear_carry, *arguments, **options)


def make(scans=Noting, *, kernel="auto", **abilities):
    plugin = FormBackend(scans)
    made = make_engine(plugin, device="cpu", dtype=xp.float64, kernel=kernel)
    return replace(made, abilities=replace(made.abilities, **abilities))


TANH = rnncore.get_nonlinearity("tanh")
STEPS, BATCH, WIDTH = 4, 3, 2
FULL = (STEPS, BATCH, WIDTH)


def arguments():
    return normal(0, FULL, (BATCH, WIDTH), (WIDTH, WIDTH))


@pytest.mark.parametrize("kernel", ["auto", "reference"])
@pytest.mark.parametrize("reverse", [False, True], ids=["", "reverse"])
def test_every_form_gives_the_references_numbers_on_the_path_it_takes(kernel, reverse):
    one = make(kernel=kernel)
    p, h0, w = arguments()
    d, a, rows = np.cos(p), np.full(WIDTH, 0.5), [3, 2, 2, 0]
    leak, options = Carry(a, None, d), {"reverse": reverse, "xp": xp}
    for _ in range(2):  # as found out, and as remembered
        for carry in (None, leak):
            for n in (None, rows):
                got = one.nonlinear(p, h0, w, nonlinearity=TANH, reverse=reverse, carry=carry, rows=n)
                want = scan.nonlinear(p, h0, w, nonlinearity=TANH, carry=carry, rows=n, **options)
                np.testing.assert_allclose(got, want, rtol=0, atol=CLOSE)
        for n in (None, rows):
            got = one.linear(p, d, h0, w, reverse=reverse, rows=n)
            np.testing.assert_allclose(got, scan.linear(p, d, h0, w, rows=n, **options), rtol=0, atol=CLOSE_LINEAR)
            got = one.linear_carry(p, d, None, a, h0, w, reverse=reverse, rows=n)
            want = scan.linear_carry(p, d, None, a, h0, w, rows=n, **options)
            np.testing.assert_allclose(got, want, rtol=0, atol=CLOSE_LINEAR)
    one_pass = [("nonlinear", False, n, carry) for carry in (False, True) for n in (None, tuple(rows))]
    one_pass += [(name, False, n, False) for n in (None, tuple(rows)) for name in ("linear", "linear_carry")]
    assert one.scans.runs == (one_pass * 2 if kernel == "auto" else [])


def test_a_request_tells_the_scans_what_they_will_get():
    one = make()
    p, h0, w = arguments()
    d, a = np.cos(p), np.full(WIDTH, 0.5)
    one.nonlinear(p, h0, w, nonlinearity=TANH, reverse=True)
    one.linear(p, d, h0, w, reverse=False)
    one.nonlinear(p, h0, w, nonlinearity=TANH, reverse=False, carry=Carry(a, None, d), rows=[3, 3, 1, 0])
    one.linear_carry(p, d, None, a, h0, w, reverse=True)
    one.linear(p, d, h0, w, reverse=False, rows=[3, 3, 1, 0])
    plain = ScanRequest("linear", STEPS, BATCH, WIDTH, "float64", "cpu")
    assert one.scans.requests == [
        replace(plain, scan="nonlinear", reverse=True, nonlinearity=TANH),
        plain,
        replace(plain, scan="nonlinear", nonlinearity=TANH, carry=(("a", "unit"), ("i", "step")), ragged=True),
        replace(plain, reverse=True, carry=(("o", "step"), ("a", "unit"))),
        replace(plain, ragged=True),
    ]


def test_factors_reach_the_scans_in_one_of_two_shapes():
    shapes = []

    class Looking(Noting):
        def nonlinear(self, *arguments, carry=None, **options):
            shapes.append([k.shape for k in carry])
            return super().nonlinear(*arguments, carry=carry, **options)

        def linear_carry(self, c, o, i, a, *arguments, **options):
            shapes.append([k.shape for k in (o, i, a)])
            return super().linear_carry(c, o, i, a, *arguments, **options)

    one = make(Looking)
    p, h0, w = arguments()
    factors = np.asarray(0.5), np.ones((STEPS, 1, 1)), np.ones((1, 1, WIDTH))
    one.nonlinear(p, h0, w, nonlinearity=TANH, reverse=False, carry=Carry(*factors))
    one.linear_carry(p, *factors, h0, w, reverse=False)
    assert shapes == [[(WIDTH,), FULL, (WIDTH,)]] * 2
    kinds = ("unit", "step", "unit")
    assert [r.carry for r in one.scans.requests] == [tuple(zip(names, kinds, strict=True)) for names in ("agi", "oia")]


def test_a_request_for_several_networks_tells_their_number():
    one = make()
    p, h0, w = normal(0, (STEPS, 5, BATCH, WIDTH), (5, BATCH, WIDTH), (5, WIDTH, WIDTH))
    got = one.nonlinear(p, h0, w, nonlinearity=TANH, reverse=False)
    assert one.scans.requests == [
        ScanRequest("nonlinear", STEPS, BATCH, WIDTH, "float64", "cpu", nonlinearity=TANH, networks=5)
    ]
    want = scan.nonlinear(p, h0, w, nonlinearity=TANH, reverse=False, xp=xp)
    np.testing.assert_allclose(got, want, rtol=0, atol=CLOSE)


def test_a_scan_overwrites_only_where_it_is_told_to():
    one = make()
    p, h0, w = arguments()
    d = np.cos(p)
    runs = {
        "nonlinear": lambda p, d, **told: one.nonlinear(p, h0, w, nonlinearity=TANH, reverse=False, **told),
        "linear": lambda p, d, **told: one.linear(p, d, h0, w, reverse=False, **told),
        "linear_carry": lambda p, d, **told: one.linear_carry(p, d, None, None, h0, w, reverse=False, **told),
    }
    for name, run in runs.items():
        for _ in range(2):  # as found out, and as remembered
            for told in ({}, {"overwrite": False}):
                run(p, d, **told)
                np.testing.assert_array_equal(p, arguments()[0])
                np.testing.assert_array_equal(d, np.cos(p))
            given = {"nonlinear": p.copy(), "linear": d.copy()}
            result = run(given["nonlinear"], given["linear"], overwrite=True)
            assert name not in given or result is given[name]
    assert [(name, told) for name, told, *_ in one.scans.runs] == [
        (name, told) for name in runs for told in (False, False, True) * 2
    ]


def test_scans_without_a_form_are_not_given_it():
    p, h0, w = arguments()
    for have in SCAN_FORMS:
        one = make(scans=Noting, kernel="auto")
        one = replace(one, abilities=replace(one.abilities, scans=frozenset({have})))
        one.nonlinear(p, h0, w, nonlinearity=TANH, reverse=False, carry=Carry(a=np.ones(WIDTH)), rows=[3, 1, 1, 1])
        assert one.scans.runs == one.scans.requests == []
        missing = " or ".join(form for form in ("carry", "ragged") if form != have)
        request = ScanRequest("linear", 1, 1, 1, "float64", "cpu", carry=(), ragged=True)
        assert one.choose(request) == Choice(
            "linear", "reference", f"the scans of backend 'numpy' do not name the form {missing}"
        )


def test_the_choice_and_its_reason():
    request = ScanRequest("linear", 7, 1, 1, "float64", "cpu")
    own = Choice("linear", "kernel", "the scan of backend 'numpy'")
    assert make().choose(request) == own
    assert make().explain(request) == replace(own, reason=f"{own.reason}: in one piece of 7 steps")
    assert make(NumpyScans).explain(request) == own  # these explain nothing
    for one, reason in (
        (make(kernel="reference"), 'kernel="reference" was asked for'),
        (make(lambda: None), "backend 'numpy' has no scans of its own"),
        (make(lambda: Noting("no")), "no"),
    ):
        assert one.choose(request) == one.explain(request) == Choice("linear", "reference", reason)
    with pytest.raises(KernelUnsupportedError, match=r'^kernel="require": the linear scan .* backend \'numpy\': no$'):
        make(lambda: Noting("no"), kernel="require").choose(request)
    assert make(kernel="require").choose(request) == own


def test_an_answer_is_remembered_by_shape_direction_and_function():
    one = make()
    p, h0, w = arguments()
    relu = rnncore.get_nonlinearity("relu")
    calls = [(p, TANH, False), (p, TANH, True), (p, relu, False), (p[1:], TANH, False)]
    for x, f, reverse in calls * 2:
        one.nonlinear(x, h0, w, nonlinearity=f, reverse=reverse)
    assert len(one.scans.requests) == len(calls)
    no = make(lambda: Noting("no"))
    for _ in range(2):
        no.linear(p, p, h0, w, reverse=False)
    assert len(no.scans.requests) == 1 and no.scans.runs == []


def test_only_so_many_answers_and_zeros_are_remembered():
    one = make(writable=True)
    w, h0 = np.zeros((1, 1)), np.zeros((1, 1))
    for steps in range(1, REMEMBERED + 1):
        one.linear(np.ones((steps, 1, 1)), np.ones((steps, 1, 1)), h0, w, reverse=False)
        one.nothing((steps,))
    assert len(one._on_kernel) == len(one._zeros) == REMEMBERED
    one.linear(np.ones((REMEMBERED + 1, 1, 1)), np.ones((REMEMBERED + 1, 1, 1)), h0, w, reverse=False)
    one.nothing((REMEMBERED + 1,))
    assert len(one._on_kernel) == len(one._zeros) == 1


def test_while_a_compiler_records_nothing_is_remembered():
    recording = [True]
    one = make(tracing=lambda: recording[0])
    p, h0, w = arguments()

    def both():
        one.nonlinear(p, h0, w, nonlinearity=TANH, reverse=False)
        one.linear(p, p, h0, w, reverse=False)

    both(), both()
    assert len(one.scans.requests) == 4 and not one._on_kernel
    recording[0] = False
    both(), both()
    assert len(one.scans.requests) == 6 and len(one._on_kernel) == 2
    recording[0] = True
    both()
    assert len(one.scans.requests) == 8


@pytest.mark.parametrize("writable", [True, False])
@pytest.mark.parametrize("steps", [1, 4])
def test_products(steps, writable):
    told = []
    one = make(writable=writable, product=lambda a, b, whole: (told.append((a.shape, whole)), a @ b)[1])
    x, m = normal(0, (steps, BATCH, WIDTH), (WIDTH, 5))
    np.testing.assert_allclose(one.product(x, m), x @ m, rtol=0, atol=CLOSE)
    np.testing.assert_allclose(one.matmul(x[0], m), x[0] @ m, rtol=0, atol=CLOSE)
    np.testing.assert_allclose(one.matmul(x[0], m, whole=False), x[0] @ m, rtol=0, atol=CLOSE)
    single = (BATCH, WIDTH)
    assert told == ([((steps * BATCH, WIDTH), True), (single, True), (single, False)] if writable else [])


def test_a_wrong_array_is_named():
    one = make()
    one.check("x", np.ones((2, 3)))
    one.check("x", np.ones((2, 3)), (2, None))
    with pytest.raises(ShapeError, match=r"^x: expected shape \(2, 4\), got \(2, 3\) here$"):
        one.check("x", np.ones((2, 3)), (2, 4), " here")
    with pytest.raises(DTypeError, match=r"^x: "):
        one.check("x", np.ones((2, 3), dtype="f4"))


def test_a_checked_array_comes_back_as_it_is_or_as_a_plain_one():
    engine = rnncore.RNN(2, 3).network.engine
    x = np.ones((2, 3))
    assert engine.check("x", x) is x and engine.check("x", x, (2, None)) is x
    record = x.view(np.recarray)
    assert type(engine.check("x", record)) is np.ndarray and type(engine.check("x", record, (2, 3))) is np.ndarray
    assert engine.is_plain(x, None) and not engine.is_plain(x, record)


def test_arrays_given_copied_and_cast():
    one = make(read_only=lambda x: (x, "view"))
    given = one.give([[1, 2]])
    assert given.dtype == np.float64 and given.tolist() == [[1.0, 2.0]]
    copied = one.copy(given)
    assert not np.shares_memory(copied, given) and np.array_equal(copied, given)
    assert one.cast(given) is given
    assert one.cast(given.astype("f4")).dtype == np.float64
    assert one.read_only(given) == (given, "view")
    assert make(read_only=None).read_only(given) is given


def test_zeros_are_shared_only_where_they_are_small_and_nothing_traces_them():
    shape, small = (KEPT_ZEROS + 1,), (2, KEPT_ZEROS // 2)
    one = make(writable=True, scope=None)
    assert one.keeps(small) and not one.keeps(shape)
    assert one.nothing(small) is one.nothing(small)
    assert one.nothing(shape) is not one.nothing(shape)
    for other in (make(writable=False), make(writable=True, scope=lambda device: nullcontext())):
        assert not other.keeps(small) and other.nothing(small) is not other.nothing(small)
    assert make(writable=False).nothing_like(np.ones((2, 3), dtype="f4")).dtype == np.float32
    for x in (one.zeros((2, 3)), one.nothing((2, 3)), one.nothing_like(np.ones((2, 3)))):
        assert x.dtype == np.float64 and x.shape == (2, 3) and not x.any()


def test_arrays_are_made_on_the_engines_device_and_not_on_the_default():
    plugin = rnncore.get_backend("strict")
    device = plugin.devices()[0]
    assert device != plugin.namespace().zeros(1).device
    one = make_engine(plugin, device=device, dtype=plugin.namespace().float64, kernel="auto")
    x = one.give([[1.0]])
    assert {a.device for a in (x, one.zeros((2,)), one.nothing((2,)), one.nothing_like(x), one.copy(x))} == {device}


def test_engines_are_equal_whatever_they_remember_and_show_nothing_of_it():
    plugin = rnncore.get_backend("numpy")
    made = make_engine(plugin, device="cpu", dtype=xp.float64, kernel="auto")
    one, other = (replace(made, abilities=replace(made.abilities, product=None)) for _ in range(2))
    p, h0, w = arguments()
    one.nothing((2, 3)), one.linear(p, p, h0, w, reverse=False)
    assert one == other and one._zeros and one._on_kernel and not other._on_kernel
    assert repr(one) == repr(other)
    assert replace(one, kernel="reference") != one


def test_work_is_done_in_the_scope_of_the_device():
    entered = []
    one = make(scope=lambda device: nullcontext(entered.append(device)))
    with one.scope():
        assert entered == ["cpu"]
    with replace(one, device=None).scope(), make(scope=None).scope():
        assert entered == ["cpu"]


def test_a_kernel_mode_is_one_of_three():
    assert [check_kernel_mode(k) for k in ("auto", "reference", "require")] == ["auto", "reference", "require"]
    with pytest.raises(UnknownNameError, match=r"^kernel: .* did you mean 'require'\?$"):
        make(kernel="requires")


def test_an_explanation_is_one_line_for_each_scan():
    choices = (Choice("nonlinear", "kernel", "why"), Choice("linear", "reference", "why not"))
    assert str(Explanation("numpy", "cpu", "float32", "auto", choices)).splitlines() == [
        "backend numpy, device cpu, float32, kernel='auto'",
        "  nonlinear scan: kernel (why)",
        "  linear scan: reference (why not)",
    ]


@pytest.mark.parametrize("kernel", ["auto", "reference"])
def test_no_scan_writes_into_an_argument_unless_it_is_told(kernel):
    """On the first call, which chooses the path, and on the second, which knows it."""
    engine = rnncore.RNN(1, 2, kernel=kernel).network.engine
    p, h0, w, d = np.ones((3, 1, 2)), np.ones((1, 2)), np.eye(2) / 2, np.full((3, 1, 2), 0.5)
    f = rnncore.get_nonlinearity("tanh")
    for _ in range(2):
        engine.nonlinear(p, h0, w, nonlinearity=f, reverse=False)
        engine.linear(p, d, h0, w, reverse=False)
        engine.linear_carry(p, d, None, None, h0, w, reverse=False)
    assert (p == 1).all() and (d == 0.5).all() and (h0 == 1).all()


def test_a_kernel_may_take_the_storage_of_what_it_is_told_to_overwrite():
    engine = rnncore.RNN(1, 2, kernel="require").network.engine
    d = np.full((3, 1, 2), 0.5)
    found = engine.linear(np.ones((3, 1, 2)), d, np.ones((1, 2)), np.eye(2) / 2, reverse=False, overwrite=True)
    assert np.shares_memory(found, d)
