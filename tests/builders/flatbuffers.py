"""TensorFlow Lite models written by hand."""

from __future__ import annotations

import struct


def hand_made(tensor_type: int, shape: tuple[int, ...], data: bytes, scale: float) -> bytes:
    """One tensor, by the layout of flatbuffers: each table before what it leads to."""
    parts = bytearray(b"\0\0\0\0TFL3")

    def add(form: str, *values: object) -> int:
        at = len(parts)
        parts.extend(struct.pack(f"<{form}", *values))
        return at

    def table(*fields: str | None) -> tuple[int, list[int]]:
        """Add a table of zeros, and return its position and the positions of its fields."""
        sizes = [struct.calcsize(f"<{each}") if each else 0 for each in fields]
        places = [4 + sum(sizes[:number]) for number in range(len(fields))]
        inside = [place if size else 0 for place, size in zip(places, sizes, strict=True)]
        vtable = add(f"HH{len(fields)}H", 4 + 2 * len(fields), 4 + sum(sizes), *inside)
        at = add("i", 0)
        struct.pack_into("<i", parts, at, at - vtable)
        parts.extend(bytes(sum(sizes)))
        return at, [at + place for place in places]

    def lead(place: int, target: int) -> None:
        struct.pack_into("<I", parts, place, target - place)

    model, (_, _, subgraphs, _, buffers) = table(None, None, "I", None, "I")
    lead(0, model)
    lead(subgraphs, vector := add("II", 1, 0))
    graph, (tensors,) = table("I")
    lead(vector + 4, graph)
    lead(tensors, vector := add("II", 1, 0))
    tensor, (its_shape, kind, buffer, name, quantized) = table("I", "b", "I", "I", "I")
    lead(vector + 4, tensor)
    struct.pack_into("<b", parts, kind, tensor_type)
    struct.pack_into("<I", parts, buffer, 1)
    lead(its_shape, add(f"I{len(shape)}i", len(shape), *shape))
    lead(name, add("I1s", 1, b"w"))
    if scale:
        quantization, (_, _, scales) = table(None, None, "I")
        lead(quantized, quantization)
        lead(scales, add("If", 1, scale))
    else:
        lead(quantized, table()[0])
    lead(buffers, vector := add("III", 2, 0, 0))
    for place in (4, 8):
        held, fields = table(*["I"] * (place == 8))
        lead(vector + place, held)
        if fields:
            lead(fields[0], add(f"I{len(data)}s", len(data), data))
    return bytes(parts)
