"""How much the verdicts depend on single subjects, on the anatomy, on the margins.

The study is judged again with parts of it left out, or with other margins. The verdicts are those of
`helpers.analysis.judgement.decide` on what is left, so Holm's correction and the fewest subjects that a test
needs hold there too: on half of the subjects little can be decided, and estimates are what can be compared.
"""

from collections.abc import Mapping, Sequence
from dataclasses import fields, replace

import numpy as np
import pandas as pd

from helpers.analysis import judgement, statistics, tables

_MARGINS = ("psnr_db", "ssim", "weight", "cutoff_per_mm")


def select(data: tables.Data, keep: np.ndarray) -> tables.Data:
    """The arrays of some subjects.

    Parameters
    ----------
    data : Data
    keep : ndarray of bool, shape (n,)
        In the order of the arrays: subjects sorted.
    """
    arrays = {
        part.name: {key: values[keep] for key, values in getattr(data, part.name).items()}
        for part in fields(data)
        if isinstance(getattr(data, part.name), Mapping)
    }
    return replace(data, **arrays)


def scale_margins(rules: statistics.Rules, factor: float) -> statistics.Rules:
    """Rules with every difference that does not matter multiplied."""
    return replace(rules, **{name: factor * getattr(rules, name) for name in _MARGINS})


def judge_variants(
    data: tables.Data,
    rules: statistics.Rules,
    subjects: Sequence,
    anatomies: Mapping | None = None,
) -> pd.DataFrame:
    """Verdicts of the whole study, without each subject in turn, on each anatomy alone, and with half and
    double margins.

    Parameters
    ----------
    data : Data
    rules : Rules
    subjects : sequence
        Labels, in the order of the arrays.
    anatomies : mapping of subject to str, optional
        Which brain each simulated subject was made from.

    Returns
    -------
    DataFrame
        A row per variant and claim: ``variant``, ``value`` (what was left out, kept, or multiplied by),
        ``claim``, ``verdict``, and ``estimate``, ``low``, ``high`` of the comparison that decided the whole
        study's verdict. NaN where that comparison was not made.
    """
    subjects = np.asarray(subjects)
    whole, comparisons = judgement.decide(data, rules)
    deciding = whole.set_index("claim").comparison.dropna()

    def rows(variant, value, verdicts, comparisons):
        numbers = comparisons.set_index(["claim", "comparison"])[["estimate", "low", "high"]]
        for row in verdicts.itertuples():
            key = row.claim, deciding.get(row.claim)
            known = numbers.loc[key].to_dict() if key in numbers.index else {}
            yield {"variant": variant, "value": value, "claim": row.claim, "verdict": row.verdict, **known}

    result = [*rows("whole", "", whole, comparisons)]
    for subject in subjects:
        result += rows("without", subject, *judgement.decide(select(data, subjects != subject), rules))
    names = np.array([(anatomies or {}).get(subject, "") for subject in subjects])
    for name in sorted(set(names) - {""}):
        if (names == name).all():
            continue
        result += rows("alone", name, *judgement.decide(select(data, names == name), rules))
    for factor in (0.5, 2):
        result += rows("margins", factor, *judgement.decide(data, scale_margins(rules, factor)))
    return pd.DataFrame(result)


def summarize(variants: pd.DataFrame) -> pd.DataFrame:
    """A row per claim that the whole study decided: is its verdict fragile?

    Parameters
    ----------
    variants : DataFrame
        From `judge_variants`.

    Returns
    -------
    DataFrame
        ``claim``, ``verdict``, ``without a subject`` (in how many of the variants the verdict stays),
        ``margins x 0.5``, ``margins x 2``, the estimates on each anatomy, and ``both brains`` (whether they
        have the sign of the whole study's).
    """
    whole = variants[(variants.variant == "whole") & (variants.verdict != judgement.UNDECIDED)]
    rows = []
    for claim in whole.itertuples():
        same = variants[variants.claim == claim.claim]
        without = same[same.variant == "without"]
        margins = same[same.variant == "margins"].set_index("value").verdict
        alone = same[same.variant == "alone"].set_index("value").estimate
        row = {
            "claim": claim.claim,
            "verdict": claim.verdict,
            "without a subject": f"{(without.verdict == claim.verdict).sum()} of {len(without)}",
            **{f"margins x {factor:g}": verdict for factor, verdict in margins.items()},
            "estimate": claim.estimate,
            **{f"estimate, {name}": estimate for name, estimate in alone.items()},
        }
        if len(alone):
            row["both brains"] = bool((np.sign(alone) == np.sign(claim.estimate)).all())
        rows.append(row)
    return pd.DataFrame(rows)
