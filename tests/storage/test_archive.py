"""Archives as folders: members, in-place reading, whole models in them, and what is refused."""

from __future__ import annotations

import gzip
import io
import os
import tarfile
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import bnstat
from bnstat.errors import BnstatError, DamagedError, UnsupportedError
from bnstat.storage import archive
from bnstat.storage.archive import Slice, open_archive, stored_member
from bnstat.storage.files import Folder
from tests.builders.memory import MemoryFile
from tests.builders.oracle import assert_layers
from tests.fuzz.handmade import tar, zipped

# Handles of archives are closed when the model is collected.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")

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
def test_only_stored_members_have_a_place(kind: str) -> None:
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


def test_a_compressed_member_is_fetched_with_its_header() -> None:
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


def test_other_files_are_not_archives() -> None:
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
def test_names_of_members(kind: str, name: str, inside: str | None) -> None:
    top, _ = opened(kind, {name: b"x", "other": b""})
    names = ["other"] if inside is None else sorted([inside.split("/")[0], "other"])
    assert top.names() == names
    assert inside is None or content(top, inside) == b"x"


def test_folders_of_a_zip_are_not_files() -> None:
    top, _ = opened("stored", {"a/": b"", "a/x": b"x"})
    assert top.file("a") is None
    assert top.names() == ["a"]


def in_tar(*infos: tarfile.TarInfo) -> Folder | None:
    image = io.BytesIO()
    with tarfile.open(fileobj=image, mode="w") as whole:
        for info in infos:
            whole.addfile(info, io.BytesIO(bytes(info.size)))
    return open_archive(MemoryFile(image.getvalue()))


def test_only_regular_files_of_a_tar_are_listed() -> None:
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


class TestLimits:
    @KINDS
    def test_of_files(self, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(archive, "MAX_MEMBERS", 3)
        assert len(opened(kind)[0].names()) == 2
        monkeypatch.setattr(archive, "MAX_MEMBERS", 2)
        with pytest.raises(BnstatError, match=r"more than 2 files|too many headers"):
            opened(kind)

    def test_of_headers_in_a_tar(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(archive, "MAX_MEMBERS", 3)
        infos = [tarfile.TarInfo(f"x{number}") for number in range(4)]
        for info in infos:
            info.type = tarfile.DIRTYPE
        assert in_tar(*infos[:3]) is not None
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
    def test_of_compression_methods(self, method: int) -> None:
        folder = open_archive(MemoryFile(zipped([("x", b"x")], method)))
        assert folder is not None
        with pytest.raises(
            UnsupportedError, match="the compression method of x; unpack the archive"
        ):
            content(folder, "x")


def test_a_damaged_member_is_named() -> None:
    data = bytearray(PACKERS["deflated"]({"x": bytes(range(256)) * 4}))
    data[45] ^= 0x55
    folder = open_archive(MemoryFile(bytes(data), "m"))
    with pytest.raises(DamagedError, match="m/x: cannot be unpacked"):
        content(folder, "x")


def test_an_unreadable_member_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def break_(offset: int, length: int) -> bytes:
        raise OSError("Input/output error")

    file = MemoryFile(PACKERS["tar"](FILES), "m")
    folder = open_archive(file)
    assert content(folder, "three") == b"333"
    monkeypatch.setattr(file, "_read", break_)
    with pytest.raises(DamagedError, match=r"m/three: cannot be unpacked \(Input/output error\)"):
        content(folder, "three")


def test_a_misplaced_member_is_named() -> None:
    data = bytearray(PACKERS["stored"]({"first": b"1", "x": b"2"}))
    data[data.rindex(b"PK\x03\x04")] ^= 0x55
    folder = open_archive(MemoryFile(bytes(data), "m"))
    assert content(folder, "first") == b"1"
    with pytest.raises(DamagedError, match="wrong offset for x"):
        content(folder, "x")


@KINDS
def test_truncated_archives(kind: str) -> None:
    packed = PACKERS[kind](FILES)
    cut = MemoryFile(packed[: 600 if kind == "tar" else len(packed) * 2 // 3], "m")
    with pytest.raises(DamagedError, match="m: is a truncated or damaged archive"):
        open_archive(cut)


class Remote(MemoryFile):
    """A file that records calls."""

    def __init__(self, data: bytes) -> None:
        super().__init__(data, "whole")
        self.asked: list[tuple[int, ...]] = []

    def has(self, offset: int, length: int) -> bool:
        self.asked.append((offset, length))
        return offset < 5

    def allow_waste(self, size: int) -> None:
        self.asked.append((size,))


def test_slices() -> None:
    part = Slice(MemoryFile(b"0123456789", "whole"), 3, 7, "part")
    assert (part.name, part.path, part.size) == ("part", "whole/part", 7)
    assert part.read() == b"3456789"
    assert part.sibling("part") is None
    with pytest.raises(DamagedError, match="whole/part: truncated"):
        part.read(7, 1)
    with pytest.raises(DamagedError, match="whole: truncated"):
        Slice(MemoryFile(b"0123456789", "whole"), 3, 8, "part")


def test_slices_forward_calls() -> None:
    whole = Remote(b"0123456789")
    part = Slice(whole, 3, 7, "part")
    assert part.has(1, 2) is True
    assert part.has(2, 2) is False
    part.allow_waste(99)
    assert whole.asked == [(4, 2), (5, 2), (99,)]


def two_members() -> bytearray:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as whole:
        for name, method in (("stored", zipfile.ZIP_STORED), ("packed", zipfile.ZIP_DEFLATED)):
            info = zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0))
            info.extra = b"\x99\x99\x04\x00four"
            info.compress_type = method
            whole.writestr(info, b"0123456789" * 10)
    return bytearray(stream.getvalue())


def directory_entry(data: bytearray, name: bytes) -> int:
    """Return the position of a member's entry in the directory."""
    return data.index(name, data.index(b"PK\1\2")) - 46


def test_only_stored_members_are_read_in_place() -> None:
    file = MemoryFile(bytes(two_members()), "m")
    member = stored_member(file, "stored")
    assert member is not None
    assert (member.name, member.path) == ("stored", "m/stored")
    assert member.read() == b"0123456789" * 10
    assert stored_member(file, "packed") is None
    assert stored_member(file, "none") is None


@pytest.mark.parametrize("name", ["stored", "packed"])
def test_encrypted_members(name: str) -> None:
    data = two_members()
    data[directory_entry(data, name.encode()) + 8] |= 1
    file = MemoryFile(bytes(data), "m")
    assert stored_member(file, name) is None
    folder = open_archive(file)
    with pytest.raises(
        DamagedError, match=f"m/{name}: this member of the zip is encrypted; unpack the archive"
    ):
        content(folder, name)


def test_damaged_archives() -> None:
    newer = two_members()
    newer[directory_entry(newer, b"stored") + 6] = 99
    for data in (b"", bytes(two_members())[:-30], bytes(newer)):
        with pytest.raises(DamagedError, match="m: is a damaged archive"):
            stored_member(MemoryFile(data, "m"), "stored")


SUFFIXES = pytest.mark.parametrize("kind", ["zip", "stored.zip", "tar", "tar.gz", "tgz"])


def pack(source: Path, target: Path, inside: str = "", folders: bool = True) -> Path:
    """Pack a folder into an archive, below the folder `inside`."""
    files = sorted(path for path in source.rglob("*") if folders or path.is_file())
    if target.suffix == ".zip":
        kind = zipfile.ZIP_STORED if "stored" in target.name else zipfile.ZIP_DEFLATED
        with zipfile.ZipFile(target, "w", kind) as archive:
            for path in files:
                archive.write(path, f"{inside}{path.relative_to(source)}")
    else:
        mode: Any = "w" if target.suffix == ".tar" else "w:gz"
        with tarfile.open(target, mode) as archive:
            for path in files:
                archive.add(path, f"{inside}{path.relative_to(source)}", recursive=False)
    return target


@pytest.fixture(scope="module")
def digits() -> Path:
    return Path(__file__).parents[1] / "data" / "digits"


@pytest.mark.parametrize("inside", ["", "model/", "./", "a/b/c/"])
@SUFFIXES
def test_saved_models(tmp_path: Path, digits: Path, kind: str, inside: str) -> None:
    archive = pack(digits / "saved_model", tmp_path / f"m.{kind}", inside)
    plain, packed = bnstat.load(digits / "saved_model"), bnstat.load(archive)
    expected = {layer.name: {r: layer.array(r) for r in layer.variables} for layer in plain}
    assert_layers(packed, expected)
    assert [layer.epsilon for layer in packed] == [layer.epsilon for layer in plain]
    assert packed.source.format == "saved-model"
    assert os.listdir(tmp_path) == [archive.name]


@SUFFIXES
def test_runs_of_checkpoints(tmp_path: Path, digits: Path, kind: str) -> None:
    archive = pack(digits / "run", tmp_path / f"m.{kind}", "run/", folders=False)
    for options in ({}, {"checkpoint": "model-100"}, {"step": 0}):
        plain = bnstat.load(digits / "run", **options)
        packed = bnstat.load(archive, **options)
        assert packed.source.checkpoint == plain.source.checkpoint
        expected = {layer.name: {r: layer.array(r) for r in layer.variables} for layer in plain}
        assert_layers(packed, expected)


def test_archives_with_any_name(tmp_path: Path, digits: Path) -> None:
    archive = pack(digits / "saved_model", tmp_path / "m.tar.gz").rename(tmp_path / "m.h5")
    assert len(bnstat.load(archive)) == 3


@SUFFIXES
def test_truncated_or_damaged_models(tmp_path: Path, digits: Path, kind: str) -> None:
    archive = pack(digits / "saved_model", tmp_path / f"m.{kind}")
    whole = archive.read_bytes()
    for cut in (600, len(whole) // 2, len(whole) * 3 // 4):
        archive.write_bytes(whole[:cut])
        with pytest.raises(BnstatError):
            bnstat.load(archive, eager=True)
    generator = np.random.default_rng(1)
    for position in generator.integers(len(whole), size=40):
        changed = bytearray(whole)
        changed[position] ^= 0x55
        archive.write_bytes(changed)
        try:
            bnstat.load(archive, eager=True)
        except BnstatError:
            continue


def test_empty_archives(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "m.tar.gz", "w:gz"):
        pass
    with zipfile.ZipFile(tmp_path / "m.zip", "w"):
        pass
    for name in ("m.tar.gz", "m.zip"):
        with pytest.raises(BnstatError):
            bnstat.load(tmp_path / name)


def test_names_of_thousands_of_digits(tmp_path: Path) -> None:
    for name in (f"m-{'9' * 6000}.index", f"{'9' * 6000}/saved_model.pb"):
        with zipfile.ZipFile(tmp_path / "m.zip", "w") as archive:
            archive.writestr(name, b"x")
        with pytest.raises(BnstatError):
            bnstat.load(tmp_path / "m.zip")


def test_tensorflows_reader_reads_no_archive(tmp_path: Path, digits: Path) -> None:
    archive = pack(digits / "saved_model", tmp_path / "m.zip")
    with pytest.raises(BnstatError, match="unpack it"):
        bnstat.load(archive, reader="tensorflow")
