"""The protocol buffers of TensorFlow, Keras 2 and ONNX that bnstat reads.

The message types have the field numbers of the `.proto` files that are named above each group, and
only the fields that bnstat reads. Their descriptor pool is separate from TensorFlow's. Protobuf
rejects lengths beyond the buffer, and nesting beyond its limit.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any, NamedTuple

import numpy as np

from bnstat.errors import DamagedError, UnsupportedError
from bnstat.formats.dtypes import DATA_TYPES
from bnstat.formats.protobuf.wire import Decoding, Field, Window, field, scan
from bnstat.storage.files import File

_SCHEMA = """
# tensorflow/core/framework/tensor_shape.proto, tensor_slice.proto
message Dim { int64 size 1 }
message TensorShapeProto { repeated Dim dim 2; bool unknown_rank 3 }
message Extent { int64 start 1; optional int64 length 2 }
message TensorSliceProto { repeated Extent extent 1 }

# tensorflow/core/util/saved_tensor_slice.proto
message SavedSliceMeta {
  string name 1; TensorShapeProto shape 2; int32 type 3; repeated TensorSliceProto slice 4 }
message SavedTensorSliceMeta { repeated SavedSliceMeta tensor 1 }
message SavedSlice { TensorProto data 3 }
message SavedTensorSlices { SavedTensorSliceMeta meta 1; SavedSlice data 2 }

# tensorflow/core/framework/tensor.proto, attr_value.proto, node_def.proto, op_def.proto,
# function.proto, graph.proto
message TensorProto {
  DataType dtype 1; TensorShapeProto tensor_shape 2; bytes tensor_content 4;
  repeated float float_val 5; repeated double double_val 6; repeated int32 int_val 7;
  repeated bytes string_val 8; repeated int64 int64_val 10; repeated bool bool_val 11;
  repeated int32 half_val 13; repeated uint32 uint32_val 16; repeated uint64 uint64_val 17 }
message ListValue { repeated NameAttrList func 9 }
message NameAttrList { string name 1 }
message AttrValue {
  optional ListValue list 1; optional bytes s 2; optional int64 i 3; optional float f 4;
  optional bool b 5; optional DataType type 6; optional TensorShapeProto shape 7;
  optional TensorProto tensor 8; optional NameAttrList func 10 }
message NodeDef {
  string name 1; string op 2; repeated string input 3; map AttrValue attr 5;
  fixed64 begin 1000; fixed64 end 1001 }
message ArgDef { string name 1 }
message OpDef { string name 1; repeated ArgDef input_arg 2; repeated ArgDef output_arg 3 }
message FunctionDef { OpDef signature 1; repeated NodeDef node_def 3; map string ret 4 }
message FunctionDefLibrary { repeated FunctionDef function 1 }
message GraphDef { repeated NodeDef node 1; FunctionDefLibrary library 2 }

# tensorflow/core/protobuf/meta_graph.proto, saved_model.proto, saved_object_graph.proto
message MetaInfoDef { string tensorflow_version 5 }
message TensorInfo { string name 1 }
message SignatureDef { map TensorInfo outputs 2 }
message MetaGraphDef {
  MetaInfoDef meta_info_def 1; GraphDef graph_def 2;
  map SignatureDef signature_def 5; SavedObjectGraph object_graph_def 7 }
message SavedModel { repeated MetaGraphDef meta_graphs 2 }
message SavedUserObject { string metadata 3 }
message SavedConcreteFunction { repeated int32 bound_inputs 2 }
message ObjectReference { int32 node_id 1; string local_name 2 }
message SavedVariable { DataType dtype 1; TensorShapeProto shape 2; string name 6 }
message SavedObject {
  repeated ObjectReference children 1; optional SavedUserObject user_object 4;
  optional SavedVariable variable 7 }
message SavedObjectGraph {
  repeated SavedObject nodes 1; map SavedConcreteFunction concrete_functions 2 }

# keras/src/legacy/saving: saved_metadata.proto (Keras 2)
message KerasSavedObject { int32 node_id 2; string metadata 5 }
message KerasSavedMetadata { repeated KerasSavedObject nodes 1 }

# onnx/onnx.proto. Lists, and the tensors and graphs in attributes, are read on demand.
message OnnxStringPair { string key 1; string value 2 }
message OnnxTensor {
  repeated int64 dims 1; int32 data_type 2; string name 8;
  repeated OnnxStringPair external_data 13; int32 data_location 14;
  fixed64 begin 1000; fixed64 end 1001 }
message OnnxTensorLists {
  repeated float float_data 4; repeated int32 int32_data 5; repeated int64 int64_data 7;
  repeated double double_data 10; repeated uint64 uint64_data 11 }
message OnnxAttribute {
  string name 1; optional float f 2; optional int64 i 3; optional bytes s 4;
  string ref_attr_name 21; fixed64 begin 1000; fixed64 end 1001 }
message OnnxAttributeLists { repeated float floats 7; repeated int64 ints 8 }
message OnnxNode {
  repeated string input 1; repeated string output 2; string name 3; string op_type 4;
  repeated OnnxAttribute attribute 5; string domain 7; string overload 8 }
message OnnxValueInfo { string name 1 }
message OnnxGraph {
  repeated OnnxNode node 1; repeated OnnxTensor initializer 5;
  repeated OnnxValueInfo input 11; repeated OnnxValueInfo output 12 }
message OnnxFunction {
  string name 1; repeated string input 4; repeated string output 5; repeated OnnxNode node 7;
  string domain 10; repeated OnnxAttribute attribute_proto 11; string overload 13 }
message OnnxOperatorSet { string domain 1; int64 version 2 }
message OnnxModel {
  string producer_name 2; string producer_version 3; OnnxGraph graph 7;
  repeated OnnxOperatorSet opset_import 8; repeated OnnxFunction functions 25 }
"""

_PACKAGE = "bnstat_tf"
_LONGEST_TEXT = 10_000_000
"""A limit in bytes: text is parsed a hundred times more slowly than the binary form."""

_LONG = 4096
"""A skeleton omits fields with more bytes, except nested messages, which become skeletons."""
_MAX_MESSAGES = 500_000
"""The maximum number of messages in a skeleton, not counting short messages without positions."""
_MAX_SKELETON = 1 << 26
"""The maximum size of a skeleton in bytes; the skeletons of real graphs have a few million."""
_BEGIN = 1000
_BEGIN_TAG, _END_TAG = b"\xc1\x3e", b"\xc9\x3e"
_POSITION = struct.Struct("<2sQ2sQ")
"""The field `begin`, and the encoded fields `begin` and `end`: the offsets in the file where a
message starts and ends. Only bnstat's message types have these fields."""


def parse(name: str, data: bytes, where: str, what: str = "") -> Any:
    """Parse a message of the type `name`, such as `GraphDef`.

    Invalid data raises a `DamagedError`: "WHERE: WHAT cannot be parsed". WHAT defaults to `name`.
    """
    from google.protobuf.message import DecodeError

    try:
        return message_class(name).FromString(data)
    except (DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise DamagedError(
            where, f"{what or name} cannot be parsed", "the file is damaged or has another format"
        ) from error


def parse_text(name: str, data: bytes, where: str, what: str = "") -> Any:
    """Parse a message in protobuf's text form. See `parse` for the arguments and the error."""
    from google.protobuf import text_format

    if len(data) > _LONGEST_TEXT:
        problem = f"{what or name} is too long to be read in text form"
        raise UnsupportedError(where, problem, "convert it to the binary form")
    try:
        return text_format.Parse(data, message_class(name)(), allow_unknown_field=True)
    except (text_format.ParseError, UnicodeDecodeError, RecursionError, ValueError) as error:
        raise DamagedError(where, f"{what or name} cannot be parsed as text") from error


def skeleton(file: File, start: int, end: int, name: str, what: str) -> Any:
    """Parse the message from `start` to `end` without long fields, such as the values of tensors.

    If a message type declares the fields `begin` and `end`, they are set to the offsets where the
    message starts and ends. Raise `UnsupportedError` for too many messages or bytes. For `name` and
    `what` see `parse`.
    """
    with Decoding(file.path, what):
        data = _Skeleton(file, what).message(start, end, _layout(message_class(name).DESCRIPTOR))
    return parse(name, data, file.path, what)


def complete(file: File, message: Any, what: str) -> Any:
    """Return the complete message of a skeleton; read the file again if fields may be missing."""
    if message.end - message.begin <= _LONG:
        return message
    data = file.read(message.begin, message.end - message.begin)
    return parse(message.DESCRIPTOR.name, data, file.path, what)


def scalar(message: Any, *fields: str) -> float | int | bool | str | None:
    """Return the value of the first of these optional fields that is set; None if all are unset."""
    name = next(filter(message.HasField, fields), None)
    value: Any = None if name is None else getattr(message, name)
    if name == "f":  # as the shortest decimal form of the float32, such as 1e-05
        value = float(str(np.float32(value)))
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value


def find_fields(file: File, message: Any, *path: int) -> list[Field]:
    """Return the fields of a skeleton at a path of field numbers, located in the file."""
    window = Window(file)
    spans = [(message.begin, message.end)]
    found: list[Field] = []
    with Decoding(file.path, message.DESCRIPTOR.name):
        for number in path:
            parts = (part for span in spans for part in scan(window.read, *span))
            found = [part for part in parts if part.number == number]
            spans = [(part.start, part.end) for part in found]
    return found


class _Layout(NamedTuple):
    """A message type. `fields` maps a field's number to its message's layout, else to None."""

    fields: Mapping[int, _Layout | None]
    contains_positions: bool
    """True if a nested message type declares `begin` and `end`."""


@cache
def _layout(descriptor: Any) -> _Layout:
    fields = {
        field.number: None if field.message_type is None else _layout(field.message_type)
        for field in descriptor.fields
    }
    nested = [layout for layout in fields.values() if layout is not None]
    return _Layout(fields, any(_BEGIN in each.fields or each.contains_positions for each in nested))


class _Skeleton:
    """Copies messages without long fields. Limits: `_MAX_MESSAGES`, and `_MAX_SKELETON` bytes."""

    def __init__(self, file: File, what: str) -> None:
        self._window = Window(file)
        self._what = what
        self._messages_left = _MAX_MESSAGES
        self._bytes_left = _MAX_SKELETON

    def message(self, start: int, end: int, layout: _Layout) -> bytes:
        """Return the message from `start` to `end`, serialized again without long fields."""
        self._count(messages=1)
        if layout.contains_positions or end - start > _LONG:
            copy = b"".join(self._fields(start, end, layout))
        else:
            copy = self._read(start, end)
        if _BEGIN in layout.fields:
            copy += _POSITION.pack(_BEGIN_TAG, start, _END_TAG, end)
        return copy

    def _fields(self, start: int, end: int, layout: _Layout) -> Iterator[bytes]:
        for each in scan(self._window.read, start, end):
            if each.number not in layout.fields:
                continue
            nested = layout.fields[each.number] if each.kind == 2 else None
            is_long = each.end - each.begin > _LONG
            if nested and (is_long or _BEGIN in nested.fields or nested.contains_positions):
                yield field(each.number, self.message(each.start, each.end, nested))
            elif not is_long:
                yield self._read(each.begin, each.end)

    def _read(self, start: int, end: int) -> bytes:
        self._count(length=end - start)
        return self._window.read(start, end)

    def _count(self, messages: int = 0, length: int = 0) -> None:
        self._messages_left -= messages
        self._bytes_left -= length
        if self._messages_left < 0 or self._bytes_left < 0:
            raise UnsupportedError(self._window.file.path, f"{self._what} is too large to be read")


@cache
def message_class(name: str) -> Any:
    """Return the Python class of a message type, as in `message_class("GraphDef")`."""
    from google.protobuf import message_factory

    return message_factory.GetMessageClass(_pool().FindMessageTypeByName(f"{_PACKAGE}.{name}"))


@cache
def _pool() -> Any:
    from google.protobuf import descriptor_pb2, descriptor_pool

    file = descriptor_pb2.FileDescriptorProto(name="tf.proto", package=_PACKAGE, syntax="proto3")
    data_type = file.enum_type.add(name="DataType")
    for number, name in enumerate(DATA_TYPES.split()):
        data_type.value.add(name=f"DT_{name}", number=number)
        data_type.value.add(name=f"DT_{name}_REF", number=number + 100)
    schema = "\n".join(line for line in _SCHEMA.splitlines() if not line.startswith("#"))
    for declaration in schema.split("message ")[1:]:
        name, _, fields = declaration.partition("{")
        message = file.message_type.add(name=name.strip())
        for line in fields.strip().rstrip("}").split(";"):
            _add_field(message, *line.split())
    pool = descriptor_pool.DescriptorPool()
    pool.AddSerializedFile(file.SerializeToString())
    return pool


def _add_field(message: Any, *words: str) -> None:
    """Add a field to a message type; `words` are `[repeated|optional|map] kind name number`."""
    *label, kind, name, number = words
    field = message.field.add(name=name, number=int(number))
    is_repeated = label in (["repeated"], ["map"])
    field.label = field.LABEL_REPEATED if is_repeated else field.LABEL_OPTIONAL
    if label == ["optional"]:
        field.proto3_optional = True
        field.oneof_index = len(message.oneof_decl)
        message.oneof_decl.add(name=f"_{name}")
    elif label == ["map"]:
        entry = message.nested_type.add(name=f"{name.title().replace('_', '')}Entry")
        entry.options.map_entry = True
        _add_field(entry, "string", "key", "1")
        _add_field(entry, kind, "value", "2")
        kind = f"{message.name}.{entry.name}"
    named_type = field.TYPE_ENUM if kind == "DataType" else field.TYPE_MESSAGE
    field.type = getattr(field, f"TYPE_{kind.upper()}", named_type)
    if field.type == named_type:
        field.type_name = f".{_PACKAGE}.{kind}"
