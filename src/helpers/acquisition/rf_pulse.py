"""Slice-selective RF pulses: Shinnar-Le Roux design [1]_ with SigPy.RF [2]_, and Bloch simulation.

References
----------
.. [1] Pauly, Le Roux, Nishimura, Macovski (1991). Parameter relations for the Shinnar-Le Roux selective
   excitation pulse design algorithm. IEEE Trans Med Imaging 10(1):53-65.
.. [2] Martin et al. (2020). SigPy.RF: comprehensive open-source RF pulse design tools for reproducible
   research. Proc ISMRM 28:1045.
"""

import math
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np

from helpers import study

PULSE_TYPES = ("ex", "se")
FILTER_TYPES = ("ls", "pm", "ms", "min", "max")
PARTS = ("magnitude", "real")
COMPATS = (None, "radifox")

#: Flip angles in degrees: unless given, and the range. A slice that is excited by more than 90 degrees has
#: more signal at its edges than in its middle; a pulse that refocuses by less than 90 degrees refocuses less
#: than half.
_FLIP_DEG = {"ex": (90.0, 0.1, 90.0), "se": (180.0, 90.0, 180.0)}

#: What the centre of a slice must have of what the flip angle promises. A weaker excitation still shows its
#: slice; a spin echo that a pulse does not refocus is lost.
_LEAST_AT_CENTRE = {"ex": 0.5, "se": 0.9}

# Samples of the simulated profile per cycle per pulse. A pulse of unit length cannot make a profile
# that varies much faster than one cycle, so 32 leave nothing between the samples.
_SAMPLES_PER_CYCLE = 32


def is_number(value) -> bool:
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
        Flip angle in degrees: up to 90 of an excitation, from 90 to 180 of a refocusing pulse. Unless given
        90 and 180.
    ftype : {"ls", "pm", "ms", "min", "max"}
        Filter behind the pulse: least squares, equiripple, windowed sinc, minimum or maximum phase.
    d1, d2 : float
        Ripple in the pass band and in the stop band, as a fraction of the signal of the slice.
    part : {"magnitude", "real"}
        The magnitude of the transverse magnetization, which rectifies the ripple, or its real part after
        rephasing.
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
        for name, accepted in (
            ("ptype", PULSE_TYPES),
            ("ftype", FILTER_TYPES),
            ("part", PARTS),
            ("compat", COMPATS),
        ):
            object.__setattr__(self, name, study.require(name, getattr(self, name), accepted))
        if not (isinstance(self.n, int | np.integer) and 16 <= self.n <= 4096 and self.n % 2 == 0):
            raise ValueError(f"n is {self.n!r}: accepted are even whole numbers of samples from 16 to 4096")
        if not (is_number(self.tb) and 1 <= self.tb <= self.n / 4):
            raise ValueError(
                f"tb is {self.tb!r}: accepted are time-bandwidth products from 1 to n/4 = {self.n / 4:g}"
            )
        for name in ("d1", "d2"):
            if not (is_number(getattr(self, name)) and 0 < getattr(self, name) < 1):
                raise ValueError(f"{name} is {getattr(self, name)!r}: accepted are ripples between 0 and 1")
        usual, low, high = _FLIP_DEG[self.ptype]
        if self.flip_angle_deg is None:
            object.__setattr__(self, "flip_angle_deg", usual)
        if not (is_number(self.flip_angle_deg) and low <= self.flip_angle_deg <= high):
            what = f"accepted for ptype {self.ptype} are {low:g} to {high:g} degrees"
            raise ValueError(f"flip_angle_deg is {self.flip_angle_deg!r}: {what}")


def waveform(pulse: Pulse = Pulse()) -> np.ndarray:
    """Design an RF pulse by the Shinnar-Le Roux algorithm [1], with SigPy.RF [2].

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

    The rotation that the pulse causes has the Cayley-Klein parameters a and b. An excitation leaves Mxy = 2
    conj(a) b. A refocusing pulse between crushers turns Mxy into b² conj(Mxy), so there the profile is b²
    [1]. The linear phase across the slice is taken out, as a well-tuned rephasing gradient would.

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


def _ripples(pulse: Pulse) -> tuple[float, float]:
    """Ripples of the filter b that give those of the slice, by the parameter relations of [1], for any flip
    angle.

    An excitation has Mxy = 2 b sqrt(1 - b²). Where b falls by a share e below the sine of half the flip
    angle, Mxy falls by the share p e + q e² to second order; at 90 degrees p is 0, and d1 = 2 e². Outside the
    slice Mxy is 2 b. A refocusing pulse has b².
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
        f"{pulse.ptype} pulse with tb {pulse.tb:g}, n {pulse.n}, flip_angle_deg {pulse.flip_angle_deg:g}, "
        f"ftype {pulse.ftype}, "
        f"d1 {pulse.d1:g}, d2 {pulse.d2:g}"
    )
    b2 = (1 - math.cos(math.radians(pulse.flip_angle_deg))) / 2
    try:
        # "st" leaves the filter as it is. The pulse is real by design; what SigPy leaves in the imaginary
        # part is rounding.
        b = math.sqrt(b2) * slr.dzrf(pulse.n, pulse.tb, "st", pulse.ftype, *_ripples(pulse))
        rf = slr.b2rf(b).real
    except (ValueError, ArithmeticError, IndexError, np.linalg.LinAlgError) as error:
        raise ValueError(
            f"there is no {described} ({str(error).splitlines()[0]}): try a larger tb or another ftype"
        ) from None
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
        why = (
            f"at its centre it {done} {share:.0%} of what its flip angle promises, accepted is {least:.0%} "
            "or more"
        )
        raise ValueError(f"the {described} does not select a slice ({why}): try a larger tb or another ftype")
    inside = magnitude > magnitude.max() / 2
    phase = np.unwrap(np.angle(mxy[inside]))
    mxy = mxy * np.exp(
        -1j * np.polyval(np.polyfit(position[inside], phase, 1, w=magnitude[inside]), position)
    )
    for array in (rf, position, mxy, mz):
        array.flags.writeable = False
    return rf, position, mxy, mz
