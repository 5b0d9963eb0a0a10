"""What HACA3 learns from: slices of subjects whom the same scanners imaged, degraded, and drawn as examples.

Slices are shown as 3D images have them, and as thick slices brought back to 1 mm have them (`Group`), as the
published training saw both: the sources of an example share a path, and the truth took the same one. So the
network learns to change the contrast and to keep the resolution. With `mixed` paths (the paper's future
work) the sources differ and the truth is the 3D image.

Sources are degraded as published (motion, noise, ghosting, bias field). How severely is two numbers, which
the eta encoder is taught to say (`helpers.haca3.training.teach_severity`); of thick slices it is not told,
unless paths are mixed.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from helpers.grid import AXIS
from helpers.haca3 import networks
from helpers.haca3.slicing import TARGET_SLICES, slice_of
from helpers.study import ORIENTATIONS, Resolution

LABELS = networks.BETA_DIM
LESION = LABELS - 1  #: the label whose pixels weigh more
NOISE = 0.04  # largest standard deviation of the Rician noise, in units of the 95th percentile
BIAS = 0.04  # largest standard deviation of the logarithm of the bias field
_ARRAYS = ("images", "norms", "labels", "references")
DEGRADED = 0.4  # share of the examples in which some sources are degraded
SEVERE = 0.25  # root mean square error, in units of the 95th percentile, that counts as severity 1


@dataclass(frozen=True)
class Group:
    """Slices of some subjects, each seen by the same scanners along the same paths.

    A path is what happened to a subject's images: the first one is the 3D image itself, the others are thick
    slices of one orientation and resolution, brought back to 1 mm.

    Attributes
    ----------
    images : ndarray, shape (subjects, scanners, contrasts, paths, slices, 224, 224), float16
        Noise-free, preprocessed as in `slicing.preprocess`, cut by `cut`.
    norms : ndarray, shape (subjects, scanners, contrasts, paths), float32
        What they were divided by in the preprocessing: the 95th percentile, in the scanner's units.
    labels : ndarray, shape (subjects, slices, 224, 224), uint8
        Tissue class 0 to 4, by which the anatomy labels start; `LESION` is the last one.
    references : sequence of int
        Which of the slices are central coronal ones: a target is described by such slices of its 3D image.
    """

    images: np.ndarray
    norms: np.ndarray
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


def imperfect(images: Tensor, rng: np.random.Generator, generator: torch.Generator) -> Tensor:
    """What a scanner makes of noise-free slices (n, 1, 224, 224): a left-over bias field, and Rician noise of
    0 to 4 %.

    The noise is sqrt((x + n1)^2 + n2^2), on the foreground only.
    """
    field = F.interpolate(
        torch.randn((len(images), 1, 4, 4), generator=generator), images.shape[-2:], mode="bicubic"
    )
    images = images * torch.exp(BIAS * rng.random() * field)
    sd = NOISE * rng.random()
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
    Tensor, shape (1, 224, 224) (float, float)
        Severity of motion, noise and ghosts, and of the bias field: root mean square of the change over the
        foreground, 1 and more for `SEVERE` and more.
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
    severity = ((changed - image)[inside].square().mean().sqrt().item() if inside.any() else 0.0) / SEVERE
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
        True: each source has its own path and the truth is the target's 3D image. False: sources and truth
        share one path.
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
    # In units of the image that describes the target, as the harmonizer scales its result. In units of the
    # subject's own, no network could know the truth: the 95th percentile of T2w lies on fluid in some brains
    # and on tissue in others.
    norms = group.norms[:, target, contrast]
    scale = float(norms[subject, truth_path] / norms[other, 0])
    truth = scale * group.image(subject, target, contrast, truth_path, k)
    # Published: where every contrast has a signal. Fluid at the rim of the brain is background to Otsu's
    # threshold on T1w, and bright on T2w: there the truth is known, and mask="union" will ask for it.
    mask = truth > 0
    generator = torch.Generator().manual_seed(int(rng.integers(2**62)))
    seen = [group.image(subject, source, c, p, k) for c, p in zip(kept, source_paths)]
    severity = torch.zeros(len(kept), 2)
    if mixed:
        severity[:, 0] = torch.tensor(
            [blur_severity(group, (subject, source, c, p, k)) for c, p in zip(kept, source_paths)]
        )
    given = imperfect(torch.stack(seen), rng, generator)
    if rng.random() < DEGRADED:
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


def blur_severity(group: Group, where: tuple[int, int, int, int, int]) -> float:
    """How severe it is for a slice to be what its path made of it, as `degrade` measures it."""
    subject, scanner, contrast, path, k = where
    sharp = group.image(subject, scanner, contrast, 0, k)
    norms = group.norms[subject, scanner, contrast]
    scale = float(norms[path] / norms[0])
    change = (scale * group.image(*where) - sharp)[sharp > 0]
    return min(change.square().mean().sqrt().item() / SEVERE, 1.5) if len(change) else 0.0
