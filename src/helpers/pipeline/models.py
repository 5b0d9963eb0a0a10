"""The checkpoints of a study, and HACA3 loaded from them."""

import dataclasses
import functools
import hashlib
from collections.abc import Sequence
from pathlib import Path

from helpers import compiler, layout
from helpers.harmonizers import protocol
from helpers.study.file import Study
from helpers.volumes.files import record_use


def checkpoints(plan: Study) -> tuple[Path, ...]:
    return tuple(layout.ROOT / path for path in (plan.weights, plan.fusion) if path)


def check_models(plan: Study) -> None:
    """Load the study's harmonizer, so that one that does not fit is refused before anything starts.

    Raises
    ------
    FileNotFoundError, ValueError
        Naming the file, and what of it does not fit.
    """
    if plan.harmonizer != "haca3":
        protocol.load(plan.harmonizer)
        return
    trained = "training" in plan.remedies
    for field in ("weights", "fusion", *["resolution_weights"] * trained):
        if value := getattr(plan, field):
            try:
                checkpoint_hash(layout.ROOT / value)
            except FileNotFoundError as error:
                raise FileNotFoundError(f"{field} is {value!r}: {error}") from None
    harmonizer(plan)
    if trained:
        harmonizer(with_network(plan, plan.remedies))


@functools.cache
def checkpoint_hash(path: Path) -> str:
    if not path.is_file():
        raise FileNotFoundError(
            f"{path}: no such checkpoint: accepted is the path of one (relative: to the repository)"
        )
    record_use(path)
    return hashlib.sha256(path.read_bytes()).hexdigest()


def network_options(plan: Study) -> dict:
    """How the networks run: as the study says, and compiled only where there is a compiler.

    So a resumed run gives the same bytes on the same kind of machine. Processors differ in how they round,
    and a GPU from all of them: volumes of different machines agree as nearly as floats do, until a label of
    the anatomy that was all but undecided falls the other way. Sidecars say which device it was.
    """
    wanted = plan.compiled and plan.precision == "float32"
    compiled = wanted and compiler.library(compiler.WINOGRAD)[0] is not None
    return {"variant": plan.variant, "precision": plan.precision, "compiled": compiled}


def with_network(plan: Study, remedies: Sequence[str]) -> Study:
    """The study with the weights of an arm: those of its own, or those trained for differing resolutions."""
    return dataclasses.replace(plan, weights=plan.resolution_weights) if "training" in remedies else plan


def harmonizer(plan: Study):
    """The study's harmonizer, loaded once per process."""
    return _load(checkpoints(plan), variant=plan.variant, precision=plan.precision, compiled=plan.compiled)


@functools.cache
def _load(models: tuple[Path, ...], **options):
    from helpers import haca3

    return haca3.load(*models, **options)
