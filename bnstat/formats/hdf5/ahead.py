"""Fetching the objects of an HDF5 file that is far away, in a few trips.

One object leads to the next, so that a walk through a file makes a trip for each. Here all objects
that can be reached with what is there are looked at; what they lack is fetched in one go; and so
on, until nothing is lacking. The number of trips is that of the tree's levels, not of its objects.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Final

from bnstat.errors import BnstatError
from bnstat.formats.hdf5.objects import AbsentError, Objects

_WINDOW: Final = 8 << 10
"""So much is fetched at a place: an object's parts, and its members, mostly follow it."""

_MOST_TRIPS: Final = 200


def fetch_ahead(objects: Objects, root: int, visit: Callable[[int], Iterable[int]]) -> None:
    """Fetch all that `visit` reads, for an object and those that it leads to.

    Args:
        objects: the file's objects.
        root: the header of the first.
        visit: reads an object by its header, and gives the headers of others. What is damaged
            tells so when it is read in earnest.
    """
    seen = {root}
    waiting = [root]
    for _ in range(_MOST_TRIPS):
        lacking: dict[int, AbsentError] = {}
        while waiting:
            header = waiting.pop()
            try:
                with objects.no_trips():
                    found = list(visit(header))
            except AbsentError as absent:
                lacking[header] = absent
            except BnstatError:
                continue
            else:
                fresh = [child for child in dict.fromkeys(found) if child not in seen]
                seen.update(fresh)
                waiting += fresh
        if not lacking:
            return
        objects.fetch(
            (address, max(length, _WINDOW))
            for absent in lacking.values()
            for address, length in absent.spans
        )
        waiting = list(lacking)
