"""The call that BIDS Apps share: ``resolution-matters BIDS_DIR OUTPUT_DIR participant``.

It is written down as a study file and run like any other, so a study begun in one way can go on in the other.
"""

import argparse
import json
import math
import os
import re
import shlex
import tempfile
from importlib.metadata import version
from pathlib import Path

from helpers.runner.cluster import WORKER_MEMORY_GIB, Cluster
from helpers.study import EXPERIMENTS, ONE_ORIENTATION, ORIENTATIONS, require
from helpers.study.file import Study
from helpers.study.toml import expand_path
from helpers.volumes.files import require_place, write_bytes

#: Level -> patterns of the tasks that it stands for: all but the analysis, or everything that is missing.
LEVELS = {"participant": ("[0a][!5]*",), "group": ()}

#: Where in the folder of the results the study file is; BIDS keeps this folder for such files.
STUDY_FILE = Path("code", "study.toml")

_DESCRIPTION = """Slice the images of a BIDS data set as 2D acquisitions would, harmonize them, and score them
against those harmonized from the 3D images. "participant" does so for each subject, "group" makes the figures
and verdicts, after whatever is still missing."""


def is_call(arguments: list[str], commands: list[str]) -> bool:
    """Whether arguments are such a call and not one of our own commands."""
    if not arguments or arguments[0] in commands:
        return False
    return bool(set(LEVELS) & set(arguments)) or Path(arguments[0]).is_dir()


def parser() -> argparse.ArgumentParser:
    """What a call may say; underscores and hyphens in names of options alike, as in older BIDS Apps."""
    call = argparse.ArgumentParser(prog="resolution-matters", description=_DESCRIPTION, allow_abbrev=False)
    call.add_argument("bids_dir", metavar="BIDS_DIR", help="data set with T1w, T2w and FLAIR, 3D, about 1 mm")
    call.add_argument("output_dir", metavar="OUTPUT_DIR", help="folder of the results, a BIDS derivative")
    call.add_argument("level", choices=LEVELS, help="what is done")

    def add(name, **how):
        names = dict.fromkeys((name, f"--{name[2:].replace('-', '_')}"))
        call.add_argument(*names, dest=name[2:].replace("-", "_"), **how)

    add("--participant-label", nargs="+", default=[], metavar="LABEL", help="some subjects (default: all)")
    add("--session-label", nargs="+", default=[], metavar="LABEL", help="some sessions (default: all)")
    levels = "thickness||gap in mm, such as 5||1.5 or 5skip1p5 (default: the paper's eight)"
    add("--resolution", nargs="+", metavar="MM", help=levels)
    rows = "all three contrasts sliced alike: experiments 1a, 1b, 1c (default: all eight experiments)"
    add("--orientation", nargs="+", metavar="NAME", help=f"{', '.join(ORIENTATIONS)}: {rows}")
    add("--harmonizer", metavar="NAME", help="as in a study file: haca3, histogram, package.module:name, ...")
    add("--n-procs", type=int, metavar="N", help="cores to use (default: all)")
    add("--mem-gb", type=float, metavar="GB", help="memory to use (default: all)")
    add("--work-dir", metavar="DIR", help="folder for temporary files (default: the system's)")
    call.add_argument("--version", action="version", version=version("resolution-matters"))
    return call


def write_study(options: argparse.Namespace, arguments: list[str]) -> Path:
    """Write the study file that a call amounts to, once its values and the names in the data set are good.

    Parameters
    ----------
    options : Namespace
        As `parser` reads it.
    arguments : list of str
        The call itself, which is written above the study.

    Returns
    -------
    Path
        The study file.

    Raises
    ------
    ValueError, FileNotFoundError
        If a value is none that a study accepts, or nobody in the data set can take part. Nothing is written
        then.
    """
    output_dir = expand_path(options.output_dir).resolve()
    values = {
        "name": re.sub("[^A-Za-z0-9]+", "-", output_dir.name).strip("-") or "study",
        "bids_dir": str(expand_path(options.bids_dir).resolve()),
        "output_dir": str(output_dir),
        "subjects": _labels(expand_path(options.bids_dir), options.participant_label, options.session_label),
    }
    if options.orientation:
        asked = [require("--orientation", name, ORIENTATIONS) for name in options.orientation]
        values["experiments"] = [row for row in ONE_ORIENTATION if EXPERIMENTS[row]["T1w"] in asked]
    if options.resolution:
        values["resolutions"] = options.resolution
    if options.harmonizer:
        values["harmonizer"] = options.harmonizer
    where = _cluster(options.n_procs, options.mem_gb)
    from helpers.pipeline import participants

    participants.check_cohort(Study(**values), voxels=False)
    lines = [
        f"# Written by resolution-matters {version('resolution-matters')} for the call",
        "#   " + shlex.join(["resolution-matters", *arguments]).replace("\n", " "),
        "# The next such call writes it again: copy it before you change it.",
        *(f"{key} = {_toml(value)}" for key, value in values.items()),
        *(["", "[cluster]"] if where else []),
        *(f"{key} = {_toml(value)}" for key, value in where.items()),
    ]
    path = output_dir / STUDY_FILE
    write_bytes(path, ("\n".join(lines) + "\n").encode())
    return path


def use_work_dir(folder: str) -> None:
    """Let this process and those that it starts keep their temporary files in a folder, which is made."""
    path = expand_path(folder).resolve()
    require_place(path, folder=True)
    path.mkdir(parents=True, exist_ok=True)
    os.environ["TMPDIR"], tempfile.tempdir = str(path), None


def _toml(value) -> str:
    # What JSON writes of texts, numbers and lists of them is TOML, but for a character that no name has.
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def _labels(bids_dir: Path, subjects: list[str], sessions: list[str]) -> list[str]:
    """The subjects of a study: labels, with their sessions if these were named."""
    subjects = [label.removeprefix("sub-") for label in subjects]
    sessions = [label.removeprefix("ses-") for label in sessions]
    if not sessions:
        return subjects or ["all"]
    if subjects:
        return [f"{subject}_ses-{session}" for subject in subjects for session in sessions]
    there = sorted(
        f"{folder.parent.name.removeprefix('sub-')}_{folder.name}"
        for session in sessions
        for folder in bids_dir.glob(f"sub-*/ses-{session}")
    )
    if not there:
        known = sorted({folder.name.removeprefix("ses-") for folder in bids_dir.glob("sub-*/ses-*")})
        accepted = f"accepted are {', '.join(known)}" if known else "no subject has sessions"
        raise ValueError(f"{bids_dir}: --session-label is {' '.join(sessions)}: {accepted}")
    return there


def _cluster(cores: int | None, memory_gb: float | None) -> dict[str, int]:
    """The ``[cluster]`` table: workers on this machine, as far as cores and memory allow."""
    if cores is not None and cores < 1:
        raise ValueError(f"--n-procs is {cores}: accepted are whole numbers from 1")
    table = {} if cores is None else {"cores": cores}
    try:
        Cluster(**table)
    except ValueError as error:
        raise ValueError(f"--n-procs: {error}") from None
    if memory_gb is not None:
        fit = memory_gb * 1e9 / 2**30 / WORKER_MEMORY_GIB
        if not 1 <= fit < math.inf:
            least = WORKER_MEMORY_GIB * 2**30 / 1e9
            raise ValueError(f"--mem-gb is {memory_gb:g}: accepted is at least {least:.1f}")
        table["workers"] = min(int(fit), Cluster(**table).size())
    return table
