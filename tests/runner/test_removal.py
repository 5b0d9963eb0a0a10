"""Studies that keep their tables only: what is removed when, counts as done, and is made again when read."""

import hashlib

import numpy as np
import pytest

from helpers import layout, volumes
from helpers.pipeline import cache, folders
from helpers.runner import graph, removal, schedule
from helpers.study.file import Study


@pytest.fixture
def plan(tmp_path):
    return Study(
        subjects=[1, 2],
        slice_step=1,
        resolutions=["3||0", "5||1.5"],
        keep="tables",
        output_dir=str(tmp_path / "results"),
    )


def steps_left(plan, done):
    """The subjects (by number) and steps whose volumes something still needs."""
    everything = graph.tasks(plan)
    names = {task.name for task in everything if task.name.startswith(tuple(done))}
    gone = {(subject.number, step) for subject, step in removal.unneeded(plan, everything, names)}
    return {(s.number, step) for s in plan.subjects for step in removal._READ_BY} - gone


def test_volumes_stay_as_long_as_a_notebook_of_their_subject_or_the_analysis_reads_them(plan):
    first = ["00_", "01_", "02_", "03_"]
    assert len(steps_left(plan, [])) == 6
    every = {(s, step) for s in (1, 2) for step in ("registration", "harmonization")}
    assert steps_left(plan, first) == every
    some = [*first, "04_harmonization_sub-sim02_res-3skip0", "04_harmonization_sub-sim02_exp-3D"]
    assert steps_left(plan, some) == every
    whole = [*first, "04_harmonization_sub-sim02", "04_harmonization_sub-sim01"]
    assert steps_left(plan, whole) == {(1, "registration"), (1, "harmonization")}  # the analysis shows one
    assert steps_left(plan, [*whole, "05_"]) == set()


def test_only_volumes_of_what_is_over_are_removed_and_their_sidecars_stay(plan):
    paths = {}
    for subject in plan.subjects:
        for desc in ("preproc", "degraded", "registeredKnown", "harmonized", "harmonizedAgain"):
            path = layout.image(folders.root(plan), subject, "T1w", desc=desc)
            volumes.write(path, np.ones((2, 2, 2)), np.eye(4))
            paths[subject.number, desc] = path
    everything = graph.tasks(plan)
    done = {task.name for task in everything if "sub-sim02" in task.name or "to_sub" in task.name}
    removal.remove_unneeded(plan, everything, done)
    left = {key for key, path in paths.items() if path.exists()}
    assert {desc for subject, desc in left if subject == 2} == {"preproc"}
    assert {desc for subject, desc in left if subject == 1} >= {"preproc", "registeredKnown", "harmonized"}
    assert all(volumes.sidecar_path(path).exists() for path in paths.values())
    whole = Study(**{**vars(plan), "keep": "all"})
    removal.remove_unneeded(whole, graph.tasks(whole), {task.name for task in everything})
    assert left == {key for key, path in paths.items() if path.exists()}


def test_a_removed_volume_counts_as_done_and_is_made_again_with_the_same_bytes_when_it_is_read(tmp_path):
    path, made = tmp_path / "sub-1_T1w.nii.gz", []

    def work(names):
        made.append(names)
        yield np.full((3, 3, 3), 7.0), np.eye(4), {}

    def compute(removable):
        cache.compute({"T1w": path}, "key", [], work, removable)

    compute(True)
    before = hashlib.sha256(path.read_bytes()).hexdigest()
    path.unlink()
    compute(True)
    assert len(made) == 1 and not path.exists()
    assert volumes.read(path)[0][0, 0, 0] == 7
    assert len(made) == 2 and hashlib.sha256(path.read_bytes()).hexdigest() == before
    path.unlink()
    compute(False)  # of a study that keeps all it would be missing
    assert len(made) == 3 and path.exists()


def test_a_notebook_is_done_without_the_volumes_that_were_removed_but_not_without_their_sidecars(tmp_path):
    report, path = tmp_path / "report", tmp_path / "sub-1" / "sub-1_T1w.nii.gz"
    volumes.write(path, np.ones((2, 2, 2)), np.eye(4))
    cache.record_notebook(report, "04", "key", [path, volumes.sidecar_path(path)])
    path.unlink()
    assert not cache.notebook_is_done(report, "04", "key")
    assert cache.notebook_is_done(report, "04", "key", removable=True)
    volumes.sidecar_path(path).unlink()
    assert not cache.notebook_is_done(report, "04", "key", removable=True)


def test_what_is_kept_is_no_parameter_of_the_notebooks_unless_volumes_are_removed(plan):
    whole = Study(**{**vars(plan), "keep": "all"})
    assert not any("keep" in task.parameters["changes"] or task.removable for task in graph.tasks(whole))
    assert all(task.removable for task in graph.tasks(plan))


def test_the_study_of_the_paper_never_takes_more_than_15_gb():
    plan = Study.from_toml(layout.ROOT / "studies" / "paper.toml")
    tasks = {task.name: task for task in graph.tasks(plan)}
    seconds = {name: task.cost_s for name, task in tasks.items()}
    order = [tasks[name] for name in schedule.urgent_first(graph.needs_of(list(tasks.values())), seconds)]
    assert removal.largest_mb(plan, order) < 15_000
    whole = Study(**{**vars(plan), "keep": "all"})
    assert removal.largest_mb(whole, order) == pytest.approx(sum(task.size_mb for task in order))
