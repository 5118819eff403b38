"""Which mutations each format's seeds get."""

from __future__ import annotations

import io
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import replace
from random import Random
from typing import Any, Final

import h5py
import numpy as np

from tests.fuzz import mutate, pickles, wire
from tests.fuzz.seeds import Seed
from tests.fuzz.wire import Field

Recipe = Callable[[Random, Seed], Seed]

GRAPH_KEY: Final = b"_CHECKPOINTABLE_OBJECT_GRAPH"


def make(rng: Random, seed: Seed) -> tuple[Seed, bool]:
    """A case: a seed with one to three mutations of its format.

    Returns:
        The case, and whether checksums cover all that was changed: then bnstat must refuse it,
        or answer as for the seed.
    """
    if seed.format == "bundle" and rng.random() < 0.15:
        return _any_file(rng, seed, mutate.some_bytes), True
    # The HDF5 library is not let near what is damaged already: it could end this process.
    count = 1 if seed.format in ("hdf5", "keras", "json") else rng.choice((1, 1, 1, 2, 3))
    for recipe in rng.choices(RECIPES[seed.format], k=count):
        try:
            seed = recipe(rng, seed)
        except _UNREADABLE:
            seed = raw_bytes(rng, seed)
    within = {name: data[:_LONGEST] for name, data in seed.files.items()}
    return replace(seed, files=within), False


_LONGEST: Final = 2 << 20
"""Bytes of a case's file: that an honest file of hundreds of megabytes takes its time is fine."""


_UNREADABLE: Final = (
    ValueError, LookupError, ArithmeticError, TypeError, OSError, EOFError, RuntimeError,
    NotImplementedError, MemoryError, zlib.error, zipfile.BadZipFile,
)  # fmt: skip
"""What taking a file apart can raise that an earlier mutation has damaged."""


def _any_file(
    rng: Random, seed: Seed, change: Callable[[Random, bytes], bytes], ending: str = ""
) -> Seed:
    names = [name for name in sorted(seed.files) if name.endswith(ending)]
    if not names:
        return seed
    name = rng.choice(names)
    return seed.changed(name, change(rng, seed.files[name]))


def raw_bytes(rng: Random, seed: Seed) -> Seed:
    """Bytes of any file."""
    return _any_file(rng, seed, mutate.some_bytes)


def files(rng: Random, seed: Seed) -> Seed:
    """Files lost, emptied, swapped or doubled."""
    changed = dict(seed.files)
    name, other = rng.choice(sorted(changed)), rng.choice(sorted(changed))
    choice = rng.randrange(5)
    if choice == 0 and len(changed) > 1 and name != seed.target:
        del changed[name]
    elif choice == 1:
        changed[name] = b""
    elif choice == 2:
        changed[name], changed[other] = changed[other], changed[name]
    elif choice == 3:
        changed[name] = changed[name] * 2
    else:
        changed[name.replace("-00001", "-00002", 1)] = changed[other]
    return replace(seed, files=changed)


# Tables: bundle indexes and V1 checkpoints


def _table_of(seed: Seed) -> str | None:
    for name in sorted(seed.files):
        if seed.files[name].endswith(wire.MAGIC):
            return name
    return None


def _in_table(
    rng: Random, seed: Seed, change: Callable[[Random, list[tuple[bytes, bytes]]], None]
) -> Seed:
    name = _table_of(seed)
    if name is None:
        return raw_bytes(rng, seed)
    entries = wire.read_table(seed.files[name])
    change(rng, entries)
    if rng.random() < 0.9:
        entries.sort()
    return seed.changed(name, wire.write_table(entries, rng.choice((1, 2, 3, 1000, 1000))))


def entry_message(rng: Random, seed: Seed) -> Seed:
    """A field of an entry's message."""

    def change(rng: Random, entries: list[tuple[bytes, bytes]]) -> None:
        if entries:
            at = rng.randrange(len(entries))
            key, value = entries[at]
            entries[at] = key, mutate.protobuf(rng, value)

    return _in_table(rng, seed, change)


def entry_numbers(rng: Random, seed: Seed) -> Seed:
    """Shape, shard, offset or size of an entry: any number at all."""

    def change(rng: Random, entries: list[tuple[bytes, bytes]]) -> None:
        at = rng.randrange(len(entries)) if entries else 0
        for index in (at, at + 1)[: rng.choice((1, 2))]:
            if index < len(entries):
                key, value = entries[index]
                number = rng.choice((1, 3, 4, 5))
                told = Field(number, 0, rng.choice(mutate.NUMBERS))
                if rng.random() < 0.4:
                    dims = [Field(1, 0, rng.choice(mutate.NUMBERS))]
                    told = Field(2, 2, wire.encode([Field(2, 2, wire.encode(dims))]))
                entries[index] = key, value + wire.encode([told])

    return _in_table(rng, seed, change)


def keys(rng: Random, seed: Seed) -> Seed:
    """Keys renamed, doubled, lost, swapped; a thousand more."""

    def change(rng: Random, entries: list[tuple[bytes, bytes]]) -> None:
        if not entries:
            return
        at, other = rng.randrange(len(entries)), rng.randrange(len(entries))
        (key, value), (other_key, other_value) = entries[at], entries[other]
        choice = rng.randrange(6)
        if choice == 0:
            entries[at] = rng.choice(mutate.NAMES), value
        elif choice == 1:
            entries[at] = key + rng.choice((b"_1", b"/", b"/gamma", b"/Adam")), value
        elif choice == 2:
            del entries[at]
        elif choice == 3:
            entries[at], entries[other] = (key, other_value), (other_key, value)
        elif choice == 4:
            entries[at] = mutate.some_bytes(rng, key), value
        else:
            entries += [(b"%s_%d" % (key, index), value) for index in range(1000)]

    return _in_table(rng, seed, change)


def block_contents(rng: Random, seed: Seed) -> Seed:
    """The bytes of a block, its checksum right."""
    name = _table_of(seed)
    if name is None:
        return raw_bytes(rng, seed)
    entries = wire.read_table(seed.files[name])
    half = max(1, len(entries) // 2)
    parts = [entries[:half], entries[half:]] if entries[half:] else [entries]
    blocks = [(part[-1][0] if part else b"", wire.block_contents(part)) for part in parts]
    at = rng.randrange(len(blocks))
    last, contents = blocks[at]
    choice = rng.random()
    if choice < 0.6:
        blocks[at] = last, mutate.some_bytes(rng, contents)
    elif choice < 0.7:
        blocks *= rng.choice((2, 100))
    elif choice < 0.8:
        blocks[at] = mutate.some_bytes(rng, last), contents
    else:
        squeezed = rng.choice((_snappy(contents), mutate.some_bytes(rng, _snappy(contents))))
        return seed.changed(name, _one_block(squeezed, kind=1))
    return seed.changed(name, wire.table(blocks))


def _one_block(contents: bytes, kind: int) -> bytes:
    """A table of a single block of another kind."""
    whole = wire.table([(b"\xff", contents)])
    block = wire.block(contents, kind)
    return block + whole[len(block) :]


def _snappy(contents: bytes) -> bytes:
    """Contents as a snappy block, of one literal and one copy of its last byte."""
    length = len(contents) - (contents[-1:] == contents[-2:-1])
    literal = bytes([62 << 2]) + (length - 1).to_bytes(3, "little")
    copy = bytes([2, 1, 0]) * (len(contents) - length)
    return wire.varint(len(contents)) + literal + contents[:length] + copy


def tensor_bytes(rng: Random, seed: Seed) -> Seed:
    """The bytes of a tensor, its checksum right."""
    data = next((name for name in sorted(seed.files) if ".data-00000" in name), None)
    if data is None:
        return raw_bytes(rng, seed)
    changed = bytearray(seed.files[data])

    def change(rng: Random, entries: list[tuple[bytes, bytes]]) -> None:
        candidates = []
        for index, (_, value) in enumerate(entries):
            told = {field.number: field.value for field in wire.parse(value)}
            start, size = told.get(4, 0), told.get(5, 0)
            if isinstance(start, int) and isinstance(size, int) and start + size <= len(changed):
                candidates.append((index, start, size, told.get(1)))
        if not candidates:
            return
        index, start, size, dtype = rng.choice(candidates)
        key, value = entries[index]
        raw = bytes(changed[start : start + size])
        if dtype == 7:
            raw = _string_tensor(mutate.protobuf(rng, _string_of(raw)))
            start = len(changed)
            changed.extend(raw)
            crc = _string_crc(raw)
        else:
            raw = rng.choice((mutate.set_float, mutate.flip, mutate.copy))(rng, raw)[:size]
            changed[start : start + len(raw)] = raw
            crc = wire.masked_crc32c(raw)
        more = [Field(4, 0, start), Field(5, 0, len(raw)), Field(6, 5, crc.to_bytes(4, "little"))]
        entries[index] = key, value + wire.encode(more)

    return _in_table(rng, seed, change).changed(data, bytes(changed))


def _string_of(raw: bytes) -> bytes:
    _, at = wire.read_varint(raw, 0)
    return raw[at + 4 :]


def _string_tensor(text: bytes) -> bytes:
    packed = len(text).to_bytes(4, "little")
    middle = wire.masked_crc32c(packed).to_bytes(4, "little")
    return wire.varint(len(text)) + middle + text


def _string_crc(raw: bytes) -> int:
    length, at = wire.read_varint(raw, 0)
    return wire.masked_crc32c(length.to_bytes(4, "little") + raw[at:])


def table_bytes(rng: Random, seed: Seed) -> Seed:
    """The footer, or any byte of the table."""
    name = _table_of(seed)
    if name is None:
        return raw_bytes(rng, seed)
    data = seed.files[name]
    if rng.random() < 0.5:
        footer = mutate.some_bytes(rng, data[-wire.FOOTER : -8])[:40].ljust(40, b"\0")
        return seed.changed(name, data[: -wire.FOOTER] + footer + wire.MAGIC)
    return seed.changed(name, mutate.some_bytes(rng, data))


# Protocol buffers


def protobuf(rng: Random, seed: Seed) -> Seed:
    """A field of a `.pb`, `.meta` or `.onnx`, however deep, or JSON in one."""
    endings = [end for end in (".pb", ".meta", ".onnx") if any(n.endswith(end) for n in seed.files)]
    ending = rng.choice(endings) if endings else ".pb"
    return _any_file(rng, seed, lambda rng, data: mutate.protobuf(rng, data, _leaf), ending)


def _leaf(rng: Random, value: bytes) -> bytes:
    is_json = value[:1] == b"{"
    return mutate.json_text(rng, value) if is_json else mutate.some_bytes(rng, value)


def graph_wiring(rng: Random, seed: Seed) -> Seed:
    """Words of a graph swapped for others of it: inputs, functions, ops, names."""
    ending = {"graph-beside": ".meta", "onnx": ".onnx"}.get(seed.format, ".pb")

    def change(rng: Random, data: bytes) -> bytes:
        words: list[bytes] = []
        _collect(data, words, 0)
        if not words:
            return data
        for _ in range(rng.choice((1, 1, 3, 10))):
            data = _swap(rng, data, rng.choice(words), rng.choice(words))
        return data

    return _any_file(rng, seed, change, ending)


def _collect(message: bytes, words: list[bytes], depth: int) -> None:
    """Short texts anywhere in a message."""
    try:
        fields = wire.parse(message)
    except ValueError:
        return
    for field in fields:
        if field.kind == 2 and isinstance(field.value, bytes) and len(words) < 3000:
            if 2 < len(field.value) < 200 and field.value.isascii() and field.value[0] > 32:
                words.append(field.value)
            elif depth < 8:
                _collect(field.value, words, depth + 1)


def _swap(rng: Random, message: bytes, old: bytes, new: bytes) -> bytes:
    """`new` for one `old`, with all lengths around it right."""
    fields = wire.parse(message)
    places = [
        index
        for index, field in enumerate(fields)
        if isinstance(field.value, bytes) and field.kind == 2 and old in field.value
    ]
    if not places:
        return message
    at = rng.choice(places)
    number, kind, value = fields[at]
    assert isinstance(value, bytes)
    if value == old:
        fields[at] = Field(number, kind, new)
    else:
        fields[at] = Field(number, kind, _swap(rng, value, old, new))
    return wire.encode(fields)


# HDF5


def hdf5_bytes(rng: Random, seed: Seed) -> Seed:
    """Bytes of the file in place, most of them in its structures."""
    return _any_file(rng, seed, _structure_bytes, "5")


_STRUCTURES = (b"TREE", b"SNOD", b"HEAP", b"GCOL", b"OHDR", b"OCHK", b"FRHP", b"BTHD", b"\x89HDF")


def _structure_bytes(rng: Random, data: bytes) -> bytes:
    choice = rng.random()
    if choice < 0.15:
        return mutate.some_bytes(rng, data)
    places = []
    for signature in _STRUCTURES:
        at = data.find(signature)
        while at >= 0 and len(places) < 2000:
            places.append(at)
            at = data.find(signature, at + 4)
    if not places or choice < 0.5:
        window = min(len(data), 8192)
        start = rng.choice((0, 0, rng.randrange(max(1, len(data) - window))))
    else:
        window, start = 256, max(0, rng.choice(places) - rng.choice((0, 0, 128)))
    piece = data[start : start + window]
    changed = rng.choice(mutate.IN_PLACE)(rng, piece)
    return data[:start] + changed[: len(piece)].ljust(len(piece), b"\0") + data[start + window :]


def hdf5_objects(rng: Random, seed: Seed) -> Seed:
    """Attributes and datasets of other content, shape and type, written by the library."""
    name = next((name for name in sorted(seed.files) if name.endswith("5")), None)
    if name is None:
        return seed
    image = io.BytesIO(seed.files[name])
    with h5py.File(image, "r+") as file:
        _change_objects(rng, file)
    return seed.changed(name, image.getvalue())


def _change_objects(rng: Random, file: Any) -> None:
    paths: list[str] = ["/"]
    file.visit(paths.append)
    path = rng.choice(paths)
    found = file[path]
    if found.attrs and rng.random() < 0.6:
        _change_attribute(rng, found.attrs)
    elif isinstance(found, h5py.Dataset):
        del file[path]
        _write_dataset(rng, file, path)
    elif rng.random() < 0.5:
        other = rng.choice(paths)
        if path != "/":
            del file[path]
        file[path.rstrip("/") + "/loop" if path == "/" else path] = rng.choice(
            (h5py.SoftLink(other), h5py.ExternalLink("/etc/passwd", "/"))
        )
    else:
        file[path][f"more{rng.randrange(9)}"] = file[rng.choice(paths)]


def _change_attribute(rng: Random, attributes: Any) -> None:
    key = rng.choice(list(attributes))
    value = attributes[key]
    if isinstance(value, str | bytes):
        raw = value.encode("utf-8", "surrogateescape") if isinstance(value, str) else value
        changed = mutate.json_text(rng, raw) if raw[:1] == b"{" else rng.choice(mutate.NAMES)
        attributes[key] = changed.replace(b"\0", b"")
    elif isinstance(value, np.ndarray) and value.size:
        items = value.ravel().tolist()
        at = rng.randrange(len(items))
        items[at] = rng.choice((*items, rng.choice(mutate.NAMES).replace(b"\0", b"") or b"x"))
        rng.shuffle(items)
        attributes[key] = items
    else:
        attributes[key] = rng.choice((0, 1.5, b"x", np.zeros(3), [b"a", b"b"], h5py.Empty("f4")))


def _write_dataset(rng: Random, file: Any, path: str) -> None:
    kind = rng.choice(("f2", "f4", "f8", ">f4", "i1", "u8", "c8", "S3", "?", "V2", "V8"))
    shape = rng.choice(((), (0,), (3,), (3, 0), (1, 3, 1), (2, 2), (1,) * 32, (4000,), (10**6,)))
    choice = rng.random()
    if choice < 0.2:
        file[path] = h5py.Empty("f4")
    elif choice < 0.3:
        file.create_dataset(path, shape=rng.choice(((2**20,), (2**26,), (2**40,))), dtype="f4")
    elif choice < 0.4:
        file.create_dataset(path, shape=(2**24,), dtype="f4", chunks=(2**14,), compression="gzip")
    elif choice < 0.5:
        file.create_dataset(path, data=["text", "x"], dtype=h5py.string_dtype())
    else:
        file[path] = np.zeros(shape, kind)


# Zip, tar, Keras archives


def zipped(members: list[tuple[str, bytes]], compression: int = zipfile.ZIP_STORED) -> bytes:
    """A zip of these members."""
    image = io.BytesIO()
    with zipfile.ZipFile(image, "w", compression) as archive:
        for name, content in members:
            info = zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0))
            archive.writestr(info, content, compression)
    return image.getvalue()


def tar(files: dict[str, bytes], mode: str) -> bytes:
    """A tar of these files."""
    image = io.BytesIO()
    with tarfile.open(fileobj=image, mode=mode) as archive:  # type: ignore[call-overload]
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return image.getvalue()


def keras_members(rng: Random, seed: Seed) -> Seed:
    """A member of a `.keras` mutated as its own format is, in a sound zip."""

    def change(rng: Random, data: bytes) -> bytes:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            members = {name: archive.read(name) for name in archive.namelist()}
        name = rng.choice(sorted(members)) if members else ""
        if name.endswith(".json"):
            members[name] = mutate.json_text(rng, members[name])
        elif name.endswith("5"):
            weights = Seed("", "hdf5", {name: members[name]}, name)
            members[name] = rng.choice((hdf5_bytes, hdf5_objects))(rng, weights).files[name]
        if rng.random() < 0.1 and name:
            del members[name]
        compression = rng.choice((zipfile.ZIP_STORED, zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED))
        return zipped(list(members.items()), compression)

    return _any_file(rng, seed, change)


def npz_members(rng: Random, seed: Seed) -> Seed:
    """Bytes of an array's file, of its header above all, in a sound zip."""

    def change(rng: Random, data: bytes) -> bytes:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            members = {name: archive.read(name) for name in archive.namelist()}
        name = rng.choice(sorted(members))
        start = 128 if rng.random() < 0.8 else len(members[name])
        members[name] = mutate.some_bytes(rng, members[name][:start]) + members[name][start:]
        compression = rng.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED))
        return zipped(list(members.items()), compression)

    return _any_file(rng, seed, change)


def zip_structure(rng: Random, seed: Seed) -> Seed:
    """Bytes of a zip's headers or of its table of contents."""

    def change(rng: Random, data: bytes) -> bytes:
        places = []
        for signature in (b"PK\1\2", b"PK\3\4", b"PK\5\6"):
            at = data.find(signature)
            while at >= 0:
                places.append(at)
                at = data.find(signature, at + 4)
        if not places:
            return mutate.some_bytes(rng, data)
        start = rng.choice(places)
        piece = data[start : start + 60]
        changed = rng.choice(mutate.IN_PLACE)(rng, piece)[: len(piece)]
        return data[:start] + changed.ljust(len(piece), b"\0") + data[start + 60 :]

    return _any_file(rng, seed, change)


def tar_headers(rng: Random, seed: Seed) -> Seed:
    """Bytes of a tar's headers, their checksums right."""
    import gzip

    name = sorted(seed.files)[0]
    data = seed.files[name]
    packed = data[:2] == b"\x1f\x8b"
    plain = gzip.decompress(data) if packed else data
    headers = [at for at in range(0, len(plain), 512) if plain[at + 257 : at + 262] == b"ustar"]
    if not headers:
        return zip_structure(rng, seed)
    at = rng.choice(headers)
    header = rng.choice(mutate.IN_PLACE)(rng, plain[at : at + 512])[:512].ljust(512, b"\0")
    checked = header[:148] + b" " * 8 + header[156:]
    header = checked[:148] + b"%06o\0 " % sum(checked) + checked[156:]
    plain = plain[:at] + header + plain[at + 512 :]
    return seed.changed(name, gzip.compress(plain, 1) if packed else plain)


# Texts


def state_text(rng: Random, seed: Seed) -> Seed:
    """The file `checkpoint`."""
    return _any_file(rng, seed, mutate.text, "checkpoint")


def json_file(rng: Random, seed: Seed) -> Seed:
    """The index of sharded weights."""
    return _any_file(rng, seed, mutate.json_text, ".json")


def safetensors_header(rng: Random, seed: Seed) -> Seed:
    """The header, with its length right."""
    return _any_file(rng, seed, pickles.safetensors_header)


def pickle_instructions(rng: Random, seed: Seed) -> Seed:
    """The instructions of PyTorch's pickles."""
    return _any_file(rng, seed, pickles.pickle_instructions)


_TABLES: Final[tuple[Recipe, ...]] = (
    entry_message, entry_message, entry_numbers, keys, block_contents, tensor_bytes, tensor_bytes,
    table_bytes,
)  # fmt: skip

RECIPES: Final[dict[str, tuple[Recipe, ...]]] = {
    "bundle": (*_TABLES, files),
    "v1": (*_TABLES, raw_bytes),
    "saved-model": (protobuf, protobuf, graph_wiring, *_TABLES, files, raw_bytes),
    "graph": (protobuf, protobuf, graph_wiring, raw_bytes),
    "graph-beside": (protobuf, graph_wiring, raw_bytes),
    "hdf5": (hdf5_bytes, hdf5_bytes, hdf5_objects, raw_bytes),
    "keras": (keras_members, keras_members, keras_members, zip_structure, raw_bytes),
    "npz": (npz_members, npz_members, zip_structure, raw_bytes),
    "json": (json_file, hdf5_bytes, files),
    "archive": (tar_headers, tar_headers, raw_bytes),
    "state": (state_text, state_text, state_text, files),
    "onnx": (protobuf, protobuf, graph_wiring, files, raw_bytes),
    "safetensors": (safetensors_header, safetensors_header, raw_bytes),
    "sharded": (json_file, json_file, files, raw_bytes),
    "tfjs": (json_file, json_file, json_file, files, raw_bytes),
    "pytorch": (pickle_instructions, pickle_instructions, zip_structure, raw_bytes),
}
"""Format -> its mutations, as often as they shall be chosen."""

FORMATS: Final = tuple(RECIPES)
