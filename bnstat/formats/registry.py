"""The formats, in the order in which what lies at a path is offered to them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache
from importlib import import_module
from typing import Protocol, cast

from bnstat.formats.contents import Contents, Reading
from bnstat.formats.detection import Format, StoredModel, require_native_reader, step_of
from bnstat.model import Source
from bnstat.storage.files import File, Folder

SITES = (
    "tensorflow.detection.SavedModels",
    "keras.detection.Unzipped",
    "arrays.orbax.Orbax",
    "arrays.detection.DistributedPyTorch",
    "tensorflow.detection.Checkpoints",
    "keras.detection.ShardedWeights",
    "arrays.detection.Sharded",
    "arrays.detection.TensorflowJs",
)
"""Formats of several files: classes that say which are theirs."""

FORMATS = (
    "onnx.file",
    "pytorch.file",
    "keras.h5",
    "keras.weights",
    "arrays.hdf5",
    "arrays.safetensors",
    "keras.archive",
    "arrays.npz",
    "tflite",
    "arrays.pickles",
    "arrays.msgpack",
    "tensorflow.frozen_graph",
)
"""Formats of single files: modules, each a `FileFormat`. Those that know theirs at a
glance come first."""

OF_ANY_ARRAYS = ("arrays.hdf5", "arrays.npz", "arrays.pickles")
"""Those whose files hold arrays of whatever kind: beside models they are data."""


class FileFormat(Protocol):
    """What the module of a format of single files offers."""

    def matches(self, file: File) -> bool:
        """Whether the file's content is of this format."""
        ...

    def open_contents(self, file: File, source: Source) -> Contents:
        """What the file holds. A module may have `open_index` as well, for without values."""
        ...


def formats() -> Iterator[Format]:
    """All formats; each is imported when its turn comes."""
    for name in SITES:
        yield _site(name)
    for name in FORMATS:
        yield _SingleFile(name)


class _SingleFile(Format):
    """A format whose models are a file each; its module is imported when there is a file."""

    def __init__(self, name: str) -> None:
        self._name = name
        self.is_data_beside_models = name in OF_ANY_ARRAYS

    def model_in_file(self, folder: Folder, file: File) -> StoredModel | None:
        module = cast(FileFormat, import_module(f"bnstat.formats.{self._name}"))
        if not module.matches(file):
            return None
        return StoredModel(
            file.name,
            step_of(file.name),
            folder.modified(file.name),
            lambda source, reading: _opener(module, reading)(
                file, require_native_reader(source, reading)
            ),
        )


def _opener(module: FileFormat, reading: Reading) -> Callable[[File, Source], Contents]:
    if reading.values:
        return module.open_contents
    return getattr(module, "open_index", module.open_contents)


@cache
def _site(name: str) -> Format:
    module, _, kind = name.rpartition(".")
    return cast(Format, getattr(import_module(f"bnstat.formats.{module}"), kind)())
