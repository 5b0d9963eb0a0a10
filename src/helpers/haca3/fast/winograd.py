"""The 3x3 convolutions of HACA3 on a CPU with a quarter of the multiplications, by a program that is compiled
where it runs.

Source: Lavin and Gray, *Fast algorithms for convolutional neural networks*, CVPR 2016. PyTorch's convolutions
follow the definition; ``winograd.cpp`` computes the same to rounding.
"""

import copy
import ctypes
import functools

import torch
from torch import Tensor, nn

from helpers import compiler
from helpers.haca3.fast.layers import quicken
from helpers.haca3.networks import EtaEncoder

_LAST = torch.channels_last


@functools.cache
def library() -> ctypes.CDLL | None:
    """The compiled program; None, and one line of output, where there is no C++ compiler or nothing it makes
    can be loaded."""
    program, why = compiler.library(compiler.WINOGRAD)
    if program is None:
        print(
            f"HACA3 runs without compiled convolutions, about half as fast and the same to rounding: {why}",
            flush=True,
        )
    return program


def _at(tensor: Tensor) -> ctypes.c_void_p:
    return ctypes.c_void_p(tensor.data_ptr())


class Normalization(nn.Module):
    """Instance norm and leaky ReLU, in place if the image has its channels last in memory."""

    def __init__(self, program: ctypes.CDLL, norm: nn.InstanceNorm2d, relu: nn.LeakyReLU):
        super().__init__()
        self.program, self.eps, self.slope = (
            program,
            ctypes.c_float(norm.eps),
            ctypes.c_float(relu.negative_slope),
        )

    def apply_to(self, image: Tensor, moments: Tensor) -> None:
        """One image (C, H, W), its channels last, of which the sums of pixels and of squares are known: (2,
        C), float64."""
        channels, rows, columns = image.shape
        self.program.normalize(_at(image), rows, columns, channels, _at(moments), self.eps, self.slope)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> the same."""
        x = x.contiguous(memory_format=_LAST)
        for image in x:
            channels, rows, columns = image.shape
            moments = torch.empty((2, channels), dtype=torch.float64)
            self.program.image_moments(_at(image), rows, columns, channels, _at(moments))
            self.apply_to(image, moments)
        return x


class Convolution(nn.Module):
    """A 3x3 convolution of stride 1 with zero padding, and the norm that follows it.

    Parameters
    ----------
    program : ctypes.CDLL
        As `library` gives it.
    conv : nn.Conv2d
        Whose channels, in and out, are multiples of the program's `lanes`: 8, or 16 with AVX-512.
    normalization : Normalization, optional
        Gets its moments while the image is made.
    """

    def __init__(self, program: ctypes.CDLL, conv: nn.Conv2d, normalization: Normalization | None = None):
        super().__init__()
        self.program, self.out, self.bias = program, conv.out_channels, conv.bias.detach().contiguous()
        self.normalization = normalization
        weight = conv.weight.detach().contiguous()
        self.weight = torch.empty(36 * conv.in_channels * conv.out_channels)
        program.winograd_weights(_at(weight), conv.in_channels, conv.out_channels, _at(self.weight))

    def forward(self, x: Tensor) -> Tensor:
        """(B, in, H, W) -> (B, out, H, W), channels last in memory."""
        x = x.contiguous(memory_format=_LAST)
        batch, channels, rows, columns = x.shape
        y = torch.empty((batch, self.out, rows, columns), memory_format=_LAST)
        moments = torch.empty((2, self.out), dtype=torch.float64) if self.normalization else None
        for source, result in zip(x, y):
            self.program.winograd_convolve(
                _at(source),
                rows,
                columns,
                channels,
                _at(self.weight),
                _at(self.bias),
                self.out,
                _at(result),
                None if moments is None else _at(moments),
            )
            if moments is not None:
                self.normalization.apply_to(result, moments)
        return y


class Eta(nn.Module):
    """The encoder of artifacts with channels last: its blocks of 32x32 pixels are copied in long runs."""

    def __init__(self, eta: EtaEncoder):
        super().__init__()
        self.in_conv, self.rest, self.bias = eta.in_conv, eta.seq[1:], eta.seq[0].bias
        weight = (
            eta.seq[0].weight.detach().permute(2, 3, 1, 0)
        )  # (32, 32, 64 of in_conv and the image itself, 32)
        self.weight, self.weight_image = (
            weight[:, :, :-1].flatten(0, 2).contiguous(),
            weight[:, :, -1].flatten(0, 1).contiguous(),
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B, 1, H, W) -> (B, 2, 1, 1)."""
        rows, columns = x.shape[2] // 32, x.shape[3] // 32

        def blocks(image):
            image = image.permute(0, 2, 3, 1)[:, : 32 * rows, : 32 * columns]  # (B, H, W, C)
            return (
                image.reshape(len(x), rows, 32, columns, -1).transpose(2, 3).flatten(3)
            )  # (B, rows, columns, 32 * 32 * C)

        y = blocks(self.in_conv(x)) @ self.weight + blocks(x) @ self.weight_image + self.bias
        return self.rest(y.permute(0, 3, 1, 2))


def accelerated(network: nn.Module) -> nn.Module:
    """A copy of a network for inference on a CPU, in which what can be is replaced by this module's.

    Only where there is a `library`.

    Parameters
    ----------
    network : nn.Module
        Made of `nn.Sequential` of layers.
    """
    program = library()
    network = copy.deepcopy(network).to(memory_format=_LAST)
    if not isinstance(network, EtaEncoder):  # It becomes an `Eta`, whole.
        quicken(network)
    for layers in [module for module in network.modules() if isinstance(module, nn.Sequential)]:
        for number, layer in enumerate(layers):
            if not isinstance(layer, nn.Conv2d) or layer.out_channels % program.lanes():
                continue
            fits = layer.kernel_size == (3, 3) and layer.in_channels % program.lanes() == 0
            after, normalization = list(layers[number + 1 : number + 3]), None
            if [type(module) for module in after] == [nn.InstanceNorm2d, nn.LeakyReLU]:
                normalization = Normalization(program, *after)
                layers[number + 1], layers[number + 2] = (
                    nn.Identity() if fits else normalization,
                    nn.Identity(),
                )
            if fits:
                layers[number] = Convolution(program, layer, normalization)
    return Eta(network) if isinstance(network, EtaEncoder) else network
