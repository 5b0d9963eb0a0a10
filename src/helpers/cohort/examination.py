"""Whether an image of one's own is fit for the study: its grid, its values, how sharp it is along each
direction."""

import functools
import itertools
import math
import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
from scipy import ndimage

from helpers import grid, volumes
from helpers.volumes.files import look

#: The paper's images have voxels of 1 mm. Protocols of up to 1.2 mm are common; twice that is not a 3D
#: acquisition of this kind.
REFUSED_VOXEL_MM = 1.5
WARNED_VOXEL_MM = 1.25
#: Angle by which two axes may differ from a right one before ITK's grids, which have right angles, misplace
#: the image.
SHEAR_DEGREES = 0.5
#: Power along an axis over that of the two others, at the frequency taken for the Nyquist frequency of the
#: slices. There a slice profile as wide as the separation and cubic interpolation have left about a third of
#: the power (tests/cohort/test_preparation.py).
SPECTRAL_DROP = 0.35
#: How much thicker than the voxels an image must look before it is called interpolated. True 3D images stay
#: below 1.1.
THICK_FACTOR = 1.5
#: Part of the foreground that has exactly the largest value before an image is called clipped.
CLIPPED_FRACTION = 1e-3
#: The same, before it is none.
MOSTLY_CLIPPED = 0.25
#: Brain and the fluid around it, ml: a cranium holds 600 in the first months of life (Sgouros 1999) and up to
#: 1656 in 58 healthy adults (Ricard 2010); beyond are small heads of newborns, and hydrocephalus.
BRAIN_ML = (500, 2300)
#: Fewer different values than this are a mask or a segmentation.
FEWEST_VALUES = 16
#: An image of at most so many different values is one of labels if more than this part of neighbouring voxels
#: is equal.
LABELS, EQUAL_NEIGHBOURS = 1000, 0.7
#: Part of the voxels beyond a part of the image's scale that may be negative: what B-splines leave at edges
#: stays below.
NEGATIVE = {0.25: 5e-3, 0.5: 2e-4}
#: The 1st percentile may be this part of the 99th: the background is at the bottom.
RAISED = 0.15
#: Part of an image's scale below which a value is none: what interpolation leaves of a background of 0.
NOTHING = 1e-4
#: No adult's brain is smaller than this in any direction.
SMALLEST_EXTENT_MM = 90

#: The anatomical directions of an axis by its axis code, as they stand in messages.
DIRECTIONS = {
    **dict.fromkeys("LR", "left-right"),
    **dict.fromkeys("PA", "posterior-anterior"),
    **dict.fromkeys("IS", "inferior-superior"),
}


@dataclass(frozen=True)
class Finding:
    """Something that is wrong with an image.

    Parameters
    ----------
    refuses : bool
        True: the image cannot be used. False: a warning.
    text : str
        One line: what, which value, what is accepted.
    """

    refuses: bool
    text: str

    def __str__(self) -> str:
        return f"{'refused' if self.refuses else 'warning'}: {self.text}"


@dataclass(frozen=True)
class Sharpness:
    """Spectra of an image along its three axes, and what they say about its slices.

    Parameters
    ----------
    directions : tuple of str
        Anatomical direction of each array axis.
    frequency : ndarray, shape (n,), cycles/mm
        Middle of each band.
    power : ndarray, shape (3, n)
        Power density along each array axis, in arbitrary units that are the same for the three; NaN beyond
        the Nyquist frequency.
    ratio : ndarray, shape (3, n)
        Power along an axis over the geometric mean of that along the two others.
    voxel_mm : ndarray, shape (3,)
        From the affine.
    thickness_mm : ndarray, shape (3,)
        Slice separation that the spectrum tells of; the voxel size where it tells of none.
    """

    directions: tuple[str, str, str]
    frequency: np.ndarray
    power: np.ndarray
    ratio: np.ndarray
    voxel_mm: np.ndarray
    thickness_mm: np.ndarray

    @property
    def thick(self) -> np.ndarray:
        """Shape (3,), bool: the axes along which the image was interpolated from thicker slices."""
        return self.thickness_mm > THICK_FACTOR * self.voxel_mm


def directions(affine: np.ndarray) -> tuple[str, str, str]:
    """Anatomical direction that is nearest to each array axis.

    Examples
    --------
    >>> directions(np.diag([-1, 1, 1, 1]))
    ('left-right', 'posterior-anterior', 'inferior-superior')
    """
    return tuple(DIRECTIONS[code] for code in nib.aff2axcodes(affine))


def sharpness(volume: np.ndarray, affine: np.ndarray) -> Sharpness:
    """Compare the power spectra along the three axes.

    Slices of a separation d carry nothing beyond 1 / (2 d) cycles/mm across them, however finely they are
    interpolated, while anatomy has about the same spectrum in all directions: eight true 3D images (FLAIR of
    two patients, six of simulated subjects) never fall below `SPECTRAL_DROP` of the other axes. So the
    frequency above which one axis stays below this limit gives the separation. On 24 simulated images, sliced
    at 3 to 6.5 mm and brought back, it is right to 1 mm, and more often too low than too high; two patients'
    slices of about 3 mm read as 2.2 to 2.6.

    Edges of the head and of a brain mask, which are cut after interpolation and as sharp in every direction,
    are faded out first. A loss that two axes share, as when a matrix was zero-filled in plane, does not show.

    Parameters
    ----------
    volume : ndarray, shape (X, Y, Z)
    affine : ndarray, shape (4, 4)
        Voxel index to position in mm.

    Returns
    -------
    Sharpness
    """
    volume = volumes.as_volume(volume)
    return _sharpness(volume, np.asarray(affine, float), foreground(volume))


def _sharpness(volume, affine, inside):
    voxel_mm = np.linalg.norm(affine[:3, :3], axis=0)
    weight = _fade(inside, voxel_mm)
    faded = (volume - np.average(volume, weights=weight)).astype(np.float32) * weight
    # Bands must hold at least one frequency of each axis.
    width = max(0.02, 1.01 / float(np.min(voxel_mm * volume.shape)))
    edges = np.arange(0.03, 0.5 / voxel_mm.min() + width / 2, width)
    middle = (edges[1:] + edges[:-1]) / 2
    power = np.full((3, len(middle)), np.nan)
    for axis, (n, mm) in enumerate(zip(volume.shape, voxel_mm, strict=True)):
        lines = np.square(np.abs(np.fft.rfft(faded, axis=axis)))
        # Per cycles/mm, so that the three axes compare whatever their numbers and sizes of voxels.
        density = (
            lines.mean(axis=tuple(other for other in range(3) if other != axis), dtype=np.float64) * mm / n
        )
        band = np.digitize(np.fft.rfftfreq(n, mm), edges)
        for number in range(1, len(edges)):
            # A band that reaches beyond the last frequency would mix signal and nothing.
            if (band == number).any() and middle[number - 1] <= 0.5 / mm:
                power[axis, number - 1] = density[band == number].mean()
    with np.errstate(divide="ignore", invalid="ignore"):
        logarithm = np.log(power)
        ratio = np.exp(
            [logarithm[axis] - np.delete(logarithm, axis, axis=0).mean(axis=0) for axis in range(3)]
        )
    thickness_mm = np.array([_thickness(middle, row, mm) for row, mm in zip(ratio, voxel_mm, strict=True)])
    return Sharpness(directions(affine), middle, power, ratio, voxel_mm, thickness_mm)


def is_thick(measured: Sharpness) -> bool:
    """Whether an image was acquired in slices much thicker than its voxels are wide, interpolated since or
    not."""
    return bool(measured.thickness_mm.max() > THICK_FACTOR * measured.thickness_mm.min())


def _fade(inside, voxel_mm, margin_mm=1.0, width_mm=8.0):
    """Weight of each voxel: 0 outside the head or the brain, rising to 1 within a few mm of its surface."""
    from edt import edt

    depth = edt(inside, anisotropy=tuple(voxel_mm), black_border=True)
    weight = np.sin(np.clip((depth - margin_mm) / width_mm, 0, 1) * np.pi / 2) ** 2
    return weight.astype(np.float32) if weight.any() else np.ones(inside.shape, np.float32)


def _thickness(frequency, ratio, voxel_mm):
    """Half the period at which the ratio falls below `SPECTRAL_DROP` and, on average, stays there; else the
    voxel size."""
    known = np.isfinite(ratio)
    frequency, logarithm, drop = (
        frequency[known],
        np.log(np.maximum(ratio[known], 1e-12)),
        math.log(SPECTRAL_DROP),
    )
    for number in range(len(logarithm)):
        if logarithm[number] < drop and logarithm[number:].mean() < drop:
            if number == 0:
                return max(voxel_mm, 0.5 / frequency[0])
            part = (logarithm[number - 1] - drop) / (logarithm[number - 1] - logarithm[number])
            return max(
                voxel_mm, 0.5 / (frequency[number - 1] + part * (frequency[number] - frequency[number - 1]))
            )
    return voxel_mm


def foreground(volume: np.ndarray) -> np.ndarray:
    """Where the head, or the brain of a skull-stripped image, is: its largest piece, without holes.

    Parameters
    ----------
    volume : ndarray, shape (X, Y, Z)

    Returns
    -------
    ndarray, shape (X, Y, Z), bool
        Nothing if the volume is constant.
    """
    volume = volumes.as_volume(volume)
    mask = above_background(volume)
    return largest_piece(mask if is_stripped(volume) else ndimage.binary_opening(mask))


def above_background(volume):
    if volume.min() == volume.max():
        return np.zeros(volume.shape, bool)
    if is_stripped(volume):
        # Rings of interpolation, where there are any, reach a few voxels beyond the brain and are faint.
        exactly = np.mean(volume == 0) > 0.5
        return volume != 0 if exactly else volume > 0.02 * _scale(volume)
    from skimage.filters import threshold_otsu

    # Half of Otsu's threshold: grey matter, cerebrospinal fluid and noise would be three classes, where it
    # knows two.
    return volume > threshold_otsu(volume) / 2


def is_stripped(volume: np.ndarray) -> bool:
    """Whether the background of an image was removed: more than half of its voxels are 0, those of its rim
    nearly all.

    What interpolation leaves of such a background counts as 0 (`NOTHING`).
    """
    limit = NOTHING * _scale(volume)
    # Not `np.take`, which copies all of a volume that is not stored in the order of its axes.
    rim = np.concatenate([np.moveaxis(volume, axis, 0)[[0, -1]].ravel() for axis in range(3)])
    return bool(np.mean(np.abs(rim) <= limit) > 0.98 and np.mean(np.abs(volume) <= limit) > 0.5)


def _scale(volume: np.ndarray) -> float:
    """How large the values of an image are, a few outliers apart; 0 if there are none."""
    some = np.abs(volume[tuple(slice(None, None, 2 if n > 32 else 1) for n in volume.shape)])
    return float(np.percentile(some[some > 0], 99)) if some.any() else 0.0


def shows_brain_only(volume: np.ndarray, affine: np.ndarray) -> bool:
    """Whether the background of an image was removed and what is left is no larger than a brain: some
    scanners blank the air around a head."""
    return is_stripped(volume) and grid.volume_ml(foreground(volume), affine) <= BRAIN_ML[1]


def largest_piece(mask):
    labels, count = ndimage.label(mask)
    if count > 1:
        mask = labels == 1 + np.argmax(np.bincount(labels.ravel())[1:])
    return ndimage.binary_fill_holes(mask)


def examine(volume: np.ndarray, affine: np.ndarray) -> tuple[list[Finding], Sharpness | None]:
    """Is an image fit to be the high-resolution image of the study?

    Parameters
    ----------
    volume : ndarray, shape (X, Y, Z)
        As acquired, or as some program left it.
    affine : ndarray, shape (4, 4)
        Voxel index to position in mm.

    Returns
    -------
    findings : list of Finding
        What is wrong with voxel size, grid, spectrum, clipping, negative values. Empty: nothing.
    sharpness : Sharpness or None
        None if the values are refused.
    """
    volume, affine = volumes.as_volume(volume), np.asarray(affine, float)
    findings = examine_grid(volume.shape, affine)
    if implausible := examine_values(volume, affine):
        return [*findings, *implausible], None
    inside = foreground(volume)
    measured = _sharpness(volume, affine, inside)
    for axis in np.flatnonzero(measured.thick):
        text = (
            f"interpolated from slices about {measured.thickness_mm[axis]:.1f} mm apart "
            f"{measured.directions[axis]}, though its voxels are "
            f"{measured.voxel_mm[axis]:.2f} mm: slices simulated in that direction lose less than they "
            "should, and scores flatter"
        )
        findings.append(Finding(False, text))
    largest = float(volume.max())
    clipped = np.count_nonzero(volume == largest) / max(np.count_nonzero(inside), 1)
    if clipped > CLIPPED_FRACTION:
        text = (
            f"{100 * clipped:.2g} % of its foreground is exactly {largest:g}, the largest value: "
            "intensities were clipped"
        )
        findings.append(Finding(False, text))
    negative = int(np.count_nonzero(volume < 0))
    if negative:
        text = (
            f"{negative} voxels are negative, down to {volume.min():.4g}: no magnitude image has such; they "
            "become 0"
        )
        findings.append(Finding(False, text))
    return findings, measured


def examine_file(path: str | Path) -> list[Finding]:
    """Read an image to its last byte: can its values be the signal of a head or a brain?

    Looked for once in a process, as long as the file does not change.

    Parameters
    ----------
    path : str or Path
        A ``.nii`` or ``.nii.gz`` file.

    Returns
    -------
    list of Finding
        As `examine_values`.

    Raises
    ------
    FileNotFoundError, ValueError
        As `helpers.volumes.read`: damaged, of another length than its header says, not finite.
    """
    facts = look(path)
    if facts is None:
        raise FileNotFoundError(f"{path}: no such file")
    return list(_examine_version(Path(path), *facts))


@functools.cache
def _examine_version(path: Path, size: int, changed_ns: int) -> tuple[Finding, ...]:
    return tuple(examine_values(*volumes.read(path)))


def examine_all(
    examine: Callable[[Path], list], paths: Iterable[str | Path]
) -> dict[str | Path, Callable[[], list]]:
    """Examine several files at once, with a progress bar where it takes longer than two seconds.

    Parameters
    ----------
    examine : callable
        Takes a path.
    paths : iterable of str or Path

    Returns
    -------
    dict
        Path -> a function that returns what `examine` returned, or raises what it raised.
    """
    from tqdm import tqdm

    # Decompression and arithmetic leave the interpreter to other threads; four volumes at a time fit into any
    # memory.
    with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:
        jobs = {path: pool.submit(examine, path) for path in paths}
        for job in tqdm(jobs.values(), desc="images looked at", delay=2, leave=False):
            job.exception()
    return {path: job.result for path, job in jobs.items()}


def examine_values(volume: np.ndarray, affine: np.ndarray) -> list[Finding]:
    """Can these values be the signal of a head or a brain, as an MR image shows it?

    About every 2 mm is looked at: a fraction of a second. Limits are relative to the image, whose unit may be
    any.

    Parameters
    ----------
    volume : ndarray, shape (X, Y, Z)
        As acquired, or as some program left it; with or without its background.
    affine : ndarray, shape (4, 4)
        Voxel index to position in mm.

    Returns
    -------
    list of Finding
        Nothing, or the first reason against it, which refuses: constant, a mask or labels, negative, a
        background that is not at the bottom, mostly its largest value, smaller than any brain.

    References
    ----------
    A.-S. Ricard et al., "On two equations about brain volume, cranial capacity and age", Surg. Radiol. Anat.
    32, 2010. S. Sgouros et al., "Intracranial volume change in childhood", J. Neurosurg. 91(4):610-616, 1999.
    """
    volume, affine = volumes.as_volume(volume), np.asarray(affine, float)
    steps = [max(1, int(2 // mm)) if mm > 0 else 1 for mm in np.linalg.norm(affine[:3, :3], axis=0)]
    some = volume[tuple(slice(None, None, step) for step in steps)]
    reason = _implausible(volume, some, affine @ np.diag([*steps, 1]))
    return [Finding(True, reason)] if reason else []


def _implausible(volume, some, affine):
    """The first reason why `volume`, of which `some` voxels on the grid `affine` are looked at, is no image;
    or None."""
    if volume.min() == volume.max():
        return f"every voxel is {volume.min():g}: accepted are images with contrast"
    values, counts = np.unique(some, return_counts=True)
    if values.size < FEWEST_VALUES:
        return (
            f"{values.size} different values, a mask or a segmentation: accepted are images of "
            f"{FEWEST_VALUES} or more"
        )
    if (
        values.size <= LABELS
        and (equal := _equal_neighbours(volume, values[np.argmax(counts)])) > EQUAL_NEIGHBOURS
    ):
        what = f"{100 * equal:.0f} % of neighbouring voxels are equal, as labels are"
        return f"{what}: accepted are images of which up to {100 * EQUAL_NEIGHBOURS:.0f} % are"
    scale, size = _scale(some), np.abs(some)
    for part, accepted in NEGATIVE.items():
        beyond = size > part * scale
        if (share := np.count_nonzero(some[beyond] < 0) / max(np.count_nonzero(beyond), 1)) > accepted:
            cause = "z-scores, phase, a part of a complex image, or whole numbers that have wrapped around"
            return (
                f"{100 * share:.2g} % of its signal is negative, down to {some.min():.4g} ({cause}): "
                "accepted are magnitude images"
            )
    low, high = np.percentile(some, [1, 99])
    corners = (
        [slice(None, max(1, n // 10)) for n in some.shape],
        [slice(-max(1, n // 10), None) for n in some.shape],
    )
    corner = float(
        np.median(
            np.concatenate([some[where].ravel() for where in itertools.product(*zip(*corners, strict=True))])
        )
    )
    centre = float(np.median(some[tuple(slice(n // 4, max(3 * n // 4, n // 4 + 1)) for n in some.shape)]))
    if low > RAISED * high or corner < -0.02 * scale:
        level = low if low > RAISED * high else corner
        return (
            f"its background is at {level:.4g}, its signal up to {high:.4g}: accepted is a background near 0"
        )
    if corner > 0.25 * scale and corner > 1.25 * centre:
        return (
            f"its background, {corner:.4g}, is brighter than the head, {centre:.4g}: accepted is a "
            "background near 0"
        )
    inside = foreground(some)
    if (share := np.count_nonzero(some == some.max()) / max(np.count_nonzero(inside), 1)) > MOSTLY_CLIPPED:
        what = f"{100 * share:.0f} % of its foreground is exactly {some.max():g}, the largest value"
        return (
            f"{what}, as in a mask or an image that is overexposed: accepted are up to "
            f"{100 * MOSTLY_CLIPPED:.0f} %"
        )
    if (ml := grid.volume_ml(inside, affine)) < BRAIN_ML[0]:
        return f"a head or brain of {ml:.0f} ml: accepted are {BRAIN_ML[0]} ml or more"
    return None


def _equal_neighbours(volume, background):
    """Part of the neighbours along an axis that are exactly equal, where neither is background."""
    equal = pairs = 0
    for axis in range(3):
        # Whole lines along the axis, every third of them.
        lines = np.moveaxis(volume, axis, -1)[::3, ::3]
        both = (lines[..., 1:] != background) & (lines[..., :-1] != background)
        pairs += np.count_nonzero(both)
        equal += np.count_nonzero(both & (lines[..., 1:] == lines[..., :-1]))
    return equal / max(pairs, 1)


def examine_angles(affine: np.ndarray) -> list[Finding]:
    """Refuse a grid that is sheared: ITK would misplace its voxels, and its slices lie nearer to each other
    than its voxels do.

    Parameters
    ----------
    affine : ndarray, shape (4, 4)
        Voxel index to position in mm.
    """
    axes = np.asarray(affine, float)[:3, :3]
    unit = axes / np.linalg.norm(axes, axis=0)
    shear = math.degrees(math.asin(min(np.abs(unit.T @ unit - np.eye(3)).max(), 1)))
    if shear <= SHEAR_DEGREES:
        return []
    text = f"axes {shear:.1f} degrees off the right angle: accepted are grids with right angles"
    return [Finding(True, text)]


def examine_grid(shape: tuple[int, ...], affine: np.ndarray) -> list[Finding]:
    """What the header alone tells of an image: voxel size and right angles.

    Parameters
    ----------
    shape : tuple of int
        Of the volume.
    affine : ndarray, shape (4, 4)
        Voxel index to position in mm.
    """
    affine = np.asarray(affine, float)
    voxel_mm = np.linalg.norm(affine[:3, :3], axis=0)
    size = " x ".join(f"{mm:.2f}" for mm in voxel_mm)
    findings = []
    if voxel_mm.max() > REFUSED_VOXEL_MM:
        text = (
            f"voxels of {size} mm: accepted as a high-resolution image are voxels of up to "
            f"{REFUSED_VOXEL_MM:g} mm"
        )
        findings.append(Finding(True, text))
    elif voxel_mm.max() > WARNED_VOXEL_MM or voxel_mm.max() > WARNED_VOXEL_MM * voxel_mm.min():
        findings.append(Finding(False, f"voxels of {size} mm: the study asks for 1 mm in every direction"))
    findings += examine_angles(affine)
    extent_mm = voxel_mm * shape
    if extent_mm.min() < SMALLEST_EXTENT_MM:
        extent = " x ".join(f"{mm:.0f}" for mm in extent_mm)
        text = (
            f"field of view of {extent} mm: accepted are images of a whole brain, {SMALLEST_EXTENT_MM} mm "
            "or more"
        )
        findings.append(Finding(True, text))
    return findings
