"""Scans of stores that are far away: S3, as moto serves it to boto's client, and memory."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from zipfile import ZipFile

import pytest

from bnstat.errors import BnstatError, NotFoundError
from bnstat.scanning.engines import engine
from bnstat.scanning.job import How
from bnstat.scanning.record import Record
from bnstat.scanning.state import State
from bnstat.scanning.walk import Choice, candidate
from bnstat.storage.access import Access
from bnstat.storage.find import find
from tests.builders.server import serving
from tests.scanning.stores import DATA, RUN, h5, linked, scanned, store


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Models of several forms: alone, of several files, in folders, in an archive, and damaged."""
    root = tmp_path_factory.mktemp("far") / "store"
    store(root, 1)
    linked(DATA / "digits_no_updates/saved_model", root / "bad")
    h5(root / "deep/er/one.h5", "a", "b")
    with ZipFile(root / "both.zip", "w") as archive:
        for name in ("run", "saved_model"):
            for path in (root / "0" / name).rglob("*"):
                archive.write(path, path.relative_to(root / "0"))
    whole = h5(root / "cut.h5").read_bytes()
    (root / "cut.h5").write_bytes(whole[: len(whole) // 2])
    (root / "notes.txt").write_text("nothing")
    (root / "noise.bin").write_bytes(bytes(1000))
    return root


@pytest.fixture(params=["memory", pytest.param("s3", marks=pytest.mark.slow)])
def far(request: pytest.FixtureRequest, models: Path) -> Iterator[str]:
    """The same models behind a URL."""
    fsspec = pytest.importorskip("fsspec")
    if request.param == "s3":
        request.getfixturevalue("s3")
    fs = fsspec.filesystem(request.param)
    fs.put(
        str(models), "/models/scan" if request.param == "memory" else "models/scan", recursive=True
    )
    yield f"{request.param}://models/scan"
    fs.rm("models/scan" if request.param == "s3" else "/models", recursive=True)


def below(records: list[Record], root: str) -> list[Record]:
    """The records, by their paths below a root."""
    told = [replace(record, path=os.path.relpath(record.path, root)) for record in records]
    return [replace(each, reason=each.reason.replace(root, "")) for each in told]


def scanned_far(*roots: str, **more: object) -> list[Record]:
    return scanned(*roots, **more)  # type: ignore[arg-type]


def test_the_same_records_as_on_disk(far: str, models: Path) -> None:
    near = below(scanned(models), str(models))
    assert len(near) == 9
    assert Counter(record.trouble for record in near) == {None: 8, "damaged": 1}
    assert below(scanned_far(far), far) == near


def test_file_urls_are_paths(models: Path) -> None:
    assert scanned_far(f"file://{models}") == scanned(models)


def test_models_as_roots(far: str, models: Path) -> None:
    for place in ("0/run/model-100", "0/run/model-100.index", "deep/er/one.h5"):
        (record,) = scanned_far(f"{far}/{place}")
        (expected,) = scanned(models / place)
        assert record == replace(expected, path=f"{far}/{place}")


def test_roots_within_roots_and_beside_them(far: str, models: Path) -> None:
    twice = scanned_far(far, f"{far}/deep", far, str(models / "deep"))
    assert len(twice) == 10
    assert len({record.path for record in twice}) == 10


def test_what_is_wanted(far: str) -> None:
    newest = Choice(newest=True, exclude=["bad", "*.h5"])
    found = below(scanned_far(far, choice=newest), far)
    assert [record.path for record in found] == ["0/run/model-400", "0/saved_model"]


def test_a_root_that_is_not_there(far: str) -> None:
    with pytest.raises(NotFoundError, match="nothing"):
        scanned_far(f"{far}/nothing/here")


def test_processes_do_not_see_this_ones_memory() -> None:
    fsspec = pytest.importorskip("fsspec")
    fsspec.filesystem("memory").pipe_file("/models/a.h5", b"")
    with engine(None, 2) as opened, pytest.raises(BnstatError, match="in this process alone"):
        scanned_far("memory://models", engine=opened)
    fsspec.filesystem("memory").rm("/models", recursive=True)


def test_processes_read_from_a_bucket(s3: str, models: Path) -> None:
    import s3fs
    from joblib.externals.loky import get_reusable_executor

    s3fs.S3FileSystem().put(str(models), "models/many", recursive=True)
    # Workers that an earlier test left behind do not know where this server is.
    get_reusable_executor().shutdown(wait=True)
    with engine(None, 2) as opened:
        found = scanned_far("s3://models/many", engine=opened)
    assert below(found, "s3://models/many") == below(scanned(models), str(models))


@pytest.fixture
def asked(s3: str, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """The requests to S3: what is asked for, and which key."""
    import s3fs

    told: list[tuple[str, str]] = []
    plain = s3fs.S3FileSystem._call_s3

    async def counted(self, method, *rest, **more):  # type: ignore[no-untyped-def]
        told.append((method, more.get("Key", "")))
        return await plain(self, method, *rest, **more)

    plain_pages = s3fs.S3FileSystem._iterdir

    def pages(self, bucket, *rest, **more):  # type: ignore[no-untyped-def]
        told.append(("list", str(rest)))
        return plain_pages(self, bucket, *rest, **more)

    monkeypatch.setattr(s3fs.S3FileSystem, "_call_s3", counted)
    monkeypatch.setattr(s3fs.S3FileSystem, "_iterdir", pages)
    return told


def test_a_large_bucket_is_listed_as_a_whole(
    s3: str, models: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """By the thousand keys, of which few may be models; moto's own log tells the requests."""
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
        assert len(scanned_far("s3://large")) == 35
    lines = [one.getMessage() for one in caplog.records if one.name == "werkzeug"]
    listings = sum("list-type=2" in line for line in lines)
    # A small file is fetched whole, once, to tell what it is and to read it.
    assert (listings, len(lines)) == (4, 4 + 35)


def test_only_what_changed_is_read_again(
    asked: list[tuple[str, str]], models: Path, tmp_path: Path
) -> None:
    import s3fs

    fs = s3fs.S3FileSystem()
    fs.put(str(models), "models/kept", recursive=True)
    root, path = "s3://models/kept", str(tmp_path / "state.db")

    def again() -> list[Record]:
        asked.clear()
        with closing(State(path, "how")) as state:
            return scanned_far(root, state=state)

    def read() -> set[str]:
        return {key for method, key in asked if method == "get_object"}

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


def test_the_state_forgets_what_is_gone(tmp_path: Path) -> None:
    root = tmp_path / "store"
    linked(RUN, root / "run")
    gone, other = h5(root / "gone.h5"), h5(tmp_path / "store-beside/other.h5")
    path = str(tmp_path / "state.db")

    def rows(*roots: Path, choice: Choice | None = None) -> int:
        with closing(State(path, "how")) as state:
            scanned(*roots, choice=choice, state=state)
            (count,) = state._base.execute("select count(*) from models").fetchone()
        return int(count)

    assert rows(root, other.parent) == 7
    gone.unlink()
    assert rows(root, choice=Choice(include=["run"])) == 7
    assert rows(root) == 6


def test_a_web_server_lists_nothing(models: Path) -> None:
    pytest.importorskip("aiohttp")
    with serving(models) as server:
        (record,) = scanned_far(f"{server.url}/deep/er/one.h5")
        assert record.layers == 2
        secret = f"{server.url.replace('//', '//me:hidden@')}/deep/er/one.h5?signature=hidden"
        (told,) = scanned_far(secret)
        assert told == record
        with pytest.raises(BnstatError, match="web server"):
            scanned_far(f"{server.url}/deep")


def test_a_key_that_may_not_be_read_is_a_line(models: Path) -> None:
    """As a bucket whose policy allows listing, and all objects but one."""
    pytest.importorskip("fsspec")
    import fsspec

    fs = fsspec.filesystem("memory")
    fs.put(str(models / "deep"), "/models/deep", recursive=True)
    h5bytes = (models / "deep/er/one.h5").read_bytes()
    fs.pipe_file("/models/locked.h5", h5bytes)
    plain = type(fs).cat_ranges

    def refusing(self, paths, *rest, **more):  # type: ignore[no-untyped-def]
        answers = plain(self, paths, *rest, **more)
        return [
            PermissionError(path) if "locked" in path else answer
            for path, answer in zip(paths, answers, strict=True)
        ]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(fs), "cat_ranges", refusing)
        found = scanned_far("memory://models")
    fs.rm("/models", recursive=True)
    assert [(record.trouble, record.layers) for record in found] == [(None, 2), ("unreadable", 0)]
    assert "access is denied" in found[1].reason


def test_a_bucket_that_may_not_be_listed(tmp_path: Path) -> None:
    pytest.importorskip("s3fs", reason="the driver for s3:// is not installed")
    with serving(tmp_path) as server:
        server.other = lambda handler: handler.status(403)
        options = {"endpoint_url": server.url, "key": "somebody", "secret": "hardly-a-secret"}
        with pytest.raises(BnstatError, match=r"s3://closed: access is denied") as caught:
            scanned_far("s3://closed", how=How(storage_options=options))
        assert "secret" not in str(caught.value)


def test_what_has_neither_tag_nor_time_is_always_read(far: str) -> None:
    folder = find(f"{far}/deep/er", Access()).folder
    assert folder is not None
    (entry,) = folder.entries()
    assert candidate(folder, "one.h5", "one.h5", [entry]).signature
    assert not candidate(folder, "one.h5", "one.h5", [entry._replace(tag="")]).signature


def test_storage_options_for_local_roots_are_refused(tmp_path: Path) -> None:
    options = {"storage_options": {"key": "hidden"}}
    with pytest.raises(BnstatError, match="storage options: apply to URLs"):
        How.of([str(tmp_path)], How().given, None, True, options)
    assert How.of([str(tmp_path), "s3://models"], How().given, None, True, options)


def test_secrets_are_in_no_record_and_no_key(tmp_path: Path) -> None:
    how = How.of(
        [], How().given, None, True, {"storage_options": {"key": "hidden"}, "reader": "auto"}
    )
    assert how.storage_options == {"key": "hidden"}
    assert "hidden" not in repr(how)
