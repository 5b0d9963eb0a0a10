"""What the shipped network makes of thick slices: the table of its model card.

Fidelity: subjects whom training has not seen, on scanners that it has not seen, harmonized to other unseen
scanners. All three sources are the 3D images, or the same 2D acquisition of them brought back to 1 mm; the
truth is the target scanner's noise-free image along the same path. A network that changes the contrast and
keeps the resolution scores as well on thick slices as on 3D images.

Ventricles: their mean intensity over that of white matter, harmonized over true. 1 where fluid stays fluid.

    python tests/instrument.py data/models/harmonizer-small.pt data/models/fidelity.csv
"""

import argparse
import itertools
from pathlib import Path

import numpy as np
import pandas as pd

from helpers import grid, haca3, linear
from helpers.acquisition import degradation
from helpers.analysis import metrics
from helpers.cohort import phantom
from helpers.study import CONTRASTS, ORIENTATIONS, Resolution

SUBJECTS = {12: "S1", 15: "Colin27"}
STRANGERS = {12: 13, 15: 14}  # of the other brain: whose images describe the target's contrast
PAIRS = (("test-6", "test-0"), ("test-10", "test-9"))
THICK = [(o, Resolution(*r)) for r in ((3, 0), (5, 1.5)) for o in ORIENTATIONS]
STEP = 23


def along(volume: np.ndarray, path: tuple[str, Resolution] | None) -> np.ndarray:
    """A 3D image as thick slices show it, shape and units kept; `path` is orientation and resolution."""
    if path is None:
        return volume
    axis = grid.AXIS[path[0]]
    return linear.along_axis(degradation.there_and_back(volume.shape[axis], path[1]), volume, axis)


def label(path: tuple[str, Resolution] | None) -> str:
    return "3D" if path is None else f"{path[0]} {path[1].label}"


def measure(model, subject: int, pair: tuple[str, str], paths, planes=ORIENTATIONS, step=STEP) -> list[dict]:
    """Rows (subject, anatomy, pair, plane, sources, contrast, psnr_db, ventricles) of one pair of scanners.

    Parameters
    ----------
    model : helpers.haca3.harmonizer.Harmonizer
    subject : int
        Seed of the phantom.
    pair : (str, str)
        Source and target scanner.
    paths : sequence of (str, Resolution) or None
        What the sources went through.
    planes : sequence of str
        Of the network's slices.
    step : int
        Every n-th slice is harmonized.
    """
    person = phantom.subject(subject)
    stranger = phantom.subject(STRANGERS[subject])
    source, target = map(phantom.scanner, pair)
    given = {c: phantom.render(person, source, c, 1) for c in CONTRASTS}
    truth = {c: phantom.render(person, target, c) for c in CONTRASTS}
    aims = {c: model.target(phantom.render(stranger, target, c, 2)) for c in CONTRASTS}
    fluid, white = person.fractions["VCSF"] > 0.95, person.fractions["WM"] > 0.95

    def ratio(volume, seen):
        return volume[fluid & seen].mean() / volume[white & seen].mean()

    rows = []
    for path, plane in itertools.product(paths, planes):
        sources = {c: along(image, path) for c, image in given.items()}
        images = model.harmonize(sources, aims, mask="union", slice_step=step, orientations=(plane,)).images
        for c, image in images.items():
            wanted = along(truth[c], path)
            seen = person.brain & np.isfinite(image)

            rows.append(
                {
                    "subject": subject,
                    "anatomy": person.anatomy,
                    "pair": " → ".join(pair),
                    "plane": plane,
                    "sources": label(path),
                    "contrast": c,
                    "psnr_db": metrics.psnr(wanted, np.nan_to_num(image), truth[c][person.brain].max(), seen),
                    "ventricles": ratio(image, seen) / ratio(wanted, seen),
                }
            )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("weights", type=Path)
    parser.add_argument("table", type=Path)
    options = parser.parse_args()
    model = haca3.load(options.weights, device="cpu", compiled=True)
    rows = []
    for subject, pair in itertools.product(SUBJECTS, PAIRS):
        rows += measure(model, subject, pair, [None, *THICK])
    table = pd.DataFrame(rows)
    table.round(4).to_csv(options.table, index=False)
    print(table.pivot_table("psnr_db", ["plane", "sources"], ["anatomy", "contrast"]).round(1))
    print(table.pivot_table("ventricles", ["plane", "sources"], ["anatomy", "contrast"]).round(2))


if __name__ == "__main__":
    main()
