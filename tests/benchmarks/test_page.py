from __future__ import annotations

from tests.benchmarks.__main__ import PAGE, page
from tests.benchmarks.measure import Result


def test_only_the_sections_that_were_measured_are_replaced() -> None:
    old = PAGE.read_text(encoding="utf-8")
    title = "Export 10,000,000 values"
    assert page(old, {}) == page(old, {title: []}) == old
    new = page(old, {title: [Result("a row", 1, "MB", 2)]})
    sections, changed = old.split("\n## "), new.split("\n## ")
    (number,) = (
        place for place, pair in enumerate(zip(sections, changed, strict=True)) if len({*pair}) > 1
    )
    assert len(sections) == len(changed)
    assert changed[number].startswith(f"{title}\n\nMeasured on ")
    assert changed[number].endswith("| --- |\n| a row | 1 MB |  |  | 2 MB | yes |\n")
    without = "\n## ".join(part for part in sections if not part.startswith(title))
    assert page(without, {title: [Result("a row", 1, "MB", 2)]}) == new
