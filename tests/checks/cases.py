"""Layers and runs for the tests of rules, and cases: models with a finding of each rule.

Each case has a counterpart that is just short of a finding.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from bnstat.checks import Finding, check
from bnstat.model import BatchNorm, Model, Source
from tests.output import models

CHANNELS = 8
NAN, INFINITE = float("nan"), float("inf")
ZEROS, ONES = np.zeros(CHANNELS, np.float32), np.ones(CHANNELS, np.float32)
START = {"moving_mean": ZEROS, "moving_variance": ONES}
INITIAL = {"gamma": ONES, "beta": ZEROS, **START}


@dataclass(frozen=True)
class Layer:
    """A layer to build: its arrays by role and its settings."""

    arrays: Mapping[str, np.ndarray]
    epsilon: float = 1e-3
    momentum: float = 0.99


def array(*numbers: float) -> np.ndarray:
    return np.array(numbers, np.float32)


def sound(seed: int = 0, channels: int = CHANNELS, **changes: Any) -> Layer:
    """Return a layer without any findings, with some arrays or settings changed."""
    random = np.random.default_rng(seed)
    settings = {name: changes.pop(name) for name in ("epsilon", "momentum") if name in changes}
    arrays = {
        "gamma": random.normal(1, 0.2, channels),
        "beta": random.normal(0, 0.3, channels),
        "moving_mean": random.normal(0, 1, channels),
        "moving_variance": random.uniform(0.5, 2, channels),
    }
    return Layer({**{role: np.float32(arrays[role]) for role in arrays}, **changes}, **settings)


def but(role: str, seed: int = 0, **channels: float) -> Layer:
    """Return the sound layer with single channels of one role changed: `but(role, c3=0.0)`."""
    changed = sound(seed).arrays[role].copy()
    for channel, value in channels.items():
        changed[int(channel[1:])] = value
    return sound(seed, **{role: changed})


def both(**channels: tuple[float, float]) -> Layer:
    """Return the sound layer with gamma and beta of single channels changed."""
    gamma, beta = (sound().arrays[role].copy() for role in ("gamma", "beta"))
    for channel, (scale, offset) in channels.items():
        gamma[int(channel[1:])], beta[int(channel[1:])] = scale, offset
    return sound(gamma=gamma, beta=beta)


def variances(*numbers: float, mean: np.ndarray | None = None) -> Layer:
    """Return a layer that has only means and these variances."""
    mean = sound(1).arrays["moving_mean"][: len(numbers)] if mean is None else mean
    return Layer({"moving_mean": mean, "moving_variance": array(*numbers)})


def without(layer: Layer, *roles: str) -> Layer:
    return Layer({role: array for role, array in layer.arrays.items() if role not in roles})


def norm(layer: Layer, name: str = "bn", **fields: Any) -> BatchNorm:
    settings = {"epsilon": layer.epsilon, "momentum": layer.momentum} | fields
    return models.layer(name, layer.arrays, **settings)


def model(*layers: BatchNorm, step: int | None = None, **fields: Any) -> Model:
    source = Source("runs/cnn", "tf2-checkpoint", step=step)
    return models.model(*layers, **{"source": source, **fields})


def find(rule: str, *layers: BatchNorm, step: int | None = None, **options: Any) -> list[Finding]:
    """Return the findings of a rule in layers."""
    return check(model(*layers, step=step), select=[rule], **options)


@dataclass(frozen=True)
class Case:
    """A layer with a finding of a rule, and a layer that is just short of it.

    Attributes:
        rule, severity: the code of the rule, and the severity of the finding.
        found, short: the layers.
        channels: the channels of the finding.
        steps: the step of the checkpoint with each layer.
        others: layers of both models, by name; they come first.
    """

    rule: str
    severity: str
    found: Layer
    short: Layer
    channels: Sequence[int] = ()
    steps: tuple[int | None, int | None] = (None, None)
    others: Mapping[str, Layer] = field(default_factory=dict)
    label: str = ""

    def __str__(self) -> str:
        return f"{self.rule}-{self.severity}{self.label and '-'}{self.label}"


def _scaled(scale: float) -> Layer:
    """Return a layer whose channel 4 has a variance of 0 and this effective scale."""
    gamma, variance = (sound().arrays[role].copy() for role in ("gamma", "moving_variance"))
    gamma[4], variance[4] = -scale * np.sqrt(1e-3), 0
    return sound(gamma=gamma, moving_variance=variance)


ALMOST_ONES = np.array([*ONES[1:], np.nextafter(np.float32(1), np.float32(2))])
ALMOST_ZEROS = np.array([*ZEROS[1:], 1e-30], np.float32)
LEAST = float(np.nextafter(np.float32(1e-7), np.float32(0)))
MORE = float(np.nextafter(np.float32(1e-7), np.float32(1)))
OTHER = {"other": sound(1)}
LOW, LOWER = but("moving_variance", c2=0.37), but("moving_variance", c2=0.36)

CASES = (
    Case("BN001", "warning", sound(**START),
         sound(moving_mean=ZEROS, moving_variance=ALMOST_ONES), others=OTHER),
    Case("BN001", "info", sound(**INITIAL), sound(**{**INITIAL, "moving_mean": ALMOST_ZEROS}),
         others=OTHER, label="untrained"),
    Case("BN002", "warning", sound(moving_variance=ONES), sound(moving_variance=ALMOST_ONES),
         label="variance"),
    Case("BN002", "warning", sound(moving_mean=ZEROS), sound(moving_mean=ALMOST_ZEROS),
         label="mean"),
    # 0.99 ** 229 is just above 0.1, 0.99 ** 230 just below it.
    Case("BN003", "warning", *[but("moving_variance", c2=0.14)] * 2, steps=(229, 230)),
    # A variance far above the share does not show whether the share is in it.
    Case("BN003", "info", *[but("moving_variance", c2=0.5)] * 2, steps=(229, 230), label="unseen"),
    # A variance below the share shows that the step does not count updates.
    Case("BN003", "warning", LOW, LOWER, steps=(100, 100), others=OTHER, label="refuted"),
    Case("BN003", "info", *[sound(moving_variance=ONES * 50)] * 2, steps=(229, 230), label="large"),
    Case("BN004", "error", but("moving_mean", c3=NAN, c5=INFINITE),
         but("moving_mean", c3=3e38, c5=-3e38), (3, 5)),
    Case("BN005", "error", but("moving_variance", c1=-0.0011),
         but("moving_variance", c1=0.0011), (1,)),
    Case("BN005", "warning", but("moving_variance", c1=-1e-9),
         but("moving_variance", c1=-0.0), (1,), label="above-epsilon"),
    Case("BN006", "info", but("moving_variance", c0=0.0, c7=LEAST),
         but("moving_variance", c0=MORE, c7=MORE), (0, 7)),
    Case("BN006", "warning", sound(moving_variance=ZEROS + np.float32(LEAST)),
         but("moving_variance", **{f"c{c}": LEAST for c in range(7)}), range(CHANNELS),
         label="all-channels"),
    Case("BN007", "warning", _scaled(1001), _scaled(999), (4,)),
    Case("BN008", "info", sound(moving_variance=array(1, 1, 1, 1, 1, 1, 1, 10001)),
         sound(moving_variance=array(1, 1, 1, 1, 1, 1, 1, 10000)), (7,)),
    Case("BN009", "info", both(c2=(-0.00099, 0.099)), both(c2=(-0.0011, 0.099)), (2,)),
    Case("BN010", "info", both(c2=(0.00099, -0.11)), both(c2=(0.00099, -0.09)), (2,)),
    Case("BN013", "info", sound(gamma=sound(1).arrays["gamma"]), but("moving_mean", c6=0.125),
         others={"original": sound()}),
    Case("BN013", "info", sound(), but("moving_mean", c6=0.125), others={"original": sound()},
         label="whole-layer"),
    Case("BN014", "info", sound(momentum=0.1), sound(momentum=0.5)),
)  # fmt: skip
"""BN011, BN012 and BN015 to BN018 do not depend on values alone; they have tests of their own."""

Checkpoint = Mapping[str, Layer]


def run(length: int, at: Callable[[int], Layer]) -> list[Checkpoint]:
    """Return the checkpoints of a layer `at(number)`.

    Beside it are a layer that moves in every role, and one without statistics, which does not move.
    """
    bare = without(sound(8), "moving_mean", "moving_variance")
    return [{"bare": bare, "bn": at(n), "other": sound(100 + n)} for n in range(length)]


def moving(number: int, *roles: str) -> Layer:
    """Return the sound layer with other values of some roles in every checkpoint."""
    return sound(**{role: sound(number + 1).arrays[role] for role in roles})
