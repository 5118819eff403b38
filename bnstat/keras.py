"""A Keras callback that looks at a model's batch norm while it is trained.

    from bnstat.keras import Watch

    model.fit(..., callbacks=[Watch(fail_on="error", history="bn.json")])

It serves `fit` of Keras 3, on each of its backends, and of tf-keras.
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
from bnstat.training.watcher import Watcher, describe, gravest


def _callback() -> Any:
    """The base of callbacks, of the Keras that the program uses already, else of one there is."""
    names = ("keras", "tf_keras")
    for name in (*(name for name in names if name in sys.modules), *names):
        try:
            return import_module(f"{name}.callbacks").Callback
        except ImportError:
            continue
    raise UnsupportedError("bnstat.keras", "Keras is not installed", "pip install keras")


class Watch(_callback()):  # type: ignore[misc]
    """Looks at the model at the end of an epoch, and says what is wrong as it arises.

        watch = Watch(every=5, fail_on="error", tensorboard="logs", history="bn.json")
        model.fit(x, y, epochs=90, callbacks=[watch])
        watch.findings, watch.stopped_by, watch.history.tracks["stem/bn", "moving_mean"].mean

    Errors and warnings of `bnstat.check` are said on standard error when they arise, again when
    they become worse (graver, in twice the channels, ten times as large), and once when they are
    over; of a rule, three layers by name and the others by their count. That the statistics still
    hold some of the initial 0 and 1 (BN003) is what every training begins with: it is said where
    the training ends so, and never ends it. A file that cannot be written is told there as well;
    it does not end the training either.

    One `Watch` serves several calls of `fit`: with the same model it goes on, with another it
    begins anew. Under a `tf.distribute` strategy it sees the variables as the model saves them.

    Args:
        every: at the end of how many epochs it looks.
        fail_on: a finding of at least this severity ends the training, as `EarlyStopping` does:
            `error`, `warning` or `info`; None never does. Statistics that are not updated (BN001)
            are a warning: a model in memory does not show whether it was called in training mode.
        tensorboard: a folder in which histograms, scalars and findings are written for
            TensorBoard, as the run `bnstat`; steps are Keras's numbers of the epochs, from 0.
        history: a `.json` or `.csv` that is written anew at each look, as `bnstat history --json`
            or `--csv` writes it of a folder of checkpoints: an object of `checkpoints` (the epochs
            looked at, with the optimizer's step), `tracks` (of each layer and role the measures
            of `bnstat.run_history.Track`, a number an epoch) and `findings` (the last look's);
            or a row for each epoch, layer and role.
        select, ignore: as for `bnstat.check`.

    Raises:
        UnsupportedError: TensorBoard is not installed, or a history's ending is another.
        BnstatError: `select` or `ignore` names no rule.
        ValueError: `every` is below 1, or there is no such severity.

    Attributes:
        findings: all that the last look found.
        stopped_by: the finding that ended the last training; None if none did.
    """

    _supports_tf_logs = True  # tf-keras: needs no numbers of batches as NumPy arrays

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
            raise ValueError(f"every is a number of epochs from 1 on, not {every}")
        if fail_on not in (None, *SEVERITIES):
            raise ValueError(f"fail_on is {', '.join(SEVERITIES)} or None, not {fail_on!r}")
        self._every = every
        self._fail_on = fail_on
        self._begin = partial(
            Watcher,
            say=self._say,
            tensorboard=tensorboard,
            history=history,
            select=select,
            ignore=ignore,
        )
        self._watcher = self._begin()
        self._watched: Any = None
        self.stopped_by: Finding | None = None

    @property
    def findings(self) -> Sequence[Finding]:
        """All that the last look found."""
        return self._watcher.findings

    @property
    def history(self) -> History:
        """How the statistics moved over the epochs looked at."""
        return self._watcher.history

    def on_train_begin(self, logs: Any = None) -> None:
        self.stopped_by = None
        if self._watched is not None and self._watched is not self.model:
            self._watcher = self._begin()
        self._watched = self.model

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        if (epoch + 1) % self._every:
            return
        steps = getattr(getattr(self.model, "optimizer", None), "iterations", None)
        step = None if steps is None else int(numpy_of(steps))
        self._watcher.look(self.model, f"epoch {epoch + 1}", epoch, step)
        self.stopped_by = gravest(self.findings, self._fail_on)
        if self.stopped_by is not None:
            self.model.stop_training = True
            self._say(
                f"training stops after epoch {epoch + 1}, by fail_on={self._fail_on!r}: "
                + describe(self.stopped_by)
            )

    def on_train_end(self, logs: Any = None) -> None:
        self._watcher.close()

    def _say(self, line: str) -> None:
        from bnstat.output.terminal.screen import legible

        # Keras has not ended the line of its progress bar yet.
        start = "\n" if (self.params or {}).get("verbose") in (1, "auto") else ""
        print(f"{start}bnstat: {legible(line)}", file=sys.stderr, flush=True)

    def _implements_train_batch_hooks(self) -> bool:
        """Asked by tf-keras, which else makes the numbers of each batch ready for callbacks."""
        return False

    _implements_test_batch_hooks = _implements_train_batch_hooks
    _implements_predict_batch_hooks = _implements_train_batch_hooks
