"""Simulated scanners: sequence parameters, and the signal that a sequence gets from a tissue.

A scanner is a set of sequence parameters, which vary as between the sites of a trial. T1w, T2w and FLAIR
follow from tissue T1, T2 and proton density by the signal equation of each contrast.

Tissue parameters are those of 3 T (at 1.5 T tissue T1 is shorter, see `relaxation`), rounded from Stanisz et
al., Magn Reson Med 54:507 (2005); Wansapura et al., J Magn Reson Imaging 9:531 (1999); Lu et al., J Magn
Reson Imaging 22:13 (2005). The two first differ by 30 % in T1 of white matter (1084 against 832 ms); values
between the two are used. Proton densities, and all values of lesions, deep grey matter and cerebellum, are
chosen within what is usual, so that contrasts to white matter come out as in two real patients
(``data/README.md``).
"""

import math
import re
import zlib
from dataclasses import dataclass

import numpy as np

from helpers.study import CONTRASTS

#: T1 in ms, T2 in ms, proton density relative to water, at 3 T.
RELAXATION = {
    "CGM": (1400.0, 90.0, 0.82),
    "WM": (900.0, 72.0, 0.71),
    "SGM": (1180.0, 73.0, 0.79),
    "CBM": (1350.0, 88.0, 0.82),
    "VCSF": (4200.0, 1800.0, 1.00),
    "CSF": (4200.0, 1800.0, 1.00),
    "lesion": (1350.0, 108.0, 0.85),
}
FLUIDS = ("VCSF", "CSF")


@dataclass(frozen=True)
class Scanner:
    """Sequence parameters of one scanner. Times in ms, angles in degrees.

    Parameters
    ----------
    name : str
        Its name, which alone decides all the rest.
    field_t : float
        Field strength in tesla, 1.5 or 3.
    t1w : dict
        Of an MPRAGE: ``tr`` between inversions, ``ti`` from inversion to the centre of k-space, ``flip``,
        ``echo_spacing``, ``echoes``. Of a spoiled gradient echo, which has no inversion: ``tr``, ``flip``.
    tse : dict
        ``tr``, ``te`` (effective), ``train`` (duration of the echo train).
    flair : dict
        ``tr``, ``ti``, ``te`` (effective), ``train``.
    gain : dict of str to float
        Signal to image intensity, per contrast.
    snr : dict of str to float
        White matter signal over the standard deviation of the noise in each receiver channel, per contrast.
    bias : float
        Standard deviation of the logarithm of the bias field that correction left over.
    """

    name: str
    field_t: float
    t1w: dict
    tse: dict
    flair: dict
    gain: dict
    snr: dict
    bias: float


def mprage_signal(t1, density, *, tr, ti, flip, echo_spacing, echoes):
    """Steady-state MPRAGE signal at the centre of k-space, unitless; negative before the null of the
    inversion.

    Inversion, a delay, `echoes` small flips of which the middle one sees the centre of k-space, a delay up to
    `tr`. During the read-out the magnetization relaxes with T1* towards M0* (Deichmann et al., NeuroImage
    12:112, 2000, eqs. 1-4).

    Parameters
    ----------
    t1 : float or ndarray
        In ms.
    density : float or ndarray
        Proton density relative to water.
    tr, ti, flip, echo_spacing, echoes : float
        As in `Scanner`.

    Examples
    --------
    >>> sequence = dict(tr=2300, ti=900, flip=9, echo_spacing=7, echoes=176)
    >>> bool(mprage_signal(900., .7, **sequence) > mprage_signal(1450., .82, **sequence))
    True
    """
    angle = math.radians(flip)
    half = echo_spacing * echoes / 2
    t1_star = 1 / (1 / t1 - math.log(math.cos(angle)) / echo_spacing)
    m0_star = density * (1 - np.exp(-echo_spacing / t1)) / (1 - np.exp(-echo_spacing / t1_star))

    # Each leg of the cycle is m -> target + (m - target) * decay; inversion is m -> -m.
    before = np.exp(-(ti - half) / t1)
    reading = np.exp(-half / t1_star)
    after = np.exp(-(tr - ti - half) / t1)
    legs = ((density, before), (m0_star, reading), (m0_star, reading), (density, after))
    offset, slope = 0.0, -1.0
    for target, decay in legs:
        offset, slope = target + (offset - target) * decay, slope * decay
    start = offset / (1 - slope)
    centre = -start
    for target, decay in legs[:2]:
        centre = target + (centre - target) * decay
    return centre * math.sin(angle)


def spgr_signal(t1, density, *, tr, flip):
    """Spoiled gradient echo in its steady state, unitless: Ernst and Anderson, Rev Sci Instrum 37:93 (1966).

    Parameters
    ----------
    t1 : float or ndarray
        In ms.
    density : float or ndarray
        Proton density relative to water.
    tr, flip : float
        As in `Scanner`.
    """
    angle, e1 = math.radians(flip), np.exp(-tr / t1)
    return density * math.sin(angle) * (1 - e1) / (1 - e1 * math.cos(angle))


def tse_signal(t1, t2, density, *, tr, te, train):
    """Turbo spin echo signal, unitless: saturation recovery after the train, spin echo at the effective echo
    time.

    Bernstein, King and Zhou, Handbook of MRI Pulse Sequences (2004), section 16.4.

    Parameters
    ----------
    t1, t2 : float or ndarray
        In ms.
    density : float or ndarray
        Proton density relative to water.
    tr, te, train : float
        In ms, as in `Scanner`.
    """
    return density * (1 - np.exp(-(tr - train) / t1)) * np.exp(-te / t2)


def flair_signal(t1, t2, density, *, tr, ti, te, train):
    """Inversion-recovery turbo spin echo, unitless; negative before the null of the inversion.

    Rydberg et al., Radiology 193:173 (1994): the magnetization is zero at the end of the train, recovers, is
    inverted, and recovers for `ti`.

    Parameters
    ----------
    t1, t2 : float or ndarray
        In ms.
    density : float or ndarray
        Proton density relative to water.
    tr, ti, te, train : float
        In ms, as in `Scanner`.
    """
    return density * (1 - 2 * np.exp(-ti / t1) + np.exp(-(tr - train) / t1)) * np.exp(-te / t2)


def fluid_null(t1, tr, train):
    """Inversion time in ms that nulls a fluid of `t1` ms in `flair_signal`."""
    return t1 * math.log(2 / (1 + math.exp(-(tr - train) / t1)))


def relaxation(tissue: str, field_t: float) -> tuple[float, float, float]:
    """T1 in ms, T2 in ms and proton density of a tissue at a field strength.

    T1 of tissue grows with the field to the power of 0.38, that of fluid does not (Rooney et al., Magn Reson
    Med 57:308, 2007); T2 is nearly the same at 1.5 and 3 T (Stanisz et al. 2005).

    Parameters
    ----------
    tissue : str
        A key of `RELAXATION`.
    field_t : float
        In tesla.
    """
    t1, t2, density = RELAXATION[tissue]
    return t1 if tissue in FLUIDS else t1 * (field_t / 3) ** 0.38, t2, density


def signal(scanner: Scanner, contrast: str, t1, t2, density):
    """Signed signal, before the scanner's gain: where tissues of opposite sign share a voxel, they cancel.

    Raises
    ------
    ValueError
        If the contrast has no signal equation.
    """
    if contrast == "T1w":
        return (mprage_signal if "ti" in scanner.t1w else spgr_signal)(t1, density, **scanner.t1w)
    if contrast == "T2w":
        return tse_signal(t1, t2, density, **scanner.tse)
    if contrast == "FLAIR":
        return flair_signal(t1, t2, density, **scanner.flair)
    raise ValueError(f"contrast is {contrast!r}: accepted are T1w, T2w and FLAIR, which have an equation")


def white_matter_intensity(scanner: Scanner, contrast: str) -> float:
    """Image intensity of white matter."""
    return scanner.gain[contrast] * float(signal(scanner, contrast, *relaxation("WM", scanner.field_t)))


def scanner(name: str) -> Scanner:
    """The scanner of that name.

    Sequences vary as they do between sites of a clinical trial: 1.5 and 3 T, MPRAGE and spoiled gradient
    echo, proton-density leaning to heavily T2-weighted turbo spin echo, FLAIR of short and long repetition
    time. Between two of them, images of one subject that are scaled to the same 95th percentile differ by a
    median of 28 (T1w), 23 (T2w) and 27 dB (FLAIR).

    Parameters
    ----------
    name : str
        ``study-1`` to ``study-10``, ``target``, ``test-<n>`` or ``train-<n>`` with n = 0, 1, 2, and so on.

    Returns
    -------
    Scanner
        The same one for the same name, another one for every other name.

    Raises
    ------
    ValueError
        If there is no scanner of that name.
    """
    if not re.fullmatch(r"study-([1-9]|10)|target|(test|train)-(0|[1-9]\d*)", str(name)):
        raise ValueError(
            f"scanner is {name!r}: accepted are study-1 to study-10, target, test-<n> and train-<n> with n "
            "= 0, 1, 2, and so on"
        )
    # A checksum, since Python's own hash of a text differs from process to process.
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    uniform = rng.uniform

    field_t = 1.5 if rng.random() < 0.4 else 3.0
    if rng.random() < 0.6:
        spacing, echoes = uniform(6, 9), int(rng.integers(90, 193))
        half = spacing * echoes / 2
        ti = uniform(max(half + 30, 600), 1150)
        t1w = dict(
            tr=ti + half + uniform(300, 1200), ti=ti, flip=uniform(6, 13), echo_spacing=spacing, echoes=echoes
        )
    else:
        t1w = dict(tr=uniform(8, 30), flip=uniform(16, 30))
    tse = dict(tr=uniform(2200, 7000), te=uniform(65, 125), train=uniform(120, 350))
    flair = dict(tr=uniform(5000, 11500), te=uniform(75, 155), train=uniform(200, 600))
    # Nulling is never perfect: flow, and a T1 of fluid of the site's own choosing. A late TI leaves fluid
    # positive.
    flair["ti"] = fluid_null(RELAXATION["CSF"][0] * uniform(1.02, 1.20), flair["tr"], flair["train"])

    result = Scanner(
        name=name,
        field_t=field_t,
        t1w=t1w,
        tse=tse,
        flair=flair,
        gain=dict.fromkeys(CONTRASTS, 1.0),
        snr={"T1w": uniform(25, 45), "T2w": uniform(20, 40), "FLAIR": uniform(18, 35)},
        bias=uniform(0.01, 0.04),
    )
    spans = ((350, 700), (180, 380), (200, 420))
    white = {contrast: uniform(*span) for contrast, span in zip(CONTRASTS, spans, strict=True)}
    result.gain.update(
        {contrast: white[contrast] / white_matter_intensity(result, contrast) for contrast in CONTRASTS}
    )
    return result
