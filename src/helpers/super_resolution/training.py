"""Teach a network what slicing takes away, by the slices themselves.

A slice is sharp in its own plane. Degraded there by exactly what happened through the plane
(`degradation.matrix`), it gives a pair of images to learn from.
"""

import hashlib
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor, nn
from tqdm.auto import tqdm

from helpers import linear, volumes
from helpers.acquisition import degradation
from helpers.acquisition.rf_pulse import Pulse
from helpers.haca3.fast.memory import keep_freed_memory
from helpers.haca3.fast.threads import set_gradients, side_by_side
from helpers.study import GRID_MM, Resolution
from helpers.super_resolution.linear_estimate import operators
from helpers.super_resolution.network import REACH, Network, SuperResolver, ready, write
from helpers.super_resolution.stacks import foreground_box, scale_of, through_plane_axis

_BATCH = 4  # strips a step
_WIDTH = 64  # voxels of a strip along the axis that is not degraded; along the other one it is whole
_RATE = 2e-3  # Adam, warmed up over the first tenth of the steps, then a cosine down to 0
_SMOOTH = 0.1  # of the strips: they teach that there is nothing to add where intensity changes slowly
_NO_ERROR = 1e-3  # of the scale: below it the gradient of the loss fades
_SAVE_SECONDS = 60


def train(
    stacks: Sequence[tuple[np.ndarray, np.ndarray]],
    resolution: Resolution,
    *,
    pulse: Pulse = Pulse(),
    steps: int = 4000,
    channels: int = 32,
    seed: int = 0,
    folder: str | Path | None = None,
    device: str = "cpu",
    tell: Callable[[str], None] = print,
) -> SuperResolver:
    """Teach a network what slicing takes away, by the slices of stacks of one protocol; with a progress bar.

    The same stacks and seed give the same bytes whatever the number of threads.

    Parameters
    ----------
    stacks : sequence of (ndarray, ndarray)
        Volumes of shape (X, Y, Z) in any unit, and their affines (4, 4). Sizes, orientations and contrasts
        may differ.
    resolution : Resolution
        Thickness and gap of their slices.
    pulse : Pulse
        Its slice profile.
    steps : int
        Training steps; each uses four strips.
    channels : int
        Width of the network.
    seed : int
        Of first weights and draws.
    folder : str or Path, optional
        Holds ``state.pt``, saved once a minute; an interrupted run goes on from there and ends with the same
        weights.
    device : str
        Where to compute, as torch names it.
    tell : callable
        Is given a line when a run goes on.

    Returns
    -------
    SuperResolver

    Raises
    ------
    ValueError
        If there is no stack, one is no stack of this resolution, shows nothing or is too small, or the
        folder holds another run.
    """
    if steps < 1 or channels < 1:
        raise ValueError(f"steps is {steps} and channels {channels}: accepted are whole numbers from 1")
    if not len(stacks):
        raise ValueError("no stacks are given: accepted is one or more")
    images = [
        image
        for number, stack in enumerate(stacks)
        for image in _images(*stack, resolution, pulse, f"stack {number}")
    ]
    in_plane_mm = [image.voxel_mm for image in images]
    run_id = _run_id(stacks, resolution, pulse, steps, channels, seed)
    keep_freed_memory()
    rows = math.ceil(resolution.separation_mm / GRID_MM)
    with torch.random.fork_rng():  # layers draw their weights from the global generator, which is put back
        torch.manual_seed(seed)
        network = Network(rows, channels).to(device, memory_format=torch.channels_last)
    parameters = list(network.parameters())
    optimizer = torch.optim.Adam(parameters)
    done, state_file = 0, folder and Path(folder) / "state.pt"
    if state_file and state_file.exists():
        state = torch.load(state_file, map_location=device, weights_only=True)
        if state["run"] != run_id:
            accepted = "a folder of the same stacks, settings and seed, or a new one"
            raise ValueError(f"{state_file} is of another run: accepted is {accepted}")
        network.load_state_dict(state["network"])
        optimizer.load_state_dict(state["optimizer"])
        done = state["step"]
        tell(f"goes on at step {done}")

    def differentiate(step: int, number: int) -> tuple:
        # So that a run that goes on draws what it would have drawn.
        rng = np.random.default_rng([seed, step, number])
        image = images[rng.integers(len(images))]
        loss = _loss(network, image.operators(device), image.draw(rng).to(device), rows)
        return torch.autograd.grad(loss, parameters), loss.item()

    saved, recent = time.monotonic(), None
    bar = tqdm(range(done, steps), "super-resolution", total=steps, initial=done, unit="step", mininterval=1)
    with side_by_side(device) as run, bar:
        for step in bar:
            gradients, losses = zip(*run(differentiate, [step] * _BATCH, range(_BATCH)))
            set_gradients(parameters, gradients, _BATCH)
            nn.utils.clip_grad_norm_(parameters, 1.0)
            part = (step + 1) / steps
            optimizer.param_groups[0]["lr"] = _RATE * min(1.0, 10 * part) * (1 + math.cos(math.pi * part)) / 2
            optimizer.step()
            now = sum(losses) / _BATCH
            recent = now if recent is None else 0.98 * recent + 0.02 * now
            bar.set_postfix_str(f"error {100 * recent:.2f} %", refresh=False)
            if state_file and (time.monotonic() - saved > _SAVE_SECONDS or step + 1 == steps):
                saved = time.monotonic()
                state = {
                    "run": run_id,
                    "step": step + 1,
                    "network": network.state_dict(),
                    "optimizer": optimizer.state_dict(),
                }
                write(state_file, state)
    return SuperResolver(ready(network, device), resolution, pulse, (min(in_plane_mm), max(in_plane_mm)))


@dataclass(frozen=True)
class _Image:
    """The slices of a stack, to be degraded along one axis of their plane."""

    slices: np.ndarray  # (slices, n, W), float32, 1 mm along the axis that will be degraded
    chances: np.ndarray  # (slices * W,), cumulative, of a strip around each line
    voxel_mm: float  # of the other axis
    matrices: tuple[np.ndarray, ...]

    def operators(self, device: str) -> list[Tensor]:
        return [torch.from_numpy(matrix).to(device) for matrix in self.matrices]

    def draw(self, rng: np.random.Generator) -> Tensor:
        """A strip (n, width), flipped and moved at random: where an edge lies between two slices differs."""
        _, n, width = self.slices.shape
        k, column = divmod(int(np.searchsorted(self.chances, rng.random() * self.chances[-1])), width)
        begin = min(max(column - _WIDTH // 2, 0), max(width - _WIDTH, 0))
        reach = len(self.matrices[1][0])  # slices
        shift = rng.integers(-(n // reach), n // reach + 1)
        rows = np.clip(np.arange(n) + shift, 0, n - 1)
        strip = self.slices[k][rows, begin : begin + _WIDTH]
        for axis in (0, 1):
            if rng.random() < 0.5:
                strip = np.flip(strip, axis)
        if rng.random() < _SMOOTH:
            strip = ndimage.gaussian_filter(strip, n / reach)
        return torch.from_numpy(np.ascontiguousarray(strip))


def _images(volume, affine, resolution, pulse, what):
    """Both axes of the plane of a stack's slices, checked and ready to be drawn from."""
    volume = volumes.as_volume(volume, what)
    axis = through_plane_axis(volume.shape, affine, resolution, what)
    voxel_mm = np.linalg.norm(np.asarray(affine, float)[:3, :3], axis=0)
    scale = scale_of(volume)
    if not scale:
        values = f"{volume.min():g} to {volume.max():g}"
        raise ValueError(
            f"{what} shows nothing, its values are {values}: accepted are images with values above 0"
        )
    for along in (a for a in range(3) if a != axis):
        other = 3 - axis - along
        slices = np.moveaxis(volume, (axis, along, other), (0, 1, 2)) / np.float32(scale)
        slices = linear.along_axis(_to_grid(slices.shape[1], round(float(voxel_mm[along]), 4)), slices, 1)
        reach = math.ceil(resolution.separation_mm / GRID_MM) * (REACH // 2)
        slices = slices[(slice(None), *foreground_box(slices, reach)[1:])]
        n = slices.shape[1]
        if n < REACH * resolution.separation_mm:
            least = f"{REACH * resolution.separation_mm:g} mm and more, {REACH} slices"
            length = f"{n * GRID_MM:g} mm in the plane of its slices"
            raise ValueError(f"{what} has {length}: accepted are {least}")
        edges = np.abs(np.diff(slices, axis=1)).sum(axis=1, dtype=np.float64)  # (slices, W)
        slices = np.ascontiguousarray(slices, np.float32)
        matrices = operators(n, resolution, pulse)
        yield _Image(slices, edges.ravel().cumsum(), float(voxel_mm[other]), matrices)


@lru_cache(maxsize=32)
def _to_grid(n, voxel_mm):
    """The matrix that brings a line of n voxels to 1 mm: finer are averaged, coarser interpolated."""
    if abs(voxel_mm - GRID_MM) < 0.01:
        return np.eye(n)
    if voxel_mm < GRID_MM:
        return degradation.matrix(n, voxel_mm, Resolution(GRID_MM, 0))
    length = round(n * voxel_mm / GRID_MM)
    position = (np.arange(length) - (length - 1) / 2) * GRID_MM / voxel_mm + (n - 1) / 2
    return linear.spline_matrix(position.clip(0, n - 1), n)


def _loss(network, operators, truth, rows):
    """Root mean square error of a strip (n, width) that is degraded and brought back."""
    slicing, estimate, to_voxels = operators
    slices = slicing @ truth
    added = to_voxels @ network(slices[None, None])[0]
    # Of what is added only that counts which slicing does not see.
    error = estimate @ (slices - slicing @ added) + added - truth
    # PSNR is about squares; of their root no strip, however hard, outweighs the others.
    return (error.square().mean() + _NO_ERROR**2).sqrt()


def _run_id(stacks, *settings):
    digest = hashlib.sha256(repr(settings).encode())
    for volume, affine in stacks:
        digest.update(np.ascontiguousarray(volume, np.float32))
        digest.update(np.ascontiguousarray(affine, np.float64))
    return digest.hexdigest()
