"""The subjects of a study: images of simulated ones, and images of one's own, which are examined, prepared,
and refused if they are not fit."""

import dataclasses
import functools
import hashlib
import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from helpers import grid, layout, volumes
from helpers.cohort import origins, phantom, scanners
from helpers.pipeline import cache, folders
from helpers.study import CONTRASTS
from helpers.study.file import Study
from helpers.study.subjects import OwnSubject, Subject, TargetImages, require_label
from helpers.volumes.files import fingerprint, in_words, look, record_use


def cohort(plan: Study, subject: Subject) -> dict[str, Path]:
    """The subject's high-resolution images and brain mask, 1 mm isotropic in MNI space.

    Simulated subject n is scanned by the study's scanner n, the target subject by the target scanner. Images
    of one's own are prepared from the study's `bids_dir`, or from its `targets`; without these, what was
    prepared before is taken.

    Returns
    -------
    dict
        Contrast -> path, and ``"mask"`` -> path of the brain mask. One's own subjects need not have the
        dropped contrasts, and do not show them.

    Raises
    ------
    ValueError
        If an image of one's own is not fit for the study, naming the file and why; or if the study's folder
        is of subjects of the other kind, as `helpers.cohort.origins.refuse_mixture`.
    FileNotFoundError
        If it was not prepared, and the study does not say from what.
    """
    origins.refuse_mixture(folders.folder(plan), subject)
    contrasts = plan.given if subject.may_lack_contrasts else CONTRASTS
    paths = {
        contrast: layout.image(folders.root(plan), subject, contrast, desc="preproc")
        for contrast in contrasts
    }
    paths["mask"] = layout.image(folders.root(plan), subject, "mask", desc="brain")
    if subject.simulated:
        _simulate(subject.number, paths)
    elif plan.bids_dir or (subject == TargetImages() and plan.targets):
        _prepare(plan, subject, paths)
    elif missing := [
        path
        for path in paths.values()
        if not cache.is_done(path, (volumes.read_sidecar(path) or {}).get("Key", ""))
    ]:
        raise FileNotFoundError(f"{missing[0]}: not there yet: notebook 00_cohort makes it from bids_dir")
    return paths


def target_subject(plan: Study) -> Subject:
    """The subject whose images define the target: those given as targets, or a simulated one."""
    return TargetImages() if plan.targets else origins.TARGET_SUBJECT


def target_images(plan: Study) -> dict[str, Path]:
    """Contrast -> path of the image that says how harmonized images look; a contrast given by theta and eta
    has none."""
    given = [contrast for contrast, target in plan.targets if isinstance(target, str)]
    contrasts = given if plan.targets else CONTRASTS
    return {contrast: cohort(plan, target_subject(plan))[contrast] for contrast in contrasts}


def anatomies(plan: Study) -> dict[int, str]:
    """Number of a simulated subject -> the embedded brain that it was made from, as its sidecar names it."""
    simulated = [subject for subject in plan.subjects if subject.simulated]
    return {s.number: volumes.read_sidecar(cohort(plan, s)["mask"])["Anatomy"] for s in simulated}


#: `helpers.cohort.phantom.subject`, which keeps the last subject in memory: notebook 00 writes its images,
#: then shows its tissues.
person = functools.lru_cache(maxsize=1)(phantom.subject)


def _simulate(number: int, paths: Mapping[str, Path]) -> None:
    target = number == phantom.TARGET_SEED
    scanner = "target" if target else f"study-{(number - 1) % 10 + 1}"
    # What `phantom.subject` reads.
    files = sorted(layout.ANATOMY.glob(f"sub-{phantom.anatomy_of(number)}_*.nii.gz"))
    anatomy = {path.name: volumes.read_sidecar(path)["ContentSha256"] for path in files}
    key = cache.key("cohort", [], {"subject": number, "scanner": scanner, "anatomy": anatomy})

    def work(missing):
        simulated, machine = person(number), scanners.scanner(scanner)
        for name in missing:
            if name == "mask":
                yield simulated.brain, simulated.affine, {"Type": "Brain", "Anatomy": simulated.anatomy}
            else:
                image = phantom.render(
                    simulated, machine, name, noise_seed=1000 * number + CONTRASTS.index(name)
                )
                yield (
                    image,
                    simulated.affine,
                    {
                        "Scanner": scanner,
                        "MRAcquisitionType": "3D",
                        "Anatomy": simulated.anatomy,
                    },
                )

    cache.compute(paths, key, [], work)


def acquired(plan: Study, subject: Subject) -> dict[str, Path]:
    """Contrast -> the image that the subject's high-resolution image is made from: for a simulated subject
    that image itself."""
    if subject.simulated:
        return {contrast: path for contrast, path in cohort(plan, subject).items() if contrast != "mask"}
    if subject == TargetImages():
        return {contrast: Path(path) for contrast, path in plan.targets if isinstance(path, str)}
    if not plan.bids_dir:
        raise ValueError(
            f"subject is {subject.label!r}, a label, and bids_dir is empty: accepted are numbers, or "
            "bids_dir with that label in it"
        )
    subjects, left_out = layout.find_subjects(plan.bids_dir, [subject.label], dict(plan.select), plan.given)
    if subject.label not in subjects:
        raise ValueError(f"{plan.bids_dir}: {'; '.join(left_out.values())}")
    return subjects[subject.label]


def check_cohort(plan: Study, voxels: bool = True) -> tuple[Study, dict[str, str]]:
    """The subjects of a data set that take part, as far as that is known before anything is computed.

    Parameters
    ----------
    voxels : bool
        True: images are read to their last byte and looked at, unless they were prepared since they last
        changed; a fraction of a second each. False: names and headers only.

    Returns
    -------
    plan : Study
        With the subjects that take part, each session by itself. Unchanged if its subjects are simulated.
    left_out : dict of str to str
        Label -> one line that says why that subject does not.

    Raises
    ------
    ValueError, FileNotFoundError
        If no subject is left, an image must be chosen, a target's image cannot be used, or the study's folder
        is of the other kind of subjects.
    """
    for path, result in _examine_files(
        [Path(image) for _, image in plan.targets if isinstance(image, str)], voxels
    ).items():
        _refuse({path: path}, {path: result()})
    if not plan.bids_dir:
        for subject in plan.subjects:
            origins.refuse_mixture(folders.folder(plan), subject)
        return plan, {}
    if folders.folder(plan).resolve() == Path(plan.bids_dir):
        raise ValueError(
            f"output_dir is {plan.bids_dir}, which is bids_dir as well: accepted is a folder of its own"
        )
    labels = [subject.label for subject in plan.subjects]
    paths, left_out = layout.find_subjects(plan.bids_dir, labels, dict(plan.select), plan.given)
    subjects = {OwnSubject(label): images for label, images in paths.items()}
    for subject in subjects:
        origins.refuse_mixture(folders.folder(plan), subject)
    files = {
        path: _is_prepared(plan, subject, contrast, path)
        for subject, images in subjects.items()
        for contrast, path in images.items()
    }
    examined = _examine_files([path for path, done in files.items() if not done], voxels)
    examined |= _examine_files([path for path, done in files.items() if done], voxels=False)
    seen: dict[tuple, str] = {}
    for subject, images in subjects.items():
        try:
            require_label(subject.label)
            _refuse(images, {contrast: examined[path]() for contrast, path in images.items()})
            for contrast, path in images.items():
                # Only a copy has the same bytes: if the same voxels are compressed once more, the time in the
                # file differs.
                twin = seen.setdefault(fingerprint(path), f"{subject.name}'s {contrast}")
                if twin != f"{subject.name}'s {contrast}":
                    raise ValueError(
                        f"{path}: the same file as {twin}: accepted are images of different people"
                    )
        except (ValueError, OSError) as error:
            left_out[subject.label] = in_words(error)
    fit = tuple(subject for subject in subjects if subject.label not in left_out)
    if not fit:
        first = "; ".join(list(left_out.values())[:3])
        raise ValueError(
            f"{plan.bids_dir}: no subject can take part: {first}{'; and so on' if len(left_out) > 3 else ''}"
        )
    return dataclasses.replace(plan, subjects=fit), left_out


def _is_prepared(plan: Study, subject: Subject, contrast: str, path: Path) -> bool:
    """Whether an image was prepared after it last changed, so that it was looked at then."""
    prepared = look(
        volumes.sidecar_path(layout.image(folders.folder(plan), subject, contrast, desc="preproc"))
    )
    image = look(path)
    return bool(prepared and image and prepared[1] > image[1])


def _examine_files(paths: Sequence[Path], voxels: bool) -> dict[Path, Callable[[], list]]:
    """Image -> a function that returns what is wrong with it, or raises why it cannot be read."""
    from helpers.cohort import examination

    def examine(path):
        faults = examination.examine_grid(*volumes.geometry(path))
        if voxels and not any(fault.refuses for fault in faults):
            faults += examination.examine_file(path)
        return faults

    return examination.examine_all(examine, paths)


def findings(plan: Study, unfit: Iterable[Subject] = ()) -> list[str]:
    """Faults of images of one's own that take part all the same, one line each; without `unfit` subjects.

    These are the faults in each sidecar; images of two subjects with the same voxels, though their files
    differ; and two subjects whose images look like those of one person scanned twice.
    """
    from helpers.cohort import preparation

    lines, first, portraits = [], {}, {}
    for subject in [item for item in plan.subjects if item not in unfit]:
        for contrast in plan.given:
            path = layout.image(folders.root(plan), subject, contrast, desc="preproc")
            sidecar = volumes.read_sidecar(path) or {}
            name = f"{subject.name} {contrast}"
            lines += [f"{name}: {item}" for item in sidecar.get("Findings", [])]
            twin = first.setdefault(sidecar.get("ContentSha256", name), name)
            if twin != name:
                lines.append(f"{name}: the same voxels as {twin}: accepted are images of different people")
            elif contrast == "T1w" and not subject.simulated and cache.is_done(path, sidecar.get("Key", "")):
                portraits[subject] = _portrait(plan, path)
    for one, other in itertools.combinations(portraits, 2):
        alike = float(portraits[one] @ portraits[other])
        # Sessions of one subject are one person.
        if alike > preparation.SAME_PERSON and one.person != other.person:
            value = f"correlation {alike:.2f}, suspicious above {preparation.SAME_PERSON}"
            lines.append(
                f"{other.name} T1w: looks like {one.name} scanned again ({value}): accepted "
                "are different people"
            )
    return lines


def _portrait(plan: Study, image: Path) -> np.ndarray:
    """`helpers.cohort.preparation.portrait` of a T1w: kept in a file, since it takes a second and every run
    needs it."""
    from helpers.cohort import preparation

    path = folders.root(plan) / "encodings" / (image.name.removesuffix(".nii.gz") + "_portrait.npz")
    key = cache.key("preparation", [image], {"portrait": True})
    if not cache.is_done(path, key):
        cache.write_arrays(path, {"portrait": preparation.portrait(cache.read_volume(image)[0])}, key)
    return cache.read_arrays(path)["portrait"]


def _prepare(plan: Study, subject: OwnSubject, paths: Mapping[str, Path]) -> None:
    """Examine images of one's own and bring them onto the MNI grid."""
    from helpers.cohort import examination, preparation

    files = acquired(plan, subject)
    for path in files.values():
        record_use(path)
    contents = {contrast: hashlib.sha256(path.read_bytes()).hexdigest() for contrast, path in files.items()}
    # Notebooks that use a target do not have the parameter `brain`.
    targets = subject == TargetImages()
    brain = "extract" if targets else plan.brain
    parameters = {"contents": contents, "brain": brain, "seed": plan.seed}
    key = cache.key("preparation", [], parameters)
    # Each image of a target may be of another person, so each is prepared by itself.
    together = [[contrast] for contrast in files] if targets else [list(files)]

    def work(missing):
        images = {contrast: volumes.read(path) for contrast, path in files.items()}
        examined = {contrast: examination.examine(*image) for contrast, image in images.items()}
        _refuse(files, {contrast: findings for contrast, (findings, _) in examined.items()})
        union = np.zeros(grid.SHAPE, bool)
        for group in together:
            prepared = preparation.prepare(
                {contrast: images[contrast] for contrast in group}, brain, plan.seed
            )
            _refuse(files, prepared.findings)
            union |= prepared.brain
            for contrast in [item for item in group if item in missing]:
                findings, sharp = examined[contrast]
                yield (
                    prepared.images[contrast],
                    grid.AFFINE,
                    {
                        "Note": subject.origin,
                        **_origin([files[contrast]], plan, subject),
                        "SkullStripped": brain == "extract" or examination.is_stripped(images[contrast][0]),
                        "Findings": [str(item) for item in [*findings, *prepared.findings[contrast]]],
                        "VoxelSizeMm": sharp.voxel_mm.round(4).tolist(),
                        "EstimatedSliceSeparationMm": dict(
                            zip(sharp.directions, sharp.thickness_mm.round(2).tolist(), strict=True)
                        ),
                        "FieldOfViewCoverage": round(prepared.coverage[contrast], 4),
                        "Agreement": round(prepared.agreement[contrast], 4),
                        "TransformFromMni": prepared.transforms[contrast].round(6).tolist(),
                    },
                )
        if "mask" in missing:
            yield (
                union,
                grid.AFFINE,
                {"Type": "Brain", "Note": subject.origin, **_origin(files.values(), plan, subject)},
            )

    cache.compute({name: paths[name] for name in (*files, "mask")}, key, [], work)


def _origin(files: Iterable[Path], plan: Study, subject: OwnSubject) -> dict:
    """The sources of a prepared image. Images of a target need not be in any data set: only their names are
    recorded."""
    if subject == TargetImages():
        return {"Sources": [], "TargetImages": [path.name for path in files]}
    return {"Sources": [layout.uri(path, "source", plan.bids_dir) for path in files]}


def _refuse(files: Mapping[str, Path], findings: Mapping[str, list]) -> None:
    refusals = [
        f"{files[contrast]}: {fault.text}"
        for contrast, faults in findings.items()
        for fault in faults
        if fault.refuses
    ]
    if refusals:
        raise ValueError("; ".join(refusals))
