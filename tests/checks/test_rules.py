from __future__ import annotations

import numpy as np
import pytest

from bnstat.checks import MODEL_RULES, RULES, Finding, Thresholds, check, find_rules
from bnstat.errors import BnstatError, NotFoundError
from bnstat.model import BatchNorm, Model, Source, Variable
from tests.checks.cases import CASES, INITIAL, START, Case, Layer, but, sound, start
from tests.output import models


def built(layers: dict[str, Layer], step: int | None = None, **settings: object) -> Model:
    return models.model(
        *(
            models.layer(
                name, layer.arrays, epsilon=layer.epsilon, momentum=layer.momentum, **settings
            )
            for name, layer in layers.items()
        ),
        source=Source("runs/cnn", "tf2-checkpoint", step=step),
    )


def of(case: Case, findings: list[Finding]) -> list[Finding]:
    return [
        finding
        for finding in findings
        if (finding.rule, finding.layer, finding.severity) == (case.rule, case.layer, case.severity)
    ]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_rule_finds_its_model_and_not_the_one_just_short_of_it(case: Case) -> None:
    (finding,) = of(case, check(built(case.found, case.found_step)))
    assert finding.channels.tolist() == list(case.channels)
    assert not of(case, check(built(case.short, case.short_step)))


def test_every_rule_for_models_has_a_case() -> None:
    elsewhere = {"BN011", "BN012", "BN015", "BN016", "BN017", "BN018"}
    assert {case.rule for case in CASES} | elsewhere == {rule.code for rule in MODEL_RULES}


def test_a_sound_model_is_quiet() -> None:
    layers = {f"bn_{seed}": sound(seed) for seed in range(5)}
    assert check(built(layers, step=1200)) == []


def test_nothing_is_found_in_no_layers() -> None:
    assert check(models.model()) == []


class TestNeverUpdated:
    def test_softened_for_a_model_that_was_not_trained(self) -> None:
        found = check(built({"a": Layer(INITIAL), "b": Layer(INITIAL)}))
        assert [(each.layer, each.severity) for each in found] == [
            (None, "info"),
            ("a", "info"),
            ("b", "info"),
        ]

    def test_softened_at_step_0_whatever_gamma_started_from(self) -> None:
        layers = {"a": sound(**START), "b": sound(1, **START)}
        assert {each.severity for each in check(built(layers, step=0))} == {"info"}
        assert {each.severity for each in check(built(layers, step=1))} == {"warning"}

    def test_a_random_gamma_beside_a_beta_of_0_is_not_training(self) -> None:
        layer = sound(beta=np.zeros(8, np.float32), **START)
        assert {each.severity for each in check(built({"a": layer}))} == {"info"}

    def test_a_layer_without_gamma_and_beta_is_judged_by_the_others(self) -> None:
        bare = models.layer("bare", START)
        alone = check(models.model(bare))
        beside = check(models.model(bare, models.usual("other")))
        assert [(each.layer, each.severity) for each in alone] == [("bare", "info")]
        assert [(each.layer, each.severity) for each in beside] == [
            (None, "warning"),
            ("bare", "warning"),
        ]

    def test_the_whole_model_is_as_grave_as_its_gravest_layer(self) -> None:
        found = check(built({"a": Layer(INITIAL), "b": sound(**START)}))
        assert [(each.layer, each.severity) for each in found] == [
            (None, "warning"),
            ("b", "warning"),
            ("a", "info"),
        ]

    def test_a_beta_with_some_zeros_was_trained(self) -> None:
        beta = sound().arrays["beta"].copy()
        beta[:3] = 0
        found = check(built({"a": sound(beta=beta, **START)}))
        assert [(each.layer, each.severity) for each in found] == [
            (None, "warning"),
            ("a", "warning"),
        ]

    def test_the_whole_model_says_how_many_of_its_layers(self) -> None:
        layers = {"a": sound(**START), "b": sound(1, **START), "c": sound(2)}
        whole, *others = check(built(layers))
        assert whole.message.startswith("2 of 3 layers still have the initial statistics: if")
        assert [each.layer for each in others] == ["a", "b"]

    def test_a_gamma_initialized_to_0_is_initial(self) -> None:
        layer = models.layer("bn", {"gamma": np.zeros(4, np.float32), **start(4)})
        assert [each.severity for each in check(models.model(layer), select=["BN001"])] == ["info"]


class TestHardlyWarmedUp:
    def test_tells_the_share_and_the_steps_that_are_needed(self) -> None:
        (finding,) = check(built({"bn": sound(momentum=0.999)}, step=693))
        assert finding.rule == "BN003"
        assert finding.numbers["share"] == pytest.approx(0.999**693)
        needed = finding.numbers["steps_needed"]
        assert isinstance(needed, int)
        assert 0.999**needed <= 0.1 < 0.999 ** (needed - 1)

    def test_needs_the_step_and_the_momentum(self) -> None:
        assert check(built({"bn": sound()}, step=None)) == []
        layer = models.layer("bn", sound().arrays)
        assert check(models.model(layer, source=Source("x", "keras-h5", step=3))) == []

    def test_is_not_said_of_frozen_layers(self) -> None:
        assert check(built({"bn": sound()}, step=3, trainable=False)) == []

    def test_one_layer_refutes_the_step_for_all_of_its_momentum(self) -> None:
        layers = {"a": but("moving_variance", c0=0.01), "b": sound(1), "c": sound(2, momentum=0.9)}
        found = check(built(layers, step=10))
        assert [each.layer for each in found] == ["c"]


class TestNegativeVariance:
    def test_without_an_epsilon_the_largest_default_decides(self) -> None:
        def severity(least: float) -> str:
            arrays = but("moving_variance", c1=least).arrays
            (finding,) = check(models.model(models.layer("bn", arrays)))
            return finding.severity

        assert severity(-0.0009) == "warning"
        assert severity(-0.001) == "error"

    def test_a_sum_of_exactly_0_is_not_positive(self) -> None:
        arrays = {role: array.astype(np.float64) for role, array in sound().arrays.items()}
        arrays["moving_variance"][2] = -0.25
        layer = models.layer("bn", arrays, epsilon=0.25)
        (finding,) = check(models.model(layer), select=["BN005"])
        assert finding.severity == "error"

    def test_suspects_a_swap_of_mean_and_variance(self) -> None:
        arrays = sound().arrays
        swapped = sound(
            moving_mean=arrays["moving_variance"], moving_variance=arrays["moving_mean"]
        )
        (finding,) = check(built({"bn": swapped}), select=["BN005"])
        assert "swapped" in finding.message


class TestExplodingScale:
    def test_without_an_epsilon_the_scale_is_a_lower_bound(self) -> None:
        arrays = sound(
            1, moving_variance=np.zeros(8, np.float32), gamma=np.full(8, 31.0, np.float32)
        ).arrays
        layer = models.layer("bn", arrays)
        assert check(models.model(layer), select=["BN007"]) == []
        arrays = {**arrays, "gamma": np.full(8, 32.0, np.float32)}
        (finding,) = check(models.model(models.layer("bn", arrays)), select=["BN007"])
        assert "at least" in finding.message

    def test_nan_and_negative_variances_are_left_to_their_rules(self) -> None:
        layer = but("moving_variance", c0=float("nan"), c1=-5.0)
        assert check(built({"bn": layer}), select=["BN007"]) == []


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", "bfloat16"])
def test_rules_take_every_float(dtype: str) -> None:
    import ml_dtypes

    kind = ml_dtypes.bfloat16 if dtype == "bfloat16" else np.dtype(dtype)
    arrays = {role: array.astype(kind) for role, array in sound().arrays.items()}
    assert check(models.model(models.layer("bn", arrays))) == []
    arrays["moving_variance"][3] = np.nan
    (finding,) = check(models.model(models.layer("bn", arrays)))
    assert (finding.rule, finding.channels.tolist()) == ("BN004", [3])


def test_channels_are_flat_indices() -> None:
    variance = np.ones((1, 2, 1, 3), np.float32)
    variance[0, 1, 0, 2] = -1
    layer = models.layer("bn", {"moving_mean": np.ones_like(variance), "moving_variance": variance})
    (finding,) = check(models.model(layer), select=["BN005"])
    assert finding.channels.tolist() == [5]


def test_empty_layers_are_taken() -> None:
    empty = {role: np.zeros(0, np.float32) for role in START}
    assert check(models.model(models.layer("bn", empty))) == []


def test_the_gravest_come_first_then_the_rules_in_order() -> None:
    layers = {
        "a": but("gamma", c1=0.0),
        "b": but("moving_variance", seed=1, c2=-1.0),
        "c": but("beta", seed=2, c3=float("nan")),
    }
    found = check(built(layers))
    assert [each.rule for each in found] == ["BN004", "BN005", "BN010"]


class TestSelection:
    def rules(self, **options: object) -> list[str]:
        arrays = but("gamma", c1=float("nan"), c2=0.0).arrays
        layer = sound(gamma=arrays["gamma"], beta=np.full(8, 0.05, np.float32))
        return [each.rule for each in check(built({"bn": layer}), **options)]

    def test_all_by_default(self) -> None:
        assert self.rules() == ["BN004", "BN009"]

    def test_by_code_prefix_or_name(self) -> None:
        assert self.rules(select=["BN004"]) == ["BN004"]
        assert self.rules(select=["bn00"]) == ["BN004", "BN009"]
        assert self.rules(select=["not-finite"]) == ["BN004"]

    def test_ignore_wins(self) -> None:
        assert self.rules(select=["BN0"], ignore=["near-zero-gamma"]) == ["BN004"]

    def test_a_rule_that_does_not_exist_is_an_error(self) -> None:
        with pytest.raises(BnstatError, match="BN9"):
            self.rules(select=["BN9"])
        with pytest.raises(BnstatError, match="no rule"):
            self.rules(ignore=[""])


class TestThresholds:
    def test_move_the_line(self) -> None:
        model = built({"bn": but("gamma", c1=0.005)})
        assert check(model) == []
        (finding,) = check(model, thresholds=Thresholds(gamma=0.01))
        assert finding.rule in ("BN009", "BN010")

    def test_of_settings(self) -> None:
        assert Thresholds.of({"gamma": 0.5}) == Thresholds(gamma=0.5)
        for settings in ({"gama": 0.1}, {"gamma": 0.0}, {"gamma": float("nan")}):
            with pytest.raises(BnstatError, match="threshold"):
                Thresholds.of(settings)


class TestDocumentation:
    @pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.code)
    def test_every_rule_is_documented(self, rule) -> None:
        empty = [title for title, text in rule.sections().items() if not text]
        assert not empty, f"{rule.code}: write something about {empty}"
        assert rule.fixes, f'{rule.code}: write a fix, such as fixes={{"any library": "..."}}'
        assert len(rule.title) <= 43, (
            f"{rule.code}: shorten its title to 43 characters, so that a line of check --rules "
            "fits into 80 columns"
        )

    def test_codes_and_names_are_unique(self) -> None:
        assert len({rule.code for rule in RULES}) == len({rule.name for rule in RULES})
        assert sorted(rule.code for rule in RULES) == [rule.code for rule in RULES]

    def test_every_threshold_is_documented_with_its_default(self) -> None:
        from dataclasses import fields

        texts = " ".join(rule.threshold for rule in RULES)
        for each in fields(Thresholds):
            assert f"`{each.name}`, {each.default:g} by default" in texts

    def test_rules_are_found_by_code_and_name(self) -> None:
        assert [rule.code for rule in find_rules(["never-updated"])] == ["BN001"]


def test_errors_of_reading_are_passed_on() -> None:
    def missing() -> np.ndarray:
        raise NotFoundError("x.data-00000-of-00001", "there is no such file")

    variables = {role: Variable(role, role, "float32", (4,), missing) for role in START}
    with pytest.raises(NotFoundError, match=r"x\.data"):
        check(models.model(BatchNorm("bn", variables)))
