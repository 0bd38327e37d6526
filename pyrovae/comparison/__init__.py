"""Comparisons: ``compare`` of held-out rows, ``compare_evidence`` of training sets, ``swap`` of likelihoods."""

from pyrovae.comparison.evidences import compare_evidence
from pyrovae.comparison.predictive import compare
from pyrovae.comparison.swapping import Swapped, swap

__all__ = ["Swapped", "compare", "compare_evidence", "swap"]
