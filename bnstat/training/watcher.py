"""Watches the batch norm of a model in training; knows of no library that trains."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from operator import itemgetter
from typing import TYPE_CHECKING, Final

from bnstat.checks import SEVERITIES, Finding, Severity, check, find_rules
from bnstat.errors import BnstatError, UnsupportedError
from bnstat.live import live_model
from bnstat.model import Model
from bnstat.run_history import History, Recorder

if TYPE_CHECKING:
    from bnstat.output.tensorboard import Events


_SAID: Final = ("error", "warning")
"""What is said of its own accord; the rest is there for who asks."""

WARMING_UP: Final = "BN003"
"""What every network in training is guilty of at first: said when the training is over."""

_SIZES: Final = ("largest", "least", "variance")
"""The numbers of findings that tell by their size how bad it is."""

_MORE_CHANNELS, _LARGER = 2, 10
"""By what factor a finding has to grow to be news again."""

_NAMED: Final = 3
"""How many layers of a rule are named at a look; the others are counted."""

_Key = tuple[str, str | None]


@dataclass(frozen=True, slots=True)
class _Weight:
    """How bad a finding is."""

    severity: int
    channels: int
    size: float

    @classmethod
    def of(cls, findings: Sequence[Finding]) -> _Weight:
        """Of all that a rule finds in a layer."""
        sizes = (each.numbers.get(name) for each in findings for name in _SIZES)
        return cls(
            min(SEVERITIES.index(each.severity) for each in findings),
            sum(each.channels.size for each in findings),
            max((abs(size) for size in sizes if size is not None), default=0.0),
        )

    def is_worse_than(self, told: _Weight) -> bool:
        return (
            self.severity < told.severity
            or self.channels >= max(1, told.channels) * _MORE_CHANNELS
            or self.size > told.size * _LARGER > 0
        )


class News:
    """Remembers what was said, and of each look tells what is new, worse, or over."""

    def __init__(self) -> None:
        self._told: dict[_Key, _Weight] = {}

    def lines(self, findings: Sequence[Finding]) -> list[str]:
        """What there is to say after a look that found these."""
        standing: dict[_Key, list[Finding]] = {}
        for finding in findings:
            if finding.severity in _SAID and finding.rule != WARMING_UP:
                standing.setdefault((finding.rule, finding.layer), []).append(finding)
        new: list[list[Finding]] = []
        worse: list[list[Finding]] = []
        for key, found in standing.items():
            weight, told = _Weight.of(found), self._told.get(key)
            if told is not None and not weight.is_worse_than(told):
                continue
            self._told[key] = weight
            (new if told is None else worse).append(found)
        over = [key for key in self._told if key not in standing]
        for key in over:
            del self._told[key]
        return [*_described(new), *_described(worse, "worse: "), *_ended(over)]


def _described(news: Sequence[Sequence[Finding]], start: str = "") -> Iterator[str]:
    """A line for each layer of a rule, while they are few, and the count of the others.

    Args:
        news: of each layer what one rule found in it; those of a rule follow each other.
        start: how a line begins.
    """
    for rule, group in groupby(news, key=lambda found: found[0].rule):
        layers = list(group)
        for first, *others in layers[:_NAMED]:
            yield start + "; ".join([describe(first), *(other.message for other in others)])
        if len(layers) > _NAMED:
            yield f"{start}{rule} {layers[0][0].name}: {_more(len(layers) - _NAMED)}"


def warming_up(findings: Sequence[Finding]) -> Iterator[str]:
    """What to say at the end of a training whose statistics are not warmed up yet."""
    early = [[each] for each in findings if each.rule == WARMING_UP and each.severity in _SAID]
    return _described(early)


def describe(finding: Finding) -> str:
    """A finding in one line."""
    layer = "" if finding.layer is None else f"{finding.layer}: "
    return f"{finding.severity} {finding.rule} {finding.name}: {layer}{finding.message}"


def gravest(findings: Sequence[Finding], fail_on: Severity | None) -> Finding | None:
    """The first of the gravest findings, if it is at least that grave."""
    if fail_on is None:
        return None
    order = SEVERITIES.index
    grave = (
        each
        for each in findings
        if order(each.severity) <= order(fail_on) and each.rule != WARMING_UP
    )
    return min(grave, key=lambda each: order(each.severity), default=None)


def _ended(keys: Sequence[_Key]) -> Iterator[str]:
    for rule, group in groupby(sorted(keys, key=itemgetter(0)), key=itemgetter(0)):
        names = ["the whole model" if layer is None else layer for _, layer in group]
        more = [_more(len(names) - _NAMED)] if len(names) > _NAMED else []
        yield f"over: {rule} in {', '.join([*names[:_NAMED], *more])}"


def _more(count: int) -> str:
    return f"and {count} more {'layer' if count == 1 else 'layers'}"


class Watcher:
    """Looks at a model again and again, and tells what is new.

    Attributes:
        findings: all that the last look found.
    """

    def __init__(
        self,
        *,
        say: Callable[[str], None],
        tensorboard: str | os.PathLike[str] | None = None,
        history: str | os.PathLike[str] | None = None,
        select: Sequence[str] = (),
        ignore: Sequence[str] = (),
    ) -> None:
        """See `bnstat.keras.Watch`; `say` is called with each line that there is to say."""
        self.findings: list[Finding] = []
        self._say = say
        self._logdir = None if tensorboard is None else os.fspath(tensorboard)
        self._path = None if history is None else os.fspath(history)
        self._select, self._ignore = tuple(select), tuple(ignore)
        find_rules((*self._select, *self._ignore))
        if self._path is not None and not self._path.endswith((".csv", ".json")):
            raise UnsupportedError(self._path, "a history is written as .csv or .json")
        if self._logdir is not None:
            import bnstat.output.tensorboard  # noqa: F401  # tells now if it is not installed
        self._events: Events | None = None
        self._recorder = Recorder()
        self._news = News()
        self._has_said_none = False

    @property
    def history(self) -> History:
        """How the statistics moved over the looks so far."""
        return self._recorder.history()

    def look(self, thing: object, name: str, number: int, step: int | None = None) -> None:
        """Look at a model, and say what is new.

        What cannot be read or written is said as well, and the training goes on.

        Args:
            thing: a model that `bnstat.load` takes.
            name: what to call this moment.
            number: its number, as TensorBoard is to show it.
            step: how many batches the model was trained with by then, where that is known.
        """
        self.findings = []
        try:
            live = live_model(thing).model
            model = Model(replace(live.source, checkpoint=name, step=step), live.layers)
            if not model.layers:
                self._say_once_that_there_is_none(model)
                return
            self._recorder.add(name, model)
            self._judge(model)
            for line in self._news.lines(self.findings):
                self._say(f"{name}: {line}")
            self._write(model, number)
        except (BnstatError, OSError) as error:
            self._say(f"{name}: {error}")

    def close(self) -> None:
        """The training is over: say what only now is wrong, and close the event file.

        Another look opens a new one.
        """
        for line in warming_up(self.findings):
            self._say(f"at the end: {line}")
        if self._events is not None:
            self._events.close()
            self._events = None

    def _judge(self, model: Model) -> None:
        self.findings = [
            finding
            for subject in (model, self.history)
            for finding in check(subject, select=self._select, ignore=self._ignore)
        ]

    def _write(self, model: Model, number: int) -> None:
        if self._path is not None:
            from bnstat.output.results import history as history_csv
            from bnstat.output.results import history as history_json
            from bnstat.output.sink import open_text

            with open_text(self._path) as file:
                if self._path.endswith(".csv"):
                    history_csv.dump_history_csv(self.history, file)
                else:
                    history_json.dump_history_json(
                        self.history, self.findings, model.source.path, file
                    )
        if self._logdir is not None:
            from bnstat.output.tensorboard import growing_run

            self._events = self._events or growing_run(self._logdir)
            self._events.add(model, number, self.findings)
            self._events.flush()

    def _say_once_that_there_is_none(self, model: Model) -> None:
        if not self._has_said_none:
            self._has_said_none = True
            self._say(f"no batch-norm layer found in {model.source.path}: nothing to watch")
