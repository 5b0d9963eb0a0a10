"""Where things are: the repository's folders and the BIDS names of everything that a study writes."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
ANATOMY = ROOT / "data" / "anatomy"
MODELS = ROOT / "data" / "models"
DERIVATIVES = ROOT / "data" / "derivatives"
NOTEBOOKS = ROOT / "notebooks"
FIGURES = ROOT / "figures"

SPACE = "MNI152NLin2009aSym"


def image(root, subject: int, suffix: str, *, desc: str, acq: str | None = None, rec: str | None = None, res: str | None = None) -> Path:
    """Path of one image of a study.

    Parameters
    ----------
    root : str or Path
        Folder of the study's derivatives.
    subject : int
        Number of the subject; 1 becomes ``sub-01``.
    suffix : str
        Contrast (``T1w``, ``T2w``, ``FLAIR``) or ``mask``.
    desc : str
        Stage that made it, e.g. ``degraded``.
    acq : str, optional
        Orientation of a simulated 2D acquisition.
    rec : str, optional
        Experiment of Table 1 for a harmonized image.
    res : str, optional
        Resolution slug.

    Examples
    --------
    >>> image("x", 1, "T1w", desc="registered", acq="axial", res="5skip1p5").name
    'sub-01_acq-axial_space-MNI152NLin2009aSym_res-5skip1p5_desc-registered_T1w.nii.gz'
    """
    entities = {"sub": f"{subject:02d}", "acq": acq, "rec": rec, "space": SPACE, "res": res, "desc": desc}
    name = "_".join(f"{key}-{value}" for key, value in entities.items() if value is not None)
    return Path(root) / f"sub-{subject:02d}" / "anat" / f"{name}_{suffix}.nii.gz"
