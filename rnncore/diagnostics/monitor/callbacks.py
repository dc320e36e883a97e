"""Callbacks for Lightning and Keras, by their conventions and without importing them.

A callback is an object with the methods that the library's loop calls. Its class can inherit from the library's own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeAlias

from rnncore.arguments import describe, shown
from rnncore.diagnostics.foreign import as_rnn
from rnncore.diagnostics.monitor.norms import GradientNorms
from rnncore.errors import ArgumentTypeError, ArgumentValueError

__all__ = ["Find", "keras", "lightning"]

Find: TypeAlias = "str | Callable[[Any], Any]"
# Count a step with the gradient's norm, if there is one, and say whether it is due; then network, x, cotangent, loss,
# lengths and h0 of the one that is.
Advance: TypeAlias = Callable[[Any], bool]
Look: TypeAlias = Callable[[Any, Any, Any, Any, Any, Any], Any]


def lightning(advance: Advance, look: Look, network: Find, inputs: Callable[[Any], Any] | None, base: type) -> Any:
    """See :meth:`rnncore.diagnostics.Monitor.lightning_callback`."""
    find, take = _finder(network), _first_of if inputs is None else _checked_call("inputs", inputs)
    waiting = list[float]()

    def on_before_optimizer_step(_: Any, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        grads = {n: p.grad for n, p in pl_module.named_parameters() if p.grad is not None}
        if grads:
            waiting[:] = [GradientNorms().add(grads)]

    def on_train_batch_end(
        _: Any, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int, *rest: Any
    ) -> None:
        norm = waiting.pop() if waiting else None
        if advance(norm):
            look(find(pl_module), take(batch), None, _loss_of(outputs), None, None)

    return _made("MonitorCallback", base, on_before_optimizer_step, on_train_batch_end)


def keras(advance: Advance, look: Look, network: Any, x: Any, base: type) -> Any:
    """See :meth:`rnncore.diagnostics.Monitor.keras_callback`."""
    if isinstance(network, type) or not callable(network):
        as_rnn(network)

    def set_model(own: Any, model: Any) -> None:
        if hasattr(base, "set_model"):
            base.set_model(own, model)
        else:
            own.model = model

    def set_params(own: Any, params: Any) -> None:
        own.params = params

    def on_train_batch_end(own: Any, batch: int, logs: Any = None) -> None:
        if not advance(None):
            return
        is_network = hasattr(network, "spec") or hasattr(network, "parameters")
        found = network if is_network else network(getattr(own, "model", None))
        look(found, x() if callable(x) else x, None, _loss_of(logs), None, None)

    return _made("MonitorCallback", base, set_model, set_params, on_train_batch_end)


def _finder(network: Find) -> Callable[[Any], Any]:
    if not isinstance(network, str):
        return _checked_call("network", network)
    names = network.split(".")
    if not all(names):
        raise ArgumentValueError(f"network: expected a path of attributes such as 'encoder.rnn', got {shown(network)}")

    def find(module: Any) -> Any:
        for name in names:
            if not hasattr(module, name):
                raise ArgumentValueError(
                    f"network: expected {network!r} in the module, {describe(module)} has no {name!r}"
                )
            module = getattr(module, name)
        return module

    return find


def _checked_call(name: str, value: Any) -> Callable[[Any], Any]:
    if not callable(value):
        raise ArgumentTypeError(f"{name}: expected a function, got {describe(value)}")
    return value  # type: ignore[no-any-return]


def _first_of(batch: Any) -> Any:
    return batch[0] if isinstance(batch, (tuple, list)) and batch else batch


def _loss_of(outputs: Any) -> Any:
    return outputs.get("loss") if isinstance(outputs, Mapping) else outputs


def _made(name: str, base: type, *methods: Callable[..., Any]) -> Any:
    """Make an object of a class with these methods, which override those of the library's class."""
    if not isinstance(base, type):
        raise ArgumentTypeError(f"base: expected a class, got {describe(base)}")
    named: Iterable[tuple[str, Any]] = ((m.__name__, m) for m in methods)
    return type(name, (base,), {"__module__": __name__, "__doc__": "See Monitor.", **dict(named)})()
