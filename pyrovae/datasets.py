"""Data to try things on: scikit-learn's digits, which need no download, and what `PYROVAE_DATA` holds."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from pyrovae import checks, noise


class Split(NamedTuple):
    """Rows to fit on, rows to stop by, and rows to score; each of shape (rows, columns), float32."""

    train: Tensor
    validation: Tensor
    test: Tensor


def digits(kind: str = "binary", seed: int = 0) -> Split:
    """scikit-learn's 1797 digits of 8 × 8 pixels with levels 0 to 16; 1197, 200 and 400 rows.

    Args:
        kind: "binary", level ≥ 8 as 0 or 1, a mass; or "continuous", level + u with u uniform on
            [0, 1), a density: dequantised, so that no column is a set of points.
        seed: of the split into rows and of the dequantisation; fixed, because both change the numbers.

    Example:
        >>> digits("binary").train.shape
        torch.Size([1197, 64])
    """
    from sklearn.datasets import load_digits

    checks.choice("kind", kind, ("binary", "continuous"))
    levels = torch.from_numpy(load_digits().data.astype(np.float32))  # (1797, 64)
    generator = torch.Generator().manual_seed(noise.derive(seed, noise.Stream.DATA))
    order = torch.randperm(len(levels), generator=generator)
    if kind == "binary":
        x = (levels >= 8).float()
    else:
        x = levels + torch.rand(levels.shape, generator=generator)
    x = x[order]
    return Split(x[:1197], x[1197:1397], x[1397:])


def binarized_mnist() -> Split:
    """Larochelle's fixed binarization of MNIST: 50 000, 10 000 and 10 000 rows of 784 zeros and ones, a mass.

    Fixed and random binarization differ by about 2 nats: never put them into one table.

    Read from ``$PYROVAE_DATA/static_mnist/binarized_mnist_packed.npz``: arrays train, valid and test,
    eight pixels a byte.

    Raises:
        FileNotFoundError: the environment variable is not set, or the file is not there.

    Larochelle and Murray (2011).
    """
    packed = np.load(_file("static_mnist/binarized_mnist_packed.npz"))
    names = ("train", "valid", "test")
    return Split(
        *(torch.from_numpy(np.unpackbits(packed[name], axis=1).astype(np.float32)) for name in names)
    )


def _file(name: str) -> Path:
    """A file below the folder that ``PYROVAE_DATA`` names."""
    folder = os.environ.get("PYROVAE_DATA")
    if folder is None or not (path := Path(folder) / name).is_file():
        where = "PYROVAE_DATA is not set" if folder is None else f"nothing at {Path(folder) / name}"
        raise FileNotFoundError(
            f"PYROVAE_DATA: expected the folder that holds {name}, got none ({where}). "
            "Put the file there and set the environment variable to the folder."
        )
    return path
