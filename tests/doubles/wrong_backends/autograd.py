"""Automatic derivatives that are wrong."""

from rnncore import get_backend
from wrong_backends.planting import members, torch_scans


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


AUTOGRAD = {
    "the library's gradient leaves h0 out": (grad_without(1), {"RC-SECOND-004": r"dL/dh0"}, "torch"),
    "the scan hides W_hh from autograd": (
        torch_scans(nonlinear=lambda run, p, h0, w, /, **o: run(p, h0, w.detach(), **o)),
        {"RC-SECOND-004": r"dL/dweight_hh"},
        "torch",
    ),
}
