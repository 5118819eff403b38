"""From a path to a model that is ready to be measured."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from bnstat.errors import BnstatError, NotFoundError, UnsupportedError
from bnstat.formats.contents import Contents
from bnstat.mending.running import files
from bnstat.mending.running.program import Program
from bnstat.mending.running.signature import Chosen
from bnstat.mending.running.subject import Subject, prepared
from bnstat.model import BatchNorm

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
        imports: Python modules that define a Keras model's custom classes.
        trust: whether ops may reach beyond the graph, and Keras may run code from the file.
    """

    inputs: tuple[str, ...] = ()
    outputs: tuple[str, ...] = ()
    imports: tuple[str, ...] = ()
    trust: bool = False


def open_subject(
    path: str, contents: Contents, layers: Sequence[BatchNorm], running: Running
) -> Subject:
    """The model at a path, ready to be measured.

    Args:
        path: where it was read from.
        contents: what it holds.
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
    opener = _OPENERS.get(kind)
    if opener is None:
        raise UnsupportedError(path, f"a model of the form {kind} cannot be run")
    program = opener(path, contents, Chosen(running.inputs, running.outputs))
    return prepared(program, layers, running.trust)


def require_tensorflow() -> None:
    """Raise where TensorFlow cannot be imported."""
    from bnstat.formats.tensorflow.tensorflow_reader import without_chatter

    try:
        with without_chatter():
            import tensorflow  # noqa: F401
    except ImportError as error:
        raise BnstatError(
            "TensorFlow",
            f"is needed to run a model, and cannot be imported ({error})",
            "install tensorflow",
        ) from error
