"""Figures of the 2D acquisition: pulses, slice profiles, and what they do to an image."""

import matplotlib.pyplot as plt
import numpy as np

from helpers import drawing
from helpers.study import Resolution


def rows_of_matrix(matrix: np.ndarray, resolution: Resolution):
    """Three neighbouring slices of a degradation matrix: what each takes from every plane of the 3D image.

    Parameters
    ----------
    matrix : ndarray, shape (n_lr, n_hr)
        As `helpers.acquisition.degradation.matrix` gives it for voxels of 1 mm.
    """
    fig, ax = plt.subplots(figsize=(7, 3), layout="constrained")
    middle = len(matrix) // 2
    z_mm = np.arange(matrix.shape[1]) - (matrix.shape[1] - 1) / 2
    for index, colour in zip(range(middle - 1, middle + 2), drawing.COLOURS.values(), strict=True):
        ax.step(z_mm, matrix[index], where="mid", color=colour, label=f"slice {index}")
    centre = (np.arange(middle - 1, middle + 2) - (len(matrix) - 1) / 2) * resolution.separation_mm
    for z in centre:
        ax.axvspan(z - resolution.thickness_mm / 2, z + resolution.thickness_mm / 2, color="0.93", zorder=0)
    ax.set_xlim(centre[0] - 1.5 * resolution.separation_mm, centre[-1] + 1.5 * resolution.separation_mm)
    ax.set_xlabel("through-plane position (mm); grey: nominal slices")
    ax.set_ylabel("weight of the 1 mm plane")
    ax.legend(frameon=False)
    return fig, ax


def aliasing(
    z_mm: np.ndarray, pattern: np.ndarray, seen: dict[str, tuple[np.ndarray, np.ndarray, np.ndarray]]
):
    """A regular pattern across the slices, what each slice sees of it, and what interpolation makes of that.

    Parameters
    ----------
    z_mm, pattern : ndarray, shape (n,)
        Position along the slice normal, and the pattern there.
    seen : dict
        Label -> (position of the slices in mm, their values, and the values interpolated back to `z_mm`).
    """
    fig, axes = plt.subplots(
        len(seen),
        1,
        figsize=(7.5, 1.9 * len(seen)),
        sharex=True,
        sharey=True,
        squeeze=False,
        layout="constrained",
    )
    for ax, (label, (centres_mm, values, back)) in zip(axes.flat, seen.items(), strict=True):
        ax.plot(z_mm, pattern, color="0.7", lw=1.5, label="pattern")
        ax.plot(z_mm, back, color=drawing.COLOURS["T1w"], lw=2, label="interpolated back")
        ax.plot(centres_mm, values, ls="", marker="o", ms=6, color=drawing.COLOURS["T2w"], label="slices")
        ax.set_title(label, fontsize=11)
    axes.flat[-1].set_xlabel("through-plane position (mm)")
    fig.legend(*axes.flat[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False)
    return fig, axes.ravel()


# Slice profiles (notebook 01).


def pulse(rf: np.ndarray):
    """B1 of an RF pulse over its duration; `rf` is shape (n,), rad per sample."""
    fig, ax = plt.subplots(figsize=(6, 2.8), layout="constrained")
    ax.axhline(0, color="0.8", lw=1)
    ax.plot((np.arange(len(rf)) + 0.5) / len(rf), np.degrees(rf), color=drawing.BLUE, lw=2)
    ax.set_xlabel("time (durations of the pulse)")
    ax.set_ylabel("B1 (degrees per sample)")
    return fig, ax


def magnetization(position: np.ndarray, mxy: np.ndarray, mz: np.ndarray, width: float):
    """``|Mxy|``, phase and Mz across a slice, with its width at half maximum.

    Parameters
    ----------
    position, mxy, mz : ndarray, shape (m,)
        As `helpers.acquisition.rf_pulse.bloch` gives them; position in cycles per pulse.
    width : float
        Full width at half maximum of ``|Mxy|``, cycles per pulse.
    """
    fig, axes = plt.subplots(
        3, 1, figsize=(6.5, 5.6), sharex=True, layout="constrained", height_ratios=(2, 1, 1)
    )
    magnitude = np.abs(mxy)
    axes[0].plot(position, magnitude, color=drawing.BLUE, lw=2)
    half = magnitude.max() / 2
    axes[0].annotate(
        "",
        (-width / 2, half),
        (width / 2, half),
        arrowprops={"arrowstyle": "<->", "color": drawing.VERMILLION},
    )
    axes[0].text(0, half + 0.04, f"FWHM {width:.2f}", color=drawing.VERMILLION, ha="center")
    # Where there is no signal there is no phase to speak of.
    axes[1].plot(
        position, np.where(magnitude > 0.05, np.degrees(np.angle(mxy)), np.nan), color=drawing.GREEN, lw=2
    )
    axes[1].set_ylim(-185, 185)
    axes[1].set_yticks([-180, -90, 0, 90, 180])
    axes[2].plot(position, mz, color=drawing.VERMILLION, lw=2)
    for ax, name in zip(axes, ("|Mxy| / M0", "phase (degrees)", "Mz / M0"), strict=True):
        ax.set_ylabel(name)
        ax.axhline(0, color="0.85", lw=1, zorder=0)
    axes[2].set_xlim(-1.6 * width, 1.6 * width)
    axes[2].set_xlabel("position (cycles per pulse)")
    return fig, axes


def slice_train(
    image: np.ndarray,
    centres_mm: np.ndarray,
    position_mm: np.ndarray,
    weight: np.ndarray,
    resolution: Resolution,
):
    """The stack of slices on a brain, and beside it the profiles of the five in the middle.

    Parameters
    ----------
    image : ndarray, 2D
        Coronal slice, upright, 1 mm pixels.
    centres_mm : ndarray, shape (n_lr,), mm
        Slice positions from the middle of the field of view.
    position_mm, weight : ndarray, shape (m,)
        As `helpers.acquisition.slice_profile.profile` gives them.
    """
    fig, axes = plt.subplots(1, 2, figsize=(9, 4.4), layout="constrained", width_ratios=(1.25, 1))
    _show_brain(axes[0], image, image, cmap="gray", vmin=0, vmax=np.percentile(image, 99.5))
    half = resolution.thickness_mm / 2
    # Two colours in turn, so that slices without a gap can be told apart.
    colours = [(drawing.BLUE, drawing.VERMILLION)[index % 2] for index in range(len(centres_mm))]
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


def curve(x: np.ndarray, y: np.ndarray, xlabel: str, ylabel: str, at: float):
    """One quantity against another, with a mark where it is looked at."""
    fig, ax = plt.subplots(figsize=(6, 2.6), layout="constrained")
    ax.plot(x, y, color=drawing.BLUE, lw=2)
    ax.axvline(at, color=drawing.VERMILLION, ls=":", lw=1.6)
    ax.set_ylim(bottom=min(0, np.min(y)))  # a share is seen as one only from zero on
    ax.set_xlabel(xlabel)
    ax.set_ylabel(ylabel)
    return fig, ax


def taps(kernels: dict[str, np.ndarray], position_mm: np.ndarray, weight: np.ndarray, voxel_mm: float = 1.0):
    """Weights of the voxels around a slice, one bar or marker each, under the profile that they stand for.

    Parameters
    ----------
    kernels : dict
        Label -> ndarray, shape (2 r + 1,); the first is drawn as bars, others as markers.
    position_mm, weight : ndarray, shape (m,)
        As `helpers.acquisition.slice_profile.profile` gives them.
    """
    fig, ax = plt.subplots(figsize=(7, 3.2), layout="constrained")
    area = np.sum(weight) * (position_mm[1] - position_mm[0])
    ax.plot(position_mm, weight * voxel_mm / area, color=drawing.BLUE, lw=2, label="profile")
    markers = zip(("s", "^", "D"), (drawing.BLUE, drawing.GREEN, drawing.VERMILLION), strict=True)
    for index, (label, kernel) in enumerate(kernels.items()):
        z = (np.arange(len(kernel)) - len(kernel) // 2) * voxel_mm
        if index == 0:
            ax.bar(z, kernel, width=0.92 * voxel_mm, color=drawing.ORANGE, alpha=0.6, label=label)
            ax.set_xlim(z[0] - voxel_mm, z[-1] + voxel_mm)
        else:
            marker, colour = next(markers)
            ax.plot(z, kernel, ls="", marker=marker, ms=6, color=colour, label=label)
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
    ax.text(
        nyquist + 0.006,
        1.02,
        f"Nyquist of the slices, {nyquist:.3f}: beyond it, aliasing",
        color="0.35",
        fontsize=9,
    )
    ax.axhline(0, color="0.8", lw=1)
    for (label, curve), colour, style in zip(
        curves.items(), (drawing.BLUE, drawing.VERMILLION, drawing.GREEN), ("-", "--", ":"), strict=False
    ):
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
        picture = _show_brain(ax, image, original, row_mm, cmap="gray", vmin=0, vmax=vmax)
        ax.set_title(title, fontsize=11)
    fig.colorbar(picture, ax=axes[:3], label="intensity", shrink=0.8, aspect=30)
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
    picture = ax.imshow(image, extent=extent, interpolation="nearest", **look)
    rows, columns = (np.flatnonzero((original > 0).any(axis=axis)) for axis in (1, 0))
    ax.set_xlim(columns[0] - 8 - original.shape[1] / 2, columns[-1] + 9 - original.shape[1] / 2)
    ax.set_ylim(original.shape[0] / 2 - rows[-1] - 9, original.shape[0] / 2 - rows[0] + 8)
    return picture
