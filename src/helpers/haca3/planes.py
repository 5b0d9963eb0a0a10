"""Single slices harmonized at once, for looking at them while their sources change."""

import functools
from collections.abc import Mapping

import numpy as np

from helpers import study
from helpers.grid import AXIS, SHAPE
from helpers.haca3 import resolution, slicing
from helpers.haca3.fast.threads import side_by_side
from helpers.haca3.harmonizer import Harmonizer
from helpers.haca3.inputs import Encoding, Target, acquisitions_of
from helpers.haca3.networks import SLICE
from helpers.haca3.slice_networks import COMBINE, exactly


@exactly
def harmonize_planes(
    model: Harmonizer,
    sources: Mapping[str, Mapping[str, np.ndarray]],
    targets: Mapping[str, Target],
    indices: Mapping[str, int],
    *,
    seed: int = 0,
    geometry: Mapping[str, resolution.Acquisition | None] | None = None,
) -> dict[str, dict[str, np.ndarray]]:
    """Harmonize one slice in each of several planes, as `Harmonizer.harmonize` does in one orientation.

    Parameters
    ----------
    model : Harmonizer
    sources : dict of str to dict of str to ndarray, 2D
        Contrast -> plane -> that slice of the volume after `slicing.normalise`, zero outside of its
        `slicing.foreground`.
    targets : dict of str to Target
    indices : dict of str to int
        Plane -> index of the slice on the volume's axis, by which its noise is drawn.
    seed : int
        Of the noise, which sources share.
    geometry : dict of str to Acquisition or None, optional
        As in `Harmonizer.harmonize`.

    Returns
    -------
    dict of str to dict of str to ndarray, 2D, float32
        Target contrast -> plane -> harmonized slice, in the units of the target, with the mask of the
        published variant.

    Raises
    ------
    ValueError
        If a source has another shape than that slice of the grid, or the geometry does not name each source.
    """
    slices, images = model.slices, {}
    acquisitions = acquisitions_of(sources, geometry)
    for name, planes in sources.items():
        for orientation, plane in planes.items():
            axis = AXIS[study.require("orientation", orientation, study.ORIENTATIONS)]
            sides = [n for other, n in enumerate(SHAPE) if other != axis]
            if list(np.shape(plane)) != sides:
                raise ValueError(
                    f"source {name} has shape {np.shape(plane)}: accepted is a slice of {sides[0]} x "
                    f"{sides[1]} pixels"
                )
            widths = [(SLICE // 2 - n // 2, SLICE - n - (SLICE // 2 - n // 2)) for n in sides]
            images[name, orientation] = slicing.seen(
                np.pad(np.asarray(plane, np.float32), widths), orientation
            )
    numbers = {orientation: index + slicing.PAD[AXIS[orientation]] for orientation, index in indices.items()}
    inside = {
        orientation: COMBINE[study.VARIANTS[model.variant]](
            [slices.foreground(images[name, orientation]) for name in sources]
        )
        for orientation in indices
    }
    wanted = [(orientation, name) for orientation in indices for name in targets]

    def encode(image):
        return slices.encode([image], slices.quick)[0] if image.any() else (None, None)

    def decode(orientation, name):
        given, target = inside[orientation], {name: targets[name]}
        if not given.any():
            return np.zeros_like(given, np.float32)
        k = numbers[orientation]
        shared = [slices.codes(source, orientation, [k]) for source in encodings.values()]
        draw = functools.partial(slicing.gumbel_noise, seed, orientation)
        how = ({name: ()}, draw, acquisitions)
        _, images = slices.harmonize(orientation, shared, target, {k: given}, *how, [k])
        return images[name][1][0]

    with side_by_side(model.device) as run:
        codes = dict(zip(images, run(encode, images.values())))
        encodings = {
            name: Encoding(
                {(o, numbers[o]): (slices.foreground(images[name, o]), *codes[name, o]) for o in indices}
            )
            for name in sources
        }
        results = {name: {} for name in targets}
        for (orientation, name), image in zip(wanted, run(decode, *zip(*wanted))) if wanted else ():
            results[name][orientation] = slicing.lying(image, orientation)
    return results
