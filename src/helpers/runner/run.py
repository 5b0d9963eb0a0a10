"""A study as a graph of notebook executions: papermill on dask.distributed.

One execution is one task in one worker process. A task that is recorded as done (`helpers.pipeline.cache`) is
not executed, and an executed notebook computes only the files that are missing (`helpers.pipeline.steps`). So
running a study a second time, or after it was killed, computes only what is missing.
"""

import errno
import shutil
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import pandas as pd

from helpers.cohort import origins
from helpers.pipeline import finished, folders, models, participants, steps
from helpers.runner import execution, graph, lock, log, progress, removal, report, schedule, status, workers
from helpers.runner.cluster import Cluster
from helpers.study.file import Study
from helpers.volumes.files import remove_leftovers, require_place, write_bytes

#: Errors of the system when a file does not fit on the disk: a full disk, a quota.
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT)

#: A study is refused if less than this part of its estimated size is free: the estimate may be a little high.
_LEAST_FREE_PART = 0.8


@dataclass(frozen=True)
class Outcome:
    """The result of a run: task -> error line; tasks that could not start; number of executed tasks; index
    page; seconds."""

    failed: dict[str, str]
    skipped: list[str]
    executed: int
    report: Path
    seconds: float


def run(plan: Study, where: Cluster | None = None, only: Iterable[str] = ()) -> Outcome:
    """Run a study: check it whole, execute its notebooks as far as they are not done, write the report.

    Parameters
    ----------
    plan : Study
        What to compute.
    where : Cluster, optional
        Where; by default on this machine.
    only : iterable of str
        Patterns of task names, as `choose` takes them; by default all tasks.

    Raises
    ------
    ValueError, FileNotFoundError
        Before anything starts, if a notebook does not know a parameter, a checkpoint is missing or does not
        fit, another study that it builds on was not run, or no subject can take part.
    RuntimeError
        Before anything starts, if another process runs the study; later, if jobs of a batch system end as
        soon as they begin.
    OSError
        Before anything starts, if the disk is plainly too small.
    """
    started, where = time.monotonic(), where or Cluster()
    graph.check_subjects(plan)
    plan, left_out = participants.check_cohort(plan)
    for line in [f"left out: {reason}" for reason in left_out.values()] + origins.earlier_version(
        folders.folder(plan)
    ):
        print(line, file=sys.stderr)
    everything = graph.tasks(plan)
    wanted = graph.choose(everything, only) if only else everything
    folder = status.report_folder(plan)
    page = folder / "index.html"
    if not folder.exists():  # What is refused leaves nothing behind.
        refuse_early(plan, wanted)
        check_space(plan, status.states(wanted, folder))
    with lock.locked(folder):
        states = status.states(wanted, folder, repair=True)
        results, unfit, warnings = dict.fromkeys(states.task), (), None
        if not all(states.state == "done"):
            refuse_early(plan, wanted)
            check_space(plan, states)
            remove_leftovers(folders.root(plan), removal.OURS)
            before = {}
            if plan.bids_dir:
                # Subjects whose images turn out to be unfit are left out before hours are spent; the study
                # goes on with the others.
                left = set(states.task[states.state != "done"])
                before = execute_all(
                    [task for task in status.first_tasks(wanted) if task.name in left], folder, where
                )
                failed = {name for name, result in before.items() if _failed(result)}
                unfit = status.unfit_subjects(plan, failed)
                left_out |= {
                    subject.name: f"{subject.name}: {before[f'00_cohort_{subject.name}'].error}"
                    for subject in unfit
                }
                everything = graph.tasks(plan, unfit)
                named = {task.name: task for task in everything}
                wanted = [named[task.name] for task in wanted if task.name in named]
                warnings = participants.findings(plan, unfit)
                for warning in warnings:
                    print(warning, file=sys.stderr)
            done_before = set(states.task[states.state == "done"])

            def remove(results):
                ended = {name for name, result in results.items() if not _failed(result)}
                removal.remove_unneeded(plan, everything, done_before | ended)

            remove({})
            results = execute_all(wanted, folder, where, before, remove)
        if any(results.values()) or len(results) < len(wanted) or plan.bids_dir or not page.exists():
            remarks = {
                "Left out": list(left_out.values()),
                "Warnings": participants.findings(plan) if warnings is None else warnings,
            }
            try:
                write_bytes(
                    page, report.page(plan, status.states(everything, folder), folder, remarks).encode()
                )
            except OSError as error:  # A full disk must not take with it what is to be said of the notebooks.
                print(f"the report could not be written: {error}", file=sys.stderr)
    failed = {name: result.error for name, result in results.items() if _failed(result)}
    skipped = [task.name for task in wanted if task.name not in results]
    executed = sum(result is not None for result in results.values())
    return Outcome(failed, skipped, executed, page, time.monotonic() - started)


def refuse_early(plan: Study, wanted: list[graph.Task]) -> None:
    """Check at once what would otherwise fail after hours: the place of the results, parameters that a
    notebook does not know, remedies, checkpoints, other studies.

    Raises
    ------
    ValueError, OSError
        As `helpers.volumes.files.require_place`, `check_parameters`, `helpers.pipeline.steps.check_remedies`,
        `helpers.pipeline.models.check_models` and `helpers.pipeline.finished.check_others`.
    """
    require_place(folders.folder(plan), folder=True)
    graph.check_parameters(wanted)
    steps.check_remedies(plan)
    models.check_models(plan)
    finished.check_others(plan)


def check_space(plan: Study, states: pd.DataFrame) -> None:
    """Refuse to start where the disk is plainly too small for what is missing.

    Raises
    ------
    OSError
        Stating both numbers.
    """
    folder = folders.folder(plan)
    free, wanted = free_mb(folder), wanted_mb(plan, states)
    if free < _LEAST_FREE_PART * wanted:
        raise OSError(
            f"{folder}: the study needs about {wanted / 1000:.1f} GB more, and {free / 1000:.1f} GB are "
            "free: make space, or set output_dir"
        )


def wanted_mb(plan: Study, states: pd.DataFrame) -> float:
    """Disk that what is missing takes at any one time, in MB."""
    wanted = states.expected_mb.sum()
    if plan.keep != "tables":
        return wanted
    tasks = {task.name: task for task in graph.tasks(plan)}
    seconds = {name: task.cost_s for name, task in tasks.items()}
    order = schedule.urgent_first(graph.needs_of(list(tasks.values())), seconds)
    return min(wanted, removal.largest_mb(plan, [tasks[name] for name in order]))


def free_mb(folder: Path) -> float:
    """Free space of the disk on which a folder is, or will be, in MB."""
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free / 1e6


def execute_all(
    wanted: list[graph.Task],
    folder: Path,
    where: Cluster,
    before: Mapping[str, execution.Execution | None] = MappingProxyType({}),
    after: Callable[[Mapping], None] = lambda results: None,
) -> dict[str, execution.Execution | None]:
    """Execute the notebooks that are not done, each after those it needs. One that fails does not stop those
    that do not need it.

    Parameters
    ----------
    wanted : list of Task
        Each after those it needs.
    folder : Path
        Where executed notebooks, records and log are kept.
    where : Cluster
        What executes them.
    before : mapping of str to (Execution or None)
        What an earlier call returned: these are not executed again.
    after : callable
        Is called with what is in the result so far, whenever tasks have ended.

    Returns
    -------
    dict
        Task -> what became of its execution; None if it was done before. Tasks that could not start are not
        in it.
    """
    wanted = [task for task in wanted if task.name not in before]
    if not wanted or _full(before):
        return dict(before)
    # In the order of the method, the first subject would be finished before the last is begun, and cores
    # would lie idle at the end.
    named = {task.name: task for task in wanted}
    wanted = [
        named[name]
        for name in schedule.urgent_first(graph.needs_of(wanted), status.expected_s(wanted, folder))
    ]
    log.log(folder, event="run", kind=where.kind, workers=where.size(), threads=where.threads())
    with workers.start(where, folder / "jobs") as (client, renewal):
        print(f"dashboard: {client.dashboard_link}", file=sys.stderr)
        return _gather(client, renewal, wanted, folder, where, before, after)


def _failed(result: execution.Execution | None) -> bool:
    return result is not None and result.error is not None


def _full(results: Mapping[str, execution.Execution | None]) -> bool:
    """Whether a task failed because the disk, or a quota, was full. Then the other tasks would fail too."""
    return any(
        _failed(result) and any(f"[Errno {number}]" in result.error for number in _NO_ROOM)
        for result in results.values()
    )


def _log(folder: Path, **event) -> bool:
    """Log an event, and return whether the disk had room for it: a full disk is reported elsewhere."""
    try:
        log.log(folder, **event)
    except OSError as error:
        if error.errno not in _NO_ROOM:
            raise
        return False
    return True


def _gather(
    client,
    renew: Callable[[], None],
    wanted: list[graph.Task],
    folder: Path,
    where: Cluster,
    before: Mapping,
    after: Callable[[Mapping], None],
) -> dict[str, execution.Execution | None]:
    """Submit tasks as soon as their needs are met, until none is left that can start."""
    from dask.distributed import wait

    waiting, running, results, blocked = list(wanted), {}, dict(before), set()
    named, renewed = {task.name for task in wanted}, time.monotonic()
    with progress.Progress(wanted, status.expected_s(wanted, folder), where.size()) as bar:
        while True:
            for task in waiting:  # Each comes after its needs.
                if any(need in blocked or _failed(results.get(need)) for need in task.needs):
                    blocked.add(task.name)
            waiting = [task for task in waiting if task.name not in blocked]
            over = blocked | set(results)
            # No more than there are workers: so what was submitted is what runs, in this order.
            free = max(len(client.nthreads()) - len(running), 0)
            skipped = False
            for task in [
                task for task in waiting if all(name in over or name not in named for name in task.needs)
            ]:
                # Whether it is done is asked once it could start: asking looks at every file of its record.
                if not free:
                    break
                # Looked up as late as this: the files that it reads may just have been written once more,
                # with the same content.
                if status.is_done(task, folder, repair=True):
                    waiting.remove(task)
                    results[task.name], skipped = None, True
                    bar.skip(task)
                elif not _log(folder, event="started", task=task.name):
                    waiting = []
                    break
                else:
                    waiting.remove(task)
                    free -= 1
                    # Dask runs again what a lost worker had. A notebook that failed would fail again: its
                    # error is a result.
                    running[
                        client.submit(
                            execution.execute, task, folder, where.threads(), key=task.name, pure=False
                        )
                    ] = task
                    bar.start(task)
            if not waiting and not running:
                return results
            if time.monotonic() - renewed > 20:
                renew()
                renewed = time.monotonic()
            bar.show()
            if not running:
                # Workers are yet to come, or all are lost and others on their way.
                time.sleep(0 if skipped else 0.5)
                continue
            try:
                ended = wait(list(running), timeout=1, return_when="FIRST_COMPLETED").done
            except TimeoutError:
                continue
            for future in ended:
                task, failure = running.pop(future), future.exception()
                result = (
                    execution.Execution(execution.last_line(f"{type(failure).__name__}: {failure}"))
                    if failure
                    else future.result()
                )
                results[task.name] = result
                facts = {
                    "seconds": result.seconds,
                    "images": result.images,
                    **({"error": result.error} if result.error else {}),
                }
                room = _log(folder, event="failed" if result.error else "done", task=task.name, **facts)
                bar.end(task, result)
                after(results)
                if not room or _full({task.name: result}):
                    waiting = []
