"""The controls of pages in a real browser: search, sort, keys, slider, themes, print."""

from __future__ import annotations

import numpy as np
import pytest

from bnstat.exchange.decimals import shortest
from bnstat.model import ROLES, as_float64
from tests.output.models import layer, model, usual
from tests.output.page.seen import (
    NAMES,
    Show,
    frame,
    names,
    network,
    numbers,
    press,
    read_back,
    rows,
    title,
)
from tests.output.page.written import of_model, of_run


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


@pytest.mark.parametrize(("layers", "printed"), [(200, 200), (5_001, 5_000)])
def test_a_printed_page_is_light_open_and_complete(layers: int, printed: int, show: Show) -> None:
    arrays = {"moving_mean": np.zeros(1, np.float32), "moving_variance": -np.ones(1, np.float32)}
    text = of_model(model(*(layer(f"bn{place}", arrays) for place in range(layers))))
    page = show(text, color_scheme="dark")
    theme = "document.documentElement.dataset.theme"
    opened = "[...document.querySelectorAll('details.rule')].map(e => e.open)"
    for media, is_printed in (("screen", False), ("print", True), ("screen", False)):
        page.emulate_media(media=media)
        frame(page)
        assert len(rows(page)) == printed if is_printed else len(rows(page)) < 100
        assert page.evaluate(theme) == ("light" if is_printed else "dark")
        assert set(page.evaluate(opened)) == {is_printed}
        assert page.is_visible("#table .rest") == (is_printed and layers > printed)
        if is_printed and layers > printed:
            rest = page.text_content("#table .rest")
            assert rest.startswith("The first 5,000 of 5,001 rows; ")
            bottom = "document.querySelector('#table .spacer:last-child').offsetHeight"
            assert page.evaluate(bottom) < 30


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


def test_epsilon_can_be_entered(show: Show) -> None:
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


def test_the_slider_selects_a_checkpoint(show: Show) -> None:
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


def test_a_page_fits_a_phone(show: Show) -> None:
    page = show(of_model(network()), viewport={"width": 390, "height": 800})
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert page.eval_on_selector_all(
        "#table th", "heads => heads.filter(h => h.offsetParent).map(h => h.textContent)"
    ) == ["", "layer", "ch", "mean", "variance"]
    page.click("#table tr[aria-rowindex='3']")
    frame(page)
    assert title(page) == "block1/bn"


def test_the_pointer_selects_a_channel_in_all_charts(show: Show) -> None:
    shown = network()
    page = show(of_model(shown))
    box = page.locator("figure:nth-of-type(1) .u-over").bounding_box()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    said = page.eval_on_selector_all("figure .said", "all => all.map(e => e.textContent)")
    assert said[0] == f"channel 8: {shortest(shown[0].gamma)[8]}"
    assert said[3] == f"channel 8: {shortest(shown[0].moving_variance)[8]}"
