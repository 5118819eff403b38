"""Checkpoints by objects or by names, with or without their data files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

import bnstat
from bnstat.errors import DamagedError, NotFoundError
from bnstat.model import ROLES
from tests.builders import named, tables
from tests.builders.oracle import assert_layers


class Norm(tf.Module):
    def __init__(self, arrays: dict[str, Any]) -> None:
        super().__init__()
        for role, array in arrays.items():
            setattr(self, role, tf.Variable(array, name=f"net/{role}"))


@pytest.fixture
def by_objects(tmp_path: Path) -> Path:
    tf.train.Checkpoint(norm=Norm(named.layer(1))).write(str(tmp_path / "m"))
    return tmp_path / "m"


@pytest.fixture
def by_names(tmp_path: Path) -> Path:
    arrays = {f"net/bn/{role}": array for role, array in named.layer(1).items()}
    return named.save(tmp_path / "m", arrays)


def test_formats(by_objects: Path, tmp_path: Path) -> None:
    assert bnstat.load(by_objects).source.format == "tf2-checkpoint"
    prefix = named.save(tmp_path / "n", {"x": np.ones(2)})
    assert bnstat.load(prefix).source.format == "tf1-checkpoint"


def test_layers_are_named_by_keys_without_the_data(by_objects: Path) -> None:
    assert bnstat.load(by_objects, values=False)["net"].channels == 4
    Path(f"{by_objects}.data-00000-of-00001").unlink()
    model = bnstat.load(by_objects, values=False)
    assert [layer.name for layer in model] == ["norm"]
    assert any("named by their checkpoint keys" in note for note in model.notes)
    with pytest.raises(NotFoundError, match="data file is missing"):
        bnstat.load(by_objects)


def test_a_damaged_object_graph(by_objects: Path) -> None:
    data = Path(f"{by_objects}.data-00000-of-00001")
    whole = bytearray(data.read_bytes())
    whole[-20] ^= 1
    data.write_bytes(whole)
    with pytest.raises(DamagedError, match="fails its checksum"):
        bnstat.load(by_objects)


@pytest.mark.parametrize("value", [np.int64(12), np.int32(12)])
def test_the_global_step(tmp_path: Path, value: Any) -> None:
    tensors = {f"bn/{role}": array for role, array in named.layer(1).items()}
    prefix = named.save(tmp_path / "m", {**tensors, "global_step": value})
    assert bnstat.load(prefix).source.step == 12


@pytest.mark.parametrize("value", [np.float32(3), np.ones(2, np.int64), b"text"])
def test_invalid_global_steps(tmp_path: Path, value: Any) -> None:
    prefix = named.save(tmp_path / "m", {"global_step": value})
    assert bnstat.load(prefix).source.step is None


def test_an_unreadable_graph_is_ignored(by_names: Path) -> None:
    arrays = named.layer(1)
    for damage in (b"", b"\xff\xff\xff", b"version https://git-lfs.github.com/spec/v1\n"):
        Path(f"{by_names}.meta").write_bytes(damage)
        assert_layers(bnstat.load(by_names), {"net/bn": arrays})


@pytest.mark.parametrize("scope", [b"a\x1b[31m\n\xe2\x80\xae/bn", b"\xe9\xff"])
def test_names_with_control_characters_or_not_utf8(tmp_path: Path, scope: bytes) -> None:
    data = np.ones(3, np.float32).tobytes()
    stored = {b"": tables.header()}
    for at, role in enumerate(ROLES):
        stored[scope + b"/" + role.encode()] = tables.entry(data, shape=[3], offset=12 * at)
    (tmp_path / "m.index").write_bytes(tables.table(stored))
    (tmp_path / "m.data-00000-of-00001").write_bytes(data * 4)
    (layer,) = bnstat.load(tmp_path / "m")
    assert layer.name == scope.decode("utf-8", "surrogateescape")
    assert layer.gamma is not None
