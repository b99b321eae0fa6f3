"""A finished figure, as lessons display it: an image that says in words what it shows."""

import base64
import html
import io

from matplotlib.figure import Figure
from PIL import Image

from .style import PAGE_DPI

_PIXEL_RATIO = 2  # of the PNG to its size on the page: sharp on a high-density screen


class Picture:
    """A finished matplotlib `Figure` that displays itself as an image with an alternative text.

    Args:
        figure: the `Figure`.
        alt: a line that says what the picture shows; by default the titles in it. It is also the plain-text form, so
            nothing belongs in it that differs from machine to machine.

    Raises:
        TypeError: `figure` is something else.
    """

    def __init__(self, figure, alt=""):
        if not isinstance(figure, Figure):
            raise TypeError(f"figure is a {type(figure).__name__}: a matplotlib.figure.Figure is needed")
        titles = [" ".join(ax.get_title(loc).split()) for ax in figure.axes for loc in ("left", "center")]
        self.figure, self.alt = figure, alt or "; ".join(filter(None, titles)) or "figure"

    def png(self):
        """Return the picture as the bytes of a PNG, with `_PIXEL_RATIO` pixels for each pixel of the page."""
        raw, out = io.BytesIO(), io.BytesIO()
        self.figure.savefig(raw, dpi=_PIXEL_RATIO * PAGE_DPI, pil_kwargs={"compress_level": 0})
        image = Image.open(raw).convert("RGB")
        # A quarter of the bytes of full colour (lessons carry their pictures); the background stays exact.
        indexed = image.quantize(255, method=Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE)
        colours, back = indexed.getpalette(), 3 * indexed.getpixel((0, 0))
        colours[back : back + 3] = image.getpixel((0, 0))
        indexed.putpalette(colours)
        indexed.save(out, "png")
        return out.getvalue()

    def html(self):
        """Return the picture as an HTML `img` that holds the PNG.

        JupyterLab and nbconvert show a plain PNG without its alternative text; an HTML image keeps it. A narrow page
        shrinks it to nine tenths, where letters of 10 points are 9 points high, and then lets the reader scroll.
        The alternative text ends the first line, which JupyterLab shows where an output is folded.
        """
        width, height = self.size
        source = f"data:image/png;base64,{base64.b64encode(self.png()).decode()}"
        fit = f"max-width:100%;min-width:{round(0.9 * width)}px;height:auto"
        return f'<img alt="{html.escape(self.alt)}"\nwidth="{width}" height="{height}" style="{fit}" src="{source}">'

    def save(self, path):
        """Write the picture to the file `path`, whose ending gives the format: .png, .svg or .pdf."""
        self.figure.savefig(path, dpi=_PIXEL_RATIO * PAGE_DPI)

    @property
    def size(self):
        """(width, height) on the page in pixels."""
        return tuple(round(inches * PAGE_DPI) for inches in self.figure.get_size_inches())

    def _repr_mimebundle_(self, include=None, exclude=None):
        return {"text/plain": repr(self), "text/html": self.html()}

    def __repr__(self):
        return f"<Picture: {self.alt}>"


picture = Picture  # how lessons spell it: `show.picture(fig)`
