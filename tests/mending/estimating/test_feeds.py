"""Graphs of TensorFlow 1 that take more than data: switches, and rates that were placeholders."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

import bnstat
from bnstat.errors import AmbiguousError, BnstatError, NotFoundError
from tests.builders.digits import DATA
from tests.builders.graph_mode import save_graph
from tests.builders.modules import Norm

v1 = tf.compat.v1
X = np.random.default_rng(5).normal(2, 3, (96, 6)).astype(np.float32)


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
def test_a_rate_is_fed_what_the_user_says(
    saved: Callable[..., Path], tmp_path: Path, rate_shape: Any, exact: bool
) -> None:
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
def test_a_missing_or_wrong_rate_is_named(
    saved: Callable[..., Path], rate_shape: Any, feeds: dict[str, Any], message: str
) -> None:
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


@pytest.mark.parametrize("form", ["checkpoint", "saved-model", "frozen"])
@pytest.mark.parametrize("pipeline", [iterator, queue, default])
def test_data_is_fed_behind_a_pipeline(
    tmp_path: Path, pipeline: Callable[[], Any], form: str
) -> None:
    path = tmp_path / "model"
    with tf.Graph().as_default(), v1.Session() as session:
        x = pipeline()
        tf.identity(v1.layers.batch_normalization(x + 1, name="norm"), "answer")
        session.run(v1.global_variables_initializer())
        if form == "checkpoint":
            v1.train.Saver().save(session, str(path))
        elif form == "frozen":
            graph_def = session.graph.as_graph_def()
            frozen = v1.graph_util.convert_variables_to_constants(session, graph_def, ["answer"])
            path.write_bytes(frozen.SerializeToString())
        else:
            builder = v1.saved_model.Builder(str(path))
            builder.add_meta_graph_and_variables(session, ["serve"], {})
            builder.save()
    with pytest.raises(AmbiguousError, match="pass --input and --answer"):
        bnstat.drift(path, X)
    data = X[:90]  # nine of the batches of ten that the graph after the queue wants
    (layer,) = bnstat.drift(path, data, inputs=[x.name]).layers
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
    with pytest.raises(NotFoundError, match=r"is not a SavedModel \(tf1-checkpoint\)"):
        bnstat.drift(DATA / "digits/run", X, signature="one")


def test_what_tensorflow_says_is_its_reason(tmp_path: Path) -> None:
    def build() -> None:
        halves = tf.split(v1.placeholder(tf.float32, [None, 6], "x"), 2)
        v1.layers.batch_normalization(tf.concat(halves, 0), name="norm")

    save_graph(tmp_path / "model", build, write_meta_graph=True)
    reason = r"cannot run it: Number of ways to split .* \(at split\)"
    with pytest.raises(BnstatError, match=reason):
        bnstat.drift(tmp_path / "model", X[:3])
