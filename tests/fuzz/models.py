"""Models under any sequence of methods, beside a plain model of what they should hold: ``python -m tests.fuzz models``.

Hypothesis draws the sequences. A :class:`Live` is a model together with its shadow: its parameters in float64, by name in a
:class:`Box` for each array (models that share an array share its box), and what was last said about backend, dtype and the
rest. After every step each model must hold exactly what its shadow holds, and the calls of a model must be right
(:mod:`tests.fuzz.calls`) with the shadow's parameters.
"""

import copy
import os
import pickle
import tempfile
from collections import Counter
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import ClassVar

import hypothesis
import numpy as np
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

import rnncore
from rnncore.backend.arrays import floating_dtypes
from rnncore.errors import RnncoreError
from tests.fuzz import calls, drawing
from tests.fuzz.drawing import EPS, TINY
from tests.fuzz.subject import dtypes_of, laid_out, wide
from tests.fuzz.training import OptimiserShadow, clipped

MOST_MODELS = 5
STEPS_OF_A_RUN = 25
# Libraries whose arrays can be written to in place.
WRITABLE = ("numpy", "numba", "torch")
FUNCTIONS = ("tanh", "relu", "softsign", "leaky_relu", "rational")

# How the backend of a new model is chosen.
WAYS = ("argument", "import", "context")

seeds = st.integers(0, 2**32 - 1)
picks = st.integers(0, 2**16)


class Box:
    """The numbers of one array, in float64."""

    def __init__(self, values):
        self.values = np.array(values, dtype="f8")


class Live:
    """A model and what it should be."""

    def __init__(self, model, case, params, *, backend, dtype, kernel="auto", check_finite=False, kind=rnncore.RNN):
        self.model, self.case, self.params = model, case, params
        self.backend, self.dtype, self.kernel, self.check_finite, self.kind = backend, dtype, kernel, check_finite, kind
        self.optimiser = None

    @property
    def is_cell(self):
        return issubclass(self.kind, rnncore.RNNCell)

    def host(self, a):
        return np.array(rnncore.get_backend(self.backend).to_numpy(a), dtype="f8")

    def give(self, values):
        plugin = rnncore.get_backend(self.backend)
        return plugin.asarray(values, dtype=self.model.dtype, device=self.model.device)

    def adopt(self, names):
        """Take these parameters as they are now."""
        self.params |= {n: Box(self.host(self.model.params[n])) for n in names}

    def moved_to(self, model, **changes):
        """A model made of this one: a live one with parameters of its own, converted to its dtype."""
        said = {n: getattr(self, n) for n in ("backend", "dtype", "kernel", "check_finite", "kind")} | changes
        made = Live(model, self.case, {}, **said)
        assert (model.backend, dtype_name(model)) == (made.backend, made.dtype)
        for name, box in self.params.items():
            values = made.host(model.params[name])
            check_rounding(box.values, values, made.dtype)
            made.params[name] = Box(values)
        return made

    def config(self):
        """What `spec.to_config()` should say."""
        c, custom = self.case, self.case.nonlinearity == "rational"
        said = {"name": c.nonlinearity, "alpha": c.alpha, "clip": c.clip}
        return {
            "input_size": c.input_size,
            "hidden_sizes": list(c.widths),
            "nonlinearity": {n: v for n, v in said.items() if v is not None},
            "custom_nonlinearity": custom,
            **{n: getattr(c, n) for n in ("bias", "batch_first", "dropout", "bidirectional")},
        }


def check_rounding(old, new, dtype):
    """The same numbers if the dtype holds them, else within half an eps, or a little more where two roundings follow."""
    kept = drawing.rounded(old, dtype) == old
    assert np.array_equal(new[kept], old[kept]), "numbers changed that the dtype holds"
    half = EPS[dtype] / 2 * (1 + 2.0**-8)
    assert (abs(new - old) <= half * np.maximum(abs(old), TINY[dtype])).all(), "not rounded to the nearest"


class Models(RuleBasedStateMachine):
    """Up to `MOST_MODELS` models of any backends at once."""

    backends: tuple[str, ...] = ()
    done: ClassVar[Counter] = Counter()

    def __init__(self):
        super().__init__()
        self.lives, self.chosen = [], []
        self.stack = ExitStack()
        self.folder = Path(self.stack.enter_context(tempfile.TemporaryDirectory()))
        if "jax" in self.backends:
            self.stack.enter_context(wide("jax"))

    def teardown(self):
        while self.chosen:
            self.leave_use_backend()
        self.stack.close()

    def live(self, pick):
        return self.lives[pick % len(self.lives)]

    def backend(self, pick):
        return self.backends[pick % len(self.backends)]

    def dtype(self, backend, pick):
        return pick_of(dtypes_of(backend), pick)

    def keep(self, live):
        """A model more; beyond the most there may be, in place of the eldest."""
        self.lives = [*self.lives, live][-MOST_MODELS:]

    def keep_copy(self, live, pick):
        """As :meth:`keep`, and sometimes write into it at once: no other model may see that."""
        self.keep(live)
        if live.backend in WRITABLE and pick % 2:
            write(live, pick)

    def count(self, what):
        self.done[what] += 1

    # --- models are made ---

    @initialize(seed=seeds, backend=picks, dtype=picks)
    def first(self, seed, backend, dtype):
        self.new_model(seed, backend, dtype, "argument", False)

    @rule(seed=seeds, backend=picks, dtype=picks, chosen=st.sampled_from(WAYS), check_finite=st.booleans())
    def new_model(self, seed, backend, dtype, chosen, check_finite):
        """By argument, by the class that a plugin exports, or by what is selected."""
        case = shape_of_a_model(seed)
        selected = self.chosen[-1].name if self.chosen else os.environ.get("RNNCORE_BACKEND") or "numpy"
        name = selected if chosen == "context" else self.backend(backend)
        dtype, kind = self.dtype(name, dtype), rnncore.get_backend(name).RNN if chosen == "import" else rnncore.RNN
        kernel = pick_of(("auto", "reference"), seed)
        sizes = (case.widths[0], len(case.widths)) if case.uniform else (list(case.widths),)
        options = {n: getattr(case, n) for n in ("clip", "bias", "batch_first", "bidirectional")}
        options |= {"backend": name} if chosen == "argument" else {}
        function = function_of(case)
        model = kind(
            case.input_size,
            *sizes,
            nonlinearity=function,
            dtype=dtype,
            rng=seed,
            kernel=kernel,
            check_finite=check_finite,
            **options,
        )
        live = Live(model, case, {}, backend=name, dtype=dtype, kernel=kernel, check_finite=check_finite, kind=kind)
        live.adopt(case.parameter_shapes())
        self.keep(live)
        self.count("new")

    @rule(pick=picks, backend=picks, dtype=picks, same=st.booleans())
    def to(self, pick, backend, dtype, same):
        live = self.live(pick)
        name = live.backend if same else self.backend(backend)
        kept = live.dtype in dtypes_of(name)
        dtype = live.dtype if kept and dtype % 2 else self.dtype(name, dtype)
        given = {} if dtype == live.dtype else {"dtype": dtype}
        model = live.model.to(**given) if same else live.model.to(name, **given)
        self.keep_copy(live.moved_to(model, backend=name, dtype=dtype), pick)
        self.count("to")

    @rule(pick=picks, how=st.sampled_from(("pickle", "copy", "deepcopy")))
    def copies(self, pick, how):
        live = self.live(pick)
        make = {"pickle": lambda m: pickle.loads(pickle.dumps(m)), "copy": copy.copy, "deepcopy": copy.deepcopy}[how]
        self.keep_copy(live.moved_to(make(live.model)), pick)
        self.count(how)

    @rule(pick=picks, suffix=st.sampled_from(("safetensors", "npz")), backend=picks, by_context=st.booleans())
    def save_and_load(self, pick, suffix, backend, by_context):
        live = self.live(pick)
        if live.is_cell:
            return
        path = self.folder / f"model.{suffix}"
        live.model.save(path)
        name = self.backend(backend)
        dtype = live.dtype if live.dtype in dtypes_of(name) else "float32"
        given = {} if dtype == live.dtype else {"dtype": dtype}
        if live.case.nonlinearity == "rational":
            given["nonlinearity"] = function_of(live.case)
        if by_context:
            with rnncore.use_backend(name):
                model = rnncore.load(path, **given)
        else:
            model = rnncore.load(path, backend=name, **given)
        said = {"kernel": "auto", "check_finite": False, "kind": rnncore.RNN}
        self.keep(live.moved_to(model, backend=name, dtype=dtype, **said))
        self.count(f"save and load {suffix}")

    @rule(pick=picks, layer=picks, reverse=st.booleans())
    def cell(self, pick, layer, reverse):
        """A cell shares the arrays of its layer."""
        live = self.live(pick)
        if live.is_cell:
            return
        c = live.case
        layer, reverse = layer % len(c.widths), reverse and c.bidirectional
        suffix = f"l{layer}" + ("_reverse" if reverse else "")
        reads = c.input_size if layer == 0 else c.directions * c.widths[layer - 1]
        case = replace(
            c,
            input_size=reads,
            widths=c.widths[layer : layer + 1],
            uniform=True,
            bidirectional=False,
            batch_first=False,
        )
        params = {n: live.params[n.replace("_l0", f"_{suffix}")] for n in case.parameter_shapes()}
        said = {n: getattr(live, n) for n in ("backend", "dtype", "kernel", "check_finite")}
        self.keep(Live(live.model.cell(layer, reverse=reverse), case, params, kind=rnncore.RNNCell, **said))
        self.count("cell")

    # --- parameters change ---

    @rule(pick=picks, seed=seeds, every=st.booleans(), layout=st.sampled_from(("plain", "sliced", "transposed")))
    def set_params(self, pick, seed, every, layout):
        live = self.live(pick)
        values = new_values(live, seed, every)
        plugin = rnncore.get_backend(live.backend)
        given = {n: laid_out(plugin, v, layout, live.give) for n, v in values.items()}
        live.model.set_params(given)
        live.params |= {n: Box(v) for n, v in values.items()}
        self.count("set_params")

    @rule(pick=picks, seed=seeds, backend=picks)
    def load_state_dict(self, pick, seed, backend):
        """Of any backend with this dtype; the arrays are copied, so the source may change afterwards."""
        live = self.live(pick)
        able = [b for b in self.backends if live.dtype in dtypes_of(b)]
        plugin = rnncore.get_backend(pick_of(able, backend))
        device = plugin.devices()[0]
        kind = floating_dtypes(xp=plugin.namespace(), device=device)[live.dtype]
        values = new_values(live, seed, True)
        source = {n: plugin.asarray(v, dtype=kind, device=device) for n, v in values.items()}
        live.model.load_state_dict(source)
        if plugin.name in WRITABLE:
            for a in source.values():
                a[...] = 77
        live.params = {n: Box(v) for n, v in values.items()}
        self.count("load_state_dict")

    @rule(pick=picks, seed=seeds)
    def write_in_place(self, pick, seed):
        """Into a parameter's own array, which a cell of the layer sees and a copy does not."""
        live = self.live(pick)
        if live.backend not in WRITABLE:
            return
        write(live, seed)
        self.count("write in place")

    @rule(pick=picks, seed=seeds, steps=st.integers(1, 3))
    def train(self, pick, seed, steps):
        """A few steps of an optimiser, which goes on where the model's last ones ended; of some parameters only, or all."""
        live = self.live(pick)
        if live.optimiser is None:
            live.optimiser = OptimiserShadow(live.dtype, seed)
        rng = np.random.default_rng(seed)
        for _ in range(steps):
            grads = some_gradients(live, rng)
            names = [n for n in grads if rng.random() < 0.8]
            grads, _ = clipped({n: grads[n] for n in names}, float(rng.uniform(0.05, 2)), live)
            params = {n: live.model.params[n] for n in names}
            new = live.optimiser.step(params, grads, live.host)
            live.model.set_params(new)
            live.adopt(names)
        self.count("train")

    # --- nothing changes ---

    @rule(number=picks)
    def call(self, number):
        """Any call of any model is right; see :mod:`tests.fuzz.calls`."""
        for k, live in enumerate(self.lives):
            for attempt in range(5):
                right = calls.Right(*a_call(live, drawing.draw(number + k, 5, (live.dtype,), attempt)))
                if not right.near:
                    break
            else:
                self.count("call near a kink, not compared")
                continue
            model = SimpleNamespace(cell=lambda *_, made=live.model, **__: made) if live.is_cell else live.model
            calls.check_right(right, live.backend, model)
            self.count(f"call {right.case.mode}")

    @rule(pick=picks)
    def read_parameters(self, pick):
        """The mapping cannot be written to, and a state dict's arrays are copies."""
        live = self.live(pick)
        state = live.model.state_dict()
        assert list(state) == list(live.case.parameter_shapes())
        for name, a in state.items():
            assert np.array_equal(live.host(a), live.params[name].values), name
            if live.backend in WRITABLE:
                a[...] = 77
        try:
            live.model.params["weight_ih_l0"] = None
        except TypeError:
            pass
        else:
            raise AssertionError("the mapping of parameters was written to")
        self.count("state_dict")

    @rule(pick=picks, fault=st.sampled_from(("name", "shape", "library", "missing", "extra")))
    def refused(self, pick, fault):
        """What does not fit is refused as a whole."""
        live = self.live(pick)
        good = {n: live.give(box.values + 1) for n, box in live.params.items()}
        last = list(good)[-1]
        bad = {
            "name": lambda: live.model.set_params({**good, "weight_zz_l0": good[last]}),
            "shape": lambda: live.model.set_params({**good, last: live.give(np.zeros((7, 9)))}),
            "library": lambda: live.model.set_params({**good, last: [1.0]}),
            "missing": lambda: live.model.load_state_dict({n: a for n, a in good.items() if n != last}),
            "extra": lambda: live.model.load_state_dict({**good, "more": good[last]}),
        }[fault]
        try:
            bad()
        except RnncoreError:
            self.count("refused")
        else:
            raise AssertionError(f"parameters with a wrong {fault} were taken")

    @rule(backend=picks)
    def enter_use_backend(self, backend):
        if len(self.chosen) < 3:
            choice = rnncore.use_backend(self.backend(backend))
            choice.__enter__()
            self.chosen.append(choice)
            self.count("use_backend")

    @precondition(lambda self: self.chosen)
    @rule()
    def leave_use_backend(self):
        self.chosen.pop().__exit__(None, None, None)

    # --- always ---

    @invariant()
    def each_model_is_what_its_shadow_says(self):
        self.done["steps"] += 1
        for live in self.lives:
            model = live.model
            assert type(model) is live.kind
            assert (model.backend, dtype_name(model), model.kernel) == (live.backend, live.dtype, live.kernel)
            assert model.network.check_finite == live.check_finite
            assert model.device == rnncore.get_backend(live.backend).devices()[0]
            assert model.spec.to_config() == live.config()
            assert list(model.params) == list(live.case.parameter_shapes())
            for name, box in live.params.items():
                a = model.params[name]
                assert a.dtype == model.dtype, name
                assert np.array_equal(live.host(a), box.values), f"{name} of {model!r}"


# --- helpers ----------------------------------------------------------------------------------------------------------


def pick_of(options, pick):
    return options[pick % len(options)]


def dtype_name(model):
    return model.network.engine.dtype_name


def shape_of_a_model(seed):
    """A small network without its arrays."""
    rng = np.random.default_rng(seed)
    case = drawing.draw(0, 0)
    widths = tuple(int(h) for h in rng.integers(1, 5, rng.integers(1, 3)))
    uniform = rng.random() < 0.5
    name = FUNCTIONS[rng.integers(len(FUNCTIONS))]
    return replace(
        case,
        input_size=int(rng.integers(1, 4)),
        widths=widths[:1] * len(widths) if uniform else widths,
        uniform=bool(uniform),
        nonlinearity=name,
        alpha=0.01 if name == "leaky_relu" else None,
        beta=None,
        clip=1.5 if rng.random() < 0.2 else None,
        bias=bool(rng.random() < 0.7),
        batch_first=bool(rng.random() < 0.3),
        bidirectional=bool(rng.random() < 0.4),
        dropout=0.0,
    )


def function_of(case):
    if case.nonlinearity != "rational":
        return case.nonlinearity
    return rnncore.custom_nonlinearity(drawing.rational, drawing.rational_slope, name="rational")


def new_values(live, seed, every):
    """New numbers for all parameters, or for some of them."""
    rng = np.random.default_rng(seed)
    found = {}
    for name, shape in live.case.parameter_shapes().items():
        values = rng.uniform(-0.5, 0.5, shape)
        if every or rng.random() < 0.5:
            found[name] = drawing.rounded(values, live.dtype)
    return found


def write(live, seed):
    """Write new numbers into one parameter's array."""
    name, values = pick_of(list(new_values(live, seed, True).items()), seed)
    live.model.params[name][...] = live.give(values)
    live.params[name].values[...] = values


def a_call(live, drawn):
    """A small case of the live model's network, and its arrays with the shadow's parameters."""
    kept = (
        "input_size",
        "widths",
        "uniform",
        "nonlinearity",
        "alpha",
        "beta",
        "clip",
        "bias",
        "batch_first",
        "bidirectional",
    )
    mode = "cell" if live.is_cell else "vjp" if drawn.mode == "stream" and live.case.bidirectional else drawn.mode
    lengths = (
        None if drawn.lengths is None or mode in ("cell", "stream") else tuple(min(n, 4) for n in drawn.lengths[:3])
    )
    case = replace(
        drawn,
        **{n: getattr(live.case, n) for n in kept},
        steps=min(drawn.steps, 4),
        batch=min(drawn.batch, 3),
        lengths=lengths,
        poison=None,
        dropout=0.0,
        mode=mode,
        functional=False,
        kernel=live.kernel,
        check_finite=live.check_finite,
    )
    given = drawing.numbers(case)
    given.params = {n: live.params[n].values for n in given.params}
    return case, given


def some_gradients(live, rng):
    """The gradients of the sum of the outputs."""
    rows = (3, 2, live.case.input_size) if not live.is_cell else (2, live.case.input_size)
    x = live.give(drawing.rounded(rng.standard_normal(rows), live.dtype))
    output, *_, pullback = live.model.vjp(x)
    shape = tuple(output.shape)
    return pullback(live.give(np.ones(shape))).params


def run(backends, count, steps=STEPS_OF_A_RUN, seed=None, shrink=True):
    """Run `count` sequences; return how often each thing was done. `shrink`: look for the shortest sequence that fails."""
    machine = type("Models", (Models,), {"backends": tuple(backends), "done": Counter()})
    if seed is not None:
        hypothesis.seed(seed)(machine)
    settings = hypothesis.settings(
        max_examples=count,
        stateful_step_count=steps,
        derandomize=True,
        deadline=None,
        phases=[p for p in hypothesis.Phase if shrink or p not in (hypothesis.Phase.shrink, hypothesis.Phase.explain)],
        database=None,
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    run_state_machine_as_test(machine, settings=settings)
    return machine.done


def add_arguments(parser):
    """Add the options of this part."""
    # On JAX, which compiles for each shape, a run takes minutes: name it to have it.
    usable = [b.name for b in rnncore.backends() if b.usable and b.name != "jax"]
    parser.add_argument("--count", type=int, default=1000, help="sequences of up to 25 steps")
    parser.add_argument("--seed", type=int, help="by default the sequences are always the same")
    parser.add_argument("--backends", nargs="+", default=usable, metavar="NAME", help=f"by default {' '.join(usable)}")


def main(options):
    """Run the sequences and print the figures; a failure is raised with the shortest sequence that Hypothesis finds."""
    done = run(options.backends, options.count, seed=options.seed)
    steps = done.pop("steps")
    print(f"{options.count} sequences on {' '.join(options.backends)}: {steps} times every model was as its shadow")
    print("  " + ", ".join(f"{what} {n}" for what, n in sorted(done.items())))
    return 0
