"""The losses of HACA3's training.

Where the published training asks a network to give back its own input, we know what the same anatomy looks
like on another scanner, and ask for that. So the published second step (decode with another site's theta,
encode the result again, compare) is replaced by the truth itself, but for theta, whose encoding of the result
is still compared. The other published losses are here with their weights (L1, KLD), with a smaller one (patch
contrast), or left out (perceptual: it needs the weights of another network).
"""

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from helpers.haca3 import networks
from helpers.haca3.examples import LABELS, LESION, Example

LESION_WEIGHT = 20.0
ETA_ERROR = 0.07  # standard deviation of the error with which the severity is told in training
THETA_CYCLE = 0.05  # published
PATCH_CONTRAST = 0.05  # published: 0.5, which would be six times the L1 loss here
PATCH_TEMPERATURE = 0.1  # published
# Shares of the steps at which parts of the run end; see `loss_of`.
_FORCED, _RAMP, _TIE = 0.08, 0.18, 0.50


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
    logits = (others @ query[:, :, None])[..., 0] / PATCH_TEMPERATURE  # (49, 7), the positive first
    return F.cross_entropy(logits, torch.zeros(len(logits), dtype=torch.long))


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
        keys = torch.cat([theta, eta + ETA_ERROR * torch.randn(eta.shape, generator=generator)], dim=1)
        # At the temperature of the inference (published: 10 in training), so that both weigh alike.
        weights = modules["attention_module"].weights(keys[:1], keys[None, 1:])
        fused = (weights[0, :, None, None, None] * logits).sum(dim=0, keepdim=True)
        noise = min((progress - _FORCED) / (_RAMP - _FORCED), 1.0) * (rng.random() > 0.35)
        beta = sample_labels(fused, noise, True, generator)
    contrast = theta[:1, :, None, None].expand(-1, -1, size, size)
    image = modules["decoder"](torch.cat([beta, contrast], dim=1)).float()

    weight = mask * (1 + (LESION_WEIGHT - 1) * (labels == LESION)[:, None])
    l1 = (weight * (image - truth).abs()).sum() / weight.sum().clamp(min=1)
    total = 10 * l1 + 1e-5 * (0.5 * (logvar[0].exp() + mu[0] ** 2 - 1 - logvar[0])).mean()
    if progress > _RAMP:
        total = total + gradient_loss(image, truth, weight.clamp(min=1e-6))
    if size == networks.SLICE and not forced:
        theta_of_result = modules["theta_encoder"](image * mask)[0].flatten(1)
        total = total + THETA_CYCLE * (theta_of_result - mu[:1].detach()).abs().mean()
        if len(sources) > 1:
            betas = sample_labels(logits[:2], noise, True, generator)
            total = total + PATCH_CONTRAST * patch_contrast(modules["patchifier"], betas, sources[:2])
    if progress < _TIE:
        emphasis = torch.ones(LABELS)
        emphasis[LESION] = LESION_WEIGHT
        tissue = F.cross_entropy(logits, labels.expand(len(logits), -1, -1), emphasis, reduction="none")
        tissue = (mask[:, 0] * tissue).sum() / mask.sum().clamp(min=1) / len(logits)
        total = total + 2 * min(1, (_TIE - progress) / (_TIE - _FORCED)) * tissue
    return {"total": total, "l1": l1}
