"""Semi-synthetic subjects: embedded brains (each a real person), many warps, lesions, scanners.

A subject is a warp of a real anatomy in ``data/anatomy`` (S1's, if no other is named) with lesions added to
it. A scanner is a set of sequence parameters. `render` puts the two through the signal equation of a
contrast. T1w, T2w and FLAIR therefore follow from tissue *fractions* and from tissue T1, T2 and proton
density, none of them from another one, and the same subject can be rendered by any scanner, with noise (an
image) or without (the exact truth for a harmonizer).

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

Tissue parameters are those of 3 T (at 1.5 T tissue T1 is shorter, see `relaxation`), rounded from Stanisz et
al., Magn Reson Med 54:507 (2005); Wansapura et al., J Magn Reson Imaging 9:531 (1999); Lu et al., J Magn
Reson Imaging 22:13 (2005). The two first differ by 30 % in T1 of white matter (1084 against 832 ms); values
between the two are used. Proton densities, and all values of lesions, deep grey matter and cerebellum, are
chosen within what is usual, so that contrasts to white matter come out as in two real patients
(``data/README.md``).
"""

import math
import re
import zlib
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from edt import edt
from scipy import ndimage

from helpers import grid, layout, volumes
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

#: T1 in ms, T2 in ms, proton density relative to water, at 3 T.
RELAXATION = {
    "CGM": (1400.0, 90.0, 0.82),
    "WM": (900.0, 72.0, 0.71),
    "SGM": (1180.0, 73.0, 0.79),
    "CBM": (1350.0, 88.0, 0.82),
    "VCSF": (4200.0, 1800.0, 1.00),
    "CSF": (4200.0, 1800.0, 1.00),
    "lesion": (1350.0, 108.0, 0.85),
}

FLUIDS = ("VCSF", "CSF")

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


@dataclass(frozen=True)
class Scanner:
    """Sequence parameters of one scanner. Times in ms, angles in degrees.

    Parameters
    ----------
    name : str
        Its name, which alone decides all the rest.
    field_t : float
        Field strength in tesla, 1.5 or 3.
    t1w : dict
        Of an MPRAGE: ``tr`` between inversions, ``ti`` from inversion to the centre of k-space, ``flip``,
        ``echo_spacing``, ``echoes``. Of a spoiled gradient echo, which has no inversion: ``tr``, ``flip``.
    tse : dict
        ``tr``, ``te`` (effective), ``train`` (duration of the echo train).
    flair : dict
        ``tr``, ``ti``, ``te`` (effective), ``train``.
    gain : dict of str to float
        Signal to image intensity, per contrast.
    snr : dict of str to float
        White matter signal over the standard deviation of the noise in each receiver channel, per contrast.
    bias : float
        Standard deviation of the logarithm of the bias field that correction left over.
    """

    name: str
    field_t: float
    t1w: dict
    tse: dict
    flair: dict
    gain: dict
    snr: dict
    bias: float


def mprage_signal(t1, density, *, tr, ti, flip, echo_spacing, echoes):
    """Steady-state MPRAGE signal at the centre of k-space, unitless; negative before the null of the
    inversion.

    Inversion, a delay, `echoes` small flips of which the middle one sees the centre of k-space, a delay up to
    `tr`. During the read-out the magnetization relaxes with T1* towards M0* (Deichmann et al., NeuroImage
    12:112, 2000, eqs. 1-4).

    Parameters
    ----------
    t1 : float or ndarray
        In ms.
    density : float or ndarray
        Proton density relative to water.
    tr, ti, flip, echo_spacing, echoes : float
        As in `Scanner`.

    Examples
    --------
    >>> sequence = dict(tr=2300, ti=900, flip=9, echo_spacing=7, echoes=176)
    >>> bool(mprage_signal(900., .7, **sequence) > mprage_signal(1450., .82, **sequence))
    True
    """
    angle = math.radians(flip)
    half = echo_spacing * echoes / 2
    t1_star = 1 / (1 / t1 - math.log(math.cos(angle)) / echo_spacing)
    m0_star = density * (1 - np.exp(-echo_spacing / t1)) / (1 - np.exp(-echo_spacing / t1_star))

    # Each leg of the cycle is m -> target + (m - target) * decay; inversion is m -> -m.
    before = np.exp(-(ti - half) / t1)
    reading = np.exp(-half / t1_star)
    after = np.exp(-(tr - ti - half) / t1)
    legs = ((density, before), (m0_star, reading), (m0_star, reading), (density, after))
    offset, slope = 0.0, -1.0
    for target, decay in legs:
        offset, slope = target + (offset - target) * decay, slope * decay
    start = offset / (1 - slope)
    centre = -start
    for target, decay in legs[:2]:
        centre = target + (centre - target) * decay
    return centre * math.sin(angle)


def spgr_signal(t1, density, *, tr, flip):
    """Spoiled gradient echo in its steady state, unitless: Ernst and Anderson, Rev Sci Instrum 37:93 (1966).

    Parameters
    ----------
    t1 : float or ndarray
        In ms.
    density : float or ndarray
        Proton density relative to water.
    tr, flip : float
        As in `Scanner`.
    """
    angle, e1 = math.radians(flip), np.exp(-tr / t1)
    return density * math.sin(angle) * (1 - e1) / (1 - e1 * math.cos(angle))


def tse_signal(t1, t2, density, *, tr, te, train):
    """Turbo spin echo signal, unitless: saturation recovery after the train, spin echo at the effective echo
    time.

    Bernstein, King and Zhou, Handbook of MRI Pulse Sequences (2004), section 16.4.

    Parameters
    ----------
    t1, t2 : float or ndarray
        In ms.
    density : float or ndarray
        Proton density relative to water.
    tr, te, train : float
        In ms, as in `Scanner`.
    """
    return density * (1 - np.exp(-(tr - train) / t1)) * np.exp(-te / t2)


def flair_signal(t1, t2, density, *, tr, ti, te, train):
    """Inversion-recovery turbo spin echo, unitless; negative before the null of the inversion.

    Rydberg et al., Radiology 193:173 (1994): the magnetization is zero at the end of the train, recovers, is
    inverted, and recovers for `ti`.

    Parameters
    ----------
    t1, t2 : float or ndarray
        In ms.
    density : float or ndarray
        Proton density relative to water.
    tr, ti, te, train : float
        In ms, as in `Scanner`.
    """
    return density * (1 - 2 * np.exp(-ti / t1) + np.exp(-(tr - train) / t1)) * np.exp(-te / t2)


def fluid_null(t1, tr, train):
    """Inversion time in ms that nulls a fluid of `t1` ms in `flair_signal`."""
    return t1 * math.log(2 / (1 + math.exp(-(tr - train) / t1)))


def relaxation(tissue: str, field_t: float) -> tuple[float, float, float]:
    """T1 in ms, T2 in ms and proton density of a tissue at a field strength.

    T1 of tissue grows with the field to the power of 0.38, that of fluid does not (Rooney et al., Magn Reson
    Med 57:308, 2007); T2 is nearly the same at 1.5 and 3 T (Stanisz et al. 2005).

    Parameters
    ----------
    tissue : str
        A key of `RELAXATION`.
    field_t : float
        In tesla.
    """
    t1, t2, density = RELAXATION[tissue]
    return t1 if tissue in FLUIDS else t1 * (field_t / 3) ** 0.38, t2, density


def _signal(scanner, contrast, t1, t2, density):
    """Signed signal: where tissues of opposite sign share a voxel, they cancel."""
    if contrast == "T1w":
        return (mprage_signal if "ti" in scanner.t1w else spgr_signal)(t1, density, **scanner.t1w)
    if contrast == "T2w":
        return tse_signal(t1, t2, density, **scanner.tse)
    return flair_signal(t1, t2, density, **scanner.flair)


def _white(scanner, contrast):
    """Image intensity of white matter."""
    return scanner.gain[contrast] * float(_signal(scanner, contrast, *relaxation("WM", scanner.field_t)))


def scanner(name: str) -> Scanner:
    """The scanner of that name.

    Sequences vary as they do between sites of a clinical trial: 1.5 and 3 T, MPRAGE and spoiled gradient
    echo, proton-density leaning to heavily T2-weighted turbo spin echo, FLAIR of short and long repetition
    time. Between two of them, images of one subject that are scaled to the same 95th percentile differ by a
    median of 28 (T1w), 23 (T2w) and 27 dB (FLAIR).

    Parameters
    ----------
    name : str
        ``study-1`` to ``study-10``, ``target``, ``test-<n>`` or ``train-<n>`` with n = 0, 1, 2, and so on.

    Returns
    -------
    Scanner
        The same one for the same name, another one for every other name.

    Raises
    ------
    ValueError
        If there is no scanner of that name.
    """
    if not re.fullmatch(r"study-([1-9]|10)|target|(test|train)-(0|[1-9]\d*)", str(name)):
        raise ValueError(
            f"scanner is {name!r}: accepted are study-1 to study-10, target, test-<n> and train-<n> with n "
            "= 0, 1, 2, and so on"
        )
    # A checksum, since Python's own hash of a text differs from process to process.
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    uniform = rng.uniform

    field_t = 1.5 if rng.random() < 0.4 else 3.0
    if rng.random() < 0.6:
        spacing, echoes = uniform(6, 9), int(rng.integers(90, 193))
        half = spacing * echoes / 2
        ti = uniform(max(half + 30, 600), 1150)
        t1w = dict(
            tr=ti + half + uniform(300, 1200), ti=ti, flip=uniform(6, 13), echo_spacing=spacing, echoes=echoes
        )
    else:
        t1w = dict(tr=uniform(8, 30), flip=uniform(16, 30))
    tse = dict(tr=uniform(2200, 7000), te=uniform(65, 125), train=uniform(120, 350))
    flair = dict(tr=uniform(5000, 11500), te=uniform(75, 155), train=uniform(200, 600))
    # Nulling is never perfect: flow, and a T1 of fluid of the site's own choosing. A late TI leaves fluid
    # positive.
    flair["ti"] = fluid_null(RELAXATION["CSF"][0] * uniform(1.02, 1.20), flair["tr"], flair["train"])

    result = Scanner(
        name=name,
        field_t=field_t,
        t1w=t1w,
        tse=tse,
        flair=flair,
        gain=dict.fromkeys(CONTRASTS, 1.0),
        snr={"T1w": uniform(25, 45), "T2w": uniform(20, 40), "FLAIR": uniform(18, 35)},
        bias=uniform(0.01, 0.04),
    )
    white = {
        contrast: uniform(*span) for contrast, span in zip(CONTRASTS, ((350, 700), (180, 380), (200, 420)))
    }
    result.gain.update({contrast: white[contrast] / _white(result, contrast) for contrast in CONTRASTS})
    return result


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


def jacobian(coordinates: np.ndarray) -> np.ndarray:
    """Jacobian determinant of a map, unitless: the local volume ratio, positive where the map is invertible.

    Parameters
    ----------
    coordinates : ndarray, shape (3, X, Y, Z)
        As `warp` returns them.

    Returns
    -------
    ndarray, shape (X, Y, Z)
        Negative everywhere for a mirrored brain, whose left and right change places; otherwise positive.
    """
    (a, b, c), (d, e, f), (g, h, i) = (np.gradient(part) for part in coordinates)
    return a * (e * i - f * h) - b * (d * i - f * g) + c * (d * h - e * g)


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
        t1, t2, density = relaxation(tissue, scanner.field_t)
        factors = (
            (1, 1, 1) if tissue in FLUIDS else (t1_factor[there], t2_factor[there], density_factor[there])
        )
        signal[there] += inside[there] * _signal(
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
        sigma = _white(scanner, contrast) / scanner.snr[contrast]
        real, imaginary = rng.standard_normal((2, *grid.SHAPE), dtype=np.float32) * np.float32(sigma)
        image = np.hypot(image + real, imaginary)
    return np.where(brain, image, 0).astype(np.float32)
