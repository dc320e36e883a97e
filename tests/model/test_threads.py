"""A model whose parameters one thread replaces while others use it."""

import pickle
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import astuple, is_dataclass
from pathlib import Path

import numpy as np
import pytest

import rnncore
from rnncore.diagnostics.gradient.gradcheck import gradcheck
from rnncore.model import base
from rnncore.network.network import Network
from tests.tools.models import backends, give, host
from tests.tools.process import PATIENCE

# A call takes its parameters in its first events; after these, some are enough.
DENSELY, THEN_EVERY = 60, 11
MODEL = str(Path(base.__file__).parent)
X = np.random.default_rng(0).standard_normal((5, 2, 3))


def model(kind=rnncore.RNN, seed=0, **options):
    layers = {} if kind is rnncore.RNNCell else {"num_layers": 2, "bidirectional": True}
    return kind(3, 4, rng=seed, dtype="float64", **layers, **options)


def numbers(found):
    """All arrays of a result, as bytes in order."""
    if isinstance(found, dict):
        return [part for name in sorted(found) for part in numbers(found[name])]
    if isinstance(found, (tuple, list)):
        return [part for value in found for part in numbers(value)]
    if is_dataclass(found):
        return numbers(astuple(found))
    return [np.asarray(found).tobytes()]


def of_vjp(m, x):
    *found, pullback = m.vjp(x)
    return found, pullback(found[0])


def of_jvp(m, x):
    return m.jvp(x, x_dot=x, params_dot=dict(m.params))


def of_pickle(m, x):
    return dict(pickle.loads(pickle.dumps(m)).params)


def of_cell(m, x):
    return dict(m.cell(1, reverse=True).params)


BOTH = {
    "call": lambda m, x: m(x),
    "vjp": of_vjp,
    "params": lambda m, x: dict(m.params),
    "state_dict": lambda m, x: m.state_dict(),
    "to": lambda m, x: dict(m.to(dtype="float32").params),
    "pickle": of_pickle,
}
CALLS = {f"RNN {name}": (rnncore.RNN, call) for name, call in BOTH.items()}
CALLS |= {f"RNNCell {name}": (rnncore.RNNCell, call) for name, call in BOTH.items()}
CALLS |= {"RNN trace": (rnncore.RNN, lambda m, x: m.trace(x)), "RNN cell": (rnncore.RNN, of_cell)}
CALLS |= {
    "RNN jvp": (rnncore.RNN, lambda m, x: m.jvp(x, x_dot=x)),
    "RNNCell jvp": (rnncore.RNNCell, lambda m, x: m.jvp(x, x_dot=x)),
    "RNN lengths": (rnncore.RNN, lambda m, x: m(x, lengths=[5, 2])),
    "RNN checkpoint": (rnncore.RNN, lambda m, x: (lambda y, h, pull: (y, pull(y)))(*m.vjp(x, checkpoint=2))),
}


def interrupted(call, at, act, within=""):
    """Make a call, and at the `at`-th event of its functions act, as another thread could; whether it had so many.

    Only functions of files with `within` in their path count.
    """
    count, acted = 0, False

    def on_event(frame, event, argument):
        nonlocal count, acted
        count += within in frame.f_code.co_filename
        if count == at and not acted:
            acted = True
            act()

    before = sys.getprofile()
    sys.setprofile(on_event)
    try:
        found = call()
    finally:
        sys.setprofile(before)
    return found, acted


def moments(used, old, new, call, within=""):
    """The results of a call during which, at one moment after another, new parameters take the place of the old ones."""
    at, acted = 0, True
    while acted:
        at += 1 if at < DENSELY else THEN_EVERY
        used.set_params(old.params)
        found, acted = interrupted(call, at, lambda: used.set_params(new.params), within)
        yield found


@pytest.mark.parametrize("name", CALLS)
def test_parameters_set_at_any_moment_of_a_call_are_all_used_or_none(name):
    kind, call = CALLS[name]
    x = X if kind is rnncore.RNN else X[0]
    old, new, used = model(kind), model(kind, 1), model(kind)
    wanted = [numbers(call(m, x)) for m in (old, new)]
    assert wanted[0] != wanted[1]
    seen = [wanted.index(numbers(found)) for found in moments(used, old, new, lambda: call(used, x))]
    assert set(seen) == {0, 1}


def test_a_diagnosis_is_of_one_set_of_parameters():
    """A model is read by its own methods, so only these are interrupted."""

    def diagnosed(m):
        return rnncore.diagnose(m, X, cotangent=lambda output, h_n: (output, None)).to_json()

    old, new, used = model(), model(seed=1), model()
    wanted = [diagnosed(m) for m in (old, new)]
    seen = [wanted.index(found) for found in moments(used, old, new, lambda: diagnosed(used), MODEL)]
    assert set(seen) == {0, 1}


def test_a_gradient_check_is_of_one_set_of_parameters():
    """It compares several runs, which agree only if their parameters do."""
    old, new, used = model(), model(seed=1), model()
    found = list(moments(used, old, new, lambda: gradcheck(used, X), MODEL))
    assert len(found) > 5 and all(check.passed for check in found)


@backends
@pytest.mark.parametrize("kind", [rnncore.RNN, rnncore.RNNCell])
def test_threads_that_set_and_call_at_once_mix_nothing(kind, backend):
    used = model(kind, backend=backend)
    x = give(used, X if kind is rnncore.RNN else X[0])
    sets = [dict(model(kind, seed, backend=backend).params) for seed in (0, 1)]

    def calls(m):
        *found, pullback = m.vjp(x)
        grads = pullback(found[0])
        return [host(m, a).tobytes() for a in (found[0], grads.x, grads.params["weight_hh_l0"], m(x)[0])]

    wanted = []
    for params in sets:
        used.set_params(params)
        wanted.append(calls(used))
    over, mixed = threading.Event(), []

    def set_by_turns():
        while not over.is_set():
            for params in sets:
                used.set_params(params)

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(1) as pool:
            setting = pool.submit(set_by_turns)
            for _ in range(40):
                *of_vjp, of_call = calls(used)
                if of_vjp not in [w[:3] for w in wanted] or of_call not in [w[3] for w in wanted]:
                    mixed.append(of_vjp)
            over.set()
            setting.result(PATIENCE)
    finally:
        over.set()
        sys.setswitchinterval(interval)
    assert not mixed


def meanwhile(monkeypatch, first, second):
    """Call `second` in another thread when `first` is about to give the model another network.

    `first` goes on when the other is done, or waits for it.
    """
    begun, go_on = threading.Event(), threading.Event()
    with_params, lock = Network.with_params, base._exchanging

    def paused(network, params):
        made = with_params(network, params)
        if threading.current_thread() is threading.main_thread():
            begun.set()
            assert go_on.wait(PATIENCE)
        return made

    class Watched:
        def __enter__(self):
            if threading.current_thread() is not threading.main_thread():
                go_on.set()
            lock.acquire()

        def __exit__(self, *error):
            lock.release()

    monkeypatch.setattr(Network, "with_params", paused)
    monkeypatch.setattr(base, "_exchanging", Watched())

    def other():
        assert begun.wait(PATIENCE)
        second()
        go_on.set()

    with ThreadPoolExecutor(1) as pool:
        done = pool.submit(other)
        first()
        done.result(PATIENCE)


def test_two_threads_that_set_different_parameters_lose_none(monkeypatch):
    used, new = model(), model(seed=1).params
    a, b = list(new)[:2]
    meanwhile(monkeypatch, lambda: used.set_params({a: new[a]}), lambda: used.set_params({b: new[b]}))
    assert used.params[a] is new[a] and used.params[b] is new[b]


@pytest.mark.parametrize("loads", ["first", "second"])
def test_loading_all_and_setting_one_lose_neither(loads, monkeypatch):
    used, new, other = model(), model(seed=1).params, model(seed=2).params
    a, *rest = new
    acts = [lambda: used.set_params({a: other[a]}), lambda: used.load_state_dict(new)]
    meanwhile(monkeypatch, *(acts[::-1] if loads == "first" else acts))
    assert numbers(used.params[a]) == numbers((other if loads == "first" else new)[a])
    for name in rest:
        assert numbers(used.params[name]) == numbers(new[name])


def test_many_threads_that_set_their_own_parameter_lose_none():
    used = model()
    names, barrier = list(used.params), threading.Barrier(len(used.params))
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)

    def count(name):
        barrier.wait(PATIENCE)
        for n in range(200):
            used.set_params({name: np.full(used.params[name].shape, float(n))})
            assert (used.params[name] == n).all()

    try:
        with ThreadPoolExecutor(len(names)) as pool:
            list(pool.map(count, names))
    finally:
        sys.setswitchinterval(interval)
    assert all((x == 199).all() for x in used.params.values())
