"""One's own BIDS data set: what is found in it, what is refused and how, and what may never happen."""

import gzip
import hashlib
import json
import os
import pickle
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import MappingProxyType

import nibabel as nib
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings, strategies as st

from helpers import grid, layout, registration, volumes
from helpers.acquisition import degradation
from helpers.analysis import judgement
from helpers.cohort import examination, origins, phantom, preparation
from helpers.pipeline import folders, harmonization, models, participants, scoring, steps
from helpers.runner import cli, execution, graph, log, run, status
from helpers.study import CONTRASTS, GROUND_TRUTH, Resolution, visited_slices
from helpers.study.file import Study
from helpers.study.subjects import ALL, OwnSubject, SimulatedSubject
from helpers.volumes.files import write_bytes

AFFINE = np.array([[-1.0, 0, 0, 60], [0, 1, 0, -60], [0, 0, 1, -60], [0, 0, 0, 1]])
SHAPE = (120, 120, 120)


@pytest.fixture(autouse=True)
def no_results_of_a_demo(tmp_path_factory, monkeypatch):
    """Results of this checkout, such as those of `make demo`, have no say where a study names no folder."""
    monkeypatch.setattr(layout, "DERIVATIVES", tmp_path_factory.mktemp("derivatives"))


def image(seed=0, shape=SHAPE, dtype=np.uint8):
    """A block as large as a brain: small as a file, since its pattern repeats."""
    values = np.random.default_rng(seed).integers(1, 200, 149)
    inner = [n * 3 // 4 for n in shape]
    volume = np.zeros(shape, dtype)
    pattern = values[sum(index * step for index, step in zip(np.indices(inner), (3, 5, 7))) % len(values)]
    volume[tuple(slice((n - m) // 2, (n - m) // 2 + m) for n, m in zip(shape, inner))] = pattern
    return volume


def save(path, volume, affine=AFFINE, change=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(volume, affine), path)
    if change:  # nibabel itself would mend the header when it saves.
        raw = path.read_bytes()
        raw = gzip.decompress(raw) if path.suffix == ".gz" else raw
        header = nib.Nifti1Header(raw[:348], check=False)
        change(header)
        raw = header.binaryblock + raw[348:]
        path.write_bytes(gzip.compress(raw) if path.suffix == ".gz" else raw)
    return path


def dataset(folder, labels=("01",), session=None):
    """A BIDS data set of small images, all different."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "dataset_description.json").write_text('{"Name": "mine", "BIDSVersion": "1.10.0"}')
    for label in labels:
        for contrast in CONTRASTS:
            name = f"sub-{label}" + (f"_ses-{session}" if session else "")
            seed = int(hashlib.sha256(f"{name}{contrast}".encode()).hexdigest()[:8], 16)
            save(folder.joinpath(*name.split("_"), "anat", f"{name}_{contrast}.nii.gz"), image(seed))
    return folder


def refused(tmp_path, capsys, text):
    """Run a study file that must be refused before anything starts; return the one line that says why."""
    (tmp_path / "mine.toml").write_text(
        f'bids_dir = "{tmp_path / "bids"}"\noutput_dir = "{tmp_path / "results"}"\n{text}\n'
    )
    assert cli.main(["run", str(tmp_path / "mine.toml")]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert not (tmp_path / "results").exists()
    return error


# ---------------------------------------------------------------- the study file


def test_a_study_of_ones_own_takes_everyone_unless_told_whom():
    assert Study(bids_dir="x").subjects == (ALL,)
    assert Study(bids_dir="x", subjects=["01", "p07_ses-2"]).literals()["subjects"] == ["01", "p07_ses-2"]
    assert Study().subjects == (SimulatedSubject(1),)


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"subjects": ["../x"]}, "subjects has '../x': accepted are labels of letters and digits"),
        ({"subjects": ["a b"]}, "subjects has 'a b'"),
        ({"subjects": ["ü"]}, "subjects has 'ü'"),
        (
            {"subjects": [1], "bids_dir": "x"},
            "subjects has 1, the number of a simulated subject: accepted with bids_dir are labels as text, "
            "such as '01'",
        ),
        (
            {"subjects": ["Sim01"], "bids_dir": "x"},
            "subjects has 'Sim01', as files of simulated subjects are named",
        ),
        ({"subjects": ["sim7_ses-2"]}, "subjects has 'sim7_ses-2', as files of simulated subjects are named"),
        (
            {"subjects": ["target"], "bids_dir": "x"},
            "subjects has 'target', as files of images given as targets are named",
        ),
        ({"subjects": ["TARGET_ses-1"]}, "as files of images given as targets are named"),
        (
            {"subjects": [True], "bids_dir": "x"},
            "subjects has True: accepted are whole numbers from 1, and with bids_dir labels as text "
            "(papermill",
        ),
        ({"subjects": [1, "01"]}, "not both"),
        ({"subjects": [1.5], "bids_dir": "x"}, "subjects has 1.5"),
        ({"bids_dir": 3}, "bids_dir is 3: accepted is a path as text"),
        ({"brain": "bet"}, "brain is 'bet': accepted are extract, keep"),
        ({"select": "run-1"}, "select is 'run-1': accepted is a table"),
        ({"select": {"PDw": "run-1"}}, "select is 'PDw': accepted are T1w, T2w, FLAIR"),
        ({"select": {"T1w": "../run-1"}}, "select.T1w is '../run-1': accepted are entities"),
        ({"targets": {"T1w": "a.nii.gz"}}, "targets has no T2w, FLAIR: accepted are all"),
        (
            {"targets": dict.fromkeys(CONTRASTS, {"theta": [1, 2], "eta": [1, 2]})},
            "accepted are the path of an image, or theta and eta",
        ),
        (
            {"targets": dict.fromkeys(CONTRASTS, {"theta": [1], "eta": [1, 2], "norm": 1})},
            "theta and eta, two numbers each",
        ),
        (
            {"targets": dict.fromkeys(CONTRASTS, {"theta": [1, 2], "eta": [1, 2], "norm": 0})},
            "norm, a number above 0",
        ),
    ],
)
def test_a_bad_value_is_named(fields, message):
    with pytest.raises(ValueError) as error:
        Study(**fields)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_a_study_of_ones_own_survives_the_trip_through_literals():
    target = {"theta": [0.1, 0.2], "eta": [0.3, 0.4], "norm": 300.0}
    plan = Study(
        bids_dir="x",
        subjects=["01"],
        select={"T1w": "run-1"},
        brain="keep",
        targets={"T1w": "t.nii.gz", "T2w": target, "FLAIR": target},
    )
    assert Study(**json.loads(json.dumps(plan.literals()))) == plan
    assert plan.literals()["targets"]["T2w"] == target
    assert hash(plan)


def test_seeds_of_numbered_subjects_are_their_numbers_and_no_label_has_them():
    assert [SimulatedSubject(n).seed for n in (1, 11, 100)] == [1, 11, 100]
    seeds = {OwnSubject(label).seed for label in ("1", "01", "p07", "p07_ses-1")}
    assert len(seeds) == 4
    assert min(seeds) >= 2**32
    # Golden: the motion of a label must be the same next year and on another machine.
    assert OwnSubject("p07").seed == 2**32 + 3427476158
    first, second = (
        registration.motion(0, subject.seed, "T1w", "axial")
        for subject in (OwnSubject("p07"), SimulatedSubject(1))
    )
    assert not np.allclose(first, second)


def test_every_notebook_of_a_study_of_ones_own_knows_its_parameters(tmp_path):
    target = save(tmp_path / "t.nii.gz", image())
    plan = Study(
        bids_dir=str(tmp_path),
        subjects=["01_ses-2", "p07"],
        targets=dict.fromkeys(CONTRASTS, str(target)),
        slice_step=1,
    )
    wanted = graph.tasks(plan)
    graph.check_parameters(wanted)
    names = [task.name for task in wanted]
    assert "00_cohort_sub-01_ses-2" in names
    assert "04_harmonization_sub-p07_res-3skip0" in names
    truth = next(task for task in wanted if task.name == "04_harmonization_sub-p07_exp-3D")
    assert "00_cohort_target" in truth.needs


def test_targets_given_as_numbers_need_no_image():
    plan = Study(targets=dict.fromkeys(CONTRASTS, {"theta": [1, 2], "eta": [3, 4], "norm": 5}))
    assert "00_cohort_target" not in [task.name for task in graph.tasks(plan)]
    assert participants.target_images(plan) == {}


# ---------------------------------------------------------------- the study


def test_a_subject_whose_images_turn_out_unfit_is_left_out_and_the_study_goes_on_with_the_others(
    tmp_path, monkeypatch, capsys
):
    dataset(tmp_path / "bids", ["01", "02"])
    plan = Study(bids_dir=str(tmp_path / "bids"), output_dir=str(tmp_path / "results"), experiments=["1a"])
    calls = []

    def execute_all(wanted, folder, where, before=MappingProxyType({}), remove=None):
        calls.append([task for task in wanted if task.name not in before])
        results = dict(before)
        for task in calls[-1]:
            error = "ValueError: clipped" if task.name == "00_cohort_sub-01" else None
            log.log(
                folder,
                event="failed" if error else "done",
                task=task.name,
                seconds=1,
                images=0,
                **({"error": error} if error else {}),
            )
            results[task.name] = execution.Execution(error, 1)
        return results

    monkeypatch.setattr(run, "execute_all", execute_all)
    monkeypatch.setattr(models, "check_models", lambda plan: None)
    outcome = run.run(plan)
    first, second = calls
    assert {task.name for task in first} == {"00_cohort_target", "00_cohort_sub-01", "00_cohort_sub-02"}
    assert {task.name for task in second} & {"01_slice_profiles", "04_harmonization_sub-02"}
    assert not [task for task in second if "sub-01" in task.name]
    (analysis,) = [task for task in second if task.name == "05_analysis"]
    assert analysis.parameters["changes"]["subjects"] == ["02"]
    graph.check_parameters(second)
    assert outcome.failed == {"00_cohort_sub-01": "ValueError: clipped"}
    assert outcome.skipped == []
    assert "<li>sub-01: ValueError: clipped</li>" in outcome.report.read_text()
    # What is told of it later agrees, before and after the study file's "all" has become labels.
    (tmp_path / "mine.toml").write_text(
        f'bids_dir = "{plan.bids_dir}"\noutput_dir = "{plan.output_dir}"\nexperiments = ["1a"]\n'
    )
    for command in (["status"], ["run", "--dry-run", "--only", "04*sub-02*"]):
        assert cli.main([*command, str(tmp_path / "mine.toml")]) == 0
        assert "00_cohort" in capsys.readouterr().out
    names = set(status.status(participants.check_cohort(plan)[0]).task)
    assert {"00_cohort_sub-01", "04_harmonization_sub-02"} <= names
    assert "02_degradation_sub-01" not in names


def test_results_are_not_written_into_the_data_set(tmp_path):
    folder = dataset(tmp_path / "bids")
    with pytest.raises(ValueError, match="output_dir is .*bids, which is bids_dir as well"):
        participants.check_cohort(Study(bids_dir=str(folder), output_dir=str(folder)))


# ---------------------------------------------------------------- what is found


def test_subjects_and_sessions_are_found(tmp_path):
    dataset(tmp_path, ["01", "p07"])
    dataset(tmp_path, ["02"], session="1")
    dataset(tmp_path, ["02"], session="B")
    found, left_out = layout.find_subjects(tmp_path, ["all"], {})
    assert list(found) == ["01", "02_ses-1", "02_ses-B", "p07"]
    assert left_out == {}
    assert found["02_ses-B"]["FLAIR"] == tmp_path / "sub-02" / "ses-B" / "anat" / "sub-02_ses-B_FLAIR.nii.gz"
    assert list(layout.find_subjects(tmp_path, ["02"], {})[0]) == ["02_ses-1", "02_ses-B"]
    assert list(layout.find_subjects(tmp_path, ["02_ses-B"], {})[0]) == ["02_ses-B"]
    assert (
        layout.image("r", OwnSubject("02_ses-B"), "T1w", desc="x").as_posix()
        == f"r/sub-02/ses-B/anat/sub-02_ses-B_space-{layout.SPACE}_desc-x_T1w.nii.gz"
    )


def test_several_runs_are_a_question_that_names_them_and_select_answers_it(tmp_path, capsys):
    folder = dataset(tmp_path / "bids")
    one = folder / "sub-01" / "anat" / "sub-01_T1w.nii.gz"
    one.rename(one.with_name("sub-01_acq-a_run-1_T1w.nii.gz"))
    save(one.with_name("sub-01_acq-a_run-2_T1w.nii.gz"), image(7))
    error = refused(tmp_path, capsys, "")
    assert (
        "sub-01 has 2 T1w images, sub-01_acq-a_run-1_T1w.nii.gz, sub-01_acq-a_run-2_T1w.nii.gz: say in the "
        "study which" in error
    )
    assert 'select = {T1w = "run-1"}' in error
    found, _ = layout.find_subjects(folder, ["all"], {"T1w": "run-2", "T2w": "run-2"})
    # Where there is only one, it is taken.
    assert [path.name for path in found["01"].values()] == [
        "sub-01_acq-a_run-2_T1w.nii.gz",
        "sub-01_T2w.nii.gz",
        "sub-01_FLAIR.nii.gz",
    ]


def test_a_subject_that_lacks_a_contrast_is_listed_and_left_out(tmp_path):
    dataset(tmp_path, ["01", "02", "03"])
    (tmp_path / "sub-02" / "anat" / "sub-02_FLAIR.nii.gz").unlink()
    wrong = tmp_path / "sub-03" / "anat" / "sub-03_T2w.nii.gz"
    wrong.rename(wrong.with_name("sub-03_T2w.mgz"))
    plan, left_out = participants.check_cohort(Study(bids_dir=str(tmp_path)))
    assert plan.subjects == (OwnSubject("01"),)
    assert (
        left_out["02"]
        == f'sub-02: no FLAIR in {tmp_path / "sub-02" / "anat"}: accepted in a study with dropped = ["FLAIR"]'
    )
    assert "no T2w (sub-03_T2w.mgz is no .nii or .nii.gz file)" in left_out["03"]


def test_a_subject_that_lacks_a_dropped_contrast_takes_part(tmp_path):
    dataset(tmp_path, ["01", "02", "03"])
    for label, contrast in (("01", "FLAIR"), ("03", "T2w")):
        (tmp_path / f"sub-{label}" / "anat" / f"sub-{label}_{contrast}.nii.gz").unlink()
    # Nor is there a question which of several is meant that nobody needs.
    save(tmp_path / "sub-02" / "anat" / "sub-02_run-2_FLAIR.nii.gz", image(7))
    plan, left_out = participants.check_cohort(Study(bids_dir=str(tmp_path), dropped=["FLAIR"]))
    assert plan.literals()["subjects"] == ["01", "02"]
    hint = 'accepted in a study with dropped = ["T2w", "FLAIR"]'
    assert left_out == {"03": f"sub-03: no T2w in {tmp_path / 'sub-03' / 'anat'}: {hint}"}
    assert set(participants.acquired(plan, OwnSubject("02"))) == {"T1w", "T2w"}
    assert participants.check_cohort(Study(bids_dir=str(tmp_path), dropped=["T2w", "FLAIR"]))[
        0
    ].subjects == tuple(map(OwnSubject, ("01", "02", "03")))


def test_nobody_is_told_to_drop_the_t1w(tmp_path):
    dataset(tmp_path, ["01", "02"])
    for contrast in ("T1w", "FLAIR"):
        (tmp_path / "sub-02" / "anat" / f"sub-02_{contrast}.nii.gz").unlink()
    assert participants.check_cohort(Study(bids_dir=str(tmp_path)))[1] == {
        "02": f"sub-02: no T1w, no FLAIR in {tmp_path / 'sub-02' / 'anat'}"
    }


def as_they_are(images, brain, seed):
    """Stands for the preparation of images that lie on HACA3's grid already, without background."""
    found = {contrast: volume for contrast, (volume, _) in images.items()}
    transforms, whole, findings = (dict.fromkeys(images, each) for each in (np.eye(4), 1.0, []))
    return preparation.Prepared(found, found["T1w"] > 0, transforms, whole, whole, findings)


@pytest.fixture
def without_flair(results_dir, tmp_path, monkeypatch):
    """A study of a data set whose subject has T1w and T2w only."""
    monkeypatch.setattr(preparation, "prepare", as_they_are)
    shared = Study(output_dir=str(results_dir))
    for contrast in ("T1w", "T2w"):
        path = tmp_path / "bids" / "sub-p1" / "anat" / f"sub-p1_{contrast}.nii.gz"
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(participants.cohort(shared, SimulatedSubject(1))[contrast], path)
    participants.cohort(shared, origins.TARGET_SUBJECT)
    shutil.copytree(results_dir / "sub-sim11", tmp_path / "results" / "sub-sim11")
    what = {"experiments": ["1b"], "resolutions": ["5||1.5"], "dropped": ["FLAIR"], "slice_step": 37}
    return participants.check_cohort(
        Study(bids_dir=str(tmp_path / "bids"), output_dir=str(tmp_path / "results"), **what)
    )[0]


@pytest.mark.slow
def test_a_data_set_without_flair_is_harmonized_without_it_to_all_three_contrasts(without_flair):
    plan, coarse = without_flair, Resolution(5, 1.5)
    scores, attention, curves = (
        scoring.all_scores(plan),
        scoring.all_attention(plan),
        scoring.all_frequencies(plan),
    )
    registrations = scoring.all_registrations(plan)
    arms = {arm: set(rows.contrast) for arm, rows in scores.groupby("arm")}
    assert arms == {"harmonized": set(CONTRASTS), "ceiling": set(CONTRASTS), "input": {"T1w", "T2w"}}
    assert set(scores.dropped) == {"FLAIR"}
    for column in (attention.source, curves.contrast, registrations.contrast):
        assert set(column) == {"T1w", "T2w"}
    np.testing.assert_allclose(attention.groupby(["experiment", "target"]).weight.sum(), 1, atol=1e-5)
    made = [path.name for path in (folders.folder(plan) / "sub-p1").rglob("*FLAIR.nii.gz")]
    assert made and all("desc-harmonized" in name for name in made)
    # As if HACA3 were called by hand, with what there is.
    for experiment, resolution, sources in (
        (
            "1b",
            coarse,
            {
                contrast: steps.registered_volume(plan, OwnSubject("p1"), contrast, "sagittal", coarse)
                for contrast in ("T1w", "T2w")
            },
        ),
        (
            GROUND_TRUTH,
            None,
            {
                contrast: volumes.read(participants.cohort(plan, OwnSubject("p1"))[contrast])[0]
                for contrast in ("T1w", "T2w")
            },
        ),
    ):
        paths = harmonization.harmonized(plan, OwnSubject("p1"), experiment, resolution)
        seed = volumes.read_sidecar(paths["T1w"])["Harmonization"]["seed"]
        by_hand = (
            models.harmonizer(plan)
            .harmonize(sources, harmonization.targets(plan), seed=seed, slice_step=plan.slice_step)
            .images
        )
        for contrast in CONTRASTS:
            expected = by_hand[contrast][:, :, list(visited_slices(192, plan.slice_step))]
            np.testing.assert_allclose(volumes.read(paths[contrast])[0], expected, atol=1e-5 * expected.max())
    # Later notebooks, which know nothing of the data set, find what was prepared.
    later = Study(subjects=["p1"], dropped=["FLAIR"], output_dir=plan.output_dir)
    assert participants.cohort(later, OwnSubject("p1")) == participants.cohort(plan, OwnSubject("p1"))
    verdicts, _ = judgement.verdicts(scores, attention, scoring.cutoffs(curves))
    assert set(verdicts.verdict) == {judgement.UNDECIDED}
    assert (
        verdicts.set_index("claim").sentence["C16"]
        == "Undecided: not run: cutoffs without harmonized, 1a, T1w, with FLAIR dropped."
    )


def test_every_notebook_of_a_study_that_drops_a_contrast_knows_it(tmp_path):
    plan = Study(bids_dir=str(tmp_path), subjects=["p1"], dropped=["FLAIR"])
    wanted = graph.tasks(plan)
    graph.check_parameters(wanted)
    assert all(task.parameters["changes"]["dropped"] == ["FLAIR"] for task in wanted)
    images = {task.name: task.images for task in wanted}
    # Three orientations of two contrasts at eight resolutions.
    assert (
        images["00_cohort_sub-p1"],
        images["02_degradation_sub-p1"],
        images["03_registration_sub-p1"],
    ) == (2, 48, 48)
    assert {task.name for task in graph.tasks(Study(bids_dir=str(tmp_path), subjects=["p1"]))} == set(images)


def test_strange_names_are_left_out_and_never_followed(tmp_path):
    dataset(tmp_path, ["01"])
    for name in ("sub-a b", "sub-ü", "sub-$(touch x)", "sub-..", "sub-"):
        (tmp_path / name / "anat").mkdir(parents=True)
    (tmp_path / "sub-loop").symlink_to(tmp_path / "sub-loop")
    (tmp_path / "sub-round").symlink_to(tmp_path)
    found, left_out = layout.find_subjects(tmp_path, ["all"], {})
    assert list(found) == ["01"]
    assert set(left_out) == {"a b", "ü", "$(touch x)", "..", "", "round", "loop"}
    assert "labels have letters and digits only" in left_out["a b"]


def test_a_copy_under_another_name_is_left_out(tmp_path):
    dataset(tmp_path, ["01", "02"])
    twin = tmp_path / "sub-02" / "anat" / "sub-02_T2w.nii.gz"
    twin.write_bytes((tmp_path / "sub-01" / "anat" / "sub-01_T2w.nii.gz").read_bytes())
    plan, left_out = participants.check_cohort(Study(bids_dir=str(tmp_path)))
    assert plan.subjects == (OwnSubject("01"),)
    assert left_out["02"] == f"{twin}: the same file as sub-01's T2w: accepted are images of different people"


@pytest.mark.slow
def test_the_same_voxels_in_another_file_are_found_once_they_are_prepared(results_dir, tmp_path, monkeypatch):
    monkeypatch.setattr(preparation, "prepare", as_they_are)
    shared = Study(output_dir=str(results_dir))
    for label, whose in (("01", {"T1w": 1, "T2w": 1}), ("02", {"T1w": phantom.TARGET_SEED, "T2w": 1})):
        for contrast, subject in whose.items():
            path = tmp_path / "bids" / f"sub-{label}" / "anat" / f"sub-{label}_{contrast}.nii.gz"
            path.parent.mkdir(parents=True, exist_ok=True)
            # As another program would have compressed it.
            path.write_bytes(
                gzip.compress(
                    gzip.decompress(
                        participants.cohort(shared, SimulatedSubject(subject))[contrast].read_bytes()
                    ),
                    1 if label == "02" else 6,
                )
            )
    plan, left_out = participants.check_cohort(
        Study(bids_dir=str(tmp_path / "bids"), output_dir=str(tmp_path / "results"), dropped=["FLAIR"])
    )
    assert plan.literals()["subjects"] == ["01", "02"] and not left_out
    for subject in plan.subjects:
        participants.cohort(plan, subject)
    copies = [line for line in participants.findings(plan) if "same voxels" in line]
    assert copies == ["sub-02 T2w: the same voxels as sub-01 T2w: accepted are images of different people"]
    assert not any("same voxels" in line for line in participants.findings(plan, unfit=[OwnSubject("01")]))
    assert not any("scanned again" in line for line in participants.findings(plan))


@pytest.mark.slow
def test_a_person_under_two_names_is_found_once_the_images_are_prepared(simulated, tmp_path, monkeypatch):
    monkeypatch.setattr(preparation, "prepare", as_they_are)
    volume, affine = volumes.read(simulated(1)["T1w"])
    rng = np.random.default_rng(0)
    for name in ("sub-01", "sub-02", "sub-03_ses-1", "sub-03_ses-2"):
        # Another day: another scale, other noise.
        scanned = volume * rng.uniform(0.5, 2) + np.where(
            volume > 0, rng.normal(0, 0.02 * volume.max(), volume.shape), 0
        )
        save(
            tmp_path.joinpath("bids", *name.split("_"), "anat", f"{name}_T1w.nii.gz"),
            scanned.astype(np.float32),
            affine,
        )
    plan = Study(
        bids_dir=str(tmp_path / "bids"), output_dir=str(tmp_path / "results"), dropped=["T2w", "FLAIR"]
    )
    plan, left_out = participants.check_cohort(plan)
    assert len(plan.subjects) == 4 and not left_out
    for subject in plan.subjects:
        participants.cohort(plan, subject)
    found = [line for line in participants.findings(plan) if "scanned again" in line]
    assert [line.split(" (")[0] for line in found[:2]] == [
        f"{who} T1w: looks like sub-01 scanned again" for who in ("sub-02", "sub-03_ses-1")
    ]
    assert len(found) == 5  # of six pairs one is two sessions of a subject
    assert found == [
        line for line in participants.findings(plan) if "scanned again" in line
    ]  # from what was kept


def test_simulated_subjects_are_not_looked_at_for_doubles(results_dir):
    plan = Study(subjects=[1, phantom.TARGET_SEED], output_dir=str(results_dir))
    for subject in plan.subjects:
        participants.cohort(plan, subject)
    assert participants.findings(plan) == []
    assert not list(results_dir.rglob("*_portrait.npz"))


@pytest.mark.parametrize(
    "text, message",
    [
        ('subjects = ["02"]', "no subject '02': accepted are 01"),
        ('subjects = ["01_ses-9"]', "sub-01: no session '9': accepted is '01'"),
        ("subjects = [1]", "accepted with bids_dir are labels as text"),
        ("select = 3", "select is 3: accepted is a table"),
        ("subjects = 2.5", "subjects is 2.5: accepted is a list"),
    ],
)
def test_what_the_study_asks_for_in_vain_is_named(tmp_path, capsys, text, message):
    dataset(tmp_path / "bids")
    assert message in refused(tmp_path, capsys, text)


def test_a_data_set_that_is_none_is_named(tmp_path, capsys):
    assert f"{tmp_path / 'bids'}: no such folder" in refused(tmp_path, capsys, "")
    (tmp_path / "bids").mkdir()
    assert "no subjects: accepted is a BIDS data set" in refused(tmp_path, capsys, "")


def test_thick_slices_are_refused_before_anything_starts(tmp_path, capsys):
    dataset(tmp_path / "bids")
    save(
        tmp_path / "bids" / "sub-01" / "anat" / "sub-01_T2w.nii.gz",
        image(3, (120, 120, 40)),
        AFFINE @ np.diag([1, 1, 3, 1]),
    )
    error = refused(tmp_path, capsys, "")
    assert "no subject can take part" in error
    assert (
        "sub-01_T2w.nii.gz: voxels of 1.00 x 1.00 x 3.00 mm: accepted as a high-resolution image are voxels "
        "of up to 1.5 mm" in error
    )


def test_a_thousand_subjects_are_looked_through_in_ten_seconds(tmp_path):
    first = dataset(tmp_path, ["0000"])
    contents = {
        contrast: gzip.decompress((first / f"sub-0000/anat/sub-0000_{contrast}.nii.gz").read_bytes())
        for contrast in CONTRASTS
    }
    for number in range(1, 1000):
        folder = tmp_path / f"sub-{number:04d}" / "anat"
        folder.mkdir(parents=True)
        for order, (contrast, content) in enumerate(contents.items()):
            packed = gzip.compress(
                content[:4096], 1, mtime=3 * number + order
            )  # Headers are all that is read.
            (folder / f"sub-{number:04d}_{contrast}.nii.gz").write_bytes(packed)
    started = time.process_time()
    plan, left_out = participants.check_cohort(Study(bids_dir=str(tmp_path)), voxels=False)
    assert time.process_time() - started < 10
    assert (len(plan.subjects), left_out) == (1000, {})


# ---------------------------------------------------------------- faults of a file


def unset(header):
    header["qform_code"] = header["sform_code"] = 0


def contradict(header):
    header.set_qform(AFFINE, 1)
    header.set_sform(np.diag([-1, 1, 1, 1]) @ AFFINE, 1)


def flat(header):
    header["sform_code"], header["qform_code"] = 1, 0
    header["srow_z"] = 0


def nothing_wide(header):
    header["sform_code"], header["qform_code"] = 0, 1
    header["pixdim"][3] = 0


def metres_by_mistake(header):
    header.set_xyzt_units("meter")


WRONG_HEADERS = [
    (unset, "neither qform nor sform is set, so left and right cannot be told"),
    (contradict, "sform and qform disagree by up to 120.0 mm: accepted are headers with one of them"),
    (flat, "impossible geometry, voxels of 1 x 1 x 0 mm"),
    (nothing_wide, "impossible geometry"),
    (metres_by_mistake, "impossible geometry, voxels of 1000 x 1000 x 1000 mm: accepted are 0.01 to 100 mm"),
]


@pytest.mark.parametrize("change, message", WRONG_HEADERS, ids=lambda value: getattr(value, "__name__", ""))
def test_a_header_that_says_nothing_or_nonsense_of_its_place_is_refused(tmp_path, capsys, change, message):
    path = dataset(tmp_path / "bids") / "sub-01" / "anat" / "sub-01_FLAIR.nii.gz"
    save(path, image(), change=change)
    for function in (volumes.read, volumes.geometry):
        with pytest.raises(ValueError) as error:
            function(path)
        assert f"{path}: " in str(error.value)
        assert message in str(error.value)
        assert "\n" not in str(error.value)
    assert message in refused(tmp_path, capsys, "")


def test_a_header_in_metres_or_micrometres_is_read_in_millimetres(tmp_path):
    for unit, factor in (("meter", 1e-3), ("micron", 1e3)):
        path = save(
            tmp_path / f"{unit}.nii",
            image(),
            np.diag([factor] * 3 + [1]) @ AFFINE,
            lambda header, unit=unit: header.set_xyzt_units(unit),
        )
        np.testing.assert_allclose(volumes.read(path)[1], AFFINE, atol=1e-4)


@pytest.mark.parametrize(
    "dtype", [np.uint8, np.int16, np.uint16, np.float32, np.float64, np.dtype(">i2"), np.dtype(">f4")]
)
def test_numbers_of_any_kind_are_read(tmp_path, dtype):
    volume = image(1, dtype=np.uint8).astype(dtype)
    header = nib.Nifti1Header(endianness=">" if np.dtype(dtype).byteorder == ">" else "<")
    nib.save(nib.Nifti1Image(volume, AFFINE, header), tmp_path / "x.nii.gz")
    np.testing.assert_array_equal(volumes.read(tmp_path / "x.nii.gz")[0], volume.astype(np.float32))


def test_slope_and_intercept_are_applied(tmp_path):
    made = nib.Nifti1Image(image(1, dtype=np.uint8).astype(np.int16), AFFINE)
    made.header.set_slope_inter(0.5, -3)
    made.header.set_data_dtype(np.int16)
    values = np.asarray(made.dataobj) * 0.5 - 3
    nib.save(nib.Nifti1Image(values, AFFINE, made.header), tmp_path / "x.nii.gz")
    stored = nib.load(tmp_path / "x.nii.gz")
    assert stored.get_data_dtype() == np.int16
    np.testing.assert_allclose(volumes.read(tmp_path / "x.nii.gz")[0], values, atol=0.01)


FAULTS = {
    "cut short": (
        lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
        "not a readable NIfTI volume",
    ),
    "text": (lambda path: path.write_bytes(b"hello"), "not a readable NIfTI volume"),
    "empty": (lambda path: path.write_bytes(b""), "not a readable NIfTI volume"),
    "pickle": (lambda path: path.write_bytes(pickle.dumps(os.getcwd)), "not a readable NIfTI volume"),
    "a folder": (lambda path: (path.unlink(), path.mkdir()), "sub-01_T2w.nii.gz is no file"),
    "2D": (lambda path: save(path, image()[:, :, 60]), "has 2 dimensions"),
    "4D": (lambda path: save(path, np.stack([image()] * 2, -1)), "has 4 dimensions"),
    "NaN": (
        lambda path: save(path, np.where(image() > 100, np.float32(np.nan), 1)),
        "voxels that are NaN or infinite",
    ),
    "infinite": (
        lambda path: save(path, np.where(image() > 100, np.float32(np.inf), 1)),
        "voxels that are NaN or infinite",
    ),
    "all zero": (lambda path: save(path, image() * 0), "every voxel is 0: accepted are images with contrast"),
    "constant": (
        lambda path: save(path, image() * 0 + 7),
        "every voxel is 7: accepted are images with contrast",
    ),
    "sheared": (
        lambda path: save(
            path, image(), AFFINE @ np.array([[1, 0.2, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
        ),
        "off the right angle",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_of_an_image_is_one_line_with_its_path_and_nothing_half_written(tmp_path, fault):
    path = dataset(tmp_path / "bids") / "sub-01" / "anat" / "sub-01_T2w.nii.gz"
    break_it, message = FAULTS[fault]
    break_it(path)
    plan = Study(bids_dir=str(tmp_path / "bids"), subjects=["01"], output_dir=str(tmp_path / "results"))
    with pytest.raises((ValueError, OSError)) as error:
        participants.cohort(plan, OwnSubject("01"))
    assert path.name in str(error.value)
    assert str(path.parent) in str(error.value)
    assert message in str(error.value)
    assert "\n" not in str(error.value)
    assert not list((tmp_path / "results").rglob("*.nii.gz"))
    assert not list((tmp_path / "results").rglob("*.tmp"))


def flip(path):
    """One bit of a stored voxel, as a disk or a line would."""
    content = bytearray(gzip.compress(gzip.decompress(path.read_bytes()), 0))
    content[len(content) // 2] ^= 64
    path.write_bytes(bytes(content))


EARLY = {
    "a flipped bit": (flip, "CRC check failed"),
    "the end is lost": (lambda path: path.write_bytes(path.read_bytes()[:-8]), "not a readable NIfTI volume"),
    "complex": (lambda path: save(path, image() * np.complex64(1j)), "it holds complex64"),
    "colours": (
        lambda path: save(path, np.zeros(image().shape, [(name, np.uint8) for name in "RGB"])),
        "it holds RGB colours",
    ),
    "z-scores": (
        lambda path: save(path, (image() - image()[image() > 0].mean()).astype(np.float32) * (image() > 0)),
        "is negative",
    ),
    "a mask": (lambda path: save(path, (image() > 0).astype(np.uint8)), "2 different values"),
    "lifted": (lambda path: save(path, image().astype(np.int16) + 1000), "its background is at 1000"),
    "NaN": FAULTS["NaN"],
    "constant": FAULTS["constant"],
}


@pytest.mark.parametrize("fault", EARLY)
def test_an_image_that_cannot_be_used_is_refused_before_anything_runs(tmp_path, capsys, fault):
    path = dataset(tmp_path / "bids", ["01", "02"]) / "sub-01" / "anat" / "sub-01_T2w.nii.gz"
    break_it, message = EARLY[fault]
    break_it(path)
    plan, left_out = participants.check_cohort(Study(bids_dir=str(tmp_path / "bids")))
    assert plan.subjects == (OwnSubject("02"),)
    assert left_out["01"].startswith(f"{path}") and message in left_out["01"] and "\n" not in left_out["01"]
    with pytest.raises(ValueError, match=message):
        participants.check_cohort(Study(targets=dict.fromkeys(CONTRASTS, str(path))))
    shutil.rmtree(tmp_path / "bids" / "sub-02")
    assert message in refused(tmp_path, capsys, "")
    # A dry run says what a run would.
    assert cli.main(["run", "--dry-run", str(tmp_path / "mine.toml")]) == 2
    assert message in capsys.readouterr().err


def test_images_are_looked_at_once_and_not_after_they_were_prepared(tmp_path, monkeypatch):
    folder, calls, read = dataset(tmp_path / "bids"), [], volumes.read
    monkeypatch.setattr(volumes, "read", lambda path: calls.append(path) or read(path))
    plan = Study(bids_dir=str(folder), output_dir=str(tmp_path / "results"))
    participants.check_cohort(plan, voxels=False)
    assert calls == []
    for _ in range(2):
        participants.check_cohort(plan)
    assert len(calls) == 3
    examination._examine_version.cache_clear()  # As in another process.
    write_bytes(
        volumes.sidecar_path(layout.image(tmp_path / "results", OwnSubject("01"), "T1w", desc="preproc")),
        b"{}",
    )
    participants.check_cohort(plan)
    assert sorted(path.name for path in calls[3:]) == ["sub-01_FLAIR.nii.gz", "sub-01_T2w.nii.gz"]


def test_an_image_in_four_dimensions_of_which_the_last_is_one_is_accepted(tmp_path):
    path = save(tmp_path / "x.nii.gz", image()[..., None])
    assert volumes.geometry(path)[0] == SHAPE


def test_a_sidecar_that_is_no_json_disturbs_nobody(tmp_path):
    dataset(tmp_path)
    (tmp_path / "sub-01" / "anat" / "sub-01_T1w.json").write_text("{not json")
    assert participants.check_cohort(Study(bids_dir=str(tmp_path)))[1] == {}


def test_a_subject_that_was_never_prepared_is_named(tmp_path):
    with pytest.raises(
        FileNotFoundError, match="sub-p07.*: not there yet: notebook 00_cohort makes it from bids_dir"
    ):
        participants.cohort(Study(subjects=["p07"], output_dir=str(tmp_path)), OwnSubject("p07"))


@pytest.fixture
def somewhere():
    """A folder that others may enter, which they may not enter pytest's."""
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        yield Path(folder)


@pytest.mark.skipif(os.geteuid() != 0, reason="folders of somebody else: only root can become somebody else")
def test_folders_that_cannot_be_read_or_written_are_named(somewhere):
    folder = dataset(somewhere / "bids", ["01", "02"])
    (folder / "sub-02" / "anat").chmod(0)
    (somewhere / "closed").mkdir(mode=0o555)
    script = somewhere / "try.py"
    script.write_text(f"""
import os
from helpers import volumes
from helpers.pipeline import participants
from helpers.study.file import Study
import numpy as np
study = Study(bids_dir={str(folder)!r}, output_dir={str(somewhere / "closed" / "x")!r})
participants.check_cohort(study)  # What is imported on the way may lie where only root can read.
os.setgid(65534)
os.setuid(65534)
plan, left_out = participants.check_cohort(study)
print(plan.literals()["subjects"], left_out)
try:
    volumes.write({str(somewhere / "closed" / "x.nii.gz")!r}, np.ones((2, 2, 2)), np.eye(4))
except OSError as error:
    print("refused:", error)
""")
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, check=True).stdout
    assert "['01']" in done
    assert "Permission denied" in done.splitlines()[0]
    assert str(folder / "sub-02" / "anat") in done
    assert "refused: [Errno 13] Permission denied" in done
    assert list((somewhere / "closed").iterdir()) == []


# ---------------------------------------------------------------- the data set that comes out


def test_what_a_study_writes_is_a_valid_bids_derivative(results_dir):
    plan = Study(subjects=[1], output_dir=str(results_dir))
    steps.registered(plan, SimulatedSubject(1), "T1w", "axial", Resolution(5, 1.5))
    write_bytes(results_dir / "tables" / "x.csv", b"a\n")
    write_bytes(results_dir / "report" / "x.html", b"a\n")
    errors = invalid(results_dir)
    assert errors == []


def invalid(folder):
    """Errors of the BIDS validator, which needs no network."""
    binary = os.path.join(os.path.dirname(sys.executable), "bids-validator-deno")
    done = subprocess.run([binary, str(folder), "--json"], capture_output=True, text=True)
    issues = json.loads(done.stdout)["issues"]["issues"]
    return [issue for issue in issues if issue["severity"] == "error"]


@pytest.mark.slow
def test_a_bids_data_set_becomes_a_valid_derivative_that_says_where_it_comes_from(simulated, tmp_path):
    images = simulated(1)
    for contrast in CONTRASTS:
        volume, affine = volumes.read(images[contrast])
        save(
            tmp_path / "bids" / "sub-p1" / "ses-a" / "anat" / f"sub-p1_ses-a_{contrast}.nii.gz",
            volume,
            registration.motion(1, 1, contrast, "axial") @ affine,
        )
    plan = Study(bids_dir=str(tmp_path / "bids"), output_dir=str(tmp_path / "results"))
    plan, left_out = participants.check_cohort(plan)
    assert (plan.subjects, left_out) == ((OwnSubject("p1_ses-a"),), {})
    paths = participants.cohort(plan, OwnSubject("p1_ses-a"))
    before = {path: path.read_bytes() for path in paths.values()}
    sidecar = volumes.read_sidecar(paths["T2w"])
    assert sidecar["Sources"] == ["bids:source:sub-p1/ses-a/anat/sub-p1_ses-a_T2w.nii.gz"]
    assert sidecar["SpatialReference"] == layout.SPACE
    assert {"Name": "antspyx"}.items() <= sidecar["GeneratedBy"][1].items()
    assert "Semi-synthetic" not in sidecar["Note"]
    # Later stages take what is there, without knowing of the data set, and their files say the same of
    # themselves.
    later = Study(subjects=["p1_ses-a"], output_dir=str(tmp_path / "results"))
    assert participants.cohort(later, OwnSubject("p1_ses-a")) == paths
    stack = steps.registered(later, OwnSubject("p1_ses-a"), "T2w", "axial", Resolution(5, 1.5))
    assert volumes.read_sidecar(stack)["Note"] == sidecar["Note"]
    assert invalid(tmp_path / "results") == []
    assert {path.name for path in tmp_path.iterdir()} == {"bids", "results"}
    assert not [
        path
        for path in (tmp_path / "bids").rglob("*")
        if path.is_file() and not path.name.endswith(".nii.gz")
    ]
    # And again, the same bytes.
    for path in paths.values():
        volumes.sidecar_path(path).unlink()
    participants.cohort(plan, OwnSubject("p1_ses-a"))
    assert all(path.read_bytes() == content for path, content in before.items())


# ---------------------------------------------------------------- where voxels lie


@st.composite
def grids(draw):
    """Any turned, mirrored, anisotropic grid with its shape."""
    shape = tuple(draw(st.integers(3, 9)) for _ in range(3))
    angles = [draw(st.floats(-180, 180)) for _ in range(3)]
    sizes = [draw(st.floats(0.3, 6)) * draw(st.sampled_from([-1, 1])) for _ in range(3)]
    affine = np.eye(4)
    affine[:3, :3] = registration.Rotation.from_euler("xyz", angles, degrees=True).as_matrix() @ np.diag(
        sizes
    )
    affine[:3, 3] = [draw(st.floats(-300, 300)) for _ in range(3)]
    return shape, affine


KINDS = st.sampled_from([np.uint8, np.int16, np.float32, np.float64, np.dtype(">i2")])


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(grids(), KINDS, st.integers(0, 2**16))
def test_world_coordinates_survive_reading_and_writing(tmp_path, grid, kind, seed):
    shape, affine = grid
    volume = np.random.default_rng(seed).integers(0, 200, shape).astype(kind)
    nib.save(nib.Nifti1Image(volume, affine), tmp_path / "in.nii.gz")
    read, read_affine = volumes.read(tmp_path / "in.nii.gz")
    volumes.write(tmp_path / "out.nii.gz", read, read_affine)
    again, again_affine = volumes.read(tmp_path / "out.nii.gz")
    np.testing.assert_array_equal(again, volume.astype(np.float32))
    corners = np.array([(*corner, 1) for corner in np.ndindex(2, 2, 2)]).T * [[n - 1] for n in (*shape, 2)]
    assert np.abs((again_affine - affine) @ corners).max() < 0.01


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(grids(), st.sampled_from(["axial", "sagittal", "coronal"]))
def test_world_coordinates_survive_degrading(tmp_path, some_grid, orientation):
    shape, affine = some_grid
    # A ramp along each world axis is its own slice: where a slice lies, the ramp has that value.
    shape = tuple(n + 24 for n in shape)
    world = affine[:3, :3] @ np.indices(shape).reshape(3, -1) + affine[:3, 3:]
    axis = grid.through_plane_axis(affine, orientation)
    resolution = Resolution(3 * np.linalg.norm(affine[:3, axis]), 0)
    for component, ramp in enumerate(world):
        stack, stack_affine = degradation.degrade(ramp.reshape(shape), affine, orientation, resolution)
        index = np.indices(stack.shape).reshape(3, -1)
        place = stack_affine[component, :3] @ index + stack_affine[component, 3]
        # Away from the ends, beyond which the outermost voxel goes on.
        keep = np.abs(index[axis] - (stack.shape[axis] - 1) / 2) <= 1
        np.testing.assert_allclose(stack.reshape(-1)[keep], place[keep], atol=0.01)
