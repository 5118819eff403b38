"""A page as one HTML file: templates, style and scripts, the numbers, and nothing from elsewhere.

The Content-Security-Policy names the one style sheet and the one script by their hashes, so that
nothing else in the file can act, whatever names a model brings along.
"""

from __future__ import annotations

import base64
import hashlib
import json
from pathlib import Path
from typing import IO, Final

from bnstat import __version__
from bnstat.errors import UnsupportedError
from bnstat.model import printable
from bnstat.output.page.page import Page
from bnstat.output.results import plain

_HERE: Final = Path(__file__).parent

SCRIPTS: Final = (
    "numbers",
    "summary",
    "scale",
    "state",
    "text",
    "sheet",
    "table",
    "chart",
    "panels",
    "layer",
    "controls",
    "keyboard",
    "main",
)
"""The files of `scripts/`, in the order in which they build on each other."""

_ESCAPES: Final = {ord(char): f"\\u{ord(char):04x}" for char in "<>&\u2028\u2029"}


def write(page: Page, file: IO[str]) -> None:
    """Write a page.

    Raises:
        UnsupportedError: Jinja2 is not installed.
    """
    try:
        from jinja2 import Environment, FileSystemLoader, StrictUndefined
    except ImportError:
        raise UnsupportedError(
            "report", "needs Jinja2, which is not installed", "pip install jinja2"
        ) from None
    environment = Environment(
        loader=FileSystemLoader(_HERE / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["printable"] = printable
    style, script = _style(), _script()
    template = environment.get_template("page.html.j2")
    stream = template.stream(
        page=page,
        version=__version__,
        style=style,
        script=script,
        policy=f"default-src 'none'; style-src '{_hash(style)}'; script-src '{_hash(script)}'; "
        "img-src data:; base-uri 'none'; form-action 'none'",
        data=json.dumps(plain(page.data), allow_nan=False, separators=(",", ":")).translate(
            _ESCAPES
        ),
        numbers=page.numbers.text(),
    )
    for piece in stream:
        file.write(piece)


def _style() -> str:
    return "\n".join(_read(name) for name in ("vendor/uPlot.min.css", "style.css"))


def _script() -> str:
    own = "\n".join(_read(f"scripts/{name}.js") for name in SCRIPTS)
    licence = f"/*\n{_read('vendor/LICENSE')}*/"
    return (
        f'{licence}\n{_read("vendor/uPlot.iife.min.js")}\n(() => {{\n"use strict";\n{own}}})();\n'
    )


def _read(name: str) -> str:
    return (_HERE / name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    digest = hashlib.sha256(text.encode()).digest()
    return f"sha256-{base64.b64encode(digest).decode('ascii')}"
