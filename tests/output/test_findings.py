from __future__ import annotations

import json

import numpy as np
import pytest

import bnstat
from bnstat.checks import MODEL_RULES, RULES, Finding, check
from bnstat.model import Source
from bnstat.output import findings
from bnstat.output.terminal.screen import ASCII, Screen
from bnstat.output.terminal.table import text_width
from tests.output.models import model, usual

NASTY = "a\x1b[31m\nb[red]<b>%0A::error::‮"


def finding(layer: str | None = "bn", severity: str = "error", **fields) -> Finding:
    given = {"rule": "BN004", "name": "not-finite", "channels": (), "message": "it is broken"}
    given |= fields
    given["channels"] = np.array(given["channels"], np.intp)
    return Finding(severity=severity, layer=layer, **given)


SOME = [
    finding(channels=(1, 5)),
    finding("other", channels=tuple(range(9))),
    finding(None, "warning", rule="BN001", name="never-updated"),
    finding("bn", "info", rule="BN009", name="near-zero-gamma", message="off " * 40),
]


class TestText:
    def lines(self, some=SOME, **screen) -> list[str]:
        return list(findings.text_lines(some, Screen(**screen)))

    def test_groups_by_rule(self) -> None:
        assert self.lines() == [
            "error BN004 not-finite",
            "  bn     it is broken (channels 1, 5)",
            "  other  it is broken",
            "",
            "warning BN001 never-updated",
            "  (whole model)  it is broken",
            "",
            "info BN009 near-zero-gamma",
            f"  bn  {('off ' * 40).strip()}",
            "",
            "2 errors, 1 warning, 1 info",
            "bnstat check --explain BN004 explains what it means and what to do",
        ]
        assert "\x1b[31m" in self.lines(colour=True)[0]
        assert self.lines([]) == ["no findings"]

    @pytest.mark.parametrize("width", [40, 60, 80, 200])
    def test_fits_the_screen(self, width: int) -> None:
        long = [finding(f"{'a' * 50}/{number}", message="word " * 30) for number in range(3)]
        for screen in ({}, {"glyphs": ASCII}):
            for line in self.lines([*SOME, *long], width=width, **screen):
                assert text_width(line) <= width

    @pytest.mark.parametrize("width", [None, 40, 80])
    def test_a_long_message_is_never_cut(self, width: int | None) -> None:
        words = [f"word{number}" for number in range(300)]
        text = " ".join(self.lines([finding(message=" ".join(words))], width=width)[1:-3])
        assert text.split() == ["bn", *words]

    def test_channels_are_listed_unless_all_are_affected(self) -> None:
        for message, end in (("is NaN in 2 of 8", " (channels 1, 5)"), ("in both channels", "")):
            lines = self.lines([finding(channels=(1, 5), message=message)])
            assert lines[1] == f"  bn  {message}{end}"

    def test_report_has_a_header(self) -> None:
        shown = model(usual("bn"))
        checked = check(shown, select=["BN004", "BN005"])
        first, *_, last = findings.report([(checked, shown)], Screen())
        assert (first, last) == ("path        runs/cnn", "1 layer, 2 rules: no findings")


def test_json() -> None:
    some = [finding(NASTY, channels=(3,), numbers={"largest": float("inf"), "epsilon": None})]
    text = "".join(findings.json_lines(some, model(usual("bn"))))
    assert text.isascii()
    document = json.loads(text)
    assert document.pop("trained_with") == "unknown"
    evidence = document.pop("evidence")["file"]
    assert (evidence["trained_with"], evidence["channels"]) == ("unknown", 0)
    source = {"path": "runs/cnn", "format": "tf2-checkpoint", "checkpoint": "model-1200"}
    source |= {"step": 1200, "writer": "tf.keras 2.4.0"}
    shown = {"rule": "BN004", "name": "not-finite", "severity": "error", "layer": NASTY}
    shown |= {"channels": [3], "message": "it is broken"}
    shown["numbers"] = {"largest": "Infinity", "epsilon": None}
    counts = {"error": 1, "warning": 0, "info": 0}
    rest = {"layers": 1, "counts": counts, "findings": [shown]}
    assert document == {"schema": 1, "source": source, **rest}


def test_github() -> None:
    source = Source("runs/a,b:c 100%", "tf2-checkpoint")
    lines = list(findings.github_lines([([*SOME, finding(NASTY)], model(source=source))], {}))
    assert lines[0] == (
        "::error file=runs/a%2Cb%3Ac 100%25,title=BN004 not-finite::bn: it is broken"
    )
    commands = ["::error", "::error", "::warning", "::notice", "::error"]
    assert [line.split()[0] for line in lines] == commands
    assert lines[2].endswith("::it is broken")
    assert lines[-1].isprintable()
    assert lines[-1].count("%250A") == 1


class TestSarif:
    def log(self, some=SOME, path: str = "runs/my model") -> dict:
        source = Source(path, "tf2-checkpoint")
        checked = [(some, model(usual("bn"), source=source))]
        return json.loads("".join(findings.sarif_lines(checked)))

    def test_the_tool_and_the_results(self) -> None:
        log = self.log()
        assert log["version"] == "2.1.0"
        driver, results = log["runs"][0]["tool"]["driver"], log["runs"][0]["results"]
        assert (driver["name"], driver["version"]) == ("bnstat", bnstat.__version__)
        rules = driver["rules"]
        assert [rule["id"] for rule in rules] == [rule.code for rule in MODEL_RULES]
        for rule in rules:
            assert rule["defaultConfiguration"]["level"] in ("error", "warning", "note")
            assert "What to do" in rule["help"]["text"]
        assert [result["level"] for result in results] == ["error", "error", "warning", "note"]
        for result, expected in zip(results, SOME, strict=True):
            assert result["ruleId"] == expected.rule == rules[result["ruleIndex"]]["id"]
            (location,) = result["locations"]
            artifact = location["physicalLocation"]["artifactLocation"]
            assert artifact == {"uri": "runs/my%20model"}
            names = [each["name"] for each in location.get("logicalLocations", [])]
            assert names == ([] if expected.layer is None else [expected.layer])
            assert result["properties"]["channels"] == expected.channels.tolist()

    def test_fingerprints_depend_on_rule_and_layer_only(self) -> None:
        def prints(some: list[Finding]) -> list[dict]:
            return [each["partialFingerprints"] for each in self.log(some)["runs"][0]["results"]]

        one, other, again = prints([finding("a"), finding("b"), finding("a", message="now more")])
        assert one == again != other

    def test_unusual_paths_and_names(self) -> None:
        (result,) = self.log([finding()], "/data/a b")["runs"][0]["results"]
        location = result["locations"][0]["physicalLocation"]["artifactLocation"]
        assert location == {"uri": "file:///data/a%20b"}
        results = self.log([finding(NASTY), finding("\udc80")], "\udcff")["runs"][0]["results"]
        assert results[0]["message"]["text"].isprintable()


class TestRules:
    def test_overview_has_every_rule_and_fits_80_columns(self) -> None:
        lines = list(findings.overview(RULES, Screen(width=80, boxes=True)))
        for rule in RULES:
            assert sum(rule.code in line and rule.title in line for line in lines) == 1
        assert max(map(text_width, lines)) <= 80
        assert max(map(text_width, findings.explained(RULES, Screen(width=40)))) <= 40

    @pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.code)
    def test_explain_shows_all_sections(self, rule) -> None:
        lines = list(findings.explained([rule], Screen()))
        assert max(map(len, lines)) <= 80
        text = " ".join(" ".join(lines).split())
        for part in (rule.code, rule.name, *rule.sections().values()):
            assert part in text
