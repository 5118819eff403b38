"""Which mutations each format's seeds get."""

from __future__ import annotations

import zipfile
import zlib
from dataclasses import replace
from random import Random
from typing import Final

from tests.fuzz import mutate, pickles
from tests.fuzz.recipes.archives import keras_members, npz_members, tar_headers, zip_structure
from tests.fuzz.recipes.common import Recipe, any_file, files, raw_bytes
from tests.fuzz.recipes.graphs import graph_wiring, protobuf
from tests.fuzz.recipes.hdf5 import hdf5_bytes, hdf5_objects
from tests.fuzz.recipes.tables import (
    block_contents,
    entry_message,
    entry_numbers,
    keys,
    table_bytes,
    tensor_bytes,
)
from tests.fuzz.seeds import Seed


def make(rng: Random, seed: Seed) -> tuple[Seed, bool]:
    """A case: a seed with one to three mutations of its format.

    Returns:
        The case, and whether checksums cover all that was changed: then bnstat must refuse it,
        or answer as for the seed.
    """
    if seed.format == "bundle" and rng.random() < 0.15:
        return any_file(rng, seed, mutate.some_bytes), True
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


def state_text(rng: Random, seed: Seed) -> Seed:
    """The file `checkpoint`."""
    return any_file(rng, seed, mutate.text, "checkpoint")


def json_file(rng: Random, seed: Seed) -> Seed:
    """The index of sharded weights."""
    return any_file(rng, seed, mutate.json_text, ".json")


def orbax_json(rng: Random, seed: Seed) -> Seed:
    """What describes a tree, or one of its arrays."""
    ending = rng.choice(("_METADATA", ".zarray", "zarr.json"))
    return any_file(rng, seed, mutate.json_text, ending)


def safetensors_header(rng: Random, seed: Seed) -> Seed:
    """The header, with its length right."""
    return any_file(rng, seed, pickles.safetensors_header)


def pickle_instructions(rng: Random, seed: Seed) -> Seed:
    """The instructions of PyTorch's pickles."""
    return any_file(rng, seed, pickles.pickle_instructions)


def alone_instructions(rng: Random, seed: Seed) -> Seed:
    """The instructions of a pickle that is a file."""
    return any_file(rng, seed, pickles.instructions)


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
    "tflite": (raw_bytes, raw_bytes),
    "msgpack": (raw_bytes, raw_bytes),
    "pickle": (alone_instructions, alone_instructions, raw_bytes),
    "orbax": (orbax_json, orbax_json, files, raw_bytes, raw_bytes),
    "pytorch": (pickle_instructions, pickle_instructions, zip_structure, raw_bytes),
}
"""Format -> its mutations, as often as they shall be chosen."""

FORMATS: Final = tuple(RECIPES)
