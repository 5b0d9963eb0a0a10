"""The call that BIDS Apps share: the study file that it amounts to, what it runs, and what it refuses."""

import json
import tempfile
from importlib.metadata import version
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from helpers.pipeline import models
from helpers.runner import bids_app, cli, graph, run
from helpers.runner.cluster import Cluster
from helpers.study import CONTRASTS
from helpers.study.file import Study

SHAPE = (120, 120, 120)


@pytest.fixture
def bids(tmp_path):
    """Two subjects without sessions and one with two, whose images are headers and little else."""
    folder = tmp_path / "my data"
    for number, label in enumerate(("01", "02", "p3_ses-a", "p3_ses-b")):
        for contrast in CONTRASTS:
            path = folder.joinpath(*f"sub-{label}".split("_"), "anat", f"sub-{label}_{contrast}.nii.gz")
            path.parent.mkdir(parents=True, exist_ok=True)
            image = np.zeros(SHAPE, np.uint8)
            image[0, 0, : number + 1] = 1 + CONTRASTS.index(contrast)  # no two files are the same
            nib.save(nib.Nifti1Image(image, np.eye(4)), path)
    return folder


@pytest.fixture
def started(monkeypatch):
    """What would be run, instead of running it."""
    calls = []

    def stand_in(plan, where, only):
        calls.append((plan, where, list(only)))
        return run.Outcome({}, [], 0, Path(plan.output_dir) / "report" / "index.html", 0)

    monkeypatch.setattr(run, "run", stand_in)
    return calls


def call(bids, out, level="participant", *options):
    return cli.main([str(bids), str(out), level, *map(str, options)])


def test_a_call_becomes_a_study_file_that_says_the_same(bids, started, tmp_path):
    out = tmp_path / "out put"
    options = ["--participant-label", "sub-01", "02", "--resolution", "5||1.5", "3skip0"]
    options += ["--orientation", "axial", "coronal", "--harmonizer", "histogram", "--n-procs", 2]
    assert call(bids, out, "participant", *options) == 0
    ((plan, where, only),) = started
    assert plan.name == "out-put"
    assert (plan.bids_dir, plan.output_dir) == (str(bids), str(out))
    assert plan.literals()["subjects"] == ["01", "02"]
    assert plan.experiments == ("1a", "1c")
    assert [each.label for each in plan.resolutions] == ["5||1.5", "3||0"]
    assert plan.harmonizer == "histogram"
    assert where == Cluster(cores=2)
    text = (out / bids_app.STUDY_FILE).read_text()
    assert f"#   resolution-matters '{bids}' '{out}' participant" in text
    assert version("resolution-matters") in text
    # Whoever runs the file instead does the same.
    assert Study.from_toml(out / bids_app.STUDY_FILE) == plan


def test_another_harmonizer_is_in_the_study_file_and_its_notebook_among_those_of_the_participants(
    bids, started, tmp_path
):
    assert (
        call(bids, tmp_path / "out", "participant", "--participant-label", "01", "--harmonizer", "histogram")
        == 0
    )
    ((plan, _, only),) = started
    assert plan.harmonizer == "histogram"
    assert Study.from_toml(tmp_path / "out" / bids_app.STUDY_FILE) == plan
    names = {task.notebook.stem for task in graph.choose(graph.tasks(plan), only)}
    assert "a2_other_harmonizer" in names
    assert "05_analysis" not in names


def test_what_is_not_said_is_what_a_study_has_by_default(bids, started, tmp_path):
    assert call(bids, tmp_path / "out", "group") == 0
    ((plan, where, only),) = started
    assert plan == Study(name="out", bids_dir=str(bids), output_dir=str(tmp_path / "out"))
    assert (where, only) == (Cluster(), [])


def test_participants_come_before_the_analysis_and_the_group_is_all_of_it(bids, tmp_path, monkeypatch):
    chosen = []

    def execute_all(wanted, folder, where, before=None, remove=None):
        chosen.append([task.name for task in wanted])
        return {task.name: None for task in wanted}

    monkeypatch.setattr(run, "execute_all", execute_all)
    monkeypatch.setattr(run.participants, "check_cohort", lambda plan, voxels=True: (plan, {}))
    monkeypatch.setattr(run.participants, "findings", lambda *args: [])
    monkeypatch.setattr(models, "check_models", lambda plan: None)
    monkeypatch.setattr(run.report, "page", lambda *args: "")
    for level in bids_app.LEVELS:
        assert call(bids, tmp_path / "out", level, "--participant-label", "01", "--resolution", "3||0") == 0
    participant, group = chosen[1], chosen[3]
    assert any(name.startswith("04_harmonization_sub-01") for name in participant)
    assert not [name for name in participant if name.startswith("05")]
    assert set(group) - set(participant) == {"05_analysis"}


@pytest.mark.parametrize(
    "options, subjects",
    [
        (["--session-label", "ses-a"], ("p3_ses-a",)),
        (["--session_label", "a", "b"], ("p3_ses-a", "p3_ses-b")),
        (["--participant_label", "p3"], ("p3",)),
        (["--participant-label", "p3", "--session-label", "b"], ("p3_ses-b",)),
    ],
)
def test_subjects_and_sessions_are_chosen_by_their_labels(bids, started, tmp_path, options, subjects):
    assert call(bids, tmp_path / "out", "participant", *options) == 0
    assert tuple(started[0][0].literals()["subjects"]) == subjects


@pytest.mark.parametrize(
    "options, message",
    [
        (["--participant-label", "99"], "no subject '99': accepted are 01, 02, p3"),
        (["--session-label", "z"], "--session-label is z: accepted are a, b"),
        (["--resolution", "5"], "resolution '5' is unknown: accepted is thickness||gap in mm"),
        (["--orientation", "oblique"], "--orientation is 'oblique': accepted are axial, sagittal, coronal"),
        (["--harmonizer", "combat"], "harmonizer is 'combat': accepted are haca3"),
        (["--n-procs", "0"], "--n-procs is 0: accepted are whole numbers from 1"),
        (["--mem-gb", "1"], "--mem-gb is 1: accepted is at least 3.2"),
        (["--n-procs", "100000"], "cores is 100000: accepted are whole numbers from 0 to 1000"),
        (["--work-dir", "/dev/null"], "/dev/null: a file: accepted is another name, of a folder"),
        (["--mem-gb", "nan"], "--mem-gb is nan: accepted is at least 3.2"),
        (["--mem-gb", "inf"], "--mem-gb is inf: accepted is at least 3.2"),
    ],
)
def test_a_bad_call_is_refused_in_one_line_and_leaves_nothing(
    bids, started, tmp_path, capsys, options, message
):
    assert call(bids, tmp_path / "out", "participant", *options) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert not started and not (tmp_path / "out").exists()


def test_a_folder_that_is_not_there_and_one_for_both_are_refused(bids, started, tmp_path, capsys):
    assert call(tmp_path / "nowhere", tmp_path / "out") == 2
    assert f"{tmp_path / 'nowhere'}: no such folder" in capsys.readouterr().err
    assert call(bids, bids) == 2
    assert "accepted is a folder of its own" in capsys.readouterr().err
    assert not started and not (bids / "code").exists()


def test_a_level_is_missed_and_a_folder_that_is_called_as_a_command_is_not_mistaken(bids, capsys):
    with pytest.raises(SystemExit) as exit:
        cli.main([str(bids), "out"])
    assert exit.value.code == 2 and "level" in capsys.readouterr().err
    assert not bids_app.is_call(["run", "participant"], ["run"])
    assert bids_app.is_call(["--n-procs", "2", "x", "y", "group"], ["run"])
    assert not bids_app.is_call(["--version"], ["run"]) and not bids_app.is_call([], ["run"])


@pytest.mark.parametrize("level", [[], ["participant"]])
@pytest.mark.parametrize("option", ["--version", "--help"])
def test_version_and_help_are_told_either_way(option, level, capsys):
    with pytest.raises(SystemExit) as exit:
        cli.main([*level, option])
    text = capsys.readouterr().out
    assert exit.value.code == 0
    assert text == f"{version('resolution-matters')}\n" if option == "--version" else "BIDS_DIR" in text


def test_memory_limits_the_workers_and_cores_their_threads(bids, started, tmp_path):
    assert call(bids, tmp_path / "out", "participant", "--n-procs", 4, "--mem-gb", 7) == 0
    where = started[0][1]
    assert (where.size(), where.threads()) == (2, 2)


def test_temporary_files_are_kept_where_they_are_wanted(bids, started, tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.setenv("TMPDIR", "/nowhere")
    assert call(bids, tmp_path / "out", "participant", "--work-dir", tmp_path / "scratch") == 0
    with tempfile.TemporaryDirectory() as folder:
        assert Path(folder).parent == tmp_path / "scratch"


def test_one_that_fails_ends_with_1(bids, started, tmp_path, monkeypatch, capsys):
    failed = run.Outcome({"02_degradation_sub-01": "ValueError: x"}, [], 1, tmp_path / "index.html", 0)
    monkeypatch.setattr(run, "run", lambda *args: failed)
    assert call(bids, tmp_path / "out") == 1
    assert "failed: 02_degradation_sub-01: ValueError: x" in capsys.readouterr().err


def test_the_results_are_described_as_the_convention_asks(bids, tmp_path):
    from helpers.pipeline import folders

    folders.root(Study(name="x", bids_dir=str(bids), subjects=["01"], output_dir=str(tmp_path / "out")))
    description = json.loads((tmp_path / "out" / "dataset_description.json").read_text())
    assert {"Name", "BIDSVersion"} <= set(description) and description["DatasetType"] == "derivative"
    ours = description["GeneratedBy"][0]
    assert ours["Name"] == "resolution-matters" and ours["Version"] == version("resolution-matters")
    assert description["SourceDatasets"] == [{"URL": "../my data"}]
