"""The bytes at the extents of a variable are the array that TensorFlow or h5py reads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import tensorflow as tf

from bnstat.errors import DamagedError
from bnstat.formats.contents import Reading
from bnstat.formats.hdf5.file import Hdf5
from bnstat.formats.locate import locate
from bnstat.model import BatchNorm, Model, Source, Variable
from bnstat.storage.files import Range
from bnstat.storage.local import LocalFile
from tests.builders import named
from tests.builders.memory import MemoryFile
from tests.builders.oracle import from_extents, same_bits

RANDOM = np.random.default_rng(5)
BIG = RANDOM.random((9, 10, 11)).astype(np.float32)


def variables(path: Path) -> dict[str, Variable]:
    """Return all variables of a file by key."""
    return dict(locate(str(path)).default.open(Source(str(path), ""), Reading()).variables)


@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16", "int64", "float8_e5m2"])
def test_a_bundle(tmp_path: Path, dtype: str) -> None:
    kind = tf.as_dtype(dtype).as_numpy_dtype
    tensors = {"a": np.arange(7).astype(kind), "b": np.array(3).astype(kind), "c": BIG.astype(kind)}
    prefix = named.save_shards(tmp_path / "m", [tensors, {"d": tensors["c"][2:]}])
    reader = tf.train.load_checkpoint(str(prefix))
    by_key = variables(prefix)
    for key in "abcd":
        assert len(by_key[key].extents()) == 1
        assert same_bits(from_extents(by_key[key]), reader.get_tensor(key))
    assert by_key["d"].extents()[0].file.name == "m.data-00001-of-00002"


@pytest.mark.parametrize("axis", [0, 1])
def test_a_partitioned_tensor(tmp_path: Path, axis: int) -> None:
    whole = RANDOM.random((6, 8)).astype(np.float32)
    specs = [["6 8 0,4:-", "6 8 4,2:-"], ["6 8 -:0,5", "6 8 -:5,3"]][axis]
    pieces = np.split(whole, [[4], [5]][axis], axis)
    prefix = named.save_slices(
        tmp_path / "m", [("w", spec, piece) for spec, piece in zip(specs, pieces, strict=True)]
    )
    variable = variables(prefix)["w"]
    assert len(variable.extents()) == 2
    assert same_bits(from_extents(variable), tf.train.load_checkpoint(str(prefix)).get_tensor("w"))


def test_the_extents_of_a_version_1_checkpoint_are_blocks(tmp_path: Path) -> None:
    tensors = {f"v{number}": RANDOM.random(300).astype(np.float32) for number in range(40)}
    path = named.save_v1(tmp_path / "m", [(name, "", each) for name, each in tensors.items()])
    for key, variable in variables(path).items():
        (extent,) = variable.extents()
        assert extent.part is None
        assert tensors[key].tobytes() in extent.read()


def hdf5(path: Path, data: Any, **options: Any) -> Variable:
    with h5py.File(path, "w") as file:
        file.create_dataset("a", data=data, **options)
    return Hdf5(LocalFile(str(path))).variables["a"]


@pytest.mark.parametrize(
    ("options", "count"),
    [
        ({"chunks": (3, 5, 11)}, 6),
        ({"chunks": (3, 5, 11), "compression": "gzip"}, 6),
        ({"chunks": (3, 5, 11), "fletcher32": True}, 6),
        ({"dtype": ">f4"}, 1),
    ],
    ids=str,
)
def test_hdf5_of_other_layouts(tmp_path: Path, options: dict[str, Any], count: int) -> None:
    extents = hdf5(tmp_path / "m.h5", BIG, **options).extents()
    assert [extent.part for extent in extents] == [None] * count


def test_hdf5_without_bytes(tmp_path: Path) -> None:
    assert hdf5(tmp_path / "m.h5", np.zeros((0, 3), "f4")).extents() == []
    assert hdf5(tmp_path / "t.h5", "text").extents() == []


@pytest.mark.parametrize("wrapped", [False, True])
def test_a_frozen_graph(tmp_path: Path, wrapped: bool) -> None:
    tensors = {"short": BIG[0, 0], "long": BIG, "single": BIG[0, :1, 0], "same": np.ones(50, "f4")}
    with tf.Graph().as_default() as graph:
        for name, value in tensors.items():
            tf.constant(value, name=name)
        message = graph.as_graph_def()
    same = message.node[3].attr["value"].tensor
    same.ClearField("tensor_content")
    same.float_val.append(1)
    if wrapped:
        message = tf.compat.v1.MetaGraphDef(graph_def=message)
    (tmp_path / "m.pb").write_bytes(message.SerializeToString())
    by_key = variables(tmp_path / "m.pb")
    for name in ("short", "long"):
        assert same_bits(from_extents(by_key[name]), tensors[name])
    # Their values are listed: a single one, and one that is repeated.
    for name in ("single", "same"):
        assert [extent.part for extent in by_key[name].extents()] == [None]
        assert by_key[name].read().tobytes() == tensors[name].tobytes()


class Remote(MemoryFile):
    """A file that refuses to read a range before its store, which is itself, fetched the range."""

    @property
    def store(self) -> Any:
        return self

    def prefetch(self, wanted: Any) -> None:
        self.fetched += wanted[self]

    def _read(self, offset: int, length: int) -> bytes:
        assert (offset, length) in self.fetched
        return super()._read(offset, length)


def test_a_model_is_fetched_before_it_is_read() -> None:
    file = Remote(BIG.tobytes())

    def variable(number: int) -> Variable:
        extent = Range(file, 40 * number, 40)
        functions = lambda: np.frombuffer(extent.read(), "f4"), lambda: [extent]
        return Variable(str(number), "", "float32", (10,), *functions)

    def layer(number: int) -> BatchNorm:
        return BatchNorm(str(number), {"beta": variable(number)}, undecided=[variable(number + 50)])

    model = Model(Source("", ""), [layer(0), layer(1), layer(2)], incomplete=[layer(3)])
    model.read(model.layers[1:2])
    assert [offset // 40 for offset, _ in file.fetched] == [1, 51]
    model.read()
    assert {offset // 40 for offset, _ in file.fetched} == {0, 1, 2, 3, 50, 51, 52, 53}
    for number, norm in enumerate([*model, *model.incomplete]):
        assert same_bits(norm.beta, BIG.ravel()[10 * number : 10 * number + 10])


def test_a_variable_whose_extents_are_unknown_can_be_read() -> None:
    def refuse() -> Any:
        raise DamagedError("there", "is nothing")

    variable = Variable("v", "v", "float32", (3,), lambda: np.zeros(3, "f4"), refuse)
    Model(Source("", ""), [BatchNorm("bn", {"beta": variable})]).read()
