"""The steps of a study up to what a harmonizer is given, as files that are computed when they are missing:
stacks, super-resolved stacks, registered stacks.

Each function returns paths. Arrays and physics live in the other rooms; this one only connects them.
"""

import dataclasses
import functools
import hashlib
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from helpers import grid, layout, volumes
from helpers.grid import AXIS
from helpers.pipeline import cache, folders, participants
from helpers.study import GRID_MM, ORIENTATIONS, Resolution, visited_slices
from helpers.study.file import Study
from helpers.study.subjects import Subject

#: Width of the networks that super-resolve.
RESOLVER_CHANNELS = 32


def degraded(plan: Study, subject: Subject, contrast: str, orientation: str, resolution: Resolution) -> Path:
    """The 2D acquisition simulated from the subject's high-resolution image."""
    from helpers.acquisition import degradation, rf_pulse

    source = participants.cohort(plan, subject)[contrast]
    path = layout.image(
        folders.root(plan), subject, contrast, desc="degraded", acq=orientation, res=resolution.slug
    )
    pulse = rf_pulse.Pulse()
    parameters = {
        "orientation": orientation,
        "resolution": resolution.label,
        "pulse": dataclasses.asdict(pulse),
    }
    key = cache.key("degradation", [source], parameters)

    def work(_):
        lr_volume, lr_affine = degradation.degrade(*cache.read_volume(source), orientation, resolution, pulse)
        yield (
            lr_volume,
            lr_affine,
            {**_acquisition_facts(orientation, resolution), "SliceProfile": dataclasses.asdict(pulse)},
        )

    cache.compute({contrast: path}, key, [source], work, removable(plan))
    return path


def removable(plan: Study) -> bool:
    """Whether volumes that were removed count as done (`helpers.runner.removal`)."""
    return plan.keep == "tables"


def check_remedies(plan: Study) -> None:
    """See that the stacks of a study can be super-resolved, if they shall be, before minutes of teaching.

    Raises
    ------
    ValueError
        Naming the resolution and what is accepted.
    """
    from helpers.acquisition import degradation
    from helpers.super_resolution.stacks import through_plane_axis

    for resolution in plan.resolutions if "super-resolution" in plan.remedies else ():
        for orientation in ORIENTATIONS:
            axis, shape = AXIS[orientation], list(grid.SHAPE)
            shape[axis] = len(degradation.slice_positions(shape[axis], GRID_MM, resolution))
            voxel_mm = np.insert([GRID_MM, GRID_MM], axis, resolution.separation_mm)
            what = f"resolutions has {resolution.label}: to be super-resolved, its {orientation} stack"
            through_plane_axis(shape, np.diag([*voxel_mm, 1.0]), resolution, what)


def resolver(plan: Study, resolution: Resolution) -> Path:
    """What super-resolves the study's stacks of one resolution: a network, taught on some of them.

    One stack of each contrast and orientation, nine at most, of the `Study.teachers` in turn. Teaching takes
    minutes; one that was killed goes on where it was.
    """
    from helpers import super_resolution

    pairs = [(contrast, orientation) for contrast in plan.given for orientation in ORIENTATIONS]
    # In turn, and shifted by one from contrast to contrast: each orientation of each subject.
    who = [plan.teachers[(n + n // 3) % len(plan.teachers)] for n in range(len(pairs))]
    stacks = [degraded(plan, subject, *pair, resolution) for subject, pair in zip(who, pairs)]
    path = folders.root(plan) / "resolvers" / f"{resolution.slug}.pt"
    settings = {"steps": plan.teaching_steps, "channels": RESOLVER_CHANNELS, "seed": plan.seed}
    key = cache.key("super-resolution", stacks, {"resolution": resolution.label, **settings})
    if not cache.is_done(path, key):
        unfinished = path.with_name(f"{resolution.slug}-{key[:12]}")
        taught = super_resolution.train(
            [volumes.read(stack) for stack in stacks], resolution, **settings, folder=unfinished
        )
        taught.save(unfinished / path.name)
        record = {"Key": key, "Sources": [layout.uri(stack) for stack in stacks], **settings}
        volumes.write_with_sidecar(path, (unfinished / path.name).read_bytes(), record)
        shutil.rmtree(unfinished)
    return path


@functools.lru_cache(maxsize=1)
def _load_resolver(path: Path, content: str, resolution: Resolution):
    from helpers import super_resolution

    return super_resolution.load(path, resolution)


def super_resolved(
    plan: Study, subject: Subject, contrast: str, orientation: str, resolution: Resolution
) -> Path:
    """The simulated 2D acquisition with 1 mm between its slices, by the `resolver` of its resolution."""
    from helpers import super_resolution

    stack, taught = degraded(plan, subject, contrast, orientation, resolution), resolver(plan, resolution)
    path = layout.image(
        folders.root(plan), subject, contrast, desc="superResolved", acq=orientation, res=resolution.slug
    )
    inputs = [stack, taught]
    key = cache.key("super-resolution", inputs, {})

    def work(_):
        network = _load_resolver(taught, cache.content_hash(taught), resolution)
        length = grid.SHAPE[AXIS[orientation]]
        resolved = super_resolution.super_resolve(*volumes.read(stack), resolution, network, length)
        yield *resolved, {**_acquisition_facts(orientation, resolution), "SuperResolved": True}

    cache.compute({contrast: path}, key, [stack], work, removable(plan))
    return path


def registered(
    plan: Study,
    subject: Subject,
    contrast: str,
    orientation: str,
    resolution: Resolution,
    transform: str | None = None,
    resolved: bool = False,
) -> Path:
    """The simulated 2D acquisition, or the super-resolved one if `resolved`, back on the 1 mm MNI grid.

    The stack is first moved as a patient moves between scans; `transform` (the study's unless given)
    says whether that motion is undone as it is known, or as ANTs estimates it against the subject's
    own high-resolution image. The sidecar records the registration error.

    In a preview with the known transform the file holds the visited slices only, as `visited` returns them:
    the whole volume is sooner computed again from the stack (`registered_volume`) than read, and would take
    13 MB.
    """
    from helpers import registration

    transform = transform or plan.transform
    stack, images = (
        _stack(plan, subject, contrast, orientation, resolution, resolved),
        participants.cohort(plan, subject),
    )
    inputs = [stack, images[contrast], images["mask"]]
    path = layout.image(
        folders.root(plan),
        subject,
        contrast,
        desc=f"{'superResolved' if resolved else 'registered'}{transform.capitalize()}",
        acq=orientation,
        res=resolution.slug,
    )
    parameters = {"transform": transform, "seed": plan.seed}
    if some := _holds_slices(plan, transform):
        parameters |= {"plane": plan.reconstruction[0], "slice_step": plan.slice_step}
    key = cache.key("registration", inputs, parameters)

    def work(_):
        brain, affine = cache.read_volume(images["mask"])
        true = registration.motion(plan.seed, subject.seed, contrast, orientation)
        if transform == "known":
            estimated = true
        else:
            lr_volume, lr_affine = volumes.read(stack)
            fixed, _ = cache.read_volume(images[contrast])
            moved = registration.move(lr_affine, true)
            estimated = registration.estimate(
                lr_volume, moved, fixed, affine, brain > 0, kind=transform, seed=plan.seed
            )
        facts = {
            **_acquisition_facts(orientation, resolution),
            **({"SuperResolved": True} if resolved else {}),
            "Transform": transform,
            "RegistrationErrorMm": round(registration.error_mm(estimated, true, brain > 0, affine), 6),
        }
        whole = _resampled(stack, true, estimated)
        if some:
            yield (
                *visited(plan, whole, affine),
                {**facts, "WholeVolumeSha256": hashlib.sha256(whole).hexdigest()},
            )
        else:
            yield whole, affine, facts

    cache.compute({contrast: path}, key, inputs, work, removable(plan))
    return path


def registered_volume(
    plan: Study,
    subject: Subject,
    contrast: str,
    orientation: str,
    resolution: Resolution,
    transform: str | None = None,
    resolved: bool = False,
) -> np.ndarray:
    """The whole volume of `registered`, even where its file holds some slices only: shape (192, 224, 192),
    float32."""
    from helpers import registration

    transform, acquired = transform or plan.transform, (plan, subject, contrast, orientation, resolution)
    if not _holds_slices(plan, transform):
        return cache.read_volume(registered(*acquired, transform, resolved))[0]
    true = registration.motion(plan.seed, subject.seed, contrast, orientation)
    return _resampled(_stack(*acquired, resolved), true, true)


def _stack(plan, subject, contrast, orientation, resolution, resolved: bool) -> Path:
    step = super_resolved if resolved else degraded
    return step(plan, subject, contrast, orientation, resolution)


def _holds_slices(plan: Study, transform: str) -> bool:
    """Whether files of registered stacks hold the visited slices only. What ANTs estimated is not computed
    again."""
    return plan.slice_step > 1 and transform == "known"


def _resampled(stack: Path, true: np.ndarray, estimated: np.ndarray) -> np.ndarray:
    """A stack that lies as the `true` motion says, on the MNI grid by the `estimated` one."""
    from helpers import registration

    lr_volume, lr_affine = volumes.read(stack)
    return registration.resample(
        lr_volume, registration.move(lr_affine, true), grid.SHAPE, grid.AFFINE, estimated
    )


def super_resolves(remedies: Sequence[str], resolution: Resolution | None) -> bool:
    """Whether stacks are super-resolved: the ground truth has none."""
    return "super-resolution" in remedies and resolution is not None


class Source(NamedTuple):
    """An image that a harmonizer is given: the 3D image, or a stack brought back to the MNI grid."""

    contrast: str
    orientation: str  # of the slices, or "3D"
    resolution: Resolution | None
    super_resolved: bool


def sources(
    plan: Study, experiment: str, resolution: Resolution | None, super_resolved: bool = False
) -> list[Source]:
    """What a harmonizer is given in an experiment of Table 1; nothing for a dropped contrast. A 3D image is
    the same source at every resolution."""
    return [
        Source(
            contrast, orientation, *((None, False) if orientation == "3D" else (resolution, super_resolved))
        )
        for contrast, orientation in plan.sources(experiment).items()
    ]


def source_file(plan: Study, subject: Subject, source: Source) -> Path:
    """A source on the 1 mm grid; of a stack in a preview the visited slices."""
    contrast, orientation, resolution, super_resolved = source
    if orientation == "3D":
        return participants.cohort(plan, subject)[contrast]
    return registered(plan, subject, contrast, orientation, resolution, resolved=super_resolved)


def source_images(
    plan: Study, subject: Subject, experiment: str, resolution: Resolution | None, resolved: bool = False
) -> dict[str, Path]:
    """Contrast -> `source_file`, for the `sources` of an experiment."""
    return {
        source.contrast: source_file(plan, subject, source)
        for source in sources(plan, experiment, resolution, resolved)
    }


def source_volume(plan: Study, subject: Subject, source: Source) -> np.ndarray:
    """A source as a whole volume."""
    contrast, orientation, resolution, super_resolved = source
    if orientation == "3D":
        return cache.read_volume(participants.cohort(plan, subject)[contrast])[0]
    return registered_volume(plan, subject, contrast, orientation, resolution, resolved=super_resolved)


def visited(plan: Study, volume: np.ndarray, affine: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The slices of an MNI volume that the study harmonizes and scores: all, or a preview's. What holds them
    alone stays as it is."""
    axis = slice_axis(plan)
    indices = visited_slices(grid.SHAPE[axis], plan.slice_step)
    if volume.shape[axis] == len(indices):
        return volume, affine
    affine = affine.copy()
    affine[:3, 3] += affine[:3, axis] * indices.start
    affine[:3, axis] *= indices.step
    some = np.moveaxis(np.moveaxis(volume, axis, 0)[indices.start :: indices.step], 0, axis)
    return np.ascontiguousarray(some), affine  # what `take` gives, without its index for every voxel


def slice_axis(plan: Study) -> int:
    """Array axis across the slices of the study's (first) reconstruction plane on HACA3's MNI grid."""
    return AXIS[plan.reconstruction[0]]


def preview_axis(plan: Study) -> int | None:
    """`slice_axis` if the study visits only some slices along it, None if it takes whole volumes."""
    return slice_axis(plan) if plan.slice_step > 1 else None


def _acquisition_facts(orientation: str, resolution: Resolution) -> dict:
    return {"MRAcquisitionType": "2D", "Orientation": orientation, **resolution_facts(resolution)}


def resolution_facts(resolution: Resolution) -> dict:
    return {
        "SliceThickness": resolution.thickness_mm,
        "SpacingBetweenSlices": resolution.separation_mm,
        "Resolution": (
            f"simulated 2D slices of {resolution.thickness_mm:g} mm with gaps of {resolution.gap_mm:g} mm"
        ),
    }
