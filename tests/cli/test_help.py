from __future__ import annotations

import pytest

from bnstat.docs import TOPICS, read
from bnstat.output.terminal.markdown import render
from bnstat.output.terminal.screen import Screen
from tests.terminal import in_terminal


def test_the_topics_are_listed(run):
    lines = run("help").stdout.splitlines()
    for topic, description in TOPICS.items():
        assert any(line.split() == [topic, *description.split()] for line in lines)
    assert max(map(len, lines)) <= 80
    assert lines[-1] == "bnstat --help lists the commands"


@pytest.mark.parametrize("topic", TOPICS)
def test_a_topic_in_a_pipe_is_plain_text(run, topic):
    result = run("help", topic)
    lines = result.stdout.splitlines()
    title = read(topic).partition("\n")[0].removeprefix("# ")
    assert lines[:2] == [title, "=" * len(title)]
    assert not any(mark in result.stdout for mark in ("\x1b", "```", "](", ".md", "![", "**"))
    output = {line.strip() for line in read(topic).splitlines()}
    assert all(len(line) <= 80 or line.strip() in output for line in lines)


def test_outputs_of_commands_are_not_wrapped(run):
    text = run("help", "mend").stdout
    assert " --data tests/data/digits_train.npz --labels labels -o mended\n" in text
    assert "$ bnstat drift mended --data tests/data/digits_test.npz --labels labels\n" in text
    assert "block3/bn  16   +0.134  x0.940 to x1.11   0.0038  healthy\n" in text


def test_a_link_to_a_topic_names_the_command_that_shows_it(run):
    text = " ".join(run("help", "check").stdout.split())
    assert "Rules (bnstat help rules) contains the same text." in text
    assert "With pre-commit (https://pre-commit.com), in" in text


@pytest.mark.parametrize(
    ("typed", "hint"),
    [
        ("rools", "did you mean rules?"),
        ("Remotes", "did you mean remote?"),
        ("inspect", "bnstat inspect --help describes the command"),
        ("zzz", "bnstat help lists the topics"),
        ("\x1b[31m", "bnstat help lists the topics"),
    ],
)
def test_an_unknown_topic(run, typed, hint):
    result = run("help", typed)
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr == f"error: {typed!r}: unknown topic; {hint}\n"


def test_a_terminal_gets_a_pager_and_colours(monkeypatch, tmp_path):
    pager = tmp_path / "pager"
    pager.write_text("#!/bin/sh\necho paged by $LESS\ncat\n")
    pager.chmod(0o755)
    monkeypatch.setenv("PAGER", str(pager))
    monkeypatch.delenv("LESS", raising=False)
    output = in_terminal(["help", "scan"])
    assert output.startswith("paged by -FRX\nScan\n====\n")
    assert max(map(len, output.splitlines())) <= 80


def test_colours():
    coloured = render("# Title\n\n`code` and **bold**\n", Screen(width=80, colour=True))
    assert "\x1b[" in coloured
    assert "====" not in coloured
    table = render("text\n\n| a | b |\n| --- | --- |\n| 1 | 2 |\n", Screen(width=80, colour=True))
    assert "\n\n\n" not in table


@pytest.mark.parametrize(("width", "longest"), [(50, 50), (300, 100)])
def test_a_screen_bounds_the_lines(width, longest):
    lines = render(read("safety"), Screen(width=width)).splitlines()
    assert max(map(len, lines)) <= longest
