"""What super-resolution restores of subjects it has not seen, against other ways to bring slices back.

``python figures/super_resolution/gains.py``
    `make results` runs it: writes gains.csv, PSNR inside the brain of the study's subjects 1 to 3. 5||1.5 is
    restored by the shipped network; that of 3||0 is taught first, unless it is there.
``python figures/super_resolution/gains.py FLAIR.nii.gz ...``
    Adds 3D images of one's own (1 mm), inside the head: sagittal 5||1.5 and axial 3||0.
    The networks are the same ones, which have seen semi-synthetic brains only.
``python figures/super_resolution/gains.py teach 5,1.5 FILE.pt``
    Makes a network again: data/models/super-resolver.pt is the one of 5||1.5.

Each stack is a slab: 20 mm in the middle of the brain are scored, and as much around them is kept as the
network sees. So all is as in the whole stack but its scale, and takes seconds.

Columns: cubic B-spline, Tikhonov (least squares with small first differences, by the exact matrix), linear
estimate (what the network adds to), super-resolved, in dB; gain over cubic B-spline; and the error that
slicing the result again leaves, in dB below the largest value.
"""

import sys
from pathlib import Path

import numpy as np
import pandas as pd

from helpers import grid, layout, linear, super_resolution, volumes
from helpers.acquisition import degradation
from helpers.analysis import metrics
from helpers.cohort import phantom, scanners
from helpers.haca3 import slicing
from helpers.study import CONTRASTS, ORIENTATIONS, Resolution
from helpers.super_resolution.linear_estimate import estimate_matrix, tikhonov_matrix
from helpers.super_resolution.network import REACH
from helpers.volumes.files import write_bytes

HERE = Path(__file__).parent
TEACHERS, JUDGES = (100, 101), (1, 2, 3)
THICK, THIN = Resolution(5, 1.5), Resolution(3, 0)
#: Network -> the file that it is in, and what it was taught with.
FILES = {
    THICK: layout.MODELS / "super-resolver.pt",
    THIN: layout.DERIVATIVES / "super-resolution" / "3skip0.pt",
}
WIDTHS_AND_STEPS = {THICK: (32, 2500), THIN: (64, 800)}
SCORED_MM = 20


def teach(resolution: Resolution, path: Path) -> None:
    """Teach all stacks of the training subjects: contrasts and orientations."""
    stacks = []
    for number, seed in enumerate(TEACHERS):
        subject, scanner = phantom.subject(seed), scanners.scanner(f"train-{number}")
        for contrast in CONTRASTS:
            image = phantom.render(subject, scanner, contrast, 1)
            stacks += [
                degradation.degrade(image, subject.affine, orientation, resolution)
                for orientation in ORIENTATIONS
            ]
    channels, steps = WIDTHS_AND_STEPS[resolution]
    super_resolution.train(stacks, resolution, steps=steps, channels=channels).save(path)


def measure(image: np.ndarray, affine: np.ndarray, inside: np.ndarray, orientation: str, resolver) -> dict:
    """Scores of one slab, in dB."""
    axis, resolution = grid.through_plane_axis(affine, orientation), resolver.resolution
    across = min({0, 1, 2} - {axis})  # of the slab
    shown = np.flatnonzero(inside.any(axis=tuple({0, 1, 2} - {across})))
    begin = (int(shown[0]) + int(shown[-1]) - SCORED_MM) // 2
    reach = REACH
    slab = [slice(None)] * 3
    slab[across] = slice(begin - reach, begin + SCORED_MM + reach)
    scored = [slice(None)] * 3
    scored[across] = slice(reach, reach + SCORED_MM)
    slab, scored, peak = tuple(slab), tuple(scored), metrics.data_range(image)
    truth, inside = image[slab], inside[slab]
    stack, lr_affine = degradation.degrade(truth, affine, orientation, resolution)
    n = truth.shape[axis]
    volume, _ = super_resolution.super_resolve(stack, lr_affine, resolution, resolver, n)
    again = linear.along_axis(degradation.matrix(n, 1.0, resolution), volume, axis)
    ways = {
        "cubic_db": degradation.back_matrix(n, resolution),
        "tikhonov_db": tikhonov_matrix(n, resolution),
        "linear_db": estimate_matrix(n, resolution),
    }
    found = {name: linear.along_axis(matrix, stack, axis) for name, matrix in ways.items()}
    found["super_resolved_db"] = volume
    scores = {
        name: metrics.psnr(truth[scored], np.ascontiguousarray(made[scored]), peak, inside[scored])
        for name, made in found.items()
    }
    error = np.sqrt(np.mean((again - stack).astype(float) ** 2))
    return {
        **scores,
        "gain_db": scores["super_resolved_db"] - scores["cubic_db"],
        "consistency_db": 20 * np.log10(float(stack.max()) / error),
    }


def main(own: list[str]) -> None:
    resolvers, rows = {}, []
    for resolution, path in FILES.items():
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            teach(resolution, path)
        resolvers[resolution] = super_resolution.load(path, resolution)
    for number, seed in enumerate(JUDGES):
        subject, scanner = phantom.subject(seed), scanners.scanner(f"study-{seed}")
        for place, contrast in enumerate(CONTRASTS):
            # Each contrast in each orientation once.
            orientation = ORIENTATIONS[(number + place) % len(ORIENTATIONS)]
            image = phantom.render(subject, scanner, contrast, 1)
            for resolver in resolvers.values():
                scores = measure(image, subject.affine, subject.brain, orientation, resolver)
                what = [f"sim{seed:02d}", contrast, orientation, resolver.resolution.label]
                rows.append(dict(zip(("image", "contrast", "orientation", "resolution"), what)) | scores)
    for file in own:
        image, affine = volumes.read(file)
        inside = slicing.foreground(slicing.normalise(image)[0])
        for resolution, orientation in ((THICK, "sagittal"), (THIN, "axial")):
            scores = measure(image, affine, inside, orientation, resolvers[resolution])
            what = [Path(file).name.split(".")[0], "", orientation, resolution.label]
            rows.append(dict(zip(("image", "contrast", "orientation", "resolution"), what)) | scores)
    table = pd.DataFrame(rows).sort_values(["resolution", "image"], kind="stable")
    write_bytes(HERE / "gains.csv", table.round(2).to_csv(index=False).encode())
    print(table.round(2).to_string(index=False))


if __name__ == "__main__":
    if sys.argv[1:2] == ["teach"]:
        chosen = Resolution(*map(float, sys.argv[2].split(",")))
        teach(chosen, Path(sys.argv[3]))
    else:
        main(sys.argv[1:])
