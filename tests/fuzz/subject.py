"""A case on a backend: its arrays laid out in memory in some way, its calls, and their results on the host."""

from contextlib import nullcontext
from itertools import pairwise

import numpy as np

import rnncore
from rnncore.backend.arrays import floating_dtypes
from tests.fuzz import drawing
from tests.fuzz.drawing import EPS

NO_NEGATIVE_STRIDES = ("torch",)
ON_NUMPYS_ARRAYS = ("numpy", "numba")


def wide(backend):
    """The context in which a backend has float64."""
    if backend != "jax":
        return nullcontext()
    import jax

    return jax.enable_x64(True)


def dtypes_of(backend):
    """The names of the backend's floating dtypes."""
    with wide(backend):
        plugin = rnncore.get_backend(backend)
        return tuple(sorted(floating_dtypes(xp=plugin.namespace(), device=plugin.devices()[0]), key=EPS.get))


class Subject:
    """A case's arrays on a backend, a model of it, and results back on the host in one shape, time-first."""

    def __init__(self, case, given, backend, model=None):
        self.case, self.given, self._model = case, given, model
        self.plugin = rnncore.get_backend(backend)
        self.xp = self.plugin.namespace()
        self.device = self.plugin.devices()[0]
        self.dtype = floating_dtypes(xp=self.xp, device=self.device)[case.dtype]
        self.handed = []
        x, h, w, d = case.layouts
        self.params = {n: self.give(v, w) for n, v in given.params.items()}
        self.x, self.x_dot = self.sequence(given.x, x), self.sequence(given.x_dot, d)
        self.h0 = self.state(given.h0, h) if case.h0_given else None
        self.d_output, self.d_h_n = self.sequence(given.d_output, d), self.state(given.d_h_n, d)
        self.h0_dot = self.state(given.h0_dot, d)
        self.params_dot = {n: self.give(given.params_dot[n], d) for n in given.dotted}
        if given.constant:
            one = self.give(np.full((1,) * self.d_output.ndim, given.d_output.flat[0] if given.d_output.size else 1.0))
            self.d_output = self.xp.broadcast_to(one, self.d_output.shape)

    @property
    def nonlinearity(self):
        c = self.case
        if c.nonlinearity == "rational":
            return drawing.rational, drawing.rational_slope
        return rnncore.get_nonlinearity(c.nonlinearity, alpha=c.alpha, beta=c.beta)

    def model(self):
        """The model that was given, else a new one."""
        return self._new_model() if self._model is None else self._model

    def _new_model(self):
        c = self.case
        sizes = (c.widths[0], len(c.widths)) if c.uniform else (list(c.widths),)
        rnn = rnncore.RNN(
            c.input_size,
            *sizes,
            nonlinearity=self.nonlinearity,
            clip=c.clip,
            bias=c.bias,
            batch_first=c.batch_first,
            dropout=c.dropout,
            bidirectional=c.bidirectional,
            backend=self.plugin,
            device=self.device,
            dtype=self.dtype,
            rng=0,
            kernel=c.kernel,
            check_finite=c.check_finite,
        )
        rnn.set_params(self.params)
        return rnn

    def calls(self):
        """The four calls: the model's methods, or the functions with the same arguments after x."""
        if not self.case.functional:
            rnn = self.model()
            return {"forward": rnn, "vjp": rnn.vjp, "jvp": rnn.jvp, "trace": rnn.trace}
        c, f = self.case, rnncore.functional
        options = {n: getattr(c, n) for n in ("batch_first", "dropout", "clip", "kernel", "check_finite")}
        options["nonlinearity"] = self.nonlinearity

        def with_params(function):
            return lambda x, *given, **more: function(x, self.params, *given, **options, **more)

        return {n: with_params(getattr(f, "rnn" if n == "forward" else n)) for n in ("forward", "vjp", "jvp", "trace")}

    def options(self):
        c = self.case
        found = {} if c.lengths is None else {"lengths": self._lengths()}
        return found | ({"training": True, "rng": self.given.mask_seed} if c.dropout else {})

    def _lengths(self):
        n, forms = self.case.lengths, (list, tuple, lambda n: np.asarray(n, dtype="i8"), lambda n: np.asarray(n, "i4"))
        return forms[self.case.number % len(forms)](n)

    # --- arrays in ---

    def give(self, host, layout="plain"):
        made = laid_out(self.plugin, host, layout, self._native)
        self.handed.append((made, host))
        return made

    def _native(self, host):
        return self.plugin.asarray(host, dtype=self.dtype, device=self.device)

    def sequence(self, host, layout):
        c = self.case
        return self.give(host[:, 0] if not c.batched else host.swapaxes(0, 1) if c.batch_first else host, layout)

    def state(self, layers, layout):
        rows = layers if self.case.batched else [a[:, 0] for a in layers]
        if len(set(self.case.widths)) == 1:
            return self.give(np.concatenate(rows), layout)
        return [self.give(a, layout) for a in rows]

    # --- results out ---

    def host(self, a, shape):
        assert a.dtype == self.dtype, f"dtype {a.dtype}, not {self.dtype}"
        assert tuple(a.shape) == tuple(shape), f"shape {tuple(a.shape)}, not {tuple(shape)}"
        return np.array(self.plugin.to_numpy(a), dtype="f8")

    def sequence_out(self, a, width):
        c = self.case
        shape = (
            (c.steps, width)
            if not c.batched
            else (c.batch, c.steps, width)
            if c.batch_first
            else (c.steps, c.batch, width)
        )
        host = self.host(a, shape)
        return host[:, None] if not c.batched else host.swapaxes(0, 1) if c.batch_first else host

    def state_out(self, name, state):
        c, batch = self.case, (self.case.batch,) if self.case.batched else ()
        if len(set(c.widths)) == 1:
            host = self.host(state, (c.directions * len(c.widths), *batch, c.widths[0]))
            layers = np.split(host, len(c.widths))
        else:
            assert isinstance(state, tuple)
            layers = [self.host(a, (c.directions, *batch, h)) for a, h in zip(state, c.widths, strict=True)]
        layers = layers if c.batched else [a[:, None] for a in layers]
        return {f"{name}[{k}]": a for k, a in enumerate(layers)}

    def outputs(self, output, h_n, suffix=""):
        top = self.case.directions * self.case.widths[-1]
        return {f"output{suffix}": self.sequence_out(output, top), **self.state_out(f"h_n{suffix}", h_n)}

    def check_unchanged(self):
        for made, host in self.handed:
            now = np.asarray(self.plugin.to_numpy(made), dtype="f8")
            assert np.array_equal(now, host, equal_nan=True), "an argument was changed"


def laid_out(plugin, host, layout, native):
    """An array with these numbers, laid out in memory in some way; `native` makes a plain one."""
    axis = host.size % host.ndim
    every = [slice(None)] * host.ndim
    if layout == "sliced":
        every[axis] = slice(None, None, 2)
        return native(np.repeat(host, 2, axis=axis))[tuple(every)]
    if layout == "negative" and plugin.name not in NO_NEGATIVE_STRIDES:
        every[axis] = slice(None, None, -1)
        return native(np.flip(host, axis))[tuple(every)]
    if layout == "transposed":
        return plugin.namespace().permute_dims(native(host.T), tuple(reversed(range(host.ndim))))
    if layout == "misaligned" and plugin.name not in ON_NUMPYS_ARRAYS:  # one element into a larger array
        flat = native(np.concatenate([[0.0], host.reshape(-1)]))
        return plugin.namespace().reshape(flat[1:], host.shape)
    made = native(host)
    if layout == "misaligned":  # at an odd address
        odd = np.empty(made.nbytes + 1, dtype=np.uint8)[1:].view(made.dtype).reshape(host.shape)
        odd[...] = made
        return odd
    if layout == "read-only" and plugin.name in ON_NUMPYS_ARRAYS:
        made.flags.writeable = False
    return made


# --- what is asked ----------------------------------------------------------------------------------------------------


def ask_forward(s):
    call = s.calls()["forward"]
    first, again = call(s.x, s.h0, **s.options()), call(s.x, s.h0, **s.options())
    return s.outputs(*first) | s.outputs(*again, " again")


def ask_trace(s):
    c, trace = s.case, s.calls()["trace"](s.x, s.h0, **s.options())
    found = s.outputs(trace.output, trace.h_n)
    for k, width in enumerate(c.widths):
        for name in ("h", "z"):
            found[f"{name}[{k}]"] = s.host(getattr(trace, name)[k], (c.directions, c.steps, c.batch, width))
    return found


def ask_vjp(s):
    c = s.case
    options = {n: v for n, v in (("checkpoint", c.checkpoint), ("truncate", c.truncate)) if v}
    output, h_n, pullback = s.calls()["vjp"](s.x, s.h0, **s.options(), **options)
    found = s.outputs(output, h_n)
    cotangents = [a if given else None for a, given in zip((s.d_output, s.d_h_n), c.given, strict=False)]
    pullback(*cotangents)
    grads = pullback(*cotangents)  # as right as the first
    found["x"] = s.sequence_out(grads.x, c.input_size)
    found |= s.state_out("h0", grads.h0)
    shapes = c.parameter_shapes()
    assert list(grads.params) == list(shapes)
    return found | {n: s.host(g, shapes[n]) for n, g in grads.params.items()}


def ask_jvp(s):
    dots = dict(zip(("x_dot", "h0_dot", "params_dot"), (s.x_dot, s.h0_dot, s.params_dot), strict=True))
    dots = {n: v for (n, v), given in zip(dots.items(), s.case.given, strict=True) if given}
    output, h_n, tangents = s.calls()["jvp"](s.x, s.h0, **s.options(), **dots)
    return s.outputs(output, h_n) | s.outputs(tangents.output, tangents.h_n, "_dot")


def ask_stream(s):
    """The sequence in pieces, each from the state in which the one before ended."""
    c, rnn = s.case, s.model()
    axis = 1 if c.batched and c.batch_first else 0
    h, pieces = s.h0, []
    cuts = sorted({0, c.steps, c.steps // 3, c.number % c.steps})
    for a, b in pairwise(cuts):
        piece, h = rnn(s.x[a:b, ...] if axis == 0 else s.x[:, a:b, ...], h)
        pieces.append(piece)
    return s.outputs(s.xp.concat(pieces, axis=axis), h)


def ask_cell(s):
    """Every layer and direction step by step, and the derivatives of the first step of the first layer."""
    c, rnn = s.case, s.model()
    axis = 1 if c.batched and c.batch_first else 0
    below = [s.x[t, ...] if axis == 0 else s.x[:, t, ...] for t in range(c.steps)]
    last = []
    for k in range(len(c.widths)):
        sides = []
        for d in range(c.directions):
            cell, steps = rnn.cell(k, reverse=bool(d)), [None] * c.steps
            h = _layer_state(s, k, d)
            for t in reversed(range(c.steps)) if d else range(c.steps):
                h = steps[t] = cell(below[t], h)
            sides.append(steps)
            last.append(h)
        below = [row[0] if len(row) == 1 else s.xp.concat(row, axis=-1) for row in zip(*sides, strict=True)]
    layers = [s.xp.stack(last[k * c.directions : (k + 1) * c.directions], axis=0) for k in range(len(c.widths))]
    h_n = s.xp.concat(layers, axis=0) if len(set(c.widths)) == 1 else tuple(layers)
    return s.outputs(s.xp.stack(below, axis=axis), h_n) | _ask_step(s, rnn)


def _layer_state(s, k, d):
    if s.h0 is None:
        return None
    uniform = len(set(s.case.widths)) == 1
    return s.h0[k * s.case.directions + d, ...] if uniform else s.h0[k][d, ...]


def _ask_step(s, rnn):
    c, cell, h0 = s.case, rnn.cell(), _layer_state(s, 0, 0)
    axis = 1 if c.batched and c.batch_first else 0
    x, x_dot = (a[0, ...] if axis == 0 else a[:, 0, ...] for a in (s.x, s.x_dot))
    seed = s.give(one_step_cotangent(c, s.given)[0 if not c.batched else slice(None)])
    h_next, pullback = cell.vjp(x, h0)
    found, grads = {"next": h_next}, pullback(seed)
    found |= {"step x": grads.x, "step h": grads.h} | {f"step {n}": g for n, g in grads.params.items()}
    params_dot = {n: s.params_dot[n] for n in cell.params if n in s.params_dot}
    _, found["next_dot"] = cell.jvp(x, h0, x_dot=x_dot, params_dot=params_dot)
    if c.batched and c.h0_given:
        w = [s.params.get(f"{kind}_l0") for kind in drawing.KINDS]
        found["next by function"] = rnncore.functional.rnn_cell(x, h0, *w, nonlinearity=s.nonlinearity, clip=c.clip)
    batch = (c.batch,) if c.batched else ()
    shapes = dict.fromkeys(found, (*batch, c.widths[0])) | {"step x": (*batch, c.input_size)}
    shapes |= {f"step {n}": c.parameter_shapes()[n] for n in cell.params}
    hosts = {n: s.host(a, shapes[n]) for n, a in found.items()}
    rows = ("next", "step x", "step h", "next_dot", "next by function")
    return {n: a[None] if n in rows and not c.batched else a for n, a in hosts.items()}


def one_step_cotangent(case, given):
    """The cotangent (B, H) of one step of the first layer."""
    return given.d_h_n[0][0]


ASK = {
    "forward": ask_forward,
    "trace": ask_trace,
    "vjp": ask_vjp,
    "jvp": ask_jvp,
    "stream": ask_stream,
    "cell": ask_cell,
}
