from __future__ import annotations

import csv
import json
import math

import numpy as np
import pytest

from bnstat.checks import check
from bnstat.compare import History, history
from bnstat.errors import DamagedError
from bnstat.model import Source
from bnstat.output import history as text
from bnstat.output.terminal.screen import ASCII, UNICODE, Screen
from bnstat.output.terminal.table import text_width
from tests.output.models import layer, model, usual

BLOCKS = UNICODE.blocks
NASTY = "a\x1b[31m\n[red]=1"


def run_of(*names: str, length: int = 4) -> History:
    entries = []
    for number in range(length):
        layers = [usual(name, seed=10 * number + place) for place, name in enumerate(names)]
        source = Source("runs", "tf2-checkpoint", step=100 * number)
        entries.append((f"model-{100 * number}", model(*layers, source=source)))
    return history(entries)


class TestSparkline:
    def line(self, *values: float, width: int = 10, blocks: str = BLOCKS) -> str:
        return text.sparkline(np.array(values, float), width, blocks)

    def test_from_the_lowest_to_the_highest(self) -> None:
        assert self.line(0, 1, 2, 3, 4, 5, 6, 7) == "▁▂▃▄▅▆▇█"
        assert self.line(7, 0, 7) == "█▁█"

    def test_a_constant_is_flat(self) -> None:
        assert self.line(3, 3, 3) == "▁▁▁"
        assert self.line(3) == "▁"

    def test_nan_is_a_gap(self) -> None:
        assert self.line(0, math.nan, 7) == "▁ █"
        assert self.line(0, math.inf, 7) == "▁ █"
        assert self.line(math.nan, math.nan) == "  "

    def test_many_numbers_are_put_together(self) -> None:
        assert self.line(0, 0, 7, 7, width=2) == "▁█"
        assert len(self.line(*range(1000), width=7)) == 7
        assert self.line(*range(1000), width=8) == BLOCKS

    def test_huge_and_tiny_numbers_are_drawn_too(self) -> None:
        assert self.line(-1.7e308, 0, 1.7e308) == "▁▅█"
        assert self.line(0, 5e-324) == "▁█"


class TestText:
    def lines(self, run: History, **screen) -> list[str]:
        return list(text.text_lines(run, check(run), "runs", Screen(**screen)))

    def test_header_and_rows(self) -> None:
        lines = self.lines(run_of("a", "b"))
        assert lines[0] == "path         runs"
        assert lines[1] == "checkpoints  4: model-0 to model-300"
        assert lines[3].split() == ["layer", "role", "mean", "spread", "moves"]
        assert [line.split()[0] for line in lines[4:12]] == [
            *("a", "beta", "moving", "moving"),
            *("b", "beta", "moving", "moving"),
        ]

    def test_shows_the_newest_numbers_and_the_speed(self) -> None:
        entries = [
            (str(number), model(layer("bn", {"gamma": np.array([number, 3.0 * number])})))
            for number in (1, 2, 3)
        ]
        run = history(entries)
        row = self.lines(run)[4].split()
        speed = math.sqrt((1 + 9) / 2) / math.sqrt((9 + 81) / 2)
        assert row == ["bn", "gamma", "▁▅█", "6", "▁▅█", "3", f"{speed:.2%}"]

    def test_a_constant_moves_by_0(self) -> None:
        run = history([(name, model(usual("bn"))) for name in "ab"])
        assert {line.split()[-1] for line in self.lines(run)[4:8]} == {"0"}

    def test_findings_follow(self) -> None:
        run = history([(name, model(usual("bn"))) for name in "ab"])
        assert any(line.startswith("info BN101 frozen") for line in self.lines(run))
        assert not any("BN1" in line for line in self.lines(run_of("bn")))

    def test_one_checkpoint(self) -> None:
        lines = self.lines(run_of("bn", length=1))
        assert lines[1] == "checkpoints  1: model-0"
        assert lines[4].endswith(" -")

    @pytest.mark.parametrize("width", [46, 80, 160])
    @pytest.mark.parametrize("length", [1, 3, 200])
    def test_fits_the_screen(self, width: int, length: int) -> None:
        run = run_of("first/" * 8 + "bn", "second/" * 8 + "bn", length=length)
        for glyphs in (UNICODE, ASCII):
            for line in self.lines(run, width=width, glyphs=glyphs, boxes=True):
                assert text_width(line) <= width

    def test_ascii(self) -> None:
        lines = self.lines(run_of("bn"), glyphs=ASCII)
        assert all(line.isascii() for line in lines)

    def test_names_are_made_printable(self) -> None:
        for line in self.lines(run_of(NASTY)):
            assert line.isprintable()


def test_csv() -> None:
    run = run_of(NASTY, "=bn", length=2)
    rows = list(csv.DictReader(text.csv_lines(run)))
    assert len(rows) == 2 * 2 * 4
    assert {row["layer"] for row in rows} == {"a\\x1b[31m\\n[red]=1", "'=bn"}
    first, second, *_ = rows
    assert (first["checkpoint"], first["step"], first["change"]) == ("model-0", "0", "")
    track = run.tracks[NASTY, "gamma"]
    for measure in ("mean", "std", "min", "max", "change"):
        assert float(second[measure]) == getattr(track, measure)[1]


def test_json() -> None:
    entries = [
        ("a", model(usual("bn", seed=1))),
        ("b", DamagedError("b.index", "is truncated")),
        ("c", model(layer("bn", {"beta": np.array([np.nan, 1.0])}))),
    ]
    run = history(entries)
    document = json.loads("".join(text.json_lines(run, check(run), "runs")))
    assert document["checkpoints"] == [{"name": "a", "step": 1200}, {"name": "c", "step": 1200}]
    assert document["skipped"] == [{"name": "b", "error": "b.index: is truncated"}]
    tracks = {(track["layer"], track["role"]): track for track in document["tracks"]}
    assert tracks["bn", "gamma"]["mean"][1] is None
    assert tracks["bn", "beta"]["mean"][1] == 1
    assert tracks["bn", "beta"]["bad"] == [0, 1]
    (found,) = document["findings"]
    assert (found["rule"], found["layer"]) == ("BN103", "bn")
    assert found["message"] == "beta is not finite from c on"
