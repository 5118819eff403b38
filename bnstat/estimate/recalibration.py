"""Statistics estimated anew from data.

One pass in which each layer normalizes by its batch (the way of PreciseBN), then one in
inference that says what remains; or, exactly, in waves from the input to the output.
Source: Wu and Johnson, "Rethinking 'Batch' in BatchNorm" (2021), section 3.2.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from bnstat.checks.rule import at_start
from bnstat.estimate.data import Data
from bnstat.estimate.modes import (
    Accuracy,
    ModeEvidence,
    Sample,
    compare,
    doubt_of,
    mode_evidence,
    percent,
    run_again,
)
from bnstat.estimate.passes import (
    Floats,
    Halves,
    Kept,
    Reading,
    Statistics,
    Track,
    in_deviations,
    read,
    untracked,
)
from bnstat.estimate.running.flat_graph import DATA, Order, op_of
from bnstat.model import Array

if TYPE_CHECKING:
    from bnstat.estimate.recalibrating import Scene
    from bnstat.estimate.running.runner import Runner
    from bnstat.estimate.running.subject import Subject


Cut = tuple[str, ...]
"""Names of tensors; none where the graph cannot be cut there."""


def cuts(subject: Subject, runner: Runner, waves: Sequence[Sequence[str]]) -> list[Cut]:
    """A cut for each wave of layers: what no layer of it or of those after it has a part in.

    Once the waves before are mended, these tensors stay what they are, and what is measured in
    the waves after can be computed from them instead of from the inputs.

    Args:
        subject: the model.
        runner: its session, in which each layer normalizes by what is fed.
        waves: the layers in groups.
    """
    measuring = runner.measuring
    graph_def = measuring.graph_def
    marks = {op_of(each.tensor): [DATA] for each in subject.inputs.values()}
    for layer, holders in measuring.given.items():
        marks.update({op_of(name): [layer] for name in holders.values()})
    order = Order(graph_def, marks)
    nodes = {node.name: node for node in graph_def.node}
    results = [
        [op_of(name) for site in subject.numbers(wave) for name in measuring.results[site]]
        for wave in waves
    ]
    last = _last(nodes, results)
    mended = {layer: number for number, wave in enumerate(waves, 1) for layer in wave}

    def settled(tensor: str) -> int:
        """The first wave in which a tensor is what it stays."""
        return max((mended.get(mark, 0) for mark in order.marks(tensor)), default=0)

    found: list[set[str]] = [set() for _ in waves]
    for name, needed in last.items():
        until = min(settled(name), needed)
        for tensor in nodes[name].input:
            if not tensor.startswith("^") and DATA in order.marks(tensor):
                for number in range(settled(tensor), until):
                    found[number].add(tensor)
    whole = [_cut(nodes, order, tensors) for tensors in found]
    return [cut if all(map(runner.can_keep, cut)) else () for cut in whole]


def _last(nodes: Mapping[str, Any], results: Sequence[Sequence[str]]) -> dict[str, int]:
    """Op -> the last wave that needs it."""
    last: dict[str, int] = {}
    for number in range(len(results) - 1, -1, -1):
        stack = list(results[number])
        while stack:
            name = stack.pop()
            if name not in last:
                last[name] = number
                stack.extend(map(op_of, nodes[name].input))
    return last


def _cut(nodes: Mapping[str, Any], order: Order, tensors: set[str]) -> Cut:
    if any(order.conditions(tensor) for tensor in tensors):
        return ()
    return tuple(sorted({_itself(nodes, tensor) for tensor in tensors}))


def _itself(nodes: Mapping[str, Any], tensor: str) -> str:
    """The tensor of which another one is but another name, with its place: `op:0`."""
    while nodes[op_of(tensor)].op == "Identity":
        tensor = next(each for each in nodes[op_of(tensor)].input if not each.startswith("^"))
    return tensor if ":" in tensor else f"{tensor}:0"


_MOST_ROUNDS = 20
"""Readings for layers that depend on themselves; each is nearer than the one before."""

_SETTLED = 1e-6
"""Standard deviations by which a round may still move them."""

FAR = 0.05
"""Standard deviations that may remain; more is said."""


@dataclass(frozen=True)
class Mended:
    """A layer and its new statistics.

    Attributes:
        layer: its name.
        mean, variance: [channels], in the dtype that the model keeps.
        moved: how far the mean moved at the worst channel, in new standard deviations.
        ratio: the new variance as a multiple of the old, at the channel where that is farthest
            from 1.
        error: how far off the mean may be, in standard deviations at the worst channel, by two
            halves of the data; None where there is but one batch.
        remains: how far the new statistics are from what enters the layer in inference with
            them, in standard deviations at the worst channel.
    """

    layer: str
    mean: Array
    variance: Array
    moved: float
    ratio: float
    error: float | None
    remains: float


@dataclass(frozen=True)
class Recalibration:
    """What recalibration did.

    Attributes:
        layers: what was mended, in the order of the network.
        left: layer -> why it was left as it was.
        samples, batches: of the data.
        waves: how many groups of layers were mended one after another; 1 without `exact`.
        exact: whether it was done in waves.
        accuracy: before and after, where the data has labels.
        evidence: what shows how the model was trained.
        is_initial: True if a layer held the initial statistics.
    """

    layers: tuple[Mended, ...]
    left: Mapping[str, str]
    samples: int
    batches: int
    waves: int
    exact: bool
    accuracy: tuple[float, float] | None
    evidence: ModeEvidence
    is_initial: bool

    @property
    def objection(self) -> str | None:
        """Why the old statistics are to be kept; None if nothing shows that."""
        if self.is_initial and self.evidence.trained_with == "stored-statistics":
            reasons = "; ".join(self.evidence.reasons)
            return f"was trained in inference mode, with the statistics that it stores: {reasons}"
        if self.accuracy is not None and self.accuracy[1] < self.accuracy[0]:
            before, after = map(percent, self.accuracy)
            return f"would lose accuracy by the new statistics: {before} before, {after} after"
        return None

    @property
    def values(self) -> dict[str, dict[str, Array]]:
        """Layer -> role -> its new statistics, [channels]."""
        return {
            each.layer: {"moving_mean": each.mean, "moving_variance": each.variance}
            for each in self.layers
        }


def estimate(
    scene: Scene,
    *,
    exact: bool = False,
    track: Track = untracked,
    kept: Kept | None = None,
) -> Recalibration:
    """Estimate the statistics of a model's layers.

    If a layer holds the initial statistics, up to `modes.MOST_SAMPLES` samples are run once more
    with the stored ones.

    Args:
        scene: the model and the data.
        exact: in waves, so that nothing remains, instead of in one pass.
        track: shows how far it is.
        kept: where activations are kept from wave to wave; by default up to 1 GiB of them.

    Raises:
        BnstatError: the model cannot be run on this data.
    """
    subject, data = scene.subject, scene.data
    old = subject.stored()
    is_initial = any(map(at_start, subject.layers.values()))
    sample = Sample() if is_initial and subject.is_comparable else None
    found = {} if exact else _by_batch(subject, data, track)
    waves = subject.waves()
    with subject.runner(by_batch=False, sample=not exact, optimized=not exact) as runner:
        before = None
        if data.labels is not None:
            before = read(
                subject,
                runner,
                data,
                track,
                "accuracy before",
                given=old,
                layers=(),
                with_accuracy=True,
            ).accuracy
        if exact:
            found = _in_waves(subject, runner, data, track, waves, kept or Kept())
        new = _used(subject, found, old)
        last = read(
            subject,
            runner,
            data,
            track,
            "verifying",
            given=new,
            layers=list(subject.layers),
            with_accuracy=data.labels is not None,
            watch=None if sample is None else sample.add,
        )
        accuracy = None
        if before is not None and last.accuracy is not None:
            accuracy = (before, last.accuracy)
        modes = None
        again = None if sample is None else run_again(scene, runner, sample, old, track)
        if again is not None:
            modes = compare(
                again.second,
                again.first,
                subject.activation,
                accuracy
                and (Accuracy(accuracy[0], last.samples), Accuracy(accuracy[1], last.samples)),
                doubt_of(scene.model, subject),
            )
    left = dict(subject.left)
    left.update({name: _why(found[name]) for name in subject.layers if not _usable(found[name])})
    layers = tuple(
        _mended(subject, name, old[name], new[name], found[name], last)
        for name in subject.layers
        if name not in left
    )
    return Recalibration(
        layers,
        left,
        last.samples,
        last.batches,
        len(waves) if exact else 1,
        exact,
        accuracy,
        mode_evidence(scene.model, modes),
        is_initial,
    )


def _by_batch(subject: Subject, data: Data, track: Track) -> dict[str, Halves]:
    with subject.runner(by_batch=True, sample=True) as runner:
        names = list(subject.layers)
        return read(subject, runner, data, track, "estimating", given={}, layers=names).moments


def _in_waves(
    subject: Subject,
    runner: Runner,
    data: Data,
    track: Track,
    waves: list[list[str]],
    kept: Kept,
) -> dict[str, Halves]:
    found: dict[str, Halves] = {}
    given: dict[str, Mapping[str, Array]] = dict(subject.stored())
    for number, (wave, cut) in enumerate(zip(waves, cuts(subject, runner, waves), strict=True), 1):
        what = f"wave {number} of {len(waves)}"
        kept.enter(cut)
        for _ in range(_MOST_ROUNDS if subject.depend_on_themselves(wave) else 1):
            reading = read(subject, runner, data, track, what, given=given, layers=wave, kept=kept)
            found.update(reading.moments)
            new = _used(subject, {name: found[name] for name in wave}, given)
            moved = max(
                float(np.max(_distance(given[name], new[name]), initial=0.0)) for name in wave
            )
            given.update({name: new[name] for name in wave})
            if moved <= _SETTLED:
                break
    return found


def _used(subject: Subject, found: Mapping[str, Halves], old: Statistics) -> Statistics:
    """The new statistics in the dtypes of the model; the old where there is nothing usable."""
    used = dict(old)
    for name, halves in found.items():
        if _usable(halves):
            whole = halves.whole
            kinds = {role: array.dtype for role, array in old[name].items()}
            used[name] = {
                "moving_mean": whole.mean.astype(kinds["moving_mean"]),
                "moving_variance": whole.variance(subject.unbiased[name]).astype(
                    kinds["moving_variance"]
                ),
            }
    return used


def _usable(halves: Halves) -> bool:
    whole = halves.whole
    return whole.count > 1 and bool(np.isfinite(whole.mean + whole.squares).all())


def _why(halves: Halves) -> str:
    if halves.whole.count > 1:
        return "what enters it is not finite: NaN or infinite"
    return "the data never reaches it"


def _mended(
    subject: Subject,
    name: str,
    old: Mapping[str, Array],
    new: Mapping[str, Array],
    found: Halves,
    last: Reading,
) -> Mended:
    mean, variance = new["moving_mean"], new["moving_variance"]
    with np.errstate(divide="ignore", invalid="ignore"):
        ratios = np.asarray(variance, np.float64) / np.asarray(old["moving_variance"], np.float64)
        farthest = np.nan_to_num(np.abs(np.log(ratios)), nan=0.0, posinf=np.inf)
    entering = last.moments[name].whole
    reached = {
        "moving_mean": entering.mean,
        "moving_variance": entering.variance(subject.unbiased[name]),
    }
    return Mended(
        name,
        mean,
        variance,
        float(np.max(_distance(old, new), initial=0.0)),
        float(ratios[int(np.argmax(farthest))]),
        found.error,
        float(np.max(_distance(reached, new), initial=0.0)) if entering.count else 0.0,
    )


def _distance(one: Mapping[str, Array], other: Mapping[str, Array]) -> Floats:
    """How far apart two pairs of statistics are, in standard deviations of the second.

    Channel by channel it is the distance of the means, or of the deviations where that is more.
    """
    means = [np.asarray(each["moving_mean"], np.float64) for each in (one, other)]
    deviations = [
        np.sqrt(np.maximum(np.asarray(each["moving_variance"], np.float64), 0))
        for each in (one, other)
    ]
    distances = (np.abs(means[0] - means[1]), np.abs(deviations[0] - deviations[1]))
    return np.maximum(*(in_deviations(each, deviations[1]) for each in distances))
