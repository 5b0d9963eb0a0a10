"""Figures of a study's scores; each function returns the figure, its axes and the table behind it."""

from collections.abc import Iterable

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from helpers import drawing
from helpers.analysis.metrics import score_column
from helpers.analysis.tables import in_papers_order
from helpers.study import CONTRASTS, EXPERIMENTS, GROUND_TRUTH, TRANSFORMS

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
    labels = in_papers_order(table.resolution)
    panels = [(experiment, measure) for measure in measures for experiment in experiments]
    fig, axes = drawing.panels(1, len(panels), height=2.9, sharey=len(measures) == 1)
    for ax, (experiment, measure) in zip(axes.flat, panels, strict=True):
        column = score_column(table, measure)
        arm = drawn[drawn.experiment == experiment]
        finite = arm.assign(x=arm.resolution.map(labels.index)).replace(np.inf, np.nan).dropna(subset=column)
        for offset, contrast in zip(_OFFSETS, CONTRASTS, strict=True):
            rows = finite[finite.contrast == contrast]
            _both_arms(ax, rows, column, offset, contrast)
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
    drawing.legend_below(fig, handles, names, 5 if len(panels) > 1 else 3)
    return fig, axes, drawn


def _resolution_axis(ax, labels: list[str]):
    ax.set_xticks(range(len(labels)), labels, rotation=60)
    ax.set_xlabel("thickness || gap (mm)")
    ax.grid(axis="y", color="0.92", lw=0.7)
    ax.set_axisbelow(True)


def _both_arms(ax, rows: pd.DataFrame, column: str, offset: float, contrast: str):
    """Means without harmonizer in grey, behind; in front, in colour, what is harmonized."""
    mean = rows[rows.arm == "input"].groupby("x")[column].mean()
    look = {"color": drawing.GREY, "marker": drawing.MARKERS[contrast], "ms": 2.5, "lw": 0.9}
    ax.plot(mean.index + offset, mean, **look, zorder=1)
    _series(ax, rows[rows.arm == "harmonized"], column, offset, contrast)


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
    experiments, labels = sorted(drawn.experiment.unique()), in_papers_order(drawn.resolution)
    with_3d = sorted(drawn[drawn.orientation == "3D"].experiment.unique())  # Of the sources that HACA3 got.
    experiments, sources = (
        with_3d or experiments,
        [contrast for contrast in CONTRASTS if contrast in set(drawn.source)],
    )
    drawn = drawn[drawn.experiment.isin(experiments)]
    fig, axes = drawing.panels(3, len(experiments), height=1.75, sharex=True, sharey=True)
    for (target, experiment), ax in zip(
        ((t, e) for t in CONTRASTS for e in experiments), axes.flat, strict=True
    ):
        for source in sources:
            rows = drawn[
                (drawn.target == target) & (drawn.experiment == experiment) & (drawn.source == source)
            ]
            # Side by side: weights that are equal must not hide each other.
            x = rows.resolution.map(labels.index) + _OFFSETS[CONTRASTS.index(source)] / 2
            style = "-" if EXPERIMENTS[experiment][source] == "3D" else "--"
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
    axes[0, 0].set_ylim(0, min(1, 1.2 * drawn.weight.max()))
    handles = [
        plt.Line2D([], [], color=drawing.COLOURS[c], marker=drawing.MARKERS[c], ms=3.5, lw=0) for c in sources
    ]
    handles += [plt.Line2D([], [], color="0.3", ls=style, lw=1.1) for style in ("-", "--")]
    drawing.legend_below(fig, handles, [*(f"source {c}" for c in sources), "3D", "2D"], 5)
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
    experiments, labels = sorted(cutoffs.experiment.unique()), in_papers_order(cutoffs.resolution)
    separation = cutoffs.drop_duplicates("resolution").set_index("resolution").separation_mm[labels]
    ends = {separation.idxmin(): "-", separation.idxmax(): "--"}
    fig, axes = drawing.panels(2, len(experiments), height=2.4, sharey="row")
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
            _both_arms(bottom, one, "cutoff_per_mm", offset, contrast)
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
    drawing.legend_below(fig, handles, names, 4 if len(experiments) > 1 else 2)
    return fig, axes, cutoffs


@drawing.small_print()
def ladder_figure(scores: pd.DataFrame, registrations: pd.DataFrame):
    """The registration ladder: scores with the known, a rigid and an affine transform, and the error of each
    in mm.

    Scores are means inside the brain over experiments and resolutions, in the harmonized arm (colour) and
    without harmonizer (grey); thin lines are single subjects. The error is of every stack, by resolution.

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
    rows = scores[scores.arm.isin(["harmonized", "input"]) & (scores.region == "brain")].replace(
        np.inf, np.nan
    )
    drawn = rows.groupby(["transform", "arm", "contrast", "subject"])[columns].mean().reset_index()
    fig, axes = drawing.panels(1, 3, height=2.9)
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
    ax, labels = axes[0, 2], in_papers_order(registrations.resolution)
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
        ax.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=2, frameon=False, **drawing.TIGHT)
    handles, names = axes[0, 0].get_legend_handles_labels()
    handles.append(plt.Line2D([], [], color=drawing.GREY))
    drawing.legend_below(fig, handles, [*names, "no harmonizer"], 4)
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
def remedies_figure(scores: pd.DataFrame, recovered: pd.DataFrame):
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
    rows = scores[(scores.region == "brain") & scores.arm.isin(_ARM_LOOKS)].replace(np.inf, np.nan)
    experiments = [name for name in EXPERIMENTS if name in set(rows.experiment)]
    labels, arms = in_papers_order(rows.resolution), [arm for arm in _ARM_LOOKS if arm in set(rows.arm)]
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
    drawing.legend_below(fig, handles, names, 3)
    return fig, [*axes, ax], recovered


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
