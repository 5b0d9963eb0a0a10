"""Figures of what is measured in harmonized images: agreement of volumes, lesions that are missed."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from scipy import ndimage

from helpers import drawing
from helpers.analysis.tables import in_papers_order
from helpers.study import GROUND_TRUTH

#: Volumes of the table of downstream measures that are drawn -> what they are called.
VOLUMES = {"lesion_ml": "lesions", "grey_ml": "grey matter", "ventricles_ml": "lateral ventricles"}


@drawing.small_print()
def agreement_figure(table: pd.DataFrame):
    """Bland and Altman's plot of lesion, grey matter and ventricle volume, one colour per resolution.

    Harmonized images against the 3D ones: points are subjects in experiments; lines are the mean differences,
    and bands reach to the limits of agreement, bias and 1.96 standard deviations.

    Parameters
    ----------
    table : DataFrame
        As `helpers.pipeline.scoring.all_downstream` gives it.

    Returns
    -------
    fig, axes, DataFrame
        The last is what was drawn.
    """
    from helpers.analysis import downstream

    chosen = (table.reference == "3D") & (table.arm == "harmonized") & (table.experiment != GROUND_TRUTH)
    drawn = table[chosen & table.measure.isin(VOLUMES)]
    labels = in_papers_order(drawn.resolution)
    colours = dict(zip(labels, plt.colormaps["plasma"](np.linspace(0.1, 0.75, len(labels))), strict=True))
    fig, axes = drawing.panels(1, len(VOLUMES), height=2.7)
    for ax, (measure, name) in zip(axes.flat, VOLUMES.items(), strict=True):
        ax.axhline(0, color="0.6", lw=0.8, zorder=1)
        for label in labels:
            rows = drawn[(drawn.measure == measure) & (drawn.resolution == label)]
            pair = rows[["expected", "value"]].to_numpy(float)
            bias, low, high = downstream.bland_altman(*pair.T)
            ax.scatter(pair.mean(axis=1), pair[:, 1] - pair[:, 0], s=9, color=colours[label], label=label)
            ax.axhline(bias, color=colours[label], lw=1.2)
            if np.isfinite(low):
                ax.axhspan(low, high, color=colours[label], alpha=0.12, lw=0)
        ax.set_title(name)
        ax.set_xlabel("mean of both (ml)")
    axes.flat[0].set_ylabel("thick slices - 3D (ml)")
    drawing.legend_below(fig, *axes.flat[0].get_legend_handles_labels(), len(labels))
    return fig, axes, drawn


def lesion_figure(panels: list[dict]):
    """The same slice of harmonized FLAIR images from 3D scans and from thicker and thicker slices, with the
    outlines of lesions: green what was found, orange and with an arrow what was missed.

    Parameters
    ----------
    panels : list of dict
        As `helpers.analysis.downstream.lesion_panels` gives them.

    Returns
    -------
    fig, axes, DataFrame
        The last is what the titles say.
    """
    fig, axes = plt.subplots(
        1, len(panels), figsize=(3.1 * len(panels), 4.3), squeeze=False, layout="constrained"
    )
    for ax, panel in zip(axes.flat, panels, strict=True):
        ax.imshow(panel["image"], cmap="gray", vmin=0, vmax=panel["white"], interpolation="nearest")
        for name, colour in (("found", drawing.LIGHT_GREEN), ("missed", drawing.ORANGE)):
            if panel[name].any():
                ax.contour(panel[name], [0.5], colors=[colour], linewidths=1.1)
        if panel["missed"].any():
            pieces, _ = ndimage.label(panel["missed"])
            largest = pieces == 1 + np.argmax(np.bincount(pieces.ravel())[1:])
            y, x = (float(part.mean()) for part in np.nonzero(largest))
            side = 1 if x < panel["image"].shape[1] / 2 else -1
            ax.annotate(
                "missed",
                (x + 5 * side, y - 4),
                (x + 38 * side, y - 30),
                color=drawing.ORANGE,
                fontsize=11,
                ha="center",
                bbox={"facecolor": "black", "pad": 1.5, "lw": 0},
                arrowprops={"arrowstyle": "->", "color": drawing.ORANGE},
            )
        ax.set_title(panel["title"], fontsize=12)
        ax.text(0.5, -0.02, panel["says"], transform=ax.transAxes, ha="center", va="top", fontsize=11)
        ax.axis("off")
    return fig, axes, pd.DataFrame([{name: panel[name] for name in ("title", "says")} for panel in panels])
