"""The mutations of each format."""

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
    """Apply one to three mutations of its format to a seed.

    Returns:
        The case, and True if checksums cover every change, so that bnstat must refuse the case or
        give the same output as for the seed.
    """
    if seed.format == "bundle" and rng.random() < 0.15:
        return any_file(rng, seed, mutate.some_bytes), True
    # The HDF5 library must not read a file that is already damaged: it could end this process.
    count = 1 if seed.format in ("hdf5", "keras", "json") else rng.choice((1, 1, 1, 2, 3))
    for recipe in rng.choices(RECIPES[seed.format], k=count):
        try:
            seed = recipe(rng, seed)
        except _UNREADABLE:
            seed = raw_bytes(rng, seed)
    shortened = {name: data[:_LONGEST] for name, data in seed.files.items()}
    return replace(seed, files=shortened), False


_LONGEST: Final = 2 << 20
"""Bytes of a file; files of hundreds of megabytes may take long even if they are valid."""


_UNREADABLE: Final = (
    ValueError, LookupError, ArithmeticError, TypeError, OSError, EOFError, RuntimeError,
    NotImplementedError, MemoryError, zlib.error, zipfile.BadZipFile,
)  # fmt: skip
"""The errors of parsing a file that an earlier mutation has damaged."""


def state_text(rng: Random, seed: Seed) -> Seed:
    """Change the file `checkpoint`."""
    return any_file(rng, seed, mutate.text, "checkpoint")


def json_file(rng: Random, seed: Seed) -> Seed:
    """Change the index of sharded weights."""
    return any_file(rng, seed, mutate.json_text, ".json")


def orbax_json(rng: Random, seed: Seed) -> Seed:
    """Change the description of a tree or of one of its arrays."""
    ending = rng.choice(("_METADATA", ".zarray", "zarr.json"))
    return any_file(rng, seed, mutate.json_text, ending)


def safetensors_header(rng: Random, seed: Seed) -> Seed:
    """Change the header, with a correct length."""
    return any_file(rng, seed, pickles.safetensors_header)


def pickle_instructions(rng: Random, seed: Seed) -> Seed:
    """Change the instructions of PyTorch's pickles."""
    return any_file(rng, seed, pickles.pickle_instructions)


def alone_instructions(rng: Random, seed: Seed) -> Seed:
    """Change the instructions of a file that is a pickle."""
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
"""Format -> its mutations; repeated ones are more likely."""

FORMATS: Final = tuple(RECIPES)
