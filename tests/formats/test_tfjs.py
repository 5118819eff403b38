"""TensorFlow.js models, written like the converter writes Keras models."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

import bnstat
from bnstat.errors import BnstatError, DamagedError, NotFoundError
from bnstat.formats.contents import Contents, Reading
from bnstat.formats.locate import locate
from bnstat.model import ROLES, Source
from tests.builders.keras_models import randomised
from tests.builders.oracle import assert_layers, from_extents, same_bits
from tests.fuzz import handmade, ports


def network() -> tuple[keras.Model, dict[str, np.ndarray]]:
    """Return a model, and `layer/role` -> array with the converter's names."""
    norm = keras.layers.BatchNormalization
    first = norm(epsilon=2e-3, momentum=0.8, name="bn1")
    deep, last = norm(name="deep"), norm(scale=False, name="bn2")
    inner = keras.Sequential([keras.Input((4,)), deep])
    model = keras.Sequential([keras.Input((4,)), first, inner, last], name="net")
    randomised(model)
    arrays = {
        f"{layer.name}/{weight.name}": np.asarray(weight)
        for layer in (first, deep, last)
        for weight in layer.weights
    }
    return model, arrays


def entry(name: str, array: np.ndarray, **more: Any) -> dict[str, Any]:
    return {"name": name, "shape": list(array.shape), "dtype": "float32", **more}


def write(
    folder: Path, entries: Sequence[Any], data: bytes, topology: Any = None, shards: int = 1
) -> Path:
    size = -(-len(data) // shards)
    paths = [f"group1-shard{i + 1}of{shards}.bin" for i in range(shards)]
    for index, path in enumerate(paths):
        (folder / path).write_bytes(data[index * size : (index + 1) * size])
    model = {
        "generatedBy": "keras v2.15.0",
        "convertedBy": "TensorFlow.js Converter v4.22.0",
        "modelTopology": topology,
        "weightsManifest": [{"paths": paths, "weights": list(entries)}],
    }
    (folder / "model.json").write_text(json.dumps(model))
    return folder / "model.json"


def plain(folder: Path, arrays: Mapping[str, np.ndarray], **more: Any) -> Path:
    entries = [entry(name, array) for name, array in arrays.items()]
    return write(folder, entries, b"".join(a.tobytes() for a in arrays.values()), **more)


def opened(path: Path) -> Contents:
    return locate(str(path)).default.open(Source(str(path), ""), Reading())


@pytest.mark.parametrize("shards", [1, 3, 7])
def test_layers_models(tmp_path: Path, shards: int) -> None:
    model, arrays = network()
    topology = {"keras_version": "2.15.0", "model_config": json.loads(model.to_json())}
    path = plain(tmp_path, arrays, topology=topology, shards=shards)
    for target in (path, tmp_path, tmp_path / f"group1-shard1of{shards}.bin"):
        model = bnstat.load(target)
        assert model.source.format == "tfjs"
        assert model.source.writer == "TensorFlow.js Converter v4.22.0"
        assert [layer.name for layer in model] == ["bn1", "deep", "bn2"]
    settings = [(layer.epsilon, layer.momentum) for layer in model]
    assert settings == [(2e-3, 0.8), (1e-3, 0.99), (1e-3, 0.99)]
    assert {layer.evidence for layer in model} == {"config"}
    expected: dict[str, dict[str, np.ndarray]] = {}
    for key, array in arrays.items():
        name, role = key.split("/")
        expected.setdefault(name, {})[role] = array
        if shards == 1:
            assert same_bits(from_extents(model[name].variables[role]), array)
    assert_layers(model, expected)


def test_graph_models(tmp_path: Path) -> None:
    for name, content in ports.tfjs_files(ports.tfjs_graph("net/bn"), "net/bn").items():
        (tmp_path / name).write_bytes(content)
    model = bnstat.load(tmp_path)
    assert_layers(model, {"net/bn": handmade.values()})
    assert (round(model[0].epsilon or 0, 9), model[0].axis) == (0.001, 3)


def test_batch_norm_that_the_converter_folded_is_noted(tmp_path: Path) -> None:
    names = ("k", "conv_bn_offset", "a/FusedBatchNormV3/Offset", "b/batchnorm/sub")
    weights = dict.fromkeys(names, np.ones(2, np.float32))
    nodes = [{"name": name, "op": "Const"} for name in names]
    path = plain(tmp_path, weights, topology={"node": nodes})
    model = bnstat.load(path)
    assert not model
    assert model.notes == (
        "batch norm was folded into 1 convolution: nothing of it is left to show",
        "2 batch-norm layers became a scale and a shift when constants were folded: gamma, beta "
        "and the statistics are not in this file",
    )


def early(folder: Path) -> Path:
    for name, content in ports.early_tfjs_files("net/bn").items():
        (folder / name).write_bytes(content)
    return folder


@pytest.mark.parametrize(
    "name", ["", "weights_manifest.json", "tensorflowjs_model.pb", "group1-shard1of2.bin"]
)
def test_graphs_from_before_version_1(tmp_path: Path, name: str) -> None:
    model = bnstat.load(early(tmp_path) / name)
    assert model.source.format == "tfjs"
    assert_layers(model, {"net/bn": handmade.values()})
    assert (round(model[0].epsilon or 0, 9), model[0].axis) == (0.001, 3)


def test_weights_without_a_graph(tmp_path: Path) -> None:
    (early(tmp_path) / "tensorflowjs_model.pb").unlink()
    model = bnstat.load(tmp_path)
    assert_layers(model, {"net/bn": handmade.values()})
    assert model[0].epsilon is None


def test_a_graph_without_its_manifest_is_not_read_as_zeros(tmp_path: Path) -> None:
    (early(tmp_path) / "weights_manifest.json").unlink()
    for path in (tmp_path, tmp_path / "tensorflowjs_model.pb"):
        with pytest.raises(NotFoundError, match="its weights are missing"):
            bnstat.load(path)


def test_other_files_of_that_name_hide_no_model(tmp_path: Path) -> None:
    (tmp_path / "weights_manifest.json").write_text('{"weights": []}')
    _, arrays = network()
    plain(tmp_path, arrays)
    shard = tmp_path / "group1-shard1of1.bin"
    assert [layer.name for layer in bnstat.load(shard)] == ["bn1", "bn2", "deep"]


@pytest.mark.parametrize("kind", ["uint8", "uint16", "float16"])
def test_quantized_weights(tmp_path: Path, kind: str) -> None:
    random = np.random.default_rng(2)
    entries, data, expected = [], b"", {}
    for role in ROLES:
        if kind == "float16":
            packed, quantization = random.random(4).astype(np.float16), {"dtype": kind}
            expected[role] = packed.astype(np.float32)
        else:
            packed = random.integers(0, np.iinfo(kind).max, 4).astype(kind)
            quantization = {"dtype": kind, "min": -0.7, "scale": 0.013}
            numbers = [value * 0.013 + -0.7 for value in packed.tolist()]
            expected[role] = np.array(numbers, np.float32)
        entries.append(entry(f"bn/{role}", packed, quantization=quantization))
        data += packed.tobytes()
    model = bnstat.load(write(tmp_path, entries, data))
    assert f"4 weights are stored as {kind}" in model.notes[0]
    assert_layers(model, {"bn": expected})
    for variable in model[0].variables.values():
        assert [place.part for place in variable.extents()] == [None]


def test_texts_between_the_weights(tmp_path: Path) -> None:
    texts = b"\x02\0\0\0ab\0\0\0\0"
    array = np.arange(3, dtype=np.float32)
    entries = [
        {"name": "words", "shape": [2], "dtype": "string"},
        entry("a", array),
        {"name": "b", "shape": [], "dtype": "bool"},
    ]
    contents = opened(write(tmp_path, entries, texts + array.tobytes() + b"\1", shards=4))
    assert list(contents.variables) == ["a", "b"]
    assert same_bits(contents.variables["a"].read(), array)
    assert contents.variables["b"].read() == np.True_


@pytest.mark.parametrize(
    "damaged",
    [
        *({"shape": shape} for shape in ([4], [-1], [2**62, 8], "3")),
        *({"dtype": dtype} for dtype in ("float99", None, "string")),
        {"dtype": "string", "shape": [2**40]},
        {"name": 3},
        {"quantization": 3},
        {"quantization": {"dtype": "uint8", "min": "a"}},
        {"quantization": {"dtype": "uint8", "min": 0, "scale": 10**400}},
        {"quantization": {"dtype": "uint8", "min": 0, "scale": float("nan")}},
        {"quantization": {}},
    ],
)
def test_invalid_entries(tmp_path: Path, damaged: dict[str, Any]) -> None:
    array = np.full(3, np.nan, np.float32)
    path = write(tmp_path, [{**entry("a", array), **damaged}], array.tobytes())
    with pytest.raises(DamagedError):
        opened(path)


@pytest.mark.parametrize("shard", ["missing", "a git-lfs pointer"])
def test_a_layers_model_without_a_shard(tmp_path: Path, shard: str) -> None:
    model, arrays = network()
    path = plain(tmp_path, arrays, topology=json.loads(model.to_json()), shards=3)
    last = tmp_path / "group1-shard3of3.bin"
    last.unlink()
    if shard == "a git-lfs pointer":
        last.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
    unread = bnstat.load(path, values=False)
    assert unread.keys() == ["bn1", "deep", "bn2"]
    assert unread[0].epsilon == 2e-3
    problem = f"group1-shard3of3.bin: (this shard )?is {shard}"
    with pytest.raises(BnstatError, match=problem) as info:
        bnstat.load(path).read()
    assert ("--no-values" in str(info.value)) == (shard == "missing")


@pytest.mark.parametrize(
    "paths", [["absent.bin"], ["../m.bin"], ["/etc/passwd"], ["..\\m.bin"], [3], "m.bin"], ids=str
)
def test_invalid_shards(tmp_path: Path, paths: Any) -> None:
    manifest = [{"paths": paths, "weights": []}]
    (tmp_path / "model.json").write_text(json.dumps({"weightsManifest": manifest}))
    with pytest.raises(NotFoundError if paths == ["absent.bin"] else DamagedError):
        opened(tmp_path / "model.json")


@pytest.mark.parametrize(
    "topology", [3, {"node": [3]}, {"node": [{"attr": 5}]}, {"model_config": 3}]
)
def test_invalid_topologies(tmp_path: Path, topology: Any) -> None:
    path = plain(tmp_path, {"a/gamma": np.ones(3, np.float32)}, topology=topology)
    try:
        assert list(bnstat.load(path)) == []
    except DamagedError:
        assert topology != 3


def test_other_json_files_are_not_recognised(tmp_path: Path) -> None:
    (tmp_path / "model.json").write_text('{"modelTopology": {}}')
    with pytest.raises(BnstatError, match="is not in a format that bnstat knows"):
        bnstat.load(tmp_path / "model.json")
