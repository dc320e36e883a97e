"""Both scans as ``lax.scan``, each compiled once per shape, with derivative rules that are linear scans again.

JAX's own derivative would sum dW_hh inside the loop of the backward pass, an (H, H) array carried from step to step. With the
rules here the tangent is ``linear(p_dot + h_{t-1} W_dot^T)``: W_dot is outside the loop, so its transpose is one product over
all steps. ``jax.custom_jvp`` composes with jit, vmap, both modes and every order of derivative.

The loops are not unrolled. On a CPU with JAX 0.10, unrolling by 2 to 16 took 0.9 to 2.9 times as long, over six shapes from
(T, B, H) = (1024, 1, 16) to (512, 64, 512), and compiled up to five times as long.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
from jax import lax

from rnncore import scan
from rnncore.backend.contract import ScanRequest
from rnncore.carry import Carry
from rnncore.nonlinearity.nonlinearity import Nonlinearity
from rnncore_jax import _carry
from rnncore_jax import _namespace as xp
from rnncore_jax._carry import first_state


class JaxScans:
    """See :class:`rnncore.backend.contract.FormScans`, of which they have the form "carry".

    `overwrite` has no effect, as JAX's arrays are immutable.
    """

    def unsupported(self, request: ScanRequest, /) -> str | None:
        """Refuse unhashable and traced custom functions, which only plain operations handle correctly."""
        f = request.nonlinearity
        if f is None or f.user is None:
            return None
        try:
            hash(f)
        except TypeError as error:
            return f"compiled code is cached by a hash of the nonlinearity, and {f.name!r} is not hashable: {error}"
        # The rules below cover p, h0 and w_hh only and would silently omit the gradient of a traced value.
        z = jax.eval_shape(lambda: xp.zeros((request.batch, request.width), dtype=request.dtype))
        if any(isinstance(x, jax.core.Tracer) for part in f.user for x in jax.make_jaxpr(part)(z).consts):
            return (
                f"nonlinearity {f.name!r} uses values that JAX is tracing, whose gradients the compiled scan would omit"
            )
        return None

    def nonlinear(
        self,
        p: jax.Array,
        h0: jax.Array,
        w_hh: jax.Array,
        /,
        *,
        nonlinearity: Nonlinearity,
        reverse: bool,
        overwrite: bool = False,
        carry: Carry | None = None,
    ) -> jax.Array:
        """``h_t = f(p_t + h_{t-1} W_hh^T)``, or with carry ``h_t = a_t * h_{t-1} + g_t * f(p_t + (i_t * h_{t-1}) W_hh^T)``."""
        h: jax.Array
        if carry is None:
            h = _compiled_nonlinear(p, h0, w_hh, nonlinearity, reverse)
        else:
            h = _carry.nonlinear(p, h0, w_hh, carry, nonlinearity, reverse)
        return h

    def linear(
        self,
        u: jax.Array,
        d: jax.Array,
        s0: jax.Array,
        m: jax.Array,
        /,
        *,
        reverse: bool,
        overwrite: bool = False,
    ) -> jax.Array:
        """``s_t = d_t * (u_t + s_{t-1} M)``."""
        s: jax.Array = _compiled_linear(u, d, s0, m, reverse)
        return s

    def linear_carry(
        self,
        c: jax.Array,
        o: jax.Array | None,
        i: jax.Array | None,
        a: jax.Array | None,
        x0: jax.Array,
        m: jax.Array,
        /,
        *,
        reverse: bool,
        overwrite: bool = False,
    ) -> jax.Array:
        """``x_t = c_t + a_t * x_{t-1} + o_t * ((i_t * x_{t-1}) M)``."""
        x: jax.Array = _carry.linear(c, o, i, a, x0, m, reverse)
        return x


SCANS = JaxScans()


@partial(jax.custom_jvp, nondiff_argnums=(3, 4))
def _nonlinear(p: Any, h0: Any, w_hh: Any, nonlinearity: Nonlinearity, reverse: bool) -> Any:
    w_t = xp.matrix_transpose(w_hh)

    def step(h: Any, p_t: Any) -> tuple[Any, Any]:
        h = nonlinearity(p_t + xp.matmul(h, w_t), xp=xp)
        return h, h

    return lax.scan(step, first_state(h0, w_hh, p), p, reverse=reverse)[1]


@_nonlinear.defjvp
def _nonlinear_jvp(nonlinearity: Nonlinearity, reverse: bool, primals: Any, tangents: Any) -> tuple[Any, Any]:
    p_dot, h0_dot, w_dot = tangents
    p, h0, w_hh = primals
    h = _nonlinear(p, h0, w_hh, nonlinearity, reverse)
    rule = partial(scan.nonlinear_jvp, nonlinearity=nonlinearity, reverse=reverse, xp=xp, linear_scan=_linear_scan)
    return h, rule(p_dot, h0_dot, w_dot, p, h0, w_hh, h)


@partial(jax.custom_jvp, nondiff_argnums=(4,))
def _linear(u: Any, d: Any, s0: Any, m: Any, reverse: bool) -> Any:
    def step(s: Any, source: tuple[Any, Any]) -> tuple[Any, Any]:
        u_t, d_t = source
        s = d_t * (u_t + xp.matmul(s, m))
        return s, s

    return lax.scan(step, first_state(s0, m, u, d), (u, d), reverse=reverse)[1]


@_linear.defjvp
def _linear_jvp(reverse: bool, primals: Any, tangents: Any) -> tuple[Any, Any]:
    u_dot, d_dot, s0_dot, m_dot = tangents
    u, d, s0, m = primals
    s = _linear(u, d, s0, m, reverse)
    rule = partial(scan.linear_jvp, reverse=reverse, xp=xp, linear_scan=_linear_scan)
    return s, rule(u_dot, d_dot, s0_dot, m_dot, u, d, s0, m, s)


def _linear_scan(u: Any, d: Any, s0: Any, m: Any, *, reverse: bool) -> Any:
    return _linear(u, d, s0, m, reverse)


# Nonlinearities compare by value, so that an eager call reuses the code compiled for an earlier one.
_compiled_nonlinear = jax.jit(_nonlinear, static_argnums=(3, 4))
_compiled_linear = jax.jit(_linear, static_argnums=4)
