"""Where the files of a copy go: next to what, under which names."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from os import PathLike, fspath
from typing import Final

from bnstat.errors import BnstatError, NotFoundError
from bnstat.formats.tensorflow.bundle import INDEX
from bnstat.formats.tensorflow.shards import DATA
from bnstat.formats.tensorflow.state_file import NAME as STATE
from bnstat.formats.tensorflow.state_file import state_text
from bnstat.mending.copying import tree
from bnstat.mending.footprint import Footprint, footprint
from bnstat.model import Source

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


def planned(source: Source, output: str | PathLike[str] | None) -> Layout:
    """Where a copy of a model goes; in the model's own place where no name is given.

    Whoever works long for what is to be written asks this before.

    Args:
        source: the model's.
        output: what the copy is called.

    Raises:
        UnsupportedError: models of that format, or in an archive, are not written.
        NotFoundError: the folder that it is to be in does not exist.
        BnstatError: it is there already, or it would be in the model or around it.
    """
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
