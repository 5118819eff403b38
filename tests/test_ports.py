"""One network through the formats that it is ported to: every pair compared, each verdict right."""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import combinations, permutations
from pathlib import Path

import keras
import numpy as np
import pytest

import bnstat
from bnstat.exchange import safetensors
from bnstat.exchange.naming import ExportOptions
from bnstat.model import ROLES, Model

onnx = pytest.importorskip("onnx", reason="the onnx package writes the ONNX files")
torch = pytest.importorskip("torch", reason="torch writes the state dict")

EPSILON = 2e-3
CHANNELS = (6, 12, 5)
TORCH = dict(zip(ROLES, ("weight", "bias", "running_mean", "running_var"), strict=True))
Arrays = dict[str, np.ndarray]


def network() -> keras.Model:
    keras.utils.set_random_seed(3)
    model = keras.Sequential([keras.Input((8, 8, 3))])
    for number, channels in enumerate(CHANNELS):
        model.add(keras.layers.Conv2D(channels, 3, use_bias=number != 1, name=f"conv{number}"))
        model.add(keras.layers.BatchNormalization(epsilon=EPSILON, name=f"bn{number}"))
    random = np.random.default_rng(4)
    model.set_weights(
        [random.uniform(0.1, 2, each.shape).astype(np.float32) for each in model.get_weights()]
    )
    return model


def arrays_of(model: keras.Model) -> Arrays:
    return {
        f"{layer.name}/{w.name}": np.asarray(w) for layer in model.layers for w in layer.weights
    }


def effect(arrays: Arrays, number: int) -> tuple[np.ndarray, np.ndarray]:
    gamma, beta, mean, variance = (arrays[f"bn{number}/{role}"] for role in ROLES)
    scale = gamma / np.sqrt(variance + np.float32(EPSILON))
    return scale, beta - mean * scale


def write_onnx(path: Path, arrays: Arrays, how: str) -> Path:
    """As converters write it: as it is, rewritten to mean 0 and variance 1, or folded."""
    nodes, tensors, x = [], [], "x"
    for number, channels in enumerate(CHANNELS):
        kernel = arrays[f"conv{number}/kernel"].transpose(3, 2, 0, 1)
        bias = arrays.get(f"conv{number}/bias", np.zeros(channels, np.float32))
        scale, shift = effect(arrays, number)
        if how == "folded":
            kernel = kernel * scale.reshape(-1, 1, 1, 1)
            bias = bias * scale + shift
        held = {f"w{number}": kernel, f"b{number}": bias}
        nodes.append(onnx.helper.make_node("Conv", [x, *held], [f"c{number}"]))
        x = f"c{number}"
        if how != "folded":
            values = [arrays[f"bn{number}/{role}"] for role in ROLES]
            epsilon = EPSILON
            if how == "rewritten":
                values = [scale, shift, np.zeros_like(scale), np.ones_like(scale)]
                epsilon = 1e-9
            held |= {f"n{number}_{place}": array for place, array in enumerate(values)}
            names = [f"n{number}_{place}" for place in range(4)]
            nodes.append(
                onnx.helper.make_node(
                    "BatchNormalization", [x, *names], [f"y{number}"], epsilon=epsilon
                )
            )
            x = f"y{number}"
        tensors += [onnx.numpy_helper.from_array(array, name) for name, array in held.items()]
    info = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(nodes, "g", [info("x", 1, None)], [info(x, 1, None)], tensors)
    path.write_bytes(onnx.helper.make_model(graph).SerializeToString())
    return path


def write_torch(path: Path, arrays: Arrays) -> Path:
    state = {}
    for number in range(len(CHANNELS)):
        kernel = arrays[f"conv{number}/kernel"].transpose(3, 2, 0, 1)
        state[f"features.{2 * number}.weight"] = torch.from_numpy(kernel.copy())
        for role, name in TORCH.items():
            array = arrays[f"bn{number}/{role}"].copy()
            state[f"features.{2 * number + 1}.{name}"] = torch.from_numpy(array)
    torch.save(state, path)
    return path


def write_tfjs(folder: Path, model: keras.Model) -> Path:
    folder.mkdir()
    arrays = arrays_of(model)
    data = b"".join(array.tobytes() for array in arrays.values())
    (folder / "weights.bin").write_bytes(data)
    entries = [
        {"name": name, "shape": list(array.shape), "dtype": "float32"}
        for name, array in arrays.items()
    ]
    topology = {"model_config": json.loads(model.to_json())}
    manifest = [{"paths": ["weights.bin"], "weights": entries}]
    document = {"format": "layers-model", "modelTopology": topology, "weightsManifest": manifest}
    (folder / "model.json").write_text(json.dumps(document))
    return folder


@pytest.fixture(scope="module")
def ports(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Model]:
    folder, model = tmp_path_factory.mktemp("ports"), network()
    arrays = arrays_of(model)
    model.save(folder / "m.keras")
    model.export(folder / "saved_model", verbose=False)
    paths = {
        "keras": folder / "m.keras",
        "saved-model": folder / "saved_model",
        "onnx": write_onnx(folder / "m.onnx", arrays, "plain"),
        "pytorch": write_torch(folder / "m.pt", arrays),
        "tfjs": write_tfjs(folder / "tfjs", model),
        "safetensors": folder / "m.safetensors",
        "rewritten": write_onnx(folder / "r.onnx", arrays, "rewritten"),
        "folded": write_onnx(folder / "f.onnx", arrays, "folded"),
    }
    with paths["safetensors"].open("wb") as file:
        safetensors.dump(bnstat.load(paths["pytorch"]), file, ExportOptions("pytorch"))
    return {name: bnstat.load(path) for name, path in paths.items()}


SAME = ("keras", "saved-model", "onnx", "pytorch", "tfjs", "safetensors")


@pytest.mark.parametrize(("one", "other"), [*combinations(SAME, 2)])
def test_the_same(one: str, other: str, ports: dict[str, Model]) -> None:
    difference = bnstat.diff(ports[one], ports[other])
    assert [layer.verdict for layer in difference.layers] == ["same"] * 3
    assert difference.equal


@pytest.mark.parametrize("one", SAME)
def test_the_same_in_effect(one: str, ports: dict[str, Model]) -> None:
    for pair in permutations((ports[one], ports["rewritten"])):
        difference = bnstat.diff(*pair, epsilon=EPSILON)
        assert [layer.verdict for layer in difference.layers] == ["same-effect"] * 3
        assert difference.equivalent


# The safetensors, an export of batch norm, have no convolutions.
@pytest.mark.parametrize("one", [*SAME[:-1], "rewritten"])
def test_folded(one: str, ports: dict[str, Model]) -> None:
    has_biases = one != "pytorch"
    for pair in permutations((ports[one], ports["folded"])):
        difference = bnstat.diff(*pair, epsilon=EPSILON)
        proven = [(each.into, each.bias) for each in difference.folded]
        if has_biases:
            assert proven == [(f"w{number}", f"b{number}") for number in range(3)]
            assert difference.equivalent
        else:
            # Only where the original's bias is in its file is the sum of the two proven.
            assert proven == [("w1", "b1")]
            assert not difference.equivalent


@pytest.mark.parametrize("one", SAME)
@pytest.mark.parametrize("name", ["onnx", "rewritten"])
def test_a_dropped_layer(one: str, name: str, ports: dict[str, Model]) -> None:
    other = ports[name]
    kept = other.select([other[0], other[2]])
    difference = bnstat.diff(ports[one], kept, epsilon=EPSILON)
    assert difference.removed == (ports[one][1].name,)
    assert difference.added == difference.folded == ()
    assert {layer.verdict for layer in difference.layers} <= {"same", "same-effect"}
    assert len(difference.layers) == 2
    assert not difference.equivalent


@pytest.mark.parametrize("one", ["keras", "saved-model", "onnx", "tfjs"])
@pytest.mark.parametrize("how", ["plain", "rewritten", "folded"])
def test_another_epsilon(
    one: str,
    how: str,
    ports: dict[str, Model],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    arrays = arrays_of(network())
    monkeypatch.setattr("tests.test_ports.EPSILON", 1e-5)
    other = bnstat.load(write_onnx(tmp_path / "m.onnx", arrays, how))
    difference = bnstat.diff(ports[one], other)
    assert not difference.equivalent
    if how == "folded":
        assert len(difference.removed) == 3
    else:
        causes = [[cause.kind for cause in layer.causes] for layer in difference.layers]
        assert causes == [["epsilon"]] * 3


def _one_channel(arrays: Arrays) -> None:
    arrays["bn1/gamma"] = arrays["bn1/gamma"].copy()
    arrays["bn1/gamma"][2] += np.float32(1e-3)


def _swapped(arrays: Arrays) -> None:
    mean, variance = arrays["bn1/moving_mean"], arrays["bn1/moving_variance"]
    arrays["bn1/moving_mean"], arrays["bn1/moving_variance"] = variance, mean


def _unbiased(arrays: Arrays) -> None:
    arrays["bn1/moving_variance"] = arrays["bn1/moving_variance"] * np.float32(32 / 31)


@pytest.mark.parametrize("one", SAME)
@pytest.mark.parametrize("how", ["plain", "rewritten"])
@pytest.mark.parametrize(
    ("change", "kind"),
    [(_one_channel, "channels"), (_swapped, "swapped"), (_unbiased, "unbiased-variance")],
)
def test_what_is_off_is_named(
    change: Callable[[Arrays], None],
    kind: str,
    how: str,
    one: str,
    ports: dict[str, Model],
    tmp_path: Path,
) -> None:
    arrays = {
        f"bn{number}/{role}": ports["keras"][number].array(role)
        for number in range(3)
        for role in ROLES
    }
    arrays |= {f"conv{n}/kernel": np.ones((3, 3, 2, c), np.float32) for n, c in enumerate(CHANNELS)}
    change(arrays)
    other = bnstat.load(write_onnx(tmp_path / "m.onnx", arrays, how))
    difference = bnstat.diff(ports[one], other, epsilon=EPSILON)
    verdicts = [layer.verdict for layer in difference.layers]
    unchanged = "same" if how == "plain" else "same-effect"
    assert verdicts == [unchanged, "different", unchanged]
    assert [cause.kind for cause in difference.layers[1].causes] == [kind]
    folded = bnstat.load(write_onnx(tmp_path / "f.onnx", arrays, "folded"))
    assert not bnstat.diff(ports[one], folded, epsilon=EPSILON).equivalent
