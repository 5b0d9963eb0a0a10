"""One function per figure; each returns the figure and its axes and saves nothing."""

import itertools
import textwrap
from collections.abc import Iterable, Mapping

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from scipy import ndimage

from helpers import drawing
from helpers.analysis import comparison
from helpers.analysis.metrics import score_column
from helpers.study import CONTRASTS, EXPERIMENTS, GROUND_TRUTH, RESOLUTIONS, TRANSFORMS

_TIGHT = {"handlelength": 1.6, "columnspacing": 1.2, "handletextpad": 0.5}  # of a legend

#: Score column -> axis label. The first SSIM that a study has is the one drawn: 3D, else of the slices of its
#: plane.
MEASURES = {"psnr_db": "PSNR (dB)", "ssim": "SSIM"}

#: Figure of the paper -> (experiments, score columns). 9 is experiment 6, which the paper ran and did not
#: show.
SCORE_FIGURES = {
    3: (("1a", "1b", "1c"), ("psnr_db",)),
    4: (("1a", "1b", "1c"), ("ssim",)),
    5: (("2",), ("psnr_db", "ssim")),
    6: (("3",), ("psnr_db", "ssim")),
    7: (("4",), ("psnr_db", "ssim")),
    8: (("5",), ("psnr_db", "ssim")),
    9: (("6",), ("psnr_db", "ssim")),
}


_OFFSETS = (-0.22, 0, 0.22)

#: Colours of studies that are compared.
_STUDIES = (drawing.BLUE, drawing.VERMILLION, "0.5", drawing.GREEN, drawing.ORANGE)


def score_figures(experiments: Iterable[str]) -> list[int]:
    """Numbers of the figures that show one of some experiments."""
    return [number for number, (needed, _) in SCORE_FIGURES.items() if set(needed) & set(experiments)]


@drawing.small_print()
def score_figure(table: pd.DataFrame, number: int, region: str = "brain"):
    """Figures 3 to 9: a score against the eight resolutions, one series per target contrast.

    A panel for each of its experiments that the table has. Small markers are single subjects, lines join the
    means. Boxes hold the middle half of the subjects and whiskers all of them; with fewer than five there is
    a bar from the lowest to the highest instead. Grey, behind: the arm without harmonizer; the dotted line is
    the self-noise ceiling (mean over contrasts).

    Parameters
    ----------
    table : DataFrame
        The score table of `helpers.pipeline.scoring.all_scores`.
    number : int
        Figure number, a key of `SCORE_FIGURES`.
    region : str
        ``brain`` or ``full``.

    Returns
    -------
    fig, axes, DataFrame
        The last is what was drawn: the rows of the table behind the figure.

    Raises
    ------
    ValueError
        If the table has none of its experiments.
    """
    numbered, measures = SCORE_FIGURES[number]
    experiments = [experiment for experiment in numbered if experiment in set(table.experiment)]
    if not experiments:
        raise ValueError(
            f"number is {number}: accepted are figures of what was run, "
            f"{', '.join(map(str, score_figures(table.experiment)))}"
        )
    drawn = table[(table.experiment.isin(experiments) | (table.arm == "ceiling")) & (table.region == region)]
    labels = _in_order(table.resolution)
    panels = [(experiment, measure) for measure in measures for experiment in experiments]
    fig, axes = _panels(1, len(panels), height=2.9, sharey=len(measures) == 1)
    for ax, (experiment, measure) in zip(axes.flat, panels, strict=True):
        column = score_column(table, measure)
        arm = drawn[drawn.experiment == experiment]
        finite = arm.assign(x=arm.resolution.map(labels.index)).replace(np.inf, np.nan).dropna(subset=column)
        for offset, contrast in zip(_OFFSETS, CONTRASTS, strict=True):
            rows = finite[finite.contrast == contrast]
            bare = rows[rows.arm == "input"].groupby("x")[column].mean()
            ax.plot(
                bare.index + offset,
                bare,
                color=drawing.GREY,
                marker=drawing.MARKERS[contrast],
                ms=2.5,
                lw=0.9,
                zorder=1,
            )
            _series(ax, rows[rows.arm == "harmonized"], column, offset, contrast)
        ceiling = drawn[drawn.arm == "ceiling"][column].replace(np.inf, np.nan).mean()
        if np.isfinite(ceiling):
            ax.axhline(ceiling, color="0.45", ls=":", lw=1.1, zorder=1)
        _resolution_axis(ax, labels)
        ax.set_title(f"Experiment {experiment}")
        ax.set_ylabel(MEASURES[measure] + (" of 2D slices" if column not in MEASURES else ""))
        ax.yaxis.set_tick_params(labelleft=True)
    who = drawn.harmonizer.iloc[0] if "harmonizer" in drawn else "HACA3"
    if "dropped" in drawn:
        fig.suptitle(f"{who} without {drawn.dropped.iloc[0].replace('+', ' and ')} among its sources")
    elif "harmonizer" in drawn:
        fig.suptitle(f"Harmonizer: {who}")
    handles, names = axes.flat[0].get_legend_handles_labels()
    handles += [plt.Line2D([], [], color=drawing.GREY, lw=0.9), plt.Line2D([], [], color="0.45", ls=":")]
    names += ["no harmonizer", "self-noise ceiling"]
    _legend_below(fig, handles, names, 5 if len(panels) > 1 else 3)
    return fig, axes, drawn


def _legend_below(fig, handles: list, names: list[str], ncols: int) -> None:
    fig.legend(handles, names, loc="outside lower center", ncols=ncols, frameon=False, **_TIGHT)


def _panels(rows: int, columns: int, height: float, **shared):
    """Panels of a figure for a journal's page: two side by side are as wide as its column (12 cm), three or
    four as the page."""
    width = {1: 3.4, 2: 4.8}.get(columns, 7.0)
    return plt.subplots(
        rows, columns, figsize=(width, height * rows), squeeze=False, layout="constrained", **shared
    )


def _in_order(resolutions: pd.Series) -> list[str]:
    """The resolutions of a table in the paper's order, others after them."""
    known = [resolution.label for resolution in RESOLUTIONS]
    present = [label for label in resolutions.unique() if label != GROUND_TRUTH]
    return sorted(present, key=lambda label: (known.index(label) if label in known else len(known), label))


def _resolution_axis(ax, labels: list[str]):
    ax.set_xticks(range(len(labels)), labels, rotation=60)
    ax.set_xlabel("thickness || gap (mm)")
    ax.grid(axis="y", color="0.92", lw=0.7)
    ax.set_axisbelow(True)


def _series(ax, rows: pd.DataFrame, column: str, offset: float, contrast: str):
    """Single subjects, their distribution and their mean at each x of `rows`, in the colour of a contrast."""
    colour, marker = drawing.COLOURS[contrast], drawing.MARKERS[contrast]
    groups = {x + offset: part.to_numpy() for x, part in rows.groupby("x")[column]}
    many = [x for x, values in groups.items() if len(values) >= 5]
    if many:
        line = {"color": colour, "lw": 0.8}
        ax.boxplot(
            [groups[x] for x in many],
            positions=many,
            widths=0.24,
            whis=(0, 100),
            showfliers=False,
            manage_ticks=False,
            patch_artist=True,
            zorder=2,
            boxprops={"facecolor": colour, "alpha": 0.4, "lw": 0},
            medianprops=line,
            whiskerprops=line,
            capprops={"lw": 0},
        )
    few = np.array(
        [(x, values.min(), values.max()) for x, values in groups.items() if len(values) < 5]
    ).reshape(-1, 3)
    ax.vlines(*few.T, color=colour, lw=2, alpha=0.45)
    ax.plot(
        rows.x + offset, rows[column], ls="", marker=marker, ms=1.8, mew=0, color=colour, alpha=0.7, zorder=3
    )
    means = [values.mean() for values in groups.values()]
    ax.plot(
        list(groups),
        means,
        color=colour,
        marker=marker,
        ms=3.6,
        mew=0.4,
        mec="white",
        lw=1,
        label=contrast,
        zorder=4,
    )


@drawing.small_print()
def attention_figure(table: pd.DataFrame):
    """How much each source weighs: a row per target contrast, a column per experiment, a series per source
    contrast.

    Means over subjects and reconstruction planes; small markers are subjects. Solid: the source is 3D;
    dashed: it is cut into slices.

    Parameters
    ----------
    table : DataFrame
        As `helpers.pipeline.scoring.all_attention` gives it.

    Returns
    -------
    fig, axes, DataFrame
        The last is what was drawn.
    """
    keys = ["experiment", "target", "source", "orientation", "resolution", "subject"]
    drawn = table[table.experiment != GROUND_TRUTH].groupby(keys, sort=False).weight.mean().reset_index()
    experiments, labels = sorted(drawn.experiment.unique()), _in_order(drawn.resolution)
    with_3d = sorted(drawn[drawn.orientation == "3D"].experiment.unique())  # Of the sources that HACA3 got.
    experiments, sources = (
        with_3d or experiments,
        [contrast for contrast in CONTRASTS if contrast in set(drawn.source)],
    )
    drawn = drawn[drawn.experiment.isin(experiments)]
    fig, axes = _panels(3, len(experiments), height=1.75, sharex=True, sharey=True)
    for (target, experiment), ax in zip(
        ((t, e) for t in CONTRASTS for e in experiments), axes.flat, strict=True
    ):
        for source in sources:
            rows = drawn[
                (drawn.target == target) & (drawn.experiment == experiment) & (drawn.source == source)
            ]
            x, style = (
                rows.resolution.map(labels.index),
                "-" if EXPERIMENTS[experiment][source] == "3D" else "--",
            )
            ax.plot(
                x,
                rows.weight,
                ls="",
                marker=drawing.MARKERS[source],
                ms=2,
                mew=0,
                color=drawing.COLOURS[source],
                alpha=0.5,
            )
            mean = rows.weight.groupby(x).mean()
            ax.plot(
                mean.index,
                mean,
                style,
                color=drawing.COLOURS[source],
                marker=drawing.MARKERS[source],
                ms=3.5,
                lw=1.1,
                label=source,
            )
        _resolution_axis(ax, labels)
        ax.label_outer()
        if target == CONTRASTS[0]:
            ax.set_title(f"Experiment {experiment}")
        if experiment == experiments[0]:
            ax.set_ylabel(f"weight, target {target}")
    axes[0, 0].set_ylim(0, 1)
    handles = [
        plt.Line2D([], [], color=drawing.COLOURS[c], marker=drawing.MARKERS[c], ms=3.5, lw=0) for c in sources
    ]
    handles += [plt.Line2D([], [], color="0.3", ls=style, lw=1.1) for style in ("-", "--")]
    _legend_below(fig, handles, [*(f"source {c}" for c in sources), "3D", "2D"], 5)
    return fig, axes, drawn


@drawing.small_print()
def frequency_figure(curves: pd.DataFrame, cutoffs: pd.DataFrame):
    """What is left of each through-plane frequency: above, correlation at the finest and the coarsest
    resolution; below, all cut-offs.

    Grey is the input of the harmonizer against the 3D image, colour its output against the harmonized 3D
    images.

    Parameters
    ----------
    curves, cutoffs : DataFrame
        As `helpers.pipeline.scoring.all_frequencies` and `helpers.pipeline.scoring.cutoffs` give them.

    Returns
    -------
    fig, axes, DataFrame
        The last is the table of cut-offs.
    """
    experiments, labels = sorted(cutoffs.experiment.unique()), _in_order(cutoffs.resolution)
    separation = cutoffs.drop_duplicates("resolution").set_index("resolution").separation_mm[labels]
    ends = {separation.idxmin(): "-", separation.idxmax(): "--"}
    fig, axes = _panels(2, len(experiments), height=2.4, sharey="row")
    for column, experiment in enumerate(experiments):
        top, bottom = axes[:, column]
        for label, style in ends.items():
            rows = curves[(curves.experiment == experiment) & (curves.resolution == label)]
            rows = rows.assign(ring=(rows.frequency_per_mm / 0.01).round())
            for arm, colour in (("input", drawing.GREY), ("harmonized", drawing.BLUE)):
                mean = rows[rows.arm == arm].groupby("ring")[["frequency_per_mm", "correlation"]].mean()
                top.plot(mean.frequency_per_mm, mean.correlation, style, color=colour, lw=1.3)
        top.axhline(0.5, color="0.45", ls=":", lw=1)
        top.set_xlabel("frequency (cycles/mm)")
        top.set_xticks([0, 0.1, 0.2, 0.3, 0.4, 0.5])
        top.set_title(f"Experiment {experiment}")
        top.set_xlim(0, 0.5)
        rows = cutoffs[cutoffs.experiment == experiment]
        rows = rows.assign(x=rows.resolution.map(labels.index))
        for offset, contrast in zip(_OFFSETS, CONTRASTS, strict=True):
            one = rows[rows.contrast == contrast]
            bare = one[one.arm == "input"].groupby("x").cutoff_per_mm.mean()
            bottom.plot(
                bare.index + offset,
                bare,
                color=drawing.GREY,
                marker=drawing.MARKERS[contrast],
                ms=2.5,
                lw=0.9,
                zorder=1,
            )
            _series(bottom, one[one.arm == "harmonized"], "cutoff_per_mm", offset, contrast)
        bottom.plot(
            range(len(labels)), 0.5 / separation, color="0.2", ls=":", marker="_", ms=7, lw=0.8, zorder=1
        )
        _resolution_axis(bottom, labels)
    axes[0, 0].set_ylabel("Fourier correlation\n(through-plane)")
    axes[1, 0].set_ylabel("cut-off (cycles/mm)")
    axes[1, 0].set_ylim(0)
    handles = [plt.Line2D([], [], color="0.3", ls=style) for style in ends.values()]
    handles += [plt.Line2D([], [], color=drawing.BLUE)]
    contrasts = [contrast for contrast in CONTRASTS if contrast in set(cutoffs.contrast)]
    handles += [
        plt.Line2D([], [], color=drawing.COLOURS[c], marker=drawing.MARKERS[c], ms=4, lw=1) for c in contrasts
    ]
    handles += [
        plt.Line2D([], [], color=drawing.GREY),
        plt.Line2D([], [], color="0.2", ls=":", marker="_", ms=7),
    ]
    names = [*ends, "output, mean", *contrasts, "input", "Nyquist of the slices"]
    _legend_below(fig, handles, names, 4 if len(experiments) > 1 else 2)
    return fig, axes, cutoffs


@drawing.small_print()
def ladder_figure(scores: pd.DataFrame, registrations: pd.DataFrame, region: str = "brain"):
    """The registration ladder: scores with the known, a rigid and an affine transform, and the error of each
    in mm.

    Scores are means over experiments and resolutions, in the harmonized arm (colour) and without harmonizer
    (grey); thin lines are single subjects. The error is that of every stack, by resolution.

    Parameters
    ----------
    scores, registrations : DataFrame
        Those of several studies, as `helpers.pipeline.finished.other_studies` gives them.

    Returns
    -------
    fig, axes, DataFrame
        The last is what was drawn: mean scores.
    """
    steps = [transform for transform in TRANSFORMS if transform in set(scores["transform"])]
    columns = [score_column(scores, measure) for measure in MEASURES]
    rows = scores[scores.arm.isin(["harmonized", "input"]) & (scores.region == region)].replace(
        np.inf, np.nan
    )
    drawn = rows.groupby(["transform", "arm", "contrast", "subject"])[columns].mean().reset_index()
    fig, axes = _panels(1, 3, height=2.9)
    for ax, measure, column in zip(axes.flat, MEASURES, columns, strict=False):
        for arm, contrast in ((arm, contrast) for arm in ("input", "harmonized") for contrast in CONTRASTS):
            rows = drawn[(drawn.arm == arm) & (drawn.contrast == contrast)]
            if rows.empty:  # A dropped contrast has no source that could be scored.
                continue
            wide = rows.pivot(index="subject", columns="transform", values=column)[steps]
            look = {
                "color": drawing.GREY if arm == "input" else drawing.COLOURS[contrast],
                "marker": drawing.MARKERS[contrast],
            }
            ax.plot(range(len(steps)), wide.T, **look, ms=1.5, lw=0.4, alpha=0.6)
            name = contrast if arm == "harmonized" else None
            ax.plot(range(len(steps)), wide.mean(), **look, ms=4.5, mew=0.5, mec="white", lw=1.3, label=name)
        ax.set_xticks(range(len(steps)), steps)
        ax.set_xlim(-0.3, len(steps) - 0.7)
        ax.set_xlabel("transform")
        ax.set_ylabel(MEASURES[measure] + (" of 2D slices" if column not in MEASURES else ""))
        ax.grid(axis="y", color="0.92", lw=0.7)
    ax, labels = axes[0, 2], _in_order(registrations.resolution)
    estimated = [step for step in steps if step != "known" and step in set(registrations["transform"])]
    for step, colour, marker in zip(estimated, (drawing.VERMILLION, drawing.GREEN), "sD", strict=False):
        rows = registrations[registrations["transform"] == step]
        x = rows.resolution.map(labels.index)
        ax.plot(x, rows.registration_error_mm, ls="", marker=marker, ms=2, mew=0, color=colour, alpha=0.5)
        mean = rows.registration_error_mm.groupby(x).mean()
        ax.plot(mean.index, mean, color=colour, marker=marker, ms=4, lw=1.2, label=step)
    _resolution_axis(ax, labels)
    ax.set_ylim(0)
    ax.set_ylabel("registration error (mm)")
    if ax.get_legend_handles_labels()[0]:
        ax.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=2, frameon=False, **_TIGHT)
    handles, names = axes[0, 0].get_legend_handles_labels()
    handles.append(plt.Line2D([], [], color=drawing.GREY))
    _legend_below(fig, handles, [*names, "no harmonizer"], 4)
    return fig, axes, drawn


#: Arm -> colour and marker.
_ARM_LOOKS = {
    "harmonized": ("0.45", "o"),
    "harmonized, super-resolved": (drawing.ORANGE, "s"),
    "harmonized, resolution-aware": (drawing.BLUE, "^"),
    "harmonized, both": (drawing.GREEN, "D"),
    "harmonized, resolution-trained": (drawing.PURPLE, "v"),
}


@drawing.small_print()
def remedies_figure(scores: pd.DataFrame, recovered: pd.DataFrame, region: str = "brain"):
    """What remedies bring back: PSNR against resolution with and without each, a panel for each experiment;
    below, the share of the loss that comes back.

    Above, means over contrasts and subjects; bars reach from the lowest to the highest subject. Below, means
    over subjects with their 95 % intervals; "all" is over all experiments.

    Parameters
    ----------
    scores : DataFrame
        The score table, with arms of remedies.
    recovered : DataFrame
        As `helpers.analysis.remedies.recovered` gives it.

    Returns
    -------
    fig, axes, DataFrame
        The last is `recovered`.
    """
    rows = scores[(scores.region == region) & scores.arm.isin(_ARM_LOOKS)].replace(np.inf, np.nan)
    experiments = [name for name in EXPERIMENTS if name in set(rows.experiment)]
    labels, arms = _in_order(rows.resolution), [arm for arm in _ARM_LOOKS if arm in set(rows.arm)]
    columns = min(4, len(experiments))
    above = -(-len(experiments) // columns)
    fig = plt.figure(figsize=(7, 2.1 * above + 2.3), layout="constrained")
    grid = fig.add_gridspec(above + 1, columns)
    axes = []
    for number, experiment in enumerate(experiments):
        place = grid[number // columns, number % columns]
        ax = fig.add_subplot(place, sharey=axes[0] if axes else None)
        axes.append(ax)
        for offset, arm in zip(np.linspace(-0.21, 0.21, len(arms)), arms, strict=True):
            colour, marker = _ARM_LOOKS[arm]
            part = rows[(rows.arm == arm) & (rows.experiment == experiment)]
            by_subject = part.groupby(["resolution", "subject"]).psnr_db.mean().unstack().reindex(labels)
            x = np.arange(len(labels)) + offset
            ax.vlines(x, by_subject.min(axis=1), by_subject.max(axis=1), color=colour, lw=1.6, alpha=0.4)
            ax.plot(x, by_subject.mean(axis=1), color=colour, marker=marker, ms=3.6, lw=1, label=arm)
        _resolution_axis(ax, labels)
        ax.set_title(f"Experiment {experiment}")
        ax.set_xlim(-0.5, len(labels) - 0.5)
        first, last = number % columns == 0, number + columns >= len(experiments)
        ax.set_ylabel("PSNR (dB)" if first else "")
        ax.tick_params(labelleft=first, labelbottom=last)
        if not last:
            ax.set_xlabel("")
    ax = fig.add_subplot(grid[above, :])
    drawn = recovered[recovered.contrast == "all"]
    for offset, arm in zip(np.linspace(-0.2, 0.2, len(arms) - 1), arms[1:], strict=True):
        colour, marker = _ARM_LOOKS[arm]
        part = drawn[drawn.arm == arm].set_index("experiment").reindex([*experiments, "all"])
        x, ends = np.arange(len(part)) + offset, 100 * part[["share_low", "share_high"]].to_numpy().T
        ax.vlines(x, *ends, color=colour, lw=1.2)
        ax.plot(x, 100 * part.share, ls="", color=colour, marker=marker, ms=4)
    ax.axhline(0, color="0.6", lw=0.8)
    ax.axvline(len(experiments) - 0.5, color="0.8", lw=0.7)
    ax.set_xticks(range(len(experiments) + 1), [*experiments, "all"])
    ax.set_xlabel("experiment")
    ax.set_ylabel("share of the loss\nrecovered (%)")
    ax.grid(axis="y", color="0.92", lw=0.7)
    ax.set_axisbelow(True)
    handles, names = axes[0].get_legend_handles_labels()
    _legend_below(fig, handles, names, 4)
    return fig, [*axes, ax], recovered


#: Verdict -> colour and sign.
VERDICTS = {"supported": ("#0072B2", "✓"), "contradicted": ("#D55E00", "✗"), "undecided": ("0.45", "?")}


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
        As `helpers.analysis.claims.verdicts` gives them.

    Returns
    -------
    fig, ax, DataFrame
        The last is what was drawn: the table of comparisons.
    """
    verdicts = verdicts[verdicts.claim.isin(comparisons.dropna(subset=["estimate"]).claim)]
    fig, ax = plt.subplots(figsize=(7, 0.31 * len(verdicts) + 0.9), layout="constrained")
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
    names = [f"{row.claim}  {textwrap.fill(row.statement, 46)}" for row in verdicts.itertuples(index=False)]
    ax.set_yticks(range(len(verdicts)), names, linespacing=0.95)
    ax.set_ylim(len(verdicts) - 0.4, -0.6)
    ax.set_xscale("symlog", linthresh=1, linscale=1)
    ticks = [-30, -10, -3, -1, 0, 1, 3, 10, 30]
    ax.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    ax.minorticks_off()
    ax.set_xlim(-1.15 * edge, 1.15 * edge)
    ax.tick_params(axis="y", length=0)
    ax.set_xlabel("difference in margins; grey: does not matter")
    return fig, ax, comparisons


@drawing.small_print()
def comparison_figure(studies: Mapping[str, pd.DataFrame], verdicts: pd.DataFrame, region: str = "brain"):
    """Several studies side by side: above, what each loses as slices get thicker; below, their verdicts.

    Above: mean PSNR of experiments 1a to 1c less that at the smallest slice separation, by contrast, with a
    95 % t interval over subjects. Below: a row per claim on which a study has a verdict, a column per study.

    Parameters
    ----------
    studies : mapping of str to DataFrame
        Name -> score table.
    verdicts : DataFrame
        As `helpers.analysis.comparison.side_by_side` gives it.

    Returns
    -------
    fig, axes, DataFrame
        The axes are the three panels above and the one below; the last is what was drawn above.
    """
    names = list(studies)
    verdicts = verdicts[(verdicts[names] != comparison.NO_VERDICT).any(axis=1)]
    fig = plt.figure(figsize=(7, 3.1 + 0.2 * len(verdicts)), layout="constrained")
    above, below = fig.add_gridspec(2, 1, height_ratios=[2.4, 0.5 + 0.2 * len(verdicts)])
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
            table = comparison.by_subject(studies[name], "psnr_db", region)
            table = table[table.contrast == contrast]
            wide = table.pivot(index="subject", columns="separation_mm", values="score")
            change = wide.sub(wide[wide.columns.min()], axis=0)
            ends = np.array([comparison.interval(change[x]) for x in change])
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
        ax.grid(axis="y", color="0.92", lw=0.7)
        ax.label_outer()
    axes[0].set_ylabel("change of PSNR (dB)")
    axes[1].legend(loc="lower center", bbox_to_anchor=(0.5, 1.12), ncols=len(names), frameon=False, **_TIGHT)
    axes.append(_verdict_grid(fig.add_subplot(below), verdicts, names))
    return fig, axes, pd.DataFrame(rows)


def _verdict_grid(ax, verdicts: pd.DataFrame, studies: list[str]):
    """A row per claim, a column per study, a sign in the colour of its verdict in each."""
    for y, row in enumerate(verdicts.to_dict("records")):
        if y % 2:
            ax.axhspan(y - 0.5, y + 0.5, color="0.96", zorder=0)
        for x, study in enumerate(studies):
            colour, sign = VERDICTS.get(row[study], ("0.75", "·"))
            ax.text(x, y, sign, color=colour, ha="center", va="center", fontsize=9)
        ax.text(len(studies) - 0.4, y, row["holds"], va="center", color="0.3")
    statements = [f"{row.claim}  {textwrap.shorten(row.statement, 62)}" for row in verdicts.itertuples()]
    ax.set_yticks(range(len(verdicts)), statements)
    ax.set_xticks(range(len(studies)), studies, rotation=20, ha="left")
    ax.xaxis.tick_top()
    ax.tick_params(length=0)
    ax.set_xlim(-0.6, len(studies) + 2.4)
    ax.set_ylim(len(verdicts) - 0.5, -0.5)
    ax.spines[:].set_visible(False)
    ax.set_xlabel("✓ supported   ✗ contradicted   ? undecided   · no verdict")
    return ax


def figure_2(panels: dict[str, np.ndarray]):
    """Figure 2: original and harmonized T1w at HR and two low resolutions, one look-up table.

    Parameters
    ----------
    panels : dict
        ``"original, HR"`` and so on -> ndarray, 2D, upright, in units of the 95th percentile.

    Returns
    -------
    fig, axes, DataFrame
        The last holds the pixels: one line per panel and row.
    """
    fig, axes = drawing.slices(
        panels,
        vmax=max(np.percentile(image, 99.5) for image in panels.values()),
        columns=3,
        unit="intensity / 95th percentile",
    )
    drawn = pd.concat(
        {title: pd.DataFrame(image).round(3) for title, image in panels.items()}, names=["panel", "row"]
    )
    return fig, axes, drawn.reset_index()


# The study at scale (tests/bench.py).


def scaling(table: pd.DataFrame):
    """Speed-up against the number of workers: a simulation, and the bound that no order of the tasks exceeds.

    Parameters
    ----------
    table : DataFrame
        As `helpers.pipeline.status.scaling` gives it, with a column ``study``.
    """
    fig, ax = plt.subplots(figsize=(6.4, 4.4), layout="constrained")
    workers = sorted(table.workers.unique())
    ax.plot(workers, workers, color="0.7", lw=1, ls="--", label="as many times faster as workers")
    for (study, rows), colour, marker in zip(
        table.groupby("study", sort=False),
        (drawing.BLUE, drawing.VERMILLION, drawing.GREEN),
        ("o", "s", "^"),
        strict=False,
    ):
        ax.plot(rows.workers, rows.bound, color=colour, lw=1, ls=":")
        ax.plot(rows.workers, rows.speed_up, color=colour, marker=marker, lw=1.8, label=study)
        for row in rows.iloc[[0, -1]].itertuples():
            took = f"{row.hours:.1f} h" if row.hours >= 1.5 else f"{60 * row.hours:.0f} min"
            ax.annotate(
                took,
                (row.workers, row.speed_up),
                (9, -4),
                textcoords="offset points",
                color=colour,
                fontsize=9,
            )
    ax.plot([], [], color="0.3", lw=1, ls=":", label="bound: workers, critical path")
    ax.set_xscale("log", base=2)
    ax.set_yscale("log", base=2)
    ax.set_xticks(workers, [str(count) for count in workers])
    ax.set_yticks(workers, [str(count) for count in workers])
    ax.set_xlim(0.85, workers[-1] * 1.9)
    ax.set_xlabel("workers")
    ax.set_ylabel("speed-up over one worker")
    ax.set_title("Ten subjects: simulated from measured durations", fontsize=11)
    ax.legend(frameon=False, fontsize=9, loc="upper left")
    ax.spines[["top", "right"]].set_visible(False)
    return fig, ax


#: Volumes of the table of downstream measures that are drawn -> what they are called.
VOLUMES = {"lesion_ml": "lesions", "grey_ml": "grey matter", "ventricles_ml": "lateral ventricles"}


@drawing.small_print()
def agreement_figure(table: pd.DataFrame, reference: str = "3D", arm: str = "harmonized"):
    """Bland and Altman's plot of lesion, grey matter and ventricle volume, one colour per resolution.

    Points are subjects in experiments; lines are the mean differences, and bands reach to the limits of
    agreement, bias and 1.96 standard deviations.

    Parameters
    ----------
    table : DataFrame
        As `helpers.pipeline.scoring.all_downstream` gives it.
    reference : {"3D", "exact"}
    arm : str

    Returns
    -------
    fig, axes, DataFrame
        The last is what was drawn.
    """
    from helpers.analysis import downstream

    chosen = (table.reference == reference) & (table.arm == arm) & (table.experiment != GROUND_TRUTH)
    drawn = table[chosen & table.measure.isin(VOLUMES)]
    labels = _in_order(drawn.resolution)
    colours = dict(zip(labels, plt.colormaps["plasma"](np.linspace(0.1, 0.75, len(labels))), strict=True))
    fig, axes = _panels(1, len(VOLUMES), height=2.7)
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
    axes.flat[0].set_ylabel("thick slices - 3D (ml)" if reference == "3D" else "found - exact (ml)")
    _legend_below(fig, *axes.flat[0].get_legend_handles_labels(), len(labels))
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
                bbox={"facecolor": "black", "alpha": 0.6, "pad": 1.5, "lw": 0},
                arrowprops={"arrowstyle": "->", "color": drawing.ORANGE},
            )
        ax.set_title(panel["title"], fontsize=12)
        ax.text(0.5, -0.02, panel["says"], transform=ax.transAxes, ha="center", va="top", fontsize=11)
        ax.axis("off")
    return fig, axes, pd.DataFrame([{name: panel[name] for name in ("title", "says")} for panel in panels])
