"""Files and calls that nobody wrote by hand, drawn from a seed: ``python -m tests.fuzz PART``.

A part is a module of this package with ``add_arguments(parser)`` and ``main(options)``, which prints its figures and returns
the exit status.
"""
