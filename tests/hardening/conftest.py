from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.hardening.support import Judge

if sys.platform != "linux":  # limits, namespaces and terminals are asked for in Linux's way
    collect_ignore_glob = ["test_*.py"]


@pytest.fixture(scope="module")
def worker() -> Iterator[Any]:
    from tests.fuzz.worker import Worker

    worker = Worker()
    yield worker
    worker.close()


@pytest.fixture
def judged(worker: Any) -> Judge:
    """Fail if bnstat crashes on a hostile file or exceeds the fuzzer's limits."""

    def judge(path: Path) -> str:
        verdict = worker.judge(path)
        assert not verdict.is_finding, f"{verdict.text}\n{verdict.details}"
        return verdict.text

    return judge
