"""The use of each layer's moving statistics in a training graph.

A training graph has ops that train variables: the ops of an optimizer, or assignments of a new
value to a gamma or a beta. A training op depends on an op that trains variables. All dependencies
of the training op run in each step. They show which updates of the moving statistics run, which
statistics normalize in training, and whether ops other than updates read the moving statistics.

Sources: tensorflow/core/ops/training_ops.cc; tensorflow/core/kernels/fused_batch_norm_op.cc,
whose normalized output does not depend on the mean and variance inputs in training;
tensorflow/python/ops/control_flow_ops.py (1.15).
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from functools import cached_property
from itertools import islice
from typing import Final

from bnstat.discovery.graphs.norms import Norm, find_norms, is_training
from bnstat.discovery.graphs.tracing import Steps, Tensors, op_of
from bnstat.discovery.graphs.training import STATISTICS, UPDATES, Updates
from bnstat.formats.contents import Contents, Graph, Op
from bnstat.model import ROLES, BatchNorm, StatisticsMode, StatisticsUse

_APPLIES: Final = re.compile(r"(Resource)?(Sparse)?Apply[A-Z]\w*")
"""The ops of optimizers; the first input is the trained variable."""

_ASSIGNS: Final = UPDATES | {"AssignAdd", "AssignAddVariableOp"}

_MOST_STEPS: Final = 5_000_000  # in all graphs of a file; a graph needs ten for each input of an op
_LARGEST_STEP: Final = 100  # ops behind an assigned value that are searched for the old value
_MOST_SWITCHES: Final = 100  # ops after a variable that are searched for a switch

_CHOOSES: Final = {"Switch": 1, "RefSwitch": 1, "Select": 0, "SelectV2": 0}
"""Switching op -> index of the condition among the inputs."""

_ENDS_WITHOUT_USE: Final = _ASSIGNS | {
    "HistogramSummary",
    "IsVariableInitialized",
    "MergeSummary",
    "NoOp",
    "Save",
    "SaveSlices",
    "SaveV2",
    "ScalarSummary",
    "VarIsInitializedOp",
    "WriteHistogramSummary",
    "WriteScalarSummary",
}
"""Ops at the end of an update, a saver or a summary, which are not readers of a variable."""


def statistics_uses(contents: Contents, layers: Sequence[BatchNorm]) -> Mapping[str, StatisticsUse]:
    """Return layer name -> use of the moving statistics, for each layer in the graphs."""
    uses: dict[str, StatisticsUse] = {}
    steps = Steps(_MOST_STEPS)
    for graph in contents.graphs() if contents.graphs else ():
        own_uses = _GraphUses(graph, steps, contents, layers).of_layers()
        if steps.left < 0:
            return {}  # The graphs are too large.
        for name, use in own_uses.items():
            uses[name] = use if name not in uses else _combine(uses[name], use)
    return uses


def _combine(first: StatisticsUse, second: StatisticsUse) -> StatisticsUse:
    runs = [run for run in (first.updates_run, second.updates_run) if run is not None]
    return StatisticsUse(
        updates=max(first.updates, second.updates),
        updates_run=max(runs, default=None),
        mode=_common(mode for mode in (first.mode, second.mode) if mode is not None),
        is_read=first.is_read or second.is_read,
    )


def _common(modes: Iterable[StatisticsMode]) -> StatisticsMode | None:
    different = set(modes)
    return different.pop() if len(different) == 1 else ("either" if different else None)


class _GraphUses:
    """Traces the moving statistics of layers through one graph."""

    def __init__(
        self, graph: Graph, steps: Steps, contents: Contents, layers: Sequence[BatchNorm]
    ) -> None:
        self._graph = graph
        self._steps = steps
        self._variables = contents.variables
        self._tensors = Tensors(graph, steps)
        self._layers = layers
        self._ops_of: dict[str, list[str]] = defaultdict(list)
        for name, key in graph.variables.items():
            self._ops_of[key].append(name)

    def of_layers(self) -> Mapping[str, StatisticsUse]:
        norms_of = self._norms_of_layers()
        if not norms_of:
            return {}
        updates = Updates(self._tensors, lambda key: 0).ops
        trainers = self._trainers()
        forward = self._behind(trainers)
        running = self._run_with(trainers)
        read = self._behind(self._ends())
        uses = {}
        for layer, norms in norms_of.items():
            keys = [layer.variables[role].key for role in STATISTICS if role in layer.variables]
            own_updates = {op for key in keys for op in updates.get(key, ())}
            # In a function, all ops run that change a variable.
            run = own_updates if self._graph.name else own_updates & running
            mode = _common(norm.normalizes for norm in norms if norm.op in forward)
            if mode == "either" and self._is_fed(keys):
                mode = "fed"
            is_read = any(norm.normalizes != "batch" for norm in norms) or any(
                op in read for key in keys for op in self._ops_of[key]
            )
            updates_run = len(run) if trainers else None
            uses[layer.name] = StatisticsUse(len(own_updates), updates_run, mode, is_read)
        return uses

    def _norms_of_layers(self) -> Mapping[BatchNorm, Sequence[Norm]]:
        owners: dict[str, list[BatchNorm]] = defaultdict(list)
        for layer in self._layers:
            for variable in layer.variables.values():
                owners[variable.key].append(layer)
        norms: dict[BatchNorm, list[Norm]] = defaultdict(list)
        for norm in find_norms(self._tensors, self._variables):
            roles = sorted(norm.roles, key=lambda role: role not in STATISTICS)
            candidates = [owners[norm.roles[role]] for role in roles if norm.roles[role] in owners]
            if candidates and len(candidates[0]) == 1:
                norms[candidates[0][0]].append(norm)
        return norms

    def _is_fed(self, keys: Sequence[str]) -> bool:
        """Return True if placeholders select batch or stored statistics.

        A placeholder with the default False (inference) does not count, because a training step
        that does not feed the placeholder uses the stored statistics.
        """
        conditions = {
            self._tensors.inputs(switch)[_CHOOSES[self._tensors.ops[switch].type]]
            for key in keys
            for op in self._ops_of[key]
            for switch in self._tensors.downstream(op, _CHOOSES.keys(), _MOST_SWITCHES)
            if len(self._tensors.inputs(switch)) > 1
        }
        return bool(conditions) and all(map(self._is_placeholder, conditions))

    def _is_placeholder(self, tensor: str) -> bool:
        op = self._tensors.producer(tensor)
        if op is None or op.type != "PlaceholderWithDefault":
            return op is not None and op.type == "Placeholder"
        inputs = self._tensors.inputs(op.name)
        defaults = self._tensors.constants(inputs[0]) if inputs else []
        return len(defaults) == 1 and defaults[0].size == 1 and bool(defaults[0].all())

    def _trainers(self) -> list[str]:
        ops = self._tensors.ops.values()
        if applies := [op.name for op in ops if _APPLIES.fullmatch(op.type) is not None]:
            return applies
        trained = [layer.variables.get(role) for layer in self._layers for role in ROLES[:2]]
        keys = {variable.key for variable in trained if variable is not None}
        assigns = self._tensors.of_types(_ASSIGNS)
        return [op.name for op in assigns if self._is_training_step(op, keys)]

    def _is_training_step(self, op: Op, keys: Set[str]) -> bool:
        """Return True if an op computes a new value of a variable in `keys` from the old value."""
        inputs = self._tensors.inputs(op.name)
        key = self._tensors.variable(inputs[0]) if len(inputs) == 2 else None
        if key is None or key not in keys:
            return False
        if op.type not in ("Assign", "AssignVariableOp"):
            return True
        old = self._ops_of[key]
        behind = self._tensors.walk([op_of(inputs[1])], self._before)
        return any(name in old for name in islice(behind, _LARGEST_STEP))

    def _run_with(self, trainers: Sequence[str]) -> Set[str]:
        """Return the ops that run in a training step: all dependencies of a training op."""
        if not trainers:
            return set()
        before = {name: [*self._before(name, with_controls=True)] for name in self._tensors.ops}
        waiting: dict[str, list[str]] = defaultdict(list)
        for name, names in before.items():
            for other in names:
                waiting[other].append(name)
        training = self._tensors.walk(trainers, lambda name: waiting.get(name, ()))
        return {*self._tensors.walk([*training], lambda name: before.get(name, ()))}

    def _ends(self) -> Iterator[str]:
        """Yield the ops without consumers, except variables, updates, savers and summaries."""
        for op in self._tensors.ops.values():
            if op.type in _ENDS_WITHOUT_USE or self._tensors.consumers.get(op.name):
                continue
            if self._tensors.variable(op.name) is None:
                yield op.name

    def _behind(self, names: Iterable[str]) -> Set[str]:
        """Return `names`, and the names of all ops on which these ops depend by data inputs."""
        return {*self._tensors.walk(names, self._before)}

    def _before(self, name: str, with_controls: bool = False) -> Iterator[str]:
        """Yield the names of the ops that an op takes as inputs and, on request, as controls."""
        op = self._tensors.ops.get(name)
        inputs = self._tensors.inputs(name)
        # A normalization with batch statistics only updates the stored statistics.
        yield from map(op_of, inputs[:3] if op is not None and is_training(op) else inputs)
        for control in self._graph.controls(name) if with_controls else ():
            if not self._steps.take():
                return
            if control in self._tensors.ops:
                yield control
                continue
            prefix = f"{control}/"
            start = bisect_left(self._names, prefix)
            for number in range(start, len(self._names)):
                if not self._names[number].startswith(prefix) or not self._steps.take():
                    break
                yield self._names[number]

    @cached_property
    def _names(self) -> Sequence[str]:
        return sorted(self._tensors.ops)
