import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import nbclient
import nbformat
import numpy as np
import pandas as pd
import pytest

from helpers import drawing, grid, layout
from helpers.analysis import figures, verdict_figures
from helpers.cohort import figures as cohort_figures
from helpers.study import CONTRASTS, EXPERIMENTS, RESOLUTIONS


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close("all")


@pytest.fixture
def table():
    """Scores that fall by 1 dB per mm of separation, 3 dB higher for subject 2; 3D sources are perfect."""
    rows = []
    for subject in (1, 2):
        for experiment, sources in EXPERIMENTS.items():
            for each in RESOLUTIONS:
                for contrast in CONTRASTS:
                    for arm in ("harmonized", "input"):
                        perfect = arm == "input" and sources[contrast] == "3D"
                        psnr = (
                            np.inf
                            if perfect
                            else 30 - each.separation_mm + 3 * (subject == 2) - 5 * (arm == "input")
                        )
                        rows.append(
                            (subject, experiment, each.label, contrast, arm, "brain", psnr, np.nan, psnr / 40)
                        )
        rows += [
            (subject, "3D", "3D", contrast, "ceiling", "brain", 26.0, np.nan, 0.9) for contrast in CONTRASTS
        ]
    columns = [
        "subject",
        "experiment",
        "resolution",
        "contrast",
        "arm",
        "region",
        "psnr_db",
        "ssim",
        "ssim_axial",
    ]
    return pd.DataFrame(rows, columns=columns)


def test_slices_hang_as_radiologists_hang_them():
    # A volume stored LPS, with a bright voxel to the patient's left, at the front, and at the top.
    volume = np.zeros((10, 12, 14))
    volume[9, 0, 13] = 1  # left, anterior, superior
    where = {
        plane: tuple(np.argwhere(grid.upright(volume, plane, index) == 1)[0])
        for plane, index in (("axial", 13), ("coronal", 0), ("sagittal", 9))
    }
    assert where["axial"] == (0, 9)  # front is up, the patient's left is on the right
    assert where["coronal"] == (0, 9)  # top is up
    assert where["sagittal"] == (0, 0)  # front is on the left


def test_slices_share_one_look_up_table():
    fig, axes = drawing.slices({"a": np.zeros((4, 4)), "b": np.full((4, 4), 9.0)}, vmax=5, columns=2)
    assert {image.get_clim() for ax in axes.flat for image in ax.get_images()} == {(0, 5)}


def test_fewer_slices_than_fit_into_a_row_leave_no_place_empty():
    _, axes = drawing.slices({"a": np.ones((4, 4))}, vmax=5, columns=5)
    assert axes.shape == (1, 1)


@pytest.mark.parametrize("number", figures.SCORE_FIGURES)
def test_a_score_figure_has_a_panel_per_experiment_and_measure_and_a_series_per_contrast(table, number):
    fig, axes, drawn = figures.score_figure(table, number)
    experiments, measures = figures.SCORE_FIGURES[number]
    assert axes.size == len(experiments) * len(measures)
    for ax in axes.flat:
        assert [label.get_text() for label in ax.get_xticklabels()] == [each.label for each in RESOLUTIONS]
        assert ax.get_legend_handles_labels()[1] == list(CONTRASTS)
        assert "(mm)" in ax.get_xlabel()
        assert "PSNR (dB)" in ax.get_ylabel() or "SSIM" in ax.get_ylabel()
    assert set(drawn.experiment) == {*experiments, "3D"}


@pytest.mark.parametrize("experiments", [["1a"], ["1c"], ["1a", "1c"], ["1b", "3"], ["6", "2"]])
@pytest.mark.parametrize("resolutions", [["4||0"], ["3||0", "5||1.5"], ["8||2"]])
def test_whatever_is_run_has_its_figure(table, experiments, resolutions):
    some = table[table.experiment.isin([*experiments, "3D"])]
    if resolutions == ["8||2"]:
        some = some.assign(resolution=some.resolution.replace("5||1.5", "8||2"))
    some = some[some.resolution.isin([*resolutions, "3D"])]
    shown = set()
    for number in figures.score_figures(experiments):
        fig, axes, drawn = figures.score_figure(some, number)
        assert [label.get_text() for label in axes[0, 0].get_xticklabels()] == resolutions
        shown |= {ax.get_title().removeprefix("Experiment ") for ax in axes.flat}
        fig.canvas.draw()
    assert shown == set(experiments)


def test_a_figure_of_nothing_that_was_run_is_refused(table):
    with pytest.raises(ValueError, match="number is 5: accepted are figures of what was run, 3, 4"):
        figures.score_figure(table[table.experiment == "1a"], 5)


def test_a_line_joins_the_means_over_subjects(table):
    _, axes, _ = figures.score_figure(table, 5)
    (line,) = [line for line in axes[0, 0].get_lines() if line.get_label() == "T1w"]
    np.testing.assert_allclose(line.get_ydata(), [30 - each.separation_mm + 1.5 for each in RESOLUTIONS])


def test_a_perfect_input_is_left_out_of_the_psnr_panel(table):
    _, axes, _ = figures.score_figure(table, 6)
    assert all(np.isfinite(line.get_ydata()).all() for line in axes[0, 0].get_lines())


def test_a_resolution_that_is_not_the_papers_is_drawn_too(table):
    other = table.assign(resolution=table.resolution.replace("5||1.5", "8||2"))
    _, axes, _ = figures.score_figure(other, 5)
    assert [label.get_text() for label in axes[0, 0].get_xticklabels()][-1] == "8||2"


def test_figure_2_keeps_the_pixels_it_shows():
    panels = {title: np.random.default_rng(number).random((5, 6)) for number, title in enumerate("abcdef")}
    fig, axes, drawn = figures.figure_2(panels)
    assert axes.shape == (2, 3)
    assert len(drawn) == 6 * 5
    np.testing.assert_allclose(drawn[drawn.panel == "c"].iloc[:, 2:], panels["c"], atol=5e-4)


def test_single_subjects_and_their_distribution_are_visible(table):
    _, axes, _ = figures.score_figure(table, 5)
    dots = [line for line in axes[0, 0].get_lines() if line.get_linestyle() == "None"]
    assert sum(len(line.get_xdata()) for line in dots) == 2 * 3 * 8
    assert not axes[0, 0].patches  # two subjects have no quartiles
    ten = pd.concat(
        [
            table[table.subject == 1].assign(subject=n, psnr_db=lambda rows, n=n: rows.psnr_db + n / 10)
            for n in range(10)
        ]
    )
    _, axes, _ = figures.score_figure(ten, 5)
    assert len(axes[0, 0].patches) == 3 * 8


def test_the_arms_without_harmonizer_and_the_ceiling_lie_in_grey_behind(table):
    _, axes, _ = figures.score_figure(table, 5)
    lines = axes[0, 0].get_lines()
    grey = [line for line in lines if line.get_color() in (drawing.GREY, "0.45")]
    assert len(grey) == 4
    assert max(line.get_zorder() for line in grey) < min(
        line.get_zorder() for line in lines if line.get_color() in drawing.COLOURS.values()
    )


@pytest.fixture
def attention():
    rows = [
        (
            subject,
            experiment,
            each.label,
            target,
            "axial",
            source,
            orientation,
            0.6 if source == target else 0.2,
        )
        for subject in (1, 2)
        for experiment, sources in EXPERIMENTS.items()
        for each in RESOLUTIONS
        for target in CONTRASTS
        for source, orientation in sources.items()
    ]
    return pd.DataFrame(
        rows,
        columns=["subject", "experiment", "resolution", "target", "plane", "source", "orientation", "weight"],
    )


def test_the_attention_has_a_row_per_target_and_a_column_per_experiment_with_a_3d_source(attention):
    _, axes, drawn = figures.attention_figure(attention)
    assert axes.shape == (3, 4)
    assert [ax.get_title() for ax in axes[0]] == [f"Experiment {n}" for n in "3456"]
    solid = {
        line.get_label(): line.get_linestyle()
        for line in axes[0, 0].get_lines()
        if line.get_label() in CONTRASTS
    }
    assert solid == {"T1w": "-", "T2w": "--", "FLAIR": "--"}
    assert set(drawn.experiment) == set("3456")
    # Sources of equal weight, here T2w and FLAIR, do not hide each other; the axis is no higher than needed.
    places = [line.get_xdata()[0] for line in axes[0, 0].get_lines() if line.get_label() in CONTRASTS]
    assert len(set(places)) == len(CONTRASTS)
    assert 0.6 < axes[0, 0].get_ylim()[1] < 1
    _, axes, _ = figures.attention_figure(attention[attention.experiment == "1a"])
    assert axes.shape == (3, 1)


def test_the_frequencies_show_both_arms_and_the_nyquist_of_the_slices():
    about = [
        (1, e, r.label, r.separation_mm, c, arm)
        for e in ("1b", "1c")
        for r in RESOLUTIONS
        for c in CONTRASTS
        for arm in ("input", "harmonized")
    ]
    cutoffs = pd.DataFrame(
        about, columns=["subject", "experiment", "resolution", "separation_mm", "contrast", "arm"]
    )
    cutoffs["cutoff_per_mm"] = 0.6 / cutoffs.separation_mm
    curves = cutoffs.merge(
        pd.DataFrame({"frequency_per_mm": [0.1, 0.2], "correlation": [0.9, 0.1]}), how="cross"
    )
    _, axes, drawn = figures.frequency_figure(curves, cutoffs)
    assert axes.shape == (2, 2)
    assert len(axes[0, 0].get_lines()) == 5  # two resolutions in two arms, and the level
    assert any(
        np.allclose(line.get_ydata(), [0.5 / each.separation_mm for each in RESOLUTIONS])
        for line in axes[1, 0].get_lines()
    )
    assert drawn is cutoffs


def test_the_ladder_joins_the_same_subjects_on_every_step(table):
    steps = pd.concat(
        [
            table.assign(transform=t, psnr_db=table.psnr_db - n)
            for n, t in enumerate(("rigid", "affine", "known"))
        ]
    )
    errors = pd.DataFrame(
        {
            "resolution": ["3||0", "5||1.5"] * 2,
            "transform": ["rigid"] * 2 + ["known"] * 2,
            "registration_error_mm": [0.1, 0.2, 0, 0],
        }
    )
    _, axes, drawn = figures.ladder_figure(steps, errors)
    assert [label.get_text() for label in axes[0, 0].get_xticklabels()] == ["known", "rigid", "affine"]
    (line,) = [line for line in axes[0, 0].get_lines() if line.get_label() == "T1w"]
    np.testing.assert_allclose(np.diff(line.get_ydata()), [2, -1])
    assert len(drawn) == 3 * 2 * 3 * 2
    assert axes[0, 2].get_legend_handles_labels()[1] == ["rigid"]


def test_a_dropped_contrast_is_drawn_as_a_target_and_not_as_a_source(table, attention):
    table = table[(table.arm != "input") | (table.contrast != "FLAIR")].assign(dropped="FLAIR")
    fig, axes, _ = figures.score_figure(table, 6)
    assert "without FLAIR" in fig.get_suptitle()
    assert axes[0, 0].get_legend_handles_labels()[1] == list(CONTRASTS)
    assert sorted(
        len(line.get_xdata()) for line in axes[0, 0].get_lines() if line.get_color() == drawing.GREY
    ) == [0, 0, 8]  # T1w is perfect
    _, axes, _ = figures.attention_figure(attention[attention.source != "FLAIR"])
    assert axes.shape == (3, 2)  # In experiments 5 and 6 nothing 3D is left.
    assert {line.get_label() for line in axes[0, 0].get_lines()} & set(CONTRASTS) == {"T1w", "T2w"}
    steps = pd.concat([table.assign(transform=each) for each in ("known", "rigid")])
    errors = pd.DataFrame({"resolution": ["3||0"], "transform": ["rigid"], "registration_error_mm": [0.1]})
    _, axes, _ = figures.ladder_figure(steps, errors)
    assert axes[0, 0].get_legend_handles_labels()[1] == list(CONTRASTS)


def test_the_forest_has_a_row_per_claim_with_its_verdict_and_is_in_margins():
    verdicts = pd.DataFrame(
        {
            "claim": ["C1", "C2", "C3"],
            "statement": ["a", "b", "c"],
            "verdict": ["supported", "contradicted", "undecided"],
            "sentence": ["", "", "Undecided: not run: x."],
            "comparison": ["p", "q", None],
        }
    )
    columns = ["claim", "comparison", "unit", "margin", "estimate", "low", "high"]
    rows = [
        ("C1", "p", "dB", 0.5, 1.0, 0.5, 1.5),
        ("C2", "q", "variance ratio", 1.5, 1.5**2, 1.5, 1.5**3),
        ("C2", "r", "variance ratio", 1.5, 1.0, 0.5, np.inf),
    ]
    _, ax, _ = verdict_figures.forest(verdicts, pd.DataFrame(rows, columns=columns))
    assert [label.get_text().split()[0] for label in ax.get_yticklabels()] == ["C1", "C2"]
    said = [text.get_text() for text in ax.texts]
    assert [text for text in said if text.split()[-1] in verdict_figures.VERDICTS] == [
        "✓ supported",
        "✗ contradicted",
    ]
    dots = [float(line.get_xdata()[0]) for line in ax.get_lines() if line.get_marker() == "o"]
    assert dots == pytest.approx([2, 2])


def test_the_figure_of_sharpness_marks_the_axis_that_was_interpolated_and_no_other():
    from helpers.cohort.examination import SPECTRAL_DROP, Sharpness

    frequency = np.linspace(0.04, 0.48, 23)
    ratio = np.ones((3, 23))
    ratio[2] = np.exp(-frequency * 6)
    names = ("left-right", "posterior-anterior", "inferior-superior")
    thick = Sharpness(names, frequency, ratio, ratio, np.ones(3), np.array([1, 1, 2.9]))
    sharp = Sharpness(names, frequency, np.ones((3, 23)), np.ones((3, 23)), np.ones(3), np.ones(3))
    _, axes = cohort_figures.sharpness({"T1w": thick, "FLAIR": sharp}, SPECTRAL_DROP)
    assert [text.get_text() for text in axes[1, 0].texts] == ["slices 2.9 mm apart"]
    assert len(axes[1, 1].texts) == 0
    assert axes[1, 0].get_ylim()[0] < ratio.min()


def test_a_quality_sheet_has_a_row_per_contrast_and_an_outline_in_every_panel():
    image, brain = np.zeros((20, 24, 22)), np.zeros((20, 24, 22), bool)
    brain[4:16, 4:20, 4:18] = True
    image[brain] = 1
    _, axes = cohort_figures.quality_sheet(
        {"T1w": image, "T2w": image}, {"brain": brain, "template": np.roll(brain, 1, 0)}, (10, 12, 11)
    )
    assert axes.shape == (2, 3)
    assert all(len(ax.collections) == 2 for ax in axes.flat)
    # What holds nothing is drawn without an outline, not refused.
    cohort_figures.quality_sheet({"T1w": image * 0}, {"brain": brain & False}, (10, 12, 11))


def test_a_notebook_shows_every_figure_not_its_first_alone():
    table = (
        f"pd.read_csv({str(layout.FIGURES / 'ten' / 'scores.csv')!r}, "
        f"dtype={{'experiment': str, 'resolution': str}})"
    )
    cells = [
        f"import pandas as pd\nfrom helpers.analysis import figures\ntable = {table}",
        *(f"figures.score_figure(table, {n});" for n in (3, 5)),
    ]
    executed = nbclient.execute(
        nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells]),
        kernel_name="python3",
    )
    shown = [[kind for output in cell.outputs for kind in output.get("data", {})] for cell in executed.cells]
    assert ["image/png" in kinds for kinds in shown] == [False, True, True]
