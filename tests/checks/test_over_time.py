"""Rules that need a run, on runs made by hand: what they say, and of which layers."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pytest

from bnstat.checks import Finding, check
from bnstat.compare import history
from bnstat.model import Source
from tests.checks.cases import START, Layer, sound
from tests.checks.runs import RUNS, Checkpoint, Run, moving, run
from tests.output import models

MEAN_AND_VARIANCE = "moving mean and variance"


def found(
    rule: str, checkpoints: Iterable[Checkpoint], steps: Sequence[int | None] = ()
) -> list[Finding]:
    """What a rule finds in a run of checkpoints m-0, m-1, ..."""
    told = list(checkpoints)
    entries = [
        (
            f"m-{number}",
            models.model(
                *(models.layer(name, layer.arrays) for name, layer in layers.items()),
                source=Source("runs", "tf2-checkpoint", step=step),
            ),
        )
        for number, (layers, step) in enumerate(zip(told, steps or range(len(told)), strict=True))
    ]
    return check(history(entries), select=[rule])


def without(layer: Layer, *roles: str) -> Layer:
    return Layer({role: array for role, array in layer.arrays.items() if role not in roles})


@pytest.mark.parametrize("case", RUNS, ids=str)
def test_a_rule_finds_its_run_and_not_the_one_just_short_of_it(case: Run) -> None:
    bare = {"bare": without(sound(8), "moving_mean", "moving_variance")}
    for beside in ({}, bare if case.layer else {}):
        kinds = [
            [(each.layer, each.severity) for each in found(case.rule, run)]
            for run in ([{**beside, **each} for each in case.found], case.short)
        ]
        assert kinds[0].count((case.layer, case.severity)) == 1
        assert (case.layer, case.severity) not in kinds[1]


INITIAL = "the initial 0 and 1"


class TestFrozen:
    @pytest.mark.parametrize(
        ("at", "message"),
        [
            (
                lambda number: sound(number, **START),
                f"{MEAN_AND_VARIANCE} are still the initial 0 and 1, although gamma or beta "
                "changed: the updates never ran, or the layer is trained in inference mode; bnstat "
                "check shows the evidence",
            ),
            (
                lambda number: moving(number, "gamma", "beta"),
                f"{MEAN_AND_VARIANCE} have not changed since m-0 (3 intervals), although "
                "gamma or beta has",
            ),
            (
                lambda number: moving(number, "beta", *["moving_mean"] * (number < 2)),
                f"{MEAN_AND_VARIANCE} have not changed since m-2 (1 interval), although "
                "gamma or beta has",
            ),
            (
                lambda number: moving(number, "moving_mean", "moving_variance"),
                "gamma and beta have not changed since m-0 (3 intervals), but the statistics have",
            ),
            (
                lambda number: sound(),
                "nothing has changed since m-0 (3 intervals), but other layers have",
            ),
            (
                lambda number: without(sound(), "gamma", "beta"),
                "nothing has changed since m-0 (3 intervals), but other layers have",
            ),
            (
                lambda number: sound(min(number, 1)),
                "nothing has changed since m-1 (2 intervals), but other layers have",
            ),
        ],
    )
    def test_messages(self, at: Any, message: str) -> None:
        (finding,) = found("BN101", run(4, at))
        assert (finding.layer, finding.message) == ("bn", message)

    @pytest.mark.parametrize(
        "at",
        [
            lambda number: sound(number),
            lambda number: without(sound(number), "gamma", "beta"),
            lambda number: without(sound(number), "moving_mean", "moving_variance"),
            lambda number: without(sound(), "moving_mean", "moving_variance"),
            lambda number: moving(number, "beta", "moving_variance"),
        ],
    )
    def test_what_moves_is_not_frozen(self, at: Any) -> None:
        assert found("BN101", run(4, at)) == []

    @pytest.mark.parametrize(
        ("still", "is_start"),
        [
            (START, True),
            ({**START, "moving_mean": np.float32([0] * 7 + [1])}, False),
            ({**START, "moving_mean": np.float32([0] * 7 + [-1])}, False),
            ({**START, "moving_variance": np.float32([1] * 7 + [2])}, False),
            ({**START, "moving_variance": np.float32([1] * 7 + [0.5])}, False),
        ],
    )
    def test_the_start_is_that_of_every_channel(self, still: Any, is_start: bool) -> None:
        (finding,) = found("BN101", run(3, lambda number: sound(number, **still)))
        assert finding.severity == "warning"
        assert (INITIAL in finding.message) is is_start

    def test_the_start_is_that_of_the_last_checkpoints(self) -> None:
        begun = run(5, lambda number: sound(number, **(START if number > 2 else {})))
        assert [INITIAL in each.message for each in found("BN101", begun)] == [True]

    def test_a_variance_alone_is_not_at_the_start(self) -> None:
        only = run(2, lambda number: without(sound(number, **START), "moving_mean"))
        assert [INITIAL in each.message for each in found("BN101", only)] == [False]

    def test_a_mean_alone_is_not_at_the_start(self) -> None:
        only = run(3, lambda number: without(sound(number, **START), "moving_variance"))
        assert [INITIAL in each.message for each in found("BN101", only)] == [False]

    def test_the_same_weights_saved_again(self) -> None:
        (finding,) = found("BN101", [{"bn": sound(0)}, {"bn": sound(1)}, {"bn": sound(1)}])
        assert finding.message.startswith("no batch-norm variable changed in m-2: the weights")

    def test_a_layer_that_the_newest_checkpoint_lacks_did_not_move(self) -> None:
        still = {"bn": sound(), "gone": sound(1)}
        (finding,) = found("BN101", [still, still, {"bn": sound()}])
        assert finding.layer is None
        assert finding.message.startswith("no batch-norm variable changed in m-2")

    def test_nothing_is_said_of_a_layer_that_the_newest_checkpoint_lacks(self) -> None:
        checkpoints = [
            {"bn": sound(number), **({"gone": sound(1)} if number < 2 else {})}
            for number in range(3)
        ]
        assert found("BN101", checkpoints) == []

    def test_a_layer_that_appears_counts_as_moved(self) -> None:
        assert found("BN101", [{"bn": sound()}, {"bn": sound(), "new": sound(1)}]) != []
        (finding,) = found("BN101", [{"bn": sound()}, {"bn": sound(), "new": sound(1)}])
        assert finding.layer == "bn"

    def test_one_checkpoint_tells_nothing(self) -> None:
        assert found("BN101", [{"bn": sound(**START)}]) == []
        assert found("BN101", [{}, {}]) == []


def means(*shifts: float) -> list[Checkpoint]:
    ones = np.ones(8, np.float32)
    return [
        {"bn": sound(moving_mean=np.float32(shift) * ones, moving_variance=ones)}
        for shift in shifts
    ]


def variances(*numbers: float) -> list[Checkpoint]:
    return [{"bn": sound(moving_variance=np.full(8, each, np.float32))} for each in numbers]


class TestDrifting:
    def test_message(self) -> None:
        (finding,) = found("BN102", means(9, 0, 1, 2, 3.5))
        assert finding.message == (
            "moving mean still changes by 150% between checkpoints, in the same direction"
        )
        assert dict(finding.numbers) == {"change": 1.5, "turn": 1.0}

    def test_a_mean_that_settled_ends_no_search(self) -> None:
        (finding,) = found("BN102", variances(1, 2, 4, 8))
        assert finding.message.startswith("moving variance still changes by ")

    @pytest.mark.parametrize(
        "shifts", [(0, 1, 2), (0, 1, 2, 1), (0, 1, 2, 2), (0, 1, 2, float("nan"))]
    )
    def test_what_does_not_drift(self, shifts: Sequence[float]) -> None:
        assert found("BN102", means(*shifts)) == []

    def test_a_turn_of_60_degrees_on_average_is_not_one_direction(self) -> None:
        ones, step = np.ones(8, np.float32), np.eye(2, 8, dtype=np.float32)
        places = [0 * step[0], step[0], 2 * step[0], 2 * step[0] + step[1]]
        turned = [{"bn": sound(moving_mean=place, moving_variance=ones)} for place in places]
        assert found("BN102", turned) == []
        places[-1] = 3 * step[0]
        ahead = [{"bn": sound(moving_mean=place, moving_variance=ones)} for place in places]
        assert [each.numbers["turn"] for each in found("BN102", ahead)] == [1.0]

    def test_gamma_and_beta_may_move(self) -> None:
        gammas = [{"bn": sound(gamma=np.full(8, 1.5**n, np.float32))} for n in range(5)]
        assert found("BN102", gammas) == []


class TestDiverging:
    def test_messages(self) -> None:
        (finding,) = found("BN103", variances(1, 2, 4, 8))
        assert finding.message == (
            "mean moving variance grows by a factor of 2 or more between checkpoints, to 8, and "
            "does not slow down"
        )
        assert dict(finding.numbers) == {"growth": 2.0, "variance": 8.0}
        broken = run(4, lambda n: sound(moving_mean=np.full(8, np.inf if n > 1 else n, "f4")))
        (finding,) = found("BN103", broken)
        assert (finding.severity, finding.message) == (
            "error",
            "moving mean is not finite from m-2 on",
        )

    def test_what_was_broken_from_the_start_did_not_diverge(self) -> None:
        always = run(4, lambda n: sound(moving_mean=np.full(8, np.nan, np.float32)))
        assert found("BN103", always) == []

    def test_a_broken_variance_is_said_once(self) -> None:
        nan = float("nan")
        for numbers in [(1, 2, 4, 8, nan), (1, 2, 4, 8, float("inf"))]:
            (finding,) = found("BN103", variances(*numbers))
            assert finding.severity == "error"

    def test_a_variance_that_broke_in_one_channel_is_said_once(self) -> None:
        arrays = [np.full(8, 2.0**number, np.float32) for number in range(4)]
        arrays[-1][3] = np.nan
        broken = [{"bn": sound(moving_variance=array)} for array in arrays]
        (finding,) = found("BN103", broken)
        assert finding.severity == "error"

    @pytest.mark.parametrize(
        ("numbers", "diverges"),
        [
            ((1, 1.5, 2.25, 3.375), True),
            ((1, 1.5, 2.25, 3.36), False),
            ((0, 2, 4, 8), False),
            ((0, 1, 2, 4, 8), True),
            ((1, 2, 4), False),
            ((1, 2, 4, 4), False),
            ((-1, -2, -4, -8), False),
        ],
    )
    def test_growth(self, numbers: Sequence[float], diverges: bool) -> None:
        assert bool(found("BN103", variances(*numbers))) is diverges

    @pytest.mark.parametrize(
        ("steps", "diverges"),
        [
            ((0, 100, 200, 300), True),
            ((0, 100, 200, 324), True),
            ((0, 100, 200, 326), False),
            ((0, 100, 226, 300), False),
            ((900, 0, 100, 200, 300), True),
            ((0, 100, 200, None), True),
            ((0, 1, 1, 100), True),
            ((300, 200, 100, 0), True),
        ],
    )
    def test_growth_is_by_step(self, steps: Sequence[int | None], diverges: bool) -> None:
        doubled = variances(*(2.0**number for number in range(len(steps))))
        assert bool(found("BN103", doubled, steps)) is diverges
