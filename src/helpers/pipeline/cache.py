"""What of a study is done: one rule for files and for notebooks.

A result is kept as long as its key does not change. The key is a hash over the contents of its inputs, its
parameters, the version of its stage (`STAGES`, raised by hand) and the versions of the libraries that compute
it. Comments, names and places of our own code do not matter. So a notebook that is run alone computes what it
needs and is missing, one that is run a second time computes nothing, and a study that was killed goes on.
"""

import ast
import dataclasses
import functools
import hashlib
import io
import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pandas as pd

from helpers import layout, volumes
from helpers.study.subjects import SimulatedSubject
from helpers.volumes.files import look, record_use, write_bytes


@dataclasses.dataclass(frozen=True)
class Stage:
    """A step whose results are kept: its version, and the libraries whose versions its results depend on."""

    version: int
    libraries: tuple[str, ...]


#: Raise a version by hand when what the stage computes changes: then, and only then, it is computed again.
#: A test on golden results fails if that was forgotten (tests/pipeline/test_stages_golden.py). A stage gets
#: the results of other stages as files.
STAGES = {
    "cohort": Stage(2, ("numpy", "scipy", "edt")),
    "preparation": Stage(2, ("antspyx", "numpy", "scipy", "scikit-image", "edt")),
    "degradation": Stage(1, ("sigpy", "numpy", "scipy")),
    "super-resolution": Stage(1, ("torch", "sigpy", "numpy", "scipy")),
    "registration": Stage(1, ("antspyx", "numpy", "scipy")),
    "harmonization": Stage(2, ("torch", "numpy", "scipy")),
    "other harmonizers": Stage(1, ("numpy", "scikit-image", "antspyx")),
    "scores": Stage(1, ("numpy", "scipy", "scikit-image")),
    "downstream": Stage(1, ("antspyx", "numpy", "scipy", "scikit-image", "edt")),
    "analysis": Stage(1, ("numpy", "scipy", "statsmodels", "pandas", "matplotlib")),
}


#: The version of an installed library, looked up once.
library_version = functools.cache(version)


def _signature(stage: str) -> list:
    """What a stage's results depend on beside its inputs and parameters."""
    libraries = STAGES[stage].libraries
    return [stage, STAGES[stage].version, {name: library_version(name) for name in libraries}]


def _digest(*facts) -> str:
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def key(stage: str, inputs: Iterable[Path], parameters: Mapping) -> str:
    """Hash of what the result of a stage depends on: the contents of its inputs, its parameters, its version,
    its libraries."""
    return _digest(_signature(stage), [content_hash(path) for path in inputs], parameters)


def notebook_key(notebook: Path, parameters: Mapping, stages: Sequence[str]) -> str:
    """Hash of what an execution depends on beside the files that it reads: the notebook's code, its
    parameters, its stages.

    Comments, docstrings and texts do not matter. The files are in the record of the execution
    (`record_notebook`).
    """
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    code = [_meaning("".join(cell["source"])) for cell in cells if cell["cell_type"] == "code"]
    return _digest(code, parameters, [_signature(stage) for stage in stages])


def _meaning(source: str) -> str:
    """Code without comments, docstrings and layout. Code that is not plain Python, such as a cell with a
    magic command, is returned unchanged."""
    try:
        tree = ast.parse(source)
    except SyntaxError:
        return source
    for node in ast.walk(tree):
        if (
            isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
            and ast.get_docstring(node) is not None
        ):
            node.body = node.body[1:]
    return ast.dump(tree)


Output = tuple[np.ndarray, np.ndarray, dict]  # volume, affine, what else the sidecar should say


@functools.cache
def software() -> list[dict[str, str]]:
    return [
        {"Name": name, "Version": version(name)}
        for name in ("resolution-matters", "antspyx", "nibabel", "numpy", "scipy", "torch")
    ]


def content_hash(path: Path) -> str:
    """Hash that identifies a volume: that of its file, or of the whole volume if the file holds only some of
    its slices."""
    sidecar = volumes.read_sidecar(path)
    return sidecar.get("WholeVolumeSha256", sidecar["ContentSha256"])


def is_done(path: Path, key: str) -> bool:
    sidecar = volumes.read_sidecar(path) or {}
    return sidecar.get("Key") == key and path.is_file() and path.stat().st_size == sidecar.get("ContentBytes")


def missing_of(outputs: Mapping[str, Path], key: str, make: Callable[[], None] | None = None) -> list[str]:
    """The names of those `outputs` whose files do not exist, or have another key.

    With `make`, a function that computes them, volumes that were removed (`helpers.study.file.Study.keep`) do
    not count as missing: their sidecars stay, and they are computed when they are read.
    """
    missing = []
    for name, path in outputs.items():
        if make and not path.exists() and (volumes.read_sidecar(path) or {}).get("Key") == key:
            volumes.make_when_read(path, make)
        elif not is_done(path, key):
            missing.append(name)
    return missing


def compute(
    outputs: Mapping[str, Path],
    key: str,
    inputs: Sequence[Path],
    work: Callable[[list[str]], Iterable[Output]],
    removable: bool = False,
) -> None:
    """Write those `outputs` that are missing (`missing_of`): `work` gets their names, and yields one after
    the other. If they are `removable`, a sidecar without its volume counts as done; the volume is computed
    when it is read."""
    make = functools.partial(compute, outputs, key, inputs, work) if removable else None
    missing = missing_of(outputs, key, make)
    if not missing:
        return
    for name, (volume, affine, facts) in zip(missing, work(missing), strict=True):
        first = volumes.read_sidecar(inputs[0]) if inputs else {}
        record = {
            "Key": key,
            "Sources": [layout.uri(source) for source in inputs],
            "SpatialReference": layout.SPACE,
            "Note": first.get("Note", SimulatedSubject.origin),
            "SkullStripped": first.get("SkullStripped", True),
            "GeneratedBy": software(),
        }
        volumes.write(outputs[name], volume, affine, {**record, **facts})


def write_table(path: Path, table: pd.DataFrame, key: str) -> None:
    volumes.write_with_sidecar(path, table.to_csv(index=False, float_format="%.6f").encode(), {"Key": key})


def read_table(path: Path) -> pd.DataFrame:
    record_use(path)
    # Experiment 2 is a name, not a number.
    return pd.read_csv(path, dtype={"experiment": str, "resolution": str})


@functools.lru_cache(maxsize=8)
def _read_version(path: Path, content: str) -> tuple[np.ndarray, np.ndarray]:
    volume, affine = volumes.read(path)
    volume.setflags(write=False)
    return volume, affine


def read_volume(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Read a volume that this process is likely to read again: 3D images, masks, ground truths."""
    return _read_version(path, volumes.read_sidecar(path)["ContentSha256"])


def write_arrays(path: Path, arrays: Mapping[str, np.ndarray], key: str) -> None:
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    volumes.write_with_sidecar(path, buffer.getvalue(), {"Key": key})


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    record_use(path)
    with np.load(path, allow_pickle=False) as file:
        return dict(file)


def _path(folder: Path, name: str) -> Path:
    return folder / "records" / f"{name}.json"


def forget_notebook(folder: Path, name: str) -> None:
    """Remove the record of a task that is about to be executed: until it ends, it is not done."""
    _path(folder, name).unlink(missing_ok=True)


def record_notebook(folder: Path, name: str, key: str, paths: Iterable[str | Path]) -> None:
    """Record that a task is done, with its `notebook_key` and with size, time and hash of each file that it
    depends on."""
    files = {str(path): _look(str(path)) for path in sorted(map(str, set(paths)))}
    write_bytes(_path(folder, name), json.dumps({"key": key, "files": files}, indent=0).encode())


def _look(path: str) -> list | None:
    """Size, modification time in ns and SHA-256 of a file; None if there is none."""
    facts = look(path)
    if facts is None:
        return None
    # A volume's sidecar knows its hash: no need to read hundreds of megabytes.
    sidecar = {} if path.endswith(".json") else volumes.read_sidecar(path) or {}
    known = sidecar.get("ContentSha256") if sidecar.get("ContentBytes") == facts[0] else None
    return [*facts, known or _sha256(path)]


def _sha256(path: str) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def notebook_is_done(
    folder: Path, name: str, key: str, repair: bool = False, removable: bool = False
) -> bool:
    """Whether a task is done: it has a record with this key, and its files have not changed since.

    Parameters
    ----------
    folder : Path
        The study's report folder.
    name : str
        The task.
    key : str
        What `notebook_key` gives for it now.
    repair : bool
        If a file of the study has another content than its sidecar says, remove that sidecar, so that the
        notebook makes the file again. If a file was written again with the same content, record its new time.
    removable : bool
        Volumes of the study may be missing, if their sidecars are there.
    """
    try:
        written = json.loads(_path(folder, name).read_text())
        if written["key"] != key:
            return False
        files = dict(written["files"])
    except (OSError, ValueError, KeyError, TypeError):
        return False
    same, touched = True, False
    for path, known in files.items():
        try:
            facts = os.stat(path)
        except OSError:
            facts = None
        if facts is None or known is None:
            removed = removable and path.endswith(".nii.gz") and is_ours(folder, path)
            same &= facts is known is None or (removed and volumes.sidecar_path(path).exists())
        elif [facts.st_size, facts.st_mtime_ns] != known[:2]:
            content = _sha256(path)
            if content == known[2]:
                files[path], touched = [facts.st_size, facts.st_mtime_ns, content], True
                continue
            same = False
            sidecar = volumes.read_sidecar(path) or {}
            # Files outside of the study's folder, such as a data set of one's own, are never touched.
            if (
                repair
                and is_ours(folder, path)
                and not path.endswith(".json")
                and sidecar.get("ContentSha256", content) != content
            ):
                volumes.sidecar_path(path).unlink(missing_ok=True)
    if same and touched and repair:
        write_bytes(_path(folder, name), json.dumps({"key": key, "files": files}, indent=0).encode())
    return same


def is_ours(folder: Path, path: str) -> bool:
    """Whether a file lies in the folder of the study whose report folder is given."""
    return Path(path).is_relative_to(folder.absolute().parent)


def read_trace(path: Path) -> tuple[dict[str, list | None], set[str]]:
    """The files that a notebook read or wrote, with size and time at its first use (`look`); and the
    files that it wrote."""
    entries = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return {file: facts for file, _, facts in reversed(entries)}, {
        file for file, written, _ in entries if written
    }
