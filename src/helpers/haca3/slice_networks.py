"""Slices through the networks of HACA3: encode, attend, mix, decode; and several orientations fused."""

import copy
import functools
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from helpers import study
from helpers.grid import AXIS, SHAPE
from helpers.haca3 import resolution, slicing
from helpers.haca3.fast import fusion, memory, winograd
from helpers.haca3.fast.layers import most_probable, quicken
from helpers.haca3.inputs import Encoding
from helpers.haca3.networks import SLICE, FusionNet, labels_to_beta

_FOREGROUND = {
    "haca3": 1e-6,
    "haca3plus": 1e-2,
}  # variant -> intensity above which a pixel is foreground of a source
_FUSION_ORDER = ("axial", "coronal", "sagittal")  # channels of the fusion net
COMBINE = {  # which sources' foregrounds, (n, 224, 224), the output has
    "first": lambda foregrounds: foregrounds[0],
    "union": np.logical_or.reduce,
    "intersection": np.logical_and.reduce,
}
_LARGE = ("beta_encoder", "eta_encoder", "decoder")  # networks in which the time goes
_SLICE_BYTES = 150 * 2**20  # memory of a slice on its way through the published networks, with some to spare


def exactly(method):
    """Without gradients; on a GPU in float32 proper (cuDNN would take TF32), and twice the same."""

    @functools.wraps(method)
    def run(*args, **kwargs):
        with (
            torch.inference_mode(),
            torch.backends.cudnn.flags(enabled=True, deterministic=True, allow_tf32=False),
        ):
            return method(*args, **kwargs)

    return run


def fusion_input(unfused: Mapping[str, np.ndarray]) -> np.ndarray:
    """What the fusion net is given: three orientations of one image, normalised, padded, in the order (z, y,
    x).

    Parameters
    ----------
    unfused : dict of str to ndarray, shape (192, 224, 192)
        Orientation -> volume.

    Returns
    -------
    ndarray, shape (3, 224, 224, 224), float32
        Axial, coronal, sagittal.
    """
    return np.stack(
        [
            slicing.pad(slicing.normalise(unfused[orientation])[0]).transpose(2, 1, 0)
            for orientation in _FUSION_ORDER
        ]
    )


def attention_map(attention: Tensor) -> Tensor:
    """Attention of HACA3+: one weight for each pixel and source, shared among the sources that show the
    pixel, and smoothed.

    Parameters
    ----------
    attention : Tensor, shape (B, n, H, W)
        Attention of the slice where the source is not background, else 0.

    Returns
    -------
    Tensor, shape (B, n, H, W)
        Sums to one over the sources (to 1e-6). Where no source shows the pixel they weigh alike.
    """
    total = attention.sum(dim=1, keepdim=True)
    attention = torch.where(
        total < 1e-6, torch.full_like(attention, 1 / attention.shape[1]), attention / (total + 1e-6)
    )
    # One pass over the four neighbours; five were meant, but the published loop ends after the first.
    padded = nn.functional.pad(attention, (1, 1, 1, 1), mode="replicate")
    smooth = attention
    for neighbour in (
        padded[..., :-2, 1:-1],
        padded[..., 2:, 1:-1],
        padded[..., 1:-1, :-2],
        padded[..., 1:-1, 2:],
    ):
        smooth = torch.where((smooth - neighbour).abs() > 0.2, (smooth + neighbour) / 2, smooth)
    return smooth / (smooth.sum(dim=1, keepdim=True) + 1e-6)


def _device(device: str) -> str:
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(
            f"device is {device!r}, which torch cannot use here ({str(error).splitlines()[0]}): accepted "
            "are auto, cpu, cuda, mps"
        ) from None
    return device


class SliceNetworks:
    """The networks of HACA3, ready to be applied to slices.

    Attributes
    ----------
    networks : dict of str to torch.nn.Module
        By their published names: see `helpers.haca3.harmonizer.Harmonizer`.
    quick : dict of str to torch.nn.Module
        The same as they compute (`helpers.haca3.fast`).
    variant, device, precision : str
    compiled : bool
        Whether the networks do run as a C++ compiler has built them (`helpers.haca3.fast`).
    """

    def __init__(
        self,
        networks: dict[str, nn.Module],
        device: str = "cpu",
        variant: str = "haca3",
        precision: str = "float32",
        compiled: bool = True,
    ):
        memory.keep_freed_memory()
        self.variant, self.device = study.require("variant", variant, study.VARIANTS), _device(device)
        self.precision = study.require("precision", precision, study.PRECISIONS)
        self.networks = {name: network.to(self.device).eval() for name, network in networks.items()}
        self.compiled = (
            compiled and self.device == "cpu" and precision == "float32" and winograd.library() is not None
        )
        quick = winograd.accelerated if self.compiled else lambda network: quicken(copy.deepcopy(network))
        self.quick = self.networks | {name: quick(self.networks[name]) for name in _LARGE if name in networks}
        if isinstance(networks.get("fusion_net"), FusionNet):
            program = fusion.library() if self.compiled else None
            self.quick["fusion_net"] = fusion.BoxedFusion(self.networks["fusion_net"], program)
        self._empty = None  # code of an all-zero slice

    def batches(self, ks: Sequence[int]) -> list[Sequence[int]]:
        """Slices as they go through the networks: one at a time on a CPU, as many as memory allows on a
        GPU."""
        size = 1
        if self.device.startswith("cuda"):
            free, _ = torch.cuda.mem_get_info(torch.device(self.device))
            size = max(1, min(32, int(0.5 * free / _SLICE_BYTES)))
        elif self.device == "mps":
            size = 8
        return [ks[i : i + size] for i in range(0, len(ks), size)]

    def tensor(self, images: Sequence[np.ndarray]) -> Tensor:
        return torch.from_numpy(np.stack(images))[:, None].to(self.device)  # (B, 1, 224, 224)

    def _autocast(self):
        """The context of the large networks: float32, or bfloat16 where asked for."""
        return torch.autocast(self.device.split(":")[0], torch.bfloat16, enabled=self.precision == "bfloat16")

    @staticmethod
    def key(images: Tensor, networks: Mapping[str, nn.Module]) -> Tensor:
        """Theta and eta of slices (B, 1, 224, 224) -> (B, 4)."""
        return torch.cat(
            [networks["theta_encoder"](images)[0].flatten(1), networks["eta_encoder"](images).flatten(1)],
            dim=1,
        )

    def encode(
        self, images: Sequence[np.ndarray], networks: Mapping[str, nn.Module]
    ) -> list[tuple[Tensor, Tensor]]:
        """Logits (5, 224, 224) and key (4,) of each slice (224, 224)."""
        images = self.tensor(images)
        with self._autocast():
            logits = networks["beta_encoder"](images)
        return list(zip(logits.float(), self.key(images, networks)))

    def codes(
        self, source: Encoding, orientation: str, ks: Sequence[int]
    ) -> list[tuple[np.ndarray, Tensor | None, Tensor | None]]:
        """Foreground, logits and key of some slices, as `Encoding.slices` holds them."""
        stored = {k: source.slices[orientation, k] for k in ks if (orientation, k) in source.slices}
        # An encoding that was stored comes back in the memory of the CPU.
        codes = {
            k: (pixels, *(part if part is None else part.to(self.device) for part in code))
            for k, (pixels, *code) in stored.items()
        }
        images = {k: slicing.slice_of(source.volume, orientation, k) for k in ks if k not in codes}
        full = [k for k, image in images.items() if image.any()]
        encoded = dict(zip(full, self.encode([images[k] for k in full], self.quick))) if full else {}
        codes |= {k: (self.foreground(image), *encoded.get(k, (None, None))) for k, image in images.items()}
        return [codes[k] for k in ks]

    def foreground(self, image: np.ndarray) -> np.ndarray:
        return image > _FOREGROUND[self.variant]

    def foregrounds(self, sources: dict[str, Encoding], orientation: str, k: int) -> np.ndarray:
        """Where each source is not background: shape (n, 224, 224), bool."""
        stack = (orientation, k)
        return np.stack(
            [
                s.slices[stack][0]
                if stack in s.slices
                else self.foreground(slicing.slice_of(s.volume, *stack))
                for s in sources.values()
            ]
        )

    def harmonize(self, orientation, codes, targets, inside, runs, draw, acquisitions, some):
        """The slices `some` of one orientation through all networks, from the codes of each source.

        Returns
        -------
        key : ndarray, shape (B, n, 4)
            Theta and eta of the sources.
        results : dict of str to (ndarray of shape (B, n), list of B ndarrays of shape (224, 224))
            Target contrast -> attention, and images in the units of the target.
        """
        if self._empty is None and any(logits is None for source in codes for _, logits, _ in source):
            # What an instance norm makes of nothing is rounding: the layers as published have the published
            # one.
            (self._empty,) = self.encode([np.zeros((SLICE, SLICE), np.float32)], self.networks)
        filled = [[(code[1:] if code[1] is not None else self._empty) for code in source] for source in codes]
        logits = [torch.stack([logits for logits, _ in source]) for source in filled]  # n of (B, 5, 224, 224)
        key = torch.stack([torch.stack([key for _, key in source]) for source in filled], dim=1)  # (B, n, 4)
        noise = {
            run: torch.stack([draw(k, run) for k in some]).to(self.device)
            for run in set((runs or {}).values())
        }
        results = {}
        for name, target in targets.items():
            query = (
                torch.from_numpy(np.concatenate([target.theta, target.eta]))
                .to(self.device)
                .expand(len(some), 4)
            )
            weights = self.networks["attention_module"].weights(query, key)  # (B, n)
            attention = weights.cpu().numpy()
            weights = weights[:, :, None, None]  # (B, n, 1, 1)
            if self.variant == "haca3plus":
                masks = [np.stack([mask for mask, _, _ in source]) for source in codes]  # n of (B, 224, 224)
                known = torch.from_numpy(np.stack(masks, axis=1)).to(self.device)
                weights = attention_map(weights * known)  # (B, n, 224, 224)
            if acquisitions:
                fused = self._mixed(logits, weights, attention, acquisitions, orientation, some)
            else:
                fused = sum(
                    weights[:, number, None] * part for number, part in enumerate(logits)
                )  # (B, 5, 224, 224)
            if runs is not None:
                fused = fused + noise[runs[name]]
            beta = labels_to_beta(most_probable(fused))[:, None]  # (B, 1, 224, 224)
            contrast = query[:, :2, None, None].expand(-1, 2, SLICE, SLICE)
            with self._autocast():
                images = self.quick["decoder"](torch.cat([beta, contrast], dim=1))[:, 0].float().cpu().numpy()
            results[name] = (
                attention,
                [image * inside[k] * np.float32(target.norm) for k, image in zip(some, images)],
            )
        return key.cpu().numpy(), results

    def _mixed(self, logits, weights, attention, acquisitions, orientation, ks):
        """Logits (B, 5, 224, 224) of sources whose weights depend on what each of them carries of a
        frequency."""
        axis, mixed = AXIS[orientation], []
        for number, k in enumerate(ks):
            relative = resolution.relative_weights(
                acquisitions, orientation, k - slicing.PAD[axis], SHAPE[axis], attention[number]
            )
            some = torch.stack([source[number] for source in logits])  # (n, 5, 224, 224)
            mixed.append(
                resolution.mix(some, weights[number].squeeze(), torch.from_numpy(relative).to(self.device))
            )
        return torch.stack(mixed)

    @exactly
    def fuse(self, unfused: dict[str, np.ndarray], norm: float) -> np.ndarray:
        """One volume of one to three orientations."""
        if len(unfused) == 1:
            return next(iter(unfused.values()))
        if "fusion_net" not in self.networks:
            return np.median([slicing.normalise(volume)[0] for volume in unfused.values()], axis=0).astype(
                np.float32
            ) * np.float32(norm)
        x = torch.from_numpy(fusion_input(unfused))[None].to(self.device)
        y = self.quick["fusion_net"](x)[0, 0]
        return np.ascontiguousarray(y.cpu().numpy().transpose(2, 1, 0)[slicing.CROP]) * np.float32(norm)
