"""The protocol buffers of TensorFlow, Keras 2 and ONNX, as far as reading needs them.

The messages are declared here, with field numbers from the `.proto` files named beside each group,
in a descriptor pool of their own. TensorFlow, if it is loaded in the same process, is neither
needed nor disturbed. Fields that nothing reads are left out; protobuf skips them. Protobuf bounds
lengths by the buffer, and nesting by its recursion limit.
"""

from __future__ import annotations

from functools import cache
from typing import Any

from bnstat.errors import DamagedError, UnsupportedError
from bnstat.formats.dtypes import DATA_TYPES
from bnstat.formats.protobuf.wire import Field, Window, encoded, scan

_SCHEMA = """
# tensorflow/core/framework/versions.proto, tensor_shape.proto, tensor_slice.proto
message VersionDef { int32 producer 1; int32 min_consumer 2 }
message Dim { int64 size 1 }
message TensorShapeProto { repeated Dim dim 2; bool unknown_rank 3 }
message Extent { int64 start 1; optional int64 length 2 }
message TensorSliceProto { repeated Extent extent 1 }

# tensorflow/core/util/saved_tensor_slice.proto
message SavedSliceMeta {
  string name 1; TensorShapeProto shape 2; int32 type 3; repeated TensorSliceProto slice 4 }
message SavedTensorSliceMeta { repeated SavedSliceMeta tensor 1; VersionDef versions 2 }
message SavedSlice { string name 1; TensorSliceProto slice 2; TensorProto data 3 }
message SavedTensorSlices { SavedTensorSliceMeta meta 1; SavedSlice data 2 }

# tensorflow/core/framework/tensor.proto, attr_value.proto, node_def.proto, op_def.proto,
# function.proto, graph.proto
message TensorProto {
  DataType dtype 1; TensorShapeProto tensor_shape 2; bytes tensor_content 4;
  repeated float float_val 5; repeated double double_val 6; repeated int32 int_val 7;
  repeated bytes string_val 8; repeated int64 int64_val 10; repeated bool bool_val 11;
  repeated int32 half_val 13; repeated uint32 uint32_val 16; repeated uint64 uint64_val 17 }
message ListValue {
  repeated bytes s 2; repeated int64 i 3; repeated float f 4; repeated bool b 5;
  repeated DataType type 6; repeated TensorShapeProto shape 7; repeated NameAttrList func 9 }
message NameAttrList { string name 1 }
message AttrValue {
  optional ListValue list 1; optional bytes s 2; optional int64 i 3;
  optional float f 4; optional bool b 5;
  optional DataType type 6; optional TensorShapeProto shape 7; optional TensorProto tensor 8;
  optional NameAttrList func 10 }
message NodeDef {
  string name 1; string op 2; repeated string input 3; string device 4; map AttrValue attr 5 }
message ArgDef { string name 1; DataType type 3 }
message OpDef { string name 1; repeated ArgDef input_arg 2; repeated ArgDef output_arg 3 }
message FunctionDef { OpDef signature 1; repeated NodeDef node_def 3; map string ret 4 }
message FunctionDefLibrary { repeated FunctionDef function 1 }
message GraphDef { repeated NodeDef node 1; FunctionDefLibrary library 2; VersionDef versions 4 }

# tensorflow/core/protobuf/meta_graph.proto, saved_model.proto, saved_object_graph.proto
message MetaInfoDef {
  string meta_graph_version 1; repeated string tags 4; string tensorflow_version 5;
  string tensorflow_git_version 6 }
message TensorInfo { string name 1 }
message SignatureDef { map TensorInfo inputs 1; map TensorInfo outputs 2; string method_name 3 }
message MetaGraphDef {
  MetaInfoDef meta_info_def 1; GraphDef graph_def 2;
  map SignatureDef signature_def 5; SavedObjectGraph object_graph_def 7 }
message SavedModel { int64 saved_model_schema_version 1; repeated MetaGraphDef meta_graphs 2 }
message SavedUserObject { string identifier 1; string metadata 3 }
message SavedConcreteFunction { repeated int32 bound_inputs 2 }
message SavedObject { optional SavedUserObject user_object 4 }
message SavedObjectGraph {
  repeated SavedObject nodes 1; map SavedConcreteFunction concrete_functions 2 }

# The same SavedObjectGraph, for its variables, which most readers do not need.
message ObjectReference { int32 node_id 1; string local_name 2 }
message SavedVariable { DataType dtype 1; TensorShapeProto shape 2; string name 6 }
message DeclaredObject { repeated ObjectReference children 1; optional SavedVariable variable 7 }
message DeclaredObjectGraph { repeated DeclaredObject nodes 1 }

# keras/src/legacy/saving: saved_metadata.proto (Keras 2)
message KerasSavedObject {
  int32 node_id 2; string node_path 3; string identifier 4; string metadata 5 }
message KerasSavedMetadata { repeated KerasSavedObject nodes 1 }

# onnx/onnx.proto; the graphs in nodes, and nodes and tensors in graphs, are read one by one
message OnnxStringPair { string key 1; string value 2 }
message OnnxTensor {
  repeated int64 dims 1; int32 data_type 2; string name 8;
  repeated OnnxStringPair external_data 13; int32 data_location 14 }
message OnnxAttribute {
  string name 1; optional float f 2; optional int64 i 3; optional bytes s 4;
  string ref_attr_name 21 }
message OnnxNode {
  repeated string input 1; repeated string output 2; string name 3; string op_type 4;
  repeated OnnxAttribute attribute 5; string domain 7; string overload 8 }
message OnnxValueInfo { string name 1 }
message OnnxFunction {
  string name 1; repeated string input 4; repeated string output 5; string domain 10;
  repeated OnnxAttribute attribute_proto 11; string overload 13 }
message OnnxOperatorSet { string domain 1; int64 version 2 }
"""

_PACKAGE = "bnstat_tf"

_LONGEST_TEXT = 10_000_000

_LONG = 4096
"""Bytes of a field that is left out of a message, if it is not a message itself."""


def parse(name: str, data: bytes, where: str, what: str = "") -> Any:
    """Parse a message.

    Args:
        name: the message's name, as in `GraphDef`.
        data: the serialized message.
        where: the file, for the error.
        what: the message, for the error; `name` by default.

    Raises:
        DamagedError: the data is not such a message.
    """
    from google.protobuf.message import DecodeError

    try:
        return message_class(name).FromString(data)
    except (DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise DamagedError(
            where, f"{what or name} cannot be parsed", "the file is damaged or has another format"
        ) from error


def parse_text(name: str, data: bytes, where: str, what: str = "") -> Any:
    """Parse a message in protobuf's text form; for the arguments see `parse`.

    Raises:
        DamagedError: the data is not such a message.
        UnsupportedError: the data is too long, because parsing text is a hundred times slower.
    """
    from google.protobuf import text_format

    if len(data) > _LONGEST_TEXT:
        raise UnsupportedError(
            where,
            f"{what or name} is too long to be read in text form",
            "convert it to the binary form",
        )
    try:
        return text_format.Parse(data, message_class(name)(), allow_unknown_field=True)
    except (text_format.ParseError, UnicodeDecodeError, RecursionError, ValueError) as error:
        raise DamagedError(where, f"{what or name} cannot be parsed as text") from error


def without_long_fields(window: Window, message: Field, name: str) -> bytes:
    """Read a message from a file, without its long fields that are not messages.

    Args:
        window: the file.
        message: the position of the message.
        name: the message's name, as in `GraphDef`; fields that it does not declare are left out
            if they are long.

    Raises:
        DamagedError: the file is too short.
        WireError: the bytes are not a message.
    """
    return _without_long_fields(window, message, message_class(name).DESCRIPTOR)


def _without_long_fields(window: Window, message: Field, declared: Any) -> bytes:
    if message.end - message.start <= _LONG:
        return window.read(message.start, message.end)
    kept = bytearray()
    for each in scan(window, message.start, message.end):
        if each.end - each.begin <= _LONG:
            kept += window.read(each.begin, each.end)
        elif (known := declared.fields_by_number.get(each.number)) and known.message_type:
            nested = _without_long_fields(window, each, known.message_type)
            kept += encoded(each.number << 3 | 2) + encoded(len(nested)) + nested
    return bytes(kept)


@cache
def message_class(name: str) -> Any:
    """Return the class of a message, as in `message_class("GraphDef")`."""
    from google.protobuf import message_factory

    return message_factory.GetMessageClass(_pool().FindMessageTypeByName(f"{_PACKAGE}.{name}"))


@cache
def _pool() -> Any:
    from google.protobuf import descriptor_pb2, descriptor_pool

    file = descriptor_pb2.FileDescriptorProto(
        name="bnstat_tf.proto", package=_PACKAGE, syntax="proto3"
    )
    data_type = file.enum_type.add(name="DataType")
    for number, name in enumerate(DATA_TYPES.split()):
        data_type.value.add(name=f"DT_{name}", number=number)
        data_type.value.add(name=f"DT_{name}_REF", number=number + 100)
    schema = "\n".join(line for line in _SCHEMA.splitlines() if not line.startswith("#"))
    for declaration in schema.split("message ")[1:]:
        name, _, fields = declaration.partition("{")
        message = file.message_type.add(name=name.strip())
        for field in fields.strip().rstrip("}").split(";"):
            _add_field(message, *field.split())
    pool = descriptor_pool.DescriptorPool()
    pool.AddSerializedFile(file.SerializeToString())
    return pool


def _add_field(message: Any, *words: str) -> None:
    """Declare a field from `[repeated|optional|map] kind name number`."""
    *label, kind, name, number = words
    field = message.field.add(name=name, number=int(number))
    field.label = field.LABEL_OPTIONAL
    _set_type(field, kind)
    if label == ["repeated"]:
        field.label = field.LABEL_REPEATED
    elif label == ["optional"]:
        field.proto3_optional = True
        field.oneof_index = len(message.oneof_decl)
        message.oneof_decl.add(name=f"_{name}")
    elif label == ["map"]:
        entry = message.nested_type.add(name=f"{name.title().replace('_', '')}Entry")
        entry.options.map_entry = True
        _add_field(entry, "string", "key", "1")
        _add_field(entry, kind, "value", "2")
        field.label = field.LABEL_REPEATED
        field.type = field.TYPE_MESSAGE
        field.type_name = f".{_PACKAGE}.{message.name}.{entry.name}"


def _set_type(field: Any, kind: str) -> None:
    scalar = getattr(field, f"TYPE_{kind.upper()}", None)
    if kind == "DataType":
        field.type, field.type_name = field.TYPE_ENUM, f".{_PACKAGE}.{kind}"
    elif scalar is None:
        field.type, field.type_name = field.TYPE_MESSAGE, f".{_PACKAGE}.{kind}"
    else:
        field.type = scalar
