"""Engines, which run a scan's jobs in one process, in several processes, or on a Dask cluster."""

from __future__ import annotations

import logging
import os
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, CancelledError, Future, wait
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from functools import partial
from time import monotonic
from typing import Any, Final, Generic, TypeVar

from bnstat.errors import BnstatError, first_line

Item = TypeVar("Item")
Result = TypeVar("Result")

PATIENCE: Final = 60.0
"""Seconds that a cluster may be without workers; Dask replaces a dead worker in a few seconds."""

_GONE: Final = "the cluster is gone, or has no workers left"
_BATCH_SECONDS: Final = 0.1
_LARGEST_BATCH: Final = 256


class Engine(AbstractContextManager["Engine"]):
    """Runs jobs in this process, one after the other; subclasses run jobs elsewhere."""

    name: str = "this process"
    workers: int = 1
    in_process: bool = True
    check_seconds: float | None = None  # to wait for a job before `check` is called; None: forever
    dead_worker: type[Exception] | tuple[()] = ()  # raised by a job's future after a worker died

    def submit(self, work: Callable[[Any], Any], job: Any) -> Future[Any]:
        """Start `work(job)`, and return a future of the result."""
        future: Future[Any] = Future()
        future.set_result(work(job))
        return future

    def check(self) -> None:
        """Raise a `BnstatError` if the engine cannot finish any job."""

    def __exit__(self, *_: object) -> None:
        pass


class Processes(Engine):
    """Runs jobs in processes on this machine. If a process dies, all processes are replaced."""

    name = "--jobs"
    in_process = False
    dead_worker = BrokenExecutor

    def __init__(self, workers: int) -> None:
        from concurrent.futures import ProcessPoolExecutor
        from multiprocessing import active_children, get_context

        self.workers = workers
        self._others = set(active_children())
        # A forked worker could inherit locks that other threads hold.
        context = get_context("spawn")
        self._start = partial(ProcessPoolExecutor, workers, context, initializer=_prepare_worker)
        self._pool = self._start()

    def submit(self, work: Callable[[Any], Any], job: Any) -> Future[Any]:
        with _interrupts_blocked():
            try:
                return self._pool.submit(work, job)
            except BrokenExecutor:
                self._pool.shutdown()
                self._pool = self._start()
                return self._pool.submit(work, job)

    def __exit__(self, kind: object = None, *_: object) -> None:
        """End the processes. After an error, running jobs are aborted."""
        from multiprocessing import active_children

        if kind is not None:
            for process in set(active_children()) - self._others:
                process.terminate()
        self._pool.shutdown(cancel_futures=True)


@contextmanager
def _interrupts_blocked() -> Iterator[None]:
    """Delay Ctrl-C during the `with` block; processes started in the block never receive it."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _prepare_worker() -> None:
    from multiprocessing import parent_process

    def exit_with_parent() -> None:
        if (parent := parent_process()) is not None:
            parent.join()
            os._exit(1)

    ignore_interrupts()
    threading.Thread(target=exit_with_parent, daemon=True).start()


def ignore_interrupts() -> None:
    """Ignore Ctrl-C, which a terminal sends to all processes. The main process handles it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


class Dask(Engine):
    """Runs jobs on the workers of a Dask cluster, with `client`, a `distributed.Client`."""

    in_process = False
    check_seconds = 5.0

    def __init__(self, name: str, client: Any) -> None:
        from distributed import KilledWorker

        self.dead_worker = KilledWorker
        self.name = name
        self.workers = sum(client.nthreads().values())
        if not self.workers:
            raise BnstatError(name, "the cluster has no workers", "start one with dask worker")
        self._client = client
        # Dask would give two calls with equal arguments one result, a failure included.
        self._executor = client.get_executor(pure=False)
        self._checks_without_workers = 0

    def submit(self, work: Callable[[Any], Any], job: Any) -> Future[Any]:
        future: Future[Any] = self._executor.submit(work, job)
        return future

    def check(self) -> None:
        """Raise a `BnstatError` after a minute without workers; Dask itself would wait forever."""
        has_workers = False
        with suppress(Exception):  # The connection may be lost.
            has_workers = bool(self._client.nthreads())
        self._checks_without_workers = 0 if has_workers else self._checks_without_workers + 1
        if self._checks_without_workers * self.check_seconds > PATIENCE:
            raise BnstatError(self.name, _GONE)


def open_engine(url: str | None, jobs: int) -> AbstractContextManager[Engine]:
    """Return an engine: a Dask cluster at `url` or, if None, `jobs` processes (0: one per core)."""
    workers = jobs or os.cpu_count() or 1
    if url is not None:
        return _dask(url, workers)
    return Processes(workers) if workers > 1 else Engine()


@contextmanager
def _dask(url: str, workers: int) -> Iterator[Engine]:
    scheme, _, host = url.rstrip("/").partition("://")
    if scheme.lower() != "dask" or not host:
        raise BnstatError(url, "unknown engine", "use dask://HOST:PORT or dask://local")
    try:
        from distributed import Client, LocalCluster
    except ImportError as error:
        what = "the library of Dask is not installed"
        raise BnstatError(url, what, "pip install distributed") from error
    # Dask logs a lost connection as a traceback.
    for logger in ("distributed", "distributed.client", "tornado.application"):
        logging.getLogger(logger).setLevel(logging.CRITICAL)
    with ExitStack() as stack:
        try:
            if host == "local":
                cluster = LocalCluster(  # type: ignore[no-untyped-call]
                    n_workers=workers,
                    threads_per_worker=1,
                    dashboard_address=None,
                    silence_logs=logging.CRITICAL,
                    scheduler_kwargs={"allowed_failures": 0},
                )
                address = stack.enter_context(cluster).scheduler_address
            else:
                address = f"tcp://{host}"
            client = stack.enter_context(Client(address, timeout=5))  # type: ignore[no-untyped-call]
            if host == "local":
                client.register_worker_callbacks(ignore_interrupts)
            engine = Dask(url, client)
        except (OSError, ValueError) as error:
            raise BnstatError(url, f"the cluster cannot be reached: {error}") from error
        yield engine


class Batches(Generic[Item, Result]):
    """Runs items on an engine in batches, and yields results as they arrive.

    A batch has as many items as a worker handles in 0.1 s. Two batches per worker are queued at a
    time. If a worker dies, the queued batches are rerun one at a time, so that only the item that
    kills the worker has the result None. Finished batches are lists of (item, result) pairs.
    """

    def __init__(self, engine: Engine, work: Callable[[list[Item]], list[Result]]) -> None:
        self._engine = engine
        self._work = partial(_timed, work)
        self._size = 1
        self._next: list[Item] = []
        self._running: dict[Future[Any], list[Item]] = {}

    def add(self, item: Item, at_least: int = 1) -> Iterator[list[tuple[Item, Result | None]]]:
        """Queue an item; start a batch of `at_least` items or more. Yield finished batches."""
        self._next.append(item)
        if len(self._next) >= max(self._size, at_least):
            yield from self.flush(0 if self._engine.in_process else 2 * self._engine.workers)

    def flush(self, limit: int = 0) -> Iterator[list[tuple[Item, Result | None]]]:
        """Start a batch of the queued items. Yield batches until at most `limit` are running."""
        if self._next:
            self._running[self._engine.submit(self._work, self._next)] = self._next
            self._next = []
        lost: list[list[Item]] = []
        while len(self._running) > (0 if lost else limit):
            finished, _ = wait(self._running, self._engine.check_seconds, FIRST_COMPLETED)
            if not finished:
                self._engine.check()
            for future in [future for future in self._running if future in finished]:
                batch = self._running.pop(future)
                if (value := self._value(future)) is None:
                    lost.append(batch)
                    continue
                results, seconds = value
                size = int(_BATCH_SECONDS * len(batch) / max(seconds, 1e-6))
                self._size = min(max(1, size), _LARGEST_BATCH)
                yield list(zip(batch, results, strict=True))
        if lost and self._value(self._engine.submit(abs, -1)) is None:
            raise BnstatError(self._engine.name, "the workers die before they open a model")
        for batch in lost:
            yield from self._run_alone(batch)

    def _run_alone(self, batch: list[Item]) -> Iterator[list[tuple[Item, Result | None]]]:
        """Rerun a batch whose worker died. If another worker dies, rerun each item alone."""
        value = self._value(self._engine.submit(self._work, batch))
        if value is not None:
            yield list(zip(batch, value[0], strict=True))
        elif len(batch) == 1:
            yield [(batch[0], None)]
        else:
            for item in batch:
                yield from self._run_alone([item])

    def _value(self, future: Future[Any]) -> Any:
        """Wait for a future, and return its value, or None if its worker died."""
        try:
            while not wait([future], self._engine.check_seconds).done:
                self._engine.check()
            return future.result()
        except CancelledError as error:
            raise BnstatError(self._engine.name, _GONE) from error
        except self._engine.dead_worker:
            return None
        except BnstatError:
            raise
        except Exception as error:
            what = f"the engine failed: {first_line(error)}"
            raise BnstatError(self._engine.name, what) from error


def _timed(work: Callable[[Item], Result], job: Item) -> tuple[Result, float]:
    start = monotonic()
    result = work(job)
    return result, monotonic() - start
