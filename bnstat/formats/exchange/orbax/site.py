"""Where Orbax checkpoints lie.

An item is a folder with `_METADATA` (its tree) and its arrays, in one key-value store
(`manifest.ocdbt`) or as a folder each. A checkpoint is an item, or a folder of several (`default`;
`pytree` and `model_config` of Keras; `params`, `state`, ...).

Source: orbax/checkpoint/_src, format 0.5 to 0.12.
"""

from __future__ import annotations

from typing import Final

from bnstat.formats.sites import Format, Found, Place, alone, natively
from bnstat.storage.files import File, Folder

TREE: Final = "_METADATA"
STORE: Final = "manifest.ocdbt"
_CHECKPOINT: Final = "_CHECKPOINT_METADATA"
_MOST_ITEMS: Final = 100


class Orbax(Format):
    """A folder that is an item, or has some in it."""

    def owner(self, folder: Folder, file: File) -> Place | Folder | None:
        is_part = file.name in (TREE, STORE, _CHECKPOINT) and items(folder)
        return folder if is_part else None

    def of_folder(self, folder: Folder) -> Found | None:
        found = items(folder)
        if not found:
            return None
        from bnstat.formats.exchange.orbax.contents import open_items

        return alone(
            lambda source, reading: open_items(found, natively(source, reading)), folder.times
        )


def items(folder: Folder) -> dict[str, Folder]:
    """The items of a checkpoint by name; the name of one alone is empty."""
    if folder.file(TREE) is not None:
        return {"": folder}
    if folder.file(_CHECKPOINT) is None:
        return {}
    below = {name: folder.folder(name) for name in folder.names()[:_MOST_ITEMS]}
    return {
        name: inner
        for name, inner in below.items()
        if inner is not None and inner.file(TREE) is not None
    }
