"""Is an image fit, and one's own images on HACA3's grid."""

import numpy as np
import pytest
from scipy import ndimage
from scipy.spatial.transform import Rotation

from helpers import grid, registration, volumes
from helpers.acquisition import degradation
from helpers.cohort import examination, phantom, preparation, scanners
from helpers.study import CONTRASTS, ORIENTATIONS, RESOLUTIONS, Resolution

AXIS = {"sagittal": 0, "coronal": 1, "axial": 2}


@pytest.fixture(scope="module")
def cohort(simulated):
    return {contrast: volumes.read(path) for contrast, path in simulated(1).items()}


@pytest.fixture(scope="module")
def people(simulated):
    """Subjects of both embedded brains, by their seeds."""
    return {
        seed: {contrast: volumes.read(path) for contrast, path in simulated(seed).items()} for seed in (1, 2)
    }


def interpolated(image, orientation, resolution):
    """Slices that were brought back to 1 mm: what a header calls isotropic."""
    volume, affine = image
    stack, stack_affine = degradation.degrade(volume, affine, orientation, resolution)
    return registration.resample(stack, stack_affine, volume.shape, affine)


@pytest.mark.parametrize("contrast", CONTRASTS)
def test_a_true_3d_image_is_as_sharp_along_every_axis(cohort, contrast):
    findings, found = examination.examine(*cohort[contrast])
    assert findings == []
    assert not found.thick.any()
    np.testing.assert_allclose(found.thickness_mm, found.voxel_mm)


@pytest.mark.parametrize("number", [0, 7])
@pytest.mark.parametrize("contrast, orientation", zip(CONTRASTS, ORIENTATIONS))
def test_interpolated_slices_are_found_with_their_separation(cohort, contrast, orientation, number):
    resolution = RESOLUTIONS[number]
    volume = interpolated(cohort[contrast], orientation, resolution)
    findings, found = examination.examine(volume, cohort[contrast][1])
    assert list(np.flatnonzero(found.thick)) == [AXIS[orientation]]
    assert found.thickness_mm[AXIS[orientation]] == pytest.approx(resolution.separation_mm, abs=1)
    (finding,) = [each for each in findings if "interpolated" in each.text]
    assert not finding.refuses
    assert examination.directions(cohort[contrast][1])[AXIS[orientation]] in finding.text


def test_the_separation_does_not_depend_on_how_the_axes_are_stored(cohort):
    volume, affine = interpolated(cohort["T1w"], "axial", Resolution(4, 0)), cohort["T1w"][1]
    first = examination.sharpness(volume, affine)
    turned = affine[:, [2, 0, 1, 3]] @ np.diag([-1, 1, 1, 1])
    second = examination.sharpness(np.transpose(volume, (2, 0, 1))[::-1].copy(), turned)
    assert second.directions == tuple(first.directions[axis] for axis in (2, 0, 1))
    np.testing.assert_allclose(second.thickness_mm, first.thickness_mm[[2, 0, 1]], rtol=0.02)


@pytest.mark.parametrize(
    "affine, refuses, words",
    [
        (
            np.diag([0.7, 0.7, 3, 1]),
            True,
            "voxels of 0.70 x 0.70 x 3.00 mm: accepted as a high-resolution image are voxels of up to 1.5 mm",
        ),
        (np.diag([1, 1, 1.4, 1]), False, "voxels of 1.00 x 1.00 x 1.40 mm: the study asks for 1 mm"),
        (
            np.array([[1, 0.1, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1.0]]),
            True,
            "axes 5.7 degrees off the right angle",
        ),
    ],
)
def test_a_grid_that_is_unfit_is_named(affine, refuses, words):
    (finding,) = examination.examine_grid((300, 300, 100), affine)
    assert finding.refuses is refuses
    assert words in finding.text


def test_a_field_of_view_that_no_brain_fits_into_is_refused():
    (finding,) = examination.examine_grid((200, 200, 60), np.eye(4))
    assert finding.refuses
    assert "field of view of 200 x 200 x 60 mm" in finding.text


def test_oblique_and_mirrored_grids_are_fine():
    turned = registration.motion(0, 1, "T1w", "axial")
    assert examination.examine_grid((192, 224, 192), turned @ np.diag([-1, 1, 1, 1])) == []


def test_constant_clipped_and_negative_intensities_are_named(cohort):
    volume, affine = cohort["T1w"]
    (finding,) = [each for each in examination.examine(np.zeros_like(volume), affine)[0]]
    assert finding.refuses
    assert finding.text == "every voxel is 0: accepted are images with contrast"
    clipped = np.minimum(volume, np.percentile(volume[volume > 0], 98))
    (finding,) = examination.examine(clipped, affine)[0]
    assert not finding.refuses
    assert "intensities were clipped" in finding.text
    negative = volume.copy()
    negative[100, 100, 100:103] = -5
    (finding,) = examination.examine(negative, affine)[0]
    assert "3 voxels are negative, down to -5" in finding.text


def test_bias_correction_takes_a_smooth_field_away_and_keeps_the_scale(cohort):
    volume, affine = cohort["T1w"]
    small, small_affine = volume[::6, ::6, ::6].copy(), affine @ np.diag([6, 6, 6, 1])
    inside = small > 0
    steps = np.meshgrid(*(np.linspace(-1, 1, n) for n in small.shape), indexing="ij")
    field = np.exp(0.4 * steps[0] + 0.3 * steps[2] ** 2).astype(np.float32)
    field /= np.exp(np.log(field[inside]).mean())
    corrected = preparation.correct_bias(small * field, small_affine)

    def unevenness(image):
        return np.std(np.log(image[inside] / small[inside]))

    assert unevenness(corrected) < 0.4 * unevenness(small * field)
    assert np.mean(corrected[inside]) == pytest.approx(np.mean(small[inside]), rel=0.05)
    np.testing.assert_array_equal(corrected == 0, small == 0)


def head(cohort, gap_mm=4, scalp_mm=6):
    """The subject's T1w with a dark skull and a bright scalp around it, which touch the brain nowhere."""
    from edt import edt

    volume, brain = cohort["T1w"][0], cohort["mask"][0] > 0
    distance = edt(~brain)
    white = np.median(volume[brain])
    rng = np.random.default_rng(0)
    noise = np.abs(rng.normal(0, 0.03 * white, volume.shape)).astype(np.float32)
    return np.where(
        brain,
        volume,
        noise
        + np.where((distance > gap_mm) & (distance < gap_mm + scalp_mm), 1.4 * white, 0).astype(np.float32),
    ), brain


def test_the_brain_is_found_inside_a_head(cohort):
    volume, brain = head(cohort)
    found = preparation.brain_mask(volume, np.ones(volume.shape, bool))
    assert 2 * (found & brain).sum() / (found.sum() + brain.sum()) > 0.95
    # Nothing of the scalp but single voxels: 1 in 10,000.
    assert (found & ~ndimage.binary_dilation(brain, iterations=3)).sum() < 1e-4 * brain.sum()


def body(brain, image, affine, below_mm, shoulders=False):
    """A head with skull, scalp, face, and as much of the body as lies within so many mm below the given grid,
    on its voxels."""
    from edt import edt

    voxel_mm = float(np.linalg.norm(affine[:3, 0]))
    added = round(below_mm / voxel_mm)
    image, brain = (np.pad(volume, ((0, 0), (0, 0), (added, 0))) for volume in (image, brain))
    affine = affine @ np.array([[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, -added], [0, 0, 0, 1.0]])
    distance = edt(~brain, anisotropy=(voxel_mm,) * 3)
    white = np.percentile(image[brain], 80)
    x, y, z = np.moveaxis(
        np.moveaxis(np.indices(image.shape), 0, -1) @ affine[:3, :3].T + affine[:3, 3], -1, 0
    )
    outside = distance > 13
    result = np.where(brain, image, 0).astype(np.float32)
    result[(distance > 0) & (distance <= 7)] = 0.12 * white
    result[(distance > 7) & ~outside] = 1.3 * white
    result[(x**2 + (y + 29) ** 2 < 60**2) & (z < -53) & outside] = 0.8 * white
    result[((x / 55) ** 2 + ((y - 36) / 45) ** 2 + ((z + 38) / 60) ** 2 < 1) & outside] = 0.9 * white
    if shoulders:
        result[((x / 96) ** 2 + ((y + 29) / 70) ** 2 < 1) & (z < -158)] = 0.9 * white
    noise = np.random.default_rng(1).normal(0, 0.015 * white, result.shape)
    return np.abs(result + noise).astype(np.float32), affine


def turned(degrees, axis, shift_mm=(0, 0, 0)):
    transform = np.eye(4)
    transform[:3, :3] = Rotation.from_euler("xyz"[axis], degrees, degrees=True).as_matrix()
    transform[:3, 3] = shift_mm
    return transform


@pytest.mark.parametrize("below_mm, shoulders", [(0, False), (40, False), (100, False), (130, True)])
@pytest.mark.parametrize("degrees, axis", [(0, 0), (20, 0), (-20, 0), (20, 1), (20, 2)])
def test_one_start_lies_near_the_brain_however_much_of_the_body_is_seen(below_mm, shoulders, degrees, axis):
    (image, affine), mask = (
        registration.coarsen(preparation.template("T1w")[0], grid.AFFINE),
        preparation.template("T1w")[1],
    )
    brain = registration.coarsen(mask.astype(np.float32), grid.AFFINE)[0] > 0.5
    volume, body_affine = body(brain, image, affine, below_mm, shoulders)
    # A header that knows nothing of where the head is.
    true = turned(degrees, axis, (800, -1200, 3000))
    found = preparation.starts(volume, true @ body_affine)
    assert min(registration.error_mm(start, true, brain, affine) for start in found) < 15
    # None turns a head upside down, on its side, or into its mirror image.
    assert min(np.diag(start)[:3].min() for start in found) > 0.9
    np.testing.assert_allclose([np.linalg.det(start) for start in found], 1)


@pytest.mark.slow
def test_a_head_with_neck_is_registered_as_its_brain_alone_is():
    fixed, affine = registration.coarsen(preparation.template("T1w")[0], grid.AFFINE, 2)
    brain = registration.coarsen(preparation.template("T1w")[1].astype(np.float32), grid.AFFINE, 2)[0] > 0.5
    volume, body_affine = body(brain, fixed, affine, 60)
    arguments = (volume, body_affine, fixed, affine, brain)
    found = registration.estimate(*arguments, starts=preparation.starts(volume, body_affine))
    assert registration.error_mm(found, np.eye(4), brain, affine) < 1
    # What one start, the centre of mass of all there is, comes to.
    assert registration.error_mm(registration.estimate(*arguments), np.eye(4), brain, affine) > 10


@pytest.mark.slow
@pytest.mark.parametrize(
    "seed, below_mm, shoulders, degrees, axis, header",
    [
        (1, 40, False, 0, 0, "far"),
        (2, 60, False, -20, 0, "zero"),
        (1, 100, False, 20, 1, "corner"),
        (2, 130, True, 20, 2, "far"),
    ],
)
def test_the_brain_of_a_head_with_neck_comes_to_lie_where_it_does_without(
    people, seed, below_mm, shoulders, degrees, axis, header
):
    person = people[seed]
    brain = person["mask"][0] > 0
    alone = preparation.prepare({"T1w": person["T1w"]})
    volume, affine = body(brain, *person["T1w"], below_mm, shoulders)
    header_affine = turned(degrees, axis) @ affine
    middle = header_affine[:3, :3] @ ((np.array(volume.shape) - 1) / 2)
    header_affine[:3, 3] = {"far": (800, -1200, 3000), "zero": -middle, "corner": (0, 0, 0)}[header]
    true = header_affine @ np.linalg.inv(affine) @ alone.transforms["T1w"]
    prepared = preparation.prepare({"T1w": (volume, header_affine)})
    assert registration.error_mm(prepared.transforms["T1w"], true, brain, grid.AFFINE) < 2
    # Subject 1 is warped far from the expected edges: that may be doubted, and is not refused.
    assert not [finding for finding in prepared.findings["T1w"] if finding.refuses or seed != 1]


def test_no_brain_is_found_where_there_is_none():
    with pytest.raises(ValueError, match="no brain where the template has one"):
        preparation.brain_mask(np.zeros(grid.SHAPE, np.float32), np.ones(grid.SHAPE, bool))


def test_a_stripped_image_is_told_from_a_head(cohort):
    assert examination.is_stripped(cohort["T1w"][0])
    assert not examination.is_stripped(head(cohort)[0])


def test_the_edges_of_a_brain_that_the_template_is_not_tell_how_it_lies(cohort):
    image, known = cohort["T1w"][0], preparation.template("T1w")[1]
    expected = preparation.expected_edges("T1w")
    upright, turned = preparation.edge_likeness(image, expected, known)
    assert upright > preparation.WARNED_LIKENESS > turned
    for axes in (2, 1, (1, 2)):
        # Whatever the unit.
        upright, turned = preparation.edge_likeness(300 * np.flip(image, axes), expected, known)
        assert upright < turned


def smooth_noise(distance, rng):
    return ndimage.gaussian_filter(rng.normal(0, 1, distance.shape), 2) * (distance < 1)


def organ(distance, rng):
    return np.where(distance < 1, 200 - 100 * (distance < 0.6), 0) + rng.normal(0, 5, distance.shape)


def half_organ(distance, rng):
    return organ(distance, rng) * (np.indices(distance.shape)[1] > 100)


@pytest.mark.parametrize("make", [smooth_noise, organ, half_organ])
def test_edges_of_what_is_no_brain_are_no_more_like_one_that_lies_upright(make):
    known = preparation.template("T1w")[1]
    voxels = np.argwhere(known)
    place = (np.indices(known.shape).T - voxels.mean(axis=0)) / (2.2 * voxels.std(axis=0))
    image = np.abs(make(np.linalg.norm(place, axis=-1).T, np.random.default_rng(0))).astype(np.float32)
    upright, turned = preparation.edge_likeness(image, preparation.expected_edges("T1w"), known)
    assert upright <= turned


def test_nothing_is_like_an_image_of_which_nothing_is_seen():
    image, brain = preparation.template("T1w")
    assert preparation.edge_likeness(image, image, np.zeros_like(brain)) == (0, 0)
    assert preparation.edge_likeness(np.ones_like(image), image, brain) == (0, 0)


@pytest.mark.parametrize("as_acquired", [True, False])
def test_thick_slices_are_known_as_such_whether_they_were_interpolated_or_not(cohort, as_acquired):
    volume, affine = cohort["T1w"]
    assert not examination.is_thick(examination.sharpness(volume, affine))
    stack, stack_affine = degradation.degrade(volume, affine, "axial", Resolution(3, 0))
    image = (
        (stack, stack_affine)
        if as_acquired
        else (interpolated(cohort["T1w"], "axial", Resolution(3, 0)), affine)
    )
    assert examination.is_thick(examination.sharpness(*image))


@pytest.mark.parametrize(
    "likeness, thick, refuses, words",
    [
        ((0.25, 0.1), True, False, "as thick slices have them (correlation of edges 0.25"),
        ((0.25, 0.1), False, False, "wrong orientation?"),
        ((0.15, 0.3), True, True, "wrong orientation?"),
        ((0.4, 0.5), False, True, "wrong orientation?"),
    ],
)
def test_thick_slices_are_not_taken_for_a_wrong_orientation(
    monkeypatch, cohort, likeness, thick, refuses, words
):
    # The registration and the measure are tested elsewhere.
    monkeypatch.setattr(registration, "estimate", lambda *_, **__: np.eye(4))
    monkeypatch.setattr(preparation, "edge_likeness", lambda *_: likeness)
    monkeypatch.setattr(preparation, "correct_bias", lambda volume, _: volume)
    image = cohort["T1w"]
    if thick:
        image = degradation.degrade(*image, "axial", Resolution(3, 0))
    (finding,) = preparation.prepare({"T1w": image}, "keep").findings["T1w"]
    assert finding.refuses is refuses
    assert words in finding.text
    assert ("orientation" in finding.text) == ("orientation" in words)


def test_the_template_is_the_embedded_brain_on_the_grid_of_haca3():
    image, brain = preparation.template("FLAIR")
    assert image.shape == grid.SHAPE
    np.testing.assert_array_equal(image > 0, brain)


@pytest.mark.parametrize(
    "images, message",
    [
        ({"T2w": 0, "FLAIR": 0}, "images are T2w, FLAIR: accepted are T1w with others, or one contrast"),
        ({"T2w": 1}, "the T2w image has its background"),
    ],
)
def test_without_a_t1w_nothing_is_guessed(cohort, images, message):
    volume, affine = cohort["T2w"]
    with pytest.raises(ValueError, match=message):
        preparation.prepare({contrast: (volume + offset, affine) for contrast, offset in images.items()})


@pytest.mark.slow
def test_a_moved_subject_comes_back_to_within_half_a_voxel_of_itself(cohort):
    # T2w and FLAIR of another session: each its own motion. The truth between contrasts is known.
    motions = {contrast: registration.motion(3, 1, contrast, "axial") for contrast in CONTRASTS}
    moved = {
        contrast: (cohort[contrast][0], registration.move(cohort[contrast][1], motion))
        for contrast, motion in motions.items()
    }
    prepared = preparation.prepare(moved)
    brain = cohort["mask"][0] > 0
    back = {
        contrast: np.linalg.inv(motions[contrast]) @ prepared.transforms[contrast] for contrast in CONTRASTS
    }
    for contrast in ("T2w", "FLAIR"):
        assert registration.error_mm(back[contrast], back["T1w"], brain, grid.AFFINE) < 0.5
    assert all(not findings for findings in prepared.findings.values())
    # Another subject's T2w is noticed, and so is a mirrored one.
    for stranger in (
        phantom.render(phantom.subject(4), scanners.scanner("study-1"), "T2w", 1),
        cohort["T2w"][0][::-1].copy(),
    ):
        mixed = preparation.prepare({"T1w": moved["T1w"], "T2w": (stranger, grid.AFFINE)})
        assert any("another person" in each.text for each in mixed.findings["T2w"])


@pytest.mark.slow
@pytest.mark.parametrize("flip", [2, 1])
def test_a_brain_upside_down_or_back_to_front_is_refused(cohort, flip):
    volume, affine = cohort["T1w"]
    prepared = preparation.prepare({"T1w": (np.flip(volume, flip).copy(), affine)})
    assert any(each.refuses and "wrong orientation" in each.text for each in prepared.findings["T1w"])


@pytest.mark.slow
def test_a_person_scanned_again_is_told_from_another(cohort):
    person = phantom.subject(1)
    again = phantom.render(person, scanners.scanner("study-4"), "T1w", 7)
    moved = np.eye(4)
    moved[:3, 3] = 0.4, -0.3, 0.5  # mm, by which registering it again may differ
    again = registration.resample(again, person.affine, person.brain.shape, person.affine, moved)
    other = phantom.render(phantom.subject(2), scanners.scanner("study-1"), "T1w", 3)
    first, second, third = map(preparation.portrait, (cohort["T1w"][0], again, other))
    assert first @ first == pytest.approx(1, abs=1e-5)
    assert first @ second > preparation.SAME_PERSON > first @ third
    np.testing.assert_allclose(preparation.portrait(3 * again), second, atol=1e-6)
    assert not preparation.portrait(np.zeros_like(other)).any()


# ---------------------------------------------------------------- can this be an image at all?


def at_2_mm(cohort, contrast):
    volume, affine = cohort[contrast]
    return volume[::2, ::2, ::2].copy(), affine @ np.diag([2, 2, 2, 1])


def in_a_head(volume):
    """The brain with a dark skull and a scalp around it, and noise outside."""
    grown = [ndimage.binary_dilation(volume > 0, iterations=n) for n in (2, 5)]
    noise = np.abs(np.random.default_rng(0).normal(0, 0.02 * volume.max(), volume.shape))
    return noise + volume + 0.8 * volume.max() * (grown[1] & ~grown[0])


def half_a_voxel_on(volume):
    """As a cubic B-spline leaves it: faint rings, some of them negative, where the background was 0."""
    return ndimage.shift(volume, 0.5, order=3, mode="constant")


def wrapped(volume, top):
    return (volume / volume.max() * top).astype(np.int64).astype(np.int16).astype(np.float32)


def z_scores(volume, where):
    return np.where(where, (volume - volume[where].mean()) / volume[where].std(), 0)


IMPLAUSIBLE = {
    "z-scores of the brain": (lambda v: z_scores(v, v > 0), "of its signal is negative, down to"),
    "z-scores of all voxels": (lambda v: (v - v.mean()) / v.std(), "its background is at -0."),
    "z-scores of a head": (
        lambda v: z_scores(in_a_head(v), np.ones(v.shape, bool)),
        "its background is at -0.",
    ),
    "from -1 to 1": (lambda v: 2 * v / v.max() - 1, "of its signal is negative"),
    "a phase": (
        lambda v: np.random.default_rng(0).uniform(-np.pi, np.pi, v.shape),
        "of its signal is negative",
    ),
    "background of a CT": (lambda v: np.where(v > 0, v, -1024), "of its signal is negative"),
    "wrapped": (lambda v: wrapped(v, 60000), "whole numbers that have wrapped around"),
    "wrapped where it is brightest": (lambda v: wrapped(v, 36000), "whole numbers that have wrapped around"),
    "wrapped, in a head": (lambda v: wrapped(in_a_head(v), 45000), "whole numbers that have wrapped around"),
    "a mask": (lambda v: v > 0, "2 different values, a mask or a segmentation"),
    "tissues": (lambda v: np.digitize(v, [1, 100, 200, 300]), "5 different values"),
    "labels": (
        lambda v: np.where(v > 0, 100 + np.indices(v.shape).sum(axis=0) // 6, 0),
        "of neighbouring voxels are equal",
    ),
    "overexposed": (lambda v: np.minimum(v, np.percentile(v[v > 0], 40)), "the largest value, as in a mask"),
    "lifted": (lambda v: v + 1000, "its background is at 1000"),
    "lifted by a third": (lambda v: v + v.max() / 3, "accepted is a background near 0"),
    "lifted head": (lambda v: in_a_head(v) + v.max(), "accepted is a background near 0"),
    "inverted": (lambda v: v.max() - v, "is brighter than the head"),
    "inverted head": (lambda v: in_a_head(v).max() - in_a_head(v), "accepted is a background near 0"),
    "a piece": (lambda v: v * (np.arange(v.shape[2]) > 100 * 0.7), " ml: accepted are 500 ml or more"),
    "constant": (lambda v: v * 0 + 3, "every voxel is 3"),
}


@pytest.mark.parametrize("kind", IMPLAUSIBLE)
def test_values_that_no_image_has_are_refused_wherever_one_comes_in(cohort, kind):
    volume, affine = at_2_mm(cohort, "T1w")
    change, words = IMPLAUSIBLE[kind]
    changed = np.asarray(change(volume), np.float32)
    (finding,) = examination.examine_values(changed, affine)
    assert (
        finding.refuses and words in finding.text and "accepted" in finding.text and "\n" not in finding.text
    )
    assert finding in examination.examine(changed, affine)[0]
    with pytest.raises(ValueError, match="^T1w: ") as error:
        preparation.prepare({"T1w": (changed, affine)})
    assert finding.text in str(error.value)


def lesioned(volume):
    distance = sum((index - n // 2) ** 2 for index, n in zip(np.indices(volume.shape), volume.shape))
    return np.where(distance < 100, 1.3 * volume.max(), volume)


def defaced(volume):
    head = in_a_head(volume)
    head[:, : head.shape[1] // 4, : head.shape[2] // 2] = 0
    return head


PLAUSIBLE = {
    "as it is": lambda v: v,
    "in a head": in_a_head,
    "defaced": defaced,
    "a lesion": lesioned,
    "noisy": lambda v: np.abs(v + np.random.default_rng(0).normal(0, 0.15 * v.max(), v.shape)),
    "background of an MP2RAGE": lambda v: np.where(
        v > 0, v, np.random.default_rng(0).uniform(0, v.max(), v.shape)
    ),
    "resampled": half_a_voxel_on,
    "background of -1": lambda v: np.where(v > 0, v, -1),
    "60 grey levels": lambda v: np.round(60 * v / v.max()),
    "smooth, of 8 bits": lambda v: np.round(255 * ndimage.gaussian_filter(v, 1) / v.max()),
    "nearest neighbours": lambda v: v[tuple(index // 2 * 2 for index in np.indices(v.shape))],
    "tiny": lambda v: v * 1e-12,
    "huge": lambda v: v * 1e12,
    "one hot voxel": lambda v: np.where(np.arange(v.size).reshape(v.shape) == v.size // 2, 1e7, v),
}


@pytest.mark.parametrize(
    "kind, contrast",
    [
        (kind, contrast)
        for kind in PLAUSIBLE
        for contrast in CONTRASTS
        if contrast == "T1w" or "MP2RAGE" not in kind
    ],
)
def test_what_people_acquire_and_programs_leave_is_accepted(cohort, kind, contrast):
    volume, affine = at_2_mm(cohort, contrast)
    assert examination.examine_values(PLAUSIBLE[kind](volume).astype(np.float32), affine) == []


@pytest.mark.parametrize("size", [0.75, 1.1])
def test_small_and_large_heads_are_accepted(cohort, size):
    volume, affine = at_2_mm(cohort, "T1w")
    assert examination.examine_values(volume, affine @ np.diag([size, size, size, 1])) == []


@pytest.mark.parametrize("factor", [1e-9, 1, 1e9])
@pytest.mark.parametrize("contrast", CONTRASTS)
def test_a_background_that_interpolation_has_left_almost_nothing_of_is_removed(cohort, contrast, factor):
    volume, affine = at_2_mm(cohort, contrast)
    resampled = (factor * half_a_voxel_on(volume)).astype(np.float32)
    assert examination.is_stripped(resampled) and examination.shows_brain_only(resampled, affine)
    assert examination.foreground(resampled).sum() == pytest.approx(
        examination.foreground(volume).sum(), rel=0.1
    )


def test_a_head_whose_air_is_blank_is_no_brain(cohort):
    volume, affine = at_2_mm(cohort, "T2w")
    head = np.where(ndimage.binary_dilation(volume > 0, iterations=10), in_a_head(volume), 0).astype(
        np.float32
    )
    assert examination.is_stripped(head) and not examination.shows_brain_only(head, affine)
    with pytest.raises(ValueError, match="the T2w image has its background or skull"):
        preparation.prepare({"T2w": (head, affine)})
