"""The plugin: arrays, and what is said where Numba or its compiler is missing."""

import numpy as np
import rnncore_numba

from rnncore.backend.registry import backend_of
from tests.tools.numba_scans import assert_close
from tests.tools.process import python


def test_numpy_arrays_stay_numpys_and_a_model_takes_them_where_numba_is_named():
    x = np.zeros((4, 2, 3))
    assert backend_of(x).name == "numpy"
    assert backend_of(x, prefer="numba").name == "numba"
    model = rnncore_numba.RNN(3, 5, rng=0)
    assert model.backend == "numba"
    output, _ = model(x)
    want, _ = model.to("numpy")(x)
    assert type(output) is np.ndarray
    assert_close(output, want)


def test_what_is_missing_is_the_reason(monkeypatch):
    assert rnncore_numba.unusable() is None
    monkeypatch.setattr(rnncore_numba, "find_spec", lambda name: None if name == "numba" else object())
    assert rnncore_numba.unusable() == "numba is not installed"


def test_with_numbas_compiler_switched_off_the_reference_runs_and_says_why():
    code = """
import numpy as np, rnncore
rnn = rnncore.RNN(3, 4, rng=0, backend="numba")
x, most = np.ones((5, 2, 3)), 64 * np.finfo("f8").eps  # of states below 1, as the library promises
same = np.allclose(rnn(x)[0], rnn.to("numpy")(x)[0], rtol=0, atol=most)
print(same, "NUMBA_DISABLE_JIT is set" in str(rnn.explain()))
"""
    assert python(code, NUMBA_DISABLE_JIT="1") == "True True"
