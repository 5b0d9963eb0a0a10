"""Fusion that knows how its sources were sliced: the weights follow from the physics of the acquisition."""

import numpy as np
import pytest
import torch

from helpers.grid import AXIS
from helpers.haca3 import resolution
from helpers.haca3.networks import SLICE
from helpers.haca3.resolution import Acquisition
from helpers.study import ORIENTATIONS, Resolution

THICK = Resolution(5, 1.5)
LENGTH = {"axial": 192, "coronal": 224, "sagittal": 192}
ALPHA = np.array([0.2, 0.5, 0.3])
ROWS, COLUMNS = np.fft.fftfreq(SLICE)[:, None], np.fft.rfftfreq(SLICE)[None]


def weights(acquisitions, plane="axial", index=95, alpha=ALPHA):
    relative = resolution.relative_weights(acquisitions, plane, index, LENGTH[plane], alpha)
    return relative * alpha[:, None, None]


@pytest.mark.parametrize("plane", ORIENTATIONS)
def test_weights_sum_to_one_at_every_frequency(plane):
    mixed = [Acquisition("axial", THICK), Acquisition("sagittal", Resolution(3, 0)), None]
    total = weights(mixed, plane).sum(axis=0)
    np.testing.assert_allclose(total, 1, rtol=1e-5)


def test_where_all_sources_are_3d_the_attention_decides():
    np.testing.assert_allclose(
        weights([None, None, None]),
        np.broadcast_to(ALPHA[:, None, None], (3, SLICE, SLICE // 2 + 1)),
        rtol=1e-6,
    )


@pytest.mark.parametrize("plane", ORIENTATIONS)
@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_at_frequency_zero_nothing_moves(plane, orientation):
    moved = weights([Acquisition(orientation, THICK), None, None], plane)[:, 0, 0]
    np.testing.assert_allclose(moved, ALPHA, atol=0.002)


@pytest.mark.parametrize("orientation, along", [("sagittal", COLUMNS), ("coronal", ROWS)])
def test_beyond_the_slice_nyquist_a_3d_source_decides(orientation, along):
    stack, sharp, _ = weights([Acquisition(orientation, THICK), None, Acquisition(orientation, THICK)])
    beyond = np.broadcast_to(np.abs(along) > 1.5 / (2 * THICK.separation_mm), stack.shape)
    assert sharp[beyond].min() > 0.9
    assert stack[beyond].max() < 0.05


@pytest.mark.parametrize("orientation, along", [("sagittal", COLUMNS), ("coronal", ROWS)])
def test_along_the_slices_a_stack_lacks_nothing_but_what_aliases_onto_it(orientation, along):
    stack, _, _ = weights([Acquisition(orientation, THICK), None, None])
    unsliced = (along == 0) & (np.hypot(ROWS, COLUMNS) < 0.1)
    np.testing.assert_allclose(stack[unsliced], ALPHA[0], atol=0.01)


def test_slices_in_the_plane_of_reconstruction_lack_fine_structure_and_no_coarse_one():
    h = resolution.carried(Acquisition("axial", THICK), "axial", 95, 192)
    radius = np.hypot(ROWS, COLUMNS)
    assert h[radius < 0.01].min() > 0.95
    assert h[radius > 0.3].max() < 0.6
    falling = [h[(radius >= low) & (radius < low + 0.05)].mean() for low in np.arange(0, 0.5, 0.05)]
    assert all(finer < coarser for coarser, finer in zip(falling, falling[1:]))


def test_a_slice_in_a_gap_carries_less_than_one_amid_a_thick_slice():
    wide = Resolution(3, 3)
    mean = [
        resolution.carried(Acquisition("axial", wide), "axial", index, 192).mean() for index in range(90, 96)
    ]
    assert max(mean) > 1.2 * min(mean)


@pytest.mark.parametrize("plane", ORIENTATIONS)
@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_thicker_slices_carry_less(plane, orientation):
    means = [
        np.mean(
            [
                resolution.carried(Acquisition(orientation, each), plane, index, LENGTH[plane]).mean()
                for index in range(90, 103)
            ]
        )
        for each in (Resolution(2, 0), Resolution(3, 0), THICK)
    ]
    assert 1 > means[0] > means[1] > means[2] > 0


def test_carried_is_what_a_random_image_keeps():
    """The coherence and gain of the formula are those of images drawn with the spectrum that it assumes."""
    from helpers.acquisition import degradation

    rng, n = np.random.default_rng(0), SLICE
    frequency = np.fft.fftfreq(n)
    power = resolution._power(
        np.hypot(*np.meshgrid(frequency, frequency, indexing="ij")), resolution.SPECTRAL_EXPONENT - 1
    )
    matrix = degradation.there_and_back(3 * n, THICK)[n : 2 * n].reshape(n, 3, n).sum(axis=1)
    cross = true = arriving = 0
    for _ in range(100):
        x = np.fft.fft2(rng.standard_normal((n, n))) * np.sqrt(power)
        y = np.fft.fft2(matrix @ np.fft.ifft2(x).real)
        cross, true, arriving = cross + (y * x.conj()).real, true + np.abs(x) ** 2, arriving + np.abs(y) ** 2
    # A narrow band of frequencies along the slices, over which neither the power nor the result changes much.
    some = (slice(None), slice(10, 14))
    cross, true, arriving = (each[some].sum(axis=1) for each in (cross, true, arriving))
    expected = resolution._carried_within(THICK, rows=True)[some]
    estimated = np.clip(cross, 0, None) ** 3 / (true**2 * arriving)
    low = np.abs(frequency) < 0.06
    np.testing.assert_allclose(estimated[low], expected.mean(axis=1)[low], atol=0.08)


def test_alike_weights_change_no_logits_beyond_rounding():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn((3, 5, SLICE, SLICE), generator=generator)
    alpha = torch.tensor(ALPHA, dtype=torch.float32)
    relative = torch.ones((3, SLICE, SLICE // 2 + 1))
    plain = (alpha[:, None, None, None] * logits).sum(0)
    torch.testing.assert_close(resolution.mix(logits, alpha, relative), plain, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    "geometry, said",
    [
        ({"T1w": None}, "geometry has no T2w"),
        ({"T1w": None, "T2w": None, "FLAIR": None}, "geometry has FLAIR"),
        ({"T1w": None, "T2w": "axial"}, "geometry of T2w is 'axial'"),
    ],
)
def test_a_geometry_names_each_source(geometry, said):
    with pytest.raises(ValueError, match=said):
        resolution.check_geometry(["T1w", "T2w"], geometry)


def test_an_acquisition_has_an_orientation_and_a_resolution():
    with pytest.raises(ValueError, match="orientation is 'oblique'"):
        Acquisition("oblique", THICK)
    with pytest.raises(ValueError, match="resolution is 5"):
        Acquisition("axial", 5)


def test_axes_are_those_of_the_slices_that_the_networks_see():
    """Blur a volume along one axis: the frequencies that vanish from its slices are those that count as not
    carried."""
    from helpers.haca3 import slicing

    rng = np.random.default_rng(1)
    for plane in ORIENTATIONS:
        for orientation in set(ORIENTATIONS) - {plane}:
            volume = np.cumsum(
                rng.standard_normal((SLICE, SLICE, SLICE), dtype=np.float32), axis=AXIS[orientation]
            )
            spectrum = np.abs(np.fft.rfft2(slicing.slice_of(volume, plane, 100)))
            h = resolution.carried(Acquisition(orientation, THICK), plane, 90, LENGTH[plane])
            low, high = (np.median(spectrum[mask]) for mask in ((h > 0.5) & (h < 0.99), h < 0.01))
            assert low > 3 * high
