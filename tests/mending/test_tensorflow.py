"""Copies of what TensorFlow writes: TensorFlow restores the new values from them."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from tensorflow.core.protobuf.tensor_bundle_pb2 import BundleEntryProto

import bnstat
from bnstat.formats.tensorflow.sstable import Table
from bnstat.storage.local import LocalFile
from tests.builders import named, tables
from tests.builders.graph_mode import save_graph
from tests.builders.mended import NewValues, differing, held, new_values
from tests.builders.oracle import same_bits
from tests.mending.networks import assert_restored, by_key, network, restoring
from tests.mending.originals import mended

v1 = tf.compat.v1


@pytest.mark.parametrize("sharded", [False, True])
@pytest.mark.parametrize("version", [1, 2])
def test_checkpoints_of_tensorflow_1(tmp_path: Path, version: int, sharded: bool) -> None:
    original = save_graph(
        tmp_path / "m", network, step=7, sharded=sharded, write_version=version,
        write_meta_graph=True,
    )  # fmt: skip
    values = mended(tmp_path / "m-7", tmp_path / "c-9")
    # Shards of version 1 go by a pattern.
    shards = "-?????-of-00001" if sharded and version == 1 else ""
    assert_restored(restoring(tmp_path / f"c-9{shards}"), original, values)
    assert (tmp_path / "m-7.meta").read_bytes() == (tmp_path / "c-9.meta").read_bytes()
    changed = differing(tmp_path / "m-7", tmp_path / "c-9")
    if version == 2:
        assert set(changed) == {".data-00000-of-00001", ".index"}
        data = held(bnstat.load(tmp_path / "m-7"))["m-7.data-00000-of-00001"]
        assert changed[".data-00000-of-00001"] <= data
        assert_index_differs_in_checksums(
            tmp_path / "m-7.index", tmp_path / "c-9.index", changed[".index"]
        )
    else:
        assert set(changed) == {"-00000-of-00001" if sharded else ""}


def assert_stored(prefix: Path, values: NewValues) -> None:
    """Assert that TensorFlow reads these values, joined if the variables are partitioned."""
    for key, array in by_key(values).items():
        (restored,) = tf.raw_ops.RestoreV2(
            prefix=str(prefix),
            tensor_names=[key],
            shape_and_slices=[""],
            dtypes=[tf.as_dtype(array.dtype)],
        )
        assert same_bits(restored.numpy(), array)


def block_checksums(table: Path) -> set[int]:
    """Return the offsets of the checksums of a table's blocks."""
    blocks = Table(LocalFile(str(table))).blocks
    return {at for _, offset, size in blocks for at in range(offset + size + 1, offset + size + 5)}


def assert_index_differs_in_checksums(original: Path, copy: Path, differences: set[int]) -> None:
    """Assert that the entries are equal except for their checksums, as are the other bytes."""
    old, new = (dict(Table(LocalFile(str(path))).items()) for path in (original, copy))
    assert list(old) == list(new)
    allowed = block_checksums(original)
    data = original.read_bytes()
    for key in old:
        if not key:
            assert old[key] == new[key]
            continue
        before, after = BundleEntryProto.FromString(old[key]), BundleEntryProto.FromString(new[key])
        if before.crc32c != after.crc32c:
            field = data.index(old[key]) + old[key].rindex(before.crc32c.to_bytes(4, "little"))
            allowed |= set(range(field, field + 4))
            after.crc32c = before.crc32c
        assert before == after
    assert differences <= allowed


def test_a_version_1_checkpoint_changes_in_values_and_block_checksums(tmp_path: Path) -> None:
    save_graph(tmp_path / "m", network, write_version=1)
    mended(tmp_path / "m", tmp_path / "c")
    data = (tmp_path / "m").read_bytes()
    allowed = block_checksums(tmp_path / "m")
    for layer in bnstat.load(tmp_path / "m"):
        for role in layer.variables:
            at = data.index(np.asarray(layer.array(role)).tobytes())
            allowed |= set(range(at, at + 24))
    (changed,) = differing(tmp_path / "m", tmp_path / "c").values()
    assert changed <= allowed


def snappy(text: bytes) -> bytes:
    """A snappy block of literals."""
    pieces = [text[at : at + 60] for at in range(0, len(text), 60)]
    return tables.varint(len(text)) + b"".join(
        bytes([len(piece) - 1 << 2]) + piece for piece in pieces
    )


@pytest.mark.parametrize("version", [1, 2])
def test_compressed_blocks(tmp_path: Path, version: int) -> None:
    original = save_graph(tmp_path / "m", network, write_version=version)
    index = tmp_path / ("m" if version == 1 else "m.index")
    entries = sorted(dict(Table(LocalFile(str(index))).items()).items())
    chunks = [entries[at : at + 3] for at in range(0, len(entries), 3)]
    index.write_bytes(
        tables.assemble(
            (chunk[-1][0], tables.on_disk(snappy(tables.block(chunk)), 1)) for chunk in chunks
        )
    )
    values = mended(tmp_path / "m", tmp_path / "c")
    assert_restored(restoring(tmp_path / "c"), original, values)


def save_16_bit_floats(path: Path, _: int) -> None:
    roles = ("gamma", "beta", "moving_mean", "moving_variance")
    tf.raw_ops.SaveSlices(
        filename=str(path),
        tensor_names=[f"bn/{role}" for role in roles],
        shapes_and_slices=[""] * 4,
        data=[tf.constant(np.full(5, number, np.float16)) for number in range(4)],
    )


def save_partitions(path: Path, version: int) -> None:
    def build() -> None:
        with v1.variable_scope("p", partitioner=v1.fixed_size_partitioner(3)):
            v1.layers.batch_normalization(v1.placeholder(tf.float32, [None, 8]), name="bn")

    save_graph(path, build, write_version=version)


@pytest.mark.parametrize(
    ("save", "version"), [(save_16_bit_floats, 1), (save_partitions, 1), (save_partitions, 2)]
)
def test_other_types_and_partitions(
    save: Callable[[Path, int], None], version: int, tmp_path: Path
) -> None:
    save(tmp_path / "m", version)
    assert_stored(tmp_path / "c", mended(tmp_path / "m", tmp_path / "c"))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64", "float8_e5m2"])
def test_types_in_shards(tmp_path: Path, dtype: str) -> None:
    kind = tf.as_dtype(dtype).as_numpy_dtype
    shards = [
        {f"bn{number}/{role}": array.astype(kind) for role, array in named.layer(number).items()}
        for number in range(3)
    ]
    named.save_shards(tmp_path / "m", shards)
    assert_stored(tmp_path / "c", mended(tmp_path / "m", tmp_path / "c"))
    changed = differing(tmp_path / "m", tmp_path / "c")
    places = held(bnstat.load(tmp_path / "m"))
    for name in (f".data-0000{number}-of-00003" for number in range(3)):
        assert changed[name] <= places[f"m{name}"]


def test_a_training_folder(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    for step in (1, 2, 3):
        original = save_graph(tmp_path / "run/m", network, step=step)
    (tmp_path / "run/checkpoint").write_text('model_checkpoint_path: "m-2"\n')
    (tmp_path / "run/events.out.tfevents.1").write_bytes(b"events")
    values = mended(tmp_path / "run", tmp_path / "c")
    assert sorted(path.name for path in (tmp_path / "c").iterdir()) == [
        "checkpoint", "m-2.data-00000-of-00001", "m-2.index",
    ]  # fmt: skip
    latest = tf.train.latest_checkpoint(str(tmp_path / "c"))
    assert latest == str(tmp_path / "c/m-2")
    assert_restored(restoring(latest), original, values)
    bnstat.apply(tmp_path / "run", values, tmp_path / "d", step=3)
    assert tf.train.latest_checkpoint(str(tmp_path / "d")) == str(tmp_path / "d/m-3")


def test_a_saved_model_of_tensorflow_1_and_a_version_of_a_serving_folder(tmp_path: Path) -> None:
    serving = tmp_path / "serving"
    original = save_graph(tmp_path / "m", network, saved_model=serving / "1")
    shutil.copytree(serving / "1", serving / "2")
    (serving / "2/assets").mkdir()
    (serving / "2/assets/vocabulary.txt").write_text("words")
    values = mended(serving, tmp_path / "c")
    assert [path.name for path in (tmp_path / "c").iterdir()] == ["2"]
    assert_restored(
        lambda session: v1.saved_model.load(session, ["serve"], str(tmp_path / "c/2")),
        original,
        values,
    )
    assert set(differing(serving / "2", tmp_path / "c/2")) == {
        "variables/variables.data-00000-of-00001", "variables/variables.index",
    }  # fmt: skip


def test_an_object_based_checkpoint(tmp_path: Path) -> None:
    shared = tf.Variable(np.ones(4, np.float32))

    def layer() -> tf.Module:
        module = tf.Module()
        module.gamma = shared
        for role, seed in (("beta", 1), ("moving_mean", 2), ("moving_variance", 3)):
            setattr(module, role, tf.Variable(np.full(4, seed, np.float32)))
        return module

    a, b = layer(), layer()
    prefix = tf.train.Checkpoint(a=a, b=b).write(str(tmp_path / "m"))
    values = new_values(bnstat.load(prefix))
    assert len(values) == 2
    mended(Path(prefix), tmp_path / "c")
    tf.train.Checkpoint(a=a, b=b).read(str(tmp_path / "c")).assert_consumed()
    for module, roles in zip((a, b), values.values(), strict=True):
        for role, array in roles.items():
            assert same_bits(getattr(module, role).numpy(), array)
    first, second = values.values()
    second["gamma"] = first["gamma"] + np.float32(1)
    with pytest.raises(bnstat.BnstatError, match="shares its variable with"):
        bnstat.apply(prefix, values, tmp_path / "d")
    assert not list(tmp_path.glob("d*"))
