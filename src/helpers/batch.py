"""A study as a graph of notebook executions: papermill on dask.distributed.

One execution is one task in one worker process. What a notebook already finds done it does not do
again (`helpers.stages`), so running a study twice, or after it was killed, costs only what is missing.
"""

import dataclasses
import html
import logging
import os
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from helpers import layout, phantom, stages, volumes
from helpers.study import GROUND_TRUTH, Study

#: Seconds that a notebook took in the demo (2 cores), for the estimate of the time left: fixed part, and per image
#: or harmonized volume that it makes.
_COST_S = {"00": (8, 5), "01": (12, 0), "02": (10, 1), "03": (12, 1.5), "04": (10, 6), "05": (25, 0)}

#: A worker that harmonizes whole volumes needs about this much memory, its kernel included.
WORKER_MEMORY_GIB = 3


#: What kernels inherit: as many processes as cores, and one thread in each.
KERNEL_ENVIRONMENT = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS"), "1")


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
    cost_s : float
        Rough duration, for the estimate of the time left.
    """

    name: str
    notebook: Path
    parameters: dict
    needs: tuple[str, ...] = ()
    cost_s: float = 10


def tasks(plan: Study) -> list[Task]:
    """The notebook executions that make up a study, in an order in which each comes after its needs."""
    made = []

    def add(notebook, who, parameters, needs=(), images=0):
        fixed, each = _COST_S[notebook[:2]]
        name = "_".join((notebook, *who))
        made.append(Task(name, layout.NOTEBOOKS / f"{notebook}.ipynb", parameters, tuple(needs), fixed + each * images))
        return name

    own = ("bids_dir", "select", "brain")  # What becomes of one's own images is the business of the first notebook.
    shared = {key: value for key, value in plan.literals().items() if key not in ("subjects", *own)}
    source = {**{key: plan.literals()[key] for key in own}, "seed": plan.seed}
    common = {key: shared[key] for key in ("name", "output_dir")}
    acquired = {**common, **{key: shared[key] for key in ("experiments", "resolutions")}}
    preview = {key: shared[key] for key in ("reconstruction", "slice_step")}
    images = len(plan.acquisitions()) * len(plan.resolutions)
    aimed_at = {"subject": stages.TARGET, "targets": shared["targets"]} if plan.targets else {"subject": phantom.TARGET_SEED}
    # Given as numbers, targets have no images to be made.
    target = []
    if not plan.targets or stages.acquired(plan, stages.TARGET):
        target = [add("00_cohort", ["target"], {**common, "seed": plan.seed, **aimed_at}, images=3)]
    last = []
    for subject in plan.subjects:
        who = [layout.name(subject)]
        person = {"subject": subject}
        start = add("00_cohort", who, {**common, **source, **person}, images=3 if isinstance(subject, int) else 30)
        if subject == plan.subjects[0]:
            add("01_slice_profiles", [], {**common, **person}, [start])
        sliced = add("02_degradation", who, {**acquired, **person}, [start], images)
        back = add("03_registration", who, {**acquired, **person, **preview, "transform": plan.transform, "seed": plan.seed}, [sliced], images)
        settings = {**{key: value for key, value in shared.items() if key != "experiments"}, **person}
        truth = add("04_harmonization", [*who, f"exp-{GROUND_TRUTH}"], {**settings, "experiment": GROUND_TRUTH}, [back, *target], 2)
        for experiment in plan.experiments:
            parameters = {**settings, "experiment": experiment}
            last.append(add("04_harmonization", [*who, f"exp-{experiment}"], parameters, [truth], len(plan.resolutions)))
    add("05_analysis", [], {**shared, "subjects": list(plan.subjects)}, last)
    return made


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


def execute(task: Task, folder: Path) -> str | None:
    """Execute one notebook, keep it and its HTML page in `folder`, and return the error's last line or None."""
    os.environ.update(KERNEL_ENVIRONMENT)
    import nbformat
    import papermill
    from nbconvert import HTMLExporter
    from papermill.exceptions import PapermillExecutionError

    logging.getLogger("papermill").setLevel(logging.ERROR)
    executed = folder / f"{task.name}.ipynb"
    executed.parent.mkdir(parents=True, exist_ok=True)
    error = None
    try:
        papermill.execute_notebook(
            str(task.notebook),
            str(executed),
            task.parameters,
            progress_bar=False,
            kernel_name="python3",
            cwd=str(folder),
            # A kernel warns at every start that it listens on this machine; the progress bar is what should be seen.
            extra_arguments=["--IPKernelApp.log_level=ERROR"],
        )
    except PapermillExecutionError as failure:
        error = f"{failure.ename}: {failure.evalue}".strip().splitlines()[-1]
    page, _ = HTMLExporter(template_name="lab").from_notebook_node(nbformat.read(executed, as_version=4))
    volumes.write_bytes(executed.with_suffix(".html"), page.encode())
    return error


@dataclass(frozen=True)
class Outcome:
    """What became of a study: task name -> error line; tasks that could not start; the report's index page; seconds."""

    failed: dict[str, str]
    skipped: list[str]
    report: Path
    seconds: float


def run(plan: Study, workers: int | None = None) -> Outcome:
    """Run a study: check it whole, execute its notebooks, write the report.

    Parameters
    ----------
    plan : Study
        What to compute.
    workers : int, optional
        Notebooks at a time; by default one per core, as far as memory allows.

    Raises
    ------
    ValueError, FileNotFoundError
        Before anything starts, if a notebook does not know a parameter or a checkpoint is missing or does not fit.
    """
    check_subjects(plan)
    plan, left_out = stages.check_cohort(plan)
    for reason in left_out.values():
        print(f"left out: {reason}", file=sys.stderr)
    wanted = tasks(plan)
    check_parameters(wanted)
    stages.check_models(plan)
    report = stages.root(plan) / "report" / "index.html"
    workers = workers or default_workers()
    started = time.monotonic()
    errors, warnings = {}, []
    if plan.bids_dir:
        # Whose images turn out to be unfit is left out before hours are spent, and the study goes on with the others.
        first = [task for task in wanted if task.notebook.stem == "00_cohort"]
        errors = execute_all(first, report.parent, workers)
        outcome = {subject: errors.get(f"00_cohort_{layout.name(subject)}", "not prepared") for subject in plan.subjects}
        left_out |= {subject: f"{layout.name(subject)}: {error}" for subject, error in outcome.items() if error}
        fit = tuple(subject for subject, error in outcome.items() if error is None)
        if fit:
            going = dataclasses.replace(plan, subjects=fit)
            wanted = list({task.name: task for task in [*first, *tasks(going)]}.values())
            warnings = stages.findings(going)
            for warning in warnings:
                print(warning, file=sys.stderr)
        else:
            wanted = first
    errors |= execute_all([task for task in wanted if task.name not in errors], report.parent, workers, errors)
    remarks = {"Left out": list(left_out.values()), "Warnings": warnings}
    volumes.write_bytes(report, _index(plan, wanted, errors, report.parent, remarks).encode())
    failed = {name: error for name, error in errors.items() if error}
    skipped = [task.name for task in wanted if task.name not in errors]
    return Outcome(failed, skipped, report, time.monotonic() - started)


def execute_all(
    wanted: list[Task], folder: Path, workers: int, before: Mapping[str, str | None] = MappingProxyType({})
) -> dict[str, str | None]:
    """Execute notebooks on a `LocalCluster`, each after those it needs, with a progress bar on the terminal.

    A notebook that fails does not stop those that do not need it.

    Parameters
    ----------
    wanted : list of Task
        Each after those it needs.
    folder : Path
        Where executed notebooks are kept.
    workers : int
        Notebooks at a time.
    before : mapping of str to (str or None)
        What an earlier call returned, for tasks that these need.

    Returns
    -------
    dict
        Name of each task that was executed -> last line of its error, or None; those of `before` as well.
    """
    from dask.distributed import Client, LocalCluster

    # No memory limit of dask's: it would count the worker, not the kernel that does the work.
    cluster = LocalCluster(n_workers=workers, threads_per_worker=1, dashboard_address=None, memory_limit=0)
    with cluster, Client(cluster) as client:
        return _gather(client, wanted, folder, before)


def default_workers() -> int:
    """One worker per core that this process may use, as long as each has `WORKER_MEMORY_GIB`."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    memory_gib = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return max(1, min(cores, int(memory_gib / WORKER_MEMORY_GIB)))


def _gather(client, wanted: list[Task], folder: Path, before: Mapping[str, str | None]) -> dict[str, str | None]:
    """Submit tasks as soon as their needs are met, until none is left that can start."""
    from dask.distributed import wait
    from tqdm import tqdm

    waiting, running, errors = list(wanted), {}, dict(before)
    total, started = sum(task.cost_s for task in wanted), time.monotonic()

    def progress():
        # Expected seconds of work become seconds on the clock at the pace so far, at first that of the workers.
        done_s = sum(task.cost_s for task in wanted if task.name in errors)
        pace = (time.monotonic() - started) / done_s if done_s else 1 / max(len(client.nthreads()), 1)
        return f"about {(total - done_s) * pace / 60:.0f} min left, {sum(task.name in errors for task in wanted)}/{len(wanted)} notebooks done"

    form = "{percentage:3.0f}% |{bar:24}| {elapsed}{postfix}"
    # Away from a terminal a bar would be noise: a line for each finished notebook instead.
    terminal = sys.stderr.isatty()
    with tqdm(total=round(total), bar_format=form, disable=not terminal) as bar:
        while waiting or running:
            ready = [task for task in waiting if all(errors.get(need, "") is None for need in task.needs)]
            # No more than there are workers: so what was submitted is what runs, in the order of the method.
            for task in ready[: max(len(client.nthreads()) - len(running), 0)]:
                waiting.remove(task)
                # A notebook that failed would fail again; dask itself restarts what a lost worker had.
                running[client.submit(execute, task, folder, key=task.name, pure=False)] = task
            if not running:
                if not ready:
                    break
                time.sleep(1)  # Every worker is lost; dask's nanny is starting another.
                continue
            bar.set_postfix_str(f"{progress()}; now {', '.join(task.name for task in running.values())}")
            try:
                done = wait(list(running), timeout=1, return_when="FIRST_COMPLETED").done
            except TimeoutError:
                continue
            for future in done:
                task = running.pop(future)
                failure = future.exception()
                errors[task.name] = f"{type(failure).__name__}: {failure}" if failure else future.result()
                bar.update(round(task.cost_s))
                if not terminal:
                    print(f"{task.name}: {errors[task.name] or 'done'}; {progress()}", file=sys.stderr, flush=True)
    return errors


def _index(plan: Study, wanted: list[Task], errors: dict[str, str | None], folder: Path, remarks: Mapping[str, list[str]]) -> str:
    def row(task):
        if task.name not in errors:
            return f"<tr><td>{task.name}</td><td>not started: it needs a notebook that failed</td></tr>"
        # A kernel that died leaves no page.
        name = f'<a href="{task.name}.html">{task.name}</a>' if (folder / f"{task.name}.html").exists() else task.name
        return f"<tr><td>{name}</td><td>{html.escape(errors[task.name] or 'done')}</td></tr>"

    rows = "\n".join(map(row, wanted))
    said = ""
    for title, lines in remarks.items():
        items = "".join(f"<li>{html.escape(line)}</li>" for line in lines)
        said += f"<p>{title}:</p>\n<ul>{items}</ul>\n" if lines else ""
    style = "body{font:16px/1.5 sans-serif;max-width:60em;margin:2em auto;padding:0 1em}td{padding:.2em 1.5em .2em 0}"
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{plan.name}</title><style>{style}</style>\n'
        f"<h1>Study “{plan.name}”</h1><p>{stages.note(plan.subjects[0])}. Executed notebooks, in the order of the method:</p>\n{said}<table>{rows}</table></html>\n"
    )
