"""What the interactive notebooks compute: the same as the study, for a few planes only."""

import numpy as np
import pytest

from helpers import grid, registration, super_resolution
from helpers.acquisition import degradation, rf_pulse, slice_profile
from helpers.analysis import metrics
from helpers.haca3 import harmonizer, networks, slicing
from helpers.haca3.planes import harmonize_planes
from helpers.lab import live
from helpers.study import CONTRASTS, ORIENTATIONS, RESOLUTIONS, Resolution
from helpers.super_resolution.network import Network

AFFINE = np.array([[-1.0, 0, 0, 20], [0, -1, 0, 24], [0, 0, 1, -18], [0, 0, 0, 1]])
POSITION = (20, 24, 18)


@pytest.fixture(scope="module")
def volume():
    return np.random.default_rng(0).random((40, 48, 36), np.float32)


@pytest.mark.parametrize("orientation", ORIENTATIONS)
@pytest.mark.parametrize(
    "resolution", [RESOLUTIONS[0], RESOLUTIONS[-1], Resolution(2.3, 0.4)], ids=lambda r: r.label
)
def test_three_planes_are_those_of_the_volume_that_the_study_makes(volume, orientation, resolution):
    stack, affine = degradation.degrade(volume, AFFINE, orientation, resolution)
    whole = registration.resample(stack, affine, volume.shape, AFFINE)
    planes = live.acquired(volume, orientation, resolution, POSITION)
    # `resample` cuts at zero where the stack has no negative value; the harmonizer does in any case.
    for plane, image in planes.items():
        np.testing.assert_allclose(
            np.maximum(image, 0), np.maximum(live.plane_of(whole, plane, POSITION), 0), atol=2e-5
        )


def test_lines_sliced_with_the_simulated_profile_are_those_of_the_coronal_plane(volume):
    resolution = Resolution(4, 1)
    made = live.degraded_lines(live.plane_of(volume, "coronal", POSITION), resolution, live.kernels(4))
    np.testing.assert_allclose(
        made["simulated"], live.acquired(volume, "axial", resolution, POSITION)["coronal"], atol=2e-5
    )
    assert list(made) == ["simulated", "box", "Gaussian", "radifox"]


def test_a_gaussian_slice_is_further_from_the_simulated_one_than_a_box(volume):
    made = live.degraded_lines(
        live.plane_of(volume, "coronal", POSITION), Resolution(5, 0), live.kernels(5, rf_pulse.Pulse(tb=16))
    )
    error = {name: np.abs(image - made["simulated"]).mean() for name, image in made.items()}
    assert 0 == error["simulated"] < error["box"] < error["Gaussian"]


def test_there_are_kernels_of_slices_thinner_than_a_voxel_but_no_radifox_one():
    assert list(live.kernels(0.8)) == ["simulated", "box", "Gaussian"]


@pytest.mark.parametrize("shape", ["box", "gaussian"])
def test_plain_profiles_have_the_thickness_they_are_said_to_have(shape):
    # On a fine grid the taps are the profile itself.
    taps = slice_profile.plain_taps(shape, 5.0, 0.01)
    position = (np.arange(len(taps)) - len(taps) // 2) * 0.01
    assert taps.sum() == pytest.approx(1)
    assert slice_profile.fwhm(position, taps) == pytest.approx(5, abs=0.02)
    np.testing.assert_allclose(taps, taps[::-1], atol=1e-15)


def test_an_unknown_plain_profile_is_refused():
    with pytest.raises(ValueError, match="shape is 'triangle': accepted are box, gaussian"):
        slice_profile.plain_taps("triangle", 5, 1)


def test_cross_talk_of_many_gaps_is_that_of_each():
    gaps = np.array([0.0, 0.5, 1.5])
    many = slice_profile.cross_talk(4, gaps, rf_pulse.Pulse(tb=4))
    assert many.tolist() == pytest.approx(
        [slice_profile.cross_talk(4, gap, rf_pulse.Pulse(tb=4)) for gap in gaps]
    )
    assert many[0] > many[1] > many[2]


@pytest.fixture(scope="module")
def model():
    import torch

    with torch.random.fork_rng():
        torch.manual_seed(0)
        return harmonizer.Harmonizer(networks.build(2, 2), "cpu")


@pytest.fixture(scope="module")
def resolver():
    """A small one, not taught, which adds something."""
    import torch

    network = Network(7, 4)
    generator = torch.Generator().manual_seed(0)
    for weights in network.parameters():
        torch.nn.init.normal_(weights, std=0.1, generator=generator)
    network.requires_grad_(False)
    return super_resolution.SuperResolver(network, Resolution(5, 1.5), rf_pulse.Pulse(), (1.0, 1.0))


@pytest.fixture(scope="module")
def head():
    """Three contrasts of a ball with structure, on HACA3's grid, and its mask."""
    rng = np.random.default_rng(1)
    x, y, z = np.ogrid[:192, :224, :192]
    brain = (x - 96) ** 2 + (y - 112) ** 2 + (z - 96) ** 2 < 60**2
    blocks = [
        np.kron(rng.random((12, 14, 12), np.float32) + 0.5, np.ones((16, 16, 16), np.float32))
        for _ in CONTRASTS
    ]
    return {contrast: 300 * image * brain for contrast, image in zip(CONTRASTS, blocks)}, brain


def test_a_slice_is_harmonized_as_it_is_in_a_volume(model, head):
    images, _ = head
    targets = {"T1w": model.target(images["T2w"]), "FLAIR": model.target(images["FLAIR"])}
    whole = model.harmonize(images, targets, orientations=("coronal",), slice_step=21, seed=5).images
    sources = {
        c: np.where(slicing.foreground(n), n, 0).take(94, 1)
        for c, n in ((c, slicing.normalise(i)[0]) for c, i in images.items())
    }
    planes = {contrast: {"coronal": plane} for contrast, plane in sources.items()}
    one = harmonize_planes(model, planes, targets, {"coronal": 94}, seed=5)
    for contrast in targets:
        assert np.isfinite(whole[contrast][:, 94]).all() and one[contrast]["coronal"].any()
        np.testing.assert_allclose(one[contrast]["coronal"], whole[contrast][:, 94], rtol=1e-5, atol=1e-3)


def test_a_slice_of_another_grid_is_refused(model):
    with pytest.raises(
        ValueError, match=r"source T1w has shape \(3, 3\): accepted is a slice of 192 x 224 pixels"
    ):
        harmonize_planes(model, {"T1w": {"axial": np.zeros((3, 3))}}, {}, {"axial": 96})


def test_the_3d_images_harmonized_live_are_their_own_reference(model, head):
    images, brain = head
    looked_at, position = live.scene(images, brain), (96, 112, 96)
    targets = {"T1w": model.target(images["T2w"])}
    whole = {
        c: {plane: live.plane_of(image, plane, position) for plane in live.AXIS}
        for c, image in images.items()
    }
    truth = live.harmonized(model, targets, looked_at, whole, position)["T1w"]
    assert set(truth) == set(live.AXIS)
    assert live.compare(truth, truth, looked_at, position) == (np.inf, 1)
    sources = live.sources(looked_at, live.Scan("1a", Resolution(5, 1.5)), position)
    psnr, ssim = live.compare(whole["T1w"], sources["T1w"], looked_at, position)
    inside = [live.plane_of(brain, plane, position) for plane in live.AXIS]
    reference, image = (
        np.concatenate([p[plane][i] for plane, i in zip(live.AXIS, inside)])
        for p in (whole["T1w"], sources["T1w"])
    )
    peak = max(p.max() for p in whole["T1w"].values())
    assert psnr == pytest.approx(metrics.psnr(reference[:, None, None], image[:, None, None], peak), abs=1e-3)
    assert 0 < ssim < 1


def test_super_resolved_planes_are_those_of_the_volume_and_kept(resolver):
    rng = np.random.default_rng(0)
    volume = np.kron(rng.random((24, 24, 26), np.float32), np.ones((3, 3, 3), np.float32))  # some 70 mm
    stack, affine = degradation.degrade(volume, grid.AFFINE, "coronal", resolver.resolution)
    whole, _ = super_resolution.super_resolve(stack, affine, resolver.resolution, resolver, 72)
    known, position = {}, (20, 30, 40)
    planes = live.super_resolved(volume, "coronal", resolver, position, known)
    for plane, axis in live.AXIS.items():
        # The coronal plane is parallel to the slices: a little of what is added is left out of it.
        atol = 0.02 if plane == "coronal" else 1e-5
        np.testing.assert_allclose(planes[plane], whole.take(position[axis], axis), atol=atol)
    again = live.super_resolved(volume, "coronal", resolver, (20, 30, 41), known)
    assert again["sagittal"] is planes["sagittal"] and again["axial"] is not planes["axial"]


def test_a_scan_gives_what_was_acquired_or_the_3d_image(head, resolver):
    looked_at, position, thick = live.scene(*head), (96, 112, 96), Resolution(5, 1.5)
    whole = live.whole(looked_at, position)
    plain, resolved = (
        live.sources(looked_at, live.Scan("3", thick, super_resolution=how), position, resolver)
        for how in (False, True)
    )
    acquired = live.acquired(looked_at.images["T2w"], "axial", thick, position)
    for plane in live.AXIS:
        assert np.array_equal(plain["T1w"][plane], whole["T1w"][plane])
        assert np.array_equal(resolved["T1w"][plane], whole["T1w"][plane])
        np.testing.assert_array_equal(plain["T2w"][plane], acquired[plane])
        assert not np.array_equal(resolved["T2w"][plane], acquired[plane])


def test_the_fusion_that_knows_resolution_is_that_of_a_volume(model, head):
    looked_at, position = live.scene(*head), (96, 112, 94)
    scan = live.Scan("3", Resolution(5, 1.5), fusion=True)
    targets = {"T2w": model.target(looked_at.images["T2w"])}
    given = live.sources(looked_at, scan, position)
    plain, fused = (
        live.harmonized(model, targets, looked_at, given, position, geometry)["T2w"]
        for geometry in (None, scan.geometry())
    )
    assert all(not np.array_equal(plain[plane], fused[plane]) for plane in plain)
    alike = live.Scan("1a", Resolution(5, 1.5), fusion=True)
    given = live.sources(looked_at, alike, position)
    plain, fused = (
        live.harmonized(model, targets, looked_at, given, position, geometry)["T2w"]
        for geometry in (None, alike.geometry())
    )
    assert all(np.array_equal(plain[plane], fused[plane]) for plane in plain)


def test_a_question_has_two_answers_and_is_asked_again_by_its_number():
    asked = [live.duel(number, RESOLUTIONS) for number in range(50)]
    assert all(a != b for a, b in asked)
    assert asked == [live.duel(number, RESOLUTIONS) for number in range(50)]
    assert len({a for a, _ in asked}) > 10
    assert not any(scan.super_resolution for pair in asked for scan in pair)
    remedies = [live.duel(number, RESOLUTIONS, resolved=RESOLUTIONS[-1]) for number in (3, 2)]
    assert sorted(scan.fusion for scan in remedies[0]) == [False, True]
    assert {scan.resolution for scan in remedies[1] if scan.super_resolution} == {RESOLUTIONS[-1]}
    assert live.duel(3, RESOLUTIONS, seed=1) != live.duel(3, RESOLUTIONS, seed=0)


def test_lesions_are_outlined_in_one_slice_of_each_scan(head, monkeypatch):
    images, brain = head
    middle = (96, 112, 94)
    x, y, z = np.ogrid[:192, :224, :192]
    rim = brain & ((x - 96) ** 2 + (y - 112) ** 2 + (z - 96) ** 2 > 50**2)
    fluid = (x - 96) ** 2 + (y - 112) ** 2 + (z - 96) ** 2 < 20**2
    lesion = ((x - 130) ** 2 + (y - 112) ** 2 < 4**2) & (z == 94)  # thinner than a slice
    noise = np.random.default_rng(2).normal(0, 3, brain.shape).astype(np.float32)
    t1w = np.select([fluid, rim, brain], [80, 200, 300], 0) + noise * brain
    flair = np.select([lesion, fluid, rim, brain], [330, 40, 250, 220], 0) + noise * brain
    looked_at = live.scene({"T1w": t1w, "T2w": images["T2w"], "FLAIR": flair}, brain)
    monkeypatch.setattr(live, "harmonized", lambda model, targets, looked_at, given, *_: given)
    scans = [live.Scan("1a", Resolution(5, 1.5))]
    first, thick = live.lesion_panels(None, dict.fromkeys(CONTRASTS), looked_at, scans, middle)
    assert first["says"] == "1 lesions in this slice" and first["found"].any()
    assert thick["says"].startswith("1 of 1 missed") and thick["missed"].any()
