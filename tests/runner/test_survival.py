"""A study that is killed, or runs out of disk, ends as if nothing had happened. All of it is slow."""

import contextlib
import hashlib
import os
import resource
import subprocess
import sys
import time

import numpy as np
import psutil
import pytest

from helpers import volumes

pytestmark = pytest.mark.slow

KILLS, NOTEBOOKS = int(os.environ.get("KILLS", "20")), 7


def study(folder):
    """One subject, one experiment, one resolution, as a preview."""
    folder.mkdir()
    path = folder / "tiny.toml"
    path.write_text(
        f'output_dir = "{folder / "results"}"\nsubjects = [1]\nexperiments = ["3"]\nresolutions = '
        '["5||1.5"]\n'
    )
    return path


def start(path, log, **how):
    # A file, not a pipe: workers that outlive the driver would keep a pipe open.
    with open(log, "ab") as out:
        return subprocess.Popen(
            [sys.executable, "-m", "helpers.runner.cli", "run", "--workers", "2", str(path)],
            stdout=out,
            stderr=out,
            **how,
        )


def digests(folder):
    """Everything that a study computes; its report holds times."""
    paths = [
        path
        for path in folder.rglob("*")
        if path.is_file() and "report" not in path.relative_to(folder).parts
    ]
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


def complete(folder):
    """Volumes and tables for which a sidecar vouches -> when they were written."""
    found = {}
    for path in folder.rglob("*"):
        with contextlib.suppress(FileNotFoundError):
            sidecar = volumes.read_sidecar(path) if path.suffix in (".gz", ".csv", ".npz") else None
            if sidecar and path.stat().st_size == sidecar["ContentBytes"]:
                found[path] = path.stat().st_mtime_ns
    return found


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """What the study ends with if nobody disturbs it, and how long it takes, in s."""
    began = time.monotonic()
    folder = tmp_path_factory.mktemp("undisturbed") / "study"
    assert start(study(folder), folder / "log").wait(timeout=900) == 0, (folder / "log").read_text()
    return folder, digests(folder / "results"), time.monotonic() - began


def test_from_the_command_line_to_its_figures_and_once_more_for_nothing(undisturbed):
    folder, expected, _ = undisturbed
    said = (folder / "log").read_text()
    assert f"{NOTEBOOKS} notebooks executed" in said and "At 5||1.5 the harmonized images have" in said
    assert "dashboard: http://127.0.0.1:" in said
    assert (
        f"Figures: {folder / 'results' / 'figures'}\n" in said
        and (folder / "results" / "figures" / "figure_2.png").is_file()
    )
    assert (folder / "results" / "report" / "index.html").is_file()
    # Two ground truths, the experiment, and what figure 2 shows besides: 1a at 3||0, 1b at 5||1.5.
    assert len([path for path in expected if "harmonized" in path and path.endswith(".gz")]) == 3 * (
        2 + 1 + 2
    )
    times = {
        path: path.stat().st_mtime_ns
        for path in (folder / "results").rglob("*")
        if path.is_file() and "report" not in path.parts
    }
    assert start(folder / "tiny.toml", folder / "again").wait(timeout=900) == 0
    assert "Everything was done already" in (folder / "again").read_text()
    assert {path: path.stat().st_mtime_ns for path in times} == times


def victims(driver):
    """The processes of a run by their part in it."""
    found, family = {"driver": [], "worker": [], "kernel": []}, []
    with contextlib.suppress(psutil.NoSuchProcess):
        found["driver"] = [psutil.Process(driver.pid)]
        family = found["driver"][0].children(recursive=True)
    for process in family:
        with contextlib.suppress(psutil.Error):
            line = " ".join(process.cmdline())
            if "ipykernel_launcher" in line:
                found["kernel"].append(process)
            elif "spawn_main" in line:
                found["worker"].append(process)
    return found


def test_killed_at_many_moments_it_ends_with_the_same_bytes_and_does_nothing_twice(undisturbed, tmp_path):
    rng, (_, expected, takes_s) = np.random.default_rng(20), undisturbed
    folder, killed = tmp_path / "study", []
    path = study(folder)
    results, finished, driver = folder / "results", {}, None

    def look():
        now = complete(results)
        again = [each for each in finished if each in now and now[each] != finished[each]]
        assert not again, f"computed again: {again}"
        finished.update(now)

    def done():
        return len(list((results / "report" / "records").glob("*.json")))

    while len(killed) < KILLS:
        if driver is None or driver.poll() is not None:
            look()
            if driver is not None and driver.returncode == 0:
                assert digests(results) == expected
                # Done before it was killed often enough: once more from the start.
                subprocess.run(
                    [sys.executable, "-m", "helpers.runner.cli", "clean", "--yes", str(path)],
                    check=True,
                    capture_output=True,
                )
                finished.clear()
            driver = start(path, folder / "log")
            early = rng.random() < 0.2
        # Most die while notebooks run, some while the driver is still on its way there; and later ones later
        # in the study.
        while (
            not early
            and driver.poll() is None
            and not (victims(driver)["kernel"] and done() >= len(killed) * NOTEBOOKS // KILLS)
        ):
            time.sleep(0.1)
        with contextlib.suppress(subprocess.TimeoutExpired):
            driver.wait(timeout=rng.uniform(0, 0.06 * takes_s))
            continue
        look()
        people = victims(driver)
        if driver.poll() is not None:
            continue
        part = rng.choice([each for each in people if people[each]])
        everyone = sum(people.values(), [])
        victim = people[part][rng.integers(len(people[part]))]
        with contextlib.suppress(psutil.NoSuchProcess):
            victim.kill()
            killed.append((str(part), done()))
        if part == "driver":
            driver.wait()
            # Workers and kernels notice that they are orphans; they must not linger.
            _, alive = psutil.wait_procs(everyone, timeout=30)
            assert not alive, alive
    for _ in range(3):
        if driver.wait(timeout=900) == 0:
            break
        look()
        driver = start(path, folder / "log")
    assert driver.returncode == 0, (folder / "log").read_text()[-3000:]
    look()
    assert digests(results) == expected
    assert not list(results.rglob(".*.tmp"))
    assert {part for part, _ in killed} == {"driver", "worker", "kernel"}, killed
    # From the first notebooks to the last; which numbers lie between is for the machine to say.
    assert (
        len({after for _, after in killed}) >= NOTEBOOKS // 2
        and max(after for _, after in killed) >= NOTEBOOKS - 2
    ), killed


def test_a_write_that_fails_is_one_line_and_once_there_is_room_it_goes_on(undisturbed, tmp_path):
    folder = tmp_path / "study"
    path = study(folder)
    # No file above 8 MB can be written: a volume that notebook 03 registers with ANTs has 13 MB. As on a full
    # disk, the system call fails.
    driver = start(
        path,
        folder / "log",
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (8_000_000, resource.RLIM_INFINITY)),
    )
    assert driver.wait(timeout=900) == 1
    said = (folder / "log").read_text()
    failures = [line for line in said.splitlines() if line.startswith("failed: ")]
    assert len(failures) == 1
    assert "failed: 03_registration_sub-sim01: OSError: [Errno 27] File too large: " in failures[0]
    assert "not started: 04_harmonization_sub-sim01: " in said
    before = complete(folder / "results")
    assert not list((folder / "results").rglob(".*.tmp"))
    time.sleep(0.1)
    assert start(path, folder / "log").wait(timeout=900) == 0
    after = complete(folder / "results")
    assert {each: after[each] for each in before} == before
    assert digests(folder / "results") == undisturbed[1]
