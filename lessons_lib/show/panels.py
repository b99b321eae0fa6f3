"""Matrices as small pictures side by side."""

import numpy as np

from .picture import picture
from .style import GREY, figure


def panels(images, alt, *, rows=1, height=2.4):
    """Draw matrices side by side, each on a scale of its own; a `Picture`.

    One without negative numbers is grey, the darker the larger, and white at 0; any other is blue below 0, white at 0
    and red above.

    Args:
        images: a list of (title, matrix), row by row; None leaves a place empty.
        alt: the alternative text.
        rows: of pictures; it divides their number.
        height: of the figure, in inches.

    Raises:
        ValueError: `images` is empty or does not fill the rows, or one is no matrix.
    """
    if not images or len(images) % rows:
        raise ValueError(f"{len(images)} images in rows={rows}: rows that are all full are needed")
    fig, axes = figure(9.5, height, len(images) // rows, rows, squeeze=False)
    for ax, image in zip(axes.flat, images, strict=True):
        if image is None:
            ax.set_visible(False)
            continue
        title, matrix = image[0], np.asarray(image[1], dtype=float)
        if matrix.ndim != 2:
            raise ValueError(f"image {title!r} of shape {matrix.shape}: a matrix is needed")
        top = np.abs(matrix).max() or 1
        scale = {"cmap": "RdBu_r", "vmin": -top} if matrix.min() < 0 else {"cmap": "gray_r", "vmin": 0}
        ax.imshow(matrix, vmax=top, **scale)
        ax.set(xticks=[], yticks=[], title=title)
        ax.spines[:].set(visible=True, color=GREY)
        ax.grid(False)
    return picture(fig, alt)
