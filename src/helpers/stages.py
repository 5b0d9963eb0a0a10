"""The stages of a study as files that are made when they are missing.

Each function returns paths. What lies there already is kept if its sidecar holds the key of what was
asked for: a hash over parameters, contents of the inputs and sources of the modules that make it. So a
notebook that is run alone makes what it needs, one that is run again finds its work done, and a study
that was killed goes on where it was.

Arrays and physics live in the other modules; this one only connects them.
"""

import dataclasses
import functools
import hashlib
import inspect
import io
import itertools
import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pandas as pd

from helpers import grid, layout, volumes
from helpers.cohort import origins, phantom
from helpers.grid import AXIS
from helpers.haca3.fast import compiler
from helpers.study import (
    CONTRASTS,
    EXPERIMENTS,
    GROUND_TRUTH,
    ONE_ORIENTATION,
    TARGET,
    Resolution,
    Study,
    check_label,
    sources,
    subject_seed,
    visited_slices,
)

HACA3_SOURCES = (
    "haca3/networks.py", "haca3/checkpoint.py", "haca3/harmonizer.py", "haca3/fast/threads.py", "haca3/fast/winograd.py", "haca3/fast/winograd.cpp", "haca3/fast/compiler.py",
)

Output = tuple[np.ndarray, np.ndarray, dict]  # volume, affine, what else the sidecar should say


def folder(plan: Study) -> Path:
    """Where the study's results are, or will be."""
    return Path(plan.output_dir) if plan.output_dir else layout.DERIVATIVES / plan.name


def title(plan: Study) -> str:
    """What the folder of the results calls itself."""
    return f"resolution-matters: {plan.name}"


def root(plan: Study) -> Path:
    """Folder of the study's results, made and described as a BIDS derivative."""
    results = folder(plan)
    path = results / "dataset_description.json"
    # Notebooks after the first know nothing of the data set from which the images came: its description stays.
    if not path.exists() or (plan.bids_dir and origins.data_set(results) != plan.bids_dir):
        if plan.bids_dir:
            origins.check(results, plan.subjects[0])
        ours, *others = _software()
        description = {
            "Name": title(plan),
            "BIDSVersion": "1.10.0",
            "DatasetType": "derivative",
            "GeneratedBy": [{**ours, "Description": origins.describe(plan.subjects[0])}, *others],
        }
        if plan.bids_dir:
            # Relative, as it would be shared: BIDS takes it from this folder.
            description["DatasetLinks"] = {"source": os.path.relpath(plan.bids_dir, results)}
            description["SourceDatasets"] = [{"URL": os.path.relpath(plan.bids_dir, results)}]
        # Names without a slash: to the validator a pattern with one is not that of a folder.
        volumes.write_bytes(results / ".bidsignore", b"tables\nreport\nfigures\nencodings\n")
        volumes.write_bytes(path, json.dumps(description, indent=2).encode() + b"\n")
    return results


@functools.cache
def _software() -> list[dict[str, str]]:
    return [{"Name": name, "Version": version(name)} for name in ("resolution-matters", "antspyx", "nibabel", "numpy", "scipy", "torch")]


@functools.cache
def _code(function: Callable, modules: tuple[str, ...], *others: Callable) -> str:
    """Hash of a stage's own source, and of the modules and other functions whose change changes its result."""
    own = "".join(map(inspect.getsource, (function, *others, visited, slice_axis, visited_slices, volumes.read, volumes.write)))
    text = own + "".join((Path(__file__).parent / module).read_text() for module in modules)
    return hashlib.sha256(text.encode()).hexdigest()


def _key(code: str, inputs: Iterable[Path], parameters: Mapping) -> str:
    contents = [_content(path) for path in inputs]
    return hashlib.sha256(json.dumps([code, contents, parameters], sort_keys=True).encode()).hexdigest()


def _content(path: Path) -> str:
    """What tells one volume from another: the hash of its file, or of the whole volume where the file holds some of its slices."""
    sidecar = volumes.read_sidecar(path)
    return sidecar.get("WholeVolumeSha256", sidecar["ContentSha256"])


def _done(path: Path, key: str) -> bool:
    sidecar = volumes.read_sidecar(path) or {}
    return sidecar.get("Key") == key and path.is_file() and path.stat().st_size == sidecar.get("ContentBytes")


def _make(outputs: Mapping[str, Path], key: str, inputs: Sequence[Path], work: Callable[[list[str]], Iterable[Output]]) -> None:
    """Write those of `outputs` that are not there already under this key: `work` gets their names, and yields one after the other."""
    missing = [name for name, path in outputs.items() if not _done(path, key)]
    if not missing:
        return
    for name, (volume, affine, facts) in zip(missing, work(missing), strict=True):
        first = volumes.read_sidecar(inputs[0]) if inputs else {}
        record = {
            "Key": key,
            "Sources": [layout.uri(source) for source in inputs],
            "SpatialReference": layout.SPACE,
            "Note": first.get("Note", origins.SEMI_SYNTHETIC),
            "SkullStripped": first.get("SkullStripped", True),
            "GeneratedBy": _software(),
        }
        volumes.write(outputs[name], volume, affine, {**record, **facts})


def cohort(plan: Study, subject: int | str) -> dict[str, Path]:
    """The subject's high-resolution images and brain mask, 1 mm isotropic in MNI space.

    A number is a semi-synthetic subject: n is scanned by the study's scanner n, the target subject by the target scanner. A label is
    one of the study's `bids_dir`, or `TARGET`; without a `bids_dir` what was prepared before is taken.

    Returns
    -------
    dict
        Contrast -> path, and ``"mask"`` -> path of the brain mask. One's own subjects need not have the dropped contrasts, and do not
        show them.

    Raises
    ------
    ValueError
        If an image of one's own is not fit for the study, naming the file and why; or if the study's folder is of subjects of the other
        kind, as `helpers.cohort.origins.check`.
    FileNotFoundError
        If it was not prepared, and the study does not say from what.
    """
    origins.check(folder(plan), subject)
    contrasts = CONTRASTS if isinstance(subject, int) or subject == TARGET else plan.given
    paths = {contrast: layout.image(root(plan), subject, contrast, desc="preproc") for contrast in contrasts}
    paths["mask"] = layout.image(root(plan), subject, "mask", desc="brain")
    if isinstance(subject, int):
        _simulate(subject, paths)
    elif plan.bids_dir or (subject == TARGET and plan.targets):
        _prepare(plan, subject, paths)
    elif missing := [path for path in paths.values() if not _done(path, (volumes.read_sidecar(path) or {}).get("Key", ""))]:
        raise FileNotFoundError(f"{missing[0]}: not there yet: notebook 00_cohort makes it from bids_dir")
    return paths


#: `helpers.cohort.phantom.subject`, remembering the last one: notebook 00 writes a subject's images, then shows its tissues.
person = functools.lru_cache(maxsize=1)(phantom.subject)


def _simulate(subject: int, paths: Mapping[str, Path]) -> None:
    target = subject == phantom.TARGET_SEED
    scanner = "target" if target else f"study-{(subject - 1) % 10 + 1}"
    anatomy = {path.name: volumes.read_sidecar(path)["ContentSha256"] for path in sorted(layout.ANATOMY.glob("*.nii.gz"))}
    key = _key(_code(_simulate, ("cohort/phantom.py",)), [], {"subject": subject, "scanner": scanner, "anatomy": anatomy})

    def work(missing):
        someone, machine = person(subject), phantom.scanner(scanner)
        for name in missing:
            if name == "mask":
                yield someone.brain, someone.affine, {"Type": "Brain"}
            else:
                image = phantom.render(someone, machine, name, noise_seed=1000 * subject + CONTRASTS.index(name))
                yield image, someone.affine, {"Scanner": scanner, "MRAcquisitionType": "3D"}

    _make(paths, key, [], work)


def acquired(plan: Study, subject: int | str) -> dict[str, Path]:
    """Contrast -> the image that the subject's high-resolution image is made from: for a simulated subject that image itself."""
    if isinstance(subject, int):
        return {contrast: path for contrast, path in cohort(plan, subject).items() if contrast != "mask"}
    if subject == TARGET:
        return {contrast: Path(path) for contrast, path in plan.targets if isinstance(path, str)}
    if not plan.bids_dir:
        raise ValueError(f"subject is {subject!r}, a label, and bids_dir is empty: accepted are numbers, or bids_dir with that label in it")
    found, left_out = layout.find_subjects(plan.bids_dir, [subject], dict(plan.select), plan.given)
    if subject not in found:
        raise ValueError(f"{plan.bids_dir}: {'; '.join(left_out.values())}")
    return found[subject]


def check_cohort(plan: Study, voxels: bool = True) -> tuple[Study, dict[str, str]]:
    """Who of a data set takes part, as far as it can be told before anything is computed.

    Parameters
    ----------
    voxels : bool
        True: images are read to their last byte and looked at, unless they were prepared since they last changed; a fraction of a
        second each. False: names and headers only.

    Returns
    -------
    plan : Study
        With the subjects that take part, and sessions told apart. As it was if its subjects are simulated.
    left_out : dict of str to str
        Label -> one line that says why that subject does not.

    Raises
    ------
    ValueError, FileNotFoundError
        If nobody is left, an image must be chosen, a target's image cannot be used, or the study's folder is of the other kind of subjects.
    """
    for path, result in _examine_files([Path(image) for _, image in plan.targets if isinstance(image, str)], voxels).items():
        _refuse({path: path}, {path: result()})
    if not plan.bids_dir:
        for subject in plan.subjects:
            origins.check(folder(plan), subject)
        return plan, {}
    if folder(plan).resolve() == Path(plan.bids_dir):
        raise ValueError(f"output_dir is {plan.bids_dir}, which is bids_dir as well: accepted is a folder of its own")
    found, left_out = layout.find_subjects(plan.bids_dir, plan.subjects, dict(plan.select), plan.given)
    for label in found:
        origins.check(folder(plan), label)
    files = {path: _is_prepared(plan, label, contrast, path) for label, images in found.items() for contrast, path in images.items()}
    examined = _examine_files([path for path, done in files.items() if not done], voxels)
    examined |= _examine_files([path for path, done in files.items() if done], voxels=False)
    seen: dict[tuple, str] = {}
    for label, images in found.items():
        try:
            check_label(label)
            _refuse(images, {contrast: examined[path]() for contrast, path in images.items()})
            for contrast, path in images.items():
                # Nothing but a copy has the same bytes: even the same voxels are compressed with another time.
                twin = seen.setdefault(volumes.fingerprint(path), f"{layout.name(label)}'s {contrast}")
                if twin != f"{layout.name(label)}'s {contrast}":
                    raise ValueError(f"{path}: the same file as {twin}: accepted are images of different people")
        except (ValueError, OSError) as error:
            left_out[label] = str(error)
    fit = tuple(label for label in found if label not in left_out)
    if not fit:
        first = "; ".join(list(left_out.values())[:3])
        raise ValueError(f"{plan.bids_dir}: no subject can take part: {first}{'; and so on' if len(left_out) > 3 else ''}")
    return dataclasses.replace(plan, subjects=fit), left_out


def _is_prepared(plan: Study, label: str, contrast: str, path: Path) -> bool:
    """Whether an image was prepared after it last changed, so that it was looked at then."""
    prepared = volumes.look(volumes.sidecar_path(layout.image(folder(plan), label, contrast, desc="preproc")))
    image = volumes.look(path)
    return bool(prepared and image and prepared[1] > image[1])


def _examine_files(paths: Sequence[Path], voxels: bool) -> dict[Path, Callable[[], list]]:
    """Image -> a function that returns what is wrong with it, or raises why it cannot be read."""
    from tqdm import tqdm

    # Decompression and arithmetic leave the interpreter to other threads; four volumes at a time fit into any memory.
    with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:
        jobs = {path: pool.submit(_examine_file, path, voxels) for path in paths}
        for job in tqdm(jobs.values(), desc="images looked at", delay=2, leave=False):
            job.exception()
    return {path: job.result for path, job in jobs.items()}


def _examine_file(path: Path, voxels: bool) -> list:
    from helpers.cohort import examination

    findings = examination.examine_grid(*volumes.geometry(path))
    if voxels and not any(each.refuses for each in findings):
        findings += _examine_version(path, *volumes.look(path))
    return findings


@functools.lru_cache(maxsize=None)
def _examine_version(path: Path, size: int, changed_ns: int) -> tuple:
    """What is wrong with the values of an image, looked for once in a process as long as it does not change."""
    from helpers.cohort import examination

    return tuple(examination.examine_values(*volumes.read(path)))


def findings(plan: Study, unfit: Iterable[str] = ()) -> list[str]:
    """What is wrong with images of one's own that take part all the same, a line each; those of `unfit` subjects do not.

    Beside what each sidecar records: images of two subjects that were prepared to the same bytes, so had the same voxels, though their
    files differed; and two subjects who look like one person scanned twice.
    """
    from helpers.cohort import preparation

    lines, first, portraits = [], {}, {}
    for subject in [each for each in plan.subjects if each not in unfit]:
        for contrast in plan.given:
            path = layout.image(root(plan), subject, contrast, desc="preproc")
            sidecar = volumes.read_sidecar(path) or {}
            name = f"{layout.name(subject)} {contrast}"
            lines += [f"{name}: {each}" for each in sidecar.get("Findings", [])]
            twin = first.setdefault(sidecar.get("ContentSha256", name), name)
            if twin != name:
                lines.append(f"{name}: the same voxels as {twin}: accepted are images of different people")
            elif contrast == "T1w" and isinstance(subject, str) and _done(path, sidecar.get("Key", "")):
                portraits[subject] = _portrait(plan, path)
    for one, other in itertools.combinations(portraits, 2):
        alike = float(portraits[one] @ portraits[other])
        # Sessions of one subject are one person.
        if alike > preparation.SAME_PERSON and one.split("_")[0] != other.split("_")[0]:
            value = f"correlation {alike:.2f}, suspicious above {preparation.SAME_PERSON}"
            lines.append(f"{layout.name(other)} T1w: looks like {layout.name(one)} scanned again ({value}): accepted are different people")
    return lines


def _portrait(plan: Study, image: Path) -> np.ndarray:
    """`helpers.cohort.preparation.portrait` of a T1w: kept, since it takes a second and is asked for by every run."""
    from helpers.cohort import preparation

    path = root(plan) / "encodings" / (image.name.removesuffix(".nii.gz") + "_portrait.npz")
    key = _key(_code(_portrait, ("cohort/preparation.py", "cohort/examination.py", "cohort/phantom.py")), [image], {})
    if not _done(path, key):
        _write_arrays(path, {"portrait": preparation.portrait(_read(image)[0])}, key)
    return _read_arrays(path)["portrait"]


def _prepare(plan: Study, subject: str, paths: Mapping[str, Path]) -> None:
    """Examine images of one's own and bring them onto the MNI grid."""
    from helpers.cohort import examination, preparation

    files = acquired(plan, subject)
    for path in files.values():
        volumes.note(path)
    contents = {contrast: hashlib.sha256(path.read_bytes()).hexdigest() for contrast, path in files.items()}
    # Notebooks that use a target know nothing of what is done to subjects.
    brain = plan.brain if subject != TARGET else "extract"
    parameters = {"contents": contents, "brain": brain, "seed": plan.seed}
    key = _key(_code(_prepare, ("cohort/preparation.py", "cohort/examination.py", "registration.py", "cohort/phantom.py", "linear.py")), [], parameters)
    # Each image of a target is a subject of its own, of whom nothing else need be known.
    together = [list(files)] if subject != TARGET else [[contrast] for contrast in files]

    def work(missing):
        images = {contrast: volumes.read(path) for contrast, path in files.items()}
        examined = {contrast: examination.examine(*image) for contrast, image in images.items()}
        _refuse(files, {contrast: findings for contrast, (findings, _) in examined.items()})
        union = np.zeros(grid.SHAPE, bool)
        for group in together:
            prepared = preparation.prepare({contrast: images[contrast] for contrast in group}, brain, plan.seed)
            _refuse(files, prepared.findings)
            union |= prepared.brain
            for contrast in [each for each in group if each in missing]:
                findings, sharp = examined[contrast]
                yield prepared.images[contrast], grid.AFFINE, {
                    "Note": origins.OWN_DATA,
                    **_origin([files[contrast]], plan, subject),
                    "SkullStripped": brain == "extract" or examination.is_stripped(images[contrast][0]),
                    "Findings": [str(each) for each in [*findings, *prepared.findings[contrast]]],
                    "VoxelSizeMm": sharp.voxel_mm.round(4).tolist(),
                    "EstimatedSliceSeparationMm": dict(zip(sharp.directions, sharp.thickness_mm.round(2).tolist(), strict=True)),
                    "FieldOfViewCoverage": round(prepared.coverage[contrast], 4),
                    "Agreement": round(prepared.agreement[contrast], 4),
                    "TransformFromMni": prepared.transforms[contrast].round(6).tolist(),
                }
        if "mask" in missing:
            yield union, grid.AFFINE, {"Type": "Brain", "Note": origins.OWN_DATA, **_origin(files.values(), plan, subject)}

    _make({name: paths[name] for name in (*files, "mask")}, key, [], work)


def _origin(files: Iterable[Path], plan: Study, subject: str) -> dict:
    """Where a prepared image comes from. Images of a target need not be in any data set: they are named only."""
    if subject == TARGET:
        return {"Sources": [], "TargetImages": [path.name for path in files]}
    return {"Sources": [layout.uri(path, "source", plan.bids_dir) for path in files]}


def _refuse(files: Mapping[str, Path], findings: Mapping[str, list]) -> None:
    refusals = [f"{files[contrast]}: {each.text}" for contrast, found in findings.items() for each in found if each.refuses]
    if refusals:
        raise ValueError("; ".join(refusals))


def degraded(plan: Study, subject: int | str, contrast: str, orientation: str, resolution: Resolution) -> Path:
    """The 2D acquisition simulated from the subject's high-resolution image."""
    from helpers.acquisition import degradation, rf_pulse

    source = cohort(plan, subject)[contrast]
    path = layout.image(root(plan), subject, contrast, desc="degraded", acq=orientation, res=resolution.slug)
    key = _key(_code(degraded, ("acquisition/rf_pulse.py", "acquisition/slice_profile.py", "acquisition/degradation.py", "linear.py")), [source], {"orientation": orientation, "resolution": resolution.label})

    def work(_):
        lr_volume, lr_affine = degradation.degrade(*_read(source), orientation, resolution)
        yield lr_volume, lr_affine, {**_acquisition(orientation, resolution), "SliceProfile": dataclasses.asdict(rf_pulse.Pulse())}

    _make({contrast: path}, key, [source], work)
    return path


def registered(plan: Study, subject: int | str, contrast: str, orientation: str, resolution: Resolution, transform: str | None = None) -> Path:
    """The simulated 2D acquisition back on the 1 mm MNI grid.

    The stack is first moved as a patient moves between scans; `transform` (the study's unless given)
    says whether that motion is undone as it is known, or as ANTs estimates it against the subject's
    own high-resolution image. The sidecar records the registration error.

    In a preview with the known transform the file holds the visited slices only, as `visited` returns them: the whole volume is
    sooner computed again from the stack (`registered_volume`) than read, and would take 13 MB.
    """
    from helpers import registration

    transform = transform or plan.transform
    stack, images = degraded(plan, subject, contrast, orientation, resolution), cohort(plan, subject)
    inputs = [stack, images[contrast], images["mask"]]
    path = layout.image(root(plan), subject, contrast, desc=f"registered{transform.capitalize()}", acq=orientation, res=resolution.slug)
    parameters = {"transform": transform, "seed": plan.seed}
    if some := _holds_slices(plan, transform):
        parameters |= {"plane": plan.reconstruction[0], "slice_step": plan.slice_step}
    key = _key(_code(registered, ("registration.py", "linear.py"), _resampled, subject_seed), inputs, parameters)

    def work(_):
        brain, affine = _read(images["mask"])
        true = registration.motion(plan.seed, subject, contrast, orientation)
        if transform == "known":
            estimated = true
        else:
            lr_volume, lr_affine = volumes.read(stack)
            fixed, _ = _read(images[contrast])
            moved = registration.move(lr_affine, true)
            estimated = registration.estimate(lr_volume, moved, fixed, affine, brain > 0, kind=transform, seed=plan.seed)
        facts = {
            **_acquisition(orientation, resolution),
            "Transform": transform,
            "RegistrationErrorMm": round(registration.error_mm(estimated, true, brain > 0, affine), 6),
        }
        whole = _resampled(stack, true, estimated)
        if some:
            yield *visited(plan, whole, affine), {**facts, "WholeVolumeSha256": hashlib.sha256(whole).hexdigest()}
        else:
            yield whole, affine, facts

    _make({contrast: path}, key, inputs, work)
    return path


def registered_volume(
    plan: Study, subject: int | str, contrast: str, orientation: str, resolution: Resolution, transform: str | None = None
) -> np.ndarray:
    """The whole volume of `registered`, even where its file holds some slices only: shape (192, 224, 192), float32."""
    from helpers import registration

    transform = transform or plan.transform
    if not _holds_slices(plan, transform):
        return _read(registered(plan, subject, contrast, orientation, resolution, transform))[0]
    true = registration.motion(plan.seed, subject, contrast, orientation)
    return _resampled(degraded(plan, subject, contrast, orientation, resolution), true, true)


def _holds_slices(plan: Study, transform: str) -> bool:
    """Whether files of registered stacks hold the visited slices only. What ANTs estimated is not computed again."""
    return plan.slice_step > 1 and transform == "known"


def _resampled(stack: Path, true: np.ndarray, estimated: np.ndarray) -> np.ndarray:
    """A stack that lies as the `true` motion says, on the MNI grid by the `estimated` one."""
    from helpers import registration

    lr_volume, lr_affine = volumes.read(stack)
    return registration.resample(lr_volume, registration.move(lr_affine, true), grid.SHAPE, grid.AFFINE, estimated)


def source_images(plan: Study, subject: int | str, experiment: str, resolution: Resolution | None) -> dict[str, Path]:
    """Contrast -> path of the image that HACA3 gets for it in an experiment of Table 1; nothing for a dropped contrast."""
    return {
        contrast: cohort(plan, subject)[contrast] if orientation == "3D" else registered(plan, subject, contrast, orientation, resolution)
        for contrast, orientation in plan.sources(experiment).items()
    }


def harmonized(plan: Study, subject: int | str, experiment: str, resolution: Resolution | None, again: bool = False) -> dict[str, Path]:
    """The three harmonized images of one experiment at one resolution.

    Parameters
    ----------
    experiment : str
        A key of Table 1, or ``"3D"`` for the ground truth (then `resolution` is None).
    again : bool
        Sample the anatomy with another seed: two ground truths give the self-noise ceiling.

    Returns
    -------
    dict
        Target contrast -> path. A preview holds the visited slices only, with the affine that says so.
    """
    inputs = source_images(plan, subject, experiment, resolution)
    aims = target_images(plan)
    desc, res = "harmonizedAgain" if again else "harmonized", resolution.slug if resolution else None
    paths = {contrast: layout.image(root(plan), subject, contrast, desc=desc, rec=experiment, res=res) for contrast in CONTRASTS}
    settings = {
        "orientations": list(plan.reconstruction),
        "anatomy": plan.anatomy,
        "mask": plan.mask,
        # One noise field per subject, the same for its ground truth and for every arm.
        "seed": int(np.random.SeedSequence([plan.seed, subject_seed(subject), int(again)]).generate_state(1)[0]),
        "slice_step": plan.slice_step,
    }
    models = [_digest(path) for path in _models(plan)]
    code = _code(harmonized, HACA3_SOURCES, _encoding, _volume, targets, subject_seed)
    parents = [*inputs.values(), *aims.values()]
    numbers = {contrast: list(each) for contrast, each in plan.targets if not isinstance(each, str)}
    parameters = {"settings": settings, "models": models, "how": _network_options(plan)}
    key = _key(code, parents, {**parameters, **({"targets": numbers} if numbers else {})})

    def work(missing):
        shared = [contrast for contrast, orientation in sources(experiment).items() if orientation == "3D" and resolution]
        images = {
            contrast: _encoding(plan, subject, contrast, orientation, resolution, contrast in shared)
            for contrast, orientation in plan.sources(experiment).items()
        }
        results = harmonizer(plan).harmonize(images, {contrast: targets(plan)[contrast] for contrast in missing}, **settings, details=True)
        details = results["details"]

        def attention(target: str) -> dict:
            # Mean and spread over the slices, each with the weight of the brain that it shows: nearly empty ones say little.
            summary = {}
            for plane, weights in details.attention[target].items():
                known = np.isfinite(weights).all(axis=1)
                stack = np.moveaxis(details.unfused[target][plane], AXIS[plane], 0)
                shown = np.count_nonzero(stack[known], axis=(1, 2))
                mean = np.average(weights[known], axis=0, weights=shown)
                sd = np.sqrt(np.average((weights[known] - mean) ** 2, axis=0, weights=shown))
                found = zip(details.sources, mean.astype(float).round(6), sd.astype(float).round(6), strict=True)
                summary[plane] = {source: {"Mean": m, "SD": d} for source, m, d in found}
            return summary

        device, options = harmonizer(plan).device, _network_options(plan)
        facts = {
            "Experiment": experiment,
            "SourceOrientations": plan.sources(experiment),
            "Transform": plan.transform,
            **({"Targets": numbers} if numbers else {}),
            "Harmonization": {
                **settings, **options, "compiled": options["compiled"] and device == "cpu", "device": device,
                "weights": models, "weights_file": Path(plan.weights).name,
            },
            **(_resolution(resolution) if resolution else {}),
        }
        for contrast in missing:
            volume, affine = visited(plan, results[contrast], grid.AFFINE)
            yield volume, affine, {**facts, "Attention": attention(contrast)}

    _make(paths, key, parents, work)
    return paths


def target_images(plan: Study) -> dict[str, Path]:
    """Contrast -> path of the image that says how harmonized images look; a contrast given by theta and eta has none."""
    if not plan.targets:
        return {contrast: cohort(plan, phantom.TARGET_SEED)[contrast] for contrast in CONTRASTS}
    given = [contrast for contrast, each in plan.targets if isinstance(each, str)]
    return {contrast: cohort(plan, TARGET)[contrast] for contrast in given}


def visited(plan: Study, volume: np.ndarray, affine: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The slices of an MNI volume that the study harmonizes and scores: all, or a preview's. What holds them alone stays as it is."""
    axis = slice_axis(plan)
    indices = visited_slices(grid.SHAPE[axis], plan.slice_step)
    if volume.shape[axis] == len(indices):
        return volume, affine
    affine = affine.copy()
    affine[:3, 3] += affine[:3, axis] * indices.start
    affine[:3, axis] *= indices.step
    some = np.moveaxis(np.moveaxis(volume, axis, 0)[indices.start :: indices.step], 0, axis)
    return np.ascontiguousarray(some), affine  # what `take` gives, without its index for every voxel


def slice_axis(plan: Study) -> int:
    """Array axis across the slices of the study's (first) reconstruction plane on HACA3's MNI grid."""
    return AXIS[plan.reconstruction[0]]


def preview_axis(plan: Study) -> int | None:
    """`slice_axis` if the study visits only some slices along it, None if it takes whole volumes."""
    return slice_axis(plan) if plan.slice_step > 1 else None


def scores(plan: Study, subject: int | str, experiment: str) -> pd.DataFrame:
    """Score one experiment at every resolution; one CSV per resolution is kept.

    Arms: ``harmonized`` against the harmonized 3D images, ``input`` (no harmonizer: the registered
    image against the 3D image), and, for the ground truth itself, ``ceiling`` (two ground truths of
    different anatomy seeds). Each arm's data range is the maximum of its reference.

    Returns
    -------
    DataFrame
        One row per resolution, contrast, arm and region. A dropped contrast has no source, so no arm ``input``; its orientation is
        that of Table 1.
    """
    resolutions = [None] if experiment == GROUND_TRUTH else plan.resolutions
    return pd.concat([_scores(plan, subject, experiment, each) for each in resolutions], ignore_index=True)


def _scores(plan: Study, subject: int | str, experiment: str, resolution: Resolution | None) -> pd.DataFrame:
    from helpers.analysis import metrics

    slug = f"_res-{resolution.slug}" if resolution else ""
    path = root(plan) / "tables" / f"{layout.name(subject)}_exp-{experiment}{slug}_scores.csv"
    mask, truth = cohort(plan, subject)["mask"], harmonized(plan, subject, GROUND_TRUTH, None)
    scored = harmonized(plan, subject, experiment, resolution, again=resolution is None)
    inputs = source_images(plan, subject, experiment, resolution)
    key = _key(_code(_scores, ("analysis/metrics.py",), input_scores), [mask, *truth.values(), *scored.values(), *inputs.values()], _how(plan))
    if not _done(path, key):
        brain = visited(plan, *_read(mask))[0] > 0
        rows = []
        for contrast in CONTRASTS:
            numbers = metrics.score(_read(truth[contrast])[0], volumes.read(scored[contrast])[0], brain, preview_axis(plan))
            arms = {"harmonized" if resolution else "ceiling": numbers}
            if resolution and contrast in inputs:
                arms["input"] = input_scores(plan, subject, contrast, inputs[contrast]).to_dict("records")
            about = _about(subject, experiment, resolution, contrast)
            rows += [{**about, "arm": arm, **row, **_how(plan)} for arm, each in arms.items() for row in each]
        _write_table(path, pd.DataFrame(rows), key)
    return _read_table(path)


def input_scores(plan: Study, subject: int | str, contrast: str, image: Path) -> pd.DataFrame:
    """Score a source of HACA3 against the subject's 3D image: what is lost before the harmonizer does anything.

    Several experiments share a source, so each has a table of its own.
    """
    from helpers.analysis import metrics

    images = cohort(plan, subject)
    path = root(plan) / "tables" / "inputs" / (image.name.removesuffix(".nii.gz") + ".csv")
    seen = {"axis": slice_axis(plan), "slice_step": plan.slice_step}
    key = _key(_code(input_scores, ("analysis/metrics.py",)), [image, images[contrast], images["mask"]], seen)
    if not _done(path, key):
        arrays = [visited(plan, *_read(each))[0] for each in (images[contrast], image, images["mask"])]
        _write_table(path, pd.DataFrame(metrics.score(arrays[0], arrays[1], arrays[2] > 0, preview_axis(plan))), key)
    return _read_table(path)


def frequencies(plan: Study, subject: int | str, experiment: str) -> pd.DataFrame:
    """What is left of each through-plane frequency in the sources of HACA3 and in what it makes of them; a CSV per resolution is kept.

    The ``input`` arm is compared with the 3D image, the ``harmonized`` arm with the harmonized 3D images, by
    `helpers.analysis.metrics.fourier_correlation` inside the brain. With ``anatomy="shared"`` an output and its ground truth have the noise of the
    anatomy code in common, and what they share of it correlates as if it were anatomy, at high frequencies above all.
    Only stacks have a through-plane direction, so a contrast whose source is 3D has no rows, and neither has one whose direction a
    preview skips, or one that was dropped.

    Returns
    -------
    DataFrame
        One row per resolution, contrast, arm and frequency.
    """
    parts = [_frequencies(plan, subject, experiment, each) for each in plan.resolutions]
    return pd.concat(parts, ignore_index=True)


def _frequencies(plan: Study, subject: int | str, experiment: str, resolution: Resolution) -> pd.DataFrame:
    from helpers.analysis import metrics

    path = root(plan) / "tables" / f"{layout.name(subject)}_exp-{experiment}_res-{resolution.slug}_frequencies.csv"
    mask, truth = cohort(plan, subject)["mask"], harmonized(plan, subject, GROUND_TRUTH, None)
    made, inputs = harmonized(plan, subject, experiment, resolution), source_images(plan, subject, experiment, resolution)
    key = _key(_code(_frequencies, ("analysis/metrics.py",)), [mask, *truth.values(), *made.values(), *inputs.values()], _how(plan))
    if not _done(path, key):
        window, affine = metrics.brain_window(_read(mask)[0] > 0), _read(mask)[1]
        parts = []
        for contrast, orientation in plan.sources(experiment).items():
            if orientation == "3D" or (axis := AXIS[orientation]) == preview_axis(plan):
                continue
            pairs = {
                "input": [visited(plan, *each)[0] for each in (_read(cohort(plan, subject)[contrast]), volumes.read(inputs[contrast]))],
                "harmonized": [_read(truth[contrast])[0], volumes.read(made[contrast])[0]],
            }
            for arm, pair in pairs.items():
                weight = visited(plan, window, affine)[0]
                frequency, correlation = metrics.fourier_correlation(*pair, weight, axis, preview_axis(plan))
                rows = {"arm": arm, "frequency_per_mm": frequency, "correlation": correlation}
                parts.append(pd.DataFrame({**_about(subject, experiment, resolution, contrast), **rows, **_how(plan)}))
        columns = [*_about(subject, experiment, resolution, CONTRASTS[0]), "arm", "frequency_per_mm", "correlation", *_how(plan)]
        _write_table(path, pd.concat(parts) if parts else pd.DataFrame(columns=columns), key)
    return _read_table(path)


def all_frequencies(plan: Study) -> pd.DataFrame:
    """`frequencies` of every subject in the experiments with one orientation (1a to 1c); written as ``tables/frequencies.csv``."""
    experiments = [each for each in plan.experiments if each in ONE_ORIENTATION]
    parts = [frequencies(plan, subject, experiment) for subject in plan.subjects for experiment in experiments]
    return _gather(plan, "frequencies", parts)


def cutoffs(curves: pd.DataFrame) -> pd.DataFrame:
    """The frequency at which each curve of `all_frequencies` falls below 0.5: ``cutoff_per_mm``, a row per curve."""
    from helpers.analysis import metrics

    columns = [column for column in curves.columns if column not in ("frequency_per_mm", "correlation")]
    if curves.empty:
        return pd.DataFrame(columns=[*columns, "cutoff_per_mm"])
    found = curves.groupby(columns, sort=False)[["frequency_per_mm", "correlation"]]
    rows = [(*names, metrics.cutoff(rows.frequency_per_mm.to_numpy(), rows.correlation.to_numpy())) for names, rows in found]
    return pd.DataFrame(rows, columns=[*columns, "cutoff_per_mm"])


def attention(plan: Study, subject: int | str, experiment: str) -> pd.DataFrame:
    """How much each source weighed in each harmonized image of one experiment, from the sidecars.

    Returns
    -------
    DataFrame
        One row per resolution, target contrast, reconstruction plane and source contrast: ``weight`` (mean over the slices, by the
        area of the brain in each) and ``weight_sd`` (over the slices).
    """
    rows = []
    for resolution in [None] if experiment == GROUND_TRUTH else plan.resolutions:
        for target, path in harmonized(plan, subject, experiment, resolution).items():
            for plane, weights in volumes.read_sidecar(path)["Attention"].items():
                for source in plan.given:
                    about = _about(subject, experiment, resolution, source)
                    about |= {"target": target, "plane": plane, "source": about.pop("contrast")}
                    rows.append({**about, "weight": weights[source]["Mean"], "weight_sd": weights[source]["SD"], **_how(plan)})
    return pd.DataFrame(rows)


def all_attention(plan: Study) -> pd.DataFrame:
    """`attention` of every subject in every experiment and in the ground truth; written as ``tables/attention.csv``."""
    parts = [attention(plan, subject, experiment) for subject in plan.subjects for experiment in (GROUND_TRUTH, *plan.experiments)]
    return _gather(plan, "attention", parts)


def all_registrations(plan: Study) -> pd.DataFrame:
    """The registration error of every stack, from the sidecars; written as ``tables/registrations.csv``.

    Returns
    -------
    DataFrame
        One row per subject, contrast, orientation and resolution: ``registration_error_mm``, the mean displacement over the brain.
    """
    rows = []
    for subject in plan.subjects:
        for contrast, orientation in plan.acquisitions():
            for resolution in plan.resolutions:
                sidecar = volumes.read_sidecar(registered(plan, subject, contrast, orientation, resolution))
                about = {"subject": _called(subject), "contrast": contrast, "orientation": orientation, "resolution": resolution.label}
                about |= {"separation_mm": resolution.separation_mm, "registration_error_mm": sidecar["RegistrationErrorMm"]}
                rows.append({**about, "transform": plan.transform, "seed": plan.seed})
    columns = ["subject", "contrast", "orientation", "resolution", "separation_mm", "registration_error_mm", "transform", "seed"]
    return _gather(plan, "registrations", [pd.DataFrame(rows, columns=columns)])


def other_studies(folders: Iterable[str | Path], table: str = "scores") -> pd.DataFrame:
    """A table of several studies, one below the other: of a study's `ladder`, or of its `planes`.

    Parameters
    ----------
    folders : iterable of str or Path
        Folders of results, or names of studies in ``data/derivatives``. Each must have been run to its end.
    table : str
        ``scores``, ``attention``, ``frequencies`` or ``registrations``.

    Raises
    ------
    FileNotFoundError
        If one of them has no such table.
    """
    parts = [_read_table(_table_of(folder, table)) for folder in folders]
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame()


def _table_of(study: str | Path, table: str) -> Path:
    """A table of another study, which is given by its name or folder; FileNotFoundError if it has none."""
    path = layout.DERIVATIVES / study / "tables" / f"{table}.csv"  # An absolute path stays what it is.
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such table: accepted are studies that were run to the end")
    return path


def _gather(plan: Study, name: str, parts: list[pd.DataFrame]) -> pd.DataFrame:
    """Parts of a table that have rows, as one, written beside the study's other tables."""
    filled = [part for part in parts if len(part)]
    table = pd.concat(filled or parts[:1], ignore_index=True) if parts else pd.DataFrame()
    volumes.write_bytes(root(plan) / "tables" / f"{name}.csv", table.to_csv(index=False, float_format="%.6f").encode())
    return table


def _called(subject: int | str) -> int | str:
    """A subject in tables. A label of digits would be read back as a number."""
    return layout.name(subject) if isinstance(subject, str) else subject


def _about(subject: int | str, experiment: str, resolution: Resolution | None, contrast: str) -> dict:
    return {
        "subject": _called(subject),
        "experiment": experiment,
        "resolution": resolution.label if resolution else GROUND_TRUTH,
        "thickness_mm": resolution.thickness_mm if resolution else 1.0,
        "gap_mm": resolution.gap_mm if resolution else 0.0,
        "separation_mm": resolution.separation_mm if resolution else 1.0,
        "contrast": contrast,
        "orientation": sources(experiment)[contrast],
    }


def _how(plan: Study) -> dict:
    columns = ("transform", "anatomy", "mask", "slice_step", "seed")
    # Only where something was dropped, so that tables, and the keys that hold this, stay what they were.
    dropped = {"dropped": "+".join(plan.dropped)} if plan.dropped else {}
    return {"reconstruction": "+".join(plan.reconstruction), **{column: getattr(plan, column) for column in columns}, **dropped}


def _write_table(path: Path, table: pd.DataFrame, key: str) -> None:
    volumes.write_with_sidecar(path, table.to_csv(index=False, float_format="%.6f").encode(), {"Key": key})


def _read_table(path: Path) -> pd.DataFrame:
    volumes.note(path)
    # Experiment 2 is a name, not a number.
    return pd.read_csv(path, dtype={"experiment": str, "resolution": str})


def all_scores(plan: Study) -> pd.DataFrame:
    """The tidy score table of the whole study, made where it is missing; written as ``tables/scores.csv``."""
    parts = [scores(plan, subject, experiment) for subject in plan.subjects for experiment in (GROUND_TRUTH, *plan.experiments)]
    return _gather(plan, "scores", parts)


def last_scores(plan: Study) -> tuple[str, pd.DataFrame]:
    """Name and score table of the study beside this one that was the last to run all of Table 1; if none did, of ``figures/ten``."""
    for path in sorted(root(plan).parent.glob("*/tables/scores.csv"), key=lambda path: path.stat().st_mtime, reverse=True):
        table = _read_table(path)
        if set(EXPERIMENTS) <= set(table.experiment):
            return path.parent.parent.name, table
    return "ten", _read_table(layout.FIGURES / "ten" / "scores.csv")


def headline(plan: Study) -> str:
    """The study in a few lines: mean scores inside the brain at its finest and coarsest resolution."""
    table = _read_table(root(plan) / "tables" / "scores.csv")
    table = table[(table.region == "brain") & (table.arm != "ceiling")]
    ends = table[table.separation_mm.isin([table.separation_mm.min(), table.separation_mm.max()])]
    # A 3D image is its own reference: an infinite PSNR has no mean.
    shown = ends.replace(float("inf"), float("nan")).pivot_table("psnr_db", ["experiment", "contrast"], ["arm", "resolution"])
    return f"Mean PSNR inside the brain, dB ({table.subject.nunique()} subjects)\n{shown.round(1).to_string(na_rep='')}"


def figure_2_panels(plan: Study, subject: int | str, examples: Mapping[str, tuple[str, Resolution | None]]) -> dict[str, np.ndarray]:
    """The panels of figure 2: a slice of the T1w source and of the harmonized T1w image for each example.

    Parameters
    ----------
    examples : dict
        Label -> (experiment, resolution).

    Returns
    -------
    dict
        Title -> ndarray, 2D, upright, in units of the 95th percentile by which HACA3 scales a volume: that of the
        subject's 3D image for the originals, that of the target image for the harmonized ones.
    """
    scale = {
        "original": np.percentile(_read(cohort(plan, subject)["T1w"])[0], 95),
        "harmonized": targets(plan)["T1w"].norm,
    }
    panels = {"original": {}, "harmonized": {}}
    for label, (experiment, resolution) in examples.items():
        source = volumes.read(source_images(plan, subject, experiment, resolution)["T1w"])
        panels["original"][label] = visited(plan, *source)[0]
        panels["harmonized"][label] = volumes.read(harmonized(plan, subject, experiment, resolution)["T1w"])[0]
    middle = panels["original"]["HR"].shape[slice_axis(plan)] // 2
    return {
        f"{row}, {label}": grid.upright(volume, plan.reconstruction[0], middle) / scale[row]
        for row, images in panels.items()
        for label, volume in images.items()
    }


def figures_folder(plan: Study) -> Path:
    """Where the study's figures are, or will be: beside its other results."""
    return folder(plan) / "figures"


def save_tables(plan: Study, tables: Mapping[str, pd.DataFrame]) -> None:
    """Write tables beside the figures, such as those on which the verdicts rest: whoever has them can check one by the other."""
    for name, table in tables.items():
        volumes.write_bytes(figures_folder(plan) / f"{name}.csv", table.to_csv(index=False, float_format="%.6g").encode())


def save_figure(plan: Study, name: int | str, fig, drawn: pd.DataFrame) -> Path:
    """Write a figure, the paper's by its number, ours by a name, as PNG and PDF beside the CSV of what was drawn; return the PNG's path."""
    stem = figures_folder(plan) / f"figure_{name}"
    for suffix, facts in ((".png", {}), (".pdf", {"CreationDate": None})):  # Without a date: same figure, same bytes.
        buffer = io.BytesIO()
        fig.savefig(buffer, format=suffix[1:], dpi=200, metadata=facts)
        volumes.write_bytes(stem.with_suffix(suffix), buffer.getvalue())
    volumes.write_bytes(stem.with_suffix(".csv"), drawn.to_csv(index=False, float_format="%.6g").encode())
    return stem.with_suffix(".png")


def _acquisition(orientation: str, resolution: Resolution) -> dict:
    return {"MRAcquisitionType": "2D", "Orientation": orientation, **_resolution(resolution)}


def _resolution(resolution: Resolution) -> dict:
    return {
        "SliceThickness": resolution.thickness_mm,
        "SpacingBetweenSlices": resolution.separation_mm,
        "Resolution": f"simulated 2D slices of {resolution.thickness_mm:g} mm with gaps of {resolution.gap_mm:g} mm",
    }


@functools.lru_cache(maxsize=8)
def _read_version(path: Path, content: str) -> tuple[np.ndarray, np.ndarray]:
    volume, affine = volumes.read(path)
    volume.setflags(write=False)
    return volume, affine


def _read(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Read a volume that this process is likely to read again: 3D images, masks, ground truths."""
    return _read_version(path, volumes.read_sidecar(path)["ContentSha256"])


def _models(plan: Study) -> tuple[Path, ...]:
    return tuple(layout.ROOT / path for path in (plan.weights, plan.fusion) if path)


def check_models(plan: Study) -> None:
    """Load the study's checkpoints, so that one that does not fit is refused before anything starts.

    Raises
    ------
    FileNotFoundError, ValueError
        Naming the file, and what of it does not fit.
    """
    for field in ("weights", "fusion"):
        if value := getattr(plan, field):
            try:
                _digest(layout.ROOT / value)
            except FileNotFoundError as error:
                raise FileNotFoundError(f"{field} is {value!r}: {error}") from None
    harmonizer(plan)


def check_others(plan: Study) -> None:
    """See that the studies which this one's analysis takes in were run.

    Raises
    ------
    FileNotFoundError
        Naming the key and the study.
    """
    for field in ("planes", "ladder"):
        for each in getattr(plan, field):
            try:
                _table_of(each, "scores")
            except FileNotFoundError as error:
                raise FileNotFoundError(f"{field} has {each!r}: {error}") from None


@functools.cache
def _digest(path: Path) -> str:
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such checkpoint")
    volumes.note(path)
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _network_options(plan: Study) -> dict:
    """How the networks run: as the study says, and compiled only where there is a compiler.

    So a resumed run gives the same bytes on the same kind of machine. Processors differ in how they round, and a GPU from all of
    them: volumes of different machines agree as nearly as floats do, until a label of the anatomy that was all but undecided
    falls the other way. Sidecars say which device it was.
    """
    wanted = plan.compiled and plan.precision == "float32"
    compiled = wanted and compiler.library(Path(__file__).parent / "haca3" / "fast" / "winograd.cpp")[0] is not None
    return {"variant": plan.variant, "precision": plan.precision, "compiled": compiled}


def harmonizer(plan: Study):
    """The study's harmonizer, loaded once per process."""
    return _load(_models(plan), variant=plan.variant, precision=plan.precision, compiled=plan.compiled)


@functools.cache
def _load(models: tuple[Path, ...], **options):
    from helpers import haca3

    return haca3.load(*models, **options)


@functools.cache
def targets(plan: Study) -> dict:
    """What defines the target contrasts: theta, eta and intensity scale of the target subject's images, or of those given."""
    from helpers import haca3

    images = target_images(plan)
    given = {contrast: each for contrast, each in plan.targets if not isinstance(each, str)}
    aims = {contrast: haca3.Target(np.float32(each[:2]), np.float32(each[2:4]), each[4]) for contrast, each in given.items()}
    path = root(plan) / "encodings" / "targets.npz"
    parameters = {"model": _digest(_models(plan)[0]), **_network_options(plan)}
    key = _key(_code(targets.__wrapped__, HACA3_SOURCES), images.values(), parameters)
    if not _done(path, key):
        found = {contrast: harmonizer(plan).target(volumes.read(image)[0]) for contrast, image in images.items()}
        arrays = {f"{contrast} {name}": value for contrast, target in found.items() for name, value in vars(target).items()}
        _write_arrays(path, arrays, key)
    arrays = _read_arrays(path)
    for contrast in images:
        aims[contrast] = haca3.Target(arrays[f"{contrast} theta"], arrays[f"{contrast} eta"], float(arrays[f"{contrast} norm"]))
    return {contrast: aims[contrast] for contrast in CONTRASTS}


def _encoding(plan: Study, subject: int | str, contrast: str, orientation: str, resolution: Resolution | None, shared: bool):
    """A source as HACA3 takes it: of a preview encoded once, as long as this process remembers it.

    A whole volume in three planes takes 0.5 GB of memory: there only a 3D image that is `shared` by the resolutions of an experiment
    stays encoded.
    """
    if orientation == "3D":
        resolution, path = None, cohort(plan, subject)[contrast]
    else:
        path = registered(plan, subject, contrast, orientation, resolution)
    source = (plan, subject, contrast, orientation, resolution, _content(path))
    if plan.slice_step > 1:
        return _encoded_slices(*source)
    return _encoded(*source) if shared else _volume(*source)


def _volume(plan: Study, subject: int | str, contrast: str, orientation: str, resolution: Resolution | None, version: str) -> np.ndarray:
    """A source as a whole volume. The `version` of its file is there for those who remember what was made of it."""
    if orientation == "3D":
        return _read(cohort(plan, subject)[contrast])[0]
    return registered_volume(plan, subject, contrast, orientation, resolution)


@functools.lru_cache(maxsize=21)
def _encoded_slices(plan: Study, *source):
    # 21: the three 3D images and the nine stacks of each of two resolutions, 1 MB a slice. Who goes through Table 1 resolution by
    # resolution encodes each source once.
    return harmonizer(plan).encode(_volume(plan, *source), plan.reconstruction, plan.slice_step)


@functools.lru_cache(maxsize=1)
def _encoded(plan: Study, *source):
    return harmonizer(plan).encode(_volume(plan, *source), plan.reconstruction)


def _write_arrays(path: Path, arrays: Mapping[str, np.ndarray], key: str) -> None:
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    volumes.write_with_sidecar(path, buffer.getvalue(), {"Key": key})


def _read_arrays(path: Path) -> dict[str, np.ndarray]:
    volumes.note(path)
    with np.load(path, allow_pickle=False) as file:
        return dict(file)
