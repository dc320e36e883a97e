"""Cases drawn by number: a network, its arrays, and what is asked of it.

``draw(number, seed, dtypes)`` gives the same case wherever it runs. Weights are scaled to a spectral radius of at most
``RADIUS`` over the function's largest slope, where a network is not chaotic. A case whose pre-activations come so close to
a kink (relu's 0, the clip) that a rounding could decide on which side they are is drawn again.
"""

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from tests.fuzz import reference

RADIUS = 1.2
# A pre-activation must be further from a kink than this many times what roundings do to it.
MARGIN = 64
TRIES = 8
SMALL = (1, 1, 2, 2, 3, 3, 4, 5, 6, 8)
# Around the widths and numbers of rows at which the kernels change from one code path to another.
LARGE = (12, 15, 16, 17, 24, 31, 32, 33, 48, 63, 64, 65)
STEPS = (1, 1, 2, 3, 4, 5, 7, 8, 12, 16, 20)
MODES = ("forward", "vjp", "vjp", "vjp", "jvp", "trace", "cell", "stream")
LAYOUTS = ("plain", "plain", "sliced", "negative", "transposed", "read-only", "misaligned")
DTYPES = ("float32", "float32", "float64", "float64", "float64", "float16", "bfloat16")
OTHERS = ("sigmoid", "identity", "leaky_relu", "thresholded_relu", "hard_sigmoid", "elu", "softsign", "softplus")
OTHERS += ("scaled_tanh", "affine", "rational")
KINDS = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")

# By dtype eps, and the smallest normal number.
EPS = {"float64": 2.0**-52, "float32": 2.0**-23, "float16": 2.0**-10, "bfloat16": 2.0**-7}
TINY = {"float64": 2.0**-1022, "float32": 2.0**-126, "float16": 2.0**-14, "bfloat16": 2.0**-126}


def rational(z):
    return z / (1 + z * z)


def rational_slope(z):
    return (1 - z * z) / ((1 + z * z) * (1 + z * z))


@dataclass(frozen=True)
class Case:
    """One configuration: everything but the numbers in its arrays, which `numbers` draws."""

    number: int
    seed: int
    input_size: int
    widths: tuple[int, ...]
    uniform: bool
    nonlinearity: str
    alpha: float | None
    beta: float | None
    clip: float | None
    bias: bool
    batch_first: bool
    bidirectional: bool
    dropout: float
    steps: int
    batch: int
    batched: bool
    lengths: tuple[int, ...] | None
    poison: float | None
    dtype: str
    mode: str
    functional: bool
    kernel: str
    check_finite: bool
    h0_given: bool
    checkpoint: bool | int
    truncate: int | None
    given: tuple[bool, bool, bool]
    layouts: tuple[str, ...]
    attempt: int = 0

    @property
    def directions(self):
        return 2 if self.bidirectional else 1

    @cached_property
    def function(self):
        return reference.function(self.nonlinearity, self.alpha, self.beta)

    @property
    def ends(self):
        return (self.steps,) * self.batch if self.lengths is None else self.lengths

    def parameter_shapes(self):
        shapes = {}
        for k, width in enumerate(self.widths):
            reads = self.input_size if k == 0 else self.directions * self.widths[k - 1]
            for suffix in (f"l{k}", f"l{k}_reverse")[: self.directions]:
                sizes = ((width, reads), (width, width), (width,), (width,))
                for kind, shape in zip(KINDS[: 4 if self.bias else 2], sizes, strict=False):
                    shapes[f"{kind}_{suffix}"] = shape
        return shapes

    def snippet(self, backend):
        """A program that runs this case again."""
        imports = "from math import inf, nan\n\nfrom tests.fuzz.calls import check\nfrom tests.fuzz.drawing import Case"
        return f"{imports}\n\ncheck({self!r}, {backend!r})"


@dataclass
class Given:
    """The arrays of a case in float64, time-first, with numbers that its dtype holds: h0 and d_h_n by [layer] (D, B, H)."""

    params: dict
    x: np.ndarray
    h0: list
    masks: list
    d_output: np.ndarray
    d_h_n: list
    params_dot: dict
    x_dot: np.ndarray
    h0_dot: list
    mask_seed: int
    constant: bool
    dotted: tuple


def draw(number, seed=0, dtypes=tuple(EPS), attempt=0):
    """The case of this number for a backend with these dtypes."""
    rng = np.random.default_rng([seed, number, attempt])
    pick = lambda options: options[rng.integers(len(options))]  # noqa: E731
    chance = lambda p: bool(rng.random() < p)  # noqa: E731
    size = lambda: int(pick(LARGE) if chance(0.12) else pick(SMALL))  # noqa: E731

    dtype = pick(DTYPES)
    dtype = dtype if dtype in dtypes else dtypes[number % len(dtypes)]
    half = dtype in ("float16", "bfloat16")
    layers = int(pick((1, 1, 1, 2, 2, 3)))
    uniform = chance(0.6)
    width = size()
    widths = (width,) * layers if uniform else tuple(size() for _ in range(layers))
    batched = chance(0.8)
    steps, batch = int(pick(STEPS)), (0 if chance(0.05) else size()) if batched else 1
    if half:  # what 16 bits can be asked for is soon used up
        steps, batch, widths = min(steps, 4), min(batch, 3), tuple(min(h, 5) for h in widths)
    elif chance(0.04):
        steps = int(pick((33, 64, 100)))
    name, alpha, beta = _function(rng, pick, chance)
    mode = pick(MODES)
    bidirectional = chance(0.4) and mode != "stream"
    lengths = None
    if chance(0.4) and mode not in ("cell", "stream"):
        lengths = [int(n) for n in rng.integers(0, steps + 1, batch)]
        style = pick(("any", "any", "sorted", "equal", "zero"))
        lengths = sorted(lengths, reverse=True) if style == "sorted" else lengths
        lengths = [pick((0, steps)) if style == "zero" else n for n in lengths]
        lengths = lengths[:1] * batch if style == "equal" else lengths
        lengths = tuple(lengths)
    check_finite = chance(0.1)
    poison = pick((math.nan, math.inf, -8192.0)) if lengths is not None and chance(0.7) else None
    return Case(
        number=number,
        seed=seed,
        input_size=size(),
        widths=widths,
        uniform=uniform,
        nonlinearity=name,
        alpha=alpha,
        beta=beta,
        clip=round(float(rng.uniform(0.3, 3)), 3) if chance(0.15) else None,
        bias=chance(0.7),
        batch_first=chance(0.4),
        bidirectional=bidirectional,
        dropout=pick((0.0, 0.25, 0.5, 1.0)) if layers > 1 and mode not in ("cell", "stream") and chance(0.3) else 0.0,
        steps=steps,
        batch=batch,
        batched=batched,
        lengths=lengths,
        poison=poison,
        dtype=dtype,
        mode=mode,
        functional=chance(0.25) and mode not in ("cell", "stream"),
        kernel=pick(("auto", "auto", "auto", "reference")),
        check_finite=check_finite,
        h0_given=chance(0.7),
        checkpoint=pick((False, False, True, 1, 2, 3, 7)),
        truncate=pick((None, None, None, 1, 2, 3, 50)),
        given=(chance(0.8), chance(0.7), chance(0.8)),
        layouts=tuple(pick(LAYOUTS) for _ in range(4)),
        attempt=attempt,
    )


def _function(rng, pick, chance):
    """A nonlinearity: half of the time one of the two that everyone uses."""
    name = pick(("tanh", "relu")) if chance(0.5) else pick(OTHERS)
    defaults = {
        "leaky_relu": (0.01,),
        "thresholded_relu": (1.0,),
        "hard_sigmoid": (0.2, 0.5),
        "elu": (1.0,),
        "scaled_tanh": (1.0, 1.0),
        "affine": (1.0, 0.0),
    }.get(name, ())
    values = list(defaults)
    if defaults and chance(0.5):
        values = [round(float(rng.uniform(-1.5, 1.5)), 3) for _ in defaults]
        if name == "hard_sigmoid":  # its kinks are at -beta / alpha and (1 - beta) / alpha
            values[0] = abs(values[0]) + 0.1
    return name, *values, *(None,) * (2 - len(values))


# --- the numbers ------------------------------------------------------------------------------------------------------


def rounded(a, dtype):
    """Numbers near a that the dtype holds, in float64."""
    a = np.asarray(a, dtype="f8")
    if dtype == "bfloat16":
        with np.errstate(invalid="ignore"):
            return (a.astype("f4").view("u4") & np.uint32(0xFFFF0000)).view("f4").astype("f8")
    return a.astype(dtype).astype("f8")


def numbers(case):
    """The arrays of a case."""
    rng = np.random.default_rng([case.seed, case.number, case.attempt, 1])
    normal = lambda *shape: rounded(rng.standard_normal(shape), case.dtype)  # noqa: E731
    state = lambda: [normal(case.directions, case.batch, h) for h in case.widths]  # noqa: E731
    params = {n: rounded(_weights(rng, case, n, s), case.dtype) for n, s in case.parameter_shapes().items()}
    x = normal(case.steps, case.batch, case.input_size)
    h0 = [rounded(np.tanh(rows), case.dtype) for rows in state()]
    if not case.h0_given:
        h0 = [0 * rows for rows in h0]
    width = case.directions * case.widths[-1]
    d_output = normal(case.steps, case.batch, width)
    constant = bool(rng.random() < 0.15)
    if constant:
        d_output = np.full_like(d_output, d_output.flat[0] if d_output.size else 1.0)
    dotted = tuple(n for n in params if rng.random() < 0.8)
    params_dot = {n: normal(*v.shape) if n in dotted else 0 * v for n, v in params.items()}
    mask_seed = int(rng.integers(2**32))
    given = Given(
        params,
        x,
        h0,
        _masks(case, mask_seed),
        d_output,
        state(),
        params_dot,
        normal(*x.shape),
        state(),
        mask_seed,
        constant,
        dotted,
    )
    _absent(case, given)
    _poison(case, given)
    return given


def _absent(case, given):
    """Zero what is not given: the cotangents of output and h_n, or the tangents of parameters, x and h0."""
    first, second, third = case.given
    if case.mode == "vjp":
        if not first:
            given.d_output *= 0
        if not second:
            given.d_h_n = [0 * rows for rows in given.d_h_n]
    if case.mode == "jvp":
        if not first:
            given.x_dot *= 0
        if not second:
            given.h0_dot = [0 * rows for rows in given.h0_dot]
        if not third:
            given.params_dot = {n: 0 * v for n, v in given.params_dot.items()}


def _poison(case, given):
    """Put what must never be read into the padding, and into the states of rows without any step."""
    if case.poison is None:
        return
    padding = np.arange(case.steps)[:, None] >= np.asarray(case.lengths)
    for a in (given.x, given.x_dot) if given.constant else (given.x, given.x_dot, given.d_output):
        a[padding] = case.poison
    if case.check_finite:  # which such a state would not pass
        return
    empty = np.asarray(case.lengths) == 0
    ends_given = case.given[1]
    for rows in (*(given.h0 if case.h0_given else ()), *(given.h0_dot + given.d_h_n if ends_given else ())):
        rows[:, empty] = case.poison


def _weights(rng, case, name, shape):
    if name.startswith("bias"):
        return 0.3 * rng.standard_normal(shape)
    w = rng.standard_normal(shape)
    if name.startswith("weight_ih"):
        return w / math.sqrt(shape[1])
    radius = max(abs(np.linalg.eigvals(w)).max(), 0.1)  # a draw near 0 is not scaled up without limit
    return w * (rng.uniform(0.2, RADIUS) / radius / max(1.0, case.function.bound))


def _masks(case, seed):
    """The masks that a generator of this seed gives: one number for each output between layers, kept if it is below 1 - p."""
    rng = np.random.default_rng(seed)
    keep = 1 - case.dropout
    masks = []
    for width in case.widths[:-1] if case.dropout > 0 else ():
        drawn = rng.random((case.steps, case.batch, width * case.directions)) < keep
        masks.append(rounded(drawn / keep if keep > 0 else 0.0 * drawn, case.dtype))
    return masks


# --- distance from kinks ----------------------------------------------------------------------------------------------


def kinks(case):
    """Where f or f' jumps as a function of the pre-activation."""
    found = list(case.function.kinks)
    return found if case.clip is None else [*(k for k in found if abs(k) < case.clip), -case.clip, case.clip]


def near_a_kink(case, run, moved):
    """Whether a pre-activation of a run is not clear of a kink, `moved` being runs with noise."""
    places = kinks(case)
    eps = EPS[case.dtype]
    for k, row in enumerate(run.z):
        for d, z in enumerate(row):
            inside = np.broadcast_to(run.valid, z.shape)
            z = z[inside]
            if not places or not z.size:
                continue
            others = [m.z[k][d][inside] for m in moved]
            margin = MARGIN * max(float(abs(z - other).max()) for other in others)
            margin = max(margin, MARGIN * eps * float(abs(z).max()))
            # A 0 that noise does not move is a sum of zeros, and 0 in every dtype.
            free = np.any([other != 0 for other in others], axis=0)
            if any((abs(z[free] - place) < margin).any() for place in places):
                return True
    return False


def again(case, dtypes):
    """The next draw in place of a case too near a kink, after a few tries in the finest dtype alone."""
    attempt = case.attempt + 1
    return draw(case.number, case.seed, dtypes if attempt < TRIES else (min(dtypes, key=EPS.get),), attempt)
