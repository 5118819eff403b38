from __future__ import annotations

import io
import sys
import time

import pytest

from bnstat.output.terminal import screen


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def patience(monkeypatch):
    """How long work takes before it shows: next to no time."""
    monkeypatch.setattr(screen, "_DELAY", 0.01)
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")


def shown_while(work, monkeypatch, stderr):
    """Return the output to standard error, which pytest replaces after fixtures."""
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stderr", stderr)
        work()
    return stderr.getvalue()


def slowly(**options):
    for _ in screen.track("ab", "exporting", **options):
        time.sleep(0.5)


@pytest.mark.usefixtures("patience")
def test_long_work_shows_a_bar(monkeypatch):
    shown = shown_while(slowly, monkeypatch, Terminal())
    assert "exporting" in shown
    assert "50%" in shown


def test_short_work_shows_nothing(monkeypatch):
    before = time.monotonic()
    monkeypatch.setattr(screen, "_DELAY", 600)
    shown = shown_while(lambda: list(screen.track("ab", "exporting")), monkeypatch, Terminal())
    assert shown == ""
    assert time.monotonic() - before < screen._DELAY / 2


@pytest.mark.usefixtures("patience")
def test_hidden_work_shows_nothing(monkeypatch):
    assert shown_while(lambda: slowly(hidden=True), monkeypatch, Terminal()) == ""


@pytest.mark.usefixtures("patience")
def test_a_pipe_shows_nothing(monkeypatch):
    assert shown_while(slowly, monkeypatch, io.StringIO()) == ""


def test_closed_standard_error(monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stderr", None)
        assert list(screen.track("ab", "exporting")) == ["a", "b"]


@pytest.mark.usefixtures("patience")
def test_the_bar_ends_with_an_error(monkeypatch):
    def work():
        for _ in screen.track("ab", "exporting"):
            time.sleep(0.5)
            raise RuntimeError

    terminal = Terminal()
    with pytest.raises(RuntimeError):
        shown_while(work, monkeypatch, terminal)
    shown = terminal.getvalue()
    assert "exporting" in shown
    time.sleep(0.3)
    assert terminal.getvalue() == shown
