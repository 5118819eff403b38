"""The names of a bundle's data files: `PREFIX.data-00000-of-00002`."""

from __future__ import annotations

import re

from bnstat.storage.files import Folder

DATA = re.compile(r"^(?P<prefix>.*)\.data-(?P<shard>\d{5,9})-of-(?P<shards>\d{5,9})$", re.DOTALL)

_MOST_ASKED_FOR = 10_000


def shard_names(folder: Folder, prefix: str, expected: int) -> dict[int, str]:
    """Shard number -> name of its data file, as the folder has them.

    A folder can hold shards of an earlier save of the same name with another number of shards;
    those that the header counts come first. Where a folder does not tell what it holds, the
    names are those that the header implies.

    Args:
        folder: where the files lie.
        prefix: what their names start with.
        expected: how many the bundle's header counts.
    """
    if not folder.tells_names:
        shards = range(min(expected, _MOST_ASKED_FOR))
        return {shard: f"{prefix}.data-{shard:05d}-of-{expected:05d}" for shard in shards}
    found: dict[int, tuple[bool, str]] = {}
    for name in folder.matching(prefix + ".data-"):
        match = DATA.match(name)
        if match and match["prefix"] == prefix:
            shard, rank = int(match["shard"]), int(match["shards"]) != expected
            if shard not in found or (rank, name) < found[shard]:
                found[shard] = (rank, name)
    return {shard: name for shard, (_, name) in found.items()}
