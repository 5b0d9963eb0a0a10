"""The study file: everything that decides what a study computes, read and checked before anything starts."""

import collections
import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from helpers.study import (
    ANATOMIES,
    ARMS,
    BRAINS,
    CONTRASTS,
    DROPPABLE,
    ENTITIES,
    EXPERIMENTS,
    GRID_MM,
    GRID_VOXELS,
    HARMONIZERS,
    KEEP,
    MASKS,
    ORIENTATIONS,
    PLAUSIBLE_MM,
    PRECISIONS,
    REMEDIES,
    REPOSITORY,
    RESOLUTIONS,
    TRANSFORMS,
    VARIANTS,
    Resolution,
    require,
    require_keys,
    sources,
)
from helpers.study.program import Program, place_beside, read_harmonizer
from helpers.study.subjects import ALL, SimulatedSubject, Subject, read_subject
from helpers.study.toml import expand_path, read_toml

#: A study.
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9-]*")

#: What PyTorch's generators take.
_LARGEST_SEED = 2**63 - 1


def _per_contrast(field: str, values, settle) -> tuple:
    """A table with a contrast per key as pairs, which can be compared and hashed; each value as `settle`
    leaves it."""
    try:
        values = dict(values)
    except (TypeError, ValueError):
        raise ValueError(
            f"{field} is {values!r}: accepted is a table with keys of {', '.join(CONTRASTS)}"
        ) from None
    return tuple(
        sorted(
            (require(field, contrast, CONTRASTS), settle(f"{field}.{contrast}", value))
            for contrast, value in values.items()
        )
    )


def _entities(field: str, value) -> str:
    if not isinstance(value, str) or not ENTITIES.fullmatch(value):
        accepted = (
            "entities of a file name, such as 'run-1' or 'acq-3D_run-2', or 'no-ce' for a name without that "
            "one"
        )
        raise ValueError(f"{field} is {value!r}: accepted are {accepted}")
    return value


def _path(field: str, value: str | Path) -> Path:
    try:
        return expand_path(value)
    except ValueError as error:
        raise ValueError(f"{field}: {error}") from None


def _study_place(field: str, value: str) -> str:
    """A study's name as it is; a folder of results as an absolute path."""
    return value if _NAME.fullmatch(value) else str(_path(field, value).resolve())


def _target(field: str, value) -> str | tuple[float, ...]:
    """A path, or theta (2), eta (2) and norm in one tuple."""
    if isinstance(value, (str, Path)) and value != "":
        return str(_path(field, value).resolve())
    try:
        numbers = (*value["theta"], *value["eta"], value["norm"]) if isinstance(value, dict) else tuple(value)
        numbers = tuple(float(number) for number in numbers)
    except (KeyError, TypeError, ValueError):
        numbers = ()
    if (
        len(numbers) != 5
        or not all(map(math.isfinite, numbers))
        or numbers[4] <= 0
        or (isinstance(value, dict) and len(value) != 3)
    ):
        accepted = "the path of an image, or theta and eta, two numbers each, and norm, a number above 0"
        raise ValueError(f"{field} is {value!r}: accepted are {accepted}")
    return numbers


def _as_written(value: Subject | Resolution | str) -> str:
    """An entry of a list as a study file writes it."""
    if isinstance(value, Subject):
        return str(value.literal)
    return value.label if isinstance(value, Resolution) else value


def _target_table(numbers: tuple[float, ...]) -> dict:
    return {"theta": list(numbers[:2]), "eta": list(numbers[2:4]), "norm": numbers[4]}


@dataclass(frozen=True)
class Study:
    """Everything that decides what a study computes. One TOML file is one study.

    Parameters
    ----------
    name : str
        Letters, digits and hyphens; the folder below ``data/derivatives``.
    subjects : tuple of Subject
        Given as seeds of the semi-synthetic subjects, of which 1 to 10 are the study's; or as labels of your
        own, ``sub-<label>``, which stand for all sessions of a subject, ``"01_ses-2"`` for one. Unless given:
        subject 1, or all in `bids_dir`, as does ``"all"``.
    experiments : tuple of str
        Keys of `EXPERIMENTS`.
    resolutions : tuple of Resolution
        Given as labels or slugs, ``"5||1.5"`` or ``"5skip1p5"``.
    transform : str
        How low-resolution images come back to MNI: one of `TRANSFORMS`.
    reconstruction : tuple of str
        Planes in which HACA3 runs, of `ORIENTATIONS`; several are fused into one volume.
    slice_step : int
        1: whole volumes. Otherwise a preview of every `slice_step`-th slice of the one reconstruction plane.
    harmonizer : str or Program
        ``haca3``, or another to put through the same study: one of `HARMONIZERS`, ``"package.module:name"``
        for one of your own, or a table with a ``command`` for a program (docs/harmonizers.md). Only HACA3
        takes notice of `anatomy`, `mask`, `weights`, `fusion`, `variant`, `precision` and `compiled`; the
        others are given whole volumes.
    anatomy : str
        How anatomy codes are sampled: one of `ANATOMIES`.
    mask : str
        Which sources' foreground masks the output: one of `MASKS`; unless given that of the published
        program, by `VARIANTS`.
    weights : str
        HACA3 checkpoint; relative paths start at the repository.
    fusion : str
        Checkpoint of the fusion network, or empty for the voxel-wise median of the planes.
    variant : str
        Program whose attention is used: one of `VARIANTS`.
    precision : str
        Of HACA3's large networks: one of `PRECISIONS`.
    compiled : bool
        Where there is a C++ compiler, harmonize with what it builds in two seconds: about twice as fast on a
        CPU, the same to rounding. Results say whether it was used.
    remedies : tuple of str
        What is tried against the loss, beside what the paper does, each an arm of the score table (`ARMS`):
        ``super-resolution`` of each stack (`helpers.super_resolution`), ``fusion`` of the anatomies with
        weights that know how each source was sliced (`helpers.haca3.resolution`), ``training``: another
        network, of `resolution_weights`.
    resolution_weights : str
        Checkpoint of a HACA3 that was trained to make the 3D image of sources that differ in resolution.
    taught_on : tuple of Subject
        Subjects by whose stacks networks learn to super-resolve, one network for each resolution. Unless
        given: the first three.
    teaching_steps : int
        Of such a network.
    seed : int
        Seed of anatomy noise, of the motion that registration has to undo, and of what is taught.
    planes, ladder : tuple of str
        Finished studies, by name, or by folder (relative: to the working folder), that the analysis takes in:
        those that differ from this one in their plane of reconstruction alone, which makes previews in three
        planes one study, and those that differ in `transform` alone.
    bids_dir : str
        Your own BIDS data set, with T1w, T2w and FLAIR of each subject; empty: semi-synthetic subjects.
        Relative: to the working folder.
    dropped : tuple of str
        Contrasts, of `DROPPABLE`, that HACA3 does not get as sources, of no subject; those of a `bids_dir`
        need not have them. All three target contrasts are made all the same.
    select : dict
        Contrast -> entities of the file name, such as ``"acq-3D_run-2"``: which image is meant where a
        subject has several. ``"no-ce"`` means one without that entity.
    brain : str
        ``extract``: background is removed unless it is already; ``keep``: your images stay as they are. HACA3
        expects it removed.
    targets : dict
        Contrast -> what harmonized images look like: an image's path, or a table of ``theta`` and ``eta``
        (two numbers each) and ``norm``, the scale of the output. An image is prepared as subjects are; but
        for a T1w its background must be removed. All three contrasts, or none for the semi-synthetic target
        subject.
    downstream : bool
        Measure lesions and volumes in every arm as well (docs/downstream.md): half a minute of computing for
        each pair of T1w and FLAIR images, seconds in a preview.
    output_dir : str
        Folder of the results (relative: to the working folder), or empty for ``data/derivatives/<name>``.
    keep : str
        ``tables``: stacks, registered and harmonized volumes are removed as soon as nothing of the study
        needs them any more. Their sidecars stay, and they count as done; what is read again is made again.

    Raises
    ------
    ValueError
        With one line that names the field, its value and what is accepted.
    """

    name: str = "demo"
    subjects: tuple[Subject, ...] | None = None
    experiments: tuple[str, ...] = tuple(EXPERIMENTS)
    resolutions: tuple[Resolution, ...] = RESOLUTIONS
    transform: str = "known"
    reconstruction: tuple[str, ...] = ("axial",)
    slice_step: int = 11
    harmonizer: str | Program = "haca3"
    anatomy: str = "shared"
    mask: str = ""
    weights: str = "data/models/harmonizer-small.pt"
    fusion: str = ""
    variant: str = "haca3"
    precision: str = "float32"
    compiled: bool = True
    remedies: tuple[str, ...] = ()
    resolution_weights: str = "data/models/harmonizer-resolution.pt"
    taught_on: tuple[Subject, ...] = ()
    teaching_steps: int = 4000
    seed: int = 0
    planes: tuple[str, ...] = ()
    ladder: tuple[str, ...] = ()
    bids_dir: str = ""
    dropped: tuple[str, ...] = ()
    select: tuple[tuple[str, str], ...] = ()
    brain: str = "extract"
    targets: tuple[tuple[str, str | tuple[float, ...]], ...] = ()
    downstream: bool = False
    output_dir: str = ""
    keep: str = "all"

    def __post_init__(self):
        def settle(field, value):  # The class is frozen: values are normalised once, here.
            object.__setattr__(self, field, value)

        if not (isinstance(self.name, str) and _NAME.fullmatch(self.name)):
            raise ValueError(f"name is {self.name!r}: accepted are letters, digits and hyphens")
        for field in ("weights", "resolution_weights", "fusion", "bids_dir", "output_dir"):
            missing = field.endswith("weights") and not getattr(self, field)
            if not isinstance(getattr(self, field), (str, Path)) or missing:
                raise ValueError(f"{field} is {getattr(self, field)!r}: accepted is a path as text")
            if getattr(self, field):
                path = _path(field, getattr(self, field))
                # Kernels have a working folder of their own; what comes with the repository is found from
                # there.
                settle(field, str(path.resolve() if field.endswith("_dir") else path))
        if self.subjects is None:
            settle("subjects", (ALL,) if self.bids_dir else (SimulatedSubject(1),))
        for field in ("subjects", "experiments", "resolutions", "reconstruction"):
            values = getattr(self, field)
            values = (values,) if isinstance(values, (str, int, Resolution, Subject)) else values
            if not isinstance(values, (list, tuple)) or not values:
                raise ValueError(f"{field} is {values!r}: accepted is a list of at least one")
            settle(field, tuple(values))
        if not isinstance(self.taught_on, (list, tuple)):
            raise ValueError(f"taught_on is {self.taught_on!r}: accepted is a list of subjects")
        for field in ("subjects", "taught_on"):
            try:
                settle(field, tuple(read_subject(e, bool(self.bids_dir)) for e in getattr(self, field)))
            except ValueError as error:
                raise ValueError(f"{field} has {error}") from None
        if ALL in self.subjects and len(self.subjects) > 1:
            names = [subject.literal for subject in self.subjects]
            raise ValueError(f"subjects is {names!r}: accepted is 'all' alone, or labels")
        if len({subject.simulated for subject in self.subjects}) > 1:
            names = [subject.literal for subject in self.subjects]
            text = "accepted are numbers of semi-synthetic subjects or labels of your own, not both"
            raise ValueError(f"subjects is {names!r}: {text}")
        for field in ("planes", "ladder"):
            studies = getattr(self, field)
            places = isinstance(studies, (list, tuple)) and all(isinstance(e, (str, Path)) for e in studies)
            if not places or "" in studies:
                raise ValueError(f"{field} is {studies!r}: accepted is a list of names or folders of studies")
            settle(field, tuple(_study_place(field, str(study)) for study in studies))
        settle("experiments", tuple(require("experiment", row, EXPERIMENTS) for row in self.experiments))
        settle(
            "resolutions",
            tuple(
                value if isinstance(value, Resolution) else Resolution.parse(value)
                for value in self.resolutions
            ),
        )
        for resolution in self.resolutions:
            if resolution.thickness_mm < GRID_MM:
                thin = f"slices thinner than the voxels of {GRID_MM:g} mm that they are made from"
                accepted = f"accepted are {GRID_MM:g} to {PLAUSIBLE_MM[1]:g} mm"
                raise ValueError(f"resolutions has {resolution.label}, {thin}: {accepted}")
        settle(
            "reconstruction",
            tuple(require("reconstruction", plane, ORIENTATIONS) for plane in self.reconstruction),
        )
        for field, known, what in (
            ("dropped", DROPPABLE, "contrasts"),
            ("remedies", REMEDIES, "remedies"),
        ):
            values = getattr(self, field)
            if not isinstance(values, (list, tuple)):
                raise ValueError(
                    f"{field} is {values!r}: accepted is a list of {what}, of {', '.join(known)}"
                )
            # In the order of the vocabulary: which was named first makes no other study.
            settle(field, tuple(sorted((require(field, value, known) for value in values), key=known.index)))
        for field in (
            "subjects",
            "experiments",
            "resolutions",
            "reconstruction",
            "dropped",
            "remedies",
            "taught_on",
            "planes",
            "ladder",
        ):
            counts = collections.Counter(getattr(self, field))
            if repeated := [value for value, count in counts.items() if count > 1]:
                names = ", ".join(map(_as_written, repeated))
                accepted = "accepted is a list without repetition"
                raise ValueError(f"{field} names {names} more than once: {accepted}")
        require("transform", self.transform, TRANSFORMS)
        require("anatomy", self.anatomy, ANATOMIES)
        require("variant", self.variant, VARIANTS)
        settle("mask", require("mask", self.mask or VARIANTS[self.variant], MASKS))
        require("precision", self.precision, PRECISIONS)
        require("brain", self.brain, BRAINS)
        require("keep", self.keep, KEEP)
        settle("select", _per_contrast("select", self.select, _entities))
        settle("targets", _per_contrast("targets", self.targets, _target))
        if self.targets and len(self.targets) < len(CONTRASTS):
            missing = ", ".join(contrast for contrast in CONTRASTS if contrast not in dict(self.targets))
            raise ValueError(f"targets has no {missing}: accepted are all of {', '.join(CONTRASTS)}, or none")
        settle("harmonizer", read_harmonizer(self.harmonizer))
        self._check_harmonizer()
        for field in ("compiled", "downstream"):
            if not isinstance(getattr(self, field), bool):
                raise ValueError(f"{field} is {getattr(self, field)!r}: accepted are true and false")
        for field, least, most in (
            ("slice_step", 1, GRID_VOXELS),
            ("teaching_steps", 1, math.inf),
            ("seed", 0, _LARGEST_SEED),
        ):
            value = getattr(self, field)
            if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
                limit = "" if most == math.inf else f" to {most}"
                raise ValueError(f"{field} is {value!r}: accepted are whole numbers from {least}{limit}")
        # Slice separations repeat after 3, 4, 5, 26, 6 and 13 mm. A step that shares a factor with one of
        # them meets some phases of the slice grid more often than others, and biases the scores.
        if self.slice_step > 1 and math.gcd(self.slice_step, 2 * 3 * 5 * 13) > 1:
            raise ValueError(
                f"slice_step is {self.slice_step}: accepted are 1 and steps without a factor 2, 3, 5 or 13, "
                "such as 7 and 11"
            )
        if self.slice_step > 1 and len(self.reconstruction) > 1:
            raise ValueError(
                f"slice_step is {self.slice_step} with reconstruction in {len(self.reconstruction)} planes: "
                "accepted is one plane, or slice_step 1"
            )
        if self.fusion and len(self.reconstruction) == 2:
            raise ValueError(
                f"reconstruction is {', '.join(self.reconstruction)}: accepted for a fusion network are one "
                "plane or all three"
            )

    def _check_harmonizer(self):
        """Refuse what only HACA3 can do, and what a program would look for in vain."""
        harmonizer = self.harmonizer
        if harmonizer == "haca3":
            return
        numbers = [contrast for contrast, target in self.targets if not isinstance(target, str)]
        if numbers:
            accepted = f"accepted with harmonizer {self.harmonizer_name} are images"
            raise ValueError(
                f"targets.{numbers[0]} are theta, eta and norm, which HACA3 alone takes: {accepted}"
            )
        if self.dropped and harmonizer in HARMONIZERS:
            accepted = "accepted are harmonizers that make a contrast from the others"
            raise ValueError(
                f"dropped is {', '.join(self.dropped)} with harmonizer {harmonizer}, which has nothing to "
                f"make that contrast from: {accepted}"
            )
        if others := [remedy for remedy in self.remedies if remedy != "super-resolution"]:
            alone = "which HACA3 alone can do: accepted with harmonizer"
            raise ValueError(f"remedies has {others[0]}, {alone} {self.harmonizer_name} is super-resolution")
        if isinstance(harmonizer, Program):
            for contrast in self.dropped:
                if contrast in harmonizer.placeholders:
                    raise ValueError(
                        f"harmonizer.command has {{{contrast}}}, which is dropped: accepted are the files of "
                        f"{', '.join(self.given)}"
                    )

    @property
    def harmonizer_name(self) -> str:
        """What tables and figures call the harmonizer: for a program the name of its file."""
        if isinstance(self.harmonizer, Program):
            return Path(self.harmonizer.command[0]).name
        return self.harmonizer.rpartition("/")[2]

    @classmethod
    def from_toml(cls, path: str | Path) -> "Study":
        """Read a study file, whole, before anything starts.

        A file that builds on another (``extends``) takes over its values, but not its `name` and
        `output_dir`: two studies do not write into one folder unless both files say so. Unless given, the
        name is that of the file. Nor does a file with a `bids_dir` take over simulated subjects.

        Raises
        ------
        FileNotFoundError
            If there is no such file.
        ValueError
            If it is not TOML, has an unknown key (the nearest known one is named) or a bad value.
        """
        return cls(**cls._read(path))

    @classmethod
    def from_parameters(cls, study: str, changes: Mapping, **own) -> "Study":
        """The study that a notebook's parameters name.

        Parameters
        ----------
        study : str
            Path of a study file (relative: to the repository), or empty for the default of every field.
        changes : dict
            Field -> value, where the study differs from the file.
        **own
            Fields for which the notebook has parameters of its own, such as `subjects`: not to be changed
            otherwise.

        Raises
        ------
        FileNotFoundError, ValueError
            As `from_toml`, and if `changes` has an unknown field or a bad value.
        """
        if not isinstance(study, str):
            raise ValueError(f"study is {study!r}: accepted is the path of a study file")
        if not isinstance(changes, Mapping):
            accepted = "accepted are fields and their values (papermill -y '{changes: {anatomy: argmax}}')"
            raise ValueError(f"changes is {changes!r}: {accepted}")
        require_keys(
            "changes", map(str, changes), [field.name for field in fields(cls) if field.name not in own]
        )
        # What the file says, not what became of it: another variant has another mask, unless the file says
        # which.
        values = cls._read(REPOSITORY / _path("study", study)) if study else {}
        values = {**values, **changes}
        # Whom the networks of a study learn from does not depend on whom a notebook shows.
        if "subjects" in own and values.get("subjects", "all") not in ("all", ["all"]):
            values.setdefault("taught_on", cls(**values).teachers if values.get("remedies") else ())
        return cls(**{**values, **own})

    @classmethod
    def _read(cls, path: str | Path) -> dict:
        """The values of a study file and of those that it extends, once each of these files has proved to be
        a study."""
        known = [field.name for field in fields(cls)]
        inherited = {}
        for file, values in read_toml(path):
            # Where it is computed is for `helpers.runner.cluster` to read: it does not decide what is
            # computed.
            require_keys(str(file), values, [*known, "extends", "cluster"])
            if "harmonizer" in values:
                values["harmonizer"] = place_beside(file.parent, values["harmonizer"])
            if "bids_dir" in values and not inherited.get("bids_dir"):
                # Simulated subjects are not people of a data set.
                for field in ("subjects", "taught_on"):
                    inherited.pop(field, None)
            values = (
                {"name": file.stem}
                | inherited
                | {key: value for key, value in values.items() if key != "cluster"}
            )
            try:
                cls(**values)  # So an error names the file that has it.
            except (ValueError, TypeError) as error:
                raise ValueError(f"{file}: {error}") from None
            inherited = {key: value for key, value in values.items() if key not in ("name", "output_dir")}
        return values

    def literals(self) -> dict:
        """The study as plain lists, strings and numbers: what a notebook's parameters cell can hold."""
        plain = {
            key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()
        }
        targets = {
            contrast: target if isinstance(target, str) else _target_table(target)
            for contrast, target in self.targets
        }
        if isinstance(self.harmonizer, Program):
            plain["harmonizer"] |= {"command": list(self.harmonizer.command)}
        return {
            **plain,
            **{field: [e.literal for e in getattr(self, field)] for field in ("subjects", "taught_on")},
            "resolutions": [resolution.label for resolution in self.resolutions],
            "select": dict(self.select),
            "targets": targets,
        }

    @property
    def given(self) -> tuple[str, ...]:
        """The contrasts that HACA3 gets as sources: all but the dropped ones."""
        return tuple(contrast for contrast in CONTRASTS if contrast not in self.dropped)

    def sources(self, experiment: str) -> dict[str, str]:
        """What is left of `sources` without the dropped contrasts."""
        return {
            contrast: orientation
            for contrast, orientation in sources(experiment).items()
            if contrast in self.given
        }

    @property
    def teachers(self) -> tuple[Subject, ...]:
        """Subjects by whose stacks networks learn to super-resolve."""
        return self.taught_on or self.subjects[:3]

    @property
    def arms(self) -> tuple[str, ...]:
        """Of `ARMS`, those that the study's remedies make."""
        return tuple(arm for arm, remedies in ARMS.items() if set(remedies) <= set(self.remedies))

    def remedies_in(self, arm: str, experiment: str) -> tuple[str, ...]:
        """The remedies of an arm that change something in an experiment: where all sources are sliced alike,
        fusion does not."""
        remedies = ARMS[require("arm", arm, ARMS)]
        alike = len(set(self.sources(experiment).values())) == 1
        return tuple(remedy for remedy in remedies if not (alike and remedy == "fusion"))

    def acquisitions(self) -> list[tuple[str, str]]:
        """The (contrast, orientation) pairs that the study's experiments need as 2D stacks."""
        needed = {pair for experiment in self.experiments for pair in self.sources(experiment).items()}
        return [
            (contrast, orientation)
            for contrast in CONTRASTS
            for orientation in ORIENTATIONS
            if (contrast, orientation) in needed
        ]
