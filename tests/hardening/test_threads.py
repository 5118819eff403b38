"""Several threads that read one model get the same as one thread."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from random import Random
from threading import Barrier
from typing import Any

import numpy as np
import pytest

from bnstat.errors import BnstatError
from bnstat.formats.contents import Contents
from bnstat.loading import open_contents
from bnstat.storage.archive import open_archive
from bnstat.storage.local import LocalFile
from tests.fuzz.seeds import formats, seeds
from tests.storage.test_archive import PACKERS

THREADS = 8
ROUNDS = 3


@pytest.fixture(autouse=True)
def _switching() -> Iterator[None]:
    """Let threads take turns as often as they can."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


def together(work: Callable[[int], None]) -> None:
    """Let threads do some work at the same time; each is given its number."""
    barrier = Barrier(THREADS)

    def start(number: int) -> None:
        barrier.wait()
        work(number)

    with ThreadPoolExecutor(THREADS) as pool:
        list(pool.map(start, range(THREADS)))


def read(contents: Contents, key: str) -> tuple[object, ...] | str:
    """Return the type, shape and bytes of an array, or the error of reading it."""
    try:
        array = contents.variables[key].read()
    except BnstatError as error:
        return str(error)
    return array.dtype, array.shape, array.tobytes()


def opened(path: Path) -> Contents | None:
    try:
        return open_contents(str(path))
    except BnstatError:
        return None


def test_every_array_of_every_format(tmp_path: Path) -> None:
    counts: Counter[str] = Counter()
    models: Counter[str] = Counter()
    for number, seed in enumerate(seeds()):
        # Several models of a kind differ little.
        if seed.name.startswith(("real/", "written/")) or models[seed.format] >= 12:
            continue
        models[seed.format] += 1
        path = seed.write(tmp_path / str(number))
        alone = opened(path)
        if alone is None:
            continue
        expected = {key: read(alone, key) for key in alone.variables}
        counts[seed.format] += sum(not isinstance(result, str) for result in expected.values())
        for turn in range(ROUNDS):
            shared = opened(path)
            together(partial(_compare, shared, expected, turn))
    assert +counts == counts
    assert counts.keys() == set(formats())


def _compare(shared: Contents, expected: dict[str, Any], turn: int, thread: int) -> None:
    """Read all arrays, in an order of the thread's own."""
    keys = list(expected)
    Random(f"{thread} {turn}").shuffle(keys)
    for key in keys:
        assert read(shared, key) == expected[key], key


PACKED = {"plain": lambda files: b"".join(files.values()), **PACKERS}


@pytest.mark.parametrize("has_positioned_reads", [True, False])
@pytest.mark.parametrize("kind", PACKED)
def test_every_piece_of_a_file(kind, has_positioned_reads, tmp_path, monkeypatch) -> None:
    """Pieces of one file, of members of one archive and of streams, by threads in any order."""
    if not has_positioned_reads:  # as on Windows
        monkeypatch.delattr("os.pread")
    random = np.random.default_rng(5)
    files = {name: random.bytes(50_000) for name in ("a", "b", "c")}
    path = tmp_path / "m"
    path.write_bytes(PACKED[kind](files))
    file = LocalFile(str(path))
    folder = open_archive(file)
    contents = [file] if folder is None else [folder.file(name) for name in files]
    expected = [path.read_bytes()] if folder is None else list(files.values())

    def compare(thread: int) -> None:
        order = Random(thread)
        streams = [file.open() for file in contents]
        for _ in range(300):
            which = order.randrange(len(contents))
            start = order.randrange(len(expected[which]))
            length = order.randrange(min(200, len(expected[which]) - start))
            piece = expected[which][start : start + length]
            assert contents[which].read(start, length) == piece
            streams[which].seek(start)
            assert streams[which].read(length) == piece
        for stream in streams:
            stream.close()

    together(compare)
