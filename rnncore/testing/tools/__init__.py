"""Tools for writing checks: the oracle, cases, requests, and ways to watch a library."""
