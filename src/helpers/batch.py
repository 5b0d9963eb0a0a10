"""A study as a graph of notebook executions: papermill on dask.distributed.

One execution is one task in one worker process. A task that is recorded as done (`helpers.ledger`) is not executed, and
what an executed notebook finds done it does not do again (`helpers.stages`). So running a study twice, or after it was
killed, costs only what is missing.
"""

import contextlib
import errno
import fnmatch
import functools
import itertools
import json
import logging
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import pandas as pd

from helpers import cluster, layout, ledger, schedule, stages, volumes
from helpers.cluster import Cluster
from helpers.cohort import origins, phantom
from helpers.study import GROUND_TRUTH, TARGET, Study

#: Seconds that a notebook took alone on a core (EPYC, Zen 4) until a study has measured its own: fixed part, and for each
#: image that it makes. Harmonizing depends on how much of a volume is wanted, registering on the transform.
_COST_S = {"00": (9, 3), "01": (6, 0), "02": (7, 0.25), "03": (20, 0.2), "04": (7, 0.5), "05": (20, 0)}
_WHOLE_VOLUME_S = 0.5  # more for a registered volume that is written whole
_ESTIMATED_TRANSFORM_S = 6.5
_ENCODING_S = 0.9  # of a source in a preview
_PLANE_S = {False: 40, True: 16}  # of a whole plane of three targets; compiled or not
_FUSED_S = 22  # by the network; the median takes a second
_PREPARATION_S = 110  # of one's own images of a subject: examined, registered to MNI, skull-stripped

#: Megabytes of an image, as measured; fused and registered volumes hold noise and hardly shrink.
_COHORT_MB, _STACK_MB, _REGISTERED_MB, _HARMONIZED_MB, _REPORT_MB = 3.5, 2.75, 13, 5.3, 1.2

#: Where a notebook takes little longer than its start, it does more than one thing. So many seconds at most are put together: of
#: subjects in the first notebooks, and of experiments of one subject in a preview, which then encodes each source once.
_TOGETHER_S, _EXPERIMENTS_TOGETHER_S = 60, 300

#: What a study writes into its folder, beside the description of the data set.
_OURS = ("tables", "report", "figures", "encodings", ".bidsignore", "sub-*")

#: Errors of a system that has no room for another file: a full disk, a quota.
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT)

#: Characters of a path that systems accept for a socket: 103 on macOS, less the number of the socket.
_LONGEST_SOCKET = 100

#: Free space below this part of the estimate is plainly too little: the estimate may be a little high.
_PLAINLY = 0.8


@dataclass(frozen=True)
class Task:
    """One execution of one notebook.

    Parameters
    ----------
    name : str
        Unique in the study, and the stem of the executed notebook's file.
    notebook : Path
        What is executed.
    parameters : dict
        For papermill; plain literals.
    needs : tuple of str
        Names of the tasks whose files it reads.
    images : int
        How many images it makes.
    cost_s, size_mb : float
        Rough duration and size of its results, for the estimates.
    """

    name: str
    notebook: Path
    parameters: dict
    needs: tuple[str, ...] = ()
    images: int = 0
    cost_s: float = 10
    size_mb: float = _REPORT_MB


def tasks(plan: Study, unfit: Iterable[int | str] = ()) -> list[Task]:
    """The notebook executions that make up a study, in an order in which each comes after its needs.

    Parameters
    ----------
    plan : Study
        With its subjects named one by one, as `helpers.stages.check_cohort` leaves them.
    unfit : iterable of int or of str
        Subjects whose images could not be prepared: that is tried again, and the study is done with the others.
    """
    made, fit = [], [subject for subject in plan.subjects if subject not in set(unfit)]

    def add(notebook, who, parameters, needs=(), images=0, mb=0.0, more_s=0.0):
        fixed, each = _COST_S[notebook[:2]]
        name = "_".join((notebook, *who))
        path = layout.NOTEBOOKS / f"{notebook}.ipynb"
        made.append(Task(name, path, parameters, tuple(needs), images, fixed + each * images + more_s, _REPORT_MB + mb))
        return name

    # What becomes of one's own images is the business of the first notebook.
    own = {key: plan.literals()[key] for key in ("bids_dir", "select", "brain")}
    # What other studies have to do with it, of the last.
    beside = {key: plan.literals()[key] for key in ("planes", "ladder")}
    shared = {key: value for key, value in plan.literals().items() if key not in ("subjects", *own, *beside)}
    prepared_s = _PREPARATION_S if plan.bids_dir else 0
    source = {**own, "seed": plan.seed} if plan.bids_dir else {}
    common = {key: shared[key] for key in ("name", "output_dir", "dropped")}
    acquired = {**common, **{key: shared[key] for key in ("experiments", "resolutions")}}
    preview = {key: shared[key] for key in ("reconstruction", "slice_step")}
    whole = plan.slice_step == 1
    levels, given = len(plan.resolutions), len(plan.given)
    images = len(plan.acquisitions()) * levels
    # Per stack.
    sliced_only = plan.transform == "known" and not whole
    back_s = (0 if sliced_only else _WHOLE_VOLUME_S) + (0 if plan.transform == "known" else _ESTIMATED_TRANSFORM_S)
    back_mb = _REGISTERED_MB / (plan.slice_step if sliced_only else 1)
    # Per resolution, or ground truth: three images harmonized.
    harmonized_s = len(plan.reconstruction) * _PLANE_S[plan.compiled] / plan.slice_step + (3 * _FUSED_S if plan.fusion and whole else 0)
    harmonized_mb = 3 * _HARMONIZED_MB / plan.slice_step
    encoding_s = 0 if whole else _ENCODING_S
    target = []
    if not plan.targets:
        target = [add("00_cohort", ["target"], {**common, "subject": phantom.TARGET_SEED}, images=3, mb=3 * _COHORT_MB)]
    elif aims := stages.acquired(plan, TARGET):  # Given as numbers, targets have no images to be made.
        settings = {**common, "subject": TARGET, "targets": shared["targets"], "seed": plan.seed}
        target = [add("00_cohort", ["target"], settings, images=len(aims), mb=len(aims) * _COHORT_MB, more_s=_PREPARATION_S)]
    def harmonize(subject, experiment, rows, encodings, needs, others=()):
        who = [layout.name(subject), *([] if others else [f"exp-{experiment}"])]
        settings = {key: value for key, value in shared.items() if key != "experiments"} | {"subject": subject, "experiment": experiment}
        settings |= {"other_experiments": list(others)} if others else {}
        number = sum(rows.values())
        more_s = number * harmonized_s + encodings * encoding_s
        return add("04_harmonization", who, settings, needs, number, number * harmonized_mb, more_s)

    # What is simulated is simulated whole, and never unfit: it can go through the first notebooks together with its neighbours.
    high, last = given if plan.bids_dir else 3, []
    longest_s = max(_COST_S["00"][1] * high, _COST_S["02"][1] * images, (_COST_S["03"][1] + back_s) * images)
    for group in _groups(plan.subjects, 1 if plan.bids_dir else int(_TOGETHER_S / longest_s)):
        who, number = [_range(group)], len(group) * images
        people = {"subject": group[0], **({"other_subjects": group[1:]} if group[1:] else {})}
        settings = {**common, **source, **people}
        start = add("00_cohort", who, settings, images=len(group) * high, mb=len(group) * high * _COHORT_MB, more_s=prepared_s)
        if group[0] not in fit:
            continue
        if group[0] == fit[0]:
            add("01_slice_profiles", [], {**common, "subject": fit[0], "interactive": False}, [start])
        settings = {**acquired, **people, "interactive": False}
        stacks = add("02_degradation", who, settings, [start], images=number, mb=number * _STACK_MB)
        settings = {**acquired, **people, **preview, "transform": plan.transform, "seed": plan.seed}
        back = add("03_registration", who, settings, [stacks], images=number, mb=number * back_mb, more_s=number * back_s)
        for subject in group:
            # Two ground truths; each resolution of each experiment.
            rows = {GROUND_TRUTH: 2, **dict.fromkeys(plan.experiments, levels)}
            in_one_s = sum(rows.values()) * (_COST_S["04"][1] + harmonized_s) + (given + images) * encoding_s
            if not whole and in_one_s <= _EXPERIMENTS_TOGETHER_S:
                first, *others = plan.experiments
                last.append(harmonize(subject, first, rows, given + images, [back, *target], [GROUND_TRUTH, *others]))
                continue
            truth = harmonize(subject, GROUND_TRUTH, {GROUND_TRUTH: 2}, given, [back, *target])
            for row in plan.experiments:
                cut = [orientation != "3D" for orientation in plan.sources(row).values()]
                encodings = levels * sum(cut) + len(cut) - sum(cut)
                last.append(harmonize(subject, row, {row: levels}, encodings, [truth]))
    if fit:
        add("05_analysis", [], {**shared, **beside, "subjects": fit}, last)
    return made


def _groups(values: Sequence, size: int) -> list[list]:
    """Neighbours of a sequence in groups of at most `size`, or one by one, which differ by one at most."""
    number = -(-len(values) // max(size, 1))
    ends = [round(part * len(values) / number) for part in range(number + 1)]
    return [list(values[start:end]) for start, end in itertools.pairwise(ends)]


def _range(subjects: Sequence[int | str]) -> str:
    """What the task of some subjects is called after: the first of them and the last."""
    return "_to_".join(dict.fromkeys((layout.name(subjects[0]), layout.name(subjects[-1]))))


def choose(wanted: list[Task], patterns: Iterable[str]) -> list[Task]:
    """The tasks whose names match one of some shell patterns, such as ``04*sub-sim01*exp-3*``, and what they need.

    Raises
    ------
    ValueError
        If a pattern matches no task.
    """
    named, chosen = {task.name: task for task in wanted}, set()

    def take(name):
        if name not in chosen:
            chosen.add(name)
            for need in named[name].needs:
                take(need)

    for pattern in patterns:
        found = fnmatch.filter(named, pattern)
        if not found:
            some = ", ".join(list(named)[-3:])
            raise ValueError(f"--only is {pattern!r}, which matches no task: accepted are patterns of names such as {some}")
        for name in found:
            take(name)
    return [task for task in wanted if task.name in chosen]


def check_subjects(plan: Study) -> None:
    """Keep the splits: what the network was trained on, and the subject that defines the target, are not scored.

    Raises
    ------
    ValueError
        Naming the subject and those that are accepted.
    """
    for subject in plan.subjects:
        if isinstance(subject, str):
            if not plan.bids_dir:
                raise ValueError(f"subjects has {subject!r}, a label: accepted without bids_dir are numbers, 1 to 10")
        elif subject == phantom.TARGET_SEED or subject >= phantom.FIRST_TRAINING_SEED:
            use = "defines the target" if subject == phantom.TARGET_SEED else "is for training"
            raise ValueError(f"subjects has {subject}, which {use}: accepted are 1 to 10, and 12 to {phantom.FIRST_TRAINING_SEED - 1}")


def check_parameters(wanted: list[Task]) -> None:
    """Refuse parameters that a notebook does not know; papermill itself only warns.

    Raises
    ------
    ValueError
        Naming the notebook, the parameter, its value and what the notebook accepts.
    """
    import papermill

    known = {path: papermill.inspect_notebook(str(path)) for path in {task.notebook for task in wanted}}
    for task in wanted:
        for parameter, value in task.parameters.items():
            if parameter not in known[task.notebook]:
                accepted = ", ".join(known[task.notebook])
                raise ValueError(f"{task.notebook.name}: parameter {parameter}={value!r} is unknown: accepted are {accepted}")


@dataclass(frozen=True)
class Execution:
    """What became of one execution: the error's last line or None, how long it took, how many images it wrote."""

    error: str | None
    seconds: float = 0
    images: int = 0


def execute(task: Task, folder: Path, threads: int = 1) -> Execution:
    """Execute one notebook, keep it and its HTML page in `folder`, and record it as done unless it failed."""
    # ITK takes one thread whatever is said here: its sums depend on their number (helpers.registration).
    names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "VECLIB_MAXIMUM_THREADS")
    os.environ.update(dict.fromkeys(names, str(threads)), ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS="1")
    # glibc hands freed arrays back to the system, and every new one comes as page faults: a fifth of the time of a simulated subject.
    os.environ.update({"MALLOC_MMAP_THRESHOLD_": str(2**30), "MALLOC_TRIM_THRESHOLD_": str(2**30)})
    started = time.monotonic()
    executed = folder / f"{task.name}.ipynb"
    page = executed.with_suffix(".html")
    with tempfile.TemporaryDirectory(prefix="resolution-matters-") as scratch:
        trace = Path(scratch) / "files"
        trace.touch()
        try:
            executed.parent.mkdir(parents=True, exist_ok=True)
            ledger.forget(folder, task.name)
            for old in (executed, page):
                old.unlink(missing_ok=True)
            version = ledger.stamp(task.notebook, task.parameters)
            error = _papermill(task, executed, trace)
            files, written = ledger.read_trace(trace)
            if executed.exists():
                _render(executed, page)
            # Should a module have changed meanwhile, or an image that is not the study's, nobody knows which the kernel had.
            given = {path: facts for path, facts in files.items() if path not in written and not ledger.is_ours(folder, path)}
            same = ledger.stamp(task.notebook, task.parameters) == version and all(volumes.look(path) == given[path] for path in given)
            if error is None and same:
                ledger.record(folder, task.name, version, {*files, str(executed), str(page)})
        except Exception as failure:  # A kernel that died, a full disk: the study goes on, and says so.
            error, written = _last_line(f"{type(failure).__name__}: {failure}"), ()
    return Execution(error, round(time.monotonic() - started, 3), sum(path.endswith(".nii.gz") for path in written))


def _sockets(folder: Path) -> dict[str, str]:
    """How worker and kernel talk: through files in a folder of this task's own.

    A port that is free when it is chosen may be another worker's by the time the kernel opens it: then the notebook would fail.
    """
    name = str(folder / "kernel")
    return {"transport": "ipc", "ip": name} if len(name) < _LONGEST_SOCKET else {}


@functools.cache
def _kernel_manager() -> type:
    from jupyter_client.manager import AsyncKernelManager

    class KernelManager(AsyncKernelManager):
        """Asks a kernel to end, and no more: the interrupt that Jupyter sends before, a kernel may report as an error."""

        async def _async_interrupt_kernel(self):
            if not self.shutting_down:
                await super()._async_interrupt_kernel()

    return KernelManager


def _papermill(task: Task, executed: Path, trace: Path) -> str | None:
    import papermill
    from papermill.exceptions import PapermillExecutionError
    from traitlets.config import Config

    logging.getLogger("papermill").setLevel(logging.ERROR)
    os.environ[volumes.TRACE] = str(trace)
    # Not where it will be kept: papermill writes it again after every cell, and not at once.
    draft = trace.with_name(executed.name)
    try:
        papermill.execute_notebook(
            str(task.notebook),
            str(draft),
            task.parameters,
            progress_bar=False,
            kernel_name="python3",
            cwd=str(executed.parent),
            # A kernel says at every start what it listens on; the progress bar is what should be seen.
            extra_arguments=["--IPKernelApp.log_level=ERROR"],
            config=Config(KernelManager=_sockets(trace.parent)),
            kernel_manager_class=_kernel_manager(),
        )
    except PapermillExecutionError as failure:
        return _last_line(f"{failure.ename}: {failure.evalue}")
    finally:
        del os.environ[volumes.TRACE]
        if draft.exists():
            volumes.write_bytes(executed, draft.read_bytes())
    return None


@functools.cache
def _exporter():
    from nbconvert import HTMLExporter

    return HTMLExporter(template_name="lab")  # kept, with the templates that it compiles


def _render(executed: Path, page: Path) -> None:
    import nbformat

    text, _ = _exporter().from_notebook_node(nbformat.read(executed, as_version=4))
    volumes.write_bytes(page, text.encode())


def _last_line(text: str) -> str:
    return (text.strip().splitlines() or [""])[-1]


def _report_folder(plan: Study) -> Path:
    return stages.folder(plan) / "report"


def expected_s(wanted: list[Task], folder: Path) -> dict[str, float]:
    """Task -> the seconds that it will take if all of its images are to be made.

    By the study's own log, where it has such executions of the same notebook: the rough costs, times the median of what they
    were off by. Without, the rough costs.
    """
    named = {task.name: task for task in wanted}
    off = {}
    for event in ledger.events(folder):
        task = named.get(event.get("task"))
        # One that found its images there says nothing about how long they take.
        if task and event.get("event") == "done" and event.get("images", 0) >= task.images:
            off.setdefault(task.notebook, []).append(event["seconds"] / task.cost_s)
    return {task.name: task.cost_s * statistics.median(off.get(task.notebook, [1])) for task in wanted}


def status(plan: Study) -> pd.DataFrame:
    """Where a study stands. Nothing is changed.

    Parameters
    ----------
    plan : Study
        With its subjects named one by one, as `helpers.stages.check_cohort` leaves them.

    Returns
    -------
    DataFrame
        One row per task: ``task``, ``stage`` (its notebook), ``state`` (done, running, failed or missing), ``seconds`` of its
        last execution (NaN if there was none), ``expected_s`` and ``expected_mb`` of what is yet to be done, ``error``.
    """
    folder = _report_folder(plan)
    unfit = ()
    if plan.bids_dir:
        first = _states(_first(tasks(plan)), folder)
        unfit = _unfit(plan, set(first.task[first.state == "failed"]))
    return _states(tasks(plan, unfit), folder)


def _first(wanted: list[Task]) -> list[Task]:
    """The tasks that need no other: the cohort and what is aimed at."""
    return [task for task in wanted if not task.needs]


def _unfit(plan: Study, failed: set[str]) -> tuple[int | str, ...]:
    """The subjects whose images could not be prepared, given the tasks that failed."""
    return tuple(subject for subject in plan.subjects if f"00_cohort_{layout.name(subject)}" in failed)


def _states(wanted: list[Task], folder: Path, repair: bool = False) -> pd.DataFrame:
    running, last = set(), {}
    for event in ledger.events(folder):
        name = event.get("task")
        if event.get("event") == "run":
            running = set()
        elif event.get("event") == "started":
            running.add(name)
        elif event.get("event") in ("done", "failed"):
            running.discard(name)
            last[name] = event
    if repair or ledger.holder(folder) is None:  # Whoever repairs holds the study itself, and has started nothing yet.
        running = set()
    cost, rows = expected_s(wanted, folder), []
    for task in wanted:
        before = last.get(task.name, {})
        if task.name in running:
            state = "running"
        elif _is_done(task, folder, repair):
            state = "done"
        else:
            state = "failed" if before.get("event") == "failed" else "missing"
        left = state != "done"
        error = before.get("error", "") if state == "failed" else ""
        rows.append((task.name, task.notebook.stem, state, before.get("seconds"), left * cost[task.name], left * task.size_mb, error))
    table = pd.DataFrame(rows, columns=["task", "stage", "state", "seconds", "expected_s", "expected_mb", "error"])
    return table.astype({"seconds": float})


def expected_hours(plan: Study, states: pd.DataFrame, workers: int) -> float:
    """Hours that the tasks of `states` that are not done will take on some workers."""
    left = states[states.expected_s > 0]
    needs = _graph([task for task in tasks(plan) if task.name in set(left.task)])
    seconds = dict(zip(left.task, left.expected_s, strict=True))
    return schedule.makespan({name: needs[name] for name in schedule.urgent_first(needs, seconds)}, seconds, workers) / 3600


@dataclass(frozen=True)
class Outcome:
    """What became of a study: task -> error line; tasks that could not start; how many were executed; index page; seconds."""

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
        Before anything starts, if a notebook does not know a parameter, a checkpoint is missing or does not fit, another study that
        it builds on was not run, or no subject can take part.
    RuntimeError
        Before anything starts, if somebody else runs the study; later, if jobs of a batch system end as soon as they begin.
    OSError
        Before anything starts, if the disk is plainly too small.
    """
    started, where = time.monotonic(), where or Cluster()
    check_subjects(plan)
    plan, left_out = stages.check_cohort(plan)
    for line in [f"left out: {reason}" for reason in left_out.values()] + origins.earlier_version(stages.folder(plan)):
        print(line, file=sys.stderr)
    everything = tasks(plan)
    wanted = choose(everything, only) if only else everything
    folder = _report_folder(plan)
    report = folder / "index.html"
    if not folder.exists():  # What is refused leaves nothing behind.
        check(plan, wanted)
        check_space(plan, _states(wanted, folder))
    with ledger.locked(folder):
        states = _states(wanted, folder, repair=True)
        results, unfit, warnings = dict.fromkeys(states.task), (), None
        if not all(states.state == "done"):
            check(plan, wanted)
            check_space(plan, states)
            volumes.remove_leftovers(stages.root(plan), _OURS)
            before = {}
            if plan.bids_dir:
                # Whose images turn out to be unfit is left out before hours are spent, and the study goes on with the others.
                left = set(states.task[states.state != "done"])
                before = execute_all([task for task in _first(wanted) if task.name in left], folder, where)
                unfit = _unfit(plan, {name for name, each in before.items() if _failed(each)})
                left_out |= {subject: f"{layout.name(subject)}: {before[f'00_cohort_{layout.name(subject)}'].error}" for subject in unfit}
                everything = tasks(plan, unfit)
                named = {task.name: task for task in everything}
                wanted = [named[task.name] for task in wanted if task.name in named]
                warnings = stages.findings(plan, unfit)
                for warning in warnings:
                    print(warning, file=sys.stderr)
            results = execute_all(wanted, folder, where, before)
        if any(results.values()) or len(results) < len(wanted) or plan.bids_dir or not report.exists():
            remarks = {"Left out": list(left_out.values()), "Warnings": stages.findings(plan) if warnings is None else warnings}
            try:
                volumes.write_bytes(report, report.page(plan, _states(everything, folder), folder, remarks).encode())
            except OSError as error:  # A full disk must not take with it what is to be said of the notebooks.
                print(f"the report could not be written: {error}", file=sys.stderr)
    failed = {name: each.error for name, each in results.items() if _failed(each)}
    skipped = [task.name for task in wanted if task.name not in results]
    return Outcome(failed, skipped, sum(each is not None for each in results.values()), report, time.monotonic() - started)


def check(plan: Study, wanted: list[Task]) -> None:
    """Refuse what could only fail later: parameters that a notebook does not know, checkpoints, other studies.

    Raises
    ------
    ValueError, FileNotFoundError
        As `check_parameters`, `helpers.stages.check_models` and `helpers.stages.check_others`.
    """
    check_parameters(wanted)
    stages.check_models(plan)
    stages.check_others(plan)


def check_space(plan: Study, states: pd.DataFrame) -> None:
    """Refuse to start where the disk is plainly too small for what is missing.

    Raises
    ------
    OSError
        Stating both numbers.
    """
    folder = stages.folder(plan)
    free, wanted = free_mb(folder), states.expected_mb.sum()
    if free < _PLAINLY * wanted:
        raise OSError(
            f"{folder}: the study needs about {wanted / 1000:.1f} GB more, and {free / 1000:.1f} GB are free: make space, or set output_dir"
        )


def free_mb(folder: Path) -> float:
    """Free space of the disk on which a folder is, or will be, in MB."""
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free / 1e6


def execute_all(
    wanted: list[Task], folder: Path, where: Cluster, before: Mapping[str, Execution | None] = MappingProxyType({})
) -> dict[str, Execution | None]:
    """Execute the notebooks that are not done, each after those it needs. One that fails does not stop those that do not need it.

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

    Returns
    -------
    dict
        Task -> what became of its execution; None if it was done before. Tasks that could not start are not in it.
    """
    wanted = [task for task in wanted if task.name not in before]
    if not wanted or _full(before):
        return dict(before)
    # In the order of the method, the first subject would be finished before the last is begun, and cores would lie idle at the end.
    named = {task.name: task for task in wanted}
    wanted = [named[name] for name in schedule.urgent_first(_graph(wanted), expected_s(wanted, folder))]
    ledger.log(folder, event="run", kind=where.kind, workers=where.size(), threads=where.threads())
    with cluster.start(where, folder / "jobs") as (client, again):
        print(f"dashboard: {client.dashboard_link}", file=sys.stderr)
        return _gather(client, again, wanted, folder, where, before)


def _graph(wanted: list[Task]) -> dict[str, tuple[str, ...]]:
    return {task.name: task.needs for task in wanted}


def _is_done(task: Task, folder: Path, repair: bool = False) -> bool:
    return ledger.done(folder, task.name, ledger.stamp(task.notebook, task.parameters), repair)


def _failed(result: Execution | None) -> bool:
    return result is not None and result.error is not None


def _full(results: Mapping[str, Execution | None]) -> bool:
    """Whether a task found the disk full, or a quota. One is enough: the others would fail of it as well, one after the other."""
    return any(_failed(each) and any(f"[Errno {number}]" in each.error for number in _NO_ROOM) for each in results.values())


def _log(folder: Path, **event) -> bool:
    """Log an event if there is room for it: what else is to be said must not be lost with it."""
    try:
        ledger.log(folder, **event)
    except OSError as error:
        if error.errno not in _NO_ROOM:
            raise
        return False
    return True


def _gather(client, again, wanted: list[Task], folder: Path, where: Cluster, before: Mapping) -> dict[str, Execution | None]:
    """Submit tasks as soon as their needs are met, until none is left that can start."""
    from dask.distributed import wait

    waiting, running, results, blocked = list(wanted), {}, dict(before), set()
    named, renewed = {task.name for task in wanted}, time.monotonic()
    with _Progress(wanted, expected_s(wanted, folder), where.size()) as progress:
        while True:
            for task in waiting:  # Each comes after its needs.
                if any(need in blocked or _failed(results.get(need)) for need in task.needs):
                    blocked.add(task.name)
            waiting = [task for task in waiting if task.name not in blocked]
            over = blocked | set(results)
            # No more than there are workers: so what was submitted is what runs, in this order.
            free = max(len(client.nthreads()) - len(running), 0)
            skipped = False
            for task in [task for task in waiting if all(name in over or name not in named for name in task.needs)]:
                if not free:  # Whether it is done is asked once it could start: asking reads the sources of all helpers.
                    break
                # Only now: what it reads may just have been made again, with the same content.
                if _is_done(task, folder, repair=True):
                    waiting.remove(task)
                    results[task.name], skipped = None, True
                    progress.skip(task)
                elif not _log(folder, event="started", task=task.name):
                    waiting = []
                    break
                else:
                    waiting.remove(task)
                    free -= 1
                    # Dask runs again what a lost worker had. A notebook that failed would fail again: its error is a result.
                    running[client.submit(execute, task, folder, where.threads(), key=task.name, pure=False)] = task
                    progress.start(task)
            if not waiting and not running:
                return results
            if time.monotonic() - renewed > 20:
                again()
                renewed = time.monotonic()
            progress.show()
            if not running:
                time.sleep(0 if skipped else 0.5)  # Workers are yet to come, or all are lost and others on their way.
                continue
            try:
                ended = wait(list(running), timeout=1, return_when="FIRST_COMPLETED").done
            except TimeoutError:
                continue
            for future in ended:
                task, failure = running.pop(future), future.exception()
                result = Execution(_last_line(f"{type(failure).__name__}: {failure}")) if failure else future.result()
                results[task.name] = result
                facts = {"seconds": result.seconds, "images": result.images, **({"error": result.error} if result.error else {})}
                room = _log(folder, event="failed" if result.error else "done", task=task.name, **facts)
                progress.end(task, result)
                if not room or _full({task.name: result}):
                    waiting = []


class _Progress:
    """A bar for the study, and below it a line for each notebook that runs. Away from a terminal a line per finished notebook."""

    LINES = 8

    def __init__(self, wanted: list[Task], expected: dict[str, float], workers: int):
        self.wanted, self.expected, self.workers = wanted, dict(expected), workers
        self.needs = _graph(wanted)
        self.began, self.ended, self.pace = {}, 0, []
        self.terminal = sys.stderr.isatty()

    def __enter__(self):
        from tqdm import tqdm

        form = "{percentage:3.0f}% |{bar:24}| {elapsed}{postfix}"
        self.bar = tqdm(total=sum(self.expected.values()), bar_format=form, disable=not self.terminal)
        rows = min(self.LINES, self.workers)
        self.rows = [tqdm(bar_format="{desc}", position=row + 1, leave=False, disable=not self.terminal) for row in range(rows)]
        return self

    def __exit__(self, *_):
        for row in self.rows[::-1]:
            row.close()
        self.bar.close()

    def start(self, task: Task) -> None:
        self.began[task.name] = time.monotonic()

    def skip(self, task: Task) -> None:
        self._over(task)

    def end(self, task: Task, result: Execution) -> None:
        del self.began[task.name]
        if not result.error and result.images >= task.images:
            self.pace.append(result.seconds / self.expected[task.name])
        self._over(task)
        if not self.terminal:
            minutes = f"{result.seconds / 60:.1f} min"
            print(f"{task.name}: {result.error or f'done in {minutes}'}; {self._left()}", file=sys.stderr, flush=True)

    def _over(self, task: Task) -> None:
        self.ended += 1
        self.bar.update(self.expected[task.name])
        del self.needs[task.name]

    def _left(self) -> str:
        pace, now = statistics.median(self.pace or [1]), time.monotonic()
        # What runs has at least a little left, whatever was expected of it.
        left = {name: max(self.expected[name] * pace - (now - self.began.get(name, now)), 1) for name in self.needs}
        minutes = schedule.makespan(self.needs, left, self.workers) / 60
        return f"{self.ended}/{len(self.wanted)} notebooks, about {minutes:.0f} min left"

    def show(self) -> None:
        if self.terminal:
            self.bar.set_postfix_str(self._left())
            lines = [
                f"  {name}  {(time.monotonic() - began) / 60:.1f} of about {self.expected[name] / 60:.1f} min"
                for name, began in self.began.items()
            ]
            if len(lines) > len(self.rows):
                lines[len(self.rows) - 1 :] = [f"  … and {len(lines) - len(self.rows) + 1} more"]
            for row, line in zip(self.rows, [*lines, *[""] * len(self.rows)], strict=False):
                row.set_description_str(line)


@dataclass(frozen=True)
class Results:
    """What `clean` would remove: the study's folder, its files, their size in MB."""

    folder: Path
    files: tuple[Path, ...]
    size_mb: float


def results(plan: Study) -> Results:
    """What a study has written, below its own folder. Files of others there, and what links point to, are not among it.

    Raises
    ------
    ValueError
        If the folder does not say that this study wrote it, or holds the repository.
    """
    folder = stages.folder(plan)
    if not folder.exists():
        return Results(folder, (), 0)
    try:
        name = json.loads((folder / "dataset_description.json").read_text())["Name"]
    except (OSError, ValueError, KeyError, TypeError):
        name = None
    if name != stages.title(plan) or layout.ROOT.is_relative_to(folder.resolve()):
        raise ValueError(f"{folder}: accepted is a folder that the study {plan.name} wrote and describes in dataset_description.json")
    files = []
    for top in sorted(itertools.chain.from_iterable(map(folder.glob, _OURS))):
        if top.is_dir() and not top.is_symlink():
            for where, folders, names in os.walk(top):  # A link to a folder goes as the link that it is.
                files += [Path(where) / each for each in (*names, *folders) if each in names or (Path(where) / each).is_symlink()]
        else:
            files.append(top)
    # The lock is `clean`'s own to hold, until all else is gone.
    files = [path for path in files if path.parent != _report_folder(plan) or path.name not in ledger.LOCKS]
    # Last, so that a clean that was interrupted can be run again.
    files.append(folder / "dataset_description.json")
    return Results(folder, tuple(files), sum(path.lstat().st_size for path in files) / 1e6)


def clean(plan: Study) -> Results:
    """Remove what a study has written (`results`), and the folders that this leaves empty; return what it was.

    Raises
    ------
    ValueError
        As `results`.
    RuntimeError
        If the study is being run.
    """
    found = results(plan)
    if not found.files:
        return found
    with ledger.locked(_report_folder(plan)):
        for path in found.files:
            path.unlink(missing_ok=True)
        for name in ledger.LOCKS:
            (_report_folder(plan) / name).unlink(missing_ok=True)
    for where, _, _ in os.walk(found.folder, topdown=False):
        with contextlib.suppress(OSError):
            Path(where).rmdir()  # Only if it is empty.
    return found


def scaling(plan: Study, seconds: dict[str, float], workers: Iterable[int]) -> pd.DataFrame:
    """How a study would scale: a simulation of its real graph with given durations, not a measurement.

    Parameters
    ----------
    plan : Study
        Its tasks and what they wait for.
    seconds : dict
        Task -> duration.
    workers : iterable of int
        Numbers of workers.

    Returns
    -------
    DataFrame
        ``workers``, ``hours``, ``speed_up`` over one worker, ``bound`` (the lesser of the workers and of the total over the
        critical path: no order of the tasks does better), ``critical_path_h``.
    """
    needs = _graph(tasks(plan))
    needs = {name: needs[name] for name in schedule.urgent_first(needs, seconds)}
    total = sum(seconds[name] for name in needs)
    longest = sum(seconds[name] for name in schedule.critical_path(needs, seconds))
    rows = []
    for number in workers:
        span = schedule.makespan(needs, seconds, number)
        rows.append((number, span / 3600, total / span, min(number, total / longest), longest / 3600))
    return pd.DataFrame(rows, columns=["workers", "hours", "speed_up", "bound", "critical_path_h"])
