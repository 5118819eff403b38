"""Watches the batch norm of a model in training; knows of no library that trains."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from bnstat.checks import Finding, check, find_rules
from bnstat.compare.history import History, Recorder
from bnstat.errors import BnstatError, UnsupportedError
from bnstat.live import live_model
from bnstat.model import Model
from bnstat.training.news import News, warming_up

if TYPE_CHECKING:
    from bnstat.output.tensorboard import Events


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
            self._say(f"no batch-norm layer found in {model.source.path}: nothing to watch")
