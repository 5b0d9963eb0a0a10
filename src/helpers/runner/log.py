"""A study's log: what happened, and when."""

import contextlib
import json
import os
import time
from pathlib import Path

from helpers.volumes.files import naming


def log(folder: Path, **event) -> None:
    """Append one event, with the time, to the study's log."""
    path = folder / "log.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    with naming(path), open(path, "ab+") as file:
        # A run that was killed while it wrote may have left half a line: this event begins a new one.
        if file.tell():
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
