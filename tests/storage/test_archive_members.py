"""Archives as folders: their members, what is read of them, and what is refused."""

from __future__ import annotations

import gzip
import io
import tarfile
import zipfile
from collections.abc import Callable, Mapping

import pytest

from bnstat.errors import BnstatError, DamagedError, UnsupportedError
from bnstat.storage import archive
from bnstat.storage.archive import open_archive
from bnstat.storage.files import Folder
from tests.builders.memory import MemoryFile
from tests.fuzz.handmade import tar, zipped

FILES = {"a/one": b"1" * 2000, "a/b/two": b"22", "three": b"333"}

PACKERS: Mapping[str, Callable[[Mapping[str, bytes]], bytes]] = {
    "stored": lambda files: zipped([*files.items()]),
    "deflated": lambda files: zipped([*files.items()], zipfile.ZIP_DEFLATED),
    "tar": lambda files: tar(dict(files), "w"),
    "tar.gz": lambda files: tar(dict(files), "w:gz"),
}
KINDS = pytest.mark.parametrize("kind", PACKERS)


def opened(kind: str, files: Mapping[str, bytes] = FILES) -> tuple[Folder, MemoryFile]:
    packed = MemoryFile(PACKERS[kind](files), "m")
    folder = open_archive(packed)
    assert folder is not None
    return folder, packed


def content(folder: Folder | None, name: str) -> bytes | None:
    assert folder is not None
    file = folder.file(name)
    return None if file is None else file.read()


@KINDS
def test_folders(kind: str) -> None:
    top, _ = opened(kind)
    assert (top.path, top.name, top.names()) == ("m", "", ["a", "three"])
    assert top.parent() is None
    assert content(top, "a/b/two") == b"22"
    assert [content(top, name) for name in ("a", "a/", "none", "one", "")] == [None] * 5
    assert [top.folder(name) for name in ("three", "none", "a/bb", "a/one")] == [None] * 4
    below = top.folder("a")
    assert below is not None
    assert (below.path, below.name, below.names()) == ("m/a", "a", ["b", "one"])
    assert content(below, "b/two") == b"22"
    assert content(below, "three") is None
    deep = below.folder("b")
    assert deep is not None
    assert (deep.path, deep.name, deep.names()) == ("m/a/b", "b", ["two"])
    up = deep.parent()
    assert up is not None
    assert (up.path, up.name) == ("m/a", "a")
    assert top.modified("three") == 0


@KINDS
def test_files(kind: str) -> None:
    top, _ = opened(kind)
    one = top.file("a/one")
    assert one is not None
    assert (one.name, one.path, one.size) == ("one", "m/a/one", 2000)
    assert one.read(1990, 10) == b"1" * 10
    with one.open() as stream:
        assert stream.read() == FILES["a/one"]
    with pytest.raises(DamagedError, match="truncated"):
        one.read(1, 2000)
    assert one.sibling("three") is None
    beside = one.sibling("one")
    assert beside is not None
    assert beside.path == "m/a/one"


@KINDS
def test_a_member_that_lies_there_as_it_is_has_a_place(kind: str) -> None:
    top, packed = opened(kind)
    one = top.file("a/one")
    assert one is not None
    place = one.place(5, 7, (slice(0, 7),))
    if kind == "stored":
        assert place is not None
        assert (place.file, place.part) == (packed, (slice(0, 7),))
        assert place.read() == b"1" * 7
    else:
        assert place is None


def test_a_compressed_member_is_fetched_with_what_stands_before_it() -> None:
    top, packed = opened("deflated")
    packed.fetched.clear()
    one = top.file("a/one")
    assert one is not None
    for _ in range(2):
        assert one.read() == FILES["a/one"]
    ((offset, length),) = packed.fetched
    with zipfile.ZipFile(io.BytesIO(packed.read())) as whole:
        info = whole.getinfo("a/one")
    assert offset == info.header_offset
    assert length == info.compress_size + 1024


@pytest.mark.parametrize("kind", ["tar", "tar.gz"])
def test_a_tar_is_fetched_whole(kind: str) -> None:
    _, packed = opened(kind)
    assert packed.fetched == [(0, packed.size)]


def test_what_is_no_archive() -> None:
    for data in (b"", b"x" * 600, b"PK", bytes(257) + b"ustap" + bytes(500)):
        assert open_archive(MemoryFile(data)) is None


@KINDS
@pytest.mark.parametrize(
    ("name", "inside"),
    [
        ("./x", "x"),
        ("a//x", "a/x"),
        ("/x", "x"),
        ("a\\x", "a/x"),
        ("../x", None),
        ("a/../../x", None),
        ("a\\..\\x", None),
    ],
)
def test_names_are_clean_or_none(kind: str, name: str, inside: str | None) -> None:
    top, _ = opened(kind, {name: b"x", "other": b""})
    names = ["other"] if inside is None else sorted([inside.split("/")[0], "other"])
    assert top.names() == names
    assert inside is None or content(top, inside) == b"x"


def test_folders_of_a_zip_are_no_files() -> None:
    top, _ = opened("stored", {"a/": b"", "a/x": b"x"})
    assert top.file("a") is None
    assert top.names() == ["a"]


def in_tar(*infos: tarfile.TarInfo) -> Folder | None:
    image = io.BytesIO()
    with tarfile.open(fileobj=image, mode="w") as whole:
        for info in infos:
            whole.addfile(info, io.BytesIO(bytes(info.size)))
    return open_archive(MemoryFile(image.getvalue()))


def test_a_tar_has_regular_files_alone() -> None:
    infos = []
    kinds = (tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE)
    for number, kind in enumerate(kinds):
        info = tarfile.TarInfo(f"x{number}")
        info.type, info.linkname = kind, "/etc/passwd"
        infos.append(info)
    sparse = tarfile.TarInfo("sparse")
    sparse.pax_headers = {"GNU.sparse.map": "0,1", "GNU.sparse.size": "9"}
    plain = tarfile.TarInfo("plain")
    plain.size = 3
    folder = in_tar(*infos, sparse, plain)
    assert folder is not None
    assert folder.names() == ["plain"]
    assert content(folder, "plain") == bytes(3)


def _allow_members(monkeypatch: pytest.MonkeyPatch, most: int) -> None:
    monkeypatch.setattr(archive, "MAX_MEMBERS", most)


class TestLimits:
    @KINDS
    @pytest.mark.parametrize(("most", "many"), [(3, False), (2, True)])
    def test_of_files(
        self, kind: str, most: int, many: bool, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        _allow_members(monkeypatch, most)
        if not many:
            assert len(opened(kind)[0].names()) == 2
            return
        with pytest.raises(BnstatError, match=r"more than 2 files|too many headers"):
            opened(kind)

    def test_of_what_a_tar_lists_without_holding_it(self, monkeypatch: pytest.MonkeyPatch) -> None:
        _allow_members(monkeypatch, 3)
        infos = [tarfile.TarInfo(f"x{number}") for number in range(5)]
        for info in infos:
            info.type = tarfile.DIRTYPE
        assert in_tar(*infos[:4]) is not None
        with pytest.raises(DamagedError, match="too many headers"):
            in_tar(*infos)

    @pytest.mark.parametrize("kind", ["deflated", "tar.gz"])
    def test_of_growth(self, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
        files = {"x": bytes(20_000)}
        packed = PACKERS[kind](files)
        if kind == "deflated":
            with zipfile.ZipFile(io.BytesIO(packed)) as whole:
                info = whole.getinfo("x")
            unpacked, compressed = info.file_size, info.compress_size
        else:
            unpacked, compressed = len(gzip.decompress(packed)), len(packed)
        monkeypatch.setattr(archive, "_CHUNK", unpacked - 50 * compressed)
        assert content(opened(kind, files)[0], "x") == files["x"]
        monkeypatch.setattr(archive, "_CHUNK", unpacked - 50 * compressed - 1)
        with pytest.raises(BnstatError, match="grows more than 50 times"):
            content(opened(kind, files)[0], "x")

    @pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
    def test_of_what_decompressing_takes(self, method: int) -> None:
        folder = open_archive(MemoryFile(zipped([("x", b"x")], method)))
        assert folder is not None
        with pytest.raises(UnsupportedError, match="x is not compressed by deflate"):
            content(folder, "x")


def test_a_member_that_is_damaged_is_named() -> None:
    data = bytearray(PACKERS["deflated"]({"x": bytes(range(256)) * 4}))
    data[45] ^= 0x55
    folder = open_archive(MemoryFile(bytes(data), "m"))
    with pytest.raises(DamagedError, match="m/x: cannot be unpacked"):
        content(folder, "x")


def test_a_member_that_cannot_be_read_any_more_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def break_(offset: int, length: int) -> bytes:
        raise OSError("Input/output error")

    file = MemoryFile(PACKERS["tar"](FILES), "m")
    folder = open_archive(file)
    assert content(folder, "three") == b"333"
    monkeypatch.setattr(file, "_read", break_)
    with pytest.raises(DamagedError, match=r"m/three: cannot be unpacked \(Input/output error\)"):
        content(folder, "three")


def test_a_member_that_is_not_where_it_should_be_is_named() -> None:
    data = bytearray(PACKERS["stored"]({"first": b"1", "x": b"2"}))
    data[data.rindex(b"PK\x03\x04")] ^= 0x55
    folder = open_archive(MemoryFile(bytes(data), "m"))
    assert content(folder, "first") == b"1"
    with pytest.raises(DamagedError, match="x is not where its directory says"):
        content(folder, "x")


@KINDS
def test_an_archive_that_is_cut_short_is_damaged(kind: str) -> None:
    packed = PACKERS[kind](FILES)
    cut = MemoryFile(packed[: 600 if kind == "tar" else len(packed) * 2 // 3], "m")
    with pytest.raises(DamagedError, match="m: is a truncated or damaged archive"):
        open_archive(cut)
