"""What the remedies of a study bring back, and where they hurt."""

import numpy as np
import pandas as pd

from helpers.analysis.statistics import with_interval
from helpers.study import ARMS

#: Arms of the remedies, and how a sentence calls them.
CALLED = {
    "harmonized, super-resolved": "super-resolution",
    "harmonized, resolution-aware": "fusion by resolution",
    "harmonized, both": "both together",
    "harmonized, resolution-trained": "training on differing resolutions",
}

#: Value of the columns experiment and contrast in rows that are means over all of them.
ALL = "all"


def recovered(scores: pd.DataFrame) -> pd.DataFrame:
    """What each remedy gains inside the brain, and which share of the loss it brings back.

    The loss is the mean squared difference to the reference, in units of the squared data range. Of a
    subject, the share is 1 minus its sum with the remedy over its sum without, over the resolutions and
    whatever the row puts together: 1 is a perfect image, 0 no remedy, below 0 a harm.

    Parameters
    ----------
    scores : DataFrame
        As `helpers.pipeline.scoring.all_scores` gives it, with arms of remedies.

    Returns
    -------
    DataFrame
        A row per arm, experiment and contrast, each also `ALL` together: ``gain_db`` (mean over subjects of
        the mean difference in PSNR), ``gain_low_db``, ``gain_high_db``, ``share``, ``share_low``,
        ``share_high`` (95 % t intervals over subjects; NaN with one subject), ``n``.
    """
    arms = [arm for arm in ARMS if arm in set(scores.arm)]
    keys = ["subject", "experiment", "contrast", "resolution"]
    rows = scores[scores.arm.isin(arms) & (scores.region == "brain")]
    psnr_db = rows.pivot(index=keys, columns="arm", values="psnr_db")
    squares = 10 ** (-psnr_db / 10)  # an infinite PSNR is no error
    table = []
    for arm in arms[1:]:
        with np.errstate(invalid="ignore"):
            gain = (psnr_db[arm] - psnr_db["harmonized"]).rename("gain")
        parts = pd.concat([gain, squares[[arm, "harmonized"]]], axis=1).reset_index()
        everything = [parts.assign(experiment=ALL), parts.assign(contrast=ALL)]
        everything = pd.concat([parts, *everything, parts.assign(experiment=ALL, contrast=ALL)])
        for (experiment, contrast), group in everything.groupby(["experiment", "contrast"], sort=False):
            means = group.replace(np.inf, np.nan).groupby("subject").gain.mean()
            sums = group.groupby("subject")[[arm, "harmonized"]].sum()
            shares = 1 - sums[arm] / sums.harmonized.where(sums.harmonized > 0)
            row = {"arm": arm, "experiment": experiment, "contrast": contrast}
            row |= with_interval("gain", means, "_db") | with_interval("share", shares)
            table.append({**row, "n": len(means.dropna())})
    return pd.DataFrame(table)


def harms(table: pd.DataFrame) -> pd.DataFrame:
    """The rows of `recovered`, one experiment and contrast each, whose mean score a remedy lowers; worst
    first."""
    single = table[(table.experiment != ALL) & (table.contrast != ALL)]
    return single[single.gain_db < -0.005].sort_values("gain_db")  # what shows in two decimals


def paragraph(table: pd.DataFrame) -> str:
    """The remedies in words: first where scores get worse, then which share of the loss comes back.

    Parameters
    ----------
    table : DataFrame
        As `recovered` gives it.
    """
    worse = harms(table)
    significant = worse[worse.gain_high_db < 0]
    cells = len(table[(table.experiment != ALL) & (table.contrast != ALL)])
    if worse.empty:
        sentence = f"No remedy lowers a mean score, in {cells} combinations of experiment, contrast and arm."
    else:
        listed = "; ".join(map(_harm, (significant if len(significant) else worse).head(3).itertuples()))
        beyond = f", with a 95 % interval below zero in {len(significant)}" if worse.n.max() > 1 else ""
        sentence = f"Where a remedy hurts, {len(worse)} of {cells} mean scores fall{beyond}: {listed}."
    whole = table[(table.experiment == ALL) & (table.contrast == ALL)]
    shares = "; ".join(
        f"{CALLED[row.arm]} {100 * row.share:.0f} %{_bounds(100 * row.share_low, 100 * row.share_high, 0)}, "
        f"{row.gain_db:+.1f} dB"
        for row in whole.itertuples()
    )
    where = "inside the brain (mean squared error), over all experiments and contrasts"
    return f"{sentence} Of the loss of harmonized images {where}, come back: {shares}."


def _harm(row) -> str:
    bounds = _bounds(row.gain_low_db, row.gain_high_db, 2)
    return f"{CALLED[row.arm]} in experiment {row.experiment}, {row.contrast}: {row.gain_db:.2f} dB{bounds}"


def _bounds(low: float, high: float, decimals: int) -> str:
    return f" (95 % {low:.{decimals}f} to {high:.{decimals}f})" if np.isfinite(low) else ""
