"""What all test files share: threads, workers, one folder of results, and what is said of that which was not
tested."""

import collections
import os

import psutil
import pytest

#: Files that take longest, and first: what is long must not come last, when the other workers have nothing
#: left to do.
LONGEST = (
    "test_notebooks",
    "test_own_data",
    "test_harmonizer",
    "test_preparation",
    "test_steps",
    "test_training",
    "test_widgets",
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


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers():
    """As many workers as this process may use cores, where memory allows it."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(cores, int(psutil.virtual_memory().available / 2**30 / WORKER_GB)))


def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: LONGEST.index(item.path.stem) if item.path.stem in LONGEST else len(LONGEST))


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
def results_dir(tmp_path_factory):
    """Output folder that the tests of stages and notebooks fill together, each finding what others made."""
    return tmp_path_factory.mktemp("results")
