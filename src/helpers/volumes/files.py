"""Files of any kind: written whole or not at all, and noted.

A notebook that runs as part of a study notes every file that it reads or writes (`record_use`), so that the
study knows what its result depends on.
"""

import contextlib
import hashlib
import itertools
import json
import os
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

from helpers.volumes.header import KINDS

#: Environment variable with the path of the file in which `record_use` keeps its list.
TRACE = "RESOLUTION_MATTERS_TRACE"

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
        and int.from_bytes(start[:4], "little") in KINDS
    ):
        return "it is not compressed: accepted with the name .nii"
    return None


def fingerprint(path: str | Path) -> tuple:
    """Size of a file, and a digest of 64 kB of its beginning, middle and end. Files of equal fingerprint are
    taken for copies."""
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        parts = []
        for start in (0, size // 2, max(size - 65536, 0)):
            file.seek(start)
            parts.append(file.read(65536))
    return size, hashlib.sha256(b"".join(parts)).digest()


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


def in_words(error: Exception) -> str:
    """An error for a message of one line: those of the operating system begin with the file, as ours do.

    Examples
    --------
    >>> in_words(PermissionError(13, "Permission denied", "/data/x.nii"))
    '/data/x.nii: Permission denied'
    """
    if isinstance(error, OSError) and error.filename and error.strerror:
        return f"{error.filename}: {error.strerror}"
    return str(error)


def require_place(path: str | Path, folder: bool = False) -> None:
    """Refuse a place where no file, or no `folder`, can be made, before what it is made of is computed.

    Parameters
    ----------
    path : str or Path
        It need not exist.
    folder : bool
        Whether it is to be a folder.

    Raises
    ------
    OSError
        Naming what is in the way: a file where a folder has to be, or the other way round, or a folder in
        which nothing can be made.
    """
    path = Path(path)
    kind = "folder" if folder else "file"
    if path.exists() and path.is_dir() != folder:
        there = "a folder" if path.is_dir() else "a file"
        raise OSError(f"{path}: {there}: accepted is another name, of a {kind}")
    above = path if path.is_dir() else path.absolute().parent
    while not above.exists() and above != above.parent:
        above = above.parent
    if not above.is_dir():
        raise OSError(f"{path}: {above} is a file: accepted is a {kind} in a folder")
    if not os.access(above, os.W_OK | os.X_OK):
        raise OSError(f"{path}: {above} cannot be written: accepted is a {kind} in a folder that can")


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
