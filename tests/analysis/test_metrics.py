"""PSNR and SSIM: what they must be, then scikit-image's numbers, then faults."""

import math

import numpy as np
import pytest
from scipy import ndimage
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from helpers.analysis import metrics

SETTING = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "full": True}
COLUMNS = ["region", "psnr_db", "ssim", "ssim_axial", "ssim_coronal", "ssim_sagittal", "data_range"]


def ball(shape=(44, 48, 46), radius=15, centre=None):
    """Textured tissue inside a ball, exactly 0 outside."""
    centre = np.array(shape) / 2 if centre is None else np.array(centre)
    inside = sum((i - c) ** 2 for i, c in zip(np.indices(shape), centre, strict=True)) < radius**2
    texture = ndimage.gaussian_filter(np.random.default_rng(0).standard_normal(shape), 2)
    return np.where(inside, 500 + 900 * texture, 0).clip(0).astype(np.float32), inside


def noisy(volume, sd, seed=1):
    noise = np.random.default_rng(seed).normal(0, sd, volume.shape)
    return np.where(volume > 0, volume + noise, 0).astype(np.float32)


# Properties


def test_an_image_against_itself_is_perfect_to_the_bit():
    volume, brain = ball()
    for row in metrics.score(volume, volume, brain):
        assert row["psnr_db"] == math.inf
        assert [row[column] for column in COLUMNS[2:6]] == [1, 1, 1, 1]


def test_a_known_error_gives_its_psnr():
    volume, brain = ball()
    assert metrics.psnr(volume, volume + 0.1 * 800, 800) == pytest.approx(20, abs=1e-4)
    half = volume.copy()
    half[brain] += 8
    assert metrics.psnr(volume, half, 800, brain) == pytest.approx(40, abs=1e-4)
    assert metrics.psnr(volume, half, 800) == pytest.approx(40 - 10 * np.log10(brain.mean()), abs=1e-4)


def test_the_smallest_difference_is_not_taken_for_equality():
    volume, _ = ball()
    other = volume.copy()
    other[0, 0, 0] = 1e-30
    assert math.isfinite(metrics.psnr(volume, other, 500))


def test_units_do_not_matter():
    volume, brain = ball()
    worse = noisy(volume, 60)
    for row, scaled in zip(
        metrics.score(volume, worse, brain), metrics.score(volume * 1e-3, worse * 1e-3, brain), strict=True
    ):
        for column in COLUMNS[1:6]:
            assert scaled[column] == pytest.approx(row[column], rel=1e-4)


def test_more_noise_scores_worse_in_every_column():
    volume, brain = ball()
    scores = [metrics.score(volume, noisy(volume, sd), brain) for sd in (10, 30, 90)]
    for region in range(2):
        for column in COLUMNS[1:6]:
            values = [score[region][column] for score in scores]
            assert values[0] > values[1] > values[2]


def test_neither_metric_depends_on_the_order_of_the_two_images():
    volume, brain = ball()
    worse = noisy(volume, 40)
    assert metrics.psnr(volume, worse, 900, brain) == metrics.psnr(worse, volume, 900, brain)
    np.testing.assert_allclose(
        metrics.ssim_map(volume, worse, 900), metrics.ssim_map(worse, volume, 900), atol=1e-6
    )


def test_a_blurred_image_loses_structure_that_a_brighter_one_keeps():
    volume, brain = ball()
    brighter = volume * 1.1
    blurred = np.where(brain, ndimage.gaussian_filter(volume, 1.5), 0).astype(np.float32)
    assert metrics.ssim(volume, brighter, 900, brain) > 0.97 > 0.9 > metrics.ssim(volume, blurred, 900, brain)


# The map


@pytest.mark.parametrize(
    "centre, radius", [((22, 24, 23), 14), ((4, 24, 40), 9), ((22, 24, 23), 40), ((0, 0, 0), 3)]
)
@pytest.mark.parametrize("axis", [None, 0, 1, 2])
def test_the_map_is_that_of_scikit_image_inside_and_outside_of_the_box(axis, centre, radius):
    volume, _ = ball(radius=radius, centre=centre)
    volume /= volume.max()
    worse = noisy(volume, 0.05)
    expected = structural_similarity(volume, worse, data_range=1.0, channel_axis=axis, **SETTING)[1]
    # Equal to the bit, so that leaving out the empty background is exact.
    np.testing.assert_array_equal(metrics.ssim_map(volume, worse, 1.0, axis), expected)


def test_content_of_only_one_image_is_content():
    empty, _ = ball(radius=0)
    volume, _ = ball()
    assert metrics.ssim(empty, volume, 900) < 0.95
    assert metrics.ssim(volume, empty, 900) == pytest.approx(metrics.ssim(empty, volume, 900), abs=1e-6)


def test_two_empty_images_are_equal():
    empty = np.zeros((20, 20, 20))
    assert metrics.psnr(empty, empty, 1.0) == math.inf
    assert metrics.ssim(empty, empty, 1.0) == 1


def test_the_map_of_slices_is_that_of_each_slice_alone():
    volume, _ = ball()
    worse = noisy(volume, 30)
    whole = metrics.ssim_map(volume, worse, 900, axis=1)
    some = metrics.ssim_map(volume[:, 3::11], worse[:, 3::11], 900, axis=1)
    np.testing.assert_allclose(some, whole[:, 3::11], atol=1e-6)
    assert np.abs(metrics.ssim_map(volume, worse, 900) - whole).max() > 0.01


def test_the_mean_over_a_mask_is_that_of_the_map():
    volume, brain = ball()
    worse = noisy(volume, 30)
    similarity = metrics.ssim_map(volume, worse, 900).astype(float)
    assert metrics.ssim(volume, worse, 900, brain) == pytest.approx(similarity[brain].mean())
    assert metrics.ssim(volume, worse, 900) == pytest.approx(similarity.mean())


def test_golden_numbers():
    volume, brain = ball()
    full, inside = metrics.score(volume, noisy(volume, 50), brain)
    assert [full[c] for c in COLUMNS[1:6]] == pytest.approx(
        [31.419046, 0.965340, 0.955233, 0.956891, 0.955723], rel=1e-4
    )
    assert [inside[c] for c in COLUMNS[1:6]] == pytest.approx(
        [23.004879, 0.766391, 0.694519, 0.706025, 0.697945], rel=1e-4
    )


# The table


def test_score_gives_a_row_per_region_with_the_range_of_the_reference():
    volume, brain = ball()
    rows = metrics.score(volume, noisy(volume, 30), brain)
    assert [row["region"] for row in rows] == ["full", "brain"]
    assert all(list(row) == COLUMNS for row in rows)
    assert all(row["data_range"] == volume.max() for row in rows)
    assert rows[0]["psnr_db"] > rows[1]["psnr_db"] and rows[0]["ssim"] > rows[1]["ssim"]


@pytest.mark.parametrize("axis, column", [(0, "ssim_sagittal"), (1, "ssim_coronal"), (2, "ssim_axial")])
def test_a_preview_knows_its_own_plane_only(axis, column):
    volume, brain = ball()
    worse = noisy(volume, 30)
    some = tuple(slice(5, None, 11) if a == axis else slice(None) for a in range(3))
    whole = metrics.score(volume, worse, brain)
    for row, complete in zip(
        metrics.score(volume[some], worse[some], brain[some], slice_axis=axis), whole, strict=True
    ):
        numbers = {name for name in COLUMNS[2:6] if not math.isnan(row[name])}
        assert numbers == {column}
        assert row[column] == pytest.approx(complete[column], abs=0.05)
        assert row["psnr_db"] == pytest.approx(complete["psnr_db"], abs=1.5)


def test_the_range_is_the_maximum_of_the_foreground():
    assert metrics.data_range(np.array([[[-3.0, 0, 7]]])) == 7


# Faults


@pytest.mark.parametrize(
    "change, message",
    [
        ({"image": np.ones((20, 20, 21))}, r"image has shape \(20, 20, 21\)"),
        ({"image": np.full((20, 20, 20), np.nan)}, "image has 8000 voxels that are NaN"),
        ({"reference": np.ones((20, 20))}, "reference has 2 dimensions"),
        ({"reference": np.zeros((20, 20, 20))}, "reference has no foreground"),
        ({"brain": np.zeros((20, 20, 20))}, "mask is empty"),
        ({"brain": np.ones((20, 20, 2))}, r"mask has shape \(20, 20, 2\)"),
        ({"slice_axis": 3}, "slice_axis is 3: accepted are None, 0, 1, 2"),
    ],
)
def test_score_names_what_is_wrong(change, message):
    ones = np.ones((20, 20, 20))
    with pytest.raises(ValueError, match=message):
        metrics.score(**{"reference": ones, "image": ones, "brain": ones} | change)


@pytest.mark.parametrize("peak", [0, -1, math.nan, math.inf])
def test_an_impossible_range_is_refused(peak):
    ones = np.ones((12, 12, 12))
    for metric in (metrics.psnr, metrics.ssim_map):
        with pytest.raises(ValueError, match="data_range is"):
            metric(ones, ones, peak)


def test_images_narrower_than_the_window_are_refused_where_the_window_reaches():
    thin = np.ones((20, 20, 4))
    with pytest.raises(ValueError, match="11 voxels or more"):
        metrics.ssim_map(thin, thin, 1.0)
    assert (metrics.ssim_map(thin, thin, 1.0, axis=2) == 1).all()
    with pytest.raises(ValueError, match="axis is 5"):
        metrics.ssim_map(thin, thin, 1.0, axis=5)


# Frequencies


def resolved(volume, axis, limit):
    """The volume without what is beyond a frequency (cycles/mm) along one axis."""
    spectrum = np.fft.rfft(volume, axis=axis)
    keep = np.fft.rfftfreq(volume.shape[axis]) <= limit
    return np.fft.irfft(
        spectrum * np.expand_dims(keep, [a for a in range(3) if a != axis]), volume.shape[axis], axis=axis
    )


@pytest.fixture(scope="module")
def texture():
    volume = np.random.default_rng(5).normal(size=(104, 112, 108)) + 3
    _, inside = ball(volume.shape, radius=50)
    return volume, metrics.brain_window(inside)


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("limit", [0.1, 0.2, 0.35])
def test_the_cutoff_is_where_the_frequencies_end_and_only_along_their_axis(texture, axis, limit):
    volume, window = texture
    blurred = resolved(volume, axis, limit)
    assert metrics.cutoff(*metrics.fourier_correlation(volume, blurred, window, axis)) == pytest.approx(
        limit, abs=0.03
    )
    for other in {0, 1, 2} - {axis}:
        assert metrics.cutoff(*metrics.fourier_correlation(volume, blurred, window, other)) > 0.4


@pytest.mark.parametrize("slice_axis, axis", [(2, 0), (2, 1), (0, 2)])
def test_a_preview_finds_the_cutoff_within_its_slices(texture, slice_axis, axis):
    volume, window = texture
    some = tuple(slice(5, None, 7) if a == slice_axis else slice(None) for a in range(3))
    blurred = resolved(volume, axis, 0.2)
    curve = metrics.fourier_correlation(volume[some], blurred[some], window[some], axis, slice_axis)
    assert metrics.cutoff(*curve) == pytest.approx(0.2, abs=0.03)
    with pytest.raises(ValueError, match="not the axis along which slices were skipped"):
        metrics.fourier_correlation(volume[some], blurred[some], window[some], slice_axis, slice_axis)


def test_a_volume_correlates_with_itself_at_every_frequency_and_with_another_at_none(texture):
    volume, window = texture
    frequency, same = metrics.fourier_correlation(volume, 7 * volume + 2, window, 0)
    np.testing.assert_allclose(same, 1, atol=1e-6)
    assert 0.005 < frequency[0] < 0.02 and 0.48 < frequency[-1] <= 0.5
    other = np.random.default_rng(6).normal(size=volume.shape) + 3
    assert np.abs(metrics.fourier_correlation(volume, other, window, 0)[1][15:]).max() < 0.25


def test_an_edge_that_two_images_share_does_not_pass_for_resolution():
    # Two brains of one outline whose insides have nothing in common.
    _, inside = ball((66, 72, 70), radius=30)
    a, b = (np.where(inside, 5 + np.random.default_rng(seed).normal(size=inside.shape), 0) for seed in (7, 8))
    tapered = metrics.fourier_correlation(a, b, metrics.brain_window(inside), 2)[1]
    cut = metrics.fourier_correlation(a, b, np.ones(inside.shape), 2)[1]
    assert metrics.cutoff(np.arange(1, len(tapered) + 1) / 100, tapered) < 0.03
    assert cut[:10].mean() > 0.9


def test_the_window_is_1_inside_and_0_at_the_edge_and_outside():
    _, inside = ball(radius=16)
    window = metrics.brain_window(inside, taper_mm=6)
    assert (window[~inside] == 0).all()
    assert window.max() == 1
    assert window[22, 24, 23] == 1
    assert (window[inside] > 0).all()


def test_a_dip_at_low_frequencies_is_no_cutoff():
    frequency = np.array([0.1, 0.2, 0.3, 0.4])
    assert metrics.cutoff(frequency, np.array([0.3, 0.8, 0.2, 0.1])) == pytest.approx(0.25)
    assert metrics.cutoff(frequency, np.ones(4)) == 0.4
    assert metrics.cutoff(frequency, np.zeros(4)) == pytest.approx(0.05)


# scikit-image


def test_psnr_and_ssim_are_those_of_scikit_image_to_1e_10():
    volume, _ = ball()
    worse = noisy(volume, 30)
    peak = metrics.data_range(volume)
    expected = peak_signal_noise_ratio(volume.astype(float), worse.astype(float), data_range=peak)
    assert metrics.psnr(volume, worse, peak) == pytest.approx(expected, abs=1e-10)
    # SSIM of images whose maximum is 1, as scikit-image gets them: it computes float32 images in float32, and
    # so do we.
    volume, worse = volume / volume.max(), worse / volume.max()
    for axis in (None, 0, 1, 2):
        expected = structural_similarity(volume, worse, data_range=1.0, channel_axis=axis, **SETTING)[1].mean(
            dtype=np.float64
        )
        assert metrics.ssim(volume, worse, 1.0, axis=axis) == pytest.approx(expected, abs=1e-10)
