"""Statistics as TensorBoard shows them: event files with histograms, scalars and text.

An event file is a sequence of records, each of a length (uint64), its checksum (uint32), an
`Event` message and its checksum, little-endian; the checksums are masked CRC-32C
(`tensorflow/core/lib/io/record_writer.h`). A histogram is a float64 tensor of one row a bucket:
left edge, right edge, count (`tensorboard/plugins/histogram/summary_v2.py`).

In the folder that is given there is one run, `bnstat`, with these tags:

    LAYER/ROLE                       histogram over the finite channels
    LAYER/ROLE/mean, std, min, max   scalars over the finite channels; NaN where there is none
    LAYER/ROLE/not_finite            how many channels are NaN or infinite, where any is
    findings, findings over time     text: what `check` finds in a step, and in the run
"""

from __future__ import annotations

import contextlib
import os
import struct
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, BinaryIO, Final

import numpy as np

from bnstat.checks import Finding, check
from bnstat.errors import BnstatError, UnsupportedError
from bnstat.formats.tensorflow.sstable import masked_crc32c
from bnstat.model import ROLES, Array, BatchNorm, Model, Summary, as_float64, printable
from bnstat.output.results.differences import escaped
from bnstat.output.scale import Scale
from bnstat.output.sink import open_binary
from bnstat.run_history import History, history

try:
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.compat.proto.summary_pb2 import Summary as Values
    from tensorboard.compat.proto.tensor_pb2 import TensorProto
    from tensorboard.compat.proto.types_pb2 import DT_DOUBLE, DT_FLOAT, DT_STRING
    from tensorboard.plugins.histogram import metadata as histograms
    from tensorboard.plugins.scalar import metadata as scalars
    from tensorboard.plugins.text import metadata as texts
except ImportError as error:
    raise UnsupportedError("TensorBoard", "is not installed", "pip install tensorboard") from error

RUN: Final = "bnstat"
"""The folder of the event files; TensorBoard shows it as a run of this name."""

_BINS: Final = 30
"""TensorBoard's own number."""

_NAME: Final = "events.out.tfevents"


class Events:
    """An event file that is being written."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._write(Event(wall_time=time.time(), file_version="brain.Event:2"))

    def add(self, model: Model, step: int, found: Sequence[Finding]) -> None:
        """Write the layers of a model at a step, and what was found in them.

        Raises:
            BnstatError: an array cannot be read; nothing of the step is written then.
        """
        messages = [
            Event(wall_time=time.time(), step=step, summary=Values(value=_layer(layer)))
            for layer in model
        ]
        for message in messages:
            self._write(message)
        self.findings("findings", step, found)

    def findings(self, tag: str, step: int, found: Sequence[Finding]) -> None:
        """Write findings as text."""
        lines = [_line(finding) for finding in found] or ["no findings"]
        tensor = TensorProto(dtype=DT_STRING, string_val=["\n".join(lines).encode()])
        value = _value(tag, texts, tensor)
        self._write(Event(wall_time=time.time(), step=step, summary=Values(value=[value])))

    def flush(self) -> None:
        """Let those see what was written who read the file."""
        self._file.flush()

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _write(self, event: Event) -> None:
        content = event.SerializeToString()
        length = struct.pack("<Q", len(content))
        checksums = [struct.pack("<I", masked_crc32c(part)) for part in (length, content)]
        self._file.write(length + checksums[0] + content + checksums[1])


def write(models: Iterable[tuple[str, Model | BnstatError]], logdir: str) -> History:
    """Write a run that is over to an event file, whole or not at all, in place of the last.

    Args:
        models: the checkpoints, as for `bnstat.history`. A checkpoint's step is the one that it
            tells, else its number.
        logdir: the folder in which the run `bnstat` is; made if it is not there.

    Returns:
        The history of the run. No file is written where it has no layer.

    Raises:
        OSError: it cannot be written.
    """
    step = 0

    def written() -> Iterator[tuple[str, Model | BnstatError]]:
        nonlocal step
        for number, (name, model) in enumerate(models):
            outcome = model
            if isinstance(model, Model):
                step = number if model.source.step is None else model.source.step
                try:
                    events.add(model, step, check(model))
                except BnstatError as error:
                    outcome = error
            yield name, outcome

    with contextlib.suppress(_NoLayersError), _replaced(logdir) as events:
        run = history(written())
        if not run.tracks:
            raise _NoLayersError
        events.findings("findings over time", step, check(run))
    return run


class _NoLayersError(Exception):
    """There is nothing to write."""


@contextlib.contextmanager
def _replaced(logdir: str) -> Iterator[Events]:
    folder = os.path.join(logdir, RUN)
    os.makedirs(folder, exist_ok=True)
    try:
        with open_binary(os.path.join(folder, f"{_NAME}.{RUN}")) as file:
            yield Events(file)
    except BaseException:
        with contextlib.suppress(OSError):
            os.rmdir(folder)  # only where it is empty
        raise


def growing_run(logdir: str) -> Events:
    """A new event file for a run that goes on, beside those that are there.

    Raises:
        OSError: it cannot be written.
    """
    folder = os.path.join(logdir, RUN)
    os.makedirs(folder, exist_ok=True)
    name = f"{_NAME}.{time.time():.6f}.{os.getpid()}.{RUN}"
    return Events(open(os.path.join(folder, name), "xb"))


def _layer(layer: BatchNorm) -> list[Values.Value]:
    arrays = [(role, layer.array(role)) for role in ROLES]
    return [
        value
        for role, array in arrays
        if array is not None
        for value in _role(f"{printable(layer.name)}/{role}", array)
    ]


def _role(tag: str, array: Array) -> Iterator[Values.Value]:
    summary = Summary.of(array)
    if summary.bad < summary.count:
        yield _value(tag, histograms, _buckets(array))
    numbers = {name: getattr(summary, name) for name in ("mean", "std", "min", "max")}
    if summary.bad:
        numbers["not_finite"] = summary.bad
    for name, number in numbers.items():
        with np.errstate(over="ignore"):
            content = np.float32(number).tobytes()
        tensor = TensorProto(dtype=DT_FLOAT, tensor_shape={}, tensor_content=content)
        yield _value(f"{tag}/{name}", scalars, tensor)


def _buckets(array: Array) -> TensorProto:
    values = as_float64(array).ravel()
    values = values[np.isfinite(values)]
    scale = Scale.of(values, adaptive=False)
    counts = scale.counts(values, _BINS)
    low, high = scale.low, scale.high
    if scale.is_point:
        low, high = low - 0.5, high + 0.5
    places = np.linspace(0, 1, _BINS + 1)
    edges = low * (1 - places) + high * places
    content = np.stack([edges[:-1], edges[1:], counts.astype(np.float64)], axis=1)
    shape = {"dim": [{"size": size} for size in content.shape]}
    return TensorProto(
        dtype=DT_DOUBLE, tensor_shape=shape, tensor_content=content.astype("<f8").tobytes()
    )


def _value(tag: str, plugin: Any, tensor: TensorProto) -> Values.Value:
    metadata = plugin.create_summary_metadata(display_name=None, description=None)
    return Values.Value(tag=tag, metadata=metadata, tensor=tensor)


def _line(finding: Finding) -> str:
    """A finding as an item of a list in Markdown."""
    layer = "whole model" if finding.layer is None else escaped(printable(finding.layer))
    rule = f"**{finding.severity}** {finding.rule} {finding.name}"
    return f"- {rule}: {layer}: {escaped(printable(finding.message))}"
