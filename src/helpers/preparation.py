"""From a laboratory's own images to HACA3's grid: is an image fit, bias correction, rigid registration to MNI, the brain.

Arrays and affines in mm go in and come out. What is wrong with an image is a list of `Finding`; a finding that refuses says
that a result would mean nothing, a warning says what the result will suffer from.

*The template.* Images are brought to MNI by rigid registration to an image of the same contrast that `helpers.phantom` renders from
the embedded tissue maps, without noise and unwarped. That brain lies in MNI152 2009a symmetric space (rigid, see ``data/README.md``), on
HACA3's grid, and is at hand without a download. It is one person's brain, not an average: enough for six degrees of freedom, which
leave every brain its own size, and each contrast can be aimed at its own. Two brains lie alike to 1 or 2 mm and degrees, no better.

*The brain.* There is no trained brain extraction here. `brain_mask` is a threshold and morphology within the template's
neighbourhood. It is good enough to find the brain, not to measure its outline: dura can stay, and in the one patient seen with a
skull a piece of the temporal muscle did. A mask of a dedicated program is better: an image whose background is removed keeps its own.
"""

import functools
import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass

import nibabel as nib
import numpy as np
from scipy import ndimage
from scipy.spatial.transform import Rotation

from helpers import grid, phantom, registration, volumes
from helpers.study import BRAINS, CONTRASTS, check

#: The paper's images have voxels of 1 mm. Protocols of up to 1.2 mm are common; twice that is not a 3D acquisition of this kind.
REFUSED_VOXEL_MM = 1.5
WARNED_VOXEL_MM = 1.25
#: Angle by which two axes may differ from a right one before ITK's grids, which have right angles, misplace the image.
SHEAR_DEGREES = 0.5
#: Power along an axis over that of the two others, at the frequency taken for the Nyquist frequency of the slices. There a slice profile
#: as wide as the separation and cubic interpolation have left about a third of the power (tests/test_preparation.py).
SPECTRAL_DROP = 0.35
#: How much thicker than the voxels an image must look before it is called interpolated. True 3D images stay below 1.1.
THICK_FACTOR = 1.5
#: Part of the foreground that has exactly the largest value before an image is called clipped.
CLIPPED_FRACTION = 1e-3
#: The same, before it is none.
MOSTLY_CLIPPED = 0.25
#: Brain and the fluid around it, ml: a cranium holds 600 in the first months of life (Sgouros 1999) and up to 1656 in 58 healthy
#: adults (Ricard 2010); beyond are small heads of newborns, and hydrocephalus.
BRAIN_ML = (500, 2300)
#: Fewer different values than this are a mask or a segmentation.
FEWEST_VALUES = 16
#: An image of at most so many different values is one of labels if more than this part of neighbouring voxels is equal.
LABELS, EQUAL_NEIGHBOURS = 1000, 0.7
#: Part of the voxels beyond a part of the image's scale that may be negative: what B-splines leave at edges stays below.
NEGATIVE = {0.25: 5e-3, 0.5: 2e-4}
#: The 1st percentile may be this part of the 99th: the background is at the bottom.
RAISED = 0.15
#: Part of an image's scale below which a value is none: what interpolation leaves of a background of 0.
NOTHING = 1e-4
#: No adult's brain is smaller than this in any direction.
SMALLEST_EXTENT_MM = 90
#: Part of the template's brain that the field of view must hold.
REFUSED_COVERAGE, WARNED_COVERAGE = 0.90, 0.99

#: Starts of registration: a head is upright or turned by this angle, which finds heads turned by 20 degrees.
START_TURN_DEGREES = 15.0
#: Height of the part of a head that has neither neck nor much of the face, and how far its top is above the middle of the brain.
UPPER_HEAD_MM, BRAIN_BELOW_TOP_MM = 110.0, 80.0

#: Normalized mutual information of a contrast with the T1w. In two patients: 1.063 to 1.105 with their own, 1.012 to 1.015 with the
#: other's, 1.019 with their own mirrored.
LEAST_SAME_PERSON = 1.035

#: Correlation of the T1w's edges with the template's. In three patients: 0.33 to 0.40; at most 0.18 upside down, back to front, or with
#: axes swapped. Left and right do not tell: mirrored, 0.40.
REFUSED_LIKENESS, WARNED_LIKENESS = 0.2, 0.3

#: Correlation of two portraits (`portrait`). In three patients: 0.91 to 1.00 with themselves scanned anew (simulated: lying otherwise,
#: other intensities, bias field, noise), 0.46 to 0.65 with each other.
SAME_PERSON = 0.8

#: The anatomical directions of an axis by its axis code, as they stand in messages.
DIRECTIONS = {
    **dict.fromkeys("LR", "left-right"), **dict.fromkeys("PA", "posterior-anterior"), **dict.fromkeys("IS", "inferior-superior")
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
        Power density along each array axis, in arbitrary units that are the same for the three; NaN beyond the Nyquist frequency.
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

    Slices of a separation d carry nothing beyond 1 / (2 d) cycles/mm across them, however finely they are interpolated, while
    anatomy has about the same spectrum in all directions: eight true 3D images (FLAIR of two patients, six of simulated subjects) never fall
    below `SPECTRAL_DROP` of the other axes. So the frequency at which an axis does, for good, gives the separation. On 24 simulated
    images, sliced at 3 to 6.5 mm and brought back, it is right to 1 mm, and more often too low than too high; two patients' slices of
    about 3 mm read as 2.2 to 2.6.

    Edges of the head and of a brain mask, which are cut after interpolation and as sharp in every direction, are faded out first.
    A loss that two axes share, as when a matrix was zero-filled in plane, does not show.

    Parameters
    ----------
    volume : ndarray, shape (X, Y, Z)
    affine : ndarray, shape (4, 4)
        Voxel index to position in mm.

    Returns
    -------
    Sharpness
    """
    volume = volumes.check(volume)
    voxel_mm = np.linalg.norm(np.asarray(affine, float)[:3, :3], axis=0)
    weight = _fade(volume, voxel_mm)
    faded = (volume - np.average(volume, weights=weight)).astype(np.float32) * weight
    # Bands must hold at least one frequency of each axis.
    width = max(0.02, 1.01 / float(np.min(voxel_mm * volume.shape)))
    edges = np.arange(0.03, 0.5 / voxel_mm.min() + width / 2, width)
    middle = (edges[1:] + edges[:-1]) / 2
    power = np.full((3, len(middle)), np.nan)
    for axis, (n, mm) in enumerate(zip(volume.shape, voxel_mm, strict=True)):
        lines = np.square(np.abs(np.fft.rfft(faded, axis=axis)))
        # Per cycles/mm, so that the three axes compare whatever their numbers and sizes of voxels.
        density = lines.mean(axis=tuple(other for other in range(3) if other != axis), dtype=np.float64) * mm / n
        band = np.digitize(np.fft.rfftfreq(n, mm), edges)
        for number in range(1, len(edges)):
            # A band that reaches beyond the last frequency would mix signal and nothing.
            if (band == number).any() and middle[number - 1] <= 0.5 / mm:
                power[axis, number - 1] = density[band == number].mean()
    with np.errstate(divide="ignore", invalid="ignore"):
        logarithm = np.log(power)
        ratio = np.exp([logarithm[axis] - np.delete(logarithm, axis, axis=0).mean(axis=0) for axis in range(3)])
    thickness_mm = np.array([_thickness(middle, row, mm) for row, mm in zip(ratio, voxel_mm, strict=True)])
    return Sharpness(directions(affine), middle, power, ratio, voxel_mm, thickness_mm)


def is_thick(found: Sharpness) -> bool:
    """Whether an image was acquired in slices much thicker than its voxels are wide, interpolated since or not."""
    return bool(found.thickness_mm.max() > THICK_FACTOR * found.thickness_mm.min())


def _fade(volume, voxel_mm, margin_mm=1.0, width_mm=8.0):
    """Weight of each voxel: 0 outside the head or the brain, rising to 1 within a few mm of its surface."""
    from edt import edt

    depth = edt(foreground(volume), anisotropy=tuple(voxel_mm), black_border=True)
    weight = np.sin(np.clip((depth - margin_mm) / width_mm, 0, 1) * np.pi / 2) ** 2
    return weight.astype(np.float32) if weight.any() else np.ones(volume.shape, np.float32)


def _thickness(frequency, ratio, voxel_mm):
    """Half the period at which the ratio falls below `SPECTRAL_DROP` and, on average, stays there; else the voxel size."""
    known = np.isfinite(ratio)
    frequency, logarithm, drop = frequency[known], np.log(np.maximum(ratio[known], 1e-12)), math.log(SPECTRAL_DROP)
    for number in range(len(logarithm)):
        if logarithm[number] < drop and logarithm[number:].mean() < drop:
            if number == 0:
                return max(voxel_mm, 0.5 / frequency[0])
            part = (logarithm[number - 1] - drop) / (logarithm[number - 1] - logarithm[number])
            return max(voxel_mm, 0.5 / (frequency[number - 1] + part * (frequency[number] - frequency[number - 1])))
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
    volume = volumes.check(volume)
    mask = _not_background(volume)
    return _largest(mask if is_stripped(volume) else ndimage.binary_opening(mask))


def _not_background(volume):
    if volume.min() == volume.max():
        return np.zeros(volume.shape, bool)
    if is_stripped(volume):
        # Rings of interpolation, where there are any, reach a few voxels beyond the brain and are faint.
        exactly = np.mean(volume == 0) > 0.5
        return volume != 0 if exactly else volume > 0.02 * _scale(volume)
    from skimage.filters import threshold_otsu

    # Half of Otsu's threshold: grey matter, cerebrospinal fluid and noise would be three classes, where it knows two.
    return volume > threshold_otsu(volume) / 2


def is_stripped(volume: np.ndarray) -> bool:
    """Whether the background of an image was removed: more than half of its voxels are 0, those of its rim nearly all.

    What interpolation leaves of such a background counts as 0 (`NOTHING`).
    """
    rim = np.concatenate([np.take(volume, (0, -1), axis).ravel() for axis in range(3)])
    limit = NOTHING * _scale(volume)
    return bool(np.mean(np.abs(volume) <= limit) > 0.5 and np.mean(np.abs(rim) <= limit) > 0.98)


def _scale(volume: np.ndarray) -> float:
    """How large the values of an image are, a few outliers apart; 0 if there are none."""
    some = np.abs(volume[tuple(slice(None, None, 2 if n > 32 else 1) for n in volume.shape)])
    return float(np.percentile(some[some > 0], 99)) if some.any() else 0.0


def shows_brain_only(volume: np.ndarray, affine: np.ndarray) -> bool:
    """Whether the background of an image was removed and what is left is no larger than a brain: some scanners blank the air around a head."""
    return is_stripped(volume) and _ml(foreground(volume), affine) <= BRAIN_ML[1]


def _ml(mask: np.ndarray, affine: np.ndarray) -> float:
    return float(np.count_nonzero(mask) * abs(np.linalg.det(np.asarray(affine, float)[:3, :3])) / 1e3)


def _largest(mask):
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
    volume, affine = volumes.check(volume), np.asarray(affine, float)
    findings = examine_grid(volume.shape, affine)
    if implausible := examine_values(volume, affine):
        return [*findings, *implausible], None
    found = sharpness(volume, affine)
    for axis in np.flatnonzero(found.thick):
        text = (
            f"interpolated from slices about {found.thickness_mm[axis]:.1f} mm apart {found.directions[axis]}, though its voxels are "
            f"{found.voxel_mm[axis]:.2f} mm: slices simulated in that direction lose less than they should, and scores flatter"
        )
        findings.append(Finding(False, text))
    largest = float(volume.max())
    clipped = np.count_nonzero(volume == largest) / max(np.count_nonzero(foreground(volume)), 1)
    if clipped > CLIPPED_FRACTION:
        text = f"{100 * clipped:.2g} % of its foreground is exactly {largest:g}, the largest value: intensities were clipped"
        findings.append(Finding(False, text))
    negative = int(np.count_nonzero(volume < 0))
    if negative:
        text = f"{negative} voxels are negative, down to {volume.min():.4g}: no magnitude image has such; they become 0"
        findings.append(Finding(False, text))
    return findings, found


def examine_values(volume: np.ndarray, affine: np.ndarray) -> list[Finding]:
    """Can these values be the signal of a head or a brain, as an MR image shows it?

    About every 2 mm is looked at: a fraction of a second. Limits are relative to the image, whose unit may be any.

    Parameters
    ----------
    volume : ndarray, shape (X, Y, Z)
        As acquired, or as some program left it; with or without its background.
    affine : ndarray, shape (4, 4)
        Voxel index to position in mm.

    Returns
    -------
    list of Finding
        Nothing, or the first reason against it, which refuses: constant, a mask or labels, negative, a background that is not at the
        bottom, mostly its largest value, smaller than any brain.

    References
    ----------
    A.-S. Ricard et al., "On two equations about brain volume, cranial capacity and age", Surg. Radiol. Anat. 32, 2010.
    S. Sgouros et al., "Intracranial volume change in childhood", J. Neurosurg. 91(4):610-616, 1999.
    """
    volume, affine = volumes.check(volume), np.asarray(affine, float)
    steps = [max(1, int(2 // mm)) if mm > 0 else 1 for mm in np.linalg.norm(affine[:3, :3], axis=0)]
    some = volume[tuple(slice(None, None, step) for step in steps)]
    reason = _implausible(volume, some, affine @ np.diag([*steps, 1]))
    return [Finding(True, reason)] if reason else []


def _implausible(volume, some, affine):
    """The first reason why `volume`, of which `some` voxels on the grid `affine` are looked at, is no image; or None."""
    if volume.min() == volume.max():
        return f"every voxel is {volume.min():g}: accepted are images with contrast"
    values, counts = np.unique(some, return_counts=True)
    if values.size < FEWEST_VALUES:
        return f"{values.size} different values, a mask or a segmentation: accepted are images of {FEWEST_VALUES} or more"
    if values.size <= LABELS and (equal := _equal_neighbours(volume, values[np.argmax(counts)])) > EQUAL_NEIGHBOURS:
        what = f"{100 * equal:.0f} % of neighbouring voxels are equal, as labels are"
        return f"{what}: accepted are images of which up to {100 * EQUAL_NEIGHBOURS:.0f} % are"
    scale, size = _scale(some), np.abs(some)
    for part, accepted in NEGATIVE.items():
        beyond = size > part * scale
        if (share := np.count_nonzero(some[beyond] < 0) / max(np.count_nonzero(beyond), 1)) > accepted:
            cause = "z-scores, phase, a part of a complex image, or whole numbers that have wrapped around"
            return f"{100 * share:.2g} % of its signal is negative, down to {some.min():.4g} ({cause}): accepted are magnitude images"
    low, high = np.percentile(some, [1, 99])
    corners = [slice(None, max(1, n // 10)) for n in some.shape], [slice(-max(1, n // 10), None) for n in some.shape]
    corner = float(np.median(np.concatenate([some[where].ravel() for where in itertools.product(*zip(*corners, strict=True))])))
    centre = float(np.median(some[tuple(slice(n // 4, max(3 * n // 4, n // 4 + 1)) for n in some.shape)]))
    if low > RAISED * high or corner < -0.02 * scale:
        level = low if low > RAISED * high else corner
        return f"its background is at {level:.4g}, its signal up to {high:.4g}: accepted is a background near 0"
    if corner > 0.25 * scale and corner > 1.25 * centre:
        return f"its background, {corner:.4g}, is brighter than the head, {centre:.4g}: accepted is a background near 0"
    inside = foreground(some)
    if (share := np.count_nonzero(some == some.max()) / max(np.count_nonzero(inside), 1)) > MOSTLY_CLIPPED:
        what = f"{100 * share:.0f} % of its foreground is exactly {some.max():g}, the largest value"
        return f"{what}, as in a mask or an image that is overexposed: accepted are up to {100 * MOSTLY_CLIPPED:.0f} %"
    if (ml := _ml(inside, affine)) < BRAIN_ML[0]:
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
        text = f"voxels of {size} mm: accepted as a high-resolution image are voxels of up to {REFUSED_VOXEL_MM:g} mm"
        findings.append(Finding(True, text))
    elif voxel_mm.max() > WARNED_VOXEL_MM or voxel_mm.max() > WARNED_VOXEL_MM * voxel_mm.min():
        findings.append(Finding(False, f"voxels of {size} mm: the study asks for 1 mm in every direction"))
    unit = affine[:3, :3] / voxel_mm
    cosine = np.abs(unit.T @ unit - np.eye(3)).max()
    shear = math.degrees(math.asin(min(cosine, 1)))
    if shear > SHEAR_DEGREES:
        findings.append(Finding(True, f"axes {shear:.1f} degrees off the right angle: accepted are grids with right angles"))
    extent_mm = voxel_mm * shape
    if extent_mm.min() < SMALLEST_EXTENT_MM:
        extent = " x ".join(f"{mm:.0f}" for mm in extent_mm)
        text = f"field of view of {extent} mm: accepted are images of a whole brain, {SMALLEST_EXTENT_MM} mm or more"
        findings.append(Finding(True, text))
    return findings


@functools.lru_cache(maxsize=3)
def template(contrast: str) -> tuple[np.ndarray, np.ndarray]:
    """What images of a contrast are registered to: the embedded brain itself, noise-free, and its mask.

    Parameters
    ----------
    contrast : str
        One of `study.CONTRASTS`.

    Returns
    -------
    image : ndarray, shape (192, 224, 192), float32, read-only
        On the grid `phantom.AFFINE`.
    brain : ndarray, shape (192, 224, 192), bool, read-only
    """
    fractions = phantom.anatomy()
    brain = sum(fractions.values()) > 0.5
    nothing = np.zeros(grid.SHAPE, bool)
    # Seed 0 belongs to nobody: this is the anatomy as it is, which no seed gives.
    person = phantom.Subject(0, fractions, brain, nothing, np.zeros((3, *grid.SHAPE), np.float32), grid.AFFINE)
    image = phantom.render(person, phantom.scanner("target"), contrast)
    image.setflags(write=False)
    brain.setflags(write=False)
    return image, brain


def correct_bias(volume: np.ndarray, affine: np.ndarray) -> np.ndarray:
    """Divide by the smooth intensity inhomogeneity that N4 finds in the foreground.

    The field is scaled to a geometric mean of 1 in the foreground, so that the image keeps its scale.

    Parameters
    ----------
    volume : ndarray, shape (X, Y, Z)
        0 or more.
    affine : ndarray, shape (4, 4)
        Voxel index to position in mm.

    Returns
    -------
    ndarray, shape (X, Y, Z), float32

    References
    ----------
    N. J. Tustison et al., "N4ITK: improved N3 bias correction", IEEE Transactions on Medical Imaging 29(6):1310-1320, 2010.
    """
    ants = registration.import_ants()
    volume = np.ascontiguousarray(volumes.check(volume), np.float32)
    inside = foreground(volume) & (volume > 0)
    box = ndimage.find_objects(inside.astype(np.uint8))[0]
    part, mask = volume[box], inside[box]
    # N4 fits a field that bends over centimetres: voxels of about 4 mm are enough, and it takes a sixth of the time.
    voxel_mm = np.linalg.norm(np.asarray(affine, float)[:3, :3], axis=0)
    shrink = max(1, min(round(4 / float(np.cbrt(voxel_mm.prod()))), min(part.shape) // 8))
    images = [registration.ants_image(ants, each, affine) for each in (part, mask.astype(np.float32))]
    field = ants.n4_bias_field_correction(
        images[0], mask=images[1], shrink_factor=shrink, convergence={"iters": [50, 50, 30, 20], "tol": 1e-6}, return_bias_field=True
    ).numpy()
    field = np.maximum(field, 1e-3) / np.exp(np.mean(np.log(np.maximum(field[mask], 1e-3))))
    result = volume.copy()
    # Outside the box nothing is known of the field, and nothing is kept of the image.
    result[box] = part / field
    return result


def starts(volume: np.ndarray, affine: np.ndarray) -> list[np.ndarray]:
    """Where the brain may lie: rigid transforms for registration to begin with, the best of which is to be chosen by its metric.

    First the header as it is. Then heads upright or turned by `START_TURN_DEGREES` about one axis, the middle of the brain at the
    centre of mass (right for a brain without skull, or a head without neck), at the middle of the upper part of the foreground,
    seen in the turned head's own axes (right however much of neck and shoulders is below), and in the middle of the field of view
    (right where the background is as bright as the head). Top is where the header says; none turns a head upside down.

    Parameters
    ----------
    volume : ndarray, shape (X, Y, Z)
        Of a head or a brain, 0 or more.
    affine : ndarray, shape (4, 4)
        Voxel index to position in mm.

    Returns
    -------
    list of ndarray, shape (4, 4)
        Position in MNI space to position in the image, mm.
    """
    volume, affine = registration.coarsen(volumes.check(volume), affine)
    # In voxels this large a dark skull parts the brain from the neck, which may be the larger piece, and a scalp is thin: all pieces,
    # nothing opened.
    inside = _not_background(volume)
    if not inside.any():
        inside = np.ones(volume.shape, bool)
    points = np.argwhere(inside) @ affine[:3, :3].T + affine[:3, 3]
    mass = np.average(points, axis=0, weights=volume[inside] + 1e-6 * volume.max())
    middle = affine[:3, :3] @ ((np.array(volume.shape) - 1) / 2) + affine[:3, 3]
    brain = np.array(registration.BRAIN_CENTRE_MM)
    transforms = [np.eye(4)]
    for angles in np.vstack([np.zeros(3), START_TURN_DEGREES * np.eye(3), -START_TURN_DEGREES * np.eye(3)]):
        turn = Rotation.from_euler("xyz", angles, degrees=True).as_matrix()
        upright = points @ turn  # In the axes of the head: the inverse of a rotation is its transpose.
        top = np.percentile(upright[:, 2], 99.9)
        upper = upright[upright[:, 2] > top - UPPER_HEAD_MM].mean(axis=0)
        for centre in (mass, turn @ [*upper[:2], top - BRAIN_BELOW_TOP_MM], middle):
            transform = np.eye(4)
            transform[:3, :3] = turn
            transform[:3, 3] = centre - turn @ brain
            transforms.append(transform)
    return transforms


def brain_mask(t1: np.ndarray, inside: np.ndarray) -> np.ndarray:
    """Find the brain in a T1w image that lies in MNI space: a threshold, then morphology.

    Tissue between half and one and a half times the intensity of white matter, near the template's brain; bridges to the scalp
    broken by an erosion of 2 mm (3 mm cost 7 % of a simulated subject's tissue), the largest piece kept and grown back; sulci
    closed over 6 mm; what is thinner than 10 mm removed.

    Parameters
    ----------
    t1 : ndarray, shape (192, 224, 192)
        T1w, bias-corrected, on the grid of the template.
    inside : ndarray, shape (192, 224, 192), bool
        The field of view of the acquisition.

    Returns
    -------
    ndarray, shape (192, 224, 192), bool

    Raises
    ------
    ValueError
        If nothing like a brain is found.
    """
    known = template("T1w")[1]
    near, core = _grown(known, 10), _shrunk(known, 15) & inside
    if not core.any() or (typical := float(np.median(t1[core]))) <= 0:
        raise ValueError("no brain where the template has one: accepted are T1w images of a whole head or brain")
    tissue = ndimage.binary_opening(near & (t1 > 0.5 * typical) & (t1 < 1.5 * typical))
    brain = _grown(_largest(_shrunk(tissue, 2)), 3) & near
    brain = ndimage.binary_fill_holes(_shrunk(_grown(brain, 6), 6))
    brain = _grown(_largest(_shrunk(brain, 5)), 5.5) & brain
    brain = (ndimage.gaussian_filter(brain.astype(np.float32), 1.5) > 0.5) & inside
    if brain.sum() < 500e3:
        raise ValueError(f"a brain of {brain.sum() / 1e3:.0f} ml found in the T1w image: accepted are 500 ml or more")
    return brain


def _grown(mask, radius_mm):
    from edt import edt

    return edt(~mask) <= radius_mm


def _shrunk(mask, radius_mm):
    from edt import edt

    # The rim of the array is no surface of the mask's, but a mask that touches it was cut there.
    return edt(mask.copy()) > radius_mm  # A copy, since edt takes nothing that is read-only.


@dataclass(frozen=True)
class Prepared:
    """A subject on HACA3's grid, `phantom.SHAPE` voxels of `phantom.AFFINE`.

    Parameters
    ----------
    images : dict of str to ndarray, shape (192, 224, 192), float32
        Contrast -> bias-corrected image, interpolated once; intensities keep their scale.
    brain : ndarray, shape (192, 224, 192), bool
        Outside of it the images are 0 (unless they were to be kept).
    transforms : dict of str to ndarray, shape (4, 4)
        Contrast -> position in MNI space to position in the image as acquired, mm.
    coverage : dict of str to float
        Contrast -> part of the template's brain that the field of view holds.
    agreement : dict of str to float
        Contrast -> `edge_likeness` to the template (T1w, or a single image), `registration.mutual_information` with the T1w (others).
    findings : dict of str to list of Finding
        Contrast -> what is wrong with it that shows in MNI space only.
    """

    images: dict[str, np.ndarray]
    brain: np.ndarray
    transforms: dict[str, np.ndarray]
    coverage: dict[str, float]
    agreement: dict[str, float]
    findings: dict[str, list[Finding]]


def prepare(images: Mapping[str, tuple[np.ndarray, np.ndarray]], brain: str = "extract", seed: int = 0) -> Prepared:
    """Bring the contrasts of a subject onto HACA3's grid: N4, rigid to MNI, others rigid to the T1w, background removed.

    The T1w is registered to the template from several `starts`, every other contrast to the T1w as it then lies in MNI space, which composes the two
    transforms; each image is interpolated once, from its own grid. A single image, such as a target's, is registered to the template of its own contrast.

    Parameters
    ----------
    images : mapping of str to (ndarray of shape (X, Y, Z), ndarray of shape (4, 4))
        Contrast -> volume and affine (voxel index to position in mm). With T1w, or only one contrast. Negative values become 0.
    brain : {"extract", "keep"}
        Remove what is not brain, unless that was done (`shows_brain_only`); or keep the images as they are.
    seed : int
        Of the sampling of voxels in registration.

    Raises
    ------
    ValueError
        If an image is not 3D, its values cannot be those of a head (`examine_values`), a brain cannot be found or is of no size that
        brains have, or there is no T1w to find it in.
    """
    brain = check("brain", brain, BRAINS)
    for contrast, (volume, affine) in images.items():
        for finding in examine_values(volumes.check(volume, contrast), affine):
            raise ValueError(f"{contrast}: {finding.text}")
    images = {
        check("contrast", contrast, CONTRASTS): (np.maximum(volumes.check(volume, contrast), 0), affine)
        for contrast, (volume, affine) in images.items()
    }
    lead = "T1w" if "T1w" in images else next(iter(images))
    if lead != "T1w" and len(images) > 1:
        raise ValueError(f"images are {', '.join(images)}: accepted are T1w with others, or one contrast")
    extract = brain == "extract" and not shows_brain_only(*images[lead])
    if extract and lead != "T1w":
        text = "and the brain is found in a T1w only: accepted is one whose background is removed"
        raise ValueError(f"the {lead} image has its background or skull, {text}")
    fixed, known = template(lead)
    target = (grid.SHAPE, grid.AFFINE)
    transforms, on_grid, seen, agreement = {}, {}, {}, {}
    for contrast in (lead, *(other for other in images if other != lead)):
        volume, affine = correct_bias(*images[contrast]), images[contrast][1]
        # Within the brain only: the template has no skull, and around a brain that was cut out there is nothing to compare.
        begin = starts(volume, affine)
        if contrast != lead:
            begin = [transforms[lead], *begin]  # Images of one session share a coordinate system.
        transforms[contrast] = registration.estimate(volume, affine, fixed, grid.AFFINE, known, seed=seed, starts=begin)
        on_grid[contrast] = registration.resample(volume, affine, *target, transforms[contrast])
        seen[contrast] = registration.resample(np.ones(volume.shape, np.float32), affine, *target, transforms[contrast]) > 0.5
        alike = edge_likeness if contrast == lead else registration.mutual_information
        agreement[contrast] = alike(fixed, on_grid[contrast], known & seen[contrast])
        if contrast == lead:
            fixed = on_grid[lead]
            known = brain_mask(fixed, seen[lead]) if extract else _resampled_mask(images[lead][0], affine, transforms[lead])
            if brain == "extract" and not BRAIN_ML[0] <= (ml := _ml(known, grid.AFFINE)) <= BRAIN_ML[1]:
                raise ValueError(f"{lead}: a brain of {ml:.0f} ml: accepted are {BRAIN_ML[0]} to {BRAIN_ML[1]} ml")
    coverage = {contrast: float(seen[contrast][template(lead)[1]].mean()) for contrast in images}
    if brain == "extract":
        on_grid = {contrast: np.where(known, image, np.float32(0)) for contrast, image in on_grid.items()}
    thick = agreement[lead] < WARNED_LIKENESS and is_thick(sharpness(*images[lead]))
    findings = {contrast: _misplaced(contrast, lead, coverage[contrast], agreement[contrast], thick) for contrast in images}
    return Prepared({contrast: on_grid[contrast] for contrast in images}, known, transforms, coverage, agreement, findings)


def _resampled_mask(volume, affine, transform):
    inside = foreground(volume).astype(np.float32)
    return registration.resample(inside, affine, grid.SHAPE, grid.AFFINE, transform) > 0.5


def edge_likeness(first: np.ndarray, second: np.ndarray, mask: np.ndarray, sigma_mm: float = 3.0) -> float:
    """Correlation of the gradient magnitudes of two images of different people: are there edges where there should be?

    Parameters
    ----------
    first, second : ndarray, shape (X, Y, Z)
        On a grid of 1 mm.
    mask : ndarray, shape (X, Y, Z), bool
        Its outermost 4 mm do not count: they hold the edge of whatever mask made the images.
    sigma_mm : float
        Of the smoothing: about how far apart the same gyrus of two people lies.

    Returns
    -------
    float
        -1 to 1; 0 if the mask is too small or an image is flat in it.
    """
    inner = _shrunk(mask, 4)
    edges = []
    for image in (first, second):
        # Fat and vessels would outshine everything else.
        limit = np.percentile(image[mask], 99.5) if mask.any() else 0
        edges.append(ndimage.gaussian_gradient_magnitude(np.minimum(image, limit).astype(np.float32), sigma_mm)[inner])
    if not inner.any() or min(float(each.std()) for each in edges) == 0:
        return 0.0
    return float(np.corrcoef(*edges)[0, 1])


def portrait(t1: np.ndarray) -> np.ndarray:
    """What tells the brain of one person from another's: gyri and ventricles, as a vector to be correlated with other people's.

    A T1w on HACA3's grid, between 1.5 and 6 mm (smoothed, and its coarser variation taken off, so that neither intensity scale nor bias
    field counts), at every fourth voxel within the template's brain.

    Parameters
    ----------
    t1 : ndarray, shape (192, 224, 192)
        As `prepare` leaves it.

    Returns
    -------
    ndarray, shape (N,), float32
        Of mean 0 and length 1, so that the product of two is their correlation; zeros if the image is flat.
    """
    inside = _shrunk(template("T1w")[1], 4)
    # Fat and vessels would outshine everything else.
    image = np.minimum(t1, np.percentile(t1[inside], 99)) * inside.astype(np.float32)
    fine, coarse = (ndimage.gaussian_filter(image, s) / np.maximum(ndimage.gaussian_filter(inside.astype(np.float32), s), 1e-3) for s in (1.5, 6))
    every = (slice(2, None, 4),) * 3
    values = (fine - coarse)[every][inside[every]]
    values = values - values.mean()
    return (values / max(float(np.linalg.norm(values)), 1e-12)).astype(np.float32)


def _misplaced(contrast, lead, coverage, agreement, thick):
    findings = []
    if coverage < WARNED_COVERAGE:
        accepted = f"accepted are {100 * REFUSED_COVERAGE:.0f} % or more, good are {100 * WARNED_COVERAGE:.0f} %"
        text = f"its field of view holds {100 * coverage:.0f} % of the template's brain: {accepted}"
        findings.append(Finding(coverage < REFUSED_COVERAGE, text))
    if contrast == lead and agreement < WARNED_LIKENESS:
        value = f"correlation of edges {agreement:.2f}, accepted from {REFUSED_LIKENESS:g}, good from {WARNED_LIKENESS:g}"
        text = f"looks little like a brain that lies as its header says ({value}): wrong orientation?"
        if thick and agreement >= REFUSED_LIKENESS:
            # Edges that run along thick slices are blurred. Wrong orientations stay below what is accepted.
            text = f"its edges are weakly those of the template, as thick slices have them ({value})"
        findings.append(Finding(agreement < REFUSED_LIKENESS, text))
    if contrast != lead and agreement < LEAST_SAME_PERSON:
        value = f"mutual information {agreement:.3f}, accepted from {LEAST_SAME_PERSON}"
        text = f"shares little with the {lead} ({value}): another person, or left and right changed places?"
        findings.append(Finding(True, text))
    return findings
