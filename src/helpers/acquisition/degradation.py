"""Simulate a 2D acquisition from an isotropic volume: one matrix along one axis.

Blurring by the slice profile, cubic B-spline interpolation and sampling at the slice positions are all
linear and act along the slice normal only. Together they are one matrix (slices x voxels), built once for
each number of voxels, voxel size, resolution and profile, and applied as one matrix product.

References
----------
.. [1] Hays et al. (2024). Beyond MR image harmonization: resolution matters too. Section 2.
.. [2] Unser, Aldroubi, Eden (1993). B-spline signal processing. IEEE Trans Signal Process 41(2):821-848.
"""

from functools import lru_cache

import numpy as np
from scipy import ndimage

from helpers import grid, linear, study, volumes
from helpers.acquisition import slice_profile
from helpers.acquisition.rf_pulse import Pulse


def slice_positions(n: int, voxel_mm: float, resolution: study.Resolution) -> np.ndarray:
    """Where the slices lie: a stack with exactly the slice separation, centred on the field of view.

    Parameters
    ----------
    n : int
        Voxels along the slice normal.
    voxel_mm : float
        Their size, mm.
    resolution : study.Resolution
        Slice thickness and gap.

    Returns
    -------
    ndarray, shape (n_lr,), voxels
        Index of each slice centre on the axis of voxels, not necessarily whole.

    Examples
    --------
    >>> slice_positions(10, 1.0, study.Resolution(2, 0.5))
    array([0.75, 3.25, 5.75, 8.25])
    """
    separation = resolution.separation_mm / voxel_mm
    n_lr = max(1, round(n / separation))
    return (n - 1) / 2 + (np.arange(n_lr) - (n_lr - 1) / 2) * separation


def matrix(n: int, voxel_mm: float, resolution: study.Resolution, pulse: Pulse = Pulse()) -> np.ndarray:
    """The matrix that turns a line of voxels along the slice normal into slices.

    M = S B3 K: convolution with the slice profile (K), cubic B-spline interpolation with its
    pre-filter (B3), sampling at `slice_positions` (S). Beyond the edges the outermost voxel goes on.
    The gap enters S only, never the kernel.

    Parameters
    ----------
    n : int
        Voxels along the slice normal.
    voxel_mm : float
        Their size, mm.
    resolution : study.Resolution
        Slice thickness and gap.
    pulse : Pulse
        Its slice profile blurs.

    Returns
    -------
    ndarray, shape (n_lr, n), float64, unitless, read-only
        Every row sums to 1.

    Raises
    ------
    ValueError
        As `slice_profile.taps`.
    """
    # An affine read from float32 says 1.00000006 mm: not another matrix.
    return _cached_matrix(int(n), round(float(voxel_mm), 6), resolution, pulse)


def degrade(
    volume: np.ndarray,
    affine: np.ndarray,
    orientation: str,
    resolution: study.Resolution,
    pulse: Pulse = Pulse(),
):
    """Simulate the 2D acquisition of a volume [1].

    Parameters
    ----------
    volume : ndarray, shape (X, Y, Z)
        High-resolution volume.
    affine : ndarray, shape (4, 4), mm
        Its voxel index to world position; may be flipped, permuted, oblique, of any voxel size.
    orientation : {"axial", "sagittal", "coronal"}
        Of the simulated slices.
    resolution : study.Resolution
        Slice thickness and gap.
    pulse : Pulse
        Its slice profile blurs.

    Returns
    -------
    lr_volume : ndarray, float32
        The slices; shorter along the through-plane axis only.
    lr_affine : ndarray, shape (4, 4), mm
        The same world position shows the same anatomy as before.

    Raises
    ------
    ValueError
        If the volume, affine or orientation cannot be used, or as `slice_profile.taps`.
    """
    volume = volumes.as_volume(volume)
    affine = np.asarray(affine, dtype=float)
    axis = grid.through_plane_axis(affine, orientation)
    voxel_mm = float(np.linalg.norm(affine[:3, axis]))
    weights = matrix(volume.shape[axis], voxel_mm, resolution, pulse)
    positions = slice_positions(volume.shape[axis], voxel_mm, resolution)
    lr_affine = affine.copy()
    lr_affine[:3, 3] += affine[:3, axis] * positions[0]
    lr_affine[:3, axis] *= resolution.separation_mm / voxel_mm
    return linear.along_axis(weights, volume, axis), lr_affine


@lru_cache(maxsize=128)
def _cached_matrix(n: int, voxel_mm: float, resolution: study.Resolution, pulse: Pulse) -> np.ndarray:
    taps = slice_profile.taps(resolution.thickness_mm, voxel_mm, pulse)
    weights = matrix_of(taps, n, voxel_mm, resolution)
    weights.flags.writeable = False
    return weights


def matrix_of(taps: np.ndarray, n: int, voxel_mm: float, resolution: study.Resolution) -> np.ndarray:
    """`matrix` for a slice profile that is given by its taps, whatever they are.

    Parameters
    ----------
    taps : ndarray, shape (2 r + 1,), unitless
        Weights of the voxels around a slice, whose centre is the middle one. They should sum to 1.
    n, voxel_mm, resolution
        As in `matrix`; the thickness is that of the taps.

    Returns
    -------
    ndarray, shape (n_lr, n), float64, unitless
    """
    blurred = ndimage.convolve1d(np.eye(n), taps, axis=0, mode="nearest")
    positions = slice_positions(n, voxel_mm, resolution)
    # One call for each voxel's column: map_coordinates on the whole would interpolate across columns too.
    columns = [
        ndimage.map_coordinates(column, positions[None], order=3, mode="nearest") for column in blurred.T
    ]
    return np.stack(columns, axis=1)


def back_matrix(n: int, resolution: study.Resolution) -> np.ndarray:
    """The matrix that interpolates a stack of slices back to 1 mm when the transform is known exactly (no
    registration error).

    Parameters
    ----------
    n : int
        Voxels of 1 mm along the slice normal.
    resolution : study.Resolution

    Returns
    -------
    ndarray, shape (n, n_lr), float64
    """
    positions = slice_positions(n, 1.0, resolution)
    return linear.spline_matrix((np.arange(n) - positions[0]) / resolution.separation_mm, len(positions))


@lru_cache(maxsize=32)
def there_and_back(n: int, resolution: study.Resolution) -> np.ndarray:
    """The matrix that slices a line of n voxels of 1 mm and interpolates it back, shape (n, n), float64,
    read-only."""
    both = back_matrix(n, resolution) @ matrix(n, 1.0, resolution)
    both.flags.writeable = False
    return both
