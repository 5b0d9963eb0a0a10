"""Finished studies side by side: read, compared, drawn."""

from collections.abc import Iterable
from pathlib import Path

import pandas as pd

from helpers.analysis import comparison, verdict_figures
from helpers.pipeline import folders
from helpers.study.file import Study
from helpers.study.toml import expand_path


def study_of(given: str | Path | Study) -> Study:
    """A finished study by its file, its name (in ``data/derivatives``) or its folder of results."""
    if isinstance(given, Study):
        return given
    if str(given).endswith(".toml"):
        return Study.from_toml(given)
    folder = expand_path(given)
    return Study(output_dir=str(folder)) if folder.is_dir() else Study(name=str(given))


def compare(studies: Iterable[str | Path | Study]):
    """What several finished studies lose, and their verdicts, beside each other.

    Tables and figure are written into the folder of figures of the first: ``comparison_losses.csv``,
    ``comparison_verdicts.csv`` and ``figure_comparison``.

    Parameters
    ----------
    studies : iterable of str, Path or Study
        As `study_of` takes them; two or more that differ in their harmonizer alone.

    Returns
    -------
    losses, verdicts : DataFrame
        As `helpers.analysis.comparison.losses` and `helpers.analysis.comparison.side_by_side` give them.
    fig : Figure

    Raises
    ------
    FileNotFoundError
        If one of them was not analysed.
    ValueError
        If two have one name, differ in what was scored, or a study file names another harmonizer than its
        results have.
    """
    studies = list(studies)
    plans = [study_of(study) for study in studies]
    named, asked = {}, {}  # asked: the harmonizers that study files name
    for study, plan in zip(studies, plans):
        name = Path(plan.output_dir).name if plan.output_dir else plan.name
        if name in named:
            raise ValueError(f"studies are two of the name {name}: accepted are studies of different names")
        named[name] = plan
        if isinstance(study, Study) or str(study).endswith(".toml"):
            asked[name] = plan.harmonizer_name
    tables = {name: _tables(plan) for name, plan in named.items()}
    scores, given, without = (
        {name: study[part] for name, study in tables.items()}
        for part in ("scores", "verdicts", "without_verdict")
    )
    losses = comparison.losses(scores)
    harmonizers = {name: comparison.harmonizer_of(table) for name, table in scores.items()}
    for name, harmonizer in asked.items():
        if harmonizers[name] != harmonizer:
            held = f"its results in {folders.figures_folder(named[name])} are of {harmonizers[name]}"
            raise ValueError(f"study {name} has harmonizer {harmonizer}, but {held}: run it again")
    verdicts = comparison.side_by_side(harmonizers, given, without)
    fig, axes, drawn = verdict_figures.comparison_figure(scores, verdicts)
    folders.save_tables(plans[0], {"comparison_losses": losses, "comparison_verdicts": verdicts})
    folders.save_figure(plans[0], "comparison", fig, drawn)
    return losses, verdicts, fig


def _tables(plan: Study) -> dict[str, pd.DataFrame]:
    tables = {}
    for name in ("scores", "verdicts", "without_verdict"):
        path = folders.figures_folder(plan) / f"{name}.csv"
        if not path.is_file():
            raise FileNotFoundError(f"{path}: no such table: accepted are studies that were run to the end")
        tables[name] = pd.read_csv(path, dtype={"experiment": str, "resolution": str})
    return tables
