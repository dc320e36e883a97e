"""The namespace: products in full precision unless the user's setting says otherwise."""

import jax
import pytest
import rnncore_jax
from jax import grad
from rnncore_jax import _namespace

from tests.tools.jax_problem import Gpu, inner_jaxprs, loss, model_and_input


def precisions(function, *args):
    dots = [e for e in inner_jaxprs(jax.make_jaxpr(function)(*args).jaxpr) if e.primitive.name == "dot_general"]
    assert dots
    return {str(e.params["precision"]) for e in dots}


HIGHEST = str((jax.lax.Precision.HIGHEST,) * 2)


def test_products_are_full_precision_until_the_user_says_otherwise():
    model, x = model_and_input()

    def everything(model, x):
        output, h_n, pullback = model.vjp(x, lengths=[2, 4])
        return vars(pullback(output, h_n)), vars(model.jvp(x, x_dot=x)[2]), grad(loss)(model, x)

    assert precisions(everything, model, x) == {HIGHEST}
    with jax.default_matmul_precision("tensorfloat32"):
        assert precisions(lambda m, x: everything(m, x), model, x) == {str((jax.lax.Precision.HIGH,) * 2)}
    assert precisions(lambda m, x: everything(m, x), model, x) == {HIGHEST}
    assert precisions(_namespace.vecdot, x, x) == {HIGHEST}
    assert precisions(lambda x: _namespace.tensordot(x, x, axes=([2], [2])), x) == {HIGHEST}


@pytest.mark.parametrize(
    ("setting", "want"),
    [
        (None, "full"),
        ("highest", "full"),
        ("float32", "full"),
        ("F32_F32_F32", "full"),
        ("default", "tf32"),
        ("high", "tf32"),
        ("tensorfloat32", "tf32"),
        ("BF16_BF16_F32", "tf32"),
    ],
)
def test_precision_follows_the_users_setting_on_a_device_that_rounds(setting, want):
    with jax.default_matmul_precision(setting):
        assert rnncore_jax.precision(Gpu()) == want
        assert rnncore_jax.precision(rnncore_jax.devices()[0]) == "full"
