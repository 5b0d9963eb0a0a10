"""From volumes to slices as HACA3 sees them, and back: intensity scale, foreground, padding, noise."""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from helpers.grid import AXIS, SHAPE
from helpers.haca3.networks import SLICE

PAD = tuple(SLICE // 2 - n // 2 for n in SHAPE)  # voxels before the volume on each axis: 16, 0, 16
TARGET_SLICES = range(100, 120)  #: coronal slices that describe a target
CROP = tuple(slice(start, start + n) for start, n in zip(PAD, SHAPE))


# ---------------------------------------------------------------- preprocessing


def normalise(volume: np.ndarray) -> tuple[np.ndarray, float]:
    """Divide by the 95th percentile of all voxels and clip to 0..5.

    Parameters
    ----------
    volume : ndarray
        Any units.

    Returns
    -------
    volume : ndarray, float32, unitless
    norm : float
        The percentile, in the units of the input.
    """
    volume = np.ascontiguousarray(
        volume, np.float32
    )  # files come in Fortran order, in which what follows is slower
    norm = np.percentile(volume, 95)
    return np.clip(volume / (norm + 1e-5), 0, 5).astype(np.float32, copy=False), float(norm)


def close(mask: np.ndarray, radius: int = 20) -> np.ndarray:
    """Isotropic closing of a mask in the published box of 256^3 voxels, whose outside is not background.

    Parameters
    ----------
    mask : ndarray of bool, shape (X, Y, Z), at most 256 on each axis
    radius : int
        In voxels.
    """
    import edt

    if not mask.any():
        return mask.copy()
    # The closing cannot reach further than the radius, so its bounding box, grown by it, gives the same
    # result.
    start = [128 - n // 2 for n in mask.shape]
    box, pad = [], []
    for axis, n in enumerate(mask.shape):
        filled = np.flatnonzero(mask.any(axis=tuple({0, 1, 2} - {axis})))
        low = max(filled[0] - radius - 1, -start[axis])
        high = min(filled[-1] + radius + 2, 256 - start[axis])
        box.append(slice(max(low, 0), min(high, n)))
        pad.append((max(-low, 0), max(high - n, 0)))
    small = np.pad(mask[tuple(box)], pad)
    # Squared distances between voxels are integers, so comparing them is exact in float32 too.
    dilated = edt.edtsq((~small).view(np.uint8)) <= radius**2
    closed = edt.edtsq(dilated.view(np.uint8)) > radius**2
    closed = closed[tuple(slice(before, size - after) for (before, after), size in zip(pad, closed.shape))]
    result = np.zeros_like(mask)
    result[tuple(box)] = closed
    return result


def foreground(volume: np.ndarray) -> np.ndarray:
    """Otsu's threshold (256 bins, Otsu 1979) and a closing of 20 voxels: where the head is."""
    from skimage.filters import threshold_otsu

    return close(volume >= threshold_otsu(volume, nbins=256))


def pad(volume: np.ndarray) -> np.ndarray:
    """Zero-pad to 224^3, centred; an odd size has the extra voxel at the end."""
    widths = [(SLICE // 2 - n // 2, SLICE - n - (SLICE // 2 - n // 2)) for n in volume.shape]
    return np.pad(volume, widths)


def preprocess(volume: np.ndarray) -> tuple[np.ndarray, float]:
    """Normalise, remove the background, pad: what the networks see of a volume.

    Parameters
    ----------
    volume : ndarray, shape (192, 224, 192)
        Any units.

    Returns
    -------
    padded : ndarray, shape (224, 224, 224), float32, unitless
    norm : float
        95th percentile, in the units of the input.
    """
    volume, norm = normalise(volume)
    return pad(np.where(foreground(volume), volume, np.float32(0))), norm


def slice_of(padded: np.ndarray, orientation: str, k: int) -> np.ndarray:
    """Slice k of a padded volume as the networks want it: seen with the head up, a copy of shape (224,
    224)."""
    return seen(padded.take(k, AXIS[orientation]), orientation)


def seen(plane: np.ndarray, orientation: str) -> np.ndarray:
    """A slice as it lies in the array -> as the networks want it, contiguous."""
    return (plane if orientation == "axial" else plane[:, ::-1]).T.copy()


def lying(image: np.ndarray, orientation: str) -> np.ndarray:
    """A slice as the networks see it -> as it lies in the array, without the padding."""
    plane = image.T if orientation == "axial" else image.T[:, ::-1]
    return plane[tuple(crop for other, crop in enumerate(CROP) if other != AXIS[orientation])]


def put_slice(volume: np.ndarray, orientation: str, k: int, image: np.ndarray) -> None:
    """Inverse of `slice_of`, in place, for a volume without the padding: slice k of the padded stack, (224,
    224)."""
    axis = AXIS[orientation]
    np.moveaxis(volume, axis, 0)[k - PAD[axis]] = lying(image, orientation)


def trimmed(image: np.ndarray, mask: np.ndarray) -> tuple[tuple[slice, slice], np.ndarray]:
    """The smallest rectangle of a slice outside of which a mask, not empty, is false: where it lies, and what
    is in it."""
    rows, columns = (np.flatnonzero(mask.any(axis)) for axis in (1, 0))
    where = slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
    return where, image[where].copy()


def volume_of(
    parts: Mapping[int, tuple[tuple[slice, slice], np.ndarray]],
    orientation: str,
    ks: Sequence[int],
    elsewhere: float = 0.0,
) -> np.ndarray:
    """A volume from the `trimmed` slices of one orientation.

    Parameters
    ----------
    parts : dict of int to tuple
        Slice of the padded stack -> what `trimmed` gave of it.
    ks : sequence of int
        The slices that are known: zero where `parts` has none.
    elsewhere : float
        In the other slices.

    Returns
    -------
    ndarray, shape (192, 224, 192), float32
    """
    volume = np.full(SHAPE, elsewhere, np.float32)
    for k in ks:
        image = np.zeros((SLICE, SLICE), np.float32)
        if k in parts:
            where, part = parts[k]
            image[where] = part
        put_slice(volume, orientation, k, image)
    return volume


def visited(orientation: str, slice_step: int = 1) -> range:
    """Slices of the padded stack that a reconstruction computes: every `slice_step`-th of the output, from
    the half of it."""
    axis = AXIS[orientation]
    return range(PAD[axis] + slice_step // 2, PAD[axis] + SHAPE[axis], slice_step)


def gumbel_noise(seed: int, orientation: str, k: int, run: Sequence[int] = ()) -> Tensor:
    """Standard Gumbel noise of one slice, shape (5, 224, 224), float32.

    It follows from its arguments alone, whatever was drawn before: batches, the order of the slices and
    threads do not change it.
    """
    state = np.random.SeedSequence([seed, AXIS[orientation], k, *run]).generate_state(1, np.uint64)
    generator = torch.Generator().manual_seed(int(state[0]))
    uniform = torch.rand((5, SLICE, SLICE), generator=generator)
    return -torch.log(-torch.log(uniform.clamp_(min=1e-10, max=1 - 6e-8)))
