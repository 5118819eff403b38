"""What the tests of Keras's formats share."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

import numpy as np

from bnstat.discovery.configuration import from_layers
from bnstat.discovery.merge import Sighting
from bnstat.formats.contents import Contents
from bnstat.model import Array, Source
from bnstat.storage.local import LocalFile

FORMATS = ("keras.h5", "keras.weights", "keras.archive")


def recognised_by(path: Path) -> list[str]:
    """The formats that take a file for theirs."""
    file = LocalFile(path)
    return [name for name in FORMATS if import_module(f"bnstat.formats.{name}").matches(file)]


def contents_of(path: Path) -> Contents:
    """What the one format that matches a file reads from it."""
    [name] = recognised_by(path)
    module = import_module(f"bnstat.formats.{name}")
    return module.open_contents(LocalFile(path), Source(str(path), ""))


def batch_norms(contents: Contents) -> dict[str, Sighting]:
    """The batch-norm layers by their longer names, in their order."""
    sightings = from_layers(contents)
    assert len({sighting.longer_name for sighting in sightings}) == len(sightings)
    for sighting in sightings:
        assert f"/{sighting.longer_name}".endswith(f"/{sighting.name}")
    return {sighting.longer_name: sighting for sighting in sightings}


def same_bits(left: Array, right: Array) -> bool:
    """Whether two arrays agree in dtype, shape and every bit."""
    left, right = np.asarray(left), np.asarray(right)
    return (
        left.dtype == right.dtype
        and left.shape == right.shape
        and left.tobytes() == right.tobytes()
    )
