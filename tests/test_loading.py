"""`bnstat.load`: its options, its notes, and what the network in this folder holds."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

import bnstat
from bnstat.errors import UnsupportedError
from tests.builders import named
from tests.builders.bundles import save_norm
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
    save_norm(tmp_path, "m", 1)

    def refuse(*args: Any, **options: Any) -> None:
        raise UnsupportedError("m", "needs a reader of the future")

    def fail(*args: Any) -> None:
        raise bnstat.DamagedError("m", "is beyond TensorFlow")

    monkeypatch.setattr("bnstat.formats.tensorflow.bundle.Bundle.__init__", refuse)
    monkeypatch.setattr("bnstat.formats.tensorflow.checkpoint.TensorflowTensors.__init__", fail)
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
    save_norm(tmp_path, "m", 1)
    spoil(tmp_path, "m")
    assert len(bnstat.load(tmp_path, values=False, eager=True)) == 1


def test_of_all_checkpoints_each_is_read_or_an_error(tmp_path: Path) -> None:
    for step in (1, 2, 3):
        save_norm(tmp_path, f"m-{step}", step)
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
