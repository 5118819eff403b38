"""Which files a model is made of: what a copy of it has to hold."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal

from bnstat.errors import BnstatError, NotFoundError, UnsupportedError
from bnstat.formats.tensorflow.bundle import INDEX
from bnstat.formats.tensorflow.checkpoint_v1 import SHARD
from bnstat.formats.tensorflow.saved_model import VARIABLES, has_saved_model
from bnstat.formats.tensorflow.shards import DATA
from bnstat.model import Source
from bnstat.storage.local import LocalFile, LocalFolder

_META: Final = ".meta"
_BUNDLES: Final = ("tf1-checkpoint", "tf2-checkpoint")
_V1: Final = "tf1-checkpoint-v1"
_SAVED_MODEL: Final = "saved-model"
_FILES: Final = ("keras-h5", "keras-archive", "keras-weights", "frozen-graph")


@dataclass(frozen=True, slots=True)
class Footprint:
    """The files of a model.

    Attributes:
        kind: `folder` where all of the folder is the model; `checkpoint` where its files start
            with one prefix; `files` for a file, and others that it names.
        folder: the folder that they lie in, or that they are.
        name: the prefix, or the file's name; empty for a folder.
        files: the names of the files, the one last that makes them a model; none for a folder.
        within: whether the user named a folder that holds the model among others.
    """

    kind: Literal["folder", "checkpoint", "files"]
    folder: str
    name: str = ""
    files: Sequence[str] = ()
    within: bool = False

    @property
    def path(self) -> str:
        """The model alone, as `load` takes it."""
        return os.path.join(self.folder, self.name) if self.name else self.folder

    def renamed(self, name: str) -> dict[str, str]:
        """What each file is called where the model is called `name`.

        The files that another one names keep their names.
        """
        if self.kind == "checkpoint":
            return {file: name + file[len(self.name) :] for file in self.files}
        return {file: name if file == self.name else file for file in self.files}


def footprint(source: Source) -> Footprint:
    """The files of the model that was read from there.

    Raises:
        UnsupportedError: models of that format, or in an archive, are not written.
        BnstatError: the path is one of several files that belong together.
    """
    if source.format not in (*_BUNDLES, _V1, _SAVED_MODEL, *_FILES):
        raise UnsupportedError(
            source.path,
            f"models of the format {source.format} are not written",
            "mend the TensorFlow or Keras model, and convert that",
        )
    if "://" in source.path:
        raise UnsupportedError(source.path, "is far away, where nothing is written", "download it")
    path = source.path.rstrip("/") or source.path
    is_folder = os.path.isdir(path)
    folder = path if is_folder else os.path.dirname(path) or "."
    if source.format != "keras-archive" and _is_archive(path):
        raise UnsupportedError(source.path, "is in an archive, which is not written", "unpack it")
    if source.format == _SAVED_MODEL:
        return _saved_model(folder, path, source.checkpoint)
    if source.format not in _FILES and source.checkpoint is not None:
        name = source.checkpoint
        files = _bundle(folder, name) if source.format in _BUNDLES else _v1(folder, name)
        within = is_folder or not os.path.basename(path).startswith(name)
        return Footprint("checkpoint", folder, name, files, within)
    if is_folder and source.checkpoint is None:
        return Footprint("folder", path)
    return _files(folder, source.checkpoint or os.path.basename(path), is_folder)


def _is_archive(path: str) -> bool:
    if not os.path.isfile(path):
        return False
    from bnstat.storage.archive import open_archive

    return open_archive(LocalFile(path)) is not None


def _saved_model(folder: str, path: str, version: str | None) -> Footprint:
    root = folder if version is None else os.path.join(folder, version)
    parent = os.path.dirname(os.path.realpath(root))
    if os.path.basename(os.path.realpath(root)) == VARIABLES and _is_saved_model(parent):
        root = parent
    if not _is_saved_model(root):
        # A `saved_model.pb` under another name, with nothing beside it that belongs to it.
        return Footprint("files", folder, os.path.basename(path), [os.path.basename(path)])
    return Footprint("folder", root, within=version is not None)


def _is_saved_model(folder: str) -> bool:
    return has_saved_model(LocalFolder(folder))


def _bundle(folder: str, prefix: str) -> list[str]:
    listing = LocalFolder(folder)
    data = [
        name
        for name in listing.matching(f"{prefix}.data-")
        if (match := DATA.match(name)) and match["prefix"] == prefix
    ]
    return [*data, *_meta(listing, prefix), prefix + INDEX]


def _v1(folder: str, name: str) -> list[str]:
    listing = LocalFolder(folder)
    if listing.file(name) is not None:
        return [*_meta(listing, name), name]
    shards = [
        shard
        for shard in listing.matching(f"{name}-")
        if (match := SHARD.match(shard)) and match["prefix"] == name
    ]
    return [*_meta(listing, name), *shards]


def _meta(folder: LocalFolder, prefix: str) -> list[str]:
    return [prefix + _META] if folder.file(prefix + _META) is not None else []


def _files(folder: str, name: str, within: bool) -> Footprint:
    file = LocalFolder(folder).file(name)
    if file is None:
        raise NotFoundError(os.path.join(folder, name), "is no file on this machine")
    from bnstat.formats.keras.groups import shard_names

    index, shards = shard_names(file)
    if index != name:
        raise BnstatError(
            file.path, "is one of several files that belong together", f"name {index} instead"
        )
    return Footprint("files", folder, name, [*shards, name], within)
