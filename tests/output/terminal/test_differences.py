from __future__ import annotations

import io
import json

import numpy as np
import pytest

from bnstat.compare import Difference, diff
from bnstat.output.results import differences as differences_json
from bnstat.output.results import differences as differences_markdown
from bnstat.output.terminal import differences
from bnstat.output.terminal.screen import ASCII, Screen
from bnstat.output.terminal.table import text_width
from tests.output.models import layer, model, usual

START = {"moving_mean": np.zeros(4), "moving_variance": np.ones(4)}


def between(old: dict, new: dict, **tolerance: float) -> Difference:
    return diff(model(layer("bn", old)), model(layer("bn", new)), **tolerance)


def rows(difference: Difference, everything: bool = False) -> list[list[str]]:
    lines = list(differences.lines(difference, Screen(), everything))
    start = lines.index("") + 2
    return [line.split("  ") for line in lines[start : lines.index("", start)]]


def text(difference: Difference, everything: bool = False) -> str:
    return "\n".join(differences.lines(difference, Screen(), everything))


BETA = between(
    {"beta": np.array([1.0, 2, 4, 0]), **START}, {"beta": np.array([1.0, 3, 4, 0.5]), **START}
)


def test_a_row_for_each_role_that_changed() -> None:
    lines = list(differences.lines(BETA, Screen()))
    assert lines[:5] == [
        "old  runs/cnn (tf2-checkpoint, model-1200, step 1200)",
        "new  runs/cnn (tf2-checkpoint, model-1200, step 1200)",
        "",
        "layer  role   moved  largest  relative",
        "bn     beta  2 of 4        1    50.00%",
    ]
    assert lines[-1] == "1 of 1 layers differ"


def test_all_includes_equal_roles() -> None:
    assert len(list(differences.lines(BETA, Screen(), True))) == 2 + len(
        list(differences.lines(BETA, Screen()))
    )
    assert "moving variance" in text(BETA, True)


def test_equal() -> None:
    same = between(START, START)
    assert text(same).splitlines()[-1] == "no difference: 1 layer is equal"
    near = between(START, {**START, "moving_mean": np.full(4, 0.1)}, rtol=0.5, atol=0.2)
    assert text(near).splitlines()[-1] == (
        "no difference: 1 layer is equal within rtol 0.5 and atol 0.2"
    )


def test_large_changes_are_multiples() -> None:
    grown = between(START, {**START, "moving_variance": np.full(4, 321.0)})
    assert "x320" in text(grown)


def test_shapes_roles_and_settings() -> None:
    pruned = between(START, {role: array[:3] for role, array in START.items()})
    assert "shape [4] -> [3]" in text(pruned)
    assert text(pruned).count("shape [4]") == 1
    assert "gamma" in text(between(START, {"gamma": np.full(4, 2.0), **START}))
    assert "only in new" in text(between(START, {"gamma": np.full(4, 2.0), **START}))
    old, new = (model(layer("bn", START, epsilon=epsilon)) for epsilon in (1e-3, 1e-5))
    assert "0.001 -> 1e-05" in text(diff(old, new))


def test_remarks_and_renamed_layers() -> None:
    old = model(usual("a", seed=1), usual("b", seed=2), usual("gone", 5))
    new = model(usual("x/a", seed=1), usual("b", seed=3), usual("new", 6))
    shown = text(diff(old, new))
    assert "layers matched: 1 by name, 1 by the end of the name" in shown
    assert "renamed: a -> x/a" in shown
    assert "removed: gone" in shown
    assert "added: new" in shown
    assert "frozen (" in shown
    assert shown.splitlines()[-1] == "1 of 2 layers differ, 1 removed, 1 added"


def test_long_lists_are_cut_without_all() -> None:
    new = model(*(usual(f"bn{number}") for number in range(30)))
    shown = text(diff(model(), new))
    assert "bn9 and 20 more (--all)" in shown
    assert "bn10" not in shown
    assert "bn29" in text(diff(model(), new), True)


NASTY = "a\x1b[31m\n[red]|<script>`@x`"


@pytest.mark.parametrize("everything", [False, True])
def test_names_are_made_printable(everything: bool) -> None:
    difference = diff(model(usual(NASTY, seed=1)), model(usual(f"q/{NASTY}", seed=2)))
    for line in differences.lines(difference, Screen(), everything):
        assert line.isprintable()
    for line in differences_markdown.lines(difference, everything):
        assert line.isprintable()
        assert "<script>" not in line


@pytest.mark.parametrize("width", [40, 80, 160])
def test_fits_the_screen(width: int) -> None:
    names = [f"{'deep/' * 20}bn_{number}" for number in range(4)]
    old = model(*(usual(name, seed=1) for name in names), usual("gone" * 30))
    new = model(*(usual(f"x/{name}", seed=2) for name in names))
    for glyphs in (Screen().glyphs, ASCII):
        screen = Screen(width=width, glyphs=glyphs, boxes=True)
        for line in differences.lines(diff(old, new), screen):
            assert text_width(line) <= max(width, 46)


def test_json() -> None:
    file = io.StringIO()
    differences_json.dump(BETA, file)
    document = json.loads(file.getvalue())
    assert document["equal"] is False
    assert document["layers"][0]["roles"]["beta"] == {
        "presence": "both",
        "shapes": [[4], [4]],
        "dtypes": ["float64", "float64"],
        "equal": False,
        "channels": 4,
        "moved": 2,
        "largest": 1.0,
        "relative": 0.5,
    }
    assert document["layers"][0]["roles"]["moving_mean"]["equal"] is True
    assert document["layers"][0]["match"] == "name"


def test_markdown_has_a_row_for_each_role_that_changed() -> None:
    lines = list(differences_markdown.lines(BETA))
    assert lines[0] == "**1 of 1 layers differ**"
    assert "| bn | beta | 2 of 4 | 1 | 50.00% |" in lines


def test_markdown_escapes_markup() -> None:
    new = model(usual("a_b|c*", seed=2))
    lines = list(differences_markdown.lines(diff(model(usual("a_b|c*", seed=1)), new)))
    (row,) = (line for line in lines if " gamma " in line)
    assert row.startswith(r"| a\_b\|c\* | gamma |")
