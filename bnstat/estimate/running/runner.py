"""Run a measuring graph, batch by batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from bnstat.errors import UnsupportedError
from bnstat.estimate.running.flat_graph import imported, refused
from bnstat.estimate.running.measuring import BatchMoments, add_measuring
from bnstat.estimate.running.network import Network
from bnstat.model import Array
from bnstat.signals import interruptible

_VARIABLES = ("VarHandleOp", "VariableV2", "Variable")


class Runner:
    """A session with a network that also measures; it must be closed.

    Args:
        network: the network.
        by_batch: True if each layer normalizes with batch statistics instead of fed statistics.
        sample: True if a sample of the positions suffices.
        optimized: True if TensorFlow optimizes the graph, which can take longer than a batch, and
            is repeated for each selection of layers.

    Raises:
        BnstatError: TensorFlow refuses the graph.
    """

    def __init__(
        self, network: Network, *, by_batch: bool, sample: bool, optimized: bool = True
    ) -> None:
        import tensorflow as tf

        self.network = network
        self.measuring = add_measuring(
            network.graph,
            network.normalizations,
            network.dependencies,
            by_batch=by_batch,
            sample=sample,
        )
        self._batches = 0
        self._graph = imported(self.measuring.graph_def, network.program.where)
        with self._graph.as_default():
            assignments = self._assignments()
        config = tf.compat.v1.ConfigProto()
        config.graph_options.rewrite_options.disable_meta_optimizer = not optimized
        self._session = tf.compat.v1.Session(graph=self._graph, config=config)
        self._fill(assignments)

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
        layers: Sequence[str],
        tensors: Sequence[str] = (),
        *,
        start: Mapping[str, Array],
    ) -> tuple[Mapping[str, Sequence[BatchMoments]], Mapping[str, Array]]:
        """Run one batch, and return layer -> the moments of each use, and name -> tensor.

        Args:
            feeds: input name -> array.
            statistics: layer -> role -> the statistics that the layer uses, [channels].
            layers: the layers to measure.
            tensors: the names of the tensors to return.
            start: tensors that an earlier run returned, which are not recomputed.
        """
        program = self.network.program
        fed: dict[str, Any] = dict(program.settings)
        fed.update({program.inputs[name].tensor: array for name, array in feeds.items()})
        fed[self.measuring.phase] = self._batches
        for layer, placeholders in self.measuring.statistics.items():
            fed.update({name: statistics[layer][role] for role, name in placeholders.items()})
        fed.update(start)
        moments = {layer: self.measuring.moments[layer] for layer in layers}
        self._batches += 1
        results: tuple[Any, Any] = self._run((moments, {name: name for name in tensors}), fed)
        return results

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
            raise refused(self.network.program.where, error) from None

    def _assignments(self) -> list[tuple[str, Any, Any]]:
        """Return, for each variable, the op, a placeholder for the value, and the assignment."""
        import tensorflow as tf

        program = self.network.program
        assignments = []
        for op in self._graph.get_operations():
            if op.type not in _VARIABLES:
                continue
            if op.name not in program.variables:
                what = f"the file has no value for the variable {op.name}"
                raise UnsupportedError(program.where, what)
            shape = tf.TensorShape(op.get_attr("shape"))
            value = tf.compat.v1.placeholder(op.get_attr("dtype"), shape)
            if op.type == "VarHandleOp":
                assign = tf.raw_ops.AssignVariableOp(resource=op.outputs[0], value=value)
            else:
                assign = tf.raw_ops.Assign(ref=op.outputs[0], value=value)
            assignments.append((op.name, value, assign))
        return assignments

    def _fill(self, assignments: Sequence[tuple[str, Any, Any]]) -> None:
        """Set the variables and the lookup tables."""
        program = self.network.program
        for name, placeholder, assign in assignments:
            value = program.read(name)
            if value.shape != tuple(placeholder.shape):
                raise UnsupportedError(
                    program.where,
                    f"{program.variables[name]} has the shape {list(value.shape)}, the graph wants "
                    f"{placeholder.shape}",
                    "save the model as a SavedModel, or freeze its graph",
                )
            self._run(assign, {placeholder: value})
        if program.initializers:
            self._run(program.initializers, program.settings)
