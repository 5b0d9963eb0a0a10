"""Several studies side by side, such as one for each harmonizer: what each loses, and which claims hold
where."""

from collections.abc import Mapping

import numpy as np
import pandas as pd

from helpers.analysis.judgement import CONTRADICTED, SUPPORTED, UNDECIDED
from helpers.analysis.metrics import score_column
from helpers.analysis.statistics import with_interval
from helpers.analysis.tables import UNITS
from helpers.study import CONTRASTS, ONE_ORIENTATION

#: What has to be the same in studies that are compared.
_SAME = ("subject", "experiment", "resolution", "slice_step", "reconstruction", "transform")

#: Of a claim on which a study gives no verdict.
NO_VERDICT = "no verdict"


def harmonizer_of(scores: pd.DataFrame) -> str:
    return scores.harmonizer.iloc[0] if "harmonizer" in scores else "haca3"


def check(studies: Mapping[str, pd.DataFrame]) -> None:
    """Refuse studies that differ in more than their harmonizer, so that a difference between them is its own.

    Parameters
    ----------
    studies : mapping of str to DataFrame
        Name -> score table.

    Raises
    ------
    ValueError
        Naming two studies, the column, and what each has.
    """
    if len(studies) < 2:
        raise ValueError(
            f"studies are {', '.join(studies) or 'none'}: accepted are two or more, of different names"
        )
    (first, expected), *others = ((name, _held(scores)) for name, scores in studies.items())
    for name, held in others:
        for column in _SAME:
            if held[column] != expected[column]:
                raise ValueError(
                    f"study {name} has {column} {', '.join(held[column])}: accepted is that of {first}, "
                    f"{', '.join(expected[column])}"
                )


def _held(scores: pd.DataFrame) -> dict[str, list[str]]:
    harmonized = scores[scores.arm == "harmonized"]
    return {column: sorted(map(str, harmonized[column].unique())) for column in _SAME}


def by_subject(scores: pd.DataFrame, measure: str) -> pd.DataFrame:
    """Mean score inside the brain of each subject over the experiments with one orientation (1a to 1c), or
    over all if none of them was run; an infinite one, of an image that is its own reference, is left out.

    Returns
    -------
    DataFrame
        ``contrast``, ``resolution``, ``separation_mm``, ``subject``, ``score``.
    """
    rows = scores[(scores.arm == "harmonized") & (scores.region == "brain")]
    alike = rows[rows.experiment.isin(ONE_ORIENTATION)]
    rows = (alike if len(alike) else rows).replace(np.inf, np.nan)
    keys = ["contrast", "resolution", "separation_mm", "subject"]
    return rows.groupby(keys)[score_column(scores, measure)].mean().rename("score").reset_index()


def losses(studies: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """What thick slices cost in each study, inside the brain.

    Parameters
    ----------
    studies : mapping of str to DataFrame
        Name -> score table, as `helpers.pipeline.scoring.all_scores` gives it.

    Returns
    -------
    DataFrame
        One row per study, measure and contrast: ``loss``, from the smallest to the largest slice separation,
        and ``slope_per_mm``, along each subject's line through all resolutions, both in ``unit``; each with
        its 95 % t interval over subjects, ``_low`` and ``_high``.

    Raises
    ------
    ValueError
        As `check`.
    """
    check(studies)
    rows = []
    for name, scores in studies.items():
        for measure in UNITS:
            table = by_subject(scores, measure)
            for contrast in CONTRASTS:
                part = table[table.contrast == contrast]
                wide = part.pivot(index="subject", columns="resolution", values="score")
                separation_mm = part.groupby("resolution").separation_mm.first()[wide.columns]
                finest, coarsest = separation_mm.idxmin(), separation_mm.idxmax()
                about = {"study": name, "harmonizer": harmonizer_of(scores), "measure": measure}
                about |= {"unit": UNITS[measure], "contrast": contrast, "from": finest, "to": coarsest}
                x = separation_mm.to_numpy() - separation_mm.mean()
                slope = wide.to_numpy() @ x / (x @ x) if finest != coarsest else np.full(len(wide), np.nan)
                rows.append(
                    {
                        **about,
                        "n": len(wide),
                        **with_interval("loss", wide[finest] - wide[coarsest]),
                        **with_interval("slope_per_mm", slope),
                    }
                )
    return pd.DataFrame(rows)


def side_by_side(
    harmonizers: Mapping[str, str], verdicts: Mapping[str, pd.DataFrame], without: Mapping[str, pd.DataFrame]
) -> pd.DataFrame:
    """The verdicts of several studies.

    Parameters
    ----------
    harmonizers : mapping of str to str
        Study -> its harmonizer.
    verdicts, without : mapping of str to DataFrame
        Study -> as `helpers.analysis.judgement.split` gives them.

    Returns
    -------
    DataFrame
        A row per claim: ``claim``, ``statement``, a column per study, and ``holds``: whether it holds without
        a harmonizer, too or only, and with which it does not, or else with which harmonizers it does; empty
        if in no study.
    """
    statements, columns = {}, {}
    for study in harmonizers:
        for part in (verdicts[study], without[study]):
            statements |= dict(zip(part.claim, part.statement, strict=True))
        columns[study] = dict(zip(verdicts[study].claim, verdicts[study].verdict, strict=True))
    rows = []
    for claim in sorted(statements, key=lambda name: (name[:1], int(name[1:]))):
        row = {study: columns[study].get(claim, NO_VERDICT) for study in harmonizers}
        rows.append(
            {"claim": claim, "statement": statements[claim], **row, "holds": _holds(row, harmonizers)}
        )
    return pd.DataFrame(rows)


def _holds(verdicts: Mapping[str, str], harmonizers: Mapping[str, str]) -> str:
    supported = [study for study in harmonizers if verdicts[study] == SUPPORTED]
    if any(harmonizers[study] == "none" for study in supported):
        alone = all(harmonizers[study] == "none" for study in supported)
        against = [harmonizers[study] for study in harmonizers if verdicts[study] == CONTRADICTED]
        otherwise = f", not with {', '.join(dict.fromkeys(against))}" if against else ""
        return "only without a harmonizer" if alone else f"without a harmonizer too{otherwise}"
    if not supported:
        return ""
    unknown = any(harmonizers[study] == "none" and verdicts[study] == NO_VERDICT for study in harmonizers)
    names = ", ".join(dict.fromkeys(harmonizers[study] for study in supported))
    return f"with {names}{'; without: no verdict' if unknown else ''}"


def in_words(losses: pd.DataFrame, verdicts: pd.DataFrame) -> str:
    """The comparison in lines of text: what each study loses, and which claims hold where."""
    psnr = losses[losses.measure == "psnr_db"]
    fall = f"from {psnr['from'].iloc[0]} to {psnr.to.iloc[0]}"
    lines = [f"PSNR inside the brain, lost {fall}, dB, and per mm of slice separation (95 % over subjects):"]
    width = max(len(study) for study in psnr.study)
    for study, rows in psnr.groupby("study", sort=False):
        parts = [
            f"{row.contrast} {row.loss:.1f} ({row.loss_low:.1f} to {row.loss_high:.1f}), "
            f"{row.slope_per_mm:+.2f}/mm"
            for row in rows.itertuples()
        ]
        lines.append(f"  {study:{width}}  {'; '.join(parts)}")
    signs = {SUPPORTED: "+", CONTRADICTED: "x", UNDECIDED: "?", NO_VERDICT: "."}
    studies = [column for column in verdicts if column not in ("claim", "statement", "holds")]
    lines.append(f"Claims (+ supported, x contradicted, ? undecided, . no verdict) in {', '.join(studies)}:")
    for row in verdicts.to_dict("records"):
        marks = " ".join(signs[row[study]] for study in studies)
        lines.append(
            f"  {row['claim']:4}{marks}  {row['statement']}{': ' + row['holds'] if row['holds'] else ''}"
        )
    return "\n".join(lines)
