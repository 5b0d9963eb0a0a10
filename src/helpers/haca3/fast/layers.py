"""Layers and functions that compute what PyTorch's do, sooner."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from helpers.haca3.networks import EtaEncoder


class BlockMaximum(nn.Module):
    """Maximum of each 2x2 block, (B, C, H, W) -> (B, C, H/2, W/2).

    The same numbers as `nn.MaxPool2d`, which also looks for where the maximum was and takes ten times as long
    for it.
    """

    def forward(self, x: Tensor) -> Tensor:
        rows = torch.maximum(x[..., ::2, :], x[..., 1::2, :])
        return torch.maximum(rows[..., ::2], rows[..., 1::2])


class BlockProduct(nn.Module):
    """A convolution whose stride is its kernel, as a matrix product of non-overlapping blocks: twice as fast.

    Its parameters are those of the convolution, by the same names.
    """

    def __init__(self, convolution: nn.Conv2d):
        super().__init__()
        self.side, self.weight, self.bias = convolution.stride[0], convolution.weight, convolution.bias

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, K, H // side, W // side)."""
        side = self.side
        batch, channels, rows, columns = x.shape
        rows, columns = rows // side, columns // side
        blocks = x[:, :, : side * rows, : side * columns].reshape(batch, channels, rows, side, columns, side)
        blocks = blocks.permute(0, 2, 4, 1, 3, 5).flatten(3)  # (B, rows, columns, C * side * side)
        return F.linear(blocks, self.weight.flatten(1), self.bias).permute(0, 3, 1, 2)


def quicken(network: nn.Module) -> nn.Module:
    """Put quicker layers in the place of a network's own, and return it; its parameters keep their names and
    values."""
    for parent in [*network.modules()]:
        for name, layer in [*parent.named_children()]:
            if isinstance(layer, nn.MaxPool2d):
                setattr(parent, name, BlockMaximum())
    if isinstance(network, EtaEncoder):
        network.seq[0] = BlockProduct(network.seq[0])
    return network


def most_probable(logits: Tensor) -> Tensor:
    """Label of the largest logit, (B, C, H, W) -> (B, H, W), the first one where several are equal.

    The same as `logits.argmax(1)`, which is slow where the labels are not the last axis.
    """
    best, label = logits[:, 0], torch.zeros_like(logits[:, 0], dtype=torch.int64)
    for number in range(1, logits.shape[1]):
        label = torch.where(logits[:, number] > best, number, label)
        best = torch.maximum(best, logits[:, number])
    return label
