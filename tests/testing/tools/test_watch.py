"""Looking at a library's own calls: transfers to the host are seen, and runs at once do not disturb each other."""

import threading

import numpy as np
import pytest
from wrong_backends import Altered

import rnncore
from rnncore.testing import check_backend
from tests.tools.forks import forked, needs_fork
from tests.tools.sample import sample

LEAKS = {
    "a mask": lambda h: h[h > 0],
    "to('cpu')": lambda h: h.to("cpu"),
    "dlpack": lambda h: np.from_dlpack(h.detach()),
    "torch.equal": lambda h: __import__("torch").equal(h, h),
    "torch.allclose": lambda h: __import__("torch").allclose(h, h),
    "nonzero": lambda h: h.nonzero(),
}


@pytest.mark.parametrize("leak", sample(LEAKS, 3))
def test_a_way_to_the_host_in_every_step_is_seen(leak):
    torch = rnncore.get_backend("torch")

    scans = torch.scans()

    def nonlinear(p, h0, w_hh, /, *, nonlinearity, reverse, overwrite=False):
        h = scans.nonlinear(p, h0, w_hh, nonlinearity=nonlinearity, reverse=reverse)
        for t in range(len(h)):
            LEAKS[leak](h[t])
        return h

    made = Altered(scans, nonlinear=nonlinear)
    report = check_backend(Altered(torch, scans=lambda: made), only=["RC-SYNC-001", "RC-SYNC-002"])
    assert report.count("failed") == 2, str(report)


def test_runs_at_once_do_not_see_each_other_and_leave_nothing_behind():
    import torch

    before = {name: getattr(torch.Tensor, name) for name in ("__bool__", "item", "to", "__getitem__")}
    reports = []
    run = lambda: reports.append(check_backend("torch", only=["RC-SYNC", "RC-NUM-011"]))  # noqa: E731
    threads = [threading.Thread(target=run) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(reports) == 3 and all(r.ok for r in reports)
    assert {name: getattr(torch.Tensor, name) for name in before} == before


def test_what_cannot_be_looked_at_is_skipped_and_says_so():
    skipped = {o.id: o.reason for o in check_backend("numpy", only=["RC-SYNC-005"]).outcomes if o.status == "skipped"}
    assert "methods of the array class cannot be replaced" in skipped["RC-SYNC-005"]
    hidden = {o.id: o.reason for o in check_backend("strict", only=["RC-PURE-002"]).outcomes if o.status == "skipped"}
    assert "does not expose addresses of arrays" in hidden["RC-PURE-002"]


@needs_fork
def test_a_child_forked_during_a_check_can_run_checks():
    """Its parent's check goes on; nobody goes on with it in the child."""
    code = """
        from rnncore.testing import check_backend, session
        from rnncore.testing.tools import watch
        def work():
            with session._running, watch._patching:
                pause()
        def in_child():
            assert check_backend("numpy", only=["RC-SYNC-004"]).ok
        fork_during(work, in_child)
        print("done")
    """
    assert forked(code) == "done"
