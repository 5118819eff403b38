"""The same records wherever a scan runs, and whatever becomes of its workers."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from bnstat.errors import BnstatError
from bnstat.scanning.engines import Engine, engine
from bnstat.scanning.job import How
from bnstat.scanning.record import Record
from tests.builders.signals import heeded
from tests.scanning.stores import h5, scanned, store
from tests.terminal import ROOT

WORKERS = [
    pytest.param(None, id="loky"),
    pytest.param("dask://local", id="dask", marks=pytest.mark.slow),
]
RAY = pytest.param("ray://local", id="ray", marks=pytest.mark.slow)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Enough models for many jobs: 84 of them, one of which is called `deadly.h5`."""
    root = tmp_path_factory.mktemp("store")
    store(root, 14)
    h5(root / "7/deadly.h5")
    return root


@pytest.fixture(scope="module")
def alone(models: Path) -> list[Record]:
    """What a scan in this process finds."""
    return scanned(models)


@contextlib.contextmanager
def started(where: str | None) -> Iterator[Engine]:
    """Two worker processes."""
    if where is not None:
        pytest.importorskip("ray" if where.startswith("ray") else "distributed")
    with engine(where, 2) as opened:
        yield opened


@dataclass
class Dying:
    """An engine whose workers die of some models.

    Attributes:
        engine: the real one.
        once: an empty folder, for a worker that dies once; None for every one that opens them.
    """

    engine: Engine
    once: Path | None = None

    @property
    def workers(self) -> int:
        return self.engine.workers

    def run(self, work: Callable[[Any], Any], jobs: Sequence[Any]) -> Iterator[Any]:
        return self.engine.run(partial(_die, work, self.once), jobs)


def _die(work: Callable[[Any], Any], once: Path | None, job: Any) -> Any:
    if any(candidate.path.endswith("deadly.h5") for candidate in job):
        with contextlib.suppress(FileExistsError):
            if once is not None:
                (once / "died").touch(exist_ok=False)
            os.kill(os.getpid(), signal.SIGKILL)
    return work(job)


@pytest.mark.parametrize("where", [*WORKERS, RAY])
def test_the_same_records_by_several_workers(
    models: Path, alone: list[Record], where: str | None
) -> None:
    assert len(alone) == 85
    with started(where) as opened:
        assert opened.workers == 2
        assert scanned(models, engine=opened) == alone


@pytest.mark.parametrize("where", WORKERS)
def test_a_worker_that_dies_once_costs_nobody_a_line(
    models: Path, alone: list[Record], where: str | None, tmp_path: Path
) -> None:
    with started(where) as opened:
        assert scanned(models, engine=Dying(opened, tmp_path)) == alone
    assert (tmp_path / "died").exists()


@pytest.mark.parametrize("where", WORKERS)
def test_a_model_that_every_worker_dies_of_is_one_line(
    models: Path, alone: list[Record], where: str | None
) -> None:
    with started(where) as opened:
        found = scanned(models, engine=Dying(opened))
        # The engine goes on working.
        assert scanned(models, engine=opened) == alone
    died = [record for record in found if record.trouble]
    assert [(record.trouble, Path(record.path).name) for record in died] == [("died", "deadly.h5")]
    assert "so did another" in died[0].reason
    assert [record for record in found if not record.trouble] == [
        record for record in alone if not record.path.endswith("deadly.h5")
    ]


def _broken(job: Any) -> Any:
    raise ValueError(f"of {len(job)}")


@pytest.mark.parametrize("where", WORKERS)
def test_what_goes_wrong_otherwise_is_no_dead_worker(where: str | None) -> None:
    with (
        started(where) as opened,
        pytest.raises(BnstatError, match="the engine does not work: of 1"),
    ):
        list(opened.run(_broken, [[1], [2]]))


@contextlib.contextmanager
def cluster(workers: int) -> Iterator[Any]:
    """A Dask cluster in processes that are not the scan's."""
    distributed = pytest.importorskip("distributed")
    with distributed.LocalCluster(
        n_workers=workers, threads_per_worker=1, dashboard_address=None, silence_logs=50
    ) as running:
        yield running


@pytest.mark.slow
def test_a_cluster_that_runs_already(models: Path, alone: list[Record]) -> None:
    with cluster(2) as running:
        where = running.scheduler_address.replace("tcp", "dask")
        with engine(where, 1) as opened:
            assert opened.workers == 2
            assert scanned(models, engine=opened) == alone


@pytest.mark.slow
def test_a_cluster_of_one_worker_does_the_work_itself() -> None:
    with (
        cluster(1) as running,
        engine(running.scheduler_address.replace("tcp", "dask"), 1) as opened,
    ):
        places = dict(opened.run(_place, [[1], [2]]))
    assert len(set(places.values())) == 1
    assert os.getpid() not in places.values()


def _place(job: Any) -> int:
    return os.getpid()


@pytest.mark.slow
def test_a_cluster_without_workers() -> None:
    with cluster(0) as running:
        where = running.scheduler_address.replace("tcp", "dask")
        with pytest.raises(BnstatError, match="the cluster has no workers"), engine(where, 1):
            pass


@pytest.mark.slow
@pytest.mark.parametrize("left", [0, None], ids=["no workers", "no scheduler"])
def test_a_cluster_that_ends_meanwhile(left: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("distributed")
    monkeypatch.setattr("bnstat.scanning.dask.PATIENCE", 3)
    with cluster(2) as running:
        where = running.scheduler_address.replace("tcp", "dask")
        with engine(where, 1) as opened:
            results = opened.run(_slowly, [[number] for number in range(200)])
            next(results)
            if left is None:
                running.close()
            else:
                running.scale(left)
            with pytest.raises(BnstatError, match="the cluster is gone, or has no workers left"):
                list(results)


def _slowly(job: Any) -> None:
    time.sleep(0.3)


def test_a_cluster_that_is_not_there() -> None:
    pytest.importorskip("distributed")
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        where = f"dask://127.0.0.1:{unused.getsockname()[1]}"
        with pytest.raises(BnstatError, match="cannot be reached"), engine(where, 1):
            pass


@pytest.mark.parametrize(
    ("scheme", "library"), [("dask", "distributed"), ("ray", r"'ray\[client\]'")]
)
def test_a_missing_library_is_named(
    scheme: str, library: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("distributed", "ray", "bnstat.scanning.dask", "bnstat.scanning.ray"):
        monkeypatch.setitem(sys.modules, name, None)
    with (
        pytest.raises(BnstatError, match=f"pip install {library}"),
        engine(f"{scheme}://local", 1),
    ):
        pass


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        ("--jobs", "2"),
        pytest.param(("--engine", "dask://local", "--jobs", "2"), marks=pytest.mark.slow),
    ],
)
def test_an_interrupted_scan_leaves_no_worker(tmp_path: Path, options: tuple[str, ...]) -> None:
    if "--engine" in options:
        pytest.importorskip("distributed")
    root = store(tmp_path / "store", 150)
    command = [sys.executable, "-m", "bnstat", "scan", str(root), "--json", *options]
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        preexec_fn=heeded,
        start_new_session=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline().startswith(b"{")
    os.killpg(process.pid, signal.SIGINT)
    _, said = process.communicate(timeout=300)
    assert process.returncode == 130
    assert b"Traceback" not in said
    assert _gone(process.pid), "workers are left"


def _gone(group: int) -> bool:
    """Return True once all processes of a group have ended, False if some still run after 2 min."""
    for _ in range(1200):
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.1)
    return False


def test_settings_reach_the_workers(models: Path) -> None:
    how = replace(How(), reading={"values": False})
    with started(None) as opened:
        assert scanned(models, how=how, engine=opened) == scanned(models, how=how)
