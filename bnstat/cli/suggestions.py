"""Completions of options and arguments, for click's shell completion.

Models are read by bnstat's own reader and without values, so that Tab never waits for TensorFlow.
"""

from __future__ import annotations

import os
from contextlib import suppress
from typing import Any

import click
from click.core import ParameterSource

from bnstat.errors import BnstatError


def layers(ctx: click.Context, _: click.Parameter, incomplete: str) -> list[str]:
    """Return globs that each match one layer of the models whose paths were typed."""
    from glob import escape

    from bnstat.loading import load

    names: dict[str, None] = {}
    for path in _paths(ctx):
        with suppress(BnstatError):
            model = load(
                path,
                checkpoint=ctx.params.get("checkpoint"),
                step=ctx.params.get("step"),
                reader="native",
                patterns=ctx.params.get("patterns") or (),
                include_shadows=bool(ctx.params.get("include_shadows")),
                values=False,
            )
            names |= dict.fromkeys(model.keys())
    return _starting([escape(name) for name in names], incomplete)


def checkpoints(ctx: click.Context, _: click.Parameter, incomplete: str) -> list[str]:
    """Return the checkpoints at the typed path, newest first."""
    return _starting([name for name, _ in _checkpoints(ctx)], incomplete)


def steps(ctx: click.Context, _: click.Parameter, incomplete: str) -> list[str]:
    """Return the training steps of the checkpoints at the typed path, newest first."""
    return _starting([str(step) for _, step in _checkpoints(ctx) if step is not None], incomplete)


def rules(_: click.Context, __: click.Parameter, incomplete: str) -> list[Any]:
    """Return the codes of the rules; once a letter is typed, also the names.

    Rules may be separated by commas.
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
    """Return the topics of `bnstat help`, with their descriptions."""
    from click.shell_completion import CompletionItem

    from bnstat.docs import TOPICS

    return [
        CompletionItem(topic, help=description)
        for topic, description in TOPICS.items()
        if topic.startswith(incomplete)
    ]


def _checkpoints(ctx: click.Context) -> list[tuple[str, int | None]]:
    from bnstat.loading import load_all

    checkpoints: list[tuple[str, int | None]] = []
    for path in _paths(ctx):
        with suppress(BnstatError):
            checkpoints += reversed(load_all(path).checkpoints)
    return checkpoints


def _paths(ctx: click.Context) -> list[str]:
    """Return the typed paths, or else the current folder.

    The paths are arguments of the context or, if parsing ended early, the rest of the line, for
    example after an option whose value is missing.
    """
    paths: list[str] = []
    for parameter in ctx.command.params:
        name = parameter.name or ""
        is_typed = ctx.get_parameter_source(name) is ParameterSource.COMMANDLINE
        if is_typed and isinstance(parameter, click.Argument):
            value = ctx.params[name]
            paths += [value] if isinstance(value, str) else value
    return [os.path.expanduser(os.path.expandvars(path)) for path in paths or ctx.args or ["."]]


def _starting(texts: list[str], start: str) -> list[str]:
    """Return the strings with this prefix that can be typed in a command line."""
    return [text for text in texts if text.startswith(start) and text.isprintable()]
