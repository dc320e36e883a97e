"""CuPy's Fourier transforms: NumPy's."""

import numpy

from cupy import _wrap

_names = "fft ifft fftn ifftn rfft irfft rfftn irfftn hfft ihfft fftshift ifftshift"
__all__ = _wrap.public(_names, numpy.fft, _wrap.function, globals())
__all__ += _wrap.public("fftfreq rfftfreq", numpy.fft, _wrap.creation, globals())
