"""TensorFlow Lite files, written by TensorFlow and compared with its interpreter."""

from __future__ import annotations

import struct
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from click.testing import CliRunner

import bnstat
from bnstat.cli import main
from bnstat.errors import BnstatError, DamagedError, UnsupportedError
from bnstat.formats.tflite import U32, U64, Flatbuffer
from bnstat.storage.local import LocalFile
from tests.builders.flatbuffers import hand_made
from tests.builders.oracle import same_bits
from tests.formats.tflite.files import WAYS, write_all


@pytest.fixture(scope="module")
def files(built_once: Callable[..., Path]) -> dict[str, Path]:
    folder = built_once("tflite", write_all)
    return {way: folder / f"{way}.tflite" for way in WAYS}


def tensors_of(path: Path) -> dict[str, tuple[np.ndarray, dict[str, Any]]]:
    """Return name -> the interpreter's array of each constant, and its quantization."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        interpreter = tf.lite.Interpreter(model_path=str(path))
    found = {}
    for tensor in interpreter.get_tensor_details():
        try:
            array = interpreter.get_tensor(tensor["index"])
        except ValueError:  # computed by an operation
            continue
        found[tensor["name"]] = array, tensor["quantization_parameters"]
    return found


def dequantized(stored: np.ndarray, how: dict[str, Any]) -> np.ndarray:
    """Return the numbers that quantized numbers stand for, by the definition."""
    scales, zeros, axis = (how[key] for key in ("scales", "zero_points", "quantized_dimension"))
    if not scales.size:
        return stored
    channels_last = np.moveaxis(np.atleast_1d(stored), axis, -1).astype(np.float64)
    result = np.moveaxis((channels_last - zeros) * scales.astype(np.float64), -1, axis)
    return result.reshape(stored.shape).astype(np.float32)


@pytest.mark.parametrize("way", WAYS)
def test_every_constant_is_read_as_the_interpreter_does(way: str, files: dict[str, Path]) -> None:
    expected = tensors_of(files[way])
    stored = bnstat.load(files[way]).stored
    assert set(stored) == set(expected)
    assert any(len(each.shape) == 4 for each in stored.values())
    for key, (raw, how) in expected.items():
        variable, array = stored[key], dequantized(raw, how)
        assert (variable.dtype, variable.shape) == (array.dtype.name, array.shape)
        assert same_bits(variable.read(), array)
        step = variable.step()
        assert (step is not None) == bool(how["scales"].size)
        if step is not None:
            sizes = np.broadcast_to(step, array.shape)
            axis = how["quantized_dimension"]
            scales = np.moveaxis(sizes, axis, -1).reshape(-1, array.shape[axis])[0]
            assert np.array_equal(scales, np.broadcast_to(how["scales"], scales.shape))
    kinds = {raw.dtype.name for raw, how in expected.values() if how["scales"].size}
    assert kinds == {"dynamic": {"int8"}, "int8": {"int8", "int32"}}.get(way, set())


def test_buffers_behind_the_flatbuffer(files: dict[str, Path]) -> None:
    for way in ("float32", "outside"):
        flat = Flatbuffer(LocalFile(str(files[way])))
        buffers = flat.table(flat.number(0, U32)).tables(4)
        assert any(buffer.number(1, U64) > 1 for buffer in buffers) == (way == "outside")


@pytest.mark.parametrize("way", WAYS)
def test_a_note_says_that_batch_norm_is_folded(way: str, files: dict[str, Path]) -> None:
    model = bnstat.load(files[way])
    assert (model.source.format, list(model), model.incomplete) == ("tflite", [], ())
    (note,) = model.notes
    assert "folds batch norm" in note
    result = CliRunner().invoke(main, ["inspect", str(files[way])])
    assert result.exit_code == 1
    assert note in result.stderr


@pytest.mark.parametrize("length", [8, 12, 40, 400, 2000, 4500])
def test_cut_short(length: int, files: dict[str, Path], tmp_path: Path) -> None:
    path = tmp_path / "cut.tflite"
    path.write_bytes(files["float32"].read_bytes()[:length])
    with pytest.raises(DamagedError):
        read_all(path)


def read_all(path: Path) -> None:
    for variable in bnstat.load(path).stored.values():
        variable.read()


def test_wrong_offsets(files: dict[str, Path], tmp_path: Path) -> None:
    """Each word of the file is replaced by an offset far away, or back to itself."""
    content, path = files["int8"].read_bytes(), tmp_path / "m.tflite"
    refused = 0
    for at in range(0, 3000, 20):
        for word in (0xFFFFFFFF, 0x7FFFFFFF, 0, 4):
            data = bytearray(content)
            struct.pack_into("<I", data, at, word)
            path.write_bytes(data)
            try:
                read_all(path)
            except BnstatError:
                refused += 1
    assert refused > 50


def load_one(path: Path, *arguments: Any) -> bnstat.Variable:
    path.write_bytes(hand_made(*arguments))
    (variable,) = bnstat.load(path).stored.values()
    return variable


def test_numbers_of_four_bits(tmp_path: Path) -> None:
    variable = load_one(tmp_path / "m", 17, (3,), bytes([0x8F, 0xF7]), 0.5)
    assert same_bits(variable.read(), np.array([-0.5, -4.0, 3.5], np.float32))


def test_unknown_types(tmp_path: Path) -> None:
    variable = load_one(tmp_path / "m", 99, (3,), bytes(3), 0.0)
    with pytest.raises(UnsupportedError):
        variable.read()


@pytest.mark.parametrize("shape", [(4,), (2,), (1 << 30, 1 << 30), (), (-3,), (1,) * 40])
def test_a_shape_that_does_not_fit(shape: tuple[int, ...], tmp_path: Path) -> None:
    with pytest.raises(DamagedError, match="shape"):
        load_one(tmp_path / "m", 0, shape, bytes(12), 0.0).read()
