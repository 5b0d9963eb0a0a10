import errno
import json
import os
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from helpers import layout, volumes
from helpers.study.subjects import SimulatedSubject
from helpers.volumes.files import TRACE, look, remove_leftovers, write_bytes

AFFINE = np.array([[-1.0, 0, 0, 96], [0, -1, 0, 96], [0, 0, 1.5, -78], [0, 0, 0, 1]])


@pytest.fixture
def volume():
    return np.random.default_rng(0).normal(size=(5, 6, 7)).astype(np.float32)


def test_what_is_written_is_read(tmp_path, volume):
    path = tmp_path / "deep" / "x.nii.gz"
    volumes.write(path, volume, AFFINE, {"Answer": 42})
    back, affine = volumes.read(path)
    np.testing.assert_array_equal(back, volume)
    np.testing.assert_array_equal(affine, AFFINE)
    assert volumes.read_sidecar(path)["Answer"] == 42


def test_a_mask_is_stored_in_a_byte_per_voxel(tmp_path, volume):
    volumes.write(tmp_path / "m.nii.gz", volume > 0, AFFINE)
    assert nib.load(tmp_path / "m.nii.gz").get_data_dtype() == np.uint8
    np.testing.assert_array_equal(volumes.read(tmp_path / "m.nii.gz")[0] > 0, volume > 0)


def test_the_same_volume_gives_the_same_bytes(tmp_path, volume):
    for name in ("a", "b"):
        volumes.write(tmp_path / f"{name}.nii.gz", volume, AFFINE, {"b": 1, "a": 2})
    assert (tmp_path / "a.nii.gz").read_bytes() == (tmp_path / "b.nii.gz").read_bytes()
    assert (tmp_path / "a.json").read_bytes() == (tmp_path / "b.json").read_bytes()


def test_a_write_that_fails_leaves_what_was_there(tmp_path, volume, monkeypatch):
    path = tmp_path / "x.nii.gz"
    volumes.write(path, volume, AFFINE, {"Key": "old"})
    before = path.read_bytes()

    def fail(*_):
        raise OSError("no space left on device")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="no space"):
        volumes.write(path, volume + 1, AFFINE, {"Key": "new"})
    assert path.read_bytes() == before
    # The sidecar went first, so nothing vouches for a volume that may be half of a pair.
    assert volumes.read_sidecar(path) is None
    assert [each.name for each in tmp_path.iterdir()] == ["x.nii.gz"]


def test_a_sidecar_that_cannot_be_json_writes_nothing(tmp_path, volume):
    with pytest.raises(ValueError):
        volumes.write(tmp_path / "x.nii.gz", volume, AFFINE, {"Error": float("nan")})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "bad, message",
    [
        (np.zeros((4, 4)), "2 dimensions, shape (4, 4)"),
        (np.zeros((2, 2, 2, 2)), "4 dimensions"),
        (np.zeros((4, 0, 4)), "is empty, shape (4, 0, 4)"),
        (np.full((3, 3, 3), np.nan), "27 voxels that are NaN"),
        (np.array([[[1.0, np.inf, -np.inf]]]), "2 voxels"),
        (np.zeros((2, 2, 2), complex), "complex128"),
        (np.array([[["a"]]]), "accepted are real numbers"),
    ],
)
def test_what_is_no_volume_is_refused_before_anything_is_written(tmp_path, bad, message):
    with pytest.raises(ValueError) as error:
        volumes.write(tmp_path / "x.nii.gz", bad, AFFINE)
    assert message in str(error.value)
    assert "\n" not in str(error.value)
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_is_missing_truncated_or_no_nifti_is_named(tmp_path, volume):
    with pytest.raises(FileNotFoundError, match="no such file"):
        volumes.read(tmp_path / "none.nii.gz")
    (tmp_path / "dead.nii.gz").symlink_to("nowhere")
    with pytest.raises(FileNotFoundError, match="dead.nii.gz: a link to nothing: accepted is a NIfTI file"):
        volumes.read(tmp_path / "dead.nii.gz")
    (tmp_path / "folder.nii.gz").mkdir()
    with pytest.raises(FileNotFoundError, match="folder.nii.gz: a folder: accepted is a NIfTI file"):
        volumes.geometry(tmp_path / "folder.nii.gz")
    whole = tmp_path / "whole.nii.gz"
    volumes.write(whole, volume, AFFINE)
    for name, content in (
        ("half.nii.gz", whole.read_bytes()[:200]),
        ("text.nii", b"hello"),
        ("text.nii.gz", b"hello"),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=f"{name}: not a readable NIfTI volume") as error:
            volumes.read(tmp_path / name)
        assert "\n" not in str(error.value)


def test_a_nifti_with_nan_or_four_dimensions_is_named(tmp_path):
    for name, data in (
        ("nan.nii", np.full((2, 2, 2), np.nan, np.float32)),
        ("many.nii", np.zeros((2, 2, 2, 3), np.float32)),
    ):
        nib.save(nib.Nifti1Image(data, AFFINE), tmp_path / name)
        with pytest.raises(ValueError, match=name):
            volumes.read(tmp_path / name)


def test_a_fourth_dimension_of_one_is_dropped(tmp_path, volume):
    nib.save(nib.Nifti1Image(volume[..., None], AFFINE), tmp_path / "x.nii")
    np.testing.assert_array_equal(volumes.read(tmp_path / "x.nii")[0], volume)


def test_an_unreadable_sidecar_is_no_sidecar(tmp_path):
    for content in ("", "{", "[]"):
        (tmp_path / "x.json").write_text(content)
        assert volumes.read_sidecar(tmp_path / "x.nii.gz") is None


def test_names_follow_bids():
    path = layout.image("root", SimulatedSubject(2), "FLAIR", desc="harmonized", rec="1a", res="5skip1p5")
    assert path.as_posix() == (
        "root/sub-sim02/anat/sub-sim02_rec-1a_space-MNI152NLin2009aSym_res-5skip1p5_desc-harmonized_FLAIR.nii.gz"
    )


@pytest.mark.parametrize("fails_at", [1, 2])
def test_a_full_disk_is_one_line_that_names_the_file_and_leaves_nothing_half_done(
    tmp_path, volume, monkeypatch, fails_at
):
    path, calls, fsync = tmp_path / "x.nii.gz", [], os.fsync
    before = volumes.write(path, volume, AFFINE, {"Key": "old"})

    def full(handle):
        calls.append(handle)
        if len(calls) == fails_at:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        fsync(handle)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(
        OSError, match=r"\[Errno 28\] No space left on device: '.*x\.(nii\.gz|json)'"
    ) as error:
        volumes.write(path, volume + 1, AFFINE, {"Key": "new"})
    assert "\n" not in str(error.value)
    # Whatever is there, nothing vouches for it; no temporary file takes up the space that is missing.
    assert volumes.read_sidecar(path) is None
    assert [each.name for each in tmp_path.iterdir()] == ["x.nii.gz"]
    volumes.read(path)
    assert volumes.write(path, volume, AFFINE, {"Key": "old"}) == before


def test_what_is_written_again_is_vouched_for_all_the_time(tmp_path, monkeypatch):
    path, replace, seen = tmp_path / "x.csv", os.replace, []
    volumes.write_with_sidecar(path, b"1,2", {"Key": "k"})

    def watched(source, target):
        seen.append((Path(target).name, volumes.sidecar_path(path).exists()))
        replace(source, target)

    monkeypatch.setattr(os, "replace", watched)
    for content in (b"1,2", b"1,3"):
        volumes.write_with_sidecar(path, content, {"Key": "k"})
    assert seen == [("x.csv", True), ("x.json", True), ("x.csv", False), ("x.json", False)]


def test_what_a_killed_write_left_is_removed_and_nothing_else(tmp_path, monkeypatch):
    names, unlink = [], Path.unlink

    def killed(source, target):  # Before it could rename the file, or remove it.
        names.append(os.path.basename(source))
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", killed)
        patch.setattr(Path, "unlink", lambda path, missing_ok=False: None)
        for path in ("x.csv", "sub-1/deep/x.nii.gz", "tables/.hidden.json", "other/x.csv"):
            with pytest.raises(KeyboardInterrupt):
                write_bytes(tmp_path / path, b"x")
    assert Path.unlink is unlink and len(names) == 4
    for path in ("sub-1/.mine.tmp", "sub-1/kept.tmp", ".kept", "sub-1.txt"):
        (tmp_path / path).write_text("x")
    remove_leftovers(tmp_path, ("sub-*", "tables", "nothing"))
    left = sorted(path.name for path in tmp_path.rglob("*") if path.is_file())
    assert left == sorted([".kept", ".mine.tmp", "kept.tmp", "sub-1.txt", names[3]])


def test_files_are_noted_once_and_only_for_a_study(tmp_path, volume, monkeypatch):
    monkeypatch.delenv(TRACE, raising=False)
    volumes.write(tmp_path / "x.nii.gz", volume, AFFINE)
    monkeypatch.setenv(TRACE, str(tmp_path / "trace"))
    for _ in range(2):
        volumes.read(tmp_path / "x.nii.gz")
    volumes.write(tmp_path / "y.nii.gz", volume, AFFINE)
    lines = [json.loads(line) for line in (tmp_path / "trace").read_text().splitlines()]
    names = [("x.nii.gz", False), ("y.nii.gz", True), ("y.json", True)]
    assert lines == [[str(tmp_path / name), written, look(tmp_path / name)] for name, written in names]
    facts = (tmp_path / "x.nii.gz").stat()
    assert lines[0][2] == [facts.st_size, facts.st_mtime_ns]
    assert look(tmp_path / "nothing") is None
