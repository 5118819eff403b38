"""The arguments and options that commands share: the same name and meaning on every command."""

from __future__ import annotations

import functools
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeVar

import click

from bnstat.cli import suggestions
from bnstat.storage.access import MAX_DOWNLOAD

if TYPE_CHECKING:
    from bnstat.loading import Models
    from bnstat.model import BatchNorm, Model


_LONGEST = 2000


def say(message: str) -> None:
    """Say one line, made safe for a terminal."""
    from bnstat.model import printable

    if len(message) > _LONGEST:
        message = message[:_LONGEST] + "..."
    # The stream is named because click would otherwise write UTF-8 to one of another encoding.
    click.echo(printable(message), file=sys.stderr, err=True)


Command = TypeVar("Command", bound=Callable[..., Any])


def _patterns(
    _: click.Context, __: click.Parameter, given: tuple[str, ...]
) -> tuple[tuple[str, str], ...]:
    from bnstat.model import ROLES

    pairs = []
    for text in given:
        role, equals, regex = text.partition("=")
        if not equals or role not in ROLES:
            raise click.BadParameter(
                f"{text!r} is not ROLE=REGEX with a role of {', '.join(ROLES)}"
            )
        try:
            re.compile(regex)
        except re.error as error:
            raise click.BadParameter(f"{regex!r} is no regular expression: {error}") from None
        pairs.append((role, regex))
    return tuple(pairs)


def _size(_: click.Context, __: click.Parameter, text: str) -> int:
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kMGT]?)(i?)B?", text.strip(), re.IGNORECASE)
    if match is None:
        raise click.BadParameter(f"{text!r} is no size such as 256MB or 2GiB")
    power = " kmgt".index(match[2].lower() or " ")
    return int(float(match[1]) * (1024 if match[3] else 1000) ** power)


def _storage_options(
    _: click.Context, __: click.Parameter, given: tuple[str, ...]
) -> dict[str, Any]:
    """The options by their names; what is JSON is taken as such, all else as text."""
    if not given:
        return {}
    import json

    options: dict[str, Any] = {}
    for text in given:
        key, equals, value = text.partition("=")
        if not equals or not key:
            raise click.BadParameter("a storage option is KEY=VALUE")
        try:
            options[key] = json.loads(value)
        except ValueError:
            options[key] = value
    return options


path = click.argument("path", default=".", type=click.Path())

layers = click.option(
    "--layer",
    "layers",
    multiple=True,
    metavar="GLOB",
    shell_complete=suggestions.layers,
    help="Use only layers whose name matches, such as 'block1/*'. Can be repeated.",
)

no_values = click.option(
    "--no-values",
    is_flag=True,
    help="Leave out the values: names, shapes and dtypes alone. No tensor is read; the data files, "
    "or the variables folder of a SavedModel, need not exist.",
)

output = click.option(
    "-o",
    "--output",
    metavar="FILE",
    type=click.Path(),
    default="-",
    help="Write to FILE, whole or not at all, instead of standard output.",
)

quiet = click.option(
    "-q", "--quiet", is_flag=True, help="Suppress notes and progress. Errors are still printed."
)

verbose = click.option(
    "-v",
    "--verbose",
    is_flag=True,
    help="Also report for each variable why it counts as batch norm, or why not.",
)

_checkpoint = click.option(
    "--checkpoint",
    metavar="NAME",
    shell_complete=suggestions.checkpoints,
    help="Use this checkpoint of a folder, such as model-1200. Default: the newest.",
)

_step = click.option(
    "--step",
    type=int,
    metavar="N",
    shell_complete=suggestions.steps,
    help="Use the checkpoint of this training step.",
)

_pattern = click.option(
    "--pattern",
    "patterns",
    multiple=True,
    metavar="ROLE=REGEX",
    callback=_patterns,
    help="Recognize names of your own, such as gamma='(.*)/scale$': a variable whose name matches "
    "has this ROLE (gamma, beta, moving_mean or moving_variance). The group (?P<layer>...), or "
    "else the first group, is the layer's name; without groups it is the part of the name that "
    "did not match. Can be repeated.",
)

_include_shadows = click.option(
    "--include-shadows",
    is_flag=True,
    help="Also show the copies of a layer's variables that an exponential moving average keeps.",
)

config = click.option(
    "--config",
    metavar="FILE",
    type=click.Path(),
    help="Read the architecture of Keras weights from FILE: the output of model.to_json(), a "
    "config.json, a .keras or a full .h5. It decides names, roles, epsilon and order.",
)

_reader = click.option(
    "--reader",
    type=click.Choice(["auto", "native", "tensorflow"]),
    default="auto",
    help="Read the file with bnstat itself (native), with TensorFlow, or with TensorFlow only if "
    "bnstat does not know the file (auto, the default).",
)


_max_download = click.option(
    "--max-download",
    metavar="SIZE",
    default="256MB",
    show_default=True,
    callback=_size,
    help="Refuse to download more than this from a URL.",
)

_storage_option = click.option(
    "--storage-option",
    "storage_options",
    multiple=True,
    metavar="KEY=VALUE",
    callback=_storage_options,
    help="Pass an option to fsspec's driver for the URL, such as anon=true. Can be repeated.",
)


class Reading(NamedTuple):
    """How models are to be read: what the options of `reading` or `reading_all` say."""

    reader: Literal["auto", "native", "tensorflow"]
    patterns: tuple[tuple[str, str], ...]
    include_shadows: bool
    checkpoint: str | None = None
    step: int | None = None
    max_download: int = MAX_DOWNLOAD
    storage_options: Mapping[str, Any] = MappingProxyType({})
    config: str | None = None

    def load(
        self, path: str, layers: tuple[str, ...] = (), *, values: bool = True, quiet: bool = False
    ) -> Model:
        """The model at `path`, all of it read; what takes long shows progress.

        Args:
            path: the path.
            layers: only those whose name matches one of these globs; the others are not read.
            values: whether to read arrays.
            quiet: show no progress.

        Raises:
            BnstatError: it cannot be read, or a glob matches no layer.
        """
        from bnstat.loading import load
        from bnstat.output.terminal.screen import track

        return load(
            path,
            checkpoint=self.checkpoint,
            step=self.step,
            reader=self.reader,
            patterns=self.patterns,
            include_shadows=self.include_shadows,
            layers=layers,
            values=values,
            eager=True,
            config=self.config,
            track=functools.partial(track, what="reading", hidden=quiet),
            max_download=self.max_download,
            storage_options=self.storage_options,
        )

    def for_all(self) -> dict[str, Any]:
        """What `bnstat.load` and `bnstat.load_all` are both given."""
        chosen = ("checkpoint", "step")
        return {name: value for name, value in self._asdict().items() if name not in chosen}

    def load_all(
        self, path: str, layers: tuple[str, ...] = (), *, last: int | None = None
    ) -> Models:
        """The checkpoints of the folder `path`, oldest first, with their names.

        Args:
            path: the folder.
            layers: as for `load`.
            last: only so many of them, the newest.

        Raises:
            BnstatError: there are none.
        """
        from bnstat.loading import load_all

        return load_all(
            path,
            reader=self.reader,
            patterns=self.patterns,
            include_shadows=self.include_shadows,
            layers=layers,
            last=last,
            max_download=self.max_download,
            storage_options=self.storage_options,
            config=self.config,
        )


def reading_all(command: Command) -> Command:
    """Add the options that say how models are read; the command gets them as `reading`."""

    @_pattern
    @_include_shadows
    @config
    @_reader
    @_max_download
    @_storage_option
    @functools.wraps(command)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        given = {name: kwargs.pop(name) for name in Reading._fields if name in kwargs}
        return command(*args, reading=Reading(**given), **kwargs)

    return wrapper  # type: ignore[return-value]


def reading(command: Command) -> Command:
    """Add the options of `reading_all`, and those that choose one checkpoint of a folder."""
    return _checkpoint(_step(reading_all(command)))


def choosing(command: Command) -> Command:
    """Add the options that say which model of a path is meant, and how its layers are found.

    The command gets them under the names that `bnstat.load` has for them.
    """
    return _checkpoint(_step(_pattern(_include_shadows(command))))


def tell(models: Iterable[Model], quiet: bool) -> None:
    """Say on standard error what was noticed while models were read; the same of two but once."""
    if quiet:
        return
    for line in dict.fromkeys(line for model in models for line in _noticed(model)):
        say(f"note: {line}")


def _noticed(model: Model) -> Iterator[str]:
    yield from model.notes
    incomplete = _lacking(model)
    lost = [layer.name for layer in incomplete if not layer.uses_batch_statistics]
    if lost:
        what = "1 batch-norm layer is" if len(lost) == 1 else f"{len(lost)} batch-norm layers are"
        yield f"{what} in the file without moving statistics: {_first_of(lost)}"
    on_batch = [layer.name for layer in incomplete if layer.uses_batch_statistics]
    if on_batch:
        count = len(on_batch)
        what = "1 batch-norm layer was" if count == 1 else f"{count} batch-norm layers were"
        yield (
            f"{what} exported in training mode (each batch is normalized by its own statistics, "
            f"none are stored or needed): {_first_of(on_batch)}"
        )


def _lacking(model: Model) -> list[BatchNorm]:
    """The layers that are surely batch norm, but whose moving statistics are not in the file."""
    return [layer for layer in model.incomplete if layer.variables or not layer.undecided]


def _first_of(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")


def answer(model: Model, quiet: bool) -> int:
    """The exit code of a command that shows layers; if there is none, 1 and a line to say so."""
    if model.layers:
        return 0
    if not quiet:
        with_statistics = " with moving statistics" if _lacking(model) else ""
        say(f"no batch-norm layer{with_statistics} found in {model.source.path}")
    return 1
