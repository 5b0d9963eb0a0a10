"""Simulated 2D acquisitions: what any of them must satisfy, then numbers that are known, then faults."""

from dataclasses import fields

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from scipy import ndimage

from helpers import grid, study
from helpers.acquisition import degradation, slice_profile
from helpers.acquisition.rf_pulse import Pulse

MNI = np.array([[-1.0, 0, 0, 96], [0, -1, 0, 96], [0, 0, 1, -78], [0, 0, 0, 1]])
OBLIQUE = nib.affines.from_matvec(
    nib.eulerangles.euler2mat(0.2, -0.15, 0.3) @ np.array([[0, 0, 0.9], [-1.1, 0, 0], [0, 0.8, 0]]),
    [12.5, -30, 7],
)
# The paper's and three others. What is promised of widths and frequencies holds from 3 voxels per slice on:
# below, the voxels themselves are too coarse to hold the profile.
RESOLUTIONS = [*study.RESOLUTIONS, study.Resolution(3, 3), study.Resolution(3.7, 0.3), study.Resolution(7, 0)]

quickly = settings(max_examples=40, deadline=None, derandomize=True)
resolutions = st.builds(study.Resolution, st.floats(0.7, 9), st.floats(0, 4))
shapes = st.tuples(*[st.integers(1, 40)] * 3)
orientations = st.sampled_from(study.ORIENTATIONS)


@st.composite
def affines(draw):
    """Any rotation up to 25 degrees on top of any order and direction of the axes, voxels of 0.5 to 2 mm."""
    turn = nib.eulerangles.euler2mat(*[draw(st.floats(-0.4, 0.4)) for _ in range(3)])
    axes = np.eye(3)[list(draw(st.permutations(range(3))))] * [
        draw(st.sampled_from([-1, 1])) for _ in range(3)
    ]
    voxels = np.diag([draw(st.floats(0.5, 2)) for _ in range(3)])
    return nib.affines.from_matvec(turn @ axes @ voxels, [draw(st.floats(-100, 100)) for _ in range(3)])


def label(resolution):
    return resolution.slug


def world(shape, affine):
    """World position of every voxel, shape (X, Y, Z, 3), mm."""
    return nib.affines.apply_affine(
        affine, np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), axis=-1)
    )


def positions_mm(n, resolution):
    """Positions of slices in a field of view of n voxels of 1 mm, from its centre."""
    return degradation.slice_positions(n, 1.0, resolution) - (n - 1) / 2


# --- What any 2D acquisition must satisfy


@pytest.mark.parametrize(
    "affine", [MNI, OBLIQUE, np.diag([0.8, -0.8, 0.8, 1])], ids=["mni", "oblique", "0.8 mm"]
)
@pytest.mark.parametrize("orientation", study.ORIENTATIONS)
@pytest.mark.parametrize("resolution", RESOLUTIONS, ids=label)
def test_a_ramp_in_world_coordinates_stays_that_ramp(affine, orientation, resolution):
    axis = grid.through_plane_axis(affine, orientation)
    shape = [4, 4, 4]
    shape[axis] = 120
    direction = np.array([0.5, -0.7, 0.9])
    ramp, lr_affine = degradation.degrade(world(shape, affine) @ direction, affine, orientation, resolution)
    inner = [slice(None)] * 3
    # The edges are extended by their outermost voxel, which is no ramp: stay a thickness and two away.
    margin = int(np.ceil((resolution.thickness_mm + 8) / resolution.separation_mm)) + 1
    inner[axis] = slice(margin, -margin)
    difference = (ramp - world(ramp.shape, lr_affine) @ direction)[tuple(inner)]
    assert difference.size
    assert np.abs(difference).max() < 0.02


@pytest.mark.parametrize("resolution", RESOLUTIONS, ids=label)
def test_a_constant_stays_constant_to_the_edge(resolution):
    degraded, _ = degradation.degrade(np.full((5, 6, 61), 37.5), MNI, "axial", resolution)
    np.testing.assert_allclose(degraded, 37.5, rtol=1e-6)


@quickly
@given(n=st.integers(1, 250), voxel=st.floats(0.4, 2.5), resolution=resolutions)
def test_the_weights_of_every_slice_sum_to_one(n, voxel, resolution):
    np.testing.assert_allclose(degradation.matrix(n, voxel, resolution).sum(axis=1), 1, atol=1e-12)


@pytest.mark.parametrize(
    "profile", [{}, {"tb": 4}, {"tb": 8, "ptype": "se"}, {"tb": 4, "flip_angle_deg": 20}], ids=str
)
@pytest.mark.parametrize("resolution", RESOLUTIONS, ids=label)
def test_the_response_to_a_point_source_is_as_wide_as_the_slice_is_thick(resolution, profile):
    n = 150
    weights = degradation.matrix(n, 1.0, resolution, Pulse(**profile))
    middle = len(weights) // 2
    for row in weights[middle - 2 : middle + 2]:
        assert slice_profile.fwhm(np.arange(n), row) == pytest.approx(resolution.thickness_mm, rel=0.05)


@pytest.mark.parametrize("resolution", RESOLUTIONS, ids=label)
def test_a_sinusoid_is_attenuated_by_the_transfer_function_and_not_shifted(resolution):
    n = 192
    z, slices = np.arange(n) - (n - 1) / 2, positions_mm(n, resolution)
    frequency = np.linspace(0, 1 / resolution.thickness_mm, 12)
    expected = slice_profile.transfer_function(
        frequency, *slice_profile.profile(resolution.thickness_mm)
    ).real
    waves = np.exp(2j * np.pi * np.outer(z, frequency))
    kept = degradation.matrix(n, 1.0, resolution) @ waves * np.exp(-2j * np.pi * np.outer(slices, frequency))
    inner = kept[6:-6]
    np.testing.assert_allclose(inner.mean(axis=0), expected, atol=0.04)
    # No phase: where anything is left of the wave, it is where it was.
    np.testing.assert_allclose(inner.imag, 0, atol=0.005)


def response_to_a_plane(weights, slices, offset):
    """Signal of each inner slice from a plane `offset` voxels beyond its centre (shared between two
    voxels)."""
    signal = []
    for row, centre in zip(weights[3:-4], slices[3:-4], strict=True):
        signal.append(np.interp(centre + offset, np.arange(len(row)), row))
    return np.array(signal)


def plane_in_the_gap(resolution, n=192):
    """Signal from a plane half way to the next slice, as a share of that from one in the slice, for each
    slice."""
    weights, slices = degradation.matrix(n, 1.0, resolution), degradation.slice_positions(n, 1.0, resolution)
    return response_to_a_plane(weights, slices, resolution.separation_mm / 2) / response_to_a_plane(
        weights, slices, 0
    )


@pytest.mark.parametrize("thickness", [3, 4, 5])
def test_a_plane_in_the_middle_of_a_gap_of_3_mm_hardly_contributes(thickness):
    assert np.abs(plane_in_the_gap(study.Resolution(thickness, 3))).max() < 0.06


@pytest.mark.parametrize(("pair", "share"), [((4, 1), 0.25), ((5, 1), 0.21), ((5, 1.5), 0.11)])
def test_a_plane_in_the_middle_of_the_narrow_gaps_of_the_paper_contributes_far_more(pair, share):
    assert plane_in_the_gap(study.Resolution(*pair)).max() == pytest.approx(share, abs=0.02)


@quickly
@given(
    shape=shapes, orientation=orientations, resolution=resolutions, affine=affines(), seed=st.integers(0, 99)
)
def test_it_is_linear(shape, orientation, resolution, affine, seed):
    rng = np.random.default_rng(seed)
    one, other = rng.standard_normal((2, *shape))

    def run(volume):
        return degradation.degrade(volume, affine, orientation, resolution)[0]

    np.testing.assert_allclose(run(2 * one - 3 * other), 2 * run(one) - 3 * run(other), atol=2e-5)


def test_zeros_stay_zeros():
    degraded, _ = degradation.degrade(np.zeros((7, 8, 9)), MNI, "coronal", study.Resolution(3, 0))
    assert not degraded.any()


@quickly
@given(shape=shapes, orientation=orientations, resolution=resolutions, affine=affines())
def test_the_other_axes_are_untouched(shape, orientation, resolution, affine):
    axis = grid.through_plane_axis(affine, orientation)
    volume = np.random.default_rng(0).random(shape)
    degraded, lr_affine = degradation.degrade(volume, affine, orientation, resolution)
    assert degraded.dtype == np.float32
    assert np.delete(degraded.shape, axis).tolist() == np.delete(shape, axis).tolist()
    np.testing.assert_array_equal(
        np.delete(lr_affine[:3, :3], axis, axis=1), np.delete(affine[:3, :3], axis, axis=1)
    )
    # Each line along the axis is degraded by itself: alone it gives the same.
    line = tuple(slice(None) if each == axis else slice(0, 1) for each in range(3))
    alone, _ = degradation.degrade(volume[line], affine, orientation, resolution)
    np.testing.assert_allclose(alone, degraded[line], atol=1e-5)


@quickly
@given(
    shape=shapes,
    orientation=orientations,
    resolution=resolutions,
    affine=affines(),
    order=st.permutations(range(3)),
    flips=st.tuples(*[st.booleans()] * 3),
)
def test_how_the_array_is_stored_does_not_matter(shape, orientation, resolution, affine, order, flips):
    volume = np.random.default_rng(1).random(shape).astype(np.float32)
    stored = np.stack([order, np.where(flips, -1, 1)], axis=1)

    def store(array, its_affine):
        back = nib.orientations.inv_ornt_aff(stored, array.shape)
        return nib.orientations.apply_orientation(array, stored), its_affine @ back

    degraded, lr_affine = degradation.degrade(*store(volume, affine), orientation, resolution)
    expected, expected_affine = store(*degradation.degrade(volume, affine, orientation, resolution))
    assert degraded.shape == expected.shape
    np.testing.assert_allclose(degraded, expected, atol=1e-5)
    np.testing.assert_allclose(lr_affine, expected_affine, atol=1e-6)


@pytest.mark.parametrize("orientation", study.ORIENTATIONS)
def test_fortran_order_gives_what_c_order_gives(orientation):
    volume = np.random.default_rng(2).random((20, 30, 25)).astype(np.float32)
    one, _ = degradation.degrade(volume, MNI, orientation, study.Resolution(4, 1))
    other, _ = degradation.degrade(np.asfortranarray(volume), MNI, orientation, study.Resolution(4, 1))
    np.testing.assert_allclose(one, other, atol=1e-6)


@quickly
@given(shape=shapes, orientation=orientations, resolution=resolutions, affine=affines())
def test_the_centre_of_the_field_of_view_stays_put_and_the_step_is_the_separation(
    shape, orientation, resolution, affine
):
    axis = grid.through_plane_axis(affine, orientation)
    degraded, lr_affine = degradation.degrade(np.ones(shape), affine, orientation, resolution)
    before = nib.affines.apply_affine(affine, (np.array(shape) - 1) / 2)
    after = nib.affines.apply_affine(lr_affine, (np.array(degraded.shape) - 1) / 2)
    np.testing.assert_allclose(after, before, atol=0.01)
    assert np.linalg.norm(lr_affine[:3, axis]) == pytest.approx(resolution.separation_mm, rel=1e-5)


def test_voxels_of_0_8_mm_are_measured_in_mm():
    resolution = study.Resolution(4, 0.8)
    weights = degradation.matrix(100, 0.8, resolution)
    np.testing.assert_allclose(weights, degradation.matrix(100, 1.0, study.Resolution(5, 1)), atol=1e-12)
    row = weights[8]
    assert slice_profile.fwhm(np.arange(100) * 0.8, row) == pytest.approx(4, rel=0.05)


def test_an_affine_that_was_stored_in_single_precision_gives_the_same_slices():
    turned = OBLIQUE.astype(np.float32)
    volume = np.random.default_rng(3).random((24, 24, 24))
    one, _ = degradation.degrade(volume, OBLIQUE, "axial", study.Resolution(3, 0))
    other, _ = degradation.degrade(volume, turned, "axial", study.Resolution(3, 0))
    np.testing.assert_array_equal(one, other)


def test_the_gap_changes_the_spacing_and_never_the_kernel():
    # 3 and 6 mm apart, in a field of view where the middle slices of both fall on the same voxel.
    near, far = (
        degradation.matrix(99, 1.0, study.Resolution(3, 0)),
        degradation.matrix(99, 1.0, study.Resolution(3, 6)),
    )
    np.testing.assert_allclose(near[len(near) // 2], far[len(far) // 2], atol=1e-15)


def test_a_cropped_edge_is_extended_by_its_outermost_voxel():
    volume = np.concatenate([np.full(30, 2.0), np.full(30, 5.0)]).reshape(1, 1, 60)
    degraded, _ = degradation.degrade(volume, MNI, "axial", study.Resolution(5, 0))
    np.testing.assert_allclose(degraded[0, 0, [0, -1]], [2, 5], atol=1e-3)


@pytest.mark.parametrize(
    ("orientation", "direction"), [("axial", [0, 0, 1]), ("coronal", [0, 1, 0]), ("sagittal", [1, 0, 0])]
)
@pytest.mark.parametrize(
    "affine", [MNI, OBLIQUE, np.diag([1.0, -2, 3, 1])[:, [2, 0, 1, 3]]], ids=["mni", "oblique", "permuted"]
)
def test_orientation_names_the_anatomical_axis_across_the_slices(affine, orientation, direction):
    columns = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    assert grid.through_plane_axis(affine, orientation) == np.argmax(np.abs(direction @ columns))


# --- Known numbers


@pytest.mark.parametrize(
    ("n", "counts"), [(192, [64, 48, 48, 38, 37, 38, 32, 30]), (224, [75, 56, 56, 45, 43, 45, 37, 34])]
)
def test_slice_counts_of_the_eight_resolutions(n, counts):
    assert [len(degradation.matrix(n, 1.0, resolution)) for resolution in study.RESOLUTIONS] == counts


@pytest.mark.parametrize("resolution", RESOLUTIONS, ids=label)
@pytest.mark.parametrize("n", [1, 17, 192])
def test_one_matrix_equals_convolving_and_then_sampling_the_spline(n, resolution):
    line = np.random.default_rng(4).standard_normal(n)
    blurred = ndimage.convolve1d(line, slice_profile.taps(resolution.thickness_mm, 1.0), mode="nearest")
    slices = degradation.slice_positions(n, 1.0, resolution)
    expected = ndimage.map_coordinates(blurred, slices[None], order=3, mode="nearest")
    np.testing.assert_allclose(degradation.matrix(n, 1.0, resolution) @ line, expected, atol=1e-12)


def test_the_volume_equals_the_two_steps_on_the_volume():
    volume = np.random.default_rng(5).random((12, 40, 9))
    resolution = study.Resolution(4, 1.2)
    blurred = ndimage.convolve1d(volume, slice_profile.taps(4, 1.0), axis=1, mode="nearest")
    grid = np.meshgrid(
        np.arange(12.0), degradation.slice_positions(40, 1.0, resolution), np.arange(9.0), indexing="ij"
    )
    expected = ndimage.map_coordinates(blurred, grid, order=3, mode="nearest")
    np.testing.assert_allclose(
        degradation.degrade(volume, MNI, "coronal", resolution)[0], expected, atol=2e-6
    )


def test_the_matrix_is_built_once_and_nobody_can_change_it():
    weights = degradation.matrix(30, 1.0, study.Resolution(3, 0))
    assert weights is degradation.matrix(30, 1.0, study.Resolution(3.0, 0.0), Pulse(tb=16.0))
    assert weights.dtype == np.float64
    with pytest.raises(ValueError, match="read-only"):
        weights[0, 0] = 1


def test_every_parameter_of_the_profile_reaches_it():
    volume = np.random.default_rng(8).random((4, 5, 30))
    resolution = study.Resolution(3, 0)
    ours, _ = degradation.degrade(volume, MNI, "axial", resolution, Pulse())
    np.testing.assert_array_equal(ours, degradation.degrade(volume, MNI, "axial", resolution)[0])
    changes = {
        "tb": 4,
        "n": 64,
        "ptype": "se",
        "flip_angle_deg": 30,
        "ftype": "ms",
        "d1": 0.1,
        "d2": 0.1,
        "part": "real",
        "compat": "radifox",
    }
    assert set(changes) == {field.name for field in fields(Pulse)}
    for name, value in changes.items():
        other, _ = degradation.degrade(volume, MNI, "axial", resolution, Pulse(**{name: value}))
        assert np.abs(other - ours).max() > 1e-6, name


def test_the_input_is_not_changed():
    volume = np.random.default_rng(6).random((6, 6, 30)).astype(np.float32)
    affine, before, affine_before = MNI.copy(), volume.copy(), MNI.copy()
    degradation.degrade(volume, affine, "axial", study.Resolution(3, 0))
    np.testing.assert_array_equal(volume, before)
    np.testing.assert_array_equal(affine, affine_before)


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, bool, np.float64])
def test_any_real_numbers_are_degraded_as_float32(dtype):
    volume = (np.random.default_rng(7).random((4, 5, 30)) > 0.5).astype(dtype)
    degraded, expected = (
        degradation.degrade(each, MNI, "axial", study.Resolution(3, 0))[0]
        for each in (volume, np.float32(volume))
    )
    np.testing.assert_array_equal(degraded, expected)


def lines_through_tissue(n=192, lines=400, length_mm=13):
    """Runs of tissue of random length and intensity, as a line through a T1w brain meets them; 1 mm
    voxels."""
    rng = np.random.default_rng(0)
    begins = rng.random((n, lines)) < 1 / length_mm
    begins[0] = True
    latest = np.maximum.accumulate(np.where(begins, np.arange(n)[:, None], 0), axis=0)
    intensities = rng.choice([0.2, 0.5, 0.6, 0.9, 1.0], (n, lines))
    return ndimage.gaussian_filter1d(np.take_along_axis(intensities, latest, axis=0), 0.5, axis=0)


@pytest.mark.parametrize("resolution", study.RESOLUTIONS, ids=label)
def test_two_readings_of_the_paper_differ_far_less_than_a_gaussian_of_the_same_width_does(resolution):
    image = lines_through_tissue()
    ours = degradation.matrix(192, 1.0, resolution) @ image
    radifox = degradation.matrix(192, 1.0, resolution, Pulse(compat="radifox")) @ image
    blurred = ndimage.gaussian_filter1d(
        image, resolution.thickness_mm / np.sqrt(8 * np.log(2)), axis=0, mode="nearest"
    )
    positions = degradation.slice_positions(192, 1.0, resolution)
    gaussian = ndimage.map_coordinates(
        blurred, np.meshgrid(positions, np.arange(400.0), indexing="ij"), order=3, mode="nearest"
    )

    def nrmse(other):
        return np.sqrt(np.mean((other - ours) ** 2) / np.mean(ours**2))

    assert 0.0015 < nrmse(radifox) < 0.0085
    assert 0.0175 < nrmse(gaussian) < 0.0275
    assert nrmse(radifox) < nrmse(gaussian) / 2


# --- Faults


@pytest.mark.parametrize(
    ("arguments", "profile", "words"),
    [
        ((np.ones((3, 3)), MNI, "axial"), {}, ["2 dimensions", "3D"]),
        ((np.ones((3, 0, 3)), MNI, "axial"), {}, ["empty", "(3, 0, 3)"]),
        ((np.full((3, 3, 3), np.nan), MNI, "axial"), {}, ["27 voxels", "NaN"]),
        (
            (np.ones((3, 3, 3)), MNI, "transverse"),
            {},
            ["orientation is 'transverse'", "axial, sagittal, coronal"],
        ),
        ((np.ones((3, 3, 3)), np.zeros((4, 4)), "axial"), {}, ["affine is", "invertible"]),
        ((np.ones((3, 3, 3)), np.eye(3), "axial"), {}, ["affine is", "4 x 4"]),
        ((np.ones((3, 3, 3)), np.full((4, 4), np.nan), "axial"), {}, ["affine is", "invertible"]),
        ((np.ones((3, 3, 3)), MNI, "axial"), {"tb": -4}, ["tb is -4", "from 1"]),
    ],
)
def test_what_cannot_be_degraded_is_refused_in_one_line(arguments, profile, words):
    with pytest.raises(ValueError) as caught:
        degradation.degrade(*arguments, study.Resolution(3, 0), Pulse(**profile))
    message = str(caught.value)
    assert "\n" not in message
    assert all(word in message for word in words), message
