"""The checks, one group a file."""
