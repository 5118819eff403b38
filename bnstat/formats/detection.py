"""Where models lie: what a format says of the files and folders that are its own.

A format is asked by what lies at a path. It answers with the models that it finds there, or with
None; it looks at no more of the files than it takes to know them.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

from bnstat.errors import BnstatError, DamagedError, NotFoundError
from bnstat.formats.contents import Contents, Reading
from bnstat.model import Source
from bnstat.storage.files import File, Folder
from bnstat.text import natural_key

Opener = Callable[[Source, Reading], Contents]
"""Opens a model: where the user pointed, and how to read."""

_STEP = re.compile(r"-(\d{1,18})(\.[A-Za-z]\w*)*$")


class StoredModel(NamedTuple):
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


class ModelSet(NamedTuple):
    """What lies at a path: the models, oldest first, and the one that is meant by default."""

    models: Sequence[StoredModel]
    default: StoredModel

    def choose(self, path: str, checkpoint: str | None, step: int | None) -> StoredModel:
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
        hint = f"there are: {listed(there)}" if there else "it is a single model: leave that out"
        raise NotFoundError(path, f"has no {wanted}", hint)


class Format:
    """What a format knows of places. Each answers the questions that apply to it.

    Attributes:
        named: whether a model keeps its name where its file alone is pointed at, as one of many
            checkpoints does.
        beside: what the names of files start with that lie beside models and are none.
        is_data_beside_models: whether its files may be models, but are none in a folder that
            has others.
    """

    named: bool = False
    beside: tuple[str, ...] = ()
    is_data_beside_models: bool = False

    def owner(self, folder: Folder, file: File) -> ModelSet | Folder | None:
        """The models that a file stands for by its name, or the folder whose models are meant.

        The file may be a git-lfs pointer still.
        """

    def model_in_file(self, folder: Folder, file: File) -> StoredModel | None:
        """The model that a file holds, or is a part of, by its content.

        All files of one model give it the same name. Raises `DamagedError` where the file is of
        this format, yet damaged.
        """

    def model_at_prefix(self, folder: Folder, prefix: str) -> StoredModel | None:
        """The model whose files start so, where there is no file of that name."""

    def model_of_folder(self, folder: Folder) -> StoredModel | None:
        """The model that a folder is, or is a part of."""

    def models_within(self, folder: Folder) -> ModelSet | None:
        """The models in a folder that belong together, as the checkpoints of a training run."""

    def is_present_in(self, folder: Folder) -> bool:
        """Whether a folder plainly is or has such models, at a glance, for a hint."""
        return self.model_of_folder(folder) is not None

    def missing_from(self, folder: Folder) -> Sequence[str]:
        """The names of models that a folder without any says that it has, oldest first."""
        del folder
        return ()

    def first(self, name: str) -> str | None:
        """The file by which the model is opened that a file of that name would be a part of.

        None where the name does not tell of other files. It is `name` itself for the first.
        """

    def has_inside(self, name: str) -> bool:
        """Whether a folder of that name, in a folder that is such a model, is a part of it."""
        del name
        return True

    def display_name(self, name: str) -> str:
        """What people call the model that a file of that name belongs to, for a hint."""
        return name


def unnamed(open_: Opener, times: Callable[[], Mapping[str, float]] = dict) -> StoredModel:
    """A model that has no name of its own."""
    return StoredModel(None, None, 0.0, open_, times)


def single(model: StoredModel) -> ModelSet:
    """The place of one model."""
    return ModelSet([model], model)


def sorted_by_age(models: Sequence[StoredModel], newest: str | None = None) -> ModelSet:
    """The place of several models: by their steps, else their times.

    Args:
        models: one at least.
        newest: the name of the one that is meant by default, if there is one of that name.
    """

    def age(model: StoredModel) -> tuple[object, ...]:
        step = -1 if model.step is None else model.step
        return (step, model.modified, natural_key(model.name or ""))

    ordered = sorted(models, key=age)
    default = next((model for model in ordered if newest and model.name == newest), ordered[-1])
    return ModelSet(ordered, default)


def models_in_files(
    folder: Folder,
    names: Iterable[str],
    model_in_file: Callable[[Folder, File], StoredModel | None],
) -> list[StoredModel]:
    """The models in some of a folder's files, each once.

    Args:
        folder: the folder.
        names: the files' names; those of folders are passed over.
        model_in_file: finds the model in a file. A damaged one tells so when it is opened.
    """
    found: dict[str | None, StoredModel] = {}
    for name in names:
        if (file := folder.file(name)) is None:
            continue
        try:
            model = model_in_file(folder, file)
        except DamagedError as error:
            model = _broken(folder, name, error)
        if model is not None:
            found.setdefault(model.name, model)
    return list(found.values())


def _broken(folder: Folder, name: str, error: BnstatError) -> StoredModel:
    def open_(source: Source, reading: Reading) -> Contents:
        raise error

    return StoredModel(name, step_of(name), folder.modified(name), open_)


def step_of(name: str) -> int | None:
    """The step in a checkpoint's name, which TensorFlow appends as `-1200`."""
    match = _STEP.search(name)
    return int(match[1]) if match else None


def series_of(name: str) -> str | None:
    """What the names of one run's checkpoints share: the name with `*` for its last number."""
    match = _STEP.search(name)
    return f"{name[: match.start(1)]}*{name[match.end(1) :]}" if match else None


def with_steps(models: Sequence[StoredModel], names: Iterable[str]) -> list[StoredModel]:
    """Return models with a step only where several names differ by that number alone.

    `model-100.h5` and `model-200.h5` are checkpoints of a run; the number of a single
    `resnet-50.h5` is a part of its name.

    Args:
        models: models in one folder, each with the step that its name alone suggests.
        names: the names of the files there.
    """
    times = Counter(map(series_of, set(names)))
    return [
        model if times[series_of(model.name or "")] > 1 else model._replace(step=None)
        for model in models
    ]


def require_native_reader(source: Source, reading: Reading) -> Source:
    """The source, for formats that TensorFlow's checkpoint reader does not read.

    Raises:
        BnstatError: that reader is asked for.
    """
    if reading.tensorflow:
        raise BnstatError(
            source.path,
            "TensorFlow's reader reads checkpoints and SavedModels alone",
            "leave --reader out",
        )
    return source


def listed(names: Sequence[str]) -> str:
    """The last few of some names, for a message."""
    return ("..., " if len(names) > 6 else "") + ", ".join(names[-6:])
