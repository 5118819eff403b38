"""`bnstat report` of EfficientNetB4: making the page, and using it in headless Chromium."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.benchmarks.measure import (
    IMPORTS,
    Result,
    bnstat,
    build,
    compared,
    in_turn,
    wall,
)

TITLE = "Make and use an HTML report"

MOVE = """
async (move) => {
  const next = () => new Promise(requestAnimationFrame);
  const press = (key) => document.body.dispatchEvent(new KeyboardEvent("keydown",
    {key, bubbles: true}));
  const scroll = () => { document.getElementById("table").scrollTop += 500; };
  const times = [];
  await next();
  for (let frame = 0; frame < 90; frame++) {
    if (move === "scroll") scroll();
    else if (move) press(move);
    times.push(await next());
  }
  return times.slice(1).map((time, place) => time - times[place]);
}
"""


def in_browser(path: Path, move: str, rounds: int) -> tuple[list[float], ...]:
    """Milliseconds until a page is ready, between frames at rest, and between frames in motion."""
    from playwright.sync_api import sync_playwright

    executable = shutil.which("chromium") or shutil.which("google-chrome")
    ready, still, frames = [], [], []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=executable, args=["--no-sandbox", "--disable-gpu"]
        )
        for _ in range(rounds):
            page: Any = browser.new_page(viewport={"width": 1400, "height": 900})
            page.goto(path.resolve().as_uri())
            page.wait_for_selector("html[data-ready=true]", state="attached")
            ready.append(page.evaluate("performance.getEntriesByName('ready')[0].startTime"))
            still += page.evaluate(MOVE, "")
            frames += page.evaluate(MOVE, move)
            page.close()
        browser.close()
    return ready, still, frames


def measure(data: Path, runs: int) -> Iterator[Result]:
    build(data, "efficientnet", "layers_10k")
    with tempfile.TemporaryDirectory() as temporary:
        page, large = Path(temporary) / "page.html", Path(temporary) / "large.html"
        models = data / "efficientnet/model.keras", data / "layers_10k/model"
        taken = in_turn(
            {
                "imports": IMPORTS,
                "report": bnstat("report", models[0], "-o", page),
                "large": bnstat("report", models[1], "-o", large),
            },
            min(runs, 5),
        )
        imports = wall(taken["imports"])
        yield compared("making the page", "imports", 6, wall(taken["report"]), imports)
        yield Result("size of the page", page.stat().st_size / 1e6, "MB", 1.5)
        for what, path, move, bound in (
            ("EfficientNetB4", page, "ArrowDown", 6),
            ("10,000 layers", large, "scroll", 30),
        ):
            ready, still, frames = in_browser(path, move, len(imports))
            yield compared(
                f"{what}: until it can be used",
                "imports",
                bound,
                [milliseconds / 1000 for milliseconds in ready],
                imports,
            )
            yield compared(f"{what}: a frame while it moves", "at rest", 1.01, frames, still, "ms")
