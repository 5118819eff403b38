"""Run a measuring graph, batch by batch."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np

from bnstat.errors import BnstatError, UnsupportedError
from bnstat.estimate.running.flat_graph import Program
from bnstat.estimate.running.measuring import BatchMoments, MeasuringGraph
from bnstat.model import Array
from bnstat.signals import interruptible

_NODE = re.compile(r"\[\[\{\{node (.+?)\}\}")
_NOT_FED = "You must feed a value for placeholder tensor"
_VARIABLES = ("VarHandleOp", "VariableV2", "Variable")


def imported(graph_def: Any, where: str) -> Any:
    """Return a `GraphDef` as a `tf.Graph`.

    Raises:
        BnstatError: TensorFlow refuses the graph.
    """
    import tensorflow as tf

    graph = tf.Graph()
    with graph.as_default():
        try:
            tf.graph_util.import_graph_def(graph_def, name="")
        except (ValueError, TypeError, tf.errors.OpError) as error:
            raise _refused(where, error) from None
    return graph


def _refused(where: str, error: Exception) -> BnstatError:
    """Return TensorFlow's error in one line, with the reason and the op."""
    message = str(getattr(error, "message", None) or error)
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    reason, at = (lines or ["no reason given"])[0], ""
    for before, line in pairwise(lines):
        if match := _NODE.match(line):
            reason, at = before, f" (at {match[1]})"
            break
    hint = "give its value by --feed, or name it by --input" if reason.startswith(_NOT_FED) else ""
    return BnstatError(where, f"TensorFlow cannot run it: {reason}{at}", hint)


class RunResult(NamedTuple):
    """The results for one batch.

    Attributes:
        moments: the moments of each measured normalization, as arrays.
        output: the requested tensor, if any.
        kept: the tensors to keep, by name.
    """

    moments: Sequence[BatchMoments]
    output: Array | None
    kept: Mapping[str, Array]


class Runner:
    """A session with a model; it must be closed.

    Args:
        program: the model.
        measuring: the model's graph with the ops that measure.
        optimized: True if TensorFlow optimizes the graph, which can take longer than a batch, and
            is repeated for each selection of normalizations.

    Raises:
        BnstatError: TensorFlow refuses the graph.
    """

    def __init__(
        self, program: Program, measuring: MeasuringGraph, *, optimized: bool = True
    ) -> None:
        import tensorflow as tf

        self._program = program
        self.measuring = measuring
        self._batches = 0
        self._graph = imported(measuring.graph_def, program.where)
        with self._graph.as_default():
            assignments = self._assignments()
        config = tf.compat.v1.ConfigProto()
        config.graph_options.rewrite_options.disable_meta_optimizer = not optimized
        self._session = tf.compat.v1.Session(graph=self._graph, config=config)
        for name, placeholder, operation in assignments:
            key = program.variables[name]
            value = program.read(key)
            part = program.parts.get(name, ())
            value = value[part] if len(part) == value.ndim else value
            if value.shape != tuple(placeholder.shape):
                self.close()
                raise UnsupportedError(
                    program.where,
                    f"{key} has the shape {list(value.shape)}, the graph wants {placeholder.shape}",
                    "save the model as a SavedModel, or freeze its graph",
                )
            self._run(operation, {placeholder: value})
        if program.initializers:
            self._run(program.initializers, dict(program.settings))

    def __enter__(self) -> Runner:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Release the model."""
        self._session.close()

    def run(
        self,
        feeds: Mapping[str, Array],
        statistics: Mapping[str, Mapping[str, Array]],
        numbers: Sequence[int],
        output: str | None = None,
        *,
        start: Mapping[str, Array] | None = None,
        keep: Sequence[str] = (),
    ) -> RunResult:
        """Run one batch.

        Args:
            feeds: input name -> array.
            statistics: layer -> role -> the statistics that the layer uses, [channels].
            numbers: the indices of the normalizations to measure.
            output: a tensor to return.
            start: tensors that an earlier run kept, which are not recomputed.
            keep: the tensors to keep.

        Raises:
            BnstatError: TensorFlow cannot run the graph.
        """
        fed: dict[str, Any] = dict(self._program.settings)
        fed.update({self._program.inputs[name].tensor: array for name, array in feeds.items()})
        fed[self.measuring.phase] = self._batches
        for layer, placeholders in self.measuring.statistics.items():
            fed.update({name: statistics[layer][role] for role, name in placeholders.items()})
        fed.update(start or {})
        moments = [tuple(self.measuring.results[number]) for number in numbers]
        values = self._run([moments, [output] if output else [], list(keep)], fed)
        self._batches += 1
        return RunResult(
            [BatchMoments(int(count), mean, variance) for count, mean, variance in values[0]],
            np.asarray(values[1][0]) if output else None,
            dict(zip(keep, values[2], strict=True)),
        )

    def can_keep(self, name: str) -> bool:
        """Return True if a tensor can be fetched, and fed to a later run."""
        tensor = self._graph.get_tensor_by_name(name)
        is_numeric = tensor.dtype.is_floating or tensor.dtype.is_integer or tensor.dtype.is_bool
        return bool(
            is_numeric and self._graph.is_feedable(tensor) and self._graph.is_fetchable(tensor)
        )

    def _run(self, fetches: Any, feeds: Mapping[str, Any]) -> Any:
        import tensorflow as tf

        try:
            return interruptible(lambda: self._session.run(fetches, feeds))
        except (tf.errors.OpError, ValueError, TypeError) as error:
            raise _refused(self._program.where, error) from None

    def _assignments(self) -> list[tuple[str, Any, Any]]:
        """Return, for each variable, the op, a placeholder for the value, and the assignment."""
        import tensorflow as tf

        assignments = []
        for op in self._graph.get_operations():
            if op.type not in _VARIABLES:
                continue
            if op.name not in self._program.variables:
                what = f"the file has no value for the variable {op.name}"
                raise UnsupportedError(self._program.where, what)
            shape = tf.TensorShape(op.get_attr("shape"))
            value = tf.compat.v1.placeholder(op.get_attr("dtype"), shape)
            if op.type == "VarHandleOp":
                assign = tf.raw_ops.AssignVariableOp(resource=op.outputs[0], value=value)
            else:
                assign = tf.raw_ops.Assign(ref=op.outputs[0], value=value)
            assignments.append((op.name, value, assign))
        return assignments
