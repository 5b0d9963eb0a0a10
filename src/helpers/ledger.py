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

#: Who runs the study, and what the system locks for them; in the study's report folder.
LOCKS = ("lock.json", ".lock")


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
    facts = volumes.look(path)
    if facts is None:
        return None
    # A volume's sidecar knows its hash: no need to read hundreds of megabytes.
    sidecar = {} if path.endswith(".json") else volumes.read_sidecar(path) or {}
    known = sidecar.get("ContentSha256") if sidecar.get("ContentBytes") == facts[0] else None
    return [*facts, known or _sha256(path)]


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
            if repair and is_ours(folder, path) and not path.endswith(".json") and sidecar.get("ContentSha256", content) != content:
                volumes.sidecar_path(path).unlink(missing_ok=True)
    if same and touched and repair:
        volumes.write_bytes(_path(folder, name), json.dumps({"stamp": version, "files": files}, indent=0).encode())
    return same


def is_ours(folder: Path, path: str) -> bool:
    """Whether a file lies in the folder of the study whose report folder is given."""
    return Path(path).is_relative_to(folder.absolute().parent)


def read_trace(path: Path) -> tuple[dict[str, list | None], set[str]]:
    """The files that a notebook read or wrote, each as it was at first (`volumes.look`), and those that it wrote."""
    entries = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return {file: facts for file, _, facts in reversed(entries)}, {file for file, written, _ in entries if written}


def log(folder: Path, **event) -> None:
    """Append one event, with the time, to the study's log."""
    path = folder / "log.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    with volumes.naming(path), open(path, "ab+") as file:
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
    who = _signed(folder)
    return who if who and (who["host"] != socket.gethostname() or _lives(who)) else None


def _signed(folder: Path) -> dict | None:
    """What the lock says; None if there is none that can be read."""
    try:
        who = json.loads((folder / "lock.json").read_text())
        return {"host": str(who["host"]), "pid": int(who["pid"]), "started": float(who["started"])}
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _lives(who: dict) -> bool:
    """Whether a process of this host is there, and the one that was meant."""
    try:
        process = psutil.Process(who["pid"])
        # A zombie is dead, whether its parent looks or not; and the clock of the start moves with that of the day, a little.
        return process.status() != psutil.STATUS_ZOMBIE and abs(process.create_time() - who["started"]) <= 2  # s
    except psutil.Error:
        return False


@contextlib.contextmanager
def _door(folder: Path) -> Iterator[bool | None]:
    """Hold the study's ``.lock``, as the system's locks go: they end with the process, however it ends.

    Yields whether it is ours; None where the file system knows no such locks.
    """
    while True:
        with open(folder / ".lock", "w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                yield False
                return
            except OSError:
                yield None
                return
            # `batch.clean` removes the file that it holds: whoever opened it before holds nothing.
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(file.fileno()), os.stat(folder / ".lock")):
                    yield True
                    return


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
    with _door(folder) as ours:
        who = _signed(folder)
        # Whose door is open is dead, unless it is on another host: locks of the system need not reach from one to the other.
        if who and ours and who["host"] == me["host"] or ours is None and not holder(folder):
            who = None
            lock.unlink(missing_ok=True)
        if who or ours is False:
            process = f"process {who['pid']} on {who['host']}" if who else "another process"
            down = f". If that host is down, remove {lock}" if who and who["host"] != me["host"] else ""
            raise RuntimeError(f"{folder.parent}: this study is being run by {process}: wait for it, or stop it{down}")
        mine = folder / f".lock.json-{me['host']}.{me['pid']:08d}.tmp"  # as `volumes.remove_leftovers` knows them
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
