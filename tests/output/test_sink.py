from __future__ import annotations

import io
import os
import stat
import sys
import threading

import pytest

from bnstat.output.sink import open_binary, open_text, show


@pytest.fixture
def umask():
    before = os.umask(0o027)
    yield
    os.umask(before)


def write(path, content=b"new"):
    with open_binary(str(path)) as file:
        file.write(content)


def mode(path):
    return stat.S_IMODE(path.stat().st_mode)


def test_permissions(tmp_path, umask):
    write(tmp_path / "new")
    (tmp_path / "plain").open("wb").close()
    assert mode(tmp_path / "new") == mode(tmp_path / "plain") == 0o640
    (tmp_path / "new").chmod(0o604)
    write(tmp_path / "new", b"newer")
    assert (tmp_path / "new").read_bytes() == b"newer"
    assert mode(tmp_path / "new") == 0o604


@pytest.mark.parametrize("old", [None, b"old"])
@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, OSError])
def test_whole_or_not_at_all(tmp_path, old, error):
    path = tmp_path / "file"
    if old:
        path.write_bytes(old)

    def fail_halfway():
        with open_binary(str(path)) as file:
            file.write(b"half")
            file.flush()
            assert old is None or path.read_bytes() == old
            raise error

    with pytest.raises(error):
        fail_halfway()
    contents = {entry.name: entry.read_bytes() for entry in tmp_path.iterdir()}
    assert contents == ({"file": old} if old else {})


@pytest.mark.parametrize("exists", [True, False])
def test_a_link_is_followed(tmp_path, exists):
    (tmp_path / "folder").mkdir()
    target, link = tmp_path / "folder/target", tmp_path / "link"
    if exists:
        target.write_bytes(b"old")
    link.symlink_to(target)
    write(link)
    assert link.is_symlink()
    assert target.read_bytes() == b"new"


def test_a_fifo_and_a_device_are_written_directly(tmp_path):
    path = tmp_path / "fifo"
    os.mkfifo(path)
    read = []
    reader = threading.Thread(target=lambda: read.append(path.read_bytes()))
    reader.start()
    write(path)
    reader.join(10)
    assert read == [b"new"]
    assert stat.S_ISFIFO(path.stat().st_mode)
    write("/dev/null")
    assert stat.S_ISCHR(os.stat("/dev/null").st_mode)


@pytest.mark.parametrize("name", ["missing/file", ".", "loop", "n" * 300])
def test_errors_name_the_path_that_was_asked_for(tmp_path, name):
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    path = str(tmp_path / name)
    with pytest.raises(OSError) as caught:  # noqa: PT011
        write(path)
    assert caught.value.filename == path
    assert caught.value.strerror


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anything")
def test_a_file_that_may_not_be_written_is_not_replaced(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"old")
    path.chmod(0o444)
    with pytest.raises(PermissionError):
        write(path)
    assert path.read_bytes() == b"old"


def test_standard_output(capfdbinary):
    print("before")
    write("-")
    print("after")
    assert capfdbinary.readouterr().out == b"before\nnewafter\n"


def test_closed_standard_output(monkeypatch):
    monkeypatch.setattr(sys, "stdout", None)
    for written in (write, lambda path: show(lambda screen: ["line"], path)):
        with pytest.raises(OSError, match="standard output is closed"):
            written("-")


def test_text_is_always_utf8(tmp_path, monkeypatch):
    stdout = io.TextIOWrapper(io.BytesIO(), "ascii")
    monkeypatch.setattr(sys, "stdout", stdout)
    for path in (str(tmp_path / "file"), "-"):
        with open_text(path) as file:
            file.write("层\n")
    assert (tmp_path / "file").read_bytes() == "层\n".encode()
    assert stdout.buffer.getvalue() == "层\n".encode()


def test_show_fits_the_screen_it_writes_to(tmp_path, monkeypatch):
    stdout = io.TextIOWrapper(io.BytesIO(), "ascii")
    monkeypatch.setattr(sys, "stdout", stdout)

    def render(screen):
        return [screen.glyphs.plus_minus, "层"]

    show(render, "-")
    show(render, str(tmp_path / "file"))
    stdout.flush()
    assert stdout.buffer.getvalue() == b"+-\n\\u5c42\n"
    assert (tmp_path / "file").read_text("utf-8") == "±\n层\n"
