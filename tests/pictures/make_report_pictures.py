"""Take the documentation's picture of a report in a real browser.

    python -m tests.pictures.make_report_pictures

Needs Playwright, Pillow and a Chromium.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from bnstat.model import ROLES, Model
from tests.output.models import layer, model, usual
from tests.output.page.conftest import ARGUMENTS, chromium
from tests.output.page.written import of_model

PICTURE = Path(__file__).parent / "report.png"


def network() -> Model:
    """Return a network that is larger than the models of `tests/data`, with broken channels."""
    settings = {"epsilon": 0.001, "momentum": 0.99}
    layers = []
    for place in range(20):
        name = f"stage{place // 5 + 1}/block{place % 5 + 1}/bn"
        layers.append(usual(name, 32 << place // 5, place, **settings))
    arrays = {role: layers[8].array(role) for role in ROLES}
    arrays["moving_variance"] = arrays["moving_variance"].copy()
    arrays["moving_variance"][[17, 33, 60]] = -0.3
    layers[8] = layer(layers[8].name, arrays, **settings)
    return model(*layers)


def main() -> None:
    """Write the picture beside this module."""
    from PIL import Image
    from playwright.sync_api import sync_playwright

    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        written = Path(folder) / "report.html"
        written.write_text(of_model(network()), encoding="utf-8")
        browser = playwright.chromium.launch(executable_path=chromium(), args=ARGUMENTS)
        page = browser.new_page(viewport={"width": 1320, "height": 720}, color_scheme="light")
        page.goto(written.as_uri())
        page.wait_for_selector("html[data-ready=true]", state="attached")
        page.wait_for_timeout(200)
        page.screenshot(path=PICTURE)
        browser.close()
    with Image.open(PICTURE) as picture:
        picture.quantize(128).save(PICTURE, optimize=True)


if __name__ == "__main__":
    main()
