"""Networks that TensorFlow Lite's converter folded."""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import permutations
from pathlib import Path

import pytest
from click.testing import CliRunner

import bnstat
from bnstat.cli import main
from bnstat.compare.diff import diff
from tests.formats.tflite.files import NORMS, write_all

WAYS = {"float32": None, "float16": "float16", "dynamic": "quantized", "int8": "quantized"}


@pytest.fixture(scope="module")
def folder(built_once: Callable[..., Path]) -> Path:
    return built_once("tflite", write_all)


@pytest.mark.parametrize("way", WAYS)
def test_every_layer_is_proven(way: str, folder: Path) -> None:
    network, lite = bnstat.load(folder / "network.keras"), bnstat.load(folder / f"{way}.tflite")
    for pair in permutations((network, lite)):
        difference = diff(*pair)
        assert difference.equivalent
        folded = {each.layer: each for each in difference.folded}
        assert tuple(folded) == NORMS
        assert not any(each.tie for each in folded.values())
        assert {name for name, each in folded.items() if each.weights is None} == {"bn_joined"}
        assert len({each.into for each in folded.values()}) == len(NORMS)
        roundings = {each.rounding for each in folded.values()}
        assert roundings == {WAYS[way]} | ({None} if way == "dynamic" else set())


def test_the_command_reports_it_and_exits_with_0(folder: Path) -> None:
    for way, said in (("float32", "1e-06"), ("int8", "1e-06 and the rounding of stored numbers")):
        paths = [str(folder / "network.keras"), str(folder / f"{way}.tflite")]
        result = CliRunner().invoke(main, ["diff", *paths])
        assert result.exit_code == 0
        assert result.stdout.splitlines()[-1] == (
            f"no difference in effect within {said}: 6 folded; other weights were not compared"
        )
        assert ("as far as quantized numbers show" in result.stdout) == (way == "int8")
    document = json.loads(CliRunner().invoke(main, ["diff", *paths, "--json"]).stdout)
    assert {each["rounding"] for each in document["folded"]} == {"quantized"}
