"""Study files as text: paths as people write them, TOML, and files that build on each other."""

import os
import re
import tomllib
import urllib.parse
from pathlib import Path


def expand_path(path: str | Path) -> Path:
    """A path as people write or paste it: ``~`` and ``$VARIABLES`` are replaced; spaces, quotes, slashes
    behind it and ``file://`` dropped.

    Relative paths stay relative. A file or folder that is called so, dollars and all, is taken as it is.

    Raises
    ------
    ValueError
        If nothing is written there, which would mean the working folder; if a variable is not set, or
        ``~name`` is no user: otherwise a folder of that very name would be made.

    Examples
    --------
    >>> expand_path(" data/anatomy/ ").as_posix()
    'data/anatomy'
    """
    text = str(path).strip()
    if len(text) > 1 and text[0] == text[-1] and text[0] in "'\"":
        text = text[1:-1].strip()
    if not text:
        raise ValueError(f"path is {str(path)!r}: accepted is that of a file or folder")
    # What file managers copy; spaces are written as %20 there.
    text = urllib.parse.unquote(text.removeprefix("file://")) if text.startswith("file:///") else text
    if "$" in text and Path(text).exists():
        return Path(text)
    expanded = os.path.expanduser(os.path.expandvars(text))
    if unset := re.search(r"\$(\w+|\{[^}]*\})", expanded) or re.match(r"~\w+(?=/|$)", expanded):
        what = "variable" if unset[0].startswith("$") else "user"
        raise ValueError(
            f"path is {text!r}: there is no {what} {unset[0]}: accepted are those that are there"
        )
    return Path(expanded)


def read_toml(path: str | Path) -> list[tuple[Path, dict]]:
    """A study file and the files that it builds on (``extends = "ten.toml"``, relative to the file that says
    so).

    Returns
    -------
    list of (Path, dict)
        File and content, without ``extends``; the file that builds on no other first, `path` last.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If one is not TOML, or builds on itself.
    """
    files, extended_by = [], ""
    path = expand_path(path)
    while True:
        if not path.is_file():
            raise FileNotFoundError(f"{path}: no such study file{extended_by}")
        if any(path.samefile(file) for file, _ in files):
            raise ValueError(
                f"{path}: builds on itself{extended_by}: accepted is a chain of files that has an end"
            )
        try:
            # TOML wants UTF-8; some editors put a byte order mark before it.
            values = tomllib.loads(path.read_bytes().decode("utf-8-sig"))
        except UnicodeDecodeError as error:
            accepted = "accepted is a file saved as UTF-8"
            raise ValueError(f"{path}: not TOML: byte {error.start + 1} is no UTF-8: {accepted}") from None
        except tomllib.TOMLDecodeError as error:
            raise ValueError(f"{path}: not TOML ({error}): accepted are lines such as seed = 1") from None
        files.insert(0, (path, values))
        if "extends" not in values:
            return files
        base = values.pop("extends")
        if not isinstance(base, str) or not base.strip():
            raise ValueError(f"{path}: extends is {base!r}: accepted is the path of another study file")
        extended_by = f" (extends in {path})"
        try:
            path = path.parent / expand_path(base)
        except ValueError as error:
            raise ValueError(f"{path}: extends: {error}") from None
