"""Draw the tissue fractions of the embedded brains in three planes: `python data/anatomy/draw.py` writes
fractions.png."""

import matplotlib

from helpers import layout
from helpers.cohort import figures as cohort_figures, phantom
from helpers.grid import upright

#: One slice a plane: through the lateral ventricles, the deep grey matter and the cerebellum.
SLICES = {"axial": 82, "coronal": 118, "sagittal": 80}


def main():
    matplotlib.use("Agg")
    images = {
        (f"{name}\n{plane}", tissue): upright(fraction, plane, index)
        for name in phantom.ANATOMIES
        for plane, index in SLICES.items()
        for tissue, fraction in phantom.anatomy(name).items()
    }
    fig, _ = cohort_figures.contact_sheet(images, vmax=1)
    fig.savefig(layout.ANATOMY / "fractions.png", dpi=70)


if __name__ == "__main__":
    main()
