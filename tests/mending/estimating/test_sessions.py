"""TensorFlow 1: sessions as models in memory, and variables that a graph holds in parts."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

import bnstat
from bnstat.errors import BnstatError, UnsupportedError
from tests.builders.graph_mode import save_graph

v1 = tf.compat.v1
X = np.random.default_rng(5).normal(2, 3, (96, 6)).astype(np.float32)


def norm(x: tf.Tensor, name: str, parts: int, resource: bool) -> tf.Tensor:
    with v1.variable_scope(
        name, partitioner=v1.fixed_size_partitioner(parts), use_resource=resource
    ):
        roles = ("moving_mean", "moving_variance", "beta", "gamma")
        values = [
            tf.convert_to_tensor(
                v1.get_variable(role, x.shape[1:], initializer=v1.random_uniform_initializer(1, 2))
            )
            for role in roles
        ]
    return v1.nn.batch_normalization(x, *values, 1e-3)


@pytest.fixture(params=[False, True], ids=["ref", "resource"])
def session(request: pytest.FixtureRequest) -> Iterator[v1.Session]:
    """Two norms with a product between them; the second's variables are in three parts."""
    with tf.Graph().as_default(), v1.Session() as session:
        x = v1.placeholder(tf.float32, [None, 6], "images")
        keep = v1.placeholder(tf.float32, [], "keep_prob")
        first = norm(x, "first", 1, request.param)
        kernel = v1.get_variable("kernel", [6, 5], use_resource=request.param)
        second = norm((first @ kernel) * keep, "second", 3, request.param)
        tf.identity(second, "answer")
        session.run(v1.global_variables_initializer())
        yield session


def test_a_variable_whose_shape_the_graph_leaves_open() -> None:
    with tf.Graph().as_default(), v1.Session() as session:
        norm(v1.placeholder(tf.float32, [None, 6]), "bn", 1, False)
        v1.Variable(v1.placeholder_with_default([1.0, 2.0], None), name="any", validate_shape=False)
        with pytest.raises(BnstatError, match="any: the variable has no value yet"):
            bnstat.load(session)
        session.run(v1.global_variables_initializer())
        assert bnstat.load(session).keys() == ["bn"]
        assert bnstat.load(session).stored["any"].shape == (2,)


def saved(session: v1.Session, path: Path) -> bnstat.Model:
    v1.train.Saver().save(session, str(path))
    return bnstat.load(path)


def test_it_is_what_its_saver_stores(session: v1.Session, tmp_path: Path) -> None:
    nodes = len(session.graph.as_graph_def().node)
    live = bnstat.load(session)
    arrays = {(layer.name, role): layer.array(role) for layer in live for role in layer.variables}
    assert len(session.graph.as_graph_def().node) == nodes
    assert live.source.writer == f"tensorflow {tf.__version__}"
    stored = saved(session, tmp_path / "model")
    assert [layer.name for layer in live] == [layer.name for layer in stored] == ["first", "second"]
    assert len(arrays) == sum(len(layer.variables) for layer in stored) == 8
    for layer in stored:
        assert layer.epsilon == live[layer.name].epsilon == pytest.approx(1e-3)
        for role, variable in layer.variables.items():
            assert live[layer.name].variables[role].key == variable.key
            assert live[layer.name].variables[role].dtype == variable.dtype
            found = arrays[layer.name, role]
            assert found.tobytes() == layer.array(role).tobytes()
            assert found.shape == variable.shape


def test_it_is_mended_in_place(session: v1.Session, tmp_path: Path) -> None:
    session.graph.finalize()
    before = bnstat.load(session)["second"].gamma
    bnstat.recalibrate(session, {"images": X}, exact=True, feeds={"keep_prob": 1})
    after = bnstat.load(session)
    np.testing.assert_allclose(after["first"].moving_mean, X.mean(0, np.float64), rtol=1e-5)
    np.testing.assert_allclose(after["first"].moving_variance, X.var(0, np.float64), rtol=1e-5)
    assert after["second"].gamma.tobytes() == before.tobytes()
    drift = bnstat.drift(session, {"images": X}, feeds={"keep_prob": 1})
    assert [each.layer for each in drift.layers] == ["first", "second"]
    assert drift.largest < 1e-6


def test_what_has_no_value_yet(session: v1.Session) -> None:
    other = v1.Session(graph=session.graph)
    model = bnstat.load(other)
    with pytest.raises(BnstatError, match=r"Session, first/gamma: the variable has no value yet"):
        model["first"].array("gamma")
    other.close()
    with pytest.raises(BnstatError, match=r"Session, first/gamma: .*closed"):
        model["first"].array("gamma")


def test_a_graph_that_was_imported(session: v1.Session, tmp_path: Path) -> None:
    stored = saved(session, tmp_path / "model")
    with tf.Graph().as_default(), v1.Session() as other:
        v1.train.import_meta_graph(str(tmp_path / "model.meta")).restore(
            other, str(tmp_path / "model")
        )
        live = bnstat.load(other)
        assert live.keys() == stored.keys()
        for layer in stored:
            for role in layer.variables:
                assert live[layer.name].array(role).tobytes() == layer.array(role).tobytes()
        drift = bnstat.drift(
            other, {"images": X}, inputs=["images"], outputs=["answer"], feeds={"keep_prob": 1}
        )
    again = bnstat.drift(tmp_path / "model", {"images": X}, feeds={"keep_prob": 1})
    assert drift.largest == again.largest > 0


def save_in_parts(path: Path, resource: bool) -> None:
    """Save two norms, each after a product; every variable is in two or three parts."""

    def build() -> None:
        x = v1.placeholder(tf.float32, [None, 6], "images")
        for number, size in enumerate((6, 5)):
            with v1.variable_scope("", partitioner=v1.fixed_size_partitioner(3, axis=1)):
                kernel = v1.get_variable(f"kernel_{number}", [6, size], use_resource=resource)
            x = norm(x @ tf.convert_to_tensor(kernel), f"norm_{number}", 2, resource)
        tf.identity(x, "answer")

    save_graph(path, build, write_meta_graph=True)


@pytest.mark.parametrize("resource", [False, True])
def test_each_part_has_its_slice(tmp_path: Path, resource: bool) -> None:
    path, copy = tmp_path / "model", tmp_path / "copy" / "model"
    copy.parent.mkdir()
    save_in_parts(path, resource)
    stored = tf.train.load_checkpoint(str(path))
    found = {each.layer: each for each in bnstat.drift(path, X).layers}
    x, entering = X.astype(np.float64), []
    for number in range(2):
        x = x @ stored.get_tensor(f"kernel_{number}")
        entering.append(x)
        names = ("moving_mean", "moving_variance", "gamma", "beta")
        mean, variance, gamma, beta = (stored.get_tensor(f"norm_{number}/{name}") for name in names)
        np.testing.assert_allclose(found[f"norm_{number}"].mean, x.mean(0), rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(found[f"norm_{number}"].variance, x.var(0), rtol=1e-4)
        x = (x - mean) / np.sqrt(variance + 1e-3) * gamma + beta
    bnstat.recalibrate(path, X, copy, exact=True)
    mended = tf.train.load_checkpoint(str(copy))
    mean = mended.get_tensor("norm_0/moving_mean")
    np.testing.assert_allclose(mean, entering[0].mean(0), rtol=1e-4, atol=1e-5)
    assert (mended.get_tensor("norm_0/gamma") == stored.get_tensor("norm_0/gamma")).all()


@pytest.mark.parametrize("spec", [b"", b"6 0,2:0,2", b"6 5,2", b"6 x"])
def test_parts_that_do_not_fit_are_refused(tmp_path: Path, spec: bytes) -> None:
    path = tmp_path / "model"
    save_in_parts(path, False)
    meta = v1.MetaGraphDef.FromString((tmp_path / "model.meta").read_bytes())
    (specs,) = (n for n in meta.graph_def.node if n.name == "save/SaveV2/shape_and_slices")
    tensor = specs.attr["value"].tensor
    tensor.string_val[:] = [spec] * len(tensor.string_val)
    (tmp_path / "model.meta").write_bytes(meta.SerializeToString())
    with pytest.raises(UnsupportedError, match=r"shape \[.*the graph needs .*SavedModel"):
        bnstat.drift(path, X)
