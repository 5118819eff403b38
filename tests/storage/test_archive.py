"""Archives as folders: members, in-place reading, whole models in them, and what is refused."""

from __future__ import annotations

import gzip
import io
import os
import tarfile
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from unittest.mock import Mock, call

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
DIGITS = Path(__file__).parents[1] / "data" / "digits"

PACKERS: Mapping[str, Callable[[Mapping[str, bytes]], bytes]] = {
    "stored": lambda files: zipped([*files.items()]),
    "deflated": lambda files: zipped([*files.items()], zipfile.ZIP_DEFLATED),
    "tar": lambda files: tar(dict(files), "w"),
    "tar.gz": lambda files: tar(dict(files), "w:gz"),
}
KINDS = pytest.mark.parametrize("kind", PACKERS)


def folder_in(data: bytes | MemoryFile) -> Folder:
    return open_archive(MemoryFile(data, "m") if isinstance(data, bytes) else data)


def opened(kind: str, files: Mapping[str, bytes] = FILES) -> Folder:
    return folder_in(PACKERS[kind](files))


def content(folder: Folder, name: str) -> bytes | None:
    file = folder.file(name)
    return None if file is None else file.read()


@KINDS
def test_folders(kind: str) -> None:
    top = opened(kind)
    assert (top.path, top.name, top.names()) == ("m", "", ["a", "three"])
    assert (top.parent(), top.modified("three")) == (None, 0)
    assert content(top, "a/b/two") == b"22"
    assert [content(top, name) for name in ("a", "a/", "none", "one", "")] == [None] * 5
    assert [top.folder(name) for name in ("three", "none", "a/bb", "a/one")] == [None] * 4
    below = top.folder("a")
    assert (below.path, below.name, below.names()) == ("m/a", "a", ["b", "one"])
    assert (content(below, "b/two"), content(below, "three")) == (b"22", None)
    deep = below.folder("b")
    assert (deep.path, deep.name, deep.names()) == ("m/a/b", "b", ["two"])
    assert (deep.parent().path, deep.parent().name) == ("m/a", "a")


@KINDS
def test_files(kind: str) -> None:
    one = opened(kind).file("a/one")
    assert (one.name, one.path, one.size) == ("one", "m/a/one", 2000)
    assert one.read(1990, 10) == b"1" * 10
    with one.open() as stream:
        assert stream.read() == FILES["a/one"]
    with pytest.raises(DamagedError, match="truncated"):
        one.read(1, 2000)
    assert (one.sibling("one").path, one.sibling("three")) == ("m/a/one", None)


@KINDS
def test_only_stored_members_have_a_place(kind: str) -> None:
    packed = MemoryFile(PACKERS[kind](FILES), "m")
    place = folder_in(packed).file("a/one").place(5, 7, (slice(0, 7),))
    assert (place is not None) is (kind == "stored")
    if place is not None:
        assert (place.file, place.part, place.read()) == (packed, (slice(0, 7),), b"1" * 7)


def test_a_compressed_member_is_fetched_with_its_header() -> None:
    packed = MemoryFile(PACKERS["deflated"](FILES), "m")
    one = folder_in(packed).file("a/one")
    packed.fetched.clear()
    for _ in range(2):
        assert one.read() == FILES["a/one"]
    with zipfile.ZipFile(io.BytesIO(packed.read())) as whole:
        info = whole.getinfo("a/one")
    header = 30 + len(info.filename) + 128
    assert packed.fetched == [(info.header_offset, header + info.compress_size)]


@pytest.mark.parametrize("kind", ["tar", "tar.gz"])
def test_a_tar_is_fetched_whole(kind: str) -> None:
    packed = MemoryFile(PACKERS[kind](FILES))
    open_archive(packed)
    assert packed.fetched == [(0, packed.size)]


def test_other_files_are_not_archives() -> None:
    other = gzip.compress(b"x" * 600)
    for data in (b"", b"x" * 600, b"PK", bytes(257) + b"ustap" + bytes(500), other):
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
    top = opened(kind, {name: b"x", "other": b""})
    names = ["other"] if inside is None else sorted([inside.split("/")[0], "other"])
    assert top.names() == names
    assert inside is None or content(top, inside) == b"x"


def test_folders_of_a_zip_are_not_files() -> None:
    top = opened("stored", {"a/": b"", "a/x": b"x"})
    assert (top.file("a"), top.names()) == (None, ["a"])


def in_tar(*infos: tarfile.TarInfo) -> Folder:
    image = io.BytesIO()
    with tarfile.open(fileobj=image, mode="w") as whole:
        for info in infos:
            whole.addfile(info, io.BytesIO(bytes(info.size)))
    return folder_in(image.getvalue())


def infos_of(*kinds: bytes) -> list[tarfile.TarInfo]:
    infos = []
    for number, kind in enumerate(kinds):
        infos.append(tarfile.TarInfo(f"x{number}"))
        infos[-1].type, infos[-1].linkname = kind, "/etc/passwd"
    return infos


def test_only_regular_files_of_a_tar_are_listed() -> None:
    kinds = (tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE)
    sparse = tarfile.TarInfo("sparse")
    sparse.pax_headers = {"GNU.sparse.map": "0,1", "GNU.sparse.size": "9"}
    plain = tarfile.TarInfo("plain")
    plain.size = 3
    folder = in_tar(*infos_of(*kinds), sparse, plain)
    assert folder.names() == ["plain"]
    assert content(folder, "plain") == bytes(3)


class TestLimits:
    @KINDS
    def test_of_files(self, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(archive, "MAX_MEMBERS", 3)
        assert len(opened(kind).names()) == 2
        monkeypatch.setattr(archive, "MAX_MEMBERS", 2)
        with pytest.raises(BnstatError, match=r"more than 2 files|too many headers"):
            opened(kind)

    def test_of_headers_in_a_tar(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(archive, "MAX_MEMBERS", 3)
        infos = infos_of(*[tarfile.DIRTYPE] * 4)
        assert in_tar(*infos[:3]).names() == []
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
        assert content(folder_in(packed), "x") == files["x"]
        monkeypatch.setattr(archive, "_CHUNK", unpacked - 50 * compressed - 1)
        with pytest.raises(BnstatError, match="grows more than 50 times"):
            content(folder_in(packed), "x")

    @pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
    def test_of_compression_methods(self, method: int) -> None:
        folder = folder_in(zipped([("x", b"x")], method))
        with pytest.raises(UnsupportedError, match="the compression method of x; unpack the arch"):
            content(folder, "x")


def test_a_damaged_member_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    data = bytearray(PACKERS["deflated"]({"x": bytes(range(256)) * 4}))
    data[45] ^= 0x55
    with pytest.raises(DamagedError, match="m/x: cannot be unpacked"):
        content(folder_in(bytes(data)), "x")
    data = bytearray(PACKERS["stored"]({"first": b"1", "x": b"2"}))
    data[data.rindex(b"PK\x03\x04")] ^= 0x55
    folder = folder_in(bytes(data))
    assert content(folder, "first") == b"1"
    with pytest.raises(DamagedError, match="wrong offset for x"):
        content(folder, "x")

    def break_(offset: int, length: int) -> bytes:
        raise OSError("Input/output error")

    file = MemoryFile(PACKERS["tar"](FILES), "m")
    folder = folder_in(file)
    monkeypatch.setattr(file, "_read", break_)
    with pytest.raises(DamagedError, match=r"m/three: cannot be unpacked \(Input/output error\)"):
        content(folder, "three")


@KINDS
def test_truncated_archives(kind: str) -> None:
    packed = PACKERS[kind](FILES)
    cut = MemoryFile(packed[: 600 if kind == "tar" else len(packed) * 2 // 3], "m")
    with pytest.raises(DamagedError, match="m: is a truncated or damaged archive"):
        open_archive(cut)


def test_slices() -> None:
    whole = MemoryFile(b"0123456789", "whole")
    part = Slice(whole, 3, 7, "part")
    assert (part.name, part.path, part.size) == ("part", "whole/part", 7)
    assert (part.read(), part.sibling("part")) == (b"3456789", None)
    with pytest.raises(DamagedError, match="whole/part: truncated"):
        part.read(7, 1)
    with pytest.raises(DamagedError, match="whole: truncated"):
        Slice(whole, 3, 8, "part")
    whole.has, whole.allow_waste = Mock(side_effect=[True, False]), Mock()
    assert (part.has(1, 2), part.has(2, 2)) == (True, False)
    part.allow_waste(99)
    assert whole.has.mock_calls == [call(4, 2), call(5, 2)]
    assert whole.allow_waste.mock_calls == [call(99)]


def two_members() -> bytearray:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as whole:
        for name, method in (("stored", zipfile.ZIP_STORED), ("packed", zipfile.ZIP_DEFLATED)):
            info = zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0))
            info.extra, info.compress_type = b"\x99\x99\x04\x00four", method
            whole.writestr(info, b"0123456789" * 10)
    return bytearray(stream.getvalue())


def directory_entry(data: bytearray, name: bytes) -> int:
    """Return the position of a member's entry in the directory."""
    return data.index(name, data.index(b"PK\1\2")) - 46


def test_only_stored_members_are_read_in_place() -> None:
    file = MemoryFile(bytes(two_members()), "m")
    member = stored_member(file, "stored")
    assert (member.name, member.path) == ("stored", "m/stored")
    assert member.read() == b"0123456789" * 10
    assert stored_member(file, "packed") is stored_member(file, "none") is None


@pytest.mark.parametrize("name", ["stored", "packed"])
def test_encrypted_members(name: str) -> None:
    data = two_members()
    data[directory_entry(data, name.encode()) + 8] |= 1
    file = MemoryFile(bytes(data), "m")
    assert stored_member(file, name) is None
    message = f"m/{name}: this member of the zip is encrypted; unpack the archive"
    with pytest.raises(DamagedError, match=message):
        content(folder_in(file), name)


def test_an_archive_that_needs_a_newer_version() -> None:
    newer = two_members()
    newer[directory_entry(newer, b"stored") + 6] = 99
    with pytest.raises(DamagedError, match="m: is a truncated or damaged archive"):
        open_archive(MemoryFile(bytes(newer), "m"))


def pack(path: Path, kind: str, source: Path, inside: str = "") -> Path:
    """Pack a folder into an archive, below the folder `inside`."""
    files = {
        f"{inside}{file.relative_to(source)}": file.read_bytes()
        for file in sorted(source.rglob("*"))
        if file.is_file()
    }
    path.write_bytes(PACKERS[kind](files))
    return path


def assert_same(packed: bnstat.Model, plain: bnstat.Model) -> None:
    assert_layers(packed, {each.name: {r: each.array(r) for r in each.variables} for each in plain})
    assert [layer.epsilon for layer in packed] == [layer.epsilon for layer in plain]


@pytest.mark.parametrize("inside", ["", "model/", "./", "a/b/c/"])
@KINDS
def test_saved_models(tmp_path: Path, kind: str, inside: str) -> None:
    # The name of the file does not matter.
    packed = bnstat.load(pack(tmp_path / "m.h5", kind, DIGITS / "saved_model", inside))
    assert_same(packed, bnstat.load(DIGITS / "saved_model"))
    assert packed.source.format == "saved-model"
    assert os.listdir(tmp_path) == ["m.h5"]


@KINDS
def test_runs_of_checkpoints(tmp_path: Path, kind: str) -> None:
    path = pack(tmp_path / "m", kind, DIGITS / "run", "run/")
    for options in ({}, {"checkpoint": "model-100"}, {"step": 0}):
        plain, packed = bnstat.load(DIGITS / "run", **options), bnstat.load(path, **options)
        assert packed.source.checkpoint == plain.source.checkpoint
        assert_same(packed, plain)


@pytest.mark.parametrize(
    ("kind", "names"),
    [
        ("stored", []),
        ("tar.gz", []),
        ("stored", [f"m-{'9' * 6000}.index"]),
        ("stored", [f"{'9' * 6000}/saved_model.pb"]),
    ],
)
def test_archives_without_models(kind: str, names: list[str], tmp_path: Path) -> None:
    (tmp_path / "m").write_bytes(PACKERS[kind](dict.fromkeys(names, b"x")))
    with pytest.raises(BnstatError):
        bnstat.load(tmp_path / "m")


def test_tensorflows_reader_reads_no_archive(tmp_path: Path) -> None:
    path = pack(tmp_path / "m.zip", "stored", DIGITS / "saved_model")
    with pytest.raises(BnstatError, match="unpack it"):
        bnstat.load(path, reader="tensorflow")
