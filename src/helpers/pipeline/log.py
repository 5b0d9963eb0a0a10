"""A study's log of what happened when, and its lock against a second run."""

import contextlib
import fcntl
import json
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import psutil

from helpers import volumes

#: Who runs the study, and what the system locks for them; in the study's report folder.
LOCKS = ("lock.json", ".lock")


def log(folder: Path, **event) -> None:
    """Append one event, with the time, to the study's log."""
    path = folder / "log.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    with volumes.naming(path), open(path, "ab+") as file:
        if (
            file.tell()
        ):  # A run that was killed while it wrote left half a line: it must not take this one with it.
            file.seek(-1, os.SEEK_END)
            file.write(b"" if file.read(1) == b"\n" else b"\n")
        file.write(json.dumps({"time": round(time.time(), 3), **event}).encode() + b"\n")


def events(folder: Path) -> list[dict]:
    """The study's log, oldest first; lines that are not whole are left out."""
    try:
        lines = (folder / "log.jsonl").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
    entries = []
    for line in lines:
        with contextlib.suppress(ValueError):
            event = json.loads(line)
            if isinstance(event, dict):
                entries.append(event)
    return entries


def holder(folder: Path) -> dict | None:
    """Who runs the study now: ``host``, ``pid`` and ``started`` of the process; None if nobody does.

    A process of this host that is gone, or whose number went to one that started at another time, holds
    nothing. Of a process of another host nobody here can tell, so it counts.
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
        # A zombie is dead, whether its parent looks or not; and the clock of the start moves with that of the
        # day, a little.
        return (
            process.status() != psutil.STATUS_ZOMBIE and abs(process.create_time() - who["started"]) <= 2
        )  # s
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
            # `clean.clean` removes the file that it holds: whoever opened it before holds nothing.
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
        # Whose door is open is dead, unless it is on another host: locks of the system need not reach from
        # one to the other.
        if who and ours and who["host"] == me["host"] or ours is None and not holder(folder):
            who = None
            lock.unlink(missing_ok=True)
        if who or ours is False:
            process = f"process {who['pid']} on {who['host']}" if who else "another process"
            down = f". If that host is down, remove {lock}" if who and who["host"] != me["host"] else ""
            raise RuntimeError(
                f"{folder.parent}: this study is being run by {process}: wait for it, or stop it{down}"
            )
        mine = (
            folder / f".lock.json-{me['host']}.{me['pid']:08d}.tmp"
        )  # as `volumes.remove_leftovers` knows them
        volumes.write_bytes(mine, json.dumps(me).encode())
        try:
            os.link(mine, lock)
        except FileExistsError:
            raise RuntimeError(
                f"{folder.parent}: another host began to run this study just now: see {lock}"
            ) from None
        finally:
            mine.unlink()
        try:
            yield
        finally:
            lock.unlink(missing_ok=True)
