"""The [cluster] table, and what is submitted to the four batch systems."""

import re
import sys
import time
from pathlib import Path

import dask
import pytest

from helpers import layout
from helpers.runner import cli, cluster, workers
from helpers.runner.cluster import Cluster
from helpers.study.file import Study

GOLDEN = Path(__file__).parents[1] / "golden" / "job_scripts"


@pytest.mark.parametrize("kind", cluster.KINDS)
def test_the_job_script_is_the_one_kept(kind, tmp_path):
    where = Cluster(
        kind=kind,
        jobs=3,
        cores=4,
        memory="12 GB",
        walltime="02:00" if kind == "lsf" else "02:00:00",
        queue="short",
        account="mylab",
        directives=["-X extra"],
        prologue=["module load python"],
    )
    script = (
        workers.job_script(where, tmp_path).replace(str(tmp_path), "LOGS").replace(sys.executable, "PYTHON")
    )
    assert re.sub(r"tcp://[\d.]+:\d+", "SCHEDULER", script) == (GOLDEN / f"{kind}.sh").read_text()


@pytest.mark.parametrize("kind", cluster.KINDS)
def test_a_script_asks_for_nothing_that_nobody_wrote(kind, tmp_path):
    import dask_jobqueue  # noqa: F401  brings its own settings, which must not be needed before a script is asked for

    # dask-jobqueue's own default is half an hour, and a file of its own may say more.
    of_the_site = {
        "walltime": "00:07:00",
        "queue": "site",
        "job-mem": "7GB",
        "mem": 7_000_000_000,
        "resource-spec": "site=7",
    }
    with dask.config.set({f"jobqueue.{kind}": {**dask.config.get(f"jobqueue.{kind}"), **of_the_site}}):
        script = workers.job_script(Cluster(kind=kind, memory=""), tmp_path)
    header = [line for line in script.splitlines() if line.startswith(cluster.KINDS[kind][3])]
    expected = {
        "slurm": ["#SBATCH -n 1", "#SBATCH --cpus-per-task=1"],
        "pbs": ["#PBS -l select=1:ncpus=1"],
        "lsf": ["#BSUB -n 1"],
        "sge": ["#$ -cwd", "#$ -j y"],
    }
    assert [
        line for line in header if str(tmp_path) not in line and "resolution-matters" not in line
    ] == expected[kind]


@pytest.mark.parametrize(
    "kind, directive, gone",
    [
        ("slurm", "--mem-per-cpu=4G", "--mem="),
        ("slurm", "--mem 4G", "--mem="),
        ("slurm", "--exclusive --mem-per-gpu=4G", "--mem="),
        ("slurm", "--time=1-0", "-t "),
        ("slurm", "-t1-0", "-t "),
        ("slurm", "--partition=long", "-p "),
        ("slurm", "--ntasks=2", "-n "),
        ("slurm", "-o my.log", "-o "),
        ("pbs", "-l nodes=1:ppn=4", "-l select="),
        ("pbs", "-l mem=4gb", "-l select="),
        ("pbs", "-l walltime=1:00:00", "-l walltime=02"),
        ("pbs", "-q long", "-q short"),
        ("lsf", "-M 4000", "-M 1"),
        ("lsf", "-W 10:00", "-W 02"),
        ("lsf", "-oo my.log", "-o "),
        ("lsf", '-R "span[ptile=2]"', '-R "span[hosts'),
        ("sge", "-l h_rt=10:00:00", "-l h_rt=02"),
        ("sge", "-wd /scratch", "-cwd"),
    ],
)
def test_a_directive_takes_the_place_of_the_line_that_says_the_same(kind, directive, gone, tmp_path):
    settings = {
        "kind": kind,
        "cores": 2,
        "memory": "12GB",
        "walltime": cluster._WALLTIME[kind][1],
        "queue": "short",
    }
    mark = cluster.KINDS[kind][3]
    plain = workers.job_script(Cluster(**settings), tmp_path).splitlines()
    script = workers.job_script(Cluster(**settings, directives=[directive]), tmp_path).splitlines()
    lines, before = ([line for line in each if line.startswith(mark)] for each in (script, plain))
    (line,) = set(before) - set(lines)
    assert line.startswith(f"{mark} {gone}")
    assert set(lines) - set(before) == {f"{mark} {directive}"}


@pytest.mark.parametrize(
    "kind, directive",
    [
        ("slurm", "--mem-bind=local"),
        ("slurm", "--time-min=60"),
        ("slurm", "--exclusive"),
        ("slurm", "--ntasks-per-core=1"),
        ("pbs", "-l place=excl"),
        ("lsf", "-Wt 5"),
        ("lsf", '-R "rusage[mem=4000]"'),
        ("sge", "-pe smp 2"),
        ("sge", "-notify"),
    ],
)
def test_other_directives_come_on_top(kind, directive, tmp_path):
    settings = {"kind": kind, "walltime": cluster._WALLTIME[kind][1], "queue": "short"}
    mark = cluster.KINDS[kind][3]
    plain = workers.job_script(Cluster(**settings), tmp_path).splitlines()
    script = workers.job_script(Cluster(**settings, directives=[directive]), tmp_path).splitlines()
    assert [line for line in script if line.startswith(mark)] == [
        *(line for line in plain if line.startswith(mark)),
        f"{mark} {directive}",
    ]


@pytest.mark.parametrize(
    "kind, walltime",
    [
        ("slurm", "30"),
        ("slurm", "30:00"),
        ("slurm", "1-12"),
        ("slurm", "1-12:30:00"),
        ("pbs", "7200"),
        ("lsf", "90"),
        ("sge", "7200"),
    ]
    + [(kind, example) for kind, (_, example) in cluster._WALLTIME.items()],
)
def test_a_walltime_is_passed_on_as_its_batch_system_writes_it(kind, walltime):
    assert Cluster(kind=kind, walltime=walltime).walltime == walltime


@pytest.mark.parametrize("kind", cluster.KINDS)
def test_a_folder_with_spaces_is_quoted(kind, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "executable", "/opt/my tools/python")
    script = workers.job_script(Cluster(kind=kind), tmp_path / "my results").splitlines()
    assert script[-1].startswith("'/opt/my tools/python' -m ")
    logs = [line for line in script if "my results" in line]
    files = [
        f"resolution-matters-%J.{ending}" if kind in ("slurm", "lsf") else "" for ending in ("err", "out")
    ]
    mark, folder = cluster.KINDS[kind][3], tmp_path / "my results"
    assert logs == [
        f'{mark} {option} "{folder}/{file}"' for option, file in zip(("-e", "-o"), files, strict=True)
    ]


@pytest.mark.parametrize(
    "table, message",
    [
        ("kind = 'slrum'", "kind is 'slrum': accepted are local, slurm, pbs, lsf, sge"),
        ("kind = 'slurm'\nwaltime = '1:00'", "unknown key 'waltime': did you mean walltime?"),
        (
            "kind = 'slurm'\nwaltime = '1:00'",
            "accepted are kind, workers, jobs, cores, memory, walltime, queue, account, directives, "
            "prologue, interface",
        ),
        ("kind = 'slurm'\njobs = -3", "jobs is -3: accepted are whole numbers from 1"),
        ("workers = -1", "workers is -1: accepted are whole numbers from 0"),
        ("cores = 2.5", "cores is 2.5: accepted are whole numbers from 0"),
        ("kind = 'slurm'\nmemory = 4", "memory is 4: accepted is text of one line, in quotes"),
        ("kind = 'slurm'\nmemory = '-4GB'", "memory is '-4GB': accepted is a number with a unit"),
        (
            "kind = 'slurm'\nwalltime = 02:00:00",
            "walltime is 02:00:00: accepted is text of one line, in quotes",
        ),
        ("kind = 'slurm'\nprologue = ['a', 3]", "prologue is ['a', 3]: accepted is a list of texts"),
        ("kind = 'slurm'\njobs = 0", "jobs is 0: accepted are whole numbers from 1"),
        ("kind = 'slurm'\ncores = true", "cores is True"),
        ("kind = 'slurm'\nmemory = 'much'", "memory is 'much': accepted is a number with a unit"),
        (
            "kind = 'lsf'\nwalltime = '01:00:00'",
            "walltime is '01:00:00': accepted with kind lsf is a time such as '02:00'",
        ),
        (
            "kind = 'slurm'\nwalltime = '2h'",
            "walltime is '2h': accepted with kind slurm is a time such as '02:00:00'",
        ),
        (
            "kind = 'sge'\nwalltime = '01:00'",
            "walltime is '01:00': accepted with kind sge is a time such as '02:00:00'",
        ),
        ("kind = 'slurm'\nqueue = 3", "queue is 3: accepted is text"),
        ("kind = 'slurm'\ndirectives = '-X'", "directives is '-X': accepted is a list"),
        ("kind = 'slurm'\nworkers = 3", "workers is 3 with kind slurm: accepted there is jobs"),
        ("queue = 'short'", "queue is 'short' with kind local: accepted there are workers and cores"),
        ("workers = 1000000", "workers is 1000000: accepted are whole numbers from 0 to 1000"),
        # Limits that leave nothing to compute with.
        ("kind = 'slurm'\nmemory = '0GB'", "memory is '0GB', of a job: accepted are 1GB or more, or nothing"),
        ("kind = 'pbs'\nmemory = '900 MiB'", "memory is '900 MiB', of a job: accepted are 1GB or more"),
        (
            "kind = 'slurm'\nwalltime = '00:00:00'",
            "walltime is '00:00:00': accepted with kind slurm is a time such as '02:00:00'",
        ),
        ("kind = 'lsf'\nwalltime = '0'", "walltime is '0': accepted with kind lsf is a time such as '02:00'"),
        # Behind its own mark a batch system takes them for a remark.
        (
            "kind = 'slurm'\ndirectives = ['#SBATCH --time=1-0']",
            "directives has '#SBATCH --time=1-0': accepted is what stands behind the mark",
        ),
        ("kind = 'slurm'\ndirectives = ['']", "directives has '': accepted is what stands behind the mark"),
    ],
)
def test_a_bad_table_is_one_line_and_nothing_is_written(tmp_path, capsys, table, message):
    study = tmp_path / "mine.toml"
    study.write_text(f'output_dir = "{tmp_path / "results"}"\n[cluster]\n{table}\n')
    for command in ("run", "status"):
        assert cli.main([command, str(study)]) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1
        assert message in error
        assert str(study) in error
    assert not (tmp_path / "results").exists()


def test_a_cluster_that_is_no_table_is_refused(tmp_path, capsys):
    (tmp_path / "mine.toml").write_text("cluster = 'slurm'\n")
    assert cli.main(["status", str(tmp_path / "mine.toml")]) == 2
    assert "cluster is 'slurm': accepted is a table" in capsys.readouterr().err


def test_where_a_study_is_computed_is_no_part_of_it(tmp_path):
    text = 'name = "x"\nsubjects = [2]\n'
    for name, table in (("here", ""), ("there", '[cluster]\nkind = "sge"\njobs = 7\n')):
        (tmp_path / f"{name}.toml").write_text(text + table)
    assert Study.from_toml(tmp_path / "here.toml") == Study.from_toml(tmp_path / "there.toml")
    assert Cluster.from_toml(tmp_path / "here.toml") == Cluster()
    assert Cluster.from_toml(tmp_path / "there.toml") == Cluster(kind="sge", jobs=7)


def test_workers_times_threads_are_the_cores(monkeypatch):
    import dask.system
    import distributed.system

    monkeypatch.setattr(dask.system, "CPU_COUNT", 16)
    monkeypatch.setattr(distributed.system, "MEMORY_LIMIT", 200 * 2**30)
    assert (Cluster().size(), Cluster().threads()) == (16, 1)
    assert (Cluster(workers=4).size(), Cluster(workers=4).threads()) == (4, 4)
    assert (Cluster(workers=20).size(), Cluster(workers=20).threads()) == (20, 1)
    # Some of the cores may be kept for others.
    assert (Cluster(cores=6).size(), Cluster(cores=6).threads()) == (6, 1)
    assert (Cluster(workers=2, cores=6).size(), Cluster(workers=2, cores=6).threads()) == (2, 3)
    # Where memory allows fewer workers than cores, each has more threads.
    monkeypatch.setattr(distributed.system, "MEMORY_LIMIT", 13 * 2**30)
    assert (Cluster().size(), Cluster().threads()) == (4, 4)
    assert (
        Cluster(kind="slurm", jobs=9, cores=3).size(),
        Cluster(kind="slurm", jobs=9, cores=3).threads(),
    ) == (9, 3)


def test_a_batch_system_that_is_not_there_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(FileNotFoundError, match="kind is 'lsf': there is no bsub on this machine"):
        with workers.start(Cluster(kind="lsf"), tmp_path):
            pass


@pytest.fixture
def command(tmp_path, monkeypatch):
    """Write stand-ins for commands of a batch system: the only ones there are, whatever is installed on this
    machine."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))

    def write(name, *lines):
        # What the lines use is built into every shell.
        (folder / name).write_text("\n".join(("#!/bin/sh", *lines, "")))
        (folder / name).chmod(0o755)
        return folder / name

    return write


def test_a_job_that_the_batch_system_refuses_is_one_line(tmp_path, command):
    command("sbatch", "echo 'sbatch: error: invalid partition specified: shrt' >&2", "exit 1")
    with pytest.raises(
        RuntimeError, match="sbatch refused the job: .*invalid partition specified: shrt"
    ) as error:
        with workers.start(Cluster(kind="slurm", queue="shrt"), tmp_path / "jobs"):
            pass
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "kind, name, there, over",
    [
        (
            "slurm",
            "squeue",
            ["echo 5 main resoluti root PD 0:00", "echo 'Unable to contact slurm controller' >&2; exit 1"],
            [":", "echo 'slurm_load_jobs error: Invalid job id specified' >&2; exit 1"],
        ),
        (
            "pbs",
            "qstat",
            ["echo '5.host dask root 0 Q batch'", "echo 'cannot connect to server' >&2; exit 1"],
            [
                "echo 'qstat: 5.host Job has finished, use -x' >&2; exit 35",
                "echo 'qstat: Unknown Job Id 5.host' >&2; exit 153",
            ],
        ),
        (
            "lsf",
            "bjobs",
            ["echo PEND", "echo RUN", "echo 'LSF is down. Please wait' >&2; exit 255"],
            ["echo EXIT", "echo 'Job <5> is not found' >&2; exit 255"],
        ),
        (
            "sge",
            "qstat",
            ["echo 'job_number: 5'", "echo 'unable to send message to qmaster' >&2; exit 1"],
            ["echo 'Following jobs do not exist: 5' >&2; exit 1"],
        ),
    ],
)
def test_a_job_is_over_only_if_the_batch_system_says_so(command, kind, name, there, over):
    for says, expected in [*((each, False) for each in there), *((each, True) for each in over)]:
        path = command(name, "for last; do :; done", '[ "$last" = 5 ] || exit 99', says)
        assert workers._ended(kind, "5") == expected, says
    path.unlink()
    assert not workers._ended(kind, "5")
    assert workers._ended(kind, None)  # refused: it never was


def test_jobs_that_do_nothing_but_end_are_an_error_and_not_waited_for(tmp_path, command):
    # Each is taken and is gone, as with a prologue that fails: at first that may be bad luck, so others are
    # sent after it.
    command("sbatch", f"echo >> {tmp_path}/sent", "echo Submitted batch job $$")
    command("squeue")
    command("scancel", "echo 'scancel: error: Invalid job id specified' >&2", "exit 1")
    with pytest.raises(
        RuntimeError,
        match=r"(\d+) jobs ended before their workers reached this machine: what they said is in .*jobs",
    ) as error:
        with workers.start(Cluster(kind="slurm", jobs=6), tmp_path / "jobs") as (client, again):
            for _ in range(300):
                again()
                time.sleep(0.1)
    wasted = int(str(error.value).split()[0])
    assert 3 * 6 < wasted <= 3 * 6 + again.ASKED
    assert wasted <= len((tmp_path / "sent").read_text()) <= wasted + 6


@pytest.mark.parametrize("name, size", [("demo", 10), ("paper", 90), ("slurm", 90), ("whole", 4)])
def test_the_shipped_studies_are_valid(name, size):
    from helpers.runner import graph

    plan = Study.from_toml(layout.ROOT / "studies" / f"{name}.toml")
    Cluster.from_toml(layout.ROOT / "studies" / f"{name}.toml")
    assert sum(task.notebook.stem == "04_harmonization" for task in graph.tasks(plan)) == size
    graph.check_subjects(plan)


def test_the_slurm_study_is_the_paper_study_on_a_cluster():
    paper, slurm = (layout.ROOT / "studies" / f"{name}.toml" for name in ("paper", "slurm"))
    assert Study.from_toml(slurm) == Study.from_toml(paper)
    plan = Study.from_toml(paper)
    assert len(plan.subjects) * len(plan.experiments) * len(plan.resolutions) == 640
    assert Cluster.from_toml(slurm).kind == "slurm"
