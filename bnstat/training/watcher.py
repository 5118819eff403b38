"""Watches the batch norm of a model in training; knows of no library that trains."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from bnstat.checks import SEVERITIES, Finding, Severity, check, find_rules
from bnstat.compare.history import History, Recorder
from bnstat.errors import BnstatError, UnsupportedError
from bnstat.live import live_model
from bnstat.model import Model

if TYPE_CHECKING:
    from bnstat.output.tensorboard import Events

_SAID: Final = ("error", "warning")
"""What is said of its own accord; the rest is there for who asks."""


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
        self._gravest: dict[tuple[str, str | None], int] = {}
        self._has_said_none = False

    @property
    def history(self) -> History:
        """How the statistics moved over the looks so far."""
        return self._recorder.history()

    def look(self, thing: object, name: str, number: int, step: int | None = None) -> list[Finding]:
        """Look at a model.

        Args:
            thing: a model that `bnstat.load` takes.
            name: what to call this moment.
            number: its number, as TensorBoard is to show it.
            step: how many batches the model was trained with by then, where that is known.

        Returns:
            The findings that are new, or graver than they were. What cannot be read or written
            is said, and the training goes on.
        """
        new: list[Finding] = []
        try:
            live = live_model(thing).model
            model = Model(replace(live.source, checkpoint=name, step=step), live.layers)
            if not model.layers:
                self._say_once_that_there_is_none(model)
                return new
            self._recorder.add(name, model)
            new = self._judge(model)
            for finding in new:
                if finding.severity in _SAID:
                    self._say(f"{name}: {describe(finding)}")
            self._write(model, number)
        except (BnstatError, OSError) as error:
            self._say(f"{name}: {error}")
        return new

    def close(self) -> None:
        """Close the event file; another look opens a new one."""
        if self._events is not None:
            self._events.close()
            self._events = None

    def _judge(self, model: Model) -> list[Finding]:
        run = self.history
        self.findings = [
            finding
            for subject in (model, run)
            for finding in check(subject, select=self._select, ignore=self._ignore)
        ]
        new = []
        for finding in self.findings:
            key, severity = (finding.rule, finding.layer), SEVERITIES.index(finding.severity)
            if severity < self._gravest.get(key, len(SEVERITIES)):
                self._gravest[key] = severity
                new.append(finding)
        return new

    def _write(self, model: Model, number: int) -> None:
        if self._path is not None:
            from bnstat.output.documents import history_csv, history_json
            from bnstat.output.sink import open_text

            with open_text(self._path) as file:
                if self._path.endswith(".csv"):
                    history_csv.dump(self.history, file)
                else:
                    history_json.dump(self.history, self.findings, model.source.path, file)
        if self._logdir is not None:
            from bnstat.output.tensorboard import growing_run

            self._events = self._events or growing_run(self._logdir)
            self._events.add(model, number, self.findings)
            self._events.flush()

    def _say_once_that_there_is_none(self, model: Model) -> None:
        if not self._has_said_none:
            self._has_said_none = True
            self._say(f"no batch-norm layer found in {model.source.path}")


def describe(finding: Finding) -> str:
    """A finding in one line."""
    layer = "" if finding.layer is None else f"{finding.layer}: "
    return f"{finding.severity} {finding.rule} {finding.name}: {layer}{finding.message}"


def fails(finding: Finding, fail_on: Severity | None) -> bool:
    """Whether a finding is at least that grave."""
    order = SEVERITIES.index
    return fail_on is not None and order(finding.severity) <= order(fail_on)
