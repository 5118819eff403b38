from __future__ import annotations

import re
from xml.etree import ElementTree

from tests.pictures import make_report_pictures as reports
from tests.pictures.make_pictures import PICTURE, draw
from tests.terminal import ROOT


def test_the_picture_is_current() -> None:
    assert PICTURE.read_text(encoding="utf-8") == draw()


def test_the_picture_is_self_contained() -> None:
    text = PICTURE.read_text(encoding="utf-8")
    ElementTree.fromstring(text)
    assert re.findall(r"\w+://[^\s\"']+", text) == ["http://www.w3.org/2000/svg"]
    assert "@import" not in text
    assert "@font-face" not in text
    assert set(re.findall(r"url\((.)", text)) == {"#"}


def test_the_readme_opens_with_it() -> None:
    _, picture, *_ = re.split(r"\n\n", (ROOT / "README.md").read_text(encoding="utf-8"))
    assert picture.endswith(f"]({PICTURE.relative_to(ROOT).as_posix()})")


def test_the_documentation_shows_a_report() -> None:
    page = ROOT / "bnstat/docs/look.md"
    (picture,) = re.findall(r"!\[.*?\]\((.*?)\)", page.read_text(encoding="utf-8"))
    assert (page.parent / picture).resolve() == reports.PICTURE.resolve()
    assert reports.PICTURE.stat().st_size < 150_000
