"""Where jobs run: in this process, in several on this machine, or on the machines of a cluster.

joblib is the one interface to loky, Dask and Ray; there is no scheduler here. An engine gives the
results as they come. It may lose a worker, and with it the jobs that were under way: these have no
result, all others have theirs.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import BrokenExecutor
from dataclasses import dataclass, field
from typing import Any, Final, Protocol, TypeVar
from urllib.parse import urlsplit

from bnstat.errors import BnstatError

Job = TypeVar("Job")
Result = TypeVar("Result")

LOCAL: Final = "local"
"""The host of an engine that is started here, for this scan."""


class Engine(Protocol):
    """What runs jobs."""

    @property
    def workers(self) -> int:
        """How many jobs run at a time."""
        ...

    def run(
        self, work: Callable[[Job], Result], jobs: Sequence[Job]
    ) -> Iterator[tuple[int, Result | None]]:
        """The results as they come, each with the position of its job; None for a job that is lost.

        A job is lost with the worker that runs it. Others that were under way may be lost with it.

        Raises:
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
    """One of joblib's backends.

    Attributes:
        where: the engine as the user calls it, for messages.
        backend: its name for joblib.
        workers: how many jobs run at a time.
        settings: the backend's own.
        losses: the errors by which it tells that a worker died.
    """

    where: str
    backend: str
    workers: int
    settings: Mapping[str, Any] = field(default_factory=dict)
    losses: tuple[type[Exception], ...] = (BrokenExecutor,)

    def run(
        self, work: Callable[[Job], Result], jobs: Sequence[Job]
    ) -> Iterator[tuple[int, Result | None]]:
        left = dict(enumerate(jobs))
        while left:
            begun: set[int] = set()
            try:
                for number, result in self._run(work, _noting(left, begun)):
                    del left[number]
                    yield number, result
            except self.losses:
                self._probe()
                for number in sorted(begun & left.keys()):
                    del left[number]
                    yield number, None
            except Exception as error:
                raise self._lost(error) from error

    def _run(
        self, work: Callable[[Job], Result], jobs: Iterable[tuple[int, Job]]
    ) -> Iterator[tuple[int, Result | None]]:
        from joblib import Parallel, delayed, parallel_config

        with parallel_config(self.backend, n_jobs=self.workers, **self.settings):
            parallel = Parallel(
                return_as="generator_unordered",
                batch_size=1,
                pre_dispatch="2*n_jobs",
                max_nbytes=None,
            )
            yield from parallel(delayed(_numbered)(work, number, job) for number, job in jobs)

    def _probe(self) -> None:
        """Raise an error where the engine does nothing any more."""
        try:
            answers = list(self._run(abs, [(0, -1)]))
        except Exception as error:
            raise self._lost(error) from error
        assert answers == [(0, 1)]

    def _lost(self, error: Exception) -> BnstatError:
        said = str(error).partition("\n")[0] or type(error).__name__
        return BnstatError(self.where, f"the engine does not work: {said}")


def _noting(jobs: Mapping[int, Job], begun: set[int]) -> Iterator[tuple[int, Job]]:
    """The jobs, each noted as it is taken."""
    for number, job in list(jobs.items()):
        begun.add(number)
        yield number, job


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
    scheme, host = _address(where)
    opened = {"dask": _dask, "ray": _ray}.get(scheme)
    if opened is None or not host:
        raise BnstatError(
            where,
            "there is no such engine",
            "use dask://HOST:PORT, dask://local or ray://HOST:PORT",
        )
    with opened(where, host, count) as found:
        yield found


def _address(where: str) -> tuple[str, str]:
    """Return the scheme and the host of a URL; no host where it is not a valid URL."""
    try:
        parts = urlsplit(where)
    except ValueError:
        return "", ""
    return parts.scheme, parts.netloc


def _loky(workers: int) -> Joblib:
    return Joblib("--jobs", "loky", workers, {"initializer": ignore_interrupts})


def ignore_interrupts() -> None:
    """Ctrl-C goes to all processes of a terminal; the first decides what becomes of the others."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


@contextlib.contextmanager
def _dask(where: str, host: str, workers: int) -> Iterator[Engine]:
    try:
        from bnstat.scanning.dask import BACKEND, connected
    except ImportError as error:
        raise _missing(where, "distributed") from error
    address = None if host == LOCAL else f"tcp://{host}"
    with contextlib.ExitStack() as stack:
        try:
            client = stack.enter_context(connected(address, workers))
            threads = sum(client.nthreads().values())  # type: ignore[no-untyped-call]
        except (OSError, ValueError) as error:
            raise BnstatError(where, f"the cluster cannot be reached: {error}") from error
        if not threads:
            raise BnstatError(where, "the cluster has no workers", "start some, by dask worker")
        yield Joblib(where, BACKEND, threads, {"client": client})


@contextlib.contextmanager
def _ray(where: str, host: str, workers: int) -> Iterator[Engine]:
    try:
        import ray

        from bnstat.scanning.ray import BACKEND
    except ImportError as error:
        raise _missing(where, "'ray[client]'") from error
    quiet = {"log_to_driver": False, "logging_level": logging.ERROR}
    try:
        if host == LOCAL:
            ray.init(num_cpus=workers, include_dashboard=False, **quiet)
        else:
            ray.init(where, **quiet)
    except (OSError, ValueError) as error:
        raise BnstatError(where, f"the cluster cannot be reached: {error}") from error
    try:
        cores = int(ray.cluster_resources().get("CPU", 1))
        yield Joblib(where, BACKEND, cores, losses=(ray.exceptions.RayError,))
    finally:
        ray.shutdown()


def _missing(where: str, library: str) -> BnstatError:
    return BnstatError(where, "its library is not installed", f"pip install {library}")
