"""What we have to know of the insides of other libraries: names that they keep for themselves and may change.

Each has its test (tests/test_internals.py), which fails when a library no longer has it.
"""

import contextlib
import functools
from collections.abc import Iterator


@contextlib.contextmanager
def seeded_ants(ants, seed: int) -> Iterator[None]:
    """Registrations of `ants` within the context draw their samples with this seed.

    The argument ``random_seed`` of ``ants.registration`` is ignored (antspyx 0.6.3); to ANTs, seed 0 means
    "by the clock".
    """
    previous = ants.config._random_seed
    ants.config._random_seed = 1 + int(seed) % (2**31 - 2)
    try:
        yield
    finally:
        ants.config._random_seed = previous


def submit_jobs(jobs) -> None:
    """Submit the jobs that a cluster of dask-jobqueue wants and does not have; RuntimeError if the batch
    system refuses one.

    ``scale`` does that in the background, and would only log a refusal.
    """
    try:
        jobs.sync(jobs._correct_state)
    except RuntimeError:
        jobs._created.clear()  # At the end distributed would stumble over jobs that never came to be.
        raise


def forget_job(jobs, name: str, job) -> None:
    """Take a job that has ended for one that never was: a cluster of dask-jobqueue would wait for its worker
    for ever."""
    jobs.workers.pop(name, None)
    jobs._created.discard(job)  # At the end distributed would stumble over it.


@functools.cache
def quiet_kernel_manager() -> type:
    """Asks a kernel to end, and no more: the interrupt that Jupyter sends before, a kernel may report as an
    error."""
    from jupyter_client.manager import AsyncKernelManager

    class KernelManager(AsyncKernelManager):
        async def _async_interrupt_kernel(self):
            if not self.shutting_down:
                await super()._async_interrupt_kernel()

    return KernelManager
