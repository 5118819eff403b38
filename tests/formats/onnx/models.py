"""ONNX models, built with the `onnx` package."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bnstat.model import ROLES, Model
from tests.builders.oracle import same_bits

onnx = pytest.importorskip("onnx", reason="the onnx package writes the files of these tests")


helper, to_tensor = onnx.helper, onnx.numpy_helper.from_array
node, FLOAT = helper.make_node, onnx.TensorProto.FLOAT

Arrays = dict[str, np.ndarray]


def arrays(seed: int = 0, dtype: Any = np.float32, channels: int = 3) -> Arrays:
    rng = np.random.default_rng(seed)
    return {role: rng.uniform(0.1, 2, channels).astype(dtype) for role in ROLES}


def initializers(prefix: str, of: Arrays) -> list[Any]:
    return [to_tensor(array, f"{prefix}.{role}") for role, array in of.items()]


def norm(x: str, prefix: str, outputs: Sequence[str] = ("y",), **attributes: Any) -> Any:
    inputs = [x, *(f"{prefix}.{role}" for role in ROLES)]
    return node("BatchNormalization", inputs, list(outputs), **attributes)


def info(name: str, shape: Sequence[int] | None = None, kind: int = FLOAT) -> Any:
    """Describe an input or an output of a graph."""
    return helper.make_tensor_value_info(name, kind, shape)


def graph(nodes: Sequence[Any], tensors: Sequence[Any], name: str = "g") -> Any:
    return helper.make_graph(nodes, name, [info("x")], [info("y")], tensors)


def body(nodes: Sequence[Any], tensors: Sequence[Any], outputs: Sequence[str]) -> Any:
    return helper.make_graph(nodes, "body", [], [*map(info, outputs)], tensors)


def save(path: Path, of_graph: Any, opset: int = 15, **rest: Any) -> Path:
    model = helper.make_model(
        of_graph,
        opset_imports=[helper.make_opsetid("", opset), helper.make_opsetid("own", 1)],
        producer_name="test",
        producer_version="1.2",
        **rest,
    )
    path.write_bytes(model.SerializeToString())
    return path


def assert_layer(model: Model, name: str, of: Arrays) -> None:
    for role, array in of.items():
        assert same_bits(model[name].array(role), array), role
