"""Run a test on the stand-in for CuPy, in a process of its own; or only where the real CuPy is installed."""

from __future__ import annotations

import functools
import importlib.util
import os
import subprocess
import sys

import pytest

from tests.tools.places import DOUBLES, FAKE, ROOT

needs_real_cupy = pytest.mark.skipif(
    importlib.util.find_spec("cupy_backends") is None,  # which the stand-in has not
    reason='the real CuPy is not installed: pip install cupy-cuda13x, or "rnncore[cupy]"',
)


def python(code, **environment):
    """A new process's standard output."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def on_fake_cupy(devices=2, **environment):
    """Run the test in a new process, in which ``import cupy`` finds the stand-in with so many devices."""

    def decorate(body):
        @functools.wraps(body)
        def test():
            code = f"import {body.__module__} as tests; tests.{body.__name__}.__wrapped__()"
            path = os.pathsep.join([str(FAKE), str(ROOT), str(DOUBLES), *filter(None, [os.environ.get("PYTHONPATH")])])
            python(code, PYTHONPATH=path, RNNCORE_FAKE_CUPY=str(devices), **environment)

        return test

    return decorate
