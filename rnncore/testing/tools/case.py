"""A network with all arguments of a call and its derivatives, and comparisons of both with the oracle."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from rnncore.model.rnn import RNN
from rnncore.spec import RNNSpec
from rnncore.testing.tools.oracle import Solution, solve, solve_tangent
from rnncore.testing.tools.subject import Subject
from rnncore.testing.tools.watch import noted, patched
from rnncore.typing import Array, Host

__all__ = ["BATCH", "INPUT", "LENGTHS", "LONG", "STEPS", "WIDTH", "Case", "methods_asked"]

# A few shapes throughout, because some libraries compile for each shape.
STEPS, BATCH, INPUT, WIDTH = 6, 3, 4, 5
LONG = 100
LENGTHS = (4, 0, 6)


def _itself(x: Array) -> Array:
    return x


@dataclass
class Case:
    """Random weights of spectral radius about 1, inputs, states and cotangents, all of them host numbers.

    h0 and d_h_n have one (D, B, H_k) for each layer, for any layout of the call. `view` is applied to every array before it is
    passed to a call.
    """

    s: Subject
    spec: RNNSpec
    params: dict[str, Host]
    x: Host
    h0: list[Host]
    d_output: Host
    d_h_n: list[Host]
    lengths: Sequence[int] | None = None
    batched: bool = True
    view: Callable[[Array], Array] = _itself

    @classmethod
    def make(
        cls,
        s: Subject,
        hidden: int | Sequence[int] = WIDTH,
        layers: int = 1,
        name: str = "tanh",
        *,
        bias: bool = True,
        bidirectional: bool = False,
        batch_first: bool = False,
        batched: bool = True,
        clip: float | None = None,
        dropout: float = 0.0,
        lengths: Sequence[int] | None = None,
        steps: int = STEPS,
        batch: int = BATCH,
        inputs: int = INPUT,
    ) -> Case:
        """Draw a case."""
        if not batched:
            batch = 1
        widths = (hidden,) * layers if isinstance(hidden, int) else tuple(hidden)
        spec = RNNSpec.make(inputs, widths, len(widths), name, bias, batch_first, dropout, bidirectional, clip=clip)
        params = {}
        for key, shape in spec.parameter_shapes().items():
            scale = 1.0 / math.sqrt(shape[-1]) if len(shape) == 2 else 0.5
            params[key] = s.draw(*shape, scale=scale)
        directions = spec.num_directions
        states = [s.draw(directions, batch, h) for h in widths]
        cotangents = [s.draw(directions, batch, h) for h in widths]
        x, d_output = s.draw(steps, batch, inputs), s.draw(steps, batch, directions * widths[-1])
        return cls(s, spec, params, x, states, d_output, cotangents, lengths, batched)

    # --- in the layout of a call -------------------------------------------------------------------------------------

    def model(self, **options: Any) -> RNN:
        """The network on the subject's backend."""
        return self.s.rnn(self.spec, self.params, **options)

    def give(self, x: Host) -> Array:
        """Convert (T, B, .) to the layout of the call."""
        if not self.batched:
            x = x[:, 0]
        elif self.spec.batch_first:
            x = np.ascontiguousarray(np.swapaxes(x, 0, 1))
        return self.view(self.s.give(x))

    def give_state(self, rows: Sequence[Host]) -> Any:
        """Convert one (D, B, H_k) for each layer to the shape of h0."""
        rows = list(rows) if self.batched else [r[:, 0] for r in rows]
        if self.spec.uniform:
            return self.view(self.s.give(np.concatenate(rows)))
        return [self.view(self.s.give(r)) for r in rows]

    def inputs(self) -> tuple[Array, Any]:
        """x and h0."""
        return self.give(self.x), self.give_state(self.h0)

    def cotangents(self) -> tuple[Array, Any]:
        """Those of output and h_n."""
        return self.give(self.d_output), self.give_state(self.d_h_n)

    def back(self, x: Array) -> Host:
        """Convert the layout of the call to (T, B, .)."""
        host = self.s.host(x)
        if not self.batched:
            return host[:, None]
        return np.swapaxes(host, 0, 1) if self.spec.batch_first else host

    def back_state(self, state: Any) -> list[Host]:
        """Convert the shape of h0 to one (D, B, H_k) for each layer."""
        directions = self.spec.num_directions
        if self.spec.uniform:
            host = self.s.host(state)
            rows = [host[k * directions : (k + 1) * directions] for k in range(self.spec.num_layers)]
        else:
            rows = [self.s.host(r) for r in state]
        return rows if self.batched else [r[:, None] for r in rows]

    # --- the truth, and the comparisons ------------------------------------------------------------------------------

    def truth(self, *, truncate: int | None = None, masks: Sequence[Host] = (), **cotangents: Any) -> Solution:
        """The oracle's solution."""
        chosen = {"d_output": self.d_output, "d_h_n": self.d_h_n, **cotangents}
        return solve(
            self.params,
            self.x,
            self.h0,
            name=self.spec.nonlinearity.name,
            lengths=self.lengths,
            clip=self._clip,
            masks=masks,
            truncate=truncate,
            cotangents=(chosen["d_output"], chosen["d_h_n"]),
        )

    def check_forward(self, model: RNN | None = None) -> None:
        """Compare output and h_n."""
        model = self.model() if model is None else model
        output, h_n = model(*self.inputs(), self.lengths)
        want = self.truth()
        self.s.compare("output", self.back(output), want.output, tolerance="states")
        self._compare_states("h_n", h_n, want.h_n, "states")

    def check_gradients(
        self, *, output: bool = True, h_n: bool = True, masks: Sequence[Host] = (), rng: Any = None, **options: Any
    ) -> None:
        """Compare every gradient of a pullback, for the cotangents of output, of h_n, or of both."""
        s, model = self.s, self.model()
        call = {"lengths": self.lengths, **({"training": True, "rng": rng} if masks else {})}
        x, h0 = self.inputs()
        got_output, got_h_n, pullback = model.vjp(x, h0, **call, **options)
        grads = pullback(self.give(self.d_output) if output else None, self.give_state(self.d_h_n) if h_n else None)
        want = self.truth(
            truncate=options.get("truncate"),
            masks=masks,
            d_output=self.d_output if output else None,
            d_h_n=self.d_h_n if h_n else None,
        )
        s.compare("output", self.back(got_output), want.output, tolerance="states")
        self._compare_states("h_n", got_h_n, want.h_n, "states")
        s.compare("dL/dx", self.back(grads.x), want.x, tolerance="gradients")
        self._compare_states("dL/dh0", grads.h0, want.h0, "gradients")
        s.expect(
            set(grads.params) == set(want.params),
            f"grads.params: expected {sorted(want.params)}, got {sorted(grads.params)}",
        )
        for key, value in want.params.items():
            s.compare(f"dL/d{key}", grads.params[key], value, tolerance="gradients")

    def check_tangents(self) -> None:
        """Compare the tangents of output and h_n in forward mode, for tangents of all arguments."""
        s, spec = self.s, self.spec
        dots = {k: s.draw(*v.shape, scale=0.5) for k, v in self.params.items()}
        x_dot, h0_dot = s.draw(*self.x.shape), [s.draw(*h.shape) for h in self.h0]
        *_, tangents = self.model().jvp(
            *self.inputs(),
            self.lengths,
            x_dot=self.give(x_dot),
            h0_dot=self.give_state(h0_dot),
            params_dot={k: s.give(v) for k, v in dots.items()},
        )
        want_output, want_h_n = solve_tangent(
            self.params,
            self.x,
            self.h0,
            dots,
            x_dot,
            h0_dot,
            name=spec.nonlinearity.name,
            lengths=self.lengths,
            clip=self._clip,
        )
        s.compare("tangent of output", self.back(tangents.output), want_output, tolerance="gradients")
        self._compare_states("tangent of h_n", tangents.h_n, want_h_n, "gradients")

    def results(self, model: RNN | None = None, **options: Any) -> dict[str, Any]:
        """All results of a call and its pullback, by name, as arrays of the backend."""
        model = self.model() if model is None else model
        output, h_n, pullback = model.vjp(*self.inputs(), lengths=self.lengths, **options)
        grads = pullback(*self.cotangents())
        found = {"output": output, "dL/dx": grads.x, **{f"dL/d{k}": g for k, g in grads.params.items()}}
        for name, state in (("h_n", h_n), ("dL/dh0", grads.h0)):
            if self.spec.uniform:
                found[name] = state
            else:
                found |= {f"{name}[{k}]": rows for k, rows in enumerate(state)}
        return found

    def numbers(self, model: RNN | None = None) -> dict[str, Host]:
        """:meth:`results` on the host."""
        return {k: self.s.host(v) for k, v in self.results(model).items()}

    def _compare_states(self, what: str, got: Any, want: Sequence[Host], tolerance: str) -> None:
        # Relative to the largest number of all layers, since the gradient of one layer can be 0.
        scale = max((float(np.abs(rows).max(initial=0.0)) for rows in want), default=0.0)
        for k, (found, rows) in enumerate(zip(self.back_state(got), want, strict=True)):
            floor = max(scale, 1.0) if tolerance == "states" else scale
            self.s.compare(f"{what} of layer {k}", found, rows, tolerance=tolerance, floor=floor)

    @property
    def _clip(self) -> float:
        clip = self.spec.nonlinearity.clip
        return math.inf if clip is None else clip


def methods_asked(s: Subject, *methods: str) -> list[str]:
    """The names among `methods` of the array class that calls of all kinds use, on the reference and the backend's scans."""
    case, asked = Case.make(s, layers=2, bidirectional=True, lengths=LENGTHS), list[str]()
    (x, h0), (d_output, d_h_n) = case.inputs(), case.cotangents()
    models = [case.model(kernel="reference"), case.model(kernel="auto")]
    with patched(type(x), methods, noted(asked)):
        for model in models:
            model.vjp(x, h0, LENGTHS)[2](d_output, d_h_n)
            model.jvp(x, h0, LENGTHS, x_dot=x, h0_dot=h0, params_dot=dict(model.params))
            model.trace(x, h0, LENGTHS)
            model(x, h0)
    return asked
