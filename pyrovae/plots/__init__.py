"""Figures of what the library returns. Each function draws into ``ax``, or into a new figure, and returns the axes.

Every figure is made in ``STYLE``, in colours that the colour-blind can tell apart. matplotlib's own settings stay as they
are. ``docs/figures.md`` shows all figures.
"""

from pyrovae.plots.columns import column_distances, imputation, predictive
from pyrovae.plots.drawing import COLOURS, STYLE
from pyrovae.plots.images import image_grid, reconstructions
from pyrovae.plots.models import compare, diagnosis, latent
from pyrovae.plots.scores import check, convergence, log_evidence, pareto_k
from pyrovae.plots.training import training_curves

__all__ = [
    "COLOURS",
    "STYLE",
    "check",
    "column_distances",
    "compare",
    "convergence",
    "diagnosis",
    "image_grid",
    "imputation",
    "latent",
    "log_evidence",
    "pareto_k",
    "predictive",
    "reconstructions",
    "training_curves",
]
