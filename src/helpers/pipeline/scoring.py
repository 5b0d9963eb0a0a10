"""The tables of a study: scores, frequencies, attention, registration errors, one CSV each, and those of
other studies."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd

from helpers import grid, volumes
from helpers.grid import AXIS
from helpers.pipeline import cache, folders, harmonization, participants, segmentations, steps
from helpers.study import (
    CONTRASTS,
    GROUND_TRUTH,
    ONE_ORIENTATION,
    ORIENTATIONS,
    Resolution,
    sources,
)
from helpers.study.file import Study
from helpers.study.subjects import Subject
from helpers.volumes.files import write_bytes


def scores(plan: Study, subject: Subject, experiment: str) -> pd.DataFrame:
    """Score one experiment at every resolution; one CSV per resolution is kept.

    Arms: ``harmonized`` against the harmonized 3D images, ``input`` (no harmonizer: the registered
    image against the 3D image), and, for the ground truth itself, ``ceiling`` (two ground truths of
    different anatomy seeds). With `Study.remedies` the others of `helpers.study.ARMS`, and ``super-resolved
    input``. Each arm's data range is the maximum of its reference.

    Returns
    -------
    DataFrame
        One row per resolution, contrast, arm and region. A dropped contrast has no source, so no arm
        ``input``; its orientation is that of Table 1.
    """
    resolutions = [None] if experiment == GROUND_TRUTH else plan.resolutions
    return pd.concat(
        [_scores(plan, subject, experiment, resolution) for resolution in resolutions], ignore_index=True
    )


def _scores(plan: Study, subject: Subject, experiment: str, resolution: Resolution | None) -> pd.DataFrame:
    from helpers.analysis import metrics

    slug = f"_res-{resolution.slug}" if resolution else ""
    path = folders.root(plan) / "tables" / f"{subject.name}_exp-{experiment}{slug}_scores.csv"
    mask, truth = (
        participants.cohort(plan, subject)["mask"],
        harmonization.harmonized(plan, subject, GROUND_TRUTH, None),
    )
    scored = harmonization.harmonized(plan, subject, experiment, resolution, repeat=resolution is None)
    row = (plan, subject, experiment, resolution)
    outputs = {"harmonized" if resolution else "ceiling": scored}
    inputs = {"input": steps.source_images(*row)}
    if resolution:
        outputs |= {arm: harmonization.harmonized(*row, arm=arm) for arm in plan.arms[1:]}
    if resolution and "super-resolution" in plan.remedies:
        inputs["super-resolved input"] = steps.source_images(*row, resolved=True)
    images = [image for part in (*outputs.values(), *inputs.values()) for image in part.values()]
    key = cache.key("scores", [mask, *truth.values(), *images], _how(plan))
    if not cache.is_done(path, key):
        brain = steps.visited(plan, *cache.read_volume(mask))[0] > 0
        rows = []
        for contrast in CONTRASTS:
            arms, known = {}, {}
            for arm, paths in outputs.items():
                if paths[contrast] not in known:  # Arms may share an image.
                    known[paths[contrast]] = metrics.score(
                        cache.read_volume(truth[contrast])[0],
                        volumes.read(paths[contrast])[0],
                        brain,
                        steps.preview_axis(plan),
                    )
                arms[arm] = known[paths[contrast]]
            for arm, given in inputs.items():
                if resolution and contrast in given:
                    arms[arm] = input_scores(plan, subject, contrast, given[contrast]).to_dict("records")
            about = _about(subject, experiment, resolution, contrast)
            rows += [
                {**about, "arm": arm, **row, **_how(plan)}
                for arm, rows_of_arm in arms.items()
                for row in rows_of_arm
            ]
        cache.write_table(path, pd.DataFrame(rows), key)
    return cache.read_table(path)


def input_scores(plan: Study, subject: Subject, contrast: str, image: Path) -> pd.DataFrame:
    """Score a source of HACA3 against the subject's 3D image: what is lost before the harmonizer does
    anything.

    Several experiments share a source, so each has a table of its own.
    """
    from helpers.analysis import metrics

    images = participants.cohort(plan, subject)
    path = folders.root(plan) / "tables" / "inputs" / (image.name.removesuffix(".nii.gz") + ".csv")
    seen = {"axis": steps.slice_axis(plan), "slice_step": plan.slice_step}
    key = cache.key("scores", [image, images[contrast], images["mask"]], seen)
    if not cache.is_done(path, key):
        arrays = [
            steps.visited(plan, *cache.read_volume(file))[0]
            for file in (images[contrast], image, images["mask"])
        ]
        cache.write_table(
            path,
            pd.DataFrame(metrics.score(arrays[0], arrays[1], arrays[2] > 0, steps.preview_axis(plan))),
            key,
        )
    return cache.read_table(path)


def frequencies(plan: Study, subject: Subject, experiment: str) -> pd.DataFrame:
    """What is left of each through-plane frequency in the sources of HACA3 and in what it makes of them; a
    CSV per resolution is kept.

    The ``input`` arm is compared with the 3D image, the ``harmonized`` arm with the harmonized 3D images, by
    `helpers.analysis.metrics.fourier_correlation` inside the brain. With ``anatomy="shared"`` an output and
    its ground truth have the noise of the anatomy code in common, and what they share of it correlates as if
    it were anatomy, at high frequencies above all. Only stacks have a through-plane direction, so a contrast
    whose source is 3D has no rows, and neither has one whose direction a preview skips, or one that was
    dropped.

    Returns
    -------
    DataFrame
        One row per resolution, contrast, arm and frequency.
    """
    parts = [_frequencies(plan, subject, experiment, resolution) for resolution in plan.resolutions]
    return pd.concat(parts, ignore_index=True)


def _frequencies(plan: Study, subject: Subject, experiment: str, resolution: Resolution) -> pd.DataFrame:
    from helpers.analysis import metrics

    path = (
        folders.root(plan)
        / "tables"
        / f"{subject.name}_exp-{experiment}_res-{resolution.slug}_frequencies.csv"
    )
    mask, truth = (
        participants.cohort(plan, subject)["mask"],
        harmonization.harmonized(plan, subject, GROUND_TRUTH, None),
    )
    harmonized, inputs = (
        harmonization.harmonized(plan, subject, experiment, resolution),
        steps.source_images(plan, subject, experiment, resolution),
    )
    key = cache.key("scores", [mask, *truth.values(), *harmonized.values(), *inputs.values()], _how(plan))
    if not cache.is_done(path, key):
        window, affine = metrics.brain_window(cache.read_volume(mask)[0] > 0), cache.read_volume(mask)[1]
        parts = []
        for contrast, orientation in plan.sources(experiment).items():
            if orientation == "3D" or (axis := AXIS[orientation]) == steps.preview_axis(plan):
                continue
            pairs = {
                "input": [
                    steps.visited(plan, *image)[0]
                    for image in (
                        cache.read_volume(participants.cohort(plan, subject)[contrast]),
                        volumes.read(inputs[contrast]),
                    )
                ],
                "harmonized": [cache.read_volume(truth[contrast])[0], volumes.read(harmonized[contrast])[0]],
            }
            for arm, pair in pairs.items():
                weight = steps.visited(plan, window, affine)[0]
                frequency, correlation = metrics.fourier_correlation(
                    *pair, weight, axis, steps.preview_axis(plan)
                )
                rows = {"arm": arm, "frequency_per_mm": frequency, "correlation": correlation}
                parts.append(
                    pd.DataFrame({**_about(subject, experiment, resolution, contrast), **rows, **_how(plan)})
                )
        columns = [
            *_about(subject, experiment, resolution, CONTRASTS[0]),
            "arm",
            "frequency_per_mm",
            "correlation",
            *_how(plan),
        ]
        cache.write_table(path, pd.concat(parts) if parts else pd.DataFrame(columns=columns), key)
    return cache.read_table(path)


def all_frequencies(plan: Study) -> pd.DataFrame:
    """`frequencies` of every subject in the experiments with one orientation (1a to 1c); written as
    ``tables/frequencies.csv``."""
    experiments = [name for name in plan.experiments if name in ONE_ORIENTATION]
    parts = [
        frequencies(plan, subject, experiment) for subject in plan.subjects for experiment in experiments
    ]
    return _gather(plan, "frequencies", parts)


def cutoffs(curves: pd.DataFrame) -> pd.DataFrame:
    """The frequency at which each curve of `all_frequencies` falls below 0.5: ``cutoff_per_mm``, a row per
    curve."""
    from helpers.analysis import metrics

    columns = [column for column in curves.columns if column not in ("frequency_per_mm", "correlation")]
    if curves.empty:
        return pd.DataFrame(columns=[*columns, "cutoff_per_mm"])
    groups = curves.groupby(columns, sort=False)[["frequency_per_mm", "correlation"]]
    rows = [
        (*names, metrics.cutoff(rows.frequency_per_mm.to_numpy(), rows.correlation.to_numpy()))
        for names, rows in groups
    ]
    return pd.DataFrame(rows, columns=[*columns, "cutoff_per_mm"])


def attention(plan: Study, subject: Subject, experiment: str) -> pd.DataFrame:
    """How much each source weighed in each harmonized image of one experiment, from the sidecars.

    Returns
    -------
    DataFrame
        One row per resolution, target contrast, reconstruction plane and source contrast: ``weight`` (mean
        over the slices, by the area of the brain in each) and ``weight_sd`` (over the slices). Empty with
        another harmonizer than HACA3, which has no attention.
    """
    if plan.harmonizer != "haca3":
        return pd.DataFrame()
    rows = []
    for resolution in [None] if experiment == GROUND_TRUTH else plan.resolutions:
        for target, path in harmonization.harmonized(plan, subject, experiment, resolution).items():
            for plane, weights in volumes.read_sidecar(path)["Attention"].items():
                for source in plan.given:
                    about = _about(subject, experiment, resolution, source)
                    about |= {"target": target, "plane": plane, "source": about.pop("contrast")}
                    rows.append(
                        {
                            **about,
                            "weight": weights[source]["Mean"],
                            "weight_sd": weights[source]["SD"],
                            **_how(plan),
                        }
                    )
    return pd.DataFrame(rows)


def all_attention(plan: Study) -> pd.DataFrame:
    """`attention` of every subject in every experiment and in the ground truth; written as
    ``tables/attention.csv``. With another harmonizer than HACA3 there is none, and nothing is written."""
    if plan.harmonizer != "haca3":
        return pd.DataFrame()
    parts = [
        attention(plan, subject, experiment)
        for subject in plan.subjects
        for experiment in (GROUND_TRUTH, *plan.experiments)
    ]
    return _gather(plan, "attention", parts)


def all_registrations(plan: Study) -> pd.DataFrame:
    """The registration error of every stack, from the sidecars; written as ``tables/registrations.csv``.

    Returns
    -------
    DataFrame
        One row per subject, contrast, orientation and resolution: ``registration_error_mm``, the mean
        displacement over the brain.
    """
    rows = []
    for subject in plan.subjects:
        for contrast, orientation in plan.acquisitions():
            for resolution in plan.resolutions:
                sidecar = volumes.read_sidecar(
                    steps.registered(plan, subject, contrast, orientation, resolution)
                )
                about = {
                    "subject": subject.table_value,
                    "contrast": contrast,
                    "orientation": orientation,
                    "resolution": resolution.label,
                }
                about |= {
                    "separation_mm": resolution.separation_mm,
                    "registration_error_mm": sidecar["RegistrationErrorMm"],
                }
                rows.append({**about, "transform": plan.transform, "seed": plan.seed})
    columns = [
        "subject",
        "contrast",
        "orientation",
        "resolution",
        "separation_mm",
        "registration_error_mm",
        "transform",
        "seed",
    ]
    return _gather(plan, "registrations", [pd.DataFrame(rows, columns=columns)])


def downstream(plan: Study, subject: Subject, experiment: str) -> pd.DataFrame:
    """Lesions and volumes in the images of one experiment at every resolution, against a reference; one CSV
    per resolution is kept.

    The reference ``3D`` is what the same rules find where all sources are 3D: in the harmonized images, for
    the arm ``input`` in the 3D images themselves. For simulated subjects there is also ``exact``, what is
    really there. Of the ground truth (`experiment` "3D") ``harmonized`` and ``input`` are compared with that
    alone.

    Returns
    -------
    DataFrame
        One row per resolution, arm, reference and measure: `helpers.pipeline.segmentations.measures`.
    """
    resolutions = [None] if experiment == GROUND_TRUTH else plan.resolutions
    return pd.concat(
        [_downstream(plan, subject, experiment, resolution) for resolution in resolutions], ignore_index=True
    )


def _downstream(
    plan: Study, subject: Subject, experiment: str, resolution: Resolution | None
) -> pd.DataFrame:
    slug = f"_res-{resolution.slug}" if resolution else ""
    path = folders.root(plan) / "tables" / f"{subject.name}_exp-{experiment}{slug}_downstream.csv"
    exact = {"exact": segmentations.exact(plan, subject)} if subject.simulated else {}
    known = {
        arm: segmentations.segmented(plan, subject, GROUND_TRUTH, None, arm, images)
        for arm, images in segmentations.arms(plan, subject, GROUND_TRUTH, None).items()
    }
    labelled = known
    if resolution:
        labelled = {
            arm: segmentations.segmented(plan, subject, experiment, resolution, arm, images)
            for arm, images in segmentations.arms(plan, subject, experiment, resolution).items()
        }
    pairs = {}
    for arm, labels in labelled.items():
        reference = known.get("input" if "input" in arm else "harmonized")
        references = {"3D": reference} if reference and reference != labels else {}
        pairs |= {(arm, name): (then, labels) for name, then in (references | exact).items()}
    images = [image for pair in pairs.values() for image in pair]
    key = cache.key("downstream", images, {**_how(plan), "pairs": [list(pair) for pair in pairs]})
    if not cache.is_done(path, key):
        rows = [
            {**_about(subject, experiment, resolution, row["contrast"]), "arm": arm, "reference": name, **row}
            for (arm, name), pair in pairs.items()
            for row in segmentations.measures(plan, *pair)
        ]
        cache.write_table(path, pd.DataFrame([{**row, **_how(plan)} for row in rows]), key)
    return cache.read_table(path)


def all_downstream(plan: Study) -> pd.DataFrame:
    """`downstream` of every subject, in the ground truth and in every experiment; written as
    ``tables/downstream.csv``."""
    parts = [
        downstream(plan, subject, experiment)
        for subject in plan.subjects
        for experiment in (GROUND_TRUTH, *plan.experiments)
    ]
    return _gather(plan, "downstream", parts)


def _gather(plan: Study, name: str, parts: list[pd.DataFrame]) -> pd.DataFrame:
    """Parts of a table that have rows, as one, written beside the study's other tables."""
    filled = [part for part in parts if len(part)]
    table = pd.concat(filled or parts[:1], ignore_index=True) if parts else pd.DataFrame()
    write_bytes(
        folders.root(plan) / "tables" / f"{name}.csv", table.to_csv(index=False, float_format="%.6f").encode()
    )
    return table


def _about(subject: Subject, experiment: str, resolution: Resolution | None, contrast: str) -> dict:
    return {
        "subject": subject.table_value,
        "experiment": experiment,
        "resolution": resolution.label if resolution else GROUND_TRUTH,
        "thickness_mm": resolution.thickness_mm if resolution else 1.0,
        "gap_mm": resolution.gap_mm if resolution else 0.0,
        "separation_mm": resolution.separation_mm if resolution else 1.0,
        "contrast": contrast,
        "orientation": sources(experiment)[contrast],
    }


def _how(plan: Study) -> dict:
    if plan.harmonizer != "haca3":
        # It sees whole volumes, so a plane matters to a preview alone: that is what is looked at.
        planes = plan.reconstruction if plan.slice_step > 1 else ORIENTATIONS
        return {
            "reconstruction": "+".join(planes),
            "transform": plan.transform,
            **dict.fromkeys(("anatomy", "mask"), "not used"),
            "slice_step": plan.slice_step,
            "seed": plan.seed,
            **({"dropped": "+".join(plan.dropped)} if plan.dropped else {}),
            "harmonizer": plan.harmonizer_name,
        }
    columns = ("transform", "anatomy", "mask", "slice_step", "seed")
    # Only where a study has them, so that tables, and the keys that hold this, stay what they were.
    rare = {"dropped": "+".join(plan.dropped)} if plan.dropped else {}
    return {
        "reconstruction": "+".join(plan.reconstruction),
        **{column: getattr(plan, column) for column in columns},
        **rare,
    }


def all_scores(plan: Study) -> pd.DataFrame:
    """The tidy score table of the whole study, made where it is missing; written as ``tables/scores.csv``."""
    parts = [
        scores(plan, subject, experiment)
        for subject in plan.subjects
        for experiment in (GROUND_TRUTH, *plan.experiments)
    ]
    return _gather(plan, "scores", parts)


def figure_2_panels(
    plan: Study, subject: Subject, examples: Mapping[str, tuple[str, Resolution | None]]
) -> dict[str, np.ndarray]:
    """The panels of figure 2: a slice of the T1w source and of the harmonized T1w image for each example.

    Parameters
    ----------
    examples : dict
        Label -> (experiment, resolution).

    Returns
    -------
    dict
        Title -> ndarray, 2D, upright, in units of the 95th percentile by which HACA3 scales a volume: that of
        the subject's 3D image for the originals, that of the target image for the harmonized ones; with
        another harmonizer than HACA3 that of the harmonized 3D image.
    """
    haca3 = plan.harmonizer == "haca3"
    truth = (
        () if haca3 else volumes.read(harmonization.harmonized(plan, subject, GROUND_TRUTH, None)["T1w"])[0]
    )
    scale = {
        "original": np.percentile(cache.read_volume(participants.cohort(plan, subject)["T1w"])[0], 95),
        "harmonized": harmonization.targets(plan)["T1w"].norm if haca3 else np.percentile(truth, 95),
    }
    panels = {"original": {}, "harmonized": {}}
    for label, (experiment, resolution) in examples.items():
        source = volumes.read(steps.source_images(plan, subject, experiment, resolution)["T1w"])
        panels["original"][label] = steps.visited(plan, *source)[0]
        panels["harmonized"][label] = volumes.read(
            harmonization.harmonized(plan, subject, experiment, resolution)["T1w"]
        )[0]
    middle = panels["original"]["HR"].shape[steps.slice_axis(plan)] // 2
    return {
        f"{row}, {label}": grid.upright(volume, plan.reconstruction[0], middle) / scale[row]
        for row, images in panels.items()
        for label, volume in images.items()
    }
