"""The verdict on each claim, by paired tests over subjects.

A claim is a set of comparisons, all of which must hold: PSNR and SSIM, the target contrasts, and whatever
else it names. Each comparison is one number per subject (an average over the resolutions of the study, as far
as they are among the eight, unless the claim names some) and one of five kinds:

- ``above zero``: the difference is positive. Exact one-sided Wilcoxon signed-rank test.
- ``similar``: the difference lies within the margin. Two one-sided t tests (TOST).
- ``not above zero``: the difference lies below the margin, it does not help. One-sided t test.
- ``more variable``: the variance between subjects is larger. Brown-Forsythe, paired: one-sided t test on
  each subject's absolute deviations from the median, averaged over the resolutions.
- ``small spread``: the standard deviation between subjects is smaller than the fall over the resolutions.
  Upper bound of the one against lower bound of the other, each at half of the level.

A claim's p is the largest of its comparisons. Holm's method adjusts over the whole family of claims,
whether all could be tested or not.

Where HACA3 did without a contrast, its output is still compared, except by claims that tie an output to its
own source. A row of Table 1 that without it has fewer orientations than it had (3D is one) is another
experiment, and counts as not run.

A claim is contradicted if one of its comparisons is shown to be otherwise:

- ``above zero``: the difference is below the margin, while the test for a positive one failed.
- ``similar``: the difference is beyond the margin, on either side.
- ``not above zero``: the difference is above the margin.
- ``more variable``: the variance is less than the margin's multiple, while the test for a larger one failed.
- ``small spread``: the standard deviation is larger than the fall.

The p of the contradiction is the smallest of its comparisons times their number (Bonferroni), and Holm
adjusts it over the whole family as well. A claim of which neither is shown is undecided.
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from helpers.analysis import statistics, tables
from helpers.analysis.claims import CLAIMS, Claim
from helpers.study import ORIENTATIONS

SUPPORTED, CONTRADICTED, UNDECIDED = "supported", "contradicted", "undecided"

#: Unit -> number of decimals in sentences.
_DECIMALS = {"dB": 2, "SSIM": 3, "weight": 3, "cycles/mm": 3, "variance ratio": 2, "SD / fall": 2}
_DECIMALS |= {"% of lesion volume": 1, "% of grey matter": 2, "% of small lesions": 1}


def decide(
    data: tables.Data, rules: statistics.Rules = statistics.Rules(), family: Sequence[Claim] = CLAIMS
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The verdict on every claim of a family, from arrays.

    Returns
    -------
    verdicts : DataFrame
        A row per claim: ``claim``, ``statement``, ``experiments``, ``verdict``, ``sentence``, ``reason`` (why
        there can be no verdict, in plain words; else empty: see `split`), ``resolutions`` that it is about,
        the comparison that decided (the weakest, or for a contradicted claim the one that contradicts most)
        with its statistics, and the claim's ``p``, ``p_holm``, ``p_against``, ``p_against_holm``. ``power``
        is that of the deciding comparison before Holm, at the SD seen: to find a difference of the margin
        (above zero, more variable), or to show that there is none if there is none (similar, not above zero),
        or to show the ratio seen (small spread).
    comparisons : DataFrame
        A row per comparison of every claim that could be tested, from `examine`.
    """
    tested, reasons, plain = {}, {}, {}
    for claim in family:
        try:
            # Computed first: that an experiment was not run is a better reason than a missing plane.
            comparisons = list(claim.comparisons(data))
            if claim.all_planes and data.planes != frozenset(ORIENTATIONS):
                planes = ", ".join(sorted(data.planes))
                favours = f"only the {planes} plane was looked at, which favours some orientations"
                raise tables.NotRun(
                    f"reconstruction in {planes} only, which treats orientations unlike", favours
                )
            if lacking := data.dropped.intersection(claim.own_source):
                raise tables.NotRun(f"no source {' and '.join(sorted(lacking))}, of which it speaks")
            tested[claim.id] = statistics.test_comparison(comparisons, rules)
        except tables.NotRun as missing:
            reasons[claim.id], plain[claim.id] = f"not run: {missing}", missing.plain
    for name, table in tested.items():
        if table.p.isna().any():
            short = table[table.p.isna()].iloc[0]
            needed = rules.fewest_exact if short.kind == "above zero" else rules.fewest
            reasons[name] = (
                f"{short.n} subjects with a finite value: accepted are {needed} or more for "
                f"{short.comparison}"
            )
            plain[name] = (
                f"{short.n} subject{'s' if short.n > 1 else ''} with a finite score, where the test needs "
                f"{needed}"
            )
    ready = [claim.id for claim in family if claim.id not in reasons]
    p = {name: tested[name].p.max() for name in ready}
    against = {name: min(1.0, tested[name].p_against.min() * len(tested[name])) for name in ready}
    # Holm adjusts for all claims of the family, so that claims that were not run do not make others easier.
    adjusted, adjusted_against = (
        statistics.holm({claim.id: values.get(claim.id, 1.0) for claim in family}, rules.alpha)
        for values in (p, against)
    )
    rows = []
    for claim in family:
        row = {
            "claim": claim.id,
            "statement": claim.statement,
            "experiments": claim.experiments,
            "verdict": UNDECIDED,
        }
        row |= {
            "reason": plain.get(claim.id, ""),
            "resolutions": "" if claim.own_resolutions else ", ".join(data.labels),
        }
        if claim.id in reasons:
            seen = {"n": tested[claim.id].n.min()} if claim.id in tested else {}
            rows.append({**row, **seen, "sentence": f"Undecided: {reasons[claim.id]}."})
            continue
        table = tested[claim.id]
        if adjusted[claim.id] < rules.alpha:
            row["verdict"] = SUPPORTED
        elif adjusted_against[claim.id] < rules.alpha:
            row["verdict"] = CONTRADICTED
        deciding = table.loc[table.p_against.idxmin() if row["verdict"] == CONTRADICTED else table.p.idxmax()]
        row |= {**deciding.to_dict(), "p": p[claim.id], "p_holm": adjusted[claim.id]}
        row |= {"p_against": against[claim.id], "p_against_holm": adjusted_against[claim.id]}
        over = (
            f" Over {row['resolutions']}."
            if row["resolutions"] and len(data.labels) < len(tables.LABELS)
            else ""
        )
        rows.append(
            {**row, "sentence": _sentence(row, len(table), int((table.p < rules.alpha).sum())) + over}
        )
    columns = [
        "claim",
        "statement",
        "experiments",
        "verdict",
        "sentence",
        "reason",
        "resolutions",
        "comparison",
        "kind",
        "unit",
        "margin",
        "n",
    ]
    columns += ["estimate", "low", "high", "d_z", "p", "p_holm", "p_against", "p_against_holm", "power"]
    parts = [table.assign(claim=name)[["claim", *table.columns]] for name, table in tested.items()]
    empty = statistics.test_comparison([], rules).assign(claim=[])
    return pd.DataFrame(rows, columns=columns), pd.concat(parts, ignore_index=True) if parts else empty


def split(verdicts: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The verdicts that a study can give, and the claims on which it can give none.

    Parameters
    ----------
    verdicts : DataFrame
        As `decide` gives it.

    Returns
    -------
    given, without : DataFrame
        Rows of `verdicts` that were tested, less ``reason``; ``claim``, ``statement`` and ``reason`` of the
        others.
    """
    tested = verdicts.reason == ""
    return verdicts[tested].drop(columns="reason"), verdicts.loc[~tested, ["claim", "statement", "reason"]]


_FOUND = {
    "above zero": "no gain of {margin}",
    "similar": "more than {margin} apart",
    "not above zero": "more than {margin} above",
    "more variable": "less than {margin} times the variance",
    "small spread": "a larger spread than the fall",
}


def _sentence(row: dict, count: int, passed: int) -> str:
    decimals = _DECIMALS[row["unit"]]
    unit = "" if row["unit"] in ("variance ratio", "SD / fall") else f" {row['unit']}"
    sign = "" if row["kind"] in ("more variable", "small spread") else "+"
    numbers = (
        f"{row['estimate']:{sign}.{decimals}f}{unit} (95 % {row['low']:{sign}.{decimals}f} to "
        f"{row['high']:{sign}.{decimals}f})"
    )
    if row["verdict"] == SUPPORTED:
        weakest = f"the weakest of {count} comparisons, " if count > 1 else ""
        return f"Supported: {row['statement']}; {weakest}{row['comparison']}, is {numbers}."
    if row["verdict"] == CONTRADICTED:
        margin = _FOUND[row["kind"]].format(margin=f"{row['margin']:g}{unit}")
        return (
            f"Contradicted, it does not hold that {row['statement']}: {row['comparison']} is {numbers}, "
            f"{margin}."
        )
    power = (
        f"; a single comparison like it had {100 * row['power']:.0f} % power"
        if np.isfinite(row["power"])
        else ""
    )
    evidence = (
        f"{passed} of {count} comparisons show it before"
        if passed < count
        else "shown before, but not after,"
    )
    return (
        f"Undecided whether {row['statement']}: {evidence} adjustment for the family; {row['comparison']} is "
        f"{numbers}{power}."
    )


def verdicts(
    scores: pd.DataFrame,
    attention: pd.DataFrame | None = None,
    cutoffs: pd.DataFrame | None = None,
    ladder: pd.DataFrame | None = None,
    rules: statistics.Rules = statistics.Rules(),
    region: str = "brain",
    family: Sequence[Claim] = CLAIMS,
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The verdict on every claim of a family, from the tables of a study.

    Parameters
    ----------
    scores : DataFrame
        As `helpers.pipeline.scoring.all_scores` gives it.
    attention, cutoffs : DataFrame, optional
        As `helpers.pipeline.scoring.all_attention` and `helpers.pipeline.scoring.cutoffs` give them.
    ladder : DataFrame, optional
        Scores of studies that differ in `transform` alone, one below the other:
        `helpers.pipeline.finished.other_studies`.
    rules : Rules
    region : {"brain", "full"}
    family : sequence of Claim
        `CLAIMS` or `REMEDY_CLAIMS`; Holm adjusts within it.

    Returns
    -------
    verdicts, comparisons : DataFrame
        See `decide`.

    Raises
    ------
    ValueError
        If rows are missing, doubled, not numbers, or of different versions of the study; they are named.
    """
    return decide(tables.to_arrays(scores, attention, cutoffs, ladder, region), rules, family)
