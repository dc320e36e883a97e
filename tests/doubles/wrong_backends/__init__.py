"""Implementations that are wrong on purpose, one fault each: the conformance suite has to fail every one of them.

Most are a sound plugin with one thing changed. What no plugin can do wrong is planted in rnncore itself, for as long as a
context lasts. ``ZOO`` is the table: the fault, how it is planted, and the checks whose rule it breaks with what they must say.
"""

from wrong_backends.autograd import AUTOGRAD
from wrong_backends.contract import CONTRACT
from wrong_backends.core import CORE
from wrong_backends.numbers import NUMBERS, tensor_cores
from wrong_backends.paths import PATHS
from wrong_backends.planting import Altered, Wrong
from wrong_backends.scans import SCANS
from wrong_backends.storage import STORAGE
from wrong_backends.timing import TIME

__all__ = ["ZOO", "Altered", "honest_tf32"]

ZOO = [
    Wrong(name, *rest)
    for group in (SCANS, STORAGE, NUMBERS, CONTRACT, CORE, PATHS, TIME, AUTOGRAD)
    for name, rest in group.items()
]
# Not wrong: it says so.
honest_tf32 = tensor_cores(precision=lambda device: "tf32")
