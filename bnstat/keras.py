"""A Keras callback that checks the batch norm of a model during training.

    from bnstat.keras import Watch

    model.fit(..., callbacks=[Watch(fail_on="error", history="bn.json")])

It works with `fit` of Keras 3, on every backend, and of tf-keras.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import partial
from importlib import import_module
from os import PathLike
from typing import Any

from bnstat.checks.rule import SEVERITIES, Finding, Severity
from bnstat.errors import UnsupportedError
from bnstat.live import numpy_of
from bnstat.run_history import History
from bnstat.training import Watcher, describe, find_gravest


def _callback() -> Any:
    """Return the base class of callbacks, from the imported Keras or else an installed one."""
    names = ("keras", "tf_keras")
    for name in (*(name for name in names if name in sys.modules), *names):
        try:
            return import_module(f"{name}.callbacks").Callback
        except ImportError:
            continue
    raise UnsupportedError("bnstat.keras", "Keras is not installed", "pip install keras")


class Watch(_callback()):  # type: ignore[misc]
    """Checks a model at the end of an epoch, and reports problems as they appear.

        watch = Watch(every=5, fail_on="error", tensorboard="logs", history="bn.json")
        model.fit(x, y, epochs=90, callbacks=[watch])
        watch.findings, watch.stopped_by, watch.history.tracks["stem/bn", "moving_mean"].mean

    Errors and warnings of `bnstat.check` are printed on standard error when they appear, again when
    they become worse (more serious, in twice the channels, or ten times as large), and once when
    they end. At most three layers per rule are named; further layers are counted. Statistics that
    still contain a share of the initial 0 and 1 (BN003) are normal during training: BN003 is
    reported at the end, and never ends the training. A file that cannot be written is reported too.

    One `Watch` serves several calls of `fit`: it continues with the same model, and restarts with
    another model. Under a `tf.distribute` strategy, it checks the values that the model would save.

    Args:
        every: the number of epochs between checks.
        fail_on: end the training, as `EarlyStopping` does, on a finding of at least this severity:
            `error`, `warning` or `info`; None never ends it. Statistics that are not updated
            (BN001) are a warning, because a model in memory does not show whether it was called in
            training mode.
        tensorboard: a folder for TensorBoard; histograms, scalars and findings become the run
            `bnstat`. Steps are Keras's numbers of the epochs, from 0.
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
        tensorboard: str | PathLike[str] | None = None,
        history: str | PathLike[str] | None = None,
        select: Sequence[str] = (),
        ignore: Sequence[str] = (),
    ) -> None:
        super().__init__()
        if every < 1:
            raise ValueError(f"every must be at least 1, not {every}")
        if fail_on not in (None, *SEVERITIES):
            raise ValueError(f"fail_on must be {', '.join(SEVERITIES)} or None, not {fail_on!r}")
        self._every = every
        self._fail_on = fail_on
        self._new_watcher = partial(
            Watcher,
            report=self._print,
            tensorboard=tensorboard,
            history=history,
            select=select,
            ignore=ignore,
        )
        self._watcher = self._new_watcher()
        self._watched: Any = None
        self.stopped_by: Finding | None = None

    @property
    def findings(self) -> Sequence[Finding]:
        """All findings of the last check."""
        return self._watcher.findings

    @property
    def history(self) -> History:
        """The statistics over the checked epochs."""
        return self._watcher.history

    def on_train_begin(self, logs: Any = None) -> None:
        self.stopped_by = None
        if self._watched is not None and self._watched is not self.model:
            self._watcher = self._new_watcher()
        self._watched = self.model

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        if (epoch + 1) % self._every:
            return
        steps = getattr(getattr(self.model, "optimizer", None), "iterations", None)
        step = None if steps is None else int(numpy_of(steps))
        self._watcher.check(self.model, f"epoch {epoch + 1}", epoch, step)
        self.stopped_by = find_gravest(self.findings, self._fail_on)
        if self.stopped_by is not None:
            self.model.stop_training = True
            self._print(
                f"training stops after epoch {epoch + 1} because of fail_on={self._fail_on!r}: "
                + describe(self.stopped_by)
            )

    def on_train_end(self, logs: Any = None) -> None:
        self._watcher.close()

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
