"""Keras files that name modules, code or other files, which bnstat does not import, run or read."""

from __future__ import annotations

import json
import shutil
import sys
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from importlib import import_module
from pathlib import Path
from typing import Any

import h5py
import keras
import numpy as np
import pytest
import tensorflow as tf
import tf_keras

from bnstat import drift
from bnstat.errors import UnsupportedError
from bnstat.estimate.running.keras_files import refuse_unsafe
from tests.builders.modules import Net
from tests.fuzz.handmade import zipped

X = np.random.default_rng(0).normal(3, 2, (20, 3)).astype(np.float32)

FORMS = [("keras", "m.keras"), ("keras", "m.h5"), ("tf_keras", "m.keras"), ("tf_keras", "m.h5")]


def small(library: Any, *layers: Any) -> Any:
    """Return a model with some layers before its normalization."""
    return library.Sequential(
        [library.Input((3,)), *layers, library.layers.BatchNormalization(name="bn")]
    )


def edited(path: Path, change: Callable[[Any], None]) -> None:
    """Change the configuration in a file."""
    if path.suffix == ".h5":
        with h5py.File(path, "r+") as file:
            configuration = json.loads(file.attrs["model_config"])
            change(configuration)
            file.attrs["model_config"] = json.dumps(configuration)
    else:
        members = unzipped(path)
        configuration = json.loads(members["config.json"])
        change(configuration)
        members["config.json"] = json.dumps(configuration).encode()
        path.write_bytes(zipped([*members.items()]))


def unzipped(path: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def inserted(layer: Mapping[str, Any]) -> Callable[[Any], None]:
    """Return a change that puts a layer after the input."""
    return lambda configuration: configuration["config"]["layers"].insert(1, layer)


@pytest.fixture(params=FORMS, ids="-".join)
def saved(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A file of a small model, of either library, in either format."""
    library, name = request.param
    small(import_module(library)).save(tmp_path / name)
    return tmp_path / name


@pytest.fixture
def trap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The file that appears when the module `trap_of_test` is imported."""
    sprung = tmp_path / "sprung"
    (tmp_path / "trap_of_test.py").write_text(
        f"open({str(sprung)!r}, 'w').close()\n"
        "from keras.layers import Activation as Trap\nfrom keras.activations import relu as trap\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    yield sprung
    sys.modules.pop("trap_of_test", None)


def with_a_class(configuration: Any) -> None:
    layer = {"class_name": "Trap", "module": "trap_of_test", "registered_name": "Trap"}
    inserted({**layer, "config": {"name": "trap"}})(configuration)


def with_a_function(configuration: Any) -> None:
    function = {"class_name": "function", "config": "trap", "module": "trap_of_test"}
    for layer in configuration["config"]["layers"]:
        if layer["class_name"] == "BatchNormalization":
            layer["config"]["beta_initializer"] = {**function, "registered_name": "function"}


@pytest.mark.parametrize(("change", "name"), [(with_a_class, "Trap"), (with_a_function, "trap")])
def test_no_module_outside_keras_is_imported(change, name, saved, trap) -> None:
    edited(saved, change)
    with pytest.raises(UnsupportedError, match=rf"without trap_of_test\.{name}.*--import MODULE"):
        drift(saved, X)
    assert not trap.exists()


@pytest.mark.parametrize(("library", "name"), FORMS)
def test_a_lambda_runs_only_if_trusted(library: str, name: str, tmp_path: Path) -> None:
    code = import_module(library)
    path = tmp_path / name
    small(code, code.layers.Lambda(lambda x: x * 2, output_shape=(3,))).save(path)
    with pytest.raises(UnsupportedError, match=r"run code in the file.*--trust"):
        drift(path, X)
    result = drift(path, X, trust=True)
    np.testing.assert_allclose(result.layers[0].mean, 2 * X.mean(0), rtol=1e-5)


@pytest.mark.parametrize(
    "kind", ["TFSMLayer", "StringLookup", "IntegerLookup", "TextVectorization"]
)
def test_no_other_file_is_read_for_a_layer(kind: str, saved: Path, tmp_path: Path) -> None:
    Net(lambda net, x: x).save(tmp_path / "secret")
    setting = "filepath" if kind == "TFSMLayer" else "vocabulary"
    config = {"name": "layer", setting: str(tmp_path / "secret"), "call_endpoint": "serve"}
    edited(saved, inserted({"class_name": kind, "module": "keras.layers", "config": config}))
    with pytest.raises(UnsupportedError, match=rf"read the file .*secret.*{kind}"):
        drift(saved, X)


@pytest.mark.parametrize("name", ["m.keras", "m.h5"])
def test_no_function_of_tensorflow_touches_files(name: str, tmp_path: Path) -> None:
    """tf-keras calls any function of TensorFlow's API with constants from the file."""
    victim, path = tmp_path / "victim", tmp_path / name
    victim.write_text("mine")
    inputs = tf_keras.Input((3,))
    outputs = tf_keras.layers.BatchNormalization(name="bn")(tf.math.multiply(inputs, 2.0))
    tf_keras.Model(inputs, outputs).save(path)
    np.testing.assert_allclose(drift(path, X).layers[0].mean, 2 * X.mean(0), rtol=1e-5)

    def change(configuration: Any) -> None:
        for layer in configuration["config"]["layers"]:
            if layer["class_name"] == "TFOpLambda":
                layer["config"]["function"] = "io.gfile.remove"
                layer["inbound_nodes"] = [["_CONSTANT_VALUE", -1, str(victim), {}]]

    edited(path, change)
    with pytest.raises(UnsupportedError, match=r"call tf\.io\.gfile\.remove"):
        drift(path, X)
    assert victim.exists()


KERAS_NAMES = [
    ("keras.layers", "Dense", None, True),
    ("tf_keras.src.engine.functional", "Functional", None, True),
    ("keras.src.ops.numpy", "Add", None, True),
    ("keras", "Sequential", None, True),
    ("builtins", "function", "relu", True),
    ("builtins", "function", "exec", False),
    ("keras.utils", "function", "get_file", False),
    ("keras.config", "enable_unsafe_deserialization", None, False),
    ("keras.src.layers", "os.system", None, False),
    ("kerasy.layers", "Dense", None, False),
    ("os", "function", "system", False),
    (None, "mine>Lambda", {}, False),
    (None, "__lambda__", {"value": "eA=="}, False),
    (None, "TFOpLambda", {"function": "compat.v1.nn.relu"}, True),
    (None, "TFOpLambda", {"function": "__operators__.add"}, True),
    (None, "TFOpLambda", {"function": "load_op_library"}, False),
    (None, "TFOpLambda", {"function": "compat.v1.py_func"}, False),
    (None, "ClassMethod", {"cls_symbol": "RaggedTensor"}, True),
    (None, "ClassMethod", {"cls_symbol": "io.gfile.GFile"}, False),
    (None, "ClassMethod", {"cls_symbol": ["RaggedTensor"]}, False),
    (None, "TensorFlowOpLayer", {"node_def": {"op": "AddV2"}}, True),
    (None, "TensorFlowOpLayer", {"node_def": {"op": "ReadFile"}}, False),
    (None, "TensorFlowOpLayer", {"node_def": "bytes"}, False),
    (None, "TensorFlowOpLayer", {"node_def": {"op": ["AddV2"]}}, False),
    (None, "StringLookup", {"vocabulary": ["a", "b"]}, True),
]


@pytest.mark.parametrize(("module", "kind", "config", "allowed"), KERAS_NAMES)
def test_what_a_configuration_may_name(module: Any, kind: str, config: Any, allowed: bool) -> None:
    described = {"module": module, "class_name": kind, "config": config}
    nested = {"config": {"layers": [{"config": {"layer": described}}]}}
    with nullcontext() if allowed else pytest.raises(UnsupportedError, match="--trust"):
        refuse_unsafe(nested, "m.keras", [])


def test_an_imported_module_may_be_named() -> None:
    described = {"module": "mine.layers", "class_name": "Twice"}
    refuse_unsafe(described, "m.keras", ["mine"])
    with pytest.raises(UnsupportedError, match=r"--import mine\.layers"):
        refuse_unsafe(described, "m.keras", ["min"])


def test_a_file_under_another_name(saved: Path) -> None:
    """bnstat identifies files by content; Keras goes by the ending."""
    expected = drift(saved, X).layers[0].mean
    for ending in (".model", ".keras" if saved.suffix == ".h5" else ".h5"):
        saved = saved.rename(saved.with_suffix(ending))
        np.testing.assert_array_equal(drift(saved, X).layers[0].mean, expected)


def test_a_folder_of_keras_2_is_not_taken_for_a_saved_model(tmp_path: Path) -> None:
    small(tf_keras).save(tmp_path / "m.keras")
    shutil.unpack_archive(tmp_path / "m.keras", tmp_path / "folder", "zip")
    with pytest.raises(UnsupportedError, match=r"tf_keras cannot load; zip"):
        drift(tmp_path / "folder", X)


def refer(file: h5py.File, path: str, kind: str, other: str) -> None:
    """Add a dataset whose values are in another file."""
    if kind == "link":
        file[path] = h5py.ExternalLink(other, "/secret")
    elif kind == "storage":
        file.create_dataset(path, (3,), "f4", external=[(other, 0, 12)])
    else:
        layout = h5py.VirtualLayout((3,), "f4")
        layout[:] = h5py.VirtualSource(other, "secret", (3,))
        file.create_virtual_dataset(path, layout)


@pytest.mark.parametrize("kind", ["link", "virtual dataset", "storage"])
@pytest.mark.parametrize("form", ["h5", "keras", "folder"])
def test_no_other_file_is_read_for_weights(form: str, kind: str, tmp_path: Path) -> None:
    """The bias before the batch norm, which bnstat itself does not read, is in another file."""
    other, weights = tmp_path / "other.h5", tmp_path / "model.weights.h5"
    with h5py.File(other, "w") as file:
        file["secret"] = np.ones(3, np.float32)
    path = tmp_path / ("m.h5" if form == "h5" else "m.keras")
    small(keras, keras.layers.Dense(3, name="dense")).save(path)
    members = {} if form == "h5" else unzipped(path)
    if members:
        weights.write_bytes(members["model.weights.h5"])
    with h5py.File(weights if members else path, "r+") as file:
        names: list[str] = []
        file.visit(names.append)
        (bias,) = (name for name in names if name.endswith(("dense/bias", "dense/vars/1")))
        del file[bias]
        refer(file, bias, kind, str(other))
    if members:
        members["model.weights.h5"] = weights.read_bytes()
        path.write_bytes(zipped([*members.items()]))
        if form == "folder":
            shutil.unpack_archive(path, path := tmp_path / "folder", "zip")
    with pytest.raises(UnsupportedError, match="from another file; --trust"):
        drift(path, X)
