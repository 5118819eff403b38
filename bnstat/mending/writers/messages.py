"""Fields of protocol buffers replaced; all that is not named stays as it is, byte for byte.

The values of a TensorProto stay in the field that holds them: raw in `tensor_content`, or listed
one by one, be it that the last one stood for all that follow (tensorflow/core/framework/
tensor.proto).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Final

import numpy as np

from bnstat.formats.protobuf.wire import encoded, field, spans
from bnstat.mending.writers.patches import raw
from bnstat.model import Array

Change = Callable[[bytes], bytes]

_CONTENT: Final = 4
_BITS: Final = 13
_LISTED: Final = {"float32": 5, "float64": 6, "float16": _BITS, "bfloat16": _BITS}
"""Element type -> the field that lists such values; 16-bit floats as the bits of each."""
_VALUES: Final = frozenset({4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 16, 17, 18})


def rebuilt(message: bytes, changes: Mapping[int, Change]) -> bytes:
    """A message with some of its fields changed.

    Args:
        message: the message.
        changes: place of a field among all of the message's -> what makes its new value.
    """
    pieces, kept = [], 0
    for place, span in enumerate(spans(message)):
        if place in changes:
            value = changes[place](message[span.start : span.end])
            pieces += [message[kept : span.begin], field(span.number, value)]
            kept = span.end
    return b"".join((*pieces, message[kept:]))


def at(path: Sequence[int], change: Change) -> Change:
    """What changes the field that the numbers lead to, from a message to one within.

    Where a field is there more than once, the last one counts, as for all parsers.
    """
    if not path:
        return change

    def change_within(message: bytes) -> bytes:
        places = [place for place, span in enumerate(spans(message)) if span.number == path[0]]
        return rebuilt(message, {places[-1]: at(path[1:], change)}) if places else message

    return change_within


def tensor_with(array: Array) -> Change:
    """What gives a `TensorProto` the values of an array of its dtype and shape."""

    def change(tensor: bytes) -> bytes:
        held = [span for span in spans(tensor) if span.number in _VALUES and span.end > span.start]
        is_raw = not held or held[0].number == _CONTENT
        number = _CONTENT if is_raw else _LISTED.get(array.dtype.name, _CONTENT)
        new = field(number, _as_bits(array) if number == _BITS else raw(array))
        if not held:
            return tensor + new
        pieces, kept = [], 0
        for span in held:
            pieces += [tensor[kept : span.begin], new]
            new, kept = b"", span.end
        return b"".join((*pieces, tensor[kept:]))

    return change


def _as_bits(array: Array) -> bytes:
    bits = np.ascontiguousarray(array).reshape(-1).view(np.uint16).tolist()
    return b"".join(map(encoded, bits))
