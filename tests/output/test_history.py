from __future__ import annotations

import csv
import json
import math
from collections.abc import Iterable

import numpy as np
import pytest

from bnstat.checks import check
from bnstat.errors import DamagedError
from bnstat.model import Source
from bnstat.output import history as text
from bnstat.output.terminal.screen import ASCII, UNICODE, Glyphs, Screen
from bnstat.output.terminal.table import text_width
from bnstat.run_history import History, history
from tests.output.models import layer, model, usual

NASTY = "a\x1b[31m\n[red]=1"


def run_of(*names: str, length: int = 4) -> History:
    entries = []
    for number in range(length):
        layers = [usual(name, seed=10 * number + place) for place, name in enumerate(names)]
        source = Source("runs", "tf2-checkpoint", step=100 * number)
        entries.append((f"model-{100 * number}", model(*layers, source=source)))
    return history(entries)


@pytest.mark.parametrize(
    ("values", "width", "line"),
    [
        *((range(8), 10, "▁▂▃▄▅▆▇█"), (range(1000), 8, "▁▂▃▄▅▆▇█"), ([0, 0, 7, 7], 2, "▁█")),
        *(([7, 0, 7], 10, "█▁█"), ([3, 3, 3], 10, "▁▁▁"), ([3], 10, "▁")),
        *(([0, math.nan, 7], 10, "▁ █"), ([0, math.inf, 7], 10, "▁ █")),
        *(([math.nan] * 2, 10, "  "), ([-1.7e308, 0, 1.7e308], 10, "▁▅█"), ([0, 5e-324], 10, "▁█")),
    ],
)
def test_sparkline(values: Iterable[float], width: int, line: str) -> None:
    assert text.sparkline(np.array(values, float), width, UNICODE.blocks) == line


class TestText:
    def lines(self, run: History, **screen) -> list[str]:
        return list(text.text_lines(run, check(run), "runs", Screen(**screen)))

    def test_header_and_rows(self) -> None:
        lines = self.lines(run_of("a", "b"))
        assert lines[0] == "path         runs"
        assert lines[1] == "checkpoints  4: model-0 to model-300"
        assert lines[3].split() == ["layer", "role", "mean", "spread", "moves"]
        firsts = [line.split()[0] for line in lines[4:12]]
        assert firsts == ["a", "beta", "moving", "moving", "b", "beta", "moving", "moving"]

    def test_shows_the_newest_numbers_and_the_speed(self) -> None:
        gammas = [np.array([number, 3.0 * number]) for number in (1, 2, 3)]
        run = history([(f"{gamma}", model(layer("bn", {"gamma": gamma}))) for gamma in gammas])
        row = self.lines(run)[4].split()
        speed = math.sqrt((1 + 9) / 2) / math.sqrt((9 + 81) / 2)
        assert row == ["bn", "gamma", "▁▅█", "6", "▁▅█", "3", f"{speed:.2%}"]
        assert self.lines(run_of("bn", length=1))[4].endswith(" -")

    @pytest.mark.parametrize("length", [1, 3, 30])
    def test_a_wide_terminal_shows_the_spread_of_short_and_long_runs(self, length: int) -> None:
        titles = self.lines(run_of("bn", length=length), width=160)[3]
        assert titles.split() == ["layer", "role", "mean", "spread", "moves"]

    def test_findings_follow_a_constant(self) -> None:
        lines = self.lines(history([(name, model(usual("bn"))) for name in "ab"]))
        assert {line.split()[-1] for line in lines[4:8]} == {"0"}
        assert any(line.startswith("info BN101 frozen") for line in lines)
        assert not any("BN1" in line for line in self.lines(run_of("bn")))

    @pytest.mark.parametrize("glyphs", [UNICODE, ASCII])
    @pytest.mark.parametrize("width", [46, 80, 160])
    @pytest.mark.parametrize("length", [1, 3, 200])
    def test_fits_the_screen(self, width: int, length: int, glyphs: Glyphs) -> None:
        run = run_of("first/" * 8 + "bn", "second/" * 8 + "bn", length=length)
        lines = self.lines(run, width=width, glyphs=glyphs, boxes=True)
        assert max(map(text_width, lines)) <= width
        assert glyphs is UNICODE or "".join(lines).isascii()


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
