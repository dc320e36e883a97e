"""The command ``rnncore convert``: a network from a file of one format to a file of another."""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import typer

from rnncore.backend.arrays import FLOATS
from rnncore.commands.terminal import FAILED, USAGE, check_outputs, fail
from rnncore.errors import ArgumentValueError, RnncoreError
from rnncore.interchange.portable import Asked, Portable
from rnncore.io.header import BareArraysError
from rnncore.io.npy import read_npy
from rnncore.model.loading import read
from rnncore.model.rnn import RNN
from rnncore.model.saving import check_suffix, save
from rnncore.typing import Host

# What both networks are expected to agree to, in eps of the coarser dtype, relative to the largest output.
MOST_EPS = 64
EPS = {"float16": 2.0**-10, "bfloat16": 2.0**-7, "float32": 2.0**-23, "float64": 2.0**-52}
DTYPES = tuple(name for name in FLOATS if name != "bfloat16")  # NumPy's
OPTIONS = {"name": "--name", "nonlinearity": "--nonlinearity", "batch_first": "--batch-first", "x": "--check"}


def convert(
    source: str = typer.Argument(metavar="IN", help="The file to read; the end of its name says its format."),
    target: str = typer.Argument(metavar="OUT", help="The file to write; as with cp, one that is there is replaced."),
    name: str = typer.Option(None, help="The network to take, where IN holds several."),
    nonlinearity: str = typer.Option(None, help="The nonlinearity, where IN does not say it: tanh, relu, ..."),
    batch_first: bool = typer.Option(
        None,
        "--batch-first/--time-first",
        help="The order of the input's axes, (B, T, I) or (T, B, I), where IN does not say it.",
    ),
    dtype: str = typer.Option(None, help=f"The dtype to convert to: {', '.join(DTYPES)}."),
    check: str = typer.Option(
        None,
        "--check",
        metavar="X.npy",
        help="Run IN and OUT on this input, in IN's layout, and print how much they differ.",
    ),
) -> int:
    """Convert a network between files: ONNX, Keras, Flax, PyTorch, safetensors, npz. Status 1 if a --check fails."""
    try:
        check_suffix(source, "IN")
        check_suffix(target, "OUT")
        check_outputs({"OUT": target}, {"IN": source, "--check": check})
        x = None if check is None else read_npy("--check", check)
        network = read(source, Asked(name, nonlinearity, batch_first))
        for words in network.left_out:
            print(f"rnncore: left out: {words}", file=sys.stderr)
        if dtype is not None:
            network = _in_dtype(network, dtype)
        found = None if x is None else _run(network, x, network.spec.batch_first)
        save(network, target, {})
        print(f"{target}: {_described(network)}")
        return 0 if x is None else _compared(network, found, target, x)
    except BareArraysError as error:
        words = str(error).partition(", with rnncore.load")[0]
        fail(f"{words}, with --nonlinearity and one of --batch-first and --time-first", USAGE)
    except (RnncoreError, OSError) as error:
        argument, colon, rest = str(error).partition(":")
        fail(f"{OPTIONS.get(argument, argument)}{colon}{rest}", USAGE)
    except MemoryError as error:
        fail(f"there is not enough memory: {error}", USAGE)


@dataclass(frozen=True)
class _Known(Asked):
    """What is known of a network that was just written: where its file says otherwise, the file is right."""

    def settle(self, argument: str, found: Any) -> Any:
        return found


def _in_dtype(network: Portable, dtype: str) -> Portable:
    """Convert the weights to another dtype, which must have their range."""
    if dtype not in DTYPES:
        raise ArgumentValueError(f"--dtype: expected one of {', '.join(DTYPES)}, got {dtype!r}")
    with np.errstate(over="ignore"):
        params = {n: a.astype(dtype) for n, a in network.params.items()}
    for n, a in params.items():
        if (np.isfinite(network.params[n]) & ~np.isfinite(a)).any():
            raise ArgumentValueError(f"--dtype: expected one with the range of {n}, got {dtype!r}")
    return replace(network, params=params, dtype=dtype)


def _described(network: Portable) -> str:
    """Describe a network as its model's repr does, without a backend."""
    widest = {n: a.astype("f8") for n, a in network.params.items()}
    text = repr(RNN.from_spec(network.spec, widest, backend="numpy", dtype="float64"))
    return text.partition(", backend=")[0] + f", dtype={network.dtype!r})"


def _run(network: Portable, x: Host, batch_first: bool) -> list[Host]:
    """Return output and h_n in float64, of an input in the layout that `batch_first` says; the output has that layout too."""
    params = {n: a.astype("f8") for n, a in network.params.items()}
    rnn = RNN.from_spec(network.spec, params, backend="numpy", dtype="float64")
    turned = x.ndim == 3 and batch_first != network.spec.batch_first
    output, h_n = rnn(np.ascontiguousarray(x.swapaxes(0, 1) if turned else x, "f8"))
    states = list(h_n) if isinstance(h_n, (tuple, list)) else [h_n]
    return [output.swapaxes(0, 1) if turned else output, *states]


def _compared(network: Portable, want: Any, target: str, x: Host) -> int:
    """Read what was written, print the largest difference, and return the status."""
    spec = network.spec
    written = read(target, _Known(None, spec.nonlinearity, spec.batch_first))
    got = _run(written, x, spec.batch_first)
    coarser = max(network.dtype, written.dtype, key=lambda name: EPS[name])
    differences = [float(np.abs(a - b).max(initial=0)) for a, b in zip(got, want, strict=True)]
    if not np.isfinite(differences).all():
        print("the outputs have NaN or infinity, which cannot be compared")
        return FAILED
    largest = [float(np.abs(b).max(initial=0)) for b in want]
    # Where every output is zero, any difference is beyond the bound.
    eps = max(
        d / (EPS[coarser] * m) if m else d * np.inf if d else 0.0 for d, m in zip(differences, largest, strict=True)
    )
    print(f"largest difference {max(differences):.3g}: {eps:.3g} eps of {coarser}, at most {MOST_EPS} are expected")
    return 0 if eps <= MOST_EPS else FAILED
