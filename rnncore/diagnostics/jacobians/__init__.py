"""Jacobians of steps, and of products of many steps."""
