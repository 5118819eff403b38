"""Models saved by Keras 3 and tf-keras, compared with their layers."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import bnstat
from bnstat.model import ROLES
from tests.builders.keras_models import KERAS_RENORMALIZES
from tests.builders.oracle import same_bits
from tests.formats.keras.files import batch_norms, contents_of

keras = pytest.importorskip("keras")
tf_keras = pytest.importorskip("tf_keras")

LIBRARIES = pytest.mark.parametrize("library", [keras, tf_keras], ids=["keras3", "tf_keras"])
SUFFIXES = (".keras", ".h5", ".weights.h5", ".weights.json")
EXTRA = ("moving_stddev", "renorm_mean", "renorm_stddev")
Layers = Mapping[str, Any]
"""Longer name -> the expected layer, in network order."""


def randomize(layers: Layers) -> None:
    rng = np.random.default_rng(0)
    for layer in layers.values():
        weights = layer.get_weights()
        layer.set_weights([(1 + rng.random(each.shape)).astype(each.dtype) for each in weights])


def save(model: Any, folder: Path, suffix: str) -> Path:
    path = folder / f"model{suffix}"
    options = {"max_shard_size": 1e-6} if suffix == ".weights.json" else {}
    (model.save_weights if "weights" in suffix else model.save)(str(path), **options)
    return path


def assert_same(path: Path, layers: Layers, configured: bool = True) -> None:
    """Compare a file's layers with the expected ones, including settings if `configured`."""
    contents = contents_of(path)
    found = batch_norms(contents)
    assert list(found) == list(layers) if configured else set(found) == set(layers)
    for name, layer in layers.items():
        sighting = found[name]
        held = {label: getattr(layer, label, None) for label in (*ROLES, *EXTRA)}
        values = {label: value.numpy() for label, value in held.items() if value is not None}
        keys = {**sighting.roles, **sighting.extra}
        if configured:
            axis = [layer.axis] if isinstance(layer.axis, int) else layer.axis
            expected = ("config", layer.epsilon, layer.momentum)
            assert (sighting.evidence, sighting.epsilon, sighting.momentum) == expected
            assert sighting.axis == (axis[0] if len(axis) == 1 else tuple(axis))
            assert keys.keys() == values.keys()
        assert len(keys) + len(sighting.undecided) == len(values)
        for label, key in keys.items():
            assert same_bits(contents.variables[key].read(), values[label])
        for key in sighting.undecided:
            stored = contents.variables[key].read()
            assert any(same_bits(stored, value) for value in values.values())


def nested(library: Any) -> tuple[Any, Layers]:
    """Renamed layers, names whose counts differ from their groups', nested models, wrappers."""
    layers = library.layers
    for _ in range(3):
        # Names count in the whole program, groups in a file only within their model.
        layers.BatchNormalization()
    found = {
        "first_bn": layers.BatchNormalization(name="first_bn", epsilon=1.1e-5, momentum=0.9),
        "auto": layers.BatchNormalization(epsilon=1e-8),
        "inner/bn": layers.BatchNormalization(name="bn", scale=False),
        "inner/deep/bn": layers.BatchNormalization(name="bn", center=False),
        "inner/deep/last": layers.BatchNormalization(name="last", axis=1),
        "inner/bn_1": layers.BatchNormalization(name="bn_1", center=False, scale=False),
        "over_time/wrapped": layers.BatchNormalization(name="wrapped"),
        "bn": layers.BatchNormalization(name="bn"),
    }
    deep = library.Sequential([found["inner/deep/bn"], found["inner/deep/last"]], name="deep")
    hole = library.Input((4, 3))
    inner = library.Model(hole, found["inner/bn_1"](deep(found["inner/bn"](hole))), name="inner")
    start = library.Input((4, 3))
    x = found["first_bn"](start)
    x = found["first_bn"](layers.ReLU()(found["auto"](x)))
    x = inner(x)
    x = layers.TimeDistributed(found["over_time/wrapped"], name="over_time")(x)
    x = found["bn"](layers.LayerNormalization()(x))
    model = library.Model(start, layers.Bidirectional(layers.LSTM(2))(x))
    found = {layer.name if name == "auto" else name: layer for name, layer in found.items()}
    assert list(found)[1] not in ("batch_normalization", "batch_normalization_1")
    randomize(found)
    return model, found


@pytest.mark.parametrize(
    ("library", "suffix"),
    # tf-keras cannot save layers of one name in nested models to HDF5.
    [(tf_keras, ".keras"), *((keras, suffix) for suffix in SUFFIXES)],
)
def test_nested_renamed_and_wrapped_layers(library: Any, suffix: str, tmp_path: Path) -> None:
    model, layers = nested(library)
    assert_same(save(model, tmp_path, suffix), layers, configured="weights" not in suffix)


@pytest.mark.parametrize("suffix", ["_weights.h5", ".h5"])
def test_keras_2_in_hdf5(suffix: str, tmp_path: Path) -> None:
    layers = tf_keras.layers
    found = {
        "conv1/bn": layers.BatchNormalization(name="conv1/bn", epsilon=1.1e-5),
        "inner/deep": layers.BatchNormalization(name="deep", axis=[1, 2]),
        "inner/renorm": layers.BatchNormalization(name="renorm", renorm=True),
        "sync": layers.experimental.SyncBatchNormalization(name="sync", momentum=0.5),
    }
    hole = tf_keras.Input((4, 3))
    inner = tf_keras.Model(hole, found["inner/renorm"](found["inner/deep"](hole)), name="inner")
    start = tf_keras.Input((4, 3))
    x = layers.Dense(3, name="conv1")(start)
    x = layers.Dense(3, name="conv1/conv")(x)
    model = tf_keras.Model(start, found["sync"](inner(found["conv1/bn"](x))))
    randomize(found)
    assert_same(save(model, tmp_path, suffix), found, configured=suffix == ".h5")


def renormalized() -> tuple[Any, Layers]:
    bn = keras.layers.BatchNormalization(name="bn", renorm=True, scale=False)
    return keras.Sequential([keras.Input((5,)), bn]), {"bn": bn}


def shared() -> tuple[Any, Layers]:
    both, last = (keras.layers.BatchNormalization(name=name) for name in ("both", "last"))
    hole, start = keras.Input((3,)), keras.Input((3,))
    inner = keras.Model(hole, both(keras.layers.Dense(3)(hole)), name="inner")
    model = keras.Model(start, last(both(inner(start)) + 1.0))
    return model, {"inner/both": both, "last": last}


def with_operations() -> tuple[Any, Layers]:
    bn = keras.layers.BatchNormalization(name="bn")
    ones = np.ones(3, "float32")
    start = keras.Input((3,))
    x = keras.ops.batch_normalization(start + 1.0, ones, ones, axis=-1)
    return keras.Model(start, bn(keras.layers.Add()([x, start]))), {"bn": bn}


def subclass() -> tuple[Any, Layers]:
    @keras.saving.register_keras_serializable("tests")
    class Norm(keras.layers.BatchNormalization):
        pass

    bn = Norm(name="norm", epsilon=0.25, scale=False)
    return keras.Sequential([keras.Input((3,)), bn]), {"norm": bn}


@pytest.mark.parametrize(
    ("build", "suffixes"),
    [
        *([(renormalized, [".keras", ".h5"])] if KERAS_RENORMALIZES else []),
        (shared, [".keras"]),
        (with_operations, [".keras", ".h5"]),
        (subclass, [".keras", ".h5"]),
    ],
)
def test_unusual_models(build: Any, suffixes: list[str], tmp_path: Path) -> None:
    model, layers = build()
    randomize(layers)
    for suffix in suffixes:
        assert_same(save(model, tmp_path, suffix), layers)


@keras.saving.register_keras_serializable("tests")
class Block(keras.layers.Layer):
    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments)
        new = keras.layers.BatchNormalization
        self._private = new(name="custom")
        self.listed = [new(name="listed_0"), new(name="listed_1", epsilon=0.5)]
        self.by_name = {"a": new(name="keyed")}
        self.chain = keras.Sequential([keras.layers.Dense(3), new(name="chained")], name="chain")

    def all(self) -> dict[str, Any]:
        return {
            "custom": self._private,
            "listed_0": self.listed[0],
            "listed_1": self.listed[1],
            "keyed": self.by_name["a"],
            "chain/chained": self.chain.layers[1],
        }

    def call(self, x: Any) -> Any:
        for layer in self.all().values():
            x = layer(x)
        return self.chain(x)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_layers_inside_custom_layers(suffix: str, tmp_path: Path) -> None:
    block, after = Block(name="block"), keras.layers.BatchNormalization(name="after")
    start = keras.Input((3,))
    model = keras.Model(start, after(block(start)))
    layers = {f"block/{name}": layer for name, layer in block.all().items()} | {"after": after}
    randomize(layers)
    if suffix == ".h5":
        # Here, layers have the names of their variables, which include fewer of the parents.
        layers = {layer.gamma.path.rpartition("/")[0]: layer for layer in layers.values()}
    path = save(model, tmp_path, suffix)
    assert_same(path, layers, configured=False)
    if suffix in (".keras", ".h5"):
        found = batch_norms(contents_of(path))
        assert list(found)[-1] == "after"
        assert found["after"].evidence == "config"


def test_a_subclassed_model(tmp_path: Path) -> None:
    class Net(keras.Model):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.block = keras.layers.BatchNormalization(name="one"), Block(name="b")

        def call(self, x: Any) -> Any:
            return self.block(self.first(x))

    model = Net()
    model(np.zeros((2, 3), "float32"))
    layers = {"one": model.first} | {f"b/{k}": v for k, v in model.block.all().items()}
    randomize(layers)
    for suffix in (".keras", ".weights.h5"):
        assert_same(save(model, tmp_path, suffix), layers, configured=False)


def test_default_names_show_the_order_in_a_subclassed_model(tmp_path: Path) -> None:
    """Keras stores weights by attribute name, but numbers layers in the order of their creation."""

    class Net(keras.Model):
        def __init__(self) -> None:
            super().__init__()
            self.stem = keras.layers.BatchNormalization()
            self.blocks = [keras.layers.BatchNormalization() for _ in range(2)]
            self.end = keras.layers.BatchNormalization()

        def call(self, x: Any) -> Any:
            return self.end(self.blocks[1](self.blocks[0](self.stem(x))))

    model = Net()
    model(np.zeros((2, 3), "float32"))
    names = [layer.name for layer in (model.stem, *model.blocks, model.end)]
    for suffix in (".keras", ".weights.h5"):
        assert bnstat.load(save(model, tmp_path, suffix)).keys() == names


def test_a_folder_and_a_compressed_archive_have_the_same_layers(tmp_path: Path) -> None:
    model, layers = nested(keras)
    path = save(model, tmp_path, ".keras")
    folder, packed = tmp_path / "folder", tmp_path / "packed.keras"
    with zipfile.ZipFile(path) as archive, zipfile.ZipFile(packed, "w") as other:
        archive.extractall(folder)
        for name in archive.namelist():
            other.writestr(name, archive.read(name), zipfile.ZIP_DEFLATED)
    assert_same(packed, layers)
    found = bnstat.load(folder)
    assert [layer.name for layer in found] == [layer.name for layer in bnstat.load(packed)]
    assert found.source.writer == f"Keras {keras.__version__}"


@LIBRARIES
@pytest.mark.parametrize("suffix", [".keras", ".h5"])
@pytest.mark.parametrize("name", ["Dense", "Add"])
def test_batch_norm_in_a_custom_class_with_a_name_of_keras(library, suffix, name, tmp_path):
    class Norm(library.layers.Layer):  # type: ignore[misc]
        def __init__(self, **config: Any) -> None:
            super().__init__(**config)
            self.norm = library.layers.BatchNormalization(name="inner")

        def build(self, shape: Any) -> None:
            self.norm.build(shape)
            self.built = True

        def call(self, x: Any) -> Any:
            return self.norm(x)

    custom = type(name, (Norm,), {"__module__": "custom"})(name="custom")
    after = library.layers.BatchNormalization(name="after")
    model = library.Sequential([library.Input((4,)), custom, after])
    randomize({"inner": custom.norm, "after": after})
    found = bnstat.load(save(model, tmp_path, suffix))
    variances = {layer.array("moving_variance").tobytes() for layer in found}
    assert variances == {layer.moving_variance.numpy().tobytes() for layer in (custom.norm, after)}
