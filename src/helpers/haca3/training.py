"""Train HACA3: a short supervised training of the published networks.

This module does not care where the slices come from: see `helpers.haca3.examples`; what is minimised is in
`helpers.haca3.losses`.

The rest of the training is told how severely sources are degraded, with some error, so that it need not wait
for the eta encoder, which is taught that separately (`teach_severity`; published: pre-trained elsewhere) and
costs nothing in the second training.

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
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F
from tqdm.auto import tqdm

from helpers.haca3 import networks
from helpers.haca3.examples import LESION, Group, blur_severity, degrade, draw, imperfect
from helpers.haca3.fast import memory
from helpers.haca3.fast.layers import quicken
from helpers.haca3.fast.threads import set_gradients, side_by_side
from helpers.haca3.losses import loss_of, side

_BATCH = 2  # slices a step: small batches and many steps go furthest in a given time
_RATE = 1.2e-3  # Adam; warmed up over 30 steps, then a cosine down to 2 %
_AVERAGE = 0.995  # decay of the averaged weights
_SAVE_SECONDS = 60


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
        blur = blur_severity(group, where) if mixed else 0.0
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
