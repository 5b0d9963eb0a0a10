"""NIfTI volumes in and out. No other module of ours opens an image file.

A volume that was written is complete: data and sidecar are written under temporary names, synced and
renamed, and the sidecar, which is renamed last, is what says that a volume is there.

A notebook that runs as part of a study notes every file that it reads or writes here (`note`), so that the
study knows what its result depends on.
"""

import contextlib
import gzip
import hashlib
import itertools
import json
import os
import tempfile
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import nibabel as nib
import numpy as np

#: Environment variable with the path of the file in which `note` keeps its list.
TRACE = "RESOLUTION_MATTERS_TRACE"

#: Names of temporary files: that of the file to be, between dots, and what makes them unique.
_LEFTOVER = ".*.*.????????.tmp"

_noted = set()


def note(path: str | Path, written: bool = False) -> None:
    """Note that a file was read or written, if this process is a study's notebook (`TRACE` is set); else do nothing."""
    trace = os.environ.get(TRACE)
    entry = [os.path.abspath(path), bool(written)]
    if trace and (trace, *entry) not in _noted:
        # One line a time: what a killed process noted is there as far as it came.
        with open(trace, "a", encoding="utf-8") as file:
            file.write(json.dumps([*entry, look(path)]) + "\n")
        _noted.add((trace, *entry))


def look(path: str | Path) -> list[int] | None:
    """Size and modification time in ns of a file; None if there is none. Reading it changes neither."""
    try:
        facts = os.stat(path)
    except FileNotFoundError:
        return None
    return [facts.st_size, facts.st_mtime_ns]


def check(volume: np.ndarray, what: str = "volume") -> np.ndarray:
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
        raise ValueError(f"{what} has {volume.ndim} dimensions, shape {volume.shape}: accepted are 3D volumes")
    if volume.size == 0:
        raise ValueError(f"{what} is empty, shape {volume.shape}: accepted are volumes with at least one voxel")
    if not (np.issubdtype(volume.dtype, np.number) or volume.dtype == bool) or np.iscomplexobj(volume):
        raise ValueError(f"{what} holds {volume.dtype}: accepted are real numbers")
    # One sum finds NaN and inf (inf - inf included) far faster than isfinite on every voxel.
    with np.errstate(invalid="ignore"):
        total = volume.sum(dtype=np.float64)
    if not np.isfinite(total):
        bad = int(volume.size - np.isfinite(volume).sum())
        raise ValueError(f"{what} has {bad} voxels that are NaN or infinite: accepted are finite numbers")
    return volume


def read(path: str | Path) -> tuple[np.ndarray, np.ndarray]:
    """Read a NIfTI volume.

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
        If it is not NIfTI, is truncated, is not 3D, is empty, holds values that are not finite, or does not say where its voxels lie.
    """
    image = _open(path)
    try:
        volume = np.asarray(image.get_fdata(dtype=np.float32, caching="unchanged"))
    except _UNREADABLE as error:
        raise _unreadable(path, error) from None
    # Trailing axes of length one (X, Y, Z, 1) are how some converters write a 3D image.
    while volume.ndim > 3 and volume.shape[-1] == 1:
        volume = volume[..., 0]
    return check(volume, str(path)), _affine(image, path)


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
    image = _open(path)
    shape = image.shape
    while len(shape) > 3 and shape[-1] == 1:
        shape = shape[:-1]
    if len(shape) != 3:
        raise ValueError(f"{path} has {len(shape)} dimensions, shape {shape}: accepted are 3D volumes")
    return shape, _affine(image, path)


#: What nibabel raises at a file that is no NIfTI, or not all of one.
_UNREADABLE = (
    nib.filebasedimages.ImageFileError, nib.spatialimages.HeaderDataError, OSError, EOFError, ValueError, OverflowError, zlib.error
)
#: Units of length in a NIfTI header, in mm. Where a header names none, they are mm.
_UNIT_MM = {"meter": 1000.0, "mm": 1.0, "micron": 0.001, "unknown": 1.0}
#: Voxels of an MR image of a head, generously.
_VOXEL_MM = (0.01, 100.0)
#: How far apart, in mm, the two affines of a header may place a corner of the volume.
_SAME_PLACE_MM = 1.0


def _open(path: str | Path) -> nib.Nifti1Image:
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    note(path)
    if not path.name.endswith((".nii", ".nii.gz")):
        raise ValueError(f"{path}: accepted are names that end in .nii or .nii.gz")
    try:
        image = nib.load(path)
    except _UNREADABLE as error:
        raise _unreadable(path, error) from None
    if not isinstance(image, nib.Nifti1Image):
        raise ValueError(f"{path}: not a readable NIfTI volume (it is {type(image).__name__})")
    return image


def _millimetres(image: nib.Nifti1Image, path: str | Path) -> float:
    """The header's unit of length in mm."""
    try:
        return _UNIT_MM[image.header.get_xyzt_units()[0]]
    except KeyError:  # A code that the format does not know.
        raise ValueError(f"{path}: not a readable NIfTI volume (unknown unit {int(image.header['xyzt_units'])})") from None


def _unreadable(path: str | Path, error: Exception) -> ValueError:
    return ValueError(f"{path}: not a readable NIfTI volume ({(str(error) or type(error).__name__).splitlines()[0]})")


def _affine(image: nib.Nifti1Image, path: str | Path) -> np.ndarray:
    """Voxel index to position in mm, if the header gives one and does not contradict itself."""
    (sform, has_sform), (qform, has_qform) = image.get_sform(coded=True), _qform(image, path)
    if not has_sform and not has_qform:
        raise ValueError(f"{path}: neither qform nor sform is set, so left and right cannot be told: accepted is a header with one of them")
    affine = np.array(sform if has_sform else qform, dtype=np.float64)
    affine[:3] *= _millimetres(image, path)
    size = np.linalg.norm(affine[:3, :3], axis=0)
    possible = np.isfinite(affine).all() and _VOXEL_MM[0] <= size.min() and size.max() <= _VOXEL_MM[1]
    if not possible or abs(np.linalg.det(affine[:3, :3] / size)) < 1e-6:
        sizes = " x ".join(f"{mm:.4g}" for mm in size)
        accepted = f"accepted are {_VOXEL_MM[0]:g} to {_VOXEL_MM[1]:g} mm along three directions"
        raise ValueError(f"{path}: impossible geometry, voxels of {sizes} mm: {accepted}")
    if has_sform and has_qform:
        corners = np.array([(*corner, 1) for corner in itertools.product(*((0, n - 1) for n in (*image.shape, 1, 1)[:3]))]).T
        apart = np.linalg.norm(((sform - qform) @ corners)[:3], axis=0).max() * _millimetres(image, path)
        if not apart <= _SAME_PLACE_MM:
            accepted = f"accepted are headers with one of them, or with two that agree to {_SAME_PLACE_MM:g} mm"
            raise ValueError(f"{path}: sform and qform disagree by up to {apart:.1f} mm: {accepted}")
    return affine


def _qform(image: nib.Nifti1Image, path: str | Path):
    try:
        # What is stored: nibabel takes a voxel size of 0 for 1.
        kind = type(image.header)
        with (gzip.open if str(path).endswith(".gz") else open)(path, "rb") as file:
            stored = kind(file.read(kind.template_dtype.itemsize), check=False)
        return stored.get_qform(coded=True)
    except _UNREADABLE as error:  # Impossible quaternions or voxel sizes.
        raise ValueError(f"{path}: impossible geometry ({str(error).splitlines()[0]})") from None


def fingerprint(path: str | Path) -> tuple:
    """What two files must have in common to be copies of each other: their size, and 64 kB of their beginning, middle and end."""
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        parts = []
        for start in (0, size // 2, max(size - 65536, 0)):
            file.seek(start)
            parts.append(file.read(65536))
    return size, hashlib.sha256(b"".join(parts)).digest()


class Header(NamedTuple):
    """What the header of a volume says of its grid."""

    #: Voxels along each axis; more than three axes if the file has more.
    shape: tuple[int, ...]
    #: Distance between neighbouring voxels along the three axes, mm.
    voxel_mm: np.ndarray
    #: Voxel index to world position in mm (RAS+), or None if the header gives no position in space.
    affine: np.ndarray | None


def read_header(path: str | Path) -> Header:
    """Read what the header of a NIfTI volume says of its grid, and none of its voxels; `geometry` is for those that must have a place.

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
    image = _open(path)
    header, millimetres = image.header, _millimetres(image, path)
    try:
        placed = header["sform_code"] > 0 or header["qform_code"] > 0
        affine = header.get_best_affine() if placed else None
        voxel_mm = np.array(header.get_zooms()[:3], dtype=float) * millimetres
    except _UNREADABLE as error:
        raise _unreadable(path, error) from None
    shape = tuple(int(n) for n in header.get_data_shape())
    if len(shape) < 3 or min(shape) < 1:
        raise ValueError(f"{path} has shape {shape}: accepted are volumes with at least one voxel along three axes")
    if affine is not None:
        affine = np.diag([millimetres, millimetres, millimetres, 1.0]) @ affine
        if not np.isfinite(affine).all() or np.linalg.det(affine[:3, :3]) == 0:
            raise ValueError(f"{path} has the affine {affine.tolist()}: accepted is an invertible 4 x 4 matrix")
        # A file's two records of its voxel size may differ; the affine is the one that images are placed by.
        voxel_mm = nib.affines.voxel_sizes(affine)
    return Header(shape, voxel_mm, affine)


def sidecar_path(path: str | Path) -> Path:
    """The JSON file beside a volume or a table: ``x.nii.gz`` -> ``x.json``, ``x.csv`` -> ``x.json``."""
    path = Path(path)
    return path.with_name(path.name.removesuffix(".gz").removesuffix(".nii").removesuffix(".csv") + ".json")


def read_sidecar(path: str | Path) -> dict | None:
    """The sidecar of the volume at `path`, or None if there is none that can be read."""
    note(path)
    note(sidecar_path(path))
    return _sidecar(path)


def _sidecar(path: str | Path) -> dict | None:
    try:
        sidecar = json.loads(sidecar_path(path).read_text())
    except (OSError, ValueError):
        return None
    return sidecar if isinstance(sidecar, dict) else None


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
        If the volume fails `check`, the affine cannot be one, the name does not end in ``.nii.gz``, or the volume that is there already
        has another ``Note`` in its sidecar, which says whether it is simulated or somebody's own.
    """
    path = Path(path)
    if not path.name.endswith(".nii.gz"):
        raise ValueError(f"{path}: accepted are names that end in .nii.gz")
    before, now = (_sidecar(path) or {}).get("Note"), (sidecar or {}).get("Note")
    if before and now and before != now:
        raise ValueError(f"{path}: not replaced, since it is there and says {before!r}, the new one {now!r}: accepted is another folder")
    volume = check(volume, str(path))
    if volume.dtype == bool:
        volume = volume.astype(np.uint8)
    elif volume.dtype not in (np.uint8, np.int16):
        volume = volume.astype(np.float32)
    affine = np.asarray(affine, dtype=np.float64)
    if affine.shape != (4, 4) or not np.isfinite(affine).all() or np.linalg.det(affine[:3, :3]) == 0:
        raise ValueError(f"{path}: affine is {affine.tolist()}: accepted are finite 4x4 matrices that can be inverted")
    image = nib.Nifti1Image(volume, affine)
    image.header.set_xyzt_units("mm", "sec")
    # mtime=0 and no file name in the gzip header: the same volume gives the same bytes.
    content = gzip.compress(image.to_bytes(), compresslevel=1, mtime=0)
    return write_with_sidecar(path, content, sidecar or {})


def write_with_sidecar(path: str | Path, content: bytes, sidecar: dict) -> dict:
    """Write a file and, last, its sidecar with ``ContentSha256`` and ``ContentBytes`` added; return that sidecar."""
    sidecar = dict(sidecar, ContentSha256=hashlib.sha256(content).hexdigest(), ContentBytes=len(content))
    text = json.dumps(sidecar, indent=2, sort_keys=True, allow_nan=False) + "\n"
    # An old sidecar must not vouch for new data, should we be killed between the two renames. If the data are the same, as when
    # two notebooks make one table at once, it stays: whoever looks meanwhile shall not find it missing.
    if (_sidecar(path) or {}).get("ContentSha256") != sidecar["ContentSha256"]:
        sidecar_path(path).unlink(missing_ok=True)
    write_bytes(path, content)
    write_bytes(sidecar_path(path), text.encode())
    return sidecar


def write_bytes(path: str | Path, content: bytes) -> None:
    """Write a file so that it is there whole or not at all: temporary name, fsync, rename.

    Raises
    ------
    OSError
        Naming the file, if it could not be written: a full disk, a missing permission. What was there before is kept.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    try:
        with naming(path), os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    note(path, written=True)


@contextlib.contextmanager
def naming(path: str | Path) -> Iterator[None]:
    """Name the file in an error that does not: a full disk does not say for what it had no room."""
    try:
        yield
    except OSError as error:
        if error.filename is not None:
            raise
        raise type(error)(error.errno, error.strerror or str(error), str(path)) from None


def remove_leftovers(folder: str | Path, below: Iterable[str] = ()) -> None:
    """Remove the temporary files that a killed `write_bytes` left in a folder, and in all that is below those of its folders that match."""
    for top in itertools.chain.from_iterable(map(Path(folder).glob, below)):
        for temporary in top.rglob(_LEFTOVER):
            temporary.unlink(missing_ok=True)
    for temporary in Path(folder).glob(_LEFTOVER):
        temporary.unlink(missing_ok=True)
