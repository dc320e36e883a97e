"""One figure for each question that a report answers; NaN and infinity have colours of their own.

matplotlib is imported when a figure is asked for, and without pyplot: there is no window and no global state. The colours
are those of Okabe and Ito and matplotlib's cividis, which the colour-blind can tell apart.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rnncore.arguments import one_of, shown
from rnncore.diagnostics.figures.decomposition import draw_decomposition
from rnncore.diagnostics.figures.flow import draw_flow
from rnncore.diagnostics.figures.horizon import draw_horizon
from rnncore.diagnostics.figures.saturation import draw_saturation
from rnncore.diagnostics.figures.spectrum import draw_eigenvalues, draw_spectrum
from rnncore.diagnostics.findings.findings import Findings
from rnncore.errors import ArgumentValueError
from rnncore.io.paths import as_path, named

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["KINDS", "available", "plot", "require_matplotlib"]

INSTALL = 'pip install "rnncore[demo]"'
WIDTH = 8.0

KINDS: dict[str, Callable[[Findings, Figure, float], None]] = {
    "flow": draw_flow,
    "horizon": draw_horizon,
    "decomposition": draw_decomposition,
    "spectrum": draw_spectrum,
    "eigenvalues": draw_eigenvalues,
    "saturation": draw_saturation,
}


def plot(report: Findings, kind: str, path: str | Path | None = None, *, width: float = WIDTH) -> Figure:
    """Draw one kind.

    Parameters
    ----------
    report : Report
    kind : str
        "flow": the gradient's size by layer, direction and time. "horizon": its size by lag. "decomposition": the parts of
        its gain at every step. "spectrum": singular values of the product of the Jacobians and Lyapunov exponents.
        "eigenvalues": of each W_hh against the unit circle. "saturation": the fractions of saturated and dead units.
    path : str or Path, optional
        File to save it to; the suffix selects the format.
    width : float
        Inches.

    Returns
    -------
    matplotlib.figure.Figure

    Raises
    ------
    UnknownNameError
        For another kind; with the closest name.
    ArgumentValueError
        For a kind whose probe did not run, with the reason, and for a suffix that matplotlib does not know.
    ImportError
        Without matplotlib.
    FileAccessError
        If the file cannot be written.

    Examples
    --------
    >>> import numpy as np, rnncore
    >>> from rnncore.diagnostics.figures.plot import plot
    >>> report = rnncore.diagnose(rnncore.RNN(3, 8, rng=0), np.random.default_rng(0).standard_normal((100, 2, 3)))
    >>> plot(report, "flow").axes[0].get_title()
    'Size of the gradient at every step (median over 2 rows)'
    """
    one_of("kind", kind, KINDS)
    figures = require_matplotlib()
    if (reason := available(report, kind)) is not None:
        raise ArgumentValueError(f"kind: {kind!r} cannot be drawn: {reason}")
    figure: Figure = figures.Figure(figsize=(width, 3.0), layout="constrained")
    if path is not None:
        known = figure.canvas.get_supported_filetypes()
        if Path(path).suffix.lower().lstrip(".") not in known:
            raise ArgumentValueError(
                f"path: expected a file that ends in one of {', '.join(sorted(known))}, got {shown(path)}"
            )
    KINDS[kind](report, figure, width)
    if path is not None:
        place = as_path(path)
        with named(place):
            figure.savefig(place, dpi=150)
    return figure


def available(report: Findings, kind: str) -> str | None:
    """None, or why the kind cannot be drawn of this report."""
    if kind == "eigenvalues":
        return None if report.eigenvalues else "the report holds no eigenvalues"
    probe = "product" if kind == "spectrum" else kind
    if getattr(report, probe) is not None:
        return None
    return report.left_out.get(probe, f"{probe} did not run")


def require_matplotlib() -> Any:
    """The module ``matplotlib.figure``, or an ImportError that says how to get it."""
    try:
        from matplotlib import figure
    except ImportError as error:
        raise ImportError(f"a figure needs matplotlib: {INSTALL}") from error
    return figure
