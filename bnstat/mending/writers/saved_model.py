"""A SavedModel's values: in `variables/`, or the constants of its graph."""

from __future__ import annotations

from collections.abc import Mapping

from bnstat.formats.contents import Contents
from bnstat.mending.writers import bundle, graph
from bnstat.model import Array


def write(contents: Contents, arrays: Mapping[str, Array]) -> None:
    """Write values; see `bnstat.mending.writers.write`."""
    places = [place for key in arrays for place in contents.variables[key].extents()]
    if places and all(place.file.name.startswith("variables.data-") for place in places):
        bundle.write(contents, arrays)
    else:
        graph.write(contents, arrays)
