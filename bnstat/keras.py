"""A Keras callback that looks at a model's batch norm while it is trained.

    from bnstat.keras import Watch

    model.fit(..., callbacks=[Watch(fail_on="error", history="bn.csv")])

It serves `fit` of Keras 3, on each of its backends, and of tf-keras.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module
from os import PathLike
from typing import Any

from bnstat.checks.rule import SEVERITIES, Finding, Severity
from bnstat.compare.history import History
from bnstat.errors import UnsupportedError
from bnstat.training.watcher import Watcher, describe, fails


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

    Errors and warnings of `bnstat.check` are said on standard error, each once, and again if it
    becomes graver. A file that cannot be written is told there as well; it does not end the
    training.

    Args:
        every: at the end of how many epochs it looks.
        fail_on: a finding of at least this severity ends the training, as `EarlyStopping` does:
            `error`, `warning` or `info`; None never does.
        tensorboard: a folder in which histograms, scalars and findings are written for
            TensorBoard, as the run `bnstat`; steps are Keras's numbers of the epochs, from 0.
        history: a `.csv` or `.json` that is written anew at each look.
        select, ignore: as for `bnstat.check`.

    Raises:
        UnsupportedError: TensorBoard is not installed, or a history's ending is another.
        BnstatError: `select` or `ignore` names no rule.
        ValueError: `every` is below 1, or there is no such severity.

    Attributes:
        findings: all that the last look found.
        stopped_by: the finding that ended the training; None if none did.
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
        self._watcher = Watcher(
            say=self._say, tensorboard=tensorboard, history=history, select=select, ignore=ignore
        )
        self.stopped_by: Finding | None = None

    @property
    def findings(self) -> Sequence[Finding]:
        """All that the last look found."""
        return self._watcher.findings

    @property
    def history(self) -> History:
        """How the statistics moved over the epochs looked at."""
        return self._watcher.history

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        if (epoch + 1) % self._every:
            return
        steps = getattr(getattr(self.model, "optimizer", None), "iterations", None)
        step = None if steps is None else int(steps)
        new = self._watcher.look(self.model, f"epoch {epoch + 1}", epoch, step)
        for finding in new:
            if fails(finding, self._fail_on):
                self.stopped_by = finding
                self.model.stop_training = True
                self._say(f"training stops: {describe(finding)}")
                break

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
