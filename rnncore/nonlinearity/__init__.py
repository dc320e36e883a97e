"""Nonlinearities: f, its derivative from the state or from z, and the bound of its gain; by name or the user's own."""

from rnncore.nonlinearity.nonlinearity import (
    NONLINEARITIES,
    Nonlinearity,
    as_nonlinearity,
    custom_nonlinearity,
    get_nonlinearity,
)

__all__ = ["NONLINEARITIES", "Nonlinearity", "as_nonlinearity", "custom_nonlinearity", "get_nonlinearity"]
