"""What HACA3 is given: sources, encoded once for several harmonizations, and targets; and what is refused."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from helpers import study, volumes
from helpers.grid import SHAPE
from helpers.haca3 import resolution


@dataclass(frozen=True)
class Target:
    """What a target image contributes: its contrast, its artifacts, its scale.

    Attributes
    ----------
    theta, eta : ndarray, shape (2,), float32
        Mean over the coronal slices 100 to 119.
    norm : float
        95th percentile of the image, in its own units: the scale of the output.

    Raises
    ------
    ValueError
        If theta or eta is not two finite numbers, or norm not a finite one above 0.
    """

    theta: np.ndarray
    eta: np.ndarray
    norm: float

    def __post_init__(self):
        for name, shape, accepted in (
            ("theta", (2,), "two finite numbers"),
            ("eta", (2,), "two finite numbers"),
            ("norm", (), "one finite number above 0"),
        ):
            given = getattr(self, name)
            try:
                with np.errstate(over="ignore"):  # What float32 cannot hold is infinite, and refused as such.
                    value = np.asarray(given, dtype=np.float32)
            except (TypeError, ValueError):
                value = np.float32(np.nan)
            if value.shape != shape or not np.isfinite(value).all() or (name == "norm" and value <= 0):
                raise ValueError(
                    f"{name} of the target is {str(given).splitlines()[0]}: accepted "
                    f"{'is' if name == 'norm' else 'are'} {accepted}"
                )
            object.__setattr__(self, name, float(given) if name == "norm" else value)


@dataclass(frozen=True)
class Encoding:
    """A source as `Harmonizer.encode` leaves it: the slices that it was asked for, ready for any target.

    Attributes
    ----------
    slices : dict of (str, int) to tuple
        (orientation, slice of the padded stack) -> foreground (224, 224) bool, logits (5, 224, 224), key (4,)
        = theta and eta. Logits and key are None where the slice is all zero.
    digest : str
        SHA-256 of the preprocessed volume: which source it is.
    volume : ndarray, shape (224, 224, 224), float32, optional
        Preprocessed and padded. With it, a slice that is not in `slices` is encoded when it is needed.
    """

    slices: dict = field(default_factory=dict)
    digest: str = ""
    volume: np.ndarray | None = None

    def arrays(self) -> dict[str, np.ndarray]:
        """The slices as arrays, as one stores them: `from_arrays` is the inverse."""
        full = [(logits, key) for _, logits, key in self.slices.values() if logits is not None]
        return {
            "digest": np.array(self.digest),
            "orientation": np.array([orientation for orientation, _ in self.slices], dtype="U8"),
            "slice": np.array([k for _, k in self.slices], dtype=np.int64),
            "foreground": np.array([foreground for foreground, _, _ in self.slices.values()], dtype=bool),
            "encoded": np.array([logits is not None for _, logits, _ in self.slices.values()], dtype=bool),
            "logits": np.array([logits.cpu().numpy() for logits, _ in full], dtype=np.float32),
            "key": np.array([key.cpu().numpy() for _, key in full], dtype=np.float32),
        }

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray]) -> "Encoding":
        """An encoding from what `arrays` gave."""
        full = zip(torch.from_numpy(arrays["logits"]), torch.from_numpy(arrays["key"]))
        slices = {}
        for number, (orientation, k) in enumerate(zip(arrays["orientation"], arrays["slice"])):
            code = next(full) if arrays["encoded"][number] else (None, None)
            slices[str(orientation), int(k)] = (arrays["foreground"][number], *code)
        return cls(slices, str(arrays["digest"]))


def acquisitions_of(sources, geometry):
    """How the sources were sliced, in their order; None where that changes nothing."""
    if geometry is not None:
        resolution.check_geometry(tuple(sources), geometry)
    return [geometry[name] for name in sources] if geometry and len(set(geometry.values())) > 1 else None


def require_volume(volume, what: str) -> np.ndarray:
    """The volume, if it can be harmonized."""
    volume = volumes.as_volume(volume, what)
    if volume.shape != SHAPE:
        raise ValueError(f"{what} has shape {volume.shape}: accepted is the MNI grid {SHAPE}")
    if not volume.any():
        raise ValueError(f"{what} is zero everywhere: accepted is an image")
    filled = np.count_nonzero(volume > 0) / volume.size
    if filled <= 0.05:  # Its 95th percentile, by which it is scaled, would be 0.
        raise ValueError(
            f"{what} shows something in {filled:.1%} of its voxels: accepted is an image of more than 5%"
        )
    return volume


def require_orientations(orientations: Sequence[str], slice_step: int) -> tuple[str, ...]:
    """The orientations, if they and the step can go together."""
    if isinstance(orientations, str):
        orientations = (orientations,)
    orientations = tuple(study.require("orientation", o, study.ORIENTATIONS) for o in orientations)
    if not orientations or len(set(orientations)) < len(orientations):
        raise ValueError(f"orientations are {orientations}: accepted are one or more, each once")
    if slice_step != int(slice_step) or slice_step < 1:
        raise ValueError(f"slice_step is {slice_step}: accepted is an integer of 1 or more")
    if slice_step > 1 and len(orientations) > 1:
        raise ValueError(
            f"slice_step is {slice_step} with {len(orientations)} orientations: a preview has one orientation"
        )
    return orientations


def digest_of(source: Encoding) -> str:
    """Which source it is."""
    return source.digest or hashlib.sha256(source.volume.tobytes()).hexdigest()
