"""Same weights, same input, same numbers: both backends, both precisions, against torch.nn.RNN or an autograd oracle.

The oracle is float64: ``torch.nn.RNN`` where it has the configuration (one width, tanh or relu), else a plain PyTorch loop
differentiated by autograd, which shares no code with this library. The tolerance is DESIGN's: 64 eps of max|reference|,
per array, and of 1 for states, for weights whose spectral radius is at most 1.2 (torch's default is about 0.58).
"""

import itertools

import numpy as np
import pytest
import torch

import rnncore

EPS_ALLOWED = 64
SETUPS = [("numpy", "float64"), ("numpy", "float32"), ("torch", "float64"), ("torch", "float32")]


def configurations():
    """A grid in which every pair of values occurs together; 324 rows."""
    axes = itertools.product(
        (1, 2, 3),  # layers
        (False, True),  # bidirectional
        ("tanh", "relu", "sigmoid"),
        (True, False),  # bias
    )
    layouts = itertools.cycle(["time", "batch", "unbatched"])
    lengths = itertools.cycle(["full", "ragged"])
    steps = itertools.cycle([1, 2, 3, 7, 16, 33])
    widths = itertools.cycle(["one", "one", "several", "one", "one"])
    for layers, bidirectional, name, bias in axes:
        for repeat in range(9):
            layout = next(layouts)
            yield pytest.param(
                layers,
                bidirectional,
                name,
                bias,
                layout,
                "full" if layout == "unbatched" else next(lengths),
                next(steps),
                next(widths),
                marks=[pytest.mark.slow] if repeat else [],
                id=f"{layers}-{'bi' if bidirectional else 'uni'}-{name}-{'b' if bias else 'nob'}-{layout}-{repeat}",
            )


LONG = [
    pytest.param(
        layers, both, name, True, "time", lengths, 300, "one", id=f"{layers}-{both}-{name}-300", marks=pytest.mark.slow
    )
    for layers, (both, lengths), name in itertools.product(
        (1, 2), ((False, "full"), (True, "ragged")), ("tanh", "relu")
    )
]
GRID = [*configurations(), *LONG]


def test_the_grid_has_at_least_300_configurations():
    assert len(GRID) >= 300


@pytest.mark.parametrize(("layers", "bidirectional", "name", "bias", "layout", "lengths", "steps", "widths"), GRID)
def test_backends_precisions_and_torch_agree(layers, bidirectional, name, bias, layout, lengths, steps, widths):
    rng = np.random.default_rng([layers, bidirectional, bias, steps, len(layout), len(name)])
    batch, inputs = 3, 4
    hidden = [5, 3, 4][:layers] if widths == "several" else 5
    directions = 2 if bidirectional else 1
    options = {"nonlinearity": name, "bias": bias, "batch_first": layout == "batch", "bidirectional": bidirectional}
    model = rnncore.RNN(inputs, hidden, layers, backend="numpy", dtype="float64", rng=7, **options)
    sizes = model.spec.hidden_sizes
    # Numbers that float32 holds exactly, so that no precision sees another problem than the others.
    state = {k: v.astype("f4").astype("f8") for k, v in model.state_dict().items()}
    model.load_state_dict(state)
    draw = lambda *shape: rng.standard_normal(shape).astype("f4").astype("f8")  # noqa: E731
    x = draw(steps, batch, inputs)
    h0 = [draw(directions, batch, h) for h in sizes]
    d_output = draw(steps, batch, directions * sizes[-1])
    d_h_n = [draw(directions, batch, h) for h in sizes]
    counts = None if lengths == "full" else [steps, steps // 2, 0]
    if layout == "unbatched":
        x, h0, d_output, d_h_n = x[:, :1], [h[:, :1] for h in h0], d_output[:, :1], [h[:, :1] for h in d_h_n]

    want = oracle(state, model.spec, x, h0, counts, d_output, d_h_n)

    for backend, dtype in SETUPS:
        got = ours(model.to(backend, dtype=dtype), layout, x, h0, counts, d_output, d_h_n)
        eps = np.finfo(dtype).eps
        assert got.keys() == want.keys()
        for key, value in got.items():
            scale = max(1.0, np.abs(want[key]).max(initial=0)) if key in ("output", "h_n") else scale_of(want[key])
            error = np.abs(value - want[key]).max(initial=0) / (scale * eps)
            assert error <= EPS_ALLOWED, f"{backend} {dtype} {key}: {error:.1f} eps"


def scale_of(g):
    return max(np.abs(g).max(initial=0), np.finfo("f4").tiny)


def ours(model, layout, x, h0, counts, d_output, d_h_n):
    plugin = rnncore.get_backend(model.backend)

    def give(a):
        if layout == "unbatched":
            a = a[:, 0]
        elif layout == "batch" and a is not h0:
            a = np.ascontiguousarray(np.swapaxes(a, 0, 1))
        return plugin.asarray(a, dtype=model.dtype, device=model.device)

    def give_state(rows):
        rows = [r[:, 0] if layout == "unbatched" else r for r in rows]
        made = [plugin.asarray(r, dtype=model.dtype, device=model.device) for r in rows]
        return plugin.namespace().concat(made, axis=0) if model.spec.uniform else made

    output, h_n, pullback = model.vjp(give(x), give_state(h0), lengths=counts)
    grads = pullback(give(d_output), give_state(d_h_n))

    def back(a):
        a = np.asarray(plugin.to_numpy(a), dtype="f8")
        if layout == "unbatched":
            return a[:, None]
        return np.swapaxes(a, 0, 1) if layout == "batch" else a

    def back_state(s):
        rows = [s] if model.spec.uniform else s
        host = [np.asarray(plugin.to_numpy(r), dtype="f8") for r in rows]
        return np.concatenate([(r[:, None] if layout == "unbatched" else r).reshape(-1) for r in host])

    found = {"output": back(output), "h_n": back_state(h_n), "x": back(grads.x), "h0": back_state(grads.h0)}
    found |= {k: np.asarray(plugin.to_numpy(g), dtype="f8") for k, g in grads.params.items()}
    called, _ = model(give(x), give_state(h0), lengths=counts)
    np.testing.assert_array_equal(back(called), found["output"])
    return found


def oracle(state, spec, x, h0, counts, d_output, d_h_n):
    tensors = {k: torch.tensor(v, requires_grad=True) for k, v in state.items()}
    tx = torch.tensor(x, requires_grad=True)
    th = [torch.tensor(h, requires_grad=True) for h in h0]
    if spec.uniform and spec.nonlinearity.name in ("tanh", "relu") and counts is None:
        peer = torch.nn.RNN(
            spec.input_size,
            spec.hidden_sizes[0],
            spec.num_layers,
            spec.nonlinearity.name,
            bias=spec.bias,
            bidirectional=spec.bidirectional,
            dtype=torch.float64,
        )
        peer.load_state_dict(tensors)
        tensors = dict(peer.named_parameters())
        output, h_n = peer(tx, torch.cat(th))
        last = [h_n[k * len(th[0]) : (k + 1) * len(th[0])] for k in range(spec.num_layers)]
    else:
        output, last = plain_loop(tensors, spec, tx, th, counts)
    loss = (output * torch.tensor(d_output)).sum()
    loss = loss + sum((h * torch.tensor(d)).sum() for h, d in zip(last, d_h_n, strict=True))
    names = list(state)
    leaves = [tx, *th, *(tensors[n] for n in names)]
    grads = torch.autograd.grad(loss, leaves, allow_unused=True)
    grads = [torch.zeros_like(v) if g is None else g for g, v in zip(grads, leaves, strict=True)]
    flat = lambda rows: np.concatenate([r.detach().numpy().reshape(-1) for r in rows])  # noqa: E731
    found = {"output": output.detach().numpy(), "h_n": flat(last), "x": grads[0].numpy()}
    found["h0"] = flat(grads[1 : 1 + len(th)])
    return found | {n: g.numpy() for n, g in zip(names, grads[1 + len(th) :], strict=True)}


def plain_loop(params, spec, x, h0, counts):
    """Row by row, step by step, each sequence cut to its own length: as far from the library's ways as can be."""
    f = {"tanh": torch.tanh, "relu": torch.relu, "sigmoid": torch.sigmoid}[spec.nonlinearity.name]
    counts = [x.shape[0]] * x.shape[1] if counts is None else counts
    below, last = x, []
    for k, width in enumerate(spec.hidden_sizes):
        sides, ends = [], []
        for d in range(spec.num_directions):
            end = spec.suffix(k, d)
            b = params[f"bias_ih_{end}"] + params[f"bias_hh_{end}"] if spec.bias else 0.0
            columns, finals = [], []
            for row, n in enumerate(counts):
                h, states = h0[k][d, row], {}
                for t in range(n - 1, -1, -1) if d else range(n):
                    h = f(below[t, row] @ params[f"weight_ih_{end}"].T + b + h @ params[f"weight_hh_{end}"].T)
                    states[t] = h
                zero = torch.zeros(width, dtype=x.dtype)
                columns.append(torch.stack([states.get(t, zero) for t in range(x.shape[0])]))
                finals.append(h)
            sides.append(torch.stack(columns, dim=1))
            ends.append(torch.stack(finals))
        below = torch.cat(sides, dim=2)
        last.append(torch.stack(ends))
    return below, last
