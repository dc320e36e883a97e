"""Nonlinearities, by name or custom: f, its derivative from the state or from z, and the bound of the derivative."""

from rnncore.nonlinearity.nonlinearity import (
    NONLINEARITIES,
    Nonlinearity,
    as_nonlinearity,
    custom_nonlinearity,
    get_nonlinearity,
)

__all__ = ["NONLINEARITIES", "Nonlinearity", "as_nonlinearity", "custom_nonlinearity", "get_nonlinearity"]
