"""For each rule that needs time a run that it finds something in, and one just short of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from tests.checks.cases import START, Layer, sound

Checkpoint = Mapping[str, Layer]


@dataclass(frozen=True)
class Run:
    """What a rule has to find in one run, and not in the other."""

    rule: str
    severity: str
    found: Sequence[Checkpoint]
    short: Sequence[Checkpoint]
    layer: str | None = "bn"
    label: str = field(default="")

    def __str__(self) -> str:
        return f"{self.rule}-{self.severity}-{self.label}"


def run(length: int, at: Callable[[int], Layer]) -> list[Checkpoint]:
    """The checkpoints of a layer that is `at(number)`, beside one in which all moves."""
    return [{"bn": at(number), "other": sound(100 + number)} for number in range(length)]


def moving(number: int, *roles: str) -> Layer:
    """The sound layer with other values of some roles in every checkpoint."""
    return sound(**{role: sound(number + 1).arrays[role] for role in roles})


def _one_channel_moves(number: int, role: str) -> Layer:
    """As `moving` gamma and beta, but in the last checkpoint one channel of `role` moves too."""
    layer = moving(number, "gamma", "beta")
    array = layer.arrays[role].copy()
    if number == 3:
        array[5] = np.nextafter(array[5], np.float32(9))
    return Layer({**layer.arrays, role: array})


def _means(*shifts: float) -> list[Checkpoint]:
    """Means that are shifted by so many standard deviations in each checkpoint."""
    ones = np.ones(8, np.float32)
    return [
        {"bn": sound(number, moving_mean=np.float32(shift) * ones, moving_variance=ones)}
        for number, shift in enumerate(shifts)
    ]


def _variances(*variances: float) -> list[Checkpoint]:
    shape = np.linspace(0.5, 1.5, 8, dtype=np.float32)
    return [
        {"bn": sound(number, moving_variance=np.float32(variance) * shape)}
        for number, variance in enumerate(variances)
    ]


def _broken_at(number: int, place: int) -> Layer:
    array = sound(number).arrays["moving_mean"].copy()
    if number == place:
        array[2] = np.nan
    return sound(number, moving_mean=array)


RUNS = (
    Run(
        "BN101",
        "warning",
        found=run(4, lambda number: sound(number, **START)),
        short=run(4, lambda number: sound(**START)),
        label="at-the-start",
    ),
    Run(
        "BN101",
        "warning",
        found=run(4, lambda number: moving(number, "gamma", "beta")),
        short=run(4, lambda number: _one_channel_moves(number, "moving_mean")),
        label="statistics",
    ),
    Run(
        "BN101",
        "info",
        found=run(4, lambda number: moving(number, "moving_mean", "moving_variance")),
        short=run(4, lambda number: moving(number, "moving_mean", "moving_variance", "beta")),
        label="weights",
    ),
    Run(
        "BN101",
        "info",
        found=run(4, lambda number: sound()),
        short=run(4, lambda number: sound(number)),
        label="layer",
    ),
    Run(
        "BN101",
        "info",
        found=[{"bn": sound(number // 3)} for number in (0, 3, 3)],
        short=[{"bn": sound(number)} for number in (0, 1, 2)],
        layer=None,
        label="saved-twice",
    ),
    Run(
        "BN102",
        "info",
        found=_means(0, 0.11, 0.22, 0.33),
        short=_means(0, 0.11, 0.22, 0.31),
        label="slower",
    ),
    Run(
        "BN102",
        "info",
        found=_means(0, 5, 0, 0.11, 0.22, 0.33),
        short=_means(0, 5, 0, 0.11, 0, 0.11),
        label="scatter",
    ),
    Run(
        "BN103",
        "warning",
        found=_variances(1, 1.6, 2.6, 4.2),
        short=_variances(1, 1.6, 2.6, 3.8),
        label="growth",
    ),
    Run(
        "BN103",
        "warning",
        found=_variances(1, 8, 64, 512),
        short=_variances(1, 100, 190, 400),
        label="slows-down",
    ),
    Run(
        "BN103",
        "error",
        found=run(4, lambda number: _broken_at(number, 2)),
        short=run(4, lambda number: _broken_at(number, 9)),
        label="broken",
    ),
)
