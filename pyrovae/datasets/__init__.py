"""Data to try things on, in splits that are the same for everybody.

scikit-learn's digits come with it. The others are read below the folder that ``PYROVAE_DATA`` names, or
else downloaded once into pyrovae's folder of the operating system's cache. Either way, what they hold is
checked against a pinned sha256 before anybody fits anything to it. To add a data set: its arrays in the
table of ``sources``, and a function that returns them in a ``Split``.
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
