"""A study as jobs of a real SLURM, on this one host. Slow; needs root and Debian's packages slurmctld,
slurmd, slurm-client, munge."""

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from helpers.runner import graph, log
from helpers.study.file import Study

COMMANDS = ("munged", "slurmctld", "slurmd", "sbatch", "scancel")
PLACES = os.environ["PATH"] + ":/usr/sbin"
missing = [command for command in COMMANDS if shutil.which(command, path=PLACES) is None]
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not hasattr(os, "geteuid") or os.geteuid() != 0,
        reason="jobs of a real SLURM: its daemons want to be started by root",
    ),
    pytest.mark.skipif(
        bool(missing),
        reason=f"jobs of a real SLURM: no {', '.join(missing)} here; "
        "on Debian: apt install slurmctld slurmd slurm-client munge",
    ),
]


@pytest.fixture
def slurm(tmp_path, monkeypatch):
    script = Path(__file__).with_name("slurm.sh")
    folder = tmp_path / "slurm"
    monkeypatch.setenv("SLURM_CONF", str(folder / "slurm.conf"))
    try:
        subprocess.run([script, "start", folder], check=True, timeout=300)
        yield
    finally:
        subprocess.run([script, "stop", folder], check=True, timeout=300)


def squeue(*options):
    return subprocess.run(
        ["squeue", "--noheader", *options], check=True, capture_output=True, text=True
    ).stdout.split()


def test_a_study_whose_jobs_are_cancelled_midway_completes(slurm, tmp_path):
    study, report = tmp_path / "tiny.toml", tmp_path / "results" / "report"
    study.write_text(
        f'output_dir = "{tmp_path / "results"}"\nsubjects = [1]\nexperiments = ["3", "5"]\nresolutions = '
        '["3||0", "5||1.5"]\n'
        '[cluster]\nkind = "slurm"\njobs = 2\ncores = 1\nmemory = "2GB"\nwalltime = "00:30:00"\nqueue = '
        '"test"\n'
        # The first job ends before its worker reaches the driver.
        f'prologue = ["mkdir {tmp_path / "first"} && exit 1"]\n'
    )
    with open(tmp_path / "log", "w") as output:
        driver = subprocess.Popen(
            [sys.executable, "-m", "helpers.runner.cli", "run", str(study)], stdout=output, stderr=output
        )
    try:
        until = time.monotonic() + 600
        while not any(each.get("task", "").startswith("03") for each in log.events(report)):
            assert driver.poll() is None and time.monotonic() < until, (tmp_path / "log").read_text()
            time.sleep(0.5)
        time.sleep(5)
        # All of them, while a notebook is executed: had one survived, it might end the study before another
        # takes the lost one's place.
        cancelled = []
        while not any("ipykernel" in _processes_of(job) for job in cancelled):
            assert driver.poll() is None and time.monotonic() < until, (tmp_path / "log").read_text()
            time.sleep(0.5)
            cancelled = squeue("--states=running", "--format=%i")
        subprocess.run(["scancel", *cancelled], check=True)
        assert driver.wait(timeout=1200) == 0, (tmp_path / "log").read_text()
    finally:
        driver.kill()
    # The notebooks that were cut short were executed again, by other jobs, within the same run.
    wanted = {task.name for task in graph.tasks(Study.from_toml(study))}
    done = [each["task"] for each in log.events(report) if each["event"] == "done"]
    assert sorted(done) == sorted(wanted)
    assert not any(each["event"] == "failed" for each in log.events(report))
    assert len(list((report / "jobs").glob("*.err"))) > len(cancelled)
    assert (tmp_path / "results" / "tables" / "scores.csv").is_file()
    assert (tmp_path / "first").is_dir()
    # No job is left behind.
    assert squeue("--states=running,pending", "--format=%i") == []


def _processes_of(job):
    """Command lines of the processes of a job of this host."""
    found = ""
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if f"SLURM_JOB_ID={job}\0" in (folder / "environ").read_text():
                found += (folder / "cmdline").read_text()
        except (OSError, UnicodeDecodeError):
            continue
    return found
