"""A scan gives the same records on every engine, even if workers die."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import pytest

from bnstat.errors import BnstatError
from bnstat.scanning import engines
from bnstat.scanning.engines import Batches, Engine, open_engine
from bnstat.scanning.record import Record
from bnstat.scanning.scan import ScanOptions
from tests.builders.signals import started
from tests.scanning.stores import h5, scanned, store

WORKERS = [
    pytest.param(None, id="processes"),
    pytest.param("dask://local", id="dask", marks=pytest.mark.slow),
]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of 85 models; one is `deadly.h5`."""
    root = tmp_path_factory.mktemp("store")
    store(root, 14)
    h5(root / "7/deadly.h5")
    return root


@pytest.fixture(scope="module")
def expected(models: Path) -> list[Record]:
    return scanned(models)


@contextlib.contextmanager
def two_workers(url: str | None) -> Iterator[Engine]:
    if url is not None:
        pytest.importorskip("distributed")
    with open_engine(url, 2) as engine:
        assert engine.workers == 2
        yield engine


@contextlib.contextmanager
def cluster(workers: int) -> Iterator[tuple[Any, str]]:
    """A Dask cluster that the scan did not start, and its URL."""
    distributed = pytest.importorskip("distributed")
    with distributed.LocalCluster(
        n_workers=workers, threads_per_worker=1, dashboard_address=None, silence_logs=50
    ) as running:
        yield running, running.scheduler_address.replace("tcp", "dask")


class Deadly:
    """An engine whose workers die when they open `deadly.h5`, only until the file `once` exists."""

    def __init__(self, engine: Engine, once: Path | None = None) -> None:
        self._engine = engine
        self._once = once

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    def submit(self, work: Callable[[Any], Any], job: Any) -> Future[Any]:
        return self._engine.submit(partial(_die, work, self._once), job)


def _die(work: Callable[[Any], Any], once: Path | None, job: Any) -> Any:
    if job != -1 and any(candidate.path.endswith("deadly.h5") for candidate in job):
        with contextlib.suppress(FileExistsError):
            if once is not None:
                once.touch(exist_ok=False)
            os.kill(os.getpid(), signal.SIGKILL)
    return work(job)


@pytest.mark.parametrize("url", WORKERS)
def test_several_workers_give_the_same_records(models, expected, url) -> None:
    assert len(expected) == 85
    options = ScanOptions(reading={"values": False})
    with two_workers(url) as engine:
        assert scanned(models, engine=engine) == expected
        assert scanned(models, engine=engine, options=options) == scanned(models, options=options)


@pytest.mark.parametrize("url", WORKERS)
def test_a_worker_that_dies_costs_no_model_its_line(models, expected, url, tmp_path) -> None:
    with two_workers(url) as engine:
        assert scanned(models, engine=Deadly(engine, tmp_path / "died")) == expected
        assert (tmp_path / "died").exists()

        records = scanned(models, engine=Deadly(engine))
        (died,) = [record for record in records if record.trouble]
        assert (died.trouble, Path(died.path).name) == ("died", "deadly.h5")
        assert "again when bnstat retried" in died.reason
        sound = [record for record in expected if record.path != died.path]
        assert [record for record in records if not record.trouble] == sound

        assert scanned(models, engine=engine) == expected


def _kill(batch: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def test_workers_that_die_of_anything_end_the_scan(monkeypatch: pytest.MonkeyPatch) -> None:
    with two_workers(None) as engine:
        submit = engine.submit
        monkeypatch.setattr(engine, "submit", lambda work, job: submit(_kill, job))
        with pytest.raises(BnstatError, match="the workers die before they open a model"):
            list(run(engine, list, range(3)))


def run(engine: Engine, work: Callable[[Any], Any], items: Any) -> Iterator[tuple[int, Any]]:
    batches = Batches(engine, work)
    for batch in chain(*map(batches.add, items), batches.flush()):
        yield from batch


def _fail(batch: list[int]) -> list[int]:
    raise ValueError(f"of {len(batch)}")


@pytest.mark.parametrize("url", WORKERS)
def test_another_error_ends_the_scan(url: str | None) -> None:
    with two_workers(url) as engine, pytest.raises(BnstatError, match="the engine failed: of 1"):
        list(run(engine, _fail, range(2)))


def _process_ids(batch: list[int]) -> list[int]:
    return [os.getpid()] * len(batch)


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_a_cluster_that_is_running(models: Path, expected: list[Record], workers: int) -> None:
    with cluster(workers) as (_, url), open_engine(url, 1) as engine:
        assert engine.workers == workers
        assert scanned(models, engine=engine) == expected
        assert os.getpid() not in dict(run(engine, _process_ids, range(9))).values()


def _sleep(batch: list[int]) -> list[int]:
    time.sleep(0.3)
    return batch


@pytest.mark.slow
@pytest.mark.parametrize("end", ["no workers", "no scheduler"])
def test_a_cluster_that_ends_during_the_scan(end: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engines, "PATIENCE", 3)
    monkeypatch.setattr(engines.Dask, "check_seconds", 1)
    with cluster(2) as (running, url), open_engine(url, 1) as engine:
        results = run(engine, _sleep, range(200))
        next(results)
        running.close() if end == "no scheduler" else running.scale(0)
        with pytest.raises(BnstatError, match="the cluster is gone, or has no workers left"):
            list(results)
        if end == "no workers":
            with (
                pytest.raises(BnstatError, match="the cluster has no workers"),
                open_engine(url, 1),
            ):
                pass


def test_a_cluster_that_cannot_be_reached() -> None:
    pytest.importorskip("distributed")
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"dask://127.0.0.1:{unused.getsockname()[1]}"
        with pytest.raises(BnstatError, match="cannot be reached"), open_engine(url, 1):
            pass


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("dask://local", "pip install distributed"),
        ("dask://", "unknown engine"),
        ("ray://local", "unknown engine; use dask://HOST:PORT or dask://local"),
    ],
)
def test_engines_that_cannot_be_used(url, message, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(BnstatError, match=message), open_engine(url, 1):
        pass


class Counting(Engine):
    """An engine that finishes a job only when it is asked for its results."""

    workers = 3
    in_process = False
    check_seconds = 0.001

    def __init__(self) -> None:
        self.most = 0
        self._jobs: list[tuple[Future[Any], Callable[[Any], Any], Any]] = []

    def submit(self, work: Callable[[Any], Any], job: Any) -> Future[Any]:
        self._jobs.append((Future(), work, job))
        self.most = max(self.most, len(self._jobs))
        return self._jobs[-1][0]

    def check(self) -> None:
        future, work, job = self._jobs.pop(0)
        future.set_result(work(job))


def test_a_bounded_number_of_jobs_is_under_way() -> None:
    engine = Counting()
    assert sorted(dict(run(engine, list, range(1000)))) == list(range(1000))
    assert 3 < engine.most <= 2 * engine.workers + 1


def _blocks_interrupts(_: object = None) -> bool:
    return signal.SIGINT in signal.pthread_sigmask(signal.SIG_BLOCK, [])


def test_ctrl_c_does_not_reach_workers() -> None:
    """Even while they start: they inherit the mask of signals."""
    with two_workers(None) as engine:
        assert engine.submit(_blocks_interrupts, None).result()
        assert not _blocks_interrupts()


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL], ids=["Ctrl-C", "killed"])
@pytest.mark.parametrize("options", [[], ["--engine", "dask://local"]], ids=["processes", "dask"])
def test_no_worker_outlives_the_scan(tmp_path: Path, options: list[str], number: int) -> None:
    if options:
        pytest.importorskip("distributed")
    root = store(tmp_path / "store", 150)
    command = ("scan", root, "--json", "--jobs", 2, *options)
    process = started("-m", "bnstat", *command, start_new_session=True)
    assert process.stdout.readline().startswith(b"{")
    if number == signal.SIGINT:
        os.killpg(process.pid, number)
    else:
        process.send_signal(number)
    _, errors = process.communicate(timeout=300)
    assert process.returncode == (130 if number == signal.SIGINT else -number)
    assert b"Traceback" not in errors or number == signal.SIGKILL
    assert _is_gone(process.pid), "a worker is left"


def _is_gone(group: int) -> bool:
    """Wait up to two minutes until all processes of a group have ended."""
    for _ in range(1200):
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.1)
    return False
