"""What is said on standard error."""

from __future__ import annotations

import sys

import click

_LONGEST = 2000


def say(message: str) -> None:
    """Say one line, made safe for a terminal."""
    from bnstat.model import printable

    if len(message) > _LONGEST:
        message = message[:_LONGEST] + "..."
    # The stream is named because click would otherwise write UTF-8 to one of another encoding.
    click.echo(printable(message), file=sys.stderr, err=True)
