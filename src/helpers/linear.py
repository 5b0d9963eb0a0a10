"""One matrix along one axis of a volume: what slices are made with, and what brings them back."""

import contextlib
from functools import lru_cache

import numpy as np
from scipy import ndimage

#: Index maps that differ by less than this anywhere on the grid are the same one. It is the size of the error
#: of an affine that went through a NIfTI header (float32), and moves a voxel's value by less than 0.1 % of
#: the step to its neighbour.
SAME_VOXEL = 1e-3


def along_axis(matrix: np.ndarray, volume: np.ndarray, axis: int) -> np.ndarray:
    """Apply a matrix to every line of a volume along one axis, as one matrix product.

    The same input gives the same bits on any number of cores: BLAS is held to one thread, since OpenBLAS on a
    processor without AVX-512 rounds elements at the seams of what its threads share differently (measured).
    On volumes of this size memory is the limit, and a second thread gains little.

    Parameters
    ----------
    matrix : ndarray, shape (m, n)
    volume : ndarray, shape (X, Y, Z)
        With n voxels along the axis.
    axis : {0, 1, 2}

    Returns
    -------
    ndarray, float32
        With m voxels along the axis. In Fortran order if the volume is.
    """
    if volume.flags.f_contiguous and not volume.flags.c_contiguous:
        # nibabel reads in Fortran order: seen from the other side it is C order, and nothing is copied.
        return along_axis(matrix, volume.T, 2 - axis).T
    matrix, volume = matrix.astype(np.float32, copy=False), volume.astype(np.float32, copy=False)
    with one_thread():
        if axis == 0:
            return np.tensordot(matrix, volume, axes=(1, 0))
        return np.moveaxis(np.tensordot(volume, matrix, axes=(axis, 1)), -1, axis)


def spline_matrix(position: np.ndarray, n: int) -> np.ndarray:
    """The matrix of cubic B-spline interpolation along one axis.

    Parameters
    ----------
    position : ndarray, shape (m,), voxels
        Where the values are wanted, on the axis of the samples.
    n : int
        Samples.

    Returns
    -------
    ndarray, shape (m, n), float64
        Rows outside the field of view are zero.
    """
    # The spline is linear in the samples, so its values for the n unit vectors are its matrix.
    matrix = np.stack(
        [ndimage.map_coordinates(unit, [position], order=3, mode="mirror") for unit in np.eye(n)], axis=1
    )
    matrix[~inside(position, n)] = 0
    return matrix


def inside(position: np.ndarray, n: int) -> np.ndarray:
    """Whether positions on an axis lie in the field of view, which ends half a voxel beyond the outermost
    centres.

    Parameters
    ----------
    position : ndarray, voxels
    n : int

    Returns
    -------
    ndarray of bool
    """
    return (position > -0.5 - SAME_VOXEL) & (position < n - 0.5 + SAME_VOXEL)


def one_thread() -> contextlib.AbstractContextManager:
    """A context in which BLAS and LAPACK use one thread, and so round the same on any number of cores."""
    return _blas().limit(limits=1, user_api="blas")


@lru_cache(maxsize=1)
def _blas():
    # Looking for the libraries takes some ms; NumPy's own is there from the start.
    from threadpoolctl import ThreadpoolController

    return ThreadpoolController()
