"""What the shipped network makes of thick slices and of scanners: the tables of its model card.

Subjects whom training has not seen, one of each embedded brain, on scanners that it has not seen, are
harmonized to other unseen scanners, which are known from images of another person. Sources are the 3D images
or one 2D acquisition of all three brought back to 1 mm (a path). The truth is the target scanner's
noise-free image along the same path: a network that changes the contrast and keeps the resolution scores as
well on thick slices as on 3D images.

    python tests/instrument.py data/models/harmonizer-small.pt data/models

writes four tables into the folder: ``fidelity.csv`` (PSNR and the brightness of the ventricles, by path and
plane), ``mixed.csv`` (sources that differ in resolution, as in experiments 2 to 6 of the study, against the
sharp truth), ``pairs.csv`` (sharp images, with and without harmonizer, and without sources) and
``scanners.csv`` (how well images of one subject by eight scanners agree). With ``--label-maps FILE FILE …``,
brain label maps in FreeSurfer's numbers such as the training maps of SynthSeg, also ``people.csv``: sharp
images of people whose brains no training has seen.
"""

import argparse
import itertools
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
from scipy import ndimage

from helpers import drawing, grid, haca3, layout, linear
from helpers.acquisition import degradation
from helpers.analysis import metrics
from helpers.cohort import phantom, scanners
from helpers.haca3 import slicing
from helpers.study import CONTRASTS, EXPERIMENTS, ORIENTATIONS, Resolution

SUBJECTS = (12, 15)  # of S1, of Colin27
STRANGERS = {12: 13, 15: 14}  # of the other brain: whose images describe the target's contrast
PAIRS = (("test-6", "test-0"), ("test-10", "test-9"))
#: Those of test-0 to test-19 between which every contrast is at most 22 dB apart after HACA3's scaling.
ALL_PAIRS = (
    ("test-6", "test-0"),
    ("test-6", "test-11"),
    ("test-10", "test-9"),
    ("test-11", "test-6"),
    ("test-12", "test-18"),
    ("test-16", "test-0"),
)
THICK = [(o, Resolution(*r)) for r in ((3, 0), (5, 1.5)) for o in ORIENTATIONS]
PATHS = [None, *THICK, ("axial", Resolution(4, 0))]
STEP = 23  # every n-th slice is harmonized
#: FreeSurfer's numbers of the tissues of an embedded brain; fluid is what remains of the mask.
LABELS = {
    "WM": (2, 41, 7, 46, 16),
    "CGM": (3, 42),
    "CBM": (8, 47),
    "SGM": (*range(10, 14), 17, 18, 26, 28, *range(49, 55), 58, 60),
    "VCSF": (4, 5, 43, 44),
}


def label(path: tuple[str, Resolution] | None) -> str:
    return "3D" if path is None else f"{path[0]} {path[1].label}"


def along(volume: np.ndarray, path: tuple[str, Resolution] | None) -> np.ndarray:
    """A 3D image as thick slices show it, shape and units kept; `path` is orientation and resolution."""
    if path is None:
        return volume
    axis = grid.AXIS[path[0]]
    return linear.along_axis(degradation.there_and_back(volume.shape[axis], path[1]), volume, axis)


def images(person: phantom.Subject, scanner: str, noise: int | None = None) -> dict[str, np.ndarray]:
    return {c: phantom.render(person, scanners.scanner(scanner), c, noise) for c in CONTRASTS}


def targets(model, stranger: phantom.Subject, scanner: str) -> dict:
    """A scanner's contrast, known from a stranger's images."""
    return {c: model.target(image) for c, image in images(stranger, scanner, 2).items()}


def scaled(image: np.ndarray, target) -> np.ndarray:
    """HACA3's scaling alone: what a harmonizer has to beat."""
    return slicing.normalise(image)[0] * target.norm


def ratio(image: np.ndarray, part: np.ndarray, white: np.ndarray) -> float:
    """Mean of a part over that of white matter."""
    return float(image[part].mean() / image[white].mean())


def brain_psnr_db(person: phantom.Subject, truth: np.ndarray, image: np.ndarray, seen: np.ndarray) -> float:
    """PSNR in the seen part of the brain; the peak is that of the truth in the whole brain."""
    return metrics.psnr(truth, np.nan_to_num(image), truth[person.brain].max(), seen)


def fidelity(model, person, stranger, pair, paths, planes=ORIENTATIONS, step=STEP) -> list[dict]:
    """A row per path, plane and contrast: PSNR in dB inside the brain, and how bright ventricles and lesions
    are against white matter, harmonized over true (1: as they are)."""
    given, truth = images(person, pair[0], 1), images(person, pair[1])
    aims = targets(model, stranger, pair[1])
    parts = {"ventricles": person.fractions["VCSF"] > 0.95, "lesions": person.lesions}
    white, rows = person.fractions["WM"] > 0.95, []
    for path, plane in itertools.product(paths, planes):
        sources = {c: along(image, path) for c, image in given.items()}
        options = {"mask": "union", "slice_step": step, "orientations": (plane,)}
        for c, image in model.harmonize(sources, aims, **options).images.items():
            wanted, seen = along(truth[c], path), person.brain & np.isfinite(image)
            row = {"anatomy": person.anatomy, "pair": " → ".join(pair), "plane": plane}
            row |= {"sources": label(path), "contrast": c}
            peak = truth[c][person.brain].max()
            row["psnr_db"] = metrics.psnr(wanted, np.nan_to_num(image), peak, seen)
            for name, part in parts.items():
                there = part & seen, white & seen
                row[name] = ratio(image, *there) / ratio(wanted, *there)
            rows.append(row)
    return rows


def labelled(file: Path) -> phantom.Subject:
    """A person from a map of hard labels of 1 mm: edges softened by 0.5 mm, no lesions, no variation within a
    tissue, the mask made as those of the embedded brains."""
    sys.path.append(str(layout.ANATOMY))
    from masks import brain_mask

    image = nib.load(file)
    turn = nib.orientations.ornt_transform(nib.io_orientation(image.affine), nib.io_orientation(grid.AFFINE))
    labels = np.asarray(image.as_reoriented(turn).dataobj).astype(int)
    tissue = np.isin(labels, sum(LABELS.values(), ()))
    # The middle of the brain's box in the middle of the grid: HACA3 works slice by slice.
    corners = [(side.start + side.stop) // 2 for side in ndimage.find_objects(tissue.astype(np.uint8))[0]]
    around = [slice(c + n // 2, c + n // 2 + n) for c, n in zip(corners, grid.SHAPE)]
    labels = np.pad(labels, [(n, n) for n in grid.SHAPE])[tuple(around)]
    parts = {
        name: ndimage.gaussian_filter(np.isin(labels, numbers).astype(np.float32), 0.5)
        for name, numbers in LABELS.items()
    }
    brain = brain_mask(sum(parts.values()) > 0.5)
    parts = {name: part * brain for name, part in parts.items()}
    parts["CSF"] = np.maximum(brain - sum(parts.values()), 0).astype(np.float32)
    parts["lesion"] = np.zeros(grid.SHAPE, np.float32)
    nothing = np.zeros(grid.SHAPE, bool)
    still = np.zeros((3, *grid.SHAPE), np.float32)
    return phantom.Subject(0, parts, brain, nothing, still, grid.AFFINE, file.name.partition(".")[0])


def sharp(model, person, stranger, pair, step=11) -> list[dict]:
    """A row per contrast and way: PSNR of sharp images, axial plane, and how bright the ventricles are
    against white matter, over the truth."""
    given, truth = images(person, pair[0], 1), images(person, pair[1])
    aims = targets(model, stranger, pair[1])
    ways = {
        name: model.harmonize(given, aims, mask="union", slice_step=step, anatomy=anatomy).images
        for name, anatomy in (("sampled", "shared"), ("arg-max", "argmax"))
    }
    ways["not harmonized"] = {c: scaled(given[c], aims[c]) for c in CONTRASTS}
    for left_out in CONTRASTS:
        some = {c: image for c, image in given.items() if c != left_out}
        ways[f"without {left_out}"] = model.harmonize(some, aims, mask="union", slice_step=step).images
    parts, rows = [person.fractions[tissue] > 0.95 for tissue in ("VCSF", "WM")], []
    for way, c in itertools.product(ways, CONTRASTS):
        seen = person.brain & np.isfinite(ways["sampled"][c])
        psnr_db = brain_psnr_db(person, truth[c], ways[way][c], seen)
        about = {"anatomy": person.anatomy, "pair": " → ".join(pair), "way": way, "contrast": c}
        there = [part & seen for part in parts]
        bright = ratio(np.nan_to_num(ways[way][c]), *there) / ratio(truth[c], *there)
        rows.append({**about, "psnr_db": psnr_db, "ventricles": bright})
    return rows


def agreement(model, person, stranger, paths, scanners=8, step=STEP) -> list[dict]:
    """A row per path, contrast and way: mean PSNR between images of one subject by several scanners, axial
    plane, harmonized to the study's target and not."""
    aims, rows = targets(model, stranger, "target"), []
    scans = [images(person, f"test-{n}", 3) for n in range(scanners)]
    for path in paths:
        seen_by = [{c: along(image, path) for c, image in scan.items()} for scan in scans]
        after = [model.harmonize(g, aims, mask="union", slice_step=step).images for g in seen_by]
        before = [{c: scaled(scan[c], aims[c]) for c in CONTRASTS} for scan in seen_by]
        for (way, group), c in itertools.product(
            {"not harmonized": before, "harmonized": after}.items(), CONTRASTS
        ):
            seen = person.brain & np.isfinite(after[0][c])
            pairs = itertools.combinations([np.nan_to_num(images_[c]) for images_ in group], 2)
            psnr_db = np.mean([brain_psnr_db(person, b, a, seen) for a, b in pairs])
            about = {"anatomy": person.anatomy, "sources": label(path), "contrast": c, "way": way}
            rows.append({**about, "psnr_db": psnr_db})
    return rows


def mixed(model, person, stranger, pair, resolution, planes=("axial", "coronal")) -> list[dict]:
    """A row per experiment, plane and contrast: PSNR in dB inside the brain of the image harmonized from
    sources that differ in resolution, against the truth of the 3D image."""
    given, truth = images(person, pair[0], 1), images(person, pair[1])
    aims, rows = targets(model, stranger, pair[1]), []
    for experiment, plane in itertools.product(("2", "3", "4", "5", "6"), planes):
        sources = {
            c: along(given[c], None if orientation == "3D" else (orientation, resolution))
            for c, orientation in EXPERIMENTS[experiment].items()
        }
        options = {"mask": "union", "slice_step": STEP, "orientations": (plane,)}
        for c, image in model.harmonize(sources, aims, **options).images.items():
            seen = person.brain & np.isfinite(image)
            psnr_db = brain_psnr_db(person, truth[c], image, seen)
            about = {"anatomy": person.anatomy, "pair": " → ".join(pair), "plane": plane}
            about |= {"experiment": experiment, "sources": resolution.label, "contrast": c}
            rows.append({**about, "psnr_db": psnr_db})
    return rows


def picture(models: dict, person, stranger, pair, contrasts=("T1w", "FLAIR")):
    """Source, what every model makes of it, and truth: a coronal slice of 3D images and of axial 5||1.5."""
    given, truth, panels = images(person, pair[0], 1), images(person, pair[1]), {}
    k = 5 * STEP + STEP // 2
    for path, c in itertools.product((None, ("axial", Resolution(5, 1.5))), contrasts):
        sources = {name: along(image, path) for name, image in given.items()}
        looks = {"source": slicing.normalise(sources[c])[0] * slicing.normalise(truth[c])[1]}
        for name, model in models.items():
            aims = targets(model, stranger, pair[1])
            options = {"mask": "union", "slice_step": STEP, "orientations": ("coronal",)}
            looks[name] = model.harmonize(sources, aims, **options).images[c]
        looks["truth"] = along(truth[c], path)
        for name, image in looks.items():
            shown = grid.upright(image, "coronal", k) / truth[c][person.brain].max()
            panels[f"{c}, {label(path)}\n{name}"] = shown
    unit = "fraction of the truth's maximum in the brain"
    return drawing.slices(panels, vmax=0.9, columns=2 + len(models), unit=unit)[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("weights", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--label-maps", type=Path, nargs="+", default=[], metavar="FILE")
    parser.add_argument("--picture", type=Path, metavar="PNG", help="only this: source, output, truth")
    parser.add_argument("--before", type=Path, metavar="WEIGHTS", help="other weights, in the picture too")
    options = parser.parse_args()
    model = haca3.load(options.weights, device="cpu")
    if options.picture:
        before = {"before": haca3.load(options.before, device="cpu")} if options.before else {}
        people = phantom.subject(SUBJECTS[0]), phantom.subject(STRANGERS[SUBJECTS[0]])
        figure = picture({**before, "harmonized": model}, *people, PAIRS[0])
        figure.savefig(options.picture, dpi=80, bbox_inches="tight")
        return
    tables = {"fidelity": [], "mixed": [], "pairs": [], "scanners": []}
    for seed in SUBJECTS:
        person, stranger = phantom.subject(seed), phantom.subject(STRANGERS[seed])
        for pair in PAIRS:
            tables["fidelity"] += fidelity(model, person, stranger, pair, PATHS)
            tables["mixed"] += mixed(model, person, stranger, pair, Resolution(5, 1.5))
        for pair in ALL_PAIRS:
            tables["pairs"] += sharp(model, person, stranger, pair)
        tables["scanners"] += agreement(model, person, stranger, [None, ("axial", Resolution(5, 1.5))])
        write(options.folder, tables)
    stranger = phantom.subject(STRANGERS[SUBJECTS[0]])
    tables["people"] = []
    for person in map(labelled, options.label_maps):
        for pair in PAIRS:
            tables["people"] += sharp(model, person, stranger, pair)
    write(options.folder, tables)


def write(folder: Path, tables: dict[str, list[dict]]) -> None:
    for name, rows in tables.items():
        if rows:
            pd.DataFrame(rows).round(4).to_csv(folder / f"{name}.csv", index=False)


if __name__ == "__main__":
    main()
