"""What is on a page, before it is HTML."""

from __future__ import annotations

import base64
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, Protocol

import numpy as np

from bnstat.checks import RULES, SEVERITIES, Finding, Rule
from bnstat.compare import REMARKS, Difference, Folded, History, LayerChange, RoleChange, Track
from bnstat.compare.diff import MEANINGS
from bnstat.errors import BnstatError
from bnstat.model import ROLES, Array, BatchNorm, Model, printable
from bnstat.output.results.drift import Measured
from bnstat.output.terminal.differences import folded_text
from bnstat.output.terminal.findings import summary
from bnstat.output.terminal.overview import footnotes

Place = tuple[int, int, int]
"""Bytes per number (4: float32, 8: float64), how many numbers, and the byte they start at."""


class Packed:
    """Takes arrays, and gives each its place.

    What float32 holds exactly (it, float16, bfloat16, the 8-bit floats, short integers) is
    packed as float32, bit for bit where it was that; all else as float64.
    """

    def __init__(self) -> None:
        self._pieces: list[bytes] = []
        self._end = 0

    def add(self, array: Array) -> Place:
        """Pack an array of any numeric dtype, in C order."""
        small = array.dtype.itemsize <= (2 if array.dtype.kind in "iu" else 4)
        kind = np.dtype("<f4" if small else "<f8")
        with np.errstate(invalid="ignore"):  # a signalling NaN is a NaN like any other
            piece = array.astype(kind, copy=False).tobytes()
        place = (kind.itemsize, array.size, self._end)
        self._pieces.append(piece)
        self._end += len(piece)
        return place

    def text(self) -> str:
        """All of it in base64."""
        return base64.b64encode(b"".join(self._pieces)).decode("ascii")


Kind = Literal["model", "history", "difference"]
Tone = Literal["good", "info", "warning", "error"]


@dataclass(frozen=True, slots=True)
class Group:
    """What one rule found.

    Attributes:
        rule: the rule, with its documentation.
        findings: the first of them, each with its row of the table, or None.
        more: how many further findings there are.
        severity: of the gravest.
    """

    rule: Rule[Any]
    findings: Sequence[tuple[Finding, int | None]]
    more: int
    severity: str


@dataclass(frozen=True, slots=True)
class Page:
    """What is on a page.

    Attributes:
        kind: whether it shows a model, a run, or what differs between two models.
        title: the path, or the paths.
        facts: label -> text, of the model or of both.
        verdict: what is to be said in one line.
        tone: how grave that is.
        groups: what was found, by rule.
        notes: what a reader of the numbers has to know.
        data: what the page's scripts work on, for JSON.
        numbers: the arrays that `data` gives the places of.
    """

    kind: Kind
    title: str
    facts: Mapping[str, str]
    verdict: str
    tone: Tone
    groups: Sequence[Group]
    notes: Sequence[str]
    data: Mapping[str, Any]
    numbers: Packed


MOST_LISTED = 100
"""So many findings of a rule are listed; the table and the layers show the others."""


def grouped(findings: Sequence[Finding], rows: Mapping[str, int]) -> list[Group]:
    """The findings by rule, the gravest rule first."""
    rules = {rule.code: rule for rule in RULES}
    by_rule: dict[str, list[Finding]] = {}
    for finding in findings:
        by_rule.setdefault(finding.rule, []).append(finding)
    return [
        Group(
            rules[code],
            [(each, rows.get(each.layer or "")) for each in found[:MOST_LISTED]],
            max(0, len(found) - MOST_LISTED),
            min((each.severity for each in found), key=SEVERITIES.index),
        )
        for code, found in by_rule.items()
    ]


def judged(model: Model, findings: Sequence[Finding]) -> tuple[str, Tone]:
    """What is to be said of a model in a line, such as `2 errors, 1 warning`, and how grave it is.

    Args:
        model: the model.
        findings: what was found in it, or in the run whose newest it is.
    """
    counts = {
        severity: sum(finding.severity == severity for finding in findings)
        for severity in SEVERITIES
    }
    words = {"error": "error", "warning": "warning", "info": "note"}
    said = [
        f"{number:,} {words[severity]}{'' if number == 1 else 's'}"
        for severity, number in counts.items()
        if number
    ]
    if not said:
        return (summary(findings), "good") if len(model) else ("no batch norm found", "info")
    return ", ".join(said), next(severity for severity in SEVERITIES if counts[severity])


def facts_of(model: Model) -> dict[str, str]:
    """Label -> text: where a model was read from, how large it is, what all its layers share."""
    source = model.source
    layers = f"{len(model):,} with {model.channels:,} channels"
    told = {
        "format": source.format,
        "writer": source.writer,
        "checkpoint": source.checkpoint,
        "step": None if source.step is None else f"{source.step:,}",
        "layers": layers,
    }
    for setting in ("epsilon", "momentum", "axis"):
        values = {getattr(layer, setting) for layer in model.layers}
        if len(values) == 1:
            (value,) = values
            told[setting] = None if value is None else str(value)
    return {label: text for label, text in told.items() if text}


LayerFrames = Sequence[BatchNorm | None]
"""One layer in each of the models that the page shows; None in those that lack it."""


def row(frames: LayerFrames, packed: Packed) -> dict[str, Any]:
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


def of_model(
    model: Model, findings: Sequence[Finding], measured: Mapping[str, Measured] | None = None
) -> Page:
    """The page of one model.

    Args:
        model: the model.
        findings: what was found in it.
        measured: layer -> the statistics of data, as `bnstat drift --json` tells them.
    """
    packed = Packed()
    rows = [row([layer], packed) for layer in model.layers]
    places = {layer.name: place for place, layer in enumerate(model.layers)}
    notes = [*model.notes, *footnotes(model)]
    for name, data in (measured or {}).items():
        if name in places and data.mean.size == model[name].channels:
            rows[places[name]]["measured"] = {
                "state": data.state,
                "divergence": packed.add(data.divergence),
                "mean": packed.add(data.mean),
                "variance": packed.add(data.variance),
            }
        else:
            notes.append(f"{name}: measured on data, but no such layer is in the model")
    verdict, tone = judged(model, findings)
    return Page(
        kind="model",
        title=model.source.path,
        facts=facts_of(model),
        verdict=verdict,
        tone=tone,
        groups=grouped(findings, places),
        notes=notes,
        data={
            "kind": "model",
            "title": printable(model.source.path),
            "frames": [{"name": "stored"}],
            "rows": rows,
            "marks": marks(findings, places),
            "measured": measured is not None,
        },
        numbers=packed,
    )


def of_difference(
    difference: Difference, old: Model, new: Model, findings: Sequence[Finding]
) -> Page:
    """The page of two models.

    Args:
        difference: how they differ.
        old: the one.
        new: the other.
        findings: what was found in the new one.
    """
    packed = Packed()
    rows: list[dict[str, Any]] = []
    places: dict[str, int] = {}
    for change in difference.layers:
        places[change.new] = len(rows)
        compared = row([old[change.old], new[change.new]], packed)
        rows.append({**compared, "change": _change(change)})
    folded = {(each.side, each.layer): each for each in difference.folded}
    wrong = {(each.side, each.layer): each for each in difference.misfolded}
    alone: list[tuple[Literal["old", "new"], str]] = [
        *folded,
        *(("old", name) for name in difference.removed),
        *(("new", name) for name in difference.added),
    ]
    for side, name in alone:
        if side == "new":
            places[name] = len(rows)
        frames = [old[name], None] if side == "old" else [None, new[name]]
        rows.append(
            {
                **row(frames, packed),
                "only": side,
                "folded": _folded(folded.get((side, name))),
                "misfolded": _folded(wrong.get((side, name))),
            }
        )
    before, after = facts_of(old), facts_of(new)
    told = {label: (before.get(label, "-"), after.get(label, "-")) for label in before | after}
    facts = {label: a if a == b else f"{a} → {b}" for label, (a, b) in told.items()}
    return Page(
        kind="difference",
        title=f"{old.source.path} → {new.source.path}",
        facts=facts,
        verdict=difference.summary,
        tone="good" if difference.equivalent else "info",
        groups=grouped(findings, places),
        notes=[*new.notes, *footnotes(new)],
        data={
            "kind": "difference",
            "title": printable(f"{old.source.path} to {new.source.path}"),
            "frames": [{"name": "old"}, {"name": "new"}],
            "rows": rows,
            "marks": marks(findings, places),
            "measured": False,
        },
        numbers=packed,
    )


def _change(change: LayerChange) -> dict[str, Any]:
    by_role = {each.role: each for each in change.roles}
    return {
        "was": None if change.old == change.new else printable(change.old),
        "match": change.match,
        "verdict": change.verdict,
        "meaning": MEANINGS[change.verdict],
        "causes": [printable(cause.text) for cause in change.causes],
        "remark": None if change.remark is None else REMARKS[change.remark],
        "settings": [[each.setting, each.old, each.new] for each in change.settings],
        "roles": [_role(by_role.get(role)) for role in ROLES],
    }


def _folded(layer: Folded | None) -> str | None:
    """What a layer was folded into, with the causes where it was folded wrongly."""
    if layer is None:
        return None
    return "; ".join([folded_text(layer), *(printable(cause.text) for cause in layer.causes)])


def _role(change: RoleChange | None) -> list[float | None] | None:
    """Channels that moved, the largest change, the largest relative change."""
    return None if change is None else [change.moved, change.largest, change.relative]


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
