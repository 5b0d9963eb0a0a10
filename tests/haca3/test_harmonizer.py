"""HACA3: the networks against the published program's numbers, and what must hold of a harmonization."""

import copy
import functools
import hashlib
import json
import math
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import ndimage

from helpers import grid, haca3, study
from helpers.analysis import metrics
from helpers.haca3 import checkpoint, networks, slice_networks, slicing
from helpers.haca3.fast import fusion, threads, winograd
from helpers.haca3.planes import harmonize_planes
from helpers.haca3.slice_networks import SliceNetworks

GOLDEN = Path(__file__).parents[1] / "golden"
SHAPES = json.loads((GOLDEN / "haca3_shapes.json").read_text())
DIGESTS = json.loads((GOLDEN / "haca3_digests.json").read_text())
NUMBERS = np.load(GOLDEN / "haca3_modules.npz")
MODULES = ("beta_encoder", "theta_encoder", "eta_encoder", "decoder", "attention_module", "patchifier")


# ---------------------------------------------------------------- fake weights, fake brains


def fake_state(shapes, generator):
    """Weights of unit gain, drawn in the order of the sorted keys."""
    state = {}
    for key in sorted(shapes):
        z = torch.randn(shapes[key], generator=generator)
        if len(shapes[key]) > 1:
            state[key] = z * math.sqrt(2 / math.prod(shapes[key][1:]))
        else:
            state[key] = 1 + 0.1 * z if key.endswith("weight") else 0.1 * z
    return state


def digest(states):
    sha = hashlib.sha256()
    for name, state in states.items():
        for key in sorted(state):
            sha.update(f"{name}.{key}".encode() + state[key].numpy().tobytes())
    return sha.hexdigest()


@pytest.fixture(scope="module")
def published_width(tmp_path_factory):
    """Checkpoints of the published widths with fake weights."""
    generator = torch.Generator().manual_seed(20240917)
    states = {name: fake_state(SHAPES[name], generator) for name in MODULES}
    states["decoder"]["out_conv.2.bias"].fill_(1.0)
    fusion = {"fusion_net": fake_state(SHAPES["fusion_net"], torch.Generator().manual_seed(20240918))}
    fusion["fusion_net"]["conv2.2.bias"].fill_(1.0)
    assert digest(states) == DIGESTS["harmonization_fake.pt"]
    assert digest(fusion) == DIGESTS["fusion_fake.pt"]
    folder = tmp_path_factory.mktemp("weights")
    torch.save({"epoch": 8, "timestr": "fake", **states}, folder / "harmonization.pt")
    torch.save({"epoch": 4, **fusion}, folder / "fusion.pt")
    return haca3.load(folder / "harmonization.pt", folder / "fusion.pt", device="cpu", compiled=False)


@pytest.fixture(scope="module")
def small_file(tmp_path_factory):
    """A checkpoint of widths 2 and 4 with random weights: quick, and neither of the published widths."""
    generator = torch.Generator().manual_seed(3)
    modules = networks.build(2, 4)
    for module in modules.values():
        module.load_state_dict(fake_state({k: t.shape for k, t in module.state_dict().items()}, generator))
    modules["decoder"].out_conv[2].bias.data.fill_(1.0)
    path = tmp_path_factory.mktemp("small") / "small.pt"
    checkpoint.save(path, modules, epoch=1, timestr="test")
    return path


@pytest.fixture(scope="module")
def small(small_file):
    return haca3.load(small_file, device="cpu", compiled=False)


def head(seed, z=(60, 130)):
    """An ellipsoid with smooth texture on the MNI grid, and nothing outside the given axial slices."""
    rng = np.random.default_rng(seed)
    coarse = ndimage.zoom(rng.uniform(50, 150, (12, 14, 12)), 16, order=1).astype(np.float32)
    x, y, w = np.ogrid[-1:1:192j, -1:1:224j, -1:1:192j]
    volume = np.where((x / 0.7) ** 2 + (y / 0.75) ** 2 + (w / 0.7) ** 2 < 1, coarse, 0)
    volume[:, :, : z[0]] = volume[:, :, z[1] :] = 0
    return volume


@pytest.fixture(scope="module")
def heads():
    return {"T1w": head(1), "T2w": 3 * head(2), "FLAIR": 0.1 * head(3, z=(70, 140))}


@pytest.fixture(scope="module")
def sources(heads):
    """The heads preprocessed once, nothing encoded yet."""
    return {name: haca3.Encoding(volume=slicing.preprocess(volume)[0]) for name, volume in heads.items()}


@pytest.fixture(scope="module")
def target(small, heads):
    return {"T1w": small.target(heads["T1w"])}


# ---------------------------------------------------------------- networks against golden numbers


def test_every_key_and_shape_is_the_published_one(published_width):
    for name, shapes in SHAPES.items():
        state = published_width.networks[name].state_dict()
        assert {key: list(tensor.shape) for key, tensor in state.items()} == shapes, name


@pytest.mark.parametrize(
    "name, given, wanted",
    [
        ("beta_encoder", "beta_encoder_small_in", "beta_encoder_small_out"),
        ("beta_encoder", "beta_encoder_rect_in", "beta_encoder_rect_out"),
        ("decoder", "decoder_small_in", "decoder_small_out"),
        ("decoder", "decoder_rect_in", "decoder_rect_out"),
        ("eta_encoder", "slice224_in", "eta"),
        ("patchifier", "slice224_in", "patchifier"),
        ("fusion_net", "fusion_in", "fusion_out"),
    ],
)
def test_a_network_gives_the_published_numbers(published_width, name, given, wanted):
    # The third slice of slice224_in is all zero; instance norm turns it into amplified rounding noise.
    keep = slice(0, 2) if given == "slice224_in" else slice(None)
    with torch.inference_mode():
        result = published_width.networks[name](torch.from_numpy(NUMBERS[given])[keep])
    np.testing.assert_allclose(result.numpy(), NUMBERS[wanted][keep], atol=1e-4, rtol=0)


def test_theta_and_the_logits_of_whole_slices_are_the_published_ones(published_width):
    image = torch.from_numpy(NUMBERS["slice224_in"])[:2]
    with torch.inference_mode():
        mu, logvar = published_width.networks["theta_encoder"](image)
        logits = published_width.networks["beta_encoder"](image)
    np.testing.assert_allclose(mu, NUMBERS["theta_mu"][:2], atol=1e-4, rtol=0)
    np.testing.assert_allclose(logvar, NUMBERS["theta_logvar"][:2], atol=1e-4, rtol=0)
    np.testing.assert_allclose(
        logits[:, :, 96:128, 96:128], NUMBERS["beta_logit224_center"][:2], atol=1e-4, rtol=0
    )


@pytest.mark.parametrize("temperature", [5, 10])
@pytest.mark.parametrize("dropped", ["none", "drop"])
def test_the_attention_gives_the_published_numbers(published_width, temperature, dropped):
    q, k, v = (torch.from_numpy(NUMBERS[f"attn_{x}"]) for x in "qkv")
    drop = torch.from_numpy(NUMBERS["attn_drop"]) if dropped == "drop" else None
    with torch.inference_mode():
        fused, weights = published_width.networks["attention_module"](q, k, v, drop, temperature)
    np.testing.assert_allclose(fused, NUMBERS[f"attn_T{temperature}_{dropped}_v"], atol=1e-4, rtol=0)
    np.testing.assert_allclose(weights, NUMBERS[f"attn_T{temperature}_{dropped}_a"], atol=1e-5, rtol=0)


def test_attention_sums_to_one_and_a_dropped_contrast_weighs_nothing():
    generator = torch.Generator().manual_seed(0)
    attention = networks.Attention()
    weights = attention.weights(
        torch.randn(6, 4, generator=generator),
        torch.randn(6, 3, 4, generator=generator),
        torch.tensor([0.0, 1.0, 0.0]),
    )
    np.testing.assert_allclose(weights.sum(1).detach(), 1, atol=1e-6)
    assert (weights[:, 1] == 0).all() and (weights[:, 0] > 0).all()


def test_the_eta_convolution_as_a_matrix_product_is_that_convolution(published_width):
    eta = published_width.networks["eta_encoder"]
    image = torch.randn(
        1, 1, 240, 224, generator=torch.Generator().manual_seed(1)
    )  # 240: an incomplete block is ignored
    with torch.inference_mode():
        plain = eta.seq(torch.cat([eta.in_conv(image), image], dim=1))
        np.testing.assert_allclose(eta(image), plain, atol=1e-4)


@pytest.fixture(params=["torch", "compiled"])
def fusion_program(request):
    if request.param == "torch":
        return None
    return fusion.library() or pytest.skip(
        "the compiled fusion: no C++ compiler here; on Debian: apt install g++"
    )


#: Where an image is not zero, of how many voxels: in the middle, at one face or the other, near one, in all
#: of it, in one voxel, nowhere, in volumes too small for any middle.
BOXES = {
    "middle": ((30, 34, 41), (12, 9, 10), (20, 22, 31)),
    "at a face": ((30, 28, 41), (0, 9, 10), (14, 28, 20)),
    "near a face": ((24, 25, 26), (5, 3, 9), (15, 20, 22)),
    "everywhere": ((18, 13, 35), (0, 0, 0), (18, 13, 35)),
    "one voxel": ((17, 18, 19), (8, 8, 8), (9, 9, 9)),
    "nowhere": ((17, 18, 19), (8, 8, 8), (8, 8, 8)),
    "small": ((6, 9, 12), (2, 3, 4), (3, 5, 6)),
    "smallest": ((1, 2, 7), (0, 0, 0), (1, 1, 2)),
}


@pytest.mark.parametrize("where", BOXES)
def test_the_fusion_net_in_a_box_gives_what_it_gives_on_the_whole_volume(
    published_width, fusion_program, where
):
    shape, start, stop = BOXES[where]
    x = torch.zeros((1, 3, *shape))
    some = x[(..., *map(slice, start, stop))]
    some.copy_(torch.rand(some.shape, generator=torch.Generator().manual_seed(1)))
    net = published_width.networks["fusion_net"]
    with torch.inference_mode():
        whole = copy.deepcopy(net).double()(x.double())
        boxed = fusion.BoxedFusion(net, fusion_program)(x)
    assert boxed.shape == whole.shape
    np.testing.assert_allclose(boxed, whole, rtol=0, atol=4e-6 * float(whole.abs().max()))


# ---------------------------------------------------------------- preprocessing


def test_padding_is_centred_and_an_odd_size_has_the_extra_voxel_at_the_end():
    index = np.nonzero(slicing.pad(np.ones((5, 7, 9), np.float32)))
    assert [(i.min(), i.max()) for i in index] == [(110, 114), (109, 115), (108, 116)]


def test_normalising_brings_the_95th_percentile_to_one_and_clips_at_five():
    volume = np.full(1000, 2.0)
    volume[:10] = 1e6
    normalised, norm = slicing.normalise(volume)
    assert norm == 2 and normalised.dtype == np.float32
    np.testing.assert_allclose([normalised.min(), normalised.max()], [1, 5], atol=1e-5)


def published_closing(mask):
    """The closing written down plainly: whole box of 256, Euclidean distances of scipy."""
    start = [128 - n // 2 for n in mask.shape]
    box = np.pad(mask, [(s, 256 - n - s) for s, n in zip(start, mask.shape)])
    dilated = ndimage.distance_transform_edt(~box) <= 20
    closed = ndimage.distance_transform_edt(dilated) > 20
    return closed[tuple(slice(s, s + n) for s, n in zip(start, mask.shape))]


def test_the_quick_closing_is_the_published_one_bit_for_bit():
    # Sparse blobs up to the border of the volume, so that the edge of the box matters.
    shape = (50, 224, 31)
    rng = np.random.default_rng(5)
    mask = ndimage.gaussian_filter(rng.standard_normal(shape), 3) > 0.06
    mask[0, shape[1] // 2, 0] = mask[-1, -1, -1] = True
    closed = slicing.close(mask)
    assert 0 < (closed & ~mask).sum() < mask.size
    np.testing.assert_array_equal(closed, published_closing(mask))


def test_the_closing_fills_a_hole_and_leaves_an_empty_mask_empty():
    mask = np.ones((80, 80, 80), bool)
    mask[30:50, 30:50, 30:50] = False
    assert slicing.close(mask).all()
    assert not slicing.close(np.zeros((10, 10, 10), bool)).any()


def test_the_threshold_maximises_the_variance_between_the_classes():
    volume = np.random.default_rng(2).gamma(2, 1, (20, 30, 25)).astype(np.float32)
    counts, edges = np.histogram(volume, 256)
    centres = (edges[1:] + edges[:-1]) / 2
    spread = []
    for i in range(1, 256):
        a, b = counts[:i].sum(), counts[i:].sum()
        means = [(c * x).sum() / c.sum() for c, x in ((counts[:i], centres[:i]), (counts[i:], centres[i:]))]
        spread.append(a * b * (means[0] - means[1]) ** 2)
    threshold = centres[int(np.argmax(spread))]
    np.testing.assert_array_equal(slicing.foreground(volume), slicing.close(volume >= np.float32(threshold)))


@pytest.mark.parametrize("orientation", ["axial", "coronal", "sagittal"])
def test_a_slice_put_back_is_where_it_came_from_and_is_seen_head_up(orientation):
    volume = np.random.default_rng(0).random((224, 224, 224), np.float32)
    back = np.zeros((192, 224, 192), np.float32)
    image = slicing.slice_of(volume, orientation, 70)
    slicing.put_slice(back, orientation, 70, image)
    axis = {"axial": 2, "coronal": 1, "sagittal": 0}[orientation]
    where = (70 - (16, 0, 16)[axis], axis)
    np.testing.assert_array_equal(back.take(*where), volume[16:208, :, 16:208].take(*where))
    assert np.count_nonzero(back.any(axis=tuple({0, 1, 2} - {axis}))) == 1
    i, j = 20, 150
    expected = {
        "axial": volume[j, i, 70],
        "coronal": volume[j, 70, 223 - i],
        "sagittal": volume[70, j, 223 - i],
    }
    assert image[i, j] == expected[orientation]


# ---------------------------------------------------------------- harmonization


def test_harmonize_computes_what_the_definition_says(small, heads, sources):
    """One coronal slice in argmax mode, put together step by step from the networks."""
    target = small.target(heads["FLAIR"])
    result = small.harmonize(
        sources, {"FLAIR": target}, orientations=["coronal"], anatomy="argmax", slice_step=101, details=True
    )
    y = 50  # 101 // 2, the first slice that is visited
    net = small.networks
    with torch.inference_mode():
        slices = [
            torch.from_numpy(slicing.slice_of(source.volume, "coronal", y))[None, None]
            for source in sources.values()
        ]
        keys = torch.cat(
            [torch.cat([net["theta_encoder"](s)[0], net["eta_encoder"](s)], 1) for s in slices]
        )  # (3, 4, 1, 1)
        k = keys[None, :, :, 0].permute(0, 2, 3, 1)  # (1, 4, 1, 3)
        q = torch.from_numpy(np.concatenate([target.theta, target.eta]))[None, :, None]
        v = torch.stack([net["beta_encoder"](s).flatten(2) for s in slices], dim=-1)
        logits, weights = net["attention_module"](q, k, v, temperature=5.0)
        beta = logits.argmax(1, keepdim=True) / 5
        decoded = net["decoder"](torch.cat([beta, q[:, :2, :, None].expand(1, 2, 224, 224)], dim=1))
        expected = (decoded * (slices[0] > 1e-6))[0, 0].numpy() * target.norm
    # rows of a coronal slice run against z, columns along x
    np.testing.assert_allclose(
        result.images["FLAIR"][:, y, ::-1], expected.T[16:208, 16:208], atol=1e-4 * target.norm
    )
    np.testing.assert_allclose(result.attention["FLAIR"]["coronal"][y], weights[0], atol=1e-6)
    np.testing.assert_allclose(result.theta["T2w"]["coronal"][y], keys[1, :2, 0, 0], atol=1e-6)
    np.testing.assert_allclose(
        result.eta["T2w"]["coronal"][y], keys[1, 2:, 0, 0], atol=3e-5
    )  # sums of 65 000 products, in another order
    assert expected.max() > 0


def differing(expected, image, tolerance):
    """Share of the pixels that show something in which two previews differ by more than a tolerance."""
    shown = np.nan_to_num(expected) > 0
    assert shown.any()
    return np.mean(np.abs(image - expected)[shown] > tolerance)


def test_slices_may_go_through_the_networks_together(small, small_file, sources, target, monkeypatch):
    """As on a GPU: the noise of a slice is its own, so batches change rounding only."""
    one = small.harmonize(sources, target, slice_step=24, details=True)
    batched = haca3.load(small_file, device="cpu", compiled=False)
    monkeypatch.setattr(batched.slices, "batches", lambda ks: [ks[i : i + 3] for i in range(0, len(ks), 3)])
    many = batched.harmonize(sources, target, slice_step=24, details=True)
    assert (
        differing(one.images["T1w"], many.images["T1w"], 1e-3 * target["T1w"].norm) < 1e-3
    )  # a label within rounding may flip
    for name in sources:
        np.testing.assert_allclose(one.theta[name]["axial"], many.theta[name]["axial"], atol=1e-3)
    np.testing.assert_allclose(one.attention["T1w"]["axial"], many.attention["T1w"]["axial"], atol=1e-3)


@pytest.fixture
def program():
    return winograd.library() or pytest.skip(
        "the compiled networks: no C++ compiler here; on Debian: apt install g++"
    )


@pytest.mark.parametrize("size", [(1, 1), (3, 5), (4, 4), (14, 14), (17, 30), (56, 21)])
@pytest.mark.parametrize("channels", [(16, 16), (16, 48), (48, 16), (128, 64)])
def test_winograd_is_the_convolution_to_rounding(program, size, channels):
    generator = torch.Generator().manual_seed(0)
    conv = torch.nn.Conv2d(*channels, 3, padding=1)
    for parameter in conv.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator)
    x = torch.randn((2, channels[0], *size), generator=generator)
    with torch.inference_mode():
        expected = conv.double()(x.double())
        ours = winograd.Convolution(program, conv.float())(x)
    assert ours.shape == expected.shape
    assert (ours - expected).abs().max() < 1e-5 * expected.abs().max()


@pytest.mark.parametrize("level, spread", [(0, 1), (1e4, 1), (-3, 1e-3), (0.7, 0)])
def test_normalization_is_the_instance_norm_whatever_the_level(program, level, spread):
    norm, relu = torch.nn.InstanceNorm2d(32), torch.nn.LeakyReLU(0.1)
    x = level + spread * torch.randn((2, 32, 19, 23), generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        ours = winograd.Normalization(program, norm, relu)(x)  # a copy, since x has its channels first
        torch.testing.assert_close(ours, relu(norm(x.double())).float(), atol=1e-5, rtol=1e-4)
    if not spread:
        assert not ours.any()  # a constant stays one; torch makes 316 times its rounding of it


@pytest.mark.parametrize("level", [0, 0.7, -1e3])
@pytest.mark.parametrize("size", [(1, 1), (4, 8), (14, 14), (61, 87)])
def test_a_norm_that_gets_its_moments_from_the_convolution_is_the_same(program, level, size):
    conv, norm, relu = (
        torch.nn.Conv2d(16, 48, 3, padding=1),
        torch.nn.InstanceNorm2d(48),
        torch.nn.LeakyReLU(0.1),
    )
    generator = torch.Generator().manual_seed(4)
    for parameter in conv.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator)
    conv.bias.data += level
    x = torch.randn((2, 16, *size), generator=generator)
    normalization = winograd.Normalization(program, norm, relu)
    with torch.inference_mode():
        image = winograd.Convolution(program, conv)(x)
        expected = relu(norm(image.double())) if image[0, 0].numel() > 1 else torch.zeros_like(image).double()
        ours = winograd.Convolution(program, conv, normalization)(x)
        torch.testing.assert_close(ours, normalization(image), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(ours.double(), expected, atol=1e-5, rtol=1e-5)


def test_accelerated_networks_are_the_published_ones_to_rounding(program, published_width):
    image = torch.rand((2, 1, 14, 14), generator=torch.Generator().manual_seed(2))
    image = torch.nn.functional.interpolate(image, size=224, mode="bicubic")
    for name in ("beta_encoder", "eta_encoder", "decoder"):
        network, x = published_width.networks[name], image.expand(-1, 3 if name == "decoder" else 1, -1, -1)
        quick = winograd.accelerated(network)
        assert any(isinstance(module, winograd.Convolution) for module in quick.modules())
        with torch.inference_mode():
            expected, ours = network(x).flatten(0, 1), quick(x).flatten(0, 1)
        assert metrics.psnr(expected.numpy(), ours.numpy(), float(expected.max() - expected.min())) > 100, (
            name
        )


def test_compiled_networks_give_the_same_image_to_rounding(program, small, small_file, heads, target):
    quick = haca3.load(small_file, device="cpu", compiled=True)
    plain, fast = (
        {name: model.encode(volume, slice_step=64) for name, volume in heads.items()}
        for model in (small, quick)
    )
    for name in heads:
        expected, ours = (np.concatenate(encodings[name].arrays()["logits"]) for encodings in (plain, fast))
        assert metrics.psnr(expected, ours, float(np.ptp(expected))) > 100, name
    # From the same logits: where two are equal within rounding, another label would make another image.
    expected, ours = (
        model.harmonize(plain, target, anatomy="argmax", slice_step=64).images["T1w"]
        for model in (small, quick)
    )
    np.testing.assert_array_equal(np.isnan(expected), np.isnan(ours))
    shown = np.nan_to_num(expected) > 0
    assert 10 * np.log10(expected[shown].max() ** 2 / np.mean((expected - ours)[shown] ** 2)) > 100


def test_without_a_compiler_the_networks_run_as_they_are_and_one_line_says_so_once(
    small_file, monkeypatch, capsys
):
    monkeypatch.setattr(
        winograd, "library", functools.cache(winograd.library.__wrapped__)
    )  # without what an earlier test has built
    monkeypatch.setattr(winograd.compiler, "library", lambda source: (None, "there is no C++ compiler here"))
    for _ in range(2):
        model = haca3.load(small_file, device="cpu")
        assert not model.compiled
        assert not any(
            isinstance(module, winograd.Convolution) for module in model.slices.quick["decoder"].modules()
        )
    output = capsys.readouterr()
    assert (
        output.out.count("\n") == 1
        and output.out.endswith(": there is no C++ compiler here\n")
        and not output.err
    )


def test_networks_run_compiled_unless_asked_not_to(program, small, small_file):
    assert haca3.load(small_file, device="cpu").compiled and not small.compiled
    assert not haca3.load(small_file, device="cpu", precision="bfloat16").compiled


def on_threads(function, counts=(1, 2, 3, 5, 8)):
    """SHA-256 of the arrays that a function returns on each number of threads, and see that torch has its
    threads afterwards."""
    before, digests = torch.get_num_threads(), []
    try:
        for count in counts:
            torch.set_num_threads(count)
            arrays = function()
            assert torch.get_num_threads() == count
            digests.append(
                hashlib.sha256(b"".join(np.ascontiguousarray(each).tobytes() for each in arrays)).hexdigest()
            )
    finally:
        torch.set_num_threads(before)
    return digests


@pytest.mark.parametrize(
    "name", ["beta_encoder", "theta_encoder", "eta_encoder", "decoder", "patchifier", "attention_module"]
)
@pytest.mark.parametrize("way", ["plain", "compiled", "bfloat16"])
def test_a_network_gives_the_same_bytes_on_any_number_of_threads(published_width, name, way, request):
    network = published_width.networks[name]
    if way == "compiled":
        request.getfixturevalue("program")
        network = winograd.accelerated(network)
    generator = torch.Generator().manual_seed(1)
    images = torch.rand((2, 1, 1 + 2 * (name == "decoder"), 224, 224), generator=generator)
    keys = torch.randn((2, 2, 3, 4), generator=generator)

    def compute(image, key):
        with torch.autocast("cpu", torch.bfloat16, enabled=way == "bfloat16"):
            result = network.weights(key[0, :1], key[1:]) if name == "attention_module" else network(image)
        return [each.float().numpy() for each in (result if isinstance(result, tuple) else (result,))]

    def all_of_them():
        with torch.inference_mode(), threads.side_by_side() as run:
            return [array for arrays in run(compute, images, keys) for array in arrays]

    assert len(set(on_threads(all_of_them))) == 1


def test_the_fusion_net_gives_the_same_bytes_on_any_number_of_threads(published_width, fusion_program):
    x = torch.rand((1, 3, 50, 60, 64), generator=torch.Generator().manual_seed(2))

    def fuse():
        with torch.inference_mode():
            return [fusion.BoxedFusion(published_width.networks["fusion_net"], fusion_program)(x).numpy()]

    assert len(set(on_threads(fuse))) == 1


def test_the_noise_has_the_same_bytes_on_any_number_of_threads():
    assert len(set(on_threads(lambda: [slicing.gumbel_noise(3, "axial", 90).numpy()]))) == 1


@pytest.mark.parametrize(
    "way", [{}, {"compiled": False}, {"precision": "bfloat16"}, {"variant": "haca3plus"}], ids=str
)
def test_codes_targets_and_images_have_the_same_bytes_on_any_number_of_threads(
    small_file, heads, sources, way, monkeypatch
):
    monkeypatch.setattr(
        slicing, "preprocess", lambda volume: (sources["T1w"].volume, 1.0)
    )  # takes longer than the networks
    monkeypatch.setattr(slicing, "TARGET_SLICES", range(100, 104))
    model = haca3.load(small_file, device="cpu", **way)
    plane = sources["T1w"].volume[16:208, :, 110]

    def everything():
        target = model.target(heads["T2w"])
        codes = model.encode(heads["T1w"], ["axial"], 60).arrays()
        whole = model.harmonize(sources, {"T2w": target}, slice_step=60, details=True)
        one = harmonize_planes(model, {"T1w": {"axial": plane}}, {"T2w": target}, {"axial": 110})
        return [
            target.theta,
            target.eta,
            codes["logits"],
            codes["key"],
            whole.images["T2w"],
            whole.attention["T2w"]["axial"],
            one["T2w"]["axial"],
        ]

    assert len(set(on_threads(everything))) == 1


def test_torch_has_its_threads_again_after_an_error():
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        with pytest.raises(ZeroDivisionError), threads.side_by_side() as run:
            assert (
                list(run(lambda _: torch.get_num_threads(), range(5))) == [1] * 5
                and torch.get_num_threads() == 1
            )
            list(run(lambda number: 1 / number, range(5)))
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)


@pytest.mark.skipif(
    not (torch.cuda.is_available() or torch.backends.mps.is_available()),
    reason="encodings on a GPU: none here that torch can use",
)
def test_a_gpu_takes_encodings_that_were_stored(small, small_file, heads, target):
    options = dict(slice_step=64, anatomy="argmax")
    expected = small.harmonize(heads, target, **options).images["T1w"]
    gpu = haca3.load(small_file)
    assert gpu.device != "cpu"
    stored = {
        name: haca3.Encoding.from_arrays(gpu.encode(volume, slice_step=64).arrays())
        for name, volume in heads.items()
    }
    for sources in (heads, stored):
        assert (
            differing(
                expected, gpu.harmonize(sources, target, **options).images["T1w"], 1e-3 * target["T1w"].norm
            )
            < 1e-2
        )


def test_bfloat16_is_coarser_but_says_the_same(small, small_file, sources):
    image = slicing.slice_of(sources["T1w"].volume, "axial", 110)
    coarse = haca3.load(small_file, device="cpu", precision="bfloat16")
    with torch.inference_mode():
        ((exact, key),), ((rounded, same_key),) = (
            small.slices.encode([image], small.networks),
            coarse.slices.encode([image], coarse.networks),
        )
    assert rounded.dtype == torch.float32 and torch.equal(key, same_key)  # theta and eta stay exact
    assert 0 < (exact - rounded).std() < 0.25 * exact.std()  # random weights amplify rounding


# ---------------------------------------------------------------- HACA3+


def plus_map_by_hand(attention):
    """Pixel by pixel, as the definition reads; attention (n, H, W)."""
    n, height, width = attention.shape
    shared = np.empty_like(attention)
    for i, j in np.ndindex(height, width):
        total = attention[:, i, j].sum()
        shared[:, i, j] = 1 / n if total < 1e-6 else attention[:, i, j] / (total + 1e-6)
    smooth = shared.copy()
    for i, j in np.ndindex(height, width):
        for di, dj in ((-1, 0), (1, 0), (0, -1), (0, 1)):
            beside = shared[:, np.clip(i + di, 0, height - 1), np.clip(j + dj, 0, width - 1)]
            for c in range(n):
                if abs(smooth[c, i, j] - beside[c]) > 0.2:
                    smooth[c, i, j] = (smooth[c, i, j] + beside[c]) / 2
        smooth[:, i, j] /= smooth[:, i, j].sum() + 1e-6
    return smooth


def test_the_attention_map_of_haca3plus_is_its_definition():
    rng = np.random.default_rng(4)
    attention = rng.random((3, 9, 11)) * (rng.random((3, 9, 11)) > 0.5)
    attention[:, 2:4] = 0  # no source shows these pixels
    result = slice_networks.attention_map(torch.from_numpy(attention)[None])[0]
    np.testing.assert_allclose(result, plus_map_by_hand(attention), atol=1e-12)


def test_haca3plus_takes_a_pixel_from_the_sources_that_show_it(small_file, heads, target):
    plus = haca3.load(small_file, variant="haca3plus")
    left, right = heads["T1w"].copy(), heads["T2w"].copy()
    left[96:], right[:96] = 0, 0
    options = dict(slice_step=191, anatomy="argmax")  # slice 95
    both = plus.harmonize({"T1w": left, "T2w": right}, target, **options).images["T1w"][:, :, 95]
    alone = plus.harmonize({"T1w": left}, target, **options).images["T1w"][:, :, 95]
    assert (both[96:] > 0).any() and not (alone[96:] > 0).any()  # the union of the masks is its default
    first = plus.harmonize({"T1w": left, "T2w": right}, target, **options, mask="first").images["T1w"][
        :, :, 95
    ]
    np.testing.assert_array_equal(first[:96], both[:96])
    assert not (first[96:] > 0).any()


def test_the_scale_of_an_image_does_not_matter_and_the_output_has_that_of_the_target(
    small, heads, sources, target
):
    scaled = small.target(8 * heads["T1w"])
    np.testing.assert_allclose(scaled.theta, target["T1w"].theta, atol=1e-5)
    assert scaled.norm == pytest.approx(8 * target["T1w"].norm)
    once = small.harmonize(sources, target, anatomy="argmax", slice_step=180).images["T1w"]
    eight = small.harmonize(
        sources | {"T1w": 8 * heads["T1w"]}, {"T1w": scaled}, anatomy="argmax", slice_step=180
    ).images["T1w"]
    assert (once[:, :, 90] > 0).any()
    # Labels whose margin is within rounding may flip; few do.
    assert differing(8 * once, eight, 1e-2 * 8 * target["T1w"].norm) < 1e-3


def test_the_same_seed_gives_the_same_bytes_whatever_threads_steps_and_encodings(
    small, heads, sources, target
):
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = small.harmonize(sources, target, slice_step=36).images["T1w"]
        torch.set_num_threads(2)
        two = small.harmonize(sources, target, slice_step=36).images["T1w"]
        coarse = small.harmonize(sources, target, slice_step=180).images[
            "T1w"
        ]  # slice 90, where the other step comes by too
        encoded = sources | {"T1w": small.encode(heads["T1w"], ["axial"], 36)}
        again = small.harmonize(encoded, target, slice_step=36).images["T1w"]
    finally:
        torch.set_num_threads(before)
    assert encoded["T1w"].slices.keys() == {("axial", 16 + 18 + 36 * i) for i in range(5)}
    np.testing.assert_array_equal(one, two)
    np.testing.assert_array_equal(one, again)
    assert (coarse[:, :, 90] > 0).any()
    np.testing.assert_array_equal(coarse[:, :, 90], one[:, :, 90])


def test_what_is_harmonized_together_has_the_bytes_of_what_is_harmonized_alone_and_is_encoded_once(
    small, sources, target, monkeypatch
):
    encoded = []
    encode = SliceNetworks.encode

    def counting(self, images, nets):
        encoded.extend(hashlib.sha256(image.tobytes()).hexdigest() for image in images)
        return encode(self, images, nets)

    cases = {
        "all": sources,
        "two": {name: sources[name] for name in ("FLAIR", "T1w")},
        "one": {"T2w": sources["T2w"]},
    }
    how = {"mask": "union", "slice_step": 36, "details": True}
    alone = {case: small.harmonize(some, target, **how) for case, some in cases.items()}
    monkeypatch.setattr(SliceNetworks, "encode", counting)
    together = dict(small.harmonize_all(cases, target, **how))
    assert list(together) == list(cases)
    for case, result in together.items():
        np.testing.assert_array_equal(result.images["T1w"], alone[case].images["T1w"])
        weights, expected = (each.attention["T1w"]["axial"] for each in (result, alone[case]))
        np.testing.assert_array_equal(weights, expected)
        assert result.sources == tuple(cases[case])
    empty = hashlib.sha256(np.zeros((224, 224), np.float32).tobytes()).hexdigest()
    slices = [each for each in encoded if each != empty]
    assert len(slices) == len(set(slices)) > 3


def test_an_encoding_comes_back_from_its_arrays_and_serves_only_the_slices_that_it_has(
    small, heads, target, tmp_path
):
    encoding = small.encode(heads["FLAIR"], ["axial"], 100)  # slice 50, empty, and slice 150, empty too
    other = small.encode(heads["FLAIR"], ["coronal"], 100)  # slices 50 and 150
    np.savez(tmp_path / "encoding.npz", **other.arrays())
    with np.load(tmp_path / "encoding.npz", allow_pickle=False) as file:
        again = haca3.Encoding.from_arrays(dict(file))
    assert again.digest == encoding.digest and again.slices.keys() == {("coronal", 50), ("coronal", 150)}
    assert all(
        logits is None for _, logits, _ in haca3.Encoding.from_arrays(encoding.arrays()).slices.values()
    )
    for anatomy in study.ANATOMIES:
        options = dict(orientations=["coronal"], slice_step=100, anatomy=anatomy)
        a, b = (
            small.harmonize({"FLAIR": source}, target, **options).images["T1w"]
            for source in (heads["FLAIR"], again)
        )
        np.testing.assert_array_equal(a, b)
        assert np.nanmax(a) > 0
    with pytest.raises(ValueError, match="source FLAIR is encoded without coronal slice 10"):
        small.harmonize({"FLAIR": again}, target, orientations=["coronal"], slice_step=20)


def test_another_seed_gives_another_image_and_argmax_has_no_seed(small, sources, target):
    def run(**options):
        return small.harmonize(sources, target, slice_step=180, **options).images["T1w"]

    assert not np.array_equal(run(seed=1), run(seed=2), equal_nan=True)
    np.testing.assert_array_equal(run(seed=1, anatomy="argmax"), run(seed=2, anatomy="argmax"))


@pytest.mark.slow
def test_independent_noise_differs_by_target_and_sources_and_shared_noise_does_not(small, sources, target):
    both = {"T1w": target["T1w"], "T2w": target["T1w"]}

    def run(sources, anatomy):
        return small.harmonize(sources, both, slice_step=180, anatomy=anatomy).images

    shared, independent = run(sources, "shared"), run(sources, "independent")
    np.testing.assert_array_equal(shared["T1w"], shared["T2w"])
    assert not np.array_equal(independent["T1w"], independent["T2w"], equal_nan=True)
    np.testing.assert_array_equal(run(sources, "independent")["T1w"], independent["T1w"])
    # A change far from slice 90 leaves it alone under shared noise, and draws new noise under independent.
    other = sources["FLAIR"].volume.copy()
    other[112, 112, 90] *= 0.5
    changed = sources | {"FLAIR": haca3.Encoding(volume=other)}
    np.testing.assert_array_equal(run(changed, "shared")["T1w"], shared["T1w"])
    assert not np.array_equal(run(changed, "independent")["T1w"], independent["T1w"], equal_nan=True)


def test_the_noise_is_gumbel_distributed_and_another_one_in_every_slice_and_plane():
    noise = slicing.gumbel_noise(7, "axial", 100)
    assert noise.mean() == pytest.approx(0.5772, abs=0.01) and noise.std() == pytest.approx(
        math.pi / 6**0.5, abs=0.01
    )
    others = [
        slicing.gumbel_noise(*which) for which in ((7, "axial", 101), (7, "coronal", 100), (8, "axial", 100))
    ]
    assert not any(torch.equal(noise, other) for other in others)
    # Labels drawn with it follow the softmax of the logits.
    logits = torch.tensor([0.0, 1.0, -1.0, 0.5, 0.0])
    drawn = torch.bincount((logits[:, None, None] + noise).argmax(0).flatten(), minlength=5) / 224**2
    np.testing.assert_allclose(drawn, torch.softmax(logits, 0), atol=0.01)


def test_a_preview_is_nan_where_it_did_not_look_and_zero_outside_the_mask(small, sources, target):
    result = small.harmonize(sources, target, slice_step=11).images["T1w"]
    looked = np.flatnonzero(np.isfinite(result).all(axis=(0, 1)))
    np.testing.assert_array_equal(looked, np.arange(5, 192, 11))
    assert np.isnan(np.delete(result, looked, axis=2)).all()
    assert result.dtype == np.float32 and result.shape == (192, 224, 192)
    np.testing.assert_array_equal(result[:, :, [5, 181]], 0)  # nothing of any source there
    assert result[:, :, 93].max() > 0


@pytest.mark.parametrize("mask", ["first", "union", "intersection"])
def test_the_mask_is_the_foreground_of_the_sources_that_it_names(small, sources, target, mask):
    # z 60..129 is in T1w and T2w, 70..139 in FLAIR; the steps look at 62, 87, 112 and 137.
    result = small.harmonize(sources, target, mask=mask, slice_step=25, anatomy="argmax").images["T1w"]
    occupied = {z for z in range(12, 192, 25) if result[:, :, z].any()}
    assert occupied == {"first": {62, 87, 112}, "union": {62, 87, 112, 137}, "intersection": {87, 112}}[mask]
    foregrounds = [source.volume[16:208, :, 16:208] > 0 for source in sources.values()]
    wanted = {
        "first": foregrounds[0],
        "union": np.any(foregrounds, 0),
        "intersection": np.all(foregrounds, 0),
    }[mask]
    assert not result[:, :, 87][~wanted[:, :, 87]].any()


def test_one_source_is_enough_and_takes_all_the_attention(small, sources, target):
    result = small.harmonize({"FLAIR": sources["FLAIR"]}, target, slice_step=90, details=True)
    attention = result.attention["T1w"]["axial"]
    assert result.sources == ("FLAIR",) and attention.shape == (192, 1)
    assert attention[135] == 1 and np.isnan(attention[0]).all()


@pytest.mark.slow
def test_three_orientations_without_a_fusion_net_give_the_median_in_the_scale_of_the_target(
    small, sources, target
):
    core = np.s_[108:114, 110:116, 106:112]  # a few voxels, so that there are few slices to compute
    thin = {name: haca3.Encoding(volume=np.zeros((224, 224, 224), np.float32)) for name in sources}
    for name, source in sources.items():
        thin[name].volume[core] = source.volume[core]
    options = dict(orientations=("axial", "sagittal", "coronal"), anatomy="argmax", details=True)
    result = small.harmonize(thin, target, **options)
    parts = result.unfused["T1w"]
    stack = [np.clip(p / (np.percentile(p, 95) + 1e-5), 0, 5) for p in parts.values()]
    np.testing.assert_allclose(result.images["T1w"], np.median(stack, axis=0) * target["T1w"].norm, rtol=1e-5)
    assert set(parts) == {"axial", "sagittal", "coronal"} and result.images["T1w"].any()


class Mix(torch.nn.Module):
    """The channels as digits, and half of the voxel before it in z."""

    def forward(self, x):
        assert x.shape == (1, 3, 224, 224, 224)
        one = x[:, 0:1] + 10 * x[:, 1:2] + 100 * x[:, 2:3]
        return one + 0.5 * torch.nn.functional.pad(one, (0, 0, 0, 0, 1, 0))[:, :, :-1]


def test_the_fusion_net_sees_axial_coronal_sagittal_in_z_y_x():
    rng = np.random.default_rng(0)
    voxels = np.ones((8, 8, 8), np.float32)
    unfused = {
        o: np.kron(rng.random((24, 28, 24), np.float32), voxels) for o in ("sagittal", "axial", "coronal")
    }
    fused = haca3.Harmonizer({"fusion_net": Mix()}).slices.fuse(unfused, norm=2.0)
    part = {o: slicing.normalise(volume)[0] for o, volume in unfused.items()}
    one = part["axial"] + 10 * part["coronal"] + 100 * part["sagittal"]
    expected = 2 * (one + 0.5 * np.pad(one, ((0, 0), (0, 0), (1, 0)))[:, :, :-1])
    np.testing.assert_allclose(fused, expected, rtol=1e-5, atol=1e-4)


def test_two_orientations_are_not_for_the_fusion_net(sources, target):
    with pytest.raises(ValueError, match="accepted for the fusion net are one or all three"):
        haca3.Harmonizer({"fusion_net": Mix()}).harmonize(sources, target, orientations=("axial", "coronal"))


# ---------------------------------------------------------------- checkpoints


def test_widths_are_read_from_the_tensors_and_float16_becomes_float32(small, small_file):
    assert torch.load(small_file, weights_only=True)["decoder"]["in_conv.bias"].dtype == torch.float16
    assert small.networks["beta_encoder"].in_conv.weight.shape == (2, 1, 3, 3)
    assert small.networks["decoder"].in_conv.weight.shape == (4, 3, 3, 3)
    assert all(
        t.dtype == torch.float32 for module in small.networks.values() for t in module.state_dict().values()
    )


def test_a_scheduler_state_of_an_old_torch_does_not_keep_the_weights_from_loading(small_file, tmp_path):
    content = torch.load(small_file, weights_only=True)
    optimizer = torch.optim.Adam([torch.nn.Parameter(torch.zeros(1))])
    scheduler = OldScheduler(optimizer)
    OldScheduler.__module__, OldScheduler.__qualname__ = "torch.optim.lr_scheduler", "CyclicLR"
    with pytest.MonkeyPatch.context() as patch:  # so that pickle finds the class under that name
        patch.setattr(torch.optim.lr_scheduler, "CyclicLR", OldScheduler)
        torch.save(
            content | {"scheduler": {"scale_fn": scheduler.triangular, "base": 4e-4}}, tmp_path / "old.pt"
        )
    with pytest.raises(pickle.UnpicklingError):
        torch.load(tmp_path / "old.pt", weights_only=True)
    loaded = haca3.load(tmp_path / "old.pt", device="cpu")
    assert torch.equal(loaded.networks["decoder"].in_conv.bias, content["decoder"]["in_conv.bias"].float())


class OldScheduler:
    """Holds a bound method, as CyclicLR did before torch 2.0."""

    def __init__(self, optimizer):
        self.optimizer = optimizer

    def triangular(self, x):
        return 1.0


class Payload:
    def __init__(self, command, call=os.system):
        self.command, self.call = command, call

    def __reduce__(self):
        return self.call, (self.command,)


@pytest.mark.parametrize("call", [os.system, eval, exec])
@pytest.mark.parametrize("zipped", [True, False])
def test_a_checkpoint_that_would_run_code_is_refused_and_runs_nothing(small_file, tmp_path, call, zipped):
    trace = tmp_path / "trace"
    command = f"touch {trace}" if call is os.system else f"open({str(trace)!r}, 'w')"
    content = torch.load(small_file, weights_only=True) | {"scheduler": Payload(command, call)}
    torch.save(content, tmp_path / "bad.pt", _use_new_zipfile_serialization=zipped)
    with pytest.raises(ValueError, match="bad.pt: refused") as error:
        haca3.load(tmp_path / "bad.pt")
    assert "\n" not in str(error.value) and not trace.exists()
    # The trap is real: an unrestricted load does spring it.
    torch.load(tmp_path / "bad.pt", weights_only=False)
    assert trace.exists()


def spoil(content, what):
    if what == "shape":
        content["decoder"]["down_convs.2.conv.3.weight"] = torch.zeros(1, 2, 3, 3)
    elif what == "missing":
        del content["theta_encoder"]["conv.3.bias"]
    elif what == "extra":
        content["beta_encoder"]["conv.9.bias"] = torch.zeros(1)
    elif what == "nan":
        content["attention_module"]["q_fc.0.bias"][3] = float("nan")
    elif what == "module":
        del content["eta_encoder"]


@pytest.mark.parametrize(
    "what, message",
    [
        (
            "shape",
            r"decoder\.down_convs\.2\.conv\.3\.weight has shape \(1, 2, 3, 3\): expected \(32, 32, 3, 3\)",
        ),
        ("missing", r"theta_encoder\.conv\.3\.bias is missing: expected shape \(64,\)"),
        ("extra", r"beta_encoder\.conv\.9\.bias is a tensor that this network does not have"),
        ("nan", r"attention_module\.q_fc\.0\.bias has values that are NaN"),
        ("module", "eta_encoder is missing"),
    ],
)
def test_a_checkpoint_that_does_not_fit_is_refused_in_one_line(small_file, tmp_path, what, message):
    content = torch.load(small_file, weights_only=True)
    spoil(content, what)
    torch.save(content, tmp_path / "spoilt.pt")
    with pytest.raises(ValueError, match=r"spoilt\.pt: " + message) as error:
        haca3.load(tmp_path / "spoilt.pt")
    assert "\n" not in str(error.value)


def test_a_truncated_file_another_file_and_no_file_are_refused_in_one_line(small_file, tmp_path):
    (tmp_path / "cut.pt").write_bytes(small_file.read_bytes()[:100_000])
    (tmp_path / "text.pt").write_text("not weights")
    torch.save([1, 2], tmp_path / "list.pt")
    accepted = ": accepted is what torch.save wrote of a dict of state dicts"
    for name in ("cut.pt", "text.pt", "list.pt"):
        with pytest.raises(ValueError, match=name) as error:
            haca3.load(tmp_path / name)
        assert "\n" not in str(error.value)
        assert str(error.value).endswith(accepted)
    with pytest.raises(FileNotFoundError, match=f"none.pt: no such file{accepted}"):
        haca3.load(tmp_path / "none.pt")


# ---------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    "option, message",
    [
        (dict(variant="haca4"), "variant is 'haca4': accepted are haca3, haca3plus"),
        (dict(precision="float16"), "precision is 'float16': accepted are float32, bfloat16"),
        (dict(device="abacus"), "device is 'abacus', which torch cannot use here"),
    ],
)
def test_a_bad_option_is_refused_in_one_line(small_file, option, message):
    with pytest.raises(ValueError, match=message) as error:
        haca3.load(small_file, **option)
    assert "\n" not in str(error.value)


def nearly_empty():
    """Of which the 95th percentile is zero."""
    volume = np.zeros(grid.SHAPE, np.float32)
    volume.ravel()[: int(0.049 * volume.size)] = 1
    return volume


@pytest.mark.parametrize(
    "change, message",
    [
        (dict(anatomy="mean"), "anatomy is 'mean': accepted are shared, independent, argmax"),
        (dict(mask="all"), "mask is 'all': accepted are first, union, intersection"),
        (dict(orientations=("oblique",)), "orientation is 'oblique': accepted are axial, sagittal, coronal"),
        (dict(orientations=("axial", "axial")), "each once"),
        (dict(orientations=("axial", "coronal"), slice_step=11), "a preview has one orientation"),
        (dict(slice_step=0), "slice_step is 0"),
        (dict(sources={}), "sources are empty"),
        (dict(sources={"PD": np.ones(grid.SHAPE)}), "contrast is 'PD': accepted are T1w, T2w, FLAIR"),
        (
            dict(sources={"T1w": np.ones((224, 192, 192))}),
            r"source T1w has shape \(224, 192, 192\): accepted is the MNI grid",
        ),
        (dict(sources={"T1w": np.zeros(grid.SHAPE)}), "source T1w is zero everywhere"),
        (dict(sources={"T1w": np.full(grid.SHAPE, np.nan)}), "source T1w has .* NaN"),
        (
            dict(sources={"T1w": np.ones((230, 224, 192))}),
            r"source T1w has shape \(230, 224, 192\): accepted is the MNI grid",
        ),
        (dict(targets={"T2w": np.ones((3, 3))}), "target T2w has 2 dimensions"),
        (dict(targets={}), "targets are empty"),
        (
            dict(targets={"T2w": nearly_empty()}),
            r"target T2w shows something in 4\.9% of its voxels: accepted is an image of more than 5%",
        ),
        (dict(seed=-1), "seed is -1: accepted is an integer of 0 or more"),
    ],
)
def test_bad_input_is_refused_in_one_line_before_any_work(small, heads, target, change, message):
    arguments = dict(sources=heads, targets=target, orientations=("axial",)) | change
    with pytest.raises(ValueError, match=message) as error:
        small.harmonize(arguments.pop("sources"), arguments.pop("targets"), **arguments)
    assert "\n" not in str(error.value)


# ---------------------------------------------------------------- geometry of the sources

THICK = haca3.Acquisition("sagittal", study.Resolution(5, 1.5))


@pytest.mark.parametrize("geometry", [None, "3D", "stacks"])
def test_sources_that_are_sliced_alike_are_fused_as_without_geometry(small, sources, target, geometry):
    alike = {None: None, "3D": dict.fromkeys(sources), "stacks": dict.fromkeys(sources, THICK)}[geometry]
    plain = small.harmonize(sources, target, slice_step=180).images["T1w"]
    np.testing.assert_array_equal(
        small.harmonize(sources, target, slice_step=180, geometry=alike).images["T1w"], plain
    )


@pytest.mark.parametrize("variant", ["haca3", "haca3plus"])
def test_the_fine_structure_of_the_fused_logits_is_that_of_the_3d_source(
    small_file, sources, target, variant, monkeypatch
):
    """The decoder is given the fused logits themselves: along the slice normal those of the stacks fade."""
    model = haca3.load(small_file, device="cpu", variant=variant, compiled=False)
    kept = {}
    monkeypatch.setattr(
        slice_networks, "most_probable", lambda fused: kept.setdefault("fused", fused).argmax(1)
    )
    alone = {}
    for name in ("T1w", "T2w"):
        kept.clear()
        model.harmonize({name: sources[name]}, target, anatomy="argmax", slice_step=191)
        alone[name] = np.fft.rfft2(kept["fused"][0])
    kept.clear()
    both = {name: sources[name] for name in alone}
    model.harmonize(
        both, target, anatomy="argmax", slice_step=191, geometry={"T1w": None, "T2w": THICK}, mask="union"
    )
    fused = np.fft.rfft2(kept["fused"][0])
    fine = slice(30, 80)  # columns: left to right, beyond the Nyquist frequency of the slices

    def likeness(one):
        pair = [
            np.abs(np.fft.irfft2(np.where(np.isin(np.arange(113), range(30, 80)), each, 0))).ravel()
            for each in (fused, one)
        ]
        return np.corrcoef(*pair)[0, 1]

    assert fused[..., fine].any()
    assert likeness(alone["T1w"]) > likeness(alone["T2w"])


def test_a_geometry_is_refused_before_the_first_slice(small, sources, target, monkeypatch):
    monkeypatch.setattr(small, "_reconstruct", None)
    with pytest.raises(ValueError, match="geometry has no FLAIR"):
        small.harmonize(sources, target, slice_step=180, geometry={"T1w": None, "T2w": THICK})


@pytest.mark.parametrize(
    "content, words",
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 12\n", "a pointer of git-lfs"),
        (b"../.git/annex/objects/x/y/MD5E-s12--00.pt", "a pointer of git-annex"),
        (b"<!DOCTYPE html><title>Sign in</title>", "a web page"),
        (b"404: Not Found", "it begins with b'404: Not Found'"),
        (b"", "it is empty"),
    ],
)
def test_weights_that_were_never_downloaded_are_called_what_they_are(tmp_path, content, words):
    path = tmp_path / "harmonizer.pt"
    path.write_bytes(content)
    with pytest.raises(ValueError) as error:
        checkpoint.load(path)
    assert str(error.value).startswith(f"{path}: not a readable checkpoint (") and words in str(error.value)
    assert str(error.value).endswith(": accepted is what torch.save wrote of a dict of state dicts")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "theta, eta, norm, words",
    [
        ([0, 1], [0, 1], -5, "norm of the target is -5: accepted is one finite number above 0"),
        ([0, 1], [0, 1], 0, "norm of the target is 0"),
        ([0, 1], [0, 1], np.inf, "norm of the target is inf"),
        ([0, 1], [0, 1], None, "norm of the target is None"),
        ([np.nan, 1], [0, 1], 1, "theta of the target is [nan, 1]: accepted are two finite numbers"),
        ([0, 1], [1e39, 0], 1, "eta of the target is [1e+39, 0]"),
        ([0, 1, 2], [0, 1], 1, "theta of the target is [0, 1, 2]"),
        ("ab", [0, 1], 1, "theta of the target is ab"),
    ],
)
def test_a_target_that_no_image_has_is_refused(theta, eta, norm, words):
    with pytest.raises(ValueError) as error:
        haca3.Target(theta, eta, norm)
    assert words in str(error.value) and "\n" not in str(error.value)


def test_a_target_given_in_lists_is_one_of_arrays():
    target = haca3.Target([0, 1], (0.5, 1), 3)
    assert target.theta.dtype == target.eta.dtype == np.float32 and isinstance(target.norm, float)
