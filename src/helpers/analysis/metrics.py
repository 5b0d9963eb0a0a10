"""PSNR and SSIM of an image against a reference, over the whole field of view and over the brain; and what is
left of each frequency.

PSNR and SSIM depend on a data range. It is the maximum of the reference, so that it is the same for every arm
of a subject and contrast.
"""

import math

import numpy as np
import pandas as pd

from helpers import volumes

#: Gaussian window of SSIM (Wang et al. 2004): its standard deviation, and how far it reaches at 3.5 of them,
#: in voxels.
SSIM_SIGMA = 1.5
SSIM_RADIUS = 5

_CONE_DEG = 20.0  # coefficients count whose direction is this close to the through-plane axis
_CUTOFF = 0.5  # correlation below which a frequency counts as lost


def data_range(reference: np.ndarray) -> float:
    """Maximum of the reference inside its foreground, where it is greater than 0.

    Parameters
    ----------
    reference : ndarray, shape (X, Y, Z)
        Ground truth, in its own units.

    Returns
    -------
    float
        In the same units, greater than 0.

    Raises
    ------
    ValueError
        If the reference has no foreground.
    """
    largest = float(volumes.as_volume(reference, "reference").max())
    if largest <= 0:
        raise ValueError(
            f"reference has no foreground, its maximum is {largest:g}: accepted are images with values "
            "above 0"
        )
    return largest


def psnr(
    reference: np.ndarray, image: np.ndarray, data_range: float, mask: np.ndarray | None = None
) -> float:
    """Peak signal-to-noise ratio, 10 log10(range² / mean squared error).

    Parameters
    ----------
    reference, image : ndarray, shape (X, Y, Z)
        In the same units.
    data_range : float
        Peak value, in those units: `data_range` of the reference.
    mask : ndarray, shape (X, Y, Z), bool, optional
        Voxels that count. None: all.

    Returns
    -------
    float
        dB; inf if the two are equal.

    Raises
    ------
    ValueError
        If the shapes differ, a value is not finite, the mask is empty, or the range is not greater than 0.
    """
    reference, image = _pair(reference, image, data_range)
    # float64: 8 million float32 squares lose digits, and the square of a tiny difference would vanish and
    # pass for equality.
    difference = np.subtract(reference, image, dtype=np.float64)
    if mask is not None:
        difference = difference[_mask(mask, reference.shape)]
    mean_squared_error = float(np.mean(np.square(difference / data_range)))
    return -10 * math.log10(mean_squared_error) if mean_squared_error > 0 else math.inf


def ssim_map(
    reference: np.ndarray, image: np.ndarray, data_range: float, axis: int | None = None
) -> np.ndarray:
    """Structural similarity at every voxel, with a Gaussian window of 1.5 voxels (scikit-image, population
    covariance).

    Parameters
    ----------
    reference, image : ndarray, shape (X, Y, Z)
        In the same units.
    data_range : float
        Range of values, in those units: `data_range` of the reference.
    axis : {None, 0, 1, 2}
        None: a 3D window. Else a 2D window within each slice perpendicular to this axis; slices do not see
        each other.

    Returns
    -------
    ndarray, shape (X, Y, Z), float32
        1 where the windows of both images are equal.

    Raises
    ------
    ValueError
        If the shapes differ, a value is not finite, the range is not greater than 0, the axis is unknown, or
        the images are narrower than the window, 11 voxels.

    References
    ----------
    Z. Wang et al., "Image quality assessment: from error visibility to structural similarity", IEEE
    Transactions on Image Processing 13(4):600-612, 2004.
    """
    from skimage.metrics import structural_similarity

    reference, image = _pair(reference, image, data_range)
    if axis not in (None, 0, 1, 2):
        raise ValueError(f"axis is {axis!r}: accepted are None, 0, 1, 2")
    width = 2 * SSIM_RADIUS + 1
    narrow = [n for a, n in enumerate(reference.shape) if a != axis and n < width]
    if narrow:
        raise ValueError(
            f"images have shape {reference.shape}: accepted are {width} voxels or more along the axes of "
            "the window"
        )
    result = np.ones(reference.shape, dtype=np.float32)
    # Two windows of zeros are equal, SSIM exactly 1: about half of a brain's field of view need not be
    # computed.
    box = _box_of_content(reference, image)
    if box is not None:
        scale = np.float32(data_range)
        result[box] = structural_similarity(
            np.divide(reference[box], scale, dtype=np.float32),
            np.divide(image[box], scale, dtype=np.float32),
            data_range=1.0,
            channel_axis=axis,
            gaussian_weights=True,
            sigma=SSIM_SIGMA,
            use_sample_covariance=False,
            full=True,
        )[1]
    return result


def ssim(
    reference: np.ndarray,
    image: np.ndarray,
    data_range: float,
    mask: np.ndarray | None = None,
    axis: int | None = None,
) -> float:
    """Mean of `ssim_map` over a mask, or over all voxels.

    Parameters
    ----------
    reference, image, data_range
        See `ssim_map`.
    mask : ndarray, shape (X, Y, Z), bool, optional
        Voxels that count. Their windows may reach outside of it. None: all.
    axis
        See `ssim_map`.

    Returns
    -------
    float
        1 if the two are equal.

    Raises
    ------
    ValueError
        As `ssim_map`, and if the mask is empty or of another shape.
    """
    return _mean(
        ssim_map(reference, image, data_range, axis),
        None if mask is None else _mask(mask, np.shape(reference)),
    )


def score(
    reference: np.ndarray, image: np.ndarray, brain: np.ndarray, slice_axis: int | None = None
) -> list[dict]:
    """PSNR and SSIM over the full field of view and over the brain: two rows of the study's table.

    Parameters
    ----------
    reference : ndarray, shape (X, Y, Z)
        Ground truth, axes stored as LPS. Its maximum is the data range.
    image : ndarray, shape (X, Y, Z)
        What is scored, on the same grid and in the same units.
    brain : ndarray, shape (X, Y, Z), bool
        The subject's HR brain mask, the same in every arm.
    slice_axis : {None, 0, 1, 2}
        None: whole volumes. Else the arrays hold only some slices along this axis (a preview), and only the
        SSIM of slices perpendicular to it has a meaning.

    Returns
    -------
    list of dict
        One for region ``full``, one for ``brain``, with ``region``, ``psnr_db``, ``ssim`` (3D),
        ``ssim_axial``, ``ssim_coronal``, ``ssim_sagittal`` (2D slices of that plane, every voxel of the
        region counts once), and ``data_range``; NaN for what a preview cannot know.

    Raises
    ------
    ValueError
        If shapes differ, a value is not finite, the mask is empty, the reference has no foreground, the axis
        is unknown, or the images are narrower than SSIM's window, 11 voxels.
    """
    if slice_axis not in (None, 0, 1, 2):
        raise ValueError(f"slice_axis is {slice_axis!r}: accepted are None, 0, 1, 2")
    peak = data_range(reference)
    regions = {"full": None, "brain": _mask(brain, np.shape(reference))}
    rows = [{"region": name, "psnr_db": psnr(reference, image, peak, mask)} for name, mask in regions.items()]
    for column, axis in (("ssim", None), ("ssim_axial", 2), ("ssim_coronal", 1), ("ssim_sagittal", 0)):
        known = slice_axis is None or axis == slice_axis
        similarity = ssim_map(reference, image, peak, axis) if known else None
        for row, mask in zip(rows, regions.values(), strict=True):
            row[column] = _mean(similarity, mask) if known else math.nan
    return [row | {"data_range": peak} for row in rows]


def _pair(reference, image, data_range):
    reference, image = volumes.as_volume(reference, "reference"), volumes.as_volume(image, "image")
    if reference.shape != image.shape:
        raise ValueError(
            f"image has shape {image.shape}: accepted is that of the reference, {reference.shape}"
        )
    if not (math.isfinite(data_range) and data_range > 0):
        raise ValueError(f"data_range is {data_range}: accepted is a number greater than 0")
    return reference, image


def _mask(mask, shape):
    mask = volumes.as_volume(mask, "mask") != 0
    if mask.shape != tuple(shape):
        raise ValueError(f"mask has shape {mask.shape}: accepted is that of the images, {tuple(shape)}")
    if not mask.any():
        raise ValueError(f"mask is empty, shape {mask.shape}: accepted are masks with at least one voxel")
    return mask


def _mean(similarity, mask):
    return float((similarity if mask is None else similarity[mask]).mean(dtype=np.float64))


def _box_of_content(reference, image):
    """Slices of the box around everything that is not zero in both, grown by the window; None if all is zero.

    Grown by its radius and no more, the window's mirrored edge inside the box holds the same zeros as the
    margin.
    """
    content = (reference != 0) | (image != 0)
    if not content.any():
        return None
    box = []
    for axis, n in enumerate(content.shape):
        along = np.flatnonzero(content.any(axis=tuple(a for a in range(3) if a != axis)))
        start, stop = max(along[0] - SSIM_RADIUS, 0), min(along[-1] + 1 + SSIM_RADIUS, n)
        # Content at the very edge gives a box that is narrower than the window.
        start, stop = (start, stop) if stop - start > 2 * SSIM_RADIUS else (0, n)
        box.append(slice(start, stop))
    return tuple(box)


def score_column(table: pd.DataFrame, measure: str) -> str:
    """The column of a score table that holds a measure: for ``ssim`` 3D SSIM, or in a preview that of the
    plane or planes it visited."""
    if measure != "ssim" or table["ssim"].notna().any():
        return measure
    columns = ("ssim_planes", "ssim_axial", "ssim_coronal", "ssim_sagittal")
    return next((column for column in columns if column in table and table[column].notna().any()), measure)


def brain_window(brain: np.ndarray, taper_mm: float = 6.0) -> np.ndarray:
    """Weight of each voxel for `fourier_correlation`: 1 deep in the brain, 0 at its edge, a half cosine
    between.

    A sharp edge that two images share, such as that of a mask, would correlate at every frequency.

    Parameters
    ----------
    brain : ndarray, shape (X, Y, Z), bool
        Voxels of 1 mm.
    taper_mm : float
        Depth at which the weight reaches 1.

    Returns
    -------
    ndarray, shape (X, Y, Z), float32
    """
    import edt

    mask = np.ascontiguousarray(_mask(brain, np.shape(brain)))
    depth_mm = edt.edt(mask, black_border=True, parallel=1)
    return (0.5 - 0.5 * np.cos(np.pi * np.clip(depth_mm / taper_mm, 0, 1))).astype(np.float32)


def fourier_correlation(
    reference: np.ndarray,
    image: np.ndarray,
    window: np.ndarray,
    axis: int,
    slice_axis: int | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Fourier correlation of two volumes through-plane: by frequency, among the coefficients within
    20 degrees of that direction.

    A shell of all directions would mix the resolution within the slices with that across them.

    Parameters
    ----------
    reference, image, window : ndarray, shape (X, Y, Z)
        1 mm isotropic voxels; `window` as `brain_window` gives it.
    axis : {0, 1, 2}
        Through-plane axis of the acquisition.
    slice_axis : {None, 0, 1, 2}
        None: whole volumes. Else the arrays hold only some slices along this axis (a preview): each is
        transformed alone, and the cone becomes a wedge.

    Returns
    -------
    frequency : ndarray, shape (f,), cycles/mm
        Means of rings that are 0.01 cycles/mm wide, from 0.005 to 0.5.
    correlation : ndarray, shape (f,), -1 to 1
        Real part of the normalised cross-spectrum; 0 where one of the two has no power.

    Raises
    ------
    ValueError
        If shapes differ, a value is not finite, the window is empty, or `axis` is not a direction that the
        arrays resolve.

    References
    ----------
    W. O. Saxton and W. Baumeister, "The correlation averaging of a regularly arranged bacterial cell envelope
    protein", Journal of Microscopy 127(2):127-138, 1982.
    """
    from scipy import fft

    reference, image = _pair(reference, image, 1.0)
    inside = _mask(window, reference.shape)
    if axis not in (0, 1, 2) or axis == slice_axis:
        raise ValueError(
            f"axis is {axis!r}: accepted are 0, 1, 2, and not the axis along which slices were skipped "
            f"({slice_axis})"
        )
    # rfftn halves its last axis: the through-plane one, so that each coefficient of the cone comes once.
    axes = [other for other in range(3) if other not in (axis, slice_axis)] + [axis]
    box = tuple(slice(filled[0], filled[-1] + 1) for filled in map(np.unique, np.nonzero(inside)))
    weight = np.asarray(window, np.float32)[box]
    spectra = []
    for volume in (reference, image):
        volume = volume[box].astype(np.float32)
        spectra.append(fft.rfftn((volume - np.average(volume, weights=weight)) * weight, axes=axes))
    shape = weight.shape
    squares = np.zeros((1, 1, 1))
    for other in axes:
        frequency = fft.rfftfreq(shape[other]) if other == axis else fft.fftfreq(shape[other])
        along = np.expand_dims(frequency**2, [a for a in range(3) if a != other])
        through = np.sqrt(along) if other == axis else None
        squares = squares + along
    radius = np.sqrt(squares)
    near = np.broadcast_to(
        (through >= np.cos(np.radians(_CONE_DEG)) * radius) & (radius > 0.005) & (radius <= 0.5),
        spectra[0].shape,
    )
    radius = np.broadcast_to(radius, spectra[0].shape)[near]
    a, b = (spectrum[near].astype(np.complex128) for spectrum in spectra)
    ring = np.minimum(((radius - 0.005) / 0.01).astype(int), 49)
    count, frequency, cross, power_a, power_b = (
        np.bincount(ring, values, 50)
        for values in (np.ones(len(a)), radius, (a * b.conj()).real, np.abs(a) ** 2, np.abs(b) ** 2)
    )
    filled = count > 0
    power = np.sqrt(power_a * power_b)[filled]
    return frequency[filled] / count[filled], np.divide(
        cross[filled], power, out=np.zeros(len(power)), where=power > 0
    )


def cutoff(frequency: np.ndarray, correlation: np.ndarray) -> float:
    """Frequency at which a correlation falls below 0.5 for good, interpolated linearly; the last one if
    it never does.

    For good: a harmonizer may get shading or contrast wrong, which lowers the first few frequencies and is no
    lack of resolution.

    Parameters
    ----------
    frequency : ndarray, shape (f,), cycles/mm, ascending
    correlation : ndarray, shape (f,)
        At frequency 0 it is 1.

    Returns
    -------
    float
        cycles/mm.

    Examples
    --------
    >>> cutoff(np.array([0.1, 0.2, 0.3]), np.array([1.0, 0.75, 0.25]))
    0.25
    """
    frequency, correlation = np.r_[0, frequency], np.r_[1, correlation]
    last = np.flatnonzero(correlation >= _CUTOFF)[-1]
    if last == len(correlation) - 1:
        return float(frequency[-1])
    share = (correlation[last] - _CUTOFF) / (correlation[last] - correlation[last + 1])
    return float(frequency[last] + share * (frequency[last + 1] - frequency[last]))
