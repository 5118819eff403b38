"""The parts of every rule: `Rule`, `Finding`, `Thresholds`, and access to a layer's numbers."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, fields
from functools import cache
from typing import Final, Generic, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from bnstat.errors import BnstatError
from bnstat.model import BatchNorm, as_float64
from bnstat.text import count

Severity = Literal["error", "warning", "info"]
SEVERITIES: Final[tuple[Severity, ...]] = ("error", "warning", "info")
"""The severities, most serious first."""

LARGEST_DEFAULT_EPSILON: Final = 1e-3
"""The default of Keras, tf.layers and slim; Sonnet 2, Flax and PyTorch have smaller defaults."""

SMALLEST_DEFAULT_EPSILON: Final = 1e-5  # the default of Sonnet 2, tensorpack, Flax and PyTorch

Subject = TypeVar("Subject")
Number = float | int | None
Numbers = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Finding:
    """One problem that a rule found.

    Attributes:
        rule: the rule's code, such as `BN001`.
        name: the rule's name, such as `never-updated`.
        severity: `error`, `warning` or `info`.
        layer: the layer's name; None if the finding is about the whole model.
        channels: the affected channels, as indices into the layer's flattened variables; empty if
            the finding is about the whole layer.
        message: one sentence with the numbers that matter, without the layer's name.
        numbers: name -> number, for programs that do not parse the message.
    """

    rule: str
    name: str
    severity: Severity
    layer: str | None
    channels: NDArray[np.intp] = field(compare=False)
    message: str
    numbers: Mapping[str, Number] = field(default_factory=dict)


def counts(findings: Iterable[Finding]) -> dict[Severity, int]:
    """Return severity -> number of findings, the most serious severity first."""
    severities = [finding.severity for finding in findings]
    return {severity: severities.count(severity) for severity in SEVERITIES}


@dataclass(frozen=True, slots=True)
class Thresholds:
    """The thresholds of the rules. Each rule's documentation gives the source of the default.

    Attributes:
        initial: the largest weight that the initial 0 and 1 may still have in moving statistics.
        collapsed: a channel whose variance is at most this multiple of epsilon counts as constant.
        scale: the largest |gamma| / sqrt(variance + epsilon) that is not reported.
        outlier: the largest variance that is not reported, as a multiple of the layer's median.
        gamma: a channel with a smaller |gamma| counts as switched off.
        beta: a switched-off channel with at least this |beta| matters to the next layer.
        momentum: a smaller momentum is reported, because only the last few batches count.
        drift: statistics that change by more between checkpoints (`Track.change`) have not settled.
        growth: a moving variance that grows by at least this factor between checkpoints diverges.
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
        """Return the defaults, replaced by the values in `settings`.

        Raises BnstatError if a name is not a threshold, or a value is not above 0.
        """
        names = [threshold.name for threshold in fields(cls)]
        for name, value in settings.items():
            if name not in names:
                raise BnstatError(name, "is not a threshold", f"use {', '.join(names)}")
            if not value > 0:
                raise BnstatError(name, f"a threshold is a number above 0, not {value:g}")
        return cls(**settings)


@dataclass(frozen=True, slots=True)
class Rule(Generic[Subject]):
    """A rule: its names, and the function that applies it.

    Attributes:
        code: the code, such as `BN001`; never reused for another rule.
        name: the name, such as `never-updated`.
        severity: the severity of the rule's most serious finding.
        title: the problem, in at most 43 characters.
        find: yields the findings in a subject, which is a model or a history.
    """

    code: str
    name: str
    severity: Severity
    title: str
    find: Find[Subject]

    def sections(self) -> Mapping[str, str]:
        """Return title -> text for each section of the rule's documentation, in display order."""
        return _documentation()[f"{self.code} {self.name}"]

    def finding(
        self,
        message: str,
        layer: str | None = None,
        channels: NDArray[np.bool_] | None = None,
        *,
        severity: Severity | None = None,
        **numbers: Number,
    ) -> Finding:
        """Return a finding of this rule; `channels` is a mask over the layer's elements."""
        severity = severity or self.severity
        indices = np.empty(0, np.intp) if channels is None else np.flatnonzero(channels)
        return Finding(self.code, self.name, severity, layer, indices, message, numbers)


Find = Callable[[Rule[Subject], Subject, Thresholds], Iterator[Finding]]


def as_rule(
    code: str, name: str, severity: Severity, title: str
) -> Callable[[Find[Subject]], Rule[Subject]]:
    """Return a decorator that makes a rule of a function; see `Rule`."""
    return lambda find: Rule(code, name, severity, title, find)


@cache
def _documentation() -> Mapping[str, Mapping[str, str]]:
    """Return rule (`CODE NAME`) -> (section title -> section text), from the page docs/rules.md."""
    from bnstat import docs

    result = {}
    for part in docs.read("rules").split("\n## ")[1:]:
        heading, *paragraphs = (" ".join(each.split()) for each in part.split("\n\n"))
        titled = (each.removeprefix("**").partition(".** ") for each in paragraphs)
        result[heading] = {title: re.sub(r"\\(\W)", r"\1", text) for title, _, text in titled}
    return result


def numbers_of(layer: BatchNorm, role: str) -> Numbers | None:
    """Return the values of a role as a flat array; None if the layer lacks the role."""
    array = layer.array(role)
    return None if array is None else as_float64(array).ravel()


def statistics_of(layer: BatchNorm) -> tuple[Numbers, Numbers] | None:
    """Return moving mean and variance as flat arrays; None if either is missing or empty."""
    mean, variance = numbers_of(layer, "moving_mean"), numbers_of(layer, "moving_variance")
    if mean is None or variance is None or not mean.size or not variance.size:
        return None
    return mean, variance


def epsilon_of(layer: BatchNorm, default: float = LARGEST_DEFAULT_EPSILON) -> float:
    """Return the epsilon of a layer, or `default` if the file does not store epsilon."""
    return default if layer.epsilon is None else layer.epsilon


def scale_of(layer: BatchNorm) -> Numbers | None:
    """Return gamma / sqrt(variance + epsilon); None without variance or if the shapes differ."""
    variance, gamma = numbers_of(layer, "moving_variance"), numbers_of(layer, "gamma")
    if variance is None or (gamma is not None and gamma.shape != variance.shape):
        return None
    with np.errstate(all="ignore"):
        return (1.0 if gamma is None else gamma) / np.sqrt(variance + epsilon_of(layer))


def has_initial_statistics(layer: BatchNorm) -> bool:
    """Return True if every moving mean is the initial 0 and every moving variance is 1."""
    mean, variance = statistics_of(layer) or (None, None)
    return bool(np.all(mean == 0) and np.all(variance == 1))


def all_of(number: int, noun: str) -> str:
    """Return a phrase for all items: `its only channel`, `both channels`, `all 64 channels`."""
    return {1: f"its only {noun}", 2: f"both {noun}s"}.get(number, f"all {number} {noun}s")


def of_channels(mask: NDArray[np.bool_]) -> str:
    """Return the number of True elements in words: `3 of 64 channels`, `all 64 channels`."""
    if mask.all():
        return all_of(mask.size, "channel")
    return f"{mask.sum()} of {count(mask.size, 'channel')}"
