"""What the header of a NIfTI file says, and whether it can be believed. No file is touched here."""

import itertools
import math
import zlib
from pathlib import Path

import nibabel as nib
import numpy as np

#: What nibabel raises at a header that is none, and what reading damaged bytes does.
UNREADABLE = (
    nib.filebasedimages.ImageFileError,
    nib.spatialimages.HeaderDataError,
    OSError,
    EOFError,
    ValueError,
    OverflowError,
    zlib.error,
)
#: Kinds of header by their first number, and where the voxels may begin.
KINDS = {348: (nib.Nifti1Header, b"n+1\0", 352), 540: (nib.Nifti2Header, b"n+2\0", 544)}
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
#: Zeros that may follow the voxels, bytes: what was written in whole blocks.
_PADDING = 4095


def parse_header(content: bytes) -> nib.Nifti1Header:
    """The header at the beginning of a file, nothing in it mended; ValueError says what it cannot be."""
    order, size = next(
        (
            (mark, n)
            for mark, name in (("<", "little"), (">", "big"))
            if (n := int.from_bytes(content[:4], name)) in KINDS
        ),
        (None, 0),
    )
    if order is None or len(content) < size:
        raise ValueError("it has no NIfTI header")
    kind, magic, first = KINDS[size]
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


def check_length(header: nib.Nifti1Header, content: bytes | None, length: int) -> None:
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


def shape_of(header: nib.Nifti1Header, path: str | Path) -> tuple[int, int, int]:
    shape = tuple(int(n) for n in header.get_data_shape())
    # Trailing axes of length one (X, Y, Z, 1) are how some converters write a 3D image.
    while len(shape) > 3 and shape[-1] == 1:
        shape = shape[:-1]
    if len(shape) != 3:
        raise ValueError(f"{path} has {len(shape)} dimensions, shape {shape}: accepted are 3D volumes")
    if min(shape) < 1:
        raise ValueError(f"{path} is empty, shape {shape}: accepted are volumes with at least one voxel")
    return shape


def millimetres_of(header: nib.Nifti1Header, path: str | Path) -> float:
    """The header's unit of length in mm."""
    try:
        return _UNIT_MM[header.get_xyzt_units()[0]]
    except KeyError:  # A code that the format does not know.
        raise ValueError(
            f"{path}: not a readable NIfTI volume (unknown unit {int(header['xyzt_units'])}: accepted are "
            f"{', '.join(unit for unit in _UNIT_MM if unit != 'unknown')})"
        ) from None


def affine_of(header: nib.Nifti1Header, path: str | Path) -> np.ndarray:
    """Voxel index to position in mm, if the header gives one and does not contradict itself."""
    with np.errstate(all="ignore"):
        (sform, has_sform), (qform, has_qform) = header.get_sform(coded=True), qform_of(header, path)
    if not has_sform and not has_qform:
        raise ValueError(
            f"{path}: neither qform nor sform is set, so left and right cannot be told: accepted is a "
            "header with one of them"
        )
    affine = np.array(sform if has_sform else qform, dtype=np.float64)
    millimetres = millimetres_of(header, path)
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


def qform_of(header: nib.Nifti1Header, path: str | Path):
    try:
        return header.get_qform(coded=True)
    except UNREADABLE as error:  # Impossible quaternions or voxel sizes.
        raise ValueError(f"{path}: impossible geometry ({str(error).splitlines()[0]})") from None
