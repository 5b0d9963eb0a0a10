"""The grid that all images are compared on: MNI space, 1 mm, as HACA3 takes it; its axes, and which way is
up."""

import nibabel as nib
import numpy as np

from helpers import study

#: HACA3's MNI grid: 1 mm, stored left-posterior-superior.
SHAPE = (192, 224, 192)
AFFINE = np.array([[-1, 0, 0, 96], [0, -1, 0, 96], [0, 0, 1, -78], [0, 0, 0, 1]], dtype=np.float64)
AFFINE.setflags(write=False)
#: The array axis along which an orientation stacks its slices, on a grid stored left, posterior, superior
#: such as HACA3's.
AXIS = {"axial": 2, "coronal": 1, "sagittal": 0}
#: The two anatomical directions between which the slices of an orientation are stacked.
THROUGH_PLANE = {"axial": "IS", "sagittal": "LR", "coronal": "PA"}


def through_plane_axis(affine: np.ndarray, orientation: str) -> int:
    """The array axis along which slices of an orientation are stacked, found from the affine.

    Parameters
    ----------
    affine : ndarray, shape (4, 4), mm
        Voxel index to world position.
    orientation : {"axial", "sagittal", "coronal"}
        Slices stacked inferior-superior, left-right or posterior-anterior.

    Returns
    -------
    int
        0, 1 or 2. An oblique volume has the axis that is nearest to the anatomical one.

    Raises
    ------
    ValueError
        If the orientation is unknown or the affine is not an invertible 4 x 4 matrix.

    Examples
    --------
    >>> through_plane_axis(np.eye(4), "sagittal")
    0
    """
    study.require("orientation", orientation, study.ORIENTATIONS)
    affine = np.asarray(affine, dtype=float)
    if affine.shape != (4, 4) or not np.isfinite(affine).all() or np.linalg.matrix_rank(affine[:3, :3]) < 3:
        raise ValueError(f"affine is {affine.tolist()}: accepted is an invertible 4 x 4 matrix")
    codes = nib.aff2axcodes(affine)
    return next(axis for axis, code in enumerate(codes) if code in THROUGH_PLANE[orientation])


def volume_ml(mask: np.ndarray, affine: np.ndarray) -> float:
    """Volume of the voxels of a mask, ml; of slices that lie apart, with the space up to the next.

    Examples
    --------
    >>> volume_ml(np.ones((10, 10, 10), bool), np.diag([1, 1, 11, 1]))
    11.0
    """
    return float(np.count_nonzero(mask) * abs(np.linalg.det(np.asarray(affine, float)[:3, :3])) / 1e3)


def upright(volume: np.ndarray, orientation: str, index: int) -> np.ndarray:
    """One slice of an LPS volume as radiologists hang it: anterior or superior up, the patient's right on the
    left.

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
