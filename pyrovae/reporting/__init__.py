"""report() writes one HTML file on a model and rows: log P(x), its checks, comparisons, figures, odd rows, and how to repeat it."""

from pyrovae.reporting.writing import report

__all__ = ["report"]
