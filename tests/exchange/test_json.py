from __future__ import annotations

import json
import math
from importlib.resources import files
from types import SimpleNamespace

import jsonschema
import numpy as np
import pytest

from bnstat.errors import BnstatError
from bnstat.exchange.json import dump
from bnstat.exchange.naming import DEFAULTS, ExportOptions
from bnstat.model import Source
from tests.mending.exported import dumped
from tests.output.models import layer, model, usual, variable

SCHEMA = json.loads(files("bnstat.exchange").joinpath("schema.json").read_text("utf-8"))


def refuse(word):
    raise AssertionError(f"{word} is not JSON")


def written(a_model, options=DEFAULTS, is_checked=True):
    """Return the document, checked against the schema."""
    document = json.loads(dumped(a_model, "json", options), parse_constant=refuse)
    if is_checked:
        jsonschema.validate(document, SCHEMA, jsonschema.Draft202012Validator)
    return document


def test_a_document_is_written_piece_by_piece():
    pieces = []
    dump(model(usual("bn", 300_000)), SimpleNamespace(write=pieces.append))
    assert max(map(len, pieces)) < sum(map(len, pieces)) / 10


def test_the_whole_document():
    values = {"gamma": [0.1, -0.0], "moving_mean": [np.nan, np.inf], "moving_variance": [1e-8, 3]}
    arrays = {role: np.float32(array) for role, array in values.items()}
    bn = layer("stem/bn", arrays, epsilon=0.001, momentum=0.99, axis=-1, evidence="config")

    expected = json.loads("""
        {"schema": 1,
         "source": {"path": "runs/cnn", "format": "tf2-checkpoint", "checkpoint": "model-1200",
                    "step": 1200, "writer": "tf.keras 2.4.0"},
         "layers": [
           {"name": "stem/bn", "channels": 2, "epsilon": 0.001, "momentum": 0.99, "axis": -1,
            "evidence": "config",
            "gamma": {"variable": "stem/bn/gamma", "dtype": "float32", "shape": [2],
                      "values": [0.1, -0.0]},
            "beta": null,
            "moving_mean": {"variable": "stem/bn/moving_mean", "dtype": "float32", "shape": [2],
                            "values": ["NaN", "Infinity"]},
            "moving_variance": {"variable": "stem/bn/moving_variance", "dtype": "float32",
                                "shape": [2], "values": [1e-08, 3.0]},
            "trainable": null}]}
    """)
    # As text, so that the order of the keys and the sign of 0 count too.
    assert json.dumps(written(model(bn))) == json.dumps(expected)
    assert b'"values": [0.1, -0.0]' in dumped(model(bn), "json")


@pytest.mark.parametrize(
    "shape", [(), (1,), (5,), (1, 1, 1, 7), (2, 3), (3, 1, 2), (2, 2, 2, 2, 2), (3, 70_000)]
)
def test_values_are_nested_as_the_shape_says(shape):
    array = np.arange(math.prod(shape), dtype=np.float32).reshape(shape) / 8
    bn = layer("bn", {"moving_mean": array})
    (stored,) = written(model(bn), is_checked=array.size < 1000)["layers"]
    assert stored["moving_mean"]["shape"] == list(shape)
    assert stored["moving_mean"]["values"] == array.tolist()


@pytest.mark.parametrize("shape", [(0,), (3, 0), (0, 3), (1 << 40, 0)])
def test_no_elements(shape):
    bn = layer("bn", {"moving_mean": np.empty(shape, np.float32)})
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
    document = written(model(usual("bn", 2), source=Source("model.pb", "frozen-graph")))
    unknown = dict.fromkeys(("checkpoint", "step", "writer"))
    assert document["source"] == {"path": "model.pb", "format": "frozen-graph", **unknown}
    (plain,) = document["layers"]
    assert plain["epsilon"] is plain["momentum"] is plain["axis"] is None
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
