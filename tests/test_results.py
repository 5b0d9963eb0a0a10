"""The results that the repository shows are in step with each other: tables, verdicts, figures, README."""

import re

import numpy as np
import pandas as pd
import pytest
from helpers import claims, figures, layout
from pandas.testing import assert_frame_equal

FOLDERS = [path.parent for path in sorted(layout.FIGURES.rglob("verdicts.csv"))]
named = pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.relative_to(layout.ROOT).as_posix())


def read(folder, name):
    return pd.read_csv(folder / f"{name}.csv", dtype={"experiment": str, "resolution": str})


def test_the_demo_and_the_ten_subjects_are_shown():
    assert {layout.FIGURES, layout.FIGURES / "ten"} <= set(FOLDERS)


@named
def test_the_verdicts_follow_from_the_tables_beside_them(folder):
    verdicts, comparisons = claims.verdicts(*(read(folder, name) for name in ("scores", "attention", "figure_frequencies")))
    shown = read(folder, "verdicts")
    assert shown.claim.tolist() == [claim.id for claim in claims.CLAIMS]
    words = ["claim", "statement", "experiments", "verdict", "comparison"]
    assert_frame_equal(shown[words], verdicts[words], check_dtype=False)
    numbers = ["n", "estimate", "low", "high", "p_holm", "p_against_holm"]
    assert_frame_equal(shown[numbers], verdicts[numbers], check_dtype=False, rtol=1e-3, atol=1e-4)
    drawn = read(folder, "figure_claims")
    assert drawn[["claim", "comparison"]].values.tolist() == comparisons[["claim", "comparison"]].values.tolist()
    np.testing.assert_allclose(drawn.estimate, comparisons.estimate, rtol=1e-3, atol=1e-4)


@named
@pytest.mark.parametrize("number", figures.SCORE_FIGURES)
def test_figures_3_to_9_are_drawn_from_the_scores_beside_them(folder, number):
    experiments, _ = figures.SCORE_FIGURES[number]
    scores = read(folder, "scores")
    expected = scores[(scores.experiment.isin(experiments) | (scores.arm == "ceiling")) & (scores.region == "brain")]
    assert_frame_equal(read(folder, f"figure_{number}"), expected.reset_index(drop=True), check_dtype=False, rtol=1e-5)
    assert all((folder / f"figure_{number}{suffix}").stat().st_size > 5000 for suffix in (".png", ".pdf"))


@named
def test_the_figure_of_attention_is_drawn_from_the_table_beside_it(folder):
    drawn, attention = read(folder, "figure_attention"), read(folder, "attention")
    keys = ["experiment", "target", "source", "resolution", "subject"]
    mean = attention.groupby(keys).weight.mean()
    np.testing.assert_allclose(mean[pd.MultiIndex.from_frame(drawn[keys])], drawn.weight, rtol=1e-5)


def test_the_readme_tells_the_verdicts_of_the_ten_subjects():
    told = dict(re.findall(r"^\| (C\d+) \|.*\| \**(\w+)\** \|", (layout.ROOT / "README.md").read_text(), re.M))
    shown = read(layout.FIGURES / "ten", "verdicts")
    assert told == dict(zip(shown.claim, shown.verdict))


def test_the_readme_tells_what_fusion_and_the_mask_change():
    readme = (layout.ROOT / "README.md").read_text()
    fusion = read(layout.FIGURES / "ten", "why_fusion").pivot_table("psnr_db", ["reconstruction", "contrast"], "experiment")
    gains = {how: (each["2"] - each["1a"]).droplevel(0) for how, each in fusion.groupby(level=0)}
    for how, words in (("fused", "{:+.1f} dB for T1w, {:+.1f} for T2w, {:+.1f} for FLAIR"), ("mean over planes", "({:+.1f}, {:+.1f}, {:+.1f} as the previews")):
        assert words.format(*(gains[how][contrast] for contrast in ("T1w", "T2w", "FLAIR"))) in readme
    worst = fusion.loc["fused", ["1a", "1b", "1c", "2"]].idxmin(axis=1)
    assert set(worst) == {"1a"} and "axial sources stay the worst" in readme
    mask = read(layout.FIGURES / "ten", "why_mask")
    gain = mask[mask.comparison == "3 - 1a"].groupby(["mask", "contrast"]).psnr_db.mean()
    for contrast in ("T2w", "FLAIR"):
        told = re.search(rf"{contrast} by ([\d.]+)( dB)? \(.*?\) instead of ([\d.]+)", readme)
        assert (told[1], told[3]) == (f"{gain['union', contrast]:.1f}", f"{gain['first', contrast]:.1f}")
