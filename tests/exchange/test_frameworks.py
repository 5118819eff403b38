"""Exports with the names and in the formats of other frameworks, read by their libraries."""

from __future__ import annotations

import io
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

import bnstat
from bnstat.errors import BnstatError, UnsupportedError
from bnstat.exchange.naming import NAMINGS, ExportOptions
from bnstat.model import ROLES
from tests.builders.oracle import same_bits
from tests.mending.exported import dumped, exported
from tests.output.models import layer, model, usual

TWO = model(
    usual("block1/bn", 5, seed=1, epsilon=1e-3, momentum=0.99),
    usual("block2/bn", 3, seed=2, epsilon=1e-3, momentum=0.99),
)
PYTORCH = ("weight", "bias", "running_mean", "running_var")


@pytest.mark.parametrize("names", NAMINGS)
@pytest.mark.parametrize("kind", ["safetensors", "npz"])
def test_exports_are_loaded_as_the_same_layers(names: str, kind: str, tmp_path: Path) -> None:
    read = bnstat.load(exported(TWO, kind, tmp_path, ExportOptions(names)))
    for each, other in zip(TWO, read, strict=True):
        assert all(same_bits(other.array(role), each.array(role)) for role in ROLES)


def test_safetensors_as_their_own_library_reads_them() -> None:
    library = pytest.importorskip("safetensors.numpy")
    read = library.load(dumped(TWO, "safetensors", ExportOptions("pytorch")))
    assert set(read) == {f"block{n}.bn.{part}" for n in (1, 2) for part in PYTORCH}
    for number, each in enumerate(TWO, 1):
        for role, part in zip(ROLES, PYTORCH, strict=True):
            assert same_bits(read[f"block{number}.bn.{part}"], each.array(role))


@pytest.mark.parametrize("dtype", [np.float16, ">f4", np.float64, ml_dtypes.bfloat16])
def test_safetensors_of_every_float(dtype: object, tmp_path: Path) -> None:
    array = np.array([0.1, -3, np.inf, np.nan]).astype(dtype)
    of = model(layer("bn", {"moving_mean": array, "moving_variance": array}))
    (read,) = bnstat.load(exported(of, "safetensors", tmp_path))
    native = array.astype(array.dtype.newbyteorder("=")) if dtype == ">f4" else array
    assert same_bits(read.moving_mean, native)


def test_safetensors_has_no_other_types() -> None:
    odd = model(layer("bn", {"moving_mean": np.zeros(2, ml_dtypes.float8_e4m3b11fnuz)}))
    with pytest.raises(UnsupportedError, match="float8_e4m3b11fnuz"):
        dumped(odd, "safetensors")


def test_torch_loads_them_into_the_port(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    library = pytest.importorskip("safetensors.torch")
    path = exported(TWO, "safetensors", tmp_path, ExportOptions("pytorch"))
    blocks = [
        torch.nn.ModuleDict({"bn": torch.nn.BatchNorm2d(channels, eps=1e-3)}) for channels in (5, 3)
    ]
    port = torch.nn.ModuleDict({f"block{n}": block for n, block in enumerate(blocks, 1)})
    result = port.load_state_dict(library.load_file(path), strict=False)
    assert result.unexpected_keys == []
    assert not [key for key in result.missing_keys if "num_batches" not in key]
    x = np.random.default_rng(0).normal(size=(2, 5, 4, 4)).astype(np.float32)
    given = port.eval()["block1"]["bn"](torch.from_numpy(x)).detach().numpy()
    np.testing.assert_allclose(given, TWO[0].normalize(x, axis=1), rtol=1e-5, atol=1e-6)


def test_parquet_as_its_library_reads_it() -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    without = layer("c", {role: TWO[1].array(role) for role in ROLES[1:]})
    content = dumped(model(*TWO, without), "parquet", ExportOptions("pytorch"))
    table = parquet.read_table(io.BytesIO(content)).to_pydict()
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
