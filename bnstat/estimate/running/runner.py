"""Running a graph that measures, batch by batch."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from bnstat.errors import BnstatError, UnsupportedError
from bnstat.estimate.running.flat_graph import Program
from bnstat.estimate.running.interrupts import interruptible
from bnstat.estimate.running.measuring import Measuring
from bnstat.model import Array

_NODE = re.compile(r"\[\[\{\{node (.+?)\}\}")
_UNFED = "You must feed a value for placeholder tensor"


def imported(graph_def: Any, where: str) -> Any:
    """A `GraphDef` as a `tf.Graph`.

    Args:
        graph_def: the graph.
        where: for messages.

    Raises:
        BnstatError: TensorFlow refuses it.
    """
    import tensorflow as tf

    graph = tf.Graph()
    with graph.as_default():
        try:
            tf.graph_util.import_graph_def(graph_def, name="")
        except (ValueError, TypeError, tf.errors.OpError) as error:
            raise refused(where, error) from None
    return graph


def refused(where: str, error: Exception) -> BnstatError:
    """What TensorFlow says, in one line: what it tells first is how it got there."""
    message = str(getattr(error, "message", None) or error)
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    places = [place for place, line in enumerate(lines) if place and _NODE.match(line)]
    reason, at = (lines or ["no reason given"])[0], ""
    if places:
        reason = lines[places[0] - 1]
        found = _NODE.match(lines[places[0]])
        at = f" (at {found[1]})" if found else ""
    hint = "give its value by --feed, or name it by --input" if reason.startswith(_UNFED) else ""
    return BnstatError(where, f"TensorFlow cannot run it: {reason}{at}", hint)


class Counted(NamedTuple):
    """The moments of one batch at one site.

    Attributes:
        elements: the number of elements of a channel.
        mean, variance: [channels]; the variance is the biased one.
    """

    elements: int
    mean: Array
    variance: Array


class Ran(NamedTuple):
    """What one run gave.

    Attributes:
        counted: what was measured, site by site.
        answer: the tensor that was asked for beside.
        kept: tensors by name, from which a later run can start.
    """

    counted: Sequence[Counted]
    answer: Array | None
    kept: Mapping[str, Array]


class Runner:
    """A session with a model in it; to be closed.

    Args:
        program: the model.
        measuring: its graph with the measuring in it.
        optimized: whether TensorFlow optimizes the graph first, which takes longer than some
            batches do, anew for each choice of sites.

    Attributes:
        measuring: the graph with the measuring in it.

    Raises:
        BnstatError: TensorFlow refuses the graph.
    """

    def __init__(self, program: Program, measuring: Measuring, *, optimized: bool = True) -> None:
        import tensorflow as tf

        self._program = program
        self.measuring = measuring
        self._batches = 0
        self._graph = imported(measuring.graph_def, program.where)
        with self._graph.as_default():
            assignments = self._assignments(tf)
        config = tf.compat.v1.ConfigProto()
        config.graph_options.rewrite_options.disable_meta_optimizer = not optimized
        self._session = tf.compat.v1.Session(graph=self._graph, config=config)
        for name, holder, operation in assignments:
            key = program.variables[name]
            value = program.read(key)
            part = program.parts.get(name, ())
            value = value[part] if len(part) == value.ndim else value
            if value.shape != tuple(holder.shape):
                self.close()
                raise UnsupportedError(
                    program.where,
                    f"{key} has the shape {list(value.shape)}, the graph wants {holder.shape}",
                    "save the model as a SavedModel, or freeze its graph",
                )
            self._attempt(operation, {holder: value})
        if program.prepare:
            self._attempt(program.prepare, dict(program.settings))

    def __enter__(self) -> Runner:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the model."""
        self._session.close()

    def run(
        self,
        feeds: Mapping[str, Array],
        given: Mapping[str, Mapping[str, Array]],
        sites: Sequence[int],
        output: str | None = None,
        *,
        start: Mapping[str, Array] | None = None,
        keep: Sequence[str] = (),
    ) -> Ran:
        """Run one batch.

        Args:
            feeds: input name -> array.
            given: layer -> role -> the statistics that it uses, [channels].
            sites: which sites to measure, by their numbers.
            output: a tensor to give beside.
            start: tensors that were kept, not to be computed again.
            keep: the tensors to keep.

        Raises:
            BnstatError: TensorFlow cannot run it.
        """
        fed: dict[str, Any] = dict(self._program.settings)
        fed.update({self._program.inputs[name].tensor: array for name, array in feeds.items()})
        fed[self.measuring.phase] = self._batches
        for layer, holders in self.measuring.given.items():
            fed.update({holder: given[layer][role] for role, holder in holders.items()})
        fed.update(start or {})
        wanted: list[Any] = [tuple(self.measuring.results[site]) for site in sites]
        values = self._attempt([wanted, [output] if output else [], list(keep)], fed)
        self._batches += 1
        return Ran(
            [Counted(int(count), mean, variance) for count, mean, variance in values[0]],
            np.asarray(values[1][0]) if output else None,
            dict(zip(keep, values[2], strict=True)),
        )

    def can_keep(self, name: str) -> bool:
        """Whether a tensor can be taken out of a run and fed to a later one."""
        tensor = self._graph.get_tensor_by_name(name)
        of_numbers = tensor.dtype.is_floating or tensor.dtype.is_integer or tensor.dtype.is_bool
        return bool(
            of_numbers and self._graph.is_feedable(tensor) and self._graph.is_fetchable(tensor)
        )

    def _attempt(self, fetches: Any, feeds: Mapping[str, Any]) -> Any:
        import tensorflow as tf

        try:
            return interruptible(lambda: self._session.run(fetches, feeds))
        except (tf.errors.OpError, ValueError, TypeError) as error:
            raise refused(self._program.where, error) from None

    def _assignments(self, tf: Any) -> list[tuple[str, Any, Any]]:
        """For each variable its op's name, a placeholder for its value, and what sets it."""
        found = []
        for op in _variable_ops(self._graph.get_operations()):
            if op.name not in self._program.variables:
                raise UnsupportedError(
                    self._program.where, f"the file has no value for the variable {op.name}"
                )
            dtype = op.get_attr("dtype")
            holder = tf.compat.v1.placeholder(dtype, tf.TensorShape(op.get_attr("shape")))
            if op.type == "VarHandleOp":
                assign = tf.raw_ops.AssignVariableOp(resource=op.outputs[0], value=holder)
            else:
                assign = tf.raw_ops.Assign(ref=op.outputs[0], value=holder)
            found.append((op.name, holder, assign))
        return found


def _variable_ops(operations: Iterable[Any]) -> list[Any]:
    return [op for op in operations if op.type in ("VarHandleOp", "VariableV2", "Variable")]
