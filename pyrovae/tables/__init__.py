"""Tables: the columns of a pandas frame as numbers that a likelihood can score, and back in the frame's own types."""

from pyrovae.tables.columns import Column
from pyrovae.tables.table import Table

__all__ = ["Column", "Table"]
