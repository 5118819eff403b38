"""Keras files that name modules, code or other files, which bnstat does not import, run or read."""

from __future__ import annotations

import json
import sys
import zipfile
from collections.abc import Callable, Iterator, Mapping
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
from bnstat.errors import BnstatError, UnsupportedError
from bnstat.estimate.running.keras_files import refuse_unsafe
from tests.builders.modules import Net

X = np.random.default_rng(0).normal(3, 2, (20, 3)).astype(np.float32)

FORMS = [("keras", "m.keras"), ("keras", "m.h5"), ("tf_keras", "m.keras"), ("tf_keras", "m.h5")]


def small(library: Any, *layers: Any) -> Any:
    """Return a model with some layers before its normalization."""
    return library.Sequential(
        [library.Input((3,)), *layers, library.layers.BatchNormalization(name="bn")]
    )


def edited(path: Path, change: Callable[[Any], None]) -> Path:
    """Change the configuration in a file."""
    if path.suffix == ".h5":
        with h5py.File(path, "r+") as file:
            configuration = json.loads(file.attrs["model_config"])
            change(configuration)
            file.attrs["model_config"] = json.dumps(configuration)
        return path
    members = unzipped(path)
    configuration = json.loads(members["config.json"])
    change(configuration)
    return zipped(path, {**members, "config.json": json.dumps(configuration).encode()})


def unzipped(path: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def zipped(path: Path, members: Mapping[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return path


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
def test_no_module_outside_keras_is_imported(
    change: Callable[[Any], None], name: str, saved: Path, trap: Path
) -> None:
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


def test_no_saved_model_is_run_as_a_layer(saved: Path, tmp_path: Path) -> None:
    Net(lambda net, x: x).save(tmp_path / "inner")
    config = {"name": "inner", "filepath": str(tmp_path / "inner"), "call_endpoint": "serve"}
    edited(saved, inserted({"class_name": "TFSMLayer", "module": "keras.layers", "config": config}))
    with pytest.raises(UnsupportedError, match=r"read the file .*inner.*TFSMLayer"):
        drift(saved, X)


@pytest.mark.parametrize("kind", ["StringLookup", "IntegerLookup", "TextVectorization"])
def test_no_vocabulary_is_read_from_a_file(kind: str, saved: Path, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("a\nb\n")
    config = {"name": "words", "vocabulary": str(tmp_path / "secret")}
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


@pytest.mark.parametrize(
    ("described", "allowed"),
    [
        ({"module": "keras.layers", "class_name": "Dense"}, True),
        ({"module": "tf_keras.src.engine.functional", "class_name": "Functional"}, True),
        ({"module": "keras.src.ops.numpy", "class_name": "Add"}, True),
        ({"module": "keras", "class_name": "Sequential"}, True),
        ({"module": "builtins", "class_name": "function", "config": "relu"}, True),
        ({"module": "builtins", "class_name": "function", "config": "exec"}, False),
        ({"module": "keras.utils", "class_name": "function", "config": "get_file"}, False),
        ({"module": "keras.config", "class_name": "enable_unsafe_deserialization"}, False),
        ({"module": "keras.src.layers", "class_name": "os.system"}, False),
        ({"module": "kerasy.layers", "class_name": "Dense"}, False),
        ({"module": "os", "class_name": "function", "config": "system"}, False),
        ({"class_name": "mine>Lambda", "config": {}}, False),
        ({"class_name": "__lambda__", "config": {"value": "eA=="}}, False),
        ({"class_name": "TFOpLambda", "config": {"function": "compat.v1.nn.relu"}}, True),
        ({"class_name": "TFOpLambda", "config": {"function": "__operators__.add"}}, True),
        ({"class_name": "TFOpLambda", "config": {"function": "load_op_library"}}, False),
        ({"class_name": "TFOpLambda", "config": {"function": "compat.v1.py_func"}}, False),
        ({"class_name": "ClassMethod", "config": {"cls_symbol": "RaggedTensor"}}, True),
        ({"class_name": "ClassMethod", "config": {"cls_symbol": "io.gfile.GFile"}}, False),
        ({"class_name": "TensorFlowOpLayer", "config": {"node_def": {"op": "AddV2"}}}, True),
        ({"class_name": "TensorFlowOpLayer", "config": {"node_def": {"op": "ReadFile"}}}, False),
        ({"class_name": "TensorFlowOpLayer", "config": {"node_def": "bytes"}}, False),
        ({"class_name": "TensorFlowOpLayer", "config": {"node_def": {"op": ["AddV2"]}}}, False),
        ({"class_name": "ClassMethod", "config": {"cls_symbol": ["RaggedTensor"]}}, False),
        ({"class_name": "StringLookup", "config": {"vocabulary": ["a", "b"]}}, True),
    ],
)
def test_what_a_configuration_may_name(described: Mapping[str, Any], allowed: bool) -> None:
    nested = {"config": {"layers": [{"config": {"layer": described}}]}}
    if allowed:
        refuse_unsafe(nested, "m.keras", [])
    else:
        with pytest.raises(UnsupportedError, match="--trust"):
            refuse_unsafe(nested, "m.keras", [])


def test_an_imported_module_may_be_named() -> None:
    described = {"module": "mine.layers", "class_name": "Twice"}
    refuse_unsafe(described, "m.keras", ["mine"])
    with pytest.raises(UnsupportedError, match=r"--import mine\.layers"):
        refuse_unsafe(described, "m.keras", ["min"])


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("def (", "SyntaxError: invalid syntax"),
        ("no_such_name", "NameError: name 'no_such_name' is not defined"),
        ("raise SystemExit(0)", "SystemExit: 0"),
        ("import no_such_module", "No module named 'no_such_module'"),
    ],
)
def test_a_module_that_fails_is_one_line(
    code: str, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small(keras).save(tmp_path / "m.keras")
    (tmp_path / "failing_of_test.py").write_text(code)
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(BnstatError, match="failing_of_test: cannot be imported: ") as error:
        drift(tmp_path / "m.keras", X, imports=["failing_of_test"])
    assert reason in str(error.value)
    assert "\n" not in str(error.value)


def test_a_file_under_another_name(saved: Path) -> None:
    """bnstat identifies files by content; Keras goes by the ending."""
    expected = drift(saved, X).layers[0].mean
    for ending in (".model", ".keras" if saved.suffix == ".h5" else ".h5"):
        saved = saved.rename(saved.with_suffix(ending))
        np.testing.assert_array_equal(drift(saved, X).layers[0].mean, expected)


def test_a_folder_of_keras_2_is_not_taken_for_a_saved_model(tmp_path: Path) -> None:
    small(tf_keras).save(tmp_path / "m.keras")
    with zipfile.ZipFile(tmp_path / "m.keras") as archive:
        archive.extractall(tmp_path / "folder")
    with pytest.raises(UnsupportedError, match=r"tf_keras takes for a SavedModel; zip"):
        drift(tmp_path / "folder", X)


def _external_link(file: h5py.File, path: str, other: Path) -> None:
    file[path] = h5py.ExternalLink(str(other), "/secret")


def _virtual(file: h5py.File, path: str, other: Path) -> None:
    layout = h5py.VirtualLayout((3,), "f4")
    layout[:] = h5py.VirtualSource(str(other), "secret", (3,))
    file.create_virtual_dataset(path, layout)


def _external_storage(file: h5py.File, path: str, other: Path) -> None:
    file.create_dataset(path, (3,), "f4", external=[(str(other), 0, 12)])


@pytest.mark.parametrize("refer", [_external_link, _virtual, _external_storage])
@pytest.mark.parametrize("form", ["h5", "keras", "folder"])
def test_no_other_file_is_read_for_weights(form: str, refer: Any, tmp_path: Path) -> None:
    """The kernel before the batch norm, which bnstat itself does not read, is in another file."""
    other, weights = tmp_path / "other.h5", tmp_path / "model.weights.h5"
    with h5py.File(other, "w") as file:
        file["secret"] = np.ones(3, np.float32)
    path = tmp_path / ("m.h5" if form == "h5" else "m.keras")
    small(keras, keras.layers.Dense(3, name="dense")).save(path)
    if form == "h5":
        with h5py.File(path, "r+") as file:
            (bias,) = (
                name for name in _datasets(file["model_weights"]) if name.endswith("dense/bias")
            )
            del file[bias]
            refer(file, bias, other)
    else:
        members = unzipped(path)
        weights.write_bytes(members["model.weights.h5"])
        with h5py.File(weights, "r+") as file:
            del file["layers/dense/vars/1"]
            refer(file, "layers/dense/vars/1", other)
        members["model.weights.h5"] = weights.read_bytes()
        path.unlink()
        if form == "folder":
            path.mkdir()
            for name, data in members.items():
                (path / name).write_bytes(data)
        else:
            zipped(path, members)
    with pytest.raises(UnsupportedError, match="from another file; --trust"):
        drift(path, X)


def _datasets(group: h5py.Group) -> list[str]:
    """Return the full names of all datasets in a group."""
    names: list[str] = []
    group.visititems(
        lambda _, held: names.append(held.name) if isinstance(held, h5py.Dataset) else None
    )
    return names
