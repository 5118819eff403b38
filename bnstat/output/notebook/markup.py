"""HTML put together from elements: all text is escaped, and nothing else can be."""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence
from typing import Final

from bnstat.model import printable


class Markup(str):
    """HTML; any other string is text."""

    __slots__ = ()


BREAK: Final = Markup("<br>")
"""The end of a line."""


def element(tag: str, *children: str, **attributes: object) -> Markup:
    """An element: `fill_opacity` is the attribute `fill-opacity`, `class_` is `class`."""
    head = "".join(
        f' {name.rstrip("_").replace("_", "-")}="{_text(str(value))}"'
        for name, value in attributes.items()
    )
    return Markup(f"<{tag}{head}>{together(*children)}</{tag}>")


def together(*children: str) -> Markup:
    """Elements and texts, one after the other."""
    return Markup("".join(each if isinstance(each, Markup) else _text(each) for each in children))


def table(titles: Sequence[str], rows: Iterable[Sequence[str]]) -> Markup:
    """A table of a head and rows."""
    head = element("tr", *(element("th", title, style="text-align:left") for title in titles))
    body = (element("tr", *(_cell(cell) for cell in row)) for row in rows)
    return element("table", element("thead", head), element("tbody", *body))


def paragraphs(lines: Iterable[str]) -> Markup:
    """Each line a paragraph."""
    return together(*(element("p", line, style="margin:.3em 0") for line in lines))


def _cell(content: str) -> Markup:
    return element("td", content, style="text-align:left;vertical-align:middle")


def _text(text: str) -> str:
    return html.escape(printable(text))
