"""A difference as GitHub-flavoured Markdown, for a pull request or a model card."""

from __future__ import annotations

from collections.abc import Iterator

from bnstat.compare.diff import Difference
from bnstat.output.terminal.differences import LEGEND, remarks, rows_of, source_line
from bnstat.output.terminal.screen import legible


def lines(difference: Difference, everything: bool = False) -> Iterator[str]:
    """The lines of a document; the arguments are those of `terminal.differences.lines`."""
    yield f"**{escaped(difference.summary)}**"
    yield ""
    yield f"- old: {escaped(source_line(difference.old))}"
    yield f"- new: {escaped(source_line(difference.new))}"
    for line in remarks(difference, everything):
        yield f"- {escaped(line)}"
    shown = difference.layers if everything else difference.different
    if shown:
        yield ""
        yield "| layer | role | moved | largest | relative |"
        yield "| --- | --- | ---: | ---: | ---: |"
        for layer in shown:
            for row in rows_of(layer, everything):
                yield f"| {' | '.join(escaped(cell) for cell in (legible(layer.new), *row))} |"
        yield ""
        yield escaped(LEGEND)


def escaped(text: str) -> str:
    """`text` with everything escaped that Markdown or HTML would take for markup."""
    marked = "".join(f"\\{char}" if char in "\\`*_[]|~" else char for char in text)
    return marked.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
