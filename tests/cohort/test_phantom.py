"""The embedded brains and the semi-synthetic subjects made from it."""

import dataclasses
import functools

import numpy as np
import pytest
from edt import edt
from scipy import ndimage

from helpers import grid
from helpers.cohort import phantom, scanners
from helpers.study import CONTRASTS

SEED, SCANNER = 2, "study-7"  # an ordinary protocol of 3 T


@pytest.fixture(scope="module")
def subject():
    return phantom.subject(SEED)


@pytest.fixture(scope="module")
def truth(subject):
    """The three contrasts, noise-free."""
    return {contrast: phantom.render(subject, scanners.scanner(SCANNER), contrast) for contrast in CONTRASTS}


@functools.cache
def warp(seed):
    return phantom.warp(seed)


def median(image, subject, tissue, above=0.95):
    return float(np.median(image[subject.fractions[tissue] > above]))


# The embedded brains


@pytest.mark.parametrize("name", phantom.ANATOMIES)
def test_the_embedded_fractions_sum_to_one_in_one_piece_without_holes(name):
    total = sum(phantom.anatomy(name).values())
    brain = total > 0.5
    assert total.shape == grid.SHAPE
    assert np.allclose(total[brain], 1, atol=1e-5) and not total[~brain].any()
    assert_is_one_piece_without_holes(brain)
    for axis in range(3):
        assert all(
            np.array_equal(ndimage.binary_fill_holes(plane), plane) for plane in np.moveaxis(brain, axis, 0)
        )
    # Nothing touches the edge of the grid, so no warp of a few mm cuts the brain off.
    assert all(min(where.min(), n - 1 - where.max()) > 4 for where, n in zip(np.nonzero(brain), grid.SHAPE))


@pytest.mark.parametrize("name", phantom.ANATOMIES)
def test_an_embedded_brain_has_the_volumes_of_an_adult_brain(name):
    litres = {tissue: float(fraction.sum()) / 1e6 for tissue, fraction in phantom.anatomy(name).items()}
    assert 0.40 < litres["CGM"] < 0.65 and 0.40 < litres["WM"] < 0.65
    assert 0.02 < litres["SGM"] < 0.08 and 0.08 < litres["CBM"] < 0.16
    assert 0.005 < litres["VCSF"] < 0.04
    assert 0.10 < litres["CSF"] < 0.40


def test_the_embedded_brains_are_two_people():
    one, other = (phantom.anatomy(name)["CGM"] > 0.5 for name in phantom.ANATOMIES)
    dice = 2 * (one & other).sum() / (one.sum() + other.sum())
    assert 0.2 < dice < 0.7
    with pytest.raises(ValueError, match="anatomy is 'S2'.*accepted are S1, Colin27"):
        phantom.anatomy("S2")


@pytest.mark.parametrize("name", phantom.ANATOMIES)
def test_structures_lie_where_they_do_in_a_head(name):
    """Mean height in mm and share on the left: nothing is upside down, mislabelled across the tentorium, or
    one-sided."""
    fractions = phantom.anatomy(name)
    z = grid.AFFINE[2, 2] * np.arange(grid.SHAPE[2]) + grid.AFFINE[2, 3]
    height = {tissue: float((part.sum((0, 1)) * z).sum() / part.sum()) for tissue, part in fractions.items()}
    assert height["CBM"] < -20 < height["SGM"] < height["VCSF"] + 15 and height["CGM"] > 0
    assert not fractions["CBM"][:, :, z > 15].any() and not fractions["VCSF"][:, :, z < -40].any()
    for tissue in ("CGM", "WM", "SGM", "CBM", "VCSF"):
        assert 0.4 < fractions[tissue][:96].sum() / fractions[tissue].sum() < 0.6


def assert_is_one_piece_without_holes(mask):
    assert ndimage.label(mask)[1] == 1
    assert np.array_equal(ndimage.binary_fill_holes(mask), mask)
    # Notches: closing by 2 mm adds next to nothing.
    closed = edt(edt(~mask) <= 2) > 2
    assert (closed & ~mask).sum() < 0.005 * mask.sum()


# A subject


def test_fractions_sum_to_one_inside_the_brain_and_to_zero_outside(subject):
    total = sum(subject.fractions.values())
    assert np.allclose(total[subject.brain], 1, atol=1e-5)
    assert not total[~subject.brain].any()
    assert min(fraction.min() for fraction in subject.fractions.values()) >= 0


def test_the_mask_of_a_subject_is_one_piece_without_holes(subject):
    assert_is_one_piece_without_holes(subject.brain)


def jacobian(coordinates):
    """Jacobian determinant of a map (3, X, Y, Z): the local volume ratio; negative for a mirrored brain."""
    (a, b, c), (d, e, f), (g, h, i) = (np.gradient(part) for part in coordinates)
    return a * (e * i - f * h) - b * (d * i - f * g) + c * (d * h - e * g)


@pytest.mark.parametrize("seed", [2, 11])  # 2 is not mirrored, 11 is
def test_the_warp_is_invertible(seed):
    determinant = jacobian(warp(seed)[:, 16:176, 8:216, 6:176])
    mirrored = seed == 11
    assert (determinant * (-1 if mirrored else 1)).min() > 0.05


def test_another_seed_gives_another_shape():
    one, other = warp(SEED), warp(7)  # neither is mirrored
    assert 1 < np.abs(one - other).mean() < 15


# The images of a cohort are: `tests/pipeline/test_steps.py`.
@pytest.mark.slow
def test_the_same_seed_gives_the_same_bytes(subject, truth):
    again = phantom.subject(SEED)
    assert np.array_equal(again.brain, subject.brain) and np.array_equal(again.variation, subject.variation)
    for tissue, fraction in subject.fractions.items():
        np.testing.assert_array_equal(fraction, again.fractions[tissue])
    scanner = scanners.scanner(SCANNER)
    np.testing.assert_array_equal(phantom.render(again, scanner, "FLAIR"), truth["FLAIR"])
    np.testing.assert_array_equal(
        phantom.render(again, scanner, "T2w", 5), phantom.render(subject, scanner, "T2w", 5)
    )


@pytest.mark.slow
def test_a_subject_of_the_second_brain_is_whole_and_names_it(subject):
    other = phantom.subject(SEED, "Colin27")
    assert [phantom.anatomy_of(seed) for seed in (SEED, SEED + 1)] == ["S1", "Colin27"]
    assert subject.anatomy == "S1" and other.anatomy == "Colin27"
    total = sum(other.fractions.values())
    assert np.allclose(total[other.brain], 1, atol=1e-5) and not total[~other.brain].any()
    assert_is_one_piece_without_holes(other.brain)
    assert np.mean(other.brain != subject.brain) > 0.005


def test_lesions_are_many_small_and_in_the_white_matter_by_the_ventricles(subject):
    number = ndimage.label(subject.lesions)[1]
    millilitres = subject.lesions.sum() / 1000
    assert 5 <= number <= 80 and 0.3 < millilitres < 40
    assert not (subject.lesions & ~subject.brain).any()
    to_ventricle = edt(subject.fractions["VCSF"] < 0.5)
    white = subject.fractions["WM"] > 0.9
    assert np.median(to_ventricle[subject.lesions]) < np.median(to_ventricle[white]) / 2


# The ends of the range of anatomies


@pytest.fixture(
    scope="module", params=[(149, "S1"), (130, "Colin27")]
)  # wide ventricles and sulci; a big head, strongly deformed
def unusual(request):
    return phantom.subject(*request.param)


@pytest.mark.slow
def test_an_unusual_subject_is_a_partition_in_one_piece_without_holes(unusual):
    total = sum(unusual.fractions.values())
    assert np.allclose(total[unusual.brain], 1, atol=1e-5) and not total[~unusual.brain].any()
    assert min(fraction.min() for fraction in unusual.fractions.values()) >= 0
    assert_is_one_piece_without_holes(unusual.brain)


@pytest.mark.slow
def test_an_unusual_subject_has_the_volumes_of_some_adult(unusual):
    litres = {tissue: float(fraction.sum()) / 1e6 for tissue, fraction in unusual.fractions.items()}
    assert 0.9 < unusual.brain.sum() / 1e6 < 2.1
    assert 0.25 < litres["CGM"] < 0.80 and 0.30 < litres["WM"] + litres["lesion"] < 0.85
    assert 0.005 < litres["VCSF"] < 0.12
    assert 0.10 < litres["CSF"] + litres["VCSF"] < 0.60
    if unusual.anatomy == "S1":  # drawn near the upper end of both
        assert litres["VCSF"] > 0.025
        assert litres["CSF"] + litres["VCSF"] > 0.22 * unusual.brain.sum() / 1e6


@pytest.mark.parametrize("seed, name", [(149, "S1"), (130, "Colin27")])
def test_an_unusual_warp_is_invertible(seed, name):
    determinant = jacobian(phantom.warp(seed, name)[:, 16:176, 8:216, 6:176])
    assert np.abs(determinant).min() > 0.005 and determinant.min() * determinant.max() > 0


# Its images


@pytest.mark.parametrize("noise_seed", [None, 0])
def test_the_background_is_exactly_zero(subject, truth, noise_seed):
    image = (
        truth["T1w"]
        if noise_seed is None
        else phantom.render(subject, scanners.scanner(SCANNER), "T1w", noise_seed)
    )
    assert image.dtype == np.float32 and image.shape == grid.SHAPE
    assert not image[~subject.brain].any()
    assert image[subject.brain].min() > 0 and image.max() < 2000


def test_a_contrast_without_signal_equation_is_refused():
    with pytest.raises(ValueError, match="^contrast is 'PDw': accepted are T1w, T2w and FLAIR"):
        scanners.signal(scanners.scanner(SCANNER), "PDw", *scanners.relaxation("WM", 3.0))


def test_tissues_have_the_order_of_each_contrast(subject, truth):
    level = {c: {t: median(truth[c], subject, t) for t in ("CGM", "WM", "VCSF", "SGM")} for c in CONTRASTS}
    assert level["T1w"]["WM"] > level["T1w"]["SGM"] > level["T1w"]["CGM"] > 1.5 * level["T1w"]["VCSF"]
    assert level["T2w"]["VCSF"] > 1.5 * level["T2w"]["CGM"] > 1.5 * level["T2w"]["WM"]
    assert level["FLAIR"]["CGM"] > level["FLAIR"]["WM"]


def test_lesions_are_dark_on_t1w_and_bright_on_t2w_and_flair(subject, truth):
    ratio = {
        c: np.median(truth[c][subject.fractions["lesion"] > 0.8]) / median(truth[c], subject, "WM")
        for c in CONTRASTS
    }
    assert ratio["T1w"] < 0.85
    assert 1.3 < ratio["T2w"] < 2.2
    assert 1.25 < ratio["FLAIR"] < 2.0


def test_flair_suppresses_fluid(subject, truth):
    assert median(truth["FLAIR"], subject, "VCSF") < 0.4 * median(truth["FLAIR"], subject, "WM")


@pytest.mark.parametrize("contrast", ["T2w", "FLAIR"])
def test_no_contrast_is_a_function_of_t1w(subject, truth, contrast):
    """The best function of the T1w intensity (mean of the other image per intensity bin) leaves much
    unexplained."""
    inner = ndimage.binary_erosion(subject.brain, iterations=3)
    t1w, other = truth["T1w"][inner], truth[contrast][inner]
    tissue = (t1w > 0.5 * t1w.max()) & (
        t1w < 0.95 * t1w.max()
    )  # fluid, bright or dark everywhere, would explain too much
    t1w, other = t1w[tissue], other[tissue]
    bins = np.digitize(t1w, np.quantile(t1w, np.linspace(0, 1, 201)[1:-1]))
    mean = np.bincount(bins, other) / np.bincount(bins)
    unexplained = np.var(other - mean[bins]) / np.var(other)
    assert unexplained > 0.10


def test_without_a_noise_seed_there_is_neither_noise_nor_bias_field(subject, truth):
    white = subject.fractions["WM"] > 0.999
    quiet = dataclasses.replace(subject, variation=np.zeros_like(subject.variation))
    image = phantom.render(quiet, scanners.scanner(SCANNER), "T1w")
    assert np.ptp(image[white]) < 0.01 * image[white].mean()
    assert np.array_equal(truth["T1w"], phantom.render(subject, scanners.scanner(SCANNER), "T1w"))


def test_noise_has_the_size_the_scanner_says(subject, truth):
    scanner = dataclasses.replace(scanners.scanner(SCANNER), bias=0.0)
    noisy = [phantom.render(subject, scanner, "T1w", seed) for seed in (1, 2)]
    white = subject.fractions["WM"] > 0.99
    quiet = dataclasses.replace(subject, variation=np.zeros_like(subject.variation))
    sigma = np.median(phantom.render(quiet, scanner, "T1w")[white]) / scanner.snr["T1w"]
    # Far above the noise, Rician noise is Gaussian, with the deviation of one channel.
    assert np.std((noisy[0] - truth["T1w"])[white]) == pytest.approx(sigma, rel=0.02)
    assert np.std((noisy[0] - noisy[1])[white]) == pytest.approx(np.sqrt(2) * sigma, rel=0.02)


def test_no_axis_is_blurrier_than_another(truth):
    """Energy of first differences, which an interpolated thick-slice scan lacks along one axis."""
    for image in truth.values():
        inside = ndimage.binary_erosion(image > 0, iterations=3)
        rough = [
            np.mean(np.square(np.diff(image, 2, axis, append=0, prepend=0))[inside]) for axis in range(3)
        ]
        assert max(rough) < 1.6 * min(rough)


# Signal equations


def test_a_long_repetition_time_and_no_echo_time_give_proton_density():
    assert scanners.tse_signal(900.0, 72.0, 0.7, tr=1e6, te=0, train=0) == pytest.approx(0.7)
    assert scanners.flair_signal(900.0, 72.0, 0.7, tr=1e6, ti=1e5, te=0, train=0) == pytest.approx(0.7)


def test_fluid_vanishes_at_its_null():
    ti = scanners.fluid_null(4200.0, 9000.0, 400.0)
    assert scanners.flair_signal(
        4200.0, 1800.0, 1.0, tr=9000.0, ti=ti, te=100.0, train=400.0
    ) == pytest.approx(0, abs=1e-12)


def test_mprage_agrees_with_a_simulation_pulse_by_pulse():
    t1, density = 1200.0, 0.8
    sequence = dict(tr=2300.0, ti=900.0, flip=9.0, echo_spacing=7.0, echoes=160)
    angle, m, half = np.radians(sequence["flip"]), density, 7.0 * 160 / 2

    def relax(m, ms):
        return density + (m - density) * np.exp(-ms / t1)

    for _ in range(30):
        m = relax(-m, sequence["ti"] - half)
        for echo in range(sequence["echoes"]):
            if echo == sequence["echoes"] // 2:
                signal = abs(m) * np.sin(angle)
            m = relax(m * np.cos(angle), sequence["echo_spacing"])
        m = relax(m, sequence["tr"] - sequence["ti"] - half)
    assert scanners.mprage_signal(t1, density, **sequence) == pytest.approx(signal, rel=0.01)


# Scanners and splits


def test_every_scanner_is_itself_and_no_other():
    names = (
        [f"study-{n}" for n in phantom.STUDY_SEEDS]
        + ["target"]
        + [f"{use}-{n}" for use in ("test", "train") for n in range(40)]
    )
    made = [scanners.scanner(name) for name in names]
    assert made == [scanners.scanner(name) for name in names]
    parameters = {(s.t1w["tr"], s.tse["te"], s.flair["tr"], *s.snr.values()) for s in made}
    assert len(parameters) == len(names)


def test_the_splits_do_not_overlap():
    assert list(phantom.STUDY_SEEDS) == list(range(1, 11))
    assert [phantom.anatomy_of(seed) for seed in phantom.STUDY_SEEDS].count("Colin27") == 5
    assert phantom.TARGET_SEED not in phantom.STUDY_SEEDS
    assert phantom.FIRST_TRAINING_SEED > max(*phantom.STUDY_SEEDS, phantom.TARGET_SEED)


# Faults


@pytest.mark.parametrize(
    "name", ["study-0", "study-11", "train", "train-", "train--1", "train-01", "Target", "", None]
)
def test_an_unknown_scanner_is_named(name):
    with pytest.raises(ValueError, match="scanner is .*accepted are"):
        scanners.scanner(name)


@pytest.mark.parametrize("seed", [-1, 1.5, "1", None, True])
def test_a_seed_that_is_none_is_named(seed):
    with pytest.raises(ValueError, match="seed is .*accepted are"):
        phantom.subject(seed)


def test_an_anatomy_that_is_none_is_named():
    with pytest.raises(ValueError, match="anatomy is 'Colin'.*accepted are S1, Colin27"):
        phantom.subject(SEED, "Colin")


def test_an_unknown_contrast_and_a_negative_noise_seed_are_named(subject):
    with pytest.raises(ValueError, match="contrast is 'PD'.*accepted are T1w, T2w, FLAIR"):
        phantom.render(subject, scanners.scanner("target"), "PD")
    with pytest.raises(ValueError, match="seed is -3.*accepted are"):
        phantom.render(subject, scanners.scanner("target"), "T1w", -3)
