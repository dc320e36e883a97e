"""State dicts of PyTorch in its own files, ``.pt`` and ``.pth``: alone, or within a checkpoint.

PyTorch reads them with ``weights_only=True``, which executes nothing. A file says neither the nonlinearity nor the order of
the axes.
"""

from __future__ import annotations

import os
import re
import zipfile
from collections.abc import Container, Iterator, Mapping
from functools import partial
from typing import Any, BinaryIO

from rnncore.arguments import brief, describe
from rnncore.errors import FileFormatError, InterchangeError
from rnncore.interchange.arrays import read_arrays
from rnncore.interchange.libraries import needed
from rnncore.interchange.portable import Asked, Portable
from rnncore.io.entries import Entries
from rnncore.io.zips import directory_begin
from rnncore.spec import RNNSpec
from rnncore.typing import Host

__all__ = ["OPTIONS", "decode", "encode", "misfits"]

OPTIONS = ()
WHAT = "a file of PyTorch's"
NONLINEARITIES = ("tanh", "relu")
FLOATS = ("float16", "bfloat16", "float32", "float64")
# A checkpoint has a storage for each parameter and several for each in the state of an optimiser.
MOST_ENTRIES, MOST_DIRECTORY_BYTES = 2**17, 2**24
DEEPEST = 64  # of a container within containers
# The names of weights that are computed from others, as by weight_norm or pruning.
COMPUTED = re.compile(r"parametrizations\.|(weight|bias)_[ih]h(_l\d+(_reverse)?)?_(g|v|orig|mask)$")


def decode(file: BinaryIO, asked: Asked) -> Portable:
    """Read the network of a state dict, or the one in a checkpoint whose path is asked for, or the only one.

    The path of a network is that of the dicts and of the modules that hold it, with points: "state_dict.encoder.rnn".

    Raises
    ------
    FileFormatError
        The caller adds the path.
    InterchangeError, ArgumentValueError, UnknownNameError, BackendUnavailableError
    """
    sizes = _sizes(file)
    torch = needed("torch", "torch", WHAT)
    file.seek(0)
    try:
        found = torch.load(file, map_location="cpu", weights_only=True)
    except MemoryError as error:
        raise FileFormatError("it needs more memory than there is, or claims more than it holds") from error
    except Exception as error:  # PyTorch has no kinds of errors for damage
        raise FileFormatError(_reason(error)) from error
    readers: dict[str, Any] = {}
    halves, others = set(), []
    for name, leaf in _leaves(found):
        if isinstance(leaf, torch.Tensor):
            if name in readers:
                raise FileFormatError(f"{name}: expected one array of this name, got two")
            readers[name] = partial(_numbers, name, leaf, sizes)
            if leaf.dtype == torch.bfloat16:
                halves.add(name)
        else:
            others.append(name)
    try:
        network = read_arrays(Entries(readers), asked, source="a state dict", bfloat16=halves)
    except InterchangeError as error:
        computed = [name for name in readers if COMPUTED.search(name)]
        if not computed:
            raise
        raise InterchangeError(
            f"{error}; {brief(', '.join(computed))} are weights from which others are computed: before saving, remove that, as "
            "with torch.nn.utils.parametrize.remove_parametrizations(module, name)"
        ) from error
    left_out = (*network.left_out, brief(f"no arrays: {', '.join(others)}")) if others else network.left_out
    return Portable(network.spec, network.params, network.dtype, None, left_out)


def encode(file: BinaryIO, network: Portable) -> None:
    """Write the state dict of a ``torch.nn.RNN``, which loads it.

    Raises
    ------
    InterchangeError
        If no ``torch.nn.RNN`` is that network.
    BackendUnavailableError
    """
    if faults := misfits(network.spec):
        raise InterchangeError(f"torch.nn.RNN has no place for {faults}")
    torch = needed("torch", "torch", WHAT)
    kind = getattr(torch, network.dtype)
    torch.save({name: torch.tensor(a, dtype=kind, device="cpu") for name, a in network.params.items()}, file)


def misfits(spec: RNNSpec) -> str:
    """Name what no ``torch.nn.RNN`` has of a network, or return ""."""
    f = spec.nonlinearity
    faults = [] if spec.uniform else [f"hidden_size={list(spec.hidden_sizes)} (it has one width for all layers)"]
    if f.is_custom or f.name not in NONLINEARITIES:
        faults.append(f"nonlinearity={f.name!r} (it has {' and '.join(NONLINEARITIES)})")
    if f.clip is not None:
        faults.append(f"clip={f.clip!r} (it has no limit of the pre-activation)")
    return ", ".join(faults)


def _sizes(file: BinaryIO) -> set[int]:
    """Return the sizes of the entries of a zip, which are not compressed, so that it cannot hold more than its size."""
    size = os.fstat(file.fileno()).st_size
    start = file.read(4)
    if start != b"PK\x03\x04":
        raise FileFormatError(
            "it is no file that torch.save has written since PyTorch 1.6; an older one is read by torch.load(path, "
            "weights_only=True), and saved again by torch.save"
        )
    directory_begin(file, "a file of torch.save", most=MOST_ENTRIES, most_bytes=MOST_DIRECTORY_BYTES)
    try:
        with zipfile.ZipFile(file) as archive:
            entries = archive.infolist()
    except (zipfile.BadZipFile, ValueError, RuntimeError, OverflowError) as error:
        raise FileFormatError(f"it is damaged: {brief(error)}") from error
    if any(entry.filename.endswith("/constants.pkl") for entry in entries):
        raise FileFormatError("it is a program of TorchScript, of which nothing is executed; save its state_dict()")
    if any(entry.compress_type != zipfile.ZIP_STORED or entry.file_size != entry.compress_size for entry in entries):
        raise FileFormatError("it is compressed, which torch.save does not do")
    if sum(entry.file_size for entry in entries) > size:
        raise FileFormatError("it claims more than it holds: its entries overlap")
    return {entry.file_size for entry in entries}


def _reason(error: Exception) -> str:
    """Say why PyTorch refuses a file, without its advice to execute what is in it."""
    if code := re.search(r"GLOBAL (\S+)", str(error)):
        return (
            f"it holds {code[1]}, which is no part of a state dict, and nothing in it is executed; save weights alone, with "
            "torch.save(module.state_dict(), path)"
        )
    return (
        f"it is damaged or holds more than tensors: {brief(str(error).partition(chr(10))[0]) or type(error).__name__}"
    )


def _leaves(tree: Any) -> Iterator[tuple[str, Any]]:
    """Yield what is in containers within each other, by the path with points; each container once, where it is first met."""
    met: set[int] = set()
    left: list[tuple[str, Any, int]] = [("", tree, 0)]
    while left:
        path, node, depth = left.pop()
        if not isinstance(node, (Mapping, list, tuple)):
            yield path, node
            continue
        if id(node) in met:
            continue
        met.add(id(node))
        if depth > DEEPEST:
            raise FileFormatError(f"expected containers within at most {DEEPEST} others, got more")
        items = list(node.items() if isinstance(node, Mapping) else enumerate(node))
        for key, value in reversed(items):
            place = str(key) if isinstance(key, (str, int)) else describe(key)
            left.append((f"{path}.{place}" if path else place, value, depth + 1))


def _numbers(name: str, tensor: Any, sizes: Container[int]) -> Host:
    """The numbers of a tensor, which one of the file's entries holds."""
    kind = str(tensor.dtype).removeprefix("torch.")
    if tensor.device.type != "cpu" or str(tensor.layout) != "torch.strided" or tensor.is_nested or kind not in FLOATS:
        raise FileFormatError(
            f"{name}: expected a dense tensor of floating numbers, got {kind}, {tensor.layout}, on {tensor.device.type}"
        )
    held = tensor.untyped_storage().nbytes()  # as claimed, which PyTorch's older releases do not compare with the file
    if held not in sizes or tensor.numel() * tensor.element_size() > held:
        raise FileFormatError(f"{name}: expected as many numbers as the file holds, got shape {tuple(tensor.shape)}")
    plain = tensor.detach().resolve_conj().resolve_neg()
    host: Host = (plain.float() if kind == "bfloat16" else plain).contiguous().numpy()
    return host
