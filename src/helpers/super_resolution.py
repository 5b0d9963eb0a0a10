"""Super-resolution of thick slices, learnt from the slices themselves.

A slice is sharp in its own plane. Degraded there by exactly what happened through the plane
(`degradation.matrix`), it gives a pair of images to learn from; the network then works on the planes that
contain the through-plane axis [1]_ [2]_. No other images and no downloaded weights are needed, and all
stacks of one protocol share a network.

Three things are ours. The network reads the slices as acquired, not interpolated, and answers with as many
rows for each slice as the separation has millimetres: fewer pixels, so that more channels and a longer
reach cost the same. It only adds to a linear estimate, the smoothest image that has exactly these slices
(`estimate_matrix`). And of what it adds, only that is taken which slicing does not see, in training as in
use: degrading the result gives back the acquired slices.

References
----------
.. [1] Zhao et al. (2021). SMORE: a self-supervised anti-aliasing and super-resolution algorithm for MRI
   using deep learning. IEEE Trans Med Imaging 40(3):805-817.
.. [2] Remedios et al. (2023). Self-supervised super-resolution for anisotropic MR images with and without
   slice gap. SASHIMI.
"""

import functools
import hashlib
import io
import math
import pickle
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm.auto import tqdm

from helpers import linear, volumes
from helpers.acquisition import degradation
from helpers.acquisition.rf_pulse import Pulse
from helpers.haca3.fast.memory import keep_freed_memory
from helpers.haca3.fast.threads import set_gradients, side_by_side
from helpers.study import GRID_MM, Resolution

LAYERS = 8  #: of the network, 3 x 3 each
REACH = LAYERS  #: slices that the network sees on either side; a stack must have as many
#: Resolutions that differ by less than this in thickness and in separation, mm, are one protocol: headers
#: are rounded.
SAME_PROTOCOL_MM = 0.05
_BATCH = 4  # strips a step
_WIDTH = 64  # voxels of a strip along the axis that is not degraded; along the other one it is whole
_RATE = 2e-3  # Adam, warmed up over the first tenth of the steps, then a cosine down to 0
_MARGIN = 2  # slices that are repeated beyond the outermost ones, as `degradation.matrix` has it
_FOREGROUND = 0.02  # of the scale: where less is seen, nothing is added
_SMOOTH = 0.1  # of the strips: they teach that there is nothing to add where intensity changes slowly
_NO_ERROR = 1e-3  # of the scale: below it the gradient of the loss fades
_SAVE_SECONDS = 60
_SHARE = 0.98  # of the weight of all slices in a plane parallel to them: the rest is left out of it
_KIND = "super-resolver of resolution-matters, version 1"


class Network(nn.Module):
    """Adds detail to slices: (B, 1, slices, W) to (B, rows * slices, W), where `rows` stand for one slice.

    Parameters
    ----------
    rows : int
        Rows of the result for each slice.
    channels : int
        Width of the inner layers.
    """

    def __init__(self, rows: int, channels: int):
        super().__init__()
        self.rows = rows
        widths = [1, *[channels] * (LAYERS - 1), rows]
        self.layers = nn.ModuleList(nn.Conv2d(a, b, 3, padding=1) for a, b in zip(widths, widths[1:]))
        nn.init.zeros_(self.layers[-1].weight)  # begins as the linear estimate
        nn.init.zeros_(self.layers[-1].bias)

    def forward(self, x: Tensor, wanted: tuple[int, int] | None = None) -> Tensor:
        """Rows of the slices from the first wanted to the last but one, as they come out among all others."""
        length, begin = x.shape[2] + 2 * _MARGIN, 0
        first, last = (edge + _MARGIN for edge in wanted or (0, x.shape[2]))
        x = F.pad(x, (0, 0, _MARGIN, _MARGIN), mode="replicate")

        def crop(x: Tensor, layers: int) -> Tensor:  # what so many more layers look at
            nonlocal begin
            low, high, before = max(first - layers, 0), min(last + layers, length), begin
            begin = low
            return x[:, :, low - before : high - before]

        x = self.layers[0](crop(x, REACH).contiguous(memory_format=torch.channels_last))
        for number in range(1, LAYERS - 1, 2):
            x = crop(x, LAYERS - number)
            x = x + self.layers[number + 1](F.relu(self.layers[number](x)))
        x = self.layers[-1](F.relu(crop(x, 1)))[:, :, first - begin : last - begin]  # (B, rows, slices, W)
        return x.transpose(1, 2).flatten(1, 2)


@dataclass(frozen=True)
class SuperResolver:
    """A network for the stacks of one protocol.

    Attributes
    ----------
    network : Network
    resolution : Resolution
        Thickness and gap of the slices that it was taught with.
    pulse : Pulse
        Its slice profile.
    in_plane_mm : (float, float)
        Smallest and largest voxel in the plane of those slices, mm.
    """

    network: Network
    resolution: Resolution
    pulse: Pulse
    in_plane_mm: tuple[float, float]

    def save(self, path: str | Path) -> None:
        """Write a file that `load` reads, whole or not at all."""
        content = {
            "kind": _KIND,
            "resolution": asdict(self.resolution),
            "pulse": asdict(self.pulse),
            "in_plane_mm": list(self.in_plane_mm),
            "weights": {name: weights.cpu() for name, weights in self.network.state_dict().items()},
        }
        _write(path, content)


def load(path: str | Path, resolution: Resolution | None = None, device: str = "cpu") -> SuperResolver:
    """Read a resolver that was saved.

    Parameters
    ----------
    path : str or Path
    resolution : Resolution, optional
        Of the stacks that it is for.
    device : str
        Where it shall compute, as torch names it.

    Returns
    -------
    SuperResolver

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If it is no resolver, or one of another protocol.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    volumes.record_use(path)
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
        if content["kind"] != _KIND:
            raise ValueError
        weights = content["weights"]
        network = Network(len(weights[f"layers.{LAYERS - 1}.bias"]), len(weights["layers.0.bias"]))
        network.load_state_dict(weights)
        resolver = SuperResolver(
            _ready(network, device),
            Resolution(**content["resolution"]),
            Pulse(**content["pulse"]),
            tuple(content["in_plane_mm"]),
        )
    except (
        pickle.UnpicklingError,
        RuntimeError,
        EOFError,
        KeyError,
        TypeError,
        ValueError,
        AttributeError,
        IndexError,
    ):
        raise ValueError(f"{path} cannot be read: accepted are files that SuperResolver.save wrote") from None
    if resolution is not None:
        _check_protocol(resolver, resolution, str(path))
    return resolver


def through_plane_axis(
    shape: Sequence[int], affine: np.ndarray, resolution: Resolution, what: str = "stack"
) -> int:
    """The axis along which a stack's slices follow each other, if it can be resolved at all.

    Parameters
    ----------
    shape : sequence of three int
    affine : ndarray, shape (4, 4), mm
        Voxel index to world position; may be flipped, permuted, oblique.
    resolution : Resolution
        Thickness and gap of the slices.
    what : str
        What to call the stack in a message.

    Returns
    -------
    int
        0, 1 or 2.

    Raises
    ------
    ValueError
        If no axis has the separation, there are too few slices, or they are not thicker than the voxels in
        their plane.
    """
    affine = np.asarray(affine, dtype=float)
    if affine.shape != (4, 4) or not np.isfinite(affine).all() or np.linalg.matrix_rank(affine[:3, :3]) < 3:
        raise ValueError(f"{what} has the affine {affine.tolist()}: accepted is an invertible 4 x 4 matrix")
    voxel_mm = np.linalg.norm(affine[:3, :3], axis=0)
    axis = int(voxel_mm.argmax())
    sizes = " x ".join(f"{size:.4g}" for size in voxel_mm)
    if abs(voxel_mm[axis] - resolution.separation_mm) > SAME_PROTOCOL_MM:
        separation = f"{resolution.separation_mm:g} mm apart ({resolution.label})"
        raise ValueError(
            f"{what} has voxels of {sizes} mm: accepted are stacks whose slices lie {separation}"
        )
    if resolution.thickness_mm <= GRID_MM or np.delete(voxel_mm, axis).max() >= resolution.thickness_mm:
        larger = f"slices thicker than {GRID_MM:g} mm and than the voxels in their plane"
        given = f"voxels of {sizes} mm and slices of {resolution.thickness_mm:g} mm"
        raise ValueError(f"{what} has {given}: accepted are {larger}")
    if shape[axis] < REACH:
        accepted = f"stacks of {REACH} and more, the reach of the network"
        raise ValueError(f"{what} has {shape[axis]} slices: accepted are {accepted}")
    return axis


@lru_cache(maxsize=32)
def estimate_matrix(n: int, resolution: Resolution, pulse: Pulse = Pulse()) -> np.ndarray:
    """The matrix of the linear estimate: of all lines of voxels that give these slices, the smoothest.

    It minimizes the sum of squares of first and second differences, and is exact: `degradation.matrix` @ it
    is the identity.

    Parameters
    ----------
    n : int
        Voxels of 1 mm along the slice normal.
    resolution : Resolution
    pulse : Pulse

    Returns
    -------
    ndarray, shape (n, n_lr), float64, read-only
    """
    slicing = degradation.matrix(n, GRID_MM, resolution, pulse)
    n_lr = len(slicing)
    first, second = np.diff(np.eye(n), axis=0), np.diff(np.eye(n), 2, axis=0)
    roughness = first.T @ first + second.T @ second
    system = np.block([[roughness, slicing.T], [slicing, np.zeros((n_lr, n_lr))]])
    with linear.one_thread():
        estimate = np.linalg.solve(system, np.vstack([np.zeros((n, n_lr)), np.eye(n_lr)]))[:n]
    estimate.flags.writeable = False
    return estimate


def tikhonov_matrix(n: int, resolution: Resolution, weight: float = 0.01) -> np.ndarray:
    """The matrix that brings a line of slices back by least squares, with first differences held small: what
    super-resolution is compared with.

    Parameters
    ----------
    n : int
        Voxels of 1 mm along the slice normal.
    resolution : Resolution
    weight : float
        Of the squares of first differences, against those of the slices' errors.

    Returns
    -------
    ndarray, shape (n, n_lr), float64
    """
    slicing, first = degradation.matrix(n, GRID_MM, resolution), np.diff(np.eye(n), axis=0)
    with linear.one_thread():
        return np.linalg.solve(slicing.T @ slicing + weight * first.T @ first, slicing.T)


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
        Of four strips each.
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
                _write(state_file, state)
    return SuperResolver(_ready(network, device), resolution, pulse, (min(in_plane_mm), max(in_plane_mm)))


def super_resolve(
    stack: np.ndarray,
    affine: np.ndarray,
    resolution: Resolution,
    resolver: SuperResolver,
    length: int | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """A stack of thick slices as a volume with voxels of 1 mm along the through-plane axis.

    Parameters
    ----------
    stack : ndarray, shape (X, Y, Z)
        In any unit.
    affine : ndarray, shape (4, 4), mm
        Its voxel index to world position; may be flipped, permuted, oblique.
    resolution : Resolution
        Thickness and gap of its slices.
    resolver : SuperResolver
        Of this protocol. It computes where its network is.
    length : int, optional
        Voxels of the result along the through-plane axis, centred on the stack. Default: as many as the
        slices cover.

    Returns
    -------
    volume : ndarray, float32
        In the units of the stack and with its voxels in the plane of its slices.
        Degraded by `degradation.matrix` it gives back the stack, within the rounding of float32.
    affine : ndarray, shape (4, 4), mm

    Raises
    ------
    ValueError
        If the stack cannot be resolved, the resolver is of another protocol, or the length does not give as
        many slices.
    """
    axis, slices, n = _checked(stack, affine, resolution, resolver, length)
    out_affine = np.array(affine, dtype=float)
    out_affine[:3, axis] /= resolution.separation_mm / GRID_MM
    out_affine[:3, 3] -= out_affine[:3, axis] * degradation.slice_positions(n, GRID_MM, resolution)[0]
    scale = _scale(slices)
    added = _added(slices / np.float32(scale), n, resolution, resolver) * np.float32(scale) if scale else 0.0
    slicing = degradation.matrix(n, GRID_MM, resolution, resolver.pulse)
    estimate = estimate_matrix(n, resolution, resolver.pulse)
    missing = slices - linear.along_axis(slicing, added, 0) if scale else slices
    return np.moveaxis(added + linear.along_axis(estimate, missing, 0), 0, axis), out_affine


def super_resolve_plane(
    stack: np.ndarray,
    affine: np.ndarray,
    resolution: Resolution,
    resolver: SuperResolver,
    axis: int,
    index: int,
    length: int | None = None,
) -> np.ndarray:
    """One plane of what `super_resolve` makes, without the rest of it.

    Parameters
    ----------
    stack, affine, resolution, resolver, length
        As in `super_resolve`.
    axis : {0, 1, 2}
        Array axis across the plane.
    index : int
        Of the plane among the voxels of the volume along that axis.

    Returns
    -------
    ndarray, 2D, float32
        The same as in the volume up to rounding; if it is parallel to the slices, without what those far from
        it add, 2 % of the weight of all.

    Raises
    ------
    ValueError
        As in `super_resolve`.
    """
    through, slices, n = _checked(stack, affine, resolution, resolver, length)
    slicing, estimate, to_voxels = _operators(n, resolution, resolver.pulse)
    scale = _scale(slices)
    if axis == through:
        plane = np.tensordot(estimate[index], slices, 1)
        if scale:
            # What the slices do not see of what is added, in this plane: one weight for each row.
            weights = to_voxels[index] - estimate[index] @ (slicing @ to_voxels)
            plane += _added_parallel(slices / np.float32(scale), weights, resolver) * np.float32(scale)
        return plane
    across = 1 if axis == min({0, 1, 2} - {through}) else 2
    plane = slices.take(index, across)
    if not scale:
        return _with_slices_along(estimate @ plane, through, axis)
    rows = _added_across(slices / np.float32(scale), across, index, resolver) * np.float32(scale)
    added = to_voxels @ rows
    return _with_slices_along(added + estimate @ (plane - slicing @ added), through, axis)


# ---------------------------------------------------------------- what is learnt from


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
    scale = _scale(volume)
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
        slices = slices[(slice(None), *_foreground(slices, reach)[1:])]
        n = slices.shape[1]
        if n < REACH * resolution.separation_mm:
            least = f"{REACH * resolution.separation_mm:g} mm and more, {REACH} slices"
            length = f"{n * GRID_MM:g} mm in the plane of its slices"
            raise ValueError(f"{what} has {length}: accepted are {least}")
        edges = np.abs(np.diff(slices, axis=1)).sum(axis=1, dtype=np.float64)  # (slices, W)
        slices, operators = np.ascontiguousarray(slices, np.float32), _operators(n, resolution, pulse)
        yield _Image(slices, edges.ravel().cumsum(), float(voxel_mm[other]), operators)


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


@lru_cache(maxsize=32)
def _operators(n, resolution, pulse):
    """Slicing (n_lr, n), linear estimate (n, n_lr), and from the network's rows to voxels (n, rows n_lr)."""
    separation = resolution.separation_mm / GRID_MM
    positions = degradation.slice_positions(n, GRID_MM, resolution)
    rows = math.ceil(separation)
    first = positions[0] + (0.5 / rows - 0.5) * separation
    to_voxels = linear.spline_matrix((np.arange(n) - first) / (separation / rows), rows * len(positions))
    matrices = (
        degradation.matrix(n, GRID_MM, resolution, pulse),
        estimate_matrix(n, resolution, pulse),
        to_voxels,
    )
    return tuple(matrix.astype(np.float32) for matrix in matrices)


def _loss(network, operators, truth, rows):
    """Root mean square error of a strip (n, width) that is degraded and brought back."""
    slicing, estimate, to_voxels = operators
    slices = slicing @ truth
    added = to_voxels @ network(slices[None, None])[0]
    # Of what is added only that counts which slicing does not see.
    error = estimate @ (slices - slicing @ added) + added - truth
    # PSNR is about squares; of their root no strip, however hard, outweighs the others.
    return (error.square().mean() + _NO_ERROR**2).sqrt()


# ---------------------------------------------------------------- what is made


def _checked(stack, affine, resolution, resolver, length):
    """Refuse what cannot be resolved; the axis across the slices, the slices (n_lr, U, V), and voxels across
    them."""
    stack = volumes.as_volume(stack, "stack")
    axis = through_plane_axis(stack.shape, affine, resolution)
    _check_protocol(resolver, resolution, "resolver")
    voxel_mm = np.linalg.norm(np.asarray(affine, float)[:3, :3], axis=0)
    low, high = resolver.in_plane_mm
    for size in np.delete(voxel_mm, axis):
        if not 0.9 * low <= size <= 1.1 * high:
            accepted = f"what the resolver was taught with, {low:.3g} to {high:.3g} mm, within 10 %"
            raise ValueError(f"stack has voxels of {size:.3g} mm in its plane: accepted are {accepted}")
    n_lr = stack.shape[axis]
    n = round(n_lr * resolution.separation_mm / GRID_MM) if length is None else length
    slices_made = len(degradation.slice_positions(n, GRID_MM, resolution))
    if slices_made != n_lr:
        accepted = f"one that gives {n_lr} slices"
        raise ValueError(f"length is {n}, of which {slices_made} slices are made: accepted is {accepted}")
    return axis, np.ascontiguousarray(np.moveaxis(stack, axis, 0), dtype=np.float32), n


def _added(slices, n, resolution, resolver):
    """What the network adds to slices (n_lr, U, V), the mean of the two planes across them: (n, U, V)."""
    box = _foreground(slices, REACH)
    network = resolver.network
    rows = np.zeros((network.rows * len(slices), *slices.shape[1:]), np.float32)
    inside = slices[(slice(None), *box[1:])]
    result = rows[(slice(None), *box[1:])]

    def add(axis: int, chosen: slice, answer: np.ndarray) -> None:
        result[(slice(None),) * axis + (chosen,)] += np.moveaxis(answer, 0, axis)

    for axis in (1, 2):
        _answers(network, inside, axis, functools.partial(add, axis))
    return linear.along_axis(_operators(n, resolution, resolver.pulse)[2], rows, 0)


def _added_across(slices, axis, index, resolver):
    """Rows of what the network adds in a plane across axis 1 or 2 of slices (n_lr, U, V): (rows, V or U)."""
    box, network = _foreground(slices, REACH), resolver.network
    plane = np.zeros((network.rows * len(slices), slices.shape[3 - axis]), np.float32)
    begin, end, _ = box[axis].indices(slices.shape[axis])
    if not begin <= index < end:
        return plane
    inside = slices[(slice(None), *box[1:])]
    index -= begin
    result = plane[:, box[3 - axis]]
    # In the plane itself, and in each of those that cross it, of which only what it sees is computed.
    one = [slice(None)] * 3
    one[axis] = slice(index, index + 1)
    _answers(network, inside[tuple(one)], axis, lambda _, answer: np.add(result, answer[0], out=result))
    some = [slice(None)] * 3
    some[axis] = slice(max(index - REACH, 0), index + REACH + 1)
    column = index - some[axis].start

    def add(chosen: slice, answer: np.ndarray) -> None:
        result[:, chosen] += answer[:, :, column].T

    _answers(network, inside[tuple(some)], 3 - axis, add, together=32)
    return plane


def _added_parallel(slices, weights, resolver):
    """What the network adds in a plane parallel to slices (n_lr, U, V), a weighted sum of rows: (U, V)."""
    box, network = _foreground(slices, REACH), resolver.network
    plane = np.zeros(slices.shape[1:], np.float32)
    shares = np.abs(weights).reshape(len(slices), network.rows).sum(axis=1)
    middle = int(shares.argmax())
    first, last = middle, middle + 1
    while shares[first:last].sum() < _SHARE * shares.sum():
        before, after = shares[first - 1] if first else -1, shares[last] if last < len(slices) else -1
        first, last = (first - 1, last) if before > after else (first, last + 1)
    weights = weights[network.rows * first : network.rows * last].astype(np.float32)
    inside = slices[(slice(None), *box[1:])]
    result = plane[tuple(box[1:])]

    def add(axis: int, chosen: slice, answer: np.ndarray) -> None:
        result[(slice(None),) * (axis - 1) + (chosen,)] += np.moveaxis(
            np.tensordot(weights, answer, (0, 1)), 0, axis - 1
        )

    for axis in (1, 2):
        _answers(network, inside, axis, functools.partial(add, axis), together=8, wanted=(first, last))
    return plane


def _answers(network, slices, axis, use, together=1, wanted=None):
    """Give `use` half of what the network answers (planes, rows, W) to planes across one axis of slices
    (n_lr, U, V), after the indices of those planes."""
    keep_freed_memory()
    device = next(network.parameters()).device
    together = together if device.type == "cpu" else max(16, together)

    def work(begin: int) -> None:
        chosen = slice(begin, begin + together)
        given = np.moveaxis(slices[(slice(None),) * axis + (chosen,)], axis, 0)[:, None]
        answer = network(torch.from_numpy(np.ascontiguousarray(given)).to(device), wanted)
        use(chosen, answer.cpu().numpy() / 2)

    with torch.inference_mode(), side_by_side(device.type) as run:
        list(run(work, range(0, slices.shape[axis], together)))


def _with_slices_along(plane, through, axis):
    """A plane (n, W) across `axis`, with the slice normal where the order of the volume's axes has it."""
    return plane if through < 3 - axis - through else plane.T


def _foreground(volume, margin):
    """The box of what is above the background of a volume in units of its scale, and a margin around it."""
    seen = [np.flatnonzero(volume.max(axis=tuple({0, 1, 2} - {axis})) > _FOREGROUND) for axis in range(3)]
    return [slice(max(indices[0] - margin, 0), indices[-1] + 1 + margin) for indices in seen]


def _scale(volume):
    """The 99th percentile of what lies above the mean: most of an image stays below; 0 if nothing does."""
    bright = volume[volume > max(0.0, float(volume.mean(dtype=np.float64)))]
    return float(np.percentile(bright, 99)) if bright.size else 0.0


def _check_protocol(resolver, resolution, what):
    """Refuse a resolver that was taught with other slices."""
    known = resolver.resolution
    apart = (
        abs(known.thickness_mm - resolution.thickness_mm),
        abs(known.separation_mm - resolution.separation_mm),
    )
    if max(apart) > SAME_PROTOCOL_MM:
        slices = f"slices of {known.label} mm, not of {resolution.label}"
        raise ValueError(f"{what} is for {slices}: accepted is one of the same protocol")


def _ready(network, device):
    return network.to(device, memory_format=torch.channels_last).eval().requires_grad_(False)


def _run_id(stacks, *settings):
    digest = hashlib.sha256(repr(settings).encode())
    for volume, affine in stacks:
        digest.update(np.ascontiguousarray(volume, np.float32))
        digest.update(np.ascontiguousarray(affine, np.float64))
    return digest.hexdigest()


def _write(path, content):
    buffer = io.BytesIO()
    torch.save(content, buffer)
    volumes.write_bytes(path, buffer.getvalue())
