"""Displays for notebooks: HTML tables with small charts, figures and data frames."""

from __future__ import annotations

import contextlib
import html
import io
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from importlib.util import find_spec
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

from bnstat.checks import Finding, Findings
from bnstat.compare.diff import Difference, RoleChange, SettingChange
from bnstat.errors import BnstatError, UnsupportedError
from bnstat.exchange.decimals import portable
from bnstat.model import ROLES, Array, BatchNorm, Model, Summary, printable
from bnstat.output import differences, findings
from bnstat.output.documents import members
from bnstat.output.history import moves, newest
from bnstat.output.numbers import Floats, Scale, compact, compact_pair, counted, finite
from bnstat.output.terminal import overview
from bnstat.output.terminal.screen import Screen, legible, sentence
from bnstat.run_history import History

_COLOUR: Final = "#4477aa"
"""Blue of Paul Tol's "bright" scheme, which people with colour blindness can distinguish."""

_MOST_POINTS: Final = 200


class Markup(str):
    """A string that is already HTML. `element` and `together` escape all other strings."""

    __slots__ = ()


BREAK: Final = Markup("<br>")


def element(tag: str, *children: str, **attributes: object) -> Markup:
    """Return an HTML element. The argument `fill_opacity` sets the attribute `fill-opacity`."""
    texts = {name.replace("_", "-"): _text(str(value)) for name, value in attributes.items()}
    head = "".join(f' {name}="{text}"' for name, text in texts.items())
    return Markup(f"<{tag}{head}>{together(*children)}</{tag}>")


def together(*children: str) -> Markup:
    """Join HTML elements and plain strings. Plain strings are escaped."""
    parts = (child if isinstance(child, Markup) else _text(child) for child in children)
    return Markup("".join(parts))


def table(titles: Sequence[str], rows: Iterable[Sequence[str]]) -> Markup:
    """Return a table with a header, or an empty string if there are no rows."""
    style = "text-align:left;vertical-align:middle"
    cells = ((element("td", content, style=style) for content in row) for row in rows)
    body = [element("tr", *row) for row in cells]
    if not body:
        return Markup("")
    head = element("tr", *(element("th", title, style="text-align:left") for title in titles))
    return element("table", element("thead", head), element("tbody", *body))


def paragraphs(lines: Iterable[str]) -> Markup:
    """Return each line as a paragraph."""
    return together(*(element("p", line, style="margin:.3em 0") for line in lines))


def _text(text: str) -> str:
    return html.escape(printable(text))


def distribution(array: Array, width: int = 96, height: int = 22) -> Markup:
    """Return a histogram of the finite channels of a role, `width` by `height` pixels."""
    values = finite(array)
    if not values.size:
        return Markup("")
    scale = Scale.of(values)
    counts = scale.histogram(values, width // 3)
    step = width / counts.size
    path = "".join(
        f"M{place * step:.2f} {height}v{-max(1.0, height * number / counts.max()):.2f}"
        f"h{max(1.0, step - 1):.2f}V{height}z"
        for place, number in enumerate(counts.tolist())
        if number
    )
    label = f"distribution of {counted(values.size, 'channel')} from {_range(scale)}"
    return _svg(element("path", d=path, fill=_COLOUR), label, width, height)


def line_chart(
    values: Floats, what: str, width: int = 96, height: int = 22, adaptive: bool = False
) -> Markup:
    """Return a line chart with an axis at 0, and with gaps at numbers that are not finite.

    The label starts with `what`. If `adaptive` is True, the scale may be logarithmic.
    """
    numbers = finite(values)
    if not numbers.size:
        return Markup("")
    scale = Scale.of(numbers, adaptive)
    if values.size > _MOST_POINTS:
        chosen = np.linspace(0, values.size - 1, _MOST_POINTS).round().astype(np.intp)
        values = values[chosen]
    is_finite = np.isfinite(values)
    across = np.linspace(1, width - 1, max(2, values.size))[: values.size]
    down = _down(scale, np.where(is_finite, values, scale.low), height)
    path = "".join(
        f"{'L' if place and is_finite[place - 1] else 'M'}{x:.2f} {y:.2f}"
        + ("h.01" if values.size == 1 else "")
        for place, (x, y) in enumerate(zip(across.tolist(), down.tolist(), strict=True))
        if is_finite[place]
    )
    stroke = {"stroke": _COLOUR, "stroke_width": 1.5, "stroke_linecap": "round"}
    line = element("path", d=path, fill="none", **stroke)
    if scale.low < 0 < scale.high:
        zero = f"M0 {float(_down(scale, np.zeros(1), height)[0]):.2f}h{width}"
        axis = element("path", d=zero, stroke="currentColor", stroke_opacity="0.35")
        line = together(axis, line)
    return _svg(line, f"{what} from {_range(scale)}", width, height)


def share(part: int, whole: int) -> Markup:
    """Return a bar that is filled to the fraction `part / whole`."""
    width, height = 60, 8
    filled = width * part / whole if whole else 0
    outline = {"fill": "none", "stroke": _COLOUR, "stroke_opacity": "0.6"}
    frame = element("rect", width=width, height=height, **outline)
    bar = element("rect", width=f"{filled:.2f}", height=height, fill=_COLOUR)
    return _svg(frame + bar, f"{part} of {whole}", width, height)


def _down(scale: Scale, values: Floats, height: int) -> Floats:
    return height - 1 - scale.places(values) * (height - 2)


def _svg(content: str, label: str, width: int, height: int) -> Markup:
    size = {"width": width, "height": height, "viewBox": f"0 0 {width} {height}"}
    attributes = {"role": "img", "aria_label": label, **size, "style": "vertical-align:middle"}
    return element("svg", element("title", label), Markup(content), **attributes)


def _range(scale: Scale) -> str:
    ends = f"{compact(scale.low, 3)} to {compact(scale.high, 3)}"
    return f"{ends}, logarithmic" if scale.logarithmic else ends


MOST_ROWS: Final = 200

_COLOURS: Final = {"error": "#ee6677", "warning": "#ccbb44", "info": "#66ccee"}
_LARGE: Final = (220, 56)


def html_of(shown: object) -> str:
    """Return the HTML table of a model, a layer, findings, a difference or a history."""
    tables: dict[type, Callable[[Any], str]] = {
        Model: of_model,
        BatchNorm: of_layer,
        Findings: of_findings,
        Difference: of_difference,
        History: of_history,
    }
    return next(table(shown) for kind, table in tables.items() if isinstance(shown, kind))


def of_model(model: Model) -> str:
    """Return a table with one row per layer: mean, deviation and distribution of each role."""
    shown = model.layers[:MOST_ROWS]
    with contextlib.suppress(BnstatError):
        model.read(shown)
    rows = [
        [legible(layer.name), str(layer.channels), *(_statistic(layer, role) for role in ROLES)]
        for layer in shown
    ]
    return together(
        element("pre", *(together(line, BREAK) for line in overview.header(model, Screen()))),
        table(["layer", "channels", *map(_title, ROLES)], rows),
        paragraphs([*_rest(len(model)), *overview.footnotes(model), *model.notes]),
    )


def _statistic(layer: BatchNorm, role: str) -> str:
    try:
        array = layer.array(role)
    except BnstatError as error:
        return sentence(str(error))
    if array is None:
        return "?" if layer.undecided else "-"
    return together(_numbers(Summary.of(array)), BREAK, distribution(array))


def of_layer(layer: BatchNorm) -> str:
    """Return a table with one row per role: summary, histogram and chart of sorted channels."""
    settings = members(layer, "epsilon", "momentum", "axis", "trainable").items()
    about = [f"{name} {value}" for name, value in settings if value is not None]
    about = [f"{layer.channels:,} channels", *about]
    return together(
        element("p", element("b", legible(layer.name)), f": {', '.join(about)}"),
        table(
            ["statistic", "dtype", "mean ± deviation", "range", "distribution", "in order"],
            [_row(layer, role) for role in ROLES if role in layer.variables],
        ),
        paragraphs(layer.notes),
    )


def _row(layer: BatchNorm, role: str) -> Sequence[str]:
    cells = [_title(role), layer.variables[role].dtype]
    try:
        array = layer.array(role)
    except BnstatError as error:
        return [*cells, sentence(str(error)), "", "", ""]
    assert array is not None
    summary, values = Summary.of(array), np.sort(finite(array))
    in_order = f"{counted(values.size, 'channel')} in order,"
    return [
        *cells,
        _numbers(summary),
        f"{compact(summary.min, 3)} to {compact(summary.max, 3)}",
        distribution(array, *_LARGE),
        line_chart(values, in_order, *_LARGE, adaptive=True),
    ]


def of_findings(shown: Sequence[Finding]) -> str:
    """Return a table with one row per finding, the most serious first."""
    dots = {
        severity: _svg(element("circle", cx=5, cy=5, r=4.5, fill=colour), severity, 10, 10)
        for severity, colour in _COLOURS.items()
    }
    rows = [
        [
            together(dots[finding.severity], f" {finding.severity}"),
            f"{finding.rule} {finding.name}",
            "(whole model)" if finding.layer is None else legible(finding.layer),
            sentence(finding.message) + findings.channels_of(finding),
        ]
        for finding in shown[:MOST_ROWS]
    ]
    return together(
        table(["severity", "rule", "layer", "finding"], rows),
        paragraphs([*_rest(len(shown)), findings.summary(shown)]),
    )


def of_difference(difference: Difference) -> str:
    """Return a table with one row per role or setting that differs, and remarks below the table."""
    changes: list[tuple[str, RoleChange | SettingChange]] = []
    for layer in difference.different:
        changes += [(legible(layer.new), role) for role in layer.roles if not role.equal]
        changes += [(legible(layer.new), setting) for setting in layer.settings]
    rows = [[name, *_changed(change)] for name, change in changes[:MOST_ROWS]]
    sources = {"old": difference.old, "new": difference.new}
    return together(
        paragraphs(f"{name}: {differences.source_line(of)}" for name, of in sources.items()),
        table(["layer", "role", "moved", "largest", "relative"], rows),
        paragraphs([*_rest(len(changes)), *differences.remarks(difference, everything=False)]),
        paragraphs([difference.summary]),
    )


def _changed(change: RoleChange | SettingChange) -> Sequence[str]:
    if isinstance(change, SettingChange):
        return [change.setting, f"{change.old:g} -> {change.new:g}", "", ""]
    moved, largest, relative = differences.role_cells(change)
    bar = share(change.moved, change.channels) if change.comparable else Markup("")
    return [_title(change.role), together(bar, f" {moved}"), largest, relative]


def of_history(history: History) -> str:
    """Return a table with one row per layer and role: charts of mean and deviation over time."""
    rows = [
        [
            legible(track.layer),
            _title(track.role),
            together(line_chart(track.mean, "course"), f" {newest(track, track.mean)}"),
            together(line_chart(track.std, "course"), f" {newest(track, track.std)}"),
            moves(track),
        ]
        for track in list(history.tracks.values())[:MOST_ROWS]
    ]
    names = [legible(checkpoint.name) for checkpoint in history.checkpoints]
    extent = f"{len(names)} checkpoints" + (f": {names[0]} to {names[-1]}" if names else "")
    skipped = (f"skipped: {sentence(str(checkpoint.error))}" for checkpoint in history.skipped)
    return together(
        paragraphs([extent]),
        table(["layer", "role", "mean", "spread", "moves"], rows),
        paragraphs([*_rest(len(history.tracks)), *skipped]),
    )


def _numbers(summary: Summary) -> str:
    mean, deviation = compact_pair(summary.mean, summary.std, 3)
    bad = f" ({summary.bad:,} NaN or infinite)" if summary.bad else ""
    return f"{mean} ± {deviation}{bad}"


def _title(role: str) -> str:
    return role.replace("_", " ")


def _rest(count: int) -> Iterator[str]:
    if count > MOST_ROWS:
        yield f"and {count - MOST_ROWS:,} more"


_LONGEST_TITLE: Final = 80
_MOST_BINS: Final = 40


def figure(layer: BatchNorm) -> Any:
    """Return the figure that `BatchNorm.plot` returns."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        hint = "pip install matplotlib"
        raise UnsupportedError("Matplotlib", "is not installed", hint) from error

    class PngFigure(Figure):
        """A figure that notebooks show with any Matplotlib backend."""

        def _repr_png_(self) -> bytes:
            file = io.BytesIO()
            self.savefig(file, format="png")
            return file.getvalue()

    drawn = PngFigure(figsize=(8, 8), dpi=100, layout="constrained")
    drawn.suptitle(legible(layer.name)[:_LONGEST_TITLE], parse_math=False)
    rows = drawn.subplots(len(ROLES), 2)
    for role, (left, right) in zip(ROLES, rows, strict=True):
        title = _title(role)
        left.set_ylabel(title)
        array = layer.array(role)
        values = np.empty(0) if array is None else finite(array)
        if array is not None and values.size:
            _draw_charts(left, right, np.sort(values), array.size - values.size)
        else:
            left.set_axis_off()
            right.set_axis_off()
            reason = "not in the file" if array is None else "no finite number"
            left.text(0.5, 0.5, f"{title}: {reason}", ha="center")
    return drawn


def _draw_charts(left: Any, right: Any, values: Floats, bad: int) -> None:
    """Draw a histogram of sorted values on the left, and a chart of the values on the right."""
    scale = Scale.of(values)
    counts = scale.histogram(values, _MOST_BINS)
    bins = counts.size
    left.bar((np.arange(bins) + 0.5) / bins, counts, width=1 / bins, color=_COLOUR)
    ticks = {0.5: scale.low} if scale.is_point else {0.0: scale.low, 1.0: scale.high}
    left.set_xlim(0, 1)
    left.set_xticks(list(ticks), [compact(end, 3) for end in ticks.values()])
    left.set_xlabel("logarithmic" if scale.logarithmic else "")
    marker = "." if values.size == 1 else ""
    right.plot(np.arange(values.size), values, color=_COLOUR, marker=marker)
    if scale.logarithmic:
        right.set_yscale("log")
    right.set_xlabel("channels in order" + (f" ({bad:,} NaN or infinite left out)" if bad else ""))


Library = Literal["pandas", "polars"]

_LIBRARIES: Final[tuple[Library, ...]] = ("pandas", "polars")


def frame(model: Model, library: Library | None = None) -> Any:
    """Return the data frame that `Model.to_frame` returns."""
    library = library or _default_library()
    if find_spec(library) is None:
        raise UnsupportedError(library, "is not installed", f"pip install {library}")
    model.read(model.layers)
    arrays = {role: [layer.array(role) for layer in model.layers] for role in ROLES}
    of_layers = zip(*arrays.values(), strict=True)
    sizes = [max(0 if each is None else each.size for each in of_layer) for of_layer in of_layers]
    names = np.array([layer.name for layer in model.layers], object)
    columns: dict[str, Any] = {
        "layer": np.repeat(names, sizes),
        "channel": np.concatenate([np.arange(size) for size in (0, *sizes)]).astype(np.int64),
    }
    numbers = {role: _column(of_role, sizes) for role, of_role in arrays.items()}
    if library == "pandas":
        import pandas

        for role, (values, is_stored) in numbers.items():
            if not is_stored.all():
                kind = np.result_type(values.dtype, np.float16)
                values = np.where(is_stored, values, np.array(np.nan, kind))
            columns[role] = values
        return pandas.DataFrame(columns)
    import polars

    table = polars.DataFrame(
        {"layer": columns["layer"].tolist(), "channel": columns["channel"]},
        schema={"layer": polars.String, "channel": polars.Int64},
    )
    return table.with_columns(
        polars.when(polars.Series(is_stored)).then(polars.Series(values)).alias(role)
        for role, (values, is_stored) in numbers.items()
    )


def _default_library() -> Library:
    """Return the imported data-frame library, or an installed one if none is imported."""
    for library in sorted(_LIBRARIES, key=lambda name: name not in sys.modules):
        if library in sys.modules or find_spec(library) is not None:
            return library
    what = "neither pandas nor Polars is installed"
    raise UnsupportedError("to_frame", what, "pip install pandas, or polars")


def _column(arrays: list[Array | None], sizes: list[int]) -> tuple[Array, NDArray[np.bool_]]:
    """Join a role's arrays. Return the values, and a mask that is True for stored values.

    A layer whose array is None gets zeros; `sizes` contains the number of channels per layer.
    """
    flat = [None if array is None else portable(array).ravel() for array in arrays]
    kinds = [array.dtype for array in flat if array is not None]
    values = np.zeros(sum(sizes), np.result_type(*kinds) if kinds else np.float32)
    is_stored = np.zeros(values.size, bool)
    start = 0
    for array, size in zip(flat, sizes, strict=True):
        if array is not None:
            values[start : start + array.size] = array
            is_stored[start : start + array.size] = True
        start += size
    return values, is_stored
