"""Figures of the cohort: all subjects at a glance, sharpness of an image, quality of a preparation."""

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.ticker import LogLocator, NullLocator

from helpers import drawing, grid


def contact_sheet(images: dict[tuple[str, str], np.ndarray], vmax: float):
    """Many small images with one look-up table: a row for each first key, a column for each second.

    Parameters
    ----------
    images : dict
        (row, column) -> ndarray, 2D, upright.
    vmax : float
        Value shown as white.
    """
    rows, columns = (list(dict.fromkeys(key[part] for key in images)) for part in (0, 1))
    fig, axes = plt.subplots(
        len(rows),
        len(columns),
        figsize=(1.55 * len(columns), 1.75 * len(rows)),
        squeeze=False,
        layout="constrained",
    )
    for (row, column), image in images.items():
        ax = axes[rows.index(row), columns.index(column)]
        ax.imshow(image, cmap="gray", vmin=0, vmax=vmax, interpolation="nearest")
        ax.set(xticks=[], yticks=[])
        if row == rows[0]:
            ax.set_title(column, fontsize=10)
        if column == columns[0]:
            ax.set_ylabel(row, fontsize=10)
    return fig, axes


def sharpness(examined: dict, drop: float):
    """Power along each axis against that along the others: where it falls below the dotted line, slices were
    interpolated.

    Parameters
    ----------
    examined : dict
        Title -> `helpers.cohort.examination.Sharpness`.
    drop : float
        Where that line lies.
    """
    fig, axes = plt.subplots(
        2,
        len(examined),
        figsize=(3.6 * len(examined) + 0.4, 5.2),
        squeeze=False,
        sharex=True,
        sharey="row",
        layout="constrained",
    )
    for (above, below), (title, measured) in zip(axes.T, examined.items(), strict=True):
        for number, (direction, colour, style) in enumerate(
            zip(
                measured.directions,
                (drawing.BLUE, drawing.VERMILLION, drawing.GREEN),
                ("-", "--", ":"),
                strict=True,
            )
        ):
            look = {"color": colour, "ls": style, "lw": 2}
            # Each contrast has units of its own: what is compared is one axis with another.
            above.semilogy(measured.frequency, measured.power[number] / np.nanmax(measured.power), **look)
            below.semilogy(measured.frequency, measured.ratio[number], label=direction, **look)
            if measured.thick[number]:
                nyquist = 0.5 / measured.thickness_mm[number]
                below.axvline(nyquist, color=colour, lw=1)
                side = (
                    {"ha": "left", "x": nyquist + 0.01}
                    if nyquist < 0.25
                    else {"ha": "right", "x": nyquist - 0.01}
                )
                below.text(
                    y=0.96,
                    s=f"slices {measured.thickness_mm[number]:.1f} mm apart",
                    color=colour,
                    va="top",
                    fontsize=9,
                    transform=below.get_xaxis_transform(),
                    **side,
                )
        below.axhline(drop, color="0.35", ls=":", lw=1.2)
        below.axhline(1, color="0.85", lw=1, zorder=0)
        above.set_title(title, fontsize=11)
        below.set_xlabel("spatial frequency (cycles/mm)")
        for ax in (above, below):
            ax.spines[["top", "right"]].set_visible(False)
    axes[0, 0].set_ylabel("power density (of the largest)")
    axes[1, 0].set_ylabel("over that of the other axes")
    ratios = np.concatenate([measured.ratio.ravel() for measured in examined.values()])
    # Room for the words above the curves.
    axes[1, 0].set_ylim(min(0.8 * np.nanmin(ratios), 0.2), 3.5 * np.nanmax(ratios))
    axes[1, 0].yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes[1, 0].yaxis.set_major_formatter("{x:g}")
    axes[1, 0].yaxis.set_minor_locator(NullLocator())
    handles, names = axes[1, 0].get_legend_handles_labels()
    fig.legend(handles, names, loc="outside lower center", ncols=3, frameon=False)
    return fig, axes


def quality_sheet(
    images: dict[str, np.ndarray],
    outlines: dict[str, np.ndarray],
    centre: tuple[int, int, int] = (95, 115, 90),
):
    """Prepared images in three planes with outlines on them: does the brain lie where it should, and what was
    taken for it?

    Parameters
    ----------
    images : dict
        Contrast -> ndarray, shape (X, Y, Z), stored LPS, on one grid.
    outlines : dict
        Label -> ndarray, shape (X, Y, Z), bool: at most two.
    centre : tuple of three int
        Indices of the sagittal, coronal and axial slice.
    """
    planes = dict(zip(("sagittal", "coronal", "axial"), centre, strict=True))
    fig, axes = plt.subplots(
        len(images), 3, figsize=(9, 3 * len(images) + 0.4), squeeze=False, layout="constrained"
    )
    colours = dict(zip(outlines, (drawing.ORANGE, "#56B4E9"), strict=False))
    for row, (contrast, image) in zip(axes, images.items(), strict=True):
        positive = image[image > 0]
        vmax = np.percentile(positive, 99.5) if positive.size else 1
        for ax, (plane, index) in zip(row, planes.items(), strict=True):
            ax.imshow(
                grid.upright(image, plane, index), cmap="gray", vmin=0, vmax=vmax, interpolation="nearest"
            )
            for label, outline in outlines.items():
                shape = grid.upright(outline, plane, index)
                if shape.any():
                    ax.contour(shape, [0.5], colors=colours[label], linewidths=0.9)
            ax.set_title(f"{contrast}, {plane}", fontsize=10)
            ax.axis("off")
    handles = [plt.Line2D([], [], color=colour, lw=2) for colour in colours.values()]
    fig.legend(handles, list(colours), loc="outside lower center", ncols=len(colours), frameon=False)
    return fig, axes
