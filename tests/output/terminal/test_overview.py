from __future__ import annotations

import numpy as np
import pytest

from bnstat.model import Source
from bnstat.output.terminal.overview import footnotes, header, overview
from bnstat.output.terminal.screen import ASCII, Screen
from bnstat.output.terminal.table import text_width
from tests.output.models import layer, model, usual, variable


def vectors(**arrays):
    return {role: np.array(values, np.float32) for role, values in arrays.items()}


def table_rows(a_model):
    """The rows of the table by the layer's name, as lists of cells."""
    lines = list(overview(a_model, Screen()))
    start = lines.index("") + 1
    end = lines.index("", start)
    return {line.split()[0]: line.split()[1:] for line in lines[start:end]}


def legend(a_model):
    lines = list(overview(a_model, Screen()))
    return lines[len(lines) - lines[::-1].index("") :]


def test_header():
    assert list(header(model(usual("a", 3), usual("b", 1500)), Screen())) == [
        "path        runs/cnn",
        "format      tf2-checkpoint",
        "writer      tf.keras 2.4.0",
        "checkpoint  model-1200",
        "step        1200",
        "layers      2 with 1,503 channels",
    ]
    source = Source("model.pb", "frozen-graph")
    lines = ["path    model.pb", "format  frozen-graph", "layers  1 with 1 channel"]
    assert list(header(model(usual("a", 1), source=source), Screen())) == lines


def test_settings_are_in_the_header_or_in_columns():
    layers = [usual(name, epsilon=0.001, axis=(1, 2), trainable=False) for name in "ab"]
    assert "settings    epsilon 0.001, axis 1,2, trainable no" in header(model(*layers), Screen())
    assert "epsilon" not in table_rows(model(*layers))["layer"]
    rows = table_rows(model(usual("a", epsilon=0.001), usual("block/" * 40)))
    assert [row[1] for row in rows.values()] == ["epsilon", "0.001", "-"]
    assert "block/" * 40 in rows


def test_cells_of_a_pipe():
    arrays = vectors(
        gamma=[1, 1, 1, 1], moving_mean=[-1, 0, 0, 3], moving_variance=[0.25, 0.25, 0.75, 0.75]
    )
    rows = table_rows(model(layer("bn", arrays)))
    assert rows["layer"] == [
        *("channels", "gamma", "range", "beta", "range"),
        *("moving", "mean", "range", "moving", "var", "range"),
    ]
    assert rows["bn"] == [
        *("4", "1±0", "1..1", "█", "-"),
        *("0.50±1.50", "-1..3", "▄", "█", "▄"),
        *("0.500±0.250", "0.250..0.750", "█", "█"),
    ]


def test_histogram_counts_every_bin():
    values = np.repeat(np.arange(8, dtype=np.float32), [8, 7, 6, 5, 4, 3, 2, 1])
    bn = layer("bn", {"gamma": values, "moving_mean": values[::-1].copy()})
    assert table_rows(model(bn))["bn"].count("█▇▆▅▄▃▂▁") == 2


BAD = "N  NaN or infinite values (1 layer)"


@pytest.mark.parametrize(
    ("arrays", "legend_line"),
    [
        ({"gamma": [1, np.nan]}, BAD),
        ({"gamma": [-3e38, 3e38, np.nan], "beta": [1e-45, 0]}, BAD),
        ({"moving_variance": [1, np.inf]}, BAD),
        ({"moving_variance": [1, -1e-9]}, "V  negative variance (1 layer)"),
        (
            {"moving_mean": [0, 0], "moving_variance": [1, 1]},
            "I  moving statistics still at their initial 0 and 1 (1 layer)",
        ),
    ],
)
def test_defects_are_marked_and_explained(arrays, legend_line):
    usual_arrays = {"moving_mean": [0.5, 1], "moving_variance": [1, 2]}
    bad = layer("bad", vectors(**{**usual_arrays, **arrays}))
    good = layer("good", vectors(**usual_arrays))
    rows = table_rows(model(good, bad))
    assert (rows["bad"][0], rows["good"][0]) == (legend_line[0], "2")
    assert [line for line in legend(model(good, bad)) if line[1:3] == "  "] == [legend_line]


@pytest.mark.parametrize(
    "arrays",
    [
        {"moving_mean": [0, 0], "moving_variance": [1, 0.999]},
        {"moving_mean": [0, 1e-9], "moving_variance": [1, 1]},
        {"moving_mean": [0, 0]},
        {"moving_variance": [0, 0], "moving_mean": [1, 1]},
        {"moving_mean": [-3, 3], "moving_variance": [1e-9, 1e9], "gamma": [-1, 0]},
    ],
)
def test_sound_layers_are_not_marked(arrays):
    a_model = model(layer("bn", vectors(**arrays)))
    assert table_rows(a_model)["bn"][0] == "2"
    content = "mean±standard deviation, smallest..largest, histogram over the channels"
    assert legend(a_model) == [content]


def test_marks_are_red_where_there_are_colours():
    bad = layer("bad", vectors(moving_mean=[3, 4], moving_variance=[1, -1]))
    lines = overview(model(bad, usual("good")), Screen(colour=True))
    (line,) = [line for line in lines if line.startswith("bad")]
    assert "\x1b[31mV\x1b[0m" in line
    assert line.count("\x1b[31m") == 4  # the mark, and three cells of the moving variance


def test_undecided_roles():
    bn = layer("bn", vectors(moving_mean=[1, 2]), undecided=[variable("vars/0", [1.0, 2.0])])
    assert table_rows(model(bn))["bn"][1:3] == ["?", "?"]
    assert "all layers: the file does not record the role of some variables" in legend(model(bn))


def test_footnotes_name_each_fact_once():
    layers = [usual(f"bn_{number}", notes=["renamed"]) for number in range(5)]
    extra = {"renorm_mean": variable("r", [1.0])}
    layers += [usual("a", notes=["\x1b[31m"]), usual("b", extra=extra)]
    lines = ["bn_0, bn_1 and 3 others: renamed", "a: \\x1b[31m", "b: also stored: renorm_mean"]
    assert list(footnotes(model(*layers))) == lines


NAMES = [
    "conv1/bn",
    *(f"resnet_v1_50/block{b}/unit_{u}/bottleneck_v1/conv1/BatchNorm" for b in "123" for u in "12"),
    "层" * 40,
    "x" * 600,
]


@pytest.mark.parametrize("glyphs", [ASCII, Screen().glyphs])
@pytest.mark.parametrize("width", [40, 60, 80, 100, 120, 160, 200, 240])
def test_no_line_is_wider_than_the_terminal(width, glyphs):
    layers = [usual(name, 4**index, seed=index) for index, name in enumerate(NAMES)]
    layers.append(layer("tiny", vectors(moving_mean=[-1e-7, -3e-8], moving_variance=[1e-9, 2e-7])))
    layers.append(layer("huge", vectors(moving_mean=[-4e5, 3e4], moving_variance=[1e9, np.nan])))
    lines = list(overview(model(*layers), Screen(width=width, boxes=True, glyphs=glyphs)))
    assert max(map(text_width, lines)) <= width
    assert glyphs is not ASCII or "".join(lines).replace("层", "").isascii()
    start = lines.index("") + 3
    firsts = [line.split()[0] for line in lines[start : lines.index("", start)]]
    assert len(set(firsts)) == len(layers)


def test_wider_screens_show_more():
    shown = model(usual("block1/conv1/batchnorm", 64))
    screens = [Screen(width=width, boxes=True) for width in (40, 80, 130, 200)]
    texts = [" ".join(overview(shown, screen)) for screen in screens]
    assert ["gamma" in text for text in texts] == [False, True, True, True]
    assert ["range" in text for text in texts] == [False, False, True, True]
    assert ["█" in text for text in texts] == [False, False, False, True]


def test_names_are_harmless_on_a_terminal():
    name = "\x1b[31mred\na\u202eb\udc80"
    a_model = model(usual(name, notes=[name]), source=Source(name, "saved-model", name, 1, name))
    assert all(line.isprintable() for line in overview(a_model, Screen()))
