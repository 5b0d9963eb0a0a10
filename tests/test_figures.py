import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from helpers import figures
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
                        psnr = np.inf if perfect else 30 - each.separation_mm + 3 * (subject == 2) - 5 * (arm == "input")
                        rows.append((subject, experiment, each.label, contrast, arm, "brain", psnr, np.nan, psnr / 40))
        rows += [(subject, "3D", "3D", contrast, "ceiling", "brain", 26.0, np.nan, 0.9) for contrast in CONTRASTS]
    columns = ["subject", "experiment", "resolution", "contrast", "arm", "region", "psnr_db", "ssim", "ssim_axial"]
    return pd.DataFrame(rows, columns=columns)


def test_slices_hang_as_radiologists_hang_them():
    # A volume stored LPS, with a bright voxel to the patient's left, at the front, and at the top.
    volume = np.zeros((10, 12, 14))
    volume[9, 0, 13] = 1  # left, anterior, superior
    where = {plane: tuple(np.argwhere(figures.upright(volume, plane, index) == 1)[0]) for plane, index in (("axial", 13), ("coronal", 0), ("sagittal", 9))}
    assert where["axial"] == (0, 9)  # front is up, the patient's left is on the right
    assert where["coronal"] == (0, 9)  # top is up
    assert where["sagittal"] == (0, 0)  # front is on the left


def test_slices_share_one_look_up_table():
    fig, axes = figures.slices({"a": np.zeros((4, 4)), "b": np.full((4, 4), 9.0)}, vmax=5, columns=2)
    assert {image.get_clim() for ax in axes.flat for image in ax.get_images()} == {(0, 5)}


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


def test_the_figure_of_sharpness_marks_the_axis_that_was_interpolated_and_no_other():
    from helpers.preparation import SPECTRAL_DROP, Sharpness

    frequency = np.linspace(0.04, 0.48, 23)
    ratio = np.ones((3, 23))
    ratio[2] = np.exp(-frequency * 6)
    names = ("left-right", "posterior-anterior", "inferior-superior")
    thick = Sharpness(names, frequency, ratio, ratio, np.ones(3), np.array([1, 1, 2.9]))
    sharp = Sharpness(names, frequency, np.ones((3, 23)), np.ones((3, 23)), np.ones(3), np.ones(3))
    _, axes = figures.sharpness({"T1w": thick, "FLAIR": sharp}, SPECTRAL_DROP)
    assert [text.get_text() for text in axes[1, 0].texts] == ["slices 2.9 mm apart"]
    assert len(axes[1, 1].texts) == 0
    assert axes[1, 0].get_ylim()[0] < ratio.min()


def test_a_quality_sheet_has_a_row_per_contrast_and_an_outline_in_every_panel():
    image, brain = np.zeros((20, 24, 22)), np.zeros((20, 24, 22), bool)
    brain[4:16, 4:20, 4:18] = True
    image[brain] = 1
    _, axes = figures.quality_sheet({"T1w": image, "T2w": image}, {"brain": brain, "template": np.roll(brain, 1, 0)}, (10, 12, 11))
    assert axes.shape == (2, 3)
    assert all(len(ax.collections) == 2 for ax in axes.flat)
    # What holds nothing is drawn without an outline, not refused.
    figures.quality_sheet({"T1w": image * 0}, {"brain": brain & False}, (10, 12, 11))
