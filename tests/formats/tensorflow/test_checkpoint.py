"""Checkpoints by objects or by names, in bundles or V1, with or without their data files."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

import bnstat
from bnstat.errors import BnstatError, DamagedError, NotFoundError
from bnstat.formats.protobuf.wire import field
from bnstat.formats.tensorflow.detection import is_v1
from bnstat.model import ROLES
from bnstat.storage.local import LocalFile
from tests.builders import named, tables
from tests.builders.effort import bounded
from tests.builders.graph_mode import layers_of, save_graph
from tests.builders.oracle import assert_as_tensorflow_reads, assert_layers, same_bits

v1 = tf.compat.v1
pytestmark = pytest.mark.filterwarnings("ignore:.*is deprecated:UserWarning")


@pytest.fixture
def by_objects(tmp_path: Path) -> Path:
    arrays = named.layer(1).items()
    variables = {role: tf.Variable(array, name=f"net/{role}") for role, array in arrays}
    tf.train.Checkpoint(norm=tf.train.Checkpoint(**variables)).write(str(tmp_path / "m"))
    return tmp_path / "m"


def test_layers_are_named_by_keys_without_the_data(by_objects: Path) -> None:
    model = bnstat.load(by_objects, values=False)
    assert (model.source.format, model["net"].channels) == ("tf2-checkpoint", 4)
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


@pytest.mark.parametrize(
    ("value", "step"),
    [(np.int64(12), 12), (np.int32(12), 12), *((x, None) for x in (np.float32(3), [1, 1], b"s"))],
)
def test_the_global_step(tmp_path: Path, value: Any, step: int | None) -> None:
    prefix = named.save(tmp_path / "m", {"x": np.ones(2), "global_step": value})
    source = bnstat.load(prefix).source
    assert (source.format, source.step) == ("tf1-checkpoint", step)


def test_an_unreadable_graph_is_ignored(tmp_path: Path) -> None:
    arrays = named.layer(1)
    prefix = named.save(tmp_path / "m", {f"net/bn/{role}": arrays[role] for role in ROLES})
    for damage in (b"", b"\xff\xff\xff", b"version https://git-lfs.github.com/spec/v1\n"):
        Path(f"{prefix}.meta").write_bytes(damage)
        assert_layers(bnstat.load(prefix), {"net/bn": arrays})


@pytest.mark.parametrize("scope", [b"a\x1b[31m\n\xe2\x80\xae/bn", b"\xe9\xff"])
def test_names_with_control_characters_or_not_utf8(tmp_path: Path, scope: bytes) -> None:
    data = np.ones(3, np.float32).tobytes()
    entry = tables.entry(data, shape=[3])
    stored = {scope + b"/" + role.encode(): entry for role in ROLES[2:]}
    (tmp_path / "m.index").write_bytes(tables.table({b"": tables.header(), **stored}))
    (tmp_path / "m.data-00000-of-00001").write_bytes(data * 2)
    (layer,) = bnstat.load(tmp_path / "m")
    assert layer.name == scope.decode("utf-8", "surrogateescape")
    assert layer.moving_mean is not None


# V1 checkpoints, which TensorFlow still writes

TYPES = ["float32", "float64", "int32", "uint8", "int16", "int8", "int64",
         "bool", "float16", "qint8", "quint8", "qint32"]  # fmt: skip
"""The last five cannot be read by TensorFlow."""


def assert_holds(path: Path, expected: Mapping[str, Any]) -> None:
    variables = bnstat.load(path).stored
    assert set(variables) == set(expected)
    for name, array in expected.items():
        assert same_bits(variables[name].read(), array), name


@pytest.mark.parametrize("dtype", TYPES)
def test_types_in_v1(tmp_path: Path, dtype: str) -> None:
    plain = dtype.removeprefix("q")
    array = (np.random.default_rng(1).random((3, 4)) * 100 - 50).astype(plain)
    tensor = array if plain == dtype else tf.bitcast(array, getattr(tf, dtype))
    path = named.save_v1(tmp_path / "m", [("a/b", "", tensor), ("scalar", "", tensor[0, 0])])
    assert is_v1(LocalFile(str(path)))
    assert_holds(path, {"a/b": array, "scalar": array[0, 0]})


def test_odd_floats(tmp_path: Path) -> None:
    bits = np.array([0x7FC00001, 0xFFC12345, 0x7F800000, 0x80000000, 1], np.uint32)
    array = bits.view(np.float32)
    assert_holds(named.save_v1(tmp_path / "m", [("x", "", array)]), {"x": array})


def test_slices_in_two_shards(tmp_path: Path) -> None:
    whole = np.arange(20, dtype=np.float32).reshape(5, 4)
    for shard, (at, size) in enumerate(((0, 2), (2, 3))):
        name = f"m-{shard:05d}-of-00002"
        parts = [("k", f"5 4 {at},{size}:-", whole[at : at + size]), (f"own{shard}", "", whole)]
        named.save_v1(tmp_path / name, parts)
    expected = {"k": whole, "own0": whole, "own1": whole}
    for name in ("m", "m-00000-of-00002", "m-00001-of-00002", "m-?????-of-00002"):
        assert_holds(tmp_path / name, expected)
    (tmp_path / "m-00001-of-00002").unlink()
    with pytest.raises(NotFoundError, match="m-00001-of-00002: this shard"):
        bnstat.load(tmp_path / "m")


def test_a_name_that_claims_many_shards(tmp_path: Path) -> None:
    path = named.save_v1(tmp_path / "m-00001-of-99999", [("k", "", np.zeros(3))])
    with bounded(), pytest.raises(NotFoundError, match="this shard of the checkpoint is missing"):
        bnstat.load(path)


def test_contradictory_shards(tmp_path: Path) -> None:
    named.save_v1(tmp_path / "m-00000-of-00002", [("k", "", np.zeros(3))])
    named.save_v1(tmp_path / "m-00001-of-00002", [("k", "", np.zeros(4))])
    with pytest.raises(DamagedError, match="another shape or dtype in another shard"):
        bnstat.load(tmp_path / "m")


@pytest.mark.parametrize("sharded", [False, True])
@pytest.mark.parametrize("reader", ["native", "tensorflow"])
def test_a_graph_saved_by_its_saver(tmp_path: Path, sharded: bool, reader: Any) -> None:
    def build() -> None:
        x = v1.placeholder(tf.float32, [None, 4, 4, 3])
        x = v1.layers.batch_normalization(x)
        v1.layers.batch_normalization(x, name="bn", scale=False)

    values = save_graph(tmp_path / "m", build, step=7, sharded=sharded, write_version=1)
    model = bnstat.load(tmp_path / "m-7", reader=reader)
    assert model.source.format == "tf1-checkpoint-v1"
    assert model.source.step == 7
    assert_layers(model, layers_of(values, ["batch_normalization", "bn"]))
    assert_as_tensorflow_reads(model, tmp_path / ("m-7-00000-of-00001" if sharded else "m-7"))
    assert len(bnstat.load(tmp_path)) == 2


def _meta(*sizes: int, slices: bytes = b"") -> bytes:
    dims = b"".join(field(2, b"\x08" + tables.varint(size & (1 << 64) - 1)) for size in sizes)
    tensor = field(1, b"x") + field(2, dims) + b"\x18\x01" + slices
    return field(1, field(1, tensor))


@pytest.mark.parametrize(
    ("meta", "message"),
    [
        (_meta(-1), "impossible shape"),
        (_meta(1 << 40), "do not make up the whole"),
        (_meta(3, slices=field(4, field(1, b""))), "slice of this tensor is missing"),
        (_meta(3, slices=field(4, b"")), "slice of this tensor is missing"),
        (b"\x0a\x05abc", "damaged"),
    ],
)
def test_hostile_headers(tmp_path: Path, meta: bytes, message: str) -> None:
    (tmp_path / "m").write_bytes(tables.table({b"": meta}))
    with pytest.raises(BnstatError, match=message):
        bnstat.load(tmp_path / "m").stored["x"].read()
