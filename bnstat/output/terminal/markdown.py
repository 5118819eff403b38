"""Rendering of Markdown as text by the library rich."""

from __future__ import annotations

import io
import re
from typing import ClassVar, Final

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderResult
from rich.markdown import CodeBlock, Heading, Markdown, MarkdownElement
from rich.syntax import Syntax
from rich.text import Text
from rich.theme import Theme

from bnstat.output.terminal.screen import Screen

_WIDTH: Final = 80
_WIDEST: Final = 100  # longer lines are hard to read
_INDENT: Final = "  "
_THEME: Final = Theme({"markdown.code": "cyan"})
_BLANK: Final = re.compile(r"(?:\s|\x1b\[[\d;]*m)*")
_UNDERLINES: Final = {"h1": "=", "h2": "-"}
_HIGHLIGHTED: Final = {"python", "pycon", "toml", "yaml"}


def render(text: str, screen: Screen) -> str:
    """Render Markdown as text within the screen's width, with colours if supported."""
    console = Console(
        file=io.StringIO(),
        force_terminal=screen.colour,
        color_system="standard" if screen.colour else None,
        width=min(screen.width or _WIDTH, _WIDEST),
        legacy_windows=False,
        theme=_THEME,
    )
    with console.capture() as capture:
        console.print(_Page(text, hyperlinks=False), crop=False)
    lines = ("" if _BLANK.fullmatch(line) else line.rstrip() for line in capture.get().split("\n"))
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).strip("\n") + "\n"


class _Heading(Heading):
    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield self.text
        line = _UNDERLINES.get(self.tag)
        if line and not console.is_terminal:
            yield Text(line * cell_len(self.text.plain))


class _CodeBlock(CodeBlock):
    """A code block whose lines are neither wrapped nor padded."""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        code = str(self.text).rstrip()
        if self.lexer_name in _HIGHLIGHTED:
            text = Syntax(code, self.lexer_name, theme="ansi_dark").highlight(code)
            text.rstrip()
        else:
            text = Text(code)
            text.highlight_regex(r"(?m)^\$ .*$", "bold")
        lines = text.split("\n")
        # A longer command is not cut, so that it can be copied.
        widths = [width for line in lines if (width := cell_len(line.plain)) <= options.max_width]
        indent = _INDENT if max(widths, default=0) + len(_INDENT) <= options.max_width else ""
        indented = Text("\n").join(Text(indent if line else "") + line for line in lines)
        indented.no_wrap, indented.overflow = True, "ignore"
        yield indented


class _Page(Markdown):
    elements: ClassVar[dict[str, type[MarkdownElement]]] = {
        **Markdown.elements,
        "heading_open": _Heading,
        "fence": _CodeBlock,
        "code_block": _CodeBlock,
    }
