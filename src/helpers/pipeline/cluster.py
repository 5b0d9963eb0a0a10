"""Where the notebooks of a study run: on this machine, or as jobs of a batch system. It has no part in the
results."""

import contextlib
import datetime
import re
import shlex
import shutil
import subprocess
import sys
import weakref
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path

from helpers import insides
from helpers.study import require, require_keys
from helpers.study.file import read_toml

#: Kind -> dask-jobqueue's class, the command that must be there, what that class calls an account, and how a
#: directive begins.
KINDS = {
    "slurm": ("SLURMCluster", "sbatch", "account", "#SBATCH"),
    "pbs": ("PBSCluster", "qsub", "account", "#PBS"),
    "lsf": ("LSFCluster", "bsub", "project", "#BSUB"),
    "sge": ("SGECluster", "qsub", "project", "#$"),
}

#: Kind -> the command that is asked for a job, which is named last, and what it says of one that has ended.
#: Saying nothing says so too.
_ASKED = {
    "slurm": (("squeue", "--noheader", "--jobs"), r"invalid job id"),
    "pbs": (("qstat",), r"unknown job id|job has finished"),
    "lsf": (("bjobs", "-noheader", "-o", "stat"), r"is not found|\b(done|exit)\b"),
    "sge": (("qstat", "-j"), r"do not exist"),
}

#: Kind -> an option of ours -> those of a study's directives that say the same, so that ours is left out:
#: batch systems refuse some pairs, such as --mem with --mem-per-cpu, and of others take one without a word.
_SAME = {
    "slurm": {
        "-J ": r"-J|--job-name\b",
        "-e ": r"-e|--error\b",
        "-o ": r"-o|--output\b",
        "-p ": r"-p|--partition\b",
        "-A ": r"-A|--account\b",
        "-n ": r"-n|--ntasks(?![\w-])",
        "--cpus-per-task=": r"-c|--cpus-per-task\b",
        "--mem=": r"--mem(-per-cpu|-per-gpu)?(?![\w-])",
        "-t ": r"-t|--time(?![\w-])",
    },
    "pbs": {
        **{f"{option} ": option for option in ("-N", "-q", "-A", "-e", "-o")},
        # A selection and single resources of a job exclude each other.
        "-l select=": r"-l\s*\S*\b(select|nodes|ncpus|procs|p?v?mem)=",
        "-l walltime=": r"-l\s*\S*\bwalltime=",
    },
    "lsf": {
        **{f"{option} ": rf"{option}\s" for option in ("-J", "-q", "-P")},
        **{f"{option} ": rf"{option}\s*\d" for option in ("-n", "-M", "-W")},
        "-e ": r"-eo?\s",
        "-o ": r"-oo?\s",
        '-R "span[': r"-R\s.*\bspan\[",
    },
    "sge": {
        **{f"{option} ": rf"{option}\s" for option in ("-N", "-q", "-P", "-e", "-o", "-j")},
        "-l h_rt=": r"-l\s*\S*\bh_rt=",
        "-cwd": r"-wd\s",
    },
}

#: Kind -> how a walltime is written, and an example. A batch system reads what another writes as something
#: else, or not at all.
_WALLTIME = {
    "slurm": (r"\d+-\d+(:\d+){0,2}|\d+(:\d+){0,2}", "02:00:00"),
    "pbs": (r"\d+(:\d+){0,2}", "02:00:00"),
    "lsf": (r"\d+(:\d+)?", "02:00"),
    "sge": (r"\d+|\d+:\d+:\d+", "02:00:00"),
}

#: Kind -> the option by which a job asks for memory alone.
_MEMORY = {"slurm": "--mem=", "lsf": "-M "}

#: What jobs are called.
_JOB = "resolution-matters"

#: A worker that harmonizes whole volumes needs about this much memory, its kernel included.
WORKER_MEMORY_GIB = 3
#: Python with PyTorch and one volume after the other takes most of this.
_LEAST_MEMORY_GB = 1


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
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise ValueError(f"{name} is {value!r}: accepted are whole numbers from {least}")
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


def job_script(cluster: Cluster, folder: Path) -> str:
    """The script that each job is submitted with; the scheduler's address in it is that of the moment."""
    with _configured(cluster), _jobqueue(cluster, folder) as jobs:
        return jobs.job_script()


@contextlib.contextmanager
def start(cluster: Cluster, folder: Path) -> Iterator:
    """Start the workers, or submit their jobs; stop them at the end.

    Parameters
    ----------
    cluster : Cluster
        What to start.
    folder : Path
        Where jobs leave what they print.

    Yields
    ------
    client : dask.distributed.Client
    renew : callable
        To be called every few seconds: submits new jobs in place of lost ones. `scale` does not do so by
        itself, and `adapt` would end jobs while their kernels work. RuntimeError if many jobs end before
        their workers connect.

    Raises
    ------
    FileNotFoundError
        If the batch system's command is not there.
    RuntimeError
        If it refuses the job.
    """
    from dask.distributed import Client, LocalCluster

    with _configured(cluster):
        if cluster.kind == "local":
            # No memory limit of dask's: it would count the worker, not the kernel that does the work.
            pool = LocalCluster(
                n_workers=cluster.size(),
                threads_per_worker=1,
                dashboard_address="127.0.0.1:0",
                memory_limit=0,
            )
            with pool, Client(pool) as client:
                yield client, lambda: None
        else:
            command = KINDS[cluster.kind][1]
            if shutil.which(command) is None:
                raise FileNotFoundError(
                    f"kind is {cluster.kind!r}: there is no {command} on this machine: accepted is kind "
                    "local, or a login node"
                )
            with _jobqueue(cluster, folder) as jobs, Client(jobs) as client:
                while len(jobs.worker_spec) < cluster.jobs:
                    jobs.worker_spec.update(jobs.new_worker_spec())
                try:
                    insides.submit_jobs(jobs)
                except RuntimeError as error:
                    message = [line for line in str(error).splitlines() if line.strip()][-1]
                    raise RuntimeError(f"{command} refused the job: {message.strip()}") from None
                yield client, _Renewal(jobs, cluster, folder)


class _Renewal:
    """Called every few seconds, it submits new jobs in place of lost ones."""

    #: Number of jobs whose state is asked of the batch system at a time: for hundreds of waiting jobs this
    #: would be a load on it.
    ASKED = 4
    #: Jobs that may end without a connected worker, for each job that the study wants.
    PATIENCE = 3

    def __init__(self, jobs, cluster: Cluster, folder: Path):
        self.jobs, self.cluster, self.folder = jobs, cluster, folder
        self.suspects = weakref.WeakSet()  # a job that dask forgets is forgotten here
        self.turn, self.wasted = 0, 0

    def __call__(self) -> None:
        self._forget_lost()
        if self.wasted > self.PATIENCE * self.cluster.jobs:
            raise RuntimeError(
                f"{self.wasted} jobs ended before their workers reached this machine: what they said is in "
                f"{self.folder}"
            )
        self.jobs.scale(jobs=self.cluster.jobs)

    def _forget_lost(self) -> None:
        connected = {worker["name"] for worker in list(self.jobs.scheduler_info["workers"].values())}
        if connected:
            self.wasted = 0
        # Dask forgets a job that ended if its worker was connected before. For other jobs that ended, or that
        # the batch system refused (which is only logged), it would wait for ever. A job counts as lost if it
        # is missing twice, since dask takes a while to forget.
        waiting = [(name, job) for name, job in list(self.jobs.workers.items()) if name not in connected]
        start = self.turn % len(waiting) if waiting else 0
        for name, job in (waiting[start:] + waiting[:start])[: self.ASKED]:
            self.turn += 1
            if not _ended(self.cluster.kind, job.job_id):
                self.suspects.discard(job)
            elif job not in self.suspects:
                self.suspects.add(job)
            else:
                insides.forget_job(self.jobs, name, job)
                self.suspects.discard(job)
                self.wasted += 1


def _ended(kind: str, job: str | None) -> bool:
    """Whether the batch system says that a job is over; one without a number was refused. If it says nothing
    of the kind, it is not."""
    if job is None:
        return True
    command, over = _ASKED[kind]
    try:
        answer = subprocess.run([*command, job], capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return False
    message = (answer.stdout + answer.stderr).strip()
    return bool(re.search(over, message, re.IGNORECASE)) if message else answer.returncode == 0


def _configured(cluster: Cluster):
    import dask
    import distributed  # noqa: F401  brings its own settings, which must be there before some are changed for a while

    if cluster.kind in KINDS:
        import dask_jobqueue  # noqa: F401  likewise: settings that come while others are changed would be taken back with them

    # A script asks for what the study says, and for nothing that dask-jobqueue or a file of its own would
    # add, as half an hour.
    asked = (
        "walltime",
        "queue",
        "account",
        "project",
        "interface",
        "resource-spec",
        "job-cpu",
        "job-mem",
        "ncpus",
        "mem",
    )
    nothing = {f"jobqueue.{cluster.kind}.{key}": None for key in asked}
    return dask.config.set(
        {
            **(nothing if cluster.kind in KINDS else {}),
            # A node that is silent for half an hour is lost. A worker's own thread is busy only while it
            # starts a notebook.
            "distributed.scheduler.worker-ttl": "30 minutes",
            # What was running on a lost worker is run again elsewhere, twice; a notebook that fails is not
            # run again.
            "distributed.scheduler.allowed-failures": 2,
            "distributed.deploy.lost-worker-timeout": "10s",
            # Dask looks at itself up to a hundred times a second, which is for tasks of milliseconds; a
            # notebook takes many seconds.
            "distributed.worker.profile.enabled": False,
            "distributed.admin.tick.interval": "1s",
            "distributed.admin.system-monitor.interval": "5s",
            "distributed.worker.memory.monitor-interval": "5s",
        }
    )


def _jobqueue(cluster: Cluster, folder: Path):
    import dask_jobqueue

    name, _, account, mark = KINDS[cluster.kind]
    chosen = {
        "queue": cluster.queue,
        account: cluster.account,
        "walltime": cluster.walltime,
        "interface": cluster.interface,
    }
    directives = list(cluster.directives)

    def given(same: str) -> bool:
        return any(re.search(rf"(?:^|\s)(?:{same})", directive) for directive in directives)

    left_out = [option for option, same in _SAME[cluster.kind].items() if given(same)]
    if not cluster.memory:
        left_out += [_MEMORY[cluster.kind]] if cluster.kind in _MEMORY else []
        chosen["resource_spec"] = f"select=1:ncpus={cluster.threads()}" if cluster.kind == "pbs" else ""
    for option, ending in (("-e", "err"), ("-o", "out")):
        # dask-jobqueue does not quote the folder.
        if " " in str(folder) and f"{option} " not in left_out:
            left_out.append(f"{option} ")
            file = f"{_JOB}-%J.{ending}" if cluster.kind in ("slurm", "lsf") else ""
            directives.append(f'{option} "{folder}/{file}"')
    return getattr(dask_jobqueue, name)(
        cores=cluster.threads(),
        # It has to be some; workers that are told a limit watch themselves only, not their kernels.
        memory=cluster.memory.replace(" ", "") or Cluster.memory,
        processes=1,
        python=shlex.quote(sys.executable),
        # One notebook at a time; the cores are for its threads.
        worker_extra_args=["--nthreads", "1"],
        job_extra_directives=directives,
        job_directives_skip=[f"{mark} {option}" for option in left_out],
        job_script_prologue=list(cluster.prologue),
        log_directory=str(folder),
        job_name=_JOB,
        scheduler_options={"dashboard_address": ":0"},
        **{key: value for key, value in chosen.items() if value},
    )
