"""The ``[cluster]`` table of a study file: where its notebooks run. It has no part in the results."""

import datetime
import re
from dataclasses import dataclass, fields
from pathlib import Path

from helpers.study import require, require_keys
from helpers.study.toml import read_toml

#: Kind -> dask-jobqueue's class, the command that must be there, what that class calls an account, and how a
#: directive begins.
KINDS = {
    "slurm": ("SLURMCluster", "sbatch", "account", "#SBATCH"),
    "pbs": ("PBSCluster", "qsub", "account", "#PBS"),
    "lsf": ("LSFCluster", "bsub", "project", "#BSUB"),
    "sge": ("SGECluster", "qsub", "project", "#$"),
}

#: Kind -> how a walltime is written, and an example. A batch system reads what another writes as something
#: else, or not at all.
_WALLTIME = {
    "slurm": (r"\d+-\d+(:\d+){0,2}|\d+(:\d+){0,2}", "02:00:00"),
    "pbs": (r"\d+(:\d+){0,2}", "02:00:00"),
    "lsf": (r"\d+(:\d+)?", "02:00"),
    "sge": (r"\d+|\d+:\d+:\d+", "02:00:00"),
}

#: A worker that harmonizes whole volumes needs about this much memory, its kernel included.
WORKER_MEMORY_GIB = 3
#: Python with PyTorch and one volume after the other takes most of this.
_LEAST_MEMORY_GB = 1
#: Workers, jobs or cores: more is a slip of the pen.
_MOST = 1000


@dataclass(frozen=True)
class Cluster:
    """The ``[cluster]`` table of a study file. One worker runs one notebook at a time; a job is one worker.

    Parameters
    ----------
    kind : str
        ``local``, or the batch system: ``slurm``, ``pbs``, ``lsf``, ``sge``.
    workers : int
        Notebooks at a time on this machine; 0: one per core, as far as memory allows. Only for ``local``.
    jobs : int
        Jobs at a time.
    cores : int
        Of a job, which are the threads of its notebook; 0: one. Sites of SGE name them as they like: ask for
        them, and for memory, in `directives`, such as ``-pe smp 2``. On this machine of all workers together;
        0: all that this process may use.
    memory : str
        Of a job, with a unit; empty: jobs ask for none, for sites that give each job a whole node.
    walltime : str
        Of a job, as the batch system writes it: ``02:00:00``, for LSF ``02:00``; empty: jobs ask for none,
        and get what the queue gives. A notebook that is cut off by the end of its job starts from the
        beginning in another job, so the time should be longer than any notebook takes.
    queue, account : str
        Queue of the jobs, and account that pays for them; empty: as the batch system decides.
    directives : tuple of str
        More of the batch system's options, as they stand behind ``#SBATCH``. One that says what a key says,
        such as ``--mem-per-cpu=4G`` or ``--time=1-0``, takes the place of the key's line.
    prologue : tuple of str
        Shell commands before the worker starts, such as ``module load``.
    interface : str
        Network interface by which jobs reach this machine, such as ``ib0``; empty: as the host's name
        resolves.

    Raises
    ------
    ValueError
        With one line that names the key, its value and what is accepted.
    """

    kind: str = "local"
    workers: int = 0
    jobs: int = 8
    cores: int = 0
    memory: str = "4GB"
    walltime: str = ""
    queue: str = ""
    account: str = ""
    directives: tuple[str, ...] = ()
    prologue: tuple[str, ...] = ()
    interface: str = ""

    def __post_init__(self):
        require("kind", self.kind, ("local", *KINDS))
        for name, least in (("workers", 0), ("jobs", 1), ("cores", 0)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= _MOST:
                accepted = f"accepted are whole numbers from {least} to {_MOST}"
                raise ValueError(f"{name} is {value!r}: {accepted}")
        for name in ("memory", "walltime", "queue", "account", "interface"):
            value = getattr(self, name)
            if not isinstance(value, str) or "\n" in value:
                # TOML reads a time without quotes as a time of the day.
                written = value if isinstance(value, datetime.time) else repr(value)
                raise ValueError(f"{name} is {written}: accepted is text of one line, in quotes")
        if not re.fullmatch(r"(\d+(\.\d+)? ?[KMGT]i?B)?", self.memory):
            raise ValueError(
                f"memory is {self.memory!r}: accepted is a number with a unit, such as '4GB', or nothing"
            )
        if self.walltime and self.kind in KINDS:
            form, example = _WALLTIME[self.kind]
            if not re.fullmatch(form, self.walltime) or not re.search("[1-9]", self.walltime):
                raise ValueError(
                    f"walltime is {self.walltime!r}: accepted with kind {self.kind} is a time such as "
                    f"'{example}'"
                )
        if self.memory and _bytes(self.memory) < _LEAST_MEMORY_GB * 1e9:
            raise ValueError(
                f"memory is {self.memory!r}, of a job: accepted are {_LEAST_MEMORY_GB}GB or more, or nothing"
            )
        for name in ("directives", "prologue"):
            value = getattr(self, name)
            if not isinstance(value, (list, tuple)) or not all(
                isinstance(line, str) and "\n" not in line for line in value
            ):
                raise ValueError(f"{name} is {value!r}: accepted is a list of texts of one line")
            object.__setattr__(self, name, tuple(value))
        for line in self.directives:
            if not line.strip() or line.lstrip().startswith("#"):
                accepted = "accepted is what stands behind the mark of the batch system, such as #SBATCH"
                raise ValueError(f"directives has {line!r}: {accepted}")
        unused = (
            "jobs",
            "memory",
            "walltime",
            "queue",
            "account",
            "directives",
            "prologue",
            "interface",
        )
        for field in fields(self):
            if (
                field.name in (unused if self.kind == "local" else ("workers",))
                and getattr(self, field.name) != field.default
            ):
                accepted = "are workers and cores" if self.kind == "local" else "is jobs"
                raise ValueError(
                    f"{field.name} is {getattr(self, field.name)!r} with kind {self.kind}: accepted there "
                    f"{accepted}"
                )

    @classmethod
    def from_toml(cls, path: str | Path) -> "Cluster":
        """Read the ``[cluster]`` table of a study file, which `Study.from_toml` has found readable; none is
        ``local``.

        Without a table of its own a file has that of the file that it extends.

        Raises
        ------
        ValueError
            If it has an unknown key (the nearest known one is named) or a bad value.
        """
        tables = [(file, values["cluster"]) for file, values in read_toml(path) if "cluster" in values]
        if not tables:
            return cls()
        file, table = tables[-1]
        if not isinstance(table, dict):
            raise ValueError(f"{file}: cluster is {table!r}: accepted is a table, [cluster]")
        require_keys(f"{file}: [cluster]", table, [field.name for field in fields(cls)])
        try:
            return cls(**table)
        except ValueError as error:
            raise ValueError(f"{file}: [cluster]: {error}") from None

    def size(self) -> int:
        """Notebooks at a time."""
        if self.kind != "local":
            return self.jobs
        from dask.system import CPU_COUNT
        from distributed.system import MEMORY_LIMIT

        # Both know of containers' limits.
        fit = int(MEMORY_LIMIT / 2**30 / WORKER_MEMORY_GIB)
        return self.workers or max(1, min(self.cores or CPU_COUNT, fit))

    def threads(self) -> int:
        """Threads of each notebook, so that workers times threads are the cores."""
        if self.kind != "local":
            return self.cores or 1
        from dask.system import CPU_COUNT

        return max(1, (self.cores or CPU_COUNT) // self.size())


def _bytes(text: str) -> float:
    """``"4 GB"`` -> 4e9, as `Cluster.memory` is written."""
    number, prefix, binary = re.fullmatch(r"([\d.]+) ?([KMGT])(i?)B", text).groups()
    return float(number) * (1024 if binary else 1000) ** ("KMGT".index(prefix) + 1)
