"""The mutations of each format."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Callable
from dataclasses import replace
from random import Random
from typing import Final

from bnstat.errors import BnstatError
from tests.fuzz import mutate
from tests.fuzz.recipes import archives, hdf5, pickles, tables
from tests.fuzz.seeds import Seed

Change = Callable[[Random, bytes], bytes]
"""Changes the content of one file."""

Recipe = Callable[[Random, Seed], Seed]
"""Changes the files of a model."""


def make(rng: Random, seed: Seed) -> tuple[Seed, bool]:
    """Apply one to three mutations of its format to a seed.

    Returns:
        The case, and True if checksums cover every change, so that bnstat must refuse the case or
        give the same output as for the seed.
    """
    if seed.format == "bundle" and rng.random() < 0.15:
        return raw_bytes(rng, seed), True
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
    NotImplementedError, MemoryError, zlib.error, zipfile.BadZipFile, BnstatError,
)  # fmt: skip
"""The errors of parsing a file that an earlier mutation has damaged."""


def on(change: Change, *endings: str) -> Recipe:
    """Return a recipe that changes one of the files whose names have one of these endings.

    The recipe raises LookupError if there is no such file.
    """

    def recipe(rng: Random, seed: Seed) -> Seed:
        name = rng.choice([name for name in sorted(seed.files) if name.endswith(endings or "")])
        return seed.changed(name, change(rng, seed.files[name]))

    return recipe


def files(rng: Random, seed: Seed) -> Seed:
    """Remove, empty, swap or double files."""
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


raw_bytes = on(mutate.some_bytes)
_state = on(mutate.text, "checkpoint")
_json = on(mutate.json_text, ".json")
_messages = on(mutate.protobuf_or_json, ".pb", ".meta", ".onnx")
_wiring = on(mutate.wiring, ".pb", ".meta", ".onnx")
_hdf5_bytes = on(hdf5.structures, "5")
_hdf5_objects = on(hdf5.objects, "5")
_keras = on(archives.keras_members)
_zip = on(archives.zip_structure)
_safetensors = on(pickles.safetensors_header)
_pickle = on(pickles.instructions)
_pytorch = on(pickles.pytorch)
_index = tuple(on(change, ".index") for change in tables.CHANGES)
_bundle = (*_index, tables.tensor_bytes, tables.tensor_bytes, files)

RECIPES: Final[dict[str, tuple[Recipe, ...]]] = {
    "bundle": _bundle,
    "v1": (*map(on, tables.CHANGES), raw_bytes),
    "saved-model": (_messages, _messages, _wiring, *_bundle, raw_bytes),
    "graph": (_messages, _messages, _wiring, raw_bytes),
    "graph-beside": (_messages, _wiring, raw_bytes),
    "hdf5": (_hdf5_bytes, _hdf5_bytes, _hdf5_objects, raw_bytes),
    "keras": (_keras, _keras, _keras, _zip, raw_bytes),
    "npz": (on(archives.npz_members), on(archives.npz_members), _zip, raw_bytes),
    "json": (_json, _hdf5_bytes, files),
    "archive": (on(archives.tar_headers), on(archives.tar_headers), raw_bytes),
    "state": (_state, _state, _state, files),
    "onnx": (_messages, _messages, _wiring, files, raw_bytes),
    "safetensors": (_safetensors, _safetensors, raw_bytes),
    "sharded": (_json, _json, files, raw_bytes),
    "tfjs": (_json, _json, _json, files, raw_bytes),
    "tflite": (raw_bytes, raw_bytes),
    "msgpack": (raw_bytes, raw_bytes),
    "pickle": (_pickle, _pickle, raw_bytes),
    "orbax": (
        on(mutate.json_text, "_METADATA", ".zarray", "zarr.json"),
        *(files, raw_bytes, raw_bytes),
    ),
    "pytorch": (_pytorch, _pytorch, _zip, raw_bytes),
}
"""Format -> its mutations; repeated ones are more likely."""

FORMATS: Final = tuple(RECIPES)
