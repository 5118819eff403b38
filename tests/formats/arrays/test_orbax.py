"""Orbax checkpoints in the layout of Orbax 0.12, with arrays written by tensorstore."""

from __future__ import annotations

import json
import shutil
import struct
import sys
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import bnstat
from bnstat.errors import DamagedError, NotFoundError, UnsupportedError
from bnstat.formats.locate import locate
from bnstat.model import ROLES
from tests.builders.oracle import assert_layers, same_bits
from tests.builders.orbax import FLAX, write_item

pytest.importorskip("tensorstore", reason="tensorstore writes these checkpoints")

RANDOM = np.random.default_rng(4)
LAYOUTS = ["ocdbt-zarr", "ocdbt-zarr3", "folders-zarr"]


def arrays(paths: Any, dtype: Any = np.float32) -> dict[tuple[str, ...], np.ndarray]:
    return {path: RANDOM.random(3).astype(dtype) for path in paths}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float64"])
def test_flax(tmp_path: Path, layout: str, dtype: str) -> None:
    held = arrays(FLAX, getattr(ml_dtypes, dtype, dtype))
    other = {("params", "Dense_0", "kernel"): RANDOM.random((3, 4)).astype(np.float32)}
    write_item(tmp_path / "c", {**held, **other}, layout)
    for path in (tmp_path / "c", tmp_path / "c/_METADATA"):
        model = bnstat.load(path)
        assert (model.source.format, model.source.writer) == ("orbax", None)
        assert_layers(model, {"BatchNorm_0": {role: held[key] for key, role in FLAX.items()}})
        for key, role in FLAX.items():
            assert model[0].variables[role].key == ".".join(key)
    assert len(bnstat.load(tmp_path / "c", values=False).explain()) == 5


NNX = [("bn", name, "value") for name in ("scale", "bias", "mean", "var")]
HAIKU = [("params", "net/bn", name) for name in ("scale", "offset")]
HAIKU += [("state", f"net/bn/~/{name}_ema", "average") for name in ("mean", "var")]


@pytest.mark.parametrize(("name", "paths"), [("bn", NNX), ("net/bn", HAIKU)])
def test_other_trees(tmp_path: Path, name: str, paths: list[tuple[str, ...]]) -> None:
    held = arrays(paths)
    model = bnstat.load(write_item(tmp_path / "c", held))
    assert_layers(model, {name: dict(zip(ROLES, held.values(), strict=True))})


@pytest.mark.parametrize("prefix", ["", "step_", "checkpoint_"])
def test_the_steps_of_a_run(tmp_path: Path, prefix: str) -> None:
    held = {}
    for step in (9, 10):
        held[step] = arrays(FLAX)
        folder = tmp_path / f"{prefix}{step}"
        write_item(folder if prefix else folder / "default", held[step])
        if not prefix:
            (folder / "_CHECKPOINT_METADATA").write_text("{}")
    (tmp_path / "logs_3").mkdir()
    steps = [(each.name, each.step) for each in locate(str(tmp_path)).models]
    assert steps == [(f"{prefix}9", 9), (f"{prefix}10", 10)]
    for model, step in ((bnstat.load(tmp_path), 10), (bnstat.load(tmp_path, step=9), 9)):
        variance = held[step]["batch_stats", "BatchNorm_0", "var"]
        assert same_bits(model[0].moving_variance, variance)


def test_runs_of_two_prefixes_are_not_one(tmp_path: Path) -> None:
    for name in ("a_1", "b_2"):
        write_item(tmp_path / name, arrays(FLAX))
    with pytest.raises(NotFoundError, match="there are models in"):
        bnstat.load(tmp_path)


def test_several_items(tmp_path: Path) -> None:
    held = arrays(FLAX)
    for item in ("params", "batch_stats"):
        tree = {path[1:]: array for path, array in held.items() if path[0] == item}
        write_item(tmp_path / "c" / item, tree)
    (tmp_path / "c/_CHECKPOINT_METADATA").write_text("{}")
    (layer,) = bnstat.load(tmp_path / "c")
    assert layer.name == "BatchNorm_0"
    assert layer.variables["gamma"].key == "params/BatchNorm_0.scale"
    assert same_bits(layer.gamma, held["params", "BatchNorm_0", "scale"])


def test_keras(tmp_path: Path) -> None:
    import keras

    model = keras.Sequential(
        [keras.Input((3,)), keras.layers.BatchNormalization(epsilon=2e-3, name="bn")], name="net"
    )
    tree = {}
    for branch in ("trainable_variables", "non_trainable_variables"):
        for variable in getattr(model, branch):
            array = RANDOM.random(3).astype(np.float32)
            variable.assign(array)
            tree[branch, "net", "bn", variable.name] = array
    tree["optimizer_variables", "adam", "net_bn_gamma_velocity"] = np.ones(3, np.float32)
    write_item(tmp_path / "1/pytree", tree, "ocdbt-zarr3")
    write_item(tmp_path / "1/model_config", {})
    (tmp_path / "1/model_config/_strings.json").write_text(json.dumps({"config": model.to_json()}))
    (tmp_path / "1/_CHECKPOINT_METADATA").write_text("{}")
    found = bnstat.load(tmp_path)
    assert (found.source.writer, found.source.step) == ("Keras", 1)
    (layer,) = found
    assert (layer.name, layer.epsilon, layer.evidence) == ("bn", 2e-3, "config")
    for weight in model.layers[0].weights:
        assert same_bits(layer.array(weight.name), np.asarray(weight))


def test_without_tensorstore(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_item(tmp_path / "c", arrays(FLAX))
    monkeypatch.setitem(sys.modules, "tensorstore", None)
    with pytest.raises(UnsupportedError, match="pip install tensorstore"):
        bnstat.load(tmp_path / "c")


@pytest.mark.parametrize("name", ["manifest.ocdbt", "_METADATA"])
def test_damage(tmp_path: Path, name: str) -> None:
    write_item(tmp_path / "c", arrays(FLAX))
    (tmp_path / "c" / name).write_bytes(b"damaged")
    with pytest.raises(DamagedError):
        bnstat.load(tmp_path / "c", eager=True)


DESCRIPTION = {
    "zarr_format": 2, "shape": [3], "chunks": [3], "dtype": "<f4", "compressor": None,
    "fill_value": None, "filters": None, "order": "C", "dimension_separator": ".",
}  # fmt: skip
BLOSC = {"id": "blosc", "cname": "lz4", "clevel": 5, "shuffle": 1, "blocksize": 0}


@pytest.mark.parametrize(
    ("description", "error", "reason"),
    [
        ("{", DamagedError, "JSON"),
        ([], DamagedError, "does not describe an array"),
        ({"shape": [3]}, DamagedError, "does not describe an array"),
        ({"shape": [-3], "dtype": "<f4"}, DamagedError, "does not describe an array"),
        ({"shape": [1.5], "dtype": "<f4"}, DamagedError, "does not describe an array"),
        ({"shape": [3], "dtype": "<x9"}, DamagedError, "does not describe an array"),
        ({"shape": [3], "dtype": [["a", "<f4"]]}, DamagedError, "does not describe an array"),
        ({**DESCRIPTION, "shape": [1 << 40]}, UnsupportedError, "type float32 and shape"),
        ({**DESCRIPTION, "chunks": [1 << 31]}, DamagedError, "a chunk of 8,589,934,592"),
        ({**DESCRIPTION, "compressor": BLOSC}, DamagedError, "size of 2,130,706,444 bytes"),
    ],
)
def test_invalid_arrays(tmp_path: Path, description: Any, error: Any, reason: str) -> None:
    """The metadata claims too much, or in the last case the header of a compressed chunk."""
    write_item(tmp_path / "c", arrays(FLAX), "folders-zarr")
    folder = tmp_path / "c/params.BatchNorm_0.bias"
    text = description if isinstance(description, str) else json.dumps(description)
    (folder / ".zarray").write_text(text)
    if "blosc" in text:
        claimed = b"\x0c\0\0\x7f" + struct.pack("<II", 12, 28)
        (folder / "0").write_bytes(b"\x02\x01\x33\x04" + claimed + bytes(12))
    with pytest.raises(error, match=reason):
        bnstat.load(tmp_path / "c").stored["params.BatchNorm_0.bias"].read()


def test_archives_are_refused(tmp_path: Path) -> None:
    write_item(tmp_path / "c", arrays(FLAX))
    archive = shutil.make_archive(str(tmp_path / "a"), "zip", tmp_path / "c")
    with pytest.raises(UnsupportedError, match="copy the folder to disk"):
        bnstat.load(archive)


@pytest.mark.parametrize("keys", [True, 7, "a", {"key": "a"}])
def test_invalid_trees_are_ignored(tmp_path: Path, keys: object) -> None:
    write_item(tmp_path / "c", arrays(FLAX), "folders-zarr")
    tree = json.loads((tmp_path / "c/_METADATA").read_text())
    for entry in tree["tree_metadata"].values():
        entry["key_metadata"] = keys
    (tmp_path / "c/_METADATA").write_text(json.dumps(tree))
    assert bnstat.load(tmp_path / "c").stored
