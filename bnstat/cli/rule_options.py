"""The options of the commands that judge models: which rules, how strict, by whose settings."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import click

from bnstat.cli import suggestions

if TYPE_CHECKING:
    from bnstat.checks import Severity
    from bnstat.checks.settings import Settings


Command = TypeVar("Command", bound=Callable[..., Any])


def _thresholds(_: click.Context, __: click.Parameter, given: tuple[str, ...]) -> dict[str, float]:
    settings = {}
    for text in given:
        name, _equals, value = text.partition("=")
        try:
            settings[name] = float(value)
        except ValueError:
            raise click.BadParameter(f"{text!r} is not NAME=NUMBER") from None
    return settings


_RULES = (
    click.option(
        "--select",
        multiple=True,
        metavar="RULE",
        shell_complete=suggestions.rules,
        help="Apply only these rules: names, codes or beginnings of codes, separated by "
        "commas. Can be repeated. check --rules lists them.",
    ),
    click.option(
        "--ignore",
        multiple=True,
        metavar="RULE",
        shell_complete=suggestions.rules,
        help="Apply all rules except these; the syntax is that of --select.",
    ),
    click.option(
        "--threshold",
        "thresholds",
        multiple=True,
        metavar="NAME=NUMBER",
        callback=_thresholds,
        help="Set the threshold of a rule, such as gamma=0.01. check --explain prints the name and "
        "the default. Can be repeated.",
    ),
    click.option(
        "--fail-on",
        type=click.Choice(["error", "warning", "info"]),
        help="Exit with 1 if there is a finding of this severity or a more serious one. "
        "Default: warning.",
    ),
    click.option(
        "--config-file",
        metavar="FILE",
        type=click.Path(),
        help="Read the project's settings from this file. Default: the nearest bnstat.toml or "
        "pyproject.toml with [tool.bnstat], from the model's folder upwards.",
    ),
    click.option("--isolated", is_flag=True, help="Read no settings from any file."),
)


class Judging(NamedTuple):
    """Which rules are applied, and how: what the options of `judging` say."""

    select: tuple[str, ...]
    ignore: tuple[str, ...]
    thresholds: dict[str, float]
    fail_on: Severity | None
    config_file: str | None
    isolated: bool

    @property
    def settings(self) -> Settings:
        """What the user says; it wins over any file."""
        from bnstat.checks.settings import Settings

        return Settings(_split(self.select), _split(self.ignore), self.thresholds, self.fail_on)


def _split(given: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(rule.strip() for text in given for rule in text.split(",") if rule.strip())


def judging(command: Command) -> Command:
    """Add the options that say which rules are applied; the command gets them as `judging`."""

    @functools.wraps(command)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        given = Judging(**{name: kwargs.pop(name) for name in Judging._fields})
        if given.config_file is not None and given.isolated:
            raise click.UsageError("--config-file and --isolated: choose one")
        return command(*args, judging=given, **kwargs)

    for option in reversed(_RULES):
        wrapper = option(wrapper)
    return wrapper  # type: ignore[return-value]
