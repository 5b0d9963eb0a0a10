"""``resolution-matters super-resolve``: a file of one's own in, a file and its sidecar out."""

import functools
import json

import numpy as np
import pytest

from helpers import super_resolution, volumes
from helpers.acquisition import degradation
from helpers.runner import cli
from helpers.study import Resolution

RESOLUTION = Resolution(3, 0.5)


@pytest.fixture
def stack(tmp_path):
    """Slices of 3 mm, 3.5 mm apart, of noise."""
    volume = np.random.default_rng(0).random((40, 40, 42), dtype=np.float32)
    slices, affine = degradation.degrade(volume, np.diag([1, 1, 1, 1.0]), "axial", RESOLUTION)
    path = tmp_path / "sub-01_FLAIR.nii.gz"
    volumes.write(path, slices, affine, {"SliceThickness": 3, "EchoTime": 0.1})
    return path


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(
        super_resolution, "train", functools.partial(super_resolution.train, steps=2, channels=2)
    )


def test_it_writes_a_volume_and_its_sidecar_and_says_so_in_one_line(stack, tmp_path, capsys, monkeypatch):
    out, resolver = tmp_path / "out.nii.gz", tmp_path / "resolver.pt"
    command = ["super-resolve", str(stack), str(out), "--resolver", str(resolver)]
    assert cli.main(command) == 0
    text = capsys.readouterr().out
    assert text.startswith(f"{out}: 40 x 40 x 42 voxels from slices of 3||0.5 mm") and text.count("\n") == 1
    volume, affine = volumes.read(out)
    slices, slices_affine = degradation.degrade(volume, affine, "axial", RESOLUTION)
    given, given_affine = volumes.read(stack)
    np.testing.assert_allclose(slices, given, atol=1e-4)
    np.testing.assert_allclose(slices_affine, given_affine, atol=1e-5)
    sidecar = json.loads(volumes.sidecar_path(out).read_text())
    assert (
        sidecar["Sources"] == [stack.name] and sidecar["EchoTime"] == 0.1 and "SliceThickness" not in sidecar
    )
    acquired = {"SliceThickness": 3, "SpacingBetweenSlices": 3.5, "LearntFrom": "resolver.pt"}
    assert sidecar["SuperResolution"] == acquired
    # What was learnt is used again.
    monkeypatch.setattr(super_resolution, "train", None)
    assert cli.main(command) == 0
    np.testing.assert_array_equal(volumes.read(out)[0], volume)


@pytest.mark.parametrize(
    "options, message",
    [
        (["--thickness", "5"], "has slices of 5 mm, 3.5 mm apart: accepted are slices that do not overlap"),
        (["--thickness", "3", "--gap", "1"], "accepted are stacks whose slices lie 4 mm apart"),
        (["--thickness", "0.5"], "accepted are slices thicker than 1 mm"),
        (["--thickness", "-1"], "thickness_mm is -1"),
        (["--resolver", "{folder}/wrong.pt"], "wrong.pt cannot be read"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line_before_anything_is_learnt(
    stack, tmp_path, capsys, monkeypatch, options, message
):
    monkeypatch.setattr(super_resolution, "train", None)
    (tmp_path / "wrong.pt").write_text("no resolver")
    options = [option.format(folder=tmp_path) for option in options]
    assert cli.main(["super-resolve", str(stack), str(tmp_path / "out.nii.gz"), *options]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert not (tmp_path / "out.nii.gz").exists()


@pytest.mark.parametrize(
    "out, resolver, message",
    [
        ("note.txt/out.nii.gz", "new.pt", "note.txt is a file: accepted is a file in a folder"),
        ("folder.nii.gz", "new.pt", "folder.nii.gz: a folder: accepted is another name, of a file"),
        ("out.nii.gz", "note.txt/new.pt", "note.txt is a file: accepted is a file in a folder"),
        ("out.nii.gz", "folder.nii.gz", "folder.nii.gz: a folder: accepted is another name"),
        ("out.nii.gz", "out.nii.gz", "as the file to be: accepted is another file"),
        ("out.nii.gz", "", "path is '': accepted is that of a file or folder"),
    ],
)
def test_places_where_nothing_can_be_written_are_refused_before_anything_is_learnt(
    stack, tmp_path, capsys, monkeypatch, out, resolver, message
):
    monkeypatch.setattr(super_resolution, "train", None)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "note.txt").write_text("")
    (tmp_path / "folder.nii.gz").mkdir()
    assert cli.main(["super-resolve", str(stack), out, "--resolver", resolver]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


def test_paths_are_read_as_people_write_them(stack, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    command = ["super-resolve", f"~/{stack.name}", "$HOME/out.nii.gz", "--resolver", "~/resolver.pt"]
    assert cli.main(command) == 0
    assert (tmp_path / "out.nii.gz").is_file() and (tmp_path / "resolver.pt").is_file()
    assert list((tmp_path / "here").iterdir()) == []
    assert cli.main([*command[:2], "$NOBODY/out.nii.gz"]) == 2
    assert "there is no variable $NOBODY" in capsys.readouterr().err


def test_names_that_cannot_be_are_refused(stack, tmp_path, capsys):
    assert cli.main(["super-resolve", str(stack), str(tmp_path / "out.nii")]) == 2
    assert "accepted are names that end in .nii.gz" in capsys.readouterr().err
    assert cli.main(["super-resolve", str(stack), str(stack)]) == 2
    assert "is the stack itself: accepted is another file" in capsys.readouterr().err
    for sidecar, reason in (
        (b"{'SliceThickness': 3}", "not a JSON object"),
        (b'{"SliceThickness": "thick"}', "SliceThickness is 'thick': accepted is a number of mm"),
        (b"\xef\xbb\xbf" + b'{"SliceThickness": "30 mm"}', "slices of 30 mm, 3.5 mm apart"),
    ):
        volumes.sidecar_path(stack).write_bytes(sidecar)
        assert cli.main(["super-resolve", str(stack), str(tmp_path / "out.nii.gz")]) == 2
        error = capsys.readouterr().err
        assert reason in error and error.count("\n") == 1
    volumes.sidecar_path(stack).unlink()
    assert cli.main(["super-resolve", str(stack), str(tmp_path / "out.nii.gz")]) == 2
    assert (
        "has no sidecar with SliceThickness: accepted is one, or --thickness in mm" in capsys.readouterr().err
    )
