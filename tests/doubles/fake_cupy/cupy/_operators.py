"""The array's operators and methods, by the functions that do the same."""

from cupy import _functions
from cupy._array import ndarray

BINARY = {
    "add": "add",
    "sub": "subtract",
    "mul": "multiply",
    "truediv": "true_divide",
    "floordiv": "floor_divide",
    "mod": "remainder",
    "pow": "power",
    "matmul": "matmul",
    "and": "bitwise_and",
    "or": "bitwise_or",
    "xor": "bitwise_xor",
    "lshift": "left_shift",
    "rshift": "right_shift",
}
ONE_WAY = {
    "lt": "less",
    "le": "less_equal",
    "eq": "equal",
    "ne": "not_equal",
    "gt": "greater",
    "ge": "greater_equal",
    "neg": "negative",
    "pos": "positive",
    "abs": "absolute",
    "invert": "invert",
}
METHODS = (
    "all any argmax argmin argsort clip conj cumprod cumsum diagonal dot max mean min nonzero prod ravel repeat round "
    "searchsorted squeeze std sum swapaxes take trace var"
)
OF_A_SHAPE = "reshape transpose"  # which may be given number by number


def _forward(name):
    return lambda self, *args, **kwargs: getattr(_functions, name)(self, *args, **kwargs)


def _backward(name):
    return lambda self, other: getattr(_functions, name)(other, self)


def _in_place(name):
    return lambda self, other: getattr(_functions, name)(self, other, out=self)


def _of_a_shape(name):
    return lambda self, *shape: getattr(_functions, name)(self, shape[0] if len(shape) == 1 else shape or None)


for _short, _name in BINARY.items():
    setattr(ndarray, f"__{_short}__", _forward(_name))
    setattr(ndarray, f"__r{_short}__", _backward(_name))
    if _short != "matmul":  # CuPy has no @= of its own
        setattr(ndarray, f"__i{_short}__", _in_place(_name))
for _short, _name in ONE_WAY.items():
    setattr(ndarray, f"__{_short}__", _forward(_name))
for _name in METHODS.split():
    setattr(ndarray, _name, _forward(_name))
for _name in OF_A_SHAPE.split():
    setattr(ndarray, _name, _of_a_shape(_name))
