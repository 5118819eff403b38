"""Architectures passed beside weights, compared with the live models."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import keras
import pytest

import bnstat
from bnstat.errors import BnstatError, DamagedError, NotFoundError
from bnstat.formats.keras.config import architecture_beside, read_architecture
from bnstat.storage.local import LocalFile
from tests.builders.keras_models import FUNCTIONAL, functional, randomised, roles_of
from tests.builders.oracle import assert_layers
from tests.formats.keras.saved import (
    LIBRARIES,
    saved_architecture,
    saved_weights,
    sequential,
    with_norms,
    wrapped,
    wrapped_norms,
)


@pytest.fixture(scope="module", params=LIBRARIES)
def net(request: pytest.FixtureRequest) -> tuple[ModuleType, Any]:
    library = LIBRARIES[request.param]
    return library, functional(library)


def assert_is(model: bnstat.Model, live: Mapping[str, Any]) -> None:
    """Compare a model's layers with the live ones: order, names, roles, settings and arrays."""
    assert [layer.name.rpartition("/")[2] for layer in model] == list(live)
    pairs = [*zip(model, live.values(), strict=True)]
    assert_layers(model, {layer.name: roles_of(own) for layer, own in pairs})
    for layer, own in pairs:
        axis = own.axis[0] if isinstance(own.axis, list | tuple) else own.axis
        assert (layer.epsilon, layer.momentum, layer.axis) == (own.epsilon, own.momentum, axis)
        assert layer.evidence == "config"
    assert not model.notes


@pytest.mark.parametrize(
    ("form", "kind"),
    [
        *((form, "to_json") for form in (".weights.h5", ".h5", "sharded", "checkpoint")),
        *((".weights.h5", kind) for kind in ("dumped", "full.keras", "full.h5")),
    ],
)
def test_names_roles_settings_order_and_arrays(
    net: tuple[ModuleType, Any], tmp_path: Path, form: str, kind: str
) -> None:
    path = saved_weights(*net, tmp_path, form)
    config = saved_architecture(net[1], tmp_path, kind)
    model = bnstat.load(path, config=config)
    assert [layer.name for layer in model] == list(FUNCTIONAL)
    assert_is(model, with_norms(net[1]))


def test_the_config_of_an_unpacked_archive(net: tuple[ModuleType, Any], tmp_path: Path) -> None:
    path = saved_weights(*net, tmp_path, ".weights.h5")
    zipfile.ZipFile(saved_architecture(net[1], tmp_path, "full.keras")).extractall(tmp_path / "x")
    for config in (tmp_path / "x", tmp_path / "x/config.json"):
        assert_is(bnstat.load(path, config=config), with_norms(net[1]))


@pytest.mark.parametrize("form", [".weights.h5", ".h5"])
@pytest.mark.parametrize("library", LIBRARIES.values(), ids=LIBRARIES)
def test_wrapped_layers(tmp_path: Path, library: ModuleType, form: str) -> None:
    net = wrapped(library)
    path = saved_weights(library, net, tmp_path, form)
    config = saved_architecture(net, tmp_path, "to_json")
    assert_is(bnstat.load(path, config=config), wrapped_norms(net))


@pytest.mark.parametrize("form", [".weights.h5", ".h5"])
@pytest.mark.parametrize("library", LIBRARIES.values(), ids=LIBRARIES)
@pytest.mark.parametrize("is_functional", [True, False])
def test_a_model_built_once_more_is_matched_by_order(tmp_path, library, form, is_functional):
    def build() -> Any:
        of = library.layers
        norms = of.BatchNormalization(scale=False), of.BatchNormalization()
        layers = [of.Dense(3), norms[0], of.Dense(3), norms[1]]
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
    live = zip(with_norms(first), with_norms(second).values(), strict=True)
    assert_layers(model, {name: roles_of(own) for name, own in live})
    if library is keras or form == ".h5":
        assert [note.partition(":")[2] for note in model.notes] == [" matched by order"]


def test_an_architecture_in_the_file_takes_precedence(
    net: tuple[ModuleType, Any], tmp_path: Path
) -> None:
    own = saved_architecture(net[1], tmp_path, "full.keras")
    other = tmp_path / "other.json"
    other.write_text(sequential(net[0], net[0].layers.Dense(2)).to_json())
    model = bnstat.load(own, config=other)
    assert [layer.name for layer in model] == list(FUNCTIONAL)
    assert model.notes == (f"{other} is ignored: the model file contains its own architecture",)


@pytest.mark.parametrize(
    ("content", "error", "message"),
    [
        (b"\x89PNG....", BnstatError, "does not contain the architecture"),
        (b"{", DamagedError, "not valid JSON"),
        (b"{}", BnstatError, "lists no layers"),
        (b'{"class_name": "Sequential", "config": {"layers": []}}', BnstatError, "lists no layers"),
        (b'{"class_name": "MyModel", "config": {"units": 3}}', BnstatError, "lists no layers"),
        (b'{"a":' * 5000 + b"1" + b"}" * 5000, BnstatError, "nested"),
        (b'{"class_name": "M", "config": {"layers": [' * 200 + b"]}}" * 200, BnstatError, "nested"),
    ],
)
def test_invalid_architectures(
    tmp_path: Path, content: bytes, error: type[BnstatError], message: str
) -> None:
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(error, match=message):
        read_architecture(str(tmp_path / "a.json"))
    with pytest.raises(NotFoundError):
        read_architecture(str(tmp_path / "missing.json"))


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
def test_an_architecture_beside_weights(tmp_path: Path, weights: str, beside: str) -> None:
    (tmp_path / weights).write_bytes(b"")
    file = LocalFile(str(tmp_path / weights))
    assert architecture_beside(file) is None
    (tmp_path / beside).write_text('{"epochs": 3}')
    assert architecture_beside(file) is None
    (tmp_path / beside).write_text('{"class_name": "Functional", "config": {}}')
    assert architecture_beside(file) == str(tmp_path / beside)
    (tmp_path / beside).rename(tmp_path / "other.json")
    assert architecture_beside(file) is None
