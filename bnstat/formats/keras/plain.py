"""Which layers of a Keras model hold kernels and biases alone, or nothing.

Those are most of a model's layers. What they are called tells all that they hold, so that their
groups in a file need not be opened before somebody asks for a kernel. A program may have a class
of its own under the name of one of Keras's, with whatever layers in it: a class is taken for
Keras's where the file says that it is defined there, as Keras 3 does, or where the layer has the
arguments of that class.

Source: `build` and `get_config` of the classes in keras/src/layers.
"""

from __future__ import annotations

from typing import Final

from bnstat.formats.keras.config import Described

_MODULE: Final = "keras.layers"

_CONVOLUTION: Final = frozenset({"kernel_size", "use_bias", "bias_initializer"})
_MAP: Final = frozenset({"data_format"})
_POOL: Final = frozenset({"pool_size", "data_format"})
_DIMENSIONS: Final = ("1D", "2D", "3D")

_ARGUMENTS: Final = {
    **{f"Conv{n}": _CONVOLUTION | {"kernel_initializer"} for n in _DIMENSIONS},
    **{f"Conv{n}Transpose": _CONVOLUTION | {"kernel_initializer"} for n in _DIMENSIONS},
    **{f"DepthwiseConv{n}": _CONVOLUTION | {"depthwise_initializer"} for n in _DIMENSIONS[:2]},
    **{f"SeparableConv{n}": _CONVOLUTION | {"pointwise_initializer"} for n in _DIMENSIONS[:2]},
    **{f"{kind}Pooling{n}": _POOL for kind in ("Max", "Average") for n in _DIMENSIONS},
    **{f"Global{kind}Pooling{n}": _MAP for kind in ("Max", "Average") for n in _DIMENSIONS},
    **{f"ZeroPadding{n}": frozenset({"padding"}) for n in _DIMENSIONS},
    **{f"Cropping{n}": frozenset({"cropping"}) for n in _DIMENSIONS},
    "Activation": frozenset({"activation"}),
    "Concatenate": frozenset({"axis"}),
    "Dense": frozenset({"units", "use_bias", "kernel_initializer"}),
    "Dropout": frozenset({"rate", "noise_shape"}),
    "Flatten": _MAP,
    "InputLayer": frozenset({"sparse"}),
    "ReLU": frozenset({"max_value", "negative_slope", "threshold"}),
    "Rescaling": frozenset({"scale", "offset"}),
    "Reshape": frozenset({"target_shape"}),
    **dict.fromkeys(("Add", "Average", "Maximum", "Minimum", "Multiply", "Subtract"), frozenset()),
}
"""Class -> arguments of it, and of hardly another of that name; none where it has none."""

_OF_ALL: Final = {
    "name",
    "trainable",
    "dtype",
    "batch_input_shape",
    "build_config",
    "inbound_nodes",
}
"""Arguments that any layer may have."""


def is_plain(layer: Described) -> bool:
    """Whether a layer surely holds kernels and biases alone, or nothing."""
    arguments = _ARGUMENTS.get(layer.class_name)
    if arguments is None or layer.sublayers:
        return False
    if not isinstance(layer.config.get("activation", ""), str | None):
        # It may be a layer that does not look like one.
        return False
    if layer.module:
        return layer.module == _MODULE
    given = layer.config.keys()
    return arguments <= given if arguments else given <= _OF_ALL
