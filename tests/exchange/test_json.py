from __future__ import annotations

import json
import math
from importlib.resources import files

import jsonschema
import numpy as np
import pytest

from bnstat.errors import BnstatError, DamagedError
from bnstat.exchange.naming import DEFAULTS, ExportOptions
from bnstat.exchange.registry import read_values
from bnstat.model import Source
from tests.mending.exported import dumped
from tests.output.models import layer, model, usual, variable

SCHEMA = json.loads(files("bnstat.exchange").joinpath("schema.json").read_text("utf-8"))


def refuse(word):
    raise AssertionError(f"{word} is not JSON")


def document_of(a_model, options=DEFAULTS):
    return json.loads(dumped(a_model, "json", options), parse_constant=refuse)


def written(a_model, options=DEFAULTS):
    """Return the document, checked against the schema."""
    document = document_of(a_model, options)
    jsonschema.validate(document, SCHEMA, jsonschema.Draft202012Validator)
    return document


def test_schema_is_a_schema():
    jsonschema.Draft202012Validator.check_schema(SCHEMA)


def test_the_whole_document():
    bn = layer(
        "stem/bn",
        {
            "gamma": np.array([0.1, -0.0], np.float32),
            "moving_mean": np.array([np.nan, np.inf], np.float32),
            "moving_variance": np.array([1e-8, 3], np.float32),
        },
        epsilon=0.001,
        momentum=0.99,
        axis=-1,
        evidence="config",
    )

    def stored(role, values):
        described = {"variable": f"stem/bn/{role}", "dtype": "float32", "shape": [2]}
        return {**described, "values": values}

    expected = {
        "schema": 1,
        "source": {
            "path": "runs/cnn",
            "format": "tf2-checkpoint",
            "checkpoint": "model-1200",
            "step": 1200,
            "writer": "tf.keras 2.4.0",
        },
        "layers": [
            {
                "name": "stem/bn",
                "channels": 2,
                "epsilon": 0.001,
                "momentum": 0.99,
                "axis": -1,
                "evidence": "config",
                "gamma": stored("gamma", [0.1, -0.0]),
                "beta": None,
                "moving_mean": stored("moving_mean", ["NaN", "Infinity"]),
                "moving_variance": stored("moving_variance", [1e-08, 3.0]),
                "trainable": None,
            }
        ],
    }
    # As text, so that the order of the keys and the sign of 0 count too.
    assert json.dumps(written(model(bn))) == json.dumps(expected)
    assert b'"values": [0.1, -0.0]' in dumped(model(bn), "json")


def test_unknown_settings_are_null():
    source = Source("model.pb", "frozen-graph")
    document = written(model(usual("bn"), source=source))
    unknown = dict.fromkeys(("checkpoint", "step", "writer"))
    assert document["source"] == {"path": "model.pb", "format": "frozen-graph", **unknown}
    (stored,) = document["layers"]
    assert stored["epsilon"] is stored["momentum"] is stored["axis"] is stored["trainable"] is None


@pytest.mark.parametrize(
    "shape", [(), (1,), (5,), (1, 1, 1, 7), (2, 3), (3, 1, 2), (2, 2, 2, 2, 2), (3, 70_000)]
)
def test_values_are_nested_as_the_shape_says(shape):
    array = np.arange(math.prod(shape), dtype=np.float32).reshape(shape) / 8
    bn = layer("bn", {"moving_mean": array})
    (stored,) = (document_of if array.size > 1000 else written)(model(bn))["layers"]
    assert stored["moving_mean"]["shape"] == list(shape)
    assert stored["moving_mean"]["values"] == array.tolist()


@pytest.mark.parametrize("shape", [(0,), (3, 0), (0, 3), (1 << 40, 0)])
def test_no_elements(shape):
    stored = variable("bn/moving_mean", np.empty(shape, np.float32))
    bn = layer("bn", {})
    bn.variables = {"moving_mean": stored}
    (document,) = written(model(bn))["layers"]
    assert document["moving_mean"]["values"] == []


def test_without_values_nothing_is_read():
    bn = usual("bn", 3)
    for stored in bn.variables.values():
        object.__setattr__(stored, "reader", lambda: pytest.fail("a tensor was read"))
    (document,) = written(model(bn), ExportOptions(values=False))["layers"]
    assert document["gamma"] == {"variable": "bn/gamma", "dtype": "float32", "shape": [3]}


def test_optional_keys():
    bn = usual(
        "bn",
        2,
        axis=(1, 2),
        trainable=False,
        epsilon=math.inf,
        extra={"renorm_mean": variable("bn/renorm_mean", np.ones(2, np.float32))},
        undecided=[variable("vars/0", np.zeros(2, np.float32))],
        notes=["one", "two"],
    )
    (stored,) = written(model(bn))["layers"]
    assert stored["axis"] == [1, 2]
    assert stored["trainable"] is False
    assert stored["epsilon"] == "Infinity"
    assert stored["extra"]["renorm_mean"]["values"] == [1, 1]
    assert stored["undecided"][0]["variable"] == "vars/0"
    assert stored["notes"] == ["one", "two"]
    (plain,) = written(model(usual("bn", 2)))["layers"]
    assert {"extra", "undecided", "notes"}.isdisjoint(plain)


@pytest.mark.parametrize(
    "name",
    ['"quoted"\\', "\x1b[31mred\x1b[0m\n", "\x7f\x9b", "‮evil", "层/批归一化", "\udc80lone", "\0"],
)
def test_names_are_exact_and_harmless(name):
    bn = usual(name, 1)
    text = dumped(model(bn), "json").decode()
    assert all(char.isprintable() or char == "\n" for char in text)
    (stored,) = written(model(bn))["layers"]
    assert stored["name"] == name
    assert stored["gamma"]["variable"] == f"{name}/gamma"
    assert (name in text) == (name == "层/批归一化")


@pytest.mark.parametrize("names", [None, "keras", "pytorch", "onnx", "flax"])
def test_names_and_momentum_of_a_framework(names):
    document = written(model(usual("a/bn", momentum=0.99)), ExportOptions(names))
    assert document.get("names") == names
    (stored,) = document["layers"]
    assert stored["momentum"] == (0.01 if names == "pytorch" else 0.99)
    assert stored["moving_variance"]["variable"] == "a/bn/moving_variance"
    if names == "pytorch":
        assert stored["name"] == "a.bn"
        assert stored["moving_variance"]["name"] == "a.bn.running_var"


@pytest.mark.parametrize("names", [None, "pytorch"])
def test_folded_needs_an_epsilon(names):
    unknown = model(usual("bn", 3))
    with pytest.raises(BnstatError, match="--epsilon"):
        written(unknown, ExportOptions(names, folded=True))
    (folded,) = written(unknown, ExportOptions(names, folded=True, epsilon=0.5))["layers"]
    assert folded["epsilon"] == 0.5
    scale, _ = unknown[0].scale_and_shift(0.5)
    np.testing.assert_array_equal(np.float32(folded["scale"]["values"]), scale)


@pytest.mark.parametrize(
    ("shape", "values", "message"),
    [
        ([1 << 58], [1.0], "values has 1 elements, but the shape requires"),
        ([1 << 59], [1.0], "shape is not a list of sizes that an array can have"),
        ([1 << 60, 1 << 60, 0], [], "shape is not a list of sizes"),
    ],
)
def test_a_false_shape_is_refused(tmp_path, shape, values, message):
    path = tmp_path / "v.json"
    gamma = {"shape": shape, "values": values}
    path.write_text(json.dumps({"layers": [{"name": "bn", "gamma": gamma}]}))
    with pytest.raises(DamagedError, match=message):
        read_values(str(path))
