"""From the path that a user types to the models that lie there.

A path may be a model file, one of a checkpoint's files, a checkpoint's prefix, a SavedModel, or
a folder that holds checkpoints, Keras files or numbered SavedModels. What a file is, is told by
its content; names only tie a checkpoint's files together.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from bnstat.errors import BnstatError, DamagedError, NotFoundError, UnknownFormatError
from bnstat.formats.contents import Contents
from bnstat.formats.register import file_format, foreign_format
from bnstat.formats.tensorflow import state_file
from bnstat.formats.tensorflow.bundle import DATA, INDEX
from bnstat.formats.tensorflow.checkpoint import open_checkpoint
from bnstat.formats.tensorflow.checkpoint_v1 import SHARD, is_v1, open_checkpoint_v1
from bnstat.formats.tensorflow.saved_model import (
    VARIABLES,
    has_saved_model,
    is_saved_model,
    open_saved_model,
)
from bnstat.formats.tensorflow.tables.sstable import is_table
from bnstat.formats.tensorflow.tensors import Reading
from bnstat.model import Source
from bnstat.natural import natural_key
from bnstat.storage.files import File, Folder
from bnstat.storage.local import LocalFolder, kind_of

Opener = Callable[[Source, Reading], Contents]
"""Opens a model: where the user pointed, and how to read."""

_V1_GLOB = re.compile(r"^(?P<prefix>.*)-[?*]+-of-(?P<shards>\d{5})$", re.DOTALL)
_STEP = re.compile(r"-(\d+)$")
_VERSION = re.compile(r"^\d+$")
_EXTENSIONS = (".weights.h5", ".h5", ".hdf5", ".keras", ".ckpt", ".pb", ".weights.json")
_NOT_MODELS = ("events.out.tfevents", "graph.pbtxt")


class Found(NamedTuple):
    """A model that lies at a path.

    Attributes:
        name: the checkpoint's or file's own name in its folder; None where it stands alone.
        step: the training step that the name tells.
        modified: when it was saved, in seconds since the epoch.
        open: opens it.
        times: where it is several files, when each of them was saved.
    """

    name: str | None
    step: int | None
    modified: float
    open: Opener
    times: Callable[[], Mapping[str, float]] = dict


class Place(NamedTuple):
    """What lies at a path: the models, oldest first, and the one that is meant by default."""

    models: Sequence[Found]
    default: Found

    def choose(self, path: str, checkpoint: str | None, step: int | None) -> Found:
        """The model of that name or step; the default where neither is asked for.

        Raises:
            NotFoundError: there is none.
        """
        if checkpoint is None and step is None:
            return self.default
        for model in self.models:
            if checkpoint in (None, model.name) and step in (None, model.step):
                return model
        wanted = f"checkpoint {checkpoint}" if checkpoint is not None else f"step {step}"
        there = [model.name for model in self.models if model.name is not None]
        hint = f"there are: {_listed(there)}" if there else "it is a single model: leave that out"
        raise NotFoundError(path, f"has no {wanted}", hint)


def locate(path: str) -> Place:
    """The models at a path.

    Raises:
        NotFoundError: there is no such path, or nothing to read there.
        UnknownFormatError: the file is in no format that bnstat reads.
        DamagedError: it is a git-lfs pointer or a damaged archive.
    """
    parent, name = os.path.split(path.rstrip("/") or path)
    parent = parent or "."
    try:
        kind = kind_of(path)
        if kind == stat.S_IFDIR:
            return _in_folder(LocalFolder(path))
        folder = LocalFolder(parent)
        if (file := folder.file(name)) is not None:
            return _of_file(folder, file)
        if kind is not None:
            raise BnstatError(path, "is neither a file nor a folder")
        if kind_of(parent) == stat.S_IFDIR and (found := _checkpoint(folder, name)):
            return _single(found)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise BnstatError(path, f"cannot be opened: {reason}") from error
    raise _nothing_at(path, parent, name)


def _of_file(folder: Folder, file: File) -> Place:
    name = file.name
    if folder.name == VARIABLES and (parent := folder.parent()) and has_saved_model(parent):
        return _in_folder(parent)
    if (match := DATA.match(name)) and not is_table(file):
        return _single(_checkpoint(folder, match["prefix"]) or _missing_index(folder, name))
    if name.endswith(".meta") and (found := _checkpoint(folder, name.removesuffix(".meta"))):
        return _single(found)
    file.refuse_lfs_pointer()
    if (state := state_file.read_state(folder, name)) is not None:
        return _in_folder(folder, state)
    if (found := _model_file(folder, file)) is not None:
        return _single(found if is_table(file) else found._replace(name=None))
    from bnstat.storage.archive import open_archive

    if (archive := open_archive(file)) is not None:
        return _in_archive(archive)
    foreign = foreign_format(file)
    raise UnknownFormatError(
        file.path,
        f"is {foreign}, not a TensorFlow or Keras file"
        if foreign
        else "is in no format that bnstat knows",
        "bnstat reads SavedModels, checkpoints, .h5, .keras and GraphDef files",
    )


def _model_file(folder: Folder, file: File) -> Found | None:
    """The model that a single file holds, or belongs to."""
    name = file.name
    if is_table(file):
        if not is_v1(file):
            if not name.endswith(INDEX):
                raise BnstatError(
                    file.path,
                    "is the index of a checkpoint, but its name does not end in .index",
                    "give it back the name that its data files start with",
                )
            return _bundle(folder, name.removesuffix(INDEX))
        match = SHARD.match(name)
        return _v1(folder, match["prefix"], match["shards"]) if match else _v1_file(folder, file)
    if is_saved_model(file):
        return _saved_model(folder, file)
    if (format_ := file_format(file)) is not None:
        return Found(
            name,
            step_of(name),
            folder.modified(name),
            lambda source, reading: format_.open_contents(file, _natively(source, reading)),
            lambda: folder.times(name.removesuffix(".weights.json") + "_"),
        )
    return None


def _in_folder(folder: Folder, state: state_file.State | None = None) -> Place:
    if folder.name == VARIABLES and (parent := folder.parent()) and has_saved_model(parent):
        folder = parent
    if has_saved_model(folder):
        return _single(_saved_model(folder))
    if (unzipped := _unzipped_keras(folder)) is not None:
        return _single(unzipped)
    if state is None:
        state = state_file.read_state(folder)
    checkpoints = _checkpoints(folder, state)
    if checkpoints:
        return _place(checkpoints, state)
    if files := _model_files(folder):
        return _place(files, None)
    if versions := _versions(folder):
        return _place(versions, None)
    if (refused := _pointers(folder)) is not None:
        refused.refuse_lfs_pointer()
    raise NotFoundError(folder.path, "holds no model", _hint_below(folder))


def _in_archive(folder: Folder) -> Place:
    """The models in an archive; folders with nothing beside them are walked through."""
    while not has_saved_model(folder):
        names = folder.names()
        below = folder.folder(names[0]) if len(names) == 1 else None
        if below is None:
            break
        folder = below
    return _in_folder(folder)


def _checkpoints(folder: Folder, state: state_file.State | None) -> list[Found]:
    names = folder.names()
    found = [_bundle(folder, name.removesuffix(INDEX)) for name in names if name.endswith(INDEX)]
    bundles = {checkpoint.name for checkpoint in found}
    listed = () if state is None else (*state.all, *([state.newest] if state.newest else ()))
    for name in dict.fromkeys(listed):
        if _prefix(name) not in bundles and (v1 := _v1_checkpoint(folder, name)) is not None:
            found.append(v1)
            bundles.add(v1.name)
    return found or _unlisted_v1(folder, names)


def _unlisted_v1(folder: Folder, names: Sequence[str]) -> list[Found]:
    listed = [name for name in names if not name.endswith(".meta") and not DATA.match(name)]
    return _files(folder, listed, is_table)


def _model_files(folder: Folder) -> list[Found]:
    names = [name for name in folder.names() if not name.startswith(_NOT_MODELS)]
    return _files(folder, names, lambda file: not is_table(file))


def _files(folder: Folder, names: Sequence[str], wanted: Callable[[File], bool]) -> list[Found]:
    """The models in a folder's single files; a damaged one tells so when it is opened."""
    found: dict[str | None, Found] = {}
    for name in names:
        file = folder.file(name)
        if file is None or not wanted(file):
            continue
        try:
            model = _model_file(folder, file)
        except DamagedError as error:
            model = _broken(folder, name, error)
        if model is not None:
            found.setdefault(model.name, model)
    return list(found.values())


def _broken(folder: Folder, name: str, error: BnstatError) -> Found:
    def open_(source: Source, reading: Reading) -> Contents:
        raise error

    return Found(name, step_of(name), folder.modified(name), open_)


def _versions(folder: Folder) -> list[Found]:
    """Numbered SavedModels, as TensorFlow Serving keeps them."""
    found = []
    for name in folder.names():
        below = folder.folder(name) if _VERSION.match(name) else None
        if below is not None and has_saved_model(below):
            model = _saved_model(below)
            modified = folder.modified(name)
            found.append(model._replace(name=name, step=int(name), modified=modified))
    return found


def _unzipped_keras(folder: Folder) -> Found | None:
    config, weights = folder.file("config.json"), folder.file("model.weights.h5")
    if config is None or weights is None:
        return None
    from bnstat.formats.keras.archive import open_folder

    return _alone(
        lambda source, reading: open_folder(folder, _natively(source, reading)), folder.times
    )


def _saved_model(folder: Folder, file: File | None = None) -> Found:
    def times() -> dict[str, float]:
        variables = folder.folder(VARIABLES)
        return folder.times() | ({} if variables is None else variables.times())

    return _alone(lambda source, reading: open_saved_model(folder, source, reading, file), times)


def _checkpoint(folder: Folder, prefix: str) -> Found | None:
    """The checkpoint of that prefix, of either kind."""
    if folder.file(prefix + INDEX) is not None:
        return _bundle(folder, prefix)
    if (v1 := _v1_checkpoint(folder, prefix)) is not None:
        return v1
    if data := folder.matching(prefix + ".data-"):
        return _missing_index(folder, data[0])
    return None


def _bundle(folder: Folder, prefix: str) -> Found:
    return Found(
        prefix,
        step_of(prefix),
        folder.modified(prefix + INDEX),
        lambda source, reading: open_checkpoint(folder, prefix, source, reading),
        lambda: folder.times(prefix + "."),
    )


def _missing_index(folder: Folder, data: str) -> Found:
    match = DATA.match(data)
    prefix = match["prefix"] if match else data
    raise NotFoundError(
        f"{folder.path}/{prefix}{INDEX}",
        "the checkpoint's index file is missing",
        f"it belongs beside {data}",
    )


def _v1_checkpoint(folder: Folder, name: str) -> Found | None:
    """The V1 checkpoint that a prefix or a pattern such as `m-?????-of-00002` names."""
    file = folder.file(name)
    if file is not None and is_v1(file):
        return _v1_file(folder, file)
    prefix = _prefix(name)
    for shard in folder.matching(prefix + "-"):
        match = SHARD.match(shard)
        if match and match["prefix"] == prefix:
            return _v1(folder, prefix, match["shards"])
    return None


def _v1_file(folder: Folder, file: File) -> Found:
    name = file.name
    return Found(
        name,
        step_of(name),
        folder.modified(name),
        lambda source, reading: open_checkpoint_v1(folder, name, [file], source, reading),
    )


def _v1(folder: Folder, prefix: str, shards: str) -> Found:
    names = [f"{prefix}-{shard:05d}-of-{shards}" for shard in range(int(shards))]

    def open_(source: Source, reading: Reading) -> Contents:
        files = []
        for name in names:
            file = folder.file(name)
            if file is None:
                raise NotFoundError(f"{folder.path}/{name}", "this shard is missing")
            files.append(file)
        return open_checkpoint_v1(folder, prefix, files, source, reading)

    return Found(
        prefix,
        step_of(prefix),
        folder.modified(names[0]),
        open_,
        lambda: folder.times(prefix + "-"),
    )


def _prefix(name: str) -> str:
    match = _V1_GLOB.match(name)
    return match["prefix"] if match else name


def _place(models: list[Found], state: state_file.State | None) -> Place:
    ordered = sorted(models, key=_age)
    default = ordered[-1]
    if state is not None and state.newest is not None:
        named = [model for model in ordered if model.name == _prefix(state.newest)]
        default = named[0] if named else default
    return Place(ordered, default)


def _age(model: Found) -> tuple[object, ...]:
    step = -1 if model.step is None else model.step
    return (step, model.modified, natural_key(model.name or ""))


def _natively(source: Source, reading: Reading) -> Source:
    """The source, for formats that TensorFlow's checkpoint reader does not read."""
    if reading.tensorflow:
        raise BnstatError(
            source.path,
            "TensorFlow's reader reads checkpoints and SavedModels alone",
            "leave --reader out",
        )
    return source


def _alone(open_: Opener, times: Callable[[], Mapping[str, float]] = dict) -> Found:
    return Found(None, None, 0.0, open_, times)


def _single(model: Found) -> Place:
    return Place([model], model)


def step_of(name: str) -> int | None:
    """The step in a checkpoint's name, which TensorFlow appends as `-1200`."""
    for extension in _EXTENSIONS:
        name = name.removesuffix(extension)
    match = _STEP.search(name)
    return int(match[1]) if match else None


def _pointers(folder: Folder) -> File | None:
    """A git-lfs pointer among the folder's files, if there is one."""
    for name in folder.names():
        file = folder.file(name)
        if file is not None and file.is_lfs_pointer():
            return file
    return None


def _hint_below(folder: Folder) -> str:
    below = []
    for name in folder.names()[:200]:
        inner = folder.folder(name)
        if inner is not None and (
            has_saved_model(inner) or inner.file(state_file.NAME) or inner.matching("", INDEX)
        ):
            below.append(f"{folder.path}/{name}")
    if below:
        return f"there are models in {_listed(below)}"
    return "a SavedModel, a checkpoint, a .keras or an .h5 file is looked for"


def _nothing_at(path: str, parent: str, name: str) -> NotFoundError:
    if kind_of(parent) != stat.S_IFDIR:
        return NotFoundError(path, "no such path", f"{parent} does not exist")
    names = {near.split(".data-")[0].removesuffix(INDEX) for near in LocalFolder(parent).names()}
    import difflib

    near = difflib.get_close_matches(name, names, n=3)
    hint = f"did you mean {_listed([os.path.join(parent, name) for name in near])}?" if near else ""
    return NotFoundError(path, "no such file, folder or checkpoint", hint)


def _listed(names: Sequence[str | None]) -> str:
    shown = [str(name) for name in names[-6:]]
    return ("..., " if len(names) > 6 else "") + ", ".join(shown)
