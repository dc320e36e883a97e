"""Findings: the results of the probes as data, and why some are absent."""
