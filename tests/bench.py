"""Speed, as ratios measured in one process, so that they mean the same on any machine: ``python tests/bench.py``.

Each bench is a function that yields lines ``(what, ratios, demanded)``: how many times faster than the
reference in each repeat, and the smallest median that is good enough. To add one, write it and name it in BENCHES.
"""

import sys
import time

import numpy as np
from scipy import ndimage

from helpers import degradation, slice_profile, study

REPEATS = 3


def ratios(reference, ours, runs=5):
    """Times faster than the reference, once for each repeat; the reference runs once, ours `runs` times."""
    ours()  # builds what is cached, and wakes the BLAS threads
    for _ in range(REPEATS):
        start = time.perf_counter()
        reference()
        middle = time.perf_counter()
        for _ in range(runs):
            ours()
        yield (middle - start) / ((time.perf_counter() - middle) / runs)


def convolve_then_sample(volume, axis, resolution):
    """The two steps, each by its scipy function, on the whole volume."""
    taps = slice_profile.taps(resolution.thickness_mm, 1.0)
    blurred = ndimage.convolve1d(volume, taps, axis=axis, mode="nearest")
    lines = [np.arange(n, dtype=float) for n in volume.shape]
    lines[axis] = degradation.slice_positions(volume.shape[axis], 1.0, resolution)
    return ndimage.map_coordinates(blurred, np.meshgrid(*lines, indexing="ij"), order=3, mode="nearest")


def degrade():
    """Simulating a 2D acquisition of 192 x 224 x 192 voxels, against convolve1d + map_coordinates."""
    volume = np.random.default_rng(0).random((192, 224, 192), dtype=np.float32)
    affine = np.array([[-1.0, 0, 0, 96], [0, -1, 0, 96], [0, 0, 1, -78], [0, 0, 0, 1]])
    resolution = study.Resolution(3, 0)  # the most slices of all resolutions: the most work for the matrix
    for orientation in study.ORIENTATIONS:
        axis = degradation.through_plane_axis(affine, orientation)
        measured = ratios(
            lambda axis=axis: convolve_then_sample(volume, axis, resolution),
            lambda orientation=orientation: degradation.degrade(volume, affine, orientation, resolution),
        )
        yield f"degrade {orientation} {resolution.label} / convolve1d + map_coordinates", list(measured), 20


BENCHES = (degrade,)


def main():
    print(f"{'times faster than the reference':60} {'min':>7} {'median':>7} {'demanded':>9}")
    slow = 0
    for bench in BENCHES:
        for what, measured, demanded in bench():
            median = float(np.median(measured))
            slow += median < demanded
            verdict = "" if median >= demanded else "  too slow"
            print(f"{what:60} {min(measured):7.1f} {median:7.1f} {demanded:9d}{verdict}", flush=True)
    return 1 if slow else 0


if __name__ == "__main__":
    sys.exit(main())
