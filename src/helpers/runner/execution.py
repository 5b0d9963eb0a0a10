"""One notebook executed by papermill, in a kernel of its own."""

import functools
import logging
import os
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from helpers import internals
from helpers.pipeline import cache
from helpers.runner import graph
from helpers.volumes.files import TRACE, look, write_bytes

#: Characters of a path that systems accept for a socket: 103 on macOS, less the number of the socket.
_LONGEST_SOCKET = 100


@dataclass(frozen=True)
class Execution:
    """The result of one execution: last line of its error or None, its duration, how many images it wrote."""

    error: str | None
    seconds: float = 0
    images: int = 0


def execute(task: graph.Task, folder: Path, threads: int = 1) -> Execution:
    """Execute one notebook, keep it and its HTML page in `folder`, and record it as done unless it failed."""
    # ITK always gets one thread: its sums depend on the number of threads (helpers.registration).
    names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "VECLIB_MAXIMUM_THREADS")
    os.environ.update(dict.fromkeys(names, str(threads)), ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS="1")
    # glibc hands freed arrays back to the system, and every new one comes as page faults: a fifth of the time
    # of a simulated subject.
    os.environ.update({"MALLOC_MMAP_THRESHOLD_": str(2**30), "MALLOC_TRIM_THRESHOLD_": str(2**30)})
    started = time.monotonic()
    executed = folder / f"{task.name}.ipynb"
    page = executed.with_suffix(".html")
    with tempfile.TemporaryDirectory(prefix="resolution-matters-") as scratch:
        trace = Path(scratch) / "files"
        trace.touch()
        try:
            executed.parent.mkdir(parents=True, exist_ok=True)
            cache.forget_notebook(folder, task.name)
            for old in (executed, page):
                old.unlink(missing_ok=True)
            key = task.key
            error = _papermill(task, executed, trace)
            files, written = cache.read_trace(trace)
            if executed.exists():
                _render(executed, page)
            # If the notebook, or an image that is not the study's, has changed meanwhile, it is unknown which
            # version the kernel read: then the task does not count as done.
            given = {
                path: facts
                for path, facts in files.items()
                if path not in written and not cache.is_ours(folder, path)
            }
            same = task.key == key and all(look(path) == given[path] for path in given)
            if error is None and same:
                cache.record_notebook(folder, task.name, key, {*files, str(executed), str(page)})
        except Exception as failure:  # A kernel that died, a full disk: the study goes on and reports it.
            error, written = last_line(f"{type(failure).__name__}: {failure}"), ()
    return Execution(
        error, round(time.monotonic() - started, 3), sum(path.endswith(".nii.gz") for path in written)
    )


def _sockets(folder: Path) -> dict[str, str]:
    """How worker and kernel are connected: through files in a folder of this task.

    A port that is free when it is chosen may be another worker's by the time the kernel opens it: then the
    notebook would fail.
    """
    name = str(folder / "kernel")
    return {"transport": "ipc", "ip": name} if len(name) < _LONGEST_SOCKET else {}


def _papermill(task: graph.Task, executed: Path, trace: Path) -> str | None:
    import papermill
    from papermill.exceptions import PapermillExecutionError
    from traitlets.config import Config

    logging.getLogger("papermill").setLevel(logging.ERROR)
    os.environ[TRACE] = str(trace)
    # In another place than the result: papermill writes the file after every cell, and not atomically.
    draft = trace.with_name(executed.name)
    try:
        papermill.execute_notebook(
            str(task.notebook),
            str(draft),
            task.parameters,
            progress_bar=False,
            kernel_name="python3",
            cwd=str(executed.parent),
            # A kernel prints its ports at every start, which would break the progress bar.
            extra_arguments=["--IPKernelApp.log_level=ERROR"],
            config=Config(KernelManager=_sockets(trace.parent)),
            kernel_manager_class=internals.quiet_kernel_manager(),
        )
    except PapermillExecutionError as failure:
        return last_line(f"{failure.ename}: {failure.evalue}")
    finally:
        del os.environ[TRACE]
        if draft.exists():
            write_bytes(executed, draft.read_bytes())
    return None


@functools.cache
def _exporter():
    from nbconvert import HTMLExporter

    return HTMLExporter(template_name="lab")  # kept, with the templates that it compiles


def _render(executed: Path, page: Path) -> None:
    import nbformat

    text, _ = _exporter().from_notebook_node(nbformat.read(executed, as_version=4))
    write_bytes(page, text.encode())


def last_line(text: str) -> str:
    return (text.strip().splitlines() or [""])[-1]
