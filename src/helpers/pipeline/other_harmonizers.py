"""The harmonized images of a study by another harmonizer than HACA3, which is given whole volumes."""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from helpers import grid
from helpers.harmonizers import protocol
from helpers.pipeline import cache, folders, participants, steps
from helpers.study import Resolution
from helpers.study.file import Study
from helpers.study.program import Program
from helpers.study.subjects import Subject


def harmonize(
    plan: Study,
    subject: Subject,
    experiment: str,
    resolution: Resolution | None,
    remedies: Sequence[str],
    repeat: bool,
    paths: Mapping[str, Path],
) -> None:
    """Compute what is missing of `helpers.pipeline.harmonization.harmonized`, whose files are `paths`."""
    sources = steps.sources(plan, experiment, resolution, steps.super_resolves(remedies, resolution))
    inputs = [steps.source_file(plan, subject, source) for source in sources]
    masks = [
        participants.cohort(plan, person)["mask"] for person in (subject, participants.target_subject(plan))
    ]
    parents = [*inputs, *participants.target_images(plan).values(), *masks]
    identity = protocol.identity(plan.harmonizer)
    orientations = plan.sources(experiment)
    parameters = {"harmonizer": identity, "again": repeat}
    if plan.slice_step > 1:
        parameters |= {"plane": plan.reconstruction[0], "slice_step": plan.slice_step}
    key = cache.key("other harmonizers", parents, parameters)

    def work(missing):
        brains = {source.contrast: _source_brain(plan, subject, source) for source in sources}
        tool = protocol.load(plan.harmonizer)
        if isinstance(plan.harmonizer, Program):
            name = paths[missing[0]].name.removesuffix(".nii.gz").rpartition("_")[0]
            log = folders.folder(plan) / "report" / "programs" / f"{name}.log"
            tool = dataclasses.replace(tool, log=log)
        images = protocol.check_images(plan.harmonizer_name, tool.harmonize(brains, _target_brains(plan)))
        facts = {
            "Experiment": experiment,
            "SourceOrientations": orientations,
            **({"Remedies": list(remedies)} if remedies else {}),
            "Transform": plan.transform,
            "Harmonization": {"harmonizer": identity, "slice_step": plan.slice_step},
            **(steps.resolution_facts(resolution) if resolution else {}),
        }
        for contrast in missing:
            yield *steps.visited(plan, images[contrast], grid.AFFINE), facts

    cache.compute(paths, key, parents, work, steps.removable(plan))


def _source_brain(plan: Study, subject: Subject, source: steps.Source):
    """A source as another harmonizer takes it: the brain, whole, or what the harmonizer's own `encode` makes
    of it."""
    path = steps.source_file(plan, subject, source)
    mask = participants.cohort(plan, subject)["mask"]
    versions = (cache.content_hash(path), cache.content_hash(mask))
    return _load_source_brain(plan, subject, source, versions)


# 12: the three 3D images and the nine stacks of one resolution, 38 MB each.
@functools.lru_cache(maxsize=12)
def _load_source_brain(plan: Study, subject: Subject, source: steps.Source, versions: tuple):
    image = steps.source_volume(plan, subject, source)
    image = _brain_of(image, participants.cohort(plan, subject)["mask"])
    encode = getattr(protocol.load(plan.harmonizer), "encode", None)
    return encode(image) if encode else image


@functools.lru_cache(maxsize=1)
def _target_brains(plan: Study) -> dict[str, np.ndarray]:
    mask = participants.cohort(plan, participants.target_subject(plan))["mask"]
    return {
        contrast: _brain_of(cache.read_volume(path)[0], mask)
        for contrast, path in participants.target_images(plan).items()
    }


def _brain_of(volume: np.ndarray, mask: Path) -> np.ndarray:
    """A volume that is 0 outside the brain, and cannot be changed by those who share it."""
    brain = np.where(cache.read_volume(mask)[0] > 0, volume, np.float32(0))
    brain.setflags(write=False)
    return brain
