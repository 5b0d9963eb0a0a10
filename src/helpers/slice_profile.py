"""From the RF pulse to the weights of a slice: SLR design, Bloch simulation, width, taps, transfer function.

A slice-selective pulse does not excite a box. What it excites follows from the Bloch equations; that
slice profile is the weight with which tissue along the normal of the slice enters its signal.

References
----------
.. [1] Pauly, Le Roux, Nishimura, Macovski (1991). Parameter relations for the Shinnar-Le Roux selective
   excitation pulse design algorithm. IEEE Trans Med Imaging 10(1):53-65.
.. [2] Martin et al. (2020). SigPy.RF: comprehensive open-source RF pulse design tools for reproducible
   research. Proc ISMRM 28:1045.
.. [3] Hays et al. (2024). Beyond MR image harmonization: resolution matters too.
"""

import math
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
from scipy.interpolate import CubicSpline
from scipy.special import ndtr

from helpers import study

PULSE_TYPES = ("ex", "se")
FILTER_TYPES = ("ls", "pm", "ms", "min", "max")
PARTS = ("magnitude", "real")
COMPATS = (None, "radifox")

#: Flip angles in degrees: unless given, and the range. A slice that is excited by more than 90 degrees has more signal at its edges than
#: in its middle; a pulse that refocuses by less than 90 degrees refocuses less than half.
_FLIP_DEG = {"ex": (90.0, 0.1, 90.0), "se": (180.0, 90.0, 180.0)}

#: What the centre of a slice must have of what the flip angle promises. A weaker excitation still shows its slice; a spin echo that a
#: pulse does not refocus is lost.
_LEAST_AT_CENTRE = {"ex": 0.5, "se": 0.9}

# Samples of the simulated profile per cycle per pulse. A pulse of unit length cannot make a profile
# that varies much faster than one cycle, so 32 leave nothing between the samples.
_SAMPLES_PER_CYCLE = 32


def _is_number(value) -> bool:
    return isinstance(value, int | float | np.number) and not isinstance(value, bool) and math.isfinite(value)


@dataclass(frozen=True)
class Pulse:
    """A slice-selective RF pulse, and how its slice profile is read.

    Parameters
    ----------
    tb : float
        Time-bandwidth product, unitless.
    n : int
        Samples, even.
    ptype : {"ex", "se"}
        Excitation or refocusing pulse.
    flip_angle_deg : float, optional
        Flip angle in degrees: up to 90 of an excitation, from 90 to 180 of a refocusing pulse. Unless given 90 and 180.
    ftype : {"ls", "pm", "ms", "min", "max"}
        Filter behind the pulse: least squares, equiripple, windowed sinc, minimum or maximum phase.
    d1, d2 : float
        Ripple in the pass band and in the stop band, as a fraction of the signal of the slice.
    part : {"magnitude", "real"}
        The magnitude of the transverse magnetization, which rectifies the ripple, or its real part after rephasing.
    compat : {None, "radifox"}
        ``"radifox"`` samples the taps as the tool does that the authors' laboratory publishes (see `taps`).

    Raises
    ------
    ValueError
        If a value is impossible.

    Examples
    --------
    >>> Pulse(tb=4).ftype, Pulse().flip_angle_deg, Pulse(ptype="se").flip_angle_deg
    ('ls', 90.0, 180.0)
    """

    tb: float = 16
    n: int = 128
    ptype: str = "ex"
    flip_angle_deg: float | None = None
    ftype: str = "ls"
    d1: float = 0.01
    d2: float = 0.01
    part: str = "magnitude"
    compat: str | None = None

    def __post_init__(self):
        for name, accepted in (("ptype", PULSE_TYPES), ("ftype", FILTER_TYPES), ("part", PARTS), ("compat", COMPATS)):
            object.__setattr__(self, name, study.check(name, getattr(self, name), accepted))
        if not (isinstance(self.n, int | np.integer) and 16 <= self.n <= 4096 and self.n % 2 == 0):
            raise ValueError(f"n is {self.n!r}: accepted are even whole numbers of samples from 16 to 4096")
        if not (_is_number(self.tb) and 1 <= self.tb <= self.n / 4):
            raise ValueError(f"tb is {self.tb!r}: accepted are time-bandwidth products from 1 to n/4 = {self.n / 4:g}")
        for name in ("d1", "d2"):
            if not (_is_number(getattr(self, name)) and 0 < getattr(self, name) < 1):
                raise ValueError(f"{name} is {getattr(self, name)!r}: accepted are ripples between 0 and 1")
        usual, low, high = _FLIP_DEG[self.ptype]
        if self.flip_angle_deg is None:
            object.__setattr__(self, "flip_angle_deg", usual)
        if not (_is_number(self.flip_angle_deg) and low <= self.flip_angle_deg <= high):
            what = f"accepted for ptype {self.ptype} are {low:g} to {high:g} degrees"
            raise ValueError(f"flip_angle_deg is {self.flip_angle_deg!r}: {what}")


def waveform(pulse: Pulse = Pulse()) -> np.ndarray:
    """Design an RF pulse by the Shinnar-Le Roux algorithm [1]_, with SigPy.RF [2]_.

    Parameters
    ----------
    pulse : Pulse
        Its ``part`` and ``compat`` do not matter here.

    Returns
    -------
    ndarray, shape (n,), rad per sample, read-only
        Rotation angle that each sample of B1 causes. Their sum is the flip angle of a linear-phase pulse.

    Raises
    ------
    ValueError
        If there is no such pulse, or none that does what its flip angle promises.
    """
    return _design(pulse)[0]


def bloch(pulse: Pulse = Pulse()) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Simulate what the pulse does to magnetization that was at rest, without relaxation.

    The rotation that the pulse causes has the Cayley-Klein parameters a and b. An excitation leaves
    Mxy = 2 conj(a) b. A refocusing pulse between crushers turns Mxy into b² conj(Mxy), so there the
    profile is b² [1]_. The linear phase across the slice is taken out, as a well-tuned rephasing gradient would.

    Parameters
    ----------
    pulse : Pulse
        Its ``part`` and ``compat`` do not matter here.

    Returns
    -------
    position : ndarray, shape (m,), cycles per pulse
        Frequency offset times duration of the pulse: proportional to the position along the slice normal.
    mxy : ndarray, shape (m,), complex, unitless
        Transverse magnetization (``"ex"``) or refocusing efficiency (``"se"``).
    mz : ndarray, shape (m,), unitless
        Longitudinal magnetization after the pulse.

    Raises
    ------
    ValueError
        As `waveform`.
    """
    return _design(pulse)[1:]


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
        raise ValueError(f"the profile is still above half its maximum at {position[first if first == 0 else last]:g}: no width")
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
    position, mxy, _ = bloch(pulse)
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
    """What is often taken for a slice profile, integrated over each voxel as in `taps`: a box, or a Gaussian of the same FWHM.

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
    study.check("shape", shape, ("box", "gaussian"))
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
    separation = np.array([study.Resolution(thickness_mm, gap).separation_mm for gap in np.atleast_1d(gap_mm)])
    position, weight = profile(thickness_mm, pulse)
    slabs = separation[:, None] + np.array([-thickness_mm / 2, thickness_mm / 2])
    integral = _integral(position, weight)
    above, below = (np.diff(integral(np.clip(side * slabs, position[0], position[-1])))[:, 0] for side in (1, -1))
    share = (above - below) / integral(position[-1])
    return share if np.ndim(gap_mm) else float(share[0])


def _check_length(name: str, value) -> None:
    if not (_is_number(value) and value > 0):
        raise ValueError(f"{name} is {value!r}: accepted is a number of mm greater than 0")


def _integral(position: np.ndarray, weight: np.ndarray) -> CubicSpline:
    """The integral of the profile from its first sample, as a function of position."""
    return CubicSpline(position, weight).antiderivative()


def _ripples(pulse: Pulse) -> tuple[float, float]:
    """Ripples of the filter b that give those of the slice, by the parameter relations of [1]_, for any flip angle.

    An excitation has Mxy = 2 b sqrt(1 - b²). Where b falls by a share e below the sine of half the flip angle, Mxy falls by the share
    p e + q e² to second order; at 90 degrees p is 0, and d1 = 2 e². Outside the slice Mxy is 2 b. A refocusing pulse has b².
    """
    if pulse.ptype == "se":
        return pulse.d1 / 4, math.sqrt(pulse.d2)
    cosine = math.cos(math.radians(pulse.flip_angle_deg))
    b2 = (1 - cosine) / 2
    p, q = cosine / (1 - b2), b2 * (3 - 2 * b2) / (2 * (1 - b2) ** 2)
    return 2 * pulse.d1 / (p + math.sqrt(p**2 + 4 * q * pulse.d1)), pulse.d2 * math.sqrt(1 - b2)


def _design(pulse: Pulse):
    """RF pulse, position, Mxy and Mz: designed and simulated once, however its profile is read."""
    return _simulate(replace(pulse, part="magnitude", compat=None))


@lru_cache(maxsize=64)
def _simulate(pulse: Pulse):
    from sigpy.mri.rf import sim, slr

    described = (
        f"{pulse.ptype} pulse with tb {pulse.tb:g}, n {pulse.n}, flip_angle_deg {pulse.flip_angle_deg:g}, ftype {pulse.ftype}, "
        f"d1 {pulse.d1:g}, d2 {pulse.d2:g}"
    )
    b2 = (1 - math.cos(math.radians(pulse.flip_angle_deg))) / 2
    try:
        # "st" leaves the filter as it is. The pulse is real by design; what SigPy leaves in the imaginary part is rounding.
        b = math.sqrt(b2) * slr.dzrf(pulse.n, pulse.tb, "st", pulse.ftype, *_ripples(pulse))
        rf = slr.b2rf(b).real
    except (ValueError, ArithmeticError, IndexError, np.linalg.LinAlgError) as error:
        raise ValueError(f"there is no {described} ({str(error).splitlines()[0]}): try a larger tb or another ftype") from None
    # Outside half the sampling rate of the pulse the profile only repeats itself.
    half = pulse.n * _SAMPLES_PER_CYCLE // 2
    position = np.arange(-half, half + 1) / _SAMPLES_PER_CYCLE
    a, b = sim.abrm(rf, position)
    if pulse.ptype == "ex":
        mxy, mz, promised = 2 * a.conj() * b, np.abs(a) ** 2 - np.abs(b) ** 2, 2 * math.sqrt(b2 * (1 - b2))
    else:
        mxy, mz, promised = b * b, 1 - 2 * np.abs(b) ** 2, b2
    magnitude = np.abs(mxy)
    share, least = magnitude[half] / promised, _LEAST_AT_CENTRE[pulse.ptype]
    if not (np.isfinite(magnitude).all() and share >= least):
        done = "excites" if pulse.ptype == "ex" else "refocuses"
        why = f"at its centre it {done} {share:.0%} of what its flip angle promises, accepted is {least:.0%} or more"
        raise ValueError(f"the {described} does not select a slice ({why}): try a larger tb or another ftype")
    inside = magnitude > magnitude.max() / 2
    phase = np.unwrap(np.angle(mxy[inside]))
    mxy = mxy * np.exp(-1j * np.polyval(np.polyfit(position[inside], phase, 1, w=magnitude[inside]), position))
    for array in (rf, position, mxy, mz):
        array.flags.writeable = False
    return rf, position, mxy, mz


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
        raise ValueError(f"thickness_mm is {thickness_mm:g}: accepted with compat radifox is {voxel_mm:g} mm, a voxel, or more")
    width = math.sqrt((thickness_mm / voxel_mm) ** 2 - 1)
    if width == 0:
        return np.ones(1)
    position, mxy, _ = bloch(pulse)
    weight = np.abs(mxy) if pulse.part == "magnitude" else mxy.real
    radius = round(width)
    centres = np.arange(-radius, radius + 1) * (pulse.tb / width)
    return CubicSpline(position, weight)(np.clip(centres, position[0], position[-1]))
