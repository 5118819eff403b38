"""A Dask cluster as joblib uses it, and what joblib does not tell of the workers that die there."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from typing import Any, Final

from distributed import Client, KilledWorker, LocalCluster, WorkerPlugin
from joblib import register_parallel_backend
from joblib._dask import DaskDistributedBackend

from bnstat.scanning.engines import ignore_interrupts

BACKEND: Final = "bnstat-dask"
"""The backend's name for joblib."""


class _Telling(DaskDistributedBackend):  # type: ignore[misc]
    """joblib's backend for Dask, which passes on what becomes of each job.

    joblib 1.6 calls back for jobs that gave a result alone, so that a scan would wait for ever for
    a job of which every worker dies. Here such a job gives None; what else went wrong with a job is
    raised, as elsewhere. Source: `DaskDistributedBackend._collect` in joblib/_dask.py.
    """

    def effective_n_jobs(self, n_jobs: int = 1) -> int:
        # One at a time, as while a dead worker is replaced, joblib would run jobs right here.
        return max(2, int(super().effective_n_jobs(n_jobs)))

    def submit(self, func: Any, callback: Callable[[Any], None] | None = None) -> Future[Any]:
        numbers = [arguments[1] for _, arguments, _ in func.items]
        job: Future[Any] = super().submit(func, callback)

        def tell(ended: Future[Any]) -> None:
            error = ended.exception()
            if error is not None and callback is not None:
                lost = isinstance(error, KilledWorker)
                callback([(number, None) for number in numbers] if lost else error)

        job.add_done_callback(tell)
        return job


register_parallel_backend(BACKEND, _Telling)


class _Deaf(WorkerPlugin):
    """Makes workers ignore Ctrl-C, those too that take the place of dead ones."""

    def setup(self, worker: Any) -> None:
        ignore_interrupts()


@contextlib.contextmanager
def connected(address: str | None, workers: int) -> Iterator[Client]:
    """A client of a cluster.

    Args:
        address: the scheduler's; None for a cluster of processes on this machine, for as long as
            the client is there.
        workers: how many processes those are.

    Raises:
        OSError, ValueError: there is no scheduler there.
    """
    with contextlib.ExitStack() as stack:
        if address is None:
            cluster = LocalCluster(  # type: ignore[no-untyped-call]
                n_workers=workers,
                threads_per_worker=1,
                dashboard_address=None,
                silence_logs=logging.CRITICAL,
                scheduler_kwargs={"allowed_failures": 0},
            )
            stack.enter_context(cluster)
        client = stack.enter_context(Client(address or cluster, timeout=5))  # type: ignore[no-untyped-call]
        if address is None:
            client.register_plugin(_Deaf())
        yield client
