"""Scans of remote stores: S3 as served by moto, and fsspec's memory."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from bnstat.errors import BnstatError, NotFoundError
from bnstat.scanning.engines import open_engine
from bnstat.scanning.record import Record, State
from bnstat.scanning.walk import Choice, candidate
from bnstat.storage.access import Access
from bnstat.storage.local import find
from tests.builders.server import serving
from tests.scanning.stores import DATA, copied, h5, scanned, store
from tests.storage.test_archive import pack


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Models in one file, in several, in folders, in an archive, and a damaged one."""
    root = tmp_path_factory.mktemp("far") / "store"
    store(root, 1)
    copied(DATA / "digits_no_updates/saved_model", root / "bad")
    h5(root / "deep/er/one.h5", "a", "b")
    pack(root / "both.zip", "stored", root / "0")
    whole = h5(root / "cut.h5").read_bytes()
    (root / "cut.h5").write_bytes(whole[: len(whole) // 2])
    (root / "notes.txt").write_text("nothing")
    (root / "noise.bin").write_bytes(bytes(1000))
    return root


@pytest.fixture(params=["memory", pytest.param("s3", marks=pytest.mark.slow)])
def remote(request: pytest.FixtureRequest, models: Path) -> Iterator[str]:
    """The URL of the same models."""
    fsspec = pytest.importorskip("fsspec")
    if request.param == "s3":
        request.getfixturevalue("s3")
    fs = fsspec.filesystem(request.param)
    folder = "/models/scan" if request.param == "memory" else "models/scan"
    fs.put(str(models), folder, recursive=True)
    yield f"{request.param}://models/scan"
    fs.rm(folder, recursive=True)


def below(records: list[Record], root: str) -> list[Record]:
    """Return the records with paths below a root."""
    return [
        replace(each, path=os.path.relpath(each.path, root), reason=each.reason.replace(root, ""))
        for each in records
    ]


def test_the_same_records_as_on_disk(remote: str, models: Path) -> None:
    local = below(scanned(models), str(models))
    assert Counter(record.trouble for record in local) == {None: 8, "damaged": 1}
    assert below(scanned(remote), remote) == local


def test_models_as_roots(remote: str, models: Path) -> None:
    assert scanned(f"file://{models}") == scanned(models)
    for place in ("0/run/model-100", "0/run/model-100.index", "deep/er/one.h5"):
        (record,) = scanned(f"{remote}/{place}")
        (expected,) = scanned(models / place)
        assert record == replace(expected, path=f"{remote}/{place}")


def test_roots_within_roots_and_beside_them(remote: str, models: Path) -> None:
    records = scanned(remote, f"{remote}/deep", remote, str(models / "deep"))
    assert len(records) == 10
    assert len({record.path for record in records}) == 10


def test_models_are_chosen(remote: str) -> None:
    newest = Choice(newest=True, exclude=["bad", "*.h5"])
    records = below(scanned(remote, choice=newest), remote)
    assert [record.path for record in records] == ["0/run/model-400", "0/saved_model"]


def test_a_missing_root(remote: str) -> None:
    with pytest.raises(NotFoundError, match="nothing"):
        scanned(f"{remote}/nothing/here")


def test_memory_urls_need_this_process() -> None:
    fs = pytest.importorskip("fsspec").filesystem("memory")
    fs.pipe_file("/models/a.h5", b"")
    with open_engine(None, 2) as engine, pytest.raises(BnstatError, match="processes cannot read"):
        scanned("memory://models", engine=engine)
    fs.rm("/models", recursive=True)


def test_processes_read_from_a_bucket(s3: str, models: Path) -> None:
    import s3fs

    s3fs.S3FileSystem().put(str(models), "models/many", recursive=True)
    with open_engine(None, 2) as engine:
        records = scanned("s3://models/many", engine=engine)
    assert below(records, "s3://models/many") == below(scanned(models), str(models))


def test_a_large_bucket_is_listed_as_a_whole(s3, models, caplog) -> None:
    """One request lists a thousand keys, however few of them may be models."""
    import s3fs
    from moto.s3.models import s3_backends

    s3fs.S3FileSystem().mkdir("large")
    ((_, account),) = s3_backends.items()
    content = (models / "deep/er/one.h5").read_bytes()
    for number in range(3500):
        name = f"{number}/of/many/a.{'h5' if number % 100 == 0 else 'txt'}"
        account["aws"].put_object("large", name, content)
    caplog.clear()
    with caplog.at_level("INFO", "werkzeug"):
        assert len(scanned("s3://large")) == 35
    lines = [log.getMessage() for log in caplog.records if log.name == "werkzeug"]
    listings = sum("list-type=2" in line for line in lines)
    # A small file is fetched once, whole, to identify and to read it.
    assert (listings, len(lines)) == (4, 4 + 35)


def test_only_changed_objects_are_read_again(s3_requests, models, tmp_path) -> None:
    import s3fs

    fs = s3fs.S3FileSystem()
    fs.put(str(models), "models/kept", recursive=True)
    root, path = "s3://models/kept", str(tmp_path / "state.db")

    def again() -> list[Record]:
        s3_requests.clear()
        with closing(State(path, "how")) as state:
            return scanned(root, state=state)

    def read() -> set[str]:
        return {key for method, key in s3_requests if method == "get_object"}

    first = again()
    assert read()
    assert again() == first
    assert not read()
    fs.pipe_file("models/kept/deep/er/one.h5", h5(tmp_path / "other.h5", "c").read_bytes())
    second = again()
    assert read() == {"kept/deep/er/one.h5"}
    assert [record.layers for record in second if record.path.endswith("one.h5")] == [1]
    fs.rm("models/kept/deep", recursive=True)
    assert len(again()) == len(first) - 1
    assert not read()


def test_a_web_server_lists_nothing(models: Path) -> None:
    pytest.importorskip("aiohttp")
    with serving(models) as server:
        (record,) = scanned(f"{server.url}/deep/er/one.h5")
        assert record.layers == 2
        secret = f"{server.url.replace('//', '//me:hidden@')}/deep/er/one.h5?signature=hidden"
        assert scanned(secret) == [record]
        with pytest.raises(BnstatError, match="web server"):
            scanned(f"{server.url}/deep")


def test_an_object_that_may_not_be_read_gets_a_record(models, monkeypatch) -> None:
    fs = pytest.importorskip("fsspec").filesystem("memory")
    content = (models / "deep/er/one.h5").read_bytes()
    for name in ("deep/er/one.h5", "locked.h5"):
        fs.pipe_file(f"/models/{name}", content)
    plain = type(fs).cat_ranges

    def refusing(self, paths, *rest, **more):  # type: ignore[no-untyped-def]
        pairs = zip(paths, plain(self, paths, *rest, **more), strict=True)
        return [PermissionError() if "locked" in path else content for path, content in pairs]

    monkeypatch.setattr(type(fs), "cat_ranges", refusing)
    records = scanned("memory://models")
    fs.rm("/models", recursive=True)
    assert [(record.trouble, record.layers) for record in records] == [(None, 2), ("unreadable", 0)]
    assert "access is denied" in records[1].reason


def test_a_file_without_tag_and_time_has_no_signature(remote: str) -> None:
    folder = find(f"{remote}/deep/er", Access()).folder
    (entry,) = folder.entries()
    assert candidate(folder, "one.h5", "one.h5", [entry]).signature
    entry = entry._replace(tag="", modified=0.0)
    assert not candidate(folder, "one.h5", "one.h5", [entry]).signature
