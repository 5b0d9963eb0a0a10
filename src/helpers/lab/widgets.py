"""What the interactive panels are built from: pictures that are redrawn quickly, text, controls.

A panel draws its axes once. What a slider changes is put into lines and images that are there, and the figure
becomes a PNG in a widget: several times as fast as a new figure, and the same in JupyterLab and Voila. The
numbers come from `helpers.lab.live` and `helpers.acquisition.slice_profile`.
"""

import io
from collections.abc import Callable, Iterable

import ipywidgets as w
import matplotlib.pyplot as plt
import numpy as np
from IPython.display import HTML, Image, display
from matplotlib.artist import Artist
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.image import imsave

DPI = 80
_STYLE = (
    "<style>.rm-big {font-size: 18px; line-height: 1.45} .rm-big b {font-size: 21px} .rm-error "
    "{color: #A33B00}</style>"
)


class Picture:
    """A matplotlib figure whose axes are drawn once; what moves in it is drawn anew each time, and shown as a
    PNG.

    Parameters
    ----------
    width, height : float
        In inches of `DPI` pixels.
    layout : callable
        Is given the figure, makes its axes, and returns the artists that will change. The limits of the axes
        must not.
    """

    def __init__(self, width: float, height: float, layout: Callable[[Figure], list[Artist]]):
        figure = Figure(figsize=(width, height), dpi=DPI)
        self.canvas = FigureCanvasAgg(figure)
        self.moving = layout(figure)
        for artist in self.moving:
            artist.set_animated(True)  # is left out of the background
        self.canvas.draw()
        self.background = self.canvas.copy_from_bbox(figure.bbox)
        self.widget = w.Image(
            format="png", layout=w.Layout(width=f"{round(width * DPI)}px", max_width="100%")
        )

    def show(self) -> None:
        """Draw the artists as they are now."""
        self.canvas.restore_region(self.background)
        for artist in self.moving:
            artist.axes.draw_artist(artist)
        buffer = io.BytesIO()
        # Little compression: what is saved in bytes to the next window is lost in time.
        imsave(buffer, np.asarray(self.canvas.buffer_rgba()), format="png", pil_kwargs={"compress_level": 1})
        self.widget.value = buffer.getvalue()


def text(lines: Iterable[str]) -> str:
    return f"{_STYLE}<div class='rm-big'>{'<br>'.join(lines)}</div>"


def show_still(picture: bytes, *words: str) -> None:
    """Show texts and the picture to them, for a page without a kernel."""
    for html in words:
        display(HTML(html))
    if picture:
        display(Image(picture))


def png(figure: Figure, dpi: int) -> bytes:
    """A figure of pyplot as a PNG; closed, so that the notebook does not show it again."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi)
    plt.close(figure)
    return buffer.getvalue()


def slider(description: str, value: float, low: float, high: float, step: float, **look):
    kind, form = (w.IntSlider, "d") if isinstance(step, int) else (w.FloatSlider, ".3g")
    return kind(
        value, min=low, max=high, step=step, description=description, readout_format=form, **(WIDE | look)
    )


def choice(description: str, options, value, **look):
    return w.Dropdown(options=options, value=value, description=description, **(WIDE | look))


def switch(description: str):
    return w.Checkbox(False, description=description, indent=False, layout=w.Layout(width="auto"))


#: How controls look: beside a panel of pictures on top of each other, and in the app, where they also wait
#: for the mouse.
WIDE = {"style": {"description_width": "115px"}, "layout": {"width": "330px"}}
NARROW = {"style": {"description_width": "94px"}, "layout": {"width": "298px"}}
PATIENT = NARROW | {"continuous_update": False}
