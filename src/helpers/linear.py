"""One matrix along one axis of a volume: what slices are made with, and what brings them back."""

from functools import lru_cache

import numpy as np


def along_axis(matrix: np.ndarray, volume: np.ndarray, axis: int) -> np.ndarray:
    """Apply a matrix to every line of a volume along one axis, as one matrix product.

    The same input gives the same bits on any number of cores: BLAS is held to one thread, since where it splits the
    product among several, elements at the seams are rounded differently. On volumes of this size memory is the limit,
    and a second thread gains little.

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
    with _blas().limit(limits=1, user_api="blas"):
        if axis == 0:
            return np.tensordot(matrix, volume, axes=(1, 0))
        return np.moveaxis(np.tensordot(volume, matrix, axes=(axis, 1)), -1, axis)


@lru_cache(maxsize=1)
def _blas():
    # Looking for the libraries takes some ms; NumPy's own is there from the start.
    from threadpoolctl import ThreadpoolController

    return ThreadpoolController()
