import errno
import hashlib
import json
import os
import re
import resource
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

import nbformat
import pytest

from helpers import layout, volumes
from helpers.pipeline import cache, folders
from helpers.runner import cli, execution, graph, lock, log, removal, report, run, status
from helpers.runner.cluster import Cluster
from helpers.runner.graph import Task
from helpers.study import EXPERIMENTS, RESOLUTIONS
from helpers.study.file import Study


def test_the_demo_executes_every_notebook_of_the_method_after_what_it_needs():
    wanted = graph.tasks(Study(subjects=[1, 2], slice_step=1))
    names = [task.name for task in wanted]
    assert len(set(names)) == len(names)
    for number, task in enumerate(wanted):
        assert task.notebook.is_file()
        assert set(task.needs) <= set(names[:number])
    for subject in (1, 2):
        assert f"04_harmonization_sub-sim{subject:02d}_exp-3D" in names
        for resolution in RESOLUTIONS:
            assert f"04_harmonization_sub-sim{subject:02d}_res-{resolution.slug}" in names
    assert {task.notebook.stem[:2] for task in wanted} == {"00", "01", "02", "03", "04", "05"}
    graph.check_parameters(wanted)


def test_studies_beside_it_are_the_business_of_the_analysis_alone():
    wanted = graph.tasks(Study(planes=["other-coronal"], ladder=["other-rigid"]))
    graph.check_parameters(wanted)
    changes = {task.name: task.parameters["changes"] for task in wanted}
    told = {
        name: (fields["planes"], fields["ladder"])
        for name, fields in changes.items()
        if {"planes", "ladder"} & set(fields)
    }
    assert told == {"05_analysis": (["other-coronal"], ["other-rigid"])}


def test_a_parameter_that_the_notebook_does_not_know_is_refused():
    (task,) = [each for each in graph.tasks(Study()) if each.name == "05_analysis"]
    bad = Task(task.name, task.notebook, {**task.parameters, "experimnt": 3})
    with pytest.raises(
        ValueError, match=r"05_analysis.ipynb: parameter experimnt=3 is unknown: accepted are study, changes"
    ):
        graph.check_parameters([bad])


TEN = tuple(range(1, 11))


def digest(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def notebook(path, *cells):
    node = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    node.cells[0].metadata["tags"] = ["parameters"]
    node.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
    nbformat.write(node, path)
    return path


@pytest.mark.filterwarnings("ignore")
def test_a_failing_notebook_stops_only_those_that_need_it(tmp_path):
    good = notebook(tmp_path / "good.ipynb", "x: int = 0", "print(x + 1)")
    bad = notebook(
        tmp_path / "bad.ipynb", "x: int = 0", "raise RuntimeError(f'first line\\nfailed with {x}')"
    )
    wanted = [
        Task("first", good, {"x": 1}),
        Task("fails", bad, {"x": 2}),
        Task("after-first", good, {"x": 3}, ("first",)),
        Task("after-fails", good, {"x": 4}, ("fails",)),
        Task("after-that", good, {}, ("after-fails", "first")),
    ]
    results = run.execute_all(wanted, tmp_path / "report", Cluster(workers=2))
    assert {name: each.error for name, each in results.items()} == {
        "first": None,
        "after-first": None,
        "fails": "failed with 2",
    }
    assert "<html" in (tmp_path / "report" / "fails.html").read_text()
    assert (tmp_path / "report" / "after-first.ipynb").is_file()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_where_there_is_no_room_nothing_more_is_begun_and_what_was_done_is_told(tmp_path, number):
    good = notebook(tmp_path / "good.ipynb", "x: int = 0", "print(x + 1)")
    full = notebook(tmp_path / "full.ipynb", "x: int = 0", f"raise OSError({number}, 'No room', 'x.nii.gz')")
    wanted = [
        Task("first", good, {"x": 1}),
        Task("full", full, {}, ("first",)),
        Task("later", good, {"x": 2}, ("first",), ("full",)),
    ]
    results = run.execute_all(wanted, tmp_path / "report", Cluster(workers=1))
    assert {name: each.error for name, each in results.items()} == {
        "first": None,
        "full": f"OSError: [Errno {number}] No room: 'x.nii.gz'",
    }


@pytest.mark.filterwarnings("ignore")
def test_a_log_for_which_there_is_no_room_takes_nothing_with_it(tmp_path, monkeypatch):
    good = notebook(tmp_path / "good.ipynb", "x: int = 0", "print(x + 1)")
    written = log.log

    def full(folder, **event):
        if event["event"] == "done":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(folder / "log.jsonl"))
        written(folder, **event)

    monkeypatch.setattr(log, "log", full)
    wanted = [Task("first", good, {"x": 1}), Task("later", good, {"x": 2}, ("first",))]
    results = run.execute_all(wanted, tmp_path / "report", Cluster(workers=1))
    assert {name: each.error for name, each in results.items()} == {"first": None}


@pytest.mark.parametrize("length, transport", [(0, "ipc"), (120, "tcp")])
def test_a_kernel_takes_no_port_from_another_where_paths_of_sockets_are_short_enough(
    tmp_path, monkeypatch, length, transport
):
    with tempfile.TemporaryDirectory() as short:
        where = Path(short) / ("t" * length)
        where.mkdir(exist_ok=True)
        monkeypatch.setattr(tempfile, "tempdir", str(where))
        asks = notebook(
            tmp_path / "asks.ipynb",
            "x: int = 0",
            "from ipykernel import get_connection_info",
            "print(get_connection_info())",
        )
        result = execution.execute(Task("asks", asks, {}), tmp_path / "report")
        assert result.error is None
        text = "".join(
            output.text
            for cell in nbformat.read(tmp_path / "report" / "asks.ipynb", 4).cells
            for output in cell.outputs
        )
        assert json.loads(text)["transport"] == transport
        assert not list(where.iterdir())


def test_a_kernel_that_has_done_its_work_is_not_interrupted(tmp_path):
    interrupts = (
        f"get_ipython().kernel.saved_sigint_handler = lambda *_: open({str(tmp_path / 'interrupted')!r}, 'w')"
    )
    result = execution.execute(
        Task("quiet", notebook(tmp_path / "quiet.ipynb", "x: int = 0", interrupts), {}), tmp_path / "report"
    )
    assert result.error is None
    assert not (tmp_path / "interrupted").exists()


@pytest.mark.parametrize(
    "text, words",
    [
        ("experiments = ['7']", ["experiment is '7'", "accepted are 1a"]),
        ("resolutions = ['3|0']", ["resolution '3|0'", "accepted is thickness||gap"]),
        ("reconstruction = ['oblique']", ["reconstruction is 'oblique'", "accepted are axial"]),
        ("tranform = 'known'", ["unknown key 'tranform'", "did you mean transform?"]),
        ("weights = 'no/such.pt'", ["no/such.pt", "no such checkpoint"]),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2_and_nothing_written(tmp_path, capsys, text, words):
    study = tmp_path / "mine.toml"
    study.write_text(f'output_dir = "{tmp_path / "results"}"\n{text}\n')
    assert cli.main(["run", str(study)]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    for word in words:
        assert word in error
    assert not (tmp_path / "results").exists()


def test_a_missing_study_file_is_named(capsys):
    assert cli.main(["run", "no/such/study.toml"]) == 2
    assert "no/such/study.toml: no such study file" in capsys.readouterr().err


def test_a_checkpoint_that_does_not_fit_is_refused_before_anything_starts(tmp_path, capsys):
    import torch

    torch.save({"beta_encoder": {"in_conv.weight": torch.zeros(3)}}, tmp_path / "odd.pt")
    study = tmp_path / "mine.toml"
    study.write_text(f'output_dir = "{tmp_path / "results"}"\nweights = "{tmp_path / "odd.pt"}"\n')
    assert cli.main(["run", str(study)]) == 2
    error = capsys.readouterr().err
    assert "odd.pt" in error
    assert error.count("\n") == 1
    assert not (tmp_path / "results").exists()


@pytest.mark.parametrize("command", [["run"], ["run", "--dry-run"]])
@pytest.mark.parametrize(
    "line, message",
    [
        ('weights = "nowhere.pt"', "weights is 'nowhere.pt': .*nowhere.pt: no such checkpoint"),
        ('fusion = "nowhere.pt"', "fusion is 'nowhere.pt': .*nowhere.pt: no such checkpoint"),
        (
            'planes = ["ten-corona"]',
            "planes has 'ten-corona': .*scores.csv: no such table: accepted are studies that were run to "
            "the end",
        ),
        ('ladder = ["ten-corona"]', "ladder has 'ten-corona': "),
    ],
)
def test_what_a_study_builds_on_is_looked_for_before_anything_starts(
    tmp_path, capsys, command, line, message
):
    (tmp_path / "mine.toml").write_text(f'output_dir = "{tmp_path / "results"}"\n{line}\n')
    assert cli.main([*command, str(tmp_path / "mine.toml")]) == 2
    error = capsys.readouterr().err
    assert re.search(message, error) and error.count("\n") == 1
    assert not (tmp_path / "results").exists()


@pytest.mark.parametrize("place", ["note.txt", "note.txt/results"])
@pytest.mark.parametrize("command", [["run"], ["run", "--dry-run"]])
def test_a_folder_of_results_that_cannot_be_made_is_refused_before_anything_starts(
    tmp_path, capsys, command, place
):
    (tmp_path / "note.txt").write_text("")
    (tmp_path / "mine.toml").write_text(f'output_dir = "{tmp_path / place}"\n')
    assert cli.main([*command, str(tmp_path / "mine.toml")]) == 2
    error = capsys.readouterr().err
    assert "a file: accepted is" in error and error.count("\n") == 1


def test_a_study_is_taken_in_once_whatever_it_is_called(tmp_path, capsys):
    for name in ("mine", "rigid"):
        (tmp_path / name / "tables").mkdir(parents=True)
        (tmp_path / name / "tables" / "scores.csv").write_text("")
    (tmp_path / "again").symlink_to("rigid")
    start = f'output_dir = "{tmp_path}/mine"\nladder = ["{tmp_path}/rigid", '
    for line, message in (
        (f'"{tmp_path}/again"]', "ladder names .*rigid more than once"),
        (
            f'"{tmp_path}/mine"]',
            "ladder has '.*mine', which is this study itself: accepted are other studies",
        ),
    ):
        (tmp_path / "mine.toml").write_text(start + line + "\n")
        assert cli.main(["run", "--dry-run", str(tmp_path / "mine.toml")]) == 2
        assert re.search(message, capsys.readouterr().err)


@pytest.fixture
def finished(tmp_path):
    """A study of two subjects that looks finished."""
    return finish(tmp_path, (1, 2))


def finish(tmp_path, subjects):
    """As many files as the study has, all of them recorded as done: small files in place of volumes."""
    plan = Study(name="finished", subjects=subjects, output_dir=str(tmp_path / "results"), slice_step=1)
    folders.root(plan)
    report = tmp_path / "results" / "report"
    everything = []

    def make(folder, stem, number):
        made = []
        for each in range(number):
            path = tmp_path / "results" / folder / f"{stem}_{each}.nii.gz"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b"volume")
            sidecar = volumes.sidecar_path(path)
            sidecar.write_text(
                json.dumps({"ContentSha256": hashlib.sha256(b"volume").hexdigest(), "ContentBytes": 6})
            )
            made += [path, sidecar]
        everything.extend(made)
        return made

    for task in graph.tasks(plan):
        for suffix in (".ipynb", ".html"):
            (report / task.name).with_suffix(suffix).parent.mkdir(parents=True, exist_ok=True)
            (report / (task.name + suffix)).write_text("executed")
        # As measured on the demo: a harmonization depends on some 250 files, the analysis on all.
        if task.name == "05_analysis":
            files = list(everything)
        else:
            files = [*make(task.name, task.notebook.stem, 3 * max(task.images, 1)), *everything[-250:]]
        files += [report / f"{task.name}.ipynb", report / f"{task.name}.html"]
        cache.record_notebook(report, task.name, task.key, files)
        log.log(report, event="done", task=task.name, seconds=60.0, images=99)
    row = "1,1a,5||1.5,6.5,T1w,harmonized,brain,20.0\n1,1a,3||0,3.0,T1w,harmonized,brain,22.0\n"
    (tmp_path / "results" / "tables").mkdir()
    header = "subject,experiment,resolution,separation_mm,contrast,arm,region,psnr_db\n"
    (tmp_path / "results" / "tables" / "scores.csv").write_text(header + row)
    study = tmp_path / "finished.toml"
    study.write_text(
        f'name = "finished"\nsubjects = {list(subjects)}\noutput_dir = "{plan.output_dir}"\nslice_step = 1\n'
    )
    return plan, study, everything


def test_a_finished_study_of_ten_subjects_is_found_done_within_ten_seconds(tmp_path):
    plan, study, everything = finish(tmp_path, TEN)
    assert len(everything) > 10_000
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        [sys.executable, "-m", "helpers.runner.cli", "run", str(study)],
        capture_output=True,
        text=True,
        check=True,
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert "Everything was done already" in done.stdout
    # Of the processor, so that a busy machine fails no test.
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 10


def test_status_and_dry_run_count_what_is_done_and_estimate_the_rest_and_change_nothing(finished, capsys):
    plan, study, everything = finished
    (volume,) = [
        path
        for path in everything
        if path.parent.name == "04_harmonization_sub-sim02_res-5skip1p5" and path.name.endswith("_0.nii.gz")
    ]
    volume.unlink()
    before = sorted(volume.parents[1].rglob("*"))
    states = status.status(plan).set_index("task")
    assert set(states[states.state == "missing"].index) == {
        "04_harmonization_sub-sim02_res-5skip1p5",
        "05_analysis",
    }
    # The log says that each took a minute; without it, it would be the rough costs.
    assert states.expected_s["05_analysis"] == pytest.approx(60)
    assert states.expected_s["00_cohort_target"] == 0
    assert status.expected_hours(plan, states.reset_index(), 4) * 3600 == pytest.approx(
        states.expected_s.sum()
    )  # one after the other
    for command in (["status", str(study)], ["run", "--dry-run", str(study)]):
        assert cli.main(command) == 0
        said = capsys.readouterr().out
        assert re.search(r"04_harmonization\s+17\s+0\s+0\s+1 ", said)
        assert re.search(r"Left: about \d min on \d+ workers, and 0\.1 GB of disk \([\d.]+ GB free\)", said)
    assert sorted(volume.parents[1].rglob("*")) == before


def test_a_dry_run_counts_the_disk_that_is_taken_at_any_one_time(tmp_path, capsys):
    told = {}
    for kept in ("all", "tables"):
        file = tmp_path / f"{kept}.toml"
        where = (
            f'extends = "{layout.ROOT / "studies/paper.toml"}"\nname = "untouched-{kept}"\nkeep = "{kept}"\n'
        )
        file.write_text(where)
        assert cli.main(["run", "--dry-run", str(file)]) == 0
        told[kept] = float(re.search(r"and ([\d.]+) GB of disk", capsys.readouterr().out)[1])
    assert told["tables"] < 15 < told["all"]


def test_an_untouched_study_has_no_folder_after_status_and_dry_run(tmp_path, capsys):
    (tmp_path / "new.toml").write_text(f'output_dir = "{tmp_path / "results"}"\n')
    for command in (["status"], ["run", "--dry-run"], ["clean", "--yes"]):
        assert cli.main([*command, str(tmp_path / "new.toml")]) == 0
    assert "nothing there" in capsys.readouterr().out
    assert not (tmp_path / "results").exists()


def test_what_failed_is_told_with_its_error_until_it_is_done(finished, capsys):
    plan, study, _ = finished
    folder = folders.folder(plan) / "report"
    name = "02_degradation_sub-sim02"
    cache.forget_notebook(folder, name)
    log.log(folder, event="failed", task=name, seconds=3.0, images=0, error="ValueError: <so>")
    assert cli.main(["status", str(study)]) == 0
    assert f"failed: {name}: ValueError: <so>" in capsys.readouterr().out
    page = report.page(plan, status.status(plan), folder, {"Left out": ["sub-3: <no>"], "Warnings": []})
    assert "<li>sub-3: &lt;no&gt;</li>" in page
    assert "Warnings" not in page
    row = (
        f'<td><a href="{name}.html">{name}</a></td><td>failed</td><td class="time">0:03</td><td>ValueError: '
        "&lt;so&gt;</td>"
    )
    assert f'<tr class="failed">{row}</tr>' in page
    assert page.count('class="done"') == len(graph.tasks(plan)) - 1


def test_what_runs_now_is_running_as_long_as_its_run_lives(finished):
    plan, _, _ = finished
    report = folders.folder(plan) / "report"
    log.log(report, event="run")
    log.log(report, event="started", task="05_analysis")
    with lock.locked(report):
        assert status.status(plan).set_index("task").state["05_analysis"] == "running"
    assert status.status(plan).set_index("task").state["05_analysis"] == "done"


def test_only_takes_what_it_needs_along():
    wanted = graph.tasks(Study(subjects=[1, 2], slice_step=1))
    names = [task.name for task in graph.choose(wanted, ["04*sub-sim02*res-3skip0"])]
    made = [
        "00_cohort_sub-sim02",
        "02_degradation_sub-sim02",
        "03_registration_sub-sim02",
        "04_harmonization_sub-sim02_exp-3D",
    ]
    assert names == ["00_cohort_target", *made, "04_harmonization_sub-sim02_res-3skip0"]
    assert [task.name for task in graph.choose(wanted, ["01*", "00*sub-sim01"])] == [
        "00_cohort_sub-sim01",
        "01_slice_profiles",
    ]
    with pytest.raises(
        ValueError, match=r"--only is '4\*', which matches no task: accepted are patterns of names such as"
    ):
        graph.choose(wanted, ["4*"])


def test_where_notebooks_are_short_several_things_go_through_one_execution():
    wanted = graph.tasks(
        Study(subjects=TEN, resolutions=["3||0", "4||0", "5||1.5"], slice_step=23, compiled=True)
    )
    graph.check_parameters(wanted)
    assert len(wanted) < 25
    whole = graph.tasks(
        Study(subjects=TEN, slice_step=1, reconstruction=["axial", "coronal", "sagittal"], transform="rigid")
    )
    assert sum(task.notebook.stem == "04_harmonization" for task in whole) == 10 * 9
    assert not any("other_subjects" in task.parameters for task in whole)
    # All experiments of a resolution, which share their sources; the ground truth alone.
    together = [
        {task.parameters["experiment"], *task.parameters.get("other_experiments", [])}
        for task in whole
        if task.notebook.stem == "04_harmonization"
    ]
    assert together == 10 * [{"3D"}, *8 * [set(EXPERIMENTS)]]
    for number, task in enumerate(wanted):
        assert set(task.needs) <= {each.name for each in wanted[:number]}
    for stage in ("00_cohort", "02_degradation", "03_registration"):
        people = [
            [task.parameters["subject"], *task.parameters.get("other_subjects", [])]
            for task in wanted
            if task.notebook.stem == stage
        ]
        assert sorted(sum(people, [])) == sorted([*TEN, 11] if stage == "00_cohort" else TEN)
    harmonized = [task.parameters for task in wanted if task.notebook.stem == "04_harmonization"]
    assert [each["subject"] for each in harmonized] == list(TEN)
    assert all(
        {each["experiment"], *each["other_experiments"]} == {"3D", *EXPERIMENTS} for each in harmonized
    )


def test_images_of_ones_own_are_prepared_subject_by_subject_so_that_an_unfit_one_takes_nobody_along(tmp_path):
    wanted = graph.tasks(
        Study(bids_dir=str(tmp_path), subjects=["01", "02"], resolutions=["5||1.5"], slice_step=23)
    )
    assert not any("other_subjects" in task.parameters for task in wanted)


@pytest.mark.parametrize("number, size", [(10, 6), (10, 5), (7, 3), (3, 1), (2, 0), (1, 4)])
def test_groups_are_as_few_and_as_equal_as_can_be(number, size):
    groups = graph._groups(list(range(number)), size)
    assert sum(groups, []) == list(range(number))
    assert len(groups) == -(-number // max(size, 1))
    assert max(map(len, groups)) - min(map(len, groups)) <= 1


def test_a_disk_that_is_plainly_too_small_is_refused_before_anything_starts(tmp_path, monkeypatch, capsys):
    (tmp_path / "big.toml").write_text(
        f'output_dir = "{tmp_path / "results"}"\nsubjects = [1, 2, 3, 4, 5, 6, 7, 8, 9, 10]\nslice_step = 1\n'
    )
    monkeypatch.setattr(run, "free_mb", lambda folder: 3000.0)
    assert cli.main(["run", str(tmp_path / "big.toml")]) == 2
    error = capsys.readouterr().err
    assert re.search(r"the study needs about 2\d\.\d GB more, and 3\.0 GB are free", error)
    assert error.count("\n") == 1
    assert not (tmp_path / "results").exists()


def test_clean_holds_the_study_until_all_is_gone(finished, tmp_path, monkeypatch):
    plan, _, _ = finished
    report, unlink = folders.folder(plan) / "report", Path.unlink
    (report / "lock.json").write_text(
        json.dumps({"host": socket.gethostname(), "pid": os.getpid(), "started": 1.0})
    )  # of a run that was killed

    tried = []

    def watched(path, missing_ok=False):
        if path.suffix == ".html":
            tried.append(path)
            with pytest.raises(RuntimeError, match="this study is being run"), lock.locked(report):
                pass
        unlink(path, missing_ok)

    monkeypatch.setattr(Path, "unlink", watched)
    removal.clean(plan)
    assert len(tried) == len(graph.tasks(plan)) and not report.exists()


def test_clean_removes_what_the_study_wrote_and_nothing_else(finished, tmp_path, monkeypatch, capsys):
    plan, study, everything = finished
    results = folders.folder(plan)
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "file").write_text("x")
    (results / "sub-01").mkdir()
    (results / "sub-01" / "link").symlink_to(tmp_path / "precious")
    (results / "notes.txt").write_text("mine")
    for path in everything:  # Not where a study would put them, hence not its own.
        path.unlink()
    for folder in {path.parent for path in everything}:
        folder.rmdir()
    monkeypatch.setattr("builtins.input", lambda _: "")
    assert cli.main(["clean", str(study)]) == 0
    assert "Nothing was removed" in capsys.readouterr().out
    assert (results / "report" / "log.jsonl").exists()
    with lock.locked(results / "report"):
        assert cli.main(["clean", "--yes", str(study)]) == 2
        assert "is being run by process" in capsys.readouterr().err
    assert cli.main(["clean", "--yes", str(study)]) == 0
    assert re.search(r"results: \d+ files, 0\.\d\d GB", capsys.readouterr().out)
    assert [path.name for path in results.iterdir()] == ["notes.txt"]
    assert (tmp_path / "precious" / "file").read_text() == "x"


@pytest.mark.parametrize(
    "description", [None, "{", '{"Name": "somebody else\'s"}', '{"Name": "resolution-matters: another"}']
)
def test_clean_keeps_off_a_folder_that_this_study_did_not_write(tmp_path, capsys, description):
    (tmp_path / "mine.toml").write_text(f'output_dir = "{tmp_path / "home"}"\n')
    (tmp_path / "home" / "tables").mkdir(parents=True)
    if description:
        (tmp_path / "home" / "dataset_description.json").write_text(description)
    assert cli.main(["clean", "--yes", str(tmp_path / "mine.toml")]) == 2
    assert "accepted is a folder that the study mine wrote" in capsys.readouterr().err
    assert (tmp_path / "home" / "tables").exists()
