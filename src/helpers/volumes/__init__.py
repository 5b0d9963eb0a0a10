"""NIfTI volumes in and out, with their sidecars. No other module of ours opens an image file.

A volume that was written is complete: data and sidecar are written under temporary names, synced and
renamed, and the sidecar, which is renamed last, is what says that a volume is there.
"""

import gzip
import hashlib
import io
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import nibabel as nib
import numpy as np

from helpers.volumes.files import disguise, record_use, write_bytes
from helpers.volumes.header import (
    KINDS,
    UNREADABLE,
    affine_of,
    check_length,
    millimetres_of,
    parse_header,
    qform_of,
    shape_of,
)

#: Volume that was removed to save space -> what makes it again.
_REMOVED: dict[Path, Callable[[], None]] = {}


def as_volume(volume: np.ndarray, what: str = "volume") -> np.ndarray:
    """Return `volume` as an array if it can be an image, else raise one line that says why not.

    Parameters
    ----------
    volume : array_like
        Anything.
    what : str
        What to call it in the message: a file, or an argument's name.

    Raises
    ------
    ValueError
        If it is not 3D, has no voxels, or has values that are not finite numbers.
    """
    volume = np.asarray(volume)
    if volume.ndim != 3:
        raise ValueError(
            f"{what} has {volume.ndim} dimensions, shape {volume.shape}: accepted are 3D volumes"
        )
    if volume.size == 0:
        raise ValueError(
            f"{what} is empty, shape {volume.shape}: accepted are volumes with at least one voxel"
        )
    if not (np.issubdtype(volume.dtype, np.number) or volume.dtype == bool) or np.iscomplexobj(volume):
        raise ValueError(f"{what} holds {volume.dtype}: accepted are real numbers")
    # One sum finds NaN and inf (inf - inf included) far faster than isfinite on every voxel.
    with np.errstate(invalid="ignore"):
        total = volume.sum(dtype=np.float64)
    if not np.isfinite(total):
        bad = int(volume.size - np.isfinite(volume).sum())
        raise ValueError(f"{what} has {bad} voxels that are NaN or infinite: accepted are finite numbers")
    return volume


def make_when_read(path: Path, make: Callable[[], None]) -> None:
    """Let `read` make a file that was removed to save space."""
    _REMOVED[path] = make


def read(path: str | Path) -> tuple[np.ndarray, np.ndarray]:
    """Read a NIfTI volume: the whole file, to its last byte.

    Parameters
    ----------
    path : str or Path
        A ``.nii`` or ``.nii.gz`` file.

    Returns
    -------
    volume : ndarray, shape (X, Y, Z), float32
        Voxels in stored order, header scaling applied.
    affine : ndarray, shape (4, 4), float64
        Voxel index to world position in mm (RAS+).

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If the file

        - is not NIfTI,
        - is truncated or damaged (the checksum of gzip counts),
        - does not have the length that its header asks for,
        - is not 3D, or is empty,
        - holds anything but one real number per voxel,
        - has values that are not finite, or that float32 cannot hold,
        - does not say where its voxels lie.
    """
    make = _REMOVED.pop(Path(path), None)
    if make and not Path(path).exists():
        make()
    header, content = _open(path, whole=True)
    shape, affine = shape_of(header, path), affine_of(header, path)
    data = nib.arrayproxy.ArrayProxy(io.BytesIO(content), header)
    # What becomes infinite or NaN here is found below.
    with np.errstate(all="ignore"):
        volume = np.asarray(data, dtype=np.float32).reshape(shape, order="F")
    lowest, highest = float(volume.min()), float(volume.max())
    largest = max(abs(lowest), abs(highest))
    if not np.isfinite(largest):
        as_volume(data.get_unscaled().reshape(shape, order="F"), str(path))
        raise ValueError(
            f"{path} has values beyond {np.finfo(np.float32).max:.2g}: accepted are those that a 32-bit "
            "float can hold"
        )
    if largest < _SMALLEST and (largest > 0 or np.ptp(data.get_unscaled()) > 0):
        raise ValueError(
            f"{path} has values of at most {largest:.2g}: accepted are images with values above {_SMALLEST:g}"
        )
    return as_volume(volume, str(path)), affine


def geometry(path: str | Path) -> tuple[tuple[int, ...], np.ndarray]:
    """Shape and affine of a NIfTI volume, from its header alone.

    Returns
    -------
    shape : tuple of three int
    affine : ndarray, shape (4, 4), float64
        Voxel index to world position in mm (RAS+).

    Raises
    ------
    FileNotFoundError, ValueError
        As `read`, as far as a header can tell.
    """
    header, _ = _open(path)
    return shape_of(header, path), affine_of(header, path)


#: Largest value of an image below which 32-bit floats begin to lose digits.
_SMALLEST = 1e-30


def _open(path: str | Path, whole: bool = False) -> tuple[nib.Nifti1Header, bytes | None]:
    """The header of a NIfTI file as it is stored, once it is known to be one that can be believed; and all
    bytes, if `whole`.

    This is the one place where an image file is opened. nibabel's own loading mends headers without a word (a
    voxel size of 0 becomes 1), does not look at the end of a compressed file, and lets a header say less than
    the file holds.
    """
    path = Path(path)
    if not path.is_file():
        link = "a link to nothing" if path.is_symlink() else "no such file"
        raise FileNotFoundError(f"{path}: {'a folder' if path.is_dir() else link}: accepted is a NIfTI file")
    record_use(path)
    if not path.name.endswith((".nii", ".nii.gz")):
        raise ValueError(f"{path}: accepted are names that end in .nii or .nii.gz")
    packed = path.name.endswith(".gz")
    try:
        if not whole:
            with (gzip.open if packed else open)(path, "rb") as file:
                content = file.read(max(KINDS))
        else:
            # Unlike reading through gzip.open as far as voxels go, this reaches the checksum.
            content = gzip.decompress(path.read_bytes()) if packed else path.read_bytes()
        header = parse_header(content)
        if whole or not packed:
            check_length(header, content if whole else None, len(content) if whole else path.stat().st_size)
    except PermissionError:
        raise
    except UNREADABLE as error:
        raise _unreadable(path, error) from None
    return header, content if whole else None


def _unreadable(path: str | Path, error: Exception) -> ValueError:
    reason = disguise(path) or (str(error) or type(error).__name__).splitlines()[0]
    return ValueError(f"{path}: not a readable NIfTI volume ({reason})")


class Header(NamedTuple):
    """What the header of a volume says of its grid."""

    #: Voxels along each axis; more than three axes if the file has more.
    shape: tuple[int, ...]
    #: Distance between neighbouring voxels along the three axes, mm.
    voxel_mm: np.ndarray
    #: Voxel index to world position in mm (RAS+), or None if the header gives no position in space.
    affine: np.ndarray | None


def read_header(path: str | Path) -> Header:
    """Read what the header of a NIfTI volume says of its grid, and none of its voxels; `geometry` is for
    those that must have a place.

    Parameters
    ----------
    path : str or Path
        A ``.nii`` or ``.nii.gz`` file.

    Returns
    -------
    Header
        In mm, whichever unit of length the header names.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If it has no NIfTI header, fewer than three axes, or an affine that is not finite and invertible.
    """
    header, _ = _open(path)
    shape = tuple(int(n) for n in header.get_data_shape())
    if len(shape) < 3 or min(shape) < 1:
        raise ValueError(
            f"{path} has shape {shape}: accepted are volumes with at least one voxel along three axes"
        )
    millimetres, placed = millimetres_of(header, path), header["sform_code"] > 0 or header["qform_code"] > 0
    if not placed:
        voxel_mm = np.abs(np.array(header["pixdim"][1:4], dtype=float)) * millimetres
        if not (np.isfinite(voxel_mm).all() and voxel_mm.min() > 0):
            raise ValueError(
                f"{path} has voxels of {' x '.join(f'{mm:g}' for mm in voxel_mm)} mm: accepted are sizes "
                "above 0"
            )
        return Header(shape, voxel_mm, None)
    with np.errstate(all="ignore"):
        stored = header.get_sform() if header["sform_code"] > 0 else qform_of(header, path)[0]
        affine = np.diag([millimetres, millimetres, millimetres, 1.0]) @ np.asarray(stored, dtype=np.float64)
    if not np.isfinite(affine).all() or np.linalg.det(affine[:3, :3]) == 0:
        raise ValueError(f"{path} has the affine {affine.tolist()}: accepted is an invertible 4 x 4 matrix")
    # A file's two records of its voxel size may differ; the affine is the one that images are placed by.
    return Header(shape, nib.affines.voxel_sizes(affine), affine)


def sidecar_path(path: str | Path) -> Path:
    """The JSON file beside a volume or a table: ``x.nii.gz`` -> ``x.json``, ``x.csv`` -> ``x.json``."""
    path = Path(path)
    return path.with_name(path.name.removesuffix(".gz").removesuffix(".nii").removesuffix(".csv") + ".json")


def read_sidecar(path: str | Path) -> dict | None:
    """The sidecar of the volume at `path`, or None if there is none that can be read."""
    record_use(path)
    record_use(sidecar_path(path))
    return _sidecar(path)


def _sidecar(path: str | Path) -> dict | None:
    try:
        return parse_sidecar(sidecar_path(path).read_bytes())
    except (OSError, ValueError):
        return None


def read_given_sidecar(path: str | Path) -> dict:
    """The sidecar of a volume that somebody else wrote; empty if there is none.

    Raises
    ------
    ValueError
        If there is one that cannot be read: what it says must not be replaced by a guess.
    """
    sidecar = sidecar_path(path)
    if not os.path.lexists(sidecar):
        return {}
    record_use(sidecar)
    try:
        return parse_sidecar(sidecar.read_bytes())
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        reason = reason if sidecar.exists() else "a link to nothing"
        raise ValueError(f"{sidecar}: {reason}: accepted is a JSON object, or none at all") from None


def parse_sidecar(content: bytes) -> dict:
    """What a sidecar says, in UTF-8 with or without a byte order mark.

    Raises
    ------
    ValueError
        If it is no JSON object, or gives a key two values.
    """
    try:
        sidecar = json.loads(content.decode("utf-8-sig"), object_pairs_hook=_without_contradiction)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"not a JSON object ({str(error).splitlines()[0]})") from None
    if not isinstance(sidecar, dict):
        raise ValueError(f"not a JSON object (it holds {json.dumps(sidecar)[:40]})")
    return sidecar


def _without_contradiction(pairs: list[tuple]) -> dict:
    entries = {}
    for key, value in pairs:
        if key in entries and entries[key] != value:
            raise ValueError(f"{key} is there twice with different values")
        entries[key] = value
    return entries


def write(path: str | Path, volume: np.ndarray, affine: np.ndarray, sidecar: dict | None = None) -> dict:
    """Write a volume and its sidecar, both or neither.

    Parameters
    ----------
    path : str or Path
        Ends in ``.nii.gz``. Missing folders are made.
    volume : ndarray, shape (X, Y, Z)
        Written as it is if uint8 or int16, as uint8 if boolean, else as float32.
    affine : ndarray, shape (4, 4)
        Voxel index to world position in mm.
    sidecar : dict, optional
        What to record beside the volume. ``ContentSha256`` and ``ContentBytes`` of the file are added.

    Returns
    -------
    dict
        The sidecar as written.

    Raises
    ------
    ValueError
        If the volume fails `check`, the affine cannot be one, the name does not end in ``.nii.gz``, or the
        volume that is there already has another ``Note`` in its sidecar, which says whether it is simulated
        or somebody's own.
    """
    path = Path(path)
    if not path.name.endswith(".nii.gz"):
        raise ValueError(f"{path}: accepted are names that end in .nii.gz")
    before, now = (_sidecar(path) or {}).get("Note"), (sidecar or {}).get("Note")
    if before and now and before != now:
        raise ValueError(
            f"{path}: not replaced, since it is there and says {before!r}, the new one {now!r}: accepted is "
            "another folder"
        )
    volume = as_volume(volume, str(path))
    if volume.dtype == bool:
        volume = volume.astype(np.uint8)
    elif volume.dtype not in (np.uint8, np.int16):
        volume = volume.astype(np.float32)
    affine = np.asarray(affine, dtype=np.float64)
    if affine.shape != (4, 4) or not np.isfinite(affine).all() or np.linalg.det(affine[:3, :3]) == 0:
        raise ValueError(
            f"{path}: affine is {affine.tolist()}: accepted are finite 4x4 matrices that can be inverted"
        )
    image = nib.Nifti1Image(volume, affine)
    image.header.set_xyzt_units("mm", "sec")
    # mtime=0 and no file name in the gzip header: the same volume gives the same bytes.
    content = gzip.compress(image.to_bytes(), compresslevel=1, mtime=0)
    return write_with_sidecar(path, content, sidecar or {})


def write_with_sidecar(path: str | Path, content: bytes, sidecar: dict) -> dict:
    """Write a file and, last, its sidecar with ``ContentSha256`` and ``ContentBytes`` added; return that
    sidecar."""
    sidecar = dict(sidecar, ContentSha256=hashlib.sha256(content).hexdigest(), ContentBytes=len(content))
    text = json.dumps(sidecar, indent=2, sort_keys=True, allow_nan=False) + "\n"
    # An old sidecar must not vouch for new data, should we be killed between the two renames. If the data are
    # the same, as when two notebooks make one table at once, it stays: whoever looks meanwhile shall not find
    # it missing.
    if (_sidecar(path) or {}).get("ContentSha256") != sidecar["ContentSha256"]:
        sidecar_path(path).unlink(missing_ok=True)
    write_bytes(path, content)
    write_bytes(sidecar_path(path), text.encode())
    return sidecar
