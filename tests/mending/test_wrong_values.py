"""Wrong values are refused, and the error has their place."""

from __future__ import annotations

import io
import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import bnstat
from bnstat.exchange.registry import read_values
from bnstat.model import Model
from tests.builders.oracle import same_bits
from tests.mending.exported import exported, fitted, layer, model, two_layers


def edited(path: Path, change: Any) -> Path:
    document = json.loads(path.read_text())
    changed = change(document)
    path.write_text(json.dumps(document if changed is None else changed))
    return path


def put(at: str, value: Any) -> Any:
    def change(document: Any) -> None:
        *path, last = [int(part) if part.isdigit() else part for part in at.split(".")]
        for part in path:
            document = document[part]
        document[last] = value

    return change


WRONG_JSON = [
    (put("layers.0.gamma.values.1", "x"), r"layers\[0\]\.gamma\.values\[1\] is not a number"),
    (put("layers.0.gamma.values.1", True), r"layers\[0\]\.gamma\.values\[1\] is not a number"),
    (put("layers.0.gamma.values.1", None), r"layers\[0\]\.gamma\.values\[1\] is not a number"),
    (put("layers.0.gamma.values.1", [1]), r"layers\[0\]\.gamma\.values\[1\] is not a number"),
    (put("layers.0.gamma.values", [1, 2]), r"layers\[0\]\.gamma\.values has 2 elements"),
    (put("layers.0.gamma.values", 1), r"layers\[0\]\.gamma\.values has no elements"),
    (put("layers.0.gamma.shape", [4]), r"layers\[0\]\.gamma\.values has 3 elements"),
    (put("layers.0.gamma.shape", [-3]), r"layers\[0\]\.gamma\.shape is not a list of sizes"),
    (put("layers.0.gamma.shape", "3"), r"layers\[0\]\.gamma\.shape is not a list of sizes"),
    (put("layers.0.gamma.dtype", "string"), "a tensor of string"),
    (put("layers.0.gamma.dtype", 3), r"layers\[0\]\.gamma\.dtype is not text"),
    (put("layers.0.gamma", {"dtype": "float32"}), r"layers\[0\]\.gamma\.values is missing"),
    (put("layers.0.gamma", [1, 2, 3]), r"layers\[0\]\.gamma is not an object"),
    (put("layers.0.moving_men", None), r"layers\[0\]\.moving_men is not known"),
    (put("layers.0.name", 3), r"layers\[0\]\.name is not text"),
    (put("layers.1.name", "bn"), r"layers\[1\]\.name is the name of an earlier layer"),
    (put("layers.1.name", "br"), "br: m has no such batch-norm layer; near names: bn"),
    (put("layers.0", 1), r"layers\[0\] is not an object"),
    (put("layers", {}), "layers is not a list"),
    (put("schema", 2), "schema: is not 1"),
    (put("layers.0.gamma.values.1", 1e39), "bn, gamma, channel 1: 1e.39 is too large for float32"),
    (lambda document: {"a": 1}, "a is not known"),
    (lambda document: {}, "layers is not a list"),
]


@pytest.fixture
def two() -> Model:
    return two_layers()


@pytest.mark.parametrize(("change", "message"), WRONG_JSON)
def test_wrong_json(tmp_path: Path, two: Model, change: Any, message: str) -> None:
    path = edited(exported(two, "json", tmp_path), change)
    with pytest.raises(bnstat.BnstatError, match=message) as caught:
        fitted(two, path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is not JSON: .* in line 1"),
        ('{"layers": [{"name": "bn", "name": "bn"}]}', "'name' twice"),
        ('{"layers": [{"name": "bn", "gamma": {"values": [NaN, 1, 2]}}]}', "a bare NaN"),
        ('{"layers": ' + "[" * 100_000, "nested too deeply|is not JSON"),
        ('{"layers": []}', "has no values"),
        ('{"layers": [{"name": "bn", "gamma": {"values": ' + "[" * 70 + "1" + "]" * 70 + "}}]}",
         "gamma.values has too many dimensions"),
        ("{\"layers\": [{\"name\": \"b\udc80\"}]}", "is not UTF-8"),
    ],
)  # fmt: skip
def test_json_that_is_not_an_export(tmp_path: Path, two: Model, text: str, message: str) -> None:
    path = tmp_path / "v.json"
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(bnstat.BnstatError, match=message):
        fitted(two, path)


def test_a_document_by_hand(tmp_path: Path, two: Model) -> None:
    path = tmp_path / "any.name"
    path.write_text('{"layers": [{"name": "bn", "beta": {"values": [0.1, 2, "-Infinity"]}}]}')
    arrays = fitted(two, path)
    assert list(arrays) == ["bn/beta"]
    assert same_bits(arrays["bn/beta"], np.array([0.1, 2, -np.inf], np.float32))


HEAD = "layer,channel,gamma\n"
WRONG_CSV = [
    ("layer,channel,gama\nbn,0,1\n", "line 1: column 'gama' is not one of"),
    ("layer,channel,gamma,gamma\nbn,0,1,1\n", "line 1: has two columns 'gamma'"),
    (HEAD + "bn,0,1\nbn,1,x\nbn,2,1\n", "bn, gamma, channel 1: 'x' is not a number"),
    (HEAD + "bn,0,1\nbn,1,1_0\nbn,2,1\n", "'1_0' is not a number"),
    (HEAD + "bn,0,1\nbn,1,\nbn,2,1\n", "bn: gamma is empty in line 3"),
    (HEAD + "bn,0,1\nbn,2,1\n", "bn: channel 1 is missing"),
    (HEAD + "bn,0,1\nbn,0,1\n", "line 3: channel '0' is listed a second time"),
    (HEAD + "bn,0\n", "line 2: has 2 cells, but there are 3 columns"),
    (HEAD + "bn,x,1\n", "bn: 'x' is not a channel"),
    (HEAD + "bn,0:0,1\nbn,1,1\n", "some channels have more indices"),
    (HEAD + "bn,999999999:999999999,1\n", "claims"),
    (HEAD + "bn,0,1\nbn,1,1\n", r"bn, gamma: the values have shape \[2\]"),
    (HEAD + "br,0,1\n", "br: m has no such batch-norm layer"),
    (HEAD + 'bn,0,"1\n', "line 2: is not valid CSV"),
    (HEAD, "has no values"),
]


@pytest.mark.parametrize(("text", "message"), WRONG_CSV)
def test_wrong_csv(tmp_path: Path, two: Model, text: str, message: str) -> None:
    path = tmp_path / "values"
    path.write_text(text)
    with pytest.raises(bnstat.BnstatError, match=message):
        fitted(two, path)


def test_a_csv_in_any_order(tmp_path: Path, two: Model) -> None:
    path = tmp_path / "v.csv"
    path.write_text("\ufeffbeta,channel,layer\n3,2,bn\n1,0,bn\n 2 ,1,bn\n")
    assert fitted(two, path)["bn/beta"].tolist() == [1, 2, 3]


def write_npz(path: Path, members: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return path


def npy(array: Any) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


ONES = npy(np.ones(3, "f4"))
WRONG_NPZ = [
    ({"bn/gamma.npy": ONES, "bn/x.npy": ONES}, "bn/x: is not LAYER/ROLE"),
    ({"gamma.npy": ONES}, "gamma: is not LAYER/ROLE"),
    ({"bn/gamma.npy": npy(np.array([None, 1, 2]))}, "not numbers"),
    ({"bn/gamma.npy": ONES[:-1]}, "claims 3 elements, but has"),
    ({"bn/gamma.npy": b"junk"}, "is not a valid .npy"),
    ({"bn/gamma.npy": npy(np.ones(2, "f4"))}, r"have shape \[2\]"),
    ({"bn/gamma.npy": npy(np.ones(3, "c8"))}, "are not numbers"),
    ({"br/gamma.npy": ONES}, "br: m has no such batch-norm layer"),
    ({"bn/moving_mean.npy": ONES}, "bn: has no moving_mean in the model"),
    ({"bn/gamma.npy": ONES.replace(b"(3,)", b"(3000000000000,)")}, "claims|damaged"),
]


@pytest.mark.parametrize(("members", "message"), WRONG_NPZ)
def test_wrong_npz(tmp_path: Path, two: Model, members: Any, message: str) -> None:
    with pytest.raises(bnstat.BnstatError, match=message):
        fitted(two, write_npz(tmp_path / "v.npz", members))


def test_npz_of_other_orders(tmp_path: Path) -> None:
    array = np.arange(6, dtype=">f4").reshape(2, 3)
    of = model(layer("bn", gamma=np.zeros((2, 3), "f4")))
    np.savez_compressed(tmp_path / "v.npz", **{"bn/gamma": np.asfortranarray(array)})
    assert same_bits(fitted(of, tmp_path / "v.npz")["bn/gamma"], array.astype("f4"))


def test_files_without_values(tmp_path: Path) -> None:
    (tmp_path / "v.txt").write_text("hello")
    with pytest.raises(
        bnstat.UnknownFormatError, match="contains no values; pass a file that bnstat export"
    ):
        read_values(str(tmp_path / "v.txt"))
    with pytest.raises(bnstat.NotFoundError):
        read_values(str(tmp_path / "nothing"))
