"""What the interactive notebooks compute between two moves of a slider: one slice, or three that cross in a
point.

Slicing and bringing back act along one axis only. So a plane of a thick-slice image needs a plane of the
original and one small matrix, not the volume; and a harmonized slice needs three source slices, as long as
background and intensity scale are those of the original image.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from helpers.acquisition import degradation, slice_profile
from helpers.acquisition.rf_pulse import Pulse
from helpers.analysis import metrics
from helpers.grid import AXIS
from helpers.study import CONTRASTS, ORIENTATIONS, Resolution


def kernels(thickness_mm: float, pulse: Pulse = Pulse()) -> dict[str, np.ndarray]:
    """Weights of the voxels around a slice on the 1 mm grid, by ways to get at them.

    Parameters
    ----------
    thickness_mm : float
    pulse : Pulse

    Returns
    -------
    dict of str to ndarray
        ``simulated``, ``box``, ``Gaussian`` and, for slices that are not thinner than a voxel, ``radifox``.
    """
    found = {"simulated": slice_profile.taps(thickness_mm, 1.0, pulse)}
    found |= {name: slice_profile.plain_taps(name.lower(), thickness_mm, 1.0) for name in ("box", "Gaussian")}
    if thickness_mm >= 1:
        found["radifox"] = slice_profile.taps(thickness_mm, 1.0, replace(pulse, compat="radifox"))
    return found


def degraded_lines(
    lines: np.ndarray, resolution: Resolution, weights: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """What slicing and interpolating back leaves of a plane of an image, by each of several slice profiles.

    Parameters
    ----------
    lines : ndarray, shape (columns, n)
        Plane of a 3D image, 1 mm pixels, whose last axis is the slice normal.
    resolution : Resolution
    weights : dict of str to ndarray
        Taps, as `kernels` gives them.

    Returns
    -------
    dict of str to ndarray, shape (columns, n)
    """
    n = lines.shape[1]
    back = degradation.back_matrix(n, resolution)
    return {
        name: lines @ (back @ degradation.matrix_of(taps, n, 1.0, resolution)).T
        for name, taps in weights.items()
    }


# ---------------------------------------------------------------- three planes


@dataclass(frozen=True)
class Scene:
    """A subject as it is looked at: everything that does not depend on the acquisition.

    Attributes
    ----------
    images : dict of str to ndarray, shape (X, Y, Z)
        Contrast -> 3D image, 1 mm, stored left, posterior, superior.
    foreground : dict of str to ndarray of bool
        What HACA3 takes for the head, of each 3D image.
    scale : dict of str to float
        95th percentile of each 3D image, by which HACA3 divides.
    brain : ndarray of bool
    """

    images: dict
    foreground: dict
    scale: dict
    brain: np.ndarray


def scene(images: Mapping[str, np.ndarray], brain: np.ndarray) -> Scene:
    """Prepare the three contrasts of a subject.

    Parameters
    ----------
    images : dict of str to ndarray, shape (192, 224, 192)
        Contrast -> 3D image on HACA3's grid.
    brain : ndarray of bool
    """
    from helpers.haca3 import slicing

    normalised = {contrast: slicing.normalise(image) for contrast, image in images.items()}
    return Scene(
        images={contrast: np.ascontiguousarray(image, np.float32) for contrast, image in images.items()},
        foreground={contrast: slicing.foreground(image) for contrast, (image, _) in normalised.items()},
        scale={contrast: norm for contrast, (_, norm) in normalised.items()},
        brain=brain,
    )


def plane_of(volume: np.ndarray, plane: str, position: tuple[int, int, int]) -> np.ndarray:
    """The slice of a volume that lies in a plane and goes through a voxel: ndarray, 2D, in the order of the
    volume's axes."""
    return volume.take(position[AXIS[plane]], AXIS[plane])


def acquired(
    volume: np.ndarray, orientation: str, resolution: Resolution, position: tuple[int, int, int]
) -> dict[str, np.ndarray]:
    """Three planes through a voxel of what a 2D acquisition makes of a volume, brought back to 1 mm.

    Parameters
    ----------
    volume : ndarray, shape (X, Y, Z)
        1 mm, stored left, posterior, superior.
    orientation : {"axial", "sagittal", "coronal"}
        Of the slices.
    resolution : Resolution
    position : tuple of three int
        The voxel.

    Returns
    -------
    dict of str to ndarray, 2D
        Plane -> slice, in the order of the volume's axes.
    """
    across = AXIS[orientation]
    matrix = degradation.there_and_back(volume.shape[across], resolution)
    planes = {}
    for plane, axis in AXIS.items():
        if axis == across:
            planes[plane] = np.tensordot(matrix[position[axis]].astype(np.float32), volume, axes=(0, axis))
        else:
            image = volume.take(position[axis], axis)
            along = across - (across > axis)  # the slice normal among the two axes that are left
            planes[plane] = np.moveaxis(
                np.tensordot(matrix.astype(np.float32), image, axes=(1, along)), 0, along
            )
    return planes


def harmonized(
    model, targets: Mapping, looked_at: Scene, sources: Mapping[str, Mapping[str, np.ndarray]], position
) -> dict[str, dict[str, np.ndarray]]:
    """Harmonize three planes, each in its own plane of reconstruction, without fusion.

    Background and intensity scale are those of the 3D images: one slice knows neither.

    Parameters
    ----------
    model : helpers.haca3.Harmonizer
    targets : dict of str to helpers.haca3.Target
    looked_at : Scene
    sources : dict of str to dict of str to ndarray, 2D
        Contrast -> plane -> slice, as `acquired` gives them.
    position : tuple of three int

    Returns
    -------
    dict of str to dict of str to ndarray, 2D
        Target contrast -> plane -> slice, in the units of the target.
    """
    given = {}
    for contrast, planes in sources.items():
        scaled = {plane: np.clip(planes[plane] / (looked_at.scale[contrast] + 1e-5), 0, 5) for plane in AXIS}
        inside = {plane: plane_of(looked_at.foreground[contrast], plane, position) for plane in AXIS}
        given[contrast] = {plane: np.where(inside[plane], scaled[plane], 0) for plane in AXIS}
    return model.harmonize_planes(given, targets, {plane: position[axis] for plane, axis in AXIS.items()})


def compare(
    reference: Mapping[str, np.ndarray], image: Mapping[str, np.ndarray], looked_at: Scene, position
) -> tuple[float, float]:
    """PSNR in dB and SSIM over the brain of three planes; the data range is the largest value of the
    reference in them.

    Parameters
    ----------
    reference, image : dict of str to ndarray, 2D
        Plane -> slice.
    looked_at : Scene
    position : tuple of three int
    """
    peak = max(float(plane.max()) for plane in reference.values())
    inside = {plane: plane_of(looked_at.brain, plane, position) for plane in reference}
    pixels = (
        np.concatenate([planes[plane][inside[plane]] for plane in reference])[:, None, None]
        for planes in (reference, image)
    )
    similar = [
        metrics.ssim_map(reference[p][..., None], image[p][..., None], peak, axis=2)[..., 0][inside[p]]
        for p in reference
    ]
    return metrics.psnr(*pixels, peak), float(np.concatenate(similar).mean())


def duel(
    number: int, resolutions: tuple[Resolution, ...], seed: int = 0
) -> tuple[tuple[str, Resolution], tuple[str, Resolution]]:
    """Two acquisitions for the audience to choose between: (orientation, resolution) twice, never the same.

    Parameters
    ----------
    number : int
        Of the question; the same number asks the same.
    resolutions : tuple of Resolution
    seed : int
    """
    rng = np.random.default_rng([seed, number])
    choices = [(orientation, resolution) for orientation in ORIENTATIONS for resolution in resolutions]
    return tuple(choices[i] for i in rng.choice(len(choices), 2, replace=False))


def whole(looked_at: Scene, position) -> dict[str, dict[str, np.ndarray]]:
    """Contrast -> plane -> slice of the 3D images."""
    return {
        contrast: {plane: plane_of(image, plane, position) for plane in AXIS}
        for contrast, image in looked_at.images.items()
    }


def experiment_1(
    looked_at: Scene, orientation: str, resolution: Resolution, position
) -> dict[str, dict[str, np.ndarray]]:
    """Contrast -> plane -> slice of an acquisition in which all contrasts are sliced alike, as in experiments
    1a to 1c."""
    return {
        contrast: acquired(looked_at.images[contrast], orientation, resolution, position)
        for contrast in CONTRASTS
    }
