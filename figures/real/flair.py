"""What thick slices cost in real FLAIR images, without a harmonizer.

    python figures/real/flair.py FLAIR.nii.gz ...

writes flair.csv: 3D images without skull, of 1 mm voxels, sliced in three orientations at the paper's eight
resolutions and brought back by cubic B-splines, against themselves. Inside the head, that is, where the image
is not zero.

The images of the table are those of patients 7 and 26 of 3D-MR-MS, in MNI space at 1 mm (Lesjak et al., "A
novel public MR image dataset of multiple sclerosis patients with lesion segmentations based on multi-rater
consensus", Neuroinformatics 16:51-63, 2018; CC BY). Their T1w and T2w were acquired as slices of 3 mm: they
are no 3D images, so HACA3 cannot be studied on them.
"""

import argparse
from pathlib import Path

import numpy as np
import pandas as pd

from helpers import grid, linear, volumes
from helpers.acquisition import degradation
from helpers.analysis import metrics
from helpers.study import ORIENTATIONS, RESOLUTIONS


def measure(path: Path) -> list[dict]:
    """A row per orientation and resolution."""
    image, affine = volumes.read(path)
    inside, peak, rows = image != 0, metrics.data_range(image), []
    for orientation in ORIENTATIONS:
        axis = grid.through_plane_axis(affine, orientation)
        for resolution in RESOLUTIONS:
            back = degradation.there_and_back(image.shape[axis], resolution)
            sliced = linear.along_axis(back, image, axis).astype(np.float32)
            about = {
                "image": path.name.split(".")[0],
                "orientation": orientation,
                "resolution": resolution.label,
            }
            psnr_db = metrics.psnr(image, sliced, peak, inside)
            rows.append({**about, "psnr_db": psnr_db, "ssim": metrics.ssim(image, sliced, peak, inside)})
    return rows


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("images", type=Path, nargs="+", metavar="FLAIR.nii.gz")
    rows = [row for path in parser.parse_args().images for row in measure(path)]
    pd.DataFrame(rows).round(4).to_csv(Path(__file__).with_name("flair.csv"), index=False)
