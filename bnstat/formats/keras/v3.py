"""Keras's `.keras` format ("Keras v3"): a zip with a model's configuration and its `.weights.h5`.

`config.json` is the configuration, `metadata.json` contains the version of Keras, and
`model.weights.h5` contains the variables. The members are stored without compression. Keras also
saves these files as a plain folder (`zipped=False`), with shards if the weights are large.
The model is never built, so the code of a Lambda layer never runs.

Source: keras/src/saving/saving_lib.py, `save_model`.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from bnstat.errors import DamagedError, UnsupportedError
from bnstat.formats.contents import Contents
from bnstat.formats.detection import first_in_zip
from bnstat.formats.keras import CONFIG, WEIGHTS, is_keras_folder
from bnstat.formats.keras.config import describe, read_json
from bnstat.formats.keras.h5 import writer
from bnstat.formats.keras.weights import join, read_weights
from bnstat.model import Source
from bnstat.storage.archive import open_archive, stored_member
from bnstat.storage.files import File, Folder

_METADATA: Final = "metadata.json"


def matches(file: File) -> bool:
    """Return True for a zip of a Keras model, even if the end of the zip is missing."""
    first = first_in_zip(file)
    if first is None:
        return False
    try:
        folder = open_archive(file)
    except DamagedError:
        return first == _METADATA.encode()
    return folder is not None and is_keras_folder(folder)


def open_contents(file: File, source: Source) -> Contents:
    """Return the variables and layers of a file for which `matches` is True."""
    try:
        folder = open_archive(file)
    except DamagedError as error:
        what = "is cut short or damaged: the table of contents at the end of the zip is missing"
        raise DamagedError(file.path, what, "copy or download it again") from error
    if folder is None or not is_keras_folder(folder):
        raise DamagedError(file.path, f"lacks {CONFIG} or {WEIGHTS[0]}", "save the model again")
    return open_folder(folder, source, stored_member(file, WEIGHTS[0]))


def open_folder(folder: Folder, source: Source, weights: File | None = None) -> Contents:
    """Return the variables and layers of a folder for which `is_keras_folder` is True.

    `weights` is the weights file of a zip, if stored uncompressed; by default, search the folder.
    """
    for name in WEIGHTS:
        weights = weights or folder.file(name)
    if weights is None:
        what = "stores its weights as a Python pickle, which bnstat never reads: it can run code"
        hint = "save the model again with weights_format='h5'"
        raise UnsupportedError(folder.path, what, hint)
    config, metadata = folder.file(CONFIG), folder.file(_METADATA)
    saved = read_json(metadata) if metadata else None
    version = saved.get("keras_version") if isinstance(saved, dict) else None
    library = writer(version) if isinstance(version, str) else None
    described = describe(read_json(config), config.path) if config else ()
    stored = read_weights(weights)
    source = replace(source, format="keras-archive", writer=library)
    # The weights of a subclassed model are in the order of attribute names.
    return Contents(
        source,
        stored.variables,
        layers=join(described, stored),
        layers_in_order=bool(described),
    )
