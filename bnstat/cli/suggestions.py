"""What a shell offers behind `--layer`, `--checkpoint`, `--step`, `--select`, `help` and the like.

Models are read from their indexes alone, by bnstat's own reader: a Tab never waits for TensorFlow.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from typing import Any

import click
from click.core import ParameterSource


def layers(ctx: click.Context, _: click.Parameter, incomplete: str) -> list[str]:
    """The names of the layers of the models whose paths were typed, as globs of themselves."""
    from glob import escape

    from bnstat.errors import BnstatError
    from bnstat.loading import load

    read = partial(
        load,
        checkpoint=ctx.params.get("checkpoint"),
        step=ctx.params.get("step"),
        reader="native",
        patterns=ctx.params.get("patterns") or (),
        include_shadows=bool(ctx.params.get("include_shadows")),
        values=False,
    )
    names: dict[str, None] = {}
    for path in _paths(ctx):
        with suppress(BnstatError):
            names |= dict.fromkeys(read(path).keys())
    return _starting([escape(name) for name in names], incomplete)


def checkpoints(ctx: click.Context, _: click.Parameter, incomplete: str) -> list[str]:
    """The names of the checkpoints at the path that was typed, the newest first."""
    return _starting([name for name, _ in _checkpoints(ctx)], incomplete)


def steps(ctx: click.Context, _: click.Parameter, incomplete: str) -> list[str]:
    """The training steps of the checkpoints at the path that was typed, the newest first."""
    return _starting([str(step) for _, step in _checkpoints(ctx) if step is not None], incomplete)


def rules(_: click.Context, __: click.Parameter, incomplete: str) -> list[Any]:
    """The codes of the rules, with their names; their names, for what begins like one.

    Behind a comma the list goes on.
    """
    from click.shell_completion import CompletionItem

    from bnstat.checks import RULES

    before, comma, word = incomplete.rpartition(",")
    codes = [(rule.code, f"{rule.name}: {rule.title}") for rule in RULES]
    names = [(rule.name, rule.title) for rule in RULES] if word else []
    return [
        CompletionItem(f"{before}{comma}{text}", help=title)
        for text, title in (*codes, *names)
        if text.startswith(word)
    ]


def topics(_: click.Context, __: click.Parameter, incomplete: str) -> list[Any]:
    """The topics of `bnstat help`, with their descriptions."""
    from click.shell_completion import CompletionItem

    from bnstat.docs import TOPICS

    return [
        CompletionItem(topic, help=description)
        for topic, description in TOPICS.items()
        if topic.startswith(incomplete)
    ]


def _checkpoints(ctx: click.Context) -> Iterator[tuple[str, int | None]]:
    from bnstat.loading import load_all

    for path in _paths(ctx):
        yield from reversed(load_all(path).checkpoints)


def _paths(ctx: click.Context) -> list[str]:
    """The paths that were typed; the current folder where there are none.

    They are the context's arguments, or what remained of the line where parsing it ended early,
    as it does at an option whose value is still to come.
    """
    typed: list[str] = []
    for parameter in ctx.command.params:
        name = parameter.name or ""
        was_typed = ctx.get_parameter_source(name) is ParameterSource.COMMANDLINE
        if was_typed and isinstance(parameter, click.Argument):
            value = ctx.params[name]
            typed += [value] if isinstance(value, str) else value
    paths = typed or ctx.args or ["."]
    return [os.path.expanduser(os.path.expandvars(path)) for path in paths]


def _starting(texts: list[str], incomplete: str) -> list[str]:
    """Those that begin so, but for what no command line can hold."""
    return [text for text in texts if text.startswith(incomplete) and text.isprintable()]
