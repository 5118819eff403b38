"""A Keras callback that checks the batch norm of a model during training.

    from bnstat.keras import Watch

    model.fit(..., callbacks=[Watch(fail_on="error", history="bn.json")])

It works with `fit` of Keras 3 (every backend) and of tf-keras.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from importlib import import_module
from itertools import groupby
from operator import itemgetter
from typing import TYPE_CHECKING, Any, Final

from bnstat.checks import SEVERITIES, Finding, Severity, check, find_rules
from bnstat.errors import BnstatError, UnsupportedError
from bnstat.live import live_model, numpy_of
from bnstat.model import Model
from bnstat.run_history import History, Recorder

if TYPE_CHECKING:
    from bnstat.output.tensorboard import Events


_REPORTED: Final = ("error", "warning")

_WARMING_UP: Final = "BN003"
"""Every network violates this rule early in training, so it is reported only at the end."""

_SIZES: Final = ("largest", "least", "variance")
"""The keys of `Finding.numbers` whose values measure how serious a finding is."""

_NAMED: Final = 3  # layers per rule; further layers are counted

_Key = tuple[str, str | None]


def _is_worse(findings: Sequence[Finding], reported: Sequence[Finding]) -> bool:
    """Return True if findings are more severe, in twice the channels, or ten times as large."""
    severity, channels, size = _gravity(findings)
    old_severity, old_channels, old_size = _gravity(reported)
    is_wider = channels >= 2 * max(1, old_channels)
    return severity < old_severity or is_wider or size > 10 * old_size > 0


def _gravity(findings: Sequence[Finding]) -> tuple[int, int, float]:
    """Return the index of the highest severity, the number of channels, and the largest size."""
    sizes = (finding.numbers.get(name) for finding in findings for name in _SIZES)
    return (
        min(SEVERITIES.index(finding.severity) for finding in findings),
        sum(finding.channels.size for finding in findings),
        max((abs(size) for size in sizes if size is not None), default=0.0),
    )


class News:
    """Remembers the reported findings, so that each check reports only the changes."""

    def __init__(self) -> None:
        self._reported: dict[_Key, list[Finding]] = {}

    def lines(self, findings: Sequence[Finding]) -> list[str]:
        """Return lines on problems that are new, became worse, or ended since the last report."""
        current: dict[_Key, list[Finding]] = {}
        for finding in findings:
            if finding.severity in _REPORTED and finding.rule != _WARMING_UP:
                current.setdefault((finding.rule, finding.layer), []).append(finding)
        new: list[list[Finding]] = []
        worse: list[list[Finding]] = []
        for key, of_layer in current.items():
            reported = self._reported.get(key)
            if reported is None or _is_worse(of_layer, reported):
                (new if reported is None else worse).append(of_layer)
                self._reported[key] = of_layer
        over = [key for key in self._reported if key not in current]
        for key in over:
            del self._reported[key]
        return [*_described(new), *_described(worse, "worse: "), *_ended(over)]


def _described(news: Sequence[Sequence[Finding]], start: str = "") -> Iterator[str]:
    """Yield one line for each of the first three layers of a rule, then a count of the others."""
    for rule, group in groupby(news, key=lambda of_layer: of_layer[0].rule):
        layers = list(group)
        for first, *others in layers[:_NAMED]:
            yield start + "; ".join([describe(first), *(other.message for other in others)])
        if len(layers) > _NAMED:
            yield f"{start}{rule} {layers[0][0].name}: {_more(len(layers) - _NAMED)}"


def describe(finding: Finding) -> str:
    """Describe a finding in one line."""
    layer = "" if finding.layer is None else f"{finding.layer}: "
    return f"{finding.severity} {finding.rule} {finding.name}: {layer}{finding.message}"


def find_gravest(findings: Sequence[Finding], fail_on: Severity | None) -> Finding | None:
    """Return the most severe finding that is at least `fail_on` and not BN003, or None."""
    grave = () if fail_on is None else SEVERITIES[: SEVERITIES.index(fail_on) + 1]
    return min(
        (each for each in findings if each.severity in grave and each.rule != _WARMING_UP),
        key=lambda finding: SEVERITIES.index(finding.severity),
        default=None,
    )


def _ended(keys: Sequence[_Key]) -> Iterator[str]:
    for rule, group in groupby(sorted(keys, key=itemgetter(0)), key=itemgetter(0)):
        names = ["the whole model" if layer is None else layer for _, layer in group]
        more = [_more(len(names) - _NAMED)] if len(names) > _NAMED else []
        yield f"over: {rule} in {', '.join([*names[:_NAMED], *more])}"


def _more(count: int) -> str:
    return f"and {count} more {'layer' if count == 1 else 'layers'}"


def _callback() -> Any:
    """Return `Callback` of Keras or tf-keras; try the package that is already imported first."""
    for name in sorted(("keras", "tf_keras"), key=lambda name: name not in sys.modules):
        with suppress(ImportError):
            return import_module(f"{name}.callbacks").Callback
    raise UnsupportedError("bnstat.keras", "Keras is not installed", "pip install keras")


class Watch(_callback()):  # type: ignore[misc]
    """Checks a model at the end of an epoch, and reports problems as they appear.

        watch = Watch(every=5, fail_on="error", tensorboard="logs", history="bn.json")
        model.fit(x, y, epochs=90, callbacks=[watch])
        watch.findings, watch.stopped_by, watch.history.tracks["stem/bn", "moving_mean"].mean

    Errors and warnings of `bnstat.check` are printed on standard error when they appear, again when
    they become worse (more serious, in twice the channels, or ten times as large), and once when
    they end. At most three layers per rule are named; further layers are counted. During training,
    it is normal that statistics still depend on their initial values 0 and 1 (BN003): BN003 is
    reported at the end, and never ends the training. If a file cannot be written, the error is
    printed and the training continues.

    One `Watch` serves several calls of `fit`: it continues with the same model, and restarts with
    another model. Under a `tf.distribute` strategy, it checks the values that the model would save.

    Args:
        every: the number of epochs between checks.
        fail_on: end the training, as `EarlyStopping` does, on a finding of at least this severity:
            `error`, `warning` or `info`; None never ends it. Statistics that are not updated
            (BN001) are a warning, because a model in memory does not show whether it was called in
            training mode.
        tensorboard: a folder for TensorBoard; histograms, scalars and findings become the run
            `bnstat`. The step in TensorBoard is the index of the epoch, from 0.
        history: a `.json` or `.csv` file that is rewritten at each check, in the format of
            `bnstat history --json` or `--csv`. The JSON has `checkpoints` (the checked epochs,
            with the optimizer's step), `tracks` (for each layer and role the measures of
            `bnstat.run_history.Track`, one number per epoch) and `findings` (of the last check).
            The CSV has a row for each epoch, layer and role.
        select, ignore: as for `bnstat.check`.

    Raises:
        UnsupportedError: TensorBoard is not installed, or `history` has another ending.
        BnstatError: `select` or `ignore` does not name a rule.
        ValueError: `every` is below 1, or `fail_on` is not a severity.

    Attributes:
        findings: all findings of the last check.
        stopped_by: the finding that ended the last training, or None.
    """

    _supports_tf_logs = True  # tf-keras: do not convert logs to NumPy arrays

    def __init__(
        self,
        every: int = 1,
        fail_on: Severity | None = None,
        tensorboard: str | os.PathLike[str] | None = None,
        history: str | os.PathLike[str] | None = None,
        select: Sequence[str] = (),
        ignore: Sequence[str] = (),
    ) -> None:
        super().__init__()
        if every < 1:
            raise ValueError(f"`every` must be at least 1, not {every}")
        if fail_on not in (None, *SEVERITIES):
            raise ValueError(f"fail_on must be {', '.join(SEVERITIES)} or None, not {fail_on!r}")
        self._every = every
        self._fail_on = fail_on
        self._logdir = None if tensorboard is None else os.fspath(tensorboard)
        self._path = None if history is None else os.fspath(history)
        self._rules: dict[str, Any] = {"select": tuple(select), "ignore": tuple(ignore)}
        find_rules((*select, *ignore))
        if self._path is not None and not self._path.endswith((".csv", ".json")):
            raise UnsupportedError(self._path, "the history must be a .csv or .json file")
        if self._logdir is not None:
            import bnstat.output.tensorboard  # noqa: F401  # Fails now if it is not installed.
        self._watched: Any = None
        self._restart()

    def _restart(self) -> None:
        self._findings: list[Finding] = []
        self.stopped_by: Finding | None = None
        self._recorder = Recorder()
        self._news = News()
        self._events: Events | None = None
        self._has_reported_none = False

    @property
    def findings(self) -> Sequence[Finding]:
        """All findings of the last check."""
        return self._findings

    @property
    def history(self) -> History:
        """The statistics of each layer over the checked epochs."""
        return self._recorder.history()

    def on_train_begin(self, logs: Any = None) -> None:
        self.stopped_by = None
        if self._watched is not None and self._watched is not self.model:
            self._restart()
        self._watched = self.model

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        if (epoch + 1) % self._every:
            return
        name = f"epoch {epoch + 1}"
        self._findings = []
        try:
            self._check(name, epoch)
        except (BnstatError, OSError) as error:
            self._print(f"{name}: {error}")
        self.stopped_by = find_gravest(self._findings, self._fail_on)
        if self.stopped_by is not None:
            self.model.stop_training = True
            reason = f"fail_on={self._fail_on!r}: {describe(self.stopped_by)}"
            self._print(f"training stops after {name} because of {reason}")

    def on_train_end(self, logs: Any = None) -> None:
        """Print the findings of BN003 and close TensorBoard's file; later checks open a new one."""
        early = (finding for finding in self._findings if finding.rule == _WARMING_UP)
        for line in _described([[each] for each in early if each.severity in _REPORTED]):
            self._print(f"at the end: {line}")
        if self._events is not None:
            self._events.close()
            self._events = None

    def _check(self, name: str, epoch: int) -> None:
        steps = getattr(getattr(self.model, "optimizer", None), "iterations", None)
        step = None if steps is None else int(numpy_of(steps))
        live = live_model(self.model).model
        model = Model(replace(live.source, checkpoint=name, step=step), live.layers)
        if not model.layers:
            if not self._has_reported_none:
                self._has_reported_none = True
                self._print(f"no batch-norm layer in {model.source.path}: nothing to watch")
            return
        self._recorder.add(name, model)
        self._findings = [*check(model, **self._rules), *check(self.history, **self._rules)]
        for line in self._news.lines(self._findings):
            self._print(f"{name}: {line}")
        self._write(model, epoch)

    def _write(self, model: Model, epoch: int) -> None:
        if self._path is not None:
            from bnstat.output.history import csv_lines, json_lines
            from bnstat.output.sink import write_lines

            lines = csv_lines(self.history)
            if not self._path.endswith(".csv"):
                lines = json_lines(self.history, self._findings, model.source.path)
            write_lines(lines, self._path)
        if self._logdir is not None:
            from bnstat.output.tensorboard import growing_run

            self._events = self._events or growing_run(self._logdir)
            self._events.add(model, epoch, self._findings)
            self._events.flush()

    def _print(self, line: str) -> None:
        from bnstat.output.terminal.screen import sentence

        # The progress bar of Keras leaves the line open.
        start = "\n" if (self.params or {}).get("verbose") in (1, "auto") else ""
        print(f"{start}bnstat: {sentence(line)}", file=sys.stderr, flush=True)

    def _implements_train_batch_hooks(self) -> bool:
        """Return False, so that tf-keras does not prepare logs for each batch."""
        return False

    _implements_test_batch_hooks = _implements_train_batch_hooks
    _implements_predict_batch_hooks = _implements_train_batch_hooks
