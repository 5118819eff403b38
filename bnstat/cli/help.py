"""`bnstat help`: show the documentation in the terminal."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING

import click

from bnstat.cli.options import suggest_topics
from bnstat.docs import TOPICS
from bnstat.errors import BnstatError

if TYPE_CHECKING:
    from bnstat.output.terminal.screen import Screen

_EPILOG = """\b
Examples:
  bnstat help
  bnstat help files
  bnstat help rules | grep -i momentum
"""


@click.command("help", epilog=_EPILOG)
@click.argument("topic", required=False, metavar="[TOPIC]", shell_complete=suggest_topics)
def command(topic: str | None) -> None:
    """Show the documentation of TOPIC, or list the topics.

    On a terminal, a topic opens in the pager that $PAGER names, or in less. A pipe gets plain
    text.
    """
    from bnstat.output.sink import show, writes_to_terminal

    if topic is None:
        show(_overview, "-")
    elif topic not in TOPICS:
        from difflib import get_close_matches

        from bnstat.cli import COMMANDS

        hint = "bnstat help lists the topics"
        if topic in COMMANDS:
            hint = f"bnstat {topic} --help describes the command"
        elif matches := get_close_matches(topic.lower(), TOPICS, n=1):
            hint = f"did you mean {matches[0]}?"
        raise BnstatError(repr(topic), "unknown topic", hint)
    elif writes_to_terminal("-"):
        from bnstat.output.terminal.screen import Screen, encodable

        # With these flags, less shows colours, and ends by itself if the text fits the screen.
        os.environ.setdefault("LESS", "-FRX")
        screen = Screen.of(sys.stdout)
        click.echo_via_pager(encodable("\n".join(_page(topic, screen)), sys.stdout) + "\n")
    else:
        show(lambda screen: _page(topic, screen), "-")


def _overview(screen: Screen) -> Iterator[str]:
    from bnstat.output.terminal.table import Column, table

    columns = [
        Column("topic", list(TOPICS), styles=dict.fromkeys(range(len(TOPICS)), "bold")),
        Column("what it describes", list(TOPICS.values())),
    ]
    yield from table(columns, screen)
    yield ""
    yield "bnstat help TOPIC shows a topic, bnstat COMMAND --help the options of a command"
    yield "bnstat --help lists the commands"


def _page(topic: str, screen: Screen) -> Iterator[str]:
    from bnstat.docs import read
    from bnstat.output.terminal.markdown import render

    text = re.sub(r"(?m)^!\[.*?\]\(.*?\)\n+", "", read(topic))
    yield from render(re.sub(r"\[([^\[\]]+)\]\(([^()]+)\)", _link, text), screen).splitlines()


def _link(match: re.Match[str]) -> str:
    """Return the text of a Markdown link; for a topic, add the command that shows the topic."""
    text, target = match.groups()
    if "://" in target:
        return match[0]
    topic = target.partition("#")[0].removesuffix(".md")
    return f"{text} (`bnstat help {topic}`)" if topic in TOPICS else text
