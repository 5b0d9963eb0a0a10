"""The networks of HACA3, with the parameter names and shapes of the published program.

Zuo et al., *HACA3: a unified approach for multi-site MR image harmonization*, Computerized Medical
Imaging and Graphics 109:102285 (2023), and its program (github.com/lianruizuo/haca3, commit 1041760,
Apache-2.0). Written anew from the definition of the layers; a state dict of the published program loads
unchanged. All convolutions have a bias and zero padding; instance norm has neither affine parameters nor
running statistics, so training and evaluation compute the same.
"""

import contextlib
import ctypes
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from helpers.haca3.fast.threads import side_by_side

BETA_DIM = 5  #: labels of the anatomy code
THETA_DIM = 2  #: numbers that describe a contrast
ETA_DIM = 2  #: numbers that describe the artifacts
SLICE = 224  #: rows and columns of a slice
FUSION_SLAB = 16  #: planes that the fusion net finishes at a time
INFERENCE_TEMPERATURE = 5.0  #: of the attention's softmax; the published training uses 10


def keep_freed_memory() -> None:
    """Tell glibc to keep what it frees, up to 512 MB; elsewhere nothing happens.

    Every layer allocates and frees some MB. Handed back to the system each time, they come back as page faults, which
    took 40 % of an inference (measured).
    """
    with contextlib.suppress(OSError, AttributeError):
        libc = ctypes.CDLL("libc.so.6")
        for option, value in ((-8, 1), (-3, 32 * 2**20), (-1, 512 * 2**20)):  # arenas, mmap threshold, trim threshold
            libc.mallopt(option, value)


def _norm_relu(channels: int) -> list[nn.Module]:
    return [nn.InstanceNorm2d(channels), nn.LeakyReLU(0.1, inplace=True)]


def max_pool(x: Tensor) -> Tensor:
    """Maximum of each 2x2 block, (B, C, H, W) -> (B, C, H/2, W/2).

    The same numbers as `F.max_pool2d`, which also looks for where the maximum was and takes ten times as long for it.
    """
    rows = torch.maximum(x[..., ::2, :], x[..., 1::2, :])
    return torch.maximum(rows[..., ::2], rows[..., 1::2])


def most_probable(logits: Tensor) -> Tensor:
    """Label of the largest logit, (B, C, H, W) -> (B, H, W), the first one where several are equal.

    The same as `logits.argmax(1)`, which is slow where the labels are not the last axis.
    """
    best, label = logits[:, 0], torch.zeros_like(logits[:, 0], dtype=torch.int64)
    for number in range(1, logits.shape[1]):
        label = torch.where(logits[:, number] > best, number, label)
        best = torch.maximum(best, logits[:, number])
    return label


class ConvBlock(nn.Module):
    """Twice: 3x3 convolution, instance norm, leaky ReLU."""

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__()
        self.conv = nn.Sequential(
            nn.Conv2d(in_channels, out_channels, 3, padding=1), *_norm_relu(out_channels),
            nn.Conv2d(out_channels, out_channels, 3, padding=1), *_norm_relu(out_channels),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)


class Upsample(nn.Module):
    """Bilinear upsampling by two, 3x3 convolution, instance norm, leaky ReLU."""

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__()
        self.conv = nn.Sequential(nn.Conv2d(in_channels, out_channels, 3, padding=1), *_norm_relu(out_channels))

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False))


class UNet(nn.Module):
    """U-Net of four levels: the anatomy encoder (1 -> 5, raw logits) and the decoder (3 -> 1, ReLU).

    Parameters
    ----------
    in_channels, out_channels : int
        Channels in and out.
    base : int
        Channels of the first convolution; 8 for the published anatomy encoder, 16 for the published decoder.
    relu : bool
        End with a ReLU.
    """

    def __init__(self, in_channels: int, out_channels: int, base: int, relu: bool = False):
        super().__init__()
        widths = [base * 2**level for level in range(4)]
        self.in_conv = nn.Conv2d(in_channels, base, 3, padding=1)
        self.down_convs = nn.ModuleList(ConvBlock(c, 2 * c) for c in widths)
        self.bottleneck_conv = ConvBlock(16 * base, 32 * base)
        self.up_samples = nn.ModuleList(Upsample(4 * c, 2 * c) for c in widths)  # index 0 is the finest level here too
        self.up_convs = nn.ModuleList(ConvBlock(4 * c, 2 * c) for c in widths)
        self.out_conv = nn.Sequential(
            nn.Conv2d(2 * base, base, 3, padding=1), nn.LeakyReLU(0.1, inplace=True), nn.Conv2d(base, out_channels, 3, padding=1)
        )
        self.relu = relu

    def forward(self, x: Tensor) -> Tensor:
        """(B, in, H, W) -> (B, out, H, W); H and W are multiples of 16."""
        x = self.in_conv(x)
        skips = []
        for down in self.down_convs:
            x = down(x)
            skips.append(x)
            x = max_pool(x)
        x = self.bottleneck_conv(x)
        for level in (3, 2, 1, 0):
            x = torch.cat([skips[level], self.up_samples[level](x)], dim=1)
            x = self.up_convs[level](x)
        x = self.out_conv(x)
        return F.relu(x) if self.relu else x


class ThetaEncoder(nn.Module):
    """Contrast of a slice: mean and log-variance of a two-dimensional normal distribution."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Sequential(
            nn.Conv2d(1, 32, 17, stride=9, padding=4), *_norm_relu(32),  # 224 -> 24
            nn.Conv2d(32, 64, 4, stride=2, padding=1), *_norm_relu(64),  # -> 12
            nn.Conv2d(64, 64, 4, stride=2, padding=1), *_norm_relu(64),  # -> 6
        )
        self.mean_conv = self._head()
        self.logvar_conv = self._head()

    @staticmethod
    def _head() -> nn.Sequential:
        return nn.Sequential(nn.Conv2d(64, 32, 3, padding=1), *_norm_relu(32), nn.Conv2d(32, THETA_DIM, 6, stride=6))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(B, 1, 224, 224) -> two of (B, 2, 1, 1)."""
        x = self.conv(x)
        return self.mean_conv(x), self.logvar_conv(x)


class EtaEncoder(nn.Module):
    """Artifacts of a slice, as two numbers."""

    def __init__(self):
        super().__init__()
        self.in_conv = nn.Sequential(
            nn.Conv2d(1, 16, 5, padding=2), *_norm_relu(16), nn.Conv2d(16, 64, 3, padding=1), *_norm_relu(64)
        )
        self.seq = nn.Sequential(nn.Conv2d(65, 32, 32, stride=32), *_norm_relu(32), nn.Conv2d(32, ETA_DIM, 7, stride=7))

    def forward(self, x: Tensor) -> Tensor:
        """(B, 1, 224, 224) -> (B, 2, 1, 1)."""
        x = torch.cat([self.in_conv(x), x], dim=1)  # (B, 65, H, W)
        # A 32x32 convolution of stride 32 is a matrix product of non-overlapping blocks; as such it runs twice as fast.
        batch, channels, rows, columns = x.shape
        rows, columns = rows // 32, columns // 32
        blocks = x[:, :, : 32 * rows, : 32 * columns].reshape(batch, channels, rows, 32, columns, 32)
        blocks = blocks.permute(0, 2, 4, 1, 3, 5).flatten(3)  # (B, 7, 7, 65 * 32 * 32)
        x = F.linear(blocks, self.seq[0].weight.flatten(1), self.seq[0].bias)  # (B, 7, 7, 32)
        return self.seq[1:](x.permute(0, 3, 1, 2))


class Attention(nn.Module):
    """How much each source contributes: similarity of its theta and eta with those of the target."""

    def __init__(self, dim: int = THETA_DIM + ETA_DIM, features: int = 16):
        super().__init__()
        self.q_fc = self._mlp(dim, features)
        self.k_fc = self._mlp(dim, features)
        self.scale = dim**-0.5  # of the input's dimension, not of the features: as published

    @staticmethod
    def _mlp(dim: int, features: int) -> nn.Sequential:
        return nn.Sequential(nn.Linear(dim, 128), nn.LeakyReLU(0.1), nn.Linear(128, features), nn.LayerNorm(features))

    def weights(self, q: Tensor, k: Tensor, dropout: Tensor | None = None, temperature: float = INFERENCE_TEMPERATURE) -> Tensor:
        """Attention weight of every source.

        Parameters
        ----------
        q : Tensor, shape (B, 4)
            Theta and eta of the target.
        k : Tensor, shape (B, n, 4)
            Theta and eta of the n sources.
        dropout : Tensor, shape (B, n), optional
            1 where a source must not be used.
        temperature : float
            Divides the scores: 5 in inference, 10 in training.

        Returns
        -------
        Tensor, shape (B, n)
            Sums to one over the sources.
        """
        scores = self.scale * (self.k_fc(k) @ self.q_fc(q).unsqueeze(-1)).squeeze(-1)  # (B, n)
        if dropout is not None:
            scores = scores - 1e5 * dropout
        return torch.softmax(scores / temperature, dim=-1)

    def forward(self, q: Tensor, k: Tensor, v: Tensor, dropout: Tensor | None = None, temperature: float = 10.0):
        """The published interface: q (B, 4, 1), k (B, 4, 1, n), v (B, C, H * H, n) -> fused (B, C, H, H), weights (B, n)."""
        weights = self.weights(q.squeeze(-1), k.squeeze(2).transpose(1, 2), dropout, temperature)
        fused = (v * weights[:, None, None, :]).sum(-1)  # the weight is one scalar for the whole slice
        side = round(v.shape[2] ** 0.5)
        return fused.view(*v.shape[:2], side, side), weights


class Patchifier(nn.Module):
    """Features of 32x32 patches for the contrastive loss; training only."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Sequential(nn.Conv2d(1, 64, 32, stride=32), nn.LeakyReLU(0.1), nn.Conv2d(64, 128, 1))

    def forward(self, x: Tensor) -> Tensor:
        """(B, 1, 224, 224) -> (B, 128, 7, 7)."""
        return self.conv(x)


class FusionNet(nn.Module):
    """Three volumes, reconstructed in three orientations, into one."""

    def __init__(self):
        super().__init__()
        self.conv1 = nn.Sequential(
            nn.Conv3d(3, 8, 3, padding=1), nn.InstanceNorm3d(8), nn.LeakyReLU(0.01, inplace=True),
            nn.Conv3d(8, 16, 3, padding=1), nn.InstanceNorm3d(16), nn.LeakyReLU(0.01, inplace=True),
        )
        self.conv2 = nn.Sequential(
            nn.Conv3d(19, 16, 3, padding=1), nn.LeakyReLU(0.01, inplace=True),
            nn.Conv3d(16, 1, 3, padding=1), nn.ReLU(inplace=True),
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, D, H, W), channels axial, coronal, sagittal -> (B, 1, D, H, W)."""
        if torch.is_grad_enabled():
            return self.conv2(torch.cat([x, self.conv1(x)], dim=1))
        # The same numbers in less memory: in slabs, each with the planes beyond it that its edge depends on, and in place.
        # A slab is computed by one thread, and is as thick on any number of them.
        first, norm, slope, second, _, _ = self.conv1
        finest = x.new_empty((len(x), first.out_channels, *x.shape[2:])).to(memory_format=torch.channels_last_3d)
        both = torch.cat([x, x.new_empty((len(x), second.out_channels, *x.shape[2:]))], dim=1)  # (B, 19, D, H, W)

        def layer(conv, given, result, run):
            """A convolution, its instance norm and leaky ReLU, into `result`."""

            def convolve(inner, outer, at):
                part = result[:, :, inner]
                part.copy_(conv(given[:, :, outer])[:, :, at])
                return torch.var_mean(part, dim=(2, 3, 4), correction=0, keepdim=True)

            slabs = list(_slabs(x.shape[2], 1))
            variances, means = (torch.stack(each).double() for each in zip(*run(convolve, *zip(*slabs))))
            share = x.new_tensor([(inner.stop - inner.start) / x.shape[2] for inner, _, _ in slabs], dtype=torch.double)
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
            return torch.cat(list(run(lambda inner, outer, at: self.conv2(both[:, :, outer])[:, :, at], *slabs)), dim=2)


def _slabs(planes: int, margin: int) -> Iterator[tuple[slice, slice, slice]]:
    """Slabs of a stack: their planes, the same with `margin` planes on both sides where there are any, and where in those they lie."""
    for start in range(0, planes, FUSION_SLAB):
        stop, before = min(start + FUSION_SLAB, planes), min(start, margin)
        yield slice(start, stop), slice(start - before, stop + margin), slice(before, before + stop - start)


def build(beta_base: int = 8, decoder_base: int = 16) -> dict[str, nn.Module]:
    """The six networks of a harmonization checkpoint, by their published names.

    Parameters
    ----------
    beta_base, decoder_base : int
        Channels of the first convolution of anatomy encoder and decoder; 8 and 16 are the published ones.
    """
    return {
        "beta_encoder": UNet(1, BETA_DIM, beta_base),
        "theta_encoder": ThetaEncoder(),
        "eta_encoder": EtaEncoder(),
        "decoder": UNet(1 + THETA_DIM, 1, decoder_base, relu=True),
        "attention_module": Attention(),
        "patchifier": Patchifier(),
    }


def labels_to_beta(labels: Tensor) -> Tensor:
    """Anatomy code of integer labels 0..4: 0, .2, .4, .6, .8."""
    return labels.float() / BETA_DIM
