"""Programs as harmonizers: with executables of ours that behave, and with others that do not."""

import os
import re
import shutil
import sys
import time

import numpy as np
import psutil
import pytest

from helpers import layout
from helpers.harmonizers import program
from helpers.study import CONTRASTS
from helpers.study.file import Study
from helpers.study.program import Program

START = f"""#!{sys.executable}
import argparse, os, pathlib, subprocess, sys, time
import nibabel as nib, numpy as np
"""

#: What `haca3-test` of the container takes and leaves (the published program's options and names of files).
HACA3_TEST = (
    START
    + """
parser = argparse.ArgumentParser(allow_abbrev=False)
for name in ("--in-path", "--target-image", "--out-path"):
    parser.add_argument(name, type=pathlib.Path, action="append", required=True)
for name in ("--harmonization-model", "--fusion-model"):
    parser.add_argument(name, type=pathlib.Path, required=True)
parser.add_argument("--intermediate-out-dir", type=pathlib.Path, default=pathlib.Path("."))
parser.add_argument("--gpu-id", type=int, default=0)
parser.add_argument("--num-batches", type=int, default=4)
given = parser.parse_args()
assert given.harmonization_model.is_file() and given.fusion_model.is_file()
assert len(given.target_image) == len(given.out_path)
sources = [nib.load(path) for path in given.in_path]
anatomy = np.mean([source.get_fdata() for source in sources], axis=0)
for target, out in zip(given.target_image, given.out_path):
    print("Harmonizing to", target.name, flush=True)
    scale = np.percentile(nib.load(target).get_fdata(), 95)
    prefix = out.name.replace(".nii.gz", "")
    for kind in ("axial", "coronal", "sagittal", "fusion"):
        image = nib.Nifti1Image((anatomy * scale).astype(np.float32), None, sources[-1].header)
        nib.save(image, out.parent / f"{prefix}_harmonized_{kind}.nii.gz")
"""
)
#: Leaves its sources as they are.
COPY = (
    START
    + """
for contrast in ("T1w", "T2w", "FLAIR"):
    image = nib.load(sys.argv[1].replace("T1w.nii", contrast + ".nii"))
    nib.save(image, contrast + ".nii.gz")
"""
)


@pytest.fixture
def executable(tmp_path):
    def write(text, name="tool", folder=tmp_path):
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
        path.chmod(0o755)
        return str(path)

    return write


@pytest.fixture(scope="module")
def images():
    draw = np.random.default_rng(0)
    made = {}
    for contrast in CONTRASTS:
        # Smaller than the grid: whether an image fits that is looked at elsewhere.
        made[contrast] = draw.gamma(3, 30, (10, 11, 12)).astype(np.float32)
    return made


def harmonize(images, tool, tmp_path, *arguments, minutes=1, output="{contrast}.nii.gz"):
    harmonizer = program.ProgramHarmonizer(
        Program([tool, *(arguments or ("{T1w}",))], output, minutes), log=tmp_path / "logs" / "one.log"
    )
    return harmonizer.harmonize(images, images)


def test_files_go_in_and_files_come_back(executable, images, tmp_path):
    made = harmonize(images, executable(COPY + 'print("said")'), tmp_path)
    assert all(np.array_equal(made[contrast], images[contrast]) for contrast in CONTRASTS)
    command, said = (tmp_path / "logs" / "one.log").read_text().splitlines()
    assert "T1w.nii.gz" in command
    assert said == "said"


def test_nothing_is_left_of_its_folder(executable, images, tmp_path, monkeypatch):
    (tmp_path / "scratch").mkdir()
    monkeypatch.setattr(program.tempfile, "tempdir", str(tmp_path / "scratch"))
    harmonize(images, executable(COPY), tmp_path)
    with pytest.raises(RuntimeError):
        harmonize(images, executable(COPY + "sys.exit(3)"), tmp_path)
    assert not list((tmp_path / "scratch").iterdir())


def test_no_shell_sees_the_command(executable, images, tmp_path):
    tool = executable(COPY + "print(sys.argv[2:])")
    harmonize(images, tool, tmp_path, "{T1w}", "$HOME", "a; touch b", "*", "{{T1w}}x")
    said = (tmp_path / "logs" / "one.log").read_text().splitlines()[-1]
    assert said.startswith("['$HOME', 'a; touch b', '*', ")


@pytest.mark.parametrize(
    "text, error, message",
    [
        (
            "print('first'); sys.exit('no weights')",
            RuntimeError,
            r"tool failed with exit status 1: no weights \(its",
        ),
        ("sys.exit(7)", RuntimeError, "tool failed with exit status 7: it said nothing"),
        ("os.kill(os.getpid(), 9)", RuntimeError, "tool was ended by signal 9"),
        ("pass", FileNotFoundError, "tool left no T1w.nii.gz but nothing"),
        ("open('T1.nii.gz', 'w')", FileNotFoundError, "tool left no T1w.nii.gz but T1.nii.gz"),
        ("open('T1w.nii.gz', 'w')", ValueError, "tool left T1w.nii.gz"),
        (
            "c = open(sys.argv[1], 'rb').read(); open('T1w.nii.gz', 'wb').write(c[:len(c) // 2])",
            ValueError,
            "tool left T1w.nii.gz",
        ),
        (
            "i = nib.load(sys.argv[1]); i = nib.Nifti1Image(i.get_fdata() * np.nan, i.affine); "
            "nib.save(i, 'T1w.nii.gz')",
            ValueError,
            "tool left T1w.nii.gz has .* NaN",
        ),
        (
            "i = nib.load(sys.argv[1]); nib.save(nib.Nifti1Image(i.get_fdata(), np.eye(4)), 'T1w.nii.gz')",
            ValueError,
            "tool left T1w.nii.gz on another grid, affine",
        ),
    ],
)
def test_a_program_that_does_not_do_what_it_should_is_told_with_its_log(
    text, error, message, executable, images, tmp_path
):
    with pytest.raises(error, match=message) as told:
        harmonize(images, executable(START + text), tmp_path)
    assert f"(its log: {tmp_path}/logs/one.log)" in str(told.value)
    assert "\n" not in str(told.value)


def test_a_program_that_hangs_is_ended_with_what_it_started(executable, images, tmp_path):
    text = "print(subprocess.Popen(['sleep', '600']).pid, flush=True); time.sleep(600)"
    started = time.monotonic()
    with pytest.raises(
        RuntimeError, match=r"longer than harmonizer.time_limit_min, 0\.05 min, and was ended"
    ):
        harmonize(images, executable(START + text), tmp_path, minutes=0.05)
    assert time.monotonic() - started < 30
    child = int((tmp_path / "logs" / "one.log").read_text().splitlines()[-1])
    for _ in range(50):
        if not alive(child):
            break
        time.sleep(0.1)
    assert not alive(child)


def alive(number):
    try:
        return psutil.Process(number).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_a_program_that_is_not_there_is_refused_at_once():
    with pytest.raises(
        FileNotFoundError, match="harmonizer.command starts with 'no-such-tool', no program here"
    ):
        program.ProgramHarmonizer(Program(["no-such-tool", "{T1w}"]))


def test_a_program_is_its_command_and_the_files_in_it(executable, tmp_path):
    tool, weights = executable(COPY), tmp_path / "weights.pt"
    weights.write_text("1")
    first = program.identity(Program([tool, str(weights), "{T1w}"]))
    assert program.identity(Program([tool, str(weights), "{T1w}"])) == first
    assert program.identity(Program([tool, str(weights), "{T1w}", "--fast"])) != first
    weights.write_text("2")
    os.utime(weights, ns=(0, 0))
    assert program.identity(Program([tool, str(weights), "{T1w}"])) != first
    # Where they lie does not matter, and neither what the PATH leads to.
    shutil.copytree(tmp_path, tmp_path.parent / f"{tmp_path.name}-moved")
    weights.write_text("1")
    os.utime(weights, ns=(1, 1))
    moved = Program([tool.replace(tmp_path.name, f"{tmp_path.name}-moved"), str(weights), "{T1w}"])
    assert program.identity(moved) == first
    assert program.identity(Program(["true"]))["files"] == []


def test_the_study_of_the_container_calls_it_as_it_is_published(executable, images, tmp_path, monkeypatch):
    text = (layout.ROOT / "studies" / "haca3-container.toml").read_text()
    text = re.sub("extends = .*", "", text)
    for name in ("haca3.sif", "harmonization_public.pt", "fusion.pt"):
        (tmp_path / name).write_text("")
    (tmp_path / "mine.toml").write_text(text)
    plan = Study.from_toml(tmp_path / "mine.toml")
    singularity = 'assert sys.argv[1:4] == ["exec", "--nv", "-e"]\nos.execvp(sys.argv[5], sys.argv[5:])'
    folder = tmp_path / "bin"
    executable(START + singularity, "singularity", folder)
    executable(HACA3_TEST, "haca3-test", folder)
    monkeypatch.setenv("PATH", str(folder), prepend=os.pathsep)
    assert plan.harmonizer.command[4] == str(tmp_path / "haca3.sif")
    made = program.ProgramHarmonizer(plan.harmonizer, tmp_path / "one.log").harmonize(images, images)
    mean = np.mean([images[contrast] for contrast in CONTRASTS], axis=0)
    for contrast in CONTRASTS:
        np.testing.assert_allclose(made[contrast], mean * np.percentile(images[contrast], 95), rtol=1e-4)
    assert len(program.identity(plan.harmonizer)["files"]) == 3
