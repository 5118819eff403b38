"""Pages of models, parsed without a browser."""

from __future__ import annotations

import base64
import io
import json
from html.parser import HTMLParser
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bnstat.checks import check
from bnstat.compare.diff import diff
from bnstat.model import Model
from bnstat.output import page
from bnstat.run_history import history


def text_of(written: page.Page) -> str:
    file = io.StringIO()
    page.write(written, file)
    return file.getvalue()


def of_model(model: Model, **options: Any) -> str:
    return text_of(page.of_model(model, check(model), **options))


def of_two(old: Model, new: Model) -> str:
    return text_of(page.of_difference(diff(old, new), old, new, check(new)))


def of_run(*models: Model) -> str:
    entries = [(f"model-{place}", model) for place, model in enumerate(models)]
    frames = page.Frames(entries, len(entries))
    run = history(frames)
    findings = [*check(run), *check(frames.newest)]
    return text_of(page.of_history("runs/cnn", run, frames, findings))


class Parts(HTMLParser):
    """The elements of a page: tag, attributes, text. Elements must be nested correctly."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str | None], list[str]]] = []
        self._open: list[tuple[str, list[str]]] = []
        self.feed(text)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        pieces: list[str] = []
        self.elements.append((tag, dict(attrs), pieces))
        if tag not in ("meta", "input", "link", "br", "img"):
            self._open.append((tag, pieces))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop()[0] == tag

    def handle_data(self, data: str) -> None:
        for _, pieces in self._open:
            pieces.append(data)

    def all(self, tag: str, **attributes: str) -> list[str]:
        """Return the texts of the elements with this tag and these attributes."""
        return [
            "".join(pieces)
            for name, attrs, pieces in self.elements
            if name == tag and attributes.items() <= attrs.items()
        ]

    @property
    def texts(self) -> list[str]:
        return ["".join(pieces) for *_, pieces in self.elements]

    @property
    def policy(self) -> str:
        name = "Content-Security-Policy"
        return next(
            str(attrs["content"]) for _, attrs, _ in self.elements if name in attrs.values()
        )


class Shown(Parts):
    """A page with its data unpacked."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        (data,) = self.all("script", id="data")
        (numbers,) = self.all("script", id="numbers")
        self.data: dict[str, Any] = json.loads(data)
        self.bytes = base64.b64decode(numbers, validate=True)

    def array(self, place: list[int]) -> NDArray[Any]:
        width, count, start = place
        return np.frombuffer(self.bytes, f"<f{width}", count, start)
