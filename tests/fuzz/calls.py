"""Calls drawn at random, held against the network in 80 bits: ``python -m tests.fuzz calls --count 5000``.

Each case is a network, a layout of its arrays and a call: forward, vjp, jvp, trace, cells step by step or a stream of pieces,
by a model or by :mod:`rnncore.functional`. Every array of the result is compared with :mod:`tests.fuzz.reference`. The error
may be `BOUND` times the larger of

- one eps of the array's largest number, and
- the distance by which the result moves when the reference rounds each step to the dtype (:class:`tests.fuzz.reference.Noise`).

The second takes account of long sums, of cancellation, of states that grow, and of layers, however they are made up.
"""

import math
import sys
import traceback
import warnings
from collections import Counter

import numpy as np

import rnncore
from tests.fuzz import drawing, reference
from tests.fuzz.drawing import EPS, TINY
from tests.fuzz.subject import ASK, Subject, dtypes_of, one_step_cotangent, wide

BOUND = 8
NOISES = 3


# --- what is right ----------------------------------------------------------------------------------------------------


def solve(case, given, run, net, noise=reference.exact):
    """The results that the case asks for, by name, from a run of the reference."""
    found = _outputs(run.output, run.last)
    if case.mode == "forward":
        found |= _outputs(run.output, run.last, " again")
    if case.mode == "trace":
        found |= {f"{n}[{k}]": np.stack(row) for n in ("h", "z") for k, row in enumerate(getattr(run, n))}
    if case.mode == "vjp":
        params, x, h0 = reference.backward(net, run, given.d_output, given.d_h_n, case.truncate, noise)
        found |= {n: params[n] for n in case.parameter_shapes()} | {"x": x}
        found |= {f"h0[{k}]": a for k, a in enumerate(h0)}
    if case.mode == "jvp":
        dots = reference.network(given.params_dot, len(case.widths), case.directions, None).weights
        found |= _outputs(*reference.tangent(net, run, dots, given.x_dot, given.h0_dot, noise), "_dot")
    if case.mode == "cell":
        found |= _one_step(case, given, net, noise)
    return found


def _one_step(case, given, net, noise):
    one = reference.Net([net.weights[0][:1]], net.function, net.clip, net.numbers)
    run = reference.forward(one, given.x[:1], [given.h0[0][:1]], noise=noise)
    nothing = np.zeros((1, case.batch, case.widths[0]))
    params, x, h0 = reference.backward(one, run, nothing, [[one_step_cotangent(case, given)]], noise=noise)
    dots = [reference.network(given.params_dot, 1, 1, None).weights[0]]
    moved, _ = reference.tangent(one, run, dots, given.x_dot[:1], [0 * given.h0[0][:1]], noise)
    found = {"next": run.output[0], "step x": x[0], "step h": h0[0][0], "next_dot": moved[0]}
    if case.batched and case.h0_given:
        found["next by function"] = run.output[0]
    return found | {f"step {n}": g for n, g in params.items() if n in case.parameter_shapes()}


def _outputs(output, last, suffix=""):
    return {f"output{suffix}": output} | {f"h_n{suffix}[{k}]": np.stack(row) for k, row in enumerate(last)}


class Right:
    """The results of a case, and by name the distance by which roundings of its dtype move them."""

    def __init__(self, case, given=None):
        self.case, self.given = case, drawing.numbers(case) if given is None else given
        clip = math.inf if case.clip is None else case.clip
        net = reference.network(self.given.params, len(case.widths), case.directions, case.function, clip)
        rng = np.random.default_rng([case.seed, case.number, case.attempt, 2])
        noise = reference.Noise(rng, EPS[case.dtype], TINY[case.dtype])
        run, *moved = (self._run(net, n) for n in (reference.exact, *[noise] * NOISES))
        self.near = drawing.near_a_kink(case, run, moved)
        if self.near:
            return
        self.results = solve(case, self.given, run, net)
        others = [solve(case, self.given, m, net, noise) for m in moved]
        self.moves = {n: max(_distance(o[n], a) for o in others) for n, a in self.results.items()}
        self.padding = ~run.valid[:, :, 0]

    def _run(self, net, noise):
        g = self.given
        return reference.forward(net, g.x, g.h0, self.case.lengths, g.masks, noise)

    def ratios(self, got):
        """Error over bound of each result; raise AssertionError where what must be exact is not."""
        assert got.keys() == self.results.keys(), f"results {sorted(got)}, not {sorted(self.results)}"
        found, eps, tiny = {}, EPS[self.case.dtype], TINY[self.case.dtype]
        for name, want in self.results.items():
            a = got[name]
            assert a.shape == want.shape, f"{name}: shape {a.shape}, not {want.shape}"
            where = (
                a if name in ("output", "x", "output_dot") else a.swapaxes(0, 2) if name[:2] in ("h[", "z[") else None
            )
            if where is not None:
                padding = self.padding if name[:2] not in ("h[", "z[") else self.padding.T
                assert not where[padding].any(), f"{name}: not 0 in the padding"
            finite = np.isfinite(want.astype("f8"))
            assert np.array_equal(a[~finite], want[~finite].astype("f8"), equal_nan=True), (
                f"{name}: NaN or inf elsewhere"
            )
            assert np.isfinite(a[finite]).all(), f"{name}: NaN or inf"
            size = float(abs(want[finite]).max(initial=0))
            bound = BOUND * max(eps * size, self.moves[name], eps * tiny)
            error = _distance(a, want)
            found[name] = error / bound if error else 0.0
        return found


def _distance(a, b):
    finite = np.isfinite(b.astype("f8"))
    return float(abs(a[finite] - b[finite]).max(initial=0))


# --- running ----------------------------------------------------------------------------------------------------------


def settled(number, seed, dtypes):
    """The right results of the case of this number, and how many draws were too near a kink."""
    case, redrawn = drawing.draw(number, seed, dtypes), 0
    while (right := Right(case)).near:
        case, redrawn = drawing.again(case, dtypes), redrawn + 1
    return right, redrawn


def check(case, backend):
    """Run a case on a backend; return error over bound by name, or raise."""
    return check_right(Right(case), backend)


def check_right(right, backend, model=None):
    """As :func:`check`, for results that are known, and a model that may be given."""
    with wide(backend):
        subject = Subject(right.case, right.given, backend, model)
        with warnings.catch_warnings():
            warnings.simplefilter("error", RuntimeWarning)  # no call computes with what it should not read
            got = ASK[right.case.mode](subject)
        ratios = right.ratios(got)
        worst = max(ratios, key=ratios.get)
        assert ratios[worst] <= 1, f"{worst}: {ratios[worst]:.3g} times what is allowed"
        subject.check_unchanged()
    return ratios


class Tally:
    """What a run found on one backend: worst ratios by dtype and quantity, counts, and failures."""

    def __init__(self):
        self.worst, self.counts, self.redrawn, self.failures = {}, Counter(), 0, []

    def add(self, case, ratios):
        self.counts[case.mode, case.dtype] += 1
        for name, ratio in ratios.items():
            kind = (
                "states"
                if name.startswith(("output", "h_n", "h[", "z[", "next")) and "_dot" not in name
                else "derivatives"
            )
            key = case.dtype, kind
            if ratio >= self.worst.get(key, (0.0,))[0]:
                self.worst[key] = ratio, case.number, name


def sweep(backend, numbers, seed, say=print):
    """Run the cases of these numbers on a backend; return the :class:`Tally`."""
    tally, dtypes = Tally(), dtypes_of(backend)
    for number in numbers:
        right, redrawn = settled(number, seed, dtypes)
        tally.redrawn += redrawn
        try:
            tally.add(right.case, check_right(right, backend))
        except Exception as error:  # whatever a call of the library raises is a finding, and the next case runs
            tally.failures.append(number)
            say(f"--- {backend}, case {number}: {type(error).__name__}: {error}\n{right.case.snippet(backend)}\n")
            if not isinstance(error, AssertionError):
                say(traceback.format_exc())
    return tally


def add_arguments(parser):
    """Add the options of this part."""
    usable = [b.name for b in rnncore.backends() if b.usable]
    parser.add_argument("--count", type=int, default=5000, help="cases for each backend, 300 at most on jax")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", type=int, nargs="+", help="the numbers of the cases to run")
    parser.add_argument("--backends", nargs="+", default=usable, metavar="NAME", help=f"by default {' '.join(usable)}")


# JAX compiles each case anew, which takes seconds.
MOST_ON_JAX = 300


def main(options):
    """Run the cases and print the figures; return 1 if a case failed."""
    failed = False
    for backend in options.backends:
        count = min(options.count, MOST_ON_JAX) if backend == "jax" else options.count
        tally = sweep(backend, options.only or range(count), options.seed)
        failed |= bool(tally.failures)
        report(backend, tally)
    return int(failed)


def report(backend, tally):
    """Print what a sweep found."""
    total, failures = sum(tally.counts.values()) + len(tally.failures), len(tally.failures)
    print(f"{backend}: {total} cases, {failures} failed, {tally.redrawn} drawn again near a kink")
    by_mode = Counter()
    for (mode, _), n in tally.counts.items():
        by_mode[mode] += n
    print("  " + ", ".join(f"{mode} {n}" for mode, n in sorted(by_mode.items())))
    for (dtype, kind), (ratio, number, name) in sorted(tally.worst.items()):
        print(f"  {dtype} {kind}: at worst {ratio:.3f} of what is allowed, {name} of case {number}")
    sys.stdout.flush()
