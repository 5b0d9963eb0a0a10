"""The fusion net in the box of the brain: the numbers of the whole volume, from a third of it.

Where all three orientations are zero, a layer gives a constant, except near the faces of the volume, where it
sees the zeros of its padding. So there it is enough to know how many voxels of each kind there are.
"""

import ctypes
import functools
import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from helpers import compiler
from helpers.haca3.fast.threads import side_by_side
from helpers.haca3.networks import FusionNet

LAYERS = 4  #: convolutions of 3x3x3, so a voxel of the result sees no further than this
PLANES = 16  #: that PyTorch convolves at a time


@functools.cache
def library() -> ctypes.CDLL | None:
    """The compiled convolutions, or None where there is no C++ compiler."""
    return compiler.library(compiler.FUSION)[0]


class BoxedFusion(nn.Module):
    """A fusion net for inference: equal to the net itself, within 4e-6 of the largest value.

    One thread computes a plane, so the result is the same on any number of them.

    Parameters
    ----------
    net : FusionNet
    program : ctypes.CDLL, optional
        As `library` gives it; without it PyTorch convolves.
    """

    def __init__(self, net: FusionNet, program: ctypes.CDLL | None = None):
        super().__init__()
        self.net = net
        kind = functools.partial(_CompiledLayer, program) if program else _Layer
        first, self.norm, self.relu, second, _, _ = net.conv1
        third, _, last, _ = net.conv2
        self.layers = [kind(conv) for conv in (first, second, third, last)]

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, D, H, W), channels axial, coronal, sagittal -> (B, 1, D, H, W)."""
        with side_by_side(x.device.type) as run:
            return torch.stack([self._fuse(volume, run) for volume in x])

    def _fuse(self, x: Tensor, run: Callable) -> Tensor:
        """(3, D, H, W) -> (1, D, H, W)."""
        first, second, third, last = self.layers
        shape = x.shape[1:]
        box = _box(x)
        inside = [slice(1, 1 + part.stop - part.start) for part in box]
        # Beyond the box every place is like one in this small volume of zeros, which has all kinds of faces.
        # How many voxels are like each of them?
        empty = x.new_zeros((1, 3, *(min(n, 2 * LAYERS - 1) for n in shape)))
        alike = [_alike(n) for n in shape]
        number = _product([torch.bincount(kinds) for kinds in alike]) - _product(
            [torch.bincount(kinds[part], minlength=int(kinds.max()) + 1) for kinds, part in zip(alike, box)]
        )
        number = number.to(x.device)

        def new(channels):  # channels last, with one voxel around the box
            return x.new_empty((*(part.stop + 1 for part in inside), channels))

        def surround(volume):
            for axis, (part, n) in enumerate(zip(box, shape)):
                for edge, beside, is_face in ((0, 1, part.start == 0), (-1, -2, part.stop == n)):
                    around = volume.select(axis, edge)
                    around.zero_() if is_face else around.copy_(volume.select(axis, beside))

        def normalized(layer, given, result, given_beyond):
            """A layer, its instance norm and leaky ReLU; returns what it is beyond the box."""
            beyond = layer.conv(given_beyond)
            flat = beyond[0].double().flatten(1) * number.flatten()  # (C, kinds of places)
            moments = torch.stack([flat.sum(1), (flat * beyond[0].double().flatten(1)).sum(1)])
            moments = moments + sum(layer.convolve(given, result, run, moments=True))
            mean, square = moments / math.prod(shape)
            factor = torch.rsqrt((square - mean**2).clamp_(min=0) + self.norm.eps).float()
            mean, slope = mean.float(), self.relu.negative_slope
            layer.normalize(result, mean, factor, slope, run)
            surround(result)
            mean, factor = (moment.view(-1, 1, 1, 1) for moment in (mean, factor))
            return F.leaky_relu((beyond - mean) * factor, slope)

        both, fine = new(19), new(8)
        both[(*inside, slice(3))] = x[(slice(None), *box)].permute(1, 2, 3, 0)
        surround(both[..., :3])
        beyond = normalized(first, both[..., :3], fine, empty)
        beyond = normalized(second, fine, both[..., 3:], beyond)
        del fine
        mixed = new(16)
        third.convolve(both, mixed, run, slope=self.relu.negative_slope)
        surround(mixed)
        beyond = self.net.conv2(torch.cat([empty, beyond], dim=1))[0, 0]
        along_z, along_y, along_x = (indices.to(x.device) for indices in alike)
        result = beyond[along_z][:, along_y][:, :, along_x]
        fused = x.new_empty([part.stop - part.start for part in box])
        last.convolve(mixed, fused, run, slope=0.0)
        result[box] = fused
        return result[None]


class _Layer:
    """A convolution of volumes (D, H, W, channels) that have one voxel around them on every side."""

    planes = PLANES

    def __init__(self, conv: nn.Conv3d):
        self.conv = conv

    def convolve(
        self, given: Tensor, result: Tensor, run: Callable, slope: float = 1.0, moments: bool = False
    ) -> list[Tensor | None]:
        """Fill `result`, plane by plane; a sum below zero times `slope`. A result of (D, H, W) has nothing
        around it.

        Returns
        -------
        list of (Tensor, shape (2, channels), float64)
            For each part, sum and sum of squares of its voxels; None unless asked for.
        """
        count = given.shape[0] - 2
        starts = range(0, count, self.planes)
        work = functools.partial(self._some, given, result, slope, moments)
        return list(run(lambda start: work(start, min(start + self.planes, count)), starts))

    def _some(self, given, result, slope, moments, start, stop):
        x = given[start : stop + 2].permute(3, 0, 1, 2)[None]
        y = F.leaky_relu(F.conv3d(x, self.conv.weight, self.conv.bias), slope)[0].permute(1, 2, 3, 0)
        inner = result[start:stop, ..., None] if result.dim() == 3 else _inner(result)[start:stop]
        inner.copy_(y)
        if not moments:
            return None
        y = y.double()
        return torch.stack([y.sum((0, 1, 2)), (y**2).sum((0, 1, 2))])

    def normalize(self, volume: Tensor, mean: Tensor, factor: Tensor, slope: float, run: Callable) -> None:
        """Subtract and multiply, for each channel, and leaky ReLU, in place."""

        def some(start):
            F.leaky_relu_(_inner(volume)[start : start + self.planes].sub_(mean).mul_(factor), slope)

        list(run(some, range(0, volume.shape[0] - 2, self.planes)))


class _CompiledLayer(_Layer):
    """Like `_Layer`, computed by the compiled C++ program, in float32 on a CPU."""

    planes = 1

    def __init__(self, program: ctypes.CDLL, conv: nn.Conv3d):
        super().__init__(conv)
        self.program = program
        self.weight = conv.weight.detach().permute(2, 3, 4, 1, 0).contiguous()  # (3, 3, 3, in, out)
        self.bias = conv.bias.detach().contiguous()

    def _some(self, given, result, slope, moments, start, stop):
        rows, columns = given.shape[1] - 2, given.shape[2] - 2
        x = _at(_inner(given)[start])
        if result.dim() == 3:
            bias = ctypes.c_float(float(self.bias))
            self.program.convolve_plane_to_one(x, _at(self.weight), bias, _at(result[start]), rows, columns)
            return None
        sums = torch.empty((2, len(self.bias)), dtype=torch.double) if moments else None
        self.program.convolve_plane(
            x,
            given.shape[3],
            _at(self.weight),
            _at(self.bias),
            _at(_inner(result)[start]),
            result.stride(2),
            rows,
            columns,
            ctypes.c_float(slope),
            None if sums is None else _at(sums),
        )
        return sums

    def normalize(self, volume: Tensor, mean: Tensor, factor: Tensor, slope: float, run: Callable) -> None:
        planes, rows, columns, channels = volume.shape

        def plane(number):
            self.program.normalize_plane(
                _at(_inner(volume)[number]),
                channels,
                volume.stride(2),
                rows - 2,
                columns - 2,
                _at(mean),
                _at(factor),
                ctypes.c_float(slope),
            )

        list(run(plane, range(planes - 2)))


def _at(tensor: Tensor) -> ctypes.c_void_p:
    return ctypes.c_void_p(tensor.data_ptr())


def _inner(volume: Tensor) -> Tensor:
    """A volume without the voxels around it."""
    return volume[1:-1, 1:-1, 1:-1]


def _box(x: Tensor) -> tuple[slice, ...]:
    """Where the result is not that of an empty volume, (3, D, H, W) -> three slices; to a face of the volume
    if it comes near it."""
    not_empty = (x != 0).any(0)
    box = []
    for axis, n in enumerate(not_empty.shape):
        others = [other for other in range(3) if other != axis]
        places = not_empty.any(others[1]).any(others[0]).nonzero()
        low, high = (int(places[0]), int(places[-1])) if len(places) else (n // 2, n // 2)
        low, high = low - LAYERS, high + LAYERS + 1
        box.append(slice(low if low >= LAYERS else 0, high if high <= n - LAYERS else n))
    return tuple(box)


def _alike(n: int) -> Tensor:
    """For each of n places on an axis, the one that it is like on an axis of seven: as far from a face, or
    within."""
    place = torch.arange(n)
    small = min(n, 2 * LAYERS - 1)
    from_end = small - 1 - (n - 1 - place)
    middle = torch.full((n,), LAYERS - 1)
    return torch.where(place < LAYERS, place, torch.where(n - 1 - place < LAYERS, from_end, middle))


def _product(counts: Sequence[Tensor]) -> Tensor:
    """Numbers of voxels from those along three axes."""
    along_z, along_y, along_x = (count.double() for count in counts)
    return along_z[:, None, None] * along_y[:, None] * along_x
