"""Super-resolution of thick slices: what holds for any network, and what a small one learns in seconds."""

import hashlib

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import ndimage
from scipy.spatial.transform import Rotation

from helpers import layout, linear, super_resolution
from helpers.acquisition import degradation
from helpers.acquisition.rf_pulse import Pulse
from helpers.study import Resolution
from helpers.super_resolution import stacks, training
from helpers.super_resolution.linear_estimate import estimate_matrix, tikhonov_matrix
from helpers.super_resolution.network import Network

RESOLUTION = Resolution(3, 0)
#: Turned about two axes, the second one flipped, voxels of 1 mm.
OBLIQUE = np.eye(4)
OBLIQUE[:3, :3] = Rotation.from_euler("zx", [100, 8], degrees=True).as_matrix() * [1, -1, 1]
OBLIQUE[:3, 3] = 7, -20, 11


def blobs(seed, shape=(60, 56, 72)):
    """Round things with edges, on a ground whose intensity changes slowly, in the dark; 1 mm."""
    rng = np.random.default_rng(seed)
    kinds = [ndimage.gaussian_filter(rng.standard_normal(shape), sigma) for sigma in (1.5, 3.0, 3.0)]
    head = (
        np.linalg.norm(
            np.stack(np.meshgrid(*(np.linspace(-1.2, 1.2, n) for n in shape), indexing="ij")), axis=0
        )
        < 1
    )
    shading = ndimage.gaussian_filter(rng.standard_normal(shape), 8)
    inside = (
        100
        + 30 * shading / shading.std()
        + 60 * sum(ndimage.gaussian_filter((kind > 0).astype(float), 0.7) for kind in kinds)
    )
    return np.where(head, inside, 0).astype(np.float32)


def stack_of(volume, resolution=RESOLUTION, affine=np.eye(4)):
    return degradation.degrade(volume, affine, "axial", resolution)


def decibels(reference, image):
    return 20 * np.log10(np.abs(reference).max() / np.sqrt(np.mean((reference - image.astype(float)) ** 2)))


@pytest.fixture(scope="module")
def resolver():
    stacks = [stack_of(blobs(seed)) for seed in (0, 1)]
    return super_resolution.train(stacks, RESOLUTION, steps=300, channels=8)


def sharp(resolver, channels=8):
    """A resolver of the same shape with large random weights: what holds for it holds for any."""
    network = Network(resolver.network.rows, channels)
    generator = torch.Generator().manual_seed(0)
    for weights in network.parameters():
        torch.nn.init.normal_(weights, std=0.2, generator=generator)
    return super_resolution.SuperResolver(
        network.requires_grad_(False), resolver.resolution, resolver.pulse, resolver.in_plane_mm
    )


# ---------------------------------------------------------------- the linear part


@pytest.mark.parametrize("resolution", [Resolution(3, 0), Resolution(4, 1.2), Resolution(5, 1.5)])
def test_the_linear_estimate_has_exactly_these_slices(resolution):
    slicing, estimate = (
        degradation.matrix(192, 1.0, resolution),
        estimate_matrix(192, resolution),
    )
    np.testing.assert_allclose(slicing @ estimate, np.eye(len(slicing)), atol=1e-9)
    np.testing.assert_allclose(estimate.sum(axis=1), 1, atol=1e-9)  # a constant stays one


def test_the_linear_estimate_moves_with_the_image():
    # In the middle; moved by two slices of 3 mm.
    estimate = estimate_matrix(180, RESOLUTION)
    np.testing.assert_allclose(estimate[66:120, 25:35], estimate[72:126, 27:37], atol=1e-6)


@pytest.mark.parametrize("resolution", [Resolution(3, 0), Resolution(5, 1.5)])
def test_it_beats_cubic_splines_without_any_network(resolution):
    volume = blobs(2, (40, 40, 130))
    stack, _ = stack_of(volume, resolution)
    spline, tikhonov, estimate = (
        linear.along_axis(matrix, stack, 2)
        for matrix in (
            degradation.back_matrix(130, resolution),
            tikhonov_matrix(130, resolution),
            estimate_matrix(130, resolution),
        )
    )
    assert min(decibels(volume, image) for image in (estimate, tikhonov)) > decibels(volume, spline)


# ---------------------------------------------------------------- what holds for any network


@pytest.mark.parametrize("affine", [np.eye(4), OBLIQUE @ np.diag([1.05, 0.95, 1, 1])])
@pytest.mark.parametrize("length", [None, 71, 72, 73])
def test_degrading_the_result_gives_back_the_slices_at_their_places(resolver, affine, length):
    stack, lr_affine = stack_of(blobs(3), affine=affine)
    volume, out_affine = super_resolution.super_resolve(stack, lr_affine, RESOLUTION, sharp(resolver), length)
    assert volume.dtype == np.float32 and volume.shape == (60, 56, length or 72)
    again, again_affine = degradation.degrade(volume, out_affine, "axial", RESOLUTION)
    np.testing.assert_allclose(again_affine, lr_affine, atol=1e-9)
    assert decibels(stack, again) > 100
    # ... and the network did say something.
    assert decibels(linear.along_axis(estimate_matrix(volume.shape[2], RESOLUTION), stack, 2), volume) < 60


@pytest.mark.parametrize("order", [(0, 1, 2), (1, 0, 2), (2, 0, 1), (1, 2, 0)])
def test_the_order_of_the_axes_and_the_unit_do_not_matter(resolver, order):
    stack, affine = stack_of(blobs(3))
    volume, out_affine = super_resolution.super_resolve(stack, affine, RESOLUTION, resolver)
    columns = [*order, 3]
    turned, turned_affine = super_resolution.super_resolve(
        8 * stack.transpose(order), affine[:, columns], RESOLUTION, resolver
    )
    np.testing.assert_allclose(turned, 8 * volume.transpose(order), rtol=1e-4, atol=1e-2)
    np.testing.assert_allclose(turned_affine, out_affine[:, columns], atol=1e-12)


@pytest.mark.parametrize("order", [(0, 1, 2), (1, 2, 0), (2, 0, 1)])
def test_a_plane_is_that_of_the_volume(resolver, order):
    stack, affine = stack_of(blobs(3))
    affine = affine[:, [*order, 3]]
    stack, through = np.ascontiguousarray(stack.transpose(order)), order.index(2)
    volume, _ = super_resolution.super_resolve(stack, affine, RESOLUTION, sharp(resolver), 73)
    linear_only = linear.along_axis(estimate_matrix(73, RESOLUTION), stack, through)
    for axis in range(3):
        for index in (0, 31, volume.shape[axis] - 1):
            plane = super_resolution.super_resolve_plane(
                stack, affine, RESOLUTION, sharp(resolver), axis, index, 73
            )
            whole = volume.take(index, axis)
            # Of a plane parallel to the slices a little is left out of what is added.
            allowed = 0.1 * np.abs(volume - linear_only).mean() if axis == through else 0
            assert np.abs(plane - whole).mean() < allowed + 1e-4 * stack.max()


def test_empty_slices_stay_empty(resolver):
    volume, _ = super_resolution.super_resolve(
        np.zeros((20, 20, 10)), np.diag([1, 1, 3, 1.0]), RESOLUTION, resolver
    )
    assert volume.shape == (20, 20, 30) and not volume.any()
    for axis in range(3):
        plane = super_resolution.super_resolve_plane(
            np.zeros((20, 20, 10)), np.diag([1, 1, 3, 1.0]), RESOLUTION, resolver, axis, 5
        )
        assert plane.shape == volume.take(5, axis).shape and not plane.any()


# ---------------------------------------------------------------- what the small network learnt


def test_it_restores_more_than_the_linear_estimate(resolver):
    truth = blobs(4)
    stack, affine = stack_of(truth)
    volume, _ = super_resolution.super_resolve(stack, affine, RESOLUTION, resolver)
    estimate = linear.along_axis(estimate_matrix(72, RESOLUTION), stack, 2)
    assert decibels(truth, volume) > decibels(truth, estimate) + 1


def amplitude(volume, frequency):
    """Amplitude of a wave along the last axis, in the middle, where the field of view does not end."""
    line = volume.mean(axis=(0, 1))[12:-12]
    line, z = line - line.mean(), np.arange(12, 12 + len(line))
    window = np.hanning(len(line))
    return 2 * abs(np.sum(window * line * np.exp(-2j * np.pi * frequency * z))) / window.sum()


def wave(frequency):
    z = np.arange(96)
    return np.broadcast_to(100 + 50 * np.sin(2 * np.pi * frequency * z + 0.4), (40, 40, 96)).astype(
        np.float32
    )


@pytest.mark.parametrize("share", [0.3, 0.6])
def test_a_frequency_below_the_slice_nyquist_is_restored(resolver, share):
    frequency = share / (2 * RESOLUTION.separation_mm)
    stack, affine = stack_of(wave(frequency))
    volume, _ = super_resolution.super_resolve(stack, affine, RESOLUTION, resolver)
    assert amplitude(stack.repeat(3, axis=2), frequency) < 50 * (
        1 - 0.1 * share
    )  # the slices have lost some of it
    assert amplitude(volume, frequency) == pytest.approx(50, rel=0.05)


@pytest.mark.parametrize("share", [1.4, 1.7])
def test_a_frequency_above_the_slice_nyquist_is_not_invented(resolver, share):
    frequency = share / (2 * RESOLUTION.separation_mm)
    stack, affine = stack_of(wave(frequency))
    volume, _ = super_resolution.super_resolve(stack, affine, RESOLUTION, resolver)
    assert amplitude(volume, frequency) ** 2 < 0.05 * 50**2  # of its energy less than 5 %


def ripple(volume):
    """Root mean square of waves of one period a slice along the last axis, in the middle."""
    middle = volume[:, :, 12:-12].astype(float)
    middle = middle - ndimage.uniform_filter1d(middle, 9, axis=2)
    z = np.arange(middle.shape[2])
    wave = np.exp(-2j * np.pi * z / RESOLUTION.separation_mm) * np.hanning(len(z))
    return np.sqrt(np.mean(np.abs(middle @ wave) ** 2))


def test_slice_edges_do_not_show_on_a_ramp(resolver):
    ramp = np.broadcast_to(20.0 + np.arange(96), (40, 40, 96)).astype(np.float32)
    volume, _ = super_resolution.super_resolve(*stack_of(ramp), RESOLUTION, resolver)
    steps = np.diff(volume[10:30, 10:30, 15:-15], axis=2)
    assert steps.mean() == pytest.approx(1, abs=0.01) and steps.min() > 0.8 and steps.max() < 1.2


def test_slice_edges_do_not_show_on_a_sphere(resolver):
    distance = np.linalg.norm(
        np.stack(np.meshgrid(*(np.arange(n) - (n - 1) / 2 for n in (60, 60, 72)), indexing="ij")), axis=0
    )
    sphere = (100 * np.clip(22.5 - distance, 0, 1)).astype(np.float32)  # its surface within a voxel
    stack, affine = stack_of(sphere)
    volume, _ = super_resolution.super_resolve(stack, affine, RESOLUTION, resolver)
    spline = linear.along_axis(degradation.back_matrix(72, RESOLUTION), stack, 2)
    assert decibels(sphere, volume) > decibels(sphere, spline) + 1
    assert ripple(volume) < ripple(
        sphere
    )  # not more of it than the surface itself has, and what there is lies where it should
    assert ripple(volume - sphere) < ripple(spline - sphere)


# ---------------------------------------------------------------- the same every time


def digest_of(resolver):
    content = b"".join(weights.numpy().tobytes() for weights in resolver.network.state_dict().values())
    volume, _ = super_resolution.super_resolve(*stack_of(blobs(3)), RESOLUTION, resolver)
    return hashlib.sha256(content + np.ascontiguousarray(volume).tobytes()).hexdigest()


def test_threads_change_no_bit_and_the_seed_does():
    stacks, threads, digests = [stack_of(blobs(0))], torch.get_num_threads(), []
    try:
        for number, seed in ((1, 0), (2, 0), (3, 0), (2, 1)):
            torch.set_num_threads(number)
            digests.append(
                digest_of(super_resolution.train(stacks, RESOLUTION, steps=3, channels=4, seed=seed))
            )
    finally:
        torch.set_num_threads(threads)
    assert len(set(digests[:3])) == 1 and digests[3] != digests[0]


def test_an_interrupted_run_goes_on_and_ends_with_the_same_weights(tmp_path, monkeypatch, capfd):
    stacks, options, lines = [stack_of(blobs(0))], dict(steps=6, channels=4), []
    whole = super_resolution.train(stacks, RESOLUTION, **options)
    assert "super-resolution: 100%" in capfd.readouterr().err
    clip, seen = torch.nn.utils.clip_grad_norm_, []

    def killed(*arguments):
        seen.append(1)
        if len(seen) == 4:
            raise KeyboardInterrupt
        return clip(*arguments)

    monkeypatch.setattr(training, "_SAVE_SECONDS", -1)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(torch.nn.utils, "clip_grad_norm_", killed)
        super_resolution.train(stacks, RESOLUTION, folder=tmp_path, **options)
    again = super_resolution.train(stacks, RESOLUTION, folder=tmp_path, tell=lines.append, **options)
    assert lines == ["goes on at step 3"] and digest_of(again) == digest_of(whole)
    assert [path.name for path in tmp_path.iterdir()] == ["state.pt"]
    with pytest.raises(ValueError, match=r"state\.pt is of another run"):
        super_resolution.train(stacks, RESOLUTION, folder=tmp_path, seed=1, **options)


def test_what_is_learnt_does_not_change():
    """Golden numbers of a resolver after few steps: root mean square of its weights and of what it adds."""
    stack, affine = stack_of(blobs(0))
    resolver = super_resolution.train([(stack, affine)], RESOLUTION, steps=10, channels=4)
    volume, _ = super_resolution.super_resolve(stack, affine, RESOLUTION, resolver)
    added = volume - linear.along_axis(estimate_matrix(72, RESOLUTION), stack, 2)
    weights = torch.cat([weights.flatten() for weights in resolver.network.parameters()])
    measured = [np.sqrt(np.mean(values.astype(float) ** 2)) for values in (weights.numpy(), added)]
    np.testing.assert_allclose(measured, [0.097683, 0.330610], rtol=2e-3)


def test_a_saved_resolver_is_the_same_and_refuses_other_slices(resolver, tmp_path):
    path = tmp_path / "resolver.pt"
    resolver.save(path)
    again = super_resolution.load(path, RESOLUTION)
    assert (again.resolution, again.pulse, again.in_plane_mm) == (
        resolver.resolution,
        resolver.pulse,
        resolver.in_plane_mm,
    )
    assert digest_of(again) == digest_of(resolver)
    with pytest.raises(
        ValueError,
        match=r"resolver\.pt is for slices of 3\|\|0 mm, not of 5\|\|1\.5: accepted is one of",
    ):
        super_resolution.load(path, Resolution(5, 1.5))
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(ValueError, match="cannot be read: accepted are files that SuperResolver.save wrote"):
        super_resolution.load(path)
    torch.save({"kind": "something else"}, path)
    with pytest.raises(ValueError, match="cannot be read"):
        super_resolution.load(path)
    with pytest.raises(FileNotFoundError, match="no such file"):
        super_resolution.load(tmp_path / "none.pt")


@pytest.mark.skipif(
    not torch.cuda.is_available(), reason="super-resolution on a GPU: none here that torch can use"
)
def test_a_gpu_gives_the_same_up_to_rounding(resolver):
    stack, affine = stack_of(blobs(3))
    expected, _ = super_resolution.super_resolve(stack, affine, RESOLUTION, sharp(resolver))
    on_gpu = sharp(resolver)
    on_gpu.network.to("cuda")
    volume, _ = super_resolution.super_resolve(stack, affine, RESOLUTION, on_gpu)
    assert decibels(expected, volume) > 50
    taught = super_resolution.train([(stack, affine)], RESOLUTION, steps=3, channels=4, device="cuda")
    assert next(taught.network.parameters()).is_cuda


# ---------------------------------------------------------------- other voxels, and what is refused


@pytest.mark.parametrize("voxels_mm", [(0.7, 0.8), (1.4, 1.4)])
def test_voxels_of_other_sizes_are_kept(voxels_mm):
    affine = OBLIQUE @ np.diag([*voxels_mm, 1, 1])
    stack, lr_affine = stack_of(blobs(0), affine=affine)
    resolver = super_resolution.train([(stack, lr_affine)], RESOLUTION, steps=2, channels=2)
    assert resolver.in_plane_mm == pytest.approx(voxels_mm, rel=0.01)
    volume, out_affine = super_resolution.super_resolve(stack, lr_affine, RESOLUTION, resolver)
    assert volume.shape == (60, 56, 72)
    np.testing.assert_allclose(
        np.linalg.norm(out_affine[:3, :3], axis=0), np.linalg.norm(affine[:3, :3], axis=0), rtol=1e-9
    )


def flat(shape=(40, 40, 12), voxels_mm=(1, 1, 3)):
    return np.linspace(0, 1, np.prod(shape), dtype=np.float32).reshape(shape), np.diag([*voxels_mm, 1.0])


@pytest.mark.parametrize(
    "stack, resolution, message",
    [
        (
            flat(voxels_mm=(1, 1, 4)),
            RESOLUTION,
            r"voxels of 1 x 1 x 4 mm: accepted are stacks whose slices lie 3 mm apart \(3\|\|0\)",
        ),
        (
            flat(voxels_mm=(3, 1, 3)),
            RESOLUTION,
            "accepted are slices thicker than 1 mm and than the voxels in their plane",
        ),
        (flat(voxels_mm=(0.5, 0.5, 1)), Resolution(1, 0), "accepted are slices thicker than 1 mm"),
        (
            flat((40, 40, 1)),
            RESOLUTION,
            "has 1 slices: accepted are stacks of 8 and more, the reach of the network",
        ),
        (flat((40, 40, 7)), RESOLUTION, "has 7 slices: accepted are stacks of 8 and more"),
        ((np.full((40, 40, 12), np.nan), np.diag([1, 1, 3, 1.0])), RESOLUTION, "NaN or infinite"),
        ((np.zeros((40, 40, 12, 2)), np.diag([1, 1, 3, 1.0])), RESOLUTION, "has 4 dimensions"),
        ((np.zeros((40, 40, 12)), np.zeros((4, 4))), RESOLUTION, "accepted is an invertible 4 x 4 matrix"),
    ],
)
def test_stacks_that_cannot_be_resolved_are_refused_in_one_line(resolver, stack, resolution, message):
    for refuse in (
        lambda: (
            super_resolution.train([flat(), stack], resolution)
            if resolution == RESOLUTION
            else super_resolution.train([stack], resolution)
        ),
        lambda: super_resolution.super_resolve(*stack, resolution, resolver),
    ):
        with pytest.raises(ValueError, match=message) as error:
            refuse()
        assert "\n" not in str(error.value)


def test_training_refuses_what_teaches_nothing():
    empty, affine = np.zeros((40, 40, 12), np.float32), np.diag([1, 1, 3, 1.0])
    with pytest.raises(ValueError, match="stack 1 shows nothing, its values are 0 to 0"):
        super_resolution.train([flat(), (empty, affine)], RESOLUTION)
    with pytest.raises(
        ValueError,
        match="stack 0 has 20 mm in the plane of its slices: accepted are 24 mm and more, 8 slices",
    ):
        super_resolution.train([flat((20, 40, 12))], RESOLUTION)
    with pytest.raises(ValueError, match="no stacks are given"):
        super_resolution.train([], RESOLUTION)
    with pytest.raises(ValueError, match="steps is 0"):
        super_resolution.train([flat()], RESOLUTION, steps=0)


def test_a_resolver_of_another_protocol_is_refused(resolver):
    with pytest.raises(
        ValueError,
        match=r"resolver is for slices of 3\|\|0 mm, not of 2\.5\|\|0\.5: accepted is one of",
    ):
        super_resolution.super_resolve(*flat(), Resolution(2.5, 0.5), resolver)
    with pytest.raises(
        ValueError,
        match="voxels of 0.5 mm in its plane: accepted are what the resolver was taught with, 1 to 1 mm",
    ):
        super_resolution.super_resolve(*flat(voxels_mm=(1, 0.5, 3)), RESOLUTION, resolver)
    with pytest.raises(
        ValueError, match="length is 40, of which 13 slices are made: accepted is one that gives 12 slices"
    ):
        super_resolution.super_resolve(*flat(), RESOLUTION, resolver, 40)


# ---------------------------------------------------------------- the network that ships


def test_the_shipped_network_is_small_and_of_its_protocol():
    path = layout.MODELS / "super-resolver.pt"
    resolver = super_resolution.load(path, Resolution(5, 1.5))
    assert path.stat().st_size < 1e6 and resolver.pulse == Pulse()
    truth = blobs(5, (30, 60, 78))  # nothing like a brain: at least it harms nothing
    stack, affine = stack_of(truth, resolver.resolution)
    volume, _ = super_resolution.super_resolve(stack, affine, resolver.resolution, resolver)
    spline = linear.along_axis(degradation.back_matrix(78, resolver.resolution), stack, 2)
    assert decibels(truth, volume) > decibels(truth, spline)


def test_what_is_said_of_its_gains_is_what_was_measured():
    table = pd.read_csv(layout.FIGURES / "super_resolution" / "gains.csv")
    assert (table.gain_db > 0).all() and (table.consistency_db > 60).all()
    assert (table.super_resolved_db > table[["cubic_db", "tikhonov_db", "linear_db"]].max(axis=1)).all()
    card = (layout.MODELS / "README.md").read_text()
    simulated = table[table.image.str.startswith("sim")]
    for resolution, gain_db in simulated.groupby("resolution").gain_db.mean().items():
        written = resolution.replace("|", r"\|")  # in a table of Markdown
        assert f"{written} | +{gain_db:.2f} dB" in card


def test_a_sheared_stack_is_refused():
    affine = np.diag([1, 1, 3.5, 1.0])
    affine[0, 2] = 0.5  # Shifted sideways from slice to slice.
    with pytest.raises(ValueError, match="x has axes .* off the right angle: accepted are grids with right"):
        stacks.through_plane_axis((40, 40, 12), affine, Resolution(3, 0.5), "x")
