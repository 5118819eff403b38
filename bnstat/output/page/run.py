"""The page of a run: how the statistics moved, and every channel at chosen checkpoints."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Final, Protocol

import numpy as np

from bnstat.checks import Finding
from bnstat.compare import History, Track
from bnstat.errors import BnstatError
from bnstat.model import ROLES, Model, printable
from bnstat.output.page.numbers import Packed, Place
from bnstat.output.page.page import Page, facts_of, grouped, judged
from bnstat.output.page.rows import marks, row
from bnstat.output.terminal.overview import footnotes

MEASURES: Final = ("mean", "std", "min", "max", "bad", "change")
"""What the page shows of a track."""

MOST_NUMBERS: Final = 2_000_000
"""So many numbers the chosen checkpoints have together, which is a page of 11 MB."""

Entry = tuple[str, Model | BnstatError]


class Entries(Protocol):
    """Checkpoints in the order of time, such as `load_all` gives them."""

    def __len__(self) -> int: ...
    def __iter__(self) -> Iterator[Entry]: ...


class Frames:
    """Passes the checkpoints of a run on, and keeps those of which every channel is shown.

    All are kept where they are few; else the first, the last, and some between them at even
    distances.
    """

    def __init__(self, entries: Entries) -> None:
        self._entries = entries
        self.kept: dict[int, tuple[str, Model]] = {}
        """Checkpoint, counted among those that could be read -> its name and model."""

    @property
    def newest(self) -> Model:
        """The last checkpoint that could be read."""
        return list(self.kept.values())[-1][1]

    def __len__(self) -> int:
        return len(self._entries)

    def __iter__(self) -> Iterator[Entry]:
        total, chosen, last = len(self), None, None
        for place, (name, model) in enumerate(self._entries):
            try:
                if isinstance(model, BnstatError):
                    raise model
                model.read()
            except BnstatError as error:
                yield name, error
                continue
            if chosen is None:
                chosen = _chosen(total, len(ROLES) * max(1, model.channels))
            number = 0 if last is None else last[0] + 1
            last = (number, name, model)
            if place in chosen:
                self.kept[number] = (name, model)
            yield name, model
        if last is not None:
            self.kept[last[0]] = last[1:]


def _chosen(total: int, numbers: int) -> set[int]:
    count = min(total, max(2, MOST_NUMBERS // numbers))
    return set(np.linspace(0, total - 1, count).round().astype(int).tolist())


def of_history(path: str, history: History, frames: Frames, findings: Sequence[Finding]) -> Page:
    """The page of a run.

    Args:
        path: where it lies.
        history: how its statistics moved.
        frames: what passed the checkpoints on to `history`.
        findings: what was found, in the history and in the newest checkpoint.
    """
    packed = Packed()
    models = [model for _, model in frames.kept.values()]
    newest = frames.newest
    rows: list[dict[str, Any]] = []
    places: dict[str, int] = {}
    for name in history.layers:
        shown = [model.get(name) for model in models]
        if not any(shown):
            continue
        places[name] = len(rows)
        tracks = [_track(history.tracks.get((name, role)), packed) for role in ROLES]
        told = [each.epsilon for each in shown if each is not None and each.epsilon is not None]
        # What one checkpoint of a run tells, such as that with a graph beside it, holds for all.
        epsilon = [told[-1] if told else None] * len(shown)
        rows.append({**row(shown, packed), "epsilon": epsilon, "tracks": tracks})
    steps = [each.step for each in history.checkpoints]
    notes = [f"skipped: {each.error}" for each in history.skipped]
    if len(models) < len(steps):
        notes.append(
            f"channels are shown of {len(models)} of {len(steps)} checkpoints, so that the page "
            "stays small; the lines over time have all of them"
        )
    names = [each.name for each in history.checkpoints]
    verdict, tone = judged(newest, findings)
    return Page(
        kind="history",
        title=path,
        facts={
            **facts_of(newest),
            "checkpoints": f"{len(steps):,}: {names[0]} to {names[-1]}",
        },
        verdict=verdict,
        tone=tone,
        groups=grouped(findings, places),
        notes=[*notes, *newest.notes, *footnotes(newest)],
        data={
            "kind": "history",
            "title": printable(path),
            "checkpoints": [
                {"name": printable(each.name), "step": each.step} for each in history.checkpoints
            ],
            "frames": [
                {"name": printable(name), "checkpoint": number}
                for number, (name, _) in frames.kept.items()
            ],
            "measures": MEASURES,
            "rows": rows,
            "marks": marks(findings, places),
            "measured": False,
        },
        numbers=packed,
    )


def _track(track: Track | None, packed: Packed) -> list[Place] | None:
    if track is None:
        return None
    return [packed.add(getattr(track, measure)) for measure in MEASURES]
