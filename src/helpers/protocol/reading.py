"""A protocol survey read from a BIDS data set or a CSV table: a row for each acquisition.

An image or sidecar that cannot be read becomes a row with a reason; the survey goes on.

**Sidecars.** Those of the image and of the folders above it, by the inheritance principle of BIDS: a sidecar
applies if it has the same suffix and no entity that the image lacks. If two sidecars give different values,
the one in the folder nearer to the image counts, and in one folder the one with more entities.

**Links.** Folders that are links are not entered, so that no loop of links can stop the survey. A file that
is a link is read if its target lies inside the folder, as in DataLad; nothing outside is read. Hidden
folders, and ``derivatives``, ``sourcedata`` and ``code`` at the top, are left out.

**Privacy.** The table has labels of subject and session and the geometry. It has the name of a file only
beside a reason, so that the file can be found.

References
----------
.. [1] Brain Imaging Data Structure 1.10, "Common principles": the inheritance principle, and "Magnetic
   Resonance Imaging": MRAcquisitionType, SliceThickness (mm).
"""

import codecs
import csv
import io
import os
import re
import stat
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

import pandas as pd

from helpers import layout, volumes
from helpers.cohort import examination
from helpers.protocol import survey
from helpers.study import CONTRASTS, Resolution
from helpers.study.toml import expand_path
from helpers.volumes.files import in_words

#: Sidecars above this size, bytes, are not read: it is larger than any real one, and fits into memory.
_SIDECAR_BYTES = 4 * 2**20

_IMAGES = (".nii", ".nii.gz")
#: Images in other formats, or under other names, which would be passed over.
_OTHER_IMAGES = re.compile(r"\.(nii(\.\w+)?|img(\.gz)?|mg[hz]|mnc|nrrd)$", re.IGNORECASE)

_TERMS_LOWER = {term.lower(): term for term in survey.TERMS}


def from_bids(folder: str | Path) -> pd.DataFrame:
    """Survey the anatomical images of a BIDS folder, with a progress bar.

    An acquisition is an image in a folder ``anat``, or a sidecar there that names a subject and has no image.
    Images of the study's contrasts are read to their last byte and looked at as a study looks at them before
    it begins (about 0.2 s each, several side by side); of others the header is read. A missing image is a
    reason against an acquisition unless the folder holds no image at all: a collection of sidecars.

    Parameters
    ----------
    folder : str or Path
        A BIDS data set, or a derivative.

    Returns
    -------
    DataFrame
        Columns `COLUMNS`, a row for each acquisition, and one for each folder that could not be entered.

    Raises
    ------
    FileNotFoundError, NotADirectoryError
        If there is no such folder, or a file in its place.
    """
    from tqdm import tqdm

    folder = layout.require_data_set(expand_path(folder))
    top = os.path.realpath(folder)
    images, sidecars, rows = _walk(top)
    stems = Counter(map(_stem, images))
    alone = [
        path
        for path in sidecars
        if _in_anat(path) and "sub" in _entities(path)[0] and _stem(path) not in stems
    ]
    collection = _Sidecars(top, sidecars)
    acquisitions, readable = {}, {}
    for path in tqdm(sorted([*images, *alone]), desc="acquisitions", mininterval=0.5):
        metadata, seen, faults = collection.of(path)
        normal = seen.pop("normal", None)
        if stems[_stem(path)] > 1:
            faults.append("there is a second file of this name, compressed or not: accepted is one")
        if path in collection.paths:
            faults += ["no image beside the sidecar"] if images else []
        else:
            try:
                file = _inside(path, top)
                header = _three_dimensional(volumes.read_header(file))
                seen |= survey.slice_geometry(header, normal, survey.lengths(metadata))
                faults += [seen.pop("contradiction")] if "contradiction" in seen else []
                if header.affine is not None:
                    faults += [fault.text for fault in examination.examine_angles(header.affine)]
                if metadata["contrast"] in CONTRASTS:
                    readable[path] = file
            except (ValueError, OSError) as error:
                faults.append(_reason(error, path, top))
        acquisitions[path] = metadata, seen, faults
    examined = examination.examine_all(examination.examine_file, readable.values())
    for path, (metadata, seen, faults) in acquisitions.items():
        if path in readable:
            try:
                faults += [fault.text for fault in examined[readable[path]]()]
            except (ValueError, OSError) as error:
                faults.append(_reason(error, readable[path], top))
        rows.append(survey.acquisition({**metadata, "file": os.path.relpath(path, top)}, seen, faults))
    return survey.as_table(rows)


def slices_of(path: str | Path) -> tuple[str, Resolution] | None:
    """How the slices of one image were acquired: by its sidecar and its header, else by its spectrum.

    The result is what `helpers.haca3.Acquisition` takes, for the fusion by resolution of images of one's own.

    Parameters
    ----------
    path : str or Path
        A NIfTI image, before registration; a sidecar beside it is read.

    Returns
    -------
    (str, Resolution) or None
        Orientation, thickness and gap; None for a 3D image. Without a stated thickness, and for an image that
        was interpolated from thick slices, the thickness is the separation of the slices.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        In one line that names the file, if the geometry is missing or contradicts itself.
    """
    path = expand_path(path)
    sidecar = volumes.read_given_sidecar(path)
    metadata = {name: sidecar.get(term) for term, name in survey.TERMS.items() if name}
    try:
        normal = survey.slice_normal(sidecar)
    except ValueError as error:
        raise ValueError(f"{volumes.sidecar_path(path)}: {error}") from None
    seen = survey.slice_geometry(
        _three_dimensional(volumes.read_header(path)), normal, survey.lengths(metadata)
    )
    faults = [seen.pop("contradiction")] if "contradiction" in seen else []
    # Which contrast it is does not matter here, but those of no interest are not examined.
    row = survey.acquisition({**metadata, "contrast": CONTRASTS[0]}, seen, faults)
    if row["dimension"] == "3D" and row["dimension_from"] == "geometry":
        # It may have been interpolated from thick slices.
        volume, affine = volumes.read(path)
        measured = examination.sharpness(volume, affine)
        if examination.is_thick(measured):
            axis = int(measured.thickness_mm.argmax())
            plane, _ = survey.orientation(affine[:3, axis])
            return plane, Resolution(round(float(measured.thickness_mm[axis]), 1), 0)
    if row["dimension"] == "3D":
        return None
    if row["unfit"]:
        accepted = "accepted is an image with SliceThickness and SpacingBetweenSlices in its sidecar"
        raise ValueError(f"{path}: of its slices the geometry is missing: {row['unfit']}: {accepted}")
    gap_mm = round(max(row["spacing_mm"] - row["thickness_mm"], 0), 6)
    return row["orientation"], Resolution(row["thickness_mm"], gap_mm)


def from_csv(path: str | Path) -> pd.DataFrame:
    """Survey a table of acquisitions.

    Parameters
    ----------
    path : str or Path
        CSV, as spreadsheets write it, with a column ``contrast`` and any of `COLUMNS`, or MRAcquisitionType,
        SliceThickness and SpacingBetweenSlices in their place. Other columns are not looked at. A line number
        stands for the file name.

    Returns
    -------
    DataFrame
        Columns `COLUMNS`, a row for each line.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If it is not a CSV table, lacks the column ``contrast``, or has a row with more or fewer cells than
        the header.
    """
    path = expand_path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file: accepted is a CSV table or the folder of a data set")
    lines = _read_rows(path)
    _, header = next(lines)
    known = {_squashed(name): name for name in survey.COLUMNS}
    known |= {
        _squashed(term) + unit: name
        for term, name in survey.TERMS.items()
        for unit in ("", "mm")
        if name and name.endswith(unit)
    }
    columns = [known.get(_squashed(name), "") for name in header]
    for name in survey.COLUMNS:
        if columns.count(name) > 1:
            raise ValueError(f"{path}: column {name} is there twice: accepted is once")
    rows = []
    for number, line in lines:
        row = {name: cell for name, cell in zip(columns, line, strict=True) if name}
        rows.append(survey.acquisition({**row, "file": f"line {number}"}))
    return survey.as_table(rows)


def _squashed(name: str) -> str:
    """``"Slice thickness (mm)"`` -> ``"slicethicknessmm"``: how the name of a column is spelled does not
    count."""
    return re.sub("[^a-z0-9]", "", name.lower())


def _read_rows(path: Path) -> Iterator[tuple[int, list[str]]]:
    """Number of the line and cells of each row of a CSV file, the header first; empty rows are left out.

    As spreadsheets write them: commas, semicolons or tabs, cells in quotes, with a byte order mark, UTF-8 or
    UTF-16, any line ends, a first line that names the separator, and empty cells at the end of a row that the
    header has not.
    """
    content = path.read_bytes()
    if content.startswith((b"PK\3\4", b"\xd0\xcf\x11\xe0")):
        raise ValueError(f"{path}: not a CSV table but a workbook: accepted is one saved as CSV")
    wide = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    try:
        text = content.decode("utf-16" if wide else "utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise ValueError(
            f"{path}: not a CSV table: line {line} is no UTF-8: accepted is a file saved as UTF-8"
        ) from None
    declared = re.match(r"sep=(.)\r?\n?", text)
    separators = declared[1] if declared else ",;\t"
    start = text.splitlines()[1 if declared else 0 :]
    first = next((line for line in start if line.strip(" ,;\t")), "")
    # The header has names, and names have no separators in them: whichever gives a column of that name is
    # meant.
    separator = next((candidate for candidate in separators if "contrast" in _cells(first, candidate)), "")
    if not separator:
        names = ", ".join(survey.quoted(name) for name in _cells(first, max(separators, key=first.count)))
        raise ValueError(
            f"{path}: not a CSV table: no column contrast among {names}: accepted is one row for each "
            "acquisition"
        )
    header, before = [], 1
    reader = csv.reader(
        io.StringIO(text, newline=""), delimiter=separator, skipinitialspace=True, strict=True
    )
    try:
        for line in reader:
            number, before = before, reader.line_num + 1
            cells = [cell.strip() for cell in line]
            if not any(cells) or (declared and number == 1):
                continue
            while header and len(cells) > len(header) and not cells[-1]:
                cells.pop()
            if header and len(cells) != len(header):
                raise ValueError(
                    f"{path}: line {number} has {len(cells)} cells, the header {len(header)}: accepted are "
                    "as many"
                )
            header = header or cells
            yield number, cells
    except csv.Error as error:
        raise ValueError(f"{path}: not a CSV table: line {before}: {error}") from None


def _cells(line: str, separator: str) -> list[str]:
    return [cell.strip(' "').lower() for cell in line.split(separator)]


def _reason(error: Exception, path: str, top: str) -> str:
    """An error about a file, for a table beside its name: without the name and the folder's own path."""
    return in_words(error).removeprefix(f"{path}: ").removeprefix(f"{path} ").replace(top + os.sep, "")


class _Sidecars:
    """The sidecars of a folder, by where they apply."""

    def __init__(self, top: str, paths: Iterable[str]):
        self.top, self.paths, self.read = top, set(paths), {}
        # A folder may hold thousands of sidecars, but few for one suffix and one subject.
        self.index = {}
        for path in sorted(self.paths):
            entities, suffix = _entities(path)
            self.index.setdefault((os.path.dirname(path), suffix, entities.get("sub")), []).append(
                (path, entities.items())
            )

    def of(self, path: str) -> tuple[dict, dict, list[str]]:
        """Values of an image from the sidecars that apply to it, by the names of the table's columns.

        Returned are what counts before the image's header, what counts after it, and what is wrong with the
        sidecars or the name.
        """
        entities, suffix = _entities(path)
        metadata, faults = {}, []
        folders = [self.top]
        for part in os.path.relpath(os.path.dirname(path), self.top).split(os.sep):
            folders.append(os.path.join(folders[-1], part))
        for folder in dict.fromkeys(map(os.path.normpath, folders)):
            candidates = [
                candidate
                for sub in {None, entities.get("sub")}
                for candidate in self.index.get((folder, suffix, sub), ())
            ]
            for sidecar, wanted in sorted(
                candidates, key=lambda candidate: (len(candidate[1]), candidate[0])
            ):
                if wanted <= entities.items():
                    content, fault = self._load(sidecar)
                    metadata |= content
                    faults += [fault] if fault else []
        if "sub" not in entities:
            faults.append("name has no sub-<label>: accepted are names of BIDS")
        content = {"subject": entities.get("sub"), "session": entities.get("ses"), "contrast": suffix}
        content |= {name: metadata.get(term) for term, name in survey.TERMS.items() if name}
        seen = {}
        try:
            normal = survey.slice_normal(metadata)
            if normal is not None:
                seen["orientation"], seen["oblique_deg"] = survey.orientation(normal)
                seen["normal"] = normal
        except ValueError as error:
            faults.append(str(error))
        return content, seen, faults

    def _load(self, path: str) -> tuple[dict, str]:
        if path not in self.read:
            name = os.path.relpath(path, self.top)
            try:
                content = volumes.parse_sidecar(_bytes(_inside(path, self.top)))
                near = [key for key in content if key.lower() in _TERMS_LOWER and key not in survey.TERMS]
                faults = [
                    f"{name}: unknown key {key}: accepted is {_TERMS_LOWER[key.lower()]}" for key in near
                ]
                # Of a sidecar's hundred entries these few are kept.
                self.read[path] = (
                    {term: content[term] for term in survey.TERMS if content.get(term) is not None},
                    "; ".join(faults),
                )
            except OSError as error:
                self.read[path] = {}, f"{name}: {error.strerror or _reason(error, path, self.top)}"
            except ValueError as error:
                self.read[path] = {}, f"{name}: {error}"
        return self.read[path]


def _walk(top: str) -> tuple[list[str], list[str], list[dict]]:
    """Images in folders ``anat``, all sidecars, and rows for folders that were not entered. `top` is a real
    path."""
    images, sidecars, rows = [], [], []

    def missed(folder, why):
        name = os.path.relpath(folder, top)
        rows.append(survey.acquisition({"file": name}, faults=[why]) | {"contrast": ""})

    for folder, below, names in os.walk(
        top, onerror=lambda error: missed(error.filename, f"folder cannot be read ({error.strerror})")
    ):
        passed = ("derivatives", "sourcedata", "code") if folder == top else ()
        below[:] = sorted(name for name in below if not name.startswith(".") and name not in passed)
        for name in below:
            # os.walk names links to folders and does not enter them.
            if os.path.islink(os.path.join(folder, name)):
                missed(os.path.join(folder, name), "a link to a folder, which is not entered")
            elif name.endswith(_IMAGES):
                missed(os.path.join(folder, name), "a folder in the place of an image: accepted is a file")
        for name in names:
            if name.startswith("."):
                continue
            if name.endswith(".json"):
                sidecars.append(os.path.join(folder, name))
            elif _in_anat(path := os.path.join(folder, name)):
                if name.endswith(_IMAGES):
                    images.append(path)
                elif _OTHER_IMAGES.search(name):
                    missed(path, "is no .nii or .nii.gz file")
    return images, sidecars, rows


def _inside(path: str, top: str) -> str:
    """`path`, or the file that it links to, if that is a regular file inside `top`."""
    if os.path.islink(path):
        target = os.path.realpath(path)
        if os.path.commonpath([target, top]) != top:
            raise OSError(f"{path}: a link out of the folder, which is not followed")
        if not os.path.isfile(target):
            raise OSError(f"{path}: a link to nothing")
        return target
    if not stat.S_ISREG(os.lstat(path).st_mode):
        raise OSError(f"{path}: not a regular file")
    return path


def _bytes(path: str) -> bytes:
    size = os.path.getsize(path)
    if size > _SIDECAR_BYTES:
        raise ValueError(f"it has {size} bytes, accepted are {_SIDECAR_BYTES}")
    with open(path, "rb") as file:
        return file.read(_SIDECAR_BYTES)


def _in_anat(path: str) -> bool:
    return os.path.basename(os.path.dirname(path)) == "anat"


def _stem(path: str) -> str:
    for ending in (".gz", ".nii", ".json"):
        path = path.removesuffix(ending)
    return path


def _entities(path: str) -> tuple[dict[str, str], str]:
    """``sub-01_ses-2_T1w.nii.gz`` -> ({"sub": "01", "ses": "2"}, "T1w")."""
    *pairs, suffix = _stem(os.path.basename(path)).split("_")
    return dict(pair.split("-", 1) for pair in pairs if "-" in pair), suffix


def _three_dimensional(header: volumes.Header) -> volumes.Header:
    if any(n > 1 for n in header.shape[3:]):
        raise ValueError(f"image has shape {header.shape}: accepted are 3D volumes")
    return header
