"""Check the batch norm of a model during training, with any library."""

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


_REPORTED: Final = ("error", "warning")

WARMING_UP: Final = "BN003"
"""The rule that every network violates at first, which is reported only at the end of training."""

_SIZES: Final = ("largest", "least", "variance")
"""The names of a finding's numbers that measure its size."""

_MORE_CHANNELS, _LARGER = 2, 10
"""The factors in channels and size by which a finding must grow to be reported again."""

_NAMED: Final = 3
"""The number of layers per rule that a report names; further layers are counted."""

_Key = tuple[str, str | None]


@dataclass(frozen=True, slots=True)
class _Gravity:
    """The severity and size of a rule's findings in a layer."""

    severity: int
    channels: int
    size: float

    @classmethod
    def of(cls, findings: Sequence[Finding]) -> _Gravity:
        sizes = (finding.numbers.get(name) for finding in findings for name in _SIZES)
        return cls(
            min(SEVERITIES.index(finding.severity) for finding in findings),
            sum(finding.channels.size for finding in findings),
            max((abs(size) for size in sizes if size is not None), default=0.0),
        )

    def is_worse_than(self, other: _Gravity) -> bool:
        return (
            self.severity < other.severity
            or self.channels >= max(1, other.channels) * _MORE_CHANNELS
            or self.size > other.size * _LARGER > 0
        )


class News:
    """Remembers reported findings; after each check, returns new, worse and ended findings."""

    def __init__(self) -> None:
        self._reported: dict[_Key, _Gravity] = {}

    def lines(self, findings: Sequence[Finding]) -> list[str]:
        """Return the lines to report after a check."""
        current: dict[_Key, list[Finding]] = {}
        for finding in findings:
            if finding.severity in _REPORTED and finding.rule != WARMING_UP:
                current.setdefault((finding.rule, finding.layer), []).append(finding)
        new: list[list[Finding]] = []
        worse: list[list[Finding]] = []
        for key, of_layer in current.items():
            gravity, reported = _Gravity.of(of_layer), self._reported.get(key)
            if reported is not None and not gravity.is_worse_than(reported):
                continue
            self._reported[key] = gravity
            (new if reported is None else worse).append(of_layer)
        over = [key for key in self._reported if key not in current]
        for key in over:
            del self._reported[key]
        return [*_described(new), *_described(worse, "worse: "), *_ended(over)]


def _described(news: Sequence[Sequence[Finding]], start: str = "") -> Iterator[str]:
    """Yield a line for each of a rule's first layers, then the number of further layers.

    Args:
        news: one list of findings per rule and layer, sorted by rule.
        start: the start of each line.
    """
    for rule, group in groupby(news, key=lambda of_layer: of_layer[0].rule):
        layers = list(group)
        for first, *others in layers[:_NAMED]:
            yield start + "; ".join([describe(first), *(other.message for other in others)])
        if len(layers) > _NAMED:
            yield f"{start}{rule} {layers[0][0].name}: {_more(len(layers) - _NAMED)}"


def warming_up(findings: Sequence[Finding]) -> Iterator[str]:
    """Return the lines on BN003, for the end of the training."""
    return _described(
        [
            [finding]
            for finding in findings
            if finding.rule == WARMING_UP and finding.severity in _REPORTED
        ]
    )


def describe(finding: Finding) -> str:
    """Describe a finding in one line."""
    layer = "" if finding.layer is None else f"{finding.layer}: "
    return f"{finding.severity} {finding.rule} {finding.name}: {layer}{finding.message}"


def find_gravest(findings: Sequence[Finding], fail_on: Severity | None) -> Finding | None:
    """Return the most serious finding of at least a severity, or None."""
    if fail_on is None:
        return None
    order = SEVERITIES.index
    grave = (
        finding
        for finding in findings
        if order(finding.severity) <= order(fail_on) and finding.rule != WARMING_UP
    )
    return min(grave, key=lambda finding: order(finding.severity), default=None)


def _ended(keys: Sequence[_Key]) -> Iterator[str]:
    for rule, group in groupby(sorted(keys, key=itemgetter(0)), key=itemgetter(0)):
        names = ["the whole model" if layer is None else layer for _, layer in group]
        more = [_more(len(names) - _NAMED)] if len(names) > _NAMED else []
        yield f"over: {rule} in {', '.join([*names[:_NAMED], *more])}"


def _more(count: int) -> str:
    return f"and {count} more {'layer' if count == 1 else 'layers'}"


class Watcher:
    """Checks a model repeatedly, and reports new findings.

    Attributes:
        findings: all findings of the last check.
    """

    def __init__(
        self,
        *,
        report: Callable[[str], None],
        tensorboard: str | os.PathLike[str] | None = None,
        history: str | os.PathLike[str] | None = None,
        select: Sequence[str] = (),
        ignore: Sequence[str] = (),
    ) -> None:
        """See `bnstat.keras.Watch`; `report` is called with each line."""
        self.findings: list[Finding] = []
        self._report = report
        self._logdir = None if tensorboard is None else os.fspath(tensorboard)
        self._path = None if history is None else os.fspath(history)
        self._select, self._ignore = tuple(select), tuple(ignore)
        find_rules((*self._select, *self._ignore))
        if self._path is not None and not self._path.endswith((".csv", ".json")):
            raise UnsupportedError(self._path, "a history can be a .csv or .json file")
        if self._logdir is not None:
            import bnstat.output.tensorboard  # noqa: F401  # Fails now if it is not installed.
        self._events: Events | None = None
        self._recorder = Recorder()
        self._news = News()
        self._has_reported_none = False

    @property
    def history(self) -> History:
        """The statistics over all checks."""
        return self._recorder.history()

    def check(self, thing: object, name: str, number: int, step: int | None = None) -> None:
        """Check a model, and report new findings.

        Errors while reading or writing are reported too; the training continues.

        Args:
            thing: a model in memory, as for `bnstat.load`.
            name: the name of this check, such as `epoch 3`.
            number: the step in TensorBoard.
            step: the number of training batches so far, if known.
        """
        self.findings = []
        try:
            live = live_model(thing).model
            model = Model(replace(live.source, checkpoint=name, step=step), live.layers)
            if not model.layers:
                if not self._has_reported_none:
                    self._has_reported_none = True
                    self._report(f"no batch-norm layer in {model.source.path}: nothing to watch")
                return
            self._recorder.add(name, model)
            self.findings = [
                finding
                for subject in (model, self.history)
                for finding in check(subject, select=self._select, ignore=self._ignore)
            ]
            for line in self._news.lines(self.findings):
                self._report(f"{name}: {line}")
            self._write(model, number)
        except (BnstatError, OSError) as error:
            self._report(f"{name}: {error}")

    def close(self) -> None:
        """End the training: report postponed findings, and close the event file.

        Another check opens a new event file.
        """
        for line in warming_up(self.findings):
            self._report(f"at the end: {line}")
        if self._events is not None:
            self._events.close()
            self._events = None

    def _write(self, model: Model, number: int) -> None:
        if self._path is not None:
            from bnstat.output.history import csv_lines, json_lines
            from bnstat.output.sink import write_lines

            lines = csv_lines(self.history)
            if not self._path.endswith(".csv"):
                lines = json_lines(self.history, self.findings, model.source.path)
            write_lines(lines, self._path)
        if self._logdir is not None:
            from bnstat.output.tensorboard import growing_run

            self._events = self._events or growing_run(self._logdir)
            self._events.add(model, number, self.findings)
            self._events.flush()
