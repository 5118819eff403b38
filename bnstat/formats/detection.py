"""Finders: each finds the models of one or several formats in folders and files.

`locate` asks each finder about a path. A finder reads only as much of a file as recognition needs.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache, partial
from importlib import import_module
from typing import Any, Final, NamedTuple, NoReturn, TypeVar

from bnstat.errors import BnstatError, DamagedError, NotFoundError, UnknownFormatError
from bnstat.formats.contents import Contents, Reading
from bnstat.formats.registry import FORMATS, FileFormat
from bnstat.model import Source
from bnstat.storage.files import File, Folder
from bnstat.text import MAX_JSON, natural_key

T = TypeVar("T")

_STEP = re.compile(r"-(\d{1,18})(\.[A-Za-z]\w*)*$")


class StoredModel(NamedTuple):
    """A model at a path, not opened yet.

    Attributes:
        open: opens the model. It takes a source with the path that the user passed.
        name: the name in the folder; None if the path alone identifies the model.
        step: the training step that the name contains; None if there is none.
        modified: the time of the last change, in seconds since the epoch.
        times: for a model of several files, returns file name -> time of the last change.
        is_tensorflow: True if `Reading.tensorflow` applies to the model.
    """

    open: Callable[[Source, Reading], Contents]
    name: str | None = None
    step: int | None = None
    modified: float = 0.0
    times: Callable[[], Mapping[str, float]] = dict
    is_tensorflow: bool = False


class ModelSet(NamedTuple):
    """The models at a path, oldest first, and the default one."""

    models: Sequence[StoredModel]
    default: StoredModel

    def choose(self, path: str, checkpoint: str | None, step: int | None) -> StoredModel:
        """Return the model with a name, a step or both; the default model if both are None."""
        if checkpoint is None and step is None:
            return self.default
        for model in self.models:
            if checkpoint in (None, model.name) and step in (None, model.step):
                return model
        wanted = f"checkpoint {checkpoint}" if checkpoint is not None else f"step {step}"
        names = [model.name for model in self.models if model.name is not None]
        only = "it is a single model: select no checkpoint or step"
        hint = f"there are: {listed(names)}" if names else only
        raise NotFoundError(path, f"has no {wanted}", hint)


class Finder:
    """Finds the models of a format. A subclass overrides the methods that apply to it.

    Attributes:
        named: True to keep a model's `name` when the user passes the path of a single file.
        beside: prefixes of file names; such files lie beside models but are not models.
        is_data_beside_models: True if files of the format count as models only in a folder that
            contains no other model.
    """

    named: bool = False
    beside: tuple[str, ...] = ()
    is_data_beside_models: bool = False

    def owner(self, folder: Folder, file: File) -> ModelSet | Folder | None:
        """Return the models, or the folder of models, that a file belongs to; None for other files.

        The file may be a git-lfs pointer.
        """

    def model_in_file(self, folder: Folder, file: File) -> StoredModel | None:
        """Return the model that contains a file; None if the file's content is of another format.

        For each file of one model, the returned model has the same name. A damaged file of this
        format raises a `DamagedError`.
        """

    def model_at_prefix(self, folder: Folder, prefix: str) -> StoredModel | None:
        """Return the model whose file names start with `prefix`; no file is named `prefix`."""

    def model_of_folder(self, folder: Folder) -> StoredModel | None:
        """Return the model in a folder, or the model that contains the folder (`variables/`)."""

    def models_within(self, folder: Folder) -> ModelSet | None:
        """Return a folder's models that belong together, such as a run's checkpoints, or None."""

    def is_present_in(self, folder: Folder) -> bool:
        """Return True if a folder clearly is or contains a model of this format. Used for hints."""
        return self.model_of_folder(folder) is not None

    def missing_from(self, folder: Folder) -> Sequence[str]:
        """Return the checkpoints in a state file; called only if the folder has no model."""
        return ()

    def first(self, name: str) -> str | None:
        """Return the name of the main file of the model that contains the file `name`, or None."""

    def has_inside(self, name: str) -> bool:
        """Return True if the subfolder `name` of a model's folder belongs to the model."""
        return True

    def display_name(self, name: str) -> str:
        """Return the name that a user passes for the model that contains the file `name`."""
        return name


class SingleFile(Finder):
    """Finds the models of a format that stores each model in a single file.

    The format's module has two functions. `matches(file)` also returns True for damaged files that
    are clearly of the format. `open_contents(file, source)` opens a file. An optional function,
    `open_index`, opens a file without its values. All of them raise a `DamagedError` for a damaged
    file, and an `UnsupportedError` for a feature of the format that bnstat does not read.
    """

    def __init__(self, row: FileFormat) -> None:
        self._module = row.module
        self.is_data_beside_models = row.is_data_beside_models

    def model_in_file(self, folder: Folder, file: File) -> StoredModel | None:
        module = import_module(f"bnstat.formats.{self._module}")
        if not module.matches(file):
            return None

        def open_(source: Source, reading: Reading) -> Any:
            if not reading.values and hasattr(module, "open_index"):
                return module.open_index(file, source)
            return module.open_contents(file, source)

        return StoredModel(open_, file.name, step_of(file.name), folder.modified(file.name))


@cache
def finders() -> Sequence[Finder]:
    """Return all finders, in the order that `locate` asks them."""
    names = dict.fromkeys(finder for row in FORMATS for finder in row.finders)
    several: list[Finder] = [imported(name)() for name in names]
    return [*several, *(SingleFile(row) for row in FORMATS if row.module)]


def imported(name: str) -> Any:
    """Import a function or a class by its dotted name below `bnstat.formats`."""
    module, _, attribute = name.rpartition(".")
    return getattr(import_module(f"bnstat.formats.{module}"), attribute)


def first_of(candidates: Iterable[T | None]) -> T | None:
    """Return the first candidate that is not None."""
    return next((candidate for candidate in candidates if candidate is not None), None)


def sorted_by_age(models: Sequence[StoredModel], newest: str | None = None) -> ModelSet:
    """Sort models by step, then time; the default is the model named `newest`, or the last."""

    def age(model: StoredModel) -> tuple[object, ...]:
        step = -1 if model.step is None else model.step
        return (step, model.modified, natural_key(model.name or ""))

    ordered = sorted(models, key=age)
    default = next((model for model in ordered if newest and model.name == newest), ordered[-1])
    return ModelSet(ordered, default)


def models_in_files(
    folder: Folder, names: Iterable[str], finders: Sequence[Finder]
) -> list[StoredModel]:
    """Return the distinct models in files; a damaged file becomes a model that cannot be opened."""
    models: dict[str | None, StoredModel] = {}
    for name in names:
        if (file := folder.file(name)) is None:
            continue
        try:
            model = first_of(finder.model_in_file(folder, file) for finder in finders)
        except DamagedError as error:
            open_ = partial(_raise, error)
            model = StoredModel(open_, name, step_of(name), folder.modified(name))
        if model is not None:
            models.setdefault(model.name, model)
    return list(models.values())


def _raise(error: BnstatError, source: Source, reading: Reading) -> NoReturn:
    raise error


def step_of(name: str) -> int | None:
    """Return the step that TensorFlow appends to a checkpoint's name (`-1200`), or None."""
    match = _STEP.search(name)
    return int(match[1]) if match else None


def series_of(name: str) -> str | None:
    """Return a checkpoint's name with `*` in place of the step, or None if it has no step."""
    match = _STEP.search(name)
    return f"{name[: match.start(1)]}*{name[match.end(1) :]}" if match else None


def with_steps(models: Sequence[StoredModel], names: Iterable[str]) -> list[StoredModel]:
    """Return the models, without the step if the number in a model's name is not a step.

    The number is a step if several of the folder's files `names` differ only in this number:
    `model-100.h5` and `model-200.h5`. The number of a single `resnet-50.h5` belongs to the name.
    """
    times = Counter(map(series_of, set(names)))
    return [
        model if times[series_of(model.name or "")] > 1 else model._replace(step=None)
        for model in models
    ]


def first_in_zip(file: File) -> bytes | None:
    """Return the name of a zip's first member, even of a truncated zip; None for other files."""
    head = file.head(30)
    if not head.startswith(b"PK\x03\x04"):
        return None
    return file.head(30 + int.from_bytes(head[26:28], "little"))[30:]


def is_json_with(file: File, *marks: bytes) -> bool:
    """Return True if a file starts like JSON and contains all byte strings in `marks`."""
    if file.size > MAX_JSON or not file.head(64).lstrip().startswith((b"{", b"[")):
        return False
    text = file.read()
    return all(mark in text for mark in marks)


def listed(names: Sequence[str]) -> str:
    """Return the last six names as text for a message."""
    return ("..., " if len(names) > 6 else "") + ", ".join(names[-6:])


_FOREIGN_HEAD: Final = 1 << 16
_UNPACK: Final = "unpack it first"

_LENGTH: Final = rb"[\x80-\xff]{0,4}[\0-\x7f]"
_CORE_ML: Final = (
    rb"\x08[\x01-\x0f]\x12" + _LENGTH + rb"\x0a" + _LENGTH + rb"\x0a[\x01-\x7f][ -~]+\x1a"
)
"""`specificationVersion`, then a `description` whose first input has a name and a type."""

_STARTS: Final = (
    (rb"\Z", "empty", "copy or download it again"),
    (rb"\x93NUMPY", "a single NumPy array",
     "save the arrays by name with numpy.savez: bn/moving_mean, bn/moving_variance, ..."),
    (rb"\x1f\x8b", "compressed by gzip, but not a tar archive", _UNPACK),
    (rb"BZh|\xfd7zXZ\0|\x28\xb5\x2f\xfd", "compressed by bzip2, xz or zstd", _UNPACK),
    (rb"7z\xbc\xaf\x27\x1c|Rar!", "a 7-Zip or RAR archive", _UNPACK),
    (rb"\s*(<\?xml|<!DOCTYPE|<html|<)[^\0]*\Z", "a web page or XML", "download the file itself"),
    (rb'\s*"?\{.*"class_name\\?"\s*:.*"config\\?"\s*:',
     "the architecture of a Keras model alone, without weights",
     "pass the file of weights, and this file as --config"),
    (_CORE_ML, "a Core ML model", "pass the TensorFlow or Keras model that it was converted from"),
)  # fmt: skip
"""A pattern of the first bytes of a file, what the file is, and what to do."""


def is_core_ml(head: bytes) -> bool:
    """Return True if a file starts like a Core ML model, which resembles a SavedModel."""
    return re.match(_CORE_ML, head) is not None


def refuse_foreign(file: File) -> None:
    """Raise an error if a file is of a known kind that is not a model, such as a web page."""
    from bnstat.formats.hdf5.file import is_hdf5

    head = file.head(_FOREIGN_HEAD)
    for pattern, what, hint in _STARTS:
        if re.match(pattern, head, re.DOTALL):
            raise UnknownFormatError(file.path, f"is {what}", hint)
    if is_hdf5(file):
        hint = "pass the .h5 file that contains the weights"
        raise UnknownFormatError(file.path, "is an HDF5 file without arrays of numbers", hint)
