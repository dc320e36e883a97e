"""Verdict: the label, its evidence, and what to change."""
