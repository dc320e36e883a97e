"""CuPy's functions, by the manner of each; some have the names of Python's own, so nothing else is defined here."""

import numpy

from cupy import _wrap
from cupy._special import *  # noqa: F403
from cupy._special import __all__ as _special

UFUNCS = (
    "abs absolute add arccos arccosh arcsin arcsinh arctan arctan2 arctanh bitwise_and bitwise_or bitwise_xor ceil "
    "conjugate copysign cos cosh divide equal exp exp2 expm1 fabs floor floor_divide fmax fmin greater greater_equal hypot "
    "invert isfinite isinf isnan left_shift less less_equal log log10 log1p log2 logaddexp logical_and logical_not "
    "logical_or logical_xor matmul maximum minimum multiply negative nextafter not_equal positive power reciprocal remainder "
    "right_shift rint sign signbit sin sinh sqrt square subtract tan tanh true_divide trunc"
)
FUNCTIONS = (
    "all allclose amax amin any argmax argmin argsort around array_equal average bincount clip column_stack concatenate "
    "convolve count_nonzero cross cumprod cumsum diag diff dot einsum hstack inner interp isclose isin kron lexsort max mean "
    "median meshgrid min nan_to_num nanmax nanmean nanmin nansum outer pad prod repeat roll round searchsorted select sort "
    "stack std sum tensordot tile trace tri tril triu unique var vdot vstack where"
)
# The result's shape is a matter of the numbers, which are waited for.
WAITING = "argwhere flatnonzero nonzero"
VIEWS = (
    "atleast_1d atleast_2d atleast_3d broadcast_arrays broadcast_to diagonal expand_dims flip fliplr flipud "
    "matrix_transpose moveaxis permute_dims ravel reshape rollaxis rot90 split squeeze swapaxes transpose array_split imag real"
)
CREATION = "arange empty eye full identity linspace logspace ones zeros"
LIKE = "empty_like full_like ones_like zeros_like"
HOST = "broadcast_shapes can_cast isdtype issubdtype isscalar min_scalar_type ndim promote_types shape size"

__all__ = [*_special, "conj"]

for _names, _manner in (
    (UFUNCS, _wrap.ufunc),
    (FUNCTIONS, _wrap.function),
    (WAITING, _wrap.waiting),
    (VIEWS, _wrap.view),
    (CREATION, _wrap.creation),
    (LIKE, _wrap.like),
    (HOST, _wrap.same),
):
    __all__ += _wrap.public(_names, numpy, _manner, globals())
conj = globals()["conjugate"]
