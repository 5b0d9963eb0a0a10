"""Start the workers that run notebooks: processes of this machine, or jobs of a batch system."""

import contextlib
import re
import shlex
import shutil
import subprocess
import sys
import weakref
from collections.abc import Iterator
from pathlib import Path

from helpers import internals
from helpers.runner.cluster import KINDS, Cluster

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

#: Kind -> the option by which a job asks for memory alone.
_MEMORY = {"slurm": "--mem=", "lsf": "-M "}

#: What jobs are called.
_JOB = "resolution-matters"


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
                    internals.submit_jobs(jobs)
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
                internals.forget_job(self.jobs, name, job)
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
