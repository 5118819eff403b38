"""For each rule a model that it finds something in, and one just short of it.

The models are described here and built twice: by hand, and with TensorFlow.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

CHANNELS = 8

Arrays = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Layer:
    """A layer to build: its arrays by role and its settings."""

    arrays: Arrays
    epsilon: float = 1e-3
    momentum: float = 0.99


@dataclass(frozen=True)
class Case:
    """What a rule has to find in one model, and not in the other.

    Attributes:
        rule: the rule's code.
        severity: of what it finds.
        found, short: the layers by name, and the step of the checkpoint.
        layer: the layer in question; None for the whole model.
        channels: those that it has to name.
    """

    rule: str
    severity: str
    found: Mapping[str, Layer]
    short: Mapping[str, Layer]
    layer: str | None = "bn"
    channels: Sequence[int] = ()
    found_step: int | None = None
    short_step: int | None = None
    label: str = field(default="")

    def __str__(self) -> str:
        return f"{self.rule}-{self.severity}{self.label and '-'}{self.label}"


def array(*numbers: float) -> np.ndarray:
    return np.array(numbers, np.float32)


def start(channels: int) -> dict[str, np.ndarray]:
    """The statistics that a layer begins with."""
    return {"moving_mean": np.zeros(channels, "f4"), "moving_variance": np.ones(channels, "f4")}


def sound(seed: int = 0, channels: int = CHANNELS, **changes: Any) -> Layer:
    """A layer that no rule finds anything in, with some of its arrays or settings changed."""
    random = np.random.default_rng(seed)
    settings = {name: changes.pop(name) for name in ("epsilon", "momentum") if name in changes}
    arrays = {
        "gamma": random.normal(1, 0.2, channels).astype(np.float32),
        "beta": random.normal(0, 0.3, channels).astype(np.float32),
        "moving_mean": random.normal(0, 1, channels).astype(np.float32),
        "moving_variance": random.uniform(0.5, 2, channels).astype(np.float32),
    }
    return Layer({**arrays, **changes}, **settings)


def but(role: str, seed: int = 0, **channels: float) -> Layer:
    """The sound layer with single channels of one role changed: `but(role, c3=0.0)`."""
    changed = sound(seed).arrays[role].copy()
    for channel, value in channels.items():
        changed[int(channel[1:])] = value
    return sound(seed, **{role: changed})


def both(**channels: tuple[float, float]) -> Layer:
    """The sound layer with gamma and beta of single channels changed."""
    gamma, beta = (sound().arrays[role].copy() for role in ("gamma", "beta"))
    for channel, (scale, offset) in channels.items():
        gamma[int(channel[1:])], beta[int(channel[1:])] = scale, offset
    return sound(gamma=gamma, beta=beta)


def _scaled(scale: float) -> Layer:
    """A layer whose channel 4 has a variance of 0, and the effective scale `scale`."""
    variance = sound().arrays["moving_variance"].copy()
    variance[4] = 0
    gamma = sound().arrays["gamma"].copy()
    gamma[4] = -scale * np.sqrt(1e-3)
    return sound(gamma=gamma, moving_variance=variance)


ZEROS, ONES = np.zeros(CHANNELS, np.float32), np.ones(CHANNELS, np.float32)
START = start(CHANNELS)
INITIAL = {"gamma": ONES, "beta": ZEROS, **START}
ALMOST_ONES = np.array([*ONES[1:], np.nextafter(np.float32(1), np.float32(2))])
ALMOST_ZEROS = np.array([*ZEROS[1:], 1e-30], np.float32)
LEAST = float(np.nextafter(np.float32(1e-7), np.float32(0)))
MORE = float(np.nextafter(np.float32(1e-7), np.float32(1)))

CASES = (
    Case(
        "BN001",
        "warning",
        found={"bn": sound(**START), "other": sound(1)},
        short={"bn": sound(moving_mean=ZEROS, moving_variance=ALMOST_ONES), "other": sound(1)},
    ),
    Case(
        "BN001",
        "warning",
        found={"bn": sound(**START), "other": sound(1, **START)},
        short={"bn": sound(moving_mean=ZEROS, moving_variance=ALMOST_ONES), "other": sound(1)},
        layer=None,
        label="whole-model",
    ),
    Case(
        "BN001",
        "info",
        found={"bn": sound(**INITIAL), "other": sound(1)},
        short={"bn": sound(**{**INITIAL, "moving_mean": ALMOST_ZEROS}), "other": sound(1)},
        label="untrained",
    ),
    Case(
        "BN002",
        "warning",
        found={"bn": sound(moving_variance=ONES)},
        short={"bn": sound(moving_variance=ALMOST_ONES)},
        label="variance",
    ),
    Case(
        "BN002",
        "warning",
        found={"bn": sound(moving_mean=ZEROS)},
        short={"bn": sound(moving_mean=ALMOST_ZEROS)},
        label="mean",
    ),
    # 0.99 ** 229 is just above 0.1, 0.99 ** 230 just below it.
    Case(
        "BN003",
        "warning",
        found={"bn": but("moving_variance", c2=0.14)},
        short={"bn": but("moving_variance", c2=0.14)},
        found_step=229,
        short_step=230,
    ),
    # Far above the share, a variance does not tell whether it is in there.
    Case(
        "BN003",
        "info",
        found={"bn": but("moving_variance", c2=0.5)},
        short={"bn": but("moving_variance", c2=0.5)},
        found_step=229,
        short_step=230,
        label="unseen",
    ),
    # A variance below the share shows that the step does not count updates.
    Case(
        "BN003",
        "warning",
        found={"bn": but("moving_variance", c2=0.37), "other": sound(1)},
        short={"bn": but("moving_variance", c2=0.36), "other": sound(1)},
        found_step=100,
        short_step=100,
        label="refuted",
    ),
    Case(
        "BN003",
        "info",
        found={"bn": sound(moving_variance=ONES * 50)},
        short={"bn": sound(moving_variance=ONES * 50)},
        found_step=229,
        short_step=230,
        label="large-variances",
    ),
    Case(
        "BN004",
        "error",
        found={"bn": but("moving_mean", c3=float("nan"), c5=float("inf"))},
        short={"bn": but("moving_mean", c3=3e38, c5=-3e38)},
        channels=(3, 5),
    ),
    Case(
        "BN005",
        "error",
        found={"bn": but("moving_variance", c1=-0.0011)},
        short={"bn": but("moving_variance", c1=0.0011)},
        channels=(1,),
    ),
    Case(
        "BN005",
        "warning",
        found={"bn": but("moving_variance", c1=-1e-9)},
        short={"bn": but("moving_variance", c1=-0.0)},
        channels=(1,),
        label="above-epsilon",
    ),
    Case(
        "BN006",
        "info",
        found={"bn": but("moving_variance", c0=0.0, c7=LEAST)},
        short={"bn": but("moving_variance", c0=MORE, c7=MORE)},
        channels=(0, 7),
    ),
    Case(
        "BN006",
        "warning",
        found={"bn": sound(moving_variance=ZEROS + np.float32(LEAST))},
        short={"bn": but("moving_variance", **{f"c{c}": LEAST for c in range(7)})},
        channels=range(CHANNELS),
        label="all-channels",
    ),
    Case(
        "BN007",
        "warning",
        found={"bn": _scaled(1001)},
        short={"bn": _scaled(999)},
        channels=(4,),
    ),
    Case(
        "BN008",
        "info",
        found={"bn": sound(moving_variance=array(1, 1, 1, 1, 1, 1, 1, 10001))},
        short={"bn": sound(moving_variance=array(1, 1, 1, 1, 1, 1, 1, 10000))},
        channels=(7,),
    ),
    Case(
        "BN009",
        "info",
        found={"bn": both(c2=(-0.00099, 0.099))},
        short={"bn": both(c2=(-0.0011, 0.099))},
        channels=(2,),
    ),
    Case(
        "BN010",
        "info",
        found={"bn": both(c2=(0.00099, -0.11))},
        short={"bn": both(c2=(0.00099, -0.09))},
        channels=(2,),
    ),
    Case(
        "BN013",
        "info",
        found={"original": sound(), "bn": sound(gamma=sound(1).arrays["gamma"])},
        short={"original": sound(), "bn": but("moving_mean", c6=0.125)},
    ),
    Case(
        "BN013",
        "info",
        found={"original": sound(), "bn": sound()},
        short={"original": sound(), "bn": but("moving_mean", c6=0.125)},
        label="whole-layer",
    ),
    Case(
        "BN014",
        "info",
        found={"bn": sound(momentum=0.1)},
        short={"bn": sound(momentum=0.5)},
    ),
)
"""BN011, BN012, BN015 and BN016 are about what is stored, not about values: see the tests."""
