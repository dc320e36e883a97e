"""Planted faults are found where they were planted; gradients by step, norms over steps and derivatives are what they say."""

from __future__ import annotations

import math

import numpy as np
import pytest

import rnncore
from rnncore.diagnostics import flow, record
from rnncore.diagnostics.faults.first import nonfinite
from rnncore.diagnostics.gradient.gradcheck import gradcheck
from rnncore.diagnostics.gradient.weight_gradient import weight_gradient
from rnncore.diagnostics.monitor.norms import GradientNorms

LN2 = math.log(2.0)
# (backend, dtype): JAX has float64 only where its own setting says so.
WHERE = [("numpy", "float64"), ("numpy", "float32"), ("torch", "float32"), ("strict", "float64")]


@pytest.fixture(autouse=True)
def _quiet():
    """NumPy warns of the overflows that are planted here."""
    with np.errstate(all="ignore"):
        yield


def model(weights, where=("numpy", "float64"), **options):
    """An RNN of these host weights under torch's names, the layer's suffix _l0 left out where there is one layer."""
    full = {k if "_l" in k else f"{k}_l0": np.asarray(v, dtype=np.float64) for k, v in weights.items()}
    hidden, inputs = full["weight_hh_l0"].shape[0], full["weight_ih_l0"].shape[1]
    bias = any(k.startswith("bias") for k in full)
    spec = rnncore.spec.RNNSpec.make(inputs, hidden, bias=bias, **options)
    return rnncore.RNN.from_spec(spec, full, backend=where[0], dtype=where[1])


def on(rnn, x):
    engine = rnn._engine
    return engine.backend.asarray(np.asarray(x, dtype=np.float64), dtype=engine.dtype, device=engine.device)


def drawn(where, seed=0, shape=(7, 3, 2), **options):
    """A network, an input and its cotangent, on the backend."""
    rnn = rnncore.RNN(shape[2], 4, rng=seed, backend=where[0], dtype=where[1], **options)
    rng = np.random.default_rng(seed)
    x = rng.standard_normal(shape)
    u = rng.standard_normal((*shape[:2], 4 * rnn.spec.num_directions))
    return rnn, x, u


def planted(rnn, name, index, value):
    state = {k: rnn._engine.backend.to_numpy(v).copy() for k, v in rnn.state_dict().items()}
    state[name][index] = value
    rnn.load_state_dict({k: on(rnn, v) for k, v in state.items()})


# --- nonfinite --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("where", [*WHERE, ("jax", "float32")])
def test_a_finite_run_raises_no_alarm(where):
    rnn, x, u = drawn(where, num_layers=2, bidirectional=True)
    seen = record(rnn, on(rnn, x), lengths=[7, 0, 4])
    assert nonfinite(seen) is None
    assert nonfinite(seen, on(rnn, u), [[on(rnn, np.ones((3, 4)))] * 2] * 2) is None


@pytest.mark.parametrize("where", [*WHERE, ("jax", "float32")])
@pytest.mark.parametrize("bad", [np.nan, -np.inf])
def test_an_input_is_named_before_all_that_it_spoils(where, bad):
    rnn, x, _ = drawn(where)
    x[3, 1, 1] = x[5, 0, 0] = bad
    found = nonfinite(record(rnn, on(rnn, x)))
    assert (found.phase, found.cause, found.quantity, found.where) == ("forward", "input", "x", "x[3, 1, 1]")
    assert (found.layer, found.step, found.row, found.unit) == (0, 3, 1, 1)
    np.testing.assert_equal(found.value, bad)
    assert found.ranges["x"] == pytest.approx((x[3, 1, 0], x[3, 1, 0]), rel=1e-6)


@pytest.mark.parametrize("where", WHERE)
def test_nan_in_the_padding_is_not_reported(where):
    rnn, x, u = drawn(where, num_layers=2, bidirectional=True)
    x[5:, 0], x[:, 1] = np.nan, np.inf
    u[5:, 0], u[:, 1] = np.nan, np.inf
    h0 = np.zeros((4, 3, 4))
    h0[:, 1] = np.nan
    seen = record(rnn, on(rnn, x), on(rnn, h0), lengths=[5, 0, 7])
    assert nonfinite(seen, on(rnn, u)) is None
    x[4, 0, 1] = np.nan
    assert nonfinite(record(rnn, on(rnn, x), on(rnn, h0), lengths=[5, 0, 7])).index == (4, 0, 1)


@pytest.mark.parametrize("where", WHERE[1:])
@pytest.mark.parametrize(
    ("name", "index", "layer", "direction"),
    [("weight_hh_l1", (2, 3), 1, 0), ("weight_ih_l0_reverse", (1, 0), 0, 1), ("bias_hh_l1_reverse", (3,), 1, 1)],
)
def test_a_parameter_is_named_with_its_index(where, name, index, layer, direction):
    rnn, x, _ = drawn(where, num_layers=2, bidirectional=True)
    planted(rnn, name, index, np.nan)
    found = nonfinite(record(rnn, on(rnn, x)))
    assert (found.cause, found.quantity, found.index) == ("parameter", name, index)
    assert (found.layer, found.direction, found.unit, found.step) == (layer, direction, index[0], None)


def test_an_initial_state_is_named():
    rnn, x, _ = drawn(("torch", "float64"), num_layers=2)
    h0 = np.zeros((2, 3, 4))
    h0[1, 2, 3] = np.inf
    found = nonfinite(record(rnn, on(rnn, x), on(rnn, h0)))
    assert (found.cause, found.layer, found.row, found.unit) == ("initial state", 1, 2, 3)


@pytest.mark.parametrize(
    ("where", "step"),
    # x_0 = 1 in unit 0 of row 2 and doubles: h_t = 2^t, and the largest powers are 2^127 and 2^1023.
    [
        *[((name, "float32"), 128) for name in ("numpy", "torch", "strict", "jax")],
        *[((name, "float64"), 1024) for name in ("numpy", "torch")],
    ],
)
def test_a_doubling_unit_overflows_at_its_step_with_its_value(where, step):
    rnn = model({"weight_ih": [[1.0], [0.5]], "weight_hh": [[2.0, 0.0], [0.0, 1.5]]}, where, nonlinearity="relu")
    x = np.zeros((step + 5, 3, 1))
    x[0, 2] = 1
    found = nonfinite(record(rnn, on(rnn, x)))
    assert (found.phase, found.cause, found.quantity) == ("forward", "overflow", "z")
    assert (found.step, found.row, found.unit, found.value) == (step, 2, 0, math.inf)
    assert found.where == "h[0] * weight_hh_l0[0, 0]"
    assert found.log_value == pytest.approx(step * LN2, rel=1e-14)
    # The other unit grows too, by 3/2: what it adds to the norm is of the order of (3/4)^(2 step).
    assert found.growth == pytest.approx(LN2, rel=1e-12)
    assert found.ranges["weight_hh_l0[0, :]"] == (0.0, 2.0)
    assert found.ranges["h"][1] == 2.0 ** (step - 1)


@pytest.mark.parametrize("where", WHERE[1:])
def test_ragged_and_reverse_in_the_direction_s_own_time(where):
    weights = {"weight_ih": [[1.0]], "weight_hh": [[0.5]], "weight_ih_l0_reverse": [[1.0]]}
    weights["weight_hh_l0_reverse"] = [[2.0**100]]
    rnn = model(weights, where, nonlinearity="relu", bidirectional=True)
    x = np.zeros((30, 2, 1))
    x[20, 0] = x[8, 1] = 1
    found = nonfinite(record(rnn, on(rnn, x), lengths=[21, 15]))
    # Row 0 starts at 20 with 1 and is 2^(100 n) after n steps; row 1 starts at 14 and is 1 only at 8.
    n = 11 if where[1] == "float64" else 2
    assert (found.direction, found.row, found.step) == (1, 0, 20 - n)
    assert found.log_value == pytest.approx(100 * n * LN2, rel=1e-14)
    assert "weight_hh_l0_reverse" in found.where


@pytest.mark.parametrize("where", [("numpy", "float32"), ("torch", "float32"), ("strict", "float32")])
def test_opposite_overflows_are_inf_minus_inf_with_the_true_value(where):
    rnn = model({"weight_ih": [[2.0**100]], "weight_hh": [[-(2.0**100)]]}, where, nonlinearity="relu")
    x, h0 = [[[2.0**100]]], [[[2.0**100 - 2.0**80]]]
    found = nonfinite(record(rnn, on(rnn, x), on(rnn, h0)))
    assert (found.cause, found.step, found.unit) == ("inf - inf", 0, 0)
    assert math.isnan(found.value)
    assert found.where == "x[0] * weight_ih_l0[0, 0] and h[0] * weight_hh_l0[0, 0]"
    assert found.log_value == pytest.approx(180 * LN2, rel=1e-14)


def test_a_sum_overflows_where_no_product_does():
    top = float(np.finfo(np.float64).max)
    rnn = model({"weight_ih": [[0.75]], "weight_hh": [[0.75]]}, nonlinearity="identity")
    found = nonfinite(record(rnn, np.full((1, 1, 1), top), np.full((1, 1, 1), top)))
    assert found.where == "x @ weight_ih_l0[0, :] + h @ weight_hh_l0[0, :]"
    assert found.log_value == pytest.approx(math.log(top) + math.log(1.5), rel=1e-15)
    biased = model(
        {"weight_ih": [[0.0]], "weight_hh": [[0.0]], "bias_ih": [top], "bias_hh": [top]}, nonlinearity="softplus"
    )
    found = nonfinite(record(biased, np.zeros((1, 1, 1))))
    assert found.where == "bias_ih_l0[0] + bias_hh_l0[0]"
    assert found.log_value == pytest.approx(math.log(top) + LN2, rel=1e-15)


@pytest.mark.parametrize("where", [("numpy", "float32"), ("torch", "float32"), ("strict", "float32")])
def test_a_nonlinearity_that_overflows_is_named(where):
    square = rnncore.custom_nonlinearity(lambda z: z * z, lambda z: 2 * z, name="square")
    rnn = model({"weight_ih": [[1.0]], "weight_hh": [[0.0]]}, where, nonlinearity=square)
    found = nonfinite(record(rnn, on(rnn, [[[1.0]], [[2.0**70]]])))
    assert (found.cause, found.quantity, found.step) == ("nonlinearity", "h", 1)
    assert found.where.startswith("square(1.18")
    assert found.log_value == pytest.approx(140 * LN2, rel=1e-14)


@pytest.mark.parametrize(
    "where", [("numpy", "float32"), ("torch", "float32"), ("strict", "float32"), ("jax", "float32")]
)
def test_backward_overflows_under_a_bounded_forward_pass(where):
    # z = 0 throughout, so tanh' = 1 and dL/dz_t = 2^(T - 1 - t): the states are 0 and say nothing.
    rnn = model({"weight_ih": [[1.0], [0.0]], "weight_hh": [[2.0, 0.0], [0.0, 1.0]]}, where)
    u = np.zeros((200, 2, 2))
    u[-1, 1, 0] = 1
    seen = record(rnn, on(rnn, np.zeros((200, 2, 1))))
    assert nonfinite(seen) is None
    found = nonfinite(seen, on(rnn, u))
    assert (found.phase, found.cause, found.quantity) == ("backward", "overflow", "dL/dz")
    assert (found.step, found.row, found.unit) == (199 - 128, 1, 0)
    assert found.where == "dL/dz[0] of the later step * weight_hh_l0[0, 0]"
    assert found.log_value == pytest.approx(128 * LN2, rel=1e-14)
    assert found.growth == pytest.approx(LN2, rel=1e-13)
    by_last = nonfinite(seen, None, [[on(rnn, u[-1])]])
    assert (by_last.step, by_last.where) == (found.step, found.where)


@pytest.mark.parametrize("where", [("numpy", "float32"), ("torch", "float32"), ("strict", "float32")])
def test_a_dead_unit_that_meets_an_overflow_is_zero_times_inf(where):
    # relu' is 1 at step 1 and 0 at step 0, where 2^100 2^100 arrives.
    rnn = model({"weight_ih": [[1.0]], "weight_hh": [[2.0**100]]}, where, nonlinearity="relu")
    seen = record(rnn, on(rnn, [[[-1.0]], [[1.0]]]))
    found = nonfinite(seen, on(rnn, [[[0.0]], [[2.0**100]]]))
    assert (found.cause, found.step, found.log_value) == ("0 * inf", 0, -math.inf)
    assert math.isnan(found.value)
    assert found.where == "f'(z) * (dL/dz[0] of the later step * weight_hh_l0[0, 0])"


@pytest.mark.parametrize("where", WHERE[1:])
def test_backward_in_the_reverse_direction_and_through_layers(where):
    weights = {"weight_ih": [[1.0]], "weight_hh": [[0.5]], "weight_ih_l0_reverse": [[1.0]]}
    weights |= {"weight_hh_l0_reverse": [[2.0]]}
    for end, w in (("l1", [[1.0, 1.0]]), ("l1_reverse", [[0.0, 0.0]])):
        weights |= {f"weight_ih_{end}": w, f"weight_hh_{end}": [[0.0]]}
    rnn = model(weights, where, num_layers=2, bidirectional=True)
    steps = 1300
    u = np.zeros((steps, 2, 2))
    u[10, 1, 0] = 1
    seen = record(rnn, on(rnn, np.zeros((steps, 2, 1))), lengths=[5, steps - 7])
    found = nonfinite(seen, on(rnn, u))
    n = 1024 if where[1] == "float64" else 128
    assert (found.layer, found.direction, found.row, found.step) == (0, 1, 1, 10 + n)
    assert found.log_value == pytest.approx(n * LN2, rel=1e-14)


def test_cotangents_and_gradients_of_parameters_are_looked_at():
    where = ("torch", "float32")
    rnn, x, u = drawn(where)
    u[2, 1, 3] = np.nan
    found = nonfinite(record(rnn, on(rnn, x)), on(rnn, u))
    assert (found.phase, found.cause, found.where, found.unit) == ("backward", "cotangent", "d_output[2, 1, 3]", 3)
    # Every dL/dz is finite, their sum with x is not: 20 * 2^100 * 2^27 >= 2^128.
    flat = model({"weight_ih": [[0.0]], "weight_hh": [[0.0]]}, where)
    seen = record(flat, on(flat, np.full((20, 1, 1), 2.0**27)))
    found = nonfinite(seen, on(flat, np.full((20, 1, 1), 2.0**100)))
    assert (found.cause, found.quantity, found.index) == ("overflow", "dL/d weight_ih_l0", (0, 0))
    assert found.log_value == pytest.approx(math.log(20) + 127 * LN2, rel=1e-14)


BACKWARD_FLOAT32 = [("numpy", "float32"), ("torch", "float32"), ("strict", "float32")]


@pytest.mark.parametrize("where", BACKWARD_FLOAT32)
def test_each_product_of_the_backward_pass_is_told_from_the_others(where):
    big, one = 2.0**100, [[[1.0]]]

    def of(weights, u, x=one, h0=None, d_last=None, **options):
        rnn = model(weights, where, **options)
        seen = record(rnn, on(rnn, x), h0 if h0 is None else on(rnn, h0))
        last = None if d_last is None else [[on(rnn, d_last)]]
        return nonfinite(seen, on(rnn, u), last)

    linear = {"nonlinearity": "identity"}
    found = of({"weight_ih": [[1.0]], "weight_hh": [[big]]}, [[[big]]], **linear)
    assert (found.quantity, found.step, found.row, found.unit) == ("dL/dh0", None, 0, 0)
    assert found.log_value == pytest.approx(200 * LN2, rel=1e-14)
    found = of({"weight_ih": [[1.0, big]], "weight_hh": [[0.0]]}, [[[big]]], x=[[[1.0, 1.0]]], **linear)
    assert (found.quantity, found.index, found.where) == ("dL/d input", (0, 0, 1), "dL/dz[0] * weight_ih[0, 1]")
    found = of({"weight_ih": [[0.0]], "weight_hh": [[0.0]]}, [[[big]]], h0=[[[big]]], **linear)
    assert (found.quantity, found.index) == ("dL/d weight_hh_l0", (0, 0))
    biased = {"weight_ih": [[0.0]], "weight_hh": [[0.0]], "bias_ih": [0.0], "bias_hh": [0.0]}
    found = of(biased, [[[2.0**127]]] * 4, x=[[[0.0]]] * 4, **linear)
    assert (found.quantity, found.cause) == ("dL/d bias_ih_l0", "overflow")
    assert found.log_value == pytest.approx(129 * LN2, rel=1e-14)
    steep = rnncore.custom_nonlinearity(lambda z: z * big, lambda z: z * 0 + big)
    found = of({"weight_ih": [[1.0]], "weight_hh": [[0.0]]}, [[[big]]], nonlinearity=steep)
    assert (found.quantity, found.where) == ("dL/dz", "f'(z) * dL/dh")
    assert found.log_value == pytest.approx(200 * LN2, rel=1e-14)
    root = rnncore.custom_nonlinearity(lambda z: z * 0 + 1, lambda z: 1 / (z * 0), name="root")
    found = of({"weight_ih": [[1.0]], "weight_hh": [[0.0]]}, one, nonlinearity=root)
    assert (found.cause, found.where) == ("nonlinearity", "derivative of root at 1")
    found = of({"weight_ih": [[1.0]], "weight_hh": [[0.0]]}, [[[2.0**127]]], d_last=[[2.0**127]], **linear)
    assert (found.cause, found.where, found.value) == ("overflow", "d_output + d_h_n", math.inf)


@pytest.mark.parametrize("where", BACKWARD_FLOAT32)
def test_a_pre_activation_overflows_behind_a_state_that_saturates(where):
    rnn = model({"weight_ih": [[-(2.0**100)]], "weight_hh": [[0.0]]}, where)
    seen = record(rnn, on(rnn, [[[1.0]], [[2.0**30]]]))
    found = nonfinite(seen)
    assert (found.quantity, found.cause, found.step, found.value) == ("z", "overflow", 1, -math.inf)
    assert found.log_value == pytest.approx(130 * LN2, rel=1e-14)
    assert seen.host(seen.h[0][0])[1, 0, 0] == -1


def test_dropout_may_be_what_overflows():
    weights = {f"{n}_l{k}": [[1.0 - (n == "weight_hh")]] for n in ("weight_ih", "weight_hh") for k in (0, 1)}
    rnn = model(weights, ("numpy", "float32"), nonlinearity="relu", num_layers=2, dropout=0.75)
    seen = record(rnn, np.full((9, 1, 1), 2.0**127, dtype=np.float32), training=True, rng=0)
    found = nonfinite(seen)
    assert (found.cause, found.where, found.layer) == ("overflow", "h of the layer below * dropout mask", 1)
    assert nonfinite(record(rnn, np.full((9, 1, 1), 2.0**127, dtype=np.float32))) is None


# --- weight_gradient --------------------------------------------------------------------------------------------------


def parts_of(seen, deltas, k, d):
    """ln ||G_t|| of weight_hh and weight_ih from each step's own matrix, in float64 on the host."""
    values, log = seen.host(deltas[k][d].values), deltas[k][d].log
    found = []
    for a in (seen.host(seen.lane(k, d).previous()), seen.host(seen.inputs[k])):
        ln = np.full(seen.steps, np.nan)
        for t in range(seen.steps):
            rows = np.flatnonzero(seen.valid[t])
            if len(rows):
                top = log[t, rows].max()
                g = sum(np.exp(log[t, b] - top) * np.outer(values[t, b], a[t, b]) for b in rows)
                ln[t] = np.log(np.linalg.norm(g)) + top
        found.append(ln)
    return found


@pytest.mark.parametrize(
    ("where", "batch"),  # two rows by Gram, nine by the matrices themselves
    [*((w, b) for w in WHERE for b in (2, 9)), (("jax", "float32"), 2)],
)
def test_norms_by_step_are_those_of_the_matrices(where, batch):
    rnn, x, u = drawn(where, shape=(7, batch, 3), num_layers=2, bidirectional=True)
    seen = record(rnn, on(rnn, x), lengths=[4] + [5] * (batch - 1))
    _, deltas = flow(seen, on(rnn, u))
    found = seen.map(weight_gradient, deltas)
    # The scaled deltas are the reference's too; what differs is a sum of squares with 10 bits lost at most.
    tolerance = 2.0**10 * (2.0**-52 if where[1] == "float64" else 2.0**-23)
    for k in range(2):
        for d in range(2):
            hh, ih = parts_of(seen, deltas, k, d)
            np.testing.assert_allclose(found.weight_hh[k][d], hh, rtol=0, atol=tolerance)
            np.testing.assert_allclose(found.weight_ih[k][d], ih, rtol=0, atol=tolerance)
            assert np.isnan(found.weight_hh[k][d][5:]).all()


def test_the_parts_add_up_to_the_gradient_of_training():
    rnn, x, u = drawn(("torch", "float64"), shape=(6, 1, 2))
    u[:-1] = 0
    _, _, pullback = rnn.vjp(on(rnn, x))
    whole = pullback(on(rnn, u)).params["weight_ih_l0"].numpy()
    seen = record(rnn, on(rnn, x))
    _, deltas = flow(seen, on(rnn, u))
    found = seen.map(weight_gradient, deltas)
    # Of one row each part is an outer product, |delta| |x|, and the parts' sum is the gradient.
    values = seen.host(deltas[0][0].values) * np.exp(deltas[0][0].log)[..., None]
    parts = np.einsum("tbi,tbj->tij", values, x)
    np.testing.assert_allclose(parts.sum(axis=0), whole, rtol=1e-12, atol=1e-15)
    np.testing.assert_allclose(np.exp(found.weight_ih[0][0]), np.linalg.norm(parts, axis=(1, 2)), rtol=1e-12)


@pytest.mark.parametrize("where", [("numpy", "float32"), ("torch", "float32"), ("strict", "float32")])
def test_rows_of_very_different_scales_and_beyond_the_dtype(where):
    rnn = model({"weight_ih": [[1.0, 0.0], [0.0, 1.0]], "weight_hh": 4.0 * np.eye(2)}, where, nonlinearity="identity")
    steps = 300  # dL/dz grows to 4^299 = 1e180
    x = np.zeros((steps, 3, 2))
    x[0] = [[3e30, 4e30], [1e-30, 0.0], [0.0, 0.0]]
    x[-1] = [[0.0, 0.0], [3e-30, 4e-30], [0.0, 0.0]]
    seen = record(rnn, on(rnn, x))
    u = np.zeros((steps, 3, 2))
    u[-1] = [[1e30, 0.0], [0.0, 1e-30], [1e30, 1e30]]
    _, deltas = flow(seen, on(rnn, u))
    got = seen.map(weight_gradient, deltas).weight_ih[0][0]
    log4 = (steps - 1) * math.log(4.0)
    assert got[0] == pytest.approx(math.log(5e60) + log4, abs=1e-5)
    assert got[-1] == pytest.approx(math.log(5e-60), abs=1e-5)
    assert (got[1:-1] == -np.inf).all()


@pytest.mark.parametrize("where", WHERE)
def test_rows_that_cancel_leave_what_is_left_and_not_the_square_root_of_a_rounding(where):
    rnn = model({"weight_ih": np.eye(4, 4), "weight_hh": np.zeros((4, 4))}, where, nonlinearity="identity")
    x = np.tile([1.0, 2.0, 3.0, 4.0], (1, 2, 1))
    small = 2.0**-20
    u = np.asarray([[[1.0, 1.0, 1.0, 1.0], [-1.0, -1.0, -1.0, -1.0 + small]]])
    seen = record(rnn, on(rnn, x))
    _, deltas = flow(seen, on(rnn, u))
    found = seen.map(weight_gradient, deltas)
    assert found.weight_ih[0][0, 0] == pytest.approx(math.log(small * math.sqrt(30.0)), abs=1e-6)
    assert found.weight_hh[0][0, 0] == -np.inf


def test_the_share_of_steps():
    rnn = model({"weight_ih": [[1.0]], "weight_hh": [[0.0]]}, nonlinearity="identity")
    seen = record(rnn, np.ones((100, 1, 1)))

    def of(u):
        _, deltas = flow(seen, np.reshape(u, (100, 1, 1)))
        return seen.map(weight_gradient, deltas)

    assert of(np.ones(100)).share_ih[0][0] == pytest.approx(0.9)
    one = np.full(100, 1e-6)
    one[37] = 1e250
    found = of(one)
    assert found.share_ih[0][0] == pytest.approx(0.01)
    assert found[0][0].largest().tolist() == [37]
    assert np.isnan(of(np.zeros(100)).share_ih[0][0])
    one[5] = np.nan
    assert np.isnan(of(one).weight_ih[0][0, 5]) and np.isfinite(of(one).weight_ih[0][0, 6:]).all()


# --- clip -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("centre", "spread"), [(0.0, 1.0), (-50.0, 3.0), (300.0, 0.01)])
def test_quantiles_of_log_normal_norms_are_within_one_per_cent(centre, spread):
    drawn_norms = np.exp(centre + spread * np.random.default_rng(0).standard_normal(10_000))
    norms = GradientNorms()
    for norm in drawn_norms:
        norms.add(norm)
    seen = norms.summary()
    for q, got in seen.quantiles.items():
        want = np.quantile(drawn_norms, q, method="lower")
        assert abs(got / want - 1) <= 0.01 + 1e-9, q
    assert seen.recommended == (seen.quantiles[0.9], seen.quantiles[0.95])
    assert seen.mean == pytest.approx(drawn_norms.mean(), rel=1e-12)
    assert seen.band == pytest.approx((drawn_norms.mean() / 2, 10 * drawn_norms.mean()), rel=1e-12)
    for q in (0.3, 0.9, 0.999):
        threshold = float(np.quantile(drawn_norms, q))
        low, high = ((drawn_norms > threshold * f).mean() for f in (1.0101, 0.9899))
        assert low <= norms.clipped(threshold) <= high
    assert len(norms._bins) <= 2 + 2 * 4.5 * spread / 0.02  # what is held follows the spread, not the number of steps


def test_memory_is_bounded_and_the_high_quantiles_survive():
    rng = np.random.default_rng(0)
    wide = np.exp(rng.uniform(-700, 700, 10_000))
    norms = GradientNorms()
    for norm in wide:
        norms.add(norm)
    assert len(norms._bins) == 2048
    # 2048 bins of 2 % hold the upper 41 nats at least.
    for q in (0.98, 0.99, 1.0):
        assert norms.quantile(q) == pytest.approx(np.quantile(wide, q, method="lower"), rel=0.0101)


@pytest.mark.parametrize(
    "where", [("numpy", "float32"), ("torch", "float32"), ("strict", "float32"), ("jax", "float32")]
)
@pytest.mark.parametrize("size", [1e30, 1e-30])
def test_norms_whose_squares_float32_has_not(where, size):
    rnn, _, _ = drawn(where)
    norms = GradientNorms()
    got = norms.add({"a": on(rnn, [3 * size, 0.0]), "b": on(rnn, [[4 * size]])})
    assert got == pytest.approx(5 * size, rel=1e-6)
    assert norms.quantile(0.5) == pytest.approx(5 * size, rel=0.0101)


def test_norms_that_are_none_are_counted_apart_and_merging_adds_up():
    a, b, both = GradientNorms(), GradientNorms(), GradientNorms()
    assert math.isnan(a.summary().mean) and math.isnan(a.quantile(0.5)) and math.isnan(a.clipped(1.0))
    for i, norm in enumerate([1.0, 0.0, 2.0, 1e300, 1e300, math.inf, 4.0, math.nan]):
        (a if i < 4 else b).add(norm)
        both.add(norm)
    b.add({"w": np.asarray([1.0, np.nan])})
    both.add({"w": np.asarray([1.0, np.nan])})
    a.merge(b)
    assert a.summary() == both.summary()
    seen = a.summary()
    assert (seen.steps, seen.finite, seen.nonfinite, seen.first_nonfinite) == (9, 6, 3, 5)
    assert seen.mean == pytest.approx(2e300 / 6)
    assert (a.quantile(0.0), a.clipped(0.0), a.clipped(math.inf)) == (0.0, 5 / 6, 0.0)
    for bad, error in ((-1.0, "a norm >= 0"), (True, "expected a float"), (np.ones(2), "expected a float")):
        with pytest.raises(rnncore.errors.RnncoreError, match=error):
            a.add(bad)
    with pytest.raises(rnncore.errors.ArgumentValueError, match=r"q: expected a number in \[0, 1\]"):
        a.quantile(1.5)
    top = GradientNorms()
    top.add(1.7976931348623157e308)
    top.add(5e-324)
    assert math.isfinite(top.quantile(1.0))
    assert 0 < top.quantile(0.0) < 1e-323


# --- gradcheck --------------------------------------------------------------------------------------------------------

ANALYTIC = ("tanh", "sigmoid", "identity", "affine", "scaled_tanh", "softplus")


@pytest.mark.parametrize("name", rnncore.nonlinearity.NONLINEARITIES)
def test_every_nonlinearity_passes(name):
    rnn, x, _ = drawn(("numpy", "float64"), num_layers=2, bidirectional=True, nonlinearity=name)
    found = gradcheck(rnn, x, np.random.default_rng(1).standard_normal((4, 3, 4)), lengths=[7, 0, 4])
    assert found.passed and found.failed == () and found.kinks == ()
    assert set(found.checks) == {*rnn.params, "x", "h0"}
    assert found.method == ("complex step" if name in ANALYTIC else "central difference")
    assert max(c.error for c in found.checks.values()) < (1e-15 if name in ANALYTIC else 1e-9)
    assert found.adjoint.error < 1e-15


@pytest.mark.parametrize(
    ("where", "name"),
    [*((w, n) for w in WHERE[2:] for n in ("tanh", "leaky_relu")), (("jax", "float32"), "tanh")],
)
def test_other_backends_and_layouts_pass(where, name):
    options = {"hidden_size": [3, 5], "nonlinearity": name, "backend": where[0], "dtype": where[1], "rng": 0}
    rng = np.random.default_rng(0)
    rnn = rnncore.RNN(2, batch_first=True, bidirectional=True, **options)
    assert gradcheck(rnn, on(rnn, rng.standard_normal((3, 6, 2))), lengths=[6, 2, 5]).passed
    if where[0] != "jax":
        unbatched = rnncore.RNN(2, bias=False, **options)
        h0 = [on(unbatched, rng.standard_normal((1, h))) for h in (3, 5)]
        found = gradcheck(unbatched, on(unbatched, rng.standard_normal((6, 2))), h0)
        assert found.passed
        # The tolerance is the dtype's: float32 is not forgiven in float64's name.
        eps = 2.0**-52 if where[1] == "float64" else 2.0**-23
        assert found.adjoint.tolerance == 64 * eps


@pytest.mark.parametrize("where", [("numpy", "float64"), ("torch", "float32"), ("strict", "float64")])
@pytest.mark.parametrize(
    ("name", "element"), [("weight_hh_l0", (2, 1)), ("bias_ih_l1", (3,)), ("x", (4, 1, 0)), ("h0", (1, 0, 2))]
)
@pytest.mark.parametrize("nonlinearity", ["tanh", "relu"])
def test_a_wrong_pullback_fails_and_is_named(where, name, element, nonlinearity, monkeypatch):
    rnn, x, _ = drawn(where, num_layers=2, nonlinearity=nonlinearity)
    x = on(rnn, x)
    assert gradcheck(rnn, x).passed
    right = rnncore.RNN.vjp

    def wrong(self, *args, **kwargs):
        output, h_n, pullback = right(self, *args, **kwargs)

        def pull(*cotangents):
            grads = pullback(*cotangents)
            named = {**grads.params, "x": grads.x, "h0": grads.h0}
            host = self._engine.backend.to_numpy(named[name]).astype(np.float64)
            host[element] += 0.01 * np.abs(host).max()
            named[name] = on(self, host)
            x_, h0_ = named.pop("x"), named.pop("h0")
            return rnncore.network.results.Gradients(named, x_, h0_)

        return output, h_n, pull

    monkeypatch.setattr(rnncore.RNN, "vjp", wrong)
    found = gradcheck(rnn, x)
    assert not found.passed
    assert found.worst == name
    assert found.failed == (name, "adjoint")


def test_a_wrong_derivative_and_a_wrong_jvp_are_told_apart(monkeypatch):
    wrong = rnncore.custom_nonlinearity(lambda z: z * z / 4, lambda z: z / 2 * 1.001, name="wrong")
    rnn, x, _ = drawn(("numpy", "float64"), nonlinearity=wrong)
    found = gradcheck(rnn, x)
    # Both passes use the same wrong derivative, so the dot test alone does not see it.
    assert not found.passed and found.adjoint.passed and "weight_ih_l0" in found.failed
    right_custom = rnncore.custom_nonlinearity(lambda z: z * z / 4, lambda z: z / 2, name="right")
    for where in WHERE[1:]:
        rnn, x, _ = drawn(where, nonlinearity=right_custom)
        assert gradcheck(rnn, on(rnn, x)).passed
    rnn, x, _ = drawn(("numpy", "float64"))
    right = rnncore.RNN.jvp

    def tangents(self, *args, **kwargs):
        output, h_n, t = right(self, *args, **kwargs)
        return output, h_n, rnncore.network.results.Tangents(t.output * 1.001, t.h_n)

    monkeypatch.setattr(rnncore.RNN, "jvp", tangents)
    assert gradcheck(rnn, x).failed == ("adjoint",)


def test_kinks_are_reported_and_not_failed():
    weights = {"weight_ih": [[1.0], [1.0]], "weight_hh": [[0.3, 0.1], [0.2, 0.4]]}
    rnn = model(weights, nonlinearity="relu")
    # At 0 the pullback's slope is 0 and the central difference's 1/2.
    found = gradcheck(rnn, np.asarray([[[1.0]], [[-0.4]]]))
    assert found.kinks == ("weight_ih_l0", "weight_hh_l0", "x", "h0")
    assert found.passed and found.adjoint.passed
    assert found.checks["x"].error > 1e-3
    clear = gradcheck(rnn, np.asarray([[[1.0]], [[-0.3]]]))
    assert clear.passed and clear.kinks == ()
    clipped = model(weights, clip=0.5)
    assert gradcheck(clipped, np.asarray([[[0.7]], [[-0.4]]])).kinks == ()
    assert "x" in gradcheck(clipped, np.asarray([[[0.5]], [[-0.4]]])).kinks


def test_a_pullback_of_nan_fails_even_at_a_kink(monkeypatch):
    rnn = model({"weight_ih": [[1.0]], "weight_hh": [[0.5]]}, nonlinearity="relu")
    x = np.zeros((3, 1, 1))
    assert gradcheck(rnn, x).kinks
    right = rnncore.RNN.vjp

    def wrong(self, *args, **kwargs):
        output, h_n, pullback = right(self, *args, **kwargs)

        def pull(*cotangents):
            grads = pullback(*cotangents)
            return rnncore.network.results.Gradients(
                {n: g * np.nan for n, g in grads.params.items()}, grads.x, grads.h0
            )

        return output, h_n, pull

    monkeypatch.setattr(rnncore.RNN, "vjp", wrong)
    assert set(gradcheck(rnn, x).failed) == {"weight_ih_l0", "weight_hh_l0", "adjoint"}
    monkeypatch.undo()
    assert gradcheck(rnn, np.zeros((3, 0, 1))).passed  # no rows, nothing wrong
