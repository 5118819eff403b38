"""A model as TensorFlow can run it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from bnstat.model import Array


@dataclass(frozen=True)
class Input:
    """What a model takes.

    Attributes:
        tensor: its tensor in the graph, `op:0`.
        dtype: NumPy's name of its element type; `string` for text.
        shape: None in place of unknown sizes; None as a whole where the rank is unknown.
    """

    tensor: str
    dtype: str
    shape: tuple[int | None, ...] | None

    @property
    def batch(self) -> int | None:
        """The number of samples that a batch must have, where it is fixed."""
        return self.shape[0] if self.shape else None


@dataclass(frozen=True)
class Program:
    """A graph with all that is needed to run it.

    Attributes:
        where: the path or object that it came from, for messages.
        graph_def: the graph; may still call functions.
        variables: name of an op -> key of the variable that it stands for.
        read: reads the variable of a key.
        parts: name of an op that stands for a part of a variable -> the indices of that part.
        inputs: name -> what is fed.
        outputs: name -> the tensor that is the model's answer.
        settings: tensor -> the value that it has in inference, such as a switch for training.
        masks: name of an op whose output enters a normalization -> the tensor, of one dimension
            less, that tells what of it counts for the statistics.
        prepare: ops that fill lookup tables before the first run.
    """

    where: str
    graph_def: Any
    variables: Mapping[str, str]
    read: Callable[[str], Array]
    inputs: Mapping[str, Input]
    outputs: Mapping[str, str]
    settings: Mapping[str, Any] = field(default_factory=dict)
    prepare: tuple[str, ...] = ()
    parts: Mapping[str, tuple[slice, ...]] = field(default_factory=dict)
    masks: Mapping[str, str] = field(default_factory=dict)
