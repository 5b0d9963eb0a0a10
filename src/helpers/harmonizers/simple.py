"""Harmonizers that see each contrast by itself: what of a study's result is there without a network?

They look at the brain alone, which is where an image is not 0, and leave the rest 0.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from helpers import registration

#: Of `_nyul`: landmarks (the deciles) and bins of the histogram.
_LANDMARKS, _BINS = 9, 1024


@dataclass(frozen=True)
class ByContrast:
    """A harmonizer that makes each image from the source of its own contrast.

    Attributes
    ----------
    match : callable
        Values of a source and of its target inside the brain, 1D -> values of the harmonized image.
    """

    match: Callable[[np.ndarray, np.ndarray], np.ndarray]

    def harmonize(
        self, sources: Mapping[str, np.ndarray], targets: Mapping[str, np.ndarray]
    ) -> dict[str, np.ndarray]:
        """See `helpers.harmonizers.protocol.Harmonizer`."""
        images = {}
        for contrast, target in targets.items():
            image = sources[contrast].copy()
            brain = image != 0
            image[brain] = self.match(image[brain], target[target != 0])
            images[contrast] = image
        return images


def _none(source: np.ndarray, target: np.ndarray) -> np.ndarray:
    return source


def _histogram(source: np.ndarray, target: np.ndarray) -> np.ndarray:
    from skimage.exposure import match_histograms

    return match_histograms(source, target)


def _zscore(source: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Mean and standard deviation of the target."""
    mean, sd = source.mean(dtype=np.float64), source.std(dtype=np.float64)
    return (source - mean) / sd * target.std(dtype=np.float64) + target.mean(dtype=np.float64)


def _nyul(source: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Deciles of the histogram, linear between them (Nyul, Udupa, Zhang, IEEE TMI 19:143, 2000), by ITK."""
    ants = registration.import_ants()

    # What the filter sees of an image is its histogram: where the voxels lie does not matter.
    images = [ants.from_numpy(values[:, None].astype(np.float32)) for values in (source, target)]
    return ants.histogram_match_image(
        *images, number_of_histogram_bins=_BINS, number_of_match_points=_LANDMARKS
    ).numpy()[:, 0]


#: Name in a study file -> harmonizer.
SIMPLE = {
    "none": ByContrast(_none),
    "histogram": ByContrast(_histogram),
    "zscore": ByContrast(_zscore),
    "nyul": ByContrast(_nyul),
}
