"""Make docs/vectors: networks as ONNX files, with inputs and the outputs of the reference, which shares no code with rnncore.

    python -m tests.tools.vectors

Weights and inputs are multiples of 2**-23 below 2, which float32 holds: the reference runs the same numbers that a runtime
does. They are made of the bits of a generator whose bits NumPy never changes, so that they are the same everywhere.
"""

import io
import json
import zipfile
from dataclasses import dataclass
from importlib import import_module

import numpy as np

import rnncore
from rnncore.interchange.onnx import encode
from tests.fuzz import reference
from tests.tools.places import ROOT

FOLDER = ROOT / "docs" / "vectors"
BITS = 24
DATE = (1980, 1, 1, 0, 0, 0)  # the earliest of a zip, so that the same arrays always give the same bytes
# A function that jumps must do so where no rounding of float32 reaches, which moves a pre-activation by some 2**-20.
MARGIN = 2.0**-12
# Attributes that ONNX has defaults for, in a network that has the same. Without hidden_size, ONNX Runtime refuses a graph.
DEFAULTS = ("activation_alpha", "activation_beta", "activations", "direction")


@dataclass(frozen=True)
class Case:
    """A network and a call of it."""

    spec: rnncore.RNNSpec
    steps: int = 6
    rows: int = 4
    lengths: tuple[int, ...] | None = None
    h0: bool = False
    seed: int = 0
    # Whether the file says nothing that ONNX has a default for: a runtime's own has to be the same.
    defaults: bool = False

    @property
    def options(self):
        """Of RNN.save."""
        return {"lengths": self.lengths is not None, "h0": self.h0}


@dataclass(frozen=True)
class Vectors:
    """What a case's files hold."""

    rnn: rnncore.RNN
    params: dict
    inputs: dict
    outputs: dict

    @property
    def arrays(self):
        return {**self.inputs, **self.outputs, **self.params}


def spec(hidden_size=5, alpha=None, beta=None, nonlinearity="tanh", clip=None, **options):
    function = rnncore.get_nonlinearity(nonlinearity, alpha=alpha, beta=beta, clip=clip)
    return rnncore.RNNSpec.make(3, hidden_size, nonlinearity=function, **options)


RAGGED = (6, 3, 1, 5)
WITH_NONE = (6, 0, 2, 5)
BOTH = {"bidirectional": True}
CASES = {
    "tanh": Case(spec()),
    "tanh_default": Case(spec(), defaults=True),
    "no_bias": Case(spec(bias=False)),
    "batch_first": Case(spec(batch_first=True)),
    "one_step": Case(spec(), steps=1),
    "one_row": Case(spec(), rows=1),
    "long": Case(spec(8), steps=100, rows=1),
    "h0": Case(spec(), h0=True),
    "lengths": Case(spec(), lengths=RAGGED),
    "length_zero": Case(spec(), lengths=WITH_NONE, h0=True),
    "layers": Case(spec(num_layers=3), h0=True),
    "layers_lengths": Case(spec(num_layers=2), lengths=RAGGED, h0=True),
    "widths": Case(spec([5, 4, 6]), lengths=RAGGED, h0=True),
    "bidirectional": Case(spec(**BOTH)),
    "bidirectional_lengths": Case(spec(**BOTH), lengths=RAGGED, h0=True),
    "bidirectional_layers": Case(spec(num_layers=2, batch_first=True, **BOTH), h0=True),
    "bidirectional_layers_lengths": Case(spec(num_layers=2, batch_first=True, **BOTH), lengths=WITH_NONE, h0=True),
    "clip": Case(spec(clip=0.5), h0=True),
    "clip_relu": Case(spec(nonlinearity="relu", clip=0.5, **BOTH), lengths=RAGGED),
    "relu": Case(spec(nonlinearity="relu", num_layers=2)),
    "sigmoid": Case(spec(nonlinearity="sigmoid")),
    "identity": Case(spec(nonlinearity="identity")),
    "affine": Case(spec(nonlinearity="affine", alpha=0.5, beta=0.25)),
    "leaky_relu": Case(spec(nonlinearity="leaky_relu", alpha=0.25, **BOTH)),
    "leaky_relu_default": Case(spec(nonlinearity="leaky_relu"), defaults=True),
    "thresholded_relu": Case(spec(nonlinearity="thresholded_relu", alpha=0.25)),
    "scaled_tanh": Case(spec(nonlinearity="scaled_tanh", alpha=0.75, beta=1.5, **BOTH)),
    "hard_sigmoid": Case(spec(nonlinearity="hard_sigmoid", alpha=0.25, beta=0.375)),
    "hard_sigmoid_default": Case(spec(nonlinearity="hard_sigmoid"), defaults=True),
    "elu": Case(spec(nonlinearity="elu", alpha=0.75)),
    "softsign": Case(spec(nonlinearity="softsign")),
    "softplus": Case(spec(nonlinearity="softplus", clip=1.0)),
}


def made(case):
    """The arrays of a case."""
    spec = case.spec
    numbers = _numbers(case.seed)
    params = {name: numbers(shape, 0.5) for name, shape in spec.parameter_shapes().items()}
    x = numbers((case.steps, case.rows, spec.input_size), 2.0)
    h0 = [numbers((spec.num_directions, case.rows, h), 1.0) for h in spec.hidden_sizes]
    h0 = h0 if case.h0 else [0 * h for h in h0]
    inputs = {"x": x.swapaxes(0, 1) if spec.batch_first else x}
    if case.h0:
        inputs |= _named("h0", h0, spec.uniform)
    if case.lengths is not None:
        inputs["lengths"] = np.asarray(case.lengths, "i4")
    run = _reference(case, params, x, h0)
    output = run.output.astype("f8")
    h_n = [np.stack(row).astype("f8") for row in run.last]
    outputs = {"output": output.swapaxes(0, 1) if spec.batch_first else output, **_named("h_n", h_n, spec.uniform)}
    rnn = rnncore.RNN.from_spec(spec, params, backend="numpy", dtype="float32")
    return Vectors(rnn, params, inputs, outputs)


def graph(case, vectors):
    """The bytes of a case's ONNX file."""
    file = io.BytesIO()
    encode(file, vectors.rnn.portable(), **case.options)
    if not case.defaults:
        return file.getvalue()
    model = onnx_model(file.getvalue())
    for node in model.graph.node:
        kept = [
            a for a in node.attribute if a.name not in DEFAULTS or (a.name == "activations" and a.strings != [b"Tanh"])
        ]
        del node.attribute[:]
        node.attribute.extend(kept)
    return model.SerializeToString(deterministic=True)


def onnx_model(data):
    """The message in the bytes of a file."""
    return import_module("onnx").ModelProto.FromString(data)


def description(case):
    """What cases.json says of a case."""
    config = case.spec.to_config()
    for name in ("custom_nonlinearity", "dropout"):
        del config[name]
    return {
        **config,
        "steps": case.steps,
        "rows": case.rows,
        "lengths": case.lengths,
        "h0": case.h0,
        "defaults": case.defaults,
    }


def main():
    FOLDER.mkdir(exist_ok=True)
    for name, case in CASES.items():
        vectors = made(case)
        (FOLDER / f"{name}.onnx").write_bytes(graph(case, vectors))
        with zipfile.ZipFile(FOLDER / f"{name}.npz", "w", zipfile.ZIP_DEFLATED) as archive:
            for key, values in vectors.arrays.items():
                entry = zipfile.ZipInfo(f"{key}.npy", DATE)
                entry.compress_type = zipfile.ZIP_DEFLATED
                with archive.open(entry, "w") as file:
                    np.lib.format.write_array(file, np.ascontiguousarray(values))
    lines = (f'"{name}": {json.dumps(description(case))}' for name, case in CASES.items())
    (FOLDER / "cases.json").write_text("{\n" + ",\n".join(lines) + "\n}\n")


def _numbers(seed):
    bits = np.random.PCG64(seed)

    def draw(shape, scale):
        count = int(np.prod(shape))
        whole = (bits.random_raw(count) >> np.uint64(64 - BITS)).astype("i8") - 2 ** (BITS - 1)
        values = whole * (scale / 2 ** (BITS - 1))
        assert np.array_equal(values, values.astype("f4"))
        return values.astype("f4").reshape(shape)

    return draw


def _named(name, by_layer, uniform):
    return {name: np.concatenate(by_layer)} if uniform else {f"{name}_l{k}": a for k, a in enumerate(by_layer)}


def _reference(case, params, x, h0):
    spec = case.spec
    f = spec.nonlinearity
    function = reference.function(f.name, f.alpha, f.beta)
    clip = np.inf if f.clip is None else f.clip
    net = reference.network(params, spec.num_layers, spec.num_directions, function, clip)
    run = reference.forward(net, x, h0, case.lengths)
    assert clip == np.inf or all((s * z > clip).any() for s in (-1, 1) for row in run.z for z in row)
    if f.name == "thresholded_relu":
        assert min(float(abs(z - f.alpha).min()) for row in run.z for z in row) > MARGIN
    return run


if __name__ == "__main__":
    main()
