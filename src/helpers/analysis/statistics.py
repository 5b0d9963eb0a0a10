"""Tests of a claim over subjects: differences, equivalence, spread, Holm's correction, a mixed model."""

import re
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import stats
from statsmodels.stats.multitest import multipletests

from helpers.analysis import tables
from helpers.study import ONE_ORIENTATION


@dataclass(frozen=True)
class Rules:
    """Margins and levels; the defaults are those that were declared before the study.

    Parameters
    ----------
    psnr_db, ssim : float
        Differences in score that do not matter.
    weight : float
        Difference in attention weight that does not matter.
    cutoff_per_mm : float
        Difference in cut-off frequency that does not matter, cycles/mm.
    lesion_pct, grey_pct, missed_pct : float
        Errors that do not matter: of lesion volume and of grey matter volume, and the share of small lesions
        that are missed, percent.
    variance_ratio : float
        Ratio of variances that does not matter.
    sd_of_fall : float
        "Consistent" is a standard deviation between subjects of less than this part of the fall over the
        resolutions.
    alpha : float
        Level of every test and of the family.
    fewest_exact : int
        Least number n of subjects with which an exact Wilcoxon test can pass in the family of the paper's
        claims: its smallest p is 2^-n.
    fewest : int
        Least number of subjects for all other comparisons: an interval over fewer rests on the assumption of
        normality alone.
    """

    psnr_db: float = 0.5
    ssim: float = 0.01
    weight: float = 0.05
    cutoff_per_mm: float = 0.02
    lesion_pct: float = 5.0
    grey_pct: float = 1.0
    missed_pct: float = 5.0
    variance_ratio: float = 1.5
    sd_of_fall: float = 1.0
    alpha: float = 0.05
    fewest_exact: int = 9
    fewest: int = 5

    def __post_init__(self):
        for name, value in vars(self).items():
            least = 2 if name.startswith("fewest") else 1 if name == "variance_ratio" else 0
            if (
                not np.isfinite(value)
                or value < least
                or (least < 2 and value == least)
                or (name == "alpha" and value >= 0.5)
            ):
                accepted = (
                    "numbers between 0 and 0.5"
                    if name == "alpha"
                    else f"numbers {'from' if least == 2 else 'above'} {least}"
                )
                raise ValueError(f"{name} is {value}: accepted are {accepted}")

    def margin(self, unit: str) -> float:
        """The margin of a unit."""
        margins = {
            "dB": self.psnr_db,
            "SSIM": self.ssim,
            "weight": self.weight,
            "cycles/mm": self.cutoff_per_mm,
            "% of lesion volume": self.lesion_pct,
            "% of grey matter": self.grey_pct,
            "% of small lesions": self.missed_pct,
        }
        return {**margins, "variance ratio": self.variance_ratio, "SD / fall": self.sd_of_fall}[unit]


@dataclass(frozen=True)
class Comparison:
    """One statistic of a claim.

    Attributes
    ----------
    name : str
        In words: what is compared.
    kind : str
        A key of `_TESTS`.
    unit : str
    values : ndarray, shape (n,), or (2, n) for ``more variable`` and ``small spread``
    """

    name: str
    kind: str
    unit: str
    values: np.ndarray


# ---------------------------------------------------------------- tests: k comparisons of one kind at a time


def summary(d: np.ndarray, alpha: float):
    """Mean, t interval at 1 - alpha and d_z of differences (k, n)."""
    n = d.shape[1]
    mean, sd = d.mean(axis=1), d.std(axis=1, ddof=1)
    half = stats.t.ppf(1 - alpha / 2, n - 1) * sd / np.sqrt(n)
    return {"estimate": mean, "low": mean - half, "high": mean + half, "d_z": _ratio(mean, sd)}


def _ratio(a, b):
    """a / b, NaN where b is 0."""
    a, b = np.broadcast_arrays(np.asarray(a, float), np.asarray(b, float))
    return np.divide(a, b, out=np.full(a.shape, np.nan), where=b > 0)


def _t_p(d: np.ndarray, margin: float, alternative: str) -> np.ndarray:
    with np.errstate(all="ignore"):
        p = stats.ttest_1samp(d, margin, axis=1, alternative=alternative).pvalue
    # Without any spread the test statistic is 0 / 0 if the mean lies on the margin.
    return np.where(np.isnan(p), 1.0, p)


def _t_power(shift: np.ndarray, sd: np.ndarray, n: int, alpha: float) -> np.ndarray:
    """Power of a one-sided one-sample t test to find a shift, at the standard deviation seen."""
    noncentrality = np.minimum(
        _ratio(shift, sd) * np.sqrt(n), 30
    )  # Beyond 30 the power is 1, and scipy's distribution gives up.
    return np.where(sd > 0, stats.nct.sf(stats.t.ppf(1 - alpha, n - 1), n - 1, noncentrality), 1.0)


def tost_power(sd: np.ndarray, n: int, margin: float, alpha: float = 0.05) -> np.ndarray:
    """Power of two one-sided t tests to show equivalence if the true difference is 0, by Bonferroni's bound.

    Parameters
    ----------
    sd : float or ndarray
        Standard deviation of the paired differences, in the unit of `margin`.

    Examples
    --------
    >>> round(float(tost_power(0.6, 10, 0.5)), 2)
    0.57
    """
    return np.maximum(2 * _t_power(margin, np.asarray(sd, float), n, alpha) - 1, 0)


def wilcoxon_above_zero(d: np.ndarray) -> np.ndarray:
    """Exact one-sided p that differences are positive; zeros count as the smallest negative ones.

    Parameters
    ----------
    d : ndarray, shape (k, n)
        Finite.
    """
    nil = np.where(d == 0, -np.finfo(float).tiny, d)
    return stats.wilcoxon(nil, axis=1, alternative="greater", method="exact").pvalue


def _above_zero(d, margin, rules):
    p = wilcoxon_above_zero(d)
    against = np.where(p > rules.alpha, _t_p(d, margin, "less"), 1.0)
    power = _t_power(margin, d.std(axis=1, ddof=1), d.shape[1], rules.alpha)
    return {**summary(d, rules.alpha), "p": p, "p_against": against, "power": power}


def _similar(d, margin, rules):
    inside = np.maximum(_t_p(d, margin, "less"), _t_p(d, -margin, "greater"))
    outside = np.minimum(_t_p(d, margin, "greater"), _t_p(d, -margin, "less"))
    power = tost_power(d.std(axis=1, ddof=1), d.shape[1], margin, rules.alpha)
    return {**summary(d, rules.alpha), "p": inside, "p_against": np.minimum(2 * outside, 1), "power": power}


def _not_above_zero(d, margin, rules):
    power = _t_power(margin, d.std(axis=1, ddof=1), d.shape[1], rules.alpha)
    return {
        **summary(d, rules.alpha),
        "p": _t_p(d, margin, "less"),
        "p_against": _t_p(d, margin, "greater"),
        "power": power,
    }


def _more_variable(pair, margin, rules):
    """Deviations (k, 2, n) of the one that is said to vary more, and of the other."""
    a, b = pair[:, 0], pair[:, 1]
    n, d = a.shape[1], a - b
    p = _t_p(d, 0, "greater")
    against = np.where(p > rules.alpha, _t_p(a / np.sqrt(margin) - b, 0, "less"), 1.0)
    # Fieller's interval of the ratio of mean deviations; squared, it is one of variances.
    t2 = stats.t.ppf(1 - rules.alpha / 2, n - 1) ** 2 / n
    mean_a, mean_b = a.mean(axis=1), b.mean(axis=1)
    covariance = ((a - mean_a[:, None]) * (b - mean_b[:, None])).sum(axis=1) / (n - 1)
    q2, q1 = mean_b**2 - t2 * b.var(axis=1, ddof=1), mean_a * mean_b - t2 * covariance
    q0 = mean_a**2 - t2 * a.var(axis=1, ddof=1)
    root = np.sqrt(np.maximum(q1**2 - q2 * q0, 0))
    bounded = q2 > 0
    low = np.where(bounded, np.maximum(_ratio(q1 - root, q2), 0), 0)
    high = np.where(bounded, _ratio(q1 + root, q2), np.inf)
    power = _t_power((np.sqrt(margin) - 1) * mean_b, d.std(axis=1, ddof=1), n, rules.alpha)
    d_z = _ratio(d.mean(axis=1), d.std(axis=1, ddof=1))
    estimate = np.where(mean_b > 0, _ratio(mean_a, mean_b), np.inf) ** 2
    return {
        "estimate": estimate,
        "low": low**2,
        "high": high**2,
        "d_z": d_z,
        "p": p,
        "p_against": against,
        "power": power,
    }


def _small_spread(pair, margin, rules):
    """Mean score and fall (k, 2, n) of each subject: is the SD of the one smaller than the mean of the
    other?"""
    n = pair.shape[2]
    sd, fall, error = (
        pair[:, 0].std(axis=1, ddof=1),
        margin * pair[:, 1].mean(axis=1),
        margin * pair[:, 1].std(axis=1, ddof=1) / np.sqrt(n),
    )
    squares = (n - 1) * sd**2

    def meeting(rising, falling):
        """Twice the value at which two monotone p curves over a bound c > 0 meet, at most 1."""
        low, high = np.full(len(sd), -30.0), np.full(len(sd), 30.0)  # log of c
        for _ in range(80):
            middle = (low + high) / 2
            over = rising(np.exp(middle)) > falling(np.exp(middle))
            low, high = np.where(over, low, middle), np.where(over, middle, high)
        return np.minimum(2 * np.maximum(rising(np.exp(low)), falling(np.exp(high))), 1)

    def mean_below(c):
        return stats.t.cdf(_ratio(fall - c, error), n - 1)

    p = meeting(lambda c: 1 - mean_below(c), lambda c: stats.chi2.cdf(squares / c**2, n - 1))
    against = meeting(lambda c: stats.chi2.sf(squares / c**2, n - 1), mean_below)
    quantile = rules.alpha / 4  # Half of the level for each of the two, half of that for each side.
    t = stats.t.ppf(1 - quantile, n - 1)
    largest, smallest = fall + t * error, fall - t * error
    # If there is no fall, the ratio of spread and fall is infinite.
    low, high, estimate = (
        np.where(below > 0, _ratio(np.sqrt(squares / factor), below), np.inf)
        for factor, below in (
            (stats.chi2.ppf(1 - quantile, n - 1), largest),
            (stats.chi2.ppf(quantile, n - 1), smallest),
            (n - 1, fall),
        )
    )
    # At the SD and the fall seen: how often its upper bound would lie below the fall.
    power = stats.chi2.cdf(_ratio(fall.clip(0) ** 2, sd**2) * stats.chi2.ppf(rules.alpha / 2, n - 1), n - 1)
    return {
        "estimate": margin * estimate,
        "low": margin * low,
        "high": margin * high,
        "d_z": np.full(len(sd), np.nan),
        "p": np.where(np.isnan(p), 1, p),
        "p_against": np.where(np.isnan(against), 1, against),
        "power": power,
    }


TESTS = {
    "above zero": _above_zero,
    "similar": _similar,
    "not above zero": _not_above_zero,
    "more variable": _more_variable,
    "small spread": _small_spread,
}


def test_comparison(comparisons: list[Comparison], rules: Rules) -> pd.DataFrame:
    """The statistics of comparisons, a row each, in their order; those with too few subjects have no p.

    Subjects whose value is not finite (an infinite PSNR) are left out.
    """
    rows, groups = [{} for _ in comparisons], {}
    for number, comparison in enumerate(comparisons):
        values = np.atleast_2d(comparison.values)
        values = values[:, np.isfinite(values).all(axis=0)]
        margin, n = rules.margin(comparison.unit), values.shape[1]
        rows[number] = {
            "comparison": comparison.name,
            "kind": comparison.kind,
            "unit": comparison.unit,
            "margin": margin,
            "n": n,
        }
        if n >= (rules.fewest_exact if comparison.kind == "above zero" else rules.fewest):
            groups.setdefault((comparison.kind, margin, n), []).append((number, values))
        elif n >= 2 and len(values) == 1:
            rows[number] |= {name: float(value[0]) for name, value in summary(values, rules.alpha).items()}
    for (kind, margin, _), members in groups.items():
        stacked = np.stack([values for _, values in members])
        results = TESTS[kind](stacked[:, 0] if stacked.shape[1] == 1 else stacked, margin, rules)
        for place, (number, _) in enumerate(members):
            rows[number] |= {name: float(column[place]) for name, column in results.items()}
    columns = [
        "comparison",
        "kind",
        "unit",
        "margin",
        "n",
        "estimate",
        "low",
        "high",
        "d_z",
        "p",
        "p_against",
        "power",
    ]
    return pd.DataFrame(rows, columns=columns)


def holm(p: dict[str, float], alpha: float) -> dict[str, float]:
    return dict(zip(p, multipletests(list(p.values()), alpha, "holm")[1], strict=True))


def t_interval(values) -> tuple[float, float, float]:
    """Mean of the finite values and its 95 % t interval; the interval is NaN for fewer than two of them."""
    values = np.asarray(values, float)
    values = values[np.isfinite(values)]
    if not len(values):
        return np.nan, np.nan, np.nan
    if len(values) < 2:
        return values.mean(), np.nan, np.nan
    half = stats.t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values))
    return values.mean(), values.mean() - half, values.mean() + half


def with_interval(name: str, values, unit: str = "") -> dict[str, float]:
    """`t_interval` as columns of a table: ``<name><unit>``, ``<name>_low<unit>``, ``<name>_high<unit>``."""
    return dict(
        zip((f"{name}{unit}", f"{name}_low{unit}", f"{name}_high{unit}"), t_interval(values), strict=True)
    )


# ---------------------------------------------------------------- mixed model


def mixed_model(scores: pd.DataFrame) -> pd.DataFrame:
    """PSNR inside the brain ~ separation x orientation x contrast, with a random intercept per subject:
    experiments 1a to 1c at one glance.

    Separation is centred, so that a main effect is that at the mean separation; axial and T1w are the
    references. The two brains are no random effect: a variance cannot be estimated from two levels.
    `helpers.analysis.sensitivity` judges each brain alone.

    Returns
    -------
    DataFrame
        A row per fixed effect: ``estimate``, ``low``, ``high`` (95 %), ``p``, in dB (per mm for
        slopes); the last row, ``SD between subjects``, has an estimate only.

    Raises
    ------
    ValueError
        If the table fails `check_scores`, has fewer than 5 subjects, or lacks one of 1a to 1c or different
        separations.

    References
    ----------
    N. M. Laird and J. H. Ware, "Random-effects models for longitudinal data", Biometrics 38(4):963-974, 1982.
    """
    import statsmodels.formula.api as formula

    tables.check_scores(scores)
    rows = scores[
        (scores.arm == "harmonized") & (scores.region == "brain") & scores.experiment.isin(ONE_ORIENTATION)
    ]
    rows = rows[np.isfinite(rows.psnr_db)]
    seen = (rows.subject.nunique(), rows.orientation.nunique(), rows.separation_mm.nunique())
    if seen[0] < 5 or seen[1] < 3 or seen[2] < 2:
        raise ValueError(
            f"{seen[0]} subjects, {seen[1]} orientations, {seen[2]} separations: accepted are at least 5, 3 "
            "and 2"
        )
    rows = rows.assign(separation=rows.separation_mm - rows.separation_mm.mean())
    model = "psnr_db ~ separation * C(orientation, Treatment('axial')) * C(contrast, Treatment('T1w'))"
    fit = formula.mixedlm(model, rows, groups=rows["subject"]).fit(reml=True)
    # C(orientation, Treatment('axial'))[T.coronal]:separation -> coronal x separation
    names = [
        re.sub(r"C\(.*?\)\)\[T\.(.*?)\]", r"\1", name).replace(":", " x ") for name in fit.fe_params.index
    ]
    interval = fit.conf_int().loc[fit.fe_params.index].to_numpy()
    effects = pd.DataFrame(
        {"effect": names, "estimate": fit.fe_params.to_numpy(), "low": interval[:, 0], "high": interval[:, 1]}
    )
    effects["p"] = fit.pvalues[fit.fe_params.index].to_numpy()
    spread = {"effect": "SD between subjects", "estimate": float(np.sqrt(max(fit.cov_re.iloc[0, 0], 0)))}
    return pd.concat([effects, pd.DataFrame([spread])], ignore_index=True)
