"""The results that the repository shows are in step with each other: tables, verdicts, figures, texts."""

import re

import numpy as np
import pandas as pd
import pytest
from pandas.testing import assert_frame_equal

from helpers import layout
from helpers.analysis import claims, figures, judgement
from helpers.pipeline import folders
from helpers.study import CONTRASTS
from helpers.study.file import Study

FOLDERS = [path.parent for path in sorted(layout.FIGURES.rglob("verdicts.csv"))]
named = pytest.mark.parametrize(
    "folder", FOLDERS, ids=lambda folder: folder.relative_to(layout.ROOT).as_posix()
)


RESULTS = layout.ROOT / "docs" / "results.md"


def read(folder, name):
    return pd.read_csv(folder / f"{name}.csv", dtype={"experiment": str, "resolution": str})


def test_the_ten_subjects_are_shown():
    assert layout.FIGURES / "ten" in FOLDERS


@pytest.mark.parametrize("name", ["demo", "ten"])
def test_a_run_leaves_what_the_repository_shows_as_it_is(name):
    assert folders.figures_folder(Study(name=name)) == layout.DERIVATIVES / name / "figures"


@named
def test_the_verdicts_follow_from_the_tables_beside_them(folder):
    verdicts, comparisons = judgement.verdicts(
        *(read(folder, name) for name in ("scores", "attention", "figure_frequencies"))
    )
    every, (verdicts, without) = verdicts.claim.tolist(), judgement.split(verdicts)
    shown, not_shown = read(folder, "verdicts"), read(folder, "without_verdict")
    assert every == [claim.id for claim in claims.CLAIMS]
    assert sorted([*shown.claim, *not_shown.claim], key=every.index) == every
    assert not_shown.values.tolist() == without.values.tolist()
    verdicts = verdicts.reset_index(drop=True)
    words = ["claim", "statement", "experiments", "verdict", "comparison"]
    assert_frame_equal(shown[words], verdicts[words], check_dtype=False)
    numbers = ["n", "estimate", "low", "high", "p_holm", "p_against_holm"]
    assert_frame_equal(shown[numbers], verdicts[numbers], check_dtype=False, rtol=1e-3, atol=1e-4)
    drawn = read(folder, "figure_claims")
    assert (
        drawn[["claim", "comparison"]].values.tolist() == comparisons[["claim", "comparison"]].values.tolist()
    )
    np.testing.assert_allclose(drawn.estimate, comparisons.estimate, rtol=1e-3, atol=1e-4)


@named
@pytest.mark.parametrize("number", figures.SCORE_FIGURES)
def test_figures_3_to_9_are_drawn_from_the_scores_beside_them(folder, number):
    experiments, _ = figures.SCORE_FIGURES[number]
    scores = read(folder, "scores")
    expected = scores[
        (scores.experiment.isin(experiments) | (scores.arm == "ceiling")) & (scores.region == "brain")
    ]
    assert_frame_equal(
        read(folder, f"figure_{number}"), expected.reset_index(drop=True), check_dtype=False, rtol=1e-5
    )
    assert all((folder / f"figure_{number}{suffix}").stat().st_size > 5000 for suffix in (".png", ".pdf"))


@named
def test_the_figure_of_attention_is_drawn_from_the_table_beside_it(folder):
    drawn, attention = read(folder, "figure_attention"), read(folder, "attention")
    keys = ["experiment", "target", "source", "resolution", "subject"]
    mean = attention.groupby(keys).weight.mean()
    np.testing.assert_allclose(mean[pd.MultiIndex.from_frame(drawn[keys])], drawn.weight, rtol=1e-5)


def test_the_book_tells_the_verdicts_of_the_ten_subjects():
    assert "```{verdicts} ten\n" in RESULTS.read_text()  # a table that is made of the tables
    numbers = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven")
    numbers += ("twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen")
    count = read(layout.FIGURES / "ten", "verdicts").verdict.value_counts()
    told = "support {}, contradict {} and leave {} open".format(
        *(
            numbers[count.get(word, 0)]
            for word in (judgement.SUPPORTED, judgement.CONTRADICTED, judgement.UNDECIDED)
        )
    )
    assert told in RESULTS.read_text()


def test_ten_subjects_in_one_plane_at_three_resolutions_have_at_least_six_verdicts():
    scores, attention = (read(layout.FIGURES / "ten", name) for name in ("scores", "attention"))
    some = ["3||0", "4||0", "5||1.5"]
    scores = scores[scores.resolution.isin([*some, "3D"])].assign(reconstruction="axial")
    attention = attention[attention.resolution.isin([*some, "3D"])].assign(reconstruction="axial")
    given, without = judgement.split(judgement.verdicts(scores, attention)[0])
    assert given.claim.tolist() == ["C1", "C5", "C8", "C9", "C11", "C12", "C14", "C15", "C17"]
    assert given.verdict.isin([judgement.SUPPORTED, judgement.CONTRADICTED]).sum() >= 6
    assert (given.resolutions == "3||0, 4||0, 5||1.5").all()
    assert without.set_index("claim").reason[["C2", "C3", "C4"]].tolist() == [
        "no resolution 3||1",
        "no resolution 4||1, 5||0",
        "only the axial plane was looked at, which favours some orientations",
    ]


def test_the_book_tells_what_fusion_and_the_mask_change():
    text = RESULTS.read_text()
    fusion = read(layout.FIGURES / "ten", "why_fusion").pivot_table(
        "psnr_db", ["reconstruction", "contrast"], "experiment"
    )
    gains = {how: (each["2"] - each["1a"]).droplevel(0) for how, each in fusion.groupby(level=0)}
    for how, words in (
        ("fused", "{:+.1f} dB for T1w, {:+.1f} for T2w, {:+.1f} for FLAIR"),
        ("mean over planes", "({:+.1f}, {:+.1f}, {:+.1f} as the previews"),
    ):
        assert words.format(*(gains[how][contrast] for contrast in ("T1w", "T2w", "FLAIR"))) in text
    worst = fusion.loc["fused", ["1a", "1b", "1c", "2"]].idxmin(axis=1)
    assert set(worst) == {"1a"} and "Axial sources stay the worst" in text
    assert (
        "then differ by "
        f"{abs(fusion.loc[('fused', 'FLAIR'), '2'] - fusion.loc[('fused', 'FLAIR'), '1c']):.1f} dB only"
        in text
    )
    mask = read(layout.FIGURES / "ten", "why_mask")
    gain = mask[mask.comparison == "3 - 1a"].groupby(["mask", "contrast"]).psnr_db.mean()
    for contrast in ("T2w", "FLAIR"):
        told = re.search(rf"{contrast} by ([\d.]+)( dB)? \(.*?\) instead of ([\d.]+)", text)
        assert (told[1], told[3]) == (f"{gain['union', contrast]:.1f}", f"{gain['first', contrast]:.1f}")


def test_readme_and_book_tell_the_numbers_of_the_demo():
    scores = read(layout.FIGURES / "demo", "scores")
    inside = scores[scores.arm.isin(["harmonized", "input"]) & (scores.region == "brain")]
    alike = inside[inside.experiment.isin(["1a", "1b", "1c"])]
    fall = alike.groupby(["arm", "contrast", "resolution"]).psnr_db.mean().unstack("resolution")
    fall = (fall["3||0"] - fall["5||1.5"]).groupby("arm").agg(["min", "max"])
    mean = inside[inside.arm == "harmonized"].groupby(["experiment", "contrast"]).psnr_db.mean()
    gain = {name: mean[name] - mean["1a"] for name in ("2", "3")}
    thick = alike[(alike.arm == "harmonized") & (alike.resolution == "5||1.5")]
    apart = thick.groupby(["contrast", "experiment"]).psnr_db.mean().unstack().agg(np.ptp, axis=1)
    for text in (RESULTS.read_text(), (layout.ROOT / "README.md").read_text()):
        assert "harmonized images lose {:.1f} to {:.1f} dB".format(*fall.loc["harmonized"]) in text
        assert "images without harmonizer {:.1f} to {:.1f}.".format(*fall.loc["input"]) in text
        assert f"{apart.min():.1f} to {apart.max():.1f} dB apart" in text
        assert f"gain {gain['2'].min():.1f} to {gain['2'].max():.1f} dB over axial ones" in text
        assert f"{gain['3'].min():.1f} to {gain['3'].max():.1f}" in text
    verdicts = read(layout.FIGURES / "demo", "verdicts").groupby("verdict").claim.agg(list)
    text = RESULTS.read_text()
    for word, verdict in (("supports", "supported"), ("contradicts", "contradicted")):
        *some, last = verdicts[verdict]
        assert f"{word} {', '.join(some)} and {last}" in text


def test_the_book_tells_what_the_demo_loses_with_each_harmonizer_and_without():
    text, losses = RESULTS.read_text(), read(layout.FIGURES / "demo", "comparison_losses")
    ssim = losses[losses.measure == "ssim"].groupby("study").loss.agg(["min", "max"])
    losses = losses[losses.measure == "psnr_db"].set_index(["study", "contrast"]).loss
    names = {"demo": "with HACA3", "demo-histogram": "with histogram matching", "demo-none": "without"}
    for study, name in names.items():
        low, high = ssim.loc[study]
        assert f"{low:.2f} to {high:.2f} {name}" in text
        t1w, t2w, flair = losses[study][list(CONTRASTS)]
        assert re.search(rf"{t1w:.1f}, {t2w:.1f} and {flair:.1f} dB (\(.*?\) )?{name}", text)
    beside = read(layout.FIGURES / "demo", "comparison_verdicts").set_index("claim")[list(names)]
    alike = beside[(beside.nunique(axis=1) == 1) & (beside.demo != "no verdict")]
    *some, last = alike.index
    assert f"{', '.join(some)} and {last} have the same verdict in all three" in text


def test_the_book_tells_the_numbers_of_the_ten_subjects():
    text = RESULTS.read_text()
    scores = read(layout.FIGURES / "ten", "scores")
    inside = scores[scores.arm.isin(["harmonized", "input"]) & (scores.region == "brain")]
    alike = inside[inside.experiment.isin(["1a", "1b", "1c"])]
    fall = alike.groupby(["arm", "contrast", "resolution"]).psnr_db.mean().unstack("resolution")
    fall = (fall["3||0"] - fall["5||1.5"]).groupby("arm").agg(["min", "max"])
    assert "harmonized images lose {:.1f} to {:.1f} dB".format(*fall.loc["harmonized"]) in text
    assert "without harmonizer {:.1f} to {:.1f}. A 3D".format(*fall.loc["input"]) in text
    mean = (
        inside[inside.arm == "harmonized"]
        .groupby(["experiment", "contrast"])
        .psnr_db.mean()
        .unstack("contrast")
    )
    gain = {experiment: mean.loc[experiment] - mean.loc["1a"] for experiment in ("2", "3", "5")}
    assert f"helps the T1w output by {gain['3'].T1w:.1f} dB and T2w by {gain['3'].T2w:.1f}" in text
    assert f"a 3D FLAIR helps FLAIR by {gain['5'].FLAIR:.1f}" in text
    assert f"mixed orientations win, by {gain['2'].min():.1f} to {gain['2'].max():.1f} dB" in text
    planes = read(layout.FIGURES / "ten", "planes").set_index(["reconstruction", "contrast"])
    assert (
        "T1w {0:.2f} dB against {1:.2f} sagittal, {2:.2f} coronal".format(
            *planes.loc["axial", "T1w"][["1a", "1b", "1c"]]
        )
        in text
    )
    assert (
        "({0:.2f} against {1:.2f} and {2:.2f})".format(*planes.loc["coronal", "T1w"][["1a", "1b", "1c"]])
        in text
    )
    means = (
        alike.groupby(["arm", "experiment", "contrast", "resolution"])[["psnr_db", "ssim_planes"]]
        .mean()
        .unstack("resolution")
    )
    apart = means.xs("3||1", axis=1, level=1) - means.xs("4||0", axis=1, level=1)
    assert (apart.loc["input"].abs() < [0.2, 0.005]).all(
        axis=None
    ) and "differ by less than 0.2 dB and 0.005 SSIM" in text
    behind = apart.loc["harmonized"].agg(["min", "max"])
    assert (
        "by {:.1f} to {:.1f} dB".format(*behind.psnr_db) in text
        and "and {:.2f} to {:.2f} SSIM".format(*behind.ssim_planes) in text
    )
    noise = read(layout.FIGURES / "ten", "why_noise")
    for table, words in (
        (read(layout.FIGURES / "ten", "figure_frequencies"), "by {0:.2f} cycles/mm)"),
        (noise, "excess, {0:.2f} to {1:.2f} either way"),
    ):
        finest = table[(table.experiment == "1b") & (table.resolution == "3||0")]
        keys = ["contrast", "arm", *[key for key in ("anatomy",) if table is noise]]
        cutoffs = finest.groupby(keys).cutoff_per_mm.mean().unstack("arm")
        excess = cutoffs.harmonized - cutoffs.input
        assert words.format(excess.min(), excess.max()) in text


def test_the_book_tells_what_registration_costs():
    text = RESULTS.read_text()
    drawn = read(layout.FIGURES / "ten", "figure_ladder")
    mean = (
        drawn[drawn.arm == "harmonized"]
        .groupby(["contrast", "transform"])
        .psnr_db.mean()
        .unstack("transform")
    )
    rigid, affine = mean.known - mean.rigid, mean.known - mean.affine
    assert f"costs {rigid.min():.2f} to {rigid.max():.2f} dB" in text
    assert (
        f"costs {affine.T1w:.1f} dB for T1w, {affine.T2w:.1f} for T2w, {affine.FLAIR:.1f} for FLAIR" in text
    )
    off_mm = (
        read(layout.FIGURES / "ten", "why_registration").groupby("transform").registration_error_mm.mean()
    )
    assert (
        f"rigid transform is {off_mm.rigid:.2f} mm off" in text
        and f"affine transform is {off_mm.affine:.2f} mm off" in text
    )


def test_the_book_tells_what_the_remedies_bring_back():
    text, folder = RESULTS.read_text(), layout.FIGURES / "remedies"
    table, scores = read(folder, "remedies"), read(folder, "scores")
    table = table.set_index(["arm", "experiment", "contrast"])
    keys = ["arm", "experiment", "resolution", "contrast"]
    arms = ["harmonized, super-resolved", "harmonized, resolution-aware", "harmonized, both"]
    inside = scores[(scores.region == "brain") & scores.arm.isin(["harmonized", *arms])]
    psnr_db = inside.groupby(keys).psnr_db.mean().unstack("arm")
    gain = psnr_db.sub(psnr_db.harmonized, axis=0)
    thick = gain.xs("5||1.5", level="resolution")
    resolved, aware, both = (table.loc[arm] for arm in arms)
    whole = resolved.loc["all", "all"]
    assert (
        f"by {whole.gain_db:.1f} dB (95 % {whole.gain_low_db:.1f} to {whole.gain_high_db:.1f})" in text
        and f"a share of {100 * whole.share:.0f} %" in text
    )
    low, high = thick[arms[0]].agg(["min", "max"])
    assert f"at 5‖1.5 alone by {low:.1f} to {high:.1f} dB, by experiment and contrast" in text
    assert gain[arms[0]].min() > 0 and "helps everywhere" in text
    *some, last = (f"{100 * aware.loc[number, 'all'].share:.0f}" for number in "3456")
    assert f"shares of {', '.join(some)} and {last} % in experiments 3 to 6" in text
    low, high = thick.loc[list("3456"), arms[1]].agg(["min", "max"])
    assert f"at 5‖1.5 by {low:.1f} to {high:.1f} dB. Between" in text
    assert f"(2) it is {aware.loc['2', 'all'].gain_db:.1f} dB" in text
    assert (gain.loc[["1a", "1b", "1c"], arms[1]] == 0).all()
    assert f"fall by more than {-gain[arms[1]].min():.2f} dB" in text
    shares = [100 * both.loc[number, "all"].share for number in ("all", "3")]
    assert "bring back {:.0f} %, in experiment 3 {:.0f} %".format(*shares) in text
    low, *_, high = sorted(100 * aware.loc[number, "all"].share for number in "3456")
    told = f"bring back {100 * whole.share:.0f} % of the loss; beside a 3D image, fusion by resolution "
    told += f"{low:.0f} to {high:.0f} %; both {shares[0]:.0f} %"
    assert told in (layout.ROOT / "README.md").read_text()
    trained = table.loc["harmonized, resolution-trained", "all", "all"]
    assert f"does not help here: {trained.gain_db:.1f} dB" in text
    mean = psnr_db.groupby(["experiment", "resolution"]).mean()
    short = mean.harmonized.xs("4||0", level=1) - mean[arms[2]].xs("5||1.5", level=1)
    assert (short[["3", "4"]] < 0.05).all()
    alike = short[["1a", "1b", "1c"]]
    assert f"In 1a to 1c it stays {alike.min():.1f} to {alike.max():.1f} dB below" in text
    verdicts = read(folder, "remedies_verdicts").set_index("claim").verdict.to_dict()
    told = {"R1": "supported", "R2": "contradicted", "R3": "undecided", "R4": "supported"}
    assert verdicts == told | {"R6": "undecided", "R7": "contradicted"}


def test_the_fusion_by_resolution_gains_what_it_shall_at_the_coarsest_resolution():
    scores = read(layout.FIGURES / "remedies", "scores")
    inside = scores[(scores.region == "brain") & (scores.resolution == "5||1.5")]
    mean = inside.groupby(["arm", "experiment", "contrast"]).psnr_db.mean()
    gain = mean["harmonized, resolution-aware"] - mean["harmonized"]
    assert (gain.unstack().loc[["3", "4", "6"]].mean(axis=1) >= 1.0).all()
    assert (gain >= 0).all() and gain.unstack().loc["2"].mean() > -0.1
