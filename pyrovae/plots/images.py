"""Figures of rows that are images."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from pyrovae import arguments
from pyrovae.plots import drawing
from pyrovae.refusals import bad_type, bad_value, shown
from pyrovae.rows import as_tensor

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def image_grid(
    rows: Any,
    shape: tuple[int, int],
    columns: int = 10,
    *,
    limits: tuple[float, float] | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Draw rows as grey images in a grid.

    Args:
        rows: shape (rows, height · width).
        shape: (height, width) of one image, in pixels.
        columns: images in a line.
        limits: the values drawn white and black; None takes the extremes.
        ax: as in ``training_curves``.
    """
    return _grid({"rows": rows}, shape, columns, limits, ax)


def reconstructions(
    x: Any,
    reconstructed: Any,
    shape: tuple[int, int],
    columns: int = 10,
    *,
    limits: tuple[float, float] | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Draw rows as grey images with their reconstructions below them.

    Args:
        x, reconstructed: as many rows of each, shape (rows, height · width), such as ``x`` and ``vae.reconstruct(x)``.
        shape, columns, limits: as in ``image_grid``.
        ax: as in ``training_curves``.
    """
    kinds = {"x": x, "reconstructed": reconstructed}
    return _grid(kinds, shape, columns, limits, ax, ("row", "reconstruction"))


def _grid(
    kinds: dict[str, Any], shape: Any, columns: int, limits: Any, ax: Axes | None, labels: Any = ()
) -> Axes:
    """Draw a line of each kind of images, and below it the next images; one white pixel between images."""
    images = [_images(argument, rows, shape) for argument, rows in kinds.items()]
    if len(images[-1]) != len(images[0]):
        came = f"{len(images[-1])} for {len(images[0])} rows"
        raise bad_value("reconstructed", "a reconstruction for every row", came, "Pass as many.")
    count, height, width = images[0].shape
    columns = min(arguments.integer("columns", columns), count)
    if limits is not None:
        _check_limits(limits)
    rest = -count % columns
    cells = np.pad(np.stack(images), ((0, 0), (0, rest), (0, 1), (0, 1)), constant_values=np.nan)
    cells = cells.reshape(len(images), -1, columns, height + 1, width + 1).transpose(1, 0, 3, 2, 4)
    canvas = cells.reshape(-1, columns * (width + 1))[:-1, :-1]
    low, high = limits or (np.nanmin(canvas), np.nanmax(canvas))
    with drawing.axes(ax, drawing.WIDTH * canvas.shape[0] / canvas.shape[1] + 0.3) as ax:
        ax.imshow(canvas, cmap="gray_r", interpolation="nearest", vmin=low, vmax=high)
        ax.spines[:].set_visible(False)
        words = [*labels] * len(cells)
        ax.set_yticks([line * (height + 1) + height / 2 - 0.5 for line in range(len(words))], words)
        ax.set_xticks([])
        ax.tick_params(length=0)
    return ax


def _images(argument: str, rows: Any, shape: Any) -> np.ndarray:
    """Return rows as images, (images, height, width)."""
    height, width = arguments.image_shape("shape", shape)
    flat = as_tensor(rows, dtype=None, argument=argument).flatten(1)
    pixels = flat.shape[1:].numel()
    if flat.dim() != 2 or pixels % (height * width):
        expected = f"rows of {height} × {width} pixels, or of several such images"
        raise bad_value(
            argument, expected, f"rows of {pixels} numbers", "Pass the shape of one image as shape."
        )
    return flat.cpu().double().numpy().reshape(-1, height, width)


def _check_limits(limits: tuple[float, float]) -> None:
    if not isinstance(limits, tuple | list) or len(limits) != 2:
        raise bad_type("limits", "a pair (white, black)", shown(limits), "Pass two numbers.")
    white, black = (arguments.number("limits", limit) for limit in limits)
    if white >= black:
        raise bad_value("limits", "white below black", f"{white:g} and {black:g}", "Swap them.")
