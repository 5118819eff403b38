"""An architecture beside weights that do not tell it, against the live models."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import h5py
import keras
import numpy as np
import pytest
import tensorflow as tf
import tf_keras

import bnstat
from bnstat.errors import BnstatError, DamagedError, NotFoundError
from bnstat.formats.keras.architecture import architecture_beside, read_architecture
from bnstat.storage.local import LocalFile
from tests.builders.keras_models import FUNCTIONAL, all_layers, functional, randomised, roles_of
from tests.formats.keras.files import same_bits

LIBRARIES = {"keras-3": keras, "tf-keras": tf_keras}


@pytest.fixture(scope="module", params=LIBRARIES)
def net(request: pytest.FixtureRequest) -> tuple[ModuleType, Any]:
    library = LIBRARIES[request.param]
    return library, functional(library)


def with_norms(net: Any) -> dict[str, Any]:
    """The model's batch-norm layers by their own names, in the order of the network."""
    return {
        layer.name: layer
        for layer in all_layers(net)
        if type(layer).__name__ == "BatchNormalization"
    }


def assert_is(model: bnstat.Model, live: Mapping[str, Any]) -> None:
    """The layers are the live ones: in order, with names, roles, settings and every bit."""
    assert [layer.name.rpartition("/")[2] for layer in model] == list(live)
    for layer, norm in zip(model, live.values(), strict=True):
        roles = roles_of(norm)
        assert set(layer.variables) == set(roles)
        assert all(same_bits(layer.array(role), array) for role, array in roles.items())
        axis = norm.axis[0] if isinstance(norm.axis, list | tuple) else norm.axis
        assert (layer.epsilon, layer.momentum, layer.axis) == (norm.epsilon, norm.momentum, axis)
        assert layer.evidence == "config"
        assert not layer.undecided
    assert not model.incomplete
    assert not model.notes


def saved_weights(library: ModuleType, net: Any, folder: Path, form: str) -> Path:
    if form == "checkpoint":
        return Path(tf.train.Checkpoint(model=net).write(str(folder / "ckpt")))
    if form == ".h5" and library is keras:
        pytest.skip("Keras 3 saves weights alone as .weights.h5")
    if form == "sharded":
        if library is tf_keras:
            pytest.skip("tf-keras has no sharded weights")
        net.save_weights(folder / "m.weights.json", max_shard_size=2e-6)
        return folder / "m.weights.json"
    net.save_weights(folder / f"m{form}")
    return folder / f"m{form}"


def saved_architecture(net: Any, folder: Path, form: str) -> Path:
    path = folder / form
    if form == "to_json":
        path.write_text(net.to_json())
    elif form == "dumped":
        path.write_text(json.dumps(net.to_json()))
    else:
        net.save(path)
    return path


@pytest.mark.parametrize("form", [".weights.h5", ".h5", "sharded", "checkpoint"])
@pytest.mark.parametrize("told_by", ["to_json", "full.keras"])
def test_names_roles_settings_order_and_arrays(
    net: tuple[ModuleType, Any], tmp_path: Path, form: str, told_by: str
) -> None:
    path = saved_weights(*net, tmp_path, form)
    config = saved_architecture(net[1], tmp_path, told_by)
    model = bnstat.load(path, config=config)
    assert [layer.name for layer in model] == list(FUNCTIONAL)
    assert_is(model, with_norms(net[1]))


@pytest.mark.parametrize("told_by", ["to_json", "dumped", "full.keras", "full.h5"])
def test_every_kind_of_architecture(
    net: tuple[ModuleType, Any], tmp_path: Path, told_by: str
) -> None:
    path = saved_weights(*net, tmp_path, ".weights.h5")
    config = saved_architecture(net[1], tmp_path, told_by)
    assert_is(bnstat.load(path, config=config), with_norms(net[1]))


def test_the_config_of_an_unpacked_archive(net: tuple[ModuleType, Any], tmp_path: Path) -> None:
    import zipfile

    path = saved_weights(*net, tmp_path, ".weights.h5")
    zipfile.ZipFile(saved_architecture(net[1], tmp_path, "full.keras")).extractall(tmp_path / "x")
    for config in (tmp_path / "x", tmp_path / "x/config.json"):
        assert_is(bnstat.load(path, config=config), with_norms(net[1]))


def wrapped(library: ModuleType) -> Any:
    """Batch norm in wrappers and beside what has as many variables, without telling names."""
    layers = library.layers
    x = inputs = library.Input((5, 6))
    x = layers.TimeDistributed(layers.BatchNormalization(scale=False, name="gamma721738"))(x)
    x = layers.BatchNormalization(name="bn")(x)
    x = layers.Bidirectional(layers.LSTM(4, return_sequences=True))(x)
    x = layers.GRU(4, return_sequences=True)(x)
    x = layers.LayerNormalization()(x)
    x = layers.MultiHeadAttention(2, 4)(x, x)
    x = layers.TimeDistributed(layers.Dense(3))(x)
    x = layers.Conv1D(3, 1)(x)
    return randomised(library.Model(inputs, layers.BatchNormalization(center=False, name="z")(x)))


@pytest.fixture(scope="module", params=LIBRARIES)
def wrapped_net(request: pytest.FixtureRequest) -> tuple[ModuleType, Any]:
    library = LIBRARIES[request.param]
    return library, wrapped(library)


def wrapped_norms(net: Any) -> dict[str, Any]:
    return {"gamma721738": net.layers[1].layer, "bn": net.layers[2], "z": net.layers[-1]}


@pytest.mark.parametrize("form", [".weights.h5", ".h5"])
def test_wrapped_layers(wrapped_net: tuple[ModuleType, Any], tmp_path: Path, form: str) -> None:
    path = saved_weights(*wrapped_net, tmp_path, form)
    config = saved_architecture(wrapped_net[1], tmp_path, "to_json")
    assert_is(bnstat.load(path, config=config), wrapped_norms(wrapped_net[1]))


def test_what_is_undecided_without_it(wrapped_net: tuple[ModuleType, Any], tmp_path: Path) -> None:
    library, net = wrapped_net
    path = saved_weights(library, net, tmp_path, ".weights.h5")
    model = bnstat.load(path)
    norm = net.layers[1].layer
    if library is keras:
        (layer,) = model.undecided
        assert layer.name == "gamma721738"
        stored = [variable.read() for variable in layer.undecided]
        live = [norm.beta, norm.moving_mean, norm.moving_variance]
        assert all(map(same_bits, stored, map(np.asarray, live)))
    assert [layer.channels for layer in model.undecided] == [6]
    assert any("--config" in note and "may be batch norm" in note for note in model.notes)
    assert any("role of some variables" in note for note in model.notes)
    # It is told and not used where it lies beside the weights.
    (tmp_path / "m.json").write_text(net.to_json())
    beside = bnstat.load(path)
    assert len(beside.undecided) == 1
    (note,) = set(beside.notes) - set(model.notes)
    assert f"--config {tmp_path / 'm.json'}" in note
    assert bnstat.load(path, config=tmp_path / "m.json").notes == ()


@pytest.mark.parametrize("form", [".weights.h5", ".h5"])
@pytest.mark.parametrize("library", LIBRARIES.values(), ids=LIBRARIES)
@pytest.mark.parametrize("is_functional", [True, False])
def test_a_model_built_once_more_is_matched_by_place(
    tmp_path: Path, library: ModuleType, form: str, is_functional: bool
) -> None:
    def build() -> Any:
        of = library.layers
        layers = [
            of.Dense(3),
            of.BatchNormalization(scale=False),
            of.Dense(3),
            of.BatchNormalization(),
        ]
        if not is_functional:
            return sequential(library, *layers)
        x = inputs = library.Input((4,))
        for layer in layers:
            x = layer(x)
        return randomised(library.Model(inputs, x))

    first, second = build(), build()
    path = saved_weights(library, second, tmp_path, form)
    config = saved_architecture(first, tmp_path, "to_json")
    model = bnstat.load(path, config=config)
    assert [layer.name for layer in model] == list(with_norms(first))
    for layer, norm in zip(model, with_norms(second).values(), strict=True):
        assert set(layer.variables) == set(roles_of(norm))
        for role, array in roles_of(norm).items():
            assert same_bits(layer.array(role), array)
    if library is keras or form == ".h5":
        assert [note.partition(":")[2] for note in model.notes] == [" matched by place"]


def test_what_keras_itself_has_is_not_taken_for_batch_norm(tmp_path: Path) -> None:
    layers = keras.layers
    x = inputs = keras.Input((6, 4))
    x = layers.Normalization()(x)
    for layer in (
        layers.LayerNormalization(),
        layers.GroupNormalization(groups=2),
        layers.RMSNormalization(),
        layers.SpectralNormalization(layers.Dense(4)),
        layers.PReLU(),
        layers.EinsumDense("abc,cd->abd", (None, 4), bias_axes="d"),
        layers.GRU(4, return_sequences=True),
        layers.LSTM(4, return_sequences=True),
        layers.Bidirectional(layers.SimpleRNN(2, return_sequences=True)),
        layers.SeparableConv1D(4, 1),
        layers.TimeDistributed(layers.LayerNormalization()),
    ):
        x = layer(x)
    x = layers.MultiHeadAttention(2, 2)(x, x)
    x = layers.GroupQueryAttention(2, 2, 1)(x, x)
    net = keras.Model(inputs, layers.Dense(4)(x))
    net.compile("adam", "mse", metrics=["mae"])
    net.optimizer.build(net.trainable_variables)
    net.save_weights(tmp_path / "m.weights.h5")
    net.save(tmp_path / "m.keras")
    for name in ("m.weights.h5", "m.keras"):
        model = bnstat.load(tmp_path / name)
        assert (len(model), model.incomplete, model.notes) == (0, (), ())


class Block(keras.layers.Layer):
    """Batch norm under a name that does not say so, of which a configuration does not tell."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.inside = keras.layers.BatchNormalization(scale=False, name="plain")

    def call(self, x: Any) -> Any:
        return self.inside(x)

    def build(self, shape: Any) -> None:
        self.inside.build(shape)


def test_patterns_decide_what_no_configuration_tells(tmp_path: Path) -> None:
    block = Block(name="block")
    net = randomised(keras.Sequential([keras.Input((4,)), block]))
    net.save(tmp_path / "m.keras")
    model = bnstat.load(tmp_path / "m.keras")
    (layer,) = model.undecided
    assert layer.name == "plain"
    assert any("--pattern" in note for note in model.notes)
    roles = roles_of(block.inside)
    patterns = [(role, f"vars/{number}$") for number, role in enumerate(roles)]
    (layer,) = bnstat.load(tmp_path / "m.keras", patterns=patterns)
    assert all(same_bits(layer.array(role), array) for role, array in roles.items())
    # Weights alone, and an architecture that does not open the block: as undecided as before.
    net.save_weights(tmp_path / "m.weights.h5")
    model = bnstat.load(tmp_path / "m.weights.h5", config=tmp_path / "m.keras")
    assert [layer.name for layer in model.undecided] == ["plain"]
    assert any("--pattern" in note for note in model.notes)


def sequential(library: ModuleType, *layers: Any) -> Any:
    return randomised(library.Sequential([library.Input((4,)), *layers]))


@pytest.mark.parametrize("form", [".weights.h5", ".h5"])
@pytest.mark.parametrize("library", LIBRARIES.values(), ids=LIBRARIES)
@pytest.mark.parametrize(
    ("told", "reason"),
    [
        (lambda of: [of.Dense(3, name="d"), of.BatchNormalization(name="b")], "c"),
        (
            lambda of: [
                of.Dense(3, name="d"),
                of.BatchNormalization(name="b"),
                of.BatchNormalization(name="c"),
                of.BatchNormalization(name="e"),
            ],
            "no variables for e ",
        ),
        (
            lambda of: [
                of.Dense(3, name="d"),
                of.BatchNormalization(name="b", scale=False),
                of.BatchNormalization(name="c"),
            ],
            "b has 3 variables by it, 4 in the weights",
        ),
        (
            lambda of: [
                of.Dense(5, name="d"),
                of.BatchNormalization(name="b"),
                of.BatchNormalization(name="c"),
            ],
            "d has units=5 by it, its kernel is [4, 3]",
        ),
    ],
    ids=["fewer layers", "more layers", "other roles", "other shapes"],
)
def test_an_architecture_that_does_not_fit(
    tmp_path: Path, library: ModuleType, form: str, told: Any, reason: str
) -> None:
    of = library.layers
    net = sequential(
        library,
        of.Dense(3, name="d"),
        of.BatchNormalization(name="b"),
        of.BatchNormalization(name="c"),
    )
    path = saved_weights(library, net, tmp_path, form)
    config = saved_architecture(sequential(library, *told(of)), tmp_path, "to_json")
    with pytest.raises(BnstatError) as caught:
        bnstat.load(path, config=config)
    assert f"does not fit {path}" in caught.value.what
    assert reason in caught.value.what


def test_channels_of_another_number(tmp_path: Path) -> None:
    def net(channels: int) -> Any:
        norm = keras.layers.BatchNormalization(name="b")
        return randomised(keras.Sequential([keras.Input((channels,)), norm]))

    net(4).save_weights(tmp_path / "m.weights.h5")
    (tmp_path / "m.json").write_text(net(5).to_json())
    with pytest.raises(BnstatError, match=r"b has 5 channels by it, its variables are \[4\]"):
        bnstat.load(tmp_path / "m.weights.h5", config=tmp_path / "m.json")


def test_keras_1_tells_no_scale_but_the_epsilon(tmp_path: Path) -> None:
    """Keras 1.2 wrote weights under names without scopes, and a Sequential's layers as a list."""
    labels = ("gamma", "beta", "running_mean", "running_std")
    arrays = {label: np.arange(3, dtype=np.float32) + n for n, label in enumerate(labels)}
    with h5py.File(tmp_path / "m.h5", "w") as file:
        file.attrs["layer_names"] = [b"bn1"]
        group = file.create_group("bn1")
        group.attrs["weight_names"] = [f"bn1_{label}".encode() for label in labels]
        for label, array in arrays.items():
            group[f"bn1_{label}"] = array
    norm = {"name": "bn1", "trainable": True, "epsilon": 1e-6, "mode": 0, "axis": 1,
            "momentum": 0.9}  # fmt: skip
    layers = [{"class_name": "BatchNormalization", "config": norm}]
    model = {"class_name": "Sequential", "config": layers, "keras_version": "1.2.2"}
    (tmp_path / "m.json").write_text(json.dumps(model))
    (layer,) = bnstat.load(tmp_path / "m.h5", config=tmp_path / "m.json")
    assert (layer.epsilon, layer.momentum, layer.axis) == (1e-6, 0.9, 1)
    for role, array in zip(bnstat.model.ROLES, arrays.values(), strict=True):
        assert same_bits(layer.array(role), array)


def test_a_file_that_tells_its_own_is_read_by_that(
    net: tuple[ModuleType, Any], tmp_path: Path
) -> None:
    own = saved_architecture(net[1], tmp_path, "full.keras")
    other = tmp_path / "other.json"
    other.write_text(sequential(net[0], net[0].layers.Dense(2)).to_json())
    model = bnstat.load(own, config=other)
    assert [layer.name for layer in model] == list(FUNCTIONAL)
    assert model.notes == (f"{other} is not used: the file tells its own layers",)


@pytest.mark.parametrize(
    ("content", "error", "message"),
    [
        (b"\x89PNG....", BnstatError, "holds no architecture"),
        (b"{", DamagedError, "not valid JSON"),
        (b"{}", BnstatError, "lists no layers"),
        (b'{"class_name": "Sequential", "config": {"layers": []}}', BnstatError, "lists no layers"),
        (b'{"class_name": "MyModel", "config": {"units": 3}}', BnstatError, "lists no layers"),
        (b'{"a":' * 5000 + b"1" + b"}" * 5000, BnstatError, "nested"),
        (
            b'{"class_name": "M", "config": {"layers": [' * 200 + b"]}}" * 200,
            BnstatError,
            "nested",
        ),
    ],
)
def test_what_is_no_architecture(
    tmp_path: Path, content: bytes, error: type[BnstatError], message: str
) -> None:
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(error, match=message):
        read_architecture(str(tmp_path / "a.json"))


def test_an_architecture_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError):
        read_architecture(str(tmp_path / "a.json"))


@pytest.mark.parametrize(
    ("weights", "beside"),
    [
        ("m.weights.h5", "m.json"),
        ("m.h5", "m.json"),
        ("m_weights.h5", "m.json"),
        ("m_weights.h5", "m_weights.json"),
        ("m.weights.json", "m.json"),
        ("m_00000.weights.h5", "m.json"),
        ("model.weights.h5", "config.json"),
    ],
)
def test_what_lies_beside_weights(tmp_path: Path, weights: str, beside: str) -> None:
    (tmp_path / weights).write_bytes(b"")
    file = LocalFile(str(tmp_path / weights))
    assert architecture_beside(file) is None
    (tmp_path / beside).write_text('{"epochs": 3}')
    assert architecture_beside(file) is None
    (tmp_path / beside).write_text('{"class_name": "Functional", "config": {}}')
    assert architecture_beside(file) == str(tmp_path / beside)
    (tmp_path / beside).rename(tmp_path / "other.json")
    assert architecture_beside(file) is None
