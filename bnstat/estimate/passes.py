"""Run a network over data, and measure the statistics of each layer's input and the accuracy.

Means and variances of batches are merged in float64, by the method of Chan, Golub and LeVeque,
"Updating formulae and a pairwise algorithm for computing sample variances" (1979). No variance is
computed as `E[x^2] - E[x]^2`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from bnstat.errors import AmbiguousError, UnsupportedError
from bnstat.estimate.data.batches import Batch
from bnstat.estimate.running import flat_graph, normalizations
from bnstat.estimate.running.flat_graph import DATA, full_name, op_of
from bnstat.estimate.running.network import Network
from bnstat.estimate.running.normalizations import MEAN, VARIANCE, BatchMoments, tensor_of
from bnstat.model import Array, as_float64
from bnstat.signals import interruptible

Floats = NDArray[np.float64]

Statistics = Mapping[str, Mapping[str, Array]]
"""Layer -> role -> values of the statistic, [channels]."""

Watch = Callable[[Batch, Array], None]

Track = Callable[[Iterable[Batch], str], Iterable[Batch]]
"""Takes the batches and the name of the task; yields the batches and shows the progress."""

_VARIABLES = ("VarHandleOp", "VariableV2", "Variable")

MOST_BYTES: Final = 1 << 30
"""The limit on bytes of activations that are kept at a time."""


def untracked(batches: Iterable[Batch], what: str) -> Iterable[Batch]:
    """Return the batches, without showing the progress."""
    return batches


@dataclass
class Moments:
    """Count, mean and sum of squared deviations (`squares`) of all values so far."""

    unbiased: bool = False
    count: int = 0
    mean: Floats = field(default_factory=lambda: np.zeros(0))
    squares: Floats = field(default_factory=lambda: np.zeros(0))

    def add(self, count: int, mean: ArrayLike, squares: ArrayLike) -> None:
        """Include more elements, given their count, mean and sum of squared deviations."""
        if not count:
            return
        new_mean, new_squares = np.asarray(mean, np.float64), np.asarray(squares, np.float64)
        if not self.count:
            self.count, self.mean, self.squares = count, new_mean, new_squares
            return
        total = self.count + count
        difference = new_mean - self.mean
        self.mean = self.mean + difference * (count / total)
        self.squares = self.squares + new_squares + difference**2 * (self.count * count / total)
        self.count = total

    @property
    def variance(self) -> Floats:
        return self.squares / max(self.count - self.unbiased, 1)


class Halves:
    """The moments of even batches and of odd batches; their difference estimates the error."""

    def __init__(self, unbiased: bool = False) -> None:
        self.first, self.second = Moments(unbiased), Moments(unbiased)

    @property
    def whole(self) -> Moments:
        whole = replace(self.first)
        whole.add(self.second.count, self.second.mean, self.second.squares)
        return whole

    @property
    def error(self) -> float | None:
        """Half the largest distance between both means, in deviations; None for one batch."""
        if not self.first.count or not self.second.count:
            return None
        deviation = np.sqrt(self.whole.squares / self.whole.count)
        distance = np.abs(self.first.mean - self.second.mean) / 2
        return float(np.max(in_deviations(distance, deviation), initial=0.0))


def in_deviations(distance: Floats, deviation: Floats) -> Floats:
    """Return distances divided by standard deviations, where 0 divided by 0 is 0."""
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = distance / deviation
    return np.where(distance == 0, 0.0, ratio)


class Runner(AbstractContextManager["Runner"]):
    """A TensorFlow session that runs a network and measures the layers' inputs.

    If `by_batch` is True, each layer normalizes with batch statistics instead of fed statistics. If
    `exact` is True, all positions of a large input are measured instead of every n-th. The graph is
    then not optimized, because TensorFlow would optimize it again for each wave.
    """

    def __init__(self, network: Network, *, by_batch: bool, exact: bool = False) -> None:
        import tensorflow as tf

        self.network = network
        self._moments: dict[str, list[BatchMoments]] = {}  # of each use of a layer
        self._placeholders: dict[str, dict[str, str]] = {}  # of each role of a layer
        self._batches = 0
        self._graph_def = self._measuring_graph(by_batch, exact)
        self._graph = flat_graph.imported(self._graph_def, network.program.where)
        config = tf.compat.v1.ConfigProto()
        config.graph_options.rewrite_options.disable_meta_optimizer = exact
        self._session = tf.compat.v1.Session(graph=self._graph, config=config)
        self._fill()

    def __exit__(self, *_: object) -> None:
        self._session.close()  # releases the memory of the model

    def run(
        self,
        feeds: Mapping[str, Array],
        statistics: Mapping[str, Mapping[str, Array]],
        layers: Sequence[str],
        tensors: Sequence[str],
        *,
        cached: Mapping[str, Array],
    ) -> tuple[Mapping[str, Sequence[BatchMoments]], Mapping[str, Array]]:
        """Run one batch; return layer -> moments of each use, and name -> value for `tensors`."""
        program = self.network.program
        fed = {**program.settings, **cached}
        fed |= {program.inputs[name].tensor: array for name, array in feeds.items()}
        fed[self._phase] = self._batches  # so that each batch measures different positions
        for layer, placeholders in self._placeholders.items():
            fed |= {name: statistics[layer][role] for role, name in placeholders.items()}
        moments = {layer: self._moments[layer] for layer in layers}
        self._batches += 1
        return tuple(self._run((moments, {name: name for name in tensors}), fed))

    def cuts(self, waves: Sequence[Sequence[str]]) -> list[list[str]]:
        """Return, for each wave, the names of the tensors that this wave keeps for later waves.

        These tensors depend only on the statistics of earlier waves. The list of a wave is empty if
        TensorFlow cannot fetch and feed all of them.
        """
        marks = {op_of(each.tensor): [DATA] for each in self.network.program.inputs.values()}
        for layer, placeholders in self._placeholders.items():
            marks.update({op_of(name): [layer] for name in placeholders.values()})
        dependencies = flat_graph.Dependencies(self._graph_def, marks)
        done = {layer: number for number, wave in enumerate(waves, 1) for layer in wave}
        nodes = {node.name: node for node in self._graph_def.node}
        constant_from = {
            name: max((done.get(mark, 0) for mark in dependencies.marks(name)), default=0)
            for name in nodes
        }
        cuts = []
        for number in range(len(waves)):
            later = [layer for wave in waves[number + 1 :] for layer in wave]
            results = [name for layer in later for use in self._moments[layer] for name in use]
            cut = {
                tensor
                for node in flat_graph.upstream(nodes.values(), results)
                if constant_from[node.name] > number
                for tensor in node.input
                if not tensor.startswith("^")
                and DATA in dependencies.marks(tensor)
                and constant_from[op_of(tensor)] <= number
            }
            is_always_run = not any(map(dependencies.conditions, cut))
            can_cut = is_always_run and not any(map(dependencies.is_in_loop, cut))
            # Each value is kept once, not once for each Identity op that copies it.
            kept = {flat_graph.origins(nodes, each, {"Identity"})[-1] for each in cut}
            names = sorted(set(map(full_name, kept)))
            cuts.append(names if can_cut and all(map(self._can_keep, names)) else [])
        return cuts

    def _can_keep(self, name: str) -> bool:
        graph, tensor = self._graph, self._graph.get_tensor_by_name(name)
        is_numeric = tensor.dtype.is_floating or tensor.dtype.is_integer or tensor.dtype.is_bool
        return bool(is_numeric and graph.is_feedable(tensor) and graph.is_fetchable(tensor))

    def _run(self, fetches: Any, feeds: Mapping[Any, Any]) -> Any:
        import tensorflow as tf

        try:
            return interruptible(lambda: self._session.run(fetches, feeds))
        except (tf.errors.OpError, ValueError, TypeError) as error:
            raise flat_graph.refused(self.network.program.where, error) from None

    def _measuring_graph(self, by_batch: bool, exact: bool) -> Any:
        """Return a `GraphDef` that measures inputs; statistics are fed unless `by_batch`."""
        import tensorflow as tf

        graph = self.network.graph
        edges: dict[tuple[str, int], str] = {}
        with graph.as_default(), tf.name_scope("bnstat"):
            phase = tf.compat.v1.placeholder(tf.int32, [])
            self._phase = phase.name
            for each in self.network.normalizations:
                measured = normalizations.measure(graph, each, phase, exact)
                if by_batch:
                    used = {MEAN: measured.mean, VARIANCE: measured.variance}
                else:
                    names = self._placeholders.setdefault(each.layer, {})
                    for edge in each.edges:
                        if edge.role not in names:
                            is_double = tensor_of(graph, edge.tensor).dtype.base_dtype == tf.float64
                            dtype = tf.float64 if is_double else tf.float32
                            shape = measured.mean.shape
                            names[edge.role] = tf.compat.v1.placeholder(dtype, shape).name
                    used = {role: tensor_of(graph, name) for role, name in names.items()}
                for edge in each.edges:
                    old = tensor_of(graph, edge.tensor)
                    shape = old.shape.as_list() if old.shape.is_fully_defined() else [-1]
                    new = tf.cast(tf.reshape(used[edge.role], shape), old.dtype.base_dtype)
                    edges[edge.op, edge.position] = new.name
                conditions = self.network.dependencies.conditions(each.x)
                measured = normalizations.or_zeros(graph, measured, conditions)
                moments = BatchMoments(*(tensor.name for tensor in measured))
                self._moments.setdefault(each.layer, []).append(moments)
        graph_def = graph.as_graph_def()
        for node in graph_def.node:
            for position, tensor in enumerate(node.input):
                node.input[position] = edges.get((node.name, position), tensor)
        return graph_def

    def _fill(self) -> None:
        """Assign the stored values to the variables, and fill the lookup tables."""
        import tensorflow as tf

        program = self.network.program
        assignments = {}
        for op in self._graph.get_operations():
            if op.type not in _VARIABLES:
                continue
            if op.name not in program.variables:
                what = f"the file has no value for the variable {op.name}"
                raise UnsupportedError(program.where, what)
            with self._graph.as_default():
                shape = tf.TensorShape(op.get_attr("shape"))
                placeholder = tf.compat.v1.placeholder(op.get_attr("dtype"), shape)
                if op.type == "VarHandleOp":
                    assign = tf.raw_ops.AssignVariableOp(resource=op.outputs[0], value=placeholder)
                else:
                    assign = tf.raw_ops.Assign(ref=op.outputs[0], value=placeholder)
            assignments[op.name] = placeholder, assign
        for name, (placeholder, assign) in assignments.items():
            value = program.read(name)
            if value.shape != tuple(placeholder.shape):
                key, shape = program.variables[name], list(value.shape)
                what = f"{key} has the shape {shape}, but the graph needs {placeholder.shape}"
                hint = "save the model as a SavedModel, or freeze its graph"
                raise UnsupportedError(program.where, what, hint)
            self._run(assign, {placeholder: value})
        if program.initializers:
            self._run(program.initializers, program.settings)


@dataclass
class ActivationCache:
    """A cache of intermediate tensors of each batch, so that later waves do not recompute them.

    If the newest tensors of a batch do not fit into `most` bytes, older tensors are kept.
    """

    most: int = MOST_BYTES
    _names: Sequence[str] = ()
    _is_full: bool = False
    _tensors: dict[int, Mapping[str, Array]] = field(default_factory=dict)

    @property
    def size(self) -> int:
        return sum(array.nbytes for kept in self._tensors.values() for array in kept.values())

    def begin_wave(self, names: Sequence[str]) -> None:
        """Cache the tensors with these names from now on."""
        self._names, self._is_full = names, False

    def tensors(self, batch: int) -> Mapping[str, Array]:
        """Return name -> array for the cached tensors of the batch with this index."""
        return self._tensors.get(batch, {})

    def wanted(self, batch: int) -> Sequence[str]:
        """Return the names of the tensors to fetch for the cache when the batch runs."""
        kept = self.tensors(batch)
        is_done = kept.keys() == set(self._names) or (self._is_full and not kept)
        return () if is_done else self._names

    def offer(self, batch: int, tensors: Mapping[str, Array]) -> None:
        """Replace the cached tensors of a batch if the cache then stays within `most` bytes."""
        before = self._tensors
        if tensors:
            self._tensors = {**before, batch: tensors}
            if self.size > self.most:
                self._tensors, self._is_full = before, True


class Accuracy(NamedTuple):
    """The fraction of samples that are classified as labelled, and the number of samples."""

    part: float
    samples: int


@dataclass
class Reading:
    """The results of a pass over the data; `moments` maps layers to moments of their inputs."""

    moments: dict[str, Halves]
    samples: int = 0
    batches: int = 0
    accuracy: Accuracy | None = None


def read(
    runner: Runner,
    batches: Iterable[Batch],
    *,
    statistics: Statistics,
    layers: Sequence[str] = (),
    with_accuracy: bool = False,
    watch: Watch | None = None,
    cache: ActivationCache | None = None,
) -> Reading:
    """Run a network over data, and measure the inputs of `layers`.

    `statistics` is empty if the layers normalize by batch. `watch` is called with each batch and
    the network's output. Runs start from cached activations, and cache newer activations.
    """
    output = runner.network.program.outputs[0]
    answers: list[tuple[Array, Array]] = []
    cache = cache or ActivationCache()
    # The first use of a layer determines which variance training averages.
    unbiased = {each.layer: each.unbiased for each in reversed(runner.network.normalizations)}
    reading = Reading({name: Halves(unbiased[name]) for name in layers})
    for number, batch in enumerate(batches):
        wanted = list(cache.wanted(number))
        fetched = [*wanted, output] if with_accuracy or watch else wanted
        cached = cache.tensors(number)
        moments, tensors = runner.run(batch.feeds, statistics, layers, fetched, cached=cached)
        cache.offer(number, {name: tensors[name] for name in wanted})
        for layer, uses in moments.items():
            halves = reading.moments[layer]
            half = halves.second if number % 2 else halves.first
            for count, mean, variance in uses:
                half.add(int(count), mean, variance * count)
        if with_accuracy:
            answers.append(_answers(output, np.asarray(tensors[output]), batch))
        if watch is not None:
            watch(batch, np.asarray(tensors[output]))
        reading.samples += batch.size
        reading.batches += 1
    if with_accuracy:
        correct = _count_correct(*map(np.concatenate, zip(*answers, strict=True)))
        reading.accuracy = Accuracy(correct / reading.samples, reading.samples)
    return reading


def _answers(name: str, output: Array, batch: Batch) -> tuple[Array, Array]:
    """Return the answers of a batch and the labels: scores of two classes, or class indices.

    If the model returns one score per sample, or the labels are -1 and 1, there are two classes,
    and the larger label corresponds to the larger score.
    """
    labels = np.asarray(batch.labels)
    scores = output.reshape(output.shape[0], -1) if output.ndim else output.reshape(1, 1)
    count = scores.shape[1]
    if len(scores) != batch.size:
        what = f"has the shape {list(output.shape)}, which is not a row of scores for each sample"
        raise AmbiguousError(name, what, "pass --answer")
    if count == 1:
        return as_float64(scores)[:, 0], labels
    if count == 2 and labels.min() == -1:
        labels = np.maximum(labels, 0)
    for label in (int(labels.min()), int(labels.max())):
        if not 0 <= label < count:
            what = f"label {label} is not one of its {count} classes, which count from 0"
            hint = "select another output (--answer) or other labels (--labels)"
            raise AmbiguousError(name, what, hint)
    return scores.argmax(1), labels


def _count_correct(answers: Array, labels: Array) -> int:
    if answers.dtype.kind == "i":
        return int((answers == labels).sum())
    # Only all scores together distinguish probabilities from logits and scores of -1 to 1.
    is_probability = answers.min() >= 0 and answers.max() <= 1 and labels.min() >= 0
    is_large = np.greater(answers, 0.5 if is_probability else 0.0)
    return int((is_large == np.greater(labels, 0)).sum())
