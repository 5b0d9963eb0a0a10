"""One's own images and simulated ones: none replaces the other, none stands for the other, by whichever way
it is asked for."""

import json
import os
import shutil
import string
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import assume, given, strategies as st
from papermill.cli import papermill

from helpers import grid, layout, volumes
from helpers.cohort import examination, origins, phantom, preparation
from helpers.pipeline import folders, participants, scoring
from helpers.runner import cli, removal
from helpers.study import CONTRASTS
from helpers.study.file import Study
from helpers.study.subjects import OwnSubject, SimulatedSubject, TargetImages, require_label

SHAPE = (8, 9, 10)


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """Simulation and preparation of a few voxels each: here only the files that they write matter."""
    brain = np.ones(SHAPE, bool)
    monkeypatch.setattr(
        participants,
        "person",
        lambda seed: SimpleNamespace(anatomy="S1", brain=brain, affine=np.eye(4), seed=seed),
    )
    monkeypatch.setattr(
        phantom, "render", lambda someone, *_, noise_seed: np.full(SHAPE, someone.seed, np.float32)
    )
    monkeypatch.setattr(grid, "SHAPE", SHAPE)
    monkeypatch.setattr(grid, "AFFINE", np.eye(4))
    monkeypatch.setattr(examination, "examine_grid", lambda *_: [])
    sharp = SimpleNamespace(voxel_mm=np.ones(3), directions=("x", "y", "z"), thickness_mm=np.ones(3))
    monkeypatch.setattr(examination, "examine", lambda *_: ([], sharp))
    monkeypatch.setattr(preparation, "prepare", as_they_are)


def as_they_are(images, brain, seed):
    volumes_ = {contrast: volume for contrast, (volume, _) in images.items()}
    ones, findings = dict.fromkeys(images, 1.0), dict.fromkeys(images, [])
    return preparation.Prepared(
        volumes_, np.ones(SHAPE, bool), dict.fromkeys(images, np.eye(4)), ones, ones, findings
    )


def data_set(folder, labels=("01",)):
    for label in labels:
        for number, contrast in enumerate(CONTRASTS):
            path = folder / f"sub-{label}" / "anat" / f"sub-{label}_{contrast}.nii.gz"
            path.parent.mkdir(parents=True, exist_ok=True)
            random = np.random.default_rng([number, *label.encode()])
            nib.save(nib.Nifti1Image(random.random(SHAPE, np.float32), np.eye(4)), path)
    return folder


@pytest.fixture
def own(tmp_path):
    """A study of one's own whose only subject, 01, was prepared."""
    plan = Study(
        name="mine",
        bids_dir=str(data_set(tmp_path / "bids")),
        subjects=["01"],
        output_dir=str(tmp_path / "results"),
    )
    participants.cohort(plan, OwnSubject("01"))
    return plan


@pytest.fixture
def simulated(tmp_path):
    """A study of simulated subjects, two of which are there, and the target subject."""
    plan = Study(name="mine", subjects=[1, 2], output_dir=str(tmp_path / "results"))
    for subject in (*plan.subjects, origins.TARGET_SUBJECT):
        participants.cohort(plan, subject)
    return plan


def as_an_earlier_version(results, number=1):
    """Give a simulated subject's files the names that an earlier version gave them."""
    new, old = f"sub-sim{number:02d}", f"sub-{number:02d}"
    shutil.rmtree(results / old, ignore_errors=True)
    shutil.move(results / new, results / old)
    for path in list((results / old / "anat").iterdir()):
        path.rename(path.with_name(path.name.replace(new, old)))


def content(folder):
    return {
        path.relative_to(folder): path.read_bytes().hex()[:4000]
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def one_line(error):
    assert "\n" not in str(error.value)
    return str(error.value)


# ---------------------------------------------------------------- names


labels = st.text(string.ascii_letters + string.digits, min_size=1, max_size=8)
names = st.one_of(
    labels,
    st.builds("{}_ses-{}".format, labels, labels),
    st.from_regex(r"(sim|SIM|target)[0-9]{0,3}", fullmatch=True),
)


@given(names, st.integers(1, 10**4))
def test_no_label_that_is_accepted_has_the_files_of_a_simulated_subject_or_of_a_target(label, number):
    try:
        require_label(label)
    except ValueError:
        assume(False)
    files = {
        layout.image("r", subject, "T1w", desc="preproc").as_posix().lower()
        for subject in (OwnSubject(label), SimulatedSubject(number), TargetImages())
    }
    assert len(files) == 3  # also where upper and lower case are the same
    assert not layout.image("r", OwnSubject(label), "T1w", desc="preproc").is_relative_to(
        f"r/{SimulatedSubject(number).name}"
    )


def test_labels_that_simulated_subjects_or_targets_have_are_left_out(tmp_path):
    folder = data_set(tmp_path / "bids", ["01", "sim01", "Sim7", "simon", "target", "Target2"])
    plan, left_out = participants.check_cohort(
        Study(bids_dir=str(folder), output_dir=str(tmp_path / "results")), voxels=False
    )
    assert {subject.label for subject in plan.subjects} == {"01", "simon", "Target2"}
    assert set(left_out) == {"sim01", "Sim7", "target"}
    assert "as files of simulated subjects are named" in left_out["sim01"]


# ---------------------------------------------------------------- a number, and a folder of one's own


def asked_by_python(plan):
    participants.cohort(plan, SimulatedSubject(1))


def asked_at_the_start(plan):
    participants.check_cohort(plan)


def asked_by_a_later_stage(plan):
    scoring.all_scores(plan)


@pytest.mark.parametrize("ask", [asked_by_python, asked_at_the_start, asked_by_a_later_stage])
def test_a_number_is_refused_where_labels_are_meant_and_both_readings_are_named(own, ask):
    before = content(folders.folder(own))
    with pytest.raises(ValueError) as error:
        ask(Study(name="mine", subjects=[1], output_dir=own.output_dir))
    assert "subject is 1, a simulated subject, but" in (line := one_line(error))
    assert (
        f"holds images of the data set {own.bids_dir}: accepted are labels as text (papermill -r subject 01)"
        in line
    )
    assert content(folders.folder(own)) == before


def test_the_label_that_a_message_names_is_one_that_is_there(tmp_path):
    plan = Study(
        bids_dir=str(data_set(tmp_path / "bids", ["p7", "007"])), output_dir=str(tmp_path / "results")
    )
    for label in ("p7", "007"):
        participants.cohort(plan, OwnSubject(label))
    for number, label in ((7, "007"), (2, "007")):
        with pytest.raises(ValueError, match=rf"papermill -r subject {label}\)"):
            participants.cohort(
                Study(subjects=[number], output_dir=plan.output_dir), SimulatedSubject(number)
            )


def test_the_simulated_target_stands_beside_images_of_ones_own(own):
    plan = Study(name="mine", subjects=[phantom.TARGET_SEED], output_dir=own.output_dir)
    assert participants.cohort(plan, origins.TARGET_SUBJECT)["T1w"].name.startswith("sub-sim11_")
    assert origins.data_set(folders.folder(own)) == own.bids_dir
    participants.cohort(Study(name="mine", subjects=["01"], output_dir=own.output_dir), OwnSubject("01"))


def test_a_study_of_simulated_subjects_does_not_run_in_a_folder_of_ones_own(own, tmp_path, capsys):
    (tmp_path / "mine.toml").write_text(f'subjects = [1]\noutput_dir = "{own.output_dir}"\n')
    before = content(folders.folder(own))
    for command in (["run"], ["run", "--dry-run"], ["status"]):
        assert cli.main([*command, str(tmp_path / "mine.toml")]) == 2
        assert capsys.readouterr().err.count("subject is 1, a simulated subject") == 1
    assert content(folders.folder(own)) == before


@pytest.mark.parametrize("notebook", ["00_cohort", "01_slice_profiles", "02_degradation", "03_registration"])
def test_the_default_subject_of_a_notebook_is_refused_in_a_folder_of_ones_own(own, notebook):
    # The cells up to the first that asks for images, in one namespace, as a kernel has them.
    cells = json.loads((layout.NOTEBOOKS / f"{notebook}.ipynb").read_text())["cells"]
    space = {}
    with pytest.raises(ValueError, match="subject is 1, a simulated subject"):
        for cell in cells:
            if cell["cell_type"] == "code":
                exec("".join(cell["source"]), space)
                if "parameters" in cell["metadata"].get("tags", []):
                    space.update(changes={"name": "mine", "output_dir": own.output_dir}, interactive=False)
        participants.cohort(space["plan"], space["plan"].subjects[0])


@pytest.mark.parametrize("option, value", [("-p", "subject = 1"), ("-r", 'subject = "01"')])
def test_papermill_makes_a_number_of_a_label_unless_it_is_told_not_to(tmp_path, option, value):
    # What the messages advise rests on this.
    notebook = str(layout.NOTEBOOKS / "00_cohort.ipynb")
    CliRunner().invoke(
        papermill,
        ["--prepare-only", notebook, str(tmp_path / "out.ipynb"), option, "subject", "01"],
        catch_exceptions=False,
    )
    cells = json.loads((tmp_path / "out.ipynb").read_text())["cells"]
    (injected,) = [
        "".join(cell["source"]) for cell in cells if "injected-parameters" in cell["metadata"].get("tags", [])
    ]
    assert value in injected.splitlines()


# ---------------------------------------------------------------- a label, and a folder of simulated subjects


def test_a_label_is_refused_where_subjects_are_simulated(simulated, tmp_path):
    before = content(tmp_path / "results")
    text = (
        "subject is '01', a label of a data set, but .* holds simulated subjects, sub-sim01: accepted are "
        "numbers"
    )
    bids = str(data_set(tmp_path / "bids"))
    for settings in ({}, {"bids_dir": bids}):
        plan = Study(name="mine", subjects=["01"], output_dir=simulated.output_dir, **settings)
        for ask in (
            participants.check_cohort,
            folders.root if settings else participants.check_cohort,
            lambda plan: participants.cohort(plan, OwnSubject("01")),
        ):
            with pytest.raises(ValueError, match=text) as error:
                ask(plan)
            assert "papermill -p subject 1" in one_line(error)
    assert content(tmp_path / "results") == before


def test_a_folder_in_which_only_the_target_was_simulated_takes_images_of_ones_own(tmp_path):
    where = {"name": "mine", "output_dir": str(tmp_path / "results")}
    participants.cohort(Study(subjects=[phantom.TARGET_SEED], **where), origins.TARGET_SUBJECT)
    plan = Study(bids_dir=str(data_set(tmp_path / "bids")), **where)
    assert participants.cohort(plan, OwnSubject("01"))["T1w"].is_file()
    assert origins.data_set(tmp_path / "results") == plan.bids_dir


def test_a_label_without_a_data_set_is_refused(tmp_path):
    with pytest.raises(ValueError, match="subject is '01', a label, and bids_dir is empty"):
        participants.acquired(Study(subjects=["01"], output_dir=str(tmp_path)), OwnSubject("01"))


# ---------------------------------------------------------------- folders that an earlier version wrote


def test_a_person_whom_an_earlier_version_replaced_by_the_simulated_brain_is_recognised(
    own, tmp_path, capsys
):
    results = tmp_path / "results"
    simulated = Study(subjects=[1], output_dir=str(tmp_path / "other"))
    participants.cohort(simulated, SimulatedSubject(1))
    shutil.copytree(tmp_path / "other" / "sub-sim01", results / "sub-sim01")
    as_an_earlier_version(results)
    later = Study(name="mine", subjects=["01"], output_dir=own.output_dir)
    for ask in (participants.check_cohort, lambda plan: participants.cohort(plan, OwnSubject("01"))):
        for plan in (own, later):
            with pytest.raises(
                ValueError, match="sub-01 holds a simulated brain instead of the image of the data set"
            ) as error:
                ask(plan)
            assert f"remove {results / 'sub-01'} and prepare it again from bids_dir" in one_line(error)
    (tmp_path / "mine.toml").write_text(f'bids_dir = "{own.bids_dir}"\noutput_dir = "{own.output_dir}"\n')
    assert cli.main(["status", str(tmp_path / "mine.toml")]) == 2
    assert capsys.readouterr().err.count("holds a simulated brain instead of") == 1
    # What it advises helps.
    shutil.rmtree(results / "sub-01")
    paths = participants.cohort(own, OwnSubject("01"))
    assert volumes.read_sidecar(paths["T1w"])["Note"] == OwnSubject.origin
    participants.check_cohort(own)


def test_the_label_that_the_target_subject_had_is_recognised_too(tmp_path):
    results = tmp_path / "results"
    plan = Study(bids_dir=str(data_set(tmp_path / "bids", ["01", "11"])), output_dir=str(results))
    participants.cohort(plan, OwnSubject("01"))
    participants.cohort(plan, origins.TARGET_SUBJECT)
    as_an_earlier_version(results, phantom.TARGET_SEED)
    with pytest.raises(ValueError, match="sub-11 holds a simulated brain instead of"):
        participants.check_cohort(plan)
    others = Study(bids_dir=plan.bids_dir, subjects=["01"], output_dir=plan.output_dir)
    assert participants.check_cohort(others)[0].subjects == (OwnSubject("01"),)
    assert origins.earlier_version(results)[0].startswith(
        f"{results}: sub-11: simulated by an earlier version"
    )


def test_simulated_subjects_of_an_earlier_version_are_named_and_the_study_goes_on(
    simulated, tmp_path, capsys
):
    results = tmp_path / "results"
    assert origins.earlier_version(results) == []
    for number in (1, 2):
        as_an_earlier_version(results, number)
    with pytest.raises(
        ValueError, match="subject is '01', a label of a data set, but .* holds simulated subjects, sub-01"
    ):
        participants.cohort(Study(subjects=["01"], output_dir=simulated.output_dir), OwnSubject("01"))
    (tmp_path / "mine.toml").write_text(f'subjects = [1, 2]\noutput_dir = "{simulated.output_dir}"\n')
    assert cli.main(["status", str(tmp_path / "mine.toml")]) == 0
    assert capsys.readouterr().out.count("sub-01, sub-02: simulated by an earlier version") == 1
    # What it advises helps.
    assert set(removal.results(simulated).files) > set((results / "sub-01").rglob("*.nii.gz"))
    removal.clean(simulated)
    assert origins.earlier_version(results) == []


@pytest.mark.parametrize("text", ["", "{", "[]", '{"DatasetLinks": 3}', '{"DatasetLinks": {}}'])
def test_a_folder_that_does_not_say_where_it_comes_from_is_of_no_data_set(tmp_path, text):
    (tmp_path / "dataset_description.json").write_text(text)
    assert origins.data_set(tmp_path) is None
    origins.refuse_mixture(tmp_path, SimulatedSubject(1))
    origins.refuse_mixture(tmp_path, OwnSubject("01"))


# ---------------------------------------------------------------- the guard below all of it


def test_no_image_is_replaced_by_one_of_another_origin(tmp_path):
    path = tmp_path / "sub-01_T1w.nii.gz"
    for first, second in (("mine", "simulated"), ("simulated", "mine")):
        volumes.write(path, np.ones(SHAPE), np.eye(4), {"Note": first})
        before = content(tmp_path)
        with pytest.raises(
            ValueError, match=f"not replaced, since it is there and says '{first}', the new one '{second}'"
        ) as error:
            volumes.write(path, np.zeros(SHAPE), np.eye(4), {"Note": second})
        assert str(path) in one_line(error)
        assert content(tmp_path) == before
        volumes.write(path, np.zeros(SHAPE), np.eye(4), {"Note": first})
        os.remove(volumes.sidecar_path(path))
