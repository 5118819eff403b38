from __future__ import annotations

import io
import sys
import time

import pytest

from bnstat.output.terminal import screen
from bnstat.output.terminal.screen import ASCII, UNICODE, Screen, encodable, legible, sentence


class Terminal(io.StringIO):
    encoding = "utf-8"

    def isatty(self):
        return True


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    for name in ("NO_COLOR", "FORCE_COLOR", "TERM"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("COLUMNS", "72")


def pipe(encoding="utf-8"):
    return io.TextIOWrapper(io.BytesIO(), encoding)


def test_widths_and_abilities(monkeypatch):
    assert Screen.of(Terminal()) == Screen(72, colour=True, boxes=True, glyphs=UNICODE)
    assert Screen.of(pipe()) == Screen(72, colour=False, boxes=False, glyphs=UNICODE)
    for columns in ("0", "-3", "many", "", "\u0663"):
        monkeypatch.setenv("COLUMNS", columns)
        assert Screen.of(pipe()) == Screen(None, colour=False, boxes=False, glyphs=UNICODE)
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert Screen.of(pipe()).width is None


@pytest.mark.parametrize(
    ("variables", "terminal_colour", "pipe_colour"),
    [
        *(("", True, False), ("NO_COLOR=", True, False), ("FORCE_COLOR=", True, False)),
        *(("NO_COLOR=1", False, False), ("FORCE_COLOR=1", True, True), ("TERM=dumb", False, False)),
        *(("FORCE_COLOR=1 NO_COLOR=1", False, False), ("TERM=dumb FORCE_COLOR=1", True, True)),
    ],
)
def test_colours(monkeypatch, variables, terminal_colour, pipe_colour):
    for variable in variables.split():
        monkeypatch.setenv(*variable.split("="))
    assert Screen.of(Terminal()).colour == terminal_colour
    assert Screen.of(pipe()).colour == pipe_colour


@pytest.mark.parametrize(
    ("encoding", "glyphs"), [("ascii", ASCII), ("latin-1", ASCII), ("utf-8", UNICODE)]
)
def test_glyphs_are_those_that_the_encoding_has(encoding, glyphs):
    assert Screen.of(pipe(encoding)).glyphs == glyphs


def test_styles():
    screen = Screen(colour=True)
    for style, code in (("bold", 1), ("dim", 2), ("red", 31)):
        assert screen.style("a", style) == f"\x1b[{code}ma\x1b[0m"
    assert screen.style("a", "") == Screen().style("a", "red") == "a"


def test_encodable():
    assert encodable("层±", pipe("ascii")) == "\\u5c42\\xb1"
    assert encodable("层±", pipe("latin-1")) == "\\u5c42±"
    assert encodable("层\udc80", pipe()) == "层\\udc80"


def test_legible():
    assert legible("a\x1bb") == "a\\x1bb"
    assert legible("x" * 512) == "x" * 512
    long = legible("a" * 10_000_000 + "\x1b")
    assert len(long) < 600
    assert long.startswith("aaa")
    assert long.endswith("\\x1b")
    words = " ".join(map(str, range(500)))
    assert sentence(f"{words}\x1b") == f"{words}\\x1b"
    assert len(sentence("a" * 10_000_000)) < 10_000


@pytest.fixture
def shown_while(monkeypatch):
    """Return a function that works for longer than a bar needs, and returns standard error."""
    monkeypatch.setattr(screen, "_DELAY", 0.01)
    monkeypatch.setenv("TERM", "xterm")

    def shown_while(work, stderr):
        # pytest replaces standard error after fixtures.
        with monkeypatch.context() as patch:
            patch.setattr(sys, "stderr", stderr)
            work()
        return "" if stderr is None else stderr.getvalue()

    return shown_while


def slowly(**options):
    for _ in screen.track("ab", "exporting", **options):
        time.sleep(0.5)


def test_long_work_shows_a_bar(shown_while):
    shown = shown_while(slowly, Terminal())
    assert "exporting" in shown
    assert "50%" in shown


def test_short_hidden_and_piped_work_shows_nothing(shown_while, monkeypatch):
    assert shown_while(lambda: slowly(hidden=True), Terminal()) == ""
    assert shown_while(slowly, io.StringIO()) == ""
    assert shown_while(slowly, None) == ""
    before = time.monotonic()
    monkeypatch.setattr(screen, "_DELAY", 600)
    assert shown_while(lambda: list(screen.track("ab", "exporting")), Terminal()) == ""
    assert time.monotonic() - before < screen._DELAY / 2


def test_the_bar_ends_with_an_error(shown_while):
    def work():
        for _ in screen.track("ab", "exporting"):
            time.sleep(0.5)
            raise RuntimeError

    terminal = Terminal()
    with pytest.raises(RuntimeError):
        shown_while(work, terminal)
    shown = terminal.getvalue()
    assert "exporting" in shown
    time.sleep(0.3)
    assert terminal.getvalue() == shown
