"""The README and the topics: the output of commands is current, and the examples run."""

from __future__ import annotations

import doctest
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bnstat.docs import TOPICS
from tests.docs.pages import BLOCKS, PAGES, Block, Runs
from tests.terminal import ROOT

SLOW = re.compile(r"recalibrate\(|drift\(|keras")
FENCED = re.compile(r"```(python|pycon)\n(.*?)```", re.DOTALL)


def case(page: Path, text: str, is_slow: object, *values: object) -> Any:
    marks = pytest.mark.slow if is_slow else ()
    return pytest.param(*values, id=f"{page.name}-{text}", marks=marks)


SHOWN = [case(block.page, block.command, block.is_slow, block) for block in BLOCKS]
PYTHON = [
    case(page, code.strip().splitlines()[-1], SLOW.search(code), page, language, code)
    for page in PAGES
    for language, code in FENCED.findall(page.read_text(encoding="utf-8"))
]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    return Runs(tmp_path_factory.mktemp("pages"))


@pytest.mark.parametrize("block", SHOWN)
def test_the_output_of_a_command_is_current(block: Block, runs: Runs, request) -> None:
    if "s3://" in block.command:
        request.getfixturevalue("s3")
    shown = runs.shown(block.command)
    if block.runs_a_model:
        assert_same_but_for_last_digits(shown, block.output)
    else:
        lines = [line.rstrip() for line in shown.rstrip().split("\n")]
        assert lines == block.output.rstrip().split("\n"), (
            f"the output has changed: run `python -m tests.docs {block.page.name}`"
        )


def assert_same_but_for_last_digits(shown: str, expected: str) -> None:
    """Compare words exactly and numbers within 2 %, because last digits vary by processor."""
    number = r"\d+(?:\.\d+)?(?:e[+-]\d+)?"
    words, expected_words = (re.sub(number, "#", text).split() for text in (shown, expected))
    assert words == expected_words
    numbers, expected_numbers = (
        [float(found) for found in re.findall(number, text)] for text in (shown, expected)
    )
    assert numbers == pytest.approx(expected_numbers, rel=0.02, abs=2e-4)


@pytest.mark.parametrize(("page", "language", "code"), PYTHON)
def test_the_python_example_runs(page, language, code, tmp_path, monkeypatch) -> None:
    (tmp_path / "tests").symlink_to(ROOT / "tests")
    monkeypatch.chdir(tmp_path)
    names = {"x": np.ones((2, 4, 4, 8), np.float32)}
    if language == "python":
        exec(compile(code, str(page), "exec"), names)
        return
    test = doctest.DocTestParser().get_doctest(code, names, page.name, str(page), 0)
    report: list[str] = []
    flags = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    doctest.DocTestRunner(optionflags=flags).run(test, out=report.append)
    assert not report, "".join(report)


def links(page: Path) -> Iterator[str]:
    text = re.sub(r"(?s)```.*?```", "", page.read_text(encoding="utf-8"))
    yield from re.findall(r"\]\(([^)\s]+)\)", text)


def anchors(page: Path) -> set[str]:
    headings = re.findall(r"(?m)^#+ (.*)$", page.read_text(encoding="utf-8"))
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_leads_somewhere(page: Path) -> None:
    for link in links(page):
        if "://" in link:
            continue
        target, _, anchor = link.partition("#")
        file = page.parent / target if target else page
        assert file.is_file(), link
        assert not anchor or anchor in anchors(file), link


def test_the_topics_are_the_files_and_the_readme_links_to_each() -> None:
    assert {page.stem for page in PAGES} - {"README"} == set(TOPICS)
    assert {link for link in links(ROOT / "README.md") if "bnstat/docs/" in link} == {
        f"bnstat/docs/{topic}.md" for topic in TOPICS
    }


def test_the_readme_is_short() -> None:
    assert (ROOT / "README.md").stat().st_size <= 8_000


def test_no_page_recommends_an_index_that_does_not_have_bnstat() -> None:
    """Somebody else could register the name and run code on the machine of a reader."""
    github = [path for path in (ROOT / ".github").rglob("*") if path.suffix in (".md", ".yml")]
    for file in (*PAGES, *(ROOT / "bnstat").rglob("*.py"), *github):
        text = file.read_text(encoding="utf-8")
        assert not re.search(r"bnstat\[[\w,]+\]|(pip|uv|pipx) install '?bnstat\b", text), file
