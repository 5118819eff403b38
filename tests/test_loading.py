"""`bnstat.load`, `load_all` and `open_contents`: their options, notes and errors."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

import bnstat
from bnstat.errors import UnsupportedError
from bnstat.loading import open_contents
from bnstat.model import ROLES
from tests.builders import named
from tests.builders.bundles import save_norm
from tests.builders.oracle import assert_as_tensorflow_reads, assert_layers
from tests.fuzz import handmade

DATA = Path(__file__).parent / "data"
RUN = DATA / "digits/run"
LAYERS = {"block1/bn": 8, "block2/bn": 16, "block3/bn": 16}
SHADOW = "/ExponentialMovingAverage"


def save(folder: Path, tensors: Mapping[str, np.ndarray]) -> None:
    for name, content in handmade.bundle(dict(tensors)).items():
        (folder / name).write_bytes(content)


def layer(name: str, end: str = "") -> dict[str, np.ndarray]:
    return {f"{name}/{role}{end}": array for role, array in handmade.values().items()}


def spoil(folder: Path, prefix: str = "m") -> None:
    """Overwrite the second half of a data file with zeros."""
    data = folder / f"{prefix}.data-00000-of-00001"
    content = data.read_bytes()
    data.write_bytes(content[: len(content) // 2].ljust(len(content), b"\0"))


@pytest.mark.parametrize("network", ["digits", "digits_no_updates"])
@pytest.mark.parametrize(
    ("part", "prefix"),
    [("run", "run/model-400"), ("saved_model", "saved_model/variables/variables")],
)
def test_the_networks_in_tests_data(network: str, part: str, prefix: str) -> None:
    model = bnstat.load(DATA / network / part)
    assert [(layer.name, layer.channels) for layer in model] == [*LAYERS.items()]
    assert {round(layer.epsilon or 0, 9) for layer in model} == {0.001}
    assert not model.incomplete
    assert_as_tensorflow_reads(model, DATA / network / prefix)


def test_the_data_is_small_and_can_be_moved() -> None:
    files = [path for path in DATA.rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    assert sum(path.stat().st_size for path in files) < 1 << 20
    for network in ("digits", "digits_no_updates"):
        assert "/" not in (DATA / network / "run/checkpoint").read_text()


def test_kinds_of_paths(monkeypatch: pytest.MonkeyPatch) -> None:
    for path in (str(RUN), RUN, f"{RUN}/"):
        assert len(bnstat.load(path)) == 3
    monkeypatch.chdir(RUN)
    assert bnstat.load().source.path == "."
    assert len(bnstat.load("model-100")) == 3


def test_all_checkpoints_of_a_run() -> None:
    steps = [0, 100, 200, 300, 400]
    models = dict(bnstat.load_all(RUN))
    assert list(models) == [f"model-{step}" for step in steps]
    assert [model.source.step for model in models.values()] == steps
    for name, model in models.items():
        assert list(model.keys()) == list(LAYERS)
        assert_as_tensorflow_reads(model, RUN / name)


def test_a_damaged_checkpoint_of_a_run_is_an_error(tmp_path: Path) -> None:
    for step in (10, 9, 100):
        save_norm(tmp_path, f"m-{step}", step)
    spoil(tmp_path, "m-10")
    (tmp_path / "m-50.index").write_bytes(b"broken")
    results = {name: type(model) for name, model in bnstat.load_all(tmp_path)}
    assert list(results) == ["m-9", "m-10", "m-50", "m-100"]
    damaged = bnstat.DamagedError
    assert [*results.values()] == [bnstat.Model, damaged, damaged, bnstat.Model]
    assert [name for name, _ in bnstat.load_all(tmp_path, last=2)] == ["m-50", "m-100"]


def test_the_checkpoints_are_known_before_any_is_loaded(tmp_path: Path) -> None:
    for step in (1, 20):
        save_norm(tmp_path, f"m-{step}", step)
    models = bnstat.load_all(tmp_path)
    shutil.rmtree(tmp_path)
    assert models.checkpoints == [("m-1", 1), ("m-20", 20)]
    assert len(models) == 2
    assert [type(model) for _, model in models] == [bnstat.NotFoundError] * 2


def test_the_name_of_a_single_file_is_its_path(tmp_path: Path) -> None:
    path = tmp_path / "m.keras"
    path.write_bytes(handmade.keras_archive())
    models = bnstat.load_all(path)
    assert models.checkpoints == []
    assert [name for name, _ in models] == [str(path)]


def test_the_contents_of_a_file_without_recognizing_batch_norm(tmp_path: Path) -> None:
    for step in (1, 20):
        save_norm(tmp_path, f"m-{step}", step)
    contents = open_contents(str(tmp_path), checkpoint="m-1")
    assert set(contents.variables) == {f"bn/{role}" for role in ROLES}
    assert contents.variables["bn/gamma"].read().tolist() == [1] * 3
    assert open_contents(str(tmp_path)).variables["bn/gamma"].read().tolist() == [20] * 3
    assert open_contents(str(tmp_path), step=1).source.checkpoint == "m-1"


@pytest.mark.parametrize("reader", ["auto", "native", "tensorflow"])
def test_readers(reader: Any) -> None:
    model = bnstat.load(RUN, reader=reader)
    assert_as_tensorflow_reads(model, RUN / "model-400")
    assert not any("TensorFlow" in note for note in model.notes)


@pytest.fixture
def unsupported(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any, **options: Any) -> None:
        raise UnsupportedError("m", "needs a reader of the future")

    monkeypatch.setattr("bnstat.formats.tensorflow.bundle.Bundle.__init__", refuse)


@pytest.mark.usefixtures("unsupported")
def test_tensorflow_reads_files_that_the_native_reader_does_not_support(tmp_path: Path) -> None:
    arrays = named.layer(1)
    prefix = named.save(tmp_path / "m", {f"bn/{role}": arrays[role] for role in ROLES})
    model = bnstat.load(prefix)
    assert_layers(model, {"bn": arrays})
    assert "read with TensorFlow: needs a reader of the future" in model.notes
    with pytest.raises(UnsupportedError, match="reader of the future"):
        bnstat.load(prefix, reader="native")


@pytest.mark.usefixtures("unsupported")
def test_the_native_readers_error_is_raised_if_tensorflow_fails_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_norm(tmp_path, "m", 1)

    def fail(*args: Any) -> None:
        raise bnstat.DamagedError("m", "is beyond TensorFlow")

    monkeypatch.setattr("bnstat.formats.tensorflow.checkpoint.TensorflowTensors.__init__", fail)
    with pytest.raises(UnsupportedError, match="reader of the future"):
        bnstat.load(tmp_path)


def test_an_error_of_tensorflow_is_one_line(tmp_path: Path) -> None:
    save_norm(tmp_path, "m", 1)
    spoil(tmp_path)
    damaged = pytest.raises(bnstat.DamagedError, match="TensorFlow cannot read the checkpoint")
    with damaged as caught:
        bnstat.load(tmp_path, reader="tensorflow")["bn"].read()
    assert "\n" not in str(caught.value)


def test_tensorflows_reader_is_refused_for_remote_files() -> None:
    fsspec = pytest.importorskip("fsspec")
    files = fsspec.filesystem("memory")
    for name, content in handmade.bundle(layer("a")).items():
        files.pipe(f"/loading/{name}", content)
    assert bnstat.load("memory://loading").keys() == ["a"]
    with pytest.raises(bnstat.BnstatError, match="reads only local checkpoints"):
        bnstat.load("memory://loading", reader="tensorflow")


def test_eager_reading(tmp_path: Path) -> None:
    save_norm(tmp_path, "m", 1)
    spoil(tmp_path)
    assert len(bnstat.load(tmp_path)) == 1
    assert len(bnstat.load(tmp_path, values=False, eager=True)) == 1
    with pytest.raises(bnstat.DamagedError):
        bnstat.load(tmp_path, eager=True)


def test_eager_reading_includes_layers_without_statistics(tmp_path: Path) -> None:
    save(tmp_path, {f"conv1/BatchNorm/{role}": np.ones(3) for role in ROLES[:2]})
    assert len(bnstat.load(tmp_path, eager=True).incomplete) == 1
    spoil(tmp_path)
    with pytest.raises(bnstat.DamagedError):
        bnstat.load(tmp_path, eager=True)
    assert bnstat.load(tmp_path, eager=True, layers=["bn*"]).incomplete


def test_other_layers_than_the_selected_ones_are_not_read(tmp_path: Path) -> None:
    save(tmp_path, layer("a") | layer("b"))
    spoil(tmp_path)
    with pytest.raises(bnstat.DamagedError):
        bnstat.load(tmp_path, eager=True)
    assert bnstat.load(tmp_path, eager=True, layers=["a"]).keys() == ["a"]
    ((_, every),) = bnstat.load_all(tmp_path)
    assert isinstance(every, bnstat.DamagedError)
    ((_, part),) = bnstat.load_all(tmp_path, layers=["a"])
    assert isinstance(part, bnstat.Model)


def test_layers_by_name(tmp_path: Path) -> None:
    assert bnstat.load(RUN, layers=["block1/*", "*3*"]).keys() == ["block1/bn", "block3/bn"]
    for _, model in bnstat.load_all(RUN, layers=["block2/*"]):
        assert model.keys() == ["block2/bn"]
    with pytest.raises(bnstat.NotFoundError, match="no batch-norm layer matches 'blok1/bn'"):
        bnstat.load(RUN, layers=["block2/*", "blok1/bn"])
    for _, error in bnstat.load_all(RUN, layers=["x"]):
        assert isinstance(error, bnstat.NotFoundError)
    save(tmp_path, {"kernel": np.ones(3)})
    assert len(bnstat.load(tmp_path, layers=["x"])) == 0


@pytest.mark.parametrize("globs", [[], ["a"]])
def test_layers_without_statistics_are_always_listed(globs: list[str], tmp_path: Path) -> None:
    save(tmp_path, {**layer("a"), "conv/BatchNorm/gamma": np.ones(3)})
    model = bnstat.load(tmp_path, layers=globs)
    assert [each.name for each in model.incomplete] == ["conv/BatchNorm"]


@pytest.mark.parametrize("options", [{}, {"include_shadows": False}, {"include_shadows": True}])
def test_shadows(options: dict[str, bool], tmp_path: Path) -> None:
    save(tmp_path, layer("a") | layer("a", SHADOW))
    ((_, model),) = bnstat.load_all(tmp_path, **options)
    names = ["a", f"a{SHADOW}"] if options.get("include_shadows") else ["a"]
    assert bnstat.load(tmp_path, **options).keys() == model.keys() == names


def test_every_variable_is_explained() -> None:
    model = bnstat.load(RUN)
    stored = tf.train.load_checkpoint(str(RUN / "model-400"))
    verdicts = {verdict.key: verdict for verdict in model.explain()}
    assert set(verdicts) == set(stored.get_variable_to_shape_map())
    assert verdicts["block1/bn/gamma"].layer == "block1/bn"
    assert verdicts["block1/bn/gamma"].role == "gamma"
    assert "optimizer" in verdicts["block1/bn/gamma/Momentum"].reason
    assert verdicts["block1/conv/kernel"].layer is None
    assert sum(verdict.layer is not None for verdict in verdicts.values()) == 12


def test_storage_options_for_a_local_path_are_noted(tmp_path: Path) -> None:
    (tmp_path / "m.h5").write_bytes(handmade.hdf5_files()["legacy.h5"])
    model = bnstat.load(tmp_path / "m.h5", storage_options={"key": "hidden"})
    (note,) = (note for note in model.notes if "storage options" in note)
    assert "hidden" not in note
    ((_, each),) = bnstat.load_all(tmp_path, storage_options={"key": "hidden"})
    assert note in each.notes
    assert not any("storage options" in note for note in bnstat.load(tmp_path / "m.h5").notes)
