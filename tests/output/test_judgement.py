"""Every output format shows the same verdict on two models."""

from __future__ import annotations

import json
from collections.abc import Iterator

import numpy as np
import pytest

from bnstat.compare import Difference, diff
from bnstat.model import Model
from bnstat.output import differences
from bnstat.output.documents import escaped
from bnstat.output.notebook import of_difference
from bnstat.output.terminal.screen import Screen
from tests.compare.ports import (
    arrays_of,
    changed,
    holding,
    random_kernel,
    rewritten,
    scale_and_shift,
    trained,
)
from tests.output.models import model
from tests.output.page.written import Shown, of_two

BN, OTHER = trained("bn", 6), trained("other", 6, seed=1)
REST = "; other weights were not compared"


def cases() -> Iterator[tuple[str, Model, Model, str]]:
    """Yield the verdict, the old model, the new model and the summary."""
    kernel = random_kernel(3, 3, 4, 6)
    scale, shift = scale_and_shift(BN)
    own = holding({"conv/kernel": kernel}, BN)
    product = {"w": (kernel * scale).transpose(3, 2, 0, 1), "b": shift}
    wrong = {"w": product["w"], "b": shift * 2}
    shifted = changed(OTHER, {"beta": arrays_of(OTHER)["beta"] + 1})
    yield "same", model(BN), model(BN), f"no difference: 1 batch-norm layer is equal{REST}"
    effect = f"no difference in effect within 1e-06: 1 the same, 1 the same in effect{REST}"
    yield "same-effect", model(OTHER, BN), model(OTHER, rewritten(BN, "bn")), effect
    effect = f"no difference in effect within 1e-06: 1 folded{REST}"
    yield "folded", own, holding(product), effect
    yield "folded", holding(product), own, effect
    yield "different", own, holding(wrong), "0 of 0 layers differ, 1 removed"
    other = model(rewritten(BN, "bn"), shifted)
    yield "different", model(BN, OTHER), other, "1 of 2 layers differ"
    yield "different", model(BN), model(BN, OTHER), "0 of 1 layers differ, 1 added"
    both = holding({"conv/kernel": kernel}, BN, OTHER)
    yield "different", both, holding(product, shifted), "1 of 1 layers differ, 1 folded"
    setting = changed(BN, {}, epsilon=0.1)
    yield "different", model(BN), model(setting), "1 of 1 layers differ"


CASES = list(cases())


@pytest.mark.parametrize(("kind", "old", "new", "summary"), CASES)
def test_every_format_has_the_same_verdict(kind: str, old: Model, new: Model, summary: str) -> None:
    difference = diff(old, new)
    assert difference.summary == summary
    assert difference.verdict == ("same-effect" if kind == "folded" else kind)
    assert list(differences.text_lines(difference, Screen()))[-1] == summary
    assert next(differences.markdown_lines(difference)) == f"**{escaped(summary)}**"
    assert summary in of_difference(difference)
    document = json.loads("".join(differences.json_lines(difference)))
    assert document["summary"] == summary
    assert document["verdict"] == difference.verdict
    assert document["counts"] == difference.counts
    assert sum(difference.counts.values()) == len(layers_of(difference))
    shown = Shown(of_two(old, new))
    assert shown.all("p", id="headline") == [summary]
    assert sorted(each["name"] for each in shown.data["rows"]) == layers_of(difference)


def layers_of(difference: Difference) -> list[str]:
    """Return the names of all layers of two models. A pair counts once."""
    return sorted(
        [
            *(each.new for each in difference.layers),
            *(each.layer for each in difference.folded),
            *difference.removed,
            *difference.added,
        ]
    )


def test_tables_contain_only_differences() -> None:
    shifted = changed(OTHER, {"beta": arrays_of(OTHER)["beta"] + 1})
    difference = diff(model(BN, OTHER), model(rewritten(BN, "bn"), shifted))
    html = of_difference(difference)
    rows = [row for row in html.split("<tr")[1:] if "<td" in row]
    assert len(rows) == 1
    assert "other" in rows[0]
    assert "beta" in rows[0]
    table = [line for line in differences.markdown_lines(difference) if line.startswith("| ")]
    assert len(table) == 3


def test_the_notebooks_table_contains_settings() -> None:
    html = of_difference(diff(model(BN), model(changed(BN, {}, epsilon=0.1))))
    assert "epsilon" in html.split("<table")[1].split("</table")[0]


def test_the_page_contains_verdicts_causes_and_foldings() -> None:
    kernel = random_kernel(3, 3, 4, 6)
    scale, shift = scale_and_shift(BN)
    swapped = arrays_of(OTHER)
    swapped = {**swapped, "gamma": swapped["beta"], "beta": swapped["gamma"]}
    old = holding({"conv/kernel": kernel}, BN, OTHER, trained("third", 4))
    new = holding(
        {"w": kernel * scale, "b": shift},
        changed(OTHER, swapped),
        rewritten(trained("third", 4), "third"),
    )
    other, third, folded = Shown(of_two(old, new)).data["rows"]
    assert other["change"]["verdict"] == "different"
    assert other["change"]["causes"] == ["gamma and beta are swapped"]
    assert third["change"]["verdict"] == "same-effect"
    assert third["change"]["causes"] == []
    assert (folded["name"], folded["only"], folded["folded"]) == ("bn", "old", "bn -> w + b")
    assert np.all([folded["stored"][1] is None, folded["misfolded"] is None])
