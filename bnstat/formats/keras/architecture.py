"""The architecture of a Keras model, as people keep it beside weights that do not tell it.

It is what `model.to_json()` gives, in Keras 1 to 3, and what a `.keras` holds as `config.json`; a
`.keras` or a full `.h5` of the same model tells it as well. Nothing of it is built.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from typing import Final, NamedTuple

from bnstat.errors import BnstatError, DamagedError
from bnstat.formats.hdf5.file import Hdf5, is_hdf5
from bnstat.formats.json_text import MAX_BYTES, parse_json
from bnstat.formats.keras.config import Described, describe
from bnstat.storage.files import File
from bnstat.storage.local import LocalFile

MATCHED_BY_PLACE: Final = "the file calls layers otherwise than the architecture: matched by place"
"""What has to be said where names that nobody gave differ from session to session."""

_MEMBER: Final = "config.json"
_ENDINGS: Final = re.compile(r"(_\d{5})?\.weights\.(h5|json)$|\.(h5|hdf5|hdf|keras)$")
_HEAD: Final = 4096
_TRY: Final = "give what model.to_json() gave, a config.json, a .keras or a full .h5"


class Architecture(NamedTuple):
    """An architecture: the file that it was read from, and the layers right below the model."""

    path: str
    layers: tuple[Described, ...]


def read_architecture(path: str) -> Architecture:
    """The architecture that a file tells.

    Args:
        path: the JSON of `model.to_json()`, a `config.json`, a `.keras` as an archive or a
            folder, or an `.h5` of a full model.

    Raises:
        NotFoundError: there is no such file.
        DamagedError: it is no JSON, or nested beyond reason.
        BnstatError: it tells no architecture.
    """
    file = LocalFile(os.path.join(path, _MEMBER) if os.path.isdir(path) else path)
    file.refuse_lfs_pointer()
    text = _text(file)
    if text is None:
        raise BnstatError(path, "holds no architecture of a Keras model", _TRY)
    model = parse_json(text, path)
    if isinstance(model, str):
        # json.dump(model.to_json(), file) encodes the text once more.
        model = parse_json(model, path)
    layers = describe(model, path)
    if not layers:
        raise BnstatError(path, "is JSON, but lists no layers of a Keras model", _TRY)
    return Architecture(path, layers)


def _text(file: File) -> str | bytes | None:
    """The architecture's JSON; None where the file is of no kind that holds one."""
    if is_hdf5(file):
        return Hdf5(file).text("", "model_config")
    if _begins_as_json(file):
        return _read(file)
    from bnstat.storage.archive import open_archive

    folder = open_archive(file)
    member = folder.file(_MEMBER) if folder is not None else None
    return _read(member) if member is not None else None


def _read(file: File) -> bytes:
    if file.size > MAX_BYTES:
        raise DamagedError(file.path, f"{file.size} bytes are more than any model needs")
    return file.read()


def is_architecture(file: File) -> bool:
    """Whether a file looks like the JSON of a Keras model, by its beginning."""
    return file.size <= MAX_BYTES and _begins_as_json(file) and b'"class_name"' in file.head(_HEAD)


def _begins_as_json(file: File) -> bool:
    return file.head(64).lstrip().startswith((b"{", b'"{'))


def architecture_beside(file: File) -> str | None:
    """The path of what looks like the architecture of weights, beside them, by its name."""
    for name in _names_beside(file.name):
        found = file.sibling(name)
        if found is not None and is_architecture(found):
            return found.path
    return None


def _names_beside(weights: str) -> Iterator[str]:
    """`m.json` for `m.h5`, `m_weights.h5`, `m.weights.h5`; also `config.json` for a `model`."""
    stem = _ENDINGS.sub("", weights)
    if stem == weights:
        return
    yield f"{stem}.json"
    if (shorter := re.sub(r"[._-]weights$", "", stem)) != stem:
        yield f"{shorter}.json"
    if stem == "model":
        yield _MEMBER
