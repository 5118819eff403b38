"""Both modes of batch norm for people: what the outputs are in each, and what that shows."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from bnstat.estimate.modes import ModeEvidence, Modes, Outputs, percent
from bnstat.output.numbers import compact
from bnstat.output.terminal.screen import Screen

_VERDICTS: Final = {
    "batch-statistics": "layers still hold the initial mean 0 and variance 1, and the network was "
    "trained with the statistics of each batch: inference is broken, and bnstat recalibrate "
    "mends it",
    "stored-statistics": "layers still hold the initial mean 0 and variance 1, and the network "
    "was trained in inference mode, with these statistics: keep them; bnstat recalibrate would "
    "break the network",
    "unknown": "layers still hold the initial mean 0 and variance 1, which are far from what "
    "enters them. If the network was trained with the statistics of each batch, bnstat "
    "recalibrate mends it; if it was trained in inference mode, recalibrating breaks it. What was "
    "examined does not show which is true. --labels compares the accuracies",
}

_BETTER: Final = {
    "own": "layers still hold the initial mean 0 and variance 1. What was examined does not show "
    "how the network was trained, but on this data it is right more often with the data's own "
    "statistics, which bnstat recalibrate estimates",
    "stored": "layers still hold the initial mean 0 and variance 1. What was examined does not "
    "show how the network was trained, but on this data it is right more often with these "
    "statistics: keep them",
}


def rows(modes: Modes, samples: int, screen: Screen) -> Iterator[str]:
    """Yield lines that show the outputs in both modes, under those on the path and the data.

    Args:
        modes: the comparison.
        samples: how many samples all of the data has.
        screen: where the lines are shown.
    """
    stored, own = modes.stored, modes.own
    part = "" if modes.samples == samples else f", over {modes.samples} of the samples"
    if stored.accuracy is not None and own.accuracy is not None:
        yield (
            f"{screen.style('accuracy', 'dim')}  {percent(stored.accuracy)} with the stored "
            f"statistics, {percent(own.accuracy)} with the data's own{part}"
        )
    elif stored.information is not None and own.information is not None:
        yield (
            f"{screen.style('outputs ', 'dim')}  mutual information with the inputs: "
            f"{compact(stored.information, 3)} nats with the stored statistics, "
            f"{compact(own.information, 3)} with the data's own{part}"
        )
    else:
        yield f"{screen.style('outputs ', 'dim')}  stored statistics: {_described(stored)}"
        yield f"          the data's own: {_described(own)}"
        yield (
            f"          root mean square of the difference: {compact(modes.difference, 3)}{part}"
        )


def _described(outputs: Outputs) -> str:
    """The range of some outputs, how far they vary, and how many are saturated."""
    text = (
        f"{compact(outputs.low, 3)} to {compact(outputs.high, 3)}, varying by "
        f"{compact(outputs.spread, 3)} from sample to sample"
    )
    if outputs.saturated is None:
        return text
    return f"{text}, {percent(outputs.saturated)} saturated"


def verdict(evidence: ModeEvidence | None) -> str:
    """Return what the evidence says of a network whose layers hold the initial statistics."""
    if evidence is None:
        return _VERDICTS["unknown"]
    text = _VERDICTS[evidence.trained_with]
    if evidence.trained_with == "unknown" and evidence.data is not None and evidence.data.better:
        text = _BETTER[evidence.data.better]
    return f"{text} ({'; '.join(evidence.reasons)})"
