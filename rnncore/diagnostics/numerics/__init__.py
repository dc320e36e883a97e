"""Numerics: arithmetic beyond the range of a dtype."""
