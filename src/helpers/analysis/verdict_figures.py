"""Figures of the claims: verdicts of one study at a glance, and of several side by side."""

import itertools
import textwrap
from collections.abc import Mapping

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from helpers import drawing
from helpers.analysis import comparison, judgement
from helpers.analysis.statistics import t_interval
from helpers.study import CONTRASTS

#: Colours of studies that are compared.
_STUDIES = (drawing.BLUE, drawing.VERMILLION, "0.5", drawing.GREEN, drawing.ORANGE)

#: Verdict -> colour and sign.
VERDICTS = {
    judgement.SUPPORTED: (drawing.BLUE, "✓"),
    judgement.CONTRADICTED: (drawing.VERMILLION, "✗"),
    judgement.UNDECIDED: ("0.45", "?"),
}


@drawing.small_print()
def forest(verdicts: pd.DataFrame, comparisons: pd.DataFrame):
    """The claims at a glance: each comparison in units of its margin, the one that decides in colour with its
    95 % interval.

    Claims of which nothing was compared are left out. Grey band: what does not matter. Ratios of variances
    are shown as their logarithm over that of the margin, a spread against a fall as it is, so that there 1 is
    the margin as well. The axis is linear up to the margin and logarithmic beyond.

    Parameters
    ----------
    verdicts, comparisons : DataFrame
        As `helpers.analysis.judgement.verdicts` gives them.

    Returns
    -------
    fig, ax, DataFrame
        The last is what was drawn: the table of comparisons.
    """
    verdicts = verdicts[verdicts.claim.isin(comparisons.dropna(subset=["estimate"]).claim)]
    fig, ax = plt.subplots(figsize=(7, 0.31 * len(verdicts) + 1.05), layout="constrained")
    ax.axvspan(-1, 1, color="0.93", zorder=0)
    ax.axvline(0, color="0.6", lw=0.8, zorder=1)
    edge = 30

    def scaled(rows, column):
        logarithm = np.log(rows[column].clip(lower=1e-9)) / np.log(rows.margin.where(rows.margin > 1, np.e))
        return logarithm.where(rows.unit == "variance ratio", rows[column] / rows.margin).clip(-edge, edge)

    for y, row in enumerate(verdicts.itertuples(index=False)):
        colour, sign = VERDICTS[row.verdict]
        rows = comparisons[comparisons.claim == row.claim].dropna(subset=["estimate"])
        ax.plot(
            scaled(rows, "estimate"), np.full(len(rows), y), ls="", marker="|", ms=6, color="0.55", zorder=2
        )
        deciding = rows[rows.comparison == row.comparison]
        if len(deciding):
            ax.plot(
                np.r_[scaled(deciding, "low"), scaled(deciding, "high")], [y, y], color=colour, lw=2, zorder=3
            )
            ax.plot(scaled(deciding, "estimate"), [y], ls="", marker="o", ms=5, color=colour, zorder=4)
        ax.text(
            1.02, y, f"{sign} {row.verdict}", color=colour, transform=ax.get_yaxis_transform(), va="center"
        )
    ax.set_yticks(range(len(verdicts)), _statements(verdicts), linespacing=0.95)
    ax.set_ylim(len(verdicts) - 0.4, -0.6)
    ax.set_xscale("symlog", linthresh=1, linscale=1)
    ticks = [-30, -10, -3, -1, 0, 1, 3, 10, 30]
    ax.set_xticks(ticks, [f"{tick:g}".replace("-", "−") for tick in ticks])
    ax.minorticks_off()
    ax.set_xlim(-1.15 * edge, 1.15 * edge)
    ax.tick_params(axis="y", length=0)
    ax.set_xlabel(
        "difference in equivalence margins; in grey it is too small to matter\n"
        "dot and line: the comparison that decides, 95 % interval; ticks: the others"
    )
    return fig, ax, comparisons


def _statements(verdicts: pd.DataFrame) -> list[str]:
    return [f"{row.claim}  {textwrap.fill(row.statement, 46)}" for row in verdicts.itertuples(index=False)]


@drawing.small_print()
def comparison_figure(studies: Mapping[str, pd.DataFrame], verdicts: pd.DataFrame):
    """Several studies side by side: above, what each loses as slices get thicker; below, their verdicts.

    Above: mean PSNR inside the brain of experiments 1a to 1c less that at the smallest slice separation, by
    contrast, with a 95 % t interval over subjects. Below: a row per claim on which a study has a verdict, a
    column per study.

    Parameters
    ----------
    studies : mapping of str to DataFrame
        Name -> score table.
    verdicts : DataFrame
        As `helpers.analysis.comparison.side_by_side` gives it.

    Returns
    -------
    fig, axes, DataFrame
        The axes are the three panels above and, if there is a verdict, the one below; the last is what was
        drawn above.
    """
    names = list(studies)
    verdicts = verdicts[(verdicts[names] != comparison.NO_VERDICT).any(axis=1)]
    rows_below = 0.8 + 0.28 * len(verdicts) if len(verdicts) else 0.0  # inches
    fig = plt.figure(figsize=(7, 2.6 + rows_below), layout="constrained")
    heights = [2.4, rows_below] if rows_below else [1]
    above, *below = fig.add_gridspec(len(heights), 1, height_ratios=heights)
    top, axes = above.subgridspec(1, 3), []
    looks = {
        name: {"color": colour, "marker": marker}
        for name, colour, marker in zip(names, itertools.cycle(_STUDIES), itertools.cycle("osD^v"))
    }
    rows = []
    for number, contrast in enumerate(CONTRASTS):
        axes.append(fig.add_subplot(top[number], sharey=axes[0] if axes else None))
        ax = axes[-1]
        ax.axhline(0, color="0.6", lw=0.8, zorder=1)
        for place, name in enumerate(names):
            table = comparison.by_subject(studies[name], "psnr_db")
            table = table[table.contrast == contrast]
            wide = table.pivot(index="subject", columns="separation_mm", values="score")
            change = wide.sub(wide[wide.columns.min()], axis=0)
            ends = np.array([t_interval(change[x]) for x in change])
            # One separation may belong to several resolutions, and studies must not hide each other.
            x = np.array(change.columns, float) + 0.06 * (place - (len(names) - 1) / 2)
            ax.vlines(x, ends[:, 1], ends[:, 2], color=looks[name]["color"], lw=1.4, alpha=0.6)
            ax.plot(x, ends[:, 0], **looks[name], ms=3.5, lw=1.1, label=name)
            rows += [
                {"study": name, "contrast": contrast, "separation_mm": s, "change_db": m, "low": a, "high": b}
                for s, (m, a, b) in zip(change.columns, ends, strict=True)
            ]
        ax.set_title(contrast)
        ax.set_xlabel("slice separation (mm)")
        ax.set_xticks(change.columns)
        ax.grid(axis="y", color="0.92", lw=0.7)
        ax.label_outer()
    axes[0].set_ylabel("change of PSNR (dB)")
    axes[1].legend(
        loc="lower center", bbox_to_anchor=(0.5, 1.12), ncols=len(names), frameon=False, **drawing.TIGHT
    )
    if below:
        axes.append(_verdict_grid(fig.add_subplot(below[0]), verdicts, names))
    return fig, axes, pd.DataFrame(rows)


def _verdict_grid(ax, verdicts: pd.DataFrame, studies: list[str]):
    """A row per claim, a column per study, a sign in the colour of its verdict in each."""
    for y, row in enumerate(verdicts.to_dict("records")):
        if y % 2:
            ax.axhspan(y - 0.5, y + 0.5, color="0.96", zorder=0)
        for x, study in enumerate(studies):
            colour, sign = VERDICTS.get(row[study], ("0.75", "·"))
            ax.text(x, y, sign, color=colour, ha="center", va="center", fontsize=9)
    ax.set_yticks(range(len(verdicts)), _statements(verdicts), linespacing=0.95)
    ax.set_xticks(range(len(studies)), studies, rotation=45, ha="left", rotation_mode="anchor")
    ax.xaxis.tick_top()
    ax.tick_params(length=0)
    ax.set_xlim(-0.6, len(studies) - 0.4)
    ax.set_ylim(len(verdicts) - 0.5, -0.5)
    right = ax.secondary_yaxis("right")  # tick labels: the layout makes room for them
    right.set_yticks(range(len(verdicts)), verdicts.holds, color="0.3")
    right.tick_params(length=0)
    right.spines[:].set_visible(False)
    ax.spines[:].set_visible(False)
    ax.set_xlabel("✓ supported   ✗ contradicted   ? undecided   · no verdict")
    return ax
