"""Statistics for TensorBoard: event files with histograms, scalars and text.

An event file is a sequence of records: a length (uint64), its checksum (uint32), an `Event`
message and its checksum, all little-endian. The checksums are masked CRC-32C
(`tensorflow/core/lib/io/record_writer.h`). A histogram is a float64 tensor with one row per bucket:
left edge, right edge, count (`tensorboard/plugins/histogram/summary_v2.py`).

The log folder gets one run, `bnstat`, with these tags:

    LAYER/ROLE                       histogram over the finite channels
    LAYER/ROLE/mean, std, min, max   scalars over the finite channels; NaN if no channel is finite
    LAYER/ROLE/not_finite            the number of NaN or infinite channels; omitted if 0
    findings                         text: the findings of `check` in the model at this step
    findings over time               text: the findings of `check` in the run
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
from bnstat.model import ROLES, Array, BatchNorm, Model, Summary, printable
from bnstat.output.documents import escaped, members
from bnstat.output.numbers import Scale, finite
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

_BINS: Final = 30  # the buckets of a histogram, as many as TensorBoard's default
_NAME: Final = "events.out.tfevents"


class Events:
    """An event file that is being written."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._write(Event(file_version="brain.Event:2"))

    def add(self, model: Model, step: int, findings: Sequence[Finding]) -> None:
        """Write the layers of a model at a step, and the findings in the model.

        The step is not written at all if an array cannot be read.
        """
        summaries = [Values(value=list(_values(layer))) for layer in model]
        for summary in summaries:
            self._write(Event(step=step, summary=summary))
        self.findings("findings", step, findings)

    def findings(self, tag: str, step: int, findings: Sequence[Finding]) -> None:
        """Write findings as a Markdown list under a tag."""
        lines = []
        for finding in findings:
            layer = "whole model" if finding.layer is None else escaped(printable(finding.layer))
            rule = f"**{finding.severity}** {finding.rule} {finding.name}"
            lines.append(f"- {rule}: {layer}: {escaped(printable(finding.message))}")
        lines = lines or ["no findings"]
        tensor = TensorProto(dtype=DT_STRING, string_val=["\n".join(lines).encode()])
        self._write(Event(step=step, summary=Values(value=[_value(tag, texts, tensor)])))

    def flush(self) -> None:
        """Make all written records visible to readers of the file."""
        self._file.flush()

    def close(self) -> None:
        self._file.close()

    def _write(self, event: Event) -> None:
        event.wall_time = time.time()
        content = event.SerializeToString()
        length = struct.pack("<Q", len(content))
        checksums = [struct.pack("<I", masked_crc32c(part)) for part in (length, content)]
        self._file.write(length + checksums[0] + content + checksums[1])


def write(models: Iterable[tuple[str, Model | BnstatError]], logdir: str) -> History:
    """Write a finished run to an event file, and return the history of the run.

    `models` contains pairs (name, model or error). The index of a pair replaces a missing step. If
    the run has layers, the new file replaces an older file; otherwise no file is written.
    """
    step = 0

    def written() -> Iterator[tuple[str, Model | BnstatError]]:
        nonlocal step
        for index, (name, model) in enumerate(models):
            outcome = model
            if isinstance(model, Model):
                step = index if model.source.step is None else model.source.step
                try:
                    events.add(model, step, check(model))
                except BnstatError as error:
                    outcome = error
            yield name, outcome

    folder = os.path.join(logdir, RUN)
    os.makedirs(folder, exist_ok=True)
    try:
        path = os.path.join(folder, f"{_NAME}.{RUN}")
        with contextlib.suppress(_NoLayersError), open_binary(path) as file:
            events = Events(file)
            run = history(written())
            if not run.tracks:
                raise _NoLayersError
            events.findings("findings over time", step, check(run))
    finally:
        with contextlib.suppress(OSError):
            os.rmdir(folder)  # fails unless it is empty
    return run


class _NoLayersError(Exception):
    """The run has no layers to write."""


def growing_run(logdir: str) -> Events:
    """Return a new event file for a run in progress; existing files are kept."""
    folder = os.path.join(logdir, RUN)
    os.makedirs(folder, exist_ok=True)
    name = f"{_NAME}.{time.time():.6f}.{os.getpid()}.{RUN}"
    return Events(open(os.path.join(folder, name), "xb"))


def _values(layer: BatchNorm) -> Iterator[Values.Value]:
    arrays = {role: array for role in ROLES if (array := layer.array(role)) is not None}
    for role, array in arrays.items():
        tag = f"{printable(layer.name)}/{role}"
        summary = Summary.of(array)
        if summary.bad < summary.count:
            yield _value(tag, histograms, _buckets(array))
        numbers = members(summary, "mean", "std", "min", "max")
        if summary.bad:
            numbers["not_finite"] = summary.bad
        for name, number in numbers.items():
            with np.errstate(over="ignore"):
                content = np.float32(number).tobytes()
            tensor = TensorProto(dtype=DT_FLOAT, tensor_shape={}, tensor_content=content)
            yield _value(f"{tag}/{name}", scalars, tensor)


def _buckets(array: Array) -> TensorProto:
    values = finite(array)
    scale = Scale.of(values, adaptive=False)
    counts = scale.counts(values, _BINS)
    margin = 0.5 if scale.is_point else 0
    places = np.linspace(0, 1, _BINS + 1)
    edges = (scale.low - margin) * (1 - places) + (scale.high + margin) * places
    rows = np.stack([edges[:-1], edges[1:], counts.astype(np.float64)], axis=1)
    shape = {"dim": [{"size": size} for size in rows.shape]}
    content = rows.astype("<f8").tobytes()
    return TensorProto(dtype=DT_DOUBLE, tensor_shape=shape, tensor_content=content)


def _value(tag: str, plugin: Any, tensor: TensorProto) -> Values.Value:
    metadata = plugin.create_summary_metadata(display_name=None, description=None)
    return Values.Value(tag=tag, metadata=metadata, tensor=tensor)
