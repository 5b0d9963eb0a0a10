"""Linear estimates of what lies between slices: to begin with, and to compare with."""

import math
from functools import lru_cache

import numpy as np

from helpers import linear
from helpers.acquisition import degradation
from helpers.acquisition.rf_pulse import Pulse
from helpers.study import GRID_MM, Resolution


@lru_cache(maxsize=32)
def estimate_matrix(n: int, resolution: Resolution, pulse: Pulse = Pulse()) -> np.ndarray:
    """The matrix of the linear estimate: of all lines of voxels that give these slices, the smoothest.

    It minimizes the sum of squares of first and second differences, and is exact: `degradation.matrix` @ it
    is the identity.

    Parameters
    ----------
    n : int
        Voxels of 1 mm along the slice normal.
    resolution : Resolution
    pulse : Pulse

    Returns
    -------
    ndarray, shape (n, n_lr), float64, read-only
    """
    slicing = degradation.matrix(n, GRID_MM, resolution, pulse)
    n_lr = len(slicing)
    first, second = np.diff(np.eye(n), axis=0), np.diff(np.eye(n), 2, axis=0)
    roughness = first.T @ first + second.T @ second
    system = np.block([[roughness, slicing.T], [slicing, np.zeros((n_lr, n_lr))]])
    with linear.one_thread():
        estimate = np.linalg.solve(system, np.vstack([np.zeros((n, n_lr)), np.eye(n_lr)]))[:n]
    estimate.flags.writeable = False
    return estimate


def tikhonov_matrix(n: int, resolution: Resolution, weight: float = 0.01) -> np.ndarray:
    """The matrix that brings a line of slices back by least squares, with first differences held small: what
    super-resolution is compared with.

    Parameters
    ----------
    n : int
        Voxels of 1 mm along the slice normal.
    resolution : Resolution
    weight : float
        Of the squares of first differences, against those of the slices' errors.

    Returns
    -------
    ndarray, shape (n, n_lr), float64
    """
    slicing, first = degradation.matrix(n, GRID_MM, resolution), np.diff(np.eye(n), axis=0)
    with linear.one_thread():
        return np.linalg.solve(slicing.T @ slicing + weight * first.T @ first, slicing.T)


@lru_cache(maxsize=32)
def operators(n, resolution, pulse):
    """Slicing (n_lr, n), linear estimate (n, n_lr), and from the network's rows to voxels (n, rows n_lr)."""
    separation = resolution.separation_mm / GRID_MM
    positions = degradation.slice_positions(n, GRID_MM, resolution)
    rows = math.ceil(separation)
    first = positions[0] + (0.5 / rows - 0.5) * separation
    to_voxels = linear.spline_matrix((np.arange(n) - first) / (separation / rows), rows * len(positions))
    matrices = (
        degradation.matrix(n, GRID_MM, resolution, pulse),
        estimate_matrix(n, resolution, pulse),
        to_voxels,
    )
    return tuple(matrix.astype(np.float32) for matrix in matrices)
