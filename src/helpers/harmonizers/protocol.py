"""What a harmonizer has to be, where one is found, and whether what it gives can be an image of the study."""

import functools
import hashlib
import importlib
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np

from helpers import volumes
from helpers.grid import SHAPE
from helpers.study import CONTRASTS, HARMONIZERS
from helpers.study.program import Program
from helpers.volumes.files import record_use


@runtime_checkable
class Harmonizer(Protocol):
    """What a study asks of a harmonizer; docs/harmonizers.md has an example.

    A harmonizer may also have a method ``encode(image)``. Then what that returns stands for a source in
    ``harmonize``: an image that several experiments share is encoded once.
    """

    def harmonize(
        self, sources: Mapping[str, Any], targets: Mapping[str, np.ndarray]
    ) -> Mapping[str, np.ndarray]:
        """Give the anatomy of the sources the contrast of each target.

        Parameters
        ----------
        sources : mapping of str to ndarray, shape (192, 224, 192), float32
            Contrast -> image of the subject on HACA3's MNI grid (1 mm, stored left-posterior-superior), in
            the units of its scanner; 0 outside the brain. Read-only. A dropped contrast is not there.
        targets : mapping of str to ndarray, shape (192, 224, 192), float32
            ``"T1w"``, ``"T2w"``, ``"FLAIR"`` -> image of another person from the target scanner, alike.

        Returns
        -------
        mapping of str to ndarray, shape (192, 224, 192)
            All three target contrasts -> harmonized image on the same grid, finite. The same input has to
            give the same output, or the self-noise ceiling says by how much it does not.
        """


@functools.cache
def load(harmonizer: str | Program) -> Harmonizer:
    """The harmonizer that a study file names, ready to use; loaded once per process.

    Parameters
    ----------
    harmonizer : str or Program
        One of `helpers.study.HARMONIZERS` other than ``haca3``, ``"package.module:name"``, with a folder
        before it (``"/home/me/package.module:name"``) where Python does not find the module, or a program.

    Raises
    ------
    ValueError
        If there is no such module, nothing of that name in it, or if that has no method ``harmonize``.
    FileNotFoundError
        If the program is not there.
    """
    if isinstance(harmonizer, Program):
        from helpers.harmonizers import program

        return program.ProgramHarmonizer(harmonizer)
    if harmonizer in HARMONIZERS:
        from helpers.harmonizers import simple

        return simple.SIMPLE[harmonizer]
    module, name = _module(harmonizer), harmonizer.rpartition(":")[2]
    if not hasattr(module, name):
        own = [key for key, value in vars(module).items() if hasattr(value, "harmonize")]
        raise ValueError(
            f"harmonizer is {harmonizer!r}: {module.__file__} has no {name}: accepted is what in it "
            f"has a method harmonize{': ' + ', '.join(own) if own else ''}"
        )
    tool = getattr(module, name)
    try:
        tool = tool() if isinstance(tool, type) else tool
    except Exception as error:  # Of somebody else's making: whatever it is, it is named.
        reason = f"{type(error).__name__}: {error}"
        raise ValueError(f"harmonizer is {harmonizer!r}: {name}() fails with {reason}") from error
    if not isinstance(tool, Harmonizer) or not callable(tool.harmonize):
        raise ValueError(
            f"harmonizer is {harmonizer!r}: {name} in {module.__file__} has no method harmonize: accepted is "
            "an object with harmonize(sources, targets), or a class of such"
        )
    return tool


def identity(harmonizer: str | Program) -> dict:
    """What tells one version of a harmonizer from another, for keys and sidecars.

    Of a module the ``__version__`` that it has itself, else the content of its file; of a program its command
    and the content of all files in it; the simple ones change with the version of their stage.
    """
    if isinstance(harmonizer, Program):
        from helpers.harmonizers import program

        return program.identity(harmonizer)
    if harmonizer in HARMONIZERS:
        return {"name": harmonizer}
    module, name = _module(harmonizer), harmonizer.rpartition("/")[2]
    version = getattr(module, "__version__", None)
    if version is not None:
        return {"name": name, "version": str(version)}
    record_use(module.__file__)
    return {"name": name, "sha256": hashlib.sha256(Path(module.__file__).read_bytes()).hexdigest()}


@functools.cache
def _module(harmonizer: str):
    place, _, dotted = harmonizer.partition(":")[0].rpartition("/")
    if place and place not in sys.path:
        # Last, so that a module of one's own never stands for one that something else here needs.
        sys.path.append(place)
        importlib.invalidate_caches()
    try:
        module = importlib.import_module(dotted)
    except Exception as error:
        reason = f"{place or 'the Python path'}: {type(error).__name__}: {error}"
        raise ValueError(
            f"harmonizer is {harmonizer!r}: cannot import {dotted} from {reason}: accepted are modules "
            "that can be imported, or that lie beside the study file"
        ) from error
    file = getattr(module, "__file__", None)
    if file is None or (place and not Path(file).resolve().is_relative_to(Path(place).resolve())):
        raise ValueError(
            f"harmonizer is {harmonizer!r}: Python has another module {dotted}, {file}: accepted is a name "
            "of its own"
        )
    return module


def check_images(harmonizer: str, images: Any) -> dict[str, np.ndarray]:
    """What a harmonizer gave, if it can be the three images of a study.

    Parameters
    ----------
    harmonizer : str
        What to call it in the message.
    images : mapping of str to ndarray
        What it returned.

    Returns
    -------
    dict of str to ndarray, shape (192, 224, 192), float32

    Raises
    ------
    ValueError
        If it is no mapping, lacks a contrast, or an image is on another grid or not finite.
    """
    if not isinstance(images, Mapping):
        kind = type(images).__name__
        raise ValueError(
            f"harmonizer {harmonizer} gave a {kind}: accepted is a dictionary, contrast -> image"
        )
    if missing := [contrast for contrast in CONTRASTS if contrast not in images]:
        held = ", ".join(map(str, images)) or "nothing"
        raise ValueError(
            f"harmonizer {harmonizer} gave no {', '.join(missing)}, but {held}: accepted are all three"
        )
    checked = {}
    for contrast in CONTRASTS:
        what = f"the {contrast} image of harmonizer {harmonizer}"
        if np.shape(images[contrast]) != SHAPE:
            shape = " x ".join(map(str, np.shape(images[contrast]))) or "no array"
            raise ValueError(
                f"{what} is {shape}: accepted is the grid of the sources, {' x '.join(map(str, SHAPE))}"
            )
        with np.errstate(over="ignore"):  # What float32 cannot hold is infinite, and refused as such.
            checked[contrast] = volumes.as_volume(np.asarray(images[contrast]).astype(np.float32), what)
    return checked
