"""Plots as pictures, for sheets and report pages."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

from PIL import Image

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def figure_image(figure: Figure) -> Image.Image:
    """A figure of matplotlib as a picture, at 110 pixels an inch."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    return Image.open(buffer)
