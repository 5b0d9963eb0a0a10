"""Segmentations of a study's images as files that are computed when they are missing: labels of tissues and
lesions, and for simulated subjects the exact ones."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from helpers import grid, layout, volumes
from helpers.analysis import downstream
from helpers.cohort import phantom
from helpers.pipeline import cache, folders, harmonization, participants, steps
from helpers.study import GROUND_TRUTH, Resolution
from helpers.study.file import Study
from helpers.study.subjects import SimulatedSubject, Subject

#: Label -> tissues of `helpers.cohort.phantom` that it stands for.
_EXACT = {
    downstream.FLUID: ("VCSF", "CSF"),
    downstream.GREY: ("CGM", "SGM", "CBM"),
    downstream.WHITE: ("WM", "lesion"),
}

#: Arm of what HACA3 gets -> what its segmentations are called.
_INPUTS = {"input": "input", "super-resolved input": "superResolvedInput"}


def arms(
    plan: Study, subject: Subject, experiment: str, resolution: Resolution | None
) -> dict[str, dict[str, Path]]:
    """Arm -> contrast -> image, for the arms of the score table; of the ground truth also itself, as
    ``harmonized``.

    An arm that has no T1w or no FLAIR, such as the input without a dropped contrast, is left out.
    """
    row = (plan, subject, experiment, resolution)
    if experiment == GROUND_TRUTH:
        outputs = {
            "harmonized": harmonization.harmonized(*row),
            "ceiling": harmonization.harmonized(*row, repeat=True),
        }
    else:
        outputs = {arm: harmonization.harmonized(*row, arm=arm) for arm in plan.arms}
        if "super-resolution" in plan.remedies:
            outputs["super-resolved input"] = steps.source_images(*row, resolved=True)
    outputs["input"] = steps.source_images(*row)
    return {arm: images for arm, images in outputs.items() if {"T1w", "FLAIR"} <= set(images)}


def segmented(
    plan: Study,
    subject: Subject,
    experiment: str,
    resolution: Resolution | None,
    arm: str,
    images: Mapping[str, Path],
) -> Path:
    """Labels of tissues and lesions in the T1w and FLAIR images of an arm, inside the subject's brain mask.

    A preview's hold the visited slices only.

    Raises
    ------
    ValueError
        Naming the image in which there are no tissues to be told apart.
    """
    # Beside the harmonized images, and called like them; HACA3's input is another in each experiment.
    path = images["FLAIR"].with_name(images["FLAIR"].name.replace("_FLAIR.", "_dseg."))
    if arm in _INPUTS:
        how = {"rec": experiment, "res": resolution.slug if resolution else None}
        path = layout.image(folders.root(plan), subject, "dseg", desc=_INPUTS[arm], **how)
    inputs = [images["T1w"], images["FLAIR"], participants.cohort(plan, subject)["mask"]]

    def work(_):
        (t1w, affine), (flair, _), (brain, _) = (
            steps.visited(plan, *cache.read_volume(file)) for file in inputs
        )
        try:
            tissue = downstream.segment_tissue(t1w, affine, brain > 0)
            lesions = downstream.segment_lesions(flair, tissue, affine)
        except ValueError as error:
            raise ValueError(f"{images['T1w']}: {error}") from None
        yield np.where(lesions, np.uint8(downstream.LESION), tissue), affine, {"Labels": _LABELS}

    # Beside harmonized images that are removed (`helpers.runner.removal`) labels are removed as well.
    key, removable = cache.key("downstream", inputs, _visited(plan)), plan.keep == "tables"
    cache.compute({"dseg": path}, key, inputs, work, removable)
    return path


def exact(plan: Study, subject: SimulatedSubject) -> Path:
    """Labels of a simulated subject as it was made, by the tissue that has most of a voxel; in the sidecar
    the volumes of its tissues, fractions of voxels and all, as ``VolumesMl``."""
    path = layout.image(folders.root(plan), subject, "dseg", desc="exact")
    mask = participants.cohort(plan, subject)["mask"]

    def work(_):
        fractions = {
            name: steps.visited(plan, part, grid.AFFINE)
            for name, part in participants.person(subject.number).fractions.items()
        }
        affine = fractions["WM"][1]
        parts = {label: sum(fractions[tissue][0] for tissue in names) for label, names in _EXACT.items()}
        labels = 1 + np.argmax([parts[label] for label in sorted(parts)], axis=0).astype(np.uint8)
        labels[sum(parts.values()) <= 0.5] = 0
        lesion, ventricles = fractions["lesion"][0], fractions["VCSF"][0]
        labels[lesion >= 0.5] = downstream.LESION
        shares = {"grey": parts[2], "white": parts[3], "fluid": parts[1]}
        shares |= {"lesion": lesion, "ventricles": ventricles}
        voxel_ml = abs(np.linalg.det(affine[:3, :3])) / 1e3
        volumes_ml = {
            name: round(float(share.sum(dtype=float) * voxel_ml), 6) for name, share in shares.items()
        }
        yield labels, affine, {"Labels": _LABELS, "VolumesMl": volumes_ml}

    cache.compute({"dseg": path}, cache.key("cohort", [mask], _visited(plan)), [mask], work)
    return path


_LABELS = {
    "fluid": downstream.FLUID,
    "grey matter": downstream.GREY,
    "white matter": downstream.WHITE,
    "lesion": downstream.LESION,
}


def _visited(plan: Study) -> dict:
    return {"axis": steps.preview_axis(plan), "slice_step": plan.slice_step}


def measures(plan: Study, reference: Path, other: Path) -> list[dict]:
    """What a segmentation says against another.

    Returns
    -------
    list of dict
        ``measure``, ``value``, ``expected`` and ``error_pct``. Of volumes (``lesion_ml``, ``grey_ml`` …): the
        volume, that of the reference, and the difference. Of ``lesion_dice``: Dice's coefficient, 1, and what
        is lacking. Of ``missed_small`` and so on: lesions of the reference that are missed, all that it has,
        and the share. Of ``false_lesions``: lesions that the reference does not have, all that were found,
        and the share. Of a preview volumes and Dice's coefficient only.
    """
    (then, affine), (now, _) = cache.read_volume(reference), cache.read_volume(other)
    ventricles, _ = steps.visited(plan, downstream.ventricle_region(phantom.anatomy()["VCSF"]), grid.AFFINE)
    known = volumes.read_sidecar(reference).get("VolumesMl")
    expected = known or downstream.volumes_ml(then, affine, ventricles)
    volumes_ml = downstream.volumes_ml(now, affine, ventricles)
    rows = [
        (f"{name}_ml", volumes_ml[name], expected[name], volumes_ml[name] - expected[name])
        for name in volumes_ml
    ]
    lesions, others = then == downstream.LESION, now == downstream.LESION
    agreement = downstream.dice(lesions, others)
    rows.append(("lesion_dice", agreement, 1.0, agreement - 1))
    if downstream.gap_axis(affine) is None:
        for name, (total, part) in downstream.detect_lesions(lesions, others, affine).items():
            rows.append((f"missed_{name}" if name != "false" else "false_lesions", part, total, part))
    return [
        {
            "contrast": "FLAIR" if "lesion" in name or "missed" in name else "T1w",
            "measure": name,
            "value": value,
            "expected": total,
            "error_pct": 100 * error / total if total else np.nan,
        }
        for name, value, total, error in rows
    ]


def lesion_panels(plan: Study, subject: Subject, experiment: str) -> list[dict]:
    """A slice of the harmonized FLAIR images of an experiment, with the lesions found and missed in it.

    It is the slice that shows most of what is missed at the coarsest resolution.

    Returns
    -------
    list of dict
        Of the 3D images, the finest and the coarsest resolution, as
        `helpers.analysis.downstream.lesion_panels`.
    """
    ends = sorted(plan.resolutions, key=lambda resolution: resolution.separation_mm)
    ends = list(dict.fromkeys((ends[0], ends[-1])))
    rows = [(GROUND_TRUTH, None), *((experiment, resolution) for resolution in ends)]
    flairs, labels = [], []
    for row in rows:
        images = harmonization.harmonized(plan, subject, *row)
        flairs.append(cache.read_volume(images["FLAIR"])[0])
        path = segmented(plan, subject, *row, "harmonized", images)
        labels.append(cache.read_volume(path)[0] == downstream.LESION)
    affine = cache.read_volume(path)[1]
    return downstream.lesion_panels(flairs, labels, affine, [row[1] for row in rows], plan.reconstruction[0])
