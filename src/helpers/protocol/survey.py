"""How a collection of acquisitions was acquired: contrast, 2D or 3D, orientation, slice thickness and gap.

A row for each acquisition (`helpers.protocol.reading` makes it of what is in a sidecar, a header or a CSV
table); counts, the histogram of figure 1 and the list of acquisitions that are unfit for a study follow from
the table.

References
----------
.. [1] Hays et al. (2024). Beyond MR image harmonization: resolution matters too. Section 1, figure 1.
"""

import contextlib
import math
import re
from collections.abc import Iterable, Mapping

import numpy as np
import pandas as pd

from helpers import volumes
from helpers.protocol.scan_time import require_number
from helpers.study import CONTRASTS, ORIENTATIONS, PLAUSIBLE_MM, RESOLUTIONS, Resolution

#: The table's columns. Unknown lengths are NaN, unknown texts empty. Columns with `from` name the source of a
#: value: sidecar, header, or a rule.
COLUMNS = (
    "subject",
    "session",
    "contrast",
    "dimension",
    "orientation",
    "oblique_deg",
    "thickness_mm",
    "gap_mm",
    "spacing_mm",
    "inplane_mm",
    "coverage_mm",
    "dimension_from",
    "thickness_from",
    "unfit",
    "file",
)

#: Contrast of all acquisitions that are none of the study's three.
OTHER = "other"

#: An acquisition without MRAcquisitionType is 2D if its slices lie this far apart, in mm and in in-plane
#: voxels.
ANISOTROPIC_MM, ANISOTROPIC_RATIO = 2.0, 2.0

#: Beyond this angle between its slices and the nearest anatomical plane an acquisition has no orientation of
#: the study.
OBLIQUE_LIMIT_DEG = 35.0

#: A stack that covers less than this across its slices does not show a whole brain, mm.
COVERAGE_MM = 100.0

#: Two lengths in mm that differ by less than this are the same: headers round.
TOLERANCE_MM = 0.05

#: Partitions of a 3D slab have no gaps: where they lie this many times their thickness apart, one of the two
#: is wrong.
PARTITION_RATIO = 1.5

#: What is kept of a sidecar -> the table's column of the same meaning.
TERMS = {
    "MRAcquisitionType": "dimension",
    "SliceThickness": "thickness_mm",
    "SpacingBetweenSlices": "spacing_mm",
    "ImageOrientationPatientDICOM": "",
}

#: How sidecars, spreadsheets and programs write an unknown value.
_NOTHING = ("", "n/a", "#n/a", "na", "nan", "null", "-")

_LENGTH = re.compile(r"\s*([-+]?(?:\d+[.,]?\d*|[.,]\d+)(?:[eE][-+]?\d+)?)\s*(mm|cm|m|um|µm)?\s*")
_UNIT_MM = {None: 1.0, "mm": 1.0, "cm": 10.0, "m": 1000.0, "um": 0.001, "µm": 0.001}


def orientation(normal: np.ndarray) -> tuple[str, float]:
    """The anatomical plane nearest to a slice.

    Parameters
    ----------
    normal : array_like, shape (3,)
        Normal of the slices in world coordinates (RAS+), of any length and sign.

    Returns
    -------
    plane : str
        ``axial``, ``sagittal`` or ``coronal``.
    angle : float
        Between the two normals, degrees: 0 for a straight slice, 54.7 at most.

    Raises
    ------
    ValueError
        If the normal is not three finite numbers, or is zero.

    Examples
    --------
    >>> orientation([0, 0, -2])
    ('axial', 0.0)
    """
    normal = np.asarray(normal, dtype=float)
    length = np.linalg.norm(normal) if normal.shape == (3,) else math.nan
    if not (math.isfinite(length) and length > 0):
        raise ValueError(
            f"normal of the slices is {normal.tolist()}: accepted are three finite numbers, not all 0"
        )
    axis = int(np.argmax(np.abs(normal)))
    # The tangent, unlike the cosine, is exact for small angles.
    across = np.linalg.norm(np.delete(normal, axis))
    return ("sagittal", "coronal", "axial")[axis], math.degrees(math.atan2(across, abs(normal[axis])))


def slice_normal(sidecar: Mapping) -> np.ndarray | None:
    """Normal of the slices as they were acquired, by the cosines of their rows and columns in a sidecar.

    Parameters
    ----------
    sidecar : dict
        ``ImageOrientationPatientDICOM`` are six numbers.

    Returns
    -------
    ndarray, shape (3,), or None
        Unit vector in world coordinates (RAS+); None if nothing is said.

    Raises
    ------
    ValueError
        If that entry is none of the kind.
    """
    cosines = sidecar.get("ImageOrientationPatientDICOM")
    if cosines is None:
        return None
    try:
        numbers = np.asarray(cosines, dtype=float)
        if numbers.shape != (6,):
            raise ValueError
        normal = np.cross(numbers[:3], numbers[3:])
        orientation(normal)  # Refuses what has no direction.
    except (TypeError, ValueError):
        accepted = "accepted are six numbers, the directions of rows and columns"
        raise ValueError(f"ImageOrientationPatientDICOM is {quoted(cosines)}: {accepted}") from None
    # DICOM counts to the left and the back where NIfTI counts to the right and the front.
    return normal / np.linalg.norm(normal) * (-1, -1, 1)


def slice_axis(
    voxel_mm: np.ndarray, likeness: np.ndarray | None = None, said_mm: Iterable[float] = ()
) -> int:
    """The array axis across the slices: the coarsest, if it stands out by a fifth; else what is said of the
    acquisition decides.

    Parameters
    ----------
    voxel_mm : array_like, shape (3,)
        Voxel sizes, mm.
    likeness : array_like, shape (3,), optional
        Cosine between each axis and the normal of the slices that were acquired, of any sign.
    said_mm : iterable of float
        Spacing or thickness of the slices, mm, in the order in which they count: the axis that alone has such
        voxels is meant.

    Returns
    -------
    int
        If nothing decides, the last, where scanners' slices are stored.

    Examples
    --------
    >>> slice_axis([5, 1, 1]), slice_axis([1, 1, 1])
    (0, 2)
    >>> slice_axis([1.15, 1, 1], said_mm=[1.15]), slice_axis([1, 1, 1], [1, 0, 0])
    (0, 0)
    """
    voxel_mm = np.asarray(voxel_mm, dtype=float)
    if _stands_out(voxel_mm):
        return int(np.argmax(voxel_mm))
    if likeness is not None:
        return int(np.argmax(np.abs(likeness)))
    for length_mm in said_mm:
        same = np.flatnonzero(np.abs(voxel_mm - length_mm) <= TOLERANCE_MM)
        if len(same) == 1:
            return int(same[0])
    return 2


def _stands_out(voxel_mm: np.ndarray) -> bool:
    return np.max(voxel_mm) >= 1.2 * np.sort(voxel_mm)[-2]


def slice_geometry(
    header: volumes.Header, normal: np.ndarray | None = None, said_mm: Iterable[float] = ()
) -> dict:
    """Geometry of an acquisition from the grid of its image.

    Parameters
    ----------
    header : helpers.volumes.Header
        Of a 3D volume, in mm.
    normal : array_like, shape (3,), optional
        Normal of the slices that were acquired, in world coordinates (RAS+), which the image need not have
        been stored by.
    said_mm : iterable of float
        As in `slice_axis`.

    Returns
    -------
    dict
        ``spacing_mm`` across the slices, ``inplane_mm`` (the coarser of two), ``coverage_mm``;
        ``orientation`` and ``oblique_deg`` if the image has an affine; ``contradiction``, one line, if its
        thick axis is not along the normal.
    """
    voxel_mm = np.round(header.voxel_mm, 4)  # headers hold float32
    likeness = None
    if header.affine is not None and normal is not None:
        likeness = np.asarray(normal) @ (
            header.affine[:3, :3] / np.linalg.norm(header.affine[:3, :3], axis=0)
        )
    axis = slice_axis(voxel_mm, likeness, said_mm)
    geometry = {
        "spacing_mm": float(voxel_mm[axis]),
        "inplane_mm": float(np.max(np.delete(voxel_mm, axis))),
        "coverage_mm": float(np.round(voxel_mm[axis] * header.shape[axis], 4)),
    }
    if header.affine is not None:
        # The normal of the slices, not the direction in which they are stacked: a sheared stack has both.
        rows, columns = (header.affine[:3, other] for other in range(3) if other != axis)
        geometry["orientation"], geometry["oblique_deg"] = orientation(np.cross(rows, columns))
        if likeness is not None and axis != np.argmax(np.abs(likeness)):
            acquired, _ = orientation(normal)
            geometry["contradiction"] = (
                f"slices are {geometry['orientation']} in the image and {acquired} in the sidecar's cosines: "
                "reformatted?"
            )
    return geometry


def millimetres(value) -> float:
    """A length as a number of mm; text may name a unit, ``"5mm"``, ``"0.5 cm"``, and have a decimal comma,
    ``"5,5"``.

    Returns
    -------
    float
        NaN where nothing is said: None, empty text, NaN.

    Raises
    ------
    ValueError
        If it is neither a number nor a number with a unit of length, or its comma may stand for thousands:
        ``"1,000"``.

    Examples
    --------
    >>> millimetres("0.5 cm")
    5.0
    """
    if value is None or (isinstance(value, str) and value.strip().lower() in _NOTHING):
        return math.nan
    match = _LENGTH.fullmatch(value) if isinstance(value, str) else None
    if match and not re.search(r"\d,\d{3}$", match[1]):
        return float(match[1].replace(",", ".")) * _UNIT_MM[match[2]]
    if isinstance(value, bool) or not isinstance(value, (int, float, np.number)):
        raise ValueError(f"is {quoted(value)}: accepted is a number of mm")
    try:
        return float(value)
    except OverflowError:
        return math.inf


def acquisition(metadata: Mapping, image: Mapping | None = None, faults: Iterable[str] = ()) -> dict:
    """One row of the table: stated values of an acquisition, completed from its image, with every reason
    against it.

    Parameters
    ----------
    metadata : dict
        Any of `COLUMNS`, as they came: numbers, text with or without a unit, None.
    image : dict, optional
        What `geometry` found. It fills what is not said, and is right where the two disagree.
    faults : iterable of str
        Reasons that are known already.

    Returns
    -------
    dict
        All of `COLUMNS`. ``unfit`` joins the reasons by "; " and is empty for an acquisition that is fit for
        a study.
    """
    image, reasons, row = image or {}, [], {}
    row["thickness_mm"] = _plausible("thickness_mm", metadata.get("thickness_mm"), reasons)
    silent = math.isnan(row["thickness_mm"]) and not reasons
    for name in ("spacing_mm", "inplane_mm", "gap_mm", "coverage_mm", "oblique_deg"):
        row[name] = _plausible(name, metadata.get(name), reasons)
    for name in ("inplane_mm", "coverage_mm", "oblique_deg"):
        if math.isnan(row[name]):
            row[name] = _plausible(name, image.get(name), reasons)
    row["orientation"] = _spelled(
        "orientation", metadata.get("orientation"), ORIENTATIONS, reasons
    ) or image.get("orientation", "")

    # Thickness, gap and spacing: two of them give the third. Where slices lie the image knows better than any
    # sidecar.
    thickness, gap, spacing = row["thickness_mm"], row["gap_mm"], row["spacing_mm"]
    stored = _plausible("spacing_mm", image.get("spacing_mm"), reasons)
    if math.isnan(spacing):
        spacing = thickness + gap
    elif abs(gap - (spacing - thickness)) > TOLERANCE_MM:
        reasons.append(
            f"gap_mm is {gap:g} with slices of {thickness:g} mm that lie {spacing:g} mm apart: accepted is "
            "their difference"
        )
        gap = math.nan
    if abs(spacing - stored) > TOLERANCE_MM:
        apart = f"slices are said to be {spacing:g} mm apart and lie {stored:g} mm apart in the image"
        reasons.append(f"{apart}: resampled, or a wrong sidecar")
        spacing = gap = math.nan
    elif math.isnan(gap):
        gap = round((spacing if math.isnan(stored) else stored) - thickness, 6)
    spacing = spacing if math.isnan(stored) else stored
    row["thickness_from"] = "" if math.isnan(thickness) else "said"
    if silent and not math.isnan(spacing):
        # Without a gap the slices may be as thick as they lie apart, and no thicker. A thickness that is
        # wrong is not mended.
        thickness, row["thickness_from"] = spacing if math.isnan(gap) else round(spacing - gap, 6), "spacing"
    row["thickness_mm"], row["spacing_mm"] = thickness, spacing

    row["dimension"] = _spelled("dimension", metadata.get("dimension"), ("2D", "3D"), reasons)
    row["dimension_from"] = "said" if row["dimension"] else "geometry"
    if not row["dimension"]:
        row["dimension"] = _dimension(thickness, gap, spacing, row["inplane_mm"])
        row["dimension_from"] *= bool(row["dimension"])
    # Partitions of a 3D slab have no gap; zero-filling lets them overlap.
    row["gap_mm"] = gap if row["dimension"] == "2D" else math.nan

    suffix = _text(metadata.get("contrast")).strip().lower()
    row["contrast"] = next((contrast for contrast in CONTRASTS if contrast.lower() == suffix), OTHER)
    if row["contrast"] == OTHER:
        # Another contrast has no part in the study: only that its file is broken is of interest.
        reasons = []
    else:
        reasons += _shortcomings(row)
    labels = {name: _text(metadata.get(name)) for name in ("subject", "session")}
    unfit = "; ".join(dict.fromkeys([*faults, *reasons]))
    row |= labels | {"unfit": unfit, "file": _text(metadata.get("file")) if unfit else ""}
    return {name: row[name] for name in COLUMNS}


#: The published margins: (contrast, dimension) -> acquisitions [1].
PUBLISHED = {
    ("T1w", "3D"): 3413, ("T2w", "3D"): 151, ("FLAIR", "3D"): 2088,
    ("T1w", "2D"): 5832, ("T2w", "2D"): 3458, ("FLAIR", "2D"): 2114,
}  # fmt: skip

#: "Approximately 1,020 sagittal scans and only 184 coronal scans out of all of the image contrasts" [1].
PUBLISHED_ORIENTATIONS = {"sagittal": 1020, "coronal": 184}


def simulated(seed: int = 0) -> pd.DataFrame:
    """A simulated collection with the published margins, and nothing else of the trial's: **not the trial's
    data**.

    The counts of contrast by 2D and 3D, and of sagittal and coronal acquisitions, are the paper's. It does
    not say how many of the sagittal ones were 3D; here all of them are 2D, so the margins hold for the 2D
    acquisitions and for all. Everything else is drawn: slices of 2 to 6 mm, 3 and 5 mm being most frequent,
    with gaps of 0 to 30 %; partitions of 0.8 to 1.5 mm; subjects, angles, coverage. One 2D acquisition in a
    hundred is made unfit, by too little coverage or by overlapping slices.

    Parameters
    ----------
    seed : int
        Of what is drawn.

    Returns
    -------
    DataFrame
        As `from_bids` gives it, 17,056 rows.
    """
    rng = np.random.default_rng(seed)
    contrast, dimension = np.repeat(list(PUBLISHED), list(PUBLISHED.values()), axis=0).T
    n, flat = len(contrast), np.flatnonzero(dimension == "2D")
    planes = np.full(n, "axial", dtype=object)
    few = rng.permutation(flat)[: sum(PUBLISHED_ORIENTATIONS.values())]
    planes[few] = np.repeat(list(PUBLISHED_ORIENTATIONS), list(PUBLISHED_ORIENTATIONS.values()))
    thickness = rng.choice([0.8, 0.9, 1.0, 1.2, 1.5], n, p=[0.03, 0.12, 0.65, 0.15, 0.05])
    thickness[flat] = rng.choice(
        [2.0, 2.5, 3.0, 3.5, 4.0, 5.0, 6.0], len(flat), p=[0.04, 0.03, 0.42, 0.03, 0.15, 0.30, 0.03]
    )
    gap = np.zeros(n)
    gap[flat] = np.round(
        thickness[flat] * rng.choice([0, 0.1, 0.2, 0.3], len(flat), p=[0.45, 0.20, 0.25, 0.10]), 2
    )
    coverage = np.round(rng.uniform(140, 190, n))
    wrong = rng.permutation(flat)[: len(flat) // 100]
    coverage[wrong[::2]], gap[wrong[1::2]] = 60.0, -0.5
    table = {
        "subject": [f"simulated{number:03d}" for number in rng.integers(1, 801, n)],
        "contrast": contrast,
        "dimension": dimension,
        "orientation": planes,
        "oblique_deg": np.round(np.abs(rng.normal(0, 7, n)), 1),
        "thickness_mm": thickness,
        "spacing_mm": np.round(thickness + gap, 3),
        "inplane_mm": np.where(dimension == "3D", thickness, rng.choice([0.45, 0.7, 0.9, 1.0], n)),
        "coverage_mm": coverage,
        "file": [f"simulated acquisition {number}" for number in range(n)],
    }
    return as_table([acquisition(row) for row in pd.DataFrame(table).to_dict("records")])


def counts(table: pd.DataFrame) -> pd.DataFrame:
    """Acquisitions by contrast and dimension (rows) and orientation (columns), with their sums.

    Returns
    -------
    DataFrame
        All of the study's contrasts, dimensions and orientations are there, and ``other`` and ``unknown``
        where there are some. A folder that could not be entered is no acquisition.
    """
    known = table[table["contrast"] != ""].replace(
        {"dimension": {"": "unknown"}, "orientation": {"": "unknown"}}
    )
    numbers = pd.crosstab([known["contrast"], known["dimension"]], known["orientation"])

    def order(values, wanted):
        return [*wanted, *(value for value in (OTHER, "unknown") if value in set(values))]

    rows = pd.MultiIndex.from_product(
        [order(known["contrast"], CONTRASTS), order(known["dimension"], ("2D", "3D"))],
        names=["contrast", "dimension"],
    )
    numbers = numbers.reindex(index=rows, columns=order(known["orientation"], ORIENTATIONS), fill_value=0)
    numbers = numbers.assign(all=numbers.sum(axis=1))
    numbers.loc[("all", ""), :] = numbers.sum()
    return numbers.astype(int)


def thickness_histogram(table: pd.DataFrame, width_mm: float = 0.5) -> pd.DataFrame:
    """Acquisitions by slice thickness, for each of the study's contrasts, 2D and 3D: the numbers of figure 1.

    Parameters
    ----------
    table : DataFrame
        As `from_bids` gives it. Acquisitions of unknown thickness or dimension are left out.
    width_mm : float
        Width of the bins, which are centred on its multiples.

    Returns
    -------
    DataFrame
        ``contrast``, ``dimension``, ``thickness_mm`` (centre of the bin) and ``acquisitions``, for bins that
        are not empty.
    """
    require_number("width_mm", width_mm, 0, above=True)
    known = table[
        table["contrast"].isin(CONTRASTS) & (table["dimension"] != "") & table["thickness_mm"].notna()
    ]
    # Half a bin up is the next bin; a thickness such as 2.5 may have lost its last digit on the way.
    centre = (np.floor(known["thickness_mm"] / width_mm + 0.5 + 1e-9) * width_mm).round(9)
    numbers = known.assign(thickness_mm=centre).groupby(["contrast", "dimension", "thickness_mm"]).size()
    return numbers.rename("acquisitions").reset_index()


def resolutions(table: pd.DataFrame) -> pd.DataFrame:
    """The 2D acquisitions by slice thickness and gap, the most frequent first.

    Returns
    -------
    DataFrame
        ``thickness_mm``, ``gap_mm``, ``spacing_mm``, a column for each contrast, ``acquisitions`` and
        ``studied``: whether it is one of the paper's eight resolutions. Acquisitions whose gap is unknown or
        negative are left out. Lengths in steps of 0.1 mm.
    """
    flat = table[
        (table["dimension"] == "2D") & table["contrast"].isin(CONTRASTS) & (table["gap_mm"] > -TOLERANCE_MM)
    ]
    # + 0.0: a gap of -0.0 is none.
    flat = flat.assign(thickness_mm=flat["thickness_mm"].round(1), gap_mm=flat["gap_mm"].round(1) + 0.0)
    numbers = pd.crosstab([flat["thickness_mm"], flat["gap_mm"]], flat["contrast"])
    numbers = numbers.reindex(columns=CONTRASTS, fill_value=0).rename_axis(columns=None)
    numbers = numbers.assign(acquisitions=numbers.sum(axis=1)).reset_index()
    numbers.insert(2, "spacing_mm", (numbers["thickness_mm"] + numbers["gap_mm"]).round(1))
    numbers["studied"] = [
        Resolution(*pair) in RESOLUTIONS
        for pair in zip(numbers["thickness_mm"], numbers["gap_mm"], strict=True)
    ]
    return numbers.sort_values("acquisitions", ascending=False, ignore_index=True, kind="stable")


def unfit(table: pd.DataFrame) -> pd.DataFrame:
    """The acquisitions that are unfit for a study, with every reason; a file has a name here only."""
    return table.loc[table["unfit"] != "", ["subject", "session", "contrast", "file", "unfit"]].reset_index(
        drop=True
    )


def lengths(metadata: Mapping) -> list[float]:
    """Stated spacing and thickness, mm. A value that is no length is left out here; its reason is found
    elsewhere."""
    lengths_mm = []
    for name in ("spacing_mm", "thickness_mm"):
        with contextlib.suppress(ValueError):
            lengths_mm.append(millimetres(metadata.get(name)))
    return lengths_mm


def _plausible(name: str, value, reasons: list[str]) -> float:
    """A length of the table in mm (or the angle in degrees), NaN with a reason if it cannot be one."""
    try:
        number = millimetres(value)
    except ValueError as error:
        reasons.append(f"{name} {error}")
        return math.nan
    limits = {
        "gap_mm": (-PLAUSIBLE_MM[1], PLAUSIBLE_MM[1]),
        "coverage_mm": (PLAUSIBLE_MM[0], math.inf),
        "oblique_deg": (0, 90),
    }
    low, high = limits.get(name, PLAUSIBLE_MM)
    if math.isnan(number) or low <= number <= high:
        return number
    hint = ", perhaps in metres" if 0 < number < low <= 1000 * number <= high else ""
    reasons.append(f"{name} is {number:g}{hint}: accepted are {low:g} to {high:g}")
    return math.nan


def _spelled(name: str, value, accepted: Iterable[str], reasons: list[str]) -> str:
    text = _text(value).strip()
    for known in accepted:
        if text.lower() == known.lower():
            return known
    if text.lower() not in _NOTHING:
        reasons.append(f"{name} is {quoted(value)}: accepted are {', '.join(accepted)}")
    return ""


def _dimension(thickness: float, gap: float, spacing: float, inplane: float) -> str:
    """2D or 3D where it is not stated: gaps are 2D, overlapping partitions 3D; otherwise thick and
    anisotropic slices are 2D."""
    if abs(gap) > TOLERANCE_MM:
        return "2D" if gap > 0 else "3D"
    apart = thickness if math.isnan(spacing) else spacing
    if math.isnan(apart):
        return ""
    return "2D" if apart >= ANISOTROPIC_MM and not apart < ANISOTROPIC_RATIO * inplane else "3D"


def _shortcomings(row: Mapping) -> list[str]:
    """Reasons against an acquisition although its numbers could be read."""
    reasons = [f"{name} is unknown" for name in ("orientation", "dimension") if not row[name]]
    reasons += ["thickness_mm is unknown"] if math.isnan(row["thickness_mm"]) else []
    if row["gap_mm"] < -TOLERANCE_MM:
        reasons.append(
            f"slices of {row['thickness_mm']:g} mm overlap, they lie {row['spacing_mm']:g} mm apart"
        )
    if row["dimension"] == "3D" and row["spacing_mm"] > PARTITION_RATIO * row["thickness_mm"]:
        reasons.append(
            f"partitions of {row['thickness_mm']:g} mm that lie {row['spacing_mm']:g} mm apart, and a 3D "
            "acquisition has no gaps: reformatted, or a wrong sidecar"
        )
    if row["oblique_deg"] > OBLIQUE_LIMIT_DEG:
        reasons.append(
            f"slices lie {row['oblique_deg']:.0f} degrees from the nearest plane: accepted are "
            f"{OBLIQUE_LIMIT_DEG:g} at most"
        )
    if row["coverage_mm"] < COVERAGE_MM:
        reasons.append(f"slices cover {row['coverage_mm']:g} mm: accepted are {COVERAGE_MM:g} or more")
    return reasons


def _text(value) -> str:
    return "" if value is None or value != value else str(value)


def quoted(value) -> str:
    """A value in a message: short, on one line."""
    text = repr(value).replace("\n", " ")
    return text if len(text) <= 40 else text[:37] + "..."


def as_table(rows: list[dict]) -> pd.DataFrame:
    texts = (
        "subject",
        "session",
        "contrast",
        "dimension",
        "orientation",
        "dimension_from",
        "thickness_from",
        "unfit",
        "file",
    )
    table = pd.DataFrame(rows, columns=COLUMNS)
    return table.astype({name: object if name in texts else float for name in COLUMNS})
