"""Files that TensorFlow 0.12 to 2.21 and Keras 2 and 3 wrote, against TensorFlow's own reader."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from tensorflow.core.protobuf.trackable_object_graph_pb2 import TrackableObjectGraph

import bnstat
from bnstat.formats.contents import Reading
from bnstat.formats.locate import locate
from bnstat.model import Model, Source
from tests.builders.oracle import Array, assert_as_tensorflow_reads, same_bits
from tests.conftest import SHARED

ROLES = {"g": "gamma", "b": "beta", "m": "moving_mean", "v": "moving_variance"}
UNREADABLE = ("edge/bad", "edge/badi", "edge/renamed", "edge/trunc")


def _prefixes() -> list[str]:
    root = SHARED / "written"
    bundles = (path.with_suffix("") for path in root.rglob("*.index"))
    v1 = (path for path in root.rglob("*v1*ckpt*") if path.is_file())
    found = {path.relative_to(root).as_posix() for path in (*bundles, *v1)}
    return sorted(found - set(UNREADABLE))


def _restored(path: Path, key: str, dtype: tf.DType) -> Array:
    """Restore a tensor by TensorFlow, also sliced tensors of V1 files."""
    (tensor,) = tf.raw_ops.RestoreV2(
        prefix=str(path), tensor_names=[key], shape_and_slices=[""], dtypes=[dtype]
    )
    return np.asarray(tensor)


@pytest.mark.parametrize("prefix", _prefixes())
def test_all_tensors(written: Path, prefix: str) -> None:
    path = written / prefix
    reader = tf.train.load_checkpoint(str(path))
    # A SavedModel's own checkpoint is opened as such, not as the SavedModel around it.
    found = locate(str(path)).default.open(Source(str(path), ""), Reading())
    shapes, dtypes = reader.get_variable_to_shape_map(), reader.get_variable_to_dtype_map()
    assert set(found.variables) == set(shapes)
    for key, shape in shapes.items():
        variable = found.variables[key]
        assert variable.shape == tuple(shape)
        assert variable.dtype == tf.as_dtype(dtypes[key].base_dtype).name
        if dtypes[key] == tf.string:
            continue
        expected = _restored(path, key, dtypes[key].base_dtype)
        if dtypes[key].base_dtype.is_quantized:
            expected = expected.view(variable.read().dtype)
        assert same_bits(variable.read(), expected), key


_OF_NAMES = {
    "contrib": "BatchNorm:bmv BatchNorm_1:bmv BatchNorm_2:gbmv fused:bmv none:mv s:gmv unfused:bmv",
    "contrib_conv": "Conv/BatchNorm:bmv SeparableConv2d/BatchNorm:bmv "
    "fully_connected/BatchNorm:bmv",
    "contrib_renorm": "BatchNorm:gbmv",
    "contrib_var_names": "d:bmv",
    "contrib_zdb": "BatchNorm:bmv",
    "contrib_zdb_fused": "f:bmv",
    "ema": "bn:gbmv",
    "keras": "batch_normalization:gbmv batch_normalization_1:gbmv rn:gbmv",
    "layernorm_etc": "",
    "loss_scale": "bn:gbmv",
    "opt_in_scope": "model/bn:gbmv",
    "part": "p/bn:gbmv q/BatchNorm:gbmv",
    "quantize": "Conv1/BatchNorm:bmv Conv2/BatchNorm:bmv",
    "reuse": "gen/BatchNorm:gbmv",
    "rmsprop_centered": "tpu_batch_normalization:gbmv",
    "slim_resnet": "resnet/block1/unit_1/bottleneck_v2/conv1/BatchNorm:gbmv "
    "resnet/block1/unit_1/bottleneck_v2/conv2/BatchNorm:gbmv "
    "resnet/block1/unit_1/bottleneck_v2/preact:gbmv resnet/postnorm:gbmv",
    "sonnet1": "batch_norm:bmv batch_norm_1:gbmv bn2:gbmv leg:bmv off:gmv v2b:gbmv",
    "tf.layers": "batch_normalization:gbmv batch_normalization_1:gbmv bn_a:gbmv nc:gmv nn:mv "
    "ns:bmv",
    "tf.layers_adj_scope": "g/batch_normalization:gbmv",
    "tf.layers_renorm": "batch_normalization:bmv rn:gbmv",
    "tf.layers_vbs": "ax13:gbmv vb:gbmv",
}
_V1 = "batch_normalization:gbmv b:gbmv vb:gbmv BatchNorm:bmv z:gbmv Conv/BatchNorm:bmv"
BY_NAME = {f"names_1.15.5/{name}/m.ckpt": layers for name, layers in _OF_NAMES.items()}
BY_NAME |= {"v1_tf2.15/c": _V1, "v1_tf2.15/sm1": _V1, "dt/all": "", "edge_saver_state": ""}
_TF1 = "BatchNorm:bmv Conv1/BatchNorm:bmv bnscale:gbmv"
_TF1_LAYERS = f"{_TF1} batch_normalization:gbmv mybn:gbmv"
for _version in ("0.12", "1.0.1", "1.1.0", "1.2.1", "1.13", "115"):
    _folder = f"tf1ckpt/tf{_version}"
    for _name in ("v1.ckpt-7", "v1sh.ckpt-7", "v2.ckpt-7", "v2sh.ckpt-7"):
        BY_NAME[f"{_folder}/{_name}"] = _TF1 if _version == "0.12" else _TF1_LAYERS
BY_NAME["snap/v1.ckpt"] = BY_NAME["snap/v2"] = _TF1_LAYERS


def _prefix(path: Path) -> Path:
    """Return the prefix of the bundle, or the V1 file, at a path."""
    if (path / "variables").is_dir():
        return path / "variables/variables"
    if path.is_dir():
        return next(path.glob("*.index")).with_suffix("")
    shard = path.with_name(f"{path.name}-00000-of-00001")
    return shard if shard.is_file() else path


@pytest.mark.parametrize("target", BY_NAME)
def test_layers_by_name(written: Path, target: str) -> None:
    model = bnstat.load(written / target)
    expected = {
        scope: {ROLES[letter]: f"{scope}/{ROLES[letter]}" for letter in letters}
        for scope, _, letters in (item.partition(":") for item in BY_NAME[target].split())
    }
    found = {
        layer.name: {role: variable.key for role, variable in layer.variables.items()}
        for layer in model
    }
    assert found == expected
    assert not model.incomplete
    if expected:
        assert_as_tensorflow_reads(model, _prefix(written / target))


@pytest.mark.parametrize(
    ("target", "layer"),
    [("contrib_renorm", "BatchNorm"), ("tf.layers_renorm", "rn"), ("tensorpack", "brn")],
)
def test_variables_of_batch_renormalization(written: Path, target: str, layer: str) -> None:
    found = bnstat.load(written / f"names_1.15.5/{target}/m.ckpt")[layer].extra
    assert set(found) == {"moving_stddev", "renorm_mean", "renorm_stddev"}
    assert not bnstat.load(written / "names_1.15.5/tf.layers/m.ckpt")["bn_a"].extra


def test_tensorpack(written: Path) -> None:
    model = bnstat.load(written / "names_1.15.5/tensorpack/m.ckpt")
    keys = {
        layer.name: {each.key.removeprefix(f"{layer.name}/") for each in layer.variables.values()}
        for layer in model
    }
    usual = {"gamma", "beta", "mean/EMA", "variance/EMA"}
    assert keys == {
        **dict.fromkeys(("bn", "bnrelu/bn", "conv0/bn"), usual),
        "brn": {"gamma", "beta", "moving_mean", "moving_variance"},
        "noscale": usual - {"gamma"},
    }


def test_averages_as_statistics(written: Path) -> None:
    model = bnstat.load(written / "names_1.15.5/manual_ema/m.ckpt")
    statistics = {
        layer.name: (layer.variables["moving_mean"].key, layer.variables["moving_variance"].key)
        for layer in model
    }
    average = "moments/Squeeze{}/ExponentialMovingAverage"
    assert statistics == {
        "(root)": ("pop_mean", "pop_var"),
        "d_bn1": tuple(f"d_bn1/d_bn1/{average.format(end)}" for end in ("", "_1")),
        "ns": tuple(f"ns/{average.format(end)}" for end in ("", "_1")),
    }
    assert set(model["d_bn1"].variables) == set(ROLES.values())


# The network of each builder; in brackets what Keras 2 calls layers inside others.
_FUNCTIONAL = "batch_normalization:gbmv bn2:bmv bn3:gmv bn4:mv batch_normalization_1:gbmv "
_KERAS2 = _FUNCTIONAL + "time_distributed:gbmv"
_KERAS3 = (
    "batch_normalization:gbmv bn2:bmv bn3:gmv bn4:mv inner/batch_normalization_1:gbmv "
    "time_distributed/batch_normalization_2:gbmv"
)
_OLD = "bnA:bmv batch_normalization:gbmv batch_normalization_1:gbmv"

BY_OBJECT = {
    "k2.4.4/w": _OLD,
    "k2.4.4/sm": _OLD,
    "k215/sw": _KERAS2,
    "k215/tc": _KERAS2,
    "k215/sm": _FUNCTIONAL + "batch_normalization_2:gbmv",
    "k215/export": _KERAS2,
    "k215/sub": "net/blk/batch_normalization_3:gbmv net/blk/batch_normalization_4:gbmv "
    "net/blk/batch_normalization_5:gbmv net/blk/batch_normalization_6:gbmv net/blk/custom:gbmv "
    "batch_normalization_7:gbmv",
    "k215/subsm": "batch_normalization_3:gbmv batch_normalization_4:gbmv "
    "batch_normalization_5:gbmv batch_normalization_6:gbmv custom:gbmv "
    "batch_normalization_7:gbmv",
    "k3_2.21_keras3.15/tc": _KERAS3,
    "k3_2.21_keras3.15/sm": _KERAS3,
    "k3_2.21_keras3.15/export": _KERAS3,
    "names_1.15.5/k": "batch_normalization:gbmv",
    "v1_tf2.15/k": "batch_normalization:gbmv",
    "v1_tf2.15/k_re": "batch_normalization:gbmv",
}


def _full_names(prefix: Path) -> dict[str, str]:
    reader = tf.train.load_checkpoint(str(prefix))
    graph = TrackableObjectGraph.FromString(reader.get_tensor("_CHECKPOINTABLE_OBJECT_GRAPH"))
    return {
        attribute.checkpoint_key: attribute.full_name
        for node in graph.nodes
        for attribute in node.attributes
    }


@pytest.mark.parametrize("target", BY_OBJECT)
def test_layers_by_object(written: Path, target: str) -> None:
    model = bnstat.load(written / target)
    assert [
        f"{layer.name}:{''.join(key for key, role in ROLES.items() if role in layer.variables)}"
        for layer in model
    ] == BY_OBJECT[target].split()
    assert not model.incomplete
    prefix = _prefix(written / target)
    assert_as_tensorflow_reads(model, prefix)
    full_names = _full_names(prefix)
    for layer in model:
        scopes = set()
        for role, variable in layer.variables.items():
            scope, _, ending = full_names[variable.key].rpartition("/")
            assert ending == role
            scopes.add(scope)
        assert len(scopes) == 1


def _keys(model: Model) -> dict[str, list[str]]:
    return {
        layer.name: [layer.variables[role].key.split("/.ATTR")[0] for role in ROLES.values()]
        for layer in model
    }


def _numbered(start: int) -> list[str]:
    return [f"variables/{number}" for number in range(start, start + 4)]


@pytest.mark.parametrize(("name", "starts"), [("e", [0, 4, 8, 14]), ("e2", [0]), ("e3", [0, 4])])
def test_layers_that_only_the_graph_separates(written: Path, name: str, starts: list[int]) -> None:
    folder = written / "k3_subclass_unbuilt" / name
    model = bnstat.load(folder)
    full_names = _full_names(folder / "variables/variables")
    found = sorted(_keys(model).values(), key=lambda keys: int(keys[0].split("/")[1]))
    for keys, start in zip(found, starts, strict=True):
        assert sorted(keys) == sorted(_numbered(start))
        for key, role in zip(keys, ROLES.values(), strict=True):
            assert full_names[f"{key}/.ATTRIBUTES/VARIABLE_VALUE"].endswith(f"/{role}")
    assert_as_tensorflow_reads(model, folder / "variables/variables")


def test_a_subclassed_keras_3_model(written: Path) -> None:
    folder = written / "k3_2.21_keras3.15"
    for name in ("subsm", "subexport"):
        model = bnstat.load(folder / name)
        assert len(model) == 6
        assert_as_tensorflow_reads(model, folder / name / "variables/variables")
    partial = bnstat.load(folder / "sub")
    assert len(partial) == 3
    assert any("leaves layers in lists and dicts out" in note for note in partial.notes)


@pytest.mark.parametrize(
    ("target", "axes"),
    [("k215/sm", [3, 3, 3, 3, 3, 2]), ("k2.4.4/sm", [3, 3, 3]), ("k215/subsm", [1] * 6)],
)
def test_settings_from_keras_metadata(written: Path, target: str, axes: list[int]) -> None:
    model = bnstat.load(written / target)
    assert {(layer.epsilon, layer.momentum) for layer in model} == {(0.001, 0.99)}
    assert [layer.axis for layer in model] == axes


@pytest.mark.parametrize(
    "target",
    ["k215/export", "k3_2.21_keras3.15/sm", "k3_2.21_keras3.15/export", "v1_tf2.15/sm1",
     "v1_tf2.15/c", "v1_tf2.15/k", "k3_2.21_keras3.15/subexport", "tf1ckpt/tf115/v2.ckpt-7"],
)  # fmt: skip
def test_settings_from_a_graph(written: Path, target: str) -> None:
    assert {round(layer.epsilon or 0, 8) for layer in bnstat.load(written / target)} == {0.001}


def test_a_module_whose_graph_leaves_epsilon_at_the_ops_default(written: Path) -> None:
    model = bnstat.load(written / "v1_tf2.15/mod")
    assert _keys(model) == {"(root)": ["g", "b", "mm", "vv"]}
    assert round(model[0].epsilon or 0, 9) == 0.0001
    assert_as_tensorflow_reads(model, written / "v1_tf2.15/mod/variables/variables")


def test_a_saved_model_that_was_saved_again(written: Path) -> None:
    first, again = (bnstat.load(written / f"v1_tf2.15/{name}") for name in ("sm1", "sm1_re"))
    assert sorted(again.keys()) == sorted(first.keys())
    for layer in first:
        for role in layer.variables:
            assert same_bits(again[layer.name].array(role), layer.array(role))


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("edge/badi", "fails its checksum"),
        ("edge/renamed", r"renamed\.data-00000-of-00001: .*data file is missing"),
        ("edge/trunc", r"trunc\.data-00000-of-00001: truncated"),
    ],
)
def test_damaged_files_name_the_cause(written: Path, target: str, message: str) -> None:
    with pytest.raises(bnstat.BnstatError, match=message):
        bnstat.load(written / target)


def test_damaged_data(written: Path) -> None:
    model = bnstat.load(written / "edge/bad")
    with pytest.raises(bnstat.DamagedError, match="fails its checksum"):
        [variable.read() for layer in model.incomplete for variable in layer.variables.values()]


@pytest.mark.parametrize("target", ["shcb/async", "shcb/max", "shcb/task", "shv"])
def test_sharded_files_without_batch_norm(written: Path, target: str) -> None:
    assert len(bnstat.load(written / target)) == 0
