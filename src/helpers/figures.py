"""One function per figure; each returns the figure and its axes and saves nothing.

Colours are those of Okabe and Ito, which people with colour-vision deficiency can tell apart
(https://jfly.uni-koeln.de/color/); each series has a marker of its own as well.
"""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from helpers.study import CONTRASTS, RESOLUTIONS, Resolution

COLOURS = {"T1w": "#0072B2", "T2w": "#D55E00", "FLAIR": "#009E73"}
MARKERS = {"T1w": "o", "T2w": "s", "FLAIR": "^"}

#: Score column -> axis label. The first SSIM that a study has is the one drawn: 3D, else of the slices of its plane.
MEASURES = {"psnr_db": "PSNR (dB)", "ssim": "SSIM"}

#: Figure of the paper -> (experiments, score columns). 9 is experiment 6, which the paper ran and did not show.
SCORE_FIGURES = {
    3: (("1a", "1b", "1c"), ("psnr_db",)),
    4: (("1a", "1b", "1c"), ("ssim",)),
    5: (("2",), ("psnr_db", "ssim")),
    6: (("3",), ("psnr_db", "ssim")),
    7: (("4",), ("psnr_db", "ssim")),
    8: (("5",), ("psnr_db", "ssim")),
    9: (("6",), ("psnr_db", "ssim")),
}


def slices(images: dict[str, np.ndarray], vmax: float, columns: int, unit: str = "", cmap: str = "gray", vmin: float = 0):
    """Brain slices side by side with one look-up table.

    Parameters
    ----------
    images : dict
        Title -> ndarray, shape (rows, columns), as `upright` gives it.
    vmin, vmax : float
        Values shown as the ends of the look-up table, for all images.
    columns : int
        Panels per row.
    unit : str
        Label of the colour bar.
    """
    rows = -(-len(images) // columns)
    fig, axes = plt.subplots(rows, columns, figsize=(2.6 * columns + 0.6, 3.1 * rows), squeeze=False, layout="constrained")
    for ax in axes.flat:
        ax.axis("off")
    for ax, (title, image) in zip(axes.flat, images.items(), strict=False):
        shown = ax.imshow(image, cmap=cmap, vmin=vmin, vmax=vmax, interpolation="nearest")
        ax.set_title(title, fontsize=10)
    fig.colorbar(shown, ax=axes, label=unit, shrink=0.8, aspect=40)
    return fig, axes


def upright(volume: np.ndarray, orientation: str, index: int) -> np.ndarray:
    """One slice of an LPS volume as radiologists hang it: anterior or superior up, the patient's right on the left.

    Parameters
    ----------
    volume : ndarray, shape (X, Y, Z)
        Stored left, posterior, superior, as on HACA3's MNI grid.
    orientation : str
        ``axial``, ``sagittal`` (anterior on the left) or ``coronal``.
    index : int
        Along the axis across the slices.

    Returns
    -------
    ndarray, 2D
        Rows from top to bottom, for ``imshow`` with its default origin.
    """
    # LPS: x grows to the patient's left, y to posterior, z to superior.
    if orientation == "axial":
        return volume[:, :, index].T
    if orientation == "coronal":
        return volume[:, index, :].T[::-1]
    return volume[index, :, :].T[::-1]


def score_figure(table: pd.DataFrame, number: int, region: str = "brain"):
    """Figures 3 to 9: a score against the eight resolutions, one series per target contrast.

    Small markers are single subjects, lines join the means, bars span from the lowest to the highest
    subject. Grey is the arm without harmonizer, the dotted line the self-noise ceiling (mean over contrasts).

    Parameters
    ----------
    table : DataFrame
        The score table of `helpers.stages.all_scores`.
    number : int
        Figure number, a key of `SCORE_FIGURES`.
    region : str
        ``brain`` or ``full``.

    Returns
    -------
    fig, axes, DataFrame
        The last is what was drawn: the rows of the table behind the figure.
    """
    experiments, measures = SCORE_FIGURES[number]
    known = [each.label for each in RESOLUTIONS]
    drawn = table[(table.experiment.isin(experiments) | (table.arm == "ceiling")) & (table.region == region)]
    present = [label for label in table.resolution.unique() if label != "3D"]
    labels = sorted(present, key=lambda label: (known.index(label) if label in known else len(known), label))
    panels = [(experiment, measure) for measure in measures for experiment in experiments]
    fig, axes = plt.subplots(1, len(panels), figsize=(3.7 * len(panels), 3.6), sharey=len(measures) == 1, squeeze=False, layout="constrained")
    for ax, (experiment, measure) in zip(axes.flat, panels, strict=True):
        column = score_column(table, measure)
        arm = drawn[drawn.experiment == experiment]
        finite = arm.assign(x=arm.resolution.map(labels.index)).replace(np.inf, np.nan).dropna(subset=column)
        for offset, contrast in zip((-0.18, 0, 0.18), CONTRASTS, strict=True):
            rows = finite[finite.contrast == contrast]
            bare = rows[rows.arm == "input"].groupby("x")[column].mean()
            ax.plot(bare.index + offset, bare, color="0.72", marker=MARKERS[contrast], ms=3, lw=1, zorder=1)
            rows = rows[rows.arm == "harmonized"]
            spread = rows.groupby("x")[column].agg(["mean", "min", "max"])
            ax.vlines(spread.index + offset, spread["min"], spread["max"], color=COLOURS[contrast], lw=2.5, alpha=0.45)
            ax.plot(rows.x + offset, rows[column], ls="", marker=MARKERS[contrast], ms=3, color=COLOURS[contrast], alpha=0.7)
            ax.plot(spread.index + offset, spread["mean"], color=COLOURS[contrast], marker=MARKERS[contrast], ms=6, lw=1.2, label=contrast)
        ceiling = drawn[drawn.arm == "ceiling"][column].mean()
        if np.isfinite(ceiling):
            ax.axhline(ceiling, color="0.45", ls=":", lw=1.2)
        ax.set_xticks(range(len(labels)), labels, rotation=45)
        ax.set_xlabel("thickness || gap (mm)")
        ax.set_title(f"Experiment {experiment}", fontsize=11)
        ax.set_ylabel(MEASURES[measure] + (" of 2D slices" if column not in MEASURES else ""))
        ax.yaxis.set_tick_params(labelleft=True)
        ax.grid(axis="y", color="0.92")
        ax.spines[["top", "right"]].set_visible(False)
    handles, names = axes.flat[0].get_legend_handles_labels()
    handles += [plt.Line2D([], [], color="0.72"), plt.Line2D([], [], color="0.45", ls=":")]
    fig.legend(handles, [*names, "no harmonizer", "self-noise ceiling"], loc="outside lower center", ncols=5, frameon=False, fontsize=9)
    return fig, axes, drawn


def score_column(table: pd.DataFrame, measure: str) -> str:
    """The column of the table that holds a measure: 3D SSIM, or in a preview that of the plane it visited."""
    if measure != "ssim" or table["ssim"].notna().any():
        return measure
    return next(column for column in ("ssim_axial", "ssim_coronal", "ssim_sagittal") if table[column].notna().any())


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
    fig, axes = slices(panels, vmax=max(np.percentile(image, 99.5) for image in panels.values()), columns=3, unit="intensity / 95th percentile")
    drawn = pd.concat({title: pd.DataFrame(image).round(3) for title, image in panels.items()}, names=["panel", "row"])
    return fig, axes, drawn.reset_index()


def rows_of_matrix(matrix: np.ndarray, resolution: Resolution, voxel_mm: float = 1.0):
    """Three neighbouring slices of a degradation matrix: what each takes from every plane of the 3D image.

    Parameters
    ----------
    matrix : ndarray, shape (n_lr, n_hr)
        As `helpers.degradation.matrix` gives it.
    """
    fig, ax = plt.subplots(figsize=(7, 3), layout="constrained")
    middle = len(matrix) // 2
    z_mm = (np.arange(matrix.shape[1]) - (matrix.shape[1] - 1) / 2) * voxel_mm
    for index, colour in zip(range(middle - 1, middle + 2), COLOURS.values(), strict=True):
        ax.step(z_mm, matrix[index], where="mid", color=colour, label=f"slice {index}")
    centre = (np.arange(middle - 1, middle + 2) - (len(matrix) - 1) / 2) * resolution.separation_mm
    for z in centre:
        ax.axvspan(z - resolution.thickness_mm / 2, z + resolution.thickness_mm / 2, color="0.93", zorder=0)
    ax.set_xlim(centre[0] - 1.5 * resolution.separation_mm, centre[-1] + 1.5 * resolution.separation_mm)
    ax.set_xlabel("through-plane position (mm); grey: nominal slices")
    ax.set_ylabel("weight of the 1 mm plane" if voxel_mm == 1 else "weight of the plane")
    ax.legend(frameon=False)
    return fig, ax


def sharpness(examined: dict, drop: float):
    """Power along each axis against that along the others: where it falls below the dotted line, slices were interpolated.

    Parameters
    ----------
    examined : dict
        Title -> `helpers.preparation.Sharpness`.
    drop : float
        Where that line lies.
    """
    fig, axes = plt.subplots(2, len(examined), figsize=(3.6 * len(examined) + 0.4, 5.2), squeeze=False, sharex=True, sharey="row", layout="constrained")
    for (above, below), (title, found) in zip(axes.T, examined.items(), strict=True):
        for number, (direction, colour, style) in enumerate(zip(found.directions, (BLUE, VERMILLION, GREEN), ("-", "--", ":"), strict=True)):
            look = {"color": colour, "ls": style, "lw": 2}
            # Each contrast has units of its own: what is compared is one axis with another.
            above.semilogy(found.frequency, found.power[number] / np.nanmax(found.power), **look)
            below.semilogy(found.frequency, found.ratio[number], label=direction, **look)
            if found.thick[number]:
                nyquist = 0.5 / found.thickness_mm[number]
                below.axvline(nyquist, color=colour, lw=1)
                side = {"ha": "left", "x": nyquist + 0.01} if nyquist < 0.25 else {"ha": "right", "x": nyquist - 0.01}
                below.text(y=0.96, s=f"slices {found.thickness_mm[number]:.1f} mm apart", color=colour, va="top", fontsize=9,
                           transform=below.get_xaxis_transform(), **side)
        below.axhline(drop, color="0.35", ls=":", lw=1.2)
        below.axhline(1, color="0.85", lw=1, zorder=0)
        above.set_title(title, fontsize=11)
        below.set_xlabel("spatial frequency (cycles/mm)")
        for ax in (above, below):
            ax.spines[["top", "right"]].set_visible(False)
    axes[0, 0].set_ylabel("power density (of the largest)")
    axes[1, 0].set_ylabel("over that of the other axes")
    ratios = np.concatenate([found.ratio.ravel() for found in examined.values()])
    # Room for the words above the curves.
    axes[1, 0].set_ylim(min(0.8 * np.nanmin(ratios), 0.2), 3.5 * np.nanmax(ratios))
    handles, names = axes[1, 0].get_legend_handles_labels()
    fig.legend(handles, names, loc="outside lower center", ncols=3, frameon=False)
    return fig, axes


def quality_sheet(images: dict[str, np.ndarray], outlines: dict[str, np.ndarray], centre: tuple[int, int, int] = (95, 115, 90)):
    """Prepared images in three planes with outlines on them: does the brain lie where it should, and what was taken for it?

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
    fig, axes = plt.subplots(len(images), 3, figsize=(9, 3 * len(images) + 0.4), squeeze=False, layout="constrained")
    colours = dict(zip(outlines, (ORANGE, "#56B4E9"), strict=False))
    for row, (contrast, image) in zip(axes, images.items(), strict=True):
        positive = image[image > 0]
        vmax = np.percentile(positive, 99.5) if positive.size else 1
        for ax, (plane, index) in zip(row, planes.items(), strict=True):
            ax.imshow(upright(image, plane, index), cmap="gray", vmin=0, vmax=vmax, interpolation="nearest")
            for label, outline in outlines.items():
                shape = upright(outline, plane, index)
                if shape.any():
                    ax.contour(shape, [0.5], colors=colours[label], linewidths=0.9)
            ax.set_title(f"{contrast}, {plane}", fontsize=10)
            ax.axis("off")
    handles = [plt.Line2D([], [], color=colour, lw=2) for colour in colours.values()]
    fig.legend(handles, list(colours), loc="outside lower center", ncols=len(colours), frameon=False)
    return fig, axes


# Slice profiles (notebook 01).

BLUE, VERMILLION, GREEN, ORANGE = "#0072B2", "#D55E00", "#009E73", "#E69F00"


def pulse(rf: np.ndarray):
    """B1 of an RF pulse over its duration; `rf` is shape (n,), rad per sample."""
    fig, ax = plt.subplots(figsize=(6, 2.8), layout="constrained")
    ax.axhline(0, color="0.8", lw=1)
    ax.plot((np.arange(len(rf)) + 0.5) / len(rf), np.degrees(rf), color=BLUE, lw=2)
    ax.set_xlabel("time (durations of the pulse)")
    ax.set_ylabel("B1 (degrees per sample)")
    return fig, ax


def magnetization(position: np.ndarray, mxy: np.ndarray, mz: np.ndarray, width: float):
    """|Mxy|, phase and Mz across a slice, with its width at half maximum.

    Parameters
    ----------
    position, mxy, mz : ndarray, shape (m,)
        As `helpers.slice_profile.bloch` gives them; position in cycles per pulse.
    width : float
        Full width at half maximum of |Mxy|, cycles per pulse.
    """
    fig, axes = plt.subplots(3, 1, figsize=(6.5, 5.6), sharex=True, layout="constrained", height_ratios=(2, 1, 1))
    magnitude = np.abs(mxy)
    axes[0].plot(position, magnitude, color=BLUE, lw=2)
    half = magnitude.max() / 2
    axes[0].annotate("", (-width / 2, half), (width / 2, half), arrowprops={"arrowstyle": "<->", "color": VERMILLION})
    axes[0].text(0, half + 0.04, f"FWHM {width:.2f}", color=VERMILLION, ha="center")
    # Where there is no signal there is no phase to speak of.
    axes[1].plot(position, np.where(magnitude > 0.05, np.degrees(np.angle(mxy)), np.nan), color=GREEN, lw=2)
    axes[1].set_ylim(-185, 185)
    axes[1].set_yticks([-180, -90, 0, 90, 180])
    axes[2].plot(position, mz, color=VERMILLION, lw=2)
    for ax, name in zip(axes, ("|Mxy| / M0", "phase (degrees)", "Mz / M0"), strict=True):
        ax.set_ylabel(name)
        ax.axhline(0, color="0.85", lw=1, zorder=0)
    axes[2].set_xlim(-1.6 * width, 1.6 * width)
    axes[2].set_xlabel("position (cycles per pulse)")
    return fig, axes


def slice_train(image: np.ndarray, centres_mm: np.ndarray, position_mm: np.ndarray, weight: np.ndarray, resolution: Resolution):
    """The stack of slices on a brain, and beside it the profiles of the five in the middle.

    Parameters
    ----------
    image : ndarray, 2D
        Coronal slice, upright, 1 mm pixels.
    centres_mm : ndarray, shape (n_lr,), mm
        Slice positions from the middle of the field of view.
    position_mm, weight : ndarray, shape (m,)
        As `helpers.slice_profile.profile` gives them.
    """
    fig, axes = plt.subplots(1, 2, figsize=(9, 4.4), layout="constrained", width_ratios=(1.25, 1))
    _show_brain(axes[0], image, image, cmap="gray", vmin=0, vmax=np.percentile(image, 99.5))
    half = resolution.thickness_mm / 2
    # Two colours in turn, so that slices without a gap can be told apart.
    colours = [(BLUE, VERMILLION)[index % 2] for index in range(len(centres_mm))]
    for centre, colour in zip(centres_mm, colours, strict=True):
        axes[0].axhspan(centre - half, centre + half, color=colour, alpha=0.35, lw=0)
    axes[0].set_xlabel("left-right (mm)")
    axes[0].set_title(f"{len(centres_mm)} slices of {resolution.label} mm", fontsize=11)
    middle = len(centres_mm) // 2
    for centre, colour in list(zip(centres_mm, colours, strict=True))[max(0, middle - 2) : middle + 3]:
        axes[1].axhspan(centre - half, centre + half, color=colour, alpha=0.2, lw=0)
        axes[1].plot(weight, centre + position_mm, color=colour, lw=1.8)
    axes[1].set_ylim(centres_mm[middle] + np.array([-2.6, 2.6]) * resolution.separation_mm)
    axes[1].set_xlabel("profile (of M0)")
    axes[1].set_title("the five in the middle; shaded: nominal", fontsize=11)
    for ax in axes:
        ax.set_ylabel("inferior-superior (mm)")
    return fig, axes


def taps(kernels: dict[str, np.ndarray], position_mm: np.ndarray, weight: np.ndarray, voxel_mm: float = 1.0):
    """Weights of the voxels around a slice, one bar or marker each, under the profile that they stand for.

    Parameters
    ----------
    kernels : dict
        Label -> ndarray, shape (2 r + 1,); the first is drawn as bars, others as markers.
    position_mm, weight : ndarray, shape (m,)
        As `helpers.slice_profile.profile` gives them.
    """
    fig, ax = plt.subplots(figsize=(7, 3.2), layout="constrained")
    area = np.sum(weight) * (position_mm[1] - position_mm[0])
    ax.plot(position_mm, weight * voxel_mm / area, color=BLUE, lw=2, label="profile")
    for index, (label, kernel) in enumerate(kernels.items()):
        z = (np.arange(len(kernel)) - len(kernel) // 2) * voxel_mm
        if index == 0:
            ax.bar(z, kernel, width=0.92 * voxel_mm, color=ORANGE, alpha=0.6, label=label)
            ax.set_xlim(z[0] - voxel_mm, z[-1] + voxel_mm)
        else:
            ax.plot(z, kernel, ls="", marker="D", ms=6, color=VERMILLION, label=label)
    ax.set_xlabel("distance from the slice centre (mm)")
    ax.set_ylabel("weight of the voxel")
    ax.legend(frameon=False, loc="upper left")
    return fig, ax


def transfer(frequency: np.ndarray, curves: dict[str, np.ndarray], resolution: Resolution):
    """What is left of each spatial frequency, with the Nyquist frequency of the slices.

    Parameters
    ----------
    frequency : ndarray, shape (f,), cycles per mm
    curves : dict
        Label -> ndarray, shape (f,), real.
    """
    fig, ax = plt.subplots(figsize=(7, 3.4), layout="constrained")
    nyquist = 0.5 / resolution.separation_mm
    ax.axvspan(nyquist, frequency[-1], color="0.94", zorder=0)
    ax.axvline(nyquist, color="0.35", lw=1.2, ls=":")
    ax.text(nyquist + 0.006, 1.02, f"Nyquist of the slices, {nyquist:.3f}: beyond it, aliasing", color="0.35", fontsize=9)
    ax.axhline(0, color="0.8", lw=1)
    for (label, curve), colour, style in zip(curves.items(), (BLUE, VERMILLION, GREEN), ("-", "--", ":"), strict=False):
        ax.plot(frequency, curve, style, color=colour, lw=2, label=label)
    ax.set_xlim(0, frequency[-1])
    ax.set_ylim(-0.35, 1.15)
    ax.set_xlabel("through-plane spatial frequency (cycles/mm)")
    ax.set_ylabel("transfer function")
    ax.legend(frameon=False, loc="center right")
    return fig, ax


def through_plane(original: np.ndarray, stack: np.ndarray, back: np.ndarray, resolution: Resolution):
    """An image from the side of its slices: original, slices as acquired, interpolated back, and the error.

    Parameters
    ----------
    original, back : ndarray, shape (rows, columns)
        Coronal slices, upright, 1 mm pixels.
    stack : ndarray, shape (n_lr, columns)
        The same plane of the thick slices: one row each.
    """
    fig, axes = plt.subplots(1, 4, figsize=(12, 3.2), layout="constrained")
    vmax = np.percentile(original, 99.5)
    images = {"original": original, f"slices, {resolution.label}": stack, "interpolated back": back}
    for ax, (title, image) in zip(axes, images.items(), strict=False):
        row_mm = resolution.separation_mm if image is stack else 1
        shown = _show_brain(ax, image, original, row_mm, cmap="gray", vmin=0, vmax=vmax)
        ax.set_title(title, fontsize=11)
    fig.colorbar(shown, ax=axes[:3], label="intensity", shrink=0.8, aspect=30)
    limit = np.percentile(np.abs(back - original), 99.5)
    error = _show_brain(axes[3], back - original, original, cmap="PuOr_r", vmin=-limit, vmax=limit)
    axes[3].set_title("error", fontsize=11)
    fig.colorbar(error, ax=axes[3], label="back - original", shrink=0.8, aspect=30)
    for ax in axes:
        ax.axis("off")
    return fig, axes


def _show_brain(ax, image, original, row_mm=1, **look):
    """Show an image in mm from its middle, as much of it as has brain in the 1 mm `original`."""
    extent = np.array([-0.5, 0.5, -0.5, 0.5]) * np.repeat([image.shape[1], image.shape[0] * row_mm], 2)
    shown = ax.imshow(image, extent=extent, interpolation="nearest", **look)
    rows, columns = (np.flatnonzero((original > 0).any(axis=axis)) for axis in (1, 0))
    ax.set_xlim(columns[0] - 8 - original.shape[1] / 2, columns[-1] + 9 - original.shape[1] / 2)
    ax.set_ylim(original.shape[0] / 2 - rows[-1] - 9, original.shape[0] / 2 - rows[0] + 8)
    return shown
