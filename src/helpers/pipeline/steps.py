"""The steps of a study as files that are computed when they are missing: stacks, super-resolved stacks,
registered stacks, harmonized images.

Each function returns paths. Arrays and physics live in the other rooms; this one only connects them.
"""

import collections
import dataclasses
import functools
import hashlib
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from helpers import grid, layout, volumes
from helpers.grid import AXIS
from helpers.harmonizers import protocol
from helpers.pipeline import cache, folders, models, participants
from helpers.study import CONTRASTS, GRID_MM, ORIENTATIONS, Resolution, visited_slices
from helpers.study.file import Study
from helpers.study.program import Program
from helpers.study.subjects import Subject

#: Remedies -> what images that were harmonized with them are called.
_HARMONIZED = {
    (): "harmonized",
    ("super-resolution",): "harmonizedSuperResolved",
    ("fusion",): "harmonizedResolutionAware",
    ("super-resolution", "fusion"): "harmonizedBoth",
    ("training",): "harmonizedResolutionTrained",
}

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
            {**_acquisition(orientation, resolution), "SliceProfile": dataclasses.asdict(pulse)},
        )

    cache.compute({contrast: path}, key, [source], work, _removable(plan))
    return path


def _removable(plan: Study) -> bool:
    """Whether volumes that were removed count as done (`helpers.pipeline.keep`)."""
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
        yield *resolved, {**_acquisition(orientation, resolution), "SuperResolved": True}

    cache.compute({contrast: path}, key, [stack], work, _removable(plan))
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
            **_acquisition(orientation, resolution),
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

    cache.compute({contrast: path}, key, inputs, work, _removable(plan))
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


def source_images(
    plan: Study, subject: Subject, experiment: str, resolution: Resolution | None, resolved: bool = False
) -> dict[str, Path]:
    """Contrast -> path of the image that HACA3 gets for it in an experiment of Table 1; nothing for a dropped
    contrast."""
    return {
        contrast: _source_file(plan, subject, contrast, orientation, resolution, resolved)
        for contrast, orientation in plan.sources(experiment).items()
    }


def _source_file(plan, subject, contrast, orientation, resolution, resolved: bool) -> Path:
    """A source of HACA3 as a file on the 1 mm grid: the 3D image, or a stack brought back."""
    if orientation == "3D":
        return participants.cohort(plan, subject)[contrast]
    return registered(plan, subject, contrast, orientation, resolution, resolved=resolved)


def harmonized(
    plan: Study,
    subject: Subject,
    experiment: str,
    resolution: Resolution | None,
    repeat: bool = False,
    arm: str = "harmonized",
) -> dict[str, Path]:
    """The three harmonized images of one experiment at one resolution.

    Parameters
    ----------
    experiment : str
        A key of Table 1, or ``"3D"`` for the ground truth (then `resolution` is None).
    repeat : bool
        Sample the anatomy with another seed, or ask another harmonizer than HACA3 a second time: two ground
        truths give the self-noise ceiling.
    arm : str
        One of `Study.arms`. Arms whose remedies change nothing in an experiment share their images.

    Returns
    -------
    dict
        Target contrast -> path. A preview holds the visited slices only, with the affine that says so.
    """
    if plan.harmonizer != "haca3":
        return _harmonized_otherwise(plan, subject, experiment, resolution, repeat, arm)
    one = _harmonization(plan, subject, experiment, resolution, arm, repeat)
    _harmonize(models.with_network(plan, one.remedies), subject, [one], resolution, _removable(plan))
    return one.paths


def harmonized_together(
    plan: Study, subject: Subject, experiments: Iterable[str], resolution: Resolution
) -> None:
    """Compute what is missing of `harmonized`, in all arms of several experiments of Table 1 at one
    resolution: a source that they share is encoded once."""
    together = {}
    for experiment in experiments:
        for arm in plan.arms:
            one = _harmonization(plan, subject, experiment, resolution, arm)
            together[experiment, one.remedies] = one
    # What has the same stacks and the same network: all at once would take twice the memory.
    groups = collections.defaultdict(list)
    for one in together.values():
        groups[models.with_network(plan, one.remedies), _resolved(one.remedies, resolution)].append(one)
    for (network, _), some in groups.items():
        _harmonize(network, subject, some, resolution, _removable(plan))


@dataclasses.dataclass(frozen=True)
class _Harmonization:
    """The images of one experiment at one resolution in one arm: where they are, what they depend on, how
    they are made."""

    experiment: str
    remedies: tuple
    orientations: dict
    paths: dict
    parents: list
    key: str
    settings: dict
    weights: list


def _harmonization(plan, subject, experiment, resolution, arm="harmonized", repeat=False) -> _Harmonization:
    remedies = plan.remedies_in(arm, experiment)
    inputs = source_images(plan, subject, experiment, resolution, _resolved(remedies, resolution))
    paths = _harmonized_paths(plan, subject, experiment, resolution, remedies, repeat)
    settings = {
        "orientations": list(plan.reconstruction),
        "anatomy": plan.anatomy,
        "mask": plan.mask,
        # One noise field per subject, the same for its ground truth and for every arm.
        "seed": int(np.random.SeedSequence([plan.seed, subject.seed, int(repeat)]).generate_state(1)[0]),
        "slice_step": plan.slice_step,
    }
    network = models.with_network(plan, remedies)
    weights = [models.checkpoint_hash(path) for path in models.checkpoints(network)]
    parents = [*inputs.values(), *target_images(plan).values()]
    numbers = _numbers(plan)
    orientations = plan.sources(experiment)
    aware = "fusion" in remedies
    parameters = {"settings": settings, "models": weights, "how": models.network_options(plan)}
    parameters |= {"geometry": {**orientations, "resolution": resolution.label}} if aware else {}
    key = cache.key("harmonization", parents, {**parameters, **({"targets": numbers} if numbers else {})})
    return _Harmonization(experiment, remedies, orientations, paths, parents, key, settings, weights)


def _harmonized_paths(plan, subject, experiment, resolution, remedies, repeat: bool) -> dict[str, Path]:
    desc = "harmonizedAgain" if repeat else _HARMONIZED[remedies]
    res = resolution.slug if resolution else None
    return {
        contrast: layout.image(folders.root(plan), subject, contrast, desc=desc, rec=experiment, res=res)
        for contrast in CONTRASTS
    }


def _resolved(remedies: Sequence[str], resolution: Resolution | None) -> bool:
    """Whether stacks are super-resolved: the ground truth has none."""
    return "super-resolution" in remedies and resolution is not None


def _numbers(plan: Study) -> dict[str, list]:
    """The target contrasts that are given by theta, eta and norm."""
    return {contrast: list(target) for contrast, target in plan.targets if not isinstance(target, str)}


def _harmonize(
    plan: Study,
    subject: Subject,
    together: Sequence[_Harmonization],
    resolution: Resolution | None,
    removable: bool,
) -> None:
    """Compute what is missing of harmonizations of one subject at one resolution."""
    left = {}
    for number, one in enumerate(together):
        anew = functools.partial(_harmonize, plan, subject, [one], resolution, removable=False)
        left[str(number)] = cache.missing_of(one.paths, one.key, anew if removable else None)
    cases = {str(number): one for number, one in enumerate(together) if left[str(number)]}
    if not cases:
        return
    wanted = {contrast for case in cases for contrast in left[case]}
    aims = {contrast: aim for contrast, aim in targets(plan).items() if contrast in wanted}
    geometries = {
        case: _geometry(one.orientations, resolution)
        for case, one in cases.items()
        if "fusion" in one.remedies
    }
    results = models.harmonizer(plan).harmonize_all(
        _sources(plan, subject, cases, resolution),
        aims,
        **together[0].settings,
        geometries=geometries,
        details=True,
    )
    for case, result in results:
        one = cases[case]
        work = functools.partial(_images, plan, one, resolution, result)
        missing = {contrast: one.paths[contrast] for contrast in left[case]}
        cache.compute(missing, one.key, one.parents, work)


def _sources(plan, subject, together: Mapping[str, _Harmonization], resolution) -> dict[str, dict]:
    """Case -> contrast -> source, as the harmonizer takes it: the same one in all cases that share it."""

    @functools.cache
    def source(contrast, orientation, resolved):
        return _encoding(plan, subject, contrast, orientation, resolution, resolved)

    return {
        case: {
            contrast: source(
                contrast, orientation, orientation != "3D" and _resolved(one.remedies, resolution)
            )
            for contrast, orientation in one.orientations.items()
        }
        for case, one in together.items()
    }


def _images(plan: Study, one: _Harmonization, resolution, result, missing: list[str]) -> Iterator:
    """The images of a harmonization for their files."""
    device, options = models.harmonizer(plan).device, models.network_options(plan)
    numbers = _numbers(plan)
    facts = {
        "Experiment": one.experiment,
        "SourceOrientations": one.orientations,
        **({"Remedies": list(one.remedies)} if one.remedies else {}),
        "Transform": plan.transform,
        **({"Targets": numbers} if numbers else {}),
        "Harmonization": {
            **one.settings,
            **options,
            "compiled": options["compiled"] and device == "cpu",
            "device": device,
            "weights": one.weights,
            "weights_file": Path(plan.weights).name,
        },
        **(_resolution(resolution) if resolution else {}),
    }
    for contrast in missing:
        volume, affine = visited(plan, result.images[contrast], grid.AFFINE)
        yield volume, affine, {**facts, "Attention": _attention(result, contrast)}


def _attention(result, target: str) -> dict:
    """Mean and spread of the weights over the slices, each with the weight of the brain that it shows: nearly
    empty ones say little."""
    summary = {}
    for plane, weights in result.attention[target].items():
        known = np.isfinite(weights).all(axis=1)
        stack = np.moveaxis(result.unfused[target][plane], AXIS[plane], 0)
        pixels = np.count_nonzero(stack[known], axis=(1, 2))
        mean = np.average(weights[known], axis=0, weights=pixels)
        sd = np.sqrt(np.average((weights[known] - mean) ** 2, axis=0, weights=pixels))
        rows = zip(result.sources, mean.astype(float).round(6), sd.astype(float).round(6), strict=True)
        summary[plane] = {source: {"Mean": m, "SD": d} for source, m, d in rows}
    return summary


def _harmonized_otherwise(
    plan: Study,
    subject: Subject,
    experiment: str,
    resolution: Resolution | None,
    repeat: bool,
    arm: str,
) -> dict[str, Path]:
    """`harmonized` with another harmonizer than HACA3, which sees whole volumes."""
    remedies = plan.remedies_in(arm, experiment)
    resolved = _resolved(remedies, resolution)
    inputs = source_images(plan, subject, experiment, resolution, resolved)
    aims = target_images(plan)
    paths = _harmonized_paths(plan, subject, experiment, resolution, remedies, repeat)
    masks = [
        participants.cohort(plan, person)["mask"] for person in (subject, participants.target_subject(plan))
    ]
    parents = [*inputs.values(), *aims.values(), *masks]
    identity = protocol.identity(plan.harmonizer)
    orientations = plan.sources(experiment)
    parameters = {"harmonizer": identity, "again": repeat}
    if plan.slice_step > 1:
        parameters |= {"plane": plan.reconstruction[0], "slice_step": plan.slice_step}
    key = cache.key("other harmonizers", parents, parameters)

    def work(missing):
        sources = {
            contrast: _given(plan, subject, contrast, orientation, resolution, resolved)
            for contrast, orientation in orientations.items()
        }
        tool = protocol.load(plan.harmonizer)
        if isinstance(plan.harmonizer, Program):
            name = paths[missing[0]].name.removesuffix(".nii.gz").rpartition("_")[0]
            log = folders.folder(plan) / "report" / "programs" / f"{name}.log"
            tool = dataclasses.replace(tool, log=log)
        images = protocol.check_images(plan.harmonizer_name, tool.harmonize(sources, _given_targets(plan)))
        facts = {
            "Experiment": experiment,
            "SourceOrientations": orientations,
            **({"Remedies": list(remedies)} if remedies else {}),
            "Transform": plan.transform,
            "Harmonization": {"harmonizer": identity, "slice_step": plan.slice_step},
            **(_resolution(resolution) if resolution else {}),
        }
        for contrast in missing:
            yield *visited(plan, images[contrast], grid.AFFINE), facts

    cache.compute(paths, key, parents, work, _removable(plan))
    return paths


def _geometry(orientations: dict[str, str], resolution: Resolution) -> dict:
    """Contrast -> how the slices of the source were acquired."""
    from helpers.haca3 import Acquisition

    known = {o: Acquisition(o, resolution) for o in orientations.values() if o != "3D"}
    return {contrast: known.get(orientation) for contrast, orientation in orientations.items()}


def target_images(plan: Study) -> dict[str, Path]:
    """Contrast -> path of the image that says how harmonized images look; a contrast given by theta and eta
    has none."""
    given = [contrast for contrast, target in plan.targets if isinstance(target, str)]
    contrasts = given if plan.targets else CONTRASTS
    return {
        contrast: participants.cohort(plan, participants.target_subject(plan))[contrast]
        for contrast in contrasts
    }


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


def _acquisition(orientation: str, resolution: Resolution) -> dict:
    return {"MRAcquisitionType": "2D", "Orientation": orientation, **_resolution(resolution)}


def _resolution(resolution: Resolution) -> dict:
    return {
        "SliceThickness": resolution.thickness_mm,
        "SpacingBetweenSlices": resolution.separation_mm,
        "Resolution": (
            f"simulated 2D slices of {resolution.thickness_mm:g} mm with gaps of {resolution.gap_mm:g} mm"
        ),
    }


@functools.cache
def targets(plan: Study) -> dict:
    """What defines the target contrasts: theta, eta and intensity scale of the target subject's images, or of
    those given."""
    from helpers import haca3

    images = target_images(plan)
    aims = {
        contrast: haca3.Target(np.float32(numbers[:2]), np.float32(numbers[2:4]), numbers[4])
        for contrast, numbers in _numbers(plan).items()
    }
    weights = models.checkpoint_hash(models.checkpoints(plan)[0])
    path = folders.root(plan) / "encodings" / f"targets-{weights[:8]}.npz"
    parameters = {
        "model": weights,
        **models.network_options(plan),
    }
    key = cache.key("harmonization", images.values(), parameters)
    if not cache.is_done(path, key):
        result = {
            contrast: models.harmonizer(plan).target(volumes.read(image)[0])
            for contrast, image in images.items()
        }
        arrays = {
            f"{contrast} {name}": value
            for contrast, target in result.items()
            for name, value in vars(target).items()
        }
        cache.write_arrays(path, arrays, key)
    arrays = cache.read_arrays(path)
    for contrast in images:
        aims[contrast] = haca3.Target(
            arrays[f"{contrast} theta"], arrays[f"{contrast} eta"], float(arrays[f"{contrast} norm"])
        )
    return {contrast: aims[contrast] for contrast in CONTRASTS}


def _encoding(
    plan: Study,
    subject: Subject,
    contrast: str,
    orientation: str,
    resolution: Resolution | None,
    resolved: bool,
):
    """A source as HACA3 takes it: of a preview encoded once, as long as this process remembers it.

    Of a whole volume in three planes that would take 0.5 GB of memory: it is encoded slice by slice.
    """
    path = _source_file(plan, subject, contrast, orientation, resolution, resolved)
    if orientation == "3D":  # one image, whatever the stacks beside it
        resolution, resolved = None, False
    source = (plan, subject, contrast, orientation, resolution, resolved)
    if plan.slice_step > 1:
        return _encoded_slices(*source, version=cache.content_hash(path))
    return models.harmonizer(plan).prepare(source_volume(*source))


def source_volume(
    plan: Study,
    subject: Subject,
    contrast: str,
    orientation: str,
    resolution: Resolution | None,
    resolved: bool = False,
) -> np.ndarray:
    """A source as a whole volume."""
    if orientation == "3D":
        return cache.read_volume(participants.cohort(plan, subject)[contrast])[0]
    return registered_volume(plan, subject, contrast, orientation, resolution, resolved=resolved)


def _given(
    plan: Study,
    subject: Subject,
    contrast: str,
    orientation: str,
    resolution: Resolution | None,
    resolved: bool,
):
    """A source as another harmonizer than HACA3 takes it: the brain, whole, or what the harmonizer's own
    `encode` makes of it."""
    path = _source_file(plan, subject, contrast, orientation, resolution, resolved)
    if orientation == "3D":  # one image, whatever the stacks beside it
        resolution, resolved = None, False
    mask = participants.cohort(plan, subject)["mask"]
    versions = (cache.content_hash(path), cache.content_hash(mask))
    return _given_version(plan, subject, contrast, orientation, resolution, resolved, versions)


# 12: the three 3D images and the nine stacks of one resolution, 38 MB each.
@functools.lru_cache(maxsize=12)
def _given_version(plan: Study, subject, contrast, orientation, resolution, resolved, versions):
    image = source_volume(plan, subject, contrast, orientation, resolution, resolved)
    image = _brain_of(image, participants.cohort(plan, subject)["mask"])
    encode = getattr(protocol.load(plan.harmonizer), "encode", None)
    return encode(image) if encode else image


@functools.lru_cache(maxsize=1)
def _given_targets(plan: Study) -> dict[str, np.ndarray]:
    mask = participants.cohort(plan, participants.target_subject(plan))["mask"]
    return {
        contrast: _brain_of(cache.read_volume(path)[0], mask)
        for contrast, path in target_images(plan).items()
    }


def _brain_of(volume: np.ndarray, mask: Path) -> np.ndarray:
    """A volume that is 0 outside the brain, and cannot be changed by those who share it."""
    brain = np.where(cache.read_volume(mask)[0] > 0, volume, np.float32(0))
    brain.setflags(write=False)
    return brain


@functools.lru_cache(maxsize=33)
def _encoded_slices(plan: Study, *source, version):
    # Remembered for this version of the file only.
    # 33: the three 3D images and the nine stacks of one resolution, of these super-resolved as well, and
    # another network's of the former, 1 MB a slice. Who goes through Table 1 resolution by resolution encodes
    # each source once.
    return models.harmonizer(plan).encode(source_volume(plan, *source), plan.reconstruction, plan.slice_step)
