"""Flax's modules made: for each layer an ``RNN`` or ``Bidirectional`` of ``SimpleCell``; several are in a ``Sequential``."""

from __future__ import annotations

from typing import Any

from rnncore.arguments import flag, one_of, shown
from rnncore.backend.registry import get_backend
from rnncore.errors import ArgumentTypeError
from rnncore.interchange.flax.activations import function_of
from rnncore.interchange.flax.trees import KERNELS, tree
from rnncore.interchange.libraries import needed
from rnncore.interchange.portable import Direction, Portable, layers_of
from rnncore.typing import Host

__all__ = ["make"]


def make(network: Portable, *, api: str = "nnx", deterministic: bool = True, rngs: Any = None) -> Any:
    """Make a module of Flax's.

    Parameters
    ----------
    network : Portable
    api : {"nnx", "linen"}
    deterministic : bool
        Of the Dropout between layers, if the network has dropout: False drops numbers in every call.
    rngs : flax.nnx.Rngs, optional
        Of nnx's modules, for the same Dropout. By default ``nnx.Rngs(0)``.

    Returns
    -------
    module : flax.nnx.Module
        With ``api="nnx"``. A network without a bias has none there either.
    module, variables : flax.linen.Module and dict
        With ``api="linen"``: ``module.apply(variables, x)`` runs it. linen's SimpleCell always has a bias, which is zero for a
        network without one, and which training changes.

    Raises
    ------
    BackendUnavailableError
        If Flax or JAX is not installed.
    DTypeError
        If the network is of float64, and JAX has no 64-bit numbers switched on.
    """
    one_of("api", api, KERNELS)
    flag("deterministic", deterministic)
    jax = get_backend("jax")
    dtype = getattr(jax.namespace(), network.dtype)

    def asarray(a: Host) -> Any:
        return jax.asarray(a, dtype=dtype, device=None)

    lib = needed(f"flax.{api}", "flax", "A module of Flax's")
    options: dict[str, Any] = {
        "activation_fn": function_of(network.spec.nonlinearity),
        "dtype": dtype,
        "param_dtype": dtype,
    }
    order = {"time_major": not network.spec.batch_first}
    if api == "nnx":
        rngs = lib.Rngs(0) if rngs is None else rngs
        if not isinstance(rngs, lib.Rngs):
            raise ArgumentTypeError(f"rngs: expected a flax.nnx.Rngs, got {shown(rngs)}")

        # Not drawn: that takes time, and JAX draws no orthogonal matrix in half precision.
        zeros = lib.initializers.zeros
        drawn: dict[str, Any] = {"kernel_init": zeros, "recurrent_kernel_init": zeros, "rngs": rngs}

        def cell(part: Direction) -> Any:
            into, state = lib.Param(asarray(part.weight_ih.T)), lib.Param(asarray(part.weight_hh.T))
            h, i = part.weight_ih.shape
            made = lib.SimpleCell(i, h, **options, **drawn)
            if part.bias is None:
                made.dense_i = lib.Linear(
                    i, h, use_bias=False, dtype=dtype, param_dtype=dtype, kernel_init=zeros, rngs=rngs
                )
            else:
                made.dense_i.bias = lib.Param(asarray(part.bias))
            made.dense_i.kernel, made.dense_h.kernel = into, state
            return made
    else:

        def cell(part: Direction) -> Any:
            return lib.SimpleCell(len(part.weight_hh), **options)

    layers = [[lib.RNN(cell(part), **order) for part in row] for row in layers_of(network)]
    made = [lib.Bidirectional(*row, **order) if len(row) == 2 else row[0] for row in layers]
    if network.spec.dropout:
        source = {"rngs": rngs} if api == "nnx" else {}
        between = [lib.Dropout(network.spec.dropout, deterministic=deterministic, **source) for _ in made[1:]]
        made = [made[0], *(part for pair in zip(between, made[1:], strict=True) for part in pair)]
    if len(made) > 1:
        made = [lib.Sequential(*made) if api == "nnx" else lib.Sequential(made)]
    if api == "nnx":
        return made[0]
    return made[0], tree(network, api, asarray)
