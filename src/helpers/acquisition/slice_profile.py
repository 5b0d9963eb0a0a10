"""From the pulse to the weights of a slice: width, taps, transfer function, cross-talk.

A slice-selective pulse does not excite a box. What it excites follows from the Bloch equations; that
slice profile is the weight with which tissue along the normal of the slice enters its signal.
"""

import math
from functools import lru_cache

import numpy as np
from scipy.interpolate import CubicSpline
from scipy.special import ndtr

from helpers import study
from helpers.acquisition import rf_pulse
from helpers.acquisition.rf_pulse import Pulse


def fwhm(position: np.ndarray, weight: np.ndarray) -> float:
    """Full width at half maximum, by linear interpolation between samples.

    Parameters
    ----------
    position : ndarray, shape (m,)
        Ascending, in any unit.
    weight : ndarray, shape (m,)
        Profile.

    Returns
    -------
    float
        Width between the outermost crossings of half the maximum, in the unit of `position`.

    Raises
    ------
    ValueError
        If the profile does not fall below half its maximum on both sides.

    Examples
    --------
    >>> fwhm(np.array([-2.0, -1, 0, 1, 2]), np.array([0.0, 0.5, 1, 0.5, 0]))
    2.0
    """
    half = np.max(weight) / 2
    above = np.flatnonzero(weight >= half)
    first, last = above[0], above[-1]
    if first == 0 or last == len(weight) - 1:
        raise ValueError(
            f"the profile is still above half its maximum at {position[first if first == 0 else last]:g}: "
            "no width"
        )
    left = np.interp(half, weight[first - 1 : first + 1], position[first - 1 : first + 1])
    right = np.interp(-half, -weight[last : last + 2], position[last : last + 2])
    return float(right - left)


def profile(thickness_mm: float, pulse: Pulse = Pulse()) -> tuple[np.ndarray, np.ndarray]:
    """The slice profile in mm.

    Positions are scaled so that the *measured* width of the magnitude is the thickness: the width of a
    simulated profile is not exactly the time-bandwidth product (1.007 times at tb 16, 1.083 times at tb 2).

    Parameters
    ----------
    thickness_mm : float
        Full width at half maximum, mm.
    pulse : Pulse

    Returns
    -------
    position_mm : ndarray, shape (m,), mm
        Distance from the centre of the slice, evenly spaced.
    weight : ndarray, shape (m,), unitless
        Magnitude or rephased real part of the transverse magnetization; in the slice about
        the sine of the flip angle, for a refocusing pulse the square of the sine of half of it.

    Raises
    ------
    ValueError
        If the thickness is not greater than 0, or as `waveform`.
    """
    _check_length("thickness_mm", thickness_mm)
    position, mxy, _ = rf_pulse.bloch(pulse)
    magnitude = np.abs(mxy)
    weight = magnitude if pulse.part == "magnitude" else mxy.real
    return position * (thickness_mm / fwhm(position, magnitude)), weight


def taps(thickness_mm: float, voxel_mm: float, pulse: Pulse = Pulse()) -> np.ndarray:
    """Weights of the voxels around a slice: the profile integrated over each voxel.

    With ``compat="radifox"`` they are those of the tool that the authors' laboratory publishes: the image
    counts as blurred by one voxel already, so the kernel is sqrt(thickness² - voxel²) wide, that width is
    laid on the nominal time-bandwidth product, and the profile is sampled at the centres of the voxels.

    Parameters
    ----------
    thickness_mm : float
        Slice thickness, mm.
    voxel_mm : float
        Size of a voxel along the slice normal, mm.
    pulse : Pulse

    Returns
    -------
    ndarray, shape (2 r + 1,), unitless, read-only
        Sums to 1; the slice centre is the middle of the middle voxel; r = ceil(thickness / voxel) + 1.

    Raises
    ------
    ValueError
        If a length is not greater than 0, or as `waveform`, or if a radifox slice is thinner than a voxel.

    Examples
    --------
    >>> taps(4, 1).round(3)[5:9]
    array([0.248, 0.248, 0.125, 0.001])
    """
    _check_length("thickness_mm", thickness_mm)
    _check_length("voxel_mm", voxel_mm)
    return _taps(float(thickness_mm), float(voxel_mm), pulse)


def plain_taps(shape: str, thickness_mm: float, voxel_mm: float) -> np.ndarray:
    """What is often taken for a slice profile, integrated over each voxel as in `taps`: a box, or a Gaussian
    of the same FWHM.

    Parameters
    ----------
    shape : {"box", "gaussian"}
    thickness_mm, voxel_mm : float
        As in `taps`.

    Returns
    -------
    ndarray, shape (2 r + 1,), unitless
        Sums to 1; r as in `taps`.

    Raises
    ------
    ValueError
        If the shape is unknown or a length is not greater than 0.

    Examples
    --------
    >>> plain_taps("box", 3, 1)
    array([0.        , 0.        , 0.        , 0.33333333, 0.33333333,
           0.33333333, 0.        , 0.        , 0.        ])
    """
    study.require("shape", shape, ("box", "gaussian"))
    _check_length("thickness_mm", thickness_mm)
    _check_length("voxel_mm", voxel_mm)
    edges = _edges(thickness_mm, voxel_mm)
    if shape == "box":
        return np.diff(np.clip(edges, -thickness_mm / 2, thickness_mm / 2)) / thickness_mm
    weights = np.diff(ndtr(edges * math.sqrt(8 * math.log(2)) / thickness_mm))
    return weights / weights.sum()


def transfer_function(frequency: np.ndarray, position_mm: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """What a slice profile leaves of each spatial frequency along the slice normal.

    Parameters
    ----------
    frequency : array_like, shape (f,), cycles per mm
        Spatial frequencies.
    position_mm : ndarray, shape (m,), mm
        Evenly spaced: of `profile`, or of the voxels of `taps`.
    weight : ndarray, shape (m,)
        Profile or taps.

    Returns
    -------
    ndarray, shape (f,), complex, unitless
        Fourier transform of the weights, 1 at frequency 0.
    """
    waves = np.exp(-2j * np.pi * np.multiply.outer(np.asarray(frequency, float), position_mm))
    return waves @ weight / np.sum(weight)


def cross_talk(thickness_mm: float, gap_mm: float | np.ndarray, pulse: Pulse = Pulse()) -> float | np.ndarray:
    """Share of a slice's signal that comes from the nominal slabs of its two neighbours.

    Every slice counts as excited from rest: saturation by the neighbours' pulses comes on top of this.

    Parameters
    ----------
    thickness_mm : float
        Slice thickness, mm.
    gap_mm : float or ndarray, shape (g,)
        Slice gap, mm, or several.
    pulse : Pulse

    Returns
    -------
    float or ndarray, shape (g,)
        Usually between 0 and 1; the real part of a pulse that cannot be rephased may make it negative.

    Raises
    ------
    ValueError
        As `profile` and `study.Resolution`.
    """
    separation = np.array(
        [study.Resolution(thickness_mm, gap).separation_mm for gap in np.atleast_1d(gap_mm)]
    )
    position, weight = profile(thickness_mm, pulse)
    slabs = separation[:, None] + np.array([-thickness_mm / 2, thickness_mm / 2])
    integral = _integral(position, weight)
    above, below = (
        np.diff(integral(np.clip(side * slabs, position[0], position[-1])))[:, 0] for side in (1, -1)
    )
    share = (above - below) / integral(position[-1])
    return share if np.ndim(gap_mm) else float(share[0])


def _check_length(name: str, value) -> None:
    if not (rf_pulse.is_number(value) and value > 0):
        raise ValueError(f"{name} is {value!r}: accepted is a number of mm greater than 0")


def _integral(position: np.ndarray, weight: np.ndarray) -> CubicSpline:
    """The integral of the profile from its first sample, as a function of position."""
    return CubicSpline(position, weight).antiderivative()


@lru_cache(maxsize=256)
def _taps(thickness_mm: float, voxel_mm: float, pulse: Pulse):
    if pulse.compat == "radifox":
        weights = _radifox_taps(thickness_mm, voxel_mm, pulse)
    else:
        position, weight = profile(thickness_mm, pulse)
        edges = _edges(thickness_mm, voxel_mm)
        # Far outside its slice a thin profile was not simulated: it is zero there.
        weights = np.diff(_integral(position, weight)(np.clip(edges, position[0], position[-1])))
    weights = weights / weights.sum()
    weights.flags.writeable = False
    return weights


def _edges(thickness_mm, voxel_mm):
    """Edges of the voxels around a slice, mm from its centre."""
    # round() first: 2.1 / 0.7 is a little more than 3.
    radius = math.ceil(round(thickness_mm / voxel_mm, 9)) + 1
    return (np.arange(-radius, radius + 2) - 0.5) * voxel_mm


def _radifox_taps(thickness_mm: float, voxel_mm: float, pulse: Pulse):
    if thickness_mm < voxel_mm:
        raise ValueError(
            f"thickness_mm is {thickness_mm:g}: accepted with compat radifox is {voxel_mm:g} mm, a voxel, "
            "or more"
        )
    width = math.sqrt((thickness_mm / voxel_mm) ** 2 - 1)
    if width == 0:
        return np.ones(1)
    position, mxy, _ = rf_pulse.bloch(pulse)
    weight = np.abs(mxy) if pulse.part == "magnitude" else mxy.real
    radius = round(width)
    centres = np.arange(-radius, radius + 1) * (pulse.tb / width)
    return CubicSpline(position, weight)(np.clip(centres, position[0], position[-1]))
