"""The register of rules, their selection and documentation, and the cases of every rule."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from bnstat.checks import MODEL_RULES, RULES, Finding, Thresholds, check, find_rules
from bnstat.errors import BnstatError, NotFoundError
from bnstat.model import ROLES, BatchNorm, Variable
from tests.checks.cases import CASES, ONES, START, Case, array, but, model, norm, sound
from tests.output import models


@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_rule_finds_its_model_and_not_the_one_just_short_of_it(case: Case) -> None:
    others = [norm(other, name) for name, other in case.others.items()]
    channels = [
        [
            finding.channels.tolist()
            for finding in check(model(*others, norm(layer), step=step))
            if (finding.rule, finding.layer, finding.severity) == (case.rule, "bn", case.severity)
        ]
        for layer, step in zip((case.found, case.short), case.steps, strict=True)
    ]
    assert channels == [[list(case.channels)], []]


ODD = [
    models.layer("bare", {"gamma": sound(3).arrays["gamma"]}, momentum=0.99),
    models.layer("empty", {role: array() for role in START}, momentum=0.9),
    models.layer("unequal", {"gamma": ONES, "beta": array(1, 1), **START}, trainable=False),
    norm(sound(4, momentum=0.95), "quiet"),
    models.layer("mean", {"moving_mean": ONES}, momentum=0.95),
    models.layer("variance", {"moving_variance": ONES / 2}, momentum=0.95),
    models.layer("few", {"moving_mean": array(1, 2), "moving_variance": array(2, 3)}),
    norm(sound(5), "frozen", trainable=False),
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_rule_also_checks_the_layers_after_one_that_it_skips(case: Case) -> None:
    others = [norm(other, name) for name, other in case.others.items()]
    for odd in (ODD, ODD[::-1]):
        layers = [*odd, *others, norm(case.found)]
        findings = check(model(*layers, step=case.steps[0]), select=[case.rule])
        assert (case.severity, list(case.channels)) in [
            (each.severity, each.channels.tolist()) for each in findings if each.layer == "bn"
        ]


def test_every_rule_for_models_has_a_case() -> None:
    elsewhere = {"BN011", "BN012", "BN015", "BN016", "BN017", "BN018"}
    missing = {rule.code for rule in MODEL_RULES} - {case.rule for case in CASES} - elsewhere
    assert not missing, f"add cases to CASES in tests/checks/cases.py: {missing}"


def test_a_sound_model_has_no_findings() -> None:
    layers = [norm(sound(seed), f"bn_{seed}") for seed in range(5)]
    assert check(model(*layers, step=1200)) == []
    assert check(model()) == []
    empty = {role: np.zeros(0, np.float32) for role in START}
    assert check(models.model(models.layer("bn", empty))) == []


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", ml_dtypes.bfloat16])
def test_rules_accept_every_float_type_and_shape(dtype: Any) -> None:
    flat = sound().arrays
    arrays = {role: flat[role].astype(dtype).reshape(1, 2, 1, 4) for role in ROLES}
    assert check(models.model(models.layer("bn", arrays))) == []
    arrays["moving_variance"][0, 1, 0, 3] = np.nan
    (finding,) = check(models.model(models.layer("bn", arrays)))
    assert (finding.rule, finding.channels.tolist()) == ("BN004", [7])


def test_the_most_serious_come_first_then_the_rules_in_order() -> None:
    layers = [
        norm(but("gamma", c1=0.0), "a"),
        norm(but("moving_variance", seed=1, c2=-1.0), "b"),
        norm(but("beta", seed=2, c3=float("nan")), "c"),
    ]
    assert [each.rule for each in check(model(*layers))] == ["BN004", "BN005", "BN010"]


def test_errors_of_reading_are_raised() -> None:
    def missing() -> np.ndarray:
        raise NotFoundError("x.data-00000-of-00001", "is missing")

    variables = {role: Variable(role, role, "float32", (4,), missing) for role in ROLES}
    with pytest.raises(NotFoundError, match=r"x\.data"):
        check(models.model(BatchNorm("bn", variables)))


@pytest.mark.parametrize(
    ("options", "rules"),
    [
        ({}, ["BN004", "BN009"]),
        ({"select": ["BN004"]}, ["BN004"]),
        ({"select": ["bn00"]}, ["BN004", "BN009"]),
        ({"select": ["not-finite"]}, ["BN004"]),
        ({"select": ["BN0"], "ignore": ["near-zero-gamma"]}, ["BN004"]),
    ],
)
def test_rules_are_selected_by_name_or_beginning_of_code(options: Any, rules: list[str]) -> None:
    gamma = but("gamma", c1=float("nan"), c2=0.0).arrays["gamma"]
    layer = norm(sound(gamma=gamma, beta=np.full(8, 0.05, np.float32)))
    assert [each.rule for each in check(model(layer), **options)] == rules


@pytest.mark.parametrize("options", [{"select": ["BN9"]}, {"ignore": [""]}])
def test_a_rule_that_does_not_exist_is_an_error(options: dict[str, list[str]]) -> None:
    with pytest.raises(BnstatError, match=r"('BN9'|''): is not a name or code of a rule"):
        check(model(), **options)


def test_thresholds() -> None:
    layer = norm(but("gamma", c1=0.005))
    assert check(model(layer)) == []
    findings: list[Finding] = check(model(layer), thresholds=Thresholds(gamma=0.01))
    assert [finding.rule for finding in findings] in (["BN009"], ["BN010"])


SECTIONS = ["What it finds", "Why it matters", "Example", "What to do", "How sure it is",
            "Threshold"]  # fmt: skip


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.code)
def test_a_rule_is_documented(rule) -> None:
    titles = [title.partition(": ")[0] for title, text in rule.sections().items() if text]
    assert list(dict.fromkeys(titles)) == SECTIONS, (
        f"{rule.code}: write these sections in docs/rules.md; the title of a fix is "
        "'What to do: LIBRARY' or 'What to do: any library'"
    )
    assert len(rule.title) <= 43, (
        f"{rule.code}: shorten its title to 43 characters, so that a line of check --rules fits "
        "into 80 columns"
    )
    assert find_rules([rule.name]) == [rule], f"{rule.code}: choose a name that no other rule has"


def test_the_rules_are_sorted_and_every_code_is_unique() -> None:
    codes = [rule.code for rule in RULES]
    assert codes == sorted(set(codes)), "choose the next code, and add the rule at the end"


def test_every_threshold_is_documented_with_its_default() -> None:
    texts = " ".join(rule.sections()["Threshold"] for rule in RULES)
    for each in fields(Thresholds):
        words = f"`{each.name}`, {each.default:g} by default"
        assert words in texts, f"write {words!r} into 'Threshold' of a rule in docs/rules.md"
