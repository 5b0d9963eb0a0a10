"""The training on a GPU makes its images, and what is wrong with them, as the package does."""

import sys

import numpy as np
import pytest
import torch

from helpers import grid, layout, super_resolution
from helpers.acquisition import degradation
from helpers.cohort import phantom, scanners
from helpers.haca3 import checkpoint, examples, slicing
from helpers.study import CONTRASTS, Resolution

sys.path.append(str(layout.ROOT / "data" / "models"))
import train_on_gpu

CPU = torch.device("cpu")
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("subjects")
    return [train_on_gpu.store_subject((seed, folder)) for seed in (100, 101)]


@pytest.fixture(scope="module")
def pool(files):
    pool = train_on_gpu.Pool(1, [], 0, CPU, people=2, scanners=2, paths=2)
    pool.people = [train_on_gpu.Person(file, CPU) for file in files]
    volumes = sum(1 for _ in pool.fill(0))
    assert volumes == 2 * 2 * 3 * 2 and pool.ready == [0]
    return pool


def test_blocks_are_replaced_one_after_the_other_and_all_others_stay_in_use(files, monkeypatch):
    blank = torch.zeros((224, 224, 224), dtype=torch.float16), torch.tensor(1.0)
    pool = train_on_gpu.Pool(3, [], 0, CPU, people=1, scanners=1, paths=1)
    pool.people = [train_on_gpu.Person(files[0], CPU)]
    monkeypatch.setattr(pool, "preprocess", lambda volume: blank)
    monkeypatch.setattr(train_on_gpu.Person, "render", lambda *_: blank[0])
    for block in range(3):
        list(pool.fill(block))
    in_use = []
    for _ in range(24):  # a block has three volumes, and is whole at the fourth call
        pool.renew()
        in_use.append(sorted(pool.ready))
    assert min(map(len, in_use)) == 2 and max(map(len, in_use)) == 3
    assert set(map(tuple, in_use)) == {(0, 1), (0, 2), (1, 2), (0, 1, 2)}
    assert pool.scanner == 3 + 6


@pytest.mark.parametrize("contrast", CONTRASTS)
def test_images_are_those_of_the_phantom_to_a_thousandth(files, contrast):
    scanner, subject = scanners.scanner("train-3"), phantom.subject(100)
    wanted = phantom.render(subject, scanner, contrast)
    image = train_on_gpu.Person(files[0], CPU).render(scanner, contrast).numpy()
    assert np.abs(image - wanted).mean() < 2e-3 * wanted[subject.brain].mean()
    assert not image[~subject.brain].any()
    padded, norm = slicing.preprocess(wanted)
    given, given_norm = train_on_gpu.Preprocessing(CPU)(torch.from_numpy(wanted))
    assert float(given_norm) == pytest.approx(norm, rel=1e-5)
    np.testing.assert_array_equal(given.numpy() > 0, padded.astype(np.float16) > 0)
    np.testing.assert_allclose(given.numpy(), padded, atol=2e-3)


def test_slices_are_cut_as_the_harmonizer_sees_them(pool):
    volume = pool.volumes[0, 1, 1, 2, 1].float().numpy()
    for orientation in grid.AXIS:
        image = pool._cut(([0], [1], [1], [2], [1]), [105], orientation)[0].numpy()
        np.testing.assert_array_equal(image, slicing.slice_of(volume, orientation, 105))


def test_super_resolved_slices_are_those_of_the_package(files):
    resolver = super_resolution.load(layout.ROOT / "data" / "models" / "super-resolver.pt")
    rng = np.random.default_rng(0)
    while (acquisition := train_on_gpu.Acquisition(rng, [resolver], CPU)).resolver is None:
        pass
    volume = train_on_gpu.Person(files[0], CPU).render(scanners.scanner("train-0"), "T1w")
    orientation = {axis: name for name, axis in grid.AXIS.items()}[acquisition.axis]
    length, resolution = volume.shape[acquisition.axis], Resolution(5, 1.5)
    stack = degradation.degrade(volume.numpy(), grid.AFFINE, orientation, resolution)
    wanted = super_resolution.super_resolve(*stack, resolution, resolver, length)[0]
    assert np.abs(acquisition(volume).numpy() - wanted).max() < 2e-3 * wanted.max()


@pytest.mark.parametrize("mixed", [False, True])
def test_a_batch_asks_for_the_truth_in_units_of_its_reference(pool, mixed):
    batch = train_on_gpu.scanned(pool.batch(np.random.default_rng(1), 12, mixed), np.random.default_rng(2))
    assert batch["sources"].shape == (12, 3, 1, 224, 224) and batch["present"].any(1).all()
    assert ((batch["severity"][..., 0] > 0).any(1) | ~torch.tensor(mixed)).any()
    # The brightest 5 % of a person's volume over those of another one: never far from one another.
    inside = [truth[truth > 0].median() for truth in batch["truth"]]
    assert all(0.2 < value < 2 for value in inside)
    lesions = (batch["classes"] == examples.LESION).float().mean()
    assert 0 < lesions < 0.02


def test_a_degradation_leaves_the_background_and_tells_how_severe_it_is(pool):
    images = pool.batch(np.random.default_rng(1), 24, False)["truth"][:, 0]
    changed, severity = train_on_gpu.degrade(images, np.random.default_rng(0))
    assert (changed[images == 0] == 0).all() and (severity.max(1).values > 0).all()
    assert ((severity > 0).sum(1) == 1).all() and severity.max() <= 1.5


def test_training_lowers_the_error_and_leaves_a_checkpoint(pool, tmp_path):
    modules = checkpoint.load_harmonization(layout.ROOT / "data" / "models" / "harmonizer-small.pt")
    eta = modules.pop("eta_encoder")
    before = {name: [p.clone() for p in module.parameters()] for name, module in modules.items()}
    trained, history = train_on_gpu.train(pool, modules, 1e6, False, 3, 0, False, print, steps=20)
    assert history[0][0] == 20 and 0 < history[0][2] < 0.3
    for name, module in trained.items():
        change = [(p - old).abs().max() for p, old in zip(module.parameters(), before[name])]
        assert 0 < max(change) < 0.01, name
    checkpoint.save(tmp_path / "weights.pt", trained | {"eta_encoder": eta}, epoch=20, timestr="test")
    checkpoint.load_harmonization(tmp_path / "weights.pt")
