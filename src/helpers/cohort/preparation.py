"""From a laboratory's own images to HACA3's grid: is an image fit, bias correction, rigid registration to
MNI, the brain.

Arrays and affines in mm go in and come out. What is wrong with an image is a list of `Finding`; a finding
that refuses says that a result would mean nothing, a warning says what the result will suffer from.

*The template.* Images are brought to MNI by rigid registration to an image of the same contrast that
`helpers.cohort.phantom` renders from the embedded tissue maps, without noise and unwarped. That brain lies in
MNI152 2009a symmetric space (rigid, see ``data/README.md``), on HACA3's grid, and is at hand without a
download. It is one person's brain, not an average: enough for six degrees of freedom, which leave every brain
its own size, and each contrast can be aimed at its own. Two brains lie alike to 1 or 2 mm and degrees, no
better. Whether an image then lies as its header says is asked of both embedded brains and their mirror images
together: are its edges more like theirs than if it was turned over?

*The brain.* There is no trained brain extraction here. `brain_mask` is a threshold and morphology within the
template's neighbourhood. It is good enough to find the brain, not to measure its outline: dura can stay, and
in the one patient seen with a skull a piece of the temporal muscle did. A mask of a dedicated program is
better: an image whose background is removed keeps its own.
"""

import functools
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from scipy import ndimage
from scipy.spatial.transform import Rotation

from helpers import grid, registration, volumes
from helpers.cohort import examination, phantom, scanners
from helpers.study import BRAINS, CONTRASTS, require

#: Part of the template's brain that the field of view must hold.
REFUSED_COVERAGE, WARNED_COVERAGE = 0.90, 0.99

#: Starts of registration: a head is upright or turned by this angle, which finds heads turned by 20 degrees.
START_TURN_DEGREES = 15.0
#: Height of the part of a head that has neither neck nor much of the face, and how far its top is above the
#: middle of the brain.
UPPER_HEAD_MM, BRAIN_BELOW_TOP_MM = 110.0, 80.0

#: Normalized mutual information of a contrast with the T1w. In two patients: 1.063 to 1.105 with their own,
#: 1.012 to 1.015 with the other's, 1.019 with their own mirrored.
LEAST_SAME_PERSON = 1.035

#: Correlation of the T1w's edges with those expected (`edge_likeness`), below which it is doubted. In three
#: patients, a label map and two simulated subjects who are warped much: 0.36 to 0.59 as they lie, 0.08 to
#: 0.31 more than turned over. Upside down, back to front, both, or with axes swapped: at most 0.22, and 0.10
#: to 0.32 less than turned over. Left and right do not tell.
WARNED_LIKENESS = 0.3
#: How far, in steps of 4 mm, a brain is shifted up or down, to the front or the back, to lie where its edges
#: fit best: as it lies, since brains differ; turned over, since registration has laid it where it fitted best
#: the wrong way round. As far for both, anything that is round would do.
UPRIGHT_STEPS, TURNED_STEPS = 1, 5

#: Correlation of two portraits (`portrait`). In three patients: 0.91 to 1.00 with themselves scanned anew
#: (simulated: lying otherwise, other intensities, bias field, noise), 0.46 to 0.65 with each other.
SAME_PERSON = 0.8


@functools.lru_cache(maxsize=4)
def template(contrast: str, anatomy: str = phantom.ANATOMIES[0]) -> tuple[np.ndarray, np.ndarray]:
    """What images of a contrast are registered to: an embedded brain itself, noise-free, and its mask.

    Parameters
    ----------
    contrast : str
        One of `study.CONTRASTS`.
    anatomy : str
        One of `phantom.ANATOMIES`.

    Returns
    -------
    image : ndarray, shape (192, 224, 192), float32, read-only
        On the grid `phantom.AFFINE`.
    brain : ndarray, shape (192, 224, 192), bool, read-only
    """
    fractions = phantom.anatomy(anatomy)
    brain = sum(fractions.values()) > 0.5
    nothing = np.zeros(grid.SHAPE, bool)
    # Seed 0 belongs to nobody: this is the anatomy as it is, which no seed gives.
    person = phantom.Subject(
        0, fractions, brain, nothing, np.zeros((3, *grid.SHAPE), np.float32), grid.AFFINE
    )
    image = phantom.render(person, scanners.scanner("target"), contrast)
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
    N. J. Tustison et al., "N4ITK: improved N3 bias correction", IEEE Transactions on Medical Imaging
    29(6):1310-1320, 2010.
    """
    ants = registration.import_ants()
    volume = np.ascontiguousarray(volumes.as_volume(volume), np.float32)
    inside = examination.foreground(volume) & (volume > 0)
    box = ndimage.find_objects(inside.astype(np.uint8))[0]
    part, mask = volume[box], inside[box]
    # N4 fits a field that bends over centimetres: voxels of about 4 mm are enough, and it takes a sixth of
    # the time.
    voxel_mm = np.linalg.norm(np.asarray(affine, float)[:3, :3], axis=0)
    shrink = max(1, min(round(4 / float(np.cbrt(voxel_mm.prod()))), min(part.shape) // 8))
    images = [registration.ants_image(ants, image, affine) for image in (part, mask.astype(np.float32))]
    field = ants.n4_bias_field_correction(
        images[0],
        mask=images[1],
        shrink_factor=shrink,
        convergence={"iters": [50, 50, 30, 20], "tol": 1e-6},
        return_bias_field=True,
    ).numpy()
    field = np.maximum(field, 1e-3) / np.exp(np.mean(np.log(np.maximum(field[mask], 1e-3))))
    result = volume.copy()
    # Outside the box nothing is known of the field, and nothing is kept of the image.
    result[box] = part / field
    return result


def starts(volume: np.ndarray, affine: np.ndarray) -> list[np.ndarray]:
    """Where the brain may lie: rigid transforms for registration to begin with, the best of which is to be
    chosen by its metric.

    First the header as it is. Then heads upright or turned by `START_TURN_DEGREES` about one axis, the middle
    of the brain at the centre of mass (right for a brain without skull, or a head without neck), at the
    middle of the upper part of the foreground, seen in the turned head's own axes (right however much of neck
    and shoulders is below), and in the middle of the field of view (right where the background is as bright
    as the head). Top is where the header says; none turns a head upside down.

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
    volume, affine = registration.coarsen(volumes.as_volume(volume), affine)
    # In voxels this large a dark skull parts the brain from the neck, which may be the larger piece, and a
    # scalp is thin: all pieces, nothing opened.
    inside = examination.above_background(volume)
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

    Tissue between half and one and a half times the intensity of white matter, near the template's brain;
    bridges to the scalp broken by an erosion of 2 mm (3 mm cost 7 % of a simulated subject's tissue), the
    largest piece kept and grown back; sulci closed over 6 mm; what is thinner than 10 mm removed.

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
        raise ValueError(
            "no brain where the template has one: accepted are T1w images of a whole head or brain"
        )
    tissue = ndimage.binary_opening(near & (t1 > 0.5 * typical) & (t1 < 1.5 * typical))
    brain = _grown(examination.largest_piece(_shrunk(tissue, 2)), 3) & near
    brain = ndimage.binary_fill_holes(_shrunk(_grown(brain, 6), 6))
    brain = _grown(examination.largest_piece(_shrunk(brain, 5)), 5.5) & brain
    brain = (ndimage.gaussian_filter(brain.astype(np.float32), 1.5) > 0.5) & inside
    if brain.sum() < 500e3:
        raise ValueError(
            f"a brain of {brain.sum() / 1e3:.0f} ml found in the T1w image: accepted are 500 ml or more"
        )
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
        Contrast -> `edge_likeness` to the template (T1w, or a single image),
        `registration.mutual_information` with the T1w (others).
    findings : dict of str to list of Finding
        Contrast -> what is wrong with it that shows in MNI space only.
    """

    images: dict[str, np.ndarray]
    brain: np.ndarray
    transforms: dict[str, np.ndarray]
    coverage: dict[str, float]
    agreement: dict[str, float]
    findings: dict[str, list[examination.Finding]]


def prepare(
    images: Mapping[str, tuple[np.ndarray, np.ndarray]], brain: str = "extract", seed: int = 0
) -> Prepared:
    """Bring the contrasts of a subject onto HACA3's grid: N4, rigid to MNI, others rigid to the T1w,
    background removed.

    The T1w is registered to the template from several `starts`, every other contrast to the T1w as it then
    lies in MNI space, which composes the two transforms; each image is interpolated once, from its own grid.
    A single image, such as a target's, is registered to the template of its own contrast.

    Parameters
    ----------
    images : mapping of str to (ndarray of shape (X, Y, Z), ndarray of shape (4, 4))
        Contrast -> volume and affine (voxel index to position in mm). With T1w, or only one contrast.
        Negative values become 0.
    brain : {"extract", "keep"}
        Remove what is not brain, unless that was done (`shows_brain_only`); or keep the images as they are.
    seed : int
        Of the sampling of voxels in registration.

    Raises
    ------
    ValueError
        If an image is not 3D, its values cannot be those of a head (`examine_values`), a brain cannot be
        found or is of no size that brains have, or there is no T1w to find it in.
    """
    brain = require("brain", brain, BRAINS)
    for contrast, (volume, affine) in images.items():
        for finding in examination.examine_values(volumes.as_volume(volume, contrast), affine):
            raise ValueError(f"{contrast}: {finding.text}")
    images = {
        require("contrast", contrast, CONTRASTS): (np.maximum(volumes.as_volume(volume, contrast), 0), affine)
        for contrast, (volume, affine) in images.items()
    }
    lead = "T1w" if "T1w" in images else next(iter(images))
    if lead != "T1w" and len(images) > 1:
        raise ValueError(f"images are {', '.join(images)}: accepted are T1w with others, or one contrast")
    extract = brain == "extract" and not examination.shows_brain_only(*images[lead])
    if extract and lead != "T1w":
        text = "and the brain is found in a T1w only: accepted is one whose background is removed"
        raise ValueError(f"the {lead} image has its background or skull, {text}")
    fixed, known = template(lead)
    target = (grid.SHAPE, grid.AFFINE)
    transforms, on_grid, seen, agreement = {}, {}, {}, {}
    for contrast in (lead, *(other for other in images if other != lead)):
        volume, affine = correct_bias(*images[contrast]), images[contrast][1]
        # Within the brain only: the template has no skull, and around a brain that was cut out there is
        # nothing to compare.
        begin = starts(volume, affine)
        if contrast != lead:
            begin = [transforms[lead], *begin]  # Images of one session share a coordinate system.
        transforms[contrast] = registration.estimate(
            volume, affine, fixed, grid.AFFINE, known, seed=seed, starts=begin
        )
        on_grid[contrast] = registration.resample(volume, affine, *target, transforms[contrast])
        seen[contrast] = (
            registration.resample(np.ones(volume.shape, np.float32), affine, *target, transforms[contrast])
            > 0.5
        )
        inside = known & seen[contrast]
        if contrast != lead:
            agreement[contrast] = registration.mutual_information(fixed, on_grid[contrast], inside)
        else:
            agreement[lead], turned = edge_likeness(on_grid[lead], expected_edges(lead), inside)
            fixed = on_grid[lead]
            known = (
                brain_mask(fixed, seen[lead])
                if extract
                else _resampled_mask(images[lead][0], affine, transforms[lead])
            )
            if (
                brain == "extract"
                and not examination.BRAIN_ML[0]
                <= (ml := grid.volume_ml(known, grid.AFFINE))
                <= examination.BRAIN_ML[1]
            ):
                raise ValueError(
                    f"{lead}: a brain of {ml:.0f} ml: accepted are {examination.BRAIN_ML[0]} to "
                    f"{examination.BRAIN_ML[1]} ml"
                )
    coverage = {contrast: float(seen[contrast][template(lead)[1]].mean()) for contrast in images}
    if brain == "extract":
        on_grid = {contrast: np.where(known, image, np.float32(0)) for contrast, image in on_grid.items()}
    thick = agreement[lead] < WARNED_LIKENESS and examination.is_thick(examination.sharpness(*images[lead]))
    findings = {
        contrast: _misplaced(contrast, lead, coverage[contrast], agreement[contrast], turned, thick)
        for contrast in images
    }
    return Prepared(
        {contrast: on_grid[contrast] for contrast in images}, known, transforms, coverage, agreement, findings
    )


def _resampled_mask(volume, affine, transform):
    inside = examination.foreground(volume).astype(np.float32)
    return registration.resample(inside, affine, grid.SHAPE, grid.AFFINE, transform) > 0.5


def edges(image: np.ndarray, mask: np.ndarray, sigma_mm: float = 3.0) -> np.ndarray:
    """Gradient magnitude of a smoothed image, its brightest voxels clipped.

    Parameters
    ----------
    image : ndarray, shape (X, Y, Z)
        On a grid of 1 mm.
    mask : ndarray, shape (X, Y, Z), bool
        What must not be outshone: fat and vessels would be brighter than everything else.
    sigma_mm : float
        Of the smoothing: about how far apart the same gyrus of two people lies.

    Returns
    -------
    ndarray, shape (X, Y, Z), float32
    """
    limit = np.percentile(image[mask], 99.5) if mask.any() else 0
    return ndimage.gaussian_gradient_magnitude(np.minimum(image, limit).astype(np.float32), sigma_mm)


@functools.lru_cache(maxsize=3)
def expected_edges(contrast: str) -> np.ndarray:
    """Where an image of a contrast has edges: the mean of the embedded brains and of their mirror images,
    each relative to its own mean.

    One brain alone is like some people and unlike others, and left is as right in all that is smoothed here.

    Returns
    -------
    ndarray, shape (192, 224, 192), float32, read-only
    """
    total = np.zeros(grid.SHAPE, np.float32)
    others = (template(contrast, anatomy) for anatomy in phantom.ANATOMIES[1:])
    for image, brain in (template(contrast), *others):
        measured = edges(image, brain)
        total += measured / measured[brain].mean()
    total += total[::-1].copy()
    total.setflags(write=False)
    return total


def edge_likeness(image: np.ndarray, expected: np.ndarray, mask: np.ndarray) -> tuple[float, float]:
    """Has an image edges where a brain that lies upright has them, or rather where one that was turned over
    has?

    Parameters
    ----------
    image : ndarray, shape (192, 224, 192)
        On the grid of the template.
    expected : ndarray, shape (192, 224, 192)
        `expected_edges` of its contrast.
    mask : ndarray, shape (192, 224, 192), bool
        Its outermost 4 mm do not count: they hold the edge of whatever mask made the image.

    Returns
    -------
    upright : float
        Correlation of its edges with those expected, -1 to 1, the largest within 4 mm; 0 if the mask is too
        small or the image flat.
    turned : float
        The largest that it has upside down, back to front, or both, shifted to where it fits best.
    """
    steps = (slice(2, None, 4),) * 3
    measured, expected = edges(image, mask)[steps], expected[steps]
    voxels = np.argwhere(_shrunk(mask, 4)[steps])
    if not len(voxels):
        return 0.0, 0.0

    def likeness(volume, shift):
        index = voxels + shift
        inside = np.all((index >= 0) & (index < volume.shape), axis=1)
        first, second = volume[tuple(index[inside].T)], expected[tuple(voxels[inside].T)]
        if np.count_nonzero(inside) < len(voxels) / 2 or min(first.std(), second.std()) == 0:
            return 0.0
        return float(np.corrcoef(first, second)[0, 1])

    def best(volume, about, steps):
        reach = range(-steps, steps + 1)
        return max(likeness(volume, about + (0, y, z)) for y in reach for z in reach)

    nowhere, middle, turned = np.zeros(3, int), voxels.mean(axis=0), []
    for axes in ((2,), (1,), (1, 2)):
        # The middle of the brain comes to lie where it was.
        about = nowhere.copy()
        for axis in axes:
            about[axis] = round(measured.shape[axis] - 1 - 2 * middle[axis])
        turned.append(best(np.flip(measured, axes), about, TURNED_STEPS))
    return best(measured, nowhere, UPRIGHT_STEPS), max(turned)


def portrait(t1: np.ndarray) -> np.ndarray:
    """What tells the brain of one person from another's: gyri and ventricles, as a vector to be correlated
    with other people's.

    A T1w on HACA3's grid, between 1.5 and 6 mm (smoothed, and its coarser variation taken off, so that
    neither intensity scale nor bias field counts), at every fourth voxel within the template's brain.

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
    fine, coarse = (
        ndimage.gaussian_filter(image, s)
        / np.maximum(ndimage.gaussian_filter(inside.astype(np.float32), s), 1e-3)
        for s in (1.5, 6)
    )
    every = (slice(2, None, 4),) * 3
    values = (fine - coarse)[every][inside[every]]
    values = values - values.mean()
    return (values / max(float(np.linalg.norm(values)), 1e-12)).astype(np.float32)


def _misplaced(contrast, lead, coverage, agreement, turned, thick):
    findings = []
    if coverage < WARNED_COVERAGE:
        accepted = (
            f"accepted are {100 * REFUSED_COVERAGE:.0f} % or more, good are {100 * WARNED_COVERAGE:.0f} %"
        )
        text = f"its field of view holds {100 * coverage:.0f} % of the template's brain: {accepted}"
        findings.append(examination.Finding(coverage < REFUSED_COVERAGE, text))
    if contrast == lead and (agreement <= turned or agreement < WARNED_LIKENESS):
        value = (
            f"correlation of edges {agreement:.2f}, good from {WARNED_LIKENESS:g}; turned over {turned:.2f}, "
            "accepted if that is less"
        )
        text = f"looks little like a brain that lies as its header says ({value}): wrong orientation?"
        if thick and agreement > turned:
            # Edges that run along thick slices are blurred. In wrong orientations another fits better.
            text = f"its edges are weakly those of the template, as thick slices have them ({value})"
        findings.append(examination.Finding(agreement <= turned, text))
    if contrast != lead and agreement < LEAST_SAME_PERSON:
        value = f"mutual information {agreement:.3f}, accepted from {LEAST_SAME_PERSON}"
        text = f"shares little with the {lead} ({value}): another person, or left and right changed places?"
        findings.append(examination.Finding(True, text))
    return findings
