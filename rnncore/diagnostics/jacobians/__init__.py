"""Jacobians: what a step, or a product of many, does to vectors."""
