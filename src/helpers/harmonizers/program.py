"""A harmonizer that is a program: the images go to it as files, and what it leaves as files comes back.

No shell sees its command. It works in a temporary folder of its own, has a time limit, and what it says is
kept. It is ended with all that it started, whatever happens.
"""

import contextlib
import functools
import hashlib
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from helpers import volumes
from helpers.grid import AFFINE
from helpers.study import CONTRASTS
from helpers.study.program import Program
from helpers.volumes.files import record_use, unrecorded


@dataclass(frozen=True)
class ProgramHarmonizer:
    """A program as a harmonizer.

    Attributes
    ----------
    program : Program
    log : Path, optional
        The file in which what it prints is kept; without one it is lost.

    Raises
    ------
    FileNotFoundError
        If the first word of its command is no program on this machine.
    """

    program: Program
    log: Path | None = None

    def __post_init__(self):
        first = self.program.command[0]
        if shutil.which(first) is None:
            accepted = "accepted is a program on the PATH, or the path of a file that may be executed"
            raise FileNotFoundError(f"harmonizer.command starts with {first!r}, no program here: {accepted}")

    def harmonize(
        self, sources: Mapping[str, np.ndarray], targets: Mapping[str, np.ndarray]
    ) -> dict[str, np.ndarray]:
        """See `helpers.harmonizers.protocol.Harmonizer`.

        Raises
        ------
        RuntimeError
            If the program fails, or takes longer than it may.
        FileNotFoundError, ValueError
            If it leaves no file, one that cannot be read to its end, or one on another grid.
        """
        given = {**sources, **{f"target_{contrast}": image for contrast, image in targets.items()}}
        # What lies in a folder that is gone when the notebook ends is no input of the study, nor a result.
        with unrecorded(), tempfile.TemporaryDirectory(prefix="resolution-matters-") as name:
            folder = Path(name)
            files = {}
            for what, image in given.items():
                files[what] = folder / "given" / f"{what}.nii.gz"
                volumes.write(files[what], image, AFFINE)
            run(self.program, {**files, "folder": folder / "made"}, self.log)
            return {contrast: self._result(folder / "made", contrast) for contrast in CONTRASTS}

    def _result(self, folder: Path, contrast: str) -> np.ndarray:
        path = folder / self.program.output.replace("{contrast}", contrast)
        what = f"{Path(self.program.command[0]).name} left"
        if not path.is_file():
            left = sorted(str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file())
            seen = ", ".join(left[:6]) + (" …" if len(left) > 6 else "") or "nothing"
            raise FileNotFoundError(
                f"{what} no {path.name} but {seen}{self._log_note()}: accepted is harmonizer.output"
            )
        try:
            volume, affine = volumes.read(path)
        except ValueError as error:
            raise ValueError(f"{what} {str(error).replace(f'{folder}/', '')}{self._log_note()}") from None
        if not np.allclose(affine, AFFINE, atol=1e-3):
            grid = f"affine {np.round(affine, 3).tolist()}"
            raise ValueError(
                f"{what} {path.name} on another grid, {grid}{self._log_note()}: accepted is that of the "
                "sources"
            )
        return volume

    def _log_note(self) -> str:
        return f" (its log: {self.log})" if self.log else ""


def run(program: Program, places: Mapping[str, Path], log: Path | None = None) -> None:
    """Run a program to its end, in the folder that ``places["folder"]`` names, which is made.

    Parameters
    ----------
    program : Program
    places : mapping of str to Path
        Placeholder -> what takes its place.
    log : Path, optional
        Where to keep its command and what it prints.

    Raises
    ------
    RuntimeError
        If it cannot be started, ends with another status than 0, is ended by a signal, or takes longer than
        it may. The last line that it printed is told.
    """
    command = list(program.command)
    for name, place in places.items():
        command = [part.replace(f"{{{name}}}", str(place)) for part in command]
    places["folder"].mkdir()
    if log:
        log.parent.mkdir(parents=True, exist_ok=True)
    called = Path(command[0]).name
    kept = f" (its log: {log})" if log else ""
    with open(log or os.devnull, "w+b") as output:
        output.write(f"{command}\n".encode())
        output.flush()
        try:
            # A session of its own: what it starts can be ended with it.
            process = subprocess.Popen(
                command,
                cwd=places["folder"],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        except OSError as error:
            raise RuntimeError(f"{called} could not be started: {error}") from None
        try:
            status = process.wait(60 * program.time_limit_min)
        except subprocess.TimeoutExpired:
            limit = f"{program.time_limit_min:g} min"
            raise RuntimeError(
                f"{called} took longer than harmonizer.time_limit_min, {limit}, and was ended{kept}"
            ) from None
        finally:
            # macOS refuses a signal to a group of which only the dead are left.
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        if status:
            ended = f"was ended by signal {-status}" if status < 0 else f"failed with exit status {status}"
            raise RuntimeError(f"{called} {ended}: {_last_line(log)}{kept}")


def _last_line(log: Path | None) -> str:
    lines = log.read_bytes()[-4000:].decode(errors="replace").strip().splitlines()[1:] if log else []
    return lines[-1].strip() if lines else "it said nothing"


def identity(program: Program) -> dict:
    """A program's command, and the content of the files whose paths stand in it, such as a container or
    weights. What is found on the PATH by its name alone, such as singularity, does not count: it may differ
    from one node to the next."""
    files = [part for part in program.command if os.sep in part and os.path.isfile(part)]
    for file in files:
        record_use(file)
    contents = [_content(file, os.stat(file).st_mtime_ns) for file in files]
    return {
        "name": Path(program.command[0]).name,
        "command": [Path(part).name if part in files else part for part in program.command],
        "output": program.output,
        "files": contents,
    }


@functools.cache
def _content(file: str, changed_ns: int) -> str:
    with open(file, "rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()
