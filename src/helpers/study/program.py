"""What a study file may say of its harmonizer: a name, a class of one's own, or a program."""

import difflib
import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from numbers import Real
from pathlib import Path

from helpers.study import CONTRASTS, HARMONIZERS, require_keys

#: A harmonizer of one's own: where its module is, unless Python finds it, the module, and a name in it.
_OWN_HARMONIZER = re.compile(r"(.*/)?[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*")

#: In the command of a program: the place of a file, or of the folder that it works in.
_PLACEHOLDER = re.compile(r"\{(\w+)\}")


@dataclass(frozen=True)
class Program:
    """A harmonizer that is a program: files in, files out (`helpers.harmonizers.program`).

    Parameters
    ----------
    command : tuple of str
        The program and its arguments, as they are: no shell sees them. ``{T1w}``, ``{T2w}`` and ``{FLAIR}``
        stand for the files of the sources, ``{target_T1w}`` and so on for those of the targets, ``{folder}``
        for the empty folder in which it is started and which is removed afterwards.
    output : str
        The files that it leaves in that folder, with ``{contrast}`` for the contrast.
    time_limit_min : float
        Minutes after which it is ended.

    Raises
    ------
    ValueError
        Naming the field, its value and what is accepted.
    """

    command: tuple[str, ...]
    output: str = "{contrast}.nii.gz"
    time_limit_min: float = 60

    def __post_init__(self):
        parts = self.command
        if (
            not isinstance(parts, (list, tuple))
            or not parts
            or not all(isinstance(e, str) and e for e in parts)
        ):
            raise ValueError(
                f"harmonizer.command is {parts!r}: accepted is a list of words, the program first"
            )
        object.__setattr__(self, "command", tuple(map(_expand_file, parts)))
        known = [*CONTRASTS, *(f"target_{contrast}" for contrast in CONTRASTS), "folder"]
        require_keys("harmonizer.command", self.placeholders, known)
        output = self.output
        if (
            not isinstance(output, str)
            or "{contrast}" not in output
            or not output.endswith((".nii", ".nii.gz"))
            # What lies elsewhere may have been there before.
            or os.path.isabs(output)
            or ".." in output.split("/")
        ):
            accepted = "accepted is the name of a NIfTI file in {folder}, with {contrast} in it"
            raise ValueError(f"harmonizer.output is {output!r}: {accepted}")
        limit = self.time_limit_min
        if isinstance(limit, bool) or not isinstance(limit, Real) or not 0 < limit < math.inf:
            raise ValueError(f"harmonizer.time_limit_min is {limit!r}: accepted are minutes above 0")

    @property
    def placeholders(self) -> list[str]:
        """The names in braces in its command."""
        return [name for part in self.command for name in _PLACEHOLDER.findall(part)]


def read_harmonizer(value) -> str | Program:
    """Read `harmonizer` of a study file: a known name, ``module:name``, or a program."""
    if isinstance(value, Program) or (isinstance(value, str) and value in HARMONIZERS):
        return value
    if isinstance(value, Mapping):
        require_keys("harmonizer", value, [field.name for field in fields(Program)])
        if "command" not in value:
            raise ValueError(f"harmonizer is {dict(value)!r}: accepted is a table with a command")
        return Program(**value)
    if isinstance(value, str) and _OWN_HARMONIZER.fullmatch(value):
        place, slash, own = value.rpartition("/")
        return f"{_expand(place)}{slash}{own}"
    near = difflib.get_close_matches(str(value), HARMONIZERS, 1)
    own = "'package.module:name', or a table with a command"
    accepted = f"did you mean {near[0]}?" if near else f"accepted are {', '.join(HARMONIZERS)}, {own}"
    raise ValueError(f"harmonizer is {value!r}: {accepted}")


def _expand(text: str) -> str:
    """``~`` and ``$VARIABLES`` replaced where they are known: not every word of a command is a path."""
    return os.path.expanduser(os.path.expandvars(text))


def _expand_file(word: str) -> str:
    """A word of a command that names a file below ``~`` or a ``$VARIABLE`` as the path of that file, others
    as they are."""
    expanded = _expand(word)
    return expanded if os.path.isfile(expanded) else word


def place_beside(folder: Path, harmonizer):
    """What a study file says of its harmonizer; modules and files that lie in `folder`, beside it, by their
    absolute paths: notebooks run elsewhere."""
    if isinstance(harmonizer, str) and _OWN_HARMONIZER.fullmatch(harmonizer):
        place, _, module = _expand(harmonizer.partition(":")[0]).rpartition("/")
        path = folder / place / module.replace(".", "/")
        if path.with_name(f"{path.name}.py").is_file() or (path / "__init__.py").is_file():
            return f"{(folder / place).resolve()}/{module}:{harmonizer.rpartition(':')[2]}"
    if isinstance(harmonizer, Mapping) and isinstance(harmonizer.get("command"), list):
        parts = [
            str((folder / _expand(part)).resolve())
            if isinstance(part, str) and (folder / _expand(part)).is_file()
            else part
            for part in harmonizer["command"]
        ]
        return {**harmonizer, "command": parts}
    return harmonizer
