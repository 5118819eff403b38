"""State dicts, checkpoints and whole models, compared with PyTorch."""

from __future__ import annotations

import argparse
import pickle
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest

import bnstat
from bnstat.errors import DamagedError
from bnstat.formats.pytorch.file import matches
from bnstat.storage.local import LocalFile
from tests.builders.oracle import same_bits
from tests.formats.pytorch.files import FORMS, NAMES, Net, as_array, assert_is, save, torch


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", [None, torch.float64, torch.float16, torch.bfloat16], ids=str)
def test_state_dicts(tmp_path: Path, form: str, dtype: Any) -> None:
    net = Net(dtype)
    model = bnstat.load(save(tmp_path / "m", net.state_dict(), form))
    assert model.source.format == "pytorch"
    assert_is(model, net)
    for layer in model:
        assert layer.epsilon is layer.momentum is layer.axis is None
        assert {v.key.rpartition(".")[0] for v in layer.variables.values()} == {layer.name}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("wrapper", ["state_dict", "model", "model_state_dict", "net"])
def test_checkpoints(tmp_path: Path, form: str, wrapper: str) -> None:
    net = Net()
    optimizer = torch.optim.Adam(net.parameters())
    sum(parameter.sum() for parameter in net.parameters()).backward()
    optimizer.step()
    content = {wrapper: net.state_dict(), "epoch": 3, "optimizer": optimizer.state_dict()}
    content["args"] = argparse.Namespace(lr=0.1)
    model = bnstat.load(save(tmp_path / "m", content, form))
    assert_is(model, net)
    assert model[0].variables["gamma"].key == f"{wrapper}/stem.1.weight"
    assert any(key.startswith("optimizer/state/0/exp_avg") for key in model.stored)
    (note,) = model.notes
    assert "argparse.Namespace" in note
    assert "Adam" not in note


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod."])
def test_parallel_and_compiled(tmp_path: Path, prefix: str) -> None:
    net = Net()
    state = {prefix + name: tensor for name, tensor in net.state_dict().items()}
    for content in (state, {"model": state}):
        assert_is(bnstat.load(save(tmp_path / "m", content)), net)
    # Without the prefix on every name, it is the author's.
    state["head.weight"] = torch.ones(2)
    if prefix == "module.":
        names = [f"module.{name}" for name in NAMES]
        assert_is(bnstat.load(save(tmp_path / "m", state)), net, names)


def test_lightning(tmp_path: Path) -> None:
    net = Net()
    content = {
        "pytorch-lightning_version": "2.5.0",
        "global_step": 1200,
        "state_dict": {f"net.{name}": tensor for name, tensor in net.state_dict().items()},
    }
    model = bnstat.load(save(tmp_path / "m.ckpt", content))
    assert (model.source.writer, model.source.step) == ("PyTorch Lightning 2.5.0", 1200)
    assert_is(model, net, [f"net.{name}" for name in NAMES])


@pytest.mark.parametrize("name", ["ema", "state_dict_ema", "params_ema"])
def test_averages_are_shadows_unless_nothing_else_is_stored(tmp_path: Path, name: str) -> None:
    net, ema = Net(), Net()
    for tensor in ema.state_dict().values():
        tensor.add_(1)
    path = save(tmp_path / "m", {"state_dict": net.state_dict(), name: ema.state_dict()})
    assert_is(bnstat.load(path), net)
    both = bnstat.load(path, include_shadows=True)
    assert len(both) == 2 * len(NAMES)
    shadow = both["stem.1/ExponentialMovingAverage"].moving_mean
    assert same_bits(shadow, as_array(ema.stem[1].running_mean))
    alone = bnstat.load(save(tmp_path / "m", {name: ema.state_dict()}))
    assert [layer.name for layer in alone] == NAMES
    assert same_bits(alone[0].moving_mean, as_array(ema.stem[1].running_mean))
    assert "averages" in alone[0].notes[0]


@pytest.mark.parametrize("form", FORMS)
def test_whole_models_record_their_settings(tmp_path: Path, form: str) -> None:
    net = Net()
    model = bnstat.load(save(tmp_path / "m", {"model": net, "epoch": 1}, form))
    assert_is(model, net)
    assert [layer.epsilon for layer in model] == [2e-3, 1e-5, 1e-5]
    assert [layer.momentum for layer in model] == [0.8, 0.9, None]
    assert [layer.axis for layer in model] == [1, 1, 1]
    assert {layer.evidence for layer in model} == {"config"}
    (note,) = model.notes
    assert note.endswith(f"{Net.__module__}.Net")
    assert [layer.name for layer in bnstat.load(save(tmp_path / "n", net, form))] == NAMES


def test_other_tensors_are_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    state = OrderedDict(big=torch.zeros(4 << 20), **Net().state_dict())
    original, read = LocalFile._read, []

    def counted(self: LocalFile, offset: int, length: int) -> bytes:
        read.append(length)
        return original(self, offset, length)

    monkeypatch.setattr(LocalFile, "_read", counted)
    for form in FORMS:
        read.clear()
        bnstat.load(save(tmp_path / "m", state, form), eager=True)
        assert 0 < sum(read) < 600_000, form


def test_other_zips_and_pickles_are_not_recognised(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "m", "w") as archive:
        archive.writestr("a/b.txt", "data.pkl")
    assert not matches(LocalFile(tmp_path / "m"))
    (tmp_path / "p").write_bytes(pickle.dumps({"a": 1}))
    assert not matches(LocalFile(tmp_path / "p"))


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("form", FORMS)
def test_every_protocol(tmp_path: Path, form: str, protocol: int) -> None:
    net, path = Net(), tmp_path / "m"
    save(path, net.state_dict(), form, pickle_protocol=protocol)
    if protocol == 0:
        with pytest.raises(DamagedError, match="protocol 0"):
            bnstat.load(path)
    else:
        assert_is(bnstat.load(path), net)
