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
    text, given = RESULTS.read_text(), read(layout.FIGURES / "ten", "verdicts")
    rows = []
    for row in given.itertuples():
        unit, digits = "" if pd.isna(row.unit) else f" {row.unit}", 2 if row.unit == "dB" else 3
        estimate, low, high = (f"{value:+.{digits}f}" for value in (row.estimate, row.low, row.high))
        decided_by = f"{row.comparison}: {estimate}{unit} ({low} to {high})"
        rows.append(f"| {row.claim} | {row.statement} | {row.verdict} | {decided_by} |\n".replace("||", "‖"))
    assert "".join(rows) in text
    count = given.verdict.value_counts()
    words = (judgement.SUPPORTED, judgement.CONTRADICTED, judgement.UNDECIDED)
    told = "Verdicts: {} supported, {} contradicted, {} open".format(*(count.get(word, 0) for word in words))
    assert told in text
    told = "{} are supported, {} contradicted, {} are open".format(*(count.get(word, 0) for word in words))
    assert told in (layout.ROOT / "README.md").read_text()
    numbers = dict(zip(range(8, 16), "eight nine ten eleven twelve thirteen fourteen fifteen".split()))
    variants = pd.read_csv(layout.FIGURES / "ten" / "sensitivity.csv", dtype={"value": str})
    decided = given[given.verdict != judgement.UNDECIDED].set_index("claim").verdict
    variants = variants[variants.claim.isin(decided.index)]
    same = variants.verdict == variants.claim.map(decided)
    changed = (~same)[variants.variant == "without"].groupby(variants.claim).sum()
    assert f"what becomes of the {numbers[len(decided)]} verdicts" in text
    assert f"left out | {numbers[(changed == 0).sum()]} stay; C5 opens without one of 7 subjects" in text
    assert changed[changed > 0].to_dict() == {"C5": 7, "C11": 8, "C13": 8}
    wider = variants[(variants.variant == "margins") & ~same]
    assert set(wider.value.astype(float)) == {2.0}
    assert wider.claim.tolist() == ["C7", "C13", "C16"]
    alone = variants[variants.variant == "alone"].pivot(index="claim", columns="value", values="estimate")
    assert (np.sign(alone.S1) == np.sign(alone.Colin27)).all()


def test_the_demo_has_at_least_six_verdicts():
    given, without = (read(layout.FIGURES / "demo", name) for name in ("verdicts", "without_verdict"))
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
    mask = read(layout.FIGURES / "ten", "why_mask")
    gain = mask[mask.comparison == "3 - 1a"].groupby(["mask", "contrast"]).psnr_db.mean()
    for contrast in ("T2w", "FLAIR"):
        told = re.search(rf"{contrast} by ([\d.]+)( dB)? \(.*?\) instead of ([\d.]+)", text)
        assert (told[1], told[3]) == (f"{gain['union', contrast]:.1f}", f"{gain['first', contrast]:.1f}")


def test_readme_and_book_tell_the_numbers_of_the_ten_subjects():
    scores = read(layout.FIGURES / "ten", "scores")
    inside = scores[scores.arm.isin(["harmonized", "input"]) & (scores.region == "brain")]
    alike = inside[inside.experiment.isin(["1a", "1b", "1c"])]
    fall = alike.groupby(["arm", "contrast", "resolution"]).psnr_db.mean().unstack("resolution")
    fall = (fall["3||0"] - fall["5||1.5"]).groupby("arm").agg(["min", "max"])
    mean = inside[inside.arm == "harmonized"].groupby(["experiment", "contrast"]).psnr_db.mean()
    gain = {name: mean[name] - mean["1a"] for name in ("2", "3", "5")}
    thick = alike[(alike.arm == "harmonized") & (alike.resolution == "5||1.5")]
    apart = thick.groupby(["contrast", "experiment"]).psnr_db.mean().unstack().agg(np.ptp, axis=1)
    book = RESULTS.read_text()
    for text in (book, (layout.ROOT / "README.md").read_text()):
        assert "harmonized images lose {:.1f} to {:.1f} dB".format(*fall.loc["harmonized"]) in text
        assert "images without harmonizer {:.1f} to {:.1f}.".format(*fall.loc["input"]) in text
        assert f"{apart.min():.1f} to {apart.max():.1f} dB apart" in text
        mixed, sharp = (f"{gain[name].min():.1f} to {gain[name].max():.1f}" for name in "23")
        told = rf"gain {mixed} dB over axial ones(.*?), a 3D T1w (\(3\) )?{sharp} in every contrast"
        assert re.search(told, text)
    assert f"a 3D FLAIR (5) {gain['5'].FLAIR:.1f} dB in FLAIR" in book
    t1w, flair = gain["3"].T1w, gain["5"].FLAIR
    assert f"today it is {t1w:.1f} and {flair:.1f}." in book
    planes = read(layout.FIGURES / "ten", "planes").set_index(["reconstruction", "contrast"])
    apart = planes[["1a", "1b", "1c"]].agg(np.ptp, axis=1)
    assert f"they are {apart.min():.1f} to {apart.max():.1f} dB apart" in book
    mixed = planes["2"] - planes["1a"]
    assert f"by {mixed.min():.1f} to {mixed.max():.1f} dB in experiment 2" in book
    cutoffs = read(layout.FIGURES / "ten", "figure_frequencies")
    cutoffs = cutoffs.groupby(["experiment", "resolution", "contrast", "arm"]).cutoff_per_mm.mean().unstack()
    higher = cutoffs.harmonized - cutoffs.input
    assert f"are {higher.min():.2f} to {higher.max():.2f} cycles/mm higher" in book


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


def test_the_book_tells_what_the_noise_of_the_labels_does_not_explain():
    noise = read(layout.FIGURES / "ten", "why_noise")
    finest = noise[(noise.experiment == "1b") & (noise.resolution == "3||0")]
    cutoffs = finest.groupby(["contrast", "arm", "anatomy"]).cutoff_per_mm.mean().unstack("arm")
    excess = cutoffs.harmonized - cutoffs.input
    assert f"excess, {excess.min():.2f} to {excess.max():.2f} either way" in RESULTS.read_text()


def test_the_book_tells_what_thick_slices_cost_in_real_brains():
    text, table = RESULTS.read_text(), read(layout.FIGURES / "real", "flair")
    psnr_db = table.pivot(index=["image", "orientation"], columns="resolution", values="psnr_db")
    loss = psnr_db["3||0"] - psnr_db["5||1.5"]
    assert f"lose {loss.min():.1f} to {loss.max():.1f} dB from 3‖0 to 5‖1.5, by patient" in text
    for thinner, thicker, words in (
        ("3||1", "4||0", "3‖1 and 4‖0 differ by at most {:.1f} dB"),
        ("4||1", "5||0", "4‖1 and 5‖0 by at most {:.1f}"),
    ):
        assert words.format((psnr_db[thinner] - psnr_db[thicker]).abs().max()) in text
    coronal = psnr_db["3||0"].unstack("orientation")
    ahead = -coronal[["axial", "sagittal"]].sub(coronal.coronal, axis=0)
    assert f"by {ahead.min(axis=None):.1f} to {ahead.max(axis=None):.1f} dB at 3‖0" in text


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
    trained_db = scores[(scores.region == "brain") & (scores.arm == "harmonized, resolution-trained")]
    trained_db = trained_db.groupby(keys[1:]).psnr_db.mean()
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
    assert gain[arms[1]].min() >= 0 and "no mean, of any experiment, contrast and resolution, falls" in text
    shares = [100 * both.loc[number, "all"].share for number in ("all", "3")]
    assert "bring back {:.0f} %, in experiment 3 {:.0f} %".format(*shares) in text
    low, *_, high = sorted(100 * aware.loc[number, "all"].share for number in "3456")
    told = f"removes {100 * whole.share:.0f} % of the squared error; beside a 3D image, fusion by resolution "
    told += f"{low:.0f} to {high:.0f} %; both {shares[0]:.0f} %"
    assert told in (layout.ROOT / "README.md").read_text()
    trained = table.loc["harmonized, resolution-trained", "all", "all"]
    assert f"does not help here: {trained.gain_db:.1f} dB" in text
    change = (trained_db - psnr_db.harmonized).xs("5||1.5", level="resolution").unstack().loc[list("3456")]
    low, high = change[["T1w", "FLAIR"]].min(axis=None), change[["T1w", "FLAIR"]].max(axis=None)
    assert f"T1w and FLAIR gain {low:.1f} to {high:.1f} dB" in text
    assert f"T2w changes by {change.T2w.min():.1f} to {change.T2w.max():+.1f}" in text
    mean = psnr_db.groupby(["experiment", "resolution"]).mean()
    short = mean.harmonized.xs("4||0", level=1) - mean[arms[2]].xs("5||1.5", level=1)
    assert (short[["3", "4", "6"]] < 0.05).all() and "in experiments 3, 4 and 6" in text
    alike = short[["1a", "1b", "1c"]]
    assert f"In 1a to 1c it stays {alike.min():.1f} to {alike.max():.1f} dB below" in text
    verdicts = read(folder, "remedies_verdicts").set_index("claim").verdict.to_dict()
    told = {"R1": "supported", "R2": "contradicted", "R3": "supported", "R4": "supported"}
    assert verdicts == told | {"R6": "supported", "R7": "contradicted"}


def test_the_book_tells_what_fusion_by_resolution_brings_in_three_planes():
    text, gain = RESULTS.read_text(), read(layout.FIGURES / "ten", "why_resolution")
    thick = gain[gain.resolution == "5||1.5"].groupby(["experiment", "contrast"]).gain_db.mean().unstack()
    assert (thick.loc[["3", "4", "6"]].mean(axis=1) >= 1.0).all() and (thick.loc[["3", "4", "6"]] >= 0).all(
        axis=None
    )
    assert thick.loc["2"].mean() >= -0.1 and gain.gain_db.min() >= 0
    assert "no mean falls in any plane" in text
    table = read(layout.FIGURES / "ten", "remedies").set_index(["arm", "experiment", "contrast"]).share
    *some, last = (f"{100 * table['harmonized, resolution-aware', e, 'all']:.0f}" for e in "3456")
    assert f"the shares are {', '.join(some)} and {last} %" in text


def test_the_book_tells_what_gaps_cost():
    text, scores = RESULTS.read_text(), read(layout.FIGURES / "gaps", "scores")
    verdicts = judgement.verdicts(scores)[0].set_index("claim").verdict
    assert (verdicts.C2, verdicts.C3) == (judgement.UNDECIDED, judgement.SUPPORTED)
    inside = scores[(scores.region == "brain") & scores.arm.isin(["harmonized", "input"])]
    mean = inside.groupby(["arm", "contrast", "resolution"]).psnr_db.mean().unstack()
    apart = (mean["3||1"] - mean["4||0"]).abs().groupby("arm").max()
    assert f"3‖1 and 4‖0 differ by at most {apart.harmonized:.1f} dB in the mean" in text
    assert f"(without a harmonizer {apart.input:.1f})" in text


def test_the_book_tells_what_a_clinic_would_measure():
    text, folder = RESULTS.read_text(), layout.FIGURES / "clinic"
    kinds = ["grey_ml", "white_ml", "ventricles_ml", "lesion_ml"]
    keys = ["reference", "arm", "measure", "resolution"]
    table = read(folder, "agreement")
    alike = table.experiment.isin(["1a", "1b", "1c"])
    error = table[alike].groupby(keys).error_pct.mean()["3D"].unstack("measure")[kinds]
    thin, thick = (error.loc["harmonized", label] for label in ("3||0", "5||1.5"))
    assert f"from {thin.grey_ml:.1f} to {thick.grey_ml:.1f} % in grey matter" in text
    assert f"from {thin.white_ml:.1f} to {thick.white_ml:.1f} % in white matter" in text
    assert f"from {thin.ventricles_ml:.1f} to {thick.ventricles_ml:.1f} % in the ventricles" in text
    assert f"from {thin.lesion_ml:.0f} to {thick.lesion_ml:.0f} % in lesions" in text
    four = "{:.1f}, {:.1f}, {:.1f} and {:.0f} %"
    resolved = error.loc["harmonized, super-resolved", "5||1.5"]
    assert "the errors are " + four.format(*resolved) in text
    for name, words in (
        ("none", "**Without a harmonizer** the errors at 5‖1.5 are"),
        ("histogram", "matching"),
    ):
        other = read(folder, name)
        other = other[other.experiment.isin(["1a", "1b", "1c"]) & (other.resolution == "5||1.5")]
        other = other.groupby(keys).error_pct.mean()["3D", "harmonized"].droplevel("resolution")[kinds]
        assert f"{words} {four.format(*other)}" in text
    exact = table[(table.reference == "exact") & (table.experiment == "3D")].set_index(["measure", "arm"])
    off = exact.error_pct.unstack("arm")[["harmonized", "input"]].round(0)
    lesions, grey, ventricles = (off.loc[kind] for kind in ("lesion_ml", "grey_ml", "ventricles_ml"))
    assert "off by {:.0f} %, that of the 3D image without a harmonizer by {:.0f} %".format(*lesions) in text
    assert "off by {:.0f} and {:.0f} %, the ventricles by".format(*grey) in text
    assert "the ventricles by {:.0f} and {:.0f} %".format(*ventricles) in text
    verdicts = read(folder, "verdicts_downstream").set_index("claim").verdict
    assert (verdicts == judgement.UNDECIDED).all()
