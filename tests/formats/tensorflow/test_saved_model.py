"""SavedModels, loaded by the path of any part, and with any part missing."""

from __future__ import annotations

import shutil
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import tensorflow as tf
from google.protobuf import text_format
from tensorflow.core.protobuf.saved_model_pb2 import SavedModel

import bnstat
from bnstat.errors import BnstatError, DamagedError, NotFoundError
from bnstat.formats.protobuf.wire import spans
from tests.builders.graph_mode import layers_of, save_graph
from tests.builders.oracle import assert_as_tensorflow_reads, assert_layers
from tests.builders.tables import varint

v1 = tf.compat.v1
SCOPES = ("one/bn", "two/bn")
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 12345\n"

pytestmark = pytest.mark.filterwarnings("ignore:.*is deprecated:UserWarning")


@pytest.fixture(scope="module")
def master(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A SavedModel of TensorFlow 1, and its layers."""
    folder = tmp_path_factory.mktemp("saved_model")

    def build() -> None:
        x = v1.placeholder(tf.float32, [None, 4, 4, 3])
        for scope in ("one", "two"):
            with v1.variable_scope(scope):
                x = v1.layers.batch_normalization(x, name="bn", epsilon=0.002)

    values = save_graph(folder / "m", build, saved_model=folder / "saved")
    return folder / "saved", layers_of(values, SCOPES)


@pytest.fixture
def saved(tmp_path: Path, master: tuple[Path, dict[str, Any]]) -> Path:
    """A copy of it that tests may change."""
    return Path(shutil.copytree(master[0], tmp_path / "saved"))


@pytest.mark.parametrize(
    "inside",
    ["", "saved_model.pb", "variables", "variables/variables", "variables/variables.index",
     "variables/variables.data-00000-of-00001"],
)  # fmt: skip
def test_the_path_of_any_part(saved: Path, master: Any, inside: str) -> None:
    model = bnstat.load(saved / inside)
    assert_layers(model, master[1])
    assert_as_tensorflow_reads(model, saved / "variables/variables")
    if inside == "variables/variables":
        assert model.source.format == "tf1-checkpoint"
        return
    source = model.source
    assert (source.format, source.writer) == ("saved-model", f"TensorFlow {tf.__version__}")
    assert {layer.epsilon for layer in model} == {0.002}


def test_relative_paths(saved: Path, master: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(saved)
    assert_layers(bnstat.load(), master[1])
    monkeypatch.chdir(saved / "variables")
    assert_layers(bnstat.load(), master[1])
    assert_layers(bnstat.load(".."), master[1])
    assert_layers(bnstat.load("variables"), master[1])


@pytest.mark.parametrize("reader", ["native", "tensorflow"])
def test_another_graph_name_and_another_reader(saved: Path, master: Any, reader: Any) -> None:
    graph = (saved / "saved_model.pb").rename(saved / "model.bin")
    assert_layers(bnstat.load(graph, reader=reader), master[1])


def test_without_the_graph(saved: Path, master: Any) -> None:
    (saved / "saved_model.pb").unlink()
    model = bnstat.load(saved)
    assert_layers(model, master[1])
    assert any("saved_model.pb is missing" in note for note in model.notes)


def _described(model: bnstat.Model) -> list[tuple[Any, ...]]:
    return [(bn.name, dict(bn.variables), bn.epsilon, bn.momentum, bn.axis) for bn in model]


def test_names_and_settings_without_variables(saved: Path) -> None:
    whole = bnstat.load(saved)
    shutil.rmtree(saved / "variables")
    model = bnstat.load(saved, values=False)
    assert _described(model) == _described(whole)
    assert any("variables/ is missing" in note for note in model.notes)
    with pytest.raises(NotFoundError, match="not in this file"):
        model[0].read()
    with pytest.raises(NotFoundError, match=r"saved/variables: the folder .* is missing"):
        bnstat.load(saved / "saved_model.pb")


@pytest.mark.parametrize("keras", ["tf_keras", "keras"])
def test_names_and_settings_of_objects_without_variables(tmp_path: Path, keras: str) -> None:
    layers = pytest.importorskip(keras).layers
    network = pytest.importorskip(keras).Sequential([
        layers.Input((4, 4, 2)),
        layers.BatchNormalization(epsilon=0.003, name="first"),
        layers.Conv2D(3, 2, name="conv"),
        layers.BatchNormalization(momentum=0.8, center=False, name="second"),
    ])  # fmt: skip
    path = tmp_path / "m"
    tf.saved_model.save(network, str(path))
    whole = bnstat.load(path)
    assert len(whole) == 2
    for data in path.glob("variables/*.data-*"):
        data.write_text("version https://git-lfs.github.com/spec/v1\n")
        model = bnstat.load(path, values=False)
        assert _described(model) == _described(whole)
        assert any("data files cannot be read" in note for note in model.notes)
        data.unlink()
    assert _described(bnstat.load(path, values=False)) == _described(whole)
    shutil.rmtree(path / "variables")
    assert _described(bnstat.load(path, values=False)) == _described(whole)


def test_a_model_that_has_no_variables(tmp_path: Path) -> None:
    tf.saved_model.save(tf.Module(), str(tmp_path / "m"))
    shutil.rmtree(tmp_path / "m/variables")
    model = bnstat.load(tmp_path / "m")
    assert len(model) == 0
    assert any("no variables" in note for note in model.notes)


def test_without_the_index_or_the_data(saved: Path) -> None:
    (saved / "variables/variables.data-00000-of-00001").rename(saved / "data")
    with pytest.raises(NotFoundError, match="data file is missing"):
        bnstat.load(saved, eager=True)
    assert len(bnstat.load(saved, values=False)) == 2
    (saved / "data").rename(saved / "variables/variables.data-00000-of-00001")
    (saved / "variables/variables.index").unlink()
    with pytest.raises(NotFoundError, match=r"variables\.index: the index .* is missing"):
        bnstat.load(saved)


def test_in_text_form(saved: Path, master: Any) -> None:
    message = SavedModel.FromString((saved / "saved_model.pb").read_bytes())
    (saved / "saved_model.pb").unlink()
    (saved / "saved_model.pbtxt").write_text(text_format.MessageToString(message))
    for path in (saved, saved / "saved_model.pbtxt", saved / "variables"):
        whole = bnstat.load(path)
        assert_layers(whole, master[1])
        assert {layer.epsilon for layer in whole} == {0.002}
    (saved / "saved_model.pbtxt").write_text("saved_model_schema_version: {")
    with pytest.raises(DamagedError, match=r"saved_model\.pbtxt: .*cannot be parsed"):
        bnstat.load(saved)


@pytest.mark.parametrize("text", ['item {\n  name: "cat"\n}\n', 'node {\n  name: "x"\n}\n'])
def test_another_text_of_that_name_hides_no_model(tmp_path: Path, text: str) -> None:
    save_graph(tmp_path / "m", lambda: v1.layers.batch_normalization(tf.zeros([2, 3]), name="bn"))
    (tmp_path / "saved_model.pbtxt").write_text(text)
    model = bnstat.load(tmp_path)
    assert (model.source.format, [layer.name for layer in model]) == ("tf1-checkpoint", ["bn"])


@pytest.mark.parametrize("name", ["saved_model.pb", "variables/variables.index"])
def test_pointers(saved: Path, name: str) -> None:
    (saved / name).write_bytes(POINTER)
    with pytest.raises(DamagedError, match="git-lfs pointer"):
        bnstat.load(saved)


def test_damaged_graphs(saved: Path, master: Any) -> None:
    graph = saved / "saved_model.pb"
    whole = graph.read_bytes()
    for data in (b"", b"\x08\x01", b"\x08\x01\x12\xff", b"hello"):
        graph.write_bytes(data)
        with pytest.raises(DamagedError):
            bnstat.load(saved)
    for length in range(0, len(whole), 997):
        graph.write_bytes(whole[:length])
        with suppress(BnstatError):
            assert_layers(bnstat.load(saved), master[1])


def test_fields_may_come_in_any_order(saved: Path, master: Any) -> None:
    graph = saved / "saved_model.pb"
    message = SavedModel.FromString(graph.read_bytes()).meta_graphs[0].SerializeToString()
    fields = [message[field.begin : field.end] for field in spans(message)]
    assert len(fields) > 3
    for first in range(len(fields)):
        turned = b"".join(fields[first:] + fields[:first])
        graph.write_bytes(b"\x08\x01\x12" + varint(len(turned)) + turned)
        assert_layers(bnstat.load(graph), master[1])
