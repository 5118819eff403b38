"""Where the files of a copy go: next to what, under which names."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from os import PathLike, fspath
from typing import Final, Literal

from bnstat.errors import BnstatError, NotFoundError, UnsupportedError
from bnstat.formats.tensorflow.bundle import DATA, INDEX
from bnstat.formats.tensorflow.checkpoint_v1 import SHARD
from bnstat.formats.tensorflow.detection import NAME as STATE
from bnstat.formats.tensorflow.detection import state_text
from bnstat.formats.tensorflow.saved_model import VARIABLES, has_saved_model
from bnstat.mending.copying import tree
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
    from bnstat.formats.keras.weights import shard_names

    index, shards = shard_names(file)
    if index != name:
        raise BnstatError(
            file.path, "is one of several files that belong together", f"name {index} instead"
        )
    return Footprint("files", folder, name, [*shards, name], within)


_ENDINGS: Final = (INDEX, ".meta")


@dataclass(frozen=True)
class Layout:
    """A copy's files, before they are there.

    Attributes:
        parent: the folder in which the copy appears.
        names: what appears in it, in this order; the last makes the others a model.
        model: the model's path from there, as `load` takes it.
        files: a file of the original -> the path of its copy from `parent`.
        folders: the folders that there are to make, each after the one that it is in -> the
            original that each is a copy of, if it is one.
        state: the text of a state file, and its path, where one is to be written.
        replaces: whether what has these names is to be replaced.
    """

    parent: str
    names: Sequence[str]
    model: str
    files: Mapping[str, str]
    folders: Mapping[str, str | None] = field(default_factory=dict)
    state: tuple[str, str] | None = None
    replaces: bool = False

    @property
    def output(self) -> str:
        """The copy's path, as `load` takes it."""
        return self.model if self.parent == "." else os.path.join(self.parent, self.model)


def planned(source: Source, output: str | PathLike[str] | None, in_place: bool) -> Layout:
    """Where a copy of a model goes; in the model's own place where no name is given.

    Whoever works long for what is to be written asks this before.

    Args:
        source: the model's.
        output: what the copy is called.
        in_place: replace the model by the copy; then the copy has no name.

    Raises:
        UnsupportedError: models of that format, or in an archive, are not written.
        NotFoundError: the folder that it is to be in does not exist.
        BnstatError: it is there already, or it would be in the model or around it.
    """
    if in_place == (output is not None):
        raise BnstatError("output", "give either a copy's name or in_place")
    found = footprint(source)
    return layout_in_place(found) if output is None else layout(found, fspath(output))


def layout(found: Footprint, output: str) -> Layout:
    """Where a copy called `output` goes.

    Raises:
        NotFoundError: the folder that it is to be in does not exist.
        BnstatError: it is there already, or it would be in the model or around it.
    """
    if not output:
        raise BnstatError("the copy", "has no name")
    if found.kind == "folder" or found.within:
        return _in_a_new_folder(found, output)
    return _beside(found, output)


def layout_in_place(found: Footprint) -> Layout:
    """Where a copy goes that takes the original's place."""
    if found.kind == "folder":
        target = os.path.realpath(found.folder)
        name = os.path.basename(target)
        files, folders = _whole(found.folder, name)
        return Layout(os.path.dirname(target), [name], name, files, folders, replaces=True)
    files = {os.path.join(found.folder, file): file for file in found.files}
    return Layout(found.folder, found.files, found.name, files, replaces=True)


def _in_a_new_folder(found: Footprint, output: str) -> Layout:
    parent, name = os.path.split(output.rstrip("/"))
    parent = _existing(parent, output)
    target = os.path.join(parent, name)
    if os.path.lexists(target):
        _refuse_same(found.folder, target)
        if not os.path.isdir(target) or os.listdir(target):
            raise BnstatError(output, "is there already", "remove it, or choose another name")
    original, place = os.path.realpath(found.folder), os.path.realpath(parent)
    if f"{place}/".startswith(f"{original.rstrip('/')}/"):
        raise BnstatError(output, "is inside of the model that is copied", "choose another place")
    if found.kind == "folder":
        inside = os.path.join(name, os.path.basename(original)) if found.within else name
        files, folders = _whole(found.folder, inside)
        return Layout(parent, [name], name, files, {name: None, **folders})
    files = {os.path.join(found.folder, file): os.path.join(name, file) for file in found.files}
    state = None
    if found.kind == "checkpoint":
        state = (os.path.join(name, STATE), state_text(found.name))
    return Layout(parent, [name], name, files, {name: None}, state)


def _beside(found: Footprint, output: str) -> Layout:
    if os.path.isdir(output) or output.endswith("/"):
        parent, name = output.rstrip("/") or "/", found.name
    else:
        parent, name = os.path.split(output)
        name = _prefix(name) if found.kind == "checkpoint" else name
    parent = _existing(parent, output)
    names = found.renamed(name)
    for file, copy in names.items():
        target = os.path.join(parent, copy)
        if os.path.lexists(target):
            if found.kind == "files" and file != found.name:
                raise BnstatError(
                    target, "is a shard that the copy needs too", "give the copy its own folder"
                )
            _refuse_same(os.path.join(found.folder, file), target)
            raise BnstatError(target, "is there already", "remove it, or choose another name")
    files = {os.path.join(found.folder, file): copy for file, copy in names.items()}
    return Layout(parent, list(names.values()), name, files)


def _prefix(name: str) -> str:
    """The prefix that is meant by the name of one of a checkpoint's files."""
    if match := DATA.match(name):
        return match["prefix"]
    for ending in _ENDINGS:
        name = name.removesuffix(ending)
    return name


def _existing(parent: str, output: str) -> str:
    parent = parent or "."
    if not os.path.isdir(parent):
        raise NotFoundError(output, f"there is no folder {parent}", "make it first")
    return parent


def _refuse_same(original: str, target: str) -> None:
    if os.path.exists(target) and os.path.samefile(original, target):
        raise BnstatError(target, "is the model itself", "choose another name, or use --in-place")


def _whole(folder: str, inside: str) -> tuple[dict[str, str], dict[str, str | None]]:
    """The copies of all that is in a folder, and the folders that they are in."""
    files: dict[str, str] = {}
    folders: dict[str, str | None] = {inside: folder}
    for path, is_folder in tree(folder):
        copy = os.path.join(inside, path)
        if is_folder:
            folders[copy] = os.path.join(folder, path)
        else:
            files[os.path.join(folder, path)] = copy
    return files, folders
