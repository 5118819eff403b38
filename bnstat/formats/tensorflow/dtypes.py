"""TensorFlow's element types: the codes of `DataType` in types.proto, and NumPy's types for them.

Types that NumPy lacks come from ml_dtypes, as in TensorFlow itself. The quantized types are the
integers that they are stored as. 4- and 2-bit types take a whole byte an element.
"""

from __future__ import annotations

from functools import cache

import numpy as np

from bnstat.errors import UnsupportedError

STRING = 7

NAMES = {
    1: "float32",
    2: "float64",
    3: "int32",
    4: "uint8",
    5: "int16",
    6: "int8",
    STRING: "string",
    8: "complex64",
    9: "int64",
    10: "bool",
    11: "qint8",
    12: "quint8",
    13: "qint32",
    14: "bfloat16",
    15: "qint16",
    16: "quint16",
    17: "uint16",
    18: "complex128",
    19: "float16",
    20: "resource",
    21: "variant",
    22: "uint32",
    23: "uint64",
    24: "float8_e5m2",
    25: "float8_e4m3fn",
    26: "float8_e4m3fnuz",
    27: "float8_e4m3b11fnuz",
    28: "float8_e5m2fnuz",
    29: "int4",
    30: "uint4",
    31: "int2",
    32: "uint2",
    33: "float4_e2m1fn",
}


def dtype_name(code: int) -> str:
    """TensorFlow's name of a type; `type 99` for a code that it does not know."""
    return NAMES.get(code, f"type {code}")


def numpy_dtype(name: str, where: str = "") -> np.dtype[np.generic]:
    """NumPy's type for the elements of a numeric TensorFlow type.

    Raises:
        UnsupportedError: the type is not numeric, or not known; `where` names the tensor.
    """
    dtype = find_dtype(name)
    if dtype is None:
        raise UnsupportedError(where, f"a tensor of {name} cannot be read as numbers")
    return dtype


@cache
def find_dtype(name: str) -> np.dtype[np.generic] | None:
    """As `numpy_dtype`; None where the type is not numeric, or not known."""
    stored = name[1:] if name.startswith(("qint", "quint")) else name
    if stored == "string":
        return None
    try:
        return np.dtype(stored)
    except TypeError:
        import ml_dtypes

        kind: type[np.generic] | None = getattr(ml_dtypes, stored, None)
        return None if kind is None else np.dtype(kind)
