"""The networks of HACA3, with the parameter names and shapes of the published program.

Zuo et al., *HACA3: a unified approach for multi-site MR image harmonization*, Computerized Medical
Imaging and Graphics 109:102285 (2023), and its program (github.com/lianruizuo/haca3, commit 1041760,
Apache-2.0). Written anew from the definition of the layers; a state dict of the published program loads
unchanged. All convolutions have a bias and zero padding; instance norm has neither affine parameters nor
running statistics, so training and evaluation compute the same. What makes them quick stands in
`helpers.haca3.fast` and takes the place of layers from outside.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

BETA_DIM = 5  #: labels of the anatomy code
THETA_DIM = 2  #: numbers that describe a contrast
ETA_DIM = 2  #: numbers that describe the artifacts
SLICE = 224  #: rows and columns of a slice
INFERENCE_TEMPERATURE = 5.0  #: of the attention's softmax; the published training uses 10


def _norm_relu(channels: int) -> list[nn.Module]:
    return [nn.InstanceNorm2d(channels), nn.LeakyReLU(0.1, inplace=True)]


class ConvBlock(nn.Module):
    """Twice: 3x3 convolution, instance norm, leaky ReLU."""

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__()
        self.conv = nn.Sequential(
            nn.Conv2d(in_channels, out_channels, 3, padding=1),
            *_norm_relu(out_channels),
            nn.Conv2d(out_channels, out_channels, 3, padding=1),
            *_norm_relu(out_channels),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)


class Upsample(nn.Module):
    """Bilinear upsampling by two, 3x3 convolution, instance norm, leaky ReLU."""

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__()
        self.conv = nn.Sequential(
            nn.Conv2d(in_channels, out_channels, 3, padding=1), *_norm_relu(out_channels)
        )

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
        self.pool = nn.MaxPool2d(2)
        self.down_convs = nn.ModuleList(ConvBlock(c, 2 * c) for c in widths)
        self.bottleneck_conv = ConvBlock(16 * base, 32 * base)
        self.up_samples = nn.ModuleList(
            Upsample(4 * c, 2 * c) for c in widths
        )  # index 0 is the finest level here too
        self.up_convs = nn.ModuleList(ConvBlock(4 * c, 2 * c) for c in widths)
        self.out_conv = nn.Sequential(
            nn.Conv2d(2 * base, base, 3, padding=1),
            nn.LeakyReLU(0.1, inplace=True),
            nn.Conv2d(base, out_channels, 3, padding=1),
        )
        self.relu = relu

    def forward(self, x: Tensor) -> Tensor:
        """(B, in, H, W) -> (B, out, H, W); H and W are multiples of 16."""
        x = self.in_conv(x)
        skips = []
        for down in self.down_convs:
            x = down(x)
            skips.append(x)
            x = self.pool(x)
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
            nn.Conv2d(1, 32, 17, stride=9, padding=4),
            *_norm_relu(32),  # 224 -> 24
            nn.Conv2d(32, 64, 4, stride=2, padding=1),
            *_norm_relu(64),  # -> 12
            nn.Conv2d(64, 64, 4, stride=2, padding=1),
            *_norm_relu(64),  # -> 6
        )
        self.mean_conv = self._head()
        self.logvar_conv = self._head()

    @staticmethod
    def _head() -> nn.Sequential:
        return nn.Sequential(
            nn.Conv2d(64, 32, 3, padding=1), *_norm_relu(32), nn.Conv2d(32, THETA_DIM, 6, stride=6)
        )

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
        self.seq = nn.Sequential(
            nn.Conv2d(65, 32, 32, stride=32), *_norm_relu(32), nn.Conv2d(32, ETA_DIM, 7, stride=7)
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B, 1, 224, 224) -> (B, 2, 1, 1)."""
        return self.seq(torch.cat([self.in_conv(x), x], dim=1))  # (B, 65, 224, 224) -> (B, 2, 1, 1)


class Attention(nn.Module):
    """How much each source contributes: similarity of its theta and eta with those of the target."""

    def __init__(self, dim: int = THETA_DIM + ETA_DIM, features: int = 16):
        super().__init__()
        self.q_fc = self._mlp(dim, features)
        self.k_fc = self._mlp(dim, features)
        self.scale = dim**-0.5  # of the input's dimension, not of the features: as published

    @staticmethod
    def _mlp(dim: int, features: int) -> nn.Sequential:
        return nn.Sequential(
            nn.Linear(dim, 128), nn.LeakyReLU(0.1), nn.Linear(128, features), nn.LayerNorm(features)
        )

    def weights(
        self, q: Tensor, k: Tensor, dropout: Tensor | None = None, temperature: float = INFERENCE_TEMPERATURE
    ) -> Tensor:
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

    def forward(
        self, q: Tensor, k: Tensor, v: Tensor, dropout: Tensor | None = None, temperature: float = 10.0
    ):
        """The published interface: q (B, 4, 1), k (B, 4, 1, n), v (B, C, H * H, n) -> fused (B, C, H, H),
        weights (B, n)."""
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
            nn.Conv3d(3, 8, 3, padding=1),
            nn.InstanceNorm3d(8),
            nn.LeakyReLU(0.01, inplace=True),
            nn.Conv3d(8, 16, 3, padding=1),
            nn.InstanceNorm3d(16),
            nn.LeakyReLU(0.01, inplace=True),
        )
        self.conv2 = nn.Sequential(
            nn.Conv3d(19, 16, 3, padding=1),
            nn.LeakyReLU(0.01, inplace=True),
            nn.Conv3d(16, 1, 3, padding=1),
            nn.ReLU(inplace=True),
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, D, H, W), channels axial, coronal, sagittal -> (B, 1, D, H, W)."""
        return self.conv2(torch.cat([x, self.conv1(x)], dim=1))


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
