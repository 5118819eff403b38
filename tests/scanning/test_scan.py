from __future__ import annotations

import gzip
import os
import zipfile
from pathlib import Path

import numpy as np
import pytest

from bnstat.checks.settings import Settings
from bnstat.errors import BnstatError, NotFoundError
from bnstat.scanning.scan import ScanOptions
from tests.cli.files import write_h5
from tests.output.models import layer
from tests.scanning.stores import DATA, RUN, SAVED, copied, h5, scanned, summary
from tests.storage.test_archive import pack

BAD = DATA / "digits_no_updates/saved_model"


def test_every_model_of_a_store(tmp_path: Path) -> None:
    copied(RUN, tmp_path / "run")
    copied(SAVED, tmp_path / "saved")
    h5(tmp_path / "a/b/one.h5", "bn", "other")
    steps = {f"run/model-{step}": 3 for step in range(0, 500, 100)}
    assert summary(scanned(tmp_path), tmp_path) == {"a/b/one.h5": 2, "saved": 3, **steps}


def test_a_record_holds_the_findings_of_check() -> None:
    (record,) = scanned(BAD)
    assert (record.format, record.layers, record.channels) == ("saved-model", 3, 40)
    assert (record.worst, record.rule, record.findings) == ("warning", "BN001", {"BN001": 4})
    (record,) = scanned(BAD, options=ScanOptions(Settings(ignore=("BN001",))))
    assert record.findings == {}


def test_roots_that_are_models(tmp_path: Path) -> None:
    file = h5(tmp_path / "one.h5")
    records = scanned(RUN / "model-400", file, SAVED)
    assert {record.path: record.layers for record in records} == {
        str(RUN / "model-400"): 3,
        str(file): 1,
        str(SAVED): 3,
    }


def test_a_missing_root_ends_the_scan_before_it_begins(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError):
        scanned(SAVED, tmp_path / "nothing")


def test_unreadable_models_get_records(tmp_path: Path) -> None:
    content = h5(tmp_path / "whole.h5").read_bytes()
    (tmp_path / "cut.h5").write_bytes(content[: len(content) // 2])
    copied(RUN, tmp_path / "run")
    (tmp_path / "run/model-100.data-00000-of-00001").unlink()
    (tmp_path / "run/model-200.index").unlink()
    (tmp_path / "lfs.h5").write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
    with zipfile.ZipFile(tmp_path / "bomb.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("model.h5", b"\x89HDF\r\n\x1a\n" + bytes(30_000_000))
    assert summary(scanned(tmp_path), tmp_path) == {
        "bomb.zip": "unreadable",
        "cut.h5": "damaged",
        "lfs.h5": "damaged",
        "run/model-0": 3,
        "run/model-100": "missing",
        "run/model-200": "missing",
        "run/model-300": 3,
        "run/model-400": 3,
        "whole.h5": 1,
    }


def test_other_files_get_no_record(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("nothing")
    (tmp_path / "records-00000-of-00002").write_bytes(os.urandom(100))
    (tmp_path / "records-00001-of-00002").write_bytes(os.urandom(100))
    (tmp_path / "empty.h5").write_bytes(b"")
    np.savez(tmp_path / "data.npz", images=np.zeros((4, 8)))
    (tmp_path / "t10k-labels-idx1-ubyte.gz").write_bytes(gzip.compress(os.urandom(2000)))
    with zipfile.ZipFile(tmp_path / "docs.zip", "w") as archive:
        archive.writestr("a.txt", "nothing")
    roles = ("gamma", "beta", "moving_mean", "moving_variance")
    np.savez(tmp_path / "model.npz", **{f"bn/{role}": np.ones(4, "f4") for role in roles})
    assert summary(scanned(tmp_path), tmp_path) == {"model.npz": 1}


def test_models_in_archives(tmp_path: Path) -> None:
    pack(tmp_path / "run.zip", "stored", RUN, "run/")
    records = [(record.path, record.checkpoint, record.layers) for record in scanned(tmp_path)]
    assert records == [(str(tmp_path / "run.zip"), f"model-{n}", 3) for n in range(0, 500, 100)]


def test_paths_are_recorded_unchanged(tmp_path: Path) -> None:
    names = ["new\nline.h5", "\x1b[31mred.h5", os.fsdecode(b"\xff\xfe.h5"), "=1+1.h5"]
    for name in names:
        h5(tmp_path / name)
    assert summary(scanned(tmp_path), tmp_path) == dict.fromkeys(names, 1)


def test_a_model_without_batch_norm_does_not_fail(tmp_path: Path) -> None:
    write_h5(tmp_path / "dense.h5", layer("dense", {"kernel": np.ones((2, 2))}))
    (record,) = scanned(tmp_path)
    assert (record.layers, record.worst, record.trouble) == (0, None, None)
    assert not record.fails("info")


def test_settings_are_read_from_above_the_roots_only(tmp_path: Path) -> None:
    copied(BAD, tmp_path / "store/model")
    (tmp_path / "store/model/bnstat.toml").write_text("ignore = ['BN001']\n")

    def findings() -> list[dict[str, int]]:
        root = str(tmp_path / "store")
        options = ScanOptions.of([root], Settings(), None, False, {})
        return [dict(record.findings) for record in scanned(root, options=options)]

    assert findings() == [{"BN001": 4}]
    (tmp_path / "bnstat.toml").write_text("ignore = ['BN001']\n")
    assert findings() == [{}]


def test_storage_options(tmp_path: Path) -> None:
    reading = {"storage_options": {"key": "hidden"}, "reader": "auto"}
    with pytest.raises(BnstatError, match="storage options: apply only to URLs"):
        ScanOptions.of([str(tmp_path)], Settings(), None, True, reading)
    options = ScanOptions.of([str(tmp_path), "s3://models"], Settings(), None, True, reading)
    assert options.storage_options == {"key": "hidden"}
    # The state file contains a hash of this text.
    assert "hidden" not in repr(options)
