"""Diagnose a network every n steps of its training, in constant memory, with one line of JSON each time."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any, Protocol, TypeAlias

from rnncore.arguments import describe, non_negative_int, positive_int
from rnncore.diagnostics.foreign import as_rnn
from rnncore.diagnostics.monitor import callbacks
from rnncore.diagnostics.monitor.callbacks import Find, keras, lightning
from rnncore.diagnostics.monitor.log import Entry, LogFile
from rnncore.diagnostics.monitor.norms import GradientNorms
from rnncore.diagnostics.report.report import Report
from rnncore.diagnostics.run import Level, check_dependency, check_level, diagnose
from rnncore.errors import ArgumentTypeError, ArgumentValueError
from rnncore.typing import Array

__all__ = ["Monitor", "VerdictChange"]

# Modules whose frames a warning skips, so that it points to the training loop.
OWN = (__name__, callbacks.__name__)


class _Text(Protocol):
    def write(self, text: str, /) -> Any: ...


Sink: TypeAlias = "str | os.PathLike[str] | _Text | Callable[[Entry], Any] | None"


class VerdictChange(UserWarning):
    """The verdict of a network in training has changed since the last diagnosis."""


class Monitor:
    """Diagnose a network every n steps of its training.

    Parameters
    ----------
    every : int
        Steps between two diagnoses; the first is at step `every`, counted from 1.
    sink : path, file, callable, optional
        Where each :class:`Entry` goes: a path is appended to, a line of JSON each time, on its way to the disk before
        `step` returns; so is a text file, which stays open; a function gets the entry itself.
    level : {"cheap", "standard", "deep"}
    rows : int, optional
        Use only the first `rows` rows of a batch; a `cotangent` that is a function then gets only those.
    dependency_length, rng, max_bytes
        As for :func:`diagnose`.

    Attributes
    ----------
    steps : int
        Number of steps so far.
    norms : GradientNorms
        Of all steps with a `grad_norm`, diagnosed or not.
    last : Entry or None
        The latest.

    Raises
    ------
    RnncoreError, OSError

    Examples
    --------
    >>> import numpy as np, rnncore
    >>> from rnncore.diagnostics.monitor.monitor import Monitor
    >>> rnn, x = rnncore.RNN(3, 8, rng=0), np.random.default_rng(0).standard_normal((100, 2, 3))
    >>> with Monitor(every=2, sink=lambda entry: print(entry.step, entry.verdict)) as monitor:
    ...     for _ in range(5):
    ...         _ = monitor.step(rnn, x, grad_norm=1.0)
    2 vanishing
    4 vanishing
    """

    def __init__(
        self,
        every: int = 100,
        sink: Sink = None,
        level: Level = "cheap",
        *,
        rows: int | None = None,
        dependency_length: int | None = None,
        rng: int = 0,
        max_bytes: int | None = None,
    ) -> None:
        check_level(level)
        self._every = positive_int("every", every)
        self._rows = None if rows is None else positive_int("rows", rows)
        self._options: dict[str, Any] = {
            "level": level,
            "dependency_length": None if dependency_length is None else check_dependency(dependency_length),
            "rng": non_negative_int("rng", rng),
            "max_bytes": None if max_bytes is None else positive_int("max_bytes", max_bytes),
        }
        self.steps = 0
        self.norms = GradientNorms()
        self.last: Entry | None = None
        self._closed = False
        self._file: LogFile | None = None
        self._write = self._writer(sink)

    @property
    def due(self) -> bool:
        """Whether the next step is diagnosed."""
        return (self.steps + 1) % self._every == 0

    def step(
        self,
        rnn: Any,
        x: Array,
        cotangent: Any = None,
        loss: Any = None,
        grad_norm: Any = None,
        lengths: Any = None,
        h0: Any = None,
    ) -> Report | None:
        """Count one step of training, and diagnose if it is due.

        Parameters
        ----------
        rnn : RNN, torch.nn.RNN or torch.nn.RNNCell
        x, cotangent, lengths, h0
            As for :func:`diagnose`; looked at only where the step is due.
        loss : float or array of one number, optional
            For the log.
        grad_norm : float, array of one number, or mapping of str to array, optional
            The gradient's norm, or the gradients. An array on a device is waited for.

        Returns
        -------
        Report or None
            None where the step was not due.

        Warns
        -----
        VerdictChange
            After the entry has been written.

        Raises
        ------
        RnncoreError, OSError
        """
        if self.steps == 0:
            as_rnn(rnn)  # report a wrong type at once, not at step `every`
        if not self._advance(grad_norm):
            return None
        return self._look(rnn, x, cotangent, loss, lengths, h0)

    def lightning_callback(
        self, network: Find, inputs: Callable[[Any], Any] | None = None, *, base: type = object
    ) -> Any:
        """A callback for Lightning's Trainer.

        Parameters
        ----------
        network : str or callable
            The recurrent module in the LightningModule: its path, such as "rnn" or "encoder.rnn", or a function of the
            LightningModule that returns it.
        inputs : callable, optional
            A function of the batch that returns x; by default the batch itself, or the first of a tuple or list.
        base : type
            Pass ``lightning.Callback``: a Trainer needs more methods than the two defined here.

        Returns
        -------
        object
            ``on_before_optimizer_step(trainer, pl_module, optimizer)`` takes the norm of all gradients, before Lightning
            clips them; ``on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)`` is a step.

        Examples
        --------
        >>> from rnncore.diagnostics.monitor.monitor import Monitor
        >>> callback = Monitor(every=100).lightning_callback("rnn")      # base=lightning.Callback
        >>> callback.on_train_batch_end(None, None, None, None, 0)       # not due: nothing is looked at
        """
        return lightning(self._advance, self._look, network, inputs, base)

    def keras_callback(self, network: Any, x: Any, *, base: type = object) -> Any:
        """A callback for ``keras.Model.fit``.

        Parameters
        ----------
        network : callable, RNN or torch.nn.RNN
            A function of the Keras model that returns a network with its weights, or the network itself. A SimpleRNN's
            ``kernel``, ``recurrent_kernel`` and ``bias`` are weight_ih transposed, weight_hh transposed and bias_ih.
        x : array or callable
            The input to diagnose, as Keras gives no batch to a callback; or a function without arguments that returns it.
        base : type
            Pass ``keras.callbacks.Callback``: ``fit`` needs more methods than the three defined here.

        Returns
        -------
        object
            ``on_train_batch_end(batch, logs)`` is a step, with ``logs["loss"]``; ``set_model(model)`` and
            ``set_params(params)`` keep what they are given.

        Examples
        --------
        >>> import numpy as np, rnncore
        >>> from rnncore.diagnostics.monitor.monitor import Monitor
        >>> rnn, x = rnncore.RNN(3, 8, rng=0), np.ones((100, 2, 3))
        >>> callback = Monitor(every=100).keras_callback(rnn, x)         # base=keras.callbacks.Callback
        >>> callback.on_train_batch_end(0, {"loss": 0.5})
        """
        return keras(self._advance, self._look, network, x, base)

    def close(self) -> None:
        """Close the file that a path was given for. No step can follow."""
        self._closed = True
        if self._file is not None:
            self._file.close()

    def __enter__(self) -> Monitor:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _writer(self, sink: Sink) -> Callable[[Entry], Any]:
        if sink is None:
            return lambda entry: None
        if isinstance(sink, (str, os.PathLike)):
            file = self._file = LogFile(sink)
            return lambda entry: file.append(entry.to_json())
        write, flush = getattr(sink, "write", None), getattr(sink, "flush", None)
        if callable(write) and not isinstance(sink, type):
            try:
                write("")
            except TypeError:
                raise ArgumentTypeError(
                    f"sink: expected a file of text, got {describe(sink)}, which takes none"
                ) from None

            def to_file(entry: Entry) -> None:
                write(entry.to_json() + "\n")
                if callable(flush):
                    flush()

            return to_file
        if callable(sink):
            return sink
        raise ArgumentTypeError(f"sink: expected a path, a text file, a callable or None, got {describe(sink)}")

    def _advance(self, grad_norm: Any) -> bool:
        """Count a step, and return whether it is due."""
        if self._closed:
            raise ArgumentValueError("this monitor is closed: expected no step after close(), or the end of its with")
        if grad_norm is not None:
            norm = grad_norm if isinstance(grad_norm, Mapping) else _number("grad_norm", grad_norm)
            if isinstance(norm, float) and norm < 0:
                raise ArgumentValueError(f"grad_norm: expected a number >= 0, got {norm}")
            self.norms.add(norm)
        self.steps += 1
        return self.steps % self._every == 0

    def _look(self, rnn: Any, x: Any, cotangent: Any, loss: Any, lengths: Any, h0: Any) -> Report:
        network = as_rnn(rnn)
        value = None if loss is None else _number("loss", loss)
        if self._rows is not None:
            x, cotangent, lengths, h0 = _part(network.spec.batch_first, self._rows, x, cotangent, lengths, h0)
        report = diagnose(network, x, cotangent, h0=h0, lengths=lengths, **self._options)
        verdict, before = report.verdict, self.last
        norms = self.norms.summary() if self.norms.steps else None
        self.last = Entry(self.steps, value, verdict.label, verdict.summary, verdict.evidence, norms)
        self._write(self.last)
        if before is not None and before.verdict != verdict.label:
            _warn(
                f"step {self.steps}: the verdict went from {before.verdict} (step {before.step}) to {verdict.label}: "
                f"{verdict.summary}"
            )
        return report


def _warn(text: str) -> None:
    """Warn at the caller's line, every time, without an entry in its module's registry, which would grow."""
    frame = sys._getframe(1)
    while frame.f_back is not None and frame.f_globals.get("__name__") in OWN:
        frame = frame.f_back
    module = str(frame.f_globals.get("__name__", "<unknown>"))
    warnings.warn_explicit(text, VerdictChange, frame.f_code.co_filename, frame.f_lineno, module)


def _number(name: str, value: Any) -> float:
    """A float of a number or of an array of one."""
    shape = getattr(value, "shape", ())
    item = getattr(value, "item", None)
    if not isinstance(value, (bool, str, bytes)) and all(n == 1 for n in tuple(shape)):
        try:
            found = item() if callable(item) else value
            if not isinstance(found, (bool, complex)):
                return float(found)
        except (TypeError, ValueError, OverflowError):
            pass
    got = f"{describe(value)} of shape {tuple(shape)}" if shape else describe(value)
    raise ArgumentTypeError(f"{name}: expected a number, or an array of one, got {got}")


def _part(batch_first: bool, rows: int, x: Any, cotangent: Any, lengths: Any, h0: Any) -> tuple[Any, Any, Any, Any]:
    """Take the first rows of every argument. An argument with a wrong shape stays, for the call to report."""

    def cut(value: Any, axis: int) -> Any:
        if len(getattr(value, "shape", ())) != 3:
            return value
        return value[tuple(slice(rows) if k == axis else slice(None) for k in range(3))]

    def states(value: Any) -> Any:
        return [cut(v, 1) for v in value] if isinstance(value, (tuple, list)) else cut(value, 1)

    if len(getattr(x, "shape", ())) != 3:
        return x, cotangent, lengths, h0
    axis = 0 if batch_first else 1
    if isinstance(cotangent, (tuple, list)) and len(cotangent) == 2:
        cotangent = (cut(cotangent[0], axis), states(cotangent[1]))
    if lengths is not None and hasattr(lengths, "__getitem__") and len(getattr(lengths, "shape", (0,))) == 1:
        lengths = lengths[:rows]
    return cut(x, axis), cotangent, lengths, states(h0)
