"""The time that a protocol takes: a model of a 2D multi-slice (turbo) spin echo by its timing diagram [1]_.

References
----------
.. [1] Bernstein, King, Zhou (2004). Handbook of MRI pulse sequences. Elsevier: "Two-dimensional acquisition"
   and "RARE".
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd

from helpers.study import ORIENTATIONS, Resolution, require


def require_number(name: str, value, low: float, above: bool = False):
    """Return `value` if it is a finite number from `low`, or greater than `low`; else raise ValueError."""
    good = isinstance(value, (int, float, np.number)) and not isinstance(value, bool) and math.isfinite(value)
    if not good or not (value > low if above else value >= low):
        raise ValueError(
            f"{name} is {value!r}: accepted are numbers {'greater than' if above else 'from'} {low:g}"
        )
    return value


@dataclass(frozen=True)
class ScanTime:
    """How long a 2D multi-slice (turbo) spin echo of one contrast takes.

    Within each TR the scanner goes from slice to slice. A slice keeps it busy for the echo train, which ends
    at the echo spacing times the echo train length and not before the echo time, and for an overhead:
    excitation, spoilers, fat saturation, in FLAIR the inversion pulse of another slice. As many slices as fit
    are acquired together; if there are more, the acquisition is repeated for the rest (concatenations). Each
    repetition takes a TR for every train of phase-encoding lines.

    Left out: dummy repetitions and calibration (some seconds), limits by SAR, partial Fourier. A longer TR in
    place of a second concatenation, which scanners offer, changes contrast and is not considered.

    Parameters
    ----------
    tr_ms, te_ms, echo_spacing_ms : float
        Repetition time, echo time, spacing of the echoes, ms.
    etl : int
        Echo train length; 1 is a conventional spin echo.
    overhead_ms : float
        Overhead per slice and train.
    averages : int
        Number of signal averages.
    acceleration : float
        By parallel imaging, 1 or more.
    oversampling : float
        Additional phase-encoding lines against wrap-around, as a fraction.
    """

    tr_ms: float
    te_ms: float
    echo_spacing_ms: float
    etl: int = 1
    overhead_ms: float = 15.0
    averages: int = 1
    acceleration: float = 1.0
    oversampling: float = 0.0

    def __post_init__(self):
        least = dict.fromkeys(("tr_ms", "te_ms", "echo_spacing_ms", "overhead_ms", "oversampling"), 0)
        least |= dict.fromkeys(("etl", "averages", "acceleration"), 1)
        for name, low in least.items():
            value = getattr(self, name)
            require_number(name, value, low, above=name in ("tr_ms", "te_ms", "echo_spacing_ms"))
            if name in ("etl", "averages") and value != int(value):
                raise ValueError(f"{name} is {value}: accepted are whole numbers")
        if self.slices_per_tr < 1:
            raise ValueError(
                f"tr_ms is {self.tr_ms:g}: accepted are {self.busy_ms:g} or more, which a single slice takes"
            )

    @property
    def busy_ms(self) -> float:
        """How long a slice keeps the scanner busy within a TR, ms."""
        return max(self.te_ms, self.etl * self.echo_spacing_ms) + self.overhead_ms

    @property
    def slices_per_tr(self) -> int:
        """As many slices as fit into a TR."""
        return math.floor(self.tr_ms / self.busy_ms + 1e-9)

    def minutes(self, slices: int, lines: int) -> float:
        """Scan time of a stack.

        Parameters
        ----------
        slices : int
            See `slices_for`.
        lines : int
            Phase-encoding lines of a slice, before oversampling and acceleration.

        Examples
        --------
        >>> sequence = ScanTime(tr_ms=3000, te_ms=100, echo_spacing_ms=10, etl=10, overhead_ms=0)
        >>> sequence.minutes(slices=45, lines=200)
        2.0
        """
        trains = math.ceil(lines * (1 + self.oversampling) / (self.etl * self.acceleration) - 1e-9)
        concatenations = math.ceil(slices / self.slices_per_tr)
        return self.tr_ms * trains * concatenations * self.averages / 60_000


#: Sequences that serve as an example. The values are ours, typical of 1.5 and 3 T, and not the trial's: put
#: in your scanner's.
SEQUENCES = {
    "T1w": ScanTime(tr_ms=550, te_ms=10, echo_spacing_ms=10, etl=1),
    "T2w": ScanTime(tr_ms=4500, te_ms=100, echo_spacing_ms=10, etl=16),
    "FLAIR": ScanTime(tr_ms=9000, te_ms=120, echo_spacing_ms=10, etl=18, overhead_ms=25.0),
}

#: What slices of each orientation have to cover, and the field of view along the phase encoding: an adult
#: head with some margin, mm.
COVERAGE_MM = {"axial": 150.0, "sagittal": 160.0, "coronal": 190.0}
PHASE_MM = {"axial": 200.0, "sagittal": 240.0, "coronal": 200.0}


def slices_for(coverage_mm: float, resolution: Resolution) -> int:
    """Number of slices from whose first edge to whose last edge at least `coverage_mm` lie.

    Examples
    --------
    >>> slices_for(150, Resolution(5, 1)), slices_for(150, Resolution(3, 0))
    (26, 50)
    """
    require_number("coverage_mm", coverage_mm, 0, above=True)
    beyond = (coverage_mm - resolution.thickness_mm) / resolution.separation_mm
    return max(1, math.ceil(beyond - 1e-9) + 1)


def relative_snr(thickness_mm, averages: int = 1, acceleration: float = 1.0) -> float:
    """Signal-to-noise ratio relative to a 1 mm slice with one average and the same in-plane sampling.

    It grows with the voxel and with the root of the time in which the slice is sampled [1]. The gap does not
    enter, nor does the g-factor. The scores of the study know nothing of it: its slices are averages of a
    nearly noise-free 3D image.
    """
    return thickness_mm * math.sqrt(averages / acceleration)


def scan_times(
    protocols: pd.DataFrame,
    sequences: Mapping[str, ScanTime] = SEQUENCES,
    coverage_mm: Mapping[str, float] = COVERAGE_MM,
    phase_mm: Mapping[str, float] = PHASE_MM,
    inplane_mm: float = 1.0,
) -> pd.DataFrame:
    """Add to protocols their cost: slices, minutes of each contrast and of all.

    Parameters
    ----------
    protocols : DataFrame
        ``orientation``, ``thickness_mm``, ``gap_mm``.
    sequences : dict
        Contrast -> `ScanTime`.
    coverage_mm, phase_mm : dict
        Orientation -> what the slices cover, and the field of view along the phase encoding, mm.
    inplane_mm : float
        Resolution along the phase encoding.

    Returns
    -------
    DataFrame
        The protocols with ``slices``, ``minutes_<contrast>`` and ``minutes``.
    """
    require_number("inplane_mm", inplane_mm, 0, above=True)
    rows = []
    for protocol in protocols.itertuples():
        plane = require("orientation", protocol.orientation, ORIENTATIONS)
        slices = slices_for(coverage_mm[plane], Resolution(protocol.thickness_mm, protocol.gap_mm))
        lines = math.ceil(require_number("phase_mm", phase_mm[plane], 0, above=True) / inplane_mm - 1e-9)
        rows.append(
            {
                "slices": slices,
                **{
                    f"minutes_{name}": sequence.minutes(slices, lines) for name, sequence in sequences.items()
                },
            }
        )
    times = pd.DataFrame(rows, index=protocols.index)
    return protocols.join(times.assign(minutes=times.drop(columns="slices").sum(axis=1)))
