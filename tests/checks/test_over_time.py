"""Rules about the checkpoints of a run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bnstat.checks import Finding, check
from bnstat.model import ROLES
from bnstat.run_history import history
from tests.checks.cases import ONES, START, Layer, model, moving, norm, run, sound, without
from tests.output.models import usual

WEIGHTS, STATISTICS = ROLES[:2], ROLES[2:]


def found(rule: str, checkpoints: Any, steps: Sequence[int | None] = ()) -> list[Finding]:
    """Return the findings of a rule in a run of checkpoints m-0, m-1, ..."""
    models = [[norm(layer, name) for name, layer in each.items()] for each in checkpoints]
    numbers = range(len(models))
    entries = [
        (f"m-{number}", model(*layers, step=step))
        for number, layers, step in zip(numbers, models, steps or numbers, strict=True)
    ]
    return check(history(entries), select=[rule])


def means(*shifts: float | np.ndarray) -> list[Any]:
    return [{"bn": sound(moving_mean=ONES * shift, moving_variance=ONES)} for shift in shifts]


def variances(*numbers: float) -> list[Any]:
    return [{"bn": sound(moving_variance=np.full(8, each, np.float32))} for each in numbers]


def nan(*roles: str) -> dict[str, np.ndarray]:
    return dict.fromkeys(roles, ONES * np.float32(np.nan))


def one_channel_moves(number: int) -> Layer:
    """Like `moving` gamma and beta, but one mean moves in the last checkpoint as well."""
    layer = moving(number, "gamma", "beta")
    mean = layer.arrays["moving_mean"].copy()
    if number == 3:
        mean[5] = np.nextafter(mean[5], np.float32(9))
    return Layer({**layer.arrays, "moving_mean": mean})


INITIAL = (
    "moving mean and variance are still the initial 0 and 1, although gamma or beta changed: the "
    "updates never ran, or the layer is trained in inference mode; bnstat check shows the evidence"
)
NOTHING = "nothing has changed since m-{} ({} intervals), but other layers have"
STATIC = "moving mean and variance have not changed since m-{}, although gamma or beta has"
BROKEN = [{}, nan("gamma"), nan("gamma", *STATISTICS)]
DRIFTS = "moving mean still changes by {}% between checkpoints, in the same direction"
GROWS = (
    "mean moving variance grows by a factor of 2 or more between checkpoints, to 8, and does not "
    "slow down"
)


@pytest.mark.parametrize(
    ("rule", "checkpoints", "messages"),
    [
        ("BN101", run(4, lambda n: sound(n, **START)), [INITIAL]),
        ("BN101", run(4, lambda n: moving(n, "gamma", "beta")), [STATIC.format("0 (3 intervals)")]),
        ("BN101", run(4, lambda n: moving(n, "beta", *["moving_mean"] * (n < 2))),
         [STATIC.format("2 (1 interval)")]),
        ("BN101", run(4, lambda n: moving(n, *STATISTICS)),
         ["gamma and beta have not changed since m-0 (3 intervals), but the statistics have"]),
        ("BN101", run(4, lambda n: sound()), [NOTHING.format(0, 3)]),
        ("BN101", run(4, lambda n: without(sound(), *WEIGHTS)), [NOTHING.format(0, 3)]),
        ("BN101", run(4, lambda n: sound(**START)), [NOTHING.format(0, 3)]),
        ("BN101", run(4, lambda n: sound(min(n, 1))), [NOTHING.format(1, 2)]),
        # A layer that changes is not frozen.
        ("BN101", run(4, sound), []),
        ("BN101", run(4, one_channel_moves), []),
        ("BN101", run(4, lambda n: without(sound(n), *WEIGHTS)), []),
        ("BN101", run(4, lambda n: without(sound(n), *STATISTICS)), []),
        ("BN101", run(4, lambda n: without(sound(), *STATISTICS)), []),
        ("BN101", run(4, lambda n: moving(n, "beta", "moving_variance")), []),
        # Variables without a finite channel show nothing.
        *(("BN101", checkpoints, []) for start in (1, 2) for checkpoints in (
            run(4, lambda n, start=start: sound(n, **nan(*ROLES if n >= start else ()))),
            [{"bn": sound(n, **nan(*ROLES if n >= start else ()))} for n in range(4)])),
        ("BN102", means(9, 0, 1, 2, 3.5), [DRIFTS.format(150)]),
        ("BN102", means(0, 0.11, 0.22, 0.33), [DRIFTS.format(11)]),
        ("BN102", variances(1, 2, 4, 8), [DRIFTS.format(50).replace("mean", "variance")]),
        *(("BN102", means(*shifts), []) for shifts in (
            (0, 1, 2), (0, 1, 2, 1), (0, 1, 2, 2), (0, 1, 2, np.nan), (0, 0.11, 0.22, 0.31),
            (0, 5, 0, 0.11, 0, 0.11))),
        ("BN102", [{"bn": sound(gamma=ONES * 1.5**n)} for n in range(5)], []),
        ("BN103", variances(1, 2, 4, 8), [GROWS]),
        # Roles that break together make one finding.
        ("BN103", run(3, lambda n: sound(n, **BROKEN[n])),
         ["gamma is not finite from m-1 on",
          "moving mean and moving variance are not finite from m-2 on"]),
        ("BN103", run(3, lambda n: sound(n, **BROKEN[n and 2])),
         ["gamma, moving mean and moving variance are not finite from m-1 on"]),
        *(("BN103", [*variances(1, 2, 4, 8), {"bn": sound(moving_variance=np.float32(numbers))}],
           ["moving variance is not finite from m-4 on"])
          for numbers in ([np.nan] * 8, [np.inf] * 8, [8.0] * 7 + [np.nan])),
        # A statistic that was never finite did not diverge.
        ("BN103", run(4, lambda n: sound(**nan("moving_mean"))), []),
        ("BN104", run(3, lambda n: sound(n, gamma=-ONES, moving_mean=-ONES)), []),
        ("BN1", [{"bn": sound(number)} for number in range(6)], []),
    ],
)  # fmt: skip
def test_messages(rule: str, checkpoints: Any, messages: list[str]) -> None:
    findings = found(rule, checkpoints)
    assert [each.message for each in findings] == messages
    assert {each.layer for each in findings} <= {"bn"}


def test_numbers_and_severities() -> None:
    (drift,) = found("BN102", means(9, 0, 1, 2, 3.5))
    assert dict(drift.numbers) == {"change": 1.5, "turn": 1.0}
    (growth,) = found("BN103", variances(1, 2, 4, 8))
    assert (growth.severity, growth.numbers) == ("warning", {"growth": 2.0, "variance": 8.0})
    (broken,) = found("BN103", variances(1, np.nan))
    assert broken.severity == "error"


def last(value: float, others: float) -> np.ndarray:
    return np.float32([others] * 7 + [value])


@pytest.mark.parametrize(
    ("at", "is_initial"),
    [
        (lambda n: sound(n, **START), True),
        (lambda n: sound(n, **{**START, "moving_mean": last(1, 0)}), False),
        (lambda n: sound(n, **{**START, "moving_mean": last(-1, 0)}), False),
        (lambda n: sound(n, **{**START, "moving_variance": last(2, 1)}), False),
        (lambda n: sound(n, **{**START, "moving_variance": last(0.5, 1)}), False),
        # The newest checkpoints count.
        (lambda n: sound(n, **(START if n > 0 else {})), True),
        (lambda n: without(sound(n, **START), "moving_mean"), False),
        (lambda n: without(sound(n, **START), "moving_variance"), False),
    ],
)
def test_statistics_are_initial_if_every_channel_is(at: Any, is_initial: bool) -> None:
    (finding,) = found("BN101", run(3, at))
    assert finding.severity == "warning"
    assert (finding.message == INITIAL) is is_initial


@pytest.mark.parametrize(
    ("checkpoints", "layers"),
    [
        ([{"bn": sound(0)}, {"bn": sound(1)}, {"bn": sound(1)}], [None]),
        # A layer that the newest checkpoint lacks did not change, and has no finding.
        ([{"bn": sound(), "gone": sound(1)}] * 2 + [{"bn": sound()}], [None]),
        ([{"bn": sound(n), "gone": sound(1)} for n in range(2)] + [{"bn": sound(2)}], []),
        # A layer that appears has changed.
        ([{"bn": sound()}, {"bn": sound(), "new": sound(1)}], ["bn"]),
        ([{"bn": sound(**START)}], []),
        ([{}, {}], []),
    ],
)
def test_layers_that_come_and_go(checkpoints: Any, layers: Any) -> None:
    findings = found("BN101", checkpoints)
    assert [each.layer for each in findings] == layers
    if layers == [None]:
        assert findings[0].message.startswith("no batch-norm variable changed in m-2: the weights")


def test_a_turn_of_60_degrees_on_average_is_not_one_direction() -> None:
    x, y = np.eye(2, 8, dtype=np.float32)
    assert found("BN102", means(0 * x, x, 2 * x, 2 * x + y)) == []
    (finding,) = found("BN102", means(0 * x, x, 2 * x, 3 * x))
    assert finding.numbers["turn"] == 1


@pytest.mark.parametrize(
    ("numbers", "steps", "diverges"),
    [
        ((1, 1.5, 2.25, 3.375), (), True),
        ((1, 1.5, 2.25, 3.36), (), False),
        ((0, 2, 4, 8), (), False),
        ((0, 1, 2, 4, 8), (), True),
        ((1, 100, 190, 400), (), False),
        ((1, 2, 4), (), False),
        ((1, 2, 4, 4), (), False),
        ((-1, -2, -4, -8), (), False),
        # Growth is measured per step, unless the steps are unknown or do not increase.
        ((1, 2, 4, 8), (0, 100, 200, 300), True),
        ((1, 2, 4, 8), (0, 100, 200, 324), True),
        ((1, 2, 4, 8), (0, 100, 200, 326), False),
        ((1, 2, 4, 8), (0, 100, 226, 300), False),
        ((1, 2, 4, 8, 16), (900, 0, 100, 200, 300), True),
        ((1, 2, 4, 8), (0, 100, 200, None), True),
        ((1, 2, 4, 8), (0, 1, 1, 100), True),
        ((1, 2, 4, 8), (300, 200, 100, 0), True),
    ],
)
def test_growth(numbers: Sequence[float], steps: Sequence[int | None], diverges: bool) -> None:
    assert bool(found("BN103", variances(*numbers), steps)) is diverges


@pytest.mark.parametrize(
    ("lowest", "severity", "message"),
    [
        ([1, -4e-4, -0.3, np.nan], "error", "from m-1 on, down to -0.3"),
        ([1, 1, 1, -2], "error", "from m-3 on, down to -2"),
        ([-0.5, 1, -0.25, 1], "error", "in 2 checkpoints, first in m-0, down to -0.5"),
        ([1, 1, 1, -1.1e-5], "error", "from m-3 on, down to -1.1e-05"),
        ([1, -9e-6, 0, 1], "warning", "in 1 checkpoint, first in m-1, down to -9e-06"),
    ],
)
def test_messages_about_negative_variances(lowest: Any, severity: str, message: str) -> None:
    variances = [np.float32([*np.linspace(0.5, 1.5, 7) + 0 * each, each]) for each in lowest]
    checkpoints = [{"bn": sound(n, moving_variance=each)} for n, each in enumerate(variances)]
    (finding,) = found("BN104", checkpoints)
    assert finding.message == f"moving variance is negative {message}"
    assert finding.severity == severity
    assert finding.numbers["least"] == pytest.approx(np.nanmin(lowest))


def test_statistics_that_warm_up_do_not_diverge() -> None:
    target = usual("", seed=1)
    mean, variance = target.array("moving_mean"), 2000 * target.array("moving_variance")
    shares = [0.9**number for number in range(8)]
    values = [(mean * (1 - share), share + variance * (1 - share)) for share in shares]
    checkpoints = [{"bn": Layer(dict(zip(STATISTICS, pair, strict=True)))} for pair in values]
    for length in range(4, 9):
        assert found("BN103", checkpoints[:length]) == []


def test_a_run_whose_statistics_are_never_updated() -> None:
    findings = check(history(Path(__file__).parent.parent / "data/digits_no_updates/run"))
    assert {(each.rule, each.severity) for each in findings} == {("BN101", "warning")}
