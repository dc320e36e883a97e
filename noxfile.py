"""Runs that prove more than one machine can: `nox -l` lists them, docs/testing.md says what each is for.

None of them belongs to the tests of a change, which `.ci/run` makes: they take from minutes to hours.
"""

import nox

nox.options.sessions = ["matrix"]


@nox.session
def fuzz(session: nox.Session) -> None:
    """Fuzz weights files, calls of the network and sequences of methods of a model: `nox -s fuzz -- weights`."""
    session.install("-e", ".[test]")
    for part in session.posargs or ("weights", "calls", "models"):
        session.run("python", "-m", "tests.fuzz", part)


@nox.session
def mutants(session: nox.Session) -> None:
    """Change the core one operator at a time and count what the tests notice: `nox -s mutants -- scan flow`."""
    session.install("-e", ".[test]")
    session.run("python", "-m", "tests.mutants", *session.posargs)
