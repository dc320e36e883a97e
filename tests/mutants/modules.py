"""Which module is changed, and the tests that should notice: those that mirror it, and others where these see too little."""

from typing import NamedTuple


class Module(NamedTuple):
    """A file of the project, its tests, and the words that leave some of them out, as of ``pytest -k``.

    The tests run in this order up to the first that fails, so what notices most stands first.
    """

    path: str
    tests: tuple[str, ...]
    select: str = "not torch and not jax and not strict and not mlx and not cupy"


GRADIENT = "tests/diagnostics/gradient/"
JACOBIANS = "tests/diagnostics/jacobians/"
MODULES = {
    "scan": Module("rnncore/scan.py", ("tests/test_carry.py", "tests/test_scan.py"), "not torch"),
    "carry": Module("rnncore/carry.py", ("tests/test_carry.py", "tests/test_scan.py"), "not torch"),
    "layer": Module("rnncore/network/layer.py", ("tests/network/test_layer.py", "tests/network/test_ragged.py")),
    "stack": Module("rnncore/network/stack.py", ("tests/network/test_stack.py", "tests/network/test_calls.py")),
    "ragged": Module("rnncore/network/ragged.py", ("tests/network/test_ragged.py",)),
    "step": Module("rnncore/network/step.py", ("tests/network/test_step.py", "tests/model/test_rnn_cell.py")),
    "engine": Module("rnncore/network/engine.py", ("tests/network/test_engine.py",)),
    "clipping": Module("rnncore/optim/clipping.py", ("tests/optim/test_clipping.py",)),
    "flow": Module(
        "rnncore/diagnostics/gradient/flow.py", (GRADIENT + "test_flow.py", GRADIENT + "test_follow_some.py")
    ),
    "product": Module(
        "rnncore/diagnostics/jacobians/product.py",
        (JACOBIANS + "test_product.py", JACOBIANS + "test_product_error.py"),
    ),
    "lyapunov": Module("rnncore/diagnostics/jacobians/lyapunov.py", (JACOBIANS + "test_lyapunov.py",)),
}
