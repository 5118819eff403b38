"""Event files, as the HTTP server of TensorBoard shows them."""

from __future__ import annotations

import json
import sys
import time
import types
from pathlib import Path
from urllib.parse import urlencode
from urllib.request import urlopen

import numpy as np
import pytest

from bnstat.errors import DamagedError, UnsupportedError
from bnstat.model import ROLES, Source
from tests.output.models import layer, model, usual

pytest.importorskip("tensorboard")

from bnstat.output import tensorboard as events

BROKEN = np.float32([np.nan, np.inf, 1, 2])
HOSTILE = "<script>alert(1)</script>`a`|b"


def checkpoint(step, **fields):
    layers = (
        usual("block1/bn", 64, seed=step),
        layer("bad", {"moving_mean": BROKEN, "moving_variance": np.full(4, np.nan)}),
        layer(HOSTILE, {"moving_mean": np.ones(3), "moving_variance": np.float32([-1, 1, 1e38])}),
    )
    source = Source("run", "tf2-checkpoint", f"model-{step}", step)
    return model(*layers, **{"source": source, **fields})


@pytest.fixture(scope="module")
def run():
    return [(f"model-{step}", checkpoint(step)) for step in (10, 20, 30)]


@pytest.fixture(scope="module")
def logdir(tmp_path_factory, run):
    """Return a folder into which a training also wrote event files of its own."""
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.compat.proto.summary_pb2 import Summary
    from tensorboard.summary.writer.event_file_writer import EventFileWriter

    folder = tmp_path_factory.mktemp("logs")
    own = EventFileWriter(str(folder / "train"))
    own.add_event(Event(step=1, summary=Summary(value=[Summary.Value(tag="loss", simple_value=1)])))
    own.close()
    damaged = DamagedError("model-25", "is damaged")
    for _ in range(2):
        events.write([*run[:2], ("model-25", damaged), run[2]], str(folder))
    return folder


@pytest.fixture(scope="module")
def get(logdir):
    """Return a function that queries TensorBoard's server, in this process without TensorFlow."""
    with pytest.MonkeyPatch.context() as patch:
        stub = types.ModuleType("tensorboard.compat.notf")
        patch.setitem(sys.modules, "tensorboard.compat.notf", stub)
        from tensorboard import program
        from tensorboard.plugins.core import core_plugin
        from tensorboard.plugins.histogram import histograms_plugin
        from tensorboard.plugins.scalar import scalars_plugin
        from tensorboard.plugins.text import text_plugin

        plugins = [scalars_plugin.ScalarsPlugin, histograms_plugin.HistogramsPlugin]
        plugins += [core_plugin.CorePluginLoader(), text_plugin.TextPlugin]
        server = program.TensorBoard(plugins)
        options = ["--host", "127.0.0.1", "--port", "0", "--load_fast", "false"]
        server.configure(argv=["", "--logdir", str(logdir), *options])
        url = server.launch().rstrip("/")

        def get(path, **query):
            with urlopen(f"{url}/data/{path}?{urlencode(query)}", timeout=300) as answer:
                return json.load(answer)

        until = time.monotonic() + 300
        while "findings over time" not in get("plugin/text/tags").get("bnstat", ()):
            assert time.monotonic() < until
            time.sleep(0.1)
        yield get


def test_the_run_is_beside_that_of_the_training(get):
    assert set(get("runs")) == {"bnstat", "train"}
    assert get("plugin/scalars/tags")["train"].keys() == {"loss"}
    assert f"{HOSTILE}/moving_mean" in get("plugin/histograms/tags")["bnstat"]


def test_scalars(get, run):
    for role in ROLES:
        arrays = [checkpoint["block1/bn"].array(role) for _, checkpoint in run]
        for name, measure in {"mean": np.mean, "std": np.std, "min": np.min, "max": np.max}.items():
            shown = get("plugin/scalars/scalars", run="bnstat", tag=f"block1/bn/{role}/{name}")
            assert [step for _, step, _ in shown] == [10, 20, 30]
            expected = [measure(array.astype(np.float64)) for array in arrays]
            np.testing.assert_allclose([value for *_, value in shown], expected, rtol=1e-6)


def test_histograms(get, run):
    for role in ROLES:
        shown = get("plugin/histograms/histograms", run="bnstat", tag=f"block1/bn/{role}")
        assert [step for _, step, _ in shown] == [10, 20, 30]
        for (_, _, buckets), (_, checkpoint) in zip(shown, run, strict=True):
            array = checkpoint["block1/bn"].array(role)
            counts, edges = np.histogram(array.astype(np.float64), 30)
            assert [count for *_, count in buckets] == counts.tolist()
            np.testing.assert_allclose([left for left, *_ in buckets], edges[:-1])
            np.testing.assert_allclose([right for _, right, _ in buckets], edges[1:])


def test_values_that_are_not_finite(get):
    def scalar(tag):
        return get("plugin/scalars/scalars", run="bnstat", tag=tag)[0][2]

    assert scalar("bad/moving_mean/mean") == 1.5
    assert scalar("bad/moving_mean/not_finite") == 2
    assert scalar("bad/moving_variance/not_finite") == 4
    assert scalar("bad/moving_variance/mean") == "NaN"
    (buckets, *_) = get("plugin/histograms/histograms", run="bnstat", tag="bad/moving_mean")
    assert sum(count for *_, count in buckets[2]) == 2
    assert "bad/moving_variance" not in get("plugin/histograms/tags")["bnstat"]


def test_findings(get):
    shown = get("plugin/text/text", run="bnstat", tag="findings")
    assert [entry["step"] for entry in shown] == [10, 20, 30]
    assert "BN004 not-finite" in shown[0]["text"]
    assert "<script>" not in shown[0]["text"]
    (whole,) = get("plugin/text/text", run="bnstat", tag="findings over time")
    assert whole["step"] == 30


def test_writing_again_replaces_the_file(logdir, run):
    (file,) = (logdir / "bnstat").iterdir()
    before = file.stat().st_size
    history = events.write(run, str(logdir))
    assert [file] == list((logdir / "bnstat").iterdir())
    assert file.stat().st_size == before
    assert len(history.checkpoints) == 3


def test_a_damaged_array_skips_its_checkpoint(tmp_path, run):
    def fail():
        raise DamagedError("file", "is damaged")

    bad = checkpoint(15)
    object.__setattr__(bad["block1/bn"].variables["beta"], "reader", fail)
    history = events.write([run[0], ("bad", bad), run[1]], str(tmp_path))
    assert [skipped.name for skipped in history.skipped] == ["bad"]


def test_a_run_without_layers_is_not_written(tmp_path):
    events.write([("a", model())], str(tmp_path / "logs"))
    assert list((tmp_path / "logs").iterdir()) == []


def test_an_interrupted_run_leaves_no_file(tmp_path, run):
    def broken():
        yield run[0]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        events.write(broken(), str(tmp_path))
    assert list(Path(tmp_path).rglob("*")) == []


def test_tensorboard_is_not_installed(monkeypatch):
    monkeypatch.delitem(sys.modules, "bnstat.output.tensorboard")
    monkeypatch.delattr("bnstat.output.tensorboard")
    monkeypatch.setitem(sys.modules, "tensorboard.compat.proto.event_pb2", None)
    with pytest.raises(UnsupportedError, match="pip install tensorboard"):
        import bnstat.output.tensorboard  # noqa: F401
