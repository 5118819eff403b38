"""`bnstat.load`: its options, its notes, and what the network in this folder holds."""

from __future__ import annotations

import io
import os
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

import bnstat
from bnstat.errors import UnsupportedError
from bnstat.formats.locate import locate
from tests.builders import named
from tests.builders.oracle import assert_as_tensorflow_reads, assert_layers
from tests.fuzz import handmade

DATA = Path(__file__).parent / "data"
LAYERS = {"block1/bn": 8, "block2/bn": 16, "block3/bn": 16}
ROLES = ("gamma", "beta", "moving_mean", "moving_variance")


@pytest.mark.parametrize("network", ["digits", "digits_no_updates"])
@pytest.mark.parametrize(
    ("part", "prefix"),
    [("run", "run/model-400"), ("saved_model", "saved_model/variables/variables")],
)
def test_the_networks_of_this_folder(network: str, part: str, prefix: str) -> None:
    model = bnstat.load(DATA / network / part)
    assert {layer.name: layer.channels for layer in model} == LAYERS
    assert list(model.keys()) == list(LAYERS)
    assert {round(layer.epsilon or 0, 9) for layer in model} == {0.001}
    assert not model.incomplete
    assert_as_tensorflow_reads(model, DATA / network / prefix)


def test_only_the_updates_differ() -> None:
    right, wrong = (bnstat.load(DATA / name / "run") for name in ("digits", "digits_no_updates"))
    for one, other in zip(right, wrong, strict=True):
        np.testing.assert_array_equal(one.gamma, other.gamma)
        np.testing.assert_array_equal(one.beta, other.beta)
        assert other.moving_mean is not None
        assert other.moving_variance is not None
        assert (other.moving_mean == 0).all()
        assert (other.moving_variance == 1).all()
        assert one.moving_mean is not None
        assert (one.moving_mean != 0).any()


def test_the_data_is_small_and_moves_with_its_folder() -> None:
    files = [path for path in DATA.rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    assert sum(path.stat().st_size for path in files) < 1 << 20
    for network in ("digits", "digits_no_updates"):
        assert "/" not in (DATA / network / "run/checkpoint").read_text()


def test_all_checkpoints_of_a_run() -> None:
    run = DATA / "digits/run"
    steps = [0, 100, 200, 300, 400]
    models = dict(bnstat.load_all(run))
    assert list(models) == [f"model-{step}" for step in steps]
    assert [model.source.step for model in models.values()] == steps
    assert len(bnstat.load_all(run)) == len(steps)
    for step in steps:
        model = models[f"model-{step}"]
        assert list(model.keys()) == list(LAYERS)
        assert_as_tensorflow_reads(model, run / f"model-{step}")


@pytest.mark.parametrize("make", [str, Path, lambda path: os.fspath(path) + "/"])
def test_kinds_of_paths(make: Any) -> None:
    assert len(bnstat.load(make(DATA / "digits/run"))) == 3


def test_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(DATA / "digits/run")
    assert bnstat.load().source.path == "."
    assert len(bnstat.load("model-100")) == 3


def test_one_checkpoint_by_name_or_step() -> None:
    run = DATA / "digits/run"
    by_name = bnstat.load(run, checkpoint="model-100")
    by_step = bnstat.load(run, step=100)
    assert by_name.source == by_step.source
    assert by_name.source.step == 100
    assert_as_tensorflow_reads(by_step, run / "model-100")


@pytest.mark.parametrize("reader", ["auto", "native", "tensorflow"])
def test_readers(reader: Any) -> None:
    model = bnstat.load(DATA / "digits/run", reader=reader)
    assert_as_tensorflow_reads(model, DATA / "digits/run/model-400")
    assert not any("TensorFlow" in note for note in model.notes)


def test_what_the_native_reader_does_not_know_goes_to_tensorflow(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arrays = named.layer(1)
    prefix = named.save(tmp_path / "m", {f"bn/{role}": arrays[role] for role in ROLES})

    def refuse(*args: Any, **options: Any) -> None:
        raise UnsupportedError(str(prefix), "needs a reader of the future")

    monkeypatch.setattr("bnstat.formats.tensorflow.bundle.Bundle.__init__", refuse)
    model = bnstat.load(prefix)
    assert_layers(model, {"bn": arrays})
    assert "read with TensorFlow: needs a reader of the future" in model.notes
    with pytest.raises(UnsupportedError, match="reader of the future"):
        bnstat.load(prefix, reader="native")


def test_where_no_reader_can_the_native_one_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tmp_path, "m", 1)

    def refuse(*args: Any, **options: Any) -> None:
        raise UnsupportedError("m", "needs a reader of the future")

    def fail(*args: Any) -> None:
        raise bnstat.DamagedError("m", "is beyond TensorFlow")

    monkeypatch.setattr("bnstat.formats.tensorflow.bundle.Bundle.__init__", refuse)
    monkeypatch.setattr(
        "bnstat.formats.tensorflow.tensorflow_reader.TensorflowTensors.__init__", fail
    )
    with pytest.raises(UnsupportedError, match="reader of the future"):
        bnstat.load(tmp_path)


def test_tensorflows_own_words_about_damage(tmp_path: Path) -> None:
    prefix = named.save(
        tmp_path / "m", {"bn/moving_mean": np.ones(3), "bn/moving_variance": np.ones(3)}
    )
    data = Path(f"{prefix}.data-00000-of-00001")
    data.write_bytes(b"\x01" * data.stat().st_size)
    with pytest.raises(bnstat.DamagedError, match="TensorFlow cannot read it") as caught:
        bnstat.load(prefix, reader="tensorflow")["bn"].read()
    assert "\n" not in str(caught.value)


def test_eager_reading(tmp_path: Path) -> None:
    prefix = named.save(
        tmp_path / "m", {"bn/moving_mean": np.ones(3), "bn/moving_variance": np.ones(3)}
    )
    data = Path(f"{prefix}.data-00000-of-00001")
    data.write_bytes(b"\x01" * data.stat().st_size)
    assert len(bnstat.load(prefix)) == 1
    with pytest.raises(bnstat.DamagedError):
        bnstat.load(prefix, eager=True)


def spoil(folder: Path, prefix: str) -> None:
    data = folder / f"{prefix}.data-00000-of-00001"
    data.write_bytes(bytes(data.stat().st_size))


def test_layers_without_statistics_are_read_with_the_others(tmp_path: Path) -> None:
    tensors = {f"conv1/BatchNorm/{role}": np.ones(3) for role in ROLES[:2]}
    for name, content in handmade.bundle(tensors).items():
        (tmp_path / name).write_bytes(content)
    assert len(bnstat.load(tmp_path, eager=True).incomplete) == 1
    spoil(tmp_path, "m")
    with pytest.raises(bnstat.DamagedError):
        bnstat.load(tmp_path, eager=True)
    assert bnstat.load(tmp_path, eager=True, layers=["bn*"]).incomplete


def test_no_value_is_read_where_none_is_asked_for(tmp_path: Path) -> None:
    save(tmp_path, "m", 1)
    spoil(tmp_path, "m")
    assert len(bnstat.load(tmp_path, values=False, eager=True)) == 1


def test_of_all_checkpoints_each_is_read_or_an_error(tmp_path: Path) -> None:
    for step in (1, 2, 3):
        save(tmp_path, f"m-{step}", step)
    spoil(tmp_path, "m-2")
    found = [type(model) for _, model in bnstat.load_all(tmp_path)]
    assert found == [bnstat.Model, bnstat.DamagedError, bnstat.Model]
    names = [name for name, _ in bnstat.load_all(tmp_path, last=2)]
    assert names == ["m-2", "m-3"]


def test_layers_by_name() -> None:
    run = DATA / "digits/run"
    assert bnstat.load(run, layers=["block1/*", "*3*"]).keys() == ["block1/bn", "block3/bn"]
    for _, model in bnstat.load_all(run, layers=["block2/*"]):
        assert model.keys() == ["block2/bn"]
    with pytest.raises(bnstat.NotFoundError, match="no batch-norm layer matches 'blok1/bn'"):
        bnstat.load(run, layers=["block2/*", "blok1/bn"])
    for _, error in bnstat.load_all(run, layers=["x"]):
        assert isinstance(error, bnstat.NotFoundError)


def test_layers_by_name_of_a_file_without_any(tmp_path: Path) -> None:
    for name, content in handmade.bundle({"kernel": np.ones(3)}).items():
        (tmp_path / name).write_bytes(content)
    assert len(bnstat.load(tmp_path, layers=["x"])) == 0


def test_a_verdict_for_every_variable() -> None:
    model = bnstat.load(DATA / "digits/run")
    stored = tf.train.load_checkpoint(str(DATA / "digits/run/model-400"))
    verdicts = {verdict.key: verdict for verdict in model.explain()}
    assert set(verdicts) == set(stored.get_variable_to_shape_map())
    assert verdicts["block1/bn/gamma"].layer == "block1/bn"
    assert verdicts["block1/bn/gamma"].role == "gamma"
    assert "optimizer" in verdicts["block1/bn/gamma/Momentum"].reason
    assert verdicts["block1/conv/kernel"].layer is None
    assert sum(verdict.layer is not None for verdict in verdicts.values()) == 12


# A training job that saves while bnstat reads.


@pytest.fixture
def job(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Lets a job do something each time after it was looked where the model lies, and when."""

    def let(*steps: Callable[[], object]) -> None:
        left = list(steps)

        def look(path: str) -> Any:
            place = locate(path)

            def open_(*how: Any) -> Any:
                if left:
                    left.pop(0)()
                return place.default.open(*how)

            return place._replace(default=place.default._replace(open=open_))

        monkeypatch.setattr("bnstat.loading.locate", look)

    return let


def save(folder: Path, prefix: str, mean: float) -> None:
    tensors = {f"bn/{role}": np.full(3, mean, "f4") for role in ROLES}
    for name, content in handmade.bundle(tensors, prefix=prefix).items():
        (folder / name).write_bytes(content)


def replace(folder: Path, old: str, new: str, mean: float) -> None:
    for path in folder.glob(f"{old}.*"):
        path.unlink()
    save(folder, new, mean)


def test_a_checkpoint_that_is_replaced_is_read_again(
    tmp_path: Path, job: Callable[..., None]
) -> None:
    save(tmp_path, "m-1", 1)
    job(lambda: replace(tmp_path, "m-1", "m-2", 2))
    model = bnstat.load(tmp_path)
    assert model.source.checkpoint == "m-2"
    np.testing.assert_array_equal(model["bn"].moving_mean, np.full(3, 2, "f4"))


def test_a_folder_that_changes_faster_than_it_is_read(
    tmp_path: Path, job: Callable[..., None]
) -> None:
    save(tmp_path, "m-1", 1)
    job(
        lambda: replace(tmp_path, "m-1", "m-2", 2),
        lambda: replace(tmp_path, "m-2", "m-3", 3),
    )
    with pytest.raises(bnstat.ChangedError, match="changes faster than it can be read"):
        bnstat.load(tmp_path)


def _bundle(folder: Path) -> Path:
    tensors = {f"bn/{role}": array for role, array in handmade.values().items()}
    for name, content in handmade.bundle(tensors, shards=2).items():
        (folder / name).write_bytes(content)
    return folder / "m.data-00001-of-00002"


def _saved_model(folder: Path) -> Path:
    shutil.copytree(DATA / "digits/saved_model", folder, dirs_exist_ok=True)
    return folder / "variables/variables.data-00000-of-00001"


def _numbered(folder: Path) -> Path:
    return _saved_model(folder / "1")


def _shards(folder: Path) -> Path:
    for name, content in handmade.sharded().items():
        (folder / name).write_bytes(content)
    return folder / "m_00001.weights.h5"


def _single_file(folder: Path) -> Path:
    path = folder / "m.h5"
    path.write_bytes(handmade.hdf5_files()["legacy.h5"])
    return path


def _unzipped(folder: Path) -> Path:
    with zipfile.ZipFile(io.BytesIO(handmade.keras_archive())) as archive:
        archive.extractall(folder)
    return folder / "model.weights.h5"


Torn = tuple[Path, Path, bytes]


@pytest.mark.parametrize(
    "build", [_bundle, _saved_model, _numbered, _shards, _unzipped, _single_file]
)
class TestOverwrittenInPlace:
    """A job is within one of a model's files; no other file's time tells of that."""

    @pytest.fixture
    def torn(self, build: Callable[[Path], Path], tmp_path: Path) -> Torn:
        """A model, its file that is half written, and what is being written."""
        half = build(tmp_path)
        content = half.read_bytes()
        # A bundle's tensors begin at once; HDF5 begins with what tells that it is HDF5.
        start = 0 if ".data-" in half.name else len(content) // 2
        half.write_bytes(content[:start].ljust(len(content), b"\0"))
        for path in (tmp_path, *tmp_path.rglob("*")):
            os.utime(path, (1000, 1000))
        index = tmp_path / "m.weights.json"
        return index if index.exists() else tmp_path, half, content

    def test_it_is_read_again(self, torn: Torn, job: Callable[..., None]) -> None:
        path, half, content = torn
        job(lambda: os.utime(half, (2000, 2000)), lambda: half.write_bytes(content))
        model = bnstat.load(path, eager=True)
        half.write_bytes(content)
        for layer, expected in zip(model, bnstat.load(path), strict=True):
            for role in ROLES:
                np.testing.assert_array_equal(layer.array(role), expected.array(role))

    def test_the_job_goes_on(self, torn: Torn, job: Callable[..., None]) -> None:
        path, half, _ = torn
        job(lambda: os.utime(half, (2000, 2000)))
        with pytest.raises(bnstat.ChangedError, match="try again"):
            bnstat.load(path, eager=True)

    def test_there_is_no_job(self, torn: Torn) -> None:
        with pytest.raises(bnstat.DamagedError):
            bnstat.load(torn[0], eager=True)
