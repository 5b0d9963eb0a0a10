"""How the shipped harmonizers were trained: notebook a1's training on a GPU, with what only a GPU can afford.

    python data/models/train_on_gpu.py WEIGHTS FOLDER --minutes 8 --mixed-minutes 1.5

goes on from WEIGHTS (a checkpoint of any width) and writes ``harmonizer-small.pt``,
``harmonizer-resolution.pt`` and ``history.csv`` into FOLDER. Losses and examples are those of
`helpers.haca3.losses` and `helpers.haca3.examples`, for many examples at once. What differs: the images are
made on the GPU while it trains. Volumes of some subjects stay in its memory (19 GB on the defaults), and one
block of them after the other is replaced by other subjects, scanners and acquisitions.

The results differ from run to run: how many steps fit depends on the GPU, which also rounds differently.
"""

import argparse
import copy
import csv
import itertools
import math
import multiprocessing
import time
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F

from helpers import grid, super_resolution
from helpers.acquisition import degradation
from helpers.cohort import phantom, scanners
from helpers.haca3 import checkpoint, examples, losses, networks, slicing
from helpers.study import CONTRASTS
from helpers.super_resolution.linear_estimate import operators

TISSUES = (*phantom.TISSUES, "lesion")
BOX = 256  # of the foreground's closing, as published
RATE = 1.2e-3  # Adam; warmed up over 100 steps, then a cosine down to 2 %
AVERAGE = 0.999  # decay of the averaged weights
GIVEN = ("beta_encoder", "decoder", "attention_module", "patchifier", "theta_encoder")


# ---------------------------------------------------------------- subjects and their images


def store_subject(task: tuple[int, Path]) -> Path:
    """Write what rendering needs of a subject: in the brain only, ten numbers a voxel."""
    seed, folder = task
    file = folder / f"{seed}.npz"
    if not file.exists():
        person = phantom.subject(seed)
        inside = np.stack([*(person.fractions[t] for t in TISSUES), *person.variation])[:, person.brain]
        f = person.fractions
        fluid, cortex = f["CSF"] + f["VCSF"] + ~person.brain, f["CGM"] + f["CBM"]
        classes = np.argmax([fluid, cortex, f["SGM"], f["WM"], f["lesion"]], 0).astype(np.uint8)
        partial = file.with_name(f".{file.name}")
        np.savez(partial, inside=inside.astype(np.float16), brain=person.brain, classes=classes)
        partial.replace(file)
    return file


def sensitivities(scanner: scanners.Scanner, contrast: str) -> np.ndarray:
    """Signal of each tissue, and its derivative by the logarithms of T1, T2 and proton density: (4, 7)."""
    step, columns = 0.02, []
    for tissue in TISSUES:
        relaxation = np.array(scanners.relaxation(tissue, scanner.field_t))
        around = [scanners.signal(scanner, contrast, *relaxation)]
        for number in range(3):
            change = np.exp(step * (np.arange(3) == number))
            more = scanners.signal(scanner, contrast, *(relaxation * change))
            less = scanners.signal(scanner, contrast, *(relaxation / change))
            around.append(0.0 if tissue in scanners.FLUIDS else (more - less) / (2 * step))
        columns.append(around)
    return np.array(columns, np.float32).T * np.float32(scanner.gain[contrast])


class Person:
    """A subject on the GPU."""

    def __init__(self, file: Path, device: torch.device):
        with np.load(file) as stored:
            brain, inside, classes = stored["brain"], stored["inside"], stored["classes"]
        self.brain = torch.from_numpy(brain).to(device)
        self.inside = torch.from_numpy(inside).to(device)
        self.classes = torch.from_numpy(slicing.pad(classes)).to(device)
        padded = slicing.pad(brain)
        self.slices = {
            o: np.flatnonzero(padded.mean(axis=tuple({0, 1, 2} - {axis})) > 0.02)
            for o, axis in grid.AXIS.items()
        }

    def render(self, scanner: scanners.Scanner, contrast: str) -> torch.Tensor:
        """As `phantom.render` without noise, with signals that are linear in what varies within a tissue."""
        table = torch.from_numpy(sensitivities(scanner, contrast)).to(self.brain.device)
        inside = self.inside.float()
        parts = table @ inside[:7]
        signal = parts[0] + (parts[1:] * inside[7:]).sum(0)
        image = torch.zeros(grid.SHAPE, device=self.brain.device)
        image[self.brain] = signal.abs()
        if phantom.POINT_SPREAD[contrast]:
            sigma = phantom.POINT_SPREAD[contrast]
            weight = smoothed(self.brain.float(), sigma).clamp(min=1e-3)
            image = torch.where(self.brain, smoothed(image, sigma) / weight, 0)
        return image


def smoothed(volume: torch.Tensor, sigma: float) -> torch.Tensor:
    """Gaussian smoothing by three taps along each axis, which is where scipy cuts these narrow ones off."""
    side = math.exp(-0.5 / sigma**2)
    for axis in range(3):
        near = volume.roll(1, axis) + volume.roll(-1, axis)
        volume = (volume + side * near) / (1 + 2 * side)
    return volume


def padded_to(volume: torch.Tensor, side: int) -> torch.Tensor:
    """A volume in the middle of a cube of zeros."""
    room = [side - n for n in reversed(volume.shape)]
    return F.pad(volume, [*itertools.chain.from_iterable((n // 2, n - n // 2) for n in room)])


class Preprocessing:
    """`slicing.preprocess` on the GPU."""

    def __init__(self, device: torch.device):
        side = torch.fft.fftfreq(BOX, 1 / BOX, device=device)
        ball = (side[:, None, None] ** 2 + side[:, None] ** 2 + side**2 <= 20**2).float()
        self.ball = torch.fft.rfftn(ball)

    def dilated(self, mask: torch.Tensor) -> torch.Tensor:
        return torch.fft.irfftn(torch.fft.rfftn(mask.float()) * self.ball, s=(BOX,) * 3) > 0.5

    def foreground(self, volume: torch.Tensor) -> torch.Tensor:
        low, high = volume.min(), volume.max()
        counts = torch.histc(volume, 256, low.item(), high.item()).double()
        centres = low + (torch.arange(256, device=volume.device) + 0.5) * (high - low) / 256
        below, above = counts.cumsum(0), counts.flip(0).cumsum(0).flip(0)
        mean_below = (counts * centres).cumsum(0) / below
        mean_above = ((counts * centres).flip(0).cumsum(0) / above.flip(0)).flip(0)
        variance = below[:-1] * above[1:] * (mean_below[:-1] - mean_above[1:]) ** 2
        mask = volume >= centres[variance.argmax()]
        closed = ~self.dilated(~self.dilated(padded_to(mask, BOX)))
        return closed[tuple(slice((BOX - n) // 2, (BOX - n) // 2 + n) for n in volume.shape)]

    def __call__(self, volume: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        rank = round(0.95 * (volume.numel() - 1)) + 1
        norm = volume.flatten().kthvalue(rank).values
        shown = torch.where(self.foreground(volume), (volume / (norm + 1e-5)).clamp(0, 5), 0)
        return padded_to(shown, slicing.SLICE).half(), norm


class Acquisition:
    """What thick slices of one orientation make of a volume, brought back by B-spline or super-resolved."""

    def __init__(self, rng: np.random.Generator, resolvers: list, device: torch.device):
        orientation, resolution = examples.thick_slices(rng)
        self.axis, self.resolver = grid.AXIS[orientation], None
        n = grid.SHAPE[self.axis]
        if resolvers and rng.random() < 0.25:
            self.resolver = resolvers[rng.integers(len(resolvers))]
            matrices = operators(n, self.resolver.resolution, self.resolver.pulse)
            self.matrices = [torch.from_numpy(np.array(m)).to(device) for m in matrices]
        else:
            both = degradation.there_and_back(n, resolution)
            self.both = torch.from_numpy(both.astype(np.float32)).to(device)

    @torch.no_grad()
    def __call__(self, volume: torch.Tensor) -> torch.Tensor:
        lines = volume.movedim(self.axis, 0)
        if self.resolver is None:
            return torch.tensordot(self.both, lines, 1).movedim(0, self.axis)
        slicing_, estimate, to_voxels = self.matrices
        slices = torch.tensordot(slicing_, lines, 1)  # (n_lr, U, V)
        bright = slices[slices > slices.mean().clamp(min=0)]
        scale = bright.kthvalue(round(0.99 * (bright.numel() - 1)) + 1).values
        network, rows = self.resolver.network, 0.0
        for axis in (1, 2):
            planes = (slices / scale).movedim(axis, 0)[:, None]
            answers = torch.cat([network(some.contiguous()) for some in planes.split(32)])
            rows = rows + answers.movedim(0, axis) / 2
        added = torch.tensordot(to_voxels, rows, 1) * scale
        missing = slices - torch.tensordot(slicing_, added, 1)
        return (added + torch.tensordot(estimate, missing, 1)).movedim(0, self.axis)


class Pool:
    """Volumes to cut examples from: blocks of some people, all of them imaged by the same scanners."""

    def __init__(
        self,
        blocks: int,
        resolvers: list,
        seed: int,
        device: torch.device,
        people: int = 4,
        scanners: int = 4,
        paths: int = 3,
    ):
        shape = (blocks, people, scanners, len(CONTRASTS), paths)
        self.volumes = torch.zeros((*shape, *(slicing.SLICE,) * 3), dtype=torch.float16, device=device)
        self.classes = torch.zeros((*shape[:2], *(slicing.SLICE,) * 3), dtype=torch.uint8, device=device)
        self.shape = shape[1], shape[2], shape[4]  # people, scanners, paths
        self.norms, self.slices = torch.ones(shape, device=device), np.empty(shape[:2], object)
        self.ready: list[int] = []
        self.people: list[Person] = []
        self.resolvers, self.device = resolvers, device
        self.rng, self.scanner = np.random.default_rng([seed, 0]), 0
        self.preprocess, self.renewal, self.turn = Preprocessing(device), iter(()), 0

    def fill(self, block: int):
        """Replace a block, one volume at each step of this generator, which gives its number."""
        if block in self.ready:
            self.ready.remove(block)
        people, count, paths = self.shape
        chosen = self.rng.choice(len(self.people), people, replace=False)
        machines = [scanners.scanner(f"train-{self.scanner + n}") for n in range(count)]
        self.scanner += count
        for p, person in enumerate(self.people[n] for n in chosen):
            self.classes[block, p], self.slices[block, p] = person.classes, person.slices
            ways = [Acquisition(self.rng, self.resolvers, self.device) for _ in range(paths - 1)]
            for (s, machine), (c, contrast) in itertools.product(enumerate(machines), enumerate(CONTRASTS)):
                image = person.render(machine, contrast)
                for n, seen in enumerate((image, *(way(image) for way in ways))):
                    self.volumes[block, p, s, c, n], self.norms[block, p, s, c, n] = self.preprocess(seen)
                    yield block
        self.ready.append(block)

    def renew(self) -> None:
        """Make one volume of the block that is being replaced, or begin to replace the next one."""
        if next(self.renewal, None) is None:  # the block is whole
            self.renewal = self.fill(self.turn % len(self.volumes))
            self.turn += 1

    def batch(self, rng: np.random.Generator, count: int, mixed: bool) -> dict[str, torch.Tensor]:
        """Examples as `examples.draw` draws them, a third of them in each plane."""
        parts = [self._in_plane(rng, count // 3, orientation, mixed) for orientation in grid.AXIS]
        return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}

    def _in_plane(self, rng, count, orientation, mixed):
        b, (people, machines, ways) = rng.choice(self.ready, count), self.shape
        p, other = rng.integers(people, size=(2, count))
        other = np.where(rng.random(count) < 0.7, other, p)
        source, target = rng.integers(machines, size=(2, count))
        contrast = rng.integers(len(CONTRASTS), size=count)
        path = rng.integers(ways, size=count)
        truth_path = np.zeros_like(path) if mixed else path
        size = (len(CONTRASTS), count)
        paths = rng.integers(ways, size=size) if mixed else np.broadcast_to(path, size)
        k = np.array([rng.choice(self.slices[at][orientation]) for at in zip(b, p)])
        sources = [self._cut((b, p, source, c, paths[c]), k, orientation) for c in range(len(CONTRASTS))]
        truth = self._cut((b, p, target, contrast, truth_path), k, orientation)
        central = rng.choice(slicing.TARGET_SLICES, count)
        reference = self._cut((b, other, target, contrast, 0), central, "coronal")
        # In the units of the reference: that is how the harmonizer scales its result.
        scale = self._norm(b, p, target, contrast, truth_path) / self._norm(b, other, target, contrast, 0)
        present = np.ones((count, len(CONTRASTS)), bool)
        present[np.arange(count), contrast] = rng.random(count) < 0.5
        for row in np.flatnonzero(rng.random(count) < 0.3):
            present[row, rng.choice(np.flatnonzero(present[row]))] = False
        sources, severity = torch.stack(sources, 1), torch.zeros((*size[::-1], 2), device=self.device)
        if mixed:
            sharp = [self._cut((b, p, source, c, 0), k, orientation) for c in range(len(CONTRASTS))]
            gain = [
                self._norm(b, p, source, c, paths[c]) / self._norm(b, p, source, c, 0)
                for c in range(len(CONTRASTS))
            ]
            gain = torch.stack(gain, 1)[..., None, None]
            severity[..., 0] = severity_of(gain * sources, torch.stack(sharp, 1))
        return {
            "sources": sources,
            "severity": severity,
            "present": torch.from_numpy(present),
            "reference": reference[:, None],
            "truth": truth[:, None] * scale[:, None, None, None],
            "classes": self._cut((b, p), k, orientation, self.classes)[:, None],
        }

    def _norm(self, *where):
        return self.norms[self._indices(where)]

    def _indices(self, where):
        return torch.broadcast_tensors(*(torch.tensor(index, device=self.device) for index in where))

    def _cut(self, where, k, orientation, volumes=None):
        """Slices of several volumes as the networks see them: (n, 224, 224)."""
        volumes = self.volumes if volumes is None else volumes
        where, axis = self._indices((*where, k)), grid.AXIS[orientation]
        planes = volumes[(*where[:-1], *(slice(None),) * axis, where[-1])].float()
        planes = planes if orientation == "axial" else planes.flip(-1)
        return planes.mT.contiguous()


# ---------------------------------------------------------------- what is wrong with sources


def severity_of(changed: torch.Tensor, image: torch.Tensor) -> torch.Tensor:
    """Root mean square of the change over the foreground, 1 for what `examples` calls severe."""
    inside = image > 0
    squared = ((changed - image).square() * inside).sum((-2, -1)) / inside.sum((-2, -1)).clamp(min=1)
    return (squared.sqrt() / examples.SEVERE).clamp(max=1.5)


def uniform(images: torch.Tensor, low: float = 0.0, high: float = 1.0) -> torch.Tensor:
    """A number for each image, (n, 1, 1)."""
    return low + (high - low) * torch.rand((len(images), 1, 1), device=images.device)


def field(images: torch.Tensor, points: int) -> torch.Tensor:
    coarse = torch.randn((len(images), 1, points, points), device=images.device)
    return F.interpolate(coarse, images.shape[-2:], mode="bicubic")[:, 0]


def rician(images: torch.Tensor, sd: torch.Tensor) -> torch.Tensor:
    return torch.hypot(images + sd * torch.randn_like(images), sd * torch.randn_like(images))


def imperfect(images: torch.Tensor) -> torch.Tensor:
    """As `examples.imperfect`: (n, 224, 224)."""
    images = images * torch.exp(examples.BIAS * uniform(images) * field(images, 4))
    return torch.where(images > 0, rician(images, examples.NOISE * uniform(images)), images)


def degrade(images: torch.Tensor, rng: np.random.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """As `examples.degrade`, each image in its own way: (n, 224, 224) -> the same, severities (n, 2)."""
    changed, kinds = images.clone(), rng.integers(4, size=len(images))
    of = [torch.from_numpy(np.flatnonzero(kinds == kind)).to(images.device) for kind in range(4)]
    some = images[of[0]]
    if len(some):
        angle = torch.deg2rad(uniform(some, 15, 30)) * (2 * (uniform(some) > 0.5) - 1)
        shift = torch.cat([uniform(some, 10, 20) * (2 * (uniform(some) > 0.5) - 1) for _ in range(2)], 1)
        turn = torch.cat([angle.cos(), -angle.sin(), angle.sin(), angle.cos()], 1).view(-1, 2, 2)
        matrix = torch.cat([turn, shift * 2 / some.shape[-1]], 2)
        where = F.affine_grid(matrix, (len(some), 1, *some.shape[1:]), align_corners=False)
        moved = F.grid_sample(some[:, None], where, align_corners=False)[:, 0]
        late = torch.fft.fftfreq(some.shape[-2], device=some.device).abs()[:, None] > uniform(some, 0.04, 0.4)
        changed[of[0]] = torch.fft.ifft2(torch.where(late, torch.fft.fft2(moved), torch.fft.fft2(some))).abs()
    some = images[of[1]]
    changed[of[1]] = rician(some, uniform(some, 0.01, 0.1))
    some = images[of[2]]
    if len(some):
        every = torch.randint(4, 11, (len(some), 1, 1), device=some.device)
        rows = torch.arange(some.shape[-2], device=some.device)[:, None]
        ghosts = (rows > 0) & (rows % every == 0)
        weaker = torch.where(ghosts, 1 - uniform(some, 0.3, 0.9), 1.0)
        changed[of[2]] = torch.fft.ifft2(torch.fft.fft2(some) * weaker).abs()
    some = images[of[3]]
    if len(some):
        changed[of[3]] = some * torch.exp(uniform(some, 0.1, 0.4) * field(some, 3))
    changed = torch.where(images > 0, changed, images)
    severity, biased = severity_of(changed, images), torch.from_numpy(kinds == 3).to(images.device)
    return changed, torch.stack([severity * ~biased, severity * biased], 1)


@torch.no_grad()
def scanned(batch: dict, rng: np.random.Generator) -> dict:
    """The batch with noise and bias fields, and some of its sources degraded, but never all of an example."""
    sources, reference = imperfect(batch["sources"].flatten(0, 1)), imperfect(batch["reference"][:, 0])
    chosen, present = np.zeros(batch["present"].shape, bool), batch["present"].numpy()
    for row in np.flatnonzero(rng.random(len(chosen)) < examples.DEGRADED):
        kept = rng.permutation(np.flatnonzero(present[row]))
        chosen[row, kept[: rng.integers(len(kept))]] = True
    severity = batch["severity"].flatten(0, 1)
    chosen = torch.from_numpy(np.flatnonzero(chosen)).to(sources.device)
    sources[chosen], more = degrade(sources[chosen], rng)
    severity[chosen] = torch.stack([torch.hypot(severity[chosen][:, 0], more[:, 0]), more[:, 1]], 1)
    shape = batch["present"].shape
    given = {"sources": sources.view(*shape, 1, *sources.shape[1:]), "reference": reference[:, None]}
    given["present"] = batch["present"].to(sources.device)
    return {**batch, **given, "severity": severity.view(*shape, 2)}


# ---------------------------------------------------------------- training


def loss_of(modules: dict, batch: dict) -> dict[str, torch.Tensor]:
    """As `losses.loss_of` in the last leg of the schedule, for (n, 3) sources of which some are absent."""
    sources, present = batch["sources"], batch["present"]
    n, contrasts = present.shape
    shown = torch.cat([batch["reference"], sources.flatten(0, 1)])
    mu, logvar = (x.float().flatten(1) for x in modules["theta_encoder"](shown))
    theta = mu + torch.exp(logvar / 2) * torch.randn_like(mu)
    eta = torch.cat([torch.zeros((n, 2), device=mu.device), batch["severity"].flatten(0, 1)])
    keys = torch.cat([theta, eta + losses.ETA_ERROR * torch.randn_like(eta)], 1)
    weights = modules["attention_module"].weights(
        keys[:n], keys[n:].view(n, contrasts, -1), (~present).float()
    )
    logits = modules["beta_encoder"](sources.flatten(0, 1)).float().view(n, contrasts, 5, *sources.shape[-2:])
    fused = (weights.float()[:, :, None, None, None] * logits).sum(1)
    noise = (torch.rand((n, 1, 1, 1), device=mu.device) > 0.35).float()
    beta = sample_labels(fused, noise)
    contrast = theta[:n, :, None, None].expand(-1, -1, *beta.shape[-2:])
    image = modules["decoder"](torch.cat([beta, contrast], 1)).float()

    truth = batch["truth"]
    mask = (truth > 0).float()
    weight = mask * (1 + (losses.LESION_WEIGHT - 1) * (batch["classes"] == examples.LESION))
    total_weight = weight.sum((1, 2, 3)).clamp(min=1)
    l1 = ((weight * (image - truth).abs()).sum((1, 2, 3)) / total_weight).mean()
    kl = (0.5 * (logvar[:n].exp() + mu[:n] ** 2 - 1 - logvar[:n])).mean()
    total = 10 * l1 + 1e-5 * kl
    for axis in (-1, -2):
        difference = (torch.diff(image, dim=axis) - torch.diff(truth, dim=axis)).abs()
        weighted = (weight.narrow(axis, 1, difference.shape[axis]) * difference).sum((1, 2, 3))
        total = total + (weighted / total_weight).mean()
    theta_of_result = modules["theta_encoder"](image * mask)[0].float().flatten(1)
    total = total + losses.THETA_CYCLE * (theta_of_result - mu[:n].detach()).abs().mean()
    pairs = present.float().topk(2).indices
    two, rows = present.sum(1) >= 2, torch.arange(n, device=mu.device)[:, None]
    betas = sample_labels(logits[rows, pairs].flatten(0, 1), noise.repeat_interleave(2, 0))
    seen = sources[rows, pairs].flatten(0, 1)
    total = total + losses.PATCH_CONTRAST * patch_contrast(modules["patchifier"], betas, seen, two)
    return {"total": total, "l1": l1}


def sample_labels(logits: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
    uniform_ = torch.rand_like(logits).clamp_(1e-10, 1 - 6e-8)
    logits = logits - noise * torch.log(-torch.log(uniform_))
    levels = networks.labels_to_beta(torch.arange(5, device=logits.device)).view(1, 5, 1, 1)
    soft = (torch.softmax(logits, 1) * levels).sum(1, keepdim=True)
    return soft + (networks.labels_to_beta(logits.argmax(1, keepdim=True)) - soft).detach()


def patch_contrast(patchifier, betas, images, counts):
    code = patchifier(betas).float().flatten(2).mT.unflatten(0, (-1, 2))  # (n, 2, 49, 128)
    query, positive = code[:, 0], code[:, 1].detach()
    elsewhere = [features.roll(n, 1) for features in (query, positive) for n in (1, 7)]
    seen = patchifier(images).float().flatten(2).mT.unflatten(0, (-1, 2))
    others = torch.stack([positive, seen[:, 0], seen[:, 1], *elsewhere], 2).detach()  # (n, 49, 7, 128)
    logits = (others @ query[..., None])[..., 0] / losses.PATCH_TEMPERATURE
    loss = -torch.log_softmax(logits, -1)[..., 0].mean(1)
    return (loss * counts).sum() / counts.sum().clamp(min=1)


def train(pool, modules, seconds, mixed, count, seed, compiled, tell, average=AVERAGE, steps=None):
    """Train for so many seconds: the averaged weights, and the history (step, seconds, L1)."""
    device = pool.device
    modules = {name: module.to(device).train().requires_grad_() for name, module in modules.items()}
    used = {
        name: torch.compile(module, dynamic=False)
        if compiled and name in ("beta_encoder", "decoder", "theta_encoder")
        else module
        for name, module in modules.items()
    }
    rates = dict.fromkeys(GIVEN, RATE) | {"theta_encoder": 0.3 * RATE}
    optimizer = torch.optim.Adam(
        [{"params": modules[name].parameters(), "lr": 0.0, "rate": rate} for name, rate in rates.items()],
        fused=device.type == "cuda",
    )
    parameters = [p for name in GIVEN for p in modules[name].parameters()]
    means = [p.detach().clone() for p in parameters]
    rng, history, recent, step = np.random.default_rng([seed, 1, mixed]), [], None, 0
    if compiled:
        with torch.autocast(device.type, torch.bfloat16):
            loss_of(used, scanned(pool.batch(rng, count, mixed), rng))["total"].backward()
        tell("compiled")
    begun = told = time.monotonic()
    while (elapsed := time.monotonic() - begun) < seconds and (steps is None or step < steps):
        if step % 4 == 0 and len(pool.volumes) > 1:  # making a volume takes as long as a step
            pool.renew()
        batch = scanned(pool.batch(rng, count, mixed), rng)
        with torch.autocast(device.type, torch.bfloat16):
            losses = loss_of(used, batch)
        optimizer.zero_grad(set_to_none=True)
        losses["total"].backward()
        torch.nn.utils.clip_grad_norm_(parameters, 5.0)
        cosine = (1 + math.cos(math.pi * elapsed / seconds)) / 2
        for options in optimizer.param_groups:
            options["lr"] = options["rate"] * min(1, (step + 1) / 100) * (0.02 + 0.98 * cosine)
        optimizer.step()
        with torch.no_grad():
            torch._foreach_lerp_(means, [p.detach() for p in parameters], 1 - average)
        step += 1
        if step % 20 == 0:
            l1 = losses["l1"].item()
            recent = l1 if recent is None else 0.9 * recent + 0.1 * l1
            history.append((step, time.monotonic() - begun, recent))
            if time.monotonic() - told > 20:
                told = time.monotonic()
                tell(
                    f"step {step} after {told - begun:.0f} s: L1 {recent:.4f}, {pool.scanner} scanners so far"
                )
    with torch.no_grad():
        for parameter, mean in zip(parameters, means):
            parameter.copy_(mean)
    return modules, history


def draw_history(folder: Path) -> None:
    """The error of both trainings, beside the table that it is drawn from."""
    import matplotlib.pyplot as plt
    import pandas as pd

    history = pd.read_csv(folder / "history.csv")
    figure, axes = plt.subplots(figsize=(6.4, 3.6), layout="constrained")
    for weights, rows in history.groupby("weights", sort=False):
        axes.plot(rows.step, rows.l1, label=weights)
    axes.set(ylim=(0, None), xlabel="step of its training", ylabel="mean absolute error / 95th percentile")
    axes.legend()
    figure.savefig(folder / "history.png", dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("weights", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--minutes", type=float, default=8)
    parser.add_argument("--mixed-minutes", type=float, default=1.5)
    parser.add_argument("--mixed-eta", type=Path, help="weights whose eta encoder the mixed ones take over")
    parser.add_argument("--resolvers", type=Path, nargs="*", default=[])
    parser.add_argument("--subjects", type=int, default=64)
    parser.add_argument("--blocks", type=int, default=6)
    parser.add_argument("--count", type=int, default=30, help="examples a step")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--cache", type=Path, help="where subjects are kept; default: FOLDER/subjects")
    parser.add_argument("--compile", action="store_true")
    options = parser.parse_args()
    begun = time.monotonic()
    tell = lambda text: print(f"[{time.monotonic() - begun:5.0f} s] {text}", flush=True)  # noqa: E731
    options.folder.mkdir(parents=True, exist_ok=True)
    options.cache = options.cache or options.folder / "subjects"
    options.cache.mkdir(parents=True, exist_ok=True)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.backends.cudnn.benchmark = True
    torch.manual_seed(options.seed)
    resolvers = [super_resolution.load(file, device=device.type) for file in options.resolvers]
    pool = Pool(options.blocks, resolvers, options.seed, device)
    seeds = [phantom.FIRST_TRAINING_SEED + n for n in range(options.subjects)]
    context = multiprocessing.get_context("spawn")
    with context.Pool(initializer=torch.set_num_threads, initargs=(1,)) as workers:
        for file in workers.imap_unordered(store_subject, [(s, options.cache) for s in seeds]):
            pool.people.append(Person(file, device))
    tell(f"{len(pool.people)} people")
    for block in range(options.blocks):
        for _ in pool.fill(block):
            pass
    if device.type == "cuda":
        torch.cuda.synchronize()
    tell(f"{options.blocks} blocks")
    modules = checkpoint.load_harmonization(options.weights)
    eta, rows, done = modules.pop("eta_encoder").cpu(), [], 0
    for mixed, minutes, name in (
        (False, options.minutes, "harmonizer-small.pt"),
        (True, options.mixed_minutes, "harmonizer-resolution.pt"),
    ):
        if mixed and options.mixed_eta:
            eta = checkpoint.load_harmonization(options.mixed_eta)["eta_encoder"]
        modules, history = train(
            pool, modules, 60 * minutes, mixed, options.count, options.seed, options.compile, tell
        )
        done += history[-1][0] if history else 0
        rows += [(name, *row) for row in history]
        copies = {key: copy.deepcopy(module).cpu().eval() for key, module in modules.items()}
        about = f"{done} steps of {options.count}, seed {options.seed}"
        checkpoint.save(options.folder / name, copies | {"eta_encoder": eta}, epoch=done, timestr=about)
        tell(f"{name}: {about}")
        with open(options.folder / "history.csv", "w", newline="") as file:
            csv.writer(file).writerows([("weights", "step", "seconds", "l1"), *rows])
    draw_history(options.folder)


if __name__ == "__main__":
    main()
