"""What counts as done, and who may run a study: nothing stale may pass, and nothing that is done may be done
again."""

import contextlib
import errno
import json
import multiprocessing
import os
import shutil
import socket
import subprocess
import sys
import time

import nbformat
import psutil
import pytest

from helpers.pipeline import cache
from helpers.runner import execution, graph, lock, log, run, status
from helpers.runner.cluster import Cluster
from helpers.runner.graph import Task
from helpers.volumes.files import TRACE


def doubling(folder):
    """A notebook that reads one file and makes another with a sidecar from it, in that folder."""
    node = nbformat.v4.new_notebook(
        cells=[
            nbformat.v4.new_code_cell('source: str = ""\ntarget: str = ""\nfactor: int = 2'),
            nbformat.v4.new_code_cell(
                "from pathlib import Path\nfrom helpers import volumes\n\n"
                "volumes.files.record_use(source)\n"
                "volumes.write_with_sidecar(target, Path(source).read_bytes() * factor, {'Key': 'k'})"
            ),
        ]
    )
    node.cells[0].metadata["tags"] = ["parameters"]
    node.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
    nbformat.write(node, folder / "double.ipynb")
    (folder / "in.txt").write_bytes(b"abc")
    return Task(
        "double",
        folder / "double.ipynb",
        {"source": str(folder / "in.txt"), "target": str(folder / "out.csv")},
    )


@pytest.fixture
def task(tmp_path):
    return doubling(tmp_path)


@pytest.fixture(scope="module")
def executed_once(tmp_path_factory):
    """The task, executed in a folder, and a copy of the folder: a kernel takes seconds to start."""
    work, kept = (tmp_path_factory.mktemp("executed") / name for name in ("work", "kept"))
    work.mkdir()
    task = doubling(work)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(graph.STAGES_OF_NOTEBOOK, "do", ("registration",))
        assert execution.execute(task, work / "report").error is None
    shutil.copytree(work, kept)
    return task, work, kept


@pytest.fixture
def executed(executed_once, monkeypatch):
    """The task, just executed; its report folder; and a function that says whether it counts as done."""
    task, work, kept = executed_once
    shutil.rmtree(work)
    shutil.copytree(kept, work)
    monkeypatch.setitem(graph.STAGES_OF_NOTEBOOK, "do", ("registration",))
    report = work / "report"
    return task, report, lambda each=task, **how: status.is_done(each, report, **how)


pytestmark = pytest.mark.filterwarnings("ignore")


def test_what_was_executed_is_done_and_what_it_read_and_wrote_is_known(executed):
    task, report, done = executed
    assert done()
    files = json.loads((report / "records" / "double.json").read_text())["files"]
    names = {os.path.basename(path) for path in files}
    assert {"in.txt", "out.csv", "out.json", "double.ipynb", "double.html"} <= names
    assert os.environ.get(TRACE) is None


@pytest.mark.parametrize(
    "change",
    [
        "notebook",
        "parameter",
        "stage",
        "library",
        "input",
        "output",
        "output gone",
        "sidecar gone",
        "page gone",
        "record cut",
    ],
)
def test_nothing_stale_is_taken_for_done(executed, monkeypatch, change):
    task, report, done = executed
    if change == "notebook":
        task.notebook.write_text(task.notebook.read_text().replace("Key", "Kez"))
    elif change == "parameter":
        task = Task(task.name, task.notebook, {**task.parameters, "factor": 3})
    elif change == "stage":
        monkeypatch.setitem(
            cache.STAGES, "registration", cache.Stage(cache.STAGES["registration"].version + 1, ("antspyx",))
        )
    elif change == "library":
        versions = {"antspyx": "0.0"}
        monkeypatch.setattr(
            cache,
            "library_version",
            lambda name, before=cache.library_version: versions.get(name) or before(name),
        )
    elif change == "input":
        (report.parent / "in.txt").write_bytes(b"abd")
    elif change == "output":  # as long as before
        (report.parent / "out.csv").write_bytes(b"abcabd")
    elif change == "record cut":
        path = report / "records" / "double.json"
        path.write_text(path.read_text()[:90])
    else:
        path = {"output gone": "out.csv", "sidecar gone": "out.json", "page gone": "report/double.html"}[
            change
        ]
        (report.parent / path).unlink()
    assert not done(task)


def test_another_stage_or_a_library_of_another_stage_runs_nothing_again(executed, monkeypatch):
    _, _, done = executed
    monkeypatch.setitem(cache.STAGES, "scores", cache.Stage(cache.STAGES["scores"].version + 1, ()))
    monkeypatch.setattr(
        cache,
        "library_version",
        lambda name, before=cache.library_version: "0" if name == "torch" else before(name),
    )
    assert done()


def test_a_comment_a_docstring_or_a_text_of_the_notebook_runs_nothing_again(executed):
    task, _, done = executed
    node = nbformat.read(task.notebook, 4)
    node.cells[1].source = "# Twice the file.\n" + node.cells[1].source.replace(
        "import volumes\n", "import volumes  # reads and writes\n"
    )
    node.cells.insert(1, nbformat.v4.new_markdown_cell("What it does."))
    nbformat.write(node, task.notebook)
    assert done()


def test_the_same_content_written_again_is_still_done(executed):
    _, report, done = executed
    for name in ("in.txt", "out.csv"):
        os.utime(report.parent / name, (1, 1))
    assert done()
    assert done(repair=True)
    # From now on the times agree, and nothing is read again.
    assert (
        json.loads((report / "records" / "double.json").read_text())["files"][str(report.parent / "in.txt")][
            1
        ]
        == 10**9
    )


def test_a_changed_output_loses_the_sidecar_that_vouches_for_it_so_that_it_is_made_again(executed):
    task, report, done = executed
    (report.parent / "out.csv").write_bytes(b"abcabd")
    assert not done()
    assert (report.parent / "out.json").exists()
    assert not done(repair=True)
    assert not (report.parent / "out.json").exists()


def test_a_notebook_that_fails_leaves_no_record_and_says_its_last_line(executed):
    task, report, done = executed
    broken = Task(task.name, task.notebook, {**task.parameters, "source": str(report.parent / "no.txt")})
    result = execution.execute(broken, report)
    assert result.error.startswith("FileNotFoundError: ")
    assert "no.txt" in result.error
    assert not done(broken)
    assert not done(task)


def test_a_kernel_that_dies_is_an_error_of_its_notebook(tmp_path):
    node = nbformat.v4.new_notebook(
        cells=[nbformat.v4.new_code_cell("import os, signal\nos.kill(os.getpid(), signal.SIGKILL)")]
    )
    node.cells[0].metadata["tags"] = ["parameters"]
    node.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
    nbformat.write(node, tmp_path / "dies.ipynb")
    result = execution.execute(Task("dies", tmp_path / "dies.ipynb", {}), tmp_path / "report")
    assert "Kernel died" in result.error


def test_only_the_last_line_of_a_log_that_was_cut_is_lost(tmp_path):
    log.log(tmp_path, event="started", task="a")
    with open(tmp_path / "log.jsonl", "a") as file:
        file.write('{"time": 3, "ev')
    log.log(tmp_path, event="done", task="a")
    assert [each["event"] for each in log.events(tmp_path)] == ["started", "done"]


def test_of_two_runs_the_second_is_refused_and_told_of_the_first(tmp_path):
    code = "from pathlib import Path\nimport time\nfrom helpers.runner import lock\n"
    code += f"with lock.locked(Path({str(tmp_path)!r})):\n    print('held', flush=True)\n    time.sleep(60)"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as first:
        assert first.stdout.readline() == "held\n"
        with pytest.raises(RuntimeError) as error, lock.locked(tmp_path):
            pass
        assert f"being run by process {first.pid} on {socket.gethostname()}" in str(error.value)
        assert "\n" not in str(error.value)
        first.kill()
        first.wait()
    # Killed, it could not tidy up: its lock is stale, and is taken over.
    assert (tmp_path / "lock.json").exists()
    with lock.locked(tmp_path):
        assert lock.holder(tmp_path)["pid"] == os.getpid()
    assert lock.holder(tmp_path) is None


def test_a_process_that_is_dead_and_not_yet_buried_holds_nothing(tmp_path):
    code = (
        "import os, signal\nfrom pathlib import Path\nfrom helpers.runner import lock\nwith "
        f"lock.locked(Path({str(tmp_path)!r})):\n"
    )
    code += "    print('held', flush=True)\n    os.kill(os.getpid(), signal.SIGKILL)"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as dead:
        assert dead.stdout.readline() == "held\n"
        if hasattr(os, "waitid"):  # on macOS from Python 3.13 on
            os.waitid(os.P_PID, dead.pid, os.WEXITED | os.WNOWAIT)  # until all of its threads are dead
        until = time.monotonic() + 60
        while psutil.Process(dead.pid).status() != psutil.STATUS_ZOMBIE:
            assert time.monotonic() < until
            time.sleep(0.01)
        assert lock.holder(tmp_path) is None
        with lock.locked(tmp_path):
            pass


def test_a_clock_that_was_set_opens_no_lock(tmp_path):
    with lock.locked(tmp_path):
        holder = json.loads((tmp_path / "lock.json").read_text())
        (tmp_path / "lock.json").write_text(json.dumps({**holder, "started": holder["started"] - 3600}))
        with (
            pytest.raises(
                RuntimeError, match=f"being run by process {os.getpid()} on {socket.gethostname()}"
            ),
            lock.locked(tmp_path),
        ):
            pass


def test_without_locks_of_the_file_system_the_process_is_asked_for(tmp_path, monkeypatch):
    def unknown(*_):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(lock.fcntl, "flock", unknown)
    (tmp_path / "lock.json").write_text(
        json.dumps({"host": socket.gethostname(), "pid": os.getpid(), "started": 1.0})
    )
    with lock.locked(tmp_path):
        assert lock.holder(tmp_path)["pid"] == os.getpid()
        with (
            pytest.raises(RuntimeError, match=f"being run by process {os.getpid()} on"),
            lock.locked(tmp_path),
        ):
            pass
    assert not (tmp_path / "lock.json").exists()


def test_who_waits_at_a_lock_that_is_removed_holds_nothing(tmp_path, monkeypatch):
    # As when `clean.clean` ends between our opening the file and our locking it.
    flock, removed = lock.fcntl.flock, []

    def late(file, how):
        if not removed:
            removed.append((tmp_path / ".lock").unlink())
        flock(file, how)

    monkeypatch.setattr(lock.fcntl, "flock", late)
    with lock.locked(tmp_path), pytest.raises(RuntimeError), lock.locked(tmp_path):
        pass


def test_a_process_number_that_went_to_another_process_holds_nothing_and_another_host_does(tmp_path):
    me = {"host": socket.gethostname(), "pid": os.getpid(), "started": psutil.Process().create_time()}
    for who, holds in (
        (me, True),
        ({**me, "started": me["started"] - 60}, False),
        ({**me, "host": "elsewhere", "started": 0}, True),
    ):
        (tmp_path / "lock.json").write_text(json.dumps(who))
        assert (lock.holder(tmp_path) is not None) == holds
    with pytest.raises(RuntimeError, match=f"process {os.getpid()} on elsewhere"), lock.locked(tmp_path):
        pass


def _hold(folder, together, queue):
    together.wait()
    with contextlib.ExitStack() as held:
        try:
            held.enter_context(lock.locked(folder))
            queue.put(True)
        except RuntimeError:
            queue.put(False)
        # Until the others have tried, however slow the machine: else it would be free again for the last.
        together.wait()


def test_of_many_that_find_the_same_stale_lock_one_takes_it(tmp_path):
    (tmp_path / "lock.json").write_text(
        json.dumps({"host": socket.gethostname(), "pid": os.getpid(), "started": 1.0})
    )
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([_hold.__module__])  # imported once, not by each
    together, queue = context.Barrier(4), context.Queue()
    processes = [
        context.Process(target=_hold, args=(tmp_path, together, queue), daemon=True) for _ in range(4)
    ]
    for process in processes:
        process.start()
    assert sorted(queue.get(timeout=300) for _ in processes) == [False, False, False, True]
    for process in processes:
        process.join()


def test_an_input_that_is_replaced_while_it_is_used_vouches_for_nothing(task, tmp_path):
    # What lies in the folder of the study others of its notebooks may write; what lies elsewhere is
    # somebody's own.
    for report, counts in ((tmp_path / "study" / "report", False), (tmp_path / "report", True)):
        node = nbformat.read(task.notebook, as_version=4)
        node.cells[1].source += "\nPath(source).write_bytes(b'other')"
        nbformat.write(node, tmp_path / "replaces.ipynb")
        replaces = Task("replaces", tmp_path / "replaces.ipynb", task.parameters)
        (tmp_path / "in.txt").write_bytes(b"abc")
        assert execution.execute(replaces, report).error is None
        assert status.is_done(replaces, report) == counts


def test_what_is_made_again_with_the_same_bytes_does_not_run_what_comes_after(executed, tmp_path):
    # The second task reads what the first makes. Its output is deleted: the first runs again, the second is
    # found done.
    task, report, done = executed
    second = Task(
        "again",
        task.notebook,
        {"source": task.parameters["target"], "target": str(tmp_path / "more.csv")},
        ("double",),
    )
    execution.execute(second, report)
    (report.parent / "out.csv").unlink()
    assert not done(second)
    results = run.execute_all([task, second], report, Cluster(workers=1))
    assert results["double"].error is None
    assert results["again"] is None
