"""Train HACA3 on slices of subjects who were all imaged by the same scanners.

The networks are the published ones; the training is a short supervised one. Where the published training asks
a network to give back its own input, we know what the same anatomy looks like on another scanner, and ask for
that. So the published second step (decode with another site's theta, encode the result again, compare) is
replaced by the truth itself, but for theta, whose encoding of the result is still compared. The other
published losses are here with their weights (L1, KLD), with a smaller one (patch contrast), or left out
(perceptual: it needs the weights of another network). This module does not care where the slices come from:
see `Group`.

Slices are shown as 3D images have them, and as thick slices brought back to 1 mm have them (`Group`), as the
published training saw both: the sources of an example share a path, and the truth took the same one. So the
network learns to change the contrast and to keep the resolution. With `mixed` paths (the paper's future
work) the sources differ and the truth is the 3D image.

Sources are degraded as published (motion, noise, ghosting, bias field). How severely is two numbers, which
the eta encoder is taught to say (`teach_severity`; published: pre-trained elsewhere); of thick slices it is
not told, unless paths are mixed. The rest of the training is told them, with some error:
so the two trainings need not wait for each other, and eta costs nothing in the second.

What trials showed to matter, and is therefore done here: theta is first taught to tell contrasts apart (a
decoder that cannot tell them settles on their median, a flat grey); the anatomy labels start as tissue
classes, and the decoder is first given the true ones; then the noise of the labels is ramped up; the target's
contrast is withheld from the sources in half of the steps; theta sees noise and, mostly, another subject; the
arg-max labels take turns with sampled ones; lesions weigh more; weights are averaged. The first part of a run
uses slices of lower resolution (the same share of background, a fraction of the cost). Crops must not be
used: the statistics of the instance norm change with the share of background.
"""

import csv
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm.auto import tqdm

from helpers.grid import AXIS
from helpers.haca3 import networks
from helpers.haca3.fast import memory
from helpers.haca3.fast.layers import quicken
from helpers.haca3.fast.threads import set_gradients, side_by_side
from helpers.haca3.harmonizer import TARGET_SLICES
from helpers.haca3.slicing import slice_of
from helpers.study import ORIENTATIONS, Resolution

LABELS = networks.BETA_DIM
LESION = LABELS - 1  #: the label whose pixels weigh more
_BATCH = 2  # slices a step: small batches and many steps go furthest in a given time
_RATE = 1.2e-3  # Adam; warmed up over 30 steps, then a cosine down to 2 %
_AVERAGE = 0.995  # decay of the averaged weights
_LESION_WEIGHT = 20.0
_NOISE = 0.04  # largest standard deviation of the Rician noise, in units of the 95th percentile
_BIAS = 0.04  # largest standard deviation of the logarithm of the bias field
_SAVE_SECONDS = 60
_ARRAYS = ("images", "gain", "labels", "references")
_DEGRADED = 0.4  # share of the examples in which some sources are degraded
_SEVERE = 0.25  # root mean square error, in units of the 95th percentile, that counts as severity 1
_ETA_ERROR = 0.07  # standard deviation of the error with which the severity is told in training
_THETA_CYCLE = 0.05  # published
_PATCH_CONTRAST, _PATCH_TEMPERATURE = (
    0.05,
    0.1,
)  # published: 0.5, which would be six times the L1 loss here; 0.1
# Shares of the steps at which parts of the run end; see `loss_of`.
_FORCED, _RAMP, _TIE = 0.08, 0.18, 0.50


@dataclass(frozen=True)
class Group:
    """Slices of some subjects, each seen by the same scanners along the same paths.

    A path is what happened to a subject's images: the first one is the 3D image itself, the others are thick
    slices of one orientation and resolution, brought back to 1 mm.

    Attributes
    ----------
    images : ndarray, shape (subjects, scanners, contrasts, paths, slices, 224, 224), float16
        Noise-free, preprocessed as in `slicing.preprocess`, cut by `cut`.
    gain : ndarray, shape (subjects, scanners, contrasts, paths), float32
        What they were divided by in the preprocessing, over what the 3D image was divided by.
    labels : ndarray, shape (subjects, slices, 224, 224), uint8
        Tissue class 0 to 4, by which the anatomy labels start; `LESION` is the last one.
    references : sequence of int
        Which of the slices are central coronal ones: a target is described by such slices of its 3D image.
    """

    images: np.ndarray
    gain: np.ndarray
    labels: np.ndarray
    references: Sequence[int]

    def image(self, subject: int, scanner: int, contrast: int, path: int, k: int) -> Tensor:
        """A slice as a network sees it, shape (1, 224, 224)."""
        image = np.asarray(self.images[subject, scanner, contrast, path, k], np.float32)
        return torch.from_numpy(image)[None]


def cut(padded: np.ndarray, positions: Sequence[tuple[str, int]]) -> np.ndarray:
    """Slices of a padded volume (224, 224, 224) at (orientation, number) -> (slices, 224, 224)."""
    return np.stack([slice_of(padded, orientation, k) for orientation, k in positions])


def choose(
    foreground: np.ndarray, count: int, references: int, rng: np.random.Generator
) -> list[tuple[str, int]]:
    """Choose slices to train on: `references` central coronal ones first, then any that show enough, of all
    orientations.

    Parameters
    ----------
    foreground : ndarray of bool, shape (224, 224, 224)
        Padded, as the volumes that will be cut.
    count, references : int
        Slices in all, and those of them that may describe a target.
    rng : numpy.random.Generator
    """
    chosen = [("coronal", int(k)) for k in rng.choice(TARGET_SLICES, references, replace=False)]
    shares = {o: foreground.mean(axis=tuple({0, 1, 2} - {axis})) for o, axis in AXIS.items()}
    candidates = [(o, int(k)) for o, share in shares.items() for k in np.flatnonzero(share > 0.02)]
    return chosen + [candidates[i] for i in rng.choice(len(candidates), count - references, replace=False)]


def thick_slices(rng: np.random.Generator) -> tuple[str, Resolution]:
    """Draw a 2D acquisition: orientation, thickness of 2 to 5 mm, gap of 0 to 1.5 mm, in tenths of a mm."""
    resolution = Resolution(int(rng.integers(20, 51)) / 10, int(rng.integers(0, 16)) / 10)
    return ORIENTATIONS[rng.integers(len(ORIENTATIONS))], resolution


def write_group(folder: str | Path, group: Group) -> None:
    """Store a group in a folder, which appears under its name when it is complete."""
    folder = Path(folder)
    partial = folder.with_name(f".{folder.name}.tmp")
    partial.mkdir(parents=True, exist_ok=True)
    for name in _ARRAYS:
        np.save(partial / f"{name}.npy", getattr(group, name))
    partial.rename(folder)


def read_group(folder: str | Path) -> Group:
    """Read a group; the slices stay on disk until they are used."""
    folder = Path(folder)
    return Group(*(np.load(folder / f"{name}.npy", mmap_mode="r") for name in _ARRAYS))


# ---------------------------------------------------------------- one step


def imperfect(images: Tensor, rng: np.random.Generator, generator: torch.Generator) -> Tensor:
    """What a scanner makes of noise-free slices (n, 1, 224, 224): a left-over bias field, and Rician noise of
    0 to 4 %.

    The noise is sqrt((x + n1)^2 + n2^2), on the foreground only.
    """
    field = F.interpolate(
        torch.randn((len(images), 1, 4, 4), generator=generator), images.shape[-2:], mode="bicubic"
    )
    images = images * torch.exp(_BIAS * rng.random() * field)
    sd = _NOISE * rng.random()
    real, imaginary = (sd * torch.randn(images.shape, generator=generator) for _ in range(2))
    return torch.where(images > 0, torch.hypot(images + real, imaginary), images)


def degrade(
    image: Tensor, rng: np.random.Generator, generator: torch.Generator
) -> tuple[Tensor, tuple[float, float]]:
    """One of the published degradations of a slice (1, 224, 224), and how severe it is.

    Motion (15 to 30 degrees, 10 to 20 pixels, during part of the phase encoding), noise (standard deviation
    .01 to .1), ghosting (4 to 10 ghosts) or a bias field, with equal odds. The background stays zero.

    Returns
    -------
    Tensor, shape (1, 224, 224)
    (float, float)
        Severity of motion, noise and ghosts, and of the bias field: root mean square of the change over the
        foreground, 1 and more for `_SEVERE` and more.
    """
    kind = rng.integers(4)
    inside = image > 0
    if kind == 0:
        lines = torch.fft.fft2(image)
        moved = torch.fft.fft2(_moved(image, rng))
        late = torch.fft.fftfreq(image.shape[-2]).abs()[:, None] > rng.uniform(0.04, 0.4)  # cycles per pixel
        changed = torch.fft.ifft2(torch.where(late, moved, lines)).abs()
    elif kind == 1:
        sd = rng.uniform(0.01, 0.1)
        real, imaginary = (sd * torch.randn(image.shape, generator=generator) for _ in range(2))
        changed = torch.hypot(image + real, imaginary)
    elif kind == 2:
        lines = torch.fft.fft2(image)
        every, weaker = rng.integers(4, 11), rng.uniform(0.3, 0.9)
        lines[..., every::every, :] *= 1 - weaker
        changed = torch.fft.ifft2(lines).abs()
    else:
        field = F.interpolate(
            torch.randn((1, 1, 3, 3), generator=generator), image.shape[-2:], mode="bicubic"
        )[0]
        changed = image * torch.exp(rng.uniform(0.1, 0.4) * field)
    changed = torch.where(inside, changed, image)
    severity = ((changed - image)[inside].square().mean().sqrt().item() if inside.any() else 0.0) / _SEVERE
    severity = min(severity, 1.5)
    return changed, (0.0, severity) if kind == 3 else (severity, 0.0)


def _moved(image, rng):
    """A slice turned and shifted by a patient's movement."""
    angle = math.radians(rng.uniform(15, 30) * rng.choice([-1, 1]))
    shift = [rng.uniform(10, 20) * rng.choice([-1, 1]) * 2 / image.shape[-1] for _ in range(2)]
    matrix = torch.tensor(
        [[[math.cos(angle), -math.sin(angle), shift[0]], [math.sin(angle), math.cos(angle), shift[1]]]]
    )
    grid = F.affine_grid(matrix.float(), (1, *image.shape), align_corners=False)
    return F.grid_sample(image[None], grid, align_corners=False)[0]


def sample_labels(logits: Tensor, noise: float, hard: bool, generator: torch.Generator) -> Tensor:
    """Anatomy code of logits (B, 5, H, W) -> (B, 1, H, W): sampled in the forward pass, smooth in the
    backward one.

    Parameters
    ----------
    logits : Tensor, shape (B, 5, H, W)
    noise : float
        Scale of the Gumbel noise; 0 gives the most probable label.
    hard : bool
        Give a label; else the expected one.
    """
    if noise:
        uniform = torch.rand(logits.shape, generator=generator).clamp_(1e-10, 1 - 6e-8)
        logits = logits - noise * torch.log(-torch.log(uniform))
    levels = networks.labels_to_beta(torch.arange(LABELS)).view(1, LABELS, 1, 1)
    soft = (torch.softmax(logits, dim=1) * levels).sum(dim=1, keepdim=True)
    if not hard:
        return soft
    label = networks.labels_to_beta(logits.argmax(dim=1, keepdim=True))
    return soft + (label - soft).detach()  # straight-through gradient


def gradient_loss(image: Tensor, truth: Tensor, weight: Tensor) -> Tensor:
    """Mean absolute difference of the finite differences along both axes of the slices."""
    loss = 0.0
    for axis in (-1, -2):
        difference = torch.diff(image, dim=axis) - torch.diff(truth, dim=axis)
        loss = loss + (weight.narrow(axis, 1, difference.shape[axis]) * difference.abs()).sum() / weight.sum()
    return loss


def patch_contrast(patchifier: nn.Module, betas: Tensor, images: Tensor) -> Tensor:
    """Patches of two contrasts' anatomy at the same place should resemble each other more than anything else.

    The published contrastive loss (PatchNCE): queries are the patches of the first anatomy code, positives
    those of the second, negatives the patches of both images and those of both codes in another order.

    Parameters
    ----------
    patchifier : torch.nn.Module
    betas, images : Tensor, shape (2, 1, 224, 224)
        Anatomy codes of two sources of the same slice, and the sources.
    """
    query, positive = patchifier(betas).flatten(2).transpose(1, 2)  # (49, 128) each
    positive = positive.detach()
    # Moved by one and by seven patches: the neighbours in the row and in the column.
    elsewhere = [features.roll(n, 0) for features in (query, positive) for n in (1, 7)]
    others = torch.stack(
        [positive, *patchifier(images).flatten(2).transpose(1, 2), *elsewhere], dim=1
    ).detach()  # (49, 7, 128)
    logits = (others @ query[:, :, None])[..., 0] / _PATCH_TEMPERATURE  # (49, 7), the positive first
    return F.cross_entropy(logits, torch.zeros(len(logits), dtype=torch.long))


@dataclass(frozen=True)
class Example:
    """One thing to learn: sources (kept, 1, 224, 224), their severities (kept, 2), a target image, and the
    truth."""

    sources: Tensor
    severity: Tensor
    reference: Tensor
    truth: Tensor
    mask: Tensor
    labels: Tensor


def draw(groups: Sequence[Group], rng: np.random.Generator, mixed: bool = False) -> Example:
    """Draw sources of one scanner, and what the same slice looks like in one contrast of another scanner.

    Parameters
    ----------
    groups : sequence of Group
    rng : numpy.random.Generator
    mixed : bool
        Draw a path for each source, and ask for the target's 3D image. Else all take one path.
    """
    group = groups[rng.integers(len(groups))]
    subjects, scanners, contrasts, paths, slices = group.images.shape[:5]
    subject, k = rng.integers(subjects), rng.integers(slices)
    source, target = rng.choice(scanners, 2, replace=rng.random() < 0.2)  # sometimes one scanner for both
    contrast = rng.integers(contrasts)
    kept = [c for c in range(contrasts) if c != contrast] if rng.random() < 0.5 else list(range(contrasts))
    if rng.random() < 0.3:
        kept = list(rng.permutation(kept)[:-1])
    # Mostly another subject's: a target is a scanner, and not the anatomy of whoever lay in it.
    other = subject
    if subjects > 1 and rng.random() < 0.7:
        other = (subject + rng.integers(1, subjects)) % subjects
    path = rng.integers(paths)
    source_paths = rng.integers(paths, size=len(kept)) if mixed else [path] * len(kept)
    truth_path = 0 if mixed else path
    reference = group.image(other, target, contrast, 0, rng.choice(group.references))
    # In units of the target's 3D image, as the harmonizer scales its result.
    scale = float(group.gain[subject, target, contrast, truth_path])
    truth = scale * group.image(subject, target, contrast, truth_path, k)
    # Published: where every contrast has a signal. Fluid at the rim of the brain is background to Otsu's
    # threshold on T1w, and bright on T2w: there the truth is known, and mask="union" will ask for it.
    mask = truth > 0
    generator = torch.Generator().manual_seed(int(rng.integers(2**62)))
    seen = [group.image(subject, source, c, p, k) for c, p in zip(kept, source_paths)]
    severity = torch.zeros(len(kept), 2)
    if mixed:
        severity[:, 0] = torch.tensor(
            [_blur(group, (subject, source, c, p, k)) for c, p in zip(kept, source_paths)]
        )
    given = imperfect(torch.stack(seen), rng, generator)
    if rng.random() < _DEGRADED:
        for n in rng.permutation(len(kept))[: rng.integers(len(kept))]:  # published: none to all but one
            given[n], (blur, field) = degrade(given[n], rng, generator)
            severity[n] = torch.tensor([math.hypot(severity[n, 0], blur), field])
    return Example(
        sources=given,
        severity=severity,
        reference=imperfect(reference[None], rng, generator),
        truth=truth,
        mask=mask.float(),
        labels=torch.from_numpy(np.asarray(group.labels[subject, k], np.int64)),
    )


def _blur(group: Group, where: tuple[int, int, int, int, int]) -> float:
    """How severe it is for a slice to be what its path made of it, as `degrade` measures it."""
    subject, scanner, contrast, path, k = where
    sharp = group.image(subject, scanner, contrast, 0, k)
    scale = float(group.gain[subject, scanner, contrast, path])
    change = (scale * group.image(*where) - sharp)[sharp > 0]
    return min(change.square().mean().sqrt().item() / _SEVERE, 1.5) if len(change) else 0.0


def side(progress: float, coarse_share: float) -> int:
    """Rows and columns of the slices at that share of the run: 80, 112, and in the end the full 224."""
    return networks.SLICE if progress >= coarse_share else 80 if progress < _FORCED else networks.SLICE // 2


def loss_of(
    modules: dict[str, nn.Module], example: Example, progress: float, size: int, rng: np.random.Generator
) -> dict:
    """Losses of one example: ``total`` is to be minimised, ``l1`` to be watched.

    At first the decoder is given the tissue classes, the anatomy encoder learns to tell them, and theta stays
    as it was taught. Then the decoder is given the encoder's labels, with noise that is ramped up, and all
    learn together; the tie to the tissue classes fades out, so that the labels can come to say what the
    images need.

    Parameters
    ----------
    modules : dict
        As `networks.build`.
    example : Example
    progress : float
        Share of the run that is over, 0 to 1.
    size : int
        Rows and columns to work at, a multiple of 16. Theta always sees the full slice.
    """
    generator = torch.Generator().manual_seed(int(rng.integers(2**62)))
    forced = progress < _FORCED
    sources = example.sources[:1] if forced else example.sources
    with torch.set_grad_enabled(not forced):
        full = torch.cat([example.reference, sources])
        mu, logvar = (x.flatten(1) for x in modules["theta_encoder"](full))  # (1 + kept, 2)
    theta = mu + torch.exp(logvar / 2) * torch.randn(mu.shape, generator=generator)
    truth, mask, labels = example.truth[None], example.mask[None], example.labels[None]
    if size != networks.SLICE:
        sources, truth, mask = (F.adaptive_avg_pool2d(x, size) for x in (sources, truth, mask))
        nearest = ((torch.arange(size) + 0.5) * networks.SLICE / size).long()
        mask, labels = (mask == 1).float(), labels[:, nearest][:, :, nearest]

    logits = modules["beta_encoder"](sources).float()  # (kept, 5, H, W)
    if forced:
        beta = networks.labels_to_beta(labels[:, None])
    else:
        eta = torch.cat([torch.zeros(1, networks.ETA_DIM), example.severity])
        keys = torch.cat([theta, eta + _ETA_ERROR * torch.randn(eta.shape, generator=generator)], dim=1)
        # At the temperature of the inference (published: 10 in training), so that both weigh alike.
        weights = modules["attention_module"].weights(keys[:1], keys[None, 1:])
        fused = (weights[0, :, None, None, None] * logits).sum(dim=0, keepdim=True)
        noise = min((progress - _FORCED) / (_RAMP - _FORCED), 1.0) * (rng.random() > 0.35)
        beta = sample_labels(fused, noise, True, generator)
    contrast = theta[:1, :, None, None].expand(-1, -1, size, size)
    image = modules["decoder"](torch.cat([beta, contrast], dim=1)).float()

    weight = mask * (1 + (_LESION_WEIGHT - 1) * (labels == LESION)[:, None])
    l1 = (weight * (image - truth).abs()).sum() / weight.sum().clamp(min=1)
    total = 10 * l1 + 1e-5 * (0.5 * (logvar[0].exp() + mu[0] ** 2 - 1 - logvar[0])).mean()
    if progress > _RAMP:
        total = total + gradient_loss(image, truth, weight.clamp(min=1e-6))
    if size == networks.SLICE and not forced:
        theta_of_result = modules["theta_encoder"](image * mask)[0].flatten(1)
        total = total + _THETA_CYCLE * (theta_of_result - mu[:1].detach()).abs().mean()
        if len(sources) > 1:
            betas = sample_labels(logits[:2], noise, True, generator)
            total = total + _PATCH_CONTRAST * patch_contrast(modules["patchifier"], betas, sources[:2])
    if progress < _TIE:
        emphasis = torch.ones(LABELS)
        emphasis[LESION] = _LESION_WEIGHT
        tissue = F.cross_entropy(logits, labels.expand(len(logits), -1, -1), emphasis, reduction="none")
        tissue = (mask[:, 0] * tissue).sum() / mask.sum().clamp(min=1) / len(logits)
        total = total + 2 * min(1, (_TIE - progress) / (_TIE - _FORCED)) * tissue
    return {"total": total, "l1": l1}


def teach_severity(
    eta: nn.Module, groups: Sequence[Group], steps: int, seed: int, mixed: bool = False
) -> float:
    """Teach the eta encoder to say how severely a slice is degraded: by motion, noise or ghosts, and by a
    bias field.

    Its 32 x 32 kernels have two million weights, and free ones fit the noise of the training slices. So they
    are held constant over each block, which makes them means over patches; and most of the first filters
    start without a mean, so that they look for texture.

    Parameters
    ----------
    eta : torch.nn.Module
        Changed in place.
    groups : sequence of Group
    steps : int
        Of 8 slices each.
    seed : int
    mixed : bool
        Teach it also how severely thick slices blur.

    Returns
    -------
    float
        Root mean square error of the severity over the last tenth of the steps.
    """
    with torch.no_grad():
        patches, texture = eta.seq[0].weight, eta.in_conv[0].weight[4:]
        generator = torch.Generator().manual_seed(seed)
        patches.copy_(
            torch.randn((*patches.shape[:2], 1, 1), generator=generator) / math.sqrt(patches.shape[1])
        )
        texture -= texture.mean(dim=(1, 2, 3), keepdim=True)
    optimizer = torch.optim.Adam(eta.requires_grad_(True).parameters(), lr=2e-3)
    decline = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(steps, 1))

    def slice_of_any(number):
        rng = np.random.default_rng([seed, 3, *number])
        group = groups[rng.integers(len(groups))]
        where = tuple(rng.integers(n) for n in group.images.shape[:5])
        blur = _blur(group, where) if mixed else 0.0
        generator = torch.Generator().manual_seed(int(rng.integers(2**62)))
        image = imperfect(group.image(*where)[None], rng, generator)[0]
        image, severity = degrade(image, rng, generator) if rng.random() < 0.6 else (image, (0.0, 0.0))
        severity = math.hypot(blur, severity[0]), severity[1]
        loss = (eta(image[None]).flatten() - torch.tensor(severity)).square().mean()
        return torch.autograd.grad(loss, list(eta.parameters())), loss.item()

    errors = []
    with side_by_side() as run:
        for step in range(steps):
            gradients, losses = zip(*run(slice_of_any, ((step, n) for n in range(8))))
            set_gradients(eta.parameters(), gradients, len(gradients))
            patches.grad = patches.grad.mean(dim=(2, 3), keepdim=True).expand_as(patches).clone()
            optimizer.step()
            decline.step()
            errors.append(sum(losses) / len(losses))
    eta.requires_grad_(False)
    return math.sqrt(np.mean(errors[-max(1, steps // 10) :]))


def teach_contrast(theta: nn.Module, groups: Sequence[Group], steps: int, seed: int) -> float:
    """Warm start of the theta encoder: a linear function of mu must give the mean intensity of each tissue
    class.

    Parameters
    ----------
    theta : torch.nn.Module
        Changed in place.
    groups : sequence of Group
    steps : int
        Of 16 slices each.
    seed : int

    Returns
    -------
    float
        Mean squared error of the intensities at the end, in units of the 95th percentile squared.
    """
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        head = nn.Linear(networks.THETA_DIM, LESION)  # lesions are too rare to have a mean in every slice
    nn.init.constant_(head.bias, 0.8)  # a typical intensity
    rate, parameters = 3e-3, list(theta.parameters())
    optimizer = torch.optim.Adam(
        [{"params": parameters}, {"params": head.parameters(), "lr": 10 * rate}], lr=rate
    )
    decline = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(steps, 1))
    error = math.nan
    with side_by_side() as run:
        for step in range(steps):
            rng = np.random.default_rng([seed, 1, step])
            images, means = [], []
            for _ in range(16):
                group = groups[rng.integers(len(groups))]
                subject, scanner, contrast = (rng.integers(n) for n in group.images.shape[:3])
                described = rng.random() < 0.5
                k = rng.choice(group.references) if described else rng.integers(group.images.shape[4])
                image = group.image(subject, scanner, contrast, 0, k)
                label = np.asarray(group.labels[subject, k])
                seen = image[0].numpy()
                tissues = [seen[(seen > 0) & (label == tissue)] for tissue in range(LESION)]
                means.append([tissue.mean() if tissue.size else np.nan for tissue in tissues])
                generator = torch.Generator().manual_seed(int(rng.integers(2**62)))
                images.append(imperfect(image[None], rng, generator))
            parts = list(run(lambda image: theta(image)[0].flatten(1), images))
            mu = torch.cat(parts).detach().requires_grad_()
            wanted = torch.tensor(np.array(means), dtype=torch.float32)
            known = wanted.isfinite()
            squared = (head(mu) - wanted.nan_to_num())[known] ** 2
            # Both numbers of theta are put to use: mean 0, covariance 1.
            spread = torch.cov(mu.T) - torch.eye(networks.THETA_DIM)
            loss = squared.mean() + 0.02 * ((mu.mean(0) ** 2).mean() + (spread**2).mean())
            optimizer.zero_grad()
            loss.backward()
            # Image by image, and added in their order: one graph of all would be gone through in the order of
            # the threads that made it.
            gradients = run(
                lambda part, slope: torch.autograd.grad(part, parameters, slope, allow_unused=True),
                parts,
                mu.grad.split(1),
            )
            set_gradients(parameters, gradients)
            optimizer.step()
            decline.step()
            error = squared.mean().item() if step == 0 else 0.9 * error + 0.1 * squared.mean().item()
    return error


def train_fusion(pairs: Sequence[tuple[np.ndarray, np.ndarray]], steps: int, seed: int) -> networks.FusionNet:
    """Train the fusion network; it starts as the mean of its three inputs.

    Nine tenths of the steps see volumes of half the resolution, which have the same share of background
    (crops would not, see above) and cost an eighth.

    Parameters
    ----------
    pairs : sequence of (ndarray of shape (3, 224, 224, 224), ndarray of shape (224, 224, 224)), float32
        Axial, coronal, sagittal reconstruction in the order (z, y, x), as `harmonizer.fusion_input` gives
        them, and the truth over its 95th percentile.
    steps : int
        Of one volume each.
    seed : int
        Of weights and draws.

    Returns
    -------
    FusionNet
    """
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        net = networks.FusionNet()
    with torch.no_grad():
        for layer in (net.conv2[0], net.conv2[2]):
            layer.weight.mul_(0.02)
            layer.bias.zero_()
        net.conv2[0].weight[0, :3, 1, 1, 1] += 1 / 3
        net.conv2[2].weight[0, 0, 1, 1, 1] += 1
    rng = np.random.default_rng([seed, 4])
    optimizer = torch.optim.Adam(net.parameters(), lr=5e-4)  # published
    decline = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(steps, 1))
    for step in range(steps):
        given, truth = (torch.from_numpy(volume)[None] for volume in pairs[rng.integers(len(pairs))])
        truth = truth[None]
        if step < 0.9 * steps:
            given, truth = F.avg_pool3d(given, 2), F.avg_pool3d(truth, 2)
        inside = given[:, :1] > 1e-8  # published: where the axial reconstruction is not zero
        loss = (net(given.contiguous(memory_format=torch.channels_last_3d)) - truth).abs()[inside].mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        decline.step()
    return net.eval().requires_grad_(False)


# ---------------------------------------------------------------- the run


def fresh(seed: int, beta_base: int, decoder_base: int) -> dict[str, nn.Module]:
    """New networks; the eta encoder's last layer is zero, so that an untrained eta has no say.

    Parameters
    ----------
    seed : int
        Of the weights.
    beta_base, decoder_base : int
        Widths, as `networks.build`.
    """
    with torch.random.fork_rng():  # layers draw their weights from the global generator, which is put back
        torch.manual_seed(seed)
        modules = {
            name: quicken(network) for name, network in networks.build(beta_base, decoder_base).items()
        }
    nn.init.zeros_(modules["eta_encoder"].seq[-1].weight)
    nn.init.zeros_(modules["eta_encoder"].seq[-1].bias)
    # Start from a small and certain variance of theta, and from an image that is not zero (a dead ReLU learns
    # nothing).
    nn.init.constant_(modules["theta_encoder"].logvar_conv[-1].bias, -4.0)
    nn.init.constant_(modules["decoder"].out_conv[-1].bias, 0.5)
    return modules


def train(
    groups: Sequence[Group],
    folder: str | Path,
    *,
    steps: int,
    seed: int = 0,
    beta_base: int = 4,
    decoder_base: int = 8,
    coarse_share: float = 0.65,
    begin: dict[str, nn.Module] | None = None,
    mixed: bool = False,
    bfloat16: bool = False,
    tell: Callable[[str], None] = print,
) -> dict[str, nn.Module]:
    """Train, with a progress bar; a run that was interrupted goes on where it was saved last (once a minute)
    and ends with the same weights.

    Parameters
    ----------
    groups : sequence of Group
        What to learn from.
    folder : str or Path
        Holds ``state.pt`` (everything needed to go on) and ``history.csv`` (step, minutes, running mean of
        the L1, total loss).
    steps : int
        Of two slices each. All schedules follow from it.
    seed : int
        Of weights, draws and noise.
    beta_base, decoder_base : int
        Widths of anatomy encoder and decoder.
    coarse_share : float
        Share of the steps with slices of lower resolution: see `side`.
    begin : dict of str to torch.nn.Module, optional
        Networks to go on from. The run is then the last leg of the schedule, on whole slices, at its falling
        rate.
    mixed : bool
        Sources of one example differ in resolution, and the 3D image is asked for: see `draw`.
    bfloat16 : bool
        Convolve in bfloat16: 1.6 times as many steps in the same time on a processor with AVX-512 BF16,
        slower on one without.
    tell : callable
        Is given a line once a minute.

    Returns
    -------
    dict of str to torch.nn.Module
        The averaged weights. The eta encoder is as new: see `teach_severity`.
    """
    memory.keep_freed_memory()
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    modules = fresh(seed, beta_base, decoder_base)
    average = fresh(seed, beta_base, decoder_base)
    rates = dict.fromkeys(("beta_encoder", "decoder", "attention_module", "patchifier"), _RATE) | {
        "theta_encoder": 0.3 * _RATE
    }
    optimizer = torch.optim.Adam(
        [{"params": modules[name].parameters(), "rate": rate} for name, rate in rates.items()]
    )
    parameters = [p for name in rates for p in modules[name].parameters()]
    done, history = 0, []
    if (folder / "state.pt").exists():
        state = torch.load(folder / "state.pt", weights_only=True)
        for name in modules:
            modules[name].load_state_dict(state["modules"][name])
            average[name].load_state_dict(state["average"][name])
        optimizer.load_state_dict(state["optimizer"])
        done, history = state["step"], state["history"]
        tell(f"goes on at step {done}")
    elif begin is not None:
        for name in rates:
            for copy in (modules, average):
                copy[name].load_state_dict(begin[name].state_dict())
    else:  # theta is taught first, and changes slowly from then on
        error = teach_contrast(modules["theta_encoder"], groups, min(600, max(2, steps // 20)), seed)
        tell(f"theta: mean intensities of the tissue classes known to {error**0.5:.3f}")
        average["theta_encoder"].load_state_dict(modules["theta_encoder"].state_dict())
    begun = saved = time.monotonic()
    before = history[-1][1] if history else 0.0
    recent = history[-1][2] if history else None

    first = 0.0 if begin is None else coarse_share

    def progress_at(step: int) -> float:
        return first + (1 - first) * step / steps

    def differentiate(step: int, number: int) -> tuple:
        progress = progress_at(step)
        rng = np.random.default_rng(
            [seed, 2, step, number]
        )  # so that a run that goes on draws what it would have drawn
        example = draw(groups, rng, mixed)
        with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
            losses = loss_of(modules, example, progress, side(progress, coarse_share), rng)
        return (
            torch.autograd.grad(losses["total"], parameters, allow_unused=True),
            losses["l1"].item(),
            losses["total"].item(),
        )

    # One thread per slice, and one for the optimizer: threads within a layer wait for each other when others
    # use the machine too.
    with side_by_side() as run:
        for step in tqdm(
            range(done, steps), "training", initial=done, total=steps, unit="step", mininterval=1
        ):
            gradients, l1, total = zip(*run(differentiate, [step] * _BATCH, range(_BATCH)))
            set_gradients(parameters, gradients, _BATCH)
            nn.utils.clip_grad_norm_(parameters, 5.0)
            for options in optimizer.param_groups:
                cosine = (1 + math.cos(math.pi * progress_at(step))) / 2
                options["lr"] = options["rate"] * min(1, (step + 1) / 30) * (0.02 + 0.98 * cosine)
            optimizer.step()
            decay = min(_AVERAGE, (step + 1) / (step + 11)) if begin is None else _AVERAGE
            with torch.no_grad():
                for name in modules:
                    for mean, now in zip(average[name].parameters(), modules[name].parameters()):
                        mean.lerp_(now, 1 - decay)
            l1, total = sum(l1) / _BATCH, sum(total) / _BATCH
            recent = l1 if recent is None else 0.98 * recent + 0.02 * l1
            history.append((step + 1, before + (time.monotonic() - begun) / 60, recent, total))
            if time.monotonic() - saved > _SAVE_SECONDS or step + 1 == steps:
                saved = time.monotonic()
                _save_state(folder, modules, average, optimizer, step + 1, history)
                tell(f"step {step + 1} of {steps}, minute {history[-1][1]:.1f}: L1 {recent:.4f}")
    for module in average.values():
        module.eval().requires_grad_(False)
    return average


def _save_state(folder, modules, average, optimizer, step, history):
    """Everything that a run needs to go on, whole or not at all."""
    state = {"step": step, "history": history, "optimizer": optimizer.state_dict()}
    state["modules"] = {name: module.state_dict() for name, module in modules.items()}
    state["average"] = {name: module.state_dict() for name, module in average.items()}
    torch.save(state, folder / ".state.pt.tmp")
    (folder / ".state.pt.tmp").replace(folder / "state.pt")
    with open(folder / "history.csv", "w", newline="") as file:
        csv.writer(file).writerows([("step", "minutes", "l1", "total"), *history])
