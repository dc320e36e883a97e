"""Kernels that claim what they do not compute, and paths taken in silence."""

from dataclasses import replace

from rnncore_numpy._scans import NumpyScans

from rnncore import get_nonlinearity, scan
from rnncore.model.rnn import RNN
from rnncore.network.engine import Engine
from wrong_backends.planting import core, scans


class ClaimsSoftplus(NumpyScans):
    def unsupported(self, request, /):
        f = request.nonlinearity
        return None if f is not None and f.name == "softplus" else super().unsupported(request)

    def nonlinear(self, *given, nonlinearity, **options):
        known = nonlinearity if nonlinearity.name != "softplus" else get_nonlinearity("tanh")
        return super().nonlinear(*given, nonlinearity=known, **options)


class RefusesEverything(NumpyScans):
    def unsupported(self, request, /):
        return "not today"


class AnswersTrueOrFalse(NumpyScans):
    def unsupported(self, request, /):
        return super().unsupported(request) is not None or None


def swallows_errors(right, self, *given, overwrite=False, **options):
    try:
        return right(self, *given, overwrite=overwrite, **options)
    except Exception:
        return scan.nonlinear(*given, xp=self.xp, **options)


def kernels_only(right, self, **options):
    told = right(self, **options)
    return replace(told, choices=tuple(replace(c, path="kernel") for c in told.choices))


PATHS = {
    "an error in a scan is swallowed, and the reference run": (
        core(Engine, "nonlinear", swallows_errors),
        {"RC-KER-004": r"expected one attempt, got|expected ZeroDivisionError, got an answer"},
    ),
    "kernel='require' is answered by the reference": (
        core(
            Engine,
            "choose",
            lambda right, self, r: right(replace(self, kernel="auto") if self.kernel == "require" else self, r),
        ),
        {"RC-KER-003": r"expected KernelUnsupportedError, got an answer"},
    ),
    "without scans, kernel='require' is answered by the reference": (
        core(Engine, "choose", lambda right, self, r: right(replace(self, kernel="auto"), r), of="strict"),
        {"RC-TYPE-009": r"expected KernelUnsupportedError, got an answer"},
        "strict",
    ),
    "kernel='reference' runs the kernel": (
        core(Engine, "choose", lambda right, self, r: right(replace(self, kernel="auto"), r)),
        {"RC-KER-002": r"kernel='reference': ran \['nonlinear'"},
    ),
    "unsupported says yes to softplus, and tanh runs": (scans(ClaimsSoftplus), {"RC-KER-005": r"softplus"}),
    "unsupported answers True, not a reason": (
        scans(AnswersTrueOrFalse),
        {"RC-KER-005": r"expected a reason or None, got True"},
    ),
    "the scans refuse everything": (scans(RefusesEverything), {"RC-KER-001": r"refuse a tanh network"}),
    "the scans are never run": (
        core(Engine, "nonlinear", lambda right, self, *a, **o: right(replace(self, kernel="reference"), *a, **o)),
        {"RC-KER-001": r"expected the scans nonlinear, got none"},
    ),
    "explain() tells of kernels whatever runs": (
        core(RNN, "explain", kernels_only),
        {"RC-KER-006": r"expected {'nonlinear': 'reference'.*, got {'nonlinear': 'kernel'"},
    ),
}
