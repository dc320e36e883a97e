"""Gradient: where it comes from, how far back it reaches, and what truncation costs."""
