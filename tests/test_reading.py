"""Files that are not what their names or headers say: read right, or refused in one line that names them."""

import gzip
import struct
import warnings

import nibabel as nib
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings, strategies as st

from helpers import volumes
from helpers.protocol import reading

AFFINE = np.array([[-1.0, 0, 0, 2], [0, 1, 0, -3], [0, 0, 1.5, -4], [0, 0, 0, 1]])
VOXELS = np.random.default_rng(0).integers(0, 1000, (3, 4, 5)).astype(np.int16)
READERS = (volumes.read, volumes.geometry, volumes.read_header)


def nifti(voxels=VOXELS, kind=nib.Nifti1Image, order="<"):
    """The bytes of a NIfTI file with both affines."""
    image = kind(voxels, AFFINE, kind.header_class(endianness=order), dtype=voxels.dtype)
    image.set_sform(AFFINE, 1)
    image.set_qform(AFFINE, 1)
    return image.to_bytes()


def patched(content, **fields):
    """The same with other numbers in its header, as no library would write them."""
    size = int.from_bytes(content[:4], "little" if content[0] else "big")
    kind = nib.Nifti1Header if size == 348 else nib.Nifti2Header
    header = kind(content[:size], check=False)
    for name, value in fields.items():
        header[name] = value
    return header.binaryblock + content[size:]


def message(reader, path):
    """The one line with which a reader refuses a file."""
    with pytest.raises(ValueError) as error:
        reader(path)
    text = str(error.value)
    assert "\n" not in text and str(path) in text
    return text


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(
    "code, name",
    [
        (32, "complex64"),
        (1792, "complex128"),
        (128, "RGB"),
        (2304, "RGBA"),
        (1536, "float128"),
        (1, "bits"),
        (0, "unknown"),
        (7, "unknown"),
    ],
)
def test_anything_but_one_real_number_a_voxel_is_refused_by_the_header(tmp_path, code, name, packed):
    # Bytes enough for any type.
    content = patched(nifti(), datatype=code) + bytes(16 * VOXELS.size)
    folder = tmp_path / "sub-01" / "anat"
    folder.mkdir(parents=True)
    path = folder / ("sub-01_T1w.nii.gz" if packed else "sub-01_T1w.nii")
    path.write_bytes(gzip.compress(content) if packed else content)
    for reader in READERS:
        text = message(reader, path)
        assert name in text and "accepted is one real number a voxel" in text
    assert name in reading.from_bids(tmp_path).unfit[0]


def test_an_image_of_complex_numbers_or_colours_is_not_read_as_something_else(tmp_path):
    colours = np.zeros(VOXELS.shape, [("R", "u1"), ("G", "u1"), ("B", "u1")])
    for name, voxels in (("complex", VOXELS * np.complex64(1 + 1j)), ("colours", colours)):
        path = tmp_path / f"{name}.nii.gz"
        nib.save(nib.Nifti1Image(voxels, AFFINE), path)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert "accepted is one real number a voxel" in message(volumes.read, path)


def test_a_flipped_bit_and_a_lost_end_of_a_compressed_file_are_noticed(tmp_path):
    path = tmp_path / "x.nii.gz"
    stored = bytearray(gzip.compress(nifti(), compresslevel=0, mtime=0))
    stored[len(stored) // 2] ^= 0x40
    packed = gzip.compress(nifti(), mtime=0)
    for content in (bytes(stored), packed[:-8], packed[:-1], packed + b"x"):
        path.write_bytes(content)
        assert "not a readable NIfTI volume" in message(volumes.read, path)
    # Several members, and the zeros of a tape's last block, are legal.
    for content in (gzip.compress(nifti()[:400]) + gzip.compress(nifti()[400:]), packed + bytes(64)):
        path.write_bytes(content)
        np.testing.assert_array_equal(volumes.read(path)[0], VOXELS)


def test_damage_beyond_what_a_reader_has_in_its_buffer_is_noticed(tmp_path):
    # Who reads as many bytes as there are voxels never comes to the checksum of a file of usual size.
    path = tmp_path / "x.nii.gz"
    voxels = np.random.default_rng(0).integers(0, 4000, (64, 64, 64), dtype=np.int16)
    whole = nifti(voxels)
    stored = bytearray(gzip.compress(whole, compresslevel=0, mtime=0))
    stored[len(stored) // 2] ^= 0x40
    for content in (bytes(stored), gzip.compress(whole, 1, mtime=0)[:-8]):
        path.write_bytes(content)
        assert "not a readable NIfTI volume" in message(volumes.read, path)


@pytest.mark.parametrize("packed", [False, True])
def test_a_header_must_describe_all_of_its_file(tmp_path, packed):
    path = tmp_path / ("x.nii.gz" if packed else "x.nii")
    shorter = patched(nifti(), dim=[3, 3, 4, 4, 1, 1, 1, 1])
    wider = patched(nifti(), datatype=16)
    for content, words in (
        (shorter, "472 bytes where its header asks for 448"),
        (wider, "cut short: 472 bytes of the 592"),
        (nifti()[:-1], "cut short"),
    ):
        path.write_bytes(gzip.compress(content) if packed else content)
        assert words in message(volumes.read, path)
    path.write_bytes(gzip.compress(nifti() + bytes(40)) if packed else nifti() + bytes(40))
    np.testing.assert_array_equal(volumes.read(path)[0], VOXELS)


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"magic": b"ni1"}, "in a second file, .img: accepted is one file that holds both"),
        ({"xyzt_units": 5}, "unknown unit 5: accepted are meter, mm, micron"),
        (
            {"qform_code": 0, "pixdim": [1, 1, 1, 5, 0, 0, 0, 0]},
            "voxels of 1 x 1 x 5 mm by pixdim and of 1 x 1 x 1.5 mm by the sform: accepted",
        ),
        ({"qform_code": 1, "qoffset_x": np.nan}, "impossible geometry, qform"),
    ],
)
def test_of_a_header_that_cannot_be_used_it_is_said_what_can(tmp_path, changes, words):
    (tmp_path / "x.nii").write_bytes(patched(nifti(), **changes))
    assert words in message(volumes.read, tmp_path / "x.nii")


def test_an_uncompressed_file_that_is_cut_short_is_known_without_reading_its_voxels(tmp_path):
    (tmp_path / "x.nii").write_bytes(nifti()[:-1])
    for reader in READERS:
        assert "cut short" in message(reader, tmp_path / "x.nii")


def test_numbers_that_a_32_bit_float_cannot_hold_are_refused_for_what_they_are(tmp_path):
    path = tmp_path / "x.nii"
    for factor, words in (
        (1e36, "values beyond 3.4e+38"),
        (1e-45, "values of at most"),
        (1e-60, "values of at most 0: accepted are"),
    ):
        path.write_bytes(nifti(VOXELS * factor))
        assert words in message(volumes.read, path)
    path.write_bytes(patched(nifti(), scl_slope=1e-45))
    assert "values of at most" in message(volumes.read, path)
    path.write_bytes(nifti(VOXELS * 1e-12))
    np.testing.assert_allclose(volumes.read(path)[0], VOXELS * 1e-12, rtol=1e-6)
    path.write_bytes(nifti(VOXELS * 0))
    assert not volumes.read(path)[0].any()


@pytest.mark.parametrize(
    "content, words",
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 12\n", "a pointer of git-lfs"),
        (b"/annex/objects/MD5E-s12--00.nii.gz\n", "a pointer of git-annex"),
        (b"\n<!DOCTYPE html><title>Sign in</title>", "a web page"),
        (b'\xef\xbb\xbf<?xml version="1.0"?><Error>AccessDenied</Error>', "a web page"),
        (b"", "it is empty"),
        (nifti(), "accepted with the name .nii"),
    ],
)
def test_what_only_has_the_name_of_an_image_is_called_what_it_is(tmp_path, content, words):
    (tmp_path / "x.nii.gz").write_bytes(content)
    for reader in READERS:
        assert words in message(reader, tmp_path / "x.nii.gz")


def test_names_that_do_not_say_whether_a_file_is_compressed_are_corrected_by_what_is_accepted(tmp_path):
    (tmp_path / "x.nii").write_bytes(gzip.compress(nifti()))
    assert "accepted with the name .nii.gz" in message(volumes.read, tmp_path / "x.nii")
    (tmp_path / "x.nii").rename(tmp_path / "x.nii.gz")
    np.testing.assert_array_equal(volumes.read(tmp_path / "x.nii.gz")[0], VOXELS)


# ---------------------------------------------------------------- any header, any damage


def expected(content):
    """Voxels by the standard's own words, without nibabel's reading."""
    order = "<" if int.from_bytes(content[:4], "little") in (348, 540) else ">"
    first = struct.unpack(order + "i", content[:4])[0] == 348
    places = (40, "8h", 70, "h", 108, "f", 112, "ff") if first else (16, "8q", 12, "h", 168, "q", 176, "dd")
    dim, (code,), (offset,), (slope, inter) = (
        struct.unpack_from(order + form, content, place) for place, form in zip(places[::2], places[1::2])
    )
    kind = {
        2: "u1",
        4: "i2",
        8: "i4",
        16: "f4",
        64: "f8",
        256: "i1",
        512: "u2",
        768: "u4",
        1024: "i8",
        1280: "u8",
    }[code]
    offset = int(offset) or (352 if first else 544)
    shape = dim[1 : dim[0] + 1]
    values = np.frombuffer(content, order + kind, int(np.prod(shape)), offset).reshape(shape[:3], order="F")
    return values * slope + inter if np.isfinite(slope) and slope else values


FIELDS = {kind: tuple(kind.header_class.template_dtype.names) for kind in (nib.Nifti1Image, nib.Nifti2Image)}
NUMBERS = st.sampled_from(
    [
        0,
        1,
        2,
        3,
        4,
        5,
        7,
        8,
        16,
        64,
        127,
        255,
        256,
        348,
        352,
        356,
        512,
        768,
        1024,
        1280,
        2304,
        -1,
        -2,
        32767,
        -32768,
    ]
)


@st.composite
def files(draw):
    """A small NIfTI file, one or two fields of whose header hold anything at all."""
    kind, order = draw(st.sampled_from([nib.Nifti1Image, nib.Nifti2Image])), draw(st.sampled_from("<>"))
    content = bytearray(nifti(kind=kind, order=order))
    for _ in range(draw(st.integers(1, 2))):
        name = draw(st.sampled_from(FIELDS[kind]))
        dtype, start = kind.header_class.template_dtype.fields[name][:2]
        base, count = dtype.base.newbyteorder(order), int(np.prod(dtype.shape, dtype=int))
        at = start + draw(st.integers(0, count - 1)) * base.itemsize
        if base.kind in "if":
            odd = st.floats(width=8 * base.itemsize) if base.kind == "f" else st.integers(-128, 127)
            value = np.array(draw(NUMBERS | odd)).astype(base).tobytes()
        else:
            value = draw(st.binary(min_size=base.itemsize, max_size=base.itemsize))
        content[at : at + base.itemsize] = value
    return bytes(content)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(files(), st.booleans())
def test_any_header_is_read_right_or_refused_in_one_line(tmp_path, content, packed):
    path = tmp_path / ("x.nii.gz" if packed else "x.nii")
    path.write_bytes(gzip.compress(content, 1) if packed else content)
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("error")
        for reader in READERS:
            try:
                result = reader(path)
            except ValueError as error:
                assert str(path) in str(error) and "\n" not in str(error) and len(str(error)) < 400
                continue
            if reader is volumes.read:
                np.testing.assert_allclose(result[0], expected(content).astype(np.float32), rtol=1e-6)
            if reader is not volumes.read_header:
                assert np.isfinite(result[1]).all() and abs(np.linalg.det(result[1])) > 0


DAMAGE = st.lists(
    st.tuples(st.sampled_from(["flip", "cut", "drop", "double"]), st.floats(0, 1), st.integers(1, 255)),
    min_size=1,
    max_size=3,
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(DAMAGE, st.sampled_from([0, 1, 9]))
def test_whatever_is_damaged_in_a_compressed_file_no_wrong_voxel_comes_out(tmp_path, damage, level):
    content = bytearray(gzip.compress(nifti(), level, mtime=0))
    for kind, where, value in damage:
        at = min(int(where * len(content)), len(content) - 1)
        if kind == "flip":
            content[at] ^= value
        elif kind == "cut":
            del content[at:]
        else:
            content[at : at + value] = content[at : at + value] * 2 if kind == "double" else b""
        if not content:
            break
    path = tmp_path / "x.nii.gz"
    path.write_bytes(bytes(content))
    try:
        volume, affine = volumes.read(path)
    except ValueError as error:
        assert str(path) in str(error) and "\n" not in str(error)
    else:
        np.testing.assert_array_equal(volume, VOXELS)
        np.testing.assert_array_equal(affine, AFFINE)
