"""One network through real converters: every pair of files is compared.

Ports to PyTorch are skipped if torch is not installed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib.util import find_spec
from itertools import combinations, permutations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

import bnstat
from bnstat.exchange import safetensors
from bnstat.exchange.naming import ExportOptions, read_name_map, write_name_map
from bnstat.model import Model
from tests.builders import converted, modules
from tests.builders.converted import EPSILON, NORMS, SHAPE
from tests.fuzz.ports import in_bytes

pytest.importorskip("tf2onnx", reason="tf2onnx converts to ONNX")
onnx = pytest.importorskip("onnx", reason="onnx reads the converted files")

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def network() -> Any:
    return converted.network()


@pytest.fixture(scope="module")
def ports(network: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Model]:
    folder = tmp_path_factory.mktemp("ports")

    def written(name: str, content: bytes) -> Path:
        (folder / name).write_bytes(content)
        return folder / name

    network.save(folder / "network.h5")
    tf.saved_model.save(network, str(folder / "saved_model"))
    frozen = modules.frozen(network, SHAPE)
    folded = converted.folded_graph(frozen)
    remapped = converted.optimized(frozen, "constfold", "arithmetic", "remap", "layout")
    paths = {
        "h5": folder / "network.h5",
        "saved-model": folder / "saved_model",
        "frozen": written("frozen.pb", frozen.graph.as_graph_def().SerializeToString()),
        "onnx": written("plain.onnx", converted.to_onnx(network, is_folded=False)),
        "onnx-folded": written("folded.onnx", converted.to_onnx(network, is_folded=True)),
        "grappler": written("grappler.pb", remapped.SerializeToString()),
        "graph-folded": written("folded.pb", folded.SerializeToString()),
        "tfjs": converted.write_tfjs(folder / "tfjs", folded),
        "tfjs-quantized": converted.write_tfjs(folder / "packed", folded, in_bytes),
        "tflite": written("network.tflite", converted.to_tflite(network)),
        "rewritten": written("r.onnx", rewritten((folder / "plain.onnx").read_bytes())),
    }
    if find_spec("torch") is not None:
        import torch
        from safetensors.torch import save_file

        module = converted.torch_module(network)
        torch.save(module.state_dict(), folder / "plain.pt")
        torch.save(converted.fused(module).state_dict(), folder / "fused.pt")
        save_file(module.state_dict(), folder / "plain.safetensors")
        paths |= {
            "pytorch": folder / "plain.pt",
            "safetensors": folder / "plain.safetensors",
            "pytorch-fused": folder / "fused.pt",
        }
    return {name: bnstat.load(path) for name, path in paths.items()}


def rewritten(content: bytes) -> bytes:
    """Return an ONNX file whose batch norm is a scale and a shift, as OnnxMLTools writes it."""
    proto = onnx.load_from_string(content)
    arrays = {each.name: onnx.numpy_helper.to_array(each) for each in proto.graph.initializer}
    for node in proto.graph.node:
        if node.op_type != "BatchNormalization":
            continue
        gamma, beta, mean, variance = (arrays[name] for name in node.input[1:])
        scale = gamma / np.sqrt(variance + np.float32(EPSILON))
        new = (scale, beta - mean * scale, np.zeros_like(mean), np.ones_like(variance))
        for place, array in enumerate(new, start=1):
            name = f"{node.output[0]}_{place}"
            proto.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
            node.input[place] = name
        (epsilon,) = (each for each in node.attribute if each.name == "epsilon")
        epsilon.f = 1e-9
    return bytes(proto.SerializeToString())


def port(name: str) -> Any:
    """Return a parameter that is skipped if this port cannot be written here."""
    is_missing = name in ("pytorch", "safetensors", "pytorch-fused") and not find_spec("torch")
    return pytest.param(name, marks=pytest.mark.skipif(is_missing, reason="needs torch"))


WHOLE = ("h5", "saved-model", "frozen", "onnx", "pytorch", "safetensors")
"""Ports with all batch norm. The one after a dense layer becomes two operations in ONNX."""

FOLDED = {**dict.fromkeys(("onnx-folded", "grappler", "graph-folded", "tfjs"), 4),
          "tflite": 6, "pytorch-fused": 5}  # fmt: skip
"""Ports with folded batch norm, and the number of folded layers of six."""


@pytest.mark.parametrize("one", [*map(port, WHOLE)])
@pytest.mark.parametrize("other", [*map(port, WHOLE)])
def test_ports_with_all_layers_are_the_same(one: str, other: str, ports: dict[str, Model]) -> None:
    difference = bnstat.diff(ports[one], ports[other], epsilon=EPSILON)
    assert difference.equivalent
    assert {layer.verdict for layer in difference.layers} == {"same"}
    assert len(difference.layers) == 5 + ("onnx" not in (one, other))


@pytest.mark.parametrize("one", [*map(port, WHOLE)])
def test_rewritten_layers_have_the_same_effect(one: str, ports: dict[str, Model]) -> None:
    for pair in permutations((ports[one], ports["rewritten"])):
        difference = bnstat.diff(*pair, epsilon=EPSILON)
        assert difference.equivalent
        assert [layer.verdict for layer in difference.layers] == ["same-effect"] * 5


@pytest.mark.parametrize("other", [*map(port, FOLDED)])
@pytest.mark.parametrize("one", [port(name) for name in WHOLE if name != "onnx"])
def test_folding_is_proven(one: str, other: str, ports: dict[str, Model]) -> None:
    for pair in permutations((ports[one], ports[other])):
        difference = bnstat.diff(*pair, epsilon=EPSILON)
        assert difference.equivalent
        assert not difference.ties
        assert not any(each.tie for each in difference.folded)
        assert len(difference.folded) == FOLDED[other]
        assert len(difference.layers) == len(NORMS) - FOLDED[other]
        assert {layer.verdict for layer in difference.layers} <= {"same"}


def test_quantized_layers_are_rounded_and_folded_ones_proven(ports: dict[str, Model]) -> None:
    difference = bnstat.diff(ports["h5"], ports["tfjs-quantized"])
    assert [each.rounding for each in difference.folded] == ["quantized"] * 4
    causes = {layer.old: [cause.kind for cause in layer.causes] for layer in difference.different}
    assert causes == {"transposed_bn": ["rounded"], "relu_bn": ["rounded"]}
    assert difference.removed == difference.added == ()


def test_ports_that_are_folded_in_part(ports: dict[str, Model]) -> None:
    partly = [name for name in FOLDED if name in ports and len(ports[name])]
    assert len(partly) >= 4
    for one, other in combinations(partly, 2):
        assert bnstat.diff(ports[one], ports[other], epsilon=EPSILON).equivalent


CHANGES: dict[str, Callable[[np.ndarray, np.ndarray, np.ndarray], Sequence[np.ndarray]]] = {
    "channels": lambda g, mean, v: (g + np.float32(1e-3) * (np.arange(g.size) == 2), mean, v),
    "swapped": lambda gamma, mean, variance: (gamma, variance, mean),
    "unbiased-variance": lambda gamma, mean, v: (gamma, mean, v * np.float32(32 / 31)),
}
"""Cause -> function that changes the gamma, mean and variance of a layer."""


@pytest.mark.parametrize("other", [*map(port, ("onnx", "pytorch", "rewritten", *FOLDED))])
@pytest.mark.parametrize("kind", CHANGES)
@pytest.mark.parametrize("name", NORMS)
def test_the_cause_of_a_difference_is_found(
    name: str, kind: str, other: str, ports: dict[str, Model]
) -> None:
    changed = bnstat.load(ports["h5"].source.path)
    roles = ("gamma", "moving_mean", "moving_variance")
    arrays = CHANGES[kind](*(changed[name].array(role) for role in roles))
    changed[name]._arrays.update(zip(roles, arrays, strict=True))
    difference = bnstat.diff(changed, ports[other], epsilon=EPSILON, tolerance=2e-6)
    assert not difference.equivalent
    wrong = [(layer.old, layer.causes) for layer in difference.different]
    wrong += [(each.layer, each.causes) for each in difference.misfolded]
    assert [layer for layer, _ in wrong] == [name]
    assert [cause.kind for _, causes in wrong for cause in causes] == [kind]


@pytest.mark.parametrize("names", [port("pytorch"), "onnx"])
def test_exports_have_the_names_of_their_counterparts(
    names: str, network: Any, ports: dict[str, Model], tmp_path: Path
) -> None:
    other, written = ports[names], tmp_path / "m.safetensors"
    load_file = pytest.importorskip("safetensors.numpy").load_file
    difference = bnstat.diff(ports["h5"], other, epsilon=EPSILON)
    with (tmp_path / "names.csv").open("w") as file:
        write_name_map(difference, other, file)
    renamed = read_name_map(str(tmp_path / "names.csv"), ports["h5"].layers)
    layers = [ports["h5"][layer.old] for layer in difference.layers]
    with written.open("wb") as target:
        options = ExportOptions(names, renamed=renamed)
        safetensors.dump(ports["h5"].select(layers), target, options)
    tensors = load_file(written)
    if names == "pytorch":
        import torch

        module = converted.torch_module(network)
        for parameter in module.state_dict().values():
            parameter.zero_()
        state = {key: torch.from_numpy(array) for key, array in tensors.items()}
        assert module.load_state_dict(state, strict=False).unexpected_keys == []
        found = {key: tensor.numpy() for key, tensor in module.state_dict().items()}
    else:
        proto = onnx.load(other.source.path)
        found = {each.name: onnx.numpy_helper.to_array(each) for each in proto.graph.initializer}
    assert len(tensors) == 4 * len(layers) >= 20
    for key, tensor in tensors.items():
        assert np.array_equal(found[key], tensor), key
