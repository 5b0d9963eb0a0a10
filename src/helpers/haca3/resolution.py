"""Fusion of anatomy logits that knows how each source was sliced.

HACA3's attention gives each source one weight for the whole slice: it knows contrast and artifacts, but no
geometry. A stack of thick slices, however, lacks only some spatial frequencies, and which ones follows from
its slice profile, separation and orientation. So the weight may depend on frequency: where every source
carries what the truth has, the attention decides as before; what one source lacks, the others fill in.

For a source i, let y be the slice as it comes back from acquisition and interpolation, x the true slice, both
at one spatial frequency f of the plane of reconstruction, and E the mean over images whose power falls with
the fourth power of the frequency, as that of objects with sharp boundaries does [1]_. Then::

    gain       g_i(f) = E[y x] / E[x x]               how much of the truth arrives
    coherence  c_i(f) = E[y x]^2 / (E[x x] E[y y])    how much of what arrives is the truth, not aliasing

    h_i(f) = g_i(f) c_i(f)

    A_i(f) = alpha_i (h_i(f) + eps) / sum_j alpha_j (h_j(f) + eps)

with alpha the attention. The weights sum to one at each frequency, are those of the attention where sources
are sliced alike, and move nothing at frequency zero. Both expectations follow exactly from the matrix that
slices a line of voxels and interpolates it back, so no roll-off has to be chosen. A source whose slices are
parallel to the plane of reconstruction lacks no frequency of the plane; it mixes neighbouring planes. Coarse
structures hardly change from one plane to the next and fine ones do, so its h falls with frequency too.

Weights that depend on frequency have been used to combine images of a burst [2]_ and low-field scans of two
orientations [3]_; here they act on the logits of a harmonizer.

References
----------
.. [1] Porod (1951). Kolloid-Zeitschrift 124:83-114: boundaries in three dimensions have a spectrum f^-4.
.. [2] Delbracio, Sapiro (2015). Removing camera shake via weighted Fourier burst accumulation. IEEE Trans
   Image Process 24(11):3293-3307.
.. [3] FouSR: Fourier-based super-resolution of orthogonal low-field FLAIR images. Front Neurol (2024).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from helpers import study
from helpers.acquisition import degradation
from helpers.grid import AXIS
from helpers.haca3.networks import SLICE
from helpers.study import Resolution

#: Frequency below which the power spectrum is flat, cycles per mm: structures of the size of a brain.
FLAT_BELOW_PER_MM = 0.01
#: Exponent of the power spectrum in three dimensions [1].
SPECTRAL_EXPONENT = 4
#: Weight of a source that carries nothing of a frequency. It decides where no source carries anything.
EPS = 0.02


@dataclass(frozen=True)
class Acquisition:
    """How the slices of a source were acquired.

    Parameters
    ----------
    orientation : {"axial", "sagittal", "coronal"}
        Of the slices.
    resolution : Resolution
        Their thickness and gap, mm.

    Raises
    ------
    ValueError
        If the orientation is unknown or the resolution is no `Resolution`.
    """

    orientation: str
    resolution: Resolution

    def __post_init__(self):
        study.require("orientation", self.orientation, study.ORIENTATIONS)
        if not isinstance(self.resolution, Resolution):
            raise ValueError(
                f"resolution is {self.resolution!r}: accepted is a Resolution(thickness_mm, gap_mm)"
            )


def check_geometry(sources: Sequence[str], geometry: Mapping[str, Acquisition | None]) -> None:
    """Refuse a geometry that does not name each source once.

    Parameters
    ----------
    sources : sequence of str
        Contrasts of the sources.
    geometry : dict of str to Acquisition or None
        None for a 3D image.

    Raises
    ------
    ValueError
        Naming the source.
    """
    for name in sources:
        if name not in geometry:
            raise ValueError(
                f"geometry has no {name}: accepted is an Acquisition, or None for a 3D image, for each source"
            )
    for name, acquisition in geometry.items():
        if name not in sources:
            raise ValueError(f"geometry has {name}: accepted are the sources, {', '.join(sources)}")
        if acquisition is not None and not isinstance(acquisition, Acquisition):
            raise ValueError(
                f"geometry of {name} is {acquisition!r}: accepted is an Acquisition, or None for a 3D image"
            )


def carried(acquisition: Acquisition | None, plane: str, index: int, length: int) -> np.ndarray:
    """How well a source carries each frequency of one slice of the reconstruction: h of the module's text.

    Parameters
    ----------
    acquisition : Acquisition or None
        None for a 3D image, which carries everything.
    plane : {"axial", "sagittal", "coronal"}
        Plane of reconstruction.
    index : int
        Of the slice on the axis across the plane: a slice in a gap carries less than one amid a thick slice.
    length : int
        Voxels of 1 mm on that axis.

    Returns
    -------
    ndarray, shape (224, 113), float32, 0 to 1, read-only
        On the frequencies of `torch.fft.rfft2` of a slice as `harmonizer.slice_of` gives it.
    """
    if acquisition is None:
        return _everything()
    across, normal = AXIS[acquisition.orientation], AXIS[plane]
    if across == normal:
        return _carried_across(acquisition.resolution, index, length)
    # A slice as the networks see it has the later of the two array axes in its rows.
    return _carried_within(acquisition.resolution, rows=across == max({0, 1, 2} - {normal}))


def relative_weights(
    acquisitions: Sequence[Acquisition | None], plane: str, index: int, length: int, alpha: np.ndarray
) -> np.ndarray:
    """By how much the attention weight of each source is multiplied at each frequency: A_i / alpha_i.

    Parameters
    ----------
    acquisitions : sequence of n Acquisition or None
    plane, index, length
        As in `carried`.
    alpha : ndarray, shape (n,)
        Attention weights of the slice, sum 1.

    Returns
    -------
    ndarray, shape (n, 224, 113), float32
        The mean weighted by alpha is 1 at each frequency.
    """
    weights = np.stack(
        [carried(acquisition, plane, index, length) for acquisition in acquisitions]
    ) + np.float32(EPS)
    return weights / np.tensordot(np.asarray(alpha, np.float32), weights, axes=1)


def mix(logits: Tensor, weights: Tensor, relative: Tensor) -> Tensor:
    """Add the logits of the sources, each with a weight that depends on frequency.

    Parameters
    ----------
    logits : Tensor, shape (n, C, 224, 224)
    weights : Tensor, shape (n,) or (n, 224, 224)
        Of the attention: one for the slice, or one a pixel (HACA3+).
    relative : Tensor, shape (n, 224, 113)
        As `relative_weights` gives them.

    Returns
    -------
    Tensor, shape (C, 224, 224)
    """
    weighted = logits * weights.reshape(len(logits), 1, *(weights.shape[1:] or (1, 1)))
    spectrum = (torch.fft.rfft2(weighted) * relative[:, None]).sum(0)
    return torch.fft.irfft2(spectrum, s=logits.shape[-2:])


@lru_cache(maxsize=1)
def _everything() -> np.ndarray:
    return _locked(np.ones((SLICE, SLICE // 2 + 1)))


@lru_cache(maxsize=32)
def _carried_within(resolution: Resolution, rows: bool) -> np.ndarray:
    """The slice normal lies in the plane of reconstruction: along its rows' axis, or its columns'."""
    # The middle third of a long stack, closed to a ring: without ends, which would count as a loss at all
    # frequencies.
    ring = (
        degradation.there_and_back(3 * SLICE, resolution)[SLICE : 2 * SLICE]
        .reshape(SLICE, 3, SLICE)
        .sum(axis=1)
    )
    # transfer[f, g]: what a wave of frequency g leaves at frequency f; g = f is signal, the rest is aliasing.
    transfer = np.fft.ifft(np.fft.fft(ring, axis=0), axis=1)
    signal = np.real(np.diag(transfer))[:, None]
    frequency = np.fft.fftfreq(SLICE)
    power = _power(np.hypot(*np.meshgrid(frequency, frequency, indexing="ij")), SPECTRAL_EXPONENT - 1)
    arrives = np.abs(transfer) ** 2 @ power
    h = _score(signal * power, power, arrives)
    return _locked((h if rows else h.T)[:, : SLICE // 2 + 1])


@lru_cache(maxsize=512)
def _carried_across(resolution: Resolution, index: int, length: int) -> np.ndarray:
    """The slices are parallel to the plane of reconstruction, whose slice `index` mixes its neighbours by a
    row of the matrix."""
    row = degradation.there_and_back(length, resolution)[index]
    radius, frequency, power = _spectrum()
    transfer = np.exp(-2j * np.pi * np.multiply.outer(frequency, np.arange(length) - index)) @ row
    h = _score(power @ transfer.real, power.sum(axis=1), power @ np.abs(transfer) ** 2)
    rows, columns = np.fft.fftfreq(SLICE)[:, None], np.fft.rfftfreq(SLICE)
    return _locked(np.interp(np.hypot(rows, columns), radius, h))


@lru_cache(maxsize=1)
def _spectrum() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Frequencies in the plane (r,) and across it (f,), and the power at both (r, f)."""
    radius, frequency = np.linspace(0, 0.75, 200), np.linspace(-0.5, 0.5, 512, endpoint=False)
    return radius, frequency, _power(np.hypot(radius[:, None], frequency), SPECTRAL_EXPONENT)


def _power(frequency: np.ndarray, exponent: float) -> np.ndarray:
    """Spectrum of images; that of their slices has an exponent less by one, since slicing sums over a
    frequency."""
    return (frequency**2 + FLAT_BELOW_PER_MM**2) ** (-exponent / 2)


def _score(cross: np.ndarray, true: np.ndarray, arriving: np.ndarray) -> np.ndarray:
    """Gain times coherence, of E[y x], E[x x] and E[y y]; a negative correlation carries nothing."""
    return np.clip(cross, 0, None) ** 3 / (true**2 * arriving)


def _locked(h: np.ndarray) -> np.ndarray:
    h = np.clip(h, 0, 1).astype(np.float32)
    h.flags.writeable = False
    return h
