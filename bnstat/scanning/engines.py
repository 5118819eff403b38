"""Where jobs run: in this process, in several on this machine, or on the machines of a cluster.

joblib is the one interface to loky, Dask and Ray; there is no scheduler here. An engine gives the
results as they come. It may lose a worker, and with it all that it was given and has not given
back: it says so by `LostError`, and can be used again.
"""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Protocol, TypeVar
from urllib.parse import urlsplit

from bnstat.errors import BnstatError

Job = TypeVar("Job")
Result = TypeVar("Result")

LOCAL: Final = "local"
"""The host of an engine that is started here, for this scan."""


class LostError(Exception):
    """A worker died, and what it was doing is lost."""


class Engine(Protocol):
    """What runs jobs."""

    @property
    def workers(self) -> int:
        """How many jobs run at a time."""
        ...

    def run(
        self, work: Callable[[Job], Result], jobs: Sequence[Job]
    ) -> Iterator[tuple[int, Result]]:
        """The results as they come, each with the position of its job.

        Raises:
            LostError: a worker died; the jobs that have no result yet will have none.
            BnstatError: the engine cannot be used any more.
        """
        ...


class Here:
    """This process, one job after the other."""

    workers = 1

    def run(
        self, work: Callable[[Job], Result], jobs: Sequence[Job]
    ) -> Iterator[tuple[int, Result]]:
        return ((number, work(job)) for number, job in enumerate(jobs))


@dataclass(frozen=True, slots=True)
class Joblib:
    """One of joblib's backends."""

    where: str
    backend: str
    workers: int
    settings: Mapping[str, Any] = field(default_factory=dict)

    def run(
        self, work: Callable[[Job], Result], jobs: Sequence[Job]
    ) -> Iterator[tuple[int, Result]]:
        try:
            yield from self._run(work, jobs)
        except Exception as error:
            self._probe()
            raise LostError from error

    def _run(
        self, work: Callable[[Job], Result], jobs: Sequence[Job]
    ) -> Iterator[tuple[int, Result]]:
        from joblib import Parallel, delayed, parallel_config

        with parallel_config(self.backend, n_jobs=self.workers, **self.settings):
            parallel = Parallel(
                return_as="generator_unordered",
                batch_size=1,
                pre_dispatch="2*n_jobs",
                max_nbytes=None,
            )
            yield from parallel(
                delayed(_numbered)(work, number, job) for number, job in enumerate(jobs)
            )

    def _probe(self) -> None:
        """Raise an error where the engine does nothing any more."""
        try:
            answers = list(self._run(abs, [-1]))
        except Exception as error:
            raise BnstatError(self.where, f"the engine is lost: {error}") from error
        assert answers == [(0, 1)]


def _numbered(work: Callable[[Job], Result], number: int, job: Job) -> tuple[int, Result]:
    return number, work(job)


@contextlib.contextmanager
def engine(where: str | None, jobs: int) -> Iterator[Engine]:
    """The engine that the user asks for.

    Args:
        where: `dask://HOST:PORT`, `ray://HOST:PORT`, `dask://local` or `ray://local`; None for
            processes of this machine.
        jobs: how many jobs run at a time on this machine; 0 for as many as it has cores.

    Raises:
        BnstatError: there is no such engine, it cannot be reached, or its library is missing.
    """
    count = jobs or os.cpu_count() or 1
    if where is None:
        yield Here() if count == 1 else _loky(count)
        return
    parts = urlsplit(where)
    opened = {"dask": _dask, "ray": _ray}.get(parts.scheme)
    if opened is None or not parts.netloc:
        raise BnstatError(
            where,
            "there is no such engine",
            "use dask://HOST:PORT, dask://local or ray://HOST:PORT",
        )
    with opened(where, parts.netloc, count) as found:
        yield found


def _loky(workers: int) -> Joblib:
    return Joblib("--jobs", "loky", workers, {"initializer": _ignore_interrupts})


def _ignore_interrupts() -> None:
    """Ctrl-C goes to all processes of a terminal; the first decides what becomes of the others."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


@contextlib.contextmanager
def _dask(where: str, host: str, workers: int) -> Iterator[Engine]:
    try:
        from distributed import Client, LocalCluster
    except ImportError as error:
        raise _missing(where, "dask") from error
    import logging

    with contextlib.ExitStack() as stack:
        try:
            if host == LOCAL:
                cluster = LocalCluster(  # type: ignore[no-untyped-call]
                    n_workers=workers,
                    threads_per_worker=1,
                    dashboard_address=None,
                    silence_logs=logging.CRITICAL,
                )
                address = stack.enter_context(cluster)
            else:
                address = f"tcp://{host}"
            client = stack.enter_context(Client(address, timeout=10))  # type: ignore[no-untyped-call]
            threads = sum(client.nthreads().values())
        except (OSError, ValueError) as error:
            raise BnstatError(where, f"the cluster cannot be reached: {error}") from error
        yield Joblib(where, "dask", max(1, threads), {"client": client})


@contextlib.contextmanager
def _ray(where: str, host: str, workers: int) -> Iterator[Engine]:
    try:
        import ray
        from ray.util.joblib import register_ray
    except ImportError as error:
        raise _missing(where, "ray") from error
    try:
        if host == LOCAL:
            ray.init(num_cpus=workers, log_to_driver=False, include_dashboard=False)
        else:
            ray.init(where, log_to_driver=False)
    except (OSError, ValueError) as error:
        raise BnstatError(where, f"the cluster cannot be reached: {error}") from error
    register_ray()
    try:
        yield Joblib(where, "ray", int(ray.cluster_resources().get("CPU", 1)))
    finally:
        ray.shutdown()


def _missing(where: str, extra: str) -> BnstatError:
    return BnstatError(where, "its library is not installed", f"pip install 'bnstat[{extra}]'")
