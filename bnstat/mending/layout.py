"""The locations and names of a copy's files."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from operator import attrgetter
from os import PathLike, fspath
from typing import Final, Literal

from bnstat.errors import BnstatError, NotFoundError, UnsupportedError
from bnstat.formats.tensorflow.bundle import DATA, INDEX, VARIABLES
from bnstat.formats.tensorflow.detection import NAME as STATE
from bnstat.formats.tensorflow.detection import SHARD, has_saved_model, state_text
from bnstat.mending.writers import WRITERS
from bnstat.model import Source
from bnstat.storage.local import LocalFile, LocalFolder

_META: Final = ".meta"
_CHECKPOINTS: Final = ("tf1-checkpoint", "tf2-checkpoint", "tf1-checkpoint-v1")
_EXISTS: Final = "remove it, or choose another name"


@dataclass(frozen=True, slots=True)
class Footprint:
    """The files of a model.

    Attributes:
        kind: `folder` if the model is a whole folder; `checkpoint` if the file names start with one
            prefix; `files` for a file and the files to which it refers.
        folder: the folder that contains the files, or that is the model.
        name: the prefix, or the name of the file; empty for a folder.
        files: the names of the files, the last of which completes a copy; empty for a folder.
        within: True if the user passed a folder that contains the model and other models.
    """

    kind: Literal["folder", "checkpoint", "files"]
    folder: str
    name: str = ""
    files: Sequence[str] = ()
    within: bool = False

    @property
    def path(self) -> str:
        return os.path.join(self.folder, self.name) if self.name else self.folder


def footprint(source: Source) -> Footprint:
    """Return the files of a model; raise an error if bnstat cannot write its format."""
    if source.format not in WRITERS:
        raise UnsupportedError(
            source.path,
            f"bnstat does not write the format {source.format}",
            "apply the values to the model it was converted from, or set them with its own library",
        )
    if "://" in source.path:
        raise UnsupportedError(source.path, "is remote, and cannot be written", "download it")
    path = source.path.rstrip("/") or source.path
    is_folder = os.path.isdir(path)
    folder = path if is_folder else os.path.dirname(path) or "."
    if source.format != "keras-archive" and os.path.isfile(path):
        from bnstat.storage.archive import open_archive

        if open_archive(LocalFile(path)) is not None:
            raise UnsupportedError(source.path, "is an archive, and cannot be written", "unpack it")
    if source.format == "saved-model":
        return _saved_model(folder, path, source.checkpoint)
    if source.format in _CHECKPOINTS and source.checkpoint is not None:
        name = source.checkpoint
        within = is_folder or not os.path.basename(path).startswith(name)
        return Footprint("checkpoint", folder, name, _checkpoint(folder, name), within)
    if is_folder and source.checkpoint is None:
        return Footprint("folder", path)
    return _files(folder, source.checkpoint or os.path.basename(path), is_folder)


def _saved_model(folder: str, path: str, version: str | None) -> Footprint:
    root = folder if version is None else os.path.join(folder, version)
    parent, name = os.path.split(os.path.realpath(root))
    if name == VARIABLES and has_saved_model(LocalFolder(parent)):
        root = parent
    if not has_saved_model(LocalFolder(root)):
        # A `saved_model.pb` under another name; nothing beside it belongs to it.
        return Footprint("files", folder, os.path.basename(path), [os.path.basename(path)])
    return Footprint("folder", root, within=version is not None)


def _checkpoint(folder: str, prefix: str) -> list[str]:
    """Return the names of a checkpoint's files; the file that completes the checkpoint is last."""
    listing = LocalFolder(folder)
    shards = [
        name
        for name in listing.matching(prefix)
        if (match := DATA.match(name) or SHARD.match(name)) and match["prefix"] == prefix
    ]
    single = (prefix + _META, prefix, prefix + INDEX)
    return [*shards, *(name for name in single if listing.file(name) is not None)]


def _files(folder: str, name: str, within: bool) -> Footprint:
    file = LocalFolder(folder).file(name)
    if file is None:
        raise NotFoundError(os.path.join(folder, name), "is not a local file")
    from bnstat.formats.keras.weights import shard_names

    index, shards = shard_names(file)
    if index != name:
        raise BnstatError(file.path, "is one weight file of several", f"pass {index} instead")
    return Footprint("files", folder, name, [*shards, name], within)


@dataclass(frozen=True)
class Layout:
    """The files of a copy, before it is written. Paths of the copy are relative to `parent`.

    Attributes:
        names: the files and folders that appear in `parent`; the last one completes the copy.
        model: the path of the copied model, for `load`.
        files: file of the original -> file of the copy.
        folders: folder of the copy -> folder of the original, or None for a new folder. A folder
            comes after its parent folder.
        state: the path and the text of the `checkpoint` file to write; None to write none.
        replaces: True if the copy replaces the existing files in `names`.
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
        return self.model if self.parent == "." else os.path.join(self.parent, self.model)


def planned(source: Source, output: str | PathLike[str] | None, in_place: bool) -> Layout:
    """Return the layout of a copy at `output` or, if `in_place`, of a copy that replaces the model.

    Call this before a long computation, so that errors are raised early.
    """
    if in_place == (output is not None):
        raise BnstatError("output", "pass either output or in_place")
    return layout(footprint(source), None if output is None else fspath(output))


def layout(original: Footprint, output: str | None) -> Layout:
    """Return the layout of a copy at `output`; if None, of a copy that replaces the original."""
    if output is None:
        files = {os.path.join(original.folder, file): file for file in original.files}
        if original.kind != "folder":
            return Layout(original.folder, original.files, original.name, files, replaces=True)
        parent, name = os.path.split(os.path.realpath(original.folder))
        files, folders = _whole_folder(original.folder, name)
        return Layout(parent, [name], name, files, folders, replaces=True)
    if not output:
        raise BnstatError("output", "is empty", "pass a path for the copy")
    if original.kind == "folder" or original.within:
        return _in_a_new_folder(original, output)
    return _beside(original, output)


def _in_a_new_folder(original: Footprint, output: str) -> Layout:
    parent, name = os.path.split(output.rstrip("/"))
    parent = _existing(parent, output)
    target = os.path.join(parent, name)
    if os.path.lexists(target):
        _refuse_original(original.folder, target)
        if not os.path.isdir(target) or os.listdir(target):
            raise BnstatError(output, "exists already", _EXISTS)
    root, destination = os.path.realpath(original.folder), os.path.realpath(parent)
    if f"{destination}/".startswith(f"{root.rstrip('/')}/"):
        raise BnstatError(output, "is inside the model itself", "choose another folder")
    if original.kind == "folder":
        inside = os.path.join(name, os.path.basename(root)) if original.within else name
        files, folders = _whole_folder(original.folder, inside)
        return Layout(parent, [name], name, files, {name: None, **folders})
    folder = original.folder
    files = {os.path.join(folder, file): os.path.join(name, file) for file in original.files}
    is_checkpoint = original.kind == "checkpoint"
    state = (os.path.join(name, STATE), state_text(original.name)) if is_checkpoint else None
    return Layout(parent, [name], name, files, {name: None}, state)


def _beside(original: Footprint, output: str) -> Layout:
    has_prefix = original.kind == "checkpoint"
    if os.path.isdir(output) or output.endswith("/"):
        parent, name = output.rstrip("/") or "/", original.name
    else:
        parent, name = os.path.split(output)
        if has_prefix:
            match = DATA.match(name)
            name = match["prefix"] if match else name.removesuffix(INDEX).removesuffix(_META)
    parent = _existing(parent, output)
    # Files to which another file refers keep their names.
    names = {
        file: name + file[len(original.name) :] if has_prefix or file == original.name else file
        for file in original.files
    }
    for file, copy in names.items():
        target = os.path.join(parent, copy)
        if os.path.lexists(target):
            if original.kind == "files" and file != original.name:
                what = "exists already, but the copy needs this name for a shard"
                raise BnstatError(target, what, "write the copy to another folder")
            _refuse_original(os.path.join(original.folder, file), target)
            raise BnstatError(target, "exists already", _EXISTS)
    files = {os.path.join(original.folder, file): copy for file, copy in names.items()}
    return Layout(parent, list(names.values()), name, files)


def _existing(parent: str, output: str) -> str:
    parent = parent or "."
    if not os.path.isdir(parent):
        raise NotFoundError(output, f"the folder {parent} does not exist", "create it first")
    return parent


def _refuse_original(original: str, target: str) -> None:
    if os.path.exists(target) and os.path.samefile(original, target):
        raise BnstatError(target, "is the model itself", "choose another name, or use --in-place")


def _whole_folder(folder: str, inside: str) -> tuple[dict[str, str], dict[str, str]]:
    """Return (file -> copy of the file, copy of a folder -> folder) for a copy at `inside`."""
    files: dict[str, str] = {}
    folders = [(inside, folder)]
    for copy, original in folders:  # The list grows meanwhile.
        for entry in sorted(os.scandir(original), key=attrgetter("name")):
            if entry.is_file():
                files[entry.path] = os.path.join(copy, entry.name)
            elif entry.is_dir(follow_symlinks=False):
                folders.append((os.path.join(copy, entry.name), entry.path))
            else:
                what = "a link to a folder" if entry.is_dir() else "not a file or a folder"
                raise BnstatError(entry.path, f"is {what}, and cannot be copied")
    return files, dict(folders)
