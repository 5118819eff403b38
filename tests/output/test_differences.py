from __future__ import annotations

import json
from collections.abc import Iterator

import numpy as np
import pytest

from bnstat.compare.diff import Difference, diff
from bnstat.model import Model, Source
from bnstat.output import differences
from bnstat.output.documents import escaped
from bnstat.output.notebook import of_difference
from bnstat.output.terminal.screen import ASCII, UNICODE, Glyphs, Screen
from bnstat.output.terminal.table import text_width
from tests.compare.ports import (
    arrays_of,
    changed,
    holding,
    random_kernel,
    rewritten,
    scale_and_shift,
    trained,
)
from tests.output.models import layer, model, usual
from tests.output.page.written import Shown, of_two

REST = "; other weights were not compared"
START = {"moving_mean": np.zeros(4), "moving_variance": np.ones(4)}


def between(old: dict, new: dict, **tolerance: float) -> Difference:
    return diff(model(layer("bn", old)), model(layer("bn", new)), **tolerance)


def text(difference: Difference, everything: bool = False) -> str:
    return "\n".join(differences.text_lines(difference, Screen(), everything))


BETA = between(
    {"beta": np.array([1.0, 2, 4, 0]), **START}, {"beta": np.array([1.0, 3, 4, 0.5]), **START}
)


def test_a_row_for_each_role_that_changed() -> None:
    lines = text(BETA).splitlines()
    source = "runs/cnn (tf2-checkpoint, model-1200, step 1200)"
    table = ["layer  role   moved  largest  relative", "bn     beta  2 of 4        1    50.00%"]
    assert lines[:5] == [f"old  {source}", f"new  {source}", "", *table]
    assert lines[-1] == "1 of 1 layers differ"
    everything = text(BETA, True).splitlines()
    assert len(everything) == len(lines) + 2
    assert any("moving variance" in line for line in everything)
    assert "| bn | beta | 2 of 4 | 1 | 50.00% |" in differences.markdown_lines(BETA)


def test_equal_within_a_tolerance() -> None:
    near = between(START, {**START, "moving_mean": np.full(4, 0.1)}, rtol=0.5, atol=0.2)
    summary = "no difference: 1 batch-norm layer is equal within rtol 0.5 and atol 0.2" + REST
    assert text(near).splitlines()[-1] == summary


def test_shapes_roles_and_settings() -> None:
    pruned = between(START, {role: array[:3] for role, array in START.items()})
    assert text(pruned).count("shape [4] -> [3]") == 1
    added = text(between(START, {"gamma": np.full(4, 2.0), **START}))
    assert "gamma" in added
    assert "only in new" in added
    old, new = (model(layer("bn", START, epsilon=epsilon)) for epsilon in (1e-3, 1e-5))
    assert "0.001 -> 1e-05" in text(diff(old, new))
    assert "x320" in text(between(START, {**START, "moving_variance": np.full(4, 321.0)}))


def test_remarks_and_renamed_layers() -> None:
    old = model(usual("a", seed=1), usual("b", seed=2), usual("gone", 5))
    new = model(usual("x/a", seed=1), usual("b", seed=3), usual("new", 6))
    shown = text(diff(old, new)).splitlines()
    assert "layers matched: 1 by name, 1 by the end of the name" in shown
    assert {"renamed: a -> x/a", "removed: gone", "added: new"} <= set(shown)
    assert any(line.startswith("frozen (") for line in shown)
    assert shown[-1] == "1 of 2 layers differ, 1 removed, 1 added"


def test_long_lists_are_cut_without_all() -> None:
    new = model(*(usual(f"bn{number}") for number in range(30)))
    shown = text(diff(model(), new))
    assert "bn9 and 20 more (--all)" in shown
    assert "bn10" not in shown
    assert "bn29" in text(diff(model(), new), True)


@pytest.mark.parametrize("glyphs", [UNICODE, ASCII])
@pytest.mark.parametrize("width", [40, 80, 160])
def test_fits_the_screen(width: int, glyphs: Glyphs) -> None:
    names = [f"{'deep/' * 20}bn_{number}" for number in range(4)]
    old = model(*(usual(name, seed=1) for name in names), usual("gone" * 30))
    new = model(*(usual(f"x/{name}", seed=2) for name in names))
    screen = Screen(width=width, glyphs=glyphs, boxes=True)
    assert max(map(text_width, differences.text_lines(diff(old, new), screen))) <= max(width, 46)


def test_json() -> None:
    document = json.loads("".join(differences.json_lines(BETA)))
    assert document["equal"] is False
    (bn,) = document["layers"]
    assert bn["match"] == "name"
    assert bn["roles"]["moving_mean"]["equal"] is True
    beta = {"presence": "both", "shapes": [[4], [4]], "dtypes": ["float64"] * 2, "equal": False}
    beta |= {"channels": 4, "moved": 2, "largest": 1.0, "relative": 0.5}
    assert bn["roles"]["beta"] == beta


def test_markdown_escapes_markup() -> None:
    new = model(usual("a_b|c*", seed=2))
    lines = list(differences.markdown_lines(diff(model(usual("a_b|c*", seed=1)), new)))
    (row,) = (line for line in lines if " gamma " in line)
    assert row.startswith(r"| a\_b\|c\* | gamma |")


KERAS, PYTORCH = Source("runs/a.keras", "keras-archive"), Source("ports/b.pth", "pytorch")
BN = trained("bn")


def port(**arrays: np.ndarray) -> Model:
    """The network of `BN` in a format that stores no epsilon."""
    return model(changed(BN, arrays, epsilon=None), source=PYTORCH)


class TestEpsilon:
    NOTE = (
        "epsilon: a.keras has 0.001; b.pth stores none, and PyTorch's default is 1e-5: pass the "
        "epsilon of your code by --epsilon"
    )

    def test_names_the_file_without_one(self) -> None:
        original = model(BN, source=KERAS)
        for pair in ((original, port()), (port(), original)):
            difference = diff(*pair)
            assert difference.verdict == "same"
            assert self.NOTE in text(difference).splitlines()
            for epsilon in (1e-3, 1e-5):
                assert "stores none" not in text(diff(*pair, epsilon=epsilon))
        assert "stores none" not in text(diff(port(), port()))

    def test_defaults_of_other_formats(self) -> None:
        keras = "Keras's default is 0.001"
        formats = {"tf1-checkpoint": keras, "npz": f"PyTorch's default is 1e-5, {keras}"}
        for format_, defaults in formats.items():
            other = model(changed(BN, {}, epsilon=None), source=Source("b", format_))
            shown = text(diff(model(BN, source=KERAS), other))
            assert f"b stores none, and {defaults}: pass" in shown

    def test_files_of_equal_names_are_the_old_and_the_new(self) -> None:
        old, new = Source("a/m.pth", "keras-archive"), Source("b\\m.pth", "pytorch")
        other = model(changed(BN, {}, epsilon=None), source=new)
        shown = text(diff(model(BN, source=old), other))
        assert "epsilon: the old file has 0.001; the new file stores none" in shown


class TestUnfolded:
    kernel = random_kernel(3, 3, 4, 8)

    def folded(self) -> Model:
        scale, shift = scale_and_shift(BN)
        source = Source("b.onnx", "onnx")
        return holding({"w": self.kernel * scale, "b": shift}, source=source)

    def own(self, epsilon: float | None, weights: np.ndarray) -> Model:
        layer_ = changed(BN, {}, epsilon=epsilon)
        return holding({"conv.weight": weights}, layer_, source=PYTORCH)

    def test_without_epsilon_it_cannot_be_tested(self) -> None:
        note = "b.pth stores no epsilon, so folding cannot be tested: pass --epsilon 1e-5 "
        note += "(PyTorch's default)"
        own = self.own(None, self.kernel)
        for pair in ((own, self.folded()), (self.folded(), own)):
            assert note in text(diff(*pair)).splitlines()
            proven = diff(*pair, epsilon=1e-3)
            assert proven.equivalent
            assert proven.unfolded == ()

    def test_of_an_unrelated_original(self) -> None:
        own = self.own(1e-3, random_kernel(3, 3, 4, 8, seed=1))
        for pair in ((own, self.folded()), (self.folded(), own)):
            lines = text(diff(*pair)).splitlines()
            assert "not found folded (no weights of b.onnx match): bn" in lines

    def test_a_layer_folded_wrongly_was_found(self) -> None:
        difference = diff(self.own(1e-2, self.kernel), self.folded())
        assert [each.layer for each in difference.misfolded] == ["bn"]
        assert difference.unfolded == ()

    def test_a_model_with_batch_norm_that_is_trained_was_not_folded(self) -> None:
        other = holding({"w": self.kernel}, trained("other", 4), source=KERAS)
        assert diff(self.own(None, self.kernel), other).unfolded == ()


def test_initial_statistics_of_a_port_are_the_only_reason_shown() -> None:
    fresh = {"moving_mean": np.zeros(8, np.float32), "moving_variance": np.ones(8, np.float32)}
    equal = trained("equal", seed=3)
    for source in (PYTORCH, KERAS):
        old = model(BN, equal, source=KERAS)
        new = model(changed(BN, fresh), equal, source=source)
        shown = text(diff(old, new))
        assert "cause: the new statistics are the initial 0 and 1: they were not ported" in shown
        assert "frozen" not in shown


def test_models_of_two_formats_were_not_frozen() -> None:
    moved = {"moving_mean": arrays_of(trained("x", seed=5))["moving_mean"]}
    old = model(BN, source=KERAS)
    for source, is_shown in ((KERAS, True), (PYTORCH, False)):
        shown = text(diff(old, model(changed(BN, moved), source=source)))
        assert ("frozen weights" in shown) == is_shown


SIX, OTHER = trained("bn", 6), trained("other", 6, seed=1)
SHIFTED = changed(OTHER, {"beta": arrays_of(OTHER)["beta"] + 1})


def cases() -> Iterator[tuple[str, Model, Model, str]]:
    """Yield the verdict, the old model, the new model and the summary."""
    kernel = random_kernel(3, 3, 4, 6)
    scale, shift = scale_and_shift(SIX)
    own = holding({"conv/kernel": kernel}, SIX)
    product = {"w": (kernel * scale).transpose(3, 2, 0, 1), "b": shift}
    wrong = {"w": product["w"], "b": shift * 2}
    yield "same", model(SIX), model(SIX), f"no difference: 1 batch-norm layer is equal{REST}"
    effect = f"no difference in effect within 1e-06: 1 the same, 1 the same in effect{REST}"
    yield "same-effect", model(OTHER, SIX), model(OTHER, rewritten(SIX, "bn")), effect
    effect = f"no difference in effect within 1e-06: 1 folded{REST}"
    yield "folded", own, holding(product), effect
    yield "folded", holding(product), own, effect
    yield "different", own, holding(wrong), "0 of 0 layers differ, 1 removed"
    other = model(rewritten(SIX, "bn"), SHIFTED)
    yield "different", model(SIX, OTHER), other, "1 of 2 layers differ"
    yield "different", model(SIX), model(SIX, OTHER), "0 of 1 layers differ, 1 added"
    both = holding({"conv/kernel": kernel}, SIX, OTHER)
    yield "different", both, holding(product, SHIFTED), "1 of 1 layers differ, 1 folded"
    setting = changed(SIX, {}, epsilon=0.1)
    yield "different", model(SIX), model(setting), "1 of 1 layers differ"


@pytest.mark.parametrize(("kind", "old", "new", "summary"), list(cases()))
def test_every_format_has_the_same_verdict(kind: str, old: Model, new: Model, summary: str) -> None:
    difference = diff(old, new)
    assert difference.summary == summary
    assert difference.verdict == ("same-effect" if kind == "folded" else kind)
    assert list(differences.text_lines(difference, Screen()))[-1] == summary
    assert next(differences.markdown_lines(difference)) == f"**{escaped(summary)}**"
    assert summary in of_difference(difference)
    document = json.loads("".join(differences.json_lines(difference)))
    assert (document["summary"], document["verdict"]) == (summary, difference.verdict)
    assert document["counts"] == difference.counts
    paired = [each.new for each in difference.layers]
    folded = [each.layer for each in difference.folded]
    layers = sorted([*paired, *folded, *difference.removed, *difference.added])
    assert sum(difference.counts.values()) == len(layers)
    shown = Shown(of_two(old, new))
    assert shown.all("p", id="headline") == [summary]
    assert sorted(each["name"] for each in shown.data["rows"]) == layers


def test_tables_contain_only_differences() -> None:
    difference = diff(model(SIX, OTHER), model(rewritten(SIX, "bn"), SHIFTED))
    (row,) = [row for row in of_difference(difference).split("<tr")[1:] if "<td" in row]
    assert "other" in row
    assert "beta" in row
    table = [line for line in differences.markdown_lines(difference) if line.startswith("| ")]
    assert len(table) == 3
    html = of_difference(diff(model(SIX), model(changed(SIX, {}, epsilon=0.1))))
    assert "epsilon" in html.split("<table")[1].split("</table")[0]


def test_the_page_contains_verdicts_causes_and_foldings() -> None:
    kernel = random_kernel(3, 3, 4, 6)
    scale, shift = scale_and_shift(SIX)
    swapped = arrays_of(OTHER)
    swapped = {**swapped, "gamma": swapped["beta"], "beta": swapped["gamma"]}
    old = holding({"conv/kernel": kernel}, SIX, OTHER, trained("third", 4))
    layers = changed(OTHER, swapped), rewritten(trained("third", 4), "third")
    new = holding({"w": kernel * scale, "b": shift}, *layers)
    *paired, folded = Shown(of_two(old, new)).data["rows"]
    assert [(row["change"]["verdict"], row["change"]["causes"]) for row in paired] == [
        ("different", ["gamma and beta are swapped"]),
        ("same-effect", []),
    ]
    assert (folded["name"], folded["only"], folded["folded"]) == ("bn", "old", "bn -> w + b")
    assert folded["stored"][1] is folded["misfolded"] is None
