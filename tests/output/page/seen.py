"""Functions that read a page in a browser and act on it."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from tests.output.models import model, usual

Show = Callable[..., Any]

CELLS = "rows => rows.map(row => [...row.cells].map(cell => cell.textContent))"
NAMES = ["stem/bn", "block1/bn", "block2/bn", "block10/bn", "head/bn"]


def network(epsilon: float | None = 0.001) -> Any:
    numbered = enumerate(NAMES, 1)
    return model(*(usual(name, 16 + place, place, epsilon=epsilon) for place, name in numbered))


def rows(page: Any) -> list[list[str]]:
    """Return the texts of the table's rows that are in the document."""
    texts: list[list[str]] = page.eval_on_selector_all("#table tr[aria-rowindex]", CELLS)
    return texts


def names(page: Any) -> list[str]:
    return [row[1] for row in rows(page)]


def frame(page: Any) -> None:
    """Wait until the page has drawn the last change."""
    page.evaluate("() => new Promise(done => requestAnimationFrame(() => setTimeout(done)))")


def press(page: Any, *keys: str) -> None:
    for key in keys:
        page.keyboard.press(key)
    frame(page)


def title(page: Any) -> str:
    return str(page.text_content("#layer-title"))


def numbers(page: Any) -> dict[str, list[str]]:
    """Return the columns of the table of numbers of the layer shown."""
    page.evaluate("document.getElementById('numbers-details').open = true")
    page.wait_for_selector("#channels tr[aria-rowindex]")
    heads = page.eval_on_selector_all("#channels th", "heads => heads.map(h => h.textContent)")
    cells = page.eval_on_selector_all("#channels tr[aria-rowindex]", CELLS)
    return dict(zip(heads, map(list, zip(*cells, strict=True)), strict=True))


def read_back(texts: list[str], like: np.ndarray) -> bytes:
    return np.array([float(text) for text in texts]).astype(like.dtype).tobytes()


def download(page: Any, selector: str) -> list[list[str]]:
    with page.expect_download() as waiting:
        page.click(selector)
    return list(csv.reader(io.StringIO(Path(waiting.value.path()).read_text(encoding="utf-8"))))
