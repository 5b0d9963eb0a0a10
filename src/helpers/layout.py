"""Where things are: the repository's folders and the BIDS names of everything that a study writes."""

import itertools
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from helpers.study import CONTRASTS, DROPPABLE, ENTITIES, REPOSITORY
from helpers.study.subjects import Subject
from helpers.volumes.files import in_words

ROOT = REPOSITORY
ANATOMY = ROOT / "data" / "anatomy"
MODELS = ROOT / "data" / "models"
DERIVATIVES = ROOT / "data" / "derivatives"
NOTEBOOKS = ROOT / "notebooks"
FIGURES = ROOT / "figures"

SPACE = "MNI152NLin2009aSym"


def image(
    root,
    subject: Subject,
    suffix: str,
    *,
    desc: str,
    acq: str | None = None,
    rec: str | None = None,
    res: str | None = None,
) -> Path:
    """Path of one image of a study.

    Parameters
    ----------
    root : str or Path
        Folder of the study's derivatives.
    subject : Subject
    suffix : str
        Contrast (``T1w``, ``T2w``, ``FLAIR``) or ``mask``.
    desc : str
        Stage that made it, e.g. ``degraded``.
    acq : str, optional
        Orientation of a simulated 2D acquisition.
    rec : str, optional
        Experiment of Table 1 for a harmonized image.
    res : str, optional
        Resolution slug.

    Examples
    --------
    >>> from helpers.study.subjects import SimulatedSubject
    >>> image("x", SimulatedSubject(1), "T1w", desc="registered", acq="axial", res="5skip1p5").name
    'sub-sim01_acq-axial_space-MNI152NLin2009aSym_res-5skip1p5_desc-registered_T1w.nii.gz'
    """
    entities = {"acq": acq, "rec": rec, "space": SPACE, "res": res, "desc": desc}
    stem = "_".join(
        [subject.name, *(f"{key}-{value}" for key, value in entities.items() if value is not None)]
    )
    return Path(root).joinpath(*subject.name.split("_"), "anat", f"{stem}_{suffix}.nii.gz")


def uri(path: Path, dataset: str = "", root: str | Path = "") -> str:
    """BIDS URI of an image: of one of the study's own, or of one in the data set at `root` that a description
    calls `dataset`.

    Examples
    --------
    >>> uri(Path("/x/sub-01/ses-2/anat/sub-01_ses-2_T1w.nii.gz"))
    'bids::sub-01/ses-2/anat/sub-01_ses-2_T1w.nii.gz'
    """
    if dataset:
        return f"bids:{dataset}:{Path(path).relative_to(root).as_posix()}"
    folders = Path(path).parts[:-1]
    start = max(number for number, folder in enumerate(folders) if folder.startswith("sub-"))
    return f"bids::{'/'.join((*folders[start:], Path(path).name))}"


def require_data_set(bids_dir: str | Path) -> Path:
    """Return `bids_dir` as a path if it is a folder.

    Raises
    ------
    FileNotFoundError, NotADirectoryError
        If there is no such folder, or a file in its place.
    """
    bids_dir, accepted = Path(bids_dir), "accepted is the folder of a BIDS data set"
    if bids_dir.is_dir():
        return bids_dir
    if bids_dir.exists():
        raise NotADirectoryError(f"{bids_dir}: a file: {accepted}")
    raise FileNotFoundError(f"{bids_dir}: no such folder: {accepted}")


def find_subjects(
    bids_dir: str | Path,
    labels: Iterable[str],
    select: Mapping[str, str],
    contrasts: Iterable[str] = CONTRASTS,
) -> tuple[dict[str, dict[str, Path]], dict[str, str]]:
    """Look for the contrasts of each subject, and of each session of one that has sessions, in a BIDS data
    set.

    Looks into ``sub-*/anat`` and ``sub-*/ses-*/anat`` and nowhere else, so no link can lead it round in
    circles.

    Parameters
    ----------
    bids_dir : str or Path
        The data set.
    labels : iterable of str
        Subjects (``"01"``), sessions (``"01_ses-2"``), or ``"all"``.
    select : mapping of str to str
        Contrast -> entities, as in ``"acq-3D_run-2"``, that decide where a subject has several images of a
        contrast; ``"no-ce"`` means an image without that entity, and no other.
    contrasts : iterable of str
        Those that a subject must have; others are not looked at.

    Returns
    -------
    paths : dict of str to dict of str to Path
        Label -> contrast -> image.
    left_out : dict of str to str
        Label -> one line that says why that subject cannot take part.

    Raises
    ------
    FileNotFoundError, NotADirectoryError
        If there is no such folder.
    ValueError
        If a label is not there, or an image must be chosen: naming those among which.
    """
    bids_dir = require_data_set(bids_dir)
    everyone = _folders(bids_dir, "sub-")
    if not everyone:
        raise ValueError(f"{bids_dir}: no subjects: accepted is a BIDS data set, with folders sub-<label>")
    wanted = list(labels)
    if wanted == ["all"]:
        wanted = everyone
    contrasts, paths, left_out, open_questions = tuple(contrasts), {}, {}, []
    for label in wanted:
        subject, _, session = label.partition("_ses-")
        if subject not in everyone:
            near = ", ".join(everyone[:8]) + (", and so on" if len(everyone) > 8 else "")
            raise ValueError(f"{bids_dir}: no subject {subject!r}: accepted are {near}")
        try:
            if not _LABEL.fullmatch(subject):
                raise ValueError(f"sub-{subject}: labels have letters and digits only")
            folder = bids_dir / f"sub-{subject}"
            sessions = _folders(folder, "ses-")
            if session:
                if session not in sessions:
                    accepted = (
                        f"accepted are {', '.join(sessions)}" if sessions else f"accepted is {subject!r}"
                    )
                    raise ValueError(f"sub-{subject}: no session {session!r}: {accepted}")
                sessions = [session]
        except (ValueError, OSError) as error:
            left_out[label] = in_words(error)
            continue
        if sessions and not session and any(_is_image(name, contrasts) for name in _names(folder / "anat")):
            left_out[label] = (
                f"{folder / 'anat'}: images beside folders ses-* belong to no session: accepted are images "
                "in ses-*/anat"
            )
        for folder_session in sessions or [""]:
            name = f"{subject}_ses-{folder_session}" if folder_session else subject
            try:
                if folder_session and not _LABEL.fullmatch(folder_session):
                    raise ValueError(f"sub-{name}: labels have letters and digits only")
                images, question = _contrasts(
                    folder / f"ses-{folder_session}" if folder_session else folder, name, select, contrasts
                )
            except (ValueError, OSError) as error:
                left_out[name] = in_words(error)
                continue
            paths[name] = images
            open_questions += question
    if open_questions:
        more = f" (and {len(open_questions) - 1} more)" if len(open_questions) > 1 else ""
        raise ValueError(f"{bids_dir}: {open_questions[0]}{more}")
    return paths, left_out


_LABEL = re.compile("[A-Za-z0-9]+")


def _folders(folder: Path, prefix: str) -> list[str]:
    """What follows the prefix in the names of the folders in `folder`, sorted. Links to nothing count: they
    are refused where they are entered, not passed over."""
    if folder.is_symlink() and not folder.is_dir():
        raise ValueError(f"{folder}: a link to nothing: accepted is a folder")
    return sorted(
        path.name.removeprefix(prefix)
        for path in folder.iterdir()
        if path.name.startswith(prefix) and (path.is_dir() or (path.is_symlink() and not path.exists()))
    )


def _names(folder: Path) -> list[str]:
    return sorted(os.listdir(folder)) if folder.is_dir() else []


def _is_image(name: str, contrasts: Iterable[str]) -> bool:
    return name.endswith(
        tuple(f"_{contrast}{ending}" for contrast in contrasts for ending in (".nii", ".nii.gz"))
    )


def _contrasts(
    folder: Path, label: str, select: Mapping[str, str], contrasts: tuple[str, ...]
) -> tuple[dict[str, Path], list[str]]:
    """The images of one subject or session, and a question for each contrast of which there are several."""
    if not (folder / "anat").is_dir():
        _folders(folder, "")  # Refuses a link to nothing.
        there = ", ".join(_names(folder)[:4]) or "nothing"
        raise ValueError(f"{folder}: no folder anat, but {there}: accepted are images in anat")
    names = _names(folder / "anat")
    images, missing, questions = {}, {}, []
    for contrast in contrasts:
        wish = select.get(contrast, "")
        form = rf"sub-{label}(_[A-Za-z]+-[A-Za-z0-9+]+)*_{contrast}\.nii(\.gz)?"
        named = [name for name in names if re.fullmatch(form, name)]
        there = _chosen(named, wish)
        reasons = []
        if len(there) > 1:
            listed = f"sub-{label} has {len(there)} {contrast} images, {', '.join(there)}"
            answer = _answer(there)
            if not answer:
                raise ValueError(f"{listed}, which no entity tells apart: accepted is one of them")
            questions.append(f'{listed}: say in the study which, as in select = {{{contrast} = "{answer}"}}')
        elif there and not (folder / "anat" / there[0]).is_file():
            reasons = [
                f"{there[0]} "
                f"{'is a link to nothing' if (folder / 'anat' / there[0]).is_symlink() else 'is no file'}"
            ]
        elif not there:
            reasons = [f'{name} is not meant by select = {{{contrast} = "{wish}"}}' for name in named]
            # T1, t1w, T2-FLAIR, a copy "T1w (1)": whatever comes near.
            near = rf"_[^_]*{contrast.removesuffix('w')}[^_]*\.(?!json$)"
            others = [name for name in names if re.search(near, name, re.IGNORECASE)]
            others = [name for name in others if not _is_image(name, set(CONTRASTS) - {contrast})]
            reasons += [f"{name} {_fault(name, label, contrast)}" for name in others if name not in named]
        if reasons or not there:
            missing[contrast] = f"{contrast} ({', '.join(reasons)})" if reasons else contrast
        images[contrast] = folder / "anat" / (there[0] if there else "")
    if missing:
        raise ValueError(
            f"sub-{label}: no {', no '.join(missing.values())} in "
            f"{folder / 'anat'}{_without(contrasts, missing)}"
        )
    return images, questions


def _fault(name: str, label: str, contrast: str) -> str:
    """Why a file that seems to be an image of the contrast is not taken for one."""
    if not name.endswith((".nii", ".nii.gz")):
        return "is no .nii or .nii.gz file"
    if not name.startswith(f"sub-{label}_"):
        return f"is not called sub-{label}_..., as its folder is"
    if f"_{contrast}." not in name:
        return f"is not called {contrast}"
    return "has parts that are not <key>-<value> of letters, digits and +"


def _chosen(names: list[str], wish: str) -> list[str]:
    """The names that a study's `select` means; where several are left and none has the entities that it
    wants, all of them."""
    parts = wish.split("_") if wish else []
    without = {part.removeprefix("no-") for part in parts if part.startswith("no-")}
    names = [name for name in names if not without & {part.split("-")[0] for part in name.split("_")[1:-1]}]
    wanted = {part for part in parts if not part.startswith("no-")}
    return ([name for name in names if wanted <= set(name.split("_"))] or names) if len(names) > 1 else names


def _answer(names: list[str]) -> str:
    """The shortest `select` that leaves one of several images, the one with the fewest entities if possible;
    empty if none does.

    Each is tried on the code that will read it.
    """
    entities = {
        name: [part for part in name.split("_")[1:-1] if not part.startswith("ses-")] for name in names
    }
    keys = sorted({part.split("-")[0] for parts in entities.values() for part in parts})
    for name in sorted(
        names, key=lambda name: (any(part.startswith("ce-") for part in entities[name]), len(entities[name]))
    ):
        own = {part.split("-")[0] for part in entities[name]}
        words = [*entities[name], *(f"no-{key}" for key in keys if key not in own)]
        for count in range(1, len(words) + 1):
            for chosen in itertools.combinations(words, count):
                answer = "_".join(chosen)
                if _chosen(names, answer) == [name] and ENTITIES.fullmatch(answer):
                    return answer
    return ""


def _without(contrasts: Iterable[str], missing: Iterable[str]) -> str:
    """How a study could take a subject that lacks some of the contrasts: nothing if HACA3 cannot do without
    them."""
    dropped = [contrast for contrast in CONTRASTS if contrast in missing or contrast not in contrasts]
    names = ", ".join(f'"{contrast}"' for contrast in dropped)
    return f": accepted in a study with dropped = [{names}]" if set(dropped) <= set(DROPPABLE) else ""
