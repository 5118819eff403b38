"""HTML pages. A page is one file, which contains its style, scripts and numbers.

Its Content-Security-Policy allows only the style sheet and the script with known hashes, so that
names in a model can never run as code. The scripts compute all other values from the numbers.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from io import BytesIO
from itertools import product
from pathlib import Path
from typing import IO, Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

from bnstat import __version__
from bnstat.checks import RULES, SEVERITIES, Finding
from bnstat.checks.rule import counts
from bnstat.compare.diff import MEANINGS, REMARKS, Difference
from bnstat.compare.folding import Folded
from bnstat.errors import BnstatError, DamagedError, NotFoundError, UnsupportedError
from bnstat.model import ROLES, Array, BatchNorm, Model, printable
from bnstat.output.differences import folded_text
from bnstat.output.documents import members, plain
from bnstat.output.findings import summary
from bnstat.output.numbers import Floats, counted
from bnstat.output.terminal.overview import footnotes
from bnstat.run_history import History

Tone = Literal["good", "info", "warning", "error"]

MOST_LISTED: Final = 100
"""The limit on listed findings per rule; the table and the layers show further findings."""

MOST_NUMBERS: Final = 2_000_000
"""The limit on the numbers of all checkpoints that a page keeps; at the limit, it has 11 MB."""

MEASURES: Final = ("mean", "std", "min", "max", "bad", "change")
"""The attributes of a track that the page shows."""


@dataclass
class Page:
    """A page: a row for each layer, the findings, and the texts above the table.

    Attributes:
        kind: `model`, `history` or `difference`.
        facts: label -> text, about the model or both models.
        groups: a dict per violated rule; its `findings` lists (finding, index of the layer's row).
        data: the input of the page's scripts, as JSON data.
        numbers: all packed arrays; `data` refers to an array by its offset.
        places: name of a layer -> index in `rows`.
    """

    kind: str
    title: str
    facts: Mapping[str, str]
    headline: str
    tone: Tone
    notes: list[str] = field(default_factory=list)
    groups: Sequence[Mapping[str, Any]] = ()
    data: Mapping[str, Any] = field(default_factory=dict)
    numbers: BytesIO = field(default_factory=BytesIO)
    rows: list[dict[str, Any]] = field(default_factory=list)
    places: dict[str, int] = field(default_factory=dict)

    def add(self, frames: Sequence[BatchNorm | None], is_shown: bool = True, **more: Any) -> None:
        """Add a row for a layer; `frames` contains the layer of each model, None if it is missing.

        The row shows the settings of the last layer in `frames`. If `is_shown` is True, findings
        about a layer of this name refer to this row. `more` are further members of the row.
        """
        layer = next(frame for frame in reversed(frames) if frame is not None)
        if is_shown:
            self.places[layer.name] = len(self.rows)
        settings = {
            **members(layer, "momentum", "axis"),
            "trainable": None if layer.trainable is None else "yes" if layer.trainable else "no",
            "known by": layer.evidence,
            "dtype": ", ".join(sorted({variable.dtype for variable in layer.variables.values()})),
        }
        facts = [(title, str(value)) for title, value in settings.items() if value is not None]
        facts += [("note", printable(note)) for note in layer.notes]
        if layer.undecided:
            facts.append(("note", "the file does not record the roles of some variables"))
        is_vector = sum(size != 1 for size in layer.shape) <= 1
        stored = [frame and [self.pack(frame.array(role)) for role in ROLES] for frame in frames]
        row = {
            "name": printable(layer.name),
            "channels": layer.channels,
            "shape": None if is_vector else list(layer.shape),
            "facts": facts,
            "epsilon": [None if frame is None else frame.epsilon for frame in frames],
            "stored": stored,
        }
        self.rows.append(row | more)

    def pack(self, array: Array | None) -> tuple[int, int, int] | None:
        """Add an array to `numbers` in C order, as float32 if that is exact, else as float64.

        Return the number of bytes per number, the number of numbers, and the offset in bytes.
        """
        if array is None:
            return None
        small = array.dtype.itemsize <= (2 if array.dtype.kind in "iu" else 4)
        kind = np.dtype("<f4" if small else "<f8")
        start = self.numbers.tell()
        with np.errstate(invalid="ignore"):  # raised by a signalling NaN
            self.numbers.write(array.astype(kind, copy=False).tobytes())
        return kind.itemsize, array.size, start

    def finish(self, model: Model, findings: Sequence[Finding], **data: Any) -> Page:
        """Complete the page with findings, a model's notes and `data`, and return the page."""
        rules, places = {rule.code: rule for rule in RULES}, self.places
        by_rule: dict[str, list[Finding]] = defaultdict(list)
        for finding in findings:
            by_rule[finding.rule].append(finding)
        self.groups = [
            {
                "rule": rules[code],
                "findings": [(each, places.get(each.layer or "")) for each in group[:MOST_LISTED]],
                "more": max(0, len(group) - MOST_LISTED),
                "severity": min((each.severity for each in group), key=SEVERITIES.index),
            }
            for code, group in by_rule.items()
        ]
        self.notes += [*model.notes, *footnotes(model)]
        self.data = {
            "kind": self.kind,
            "title": printable(self.title),
            "rows": self.rows,
            "marks": [
                {
                    **members(finding, "rule", "name", "severity"),
                    "row": places[finding.layer],
                    "message": printable(finding.message),
                    "runs": _runs(finding.channels),
                }
                for finding in findings
                if finding.layer is not None and finding.layer in places
            ],
            "measured": False,
            **data,
        }
        return self


def _runs(channels: NDArray[np.intp]) -> list[int]:
    """Convert channels to starts and lengths of runs: [4, 5, 6, 9] becomes [4, 3, 9, 1]."""
    starts = np.flatnonzero(np.diff(channels, prepend=-2) != 1)
    lengths = np.diff(starts, append=channels.size)
    runs: list[int] = np.stack([channels[starts], lengths], axis=1).ravel().tolist()
    return runs


def _headline(model: Model, findings: Sequence[Finding]) -> tuple[str, Tone]:
    """Return a check's result in one line, and the most serious severity (or `good`)."""
    numbers = {severity: number for severity, number in counts(findings).items() if number}
    if not numbers:
        return (summary(findings), "good") if len(model) else ("no batch norm found", "info")
    nouns = {"error": "error", "warning": "warning", "info": "note"}
    parts = [counted(number, nouns[severity]) for severity, number in numbers.items()]
    return ", ".join(parts), next(iter(numbers))


def _facts(model: Model) -> dict[str, str]:
    """Return label -> text, about the source, the size and the common settings of a model."""
    source = model.source
    facts = {
        **members(source, "format", "writer", "checkpoint"),
        "step": None if source.step is None else f"{source.step:,}",
        "layers": f"{len(model):,} with {model.channels:,} channels",
    }
    for setting in ("epsilon", "momentum", "axis"):
        values = {getattr(layer, setting) for layer in model.layers}
        if len(values) == 1 and None not in values:
            facts[setting] = str(values.pop())
    return {label: text for label, text in facts.items() if text}


Measured = Mapping[str, tuple[str, Mapping[str, Floats]]]
"""Layer -> its state, and its measured `mean`, `variance` and `divergence` per channel."""


def load_measured(path: str) -> Measured:
    """Read the measured statistics from the JSON file of `bnstat drift`."""
    measured = {}
    try:
        for layer in json.loads(Path(path).read_bytes())["layers"]:
            arrays = {
                name.removesuffix("s"): np.array(list(map(float, layer[name])), np.float64)
                for name in ("mean", "variance", "divergences")
            }
            is_text = isinstance(layer["name"], str) and isinstance(layer["state"], str)
            if not is_text or len({array.size for array in arrays.values()}) > 1:
                raise ValueError
            measured[layer["name"]] = layer["state"], arrays
    except FileNotFoundError:
        raise NotFoundError(path, "no such file") from None
    except (LookupError, RecursionError, TypeError, ValueError):
        raise DamagedError(
            path, "is not a JSON file of bnstat drift", "write it with bnstat drift --json"
        ) from None
    return measured


def of_model(model: Model, findings: Sequence[Finding], measured: Measured | None = None) -> Page:
    """Return the page of one model, with measured statistics if given."""
    page = Page("model", model.source.path, _facts(model), *_headline(model, findings))
    for layer in model.layers:
        page.add([layer])
    for name, (state, arrays) in (measured or {}).items():
        if name in page.places and arrays["mean"].size == model[name].channels:
            packed = {key: page.pack(array) for key, array in arrays.items()}
            page.rows[page.places[name]]["measured"] = {"state": state, **packed}
        else:
            reason = "the model has no layer of this name and size"
            page.notes.append(f"{name}: measured on data, but {reason}")
    return page.finish(model, findings, frames=[{"name": "stored"}], measured=measured is not None)


def of_difference(
    difference: Difference, old: Model, new: Model, findings: Sequence[Finding]
) -> Page:
    """Return the page of a difference; `findings` are the findings in the new model."""
    before, after = _facts(old), _facts(new)
    both = {label: (before.get(label, "-"), after.get(label, "-")) for label in before | after}
    facts = {label: a if a == b else f"{a} → {b}" for label, (a, b) in both.items()}
    tone: Tone = "good" if difference.equivalent else "info"
    title = f"{old.source.path} → {new.source.path}"
    page = Page("difference", title, facts, difference.summary, tone)
    for change in difference.layers:
        roles = {role.role: [role.moved, role.largest, role.relative] for role in change.roles}
        content = {
            "was": None if change.old == change.new else printable(change.old),
            **members(change, "match", "verdict"),
            "meaning": MEANINGS[change.verdict],
            "causes": [printable(cause.text) for cause in change.causes],
            "remark": None if change.remark is None else REMARKS[change.remark],
            "settings": [[each.setting, each.old, each.new] for each in change.settings],
            "roles": [roles.get(role) for role in ROLES],
        }
        page.add([old[change.old], new[change.new]], change=content)
    folded, misfolded = map(_folded, (difference.folded, difference.misfolded))
    removed, added = product(("old",), difference.removed), product(("new",), difference.added)
    for side, name in (*folded, *removed, *added):
        page.add(
            [old[name], None] if side == "old" else [None, new[name]],
            is_shown=side == "new",
            only=side,
            folded=folded.get((side, name)),
            misfolded=misfolded.get((side, name)),
        )
    heading = printable(f"{old.source.path} to {new.source.path}")
    return page.finish(new, findings, title=heading, frames=[{"name": "old"}, {"name": "new"}])


def _folded(layers: Sequence[Folded]) -> dict[tuple[str, str], str]:
    """Map (side, layer name) to a text: the weights, and causes of a wrong scale or shift."""
    return {
        (layer.side, layer.layer): "; ".join(
            [folded_text(layer), *(printable(cause.text) for cause in layer.causes)]
        )
        for layer in layers
    }


Entry = tuple[str, Model | BnstatError]


class Frames:
    """Iterates over the checkpoints of a run, and keeps the models whose channels the page shows.

    If a run is too large for a page, the first, the last and evenly spaced models are kept.
    """

    def __init__(self, entries: Iterable[Entry], total: int) -> None:
        self._entries, self._total = entries, total
        self.kept: dict[int, tuple[str, Model]] = {}
        """Index among the readable checkpoints -> name and model."""

    @property
    def newest(self) -> Model:
        """The model of the last checkpoint that could be read."""
        return list(self.kept.values())[-1][1]

    def __len__(self) -> int:
        return self._total

    def __iter__(self) -> Iterator[Entry]:
        total, chosen, number, newest = len(self), None, 0, None
        for place, (name, model) in enumerate(self._entries):
            try:
                if isinstance(model, BnstatError):
                    raise model
                model.read()
            except BnstatError as error:
                yield name, error
                continue
            if chosen is None:
                numbers = len(ROLES) * max(1, model.channels)
                number_kept = min(total, max(2, MOST_NUMBERS // numbers))
                chosen = set(np.linspace(0, total - 1, number_kept).round().astype(int).tolist())
            newest = (name, model)
            if place in chosen:
                self.kept[number] = newest
            number += 1
            yield newest
        if newest is not None:
            self.kept[number - 1] = newest


def of_history(path: str, history: History, frames: Frames, findings: Sequence[Finding]) -> Page:
    """Return the page of a run; `history` must have been computed from `frames`.

    `findings` contains the findings in the history and in the newest checkpoint.
    """
    checkpoints = history.checkpoints
    extent = f"{len(checkpoints):,}: {checkpoints[0].name} to {checkpoints[-1].name}"
    facts = {**_facts(frames.newest), "checkpoints": extent}
    notes = [f"skipped: {skipped.error}" for skipped in history.skipped]
    page = Page("history", path, facts, *_headline(frames.newest, findings), notes)
    models = [model for _, model in frames.kept.values()]
    if len(models) < len(checkpoints):
        page.notes.append(
            f"the channels of {len(models)} of {len(checkpoints)} checkpoints are shown, to keep "
            "the page small; the lines over time show all checkpoints"
        )
    for name in history.layers:
        layers = [model.get(name) for model in models]
        if not any(layers):
            continue
        tracks = [history.tracks.get((name, role)) for role in ROLES]
        packed = [
            track and [page.pack(getattr(track, measure)) for measure in MEASURES]
            for track in tracks
        ]
        # An epsilon that one checkpoint stores, such as one with a graph beside it, holds for all.
        epsilons = [layer.epsilon for layer in layers if layer and layer.epsilon is not None]
        epsilon = epsilons[-1] if epsilons else None
        page.add(layers, tracks=packed, epsilon=[epsilon] * len(layers))
    kept = frames.kept.items()
    data = {
        "checkpoints": [{"name": printable(each.name), "step": each.step} for each in checkpoints],
        "frames": [{"name": printable(name), "checkpoint": index} for index, (name, _) in kept],
        "measures": MEASURES,
    }
    return page.finish(frames.newest, findings, **data)


SCRIPTS: Final = (
    *("numbers", "summary", "scale", "state", "text", "sheet", "table"),
    *("chart", "panels", "layer", "controls", "keyboard", "main"),
)
"""The files of `scripts/`; each file depends only on earlier files."""

_HERE: Final = Path(__file__).parent
_ESCAPES: Final = {ord(char): f"\\u{ord(char):04x}" for char in "<>&\u2028\u2029"}


def write(page: Page, file: IO[str]) -> None:
    """Write a page as HTML."""
    try:
        from jinja2 import Environment, FileSystemLoader, StrictUndefined
    except ImportError:
        what = "needs Jinja2, which is not installed"
        raise UnsupportedError("report", what, "pip install jinja2") from None
    environment = Environment(
        loader=FileSystemLoader(_HERE / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["printable"] = printable
    style = "\n".join(map(_text, ("vendor/uPlot.min.css", "style.css")))
    own = "\n".join(_text(f"scripts/{name}.js") for name in SCRIPTS)
    script = (
        f"/*\n{_text('vendor/LICENSE')}*/\n{_text('vendor/uPlot.iife.min.js')}\n"
        f'(() => {{\n"use strict";\n{own}}})();\n'
    )
    data = json.dumps(plain(page.data), allow_nan=False, separators=(",", ":"))
    stream = environment.get_template("page.html.j2").stream(
        page=page,
        version=__version__,
        style=style,
        script=script,
        policy=f"default-src 'none'; style-src '{_hash(style)}'; script-src '{_hash(script)}'; "
        "img-src data:; base-uri 'none'; form-action 'none'",
        data=data.translate(_ESCAPES),
        numbers=base64.b64encode(page.numbers.getbuffer()).decode("ascii"),
    )
    for piece in stream:
        file.write(piece)


def _text(name: str) -> str:
    return (_HERE / name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    digest = hashlib.sha256(text.encode()).digest()
    return f"sha256-{base64.b64encode(digest).decode('ascii')}"
