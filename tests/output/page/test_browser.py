"""Pages in a real browser show the numbers of the model, whatever they are."""

from __future__ import annotations

import numpy as np
import pytest

from bnstat.exchange.decimals import shortest
from bnstat.model import ROLES, Summary
from tests.output.models import layer, model, usual
from tests.output.page.seen import Show, download, names, network, numbers, press, read_back, title
from tests.output.page.test_content import HOSTILE
from tests.output.page.written import of_model, of_two


def test_the_numbers_equal_the_models(show: Show) -> None:
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


def test_the_summaries_equal_the_models(show: Show) -> None:
    shown = network()
    head, *table = download(show(of_model(shown)), "#layers-csv")
    for of, row in zip(shown, table, strict=True):
        cells = dict(zip(head, row, strict=True))
        for role in ROLES:
            expected = Summary.of(of.array(role))
            for measure in ("mean", "std", "min", "max"):
                text = cells[f"{role.replace('_', ' ')} {measure}"]
                assert float(text) == pytest.approx(getattr(expected, measure), rel=1e-14)


def test_exported_tables(show: Show) -> None:
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


def test_two_models_side_by_side(show: Show) -> None:
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


@pytest.mark.parametrize("wide", [4, 9])
def test_layers_of_different_widths_side_by_side(wide: int, show: Show) -> None:
    old, new = usual("a", wide, seed=1), usual("a", 6, seed=2)
    page = show(of_two(model(old), model(new)))
    columns = numbers(page)
    assert [text for text in columns["old gamma"] if text] == shortest(old.gamma)
    assert [text for text in columns["new gamma"] if text] == shortest(new.gamma)
    assert not page.is_visible("figure:nth-of-type(1) .second")


def test_measured_statistics_beside_the_stored_ones(show: Show) -> None:
    stored = usual("bn", 4, epsilon=0.001)
    mean = np.array([1, np.nan, np.inf, 0.1])
    arrays = dict.fromkeys(("mean", "variance", "divergence"), mean)
    page = show(of_model(model(stored), measured={"bn": ("shifted", arrays)}))
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
                both = np.array([float(text) for text in texts if text]).astype(array.dtype)
                np.testing.assert_array_equal(both, array)
        press(page, "l", "s", "ArrowDown")
    press(page, "Home")
    assert numbers(page)["moving mean"] == ["NaN", "-Infinity", "Infinity", "1e-45"]
    press(page, "End")
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_a_page_without_layers(show: Show) -> None:
    page = show(of_model(model()))
    assert title(page) == "no batch-norm layer"
    press(page, "ArrowDown", "End", "s")


def test_charts_have_labels(show: Show) -> None:
    page = show(of_model(network()))
    labels = page.eval_on_selector_all(
        "figure .chart:not([hidden])", "charts => charts.map(c => [c.role, c.ariaLabel])"
    )
    assert len(labels) == 6
    for (role, label), of in zip(labels, [*ROLES, "scale", "shift"], strict=True):
        assert role == "img"
        assert label.startswith(f"{of.replace('_', ' ')} of stem/bn: 17 channels, mean ")
