"""Remove files of a study: all that it has written and nothing else; or, if it keeps its tables only, the
volumes that no later notebook needs."""

import contextlib
import itertools
import json
import os
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from helpers import layout
from helpers.pipeline import folders
from helpers.runner import graph, lock, status
from helpers.runner.graph import Task
from helpers.study.file import Study
from helpers.study.subjects import Subject

#: What a study writes into its folder, beside the description of the data set.
OURS = ("tables", "report", "figures", "encodings", "resolvers", ".bidsignore", "sub-*")

#: What volumes of a step are called (``desc-``), and the notebooks that read them.
_READ_BY = {
    "degradation": (("degraded", "superResolved_"), ("02", "03", "08")),
    "registration": (("registered", "superResolvedKnown", "superResolvedRigid", "superResolvedAffine"), ()),
    "harmonization": (("harmonized",), ()),
}
_HARMONIZE, _ANALYSES = ("04", "a2"), "05"


@dataclass(frozen=True)
class Results:
    """What `clean` would remove: the study's folder, its files, their size in MB."""

    folder: Path
    files: tuple[Path, ...]
    size_mb: float


def results(plan: Study) -> Results:
    """The files that a study has written below its own folder: no other files there, and nothing that a link
    points to.

    Raises
    ------
    ValueError
        If the folder does not say that this study wrote it, or holds the repository.
    """
    folder = folders.folder(plan)
    if not folder.exists():
        return Results(folder, (), 0)
    try:
        name = json.loads((folder / "dataset_description.json").read_text())["Name"]
    except (OSError, ValueError, KeyError, TypeError):
        name = None
    if name != folders.title(plan) or layout.ROOT.is_relative_to(folder.resolve()):
        raise ValueError(
            f"{folder}: accepted is a folder that the study {plan.name} wrote and describes in "
            "dataset_description.json"
        )
    files = []
    for top in sorted(itertools.chain.from_iterable(map(folder.glob, OURS))):
        if top.is_dir() and not top.is_symlink():
            for where, below, names in os.walk(top):  # A link to a folder goes as the link that it is.
                files += [
                    Path(where) / part
                    for part in (*names, *below)
                    if part in names or (Path(where) / part).is_symlink()
                ]
        else:
            files.append(top)
    # `clean` keeps the lock until all other files are removed.
    files = [
        path for path in files if path.parent != status.report_folder(plan) or path.name not in lock.LOCKS
    ]
    # Last, so that a clean that was interrupted can be run again.
    files.append(folder / "dataset_description.json")
    return Results(folder, tuple(files), sum(path.lstat().st_size for path in files) / 1e6)


def clean(plan: Study) -> Results:
    """Remove what a study has written (`results`) and the folders that are empty then; return what was
    removed.

    Raises
    ------
    ValueError
        As `results`.
    RuntimeError
        If the study is being run.
    """
    paths = results(plan)
    if not paths.files:
        return paths
    with lock.locked(status.report_folder(plan)):
        for path in paths.files:
            path.unlink(missing_ok=True)
        for name in lock.LOCKS:
            (status.report_folder(plan) / name).unlink(missing_ok=True)
    for where, _, _ in os.walk(paths.folder, topdown=False):
        with contextlib.suppress(OSError):
            Path(where).rmdir()  # Only if it is empty.
    return paths


def remove_unneeded(plan: Study, everything: Sequence[Task], done: Collection[str]) -> None:
    """Remove the volumes that no notebook will read any more; their sidecars stay.

    Parameters
    ----------
    plan : Study
        Nothing is removed unless its `keep` is ``"tables"``.
    everything : sequence of Task
        All tasks of the study.
    done : collection of str
        The names of those that are done.
    """
    if plan.keep != "tables":
        return
    for subject, step in unneeded(plan, everything, done):
        names, _ = _READ_BY[step]
        for folder in folders.folder(plan).glob(f"{subject.name.split('_')[0]}*"):
            for name in names:
                for path in folder.rglob(f"{subject.name}_*desc-{name}*.nii.gz"):
                    path.unlink(missing_ok=True)


def unneeded(plan: Study, everything: Sequence[Task], done: Collection[str]) -> Iterator[tuple[Subject, str]]:
    """The subjects and steps of which no volume is needed by what is not done yet."""
    waiting = [task for task in everything if task.name not in done]
    left = {}  # number or label of a subject -> notebooks that are yet to be executed for it
    for task in waiting:
        for subject in _subjects(plan, task):
            left.setdefault(subject, set()).add(task.notebook.name[:2])
    for subject in plan.subjects:
        for step, (_, readers) in _READ_BY.items():
            # A preview makes a registered volume anew from its stack.
            others = () if step == "degradation" and plan.slice_step == 1 else (*_HARMONIZE, _ANALYSES)
            own = ("03",) if step == "registration" else ()
            if not left.get(subject.literal, set()) & {*readers, *others, *own}:
                yield subject, step


def _subjects(plan: Study, task: Task) -> list:
    """Numbers or labels of the subjects of which a task reads volumes. The analysis shows those of the first
    subject."""
    notebook, given = task.notebook.name[:2], task.parameters
    if notebook == _ANALYSES:
        return [given["changes"]["subjects"][0]]
    if notebook == "08":  # what super-resolves was taught on several
        return plan.literals()["subjects"]
    return [given["subject"], *given.get("other_subjects", [])]


def largest_mb(plan: Study, order: Sequence[Task]) -> float:
    """What a study takes on disk at most, if its tasks are executed one after the other.

    Parameters
    ----------
    plan : Study
    order : sequence of Task
        All tasks of the study, in an order in which each comes after its needs.
    """
    steps = {"02": "degradation", "03": "registration", **dict.fromkeys(_HARMONIZE, "harmonization")}
    size, done, alive, largest = 0.0, set(), {}, 0.0
    for task in order:
        done.add(task.name)
        subjects, step = _subjects(plan, task), steps.get(task.notebook.name[:2])
        size += task.size_mb if step is None else graph.REPORT_MB
        for subject in subjects if step else ():
            volumes_mb = (task.size_mb - graph.REPORT_MB) / len(subjects)
            alive[subject, step] = alive.get((subject, step), 0.0) + volumes_mb
        largest = max(largest, size + sum(alive.values()))
        if plan.keep == "tables":
            for subject, removed in unneeded(plan, order, done):
                alive.pop((subject.literal, removed), None)
    return largest
