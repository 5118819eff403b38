from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.hardening.support import Judge

if TYPE_CHECKING:
    from tests.fuzz.worker import Worker

if sys.platform != "linux":  # limits, namespaces and terminals are asked for in Linux's way
    collect_ignore_glob = ["test_*.py"]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--seconds",
        type=float,
        help="how long each test of test_concurrency.py reads; default: some rounds",
    )


@pytest.fixture(scope="module")
def worker() -> Iterator[Worker]:
    from tests.fuzz.worker import Worker

    worker = Worker()
    yield worker
    worker.close()


@pytest.fixture
def judged(worker: Worker) -> Judge:
    """Fail if bnstat crashes on a hostile file or exceeds the fuzzer's limits."""

    def judge(path: Path) -> str:
        verdict = worker.judge(path)
        assert not verdict.is_finding, f"{verdict.text}\n{verdict.details}"
        return verdict.text

    return judge
