"""The rows of a page: its layers, each in one or several models, with their numbers packed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from bnstat.checks import Finding
from bnstat.model import ROLES, BatchNorm, printable
from bnstat.output.page.numbers import Packed, Place

Frames = Sequence[BatchNorm | None]
"""One layer in each of the models that the page shows; None in those that lack it."""


def row(frames: Frames, packed: Packed) -> dict[str, Any]:
    """One layer for the page's scripts, described as the last model that has it does.

    Its members: `name`, `channels`, `shape` (where it is no vector), `facts` (title and text),
    `epsilon` (one a model; null where it is not told), `stored` (a list for each model: for each
    of `ROLES` the place of its numbers, or null; null for a model that lacks the layer).
    """
    layer = next(each for each in reversed(frames) if each is not None)
    vector = sum(size != 1 for size in layer.shape) <= 1
    return {
        "name": printable(layer.name),
        "channels": layer.channels,
        "shape": None if vector else list(layer.shape),
        "facts": _facts(layer),
        "epsilon": [None if each is None else each.epsilon for each in frames],
        "stored": [None if each is None else _stored(each, packed) for each in frames],
    }


def _stored(layer: BatchNorm, packed: Packed) -> list[Place | None]:
    arrays = [layer.array(role) for role in ROLES]
    return [None if array is None else packed.add(array) for array in arrays]


def _facts(layer: BatchNorm) -> list[tuple[str, str]]:
    told = {
        "momentum": layer.momentum,
        "axis": layer.axis,
        "trainable": None if layer.trainable is None else "yes" if layer.trainable else "no",
        "known by": layer.evidence,
        "dtype": ", ".join(sorted({each.dtype for each in layer.variables.values()})),
    }
    facts = [(title, str(value)) for title, value in told.items() if value is not None]
    facts += [("note", printable(note)) for note in layer.notes]
    if layer.undecided:
        facts.append(("note", "the file does not tell the role of some of its variables"))
    return facts


def marks(findings: Sequence[Finding], rows: Mapping[str, int]) -> list[dict[str, Any]]:
    """The findings about layers for the page's scripts.

    `runs` are the channels in question: where each run of them starts and how long it is.
    """
    return [
        {
            "rule": finding.rule,
            "name": finding.name,
            "severity": finding.severity,
            "row": rows[finding.layer],
            "message": printable(finding.message),
            "runs": _runs(finding.channels.tolist()),
        }
        for finding in findings
        if finding.layer is not None and finding.layer in rows
    ]


def _runs(channels: Sequence[int]) -> list[int]:
    runs: list[int] = []
    for channel in channels:
        if runs and channel == runs[-2] + runs[-1]:
            runs[-1] += 1
        else:
            runs += [channel, 1]
    return runs
