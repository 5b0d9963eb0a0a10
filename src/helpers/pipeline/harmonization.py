"""The harmonized images of a study as files that are computed when they are missing.

HACA3 makes them here; other harmonizers do in `helpers.pipeline.other_harmonizers`.
"""

import collections
import dataclasses
import functools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from helpers import grid, layout, volumes
from helpers.grid import AXIS
from helpers.pipeline import cache, folders, models, other_harmonizers, participants, steps
from helpers.study import CONTRASTS, Resolution
from helpers.study.file import Study
from helpers.study.subjects import Subject

#: Remedies -> what images that were harmonized with them are called.
_HARMONIZED = {
    (): "harmonized",
    ("super-resolution",): "harmonizedSuperResolved",
    ("fusion",): "harmonizedResolutionAware",
    ("super-resolution", "fusion"): "harmonizedBoth",
    ("training",): "harmonizedResolutionTrained",
}


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
        remedies = plan.remedies_in(arm, experiment)
        paths = _harmonized_paths(plan, subject, experiment, resolution, remedies, repeat)
        other_harmonizers.harmonize(plan, subject, experiment, resolution, remedies, repeat, paths)
        return paths
    one = _harmonization(plan, subject, experiment, resolution, arm, repeat)
    _harmonize(models.with_network(plan, one.remedies), subject, [one], resolution, steps.removable(plan))
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
        groups[
            models.with_network(plan, one.remedies), steps.super_resolves(one.remedies, resolution)
        ].append(one)
    for (network, _), some in groups.items():
        _harmonize(network, subject, some, resolution, steps.removable(plan))


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
    resolved = steps.super_resolves(remedies, resolution)
    inputs = steps.source_images(plan, subject, experiment, resolution, resolved)
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
    parents = [*inputs.values(), *participants.target_images(plan).values()]
    numbers = _numeric_targets(plan)
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


def _numeric_targets(plan: Study) -> dict[str, list]:
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
        _encoded_sources(plan, subject, cases, resolution),
        aims,
        **together[0].settings,
        geometries=geometries,
        details=True,
    )
    for case, result in results:
        one = cases[case]
        work = functools.partial(_output_images, plan, one, resolution, result)
        missing = {contrast: one.paths[contrast] for contrast in left[case]}
        cache.compute(missing, one.key, one.parents, work)


def _encoded_sources(plan, subject, together: Mapping[str, _Harmonization], resolution) -> dict[str, dict]:
    """Case -> contrast -> source, as the harmonizer takes it: the same one in all cases that share it."""
    encoding = functools.cache(functools.partial(_encoding, plan, subject))
    return {
        case: {
            source.contrast: encoding(source)
            for source in steps.sources(
                plan, one.experiment, resolution, steps.super_resolves(one.remedies, resolution)
            )
        }
        for case, one in together.items()
    }


def _output_images(plan: Study, one: _Harmonization, resolution, result, missing: list[str]) -> Iterator:
    """The images of a harmonization for their files."""
    device, options = models.harmonizer(plan).device, models.network_options(plan)
    numbers = _numeric_targets(plan)
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
        **(steps.resolution_facts(resolution) if resolution else {}),
    }
    for contrast in missing:
        volume, affine = steps.visited(plan, result.images[contrast], grid.AFFINE)
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


def _geometry(orientations: dict[str, str], resolution: Resolution) -> dict:
    """Contrast -> how the slices of the source were acquired."""
    from helpers.haca3 import Acquisition

    known = {o: Acquisition(o, resolution) for o in orientations.values() if o != "3D"}
    return {contrast: known.get(orientation) for contrast, orientation in orientations.items()}


@functools.cache
def targets(plan: Study) -> dict:
    """What defines the target contrasts: theta, eta and intensity scale of the target subject's images, or of
    those given."""
    from helpers import haca3

    images = participants.target_images(plan)
    aims = {
        contrast: haca3.Target(np.float32(numbers[:2]), np.float32(numbers[2:4]), numbers[4])
        for contrast, numbers in _numeric_targets(plan).items()
    }
    weights = models.checkpoint_hash(models.checkpoints(plan)[0])
    path = folders.root(plan) / "encodings" / f"targets-{weights[:8]}.npz"
    parameters = {"model": weights, **models.network_options(plan)}
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


def _encoding(plan: Study, subject: Subject, source: steps.Source):
    """A source as HACA3 takes it: of a preview encoded once, as long as this process remembers it.

    Of a whole volume in three planes that would take 0.5 GB of memory: it is encoded slice by slice.
    """
    if plan.slice_step > 1:
        version = cache.content_hash(steps.source_file(plan, subject, source))
        return _encoded_slices(plan, subject, source, version)
    return models.harmonizer(plan).prepare(steps.source_volume(plan, subject, source))


@functools.lru_cache(maxsize=33)
def _encoded_slices(plan: Study, subject: Subject, source: steps.Source, version: str):
    # Remembered for this version of the file only. 33: the three 3D images and the nine stacks of one
    # resolution, of these super-resolved as well, and another network's of the former, 1 MB a slice. Who goes
    # through Table 1 resolution by resolution encodes each source once.
    volume = steps.source_volume(plan, subject, source)
    return models.harmonizer(plan).encode(volume, plan.reconstruction, plan.slice_step)
