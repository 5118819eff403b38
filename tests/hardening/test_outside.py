"""Links out of a model are not followed, and code in it is not run."""

from __future__ import annotations

import json
import marshal
from base64 import b64encode
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

import bnstat
from tests.fuzz import handmade, ports
from tests.fuzz.handmade import zipped
from tests.hardening.support import exported, layers, write

# Links out of a model


def test_a_state_file_that_names_other_folders(tmp_path: Path) -> None:
    tensors = {f"bn/{role}": np.full(3, 31337.0) for role in handmade.ROLES}
    outside = write(tmp_path / "outside", handmade.bundle(tensors))
    state = f'model_checkpoint_path: "{outside}/m"\nall_model_checkpoint_paths: "../outside/m"\n'
    folder = write(
        tmp_path / "run", {**handmade.bundle(layers(), prefix="n"), "checkpoint": state.encode()}
    )
    assert "31337" not in exported(folder)


TFJS = ports.tfjs_files({"model_config": handmade.config()}, "bn0")
SAFETENSORS = ports.sharded_files()
IN_PARTS = {
    "onnx": (ports.onnx_files()["outside"], "m.onnx", "w.bin"),
    "safetensors": (SAFETENSORS, "m.safetensors.index.json", "m-00001-of-00002.safetensors"),
    "tfjs": (TFJS, "model.json", "group1-shard2of2.bin"),
    "keras": (handmade.sharded(), "m.weights.json", "m_00000.weights.h5"),
}
"""Models in several files: all files, the one to open, another part."""


@pytest.mark.parametrize("kind", IN_PARTS)
def test_a_part_that_is_a_link_out_of_the_folder(kind: str, tmp_path: Path) -> None:
    files, entry, part = IN_PARTS[kind]
    folder = write(tmp_path / "m", files)
    expected = exported(folder / entry)
    below = folder / "below"
    below.mkdir()
    (folder / part).rename(below / "part")
    (folder / part).symlink_to("below/part")
    assert exported(folder / entry) == expected
    below.rename(tmp_path / "outside")
    # The part is a link into a folder of the model, and that folder is a link out of it.
    below.symlink_to(tmp_path / "outside")
    for link in ("below/part", tmp_path / "outside" / "part"):
        (folder / part).unlink()
        (folder / part).symlink_to(link)
        with pytest.raises(bnstat.BnstatError, match="is a link that leads out of the model's"):
            exported(folder / entry)


@pytest.mark.parametrize("kind", IN_PARTS)
def test_the_links_of_a_hubs_cache_are_followed(kind: str, tmp_path: Path) -> None:
    """Hugging Face's library keeps `snapshots/REVISION/FILE -> ../../blobs/HASH`."""
    files, entry, _ = IN_PARTS[kind]
    expected = exported(write(tmp_path / "plain", files) / entry)
    cache = tmp_path / "models--me--net"
    snapshot = cache / "snapshots" / "1a2b"
    snapshot.mkdir(parents=True)
    blobs = {f"{number:064x}": content for number, content in enumerate(files.values())}
    write(cache / "blobs", blobs)
    for name, blob in zip(files, blobs, strict=True):
        (snapshot / name).symlink_to(f"../../blobs/{blob}")
    assert exported(snapshot / entry) == expected
    (tmp_path / "link").symlink_to(snapshot)
    assert exported(tmp_path / "link" / entry) == expected


# Code


def test_lambda_layers_are_never_run(tmp_path: Path) -> None:
    flag = tmp_path / "was-run"
    code = marshal.dumps(compile(f"open({str(flag)!r}, 'w').close()", "x", "exec"))
    lambdas = [
        {"class_name": "Lambda", "config": {"name": "l", "function": function}}
        for function in (
            {"class_name": "__lambda__", "config": {"code": b64encode(code).decode()}},
            [b64encode(code).decode(), None, None],
            f"open({str(flag)!r}, 'w').close()",
        )
    ]
    for layer in lambdas:
        model = handmade.config()
        model["config"]["layers"].insert(0, layer)

        def fill(file: h5py.File, model: dict[str, Any] = model) -> None:
            handmade.legacy(file)
            file.attrs["model_config"] = json.dumps(model)

        path = tmp_path / "m"
        for content in (handmade.keras_archive(model), handmade.hdf5(fill)):
            path.write_bytes(content)
            assert [layer.name for layer in bnstat.load(path)] == ["bn0", "bn1"]
    assert not flag.exists()


def test_pickles_are_never_loaded(tmp_path: Path) -> None:
    flag = tmp_path / "was-run"
    payload = f"cbuiltins\nexec\n(Vopen({str(flag)!r}, 'w').close()\ntR.".encode()
    members = [("config.json", b"{}"), ("metadata.json", b"{}"), ("model.weights.npz", payload)]
    path = tmp_path / "m.keras"
    path.write_bytes(zipped(members))
    with pytest.raises(bnstat.UnsupportedError, match="pickle"):
        bnstat.load(path)
    assert not flag.exists()
