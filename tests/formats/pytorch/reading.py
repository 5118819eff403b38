"""Writes PyTorch files without PyTorch, and reads tensors within limits."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import bnstat
from tests.fuzz import ports
from tests.fuzz.handmade import values


def zipped(path: Path, pickle_: bytes, *storages: bytes) -> Path:
    """Write a zip with these storages under the keys `0`, `1`, ..."""
    members = {str(key): content for key, content in enumerate(storages)}
    path.write_bytes(ports.pytorch_zip(pickle_, members))
    return path


def arrays(times: int = 1) -> list[bytes]:
    """Return the contents of the storages of `ports.tensors()`."""
    return [array.tobytes() for array in values().values()] * times


def assert_within_budget(path: Path) -> None:
    """Assert that a small file cannot fill the memory, because bnstat refuses most arrays."""
    read = 0
    for variable in bnstat.load(path).stored.values():
        with suppress(bnstat.BnstatError):
            read += variable.read().nbytes
    assert 0 < read <= (1 << 28) + 2 * path.stat().st_size
