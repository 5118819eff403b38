"""Exports with the names and in the formats of other frameworks, read by their libraries."""

from __future__ import annotations

import io
import json
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

import bnstat
from bnstat.errors import BnstatError, UnsupportedError
from bnstat.exchange import csv as csv_output
from bnstat.exchange import json as json_output
from bnstat.exchange import npz as npz_output
from bnstat.exchange import parquet as parquet_output
from bnstat.exchange import safetensors as safetensors_output
from bnstat.exchange.naming import NAMINGS, ExportOptions
from bnstat.model import ROLES, Model
from tests.output.models import layer, model, usual

TWO = model(
    usual("block1/bn", 5, seed=1, epsilon=1e-3, momentum=0.99),
    usual("block2/bn", 3, seed=2, epsilon=1e-3, momentum=0.99),
)
PYTORCH = ("weight", "bias", "running_mean", "running_var")


def safetensors_of(of: Model, form: ExportOptions) -> bytes:
    file = io.BytesIO()
    safetensors_output.dump(of, file, form)
    return file.getvalue()


def json_of(of: Model, form: ExportOptions) -> dict:
    file = io.StringIO()
    json_output.dump(of, file, form)
    return json.loads(file.getvalue())


@pytest.mark.parametrize("names", NAMINGS)
@pytest.mark.parametrize("kind", ["safetensors", "npz"])
def test_exports_are_read_back_as_the_same_layers(names: str, kind: str, tmp_path: Path) -> None:
    path = tmp_path / f"m.{kind}"
    with path.open("wb") as file:
        dump = safetensors_output.dump if kind == "safetensors" else npz_output.dump
        dump(TWO, file, ExportOptions(names))
    read = bnstat.load(path)
    difference = bnstat.diff(TWO, read)
    assert difference.equal, difference
    assert len(read) == 2
    for each, other in zip(TWO, read, strict=True):
        for role in ROLES:
            assert each.array(role).tobytes() == other.array(role).tobytes()


def test_safetensors_as_their_own_library_reads_them() -> None:
    library = pytest.importorskip("safetensors.numpy")
    read = library.load(safetensors_of(TWO, ExportOptions("pytorch")))
    assert set(read) == {f"block{n}.bn.{part}" for n in (1, 2) for part in PYTORCH}
    for number, each in enumerate(TWO, 1):
        for role, part in zip(ROLES, PYTORCH, strict=True):
            assert read[f"block{number}.bn.{part}"].tobytes() == each.array(role).tobytes()


@pytest.mark.parametrize("dtype", [np.float16, ">f4", np.float64, ml_dtypes.bfloat16])
def test_safetensors_of_every_float(dtype: object, tmp_path: Path) -> None:
    array = np.array([0.1, -3, np.inf, np.nan]).astype(dtype)
    stats = {"moving_mean": array, "moving_variance": array}
    (tmp_path / "m.safetensors").write_bytes(
        safetensors_of(model(layer("bn", stats)), ExportOptions())
    )
    (read,) = bnstat.load(tmp_path / "m.safetensors")
    native = array.astype(array.dtype.newbyteorder("=")) if dtype == ">f4" else array
    assert read.moving_mean.tobytes() == native.tobytes()


def test_safetensors_has_no_other_types() -> None:
    odd = model(layer("bn", {"moving_mean": np.zeros(2, ml_dtypes.float8_e4m3b11fnuz)}))
    with pytest.raises(UnsupportedError, match="float8_e4m3b11fnuz"):
        safetensors_of(odd, ExportOptions())


def test_torch_loads_them_into_the_port(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    library = pytest.importorskip("safetensors.torch")
    (tmp_path / "m.safetensors").write_bytes(safetensors_of(TWO, ExportOptions("pytorch")))
    port = torch.nn.ModuleDict(
        {
            f"block{number}": torch.nn.ModuleDict(
                {
                    "conv": torch.nn.Conv2d(2, channels, 3),
                    "bn": torch.nn.BatchNorm2d(channels, eps=1e-3),
                }
            )
            for number, channels in ((1, 5), (2, 3))
        }
    )
    result = port.load_state_dict(library.load_file(tmp_path / "m.safetensors"), strict=False)
    assert result.unexpected_keys == []
    assert not [key for key in result.missing_keys if ".bn." in key and "num_batches" not in key]
    x = np.random.default_rng(0).normal(size=(2, 5, 4, 4)).astype(np.float32)
    given = port.eval()["block1"]["bn"](torch.from_numpy(x)).detach().numpy()
    np.testing.assert_allclose(given, TWO[0].normalize(x, axis=1), rtol=1e-5, atol=1e-6)


def test_momentum_is_that_of_the_framework() -> None:
    def momentum(names: str | None) -> float:
        return json_of(TWO, ExportOptions(names))["layers"][0]["momentum"]

    assert momentum("pytorch") == 0.01
    assert {momentum(names) for names in (None, "keras", "onnx", "flax")} == {0.99}


def test_json_names_tensors_and_layers() -> None:
    document = json_of(TWO, ExportOptions("pytorch"))
    assert document["names"] == "pytorch"
    first = document["layers"][0]
    assert first["name"] == "block1.bn"
    assert first["moving_variance"]["name"] == "block1.bn.running_var"
    assert first["moving_variance"]["variable"] == "block1/bn/moving_variance"


@pytest.mark.parametrize(
    "form",
    [ExportOptions("flax"), ExportOptions(folded=True), ExportOptions("pytorch", folded=True)],
)
def test_json_is_as_its_schema_says(form: ExportOptions) -> None:
    jsonschema = pytest.importorskip("jsonschema")
    schema = json.loads(Path(json_output.__file__).with_name("schema.json").read_text())
    jsonschema.Draft202012Validator(schema).validate(json_of(TWO, form))


def test_csv_columns() -> None:
    def header(form: ExportOptions) -> str:
        file = io.StringIO()
        csv_output.dump(TWO, file, form)
        return file.getvalue().splitlines()[0]

    assert header(ExportOptions("pytorch")) == "layer,channel,weight,bias,running_mean,running_var"
    assert header(ExportOptions("onnx")) == "layer,channel,scale,B,input_mean,input_var"
    assert header(ExportOptions("flax")) == "layer,channel,scale,bias,mean,var"
    assert header(ExportOptions(folded=True)) == "layer,channel,scale,shift"


def test_folded_is_scale_and_shift() -> None:
    file = io.BytesIO()
    npz_output.dump(TWO, file, ExportOptions(folded=True))
    read = np.load(io.BytesIO(file.getvalue()), allow_pickle=False)
    scale, shift = TWO[1].scale_and_shift()
    assert sorted(read) == [f"block{n}/bn/{part}" for n in (1, 2) for part in ("scale", "shift")]
    np.testing.assert_array_equal(read["block2/bn/scale"], scale)
    np.testing.assert_array_equal(read["block2/bn/shift"], shift)


def test_folded_needs_an_epsilon() -> None:
    unknown = model(usual("bn", 3))
    with pytest.raises(BnstatError, match="--epsilon"):
        json_of(unknown, ExportOptions(folded=True))
    (folded,) = json_of(unknown, ExportOptions(folded=True, epsilon=0.5))["layers"]
    assert folded["epsilon"] == 0.5
    scale, _ = unknown[0].scale_and_shift(0.5)
    np.testing.assert_array_equal(np.float32(folded["scale"]["values"]), scale)


def test_parquet_as_its_library_reads_it() -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    without = layer("c", {role: TWO[1].array(role) for role in ROLES[1:]})
    file = io.BytesIO()
    parquet_output.dump(model(*TWO, without), file, ExportOptions("pytorch"))
    table = parquet.read_table(io.BytesIO(file.getvalue())).to_pydict()
    assert list(table) == ["layer", "channel", *PYTORCH]
    assert table["layer"] == ["block1.bn"] * 5 + ["block2.bn"] * 3 + ["c"] * 3
    assert table["channel"][5:] == ["0", "1", "2"] * 2
    assert table["weight"][8:] == [None] * 3
    read = np.array(table["running_var"][:5], np.float32)
    np.testing.assert_array_equal(read, TWO[0].moving_variance)


def test_two_layers_of_one_name_are_refused() -> None:
    alike = model(usual("a/bn"), usual("a.bn", seed=1))
    ExportOptions("keras").check(alike.layers)
    with pytest.raises(BnstatError, match="name of two layers"):
        ExportOptions("pytorch").check(alike.layers)
