"""Back to the MNI grid: the seeded motion of a simulated scan, its estimate by ANTs, cubic B-spline
resampling, the error.

Conventions of every function here. Positions are RAS+ millimetres, an affine maps a voxel index to such a
position, and a transform is a 4x4 matrix between positions that maps a point of the *fixed* image to the
point of the *moving* image that shows the same anatomy: the direction in which images are resampled.

The headers of a simulated acquisition already sit in MNI space, which would make registration trivial.
Therefore a stack is first moved (`motion`, `move`). The known transform, which undoes that exactly, is the
motion itself.
"""

import os
import tempfile
from collections.abc import Sequence

import numpy as np
from scipy import ndimage
from scipy.spatial.transform import Rotation

from helpers import internals, linear, volumes
from helpers.study import CONTRASTS, ORIENTATIONS, require

#: Near the centre of mass of a brain in MNI space (RAS, mm): the point about which a head is turned.
BRAIN_CENTRE_MM = (0.0, -20.0, 12.0)
MAX_ROTATION_DEGREES = 5.0
MAX_TRANSLATION_MM = 5.0

_ANTS_NAME = {"rigid": "Rigid", "affine": "Affine"}
#: ITK's positions are LPS, ours are RAS.
_FLIP = np.diag([-1.0, -1.0, 1.0, 1.0])
#: Voxels of the short registrations that choose between starts. One takes a third of a second.
COARSE_MM = 4.0
#: Shrinking, smoothing (voxels) and iterations at each scale.
_FINE = {
    "aff_shrink_factors": (6, 4, 2),
    "aff_smoothing_sigmas": (3, 2, 1),
    "aff_iterations": (500, 250, 100),
}
_COARSE = {"aff_shrink_factors": (2, 1), "aff_smoothing_sigmas": (1, 0), "aff_iterations": (100, 50)}


def motion(seed: int, subject: int, contrast: str, orientation: str) -> np.ndarray:
    """Rigid motion of one simulated scan: how the head lay when these slices were acquired.

    Three rotations (about x, then y, then z) through the centre of the brain, `BRAIN_CENTRE_MM`, each uniform
    in ±5 degrees, then a translation, uniform in ±5 mm per axis. One motion for each subject, contrast and
    orientation; the eight resolutions share it, so that they differ in nothing but resolution.

    Parameters
    ----------
    seed : int
        Seed of the study, 0 or more.
    subject : int
        What random numbers of the subject start from (`helpers.study.subjects`), 0 or more.
    contrast : str
        ``T1w``, ``T2w`` or ``FLAIR``.
    orientation : str
        ``axial``, ``sagittal`` or ``coronal``.

    Returns
    -------
    ndarray, shape (4, 4)
        Position in MNI space to position in the scanner, mm.

    Raises
    ------
    ValueError
        If the contrast or the orientation is unknown, or a number is negative.
    """
    contrast = require("contrast", contrast, CONTRASTS)
    orientation = require("orientation", orientation, ORIENTATIONS)
    for name, value in (("seed", seed), ("subject", subject)):
        if value != int(value) or value < 0:
            raise ValueError(f"{name} is {value!r}: accepted are whole numbers from 0")
    entropy = (int(seed), int(subject), CONTRASTS.index(contrast), ORIENTATIONS.index(orientation))
    generator = np.random.default_rng(np.random.SeedSequence(entropy))
    angles = generator.uniform(-MAX_ROTATION_DEGREES, MAX_ROTATION_DEGREES, 3)
    translation = generator.uniform(-MAX_TRANSLATION_MM, MAX_TRANSLATION_MM, 3)
    centre = np.array(BRAIN_CENTRE_MM)
    transform = np.eye(4)
    transform[:3, :3] = Rotation.from_euler("xyz", angles, degrees=True).as_matrix()
    transform[:3, 3] = centre + translation - transform[:3, :3] @ centre
    return transform


def move(affine: np.ndarray, motion: np.ndarray) -> np.ndarray:
    """Affine of a stack whose head has moved: the voxels stay, their positions change.

    ``resample(stack, move(affine, motion), shape, target_affine, motion)`` is then what
    ``resample(stack, affine, shape, target_affine)`` was.

    Parameters
    ----------
    affine : ndarray, shape (4, 4)
        Voxel index to position in MNI space, mm.
    motion : ndarray, shape (4, 4)
        Position in MNI space to position in the scanner, mm.

    Returns
    -------
    ndarray, shape (4, 4)
        Voxel index to position in the scanner, mm.

    Raises
    ------
    ValueError
        If one of the two is not an invertible 4x4 affine.
    """
    return _checked_matrix(motion, "motion") @ _checked_matrix(affine, "affine")


def estimate(
    moving: np.ndarray,
    moving_affine: np.ndarray,
    fixed: np.ndarray,
    fixed_affine: np.ndarray,
    fixed_mask: np.ndarray,
    kind: str = "rigid",
    seed: int = 0,
    starts: Sequence[np.ndarray] = (),
) -> np.ndarray:
    """Register `moving` to `fixed` with ANTs.

    Mattes mutual information within the mask at three scales (shrinking 6, 4, 2; smoothing 3, 2, 1 voxels),
    from the aligned centres of mass, or from the best of several starts. A fourth stage at full resolution is
    left out: on 6.5 mm slices it doubled the time, for a rigid error of 0.05 instead of 0.14 mm. Expect
    `affine` to be worse than `rigid` on thick slices (0.4-0.5 mm): blurred through-plane, a brain looks
    taller, and 12 degrees of freedom scale it to fit. Each of several starts is followed by a short rigid
    registration of coarse images; the one that ends at the largest `mutual_information` goes on to the three
    scales. Where the wrong part of the body is in the way, or a head is turned, one start ends in a local
    optimum tens of mm away, and its mutual information is far below that of the right place. The same input
    and seed give the same bits, provided that ants was first imported in the process by `import_ants`.

    Parameters
    ----------
    moving : ndarray, shape (X, Y, Z)
        Image to be brought to `fixed`, e.g. a stack of thick slices.
    moving_affine : ndarray, shape (4, 4)
        Its voxel index to position in mm; may be oblique or flipped.
    fixed : ndarray, shape (U, V, W)
        Reference, e.g. the subject's HR image in MNI space.
    fixed_affine : ndarray, shape (4, 4)
        Its voxel index to position in mm.
    fixed_mask : ndarray, shape (U, V, W), bool
        Where the images are compared: the brain.
    kind : {"rigid", "affine"}
        6 or 12 degrees of freedom.
    seed : int
        Seed of the sampling of voxels, 0 or more.
    starts : sequence of ndarray, shape (4, 4)
        Rigid transforms to begin with, position in the fixed image to position in the moving image, mm. None
        of them: the centres of mass of the two whole images are aligned.

    Returns
    -------
    ndarray, shape (4, 4)
        Position in the fixed image to position in the moving image, mm.

    Raises
    ------
    ValueError
        If the kind is unknown, an image is not a 3D image with contrast, the mask is empty or of another
        shape, an affine cannot be inverted, or the seed is negative.

    References
    ----------
    B. B. Avants et al., "A reproducible evaluation of ANTs similarity metric performance in brain image
    registration", NeuroImage 54:2033-2044, 2011.
    """
    kind = require("kind", kind, _ANTS_NAME)
    if seed != int(seed) or seed < 0:
        raise ValueError(f"seed is {seed!r}: accepted are whole numbers from 0")
    moving, fixed = volumes.as_volume(moving, "moving"), volumes.as_volume(fixed, "fixed")
    mask = _checked_mask(fixed_mask, "fixed_mask")
    if mask.shape != fixed.shape:
        raise ValueError(f"fixed_mask has shape {mask.shape}: accepted is that of fixed, {fixed.shape}")
    for name, image in (("moving", moving), ("fixed", fixed)):
        if image.min() == image.max():
            raise ValueError(f"{name} is {image.min()} everywhere: accepted are images with contrast")
    moving_affine, fixed_affine = (
        _checked_matrix(moving_affine, "moving_affine"),
        _checked_matrix(fixed_affine, "fixed_affine"),
    )

    starts = [_checked_matrix(start, "start") for start in starts]
    if starts:
        start = _best_start(moving, moving_affine, fixed, fixed_affine, mask, seed, starts)
        return _run_ants(moving, moving_affine, fixed, fixed_affine, mask, kind, seed, _FINE, start)
    return _run_ants(moving, moving_affine, fixed, fixed_affine, mask, kind, seed, _FINE)


def _run_ants(moving, moving_affine, fixed, fixed_affine, mask, kind, seed, scales, start=None):
    """From a rigid start, or from the aligned centres of mass."""
    ants = import_ants()
    if start is not None:
        # Where the start brings the moving image, the identity is the start. No other way keeps the centre of
        # rotation in the head.
        moving_affine = np.linalg.inv(start) @ moving_affine
    with internals.seeded_ants(ants, seed), tempfile.TemporaryDirectory(prefix="registration_") as folder:
        result = ants.registration(
            fixed=ants_image(ants, fixed, fixed_affine),
            moving=ants_image(ants, moving, moving_affine),
            type_of_transform=_ANTS_NAME[kind],
            initial_transform=None if start is None else "Identity",
            mask=ants_image(ants, mask, fixed_affine),
            mask_all_stages=True,
            aff_metric="mattes",
            # Without a prefix ants leaves its transforms behind in the temporary folder.
            outprefix=os.path.join(folder, ""),
            **scales,
        )
        (path,) = result["fwdtransforms"]
        estimated = ants.read_transform(path, precision="double")
    # Where it takes the origin and the three unit vectors is all there is to know about an affine.
    points = np.array([estimated.apply_to_point(point) for point in np.vstack([np.zeros(3), np.eye(3)])])
    transform = np.eye(4)
    transform[:3, :3] = (points[1:] - points[0]).T
    transform[:3, 3] = points[0]
    transform = _FLIP @ transform @ _FLIP
    return transform if start is None else start @ transform


def _best_start(moving, moving_affine, fixed, fixed_affine, mask, seed, starts):
    """The start whose short registration ends at the largest mutual information, as that registration left
    it."""
    moving, moving_affine = coarsen(moving, moving_affine)
    mask = coarsen(mask.astype(np.float32), fixed_affine)[0] > 0.5
    fixed, fixed_affine = coarsen(fixed, fixed_affine)
    points = np.argwhere(mask) @ fixed_affine[:3, :3].T + fixed_affine[:3, 3]

    def index(transform):
        to_voxel = np.linalg.inv(moving_affine) @ transform
        return to_voxel[:3, :3] @ points.T + to_voxel[:3, 3:]

    def alike(transform):
        # Outside of its field of view the moving image is 0: a start that leaves half of the brain there has
        # no advantage.
        values = ndimage.map_coordinates(moving, index(transform), order=1, mode="constant")
        return mutual_information(fixed[mask], values, np.ones(len(values), bool))

    def part_inside(transform):
        voxel = index(transform)
        return np.mean(
            np.all([linear.inside(row, n) for row, n in zip(voxel, moving.shape, strict=True)], axis=0)
        )

    # ITK gives up where hardly anything overlaps.
    parts = [part_inside(start) for start in starts]
    ends = []
    for start in [start for start, part in zip(starts, parts, strict=True) if part >= max(parts) / 2]:
        try:
            ends.append(
                _run_ants(moving, moving_affine, fixed, fixed_affine, mask, "rigid", seed, _COARSE, start)
            )
        except RuntimeError:  # It went out of the image: that start was none.
            continue
    return max(ends or starts, key=alike)


def coarsen(
    volume: np.ndarray, affine: np.ndarray, voxel_mm: float = COARSE_MM
) -> tuple[np.ndarray, np.ndarray]:
    """Means of whole blocks of voxels, about as large as asked for; larger voxels stay as they are.

    Parameters
    ----------
    volume : ndarray, shape (X, Y, Z)
    affine : ndarray, shape (4, 4)
        Voxel index to position in mm.
    voxel_mm : float
        Size of a block.

    Returns
    -------
    volume : ndarray, shape (U, V, W), float32
        A block that reaches beyond the volume has zeros there.
    affine : ndarray, shape (4, 4)
    """
    from skimage.measure import block_reduce

    affine = _checked_matrix(affine, "affine")
    factors = np.maximum(np.round(voxel_mm / np.linalg.norm(affine[:3, :3], axis=0)), 1).astype(int)
    step = np.diag([*factors, 1.0])
    step[:3, 3] = (factors - 1) / 2
    return block_reduce(volume, tuple(factors.tolist()), np.mean).astype(np.float32), affine @ step


def resample(
    volume: np.ndarray,
    affine: np.ndarray,
    shape: tuple[int, int, int],
    target_affine: np.ndarray,
    transform: np.ndarray | None = None,
) -> np.ndarray:
    """Bring a volume onto another grid with cubic B-spline interpolation.

    Where the axes of the two grids are parallel, as under the known transform, the interpolation is one small
    matrix per axis; else every voxel is interpolated on its own. Both evaluate the spline of ANTs
    (``interpolator="bSpline"``), from which they differ by rounding only: pre-filter with mirrored edges
    (Unser 1999), no smoothing.

    *Outside the field of view* the result is 0, as in ANTs. The field of view reaches half a voxel beyond the
    outermost voxel centres, which through-plane is half a slice separation; there the spline of the mirrored
    volume is taken.

    *Below zero.* A cubic B-spline undershoots beside edges. Magnitude images have no negative values, and
    harmonization clips them in any case, so the result is clipped at 0 if the volume has no negative value.
    Overshoot stays: it is what this interpolation does to thick slices, which is under study.

    Parameters
    ----------
    volume : ndarray, shape (X, Y, Z)
        Any real numbers.
    affine : ndarray, shape (4, 4)
        Its voxel index to position in mm; may be oblique or flipped.
    shape : tuple of three int
        Shape of the target grid.
    target_affine : ndarray, shape (4, 4)
        Voxel index of the target grid to position in mm.
    transform : ndarray, shape (4, 4), optional
        Position in the target space to position in the volume's space, mm. None: the two spaces are one.

    Returns
    -------
    ndarray, shape `shape`, float32
        The volume on the target grid.

    Raises
    ------
    ValueError
        If the volume is not a finite 3D volume, a matrix cannot be inverted, or the shape is not three
        positive numbers.

    References
    ----------
    M. Unser, "Splines: a perfect fit for signal and image processing", IEEE Signal Processing Magazine
    16(6):22-38, 1999.
    """
    volume = volumes.as_volume(volume)
    shape = tuple(int(n) for n in shape)
    if len(shape) != 3 or min(shape) < 1:
        raise ValueError(f"shape is {shape}: accepted are three numbers greater than 0")
    transform = np.eye(4) if transform is None else _checked_matrix(transform, "transform")
    # Voxel index of the target to voxel index of the volume.
    index_map = (
        np.linalg.inv(_checked_matrix(affine, "affine"))
        @ transform
        @ _checked_matrix(target_affine, "target_affine")
    )
    axes = _parallel_axes(index_map, shape)
    if axes is None:
        result = _resample_oblique(volume, index_map, shape)
    else:
        result = _resample_parallel(volume, index_map, shape, axes)
    return np.maximum(result, 0, out=result) if volume.min() >= 0 else result


def error_mm(estimated: np.ndarray, true: np.ndarray, mask: np.ndarray, affine: np.ndarray) -> float:
    """Registration error: how far apart two transforms place a voxel of the brain, on average.

    Parameters
    ----------
    estimated, true : ndarray, shape (4, 4)
        Position in the fixed image to position in the moving image, mm.
    mask : ndarray, shape (X, Y, Z), bool
        The brain, on the grid of the fixed image. Every voxel counts.
    affine : ndarray, shape (4, 4)
        Voxel index of the mask to position in mm.

    Returns
    -------
    float
        Mean displacement in mm.

    Raises
    ------
    ValueError
        If the mask is empty or a matrix cannot be inverted.
    """
    difference = (_checked_matrix(estimated, "estimated") - _checked_matrix(true, "true")) @ _checked_matrix(
        affine, "affine"
    )
    inside = _checked_mask(mask, "mask")
    if not difference.any():
        return 0.0
    displacement = np.argwhere(inside) @ difference[:3, :3].T + difference[:3, 3]
    return float(np.linalg.norm(displacement, axis=1).mean())


def mutual_information(first: np.ndarray, second: np.ndarray, mask: np.ndarray, bins: int = 48) -> float:
    """Normalized mutual information within a mask, (H(a) + H(b)) / H(a, b): 1 if one tells nothing of the
    other, 2 if it tells all.

    Parameters
    ----------
    first, second : ndarray, of one shape
    mask : ndarray, of that shape, bool
    bins : int
        Of the histogram of each, from its 1st to its 99th percentile.

    References
    ----------
    C. Studholme, D. L. G. Hill, D. J. Hawkes, "An overlap invariant entropy measure of 3D medical image
    alignment", Pattern Recognition 32(1):71-86, 1999.
    """
    values = [image[mask] for image in (first, second)]
    if not values[0].size:
        return 1.0
    values = [np.clip(value, *np.percentile(value, [1, 99])) for value in values]
    joint = np.histogram2d(*values, bins)[0] / values[0].size

    def entropy(part):
        return -float(np.sum(part[part > 0] * np.log(part[part > 0])))

    return (entropy(joint.sum(axis=0)) + entropy(joint.sum(axis=1))) / max(entropy(joint), 1e-12)


def import_ants():
    """Import ants so that its results can be reproduced bit by bit.

    ITK adds up the contributions of its threads in the order in which they end, and reads their number once,
    from the environment. So every module of ours takes ants from here.

    Returns
    -------
    module
        The module ``ants``.
    """
    os.environ["ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS"] = "1"
    import ants

    return ants


def ants_image(ants, volume: np.ndarray, affine: np.ndarray):
    """A volume and its affine (mm, RAS+) as an image of ants, which is float32 and has LPS positions."""
    affine = _FLIP @ affine
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    origin, voxels = affine[:3, 3].tolist(), np.ascontiguousarray(volume, dtype=np.float32)
    return ants.from_numpy(
        voxels, origin=origin, spacing=spacing.tolist(), direction=affine[:3, :3] / spacing
    )


def _parallel_axes(index_map, shape):
    """For each axis of the target the axis of the volume that runs along it; None if some axis runs along
    several."""
    reach = np.abs(index_map[:3, :3]) * np.maximum(np.array(shape) - 1, 1)
    axes = np.argmax(reach, axis=0)
    rest = reach.copy()
    rest[axes, range(3)] = 0
    return axes if len(set(axes.tolist())) == 3 and rest.sum(axis=1).max() < linear.SAME_VOXEL else None


def _resample_parallel(volume, index_map, shape, axes):
    result = np.transpose(volume, axes).astype(np.float32)
    # Fewest voxels first: the axes that shrink, then those that grow.
    for axis in sorted(range(3), key=lambda axis: shape[axis] / result.shape[axis]):
        n = result.shape[axis]
        position = index_map[axes[axis], axis] * np.arange(shape[axis]) + index_map[axes[axis], 3]
        if n == shape[axis] and np.abs(position - np.arange(n)).max() < linear.SAME_VOXEL:
            continue
        result = linear.along_axis(linear.spline_matrix(position, n), result, axis)
    return np.ascontiguousarray(result)


def _resample_oblique(volume, index_map, shape):
    result = ndimage.affine_transform(
        volume,
        index_map[:3, :3],
        index_map[:3, 3],
        output_shape=shape,
        output=np.float32,
        order=3,
        mode="mirror",
    )
    steps = np.ogrid[: shape[0], : shape[1], : shape[2]]
    for axis, n in enumerate(volume.shape):
        position = (
            sum(weight * step for weight, step in zip(index_map[axis, :3], steps, strict=True))
            + index_map[axis, 3]
        )
        result[~linear.inside(position, n)] = 0
    return result


def _checked_matrix(matrix, what):
    matrix = np.asarray(matrix, dtype=np.float64)
    if matrix.shape != (4, 4) or not np.isfinite(matrix).all() or not np.allclose(matrix[3], [0, 0, 0, 1]):
        raise ValueError(
            f"{what} is {matrix.tolist()}: accepted are finite 4x4 matrices whose last row is 0 0 0 1"
        )
    # Relative to the lengths of the columns, so that small voxels are not mistaken for flat ones.
    lengths = np.linalg.norm(matrix[:3, :3], axis=0)
    if lengths.min() == 0 or abs(np.linalg.det(matrix[:3, :3] / lengths)) < 1e-6:
        raise ValueError(f"{what} is {matrix.tolist()}: accepted are matrices that can be inverted")
    return matrix


def _checked_mask(mask, what):
    mask = volumes.as_volume(mask, what) != 0
    if not mask.any():
        raise ValueError(f"{what} is empty, shape {mask.shape}: accepted are masks with at least one voxel")
    return mask
