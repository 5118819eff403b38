"""What a rule is, what it finds, and the thresholds that decide.

A rule is one `Rule` object: a function from what is judged to its findings, with the whole of
its documentation beside it. `bnstat check --explain CODE` prints nothing but these fields.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, fields
from typing import Final, Generic, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from bnstat.errors import BnstatError
from bnstat.model import Array, BatchNorm, as_float64

Severity = Literal["error", "warning", "info"]
SEVERITIES: Final[tuple[Severity, ...]] = ("error", "warning", "info")
"""From the gravest to the mildest."""

LARGEST_DEFAULT_EPSILON: Final = 1e-3
"""The default of Keras, tf.layers and slim; those of Sonnet 2, Flax and PyTorch are smaller."""

SMALLEST_DEFAULT_EPSILON: Final = 1e-5
"""The default of Sonnet 2, tensorpack, Flax and PyTorch."""

Subject = TypeVar("Subject")
Number = float | int | None


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that a rule found.

    Attributes:
        rule: the rule's code, such as `BN001`.
        name: the rule's name, such as `never-updated`.
        severity: `error`, `warning` or `info`.
        layer: the layer's name; None where the finding is about the whole model.
        channels: the channels in question, as an array of indices into the layer's flattened
            variables; empty where it is about the layer as a whole.
        message: one sentence with the numbers that matter, without the layer's name.
        numbers: the numbers by name, for programs.
    """

    rule: str
    name: str
    severity: Severity
    layer: str | None
    channels: NDArray[np.intp] = field(compare=False)
    message: str
    numbers: Mapping[str, Number] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Thresholds:
    """Where each rule draws its line. The rules' own documentation names the sources.

    Attributes:
        initial: the largest share of the initial 0 and 1 that warmed-up statistics hold.
        collapsed: a variance below this share of epsilon is that of a constant channel.
        scale: the largest |gamma| / sqrt(variance + epsilon) that is not an explosion.
        outlier: the largest multiple of the layer's median variance that is in proportion.
        gamma: below this |gamma| a pruner takes the channel to be off.
        beta: from this |beta| on a channel that is off still matters to the next layer.
        momentum: below this momentum the averages follow the last few batches.
        drift: the largest movement between two checkpoints of statistics that have settled.
        growth: the growth between two checkpoints from which on a variance diverges.
    """

    initial: float = 0.1
    collapsed: float = 1e-4
    scale: float = 1e3
    outlier: float = 1e4
    gamma: float = 1e-3
    beta: float = 0.1
    momentum: float = 0.5
    drift: float = 0.1
    growth: float = 1.5

    @classmethod
    def of(cls, settings: Mapping[str, float]) -> Thresholds:
        """The defaults with some of them replaced.

        Raises:
            BnstatError: there is no threshold of that name, or the value is no number above 0.
        """
        names = [each.name for each in fields(cls)]
        for name, value in settings.items():
            if name not in names:
                raise BnstatError(name, "there is no such threshold", f"use {', '.join(names)}")
            if not value > 0:
                raise BnstatError(name, f"a threshold is a number above 0, not {value:g}")
        return cls(**settings)


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule(Generic[Subject]):
    """A rule: what it looks for, all that a person needs to know about it, and how it looks.

    Attributes:
        code: stable, never reused.
        name: a word for it.
        title: what it finds, in a line.
        severity: of its gravest finding.
        what: what it finds, and when it is milder than `severity`.
        why: what it does to the network.
        example: numbers that it finds.
        mend: what to do about it, by library.
        confidence: how sure a finding is, and what can look like one without being wrong.
        threshold: the line it draws, the name of its option and the source of its default.
        find: yields the findings in one subject, a model or a history.
    """

    code: str
    name: str
    title: str
    severity: Severity
    what: str
    why: str
    example: str
    mend: Mapping[str, str]
    confidence: str
    threshold: str
    find: Callable[[Rule[Subject], Subject, Thresholds], Iterator[Finding]]

    def finding(
        self,
        message: str,
        *,
        layer: str | None = None,
        channels: NDArray[np.bool_] | None = None,
        severity: Severity | None = None,
        **numbers: Number,
    ) -> Finding:
        """A finding of this rule; `channels` is a mask over the layer's elements."""
        found = np.empty(0, np.intp) if channels is None else np.flatnonzero(channels)
        return Finding(
            self.code, self.name, severity or self.severity, layer, found, message, numbers
        )


def numbers_of(layer: BatchNorm, role: str) -> NDArray[np.float64] | None:
    """The flat numbers of a role; None where the layer lacks it."""
    array: Array | None = layer.array(role)
    return None if array is None else as_float64(array).ravel()


def statistics_of(layer: BatchNorm) -> tuple[NDArray[np.float64], NDArray[np.float64]] | None:
    """The flat moving mean and variance; None where either is missing or empty."""
    mean, variance = numbers_of(layer, "moving_mean"), numbers_of(layer, "moving_variance")
    if mean is None or variance is None or not mean.size or not variance.size:
        return None
    return mean, variance


def at_start(layer: BatchNorm) -> bool:
    """Whether every moving mean is still the initial 0 and every moving variance still 1."""
    statistics = statistics_of(layer)
    return statistics is not None and bool(
        (statistics[0] == 0).all() and (statistics[1] == 1).all()
    )


def count(number: int, noun: str) -> str:
    """`1 channel`, `2 channels`."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def of_channels(mask: NDArray[np.bool_]) -> str:
    """`3 of 64 channels`, or `all 64 channels`."""
    found = int(mask.sum())
    if found == mask.size:
        return "its only channel" if found == 1 else f"all {found} channels"
    return f"{found} of {count(mask.size, 'channel')}"
