"""A network with batch norm, and its conversions by real converters.

Keras 2 normalizes by TensorFlow's fused operation, which converters fold; Keras 3 by a
multiplication and an addition, which most leave as they are.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras

from tests.fuzz.ports import Pack, tfjs_model

EPSILON = 2e-3
SHAPE = (6, 6, 3)
NORMS = ("conv_bn", "depthwise_bn", "pointwise_bn", "transposed_bn", "relu_bn", "dense_bn")


def network() -> Any:
    layers = tf_keras.layers

    def norm(name: str) -> Any:
        return layers.BatchNormalization(epsilon=EPSILON, name=name)

    model = tf_keras.Sequential([
        *(layers.Input(SHAPE), layers.Conv2D(6, 3, name="conv"), norm("conv_bn"), layers.ReLU()),
        *(layers.DepthwiseConv2D(3, use_bias=False, name="depthwise"), norm("depthwise_bn")),
        *(layers.Conv2D(12, 1, use_bias=False, name="pointwise"), norm("pointwise_bn")),
        *(layers.Conv2DTranspose(4, 2, name="transposed"), norm("transposed_bn")),
        *(layers.ReLU(), norm("relu_bn"), layers.Flatten()),
        *(layers.Dense(7, name="dense"), norm("dense_bn"), layers.ReLU()),
        layers.Dense(2, name="head"),
    ])  # fmt: skip
    random = np.random.default_rng(4)

    def values(shape: tuple[int, ...]) -> Any:
        return random.uniform(0.4, 1.6, shape) if len(shape) == 1 else random.normal(0, 0.3, shape)

    model.set_weights([values(each.shape) for each in model.get_weights()])
    return model


def _signature() -> list[tf.TensorSpec]:
    return [tf.TensorSpec((None, *SHAPE), tf.float32, name="x")]


def to_onnx(model: Any, is_folded: bool) -> bytes:
    """Convert with tf2onnx, whose step `remove_back_to_back` folds."""
    import tf2onnx
    from tf2onnx.optimizer import _get_optimizers

    steps = dict(_get_optimizers())
    if not is_folded:
        del steps["remove_back_to_back"]
    proto, _ = tf2onnx.convert.from_keras(model, _signature(), optimizers=steps)
    return bytes(proto.SerializeToString())


def to_tflite(model: Any) -> bytes:
    return bytes(tf.lite.TFLiteConverter.from_keras_model(model).convert())


def optimized(function: Any, *steps: str) -> tf.compat.v1.GraphDef:
    """Return the graph of a frozen function after steps of Grappler."""
    from tensorflow.core.protobuf import config_pb2
    from tensorflow.python.grappler import tf_optimizer

    meta = tf.compat.v1.train.export_meta_graph(
        graph_def=function.graph.as_graph_def(), graph=function.graph
    )
    fetched = meta.collection_def["train_op"].node_list
    fetched.value.extend(output.op.name for output in function.outputs)
    config = config_pb2.ConfigProto()
    config.graph_options.rewrite_options.optimizers.extend(steps)
    config.graph_options.rewrite_options.min_graph_nodes = -1
    return tf_optimizer.OptimizeGraph(config, meta)


def folded_graph(function: Any) -> tf.compat.v1.GraphDef:
    """Fold with TensorFlow's tool for inference, which the TensorFlow.js converter uses too."""
    from tensorflow.python.tools.optimize_for_inference_lib import fold_batch_norms

    return fold_batch_norms(optimized(function, "constfold"))


def write_tfjs(folder: Path, graph: tf.compat.v1.GraphDef, pack: Pack | None = None) -> Path:
    """Write a graph for TensorFlow.js, which fuses biases; `pack` quantizes weights."""
    from google.protobuf import json_format

    nodes = {node.name: node for node in graph.node}
    fused = tf.compat.v1.GraphDef()
    skipped = set()
    for node in graph.node:
        before = nodes.get(node.input[0].split(":")[0]) if node.input else None
        if node.op == "BiasAdd" and before is not None and before.op == "Conv2D":
            merged = fused.node.add()
            merged.CopyFrom(before)
            merged.name, merged.op = node.name, "_FusedConv2D"
            merged.input.append(node.input[1])
            skipped.add(before.name)
        else:
            fused.node.add().CopyFrom(node)
    arrays = {}
    for node in fused.node:
        if node.op == "Const":
            tensor = node.attr["value"].tensor
            arrays[node.name] = tf.make_ndarray(tensor)
            for field in ("tensor_content", "float_val", "int_val"):
                tensor.ClearField(field)
    topology = json_format.MessageToDict(fused)
    topology["node"] = [node for node in topology["node"] if node["name"] not in skipped]
    folder.mkdir()
    for name, content in tfjs_model(topology, arrays, 4 << 20, pack).items():
        (folder / name).write_bytes(content)
    return folder


def torch_module(model: Any) -> Any:
    """The same network in PyTorch, whose convolutions have their channels first."""
    import torch
    from torch import nn

    modules: list[Any] = []
    for layer in model.layers:
        kind, arrays = type(layer).__name__, [np.array(each) for each in layer.get_weights()]
        parts = dict(zip(("weight", "bias"), arrays, strict=False))
        is_flat = any(isinstance(each, nn.Flatten) for each in modules)
        if kind == "BatchNormalization":
            norm = nn.BatchNorm1d if is_flat else nn.BatchNorm2d
            parts |= {"running_mean": arrays[2], "running_var": arrays[3]}
            module = norm(arrays[0].size, eps=EPSILON)
        elif kind == "Dense":
            inputs, outputs = arrays[0].shape
            if isinstance(modules[-1], nn.Flatten):
                # The inputs are flattened with the channels first.
                parts["weight"] = arrays[0].reshape(3, 3, 4, outputs).transpose(2, 0, 1, 3)
            parts["weight"] = parts["weight"].reshape(inputs, outputs).T
            module = nn.Linear(inputs, outputs)
        elif kind == "DepthwiseConv2D":
            parts["weight"] = arrays[0].transpose(2, 3, 0, 1)
            channels = len(parts["weight"])
            module = nn.Conv2d(channels, channels, 3, groups=channels, bias=False)
        elif kind in ("Conv2D", "Conv2DTranspose"):
            parts["weight"] = arrays[0].transpose(3, 2, 0, 1)
            outer, inner, size, _ = parts["weight"].shape
            if kind == "Conv2D":
                module = nn.Conv2d(inner, outer, size, bias="bias" in parts)
            else:
                module = nn.ConvTranspose2d(outer, inner, size)
        else:
            module = nn.Flatten() if kind == "Flatten" else nn.ReLU()
        state = {name: torch.from_numpy(array.copy()) for name, array in parts.items()}
        module.load_state_dict(state, strict=False)
        modules.append(module)
    return nn.Sequential(*modules).eval()


def fused(module: Any) -> Any:
    """Fuse each batch norm of a PyTorch network into the layer before it, if that can be fused."""
    from torch import nn
    from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval

    found: list[Any] = []
    for each in module:
        before = found[-1] if found else None
        is_norm = isinstance(each, nn.BatchNorm1d | nn.BatchNorm2d)
        if is_norm and isinstance(before, nn.Conv2d | nn.ConvTranspose2d):
            is_transposed = isinstance(before, nn.ConvTranspose2d)
            found[-1] = fuse_conv_bn_eval(before, each, transpose=is_transposed)
        elif is_norm and isinstance(before, nn.Linear):
            found[-1] = fuse_linear_bn_eval(before, each)
        else:
            found.append(each)
    return nn.Sequential(*found)
