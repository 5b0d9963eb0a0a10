"""Figures of a protocol survey and of the advice on a protocol."""

import textwrap

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from helpers import drawing
from helpers.study import CONTRASTS


def figure_1(histogram: pd.DataFrame, collection: str):
    """Figure 1: how often each slice thickness occurs, per contrast; 2D in colour, 3D pale and hatched on
    top.

    Parameters
    ----------
    histogram : DataFrame
        As `helpers.protocol.survey.thickness_histogram` gives it; bins are as wide as the smallest step
        between them.
    collection : str
        What was surveyed, for the title. A simulated collection has to say so here.

    Returns
    -------
    fig, axes, DataFrame
        The last is what was drawn.
    """
    centres = np.sort(histogram["thickness_mm"].unique())
    width = np.diff(centres).min() if len(centres) > 1 else 0.5
    fig, axes = plt.subplots(
        1, len(CONTRASTS), figsize=(10.5, 3.5), sharex=True, sharey=True, layout="constrained"
    )
    for ax, contrast in zip(axes, CONTRASTS, strict=True):
        rows = histogram[histogram["contrast"] == contrast].pivot_table(
            "acquisitions", "thickness_mm", "dimension", fill_value=0
        )
        rows = rows.reindex(index=centres, columns=["2D", "3D"], fill_value=0)
        look = {
            "color": drawing.COLOURS[contrast],
            "width": 0.86 * width,
            "edgecolor": drawing.COLOURS[contrast],
        }
        ax.bar(centres, rows["2D"], label="2D", **look)
        ax.bar(
            centres, rows["3D"], bottom=rows["2D"], label="3D", **look | {"color": "white", "hatch": "////"}
        )
        ax.set_title(f"{contrast}: {rows['2D'].sum():,.0f} 2D, {rows['3D'].sum():,.0f} 3D", fontsize=11)
        ax.set_xlabel("slice thickness (mm)")
        ax.grid(axis="y", color="0.92")
        ax.set_axisbelow(True)
        ax.spines[["top", "right"]].set_visible(False)
        ax.legend(frameon=False)
    axes[0].set_ylabel("acquisitions")
    fig.suptitle(collection, fontsize=11)
    return fig, axes, histogram


def advice(
    protocols: pd.DataFrame,
    run: dict[str, np.ndarray],
    minutes: float,
    label: str,
    note: str,
    comparable: bool = True,
):
    """Expected score over thickness and gap for each orientation, and against scan time: what the advisor
    chooses from.

    The surfaces end where the resolutions end that were run (dots). Stars are the best protocols that fit
    into the given minutes: one for all, or one for each orientation where orientations cannot be compared.

    Parameters
    ----------
    protocols : DataFrame
        All candidates: ``orientation``, ``thickness_mm``, ``gap_mm``, ``minutes``, ``expected``, ``low``,
        ``high``.
    run : dict
        Orientation -> ndarray, shape (n, 2): thickness and gap in mm of the resolutions that were run.
    minutes : float
        Scan time that is given.
    label : str
        Of the score's axis.
    note : str
        What the surface stands on, for the title: `helpers.protocol.advisor.Surface.note`.
    comparable : bool
        Whether scores of different orientations may be compared.

    Returns
    -------
    fig, axes, DataFrame
        The last is what was drawn.
    """
    fits = protocols[protocols["minutes"] <= minutes].sort_values(
        ["expected", "minutes"], ascending=[False, True]
    )
    best = fits.groupby("orientation").head(1) if not comparable else fits.head(1)
    size, widths = (3.1 * len(run) + 4.4, 4.4), [1] * len(run) + [1.35]
    fig, axes = plt.subplots(1, len(run) + 1, figsize=size, layout="constrained", width_ratios=widths)
    levels = np.linspace(protocols["expected"].min(), protocols["expected"].max(), 13)
    looks = dict(
        zip(
            run,
            zip((drawing.BLUE, drawing.VERMILLION, drawing.GREEN), ("o", "s", "^"), strict=True),
            strict=False,
        )
    )
    for ax, (name, points) in zip(axes, run.items(), strict=False):
        rows = protocols[protocols["orientation"] == name]
        surface = ax.tricontourf(
            rows["thickness_mm"],
            rows["gap_mm"],
            rows["expected"],
            levels=levels,
            cmap="cividis",
            extend="both",
        )
        ax.plot(*points.T, ls="", marker="o", ms=5, mfc="white", mec="0.2", clip_on=False, zorder=3)
        # One by one: an empty series that is not clipped has no extent, which upsets the layout.
        for chosen in best[best["orientation"] == name].itertuples():
            ax.plot(
                chosen.thickness_mm,
                chosen.gap_mm,
                ls="",
                marker="*",
                ms=17,
                mfc=drawing.ORANGE,
                mec="black",
                clip_on=False,
                zorder=4,
            )
        ax.set_title(name, fontsize=11)
        ax.set_xlabel("slice thickness (mm)")
        ax.spines[["top", "right"]].set_visible(False)
    axes[0].set_ylabel("gap (mm)")
    fig.colorbar(surface, ax=axes[:-1], label=label, format="%.3g", aspect=30, shrink=0.9)
    for name, (colour, marker) in looks.items():
        rows = protocols[protocols["orientation"] == name]
        axes[-1].plot(
            rows["minutes"], rows["expected"], ls="", marker=marker, ms=4, color=colour, alpha=0.6, label=name
        )
    if len(best):
        spread = [best["expected"] - best["low"], best["high"] - best["expected"]]
        axes[-1].errorbar(
            best["minutes"], best["expected"], spread, color="0.3", lw=1.2, capsize=3, ls="", zorder=3
        )
        star = {"ls": "", "marker": "*", "ms": 12, "mfc": drawing.ORANGE, "mec": "black"}
        axes[-1].plot(best["minutes"], best["expected"], **star, zorder=4, label=f"best in {minutes:g} min")
    else:
        axes[-1].set_title(f"nothing fits into {minutes:g} min", fontsize=11)
    axes[-1].axvline(minutes, color="0.35", ls=":", lw=1.2)
    axes[-1].set_xlabel("scan time of all contrasts (min)")
    axes[-1].set_ylabel(label)
    axes[-1].grid(color="0.92")
    axes[-1].spines[["top", "right"]].set_visible(False)
    handles, names = axes[-1].get_legend_handles_labels()
    handles.insert(0, plt.Line2D([], [], ls="", marker="o", ms=5, mfc="white", mec="0.2"))
    fig.suptitle(textwrap.fill(note, 150), fontsize=9)
    fig.legend(
        handles,
        ["was run", *names],
        loc="outside lower center",
        ncols=len(names) + 1,
        frameon=False,
        fontsize=9,
    )
    return fig, axes, protocols
