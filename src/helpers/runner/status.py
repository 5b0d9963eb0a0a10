"""The state of a study, and how long the rest will take."""

import statistics
from pathlib import Path

import pandas as pd

from helpers.pipeline import cache, folders
from helpers.runner import graph, lock, log, schedule
from helpers.study.file import Study
from helpers.study.subjects import Subject


def report_folder(plan: Study) -> Path:
    return folders.folder(plan) / "report"


def expected_s(wanted: list[graph.Task], folder: Path) -> dict[str, float]:
    """Task -> the seconds that it will take if all of its images are to be made.

    These are the rough costs. If the study's log has such executions of the same notebook, the costs are
    multiplied by the median ratio of measured to rough costs.
    """
    named = {task.name: task for task in wanted}
    off = {}
    for event in log.events(folder):
        task = named.get(event.get("task"))
        # One that found its images there says nothing about how long they take.
        if task and event.get("event") == "done" and event.get("images", 0) >= task.images:
            off.setdefault(task.notebook, []).append(event["seconds"] / task.cost_s)
    return {task.name: task.cost_s * statistics.median(off.get(task.notebook, [1])) for task in wanted}


def status(plan: Study) -> pd.DataFrame:
    """The state of a study, task by task. Nothing is changed.

    Parameters
    ----------
    plan : Study
        With its subjects named one by one, as `helpers.pipeline.participants.check_cohort` leaves them.

    Returns
    -------
    DataFrame
        One row per task: ``task``, ``stage`` (its notebook), ``state`` (done, running, failed or missing),
        ``seconds`` of its last execution (NaN if there was none), ``expected_s`` and ``expected_mb`` of what
        is yet to be done, ``error``.
    """
    folder = report_folder(plan)
    unfit = ()
    if plan.bids_dir:
        first = states(first_tasks(graph.tasks(plan)), folder)
        unfit = unfit_subjects(plan, set(first.task[first.state == "failed"]))
    return states(graph.tasks(plan, unfit), folder)


def first_tasks(wanted: list[graph.Task]) -> list[graph.Task]:
    """The tasks that need no other: the images of the subjects and of the target."""
    return [task for task in wanted if not task.needs]


def unfit_subjects(plan: Study, failed: set[str]) -> tuple[Subject, ...]:
    """The subjects whose images could not be prepared, given the tasks that failed."""
    return tuple(subject for subject in plan.subjects if f"00_cohort_{subject.name}" in failed)


def states(wanted: list[graph.Task], folder: Path, repair: bool = False) -> pd.DataFrame:
    running, last = set(), {}
    for event in log.events(folder):
        name = event.get("task")
        if event.get("event") == "run":
            running = set()
        elif event.get("event") == "started":
            running.add(name)
        elif event.get("event") in ("done", "failed"):
            running.discard(name)
            last[name] = event
    # A run that repairs has the lock itself, and has started nothing yet.
    if repair or lock.holder(folder) is None:
        running = set()
    cost, rows = expected_s(wanted, folder), []
    for task in wanted:
        before = last.get(task.name, {})
        if task.name in running:
            state = "running"
        elif is_done(task, folder, repair):
            state = "done"
        else:
            state = "failed" if before.get("event") == "failed" else "missing"
        left = state != "done"
        error = before.get("error", "") if state == "failed" else ""
        rows.append(
            (
                task.name,
                task.notebook.stem,
                state,
                before.get("seconds"),
                left * cost[task.name],
                left * task.size_mb,
                error,
            )
        )
    table = pd.DataFrame(
        rows, columns=["task", "stage", "state", "seconds", "expected_s", "expected_mb", "error"]
    )
    return table.astype({"seconds": float})


def expected_hours(plan: Study, states: pd.DataFrame, workers: int) -> float:
    """Hours that the tasks of `states` that are not done will take on some workers."""
    left = states[states.expected_s > 0]
    needs = graph.needs_of([task for task in graph.tasks(plan) if task.name in set(left.task)])
    seconds = dict(zip(left.task, left.expected_s, strict=True))
    return (
        schedule.makespan(
            {name: needs[name] for name in schedule.urgent_first(needs, seconds)}, seconds, workers
        )
        / 3600
    )


def is_done(task: graph.Task, folder: Path, repair: bool = False) -> bool:
    return cache.notebook_is_done(folder, task.name, task.key, repair, task.removable)
