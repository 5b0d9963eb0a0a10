"""Power spectra of simulated images over those of real ones: the table in data/README.md.

    python data/anatomy/spectra.py NAME=FILE NAME=FILE …

prints a line for each image: NAME is T1w, T2w or FLAIR, FILE a skull-stripped image of about 1 mm. Each
image is divided by its mean in the brain, and weighted by its brain mask, which is eroded by 4 mm and
smoothed, so that the edge of the mask has no say. Simulated images are those of one ordinary scanner, with
noise.
"""

import functools
import sys

import numpy as np
from scipy import ndimage

from helpers import volumes
from helpers.cohort import phantom, scanners

SUBJECTS, SCANNER = (2, 3), "study-7"  # one of each embedded brain
FREQUENCIES = (0.1, 0.2, 0.3, 0.4)  # cycles per mm, each with 0.025 to either side


@functools.cache
def shells(shape: tuple[int, int, int]) -> list[np.ndarray]:
    """Where the frequencies of a transform are near each of `FREQUENCIES`."""
    radius = np.sqrt(sum(f**2 for f in np.meshgrid(*map(np.fft.fftfreq, shape), indexing="ij")))
    return [np.abs(radius - frequency) < 0.025 for frequency in FREQUENCIES]


def spectrum(image: np.ndarray, brain: np.ndarray) -> np.ndarray:
    """Mean power in shells around `FREQUENCIES` of an image with voxels of 1 mm."""
    weight = ndimage.binary_erosion(brain, iterations=4).astype(np.float32)
    weight = ndimage.gaussian_filter(weight, 1.5)
    mean = (weight * image).sum() / weight.sum()
    power = np.abs(np.fft.fftn(weight * (image / mean - 1))) ** 2 / (weight**2).sum()
    return np.array([power[shell].mean() for shell in shells(image.shape)])


def main() -> None:
    scanner = scanners.scanner(SCANNER)
    people = [phantom.subject(seed) for seed in SUBJECTS]
    for argument in sys.argv[1:]:
        contrast, file = argument.split("=")
        image, _ = volumes.read(file)
        tissue = image > 0.05 * np.percentile(image[image > 0], 95)
        brain = ndimage.binary_fill_holes(ndimage.binary_opening(tissue, iterations=2))
        real = spectrum(image, brain)
        for person in people:
            simulated = spectrum(phantom.render(person, scanner, contrast, 1), person.brain)
            print(person.anatomy, contrast, file, (simulated / real).round(2))


if __name__ == "__main__":
    main()
