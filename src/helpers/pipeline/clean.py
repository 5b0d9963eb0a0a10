"""Remove what a study has written, and nothing else."""

import contextlib
import itertools
import json
import os
from dataclasses import dataclass
from pathlib import Path

from helpers import layout
from helpers.pipeline import folders, log, status
from helpers.study.file import Study

#: What a study writes into its folder, beside the description of the data set.
_OURS = ("tables", "report", "figures", "encodings", "resolvers", ".bidsignore", "sub-*")


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
    for top in sorted(itertools.chain.from_iterable(map(folder.glob, _OURS))):
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
        path for path in files if path.parent != status.report_folder(plan) or path.name not in log.LOCKS
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
    with log.locked(status.report_folder(plan)):
        for path in paths.files:
            path.unlink(missing_ok=True)
        for name in log.LOCKS:
            (status.report_folder(plan) / name).unlink(missing_ok=True)
    for where, _, _ in os.walk(paths.folder, topdown=False):
        with contextlib.suppress(OSError):
            Path(where).rmdir()  # Only if it is empty.
    return paths
