"""The options, completions and messages that several commands share."""

from __future__ import annotations

import functools
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeVar

import click
from click.core import ParameterSource

from bnstat.errors import BnstatError, printable

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

    from bnstat.checks.settings import Settings
    from bnstat.loading import Models
    from bnstat.model import BatchNorm, Model

    ChosenRules = tuple[Settings, str | None, bool]
    """The settings on the command line, the settings file, and whether to read no file."""

Command = TypeVar("Command", bound=Callable[..., Any])
Option = Callable[[Any], Any]

_LONGEST_LINE = 2000


def say(message: str) -> None:
    """Print one line on standard error, escaped, and wrapped between words on a terminal."""
    if len(message) > _LONGEST_LINE:
        message = message[:_LONGEST_LINE] + "..."
    text = printable(message)
    if sys.stderr is not None and sys.stderr.isatty():
        import textwrap

        from bnstat.output.terminal.screen import Screen

        width = Screen.of(sys.stderr).width or 80
        # A path that is wider than the terminal stays whole, so that it can be copied.
        text = textwrap.fill(
            text, width, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False
        )
    # The stream is named because click would otherwise write UTF-8 to one of another encoding.
    click.echo(text, file=sys.stderr, err=True)


# Completions, for click's shell completion. Models are read by bnstat's own reader and without
# values, so that Tab never waits for TensorFlow.


def suggest_layers(ctx: click.Context, _: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Return the layer names of the models at the typed paths, with glob characters escaped."""
    from glob import escape

    from bnstat.loading import load

    options = ("checkpoint", "step", "patterns", "include_shadows")
    chosen = {name: ctx.params[name] for name in options if ctx.params.get(name) is not None}
    names: dict[str, None] = {}
    for path in _paths(ctx):
        with suppress(BnstatError):
            names |= dict.fromkeys(load(path, reader="native", values=False, **chosen).keys())
    return _items(dict.fromkeys(map(escape, names)), incomplete)


def suggest_checkpoints(
    ctx: click.Context, option: click.Parameter, incomplete: str
) -> list[CompletionItem]:
    """Return the names (for --step, the steps) of the checkpoints at the paths, newest first."""
    from bnstat.loading import load_all

    found: list[object] = []
    for path in _paths(ctx):
        with suppress(BnstatError):
            for name, step in reversed(load_all(path).checkpoints):
                found.append(name if option.name == "checkpoint" else step)
    texts = [str(each) for each in found if each is not None]
    return _items(dict.fromkeys(texts), incomplete)


def suggest_rules(_: click.Context, __: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Complete the last rule of a comma-separated list by code or, after one letter, by name."""
    from bnstat.checks import RULES

    before, comma, word = incomplete.rpartition(",")
    texts = {rule.code: f"{rule.name}: {rule.title}" for rule in RULES}
    if word:
        texts |= {rule.name: rule.title for rule in RULES}
    return _items(texts, word, before + comma)


def suggest_topics(_: click.Context, __: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Return the topics of `bnstat help`, with their descriptions."""
    from bnstat.docs import TOPICS

    return _items(TOPICS, incomplete)


def _items(texts: Mapping[str, str | None], start: str, before: str = "") -> list[CompletionItem]:
    """Return completions for the printable texts that begin with `start`, with descriptions."""
    from click.shell_completion import CompletionItem

    return [
        CompletionItem(before + text, help=description)
        for text, description in texts.items()
        if text.startswith(start) and text.isprintable()
    ]


def _paths(ctx: click.Context) -> list[str]:
    """Return the parsed paths or, if there are none, the unparsed arguments, else `.`."""
    paths: list[str] = []
    for parameter in ctx.command.params:
        name = parameter.name or ""
        is_typed = ctx.get_parameter_source(name) is ParameterSource.COMMANDLINE
        if is_typed and isinstance(parameter, click.Argument):
            value = ctx.params[name]
            paths += [value] if isinstance(value, str) else value
    return [os.path.expanduser(os.path.expandvars(path)) for path in paths or ctx.args or ["."]]


def _pattern(text: str) -> tuple[str, str]:
    from bnstat.model import ROLES

    role, equals, regex = text.partition("=")
    if not equals or role not in ROLES:
        raise click.BadParameter(f"{text!r} is not ROLE=REGEX; ROLE is one of {', '.join(ROLES)}")
    try:
        re.compile(regex)
    except re.error as error:
        raise click.BadParameter(f"{regex!r} is not a regular expression: {error}") from None
    return role, regex


def _size(text: str) -> int:
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kMGT]?)(i?)B?", text.strip(), re.IGNORECASE)
    if match is None:
        raise click.BadParameter(f"{text!r} is not a size such as 256MB or 2GiB")
    power = " kmgt".index(match[2].lower() or " ")
    return int(float(match[1]) * (1024 if match[3] else 1000) ** power)


def _storage_option(text: str) -> tuple[str, Any]:
    """Parse KEY=VALUE into a pair. VALUE is read as JSON, or as a string if it is not JSON."""
    import json

    key, equals, value = text.partition("=")
    if not equals or not key:
        raise click.BadParameter("a storage option has the form KEY=VALUE")
    try:
        return key, json.loads(value)
    except ValueError:
        return key, value


def _threshold(text: str) -> tuple[str, float]:
    name, _equals, value = text.partition("=")
    try:
        return name, float(value)
    except ValueError:
        raise click.BadParameter(f"{text!r} is not NAME=NUMBER") from None


def together(*options: Option) -> Callable[[Command], Command]:
    """Return a decorator that adds several options, in this order."""

    def add(command: Command) -> Command:
        for option in reversed(options):
            command = option(command)
        return command

    return add


def repeatable(*names: str, help: str, **settings: Any) -> Option:
    """Return an option that can be repeated. The arguments are those of `click.option`."""
    return click.option(*names, multiple=True, help=f"{help} Can be repeated.", **settings)


def file_option(*names: str, **settings: Any) -> Option:
    """Return an option whose value is the path of a file."""
    return click.option(*names, metavar="FILE", type=click.Path(), **settings)


def as_dict(_: object, __: object, pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    """Convert the (key, value) pairs of a repeatable option to a dict."""
    return dict(pairs)


path = click.argument("path", default=".", type=click.Path())

layers = repeatable(
    "--layer",
    "layers",
    metavar="GLOB",
    shell_complete=suggest_layers,
    help="Use only layers whose name matches, such as 'block1/*'.",
)

no_values = click.option(
    "--no-values",
    is_flag=True,
    help="Show names, shapes and dtypes only. No tensor is read, so the data files (in a "
    "SavedModel, the variables folder) need not exist.",
)

INTO_FILE = "Write to FILE, whole or not at all, instead of standard output."

output = file_option("-o", "--output", default="-", help=INTO_FILE)

quiet = click.option(
    "-q", "--quiet", is_flag=True, help="Suppress notes and progress. Errors are still printed."
)

config = file_option(
    "--config",
    help="Read the architecture of Keras weights from FILE: the output of model.to_json(), a "
    "config.json, a .keras or a full .h5. It decides names, roles, epsilon and order.",
)

_CHECKPOINT = (
    click.option(
        "--checkpoint",
        metavar="NAME",
        shell_complete=suggest_checkpoints,
        help="Use this checkpoint of a folder, such as model-1200. Default: the newest.",
    ),
    click.option(
        "--step",
        type=int,
        metavar="N",
        shell_complete=suggest_checkpoints,
        help="Use the checkpoint of this training step.",
    ),
)

_NAMES = (
    repeatable(
        "--pattern",
        "patterns",
        metavar="ROLE=REGEX",
        type=_pattern,
        help="Recognize names of your own, such as gamma='(.*)/scale$': a variable whose name "
        "matches has this ROLE (gamma, beta, moving_mean or moving_variance). The group "
        "(?P<layer>...), or else the first group, is the layer's name; without groups it is the "
        "part of the name that did not match.",
    ),
    click.option(
        "--include-shadows",
        is_flag=True,
        help="Also show the copies of a layer's variables that an exponential moving average "
        "keeps.",
    ),
)

_READING = (
    config,
    click.option(
        "--reader",
        type=click.Choice(["auto", "native", "tensorflow"]),
        default="auto",
        help="Read the file with bnstat itself (native), with TensorFlow, or with TensorFlow only "
        "if bnstat does not know the file (auto, the default).",
    ),
    click.option(
        "--max-download",
        metavar="SIZE",
        default="256MB",
        show_default=True,
        type=_size,
        help="Refuse to download more than this from a URL.",
    ),
    repeatable(
        "--storage-option",
        "storage_options",
        metavar="KEY=VALUE",
        type=_storage_option,
        callback=as_dict,
        help="Pass an option to fsspec's driver for the URL, such as anon=true.",
    ),
)


def _gathered(
    name: str, names: Sequence[str], build: Callable[..., object], *options: Option
) -> Callable[[Command], Command]:
    """Return a decorator that adds options and replaces their values by one argument, `name`.

    The argument is `build(**values)`; `values` maps each option in `names` to the parsed value.
    """

    def add(command: Command) -> Command:
        @functools.wraps(command)
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            given = {each: kwargs.pop(each) for each in names if each in kwargs}
            return command(*args, **{name: build(**given)}, **kwargs)

        return together(*options)(wrapper)  # type: ignore[return-value]

    return add


class Reading(NamedTuple):
    """The options for reading models, as arguments of `bnstat.load`, and the option --quiet."""

    quiet: bool
    reader: Literal["auto", "native", "tensorflow"]
    patterns: tuple[tuple[str, str], ...]
    include_shadows: bool
    max_download: int
    storage_options: Mapping[str, Any]
    config: str | None
    layers: tuple[str, ...] = ()
    checkpoint: str | None = None
    step: int | None = None

    def load(self, *paths: str, values: bool = True) -> list[Model]:
        """Load models, with arrays if `values` is True, and print each distinct note once.

        Hints that recommend the running command are removed from the notes.
        """
        from bnstat.loading import load
        from bnstat.output.terminal.screen import track

        arguments = self._asdict()
        arguments |= {"values": values, "eager": True}
        arguments["track"] = functools.partial(track, what="reading", hidden=arguments.pop("quiet"))
        models = [load(path, **arguments) for path in paths]
        if not self.quiet:
            command = click.get_current_context().info_name
            for note in dict.fromkeys(note for model in models for note in _notes(model)):
                say("note: " + re.sub(rf" \(bnstat {command}\b[^()]*\)", "", note))
        return models

    def for_all(self) -> dict[str, Any]:
        """Return the options as arguments of `bnstat.load_all`, without `layers`."""
        others = ("quiet", "layers", "checkpoint", "step")
        return {name: value for name, value in self._asdict().items() if name not in others}

    def load_all(self, path: str, last: int | None = None) -> Models:
        """Open all checkpoints of a folder, or the `last` newest ones, from oldest to newest."""
        from bnstat.loading import load_all

        return load_all(path, layers=self.layers, last=last, **self.for_all())

    def exit_code(self, model: Model) -> int:
        """Return 0 if the model has layers. Otherwise print a message and return 1."""
        if model.layers:
            return 0
        if not self.quiet:
            with_statistics = " with both moving statistics" if _incomplete(model) else ""
            say(f"no batch-norm layer{with_statistics} found in {model.source.path}")
        return 1


_OLD = (
    "written before Keras 1.0, with gamma, beta, moving mean and a running standard deviation, "
    "whose square is the variance + epsilon, but without a moving variance"
)
_LOST = "in the file without moving statistics"
_TRAINING = (
    "exported in training mode (each batch is normalized by its own statistics, none are stored "
    "or needed)"
)


def _notes(model: Model) -> Iterator[str]:
    yield from model.notes
    by_reason: dict[str, list[str]] = {_OLD: [], _LOST: [], _TRAINING: []}
    for layer in _incomplete(model):
        reason = _TRAINING if layer.uses_batch_statistics else _LOST
        by_reason[_OLD if "running_std" in layer.extra else reason].append(layer.name)
    for text, names in by_reason.items():
        singular, plural = ("is", "are") if text == _LOST else ("was", "were")
        if names:
            layers = f"layer {singular}" if len(names) == 1 else f"layers {plural}"
            more = ", ..." if len(names) > 3 else ""
            yield f"{len(names)} batch-norm {layers} {text}: {', '.join(names[:3])}{more}"


def _incomplete(model: Model) -> list[BatchNorm]:
    """Return the layers that are certainly batch norm but lack moving statistics."""
    return [layer for layer in model.incomplete if layer.variables or not layer.undecided]


reading_all = _gathered("reading", Reading._fields, Reading, *_NAMES, *_READING)
"""Adds the options for reading models. The command receives a `Reading` as `reading`."""

reading = _gathered("reading", Reading._fields, Reading, *_CHECKPOINT, *_NAMES, *_READING)
"""Adds the options of `reading_all`, and options that select a checkpoint of a folder."""

choosing = together(*_CHECKPOINT, *_NAMES)
"""Adds --checkpoint, --step, --pattern and --include-shadows, as arguments of `bnstat.load`."""


def _chosen_rules(config_file: str | None, isolated: bool, **settings: Any) -> ChosenRules:
    from bnstat.checks.settings import Settings

    if config_file is not None and isolated:
        raise click.UsageError("--config-file and --isolated: choose one")
    for name in ("select", "ignore"):
        words = ",".join(settings[name]).split(",")
        settings[name] = tuple(word.strip() for word in words if word.strip())
    return Settings(**settings), config_file, isolated


rules = _gathered(
    "rules",
    ("select", "ignore", "thresholds", "fail_on", "config_file", "isolated"),
    _chosen_rules,
    click.option(
        "--select",
        multiple=True,
        metavar="RULE",
        shell_complete=suggest_rules,
        help="Apply only these rules: names, codes or beginnings of codes, separated by "
        "commas. Can be repeated. check --rules lists them.",
    ),
    click.option(
        "--ignore",
        multiple=True,
        metavar="RULE",
        shell_complete=suggest_rules,
        help="Apply all rules except these; the syntax is that of --select.",
    ),
    repeatable(
        "--threshold",
        "thresholds",
        metavar="NAME=NUMBER",
        type=_threshold,
        callback=as_dict,
        help="Set the threshold of a rule, such as gamma=0.01. check --explain prints the name and "
        "the default.",
    ),
    click.option(
        "--fail-on",
        type=click.Choice(["error", "warning", "info"]),
        help="Exit with 1 if a finding has this severity or a more serious one. Default: warning.",
    ),
    file_option(
        "--config-file",
        help="Read the project's settings from this file. Default: the nearest bnstat.toml or "
        "pyproject.toml with [tool.bnstat], from the model's folder upwards.",
    ),
    click.option("--isolated", is_flag=True, help="Read no settings from any file."),
)
"""Adds the options for rules. The command receives `ChosenRules` as `rules`."""


def refuse_terminal(output: str, content: str) -> None:
    """Raise a usage error if the path `output` is a terminal; `content` describes the output."""
    from bnstat.output.sink import writes_to_terminal

    if writes_to_terminal(output):
        problem = f"a terminal cannot show {content}"
        raise click.UsageError(f"{problem}: name a file with -o, or use a pipe")


def formats(default: str = "text", **helps: str) -> Callable[[Command], Command]:
    """Return a decorator that adds a flag per format; `helps` maps formats to help texts.

    The command receives the selected format as `format_`, or `default` if no flag is set.
    """

    def chosen(**flags: bool) -> str:
        names = [name for name in helps if flags[f"as_{name}"]]
        if len(names) > 1:
            raise click.UsageError(f"--{' and --'.join(names)}: choose one")
        return names[0] if names else default

    flag = functools.partial(click.option, is_flag=True)
    options = [flag(f"--{name}", f"as_{name}", help=text) for name, text in helps.items()]
    return _gathered("format_", [f"as_{name}" for name in helps], chosen, *options)
