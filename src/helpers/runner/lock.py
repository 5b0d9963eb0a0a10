"""A study's lock against a second run at the same time."""

import contextlib
import fcntl
import json
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import psutil

from helpers.volumes.files import write_bytes

#: Two files in the study's report folder: the process that runs the study, and what the system locks for it.
LOCKS = ("lock.json", ".lock")


def holder(folder: Path) -> dict | None:
    """The process that runs the study now: its ``host``, ``pid`` and ``started``; None if there is none.

    On this host a lock counts only if its process still runs: same number, same time of its start. Whether a
    process of another host still runs cannot be seen from here, so its lock counts.
    """
    process = _read_lock(folder)
    return process if process and (process["host"] != socket.gethostname() or _runs(process)) else None


def _read_lock(folder: Path) -> dict | None:
    """The process that the lock names; None if there is no lock that can be read."""
    try:
        process = json.loads((folder / "lock.json").read_text())
        return {
            "host": str(process["host"]),
            "pid": int(process["pid"]),
            "started": float(process["started"]),
        }
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _runs(locking: dict) -> bool:
    """Whether the process of this host that a lock names still runs."""
    try:
        process = psutil.Process(locking["pid"])
        # A zombie has ended. The time of a start may differ by a little when the clock is set.
        started_s = abs(process.create_time() - locking["started"])
        return process.status() != psutil.STATUS_ZOMBIE and started_s <= 2
    except psutil.Error:
        return False


@contextlib.contextmanager
def _system_lock(folder: Path) -> Iterator[bool | None]:
    """Lock the study's file ``.lock``. The system ends such a lock with the process, however it ends.

    Yields whether this process has the lock; None where the file system has no such locks.
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
            # `helpers.runner.removal.clean` removes the file that it has locked: a process that opened it
            # before that has locked a file that is gone, and tries the new one.
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
    with _system_lock(folder) as ours:
        process = _read_lock(folder)
        # If this process could lock the file, the one that the lock names has ended; unless it is on another
        # host, where locks of this system may not be seen.
        if process and ours and process["host"] == me["host"] or ours is None and not holder(folder):
            process = None
            lock.unlink(missing_ok=True)
        if process or ours is False:
            named = f"process {process['pid']} on {process['host']}" if process else "another process"
            remote = process and process["host"] != me["host"]
            down = f". If that host is down, remove {lock}" if remote else ""
            raise RuntimeError(
                f"{folder.parent}: this study is being run by {named}: wait for it, or stop it{down}"
            )
        # A name that `remove_leftovers` knows.
        mine = folder / f".lock.json-{me['host']}.{me['pid']:08d}.tmp"
        write_bytes(mine, json.dumps(me).encode())
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
