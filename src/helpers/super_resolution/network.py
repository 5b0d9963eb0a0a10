"""The network that adds detail to slices, and the file that keeps it."""

import io
import pickle
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from helpers.acquisition.rf_pulse import Pulse
from helpers.study import Resolution
from helpers.volumes.files import record_use, write_bytes

LAYERS = 8  #: of the network, 3 x 3 each
REACH = LAYERS  #: slices that the network sees on either side; a stack must have as many
#: Resolutions that differ by less than this in thickness and in separation, mm, are one protocol: headers
#: are rounded.
SAME_PROTOCOL_MM = 0.05
_MARGIN = 2  # slices that are repeated beyond the outermost ones, as `degradation.matrix` has it
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
        write(path, content)


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
    record_use(path)
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
        if content["kind"] != _KIND:
            raise ValueError
        weights = content["weights"]
        network = Network(len(weights[f"layers.{LAYERS - 1}.bias"]), len(weights["layers.0.bias"]))
        network.load_state_dict(weights)
        resolver = SuperResolver(
            ready(network, device),
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
        check_protocol(resolver, resolution, str(path))
    return resolver


def check_protocol(resolver, resolution, what):
    """Refuse a resolver that was taught with other slices."""
    known = resolver.resolution
    apart = (
        abs(known.thickness_mm - resolution.thickness_mm),
        abs(known.separation_mm - resolution.separation_mm),
    )
    if max(apart) > SAME_PROTOCOL_MM:
        slices = f"slices of {known.label} mm, not of {resolution.label}"
        raise ValueError(f"{what} is for {slices}: accepted is one of the same protocol")


def ready(network, device):
    return network.to(device, memory_format=torch.channels_last).eval().requires_grad_(False)


def write(path, content):
    buffer = io.BytesIO()
    torch.save(content, buffer)
    write_bytes(path, buffer.getvalue())
