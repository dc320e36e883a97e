"""Flax: modules of its two interfaces, ``flax.nnx`` and ``flax.linen``, and its msgpack files.

A kernel of Flax's is a weight matrix transposed, and a ``SimpleCell`` has one bias, which is bias_ih here.
"""

from __future__ import annotations

from rnncore.interchange.flax.making import make
from rnncore.interchange.flax.reading import owns, read

__all__ = ["make", "owns", "read"]
