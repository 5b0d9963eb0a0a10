"""NIfTI volumes in and out. No other module of ours opens an image file.

A volume that was written is complete: data and sidecar are written under temporary names, synced and
renamed, and the sidecar, which is renamed last, is what says that a volume is there.

A notebook that runs as part of a study notes every file that it reads or writes here (`record_use`), so that
the study knows what its result depends on.
"""

import contextlib
import gzip
import hashlib
import io
import itertools
import json
import math
import os
import tempfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import nibabel as nib
import numpy as np

#: Environment variable with the path of the file in which `record_use` keeps its list.
TRACE = "RESOLUTION_MATTERS_TRACE"

#: Volume that was removed to save space -> what makes it again.
_REMOVED: dict[Path, Callable[[], None]] = {}

#: Names of temporary files: that of the file to be, between dots, and what makes them unique.
_LEFTOVER = ".*.*.????????.tmp"

_noted = set()


def record_use(path: str | Path, written: bool = False) -> None:
    """Note that a file was read or written, if this process is a study's notebook (`TRACE` is set); else do
    nothing."""
    trace = os.environ.get(TRACE)
    entry = [os.path.abspath(path), bool(written)]
    if trace and (trace, *entry) not in _noted:
        # One line a time: what a killed process noted is there as far as it came.
        with open(trace, "a", encoding="utf-8") as file:
            file.write(json.dumps([*entry, look(path)]) + "\n")
        _noted.add((trace, *entry))


@contextlib.contextmanager
def unrecorded() -> Iterator[None]:
    """Note nothing of what is read and written meanwhile (`record_use`): files that are gone in a moment."""
    trace = os.environ.pop(TRACE, None)
    try:
        yield
    finally:
        if trace is not None:
            os.environ[TRACE] = trace


def look(path: str | Path) -> list[int] | None:
    """Size and modification time in ns of a file; None if there is none. Reading it changes neither."""
    try:
        facts = os.stat(path)
    except FileNotFoundError:
        return None
    return [facts.st_size, facts.st_mtime_ns]


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
        If it is not NIfTI, is truncated or damaged (the checksum of gzip counts), does not have the length
        that its header asks for, is not 3D, is empty, holds anything but one real number a voxel, values that
        are not finite or that float32 cannot hold, or does not say where its voxels lie.
    """
    make = _REMOVED.pop(Path(path), None)
    if make and not Path(path).exists():
        make()
    header, content = _open(path, whole=True)
    shape, affine = _shape(header, path), _affine(header, path)
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
    return _shape(header, path), _affine(header, path)


#: What nibabel raises at a header that is none, and what reading damaged bytes does.
_UNREADABLE = (
    nib.filebasedimages.ImageFileError,
    nib.spatialimages.HeaderDataError,
    OSError,
    EOFError,
    ValueError,
    OverflowError,
    zlib.error,
)
#: Kinds of header by their first number, and where the voxels may begin.
_KINDS = {348: (nib.Nifti1Header, b"n+1\0", 352), 540: (nib.Nifti2Header, b"n+2\0", 544)}
#: Data types by their codes: those whose voxels are one real number each, and what others are called.
_REAL = {
    2: "uint8",
    256: "int8",
    512: "uint16",
    4: "int16",
    768: "uint32",
    8: "int32",
    1280: "uint64",
    1024: "int64",
    16: "float32",
    64: "float64",
}
_OTHER = {
    1: "bits",
    32: "complex64",
    1792: "complex128",
    2048: "complex256",
    128: "RGB colours",
    2304: "RGBA colours",
    1536: "float128",
}
#: Units of length in a NIfTI header, in mm. Where a header names none, they are mm.
_UNIT_MM = {"meter": 1000.0, "mm": 1.0, "micron": 0.001, "unknown": 1.0}
#: Voxels of an MR image of a head, generously.
_VOXEL_MM = (0.01, 100.0)
#: How far apart, in mm, the two affines of a header may place a corner of the volume.
_SAME_PLACE_MM = 1.0
#: Largest value of an image below which 32-bit floats begin to lose digits.
_SMALLEST = 1e-30
#: Zeros that may follow the voxels, bytes: what was written in whole blocks.
_PADDING = 4095


def _open(path: str | Path, whole: bool = False) -> tuple[nib.Nifti1Header, bytes | None]:
    """The header of a NIfTI file as it is stored, once it is known to be one that can be believed; and all
    bytes, if `whole`.

    This is the one place where an image file is opened. nibabel's own loading mends headers without a word (a
    voxel size of 0 becomes 1), does not look at the end of a compressed file, and lets a header say less than
    the file holds.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    record_use(path)
    if not path.name.endswith((".nii", ".nii.gz")):
        raise ValueError(f"{path}: accepted are names that end in .nii or .nii.gz")
    packed = path.name.endswith(".gz")
    try:
        if not whole:
            with (gzip.open if packed else open)(path, "rb") as file:
                content = file.read(max(_KINDS))
        else:
            # Unlike reading through gzip.open as far as voxels go, this reaches the checksum.
            content = gzip.decompress(path.read_bytes()) if packed else path.read_bytes()
        header = _header(content)
        if whole or not packed:
            _check_length(header, content if whole else None, len(content) if whole else path.stat().st_size)
    except PermissionError:
        raise
    except _UNREADABLE as error:
        raise _unreadable(path, error) from None
    return header, content if whole else None


def _header(content: bytes) -> nib.Nifti1Header:
    """The header at the beginning of a file, nothing in it mended; ValueError says what it cannot be."""
    order, size = next(
        (
            (mark, n)
            for mark, name in (("<", "little"), (">", "big"))
            if (n := int.from_bytes(content[:4], name)) in _KINDS
        ),
        (None, 0),
    )
    if order is None or len(content) < size:
        raise ValueError("it has no NIfTI header")
    kind, magic, first = _KINDS[size]
    header = kind(content[:size], endianness=order, check=False)
    if header["magic"].tobytes() != magic:
        pair = header["magic"].tobytes().startswith(b"ni")
        apart = "its voxels are in a second file, .img: accepted is one file that holds both"
        raise ValueError(apart if pair else "it has no NIfTI header")
    if not 1 <= header["dim"][0] <= 7:
        raise ValueError(f"dim[0] is {header['dim'][0]}: accepted are 1 to 7")
    if (
        header["vox_offset"] == 0
    ):  # Not set. The length of the file tells whether the voxels begin where they may at the earliest.
        header["vox_offset"] = first
    offset = float(header["vox_offset"])
    if not (first <= offset < 2**53 and offset.is_integer()):
        raise ValueError(f"vox_offset is {offset:g}: accepted are whole numbers from {first}")
    code = int(header["datatype"])
    if code not in _REAL:
        accepted = f"accepted is one real number a voxel: {', '.join(_REAL.values())}"
        raise ValueError(f"it holds {_OTHER.get(code, 'an unknown type')}, datatype {code}: {accepted}")
    for field in ("qform_code", "sform_code"):
        if not 0 <= header[field] <= 5:
            raise ValueError(f"{field} is {header[field]}: accepted are 0 to 5")
    header.get_slope_inter()
    if header["pixdim"][0] == 0:  # The standard: to be taken for 1.
        header["pixdim"][0] = 1
    return header


def _check_length(header: nib.Nifti1Header, content: bytes | None, length: int) -> None:
    """Refuse a file that is shorter or longer than its header says; zeros that fill up a block are no
    matter."""
    voxels = math.prod(max(int(n), 0) for n in header.get_data_shape())
    end = int(header["vox_offset"]) + voxels * header.get_data_dtype().itemsize
    if length < end:
        raise ValueError(f"cut short: {length} bytes of the {end} that its header asks for")
    if length - end > _PADDING or (content is not None and content[end:].strip(b"\0")):
        raise ValueError(
            f"{length} bytes where its header asks for {end}: accepted is a header that describes its voxels"
        )


def _shape(header: nib.Nifti1Header, path: str | Path) -> tuple[int, int, int]:
    shape = tuple(int(n) for n in header.get_data_shape())
    # Trailing axes of length one (X, Y, Z, 1) are how some converters write a 3D image.
    while len(shape) > 3 and shape[-1] == 1:
        shape = shape[:-1]
    if len(shape) != 3:
        raise ValueError(f"{path} has {len(shape)} dimensions, shape {shape}: accepted are 3D volumes")
    if min(shape) < 1:
        raise ValueError(f"{path} is empty, shape {shape}: accepted are volumes with at least one voxel")
    return shape


def _millimetres(header: nib.Nifti1Header, path: str | Path) -> float:
    """The header's unit of length in mm."""
    try:
        return _UNIT_MM[header.get_xyzt_units()[0]]
    except KeyError:  # A code that the format does not know.
        raise ValueError(
            f"{path}: not a readable NIfTI volume (unknown unit {int(header['xyzt_units'])}: accepted are "
            f"{', '.join(unit for unit in _UNIT_MM if unit != 'unknown')})"
        ) from None


def _unreadable(path: str | Path, error: Exception) -> ValueError:
    reason = disguise(path) or (str(error) or type(error).__name__).splitlines()[0]
    return ValueError(f"{path}: not a readable NIfTI volume ({reason})")


def disguise(path: str | Path) -> str | None:
    """What a file is that only has the name of an image or of weights, as far as its first bytes tell; else
    None.

    Returns
    -------
    str or None
        For a message: a pointer of git-lfs or git-annex, a web page, nothing at all, or compressed where its
        name says otherwise.
    """
    path = Path(path)
    with open(path, "rb") as file:
        start = file.read(512)
    text = start.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if not start:
        return "it is empty"
    if text.startswith(b"version https://git-lfs"):
        return "it is a pointer of git-lfs, not the file itself: `git lfs pull` fetches that"
    if b"/annex/objects/" in text[:200]:
        return "it is a pointer of git-annex, not the file itself: `git annex get` fetches that"
    if text.startswith((b"<!doctype", b"<html", b"<head", b"<?xml")):
        return "it is a web page, not the file itself: a download that went wrong"
    if path.name.endswith(".nii") and start.startswith(b"\x1f\x8b"):
        return "it is compressed by gzip: accepted with the name .nii.gz"
    if (
        path.name.endswith(".nii.gz")
        and not start.startswith(b"\x1f\x8b")
        and int.from_bytes(start[:4], "little") in _KINDS
    ):
        return "it is not compressed: accepted with the name .nii"
    return None


def _affine(header: nib.Nifti1Header, path: str | Path) -> np.ndarray:
    """Voxel index to position in mm, if the header gives one and does not contradict itself."""
    with np.errstate(all="ignore"):
        (sform, has_sform), (qform, has_qform) = header.get_sform(coded=True), _qform(header, path)
    if not has_sform and not has_qform:
        raise ValueError(
            f"{path}: neither qform nor sform is set, so left and right cannot be told: accepted is a "
            "header with one of them"
        )
    affine = np.array(sform if has_sform else qform, dtype=np.float64)
    millimetres = _millimetres(header, path)
    affine[:3] *= millimetres
    size = np.linalg.norm(affine[:3, :3], axis=0)
    possible = np.isfinite(affine).all() and _VOXEL_MM[0] <= size.min() and size.max() <= _VOXEL_MM[1]
    if not possible or abs(np.linalg.det(affine[:3, :3] / size)) < 1e-6:
        sizes = " x ".join(f"{mm:.4g}" for mm in size)
        accepted = f"accepted are {_VOXEL_MM[0]:g} to {_VOXEL_MM[1]:g} mm along three directions"
        raise ValueError(f"{path}: impossible geometry, voxels of {sizes} mm: {accepted}")
    shape = header.get_data_shape()
    if has_qform and not np.isfinite(qform).all():
        raise ValueError(f"{path}: impossible geometry, qform {qform.tolist()}: accepted are finite numbers")
    if has_sform and not has_qform:
        # Other programs take the one, or the other.
        stated = np.array(header["pixdim"][1:4], float) * millimetres
        if not (np.abs(stated - size) * (np.array((*shape, 1, 1)[:3]) - 1) <= _SAME_PLACE_MM).all():
            sizes = [" x ".join(f"{mm:.4g}" for mm in of) for of in (stated, size)]
            raise ValueError(
                f"{path}: voxels of {sizes[0]} mm by pixdim and of {sizes[1]} mm by the sform: accepted are "
                "headers in which the two agree"
            )
    if has_sform and has_qform:
        corners = np.array(
            [(*corner, 1) for corner in itertools.product(*((0, n - 1) for n in (*shape, 1, 1)[:3]))]
        ).T
        apart = np.linalg.norm(((sform - qform) @ corners)[:3], axis=0).max() * millimetres
        if not apart <= _SAME_PLACE_MM:
            accepted = (
                f"accepted are headers with one of them, or with two that agree to {_SAME_PLACE_MM:g} mm"
            )
            raise ValueError(f"{path}: sform and qform disagree by up to {apart:.1f} mm: {accepted}")
    return affine


def _qform(header: nib.Nifti1Header, path: str | Path):
    try:
        return header.get_qform(coded=True)
    except _UNREADABLE as error:  # Impossible quaternions or voxel sizes.
        raise ValueError(f"{path}: impossible geometry ({str(error).splitlines()[0]})") from None


def fingerprint(path: str | Path) -> tuple:
    """What two files must have in common to be copies of each other: their size, and 64 kB of their
    beginning, middle and end."""
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
    millimetres, placed = _millimetres(header, path), header["sform_code"] > 0 or header["qform_code"] > 0
    if not placed:
        voxel_mm = np.abs(np.array(header["pixdim"][1:4], dtype=float)) * millimetres
        if not (np.isfinite(voxel_mm).all() and voxel_mm.min() > 0):
            raise ValueError(
                f"{path} has voxels of {' x '.join(f'{mm:g}' for mm in voxel_mm)} mm: accepted are sizes "
                "above 0"
            )
        return Header(shape, voxel_mm, None)
    with np.errstate(all="ignore"):
        stored = header.get_sform() if header["sform_code"] > 0 else _qform(header, path)[0]
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
        raise ValueError(f"{sidecar}: {reason}: accepted is a JSON object, or no such file") from None


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


def write_bytes(path: str | Path, content: bytes) -> None:
    """Write a file so that it is there whole or not at all: temporary name, fsync, rename.

    Raises
    ------
    OSError
        Naming the file, if it could not be written: a full disk, a missing permission. What was there before
        is kept.
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
    record_use(path, written=True)


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
    """Remove the temporary files that a killed `write_bytes` left in a folder, and in all that is below those
    of its folders that match."""
    for top in itertools.chain.from_iterable(map(Path(folder).glob, below)):
        for temporary in top.rglob(_LEFTOVER):
            temporary.unlink(missing_ok=True)
    for temporary in Path(folder).glob(_LEFTOVER):
        temporary.unlink(missing_ok=True)
