"""Data sets with fixed splits.

The digits come with scikit-learn. The other data sets are read below the folder that ``PYROVAE_DATA`` names, or
downloaded once into pyrovae's folder of the operating system's cache. Their contents are checked against a pinned
sha256. To add a data set: add its arrays to the table in ``sources``, and write a function that returns them in
a ``Split``.
"""

from pyrovae.datasets.cells import CellCounts, cell_counts
from pyrovae.datasets.images import LabelledImages, binarize, binarized_mnist, digits, frey_faces, mnist
from pyrovae.datasets.splits import Split

__all__ = [
    "CellCounts",
    "LabelledImages",
    "Split",
    "binarize",
    "binarized_mnist",
    "cell_counts",
    "digits",
    "frey_faces",
    "mnist",
]
