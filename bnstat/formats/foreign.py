"""What a file of no known format is, to say more of it than that it is none of ours.

Sources: the formats' own specifications; tensorflow/core/lib/io/record_writer.cc for TFRecord.
"""

from __future__ import annotations

import re
import zlib
from typing import Final, NamedTuple

from bnstat.errors import DamagedError, UnknownFormatError
from bnstat.storage.files import File

_HEAD: Final = 1 << 16
READS: Final = (
    "bnstat reads SavedModels, checkpoints, .h5, .keras, GraphDef, ONNX, PyTorch, safetensors "
    "and .npz files"
)
_ORIGINAL: Final = "give the TensorFlow or Keras model that it was made from"
_UNPACK: Final = "unpack it first"
_WEIGHTS_TOO: Final = "give the weights, and this file as --config"
_PORT: Final = "export its named arrays with numpy.savez, which bnstat reads by names"
_PARAMETERS: Final = "save its parameters alone: nnabla.save_parameters('parameters.h5')"
_NAMED: Final = "save several by name with numpy.savez: bn/moving_mean, bn/moving_variance, ..."

_MAGIC: Final = (
    (4, b"ORTM", "an ONNX Runtime model", _ORIGINAL),
    (0, b"GGUF", "a GGUF model", READS),
    (0, b"\x93NUMPY", "a single NumPy array", _NAMED),
    (0, b"MATLAB 5.0 MAT-file", "a MATLAB .mat file", _PORT),
    (0, b"ptrt", "a TensorRT engine", _ORIGINAL),
    (0, b"\x89PNG", "a PNG image", READS),
    (0, b"\xff\xd8\xff", "a JPEG image", READS),
    (0, b"GIF8", "a GIF image", READS),
    (0, b"%PDF", "a PDF document", READS),
    (0, b"PAR1", "a Parquet table", READS),
    (0, b"ARROW1", "an Arrow table", READS),
    (0, b"SQLite format 3\0", "an SQLite database", READS),
    (0, b"\x7fELF", "a compiled program", READS),
    (0, b"BZh", "compressed by bzip2", _UNPACK),
    (0, b"\xfd7zXZ\0", "compressed by xz", _UNPACK),
    (0, b"\x28\xb5\x2f\xfd", "compressed by zstd", _UNPACK),
    (0, b"7z\xbc\xaf\x27\x1c", "a 7-Zip archive", _UNPACK),
    (0, b"Rar!", "a RAR archive", _UNPACK),
    (0, b"PK\x05\x06", "an archive of nothing", READS),
    (0, b"#!", "a script", READS),
    (0, b"\x12\x01" + bytes(14), "a .params file of MXNet's", _PORT),
    (0, b"7767517\n", "an ncnn network", _ORIGINAL),
    (0, b"\xdd\x85\x76\0", "an ncnn network", _ORIGINAL),
    (0, b"\x47\x6b\x30\x01", "the weights of an ncnn network", _ORIGINAL),
    (0, b"\0\0\0\0\x02\0\0\0", "a .weights file of Darknet's", _PORT),
    (0, b"\x04\0\0\0\x01\0\0\0\x03\0\0\0V 1", "a Torch7 file", _PORT),
)

_LENGTH: Final = rb"[\x80-\xff]{0,4}[\0-\x7f]"
_WORD: Final = rb"[\x01-\x7f][ -~]+"
_MESSAGES: Final = (
    (rb"(\x0a[\0-\x7f][ -~]*)?\xa2\x06" + _LENGTH + rb"\x0a" + _WORD + rb"\x12" + _WORD,
     "a Caffe model", _PORT),
    (rb"(\x0a" + _WORD + rb")?\x12" + _LENGTH + rb"([\x12\x1a\x22]" + _WORD + rb"){2,}\x28",
     "a Caffe model", _PORT),
    (rb"\x0a" + _LENGTH + rb"\x0a" + _WORD + rb"\x12" + _LENGTH
     + rb"(\x08" + _LENGTH + rb")*\x12[\x04-\x0f](Float|BFloat|Int|UInt|Bool)",
     "a checkpoint of MindSpore's", _PORT),
)  # fmt: skip
"""How messages of protocol buffers start: of Caffe's NetParameter its name, then `layer` (100, the
name and type in front) or `layers` (2, with bottoms, tops, name and type); of MindSpore's
Checkpoint a `value` with its tag, dims and type.

Sources: caffe.proto of BVLC/caffe; checkpoint.proto of mindspore/ccsrc/utils."""

_CORE_ML: Final = re.compile(
    rb"\x08[\x01-\x0f]\x12" + _LENGTH + rb"\x0a" + _LENGTH + rb"\x0a" + _WORD + rb"\x1a"
)
"""`specificationVersion`, then a `description` whose first input has a name and a type.

Source: mlmodel/format/Model.proto of apple/coremltools."""

_ENDINGS: Final = {".mnn": "an MNN model", ".rknn": "an RKNN model", ".dlc": "an SNPE model"}
"""What has nothing in it by which to know it."""

_TEXTS: Final = (
    (rb'\s*"?\{.*"class_name\\?"\s*:.*"config\\?"\s*:',
     "the architecture of a Keras model alone, without weights", _WEIGHTS_TOO),
    (rb'\s*\[\s*\{\s*"(paths|weights)"\s*:\s*\[',
     "the manifest of a TensorFlow.js model's weights",
     "give the model.json, or the model that was converted"),
    (rb'\s*\{.*"nbformat"\s*:', "a Jupyter notebook", READS),
    (rb'\s*\{\s*["}]|\s*\[\s*[\[{"\d\]-]', "JSON, and no model", READS),
    (rb"(?=.*^\s*class_name:)(?=.*^\s*config:)",
     "the architecture of a Keras model as YAML, without weights",
     "give the weights, and the architecture as JSON (model.to_json()) with --config"),
    (rb"\s*(<\?xml|<!DOCTYPE|<html|<)", "a web page or XML", "download the file itself"),
    (rb"(?!.*```)(?=.*^(import|from) \w|.*^(def|class) \w+.*:\s*$)", "Python source",
     "give what the program saved: bnstat executes nothing"),
)  # fmt: skip
"""What the beginning of a text is; a dot matches line breaks as well."""


class Foreign(NamedTuple):
    """What a file is, as in "it is ...", and what to try."""

    what: str
    hint: str


def is_core_ml(head: bytes) -> bool:
    """Whether a file starts as a model of Core ML does. One of version 1 resembles a SavedModel."""
    return _CORE_ML.match(head) is not None


def refuse_foreign(file: File) -> None:
    """Raise an error that names a file of another format; nothing where it is not known.

    Raises:
        UnknownFormatError: it is one.
    """
    if (foreign := foreign_format(file)) is not None:
        raise UnknownFormatError(file.path, f"is {foreign.what}", foreign.hint)


def foreign_format(file: File) -> Foreign | None:
    """What a file that no format of bnstat matches is; None where nothing tells.

    Archives of TensorFlow's and Keras's files are not foreign.
    """
    if file.size == 0:
        return Foreign("empty", "copy or download it again")
    head = file.head(_HEAD)
    for offset, magic, what, hint in _MAGIC:
        if head[offset:].startswith(magic):
            return Foreign(what, hint)
    return (
        _hdf5(file)
        or _zip(file, head)
        or _gzip(head)
        or _pickle(head)
        or _records(file, head)
        or _message_pack(head)
        or _message(head)
        or _text(head)
        or _by_name(file.name)
    )


def _hdf5(file: File) -> Foreign | None:
    from bnstat.formats.hdf5.file import is_hdf5

    if not is_hdf5(file):
        return None
    return Foreign("an HDF5 file without arrays of numbers", "give the .h5 that holds the weights")


def _zip(file: File, head: bytes) -> Foreign | None:
    """A zip that is no archive of model files: an office document, a program."""
    if not head.startswith(b"PK\x03\x04"):
        return None
    from bnstat.storage.archive import open_archive

    try:
        folder = open_archive(file)
    except DamagedError:
        return None
    names = set(folder.names()) if folder is not None else set()
    if "[Content_Types].xml" in names:
        return Foreign("an office document", READS)
    if "META-INF" in names:
        return Foreign("a Java archive", READS)
    if {"nnp_version.txt", "parameter.protobuf"} <= names:
        return Foreign("an .nnp of NNabla's", _PARAMETERS)
    if {"configuration.json", "coefficients.bin"} <= names:
        return Foreign("a model of Deeplearning4j's", _PORT)
    if "config.json" in names and "metadata.json" in names:
        return Foreign("a .keras without weights", _WEIGHTS_TOO)
    return None


def _gzip(head: bytes) -> Foreign | None:
    """Something compressed by gzip that is no tar."""
    if not head.startswith(b"\x1f\x8b"):
        return None
    try:
        start = zlib.decompressobj(zlib.MAX_WBITS | 16).decompress(head, 512)
    except zlib.error:
        return None
    if start[257:262] == b"ustar" or not start.strip(b"\0"):
        return None
    return Foreign("compressed by gzip, and no tar", "unpack it first, with gunzip")


def _pickle(head: bytes) -> Foreign | None:
    if not re.match(rb"\x80[\x02-\x05]", head):
        return None
    return Foreign("a Python pickle and not PyTorch's: it is not read for it can run code", _PORT)


def _records(file: File, head: bytes) -> Foreign | None:
    """TFRecord: a length (u64), its masked CRC-32C (u32), the record, that of the record."""
    from bnstat.formats.tensorflow.sstable import masked_crc32c

    length = int.from_bytes(head[:8], "little")
    if len(head) < 16 or length > file.size - 16:
        return None
    if masked_crc32c(head[:8]) != int.from_bytes(head[8:12], "little"):
        return None
    if b"brain.Event:" in head[12 : 12 + length]:
        return Foreign("a TensorBoard event file", "give the checkpoints that lie beside it")
    return Foreign("a TFRecord file, which holds data", READS)


def _message_pack(head: bytes) -> Foreign | None:
    """A map whose first key is a short text, as flax.serialization writes."""
    if re.match(rb"[\x81-\x8f][\xa1-\xbf][a-z_]+", head) and b"\xc7" in head:
        return Foreign("a MessagePack document, as Flax saves", _PORT)
    return None


def _message(head: bytes) -> Foreign | None:
    if is_core_ml(head):
        return Foreign("a model of Core ML", _ORIGINAL)
    for pattern, what, hint in _MESSAGES:
        if re.match(pattern, head, re.DOTALL):
            return Foreign(what, hint)
    return None


def _by_name(name: str) -> Foreign | None:
    for ending, what in _ENDINGS.items():
        if name.endswith(ending):
            return Foreign(f"{what}, by its name", _ORIGINAL)
    return None


def _text(head: bytes) -> Foreign | None:
    if b"\0" in head:
        return None
    for pattern, what, hint in _TEXTS:
        if re.match(pattern, head, re.DOTALL | re.MULTILINE):
            return Foreign(what, hint)
    try:
        head.decode("utf-8", "strict" if len(head) < _HEAD else "ignore")
    except UnicodeDecodeError:
        return None
    return Foreign("text, and no model", READS)
