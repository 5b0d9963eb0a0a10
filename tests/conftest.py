"""What all test files share: threads, workers, one folder of results, and what is said of that which was not
tested."""

import collections
import fcntl
import gc
import os
import shutil

import psutil
import pytest

#: Files that take longest, and first: what is long must not come last, when the other workers have nothing
#: left to do.
LONGEST = (
    "test_notebooks",
    "test_harmonizer",
    "test_preparation",
    "test_steps",
    "test_run",
    "test_phantom",
    "test_meeting",
    "test_advisor",
    "test_training",
    "test_claims",
    "test_own_data",
)
WORKER_GB = 4.0  # of memory at most (3.5 measured), beside the notebooks that a test executes


def pytest_configure(config):
    """One thread in each of several workers, and in each kernel that it starts.

    Threads that wait for a core which another test holds are slower than none. Workers and kernels inherit
    it.
    """
    if getattr(config.option, "numprocesses", None):
        for library in ("OMP", "OPENBLAS", "MKL"):
            os.environ.setdefault(f"{library}_NUM_THREADS", "1")
        # glibc hands freed arrays back to the system, and every new one comes as page faults
        # (`helpers.runner.execution`).
        for threshold in ("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_"):
            os.environ.setdefault(threshold, str(2**30))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers():
    """As many workers as this process may use cores, where memory allows it."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(cores, int(psutil.virtual_memory().available / 2**30 / WORKER_GB)))


def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: LONGEST.index(item.path.stem) if item.path.stem in LONGEST else len(LONGEST))


def pytest_collection_finish():
    """What was imported and collected by now stays: collecting garbage, which some libraries ask for in every
    call, need not look through it again."""
    gc.collect()
    gc.freeze()


def pytest_terminal_summary(terminalreporter):
    """Tell what was not tested here, and what to do that it is: the reasons of the skips say both."""
    reasons = collections.Counter(
        report.longrepr[2].removeprefix("Skipped: ") for report in terminalreporter.stats.get("skipped", [])
    )
    if reasons:
        terminalreporter.section("not tested on this machine")
        for reason, number in sorted(reasons.items()):
            terminalreporter.write_line(f"{number} {'test' if number == 1 else 'tests'}: {reason}")


@pytest.fixture(scope="session")
def simulated(tmp_path_factory):
    """Function: seed -> images of this subject, of `participants.cohort`; all workers make them once.

    A subject takes ten seconds of a core. Nothing else is ever written there.
    """
    from helpers.pipeline import participants
    from helpers.study.file import Study
    from helpers.study.subjects import SimulatedSubject

    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent
    folder = folder / "simulated"
    folder.mkdir(exist_ok=True)

    def simulate(seed):
        with open(folder / "lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # who comes second waits
            return participants.cohort(Study(output_dir=str(folder)), SimulatedSubject(seed))

    return simulate


@pytest.fixture(scope="session")
def results_dir(simulated, tmp_path_factory):
    """Output folder that the tests of stages and notebooks fill together, each finding what others made: in
    the beginning the first subject and the target."""
    from helpers.cohort.phantom import TARGET_SEED

    folder = tmp_path_factory.mktemp("results")
    for seed in (1, TARGET_SEED):
        images = simulated(seed)["T1w"].parents[1]
        # The same files: they are replaced, never changed in place.
        shutil.copytree(images, folder / images.name, copy_function=os.link)
    return folder
