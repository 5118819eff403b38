"""Values from exports and from memory are read exactly, or refused with the place of the error."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Callable
from functools import reduce
from operator import getitem
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

import bnstat
from bnstat.exchange.decimals import nearest
from bnstat.exchange.naming import NAMINGS, ExportOptions
from bnstat.exchange.registry import FORMATS, read_values
from bnstat.exchange.values import document_of
from bnstat.model import Model
from tests.builders.oracle import same_bits
from tests.mending.exported import dtype, exported, fitted, layer, model

TYPES = ("float32", "float64", "float16", "bfloat16", "float8_e5m2", "float8_e4m3fn")


FORMS = [row.name for row in FORMATS if not row.is_model]
WITH_EVERY_SHAPE = ("json", "npz")
NAMES = ("a/bn", "=1+1", "\u0000x", "new\nline", "caf\u00e9", "\ud800", 'say "no", twice', "'q")


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", TYPES)
def test_a_round_trip_keeps_the_bits(tmp_path: Path, form: str, kind: str) -> None:
    random = np.random.default_rng(2)
    bits = random.integers(0, 256, 60 * dtype(kind).itemsize, np.uint8)
    array = bits.view(dtype(kind))
    with np.errstate(invalid="ignore"):
        array = np.where(np.isnan(array.astype(np.float64)), dtype(kind).type(1), array)
    array[:3] = [0.0, -0.0, 0.1]
    of = model(*(layer(name, gamma=array, moving_mean=array[::-1]) for name in NAMES))
    found = fitted(of, exported(of, form, tmp_path))
    assert set(found) == {f"{name}/{role}" for name in NAMES for role in ("gamma", "moving_mean")}
    for name in NAMES:
        assert same_bits(found[f"{name}/gamma"], array)
        assert same_bits(found[f"{name}/moving_mean"], np.ascontiguousarray(array[::-1]))


@pytest.mark.parametrize("names", NAMINGS)
def test_named_arrays_of_every_naming(names: str) -> None:
    of = model(layer("a/bn", gamma=np.ones(2, "f4"), moving_mean=np.zeros(2, "f4")))
    options = ExportOptions(names)
    document = document_of(dict(options.arrays(of.layers)), "v")
    assert fitted(of, document).keys() == {"a/bn/gamma", "a/bn/moving_mean"}


def test_named_arrays_that_are_no_roles() -> None:
    ones = np.ones(2)
    with pytest.raises(bnstat.UnsupportedError, match="exported with --folded"):
        document_of({"a/scale": ones, "a/shift": ones}, "v")
    with pytest.raises(bnstat.DamagedError, match="v, a/x: is not named LAYER/ROLE"):
        document_of({"a/gamma": ones, "a/x": ones}, "v")


BITS = np.array([0x7FC00000, 0xFFC00000, 0x7FC00001, 0x7F800000, 0xFF800000, 0], np.uint32)
SHAPES = [(1, 1, 1, 4), (2, 3), (1, 2, 3), (1,), (4, 1), (0,), ()]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    "array",
    [BITS.view(np.float32), *(np.random.default_rng(0).random(shape, "f4") for shape in SHAPES)],
)
def test_nan_and_every_shape(tmp_path: Path, form: str, array: Any) -> None:
    other = layer("other", gamma=np.ones(2, np.float32), beta=np.arange(3, dtype="f4"))
    if form not in WITH_EVERY_SHAPE and (not array.size or not array.ndim):
        pytest.skip("tables have no rows for empty arrays, and no channels for scalars")
    of = model(layer("bn", gamma=array), other)
    found = fitted(of, exported(of, form, tmp_path))
    assert same_bits(found["bn/gamma"], np.asarray(array))
    assert same_bits(found["other/beta"], np.asarray(other.beta))


@settings(max_examples=100, deadline=None)
@given(st.floats(allow_nan=False, allow_infinity=False))
@example(9.85916596e307)
@example(-1.7976931348623157e308)
def test_any_float64_through_text(number: float) -> None:
    text = np.array([repr(number)], object)
    np.testing.assert_array_equal(nearest(text, np.dtype(np.float64), ""), [number])


@pytest.mark.parametrize("dtype", [np.int64, np.uint64, np.int8])
@pytest.mark.parametrize("form", ["json", "csv"])
def test_integers_that_float64_rounds(dtype: Any, form: Any, tmp_path: Path) -> None:
    limits = np.iinfo(dtype)
    array = np.array([limits.min, limits.max, limits.max - 1], dtype)
    of = model(layer("bn", gamma=array))
    assert same_bits(fitted(of, exported(of, form, tmp_path))["bn/gamma"], array)


@pytest.mark.parametrize("text", ["1.5", "128", "NaN", "1" * 5000])
def test_texts_that_are_no_integers(text: str) -> None:
    with pytest.raises(bnstat.DamagedError, match=r"bn, channel 1: .* not an integer of type int8"):
        nearest(np.array(["1", text], object), np.dtype(np.int8), "bn")


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 2**31 - 1), st.sampled_from([-1, 0, 1]))
def test_decimals_near_the_middle_of_two_floats(bits: int, side: int) -> None:
    """Those next to the middle by less than float64 tells apart go to their own side."""
    from fractions import Fraction

    low = np.uint32(bits).view(np.float32)
    high = np.uint32(bits + 1).view(np.float32)
    if not (np.isfinite(low) and np.isfinite(high)):
        return
    middle = (Fraction(float(low)) + Fraction(float(high))) / 2
    number = middle + side * Fraction(1, 10**60) * middle
    digits = 200
    scaled = number * 10**digits
    text = f"{scaled.numerator // scaled.denominator}e-{digits}"
    if scaled.denominator != 1 or len(text) > 900:
        return
    found = nearest(np.array([text], object), np.dtype(np.float32), "")[0]
    even = low if bits % 2 == 0 else high
    assert found == {-1: low, 0: even, 1: high}[side]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (np.array([1, 0.1, 2], np.float32), r"bn, gamma, channel 1: float16 .* 0\.1 exactly"),
        (np.array([1, 2, 1e6], np.float32), "channel 2"),
        ([1, 2049, 3], "2049"),
        (np.array(["a", "b", "c"]), "are not numbers"),
    ],
)
def test_numbers_that_are_not_of_the_stored_type(values: Any, message: str) -> None:
    of = model(layer("bn", gamma=np.ones(3, np.float16)))
    with pytest.raises(bnstat.UnsupportedError, match=message):
        fitted(of, {"bn": {"gamma": values}})


def test_numbers_of_another_type_that_are_exact() -> None:
    of = model(layer("bn", gamma=np.ones(3, np.float16), beta=np.ones(3, np.float16)))
    exact = np.array([0.5, np.inf, np.nan])
    found = fitted(of, {"bn": {"gamma": exact, "beta": [1, 2, 3]}})
    assert same_bits(found["bn/gamma"], exact.astype(np.float16))
    assert found["bn/beta"].tolist() == [1, 2, 3]
    assert fitted(of, {"bn": {"gamma": [1, 2, 3], "beta": None}}).keys() == {"bn/gamma"}


@pytest.mark.parametrize("form", FORMS)
def test_a_document_of_a_wider_type(form: str, tmp_path: Path) -> None:
    wide = model(layer("bn", gamma=np.array([0.97563636, 1], np.float32)))
    narrow = model(layer("bn", gamma=np.ones(2, dtype("bfloat16"))))
    with pytest.raises(bnstat.UnsupportedError, match="bn, gamma, channel 0"):
        fitted(narrow, exported(wide, form, tmp_path))


@pytest.fixture
def two() -> Model:
    """Return two layers of three channels, each with gamma and beta."""
    arrays = {"gamma": np.arange(3, dtype="f4"), "beta": np.ones(3, "f4")}
    return model(layer("bn", **arrays), layer("other", **arrays))


def put(at: str, value: Any) -> Callable[[Any], Any]:
    """Return a function that replaces a value in a document."""

    def change(document: Any) -> Any:
        *path, last = [int(part) if part.isdigit() else part for part in at.split(".")]
        reduce(getitem, path, document)[last] = value
        return document

    return change


VALUES, SHAPE = r"layers\[0\]\.gamma\.values", r"layers\[0\]\.gamma\.shape"
WRONG_JSON = [
    *((put("layers.0.gamma.values.1", value), rf"{VALUES}\[1\] is not a number")
      for value in ("x", True, None, [1])),
    (put("layers.0.gamma.values", [1, 2]), f"{VALUES} has 2 elements"),
    (put("layers.0.gamma.values", 1), f"{VALUES} has no elements"),
    (put("layers.0.gamma.shape", [4]), f"{VALUES} has 3 elements"),
    # A claim of 2**60 bytes is refused before memory is reserved, a larger claim at once.
    (put("layers.0.gamma.shape", [1 << 58]), f"{VALUES} has 3 elements, but the shape requires"),
    (put("layers.0.gamma.shape", [1 << 59]), f"{SHAPE} is not a list of sizes that an array can"),
    (put("layers.0.gamma.shape", [1 << 60, 1 << 60, 0]), f"{SHAPE} is not a list of sizes"),
    (put("layers.0.gamma.shape", [-3]), f"{SHAPE} is not a list of sizes"),
    ('{"layers": [{"name": "bn", "gamma": {"shape": [' + "9" * 5000 + '], "values": []}}]}', SHAPE),
    (put("layers.0.gamma.shape", "3"), f"{SHAPE} is not a list of sizes"),
    (put("layers.0.gamma.dtype", "string"), "elements of type string"),
    (put("layers.0.gamma.dtype", 3), r"layers\[0\]\.gamma\.dtype is not text"),
    (put("layers.0.gamma", {"dtype": "float32"}), f"{VALUES} is missing"),
    (put("layers.0.gamma", [1, 2, 3]), r"layers\[0\]\.gamma is not an object"),
    (put("layers.0.moving_men", None), r"layers\[0\]\.moving_men is not a known member"),
    (put("layers.0.name", 3), r"layers\[0\]\.name is not text"),
    (put("layers.1.name", "bn"), r"layers\[1\]\.name is the name of an earlier layer"),
    (put("layers.1.name", "br"), "br: m has no batch-norm layer of this name; near names: bn"),
    (put("layers.0", 1), r"layers\[0\] is not an object"),
    (put("layers", {}), "layers is not a list"),
    (put("schema", 2), "schema is not 1"),
    (put("layers.0.gamma.values.1", 1e39), "bn, gamma, channel 1: 1e.39 is too large for float32"),
    ('{"a": 1}', "a is not a known member"),
    ("{}", "layers is not a list"),
    ("{", "is not JSON: .* in column 2$"),
    ("{\n{", "is not JSON: .* in line 2, column 1$"),
    ('{"layers": [{"name": "bn", "name": "bn"}]}', "'name' twice"),
    ('{"layers": [{"name": "bn", "gamma": {"values": [NaN, 1, 2]}}]}', "NaN without quotes"),
    ('{"layers": ' + "[" * 100_000, "nested too deeply|is not JSON"),
    ('{"layers": []}', "has no values"),
    ('{"layers": [{"name": "bn", "gamma": {"values": ' + "[" * 70 + "1" + "]" * 70 + "}}]}",
     "gamma.values has too many dimensions"),
    ("{\"layers\": [{\"name\": \"b\udc80\"}]}", "is not UTF-8"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("text", "beta"),
    [
        ('{"layers": [{"name": "bn", "beta": {"values": [0.1, 2, "-Infinity"]}}]}',
         [0.1, 2, -np.inf]),
        ("\ufeffbeta,channel,layer\n3,2,bn\n1,0,bn\n 2 ,1,bn\n", [1, 2, 3]),
    ],
)  # fmt: skip
def test_a_document_by_hand(text: str, beta: list[float], tmp_path: Path, two: Model) -> None:
    path = tmp_path / "any.name"
    path.write_text(text)
    ((key, array),) = fitted(two, path).items()
    assert key == "bn/beta"
    assert same_bits(array, np.array(beta, np.float32))


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
    (HEAD + "bn,0:0,1\nbn,1,1\n", "some channels have more indices than others"),
    (HEAD + "bn,999999999:999999999,1\n", "too many to read"),
    (HEAD + "bn,0,1\nbn,1,1\n", r"bn, gamma: the new values have shape \[2\]"),
    (HEAD + "br,0,1\n", "br: m has no batch-norm layer of this name"),
    (HEAD + 'bn,0,"1\n', "line 2: is not valid CSV"),
    (HEAD, "has no values"),
]


def npy(array: Any) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


ONES = npy(np.ones(3, "f4"))
WRONG_NPZ = [
    ({"bn/gamma.npy": ONES, "bn/x.npy": ONES}, "bn/x: is not named LAYER/ROLE"),
    ({"gamma.npy": ONES}, "gamma: is not named LAYER/ROLE"),
    ({"bn/gamma.npy": npy(np.array([None, 1, 2]))}, "not numbers"),
    ({"bn/gamma.npy": ONES[:-1]}, "claims 3 elements, but has"),
    ({"bn/gamma.npy": b"junk"}, "is not a valid .npy"),
    ({"bn/gamma.npy": npy(np.ones(2, "f4"))}, r"have shape \[2\]"),
    ({"bn/gamma.npy": npy(np.ones(3, "c8"))}, "are not numbers"),
    ({"br/gamma.npy": ONES}, "br: m has no batch-norm layer of this name"),
    ({"bn/moving_mean.npy": ONES}, "bn: has no moving_mean in the model"),
    ({"bn/gamma.npy": ONES.replace(b"(3,)", b"(3000000000000,)")}, "claims|damaged"),
]


@pytest.mark.parametrize(("values", "message"), [*WRONG_JSON, *WRONG_CSV, *WRONG_NPZ])
def test_wrong_values(tmp_path: Path, two: Model, values: Any, message: str) -> None:
    path = tmp_path / "values"
    if callable(values):
        values = json.dumps(values(json.loads(exported(two, "json", tmp_path).read_text())))
    if isinstance(values, str):
        path.write_bytes(values.encode("utf-8", "surrogateescape"))
    else:
        with zipfile.ZipFile(path, "w") as archive:
            for name, data in values.items():
                archive.writestr(name, data)
    with pytest.raises(bnstat.BnstatError, match=message) as caught:
        fitted(two, path)
    assert "\n" not in str(caught.value)


def test_npz_of_other_orders(tmp_path: Path) -> None:
    array = np.arange(6, dtype=">f4").reshape(2, 3)
    of = model(layer("bn", gamma=np.zeros((2, 3), "f4")))
    np.savez_compressed(tmp_path / "v.npz", **{"bn/gamma": np.asfortranarray(array)})
    assert same_bits(fitted(of, tmp_path / "v.npz")["bn/gamma"], array.astype("f4"))


def test_files_without_values(tmp_path: Path) -> None:
    (tmp_path / "v.txt").write_text("hello")
    with pytest.raises(bnstat.UnknownFormatError, match="no values; pass a file that bnstat expo"):
        read_values(str(tmp_path / "v.txt"))
    with pytest.raises(bnstat.NotFoundError):
        read_values(str(tmp_path / "nothing"))
