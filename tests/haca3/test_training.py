"""Training of HACA3: the pieces of the loss, the slices, and a run that is stopped and goes on."""

import csv
import itertools

import numpy as np
import pytest
import torch

from helpers import haca3
from helpers.haca3 import checkpoint, examples, losses, slicing, training


@pytest.fixture(scope="module")
def group():
    """Discs of four tissues and a lesion, seen by two scanners in three contrasts, sharp and blurred."""
    rng = np.random.default_rng(0)
    y, x = np.ogrid[-1:1:224j, -1:1:224j]
    labels = np.zeros((2, 4, 224, 224), np.uint8)
    for s in range(2):
        for k in range(4):
            radius = np.hypot(x - rng.uniform(-0.1, 0.1), y * rng.uniform(0.9, 1.1))
            labels[s, k] = np.select(
                [np.hypot(x - 0.2, y) < 0.05, radius < 0.3, radius < 0.45, radius < 0.6], [4, 3, 2, 1], 0
            )
    signal = np.array([[0.2, 0.7, 0.85, 1.0, 0.8], [1.8, 0.9, 0.75, 0.65, 1.1], [0.1, 1.0, 0.8, 0.85, 1.4]])
    signal = signal * rng.uniform(0.8, 1.2, (2, *signal.shape))  # scanner, contrast, label
    inside = np.hypot(x, y) < 0.7
    images = np.where(inside, np.moveaxis(signal[:, :, labels], 2, 0), 0).astype(np.float16)
    blurred = np.where(inside, np.mean([np.roll(images, shift, -1) for shift in range(-4, 5)], axis=0), 0)
    images = np.stack([images, blurred.astype(np.float16)], axis=3)
    norms = np.float32([[400, 360], [500, 450]])[:, None, None]  # by subject and path
    return examples.Group(images, np.broadcast_to(norms, images.shape[:4]), labels, [0, 1])


def test_a_group_comes_back_from_disk_and_is_not_there_before_it_is_whole(group, tmp_path):
    examples.write_group(tmp_path / "group-000", group)
    again = examples.read_group(tmp_path / "group-000")
    assert [p.name for p in tmp_path.iterdir()] == ["group-000"]
    np.testing.assert_array_equal(again.images, group.images)
    np.testing.assert_array_equal(again.labels, group.labels)
    np.testing.assert_array_equal(again.norms, group.norms)
    assert list(again.references) == [0, 1]


def test_the_slices_that_describe_a_target_are_those_that_the_harmonizer_looks_at():
    foreground = np.zeros((224, 224, 224), bool)
    foreground[60:160, 40:180, 50:150] = True
    chosen = examples.choose(foreground, 30, 5, np.random.default_rng(0))
    assert len(set(chosen[:5])) == 5 and len(chosen) == 30
    assert all(o == "coronal" and k in slicing.TARGET_SLICES for o, k in chosen[:5])
    assert {o for o, _ in chosen[5:]} == {"axial", "coronal", "sagittal"}
    assert all(image.any() for image in examples.cut(foreground, chosen))


def test_labels_without_noise_are_the_most_probable_and_soft_ones_the_expected():
    logits = torch.tensor([0.0, 3.0, 1.0, 0.0, 2.0]).view(1, 5, 1, 1)
    hard = losses.sample_labels(logits, 0.0, True, torch.Generator())
    soft = losses.sample_labels(logits, 0.0, False, torch.Generator())
    assert hard.item() == pytest.approx(0.2)
    assert soft.item() == pytest.approx(
        (torch.softmax(logits.flatten(), 0) * torch.arange(5) / 5).sum().item()
    )


def test_labels_with_full_noise_follow_the_softmax_and_let_the_gradient_through():
    logits = (
        torch.tensor([0.0, 1.0, -1.0, 0.5, 0.0])
        .view(1, 5, 1, 1)
        .expand(1, 5, 200, 200)
        .clone()
        .requires_grad_()
    )
    beta = losses.sample_labels(logits, 1.0, True, torch.Generator().manual_seed(1))
    drawn = torch.bincount((beta * 5).round().long().flatten(), minlength=5) / 200**2
    np.testing.assert_allclose(drawn, torch.softmax(logits[0, :, 0, 0], 0).detach(), atol=0.01)
    beta.sum().backward()
    assert torch.isfinite(logits.grad).all() and logits.grad.abs().mean() > 1e-3


def test_imperfections_leave_the_background_alone_and_change_the_rest_by_some_per_cent(group):
    image = torch.from_numpy(group.images[0, 0, :, 0, 0].astype(np.float32))[:, None]
    changed = examples.imperfect(image, np.random.default_rng(3), torch.Generator().manual_seed(0))
    assert (changed[image == 0] == 0).all()
    difference = (changed - image)[image > 0].std()
    assert 0 < difference < 0.1


def test_the_gradient_loss_sees_edges_and_no_offset():
    truth = torch.zeros(1, 1, 8, 8)
    truth[..., 4:] = 1
    weight = torch.ones_like(truth)
    assert losses.gradient_loss(truth + 3, truth, weight) == 0
    # Eight pixels of one edge are missing, of 64.
    assert losses.gradient_loss(0 * truth, truth, weight).item() == pytest.approx(8 / 64)


def test_a_draw_asks_for_what_the_other_scanner_saw_along_the_same_path_in_its_units(group):
    subjects, scanners, contrasts, paths, slices = map(range, group.images.shape[:5])
    units = {
        (s, o, p): group.norms[s, 0, 0, p] / group.norms[o, 0, 0, 0]
        for s in subjects
        for o in subjects
        for p in paths
    }
    asked = set()
    for i in range(20):
        example = examples.draw([group], np.random.default_rng(i))
        assert 1 <= len(example.sources) <= 3 and example.sources.shape[1:] == (1, 224, 224)
        same = [
            (subject, other, path)
            for (subject, other, path), unit in units.items()
            for where in itertools.product([subject], scanners, contrasts, [path], slices)
            if np.array_equal(example.truth, float(unit) * group.image(*where))
        ]
        assert len(same) == 1
        assert torch.equal(example.mask, (example.truth > 0).float())
        asked.add(same[0])
    assert {path for _, _, path in asked} == {0, 1} and {s == o for s, o, _ in asked} == {True, False}


def test_of_mixed_paths_the_sharp_truth_is_asked_for_and_eta_is_told_of_the_blur(group):
    told = []
    for i in range(30):
        example = examples.draw([group], np.random.default_rng(i), mixed=True)
        sharp = itertools.product(*map(range, group.images.shape[:3]), [0], range(group.images.shape[4]))
        units = (1.0, float(np.float32(400 / 500)), float(np.float32(500 / 400)))
        assert any(torch.equal(example.truth, u * group.image(*where)) for where in sharp for u in units)
        told += example.severity[:, 0].tolist()
    assert min(told) == 0 < max(told) <= 1.5
    plain = examples.blur_severity(group, (0, 0, 0, 0, 0)), examples.blur_severity(group, (0, 0, 0, 1, 0))
    assert plain[0] == 0 < plain[1]


def test_thick_slices_are_those_that_the_published_training_saw():
    drawn = [examples.thick_slices(np.random.default_rng(seed)) for seed in range(200)]
    assert {orientation for orientation, _ in drawn} == {"axial", "coronal", "sagittal"}
    assert {2.0, 5.0} <= {resolution.thickness_mm for _, resolution in drawn}
    assert all(2 <= r.thickness_mm <= 5 and 0 <= r.gap_mm <= 1.5 for _, r in drawn)


def test_lesions_weigh_more():
    example = examples.Example(
        sources=torch.rand(1, 1, 224, 224),
        severity=torch.zeros(1, 2),
        reference=torch.rand(1, 1, 224, 224),
        truth=torch.zeros(1, 224, 224),
        mask=torch.ones(1, 224, 224),
        labels=torch.zeros(224, 224, dtype=torch.long),
    )
    example.labels[:16] = examples.LESION
    modules = training.fresh(0, 2, 2)
    modules["decoder"] = lambda x: torch.zeros(1, 1, 224, 224)
    example.truth[:, :16] = 1  # an error on the lesions alone
    lost = losses.loss_of(modules, example, 0.9, 224, np.random.default_rng(0))["l1"].item()
    assert lost == pytest.approx(20 * 16 / (20 * 16 + 208))


def test_new_weights_follow_from_the_seed():
    a, b, c = (training.fresh(seed, 2, 4) for seed in (1, 1, 2))
    assert torch.equal(a["decoder"].in_conv.weight, b["decoder"].in_conv.weight)
    assert not torch.equal(a["decoder"].in_conv.weight, c["decoder"].in_conv.weight)


def test_degradations_leave_the_background_alone_and_their_severity_is_their_size(group):
    image = torch.from_numpy(group.images[0, 0, 0, 0, 0].astype(np.float32))[None]
    kinds = set()
    for seed in range(40):
        changed, (blur, field) = examples.degrade(
            image, np.random.default_rng(seed), torch.Generator().manual_seed(seed)
        )
        assert (changed[image == 0] == 0).all() and changed.min() >= 0
        size = (changed - image)[image > 0].square().mean().sqrt().item()
        assert max(blur, field) == pytest.approx(min(size / 0.25, 1.5), rel=1e-4) and min(
            blur, field
        ) == 0 < max(blur, field)
        kinds.add(field > 0)
    assert kinds == {True, False}
    assert torch.equal(
        image[0], torch.from_numpy(group.images[0, 0, 0, 0, 0].astype(np.float32))
    )  # is not changed in place


def test_a_draw_says_how_severely_its_sources_are_degraded_and_spares_one(group):
    drawn = [examples.draw([group], np.random.default_rng(seed)) for seed in range(60)]
    assert all(len(e.severity) == len(e.sources) and (e.severity.sum(1) == 0).any() for e in drawn)
    assert any(e.severity.any() for e in drawn)


@pytest.mark.slow
def test_eta_learns_how_severe_a_degradation_is(group):
    eta = training.fresh(0, 2, 2)["eta_encoder"]
    after = training.teach_severity(eta, [group], 40, seed=0)
    assert after < 0.35  # always saying "none" is wrong by 0.5


def test_patches_of_one_place_agree_more_than_others_where_the_codes_do():
    rng = torch.Generator().manual_seed(0)
    patchifier = training.fresh(0, 2, 2)["patchifier"]
    beta, other = torch.rand((2, 1, 224, 224), generator=rng)
    images = torch.rand((2, 1, 224, 224), generator=rng)
    same = losses.patch_contrast(patchifier, torch.stack([beta, beta]), images)
    different = losses.patch_contrast(patchifier, torch.stack([beta, other]), images)
    assert same < different


@pytest.mark.slow
def test_the_fusion_net_starts_near_the_mean_and_gets_better():
    rng = np.random.default_rng(0)
    truth = np.zeros((48, 48, 48), np.float32)
    truth[12:36, 12:36, 12:36] = np.kron(rng.random((3, 3, 3), np.float32), np.ones((8, 8, 8), np.float32))
    given = np.stack([truth * gain for gain in (1.0, 0.7, 0.7)])
    error = []
    for steps in (0, 100):
        net = training.train_fusion([(given, truth)], steps, seed=0)
        with torch.inference_mode():
            result = net(torch.from_numpy(given)[None])[0, 0].numpy()
        error.append(np.abs(result - truth)[truth > 0].mean())
    mean = np.abs(given.mean(0) - truth)[truth > 0].mean()
    assert error[0] == pytest.approx(mean, rel=0.1)
    assert error[1] < 0.7 * mean


def test_theta_learns_to_tell_the_contrasts_apart(group):
    theta = training.fresh(0, 2, 2)["theta_encoder"]
    before = training.teach_contrast(theta, [group], 2, seed=0)
    after = training.teach_contrast(theta, [group], 40, seed=0)
    assert after < 0.5 * before


def test_a_run_that_was_stopped_goes_on_and_ends_with_the_same_weights(group, tmp_path, monkeypatch, capfd):
    lines, options = [], dict(steps=8, seed=1, beta_base=2, decoder_base=2)
    whole = training.train([group], tmp_path / "whole", tell=lines.append, **options)
    monkeypatch.setattr(training, "_SAVE_SECONDS", 0)  # is saved after every step

    class Killed(Exception):
        pass

    def kill(line):
        if line.startswith("step 5 "):
            raise Killed

    with pytest.raises(Killed):
        training.train([group], tmp_path / "again", tell=kill, **options)
    again = training.train([group], tmp_path / "again", tell=lines.append, **options)
    assert "goes on at step 5" in lines
    assert "training: 100%" in capfd.readouterr().err
    for name in whole:
        for a, b in zip(whole[name].parameters(), again[name].parameters()):
            assert torch.equal(a, b), name
    with open(tmp_path / "again" / "history.csv") as file:
        rows = list(csv.DictReader(file))
    assert [int(row["step"]) for row in rows] == list(range(1, 9))
    minutes = [float(row["minutes"]) for row in rows]
    assert minutes == sorted(minutes)
    # The weights are averages: not those of the last step.
    state = torch.load(tmp_path / "again" / "state.pt", weights_only=True)
    assert not torch.equal(again["decoder"].in_conv.weight, state["modules"]["decoder"]["in_conv.weight"])
    checkpoint.save(tmp_path / "weights.pt", again, epoch=8, timestr="test")
    assert haca3.load(tmp_path / "weights.pt").networks["beta_encoder"].in_conv.out_channels == 2
    assert not [p for p in tmp_path.rglob("*.tmp")]


def test_steps_on_one_example_lower_its_error(group):
    modules = training.fresh(0, 2, 4)
    parameters = [p for name in ("beta_encoder", "decoder") for p in modules[name].parameters()]
    optimizer = torch.optim.Adam(parameters, lr=3e-3)
    example = examples.draw([group], np.random.default_rng(0))
    l1 = []
    for step in range(50):
        rng = np.random.default_rng(step)  # of the noise
        loss = losses.loss_of(modules, example, progress=0.5, size=80, rng=rng)
        optimizer.zero_grad()
        loss["total"].backward()
        optimizer.step()
        l1.append(loss["l1"].item())
    assert np.mean(l1[-5:]) < 0.5 * np.mean(l1[:5])


def test_new_weights_leave_the_global_random_state_alone():
    before = torch.random.get_rng_state()
    training.fresh(5, 2, 2)
    assert torch.equal(before, torch.random.get_rng_state())
