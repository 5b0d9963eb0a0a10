"""Whose images lie in a folder of results: those of a data set of one's own, or of simulated subjects.

Each kind has names of its own (`helpers.study.subjects`), and a folder of results holds one kind: so no
simulated brain can replace a person's image or be taken for it, and none of the other kind's tables either.
The subjects that define the target stand in both.
"""

import json
from pathlib import Path

from helpers.cohort import phantom
from helpers.study.subjects import SimulatedSubject, Subject, TargetImages

#: The simulated subject whose images define the target unless others are given.
TARGET_SUBJECT = SimulatedSubject(phantom.TARGET_SEED)


def data_set(results: Path) -> str | None:
    """Return the data set of one's own that a folder of results says it was made from, or None."""
    try:
        link = json.loads((results / "dataset_description.json").read_text(encoding="utf-8"))["DatasetLinks"][
            "source"
        ]
        return str((results / link).resolve())
    except (OSError, ValueError, KeyError, TypeError):
        return None


def refuse_mixture(results: Path, subject: Subject) -> None:
    """Refuse a subject of the kind that a folder of results does not hold.

    Parameters
    ----------
    results : Path
        Folder of a study's results; it need not exist.
    subject : Subject

    Raises
    ------
    ValueError
        Naming the subject, what the folder holds and both readings; or that an earlier version replaced
        images of one's own there.
    """
    if subject in (TARGET_SUBJECT, TargetImages()):
        return
    source = data_set(results)
    if subject.simulated:
        if source:
            raise ValueError(
                f"subject is {subject}, a simulated subject, but {results} holds images of the data set "
                f"{source}: accepted are labels as text{_labels(results, subject.number)}, or for simulated "
                "subjects another name or output_dir"
            )
        return
    simulated = _simulated_before(results, f"sub-{subject.person}" if source else "sub-*")
    if source and simulated:
        raise ValueError(
            f"{results}: {simulated[0]} holds a simulated brain instead of the image of the data set "
            f"{source}: an earlier version gave both the same name, and tables and figures may show the "
            f"wrong one: remove {results / simulated[0]} and prepare it again from bids_dir"
        )
    names = sorted(path.name for path in results.glob("sub-sim*") if path.name != TARGET_SUBJECT.name)
    if not source and (names or simulated):
        number = int(subject.label) if subject.label.isdecimal() and int(subject.label) else 1
        raise ValueError(
            f"subject is {subject.label!r}, a label of a data set, but {results} holds simulated subjects, "
            f"{(names or simulated)[0]}: accepted are numbers (papermill -p subject {number}), or for a "
            "data set another name or output_dir"
        )


def earlier_version(results: Path) -> list[str]:
    """Say in one line, if there is need, that an earlier version simulated subjects in this folder under
    names that labels may have."""
    if not (names := _simulated_before(results, "sub-*")):
        return []
    return [
        f"{results}: {', '.join(names)}: simulated by an earlier version, which gave simulated subjects the "
        "names of labels; they are "
        "named sub-sim… now, and these are not used any more: remove those folders, or all results by "
        "resolution-matters clean"
    ]


def _simulated_before(results: Path, name: str) -> list[str]:
    """Folders of subjects, of those whose name matches, that have a label's name and hold a simulated
    subject's 3D image."""
    subjects = set()
    for sidecar in results.glob(f"{name}/anat/*_desc-[pb]r*.json"):  # preproc and brain
        if not sidecar.name.startswith("sub-sim") and _note(sidecar) == SimulatedSubject.origin:
            subjects.add(sidecar.parents[1].name)
    return sorted(subjects)


def _note(sidecar: Path) -> str | None:
    try:
        return json.loads(sidecar.read_text(encoding="utf-8")).get("Note")
    except (OSError, ValueError, AttributeError):
        return None


def _labels(results: Path, number: int) -> str:
    """For a message: how papermill is given a label, the one that equals `number`, else the folder's first;
    empty if it has none."""
    labels = sorted(path.name.removeprefix("sub-") for path in results.glob("sub-*"))
    labels = [label for label in labels if label != TargetImages().label and not label.startswith("sim")]
    label = next(
        (label for label in labels if label.isdecimal() and int(label) == number), next(iter(labels), "")
    )
    return f" (papermill -r subject {label})" if label else ""
