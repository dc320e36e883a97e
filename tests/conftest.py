"""One thread for each library's products, and helpers of the tests importable by name.

The arrays here are tiny, and threads that spin for each other on a busy machine can make them ten times slower. Set
before any library is imported; the processes that tests start inherit it.
"""

import os
import sys
from pathlib import Path

for variable in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(variable, "1")
# Keras reads it when it is imported, and takes TensorFlow if it is not set.
os.environ.setdefault("KERAS_BACKEND", "jax")

sys.path.insert(0, str(Path(__file__).parent / "doubles"))

# Collected for doctests, the plugin's folder would be put on the path, and its backend found by every test.
# The fake CuPy refuses to be imported where it was not asked for.
collect_ignore = ["doubles/acme_plugin", "doubles/fake_cupy"]
