"""What is known of a stack of thick slices: the axis across them, its scale, and where it shows something."""

from collections.abc import Sequence

import numpy as np

from helpers.cohort import examination
from helpers.study import GRID_MM, Resolution
from helpers.super_resolution.network import REACH, SAME_PROTOCOL_MM

_FOREGROUND = 0.02  # of the scale: where less is seen, nothing is added


def through_plane_axis(
    shape: Sequence[int], affine: np.ndarray, resolution: Resolution, what: str = "stack"
) -> int:
    """The axis along which a stack's slices follow each other, if it can be resolved at all.

    Parameters
    ----------
    shape : sequence of three int
    affine : ndarray, shape (4, 4), mm
        Voxel index to world position; may be flipped, permuted, oblique.
    resolution : Resolution
        Thickness and gap of the slices.
    what : str
        What to call the stack in a message.

    Returns
    -------
    int
        0, 1 or 2.

    Raises
    ------
    ValueError
        If no axis has the separation, there are too few slices, or they are not thicker than the voxels in
        their plane.
    """
    affine = np.asarray(affine, dtype=float)
    if affine.shape != (4, 4) or not np.isfinite(affine).all() or np.linalg.matrix_rank(affine[:3, :3]) < 3:
        raise ValueError(f"{what} has the affine {affine.tolist()}: accepted is an invertible 4 x 4 matrix")
    for finding in examination.examine_angles(affine):
        raise ValueError(f"{what} has {finding.text}")
    voxel_mm = np.linalg.norm(affine[:3, :3], axis=0)
    axis = int(voxel_mm.argmax())
    sizes = " x ".join(f"{size:.4g}" for size in voxel_mm)
    if abs(voxel_mm[axis] - resolution.separation_mm) > SAME_PROTOCOL_MM:
        separation = f"{resolution.separation_mm:g} mm apart ({resolution.label})"
        raise ValueError(
            f"{what} has voxels of {sizes} mm: accepted are stacks whose slices lie {separation}"
        )
    if resolution.thickness_mm <= GRID_MM or np.delete(voxel_mm, axis).max() >= resolution.thickness_mm:
        larger = f"slices thicker than {GRID_MM:g} mm and than the voxels in their plane"
        given = f"voxels of {sizes} mm and slices of {resolution.thickness_mm:g} mm"
        raise ValueError(f"{what} has {given}: accepted are {larger}")
    if shape[axis] < REACH:
        accepted = f"stacks of {REACH} and more, the reach of the network"
        raise ValueError(f"{what} has {shape[axis]} slices: accepted are {accepted}")
    return axis


def foreground_box(volume, margin):
    """Bounding box of the foreground plus a margin; the volume is already divided by its scale."""
    seen = [np.flatnonzero(volume.max(axis=tuple({0, 1, 2} - {axis})) > _FOREGROUND) for axis in range(3)]
    return [slice(max(indices[0] - margin, 0), indices[-1] + 1 + margin) for indices in seen]


def scale_of(volume):
    """The 99th percentile of what lies above the mean: most of an image stays below; 0 if nothing does."""
    bright = volume[volume > max(0.0, float(volume.mean(dtype=np.float64)))]
    return float(np.percentile(bright, 99)) if bright.size else 0.0
