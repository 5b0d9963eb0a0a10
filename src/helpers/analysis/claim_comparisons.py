"""What each claim compares: numbers of the same subjects, for each measure and contrast that it speaks of.

Each function takes a study's arrays (`helpers.analysis.tables.Data`) and yields its comparisons; where the
study cannot tell, it raises `helpers.analysis.tables.NotRun`.
"""

from collections.abc import Callable, Iterable, Iterator

import numpy as np

from helpers.analysis import statistics, tables
from helpers.study import CONTRASTS, EXPERIMENTS, ONE_ORIENTATION, RESOLUTIONS, TRANSFORMS

Comparisons = Iterator[statistics.Comparison]

#: Resolutions that C11 calls the higher ones: slice separation below 5 mm.
FINER = tuple(resolution.label for resolution in RESOLUTIONS if resolution.separation_mm < 5)

_MEASURES = {"psnr_db": "PSNR", "ssim": "SSIM"}


def _of_scores(kind: str, measure: str, values: np.ndarray, *name: str, unit: str = ""):
    """A comparison of scores, called by its parts and the measure; in the unit of the measure, or another."""
    words = ", ".join((*name, _MEASURES[measure]))
    return statistics.Comparison(words, kind, unit or tables.UNITS[measure], values)


def _measured_contrasts(data: tables.Data) -> list[tuple[str, str]]:
    """Each measure with each contrast."""
    return [(measure, contrast) for measure in data.measures for contrast in CONTRASTS]


def _fall(values: np.ndarray, separation_mm: np.ndarray) -> np.ndarray:
    """Fall from the smallest to the largest slice separation along each subject's line: (n, r) and (r,) ->
    (n,)."""
    x = separation_mm - separation_mm.mean()
    with np.errstate(invalid="ignore"):  # An infinite score has no line.
        return -(values @ x) / (x @ x) * np.ptp(separation_mm)


def _span(separation_mm: np.ndarray) -> str:
    return f"from {separation_mm.min():g} to {separation_mm.max():g} mm"


def deviations(values: np.ndarray) -> np.ndarray:
    """Absolute deviation of each subject from the median at each resolution, mean over the resolutions: (n,
    r) -> (n,)."""
    with np.errstate(invalid="ignore"):
        return np.abs(values - np.median(values, axis=0)).mean(axis=1)


def _mean(data: tables.Data, arm: str, measure: str, experiment: str, contrast: str) -> np.ndarray:
    """Mean over the resolutions in one arm, shape (n,)."""
    table = ("scores",) if arm == "harmonized" else ("remedies", arm)
    return data.get(*table, measure, experiment, contrast).mean(axis=1)


# ---------------------------------------------------------------- claims of the paper


def all_contrasts(first: str, second: str) -> list[tuple[str, str, str]]:
    """Two experiments, with each contrast."""
    return [(first, second, contrast) for contrast in CONTRASTS]


def differences(kind: str, *pairs: tuple[str, str, str]) -> Callable[[tables.Data], Comparisons]:
    """For (experiment, other experiment, contrast): mean over the resolutions of their paired difference."""

    def compare(data):
        for measure in data.measures:
            for first, second, contrast in pairs:
                one, other = (data.get("scores", measure, row, contrast) for row in (first, second))
                with np.errstate(invalid="ignore"):  # Two infinite scores have no difference.
                    difference = (one - other).mean(axis=1)
                yield _of_scores(kind, measure, difference, f"{first} - {second}", contrast)

    return compare


def falls_with_separation(data: tables.Data) -> Comparisons:
    for measure, contrast in _measured_contrasts(data):
        # Nothing can fall where an image is its own reference: that of a 3D source, with a harmonizer that
        # sees each contrast by itself.
        values = [
            data.get("scores", measure, experiment, contrast)
            for experiment in EXPERIMENTS
            if not np.isinf(data.get("scores", "psnr_db", experiment, contrast)).all()
        ]
        x = data.separations_mm()
        fall = np.mean([_fall(scores, x) for scores in values], axis=0)
        yield _of_scores("above zero", measure, fall, f"fall {_span(x)}", contrast)


def same_separation(first: str, second: str) -> Callable[[tables.Data], Comparisons]:
    """Two resolutions with the same slice separation."""

    def compare(data):
        for measure, contrast in _measured_contrasts(data):
            for experiment in ONE_ORIENTATION:
                pair = data.get("scores", measure, experiment, contrast, labels=(first, second))
                name = (f"{first} - {second}", experiment, contrast)
                yield _of_scores("similar", measure, pair[:, 0] - pair[:, 1], *name)

    return compare


def consistent(data: tables.Data) -> Comparisons:
    for measure, contrast in _measured_contrasts(data):
        for experiment in ONE_ORIENTATION:
            values = data.get("scores", measure, experiment, contrast)
            pair = np.stack([values.mean(axis=1), _fall(values, data.separations_mm())])
            name = ("SD against fall", experiment, contrast)
            yield _of_scores("small spread", measure, pair, *name, unit="SD / fall")


def sagittal_varies_most(data: tables.Data) -> Comparisons:
    for measure in data.measures:
        spread = {
            (e, c): deviations(data.get("scores", measure, e, c)) for e in ONE_ORIENTATION for c in CONTRASTS
        }
        pairs = [(("1b", c), (e, c), f"1b / {e}", c) for e in ("1a", "1c") for c in CONTRASTS]
        pairs += [(("1b", "T2w"), ("1b", c), f"T2w / {c}", "1b") for c in ("T1w", "FLAIR")]
        for more, less, *name in pairs:
            pair = np.stack([spread[more], spread[less]])
            yield _of_scores("more variable", measure, pair, *name, unit="variance ratio")


def flair_stays_t2w_varies(data: tables.Data) -> Comparisons:
    yield from differences("similar", ("4", "3", "FLAIR"))(data)
    finer = [label for label in FINER if label in data.labels]
    if not finer:
        raise tables.NotRun("no resolution with a slice separation below 5 mm")
    where = "separation below 5 mm" if len(finer) == len(FINER) else f"at {', '.join(finer)}"
    for measure in data.measures:
        scores = [data.get("scores", measure, experiment, "T2w", labels=finer) for experiment in ("4", "3")]
        pair = np.stack([deviations(values) for values in scores])
        yield _of_scores("more variable", measure, pair, "4 / 3", "T2w", where, unit="variance ratio")


def own_contrast_only(data: tables.Data) -> Comparisons:
    for measure in data.measures:
        for experiment, own in (("3", "T1w"), ("5", "FLAIR")):
            gain = {
                c: (data.get("scores", measure, experiment, c) - data.get("scores", measure, "1a", c)).mean(
                    axis=1
                )
                for c in CONTRASTS
            }
            for other in (c for c in CONTRASTS if c != own):
                name = (f"gain of {own} - gain of {other}", f"{experiment} - 1a")
                yield _of_scores("above zero", measure, gain[own] - gain[other], *name)


def best_is_alike_and_fine(data: tables.Data) -> Comparisons:
    for measure, contrast in _measured_contrasts(data):
        values = {
            experiment: data.get("scores", measure, experiment, contrast)
            for experiment in (*ONE_ORIENTATION, "2")
        }
        finest = data.separations_mm().argmin()
        best = np.max([values[experiment][:, finest] for experiment in ONE_ORIENTATION], axis=0)
        others = [np.delete(values[experiment], finest, axis=1).T for experiment in ONE_ORIENTATION]
        rest = np.max(np.concatenate([values["2"].T, *others]), axis=0)
        with np.errstate(invalid="ignore"):
            difference = best - rest
        name = (f"best alike at {data.labels[finest]} - best of the rest", contrast)
        yield _of_scores("above zero", measure, difference, *name)


def no_super_resolution(data: tables.Data) -> Comparisons:
    for experiment in ONE_ORIENTATION:
        for contrast in CONTRASTS:
            output, source = (
                data.get("cutoffs", arm, experiment, contrast) for arm in ("harmonized", "input")
            )
            name = f"cut-off of output - input, {experiment}, {contrast}"
            yield statistics.Comparison(name, "not above zero", "cycles/mm", (output - source).mean(axis=1))


def attention_sees_contrast_only(data: tables.Data) -> Comparisons:
    sharp = {"3": "T1w", "4": "T1w", "5": "FLAIR", "6": "FLAIR"}
    for target in CONTRASTS:
        mean = {
            s: np.mean([data.get("weights", e, target, s).mean(axis=1) for e in sharp], axis=0)
            for s in CONTRASTS
        }
        other = np.max([mean[source] for source in CONTRASTS if source != target], axis=0)
        name = f"weight of the own source - largest other, {target}"
        yield statistics.Comparison(name, "above zero", "weight", mean[target] - other)
        for experiment, source in sharp.items():
            # Were resolution seen, the weight of the 3D source would rise as the others get coarser.
            x = data.separations_mm()
            rise = -_fall(data.get("weights", experiment, target, source), x)
            name = f"rise of the weight of 3D {source} {_span(x)}, {experiment}, target {target}"
            yield statistics.Comparison(name, "similar", "weight", rise)


def registration_costs(data: tables.Data) -> Comparisons:
    estimated = [
        step for step in TRANSFORMS if step != "known" and any(key[0] == step for key in data.ladder)
    ]
    if not estimated or not any(key[0] == "known" for key in data.ladder):
        plain = "no study with an estimated transform stands beside it"
        raise tables.NotRun("no studies with the known and with an estimated transform", plain)
    # Estimating transforms takes longer than all else: a ladder need not have all eight resolutions, but says
    # which.
    held = next(iter(data.ladder.values()))
    labels = [
        label for label, column in zip(tables.LABELS, held.T, strict=True) if not np.isnan(column).any()
    ]
    if not labels:
        raise tables.NotRun("no resolution of the eight in the ladder")
    where = () if len(labels) == len(tables.LABELS) else ("at " + ", ".join(labels),)
    for transform in estimated:
        for measure, contrast in _measured_contrasts(data):
            known, with_estimate = (
                np.mean(
                    [
                        data.get("ladder", step, measure, experiment, contrast, labels=labels).mean(axis=1)
                        for experiment in EXPERIMENTS
                    ],
                    axis=0,
                )
                for step in ("known", transform)
            )
            name = (f"known - {transform}", *where, contrast)
            yield _of_scores("above zero", measure, known - with_estimate, *name)


# ---------------------------------------------------------------- claims about the remedies


def remedy_gains(arm: str, experiments: Iterable[str]) -> Callable[[tables.Data], Comparisons]:
    """A remedy against none, in some experiments."""

    def compare(data):
        for measure, contrast in _measured_contrasts(data):
            for experiment in experiments:
                key = (measure, experiment, contrast)
                gain = _mean(data, arm, *key) - _mean(data, "harmonized", *key)
                yield _of_scores("above zero", measure, gain, f"{arm} - harmonized", experiment, contrast)

    return compare


def output_gains_more_than_input(data: tables.Data) -> Comparisons:
    for measure, contrast in _measured_contrasts(data):
        for experiment in ONE_ORIENTATION:
            key = (measure, experiment, contrast)
            output = _mean(data, "harmonized, super-resolved", *key) - _mean(data, "harmonized", *key)
            source = _mean(data, "super-resolved input", *key) - _mean(data, "input", *key)
            name = ("gain of the output - gain of the input", experiment, contrast)
            yield _of_scores("above zero", measure, output - source, *name)


def fused_differences(*pairs: tuple[str, str, str]) -> Callable[[tables.Data], Comparisons]:
    """For (experiment, other experiment, contrast): their paired difference, both fused by resolution."""
    arm = "harmonized, resolution-aware"

    def compare(data):
        for measure in data.measures:
            for first, second, contrast in pairs:
                one, other = (_mean(data, arm, measure, row, contrast) for row in (first, second))
                name = (f"{first} - {second}, fused by resolution", contrast)
                yield _of_scores("above zero", measure, one - other, *name)

    return compare


def both_recover_more(data: tables.Data) -> Comparisons:
    for measure, contrast in _measured_contrasts(data):
        both, *single = (
            np.mean([_mean(data, f"harmonized, {arm}", measure, e, contrast) for e in EXPERIMENTS], axis=0)
            for arm in ("both", "super-resolved", "resolution-aware")
        )
        difference = both - np.max(single, axis=0)
        yield _of_scores("above zero", measure, difference, "both - the better of either", contrast)


# ---------------------------------------------------------------- claims about downstream measures


def _measured_experiments(data: tables.Data, measure: str, experiments: Iterable[str]) -> list[str]:
    """Those of some experiments that the table of a downstream measure has."""
    if not any(key[0] == measure for key in data.scores):
        plain = "lesions were not counted: the slices of a preview lie apart"
        raise tables.NotRun(f"no {measure} in the table of downstream measures", plain)
    run = [row for row in experiments if any(key[:2] == (measure, row) for key in data.scores)]
    if not run:
        raise tables.NotRun(f"none of the experiments {', '.join(experiments)}")
    return run


def error_grows(measure: str) -> Callable[[tables.Data], Comparisons]:
    """The rise of a downstream error over the slice separations."""

    def compare(data):
        (name, unit), x = tables.DOWNSTREAM[measure], data.separations_mm()
        for experiment in _measured_experiments(data, measure, ONE_ORIENTATION):
            rise = -_fall(data.get("scores", measure, experiment, "harmonized"), x)
            yield statistics.Comparison(f"rise of {name} {_span(x)}, {experiment}", "above zero", unit, rise)

    return compare


def remedies_help(data: tables.Data) -> Comparisons:
    arms = sorted({arm for _, _, arm in data.scores} - {"harmonized"})
    if not arms:
        raise tables.NotRun("no arm with a remedy", "no remedy was tried")
    for measure, (name, unit) in tables.DOWNSTREAM.items():
        for arm in arms:
            gains = [
                data.get("scores", measure, experiment, "harmonized")
                - data.get("scores", measure, experiment, arm)
                for experiment in _measured_experiments(data, measure, EXPERIMENTS)
            ]
            yield statistics.Comparison(
                f"less {name}, {arm}", "above zero", unit, np.mean(gains, axis=(0, 2))
            )
