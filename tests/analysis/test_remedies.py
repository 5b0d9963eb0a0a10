"""What remedies bring back: known shares are found, harms are said first, claims follow from the arms.
All tables here are made up."""

import numpy as np
import pandas as pd
import pytest

from helpers.analysis import figures, judgement, remedies
from helpers.analysis.claims import REMEDY_CLAIMS
from helpers.analysis.judgement import CONTRADICTED, SUPPORTED, UNDECIDED
from helpers.study import ARMS, CONTRASTS, EXPERIMENTS, RESOLUTIONS

SUPER, AWARE, BOTH, TRAINED = list(ARMS)[1:]
SOURCES = {"input": (), "super-resolved input": ("super-resolution",)}


def table(gain, subjects=10, experiments=EXPERIMENTS, noise=0.1, planes="axial+coronal+sagittal"):
    """A score table: `gain(arm, experiment, contrast)` in dB, and a tenth of a margin of noise."""
    rng, rows = np.random.default_rng(0), []
    for subject in range(1, subjects + 1):
        for experiment in experiments:
            for resolution in (RESOLUTIONS[0], RESOLUTIONS[-1]):
                for contrast in CONTRASTS:
                    plain_db = 25 - resolution.separation_mm + rng.normal(0, 1)
                    for arm in (*ARMS, *SOURCES):
                        d = gain(arm, experiment, contrast) + noise * rng.normal()
                        row = (subject, experiment, resolution.label, resolution.separation_mm, contrast, arm)
                        rows.append((*row, "brain", plain_db + d, 0.5 + 0.02 * (plain_db - 20 + d)))
    columns = ["subject", "experiment", "resolution", "separation_mm", "contrast", "arm", "region"]
    version = {"transform": "known", "reconstruction": planes, "anatomy": "shared", "mask": "first"}
    made = pd.DataFrame(rows, columns=[*columns, "psnr_db", "ssim"])
    return made.assign(**version, slice_step=1, seed=0)


def helpful(arm, experiment, contrast):
    """Effects that make all seven claims true."""
    alike = experiment in ("1a", "1b", "1c")
    mixed = 3 * (experiment in ("2", "4", "6"))
    return {
        SUPER: 2,
        AWARE: 0 if alike else 3 + mixed,
        BOTH: 2 if alike else 6 + mixed,
        TRAINED: 0 if alike else 2,
        "super-resolved input": 1,
    }.get(arm, 0)


def verdicts_of(scores):
    found, _ = judgement.verdicts(scores, family=REMEDY_CLAIMS)
    return dict(zip(found.claim, found.verdict, strict=True)), found


@pytest.mark.parametrize("share", [0.5, 0.1, -0.3])
def test_a_known_share_of_the_loss_is_found(share):
    gain_db = -10 * np.log10(1 - share)
    back = remedies.recovered(table(lambda arm, *_: gain_db * (arm == SUPER), subjects=3, noise=0))
    rows = back[back.arm == SUPER]
    np.testing.assert_allclose(rows.gain_db, gain_db)
    np.testing.assert_allclose(rows[["share", "share_low", "share_high"]], share)
    assert set(map(tuple, rows[["experiment", "contrast"]].values)) == {
        (experiment, contrast)
        for experiment in (*EXPERIMENTS, remedies.ALL)
        for contrast in (*CONTRASTS, remedies.ALL)
    }
    np.testing.assert_allclose(back[back.arm != SUPER].share, 0, atol=1e-12)


def test_one_subject_has_a_share_and_no_interval_and_a_perfect_image_recovers_all():
    scores = table(lambda *_: 0, subjects=1, noise=0)
    scores.loc[(scores.arm == BOTH) & (scores.experiment == "3"), "psnr_db"] = np.inf
    back = remedies.recovered(scores).set_index(["arm", "experiment", "contrast"])
    assert back.loc[(BOTH, "3", "T1w")].share == 1
    assert np.isnan(back.share_low).all()
    assert "nan" not in remedies.paragraph(back.reset_index())


def test_where_a_remedy_hurts_is_said_first_the_worst_before_the_others():
    def gain(arm, experiment, contrast):
        return -2.0 if (arm, experiment) == (AWARE, "2") else 1.0 * (arm != "harmonized")

    back = remedies.recovered(table(gain))
    told = remedies.paragraph(back)
    assert told.startswith(
        "Where a remedy hurts, 3 of 96 mean scores fall, with a 95 % interval below zero in 3: "
    )
    assert told.index("fusion by resolution in experiment 2") < told.index("come back")
    assert (remedies.harms(back).gain_db.diff().dropna() >= 0).all()
    assert remedies.paragraph(remedies.recovered(table(helpful, noise=0))).startswith("No remedy lowers")


def test_claims_about_remedies_are_supported_where_they_are_true():
    found, rows = verdicts_of(table(helpful))
    assert found == dict.fromkeys([f"R{n}" for n in range(1, 8)], SUPPORTED)
    # Holm within the seven: the smallest p is multiplied by seven, not by eighteen.
    assert rows.p_holm.max() == pytest.approx(7 * 2**-10)


def test_claims_about_remedies_are_contradicted_where_they_are_false_and_open_where_nothing_is_to_be_seen():
    found, _ = verdicts_of(table(lambda *key: -helpful(*key)))
    assert set(found.values()) == {CONTRADICTED}
    nothing, _ = verdicts_of(table(lambda *_: 0, noise=1.0))
    assert SUPPORTED not in nothing.values()


def test_claims_say_why_they_cannot_be_tested():
    bare = table(helpful)
    bare = bare[bare.arm.isin(["harmonized", "input"])]
    found, rows = verdicts_of(bare)
    assert set(found.values()) == {UNDECIDED} and (rows.reason != "").all()
    found, rows = verdicts_of(table(helpful, planes="axial"))
    assert found["R5"] == UNDECIDED and found["R3"] == SUPPORTED
    found, rows = verdicts_of(table(helpful, subjects=3))
    assert set(found.values()) == {UNDECIDED}
    assert "3 subjects" in rows.reason[0]


def test_arms_of_remedies_do_not_change_what_is_said_of_the_paper():
    scores = table(helpful)
    bare = scores[scores.arm.isin(["harmonized", "input"])]
    for with_arms, without in zip(judgement.verdicts(scores), judgement.verdicts(bare), strict=True):
        pd.testing.assert_frame_equal(with_arms, without)


def test_a_row_that_an_arm_lacks_is_named():
    scores = table(helpful, subjects=2)
    lost = (scores.arm == AWARE) & (scores.experiment == "4") & (scores.contrast == "T2w")
    with pytest.raises(ValueError, match="lacks .* T2w harmonized, resolution-aware"):
        judgement.verdicts(scores[~lost], family=REMEDY_CLAIMS)


def test_the_figure_shows_each_experiment_and_the_shares():
    scores = table(helpful, subjects=2)
    fig, axes, drawn = figures.remedies_figure(scores, remedies.recovered(scores))
    assert [ax.get_title() for ax in axes[:-1]] == [f"Experiment {each}" for each in EXPERIMENTS]
    assert len(axes[-1].lines) >= 3 and set(drawn.arm) == {SUPER, AWARE, BOTH, TRAINED}
    fig.canvas.draw()
