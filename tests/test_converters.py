"""One network through real converters: every pair is compared, and each verdict is right."""

from __future__ import annotations

from collections.abc import Callable
from itertools import combinations, permutations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

import bnstat
from bnstat.exchange import safetensors as safetensors_export
from bnstat.exchange.naming import ExportOptions, read_name_map, write_name_map
from bnstat.model import ROLES, Model
from tests.builders import converted
from tests.builders.converted import EPSILON, NORMS

pytest.importorskip("tf2onnx", reason="tf2onnx converts to ONNX")
onnx = pytest.importorskip("onnx", reason="onnx reads what was converted")
torch = pytest.importorskip("torch", reason="torch fuses and writes the state dicts")
safetensors = pytest.importorskip("safetensors.torch", reason="safetensors writes such files")


@pytest.fixture(scope="module")
def network() -> Any:
    return converted.network()


@pytest.fixture(scope="module")
def ports(network: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Model]:
    folder = tmp_path_factory.mktemp("ports")

    def written(name: str, content: bytes) -> Path:
        path = folder / name
        path.write_bytes(content)
        return path

    network.save(folder / "network.h5")
    tf.saved_model.save(network, str(folder / "saved_model"))
    frozen = converted.to_frozen_graph(network)
    folded = converted.folded_graph(frozen)
    module = converted.torch_module(network)
    torch.save(module.state_dict(), folder / "plain.pt")
    torch.save(converted.fused(module).state_dict(), folder / "fused.pt")
    safetensors.save_file(module.state_dict(), folder / "plain.safetensors")
    remapped = converted.optimized(frozen, "constfold", "arithmetic", "remap", "layout")
    paths = {
        "h5": folder / "network.h5",
        "saved-model": folder / "saved_model",
        "frozen": written("frozen.pb", frozen.graph.as_graph_def().SerializeToString()),
        "onnx": written("plain.onnx", converted.to_onnx(network, is_folded=False)),
        "pytorch": folder / "plain.pt",
        "safetensors": folder / "plain.safetensors",
        "onnx-folded": written("folded.onnx", converted.to_onnx(network, is_folded=True)),
        "grappler": written("grappler.pb", remapped.SerializeToString()),
        "graph-folded": written("folded.pb", folded.SerializeToString()),
        "tfjs": converted.write_tfjs(folder / "tfjs", folded),
        "tfjs-quantized": converted.write_tfjs(folder / "packed", folded, converted.in_bytes),
        "tflite": written("network.tflite", converted.to_tflite(network)),
        "pytorch-fused": folder / "fused.pt",
    }
    return {name: bnstat.load(path) for name, path in paths.items()}


WHOLE = ("h5", "saved-model", "frozen", "onnx", "pytorch", "safetensors")
"""Ports that have all batch norm; that after a dense layer is two operations in ONNX."""

FOLDED = {
    "onnx-folded": 4,
    "grappler": 4,
    "graph-folded": 4,
    "tfjs": 4,
    "tflite": 6,
    "pytorch-fused": 5,
}
"""Ports that have folded it, and how many of the six layers."""


@pytest.mark.parametrize(("one", "other"), [*combinations(WHOLE, 2)])
def test_whole_ports_are_the_same(one: str, other: str, ports: dict[str, Model]) -> None:
    difference = bnstat.diff(ports[one], ports[other], epsilon=EPSILON)
    assert difference.equivalent
    assert {layer.verdict for layer in difference.layers} == {"same"}
    assert len(difference.layers) == 5 + ("onnx" not in (one, other))


@pytest.mark.parametrize("other", FOLDED)
@pytest.mark.parametrize("one", ["h5", "saved-model", "frozen", "pytorch", "safetensors"])
def test_what_is_folded_is_proven(one: str, other: str, ports: dict[str, Model]) -> None:
    for pair in permutations((ports[one], ports[other])):
        difference = bnstat.diff(*pair, epsilon=EPSILON)
        assert difference.equivalent
        assert not difference.ties
        assert not any(each.tie for each in difference.folded)
        assert len(difference.folded) == FOLDED[other]
        assert len(difference.layers) == len(NORMS) - FOLDED[other]
        assert {layer.verdict for layer in difference.layers} <= {"same"}


def test_quantized_layers_are_said_to_be_rounded_and_folded_ones_proven(
    ports: dict[str, Model],
) -> None:
    difference = bnstat.diff(ports["h5"], ports["tfjs-quantized"])
    assert [each.rounding for each in difference.folded] == ["quantized"] * 4
    causes = {layer.old: [cause.kind for cause in layer.causes] for layer in difference.different}
    assert causes == {"transposed_bn": ["rounded"], "relu_bn": ["rounded"]}
    assert difference.removed == difference.added == ()


def test_ports_that_are_folded_in_part(ports: dict[str, Model]) -> None:
    partly = [name for name in FOLDED if len(ports[name])]
    assert len(partly) >= 4
    for one, other in combinations(partly, 2):
        assert bnstat.diff(ports[one], ports[other], epsilon=EPSILON).equivalent


def _one_channel(arrays: dict[str, np.ndarray]) -> None:
    arrays["gamma"][2] += np.float32(1e-3)


def _swapped(arrays: dict[str, np.ndarray]) -> None:
    mean = arrays["moving_mean"].copy()
    arrays["moving_mean"][:], arrays["moving_variance"][:] = arrays["moving_variance"], mean


def _unbiased(arrays: dict[str, np.ndarray]) -> None:
    arrays["moving_variance"] *= np.float32(32 / 31)


def changed(network: Any, name: str, change: Callable[[dict[str, np.ndarray]], None]) -> Model:
    """The network with a layer that is another."""
    model = bnstat.load(network.source.path)
    layer = model[name]
    arrays = {role: layer.variables[role].read().copy() for role in ROLES}
    change(arrays)
    layer._arrays.update(arrays)
    return model


@pytest.mark.parametrize("other", ["onnx", "pytorch", *FOLDED])
@pytest.mark.parametrize(
    ("change", "kind"),
    [(_one_channel, "channels"), (_swapped, "swapped"), (_unbiased, "unbiased-variance")],
)
@pytest.mark.parametrize("name", NORMS)
def test_what_is_off_is_named(
    name: str,
    change: Callable[[dict[str, np.ndarray]], None],
    kind: str,
    other: str,
    ports: dict[str, Model],
) -> None:
    difference = bnstat.diff(
        changed(ports["h5"], name, change), ports[other], epsilon=EPSILON, tolerance=2e-6
    )
    assert not difference.equivalent
    wrong = [(layer.old, layer.causes) for layer in difference.different]
    wrong += [(each.layer, each.causes) for each in difference.misfolded]
    assert [layer for layer, _ in wrong] == [name]
    assert [cause.kind for _, causes in wrong for cause in causes] == [kind]


@pytest.mark.parametrize("other", ["onnx", "pytorch", *FOLDED])
def test_another_epsilon_is_named(other: str, ports: dict[str, Model]) -> None:
    model = bnstat.load(ports["h5"].source.path)
    for layer in model:
        layer.epsilon = 1e-5
    difference = bnstat.diff(model, ports[other], epsilon=EPSILON)
    assert not difference.equivalent
    causes = [layer.causes for layer in difference.different]
    causes += [each.causes for each in difference.misfolded]
    assert [[cause.kind for cause in each] for each in causes] == [["epsilon"]] * len(NORMS)


@pytest.mark.parametrize("name", NORMS)
def test_a_dropped_layer_is_missed(name: str, ports: dict[str, Model]) -> None:
    """The network's weights as they are, and all layers but one."""
    whole = ports["h5"]
    kept = whole.select([layer for layer in whole if layer.name != name])
    for one in WHOLE:
        difference = bnstat.diff(ports[one], kept, epsilon=EPSILON)
        assert len(difference.removed) == 1 or (one == "onnx" and name == "dense_bn")
        assert difference.misfolded == ()


@pytest.mark.parametrize("names", ["pytorch", "onnx", "flax", "keras"])
def test_exports_have_the_names_of_their_counterparts(
    names: str, network: Any, ports: dict[str, Model], tmp_path: Path
) -> None:
    """By the map that `diff` writes, what is exported is called as in the other file."""
    others = {"pytorch": "pytorch", "onnx": "onnx", "flax": "h5", "keras": "h5"}
    other, written = ports[others[names]], tmp_path / "m.safetensors"
    difference = bnstat.diff(ports["h5"], other, epsilon=EPSILON)
    with (tmp_path / "names.csv").open("w") as file:
        write_name_map(difference, other, file)
    renamed = read_name_map(str(tmp_path / "names.csv"), ports["h5"].layers)
    layers = [ports["h5"][layer.old] for layer in difference.layers]
    with written.open("wb") as target:
        safetensors_export.dump(
            ports["h5"].select(layers), target, ExportOptions(names, renamed=renamed)
        )
    tensors = safetensors.load_file(written)
    if names == "pytorch":
        module = converted.torch_module(network)
        for parameter in module.state_dict().values():
            parameter.zero_()
        assert module.load_state_dict(tensors, strict=False).unexpected_keys == []
        found = {key: tensor.numpy() for key, tensor in module.state_dict().items()}
    elif names == "onnx":
        proto = onnx.load(other.source.path)
        found = {each.name: onnx.numpy_helper.to_array(each) for each in proto.graph.initializer}
    else:
        flax = ("params/{}/scale", "params/{}/bias", "batch_stats/{}/mean", "batch_stats/{}/var")
        own = {layer.name: dict(zip(ROLES, layer.get_weights(), strict=True))
               for layer in network.layers if layer.name in NORMS}  # fmt: skip
        found = {
            (f"{name}/{role}" if names == "keras" else key.format(name)): arrays[role]
            for name, arrays in own.items()
            for role, key in zip(ROLES, flax, strict=True)
        }
    assert len(tensors) == 4 * len(layers) >= 20
    for key, tensor in tensors.items():
        assert np.array_equal(found[key], tensor.numpy()), key
