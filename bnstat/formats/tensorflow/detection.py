"""Detection of TensorFlow's models: SavedModels, checkpoints, and the file `checkpoint`.

A training job lists its checkpoints in the file `checkpoint`, a CheckpointState in protobuf's text
format (tensorflow/python/training/checkpoint_state.proto):

    model_checkpoint_path: "model-1200"
    all_model_checkpoint_paths: "model-1000"
    all_model_checkpoint_paths: "model-1200"

Folders move, so only the last component of a path is used.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

from bnstat.errors import BnstatError, NotFoundError
from bnstat.formats.contents import Contents, Reading
from bnstat.formats.detection import (
    Finder,
    ModelSet,
    StoredModel,
    is_core_ml,
    models_in_files,
    sorted_by_age,
    step_of,
)
from bnstat.formats.tensorflow.bundle import BINARY, DATA, INDEX, TEXT, TEXT_START, VARIABLES
from bnstat.formats.tensorflow.checkpoint import open_checkpoint, open_checkpoint_v1
from bnstat.formats.tensorflow.sstable import Table, is_table
from bnstat.model import Source
from bnstat.storage.files import File, Folder

NAME = "checkpoint"
SHARD = re.compile(r"^(?P<prefix>.*)-(?P<shard>\d{5})-of-(?P<shards>\d{5})$", re.DOTALL)
"""The name of a shard of a V1 checkpoint."""

_LINE = re.compile(rb'^\s*(\w+)\s*:\s*(["\'])((?:\\.|(?!\2)[^\\])*)\2\s*$')
_ESCAPE = re.compile(rb"\\([0-7]{1,3}|x[0-9a-fA-F]{1,2}|.)", re.DOTALL)
_ESCAPES = {b"n": b"\n", b"t": b"\t", b"r": b"\r"}
_MAX_STATE = 16 << 20
_FIELDS = (b"model_checkpoint_path", b"all_model")
_START = re.compile(rb"\x08\x01\x12([\x80-\xff]{0,4}[\x01-\x7f][\x0a\x12\x1a\x22\x2a\x32\x3a]|\0)")
"""The start of a SavedModel: `saved_model_schema_version: 1`, then a MetaGraphDef, which starts
with one of its seven fields. An ONNX file of version 1 has the producer's name instead of the
MetaGraphDef; this name starts with a letter."""
_META = ".meta"
_V1_PATTERN = re.compile(r"^(?P<prefix>.*)-[?*]+-of-(?P<shards>\d{5})$", re.DOTALL)


class State(NamedTuple):
    """The checkpoints that a file `checkpoint` lists: the newest, and all, oldest first."""

    newest: str | None = None
    names: tuple[str, ...] = ()


def read_state(folder: Folder, name: str = NAME) -> State:
    """Return the checkpoints that a file lists; an empty `State` for a missing or invalid file."""
    file = folder.file(name)
    if file is None or file.size > _MAX_STATE or not file.head(64).lstrip().startswith(_FIELDS):
        return State()
    newest, names = None, []
    for match in filter(None, map(_LINE.match, file.read().splitlines())):
        path = _ESCAPE.sub(_unescaped, match[3]).decode("utf-8", "surrogateescape")
        name = re.split(r"[/\\]", path)[-1]
        if match[1] == b"model_checkpoint_path":
            newest = name
        elif match[1] == b"all_model_checkpoint_paths":
            names.append(name)
    return State(newest, tuple(dict.fromkeys(filter(None, (*names, newest)))))


def _unescaped(match: re.Match[bytes]) -> bytes:
    code = match[1]
    if code[:1] in b"01234567":
        return bytes([int(code, 8) & 0xFF])
    if code[:1] == b"x" and len(code) > 1:
        return bytes([int(code[1:], 16)])
    return _ESCAPES.get(code, code)


def state_text(name: str) -> str:
    """Return the text of a file `checkpoint` that lists the checkpoint `name`."""
    quoted = "".join(
        chr(byte) if 0x20 <= byte < 0x7F and byte not in b'"\\' else f"\\{byte:03o}"
        for byte in name.encode("utf-8", "surrogateescape")
    )
    return f'model_checkpoint_path: "{quoted}"\nall_model_checkpoint_paths: "{quoted}"\n'


def is_saved_model(file: File) -> bool:
    """Return True if the content starts like a `saved_model.pb`, in binary or text form."""
    head = file.head(4096)
    is_binary = _START.match(head) is not None and not is_core_ml(head)
    return is_binary or TEXT_START.match(head) is not None


def graph_file(folder: Folder) -> File | None:
    """Return the file of a SavedModel's graph, or None. The content of a `.pbtxt` is checked."""
    text = None if (binary := folder.file(BINARY)) is not None else folder.file(TEXT)
    return text if text is not None and is_saved_model(text) else binary


def has_saved_model(folder: Folder) -> bool:
    """Return True if the folder contains the graph or the variables' index of a SavedModel."""
    index = f"{VARIABLES}/{VARIABLES}{INDEX}"
    folder.expect((BINARY, index))
    return graph_file(folder) is not None or folder.file(index) is not None


def is_v1(file: File) -> bool:
    """Return True if the file is a shard of a V1 checkpoint."""
    header = Table(file).get(b"") if is_table(file) else None
    # Field 1 is a message in V1 checkpoints (`meta`), and a varint in bundles.
    return header is not None and header[:1] == b"\x0a"


class SavedModels(Finder):
    """Finds SavedModel folders, and `saved_model.pb` files of any name."""

    def owner(self, folder: Folder, file: File) -> ModelSet | Folder | None:
        return _saved_model_around(folder)

    def model_in_file(self, folder: Folder, file: File) -> StoredModel | None:
        return _saved_model(folder, file) if is_saved_model(file) else None

    def model_of_folder(self, folder: Folder) -> StoredModel | None:
        top = _saved_model_around(folder) or folder
        return _saved_model(top) if has_saved_model(top) else None

    def has_inside(self, name: str) -> bool:
        return name in (VARIABLES, "assets", "assets.extra")


def _saved_model_around(folder: Folder) -> Folder | None:
    """Return the SavedModel whose `variables/` is `folder`; None for other folders."""
    parent = folder.parent() if folder.name == VARIABLES else None
    return parent if parent is not None and has_saved_model(parent) else None


def _saved_model(folder: Folder, file: File | None = None) -> StoredModel:
    def times() -> dict[str, float]:
        variables = folder.folder(VARIABLES)
        return folder.times() | ({} if variables is None else variables.times())

    def open_(source: Source, reading: Reading) -> Contents:
        from bnstat.formats.tensorflow.saved_model import open_saved_model

        return open_saved_model(folder, source, reading, file or graph_file(folder))

    return StoredModel(open_, times=times, is_tensorflow=True)


class Checkpoints(Finder):
    """Finds bundles, V1 checkpoints, and the checkpoints that a file `checkpoint` lists."""

    named = True
    beside = ("events.out.tfevents", "graph.pbtxt")

    def owner(self, folder: Folder, file: File) -> ModelSet | Folder | None:
        name, prefix = file.name, None
        if (match := DATA.match(name)) and not is_table(file):
            prefix = match["prefix"]
        elif name.endswith(_META):
            prefix = name.removesuffix(_META)
        if prefix is not None and (model := self.model_at_prefix(folder, prefix)) is not None:
            return sorted_by_age([model])
        state = read_state(folder, name)
        return None if state == State() else _models_of_run(folder, state) or folder

    def model_in_file(self, folder: Folder, file: File) -> StoredModel | None:
        if not is_table(file):
            return None
        name = file.name
        if is_v1(file):
            return _v1(folder, SHARD.match(name), name)
        if not name.endswith(INDEX):
            if folder.file(name + INDEX) is not None:
                return _bundle(folder, name)
            what = "is the index of a checkpoint, but its name does not end in .index"
            hint = "rename it to PREFIX.index if its data files are named PREFIX.data-*"
            raise BnstatError(file.path, what, hint)
        return _bundle(folder, name.removesuffix(INDEX))

    def model_at_prefix(self, folder: Folder, prefix: str) -> StoredModel | None:
        if folder.file(prefix + INDEX) is not None:
            return _bundle(folder, prefix)
        if (v1 := _v1_checkpoint(folder, prefix)) is not None:
            return v1
        if data := folder.matching(prefix + ".data-"):
            match = DATA.match(data[0])
            path = f"{folder.path}/{match['prefix'] if match else data[0]}{INDEX}"
            problem = "the checkpoint's index file is missing"
            raise NotFoundError(path, problem, f"copy it beside {data[0]}")
        return None

    def models_within(self, folder: Folder) -> ModelSet | None:
        return _models_of_run(folder, read_state(folder))

    def is_present_in(self, folder: Folder) -> bool:
        return folder.file(NAME) is not None or bool(folder.matching("", INDEX))

    def missing_from(self, folder: Folder) -> Sequence[str]:
        return read_state(folder).names

    def first(self, name: str) -> str | None:
        if name.endswith((INDEX, _META)):
            return name.removesuffix(_META).removesuffix(INDEX) + INDEX
        if match := DATA.match(name):
            return match["prefix"] + INDEX
        if match := SHARD.match(name):
            return f"{match['prefix']}-{0:05d}-of-{match['shards']}"
        return None

    def display_name(self, name: str) -> str:
        return name.split(".data-")[0].removesuffix(INDEX)


def _models_of_run(folder: Folder, state: State) -> ModelSet | None:
    """Return a folder's bundles and its listed V1 checkpoints, or else all V1 checkpoints."""
    if folder.can_list:
        names = folder.names()
    else:
        indexes = [name + INDEX for name in state.names]
        folder.expect(indexes)
        names = [index for index in indexes if folder.file(index) is not None]
    prefixes = (name.removesuffix(INDEX) for name in names if name.endswith(INDEX))
    models = {prefix: _bundle(folder, prefix) for prefix in prefixes}
    for name in state.names:
        if _v1_prefix(name) not in models and (v1 := _v1_checkpoint(folder, name)):
            models[v1.name or name] = v1
    if not models:
        names = [name for name in names if not name.endswith(_META) and not DATA.match(name)]
        in_files = models_in_files(folder, names, [Checkpoints()])
        models = {model.name or "": model for model in in_files}
    newest = None if state.newest is None else _v1_prefix(state.newest)
    return sorted_by_age(list(models.values()), newest) if models else None


def _bundle(folder: Folder, prefix: str) -> StoredModel:
    open_, times = partial(open_checkpoint, folder, prefix), partial(folder.times, prefix + ".")
    modified = folder.modified(prefix + INDEX)
    return StoredModel(open_, prefix, step_of(prefix), modified, times, is_tensorflow=True)


def _v1_checkpoint(folder: Folder, name: str) -> StoredModel | None:
    """Return the V1 checkpoint with this file name, prefix or pattern (`m-?????-of-00002`)."""
    file = folder.file(name)
    if file is not None and is_v1(file):
        return _v1(folder, None, name)
    prefix = _v1_prefix(name)
    pattern = _V1_PATTERN.match(name)
    if pattern and not folder.can_list and folder.file(f"{prefix}-00000-of-{pattern['shards']}"):
        return _v1(folder, pattern)
    for shard in folder.matching(prefix + "-"):
        match = SHARD.match(shard)
        if match and match["prefix"] == prefix:
            return _v1(folder, match)
    return None


def _v1_prefix(name: str) -> str:
    match = _V1_PATTERN.match(name)
    return match["prefix"] if match else name


def _v1(folder: Folder, sharded: re.Match[str] | None, name: str = "") -> StoredModel:
    """Return the V1 checkpoint in the file `name`, or in all shards if `sharded` matches one."""
    prefix, names = name, [name]
    if sharded:
        prefix, count = sharded["prefix"], sharded["shards"]
        names = [f"{prefix}-{shard:05d}-of-{count}" for shard in range(int(count))]

    def open_(source: Source, reading: Reading) -> Contents:
        files = []
        for name in names:
            if (file := folder.file(name)) is None:
                path = f"{folder.path}/{name}"
                raise NotFoundError(path, "this shard of the checkpoint is missing", "copy it, too")
            files.append(file)
        return open_checkpoint_v1(folder, prefix, files, source, reading)

    def times() -> dict[str, float]:
        return {name: folder.modified(name) for name in names}

    modified = folder.modified(names[0])
    return StoredModel(open_, prefix, step_of(prefix), modified, times, is_tensorflow=True)
