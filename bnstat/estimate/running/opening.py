"""From a path to a model that is ready to be measured."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from bnstat.errors import BnstatError, NotFoundError, UnsupportedError
from bnstat.estimate.running import files
from bnstat.estimate.running.flat_graph import Program
from bnstat.estimate.running.keras_files import keras_file
from bnstat.estimate.running.signature import Chosen
from bnstat.estimate.running.subject import Subject, prepared
from bnstat.formats.contents import Contents
from bnstat.live import LiveModel, is_session
from bnstat.model import Array, BatchNorm, Model

Opener = Callable[[str, Contents, Chosen], Program]

_OPENERS: Mapping[str, Opener] = {
    "saved-model": files.saved_model,
    "frozen-graph": files.frozen_graph,
    "tf1-checkpoint": files.checkpoint_with_graph,
    "tf1-checkpoint-v1": files.checkpoint_with_graph,
    "tf2-checkpoint": files.checkpoint_with_graph,
}


@dataclass(frozen=True)
class Running:
    """How a model is to be run.

    Attributes:
        inputs, outputs: names of what is fed and of the answer, where they are not obvious.
        feeds: name of a placeholder that takes no data -> its value.
        imports: Python modules that define a Keras model's custom classes.
        signature: the name of a SavedModel's signature; the one that is served, if None.
        trust: run ops that are not on the list of allowed ops, and let Keras run code, read files
            and import modules that the file names.
    """

    inputs: tuple[str, ...] = ()
    outputs: tuple[str, ...] = ()
    feeds: Mapping[str, Any] = field(default_factory=dict)
    imports: tuple[str, ...] = ()
    signature: str | None = None
    trust: bool = False


def open_subject(
    path: str, contents: Contents, model: Model, layers: Sequence[BatchNorm], running: Running
) -> Subject:
    """The model at a path, ready to be measured.

    Args:
        path: where it was read from.
        contents: what it holds.
        model: all of its layers.
        layers: those of its layers that are to be measured.
        running: how to run it.

    Raises:
        NotFoundError: the file holds no network that could be run, or no batch norm.
        UnsupportedError: it would have to be trusted.
        BnstatError: TensorFlow is not there, or cannot run it.
    """
    if not layers:
        raise NotFoundError(path, "holds no batch-norm layer with moving statistics")
    require_tensorflow()
    kind = contents.source.format
    if running.signature is not None and kind != "saved-model":
        raise NotFoundError(path, f"is no SavedModel ({kind}), and has no signatures")
    if kind in ("keras-archive", "keras-h5"):
        program = keras_file(path, model, running.imports, running.trust)
    elif kind in _OPENERS:
        chosen = Chosen(
            running.inputs, running.outputs, running.feeds, running.signature, running.trust
        )
        program = _OPENERS[kind](path, contents, chosen)
    else:
        raise UnsupportedError(
            path,
            f"holds weights alone ({kind}), and no network that could be run",
            "give the SavedModel, the .keras or the full .h5; or build the network in Python, load "
            "the weights into it, and call bnstat.recalibrate(model, data)",
        )
    return prepared(program, layers, running.trust)


def subject_of_live(
    thing: Any,
    live: LiveModel,
    layers: Sequence[BatchNorm],
    example: Callable[[], Mapping[str, Array]],
    running: Running,
) -> Subject:
    """A model in memory, ready to be measured.

    Args:
        thing: the model.
        live: its layers.
        layers: those of them that are to be measured.
        example: gives a batch, for models that do not say what they take.
        running: how to run it.

    Raises:
        BnstatError: it has no batch norm, or cannot be run.
    """
    from bnstat.estimate.running.traced import traced

    where = live.model.source.path
    if not layers:
        raise NotFoundError(where, "holds no batch-norm layer with moving statistics")
    require_tensorflow()
    if is_session(thing):
        chosen = Chosen(running.inputs, running.outputs, running.feeds, trust=running.trust)
        return prepared(files.session(where, thing, chosen), layers, running.trust)
    keys = {id(getattr(one, "_value", one)): key for key, one in live.variables.items()}
    return prepared(traced(thing, where, keys, example), layers, running.trust)


def require_tensorflow() -> None:
    """Raise where TensorFlow cannot be imported."""
    from bnstat.formats.tensorflow.checkpoint import without_chatter

    try:
        with without_chatter():
            import tensorflow  # noqa: F401
    except ImportError as error:
        raise BnstatError(
            "TensorFlow",
            f"is needed to run a model, and cannot be imported ({error})",
            "install tensorflow",
        ) from error
