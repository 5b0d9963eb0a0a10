"""Registration: known positions first, then ANTs itself, then faults."""

import hashlib
import os
import re
import tempfile

import numpy as np
import pytest
from scipy import ndimage
from scipy.spatial.transform import Rotation

from helpers import layout, registration
from helpers.study import CONTRASTS, ORIENTATIONS

MNI = np.array([[-1.0, 0, 0, 96], [0, -1, 0, 96], [0, 0, 1, -78], [0, 0, 0, 1]])


def small_grid(voxel_mm=2.0, shape=(40, 48, 44)):
    """An LPS grid around the centre of the brain."""
    affine = np.diag([-voxel_mm, -voxel_mm, voxel_mm, 1.0])
    affine[:3, 3] = np.array(registration.BRAIN_CENTRE_MM) - affine[:3, :3] @ (np.array(shape) - 1) / 2
    return shape, affine


def positions(shape, affine):
    return np.moveaxis(np.indices(shape), 0, -1) @ affine[:3, :3].T + affine[:3, 3]


def waves(points):
    """A smooth, non-negative, bell-shaped pattern in world coordinates, without any symmetry."""
    x, y, z = np.moveaxis(points - np.array(registration.BRAIN_CENTRE_MM), -1, 0)
    bell = np.exp(-(x**2 / 600 + y**2 / 900 + z**2 / 700))
    return bell * (2 + np.sin(x / 9) + 0.5 * np.cos(y / 11 + z / 13 + 1))


def rotated_affine(angles_degrees, spacing, flips, centre_index):
    affine = np.eye(4)
    affine[:3, :3] = (
        Rotation.from_euler("xyz", angles_degrees, degrees=True).as_matrix() * np.array(spacing) * flips
    )
    affine[:3, 3] = np.array(registration.BRAIN_CENTRE_MM) - affine[:3, :3] @ np.array(centre_index)
    return affine


def stack_of(volume, affine, axis, separation):
    """Thick slices: a box blur, then every `separation`-th voxel, centred."""
    n = volume.shape[axis] // separation
    blurred = ndimage.uniform_filter1d(volume, separation, axis=axis, mode="nearest")
    first = (volume.shape[axis] - 1) / 2 - (n - 1) / 2 * separation
    index = np.indices([n if a == axis else m for a, m in enumerate(volume.shape)], dtype=float)
    index[axis] = first + separation * index[axis]
    stack = ndimage.map_coordinates(blurred, index, order=1, mode="nearest").astype(np.float32)
    moved = affine.copy()
    moved[:3, 3] += affine[:3, axis] * first
    moved[:3, axis] *= separation
    return stack, moved


def head(shape, affine):
    """A brain of sorts: folded grey and white matter inside an ellipsoid, dark ventricles off the middle."""
    noise = np.random.default_rng(7).standard_normal(shape)
    folds = ndimage.gaussian_filter(noise, 4 / np.linalg.norm(affine[:3, 0]))
    x, y, z = np.moveaxis(
        (positions(shape, affine) - np.array(registration.BRAIN_CENTRE_MM)) / (62, 78, 60), -1, 0
    )
    brain = x**2 + y**2 + z**2 < 1
    ventricles = (4 * (x - 0.1)) ** 2 + (2.5 * (y + 0.1)) ** 2 + (4 * (z - 0.1)) ** 2 < 0.6
    image = np.where(folds > 0, 100.0, 65.0) - 50 * ventricles
    return (ndimage.gaussian_filter(image * brain, 0.5) * brain).astype(np.float32), brain


# The motion


def test_a_motion_is_rigid_and_stays_within_five_degrees_and_five_millimetres():
    for subject in range(40):
        transform = registration.motion(0, subject, "T2w", "coronal")
        np.testing.assert_allclose(transform[:3, :3] @ transform[:3, :3].T, np.eye(3), atol=1e-12)
        assert np.linalg.det(transform) == pytest.approx(1)
        angles = Rotation.from_matrix(transform[:3, :3]).as_euler("xyz", degrees=True)
        centre = np.append(registration.BRAIN_CENTRE_MM, 1)
        assert np.abs(angles).max() <= 5
        assert np.abs((transform @ centre - centre)[:3]).max() <= 5


def test_motions_fill_their_range():
    transforms = [registration.motion(0, subject, "T1w", "axial") for subject in range(100)]
    angles = np.array([Rotation.from_matrix(t[:3, :3]).as_euler("xyz", degrees=True) for t in transforms])
    assert np.abs(angles).max() > 4.5
    assert np.abs(angles.mean(axis=0)).max() < 1
    assert angles.std(axis=0) == pytest.approx(np.full(3, 10 / np.sqrt(12)), rel=0.2)


def test_every_subject_contrast_and_orientation_moves_differently_and_always_the_same():
    keys = [(seed, s, c, o) for seed in (0, 1) for s in (1, 2) for c in CONTRASTS for o in ORIENTATIONS]
    motions = {registration.motion(*key).tobytes() for key in keys}
    assert len(motions) == len(keys)
    assert motions == {registration.motion(*key).tobytes() for key in keys}


def test_a_motion_is_the_same_on_every_machine():
    expected = [
        [0.998571571, -0.051695949, 0.013503548, 3.369176613],
        [0.052491619, 0.996347376, -0.067353814, -3.678655112],
        [-0.009972306, 0.067966427, 0.997637769, -1.248317736],
        [0, 0, 0, 1],
    ]
    np.testing.assert_allclose(registration.motion(0, 1, "T1w", "axial"), expected, atol=1e-6)


# Resampling


def test_resampling_onto_its_own_grid_changes_no_bit():
    shape, affine = small_grid()
    volume = np.random.default_rng(0).random(shape, dtype=np.float32)
    result = registration.resample(volume, affine, shape, affine)
    assert result.dtype == np.float32
    np.testing.assert_array_equal(result, volume)


@pytest.mark.parametrize("orientation, axis", [("axial", 2), ("coronal", 1), ("sagittal", 0)])
def test_the_known_transform_undoes_the_motion_exactly(orientation, axis, monkeypatch):
    shape, affine = small_grid()
    stack, stack_affine = stack_of(waves(positions(shape, affine)), affine, axis, 4)
    transform = registration.motion(3, 2, "FLAIR", orientation)
    moved_affine = registration.move(stack_affine, transform)
    assert np.abs(moved_affine - stack_affine).max() > 1
    direct = registration.resample(stack, stack_affine, shape, affine)
    monkeypatch.setattr(registration, "_resample_oblique", lambda *_: pytest.fail("the grids are parallel"))
    undone = registration.resample(stack, moved_affine, shape, affine, transform)
    np.testing.assert_allclose(undone, direct, atol=1e-5 * stack.max())
    # A NIfTI header holds the affine in single precision.
    from_file = registration.resample(stack, moved_affine.astype(np.float32), shape, affine, transform)
    np.testing.assert_allclose(from_file, direct, atol=1e-4 * stack.max())


def test_parallel_grids_give_the_same_by_matrices_and_voxel_by_voxel():
    shape, affine = small_grid()
    volume = np.random.default_rng(1).random((20, 48, 11), dtype=np.float32)
    stack_affine = affine @ np.array([[2.1, 0, 0, -0.8], [0, 1, 0, 0], [0, 0, -3.9, 41], [0, 0, 0, 1]])
    index_map = np.linalg.inv(stack_affine) @ affine
    by_voxel = registration._resample_oblique(volume, index_map, shape)
    by_matrix = registration._resample_parallel(
        volume, index_map, shape, registration._parallel_axes(index_map, shape)
    )
    assert (by_voxel == 0).any() and by_voxel.max() > 0.9
    np.testing.assert_allclose(by_matrix, by_voxel, atol=1e-5)


def test_a_volume_stored_with_other_axes_is_the_same_volume():
    shape, affine = small_grid()
    volume = waves(positions(shape, affine)).astype(np.float32)
    swap = np.array([[0, 0, 1.0, 0], [1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 0, 1]])
    stored = np.transpose(volume, (1, 2, 0))[:, ::-1]
    flip = np.diag([1.0, -1, 1, 1])
    flip[1, 3] = stored.shape[1] - 1
    # Of numbers up to 1: the way from index to index goes through an inverse, so that the last bit may
    # differ.
    np.testing.assert_allclose(
        registration.resample(stored, affine @ swap @ flip, shape, affine), volume, rtol=0, atol=2**-22
    )


@pytest.mark.parametrize(
    "angles, flips", [((0, 0, 0), (-1, -1, 1)), ((12, -20, 33), (1, -1, 1)), ((-8, 15, 5), (-1, 1, -1))]
)
def test_a_ramp_in_world_coordinates_stays_that_ramp(angles, flips):
    shape, affine = small_grid(2.0, (16, 18, 14))
    source_shape = (60, 56, 22)
    source_affine = rotated_affine(angles, (1.4, 1.5, 4.0), flips, (np.array(source_shape) - 1) / 2)
    slope = np.array([0.3, -0.7, 0.5])
    result = registration.resample(
        positions(source_shape, source_affine) @ slope, source_affine, shape, affine
    )
    np.testing.assert_allclose(result, positions(shape, affine) @ slope, atol=0.01)


def test_a_transform_moves_the_image_the_way_it_says():
    shape, affine = small_grid()
    transform = registration.motion(5, 5, "T1w", "sagittal")
    # What lies at p in the fixed image lies at transform(p) in the moving one.
    inverse = np.linalg.inv(transform)
    moving = waves(positions(shape, affine) @ inverse[:3, :3].T + inverse[:3, 3])
    result = registration.resample(moving, affine, shape, affine, transform)
    truth = waves(positions(shape, affine))
    core = (slice(8, -8),) * 3
    np.testing.assert_allclose(result[core], truth[core], atol=2e-3 * truth.max())
    assert np.abs(moving - truth)[core].max() > 0.1 * truth.max()


def test_a_constant_fills_the_field_of_view_and_no_more():
    stack_affine = np.diag([1.0, 1, 5, 1])
    target = np.eye(4)
    target[2, 3] = -6
    result = registration.resample(np.full((12, 12, 6), 3.0), stack_affine, (12, 12, 40), target)
    z = np.arange(40) - 6
    # The outermost slices lie at 0 and 25 mm and reach 2.5 mm further.
    inside = (z > -2.5) & (z < 27.5)
    np.testing.assert_allclose(result[:, :, inside], 3, atol=1e-5)
    assert (result[:, :, ~inside] == 0).all()


def test_a_voxel_exactly_on_the_rim_is_inside_whatever_the_motion():
    # 34 slices 6.5 mm apart on 224 voxels (5||1.5, coronal): voxel 1 lies half a separation outside of the
    # first slice.
    stack_affine = MNI @ np.diag([1, 6.5, 1, 1])
    stack_affine[1, 3] -= 4.25
    for subject in range(8):
        transform = registration.motion(0, subject, "T1w", "coronal")
        moved_affine = registration.move(stack_affine, transform).astype(np.float32)
        result = registration.resample(np.ones((4, 34, 4)), moved_affine, (4, 224, 4), MNI, transform)
        np.testing.assert_allclose(result[:, 1:223], 1, atol=1e-5)
        assert (result[:, [0, 223]] == 0).all()


def test_an_image_of_magnitudes_has_no_negative_values_and_a_signed_one_keeps_them():
    step = np.zeros((12, 12, 12))
    step[:, :, 6:] = 100
    target = np.diag([1, 1, 0.25, 1])
    assert registration.resample(step, np.eye(4), (12, 12, 45), target).min() == 0
    assert registration.resample(step - 1, np.eye(4), (12, 12, 45), target).min() < -5


def test_the_spline_is_that_of_ants(tmp_path):
    ants = registration.import_ants()
    shape, affine = small_grid()
    volume = np.random.default_rng(2).standard_normal((44, 40, 12)).astype(np.float32)
    stack_affine = rotated_affine((9, -14, 4), (2, 2.2, 7), (-1, 1, 1), (20, 18, 5))
    transform = registration.motion(1, 1, "T1w", "axial")
    lps = registration._FLIP @ transform @ registration._FLIP
    parameters = np.concatenate([lps[:3, :3].ravel(), lps[:3, 3]])
    itk = ants.new_ants_transform(
        precision="double", dimension=3, transform_type="AffineTransform", parameters=parameters
    )
    ants.write_transform(itk, str(tmp_path / "t.mat"))
    fixed = registration.ants_image(ants, np.zeros(shape), affine)
    moving = registration.ants_image(ants, volume, stack_affine)
    expected = ants.apply_transforms(fixed, moving, [str(tmp_path / "t.mat")], interpolator="bSpline").numpy()
    result = registration.resample(volume, stack_affine, shape, affine, transform)
    assert (expected == 0).any() and (expected != 0).mean() > 0.3
    # On the very rim of the field of view, rounding decides whether a voxel is inside.
    rim = (result == 0) != (expected == 0)
    assert rim.mean() < 1e-3
    np.testing.assert_allclose(result[~rim], expected[~rim], atol=1e-5 * np.abs(volume).max())


# The error


def test_the_error_of_a_translation_is_its_length_and_of_the_truth_zero():
    mask = np.ones((5, 6, 7), dtype=bool)
    true = registration.motion(0, 1, "T1w", "axial")
    shifted = true.copy()
    shifted[:3, 3] += (3, 0, -4)
    assert registration.error_mm(shifted, true, mask, MNI) == pytest.approx(5)
    assert registration.error_mm(true, true, mask, MNI) == 0


def test_the_error_of_a_rotation_is_the_mean_arc_over_the_mask():
    mask = np.zeros((40, 40, 3), dtype=bool)
    mask[10:31, 10:31, 1] = True
    affine = np.diag([2.0, 2, 2, 1])
    affine[:3, 3] = -40, -40, 0
    angle = 0.01
    rotation = np.eye(4)
    rotation[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    radii = [np.hypot(2 * i - 40, 2 * j - 40) for i in range(10, 31) for j in range(10, 31)]
    expected = 2 * np.sin(angle / 2) * np.mean(radii)
    assert registration.error_mm(rotation, np.eye(4), mask, affine) == pytest.approx(expected)


def test_mutual_information_is_two_of_an_image_with_itself_and_near_one_of_noise():
    first, second = np.random.default_rng(0).normal(size=(2, 60, 60, 60))
    everywhere = np.ones(first.shape, bool)
    assert registration.mutual_information(first, first, everywhere) == pytest.approx(2)
    assert registration.mutual_information(first, second, everywhere) == pytest.approx(1, abs=2e-3)


# ANTs


def test_a_seeded_motion_is_found_to_a_third_of_a_millimetre_and_twice_to_the_bit(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))  # others write to the common one at the same time
    shape, affine = small_grid(1.5, (96, 116, 92))
    fixed, brain = head(shape, affine)
    stack, stack_affine = stack_of(fixed, affine, 2, 3)
    true = registration.motion(0, 1, "T1w", "axial")
    moving_affine = registration.move(stack_affine, true)
    found = registration.estimate(stack, moving_affine, fixed, affine, brain)
    again = registration.estimate(stack, moving_affine, fixed, affine, brain)
    assert registration.error_mm(np.eye(4), true, brain, affine) > 3
    assert registration.error_mm(found, true, brain, affine) < 0.3
    np.testing.assert_allclose(found[:3, :3] @ found[:3, :3].T, np.eye(3), atol=1e-5)
    assert hashlib.sha256(found.tobytes()).digest() == hashlib.sha256(again.tobytes()).digest()
    assert not os.listdir(tmp_path)
    other_seed = registration.estimate(stack, moving_affine, fixed, affine, brain, seed=1)
    assert 0 < np.abs(other_seed - found).max() < 0.5


@pytest.mark.parametrize("angles, flips", [((4, -30, 12), (1, -1, 1)), ((-15, 8, 40), (-1, 1, -1))])
def test_oblique_and_flipped_grids_register_too(angles, flips):
    shape, affine = small_grid(2.0, (72, 88, 70))
    fixed, brain = head(shape, affine)
    true = registration.motion(4, 1, "T2w", "sagittal")
    oblique = rotated_affine(angles, (2, 2, 2.5), flips, (46, 46, 36))
    moving = registration.resample(fixed, affine, (92, 92, 72), oblique)
    found = registration.estimate(moving, registration.move(oblique, true), fixed, affine, brain)
    assert registration.error_mm(found, true, brain, affine) < 0.3


def test_an_affine_registration_finds_scales_that_a_rigid_one_cannot():
    shape, affine = small_grid(2.0, (72, 88, 70))
    fixed, brain = head(shape, affine)
    true = registration.motion(2, 1, "T1w", "axial") @ np.diag([1.05, 0.96, 1.04, 1])
    found = {
        kind: registration.estimate(fixed, true @ affine, fixed, affine, brain, kind)
        for kind in ("rigid", "affine")
    }
    assert registration.error_mm(found["affine"], true, brain, affine) < 0.3
    assert registration.error_mm(found["rigid"], true, brain, affine) > 1


def test_the_best_of_several_starts_is_followed_and_twice_to_the_bit():
    shape, affine = small_grid(2.0, (72, 88, 70))
    fixed, brain = head(shape, affine)
    true = np.eye(4)
    true[:3, 3] = 30, -40, 200
    bad, near, outside = true.copy(), true.copy(), np.eye(4)
    bad[2, 3] -= 50
    near[:3, 3] += 5, -6, 7
    moving_affine = registration.move(affine, true)
    twice = [
        registration.estimate(fixed, moving_affine, fixed, affine, brain, starts=[outside, bad, near])
        for _ in range(2)
    ]
    assert registration.error_mm(twice[0], true, brain, affine) < 0.3
    assert hashlib.sha256(twice[0].tobytes()).digest() == hashlib.sha256(twice[1].tobytes()).digest()
    alone = registration.estimate(fixed, moving_affine, fixed, affine, brain, starts=[bad])
    assert registration.error_mm(alone, true, brain, affine) > 10


def test_coarse_voxels_are_means_that_stay_where_they_were():
    affine = rotated_affine((4, -30, 12), (1, 1, 3.5), (1, -1, 1), (10, 12, 4))
    volume = positions((24, 24, 6), affine) @ np.array([0.3, -0.7, 0.5])
    coarse, coarse_affine = registration.coarsen(volume, affine)
    assert coarse.shape == (6, 6, 6)
    expected = positions(coarse.shape, coarse_affine) @ np.array([0.3, -0.7, 0.5])
    np.testing.assert_allclose(coarse, expected, atol=1e-3)


# Faults


def valid():
    shape, affine = small_grid(4.0, (20, 24, 22))
    image = waves(positions(shape, affine)).astype(np.float32)
    return {
        "moving": image,
        "moving_affine": affine,
        "fixed": image,
        "fixed_affine": affine,
        "fixed_mask": image > 0.5,
    }


@pytest.mark.parametrize(
    "change, message",
    [
        ({"kind": "syn"}, "kind is 'syn': accepted are rigid, affine"),
        ({"seed": -1}, "seed is -1"),
        ({"fixed_mask": np.ones((3, 3, 3))}, r"fixed_mask has shape \(3, 3, 3\)"),
        ({"fixed_mask": np.zeros((20, 24, 22))}, "fixed_mask is empty"),
        ({"moving_affine": np.diag([1.0, 1, 0, 1])}, "moving_affine is .* can be inverted"),
        ({"fixed_affine": np.eye(3)}, "fixed_affine is"),
        ({"moving": np.zeros((5, 5, 5))}, "moving is 0.0 everywhere"),
        ({"fixed": np.zeros((5, 5))}, "fixed has 2 dimensions"),
        ({"starts": [np.zeros((4, 4))]}, "start is"),
        ({"moving": np.full((5, 5, 5), np.nan)}, "moving has 125 voxels that are NaN"),
    ],
)
def test_estimate_names_what_is_wrong(change, message):
    with pytest.raises(ValueError, match=message):
        registration.estimate(**valid() | change)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ((np.zeros((2, 2)), np.eye(4), (2, 2, 2), np.eye(4)), "volume has 2 dimensions"),
        ((np.zeros((2, 2, 2)), np.zeros((4, 4)), (2, 2, 2), np.eye(4)), "affine is"),
        ((np.zeros((2, 2, 2)), np.eye(4), (2, 2, 0), np.eye(4)), r"shape is \(2, 2, 0\)"),
        ((np.zeros((2, 2, 2)), np.eye(4), (2, 2, 2), np.eye(4), np.full((4, 4), np.nan)), "transform is"),
    ],
)
def test_resample_names_what_is_wrong(arguments, message):
    with pytest.raises(ValueError, match=message):
        registration.resample(*arguments)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ((0, 1, "PD", "axial"), "contrast is 'PD'"),
        ((0, 1, "T1w", "oblique"), "orientation is 'oblique'"),
        ((0, -1, "T1w", "axial"), "subject is -1"),
        ((0.5, 1, "T1w", "axial"), "seed is 0.5"),
    ],
)
def test_motion_names_what_is_wrong(arguments, message):
    with pytest.raises(ValueError, match=message):
        registration.motion(*arguments)


def test_the_error_over_an_empty_mask_is_refused():
    with pytest.raises(ValueError, match="mask is empty"):
        registration.error_mm(np.eye(4), np.eye(4), np.zeros((3, 3, 3)), MNI)


def test_every_module_takes_ants_from_one_place():
    # Whoever imports it first decides how many threads it has, and with several its sums differ.
    for path in (layout.ROOT / "src").rglob("*.py"):
        if path.name != "registration.py":
            assert not re.search(r"^\s*(import|from) ants\b", path.read_text(), re.M), path
