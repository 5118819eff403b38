"""TensorFlow Lite: recognised for what it is, and that it has no batch norm to show.

Its converter folds each batch norm into the weights and bias of the operation beside it, or into
a multiplication and an addition (tensorflow/compiler/mlir/lite/transforms/optimize.cc,
prepare_tf.cc). The file is a flatbuffer with the identifier `TFL3`
(tensorflow/compiler/mlir/lite/schema/schema.fbs).
"""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from bnstat.formats.contents import Contents
from bnstat.model import Source
from bnstat.storage.files import File

_IDENTIFIER: Final = b"TFL3"
_AT: Final = 4

_FOLDED: Final = (
    "TensorFlow Lite's converter folds batch norm into the operations beside it: "
    "nothing of it is left to show; look at the model that was converted"
)


def recognises(file: File) -> bool:
    """Whether the file is a TensorFlow Lite model."""
    return file.head(_AT + len(_IDENTIFIER))[_AT:] == _IDENTIFIER


def open_contents(file: File, source: Source) -> Contents:
    """No variables, and why."""
    del file
    return Contents(replace(source, format="tflite"), {}, notes=[_FOLDED])
