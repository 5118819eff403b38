"""Variables of TensorFlow 1 that a graph holds in parts, and a checkpoint as one tensor."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

import bnstat
from bnstat.errors import UnsupportedError

v1 = tf.compat.v1
rng = np.random.default_rng(8)
X = rng.normal(2, 3, (96, 4)).astype(np.float32)
STORED = {
    "dense/kernel": rng.normal(0, 1, (4, 6)).astype(np.float32),
    "bn/gamma": rng.uniform(1, 2, 6).astype(np.float32),
    "bn/beta": rng.normal(0, 1, 6).astype(np.float32),
    "bn/moving_mean": np.zeros(6, np.float32),
    "bn/moving_variance": np.ones(6, np.float32),
    "after/kernel": rng.normal(0, 1, (6, 5)).astype(np.float32),
    "last/gamma": np.ones(5, np.float32),
    "last/beta": np.zeros(5, np.float32),
    "last/moving_mean": np.zeros(5, np.float32),
    "last/moving_variance": np.ones(5, np.float32),
}


def variable(name: str, resource: bool) -> tf.Tensor:
    """A variable in two or three unequal parts."""
    array = STORED[name]
    return tf.convert_to_tensor(
        v1.get_variable(
            name,
            array.shape,
            initializer=lambda shape, dtype, partition_info=None: tf.constant(
                part_of(array, shape, partition_info)
            ),
            partitioner=v1.fixed_size_partitioner(2 + array.ndim % 2, array.ndim - 1),
            use_resource=resource,
        )
    )


def part_of(array: np.ndarray, shape: tuple[int, ...], info: object) -> np.ndarray:
    places = zip(info.var_offset, shape, strict=True)
    return array[tuple(slice(start, start + size) for start, size in places)]


def norm(x: tf.Tensor, name: str, resource: bool) -> tf.Tensor:
    roles = ("moving_mean", "moving_variance", "beta", "gamma")
    return v1.nn.batch_normalization(
        x, *(variable(f"{name}/{role}", resource) for role in roles), 1e-3
    )


def save(path: Path, resource: bool) -> None:
    with tf.Graph().as_default(), v1.Session() as session:
        x = v1.placeholder(tf.float32, [None, 4], "images")
        first = norm(x @ variable("dense/kernel", resource), "bn", resource)
        second = norm(first @ variable("after/kernel", resource), "last", resource)
        tf.identity(second, "answer")
        session.run(v1.global_variables_initializer())
        v1.train.Saver().save(session, str(path))


@pytest.mark.parametrize("resource", [False, True])
def test_each_part_has_its_slice(tmp_path: Path, resource: bool) -> None:
    path, copy = tmp_path / "model", tmp_path / "copy" / "model"
    copy.parent.mkdir()
    save(path, resource)
    found = {each.layer: each for each in bnstat.drift(path, X).layers}
    entering = X.astype(np.float64) @ STORED["dense/kernel"]
    normal = entering / np.sqrt(1 + 1e-3) * STORED["bn/gamma"] + STORED["bn/beta"]
    after = normal @ STORED["after/kernel"]
    for name, x in (("bn", entering), ("last", after)):
        np.testing.assert_allclose(found[name].mean, x.mean(0), rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(found[name].variance, x.var(0), rtol=1e-4)
    bnstat.recalibrate(path, X, copy, exact=True)
    mended = tf.train.load_checkpoint(str(copy))
    mean = mended.get_tensor("bn/moving_mean")
    np.testing.assert_allclose(mean, entering.mean(0), rtol=1e-4, atol=1e-5)
    assert (mended.get_tensor("bn/gamma") == STORED["bn/gamma"]).all()


@pytest.mark.parametrize("spec", [b"", b"6 0,2:0,2", b"6 5,2", b"6 x"])
def test_parts_that_do_not_fit_are_refused(tmp_path: Path, spec: bytes) -> None:
    path = tmp_path / "model"
    save(path, False)
    meta = v1.MetaGraphDef.FromString((tmp_path / "model.meta").read_bytes())
    (specs,) = (n for n in meta.graph_def.node if n.name == "save/SaveV2/shape_and_slices")
    tensor = specs.attr["value"].tensor
    tensor.string_val[:] = [spec] * len(tensor.string_val)
    (tmp_path / "model.meta").write_bytes(meta.SerializeToString())
    with pytest.raises(UnsupportedError, match=r"shape \[.*the graph wants .*SavedModel"):
        bnstat.drift(path, X)
