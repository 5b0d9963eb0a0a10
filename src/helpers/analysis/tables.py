"""A study's tidy tables as arrays over subjects, experiments, resolutions and contrasts, once they were seen
to be whole."""

import functools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np
import pandas as pd

from helpers.analysis.metrics import score_column
from helpers.study import ARMS, CONTRASTS, EXPERIMENTS, GROUND_TRUTH, ORIENTATIONS, RESOLUTIONS

#: Columns that say how a table was made. Rows that differ in one of them belong to different studies.
VERSION = ("transform", "reconstruction", "anatomy", "mask", "slice_step", "seed")

#: Of a table without a column ``dropped``: HACA3 got all three contrasts.
NOTHING = "nothing"

# Columns of studies that have something in them, and what their absence means.
_RARE = {"dropped": NOTHING, "harmonizer": "haca3"}

LABELS = tuple(resolution.label for resolution in RESOLUTIONS)
SEPARATIONS_MM = np.array([resolution.separation_mm for resolution in RESOLUTIONS])
UNITS = {"psnr_db": "dB", "ssim": "SSIM"}

#: Downstream measure that a claim is about -> its error in words, and the unit of that.
DOWNSTREAM = {
    "lesion_ml": ("the error of lesion volume", "% of lesion volume"),
    "grey_ml": ("the error of grey matter volume", "% of grey matter"),
    "missed_small": ("missed small lesions", "% of small lesions"),
}


class NotRun(LookupError):
    """What a claim needs and the tables do not hold.

    Parameters
    ----------
    message : str
        With the key that was looked for.
    plain : str
        The same for a reader who does not know the tables; by default `message`.
    """

    def __init__(self, message: str, plain: str = ""):
        super().__init__(message)
        self.plain = plain or message


@dataclass(frozen=True)
class Data:
    """The tables of a study as arrays, subjects first.

    Attributes
    ----------
    scores : dict of (measure, experiment, contrast) to ndarray, shape (n, 8)
        Harmonized arm; the last axis is `RESOLUTIONS`. NaN where a resolution was not run.
    weights : dict of (experiment, target, source) to ndarray, shape (n, 8)
        Attention, mean over the reconstruction planes.
    cutoffs : dict of (arm, experiment, contrast) to ndarray, shape (n, 8), cycles/mm
    ladder : dict of (transform, measure, experiment, contrast) to ndarray, shape (n, 8)
        Scores of studies that differ in their transform alone.
    remedies : dict of (arm, measure, experiment, contrast) to ndarray, shape (n, 8)
        Scores in the other arms, ``input`` and those of the study's remedies.
    planes : frozenset of str
        Planes of reconstruction.
    dropped : frozenset of str
        Contrasts that HACA3 did not get.
    """

    scores: Mapping = field(default_factory=dict)
    weights: Mapping = field(default_factory=dict)
    cutoffs: Mapping = field(default_factory=dict)
    ladder: Mapping = field(default_factory=dict)
    planes: frozenset = frozenset(ORIENTATIONS)
    dropped: frozenset = frozenset()
    remedies: Mapping = field(default_factory=dict)

    @functools.cached_property
    def labels(self) -> list[str]:
        """Those of the eight resolutions that the study has, in the paper's order."""
        columns = [~np.isnan(values).any(axis=0) for values in self.scores.values()]
        return (
            [label for label, there in zip(LABELS, np.any(columns, axis=0), strict=True) if there]
            if columns
            else []
        )

    def separations_mm(self) -> np.ndarray:
        """Slice separation at each of `labels`, mm.

        Raises
        ------
        NotRun
            If they do not differ, so that nothing can be said of what grows or falls with it.
        """
        separation_mm = SEPARATIONS_MM[[LABELS.index(label) for label in self.labels]]
        if len(set(separation_mm)) < 2:
            raise NotRun("no two resolutions of different slice separation")
        return separation_mm

    def get(self, table: str, *key: str, labels: Iterable[str] | None = None) -> np.ndarray:
        """Values at some resolutions, by default at all that the study has, shape (n, len(labels)).

        Raises
        ------
        NotRun
            If the table does not hold them.
        """
        held = getattr(self, table)
        if not held:
            names = {"weights": "attention", "cutoffs": "frequencies", "remedies": "other arms"}
            name = names.get(table, table)
            plain = {"frequencies": "frequencies were not measured", "attention": "there is no attention"}
            raise NotRun(f"no table of {name}", plain.get(name, ""))
        if key not in held:
            dropped = f", with {' and '.join(sorted(self.dropped))} dropped" if self.dropped else ""
            experiment = next(part for part in key if part in EXPERIMENTS)
            plain = {
                "cutoffs": f"through-plane frequencies of experiment {experiment} were not measured",
                "remedies": f"experiment {experiment} was not run with arm {key[0]}",
            }
            plain = plain.get(table, f"experiment {experiment} was not run") + dropped
            raise NotRun(f"{table} without {', '.join(key)}{dropped}", plain)
        labels = self.labels if labels is None else list(labels)
        if not labels:
            raise NotRun("no resolution of the eight")
        values = held[key][:, [LABELS.index(label) for label in labels]]
        absent = [label for label, column in zip(labels, values.T, strict=True) if np.isnan(column).any()]
        if absent:
            raise NotRun(f"no resolution {', '.join(absent)}")
        return values

    @property
    def measures(self) -> list[str]:
        """The scores that the table holds, PSNR first. PSNR alone if it holds none: then a claim that needs
        scores raises `NotRun`."""
        return [measure for measure in UNITS if any(key[0] == measure for key in self.scores)] or ["psnr_db"]


def to_arrays(scores, attention=None, cutoffs=None, ladder=None, region: str = "brain") -> Data:
    """Check the tables of a study and turn them into arrays; parameters and errors are those of
    `verdicts`."""
    check_scores(scores)
    if region not in set(scores.region):
        raise ValueError(f"region is {region!r}: accepted are {', '.join(sorted(set(scores.region)))}")
    subjects = sorted(scores.subject.unique().tolist())
    version = _version(scores)
    others = {}
    for name, table, value, keys in (
        ("attention", attention, "weight", ("experiment", "target", "source", "plane")),
        ("cutoffs", cutoffs, "cutoff_per_mm", ("arm", "experiment", "contrast")),
    ):
        if table is None or table.empty:
            others[name] = {}
            continue
        table = table[table.experiment != GROUND_TRUTH]
        _check(table, name, ("subject", "resolution", *keys), [value])
        _same_study(table, name, version, subjects)
        others[name] = _arrays(table, value, keys, subjects)
    weights = {}
    for (*key, _), values in others["attention"].items():
        weights.setdefault(tuple(key), []).append(values)
    steps = {}
    if ladder is not None and not ladder.empty:
        for transform, table in ladder.groupby("transform"):
            check_scores(table, f"ladder, transform {transform},")
            _same_study(
                table, f"ladder, transform {transform},", {**version, "transform": transform}, subjects
            )
            steps |= {
                (transform, *key): values for key, values in _score_arrays(table, region, subjects).items()
            }
    arms = {
        (arm, *key): values
        for arm in sorted(set(scores.arm) - {"harmonized", "ceiling"})
        for key, values in _score_arrays(scores, region, subjects, arm).items()
    }
    planes = frozenset(version["reconstruction"].split("+"))
    mean_weights = {key: np.mean(values, axis=0) for key, values in weights.items()}
    return Data(
        _score_arrays(scores, region, subjects),
        mean_weights,
        others["cutoffs"],
        steps,
        planes,
        _dropped(scores),
        arms,
    )


def downstream_to_arrays(table: pd.DataFrame) -> Data:
    """Errors of downstream measures against the 3D images as arrays, without their sign.

    Parameters
    ----------
    table : DataFrame
        As `helpers.pipeline.scoring.all_downstream` gives it.

    Returns
    -------
    Data
        Its ``scores`` are keyed by (measure, experiment, arm), for the measures in `DOWNSTREAM` and the
        harmonized arms, in percent. Infinite where the reference has nothing to be wrong about: tests leave
        such subjects out.

    Raises
    ------
    ValueError
        As `to_arrays`.
    """
    keys = ("subject", "experiment", "resolution", "arm", "measure")
    rows = table[
        (table.reference == "3D")
        & table.arm.str.startswith("harmonized")
        & table.measure.isin(DOWNSTREAM)
        & (table.experiment != GROUND_TRUTH)
    ]
    _check(rows, "downstream", keys, ["value"])
    rows = rows.assign(error=rows.error_pct.abs().fillna(np.inf))
    subjects = sorted(rows.subject.unique().tolist())
    planes = frozenset(_version(rows)["reconstruction"].split("+"))
    errors = _arrays(rows, "error", ("measure", "experiment", "arm"), subjects)
    return Data(scores=errors, planes=planes, dropped=_dropped(rows))


def over_planes(table: pd.DataFrame) -> pd.DataFrame:
    """One table of studies that differ in their plane of reconstruction alone: previews in three planes judge
    orientations alike.

    Parameters
    ----------
    table : DataFrame
        Scores, attention, curves or cut-offs of the studies, one below the other.

    Returns
    -------
    DataFrame
        As that of one study whose `reconstruction` names all planes. Numbers are means over the planes that
        have them (a plane's own slices say nothing about frequencies across them); ``ssim_planes`` is the
        mean of the planes' own ``ssim_<plane>``.
    """
    planes = [plane for plane in ORIENTATIONS if plane in set(table.reconstruction)]
    if "ssim" in table:
        table = table.assign(
            ssim_planes=[getattr(row, f"ssim_{row.reconstruction}") for row in table.itertuples()]
        )
    measured = ["psnr_db", "data_range", "correlation", "cutoff_per_mm", "weight", "weight_sd"]
    values = [column for column in table if column in measured or column.startswith("ssim")]
    keys = [column for column in table if column not in (*values, "reconstruction")]
    means = table.groupby(keys, sort=False, dropna=False)[values].mean().reset_index()
    return means.assign(reconstruction="+".join(planes))


def check_scores(scores: pd.DataFrame, what: str = "scores") -> None:
    """Refuse a score table that is not one whole study.

    Raises
    ------
    ValueError
        If a column or row is missing, a row is doubled, a score is not a number, or rows are of different
        versions; named.
    """
    keys = ("subject", "experiment", "resolution", "contrast", "arm", "region")
    similarity = [score_column(scores, "ssim")] if "ssim" in scores else []
    values = ["psnr_db", *(column for column in similarity if scores[column].notna().any())]
    _check(scores, what, keys, values, whole=False)
    given = [contrast for contrast in CONTRASTS if contrast not in _dropped(scores)]
    # What was dropped has no arm input, so the harmonized arms are looked at alone as well.
    together = (scores.arm != "ceiling") & scores.contrast.isin(given)
    # The ceiling has no resolution: it is a study of its own.
    for rows, contrasts in (
        (together, given),
        (scores.arm.isin(ARMS), CONTRASTS),
        (scores.arm == "ceiling", CONTRASTS),
    ):
        if len(part := scores[rows]):
            _missing(part, what, keys, {"contrast": contrasts, "subject": scores.subject.unique()})
    if not (scores.arm == "harmonized").any():
        raise ValueError(f"{what} has no row of arm harmonized: accepted are tables that have")


def _check(table, what, keys, values, whole=True):
    for column in (*keys, *VERSION, *values):
        if column not in table:
            raise ValueError(
                f"{what} has no column {column}: accepted are tables with "
                f"{', '.join((*keys, *VERSION, *values))}"
            )
    table = table.assign(**{column: _rare_column(table, column) for column in _RARE})
    for column in (*VERSION, *_RARE):
        counts = table[column].value_counts()
        if len(counts) > 1:
            odd = table[table[column] == counts.index[-1]]
            usual, other = counts.index[0], counts.index[-1]
            mixed = f"{column} is {usual} in {counts.iloc[0]} rows and {other} in {_rows(odd, keys)}"
            raise ValueError(f"{what} mixes versions of the study: {mixed}")
    doubled = table[table.duplicated(list(keys))]
    if len(doubled):
        raise ValueError(f"{what} has rows twice: {_rows(doubled, keys)}")
    empty = table[table[values].isna().any(axis=1)]
    if len(empty):
        raise ValueError(f"{what} has no number for {', '.join(values)} in {_rows(empty, keys)}")
    if whole:
        _missing(table, what, keys, {})


def _missing(table, what, keys, at_least):
    """Refuse a table that lacks a combination of the values that its columns have, or are said to have
    `at_least`."""
    levels = [sorted({*table[key], *at_least.get(key, ())}, key=str) for key in keys]
    expected = pd.MultiIndex.from_product(levels, names=keys)
    absent = expected.difference(pd.MultiIndex.from_frame(table[list(keys)]))
    if len(absent):
        raise ValueError(f"{what} lacks {_rows(absent.to_frame(index=False), keys)}")


def _rows(table: pd.DataFrame, keys) -> str:
    """The first rows of a table by their keys, for a message."""
    examples = [
        "subject {} {}".format(row[0], " ".join(map(str, row[1:])))
        for row in table[list(keys)].head(3).itertuples(index=False)
    ]
    return f"{len(table)} rows: {'; '.join(examples)}{' …' if len(table) > 3 else ''}"


def _rare_column(table, column: str) -> pd.Series:
    """A column that not all tables have, in each row."""
    usual = _RARE[column]
    return table[column].fillna(usual) if column in table else pd.Series(usual, table.index)


def _dropped(table) -> frozenset[str]:
    return frozenset(_version(table)["dropped"].split("+")).intersection(CONTRASTS)


def _version(table) -> dict:
    rare = {column: _rare_column(table, column).iloc[0] for column in _RARE}
    return {**{column: table[column].iloc[0] for column in VERSION}, **rare}


def _same_study(table, what, version, subjects):
    own = _version(table)
    for column, value in version.items():
        if own[column] != value:
            raise ValueError(f"{what} has {column} {own[column]}: accepted is that of the scores, {value}")
    in_table = sorted(table.subject.unique().tolist())
    if in_table != subjects:
        raise ValueError(f"{what} has subjects {in_table}: accepted are those of the scores, {subjects}")


def _arrays(table, value, keys, subjects) -> dict:
    """Keys -> (n, 8) values by subject and resolution; NaN where a resolution is not there."""
    wide = table.pivot(index=[*keys, "subject"], columns="resolution", values=value).reindex(
        columns=list(LABELS)
    )
    return {
        key: part.droplevel(list(keys)).loc[subjects].to_numpy(float)
        for key, part in wide.groupby(level=list(keys))
    }


def _as_in_table_1(dropped: frozenset[str]) -> list[str]:
    """The experiments that have all of their orientations without the sources that were dropped."""
    return [
        name
        for name, row in EXPERIMENTS.items()
        if {row[contrast] for contrast in set(row) - dropped} == set(row.values())
    ]


def _score_arrays(scores, region, subjects, arm="harmonized") -> dict:
    rows = scores[
        (scores.arm == arm)
        & (scores.region == region)
        & scores.experiment.isin(_as_in_table_1(_dropped(scores)))
    ]
    arrays = {}
    for measure in UNITS:
        column = score_column(scores, measure)
        if rows[column].notna().any():
            arrays |= {
                (measure, *key): values
                for key, values in _arrays(rows, column, ("experiment", "contrast"), subjects).items()
            }
    return arrays


def in_papers_order(resolutions: pd.Series) -> list[str]:
    """The resolutions of a table in the paper's order, others after them."""
    known = [resolution.label for resolution in RESOLUTIONS]
    present = [label for label in resolutions.unique() if label != GROUND_TRUTH]
    return sorted(present, key=lambda label: (known.index(label) if label in known else len(known), label))
