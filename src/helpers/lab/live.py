"""What the interactive notebooks compute between two moves of a slider: one slice, or three that cross in a
point.

Slicing and bringing back act along one axis only. So a plane of a thick-slice image needs a plane of the
original and one small matrix, not the volume; and a harmonized slice needs three source slices, as long as
background and intensity scale are those of the original image.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from helpers.acquisition import degradation, slice_profile
from helpers.acquisition.rf_pulse import Pulse
from helpers.analysis import downstream, metrics
from helpers.grid import AFFINE, AXIS
from helpers.study import EXPERIMENTS, ONE_ORIENTATION, Resolution

if TYPE_CHECKING:  # torch takes seconds, and notebook 01 needs none
    from helpers.haca3.resolution import Acquisition
    from helpers.super_resolution import SuperResolver

#: Experiments in which the sources are not all sliced alike.
MIXED = tuple(experiment for experiment in EXPERIMENTS if experiment not in ONE_ORIENTATION)


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
    taps = {"simulated": slice_profile.taps(thickness_mm, 1.0, pulse)}
    taps |= {name: slice_profile.plain_taps(name.lower(), thickness_mm, 1.0) for name in ("box", "Gaussian")}
    if thickness_mm >= 1:
        taps["radifox"] = slice_profile.taps(thickness_mm, 1.0, replace(pulse, compat="radifox"))
    return taps


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
class Scan:
    """An experiment of Table 1 at one resolution, with or without the remedies.

    Attributes
    ----------
    experiment : str
    resolution : Resolution
        Of all sources that are not 3D.
    super_resolution : bool
        Of each stack, before it is harmonized.
    fusion : bool
        Of anatomies with weights that know the resolution of each source.
    """

    experiment: str
    resolution: Resolution
    super_resolution: bool = False
    fusion: bool = False

    def geometry(self) -> dict[str, "Acquisition | None"] | None:
        """How each source was sliced (None for 3D); None altogether without resolution-aware fusion."""
        from helpers.haca3.resolution import Acquisition

        return (
            {
                contrast: None if how == "3D" else Acquisition(how, self.resolution)
                for contrast, how in EXPERIMENTS[self.experiment].items()
            }
            if self.fusion
            else None
        )


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
    model,
    targets: Mapping,
    looked_at: Scene,
    sources: Mapping[str, Mapping[str, np.ndarray]],
    position,
    geometry: Mapping[str, "Acquisition | None"] | None = None,
) -> dict[str, dict[str, np.ndarray]]:
    """Harmonize three planes, each in its own plane of reconstruction, without fusion.

    Background and intensity scale are those of the 3D images: one slice knows neither.

    Parameters
    ----------
    model : helpers.haca3.Harmonizer
    targets : dict of str to helpers.haca3.Target
    looked_at : Scene
    sources : dict of str to dict of str to ndarray, 2D
        Contrast -> plane -> slice, as `sources` gives them.
    position : tuple of three int
    geometry : dict of str to Acquisition or None, optional
        Of the sources, for the fusion that knows resolution: `Scan.geometry`.

    Returns
    -------
    dict of str to dict of str to ndarray, 2D
        Target contrast -> plane -> slice, in the units of the target.
    """
    from helpers.haca3.planes import harmonize_planes

    given = {}
    for contrast, planes in sources.items():
        scaled = {plane: np.clip(planes[plane] / (looked_at.scale[contrast] + 1e-5), 0, 5) for plane in AXIS}
        inside = {plane: plane_of(looked_at.foreground[contrast], plane, position) for plane in AXIS}
        given[contrast] = {plane: np.where(inside[plane], scaled[plane], 0) for plane in AXIS}
    indices = {plane: position[axis] for plane, axis in AXIS.items()}
    return harmonize_planes(model, given, targets, indices, geometry=geometry)


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
    number: int, resolutions: tuple[Resolution, ...], seed: int = 0, resolved: Resolution | None = None
) -> tuple[Scan, Scan]:
    """Two scans for the audience to choose between, never the same.

    Of three questions one is about slices, one about super-resolution (if there is a network for it) and one
    about the fusion that knows resolution.

    Parameters
    ----------
    number : int
        Of the question; the same number asks the same.
    resolutions : tuple of Resolution
    seed : int
    resolved : Resolution, optional
        Of the slices that can be super-resolved.
    """
    rng = np.random.default_rng([seed, number])
    plain = [Scan(experiment, resolution) for experiment in ONE_ORIENTATION for resolution in resolutions]
    if number % 3 == 0:
        mixed = [Scan(experiment, r) for experiment in MIXED for r in resolutions]
        scan = mixed[rng.integers(len(mixed))]
        pair = scan, replace(scan, fusion=True)
    elif number % 3 == 2 and resolved:
        experiment = ONE_ORIENTATION[rng.integers(len(ONE_ORIENTATION))]
        pair = plain[rng.integers(len(plain))], Scan(experiment, resolved, super_resolution=True)
    else:
        return tuple(plain[i] for i in rng.choice(len(plain), 2, replace=False))
    return tuple(pair[i] for i in rng.permutation(2))


def whole(looked_at: Scene, position) -> dict[str, dict[str, np.ndarray]]:
    """Contrast -> plane -> slice of the 3D images."""
    return {
        contrast: {plane: plane_of(image, plane, position) for plane in AXIS}
        for contrast, image in looked_at.images.items()
    }


def sources(
    looked_at: Scene, scan: Scan, position, resolver: "SuperResolver | None" = None, known: dict | None = None
) -> dict[str, dict[str, np.ndarray]]:
    """Contrast -> plane -> slice of what a scan gives to the harmonizer.

    Parameters
    ----------
    looked_at : Scene
    scan : Scan
    position : tuple of three int
    resolver : SuperResolver, optional
        For a scan that is super-resolved.
    known : dict, optional
        Keeps the super-resolved planes of this scene: a plane that was there comes back at once.
    """
    given = whole(looked_at, position)
    for contrast, orientation in EXPERIMENTS[scan.experiment].items():
        image = looked_at.images[contrast]
        if orientation == "3D":
            continue
        if scan.super_resolution:
            store = {} if known is None else known.setdefault((contrast, orientation), {})
            given[contrast] = super_resolved(image, orientation, resolver, position, store)
        else:
            given[contrast] = acquired(image, orientation, scan.resolution, position)
    return given


def super_resolved(
    volume: np.ndarray,
    orientation: str,
    resolver: "SuperResolver",
    position: tuple[int, int, int],
    known: dict,
) -> dict[str, np.ndarray]:
    """Three planes through a voxel of what super-resolution makes of a 2D acquisition of a volume.

    As `acquired`, but for two parameters.

    Parameters
    ----------
    resolver : SuperResolver
        Of the resolution of the slices.
    known : dict
        (plane, index) -> slice, of those that were made of this acquisition; is added to.
    """
    from helpers import super_resolution

    missing = [plane for plane, axis in AXIS.items() if (plane, position[axis]) not in known]
    if missing:
        stack, affine = degradation.degrade(volume, AFFINE, orientation, resolver.resolution)
        length = volume.shape[AXIS[orientation]]
        for plane in missing:
            index = position[AXIS[plane]]
            known[plane, index] = super_resolution.super_resolve_plane(
                stack, affine, resolver.resolution, resolver, AXIS[plane], index, length
            )
    return {plane: known[plane, position[axis]] for plane, axis in AXIS.items()}


def lesion_panels(model, targets: Mapping, looked_at: Scene, scans, position) -> list[dict]:
    """Lesions in the axial slice through a voxel: of the harmonized 3D images, and those of them that are
    found and missed where scans are harmonized.

    Tissues and lesions are told apart in this slice alone, by the rules of the study.

    Parameters
    ----------
    model, targets, looked_at
        As for `harmonized`.
    scans : list of Scan
        Without super-resolution.
    position : tuple of three int

    Returns
    -------
    list of dict
        As `helpers.analysis.downstream.lesion_panels`.
    """
    aims = {contrast: targets[contrast] for contrast in ("T1w", "FLAIR")}
    alone = AFFINE @ np.diag([1, 1, 10, 1])  # no neighbours above and below
    brain = plane_of(looked_at.brain, "axial", position)[..., None]
    flairs, lesions = [], []
    for scan in (None, *scans):
        given = whole(looked_at, position) if scan is None else sources(looked_at, scan, position)
        geometry = None if scan is None else scan.geometry()
        images = harmonized(model, aims, looked_at, given, position, geometry)
        t1w, flair = (images[contrast]["axial"][..., None] for contrast in aims)
        tissue = downstream.segment_tissue(t1w, alone, brain)
        flairs.append(flair)
        lesions.append(downstream.segment_lesions(flair, tissue, alone))
    resolutions = [None, *(scan.resolution for scan in scans)]
    return downstream.lesion_panels(flairs, lesions, alone, resolutions, "axial")
