"""The tables of studies that were run before: read, never computed."""

from collections.abc import Iterable
from pathlib import Path

import pandas as pd

from helpers import layout
from helpers.pipeline import cache, folders
from helpers.study import EXPERIMENTS
from helpers.study.file import Study


def other_studies(folders: Iterable[str | Path], table: str = "scores") -> pd.DataFrame:
    """A table of several studies, one below the other: of a study's `ladder`, or of its `planes`.

    Parameters
    ----------
    folders : iterable of str or Path
        Folders of results, or names of studies in ``data/derivatives``. Each must have been run to its end.
    table : str
        ``scores``, ``attention``, ``frequencies`` or ``registrations``.

    Raises
    ------
    FileNotFoundError
        If one of them has no such table.
    """
    parts = [cache.read_table(_table_of(folder, table)) for folder in folders]
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame()


def _table_of(study: str | Path, table: str) -> Path:
    """A table of another study, which is given by its name or folder; FileNotFoundError if it has none."""
    path = layout.DERIVATIVES / study / "tables" / f"{table}.csv"  # An absolute path stays what it is.
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such table: accepted are studies that were run to the end")
    return path


def check_others(plan: Study) -> None:
    """See that the studies which this one's analysis takes in were run, and that none is counted twice.

    Raises
    ------
    FileNotFoundError
        Naming the key and the study.
    ValueError
        If a study is this one itself, or stands in the same list under another name.
    """
    for field in ("planes", "ladder"):
        seen = {(folders.folder(plan) / "tables" / "scores.csv").resolve(): "this study itself"}
        for name in getattr(plan, field):
            try:
                table = _table_of(name, "scores").resolve()
            except FileNotFoundError as error:
                raise FileNotFoundError(f"{field} has {name!r}: {error}") from None
            if table in seen:
                raise ValueError(f"{field} has {name!r}, which is {seen[table]}: accepted are other studies")
            seen[table] = f"the same as {name!r}"


def last_scores(plan: Study) -> tuple[str, pd.DataFrame]:
    """Name and score table of HACA3's study beside this one that was the last to run all of Table 1; if there
    is none, of ``figures/ten``."""
    for path in sorted(
        folders.root(plan).parent.glob("*/tables/scores.csv"),
        key=lambda path: path.stat().st_mtime,
        reverse=True,
    ):
        table = cache.read_table(path)
        if set(EXPERIMENTS) <= set(table.experiment) and "harmonizer" not in table:
            return path.parent.parent.name, table
    return "ten", cache.read_table(layout.FIGURES / "ten" / "scores.csv")


def finished_scores(name: str) -> pd.DataFrame | None:
    """The score table of the study of that name: of its last run, else that in ``figures``; None if there is
    neither."""
    for path in (
        layout.DERIVATIVES / name / "tables" / "scores.csv",
        layout.FIGURES / name / "scores.csv",
    ):
        if path.is_file():
            return cache.read_table(path)
    return None


def mean_psnr(plan: Study) -> str:
    """A small table as text: mean PSNR inside the brain at its finest and coarsest resolution."""
    table = cache.read_table(folders.root(plan) / "tables" / "scores.csv")
    table = table[(table.region == "brain") & (table.arm != "ceiling")]
    ends = table[table.separation_mm.isin([table.separation_mm.min(), table.separation_mm.max()])]
    # A 3D image is its own reference: an infinite PSNR has no mean.
    losses = ends.replace(float("inf"), float("nan")).pivot_table(
        "psnr_db", ["experiment", "contrast"], ["arm", "resolution"]
    )
    return (
        f"Mean PSNR inside the brain, dB ({table.subject.nunique()} "
        f"subjects)\n{losses.round(1).to_string(na_rep='')}"
    )
