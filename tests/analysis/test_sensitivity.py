"""Verdicts judged again on parts of a study."""

import numpy as np
import pytest

from helpers.analysis import sensitivity
from helpers.analysis.statistics import Rules
from helpers.analysis.tables import SEPARATIONS_MM, Data
from helpers.study import CONTRASTS, EXPERIMENTS

BRAINS = {n: "one" if n < 5 else "other" for n in range(10)}


def study(rng, slope):
    """Ten made-up subjects whose scores fall by `slope` (n,) margins per mm."""
    fall = -slope[:, None] * (SEPARATIONS_MM - SEPARATIONS_MM.mean())
    scores = {}
    for measure, scale in {"psnr_db": 0.5, "ssim": 0.01}.items():
        for experiment in EXPERIMENTS:
            for contrast in CONTRASTS:
                values = 40 + fall + rng.normal(0, 0.3, (10, 8))
                scores[measure, experiment, contrast] = scale * values
    return Data(scores)


@pytest.fixture(scope="module")
def data():
    return study(np.random.default_rng(0), np.full(10, 2.0))


@pytest.fixture(scope="module")
def variants(data):
    return sensitivity.judge_variants(data, Rules(), range(10), BRAINS)


def test_every_variant_tells_of_every_claim(variants):
    counts = variants.groupby(["variant", "value"], sort=False).claim.nunique()
    assert set(counts) == {18} and len(counts) == 1 + 10 + 2 + 2


def test_a_clear_effect_stays_whoever_is_left_out_and_is_seen_on_both_brains(variants):
    summary = sensitivity.summarize(variants).set_index("claim")
    assert summary.loc["C1", "without a subject"] == "10 of 10" and summary.loc["C1", "both brains"]
    whole, one, other = summary.loc["C1", ["estimate", "estimate, one", "estimate, other"]].astype(float)
    assert min(one, other) <= whole <= max(one, other)


def test_an_effect_of_one_brain_alone_is_told():
    data = study(np.random.default_rng(1), np.repeat([3.0, -1.0], 5))
    variants = sensitivity.judge_variants(data, Rules(), range(10), BRAINS).set_index(["variant", "claim"])
    one, other = variants.loc[("alone", "C1"), "estimate"]
    assert np.sign(one) != np.sign(other)


def test_larger_margins_ask_for_more():
    rules = sensitivity.scale_margins(Rules(), 2)
    assert (rules.psnr_db, rules.ssim, rules.alpha) == (1.0, 0.02, 0.05)


def test_a_study_of_one_brain_is_not_told_apart(data):
    variants = sensitivity.judge_variants(data, Rules(), range(10), {n: "one" for n in range(10)})
    assert set(variants.variant) == {"whole", "without", "margins"}
    assert "both brains" not in sensitivity.summarize(variants)
