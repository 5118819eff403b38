"""Keras's `.keras`: a zip with a model's configuration and its `.weights.h5`.

`config.json` is the configuration, `metadata.json` tells the version of Keras and
`model.weights.h5` holds the variables, all of them stored without compression. Keras also saves
these files as a plain folder (`zipped=False`), with the weights sharded where they are large.

Nothing of the model is built: a Lambda layer's code is never run.

Source: keras/src/saving/saving_lib.py, `save_model`.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from bnstat.errors import DamagedError, UnsupportedError
from bnstat.formats.contents import Contents
from bnstat.formats.json_text import MAX_BYTES, parse_json
from bnstat.formats.keras.config import describe
from bnstat.formats.keras.detection import CONFIG, WEIGHTS, is_keras_folder
from bnstat.formats.keras.h5 import writer
from bnstat.formats.keras.plain import is_plain
from bnstat.formats.keras.weights import join, read_weights
from bnstat.model import Source
from bnstat.storage.archive import open_archive, stored_member
from bnstat.storage.files import File, Folder

_METADATA: Final = "metadata.json"
_ZIP_MEMBER: Final = b"PK\x03\x04"
_NAME_AT: Final = 30
"""Where a member's name begins in the header before it, which is all a cut-off zip has left."""


def matches(file: File) -> bool:
    """Whether this is a zip of a Keras model, be it cut short."""
    head = file.head(_NAME_AT + len(_METADATA))
    if not head.startswith(_ZIP_MEMBER):
        return False
    try:
        folder = open_archive(file)
    except DamagedError:
        return head.endswith(_METADATA.encode())
    return folder is not None and is_keras_folder(folder)


def open_contents(file: File, source: Source) -> Contents:
    """The variables and layers of a file that `matches`.

    Raises:
        DamagedError: the archive or a file in it is truncated or contradicts itself.
        UnsupportedError: its weights are pickled.
    """
    try:
        folder = open_archive(file)
    except DamagedError as error:
        raise DamagedError(
            file.path,
            "is cut short or damaged: the table of contents at the end of the zip is missing",
            "copy or download it again",
        ) from error
    if folder is None or not is_keras_folder(folder):
        raise DamagedError(file.path, f"lacks {CONFIG} or {WEIGHTS[0]}", "save it again")
    return _contents(folder, stored_member(file, WEIGHTS[0]), source)


def open_folder(folder: Folder, source: Source) -> Contents:
    """The variables and layers of a folder that `is_keras_folder`.

    Raises:
        DamagedError: a file in it is truncated or contradicts itself.
        UnsupportedError: its weights are pickled.
    """
    return _contents(folder, None, source)


def _contents(folder: Folder, weights: File | None, source: Source) -> Contents:
    for name in WEIGHTS:
        weights = weights or folder.file(name)
    if weights is None:
        raise UnsupportedError(
            folder.path,
            "keeps its weights as a Python pickle, which is not read for it can run code",
            "save the model again with weights_format='h5'",
        )
    config = folder.file(CONFIG)
    described = describe(_json(config), config.path) if config is not None else ()
    every = [layer for top in described for layer in top.walk()]
    metadata = folder.file(_METADATA)
    saved = _json(metadata) if metadata is not None else None
    version = saved.get("keras_version") if isinstance(saved, dict) else None
    held = read_weights(weights, [layer.path for layer in every if is_plain(layer)])
    if any(held.names.get(layer.path, layer.own_name) != layer.own_name for layer in every):
        # The file keeps layers in other places than Keras does.
        held = read_weights(weights)
    return Contents(
        source=replace(
            source,
            format="keras-archive",
            writer=writer(version) if isinstance(version, str) else None,
        ),
        variables=held.variables,
        search=held.search,
        layers=join(described, held),
    )


def _json(file: File) -> object:
    if file.size > MAX_BYTES:
        raise DamagedError(file.path, f"{file.size} bytes are more than any model needs")
    return parse_json(file.read(), file.path)
