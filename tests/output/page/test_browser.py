"""Pages in a real browser."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bnstat.model import ROLES, Summary, as_float64
from bnstat.output.documents.drift_json import Measured
from bnstat.output.numbers import shortest
from tests.output.models import layer, model, usual
from tests.output.page.test_content import HOSTILE
from tests.output.page.written import of_model, of_run, of_two

Show = Callable[..., Any]

NAMES = ["stem/bn", "block1/bn", "block2/bn", "block10/bn", "head/bn"]


def network(epsilon: float | None = 0.001) -> Any:
    layers = [
        usual(name, 16 + place, place, epsilon=epsilon) for place, name in enumerate(NAMES, 1)
    ]
    return model(*layers)


def rows(page: Any) -> list[list[str]]:
    """The texts of the table's rows that are in the document."""
    texts: list[list[str]] = page.eval_on_selector_all(
        "#table tr[aria-rowindex]",
        "rows => rows.map(row => [...row.cells].map(c => c.textContent))",
    )
    return texts


def names(page: Any) -> list[str]:
    return [row[1] for row in rows(page)]


def frame(page: Any) -> None:
    """Wait until what was asked for is drawn."""
    page.evaluate("() => new Promise(done => requestAnimationFrame(() => setTimeout(done)))")


def press(page: Any, *keys: str) -> None:
    for key in keys:
        page.keyboard.press(key)
    frame(page)


def title(page: Any) -> str:
    return str(page.text_content("#layer-title"))


def numbers(page: Any) -> dict[str, list[str]]:
    """The columns of the table of numbers of the layer that is shown."""
    page.evaluate("document.getElementById('numbers-details').open = true")
    page.wait_for_selector("#channels tr[aria-rowindex]")
    heads = page.eval_on_selector_all("#channels th", "heads => heads.map(h => h.textContent)")
    cells = page.eval_on_selector_all(
        "#channels tr[aria-rowindex]",
        "rows => rows.map(row => [...row.cells].map(c => c.textContent))",
    )
    return dict(zip(heads, map(list, zip(*cells, strict=True)), strict=True))


def read_back(texts: list[str], like: np.ndarray) -> bytes:
    return np.array([float(text) for text in texts]).astype(like.dtype).tobytes()


def download(page: Any, selector: str) -> list[list[str]]:
    with page.expect_download() as waiting:
        page.click(selector)
    return list(csv.reader(io.StringIO(Path(waiting.value.path()).read_text(encoding="utf-8"))))


def test_the_numbers_are_the_models(show: Show) -> None:
    shown = network()
    page = show(of_model(shown))
    for of in shown:
        assert title(page) == of.name
        columns = numbers(page)
        for role in ROLES:
            array = of.array(role)
            assert read_back(columns[role.replace("_", " ")], array) == array.tobytes()
        for name, array in zip(("scale", "shift"), of.scale_and_shift(), strict=True):
            assert read_back(columns[name], array) == array.tobytes()
        press(page, "ArrowDown")


def test_the_summaries_are_the_models(show: Show) -> None:
    shown = network()
    head, *table = download(show(of_model(shown)), "#layers-csv")
    for of, row in zip(shown, table, strict=True):
        cells = dict(zip(head, row, strict=True))
        for role in ROLES:
            expected = Summary.of(of.array(role))
            for measure in ("mean", "std", "min", "max"):
                text = cells[f"{role.replace('_', ' ')} {measure}"]
                assert float(text) == pytest.approx(getattr(expected, measure), rel=1e-14)


def test_what_is_taken_away(show: Show) -> None:
    shown = network()
    page = show(of_model(shown))
    head, *table = download(page, "#layer-csv") if numbers(page) else []
    assert head == ["channel", *(role.replace("_", " ") for role in ROLES), "scale", "shift"]
    assert [row[1] for row in table] == shortest(shown[0].gamma)
    head, *table = download(page, "figure:nth-of-type(4) .tools button:nth-of-type(2)")
    assert head == ["channel", "moving variance"]
    assert [row[1] for row in table] == shortest(shown[0].moving_variance)
    page.evaluate("navigator.clipboard.writeText = async text => { window.copied = text; }")
    page.click("figure:nth-of-type(1) .tools button:nth-of-type(1)")
    copied = page.evaluate("window.copied").split("\n")
    assert copied[0] == "channel\tgamma"
    assert [line.split("\t")[1] for line in copied[1:]] == shortest(shown[0].gamma)


def test_axes_follow_the_layer(show: Show) -> None:
    picture = "document.querySelectorAll('figure canvas')[3].toDataURL()"
    small = usual("a", epsilon=0.001)
    arrays = {role: 100 * small.array(role) for role in ROLES}
    large = layer("a", arrays, epsilon=0.001)
    alone = show(of_model(model(large)))
    after = show(of_model(model(small, layer("b", arrays, epsilon=0.001))))
    before = after.evaluate(picture)
    press(after, "ArrowDown")
    assert after.evaluate(picture) == alone.evaluate(picture) != before


def test_search_and_sort(show: Show) -> None:
    page = show(of_model(network()))
    assert names(page) == NAMES
    press(page, "/", "b", "l", "o", "c", "k", "1")
    assert names(page) == ["block1/bn", "block10/bn"]
    assert page.text_content("#status") == "2 of 5 layers"
    press(page, "ArrowDown", "ArrowDown")
    assert title(page) == "block10/bn"
    press(page, "Escape")
    assert names(page) == NAMES
    gammas = {of.name: as_float64(of.gamma).mean() for of in network()}
    for order in (sorted(NAMES, key=gammas.get), sorted(NAMES, key=gammas.get, reverse=True)):
        page.click("#table th:nth-of-type(4) button")
        frame(page)
        assert names(page) == order
    page.click("#table th:nth-of-type(4) button")
    frame(page)
    assert names(page) == NAMES


def test_the_keyboard(show: Show) -> None:
    page = show(of_model(network()))
    seen = []
    for key in ("End", "ArrowUp", "Home", "ArrowUp", "ArrowDown"):
        press(page, key)
        seen.append(title(page))
    assert seen == ["head/bn", "block10/bn", "stem/bn", "stem/bn", "block1/bn"]
    press(page, "s")
    assert page.input_value("#order") == "value"
    press(page, "l")
    assert page.is_checked("#logarithmic")
    press(page, "?")
    assert page.is_visible("#help")
    press(page, "Escape")
    assert not page.is_visible("#help")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_light_and_dark(scheme: str, show: Show) -> None:
    page = show(of_model(network()), color_scheme=scheme)
    background = "getComputedStyle(document.body).backgroundColor"
    colours = {"light": "rgb(255, 255, 255)", "dark": "rgb(20, 24, 29)"}
    assert page.evaluate(background) == colours.pop(scheme)
    press(page, "t")
    assert page.evaluate(background) == next(iter(colours.values()))


def test_on_paper_it_is_light_open_and_whole(show: Show) -> None:
    arrays = {"moving_mean": np.zeros(2, np.float32), "moving_variance": np.float32([-1, 1])}
    page = show(
        of_model(model(*(layer(f"bn{place}", arrays) for place in range(200)))), color_scheme="dark"
    )
    assert len(rows(page)) < 100
    page.emulate_media(media="print")
    frame(page)
    assert len(rows(page)) == 200
    assert page.evaluate("document.documentElement.dataset.theme") == "light"
    assert page.evaluate("[...document.querySelectorAll('details.rule')].every(e => e.open)")
    page.emulate_media(media="screen")
    frame(page)
    assert len(rows(page)) < 100
    assert page.evaluate("document.documentElement.dataset.theme") == "dark"
    assert not page.evaluate("[...document.querySelectorAll('details.rule')].some(e => e.open)")


def test_findings_lead_to_their_layers(show: Show) -> None:
    sick = usual("sick", 8, epsilon=0.001)
    variance = sick.moving_variance.copy()
    variance[5] = -1
    arrays = {**{role: sick.array(role) for role in ROLES}, "moving_variance": variance}
    page = show(of_model(model(usual("well", seed=9), layer("sick", arrays))))
    assert title(page) == "sick"
    press(page, "ArrowUp")
    assert title(page) == "well"
    page.click("text=negative-variance")
    page.click("details[open] .link")
    frame(page)
    assert title(page) == "sick"
    assert "channels 5" in page.get_attribute("figure:nth-of-type(4) .chart", "aria-label")
    page.click("details[open] [data-search]")
    frame(page)
    assert names(page) == ["sick"]


def test_epsilon_is_asked_for(show: Show) -> None:
    shown = network(epsilon=None)
    page = show(of_model(shown))
    assert "scale" not in numbers(page)
    page.fill("#epsilon", "1e-5")
    frame(page)
    for name, array in zip(("scale", "shift"), shown[0].scale_and_shift(1e-5), strict=True):
        assert read_back(numbers(page)[name], array) == array.tobytes()
    page.fill("#epsilon", "much")
    frame(page)
    assert page.get_attribute("#epsilon", "aria-invalid") == "true"
    assert "scale" not in numbers(page)


def test_a_run_moves_by_its_slider(show: Show) -> None:
    models = [model(usual("a", seed=seed), usual("b", seed=seed + 9)) for seed in range(3)]
    page = show(of_run(*models))
    for place, key in ((2, None), (1, "ArrowLeft"), (0, "ArrowLeft"), (1, "ArrowRight")):
        if key:
            press(page, key)
        assert page.input_value("#frame") == str(place)
        assert f"model-{place}" in page.text_content("#frame-name")
        gamma = models[place]["a"].gamma
        assert read_back(numbers(page)["gamma"], gamma) == gamma.tobytes()
    page.fill("#frame", "2")
    frame(page)
    gamma = models[2]["a"].gamma
    assert read_back(numbers(page)["gamma"], gamma) == gamma.tobytes()
    label = page.get_attribute("figure:nth-of-type(1) .second", "aria-label")
    assert label.startswith("mean gamma over 3 checkpoints")


def test_two_models_stand_side_by_side(show: Show) -> None:
    old, new = usual("a", seed=1), usual("a", seed=2)
    page = show(of_two(model(old, usual("gone")), model(new)))
    columns = numbers(page)
    assert read_back(columns["old gamma"], old.gamma) == old.gamma.tobytes()
    assert read_back(columns["new gamma"], new.gamma) == new.gamma.tobytes()
    assert page.is_visible("figure:nth-of-type(1) .second")
    assert names(page) == ["a", "gone (only in the old)"]
    press(page, "ArrowDown")
    assert "old gamma" in numbers(page)
    assert not page.is_visible("figure:nth-of-type(1) .second")


def test_the_data_beside_what_is_stored(show: Show) -> None:
    stored = usual("bn", 4, epsilon=0.001)
    mean = np.array([1, np.nan, np.inf, 0.1])
    page = show(of_model(model(stored), measured={"bn": Measured(mean, mean, mean, "shifted")}))
    assert numbers(page)["data moving mean"] == ["1", "NaN", "Infinity", "0.1"]
    assert "shifted" in page.text_content("#layer-facts")


def test_hostile_names_and_odd_numbers(show: Show) -> None:
    nan = np.array([0x7FC00001, 0xFF800000, 0x7F800000, 1], np.uint32).view(np.float32)
    odd = {
        "not finite": [nan, nan],
        "nothing": [np.zeros(0, np.float32)] * 2,
        "one": [np.ones(1, np.float32)] * 2,
        "huge": [np.array([-1.7e308, 1.7e308]), np.array([1e-320, 5e-324])],
        "cube": [np.ones((2, 3, 2), np.float32)] * 2,
        "unequal": [np.ones(2, np.float32), np.ones(3, np.float32)],
    }
    layers = [
        layer(name, dict(zip(("moving_mean", "moving_variance"), arrays, strict=True)), epsilon=0.1)
        for name, arrays in odd.items()
    ]
    layers += [usual(name, seed=seed, epsilon=1e-3) for seed, name in enumerate(HOSTILE)]
    page = show(of_model(model(*layers)))
    press(page, "Home")
    for of in layers:
        assert title(page)[:20] == page.evaluate("name => name", of.name)[:20] or (
            not of.name.isprintable()
        )
        columns = numbers(page) if of.channels else {}
        for role, variable in of.variables.items():
            if columns and variable.shape == of.shape:
                array = of.array(role).ravel()
                texts = columns[role.replace("_", " ")]
                both = np.array([float(text) for text in texts]).astype(array.dtype)
                np.testing.assert_array_equal(both, array)
        press(page, "l", "s", "ArrowDown")
    press(page, "Home")
    assert numbers(page)["moving mean"] == ["NaN", "-Infinity", "Infinity", "1e-45"]
    press(page, "End")
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_no_layer_at_all(show: Show) -> None:
    page = show(of_model(model()))
    assert title(page) == "no batch-norm layer"
    press(page, "ArrowDown", "End", "s")


def test_ten_thousand_layers(show: Show) -> None:
    arrays = {role: np.ones(4, np.float32) for role in ROLES}
    page = show(of_model(model(*(layer(f"bn{place}", arrays) for place in range(10_000)))))
    press(page, "End")
    assert title(page) == "bn9999"
    assert names(page)[-1] == "bn9999"
    assert len(rows(page)) < 100
    page.evaluate("document.getElementById('table').scrollTop = 150000")
    frame(page)
    assert "bn5000" in names(page)
    press(page, "/", "9", "9", "9", "9")
    assert names(page) == ["bn9999"]


def test_on_a_phone_nothing_sticks_out(show: Show) -> None:
    page = show(of_model(network()), viewport={"width": 390, "height": 800})
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert page.eval_on_selector_all(
        "#table th", "heads => heads.filter(h => h.offsetParent).map(h => h.textContent)"
    ) == ["", "layer", "ch", "mean", "variance"]
    page.click("#table tr[aria-rowindex='3']")
    frame(page)
    assert title(page) == "block1/bn"


def test_charts_have_words(show: Show) -> None:
    page = show(of_model(network()))
    labels = page.eval_on_selector_all(
        "figure .chart:not([hidden])", "charts => charts.map(c => [c.role, c.ariaLabel])"
    )
    assert len(labels) == 6
    for (role, label), of in zip(labels, [*ROLES, "scale", "shift"], strict=True):
        assert role == "img"
        assert label.startswith(f"{of.replace('_', ' ')} of stem/bn: 17 channels, mean ")


def test_the_pointer_tells_a_channel_in_all_charts(show: Show) -> None:
    shown = network()
    page = show(of_model(shown))
    box = page.locator("figure:nth-of-type(1) .u-over").bounding_box()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    said = page.eval_on_selector_all("figure .said", "all => all.map(e => e.textContent)")
    assert said[0] == f"channel 8: {shortest(shown[0].gamma)[8]}"
    assert said[3] == f"channel 8: {shortest(shown[0].moving_variance)[8]}"
