"""V1 checkpoints, which TensorFlow still writes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

import bnstat
from bnstat.errors import BnstatError, DamagedError, NotFoundError
from bnstat.formats.contents import Contents, Reading
from bnstat.formats.locate import locate
from bnstat.formats.protobuf.wire import field
from bnstat.formats.tensorflow.detection import is_v1
from bnstat.model import Source
from bnstat.storage.local import LocalFile
from tests.builders import tables
from tests.builders.effort import bounded
from tests.builders.graph_mode import layers_of, save_graph
from tests.builders.oracle import assert_as_tensorflow_reads, assert_layers, same_bits

v1 = tf.compat.v1
pytestmark = pytest.mark.filterwarnings("ignore:.*is deprecated:UserWarning")

TYPES = ["float32", "float64", "int32", "uint8", "int16", "int8", "int64"]
MORE_TYPES = ["bool", "float16", "qint8", "quint8", "qint32"]


def save(path: Path, parts: list[tuple[str, str, Any]]) -> Path:
    """Save (name, slice, tensor) parts in one V1 file."""
    names, slices, tensors = zip(*parts, strict=True)
    tf.raw_ops.SaveSlices(
        filename=str(path),
        tensor_names=list(names),
        shapes_and_slices=list(slices),
        data=[tf.constant(tensor) for tensor in tensors],
    )
    return path


def contents(path: Path | str) -> Contents:
    source = Source(str(path), "", None, None)
    return locate(str(path)).default.open(source, Reading())


def assert_holds(path: Path, expected: Mapping[str, Any]) -> None:
    variables = contents(path).variables
    assert set(variables) == set(expected)
    for name, array in expected.items():
        assert variables[name].shape == array.shape
        assert same_bits(variables[name].read(), array), name


@pytest.mark.parametrize("dtype", TYPES)
def test_types(tmp_path: Path, dtype: str) -> None:
    random = np.random.default_rng(1)
    array = (random.random((3, 4)) * 100 - 50).astype(dtype)
    path = save(tmp_path / "m", [("a/b", "", array), ("scalar", "", array[0, 0])])
    assert is_v1(LocalFile(str(path)))
    assert_holds(path, {"a/b": array, "scalar": array[0, 0]})


@pytest.mark.parametrize("dtype", MORE_TYPES)
def test_types_that_tensorflow_cannot_read(tmp_path: Path, dtype: str) -> None:
    plain = dtype.removeprefix("q")
    array = np.array([0, 1, 1, 0, 1]).astype(plain)
    tensor = tf.bitcast(tf.constant(array), getattr(tf, dtype)) if plain != dtype else array
    path = save(tmp_path / "m", [("x", "", tensor)])
    assert same_bits(contents(path).variables["x"].read(), array)


def test_odd_floats(tmp_path: Path) -> None:
    bits = np.array([0x7FC00001, 0xFFC12345, 0x7F800000, 0x80000000, 1], np.uint32)
    array = bits.view(np.float32)
    assert_holds(save(tmp_path / "m", [("x", "", array)]), {"x": array})


def test_slices_that_tensorflow_cannot_assemble(tmp_path: Path) -> None:
    whole = np.arange(20, dtype=np.float32).reshape(5, 4)
    parts = [("k", f"5 4 {at},{size}:-", whole[at : at + size]) for at, size in ((0, 2), (2, 3))]
    assert_holds(save(tmp_path / "m", parts), {"k": whole})


def test_slices_in_two_shards(tmp_path: Path) -> None:
    whole = np.arange(20, dtype=np.float32).reshape(5, 4)
    for shard, (at, size) in enumerate(((0, 2), (2, 3))):
        name = f"m-{shard:05d}-of-00002"
        parts = [("k", f"5 4 {at},{size}:-", whole[at : at + size]), (f"own{shard}", "", whole)]
        save(tmp_path / name, parts)
    expected = {"k": whole, "own0": whole, "own1": whole}
    for name in ("m", "m-00000-of-00002", "m-00001-of-00002", "m-?????-of-00002"):
        assert_holds(tmp_path / name, expected)
    (tmp_path / "m-00001-of-00002").unlink()
    with pytest.raises(
        NotFoundError, match="m-00001-of-00002: this shard of the checkpoint is missing"
    ):
        bnstat.load(tmp_path / "m")


@pytest.mark.parametrize("shards", ["00001-of-99999", "99999-of-99999"])
def test_a_name_that_claims_many_shards(tmp_path: Path, shards: str) -> None:
    path = save(tmp_path / f"m-{shards}", [("k", "", np.zeros(3))])
    with bounded(), pytest.raises(NotFoundError, match="this shard of the checkpoint is missing"):
        bnstat.load(path)


def test_contradictory_shards(tmp_path: Path) -> None:
    save(tmp_path / "m-00000-of-00002", [("k", "", np.zeros(3))])
    save(tmp_path / "m-00001-of-00002", [("k", "", np.zeros(4))])
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
    name = "m-7-00000-of-00001" if sharded else "m-7"
    assert_as_tensorflow_reads(model, tmp_path / name)
    assert_layers(bnstat.load(tmp_path), layers_of(values, ["batch_normalization", "bn"]))


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
        contents(tmp_path / "m").variables["x"].read()
