"""Keras configurations: the layers, their order, and their groups in a weights file."""

from __future__ import annotations

from typing import Any

import pytest

from bnstat.formats.keras.config import describe, layer_from_config, match_scopes, snake_case, walk
from tests.builders.effort import bounded
from tests.formats.keras.files import layer, model, norm

POLICY = {"class_name": "DTypePolicy", "config": {"name": "float32"}, "module": "keras"}
OPERATION = {"class_name": "BatchNorm", "config": {"name": "op"}, "module": "keras.src.ops.nn"}
ZEROS = {"class_name": "Zeros", "config": {}}
CELLS = [layer("Cell", "a"), layer("Cell", "b")]
NETWORKS = {
    "paths count per class and model": (
        model(
            norm("z"),
            model(norm("x"), layer("Dense", "y"), name="inner"),
            norm("a"),
            layer("pkg>MyNorm2D", "custom"),
            model(norm("x"), name="second"),
        ),
        {
            "z": "layers/batch_normalization",
            "inner": "layers/functional",
            "inner/x": "layers/functional/layers/batch_normalization",
            "inner/y": "layers/functional/layers/dense",
            "a": "layers/batch_normalization_1",
            "custom": "layers/my_norm2d",
            "second": "layers/functional_1",
            "second/x": "layers/functional_1/layers/batch_normalization",
        },
    ),
    "the config of an old Sequential is a list": (
        {"class_name": "Sequential", "config": [layer("Dense", "a"), layer("Dense", "b")]},
        {"a": "layers/dense", "b": "layers/dense_1"},
    ),
    "wrapped layers are below the wrapper's attribute": (
        model(
            layer("TimeDistributed", "td", layer=norm("bn")),
            layer("Bidirectional", "bi", layer=layer("L", "f"), backward_layer=layer("L", "b")),
            layer("RNN", "rnn", cell=layer("S", "s", cells=CELLS)),
        ),
        {
            "td": "layers/time_distributed",
            "td/bn": "layers/time_distributed/layer",
            "bi": "layers/bidirectional",
            "bi/f": "layers/bidirectional/forward_layer",
            "bi/b": "layers/bidirectional/backward_layer",
            "rnn": "layers/rnn",
            "rnn/s": "layers/rnn/cell",
            "rnn/s/a": "layers/rnn/cell/cells/cell",
            "rnn/s/b": "layers/rnn/cell/cells/cell_1",
        },
    ),
    "policies, operations and initializers are not layers": (
        model(layer("Dense", "a", dtype=POLICY, kernel_initializer=ZEROS), OPERATION),
        {"a": "layers/dense"},
    ),
}


@pytest.mark.parametrize("case", NETWORKS)
def test_names_and_paths_in_network_order(case: str) -> None:
    network, expected = NETWORKS[case]
    found = [(layer.name, layer.key) for layer in walk(describe(network, "file"))]
    assert found == list(expected.items())


@pytest.mark.parametrize(
    ("name", "spelled"),
    [
        ("BatchNormalization", "batch_normalization"),
        ("Conv2D", "conv2d"),
        ("GlobalAveragePooling2D", "global_average_pooling2d"),
        ("pkg>MyBN", "my_bn"),
        ("MyNorm2D", "my_norm2d"),
    ],
)
def test_snake_case_is_that_of_keras(name: str, spelled: str) -> None:
    naming = pytest.importorskip("keras.src.utils.naming")
    assert snake_case(name) == spelled == naming.to_snake_case(name.rpartition(">")[2])


def test_one_layer_from_metadata() -> None:
    outside, config = {"name": "bn", "trainable": False}, {"epsilon": 0.5}
    classes = {"class_name": "MyNorm", "registered_name": "pkg>MyNorm"}
    found = layer_from_config({**outside, **classes, "config": config})
    assert found == ("pkg>MyNorm", outside | config)
    assert layer_from_config({"class_name": "BatchNormalization"}) == ("", {})


def called(name: str, *nodes: object) -> dict[str, Any]:
    return {**layer("Dense", name), "inbound_nodes": [*nodes]}


def tensor(name: str) -> dict[str, Any]:
    return {"class_name": "__keras_tensor__", "config": {"keras_history": [name, 0, 0]}}


def test_inputs_of_layers() -> None:
    inner = model(called("x"), called("y", [["x", 0, 0, {}]]), name="inner")
    network = model(
        called("a"),
        {**inner, "inbound_nodes": [[["a", 0, 0, {}]]]},
        called("twice", [["a", 0, 0, {}]], [["inner", 1, 0, {}]]),
        called("keras_3", {"args": [[tensor("a"), tensor("twice")]], "kwargs": {"mask": None}}),
        model(called("p"), called("q"), kind="Sequential", name="s"),
    )
    layers = walk(describe(network, "file"))
    assert {(layer.name, source) for layer in layers for source, _ in layer.inputs} == {
        *(("inner", "a"), ("inner/y", "inner/x"), ("s/q", "s/p")),
        *(("twice", "a"), ("twice", "inner"), ("keras_3", "a"), ("keras_3", "twice")),
    }


@pytest.mark.parametrize(
    ("scopes", "expected"),
    [
        (["a/bn", "b/bn", "c"], {"a/bn": "a/bn", "b/bn": "b/bn", "c": "c"}),
        (["net/a/bn", "net/b/bn", "x/c"], {"a/bn": "net/a/bn", "b/bn": "net/b/bn", "c": "x/c"}),
        (["a/bn", "other/bn"], {"a/bn": "a/bn"}),
        (["bn", "c", "x/c"], {"c": "c"}),
        (["x/c", "y/c"], {}),
    ],
)
def test_layers_match_certain_scopes(scopes: list[str], expected: dict[str, str]) -> None:
    network = model(model(norm("bn"), name="a"), model(norm("bn"), name="b"), norm("c"))
    layers = [*walk(describe(network, "file"))]
    matches = match_scopes(layers, scopes)
    assert {layers[index].name: scope for index, scope in matches.items()} == expected


def test_many_layers_and_scopes_with_the_same_name() -> None:
    network = model(*(norm("bn") for _ in range(10_000)))
    layers = [*walk(describe(network, "file"))]
    scopes = [f"{number}/bn" for number in range(10_000)]
    with bounded(100):
        assert match_scopes(layers, scopes) == {}
        assert match_scopes(layers, scopes, is_first_best=True) == {0: "0/bn"}
