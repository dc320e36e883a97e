"""Results that differ from call to call, and scans that wait for the device or run on the host."""

import array_api_compat.numpy as xp
import numpy as np
from rnncore_numpy._scans import NumpyScans

from rnncore.network.engine import Engine
from rnncore.network.ragged import Ragged
from wrong_backends.planting import _times, core, nonlinear, scans, torch_scans


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


def mask_for_every_step(right, self, x):
    for t in range(self.steps):
        self._truth(np.asarray(self.lengths) > t)
    return right(self, x)


def waits_for_every_scan(right, self, *given, **options):
    self.backend.synchronize(self.device)
    return right(self, *given, **options)


TIME = {
    "a rounding more or less, at random": (nonlinear(noisy), {"RC-DET-001": r"output", "RC-DET-004": r"h\b"}),
    "the first call is another algorithm's": (scans(FirstCallTunes), {"RC-DET-001": r": output"}),
    "every other call is a rounding off": (scans(EveryOtherCall), {"RC-DET-004": r": s\b"}),
    "the last state of a call is the first of the next": (
        scans(KeepsItsState),
        {"RC-DET-001": r"output", "RC-DET-004": r"h\b"},
    ),
    "all threads share one scratch buffer": (scans(SharesItsScratch), {"RC-DET-005": r"thread"}),
    "the scan waits at every step": (scans(WaitsAtEveryStep), {"RC-SYNC-004": r"synchronize"}),
    "every scan is waited for": (
        core(Engine, "nonlinear", waits_for_every_scan),
        {"RC-SYNC-001": r"waited for the device \d+ times"},
    ),
    "a number of every step is brought to the host": (
        torch_scans(nonlinear=number_of_every_step),
        {"RC-SYNC-001": r"brought to the host: item, item"},
        "torch",
    ),
    "the pullback looks at every step on the host": (
        torch_scans(linear=truth_of_every_step),
        {"RC-SYNC-002": r"brought to the host: __bool__, __bool__"},
        "torch",
    ),
    "the scans run on the host": (
        scans(RunsOnTheHost, "torch"),
        {"RC-SYNC-004": r"called to_numpy, to_numpy, to_numpy, asarray"},
        "torch",
    ),
    "a mask is made for every step": (
        core(Ragged, "masked", mask_for_every_step),
        {"RC-SYNC-003": r"for 6 steps, \d+ for twice"},
    ),
}
