"""The fusion net in slabs of a few planes: the same numbers in less memory, side by side."""

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from helpers.haca3.fast.threads import side_by_side
from helpers.haca3.networks import FusionNet

PLANES = 16  #: that are finished at a time


class Slabs(nn.Module):
    """A fusion net for inference: in slabs, each with the planes beyond it that its edge depends on, and in
    place.

    A slab is computed by one thread, and is as thick on any number of them.
    """

    def __init__(self, net: FusionNet):
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, D, H, W), channels axial, coronal, sagittal -> (B, 1, D, H, W)."""
        net = self.net
        first, norm, slope, second, _, _ = net.conv1
        finest = x.new_empty((len(x), first.out_channels, *x.shape[2:])).to(
            memory_format=torch.channels_last_3d
        )
        both = torch.cat(
            [x, x.new_empty((len(x), second.out_channels, *x.shape[2:]))], dim=1
        )  # (B, 19, D, H, W)

        def layer(conv, given, result, run):
            """A convolution, its instance norm and leaky ReLU, into `result`."""

            def convolve(inner, outer, at):
                part = result[:, :, inner]
                part.copy_(conv(given[:, :, outer])[:, :, at])
                return torch.var_mean(part, dim=(2, 3, 4), correction=0, keepdim=True)

            slabs = list(_slabs(x.shape[2], 1))
            variances, means = (torch.stack(each).double() for each in zip(*run(convolve, *zip(*slabs))))
            share = x.new_tensor(
                [(inner.stop - inner.start) / x.shape[2] for inner, _, _ in slabs], dtype=torch.double
            )
            share = share.view(-1, 1, 1, 1, 1, 1)
            mean = (share * means).sum(0)
            factor = torch.rsqrt((share * (variances + (means - mean) ** 2)).sum(0) + norm.eps).float()
            mean = mean.float()

            def normalize(inner, outer, at):
                F.leaky_relu_(result[:, :, inner].sub_(mean).mul_(factor), slope.negative_slope)

            list(run(normalize, *zip(*slabs)))

        with side_by_side(x.device.type) as run:
            layer(first, x, finest, run)
            layer(second, finest, both[:, 3:], run)
            del finest
            slabs = zip(*_slabs(x.shape[2], 2))
            return torch.cat(
                list(run(lambda inner, outer, at: net.conv2(both[:, :, outer])[:, :, at], *slabs)), dim=2
            )


def _slabs(planes: int, margin: int) -> Iterator[tuple[slice, slice, slice]]:
    """Slabs of a stack: their planes, the same with `margin` planes on both sides where there are any, and
    where in those they lie."""
    for start in range(0, planes, PLANES):
        stop, before = min(start + PLANES, planes), min(start, margin)
        yield slice(start, stop), slice(start - before, stop + margin), slice(before, before + stop - start)
