"""What the figures share: colours and markers of the contrasts, letters for print, slices side by side.

Colours are those of Okabe and Ito, which people with colour-vision deficiency can tell apart
(https://jfly.uni-koeln.de/color/); each series has a marker of its own as well.
"""

import contextlib

import matplotlib.pyplot as plt
import numpy as np

BLUE, VERMILLION, GREEN, ORANGE = "#0072B2", "#D55E00", "#009E73", "#E69F00"
PURPLE = "#CC79A7"
GREY = "0.72"
LIGHT_GREEN = "#5DE0A5"  # on a grey image
COLOURS = {"T1w": BLUE, "T2w": VERMILLION, "FLAIR": GREEN}
MARKERS = {"T1w": "o", "T2w": "s", "FLAIR": "^"}

TIGHT = {"handlelength": 1.6, "columnspacing": 1.2, "handletextpad": 0.5}  # of a legend

#: Look of the figures about scores, for a journal's page: letters of 8 points at the width that they are
#: drawn at.
_SMALL_PRINT = {
    "font.size": 8,
    "axes.titlesize": 9,
    "axes.linewidth": 0.7,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.fontsize": 8,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "axes.labelsize": 8,
}


@contextlib.contextmanager
def small_print():
    # Not rc_context, which puts back all settings: a notebook's first figure makes its backend interactive,
    # and that must stay so.
    before = {name: plt.rcParams[name] for name in _SMALL_PRINT}
    plt.rcParams.update(_SMALL_PRINT)
    try:
        yield
    finally:
        plt.rcParams.update(before)


def slices(
    images: dict[str, np.ndarray],
    vmax: float,
    columns: int,
    unit: str = "",
    cmap: str = "gray",
):
    """Brain slices side by side with one look-up table.

    Parameters
    ----------
    images : dict
        Title -> ndarray, shape (rows, columns), as `upright` gives it.
    vmax : float
        Value shown as the upper end of the look-up table, for all images; the lower one is 0.
    columns : int
        Panels per row, if there are as many.
    unit : str
        Label of the colour bar.
    """
    columns = min(columns, len(images))
    rows = -(-len(images) // columns)
    fig, axes = plt.subplots(
        rows, columns, figsize=(2.6 * columns + 0.6, 3.1 * rows), squeeze=False, layout="constrained"
    )
    for ax in axes.flat:
        ax.axis("off")
    for ax, (title, image) in zip(axes.flat, images.items(), strict=False):
        picture = ax.imshow(image, cmap=cmap, vmin=0, vmax=vmax, interpolation="nearest")
        ax.set_title(title, fontsize=10)
    fig.colorbar(picture, ax=axes, label=unit, shrink=0.8, aspect=40)
    return fig, axes


def legend_below(fig, handles: list, names: list[str], ncols: int) -> None:
    """The legend of a whole figure, under its panels."""
    fig.legend(handles, names, loc="outside lower center", ncols=ncols, frameon=False, **TIGHT)


def panels(rows: int, columns: int, height: float, **shared):
    """Panels of a figure for a journal's page: two side by side are as wide as its column (12 cm), three or
    four as the page."""
    width = {1: 3.4, 2: 4.8}.get(columns, 7.0)
    return plt.subplots(
        rows, columns, figsize=(width, height * rows), squeeze=False, layout="constrained", **shared
    )
