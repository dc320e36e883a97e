"""Faults: the first NaN or infinity of a run, where it is born and why."""
