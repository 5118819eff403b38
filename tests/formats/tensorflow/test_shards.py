"""Which files are a bundle's data: by the names in a folder, else by the header."""

from __future__ import annotations

from pathlib import Path

import pytest

from bnstat.formats.tensorflow.bundle import shard_names
from bnstat.storage.local import LocalFolder


class Silent(LocalFolder):
    """A folder that does not tell what it holds, as a web server's."""

    can_list = False


def found(folder: Path, names: list[str], expected: int, prefix: str = "m") -> dict[int, str]:
    for name in names:
        (folder / name).touch()
    return shard_names(LocalFolder(str(folder)), prefix, expected)


def test_what_lies_beside_the_data_is_none(tmp_path: Path) -> None:
    name = "m.data-00000-of-00001"
    beside = [f"{name}.tempstate123", "m.data-of", f"{name}.data-00000-of-00001", f"n{name[1:]}"]
    assert found(tmp_path, [name, *beside], 1) == {0: name}
    assert found(tmp_path, [], 1, prefix=name) == {0: f"{name}.data-00000-of-00001"}


def test_the_names_that_the_header_counts_come_first(tmp_path: Path) -> None:
    names = [f"m.data-{shard:05d}-of-{count:05d}" for count in (1, 2, 3) for shard in range(count)]
    assert found(tmp_path, names, 2) == {0: names[1], 1: names[2], 2: names[5]}
    assert found(tmp_path, [], 9) == {0: names[0], 1: names[2], 2: names[5]}


@pytest.mark.parametrize(("expected", "count"), [(2, 2), (1 << 40, 10_000)])
def test_names_that_nobody_tells(tmp_path: Path, expected: int, count: int) -> None:
    names = shard_names(Silent(str(tmp_path)), "m", expected)
    assert list(names) == list(range(count))
    assert names[1] == f"m.data-00001-of-{expected:05d}"
