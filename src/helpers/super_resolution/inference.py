"""A stack of thick slices with what a network adds to it: the whole volume, or one plane of it."""

import functools

import numpy as np
import torch

from helpers import linear, volumes
from helpers.acquisition import degradation
from helpers.haca3.fast.memory import keep_freed_memory
from helpers.haca3.fast.threads import side_by_side
from helpers.study import GRID_MM, Resolution
from helpers.super_resolution.linear_estimate import estimate_matrix, operators
from helpers.super_resolution.network import REACH, SuperResolver, check_protocol
from helpers.super_resolution.stacks import foreground_box, scale_of, through_plane_axis

_SHARE = 0.98  # of the weight of all slices in a plane parallel to them: the rest is left out of it


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
    scale = scale_of(slices)
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
    stack, affine, resolution, resolver
        As in `super_resolve`.
    axis : {0, 1, 2}
        Array axis across the plane.
    index : int
        Of the plane among the voxels of the volume along that axis.
    length
        As in `super_resolve`.

    Returns
    -------
    ndarray, 2D, float32
        The same as in the volume up to rounding. Exception: a plane parallel to the slices leaves out distant
        slices (at most 2 % of the total weight).

    Raises
    ------
    ValueError
        As in `super_resolve`.
    """
    through, slices, n = _checked(stack, affine, resolution, resolver, length)
    slicing, estimate, to_voxels = operators(n, resolution, resolver.pulse)
    scale = scale_of(slices)
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


def _checked(stack, affine, resolution, resolver, length):
    """Refuse what cannot be resolved; the axis across the slices, the slices (n_lr, U, V), and voxels across
    them."""
    stack = volumes.as_volume(stack, "stack")
    axis = through_plane_axis(stack.shape, affine, resolution)
    check_protocol(resolver, resolution, "resolver")
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
    box = foreground_box(slices, REACH)
    network = resolver.network
    rows = np.zeros((network.rows * len(slices), *slices.shape[1:]), np.float32)
    inside = slices[(slice(None), *box[1:])]
    result = rows[(slice(None), *box[1:])]

    def add(axis: int, chosen: slice, answer: np.ndarray) -> None:
        result[(slice(None),) * axis + (chosen,)] += np.moveaxis(answer, 0, axis)

    for axis in (1, 2):
        _answers(network, inside, axis, functools.partial(add, axis))
    return linear.along_axis(operators(n, resolution, resolver.pulse)[2], rows, 0)


def _added_across(slices, axis, index, resolver):
    """Rows of what the network adds in a plane across axis 1 or 2 of slices (n_lr, U, V): (rows, V or U)."""
    box, network = foreground_box(slices, REACH), resolver.network
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
    box, network = foreground_box(slices, REACH), resolver.network
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
