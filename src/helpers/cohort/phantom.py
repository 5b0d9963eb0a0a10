"""Semi-synthetic subjects: embedded brains (each a real person), many warps, lesions.

A subject is a warp of a real anatomy in ``data/anatomy`` with lesions added to it. `render` puts it through
the signal equation of a contrast with the parameters of a scanner (`helpers.cohort.scanners`). T1w, T2w and
FLAIR therefore follow from tissue *fractions* and from tissue T1, T2 and proton density, none of them from
another one, and the same subject can be rendered by any scanner, with noise (an image) or without (the exact
truth for a harmonizer).

Splits, kept apart from the start:

=================  =================================  ==============================================
purpose            subjects (seeds)                   scanners
=================  =================================  ==============================================
study              `STUDY_SEEDS`, 1 to 10             ``study-1`` to ``study-10``, one per subject
target contrast    `TARGET_SEED`, 11                  ``target``
testing            `TEST_SEEDS`, 12 to 19             ``test-0``, ``test-1``, and so on
training           100 and up                         ``train-0``, ``train-1``, and so on
=================  =================================  ==============================================

Seeds 0 and 20 to 99 belong to nobody and are free for trying things.
"""

import math
import zlib
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from edt import edt
from scipy import ndimage

from helpers import grid, layout, volumes
from helpers.cohort import scanners
from helpers.cohort.scanners import Scanner
from helpers.study import CONTRASTS, require

STUDY_SEEDS = range(1, 11)
TARGET_SEED = 11
TEST_SEEDS = range(12, 20)
FIRST_TRAINING_SEED = 100

#: The embedded brains: subjects with an even seed are made from the first, those with an odd one from the
#: second, in every split.
ANATOMIES = ("S1", "Colin27")

#: Tissues of an embedded brain, in BIDS' words: cortical grey matter, white matter (of cerebrum, cerebellum
#: and brain stem), subcortical grey matter, cerebellar cortex, fluid of the lateral ventricles, all other
#: cerebrospinal fluid.
TISSUES = ("CGM", "WM", "SGM", "CBM", "VCSF", "CSF")

# Sigma in voxels of the Gaussian that stands for the decay along the echo train, the same in all directions:
# at 0.4 cycles/mm it leaves 0.57 (T2w) and 0.46 (FLAIR) of the power. The spectra in data/README.md come from
# these values.
POINT_SPREAD = {"T1w": 0.0, "T2w": 0.3, "FLAIR": 0.35}


#: Range of the anatomies, from youth to old age: how far the walls of the ventricles move outwards (mm), the
#: size of the head, the strength of the smooth deformation, and how much cortex beside a sulcus gives way to
#: fluid.
RANGE = {"ventricles_mm": (-1.0, 6.0), "size": (0.90, 1.12), "deformation": (1.0, 1.5), "sulci": (-0.3, 1.1)}


@dataclass(frozen=True)
class Subject:
    """A brain made from an embedded one.

    Parameters
    ----------
    seed : int
        What it was made from.
    fractions : dict of str to ndarray, shape (192, 224, 192), float32
        Volume fraction of each of `TISSUES` and of ``lesion``, unitless. They sum to 1 inside the brain, 0
        outside.
    brain : ndarray, shape (192, 224, 192), bool
        Brain mask, cerebrospinal fluid included.
    lesions : ndarray, shape (192, 224, 192), bool
        Voxels that are lesion by half or more.
    variation : ndarray, shape (3, 192, 224, 192), float32
        Natural logarithm of the local factor on T1, T2 and proton density: tissue is not homogeneous.
    affine : ndarray, shape (4, 4)
        Voxel index to world position in mm.
    anatomy : str
        The embedded brain that it was made from, one of `ANATOMIES`.
    """

    seed: int
    fractions: dict
    brain: np.ndarray
    lesions: np.ndarray
    variation: np.ndarray
    affine: np.ndarray
    anatomy: str = ANATOMIES[0]


def anatomy(name: str = ANATOMIES[0]) -> dict:
    """Tissue fractions of an embedded brain.

    Parameters
    ----------
    name : str
        One of `ANATOMIES`.

    Returns
    -------
    dict of str to ndarray, shape (192, 224, 192), float32, read-only
        Volume fraction of each of `TISSUES`, summing to 1 inside the brain and 0 outside.

    Raises
    ------
    ValueError
        If there is no anatomy of that name.
    """
    return _read_anatomy(require("anatomy", name, ANATOMIES))


@lru_cache(maxsize=len(ANATOMIES))
def _read_anatomy(name):
    fractions = {}
    for tissue in TISSUES:
        volume, _ = volumes.read(
            layout.ANATOMY / f"sub-{name}_space-{layout.SPACE}_label-{tissue}_probseg.nii.gz"
        )
        fractions[tissue] = volume / np.float32(255)
        fractions[tissue].setflags(write=False)
    return fractions


@lru_cache(maxsize=len(ANATOMIES))
def _splines(name):
    """Cubic spline coefficients of each tissue but the outer fluid, in its bounding box, with the box's
    corner.

    Cubic, since linear interpolation would blur, and more so halfway between voxels.
    """
    splines = {}
    for tissue in TISSUES[:-1]:
        fraction = _read_anatomy(name)[tissue]
        box = ndimage.find_objects((fraction > 0).astype(np.uint8))[0]
        box = tuple(slice(max(side.start - 8, 0), side.stop + 8) for side in box)
        coefficients = ndimage.spline_filter(fraction[box], order=3, output=np.float32, mode="mirror")
        splines[tissue] = np.array([side.start for side in box], np.float32), coefficients
    return splines


def _smooth_noise(rng, shape, fwhm_mm):
    """Gaussian noise of that smoothness and of standard deviation near 1, made on a coarse grid."""
    step = max(fwhm_mm / 4, 1)
    coarse = [int(np.ceil(n / step)) + 5 for n in shape]
    noise = ndimage.gaussian_filter(rng.standard_normal(coarse), fwhm_mm / 2.355 / step, mode="wrap")
    noise = (noise / noise.std()).astype(np.float32)
    for axis, n in enumerate(shape):
        # Cubic B-splines, one axis at a time: a fraction of the cost of interpolating in 3D. Four products
        # per voxel, not a matrix product, whose last bits would depend on the number of threads.
        positions = 2 + np.arange(n) / step
        taps = np.floor(positions).astype(int)
        f = (positions - taps).reshape([-1 if k == axis else 1 for k in range(3)]).astype(np.float32)
        weights = ((1 - f) ** 3, 3 * f**3 - 6 * f**2 + 4, -3 * f**3 + 3 * f**2 + 3 * f + 1, f**3)
        noise = sum(weight / 6 * np.take(noise, taps - 1 + k, axis=axis) for k, weight in enumerate(weights))
    return noise


@lru_cache(maxsize=len(ANATOMIES))
def _ventricle_distance(name):
    """Distance to the lateral ventricles in mm, negative inside, rounded off so that its gradient is
    smooth."""
    inside = _read_anatomy(name)["VCSF"] > 0.5
    return ndimage.gaussian_filter(edt(~inside) - edt(inside), 2)


def warp(seed: int, anatomy: str = ANATOMIES[0]) -> np.ndarray:
    """Where in an embedded brain each voxel of a subject comes from.

    Mirroring of half of the brains, another size, a smooth deformation of a few mm, and wider or narrower
    ventricles (up to about four times as large), in one map, so that the fractions are interpolated once.
    What is drawn lies within `RANGE`.

    Parameters
    ----------
    seed : int
        Of the subject, 0 or more.
    anatomy : str
        One of `ANATOMIES`: where its ventricles are.

    Returns
    -------
    ndarray, shape (3, 192, 224, 192), float32
        Voxel coordinates in the embedded brain.

    Raises
    ------
    ValueError
        If the seed is negative.
    """
    rng = _generator(seed, 1)
    mirrored = rng.random() < 0.5
    scale = rng.uniform(0.97, 1.05, 3)
    shear = np.eye(3) + rng.normal(0, 0.015, (3, 3)) * (1 - np.eye(3))
    smooth = [
        rng.normal(2.2, 0.3) * _smooth_noise(rng, grid.SHAPE, 60)
        + rng.normal(0.7, 0.1) * _smooth_noise(rng, grid.SHAPE, 28)
        for _ in range(3)
    ]
    draw = _generator(seed, 4).uniform
    size, strength, widening = (draw(*RANGE[what]) for what in ("size", "deformation", "ventricles_mm"))
    scale = scale / size
    smooth = [np.float32(strength) * part for part in smooth]

    centre = np.array([96, 112, 90])
    axes = np.ogrid[tuple(slice(n) for n in grid.SHAPE)]
    coordinates = np.empty((3, *grid.SHAPE), np.float32)
    for part, row, middle, field in zip(coordinates, shear * scale, centre, smooth):
        part[...] = field + middle
        for axis, weight, origin in zip(axes, row, centre):
            part += (weight * (axis - origin)).astype(np.float32)

    # First of all, since what follows looks up the embedded brain at these coordinates.
    if mirrored:
        coordinates[0] = 2 * centre[0] - coordinates[0]

    # Ventricles: their walls move along the gradient of the distance to them, by at most `widening` mm
    # outwards.
    distance = _ventricle_distance(anatomy)
    shift = -widening * np.exp(-((distance / 9) ** 2))
    reach_mm = 27
    if widening > 0:
        # Far enough for old age: most is moved at the new wall, less towards the middle of the ventricle, so
        # that nothing folds.
        width = np.where(distance < widening, 1.15 * widening, 12)
        shift, reach_mm = -widening * np.exp(-(((distance - widening) / width) ** 2)), 45
    where = ndimage.map_coordinates(distance, coordinates, order=0, mode="nearest") < reach_mm
    points = coordinates[:, where]
    for part, gradient in zip(coordinates, np.gradient(distance)):
        field = ndimage.gaussian_filter(gradient * shift, 3) if reach_mm > 27 else gradient * shift
        part[where] += ndimage.map_coordinates(field, points, order=1, mode="nearest")
    return coordinates


def _generator(seed, purpose):
    if isinstance(seed, bool) or not isinstance(seed, (int, np.integer)) or seed < 0:
        raise ValueError(f"seed is {seed!r}: accepted are whole numbers of 0 or more")
    return np.random.default_rng([int(seed), purpose])


def _lesions(rng, white, ventricle_mm):
    """Lesion fraction in each voxel of an MS-like brain, before it is limited to the white matter.

    Ellipsoids with their long axis pointing away from the ventricles (Dawson's fingers), three quarters of
    them periventricular, their number and sizes log-normal.
    """
    total = np.zeros(grid.SHAPE, np.float32)
    candidates = np.flatnonzero(white > 0.9)
    distance = ventricle_mm.ravel()[candidates]
    gradient = np.gradient(ndimage.gaussian_filter(ventricle_mm, 2))
    near = np.exp(-(((distance.clip(1) - 2) / 4) ** 2))
    anywhere = np.exp(-((distance / 25) ** 2))
    count = int(np.clip(rng.lognormal(math.log(28), 0.5), 8, 80))
    for _ in range(count):
        odds = near if rng.random() < 0.75 else anywhere
        place = np.searchsorted(np.cumsum(odds), rng.random() * odds.sum())
        centre = np.array(np.unravel_index(candidates[min(place, len(candidates) - 1)], grid.SHAPE))
        along = np.array([g[tuple(centre)] for g in gradient]) + rng.normal(0, 0.2, 3)
        along /= np.linalg.norm(along)
        radius = np.clip(rng.lognormal(math.log(2.3), 0.45), 1.2, 7)
        box = tuple(slice(max(c - 18, 0), c + 19) for c in centre)
        sides = (np.arange(side.start, min(side.stop, n)) - c for side, n, c in zip(box, grid.SHAPE, centre))
        offset = np.stack(np.meshgrid(*sides, indexing="ij"))
        axial = sum(component * part for component, part in zip(along, offset))
        across = np.sqrt(np.maximum((offset**2).sum(0) - axial**2, 0))
        # Knobbly, not a perfect ellipsoid; an edge of about 1.5 mm.
        knobbly = 1 + 0.15 * _smooth_noise(rng, axial.shape, 5)
        r = np.sqrt((axial / 1.6) ** 2 + across**2) / knobbly
        total[box] = np.maximum(total[box], rng.uniform(0.75, 1) / (1 + np.exp((r - radius) / 0.4)))
    return np.where(total > 0.02, total, 0)


def anatomy_of(seed: int) -> str:
    """Which of `ANATOMIES` a subject is made from."""
    return ANATOMIES[seed % len(ANATOMIES)]


def subject(seed: int, anatomy: str | None = None) -> Subject:
    """A subject from a seed.

    Parameters
    ----------
    seed : int
        0 or more. `STUDY_SEEDS`, `TARGET_SEED` and seeds from `FIRST_TRAINING_SEED` up are the three splits.
    anatomy : str, optional
        The embedded brain that it is made from, one of `ANATOMIES`; without it the first for even seeds, the
        second for odd ones.

    Returns
    -------
    Subject
        The same for the same seed and anatomy, to the byte.

    Raises
    ------
    ValueError
        If the seed is negative or not a whole number, or there is no anatomy of that name.
    """
    rng = _generator(seed, 2)
    name = require("anatomy", anatomy_of(seed) if anatomy is None else anatomy, ANATOMIES)
    coordinates = warp(seed, name)

    brain = _one_piece(ndimage.map_coordinates(sum(_read_anatomy(name).values()), coordinates, order=1) > 0.5)
    points = coordinates[:, brain]
    parts = {}
    for tissue, (corner, coefficients) in _splines(name).items():
        local = points - corner[:, None]
        there = ((local > 0) & (local < np.array(coefficients.shape)[:, None] - 1)).all(axis=0)
        parts[tissue] = np.zeros(points.shape[1], np.float32)
        parts[tissue][there] = ndimage.map_coordinates(
            coefficients, local[:, there], order=3, prefilter=False
        ).clip(0, 1)
    # What is not tissue is fluid; overshoots of the splines are scaled back.
    parts["CSF"] = np.maximum(1 - sum(parts.values()), 0)
    total = sum(parts.values())
    parts = {tissue: part / total for tissue, part in parts.items()}

    # Sulcal width: the pial boundary moves within the voxels that it crosses.
    widening = rng.uniform(-0.6, 0.8)
    traded = widening * parts["CSF"] * parts["CGM"]
    parts["CSF"], parts["CGM"] = parts["CSF"] + traded, parts["CGM"] - traded

    fractions = {}
    for tissue, part in parts.items():
        fractions[tissue] = np.zeros(grid.SHAPE, np.float32)
        fractions[tissue][brain] = part
    # Cortex gives way within a voxel or so of the fluid: sulci open, and what was cortex there is fluid.
    share = _generator(seed, 5).uniform(*RANGE["sulci"]) * ndimage.gaussian_filter(fractions["CSF"], 1)
    traded = np.clip(share, -fractions["CSF"], 1) * fractions["CGM"]
    fractions["CSF"], fractions["CGM"] = fractions["CSF"] + traded, fractions["CGM"] - traded
    ventricle_mm = edt(fractions["VCSF"] < 0.5)
    lesion = _lesions(rng, fractions["WM"], ventricle_mm) * fractions["WM"]
    fractions["WM"] = fractions["WM"] - lesion
    fractions["lesion"] = lesion

    # T1, T2 and density vary within a tissue, partly together (water content), partly each on its own.
    shared = _smooth_noise(rng, grid.SHAPE, 14)
    variation = np.stack(
        [
            (
                0.02 * shared
                + spread
                * (0.7 * _smooth_noise(rng, grid.SHAPE, 18) + 0.7 * _smooth_noise(rng, grid.SHAPE, 5))
            )
            * brain
            for spread in (0.025, 0.035, 0.008)
        ]
    ).astype(np.float32)
    return Subject(int(seed), fractions, brain, lesion >= 0.5, variation, grid.AFFINE, name)


def _one_piece(mask):
    """The largest component, with no holes in any plane."""
    labels, _ = ndimage.label(mask)
    mask = labels == 1 + np.argmax(np.bincount(labels.ravel())[1:])
    return ndimage.binary_fill_holes(mask)


def render(subject: Subject, scanner: Scanner, contrast: str, noise_seed: int | None = None) -> np.ndarray:
    """One image of a subject by a scanner.

    Parameters
    ----------
    subject : Subject
    scanner : Scanner
    contrast : str
        One of `study.CONTRASTS`.
    noise_seed : int, optional
        With a seed: an image, with a mild bias field (what correction left over) and Rician noise. Without:
        the exact truth, neither noise nor bias field.

    Returns
    -------
    ndarray, shape (192, 224, 192), float32
        Exactly 0 outside the brain, as after skull stripping.

    Raises
    ------
    ValueError
        If the contrast is unknown or the seed is negative.
    """
    contrast = require("contrast", contrast, CONTRASTS)
    brain = subject.brain
    t1_factor, t2_factor, density_factor = np.exp(subject.variation[:, brain])
    signal = np.zeros(int(brain.sum()), np.float32)
    for tissue, fraction in subject.fractions.items():
        inside = fraction[brain]
        there = inside > 0
        t1, t2, density = scanners.relaxation(tissue, scanner.field_t)
        factors = (
            (1, 1, 1)
            if tissue in scanners.FLUIDS
            else (t1_factor[there], t2_factor[there], density_factor[there])
        )
        signal[there] += inside[there] * scanners.signal(
            scanner, contrast, t1 * factors[0], t2 * factors[1], density * factors[2]
        )
    image = np.zeros(grid.SHAPE, np.float32)
    image[brain] = np.abs(signal) * scanner.gain[contrast]
    if POINT_SPREAD[contrast]:
        # Decay along the echo train damps high spatial frequencies; inside the mask only, so that its edge is
        # not dimmed.
        weight = ndimage.gaussian_filter(brain.astype(np.float32), POINT_SPREAD[contrast])
        image = ndimage.gaussian_filter(image, POINT_SPREAD[contrast]) / np.maximum(weight, 1e-3)
    if noise_seed is not None:
        rng = np.random.default_rng(
            [
                *_generator(noise_seed, 3).integers(2**32, size=2),
                subject.seed,
                zlib.crc32(scanner.name.encode()),
                CONTRASTS.index(contrast),
            ]
        )
        image = image * np.exp(scanner.bias * _smooth_noise(rng, grid.SHAPE, 90))
        sigma = scanners.white_matter_intensity(scanner, contrast) / scanner.snr[contrast]
        real, imaginary = rng.standard_normal((2, *grid.SHAPE), dtype=np.float32) * np.float32(sigma)
        image = np.hypot(image + real, imaginary)
    return np.where(brain, image, 0).astype(np.float32)
