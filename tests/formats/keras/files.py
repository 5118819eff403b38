"""Helpers of the tests of Keras's formats."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

from bnstat.discovery.configuration import from_layers
from bnstat.discovery.merge import Sighting
from bnstat.formats.contents import Contents
from bnstat.model import Source
from bnstat.storage.local import LocalFile
from tests.builders.oracle import same_bits as same_bits

FORMATS = ("keras.h5", "keras.weights", "keras.archive")


def recognised_by(path: Path) -> list[str]:
    """Return the formats that recognise a file."""
    file = LocalFile(path)
    return [name for name in FORMATS if import_module(f"bnstat.formats.{name}").matches(file)]


def contents_of(path: Path) -> Contents:
    """Read a file by the only format that recognises it."""
    [name] = recognised_by(path)
    module = import_module(f"bnstat.formats.{name}")
    return module.open_contents(LocalFile(path), Source(str(path), ""))


def batch_norms(contents: Contents) -> dict[str, Sighting]:
    """Return the batch-norm layers by their longer names, in their order."""
    sightings = from_layers(contents)
    assert len({sighting.longer_name for sighting in sightings}) == len(sightings)
    for sighting in sightings:
        assert f"/{sighting.longer_name}".endswith(f"/{sighting.name}")
    return {sighting.longer_name: sighting for sighting in sightings}
