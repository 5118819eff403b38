from __future__ import annotations

import html
import json
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from onnx.helper import make_node
from onnx.numpy_helper import from_array

from tests.builders.flatbuffers import hand_made
from tests.cli.files import command_line, write_h5
from tests.compare.ports import arrays_of, random_kernel, trained
from tests.fuzz import ports
from tests.output.models import layer, usual

FIRST, SECOND = trained("block1/bn", 6, seed=1), trained("block2/bn", 6, seed=2)

run = partial(command_line, "diff")


@pytest.fixture
def network(tmp_path: Path) -> str:
    return write_h5(tmp_path / "network.h5", FIRST, SECOND)


def test_folded(folded: tuple[str, str]) -> None:
    assert run(*folded).exit_code == 1
    for pair in (folded, folded[::-1]):
        result = run(*pair, "--epsilon", "0.001")
        assert result.exit_code == 0, result.output
        assert "folded, and proven" in result.stdout
        assert "bn -> conv.weight + conv.bias" in result.stdout
        last = "no difference in effect within 1e-06: 1 folded; other weights were not compared"
        assert result.stdout.splitlines()[-1] == last
    document = json.loads(run(*folded, "--epsilon", "0.001", "--json").stdout)
    assert (document["equivalent"], document["equal"]) == (True, False)
    (layer,) = document["folded"]
    assert (layer["verdict"], layer["layer"], layer["side"]) == ("folded", "bn", "old")
    weights = [layer[key] for key in ("weights", "into", "bias")]
    assert weights == ["conv/kernel", "conv.weight", "conv.bias"]
    assert (layer["rounding"], layer["tie"], layer["causes"]) == (None, False, [])


def test_folded_by_another_epsilon(folded: tuple[str, str]) -> None:
    result = run(*folded, "--epsilon", "0.002")
    assert result.exit_code == 1
    lines = result.stdout.splitlines()
    assert "folded by another scale or shift: bn -> conv.weight + conv.bias" in lines
    assert "cause: the scale results from epsilon 0.001, not 0.002: bn" in lines
    (wrong,) = json.loads(run(*folded, "--epsilon", "0.002", "--json").stdout)["misfolded"]
    assert (wrong["verdict"], wrong["layer"], wrong["into"]) == ("different", "bn", "conv.weight")
    assert [cause["kind"] for cause in wrong["causes"]] == ["epsilon"]


def test_every_format_contains_the_cause(network: str, tmp_path: Path) -> None:
    variance = np.array(FIRST.array("moving_variance")) * np.float32(32 / 31)
    arrays = {**arrays_of(FIRST), "moving_variance": variance}
    other = write_h5(tmp_path / "other.h5", layer("block1/bn", arrays), SECOND)
    text = "the variance differs by N/(N-1), N = 32: biased -> unbiased"
    result = run(network, other)
    assert result.exit_code == 1
    assert f"cause: {text}: block1/bn" in result.stdout
    assert text in html.unescape(run(network, other, "--md").stdout)
    first, second = json.loads(run(network, other, "--json").stdout)["layers"]
    assert (first["verdict"], second["verdict"]) == ("different", "same")
    assert first["causes"] == [{"kind": "unbiased-variance", "text": text}]


def test_the_tolerance_decides_the_exit_code(network: str, tmp_path: Path) -> None:
    arrays = {role: array * np.float32(1 + 1e-5) for role, array in arrays_of(FIRST).items()}
    other = write_h5(tmp_path / "other.h5", layer("block1/bn", arrays), SECOND)
    assert run(network, other).exit_code == 1
    result = run(network, other, "--tolerance", "1e-3", "--epsilon", "0.001")
    assert result.exit_code == 0
    counts = "1 the same, 1 the same in effect; other weights were not compared"
    assert result.stdout.endswith(f"\nno difference in effect within 0.001: {counts}\n")


def test_a_note_is_printed_once_without_advice_to_run_the_running_command(tmp_path: Path) -> None:
    kernel, bias = random_kernel(6, 4, 3, 3), np.ones(6, np.float32)
    node = make_node("Conv", ["x", "conv.weight", "conv.bias"], ["y"])
    tensors = [from_array(kernel, "conv.weight"), from_array(bias, "conv.bias")]
    (tmp_path / "m.onnx").write_bytes(ports.onnx_model([node], tensors))
    (tmp_path / "m.tflite").write_bytes(hand_made(0, (1,), bytes(4), 0))
    for path in (tmp_path / "m.onnx", tmp_path / "m.tflite"):
        assert "bnstat diff" in command_line("inspect", path).stderr
        errors = run(path, path).stderr
        assert errors.count("note: ") == 1
        assert "bnstat diff" not in errors


@pytest.fixture
def near(tmp_path: Path) -> str:
    """The file `old`, except that one variance of `b` is larger by 0.001."""
    arrays = arrays_of(usual("b", seed=2))
    arrays["moving_variance"][3] += np.float32(0.001)
    return write_h5(tmp_path / "near.h5", usual("a", seed=1), layer("b", arrays))


SHOWN = {0: "--atol 0.01 | --rtol 0.1 | --layer a", 1: "--atol 1e-4 | --rtol 1e-5 | --layer b"}
"""Number of rows -> options."""


@pytest.mark.parametrize(("rows", "choices"), [*SHOWN.items(), (8, "--atol 1e-4 --all")])
def test_tolerances_and_layers(rows: int, choices: str, old: str, near: str) -> None:
    roles = (" gamma ", " beta ", " moving mean ", " moving variance ")
    for options in choices.split(" | "):
        result = run(old, near, *options.split())
        shown = [line for line in result.stdout.splitlines() if any(role in line for role in roles)]
        assert (result.exit_code, len(shown)) == (bool(rows), rows), options


def test_two_containers_of_the_same_weights(real: Path) -> None:
    result = run(real / "ecg-keras3/best_model.keras", real / "ecg-weights-h5/model.weights.h5")
    assert result.exit_code == 0
    assert result.stdout.splitlines()[-1].startswith("no difference: 3 batch-norm layers are")
