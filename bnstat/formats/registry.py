"""The file formats that bnstat reads: one row each.

The rows determine the order of detection, the enum in `exchange/schema.json`, the table in
`docs/files.md`, the hint about unknown files, and the converters that `check` knows. This module
imports nothing from bnstat.
"""

from __future__ import annotations

from typing import Final, NamedTuple


class FileFormat(NamedTuple):
    """A file format.

    Attributes:
        name: the value of `Source.format`.
        label: the name in a list of formats.
        description: what the format is, for the table in the documentation.
        path: what a user passes as the path, for the table in the documentation.
        module: the dotted name, below `bnstat.formats`, of the module that reads single-file
            models; see `detection.SingleFile`. Empty if the format has no single-file models.
        finders: the dotted names, below `bnstat.formats`, of the subclasses of `detection.Finder`
            that find models stored as folders or several files. Formats may share a finder.
        is_data_beside_models: True for files that count as a model only in a folder without
            other models, because they may hold arrays of any kind.
        is_converted: True if only converters write this format, not training. If so, `check` names
            the converter as a possible cause of initial or equal statistics.
        exact_writers: prefixes of the names of converters that keep the moving statistics.
    """

    name: str
    label: str
    description: str
    path: str = "the file"
    module: str = ""
    finders: tuple[str, ...] = ()
    is_data_beside_models: bool = False
    is_converted: bool = False
    exact_writers: tuple[str, ...] = ()


_CHECKPOINTS: Final = ("tensorflow.detection.Checkpoints",)

FORMATS: Final = (
    FileFormat(
        name="saved-model",
        label="SavedModel",
        description="a SavedModel of TensorFlow 1 or 2, Keras 2 or 3",
        path="its folder, its `saved_model.pb` or its `variables/`",
        finders=("tensorflow.detection.SavedModels",),
    ),
    FileFormat(
        name="tf2-checkpoint",
        label="checkpoint",
        description="an object-based checkpoint (TensorFlow 2), with any number of shards",
        path="its prefix, or any of its files",
        finders=_CHECKPOINTS,
    ),
    FileFormat(
        name="tf1-checkpoint",
        label="checkpoint",
        description="a name-based checkpoint (TensorFlow 1), with any number of shards",
        path="its prefix, or any of its files",
        finders=_CHECKPOINTS,
    ),
    FileFormat(
        name="tf1-checkpoint-v1",
        label="checkpoint",
        description='a checkpoint from before TensorFlow 0.12 ("V1")',
        path="its file, or the prefix of its shards",
        finders=_CHECKPOINTS,
    ),
    FileFormat(
        name="onnx",
        label="ONNX",
        description="an ONNX file, with its weights inside or beside it",
        module="onnx.file",
        is_converted=True,
        exact_writers=("pytorch",),
    ),
    FileFormat(
        name="pytorch",
        label="PyTorch",
        description="a PyTorch `.pt`, `.pth`, `.bin` or `.ckpt`: state dict, checkpoint, whole "
        "model or TorchScript; a `.ot` of tch-rs; weights in parts with an `.index.json`",
        path="the file; any part, or the index",
        module="pytorch.file",
        finders=("finders.DistributedPyTorch", "finders.Sharded"),
    ),
    FileFormat(
        name="keras-h5",
        label="Keras .h5",
        description="a Keras `.h5`, full model or weights, of Keras 0 to 3",
        module="keras.h5",
    ),
    FileFormat(
        name="keras-weights",
        label=".weights.h5",
        description="a Keras `.weights.h5`, or weights sharded by a `.weights.json`",
        path="the file; any shard, or the `.weights.json`",
        module="keras.weights",
        finders=("finders.ShardedWeights",),
    ),
    FileFormat(
        name="keras-archive",
        label=".keras",
        description="a `.keras`, or the folder that `save(..., zipped=False)` writes",
        path="the file or the folder",
        module="keras.v3",
        finders=("finders.Unzipped",),
    ),
    FileFormat(
        name="safetensors",
        label="safetensors",
        description="safetensors, also in parts with an `.index.json`",
        path="the file; any part, or the index",
        module="arrays.safetensors",
        finders=("finders.Sharded",),
    ),
    FileFormat(
        name="tfjs",
        label="TensorFlow.js",
        description="a TensorFlow.js `model.json` with its shards, or (before version 1.0) a "
        "`weights_manifest.json` and a `tensorflowjs_model.pb`",
        path="the folder, or any of its files",
        finders=("finders.TensorflowJs", "finders.EarlyTensorflowJs"),
        is_converted=True,
    ),
    FileFormat(
        name="tflite",
        label="TensorFlow Lite",
        description="a TensorFlow Lite `.tflite`, for `diff`",
        module="tflite",
    ),
    FileFormat(
        name="orbax",
        label="Orbax",
        description="an Orbax checkpoint of Flax or Keras "
        "(needs tensorstore: `pip install '.[orbax]'` in a clone)",
        path="its folder, or the folder of the run",
        finders=("arrays.orbax.Orbax",),
    ),
    FileFormat(
        name="msgpack",
        label="Flax .msgpack",
        description="a Flax `.msgpack`",
        module="arrays.msgpack",
    ),
    FileFormat(
        name="hdf5",
        label="HDF5",
        description="an HDF5 file with arrays named like `bn1/moving_mean`",
        module="hdf5.file",
        is_data_beside_models=True,
    ),
    FileFormat(
        name="npz",
        label=".npz",
        description="an `.npz` with arrays named like `bn1/moving_mean`, as `export` writes it",
        module="arrays.npz",
        is_data_beside_models=True,
    ),
    FileFormat(
        name="pickle",
        label="pickles of arrays",
        description="a pickle of arrays, such as Haiku's parameters and state",
        module="arrays.pickles",
        is_data_beside_models=True,
    ),
    FileFormat(
        name="frozen-graph",
        label="GraphDef",
        description="a frozen graph (also one for TensorRT), any GraphDef, or a `.meta`",
        module="tensorflow.frozen_graph",
    ),
)
"""The rows in the order of detection. Formats with a signature come first."""

BY_NAME: Final = {row.name: row for row in FORMATS}
CONVERTED: Final = frozenset(row.name for row in FORMATS if row.is_converted)


def known_formats() -> str:
    """Return the hint that lists all formats, for a file of an unknown format."""
    return f"bnstat reads {', '.join(dict.fromkeys(row.label for row in FORMATS))}"
