"""The claims of the paper as paired tests over subjects, and a verdict for each.

A claim is a set of comparisons, all of which must hold: PSNR and SSIM, the target contrasts, and whatever else it names. Each
comparison is one number per subject (an average over the resolutions of the study, as far as they are among the eight, unless the claim
names some) and one of five kinds:

- ``above zero``: the difference is positive. Exact one-sided Wilcoxon signed-rank test.
- ``similar``: the difference lies within the margin. Two one-sided t tests (TOST).
- ``not above zero``: the difference lies below the margin, it does not help. One-sided t test.
- ``more variable``: the variance between subjects is larger. Brown-Forsythe, paired: one-sided t test on each subject's absolute
  deviations from the median, averaged over the resolutions.
- ``small spread``: the standard deviation between subjects is smaller than the fall over the resolutions. Upper bound of the one
  against lower bound of the other, each at half of the level.

A claim's p is the largest of its comparisons. Holm's method adjusts over the whole family of 18, whether all could be tested or not.

Where HACA3 did without a contrast, its output is still compared, except by claims that tie an output to its own source. A row of
Table 1 that without it has fewer orientations than it had (3D is one) is another experiment, and counts as not run.

What contradicts a claim: one of its comparisons shown to be otherwise, which is, kind by kind: below the margin, so that it is negative
or nil, while the test for a positive difference failed; beyond the margin, on either side; above the margin; the variance less than the
margin's multiple, while the test for a larger one failed; the standard deviation larger than the fall. That p is the smallest of the
comparisons times their number (Bonferroni), and Holm adjusts it over the family of 18 as well. Neither shown: undecided.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np
import pandas as pd
from scipy import stats
from statsmodels.stats.multitest import multipletests

from helpers.metrics import score_column
from helpers.study import (
    CONTRASTS,
    EXPERIMENTS,
    GROUND_TRUTH,
    ONE_ORIENTATION,
    ORIENTATIONS,
    RESOLUTIONS,
    TRANSFORMS,
)

#: Columns that say how a table was made. Rows that differ in one of them belong to different studies.
VERSION = ("transform", "reconstruction", "anatomy", "mask", "slice_step", "seed")

#: Of a table without a column ``dropped``: HACA3 got all three contrasts.
NOTHING = "nothing"

LABELS = tuple(each.label for each in RESOLUTIONS)
SEPARATIONS_MM = np.array([each.separation_mm for each in RESOLUTIONS])

#: Resolutions that C11 calls the higher ones: slice separation below 5 mm.
FINER = tuple(each.label for each in RESOLUTIONS if each.separation_mm < 5)

SUPPORTED, CONTRADICTED, UNDECIDED = "supported", "contradicted", "undecided"

#: Unit -> decimals worth showing.
_DECIMALS = {"dB": 2, "SSIM": 3, "weight": 3, "cycles/mm": 3, "variance ratio": 2, "SD / fall": 2}
_UNITS = {"psnr_db": "dB", "ssim": "SSIM"}


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
    variance_ratio : float
        Ratio of variances that does not matter.
    sd_of_fall : float
        "Consistent" is a standard deviation between subjects of less than this part of the fall over the resolutions.
    alpha : float
        Level of every test and of the family.
    fewest_exact : int
        Subjects without whom an exact Wilcoxon test cannot pass in a family of 18: its smallest p is 2^-n.
    fewest : int
        Subjects without whom no other comparison is made: an interval over fewer rests on the assumption of normality alone.
    """

    psnr_db: float = 0.5
    ssim: float = 0.01
    weight: float = 0.05
    cutoff_per_mm: float = 0.02
    variance_ratio: float = 1.5
    sd_of_fall: float = 1.0
    alpha: float = 0.05
    fewest_exact: int = 9
    fewest: int = 5

    def __post_init__(self):
        for name, value in vars(self).items():
            least = 2 if name.startswith("fewest") else 1 if name == "variance_ratio" else 0
            if not np.isfinite(value) or value < least or (least < 2 and value == least) or (name == "alpha" and value >= 0.5):
                accepted = "numbers between 0 and 0.5" if name == "alpha" else f"numbers {'from' if least == 2 else 'above'} {least}"
                raise ValueError(f"{name} is {value}: accepted are {accepted}")

    def margin(self, unit: str) -> float:
        """The margin of a unit."""
        margins = {"dB": self.psnr_db, "SSIM": self.ssim, "weight": self.weight, "cycles/mm": self.cutoff_per_mm}
        return {**margins, "variance ratio": self.variance_ratio, "SD / fall": self.sd_of_fall}[unit]


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

    @property
    def labels(self) -> list[str]:
        """Those of the eight resolutions that the study has, in the paper's order."""
        columns = [~np.isnan(values).any(axis=0) for values in self.scores.values()]
        return [label for label, there in zip(LABELS, np.any(columns, axis=0), strict=True) if there] if columns else []

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
            name = {"weights": "attention", "cutoffs": "frequencies"}.get(table, table)
            raise NotRun(f"no table of {name}", f"{name} were not measured" if name == "frequencies" else "")
        if key not in held:
            dropped = f", with {' and '.join(sorted(self.dropped))} dropped" if self.dropped else ""
            experiment = next(part for part in key if part in EXPERIMENTS)
            plain = {"cutoffs": f"through-plane frequencies of experiment {experiment} were not measured"}
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
        """The scores that the table holds, PSNR first; that one if it holds none, so that whoever asks for it learns so."""
        return [measure for measure in _UNITS if any(key[0] == measure for key in self.scores)] or ["psnr_db"]


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


@dataclass(frozen=True)
class Claim:
    """A statement of the paper and how it is tested.

    Attributes
    ----------
    id : str
    statement : str
    experiments : str
        Those that it speaks of.
    comparisons : callable
        `Data` -> list of `Comparison`; raises `NotRun`.
    all_planes : bool
        It compares orientations, which only a reconstruction in all three planes treats alike.
    own_source : tuple of str
        Contrasts of which it says what their own source does, or does not do, to their output.
    own_resolutions : bool
        It names its resolutions, instead of taking all that the study has.
    """

    id: str
    statement: str
    experiments: str
    comparisons: Callable[[Data], list[Comparison]]
    all_planes: bool = False
    own_source: tuple[str, ...] = ()
    own_resolutions: bool = False


# ---------------------------------------------------------------- what each claim compares


def _each(data: Data, contrasts: Iterable[str] = CONTRASTS):
    return [(measure, contrast) for measure in data.measures for contrast in contrasts]


def _name(*parts: str) -> str:
    return ", ".join({"psnr_db": "PSNR", "ssim": "SSIM"}.get(part, part) for part in parts)


def _differences(data: Data, kind: str, pairs: Iterable[tuple[str, str, str]]) -> list[Comparison]:
    """For (experiment, other experiment, contrast): mean over the resolutions of their paired difference."""
    made = []
    for measure in data.measures:
        for first, second, contrast in pairs:
            d = (data.get("scores", measure, first, contrast) - data.get("scores", measure, second, contrast)).mean(axis=1)
            made.append(Comparison(_name(f"{first} - {second}", contrast, measure), kind, _UNITS[measure], d))
    return made


def _fall(values: np.ndarray, separation_mm: np.ndarray) -> np.ndarray:
    """Fall from the smallest to the largest slice separation along each subject's line: (n, r) and (r,) -> (n,)."""
    x = separation_mm - separation_mm.mean()
    with np.errstate(invalid="ignore"):  # An infinite score has no line.
        return -(values @ x) / (x @ x) * np.ptp(separation_mm)


def _span(separation_mm: np.ndarray) -> str:
    return f"from {separation_mm.min():g} to {separation_mm.max():g} mm"


def _deviations(values: np.ndarray) -> np.ndarray:
    """Absolute deviation of each subject from the median at each resolution, mean over the resolutions: (n, r) -> (n,)."""
    with np.errstate(invalid="ignore"):
        return np.abs(values - np.median(values, axis=0)).mean(axis=1)


def _falls_with_separation(data):
    made = []
    for measure, contrast in _each(data):
        values = [data.get("scores", measure, experiment, contrast) for experiment in EXPERIMENTS]
        x = data.separations_mm()
        fall = np.mean([_fall(each, x) for each in values], axis=0)
        made.append(Comparison(_name(f"fall {_span(x)}", contrast, measure), "above zero", _UNITS[measure], fall))
    return made


def _same_separation(first, second):
    def compare(data):
        made = []
        for measure, contrast in _each(data):
            for experiment in ONE_ORIENTATION:
                pair = data.get("scores", measure, experiment, contrast, labels=(first, second))
                name = _name(f"{first} - {second}", experiment, contrast, measure)
                made.append(Comparison(name, "similar", _UNITS[measure], pair[:, 0] - pair[:, 1]))
        return made

    return compare


def _consistent(data):
    made = []
    for measure, contrast in _each(data):
        for experiment in ONE_ORIENTATION:
            values = data.get("scores", measure, experiment, contrast)
            pair = np.stack([values.mean(axis=1), _fall(values, data.separations_mm())])
            made.append(Comparison(_name("SD against fall", experiment, contrast, measure), "small spread", "SD / fall", pair))
    return made


def _sagittal_varies_most(data):
    made = []
    for measure in data.measures:
        spread = {(e, c): _deviations(data.get("scores", measure, e, c)) for e in ONE_ORIENTATION for c in CONTRASTS}
        pairs = [(("1b", c), (e, c), f"1b / {e}", c) for e in ("1a", "1c") for c in CONTRASTS]
        pairs += [(("1b", "T2w"), ("1b", c), f"T2w / {c}", "1b") for c in ("T1w", "FLAIR")]
        for more, less, *words in pairs:
            made.append(Comparison(_name(*words, measure), "more variable", "variance ratio", np.stack([spread[more], spread[less]])))
    return made


def _mixing_against_alike(data):
    matched = [("2", "1b", "T2w"), ("2", "1c", "FLAIR")]  # T1w is axial in experiment 2, so matched with 1a already.
    return _differences(data, "not above zero", [("2", "1a", contrast) for contrast in CONTRASTS] + matched)


def _flair_stays_t2w_varies(data):
    made = _differences(data, "similar", [("4", "3", "FLAIR")])
    finer = [label for label in FINER if label in data.labels]
    if not finer:
        raise NotRun("no resolution with a slice separation below 5 mm")
    where = "separation below 5 mm" if len(finer) == len(FINER) else f"at {', '.join(finer)}"
    for measure in data.measures:
        spread = [_deviations(data.get("scores", measure, experiment, "T2w", labels=finer)) for experiment in ("4", "3")]
        name = _name("4 / 3", "T2w", where, measure)
        made.append(Comparison(name, "more variable", "variance ratio", np.stack(spread)))
    return made


def _own_contrast_only(data):
    made = []
    for measure in data.measures:
        for experiment, own in (("3", "T1w"), ("5", "FLAIR")):
            gain = {c: (data.get("scores", measure, experiment, c) - data.get("scores", measure, "1a", c)).mean(axis=1) for c in CONTRASTS}
            for other in (c for c in CONTRASTS if c != own):
                name = _name(f"gain of {own} - gain of {other}", f"{experiment} - 1a", measure)
                made.append(Comparison(name, "above zero", _UNITS[measure], gain[own] - gain[other]))
    return made


def _best_is_alike_and_fine(data):
    made = []
    for measure, contrast in _each(data):
        values = {experiment: data.get("scores", measure, experiment, contrast) for experiment in (*ONE_ORIENTATION, "2")}
        finest = data.separations_mm().argmin()
        best = np.max([values[experiment][:, finest] for experiment in ONE_ORIENTATION], axis=0)
        others = [np.delete(values[experiment], finest, axis=1).T for experiment in ONE_ORIENTATION]
        rest = np.max(np.concatenate([values["2"].T, *others]), axis=0)
        with np.errstate(invalid="ignore"):
            d = best - rest
        name = _name(f"best alike at {data.labels[finest]} - best of the rest", contrast, measure)
        made.append(Comparison(name, "above zero", _UNITS[measure], d))
    return made


def _no_super_resolution(data):
    made = []
    for experiment in ONE_ORIENTATION:
        for contrast in CONTRASTS:
            d = (data.get("cutoffs", "harmonized", experiment, contrast) - data.get("cutoffs", "input", experiment, contrast)).mean(axis=1)
            made.append(Comparison(_name("cut-off of output - input", experiment, contrast), "not above zero", "cycles/mm", d))
    return made


def _attention_sees_contrast_only(data):
    sharp = {"3": "T1w", "4": "T1w", "5": "FLAIR", "6": "FLAIR"}
    made = []
    for target in CONTRASTS:
        mean = {s: np.mean([data.get("weights", e, target, s).mean(axis=1) for e in sharp], axis=0) for s in CONTRASTS}
        other = np.max([mean[source] for source in CONTRASTS if source != target], axis=0)
        made.append(Comparison(_name("weight of the own source - largest other", target), "above zero", "weight", mean[target] - other))
        for experiment, source in sharp.items():
            # Were resolution seen, the weight of the 3D source would rise as the others get coarser.
            weights = data.get("weights", experiment, target, source)
            rise = -_fall(weights, data.separations_mm())
            name = _name(f"rise of the weight of 3D {source} {_span(data.separations_mm())}", experiment, f"target {target}")
            made.append(Comparison(name, "similar", "weight", rise))
    return made


def _registration_costs(data):
    estimated = [each for each in TRANSFORMS if each != "known" and any(key[0] == each for key in data.ladder)]
    if not estimated or not any(key[0] == "known" for key in data.ladder):
        plain = "no study with an estimated transform stands beside it"
        raise NotRun("no studies with the known and with an estimated transform", plain)
    # Estimating transforms takes longer than all else: a ladder need not have all eight resolutions, but says which.
    held = next(iter(data.ladder.values()))
    labels = [label for label, column in zip(LABELS, held.T, strict=True) if not np.isnan(column).any()]
    if not labels:
        raise NotRun("no resolution of the eight in the ladder")
    where = () if len(labels) == len(LABELS) else ("at " + ", ".join(labels),)
    made = []
    for transform in estimated:
        for measure, contrast in _each(data):
            known, found = (
                np.mean([data.get("ladder", each, measure, experiment, contrast, labels=labels).mean(axis=1) for experiment in EXPERIMENTS], axis=0)
                for each in ("known", transform)
            )
            name = _name(f"known - {transform}", *where, contrast, measure)
            made.append(Comparison(name, "above zero", _UNITS[measure], known - found))
    return made


def _pairs(kind, *pairs):
    return lambda data: _differences(data, kind, pairs)


def _all(first, second):
    return [(first, second, contrast) for contrast in CONTRASTS]


#: In the order and the words of the study's plan.
CLAIMS = (
    Claim("C1", "quality falls as slice separation grows", "all", _falls_with_separation),
    Claim("C2", "3||1 and 4||0 (separation 4 mm) score alike", "1a-c", _same_separation("3||1", "4||0"), own_resolutions=True),
    Claim("C3", "4||1 and 5||0 (separation 5 mm) score alike", "1a-c", _same_separation("4||1", "5||0"), own_resolutions=True),
    Claim("C4", "axial inputs are best", "1a, 1b, 1c", _pairs("above zero", *_all("1a", "1b"), *_all("1a", "1c")), True),
    Claim("C5", "performance is consistent when all orientations agree", "1a-c", _consistent),
    Claim("C6", "sagittal inputs vary most, T2w above all", "1b", _sagittal_varies_most, True, ("T2w",)),
    Claim("C7", "mixing orientations does not help, or hurts", "2, 1a-c", _mixing_against_alike, True),
    Claim("C8", "a 3D T1w improves the T1w output", "3, 1a", _pairs("above zero", ("3", "1a", "T1w"))),
    Claim(
        "C9", "a 3D T1w does not change the T2w and FLAIR outputs", "3, 1a", _pairs("similar", ("3", "1a", "T2w"), ("3", "1a", "FLAIR")),
        own_source=("T2w", "FLAIR"),
    ),
    Claim("C10", "with a 3D T1w, mixing orientations does not help either", "4, 3", _pairs("not above zero", *_all("4", "3")), True),
    Claim("C11", "mixed beside a 3D T1w, FLAIR stays and T2w varies more at the higher resolutions", "4, 3", _flair_stays_t2w_varies),
    Claim("C12", "a 3D FLAIR improves the FLAIR output", "5, 1a", _pairs("above zero", ("5", "1a", "FLAIR"))),
    Claim("C13", "with a 3D FLAIR, mixing orientations has no major impact", "6, 5", _pairs("similar", *_all("6", "5")), True),
    Claim("C14", "a 3D scan helps its own contrast only", "3, 5, 1a", _own_contrast_only, own_source=CONTRASTS),
    Claim("C15", "the best 2D inputs have one orientation and the highest resolution", "1a-c, 2", _best_is_alike_and_fine),
    Claim("C16", "the harmonizer does not super-resolve", "1a-c", _no_super_resolution, True),
    Claim("C17", "the attention sees contrast, not resolution", "3-6", _attention_sees_contrast_only),
    Claim("C18", "part of the loss is registration error", "all", _registration_costs, own_resolutions=True),
)


# ---------------------------------------------------------------- tests: k comparisons of one kind at a time


def _summary(d: np.ndarray, alpha: float):
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
    # Without any spread the test has no answer on the margin itself.
    return np.where(np.isnan(p), 1.0, p)


def _t_power(shift: np.ndarray, sd: np.ndarray, n: int, alpha: float) -> np.ndarray:
    """Power of a one-sided one-sample t test to find a shift, at the standard deviation seen."""
    noncentrality = np.minimum(_ratio(shift, sd) * np.sqrt(n), 30)  # Beyond 30 the power is 1, and scipy's distribution gives up.
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
    return {**_summary(d, rules.alpha), "p": p, "p_against": against, "power": power}


def _similar(d, margin, rules):
    inside = np.maximum(_t_p(d, margin, "less"), _t_p(d, -margin, "greater"))
    outside = np.minimum(_t_p(d, margin, "greater"), _t_p(d, -margin, "less"))
    power = tost_power(d.std(axis=1, ddof=1), d.shape[1], margin, rules.alpha)
    return {**_summary(d, rules.alpha), "p": inside, "p_against": np.minimum(2 * outside, 1), "power": power}


def _not_above_zero(d, margin, rules):
    power = _t_power(margin, d.std(axis=1, ddof=1), d.shape[1], rules.alpha)
    return {**_summary(d, rules.alpha), "p": _t_p(d, margin, "less"), "p_against": _t_p(d, margin, "greater"), "power": power}


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
    return {"estimate": estimate, "low": low**2, "high": high**2, "d_z": d_z, "p": p, "p_against": against, "power": power}


def _small_spread(pair, margin, rules):
    """Mean score and fall (k, 2, n) of each subject: is the SD of the one smaller than the mean of the other?"""
    n = pair.shape[2]
    sd, fall, error = pair[:, 0].std(axis=1, ddof=1), margin * pair[:, 1].mean(axis=1), margin * pair[:, 1].std(axis=1, ddof=1) / np.sqrt(n)
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
    # Against no fall, any spread is infinitely large.
    low, high, estimate = (
        np.where(below > 0, _ratio(np.sqrt(squares / factor), below), np.inf)
        for factor, below in ((stats.chi2.ppf(1 - quantile, n - 1), largest), (stats.chi2.ppf(quantile, n - 1), smallest), (n - 1, fall))
    )
    # At the SD and the fall seen: how often its upper bound would lie below the fall.
    power = stats.chi2.cdf(_ratio(fall.clip(0) ** 2, sd**2) * stats.chi2.ppf(rules.alpha / 2, n - 1), n - 1)
    return {
        "estimate": margin * estimate, "low": margin * low, "high": margin * high, "d_z": np.full(len(sd), np.nan),
        "p": np.where(np.isnan(p), 1, p), "p_against": np.where(np.isnan(against), 1, against), "power": power,
    }  # fmt: skip


_TESTS = {
    "above zero": _above_zero,
    "similar": _similar,
    "not above zero": _not_above_zero,
    "more variable": _more_variable,
    "small spread": _small_spread,
}


def examine(comparisons: list[Comparison], rules: Rules) -> pd.DataFrame:
    """The statistics of comparisons, a row each, in their order; those with too few subjects have no p.

    Subjects whose value is not finite (an infinite PSNR) are left out.
    """
    rows, groups = [{} for _ in comparisons], {}
    for number, each in enumerate(comparisons):
        values = np.atleast_2d(each.values)
        values = values[:, np.isfinite(values).all(axis=0)]
        margin, n = rules.margin(each.unit), values.shape[1]
        rows[number] = {"comparison": each.name, "kind": each.kind, "unit": each.unit, "margin": margin, "n": n}
        if n >= (rules.fewest_exact if each.kind == "above zero" else rules.fewest):
            groups.setdefault((each.kind, margin, n), []).append((number, values))
        elif n >= 2 and len(values) == 1:
            rows[number] |= {name: float(value[0]) for name, value in _summary(values, rules.alpha).items()}
    for (kind, margin, _), members in groups.items():
        stacked = np.stack([values for _, values in members])
        found = _TESTS[kind](stacked[:, 0] if stacked.shape[1] == 1 else stacked, margin, rules)
        for place, (number, _) in enumerate(members):
            rows[number] |= {name: float(column[place]) for name, column in found.items()}
    columns = ["comparison", "kind", "unit", "margin", "n", "estimate", "low", "high", "d_z", "p", "p_against", "power"]
    return pd.DataFrame(rows, columns=columns)


# ---------------------------------------------------------------- verdicts


def decide(data: Data, rules: Rules = Rules()) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The verdict on every claim, from arrays.

    Returns
    -------
    verdicts : DataFrame
        A row per claim: ``claim``, ``statement``, ``experiments``, ``verdict``, ``sentence``, ``reason`` (why there can be no
        verdict, in plain words; else empty: see `split`), ``resolutions`` that it is about, the comparison that decided (the
        weakest, or for a contradicted claim the one that contradicts most) with its statistics, and the claim's ``p``, ``p_holm``,
        ``p_against``, ``p_against_holm``. ``power`` is that of the deciding comparison before Holm, at the SD seen: to find a
        difference of the margin (above zero, more variable), or to show that there is none if there is none (similar, not above
        zero), or to show the ratio seen (small spread).
    comparisons : DataFrame
        A row per comparison of every claim that could be tested, from `examine`.
    """
    tested, reasons, plain = {}, {}, {}
    for claim in CLAIMS:
        try:
            # Sought first: an experiment that was not run is a better reason than a plane.
            comparisons = claim.comparisons(data)
            if claim.all_planes and data.planes != frozenset(ORIENTATIONS):
                planes = ", ".join(sorted(data.planes))
                favours = f"only the {planes} plane was looked at, which favours some orientations"
                raise NotRun(f"reconstruction in {planes} only, which treats orientations unlike", favours)
            if lacking := data.dropped.intersection(claim.own_source):
                raise NotRun(f"no source {' and '.join(sorted(lacking))}, of which it speaks")
            tested[claim.id] = examine(comparisons, rules)
        except NotRun as missing:
            reasons[claim.id], plain[claim.id] = f"not run: {missing}", missing.plain
    for name, table in tested.items():
        if table.p.isna().any():
            short = table[table.p.isna()].iloc[0]
            needed = rules.fewest_exact if short.kind == "above zero" else rules.fewest
            reasons[name] = f"{short.n} subjects with a finite value: accepted are {needed} or more for {short.comparison}"
            plain[name] = f"{short.n} subject{'s' if short.n > 1 else ''} with a finite score, where the test needs {needed}"
    ready = [claim.id for claim in CLAIMS if claim.id not in reasons]
    p = {name: tested[name].p.max() for name in ready}
    against = {name: min(1.0, tested[name].p_against.min() * len(tested[name])) for name in ready}
    # The family is the 18 claims: what was not run does not make the others easier.
    adjusted, adjusted_against = (_holm({claim.id: each.get(claim.id, 1.0) for claim in CLAIMS}, rules.alpha) for each in (p, against))
    rows = []
    for claim in CLAIMS:
        row = {"claim": claim.id, "statement": claim.statement, "experiments": claim.experiments, "verdict": UNDECIDED}
        row |= {"reason": plain.get(claim.id, ""), "resolutions": "" if claim.own_resolutions else ", ".join(data.labels)}
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
        over = f" Over {row['resolutions']}." if row["resolutions"] and len(data.labels) < len(LABELS) else ""
        rows.append({**row, "sentence": _sentence(row, len(table), int((table.p < rules.alpha).sum())) + over})
    columns = ["claim", "statement", "experiments", "verdict", "sentence", "reason", "resolutions", "comparison", "kind", "unit", "margin", "n"]
    columns += ["estimate", "low", "high", "d_z", "p", "p_holm", "p_against", "p_against_holm", "power"]
    parts = [table.assign(claim=name)[["claim", *table.columns]] for name, table in tested.items()]
    empty = examine([], rules).assign(claim=[])
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
        Rows of `verdicts` that were tested, less ``reason``; ``claim``, ``statement`` and ``reason`` of the others.
    """
    tested = verdicts.reason == ""
    return verdicts[tested].drop(columns="reason"), verdicts.loc[~tested, ["claim", "statement", "reason"]]


def _holm(p: dict[str, float], alpha: float) -> dict[str, float]:
    return dict(zip(p, multipletests(list(p.values()), alpha, "holm")[1], strict=True))


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
    numbers = f"{row['estimate']:{sign}.{decimals}f}{unit} (95 % {row['low']:{sign}.{decimals}f} to {row['high']:{sign}.{decimals}f})"
    if row["verdict"] == SUPPORTED:
        weakest = f"the weakest of {count} comparisons, " if count > 1 else ""
        return f"Supported: {row['statement']}; {weakest}{row['comparison']}, is {numbers}."
    if row["verdict"] == CONTRADICTED:
        margin = _FOUND[row["kind"]].format(margin=f"{row['margin']:g}{unit}")
        return f"Contradicted, it does not hold that {row['statement']}: {row['comparison']} is {numbers}, {margin}."
    power = f"; a single comparison like it had {100 * row['power']:.0f} % power" if np.isfinite(row["power"]) else ""
    shown = f"{passed} of {count} comparisons show it before" if passed < count else "shown before, but not after,"
    return f"Undecided whether {row['statement']}: {shown} adjustment for the family; {row['comparison']} is {numbers}{power}."


def verdicts(
    scores: pd.DataFrame,
    attention: pd.DataFrame | None = None,
    cutoffs: pd.DataFrame | None = None,
    ladder: pd.DataFrame | None = None,
    rules: Rules = Rules(),
    region: str = "brain",
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The verdict on every claim, from the tables of a study.

    Parameters
    ----------
    scores : DataFrame
        As `helpers.stages.all_scores` gives it.
    attention, cutoffs : DataFrame, optional
        As `helpers.stages.all_attention` and `helpers.stages.cutoffs` give them.
    ladder : DataFrame, optional
        Scores of studies that differ in `transform` alone, one below the other: `helpers.stages.other_studies`.
    rules : Rules
    region : {"brain", "full"}

    Returns
    -------
    verdicts, comparisons : DataFrame
        See `decide`.

    Raises
    ------
    ValueError
        If rows are missing, doubled, not numbers, or of different versions of the study; they are named.
    """
    return decide(read(scores, attention, cutoffs, ladder, region), rules)


def read(scores, attention=None, cutoffs=None, ladder=None, region: str = "brain") -> Data:
    """Check the tables of a study and turn them into arrays; parameters and errors are those of `verdicts`."""
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
    for (*key, plane), values in others["attention"].items():
        weights.setdefault(tuple(key), []).append(values)
    steps = {}
    if ladder is not None and not ladder.empty:
        for transform, table in ladder.groupby("transform"):
            check_scores(table, f"ladder, transform {transform},")
            _same_study(table, f"ladder, transform {transform},", {**version, "transform": transform}, subjects)
            steps |= {(transform, *key): values for key, values in _score_arrays(table, region, subjects).items()}
    planes = frozenset(version["reconstruction"].split("+"))
    mean_weights = {key: np.mean(values, axis=0) for key, values in weights.items()}
    return Data(_score_arrays(scores, region, subjects), mean_weights, others["cutoffs"], steps, planes, _dropped(scores))


def over_planes(table: pd.DataFrame) -> pd.DataFrame:
    """One table of studies that differ in their plane of reconstruction alone: previews in three planes judge orientations alike.

    Parameters
    ----------
    table : DataFrame
        Scores, attention, curves or cut-offs of the studies, one below the other.

    Returns
    -------
    DataFrame
        As that of one study whose `reconstruction` names all planes. Numbers are means over the planes that have them (a plane's own
        slices say nothing about frequencies across them); ``ssim_planes`` is the mean of the planes' own ``ssim_<plane>``.
    """
    planes = [plane for plane in ORIENTATIONS if plane in set(table.reconstruction)]
    if "ssim" in table:
        table = table.assign(ssim_planes=[getattr(row, f"ssim_{row.reconstruction}") for row in table.itertuples()])
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
        If a column or row is missing, a row is doubled, a score is not a number, or rows are of different versions; named.
    """
    keys = ("subject", "experiment", "resolution", "contrast", "arm", "region")
    similarity = [score_column(scores, "ssim")] if "ssim" in scores else []
    values = ["psnr_db", *(column for column in similarity if scores[column].notna().any())]
    _check(scores, what, keys, values, whole=False)
    given = [contrast for contrast in CONTRASTS if contrast not in _dropped(scores)]
    # What was dropped has no arm input, so the harmonized arm is looked at alone as well.
    together = (scores.arm != "ceiling") & scores.contrast.isin(given)
    # The ceiling has no resolution: it is a study of its own.
    for rows, contrasts in ((together, given), (scores.arm == "harmonized", CONTRASTS), (scores.arm == "ceiling", CONTRASTS)):
        if len(part := scores[rows]):
            _missing(part, what, keys, {"contrast": contrasts, "subject": scores.subject.unique()})
    if not (scores.arm == "harmonized").any():
        raise ValueError(f"{what} has no row of arm harmonized: accepted are tables that have")


def _check(table, what, keys, values, whole=True):
    for column in (*keys, *VERSION, *values):
        if column not in table:
            raise ValueError(f"{what} has no column {column}: accepted are tables with {', '.join((*keys, *VERSION, *values))}")
    table = table.assign(dropped=_dropped_column(table))
    for column in (*VERSION, "dropped"):
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
    """Refuse a table that lacks a combination of the values that its columns have, or are said to have `at_least`."""
    levels = [sorted({*table[key], *at_least.get(key, ())}, key=str) for key in keys]
    expected = pd.MultiIndex.from_product(levels, names=keys)
    absent = expected.difference(pd.MultiIndex.from_frame(table[list(keys)]))
    if len(absent):
        raise ValueError(f"{what} lacks {_rows(absent.to_frame(index=False), keys)}")


def _rows(table: pd.DataFrame, keys) -> str:
    """The first rows of a table by their keys, for a message."""
    shown = ["subject {} {}".format(row[0], " ".join(map(str, row[1:]))) for row in table[list(keys)].head(3).itertuples(index=False)]
    return f"{len(table)} rows: {'; '.join(shown)}{' …' if len(table) > 3 else ''}"


def _dropped_column(table) -> pd.Series:
    """What was dropped in each row; only studies that dropped something have the column."""
    return table["dropped"].fillna(NOTHING) if "dropped" in table else pd.Series(NOTHING, table.index)


def _dropped(table) -> frozenset[str]:
    return frozenset(_version(table)["dropped"].split("+")).intersection(CONTRASTS)


def _version(table) -> dict:
    return {**{column: table[column].iloc[0] for column in VERSION}, "dropped": _dropped_column(table).iloc[0]}


def _same_study(table, what, version, subjects):
    own = _version(table)
    for column, value in version.items():
        if own[column] != value:
            raise ValueError(f"{what} has {column} {own[column]}: accepted is that of the scores, {value}")
    found = sorted(table.subject.unique().tolist())
    if found != subjects:
        raise ValueError(f"{what} has subjects {found}: accepted are those of the scores, {subjects}")


def _arrays(table, value, keys, subjects) -> dict:
    """Keys -> (n, 8) values by subject and resolution; NaN where a resolution is not there."""
    wide = table.pivot(index=[*keys, "subject"], columns="resolution", values=value).reindex(columns=list(LABELS))
    return {key: part.droplevel(list(keys)).loc[subjects].to_numpy(float) for key, part in wide.groupby(level=list(keys))}


def _as_in_table_1(dropped: frozenset[str]) -> list[str]:
    """The experiments that have all of their orientations without the sources that were dropped."""
    return [name for name, row in EXPERIMENTS.items() if {row[contrast] for contrast in set(row) - dropped} == set(row.values())]


def _score_arrays(scores, region, subjects) -> dict:
    rows = scores[(scores.arm == "harmonized") & (scores.region == region) & scores.experiment.isin(_as_in_table_1(_dropped(scores)))]
    found = {}
    for measure in _UNITS:
        column = score_column(scores, measure)
        if rows[column].notna().any():
            found |= {(measure, *key): values for key, values in _arrays(rows, column, ("experiment", "contrast"), subjects).items()}
    return found


# ---------------------------------------------------------------- mixed model


def mixed_model(scores: pd.DataFrame, measure: str = "psnr_db", region: str = "brain") -> pd.DataFrame:
    """Score ~ separation x orientation x contrast with a random intercept per subject: experiments 1a to 1c at one glance.

    Separation is centred, so that a main effect is that at the mean separation; axial and T1w are the references.

    Returns
    -------
    DataFrame
        A row per fixed effect: ``estimate``, ``low``, ``high`` (95 %), ``p``, in the unit of the measure (per mm for slopes); the
        last row, ``SD between subjects``, has an estimate only.

    Raises
    ------
    ValueError
        If the table fails `check_scores`, has fewer than 5 subjects, or lacks one of 1a to 1c or different separations.

    References
    ----------
    N. M. Laird and J. H. Ware, "Random-effects models for longitudinal data", Biometrics 38(4):963-974, 1982.
    """
    import statsmodels.formula.api as formula

    check_scores(scores)
    rows = scores[(scores.arm == "harmonized") & (scores.region == region) & scores.experiment.isin(ONE_ORIENTATION)]
    rows = rows.assign(score=rows[score_column(scores, measure)])
    rows = rows[np.isfinite(rows.score)]
    seen = (rows.subject.nunique(), rows.orientation.nunique(), rows.separation_mm.nunique())
    if seen[0] < 5 or seen[1] < 3 or seen[2] < 2:
        raise ValueError(f"{seen[0]} subjects, {seen[1]} orientations, {seen[2]} separations: accepted are at least 5, 3 and 2")
    rows = rows.assign(separation=rows.separation_mm - rows.separation_mm.mean())
    model = "score ~ separation * C(orientation, Treatment('axial')) * C(contrast, Treatment('T1w'))"
    fit = formula.mixedlm(model, rows, groups=rows["subject"]).fit(reml=True)
    # C(orientation, Treatment('axial'))[T.coronal]:separation -> coronal x separation
    names = [re.sub(r"C\(.*?\)\)\[T\.(.*?)\]", r"\1", name).replace(":", " x ") for name in fit.fe_params.index]
    interval = fit.conf_int().loc[fit.fe_params.index].to_numpy()
    found = pd.DataFrame({"effect": names, "estimate": fit.fe_params.to_numpy(), "low": interval[:, 0], "high": interval[:, 1]})
    found["p"] = fit.pvalues[fit.fe_params.index].to_numpy()
    spread = {"effect": "SD between subjects", "estimate": float(np.sqrt(max(fit.cov_re.iloc[0, 0], 0)))}
    return pd.concat([found, pd.DataFrame([spread])], ignore_index=True)
