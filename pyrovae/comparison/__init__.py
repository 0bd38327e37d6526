"""Who explains the data better: held-out rows by ``compare``, training sets by ``compare_evidence``, families by ``swap``."""

from pyrovae.comparison.evidences import compare_evidence
from pyrovae.comparison.predictive import compare
from pyrovae.comparison.swapping import Swapped, swap

__all__ = ["Swapped", "compare", "compare_evidence", "swap"]
