"""The vocabulary of the study: contrasts, orientations, resolutions and Table 1.

Everything here is a name or a number of Hays et al., *Beyond MR Image Harmonization: Resolution
Matters Too* (2024). The module imports nothing of ours, so that everything else may import it.
"""

import difflib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from numbers import Real
from pathlib import Path

#: Where relative paths of weights start, and those of study files in a notebook.
REPOSITORY = Path(__file__).resolve().parents[3]

CONTRASTS = ("T1w", "T2w", "FLAIR")
#: What HACA3 can do without. Not T1w: it is what is registered to MNI, and what the brain is found in.
DROPPABLE = tuple(contrast for contrast in CONTRASTS if contrast != "T1w")
ORIENTATIONS = ("axial", "sagittal", "coronal")
TRANSFORMS = ("known", "rigid", "affine")
ANATOMIES = ("shared", "independent", "argmax")
MASKS = ("first", "union", "intersection")
REMEDIES = ("super-resolution", "fusion", "training")
#: Arm of the score table -> what was done about the resolution of the sources: each stack super-resolved, the
#: anatomies mixed by weights that know how the sources were sliced, and a network trained on sources that
#: differ in resolution.
ARMS = {
    "harmonized": (),
    "harmonized, super-resolved": ("super-resolution",),
    "harmonized, resolution-aware": ("fusion",),
    "harmonized, both": ("super-resolution", "fusion"),
    "harmonized, resolution-trained": ("training",),
}
#: Variant -> the mask of its published program.
VARIANTS = {"haca3": "first", "haca3plus": "union"}
PRECISIONS = ("float32", "bfloat16")
BRAINS = ("extract", "keep")
#: Harmonizers that come with the repository. All but the first are simple: each contrast by itself.
HARMONIZERS = ("haca3", "none", "histogram", "zscore", "nyul")
KEEP = ("all", "tables")

#: Smallest and largest thickness, spacing and voxel that a scan of a brain may have, mm.
PLAUSIBLE_MM = (0.1, 20.0)

#: Voxels of the grid on which a study computes: thinner slices than these cannot be simulated from them, mm.
GRID_MM = 1.0
#: Its voxels along the shortest side: a preview with a larger step would see one slice or none.
GRID_VOXELS = 192

#: Which of several images: entities, and ``no-<key>`` for one that its name must not have.
ENTITIES = re.compile(r"[A-Za-z]+-[A-Za-z0-9+]+(_[A-Za-z]+-[A-Za-z0-9+]+)*")

_RESOLUTION = re.compile(r"\s*(\d+(?:[.p]\d+)?)\s*(?:\|\||‖|skip)\s*(\d+(?:[.p]\d+)?)\s*")


@dataclass(frozen=True)
class Resolution:
    """Through-plane resolution of a stack of 2D slices.

    Parameters
    ----------
    thickness_mm : float
        Slice thickness in mm: full width at half maximum of the slice profile. Within `PLAUSIBLE_MM`.
    gap_mm : float
        Slice gap in mm: distance between neighbouring slices minus thickness. From 0 to the largest of
        `PLAUSIBLE_MM`.

    Raises
    ------
    ValueError
        If the thickness or the gap is no number or outside of these limits.

    Examples
    --------
    >>> Resolution(5, 1.5).label, Resolution(5, 1.5).slug, Resolution(5, 1.5).separation_mm
    ('5||1.5', '5skip1p5', 6.5)
    """

    thickness_mm: float
    gap_mm: float

    def __post_init__(self):
        for name, low in (("thickness_mm", PLAUSIBLE_MM[0]), ("gap_mm", 0)):
            value, high = getattr(self, name), PLAUSIBLE_MM[1]
            if isinstance(value, bool) or not isinstance(value, Real) or not low <= value <= high:
                raise ValueError(f"{name} is {value}: accepted is a number of mm from {low:g} to {high:g}")
            # 5 and 5.0 are the same thickness, and must look the same in a sidecar.
            object.__setattr__(self, name, float(value))

    @property
    def separation_mm(self) -> float:
        """Distance between the centres of neighbouring slices, in mm."""
        # Decimal-looking inputs such as 4 and 1.2 should give 5.2, not 5.200000000000001.
        return round(self.thickness_mm + self.gap_mm, 9)

    @property
    def label(self) -> str:
        """The paper's notation, ``"5||1.5"``."""
        return f"{self.thickness_mm:g}||{self.gap_mm:g}"

    @property
    def slug(self) -> str:
        """The same for file names, ``"5skip1p5"``: letters and digits only, as BIDS demands."""
        return f"{self.thickness_mm:g}skip{self.gap_mm:g}".replace(".", "p")

    @classmethod
    def parse(cls, text: str) -> "Resolution":
        """Read ``"5||1.5"`` or ``"5skip1p5"``.

        Raises
        ------
        ValueError
            If the text is neither, or names an impossible thickness or gap.
        """
        match = _RESOLUTION.fullmatch(str(text))
        try:
            if match:
                return cls(*(float(number.replace("p", ".")) for number in match.groups()))
        except ValueError:
            pass  # The limits are said below, with the text as it was given.
        least, most = PLAUSIBLE_MM
        raise ValueError(
            f"resolution {text!r} is {'impossible' if match else 'unknown'}: accepted is thickness||gap in "
            f"mm, as in '5||1.5' or '5skip1p5', the thickness from {least:g} (in a study {GRID_MM:g}) to "
            f"{most:g} and the gap from 0 to {most:g}"
        )


#: The eight resolutions in the paper's order. Their separations are 3, 4, 4, 5, 5.2, 5, 6, 6.5 mm: not
#: monotone.
RESOLUTIONS = tuple(
    Resolution(*pair) for pair in ((3, 0), (3, 1), (4, 0), (4, 1), (4, 1.2), (5, 0), (5, 1), (5, 1.5))
)

#: Table 1: experiment -> contrast -> orientation of the 2D acquisition, or "3D" for the 1 mm isotropic image.
EXPERIMENTS = {
    "1a": {"T1w": "axial", "T2w": "axial", "FLAIR": "axial"},
    "1b": {"T1w": "sagittal", "T2w": "sagittal", "FLAIR": "sagittal"},
    "1c": {"T1w": "coronal", "T2w": "coronal", "FLAIR": "coronal"},
    "2": {"T1w": "axial", "T2w": "sagittal", "FLAIR": "coronal"},
    "3": {"T1w": "3D", "T2w": "axial", "FLAIR": "axial"},
    "4": {"T1w": "3D", "T2w": "sagittal", "FLAIR": "coronal"},
    "5": {"T1w": "axial", "T2w": "axial", "FLAIR": "3D"},
    "6": {"T1w": "sagittal", "T2w": "coronal", "FLAIR": "3D"},
}

#: The experiments whose three sources are cut alike.
ONE_ORIENTATION = ("1a", "1b", "1c")


def require(name: str, value, accepted: Iterable):
    """Return `value` if it is one of `accepted`, else raise one line that says what is.

    Papermill turns ``-p experiment 2`` into the integer 2, so values are compared as text and the
    accepted spelling is returned.

    Raises
    ------
    ValueError
        If it is none of them.

    Examples
    --------
    >>> require("experiment", 2, EXPERIMENTS)
    '2'
    """
    accepted = tuple(accepted)
    for known in accepted:
        if str(known) == str(value):
            return known
    raise ValueError(f"{name} is {value!r}: accepted are {', '.join(map(str, accepted))}")


def require_keys(where: str, values: Iterable[str], known: Iterable[str]) -> None:
    """Raise one line that names the nearest known key, and all of them, if one of `values` is none of them.

    Raises
    ------
    ValueError
        Naming where the key stands, the key, and what is accepted.
    """
    known = list(known)
    for key in values:
        if key not in known:
            near = difflib.get_close_matches(key, known, 1)
            hint = f"did you mean {near[0]}? " if near else ""
            raise ValueError(f"{where}: unknown key {key!r}: {hint}accepted are {', '.join(known)}")


#: All three sources are the 3D images: harmonized, they are the ground truth of the eight experiments.
GROUND_TRUTH = "3D"


def sources(experiment: str) -> dict[str, str]:
    """Contrast -> orientation or ``"3D"`` of the sources of an experiment, `GROUND_TRUTH` included."""
    experiment = require("experiment", experiment, (*EXPERIMENTS, GROUND_TRUTH))
    return EXPERIMENTS.get(experiment, dict.fromkeys(CONTRASTS, "3D"))


def visited_slices(n: int, step: int) -> range:
    """Indices of the slices that a preview visits: every `step`-th of `n`, none of them at the rim.

    Examples
    --------
    >>> list(visited_slices(40, 11))
    [5, 16, 27, 38]
    """
    return range(step // 2, n, step)
