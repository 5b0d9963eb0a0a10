"""What of a study is done: a record for each executed notebook, a log of what happened when, a lock against a second run.

A record vouches for an execution as long as the notebook, its parameters, the modules behind it and every file
that it read or wrote are what they were. Sizes and modification times are compared; where a time differs, the content is.
Records and log lie in the study's ``report`` folder. They hold times, so they are no part of its results.
"""

import contextlib
import fcntl
import hashlib
import json
import os
import socket
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import psutil

from helpers import volumes

#: Modules that decide what runs when and where, and never what comes out. No notebook imports them.
MACHINERY = ("batch.py", "cli.py", "cluster.py", "ledger.py", "schedule.py")


def stamp(notebook: Path, parameters: Mapping) -> str:
    """Hash of a notebook, the parameters it is run with, and all modules that it may import."""
    package = Path(__file__).parent
    sources = sorted([*package.rglob("*.py"), *package.rglob("*.cpp")])
    modules = [path for path in sources if str(path.relative_to(package)) not in MACHINERY]
    digest = hashlib.sha256(json.dumps(parameters, sort_keys=True).encode())
    for path in (notebook, *modules):
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


def _path(folder: Path, name: str) -> Path:
    return folder / "records" / f"{name}.json"


def forget(folder: Path, name: str) -> None:
    """Remove the record of a task: what is about to be done again is not done."""
    _path(folder, name).unlink(missing_ok=True)


def record(folder: Path, name: str, version: str, paths: Iterable[str | Path]) -> None:
    """Write down that a task is done, under its `stamp`, and how the files that it depends on look now."""
    files = {str(path): _look(str(path)) for path in sorted(map(str, set(paths)))}
    volumes.write_bytes(_path(folder, name), json.dumps({"stamp": version, "files": files}, indent=0).encode())


def _look(path: str) -> list | None:
    """Size, modification time in ns and SHA-256 of a file; None if there is none."""
    try:
        facts = os.stat(path)
    except FileNotFoundError:
        return None
    # A volume's sidecar knows its hash: no need to read hundreds of megabytes.
    sidecar = {} if path.endswith(".json") else volumes.read_sidecar(path) or {}
    known = sidecar.get("ContentSha256") if sidecar.get("ContentBytes") == facts.st_size else None
    return [facts.st_size, facts.st_mtime_ns, known or _sha256(path)]


def _sha256(path: str) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def done(folder: Path, name: str, version: str, repair: bool = False) -> bool:
    """Whether a task is done: it has a record under this stamp, and its files are what they were.

    Parameters
    ----------
    folder : Path
        The study's report folder.
    name : str
        The task.
    version : str
        What `stamp` gives for it now.
    repair : bool
        Remove the sidecar of a file of the study whose content is no longer the one that the sidecar vouches for, so that the
        notebook makes it again, and keep the new times of a file that was written again with the same content.
    """
    try:
        written = json.loads(_path(folder, name).read_text())
        if written["stamp"] != version:
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
            same &= facts is known is None
        elif [facts.st_size, facts.st_mtime_ns] != known[:2]:
            content = _sha256(path)
            if content == known[2]:
                files[path], touched = [facts.st_size, facts.st_mtime_ns, content], True
                continue
            same = False
            sidecar = volumes.read_sidecar(path) or {}
            # What lies elsewhere, such as a data set of one's own, is not the study's to mend.
            ours = Path(path).is_relative_to(folder.absolute().parent)
            if repair and ours and not path.endswith(".json") and sidecar.get("ContentSha256", content) != content:
                volumes.sidecar_path(path).unlink(missing_ok=True)
    if same and touched and repair:
        volumes.write_bytes(_path(folder, name), json.dumps({"stamp": version, "files": files}, indent=0).encode())
    return same


def read_trace(path: Path) -> tuple[set[str], set[str]]:
    """The files that a notebook read or wrote, and those of them that it wrote, as `volumes.note` listed them."""
    entries = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return {file for file, _ in entries}, {file for file, written in entries if written}


def log(folder: Path, **event) -> None:
    """Append one event, with the time, to the study's log."""
    path = folder / "log.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "ab+") as file:
        if file.tell():  # A run that was killed while it wrote left half a line: it must not take this one with it.
            file.seek(-1, os.SEEK_END)
            file.write(b"" if file.read(1) == b"\n" else b"\n")
        file.write(json.dumps({"time": round(time.time(), 3), **event}).encode() + b"\n")


def events(folder: Path) -> list[dict]:
    """The study's log, oldest first; lines that are not whole are left out."""
    try:
        lines = (folder / "log.jsonl").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
    found = []
    for line in lines:
        with contextlib.suppress(ValueError):
            event = json.loads(line)
            if isinstance(event, dict):
                found.append(event)
    return found


def holder(folder: Path) -> dict | None:
    """Who runs the study now: ``host``, ``pid`` and ``started`` of the process; None if nobody does.

    A process of this host that is gone, or whose number went to one that started at another time, holds nothing. Of a
    process of another host nobody here can tell, so it counts.
    """
    try:
        who = json.loads((folder / "lock.json").read_text())
        host, pid, started = who["host"], int(who["pid"]), float(who["started"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    if host == socket.gethostname():
        try:
            if abs(psutil.Process(pid).create_time() - started) > 2:  # s; the clock of the start moves with that of the day
                return None
        except psutil.Error:
            return None
    return {"host": host, "pid": pid, "started": started}


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the study, so that no second run of it starts meanwhile.

    Raises
    ------
    RuntimeError
        Naming host and process of the run that holds it.
    """
    lock = folder / "lock.json"
    folder.mkdir(parents=True, exist_ok=True)
    me = {"host": socket.gethostname(), "pid": os.getpid(), "started": psutil.Process().create_time()}
    # Two of this host that find the same stale lock must not both take it. Between hosts the link below decides.
    with open(folder / ".lock", "w") as door:
        fcntl.flock(door, fcntl.LOCK_EX)
        if who := holder(folder):
            raise RuntimeError(
                f"{folder.parent}: this study is being run by process {who['pid']} on {who['host']}: wait for it, or stop it. "
                f"If that host is down, remove {lock}"
            )
        lock.unlink(missing_ok=True)
        mine = folder / f".{me['host']}-{me['pid']}.tmp"
        volumes.write_bytes(mine, json.dumps(me).encode())
        try:
            os.link(mine, lock)
        except FileExistsError:
            raise RuntimeError(f"{folder.parent}: another host began to run this study just now: see {lock}") from None
        finally:
            mine.unlink()
    try:
        yield
    finally:
        lock.unlink(missing_ok=True)
