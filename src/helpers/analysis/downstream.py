"""What a clinic measures in harmonized images: lesions in FLAIR, volumes of tissues and of the lateral
ventricles in T1w; and how well two measurements agree.

Masks and labels are arrays on the grid of their image. All rules are simple and published, so that what they
find can be checked by eye; their sources stand with the functions, their limits in docs/downstream.md.

A preview (slices that are some mm apart) gives areas, and from areas volumes: each slice stands for the space
up to the next (Cavalieri's principle, which the affine's larger step carries). It does not give lesions: two
sections may be of one lesion, and small lesions lie between the slices. `detect_lesions` refuses it.
"""

import math
import tempfile

import numpy as np
import pandas as pd
from scipy import ndimage

from helpers import grid, registration

#: Labels of a segmentation, in the order of their intensity in T1w; lesions are a part of white matter.
FLUID, GREY, WHITE, LESION = 1, 2, 3, 4

#: Of `segment_lesions`: standard deviations above the median of grey matter, how far around a lesion is
#: looked, mm, and the part of the tissue there that must be white matter. Chosen on the harmonized 3D image
#: of a training subject (100): Dice's coefficient with what is really there is 0.69. It is 0.71 within 2 mm
#: and with 0.4, but there the rim of a lesion, which in T1w looks like grey matter, decides.
THRESHOLD_SD, AROUND_MM, WHITE_AROUND = 2.0, 3.0, 0.5
#: The smallest lesion, as the diameter of a ball of its volume, mm: Filippi et al. 2019 count from 3 mm on.
SMALLEST_MM = 3.0
#: Size class -> smallest diameter of a ball of the lesion's volume, mm.
SIZES_MM = {"small": SMALLEST_MM, "medium": 5.0, "large": 10.0}
#: How far from the ventricles of the embedded brain fluid still counts as theirs, mm.
VENTRICLE_REACH_MM = 4.0


def segment_tissue(t1w: np.ndarray, affine: np.ndarray, brain: np.ndarray) -> np.ndarray:
    """Fluid, grey and white matter by Atropos: three Gaussians from k-means, and a Markov random field.

    Parameters
    ----------
    t1w : ndarray, shape (X, Y, Z)
        In its own units.
    affine : ndarray, shape (4, 4)
        Voxel index to position in mm. Slices that lie further apart than the pixels are wide (`gap_axis`) are
        no neighbours.
    brain : ndarray, shape (X, Y, Z), bool

    Returns
    -------
    ndarray, shape (X, Y, Z), uint8
        0 outside the brain, else `FLUID`, `GREY` or `WHITE`. The same for the same input.

    Raises
    ------
    ValueError
        If the image has fewer than three values inside the brain.

    References
    ----------
    B. B. Avants et al., "An open source multivariate framework for n-tissue segmentation with evaluation on
    public data", Neuroinformatics 9(4):381-400, 2011.
    """
    if len(np.unique(t1w[brain])) < 3:
        raise ValueError("t1w has fewer than three values inside the brain: accepted are images of tissue")
    ants, labels = registration.import_ants(), np.zeros(brain.shape, np.uint8)
    box = ndimage.find_objects(brain.astype(np.uint8))[0]
    image, mask = (registration.ants_image(ants, volume[box], affine) for volume in (t1w, brain))
    radius = "x".join("0" if axis == gap_axis(affine) else "1" for axis in range(3))
    before = tempfile.tempdir
    with tempfile.TemporaryDirectory(prefix="atropos_") as folder:
        tempfile.tempdir = folder  # Atropos leaves probability images in the temporary folder.
        try:
            # r=0: a constant seed, not the clock, for the order in which voxels are visited.
            result = ants.atropos(a=image, x=mask, i="kmeans[3]", m=f"[0.1,{radius}]", c="[3,0]", r=0)
        finally:
            tempfile.tempdir = before
    labels[box] = result["segmentation"].numpy()
    return labels


def segment_lesions(flair: np.ndarray, tissue: np.ndarray, affine: np.ndarray) -> np.ndarray:
    """White matter lesions as outliers of the grey matter's FLAIR intensities, surrounded by white matter.

    A voxel is a candidate where FLAIR exceeds m + `THRESHOLD_SD` s, with m the median and s the standard
    deviation (from the median absolute deviation) of grey matter. Of their connected pieces those stay that
    are at least as large as a ball of 3 mm and lie in white matter: it is half of the tissue within 3 mm of
    them, further than the rim of a lesion, which in T1w looks like grey matter. This is the rule of Cabezas
    et al., in one pass and with numbers of our own.

    Parameters
    ----------
    flair : ndarray, shape (X, Y, Z)
        In its own units.
    tissue : ndarray, shape (X, Y, Z)
        Of `segment_tissue`.
    affine : ndarray, shape (4, 4)
        As there.

    Returns
    -------
    ndarray, shape (X, Y, Z), bool

    References
    ----------
    M. Cabezas et al., "Automatic multiple sclerosis lesion detection in brain MRI by FLAIR thresholding",
    Computer Methods and Programs in Biomedicine 115(3):147-161, 2014; E. Roura et al., "A toolbox for
    multiple sclerosis lesion segmentation", Neuroradiology 57(10):1031-1043, 2015.
    M. Filippi et al., "Assessment of lesions on magnetic resonance imaging in multiple sclerosis: practical
    guidelines", Brain 142(7):1858-1875, 2019 (3 mm).
    """
    from skimage.segmentation import expand_labels

    grey = flair[tissue == GREY]
    if not grey.size:
        raise ValueError("tissue has no grey matter: accepted are labels of segment_tissue")
    middle = np.median(grey)
    spread = 1.4826 * np.median(np.abs(grey - middle))
    pieces, number = label_lesions((flair > middle + THRESHOLD_SD * spread) & (tissue > 0), affine)
    if not number:
        return np.zeros(flair.shape, bool)
    around = expand_labels(pieces, AROUND_MM, spacing=tuple(_voxel_mm(affine)))
    around[pieces > 0] = 0
    matter, white = (
        np.bincount(around[mask], minlength=number + 1) for mask in (tissue >= GREY, tissue == WHITE)
    )
    stays = white >= WHITE_AROUND * np.maximum(matter, 1)
    stays[0] = False
    return stays[pieces]


def label_lesions(mask: np.ndarray, affine: np.ndarray) -> tuple[np.ndarray, int]:
    """The connected pieces of a mask that are large enough to count, numbered from 1, and their number.

    Pieces touch by faces, edges or corners; across slices that lie apart they do not. The smallest has the
    volume of a ball of `SMALLEST_MM`, in a slice of a preview the area of its disc.

    Returns
    -------
    labels : ndarray, shape (X, Y, Z), int
    number : int
    """
    touching, axis, voxel_mm = np.ones((3, 3, 3), bool), gap_axis(affine), _voxel_mm(affine)
    if axis is not None:
        np.moveaxis(touching, axis, 0)[[0, 2]] = False
    labels, _ = ndimage.label(mask, touching)
    voxels = np.bincount(labels.ravel())
    if axis is None:
        smallest = ball_mm3(SMALLEST_MM) / np.prod(voxel_mm)
    else:
        smallest = math.pi / 4 * SMALLEST_MM**2 / np.prod(np.delete(voxel_mm, axis))
    stays = voxels >= smallest
    stays[0] = False
    numbers = np.where(stays, np.cumsum(stays), 0)
    return numbers[labels], int(stays.sum())


def ball_mm3(diameter_mm: float) -> float:
    """Volume of a ball.

    Examples
    --------
    >>> round(ball_mm3(3), 1)
    14.1
    """
    return math.pi / 6 * diameter_mm**3


def gap_axis(affine: np.ndarray) -> int | None:
    """The axis along which slices lie at least twice as far apart as the pixels are wide; None if there is
    none.

    Examples
    --------
    >>> gap_axis(np.diag([1, 1, 11, 1])), gap_axis(np.eye(4))
    (2, None)
    """
    voxel_mm = _voxel_mm(affine)
    widest = int(np.argmax(voxel_mm))
    return widest if voxel_mm[widest] >= 2 * np.delete(voxel_mm, widest).max() else None


def _voxel_mm(affine):
    return np.linalg.norm(np.asarray(affine, float)[:3, :3], axis=0)


def volumes_ml(labels: np.ndarray, affine: np.ndarray, ventricle_region: np.ndarray) -> dict[str, float]:
    """Volumes of a segmentation.

    Parameters
    ----------
    labels : ndarray, shape (X, Y, Z)
        `FLUID`, `GREY`, `WHITE`, `LESION`.
    affine : ndarray, shape (4, 4)
    ventricle_region : ndarray, shape (X, Y, Z), bool
        Where fluid is that of the lateral ventricles: `ventricle_region`.

    Returns
    -------
    dict of str to float
        ``lesion``, ``grey``, ``white`` (lesions included), ``fluid``, ``ventricles``: ml.
    """
    masks = {
        "lesion": labels == LESION,
        "grey": labels == GREY,
        "white": labels >= WHITE,
        "fluid": labels == FLUID,
        "ventricles": (labels == FLUID) & ventricle_region,
    }
    return {name: grid.volume_ml(mask, affine) for name, mask in masks.items()}


def ventricle_region(ventricles: np.ndarray) -> np.ndarray:
    """Where fluid is taken for that of the lateral ventricles: within some mm of those of a template.

    Parameters
    ----------
    ventricles : ndarray, shape (X, Y, Z)
        Their volume fraction in a brain on the 1 mm MNI grid.

    Returns
    -------
    ndarray, shape (X, Y, Z), bool

    References
    ----------
    M. J. Kempton et al., "A comprehensive testing protocol for MRI neuroanatomical segmentation techniques:
    evaluation of a novel lateral ventricle segmentation method", NeuroImage 58(4):1051-1059, 2011: a mask in
    MNI space times the fluid.
    """
    from edt import edt

    return edt(ventricles <= 0.5) <= VENTRICLE_REACH_MM


def dice(reference: np.ndarray, mask: np.ndarray) -> float:
    """Dice's coefficient of two masks, ``2 |A and B| / (|A| + |B|)``; NaN if both are empty.

    References
    ----------
    L. R. Dice, "Measures of the amount of ecologic association between species", Ecology 26(3):297-302, 1945.

    Examples
    --------
    >>> dice(np.array([1, 1, 0]) > 0, np.array([0, 1, 0]) > 0)
    0.6666666666666666
    """
    total = np.count_nonzero(reference) + np.count_nonzero(mask)
    return 2 * np.count_nonzero(reference & mask) / total if total else math.nan


def detect_lesions(reference: np.ndarray, mask: np.ndarray, affine: np.ndarray) -> dict[str, tuple[int, int]]:
    """How many lesions of a reference another segmentation shows, by size class, and how many it adds.

    A lesion is a connected piece that `label_lesions` counts. It is shown if the other segmentation shares a
    voxel with it; one of the other segmentation is false if it shares none with the reference.

    Parameters
    ----------
    reference, mask : ndarray, shape (X, Y, Z), bool
    affine : ndarray, shape (4, 4)

    Returns
    -------
    dict of str to (int, int)
        A key of `SIZES_MM` -> lesions of the reference, and those of them that are missed; ``false`` ->
        lesions of the mask, and those of them that are false.

    Raises
    ------
    ValueError
        If slices lie apart: lesions cannot be counted in them.

    References
    ----------
    A. Carass et al., "Longitudinal multiple sclerosis lesion segmentation: resource and challenge",
    NeuroImage 148:77-102, 2017.
    """
    if (axis := gap_axis(affine)) is not None:
        raise ValueError(
            f"slices lie {_voxel_mm(affine)[axis]:g} mm apart: accepted for counting lesions are whole "
            "volumes (slice_step 1)"
        )
    labels, number = label_lesions(reference, affine)
    volume_mm3 = np.bincount(labels.ravel(), minlength=number + 1)[1:] * np.prod(_voxel_mm(affine))
    detected = np.bincount(labels[mask], minlength=number + 1)[1:] > 0
    ends_mm3 = [ball_mm3(diameter) for diameter in SIZES_MM.values()]
    size = np.searchsorted(ends_mm3, volume_mm3, side="right") - 1
    counts = {
        name: (int(np.sum(size == number_of_class)), int(np.sum(~detected[size == number_of_class])))
        for number_of_class, name in enumerate(SIZES_MM)
    }
    others, number = label_lesions(mask, affine)
    right = np.bincount(others[reference], minlength=number + 1)[1:] > 0
    return {**counts, "false": (number, int(np.sum(~right)))}


# ---------------------------------------------------------------- agreement


def intraclass_correlation(values: np.ndarray) -> float:
    """Intraclass correlation ICC(2,1): absolute agreement of single measurements, two-way random effects.

    Parameters
    ----------
    values : ndarray, shape (subjects, measurements)
        Of the same quantity, in one unit; at least 2 by 2.

    Returns
    -------
    float
        1 if all measurements of a subject are equal, unitless; NaN if nothing varies.

    Raises
    ------
    ValueError
        If there are fewer than two subjects or measurements.

    References
    ----------
    P. E. Shrout and J. L. Fleiss, "Intraclass correlations: uses in assessing rater reliability",
    Psychological Bulletin 86(2):420-428, 1979.
    """
    values = np.asarray(values, float)
    if values.ndim != 2 or min(values.shape) < 2:
        raise ValueError(f"values has shape {values.shape}: accepted are two subjects and two measurements")
    n, k = values.shape
    rows, columns, mean = values.mean(axis=1), values.mean(axis=0), values.mean()
    between_subjects = k * np.sum((rows - mean) ** 2) / (n - 1)
    between_measurements = n * np.sum((columns - mean) ** 2) / (k - 1)
    residual = np.sum((values - rows[:, None] - columns + mean) ** 2) / ((n - 1) * (k - 1))
    total = between_subjects + (k - 1) * residual + k * (between_measurements - residual) / n
    return float((between_subjects - residual) / total) if total > 0 else math.nan


def bland_altman(reference: np.ndarray, values: np.ndarray) -> tuple[float, float, float]:
    """Mean difference of two measurements of the same subjects, and its 95 % limits of agreement.

    Returns
    -------
    bias, low, high : float
        In the unit of the measurements; the limits are NaN for a single subject.

    References
    ----------
    J. M. Bland and D. G. Altman, "Statistical methods for assessing agreement between two methods of clinical
    measurement", The Lancet 327(8476):307-310, 1986.
    """
    difference = np.asarray(values, float) - np.asarray(reference, float)
    half = 1.96 * difference.std(ddof=1) if len(difference) > 1 else math.nan
    return float(difference.mean()), float(difference.mean() - half), float(difference.mean() + half)


def agreement(table: pd.DataFrame) -> pd.DataFrame:
    """How well volumes agree with those of their reference over subjects.

    Parameters
    ----------
    table : DataFrame
        As `helpers.pipeline.scoring.all_downstream` gives it.

    Returns
    -------
    DataFrame
        A row per reference, arm, experiment, resolution and volume: number of subjects ``n``, ``error_pct``
        (mean size of the error), ``bias_ml``, ``low_ml``, ``high_ml`` (Bland and Altman's limits), and
        ``icc``, NaN for a single subject.
    """
    keys, rows = ["reference", "arm", "experiment", "resolution", "measure"], []
    for names, part in table[table.measure.str.endswith("_ml")].groupby(keys, sort=False):
        pair = part[["expected", "value"]].to_numpy(float)
        bias, low, high = bland_altman(*pair.T)
        rows.append(
            {
                **dict(zip(keys, names, strict=True)),
                "n": len(pair),
                "error_pct": part.error_pct.abs().mean(),
                "bias_ml": bias,
                "low_ml": low,
                "high_ml": high,
                "icc": intraclass_correlation(pair) if len(pair) > 1 else math.nan,
            }
        )
    return pd.DataFrame(rows)


# ---------------------------------------------------------------- to be drawn


def lesion_panels(flairs, lesions, affine: np.ndarray, resolutions, plane: str) -> list[dict]:
    """The slice of some FLAIR images that shows most of what is missed in the last of them.

    Parameters
    ----------
    flairs, lesions : list of ndarray, shape (X, Y, Z)
        Images, and masks of their lesions; the reference first.
    affine : ndarray, shape (4, 4)
    resolutions : list of Resolution or None
        Of their sources; None: 3D.
    plane : {"axial", "sagittal", "coronal"}

    Returns
    -------
    list of dict
        ``title``; ``image``, ``found`` and ``missed``, 2D, upright; ``white``, the value to show as white;
        ``says``, the numbers of the whole brain, of the slices of a preview, or of a single slice.
    """
    pieces, number = label_lesions(lesions[0], affine)
    detected = [np.bincount(pieces[mask], minlength=number + 1)[1:] > 0 for mask in lesions]
    missed = [np.r_[False, ~hit][pieces] for hit in detected]
    axis, counted = (
        grid.AXIS[plane],
        gap_axis(affine) is None or 1 in flairs[0].shape,
    )  # a slice is looked at alone
    shows = missed[-1] if missed[-1].any() else lesions[0]
    index = int(np.argmax(shows.sum(axis=tuple(other for other in range(3) if other != axis))))
    inside = np.nonzero(grid.upright(flairs[0], plane, index))
    crop = tuple(slice(max(part.min() - 4, 0), part.max() + 5) for part in inside)
    single, panels = 1 in flairs[0].shape, []
    sizes = [grid.volume_ml(mask, affine) for mask in lesions]
    for place, resolution in enumerate(resolutions):
        if resolution is None:
            title = "3D scans"
            says = f"{number} lesions" if counted else "lesions"
            says += " in this slice" if single else f" of {sizes[0]:.1f} ml"
        else:
            title = f"a slice every {resolution.separation_mm:g} mm"
            says = [f"{int(np.sum(~detected[place]))} of {number} missed"] if counted else []
            if sizes[0]:
                name = "area" if single else "volume"
                says += [f"lesion {name} {100 * (sizes[place] / sizes[0] - 1):+.0f} %"]
            says = ", ".join(says)
        image, hits, lost = (
            grid.upright(volume, plane, index)[crop]
            for volume in (flairs[place], lesions[place], missed[place])
        )
        white = float(np.percentile(flairs[0][flairs[0] > 0], 99.8))
        panels.append(
            {"title": title, "says": says, "image": image, "found": hits, "missed": lost, "white": white}
        )
    return panels
