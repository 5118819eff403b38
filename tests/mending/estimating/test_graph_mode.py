"""TensorFlow 1: sessions, variables in parts, and graphs that take more than data."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

import bnstat
from bnstat.errors import AmbiguousError, BnstatError, NotFoundError, UnsupportedError
from tests.builders.digits import DATA
from tests.builders.graph_mode import save_graph
from tests.builders.modules import Norm

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


def save_session(session: v1.Session, path: Path) -> bnstat.Model:
    v1.train.Saver().save(session, str(path))
    return bnstat.load(path)


def described(model: bnstat.Model) -> list[tuple[Any, ...]]:
    """Return all that a model stores of its layers."""
    arrays = [(each, role, each.array(role)) for each in model for role in each.variables]
    return [
        (each.name, each.epsilon, each.variables[role], array.shape, array.tobytes())
        for each, role, array in arrays
        if array is not None
    ]


def test_it_is_what_its_saver_stores(session: v1.Session, tmp_path: Path) -> None:
    nodes = len(session.graph.as_graph_def().node)
    live = bnstat.load(session)
    found = described(live)
    assert len(session.graph.as_graph_def().node) == nodes
    assert live.source.writer == f"tensorflow {tf.__version__}"
    assert found == described(save_session(session, tmp_path / "model"))
    assert len(found) == 8
    assert live.keys() == ["first", "second"]
    assert live["second"].epsilon == pytest.approx(1e-3)


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
    stored = save_session(session, tmp_path / "model")
    with tf.Graph().as_default(), v1.Session() as other:
        v1.train.import_meta_graph(str(tmp_path / "model.meta")).restore(
            other, str(tmp_path / "model")
        )
        assert described(bnstat.load(other)) == described(stored)
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


@pytest.fixture(params=["checkpoint", "saved-model"])
def saved(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[..., Path]:
    """Saves two norms with a dropout between them, with its `.meta` or as a SavedModel."""

    def save(rate_shape: Any = ()) -> Path:
        path = tmp_path / "model"
        with tf.Graph().as_default(), v1.Session() as session:
            x = v1.placeholder(tf.float32, [None, 6], "images")
            keep = v1.placeholder(tf.float32, rate_shape, "keep_prob")
            training = v1.placeholder(tf.bool, [], "is_training")
            first = v1.layers.batch_normalization(x, training=training, name="first")
            dropped = v1.nn.dropout(v1.layers.dense(first, 5, name="dense"), keep_prob=keep)
            second = v1.layers.batch_normalization(dropped, training=training, name="second")
            answer = tf.identity(second, "answer")
            session.run(v1.global_variables_initializer())
            if request.param == "checkpoint":
                v1.train.Saver().save(session, str(path))
            else:
                inputs = {"images": x, "keep_prob": keep, "t": training}
                v1.saved_model.simple_save(session, str(path), inputs, {"answer": answer})
        return path

    return save


def expected(path: Path) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """The moments by hand: of the data, and of what the dense layer makes of it."""
    reader = tf.train.load_checkpoint(
        str(path / "variables/variables") if path.is_dir() else str(path)
    )
    x = X.astype(np.float64)
    first = (x - x.mean(0)) / np.sqrt(x.var(0) + 1e-3)
    hidden = first @ reader.get_tensor("dense/kernel").astype(np.float64)
    return {"first": (x.mean(0), x.var(0)), "second": (hidden.mean(0), hidden.var(0))}


@pytest.mark.parametrize("rate_shape", [(), None])
@pytest.mark.parametrize("exact", [False, True])
def test_a_rate_is_fed_what_the_user_says(saved, tmp_path, rate_shape, exact) -> None:
    path, copy = saved(rate_shape), tmp_path / "copy" / "model"
    copy.parent.mkdir()
    bnstat.recalibrate(
        path, {"images": X}, copy, exact=exact, feeds={"keep_prob": 1}, batch_size=len(X)
    )
    model = bnstat.load(copy)
    for name, (mean, variance) in expected(path).items():
        layer = model[name]
        np.testing.assert_allclose(layer.moving_mean, mean, rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(layer.moving_variance, variance, rtol=1e-4)


@pytest.mark.parametrize(
    ("rate_shape", "feeds", "message"),
    [
        ((), {}, r"'keep_prob' takes a single number.*--feed keep_pr"),
        (None, {}, r"no array named 'keep_prob'.*--feed keep_prob=VALUE"),
        ((), {"keep": 1}, r"no placeholder 'keep'.*keep_prob"),
        ((), {"keep_prob": "much"}, "could not convert string to float"),
    ],
)
def test_a_missing_or_wrong_rate_is_named(saved, rate_shape, feeds, message) -> None:
    with pytest.raises(BnstatError, match=message):
        bnstat.drift(saved(rate_shape), {"images": X}, feeds=feeds)


@pytest.mark.parametrize("doubled", [None, False, True])
def test_a_switch_is_off_unless_the_user_says_otherwise(tmp_path: Path, doubled: Any) -> None:
    def build() -> None:
        x = v1.placeholder(tf.float32, [None, 6], "images")
        flag = v1.placeholder(tf.bool, [], "doubled")
        entering = v1.where(tf.fill(tf.shape(x), flag), 2 * x, x)
        v1.layers.batch_normalization(entering, name="first")

    save_graph(tmp_path / "model", build, write_meta_graph=True)
    feeds = {} if doubled is None else {"doubled": doubled}
    (layer,) = bnstat.drift(tmp_path / "model", {"images": X}, feeds=feeds).layers
    np.testing.assert_allclose(layer.mean, X.mean(0) * (2 if doubled else 1), rtol=1e-5)


def iterator() -> Any:
    dataset = v1.data.Dataset.from_tensor_slices((X[:8], np.arange(8)))
    return v1.data.make_one_shot_iterator(dataset.batch(4)).get_next()[0]


def queue() -> Any:
    return v1.FIFOQueue(100, tf.float32, [6]).dequeue_many(10)


def default() -> Any:
    return v1.placeholder_with_default(iterator(), [None, 6])


@pytest.mark.parametrize("form", ["model", "saved_model", "frozen"])
@pytest.mark.parametrize("pipeline", [iterator, queue, default])
def test_data_is_fed_behind_a_pipeline(tmp_path, pipeline, form) -> None:
    inputs: list[str] = []

    def build() -> None:
        x = pipeline()
        inputs.append(x.name)
        tf.identity(v1.layers.batch_normalization(x + 1, name="norm"), "answer")

    path = tmp_path / form
    others: Any = {} if form == "model" else {form: path}
    save_graph(tmp_path / "model", build, write_meta_graph=True, **others)
    with pytest.raises(AmbiguousError, match="pass --input and --answer"):
        bnstat.drift(path, X)
    data = X[:90]  # nine of the batches of ten that the graph after the queue wants
    (layer,) = bnstat.drift(path, data, inputs=inputs).layers
    np.testing.assert_allclose(layer.mean, data.mean(0) + 1, rtol=1e-5)
    with pytest.raises(NotFoundError, match=r"no tensor 'norm[^']*:7'"):
        bnstat.drift(path, X, inputs=["norm/batchnorm/mul:7"])


class Two(tf.Module):
    """Two normalizations. One signature runs the first, the other runs both."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = Norm(6), Norm(6)

    @tf.function(input_signature=[tf.TensorSpec([None, 6], tf.float32, "x")])
    def one(self, x: Any) -> Any:
        return {"y": self.first(x)}

    @tf.function(input_signature=[tf.TensorSpec([None, 6], tf.float32, "x")])
    def both(self, x: Any) -> Any:
        return {"z": self.second(self.first(x))}


def test_the_signature_that_is_named_is_run(tmp_path: Path) -> None:
    two = Two()
    tf.saved_model.save(two, str(tmp_path / "m"), {"one": two.one, "both": two.both})
    with pytest.raises(AmbiguousError, match=r"several signatures; .*: --signature both, on"):
        bnstat.drift(tmp_path / "m", X)
    with pytest.raises(NotFoundError, match="no signature 'none'; there are: both, one"):
        bnstat.drift(tmp_path / "m", X, signature="none")
    result = bnstat.drift(tmp_path / "m", X, signature="one")
    assert [each.layer for each in result.layers] == ["first"]
    assert "reads its statistics" in result.left["second"]
    result = bnstat.drift(tmp_path / "m", X, signature="both")
    assert [each.layer for each in result.layers] == ["first", "second"]
    tf.saved_model.save(two, str(tmp_path / "d"), {"serving_default": two.one, "b": two.both})
    assert [each.layer for each in bnstat.drift(tmp_path / "d", X).layers] == ["first"]
    with pytest.raises(NotFoundError, match=r"has no signatures \(tf1-checkpoint\)"):
        bnstat.drift(DATA / "digits/run", X, signature="one")


def test_what_tensorflow_says_is_its_reason(tmp_path: Path) -> None:
    def build() -> None:
        halves = tf.split(v1.placeholder(tf.float32, [None, 6], "x"), 2)
        v1.layers.batch_normalization(tf.concat(halves, 0), name="norm")

    save_graph(tmp_path / "model", build, write_meta_graph=True)
    reason = r"cannot run it: Number of ways to split .* \(at split\)"
    with pytest.raises(BnstatError, match=reason):
        bnstat.drift(tmp_path / "model", X[:3])
