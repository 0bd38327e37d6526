"""Data to try things on: scikit-learn's handwritten digits, which need no download."""

from __future__ import annotations

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
