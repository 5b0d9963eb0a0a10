"""What each notebook is told of a study, and scheduling: bounds that any schedule keeps, on random graphs."""

import pytest
from hypothesis import given, strategies as st

from helpers.runner import graph, schedule
from helpers.study import CONTRASTS
from helpers.study.file import Study
from helpers.study.subjects import OwnSubject

SIMULATED = {"subjects": (1, 2)}
OWN = {"bids_dir": "/data/mine", "subjects": ("01", "02")}
TARGETS = {contrast: f"/data/{contrast}.nii.gz" for contrast in CONTRASTS}
NUMBERS = {contrast: {"theta": [0, 1], "eta": [1, 2], "norm": 3} for contrast in CONTRASTS}

ALL = "00 target 01 02 03 04 05"
#: Field -> another value, and the notebooks that are run again with it; the target subject's is called so.
DEPENDS_ON = {
    "name": ("x", ALL),
    "output_dir": ("/data/x", ALL),
    "keep": ("tables", ALL),
    "dropped": (["FLAIR"], ALL),
    "experiments": (["1a", "2"], "02 03 04 05"),
    "resolutions": (["3||0"], "02 03 04 05"),
    "transform": ("rigid", "03 04 05"),
    "reconstruction": (["coronal"], "03 04 05"),
    "slice_step": (7, "03 04 05"),
    "seed": (4, "00 03 04 05"),
    "anatomy": ("argmax", "04 05"),
    "mask": ("union", "04 05"),
    "remedies": (["fusion"], "04 05"),
    "taught_on": (["01"], ""),
    "teaching_steps": (9, ""),
    "resolution_weights": ("x.pt", ""),
    "weights": ("x.pt", "04 05"),
    "fusion": ("x.pt", "04 05"),
    "variant": ("haca3plus", "04 05"),
    "precision": ("bfloat16", "04 05"),
    "compiled": (False, "04 05"),
    "downstream": (True, "04 05"),
    "harmonizer": ("nyul", "04 a2 05"),
    "targets": (NUMBERS, "target 04 05"),
    "planes": (["x"], "05"),
    "ladder": (["x"], "05"),
    "select": ({"T1w": "run-1"}, "00"),
    "brain": ("keep", "00"),
    "subjects": (("01", "03"), "00 02 03 04 05"),
    "bids_dir": ("/data/x", "00"),
}


#: The same where stacks are super-resolved.
REMEDIED = {"remedies": ["super-resolution"]}
WITH_REMEDIES = {
    "remedies": (["super-resolution", "fusion"], "08 03 04 05"),
    "taught_on": (["02"], "08 03 04 05"),
    "teaching_steps": (9, "08 03 04 05"),
    "experiments": (["1a", "2"], "02 03 04 05"),
    "anatomy": ("argmax", "04 05"),
    "subjects": (("01", "02", "03"), "00 02 03 04 05 08"),
}


def keys(**fields):
    return {task.name: task.key for task in graph.tasks(Study(**fields))}


@pytest.mark.parametrize("field", DEPENDS_ON)
def test_a_notebook_is_run_again_for_a_field_that_it_depends_on_and_for_no_other(field):
    value, expected = DEPENDS_ON[field]
    before, after = keys(**OWN), keys(**{**OWN, field: value})
    changed = {name for name in {*before, *after} if before.get(name) != after.get(name)}
    assert {"target" if name.endswith("target") else name[:2] for name in changed} == set(expected.split())


@pytest.mark.parametrize("field", WITH_REMEDIES)
def test_what_is_taught_is_taught_again_for_what_it_is_taught_by(field):
    value, expected = WITH_REMEDIES[field]
    before, after = keys(**OWN, **REMEDIED), keys(**{**OWN, **REMEDIED, field: value})
    changed = {name[:2] for name in {*before, *after} if before.get(name) != after.get(name)}
    assert changed == set(expected.split())


def test_stacks_wait_for_the_network_of_their_resolution_and_it_for_the_stacks_that_teach_it():
    plan = Study(subjects=[1, 2, 3, 4, 5], resolutions=["3||0", "5||1.5"], **REMEDIED)
    tasks = {task.name: task for task in graph.tasks(plan)}
    order = list(tasks)
    assert all(order.index(need) < order.index(name) for name in order for need in tasks[name].needs)
    lessons = [name for name in order if name.startswith("08")]
    assert lessons == ["08_remedies_res-3skip0", "08_remedies_res-5skip1p5"]
    for name in lessons:
        assert all(need.startswith("02_degradation") for need in tasks[name].needs)
        assert tasks[name].parameters["changes"]["taught_on"] == [1, 2, 3]
    assert all(set(lessons) <= set(tasks[name].needs) for name in order if name.startswith("03"))
    # Whoever turns out unfit teaches nobody.
    unfit = {task.name: task for task in graph.tasks(Study(**OWN, **REMEDIED), unfit=[OwnSubject("01")])}
    (lesson,) = {
        str(task.parameters["changes"]["taught_on"]) for name, task in unfit.items() if name[:2] == "08"
    }
    assert lesson == "['02']"


def test_nobody_else_teaches():
    with pytest.raises(ValueError, match="taught_on has 9: accepted are the study's subjects, 1, 2"):
        graph.check_subjects(Study(subjects=[1, 2], taught_on=[2, 9]))
    graph.check_subjects(Study(subjects=[1, 2], taught_on=[2]))
    graph.check_subjects(Study(bids_dir="/data/mine", taught_on=["01"]))


def test_the_weights_of_a_trained_remedy_matter_where_it_is_tried():
    trained = {**OWN, "remedies": ["training"]}
    before, after = keys(**trained), keys(**trained, resolution_weights="x.pt")
    assert {name[:2] for name in before if before[name] != after[name]} == {"04", "05"}


def test_every_field_of_a_study_is_tested():
    assert set(DEPENDS_ON) == set(Study().literals())


def test_the_seed_is_that_of_preparations_and_simulated_subjects_need_none():
    def notebooks(one, other):
        return {name[3:] for name in one if name[:2] == "00" and one[name] != other[name]}

    assert notebooks(keys(**SIMULATED), keys(**SIMULATED, seed=4)) == set()
    given = {**OWN, "targets": TARGETS}
    assert notebooks(keys(**given), keys(**given, seed=4)) == {
        "cohort_target",
        "cohort_sub-01",
        "cohort_sub-02",
    }


@pytest.mark.parametrize("fields", [SIMULATED, {**OWN, "targets": TARGETS}], ids=["simulated", "own"])
def test_a_notebook_has_the_study_of_its_task_without_a_file(fields):
    plan = Study(**fields, anatomy="argmax", resolutions=["7||0.7"], slice_step=7)
    for task in graph.tasks(plan):
        parameters, stem = task.parameters, task.notebook.stem
        assert parameters["study"] == ""
        own = {} if stem == "05_analysis" else {"subjects": [parameters["subject"]]}
        same = Study.from_parameters("", parameters["changes"], **own)
        for field in parameters["changes"]:
            assert getattr(same, field) == getattr(plan, field)


@st.composite
def graphs(draw):
    size = draw(st.integers(1, 14))
    needs = {
        str(n): [str(m) for m in draw(st.sets(st.integers(0, n - 1), max_size=3))] if n else []
        for n in range(size)
    }
    return needs, {task: draw(st.integers(1, 50)) for task in needs}


@given(graphs(), st.integers(1, 6))
def test_no_schedule_beats_the_critical_path_or_the_workers_and_a_greedy_one_is_at_most_their_sum(
    study, workers
):
    needs, seconds = study
    span, total = schedule.makespan(needs, seconds, workers), sum(seconds.values())
    longest = sum(seconds[task] for task in schedule.critical_path(needs, seconds))
    assert max(longest, total / workers) <= span + 1e-9
    assert span <= total / workers + longest * (1 - 1 / workers) + 1e-9  # Graham 1969


@given(graphs())
def test_one_worker_takes_the_sum_and_many_take_the_critical_path(study):
    needs, seconds = study
    assert schedule.makespan(needs, seconds, 1) == sum(seconds.values())
    assert schedule.makespan(needs, seconds, len(needs)) == sum(
        seconds[task] for task in schedule.critical_path(needs, seconds)
    )


@given(graphs())
def test_the_critical_path_is_a_chain(study):
    needs, seconds = study
    chain = schedule.critical_path(needs, seconds)
    assert all(before in needs[task] for before, task in zip(chain, chain[1:]))


def test_what_is_needed_from_elsewhere_is_there():
    assert schedule.makespan({"b": ["a"]}, {"b": 2}, 1) == 2
    assert schedule.makespan({}, {}, 3) == 0
    assert schedule.critical_path({}, {}) == []


@given(graphs())
def test_the_urgent_come_first_and_all_come_after_their_needs(study):
    needs, seconds = study
    order = schedule.urgent_first(needs, seconds)
    assert sorted(order) == sorted(needs)
    assert all(order.index(need) < order.index(task) for task in needs for need in needs[task])


def test_what_others_wait_for_is_not_left_until_last():
    needs, seconds = {"a": [], "b": [], "c": [], "d": ["c"]}, {"a": 3, "b": 3, "c": 3, "d": 3}
    assert schedule.makespan(needs, seconds, 2) == 9
    assert (
        schedule.makespan({task: needs[task] for task in schedule.urgent_first(needs, seconds)}, seconds, 2)
        == 6
    )
