"""Take pictures of reports in a real browser, for the documentation and for a review.

    python -m tests.pictures.make_report_pictures [FOLDER]

draws the documentation's picture (`report.png` beside this module) and, into FOLDER, one picture
for each kind of page, theme and screen, and in print. Needs Playwright, Pillow and a Chromium.
"""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

from bnstat.cli import main
from bnstat.model import ROLES, Model
from tests.output.models import layer, model, usual
from tests.output.page.conftest import ARGUMENTS, chromium
from tests.output.page.written import of_model
from tests.terminal import ROOT

PICTURE = Path(__file__).parent / "report.png"


class Shot(NamedTuple):
    """One picture: the models, the theme, the size of the screen, the keys to press first.

    Without paths, it shows `network`.
    """

    name: str
    paths: tuple[str, ...]
    theme: str = "light"
    width: int = 1400
    height: int = 900
    keys: tuple[str, ...] = ()
    paper: bool = False


SICK = "digits_no_updates/saved_model"
README = Shot("report", (), width=1320, height=720)
SHOTS = (
    Shot("model", ("digits/saved_model",)),
    Shot("model-dark", (SICK,), theme="dark"),
    Shot("model-by-value", ("digits/saved_model",), keys=("s", "l")),
    Shot("run", ("digits/run",), keys=("ArrowLeft", "ArrowLeft")),
    Shot("run-dark", ("digits/run",), theme="dark"),
    Shot("two-models", ("digits/saved_model", SICK), height=1300),
    Shot("phone", (SICK,), width=390, height=1900),
    Shot("phone-dark", ("digits/run",), theme="dark", width=390, height=1900),
    Shot("help", ("digits/run",), keys=("?",)),
    Shot("paper", (SICK,), theme="dark", width=794, height=1700, paper=True),
)


def network() -> Model:
    """Return a network that is larger than the models of `tests/data`, with broken channels."""
    layers = [
        usual(
            f"stage{place // 5 + 1}/block{place % 5 + 1}/bn",
            32 << place // 5,
            place,
            epsilon=0.001,
            momentum=0.99,
        )
        for place in range(20)
    ]
    arrays = {role: layers[8].array(role) for role in ROLES}
    arrays["moving_variance"] = arrays["moving_variance"].copy()
    arrays["moving_variance"][[17, 33, 60]] = -0.3
    layers[8] = layer(layers[8].name, arrays, epsilon=0.001, momentum=0.99)
    return model(*layers)


def take(browser: Any, shot: Shot, target: Path, folder: Path) -> None:
    """Write a page, show it, and take its picture."""
    written = folder / f"{shot.name}.html"
    if shot.paths:
        main(["report", *shot.paths, "-o", str(written)], standalone_mode=False)
    else:
        written.write_text(of_model(network()), encoding="utf-8")
    page = browser.new_page(
        viewport={"width": shot.width, "height": shot.height}, color_scheme=shot.theme
    )
    page.goto(written.as_uri())
    page.wait_for_selector("html[data-ready=true]", state="attached")
    for key in shot.keys:
        page.keyboard.press(key)
    if shot.paper:
        page.emulate_media(media="print")
    page.wait_for_timeout(200)
    page.screenshot(path=target)
    page.close()


def draw(shots: dict[Path, Shot]) -> None:
    """Take all pictures, by the path of each."""
    from playwright.sync_api import sync_playwright

    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium(), args=ARGUMENTS)
        for target, shot in shots.items():
            take(browser, shot, target, Path(folder))
        browser.close()


if __name__ == "__main__":
    wanted = {PICTURE: README}
    if sys.argv[1:]:
        folder = Path(sys.argv[1]).absolute()
        folder.mkdir(parents=True, exist_ok=True)
        wanted |= {folder / f"{shot.name}.png": shot for shot in SHOTS}
    os.chdir(ROOT / "tests/data")  # pages show the paths as given
    draw(wanted)
    from PIL import Image

    with Image.open(PICTURE) as picture:
        picture.quantize(128).save(PICTURE, optimize=True)
