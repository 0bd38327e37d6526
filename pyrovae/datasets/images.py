"""Images, one a row: digits, MNIST grey and binarized, and Frey faces."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pyrovae import arguments
from pyrovae.datasets.sources import contents
from pyrovae.datasets.splits import Split, dequantised, generator_of, split
from pyrovae.entries import within
from pyrovae.rows import as_tensor


class LabelledImages(NamedTuple):
    """Rows to fit on and rows to score, each of shape (rows, pixels), and their classes, (rows,), int64."""

    train: Tensor
    test: Tensor
    train_labels: Tensor
    test_labels: Tensor


def digits(kind: str = "binary", seed: int = 0) -> Split:
    """Return scikit-learn's 1797 digits of 8 × 8 pixels with levels 0 to 16; 1197, 200 and 400 rows, float32.

    Args:
        kind: "binary", level ≥ 8 as 0 or 1, a mass; "levels", the whole numbers 0 to 16, a mass; or
            "continuous", level + u with u uniform on [0, 1), a density. Without u, a density fitted to whole
            numbers would be unbounded.
        seed: of the split into rows and of the dequantisation. The default is fixed, because the seed changes the
            numbers.

    Example:
        >>> digits("binary").train.shape
        torch.Size([1197, 64])
    """
    from sklearn.datasets import load_digits

    arguments.choice("kind", kind, ("binary", "levels", "continuous"))
    arguments.integer("seed", seed, minimum=0)
    levels = torch.tensor(load_digits().data, dtype=torch.float32)  # (1797, 64)
    generator = generator_of(seed)
    order = torch.randperm(len(levels), generator=generator)
    if kind == "binary":
        levels = (levels >= 8).float()
    elif kind == "continuous":
        levels = dequantised(levels, generator)
    return split(levels[order], validation=200, test=400)


def mnist(download: bool = True) -> LabelledImages:
    """Return MNIST as published: 60 000 and 10 000 rows of 784 grey levels 0 to 255, float32, with labels.

    The levels are whole numbers, a mass. ``binarize`` draws zeros and ones from them. ``binarized_mnist`` has
    Larochelle's draw.

    Args:
        download: download missing files; False raises ``FileNotFoundError`` instead.

    Raises:
        FileNotFoundError: a file is missing and cannot be downloaded.
        ValueError: a file has other contents.

    LeCun, Bottou, Bengio and Haffner (1998).
    """
    arguments.boolean("download", download)
    read = functools.partial(contents, download=download)
    levels = (torch.tensor(read(f"mnist {part}"), dtype=torch.float32) for part in ("train", "test"))
    labels = (torch.tensor(read(f"mnist {part} labels")).long().flatten() for part in ("train", "test"))
    return LabelledImages(*levels, *labels)


def binarized_mnist(download: bool = True) -> Split:
    """Return Larochelle's fixed binarization of MNIST: 50 000, 10 000 and 10 000 rows of 784 zeros and ones, a mass.

    Fixed and random binarization differ by about 2 nats. Scores under one are not comparable with scores under
    the other.

    The published test rows are sorted by digit, and the first thousand are nearly all zeros. The log P(x) of the
    first few therefore says little about the rest. Here the test rows come in a fixed random order.

    Args:
        download: download missing files; False raises ``FileNotFoundError`` instead.

    Raises:
        FileNotFoundError: a file is missing and cannot be downloaded.
        ValueError: a file has other contents.

    Larochelle and Murray (2011).
    """
    arguments.boolean("download", download)
    parts = (contents(f"binarized_mnist {part}", download) for part in ("train", "valid", "test"))
    train, validation, test = (torch.tensor(part, dtype=torch.float32) for part in parts)
    return Split(train, validation, test[torch.randperm(len(test), generator=generator_of(0))])


def binarize(levels: Any, highest: float = 255.0, seed: int = 0) -> Tensor:
    """Return zeros and ones drawn from grey levels: each entry is 1 with probability level / ``highest``.

    This is one fixed draw, for a test set of a recorded seed. ``fit(binarize=True)`` draws anew at every step.

    Args:
        levels: rows of grey levels in [0, highest], shape (rows, columns).
        highest: the level that is always 1.
        seed: of the draw; the same seed gives the same zeros and ones.

    Returns:
        Zeros and ones of the levels' shape, a mass.

    Raises:
        TypeError, ValueError: rows are not numbers, or levels are outside [0, highest].

    Salakhutdinov and Murray (2008).

    Example:
        >>> binarize(torch.tensor([[0.0, 255.0, 0.0]]))
        tensor([[0., 1., 0.]])
    """
    arguments.positive("highest", highest)
    x = as_tensor(levels, dtype=None, argument="levels")
    within("levels", x, 0, highest, "Pass the highest level that can occur as highest=.")
    uniform = torch.rand(x.shape, generator=generator_of(seed), dtype=x.dtype)
    return (uniform.to(x.device) < x / highest).to(x.dtype)


def frey_faces(kind: str = "levels", seed: int = 0, download: bool = True) -> Split:
    """Return 1965 pictures of Brendan Frey's face, 28 × 20 pixels; 1565, 200 and 200 rows of 560, float32.

    The pictures are frames of one video, and the split is random. Consecutive frames look alike, so most test
    rows have similar training rows. log P(x) measures how well these frames are known, not faces in general.

    Args:
        kind: "levels", the whole numbers 0 to 255, a mass; or "continuous", level + u with u uniform on
            [0, 1), a density. The units are the same; the range of the second is 0 to 256.
        seed: of the split into rows and of the dequantisation. The default is fixed, because the seed changes the
            numbers.
        download: download a missing file; False raises ``FileNotFoundError`` instead.

    Raises:
        FileNotFoundError: the file is missing and cannot be downloaded.
        ValueError: the file has other contents, or kind is neither of the two.

    Frey, Colmenarez and Huang (1998); Roweis published them.
    """
    arguments.boolean("download", download)
    arguments.integer("seed", seed, minimum=0)
    arguments.choice("kind", kind, ("levels", "continuous"))
    levels = torch.tensor(contents("frey_faces", download), dtype=torch.float32)  # (1965, 560)
    generator = generator_of(seed)
    order = torch.randperm(len(levels), generator=generator)
    if kind == "continuous":
        levels = dequantised(levels, generator)
    return split(levels[order], validation=200, test=200)
