import dataclasses

import matplotlib

matplotlib.use("Agg")

import numpy as np
import pandas as pd
import papermill
import pytest
from hypothesis import given, strategies as st

from helpers import layout
from helpers.protocol import advisor, figures as protocol_figures, scan_time
from helpers.study import CONTRASTS, ORIENTATIONS, RESOLUTIONS, Resolution

NOTEBOOK = str(layout.NOTEBOOKS / "06_protocol_survey.ipynb")
PLANTED = {
    "axial": (25, -2, -1.5, 0.3, 0.2),
    "sagittal": (22, -2.5, -1.2, 0.4, 0.1),
    "coronal": (20, -1.5, -1.0, 0.1, 0.3),
}
PROTOCOL = ["orientation", "thickness_mm", "gap_mm"]
RUN = pd.DataFrame(
    [(o, r.thickness_mm, r.gap_mm) for o in ORIENTATIONS for r in RESOLUTIONS], columns=PROTOCOL
)
#: Inside of what the paper runs, and none of its resolutions.
WITHIN = pd.DataFrame(
    [(o, t, g) for o in ORIENTATIONS for t, g in ((3.3, 0.4), (4.5, 0.7), (4.8, 1.3))], columns=PROTOCOL
)


def planted(protocols):
    t, g = protocols["thickness_mm"] - 4, protocols["gap_mm"]
    a, b, c, d, e = np.array([PLANTED[name] for name in protocols["orientation"]]).T
    return a + b * t + c * g + d * t**2 + e * t * g


def study(subjects=6, between=0.0, within=0.0, seed=0, resolutions=RESOLUTIONS, **how):
    """A score table with the planted surface: subjects differ by an offset and a slope of their own, rows by
    noise."""
    rng = np.random.default_rng(seed)
    rows = []
    for subject in range(1, subjects + 1):
        offset, slope = rng.normal(0, [max(between, 1e-300), max(between, 1e-300) / 2])
        for experiment, orientation in zip(advisor.ALIKE, ORIENTATIONS, strict=True):
            for each in resolutions:
                own = offset + slope * (each.separation_mm - 4.7)
                point = (subject, experiment, each.thickness_mm, each.gap_mm)
                rows += [
                    (*point, contrast, orientation, own + number - 1)
                    for number, contrast in enumerate(CONTRASTS)
                ]
    table = pd.DataFrame(
        rows,
        columns=["subject", "experiment", "thickness_mm", "gap_mm", "contrast", "orientation", "psnr_db"],
    )
    table["psnr_db"] += planted(table) + rng.normal(0, within, len(table))
    how = {"reconstruction": "axial+coronal+sagittal", "slice_step": 1} | how
    return table.assign(arm="harmonized", region="brain", **how)


# The surface


def test_a_planted_surface_is_found_between_what_was_run():
    surface = advisor.fit(study())
    np.testing.assert_allclose(advisor.predict(surface, WITHIN).expected, planted(WITHIN), atol=1e-9)
    assert surface.residual < 1e-9
    found = advisor.predict(advisor.fit(study(between=1.0)), WITHIN)
    assert found.inside.all() and (found.low < found.expected).all() and (found.expected < found.high).all()


def test_each_contrast_has_a_surface_of_its_own_and_the_mean_is_their_mean():
    table = study(within=0.3)
    parts = [
        advisor.predict(advisor.fit(table, contrast=contrast), WITHIN).expected for contrast in CONTRASTS
    ]
    np.testing.assert_allclose(advisor.predict(advisor.fit(table), WITHIN).expected, np.mean(parts, axis=0))
    assert parts[2].mean() - parts[0].mean() == pytest.approx(2, abs=0.3)


@pytest.mark.parametrize("subjects", (3, pytest.param(10, marks=pytest.mark.slow)))
def test_intervals_cover_the_planted_surface_as_often_as_they_say(subjects):
    # Subjects share their offset and slope over all resolutions: intervals that took rows for independent
    # would cover half of the time.
    covered, differences, n = np.zeros(len(WITHIN)), 0, 250
    for seed in range(n):
        surface = advisor.fit(study(subjects, between=1.0, within=0.3, seed=seed))
        found = advisor.predict(surface, WITHIN, 0.9)
        covered += (found.low <= planted(WITHIN)) & (planted(WITHIN) <= found.high)
        # The difference of two protocols, which the advice rests on.
        pair = WITHIN.iloc[:2].assign(minutes=1.0)
        row = advisor.advise(surface, pair, 1.0, 0.9).iloc[1]
        truth = planted(pair).max() - planted(pair).min()
        differences += row.behind_low <= truth <= row.behind_high
    # Four standard errors of a share of 0.9 in 250 are 0.076; the correction for few clusters is a little
    # cautious.
    assert (0.824 <= covered / n).all() and (covered / n <= 0.98).all()
    assert 0.824 <= differences / n <= 0.98


def test_more_alike_subjects_make_narrower_intervals():
    widths = [
        (found := advisor.predict(advisor.fit(study(between=b)), WITHIN)).high.sub(found.low).mean()
        for b in (0.2, 1.0)
    ]
    assert widths[1] == pytest.approx(5 * widths[0], rel=1e-6)


def test_all_that_was_run_is_inside_and_nothing_is_said_outside():
    surface = advisor.fit(study())
    assert advisor.inside(surface, RUN).all()
    pairs = ((2.9, 0), (5.1, 1), (3, 1.1), (4, 1.3), (4, -0.1))
    beyond = pd.DataFrame([*(("axial", *pair) for pair in pairs), ("oblique", 4, 0)], columns=PROTOCOL)
    found = advisor.predict(surface, beyond)
    assert not found.inside.any() and found[["expected", "low", "high"]].isna().all(axis=None)


@given(st.lists(st.floats(0, 1), min_size=8, max_size=8).filter(lambda weights: sum(weights) > 0.1))
def test_a_mixture_of_what_was_run_is_inside(weights):
    run = {"axial": RUN[RUN.orientation == "axial"].iloc[:, 1:].to_numpy()}
    surface = advisor.Surface("psnr_db", "harmonized", "brain", "mean", None, run, 2, 0, True)
    t, g = np.array(weights) / sum(weights) @ surface.run["axial"]
    assert advisor.inside(
        surface, pd.DataFrame({"orientation": ["axial"], "thickness_mm": [t], "gap_mm": [g]})
    ).all()


def test_candidates_lie_between_what_was_run_and_hold_it():
    surface = advisor.fit(study())
    found = advisor.candidates(surface)
    assert advisor.inside(surface, found).all() and not found.duplicated().any()
    pairs = {pair[1:] for pair in found[found.orientation == "axial"].itertuples(index=False)}
    assert {(each.thickness_mm, each.gap_mm) for each in RESOLUTIONS} <= {(t, g) for t, g in pairs}


def test_a_study_that_cannot_tell_is_refused_in_one_line():
    good = study()
    for bad, message in (
        (good.drop(columns="gap_mm"), "no column gap_mm"),
        (good[good.experiment == "9"], "no psnr_db of experiments 1a, 1b, 1c"),
        (good.assign(psnr_db=np.inf), "no psnr_db of experiments"),
        (good[good.contrast != "T2w"], "no psnr_db of experiments"),
        (good[good.subject == 1], "has 1 subject"),
        (study(resolutions=RESOLUTIONS[:4]), "4 axial resolutions, which determine no surface"),
        (study(resolutions=[Resolution(t, 0) for t in (3, 3.5, 4, 4.5, 5)]), "determine no surface"),
        (pd.concat([good, study(slice_step=11)]), "has slice_step 1, 11: accepted is the table of one study"),
    ):
        with pytest.raises(ValueError, match=message) as error:
            advisor.fit(bad)
        assert "\n" not in str(error.value)
    for arguments in ({"measure": "psnr"}, {"contrast": "PDw"}, {"arm": "ceiling"}, {"region": "skull"}):
        with pytest.raises(ValueError, match=f"{next(iter(arguments))} is "):
            advisor.fit(good, **arguments)


def test_other_experiments_arms_and_regions_do_not_enter():
    good = study(within=0.2)
    others = (
        {"experiment": "2"},
        {"arm": "input"},
        {"region": "full"},
        {"experiment": "3D", "arm": "ceiling"},
    )
    noise = [good.assign(psnr_db=99.0, **other) for other in others]
    expected = advisor.predict(advisor.fit(good), WITHIN)
    pd.testing.assert_frame_equal(advisor.predict(advisor.fit(pd.concat([good, *noise])), WITHIN), expected)


def test_few_subjects_and_one_plane_are_said():
    assert (
        "compare protocols within an orientation"
        in advisor.fit(study(reconstruction="axial", slice_step=11)).note
    )
    assert "With 2 subjects the intervals are wide" in advisor.fit(study(2)).note
    assert "wide" not in advisor.fit(study(10)).note and "within" not in advisor.fit(study(10)).note


# Scan time: cases worked out by hand


def test_a_conventional_spin_echo_takes_tr_times_lines_times_averages():
    # 600 ms x 256 lines x 2 averages = 307.2 s; a slice takes 15 + 15 ms, so 20 fit.
    sequence = scan_time.ScanTime(tr_ms=600, te_ms=15, echo_spacing_ms=15, averages=2)
    assert sequence.slices_per_tr == 20
    assert sequence.minutes(20, 256) == pytest.approx(5.12)
    assert sequence.minutes(21, 256) == pytest.approx(10.24)  # one slice more: everything twice


def test_a_turbo_spin_echo_takes_as_many_trains_as_it_needs():
    # 200 lines + 20 % = 240, by 16 echoes and acceleration 2: 7.5, so 8 trains of 4 s. A train takes 160 + 40
    # ms: 20 slices.
    sequence = scan_time.ScanTime(
        tr_ms=4000, te_ms=100, echo_spacing_ms=10, etl=16, overhead_ms=40, acceleration=2, oversampling=0.2
    )
    assert (sequence.busy_ms, sequence.slices_per_tr) == (200, 20)
    assert sequence.minutes(30, 200) == pytest.approx(8 * 4 * 2 / 60)


def test_the_echo_time_counts_where_it_outlasts_the_train():
    assert scan_time.ScanTime(tr_ms=1000, te_ms=85, echo_spacing_ms=10, etl=4).slices_per_tr == 10


@pytest.mark.parametrize(
    "coverage, resolution, slices",
    [
        (150, (3, 0), 50),
        (150, (5, 0), 30),
        (150, (5, 1), 26),
        (149, (5, 1), 25),
        (4, (5, 1), 1),
        (5.2, (1, 0.4), 4),
    ],
)
def test_slices_cover_from_edge_to_edge(coverage, resolution, slices):
    assert scan_time.slices_for(coverage, Resolution(*resolution)) == slices


@given(st.floats(1, 300), st.floats(0.5, 10), st.floats(0, 5))
def test_one_slice_fewer_would_not_cover(coverage, thickness, gap):
    resolution = Resolution(thickness, gap)
    n = scan_time.slices_for(coverage, resolution)
    covered = (n - 1) * resolution.separation_mm + thickness
    assert covered >= coverage - 1e-6
    assert n == 1 or covered - resolution.separation_mm < coverage + 1e-6


@given(st.integers(1, 200), st.integers(1, 512), st.sampled_from(list(scan_time.SEQUENCES)))
def test_more_slices_or_lines_never_take_less_time(slices, lines, contrast):
    sequence = scan_time.SEQUENCES[contrast]
    assert sequence.minutes(slices + 1, lines) >= sequence.minutes(slices, lines) > 0
    assert sequence.minutes(slices, lines + 1) >= sequence.minutes(slices, lines)
    assert sequence.minutes(sequence.slices_per_tr, lines) == sequence.minutes(1, lines)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"tr_ms": 0}, "tr_ms is 0: accepted are numbers greater than 0"),
        ({"tr_ms": 100}, "tr_ms is 100: accepted are 175 or more"),
        ({"etl": 1.5}, "etl is 1.5: accepted are whole numbers"),
        ({"averages": 0}, "averages is 0"),
        ({"acceleration": 0.5}, "acceleration is 0.5"),
        ({"oversampling": -0.1}, "oversampling is -0.1"),
        ({"te_ms": float("nan")}, "te_ms is nan"),
        ({"te_ms": "100"}, "te_ms is '100'"),
    ],
)
def test_a_sequence_that_cannot_be_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(scan_time.SEQUENCES["T2w"], **change)


def test_times_of_a_protocol_are_those_of_its_contrasts():
    # By hand, 3||1 axial: 38 slices. T1w: 22 per TR, so 2 x 200 x 0.55 s = 220 s. T2w: 25 per TR, so 2 x 13 x
    # 4.5 = 117 s. FLAIR: 43 per TR, so 12 x 9 = 108 s.
    row = scan_time.scan_times(
        pd.DataFrame({"orientation": ["axial"], "thickness_mm": [3], "gap_mm": [1]})
    ).iloc[0]
    assert row.slices == 38
    assert [
        row.minutes_T1w * 60,
        row.minutes_T2w * 60,
        row.minutes_FLAIR * 60,
        row.minutes * 60,
    ] == pytest.approx([220, 117, 108, 445])


def test_snr_grows_with_thickness_and_the_root_of_averages():
    assert scan_time.relative_snr(5) / scan_time.relative_snr(2.5) == pytest.approx(2)
    assert scan_time.relative_snr(3, averages=4) == pytest.approx(6)
    assert scan_time.relative_snr(3, acceleration=4) == pytest.approx(1.5)


# Advice


def test_the_advice_is_the_best_that_fits():
    surface = advisor.fit(study(between=0.5, within=0.1))
    protocols = scan_time.scan_times(advisor.candidates(surface))
    scored = advisor.predict(surface, protocols)
    for minutes in (7, 8, 12, 60):
        advice = advisor.advise(surface, protocols, minutes)
        fits = scored[scored.minutes <= minutes]
        assert len(advice) == len(fits) and (advice.minutes <= minutes).all()
        assert advice.expected[0] == fits.expected.max()
        np.testing.assert_allclose(advice.behind, advice.expected[0] - advice.expected, atol=1e-9)
        assert advice.tied[0] and not advice.tied.iloc[-1]
    # More time never makes the best worse; with all the time in the world it is the thinnest slice without a
    # gap.
    assert (advice.orientation[0], advice.thickness_mm[0], advice.gap_mm[0]) == ("axial", 3, 0)


def test_protocols_that_differ_by_less_than_the_noise_are_tied():
    surface = advisor.fit(study(within=0.3))
    pair = pd.DataFrame(
        {
            "orientation": ["axial"] * 3,
            "thickness_mm": [3, 3.01, 5],
            "gap_mm": [0, 0, 1.5],
            "minutes": [1.0] * 3,
        }
    )
    # At 3 mm the planted surface falls by 2.6 dB/mm: 0.026 dB to the second one.
    advice = advisor.advise(surface, pair, 1)
    assert advice.thickness_mm[2] == 5 and not advice.tied[2] and advice.behind_low[2] > 3
    assert advice.behind[1] < 0.06
    # Two subjects that disagree about the slope cannot tell the two thin ones apart; without any noise the
    # difference stands.
    assert list(advisor.advise(advisor.fit(study(2, within=1.0)), pair, 1).tied[:2]) == [True, True]
    assert list(advisor.advise(advisor.fit(study(within=1e-6)), pair, 1).tied) == [True, False, False]


def test_where_orientations_cannot_be_compared_each_has_its_best():
    surface = advisor.fit(study(within=0.1, reconstruction="axial"))
    protocols = scan_time.scan_times(advisor.candidates(surface))
    advice = advisor.advise(surface, protocols, 60)
    best = advice.groupby("orientation").head(1)
    assert len(best) == 3 and (best.behind == 0).all()
    assert (advice.behind >= 0).all()


def test_nothing_fits_and_nothing_is_advised():
    surface = advisor.fit(study())
    protocols = scan_time.scan_times(advisor.candidates(surface))
    advice = advisor.advise(surface, protocols, 0.5)
    assert len(advice) == 0 and {"expected", "behind", "tied"} <= set(advice)
    for minutes in (0, -1, float("nan"), "10"):
        with pytest.raises(ValueError, match="minutes is "):
            advisor.advise(surface, protocols, minutes)


@pytest.mark.parametrize("minutes, comparable, stars", [(10, True, 1), (10, False, 3), (1, True, 0)])
def test_the_figure_marks_the_best_and_ends_where_the_study_ends(minutes, comparable, stars):
    surface = advisor.fit(study(between=0.5))
    protocols = advisor.predict(surface, scan_time.scan_times(advisor.candidates(surface)))
    fig, axes, drawn = protocol_figures.advice(
        protocols, surface.run, minutes, "expected PSNR (dB)", surface.note, comparable
    )
    marked = [line for ax in axes[:-1] for line in ax.get_lines() if line.get_marker() == "*"]
    assert len(marked) == stars
    assert len(axes) == 4 and "(min)" in axes[-1].get_xlabel()
    assert ("nothing fits" in axes[-1].get_title()) == (stars == 0)
    assert surface.note[:20] in fig.get_suptitle()
    fig.canvas.draw()
    assert all(ax.get_position().width > 0.1 for ax in axes)
    matplotlib.pyplot.close(fig)


def test_the_notebook_advises_from_the_table_of_a_study(tmp_path):
    (tmp_path / "results" / "tables").mkdir(parents=True)
    study(between=0.5, within=0.1).to_csv(tmp_path / "results" / "tables" / "scores.csv", index=False)
    (tmp_path / "x.csv").write_text(
        "contrast,MRAcquisitionType,SliceThickness,orientation\nT1w,2D,5mm,axial\nT2w,2D,0,axial\n"
    )
    parameters = {
        "collection": str(tmp_path / "x.csv"),
        "name": "planted",
        "output_dir": str(tmp_path / "results"),
    }
    executed = papermill.execute_notebook(
        NOTEBOOK, str(tmp_path / "out.ipynb"), parameters, progress_bar=False
    )
    text = str([cell.get("outputs") for cell in executed.cells])
    assert "psnr_db inside brain, arm harmonized" in text and "No advice, since" not in text
    assert "thickness_mm is 0" in text
    advised = pd.read_csv(tmp_path / "results" / "figures" / "figure_advisor.csv")
    assert advised.expected.notna().all()
    assert (tmp_path / "results" / "figures" / "figure_1.png").stat().st_size > 1000


def test_the_notebook_says_that_a_study_is_missing(tmp_path):
    parameters = {"name": "none", "output_dir": str(tmp_path / "results")}
    executed = papermill.execute_notebook(
        NOTEBOOK, str(tmp_path / "out.ipynb"), parameters, progress_bar=False
    )
    assert "No advice, since study" in str([cell.get("outputs") for cell in executed.cells])
    assert not (tmp_path / "results" / "figures" / "figure_advisor.png").exists()


def remedied(gain_db, subjects=3):
    """A study of three resolutions, too few for a surface, in which super-resolution gains so much."""
    plain = study(subjects, between=0.5, resolutions=[Resolution(3, 0), Resolution(4, 0), Resolution(5, 1.5)])
    plain = plain[plain.arm == "harmonized"]
    better = plain.assign(psnr_db=plain.psnr_db + gain_db, arm="harmonized, super-resolved")
    return pd.concat([plain, better])


@pytest.mark.parametrize("gain_db", [0.5, 20.0])
def test_thick_slices_with_a_remedy_are_weighed_against_the_best_thin_ones_that_fit(gain_db):
    few = advisor.with_remedy(remedied(gain_db), minutes=1e3)
    assert few.fits.all() and len(few) == 3 * 3 * 2
    for _, rows in few.groupby("orientation"):
        plain, better = (rows[rows.arm == arm] for arm in ("harmonized", "harmonized, super-resolved"))
        # With all the time of the world the finest slices are the best, and nothing lies ahead of them.
        assert plain.iloc[0][["thickness_mm", "ahead"]].tolist() == [3, 0]
        coarsest = better[better.thickness_mm == 5].iloc[0]
        assert coarsest.ahead == pytest.approx(coarsest.score - plain.score.max())
        assert coarsest.ahead_low <= coarsest.ahead <= coarsest.ahead_high
        assert (coarsest.ahead > 0) == (gain_db > 10)
        assert rows.score.is_monotonic_decreasing


def test_what_does_not_fit_is_no_yardstick_and_where_nothing_fits_there_is_none():
    table = remedied(0.5)
    everything = advisor.with_remedy(table, minutes=1e3)
    least = everything.minutes.min()
    tight = advisor.with_remedy(table, minutes=least)
    (fitting,) = set(tight[tight.fits].thickness_mm)
    yardstick = tight[tight.fits & (tight.arm == "harmonized")]
    assert fitting == 5 and (yardstick.ahead == 0).all()
    assert advisor.with_remedy(table, minutes=least / 2).ahead.isna().all()


def test_a_study_without_the_remedy_is_refused_by_name():
    with pytest.raises(ValueError, match="super-resolved.*accepted is a study with remedies"):
        advisor.with_remedy(study(2), minutes=10)
