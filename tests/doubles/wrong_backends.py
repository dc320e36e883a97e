"""Implementations that are wrong on purpose, one fault each: the conformance suite has to fail every one of them.

Most are a sound plugin with one thing changed; what no plugin can do wrong is planted in rnncore itself, for as long as a
context lasts. ``ZOO`` is the table: the fault, how it is planted, and the checks whose rule it breaks with what they must say.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from unittest import mock

import array_api_compat.numpy as xp
import numpy as np
from rnncore_numpy._scans import NumpyScans

from rnncore import get_backend, get_nonlinearity, optim, scan
from rnncore.backend import arrays
from rnncore.backend.contract import Backend
from rnncore.model.base import Parameterised
from rnncore.network import calls, layer, layout
from rnncore.network import stack as network
from rnncore.network import step as cell
from rnncore.network.engine import Engine
from rnncore.network.ragged import Ragged
from rnncore.network.stack import Plan
from rnncore.nonlinearity.nonlinearity import Nonlinearity
from rnncore.optim import clipping

Plant = Callable[[], AbstractContextManager[Backend]]


def _times(steps, reverse):
    return range(steps - 1, -1, -1) if reverse else range(steps)


@dataclass(frozen=True)
class Wrong:
    """One fault.

    Attributes
    ----------
    name : str
    plant : callable
        A context that has the wrong backend.
    caught : mapping of str to str
        The checks that are named for the fault, and what each must say of it, as a regular expression.
    of : str
        The sound backend: there the same checks pass.
    """

    name: str
    plant: Plant
    caught: Mapping[str, str]
    of: str = "numpy"


# --- ways to plant a fault --------------------------------------------------------------------------------------------


class Altered:
    """A backend with other members in the place of some of its own."""

    def __init__(self, backend, **changed):
        vars(self).update({n: getattr(backend, n) for n in dir(backend) if not n.startswith("_")} | changed)


class AlteredNamespace:
    """A namespace with other functions in the place of some of its own."""

    def __init__(self, xp, **changed):
        self._xp = xp
        vars(self).update({n: partial(function, getattr(xp, n)) for n, function in changed.items()})

    def __getattr__(self, name):
        return getattr(self._xp, name)


def members(of="numpy", **changed) -> Plant:
    """A backend with these members."""
    return lambda: nullcontext(Altered(get_backend(of), **changed))


def namespace(of="numpy", *, also=None, **changed) -> Plant:
    """A backend whose namespace has function(right, ...) in the place of each right one, on which all is run: it has no scans
    and no product of its own.
    """

    def plant():
        made = AlteredNamespace(get_backend(of).namespace(), **changed)
        return nullcontext(
            Altered(
                get_backend(of), **{"namespace": lambda: made, "scans": lambda: None, "product": None} | (also or {})
            )
        )

    return plant


def scans(kind, of="numpy") -> Plant:
    """A backend with scans of this class: one object, as in a plugin. The class may have a parameter, the backend."""

    def plant():
        backend = Altered(get_backend(of))
        made = kind(backend) if "__init__" in vars(kind) else kind()
        backend.scans = lambda: made
        return nullcontext(backend)

    return plant


def nonlinear(function) -> Plant:
    """NumPy's backend with function(right, p, h0, w_hh, **options) for its nonlinear scan."""

    class Scans(NumpyScans):
        def nonlinear(self, *given, **options):
            return function(super().nonlinear, *given, **options)

    return scans(Scans)


def linear(function) -> Plant:
    """NumPy's backend with function(right, u, d, s0, m, **options) for its linear scan."""

    class Scans(NumpyScans):
        def linear(self, *given, **options):
            return function(super().linear, *given, **options)

    return scans(Scans)


def steps_of(step, activate=None) -> Plant:
    """NumPy's backend with a plain loop over step(p_t, h, w_hh) = z for its nonlinear scan."""

    def run(right, p, h0, w_hh, /, *, nonlinearity, reverse, overwrite=False):
        out, h = np.empty_like(p), h0
        for t in _times(len(p), reverse):
            z = step(p[t], h, w_hh)
            h = out[t] = nonlinearity(z, xp=xp) if activate is None else activate(nonlinearity, z)
        return out

    return nonlinear(run)


def core(owner, name, function, of="numpy") -> Plant:
    """A sound backend under an rnncore that has function(right, ...) in the place of owner.name."""

    @contextmanager
    def plant():
        right = getattr(owner, name)
        with mock.patch.object(owner, name, lambda *args, **kwargs: function(right, *args, **kwargs)):
            yield get_backend(of)

    return plant


# --- faults that take more than a line --------------------------------------------------------------------------------


def put(x, where, value):
    x[where] = value
    return x


def tf32(x):
    """float32 numbers with the ten bits of mantissa that a tensor core reads."""
    if str(x.dtype) != "float32":
        return x
    mantissa, exponent = np.frexp(x)
    return np.ldexp(np.round(mantissa * np.float32(2**11)) / np.float32(2**11), exponent)


class Tf32Scans(NumpyScans):
    def nonlinear(self, p, h0, w_hh, /, *, nonlinearity, reverse, overwrite=False):
        out, h, w_t = np.empty_like(p), h0, tf32(w_hh).T
        for t in _times(len(p), reverse):
            h = out[t] = nonlinearity(p[t] + tf32(h) @ w_t, xp=xp)
        return out

    def linear(self, u, d, s0, m, /, *, reverse, overwrite=False):
        out, s, m = np.empty_like(u), s0, tf32(m)
        for t in _times(len(u), reverse):
            s = out[t] = d[t] * (u[t] + tf32(s) @ m)
        return out


def tensor_cores(**also) -> Plant:
    """Every product of float32 arrays rounds its inputs to TF32."""
    return namespace(matmul=lambda matmul, a, b: matmul(tf32(a), tf32(b)), also={"scans": Tf32Scans, **also})


# Not wrong: it says so.
honest_tf32 = tensor_cores(precision=lambda device: "tf32")


def single(x):
    return x.astype("f4").astype(x.dtype)


def in_pieces(run, p, h0, w, /, **options):
    """Launched for 256 steps at a time, each time from the first state."""
    return np.concatenate([run(p[a : a + 256], h0, w, **options) for a in range(0, max(len(p), 1), 256)])


def in_pieces_in_reverse(run, p, h0, w, /, *, reverse, **options):
    return in_pieces(run, p, h0, w, reverse=True, **options) if reverse else run(p, h0, w, reverse=False, **options)


def needs_to_write(run, p, h0, *rest, **options):
    if not h0.flags.writeable:
        raise ValueError("buffer source array is read-only")
    return run(p, h0, *rest, **options)


def needs_a_block(run, p, *rest, **options):
    if p.size == 0:
        raise RuntimeError("invalid launch: a grid of 0 blocks")
    return run(p, *rest, **options)


def centred(p, h, w):
    mean = h.mean(axis=0)
    return p + (h - mean) @ w.T + mean @ w.T


def tanh_by_exponentials(f, z):
    if f.name != "tanh":
        return f(z, xp=xp)
    e = np.exp(2 * z)
    return (e - 1) / (e + 1)


def maximum_that_drops_nan(f, z):
    return np.fmax(z, 0) if f.name == "relu" and f.clip is None else f(z, xp=xp)


def limit_that_drops_nan(f, z):
    return f(z if f.clip is None else np.fmin(np.fmax(z, -f.clip), f.clip), xp=xp)


def states_kept_in_h0(run, p, h0, w, /, **options):
    h = run(p, h0, w, **options)
    h0[...] = h[0 if options["reverse"] else -1]
    return h


def reads_d_after_writing(run, u, d, s0, m, /, *, reverse, overwrite=False):
    if not overwrite:
        return run(u, d, s0, m, reverse=reverse)
    s = s0
    for t in _times(len(u), reverse):
        d[t] = u[t] + s @ m
        s = d[t] = d[t] * d[t]
    return d


def noisy(run, *given, **options):
    h = run(*given, **options)
    return np.where(np.random.default_rng().random(h.shape) < 0.5, np.nextafter(h, np.inf, dtype=h.dtype), h)


class FirstCallTunes(NumpyScans):
    """The first call tries two algorithms and returns the other one's numbers."""

    tuned = False

    def nonlinear(self, p, h0, w_hh, /, **options):
        h = super().nonlinear(p, h0, w_hh, **options)
        if not self.tuned:
            self.tuned, h = True, np.nextafter(h, np.inf, dtype=h.dtype)
        return h


class EveryOtherCall(NumpyScans):
    """Two buffers in turn, one of which is a rounding off."""

    calls = 0

    def linear(self, *given, **options):
        s = super().linear(*given, **options)
        self.calls += 1
        return s if self.calls % 2 else np.nextafter(s, np.inf, dtype=s.dtype)


class KeepsItsState(NumpyScans):
    """The last state of one call is the first of the next that has its shape."""

    last = None

    def nonlinear(self, p, h0, w_hh, /, *, reverse, **options):
        if self.last is not None and self.last.shape == h0.shape and self.last.dtype == h0.dtype:
            h0 = self.last
        h = super().nonlinear(p, h0, w_hh, reverse=reverse, **options)
        self.last = h[0 if reverse else -1].copy() if len(h) else None
        return h


class ReusesItsResult(NumpyScans):
    """One buffer for the results of every call of a shape."""

    def __init__(self, backend):
        self.buffers = {}

    def nonlinear(self, p, *rest, overwrite=False, **options):
        buffer = self.buffers.setdefault((p.shape, p.dtype), np.empty_like(p))
        return put(buffer, np.s_[...], super().nonlinear(p, *rest, **options))


class SharesItsScratch(NumpyScans):
    """One buffer for the product, whatever thread is at work."""

    scratch = np.empty(0)

    def nonlinear(self, p, h0, w_hh, /, *, nonlinearity, reverse, overwrite=False):
        if self.scratch.shape != h0.shape or self.scratch.dtype != p.dtype:
            self.scratch = np.empty(h0.shape, p.dtype)
        out, h, scratch = np.empty_like(p), h0, self.scratch
        for t in _times(len(p), reverse):
            np.matmul(h, w_hh.T, out=scratch)
            np.add(p[t], scratch, out=out[t])
            h = out[t] = nonlinearity(out[t], xp=xp)
        return out


class ClaimsSoftplus(NumpyScans):
    def unsupported(self, request, /):
        f = request.nonlinearity
        return None if f is not None and f.name == "softplus" else super().unsupported(request)

    def nonlinear(self, *given, nonlinearity, **options):
        known = nonlinearity if nonlinearity.name != "softplus" else get_nonlinearity("tanh")
        return super().nonlinear(*given, nonlinearity=known, **options)


class ForgetsAlpha(NumpyScans):
    """leaky_relu has the slope that it has by default."""

    def unsupported(self, request, /):
        f = request.nonlinearity
        return None if f is not None and f.name == "leaky_relu" else super().unsupported(request)

    def nonlinear(self, p, h0, w_hh, /, *, nonlinearity, **options):
        if nonlinearity.name != "leaky_relu":
            return super().nonlinear(p, h0, w_hh, nonlinearity=nonlinearity, **options)
        options.pop("overwrite", None)
        return scan.nonlinear(p, h0, w_hh, nonlinearity=get_nonlinearity("leaky_relu"), xp=xp, **options)


class GoesByTheName(NumpyScans):
    def unsupported(self, request, /):
        f = request.nonlinearity
        return None if f is not None and f.name == "tanh" else super().unsupported(request)


class ClaimsCustom(NumpyScans):
    def unsupported(self, request, /):
        f = request.nonlinearity
        return None if f is not None and f.is_custom else super().unsupported(request)

    def nonlinear(self, *given, nonlinearity, **options):
        known = nonlinearity if not nonlinearity.is_custom else get_nonlinearity("tanh")
        return super().nonlinear(*given, nonlinearity=known, **options)


class RefusesEverything(NumpyScans):
    def unsupported(self, request, /):
        return "not today"


class AnswersTrueOrFalse(NumpyScans):
    def unsupported(self, request, /):
        return super().unsupported(request) is not None or None


class LacksExpm1:
    """A namespace."""

    def __getattr__(self, name):
        if name == "expm1":
            raise AttributeError(name)
        return getattr(xp, name)


class LacksLinear:
    unsupported, nonlinear = NumpyScans.unsupported, NumpyScans.nonlinear


class WaitsAtEveryStep(NumpyScans):
    def __init__(self, backend):
        self.backend = backend

    def nonlinear(self, p, *rest, **options):
        for _ in p:
            self.backend.synchronize("cpu")
        return super().nonlinear(p, *rest, **options)


class RunsOnTheHost:
    """Scans of a device's backend that bring everything to the host, run there, and send it back."""

    def __init__(self, backend):
        self.backend = backend

    def unsupported(self, request, /):
        return NumpyScans().unsupported(request)

    def nonlinear(self, *given, **options):
        return self.there_and_back(NumpyScans().nonlinear, given, options)

    def linear(self, *given, **options):
        return self.there_and_back(NumpyScans().linear, given, options)

    def there_and_back(self, run, given, options):
        out = run(*(self.backend.to_numpy(x) for x in given), **options)
        return self.backend.asarray(out, dtype=given[0].dtype, device=given[0].device)


def torch_scans(nonlinear=None, linear=None) -> Plant:
    """PyTorch's scans with function(right, ...) in the place of one."""

    def plant():
        from rnncore_torch._scans import TorchScans

        class Scans(TorchScans):
            pass

        for name, function in (("nonlinear", nonlinear), ("linear", linear)):
            if function is not None:
                right = getattr(TorchScans(), name)
                setattr(Scans, name, lambda self, *a, right=right, function=function, **o: function(right, *a, **o))
        return scans(Scans, "torch")()

    return plant


def number_of_every_step(run, *given, **options):
    h = run(*given, **options)
    for h_t in h:
        h_t.detach().abs().max().item()
    return h


def truth_of_every_step(run, *given, **options):
    s = run(*given, **options)
    for s_t in s:
        if bool((s_t.detach() > 1e30).any()):
            raise OverflowError
    return s


def grad_without(k):
    """The library's gradients, with zeros for the k-th argument."""

    def plant():
        def grad(function):
            def gradients(*given):
                found = list(get_backend("torch").grad(function)(*given))
                found[k] = found[k] * 0
                return tuple(found)

            return gradients

        return members("torch", grad=grad)()

    return plant


def hands_the_input_back(right, w, x, h0, *, nonlinearity, **options):
    """A shortcut for the network that does nothing."""
    same = w.weight_ih.shape[0] == w.weight_ih.shape[1] and (w.weight_ih == np.eye(len(w.weight_ih))).all()
    if same and nonlinearity.name == "identity" and w.bias is None and not w.weight_hh.any():
        return x
    return right(w, x, h0, nonlinearity=nonlinearity, **options)


def mask_in_place(right, self, x):
    if x.flags.writeable:
        x[~np.broadcast_to(self._valid, x.shape)] = 0
        return x
    return right(self, x)


def mask_for_every_step(right, self, x):
    for t in range(self.steps):
        self._truth(np.asarray(self.lengths) > t)
    return right(self, x)


def slope_in_place(right, self, h, *, xp):
    return put(h, np.s_[...], right(self, h, xp=xp))


def divides_by_d(right, d_s, u, d, s0, m, s, /, **options):
    """g = e / d and the bracket is s / d, unless d is 0."""
    found = right(d_s, u, d, s0, m, s, **options)
    return found._replace(d=found.u / d * (s / d))


def forgets_the_upper_reverse(right, d_h, d_last, w, x, *rest, reverse, **options):
    """Only the forward direction of an upper layer tells the layer below."""
    found = right(d_h, d_last, w, x, *rest, reverse=reverse, **options)
    return found._replace(x=found.x * 0) if reverse and x.shape[2] == 2 * w.weight_hh.shape[0] else found


def forgets_the_layer_above(right, d_h, d_last, w, x, *rest, **options):
    found = right(d_h, d_last, w, x, *rest, **options)
    return found._replace(x=found.x * 0) if x.shape[2] == w.weight_hh.shape[0] else found


def swallows_errors(right, self, *given, overwrite=False, **options):
    try:
        return right(self, *given, overwrite=overwrite, **options)
    except Exception:
        return scan.nonlinear(*given, xp=self.xp, **options)


def waits_for_every_scan(right, self, *given, **options):
    self.backend.synchronize(self.device)
    return right(self, *given, **options)


def kernels_only(right, self, **options):
    told = right(self, **options)
    return replace(told, choices=tuple(replace(c, path="kernel") for c in told.choices))


def without_bias_hh(right, spec, params):
    return right(spec, {k: v * 0 if k.startswith("bias_hh") else v for k, v in params.items()})


def bias_hh_gradient(change):
    def named(right, call, nested):
        found = right(call, nested)
        return change(found, [k for k in found if k.startswith("bias_hh")])

    return named


def on_another(right, self, x):
    return right(self, x).to_device(get_backend("strict").devices()[1])


# --- the table --------------------------------------------------------------------------------------------------------

SCANS = (
    Wrong(
        "W_hh is transposed",
        nonlinear(lambda run, p, h0, w, /, **o: run(p, h0, w.T, **o)),
        {"RC-SCAN-001": r"h \(tanh\)\[\d.*eps", "RC-ANA-002": r"h_1\["},
    ),
    Wrong(
        "sigmoid runs in place of tanh",
        nonlinear(lambda run, *a, **o: run(*a, **o | {"nonlinearity": get_nonlinearity("sigmoid")})),
        {"RC-SCAN-001": r"h \(tanh\)\[\d.*eps"},
    ),
    Wrong(
        "the state is not carried: h_{t-1} is always h0",
        nonlinear(lambda run, p, h0, w, /, *, nonlinearity, **o: nonlinearity(p + h0 @ w.T, xp=xp)),
        {"RC-SCAN-001": r"h \(tanh\)\[\d", "RC-SCAN-008": r"h \(tanh", "RC-ANA-001": r"output\["},
    ),
    Wrong(
        "the last step is 0",
        nonlinear(lambda run, *a, **o: put(run(*a, **o), np.s_[-1:], 0)),
        {
            "RC-SCAN-001": r"h \(tanh\)\[5, .*got \S*\b0\.0\b",
            "RC-SCAN-009": r"h \(tanh\)\[0, .*got \S*\b0\.0\b",
        },
    ),
    Wrong(
        "the last step repeats the one before",
        nonlinear(lambda run, *a, **o: put(h := run(*a, **o), np.s_[-1:], h[-2:-1])),
        {"RC-SCAN-001": r"h \(tanh\)\[5, "},
    ),
    Wrong(
        "the nonlinear scan ignores reverse",
        nonlinear(lambda run, *a, **o: run(*a, **o | {"reverse": False})),
        {"RC-SCAN-007": r"h \(tanh, reverse\)"},
    ),
    Wrong(
        "the nonlinear scan in reverse returns its states in the order in which they were made",
        nonlinear(lambda run, *a, reverse, **o: run(*a, reverse=reverse, **o)[:: -1 if reverse else 1]),
        {"RC-SCAN-007": r"h \(tanh, reverse\)"},
    ),
    Wrong(
        "the nonlinear scan ignores its first state",
        nonlinear(lambda run, p, h0, w, /, **o: run(p, 0 * h0, w, **o)),
        {"RC-SCAN-008": r"h \(tanh\).*got \S*\b0\.0\b"},
    ),
    Wrong(
        "the clip is ignored",
        nonlinear(lambda run, *a, nonlinearity, **o: run(*a, nonlinearity=nonlinearity.with_clip(None), **o)),
        {"RC-SCAN-006": r"h \(tanh\)", "RC-FWD-011": r"output"},
    ),
    Wrong(
        "rows of the batch come back in another order",
        nonlinear(lambda run, *a, **o: run(*a, **o)[:, ::-1]),
        {"RC-SCAN-001": r"h \(tanh\)", "RC-META-001": r"output"},
    ),
    Wrong(
        "units past a tile of 64 are not read",
        nonlinear(
            lambda run, p, h0, w, /, **o: run(p, h0, np.where(np.arange(len(w)) < 64, w, 0).astype(w.dtype), **o)
        ),
        {"RC-SCAN-011": r"h \(tanh\)"},
    ),
    Wrong(
        "rows past a tile of 32 are not computed",
        nonlinear(lambda run, *a, **o: put(run(*a, **o), np.s_[:, 32:], 0)),
        {"RC-SCAN-025": r"h \(tanh\)"},
    ),
    Wrong(
        "units past a block of 1024 are not read",
        linear(lambda run, u, d, s0, m, /, **o: run(u, d, s0, put(m.copy(), np.s_[1024:], 0), **o)),
        {"RC-SCAN-025": r"s \(reverse\)"},
    ),
    Wrong(
        "in reverse, 256 steps for each launch",
        nonlinear(in_pieces_in_reverse),
        {"RC-SCAN-025": r"h \(tanh, reverse\)"},
    ),
    Wrong("alpha is the default one", scans(ForgetsAlpha), {"RC-SCAN-026": r"leaky_relu of {'alpha': 0.25}"}),
    Wrong("a user's function is run by its name", scans(GoesByTheName), {"RC-SCAN-027": r"h\["}),
    Wrong("256 steps for each launch, and no state in between", nonlinear(in_pieces), {"RC-SCAN-010": r"h \(tanh\)\["}),
    Wrong("an empty batch cannot be launched", nonlinear(needs_a_block), {"RC-SCAN-013": r"invalid launch"}),
    Wrong(
        "a matrix's memory is read without its strides",
        nonlinear(lambda run, p, h0, w, /, **o: run(p, h0, w.ravel("K").reshape(w.shape), **o)),
        {"RC-SCAN-022": r"h\["},
    ),
    Wrong(
        "a user's own function is run as tanh",
        scans(ClaimsCustom),
        {"RC-SCAN-012": r"h\[", "RC-KER-005": r"serpentine"},
    ),
    Wrong(
        "the linear scan has M transposed",
        linear(lambda run, u, d, s0, m, /, **o: run(u, d, s0, m.T, **o)),
        {"RC-SCAN-014": r"s\["},
    ),
    Wrong(
        "the linear scan lacks its factor d",
        linear(lambda run, u, d, s0, m, /, **o: run(u, np.ones_like(d), s0, m, **o)),
        {"RC-SCAN-014": r"s\[", "RC-SCAN-017": r"s\["},
    ),
    Wrong(
        "the linear scan does not read units past a tile of 64",
        linear(lambda run, u, d, s0, m, /, **o: run(u, d, s0, put(m.copy(), np.s_[64:], 0), **o)),
        {"RC-SCAN-019": r"s\["},
    ),
    Wrong(
        "the linear scan has its factor at the source only",
        linear(lambda run, u, d, s0, m, /, **o: run(d * u, np.ones_like(d), s0, m, **o)),
        {"RC-SCAN-017": r"s\["},
    ),
    Wrong(
        "the linear scan does not carry its state",
        linear(lambda run, u, d, s0, m, /, **o: d * (u + s0 @ m)),
        {"RC-SCAN-014": r"s\[", "RC-SCAN-023": r"after the source: expected numbers, got 0"},
    ),
    Wrong(
        "the linear scan ignores reverse",
        linear(lambda run, *a, **o: run(*a, **o | {"reverse": False})),
        {"RC-SCAN-015": r"s \(reverse\)", "RC-SCAN-023": r"before the source"},
    ),
    Wrong(
        "the linear scan ignores its first state",
        linear(lambda run, u, d, s0, m, /, **o: run(u, d, 0 * s0, m, **o)),
        {"RC-SCAN-016": r"s\[.*got \S*\b0\.0\b"},
    ),
    Wrong(
        "the linear scan takes its steps in the wrong order and returns them in the right one",
        linear(lambda run, u, d, s0, m, /, **o: run(u[::-1], d[::-1], s0, m, **o)[::-1]),
        {"RC-SCAN-014": r"s\[", "RC-SCAN-023": r"s before the source"},
    ),
    Wrong(
        "with leave to overwrite, d is read after it was written",
        linear(reads_d_after_writing),
        {"RC-SCAN-021": r"s\["},
    ),
)

STORAGE = (
    Wrong(
        "the nonlinear scan writes into p without leave",
        nonlinear(lambda run, *a, **o: run(*a, **o | {"overwrite": True}).copy()),
        {"RC-SCAN-020": r": p\["},
    ),
    Wrong(
        "the nonlinear scan returns p itself without leave",
        nonlinear(lambda run, *a, **o: run(*a, **o | {"overwrite": True})),
        {"RC-SCAN-020": r"a scan returned its argument"},
    ),
    Wrong(
        "the linear scan returns d itself without leave",
        linear(lambda run, *a, **o: run(*a, **o | {"overwrite": True})),
        {"RC-SCAN-020": r"a scan returned its argument"},
    ),
    Wrong(
        "the linear scan has u for its scratch",
        linear(lambda run, u, *a, **o: put(u, np.s_[...], run(u, *a, **o)).copy()),
        {"RC-SCAN-020": r": u\[", "RC-SCAN-021": r": u\[", "RC-PURE-001": r": d_output\["},
    ),
    Wrong(
        "the running state is kept in h0",
        nonlinear(states_kept_in_h0),
        {"RC-SCAN-020": r": h0\[", "RC-PURE-001": r": h0\["},
    ),
    Wrong(
        "W_hh is transposed in place, so that every second call puts it right",
        nonlinear(lambda run, p, h0, w, /, **o: put(w, np.s_[...], w.T.copy()) is w and run(p, h0, w.T, **o)),
        {"RC-SCAN-024": r": w\["},
    ),
    Wrong(
        "W_hh is scratch once it has been read",
        nonlinear(lambda run, p, h0, w, /, **o: (run(p, h0, w, **o), put(w, np.s_[...], 0))[0]),
        {"RC-SCAN-020": r": w\[", "RC-PURE-001": r": weight_hh_l0"},
    ),
    Wrong("padding is zeroed in the caller's array", core(Ragged, "masked", mask_in_place), {"RC-PURE-001": r": x\["}),
    Wrong(
        "h_n is a view of the output",
        core(
            layout,
            "state_out",
            lambda right, c, s, n: n[0][0][None] if c.spec.num_layers == len(n[0]) else right(c, s, n),
        ),
        {"RC-PURE-002": r"output and h_n share memory"},
    ),
    Wrong(
        "the gradients of the two biases are one array",
        core(Engine, "copy", lambda right, self, x: x),
        {"RC-PURE-002": r"dL/dbias_ih_l0 and dL/dbias_hh_l0 share memory"},
    ),
    Wrong(
        "state_dict hands out the weights themselves",
        core(Parameterised, "_copied", lambda right, self, x: x),
        {"RC-PURE-002": r"state weight_ih_l0 and weight_ih_l0 share memory"},
    ),
    Wrong(
        "the network that does nothing returns its input",
        core(layer, "forward", hands_the_input_back),
        {"RC-PURE-005": r"output and x share memory"},
    ),
    Wrong(
        "every result of a shape is one buffer",
        scans(ReusesItsResult),
        {"RC-PURE-006": r"output after another call"},
    ),
    Wrong("inputs have to be writable", nonlinear(needs_to_write), {"RC-PURE-004": r"read-only"}),
    Wrong(
        "asarray shares the host array's memory",
        members(asarray=lambda x, /, *, dtype, device: np.asarray(x, dtype=dtype)),
        {"RC-CON-005": r"asarray of float32.*got \S*\b7\.0\b"},
    ),
    Wrong(
        "a read-only view can be written to",
        members(read_only=lambda x, /: x.view()),
        {"RC-CON-013": r"writing to a read-only view"},
    ),
    Wrong(
        "arrays said to be writable are one number broadcast",
        namespace(zeros=lambda zeros, shape, **o: np.broadcast_to(zeros((), **o), shape)),
        {"RC-CON-014": r"read-only"},
    ),
)

NUMBERS = (
    Wrong(
        "asarray makes float64 by way of float32",
        members(asarray=lambda x, /, *, dtype, device: np.asarray(x).astype("f4").astype(dtype)),
        {"RC-CON-004": r"float64: to_numpy\(asarray\(x\)\)", "RC-NUM-008": r"float64: output"},
    ),
    Wrong(
        "to_numpy rounds to float32",
        members(to_numpy=lambda x, /: x.astype("f4") if x.dtype == np.float64 else x),
        {"RC-CON-004": r"float64: to_numpy\(asarray\(x\)\)"},
    ),
    Wrong(
        "the scan computes in float32",
        nonlinear(lambda run, *a, **o: run(*(x.astype("f4") for x in a), **o).astype(a[0].dtype)),
        {"RC-NUM-008": r"float64: output.*eps", "RC-NUM-009": r"float64: h\["},
    ),
    Wrong(
        "the namespace's products are float32",
        namespace(matmul=lambda matmul, a, b: matmul(single(a), single(b))),
        {"RC-NUM-008": r"float64: output.*eps", "RC-NUM-009": r"float64: matmul\["},
    ),
    Wrong(
        "products round their inputs to TF32, and precision does not say so",
        tensor_cores(),
        {"RC-NUM-009": r"float32: matmul\[", "RC-SCAN-001": r"float32: h \(tanh\)"},
    ),
    Wrong(
        "the scans' products round to TF32, and precision does not say so",
        linear(lambda run, u, d, s0, m, /, **o: run(u, d, tf32(s0), tf32(m), **o)),
        {"RC-NUM-009": r"float32: s\["},
    ),
    Wrong(
        "models are saved and moved in float32",
        core(Parameterised, "_host_params", lambda right, self: {k: single(v) for k, v in right(self).items()}),
        {"RC-IO-003": r"float64: to\('numpy'\) weight_ih_l0\[.*eps"},
    ),
    Wrong(
        "the sign of a zero is lost",
        members(asarray=lambda x, /, *, dtype, device: np.where(x == 0, 0, x).astype(dtype)),
        {"RC-CON-004": r"the sign of a zero is lost"},
    ),
    Wrong(
        "NaN is turned into 0",
        nonlinear(lambda run, *a, **o: np.nan_to_num(run(*a, **o), nan=0.0, posinf=np.inf, neginf=-np.inf)),
        {"RC-NUM-005": r"expected NaN in every unit", "RC-NUM-004": r"expected NaN"},
    ),
    Wrong(
        "relu is a maximum that drops NaN",
        steps_of(lambda p, h, w: p + h @ w.T, maximum_that_drops_nan),
        {"RC-NUM-005": r"output \(relu, clip None\): expected NaN"},
    ),
    Wrong(
        "the limit drops NaN",
        steps_of(lambda p, h, w: p + h @ w.T, limit_that_drops_nan),
        {"RC-NUM-005": r"output \(tanh, clip 0.5\): expected NaN"},
    ),
    Wrong("NaN leaks by way of the batch's mean", steps_of(centred), {"RC-NUM-004": r"of row [02] \(tanh\)"}),
    Wrong(
        "overflow saturates",
        nonlinear(lambda run, *a, **o: (lambda h: np.minimum(h, np.finfo(h.dtype).max))(run(*a, **o))),
        {"RC-NUM-003": r"h\[.*expected inf, got"},
    ),
    Wrong(
        "the linear scan turns NaN into 0",
        linear(lambda run, *a, **o: np.nan_to_num(run(*a, **o), nan=0.0, posinf=np.inf, neginf=-np.inf)),
        {"RC-NUM-010": r"s\[.*expected nan, got"},
    ),
    Wrong(
        "the linear scan saturates",
        linear(lambda run, *a, **o: (lambda s: np.minimum(s, np.finfo(s.dtype).max))(run(*a, **o))),
        {"RC-NUM-010": r"s\[.*expected inf, got"},
    ),
    Wrong(
        "tanh is made of exponentials",
        steps_of(lambda p, h, w: p + h @ w.T, tanh_by_exponentials),
        {"RC-NUM-001": r"tanh at .*expected 1.0, got nan"},
    ),
    Wrong(
        "small numbers are flushed to 0",
        namespace(matmul=lambda matmul, a, b: (lambda c: np.where(np.abs(c) < 1e-28, 0, c))(matmul(a, b))),
        {"RC-NUM-007": r"output.*got \S*\b0\.0\b"},
    ),
    Wrong(
        "results are float64 whatever the input",
        nonlinear(lambda run, *a, **o: run(*a, **o).astype("f8")),
        {"RC-TYPE-001": r"expected dtype float32, got float64|array is not acceptable \(must have the right datatype"},
    ),
    Wrong(
        "creation ignores the dtype",
        namespace(zeros=lambda zeros, shape, *, dtype=None, device=None: zeros(shape)),
        {"RC-CON-008": r"zeros: expected dtype float(16|32), got float64"},
    ),
    Wrong(
        "indices count from 1",
        namespace(take=lambda take, x, indices, **o: take(x, indices - 1, **o)),
        {"RC-CON-009": r"take\["},
    ),
    Wrong(
        "asarray reads the host array's memory without its strides",
        members(asarray=lambda x, /, *, dtype, device: np.ravel(x, order="K").reshape(np.shape(x)).astype(dtype)),
        {"RC-CON-006": r"asarray of a transposed array"},
    ),
)

CONTRACT = (
    Wrong("a function is missing from the namespace", members(namespace=LacksExpm1), {"RC-CON-010": r"lacks expm1"}),
    Wrong(
        "the library's name is misspelt",
        members(native_package="nunpy"),
        {"RC-CON-017": r"imported now, got 'nunpy'"},
    ),
    Wrong(
        "to_numpy reads an array's memory without its strides",
        members(to_numpy=lambda x, /: x.ravel("K").reshape(x.shape)),
        {"RC-CON-016": r"to_numpy of a transposed array"},
    ),
    Wrong(
        "is_native is true of everything",
        members(is_native=lambda x, /: True),
        {"RC-CON-007": r"expected False for None, got True"},
    ),
    Wrong(
        "two devices have one name",
        members(devices=lambda: ("cpu", "cpu")),
        {"RC-CON-003": r"names that differ, got cpu, cpu"},
    ),
    Wrong("a precision without a name", members(precision=lambda device: "bf16"), {"RC-CON-012": r"got 'bf16'"}),
    Wrong(
        "synchronize has an answer",
        members(synchronize=lambda device, /: True),
        {"RC-CON-011": r"expected None, got True"},
    ),
    Wrong(
        "the scans lack one of the two", scans(LacksLinear), {"RC-CON-001": r"expected unsupported, nonlinear, linear"}
    ),
    Wrong(
        "creation ignores the device",
        namespace("strict", zeros=lambda zeros, shape, *, dtype=None, device=None: zeros(shape, dtype=dtype)),
        {"RC-CON-008": r"zeros: expected device .*device1.*, got .*CPU_DEVICE"},
        of="strict",
    ),
    Wrong(
        "asarray ignores the device",
        members(
            "strict",
            asarray=lambda x, /, *, dtype, device: get_backend("strict").asarray(
                x, dtype=dtype, device=get_backend("strict").devices()[1]
            ),
        ),
        {
            "RC-CON-008": r"asarray: expected device .*device1.*, got .*device2",
            "RC-TYPE-005": r"weight_ih_l0: expected device",
        },
        of="strict",
    ),
    Wrong(
        "results land on another device",
        core(layout.Layout, "outward", on_another, of="strict"),
        {"RC-TYPE-001": r"output: expected device .*device1.*, got .*device2"},
        of="strict",
    ),
    Wrong(
        "nobody looks at devices",
        core(arrays, "device_of", lambda right, x: None, of="strict"),
        {"RC-TYPE-004": r"expected DeviceError"},
        of="strict",
    ),
    Wrong(
        "nobody looks at arguments",
        core(layout, "check", lambda right, *a: None),
        {
            "RC-TYPE-002": r"expected DTypeError, got an answer",
            "RC-TYPE-006": r"expected ArgumentTypeError",
            "RC-FWD-015": r"expected ShapeError",
        },
    ),
)

CORE = (
    Wrong(
        "the bias is missing",
        core(layer, "_project", lambda right, w, x, engine: right(w._replace(bias=None), x, engine)),
        {"RC-CON-015": r"output.*got \S*\b0\.0\b"},
    ),
    Wrong(
        "one of the two biases is missing", core(calls, "nested_weights", without_bias_hh), {"RC-FWD-007": r"output"}
    ),
    Wrong(
        "the two halves of the output change places",
        core(network, "_side_by_side", lambda right, h, plan: right(h[::-1], plan)),
        {"RC-FWD-003": r"output"},
    ),
    Wrong(
        "h_n has the top layer first",
        core(layout, "state_out", lambda right, call, shape, nested: right(call, shape, nested[::-1])),
        {"RC-FWD-004": r"h_n of layer 0"},
    ),
    Wrong(
        "of two directions above only one tells the layer below",
        core(layer, "vjp", forgets_the_upper_reverse),
        {"RC-GRAD-004": r"dL/d"},
    ),
    Wrong(
        "nothing comes down from the layer above", core(layer, "vjp", forgets_the_layer_above), {"RC-GRAD-002": r"dL/d"}
    ),
    Wrong(
        "the gradient of h0 is missing",
        core(layer, "vjp", lambda right, *a, **o: (lambda found: found._replace(h0=found.h0 * 0))(right(*a, **o))),
        {"RC-GRAD-011": r"dL/dh0\[.*got \S*\b0\.0\b"},
    ),
    Wrong(
        "the gradient of bias_hh is missing",
        core(
            calls, "_named", bias_hh_gradient(lambda found, names: {k: v for k, v in found.items() if k not in names})
        ),
        {"RC-GRAD-001": r"grads.params: expected"},
    ),
    Wrong(
        "the gradient of bias_hh is 0",
        core(calls, "_named", bias_hh_gradient(lambda found, names: found | {k: found[k] * 0 for k in names})),
        {"RC-GRAD-001": r"dL/dbias_hh_l0"},
    ),
    Wrong(
        "the slopes are computed where the states were",
        core(Nonlinearity, "derivative_from_h", slope_in_place),
        {"RC-GRAD-017": r"dL/dx, the second time"},
    ),
    Wrong(
        "the cotangent of d is divided by d",
        core(scan, "linear_vjp", divides_by_d),
        {"RC-SECOND-001": r"cotangent of d.*got nan"},
    ),
    Wrong("truncation is dropped", core(Plan, "boundaries", lambda right, self, steps: ()), {"RC-GRAD-013": r"dL/d"}),
    Wrong(
        "of a checkpointed pullback only the first window counts",
        core(network, "_added", lambda right, a, b: b),
        {"RC-GRAD-014": r"dL/dweight"},
    ),
    Wrong(
        "the tangent of h0 is dropped",
        core(layer, "jvp", lambda right, w_dot, x_dot, h0_dot, *a, **o: right(w_dot, x_dot, None, *a, **o)),
        {"RC-JVP-001": r"tangent of output"},
    ),
    Wrong(
        "dropout does not scale what it keeps",
        core(calls, "_dropout_masks", lambda right, *a: tuple(m * (1 - a[0].spec.dropout) for m in right(*a))),
        {"RC-FWD-016": r"output in training", "RC-GRAD-015": r"output"},
    ),
    Wrong(
        "dropout of everything divides by 0",
        core(
            calls, "_dropout_masks", lambda right, *a: tuple(m / m.dtype.type(1 - a[0].spec.dropout) for m in right(*a))
        ),
        {"RC-FWD-017": r"output.*got nan"},
    ),
    Wrong(
        "h_n is the first state",
        core(layer, "last_state", lambda right, h, h0, **o: h[0]),
        {"RC-CELL-003": r"output from step 3", "RC-META-003": r"h_n cut at 1"},
    ),
    Wrong(
        "in reverse, padding is the beginning",
        core(
            layer,
            "forward",
            lambda right, *a, reverse, ragged, **o: right(*a, reverse=reverse, ragged=None if reverse else ragged, **o),
        ),
        {"RC-LEN-002": r"output"},
    ),
    Wrong(
        "a row without steps loses its state",
        core(Ragged, "last_or", lambda right, self, h, h0: self.at_ends(h)),
        {"RC-LEN-006": r"h_n of the empty row.*got \S*\b0\.0\b"},
    ),
    Wrong(
        "h_n of a shorter sequence is one step early",
        core(Ragged, "last_or", lambda right, self, h, h0: right(self, np.concatenate([h[:1], h[:-1]]), h0)),
        {"RC-LEN-001": r"h_n of layer 0"},
    ),
    Wrong(
        "padding is read",
        core(Ragged, "masked", lambda right, self, x: x),
        {"RC-LEN-003": r"with nan in the padding", "RC-LEN-004": r"dL/dx in the padding"},
    ),
    Wrong(
        "a length that is too long is cut",
        core(calls, "host_lengths", lambda right, n, *, batch, steps: n and tuple(min(k, steps) for k in n)),
        {"RC-LEN-009": r"expected ArgumentValueError, got an answer"},
    ),
    Wrong(
        "a cell forgets its state",
        core(cell, "step", lambda right, w, x, h, **o: right(w, x, 0 * h, **o)),
        {"RC-CELL-001": r"h at step 0"},
    ),
    Wrong(
        "the norm of gradients squares before it scales",
        core(clipping, "_scaled_squares", lambda right, g, largest, xp: xp.sum(g * g) / largest**2),
        {"RC-OPT-001": r"norm at"},
    ),
    Wrong(
        "Adam does not correct its averages",
        core(optim.Adam, "_update", lambda right, self, p, g, kept, count, xp: right(self, p, g, kept, 10**6, xp)),
        {"RC-OPT-002": r"Adam"},
    ),
)

PATHS = (
    Wrong(
        "an error in a scan is swallowed, and the reference run",
        core(Engine, "nonlinear", swallows_errors),
        {"RC-KER-004": r"expected one attempt, got|expected ZeroDivisionError, got an answer"},
    ),
    Wrong(
        "kernel='require' is answered by the reference",
        core(
            Engine,
            "choose",
            lambda right, self, r: right(replace(self, kernel="auto") if self.kernel == "require" else self, r),
        ),
        {"RC-KER-003": r"expected KernelUnsupportedError, got an answer"},
    ),
    Wrong(
        "without scans, kernel='require' is answered by the reference",
        core(Engine, "choose", lambda right, self, r: right(replace(self, kernel="auto"), r), of="strict"),
        {"RC-TYPE-009": r"expected KernelUnsupportedError, got an answer"},
        of="strict",
    ),
    Wrong(
        "kernel='reference' runs the kernel",
        core(Engine, "choose", lambda right, self, r: right(replace(self, kernel="auto"), r)),
        {"RC-KER-002": r"kernel='reference': ran \['nonlinear'"},
    ),
    Wrong("unsupported says yes to softplus, and tanh runs", scans(ClaimsSoftplus), {"RC-KER-005": r"softplus"}),
    Wrong(
        "unsupported answers True, not a reason",
        scans(AnswersTrueOrFalse),
        {"RC-KER-005": r"expected a reason or None, got True"},
    ),
    Wrong("the scans refuse everything", scans(RefusesEverything), {"RC-KER-001": r"refuse a tanh network"}),
    Wrong(
        "the scans are never run",
        core(Engine, "nonlinear", lambda right, self, *a, **o: right(replace(self, kernel="reference"), *a, **o)),
        {"RC-KER-001": r"expected the scans nonlinear, got none"},
    ),
    Wrong(
        "explain() tells of kernels whatever runs",
        core(Parameterised, "explain", kernels_only),
        {"RC-KER-006": r"expected {'nonlinear': 'reference'.*, got {'nonlinear': 'kernel'"},
    ),
)

TIME = (
    Wrong("a rounding more or less, at random", nonlinear(noisy), {"RC-DET-001": r"output", "RC-DET-004": r"h\b"}),
    Wrong("the first call is another algorithm's", scans(FirstCallTunes), {"RC-DET-001": r": output"}),
    Wrong("every other call is a rounding off", scans(EveryOtherCall), {"RC-DET-004": r": s\b"}),
    Wrong(
        "the last state of a call is the first of the next",
        scans(KeepsItsState),
        {"RC-DET-001": r"output", "RC-DET-004": r"h\b"},
    ),
    Wrong("all threads share one scratch buffer", scans(SharesItsScratch), {"RC-DET-005": r"thread"}),
    Wrong("the scan waits at every step", scans(WaitsAtEveryStep), {"RC-SYNC-004": r"synchronize"}),
    Wrong(
        "every scan is waited for",
        core(Engine, "nonlinear", waits_for_every_scan),
        {"RC-SYNC-001": r"waited for the device \d+ times"},
    ),
    Wrong(
        "a number of every step is brought to the host",
        torch_scans(nonlinear=number_of_every_step),
        {"RC-SYNC-001": r"brought to the host: item, item"},
        of="torch",
    ),
    Wrong(
        "the pullback looks at every step on the host",
        torch_scans(linear=truth_of_every_step),
        {"RC-SYNC-002": r"brought to the host: __bool__, __bool__"},
        of="torch",
    ),
    Wrong(
        "the scans run on the host",
        scans(RunsOnTheHost, "torch"),
        {"RC-SYNC-004": r"called to_numpy, to_numpy, to_numpy, asarray"},
        of="torch",
    ),
    Wrong(
        "a mask is made for every step",
        core(Ragged, "masked", mask_for_every_step),
        {"RC-SYNC-003": r"for 6 steps, \d+ for twice"},
    ),
)

AUTOGRAD = (
    Wrong("the library's gradient leaves h0 out", grad_without(1), {"RC-SECOND-004": r"dL/dh0"}, of="torch"),
    Wrong(
        "the scan hides W_hh from autograd",
        torch_scans(nonlinear=lambda run, p, h0, w, /, **o: run(p, h0, w.detach(), **o)),
        {"RC-SECOND-004": r"dL/dweight_hh"},
        of="torch",
    ),
)

ZOO = (*SCANS, *STORAGE, *NUMBERS, *CONTRACT, *CORE, *PATHS, *TIME, *AUTOGRAD)
