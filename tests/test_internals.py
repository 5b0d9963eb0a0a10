"""Names inside of other libraries that we rely on: should one be gone, this says so before a study goes
wrong."""

import inspect

from helpers import internals, registration


def test_ants_takes_its_seed_from_where_we_put_it():
    ants = registration.import_ants()
    before = ants.config._random_seed
    with internals.seeded_ants(ants, 7):
        assert ants.config._random_seed == 8
    assert ants.config._random_seed == before
    # Registrations read it there.
    from ants.registration import registration as module

    assert "_random_seed" in inspect.getsource(inspect.getmodule(module))


def test_dask_keeps_the_jobs_that_it_created_where_we_forget_them():
    from dask_jobqueue import SLURMCluster
    from distributed.deploy.spec import SpecCluster

    assert issubclass(SLURMCluster, SpecCluster)
    source = inspect.getsource(SpecCluster)
    assert inspect.iscoroutinefunction(SpecCluster._correct_state) or "_correct_state" in source
    for line in ("self._created = weakref.WeakSet()", "for w in self._created"):
        assert line in source


def test_jupyter_interrupts_a_kernel_by_the_method_that_we_override():
    from jupyter_client.manager import AsyncKernelManager, KernelManager

    assert inspect.iscoroutinefunction(AsyncKernelManager._async_interrupt_kernel)
    assert "interrupt_kernel" in inspect.getsource(KernelManager._async_shutdown_kernel)
    assert (
        internals.quiet_kernel_manager()._async_interrupt_kernel
        is not AsyncKernelManager._async_interrupt_kernel
    )
    assert hasattr(internals.quiet_kernel_manager()(), "shutting_down")
