"""Callbacks for Lightning and Keras, by their conventions."""

from __future__ import annotations

import pytest
import torch

import rnncore
from rnncore.diagnostics.monitor.monitor import Monitor
from tests.diagnostics.monitor.networks import QUIET, B, H, I, T, X, nn, numbers, refused, tensor


class LightningLike:
    """What a Trainer does with a callback, for automatic optimisation with gradient clipping."""

    def fit(self, module, batches, callback, outputs):
        optimiser = torch.optim.SGD(module.parameters(), 0.1)
        for k, batch in enumerate(batches):
            x, y = batch
            loss = nn.functional.mse_loss(module.head(module.encoder.rnn(x)[0][-1]), y)
            optimiser.zero_grad()
            loss.backward()
            callback.on_before_optimizer_step(self, module, optimiser)
            nn.utils.clip_grad_norm_(module.parameters(), 1e-6)
            optimiser.step()
            callback.on_train_batch_end(self, module, outputs(loss.detach()), batch, k)


class Lit(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder = nn.Module()
        self.encoder.rnn, self.head = nn.RNN(I, H), nn.Linear(H, 1)


@QUIET
@pytest.mark.parametrize(
    "outputs", [lambda v: {"loss": v}, lambda v: v, lambda v: None], ids=["mapping", "tensor", "None"]
)
@pytest.mark.parametrize("find", ["encoder.rnn", lambda module: module.encoder.rnn], ids=["path", "function"])
def test_lightnings_convention(find, outputs):
    seen, module = [], Lit()
    callback = Monitor(every=3, sink=seen.append, rows=2).lightning_callback(find)
    LightningLike().fit(module, [(tensor(T, B, I, seed=k), tensor(B, 1)) for k in range(7)], callback, outputs)
    assert [e.step for e in seen] == [3, 6]
    assert seen[-1].norms.steps == 6 and seen[-1].norms.quantiles[0.5] > 1e-3  # before the clipping
    assert (seen[-1].loss is None) == (outputs(1.0) is None)


def test_lightning_without_an_optimiser_step_and_with_another_batch():
    seen, module = [], Lit()
    callback = Monitor(every=1, sink=seen.append).lightning_callback("encoder.rnn", lambda batch: batch["x"])
    callback.on_before_optimizer_step(None, module, None)  # no gradient yet
    callback.on_train_batch_end(None, module, None, {"x": tensor(T, B, I)}, 0)
    callback.on_train_batch_end(None, module, None, {"x": tensor(T, B, I)}, 1, 0)  # a dataloader's number, of old
    assert [e.norms for e in seen] == [None, None]
    bare = Monitor(every=1, sink=seen.append).lightning_callback("encoder.rnn")
    bare.on_train_batch_end(None, module, None, tensor(T, B, I), 0)
    assert len(seen) == 3


class Base:
    def __init__(self):
        self.model = None

    def set_model(self, model):
        self.model = ("wrapped", model)

    def on_fit_start(self, trainer, module):
        return "base"

    def on_train_batch_end(self, *rest):
        raise AssertionError


def test_a_librarys_own_class_lends_the_other_methods():
    callback = Monitor().lightning_callback("rnn", base=Base)
    assert isinstance(callback, Base) and callback.on_fit_start(None, None) == "base"
    callback.on_train_batch_end(None, None, None, None, 0)
    keras = Monitor().keras_callback(rnncore.RNN(I, H), X, base=Base)
    keras.set_model(3)
    assert isinstance(keras, Base) and keras.model == ("wrapped", 3)


@QUIET
def test_keras_convention():
    seen, asked = [], []
    weights = {"kernel": numbers(I, H), "recurrent_kernel": numbers(H, H, seed=1) / 3, "bias": numbers(H, seed=2)}

    def network(model):
        asked.append(model)
        rnn = rnncore.RNN(I, H, batch_first=True)
        k, r, b = (model[n] for n in ("kernel", "recurrent_kernel", "bias"))
        rnn.load_state_dict({"weight_ih_l0": k.T, "weight_hh_l0": r.T, "bias_ih_l0": b, "bias_hh_l0": 0 * b})
        return rnn

    callback = Monitor(every=2, sink=seen.append).keras_callback(network, numbers(B, T, I))
    callback.set_params({"epochs": 1, "steps": 5, "verbose": 0})
    callback.set_model(weights)
    for batch in range(5):
        callback.on_train_batch_end(batch, {"loss": 0.5 - 0.1 * batch} if batch < 3 else None)
    assert [(e.step, e.loss) for e in seen] == [(2, 0.4), (4, None)]
    assert asked == [weights, weights]  # only where it is due
    assert callback.params["steps"] == 5


@pytest.mark.parametrize("network", [rnncore.RNN(I, H), nn.RNN(I, H, dtype=torch.float64)], ids=["ours", "torch"])
def test_keras_with_a_network_and_a_function_for_x(network):
    seen = []
    x = X if network.__class__ is rnncore.RNN else torch.tensor(X)
    callback = Monitor(every=1, sink=seen.append).keras_callback(network, lambda: x)
    callback.on_train_batch_end(0, {"loss": 1.0})
    assert seen[0].loss == 1.0


@pytest.mark.parametrize(
    ("make", "kind", "words"),
    [
        (lambda m: m.lightning_callback(3), TypeError, ["network", "int"]),
        (lambda m: m.lightning_callback("a..b"), ValueError, ["network", "'a..b'"]),
        (lambda m: m.lightning_callback(""), ValueError, ["network"]),
        (lambda m: m.lightning_callback("rnn", 3), TypeError, ["inputs", "int"]),
        (lambda m: m.lightning_callback("rnn", base=3), TypeError, ["base", "int"]),
        (lambda m: m.keras_callback(3, X), TypeError, ["rnn", "int"]),
        (lambda m: m.keras_callback(rnncore.RNN(I, H), X, base="keras"), TypeError, ["base", "str"]),
        (
            lambda m: m.lightning_callback("encoder.lstm").on_train_batch_end(None, Lit(), None, None, 0),
            ValueError,
            ["network", "'encoder.lstm'", "'lstm'"],
        ),
        (
            lambda m: m.lightning_callback("head").on_train_batch_end(None, Lit(), None, None, 0),
            TypeError,
            ["rnn", "Linear"],
        ),
        (
            lambda m: m.lightning_callback("encoder.rnn").on_train_batch_end(None, Lit(), None, {"x": 3}, 0),
            TypeError,
            ["x", "dict"],
        ),
        (
            lambda m: m.keras_callback(lambda model: model, X).on_train_batch_end(0, {}),
            TypeError,
            ["rnn", "NoneType"],
        ),
    ],
)
def test_bad_callbacks(make, kind, words):
    with refused(kind, *words):
        make(Monitor(every=1))
