"""Draw the first picture of the README: bnstat with the models of `tests/data`.

    python -m tests.pictures.make_pictures

It runs the commands, and rich draws their output, in any monospaced font.
"""

from __future__ import annotations

import io
import shlex
from pathlib import Path

from rich.console import Console
from rich.terminal_theme import TerminalTheme
from rich.text import Text

from tests.terminal import ROOT, in_terminal

PICTURE = Path(__file__).parent / "inspect_and_check.svg"
COMMANDS = ("bnstat inspect digits/saved_model", "bnstat check digits_no_updates/saved_model")
COLUMNS = 98

_TEMPLATE = """\
<svg viewBox="0 0 {width} {height}" xmlns="http://www.w3.org/2000/svg">
<style>
.{unique_id}-matrix {{
  font: {char_height}px/{line_height}px ui-monospace, SFMono-Regular, Menlo, Consolas,
    "DejaVu Sans Mono", "Liberation Mono", monospace;
}}
.{unique_id}-title {{ font: bold 18px system-ui, sans-serif; }}
{styles}
</style>
<defs>
<clipPath id="{unique_id}-clip-terminal">
<rect x="0" y="0" width="{terminal_width}" height="{terminal_height}"/>
</clipPath>
{lines}
</defs>
{chrome}
<g transform="translate({terminal_x}, {terminal_y})" clip-path="url(#{unique_id}-clip-terminal)">
{backgrounds}
<g class="{unique_id}-matrix" xml:space="preserve">
{matrix}
</g>
</g>
</svg>
"""

_COLOURS = [
    *((72, 79, 88), (255, 123, 114), (63, 185, 80), (210, 153, 34)),
    *((88, 166, 255), (188, 140, 255), (57, 197, 207), (214, 220, 227)),
]
_THEME = TerminalTheme((22, 27, 34), (214, 220, 227), _COLOURS)


def draw() -> str:
    """Return the picture as SVG."""
    console = Console(
        record=True, width=COLUMNS, file=io.StringIO(), force_terminal=True, legacy_windows=False
    )
    for number, command in enumerate(COMMANDS):
        if number:
            console.print()
        console.print(Text.assemble(("$ ", "green"), (command, "bold")))
        _, *arguments = shlex.split(command)
        shown = in_terminal(arguments, COLUMNS, colours=True, folder=ROOT / "tests/data")
        console.print(Text.from_ansi(shown.rstrip()))
    return console.export_svg(
        title="bnstat", theme=_THEME, code_format=_TEMPLATE, unique_id="bnstat"
    )


if __name__ == "__main__":
    PICTURE.write_text(draw(), encoding="utf-8")
