"""What `bnstat report` costs for EfficientNetB4 (96 layers, 62,600 channels), against its budgets.

    python tests/benchmarks/bench_report.py [--data FOLDER] [--rounds N]

- the page: at most 1.5 MB, and made in at most 6 times the time in which an interpreter imports
  what any such program needs (the floor), the whole process;
- in headless Chromium (Playwright and a Chromium have to be installed): ready to use within 6
  floors of the start of the navigation, and as many frames a second as at rest while an arrow key
  moves through the layers, a layer a frame;
- a page of 10,000 layers: ready within 30 floors, and as quick to scroll.

Keras writes the model on the first run; FOLDER keeps it for the next. The exit code is 1 if a
budget is not kept.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

from measure import FLOOR, Budget, bnstat, build, in_turn, median, ratio, table, verdict

MADE, READY, READY_LARGE, FRAME = 6, 6, 30, 1.01

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


def main() -> int:
    """Measure, print, and give the exit code."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    budgets = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.data or Path(temporary)
        build(folder, "efficientnet", "layers_10k")
        page, large = Path(temporary) / "page.html", Path(temporary) / "large.html"
        commands = {
            "imports alone": FLOOR,
            "bnstat report, EfficientNetB4": bnstat(
                "report", folder / "efficientnet/model.keras", "-o", page
            ),
            "bnstat report, 10,000 layers": bnstat(
                "report", folder / "layers_10k/model", "-o", large
            ),
        }
        runs = in_turn(commands, arguments.rounds)
        table(runs)
        floor, made, _ = runs.values()
        floor_ms = 1000 * median(floor, lambda run: run.wall)
        budgets.append(Budget("the page", page.stat().st_size / 1e6, 1.5, " MB"))
        slowness = ratio(made, floor, lambda run: run.wall)
        budgets.append(Budget("making it, over the imports", slowness, MADE, "x"))
        for what, path, move, most in (
            ("EfficientNetB4", page, "ArrowDown", READY),
            ("10,000 layers", large, "scroll", READY_LARGE),
        ):
            ready, still, frames = in_browser(path, move, arguments.rounds)
            usual = statistics.median(still)
            late = sum(frame > 1.5 * usual for frame in frames) / len(frames)
            print(
                f"{what}: {late:.1%} of {len(frames)} frames late, the longest {max(frames):.0f} ms"
            )
            budgets += [
                Budget(
                    f"{what}: ready, over the imports",
                    statistics.median(ready) / floor_ms,
                    most,
                    "x",
                ),
                Budget(
                    f"{what}: a frame, over one at rest",
                    statistics.median(frames) / usual,
                    FRAME,
                    "x",
                ),
            ]
    print()
    return verdict(budgets)


if __name__ == "__main__":
    sys.exit(main())
