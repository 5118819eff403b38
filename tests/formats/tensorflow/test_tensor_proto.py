"""The numbers of a TensorProto, against TensorFlow's own."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from bnstat.errors import BnstatError, DamagedError, UnsupportedError
from bnstat.formats.protobuf.protos import message_class
from bnstat.formats.tensorflow.graph_def import decode_tensor, is_small, shape_of, small_array

tf = pytest.importorskip("tensorflow")


def ours(proto: Any) -> Any:
    return message_class("TensorProto").FromString(proto.SerializeToString())


DTYPES = ["float32", "float64", "float16", "bfloat16", "int8", "uint8", "int16", "uint16",
          "int32", "uint32", "int64", "uint64", "bool"]  # fmt: skip


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(), (1,), (3,), (2, 3), (0,), (2, 0)])
def test_arrays(dtype: str, shape: tuple[int, ...]) -> None:
    kind = tf.as_dtype(dtype).as_numpy_dtype
    values = np.random.default_rng(1).integers(0, 3, shape).astype(kind)
    for array in (values, np.ones(shape, kind)):
        proto = tf.make_tensor_proto(array)
        expected = tf.make_ndarray(proto)
        decoded = decode_tensor(ours(proto), "here")
        assert (decoded.dtype, decoded.shape) == (expected.dtype, shape)
        assert decoded.tobytes() == expected.tobytes()


@pytest.mark.parametrize(
    ("dtype", "field", "value"),
    [
        ("float32", "float_val", 1.1e-5),
        ("float64", "double_val", 1.1e-5),
        ("float16", "half_val", 0x3C01),
        ("bfloat16", "half_val", 0x3F81),
        ("int32", "int_val", -2),
        ("int64", "int64_val", -(1 << 40)),
        ("bool", "bool_val", True),
    ],
)
@pytest.mark.parametrize("listed", [0, 1, 2])
def test_the_last_value_is_repeated(dtype: str, field: str, value: Any, listed: int) -> None:
    kind = tf.as_dtype(dtype)
    proto = tf.make_tensor_proto(np.zeros([0], kind.as_numpy_dtype))
    proto.tensor_shape.dim[0].size = 3
    getattr(proto, field).extend([value] * listed)
    decoded = decode_tensor(ours(proto), "here")
    assert decoded.tobytes() == tf.make_ndarray(proto).tobytes()
    assert decoded.dtype == kind.as_numpy_dtype


def test_infinities_and_nans_keep_their_bits() -> None:
    array = np.array([np.nan, -np.nan, np.inf, -np.inf, -0.0, 1e-45], np.float32)
    assert decode_tensor(ours(tf.make_tensor_proto(array)), "here").tobytes() == array.tobytes()


def proto(sizes: list[int], **fields: Any) -> Any:
    message = message_class("TensorProto")(**{"dtype": 1, **fields})
    for size in sizes:
        message.tensor_shape.dim.add(size=size)
    return message


@pytest.mark.parametrize(
    "damaged",
    [
        proto([3], tensor_content=b"\0" * 8),
        proto([1], float_val=[1, 2]),
        proto([-1], float_val=[1]),
        proto([1 << 62, 1 << 62]),
        proto([1 << 40], float_val=[1]),
        proto([1 << 33], tensor_content=b"\0" * 4),
        proto([1] * 100, float_val=[1]),
    ],
)
def test_damaged(damaged: Any) -> None:
    with pytest.raises(DamagedError, match="here: "):
        decode_tensor(damaged, "here")
    assert small_array(damaged, "here") is None


@pytest.mark.parametrize("dtype", [7, 20, 21, 99])
def test_types_that_are_not_numbers(dtype: int) -> None:
    with pytest.raises(UnsupportedError):
        decode_tensor(proto([1], dtype=dtype), "here")


def test_unknown_rank() -> None:
    message = proto([])
    message.tensor_shape.unknown_rank = True
    assert shape_of(message) is None
    with pytest.raises(BnstatError):
        decode_tensor(message, "here")


def test_small() -> None:
    assert is_small(proto([4, 5]))
    assert not is_small(proto([1 << 20]))
    assert not is_small(proto([-1]))
