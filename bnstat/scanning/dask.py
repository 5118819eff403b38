"""A Dask cluster as joblib uses it, and what joblib does not tell of the workers that die there."""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from time import monotonic
from typing import Any, Final

from distributed import CancelledError, Client, KilledWorker, LocalCluster, WorkerPlugin
from joblib import register_parallel_backend
from joblib._dask import DaskDistributedBackend

from bnstat.scanning.engines import ignore_interrupts

BACKEND: Final = "bnstat-dask"
"""The backend's name for joblib."""

PATIENCE: Final = 60.0
"""So many seconds a cluster may be without workers; dead ones are replaced within a few."""


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

        def pass_on(result: Any) -> None:
            # A job that the client gave up has the error in place of its result.
            if isinstance(result, CancelledError):
                result = ConnectionError("the cluster is gone, or has no workers left")
            if callback is not None:
                callback(result)

        job: Future[Any] = super().submit(func, pass_on)

        def tell(ended: Future[Any]) -> None:
            error = ended.exception()
            if error is not None:
                lost = isinstance(error, KilledWorker)
                pass_on([(number, None) for number in numbers] if lost else error)

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
    # Of a lost connection it tells in tracebacks.
    for name in ("distributed", "distributed.client", "tornado.application"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
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
        ended = threading.Event()
        stack.callback(ended.set)
        threading.Thread(target=_watch, args=(client, ended), daemon=True).start()
        yield client


def _watch(client: Client, ended: threading.Event) -> None:
    """Close a client whose cluster stays without workers: it would wait for them for ever."""
    last = monotonic()
    while not ended.wait(1):
        try:
            present = client.nthreads()  # type: ignore[no-untyped-call]
        except Exception:
            return  # Who waits for a result is told that the connection is lost.
        if present:
            last = monotonic()
        elif monotonic() - last > PATIENCE:
            client.close()  # type: ignore[no-untyped-call]
            return
