"""What each stage computed when its version was last raised, on small inputs: a change that nobody raised the
version for fails here.

Meant to change it was? Raise the version in `helpers.pipeline.cache.STAGES`, then ``python
tests/pipeline/test_stages_golden.py`` writes the golden numbers anew.
"""

import functools
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import ndimage

from helpers import grid, layout, registration, study, super_resolution
from helpers.acquisition import degradation
from helpers.analysis import downstream, judgement, metrics
from helpers.cohort import examination, phantom, preparation, scanners
from helpers.haca3 import checkpoint, slice_networks
from helpers.haca3.fast.fusion import BoxedFusion
from helpers.harmonizers import simple
from helpers.pipeline import cache, models, steps
from helpers.study import Resolution
from helpers.study.file import Study

GOLDEN = Path(__file__).parents[1] / "golden" / "stages.json"
#: Of a fingerprint, relative to the size of the array: processors differ in the last bits, and labels that
#: are all but undecided may flip.
TOLERANCE = 2e-3


def fingerprint(array) -> list[float]:
    """Root mean square, and three sums with fixed random weights, in units of what such a sum has by
    chance."""
    flat = np.nan_to_num(np.asarray(array, np.float64).ravel())  # what a preview does not know is NaN
    weights = np.random.default_rng(0).standard_normal((3, flat.size))
    size = np.sqrt(np.mean(flat**2))
    return [
        float(size),
        *(float(total) for total in weights @ flat / (max(size, 1e-30) * np.sqrt(flat.size))),
    ]


def blob(seed: int, shape=(40, 44, 38)) -> np.ndarray:
    """A smooth random object in an empty field: something to cut, to move and to score."""
    noise = ndimage.gaussian_filter(np.random.default_rng(seed).standard_normal(shape), 2.0)
    inside = (
        sum(
            ((np.arange(n) - n / 2) / (0.4 * n)).reshape([-1 if axis == a else 1 for a in range(3)]) ** 2
            for axis, n in enumerate(shape)
        )
        < 1
    )
    return ((noise / noise.std() + 3).clip(0) * inside).astype(np.float32)


@functools.cache
def person():
    return phantom.subject(12)


@functools.cache
def image(contrast, scanner="study-1", noise_seed=5):
    return phantom.render(person(), scanners.scanner(scanner), contrast, noise_seed)


def cohort():
    """A subject's tissues and its three images, every other scanner of the study's."""
    return [
        person().brain,
        *(image(contrast, f"study-{n + 1}") for n, contrast in enumerate(study.CONTRASTS)),
    ]


def prepared():
    """The parts of the preparation that take seconds: what is examined, biased, found to be brain, and seen
    as a person."""
    t1 = image("T1w")
    sharp = examination.sharpness(t1, grid.AFFINE)
    small = t1[40:150:2, 40:180:2, 30:150:2]
    starts = preparation.starts(t1, grid.AFFINE)
    return [
        sharp.thickness_mm,
        preparation.correct_bias(small, np.diag([2.0, 2, 2, 1])),
        np.array(starts),
        preparation.portrait(t1),
    ]


def degraded():
    volume, affine = blob(1), np.diag([-1.0, -1.0, 1.0, 1.0])
    pairs = (("axial", Resolution(3, 0)), ("sagittal", Resolution(5, 1.5)), ("coronal", Resolution(4, 1.2)))
    return [part for pair in pairs for part in degradation.degrade(volume, affine, *pair)]


def super_resolved():
    """A network that is taught for some steps, on a stack that it then resolves."""
    stack = degradation.degrade(blob(5), np.diag([-1.0, -1.0, 1.0, 1.0]), "coronal", Resolution(3, 0.5))
    resolver = super_resolution.train([stack], Resolution(3, 0.5), steps=12, channels=4, seed=1)
    return list(super_resolution.super_resolve(*stack, Resolution(3, 0.5), resolver))


def registered():
    volume, affine = blob(2), np.diag([-1.0, -1.0, 1.0, 1.0])
    motion = registration.motion(0, 1, "T1w", "axial")
    stack = degradation.degrade(volume, affine, "axial", Resolution(3, 0))
    moved = registration.move(stack[1], motion)
    estimated = registration.estimate(stack[0], moved, volume, affine, volume > 0, kind="rigid", seed=0)
    # ANTs' steps end where they end: what it estimates is worth a tenth of a millimetre.
    error = np.round(registration.error_mm(estimated, motion, volume > 0, affine), 0)
    whole = registration.error_mm(np.eye(4), motion, volume > 0, affine)
    turned = registration.resample(stack[0], moved, volume.shape, affine, np.eye(4))
    return [
        motion,
        registration.resample(stack[0], moved, volume.shape, affine, motion),
        turned,
        error,
        whole,
    ]


#: Contrast -> intensities of grey matter, white matter, deep grey matter, cerebellum, ventricles and fluid.
LEVELS = {
    "T1w": (65, 100, 80, 70, 20, 25),
    "T2w": (75, 55, 65, 75, 170, 160),
    "FLAIR": (100, 80, 85, 95, 15, 20),
    "target": (55, 110, 80, 65, 25, 30),
}


@functools.cache
def brain(contrast):
    """An embedded brain as it is: a subject would take ten seconds."""
    tissues = phantom.anatomy("S1")
    return sum(
        np.float32(level) * tissues[name] for level, name in zip(LEVELS[contrast], tissues, strict=True)
    )


def harmonized():
    """Slices of a brain's images, as a preview harmonizes them, what the attention weighed, and a target's
    description."""
    plan = Study(slice_step=89)
    network = models.harmonizer(plan)
    images = {contrast: brain(contrast) for contrast in study.CONTRASTS}
    target = network.target(brain("target"))
    images["T2w"] = network.encode(images["T2w"], ["axial"], 89)
    result = network.harmonize(
        images, {"T1w": target}, orientations=("axial",), slice_step=89, seed=3, mask="union", details=True
    )
    apart = network.harmonize(
        images, {"T1w": target}, orientations=("axial",), slice_step=89, seed=3, anatomy="independent"
    )
    planes = {plane: brain("T1w") + 10 * n for n, plane in enumerate(study.ORIENTATIONS)}
    thin = slice_networks.fusion_input(planes)[:, 90:102, 100:130, 90:130]
    with torch.inference_mode():
        fused = BoxedFusion(checkpoint.load_fusion(layout.MODELS / "fusion-small.pt"))(
            torch.from_numpy(thin)[None]
        ).numpy()
    slices, _ = steps.visited(plan, result.images["T1w"], grid.AFFINE)
    weights = result.attention["T1w"]["axial"]
    apart, _ = steps.visited(plan, apart.images["T1w"], grid.AFFINE)
    return [target.theta, target.eta, target.norm, slices, weights[np.isfinite(weights)], apart, fused]


def harmonized_otherwise():
    """Values of a brain by each of the simple harmonizers."""
    draw = np.random.default_rng(6)
    source, target = draw.gamma(3, 30, 6000), draw.gamma(5, 100, 5000)
    source, target = source.astype(np.float32), target.astype(np.float32)
    return [tool.match(source, target) for tool in simple.SIMPLE.values()]


def scores():
    truth, made = blob(3), blob(3) + 0.1 * blob(4)
    rows, preview = (
        [
            [value for value in row.values() if not isinstance(value, str)]
            for row in metrics.score(truth, made, truth > 0, axis)
        ]
        for axis in (None, 2)
    )
    curve = metrics.fourier_correlation(truth, made, metrics.brain_window(truth > 0), 0, None)
    return [*np.array(rows, float).T, *np.array(preview, float).T, *curve, metrics.cutoff(*curve)]


def segmented():
    """Tissues and lesions of an object whose intensities are those of four tissues."""
    shape = (40, 44, 38)
    axes = np.ogrid[tuple(slice(n) for n in shape)]
    depth = sum(((axis - n / 2) / (0.4 * n)) ** 2 for axis, n in zip(axes, shape))
    truth = np.select([depth > 1, depth > 0.7, depth > 0.1], [0, 2, 3], 1)
    truth[(axes[0] - 12) ** 2 + (axes[1] - 22) ** 2 + (axes[2] - 19) ** 2 < 7] = 4
    noise = np.random.default_rng(7).normal(0, 4, (2, *shape))
    t1w, flair = np.array([[0, 30, 80, 120, 85], [0, 20, 100, 90, 160]])[:, truth] + noise
    tissue = downstream.segment_tissue(t1w, grid.AFFINE, truth > 0)
    lesions = downstream.segment_lesions(flair, tissue, grid.AFFINE)
    known = truth == 4
    return [tissue, lesions, *downstream.detect_lesions(known, lesions, grid.AFFINE).values()]


def verdicts():
    """Numbers behind the verdicts of the ten subjects."""
    given, comparisons = judgement.verdicts(cache.read_table(layout.FIGURES / "ten" / "scores.csv"))
    columns = [
        np.nan_to_num(comparisons[name].to_numpy(float), posinf=0)
        for name in comparisons.select_dtypes("number")
    ]
    return [*columns, [list(given.verdict).count(word) for word in sorted(set(given.verdict))]]


COMPUTE = {
    "cohort": cohort,
    "preparation": prepared,
    "degradation": degraded,
    "super-resolution": super_resolved,
    "registration": registered,
    "harmonization": harmonized,
    "other harmonizers": harmonized_otherwise,
    "scores": scores,
    "downstream": segmented,
    "analysis": verdicts,
}


def numbers(stage: str) -> list[list[float]]:
    return [fingerprint(part) for part in COMPUTE[stage]()]


def test_every_stage_has_golden_numbers():
    assert set(COMPUTE) == set(cache.STAGES) == set(json.loads(GOLDEN.read_text()))


#: A subject takes ten seconds to simulate, and as long to be examined.
SLOW = ("cohort", "preparation")


@pytest.mark.parametrize(
    "stage", [pytest.param(stage, marks=[pytest.mark.slow] * (stage in SLOW)) for stage in COMPUTE]
)
def test_a_stage_computes_what_its_version_computed(stage):
    golden = json.loads(GOLDEN.read_text())[stage]
    anew = "python tests/pipeline/test_stages_golden.py writes the golden numbers anew"
    assert golden["version"] == cache.STAGES[stage].version, anew
    for now, then in zip(numbers(stage), golden["numbers"], strict=True):
        assert now == pytest.approx(then, rel=TOLERANCE, abs=TOLERANCE), (
            f"raise the version of the stage {stage}: {anew}"
        )


if __name__ == "__main__":
    content = {
        stage: {"version": cache.STAGES[stage].version, "numbers": numbers(stage)} for stage in COMPUTE
    }
    GOLDEN.write_text(json.dumps(content, indent=1) + "\n")
