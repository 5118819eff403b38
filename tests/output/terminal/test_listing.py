from __future__ import annotations

import numpy as np
import pytest

from bnstat.errors import DamagedError
from bnstat.model import Explanation
from bnstat.output.terminal import listing
from bnstat.output.terminal.screen import Screen
from bnstat.output.terminal.table import text_width
from tests.output.models import layer, model, usual, variable


def body(lines):
    """The lines after the header."""
    lines = list(lines)
    return lines[lines.index("") + 1 :]


def test_variables_are_listed_without_reading():
    bn = usual("stem/bn", 3, extra={"renorm_mean": variable("stem/bn/rm", np.ones((1, 3)))})
    for stored in [*bn.variables.values(), *bn.extra.values()]:
        object.__setattr__(stored, "reader", lambda: pytest.fail("a tensor was read"))
    assert body(listing.variables(model(bn, usual("b", 2)), Screen())) == [
        "stem/bn",
        "  gamma            float32  [3]    stem/bn/gamma",
        "  beta             float32  [3]    stem/bn/beta",
        "  moving_mean      float32  [3]    stem/bn/moving_mean",
        "  moving_variance  float32  [3]    stem/bn/moving_variance",
        "  renorm_mean      float64  [1,3]  stem/bn/rm",
        "",
        "b",
        "  gamma            float32  [2]    b/gamma",
        "  beta             float32  [2]    b/beta",
        "  moving_mean      float32  [2]    b/moving_mean",
        "  moving_variance  float32  [2]    b/moving_variance",
        "",
        "stem/bn: also stored: renorm_mean",
    ]


@pytest.mark.parametrize("width", [60, 80])
def test_keys_fit_a_terminal(width):
    key = "layer_with_weights-0/bn/moving_mean/.ATTRIBUTES/VARIABLE_VALUE" * 2
    bn = layer("bn", {})
    bn.variables = {"moving_mean": variable(key, np.ones(3, np.float32))}
    lines = body(listing.variables(model(bn), Screen(width=width)))
    assert max(map(text_width, lines)) <= width
    assert body(listing.variables(model(bn), Screen()))[1].endswith(key)


@pytest.mark.parametrize(
    ("array", "width", "lines"),
    [
        (
            np.arange(25, dtype=np.float32) / 10,
            80,
            [
                "     0  0.0  0.1  0.2  0.3  0.4  0.5  0.6  0.7  0.8  0.9",
                "    10  1.0  1.1  1.2  1.3  1.4  1.5  1.6  1.7  1.8  1.9",
                "    20  2.0  2.1  2.2  2.3  2.4",
            ],
        ),
        (
            np.arange(6, dtype=np.float32) / 7,
            40,
            [
                "    0         0.0  0.14285715",
                "    2   0.2857143  0.42857143",
                "    4   0.5714286  0.71428573",
            ],
        ),
        (
            np.arange(6, dtype=np.float32).reshape(2, 3),
            20,
            ["    0:0  0.0  1.0", "    0:2  2.0  3.0", "    1:1  4.0  5.0"],
        ),
        (np.float32([np.nan, np.inf, -np.inf, -0.0]), 80, ["    0   nan   inf  -inf  -0.0"]),
        (np.zeros(0, np.float32), 80, []),
    ],
)
def test_every_value_is_shown(array, width, lines):
    shown = model(layer("bn", {"moving_mean": array}))
    shape = ",".join(map(str, array.shape))
    start = ["bn", f"  moving_mean  float32 [{shape}]"]
    assert body(listing.values(shown, Screen(width=width))) == [*start, *lines]


@pytest.mark.parametrize("count", [1, 10, 20_000, 20_001, 65_537])
def test_values_of_all_sizes_are_whole_and_in_order(count):
    values = np.random.default_rng(4).normal(size=count).astype(np.float32)
    lines = body(listing.values(model(layer("bn", {"gamma": values})), Screen()))[2:]
    read = np.array([text for line in lines for text in line.split()[1:]], np.float64)
    np.testing.assert_array_equal(read.astype(np.float32), values)
    for line in lines:
        first, value = line.split()[:2]
        assert np.float32(float(value)) == values[int(first)]


def test_undecided_variables_are_shown():
    bn = layer("bn", {}, undecided=[variable("vars/0", np.float32([5]))])
    assert "  role unknown  float32 [1]" in listing.values(model(bn), Screen())
    assert "  role unknown  float32  [1]  vars/0" in listing.variables(model(bn), Screen())


class Stored(dict):
    def __missing__(self, key):
        raise DamagedError("m", f"{key} is damaged")


@pytest.mark.parametrize("type_", ["", "float32 [3]  "])
def test_explanations(type_):
    gamma = Explanation("bn/gamma", "bn", "gamma", "found by name")
    kernel = Explanation("conv/kernel\x1b", None, None, "no batch norm")
    stored = {"bn/gamma": variable("bn/gamma", np.zeros(3, np.float32))} if type_ else {}
    shown = model(explain=lambda: [gamma, kernel], stored=Stored(stored))
    assert list(listing.explanations(shown, Screen())) == [
        "",
        f"variable         {'type         ' if type_ else ''}why",
        f"bn/gamma         {type_}gamma of bn: found by name",
        f"conv/kernel\\x1b  {' ' * len(type_)}no batch norm",
    ]
    narrow = ["bn/gamma", f"  {type_}gamma of bn: found by name", "conv/kernel\\x1b"]
    lines = ["", *narrow, "  no batch norm"]
    assert list(listing.explanations(shown, Screen(width=20))) == lines
